//! A database that went back is brought back, before the group is joined.
//!
//! ```text
//! the group's offsets, our own rows              one of them went back?  a new name, and the mark `restoring`: together
//! decisions, from our own position to the end    aborts, and what is in doubt: as always; other commits: kept
//! our own votes, all that there are              what we have promised, and the ledger does not know
//! prepares, all that there are                   where those of the commits are, and of what is open
//! a vote said again in each shard, and read      up to there our registers are known
//! round after round                              decisions that came since; commits whose rows are missing: run and committed
//!                                                again, in order; and then who said yes: prepared again
//! at last                                        who has no vote: prepared, or else voted no, and what stands there then counts
//! the mark goes                                  and the service begins at its own rows, as always
//! ```
//!
//! What becomes of which transaction is said in [`suture_participants_core::restore`].
//!
//! - **No position is moved here.** The service reads the same decisions again, finds what is done as done, and stops in front of
//!   what is lost. So all of this may be cut off anywhere: as long as the mark is there, the next start begins anew, and
//!   finds in the ledger what was done before.
//! - **Nothing hangs on an end that a leader shows.** Where the votes end is known from our own append; a promise whose prepare was not
//!   met shows that there are more prepares; and decisions are looked for in every round.
//! - **Whoever is in somebody else's way goes on.** A commit waits for a lock for as long as it takes, and the decision that ends
//!   whoever holds it is read meanwhile.
//! - The new name makes void what the group has acknowledged. It is committed with the service's first positions, which lie
//!   below: that goes back too.
//! - Another process that still runs on this database stores no position under the old name: it ends.
//! - **What a person has let be passed is passed** here too, as far as the backup knows of it. Another record that cannot be read is
//!   read over, and the service stops in front of it. One of a newer version may be anything, also the prepare of a commit; so
//!   it is noted, and ends the process until that is upgraded, or a person says that it may be passed.
//! - Bounded: of a commit its name, hash and place are kept; payloads by the portion.
//!
//! Left out: group offsets that have expired (a participant that was away for a week): then nobody knows that the database
//! went back, and each missing branch is LOST when its commit is met.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use suture_contract::codec::{Message, encode};
use suture_contract::ids::{Code, LogLetters, Participant, RequestHash, Shard, Txid, code};
use suture_contract::messages::{Ballot, Decision, Prepare, Vote, Voter};
use suture_contract::register::{NoVote, Register};
use suture_contract::topic_map::participant_group;
use suture_participants_core::branch::Answer;
use suture_participants_core::envelope::Read;
use suture_participants_core::marks::Marks;
use suture_participants_core::restore::{Due, Place, Plan, is_void, portion, went_back};
use suture_topics::acks::GroupOffsets;
use suture_topics::blocking::{pause, spawn};
use suture_topics::failure::KafkaFailure;
use suture_topics::membership::Committed;
use suture_topics::outbox::{Delivery, Failure, Outbox};
use suture_topics::probe::Probe;
use suture_topics::record::Record;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::envelope::{read_decision, read_prepare};
use crate::incidents::{self, skipped};
use crate::jobs::{Job, decide, decide_again, until_answered};
use crate::points::{Act, after, around, before};
use crate::resource::{Effect, Position, Prepared, Redone, Resource, Which};
use crate::service::{ServiceError, list, unusable};
use crate::take::{Letters, Names, blocking, range};

/// How often it is said how far we are.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Records that are read ahead.
const READ_AHEAD: usize = if cfg!(suture_simulated) { 1 << 16 } else { 64 };

/// Most decisions or transactions in one question to the database.
const BATCH: usize = 512;

/// Most commits in one local transaction.
const REDO_BATCH: usize = 128;

/// Most payloads in memory, by number and by bytes.
const PORTION: usize = 2_000;
const PORTION_BYTES: usize = 32 << 20;

/// While something that may go is in the way of what is done or prepared again, rounds may help nobody for so long, and the pause
/// between two of them. By time and not by number: each that waits for a lock makes its round longer.
const PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);

/// Rounds that help nobody before it is believed, each with a look for decisions that came since.
const LAST_ROUNDS: u32 = 3;

/// How often it is looked for what must be there, so far apart: a leader that was cut off shows an old end for some seconds.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// How long the producer of votes may take to end.
const DRAIN: Duration = Duration::from_secs(10);

