//! Branches in doubt for too long: who asks for its decision, and when.
//!
//! | a branch of ours is in doubt | what happens |
//! |---|---|
//! | for less than the time to ask | nothing: its decision is on its way |
//! | for longer, and its whole hash is known | it asks, and again after each such time |
//! | for longer, and a half of its hash is known | its prepare is looked for once, and it asks when that is found |
//!
//! Asking is all that is done: **the absence of a decision never means abort.** Of the many that came into doubt together not all
//! ask together: each waits up to a quarter longer, by its txid and not by chance, and no more than [`MOST_ASKED`] ask at
//! once, the oldest first.
//!
//! How long a branch has been in doubt is what the database said when this process first saw it there, and this process's
//! own clock from then on. A branch that was not seen in the database's list or ledger any more is forgotten.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use suture_contract::ids::{RequestHash, Txid};

/// Most branches that ask at once.
pub const MOST_ASKED: usize = 100;

/// What a database tells of the hash of a branch in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenHash {
    /// The ledger row can be read.
    Whole(RequestHash),
    /// It cannot, and this stands in the gid.
    Short(String),
}

/// A branch that waits for its decision, as a look into the database has found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InDoubt {
    /// Which.
    pub txid: Txid,
    /// For how long, by the database's clock.
    pub age: Option<Duration>,
    /// What it is about.
    pub hash: SeenHash,
}

/// One that is to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Which.
    pub txid: Txid,
    /// What it said yes to.
    pub hash: RequestHash,
    /// For how long it has been in doubt.
    pub age: Duration,
}

/// Who is to do something now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// These ask.
    pub ask: Vec<Ask>,
    /// The prepares of these are to be looked for. Each is named here once.
    pub seek: Vec<Txid>,
}

/// The branches in doubt that this process knows of.
#[derive(Debug)]
pub struct Doubts {
    ask_after: Duration,
    branches: BTreeMap<Txid, Doubt>,
    /// Counts the looks into the database.
    looks: u64,
}

#[derive(Debug)]
struct Doubt {
    hash: SeenHash,
    /// When it was first seen, and how long it had been in doubt then.
    seen_at: Duration,
    age_then: Duration,
    /// How many looks had been begun.
    look: u64,
    ask_at: Duration,
    asked: u32,
    is_sought: bool,
}

impl Doubts {
    /// Nobody is in doubt, and who is asks after this time.
    pub fn new(ask_after: Duration) -> Self {
        Self { ask_after, branches: BTreeMap::new(), looks: 0 }
    }

    /// A branch said yes here.
    pub fn said_yes(&mut self, txid: Txid, hash: RequestHash, now: Duration) {
        self.see(InDoubt { txid, age: None, hash: SeenHash::Whole(hash) }, now);
    }

    /// A branch is in doubt no more.
    pub fn ends(&mut self, txid: &Txid) {
        self.branches.remove(txid);
    }

    /// Begins a look into the database. Who comes into doubt from now on is not judged by it.
    pub fn look(&mut self) -> u64 {
        self.looks += 1;
        self.looks
    }

    /// What such a look has found.
    pub fn found(&mut self, look: u64, in_doubt: Vec<InDoubt>, now: Duration) {
        let listed: BTreeSet<Txid> = in_doubt.iter().map(|seen| seen.txid).collect();
        self.branches.retain(|txid, doubt| doubt.look >= look || listed.contains(txid));
        in_doubt.into_iter().for_each(|seen| self.see(seen, now));
    }

    fn see(&mut self, InDoubt { txid, age, hash }: InDoubt, now: Duration) {
        if let Some(doubt) = self.branches.get_mut(&txid) {
            if let SeenHash::Whole(_) = hash {
                doubt.hash = hash;
            }
            return;
        }
        let age_then = age.unwrap_or_default();
        let ask_at = now + with_jitter(self.ask_after, &txid, 0).saturating_sub(age_then);
        let doubt = Doubt { hash, seen_at: now, age_then, look: self.looks, ask_at, asked: 0, is_sought: false };
        self.branches.insert(txid, doubt);
    }

