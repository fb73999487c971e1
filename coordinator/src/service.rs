//! The coordinator's service: three beats around the pure shards.
//!
//! ```text
//!   select one event  ->  apply it to its shard, synchronously  ->  carry out the shard's Step
//! ```
//!
//! One task owns all shards of this process; there is no lock. Everything that blocks (watermarks, committed offsets, the
//! commit of positions) runs on threads of its own and comes back as an event. Rebalances only post one.
//!
//! The way of a shard through this file:
//!
//! ```text
//!   Assigned -> look up positions and ends (takeover.rs) -> Loading: requests to their end
//!            -> Loading: votes and decisions to their ends -> Live: go_live, then a step after every event
//!   Revoked  -> positions are committed; the shard works on until an assignment lacks it (two owners decide alike)
//!   below a log's start, or a gap in this loop -> the shard is taken anew
//!   Stop     -> the shard is put away with one clear error; the others go on
//! ```
//!
//! Left out: a hot standby, the metrics endpoint.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use suture_contract::codec::{Message, encode};
use suture_contract::ids::{LogLetters, Participant, Shard as ShardId, Txid};
use suture_contract::topic_map::{Topic, coordinator_group};
use suture_coordinator_core::positions::{Positions, TopicIds};
use suture_coordinator_core::shard::{self, Alarm, Append, Limits, LookedFor, Raw, Shard, Step, VoidVote, What};
use suture_topics::blocking;
use suture_topics::failure::{KafkaFailure, until_answered};
use suture_topics::membership::{Commit, CommitError, Committing, MemberEvent, Membership};
use suture_topics::outbox::{Delivery, Failure, Outbox};
use suture_topics::probe::{Probe, UnfitTopic, refuse_unfit};
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::record::Record;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::cleanup::{CleanUp, CleanUpSettings};
use crate::clients::{self, DRAIN, answered};
use crate::clock;
use crate::passing::{Passed, PassedDecision};
use crate::recall::{MOST_RECALLS, Recalled, recall};
use crate::seek::{Sought, seek};
use crate::takeover::{Start, TakeOver, TakeOverFailure, is_served, look_up_ids};
use crate::under_way::UnderWay;

/// How the coordinator runs, beside Kafka.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoordinatorSettings {
    /// Most transactions in a shard's window before its requests are paused.
    pub window: usize,
    /// Most votes of one participant, in one shard, held for requests that were not read yet.
    pub held_votes: usize,
    /// How often positions are committed, in milliseconds.
    pub commit_interval_ms: u64,
    /// How often the summary line is logged, in seconds.
    pub summary_interval_s: u64,
    /// How the decision log is cleaned up.
    pub cleanup: CleanUpSettings,
    /// Records of the decision log that are passed.
    pub pass: Vec<PassedDecision>,
}

impl Default for CoordinatorSettings {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            window: limits.window,
            held_votes: limits.held_votes,
            commit_interval_ms: 100,
            summary_interval_s: 60,
            cleanup: CleanUpSettings::default(),
            pass: Vec::new(),
        }
    }
}

/// Why the coordinator ended otherwise than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorFailure {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    /// A protocol topic is not there, or not as configured.
    #[error(transparent)]
    Topic(#[from] UnfitTopic),
    /// At shutdown at least one shard was stopped.
    #[error("{0} shard(s) had stopped; their errors are in the log above")]
    StoppedShards(usize),
    /// A client thread went away.
    #[error("the Kafka client threads ended unexpectedly")]
    ClientGone,
}

/// Most appends under way: beyond it nothing more is sent until reports come in.
const MAX_UNDER_WAY: usize = 20_000;
/// Most messages of one shard's step, so that one shard's backlog does not keep the others waiting.
const STEP_BUDGET: usize = 2_000;
/// A failed append waits this long before it is due again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long the loop may stand still before its shards are taken anew: deadlines seen before the gap are stale.
const LONGEST_GAP: Duration = Duration::from_secs(5);
/// Positions of an idle shard are written again, so that they never fall behind what the logs still hold.
const IDLE_COMMIT: Duration = Duration::from_secs(60);
/// How long a shutdown waits for the clean-up, which has nothing to lose.
const CLEAN_UP_ENDS: Duration = Duration::from_secs(2);
/// How often it is looked up whether a participant without topics has got them.
const MISSING_RECHECK: Duration = Duration::from_secs(5);

/// A log may be long; but a load without an end looks the same.
const STILL_READING: &str = "still reading these logs to the ends that they had; if this does not pass, somebody wrote with \
    Kafka transactions there: a log that ends with such a marker is read to its end when the next record comes";

/// Runs until `shutdown` turns true or its sender is dropped.
///
/// # Errors
/// What cannot pass by itself: missing topics, rights, a stopped shard at the end. A restart replays everything.
pub async fn run(
    kafka: KafkaSettings,
    settings: CoordinatorSettings,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), CoordinatorFailure> {
    let mut service = tokio::select! {
        started = Service::start(kafka, settings) => started?,
        _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
    };
    let mut reports = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_millis(service.settings.commit_interval_ms.clamp(1, 1_000)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let deadline = service.next_wake();
        tokio::select! {
            count = service.deliveries.recv_many(&mut reports, 4_096) => {
                if count == 0 { return Err(CoordinatorFailure::ClientGone) }
                for report in reports.drain(..) { service.on_delivery(report)? }
            }
            event = service.reader_events.recv() => service.on_reader(event.ok_or(CoordinatorFailure::ClientGone)?)?,
            event = service.member_events.recv() => service.on_member(event.ok_or(CoordinatorFailure::ClientGone)?)?,
            Some(looked_up) = service.look_ups.recv() => service.on_look_up(looked_up)?,
            answer = answered(&mut service.committing) => {
                service.committing = None;
                if let Err(failure) = answer { service.on_uncommitted(&failure) }
            }
            _ = tick.tick() => service.on_tick()?,
            () = tokio::time::sleep_until(deadline) => {}
            _ = shutdown.wait_for(|stop| *stop) => break,
        }
        service.step_all();
    }
    service.drain().await
}