/// Brings the database back, if it went back.
pub(crate) async fn bring_back<R: Resource>(
    kafka: &KafkaSettings,
    participant: &Participant,
    resource: &R,
    probe: &Arc<Probe>,
    names: &Names,
    letters: Letters,
) -> Result<(), ServiceError> {
    let group = participant_group(&kafka.prefix, participant);
    let logs = look(kafka, &group, resource, names, letters).await?;
    let (ledger, is_marked) = (resource.ledger_id(), until_answered(|| resource.is_restoring()).await);
    let tells = |log: &&Log| if is_marked { log.is_void(&ledger) } else { log.went_back(&ledger) };
    let log = logs.iter().find(tells);
    if log.is_none() && !is_marked {
        return Ok(());
    }
    if is_marked {
        tracing::warn!(%participant, ledger, "the database is marked: bringing it back was cut off, or is asked for by hand, and begins anew");
    }
    if let Some(log) = log {
        tracing::warn!(
            %participant, ledger, topic = log.topic, shard = %log.shard, position = log.own,
            acknowledged = log.committed.as_ref().map(|committed| committed.offset),
            "the database went back: this ledger had acknowledged more than it holds; what is missing is brought back"
        );
        around(Act::BeginRestore, until_answered(|| resource.begin_restore())).await;
        if !until_answered(|| resource.is_restoring()).await {
            tracing::info!(%participant, "another process has brought the database back meanwhile");
            return Ok(());
        }
    }
    let in_doubt = until_answered(|| resource.in_doubt()).await;
    let counts = Counts::default();
    let mut restore = Restore {
        kafka,
        scanners: Scanners { kafka: kafka.clone(), group, idle: Arc::default() },
        participant,
        resource,
        probe,
        names,
        letters,
        skipped: skipped(&until_answered(|| resource.noted(Which::All)).await),
        marks: until_answered(|| resource.marks()).await,
        logs,
        plan: Plan::new(in_doubt.into_iter().map(|waiting| waiting.txid)),
        prepares_end: BTreeMap::new(),
        decisions_to: BTreeMap::new(),
        prepares_to: BTreeMap::new(),
        votes_to: BTreeMap::new(),
        done: Done::default(),
        counts: &counts,
    };
    tokio::select! {
        done = restore.run() => done,
        never = tell(participant, &counts) => match never {},
    }
}

/// A log of a shard, as we left it and as the group says.
struct Log {
    topic: String,
    shard: Shard,
    own: Option<u64>,
    committed: Option<Committed>,
}

impl Log {
    fn went_back(&self, ledger: &str) -> bool {
        let went_back = |committed: &Committed| went_back(ledger, self.own, committed.offset, &committed.metadata);
        self.committed.as_ref().is_some_and(went_back)
    }

    fn is_void(&self, ledger: &str) -> bool {
        let is_void = |committed: &Committed| is_void(ledger, self.own, committed.offset, &committed.metadata);
        self.committed.as_ref().is_some_and(is_void)
    }

    /// The log reached here once.
    fn reached(&self) -> Option<u64> {
        self.own.max(self.committed.as_ref().map(|committed| committed.offset))
    }
}

async fn look<R: Resource>(
    kafka: &KafkaSettings,
    group: &str,
    resource: &R,
    names: &Names,
    letters: Letters,
) -> Result<Vec<Log>, ServiceError> {
    let mut logs = Vec::new();
    for (topic, letters) in [(&names.prepares, letters.prepares), (&names.decisions, letters.decisions)] {
        // The group first: another instance stores its row and then commits, also between these two questions.
        let committed = {
            let (kafka, group, topic) = (kafka.clone(), group.to_string(), topic.clone());
            suture_topics::failure::until_answered(move || {
                let partitions: Vec<(&str, i32)> =
                    (0..kafka.partitions).map(|shard| (topic.as_str(), Shard(shard).partition())).collect();
                GroupOffsets::new(&kafka).committed(&group, &partitions)
            })
            .await?
        };
        let rows = until_answered(|| resource.load_positions(topic.clone())).await;
        let own = |shard: Shard| {
            let is_own = |row: &&Position| row.letters == letters && row.shard == shard;
            rows.iter().find(is_own).map(|row| row.next_offset)
        };
        let of_shard = |(shard, committed): (u16, Option<Committed>)| {
            let shard = Shard(shard);
            Log { topic: topic.clone(), shard, own: own(shard), committed }
        };
        logs.extend((0..kafka.partitions).zip(committed).map(of_shard));
    }
    Ok(logs)
}

/// How far we are.
#[derive(Default)]
struct Counts {
    decisions: AtomicU64,
    kept: AtomicU64,
    prepares: AtomicU64,
    redone: AtomicU64,
    round: AtomicU64,
}

fn add(count: &AtomicU64, more: usize) {
    count.fetch_add(more as u64, Ordering::Relaxed);
}

async fn tell(participant: &Participant, counts: &Counts) -> std::convert::Infallible {
    let mut tell = interval(TELL_EVERY);
    tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tell.tick().await;
    loop {
        tell.tick().await;
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        tracing::info!(
            %participant, decisions = now(&counts.decisions), kept = now(&counts.kept), prepares = now(&counts.prepares),
            redone = now(&counts.redone), round = now(&counts.round), "the database is being brought back"
        );
    }
}

struct Restore<'a, R> {
    kafka: &'a KafkaSettings,
    scanners: Scanners,
    participant: &'a Participant,
    resource: &'a R,
    probe: &'a Arc<Probe>,
    names: &'a Names,
    letters: Letters,
    skipped: BTreeSet<incidents::Place>,
    /// Below what rows were purged: that is over.
    marks: Marks,
    logs: Vec<Log>,
    plan: Plan,
    /// Where the prepares ended when this began.
    prepares_end: BTreeMap<Shard, u64>,
    /// Up to where each log is read.
    decisions_to: BTreeMap<Shard, u64>,
    prepares_to: BTreeMap<Shard, u64>,
    votes_to: BTreeMap<Shard, u64>,
    done: Done,
    counts: &'a Counts,
}

