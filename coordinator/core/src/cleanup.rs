//! Clean-up of the decision log: which decisions may go.
//!
//! The decision log is compacted by txid, so a decision stays until somebody appends a tombstone, a record without a value,
//! for it. That may happen when nobody can need it any more:
//!
//! 1. its request is below the start of the requests log: no coordinator can open that transaction again;
//! 2. every participant that it names has applied it: its group's committed offset is past the **last** copy, for an earlier
//!    copy may be compacted away before a participant that was away has read it;
//! 3. no backup of a participant's database that might be restored is older than it: its last copy was appended, by the
//!    broker's clock, before [`Rules::before_ms`].
//!
//! The order of looking is what makes this safe, and is the caller's: **first** the committed offsets ([`Ledgers::acks`]), then
//! the end of the decision log, then the log is read to that end ([`Sweep::read`]). A copy that is appended meanwhile is below
//! no offset that was fetched before.
//!
//! **Acknowledgements.** A participant commits with its ledger's id as metadata. An offset is *unknown*, and never "applied",
//! where there is none (it expired, or the participant never came), where it carries no id (an operator's tool set it), or lies
//! past the log's end. What a foreign ledger's id is can only be told by comparing: all shards of a participant must carry the
//! same id, and the same as in the round before. Otherwise *all* its offsets are unknown in this round. See decision 0009.
//!
//! **Bounds.** A sweep holds at most [`Rules::most`] decisions, about 100 bytes each, and neither payloads nor an index. Where more
//! could go, the next sweep begins there ([`Swept::next`]).
//!
//! Left out: decisions that name a participant which never had a group (a mistyped name) stay, and the report counts them.
//! Whether that participant is really gone is for an operator to say.

use std::collections::BTreeMap;

use suture_contract::codec;
use suture_contract::ids::{LogLetters, Participant, RequestHash, Txid};
use suture_contract::messages::{Decision, Verdict};

use crate::shard::Raw;

/// Most decisions that one sweep lets go: some 20 MB.
pub const MOST_CANDIDATES: usize = 200_000;

/// The ledger of each participant, as the round before saw it.
#[derive(Debug, Default)]
pub struct Ledgers {
    seen: BTreeMap<Participant, Box<str>>,
}

/// What a participant's group has committed for one shard of the decision log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark<'a> {
    /// The next offset that it will read.
    pub offset: u64,
    /// The metadata: the id of its ledger, or nothing.
    pub ledger: &'a str,
}

/// Why none of a participant's offsets says anything in this round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// Its shards carry different ids: it is changing its ledger, or two databases share one group.
    #[error("its offsets carry the ids of different ledgers")]
    Mixed,
    /// The id is not that of the round before: its database was restored, or another one took its place.
    #[error("its ledger is another one than in the round before")]
    Changed,
}

impl Ledgers {
    /// A participant's acknowledgements by shard, from what its group has committed; `None` is unknown.
    pub fn acks(
        &mut self,
        participant: &Participant,
        committed: &[Option<Mark<'_>>],
    ) -> Result<Vec<Option<u64>>, Unknown> {
        let marked = committed.iter().map(|mark| mark.filter(|mark| !mark.ledger.is_empty()));
        let acks = marked.clone().map(|mark| mark.map(|mark| mark.offset)).collect();
        let mut ledgers = marked.flatten().map(|mark| mark.ledger);
        let Some(ledger) = ledgers.next() else { return Ok(acks) };
        if ledgers.any(|other| other != ledger) {
            return Err(Unknown::Mixed);
        }
        match self.seen.insert(participant.clone(), ledger.into()) {
            Some(before) if *before != *ledger => Err(Unknown::Changed),
            Some(_) | None => Ok(acks),
        }
    }
}

/// What one sweep of a shard judges by.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The letters of the requests topic that there is now. Requests of another one are gone as a whole.
    pub log: LogLetters,
    /// The start of the requests log.
    pub requests_start: u64,
    /// Each participant's acknowledgement in this shard, fetched before anything else. Who is not here is unknown.
    pub acks: BTreeMap<Participant, u64>,
    /// The end of the decision log, looked up after that: what is read goes at least as far.
    pub end: u64,
    /// What was appended later than this stays, in milliseconds since 1970.
    pub before_ms: i64,
    /// Most decisions to let go: see [`MOST_CANDIDATES`].
    pub most: usize,
}

