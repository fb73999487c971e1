//! Branches in doubt, and whether somebody finishes one by hand.
//!
//! | a branch is | goes to |
//! |---|---|
//! | new: it has been voted yes | seen, if a look finds it in doubt, or nothing of it: it was there. Committed: nobody watches it, for its yes was a repeat |
//! | seen in doubt, now or when its shard was taken | gone, if a look finds it committed, or nothing of it |
//! | seen in doubt | nobody watches it any more, if a look finds a row that says that it is over: that is Suture's own word |
//! | gone, in [`LOOKS`] looks, after each of which the decision log ended somewhere | finished by hand, if its decision was not read up to the last of these ends |
//!
//! **Why that is no false alarm.** A decision stands in the log before anybody carries it out, another instance too. So one
//! that explains what was looked at lies below the end that the log has afterwards, and whoever has read that far has read
//! it. A branch whose decision was read is not watched any more, whatever becomes of it. A leader that was cut off shows an end of
//! before; it does so for some seconds, and the looks are a second apart.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use suture_contract::ids::{Attempt, BusinessKey, RequestHash, Shard, Txid};

use crate::branch::State;

/// Most that are looked at at once.
const AT_ONCE: usize = 500;

/// How often a branch is looked at that is gone: of the log's ends after these looks the last one counts.
pub const LOOKS: u32 = 10;

/// What a branch was about, if this process has voted on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The business key.
    pub business_key: BusinessKey,
    /// The attempt.
    pub attempt: Attempt,
    /// The hash.
    pub hash: RequestHash,
}

/// The branches that are watched.
#[derive(Debug, Default)]
pub struct Watch {
    branches: BTreeMap<Txid, (Sight, Option<About>)>,
    /// Those that have left since a look began: what it has found is from before.
    left: BTreeSet<Txid>,
    /// The last one that was looked at.
    last: Option<Txid>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    New,
    Seen,
    Gone { state: State, end: u64, looks: u32 },
}

impl Watch {
    /// A yes is durable.
    pub fn voted(&mut self, txid: Txid, about: About) {
        self.branches.entry(txid).or_insert((Sight::New, None)).1 = Some(about);
    }

    /// It was in doubt when its shard was taken.
    pub fn was_there(&mut self, txid: Txid) {
        self.branches.entry(txid).or_insert((Sight::Seen, None)).0 = Sight::Seen;
    }

    /// Its decision is here.
    pub fn leaves(&mut self, txid: &Txid) {
        self.branches.remove(txid);
        self.left.insert(*txid);
    }

    /// A shard is somebody else's now, or stands still.
    pub fn forget(&mut self, shard: Shard) {
        self.branches.retain(|txid, _| txid.shard != shard);
    }

    /// What to look at next, in turn: a look begins.
    pub fn in_turn(&mut self) -> Vec<Txid> {
        self.left.clear();
        let from = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.branches.range((from, Bound::Unbounded)).map(|(txid, _)| *txid);
        let next: Vec<Txid> = behind.take(AT_ONCE).collect();
        self.last = if next.len() < AT_ONCE { None } else { next.last().copied() };
        next
    }

    /// Whether it matters where the decision log ends when this one is not in doubt any more.
    pub fn was_seen(&self, txid: &Txid) -> bool {
        self.branches.get(txid).is_some_and(|(sight, _)| *sight != Sight::New)
    }

    /// What a look has found, and where the log of its shard ended afterwards, if anybody knows. Nothing, if the branch was decided
    /// since it began: the same transaction may be asked for and voted on once more, and was not in doubt then.
    pub fn looked(&mut self, txid: &Txid, state: State, end: Option<u64>) {
        if self.left.contains(txid) {
            return;
        }
        let Some((sight, _)) = self.branches.get_mut(txid) else { return };
        match (*sight, state, end) {
            (Sight::New | Sight::Seen | Sight::Gone { .. }, State::InDoubt, _) | (Sight::New, State::Absent, _) => {
                *sight = Sight::Seen;
            }
            (Sight::New, _, _) | (_, State::Aborted | State::Refused | State::Abandoned | State::Purged, _) => {
                self.leaves(txid)
            }
            (_, State::Absent | State::Committed, None) => {}
            (Sight::Seen, State::Absent | State::Committed, Some(end)) => *sight = Sight::Gone { state, end, looks: 1 },
            (Sight::Gone { end: before, looks, .. }, State::Absent | State::Committed, Some(end)) => {
                *sight = Sight::Gone { state, end: end.max(before), looks: looks + 1 };
            }
        }
    }

