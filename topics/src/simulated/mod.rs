//! Kafka in memory, for simulations by seed: the same clients, over a [`Cluster`] whose time is tokio's paused clock and whose
//! luck is drawn from the seed.
//!
//! Everything that a service may not rely on happens here more often than on real brokers:
//!
//! | what | [`Luck`] |
//! |---|---|
//! | an append is written, and its answer is lost | `lost_answer` |
//! | an append is not written, and nobody says so for long | `lost_append` |
//! | an append that was given up lands long after it | `late_append` |
//! | the end of a log as a leader shows it that was cut off | `stale_end` |
//! | reading stands still while others read on | `slow_fetch` |
//! | a commit of positions is written, and its answer lost | `lost_commit_answer` |
//! | a commit of positions that was given up lands long after it | `late_commit` |
//!
//! Partitions are served in any order and with any delay; of one producer, appends to one partition keep theirs unless one is
//! given up. Rebalances, expulsions, retention, compaction and offsets that are lost are asked for by whoever drives the
//! simulation.
//!
//! One simulation runs on one thread: [`Cluster::enter`] makes it the one that clients connect to.
//!
//! Left out: several brokers (a partition answers late or not, which is all that a client sees of them), transactions, quotas,
//! truncation.

pub mod acks;
pub mod membership;
pub mod outbox;
pub mod probe;
pub mod reader;
pub mod scan;

mod groups;
mod logs;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::record::Record;
use groups::Group;
use logs::Log;

/// When every simulation begins, in milliseconds since 1970.
pub const BEGINS_MS: i64 = 1_750_000_000_000;

/// How often something goes wrong: one in a thousand, for each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the module's table says it")]
pub struct Luck {
    pub lost_answer: u16,
    pub lost_append: u16,
    pub late_append: u16,
    pub stale_end: u16,
    pub slow_fetch: u16,
    pub lost_commit_answer: u16,
    pub late_commit: u16,
}

/// Something that went wrong, and whom it met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Since the beginning.
    pub at: Duration,
    /// As [`Luck`] calls it.
    pub kind: &'static str,
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The record's key, where it met one record.
    pub key: Option<Vec<u8>>,
}

/// All brokers.
#[derive(Clone)]
pub struct Cluster(Arc<Mutex<State>>);

struct State {
    random: ChaCha8Rng,
    luck: Luck,
    began: Instant,
    /// How far the clocks of services are off; the brokers' is right.
    skew_ms: i64,
    topics: BTreeMap<Arc<str>, TopicState>,
    groups: BTreeMap<String, Group>,
    hits: Vec<Hit>,
}

struct TopicState {
    id: [u8; 16],
    logs: Vec<Log>,
}

thread_local! {
    static CURRENT: RefCell<Option<Cluster>> = const { RefCell::new(None) };
    /// How long what blocks has rested since it began.
    static RESTED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static KILLING: Cell<bool> = const { Cell::new(false) };
}

impl Cluster {
    /// Brokers without topics.
    pub fn new(seed: u64, luck: Luck) -> Self {
        let (topics, groups) = (BTreeMap::new(), BTreeMap::new());
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self(Arc::new(Mutex::new(State {
            random,
            luck,
            began: Instant::now(),
            skew_ms: 0,
            topics,
            groups,
            hits: Vec::new(),
        })))
    }

    /// From now on clients of this thread connect to these brokers.
    pub fn enter(&self) {
        CURRENT.set(Some(self.clone()));
    }

    /// Creates a topic.
    pub fn create(&self, name: &str, partitions: u16) {
        let mut state = self.lock();
        let mut id = [0; 16];
        state.random.fill_bytes(&mut id);
        let logs = (0..partitions).map(|_| Log::default()).collect();
        state.topics.insert(name.into(), TopicState { id, logs });
    }

    /// From now on.
    pub fn set_luck(&self, luck: Luck) {
        self.lock().luck = luck;
    }

    /// Sets the wall clock of all services.
    pub fn jump(&self, ms: i64) {
        self.lock().skew_ms += ms;
    }

    /// What went wrong so far.
    pub fn hits(&self) -> Vec<Hit> {
        self.lock().hits.clone()
    }

    /// Appends from outside, at once. `None`: there is no such partition.
    pub fn append(&self, topic: &str, partition: i32, key: &[u8], value: Option<&[u8]>) -> Option<u64> {
        self.lock().append(topic, partition, Message::new(key, value))
    }

    /// Every record that was ever appended to a partition, also what was cleaned up since.
    pub fn history(&self, topic: &str, partition: i32) -> Vec<Arc<Record>> {
        self.lock().log(topic, partition).map(|log| log.history.clone()).unwrap_or_default()
    }

    /// All topics, by name.
    pub fn topics(&self) -> Vec<String> {
        self.lock().topics.keys().map(ToString::to_string).collect()
    }

