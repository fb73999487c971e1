//! The coordinator on real Kafka, three brokers: `SUTURE_TEST_BOOTSTRAP`, as `compose/test` sets it.
//!
//! Each test has a deployment of its own, of one shard. The participants are the test's: they vote when it says so.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc as reports;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::value::RawValue;
use suture_contract::codec::{self, Message, encode};
use suture_contract::ids::{Attempt, LogLetters, OrderKey, Participant, RequestHash, Shard, Txid};
use suture_contract::messages::{Ballot, Branch, Decision, Prepare, Request, Verdict, Vote, Voter};
use suture_contract::topic_map::{Topic, participant_group};
use suture_coordinator::cleanup::CleanUpSettings;
use suture_coordinator::passing::PassedDecision;
use suture_coordinator::service::{self, CoordinatorFailure, CoordinatorSettings};
use suture_topics::failure::KafkaFailure;
use suture_topics::membership::{Commit, MemberEvent, Membership};
use suture_topics::outbox::{Delivery, Outbox};
use suture_topics::probe::Probe;
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::record::Record;
use suture_topics::scan::Scanner;
use suture_topics::settings::KafkaSettings;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Longest wait for anything; only a broken test gets there.
const LONG: Duration = Duration::from_secs(60);

const SHARD: Shard = Shard(0);

