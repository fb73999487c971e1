//! The ingest service: upstream events in, requests and rejections out.
//!
//! ```text
//!   upstream topic -> Consumer -> core::ingest::map (PURE) -> suture.requests, or suture.rejected, or nothing
//!                                                              | acknowledged, or nothing to write
//!                                                              v
//!                               the group's offset: the lowest event that is not done
//! ```
//!
//! An event is done when its request or rejection is acknowledged, or when no rule matches it. After a crash what was not
//! done is read again; a request that was written twice costs a `duplicate`, which the ledgers settle.
//!
//! Beside it runs what drives retryable aborts again (`redrive.rs`), unless no rule asks for that.
//!
//! Left out: HL7 v2, CDC, CloudEvents.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use suture_contract::codec::{Message, encode};
use suture_contract::ids::Origin;
use suture_contract::messages::{Rejection, Request};
use suture_contract::partitioner::shard_of;
use suture_contract::topic_map::{Topic, ingest_group};
use suture_coordinator_core::ingest::rules::Rules;
use suture_coordinator_core::ingest::{Event, Keys, Mapped, map};
use suture_topics::blocking;
use suture_topics::failure::{KafkaFailure, until_answered};
use suture_topics::probe::{Probe, UnfitTopic, refuse_unfit};
use suture_topics::record::Record;
use suture_topics::settings::KafkaSettings;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::appends::{Append, Appends, Ended};
use crate::clients::DRAIN;
use crate::clock;
use crate::consumer::{self, Consumer, Happened, Place};
use crate::redrive;

/// What ingest has done since it started. Shared with whoever shows progress.
#[derive(Debug, Default)]
pub struct IngestCounts {
    /// Events.
    pub read: AtomicU64,
    /// Events of which a request stands in its topic.
    pub requested: AtomicU64,
    /// Events of which a rejection stands in its topic.
    pub rejected: AtomicU64,
    /// Events that no rule takes.
    pub ignored: AtomicU64,
    /// Aborts that were asked for again.
    pub asked_again: AtomicU64,
    /// Aborts that wait for that now.
    pub waiting: AtomicU64,
    /// Retryable aborts that were asked for as often as their rules say.
    pub used_up: AtomicU64,
    /// Retryable aborts that no configured rule has made.
    pub no_rule: AtomicU64,
    /// Retryable aborts whose requests could not be read back, or not written again.
    pub gone: AtomicU64,
}

/// Why ingest ended otherwise than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum IngestFailure {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    /// A protocol topic is not there, or not as configured.
    #[error(transparent)]
    Topic(#[from] UnfitTopic),
    /// An upstream topic is not there.
    #[error(
        "the topic {topic} does not exist: it is an upstream topic that a rule reads; create it (kafka-topics.sh --create), \
         or correct `topics` in the rules"
    )]
    MissingUpstream {
        /// Its name.
        topic: String,
    },
    /// Nothing can be written to a topic, or not even a rejection, the last thing that can be said of an event.
    #[error("{topic} takes nothing for {origin}: {reason}; check that the topic is there and ingest may write to it")]
    Denied {
        /// Which event was to be answered.
        origin: Origin,
        /// What the broker says.
        reason: String,
        /// The topic.
        topic: String,
    },
    /// A client thread went away.
    #[error("the Kafka client threads ended unexpectedly")]
    ClientGone,
}

/// Most appends under way: beyond it nothing more is read.
const MAX_UNDER_WAY: usize = 2_000;
/// How often offsets are committed and retries are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often the summary line is logged.
const SUMMARY: Duration = Duration::from_secs(60);

/// Runs until `shutdown` turns true or its sender is dropped.
///
/// # Errors
/// What cannot pass by itself: missing topics, rights. A restart goes on where this left off.
pub async fn run(
    kafka: KafkaSettings,
    rules: Arc<Rules>,
    keys: Keys,
    counts: Arc<IngestCounts>,
    shutdown: watch::Receiver<bool>,
) -> Result<(), IngestFailure> {
    let ingest = turn_into_requests(kafka.clone(), Arc::clone(&rules), keys, Arc::clone(&counts), shutdown.clone());
    if !rules.drive_again() {
        return ingest.await;
    }
    // Whichever fails ends the other: the process is started again, and goes on with both.
    tokio::try_join!(ingest, redrive::run(kafka, rules, counts, shutdown)).map(|_| ())
}