/// What a blocking look-up found.
enum LookUp {
    /// Where to start a shard.
    TakeOver(ShardId, Result<Start, TakeOverFailure>),
    /// Which of these participants have topics, and where their votes partitions start and end, by shard.
    Standing(BTreeSet<Participant>, Result<Vec<Standing>, KafkaFailure>),
    /// Requests that were read once more; the scanner is free again.
    Recalled(Scanner, Vec<Recalled>),
    /// What the decision log says of these transactions of a shard.
    Sought(ShardId, Vec<Txid>, Result<Sought, ScanFailure>),
}

/// One participant's answer to a look-up.
struct Standing {
    participant: Participant,
    topic_id: Option<[u8; 16]>,
    /// (shard, start, end) of its votes partitions; empty if it has no topics.
    votes: Vec<(ShardId, u64, u64)>,
}

/// A shard that this process owns.
struct Tenure {
    shard: Shard,
    phase: Phase,
    /// The ends that are still to be reached.
    behind: BTreeMap<Topic, u64>,
    /// Logs that are not read for this tenure yet, and from where they will be (`None`: not asked for yet). Records of theirs
    /// that come all the same were read for an earlier tenure: one that counted would hide those before it.
    awaited: BTreeMap<Topic, Option<u64>>,
    committed: Option<(Positions, Instant)>,
    requests_paused: bool,
    dirty: bool,
}

enum Phase {
    /// Reading the requests to the end that they had; these logs (start, end) come after them.
    Requests { later: Vec<(u64, u64, Topic)> },
    /// Reading votes and decisions to the ends that they had.
    Registers,
    /// Acting.
    Live,
}

struct Service {
    kafka: KafkaSettings,
    settings: CoordinatorSettings,
    letters: LogLetters,
    names: HashMap<Arc<str>, Topic>,
    ids: TopicIds,
    passed: Passed,

    outbox: Outbox,
    reader: Reader,
    membership: Arc<Membership>,
    probe: Arc<Probe>,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    reader_events: mpsc::Receiver<ReaderEvent>,
    member_events: mpsc::Receiver<MemberEvent>,
    look_ups: mpsc::UnboundedReceiver<LookUp>,
    post_look_up: mpsc::UnboundedSender<LookUp>,
    clean_up: Option<CleanUp>,

    /// Shards of the last assignment whose positions are being looked up.
    taking: BTreeSet<ShardId>,
    tenures: BTreeMap<ShardId, Tenure>,
    /// As they were when they stopped, if they had been loaded: what waits in them is still counted.
    stopped: BTreeMap<ShardId, Option<Shard>>,

    under_way: UnderWay<(ShardId, What)>,
    retries: VecDeque<(Instant, ShardId, What)>,
    committing: Option<Committing>,
    asked: BTreeSet<Participant>,
    asking: bool,
    /// Requests to read once more, and who does: away while it reads.
    recalls: BTreeSet<(ShardId, u64)>,
    scanner: Option<Scanner>,
    /// Transactions whose decisions are to be looked for, by shard, and whether that is under way for one.
    seeks: BTreeMap<ShardId, Vec<Txid>>,
    seeking: bool,
    missing_checked: Instant,
    started: Instant,
    last_loop: Instant,
    last_summary: Instant,
    void_votes: BTreeMap<VoidVote, u64>,
    /// Since the last summary.
    failed_appends: u64,
    /// Counts rounds of steps.
    rounds: usize,
}

impl Service {
    async fn start(kafka: KafkaSettings, settings: CoordinatorSettings) -> Result<Self, CoordinatorFailure> {
        let (post_delivery, deliveries) = mpsc::unbounded_channel();
        let (post_reader, reader_events) = mpsc::channel(64);
        let (post_member, member_events) = mpsc::channel(64);
        let (post_look_up, look_ups) = mpsc::unbounded_channel();
        let probe = Arc::new(Probe::start(&kafka)?);
        let known = Known::look_up(&kafka, &probe).await?;
        let started = blocking::spawn(move || -> Result<_, CoordinatorFailure> {
            let group = coordinator_group(&kafka.prefix);
            let outbox = Outbox::start(&kafka, "coordinator", move |delivery| {
                // The receiver goes away only with the whole service.
                let _ = post_delivery.send(delivery);
            })?;
            let reader = Reader::start(&kafka, &group, post_reader)?;
            let scanner = Scanner::start(&kafka, &group)?;
            let requests = Topic::Requests.name(&kafka.prefix);
            let membership = Membership::start(&kafka, &group, &[requests], post_member)?;
            Ok((kafka, outbox, reader, scanner, membership))
        });
        let (kafka, outbox, reader, scanner, membership) =
            started.await.map_err(|_| CoordinatorFailure::ClientGone)??;
        let passed = Passed::new(&settings.pass);
        let clean_up = match settings.cleanup.off {
            true => None,
            false => Some(CleanUp::start(&kafka, &settings.cleanup, &passed, known.letters)),
        };
        info!(
            prefix = %kafka.prefix, bootstrap = %kafka.bootstrap, log = %known.letters,
            participants = known.ids.votes.len(), "coordinator started"
        );
        let now = clock::now();
        Ok(Self {
            kafka,
            settings,
            letters: known.letters,
            names: known.names,
            ids: known.ids,
            passed,
            outbox,
            reader,
            membership: Arc::new(membership),
            probe,
            deliveries,
            reader_events,
            member_events,
            look_ups,
            post_look_up,
            clean_up,
            taking: BTreeSet::new(),
            tenures: BTreeMap::new(),
            stopped: BTreeMap::new(),
            under_way: UnderWay::default(),
            retries: VecDeque::new(),
            committing: None,
            asked: BTreeSet::new(),
            asking: false,
            recalls: BTreeSet::new(),
            scanner: Some(scanner),
            seeks: BTreeMap::new(),
            seeking: false,
            missing_checked: now,
            started: now,
            last_loop: now,
            last_summary: now,
            void_votes: BTreeMap::new(),
            failed_appends: 0,
            rounds: 0,
        })
    }

