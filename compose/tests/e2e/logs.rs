//! An own copy of every topic, read live by a client of its own and taken apart by serde_json alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;
use suture_topics::probe::Probe;
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::record::Record;
use suture_topics::settings::KafkaSettings;
use tokio::sync::mpsc;

use crate::cluster::wait_until;
use crate::feed::Place;

/// A record.
#[derive(Debug)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// The broker's clock.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Vec<u8>,
    /// The value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The value parsed, if it is JSON.
    pub json: Option<Value>,
}

impl Entry {
    /// A field's text; empty if there is none.
    pub fn text(&self, field: &str) -> &str {
        self.json.as_ref().and_then(|json| json[field].as_str()).unwrap_or_default()
    }

    fn of(record: Record) -> Self {
        let json = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
        Self {
            place: Place { topic: record.topic.to_string(), partition: record.partition, offset: record.offset },
            timestamp_ms: record.timestamp_ms.unwrap_or_default(),
            key: record.key.unwrap_or_default(),
            value: record.value,
            json,
        }
    }
}

/// Everything that stands in the topics, by the name behind the prefix: `requests`, `votes.hospital`. Of a partition in
/// order.
#[derive(Clone, Default)]
pub struct Logs {
    prefix: String,
    letters: String,
    topics: BTreeMap<String, Vec<Arc<Entry>>>,
}

/// All about one transaction.
#[derive(Default)]
pub struct Story {
    /// Its name.
    pub txid: String,
    /// The request; absent for what somebody wrote about a transaction that nobody asked for.
    pub request: Option<Arc<Entry>>,
    /// By participant.
    pub prepares: BTreeMap<String, Vec<Arc<Entry>>>,
    /// By participant.
    pub votes: BTreeMap<String, Vec<Arc<Entry>>>,
    /// All copies.
    pub decisions: Vec<Arc<Entry>>,
    /// All copies.
    pub outcomes: Vec<Arc<Entry>>,
}

impl Logs {
    /// A topic's records.
    pub fn topic(&self, name: &str) -> &[Arc<Entry>] {
        self.topics.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The names of all topics that hold anything.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.topics.keys().map(String::as_str)
    }

    /// Each transaction that was asked for and not refused as a record, by txid.
    pub fn stories(&self) -> BTreeMap<String, Story> {
        let rejected = self.rejections();
        let mut stories: BTreeMap<String, Story> = BTreeMap::new();
        let story = |stories: &mut BTreeMap<String, Story>, txid: &str, put: &mut dyn FnMut(&mut Story)| {
            put(stories
                .entry(txid.to_string())
                .or_insert_with(|| Story { txid: txid.to_string(), ..Story::default() }));
        };
        for (name, entries) in &self.topics {
            for entry in entries {
                let txid = entry.text("txid");
                match name.split_once('.').unwrap_or((name, "")) {
                    ("requests", _) if entry.text("type") == "request" && !rejected.contains_key(&entry.place) => {
                        let Place { partition, offset, .. } = &entry.place;
                        let txid = format!("{}-{partition}-{offset}", self.letters);
                        story(&mut stories, &txid, &mut |story| story.request = Some(Arc::clone(entry)));
                    }
                    ("prepare", participant) if !txid.is_empty() => story(&mut stories, txid, &mut |story| {
                        story.prepares.entry(participant.to_string()).or_default().push(Arc::clone(entry));
                    }),
                    ("votes", participant) if !txid.is_empty() => story(&mut stories, txid, &mut |story| {
                        story.votes.entry(participant.to_string()).or_default().push(Arc::clone(entry));
                    }),
                    ("decisions", _) if !txid.is_empty() => {
                        story(&mut stories, txid, &mut |story| story.decisions.push(Arc::clone(entry)));
                    }
                    ("outcomes", _) if entry.text("type") == "outcome" && !txid.is_empty() => {
                        story(&mut stories, txid, &mut |story| story.outcomes.push(Arc::clone(entry)));
                    }
                    _ => {}
                }
            }
        }
        stories.retain(|_, story| story.request.is_some());
        stories
    }

    /// Transactions that are asked for and not decided.
    pub fn open(&self) -> Vec<Story> {
        self.stories().into_values().filter(|story| story.decisions.is_empty()).collect()
    }

    /// What was refused, by the place of the refused record: the codes.
    pub fn rejections(&self) -> BTreeMap<Place, Vec<String>> {
        let mut rejections: BTreeMap<Place, Vec<String>> = BTreeMap::new();
        for entry in self.topic("rejected") {
            let Some(place) = entry.json.as_ref().and_then(|json| place_of(&json["origin"])) else { continue };
            rejections.entry(place).or_default().push(entry.text("code").to_string());
        }
        rejections
    }

    /// Which of these upstream events are neither rejected nor a transaction with an outcome.
    pub fn not_ended(&self, fed: &[Place]) -> Vec<Place> {
        let (rejections, mut ended) = (self.rejections(), BTreeMap::new());
        for story in self.stories().values() {
            let (Some(source), is_over) = (story.source(), !story.outcomes.is_empty()) else { continue };
            *ended.entry(source).or_insert(true) &= is_over;
        }
        let has_ended = |place: &Place| rejections.contains_key(place) || ended.get(place).copied().unwrap_or(false);
        fed.iter().filter(|place| !has_ended(place)).cloned().collect()
    }
}

