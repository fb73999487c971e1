//! The door on real Kafka, three brokers: `SUTURE_TEST_BOOTSTRAP`, as `compose/test` sets it.

mod common;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{LONG, Member, Reading, Writer, numbered, values};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use suture_contract::ids::{LogLetters, Participant};
use suture_topics::acks::GroupOffsets;
use suture_topics::admin::{apply, plan};
use suture_topics::failure::KafkaFailure;
use suture_topics::membership::{Commit, CommitError, Committed, MemberEvent};
use suture_topics::plan::{Finding, Severity, Wanted, is_safe};
use suture_topics::probe::Probe;
use suture_topics::reader::ReaderEvent;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;

/// Settings with a prefix that no other test has.
fn settings() -> KafkaSettings {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let bootstrap = std::env::var("SUTURE_TEST_BOOTSTRAP")
        .expect("SUTURE_TEST_BOOTSTRAP names no brokers: run the tests with compose/test, which starts real Kafka");
    let run = std::process::id();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    KafkaSettings::new(bootstrap, format!("t{run:x}-{number}-{:x}", drawn()).parse().unwrap())
}

#[expect(clippy::disallowed_methods, reason = "the brokers may outlive a test run, and process ids come again")]
fn drawn() -> u8 {
    let mut random = [0];
    getrandom::fill(&mut random).unwrap();
    random[0]
}

fn participants() -> Vec<Participant> {
    vec!["insurer".parse().unwrap()]
}

fn wanted<'a>(settings: &'a KafkaSettings, participants: &'a [Participant]) -> Wanted<'a> {
    Wanted { settings, participants, allow_single_broker: false }
}

/// Settings, and topics made by `apply`: few partitions, because small brokers run out of memory with thousands.
fn applied() -> KafkaSettings {
    let mut settings = settings();
    settings.partitions = 6;
    let findings = apply(wanted(&settings, &participants())).unwrap();
    assert!(is_safe(&findings), "{findings:#?}");
    settings
}

fn lines(findings: &[Finding], severity: Severity) -> Vec<String> {
    findings.iter().filter(|finding| finding.severity == severity).map(ToString::to_string).collect()
}

/// The plan that several looks in a row give: each may ask another broker.
fn settled(wanted: Wanted<'_>) -> Vec<Finding> {
    let (mut last, mut equal) = (plan(wanted).unwrap(), 0);
    while equal < 5 {
        let next = plan(wanted).unwrap();
        equal = if next == last { equal + 1 } else { 0 };
        last = next;
    }
    last
}

/// What an operator might do by hand.
struct ByHand {
    admin: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
}

impl ByHand {
    fn at(settings: &KafkaSettings) -> Self {
        let admin = ClientConfig::new().set("bootstrap.servers", &settings.bootstrap).create().unwrap();
        Self { admin, runtime: tokio::runtime::Builder::new_current_thread().build().unwrap() }
    }

    fn create(&self, name: &str, partitions: i32, replicas: i32, set: &[(&str, &str)]) {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
        let topic = set.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
        let created = self.runtime.block_on(self.admin.create_topics([&topic], &AdminOptions::new())).unwrap();
        created[0].as_ref().unwrap();
    }

    fn delete(&self, name: &str) {
        let deleted = self.runtime.block_on(self.admin.delete_topics(&[name], &AdminOptions::new())).unwrap();
        deleted[0].as_ref().unwrap();
    }

    fn trim(&self, name: &str, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(name, partition, Offset::Offset(before)).unwrap();
        self.runtime.block_on(self.admin.delete_records(&list, &AdminOptions::new())).unwrap();
    }
}

#[test]
fn plan_apply_and_check_agree() {
    let settings = settings();
    let participants = participants();
    let wanted = wanted(&settings, &participants);
    let before = plan(wanted).unwrap();
    assert_eq!(lines(&before, Severity::Missing).len(), 6, "{before:#?}");
    assert!(!is_safe(&before));
    let after = apply(wanted).unwrap();
    assert_eq!(lines(&after, Severity::Fine).len(), 6, "{after:#?}");
    assert_eq!(settled(wanted), after);
    assert_eq!(apply(wanted).unwrap(), after, "a second apply changes nothing");

    let more = ["insurer".parse().unwrap(), "hospital".parse().unwrap()];
    let wanted = Wanted { participants: &more, ..wanted };
    assert_eq!(lines(&plan(wanted).unwrap(), Severity::Missing).len(), 2, "a participant that joins later");
    assert!(is_safe(&apply(wanted).unwrap()));
}