/// What was done beside the commits.
#[derive(Default)]
struct Done {
    noted_aborts: usize,
    finished: usize,
    faults: usize,
}

impl<R: Resource> Restore<'_, R> {
    async fn run(&mut self) -> Result<(), ServiceError> {
        let of_topic = |logs: &[Log], topic: &str| -> Vec<(Shard, Option<u64>, Option<u64>)> {
            let of_topic = logs.iter().filter(|log| log.topic == topic);
            of_topic.map(|log| (log.shard, log.own, log.reached())).collect()
        };
        let of_prepares = of_topic(&self.logs, &self.names.prepares);
        // Before the decisions are: so the decision that let one of an ordered key begin is among those that are read.
        for &(shard, _, reached) in &of_prepares {
            let (_, end) = range(self.probe, &self.names.prepares, shard, reached).await?;
            self.prepares_end.insert(shard, end);
        }
        let mut behind = BTreeMap::new();
        for (shard, own, reached) in of_topic(&self.logs, &self.names.decisions) {
            let (start, end) = range(self.probe, &self.names.decisions, shard, reached).await?;
            if own.is_some_and(|own| own < start || own > end) {
                // The service looks at it again, stops this shard, and says why.
                tracing::error!(participant = %self.participant, %shard, "our own position lies outside the decisions: this shard is not brought back");
                continue;
            }
            if let Some(reached) = reached.filter(|reached| *reached > end) {
                tracing::error!(
                    participant = %self.participant, %shard, end, reached,
                    "the decisions end before what was acknowledged: some are missing from the log too"
                );
            }
            self.read_decisions(shard, (own.unwrap_or(start), end)).await?;
            behind.insert(shard, (start, own.unwrap_or(start)));
        }
        let kept = self.plan.kept();
        let Done { noted_aborts, finished, faults } = self.done;
        tracing::info!(
            participant = %self.participant, decisions = self.counts.decisions.load(Ordering::Relaxed), noted_aborts, finished,
            faults, kept, "the decisions are read to their end; those kept are commits that may be missing"
        );
        let mut below = BTreeMap::new();
        let mut last = Vec::new();
        for (shard, own, reached) in of_prepares {
            if behind.contains_key(&shard) {
                let votes = range(self.probe, &self.names.votes, shard, None).await?;
                last.extend(self.read_votes(shard, votes).await?);
                let prepares = range(self.probe, &self.names.prepares, shard, reached).await?;
                self.read_prepares(shard, prepares).await?;
                below.insert(shard, own.unwrap_or(0));
            }
        }
        self.vote(last).await?;
        self.look_for_prepares().await?;
        // Above that it has its row, if it was decided below our own position on the decisions.
        for shard in self.plan.shards_open(&below) {
            let stretch = behind.get(&shard).copied().unwrap_or_default();
            self.pass_decided(shard, stretch).await?;
        }
        let brought = self.bring_through().await?;
        around(Act::EndRestore, until_answered(|| self.resource.end_restore())).await;
        let Brought { rounds, redone, known, lost, prepared, not_prepared } = brought;
        let Done { noted_aborts, finished, .. } = self.done;
        tracing::warn!(
            participant = %self.participant, ledger = self.resource.ledger_id(), redone, known, rounds, prepared, not_prepared,
            noted_aborts, finished, lost,
            "the database was brought back; the service begins"
        );
        Ok(())
    }

    // ---- what the logs say -------------------------------------------------------------------------------------------

    async fn read_decisions(&mut self, shard: Shard, stretch: (u64, u64)) -> Result<(), ServiceError> {
        let mut records = self.records(&self.names.decisions, shard, stretch);
        let mut batch = Vec::new();
        self.decisions_to.entry(shard).or_insert(stretch.0);
        while let Some(record) = records.recv().await {
            let record = record.map_err(unread)?;
            add(&self.counts.decisions, 1);
            self.decisions_to.insert(shard, record.offset + 1);
            match read_decision(&record, self.participant) {
                Read::Ours(message) => {
                    if self.plan.decided(&message, record.timestamp_ms.unwrap_or_default()) {
                        batch.push(Job { shard, offset: record.offset, message, traceparent: None });
                    } else {
                        self.counts.kept.store(self.plan.kept() as u64, Ordering::Relaxed);
                    }
                }
                Read::Passed | Read::Odd(_) => {}
                Read::Stop(why) => {
                    let letters = self.letters.decisions;
                    self.read_over("decision", (&self.names.decisions, letters), shard, &record, why).await?;
                }
            }
            if batch.len() == BATCH {
                self.decide(std::mem::take(&mut batch)).await;
            }
        }
        self.decide(batch).await;
        Ok(())
    }

    /// Decisions that came since. Answers whether there were any.
    async fn read_news(&mut self) -> Result<bool, ServiceError> {
        let mut is_news = false;
        for (shard, next) in self.decisions_to.clone() {
            let (_, end) = range(self.probe, &self.names.decisions, shard, None).await?;
            self.read_decisions(shard, (next, end)).await?;
            is_news |= self.decisions_to.get(&shard) != Some(&next);
        }
        Ok(is_news)
    }

    async fn decide(&mut self, batch: Vec<Job<Decision>>) {
        let mut decided = decide(self.resource, batch).await;
        loop {
            let mut stuck = Vec::new();
            for (job, decided) in decided {
                match decided {
                    Ok(Effect::NotedAbort) => self.done.noted_aborts += 1,
                    Ok(Effect::Finished) => self.done.finished += 1,
                    Ok(Effect::Repeated) => {}
                    Ok(Effect::Later) => stuck.push(job),
                    // The service meets it again and stops the shard.
                    Err(fault) => {
                        self.done.faults += 1;
                        let (participant, txid) = (self.participant, job.message.txid);
                        tracing::error!(%participant, %txid, %fault, "a decision cannot be carried out");
                    }
                }
            }
            if stuck.is_empty() {
                return;
            }
            decided = decide_again(self.resource, stuck).await;
        }
    }

    /// Our own votes: of what the ledger does not know. Answers the last one of them.
    async fn read_votes(&mut self, shard: Shard, stretch: (u64, u64)) -> Result<Option<Vote>, ServiceError> {
        let mut records = self.records(&self.names.votes, shard, stretch);
        let (mut perhaps, mut last) = (Vec::new(), None);
        self.votes_to.entry(shard).or_insert(stretch.0);
        while let Some(record) = records.recv().await {
            let record = record.map_err(unread)?;
            self.votes_to.insert(shard, record.offset + 1);
            let register = Register { log: self.letters.requests, shard, participant: self.participant };
            match register.read_vote(record.key.as_deref(), record.value.as_deref()) {
                Ok(vote) => {
                    if self.plan.may_be_open(&vote.txid) {
                        perhaps.push((vote.txid, (vote.hash, vote.vote)));
                    }
                    if vote.by == Voter::Participant {
                        last = Some(vote);
                    }
                }
                Err(NoVote::Newer { .. }) => {
                    return Err(ServiceError::Restore(unusable("vote", &record, "newer_version")));
                }
                // Void for everyone.
                Err(NoVote::Unreadable | NoVote::ForeignLog | NoVote::Misrouted | NoVote::Malformed) => {}
            }
            if perhaps.len() == BATCH {
                self.note_votes(std::mem::take(&mut perhaps)).await;
            }
        }
        self.note_votes(perhaps).await;
        Ok(last)
    }

    async fn note_votes(&mut self, perhaps: Vec<(Txid, (RequestHash, Ballot))>) {
        for (txid, (hash, ballot)) in self.unknown(perhaps).await {
            self.plan.open_voted(txid, hash, ballot);
        }
    }

    async fn read_prepares(&mut self, shard: Shard, log: (u64, u64)) -> Result<(), ServiceError> {
        let mut records = self.records(&self.names.prepares, shard, log);
        let mut perhaps = Vec::new();
        self.prepares_to.entry(shard).or_insert(log.0);
        while let Some(record) = records.recv().await {
            let record = record.map_err(unread)?;
            add(&self.counts.prepares, 1);
            self.prepares_to.insert(shard, record.offset + 1);
            match read_prepare(&record, self.letters.requests) {
                Read::Ours(message) => {
                    let bytes = record.value.as_ref().map_or(0, Vec::len);
                    let place = Place { offset: record.offset, bytes };
                    if self.plan.asked(&message, place) {
                        perhaps.push((message.txid, (message.hash, place)));
                    }
                }
                Read::Passed | Read::Odd(_) => {}
                Read::Stop(why) => {
                    let letters = self.letters.prepares;
                    self.read_over("prepare", (&self.names.prepares, letters), shard, &record, why).await?;
                }
            }
            if perhaps.len() == BATCH {
                self.note_prepares(std::mem::take(&mut perhaps)).await;
            }
        }
        self.note_prepares(perhaps).await;
        Ok(())
    }

    async fn note_prepares(&mut self, perhaps: Vec<(Txid, (RequestHash, Place))>) {
        for (txid, (hash, place)) in self.unknown(perhaps).await {
            let end = self.prepares_end.get(&txid.shard).copied().unwrap_or_default();
            self.plan.open_asked(txid, hash, place, end);
        }
    }

    /// A commit or a promise whose prepare was not met: it stands behind the end that we were shown, or was trimmed.
    async fn look_for_prepares(&mut self) -> Result<(), ServiceError> {
        for look in 0.. {
            let not_found = self.plan.not_found().into_iter().map(|txid| (txid, ())).collect();
            let not_found = self.unknown(not_found).await;
            if not_found.is_empty() {
                break;
            }
            if look == LOOKS {
                let txids: Vec<Txid> = not_found.into_iter().map(|(txid, ())| txid).collect();
                tracing::error!(
                    participant = %self.participant, without = txids.len(), txids = list(&txids),
                    "branches that are committed, or have a yes of ours, have no prepare any more: what is committed of these is LOST"
                );
                break;
            }
            sleep(BETWEEN_LOOKS).await;
            let shards: BTreeSet<Shard> = not_found.iter().map(|(txid, ())| txid.shard).collect();
            for shard in shards {
                let (start, end) = range(self.probe, &self.names.prepares, shard, None).await?;
                let from = self.prepares_to.get(&shard).copied().unwrap_or(start);
                self.read_prepares(shard, (from, end)).await?;
            }
        }
        Ok(())
    }

    /// A record in front of which the service stops, unless a person has let it be passed. What is behind it is brought back all the
    /// same: no position moves here, and when the service goes on it goes on at decisions.
    async fn read_over(
        &self,
        what: &str,
        (topic, letters): (&str, LogLetters),
        shard: Shard,
        record: &Record,
        why: &'static str,
    ) -> Result<(), ServiceError> {
        let place = incidents::Place { topic: topic.to_string(), letters, shard, offset: record.offset };
        if self.skipped.contains(&place) {
            return Ok(());
        }
        let (participant, problem) = (self.participant, unusable(what, record, why));
        if why != "newer_version" {
            tracing::error!(%participant, %shard, problem, "read over while the database is brought back");
            return Ok(());
        }
        let entry = incidents::entry_at(&place, incidents::unreadable(participant, why));
        until_answered(|| self.resource.note(vec![entry.clone()])).await;
        Err(ServiceError::Restore(format!("{problem}; see `suture participant {participant} lost`")))
    }

    /// What was decided before our own position is not undecided, whatever the ledger has of it.
    async fn pass_decided(&mut self, shard: Shard, stretch: (u64, u64)) -> Result<(), ServiceError> {
        let mut records = self.records(&self.names.decisions, shard, stretch);
        while let Some(record) = records.recv().await {
            if let Read::Ours(decision) = read_decision(&record.map_err(unread)?, self.participant) {
                self.plan.was_decided(&decision.txid);
            }
        }
        Ok(())
    }

    /// Those of which neither the ledger, with its marks, nor the database's list of branches has anything.
    async fn unknown<T>(&self, mut about: Vec<(Txid, T)>) -> Vec<(Txid, T)> {
        about.retain(|(txid, _)| !self.marks.covers(txid));
        if about.is_empty() {
            return about;
        }
        let txids: BTreeSet<Txid> = about.iter().map(|(txid, _)| *txid).collect();
        let looking = until_answered(|| self.resource.states(txids.iter().copied().collect()));
        let known = around(Act::LookForMissing, looking).await;
        about.retain(|(txid, _)| !known.contains_key(txid));
        about
    }

    // ---- our own registers -------------------------------------------------------------------------------------------

    /// Appends votes, and reads all of ours up to them: by then every register that they are about is known. One that was full stays as
    /// it was.
    async fn vote(&mut self, votes: Vec<Vote>) -> Result<(), ServiceError> {
        for (shard, end) in self.append(votes).await? {
            loop {
                let from = self.votes_to.get(&shard).copied().unwrap_or_default();
                if from >= end {
                    break;
                }
                self.read_votes(shard, (from, end)).await?;
            }
        }
        Ok(())
    }

    /// Says no to what was not voted on and cannot be prepared.
    async fn refuse(&mut self, txids: Vec<Txid>) -> Result<(), ServiceError> {
        tracing::info!(
            participant = %self.participant, refused = txids.len(), txids = list(&txids),
            "what was not voted on and cannot be prepared now is refused"
        );
        let no = |txid: Txid| {
            let code = code::RESTORED.parse().expect("the code is valid");
            let (participant, hash) = (self.participant.clone(), self.plan.hash(&txid)?);
            let (vote, by) = (Ballot::No, Voter::Participant);
            Some(Vote { txid, participant, vote, hash, by, code: Some(code), duplicate_of: None, inquiry: false })
        };
        let noes = txids.into_iter().filter_map(no).collect();
        self.vote(noes).await
    }

    /// Appends votes until all of them stand in the log. Answers where each shard's votes end then.
    async fn append(&self, votes: Vec<Vote>) -> Result<BTreeMap<Shard, u64>, ServiceError> {
        let (reports, mut delivered) = mpsc::unbounded_channel();
        let client_id = format!("participant-{}-restore", self.participant);
        let outbox = Outbox::start(self.kafka, &client_id, move |report| drop(reports.send(report)))?;
        let mut ends: BTreeMap<Shard, u64> = BTreeMap::new();
        let mut due: Vec<usize> = (0..votes.len()).rev().collect();
        let mut left = votes.len();
        while left > 0 {
            while let Some(place) = due.pop() {
                let (vote, topic) = (&votes[place], &self.names.votes);
                let (key, value) = (vote.txid.to_string(), encode(vote));
                let partition = vote.txid.shard.partition();
                before(Act::AppendVote);
                let appended =
                    outbox.append(topic, partition, key.as_bytes(), Some(&value), Vote::TYPE, None, place as u64);
                if appended.is_err() {
                    due.push(place);
                    break;
                }
                after(Act::AppendVote);
            }
            let Some(Delivery { token, result }) = delivered.recv().await else { break };
            let place = token as usize;
            match result {
                Ok(offset) => {
                    left -= 1;
                    let end = ends.entry(votes[place].txid.shard).or_default();
                    *end = (*end).max(offset + 1);
                }
                Err(Failure::Again(reason)) => {
                    tracing::debug!(participant = %self.participant, reason, "a vote is appended again");
                    due.push(place);
                }
                Err(failure) => return Err(ServiceError::Votes { topic: self.names.votes.clone(), failure }),
            }
        }
        // All reports have come: there is nothing to wait for but its thread.
        let _ = blocking(move || outbox.close(DRAIN)).await?;
        Ok(ends)
    }

    // ---- what is done about it ---------------------------------------------------------------------------------------

    /// All of them; and who has no vote last of all.
    async fn bring_through(&mut self) -> Result<Brought, ServiceError> {
        let mut brought = Brought::default();
        loop {
            let (commits, promises) = self.bring_decided_and_promised(&mut brought).await?;
            let refused = self.prepare_all(self.plan.unvoted(), &mut brought).await?;
            if refused.is_empty() {
                self.tell_failed(commits, promises, &mut brought).await;
                return Ok(brought);
            }
            // One of them may have a yes that nobody had seen.
            self.refuse(refused.into_keys().collect::<BTreeSet<_>>().into_iter().collect()).await?;
        }
    }

    /// Commits, and then who said yes, round after round, until nothing is left or a round helps nobody. Answers what failed, and why.
    async fn bring_decided_and_promised(
        &mut self,
        brought: &mut Brought,
    ) -> Result<(HashMap<Txid, Why>, HashMap<Txid, Why>), ServiceError> {
        let mut stuck: Option<(Instant, u32)> = None;
        let (mut commits, mut promises);
        loop {
            brought.rounds += 1;
            self.counts.round.store(brought.rounds, Ordering::Relaxed);
            let is_news = self.read_news().await?;
            let before = brought.count();
            commits = self.redo_all(brought).await?;
            // Whatever can be committed is, before somebody takes its locks.
            if !commits.is_empty() && brought.count() > before {
                continue;
            }
            promises = self.prepare_all(self.plan.to_prepare(), brought).await?;
            if commits.is_empty() && promises.is_empty() {
                break;
            }
            if is_news || brought.count() > before {
                stuck = None;
                continue;
            }
            let (since, rounds) = stuck.map_or_else(|| (Instant::now(), 1), |(since, rounds)| (since, rounds + 1));
            let waits = commits.values().any(|why| *why == Why::Blocked);
            let is_busy = commits.values().chain(promises.values()).any(Why::is_busy);
            if !waits && rounds >= LAST_ROUNDS && (!is_busy || since.elapsed() >= PATIENCE) {
                break;
            }
            if rounds == LAST_ROUNDS {
                self.tell_waiting(&commits, &promises);
            }
            stuck = Some((since, rounds));
            sleep(BETWEEN_ROUNDS).await;
        }
        Ok((commits, promises))
    }

    fn tell_waiting(&self, commits: &HashMap<Txid, Why>, promises: &HashMap<Txid, Why>) {
        let waiting: BTreeSet<Txid> =
            commits.iter().chain(promises).filter(|(_, why)| why.is_busy()).map(|(txid, _)| *txid).collect();
        let waiting: Vec<Txid> = waiting.into_iter().collect();
        tracing::warn!(
            participant = %self.participant, waiting = waiting.len(), txids = list(&waiting),
            "locks are in the way of what is brought back; it waits, and obeys the decisions that come meanwhile"
        );
    }

    async fn tell_failed(&self, commits: HashMap<Txid, Why>, promises: HashMap<Txid, Why>, brought: &mut Brought) {
        // The answer to a COMMIT may have been missed; what was asked again then has met its own row.
        let mut lost = Vec::new();
        let mut left: Vec<(Txid, Why)> = commits.into_iter().collect();
        left.sort_by_key(|(txid, _)| *txid);
        brought.known += left.len();
        while !left.is_empty() {
            let later = left.split_off(left.len().min(PORTION));
            lost.extend(self.unknown(std::mem::replace(&mut left, later)).await);
        }
        brought.known -= lost.len();
        brought.lost = lost.len();
        for (txid, why) in lost.iter().take(TOLD_ONE_BY_ONE) {
            let (participant, shard) = (self.participant, txid.shard);
            tracing::error!(%participant, %txid, %shard, code = why.code(), "LOST: a commit cannot be brought back; its shard will stop there");
        }
        if lost.len() > TOLD_ONE_BY_ONE {
            let txids: Vec<Txid> = lost.iter().map(|(txid, _)| *txid).collect();
            tracing::error!(participant = %self.participant, lost = txids.len(), txids = list(&txids), "LOST: these and more");
        }
        brought.not_prepared = promises.len();
        for (txid, why) in promises.into_iter().collect::<BTreeMap<_, _>>() {
            tracing::error!(
                participant = %self.participant, %txid, code = why.code(),
                "a branch was in doubt here and cannot be prepared again: if it is committed, it is LOST"
            );
        }
    }

    /// Tries all commits once, in order. Answers those that failed, and why.
    async fn redo_all(&mut self, brought: &mut Brought) -> Result<HashMap<Txid, Why>, ServiceError> {
        let due = self.plan.to_redo();
        let mut failed = HashMap::new();
        let mut rest = due.as_slice();
        while !rest.is_empty() {
            let (now, later) = portion(rest, PORTION, PORTION_BYTES);
            rest = later;
            let unknown = self.unknown(now.iter().map(|due| (due.txid, *due)).collect()).await;
            let mut done: HashSet<Txid> = now.iter().map(|due| due.txid).collect();
            brought.known += now.len() - unknown.len();
            let now: Vec<Due> = unknown.into_iter().map(|(_, due)| due).collect();
            let prepares = self.load(&now).await?;
            for due in &now {
                done.remove(&due.txid);
                failed.insert(due.txid, Why::without(due));
            }
            let batch: Vec<Arc<Prepare>> = now.iter().filter_map(|due| prepares.get(&due.txid).cloned()).collect();
            for batch in batch.chunks(REDO_BATCH) {
                for (prepare, redone) in batch.iter().zip(self.redo(batch).await) {
                    match redone {
                        Ok(Redone::Done) => {
                            brought.redone += 1;
                            add(&self.counts.redone, 1);
                        }
                        Ok(Redone::Known) => brought.known += 1,
                        Ok(Redone::Failed(code)) => {
                            failed.insert(prepare.txid, Why::Code(code));
                            continue;
                        }
                        Err(why) => {
                            failed.insert(prepare.txid, why);
                            continue;
                        }
                    }
                    failed.remove(&prepare.txid);
                    done.insert(prepare.txid);
                }
            }
            self.plan.redone(&done);
        }
        Ok(failed)
    }

    async fn redo(&self, batch: &[Arc<Prepare>]) -> Vec<Result<Redone, Why>> {
        // Together they may take longer than a question may take.
        if let Ok(Some(redone)) = self.resource.redo(batch.to_vec()).await {
            return redone.into_iter().map(Ok).collect();
        }
        let mut redone = Vec::with_capacity(batch.len());
        for prepare in batch {
            match self.resource.redo(vec![Arc::clone(prepare)]).await {
                Ok(one) => redone.extend(one.into_iter().flatten().map(Ok)),
                // It may be the database, or somebody else's lock.
                Err(unavailable) => {
                    until_answered(|| self.resource.in_doubt()).await;
                    tracing::debug!(txid = %prepare.txid, %unavailable, "not done again yet");
                    redone.push(Err(Why::Blocked));
                }
            }
        }
        redone
    }

    /// Tries all of these once, in order. Answers those that are not prepared, and why.
    async fn prepare_all(&mut self, due: Vec<Due>, brought: &mut Brought) -> Result<HashMap<Txid, Why>, ServiceError> {
        let mut failed = HashMap::new();
        let mut rest = due.as_slice();
        while !rest.is_empty() {
            let (now, later) = portion(rest, PORTION, PORTION_BYTES);
            rest = later;
            let prepares = self.load(now).await?;
            failed.extend(now.iter().map(|due| (due.txid, Why::without(due))));
            let batch: Vec<Arc<Prepare>> = now.iter().filter_map(|due| prepares.get(&due.txid).cloned()).collect();
            for batch in batch.chunks(self.resource.batching().branches) {
                for (prepare, answer) in batch.iter().zip(self.prepare_batch(batch).await) {
                    let why = match answer {
                        Prepared::Answer(Answer::Yes) => {
                            brought.prepared += 1;
                            failed.remove(&prepare.txid);
                            self.plan.prepared(prepare.txid);
                            continue;
                        }
                        Prepared::Answer(Answer::No(refusal)) => Why::Code(refusal.code),
                        Prepared::Later => Why::Later,
                        Prepared::Fault(fault) => {
                            tracing::debug!(txid = %prepare.txid, %fault, "not prepared again");
                            Why::Fault
                        }
                    };
                    failed.insert(prepare.txid, why);
                }
            }
        }
        Ok(failed)
    }

    async fn prepare_batch(&self, batch: &[Arc<Prepare>]) -> Vec<Prepared> {
        // It may be one of them that gets no answer.
        if let Ok(prepared) = self.resource.prepare_again(batch.to_vec()).await {
            return prepared;
        }
        let mut prepared = Vec::with_capacity(batch.len());
        for prepare in batch {
            prepared.extend(until_answered(|| self.resource.prepare_again(vec![Arc::clone(prepare)])).await);
        }
        prepared
    }

    // ---- reading -----------------------------------------------------------------------------------------------------

    /// The records of a stretch, read by a thread of their own.
    fn records(&self, topic: &str, shard: Shard, stretch: (u64, u64)) -> mpsc::Receiver<Result<Record, ScanFailure>> {
        let (sender, records) = mpsc::channel(READ_AHEAD);
        if stretch.0 >= stretch.1 {
            return records;
        }
        let (scanners, topic) = (self.scanners.clone(), topic.to_string());
        spawn(move || {
            let sent = scanners.with(|scanner| send(scanner, (&topic, shard.partition()), stretch, &sender));
            if let Err(failure) = sent {
                // Nobody listens any more if the service was stopped meanwhile.
                let _ = suture_topics::blocking::send(&sender, Err(failure));
            }
        });
        records
    }

    /// The prepares at these places. One that was trimmed meanwhile is left out.
    async fn load(&self, due: &[Due]) -> Result<HashMap<Txid, Arc<Prepare>>, ServiceError> {
        let mut places: BTreeMap<Shard, HashMap<u64, Txid>> = BTreeMap::new();
        for due in due {
            if let Some(place) = due.place {
                places.entry(due.txid.shard).or_default().insert(place.offset, due.txid);
            }
        }
        let (topic, requests, scanners) = (self.names.prepares.clone(), self.letters.requests, self.scanners.clone());
        let loaded = suture_topics::failure::until_answered(move || {
            let mut prepares = HashMap::new();
            for (shard, places) in &places {
                let (from, to) = (places.keys().min(), places.keys().max().map(|last| last + 1));
                let stretch = (from.copied().unwrap_or_default(), to.unwrap_or_default());
                let take = |record: Record| {
                    if let Some(txid) = places.get(&record.offset)
                        && let Read::Ours(prepare) = read_prepare(&record, requests)
                    {
                        prepares.insert(*txid, prepare);
                    }
                    ControlFlow::Continue(())
                };
                match scanners.with(|scanner| scanner.scan((&topic, shard.partition()), stretch, take)) {
                    Ok(()) => {}
                    Err(ScanFailure::Kafka(failure)) => return Err(failure),
                    Err(trimmed @ ScanFailure::OutOfRange(_)) => return Err(KafkaFailure::Fatal(trimmed.to_string())),
                }
            }
            Ok(prepares)
        });
        Ok(loaded.await?)
    }
}

