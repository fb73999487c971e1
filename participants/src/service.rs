//! The loop between Kafka and a database.
//!
//! ```text
//! suture.prepare.<participant> -> queue -> Resource::prepare -> vote appended -> acknowledged -> position on prepares
//! suture.decisions             -> queue -> Resource::commit, abort (durable)  -------------> position on decisions
//!                              positions: a row in the database, then the group's offset, with the ledger's id beside it
//! ```
//!
//! - Two pipelines: each has its own reader, and the resource its own connections. Prepares, which may wait for locks, never
//!   hold up decisions, which free them. Only of one transaction prepare and decision never run at the same time: the
//!   later one waits, and those behind it pass.
//! - Prepares of one business key run one after the other, in the order of the log, which is that of every participant.
//! - **The database's own row alone says where to start.** The group's offset follows it, for acknowledgement and for
//!   Kafka's tools. Without a row for these letters the log is read from its start. Letters that are new while a branch
//!   of other letters is in doubt: refused, for its decision may have died with the old log.
//! - **Taking a shard**: decisions first, to the end that they have then; only then its prepares. So what was decided
//!   while we were away is known before anything is prepared.
//! - The position on prepares moves only past prepares whose vote is acknowledged, the one on decisions only past what
//!   is durable. Everything is done again after a crash, and the ledger makes that harmless. For the same reason a shard that
//!   goes to another instance is simply let go, in whatever state.
//! - **What must not happen stops the shard** (a fault of the ledger, an unreadable decision, a newer version): one error,
//!   nothing is acknowledged past it, the other shards go on. It is taken anew when a person has settled the incident that
//!   stopped it (`incidents`); else it stays stopped until the process starts anew.
//! - Who is in doubt for too long asks for its decision, and never ends a branch by itself. Branches that are over are swept, and
//!   old rows purged (`upkeep`).
//! - A database that does not answer is asked again for as long as it takes. Nothing is voted meanwhile. A prepare that it
//!   does not answer keeps neither its own abort back nor, in a batch, the others. A decision that alone is not carried out (somebody
//!   else's lock is in its way) keeps back only what is behind it of its transaction, and the positions; it is asked for again
//!   beside the others.
//!
//! One task owns all state. It selects one event, changes the state, and starts what follows as a job; a job only asks
//! the database, and its end is an event again.
//!
//! - **A database that went back** is brought back before the group is joined (`restore`). One that goes back while we run ends
//!   the service before a position is stored over the one that tells it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use suture_contract::codec::encode;
use suture_contract::ids::{BusinessKey, LogLetters, Participant, Shard, Txid};
use suture_contract::messages::{Ballot, Decision, Incident, IncidentKind, Prepare, Vote, Voter};
use suture_contract::topic_map::participant_group;
use suture_participants_core::branch::{Answer, Violation, Wrong};
use suture_participants_core::doubts::Ask;
use suture_participants_core::envelope::Read;
use suture_participants_core::lines::Lines;
use suture_participants_core::progress::Progress;
use suture_topics::failure::KafkaFailure;
use suture_topics::membership::{Commit, CommitError, MemberEvent, Membership};
use suture_topics::outbox::{Delivery, Failure, Outbox};
use suture_topics::probe::{Probe, UnfitTopic};
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::record::Record;
use suture_topics::settings::KafkaSettings;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::alarms::{Alarms, Look};
use crate::config::UpkeepSettings;
use crate::envelope::{read_decision, read_prepare};
use crate::incidents::{self, Place};
use crate::jobs::{Job, Tried, decide, decide_again, prepare, tell_answers, tell_silence, until_answered};
use crate::points::{Act, after, around, before};
use crate::resource::{Batching, Decided, Effect, Fault, Position, Prepared, Resource, Stored, Unavailable};
use crate::restore::bring_back;
use crate::seek::Seeker;
use crate::take::{Letters, Names, Taken, blocking, lag, look_at_topics, look_up, refuse_foreign};
use crate::upkeep::{Found, Live, Upkeep};

/// Most decisions in one job; more only wait for each other.
const DECISION_BATCH: usize = 512;

/// How often positions are stored; between two times a crash costs only repeats.
const STORE_EVERY: Duration = Duration::from_millis(100);

/// How often it is looked up whether those that parked prepares wait for are in doubt still, and whether those that are parked
/// are decided.
const LOOK_AT_LINES_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether a person has settled something, and whether somebody has finished a branch by hand.
const LOOK_AT_INCIDENTS_EVERY: Duration = Duration::from_secs(1);

/// Most prepares that are held back, each with its payload. With so many none is read before some have run. So with decisions
/// that are not carried out.
const MOST_HELD: usize = 1_000;

/// Positions that have not moved are committed again: a commit that was given up may have landed over a later one.
const COMMIT_AGAIN_EVERY: Duration = Duration::from_secs(60);

/// How often the summary is logged.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// How long a stopping service waits for what it has begun, for each of jobs, reports and Kafka.
const DRAIN: Duration = Duration::from_secs(10);

/// Why a participant ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Kafka cannot be used.
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    /// A protocol topic is not there, or not as configured.
    #[error(transparent)]
    Topic(#[from] UnfitTopic),
    /// A vote cannot be written.
    #[error("a vote cannot be appended to {topic}: {failure}")]
    Votes {
        /// Where to.
        topic: String,
        /// Why not.
        failure: Failure,
    },
    /// A position cannot be committed.
    #[error("an acknowledgement cannot be committed: {0}")]
    Acknowledgement(CommitError),
    /// Branches are in doubt whose decision belongs to another log.
    #[error(
        "{} branches are in doubt whose requests or decisions stood in topics that are gone ({}): restore the topics, or \
         decide them by hand",
        txids.len(),
        list(txids)
    )]
    ForeignInDoubt {
        /// Which.
        txids: Vec<Txid>,
    },
    /// The database was restored while we ran, or another server took over.
    #[error(
        "the database went back behind what this process has stored there, or another process has brought its ledger back, or \
         another server has taken over: start again, and what is missing is brought back"
    )]
    WentBack,
    /// It cannot be brought back as things are.
    #[error("the database went back and is not brought back yet: {0}; start again then")]
    Restore(String),
    /// At the end at least one shard was stopped.
    #[error("{0} shard(s) had stopped; their errors are in the log above")]
    StoppedShards(usize),
    /// A job of this process panicked.
    #[error("a job ended unexpectedly")]
    Job,
}

