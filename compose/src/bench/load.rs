//! A coordinator and participants with real databases under a closed loop: a fixed number of transactions is under way, and the
//! next one is asked for when one is applied everywhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use suture_contract::ids::Participant;
use suture_contract::messages::Verdict;
use suture_coordinator::service::CoordinatorSettings;
use suture_participants::config::UpkeepSettings;
use suture_participants::opened::OpenedResource;
use suture_topics::settings::KafkaSettings;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::submitter::Submitter;
use super::watched::{Applied, Watched};
use super::{PATIENCE, cpu, histogram, micros, workload};

/// Longer than any queue of this program.
const DEADLINE_MS: u64 = 300_000;

/// From the first transaction that is applied on, before anything counts; no longer than what counts.
const WARM_UP: Duration = Duration::from_secs(3);

/// Services under way.
pub struct Serving {
    submitter: Submitter,
    applied: mpsc::UnboundedReceiver<Applied>,
    services: JoinSet<anyhow::Result<()>>,
    stop: watch::Sender<bool>,
    everybody: u32,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub struct Load {
    /// Transactions under way.
    pub window: usize,
    /// How long they are counted.
    pub time: Duration,
    /// Bytes of text in each branch.
    pub payload: usize,
}

/// What came of it.
pub struct Loaded {
    /// Committed everywhere, a second.
    pub rate: f64,
    /// From the append of a request until it is durable in the last database.
    pub applied: Histogram<u64>,
    /// What this program used of the processors, in processors.
    pub cores: f64,
    /// What share of the machine's processors was busy, where the system tells.
    pub busy: Option<f64>,
    /// Committed from the first to the last, not only while they were counted.
    pub committed: u64,
    /// Aborted likewise.
    pub aborted: u64,
}

/// A transaction whose request is appended.
struct UnderWay {
    asked: Instant,
    /// Participants that have applied it.
    applied: u32,
}

/// What was used up to some time.
struct Usage {
    at: Instant,
    cpu: Duration,
    machine: Option<(u64, u64)>,
    committed: u64,
}

impl Serving {
    /// Starts the coordinator and these participants.
    pub async fn start(kafka: &KafkaSettings, opened: Vec<(Participant, OpenedResource)>) -> anyhow::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let (told, applied) = mpsc::unbounded_channel();
        let mut services = JoinSet::new();
        let (for_coordinator, stop_coordinator) = (kafka.clone(), stopped.clone());
        services.spawn(async move {
            suture_coordinator::service::run(for_coordinator, CoordinatorSettings::default(), stop_coordinator).await?;
            Ok(())
        });
        let mut participants = Vec::new();
        for (number, (participant, resource)) in (0_u8..).zip(opened) {
            participants.push(participant.clone());
            let resource = Arc::new(Watched::new(resource, number, told.clone()));
            let (kafka, stopped) = (kafka.clone(), stopped.clone());
            services.spawn(async move {
                suture_participants::service::run(&kafka, &participant, resource, UpkeepSettings::default(), stopped)
                    .await?;
                Ok(())
            });
        }
        let everybody = u32::MAX >> (u32::BITS as usize - participants.len());
        let submitter = Submitter::start(kafka, &participants, workload::OPERATION, DEADLINE_MS).await?;
        Ok(Self { submitter, applied, services, stop, everybody })
    }

