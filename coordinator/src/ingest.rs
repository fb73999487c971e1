//! The ingest service: upstream events in, requests and rejections out.
//!
//! ```text
//!   upstream topic -> Reader -> core::ingest::map (PURE) -> suture.requests, or suture.rejected, or nothing
//!                                                              | acknowledged, or nothing to write
//!                                                              v
//!                               the group's offset: the lowest event that is not done
//! ```
//!
//! An event is done when its request or rejection is acknowledged, or when no rule matches it. After a crash what was not
//! done is read again; a request that was written twice costs a `duplicate`, which the ledgers settle.
//!
//! Left out: driving aborted requests again, HL7 v2, CDC, CloudEvents.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use suture_contract::codec::{Message, encode};
use suture_contract::ids::{LogLetters, Origin};
use suture_contract::messages::{Rejection, Request};
use suture_contract::partitioner::shard_of;
use suture_contract::topic_map::{Topic, ingest_group};
use suture_coordinator_core::ingest::rules::Rules;
use suture_coordinator_core::ingest::{Event, Keys, Mapped, map};
use suture_topics::failure::{KafkaFailure, until_answered};
use suture_topics::membership::{Commit, CommitError, Committing, MemberEvent, Membership};
use suture_topics::outbox::{Delivery, Failure, Outbox};
use suture_topics::probe::{Probe, TopicInfo};
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::record::Record;
use suture_topics::settings::KafkaSettings;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::clients::{self, DRAIN, answered};
use crate::clock;
use crate::under_way::UnderWay;

/// What ingest has done since it started. Shared with whoever shows progress.
#[derive(Debug, Default)]
#[expect(missing_docs)]
pub struct IngestCounts {
    pub read: AtomicU64,
    pub requested: AtomicU64,
    pub rejected: AtomicU64,
    pub ignored: AtomicU64,
}

