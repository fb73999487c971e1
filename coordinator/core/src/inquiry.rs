//! Inquiries: a participant that has been in doubt for too long says its vote again, marked.
//!
//! | the transaction | the answer |
//! |---|---|
//! | undecided, or its decision is on its way | none: nothing is wrong |
//! | told, and still in the window | its decision once more, from memory |
//! | finished, and not in the window | its decision once more, as the decision log has it, if the claim fits it |
//! | not in the decision log | an alarm, and no decision |
//! | one over whose decision something else stands, which a person has let pass | its decision once more, though nobody asks |
//!
//! The claim (participant and hash) must fit the request, or the decision that was found; else the vote is void. A storm of
//! inquiries, honest or not, costs little: a decision is appended again at most once in [`AGAIN_AFTER`], the log is looked
//! through at most once in that time, for all claims together, and no more than [`MOST_INQUIRIES`] of anything is remembered.
//! What comes beyond is dropped, for who is in doubt asks again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use suture_contract::ids::RequestHash;
use suture_contract::messages::Decision;

/// A decision is appended again, and the log looked through, at most once in this time.
pub const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Most inquiries that are remembered, and most decisions that are appended again within [`AGAIN_AFTER`], in a shard.
pub const MOST_INQUIRIES: usize = 4_096;

/// A shard's inquiries.
#[derive(Debug, Default)]
pub struct Inquiries {
    /// Requests of the window that were asked about.
    asked: BTreeSet<u64>,
    /// Claims about what is not in the window, by request and seat.
    claims: BTreeMap<(u64, u16), Claim>,
    /// Those that are being looked for in the log.
    sought: BTreeMap<(u64, u16), Claim>,
    /// Requests over whose decisions something else stands in the log.
    displaced: BTreeSet<u64>,
    /// When the log was last looked through.
    sought_at: Option<Duration>,
    /// Decisions that were found, by request.
    found: BTreeMap<u64, Decision>,
    /// When each decision was last appended again.
    answered: BTreeMap<u64, Duration>,
}

/// What a participant says of a transaction that is not in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The vote's offset.
    pub at: u64,
    /// What it says that it voted on.
    pub hash: RequestHash,
}

impl Inquiries {
    /// A transaction of the window was asked about, and the claim fits.
    pub fn ask(&mut self, request: u64) {
        if self.asked.len() < MOST_INQUIRIES {
            self.asked.insert(request);
        }
    }

    /// A transaction was asked about that is not in the window. Of a participant's claims about it the last one stays.
    pub fn claim(&mut self, request: u64, seat: u16, claim: Claim) {
        if self.claims.len() < MOST_INQUIRIES || self.claims.contains_key(&(request, seat)) {
            self.claims.insert((request, seat), claim);
        }
    }

    /// The requests of the window whose decisions are to be appended again now.
    pub fn take_asked(&mut self, now: Duration) -> Vec<u64> {
        if self.asked.is_empty() {
            return Vec::new();
        }
        let asked = std::mem::take(&mut self.asked);
        self.forget(now);
        asked.into_iter().filter(|&request| self.may_answer(request, now)).collect()
    }

    /// The decisions that were found and are to be appended again now.
    pub fn take_found(&mut self, now: Duration) -> Vec<Decision> {
        if self.found.is_empty() {
            return Vec::new();
        }
        let found = std::mem::take(&mut self.found);
        self.forget(now);
        found.into_values().filter(|decision| self.may_answer(decision.txid.offset, now)).collect()
    }

    /// Over this request's decision stands a record that a person has let pass. Compaction keeps only the last record of a key, so
    /// the decision is to be appended again while it is there.
    pub fn displaced(&mut self, request: u64) {
        if self.displaced.len() < MOST_INQUIRIES {
            self.displaced.insert(request);
        }
    }

    /// The requests whose decisions are to be looked for in the log now.
    pub fn seek(&mut self, now: Duration) -> Vec<u64> {
        let rests = self.sought_at.is_some_and(|at| now.saturating_sub(at) < AGAIN_AFTER);
        let is_wanted = !self.claims.is_empty() || !self.displaced.is_empty();
        if !is_wanted || !self.sought.is_empty() || rests {
            return Vec::new();
        }
        self.sought_at = Some(now);
        self.sought = std::mem::take(&mut self.claims);
        let requests: BTreeSet<u64> =
            self.sought.keys().map(|(request, _)| *request).chain(self.displaced.iter().copied()).collect();
        requests.into_iter().collect()
    }

    /// The claims about a request that was looked for. They are forgotten here.
    pub fn take_sought(&mut self, request: u64) -> Vec<(u16, Claim)> {
        let mut claims = Vec::new();
        while let Some((&key, _)) = self.sought.range((request, 0)..=(request, u16::MAX)).next() {
            claims.extend(self.sought.remove(&key).map(|claim| (key.1, claim)));
        }
        claims
    }

    /// Whether something stands over this request's decision. It is forgotten here.
    pub fn take_displaced(&mut self, request: u64) -> bool {
        self.displaced.remove(&request)
    }

    /// A decision was found that a claim fits, or that something stands over.
    pub fn found(&mut self, decision: Decision) {
        self.found.insert(decision.txid.offset, decision);
    }

    fn forget(&mut self, now: Duration) {
        self.answered.retain(|_, at| now.saturating_sub(*at) < AGAIN_AFTER);
    }

    fn may_answer(&mut self, request: u64, now: Duration) -> bool {
        let may = self.answered.len() < MOST_INQUIRIES && !self.answered.contains_key(&request);
        if may {
            self.answered.insert(request, now);
        }
        may
    }
}