    // Events.

    fn on_member(&mut self, event: MemberEvent) -> Result<(), CoordinatorFailure> {
        match event {
            MemberEvent::Assigned(partitions) => {
                let assigned: BTreeSet<ShardId> =
                    partitions.iter().filter_map(|(_, partition)| ShardId::of_partition(*partition)).collect();
                info!(shards = ?assigned, "assigned");
                let gone: Vec<ShardId> = self.tenures.keys().filter(|id| !assigned.contains(id)).copied().collect();
                for id in gone {
                    self.put_away(id);
                }
                self.taking.retain(|id| assigned.contains(id));
                self.stopped.retain(|id, _| assigned.contains(id));
                for id in assigned {
                    if !self.tenures.contains_key(&id) && !self.stopped.contains_key(&id) {
                        self.take(id);
                    }
                }
            }
            // A rebalance revokes all, also what comes back. The shards work on until an assignment lacks them.
            MemberEvent::Revoked(_) => self.commit_positions(true),
            MemberEvent::Lost => warn!("the group has taken this process for dead; joining again"),
            MemberEvent::Failed(failure) if failure.is_fatal() => return Err(failure.into()),
            MemberEvent::Failed(failure) => warn!(%failure, "group membership"),
        }
        Ok(())
    }

    fn on_reader(&mut self, event: ReaderEvent) -> Result<(), CoordinatorFailure> {
        match event {
            ReaderEvent::Records(records) => {
                for record in &records {
                    self.on_record(record);
                }
            }
            ReaderEvent::Positioned { topic, partition, offset } => {
                let tenure = ShardId::of_partition(partition).and_then(|id| self.tenures.get_mut(&id));
                if let (Some(tenure), Some(topic)) = (tenure, self.names.get(&topic))
                    && tenure.awaited.get(topic) == Some(&Some(offset))
                {
                    tenure.awaited.remove(topic);
                }
            }
            ReaderEvent::OutOfRange { topic, partition } => {
                // Of a shard that was put away since, or has stopped, it is old news.
                let id = ShardId::of_partition(partition).filter(|id| self.tenures.contains_key(id));
                let Some(id) = id else { return Ok(()) };
                warn!(topic = %topic, shard = %id, "reading fell below the log's start: the shard is taken anew");
                self.put_away(id);
                self.take(id);
            }
            ReaderEvent::Failed(failure) if failure.is_fatal() => return Err(failure.into()),
            ReaderEvent::Failed(failure) => warn!(%failure, "reading"),
        }
        Ok(())
    }

    fn on_record(&mut self, record: &Record) {
        let Some(id) = ShardId::of_partition(record.partition) else { return };
        let (Some(topic), Some(tenure)) = (self.names.get(&record.topic), self.tenures.get_mut(&id)) else { return };
        if !tenure.awaited.is_empty() && tenure.awaited.contains_key(topic) {
            return;
        }
        let mut raw = raw_of(record);
        if *topic == Topic::Decisions && self.passed.has(record) {
            raw.value = None;
            if let Some(txid) = raw.key.and_then(|key| std::str::from_utf8(key).ok()?.parse().ok()) {
                tenure.shard.displaced(txid);
            }
        }
        let applied = match topic {
            Topic::Requests => tenure.shard.apply(shard::Record::Request(raw)),
            Topic::Votes(participant) => tenure.shard.apply(shard::Record::Vote(participant, raw)),
            Topic::Decisions => tenure.shard.apply(shard::Record::Decision(raw)),
            Topic::Prepare(_) | Topic::Outcomes | Topic::Rejected => Ok(()),
        };
        tenure.dirty = true;
        if let Err(stop) = applied {
            self.stop(id, &stop.to_string());
            return;
        }
        if !tenure.behind.is_empty() && tenure.behind.get(topic).is_some_and(|&end| record.offset + 1 >= end) {
            let topic = topic.clone();
            self.reached_end(id, &topic);
        }
    }

    fn on_delivery(&mut self, report: Delivery) -> Result<(), CoordinatorFailure> {
        let Some((id, what)) = self.under_way.take(report.token) else { return Ok(()) };
        let delivery = match report.result {
            Ok(_) => shard::Delivery::Acknowledged,
            Err(Failure::Again(reason)) => {
                self.failed_appends += 1;
                if self.failed_appends == 1 {
                    warn!(shard = %id, append = ?what, reason, "an append failed and is sent again; the summary counts more");
                }
                self.retries.push_back((clock::now() + RETRY_PAUSE, id, what));
                return Ok(());
            }
            Err(Failure::Refused(reason) | Failure::Denied(reason)) => {
                warn!(shard = %id, append = ?what, reason, "the broker refuses an append");
                shard::Delivery::Refused
            }
            Err(Failure::Fatal(reason)) => return Err(KafkaFailure::Fatal(reason).into()),
        };
        self.settle(id, what, delivery);
        Ok(())
    }

