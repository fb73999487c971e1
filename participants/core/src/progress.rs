//! How far a log was worked off. Records are finished in any order; the position moves only past those that are done.
//!
//! Offsets have gaps (compaction, control records), so what is open is kept as a set of the offsets that were read.

use std::collections::BTreeSet;

/// The progress on one partition of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The offset behind the highest one that was read.
    next: u64,
    /// Read and not done.
    open: BTreeSet<u64>,
}

impl Progress {
    /// Starts to read at `position`.
    pub fn starting_at(position: u64) -> Self {
        Self { next: position, open: BTreeSet::new() }
    }

    /// A record was read. One below what was read before is a repeat, and open again.
    pub fn read(&mut self, offset: u64) {
        self.open.insert(offset);
        self.next = self.next.max(offset + 1);
    }

    /// A record is done. What was never read is nobody's business here.
    pub fn done(&mut self, offset: u64) {
        self.open.remove(&offset);
    }

    /// Everything below the position is done.
    pub fn position(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }

    /// The offset behind the highest one that was read.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// How many records were read and are not done.
    pub fn open(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_moves_only_past_what_is_done() {
        let mut progress = Progress::starting_at(10);
        assert_eq!(progress.position(), 10);
        for offset in [10, 11, 15] {
            progress.read(offset);
        }
        assert_eq!((progress.position(), progress.next(), progress.open()), (10, 16, 3));
        progress.done(11);
        assert_eq!(progress.position(), 10, "10 is still open");
        progress.done(10);
        assert_eq!(progress.position(), 15, "12 to 14 are a gap");
        progress.done(99);
        progress.done(15);
        assert_eq!((progress.position(), progress.open()), (16, 0));
    }

    #[test]
    fn a_repeat_holds_the_position_until_it_is_done_again() {
        let mut progress = Progress::starting_at(0);
        progress.read(0);
        progress.done(0);
        progress.read(0);
        assert_eq!((progress.position(), progress.next()), (0, 1));
        progress.done(0);
        assert_eq!(progress.position(), 1);
    }
}
