//! Follows every topic of the run: which event became which transaction, how it ended, who has applied it.
//!
//! It only looks. What is committed is judged from the databases (`report.rs`), never from here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use suture_contract::codec::{self, RequestsRecord};
use suture_contract::ids::{Code, LogLetters, Origin, Participant, Shard, Txid};
use suture_contract::messages::{Ballot, Decision, Outcome, Rejection, Verdict, Vote};
use suture_contract::topic_map::{Topic, participant_group, retry_group};
use suture_coordinator::ingest::IngestCounts;
use suture_topics::acks::GroupOffsets;
use suture_topics::probe::Probe;
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::record::Record;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::world::World;

/// What the feeder needs to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Events with an outcome or a rejection.
    pub finished: u64,
}

/// What was seen so far.
pub struct Watch {
    /// Reads as long as it is here.
    _reader: Reader,
    events: mpsc::Receiver<ReaderEvent>,
    names: BTreeMap<String, Topic>,
    upstream: String,
    log: LogLetters,

    /// The event of each transaction of this run.
    pub requests: BTreeMap<Txid, Option<Origin>>,
    /// How each transaction of this run ended.
    pub outcomes: BTreeMap<Txid, Outcome>,
    /// Refused events of this run.
    pub rejections: BTreeMap<Origin, Code>,
    /// (transaction, participant) with a vote, and which.
    pub votes: BTreeMap<(Txid, Participant), Ballot>,
    /// Decided transactions.
    pub decisions: BTreeMap<Txid, Verdict>,
    /// Per participant: decisions applied and decisions there are.
    pub applied: BTreeMap<Participant, (u64, u64)>,
    /// How many outcomes were known when `applied` was asked for: all their decisions are in its ends.
    outcomes_at_glance: usize,
    /// Transactions of this run without an outcome.
    open: BTreeSet<Txid>,
    /// The next offset of each shard of the requests.
    requests_read: Vec<u64>,
    /// The ends of the requests when ingest had last settled all outcomes, asking for some of them again.
    asked_up_to: Option<Vec<u64>>,
    finished: BTreeSet<Origin>,
    progress: watch::Sender<Progress>,
    clients: Arc<std::sync::Mutex<Clients>>,
}

/// How far each database was when it was looked at.
pub struct Glance {
    applied: BTreeMap<Participant, (u64, u64)>,
    outcomes: usize,
    asked_up_to: Option<Vec<u64>>,
}

/// The clients that are asked now and then, by blocking calls.
struct Clients {
    probe: Probe,
    acks: GroupOffsets,
}