/// Serves until `shutdown` says true (or nobody can say it any more), then drains and leaves the group.
pub async fn run<R: Resource>(
    kafka: &KafkaSettings,
    participant: &Participant,
    resource: Arc<R>,
    upkeep: UpkeepSettings,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), ServiceError> {
    let names = Names::new(kafka, participant);
    let probe = Arc::new(Probe::start(kafka)?);
    let looking = async {
        let letters = look_at_topics(&probe, &names, kafka.partitions).await?;
        refuse_foreign(&*resource, &names, &letters).await?;
        bring_back(kafka, participant, &*resource, &probe, &names, letters).await?;
        Ok::<_, ServiceError>(letters)
    };
    let letters = tokio::select! {
        letters = looking => letters?,
        () = stopped(&mut shutdown) => return Ok(()),
    };

    let (reports, delivered) = mpsc::unbounded_channel();
    // The receiver outlives the producer, except when the service has ended already.
    let outbox = Outbox::start(kafka, &format!("participant-{participant}"), move |report| drop(reports.send(report)))?;
    let (prepare_sender, prepare_events) = mpsc::channel(4);
    let (decision_sender, decision_events) = mpsc::channel(4);
    let (member_sender, member_events) = mpsc::channel(16);
    let group = participant_group(&kafka.prefix, participant);
    let prepares = Reader::start(kafka, &group, prepare_sender)?;
    let decisions = Reader::start(kafka, &group, decision_sender)?;
    let subscription = [names.prepares.clone(), names.decisions.clone()];
    let membership = Membership::start(kafka, &group, &subscription, member_sender)?;
    tracing::info!(%participant, group, ledger = resource.ledger_id(), "participant started");

    let seeker = Seeker {
        kafka: kafka.clone(),
        group,
        probe: Arc::clone(&probe),
        names: names.clone(),
        requests: letters.requests,
    };
    let alarms = Alarms::new(
        participant.clone(),
        Arc::clone(&resource),
        Arc::clone(&probe),
        names.outcomes.clone(),
        names.decisions.clone(),
    );
    let mut service = Service {
        participant: participant.clone(),
        upkeep: Upkeep::new(participant.clone(), &upkeep, seeker),
        alarms,
        names,
        letters,
        resource,
        probe,
        outbox,
        prepares,
        decisions,
        membership,
        shards: BTreeMap::new(),
        prepare_queue: VecDeque::new(),
        prepare_jobs: JoinSet::new(),
        preparing: HashSet::new(),
        unanswered: HashSet::new(),
        preparing_keys: HashSet::new(),
        held_prepares: Vec::new(),
        lines: Lines::default(),
        line_job: JoinSet::new(),
        is_full: false,
        decision_queue: VecDeque::new(),
        decision_job: JoinSet::new(),
        deciding: HashSet::new(),
        stuck_decisions: VecDeque::new(),
        stuck_job: JoinSet::new(),
        held_decisions: Vec::new(),
        take_jobs: JoinSet::new(),
        takes: 0,
        store_job: JoinSet::new(),
        is_look_due: false,
        is_commit_due: false,
        commit_job: JoinSet::new(),
        summary_job: JoinSet::new(),
        votes: HashMap::new(),
        last_token: 0,
        unsent: VecDeque::new(),
        noted_aborts: 0,
    };
    let mut inbox = Inbox { prepare_events, decision_events, member_events, delivered };
    let served = service.serve(&mut inbox, &mut shutdown).await;
    let stopped = service.stopped_shards();
    service.drain(inbox).await;
    match served {
        Ok(()) if stopped > 0 => Err(ServiceError::StoppedShards(stopped)),
        served => served,
    }
}

/// Whoever held the sender is gone: that is a shutdown too.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// What comes from outside.
struct Inbox {
    prepare_events: mpsc::Receiver<ReaderEvent>,
    decision_events: mpsc::Receiver<ReaderEvent>,
    member_events: mpsc::Receiver<MemberEvent>,
    delivered: mpsc::UnboundedReceiver<Delivery>,
}

struct Service<R> {
    participant: Participant,
    upkeep: Upkeep,
    names: Names,
    letters: Letters,
    resource: Arc<R>,
    alarms: Alarms<R>,
    probe: Arc<Probe>,
    outbox: Outbox,
    prepares: Reader,
    decisions: Reader,
    membership: Membership,

    shards: BTreeMap<Shard, ShardState>,
    prepare_queue: VecDeque<Job<Prepare>>,
    prepare_jobs: JoinSet<Vec<Tried>>,
    /// The transactions in those jobs.
    preparing: HashSet<Txid>,
    /// Those that the database has not answered, and is asked again.
    unanswered: HashSet<Txid>,
    /// Their business keys.
    preparing_keys: HashSet<BusinessKey>,
    /// Prepares of what is being decided, of a business key that is being prepared, or parked behind an earlier transaction of
    /// their order key; in the order of the log.
    held_prepares: Vec<Job<Prepare>>,
    /// Who is parked behind whom.
    lines: Lines,
    /// Whether those before them are in doubt still, and what became of them.
    line_job: JoinSet<(u64, Option<LinesFound>)>,
    /// The resource takes no more branches before some are decided.
    is_full: bool,
    decision_queue: VecDeque<Job<Decision>>,
    decision_job: JoinSet<Vec<(Job<Decision>, Decided)>>,
    /// The transactions in that job, and those of the stuck ones.
    deciding: HashSet<Txid>,
    /// Decisions that something is in the way of.
    stuck_decisions: VecDeque<Job<Decision>>,
    /// Those that are asked for again, beside the others.
    stuck_job: JoinSet<Vec<(Job<Decision>, Decided)>>,
    /// Decisions of what is being prepared or decided, in the order of the log.
    held_decisions: Vec<Job<Decision>>,
    take_jobs: JoinSet<(u64, Result<Vec<Taken>, ServiceError>)>,
    /// Counts takes, so that an answer to an old one is known.
    takes: u64,
    store_job: JoinSet<(Vec<Position>, Stored)>,
    /// Whether to look for the stored positions even if none is to be stored.
    is_look_due: bool,
    /// Whether to commit all positions, also those that have not moved.
    is_commit_due: bool,
    commit_job: JoinSet<(Vec<Commit>, Result<(), CommitError>)>,
    summary_job: JoinSet<()>,
    /// Votes whose append is not acknowledged, by token.
    votes: HashMap<u64, PendingVote>,
    /// Of an append: a vote, or an incident.
    last_token: u64,
    /// Votes that wait for room in the outbox.
    unsent: VecDeque<u64>,
    /// Aborts of prepares that never ran here, since they were last told.
    noted_aborts: u64,
}

struct PendingVote {
    shard: Shard,
    /// Of the prepare that it answers; `None`: an inquiry.
    offset: Option<u64>,
    txid: Txid,
    value: Vec<u8>,
    traceparent: Option<String>,
}

