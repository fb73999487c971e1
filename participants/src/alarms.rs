//! The service's side of incidents: it notes them, tells the outcomes topic what was noted, looks whether a person has settled
//! what a shard waits for, and watches the branches in doubt.
//!
//! One look a second, a job that asks the database in this order: note, mark as told, look at the branches, read what was
//! noted. What a look could not do is done by the next one; so nothing here waits, and nothing is lost that was noted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use suture_contract::codec::{Message, decode};
use suture_contract::ids::{Participant, Shard, Txid};
use suture_contract::messages::{Incident, IncidentKind, Prepare, Settled};
use suture_participants_core::branch::State;
use suture_participants_core::watch::{About, Watch};
use suture_topics::outbox::{Failure, Outbox};
use suture_topics::probe::Probe;
use tokio::task::{JoinError, JoinSet};

use crate::incidents::{entry_of, incident, settlement_of};
use crate::points::{Act, after, around, before};
use crate::resource::{Entry, Noted, Resource, Unavailable, Which};
use crate::take::blocking;

/// What is under way between the database, a person and the outcomes topic.
pub(crate) struct Alarms<R> {
    participant: Participant,
    resource: Arc<R>,
    probe: Arc<Probe>,
    outcomes: String,
    decisions: String,
    to_note: Vec<Entry>,
    /// Appended, and not marked yet.
    told: Vec<String>,
    /// Appends whose report is missing, by token.
    telling: BTreeMap<u64, String>,
    /// What the broker does not take; tried again now and then.
    refused: BTreeSet<String>,
    looking: JoinSet<Look>,
    /// What lets a stopped shard go on.
    awaited: BTreeMap<Shard, String>,
    /// What has let one go on. Once: if it stops again, something else is wrong.
    obeyed: BTreeSet<String>,
    watch: Watch,
}

/// What a look is to do, and what it has found.
pub(crate) struct Look {
    to_note: Vec<Entry>,
    told: Vec<String>,
    which: Which,
    watched: Vec<Txid>,
    seen: BTreeSet<Txid>,
    found: Option<Found>,
}

#[derive(Default)]
struct Found {
    noted: Vec<Noted>,
    states: BTreeMap<Txid, State>,
    /// Where the decisions of these shards ended afterwards.
    ends: BTreeMap<Shard, u64>,
}

impl<R: Resource> Alarms<R> {
    pub(crate) fn new(
        participant: Participant,
        resource: Arc<R>,
        probe: Arc<Probe>,
        outcomes: String,
        decisions: String,
    ) -> Self {
        Self {
            participant,
            resource,
            probe,
            outcomes,
            decisions,
            to_note: Vec::new(),
            told: Vec::new(),
            telling: BTreeMap::new(),
            refused: BTreeSet::new(),
            looking: JoinSet::new(),
            awaited: BTreeMap::new(),
            obeyed: BTreeSet::new(),
            watch: Watch::default(),
        }
    }

    /// A shard stops for this, until a person has settled it.
    pub(crate) fn raise(&mut self, shard: Shard, entry: Entry) {
        if let Some(settlement) = settlement_of(&entry.entry) {
            self.awaited.entry(shard).or_insert(settlement);
        }
        self.to_note.push(entry);
        self.look();
    }

    /// A shard is somebody else's now, or is taken anew.
    pub(crate) fn forget(&mut self, shard: Shard) {
        self.awaited.remove(&shard);
        self.watch.forget(shard);
    }

    /// A shard stands still: whatever becomes of its branches is not ours to judge.
    pub(crate) fn stands_still(&mut self, shard: Shard) {
        self.watch.forget(shard);
    }

    // ---- branches in doubt -------------------------------------------------------------------------------------------

    /// A yes is durable here.
    pub(crate) fn voted(&mut self, prepare: &Prepare) {
        let Prepare { txid, business_key, attempt, hash, .. } = prepare;
        let about = About { business_key: business_key.clone(), attempt: *attempt, hash: *hash };
        self.watch.voted(*txid, about);
    }

