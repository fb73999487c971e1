//! Clean-up of the decision log: the thin shell around [`suture_coordinator_core::cleanup`].
//!
//! One task, apart from the shards and with clients of its own, which it opens for a round and closes after it. A round, now
//! and then, goes through the shards that this process owns:
//!
//! ```text
//! committed offsets of every participant's group   first
//! start of the requests log, end of the decision log
//! the decision log, read to that end               at most MOST_CANDIDATES decisions in memory, some 20 MB a process
//! tombstones, BATCH at a time                      each batch waits for its reports
//! ```
//!
//! What fails is said and left for the next round: nothing hangs on it but the size of the log. Two owners of a shard may clean
//! up at once, for a second tombstone is harmless. A shard that is being taken or has stopped is not cleaned up.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use suture_contract::codec::Message;
use suture_contract::ids::{LogLetters, Participant, Shard, Txid};
use suture_contract::messages::Decision;
use suture_contract::topic_map::{Topic, coordinator_group, participant_group};
use suture_coordinator_core::cleanup::{BadLog, Ledgers, MOST_CANDIDATES, Mark, Report, Rules, Sweep, Swept, Unknown};
use suture_topics::acks::GroupOffsets;
use suture_topics::blocking;
use suture_topics::failure::KafkaFailure;
use suture_topics::membership::Committed;
use suture_topics::outbox::{Delivery, Failure, Outbox};
use suture_topics::probe::Probe;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::clock;
use crate::passing::Passed;
use crate::service::raw_of;

/// How the decision log is cleaned up.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CleanUpSettings {
    /// It is not.
    pub off: bool,
    /// How often, in seconds.
    pub interval_s: u64,
    /// What was decided since this many seconds stays: no backup that might be restored is older.
    pub keep_s: u64,
}

impl Default for CleanUpSettings {
    fn default() -> Self {
        Self { off: false, interval_s: 3_600, keep_s: 30 * 86_400 }
    }
}

/// Tombstones under way at once.
const BATCH: usize = 1_000;
/// How long their reports may take; then the round ends.
const REPORTS: Duration = Duration::from_secs(60);

