//! The door on the embedded broker.

mod common;

use std::ops::ControlFlow;
use std::time::Duration;

use common::{LONG, Member, Reading, Writer, numbered, values};
use suture_contract::remark::Remark;
use suture_contract::topic_map::Topic;
use suture_topics::acks::GroupOffsets;
use suture_topics::embedded::EmbeddedBroker;
use suture_topics::membership::{Commit, CommitError, Committed, MemberEvent};
use suture_topics::outbox::{Delivery, Failure};
use suture_topics::probe::Probe;
use suture_topics::reader::ReaderEvent;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;

fn broker() -> (EmbeddedBroker, KafkaSettings) {
    let broker = EmbeddedBroker::start().unwrap();
    let settings = broker.settings("suture".parse().unwrap());
    broker.create_topics(&settings, &["insurer".parse().unwrap()]).unwrap();
    (broker, settings)
}

#[test]
fn what_is_appended_is_read_in_order_with_key_value_time_and_headers() {
    let (_broker, settings) = broker();
    let writer = Writer::start(&settings);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    writer.outbox.append("suture.decisions", 3, b"k", Some(b"first"), "decision", Some(trace), 7).unwrap();
    assert_eq!(writer.reports.recv_timeout(LONG).unwrap(), Delivery { token: 7, result: Ok(0) });
    let remark = Remark::new("k3f9q-3-1042".parse().unwrap(), "maria", "coverage put right").unwrap();
    writer.outbox.append_remarked("suture.decisions", 3, b"k", None, "decision", None, Some(&remark), 8).unwrap();
    assert_eq!(writer.reports.recv_timeout(LONG).unwrap(), Delivery { token: 8, result: Ok(1) });
    assert_eq!(writer.write("suture.decisions", 3, numbered(2..5_000)), (2..5_000).collect::<Vec<_>>());

    let mut reading = Reading::start(&settings);
    reading.reader.add(&[("suture.decisions", 3, 0), ("suture.requests", 3, 0)]);
    let records = reading.until(("suture.decisions", 3, 0), 4_999);
    let offsets: Vec<u64> = records.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (0..5_000).collect::<Vec<_>>());
    assert_eq!(records[0].key.as_deref(), Some(&b"k"[..]));
    assert_eq!(records[0].value.as_deref(), Some(&b"first"[..]));
    assert_eq!(records[0].traceparent.as_deref(), Some(trace));
    assert!(records[0].timestamp_ms.is_some());
    assert_eq!((&records[1].value, &records[1].traceparent), (&None, &None));
    assert_eq!(records[1].remark.as_deref(), Some(&remark));
    assert!(records[0].remark.is_none() && records[2].remark.is_none());
    assert_eq!(values(&records[2..]), numbered(2..5_000));
    assert!(reading.reader.close(LONG));
    writer.outbox.close(LONG).unwrap();
}

#[test]
fn stretches_are_scanned_to_their_ends_or_the_logs() {
    let (_broker, settings) = broker();
    Writer::start(&settings).write("suture.requests", 0, numbered(0..100));
    let mut scanner = Scanner::start(&settings, "test.scanner").unwrap();
    let mut scan = |from, to| {
        let mut records = Vec::new();
        let scanned = scanner.scan(("suture.requests", 0), (from, to), |record| {
            records.push(record);
            ControlFlow::Continue(())
        });
        scanned.map(|()| values(&records))
    };
    assert_eq!(scan(40, 60), Ok(numbered(40..60)));
    assert_eq!(scan(41, 42), Ok(numbered(41..42)));
    assert_eq!(scan(99, 5_000), Ok(numbered(99..100)), "the log ends before");
    assert!(matches!(scan(101, 200), Err(ScanFailure::OutOfRange(_))));
    assert_eq!(scan(0, 100), Ok(numbered(0..100)));
}

#[test]
fn pausing_loses_and_repeats_nothing() {
    let (_broker, settings) = broker();
    let writer = Writer::start(&settings);
    writer.write("suture.requests", 0, numbered(0..3_000));
    let mut reading = Reading::start(&settings);
    reading.reader.add(&[("suture.requests", 0, 0)]);
    let mut offsets = Vec::new();
    let mut written = 3_000;
    while offsets.len() < 6_000 {
        if let ReaderEvent::Records(batch) = reading.next() {
            offsets.extend(batch.iter().map(|record| record.offset));
            reading.reader.pause("suture.requests", 0);
            if written < 6_000 {
                writer.write("suture.requests", 0, numbered(written..written + 100));
                written += 100;
            }
            reading.reader.resume("suture.requests", 0);
        }
    }
    assert_eq!(offsets, (0..6_000).collect::<Vec<_>>());
}