    /// Who is to ask now, of the shards that are ours.
    pub fn due(&mut self, now: Duration, is_ours: impl Fn(&Txid) -> bool) -> Due {
        let is_due = |(txid, doubt): &(&Txid, &Doubt)| {
            doubt.ask_at <= now && is_ours(txid) && !(doubt.is_sought && matches!(doubt.hash, SeenHash::Short(_)))
        };
        let mut oldest: Vec<(Reverse<Duration>, Txid)> =
            self.branches.iter().filter(is_due).map(|(txid, doubt)| (Reverse(doubt.age(now)), *txid)).collect();
        oldest.sort_unstable();
        let mut due = Due::default();
        for (Reverse(age), txid) in oldest.into_iter().take(MOST_ASKED) {
            let Some(doubt) = self.branches.get_mut(&txid) else { continue };
            match doubt.hash {
                SeenHash::Whole(hash) => {
                    doubt.asked += 1;
                    doubt.ask_at = now + with_jitter(self.ask_after, &txid, doubt.asked);
                    due.ask.push(Ask { txid, hash, age });
                }
                SeenHash::Short(_) => {
                    doubt.is_sought = true;
                    due.seek.push(txid);
                }
            }
        }
        due
    }

    /// A prepare of this branch was found. `false`: it is not what the branch is about.
    pub fn learn(&mut self, txid: &Txid, hash: RequestHash) -> bool {
        let Some(doubt) = self.branches.get_mut(txid) else { return true };
        let fits = match &doubt.hash {
            SeenHash::Whole(known) => *known == hash,
            SeenHash::Short(short) => *short == hash.short(),
        };
        if fits {
            doubt.hash = SeenHash::Whole(hash);
        }
        fits
    }

    /// It could not be looked for: that is due again, as late as an answer would be.
    pub fn seek_again(&mut self, txid: &Txid, now: Duration) {
        let ask_at = now + self.ask_after;
        if let Some(doubt) = self.branches.get_mut(txid) {
            doubt.is_sought = false;
            doubt.ask_at = ask_at;
        }
    }

    /// For how long a branch has been in doubt.
    pub fn age(&self, txid: &Txid, now: Duration) -> Option<Duration> {
        self.branches.get(txid).map(|doubt| doubt.age(now))
    }

    /// For how long the oldest has been in doubt.
    pub fn oldest(&self, now: Duration) -> Option<Duration> {
        self.branches.values().map(|doubt| doubt.age(now)).max()
    }
}

impl Doubt {
    fn age(&self, now: Duration) -> Duration {
        self.age_then + now.saturating_sub(self.seen_at)
    }
}