/// Why ingest ended otherwise than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum IngestFailure {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    /// A topic is not there.
    #[error("the topic {topic} does not exist: {remedy}")]
    MissingTopic {
        /// Its full name.
        topic: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A protocol topic has another partition count than configured.
    #[error(
        "the topic {topic} has {found} partitions and [kafka] partitions says {expected}: see `suture topics check`"
    )]
    WrongPartitions {
        /// Its full name.
        topic: String,
        /// What the broker says.
        found: u16,
        /// What the configuration says.
        expected: u16,
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
/// A failed append waits this long before it is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How often offsets are committed and retries are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often the summary line is logged.
const SUMMARY: Duration = Duration::from_secs(60);
/// How often an end below the committed offset is looked at again, and the pause between two such looks.
const LOOKS: u32 = 6;
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Runs until `shutdown` turns true or its sender is dropped.
///
/// # Errors
/// What cannot pass by itself: missing topics, rights. A restart goes on where this left off.
pub async fn run(
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
    let mut reports = Vec::new();
    loop {
        let room = ingest.under_way.len() + ingest.retries.len() < MAX_UNDER_WAY;
        tokio::select! {
            count = ingest.deliveries.recv_many(&mut reports, 4_096) => {
                if count == 0 { return Err(IngestFailure::ClientGone) }
                for report in reports.drain(..) { ingest.on_delivery(report)? }
            }
            event = ingest.reader_events.recv(), if room => ingest.on_reader(event.ok_or(IngestFailure::ClientGone)?)?,
            event = ingest.member_events.recv() => ingest.on_member(event.ok_or(IngestFailure::ClientGone)?)?,
            Some((topic, partition, start)) = ingest.starts.recv() => ingest.on_start(topic, partition, start)?,
            answer = answered(&mut ingest.committing) => {
                ingest.committing = None;
                if let Err(failure) = answer { ingest.on_uncommitted(&failure) }
            }
            _ = tick.tick() => ingest.on_tick(),
            _ = shutdown.wait_for(|stop| *stop) => break,
        }
    }
    ingest.drain().await
}

/// Brokers may be away while this process starts; topics that are missing are somebody's mistake.
async fn look_for_topics(kafka: &KafkaSettings, probe: &Arc<Probe>, upstream: &[String]) -> Result<(), IngestFailure> {
    let own = [Topic::Requests, Topic::Rejected].map(|topic| topic.name(&kafka.prefix));
    let needed: Vec<String> = upstream.iter().chain(&own).cloned().collect();
    let topics = {
        let (probe, needed) = (Arc::clone(probe), needed.clone());
        until_answered(move || probe.topics_with(&needed.iter().map(String::as_str).collect::<Vec<_>>())).await?
    };
    // A request in another shard than its key's would be rejected, and its event lost.
    for topic in &own {
        if let Some(found) = topics.get(topic).map(TopicInfo::partitions).filter(|found| *found != kafka.partitions) {
            return Err(IngestFailure::WrongPartitions { topic: topic.clone(), found, expected: kafka.partitions });
        }
    }
    let Some(topic) = needed.into_iter().find(|name| !topics.contains_key(name)) else { return Ok(()) };
    let remedy = match own.contains(&topic) {
        true => "create the topics with `suture topics apply`",
        false => {
            "it is an upstream topic that a rule reads; create it (kafka-topics.sh --create), or correct `topics` in the \
             rules"
        }
    };
    Err(IngestFailure::MissingTopic { topic, remedy })
}

/// Where reading of a partition starts.
struct Beginning {
    offset: u64,
    /// Of the topic that there is now; they stand beside each committed offset.
    letters: LogLetters,
    /// What happened to the events before it, if it is worth an error.
    remark: Option<&'static str>,
}

type Start = Result<Beginning, KafkaFailure>;

/// One upstream partition.
struct Partition {
    letters: LogLetters,
    next: u64,
    /// The reader has begun at the offset it was told; records until then are older ones.
    positioned: bool,
    /// Read and not done.
    pending: BTreeSet<u64>,
    committed: Option<u64>,
}

/// One append, kept until it is acknowledged.
struct Append {
    origin: Origin,
    topic: Topic,
    partition: i32,
    key: String,
    value: Vec<u8>,
    kind: &'static str,
    traceparent: Option<String>,
}

struct Ingest {
    kafka: KafkaSettings,
    rules: Arc<Rules>,
    keys: Keys,
    counts: Arc<IngestCounts>,

    outbox: Outbox,
    reader: Reader,
    membership: Arc<Membership>,
    probe: Arc<Probe>,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    reader_events: mpsc::Receiver<ReaderEvent>,
    member_events: mpsc::Receiver<MemberEvent>,
    starts: mpsc::UnboundedReceiver<(String, i32, Start)>,
    post_start: mpsc::UnboundedSender<(String, i32, Start)>,

    starting: BTreeSet<(String, i32)>,
    partitions: BTreeMap<(String, i32), Partition>,
    under_way: UnderWay<Append>,
    retries: VecDeque<(Instant, Append)>,
    committing: Option<Committing>,
    last_summary: Instant,
    /// Since the last summary.
    failed_appends: u64,
}

impl Ingest {
    async fn start(
        kafka: KafkaSettings,
        rules: Arc<Rules>,
        keys: Keys,
        counts: Arc<IngestCounts>,
    ) -> Result<Self, IngestFailure> {
        let (post_delivery, deliveries) = mpsc::unbounded_channel();
        let (post_reader, reader_events) = mpsc::channel(16);
        let (post_member, member_events) = mpsc::channel(16);
        let (post_start, starts) = mpsc::unbounded_channel();
        let upstream: Vec<String> = rules.topics().into_iter().map(str::to_string).collect();
        let probe = Arc::new(Probe::start(&kafka)?);
        look_for_topics(&kafka, &probe, &upstream).await?;
        let started = tokio::task::spawn_blocking(move || -> Result<_, IngestFailure> {
            let group = ingest_group(&kafka.prefix);
            let outbox = Outbox::start(&kafka, "ingest", move |delivery| {
                // The receiver goes away only with the whole service.
                let _ = post_delivery.send(delivery);
            })?;
            let reader = Reader::start(&kafka, &group, post_reader)?;
            let membership = Membership::start(&kafka, &group, &upstream, post_member)?;
            Ok((kafka, upstream, outbox, reader, membership))
        });
        let (kafka, upstream, outbox, reader, membership) = started.await.map_err(|_| IngestFailure::ClientGone)??;
        info!(prefix = %kafka.prefix, bootstrap = %kafka.bootstrap, upstream = upstream.join(","), "ingest started");
        Ok(Self {
            kafka,
            rules,
            keys,
            counts,
            outbox,
            reader,
            membership: Arc::new(membership),
            probe,
            deliveries,
            reader_events,
            member_events,
            starts,
            post_start,
            starting: BTreeSet::new(),
            partitions: BTreeMap::new(),
            under_way: UnderWay::default(),
            retries: VecDeque::new(),
            committing: None,
            last_summary: clock::now(),
            failed_appends: 0,
        })
    }

    // Events.

    fn on_member(&mut self, event: MemberEvent) -> Result<(), IngestFailure> {
        match event {
            MemberEvent::Assigned(assigned) => {
                let assigned: BTreeSet<(String, i32)> = assigned.into_iter().collect();
                let gone: Vec<_> = self.partitions.keys().filter(|key| !assigned.contains(key)).cloned().collect();
                for (topic, partition) in gone {
                    self.reader.remove(&[(&topic, partition)]);
                    self.partitions.remove(&(topic, partition));
                }
                self.starting.retain(|key| assigned.contains(key));
                for (topic, partition) in assigned {
                    if !self.partitions.contains_key(&(topic.clone(), partition)) {
                        self.look_up_start(topic, partition);
                    }
                }
            }
            MemberEvent::Revoked(_) => self.commit(),
            MemberEvent::Lost => warn!("the group has taken this process for dead; joining again"),
            MemberEvent::Failed(failure) if failure.is_fatal() => return Err(failure.into()),
            MemberEvent::Failed(failure) => warn!(%failure, "group membership"),
        }
        Ok(())
    }

    fn on_start(&mut self, topic: String, partition: i32, start: Start) -> Result<(), IngestFailure> {
        if !self.starting.remove(&(topic.clone(), partition)) {
            return Ok(());
        }
        match start {
            Ok(Beginning { offset, letters, remark }) => {
                if let Some(remark) = remark {
                    error!(topic, partition, offset, "{remark}");
                }
                self.reader.seek(&topic, partition, offset);
                let (positioned, pending, committed) = (false, BTreeSet::new(), None);
                self.partitions
                    .insert((topic, partition), Partition { letters, next: offset, positioned, pending, committed });
            }
            Err(failure) if failure.is_fatal() => return Err(failure.into()),
            Err(failure) => {
                warn!(topic, partition, %failure, "looking up where to start");
                self.look_up_start(topic, partition);
            }
        }
        Ok(())
    }

    fn on_reader(&mut self, event: ReaderEvent) -> Result<(), IngestFailure> {
        match event {
            ReaderEvent::Records(records) => records.iter().for_each(|record| self.on_record(record)),
            ReaderEvent::Positioned { topic, partition, offset } => {
                if let Some(partition) = self.partitions.get_mut(&(topic.to_string(), partition)) {
                    partition.positioned |= partition.next == offset;
                }
            }
            ReaderEvent::OutOfRange { topic, partition } => {
                // Of a partition that went to another member since, it is old news.
                if self.partitions.remove(&(topic.to_string(), partition)).is_some() {
                    self.look_up_start(topic.to_string(), partition);
                }
            }
            ReaderEvent::Failed(failure) if failure.is_fatal() => return Err(failure.into()),
            ReaderEvent::Failed(failure) => warn!(%failure, "reading"),
        }
        Ok(())
    }

    fn on_record(&mut self, record: &Record) {
        let place = (record.topic.to_string(), record.partition);
        let Some(partition) = self.partitions.get_mut(&place) else { return };
        if !partition.positioned || record.offset < partition.next {
            return;
        }
        partition.next = record.offset + 1;
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
                origin: origin(record),
                topic: Topic::Requests,
                partition: shard_of(order_key.as_str().as_bytes(), self.kafka.partitions).partition(),
                key: order_key.to_string(),
                value: encode(&*request),
                kind: Request::TYPE,
                traceparent: record.traceparent.clone(),
            },
            Mapped::Rejected(rejection) => self.rejection(rejection, record.traceparent.clone()),
        };
        if let Some(partition) = self.partitions.get_mut(&place) {
            partition.pending.insert(record.offset);
        }
        self.send(append);
    }

    fn on_delivery(&mut self, report: Delivery) -> Result<(), IngestFailure> {
        let Some(append) = self.under_way.take(report.token) else { return Ok(()) };
        match report.result {
            Ok(_) => self.done(&append),
            Err(Failure::Again(reason)) => {
                self.failed_appends += 1;
                if self.failed_appends == 1 {
                    warn!(origin = %append.origin, reason, "an append failed and is sent again; the summary counts more");
                }
                self.retries.push_back((clock::now() + RETRY_PAUSE, append));
            }
            Err(Failure::Refused(reason)) if append.topic == Topic::Requests => {
                warn!(origin = %append.origin, reason, "the broker refuses the request");
                let code = "request_refused".parse().expect("Suture's own codes are valid");
                let rejection = Rejection { origin: append.origin, code, field: None };
                let append = self.rejection(rejection, append.traceparent);
                self.send(append);
            }
            Err(Failure::Refused(reason) | Failure::Denied(reason)) => {
                let topic = append.topic.name(&self.kafka.prefix);
                return Err(IngestFailure::Denied { origin: append.origin, reason, topic });
            }
            Err(Failure::Fatal(reason)) => return Err(KafkaFailure::Fatal(reason).into()),
        }
        Ok(())
    }

    fn on_tick(&mut self) {
        let now = clock::now();
        while self.retries.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, append)) = self.retries.pop_front() {
                self.send(append);
            }
        }
        if self.committing.is_none() {
            self.commit();
        }
        if now - self.last_summary >= SUMMARY {
            self.last_summary = now;
            self.summarise();
        }
    }

    // Appends.

    fn rejection(&self, rejection: Rejection, traceparent: Option<String>) -> Append {
        let key = rejection.origin.to_string();
        warn!(origin = key, code = %rejection.code, field = rejection.field, "an event was rejected");
        Append {
            origin: rejection.origin.clone(),
            topic: Topic::Rejected,
            partition: shard_of(key.as_bytes(), self.kafka.partitions).partition(),
            key,
            value: encode(&rejection),
            kind: Rejection::TYPE,
            traceparent,
        }
    }

    fn send(&mut self, append: Append) {
        let topic = append.topic.name(&self.kafka.prefix);
        let (partition, kind) = (append.partition, append.kind);
        let (key, value, traceparent) = (append.key.clone(), append.value.clone(), append.traceparent.clone());
        let token = self.under_way.put(append);
        let sent =
            self.outbox.append(&topic, partition, key.as_bytes(), Some(&value), kind, traceparent.as_deref(), token);
        if sent.is_err()
            && let Some(append) = self.under_way.take(token)
        {
            self.retries.push_back((clock::now() + RETRY_PAUSE, append));
        }
    }

    fn done(&mut self, append: &Append) {
        let counter = match append.topic {
            Topic::Requests => &self.counts.requested,
            _ => &self.counts.rejected,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let key = (append.origin.topic.clone(), append.origin.partition);
        if let Some(partition) = self.partitions.get_mut(&key) {
            partition.pending.remove(&(append.origin.offset as u64));
        }
    }

    // Offsets.

    fn look_up_start(&mut self, topic: String, partition: i32) {
        if !self.starting.insert((topic.clone(), partition)) {
            return;
        }
        let (member, probe, post) = (Arc::clone(&self.membership), Arc::clone(&self.probe), self.post_start.clone());
        tokio::task::spawn_blocking(move || {
            let start = start_of(&member, &probe, &topic, partition);
            if start.is_err() {
                std::thread::sleep(RETRY_PAUSE);
            }
            // The receiver goes away only with the whole service.
            let _ = post.send((topic, partition, start));
        });
    }

    fn commit(&mut self) {
        let mut commits = Vec::new();
        for ((topic, number), partition) in &mut self.partitions {
            let done = partition.pending.first().copied().unwrap_or(partition.next);
            if partition.committed != Some(done) {
                partition.committed = Some(done);
                let (topic, metadata) = (topic.clone(), partition.letters.to_string());
                commits.push(Commit { topic, partition: *number, offset: done, metadata });
            }
        }
        if !commits.is_empty() {
            self.committing = Some(self.membership.commit_async(commits));
        }
    }

    /// What passes is committed again with the next tick, so that the group's lag does not stay behind.
    fn on_uncommitted(&mut self, failure: &CommitError) {
        match failure {
            CommitError::NotMember(reason) => debug!(reason, "offsets were not committed"),
            CommitError::Again(_) | CommitError::Refused(_) => warn!(%failure, "offsets were not committed"),
        }
        if !matches!(failure, CommitError::Refused(_)) {
            self.partitions.values_mut().for_each(|partition| partition.committed = None);
        }
    }

    // Summary and end.

    fn summarise(&mut self) {
        let failed_appends = std::mem::take(&mut self.failed_appends);
        let counts = Arc::clone(&self.counts);
        let read: Vec<_> = self.partitions.iter().map(|(key, partition)| (key.clone(), partition.next)).collect();
        let (probe, under_way) = (Arc::clone(&self.probe), self.under_way.len());
        tokio::task::spawn_blocking(move || {
            let behind = |((topic, partition), next): &((String, i32), u64)| {
                probe.watermarks(topic, *partition).ok().map(|(_, end)| end.saturating_sub(*next))
            };
            // Without an answer for one partition the others are not asked: each would take its time, and hold up a shutdown.
            let lag: Option<u64> = read.iter().map(behind).sum();
            info!(
                partitions = read.len(),
                lag,
                under_way,
                failed_appends,
                read = counts.read.load(Ordering::Relaxed),
                requested = counts.requested.load(Ordering::Relaxed),
                rejected = counts.rejected.load(Ordering::Relaxed),
                ignored = counts.ignored.load(Ordering::Relaxed),
                "summary"
            );
        });
    }

    async fn drain(mut self) -> Result<(), IngestFailure> {
        info!(under_way = self.under_way.len(), "stopping: waiting for the appends under way");
        let deadline = clock::now() + DRAIN;
        while self.under_way.len() > 0 {
            match tokio::time::timeout_at(deadline, self.deliveries.recv()).await {
                Ok(Some(report)) => self.on_delivery(report)?,
                Ok(None) | Err(_) => break,
            }
        }
        self.commit();
        drop((self.reader_events, self.member_events));
        let ended = clients::end(self.committing, deadline, self.membership, self.reader, self.outbox);
        ended.await.map_err(|_| IngestFailure::ClientGone)?;
        info!("ingest stopped");
        Ok(())
    }
}