/// Settings with a prefix that no other test has.
fn settings() -> KafkaSettings {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let bootstrap = std::env::var("SUTURE_TEST_BOOTSTRAP")
        .expect("SUTURE_TEST_BOOTSTRAP names no brokers: run the tests with compose/test, which starts real Kafka");
    let (run, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let prefix = format!("c{run:x}-{number}-{:x}", drawn());
    KafkaSettings { partitions: 1, ..KafkaSettings::new(bootstrap, prefix.parse().unwrap()) }
}

#[expect(clippy::disallowed_methods, reason = "the brokers may outlive a test run, and process ids come again")]
fn drawn() -> u8 {
    let mut random = [0];
    getrandom::fill(&mut random).unwrap();
    random[0]
}

/// A deployment of one shard, and the test's own clients.
struct World {
    kafka: KafkaSettings,
    admin: AdminClient<DefaultClientContext>,
    probe: Probe,
    scanner: Scanner,
    outbox: Outbox,
    reports: reports::Receiver<Delivery>,
    letters: LogLetters,
    runtime: Runtime,
}

/// A coordinator in this process.
struct Coordinator {
    shutdown: watch::Sender<bool>,
    running: JoinHandle<Result<(), CoordinatorFailure>>,
}

impl World {
    fn new(participants: &[&str]) -> Self {
        Self::with_requests(participants, &[])
    }

    /// With settings of the requests topic.
    fn with_requests(participants: &[&str], requests: &[(&str, &str)]) -> Self {
        let kafka = settings();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &kafka.bootstrap).create().unwrap();
        let participants: Vec<Participant> = participants.iter().map(|name| name.parse().unwrap()).collect();
        let topics = Topic::all(&participants);
        let names: Vec<String> = topics.iter().map(|topic| topic.name(&kafka.prefix)).collect();
        let new: Vec<NewTopic<'_>> =
            topics.iter().zip(&names).map(|(topic, name)| new_topic(topic, name, requests)).collect();
        for created in runtime.block_on(admin.create_topics(&new, &AdminOptions::new())).unwrap() {
            created.unwrap();
        }
        let probe = Probe::start(&kafka).unwrap();
        probe.topics_with(&names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let letters = probe.letters(&Topic::Requests.name(&kafka.prefix)).unwrap();
        let scanner = Scanner::start(&kafka, "test.scanner").unwrap();
        let (tell, reports) = reports::channel();
        let outbox = Outbox::start(&kafka, "test", move |delivery| drop(tell.send(delivery))).unwrap();
        Self { kafka, admin, probe, scanner, outbox, reports, letters, runtime }
    }

    fn coordinator(&self, settings: CoordinatorSettings) -> Coordinator {
        let (shutdown, stop) = watch::channel(false);
        Coordinator { shutdown, running: self.runtime.spawn(service::run(self.kafka.clone(), settings, stop)) }
    }

    fn end(&self, coordinator: Coordinator) {
        coordinator.shutdown.send(true).unwrap();
        self.runtime.block_on(coordinator.running).unwrap().unwrap();
    }

    fn name(&self, topic: &Topic) -> String {
        topic.name(&self.kafka.prefix)
    }

    fn watermarks(&self, topic: &Topic) -> (u64, u64) {
        // A partition's leader may be changing.
        loop {
            match self.probe.watermarks(&self.name(topic), SHARD.partition()) {
                Err(KafkaFailure::Again(_)) => {}
                answer => return answer.unwrap(),
            }
        }
    }

    fn append<M: Message>(&self, topic: &Topic, key: &str, message: &M) -> u64 {
        self.append_value(topic, key, M::TYPE, &encode(message))
    }

    fn append_value(&self, topic: &Topic, key: &str, kind: &'static str, value: &[u8]) -> u64 {
        self.outbox.append(&self.name(topic), 0, key.as_bytes(), Some(value), kind, None, 0).unwrap();
        self.reports.recv_timeout(LONG).unwrap().result.unwrap()
    }

    /// Appends a request; its hash and payload follow from its place.
    fn request(&self, participants: &[&str], ordered: bool) -> Txid {
        let (_, next) = self.watermarks(&Topic::Requests);
        let branch = |name: &&str| Branch {
            participant: name.parse().unwrap(),
            operation: "record".to_string(),
            payload: payload(next),
        };
        let request = Request {
            business_key: format!("surgery:{next}").parse().unwrap(),
            attempt: Attempt::FIRST,
            rule: "surgery".to_string(),
            source: None,
            deadline_ms: 600_000,
            ordered,
            branches: participants.iter().map(branch).collect(),
            hash: hash(next),
        };
        assert_eq!(self.append(&Topic::Requests, "patient-1", &request), next);
        Txid { log: self.letters, shard: SHARD, offset: next }
    }

    fn vote_yes(&self, participant: &str, txid: Txid) {
        self.vote(participant, txid, hash(txid.offset), false);
    }

    fn vote(&self, participant: &str, txid: Txid, hash: RequestHash, inquiry: bool) {
        let participant: Participant = participant.parse().unwrap();
        let vote = Vote {
            txid,
            participant: participant.clone(),
            vote: Ballot::Yes,
            hash,
            by: Voter::Participant,
            code: None,
            duplicate_of: None,
            inquiry,
        };
        self.append(&Topic::Votes(participant), &txid.to_string(), &vote);
    }

    /// Asks, votes for all, and waits for the decision; says where it stands.
    fn commit(&self, decisions: &mut Follower, participants: &[&str]) -> (Txid, u64) {
        let txid = self.request(participants, false);
        for participant in participants {
            self.vote_yes(participant, txid);
        }
        (txid, self.until_decided(decisions, txid))
    }

    /// What stands in the decision log from an offset on.
    fn decisions(&mut self, from: u64) -> Vec<Record> {
        let (start, end) = self.watermarks(&Topic::Decisions);
        let name = self.name(&Topic::Decisions);
        let mut records = Vec::new();
        let scanned = self.scanner.scan((&name, 0), (from.max(start), end), |record| {
            records.push(record);
            ControlFlow::Continue(())
        });
        scanned.unwrap();
        records
    }

    /// The places of the requests whose decisions stand in the log from an offset on.
    fn decided(&mut self, from: u64) -> BTreeSet<u64> {
        let records = self.decisions(from);
        records.iter().filter(|record| record.value.is_some()).map(|record| key(record).offset).collect()
    }

    /// Cuts the requests log, as retention does.
    fn cut_requests(&self, before: u64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name(&Topic::Requests), 0, Offset::Offset(before as i64)).unwrap();
        self.runtime.block_on(self.admin.delete_records(&list, &AdminOptions::new())).unwrap();
        assert_eq!(self.watermarks(&Topic::Requests).0, before);
    }

    /// Reads a log on and on, from its start.
    fn follow(&self, topic: &Topic) -> Follower {
        let (tell, events) = mpsc::channel(4);
        let reader = Reader::start(&self.kafka, "test.reader", tell).unwrap();
        reader.add(&[(&self.name(topic), 0, 0)]);
        Follower { _reader: reader, events, read: Vec::new().into_iter() }
    }

    fn next(&self, follower: &mut Follower) -> Record {
        loop {
            if let Some(record) = follower.read.next() {
                return record;
            }
            let event = async { tokio::time::timeout(LONG, follower.events.recv()).await };
            match self.runtime.block_on(event).expect("an event in time").expect("a living reader") {
                ReaderEvent::Records(records) => follower.read = records.into_iter(),
                ReaderEvent::Positioned { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn next_prepare(&self, follower: &mut Follower) -> Prepare {
        codec::decode(self.next(follower).value.as_deref().unwrap()).unwrap()
    }

    /// Reads on until a decision comes; says where it stands.
    fn until_decided(&self, follower: &mut Follower, txid: Txid) -> u64 {
        loop {
            let record = self.next(follower);
            if record.key.as_deref() == Some(txid.to_string().as_bytes()) && record.value.is_some() {
                return record.offset;
            }
        }
    }
}

struct Follower {
    _reader: Reader,
    events: mpsc::Receiver<ReaderEvent>,
    read: std::vec::IntoIter<Record>,
}

/// A participant's consumer group, as far as the coordinator sees it.
struct Group {
    membership: Membership,
    topic: String,
    _events: mpsc::Receiver<MemberEvent>,
}

impl Group {
    fn join(world: &World, participant: &str) -> Self {
        let (tell, mut events) = mpsc::channel(4);
        let topic = world.name(&Topic::Decisions);
        let group = participant_group(&world.kafka.prefix, &participant.parse().unwrap());
        let membership = Membership::start(&world.kafka, &group, std::slice::from_ref(&topic), tell).unwrap();
        loop {
            let event = async { tokio::time::timeout(LONG, events.recv()).await };
            match world.runtime.block_on(event).expect("an event in time").expect("a living member") {
                MemberEvent::Assigned(partitions) if !partitions.is_empty() => break,
                MemberEvent::Failed(failure) => panic!("{failure}"),
                _ => {}
            }
        }
        Self { membership, topic, _events: events }
    }

    fn commit(&self, offset: u64, ledger: &str) {
        let commit = Commit { topic: self.topic.clone(), partition: 0, offset, metadata: ledger.to_string() };
        self.membership.commit(vec![commit]).unwrap();
    }

    fn leave(self) {
        assert!(self.membership.leave(LONG));
    }
}

/// Small segments, so that what is old is compacted at once.
fn new_topic<'a>(topic: &Topic, name: &'a str, requests: &[(&'a str, &'a str)]) -> NewTopic<'a> {
    let settings: &[(&str, &str)] = match topic {
        Topic::Decisions => &[
            ("cleanup.policy", "compact"),
            ("segment.ms", "1000"),
            ("segment.bytes", "1048576"),
            ("min.cleanable.dirty.ratio", "0.01"),
            ("delete.retention.ms", "1000"),
        ],
        _ => &[("cleanup.policy", "delete")],
    };
    let more = if *topic == Topic::Requests { requests } else { &[] };
    let new = NewTopic::new(name, 1, TopicReplication::Fixed(3)).set("min.insync.replicas", "2");
    settings.iter().chain(more).fold(new, |new, (name, value)| new.set(name, value))
}

fn payload(place: u64) -> Box<RawValue> {
    RawValue::from_string(format!(r#"{{"case":{place},"note":"{}"}}"#, "n".repeat(2_000))).unwrap()
}

fn hash(place: u64) -> RequestHash {
    format!("k1:{:032x}", place + 1).parse().unwrap()
}

fn key(record: &Record) -> Txid {
    std::str::from_utf8(record.key.as_deref().unwrap()).unwrap().parse().unwrap()
}

fn with(cleanup: CleanUpSettings) -> CoordinatorSettings {
    CoordinatorSettings { cleanup, ..CoordinatorSettings::default() }
}

fn without_clean_up() -> CoordinatorSettings {
    with(CleanUpSettings { off: true, ..CleanUpSettings::default() })
}

#[test]
fn ordered_keys_run_one_after_the_other_also_with_a_new_owner() {
    let mut world = World::new(&["hospital"]);
    let order_key: OrderKey = "patient-1".parse().unwrap();
    let mut prepares = world.follow(&Topic::Prepare("hospital".parse().unwrap()));
    let mut decisions = world.follow(&Topic::Decisions);
    let txids = [(); 3].map(|()| world.request(&["hospital"], true));
    let first = world.coordinator(without_clean_up());
    let next = |world: &mut World, prepares: &mut Follower, txid: Txid| {
        let prepare = world.next_prepare(prepares);
        assert_eq!((prepare.txid, prepare.order_key.as_ref()), (txid, Some(&order_key)));
        assert_eq!(prepare.payload.get(), payload(txid.offset).get());
        assert_eq!(world.decided(0), (0..txid.offset).collect(), "all before it are decided, and nothing else");
    };
    next(&mut world, &mut prepares, txids[0]);
    world.vote_yes("hospital", txids[0]);
    next(&mut world, &mut prepares, txids[1]);

    // The second one is open and the third waits: another owner takes the shard, and has the same line.
    world.end(first);
    let second = world.coordinator(without_clean_up());
    next(&mut world, &mut prepares, txids[1]);
    world.vote_yes("hospital", txids[1]);
    next(&mut world, &mut prepares, txids[2]);
    world.vote_yes("hospital", txids[2]);
    world.until_decided(&mut decisions, txids[2]);
    world.end(second);
}

/// What no coordinator writes stands under no transaction's key, and over a decision. In front of it a shard stops.
#[test]
fn a_record_that_is_no_decision_is_passed_as_the_configuration_says() {
    let world = World::new(&["hospital"]);
    let mut decisions = world.follow(&Topic::Decisions);
    let coordinator = world.coordinator(without_clean_up());
    let (first, _) = world.commit(&mut decisions, &["hospital"]);
    world.end(coordinator);
    let strange = |key: &str| world.append_value(&Topic::Decisions, key, "decision", b"{");
    let offsets = [strange("nobody"), strange(&first.to_string())];
    let because = "somebody tried a producer there, ticket 4711";
    let pass = offsets.map(|offset| PassedDecision { shard: SHARD.0, offset, because: because.to_string() });
    let settings = || CoordinatorSettings { pass: pass.to_vec(), ..without_clean_up() };

    let coordinator = world.coordinator(settings());
    world.commit(&mut decisions, &["hospital"]);
    // Compaction would keep what stands over the decision, so it is there once more, before anybody asks.
    world.until_decided(&mut decisions, first);
    world.end(coordinator);
    // This owner begins behind both, and looks for the decision of one who asks.
    let coordinator = world.coordinator(settings());
    world.commit(&mut decisions, &["hospital"]);
    world.vote("hospital", first, hash(first.offset), true);
    world.until_decided(&mut decisions, first);
    world.end(coordinator);
}

#[test]
fn who_asks_is_told_from_the_log_and_who_invents_is_not() {
    let mut world = World::new(&["hospital", "insurer"]);
    let coordinator = world.coordinator(without_clean_up());
    let mut decisions = world.follow(&Topic::Decisions);
    let txids = [(); 2].map(|()| world.commit(&mut decisions, &["hospital"]).0);
    let mut outcomes = world.follow(&Topic::Outcomes);
    txids.iter().for_each(|_| drop(world.next(&mut outcomes)));

    // A new owner begins behind them: it has forgotten nothing, for it never knew.
    world.end(coordinator);
    let coordinator = world.coordinator(without_clean_up());
    world.commit(&mut decisions, &["hospital"]);
    world.vote("insurer", txids[0], hash(0), true);
    world.vote("hospital", txids[0], hash(7), true);
    world.vote("hospital", txids[1], hash(1), true);
    world.until_decided(&mut decisions, txids[1]);
    world.end(coordinator);

    let mut copies: BTreeMap<Txid, Vec<Vec<u8>>> = BTreeMap::new();
    for record in world.decisions(0) {
        copies.entry(key(&record)).or_default().extend(record.value);
    }
    assert_eq!(copies[&txids[0]].len(), 1, "nobody who asked has a part in it");
    let [first, second] = copies[&txids[1]].as_slice() else { panic!("{copies:?}") };
    assert_eq!(first, second, "equal to the byte");
    let decision: Decision = codec::decode(first).unwrap();
    assert_eq!((decision.txid, decision.outcome), (txids[1], Verdict::Commit));
}

/// Even requests name the hospital, which has applied everything; odd ones the insurer too, which is away since the first.
#[test]
fn the_decision_log_keeps_what_is_unfinished_and_what_somebody_has_not_applied() {
    let mut world = World::new(&["hospital", "insurer"]);
    let coordinator = world.coordinator(with(CleanUpSettings { off: false, interval_s: 1, keep_s: 0 }));
    let mut decisions = world.follow(&Topic::Decisions);
    let places: Vec<u64> = (0..12)
        .map(|place| {
            let names: &[&str] = if place % 2 == 0 { &["hospital"] } else { &["hospital", "insurer"] };
            world.commit(&mut decisions, names).1
        })
        .collect();
    let hospital = Group::join(&world, "hospital");
    hospital.commit(places[11] + 1, "h1");
    let insurers_position = places[1] + 1;
    let acknowledge = |world: &World, offset, ledger| {
        let insurer = Group::join(world, "insurer");
        insurer.commit(offset, ledger);
        insurer.leave();
    };
    acknowledge(&world, insurers_position, "i1");

    // Each look asks for one more transaction, for the segment that is written to is never compacted.
    let mut until_gone = |world: &mut World, gone: &[u64], kept: &[u64]| {
        for look in 0.. {
            let (txid, at) = world.commit(&mut decisions, &["hospital"]);
            hospital.commit(at + 1, "h1");
            let there = world.decided(0);
            let mut must_be = kept.iter().copied().chain(12..=txid.offset);
            assert!(must_be.all(|place| there.contains(&place)), "of {kept:?} and all from 12 on there is {there:?}");
            if gone.iter().all(|place| !there.contains(place)) {
                return;
            }
            assert!(look < 20_000, "{gone:?} must go: {there:?}");
        }
    };
    world.cut_requests(8);
    until_gone(&mut world, &[0, 1, 2, 4, 6], &[3, 5, 7, 8, 9, 10, 11]);

    // Somebody sets the insurer's offset to the end. That is no acknowledgement: of two rounds that clean something up
    // after it, the second has begun after it.
    let (_, end) = world.watermarks(&Topic::Decisions);
    acknowledge(&world, end, "");
    world.cut_requests(9);
    until_gone(&mut world, &[8], &[3, 5, 7, 9, 10, 11]);
    world.cut_requests(11);
    until_gone(&mut world, &[10], &[3, 5, 7, 9, 11]);

    // The insurer comes back to its own position, finds all that it has missed, and applies it.
    let missed = world.decided(insurers_position);
    assert!([3, 5, 7, 9, 11].iter().all(|place| missed.contains(place)), "{missed:?}");
    let (_, end) = world.watermarks(&Topic::Decisions);
    acknowledge(&world, end, "i1");
    until_gone(&mut world, &[3, 5, 7, 9], &[11]);
    let there = world.decided(0);
    assert!(there.iter().all(|place| *place >= 11), "what is finished below the start of the requests: {there:?}");
    hospital.leave();
    world.end(coordinator);
}

/// The same by retention alone, with requests coming all the time. Those that name the insurer, which is away since the first
/// of them, are among the first twelve; every other one is applied at once.
#[test]
fn the_decision_log_is_bounded_by_retention_and_by_what_is_unfinished() {
    let short = [("retention.ms", "12000"), ("segment.ms", "1000"), ("segment.bytes", "1048576")];
    let mut world = World::with_requests(&["hospital", "insurer"], &short);
    let coordinator = world.coordinator(with(CleanUpSettings { off: false, interval_s: 1, keep_s: 0 }));
    let mut decisions = world.follow(&Topic::Decisions);
    let (hospital, insurer) = (Group::join(&world, "hospital"), Group::join(&world, "insurer"));
    let mut insurers_position = 0;
    let mut missed = BTreeSet::new();
    for place in 0..12 {
        let names: &[&str] = if place % 2 == 0 { &["hospital"] } else { &["hospital", "insurer"] };
        let (txid, at) = world.commit(&mut decisions, names);
        hospital.commit(at + 1, "h1");
        match place {
            1 => insurers_position = at + 1,
            _ if names.len() == 2 => drop(missed.insert(txid.offset)),
            _ => {}
        }
    }
    insurer.commit(insurers_position, "i1");
    insurer.leave();

    // A look is one more transaction. Nothing that is readable or missed may go, and what else lies below `start` must, with
    // its tombstone.
    let mut until_only = |world: &mut World, start: u64, missed: &BTreeSet<u64>| {
        for look in 0.. {
            let (txid, at) = world.commit(&mut decisions, &["hospital"]);
            hospital.commit(at + 1, "h1");
            let records = world.decisions(0);
            let (readable, _) = world.watermarks(&Topic::Requests);
            let there: BTreeSet<u64> =
                records.iter().filter(|record| record.value.is_some()).map(|record| key(record).offset).collect();
            let must_be: BTreeSet<u64> = missed.iter().copied().chain(readable..=txid.offset).collect();
            assert!(there.is_superset(&must_be), "of {must_be:?} there is {there:?}");
            let below: BTreeSet<u64> =
                records.iter().map(|record| key(record).offset).filter(|place| *place < start).collect();
            if readable >= start && below == *missed {
                return readable;
            }
            assert!(look < 20_000, "below {start} only {missed:?} may be: {below:?}");
        }
        unreachable!("a look returns")
    };
    let first = until_only(&mut world, 12, &missed);
    let second = until_only(&mut world, first + 1, &missed);

    // The insurer comes back to its own position, and finds all that it has missed.
    assert!(world.decided(insurers_position).is_superset(&missed));
    let insurer = Group::join(&world, "insurer");
    insurer.commit(world.watermarks(&Topic::Decisions).1, "i1");
    until_only(&mut world, second, &BTreeSet::new());
    insurer.leave();
    hospital.leave();
    world.end(coordinator);
}