async fn turn_into_requests(
    kafka: KafkaSettings,
    rules: Arc<Rules>,
    keys: Keys,
    counts: Arc<IngestCounts>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), IngestFailure> {
    let mut ingest = tokio::select! {
        started = Ingest::start(kafka, rules, keys, counts) => started?,
        _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let room = ingest.appends.len() < MAX_UNDER_WAY;
        tokio::select! {
            ended = ingest.appends.ended() => ingest.on_ended(ended?)?,
            happened = ingest.consumer.next(room) => happened?.into_iter().for_each(|event| ingest.on_event(event)),
            _ = tick.tick() => ingest.on_tick(),
            _ = shutdown.wait_for(|stop| *stop) => break,
        }
    }
    ingest.drain().await
}

/// Brokers may be away while this process starts; topics that are missing are somebody's mistake.
async fn look_for_topics(kafka: &KafkaSettings, probe: &Arc<Probe>, upstream: &[String]) -> Result<(), IngestFailure> {
    let own = [Topic::Requests, Topic::Rejected, Topic::Outcomes].map(|topic| topic.name(&kafka.prefix));
    let needed: Vec<String> = upstream.iter().chain(&own).cloned().collect();
    let topics = {
        let probe = Arc::clone(probe);
        until_answered(move || probe.topics_with(&needed.iter().map(String::as_str).collect::<Vec<_>>())).await?
    };
    match upstream.iter().find(|topic| !topics.contains_key(*topic)) {
        Some(topic) => Err(IngestFailure::MissingUpstream { topic: topic.clone() }),
        None => Ok(refuse_unfit(&topics, &own, kafka.partitions)?),
    }
}

/// The event that an append answers.
struct Answer {
    origin: Origin,
    is_request: bool,
}

struct Ingest {
    kafka: KafkaSettings,
    rules: Arc<Rules>,
    keys: Keys,
    counts: Arc<IngestCounts>,

    consumer: Consumer,
    appends: Appends<Answer>,
    probe: Arc<Probe>,
    /// Read and not done, of each partition that is read.
    pending: BTreeMap<Place, BTreeSet<u64>>,
    last_summary: Instant,
}

impl Ingest {
    async fn start(
        kafka: KafkaSettings,
        rules: Arc<Rules>,
        keys: Keys,
        counts: Arc<IngestCounts>,
    ) -> Result<Self, IngestFailure> {
        let upstream: Vec<String> = rules.topics().into_iter().map(str::to_string).collect();
        let probe = Arc::new(Probe::start(&kafka)?);
        look_for_topics(&kafka, &probe, &upstream).await?;
        let started = {
            let (kafka, probe, upstream) = (kafka.clone(), Arc::clone(&probe), upstream.clone());
            blocking::spawn(move || -> Result<_, KafkaFailure> {
                let appends = Appends::start(&kafka, "ingest")?;
                Ok((appends, Consumer::start(&kafka, &probe, &ingest_group(&kafka.prefix), &upstream)?))
            })
        };
        let (appends, consumer) = started.await.map_err(|_| IngestFailure::ClientGone)??;
        info!(prefix = %kafka.prefix, bootstrap = %kafka.bootstrap, upstream = upstream.join(","), "ingest started");
        let (pending, last_summary) = (BTreeMap::new(), clock::now());
        Ok(Self { kafka, rules, keys, counts, consumer, appends, probe, pending, last_summary })
    }

    // Events.

    fn on_event(&mut self, happened: Happened) {
        match happened {
            Happened::Begun { place, .. } => drop(self.pending.insert(place, BTreeSet::new())),
            Happened::Left(place) => drop(self.pending.remove(&place)),
            Happened::Records(records) => records.iter().for_each(|record| self.on_record(record)),
            Happened::Revoked => self.consumer.commit_now(|place, next| lowest(&self.pending, place, next)),
        }
    }