    /// Those that were finished by hand: what became of them, once each. `read_to`: up to where the decisions of a shard are
    /// read; `in_hand`: whether a decision that was read is under way.
    pub fn finished_by_hand(
        &mut self,
        read_to: impl Fn(Shard) -> Option<u64>,
        in_hand: impl Fn(&Txid) -> bool,
    ) -> Vec<(Txid, State, Option<About>)> {
        let certain = |(txid, (sight, _)): (&Txid, &(Sight, Option<About>))| match sight {
            Sight::Gone { state, end, looks } if *looks >= LOOKS && read_to(txid.shard)? >= *end && !in_hand(txid) => {
                Some((*txid, *state))
            }
            Sight::New | Sight::Seen | Sight::Gone { .. } => None,
        };
        let finished: Vec<(Txid, State)> = self.branches.iter().filter_map(certain).collect();
        let about = |(txid, state)| (txid, state, self.branches.remove(&txid).and_then(|(_, about)| about));
        finished.into_iter().map(about).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txid(offset: u64) -> Txid {
        format!("k3f9q-3-{offset}").parse().unwrap()
    }

    fn about() -> About {
        let hash = "k1:00000000000000000000000000000001".parse().unwrap();
        About { business_key: "surgery:1".parse().unwrap(), attempt: Attempt::FIRST, hash }
    }

    fn finished(watch: &mut Watch, read_to: u64) -> Vec<(Txid, State, bool)> {
        let found = watch.finished_by_hand(|_| Some(read_to), |_| false);
        found.into_iter().map(|(txid, state, about)| (txid, state, about.is_some())).collect()
    }

    /// So many looks that it is certain.
    fn looked(watch: &mut Watch, txid: &Txid, state: State, end: u64) {
        (0..LOOKS).for_each(|_| watch.looked(txid, state, Some(end)));
    }

    #[test]
    fn who_was_in_doubt_and_is_not_without_a_decision_is_told_once() {
        let mut watch = Watch::default();
        watch.voted(txid(1), about());
        watch.was_there(txid(2));
        assert_eq!(watch.in_turn(), [txid(1), txid(2)]);
        assert!(!watch.was_seen(&txid(1)) && watch.was_seen(&txid(2)));
        watch.looked(&txid(1), State::InDoubt, None);
        looked(&mut watch, &txid(2), State::Committed, 7);
        assert!(finished(&mut watch, 6).is_empty(), "its decision may come yet");
        assert_eq!(finished(&mut watch, 7), [(txid(2), State::Committed, false)]);
        watch.looked(&txid(1), State::Absent, None);
        assert!(finished(&mut watch, 99).is_empty(), "nobody knows where the log ends");
        looked(&mut watch, &txid(1), State::Absent, 9);
        assert_eq!(finished(&mut watch, 9), [(txid(1), State::Absent, true)]);
        assert!(finished(&mut watch, 99).is_empty() && watch.in_turn().is_empty());
    }

    #[test]
    fn nobody_is_told_whose_decision_was_read_or_who_is_back() {
        let mut watch = Watch::default();
        for offset in 1..=5 {
            watch.was_there(txid(offset));
            looked(&mut watch, &txid(offset), State::Absent, 7);
        }
        watch.leaves(&txid(1));
        watch.looked(&txid(2), State::InDoubt, None);
        let found = watch.finished_by_hand(|_| Some(7), |other| *other == txid(3));
        assert_eq!(found.into_iter().map(|(txid, ..)| txid).collect::<Vec<_>>(), [txid(4), txid(5)]);
        watch.forget(Shard(3));
        assert!(watch.in_turn().is_empty());
        assert!(watch.finished_by_hand(|_| None, |_| false).is_empty(), "of a shard that is not ours");
    }

    #[test]
    fn the_yes_of_what_was_decided_long_ago_is_not_watched() {
        let mut watch = Watch::default();
        watch.voted(txid(1), about());
        watch.looked(&txid(1), State::Committed, Some(7));
        assert!(watch.in_turn().is_empty());
        assert!(finished(&mut watch, 99).is_empty());
    }

    #[test]
    fn who_is_gone_before_the_first_look_was_there_all_the_same() {
        let mut watch = Watch::default();
        watch.voted(txid(1), about());
        watch.looked(&txid(1), State::Absent, None);
        looked(&mut watch, &txid(1), State::Absent, 7);
        assert_eq!(finished(&mut watch, 7), [(txid(1), State::Absent, true)]);
    }

    #[test]
    fn a_look_that_began_before_the_decision_says_nothing_of_what_is_asked_for_again() {
        let mut watch = Watch::default();
        watch.was_there(txid(1));
        assert_eq!(watch.in_turn(), [txid(1)]);
        watch.leaves(&txid(1));
        watch.voted(txid(1), about());
        watch.looked(&txid(1), State::InDoubt, Some(7));
        assert_eq!(watch.in_turn(), [txid(1)]);
        watch.looked(&txid(1), State::Committed, Some(7));
        assert!(watch.in_turn().is_empty(), "its yes was a repeat");
    }

    #[test]
    fn an_end_that_a_leader_shows_that_was_cut_off_alone_proves_nothing() {
        let mut watch = Watch::default();
        watch.was_there(txid(1));
        (1..LOOKS).for_each(|_| watch.looked(&txid(1), State::Committed, Some(7)));
        assert!(finished(&mut watch, 7).is_empty());
        watch.looked(&txid(1), State::Committed, Some(9));
        assert!(finished(&mut watch, 8).is_empty(), "the decision may stand behind what that leader showed");
        assert_eq!(finished(&mut watch, 9), [(txid(1), State::Committed, false)]);
    }

    #[test]
    fn a_row_that_says_it_is_over_is_sutures_own() {
        let mut watch = Watch::default();
        for (offset, state) in (1..).zip([State::Aborted, State::Refused, State::Abandoned]) {
            watch.was_there(txid(offset));
            watch.looked(&txid(offset), state, Some(7));
        }
        assert!(watch.in_turn().is_empty() && finished(&mut watch, 99).is_empty());
    }

    #[test]
    fn all_have_their_turn() {
        let mut watch = Watch::default();
        (0..700).for_each(|offset| watch.was_there(txid(offset)));
        let (first, second) = (watch.in_turn(), watch.in_turn());
        assert_eq!((first.len(), second.len()), (500, 200));
        assert!(second.iter().all(|txid| !first.contains(txid)));
        assert_eq!(watch.in_turn(), first);
    }
}
