//! Events into the upstream topic, and anything into any topic.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::mpsc;

use serde_json::Value;
use suture_topics::outbox::{Delivery, Failure, Outbox};
use suture_topics::settings::KafkaSettings;

use crate::cluster::DEADLINE;

/// A sample surgery.
#[derive(Clone)]
pub struct Sample {
    /// `synthea` or `pysynthea`.
    pub file: &'static str,
    /// Its line, from 1.
    pub line: usize,
    /// The bytes that are fed.
    pub text: String,
    /// The same, parsed.
    pub event: Value,
}

/// Where a record was appended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The topic's full name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// The 125 sample surgeries.
pub fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    for file in ["synthea", "pysynthea"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("samples/{file}-surgery-transactions.ndjson"));
        for (number, text) in fs::read_to_string(path).unwrap().lines().enumerate() {
            let event = serde_json::from_str(text).unwrap();
            samples.push(Sample { file, line: number + 1, text: text.to_string(), event });
        }
    }
    assert_eq!(samples.len(), 125);
    samples
}

/// Topic, partition, key, value.
type Record<'v> = (String, i32, Vec<u8>, Option<&'v [u8]>);

/// A producer of our own.
pub struct Feed {
    outbox: Outbox,
    deliveries: mpsc::Receiver<Delivery>,
    upstream: String,
    partitions: i32,
    fed: i32,
}

impl Feed {
    pub fn start(kafka: &KafkaSettings, upstream: &str, partitions: u16) -> Self {
        let (tell, deliveries) = mpsc::channel();
        let outbox = Outbox::start(kafka, "hospital", move |delivery| drop(tell.send(delivery))).unwrap();
        Self { outbox, deliveries, upstream: upstream.to_string(), partitions: i32::from(partitions), fed: 0 }
    }

    /// Appends events to the upstream topic, to its partitions in turn; returns when all are acknowledged. One place each.
    pub fn feed<'a>(&mut self, events: impl IntoIterator<Item = &'a Sample>) -> Vec<Place> {
        let mut out = Vec::new();
        for sample in events {
            let key = format!("{} {}", sample.file, sample.line);
            let (partition, value) = (self.fed % self.partitions, sample.text.as_bytes());
            self.fed += 1;
            out.push((self.upstream.clone(), partition, key.into_bytes(), Some(value)));
        }
        self.append_all(&out)
    }

    /// Appends one record anywhere; `None` is a tombstone. Returns its offset.
    pub fn append(&mut self, topic: &str, partition: i32, key: &[u8], value: Option<&[u8]>) -> u64 {
        self.append_all(&[(topic.to_string(), partition, key.to_vec(), value)])[0].offset
    }

    fn append_all(&mut self, records: &[Record<'_>]) -> Vec<Place> {
        let mut places: Vec<Option<Place>> = records.iter().map(|_| None).collect();
        let mut waiting: Vec<usize> = (0..records.len()).collect();
        while !waiting.is_empty() {
            for &index in &waiting {
                let (topic, partition, key, value) = &records[index];
                let token = index as u64;
                self.outbox.append(topic, *partition, key, *value, "event", None, token).expect("an empty queue");
            }
            let mut again = Vec::new();
            for _ in 0..waiting.len() {
                let delivery = self.deliveries.recv_timeout(DEADLINE).expect("a report for each record");
                let index = usize::try_from(delivery.token).unwrap();
                match delivery.result {
                    Ok(offset) => {
                        let (topic, partition) = (records[index].0.clone(), records[index].1);
                        places[index] = Some(Place { topic, partition, offset });
                    }
                    // A broker was killed meanwhile.
                    Err(Failure::Again(_)) => again.push(index),
                    Err(failure) => panic!("{}: {failure}", records[index].0),
                }
            }
            waiting = again;
        }
        places.into_iter().map(|place| place.expect("all are acknowledged")).collect()
    }
}