    /// It was in doubt when its shard was taken.
    pub(crate) fn was_there(&mut self, txid: Txid) {
        self.watch.was_there(txid);
    }

    /// Its decision was read.
    pub(crate) fn is_decided(&mut self, txid: &Txid) {
        self.watch.leaves(txid);
    }

    /// Notes, and says once, who was finished by hand.
    pub(crate) fn note_finished_by_hand(
        &mut self,
        read_to: impl Fn(Shard) -> Option<u64>,
        in_hand: impl Fn(&Txid) -> bool,
    ) {
        for (txid, state, about) in self.watch.finished_by_hand(read_to, in_hand) {
            let settled = if state == State::Committed { Settled::Committed } else { Settled::RolledBack };
            tracing::error!(
                participant = %self.participant, %txid, now = settled.as_str(),
                "a branch in doubt was finished by hand, and no decision was carried out; if its decision is another one, the \
                 shard stops there"
            );
            let (business_key, attempt, hash) = match about {
                Some(About { business_key, attempt, hash }) => (Some(business_key), Some(attempt), Some(hash)),
                None => (None, None, None),
            };
            let finished = Incident {
                txid: Some(txid),
                business_key,
                attempt,
                hash,
                settled: Some(settled),
                ..incident(&self.participant, IncidentKind::FinishedByHand)
            };
            self.to_note.push(entry_of(&txid, &finished));
        }
    }

    // ---- looks -------------------------------------------------------------------------------------------------------

    /// Begins a look, unless one is under way.
    pub(crate) fn look(&mut self) {
        if !self.looking.is_empty() {
            return;
        }
        let which = if self.awaited.is_empty() { Which::Untold } else { Which::All };
        let watched = self.watch.in_turn();
        let look = Look {
            to_note: std::mem::take(&mut self.to_note),
            told: std::mem::take(&mut self.told),
            which,
            seen: watched.iter().filter(|txid| self.watch.was_seen(txid)).copied().collect(),
            watched,
            found: None,
        };
        let (resource, probe) = (Arc::clone(&self.resource), Arc::clone(&self.probe));
        let decisions = self.decisions.clone();
        self.looking.spawn(async move {
            // What does not answer is asked again by the next look.
            let found = find(&*resource, probe, decisions, &look).await.ok();
            Look { found, ..look }
        });
    }

    /// The look that has ended.
    pub(crate) async fn looked(&mut self) -> Option<Result<Look, JoinError>> {
        self.looking.join_next().await
    }

    /// Takes in what a look has found. Answers what may go on, and by what.
    pub(crate) fn take_in(&mut self, look: Look, outbox: &Outbox, last_token: &mut u64) -> Vec<(Shard, String)> {
        let Some(found) = look.found else {
            self.to_note.extend(look.to_note);
            self.told.extend(look.told);
            return Vec::new();
        };
        for txid in look.watched {
            let state = found.states.get(&txid).copied().unwrap_or(State::Absent);
            self.watch.looked(&txid, state, found.ends.get(&txid.shard).copied());
        }
        let settled: BTreeSet<&str> = found.noted.iter().map(|noted| noted.entry.entry.as_str()).collect();
        let goes_on = |(_, by): &(&Shard, &String)| settled.contains(by.as_str()) && !self.obeyed.contains(*by);
        let go_on: Vec<(Shard, String)> =
            self.awaited.iter().filter(goes_on).map(|(shard, by)| (*shard, by.clone())).collect();
        self.obeyed.extend(go_on.iter().map(|(_, by)| by.clone()));
        for noted in found.noted.into_iter().filter(|noted| !noted.told) {
            self.tell(noted.entry, outbox, last_token);
        }
        go_on
    }

