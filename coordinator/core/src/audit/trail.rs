//! What the logs of a shard say, transaction by transaction.

use std::collections::{BTreeMap, BTreeSet};

use suture_contract::codec::{self, OutcomesRecord, RequestsRecord, Unreadable};
use suture_contract::ids::{Participant, RequestHash, Shard, Txid};
use suture_contract::messages::{Ballot, Decision, Incident, IncidentKind, Verdict, Voter};

use crate::records::Place;
use crate::shard::Raw;

/// Which requests are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// From here on.
    pub from: u64,
    /// Up to here. What is about a later one is passed over.
    pub end: u64,
    /// Whether nothing is left of what lies below `from`.
    pub is_all: bool,
    /// These alone.
    pub only: Option<BTreeSet<u64>>,
}

/// A record that a later version has written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "offset {offset} of {topic} is of version {v}, which a later version of Suture has written: audit with that one"
)]
pub struct Newer {
    /// Where.
    pub topic: String,
    /// Where there.
    pub offset: u64,
    /// Its version.
    pub v: u64,
}

/// Collects the logs of a shard: requests, outcomes, decisions, votes, in this order.
#[derive(Debug)]
pub struct Trail {
    place: Place,
    range: Range,
    decisions: String,
    roster: Vec<Participant>,
    stories: BTreeMap<u64, Story>,
    /// From where on a participant's votes are there, by the broker's clock.
    votes_from_ms: BTreeMap<Participant, i64>,
    nobody_asked: BTreeSet<u64>,
    unreadable: Vec<u64>,
    /// What a person has taken over, and at whom.
    resolved: BTreeSet<(u64, Participant)>,
    /// Records of the decision log that a person has let be passed.
    skipped: BTreeSet<u64>,
}

/// One transaction, as its logs tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    /// When it was asked for, by the broker's clock. `None`: its request has left the topic by age.
    pub asked_ms: Option<i64>,
    /// The request's, or without one the decision's.
    pub hash: RequestHash,
    /// Whom it names.
    pub registers: Vec<Register>,
    /// What was decided.
    pub decided: Option<Decided>,
    /// What was told.
    pub told: Option<Verdict>,
    /// Copies of the decision, or of the outcome, are not equal.
    pub copies_differ: bool,
}

/// A register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// Its seat in the roster.
    seat: u16,
    /// The first vote.
    pub vote: Option<Ballot>,
    /// Written by the participant itself.
    pub is_own: bool,
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// What.
    pub verdict: Verdict,
    /// Of what.
    pub hash: RequestHash,
    /// When first, by the broker's clock.
    pub at_ms: i64,
    /// The offset of its last copy.
    pub last: u64,
}

impl Trail {
    /// Of one shard. The decision log is known by its full name where incidents name it.
    pub fn new(place: Place, range: Range, decisions: String) -> Self {
        Self {
            place,
            range,
            decisions,
            roster: Vec::new(),
            stories: BTreeMap::new(),
            votes_from_ms: BTreeMap::new(),
            nobody_asked: BTreeSet::new(),
            unreadable: Vec::new(),
            resolved: BTreeSet::new(),
            skipped: BTreeSet::new(),
        }
    }

    /// A record of the requests. What is none (a cancellation, what is rejected) is passed over.
    pub fn request(&mut self, raw: Raw<'_>) -> Result<(), Newer> {
        if !self.is_wanted(raw.offset) || raw.offset < self.range.from {
            return Ok(());
        }
        let newer = |v| Newer { topic: "requests".to_string(), offset: raw.offset, v };
        let Ok(RequestsRecord::Request(request)) = self.place.read_request(raw).map_err(newer)? else { return Ok(()) };
        let registers = request.branches.iter().map(|branch| self.register_of(&branch.participant)).collect();
        self.stories.insert(raw.offset, Story::new(Some(raw.timestamp_ms), request.hash, registers));
        Ok(())
    }

