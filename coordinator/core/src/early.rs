//! Votes that came before their requests: one participant's, in one shard.
//!
//! Requests and votes are different logs, and any order between them is legal. A vote for a request that was not read yet
//! is *held* until it is, and never voided by time. What is held is bounded. Past the bound the votes for the farthest
//! request are *let go*:
//!
//! - the positions stay at or before them ([`EarlyVotes::lowest`]);
//! - a vote for that request, or for a later one, is passed over from now on: it might not be the register's first;
//! - once the requests have got that far, the votes are read again from the first one that was let go.
//!
//! Votes for earlier requests count as ever. So the votes are never paused (the `no` that would end a transaction may lie
//! behind the paused vote), nothing waits in a circle, and who invents votes for requests far ahead holds up nobody.

use std::collections::BTreeMap;

use suture_contract::messages::Vote;

/// One participant's early votes.
#[derive(Debug, Default)]
pub struct EarlyVotes {
    /// By request offset, each list in the order read. All are for requests below what was let go.
    held: BTreeMap<u64, Vec<HeldVote>>,
    count: usize,
    let_go: Option<LetGo>,
}

/// A vote that waits for its request.
#[derive(Debug)]
pub struct HeldVote {
    /// Its offset in the votes partition.
    pub at: u64,
    /// When the broker took it, in milliseconds since 1970.
    pub came_ms: i64,
    /// What it says.
    pub vote: Vote,
}

#[derive(Debug, Clone, Copy)]
struct LetGo {
    /// The first vote record that was let go.
    from: u64,
    /// The lowest request offset that a vote let go was for.
    lowest_request: u64,
    /// Set once the reading again was asked for: nothing is looked at until the record at `from` comes.
    reading_again: bool,
}

impl EarlyVotes {
    /// Whether a record is the next one to look at; `next` is the offset after the last one that was.
    pub fn admit(&mut self, at: u64, next: u64) -> bool {
        match self.let_go {
            // Records from before the reading again are still coming in: not these.
            Some(let_go) if let_go.reading_again => {
                if at == let_go.from {
                    self.let_go = None;
                }
                at == let_go.from
            }
            Some(_) | None => at >= next,
        }
    }

    /// Whether a vote for this request must be passed over, for an earlier one may have been let go.
    pub fn passes_over(&self, request: u64) -> bool {
        self.let_go.is_some_and(|let_go| request >= let_go.lowest_request)
    }

    /// Holds a vote; beyond `most`, those for the farthest request are let go.
    pub fn hold(&mut self, vote: HeldVote, most: usize) {
        let (at, request) = (vote.at, vote.vote.txid.offset);
        let held = self.held.entry(request).or_default();
        // Read again, it is held already.
        if held.last().is_some_and(|last| last.at >= at) {
            return;
        }
        held.push(vote);
        self.count += 1;
        if self.count > most
            && let Some((request, farthest)) = self.held.pop_last()
        {
            self.count -= farthest.len();
            let first = farthest.first().map_or(at, |held| held.at);
            let from = self.let_go.map_or(first, |let_go| let_go.from.min(first));
            self.let_go = Some(LetGo { from, lowest_request: request, reading_again: false });
        }
    }

    /// The held votes of the lowest request below `request`, and which one that is.
    pub fn take_below(&mut self, request: u64) -> Option<(u64, Vec<HeldVote>)> {
        let first = self.held.first_entry().filter(|first| *first.key() < request)?;
        let (request, held) = first.remove_entry();
        self.count -= held.len();
        Some((request, held))
    }

    /// From where the votes are to be read again, now that the requests before `next_request` were read. Asks once.
    pub fn read_again(&mut self, next_request: u64) -> Option<u64> {
        let let_go = self.let_go.as_mut()?;
        let due = !let_go.reading_again && let_go.lowest_request < next_request;
        let_go.reading_again |= due;
        due.then_some(let_go.from)
    }

    /// The lowest offset of a vote that is held or was let go.
    pub fn lowest(&self) -> Option<u64> {
        let held = self.held.values().filter_map(|held| held.first()).map(|held| held.at).min();
        let let_go = self.let_go.map(|let_go| let_go.from);
        held.into_iter().chain(let_go).min()
    }

    /// How many are held.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether none is held or was let go.
    pub fn is_empty(&self) -> bool {
        self.count == 0 && self.let_go.is_none()
    }
}
