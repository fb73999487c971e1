//! Driving again on the embedded broker: the whole ingest service runs, and the test plays the coordinator, whose outcomes it
//! writes by hand. Nothing here looks at a clock: whatever must not come would stand before what is waited for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc as reports};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use suture_contract::codec::{RequestsRecord, decode_requests_record};
use suture_contract::ids::{Shard, Txid};
use suture_contract::keys::{HashKey, IdentityKey};
use suture_contract::messages::Request;
use suture_contract::partitioner::shard_of;
use suture_contract::topic_map::{Topic, retry_group};
use suture_coordinator::ingest::{self, IngestCounts, IngestFailure};
use suture_coordinator_core::ingest::Keys;
use suture_coordinator_core::ingest::rules::Rules;
use suture_topics::acks::GroupOffsets;
use suture_topics::embedded::EmbeddedBroker;
use suture_topics::outbox::{Delivery, Outbox};
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::record::Record;
use suture_topics::settings::KafkaSettings;
use tokio::sync::{mpsc, watch};

/// Longest wait for anything; only a broken test gets there.
const LONG: Duration = Duration::from_secs(60);

/// Attempts 1 and 2 are asked for again, at once; attempt 3 is a person's.
const RULES: &str = r#"
    [[rule]]
    id = "surgery"
    topics = ["upstream"]
    retry_after_ms = [1, 1]
    match = [{ path = "$.id", present = true }]
    key = { source = "s", id = "$.id", revision = "$.status" }
    [[rule.branch]]
    participant = "insurer"
    operation = "o"
    payload = { x = "$.id" }
"#;

struct World {
    kafka: KafkaSettings,
    outbox: Outbox,
    deliveries: reports::Receiver<Delivery>,
    _reader: Reader,
    events: mpsc::Receiver<ReaderEvent>,
    /// What stands in the requests, in the order read.
    requests: Vec<Record>,
    broker: EmbeddedBroker,
}

impl World {
    fn start() -> Self {
        let broker = EmbeddedBroker::start().unwrap();
        let kafka = broker.settings("suture".parse().unwrap());
        broker.create_topics(&kafka, &["insurer".parse().unwrap()]).unwrap();
        broker.create_topic("upstream", 1).unwrap();
        let (tell, deliveries) = reports::channel();
        let outbox = Outbox::start(&kafka, "test", move |delivery| drop(tell.send(delivery))).unwrap();
        let (post, events) = mpsc::channel(16);
        let reader = Reader::start(&kafka, "test", post).unwrap();
        for partition in 0..i32::from(kafka.partitions) {
            reader.add(&[("suture.requests", partition, 0)]);
        }
        Self { kafka, outbox, deliveries, _reader: reader, events, requests: Vec::new(), broker }
    }

    fn append(&self, topic: &Topic, partition: i32, key: &str, value: &str, trace: Option<&str>) -> u64 {
        let topic = topic.name(&self.kafka.prefix);
        self.outbox.append(&topic, partition, key.as_bytes(), Some(value.as_bytes()), "test", trace, 0).unwrap();
        self.deliveries.recv_timeout(LONG).unwrap().result.unwrap()
    }

    /// A first attempt, as ingest or an application would ask for it.
    fn ask(&self, rule: &str, number: u32) -> Txid {
        let (order_key, shard) = self.order_key();
        let trace = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let offset = self.append(&Topic::Requests, shard, &order_key, &request(rule, number, 1), trace);
        format!("{}-{shard}-{offset}", self.broker.letters()).parse().unwrap()
    }

    fn order_key(&self) -> (String, i32) {
        let order_key = "patient:0f0f".to_string();
        let shard = shard_of(order_key.as_bytes(), self.kafka.partitions).partition();
        (order_key, shard)
    }