    /// A record of the outcomes, or an incident, which stands there too.
    pub fn outcome(&mut self, raw: Raw<'_>) -> Result<(), Newer> {
        let outcome = match codec::decode_outcomes_record(raw.value.unwrap_or_default()) {
            Ok(OutcomesRecord::Outcome(outcome)) => outcome,
            Ok(OutcomesRecord::Incident(incident)) => {
                self.incident(*incident);
                return Ok(());
            }
            Err(Unreadable::Newer { v }) => {
                return Err(Newer { topic: "outcomes".to_string(), offset: raw.offset, v });
            }
            Err(_) => return Ok(()),
        };
        if let Some(story) = self.story_mut(&outcome.txid) {
            story.copies_differ |= story.told.is_some_and(|told| told != outcome.outcome);
            story.told.get_or_insert(outcome.outcome);
        }
        Ok(())
    }

    fn incident(&mut self, incident: Incident) {
        match (incident.what, incident.txid, incident.origin) {
            (IncidentKind::Resolved, Some(txid), _) if self.is_here(&txid) => {
                self.resolved.insert((txid.offset, incident.participant));
            }
            // Whatever the participants make of it: a person has seen it.
            (IncidentKind::Skipped, _, Some(origin)) => {
                let is_here = origin.topic == self.decisions && origin.partition == self.place.shard.partition();
                self.skipped.extend(u64::try_from(origin.offset).ok().filter(|_| is_here));
            }
            (
                IncidentKind::Resolved
                | IncidentKind::Skipped
                | IncidentKind::Lost
                | IncidentKind::Contradiction
                | IncidentKind::OtherHash
                | IncidentKind::Unreadable
                | IncidentKind::FinishedByHand,
                _,
                _,
            ) => {}
        }
    }

    /// A record of the decision log.
    pub fn decision(&mut self, raw: Raw<'_>) -> Result<(), Newer> {
        if self.skipped.contains(&raw.offset) {
            return Ok(());
        }
        let txid = raw.key.and_then(|key| std::str::from_utf8(key).ok()).and_then(|key| key.parse::<Txid>().ok());
        let Some(value) = raw.value else {
            if let Some(txid) = txid {
                self.forget(&txid);
            }
            return Ok(());
        };
        let decision = match codec::decode::<Decision>(value) {
            Ok(decision) if Some(decision.txid) == txid && decision.txid.shard == self.place.shard => decision,
            Err(Unreadable::Newer { v }) => {
                return Err(Newer { topic: "decisions".to_string(), offset: raw.offset, v });
            }
            Ok(_) | Err(_) => {
                self.unreadable.push(raw.offset);
                return Ok(());
            }
        };
        let offset = decision.txid.offset;
        if decision.txid.log != self.place.log || !self.is_wanted(offset) {
            return Ok(());
        }
        if !self.stories.contains_key(&offset) {
            if offset >= self.range.from {
                self.nobody_asked.insert(offset);
                return Ok(());
            }
            if !self.range.is_all && self.range.only.is_none() {
                return Ok(());
            }
            let registers = decision.participants.iter().map(|participant| self.register_of(participant)).collect();
            self.stories.insert(offset, Story::new(None, decision.hash, registers));
        }
        let Some(story) = self.stories.get_mut(&offset) else { return Ok(()) };
        match &mut story.decided {
            None => {
                let (verdict, hash) = (decision.outcome, decision.hash);
                story.decided = Some(Decided { verdict, hash, at_ms: raw.timestamp_ms, last: raw.offset });
            }
            Some(first) => {
                first.last = raw.offset;
                story.copies_differ |= (first.verdict, first.hash) != (decision.outcome, decision.hash);
            }
        }
        Ok(())
    }

    /// A participant's votes begin here: its log's start has moved, and what was asked for before has lost its register.
    pub fn votes_begin(&mut self, participant: &Participant, at_ms: i64) {
        self.votes_from_ms.insert(participant.clone(), at_ms);
    }

    /// A record of a participant's votes.
    pub fn vote(&mut self, participant: &Participant, raw: Raw<'_>) -> Result<(), Newer> {
        let newer = |v| Newer { topic: format!("votes.{participant}"), offset: raw.offset, v };
        let Ok(vote) = self.place.read_vote(participant, raw).map_err(newer)? else { return Ok(()) };
        let seat = self.roster.iter().position(|known| known == participant);
        let Some(story) = self.stories.get_mut(&vote.txid.offset).filter(|story| story.hash == vote.hash) else {
            return Ok(());
        };
        let register = story.registers.iter_mut().find(|register| Some(usize::from(register.seat)) == seat);
        if let Some(register) = register.filter(|register| register.vote.is_none()) {
            (register.vote, register.is_own) = (Some(vote.vote), vote.by == Voter::Participant);
        }
        Ok(())
    }

