//! A database that went back is brought back, before the group is joined.
//!
//! ```text
//! the group's offsets, our own rows              one of them went back?  a new name, and the mark `restoring`: together
//! decisions, from our own position to the end    aborts, and what is in doubt: as always; other commits: kept
//! prepares, all that there are                   where those of the commits are; who was in doubt and is not any more
//! round after round                              commits whose rows are missing: run and committed again, in order
//! at last                                        who was in doubt, or may have been: prepared again
//! the mark goes                                  and the service begins at its own rows, as always
//! ```
//!
//! What becomes of which transaction is said in [`suture_participants_core::restore`].
//!
//! - **No position is moved here.** The service reads the same decisions again, finds what is done as done, and stops in front of
//!   what is lost. So all of this may be cut off anywhere: as long as the mark is there, the next start begins anew, and
//!   finds in the ledger what was done before.
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
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use suture_contract::ids::{Code, LogLetters, Participant, Shard, Txid, code};
use suture_contract::messages::{Decision, Prepare};
use suture_contract::topic_map::participant_group;
use suture_participants_core::branch::Answer;
use suture_participants_core::envelope::Read;
use suture_participants_core::restore::{Due, Place, Plan, is_void, portion, went_back};
use suture_topics::acks::GroupOffsets;
use suture_topics::blocking;
use suture_topics::failure::KafkaFailure;
use suture_topics::membership::Committed;
use suture_topics::probe::Probe;
use suture_topics::record::Record;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::envelope::{read_decision, read_prepare};
use crate::incidents::{self, skipped};
use crate::jobs::{Job, decide, decide_again, until_answered};
use crate::points::{Act, around};
use crate::resource::{Effect, Position, Prepared, Redone, Resource, Which};
use crate::service::{ServiceError, list, unusable};
use crate::take::{Letters, Names, range};

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

