//! Ordered keys: which prepares wait for the decision of an earlier transaction of their order key.
//!
//! The coordinator starts the next transaction of a line when the one before is decided, and that decision may reach this
//! participant after the next one's prepare. So a prepare that carries an order key is parked while an earlier branch of that
//! key is in doubt here. "Earlier" is the place in the requests log; an order key has one shard, so both are of the same.
//!
//! | a branch of the line | stands in it |
//! |---|---|
//! | is about to run, or has said yes | from [`Lines::enters`] to [`Lines::leaves`] |
//! | was in doubt when its shard was taken | the same, before every line of its shard: its key is not known any more |
//!
//! A yes may be the repeat of one whose decision was carried out long ago, and a branch may be finished by an operator's
//! hand. So whoever stands in somebody's way is looked for in the database now and then ([`Lines::keep_only`]). So is whoever is
//! parked: what the ledger knows already, mostly because it has expired meanwhile, waits for nobody ([`Lines::is_known`]).

use std::collections::{BTreeMap, BTreeSet};

use suture_contract::ids::{OrderKey, Shard, Txid};

/// The lines of all shards.
#[derive(Debug, Default)]
pub struct Lines {
    /// Who may be in doubt: since which look, and of which key (`None`: not known).
    branches: BTreeMap<Txid, (u64, Option<OrderKey>)>,
    /// Who is parked, and needs not.
    known: BTreeSet<Txid>,
    /// Counts the looks into the database.
    looks: u64,
}

impl Lines {
    /// Whether this one waits for nobody.
    pub fn is_first(&self, txid: &Txid, key: &OrderKey) -> bool {
        let is_before = |(other, (_, of)): (&Txid, &(u64, Option<OrderKey>))| {
            other.log == txid.log
                && other.shard == txid.shard
                && other.offset < txid.offset
                && of.as_ref().is_none_or(|of| of == key)
        };
        self.known.contains(txid) || !self.branches.iter().any(is_before)
    }

    /// A branch is about to run.
    pub fn enters(&mut self, txid: Txid, key: OrderKey) {
        self.known.remove(&txid);
        self.branches.insert(txid, (self.looks, Some(key)));
    }

    /// A branch was in doubt when its shard was taken.
    pub fn was_there(&mut self, txid: Txid) {
        self.branches.entry(txid).or_insert((self.looks, None));
    }

    /// A branch is in doubt no more, or never was.
    pub fn leaves(&mut self, txid: &Txid) {
        self.branches.remove(txid);
    }

    /// The ledger has this one's answer: it is parked no more.
    pub fn is_known(&mut self, txid: Txid) {
        self.known.insert(txid);
    }

    /// A shard is somebody else's now.
    pub fn forget(&mut self, shard: Shard) {
        self.known.retain(|txid| txid.shard != shard);
        self.branches.retain(|txid, _| txid.shard != shard);
    }

    /// Begins a look into the database. Whoever enters from now on is not judged by it.
    pub fn look(&mut self) -> u64 {
        self.looks += 1;
        self.looks
    }

    /// What such a look has found: who is not in doubt, and was in a line before it, is in none.
    pub fn keep_only(&mut self, look: u64, in_doubt: &[Txid]) {
        self.branches.retain(|txid, (since, _)| *since >= look || in_doubt.contains(txid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txid(shard: u16, offset: u64) -> Txid {
        format!("k3f9q-{shard}-{offset}").parse().unwrap()
    }

    fn key(name: &str) -> OrderKey {
        name.parse().unwrap()
    }

    #[test]
    fn the_earlier_one_of_a_key_goes_first() {
        let mut lines = Lines::default();
        lines.enters(txid(1, 5), key("a"));
        assert!(!lines.is_first(&txid(1, 7), &key("a")));
        assert!(lines.is_first(&txid(1, 7), &key("b")));
        assert!(lines.is_first(&txid(2, 7), &key("a")), "another shard has other keys");
        assert!(lines.is_first(&txid(1, 4), &key("a")) && lines.is_first(&txid(1, 5), &key("a")));
        lines.leaves(&txid(1, 5));
        assert!(lines.is_first(&txid(1, 7), &key("a")));
    }

    #[test]
    fn who_was_in_doubt_before_stands_before_every_key_of_its_shard() {
        let mut lines = Lines::default();
        lines.was_there(txid(1, 5));
        assert!(!lines.is_first(&txid(1, 7), &key("a")) && !lines.is_first(&txid(1, 8), &key("b")));
        assert!(lines.is_first(&txid(2, 7), &key("a")));
        // Its prepare comes again, with its key.
        lines.enters(txid(1, 5), key("a"));
        assert!(lines.is_first(&txid(1, 8), &key("b")));
        lines.forget(Shard(1));
        assert!(lines.is_first(&txid(1, 7), &key("a")));
    }

    #[test]
    fn who_is_known_already_waits_for_nobody_until_it_has_run() {
        let mut lines = Lines::default();
        lines.was_there(txid(1, 5));
        lines.is_known(txid(1, 7));
        assert!(lines.is_first(&txid(1, 7), &key("a")) && !lines.is_first(&txid(1, 8), &key("a")));
        lines.enters(txid(1, 7), key("a"));
        assert!(!lines.is_first(&txid(1, 7), &key("a")));
        lines.is_known(txid(1, 8));
        lines.forget(Shard(1));
        lines.enters(txid(1, 5), key("a"));
        assert!(!lines.is_first(&txid(1, 8), &key("a")));
    }

    #[test]
    fn a_look_judges_only_who_was_there_before_it() {
        let mut lines = Lines::default();
        lines.enters(txid(1, 5), key("a"));
        lines.enters(txid(1, 6), key("b"));
        let look = lines.look();
        lines.enters(txid(1, 7), key("c"));
        lines.keep_only(look, &[txid(1, 6)]);
        assert!(lines.is_first(&txid(1, 9), &key("a")), "decided long ago");
        assert!(!lines.is_first(&txid(1, 9), &key("b")) && !lines.is_first(&txid(1, 9), &key("c")));
    }
}