fn origin(record: &Record) -> Origin {
    Origin { topic: record.topic.to_string(), partition: record.partition, offset: record.offset as i64 }
}

/// The committed offset, else the log's start: what is there was never read. So it is in a topic that was deleted and created
/// again; without letters (an operator's tool writes none) that shows only by an offset past the end.
fn start_of(member: &Membership, probe: &Probe, topic: &str, partition: i32) -> Start {
    let letters = probe.letters(topic)?;
    let Some(committed) = member.committed(&[(topic, partition)])?.into_iter().next().flatten() else {
        return Ok(Beginning { offset: probe.watermarks(topic, partition)?.0, letters, remark: None });
    };
    let is_foreign = !committed.metadata.is_empty() && committed.metadata != letters.as_str();
    let (mut start, mut end) = probe.watermarks(topic, partition)?;
    for _ in 0..LOOKS {
        if is_foreign || committed.offset <= end {
            break;
        }
        // A leader that was cut off shows an old end.
        std::thread::sleep(LOOK_PAUSE);
        (start, end) = probe.watermarks(topic, partition)?;
    }
    let (offset, remark) = if is_foreign || committed.offset > end {
        (start, Some("the upstream topic was created again since it was read, and is read from its start"))
    } else if committed.offset < start {
        (start, Some("events left the upstream topic before they were read: they are lost to Suture"))
    } else {
        (committed.offset, None)
    };
    Ok(Beginning { offset, letters, remark })
}
