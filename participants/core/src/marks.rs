//! Purge: finished rows go when they are old, and a mark stays for all of them.
//!
//! A mark is an offset of a requests log's shard. **What has no row and lies below it was finished here long ago**, whatever it
//! was. Every row that is purged lies below its mark from the same moment on, so nothing that is ever read again about it is taken for
//! something new. Rows below the mark that are younger stay, and count as before: the row is consulted first, the mark
//! second. A mark rises only up to what is unfinished: in doubt, or decided and not acknowledged yet.

use std::collections::BTreeMap;

use suture_contract::ids::{LogLetters, Shard, Txid};

/// A shard of one requests log.
pub type Place = (LogLetters, Shard);

/// The offsets below which what has no row is finished.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks(pub BTreeMap<Place, u64>);

impl Marks {
    /// Whether a transaction that has no row was finished here long ago.
    pub fn covers(&self, txid: &Txid) -> bool {
        self.0.get(&(txid.log, txid.shard)).is_some_and(|mark| txid.offset < *mark)
    }
}

/// A row of a ledger, as a purge sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Whose row.
    pub txid: Txid,
    /// It is finished, and has not changed for long enough.
    pub is_old: bool,
}

/// What goes, and the marks that rise with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Purge {
    /// The rows to delete.
    pub txids: Vec<Txid>,
    /// One for each place of these rows.
    pub marks: Marks,
}

/// Chooses among some rows; `is_ours`: of which shards any may go.
pub fn purge(rows: &[Candidate], unfinished: &[Txid], is_ours: impl Fn(Shard) -> bool) -> Purge {
    let mut lowest: BTreeMap<Place, u64> = BTreeMap::new();
    for Txid { log, shard, offset } in unfinished {
        let lowest = lowest.entry((*log, *shard)).or_insert(*offset);
        *lowest = (*lowest).min(*offset);
    }
    let mut purge = Purge::default();
    for Candidate { txid, is_old } in rows {
        let place = (txid.log, txid.shard);
        let is_below = lowest.get(&place).is_none_or(|unfinished| txid.offset < *unfinished);
        if *is_old && is_below && is_ours(txid.shard) {
            purge.txids.push(*txid);
            let mark = purge.marks.0.entry(place).or_default();
            *mark = (*mark).max(txid.offset + 1);
        }
    }
    purge
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txid(name: &str) -> Txid {
        name.parse().unwrap()
    }

    fn chosen(rows: &[(&str, bool)], unfinished: &[&str]) -> (Vec<String>, Vec<(String, u64)>) {
        let rows: Vec<Candidate> =
            rows.iter().map(|(name, is_old)| Candidate { txid: txid(name), is_old: *is_old }).collect();
        let unfinished: Vec<Txid> = unfinished.iter().map(|name| txid(name)).collect();
        let Purge { txids, marks } = purge(&rows, &unfinished, |shard| shard.0 < 5);
        let marks = marks.0.into_iter().map(|((log, shard), mark)| (format!("{}-{shard}", log.as_str()), mark));
        (txids.iter().map(Txid::to_string).collect(), marks.collect())
    }

    #[test]
    fn old_rows_go_and_their_mark_rises_just_past_them() {
        let rows = [("aaaaa-1-7", true), ("aaaaa-1-9", true), ("aaaaa-1-8", false), ("aaaaa-2-3", true)];
        let (txids, marks) = chosen(&rows, &[]);
        assert_eq!(txids, ["aaaaa-1-7", "aaaaa-1-9", "aaaaa-2-3"]);
        assert_eq!(marks, [("aaaaa-1".to_string(), 10), ("aaaaa-2".to_string(), 4)]);
    }

    #[test]
    fn nothing_goes_at_or_above_what_is_unfinished() {
        let rows = [("aaaaa-1-6", true), ("aaaaa-1-7", true), ("aaaaa-1-8", true), ("bbbbb-1-8", true)];
        let (txids, marks) = chosen(&rows, &["aaaaa-1-9", "aaaaa-1-7", "aaaaa-2-0"]);
        assert_eq!(txids, ["aaaaa-1-6", "bbbbb-1-8"], "another log has its own offsets");
        assert_eq!(marks, [("aaaaa-1".to_string(), 7), ("bbbbb-1".to_string(), 9)]);
    }

    #[test]
    fn what_is_not_ours_stays() {
        assert_eq!(chosen(&[("aaaaa-5-1", true)], &[]), (vec![], vec![]));
    }

    #[test]
    fn a_mark_covers_what_lies_below_it_in_its_place() {
        let marks = Marks([((txid("aaaaa-1-0").log, Shard(1)), 7)].into());
        assert!(marks.covers(&txid("aaaaa-1-6")));
        for other in ["aaaaa-1-7", "aaaaa-2-6", "bbbbb-1-6"] {
            assert!(!marks.covers(&txid(other)), "{other}");
        }
    }
}