    fn on_record(&mut self, record: &Record) {
        self.counts.read.fetch_add(1, Ordering::Relaxed);
        let event = Event {
            topic: &record.topic,
            partition: record.partition,
            offset: record.offset as i64,
            value: record.value.as_deref(),
        };
        let append = match map(&self.rules, &self.keys, &event) {
            Mapped::Ignored { .. } => {
                self.counts.ignored.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Mapped::Request { order_key, request } => Append {
                about: Answer { origin: origin(record), is_request: true },
                topic: Topic::Requests.name(&self.kafka.prefix),
                partition: shard_of(order_key.as_str().as_bytes(), self.kafka.partitions).partition(),
                key: order_key.to_string().into_bytes(),
                value: encode(&*request),
                kind: Request::TYPE,
                traceparent: record.traceparent.clone(),
                remark: None,
            },
            Mapped::Rejected(rejection) => self.rejection(rejection, record.traceparent.clone()),
        };
        if let Some(pending) = self.pending.get_mut(&consumer::place_of(record)) {
            pending.insert(record.offset);
        }
        self.appends.send(append);
    }

    fn on_ended(&mut self, ended: Vec<Ended<Answer>>) -> Result<(), IngestFailure> {
        for ended in ended {
            match ended {
                Ended::Written(append) => self.done(&append.about),
                Ended::Refused(append, reason) if append.about.is_request => {
                    let origin = append.about.origin;
                    warn!(%origin, reason, "the broker refuses the request");
                    let code = "request_refused".parse().expect("Suture's own codes are valid");
                    let rejection = self.rejection(Rejection { origin, code, field: None }, append.traceparent);
                    self.appends.send(rejection);
                }
                Ended::Refused(append, reason) | Ended::Denied(append, reason) => {
                    return Err(IngestFailure::Denied { origin: append.about.origin, reason, topic: append.topic });
                }
            }
        }
        Ok(())
    }

    fn on_tick(&mut self) {
        self.appends.on_tick();
        self.consumer.commit(|place, next| lowest(&self.pending, place, next));
        let now = clock::now();
        if now - self.last_summary >= SUMMARY {
            self.last_summary = now;
            self.summarise();
        }
    }

    fn rejection(&self, rejection: Rejection, traceparent: Option<String>) -> Append<Answer> {
        let key = rejection.origin.to_string();
        warn!(origin = key, code = %rejection.code, field = rejection.field, "an event was rejected");
        Append {
            about: Answer { origin: rejection.origin.clone(), is_request: false },
            topic: Topic::Rejected.name(&self.kafka.prefix),
            partition: shard_of(key.as_bytes(), self.kafka.partitions).partition(),
            key: key.into_bytes(),
            value: encode(&rejection),
            kind: Rejection::TYPE,
            traceparent,
            remark: None,
        }
    }

    fn done(&mut self, answer: &Answer) {
        let counter = if answer.is_request { &self.counts.requested } else { &self.counts.rejected };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(pending) = self.pending.get_mut(&(answer.origin.topic.clone(), answer.origin.partition)) {
            pending.remove(&(answer.origin.offset as u64));
        }
    }

    // Summary and end.

    fn summarise(&mut self) {
        let (failed_appends, under_way) = (self.appends.take_failed(), self.appends.len());
        let (counts, read, probe) = (Arc::clone(&self.counts), self.consumer.read(), Arc::clone(&self.probe));
        blocking::spawn(move || {
            info!(
                partitions = read.len(),
                lag = consumer::lag(&probe, &read),
                under_way,
                failed_appends,
                read = counts.read.load(Ordering::Relaxed),
                requested = counts.requested.load(Ordering::Relaxed),
                rejected = counts.rejected.load(Ordering::Relaxed),
                ignored = counts.ignored.load(Ordering::Relaxed),
                asked_again = counts.asked_again.load(Ordering::Relaxed),
                waiting = counts.waiting.load(Ordering::Relaxed),
                used_up = counts.used_up.load(Ordering::Relaxed),
                no_rule = counts.no_rule.load(Ordering::Relaxed),
                gone = counts.gone.load(Ordering::Relaxed),
                "summary"
            );
        });
    }

    async fn drain(mut self) -> Result<(), IngestFailure> {
        info!(under_way = self.appends.len(), "stopping: waiting for the appends under way");
        let deadline = clock::now() + DRAIN;
        while self.appends.is_flying() {
            match tokio::time::timeout_at(deadline, self.appends.ended()).await {
                Ok(ended) => self.on_ended(ended?)?,
                Err(_) => break,
            }
        }
        self.consumer.commit_now(|place, next| lowest(&self.pending, place, next));
        let ended = self.consumer.end(deadline, self.appends.into_outbox());
        ended.await.map_err(|_| IngestFailure::ClientGone)?;
        info!("ingest stopped");
        Ok(())
    }
}

/// Everything before it is done.
fn lowest(pending: &BTreeMap<Place, BTreeSet<u64>>, place: &Place, next: u64) -> u64 {
    pending.get(place).and_then(|pending| pending.first()).copied().unwrap_or(next)
}

fn origin(record: &Record) -> Origin {
    Origin { topic: record.topic.to_string(), partition: record.partition, offset: record.offset as i64 }
}