/// The handle of the cleaning task.
pub(crate) struct CleanUp {
    shards: Arc<Mutex<BTreeSet<Shard>>>,
    over: Arc<AtomicBool>,
    /// Never written to: the task wakes when it goes.
    wake: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl CleanUp {
    /// Starts the task, which owns no shards yet. Its first round is one interval away.
    pub fn start(kafka: &KafkaSettings, settings: &CleanUpSettings, passed: &Passed, log: LogLetters) -> Self {
        let (shards, over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (wake, mut woken) = oneshot::channel::<()>();
        let mut cleaner = Cleaner {
            kafka: kafka.clone(),
            settings: settings.clone(),
            passed: passed.clone(),
            log,
            shards: Arc::clone(&shards),
            over: Arc::clone(&over),
            ledgers: Ledgers::default(),
        };
        let interval = Duration::from_secs(settings.interval_s.max(1));
        let task = tokio::spawn(async move {
            while timeout(interval, &mut woken).await.is_err() {
                cleaner.round().await;
            }
        });
        Self { shards, over, wake, task }
    }

    /// Cleans up these shards from now on.
    pub fn own(&self, shards: BTreeSet<Shard>) {
        *self.shards.lock().unwrap_or_else(PoisonError::into_inner) = shards;
    }

    /// Ends the task and waits for it, at most for so long.
    pub async fn close(self, most: Duration) {
        self.over.store(true, Ordering::Release);
        drop(self.wake);
        // One that hangs in a question to Kafka writes nothing any more, and ends with its answer.
        let _ = timeout(most, self.task).await;
    }
}

/// What the task owns.
struct Cleaner {
    kafka: KafkaSettings,
    settings: CleanUpSettings,
    passed: Passed,
    log: LogLetters,
    shards: Arc<Mutex<BTreeSet<Shard>>>,
    over: Arc<AtomicBool>,
    ledgers: Ledgers,
}

/// The clients of one round.
struct Clients {
    probe: Arc<Probe>,
    /// Away while it reads.
    scanner: Option<Scanner>,
    outbox: Outbox,
    reports: mpsc::UnboundedReceiver<Delivery>,
}

/// Why a shard, or a round, was not cleaned up.
#[derive(Debug, thiserror::Error)]
enum NotCleaned {
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    #[error(transparent)]
    Scan(#[from] ScanFailure),
    #[error(transparent)]
    BadLog(#[from] BadLog),
    #[error("appending tombstones: {0}")]
    Tombstones(Failure),
    #[error("appending tombstones: no report within {} s", REPORTS.as_secs())]
    NoReport,
    #[error("a question to Kafka ended unexpectedly")]
    Job,
    #[error("the process ends")]
    Over,
}

/// Runs what blocks.
async fn ask<T, E>(question: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, NotCleaned>
where
    T: Send + 'static,
    E: Send + 'static,
    NotCleaned: From<E>,
{
    Ok(blocking::spawn(question).await.map_err(|_| NotCleaned::Job)??)
}

impl Cleaner {
    async fn round(&mut self) {
        if self.owned().is_empty() {
            return;
        }
        let (tombstones, report) = match self.try_round().await {
            Ok(swept) => swept,
            Err(NotCleaned::Over) => return,
            Err(failure) => return warn!(%failure, "the decision log is not cleaned up in this round"),
        };
        let waiting: Vec<String> = report.waiting_for.iter().map(|(name, count)| format!("{name}={count}")).collect();
        info!(
            tombstones,
            readable = report.readable,
            young = report.young,
            waiting_for = waiting.join(","),
            "the decision log was cleaned up"
        );
    }

    async fn try_round(&mut self) -> Result<(usize, Report), NotCleaned> {
        let kafka = self.kafka.clone();
        let mut clients = ask(move || Clients::start(&kafka)).await?;
        let swept = self.sweep_all(&mut clients).await;
        // Ending a producer blocks.
        let _ = blocking::spawn(move || drop(clients)).await;
        swept
    }

    async fn sweep_all(&mut self, clients: &mut Clients) -> Result<(usize, Report), NotCleaned> {
        let acks = self.acks(&clients.probe).await?;
        let (mut tombstones, mut total) = (0, Report::default());
        for shard in self.owned() {
            match self.sweep(shard, &acks, clients).await {
                Ok((gone, report)) => {
                    tombstones += gone;
                    total.readable += report.readable;
                    total.young += report.young;
                    for (participant, count) in report.waiting_for {
                        *total.waiting_for.entry(participant).or_default() += count;
                    }
                }
                Err(NotCleaned::BadLog(bad)) => {
                    error!(%shard, %bad, "the decision log of this shard is not cleaned up")
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok((tombstones, total))
    }

    /// Every participant's acknowledgements, by shard. Whose cannot be read is left out: unknown.
    async fn acks(&mut self, probe: &Arc<Probe>) -> Result<BTreeMap<Participant, Vec<Option<u64>>>, NotCleaned> {
        let (kafka, probe, over) = (self.kafka.clone(), Arc::clone(probe), Arc::clone(&self.over));
        let committed = ask(move || committed_by_all(&kafka, &probe, &over)).await?;
        let mut acks = BTreeMap::new();
        for (participant, committed) in committed {
            let mark = |offset: u64, ledger| Mark { offset, ledger };
            let marks = committed.iter().map(|committed| committed.as_ref().map(|c| mark(c.offset, &c.metadata)));
            match self.ledgers.acks(&participant, &marks.collect::<Vec<_>>()) {
                Ok(known) => drop(acks.insert(participant, known)),
                Err(unknown @ (Unknown::Mixed | Unknown::Changed)) => {
                    warn!(%participant, %unknown, "what it has applied is unknown, and its decisions stay");
                }
            }
        }
        Ok(acks)
    }

    async fn sweep(
        &self,
        shard: Shard,
        acks: &BTreeMap<Participant, Vec<Option<u64>>>,
        clients: &mut Clients,
    ) -> Result<(usize, Report), NotCleaned> {
        let (requests, decisions) = (self.name(Topic::Requests), self.name(Topic::Decisions));
        let ack = |known: &Vec<Option<u64>>| known.get(usize::from(shard.0)).copied().flatten();
        let acks = acks.iter().filter_map(|(name, known)| Some((name.clone(), ack(known)?)));
        let (mut from, end) = clients.watermarks(&decisions, shard).await?;
        let keep_ms = i64::try_from(self.settings.keep_s.saturating_mul(1_000)).unwrap_or(i64::MAX);
        let mut rules = Rules {
            log: self.log,
            requests_start: clients.watermarks(&requests, shard).await?.0,
            acks: acks.collect(),
            end,
            before_ms: clock::wall_ms().saturating_sub(keep_ms),
            most: MOST_CANDIDATES,
        };
        let (mut tombstones, mut report) = (0, None);
        loop {
            let swept = self.read(clients, &decisions, shard, from, &rules).await?;
            tombstones += swept.tombstones.len();
            self.bury(shard, &swept.tombstones, clients).await?;
            // The first sweep has seen all there is.
            let report = report.get_or_insert(swept.report);
            let Some(next) = swept.next else { return Ok((tombstones, std::mem::take(report))) };
            from = next;
            rules.end = clients.watermarks(&decisions, shard).await?.1;
        }
    }

    async fn read(
        &self,
        clients: &mut Clients,
        decisions: &str,
        shard: Shard,
        from: u64,
        rules: &Rules,
    ) -> Result<Swept, NotCleaned> {
        let mut scanner = clients.scanner.take().ok_or(NotCleaned::Job)?;
        let (passed, over) = (self.passed.clone(), Arc::clone(&self.over));
        let (decisions, rules) = (decisions.to_string(), rules.clone());
        let read = ask(move || {
            let end = rules.end;
            let mut sweep = Sweep::new(rules);
            let mut failed = None;
            let scanned = scanner.scan((&decisions, shard.partition()), (from, end), |record| {
                if passed.has(&record) {
                    return ControlFlow::Continue(());
                }
                let bad = sweep.read(raw_of(&record)).err().map(NotCleaned::from);
                failed = if over.load(Ordering::Acquire) { Some(NotCleaned::Over) } else { bad };
                if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let swept = match failed {
                Some(failed) => Err(failed),
                None => scanned.map(|()| sweep.end()).map_err(NotCleaned::from),
            };
            Ok::<_, NotCleaned>((scanner, swept))
        });
        let (scanner, swept) = read.await?;
        clients.scanner = Some(scanner);
        swept
    }

    /// Appends tombstones. One that gets lost is appended in the next round.
    async fn bury(&self, shard: Shard, txids: &[Txid], clients: &mut Clients) -> Result<(), NotCleaned> {
        let decisions = self.name(Topic::Decisions);
        for batch in txids.chunks(BATCH) {
            if self.over.load(Ordering::Acquire) {
                return Err(NotCleaned::Over);
            }
            let mut under_way = 0;
            for (txid, token) in batch.iter().zip(0..) {
                let (key, kind) = (txid.to_string(), Decision::TYPE);
                let full =
                    clients.outbox.append(&decisions, shard.partition(), key.as_bytes(), None, kind, None, token);
                under_way += usize::from(full.is_ok());
            }
            for _ in 0..under_way {
                let delivery = timeout(REPORTS, clients.reports.recv()).await;
                delivery.ok().flatten().ok_or(NotCleaned::NoReport)?.result.map_err(NotCleaned::Tombstones)?;
            }
        }
        Ok(())
    }

    fn owned(&self) -> BTreeSet<Shard> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn name(&self, topic: Topic) -> String {
        topic.name(&self.kafka.prefix)
    }
}

impl Clients {
    fn start(kafka: &KafkaSettings) -> Result<Self, KafkaFailure> {
        let (tell, reports) = mpsc::unbounded_channel();
        Ok(Self {
            probe: Arc::new(Probe::start(kafka)?),
            scanner: Some(Scanner::start(kafka, &coordinator_group(&kafka.prefix))?),
            outbox: Outbox::start(kafka, "clean-up", move |delivery| {
                // The receiver goes away with the round.
                let _ = tell.send(delivery);
            })?,
            reports,
        })
    }

    async fn watermarks(&mut self, topic: &str, shard: Shard) -> Result<(u64, u64), NotCleaned> {
        let (probe, topic) = (Arc::clone(&self.probe), topic.to_string());
        ask(move || probe.watermarks(&topic, shard.partition())).await
    }
}

/// The committed offsets of every participant's group, by shard. Blocks, for each group up to 10 s, and looks before each
/// whether the process ends.
fn committed_by_all(
    kafka: &KafkaSettings,
    probe: &Probe,
    over: &AtomicBool,
) -> Result<BTreeMap<Participant, Vec<Option<Committed>>>, NotCleaned> {
    let prefix = &kafka.prefix;
    let topics = probe.topics()?;
    let participants = topics.keys().filter_map(|name| match Topic::parse(name, prefix) {
        Some(Topic::Votes(participant)) => Some(participant),
        _ => None,
    });
    let decisions = Topic::Decisions.name(prefix);
    let partitions: Vec<(&str, i32)> =
        (0..kafka.partitions).map(|shard| (decisions.as_str(), Shard(shard).partition())).collect();
    let mut offsets = GroupOffsets::new(kafka);
    let mut found = BTreeMap::new();
    for participant in participants {
        if over.load(Ordering::Acquire) {
            return Err(NotCleaned::Over);
        }
        match offsets.committed(&participant_group(prefix, &participant), &partitions) {
            Ok(committed) => drop(found.insert(participant, committed)),
            Err(failure) => {
                warn!(%participant, %failure, "what it has applied is unknown, and its decisions stay");
            }
        }
    }
    Ok(found)
}