    /// A closed loop; at its end nothing is under way.
    pub async fn load(&mut self, load: Load, interrupted: &mut watch::Receiver<bool>) -> anyhow::Result<Loaded> {
        let mut latencies = histogram()?;
        let mut under_way: HashMap<(u16, u64), UnderWay> = HashMap::new();
        // Requests without an offset yet, by token.
        let mut asked: HashMap<u64, (u16, Instant)> = HashMap::new();
        // What was applied before the report of its own request.
        let mut early: HashMap<(u16, u64), Vec<Applied>> = HashMap::new();
        let (mut committed, mut aborted) = (0, 0);
        let (mut from, mut to): (Option<Usage>, Option<Usage>) = (None, None);
        let mut next_mark: Option<Instant> = None;
        let mut reports = Vec::new();
        loop {
            while to.is_none() && asked.len() + under_way.len() < load.window {
                let payload = workload::payload(self.submitter.sent, load.payload)?;
                let now = Instant::now();
                let (token, shard) = self.submitter.ask(&payload)?;
                asked.insert(token, (shard.0, now));
            }
            if asked.is_empty() && under_way.is_empty() {
                break;
            }
            let mut told = Vec::new();
            tokio::select! {
                count = self.submitter.deliveries.recv_many(&mut reports, 4_096) => {
                    if count == 0 { bail!("the producer has ended") }
                    for report in reports.drain(..) {
                        let Some((shard, at)) = asked.remove(&report.token) else { continue };
                        let place = (shard, report.result.context("appending a request")?);
                        under_way.insert(place, UnderWay { asked: at, applied: 0 });
                        told.extend(early.remove(&place).into_iter().flatten());
                    }
                }
                count = self.applied.recv_many(&mut told, 4_096) => {
                    if count == 0 { bail!("the participants have ended") }
                }
                Some(ended) = self.services.join_next() => {
                    ended.context("a service panicked")??;
                    bail!("a service ended by itself");
                }
                () = sleep_until(next_mark.unwrap_or_else(Instant::now)), if next_mark.is_some() => {
                    let usage = Usage::now(committed)?;
                    next_mark = from.is_none().then(|| usage.at + load.time);
                    *(if from.is_none() { &mut from } else { &mut to }) = Some(usage);
                }
                () = sleep(PATIENCE) => bail!("nothing was applied for {} s", PATIENCE.as_secs()),
                _ = interrupted.wait_for(|stop| *stop) => bail!("interrupted"),
            }
            for applied in told {
                let place = (applied.shard, applied.offset);
                let Some(transaction) = under_way.get_mut(&place) else {
                    early.entry(place).or_default().push(applied);
                    continue;
                };
                transaction.applied |= 1 << applied.participant;
                if transaction.applied != self.everybody {
                    continue;
                }
                if next_mark.is_none() && from.is_none() {
                    next_mark = Some(applied.at + WARM_UP.min(load.time));
                }
                match applied.verdict {
                    Verdict::Commit => committed += 1,
                    Verdict::Abort => aborted += 1,
                }
                if from.is_some() && to.is_none() && applied.verdict == Verdict::Commit {
                    latencies.record(micros(applied.at - transaction.asked))?;
                }
                under_way.remove(&place);
            }
        }
        let (Some(from), Some(to)) = (from, to) else { bail!("nothing was measured") };
        let time = (to.at - from.at).as_secs_f64();
        Ok(Loaded {
            rate: (to.committed - from.committed) as f64 / time,
            applied: latencies,
            cores: (to.cpu - from.cpu).as_secs_f64() / time,
            busy: to.busy_since(&from),
            committed,
            aborted,
        })
    }

    /// Ends the services, and with them their connections.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        // Nobody listens any more only if all have ended.
        let _ = self.stop.send(true);
        let mut ended = Ok(());
        while let Some(service) = self.services.join_next().await {
            ended = ended.and(service.context("a service panicked").and_then(|service| service));
        }
        tokio::task::spawn_blocking(move || drop(self.submitter)).await?;
        ended
    }
}

impl Usage {
    fn now(committed: u64) -> anyhow::Result<Self> {
        Ok(Self { at: Instant::now(), cpu: cpu()?, machine: machine(), committed })
    }

    fn busy_since(&self, earlier: &Self) -> Option<f64> {
        let ((busy, all), (busy_before, all_before)) = (self.machine?, earlier.machine?);
        Some((busy - busy_before) as f64 / all.saturating_sub(all_before).max(1) as f64)
    }
}

/// Ticks of all processors since the system was started: busy ones, and all. Linux tells.
fn machine() -> Option<(u64, u64)> {
    const IDLE: usize = 3;
    const WAITS_FOR_DISK: usize = 4;
    // What comes behind is counted in the first columns already.
    const COLUMNS: usize = 8;
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks = text.lines().next()?.split_whitespace().skip(1).take(COLUMNS);
    let ticks: Vec<u64> = ticks.map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let all: u64 = ticks.iter().sum();
    Some((all - ticks.get(IDLE)? - ticks.get(WAITS_FOR_DISK)?, all))
}