/// While somebody else's lock is in the way of what is prepared again, rounds may help nobody for so long, and the pause between two
/// of them. By time and not by number: each that waits for a lock makes its round longer.
const PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);

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
    let skipped = skipped(&until_answered(|| resource.noted(Which::All)).await);
    let counts = Counts::default();
    let mut restore = Restore {
        kafka,
        group: &group,
        participant,
        resource,
        probe,
        names,
        letters,
        skipped,
        logs,
        plan: Plan::new(in_doubt.into_iter().map(|waiting| waiting.txid)),
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
    group: &'a str,
    participant: &'a Participant,
    resource: &'a R,
    probe: &'a Arc<Probe>,
    names: &'a Names,
    letters: Letters,
    skipped: BTreeSet<incidents::Place>,
    logs: Vec<Log>,
    plan: Plan,
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
        let mut done = Done::default();
        let of_topic = |logs: &[Log], topic: &str| -> Vec<(Shard, Option<u64>, Option<u64>)> {
            let of_topic = logs.iter().filter(|log| log.topic == topic);
            of_topic.map(|log| (log.shard, log.own, log.reached())).collect()
        };
        let of_prepares = of_topic(&self.logs, &self.names.prepares);
        // Before the decisions are: so the decision that let one of an ordered key begin is among those that are read.
        let mut ends = BTreeMap::new();
        for &(shard, _, reached) in &of_prepares {
            ends.insert(shard, range(self.probe, &self.names.prepares, shard, reached).await?.1);
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
            self.read_decisions(shard, (own.unwrap_or(start), end), &mut done).await?;
            behind.insert(shard, (start, own.unwrap_or(start)));
        }
        let kept = self.plan.kept();
        let Done { noted_aborts, finished, faults } = done;
        tracing::info!(
            participant = %self.participant, decisions = self.counts.decisions.load(Ordering::Relaxed), noted_aborts, finished,
            faults, kept, "the decisions are read to their end; those kept are commits that may be missing"
        );
        for &(shard, _, reached) in &of_prepares {
            if !behind.contains_key(&shard) {
                continue;
            }
            let log = range(self.probe, &self.names.prepares, shard, reached).await?;
            self.read_prepares(shard, log, ends.get(&shard).copied().unwrap_or_default()).await?;
        }
        let own = of_prepares.iter().map(|(shard, own, _)| (*shard, own.unwrap_or(0))).collect();
        let acknowledged = of_prepares.iter().map(|(shard, _, reached)| (*shard, reached.unwrap_or(0))).collect();
        // Above that it has its row, if it was decided below our own position on the decisions.
        for shard in self.plan.shards_undecided(&own) {
            let stretch = behind.get(&shard).copied().unwrap_or_default();
            self.pass_decided(shard, stretch).await?;
        }
        let redone = self.redo_all().await?;
        let (prepared, not_prepared) = self.prepare_again(&acknowledged).await?;
        around(Act::EndRestore, until_answered(|| self.resource.end_restore())).await;
        let Redoing { rounds, redone, known, lost } = redone;
        tracing::warn!(
            participant = %self.participant, ledger = self.resource.ledger_id(), redone, known, rounds, prepared, not_prepared,
            noted_aborts, finished, lost = lost.len(),
            "the database was brought back; the service begins"
        );
        Ok(())
    }

    // ---- what the logs say -------------------------------------------------------------------------------------------

    async fn read_decisions(&mut self, shard: Shard, stretch: (u64, u64), done: &mut Done) -> Result<(), ServiceError> {
        let mut records = self.records(&self.names.decisions, shard, stretch);
        let mut batch = Vec::new();
        while let Some(record) = records.recv().await {
            let record = record.map_err(unread)?;
            add(&self.counts.decisions, 1);
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
                self.decide(std::mem::take(&mut batch), done).await;
            }
        }
        self.decide(batch, done).await;
        Ok(())
    }

    async fn decide(&self, batch: Vec<Job<Decision>>, done: &mut Done) {
        let mut decided = decide(self.resource, batch).await;
        loop {
            let mut stuck = Vec::new();
            for (job, decided) in decided {
                match decided {
                    Ok(Effect::NotedAbort) => done.noted_aborts += 1,
                    Ok(Effect::Finished) => done.finished += 1,
                    Ok(Effect::Repeated) => {}
                    Ok(Effect::Later) => stuck.push(job),
                    // The service meets it again and stops the shard.
                    Err(fault) => {
                        done.faults += 1;
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

    async fn read_prepares(&mut self, shard: Shard, log: (u64, u64), end: u64) -> Result<(), ServiceError> {
        let mut records = self.records(&self.names.prepares, shard, log);
        let mut perhaps = Vec::new();
        while let Some(record) = records.recv().await {
            let record = record.map_err(unread)?;
            add(&self.counts.prepares, 1);
            match read_prepare(&record, self.letters.requests) {
                Read::Ours(message) => {
                    let bytes = record.value.as_ref().map_or(0, Vec::len);
                    let place = Place { offset: record.offset, bytes };
                    if self.plan.asked(&message, place, end) {
                        perhaps.push((message.txid, place));
                    }
                }
                Read::Passed | Read::Odd(_) => {}
                Read::Stop(why) => {
                    let letters = self.letters.prepares;
                    self.read_over("prepare", (&self.names.prepares, letters), shard, &record, why).await?;
                }
            }
            if perhaps.len() == BATCH {
                self.note_unknown(std::mem::take(&mut perhaps)).await;
            }
        }
        self.note_unknown(perhaps).await;
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

    /// Those of which the ledger knows nothing may have been in doubt once.
    async fn note_unknown(&mut self, perhaps: Vec<(Txid, Place)>) {
        let places: HashMap<Txid, Place> = perhaps.iter().copied().collect();
        let txids = perhaps.into_iter().map(|(txid, _)| txid).collect();
        for txid in self.unknown(txids).await {
            if let Some(place) = places.get(&txid) {
                self.plan.undecided(txid, *place);
            }
        }
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

    /// Those of which neither the ledger nor the database's list of branches has anything.
    async fn unknown(&self, txids: Vec<Txid>) -> Vec<Txid> {
        if txids.is_empty() {
            return txids;
        }
        let looking = until_answered(|| self.resource.states(txids.clone()));
        let known = around(Act::LookForMissing, looking).await;
        txids.into_iter().filter(|txid| !known.contains_key(txid)).collect()
    }

    // ---- what is done about it ---------------------------------------------------------------------------------------

    async fn redo_all(&self) -> Result<Redoing, ServiceError> {
        let mut redoing = Redoing::default();
        let mut due = self.plan.to_redo();
        let mut why = HashMap::new();
        loop {
            let before = due.len();
            self.counts.round.store(redoing.rounds + 1, Ordering::Relaxed);
            due = self.round(&due, &mut redoing, &mut why).await?;
            redoing.rounds += 1;
            if due.is_empty() || due.len() == before {
                break;
            }
            tracing::info!(participant = %self.participant, left = due.len(), round = redoing.rounds, "commits that failed are tried again");
        }
        // The answer to a COMMIT may have been missed; what was asked again then has met its own row.
        for due in due.chunks(PORTION) {
            redoing.lost.extend(self.unknown(due.iter().map(|due| due.txid).collect()).await);
        }
        redoing.known += due.len() - redoing.lost.len();
        for txid in redoing.lost.iter().take(TOLD_ONE_BY_ONE) {
            let code = why.get(txid).map_or_else(|| "no_prepare".to_string(), Code::to_string);
            let (participant, shard) = (self.participant, txid.shard);
            tracing::error!(%participant, %txid, %shard, code, "LOST: a commit cannot be brought back; its shard will stop there");
        }
        if redoing.lost.len() > TOLD_ONE_BY_ONE {
            tracing::error!(participant = %self.participant, lost = redoing.lost.len(), txids = list(&redoing.lost), "LOST: these and more");
        }
        Ok(redoing)
    }

    /// Tries all of them once, in order. Answers those that failed.
    async fn round(
        &self,
        due: &[Due],
        redoing: &mut Redoing,
        why: &mut HashMap<Txid, Code>,
    ) -> Result<Vec<Due>, ServiceError> {
        let mut failed = Vec::new();
        let mut rest = due;
        while !rest.is_empty() {
            let (now, later) = portion(rest, PORTION, PORTION_BYTES);
            rest = later;
            let unknown: HashSet<Txid> =
                self.unknown(now.iter().map(|due| due.txid).collect()).await.into_iter().collect();
            redoing.known += now.len() - unknown.len();
            let now: Vec<Due> = now.iter().filter(|due| unknown.contains(&due.txid)).copied().collect();
            let prepares = self.load(&now).await?;
            let mut done = HashSet::new();
            let batch: Vec<Arc<Prepare>> = now.iter().filter_map(|due| prepares.get(&due.txid).cloned()).collect();
            for batch in batch.chunks(REDO_BATCH) {
                for (prepare, redone) in batch.iter().zip(self.redo(batch).await) {
                    match redone {
                        Redone::Done => {
                            redoing.redone += 1;
                            add(&self.counts.redone, 1);
                            done.insert(prepare.txid);
                        }
                        Redone::Known => {
                            redoing.known += 1;
                            done.insert(prepare.txid);
                        }
                        Redone::Failed(code) => drop(why.insert(prepare.txid, code)),
                    }
                }
            }
            failed.extend(now.into_iter().filter(|due| !done.contains(&due.txid)));
        }
        Ok(failed)
    }

    async fn redo(&self, batch: &[Arc<Prepare>]) -> Vec<Redone> {
        // Together they may take longer than a question may take.
        if let Ok(Some(redone)) = self.resource.redo(batch.to_vec()).await {
            return redone;
        }
        let mut redone = Vec::with_capacity(batch.len());
        for prepare in batch {
            let one = until_answered(|| self.resource.redo(vec![Arc::clone(prepare)])).await;
            redone.extend(one.into_iter().flatten());
        }
        redone
    }

    /// Answers how many said yes again, and how many did not.
    async fn prepare_again(&self, acknowledged: &BTreeMap<Shard, u64>) -> Result<(usize, usize), ServiceError> {
        let mut due = self.plan.to_prepare(acknowledged);
        let all = due.len();
        let mut why = HashMap::new();
        let mut stuck: Option<Instant> = None;
        loop {
            let before = due.len();
            due = self.round_of_prepares(&due, &mut why).await?;
            stuck = if due.len() < before { None } else { stuck.or_else(|| Some(Instant::now())) };
            // What never said yes may wait for those that are in doubt here, and they do not go.
            let said_yes = due.iter().filter(|due| due.is_below(acknowledged));
            let is_blocked = said_yes.filter_map(|due| why.get(&due.txid)).any(is_busy);
            if due.is_empty() || stuck.is_some_and(|since| !is_blocked || since.elapsed() >= PATIENCE) {
                break;
            }
            if stuck.is_some() {
                sleep(BETWEEN_ROUNDS).await;
            }
        }
        for due in &due {
            let (participant, txid, answer) = (self.participant, due.txid, why.get(&due.txid));
            if due.is_below(acknowledged) {
                tracing::error!(%participant, %txid, ?answer, "a branch was in doubt here and cannot be prepared again: if it is committed, it is LOST");
            } else {
                tracing::warn!(%participant, %txid, ?answer, "a branch is not prepared yet: the service asks for it again");
            }
        }
        Ok((all - due.len(), due.len()))
    }

    /// Tries all of them once, in order. Answers those that did not say yes.
    async fn round_of_prepares(
        &self,
        due: &[Due],
        why: &mut HashMap<Txid, Prepared>,
    ) -> Result<Vec<Due>, ServiceError> {
        let mut prepared = HashSet::new();
        let mut rest = due;
        while !rest.is_empty() {
            let (now, later) = portion(rest, PORTION, PORTION_BYTES);
            rest = later;
            let prepares = self.load(now).await?;
            let batch: Vec<Arc<Prepare>> = now.iter().filter_map(|due| prepares.get(&due.txid).cloned()).collect();
            for batch in batch.chunks(self.resource.batching().branches) {
                for (prepare, answer) in batch.iter().zip(self.prepare_batch(batch).await) {
                    match answer {
                        Prepared::Answer(Answer::Yes) => drop(prepared.insert(prepare.txid)),
                        Prepared::Answer(Answer::No(_)) | Prepared::Later | Prepared::Fault(_) => {
                            why.insert(prepare.txid, answer);
                        }
                    }
                }
            }
        }
        Ok(due.iter().filter(|due| !prepared.contains(&due.txid)).copied().collect())
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
        let (kafka, group, topic) = (self.kafka.clone(), self.group.to_string(), topic.to_string());
        blocking::spawn(move || {
            if let Err(failure) = send(&kafka, &group, (&topic, shard.partition()), stretch, &sender) {
                // Nobody listens any more if the service was stopped meanwhile.
                let _ = blocking::send(&sender, Err(failure));
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
        let (kafka, group) = (self.kafka.clone(), self.group.to_string());
        let (topic, requests) = (self.names.prepares.clone(), self.letters.requests);
        let loaded = suture_topics::failure::until_answered(move || {
            let mut scanner = Scanner::start(&kafka, &group)?;
            let mut prepares = HashMap::new();
            for (shard, places) in &places {
                let (from, to) = (places.keys().min(), places.keys().max().map(|last| last + 1));
                let stretch = (from.copied().unwrap_or_default(), to.unwrap_or_default());
                let scanned = scanner.scan((&topic, shard.partition()), stretch, |record| {
                    if let Some(txid) = places.get(&record.offset)
                        && let Read::Ours(prepare) = read_prepare(&record, requests)
                    {
                        prepares.insert(*txid, prepare);
                    }
                    ControlFlow::Continue(())
                });
                match scanned {
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

/// Whether somebody is in its way who may go.
fn is_busy(answer: &Prepared) -> bool {
    matches!(answer, Prepared::Answer(Answer::No(refusal)) if refusal.code.as_str() == code::BUSY)
}

/// What became of the commits.
#[derive(Default)]
struct Redoing {
    rounds: u64,
    redone: usize,
    /// The ledger had them.
    known: usize,
    lost: Vec<Txid>,
}

/// So many that are lost have lines of their own.
const TOLD_ONE_BY_ONE: usize = 100;

/// Reads on where Kafka did not answer, until somebody stops listening.
fn send(
    kafka: &KafkaSettings,
    group: &str,
    log: (&str, i32),
    (from, to): (u64, u64),
    records: &mpsc::Sender<Result<Record, ScanFailure>>,
) -> Result<(), ScanFailure> {
    let mut scanner = Scanner::start(kafka, group)?;
    let mut next = from;
    loop {
        let scanned = scanner.scan(log, (next, to), |record| {
            next = record.offset + 1;
            match blocking::send(records, Ok(record)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        match scanned {
            Err(ScanFailure::Kafka(KafkaFailure::Again(reason))) if !records.is_closed() => {
                tracing::warn!(reason, "Kafka does not answer; asking until it does");
            }
            scanned => return scanned,
        }
    }
}

fn unread(failure: ScanFailure) -> ServiceError {
    match failure {
        ScanFailure::Kafka(failure) => failure.into(),
        // It was looked up a moment ago: the log was trimmed meanwhile.
        ScanFailure::OutOfRange(_) => ServiceError::Restore(failure.to_string()),
    }
}