/// What a look for those in the lines has found.
struct LinesFound {
    in_doubt: Vec<Txid>,
    /// Of those that are parked.
    known: Vec<Txid>,
}

/// A shard that is ours.
struct ShardState {
    phase: Phase,
    prepares: Track,
    decisions: Track,
}

/// Goes from taking to catching up to live; to stopped from anywhere, and stays until it is taken anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its positions are being looked up, by the take of this number.
    Taking(u64),
    /// Decisions are read to the end that they had.
    CatchingUp { end: u64 },
    /// Prepares are read too.
    Live,
    /// Something happened that must not.
    Stopped,
}

/// One log of one shard.
struct Track {
    progress: Progress,
    /// Records are ignored until the reader stands here.
    awaits: Option<u64>,
    /// What the database's row says.
    stored: Option<u64>,
    /// What the group's offset says.
    committed: Option<u64>,
    /// Records that a person has let be passed.
    skips: BTreeSet<u64>,
}

impl<R: Resource> Service<R> {
    async fn serve(&mut self, inbox: &mut Inbox, shutdown: &mut watch::Receiver<bool>) -> Result<(), ServiceError> {
        let mut store = interval(STORE_EVERY);
        store.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lines = interval(LOOK_AT_LINES_EVERY);
        lines.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut incidents = interval(LOOK_AT_INCIDENTS_EVERY);
        incidents.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut again = interval(COMMIT_AGAIN_EVERY);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut summary = interval(SUMMARY_EVERY);
        summary.set_missed_tick_behavior(MissedTickBehavior::Delay);
        summary.tick().await;
        loop {
            tokio::select! {
                () = stopped(shutdown) => return Ok(()),
                Some(event) = inbox.member_events.recv() => self.on_member(event)?,
                Some(event) = inbox.decision_events.recv(), if self.decision_queue.is_empty() && self.has_room_for_decisions() => {
                    self.on_decisions(event)?;
                }
                Some(event) = inbox.prepare_events.recv(), if self.prepare_queue.is_empty() && self.has_room() => {
                    self.on_prepares(event)?;
                }
                Some(report) = inbox.delivered.recv() => self.on_delivery(report)?,
                Some(decided) = self.decision_job.join_next() => self.on_decided(decided.map_err(|_| ServiceError::Job)?),
                Some(decided) = self.stuck_job.join_next() => self.on_decided(decided.map_err(|_| ServiceError::Job)?),
                Some(prepared) = self.prepare_jobs.join_next() => self.on_prepared(prepared.map_err(|_| ServiceError::Job)?),
                Some(taken) = self.take_jobs.join_next() => self.on_taken(taken.map_err(|_| ServiceError::Job)?)?,
                Some(stored) = self.store_job.join_next() => self.on_stored(stored.map_err(|_| ServiceError::Job)?)?,
                Some(committed) = self.commit_job.join_next() => {
                    self.on_committed(committed.map_err(|_| ServiceError::Job)?)?;
                }
                Some(_) = self.summary_job.join_next() => {}
                Some(found) = self.line_job.join_next() => self.on_lines(found.map_err(|_| ServiceError::Job)?),
                Some(found) = self.upkeep.next() => self.on_upkeep(found.map_err(|_| ServiceError::Job)?),
                _ = store.tick() => {
                    self.is_full = false;
                    self.send_unsent();
                    self.store_positions();
                    self.upkeep.tick(&self.resource, &self.live());
                }
                Some(look) = self.alarms.looked() => self.on_look(look.map_err(|_| ServiceError::Job)?),
                _ = lines.tick() => {
                    self.is_look_due = true;
                    self.look_at_lines();
                }
                _ = incidents.tick() => self.look_at_incidents(),
                _ = again.tick() => self.is_commit_due = true,
                _ = summary.tick() => self.summarise(),
            }
            self.start_stuck_decisions();
            self.start_decisions();
            self.start_prepares();
        }
    }

    // ---- shards ------------------------------------------------------------------------------------------------------

    fn on_member(&mut self, event: MemberEvent) -> Result<(), ServiceError> {
        match event {
            MemberEvent::Assigned(partitions) => self.on_assigned(&partitions),
            // What comes back with the next assignment simply goes on; what does not is let go then. Meanwhile nothing
            // that we do is wrong, for the ledger does not care who does it.
            MemberEvent::Revoked(_) => {}
            MemberEvent::Lost => {
                tracing::warn!(participant = %self.participant, "the group went on without us; joining again")
            }
            MemberEvent::Failed(failure) => return Err(failure.into()),
        }
        Ok(())
    }

    fn on_assigned(&mut self, partitions: &[(String, i32)]) {
        let of_decisions = partitions.iter().filter(|(topic, _)| *topic == self.names.decisions);
        let ours: Vec<Shard> = of_decisions.filter_map(|(_, partition)| Shard::of_partition(*partition)).collect();
        let gone: Vec<Shard> = self.shards.keys().filter(|shard| !ours.contains(shard)).copied().collect();
        for shard in &gone {
            self.stop_reading(*shard);
            self.shards.remove(shard);
            self.lines.forget(*shard);
            self.alarms.forget(*shard);
            self.upkeep.forget(*shard);
        }
        let new: Vec<Shard> = ours.iter().filter(|shard| !self.shards.contains_key(shard)).copied().collect();
        tracing::info!(participant = %self.participant, shards = ours.len(), new = new.len(), gone = gone.len(), "shards assigned");
        self.take(new);
    }

    /// Looks up from where to read these shards.
    fn take(&mut self, shards: Vec<Shard>) {
        if shards.is_empty() {
            return;
        }
        self.takes += 1;
        for shard in &shards {
            let state = ShardState {
                phase: Phase::Taking(self.takes),
                prepares: Track::starting_at(0, None),
                decisions: Track::starting_at(0, None),
            };
            self.shards.insert(*shard, state);
        }
        let (take, resource, probe) = (self.takes, Arc::clone(&self.resource), Arc::clone(&self.probe));
        let (names, letters) = (self.names.clone(), self.letters);
        self.take_jobs.spawn(async move { (take, look_up(&*resource, probe, names, letters, shards).await) });
    }