/// Why something is not brought back yet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    /// Its prepare was not met.
    NoPrepare,
    /// It was met, and is not shown now: by a leader that was cut off, or because it was trimmed meanwhile.
    NotShown,
    /// Somebody else's lock, and no answer.
    Blocked,
    /// As many branches as may be are in doubt.
    Later,
    /// The ledger is against it.
    Fault,
    /// It was refused.
    Code(Code),
}

impl Why {
    /// It could not be loaded.
    fn without(due: &Due) -> Self {
        if due.place.is_some() { Self::NotShown } else { Self::NoPrepare }
    }

    /// Whether what is in its way may go.
    fn is_busy(&self) -> bool {
        match self {
            Self::Blocked | Self::Later | Self::NotShown => true,
            Self::Code(code) => code.as_str() == code::BUSY,
            Self::NoPrepare | Self::Fault => false,
        }
    }

    fn code(&self) -> &str {
        match self {
            Self::NoPrepare | Self::NotShown => "no_prepare",
            Self::Blocked => "blocked",
            Self::Later => "no_room",
            Self::Fault => "fault",
            Self::Code(code) => code.as_str(),
        }
    }
}

/// What became of it.
#[derive(Default)]
struct Brought {
    rounds: u64,
    redone: usize,
    /// The ledger had them.
    known: usize,
    prepared: usize,
    lost: usize,
    not_prepared: usize,
}