#[test]
fn topics_made_wrongly_by_hand_are_found_and_left_alone() {
    let settings = settings();
    let participants = participants();
    let name = |rest: &str| format!("{}.{rest}", settings.prefix);
    let by_hand = ByHand::at(&settings);
    by_hand.create(&name("requests"), 6, 3, &[("retention.ms", "604800000"), ("min.insync.replicas", "2")]);
    by_hand.create(&name("votes.insurer"), 12, 3, &[("cleanup.policy", "compact"), ("min.insync.replicas", "2")]);
    by_hand.create(&name("decisions"), 12, 1, &[("min.insync.replicas", "1")]);

    // What was made by hand reaches one broker after the other; while one is wrong, nothing is created.
    settled(Wanted { participants: &[], ..wanted(&settings, &participants) });
    let found = loop {
        let found = apply(wanted(&settings, &participants)).unwrap();
        if lines(&found, Severity::Missing).len() == 3 {
            break found;
        }
    };
    let wrong = lines(&found, Severity::Wrong);
    for said in [
        "requests: has 6 partitions, must have 12",
        "votes.insurer: cleanup.policy is compact, must be delete",
        "decisions: has 1 copies of each record, must have 3",
        "decisions: cleanup.policy is delete, must be compact",
        "decisions: min.insync.replicas is 1, must be at least 2",
    ] {
        assert_eq!(wrong.iter().filter(|line| line.contains(said)).count(), 1, "{said}: {wrong:#?}");
    }
    let mend = format!(
        "kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {} --add-config \
         cleanup.policy=compact",
        settings.bootstrap,
        name("decisions")
    );
    assert!(wrong.iter().any(|line| line.ends_with(&mend)), "{wrong:#?}");
    assert_eq!(lines(&found, Severity::Missing).len(), 3, "nothing is created while something is wrong");
    assert_eq!(settled(wanted(&settings, &participants)), found);
}

#[test]
fn topic_ids_are_stable_and_differ_after_re_creation() {
    let settings = applied();
    let requests = format!("{}.requests", settings.prefix);
    let decisions = format!("{}.decisions", settings.prefix);
    let ids = || Probe::start(&settings).unwrap().topic_ids(&[&requests, &decisions]).unwrap();
    let first = ids();
    assert_eq!(first, ids());
    assert_ne!(first[&requests], first[&decisions]);
    let letters = || Probe::start(&settings).unwrap().letters(&requests);
    assert_eq!(letters().unwrap(), LogLetters::from_topic_id(&first[&requests]));

    ByHand::at(&settings).delete(&requests);
    // The deletion reaches one broker after the other.
    let gone = loop {
        match letters() {
            Err(failure) => break failure,
            Ok(still) => assert_eq!(still, LogLetters::from_topic_id(&first[&requests])),
        }
    };
    assert!(matches!(&gone, KafkaFailure::Fatal(said) if said.contains("suture topics apply")), "{gone}");
    assert!(is_safe(&apply(wanted(&settings, &participants())).unwrap()));
    let second = ids();
    assert_eq!(first[&decisions], second[&decisions]);
    assert_ne!(first[&requests], second[&requests]);
}

#[test]
fn configured_letters_are_refused_where_brokers_have_ids() {
    let mut settings = applied();
    settings.log_letters = Some("k3f9q".parse().unwrap());
    let requests = format!("{}.requests", settings.prefix);
    let refused = Probe::start(&settings).unwrap().letters(&requests).unwrap_err();
    assert!(refused.is_fatal() && refused.to_string().contains("kafka.log_letters"), "{refused}");
}

#[test]
fn what_is_appended_is_read_paused_and_sought() {
    let settings = applied();
    let topic = format!("{}.votes.insurer", settings.prefix);
    let writer = Writer::start(&settings);
    assert_eq!(writer.write(&topic, 4, numbered(0..3_000)), (0..3_000).collect::<Vec<_>>());
    let mut reading = Reading::start(&settings);
    reading.reader.add(&[(&topic, 4, 0), (&topic, 5, 0)]);
    assert_eq!(values(&reading.until((&topic, 4, 0), 2_999)), numbered(0..3_000));
    reading.reader.pause(&topic, 4);
    writer.write(&topic, 4, numbered(3_000..3_010));
    assert!(reading.next_within(Duration::from_millis(500)).is_none(), "the paused partition was read");
    reading.reader.resume(&topic, 4);
    let mut resumed = Vec::new();
    while resumed.len() < 10 {
        let ReaderEvent::Records(batch) = reading.next() else { panic!() };
        resumed.extend(values(&batch));
    }
    assert_eq!(resumed, numbered(3_000..3_010));
    for from in [1_234, 5, 2_990, 0] {
        reading.reader.seek(&topic, 4, from);
        assert_eq!(values(&reading.until((&topic, 4, from), 3_009)), numbered(from..3_010));
    }
    assert!(reading.reader.close(LONG));
    writer.outbox.close(LONG).unwrap();
}