    fn on_taken(&mut self, (take, taken): (u64, Result<Vec<Taken>, ServiceError>)) -> Result<(), ServiceError> {
        for taken in taken? {
            let shard = taken.shard;
            let Some(state) = self.shards.get_mut(&shard).filter(|state| state.phase == Phase::Taking(take)) else {
                continue;
            };
            for txid in taken.in_doubt {
                self.lines.was_there(txid);
                self.alarms.was_there(txid);
            }
            let (prepares, decisions) = taken.stored;
            state.prepares = Track { skips: taken.skipped_prepares, ..Track::starting_at(taken.prepares, prepares) };
            state.decisions =
                Track { skips: taken.skipped_decisions, ..Track::starting_at(taken.decisions, decisions) };
            if let Some(problem) = taken.problem {
                self.stop(shard, None, &problem);
                continue;
            }
            state.decisions.awaits = Some(taken.decisions);
            state.phase = Phase::CatchingUp { end: taken.decisions_end };
            self.decisions.add(&[(&self.names.decisions, shard.partition(), taken.decisions)]);
            self.go_live_if_caught_up(shard);
        }
        Ok(())
    }

    /// All decisions that there were are durable here: now its prepares may come.
    fn go_live_if_caught_up(&mut self, shard: Shard) {
        let Some(state) = self.shards.get_mut(&shard) else { return };
        let Phase::CatchingUp { end } = state.phase else { return };
        if state.decisions.progress.position() < end {
            return;
        }
        state.phase = Phase::Live;
        let from = state.prepares.progress.position();
        state.prepares.awaits = Some(from);
        self.prepares.add(&[(&self.names.prepares, shard.partition(), from)]);
        let catching_up = |state: &ShardState| matches!(state.phase, Phase::Taking(_) | Phase::CatchingUp { .. });
        if !self.shards.values().any(catching_up) {
            self.tell_noted_aborts();
        }
    }

    fn stop(&mut self, shard: Shard, txid: Option<Txid>, problem: &str) {
        let Some(state) = self.shards.get_mut(&shard).filter(|state| state.phase != Phase::Stopped) else { return };
        state.phase = Phase::Stopped;
        let txid = txid.map(|txid| txid.to_string());
        tracing::error!(
            participant = %self.participant, %shard, txid, problem,
            "shard stopped: nothing behind this is acknowledged; the other shards go on"
        );
        self.stop_reading(shard);
        self.alarms.stands_still(shard);
    }

    fn stop_reading(&self, shard: Shard) {
        self.prepares.remove(&[(&self.names.prepares, shard.partition())]);
        self.decisions.remove(&[(&self.names.decisions, shard.partition())]);
    }

    // ---- incidents ---------------------------------------------------------------------------------------------------

    /// Stops the shard in front of a record until a person has settled it, or passes the record if he has said so.
    fn on_incident(&mut self, place: Place, incident: Incident, problem: &str) {
        let (participant, shard, offset, txid) = (self.participant.clone(), place.shard, place.offset, incident.txid);
        let is_never_passed = matches!(incident.what, IncidentKind::Lost | IncidentKind::Contradiction);
        // It may be somebody else's by now, and he meets the same.
        let Some(track) = self.track_of(&place.topic, shard) else { return };
        if track.skips.contains(&offset) && !is_never_passed {
            track.progress.done(offset);
            tracing::warn!(%participant, %shard, %place, problem, "a record is passed: a person has said so");
            return self.go_live_if_caught_up(shard);
        }
        let problem = format!("{problem}; see `suture participant {participant} lost`");
        self.stop(shard, txid, &problem);
        self.alarms.raise(shard, incidents::entry_at(&place, incident));
    }

    /// What the database could not do. Only what is against the ledger is a person's to settle here.
    fn on_fault(&mut self, place: Place, about: Incident, fault: &Fault) {
        let what = match fault {
            Fault::Violation(Violation { wrong: Wrong::Lost, .. }) => IncidentKind::Lost,
            Fault::Violation(Violation { wrong: Wrong::Contradiction, .. }) => IncidentKind::Contradiction,
            Fault::Violation(Violation { wrong: Wrong::OtherHash, .. }) => IncidentKind::OtherHash,
            Fault::Finish { .. } | Fault::NoOperation { .. } | Fault::ChangedOperation { .. } | Fault::BrokenRow => {
                return self.stop(place.shard, about.txid, &fault.to_string());
            }
        };
        self.on_incident(place, Incident { what, ..about }, &fault.to_string());
    }

    fn on_unreadable(&mut self, what: &str, topic: String, letters: LogLetters, record: &Record, why: &'static str) {
        let Some(shard) = Shard::of_partition(record.partition) else { return };
        let place = Place { topic, letters, shard, offset: record.offset };
        let unreadable = incidents::unreadable(&self.participant, why);
        self.on_incident(place, unreadable, &unusable(what, record, why));
    }

    fn look_at_incidents(&mut self) {
        let (shards, deciding) = (&self.shards, &self.deciding);
        let waiting: HashSet<Txid> =
            self.decision_queue.iter().chain(&self.held_decisions).map(|job| job.message.txid).collect();
        let is_live = |state: &&ShardState| state.phase == Phase::Live;
        let read_to = |shard| Some(shards.get(&shard).filter(is_live)?.decisions.progress.next());
        self.alarms.note_finished_by_hand(read_to, |txid| deciding.contains(txid) || waiting.contains(txid));
        self.alarms.look();
    }

    fn on_look(&mut self, look: Look) {
        for (shard, settled) in self.alarms.take_in(look, &self.outbox, &mut self.last_token) {
            if self.shards.get(&shard).is_none_or(|state| state.phase != Phase::Stopped) {
                continue;
            }
            tracing::info!(participant = %self.participant, %shard, settled, "a person has settled it: the shard goes on");
            self.prepare_queue.retain(|job| job.shard != shard);
            self.held_prepares.retain(|job| job.shard != shard);
            self.decision_queue.retain(|job| job.shard != shard);
            self.held_decisions.retain(|job| job.shard != shard);
            self.lines.forget(shard);
            self.alarms.forget(shard);
            self.take(vec![shard]);
        }
    }

    // ---- decisions ---------------------------------------------------------------------------------------------------

    fn on_decisions(&mut self, event: ReaderEvent) -> Result<(), ServiceError> {
        match event {
            ReaderEvent::Records(records) => records.into_iter().for_each(|record| self.on_decision(&record)),
            ReaderEvent::Positioned { partition, offset, .. } => {
                if let Some(state) = self.state_of(partition) {
                    state.decisions.positioned(offset);
                }
            }
            ReaderEvent::OutOfRange { partition, .. } => {
                if let Some(shard) = Shard::of_partition(partition) {
                    self.stop(shard, None, "our position on the decisions lies outside the log: decisions are missing");
                }
            }
            ReaderEvent::Failed(failure) => return Err(failure.into()),
        }
        Ok(())
    }