    /// Says how a transaction ended: `commit`, or the insurer's no.
    fn end(&self, txid: Txid, rule: &str, number: u32, attempt: u32, how: &str) {
        let (verdict, vote) = match how {
            "commit" => ("commit", r#""vote":"yes""#.to_string()),
            code => ("abort", format!(r#""vote":"no","code":"{code}""#)),
        };
        let (key, retryable) = (business_key(rule, number), how == "expired" || how == "busy");
        let outcome = format!(
            r#"{{"type":"outcome","v":1,"txid":"{txid}","business_key":"{key}","attempt":{attempt},"outcome":"{verdict}","votes":[{{"participant":"insurer",{vote}}}],"retryable":{retryable}}}"#
        );
        self.append(&Topic::Outcomes, txid.shard.partition(), &key, &outcome, None);
    }

    /// Reads the requests until so many stand there, and gives the last one with its name.
    fn request(&mut self, count: usize) -> (Txid, Record, Request) {
        while self.requests.len() < count {
            if let ReaderEvent::Records(records) = self.events.blocking_recv().expect("a living reader") {
                self.requests.extend(records);
            }
        }
        assert_eq!(self.requests.len(), count, "and no more");
        let record = self.requests[count - 1].clone();
        let txid = format!("{}-{}-{}", self.broker.letters(), record.partition, record.offset).parse().unwrap();
        let Ok(RequestsRecord::Request(request)) = decode_requests_record(record.value.as_deref().unwrap()) else {
            panic!("{record:?}")
        };
        (txid, record, request)
    }

    /// Until the group's position is past all outcomes of the shard: each is settled, or was asked for again.
    fn wait_until_nothing_waits(&self, outcomes: u64) {
        let mut offsets = GroupOffsets::new(&self.kafka);
        let (_, shard) = self.order_key();
        wait_until("nothing waits", || {
            let group = retry_group(&self.kafka.prefix);
            let committed = offsets.committed(&group, &[("suture.outcomes", shard)]).unwrap_or_default();
            committed.into_iter().flatten().any(|committed| committed.offset == outcomes)
        });
    }
}

fn business_key(rule: &str, number: u32) -> String {
    format!("{rule}:{number:032x}:finished")
}

fn request(rule: &str, number: u32, attempt: u32) -> String {
    format!(
        r#"{{"type":"request","v":1,"business_key":"{}","attempt":{attempt},"rule":"{rule}","source":{{"topic":"upstream","partition":0,"offset":{number}}},"deadline_ms":30000,"ordered":true,"branches":[{{"participant":"insurer","operation":"o","payload":{{"amount":15402.80,"x":{number}}}}}],"hash":"k1:{number:032x}"}}"#,
        business_key(rule, number)
    )
}

/// The whole ingest service.
struct Ingest {
    counts: Arc<IngestCounts>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<(), IngestFailure>>>,
}

impl Ingest {
    fn start(world: &World) -> Self {
        let (rules, kafka) = (Arc::new(Rules::parse(RULES).unwrap()), world.kafka.clone());
        let hash = HashKey::new("k1".parse().unwrap(), b"a hash key for tests").unwrap();
        let keys = Keys { identity: IdentityKey::new(b"an identity key for tests").unwrap(), hash };
        let (stop, stopped) = watch::channel(false);
        let counts = Arc::new(IngestCounts::default());
        let shared = Arc::clone(&counts);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(ingest::run(kafka, rules, keys, shared, stopped))
        });
        Self { counts, stop, thread: Some(thread) }
    }

    fn drain(mut self) {
        self.stop.send(true).unwrap();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[expect(clippy::disallowed_methods, reason = "a limit for broken tests")]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < LONG, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_abort_that_may_pass_is_asked_for_again_as_often_as_its_rule_says() {
    let mut world = World::start();
    let first = world.ask("surgery", 1);
    let refused = world.ask("surgery", 2);
    world.end(refused, "surgery", 2, 1, "LIMIT");
    world.end(first, "surgery", 1, 1, "expired");
    let ingest = Ingest::start(&world);

    let (second, record, request_2) = world.request(3);
    assert_eq!(record.key, world.requests[0].key, "the same order key, and so the same shard");
    assert_eq!(record.partition, world.requests[0].partition);
    assert_eq!(record.traceparent, world.requests[0].traceparent);
    assert!(record.traceparent.is_some());
    assert_eq!(String::from_utf8(record.value.unwrap()).unwrap(), request("surgery", 1, 2), "all else is the same");
    assert_eq!(request_2.attempt.number(), 2);
    let remark = record.remark.expect("who and why");
    assert_eq!((remark.retry_of(), remark.who(), remark.because()), (first, "ingest", "insurer expired"));

    world.end(second, "surgery", 1, 2, "busy");
    let (third, record, _) = world.request(4);
    assert_eq!(String::from_utf8(record.value.unwrap()).unwrap(), request("surgery", 1, 3));
    world.end(third, "surgery", 1, 3, "expired");
    world.wait_until_nothing_waits(4);
    // Whatever was asked for stands before this one.
    let last = world.ask("surgery", 3);
    assert_eq!(world.request(5).0, last);
    let counts = Arc::clone(&ingest.counts);
    ingest.drain();
    assert_eq!((count(&counts.asked_again), count(&counts.used_up), count(&counts.gone)), (2, 1, 0));
}

/// A new owner begins at the position; outcomes that are written again, and those that the log answers further on, ask for
/// nothing.
#[test]
fn a_restart_asks_for_what_waited_and_for_nothing_else() {
    let mut world = World::start();
    let (settled, open) = (world.ask("surgery", 1), world.ask("surgery", 2));
    let again = world.ask("surgery", 1);
    world.end(settled, "surgery", 1, 1, "expired");
    world.end(open, "surgery", 2, 1, "expired");
    world.end(again, "surgery", 1, 2, "commit");
    world.end(settled, "surgery", 1, 1, "expired");
    world.end(again, "surgery", 1, 2, "commit");
    let ingest = Ingest::start(&world);
    let (_, record, _) = world.request(4);
    assert_eq!(record.remark.expect("who and why").retry_of(), open);
    world.wait_until_nothing_waits(5);
    ingest.drain();

    let ingest = Ingest::start(&world);
    let third = world.ask("surgery", 3);
    world.end(third, "surgery", 3, 1, "busy");
    let (_, record, _) = world.request(6);
    assert_eq!(record.remark.expect("who and why").retry_of(), third, "nothing before it");
    world.wait_until_nothing_waits(6);
    assert_eq!(count(&ingest.counts.asked_again), 1);
    ingest.drain();
}

#[test]
fn what_cannot_be_asked_for_again_is_counted_and_stands_in_nobodys_way() {
    let mut world = World::start();
    let (order_key, shard) = world.order_key();
    let of_an_application = world.ask("application", 1);
    let (changed, cancelled) = (world.ask("surgery", 2), world.append(&Topic::Requests, shard, &order_key, "{}", None));
    let cancelled = Txid { offset: cancelled, ..changed };
    world.end(of_an_application, "application", 1, 1, "busy");
    world.end(changed, "surgery", 77, 1, "busy");
    world.end(cancelled, "surgery", 3, 1, "busy");
    world.end(
        "zzzzz-3-0".parse::<Txid>().map(|of| Txid { shard: changed.shard, ..of }).unwrap(),
        "surgery",
        4,
        1,
        "busy",
    );
    world.append(&Topic::Outcomes, shard, "k", "no outcome", None);
    let incident = format!(r#"{{"type":"incident","v":1,"participant":"insurer","what":"lost","txid":"{changed}"}}"#);
    world.append(&Topic::Outcomes, shard, "k", &incident, None);
    // The embedded broker drops what is oldest above 5 MiB of a partition.
    let other = (shard + 1) % i32::from(world.kafka.partitions);
    let trimmed = world.append(&Topic::Requests, other, "other", &request("surgery", 6, 1), None);
    let filler = " ".repeat(900_000);
    for _ in 0..8 {
        world.append(&Topic::Requests, other, "other", &filler, None);
    }
    let other_shard = Shard::of_partition(other).unwrap();
    world.end(Txid { shard: other_shard, offset: trimmed, ..changed }, "surgery", 6, 1, "busy");
    let last = world.ask("surgery", 5);
    world.end(last, "surgery", 5, 1, "busy");

    let ingest = Ingest::start(&world);
    wait_until("all is settled", || count(&ingest.counts.gone) == 4);
    world.wait_until_nothing_waits(7);
    world.requests.retain(|record| record.partition == shard);
    while world.requests.iter().all(|record| record.remark.is_none()) {
        if let ReaderEvent::Records(records) = world.events.blocking_recv().expect("a living reader") {
            world.requests.extend(records.into_iter().filter(|record| record.partition == shard));
        }
    }
    let remarked = world.requests.iter().filter_map(|record| record.remark.as_ref());
    assert_eq!(remarked.map(|remark| remark.retry_of()).collect::<Vec<_>>(), [last]);
    let counts = Arc::clone(&ingest.counts);
    ingest.drain();
    assert_eq!((count(&counts.asked_again), count(&counts.no_rule), count(&counts.gone)), (1, 1, 4));
}

/// What a later version says may be anything, so that shard waits for a later ingest; the others go on.
#[test]
fn an_outcome_of_a_newer_version_stops_its_shard_and_no_other() {
    let mut world = World::start();
    let (_, shard) = world.order_key();
    let stopped = world.ask("surgery", 1);
    world.append(&Topic::Outcomes, shard, "k", r#"{"type":"outcome","v":2}"#, None);
    world.end(stopped, "surgery", 1, 1, "busy");
    let other = (shard + 1) % i32::from(world.kafka.partitions);
    let offset = world.append(&Topic::Requests, other, "other", &request("surgery", 2, 1), None);
    let on_another = Txid { shard: Shard::of_partition(other).unwrap(), offset, ..stopped };
    world.end(on_another, "surgery", 2, 1, "busy");

    let ingest = Ingest::start(&world);
    world.wait_until_nothing_waits(0);
    while world.requests.iter().all(|record| record.remark.is_none()) {
        if let ReaderEvent::Records(records) = world.events.blocking_recv().expect("a living reader") {
            world.requests.extend(records);
        }
    }
    let remarked: Vec<Txid> =
        world.requests.iter().filter_map(|record| Some(record.remark.as_ref()?.retry_of())).collect();
    assert_eq!(remarked, [on_another]);
    ingest.drain();
}

/// Requests that lie far apart, newer ones due before older ones, more than may be looked up at a time.
#[test]
fn many_are_read_back_from_wherever_they_stand() {
    let mut world = World::start();
    let (order_key, shard) = world.order_key();
    let mut asked = Vec::new();
    for number in 0..300 {
        asked.push(world.ask("surgery", number));
        if number % 100 == 50 {
            for _ in 0..1_200 {
                let topic = Topic::Requests.name(&world.kafka.prefix);
                world.outbox.append(&topic, shard, order_key.as_bytes(), Some(b"{}"), "test", None, 0).unwrap();
            }
            (0..1_200).for_each(|_| assert!(world.deliveries.recv_timeout(LONG).unwrap().result.is_ok()));
        }
    }
    for (number, txid) in asked.iter().enumerate().rev() {
        world.end(*txid, "surgery", u32::try_from(number).unwrap(), 1, "expired");
    }
    let ingest = Ingest::start(&world);
    world.wait_until_nothing_waits(300);
    world.request(300 + 3 * 1_200 + 300);
    let again = world.requests.iter().filter_map(|record| Some(record.remark.as_ref()?.retry_of()));
    let mut again: Vec<Txid> = again.collect();
    again.sort();
    assert_eq!(again, asked);
    assert_eq!(count(&ingest.counts.asked_again), 300);
    ingest.drain();
}