#[test]
fn a_paused_partition_rests_while_others_are_read() {
    let (_broker, settings) = broker();
    let writer = Writer::start(&settings);
    let mut reading = Reading::start(&settings);
    reading.reader.add(&[("suture.requests", 0, 0), ("suture.votes.insurer", 0, 0)]);
    reading.reader.pause("suture.requests", 0);
    writer.write("suture.requests", 0, numbered(0..10));
    writer.write("suture.votes.insurer", 0, numbered(0..10));
    let votes = reading.until(("suture.votes.insurer", 0, 0), 9);
    assert_eq!(votes.len(), 10);
    assert!(reading.next_within(Duration::from_millis(300)).is_none(), "the paused partition was read");
    reading.reader.seek("suture.requests", 0, 4);
    assert!(matches!(reading.next(), ReaderEvent::Positioned { offset: 4, .. }));
    assert!(reading.next_within(Duration::from_millis(300)).is_none(), "a seek is no resume");
    reading.reader.resume("suture.requests", 0);
    let ReaderEvent::Records(batch) = reading.next() else { panic!() };
    assert_eq!(batch[0].offset, 4);
}

#[test]
fn after_positioned_nothing_stale_comes() {
    let (_broker, settings) = broker();
    let writer = Writer::start(&settings);
    writer.write("suture.requests", 0, numbered(0..10_000));
    let mut reading = Reading::start(&settings);
    reading.reader.add(&[("suture.requests", 0, 5_000)]);
    for turn in 0..50 {
        // Whatever the reader has read ahead by now is stale after this.
        let ReaderEvent::Records(_) = (loop {
            match reading.next() {
                ReaderEvent::Positioned { .. } => {}
                other => break other,
            }
        }) else {
            panic!()
        };
        let from = turn * 7;
        match turn % 2 {
            0 => reading.reader.seek("suture.requests", 0, from),
            _ => {
                reading.reader.remove(&[("suture.requests", 0)]);
                reading.reader.add(&[("suture.requests", 0, from)]);
            }
        }
        let records = reading.until(("suture.requests", 0, from), from + 1_500);
        let offsets: Vec<u64> = records.iter().map(|record| record.offset).collect();
        let last = offsets[offsets.len() - 1];
        assert_eq!(offsets, (from..=last).collect::<Vec<_>>());
    }
}

#[test]
fn a_position_past_the_end_is_told_and_rests_until_the_next() {
    let (_broker, settings) = broker();
    let writer = Writer::start(&settings);
    writer.write("suture.requests", 0, numbered(0..10));
    let mut reading = Reading::start(&settings);
    reading.reader.add(&[("suture.requests", 0, 500)]);
    assert!(matches!(reading.next(), ReaderEvent::Positioned { offset: 500, .. }));
    match reading.next() {
        ReaderEvent::OutOfRange { topic, partition } => assert_eq!((&*topic, partition), ("suture.requests", 0)),
        other => panic!("{other:?}"),
    }
    reading.reader.seek("suture.requests", 0, 2);
    assert_eq!(values(&reading.until(("suture.requests", 0, 2), 9)), numbered(2..10));
}

#[test]
fn a_topic_that_does_not_exist_or_a_record_that_is_too_large_is_refused() {
    let (_broker, settings) = broker();
    let writer = Writer::start(&settings);
    let large = vec![b'x'; 2_000_000];
    writer.outbox.append("suture.requests", 0, b"k", Some(&large), "request", None, 1).unwrap();
    let delivery = writer.reports.recv_timeout(LONG).unwrap();
    assert!(matches!(delivery, Delivery { token: 1, result: Err(Failure::Refused(_)) }), "{delivery:?}");
    writer.outbox.append("suture.requests", 99, b"k", Some(b"v"), "request", None, 2).unwrap();
    let delivery = writer.reports.recv_timeout(LONG).unwrap();
    assert!(matches!(delivery, Delivery { token: 2, result: Err(Failure::Denied(_)) }), "{delivery:?}");
    // librdkafka counts a record until its report has been handed over, which is a moment later than we have it.
    while writer.outbox.in_flight() != 0 {
        std::thread::yield_now();
    }
}

#[test]
fn closing_waits_for_reports_and_reports_what_is_cut_off() {
    let (broker, settings) = broker();
    let writer = Writer::start(&settings);
    writer.write("suture.requests", 0, numbered(0..1));
    drop(broker);
    for token in 0..10 {
        writer.outbox.append("suture.requests", 0, b"k", Some(b"v"), "request", None, token).unwrap();
    }
    assert_eq!(writer.outbox.in_flight(), 10);
    assert_eq!(writer.outbox.close(Duration::from_millis(50)), Err(10));
    let reported: Vec<Delivery> = writer.reports.iter().collect();
    assert_eq!(reported.len(), 10);
    assert!(reported.iter().all(|delivery| matches!(delivery.result, Err(Failure::Again(_)))), "{reported:?}");
}