    fn on_decision(&mut self, record: &Record) {
        let participant = self.participant.clone();
        let Some(state) = self.state_of(record.partition) else { return };
        if !state.decisions.takes(record) {
            return;
        }
        let Some(shard) = Shard::of_partition(record.partition) else { return };
        match read_decision(record, &participant) {
            Read::Ours(message) => {
                self.alarms.is_decided(&message.txid);
                self.decision_queue.push_back(Job { shard, offset: record.offset, message, traceparent: None });
            }
            Read::Passed | Read::Odd(_) => {
                state.decisions.progress.done(record.offset);
                self.go_live_if_caught_up(shard);
            }
            Read::Stop(why) => {
                let topic = self.names.decisions.clone();
                self.on_unreadable("decision", topic, self.letters.decisions, record, why);
            }
        }
    }

    fn start_decisions(&mut self) {
        if !self.decision_job.is_empty() || self.decision_queue.is_empty() {
            return;
        }
        let batch = take_batch(&mut self.decision_queue, DECISION_BATCH, &self.shards);
        // The prepare may wait for a lock that a decision behind this one frees: it must not hold that one up.
        let (held, batch): (Vec<_>, Vec<_>) = batch.into_iter().partition(|job| self.is_under_way(&job.message.txid));
        self.held_decisions.extend(held);
        if !batch.is_empty() {
            self.deciding.extend(batch.iter().map(|job| job.message.txid));
            let resource = Arc::clone(&self.resource);
            self.decision_job.spawn(async move { decide(&*resource, batch).await });
        }
    }

    /// What nobody else is in the way of must not wait for them.
    fn start_stuck_decisions(&mut self) {
        if !self.stuck_job.is_empty() || self.stuck_decisions.is_empty() {
            return;
        }
        for job in &self.stuck_decisions {
            self.deciding.remove(&job.message.txid);
        }
        let batch = take_batch(&mut self.stuck_decisions, usize::MAX, &self.shards);
        if batch.is_empty() {
            return self.release_decisions();
        }
        self.deciding.extend(batch.iter().map(|job| job.message.txid));
        let resource = Arc::clone(&self.resource);
        self.stuck_job.spawn(async move { decide_again(&*resource, batch).await });
    }

    fn is_under_way(&self, txid: &Txid) -> bool {
        self.preparing.contains(txid) || self.deciding.contains(txid)
    }

    /// What was held for these is next.
    fn release_decisions(&mut self) {
        let held = std::mem::take(&mut self.held_decisions);
        let (held, free): (Vec<_>, Vec<_>) = held.into_iter().partition(|job| self.is_under_way(&job.message.txid));
        self.held_decisions = held;
        free.into_iter().rev().for_each(|job| self.decision_queue.push_front(job));
    }

    /// Beyond the bound nothing more is read.
    fn has_room_for_decisions(&self) -> bool {
        self.deciding.len() + self.held_decisions.len() < MOST_HELD
    }

    fn on_decided(&mut self, decided: Vec<(Job<Decision>, Decided)>) {
        let (later, decided): (Vec<_>, Vec<_>) =
            decided.into_iter().partition(|(_, decided)| *decided == Ok(Effect::Later));
        for (job, _) in &decided {
            self.deciding.remove(&job.message.txid);
        }
        for (job, _) in later {
            self.deciding.insert(job.message.txid);
            self.stuck_decisions.push_back(job);
        }
        self.release_decisions();
        for (job, _) in decided.iter().filter(|(_, decided)| decided.is_ok()) {
            self.lines.leaves(&job.message.txid);
            self.upkeep.ends(&job.message.txid, (job.shard, job.offset));
            self.alarms.is_decided(&job.message.txid);
        }
        self.release_prepares();
        for (job, decided) in decided {
            let Job { shard, offset, message, .. } = job;
            match decided {
                Ok(effect) => {
                    self.noted_aborts += u64::from(effect == Effect::NotedAbort);
                    self.is_full &= effect != Effect::Finished;
                    if let Some(state) = self.shards.get_mut(&shard) {
                        state.decisions.progress.done(offset);
                    }
                    self.go_live_if_caught_up(shard);
                }
                Err(fault) => {
                    let (topic, letters) = (self.names.decisions.clone(), self.letters.decisions);
                    let about = incidents::about_decision(&self.participant, &message);
                    self.on_fault(Place { topic, letters, shard, offset }, about, &fault);
                }
            }
        }
    }

    // ---- prepares and votes ------------------------------------------------------------------------------------------

    fn on_prepares(&mut self, event: ReaderEvent) -> Result<(), ServiceError> {
        match event {
            ReaderEvent::Records(records) => records.into_iter().for_each(|record| self.on_prepare(record)),
            ReaderEvent::Positioned { partition, offset, .. } => {
                if let Some(state) = self.state_of(partition) {
                    state.prepares.positioned(offset);
                }
            }
            // Trimmed below us, or truncated: taking the shard anew tells which.
            ReaderEvent::OutOfRange { partition, .. } => {
                if let Some(shard) = Shard::of_partition(partition).filter(|shard| self.is_running(*shard)) {
                    self.stop_reading(shard);
                    self.take(vec![shard]);
                }
            }
            ReaderEvent::Failed(failure) => return Err(failure.into()),
        }
        Ok(())
    }

    fn on_prepare(&mut self, record: Record) {
        let requests = self.letters.requests;
        let Some(state) = self.state_of(record.partition) else { return };
        if !state.prepares.takes(&record) {
            return;
        }
        let Some(shard) = Shard::of_partition(record.partition) else { return };
        let offset = record.offset;
        match read_prepare(&record, requests) {
            Read::Ours(message) => {
                self.prepare_queue.push_back(Job { shard, offset, message, traceparent: record.traceparent });
            }
            Read::Passed => state.prepares.progress.done(offset),
            Read::Odd(why) => {
                state.prepares.progress.done(offset);
                let participant = &self.participant;
                tracing::warn!(%participant, %shard, offset, why, "a record on our prepare topic is passed without a vote");
            }
            Read::Stop(why) => {
                let topic = self.names.prepares.clone();
                self.on_unreadable("prepare", topic, self.letters.prepares, &record, why);
            }
        }
    }

    fn start_prepares(&mut self) {
        let Batching { branches, jobs } = self.resource.batching();
        while self.prepare_jobs.len() < jobs && !self.prepare_queue.is_empty() && !self.is_full {
            let batch = take_batch(&mut self.prepare_queue, branches, &self.shards);
            let batch = self.hold_back(batch);
            if !batch.is_empty() {
                self.preparing.extend(batch.iter().map(|job| job.message.txid));
                self.preparing_keys.extend(batch.iter().map(|job| job.message.business_key.clone()));
                let resource = Arc::clone(&self.resource);
                self.prepare_jobs.spawn(async move { prepare(&*resource, batch).await });
            }
        }
    }