impl Watch {
    /// Follows all topics from the ends that they have now.
    pub async fn start(world: &Arc<World>) -> anyhow::Result<Self> {
        let (post, events) = mpsc::channel(64);
        let world = Arc::clone(world);
        let started = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let kafka = &world.kafka;
            let probe = Probe::start(kafka)?;
            let topics = Topic::all(&world.participants());
            let names: BTreeMap<String, Topic> =
                topics.into_iter().map(|topic| (topic.name(&kafka.prefix), topic)).collect();
            let log = probe.letters(&Topic::Requests.name(&kafka.prefix))?;
            let reader = Reader::start(kafka, &format!("{}.demo-watch", kafka.prefix), post)?;
            let mut requests_read = Vec::new();
            for name in names.keys() {
                for partition in 0..i32::from(kafka.partitions) {
                    let (_, end) = probe.watermarks(name, partition)?;
                    reader.add(&[(name, partition, end)]);
                    if names[name] == Topic::Requests {
                        requests_read.push(end);
                    }
                }
            }
            let clients = Clients { probe, acks: GroupOffsets::new(kafka) };
            let upstream = world.upstream.clone();
            Ok((reader, names, log, clients, upstream, requests_read))
        });
        let (reader, names, log, clients, upstream, requests_read) = started.await??;
        Ok(Self {
            _reader: reader,
            events,
            names,
            upstream,
            log,
            requests: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            rejections: BTreeMap::new(),
            votes: BTreeMap::new(),
            decisions: BTreeMap::new(),
            applied: BTreeMap::new(),
            outcomes_at_glance: 0,
            open: BTreeSet::new(),
            requests_read,
            asked_up_to: None,
            finished: BTreeSet::new(),
            progress: watch::Sender::new(Progress::default()),
            clients: Arc::new(std::sync::Mutex::new(clients)),
        })
    }

    /// What the feeder listens to.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The next thing read.
    pub async fn next(&mut self) -> anyhow::Result<ReaderEvent> {
        self.events.recv().await.context("the reading thread has ended")
    }

    /// Takes in what was read. What cannot be read any more would be waited for without an end.
    pub fn take_in(&mut self, event: ReaderEvent) -> anyhow::Result<()> {
        match event {
            ReaderEvent::Records(records) => {
                for record in &records {
                    self.take_in_record(record);
                }
                // The feeder may have ended.
                self.progress.send_replace(Progress { finished: self.finished.len() as u64 });
            }
            ReaderEvent::Positioned { .. } => {}
            ReaderEvent::OutOfRange { topic, partition } => {
                bail!("{topic}/{partition} has dropped records before this demo has read them")
            }
            ReaderEvent::Failed(failure) => return Err(failure).context("following the topics"),
        }
        Ok(())
    }

    fn take_in_record(&mut self, record: &Record) {
        let Some(topic) = self.names.get(&*record.topic) else { return };
        let value = record.value.as_deref().unwrap_or_default();
        match topic {
            Topic::Requests => {
                let Some(shard) = Shard::of_partition(record.partition) else { return };
                if let Some(next) = self.requests_read.get_mut(usize::from(shard.0)) {
                    *next = record.offset + 1;
                }
                if let Ok(RequestsRecord::Request(request)) = codec::decode_requests_record(value) {
                    let txid = Txid { log: self.log, shard, offset: record.offset };
                    self.requests.insert(txid, request.source);
                    if !self.outcomes.contains_key(&txid) {
                        self.open.insert(txid);
                    }
                    self.match_up(txid);
                }
            }
            Topic::Votes(participant) => {
                if let Ok(vote) = codec::decode::<Vote>(value) {
                    self.votes.entry((vote.txid, participant.clone())).or_insert(vote.vote);
                }
            }
            Topic::Decisions => {
                if let Ok(decision) = codec::decode::<Decision>(value) {
                    self.decisions.insert(decision.txid, decision.outcome);
                }
            }
            Topic::Outcomes => {
                if let Ok(outcome) = codec::decode::<Outcome>(value) {
                    let txid = outcome.txid;
                    self.outcomes.entry(txid).or_insert(outcome);
                    self.open.remove(&txid);
                    self.match_up(txid);
                }
            }
            Topic::Rejected => {
                if let Ok(rejection) = codec::decode::<Rejection>(value)
                    && rejection.origin.topic == self.upstream
                {
                    self.finished.insert(rejection.origin.clone());
                    self.rejections.insert(rejection.origin, rejection.code);
                }
            }
            Topic::Prepare(_) => {}
        }
    }

    /// Outcome and request are read in any order; an event is finished when both are there.
    fn match_up(&mut self, txid: Txid) {
        if let (Some(Some(origin)), true) = (self.requests.get(&txid), self.outcomes.contains_key(&txid)) {
            self.finished.insert(origin.clone());
        }
    }

    /// Events with an outcome or a rejection.
    pub fn finished(&self) -> u64 {
        self.finished.len() as u64
    }

    /// Events that are read and have no end yet.
    pub fn open(&self, counts: &IngestCounts) -> u64 {
        let read = counts.read.load(Ordering::Relaxed);
        read.saturating_sub(counts.ignored.load(Ordering::Relaxed) + self.finished.len() as u64)
    }

    /// Whether every database has applied every decision.
    pub fn all_applied(&self) -> bool {
        let is_fresh = self.outcomes_at_glance == self.outcomes.len();
        is_fresh && !self.applied.is_empty() && self.applied.values().all(|(applied, there)| applied == there)
    }

    /// Whether nothing is under way: no transaction is open, and no outcome waits to be asked for again.
    pub fn nothing_waits(&self) -> bool {
        let is_fresh = self.outcomes_at_glance == self.outcomes.len();
        let has_read = |ends: &Vec<u64>| self.requests_read.iter().zip(ends).all(|(read, end)| read >= end);
        is_fresh && self.open.is_empty() && self.asked_up_to.as_ref().is_some_and(has_read)
    }

    /// Begins to look how far each database is: the committed offsets of its group, against the ends of the decisions.
    pub fn begin_glance(&self, world: &Arc<World>) -> JoinHandle<anyhow::Result<Glance>> {
        // Ignored events make no record that would wake the feeder.
        self.progress.send_replace(Progress { finished: self.finished.len() as u64 });
        let (world, clients, outcomes) = (Arc::clone(world), Arc::clone(&self.clients), self.outcomes.len());
        tokio::task::spawn_blocking(move || {
            let Ok(mut clients) = clients.lock() else { bail!("a look at the groups has panicked") };
            let decisions = Topic::Decisions.name(&world.kafka.prefix);
            let partitions: Vec<_> = (0..i32::from(world.kafka.partitions)).map(|i| (decisions.as_str(), i)).collect();
            let mut ends = Vec::new();
            for (topic, partition) in &partitions {
                ends.push(clients.probe.watermarks(topic, *partition)?.1);
            }
            let mut applied = BTreeMap::new();
            for participant in world.participants() {
                let group = participant_group(&world.kafka.prefix, &participant);
                let committed = clients.acks.committed(&group, &partitions)?;
                let done = committed.iter().zip(&ends).map(|(committed, end)| match committed {
                    Some(committed) => committed.offset.min(*end),
                    None => 0,
                });
                applied.insert(participant, (done.sum::<u64>(), ends.iter().sum::<u64>()));
            }
            let asked_up_to = asked_up_to(&world, &mut clients)?;
            Ok(Glance { applied, outcomes, asked_up_to })
        })
    }

    /// Takes in what was seen. A passing failure (a group that is being rebalanced) is looked at again in a moment.
    pub fn end_glance(&mut self, seen: anyhow::Result<Glance>) {
        if let Ok(Glance { applied, outcomes, asked_up_to }) = seen {
            self.applied = applied;
            self.asked_up_to = asked_up_to;
            self.outcomes_at_glance = outcomes;
        }
    }
}

/// The ends of the requests, if the position of what drives again is past all outcomes: then whatever it asked for lies below
/// them. In this order, for a request is acknowledged before that position moves.
fn asked_up_to(world: &World, clients: &mut Clients) -> anyhow::Result<Option<Vec<u64>>> {
    let kafka = &world.kafka;
    let (outcomes, requests) = (Topic::Outcomes.name(&kafka.prefix), Topic::Requests.name(&kafka.prefix));
    let partitions: Vec<_> = (0..i32::from(kafka.partitions)).map(|of| (outcomes.as_str(), of)).collect();
    let committed = clients.acks.committed(&retry_group(&kafka.prefix), &partitions)?;
    let mut ends = Vec::new();
    for ((topic, partition), committed) in partitions.into_iter().zip(committed) {
        let (_, end) = clients.probe.watermarks(topic, partition)?;
        if committed.is_none_or(|committed| committed.offset < end) {
            return Ok(None);
        }
        ends.push(clients.probe.watermarks(&requests, partition)?.1);
    }
    Ok(Some(ends))
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.events.close();
    }
}