    fn on_look_up(&mut self, looked_up: LookUp) -> Result<(), CoordinatorFailure> {
        match looked_up {
            LookUp::TakeOver(id, _) if !self.taking.remove(&id) => {}
            LookUp::TakeOver(id, Ok(start)) => self.load(id, start),
            LookUp::TakeOver(_, Err(TakeOverFailure::Kafka(failure))) if failure.is_fatal() => {
                return Err(failure.into());
            }
            LookUp::TakeOver(id, Err(TakeOverFailure::Kafka(failure))) => {
                warn!(shard = %id, %failure, "taking the shard again");
                self.take(id);
            }
            LookUp::TakeOver(id, Err(unusable @ TakeOverFailure::Positions { .. })) => {
                self.stop(id, &unusable.to_string());
            }
            LookUp::Standing(mut asked, found) => {
                self.asking = false;
                match found {
                    Ok(found) => {
                        asked.retain(|participant| found.iter().all(|standing| standing.participant != *participant));
                        self.asked.extend(asked);
                        found.into_iter().for_each(|standing| self.on_standing(standing));
                    }
                    Err(failure) if failure.is_fatal() => return Err(failure.into()),
                    Err(failure) => {
                        warn!(%failure, "looking up participants");
                        self.asked.extend(asked);
                    }
                }
            }
            LookUp::Recalled(scanner, recalled) => {
                self.scanner = Some(scanner);
                for recalled in recalled {
                    self.on_recalled(recalled)?;
                }
            }
            LookUp::Sought(id, txids, sought) => {
                self.seeking = false;
                self.on_sought(id, &txids, sought)?;
            }
        }
        Ok(())
    }

    fn on_sought(
        &mut self,
        id: ShardId,
        txids: &[Txid],
        sought: Result<Sought, ScanFailure>,
    ) -> Result<(), CoordinatorFailure> {
        let Some(tenure) = self.tenures.get_mut(&id) else { return Ok(()) };
        let Sought { records, requests_start } = match sought {
            Ok(sought) => sought,
            Err(ScanFailure::Kafka(failure)) if failure.is_fatal() => return Err(failure.into()),
            Err(failure) => {
                warn!(shard = %id, %failure, "looking for decisions");
                tenure.shard.not_looked_for(txids);
                return Ok(());
            }
        };
        let records: Vec<Raw<'_>> = records.iter().map(raw_of).collect();
        if let Err(stop) = tenure.shard.looked_for(LookedFor { txids, records: &records, requests_start }) {
            self.stop(id, &stop.to_string());
        }
        Ok(())
    }

    fn on_recalled(&mut self, Recalled { shard, wanted, found }: Recalled) -> Result<(), CoordinatorFailure> {
        let records = match found {
            Err(ScanFailure::Kafka(failure)) if failure.is_fatal() => return Err(failure.into()),
            Err(ScanFailure::Kafka(failure)) => {
                warn!(%shard, %failure, "reading requests once more");
                self.recalls.extend(wanted.into_iter().map(|offset| (shard, offset)));
                return Ok(());
            }
            Err(ScanFailure::OutOfRange(_)) => Vec::new(),
            Ok(records) => records,
        };
        let Some(tenure) = self.tenures.get_mut(&shard) else { return Ok(()) };
        if records.len() < wanted.len() {
            warn!(%shard, "requests that are not decided are not in their log any more: the shard is taken anew");
            self.put_away(shard);
            self.take(shard);
            return Ok(());
        }
        for record in &records {
            if let Err(stop) = tenure.shard.recalled(raw_of(record)) {
                self.stop(shard, &stop.to_string());
                return Ok(());
            }
        }
        Ok(())
    }

    fn on_tick(&mut self) -> Result<(), CoordinatorFailure> {
        let now = clock::now();
        if now - self.last_loop > LONGEST_GAP {
            warn!(seconds = (now - self.last_loop).as_secs(), "this process stood still: its shards are taken anew");
            let all: Vec<ShardId> = self.tenures.keys().copied().collect();
            for id in all {
                self.put_away(id);
                self.take(id);
            }
        }
        self.last_loop = now;
        while let Some(&(at, id, what)) = self.retries.front()
            && at <= now
        {
            self.retries.pop_front();
            self.settle(id, what, shard::Delivery::Again);
        }
        if now - self.missing_checked > MISSING_RECHECK {
            self.missing_checked = now;
            self.asked.extend(self.tenures.values().flat_map(|tenure| tenure.shard.missing().cloned()));
        }
        self.ask();
        self.commit_positions(false);
        if now - self.last_summary >= Duration::from_secs(self.settings.summary_interval_s.max(1)) {
            self.last_summary = now;
            self.summarise();
        }
        Ok(())
    }

    // A shard's way: take, load, live, put away or stop.

    fn take(&mut self, id: ShardId) {
        if !self.taking.insert(id) {
            return;
        }
        let (kafka, ids, probe) = (self.kafka.clone(), self.ids.clone(), Arc::clone(&self.probe));
        let (member, post) = (Arc::clone(&self.membership), self.post_look_up.clone());
        blocking::spawn(move || {
            let take_over = TakeOver { kafka: &kafka, probe: &probe, member: &member, known: &ids, shard: id };
            let start = take_over.look_up();
            if matches!(start, Err(TakeOverFailure::Kafka(_))) {
                blocking::pause(RETRY_PAUSE);
            }
            // The receiver goes away only with the whole service.
            let _ = post.send(LookUp::TakeOver(id, start));
        });
    }

    fn load(&mut self, id: ShardId, start: Start) {
        let Start { positions, mut ends, votes_ids } = start;
        for (participant, topic_id) in votes_ids {
            self.learn(participant, topic_id);
        }
        let limits = Limits { window: self.settings.window, held_votes: self.settings.held_votes };
        let requests_topic = Topic::Requests.name(&self.kafka.prefix);
        let shard = Shard::new(self.letters, id, self.kafka.partitions, requests_topic, limits, &positions);
        let requests_end = ends.remove(&Topic::Requests).unwrap_or(positions.requests);
        let from = |topic: &Topic| match topic {
            Topic::Decisions => positions.decisions,
            Topic::Votes(participant) => {
                positions.votes.iter().find(|(name, _)| name == participant).map_or(0, |(_, at)| *at)
            }
            Topic::Requests | Topic::Prepare(_) | Topic::Outcomes | Topic::Rejected => positions.requests,
        };
        let later = ends.into_iter().map(|(topic, end)| (from(&topic), end, topic)).collect();
        let tenure = Tenure {
            shard,
            phase: Phase::Requests { later },
            behind: BTreeMap::from([(Topic::Requests, requests_end)]),
            awaited: self.names.values().map(|topic| (topic.clone(), None)).collect(),
            committed: None,
            requests_paused: false,
            dirty: true,
        };
        self.tenures.insert(id, tenure);
        self.read_from(id, Topic::Requests, positions.requests);
        if positions.requests >= requests_end {
            self.reached_end(id, &Topic::Requests);
        }
    }