    /// What may run now. Who asks first for a business key must be the same at every participant: else each takes
    /// another one, and all are refused.
    fn hold_back(&mut self, batch: Vec<Job<Prepare>>) -> Vec<Job<Prepare>> {
        let mut free = Vec::with_capacity(batch.len());
        for job in batch {
            let Prepare { txid, business_key, order_key, .. } = &*job.message;
            let is_behind = self.held_prepares.iter().any(|held| held.message.business_key == *business_key);
            let is_parked = order_key.as_ref().is_some_and(|key| !self.lines.is_first(txid, key));
            let is_busy = self.deciding.contains(txid) || self.preparing_keys.contains(business_key);
            if is_behind || is_parked || is_busy {
                self.held_prepares.push(job);
            } else {
                if let Some(key) = order_key {
                    self.lines.enters(*txid, key.clone());
                }
                free.push(job);
            }
        }
        free
    }

    /// What was held for these is next.
    fn prepares_have_ended(&mut self, prepared: &[Tried]) {
        for (job, _) in prepared {
            self.preparing.remove(&job.message.txid);
            self.preparing_keys.remove(&job.message.business_key);
        }
        self.release_decisions();
        self.release_prepares();
    }

    /// Beyond the bound nothing more is read. A parked prepare waits for a decision, which comes on the other topic.
    fn has_room(&self) -> bool {
        self.held_prepares.len() < MOST_HELD
    }

    /// Whoever stands in a line may have left it unseen: its yes was a repeat, or an operator finished it. Whoever is parked may
    /// be decided: most expire before it is their turn.
    fn look_at_lines(&mut self) {
        let is_parked = |job: &&Job<Prepare>| job.message.order_key.is_some();
        let parked: Vec<Txid> = self.held_prepares.iter().filter(is_parked).map(|job| job.message.txid).collect();
        if self.line_job.is_empty() && !parked.is_empty() {
            let (look, resource) = (self.lines.look(), Arc::clone(&self.resource));
            self.line_job.spawn(async move { (look, look_for(&*resource, parked).await.ok()) });
        }
    }

    /// Of what is being prepared the database knows nothing yet.
    fn on_lines(&mut self, (look, found): (u64, Option<LinesFound>)) {
        let Some(LinesFound { mut in_doubt, known }) = found else { return };
        in_doubt.extend(&self.preparing);
        self.lines.keep_only(look, &in_doubt);
        known.into_iter().for_each(|txid| self.lines.is_known(txid));
        self.release_prepares();
    }

    fn release_prepares(&mut self) {
        self.held_prepares.drain(..).rev().for_each(|job| self.prepare_queue.push_front(job));
    }

    /// The answers are durable: now, and not before, the votes may leave.
    fn on_prepared(&mut self, prepared: Vec<Tried>) {
        self.prepares_have_ended(&prepared);
        let (shards, was_silent) = (&self.shards, !self.unanswered.is_empty());
        self.unanswered.retain(|txid| shards.get(&txid.shard).is_some_and(|state| state.phase != Phase::Stopped));
        let mut later = Vec::new();
        for (job, prepared) in prepared {
            if prepared.is_ok() {
                self.unanswered.remove(&job.message.txid);
            }
            match prepared {
                Ok(Prepared::Answer(answer)) => {
                    match answer {
                        Answer::Yes => {
                            self.upkeep.said_yes(job.message.txid, job.message.hash);
                            if self.is_running(job.shard) {
                                self.alarms.voted(&job.message);
                            }
                        }
                        Answer::No(_) => self.lines.leaves(&job.message.txid),
                    }
                    self.vote(job, answer);
                }
                Ok(Prepared::Later) => {
                    self.is_full = true;
                    later.push(job);
                }
                Err(unavailable) => {
                    if !was_silent && self.unanswered.is_empty() {
                        tell_silence(&unavailable);
                    }
                    self.unanswered.insert(job.message.txid);
                    // Its abort, if that is there, goes first.
                    later.push(job);
                }
                Ok(Prepared::Fault(fault)) => {
                    let (topic, letters) = (self.names.prepares.clone(), self.letters.prepares);
                    let about = incidents::about_prepare(&self.participant, &job.message);
                    self.on_fault(Place { topic, letters, shard: job.shard, offset: job.offset }, about, &fault);
                }
            }
        }
        if was_silent && self.unanswered.is_empty() {
            tell_answers();
        }
        for job in later.into_iter().rev() {
            self.prepare_queue.push_front(job);
        }
    }

    fn vote(&mut self, job: Job<Prepare>, answer: Answer) {
        let (vote, refusal) = match answer {
            Answer::Yes => (Ballot::Yes, None),
            Answer::No(refusal) => (Ballot::No, Some(refusal)),
        };
        let Job { shard, offset, message, traceparent } = job;
        let vote = Vote {
            txid: message.txid,
            participant: self.participant.clone(),
            vote,
            hash: message.hash,
            by: Voter::Participant,
            duplicate_of: refusal.as_ref().and_then(|refusal| refusal.duplicate_of),
            code: refusal.map(|refusal| refusal.code),
            inquiry: false,
        };
        self.send(
            &vote,
            PendingVote { shard, offset: Some(offset), txid: vote.txid, value: encode(&vote), traceparent },
        );
    }

    /// Says a yes again that has no decision: whoever has it appends it once more.
    fn ask(&mut self, Ask { txid, hash, .. }: Ask) {
        let vote = Vote {
            txid,
            participant: self.participant.clone(),
            vote: Ballot::Yes,
            hash,
            by: Voter::Participant,
            duplicate_of: None,
            code: None,
            inquiry: true,
        };
        let value = encode(&vote);
        self.send(&vote, PendingVote { shard: txid.shard, offset: None, txid, value, traceparent: None });
    }

    fn send(&mut self, vote: &Vote, pending: PendingVote) {
        let Vote { txid, vote, code, inquiry, .. } = vote;
        tracing::debug!(participant = %self.participant, %txid, ?vote, ?code, inquiry, "voting");
        self.last_token += 1;
        self.votes.insert(self.last_token, pending);
        self.unsent.push_back(self.last_token);
        self.send_unsent();
    }