#[test]
fn a_member_owns_all_shards_commits_positions_and_hands_over_when_it_leaves() {
    let (_broker, settings) = broker();
    let topics = ["suture.requests", "suture.decisions"];
    let mut first = Member::join(&settings, "suture.coordinator", &topics);
    let mut everything = Vec::new();
    for topic in ["suture.decisions", "suture.requests"] {
        everything.extend((0..12).map(|partition| (topic.to_string(), partition)));
    }
    assert_eq!(first.assigned(), everything);

    let position = |offset, metadata: &str| Commit {
        topic: "suture.requests".to_string(),
        partition: 5,
        offset,
        metadata: metadata.to_string(),
    };
    first.membership.commit(vec![position(42, "votes 17 \u{e9}")]).unwrap();
    let unassigned = Commit { topic: "suture.votes.insurer".to_string(), ..position(7, "") };
    first.membership.commit(vec![unassigned]).unwrap();
    let expected = vec![Some(Committed { offset: 42, metadata: "votes 17 \u{e9}".to_string() }), None];
    let asked = [("suture.requests", 5), ("suture.requests", 6)];
    assert_eq!(first.membership.committed(&asked).unwrap(), expected);
    let mut acks = GroupOffsets::new(&settings);
    assert_eq!(acks.committed("suture.coordinator", &asked).unwrap(), expected);
    assert_eq!(acks.committed("suture.nobody", &asked).unwrap(), vec![None, None]);

    let mut second = Member::join(&settings, "suture.coordinator", &topics);
    assert_eq!(first.next(), MemberEvent::Revoked(everything.clone()));
    let (kept, gained) = (first.assigned(), second.assigned());
    assert_eq!((kept.len(), gained.len()), (12, 12));
    let shards = |partitions: &[(String, i32)], topic: &str| -> Vec<i32> {
        partitions.iter().filter(|(name, _)| name == topic).map(|(_, partition)| *partition).collect()
    };
    for member in [&kept, &gained] {
        assert_eq!(shards(member, "suture.requests"), shards(member, "suture.decisions"), "a shard is split");
    }

    assert!(first.membership.leave(LONG));
    assert_eq!(second.assigned(), everything);
    assert_eq!(second.membership.committed(&asked).unwrap(), expected);
    assert!(second.membership.leave(LONG));
    assert_eq!(acks.committed("suture.coordinator", &asked).unwrap(), expected, "an empty group keeps its positions");
}

#[test]
fn a_commit_after_leaving_is_harmless() {
    let (_broker, settings) = broker();
    let mut member = Member::join(&settings, "suture.coordinator", &["suture.requests"]);
    member.assigned();
    // The receiver is gone: the member leaves by itself.
    let common::Member { membership, events, .. } = member;
    drop(events);
    let position = Commit { topic: "suture.requests".to_string(), partition: 0, offset: 1, metadata: String::new() };
    loop {
        match membership.commit(vec![position.clone()]) {
            Ok(()) => {}
            Err(CommitError::NotMember(_)) => break,
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn the_probe_knows_ends_topics_and_letters() {
    let (broker, settings) = broker();
    let writer = Writer::start(&settings);
    writer.write("suture.requests", 2, numbered(0..10));
    let probe = Probe::start(&settings).unwrap();
    assert_eq!(probe.watermarks("suture.requests", 2).unwrap(), (0, 10));
    assert_eq!(probe.watermarks("suture.requests", 3).unwrap(), (0, 0));
    let topics = probe.topics().unwrap();
    assert_eq!(topics.len(), Topic::all(&["insurer".parse().unwrap()]).len());
    assert!(topics.values().all(|topic| topic.partitions() == 12 && topic.replication() == 1));
    assert_eq!(probe.letters("suture.requests").unwrap(), broker.letters());
    let names = ["suture.requests", "suture.decisions"];
    let ids = probe.topic_ids(&names).unwrap();
    assert_ne!(ids["suture.requests"], ids["suture.decisions"]);
    assert_eq!(ids, Probe::start(&settings).unwrap().topic_ids(&names).unwrap(), "stable within a broker's life");
}

#[test]
fn without_letters_the_embedded_broker_is_refused() {
    let (_broker, mut settings) = broker();
    settings.log_letters = None;
    let failure = Probe::start(&settings).unwrap().letters("suture.requests").unwrap_err();
    assert!(failure.to_string().contains("kafka.log_letters"), "{failure}");
}
