//! The logs as the model holds them: short, of a fixed size, and nothing in them is ever forgotten. What Kafka has deleted is
//! marked, because somebody may have read it before.

use std::hash::{Hash, Hasher};

use suture_contract::messages::{Ballot, Verdict};

use super::alphabet::{Cast, Noted, PARTICIPANTS};

/// Most records of a votes topic, and of the decision log.
pub const LONGEST: usize = 7;

/// A log of symbols.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Log {
    bytes: [u8; LONGEST],
    len: u8,
}

impl Log {
    /// Its end.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// The symbol at an offset.
    pub fn at(&self, offset: usize) -> u8 {
        self.bytes[offset]
    }

    /// Appends a symbol.
    pub fn push(&mut self, byte: u8) {
        self.bytes[self.len()] = byte;
        self.len += 1;
    }

    /// All symbols.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len()]
    }

    /// What is there between two offsets; before and behind it, nothing.
    pub fn between(&self, from: usize, to: usize) -> Self {
        let mut part = Self { len: to as u8, ..Self::default() };
        if from < to {
            part.bytes[from..to].copy_from_slice(&self.bytes[from..to]);
        }
        part
    }

    /// Without the symbols of a mask of offsets.
    pub fn without(mut self, removed: u8) -> Self {
        for offset in 0..self.len() {
            if removed & (1 << offset) != 0 {
                self.bytes[offset] = 0;
            }
        }
        self
    }
}

/// One word: it is hashed more often than anything else.
impl Hash for Log {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let [a, b, c, d, e, f, g] = self.bytes;
        hasher.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, self.len]));
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bytes().fmt(f)
    }
}

/// All logs of the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Logs {
    /// How many requests there are.
    pub requests: u8,
    /// Everything that was ever voted.
    pub votes: [Log; PARTICIPANTS],
    /// Everything that was ever decided.
    pub decisions: Log,
    /// What compaction has removed of it, by offset.
    pub removed: u8,
    /// The start of the requests.
    pub requests_start: u8,
    /// The starts of the votes.
    pub votes_start: [u8; PARTICIPANTS],
}

impl Logs {
    /// The first vote of a register, by all that was ever voted.
    pub fn register(&self, request: usize, participant: usize) -> Option<Ballot> {
        let first = self.votes[participant].bytes().iter().map(|byte| Cast::from_byte(*byte));
        first.into_iter().find(|cast| cast.is_about(request)).map(Cast::ballot)
    }

    /// What the registers say.
    pub fn product(&self, request: usize) -> Option<Verdict> {
        let registers = [0, 1].map(|participant| self.register(request, participant));
        if registers.contains(&Some(Ballot::No)) {
            return Some(Verdict::Abort);
        }
        (registers == [Some(Ballot::Yes); 2]).then_some(Verdict::Commit)
    }

    /// The records of the decision log that are still there, from an offset on.
    pub fn decisions_from(&self, from: usize) -> impl Iterator<Item = (usize, Noted)> + '_ {
        let is_there = |offset: &usize| self.removed & (1 << *offset) == 0;
        (from..self.decisions.len()).filter(is_there).map(|at| (at, Noted::from_byte(self.decisions.at(at))))
    }

    /// Whether a decision was ever appended.
    pub fn is_logged(&self, request: usize) -> bool {
        let decisions = self.decisions.bytes().iter().map(|byte| Noted::from_byte(*byte));
        decisions.into_iter().any(|noted| matches!(noted, Noted::Decision(..)) && noted.request() == request)
    }

    /// Where the votes of a participant must not begin later than, if the requests begin here.
    pub fn first_vote_from(&self, request: usize, participant: usize) -> usize {
        let votes = self.votes[participant].bytes();
        let is_needed = |byte: &u8| Cast::from_byte(*byte).request() >= request;
        votes.iter().position(is_needed).unwrap_or(votes.len())
    }

    /// With the participants in each other's place.
    pub fn mirrored(mut self) -> Self {
        self.votes.swap(0, 1);
        self.votes_start.swap(0, 1);
        self
    }
}