    fn read_from(&mut self, id: ShardId, topic: Topic, offset: u64) {
        let Some(tenure) = self.tenures.get_mut(&id) else { return };
        self.reader.seek(&topic.name(&self.kafka.prefix), id.partition(), offset);
        tenure.awaited.insert(topic, Some(offset));
    }

    /// A log was read to the end that it had. When all are, the shard goes on to its next phase.
    fn reached_end(&mut self, id: ShardId, topic: &Topic) {
        let Some(tenure) = self.tenures.get_mut(&id) else { return };
        tenure.behind.remove(topic);
        if let Topic::Votes(participant) = topic {
            tenure.shard.caught_up(participant);
        }
        if !tenure.behind.is_empty() {
            return;
        }
        match std::mem::replace(&mut tenure.phase, Phase::Live) {
            Phase::Requests { later } => {
                tenure.phase = Phase::Registers;
                for (from, _, topic) in &later {
                    tenure.awaited.insert(topic.clone(), Some(*from));
                    self.reader.seek(&topic.name(&self.kafka.prefix), id.partition(), *from);
                }
                let (behind, reached): (Vec<_>, Vec<_>) = later.into_iter().partition(|(from, end, _)| from < end);
                tenure.behind = behind.into_iter().map(|(_, end, topic)| (topic, end)).collect();
                for (_, _, topic) in &reached {
                    if let Topic::Votes(participant) = topic {
                        tenure.shard.caught_up(participant);
                    }
                }
                if self.tenures[&id].behind.is_empty() {
                    self.go_live(id);
                }
            }
            Phase::Registers => self.go_live(id),
            Phase::Live => {}
        }
    }

    fn go_live(&mut self, id: ShardId) {
        let now = self.now();
        let Some(tenure) = self.tenures.get_mut(&id) else { return };
        tenure.phase = Phase::Live;
        tenure.shard.go_live(now, clock::wall_ms());
        let summary = tenure.shard.summary();
        info!(shard = %id, open = summary.open, window = summary.window, "shard taken");
        self.tell_clean_up();
    }

    /// Only what is live is cleaned up.
    fn tell_clean_up(&self) {
        if let Some(clean_up) = &self.clean_up {
            let live = self.tenures.iter().filter(|(_, tenure)| matches!(tenure.phase, Phase::Live));
            clean_up.own(live.map(|(&id, _)| id).collect());
        }
    }

    fn put_away(&mut self, id: ShardId) -> Option<Shard> {
        self.taking.remove(&id);
        let tenure = self.tenures.remove(&id);
        if tenure.is_some() {
            let mut topics = vec![Topic::Requests, Topic::Decisions];
            topics.extend(self.ids.votes.keys().cloned().map(Topic::Votes));
            let names: Vec<String> = topics.iter().map(|topic| topic.name(&self.kafka.prefix)).collect();
            let remove: Vec<_> = names.iter().map(|name| (name.as_str(), id.partition())).collect();
            self.reader.remove(&remove);
            self.tell_clean_up();
        }
        tenure.map(|tenure| tenure.shard)
    }

    fn stop(&mut self, id: ShardId, why: &str) {
        error!(shard = %id, why, "the shard STOPS here; nothing of it is acknowledged, the other shards go on");
        let shard = self.put_away(id);
        self.stopped.insert(id, shard);
    }

    fn settle(&mut self, id: ShardId, what: What, delivery: shard::Delivery) {
        let Some(tenure) = self.tenures.get_mut(&id) else { return };
        tenure.dirty = true;
        if let Err(stop) = tenure.shard.delivered(what, delivery) {
            self.stop(id, &stop.to_string());
        }
    }

    // Participants that were not there at the start.

    fn ask(&mut self) {
        if self.asking || self.asked.is_empty() {
            return;
        }
        self.asking = true;
        let participants = std::mem::take(&mut self.asked);
        let shards: Vec<ShardId> = self.tenures.keys().copied().collect();
        let (kafka, probe, post) = (self.kafka.clone(), Arc::clone(&self.probe), self.post_look_up.clone());
        blocking::spawn(move || {
            let found = look_up_standing(&kafka, &probe, &participants, &shards);
            // The receiver goes away only with the whole service.
            let _ = post.send(LookUp::Standing(participants, found));
        });
    }

    /// Reads requests once more, unless that is under way.
    fn recall(&mut self) {
        if self.recalls.is_empty() {
            return;
        }
        let Some(mut scanner) = self.scanner.take() else { return };
        let round: Vec<_> = (0..MOST_RECALLS).map_while(|_| self.recalls.pop_first()).collect();
        let (kafka, post) = (self.kafka.clone(), self.post_look_up.clone());
        blocking::spawn(move || {
            let recalled = recall(&kafka, &mut scanner, round);
            // The receiver goes away only with the whole service.
            let _ = post.send(LookUp::Recalled(scanner, recalled));
        });
    }

