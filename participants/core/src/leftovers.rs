//! Prepared branches whose ledger row says that they are over.
//!
//! Such a branch is of no use to anybody and keeps its locks. MariaDB brings one back when it is killed after an abort: its
//! rollback is not durable, the `aborted` row is. The ledger decides alone that it may be rolled back, for what it calls
//! aborted or refused can never be committed. All the rest is caution, because a branch that was ended by mistake is lost:
//!
//! - the list is looked at first, then the end of the decision log: all decisions up to there are to be applied here before;
//! - it must be found so in two looks at least, and over a time of grace. Who finishes a branch just now has finished it then;
//! - the shard must be ours, and live.
//!
//! A branch without a row is in doubt, and never ended from here.

use std::collections::BTreeMap;
use std::time::Duration;

use suture_contract::ids::{Shard, Txid};

/// What was found to be over.
#[derive(Debug)]
pub struct Leftovers {
    grace: Duration,
    found: BTreeMap<Txid, Leftover>,
}

#[derive(Debug, Clone, Copy)]
struct Leftover {
    found_at: Duration,
    /// Where the decision log of its shard ended after that.
    decisions_end: u64,
    looks: u32,
}

impl Leftovers {
    /// Nothing was found, and what will be has this time of grace.
    pub fn new(grace: Duration) -> Self {
        Self { grace, found: BTreeMap::new() }
    }

    /// What a look has found, and where the decision logs ended after it. A shard without an end is not ours to judge.
    pub fn found(&mut self, over: &[Txid], decisions_ends: &BTreeMap<Shard, u64>, now: Duration) {
        self.found.retain(|txid, _| over.contains(txid));
        for txid in over {
            let Some(&decisions_end) = decisions_ends.get(&txid.shard) else { continue };
            let first = Leftover { found_at: now, decisions_end, looks: 0 };
            self.found.entry(*txid).or_insert(first).looks += 1;
        }
    }

    /// Whether it was found by the last look.
    pub fn contains(&self, txid: &Txid) -> bool {
        self.found.contains_key(txid)
    }

    /// What may be rolled back now; `applied`: up to where decisions are applied, if the shard is ours and live.
    pub fn due(&self, now: Duration, applied: impl Fn(Shard) -> Option<u64>) -> Vec<Txid> {
        let is_due = |(txid, leftover): &(&Txid, &Leftover)| {
            leftover.looks >= 2
                && now.saturating_sub(leftover.found_at) >= self.grace
                && applied(txid.shard).is_some_and(|applied| applied >= leftover.decisions_end)
        };
        self.found.iter().filter(is_due).map(|(txid, _)| *txid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: Shard = Shard(3);

    fn txid(offset: u64) -> Txid {
        format!("k3f9q-3-{offset}").parse().unwrap()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn log(offset: u64) -> BTreeMap<Shard, u64> {
        [(SHARD, offset)].into()
    }

    fn twice_found() -> Leftovers {
        let mut leftovers = Leftovers::new(at(30));
        leftovers.found(&[txid(1)], &log(7), at(100));
        leftovers.found(&[txid(1)], &log(9), at(120));
        leftovers
    }

    #[test]
    fn what_is_over_is_ended_when_all_cautions_are_met() {
        let leftovers = twice_found();
        assert!(leftovers.contains(&txid(1)));
        let cases = [
            ("all is met", at(130), Some(7), true),
            ("within the grace", at(129), Some(7), false),
            ("a decision that stood in the log then is not applied", at(999), Some(6), false),
            ("the shard is somebody else's, or not live", at(999), None, false),
        ];
        for (why, now, applied, is_due) in cases {
            assert_eq!(!leftovers.due(now, |_| applied).is_empty(), is_due, "{why}");
        }
    }

    #[test]
    fn one_look_is_not_enough() {
        let mut leftovers = Leftovers::new(at(30));
        leftovers.found(&[txid(1)], &log(7), at(100));
        assert!(leftovers.due(at(999), |_| Some(7)).is_empty());
    }

    #[test]
    fn a_look_that_does_not_find_it_begins_anew() {
        let mut leftovers = twice_found();
        leftovers.found(&[], &log(9), at(125));
        assert!(!leftovers.contains(&txid(1)));
        leftovers.found(&[txid(1)], &log(9), at(130));
        leftovers.found(&[txid(1)], &log(9), at(135));
        assert!(leftovers.due(at(159), |_| Some(9)).is_empty());
        assert_eq!(leftovers.due(at(160), |_| Some(9)), [txid(1)]);
    }

    #[test]
    fn of_a_shard_whose_log_is_not_known_nothing_is_judged() {
        let mut leftovers = Leftovers::new(at(30));
        for second in [100, 110, 120] {
            leftovers.found(&[txid(1)], &BTreeMap::new(), at(second));
        }
        assert!(leftovers.due(at(999), |_| Some(0)).is_empty());
    }
}