    fn tell(&mut self, Entry { entry, record_key, record }: Entry, outbox: &Outbox, last_token: &mut u64) {
        if self.told.contains(&entry) || self.refused.contains(&entry) || self.telling.values().any(|of| *of == entry) {
            return;
        }
        let Some(partition) = partition_of(&record) else {
            tracing::error!(participant = %self.participant, entry, "what was noted cannot be told: its record cannot be read");
            self.refused.insert(entry);
            return;
        };
        *last_token += 1;
        let (key, value) = (record_key.as_bytes(), Some(record.as_bytes()));
        before(Act::AppendIncident);
        // If there is no room, the next look finds it again.
        if outbox.append(&self.outcomes, partition, key, value, Incident::TYPE, None, *last_token).is_ok() {
            self.telling.insert(*last_token, entry);
            after(Act::AppendIncident);
        }
    }

    /// Whether a report is of ours. What was not acknowledged is found again by the next look.
    pub(crate) fn is_told(&mut self, token: u64, result: &Result<u64, Failure>) -> bool {
        let Some(entry) = self.telling.remove(&token) else { return false };
        match result {
            Ok(_) => {
                before(Act::IncidentIsThere);
                self.told.push(entry);
                after(Act::IncidentIsThere);
            }
            Err(Failure::Again(reason)) => {
                tracing::debug!(participant = %self.participant, reason, "an incident is told again");
            }
            Err(failure @ (Failure::Refused(_) | Failure::Denied(_) | Failure::Fatal(_))) => {
                let topic = &self.outcomes;
                tracing::error!(
                    participant = %self.participant, topic, entry, %failure,
                    "an incident cannot be told; it stands in suture_audit, and is tried again: check that we may write there"
                );
                self.refused.insert(entry);
            }
        }
        true
    }

    /// What the broker did not take is tried again.
    pub(crate) fn try_again(&mut self) {
        self.refused.clear();
    }

    /// Notes and marks what is left, if the database answers. What is not marked is told again.
    pub(crate) async fn finish(&mut self) {
        while let Some(look) = self.looking.join_next().await {
            if let Ok(Look { to_note, told, found: None, .. }) = look {
                self.to_note.extend(to_note);
                self.told.extend(told);
            }
        }
        let (to_note, told) = (std::mem::take(&mut self.to_note), std::mem::take(&mut self.told));
        if !to_note.is_empty() || !told.is_empty() {
            // What stops a shard stops it again at the next start.
            let noted = around(Act::Note, self.resource.note(to_note)).await;
            let _ = noted.and(around(Act::MarkTold, self.resource.mark_told(told)).await);
        }
    }
}

async fn find<R: Resource>(
    resource: &R,
    probe: Arc<Probe>,
    decisions: String,
    look: &Look,
) -> Result<Found, Unavailable> {
    if !look.to_note.is_empty() {
        around(Act::Note, resource.note(look.to_note.clone())).await?;
    }
    if !look.told.is_empty() {
        around(Act::MarkTold, resource.mark_told(look.told.clone())).await?;
    }
    let mut found = Found::default();
    if !look.watched.is_empty() {
        found.states = resource.states(look.watched.clone()).await?;
        let is_gone = |txid: &&Txid| found.states.get(*txid) != Some(&State::InDoubt);
        let shards: BTreeSet<Shard> = look.seen.iter().filter(is_gone).map(|txid| txid.shard).collect();
        // In this order: what explains that a branch is gone stands below the end.
        let end = move |shard: Shard| Some((shard, probe.watermarks(&decisions, shard.partition()).ok()?.1));
        let ends = blocking(move || shards.into_iter().filter_map(end).collect()).await;
        found.ends = ends.unwrap_or_default();
    }
    found.noted = resource.noted(look.which).await?;
    Ok(found)
}

/// The shard of its transaction, or of its record.
fn partition_of(record: &str) -> Option<i32> {
    let Incident { txid, origin, .. } = decode(record.as_bytes()).ok()?;
    txid.map(|txid| txid.shard.partition()).or(origin.map(|origin| origin.partition))
}