    /// Looks for decisions in one shard's log, unless that is under way.
    fn seek(&mut self) {
        if self.seeking {
            return;
        }
        let Some((id, txids)) = self.seeks.pop_first() else { return };
        self.seeking = true;
        let (kafka, probe, post) = (self.kafka.clone(), Arc::clone(&self.probe), self.post_look_up.clone());
        let passed = self.passed.clone();
        blocking::spawn(move || {
            let sought = seek(&kafka, &probe, &passed, id, &txids);
            // The receiver goes away only with the whole service.
            let _ = post.send(LookUp::Sought(id, txids, sought));
        });
    }

    /// Notes a participant's votes topic, which no tenure reads before it is told to.
    fn learn(&mut self, participant: Participant, topic_id: [u8; 16]) {
        let topic = Topic::Votes(participant.clone());
        self.ids.votes.insert(participant, topic_id);
        if self.names.insert(topic.name(&self.kafka.prefix).as_str().into(), topic.clone()).is_none() {
            for tenure in self.tenures.values_mut() {
                tenure.awaited.insert(topic.clone(), None);
            }
        }
    }

    fn on_standing(&mut self, standing: Standing) {
        let Standing { participant, topic_id, votes } = standing;
        let topic = Topic::Votes(participant.clone());
        let name = topic.name(&self.kafka.prefix);
        if let Some(topic_id) = topic_id {
            self.learn(participant.clone(), topic_id);
        }
        for (&id, tenure) in &mut self.tenures {
            let place = votes.iter().find(|(shard, _, _)| *shard == id);
            if topic_id.is_some() && place.is_none() {
                // Taken after the question.
                self.asked.insert(participant.clone());
                continue;
            }
            tenure.dirty = true;
            if !tenure.shard.standing(&participant, place.map(|(_, start, _)| *start)) {
                continue;
            }
            let Some(&(_, start, end)) = place else { continue };
            tenure.awaited.insert(topic.clone(), Some(start));
            self.reader.seek(&name, id.partition(), start);
            if start < end {
                tenure.behind.insert(topic.clone(), end);
            } else {
                tenure.shard.caught_up(&participant);
            }
        }
    }

    // Steps.

    fn step_all(&mut self) {
        let now = self.now();
        let mut ids: Vec<ShardId> = self.tenures.keys().copied().collect();
        // Each round begins with another shard: under load there is no room left for the last ones.
        let first = self.rounds.checked_rem(ids.len()).unwrap_or_default();
        ids.rotate_left(first);
        self.rounds = self.rounds.wrapping_add(1);
        for id in ids {
            let has_room = self.under_way.len() < MAX_UNDER_WAY;
            let Some(tenure) = self.tenures.get_mut(&id) else { continue };
            // What is being loaded has only alarms to tell.
            if has_room || !matches!(tenure.phase, Phase::Live) {
                let step = tenure.shard.step(now, STEP_BUDGET);
                self.carry_out(id, step);
            }
            // Also without room: while appends do not get through, reading goes on.
            self.mind_the_window(id);
        }
        self.recall();
        self.seek();
    }

    /// Requests are paused while the window is full; a shard that is being loaded takes a full window for the end.
    fn mind_the_window(&mut self, id: ShardId) {
        let Some(tenure) = self.tenures.get_mut(&id) else { return };
        let wants = tenure.shard.wants_requests();
        if wants != tenure.requests_paused {
            return;
        }
        tenure.requests_paused = !wants;
        let (topic, partition) = (Topic::Requests.name(&self.kafka.prefix), id.partition());
        if wants {
            self.reader.resume(&topic, partition);
            return;
        }
        self.reader.pause(&topic, partition);
        if matches!(tenure.phase, Phase::Requests { .. }) {
            self.reached_end(id, &Topic::Requests);
        }
    }

    /// Appends everything at once. What the broker does not take now is due again.
    fn carry_out(&mut self, id: ShardId, step: Step) {
        let Step { prepares, noes, decisions, outcomes, echoes, rejections, rereads, recalls, seek, look_up, alarms } =
            step;
        for Append { what, message: (participant, prepare), traceparent } in prepares {
            let key = prepare.txid.to_string();
            self.append(id, what, &Topic::Prepare(participant), &key, &prepare, traceparent.as_deref());
        }
        for Append { what, message, traceparent } in noes {
            let (topic, key) = (Topic::Votes(message.participant.clone()), message.txid.to_string());
            self.append(id, what, &topic, &key, &message, traceparent.as_deref());
        }
        for Append { what, message, traceparent } in decisions.into_iter().chain(echoes) {
            let key = message.txid.to_string();
            self.append(id, what, &Topic::Decisions, &key, &message, traceparent.as_deref());
        }
        for Append { what, message, traceparent } in outcomes {
            let key = message.business_key.to_string();
            self.append(id, what, &Topic::Outcomes, &key, &message, traceparent.as_deref());
        }
        for Append { what, message, traceparent } in rejections {
            let key = message.origin.to_string();
            self.append(id, what, &Topic::Rejected, &key, &message, traceparent.as_deref());
        }
        for (participant, from) in rereads {
            self.read_from(id, Topic::Votes(participant), from);
        }
        self.recalls.extend(recalls.into_iter().map(|offset| (id, offset)));
        if !seek.is_empty() {
            self.seeks.insert(id, seek);
        }
        if !look_up.is_empty() {
            self.asked.extend(look_up);
            self.ask();
        }
        for alarm in alarms {
            self.alarm(id, &alarm);
        }
    }

    fn append<M: Message>(
        &mut self,
        id: ShardId,
        what: What,
        topic: &Topic,
        key: &str,
        message: &M,
        traceparent: Option<&str>,
    ) {
        let token = self.under_way.put((id, what));
        let topic = topic.name(&self.kafka.prefix);
        let value = encode(message);
        let appended =
            self.outbox.append(&topic, id.partition(), key.as_bytes(), Some(&value), M::TYPE, traceparent, token);
        if appended.is_err() {
            self.under_way.take(token);
            self.retries.push_back((clock::now() + RETRY_PAUSE, id, what));
        }
    }