    fn send_unsent(&mut self) {
        while let Some(&token) = self.unsent.front() {
            if let Some(vote) = self.votes.get(&token) {
                let key = vote.txid.to_string();
                let partition = vote.shard.partition();
                let traceparent = vote.traceparent.as_deref();
                let (topic, value) = (&self.names.votes, Some(vote.value.as_slice()));
                let act = if vote.offset.is_some() { Act::AppendVote } else { Act::AppendInquiry };
                before(act);
                if self.outbox.append(topic, partition, key.as_bytes(), value, "vote", traceparent, token).is_err() {
                    return;
                }
                after(act);
            }
            self.unsent.pop_front();
        }
    }

    fn on_delivery(&mut self, Delivery { token, result }: Delivery) -> Result<(), ServiceError> {
        if self.alarms.is_told(token, &result) {
            return Ok(());
        }
        match result {
            Ok(_) => {
                before(Act::VoteIsThere);
                if let Some(vote) = self.votes.remove(&token)
                    && let (Some(offset), Some(state)) = (vote.offset, self.shards.get_mut(&vote.shard))
                {
                    state.prepares.progress.done(offset);
                }
                after(Act::VoteIsThere);
                self.send_unsent();
                Ok(())
            }
            // It is asked again by itself.
            Err(Failure::Again(_)) if self.votes.get(&token).is_some_and(|vote| vote.offset.is_none()) => {
                self.votes.remove(&token);
                Ok(())
            }
            // Due again, with the next tick: the same vote.
            Err(Failure::Again(reason)) => {
                tracing::debug!(participant = %self.participant, reason, "a vote is appended again");
                self.unsent.push_back(token);
                Ok(())
            }
            Err(failure @ (Failure::Refused(_) | Failure::Denied(_) | Failure::Fatal(_))) => {
                Err(ServiceError::Votes { topic: self.names.votes.clone(), failure })
            }
        }
    }

    // ---- upkeep ------------------------------------------------------------------------------------------------------

    fn on_upkeep(&mut self, found: Found) {
        let live = self.live();
        for ask in self.upkeep.on_found(found, &self.resource, &live) {
            self.ask(ask);
        }
    }

    fn live(&self) -> BTreeMap<Shard, Live> {
        let live = self.shards.iter().filter(|(_, state)| state.phase == Phase::Live);
        let how_far =
            |Track { progress, committed, .. }: &Track| Live { applied: progress.position(), acknowledged: *committed };
        live.map(|(shard, state)| (*shard, how_far(&state.decisions))).collect()
    }

    // ---- positions ---------------------------------------------------------------------------------------------------

    /// The row in the database first.
    fn store_positions(&mut self) {
        if !self.store_job.is_empty() || !self.commit_job.is_empty() {
            return;
        }
        let (mut rows, mut seen) = (Vec::new(), Vec::new());
        for (&shard, state) in &self.shards {
            if matches!(state.phase, Phase::Taking(_)) {
                continue;
            }
            let logs = [
                (&self.names.prepares, self.letters.prepares, &state.prepares),
                (&self.names.decisions, self.letters.decisions, &state.decisions),
            ];
            for (topic, letters, track) in logs {
                let at = |next_offset| Position { topic: topic.clone(), letters, shard, next_offset };
                seen.extend(track.stored.map(at));
                let next_offset = track.progress.position();
                if track.stored != Some(next_offset) {
                    rows.push(at(next_offset));
                }
            }
        }
        if rows.is_empty() && !std::mem::take(&mut self.is_look_due) {
            return self.commit_positions();
        }
        let resource = Arc::clone(&self.resource);
        self.store_job.spawn(async move {
            let storing = until_answered(|| resource.store_positions(rows.clone(), seen.clone()));
            let stored = around(Act::StorePositions, storing).await;
            (rows, stored)
        });
    }

    fn on_stored(&mut self, (rows, stored): (Vec<Position>, Stored)) -> Result<(), ServiceError> {
        if stored == Stored::WentBack {
            return Err(ServiceError::WentBack);
        }
        for Position { topic, shard, next_offset, .. } in rows {
            if let Some(track) = self.track_of(&topic, shard) {
                track.stored = Some(next_offset);
            }
        }
        self.commit_positions();
        Ok(())
    }

    /// The group's offset follows the row, with the ledger's id: that is the acknowledgement.
    fn commit_positions(&mut self) {
        let mut commits = Vec::new();
        let all = std::mem::take(&mut self.is_commit_due);
        for (shard, state) in &self.shards {
            let logs = [(&self.names.prepares, &state.prepares), (&self.names.decisions, &state.decisions)];
            for (topic, track) in logs {
                if let Some(offset) = track.stored.filter(|_| all || track.committed != track.stored) {
                    let metadata = self.resource.ledger_id();
                    commits.push(Commit { topic: topic.clone(), partition: shard.partition(), offset, metadata });
                }
            }
        }
        if !commits.is_empty() {
            before(Act::CommitOffsets);
            let committing = self.membership.commit_async(commits.clone());
            self.commit_job.spawn(async move { (commits, committing.await) });
        }
    }

    fn on_committed(&mut self, (commits, result): (Vec<Commit>, Result<(), CommitError>)) -> Result<(), ServiceError> {
        match result {
            Ok(()) => {
                after(Act::CommitOffsets);
                for Commit { topic, partition, offset, .. } in commits {
                    if let Some(track) = Shard::of_partition(partition).and_then(|shard| self.track_of(&topic, shard)) {
                        track.committed = Some(offset);
                    }
                }
                Ok(())
            }
            // Due again, with the next tick, if the shard is still ours then.
            Err(CommitError::NotMember(reason) | CommitError::Again(reason)) => {
                tracing::debug!(participant = %self.participant, reason, "positions are committed again");
                Ok(())
            }
            Err(error @ CommitError::Refused(_)) => Err(ServiceError::Acknowledgement(error)),
        }
    }

    fn track_of(&mut self, topic: &str, shard: Shard) -> Option<&mut Track> {
        let state = self.shards.get_mut(&shard)?;
        Some(if *topic == self.names.decisions { &mut state.decisions } else { &mut state.prepares })
    }

    fn state_of(&mut self, partition: i32) -> Option<&mut ShardState> {
        let shard = Shard::of_partition(partition)?;
        self.shards.get_mut(&shard).filter(|state| state.phase != Phase::Stopped)
    }

    fn stopped_shards(&self) -> usize {
        self.shards.values().filter(|state| state.phase == Phase::Stopped).count()
    }

    fn is_running(&self, shard: Shard) -> bool {
        self.shards.get(&shard).is_some_and(|state| state.phase != Phase::Stopped)
    }

    // ---- what operators see ------------------------------------------------------------------------------------------