    /// How many partitions a topic has.
    pub fn partitions(&self, topic: &str) -> i32 {
        self.lock().topics.get(topic).map_or(0, |topic| topic.logs.len()) as i32
    }

    /// Where a log starts, and its end.
    pub fn range(&self, topic: &str, partition: i32) -> Option<(u64, u64)> {
        self.lock().log(topic, partition).map(|log| (log.start, log.next))
    }

    /// Deletes what lies below an offset, as retention does.
    pub fn delete_below(&self, topic: &str, partition: i32, offset: u64) {
        if let Some(log) = self.lock().log(topic, partition) {
            log.delete_below(offset);
        }
    }

    /// Of each key only the last record stays; a tombstone goes with it, after which nothing is left.
    pub fn compact(&self, topic: &str, partition: i32) {
        if let Some(log) = self.lock().log(topic, partition) {
            log.compact();
        }
    }

    fn current() -> Self {
        CURRENT.with_borrow(Clone::clone).expect("a simulated client, and no cluster was entered on this thread")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record that is to be.
struct Message {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    traceparent: Option<String>,
    remark: Option<Box<suture_contract::remark::Remark>>,
}

impl Message {
    fn new(key: &[u8], value: Option<&[u8]>) -> Self {
        Self { key: key.to_vec(), value: value.map(<[u8]>::to_vec), traceparent: None, remark: None }
    }
}

impl State {
    fn log(&mut self, topic: &str, partition: i32) -> Option<&mut Log> {
        self.topics.get_mut(topic)?.logs.get_mut(usize::try_from(partition).ok()?)
    }

    fn append(&mut self, topic: &str, partition: i32, message: Message) -> Option<u64> {
        let timestamp_ms = wall_ms_at(self.began);
        let name = Arc::clone(self.topics.get_key_value(topic)?.0);
        let log = self.log(topic, partition)?;
        let Message { key, value, traceparent, remark } = message;
        let record = Record {
            topic: name,
            partition,
            offset: log.next,
            timestamp_ms: Some(timestamp_ms),
            key: Some(key),
            value,
            traceparent,
            remark,
        };
        Some(log.append(record))
    }

    /// A number below `most`.
    fn draw(&mut self, most: u64) -> u64 {
        self.random.next_u64() % most.max(1)
    }

    fn between(&mut self, least_ms: u64, most_ms: u64) -> Duration {
        Duration::from_millis(least_ms + self.draw(most_ms - least_ms + 1))
    }

    /// One way through the network: mostly at once, sometimes not.
    fn delay(&mut self) -> Duration {
        match self.draw(50) {
            0 => self.between(20, 300),
            _ => self.between(0, 4),
        }
    }

    /// Whether something goes wrong now.
    fn strikes(&mut self, kind: &'static str, in_thousand: u16, whom: (&str, i32, Option<&[u8]>)) -> bool {
        let strikes = in_thousand > 0 && self.draw(1_000) < u64::from(in_thousand);
        if strikes {
            self.note(kind, whom);
        }
        strikes
    }

    /// The end of a log as a leader shows it that was cut off, if we have met one. Who has rested and looks again meets another.
    fn stale_end(&mut self, (topic, partition): (&str, i32), least: u64) -> Option<u64> {
        let (luck, draw) = (self.luck, self.draw(u64::MAX) as usize);
        let log = self.log(topic, partition)?;
        let ends = log.old_ends().len();
        if RESTED.get() >= Duration::from_secs(1) || ends == 0 {
            return None;
        }
        let old = log.old_ends().nth(draw % ends).filter(|old| *old >= least)?;
        self.strikes("stale_end", luck.stale_end, (topic, partition, None)).then_some(old)
    }

    fn note(&mut self, kind: &'static str, (topic, partition, key): (&str, i32, Option<&[u8]>)) {
        let at = self.began.elapsed();
        self.hits.push(Hit { at, kind, topic: topic.into(), partition, key: key.map(<[u8]>::to_vec) });
    }
}

/// The wall clock of the simulation of this thread, in milliseconds since 1970.
pub fn wall_ms() -> i64 {
    let cluster = Cluster::current();
    let state = cluster.lock();
    wall_ms_at(state.began) + state.skew_ms
}

fn wall_ms_at(began: Instant) -> i64 {
    BEGINS_MS + i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX - BEGINS_MS)
}

/// Drops what a process holds as if it was killed: nothing of it is closed, and what was handed over may be lost.
pub fn kill<T>(process: T) {
    KILLING.set(true);
    drop(process);
    KILLING.set(false);
}

fn is_killing() -> bool {
    KILLING.get()
}

pub(crate) fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let takes = {
        let cluster = Cluster::current();
        let mut state = cluster.lock();
        state.delay() + state.delay()
    };
    tokio::spawn(async move {
        tokio::time::sleep(takes).await;
        RESTED.set(Duration::ZERO);
        work()
    })
}

pub(crate) fn pause(time: Duration) {
    RESTED.set(RESTED.get() + time);
}