impl Story {
    /// The participants that the request names, in its order.
    pub fn named(&self) -> Vec<String> {
        let branches = self.request_json()["branches"].as_array().cloned().unwrap_or_default();
        branches.iter().map(|branch| branch["participant"].as_str().unwrap_or_default().to_string()).collect()
    }

    /// The first vote of a participant on what was asked for, in the transaction's own partition.
    pub fn register(&self, participant: &str) -> Option<&Arc<Entry>> {
        let partition = self.request.as_ref()?.place.partition;
        let counts = |vote: &&Arc<Entry>| {
            let json = vote.json.as_ref();
            vote.place.partition == partition
                && json.is_some_and(|json| json["hash"] == self.request_json()["hash"])
                && vote.text("participant") == participant
        };
        self.votes.get(participant)?.iter().find(counts)
    }

    /// The reasons of the registers that say no, by participant.
    pub fn noes(&self) -> BTreeMap<String, String> {
        let register = |participant: String| {
            let vote = self.register(&participant)?;
            (vote.text("vote") == "no").then(|| (participant, vote.text("code").to_string()))
        };
        self.named().into_iter().filter_map(register).collect()
    }

    /// The partition that it lives in.
    pub fn shard(&self) -> Option<i32> {
        Some(self.request.as_ref()?.place.partition)
    }

    /// `commit` or `abort`, as the first decision says.
    pub fn verdict(&self) -> Option<&str> {
        Some(self.decisions.first()?.text("outcome"))
    }

    /// The upstream event.
    pub fn source(&self) -> Option<Place> {
        place_of(&self.request_json()["source"])
    }

    /// The request; null without one.
    pub fn request_json(&self) -> &Value {
        self.request.as_ref().and_then(|request| request.json.as_ref()).unwrap_or(&Value::Null)
    }
}

fn place_of(origin: &Value) -> Option<Place> {
    Some(Place {
        topic: origin["topic"].as_str()?.to_string(),
        partition: i32::try_from(origin["partition"].as_i64()?).ok()?,
        offset: origin["offset"].as_u64()?,
    })
}

/// Reads along for as long as it lives.
pub struct Follower {
    logs: Arc<Mutex<Logs>>,
    probe: Probe,
    topics: Vec<String>,
    partitions: u16,
    _reader: Reader,
}

impl Follower {
    /// Reads the deployment's topics, which must be there, from their starts.
    pub fn start(kafka: &KafkaSettings, topics: &[String]) -> Self {
        let (tell, mut events) = mpsc::channel(16);
        let probe = Probe::start(kafka).unwrap();
        let letters = probe.letters(&format!("{}.requests", kafka.prefix)).unwrap().to_string();
        let logs = Logs { prefix: format!("{}.", kafka.prefix), letters, topics: BTreeMap::new() };
        let logs = Arc::new(Mutex::new(logs));
        let reader = Reader::start(kafka, &format!("{}.test", kafka.prefix), tell).unwrap();
        for topic in topics {
            let positions: Vec<_> = (0..i32::from(kafka.partitions)).map(|of| (topic.as_str(), of, 0)).collect();
            reader.add(&positions);
        }
        let copy = Arc::clone(&logs);
        thread::spawn(move || {
            while let Some(event) = events.blocking_recv() {
                match event {
                    ReaderEvent::Records(records) => copy.lock().unwrap().take_in(records),
                    ReaderEvent::Positioned { .. } => {}
                    ReaderEvent::OutOfRange { .. } | ReaderEvent::Failed(_) => panic!("reading along: {event:?}"),
                }
            }
        });
        Self { logs, probe, topics: topics.to_vec(), partitions: kafka.partitions, _reader: reader }
    }

    /// With what the transactions' names begin.
    pub fn letters(&self) -> String {
        self.logs.lock().unwrap().letters.clone()
    }

    /// What has been read so far.
    pub fn now(&self) -> Logs {
        self.logs.lock().unwrap().clone()
    }

    /// Everything up to the ends that the logs have now.
    pub fn to_the_ends(&self) -> Logs {
        let mut ends = Vec::new();
        for topic in &self.topics {
            for partition in 0..i32::from(self.partitions) {
                let mut end = None;
                wait_until("the brokers tell where the topics end", || {
                    end = self.end(topic, partition);
                    end.is_some()
                });
                ends.push((topic, partition, end.unwrap_or_default()));
            }
        }
        wait_until("the test has read all topics", || {
            let logs = self.logs.lock().unwrap();
            ends.iter().all(|(topic, partition, end)| logs.next_offset(topic, *partition) >= *end)
        });
        self.now()
    }

    /// Where a partition ends now; nobody may know for a moment, while brokers are killed.
    pub fn end(&self, topic: &str, partition: i32) -> Option<u64> {
        Some(self.probe.watermarks(topic, partition).ok()?.1)
    }
}

impl Logs {
    fn take_in(&mut self, records: Vec<Record>) {
        for record in records {
            let name = record.topic.strip_prefix(&self.prefix).unwrap_or(&record.topic).to_string();
            self.topics.entry(name).or_default().push(Arc::new(Entry::of(record)));
        }
    }

    fn next_offset(&self, topic: &str, partition: i32) -> u64 {
        let entries = self.topic(topic.strip_prefix(&self.prefix).unwrap_or(topic));
        let last = entries.iter().rev().find(|entry| entry.place.partition == partition);
        last.map_or(0, |entry| entry.place.offset + 1)
    }
}