impl Brought {
    fn count(&self) -> usize {
        self.redone + self.known + self.prepared
    }
}

/// So many that are lost have lines of their own.
const TOLD_ONE_BY_ONE: usize = 100;

/// Reads on where Kafka did not answer, until somebody stops listening; and where a leader shows less than is there. (Only a
/// foreign transaction leaves a log without its last record.)
fn send(
    scanner: &mut Scanner,
    log: (&str, i32),
    (from, to): (u64, u64),
    records: &mpsc::Sender<Result<Record, ScanFailure>>,
) -> Result<(), ScanFailure> {
    let (mut next, mut looks) = (from, 0);
    loop {
        let scanned = scanner.scan(log, (next, to), |record| {
            next = record.offset + 1;
            match suture_topics::blocking::send(records, Ok(record)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        match scanned {
            Err(ScanFailure::Kafka(KafkaFailure::Again(reason))) if !records.is_closed() => {
                tracing::warn!(reason, "Kafka does not answer; asking until it does");
            }
            Ok(()) if next < to && looks < LOOKS && !records.is_closed() => {
                looks += 1;
                pause(BETWEEN_LOOKS);
            }
            scanned => return scanned,
        }
    }
}

/// One client that reads, for one stretch after the other: to start one takes longer than what is mostly read.
#[derive(Clone)]
struct Scanners {
    kafka: KafkaSettings,
    group: String,
    idle: Arc<Mutex<Option<Scanner>>>,
}

impl Scanners {
    fn with<T>(&self, read: impl FnOnce(&mut Scanner) -> Result<T, ScanFailure>) -> Result<T, ScanFailure> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = idle().take();
        let mut scanner = waiting.map_or_else(|| Scanner::start(&self.kafka, &self.group), Ok)?;
        let answer = read(&mut scanner);
        *idle() = Some(scanner);
        answer
    }
}

fn unread(failure: ScanFailure) -> ServiceError {
    match failure {
        ScanFailure::Kafka(failure) => failure.into(),
        // It was looked up a moment ago: the log was trimmed meanwhile.
        ScanFailure::OutOfRange(_) => ServiceError::Restore(failure.to_string()),
    }
}
