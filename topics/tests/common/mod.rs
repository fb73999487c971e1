//! What the tests of the door share: the same story is told on the embedded broker and on real Kafka.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::sync::mpsc as reports;
use std::time::Duration;

use suture_topics::membership::{MemberEvent, Membership};
use suture_topics::outbox::{Delivery, Outbox};
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::record::Record;
use suture_topics::settings::KafkaSettings;
use tokio::sync::mpsc;

/// Longest wait for anything; only a broken test gets there.
pub const LONG: Duration = Duration::from_secs(30);

pub struct Writer {
    pub outbox: Outbox,
    pub reports: reports::Receiver<Delivery>,
}

impl Writer {
    pub fn start(settings: &KafkaSettings) -> Self {
        let (tell, reports) = reports::channel();
        let outbox = Outbox::start(settings, "test", move |delivery| drop(tell.send(delivery))).unwrap();
        Self { outbox, reports }
    }

    /// Appends texts and returns their offsets.
    pub fn write(&self, topic: &str, partition: i32, values: impl IntoIterator<Item = String>) -> Vec<u64> {
        let mut out = 0;
        for value in values {
            self.outbox.append(topic, partition, b"key", Some(value.as_bytes()), "vote", None, out).unwrap();
            out += 1;
        }
        let mut offsets: BTreeMap<u64, u64> = BTreeMap::new();
        for _ in 0..out {
            let delivery = self.reports.recv_timeout(LONG).unwrap();
            offsets.insert(delivery.token, delivery.result.unwrap());
        }
        offsets.into_values().collect()
    }
}

pub struct Reading {
    pub reader: Reader,
    pub events: mpsc::Receiver<ReaderEvent>,
    runtime: tokio::runtime::Runtime,
}

impl Reading {
    pub fn start(settings: &KafkaSettings) -> Self {
        let (tell, events) = mpsc::channel(4);
        let reader = Reader::start(settings, "test.reader", tell).unwrap();
        Self { reader, events, runtime: runtime() }
    }

    pub fn next(&mut self) -> ReaderEvent {
        let next = async { tokio::time::timeout(LONG, self.events.recv()).await };
        self.runtime.block_on(next).expect("an event within 30 s").expect("a living reader")
    }

    /// Whatever comes within a moment; for what must not come.
    pub fn next_within(&mut self, moment: Duration) -> Option<ReaderEvent> {
        let next = async { tokio::time::timeout(moment, self.events.recv()).await };
        self.runtime.block_on(next).ok().flatten()
    }

    /// Reads until the record with this offset of this partition has come; obeys the `Positioned` rule.
    pub fn until(&mut self, from: (&str, i32, u64), last: u64) -> Vec<Record> {
        let mut positioned = false;
        let mut records = Vec::new();
        loop {
            match self.next() {
                ReaderEvent::Positioned { topic, partition, offset } if (&*topic, partition, offset) == from => {
                    positioned = true;
                }
                ReaderEvent::Records(batch) if positioned => {
                    let ours = |record: &Record| &*record.topic == from.0 && record.partition == from.1;
                    records.extend(batch.into_iter().filter(ours));
                    if records.last().is_some_and(|record| record.offset >= last) {
                        return records;
                    }
                }
                ReaderEvent::Records(_) | ReaderEvent::Positioned { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

pub struct Member {
    pub membership: Membership,
    pub events: mpsc::Receiver<MemberEvent>,
    runtime: tokio::runtime::Runtime,
}

impl Member {
    pub fn join(settings: &KafkaSettings, group: &str, topics: &[&str]) -> Self {
        let (tell, events) = mpsc::channel(4);
        let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_string()).collect();
        let membership = Membership::start(settings, group, &topics, tell).unwrap();
        Self { membership, events, runtime: runtime() }
    }

    pub fn next(&mut self) -> MemberEvent {
        let next = async { tokio::time::timeout(LONG, self.events.recv()).await };
        self.runtime.block_on(next).expect("an event within 30 s").expect("a living member")
    }

    /// The next assignment that is not empty.
    pub fn assigned(&mut self) -> Vec<(String, i32)> {
        loop {
            match self.next() {
                MemberEvent::Assigned(partitions) if !partitions.is_empty() => return partitions,
                MemberEvent::Failed(failure) => panic!("{failure}"),
                _ => {}
            }
        }
    }
}

pub fn values(records: &[Record]) -> Vec<String> {
    let value = |record: &Record| String::from_utf8(record.value.clone().unwrap()).unwrap();
    records.iter().map(value).collect()
}

pub fn numbered(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|n| format!("value {n}")).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}