    /// Whom the requests name.
    pub fn roster(&self) -> &[Participant] {
        &self.roster
    }

    /// All transactions, by the request's offset.
    pub fn stories(&self) -> impl Iterator<Item = (u64, &Story)> {
        self.stories.iter().map(|(offset, story)| (*offset, story))
    }

    /// A transaction.
    pub fn story(&self, offset: u64) -> Option<&Story> {
        self.stories.get(&offset)
    }

    /// Decided, and asked for by nobody.
    pub fn nobody_asked(&self) -> impl Iterator<Item = u64> {
        self.nobody_asked.iter().copied()
    }

    /// Offsets of the decision log that hold what is no decision.
    pub fn unreadable(&self) -> impl Iterator<Item = u64> {
        self.unreadable.iter().copied()
    }

    /// Which shard.
    pub fn shard(&self) -> Shard {
        self.place.shard
    }

    /// Whether something that is not among the stories has no request, as far as this look goes; else it is not known here. A
    /// request that is later than this look is there at the next one.
    pub fn has_no_request(&self, offset: u64) -> bool {
        let is_read = offset >= self.range.from || self.range.is_all;
        let is_wanted = self.range.only.as_ref().map_or(is_read, |only| only.contains(&offset));
        is_wanted && !self.stories.contains_key(&offset)
    }

    /// Whether a person has said what became of a transaction at a participant.
    pub fn is_resolved(&self, offset: u64, participant: &Participant) -> bool {
        self.resolved.contains(&(offset, participant.clone()))
    }

    /// Whose register this is.
    pub fn participant(&self, register: &Register) -> &Participant {
        &self.roster[usize::from(register.seat)]
    }

    /// The product of a transaction's registers, if all of them can be read; `Some(None)`: they do not decide.
    pub fn product(&self, story: &Story) -> Option<Option<Verdict>> {
        let asked_ms = story.asked_ms?;
        let is_readable = |register: &Register| {
            register.vote.is_some()
                || self.votes_from_ms.get(self.participant(register)).is_none_or(|from| *from <= asked_ms)
        };
        if story.registers.iter().any(|register| register.vote == Some(Ballot::No)) {
            return Some(Some(Verdict::Abort));
        }
        if !story.registers.iter().all(is_readable) {
            return None;
        }
        let all_yes = story.registers.iter().all(|register| register.vote == Some(Ballot::Yes));
        Some(all_yes.then_some(Verdict::Commit))
    }

    /// The name of the transaction whose request stands there.
    pub fn txid(&self, offset: u64) -> Txid {
        Txid { log: self.place.log, shard: self.place.shard, offset }
    }

    fn is_wanted(&self, offset: u64) -> bool {
        offset < self.range.end && self.range.only.as_ref().is_none_or(|only| only.contains(&offset))
    }

    fn is_here(&self, txid: &Txid) -> bool {
        txid.log == self.place.log && txid.shard == self.place.shard
    }

    fn story_mut(&mut self, txid: &Txid) -> Option<&mut Story> {
        let is_here = self.is_here(txid);
        self.stories.get_mut(&txid.offset).filter(|_| is_here)
    }

    /// A decision is cleaned up.
    fn forget(&mut self, txid: &Txid) {
        if let Some(story) = self.story_mut(txid) {
            story.decided = None;
            if story.asked_ms.is_none() {
                self.stories.remove(&txid.offset);
            }
        }
    }

    fn register_of(&mut self, participant: &Participant) -> Register {
        let known = self.roster.iter().position(|known| known == participant);
        let seat = known.unwrap_or_else(|| {
            self.roster.push(participant.clone());
            self.roster.len() - 1
        });
        // A request names at most 32, but a shard's requests may name many.
        Register { seat: u16::try_from(seat).unwrap_or(u16::MAX), vote: None, is_own: false }
    }
}

impl Story {
    fn new(asked_ms: Option<i64>, hash: RequestHash, registers: Vec<Register>) -> Self {
        Self { asked_ms, hash, registers, decided: None, told: None, copies_differ: false }
    }
}