#[test]
fn positions_outside_the_log_are_told() {
    let settings = applied();
    let topic = format!("{}.requests", settings.prefix);
    let writer = Writer::start(&settings);
    writer.write(&topic, 0, numbered(0..100));
    ByHand::at(&settings).trim(&topic, 0, 40);
    let probe = Probe::start(&settings).unwrap();
    assert_eq!(probe.watermarks(&topic, 0).unwrap(), (40, 100));

    let mut reading = Reading::start(&settings);
    for outside in [10, 101, 5_000] {
        reading.reader.add(&[(&topic, 0, outside)]);
        assert!(matches!(reading.next(), ReaderEvent::Positioned { offset, .. } if offset == outside));
        match reading.next() {
            ReaderEvent::OutOfRange { topic: told, partition } => assert_eq!((&*told, partition), (&*topic, 0)),
            other => panic!("{outside}: {other:?}"),
        }
    }
    reading.reader.add(&[(&topic, 0, 40)]);
    assert_eq!(values(&reading.until((&topic, 0, 40), 99)), numbered(40..100));
    reading.reader.add(&[(&topic, 0, 100)]);
    assert!(matches!(reading.next(), ReaderEvent::Positioned { offset: 100, .. }));
    assert!(reading.next_within(Duration::from_millis(500)).is_none(), "the end itself is inside");
}