/// The time to ask, and up to a quarter more.
fn with_jitter(ask_after: Duration, txid: &Txid, asked: u32) -> Duration {
    let name = txid.offset ^ (u64::from(txid.shard.0) << 48) ^ (u64::from(asked) << 32);
    let of_4096 = name.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
    ask_after + ask_after / 4096 * u32::try_from(of_4096).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK_AFTER: Duration = Duration::from_secs(60);

    fn txid(shard: u16, offset: u64) -> Txid {
        format!("k3f9q-{shard}-{offset}").parse().unwrap()
    }

    fn hash(n: u64) -> RequestHash {
        format!("k1:{n:032x}").parse().unwrap()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn whole(n: u64, age: Option<u64>) -> InDoubt {
        InDoubt { txid: txid(1, n), age: age.map(at), hash: SeenHash::Whole(hash(n)) }
    }

    fn asked(doubts: &mut Doubts, now: u64) -> Vec<u64> {
        doubts.due(at(now), |_| true).ask.iter().map(|ask| ask.txid.offset).collect()
    }

    #[test]
    fn who_is_in_doubt_for_too_long_asks_once_each_time() {
        let mut doubts = Doubts::new(ASK_AFTER);
        doubts.said_yes(txid(1, 7), hash(7), at(100));
        assert_eq!(asked(&mut doubts, 159), [0; 0]);
        let due = doubts.due(at(176), |_| true);
        assert_eq!(due.ask, [Ask { txid: txid(1, 7), hash: hash(7), age: at(76) }], "at most a quarter later");
        assert_eq!(asked(&mut doubts, 235), [0; 0]);
        assert_eq!(asked(&mut doubts, 251), [7]);
        doubts.ends(&txid(1, 7));
        assert_eq!(asked(&mut doubts, 9_000), [0; 0]);
    }

    #[test]
    fn only_what_is_ours_asks() {
        let mut doubts = Doubts::new(ASK_AFTER);
        doubts.said_yes(txid(1, 7), hash(7), at(0));
        doubts.said_yes(txid(2, 7), hash(7), at(0));
        let due = doubts.due(at(100), |txid| txid.shard.0 == 2);
        assert_eq!(due.ask.iter().map(|ask| ask.txid).collect::<Vec<_>>(), [txid(2, 7)]);
        assert_eq!(asked(&mut doubts, 101), [7], "the other one, when its shard has come to us");
    }

    #[test]
    fn what_was_in_doubt_before_this_process_is_as_old_as_the_database_says() {
        let mut doubts = Doubts::new(ASK_AFTER);
        let look = doubts.look();
        doubts.found(look, vec![whole(1, Some(3_600)), whole(2, None)], at(5));
        assert_eq!(asked(&mut doubts, 5), [1]);
        assert_eq!(doubts.oldest(at(5)), Some(at(3_600)));
        assert_eq!(asked(&mut doubts, 64), [0; 0], "of the other one nobody knows since when");
        assert_eq!(asked(&mut doubts, 81), [1, 2]);
        // What the database says later changes nothing: its clock may be set.
        let look = doubts.look();
        doubts.found(look, vec![whole(1, Some(1)), whole(2, Some(1))], at(90));
        assert_eq!(doubts.age(&txid(1, 1), at(90)), Some(at(3_685)));
    }

    #[test]
    fn a_look_judges_only_who_was_there_before_it() {
        let mut doubts = Doubts::new(ASK_AFTER);
        doubts.said_yes(txid(1, 1), hash(1), at(0));
        let look = doubts.look();
        doubts.said_yes(txid(1, 2), hash(2), at(0));
        doubts.found(look, vec![], at(1));
        assert_eq!(asked(&mut doubts, 100), [2]);
    }

    #[test]
    fn half_a_hash_is_completed_by_a_prepare_that_fits() {
        let mut doubts = Doubts::new(ASK_AFTER);
        let seen = InDoubt { txid: txid(1, 1), age: Some(at(100)), hash: SeenHash::Short(hash(1).short()) };
        let look = doubts.look();
        doubts.found(look, vec![seen.clone()], at(0));
        assert_eq!(doubts.due(at(0), |_| true), Due { ask: vec![], seek: vec![txid(1, 1)] });
        assert_eq!(doubts.due(at(1_000), |_| true), Due::default(), "each is looked for once");
        doubts.seek_again(&txid(1, 1), at(1_000));
        assert_eq!(doubts.due(at(1_059), |_| true), Due::default());
        assert_eq!(doubts.due(at(1_060), |_| true).seek, [txid(1, 1)]);
        let other: RequestHash = "k1:10000000000000000000000000000000".parse().unwrap();
        assert!(!doubts.learn(&txid(1, 1), other));
        assert!(doubts.learn(&txid(1, 1), hash(1)));
        let look = doubts.look();
        doubts.found(look, vec![seen], at(1_060));
        assert_eq!(doubts.due(at(1_060), |_| true).ask[0].hash, hash(1), "a half does not replace the whole");
        assert!(doubts.learn(&txid(1, 1), hash(1)));
        assert!(!doubts.learn(&txid(1, 1), other), "nor does another whole");
    }

    #[test]
    fn neighbours_and_rounds_wait_for_times_of_their_own() {
        let waits = |shard, offset, asked| with_jitter(ASK_AFTER, &txid(shard, offset), asked);
        let all = [waits(1, 7, 0), waits(1, 8, 0), waits(2, 7, 0), waits(1, 7, 1), waits(1, 7, 2)];
        assert_eq!(BTreeSet::from(all).len(), all.len(), "{all:?}");
        let mut doubts = Doubts::new(ASK_AFTER);
        doubts.said_yes(txid(1, 7), hash(7), at(0));
        for (now, asked) in [(100, 1), (200, 2)] {
            assert_eq!(doubts.due(at(now), |_| true).ask.len(), 1);
            assert_eq!(doubts.branches[&txid(1, 7)].ask_at, at(now) + waits(1, 7, asked));
        }
    }

    #[test]
    fn many_do_not_ask_at_once() {
        let mut doubts = Doubts::new(ASK_AFTER);
        (0..1_000).for_each(|n| doubts.said_yes(txid(1, n), hash(n), at(0)));
        let mut all = BTreeSet::new();
        let mut busiest = 0;
        for second in 0..=75 {
            let asked = asked(&mut doubts, second);
            assert!(asked.is_empty() || second >= 60);
            busiest = busiest.max(asked.len());
            all.extend(asked);
        }
        assert_eq!(all.len(), 1_000, "and within a quarter of the time all have asked");
        assert!(busiest <= MOST_ASKED, "{busiest}");

        let look = doubts.look();
        doubts.found(look, (5_000..6_000).map(|n| whole(n, Some(n))).collect(), at(80));
        let asked = asked(&mut doubts, 80);
        assert_eq!((asked.len(), asked[0]), (MOST_ASKED, 5_999), "the oldest first");
    }
}