/// One sweep of a shard's decision log, from a cursor to the end.
#[derive(Debug)]
pub struct Sweep {
    rules: Rules,
    candidates: BTreeMap<Txid, Candidate>,
    next: Option<u64>,
    report: Report,
}

/// A decision that may go, if no later record speaks against it.
#[derive(Debug)]
struct Candidate {
    verdict: Verdict,
    hash: RequestHash,
}

/// What a sweep found.
#[derive(Debug, PartialEq, Eq)]
pub struct Swept {
    /// What may be tombstoned.
    pub tombstones: Vec<Txid>,
    /// Where the next sweep begins, if this one was full.
    pub next: Option<u64>,
    /// Why the others stay.
    pub report: Report,
}

/// Why decisions stay, in copies that were read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Their requests can still be read.
    pub readable: u64,
    /// Not older than what might be restored.
    pub young: u64,
    /// Somebody has not applied them, or it is unknown whether. Counted for the first one named.
    pub waiting_for: BTreeMap<Participant, u64>,
}

/// Why nothing of a shard's decision log may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadLog {
    /// A record that no coordinator writes, or a newer one.
    #[error("decisions offset {offset} cannot be read")]
    Unreadable {
        /// Where.
        offset: u64,
    },
    /// Copies of one decision are not equal.
    #[error("the decision of {txid} at offset {offset} is not equal to an earlier copy")]
    Unequal {
        /// Whose.
        txid: Txid,
        /// Where the later one is.
        offset: u64,
    },
}

impl Sweep {
    /// Nothing was read yet.
    pub fn new(rules: Rules) -> Self {
        let (candidates, report) = (BTreeMap::new(), Report::default());
        Self { rules, candidates, next: None, report }
    }

    /// Takes in the next record of the decision log.
    pub fn read(&mut self, raw: Raw<'_>) -> Result<(), BadLog> {
        let unreadable = BadLog::Unreadable { offset: raw.offset };
        let key = raw.key.and_then(|key| std::str::from_utf8(key).ok()).ok_or(unreadable)?;
        let txid: Txid = key.parse().map_err(|_| unreadable)?;
        let Some(value) = raw.value else {
            // Cleaned up before, and not compacted yet.
            self.candidates.remove(&txid);
            return Ok(());
        };
        let decision: Decision = codec::decode(value).map_err(|_| unreadable)?;
        if decision.txid != txid {
            return Err(unreadable);
        }
        if let Some(earlier) = self.candidates.remove(&txid)
            && (earlier.verdict, earlier.hash) != (decision.outcome, decision.hash)
        {
            return Err(BadLog::Unequal { txid, offset: raw.offset });
        }
        self.judge(raw, decision);
        Ok(())
    }

    /// What may go, now that the log was read to its end.
    pub fn end(self) -> Swept {
        Swept { tombstones: self.candidates.into_keys().collect(), next: self.next, report: self.report }
    }

    /// Each copy is judged for itself: the last one counts.
    fn judge(&mut self, raw: Raw<'_>, decision: Decision) {
        let txid = decision.txid;
        if txid.log == self.rules.log && txid.offset >= self.rules.requests_start {
            self.report.readable += 1;
            return;
        }
        let has_applied = |participant: &&Participant| {
            let ack = self.rules.acks.get(participant).filter(|ack| **ack <= self.rules.end);
            ack.is_some_and(|ack| *ack > raw.offset)
        };
        if let Some(participant) = decision.participants.iter().find(|participant| !has_applied(participant)) {
            *self.report.waiting_for.entry(participant.clone()).or_default() += 1;
            return;
        }
        if raw.timestamp_ms > self.rules.before_ms {
            self.report.young += 1;
            return;
        }
        if self.candidates.len() >= self.rules.most {
            self.next.get_or_insert(raw.offset);
            return;
        }
        self.candidates.insert(txid, Candidate { verdict: decision.outcome, hash: decision.hash });
    }
}