#[test]
fn stretches_are_scanned_to_their_ends_or_the_logs() {
    let settings = applied();
    let topic = format!("{}.requests", settings.prefix);
    let writer = Writer::start(&settings);
    writer.write(&topic, 0, numbered(0..100));
    ByHand::at(&settings).trim(&topic, 0, 40);
    let mut scanner = Scanner::start(&settings, "test.scanner").unwrap();
    let mut scan = |from, to, most: usize| {
        let mut records = Vec::new();
        let scanned = scanner.scan((&topic, 0), (from, to), |record| {
            records.push(record);
            if records.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        scanned.map(|()| values(&records))
    };
    assert_eq!(scan(40, 100, 100), Ok(numbered(40..100)));
    assert_eq!(scan(50, 60, 100), Ok(numbered(50..60)));
    assert_eq!(scan(99, 5_000, 100), Ok(numbered(99..100)), "the log ends before");
    assert_eq!(scan(50, 60, 3), Ok(numbered(50..53)), "broken off");
    assert_eq!(scan(55, 55, 100), Ok(Vec::new()));
    assert_eq!(scan(100, 101, 100), Ok(Vec::new()), "the end itself is inside");
    assert!(matches!(scan(10, 60, 100), Err(ScanFailure::OutOfRange(_))));
    assert!(matches!(scan(101, 200, 100), Err(ScanFailure::OutOfRange(_))));
    assert_eq!(scan(41, 42, 100), Ok(numbered(41..42)), "and goes on after a failure");
}

/// L7: whoever reads sees the same records, nothing of what was aborted, and nothing behind what is open; only the probe sees
/// where the log ends.
#[test]
fn a_foreign_kafka_transaction_shows_all_readers_the_same() {
    let settings = applied();
    let topic = format!("{}.votes.insurer", settings.prefix);
    let writer = Writer::start(&settings);
    let foreign: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &settings.bootstrap)
        .set("transactional.id", &topic)
        .create()
        .unwrap();
    foreign.init_transactions(LONG).unwrap();
    // In the middle of it one of ours.
    let begin = |theirs: &str, ours: &str| {
        foreign.begin_transaction().unwrap();
        foreign.send(BaseRecord::to(&topic).partition(0).key("key").payload(theirs)).unwrap();
        foreign.flush(LONG).unwrap();
        writer.write(&topic, 0, [ours.to_string()])[0]
    };
    let mut live = Reading::start(&settings);
    live.reader.add(&[(&topic, 0, 0)]);
    assert_eq!(begin("committed", "first"), 1);
    foreign.commit_transaction(LONG).unwrap();
    assert_eq!(begin("aborted", "second"), 4, "behind a marker");
    foreign.abort_transaction(LONG).unwrap();
    assert_eq!(begin("open", "third"), 7);

    let mut scanner = Scanner::start(&settings, "test.scanner").unwrap();
    let mut scanned = |from| {
        let mut records = Vec::new();
        scanner
            .scan((&topic, 0), (from, 8), |record| {
                records.push(record);
                ControlFlow::Continue(())
            })
            .unwrap();
        values(&records)
    };
    let mut seen = values(&live.until((&topic, 0, 0), 4));
    assert_eq!(seen, ["committed", "first", "second"]);
    assert!(live.next_within(Duration::from_millis(500)).is_none(), "something behind an open transaction was read");
    assert_eq!(scanned(0), seen);
    assert_eq!(Probe::start(&settings).unwrap().watermarks(&topic, 0).unwrap(), (0, 8));

    foreign.commit_transaction(LONG).unwrap();
    while seen.len() < 5 {
        let ReaderEvent::Records(batch) = live.next() else { panic!() };
        seen.extend(values(&batch));
    }
    assert_eq!(seen, ["committed", "first", "second", "open", "third"]);
    let mut late = Reading::start(&settings);
    late.reader.add(&[(&topic, 0, 0)]);
    assert_eq!(values(&late.until((&topic, 0, 0), 7)), seen);
    assert_eq!(scanned(0), seen);
    assert_eq!(scanned(3), seen[2..], "from what was aborted");
}

#[test]
fn a_topic_that_is_gone_is_fatal_for_its_reader() {
    let settings = applied();
    let topic = format!("{}.requets", settings.prefix);
    let mut reading = Reading::start(&settings);
    reading.reader.add(&[(&topic, 0, 0)]);
    assert!(matches!(reading.next(), ReaderEvent::Positioned { .. }));
    match reading.next() {
        ReaderEvent::Failed(KafkaFailure::Fatal(said)) => assert!(said.contains(&topic), "{said}"),
        other => panic!("{other:?}"),
    }

    let topic = format!("{}.outcomes", settings.prefix);
    Writer::start(&settings).write(&topic, 0, numbered(0..1));
    let mut reading = Reading::start(&settings);
    reading.reader.add(&[(&topic, 0, 0)]);
    reading.until((&topic, 0, 0), 0);
    ByHand::at(&settings).delete(&topic);
    match reading.next() {
        ReaderEvent::Failed(KafkaFailure::Fatal(said)) => assert!(said.contains(&topic), "{said}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn positions_with_metadata_are_seen_by_others_and_survive_the_group() {
    let settings = applied();
    let requests = format!("{}.requests", settings.prefix);
    let decisions = format!("{}.decisions", settings.prefix);
    let group = format!("{}.coordinator", settings.prefix);
    let mut first = Member::join(&settings, &group, &[&requests, &decisions]);
    assert_eq!(first.assigned().len(), 12);

    let position = |offset, metadata: String| Commit { topic: requests.clone(), partition: 5, offset, metadata };
    let longest = "m".repeat(4_096);
    first.membership.commit(vec![position(42, longest.clone())]).unwrap();
    let too_long = first.membership.commit(vec![position(43, "m".repeat(4_097))]).unwrap_err();
    assert!(matches!(too_long, CommitError::Refused(_)), "{too_long}");
    let mut partly = vec![position(43, "m".repeat(4_097))];
    partly.extend((0..5).map(|partition| Commit { partition, ..position(1, String::new()) }));
    let refused = first.membership.commit(partly).unwrap_err();
    assert!(matches!(refused, CommitError::Refused(_)), "one of six is refused: {refused}");

    let expected = vec![Some(Committed { offset: 42, metadata: longest }), None];
    let asked = [(&*requests, 5), (&*decisions, 5)];
    let mut acks = GroupOffsets::new(&settings);
    assert_eq!(acks.committed(&group, &asked).unwrap(), expected);

    let mut second = Member::join(&settings, &group, &[&requests, &decisions]);
    let revoked = first.next();
    assert!(matches!(revoked, MemberEvent::Revoked(_)), "{revoked:?}");
    assert_eq!((first.assigned().len(), second.assigned().len()), (6, 6));
    assert!(first.membership.leave(LONG));
    assert_eq!(second.assigned().len(), 12);
    assert_eq!(second.membership.committed(&asked).unwrap(), expected);
    assert!(second.membership.leave(LONG));
    assert_eq!(acks.committed(&group, &asked).unwrap(), expected);
}

#[test]
fn the_probe_finds_offsets_by_time() {
    let settings = applied();
    let topic = format!("{}.outcomes", settings.prefix);
    let writer = Writer::start(&settings);
    writer.write(&topic, 1, numbered(0..10));
    let probe = Probe::start(&settings).unwrap();
    let at = |time| probe.offsets_for_time(&topic, settings.partitions, time).unwrap();
    let first = at(0);
    assert_eq!((first.len(), first[0], first[1]), (6, None, Some(0)));
    assert_eq!(at(4_102_444_800_000)[1], None, "nothing is as young as the year 2100");
}