    fn tell_noted_aborts(&mut self) {
        let noted_aborts = std::mem::take(&mut self.noted_aborts);
        if noted_aborts > 0 {
            tracing::info!(
                participant = %self.participant, noted_aborts,
                "aborts were noted of transactions whose prepares never ran here; no business row was touched"
            );
        }
    }

    fn summarise(&mut self) {
        if !self.summary_job.is_empty() {
            return;
        }
        self.tell_noted_aborts();
        self.alarms.try_again();
        for (shard, state) in &self.shards {
            if let Phase::CatchingUp { end } = state.phase {
                let position = state.decisions.progress.position();
                tracing::warn!(
                    participant = %self.participant, %shard, position, end,
                    "still reading the decisions to the end that they had; if the position does not move, somebody wrote \
                     with Kafka transactions there: a log that ends with such a marker is read to its end when the next \
                     record comes"
                );
            }
        }
        let (participant, names) = (self.participant.clone(), self.names.clone());
        let (resource, probe) = (Arc::clone(&self.resource), Arc::clone(&self.probe));
        let open: usize = self.shards.values().map(|state| state.prepares.progress.open()).sum();
        let (shards, stopped) = (self.shards.len(), self.stopped_shards());
        // Also of stopped shards: what lies behind them waits for an operator.
        let done = |track: fn(&ShardState) -> &Track| -> Vec<(Shard, u64)> {
            self.shards.iter().map(|(shard, state)| (*shard, track(state).progress.position())).collect()
        };
        let (prepared, decided) = (done(|state| &state.prepares), done(|state| &state.decisions));
        let known_oldest = self.upkeep.oldest();
        self.summary_job.spawn(async move {
            let lags = blocking(move || {
                let unapplied = lag(&probe, &names.decisions, &decided)?;
                Some((unapplied, unapplied + lag(&probe, &names.prepares, &prepared)?))
            });
            let (unapplied, lag) = lags.await.ok().flatten().unzip();
            let in_doubt = resource.in_doubt().await.ok();
            let oldest = in_doubt.iter().flatten().filter_map(|waiting| waiting.age).fold(known_oldest, Duration::max);
            let in_doubt = in_doubt.map(|waiting| waiting.len());
            let oldest_s = oldest.as_secs();
            tracing::info!(%participant, shards, stopped, open, in_doubt, oldest_s, unapplied, lag, "summary");
        });
    }

    // ---- the end -----------------------------------------------------------------------------------------------------

    /// Finishes what has begun, acknowledges it, and leaves the group so that others take over at once.
    async fn drain(mut self, inbox: Inbox) {
        let Inbox { prepare_events, decision_events, member_events, mut delivered } = inbox;
        // A reader that waits for room in its channel could not end.
        drop((prepare_events, decision_events, member_events));
        self.prepare_queue.clear();
        self.decision_queue.clear();
        self.stuck_decisions.clear();
        self.held_decisions.clear();
        self.held_prepares.clear();
        if timeout(DRAIN, self.finish(&mut delivered)).await.is_err() {
            tracing::warn!(participant = %self.participant, "the end was reached with work under way; it is done again at the next start");
        }
        let Self { participant, outbox, prepares, decisions, membership, .. } = self;
        let left = blocking(move || {
            let left = membership.leave(DRAIN);
            prepares.close(DRAIN);
            decisions.close(DRAIN);
            let _ = outbox.close(DRAIN);
            left
        });
        match left.await {
            Ok(true) => tracing::info!(%participant, "participant ended"),
            Ok(false) | Err(_) => {
                tracing::warn!(%participant, "the group could not be left in time; its session runs out")
            }
        }
    }

    async fn finish(&mut self, delivered: &mut mpsc::UnboundedReceiver<Delivery>) {
        while let Some(decided) = self.decision_job.join_next().await {
            self.on_decided(decided.unwrap_or_default());
        }
        self.stuck_job.shutdown().await;
        while let Some(prepared) = self.prepare_jobs.join_next().await {
            self.on_prepared(prepared.unwrap_or_default());
        }
        while !self.votes.is_empty() {
            let Some(report) = delivered.recv().await else { break };
            if self.on_delivery(report).is_err() {
                break;
            }
            self.send_unsent();
        }
        self.alarms.finish().await;
        // Twice: what is under way may be older than what is done.
        for _ in 0..2 {
            self.store_positions();
            while let Some(stored) = self.store_job.join_next().await {
                if stored.is_ok_and(|stored| self.on_stored(stored).is_err()) {
                    return;
                }
            }
            while let Some(committed) = self.commit_job.join_next().await {
                drop(self.on_committed(committed.unwrap_or_else(|_| (Vec::new(), Ok(())))));
            }
        }
    }
}

impl Track {
    fn starting_at(position: u64, stored: Option<u64>) -> Self {
        let progress = Progress::starting_at(position);
        Self { progress, awaits: None, stored, committed: None, skips: BTreeSet::new() }
    }

    fn positioned(&mut self, offset: u64) {
        if self.awaits == Some(offset) {
            self.awaits = None;
        }
    }

    /// Whether the record belongs to where we read now; it is open from then on.
    fn takes(&mut self, record: &Record) -> bool {
        let takes = self.awaits.is_none();
        if takes {
            self.progress.read(record.offset);
        }
        takes
    }
}

async fn look_for<R: Resource>(resource: &R, parked: Vec<Txid>) -> Result<LinesFound, Unavailable> {
    let in_doubt = resource.in_doubt().await?.into_iter().map(|waiting| waiting.txid).collect();
    Ok(LinesFound { in_doubt, known: resource.states(parked).await?.into_keys().collect() })
}

/// The first messages whose shards still run.
fn take_batch<M>(queue: &mut VecDeque<Job<M>>, most: usize, shards: &BTreeMap<Shard, ShardState>) -> Vec<Job<M>> {
    let count = queue.len().min(most);
    let runs = |job: &Job<M>| shards.get(&job.shard).is_some_and(|state| state.phase != Phase::Stopped);
    queue.drain(..count).filter(runs).collect()
}

/// Why a shard stops in front of a record, and what to do.
pub(crate) fn unusable(what: &str, record: &Record, why: &str) -> String {
    let Record { topic, partition, offset, .. } = record;
    let remedy = match why {
        "newer_version" => "upgrade this participant, then start it again",
        _ => "find out who wrote it: only coordinators may write to this topic",
    };
    format!("the {what} at {topic}/{partition}/{offset} is {why}: {remedy}")
}

pub(crate) fn list(txids: &[Txid]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<String> = txids.iter().take(SHOWN).map(Txid::to_string).collect();
    let more = if txids.len() > SHOWN { ", .." } else { "" };
    format!("{}{more}", shown.join(", "))
}