    /// One line an alarm; of void votes only the first a minute, for a flood of them must not become a flood of lines.
    fn alarm(&mut self, id: ShardId, alarm: &Alarm) {
        match alarm {
            Alarm::ForeignVote { participant, offset, reason } => {
                let count = self.void_votes.entry(*reason).or_default();
                *count += 1;
                if *count == 1 {
                    warn!(shard = %id, %participant, offset, ?reason, "a vote record does not count");
                }
            }
            Alarm::NobodyKnown { txid, participants } => {
                let names: Vec<_> = participants.iter().map(ToString::to_string).collect();
                error!(
                    shard = %id, %txid, participants = names.join(","),
                    "these participants have no topics, and no other named one can take a `no`: the transaction waits; create them with `suture topics apply`"
                );
            }
            Alarm::NoDecision { txid, participant, is_gone: true } => error!(
                shard = %id, %txid, %participant,
                "a participant asks for a decision that was cleaned up, or never made: its request is below the start of its log; look into what became of it at the others"
            ),
            Alarm::NoDecision { txid, participant, is_gone: false } => error!(
                shard = %id, %txid, %participant,
                "a participant asks for a decision, and there is none in the log: somebody invented the transaction, or acknowledged records were lost"
            ),
            Alarm::EarlyVotes { participants } => {
                let names: Vec<_> = participants.iter().map(ToString::to_string).collect();
                error!(
                    shard = %id, participants = names.join(","),
                    "for an hour there have been votes for requests that are not in the log: invented, or the requests were lost"
                );
            }
            Alarm::RequestRejected { offset, why } => {
                let (code, field) = why.code_and_field();
                warn!(shard = %id, offset, code, field, "a request was rejected");
            }
        }
    }

    // Positions.

    /// Commits the positions that moved, all shards in one commit. `now` also if a commit is under way.
    fn commit_positions(&mut self, now: bool) {
        if self.committing.is_some() && !now {
            return;
        }
        let (commits, at) = (self.due_commits(), clock::now());
        if commits.is_empty() {
            return;
        }
        for (id, positions, _) in &commits {
            if let Some(tenure) = self.tenures.get_mut(id) {
                tenure.committed = Some((positions.clone(), at));
                tenure.dirty = false;
            }
        }
        self.committing =
            Some(self.membership.commit_async(commits.into_iter().map(|(_, _, commit)| commit).collect()));
    }

    /// Harmless: whoever owns the shard now commits its own, and an older record costs only reading. What passes is committed
    /// again with the next tick, so that the group's lag does not stay behind; what is refused only when it has moved.
    fn on_uncommitted(&mut self, failure: &CommitError) {
        match failure {
            CommitError::NotMember(reason) => debug!(reason, "positions were not committed"),
            CommitError::Again(_) | CommitError::Refused(_) => warn!(%failure, "positions were not committed"),
        }
        if !matches!(failure, CommitError::Refused(_)) {
            self.tenures.values_mut().for_each(|tenure| tenure.committed = None);
        }
    }

    fn due_commits(&mut self) -> Vec<(ShardId, Positions, Commit)> {
        let now = clock::now();
        let topic = Topic::Requests.name(&self.kafka.prefix);
        let mut commits = Vec::new();
        let mut too_long = Vec::new();
        for (&id, tenure) in &self.tenures {
            let idle = tenure.committed.as_ref().is_some_and(|(_, at)| now - *at < IDLE_COMMIT);
            if !matches!(tenure.phase, Phase::Live) || (!tenure.dirty && idle) {
                continue;
            }
            let positions = tenure.shard.positions();
            if idle && tenure.committed.as_ref().is_some_and(|(committed, _)| *committed == positions) {
                continue;
            }
            match positions.to_metadata(&self.ids) {
                Ok(metadata) => {
                    let (topic, partition, offset) = (topic.clone(), id.partition(), positions.requests);
                    commits.push((id, positions, Commit { topic, partition, offset, metadata }));
                }
                Err(bad) => too_long.push((id, bad.to_string())),
            }
        }
        for (id, why) in too_long {
            self.stop(id, &why);
        }
        commits
    }

    // Time, summary, end.

    fn now(&self) -> Duration {
        clock::now() - self.started
    }

    /// When the loop must wake although nothing happens.
    fn next_wake(&self) -> Instant {
        let live = self.tenures.values().filter(|tenure| matches!(tenure.phase, Phase::Live));
        let due = live.clone().any(|tenure| tenure.shard.has_due());
        let deadline = live.filter_map(|tenure| tenure.shard.next_deadline()).min();
        match deadline {
            // Without room no step is made, and a report wakes the loop.
            _ if self.under_way.len() >= MAX_UNDER_WAY => clock::now() + Duration::from_secs(3_600),
            _ if due => self.started,
            Some(deadline) => self.started + deadline,
            None => clock::now() + Duration::from_secs(3_600),
        }
    }

    fn summarise(&mut self) {
        let mut total = shard::Summary::default();
        let mut oldest_ms = None::<i64>;
        for (id, tenure) in &self.tenures {
            if !tenure.behind.is_empty() {
                let logs: Vec<String> = tenure.behind.keys().map(|topic| topic.name(&self.kafka.prefix)).collect();
                warn!(shard = %id, logs = logs.join(","), "{STILL_READING}");
            }
        }
        let running = self.tenures.iter().map(|(id, tenure)| (*id, Some(&tenure.shard)));
        let stopped = self.stopped.iter().map(|(id, shard)| (*id, shard.as_ref()));
        let mut read = Vec::new();
        for (id, shard) in running.chain(stopped) {
            // A shard that stopped before it was loaded has read nothing.
            read.push((id, shard.map_or(0, Shard::next_request)));
            let Some(shard) = shard else { continue };
            let summary = shard.summary();
            total.open += summary.open;
            total.window += summary.window;
            total.waiting += summary.waiting;
            total.in_line += summary.in_line;
            total.held_votes += summary.held_votes;
            total.committed += summary.committed;
            total.aborted += summary.aborted;
            total.rejected += summary.rejected;
            total.void_votes += summary.void_votes;
            total.echoed += summary.echoed;
            oldest_ms = shard.oldest_open_ms().into_iter().chain(oldest_ms).min();
        }
        self.void_votes.clear();
        let failed_appends = std::mem::take(&mut self.failed_appends);
        let oldest_s = oldest_ms.map_or(0, |at| (clock::wall_ms() - at).max(0) / 1_000);
        let (under_way, shards, stopped) = (self.under_way.len(), self.tenures.len(), self.stopped.len());
        let (probe, topic) = (Arc::clone(&self.probe), Topic::Requests.name(&self.kafka.prefix));
        blocking::spawn(move || {
            let behind = |(id, read): &(ShardId, u64)| {
                probe.watermarks(&topic, id.partition()).ok().map(|(start, end)| end.saturating_sub(start.max(*read)))
            };
            // Without an answer for one shard the others are not asked: each would take its time, and hold up a shutdown.
            let lag: Option<u64> = read.iter().map(behind).sum();
            info!(
                shards,
                stopped,
                open = total.open,
                waiting = total.waiting,
                in_line = total.in_line,
                oldest_s,
                window = total.window,
                lag,
                under_way,
                failed_appends,
                committed = total.committed,
                aborted = total.aborted,
                rejected = total.rejected,
                held_votes = total.held_votes,
                void_votes = total.void_votes,
                echoed = total.echoed,
                "summary"
            );
        });
    }

    /// Waits for the reports under way and for the outcomes that follow from them, commits the positions, and leaves the
    /// group.
    async fn drain(mut self) -> Result<(), CoordinatorFailure> {
        info!(under_way = self.under_way.len(), "stopping: waiting for the appends under way");
        let deadline = clock::now() + DRAIN;
        while self.under_way.len() > 0 {
            match tokio::time::timeout_at(deadline, self.deliveries.recv()).await {
                Ok(Some(report)) => self.on_delivery(report)?,
                Ok(None) | Err(_) => break,
            }
            self.step_all();
        }
        self.commit_positions(true);
        if let Some(clean_up) = self.clean_up {
            clean_up.close(CLEAN_UP_ENDS).await;
        }
        drop((self.reader_events, self.member_events));
        let ended = clients::end(self.committing, deadline, self.membership, self.reader, self.outbox);
        ended.await.map_err(|_| CoordinatorFailure::ClientGone)?;
        info!("coordinator stopped");
        match self.stopped.len() {
            0 => Ok(()),
            stopped => Err(CoordinatorFailure::StoppedShards(stopped)),
        }
    }
}

/// A record as the core takes it.
pub(crate) fn raw_of(record: &Record) -> Raw<'_> {
    Raw {
        offset: record.offset,
        // Without a time it is never called old.
        timestamp_ms: record.timestamp_ms.unwrap_or(i64::MAX),
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        traceparent: record.traceparent.as_deref(),
    }
}

/// The topics that are there at the start.
struct Known {
    letters: LogLetters,
    names: HashMap<Arc<str>, Topic>,
    ids: TopicIds,
}

impl Known {
    /// Brokers may be away while this process starts.
    async fn look_up(kafka: &KafkaSettings, probe: &Arc<Probe>) -> Result<Self, CoordinatorFailure> {
        let needed = [Topic::Requests, Topic::Decisions, Topic::Outcomes, Topic::Rejected];
        let needed = needed.map(|topic| topic.name(&kafka.prefix));
        let topics = {
            let (probe, needed) = (Arc::clone(probe), needed.clone());
            until_answered(move || probe.topics_with(&needed.each_ref().map(String::as_str))).await?
        };
        refuse_unfit(&topics, &needed, kafka.partitions)?;
        let (ids, letters) = {
            let (kafka, probe) = (kafka.clone(), Arc::clone(probe));
            let requests = Topic::Requests.name(&kafka.prefix);
            until_answered(move || Ok((look_up_ids(&kafka, &probe, &topics)?, probe.letters(&requests)?))).await?
        };
        let read = [Topic::Requests, Topic::Decisions].into_iter().chain(ids.votes.keys().cloned().map(Topic::Votes));
        Ok(Self { letters, names: read.map(|topic| (topic.name(&kafka.prefix).as_str().into(), topic)).collect(), ids })
    }
}

/// Those of whom Kafka says nothing clear are left out, and asked for again: their topics may be on the way.
fn look_up_standing(
    kafka: &KafkaSettings,
    probe: &Probe,
    participants: &BTreeSet<Participant>,
    shards: &[ShardId],
) -> Result<Vec<Standing>, KafkaFailure> {
    let topics = probe.topics()?;
    let mut found = Vec::new();
    for participant in participants {
        let standing = match is_served(kafka, &topics, participant) {
            true => standing_of(kafka, probe, participant, shards),
            false => Ok(Standing { participant: participant.clone(), topic_id: None, votes: Vec::new() }),
        };
        match standing {
            Ok(standing) => found.push(standing),
            Err(failure) => warn!(%participant, %failure, "looking up a participant"),
        }
    }
    Ok(found)
}

fn standing_of(
    kafka: &KafkaSettings,
    probe: &Probe,
    participant: &Participant,
    shards: &[ShardId],
) -> Result<Standing, KafkaFailure> {
    let name = Topic::Votes(participant.clone()).name(&kafka.prefix);
    let topic_id = probe.topic_ids(&[&name])?.remove(&name);
    let mut votes = Vec::new();
    for &shard in shards {
        let (start, end) = probe.watermarks(&name, shard.partition())?;
        votes.push((shard, start, end));
    }
    Ok(Standing { participant: participant.clone(), topic_id, votes })
}
