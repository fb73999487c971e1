//! A database that went back: how it is noticed, and what becomes of each transaction when it is brought back.
//!
//! **Noticed** by what the group has acknowledged: an offset that carries this ledger's name and lies above the ledger's own
//! position ([`went_back`]). A ledger that is brought back takes a new name of the same stem, so that a database that is
//! restored a second time, from the same old backup, is noticed again.
//!
//! **Brought back** by the decisions from the ledger's own position on, by the prepares, which hold the payloads, and by its own votes,
//! which say what it has promised:
//!
//! | decision | the ledger has | its prepare | its vote | so it is |
//! |---|---|---|---|---|
//! | abort | anything | anything | anything | decided, as always |
//! | commit | a branch in doubt | anything | anything | decided, as always |
//! | commit | a row | anything | anything | known |
//! | commit | nothing | in the log | anything | done again |
//! | commit | nothing | not found | anything | lost |
//! | none | a branch in doubt | anything | anything | known |
//! | none | a row | anything | anything | known |
//! | none | nothing | in the log | yes | prepared again |
//! | none | nothing | in the log | no | left to the service |
//! | none | nothing | there when it began | none | tried |
//! | none | nothing | came since | none | left to the service |
//! | none | nothing | not found | anything | left to the service |
//!
//! - What is decided as always is so while the decisions are read, and needs no memory. What is done again is kept ([`Plan`]):
//!   some 150 bytes a commit.
//! - **In the order of the decisions**: that of the log within a shard, the broker's time between shards. What fails is tried
//!   again after all others, for it may build on what another shard has decided.
//! - **Who said yes and has no decision is prepared again**, last; he may be committed at any time. Below the own position he was in
//!   doubt when the backup was made, and the backup does not hold branches in doubt (a dump never does). Above it the service will
//!   ask for him once more, but his commit may come first, and the service reads decisions first.
//! - **Who said no is left alone**: prepared, he might hold what another one needs who said yes.
//! - **Nobody says yes unnoticed.** A vote that was on its way when the database went back may land at any time. So whoever was asked for
//!   and has no vote yet is tried after all others ([`Plan::unvoted`]): prepared, or else voted no; and the first record that then stands in his
//!   register counts, as it does for everyone. He may be prepared too early, which is harmless: he is the last that was asked for of his
//!   order key, for the next one is asked for when he is decided.
//! - A copy of a decision may come long after its row was purged: what lies below the mark is known as well.
//!
//! Left out: what the ledger has. Whoever carries the plan out asks the database, in batches.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};

use suture_contract::ids::{RequestHash, Shard, Txid};
use suture_contract::messages::{Ballot, Decision, Prepare, Verdict};

/// What a ledger's name begins with, however often it was brought back.
pub fn stem(ledger: &str) -> &str {
    ledger.split('-').next().unwrap_or_default()
}

/// What its next name begins with. The rest is drawn.
pub fn beginning_of_next(ledger: &str) -> String {
    format!("{}-", stem(ledger))
}

/// Whether a committed offset says that the ledger had come further than it has now. `own`: none, if the ledger has no position
/// for this log.
pub fn went_back(ledger: &str, own: Option<u64>, committed: u64, metadata: &str) -> bool {
    !metadata.is_empty() && stem(metadata) == stem(ledger) && committed > own.unwrap_or(0)
}

/// Whether an offset is acknowledged under this very name and lies above what the ledger has: it must take another name, also if it is
/// being brought back already, because somebody has said so.
pub fn is_void(ledger: &str, own: Option<u64>, committed: u64, metadata: &str) -> bool {
    metadata == ledger && went_back(ledger, own, committed, metadata)
}

/// What the ledger has of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs)]
pub enum Has {
    Nothing,
    Row,
    InDoubt,
}

/// Whether the prepare of a transaction is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs)]
pub enum Asked {
    Before,
    Since,
    NotFound,
}

/// What is done about a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// Carry the decision out as always.
    Decide,
    /// Nothing is to be done.
    Known,
    /// Prepare and commit it at once.
    Redo,
    /// The others count on an effect that cannot be had any more.
    Lost,
    /// Prepare it.
    Prepare,
    /// Prepare it, or else fill its register with a no.
    Try,
    /// It comes by itself, if it comes.
    Leave,
}

/// The table. `said`: what stands in the own register.
pub fn course(decision: Option<Verdict>, has: Has, asked: Asked, said: Option<Ballot>) -> Course {
    match (decision, has, asked, said) {
        (Some(Verdict::Abort), _, _, _) | (Some(Verdict::Commit), Has::InDoubt, _, _) => Course::Decide,
        (Some(Verdict::Commit) | None, Has::Row, _, _) | (None, Has::InDoubt, _, _) => Course::Known,
        (Some(Verdict::Commit), Has::Nothing, Asked::Before | Asked::Since, _) => Course::Redo,
        (Some(Verdict::Commit), Has::Nothing, Asked::NotFound, _) => Course::Lost,
        (None, Has::Nothing, Asked::Before | Asked::Since, Some(Ballot::Yes)) => Course::Prepare,
        (None, Has::Nothing, Asked::Before | Asked::Since, Some(Ballot::No)) => Course::Leave,
        (None, Has::Nothing, Asked::Before, None) => Course::Try,
        (None, Has::Nothing, Asked::Since, None) | (None, Has::Nothing, Asked::NotFound, _) => Course::Leave,
    }
}

/// A record of a prepare topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its offset; its shard is the transaction's.
    pub offset: u64,
    /// How long it is.
    pub bytes: usize,
}

/// A commit to be done again, or a prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Which.
    pub txid: Txid,
    /// Where its prepare is; none, if that is trimmed.
    pub place: Option<Place>,
}

/// What is kept of the logs.
#[derive(Debug, Default)]
pub struct Plan {
    in_doubt: HashSet<Txid>,
    commits: BTreeMap<Shard, Vec<Commit>>,
    /// Of each commit: what it is about, and its prepare.
    prepares: HashMap<Txid, (RequestHash, Option<Place>)>,
    /// Undecided, and the ledger has nothing of it.
    open: BTreeMap<Txid, Open>,
}

#[derive(Debug, Clone, Copy)]
struct Commit {
    txid: Txid,
    time_ms: i64,
}

#[derive(Debug, Default)]
struct Open {
    /// What its prepare is about, where that is, and since when.
    asked: Option<(RequestHash, Place, Asked)>,
    /// The first vote about each.
    said: Vec<(RequestHash, Ballot)>,
}

impl Open {
    fn said(&self, of: &RequestHash) -> Option<Ballot> {
        self.said.iter().find(|(hash, _)| hash == of).map(|(_, ballot)| *ballot)
    }

    fn course(&self) -> Course {
        let (asked, said) = match &self.asked {
            Some((hash, _, asked)) => (*asked, self.said(hash)),
            None => (Asked::NotFound, None),
        };
        course(None, Has::Nothing, asked, said)
    }

    fn due(&self, txid: Txid) -> Due {
        Due { txid, place: self.asked.map(|(_, place, _)| place) }
    }

    fn promised(&self) -> bool {
        self.said.iter().any(|(_, ballot)| *ballot == Ballot::Yes)
    }
}

impl Plan {
    /// With what the ledger has in doubt.
    pub fn new(in_doubt: impl IntoIterator<Item = Txid>) -> Self {
        Self { in_doubt: in_doubt.into_iter().collect(), ..Self::default() }
    }

    /// A decision was read. `true`: carry it out as always.
    pub fn decided(&mut self, decision: &Decision, time_ms: i64) -> bool {
        let txid = decision.txid;
        let open = self.open.remove(&txid);
        let has = if self.in_doubt.contains(&txid) { Has::InDoubt } else { Has::Nothing };
        // Whether there is a row is asked later, of many at once; where the prepare is, the other log tells.
        if course(Some(decision.outcome), has, Asked::Before, None) == Course::Decide {
            return true;
        }
        let asked = open.and_then(|open| open.asked).filter(|(hash, ..)| *hash == decision.hash);
        let place = asked.map(|(_, place, _)| place);
        // A copy says nothing new, and not where the prepare is.
        if let Entry::Vacant(new) = self.prepares.entry(txid) {
            new.insert((decision.hash, place));
            self.commits.entry(txid.shard).or_default().push(Commit { txid, time_ms });
        }
        false
    }

    /// A prepare was read. `true`: it may be open ([`Plan::open_asked`]), if the ledger has nothing of it. (Of what was aborted it has
    /// a row by now.)
    pub fn asked(&mut self, prepare: &Prepare, place: Place) -> bool {
        if let Some((hash, found)) = self.prepares.get_mut(&prepare.txid)
            && prepare.hash == *hash
        {
            found.get_or_insert(place);
        }
        self.may_be_open(&prepare.txid)
    }

    /// Whether it is open if the ledger has nothing of it.
    pub fn may_be_open(&self, txid: &Txid) -> bool {
        !self.prepares.contains_key(txid) && !self.in_doubt.contains(txid)
    }

    /// It was asked for, and the ledger has nothing of it. Of copies the first one counts. `end` is where the prepares ended when bringing
    /// back began.
    pub fn open_asked(&mut self, txid: Txid, hash: RequestHash, place: Place, end: u64) {
        let asked = if place.offset < end { Asked::Before } else { Asked::Since };
        self.open.entry(txid).or_default().asked.get_or_insert((hash, place, asked));
    }

    /// It was voted on, and the ledger has nothing of it. In the order of the log.
    pub fn open_voted(&mut self, txid: Txid, hash: RequestHash, ballot: Ballot) {
        let open = self.open.entry(txid).or_default();
        if open.said(&hash).is_none() {
            open.said.push((hash, ballot));
        }
    }

    /// It was decided before the own position: whatever the ledger says about it stands.
    pub fn was_decided(&mut self, txid: &Txid) {
        self.open.remove(txid);
    }

    /// How many commits are kept.
    pub fn kept(&self) -> usize {
        self.prepares.len()
    }

    /// The shards of which something may have been decided before the own position. On the prepares that is `below`; what was asked for
    /// above it was decided above it, or has its row.
    pub fn shards_open(&self, below: &BTreeMap<Shard, u64>) -> BTreeSet<Shard> {
        let is_below = |(txid, open): (&Txid, &Open)| {
            let is_above = |(_, place, _): (RequestHash, Place, Asked)| {
                below.get(&txid.shard).is_some_and(|own| place.offset >= *own)
            };
            (!open.asked.is_some_and(is_above)).then_some(txid.shard)
        };
        self.open.iter().filter_map(is_below).collect()
    }

    /// Those that are to be tried, in the order of the log.
    pub fn unvoted(&self) -> Vec<Due> {
        self.due(Course::Try)
    }

    /// What an open one was asked for.
    pub fn hash(&self, txid: &Txid) -> Option<RequestHash> {
        self.open.get(txid)?.asked.map(|(hash, ..)| hash)
    }

    /// Commits, and those that have a yes, whose prepares were not met: they may stand behind an old end.
    pub fn not_found(&self) -> Vec<Txid> {
        let commits = self.prepares.iter().filter(|(_, (_, place))| place.is_none()).map(|(txid, _)| *txid);
        let promised = self.open.iter().filter(|(_, open)| open.asked.is_none() && open.promised());
        commits.chain(promised.map(|(txid, _)| *txid)).collect()
    }

    /// What is to be prepared, in the order of the log.
    pub fn to_prepare(&self) -> Vec<Due> {
        self.due(Course::Prepare)
    }

    fn due(&self, course: Course) -> Vec<Due> {
        let due = self.open.iter().filter(|(_, open)| open.course() == course);
        let mut due: Vec<Due> = due.map(|(txid, open)| open.due(*txid)).collect();
        due.sort_by_key(|due| (due.txid.shard, due.place.map(|place| place.offset)));
        due
    }

    /// It is prepared: its decision is carried out as always.
    pub fn prepared(&mut self, txid: Txid) {
        self.open.remove(&txid);
        self.in_doubt.insert(txid);
    }

    /// The commits in the order in which they are tried: of a shard in that of its log, between shards in that of time.
    pub fn to_redo(&self) -> Vec<Due> {
        let next_of = |shard: Shard, place: usize| {
            let commit = self.commits.get(&shard)?.get(place)?;
            Some(Reverse((commit.time_ms, shard, place, commit.txid)))
        };
        let mut heads: BinaryHeap<_> = self.commits.keys().filter_map(|shard| next_of(*shard, 0)).collect();
        let mut order = Vec::with_capacity(self.prepares.len());
        while let Some(Reverse((_, shard, place, txid))) = heads.pop() {
            order.push(Due { txid, place: self.prepares.get(&txid).and_then(|(_, place)| *place) });
            heads.extend(next_of(shard, place + 1));
        }
        order
    }

    /// These commits are in the ledger.
    pub fn redone(&mut self, txids: &HashSet<Txid>) {
        for commits in self.commits.values_mut() {
            commits.retain(|commit| !txids.contains(&commit.txid));
        }
        self.prepares.retain(|txid, _| !txids.contains(txid));
    }
}

/// The first of these whose prepares fit into so many bytes, at least one and at most so many; and the others.
pub fn portion(due: &[Due], most: usize, most_bytes: usize) -> (&[Due], &[Due]) {
    let mut bytes = 0;
    let fits = |due: &&Due| {
        bytes += due.place.map_or(0, |place| place.bytes);
        bytes <= most_bytes
    };
    let count = due.iter().take(most).take_while(fits).count().max(1);
    due.split_at(count.min(due.len()))
}

#[cfg(test)]
mod tests {
    use suture_contract::ids::Attempt;

    use super::*;

    #[test]
    fn a_ledger_keeps_the_beginning_of_its_name() {
        assert_eq!((stem("0a1b"), beginning_of_next("0a1b")), ("0a1b", "0a1b-".to_string()));
        assert_eq!((stem("0a1b-c3"), beginning_of_next("0a1b-c3")), ("0a1b", "0a1b-".to_string()));
    }

    #[test]
    fn an_offset_of_this_ledger_above_its_position_tells_that_it_went_back() {
        let cases = [
            ("the same, above", "0a1b", Some(5), 6, "0a1b", true),
            ("the same, level", "0a1b", Some(5), 5, "0a1b", false),
            ("the same, below: a crash before the commit", "0a1b", Some(5), 4, "0a1b", false),
            ("no position: restored to before its first one", "0a1b", None, 1, "0a1b", true),
            ("nothing was ever done", "0a1b", None, 0, "0a1b", false),
            ("reset by hand: no name", "0a1b", Some(5), 9, "", false),
            ("another ledger's", "0a1b", Some(5), 9, "77ff", false),
            ("restored again from the backup of then", "0a1b", Some(5), 9, "0a1b-c3", true),
            ("restored to a backup from after the first time", "0a1b-c3", Some(5), 9, "0a1b-d4", true),
            ("ended before its first commit after it was brought back", "0a1b-c3", Some(5), 9, "0a1b", true),
        ];
        for (what, ledger, own, committed, metadata, expected) in cases {
            assert_eq!(went_back(ledger, own, committed, metadata), expected, "{what}");
        }
    }

    #[test]
    fn a_ledger_that_is_brought_back_takes_another_name_if_it_had_acknowledged_more_under_this_one() {
        let cases = [
            ("somebody has said that it is to be brought back", "0a1b", Some(5), 6, "0a1b", true),
            ("so it has been once before", "0a1b-c3", Some(5), 6, "0a1b-c3", true),
            ("it missed nothing", "0a1b", Some(5), 5, "0a1b", false),
            ("it was cut off, and has its new name", "0a1b-c3", Some(5), 6, "0a1b", false),
            ("reset by hand: no name", "0a1b", Some(5), 6, "", false),
        ];
        for (what, ledger, own, committed, metadata, expected) in cases {
            assert_eq!(is_void(ledger, own, committed, metadata), expected, "{what}");
        }
    }

    /// The table of the module's documentation, read from that documentation.
    #[test]
    fn the_documented_courses_are_those_taken() {
        let rows: Vec<Vec<String>> = include_str!("restore.rs")
            .lines()
            .map_while(|line| line.strip_prefix("//!"))
            .filter_map(|line| line.trim().strip_prefix('|'))
            .map(|line| line.trim_end_matches('|').split('|').map(|cell| cell.trim().to_string()).collect())
            .skip(2)
            .collect();
        let mut seen = 0;
        for row in &rows {
            let [decision, has, asked, said, expected] = row.as_slice() else { panic!("{row:?}") };
            let decision = match decision.as_str() {
                "abort" => Some(Verdict::Abort),
                "commit" => Some(Verdict::Commit),
                "none" => None,
                other => panic!("{other}"),
            };
            let has = match has.as_str() {
                "anything" => vec![Has::Nothing, Has::Row, Has::InDoubt],
                "nothing" => vec![Has::Nothing],
                "a row" => vec![Has::Row],
                "a branch in doubt" => vec![Has::InDoubt],
                other => panic!("{other}"),
            };
            let asked = match asked.as_str() {
                "anything" => vec![Asked::Before, Asked::Since, Asked::NotFound],
                "in the log" => vec![Asked::Before, Asked::Since],
                "there when it began" => vec![Asked::Before],
                "came since" => vec![Asked::Since],
                "not found" => vec![Asked::NotFound],
                other => panic!("{other}"),
            };
            let said = match said.as_str() {
                "anything" => vec![Some(Ballot::Yes), Some(Ballot::No), None],
                "yes" => vec![Some(Ballot::Yes)],
                "no" => vec![Some(Ballot::No)],
                "none" => vec![None],
                other => panic!("{other}"),
            };
            let expected = match expected.as_str() {
                "decided, as always" => Course::Decide,
                "known" => Course::Known,
                "done again" => Course::Redo,
                "lost" => Course::Lost,
                "prepared again" => Course::Prepare,
                "tried" => Course::Try,
                "left to the service" => Course::Leave,
                other => panic!("{other}"),
            };
            for has in &has {
                for asked in &asked {
                    for said in &said {
                        assert_eq!(course(decision, *has, *asked, *said), expected, "{row:?}");
                        seen += 1;
                    }
                }
            }
        }
        assert_eq!(seen, 81, "every case once");
    }

    fn txid(shard: u16, offset: u64) -> Txid {
        format!("k3f9q-{shard}-{offset}").parse().unwrap()
    }

    fn hash(digit: char) -> RequestHash {
        format!("k1:{}", digit.to_string().repeat(32)).parse().unwrap()
    }

    fn decision(txid: Txid, outcome: Verdict) -> Decision {
        let business_key = "item:1".parse().unwrap();
        let participants = vec!["bank".parse().unwrap()];
        Decision { txid, outcome, participants, business_key, attempt: Attempt::FIRST, hash: hash('a') }
    }

    fn prepare(txid: Txid, digit: char) -> Prepare {
        Prepare {
            txid,
            business_key: "item:1".parse().unwrap(),
            attempt: Attempt::FIRST,
            operation: "put".to_string(),
            payload: serde_json::value::RawValue::from_string("{}".to_string()).unwrap(),
            hash: hash(digit),
            order_key: None,
        }
    }

    fn at(offset: u64) -> Place {
        Place { offset, bytes: 100 }
    }

    #[test]
    fn only_commits_of_what_is_not_in_doubt_are_kept() {
        let mut plan = Plan::new([txid(0, 1)]);
        assert!(plan.decided(&decision(txid(0, 1), Verdict::Commit), 1), "in doubt");
        assert!(plan.decided(&decision(txid(0, 2), Verdict::Abort), 2));
        assert!(!plan.decided(&decision(txid(0, 3), Verdict::Commit), 3));
        assert!(!plan.decided(&decision(txid(0, 3), Verdict::Commit), 4), "a copy");
        assert_eq!(plan.kept(), 1);
        assert_eq!(plan.to_redo(), [Due { txid: txid(0, 3), place: None }], "no prepare was read");
        assert!(!plan.asked(&prepare(txid(0, 3), 'b'), at(7)));
        assert_eq!(plan.to_redo()[0].place, None, "another hash is about something else");
        assert!(!plan.asked(&prepare(txid(0, 3), 'a'), at(8)));
        assert!(!plan.asked(&prepare(txid(0, 3), 'a'), at(9)));
        assert!(!plan.decided(&decision(txid(0, 3), Verdict::Commit), 5), "one more copy");
        assert_eq!(plan.to_redo()[0].place, Some(at(8)), "the first of its copies");
        assert!(!plan.decided(&decision(txid(0, 5), Verdict::Commit), 5));
        assert_eq!(plan.kept(), 2);
        plan.redone(&HashSet::from([txid(0, 3)]));
        assert_eq!((plan.kept(), plan.to_redo()), (1, vec![Due { txid: txid(0, 5), place: None }]));
        assert!(!plan.decided(&decision(txid(0, 3), Verdict::Commit), 6), "one more copy is looked up once more");
        assert_eq!(plan.to_redo().len(), 2);
    }

    fn txids(due: &[Due]) -> Vec<Txid> {
        due.iter().map(|due| due.txid).collect()
    }

    #[test]
    fn who_said_yes_is_prepared_who_said_no_is_not_and_nobody_says_yes_later() {
        let mut plan = Plan::new([txid(0, 1)]);
        plan.decided(&decision(txid(0, 2), Verdict::Commit), 2);
        assert!(!plan.asked(&prepare(txid(0, 1), 'a'), at(1)), "in doubt");
        assert!(!plan.asked(&prepare(txid(0, 2), 'a'), at(2)), "committed");
        assert!(!plan.may_be_open(&txid(0, 1)) && !plan.may_be_open(&txid(0, 2)));
        assert!(plan.asked(&prepare(txid(0, 3), 'a'), at(9)));
        assert!(plan.to_prepare().is_empty() && plan.unvoted().is_empty(), "nobody has looked into the ledger");
        for (shard, offset, place) in [(0, 3, 9), (0, 4, 7), (1, 5, 0), (1, 6, 8), (0, 7, 8), (0, 8, 11)] {
            plan.open_asked(txid(shard, offset), hash('a'), at(place), 11);
        }
        plan.open_asked(txid(0, 3), hash('a'), at(12), 11);
        let tried = [txid(0, 4), txid(0, 7), txid(0, 3), txid(1, 5), txid(1, 6)];
        assert_eq!(txids(&plan.unvoted()), tried, "in the order of the log; nobody can have voted on what came since");
        assert_eq!((plan.hash(&txid(0, 8)), plan.hash(&txid(0, 2))), (Some(hash('a')), None));
        plan.open_voted(txid(0, 3), hash('a'), Ballot::Yes);
        plan.open_voted(txid(0, 3), hash('a'), Ballot::No);
        plan.open_voted(txid(0, 4), hash('a'), Ballot::Yes);
        plan.open_voted(txid(1, 5), hash('a'), Ballot::No);
        plan.open_voted(txid(1, 5), hash('a'), Ballot::Yes);
        plan.open_voted(txid(1, 6), hash('b'), Ballot::Yes);
        assert_eq!(txids(&plan.to_prepare()), [txid(0, 4), txid(0, 3)], "by the first vote, in the order of the log");
        assert_eq!(plan.to_prepare()[1].place, Some(at(9)), "the first of its copies");
        assert_eq!(txids(&plan.unvoted()), [txid(0, 7), txid(1, 6)], "that yes was about something else");
        plan.open_voted(txid(0, 7), hash('a'), Ballot::Yes);
        plan.open_voted(txid(1, 6), hash('a'), Ballot::No);
        assert_eq!(txids(&plan.to_prepare()), [txid(0, 4), txid(0, 7), txid(0, 3)]);
        assert!(plan.unvoted().is_empty());
        plan.prepared(txid(0, 4));
        assert!(plan.decided(&decision(txid(0, 4), Verdict::Commit), 5), "it is in doubt now");
        assert!(plan.decided(&decision(txid(0, 7), Verdict::Abort), 6));
        assert!(!plan.decided(&decision(txid(0, 3), Verdict::Commit), 7));
        assert!(plan.to_prepare().is_empty());
        assert_eq!(
            plan.to_redo()[1],
            Due { txid: txid(0, 3), place: Some(at(9)) },
            "it was decided before it was prepared"
        );
    }

    #[test]
    fn a_promise_shows_that_there_is_a_prepare() {
        let mut plan = Plan::default();
        plan.open_voted(txid(0, 3), hash('a'), Ballot::Yes);
        plan.open_voted(txid(0, 4), hash('a'), Ballot::No);
        plan.decided(&decision(txid(0, 5), Verdict::Commit), 1);
        assert_eq!(plan.not_found(), [txid(0, 5), txid(0, 3)]);
        assert!(!plan.asked(&prepare(txid(0, 5), 'a'), at(4)));
        assert_eq!(plan.not_found(), [txid(0, 3)]);
        assert!(plan.to_prepare().is_empty() && plan.unvoted().is_empty());
        plan.open_asked(txid(0, 3), hash('a'), at(5), 5);
        assert!(plan.not_found().is_empty());
        assert_eq!(txids(&plan.to_prepare()), [txid(0, 3)]);
    }

    #[test]
    fn what_was_decided_before_the_own_position_is_not_open() {
        let mut plan = Plan::default();
        plan.open_asked(txid(0, 4), hash('a'), at(8), 9);
        plan.open_asked(txid(1, 5), hash('a'), at(7), 9);
        plan.open_voted(txid(2, 6), hash('a'), Ballot::Yes);
        let below = |offset| BTreeMap::from([(Shard(0), offset), (Shard(1), offset), (Shard(2), offset)]);
        assert_eq!(plan.shards_open(&below(9)), BTreeSet::from([Shard(0), Shard(1), Shard(2)]));
        assert_eq!(plan.shards_open(&below(8)), BTreeSet::from([Shard(1), Shard(2)]));
        assert_eq!(plan.shards_open(&below(7)), BTreeSet::from([Shard(2)]), "nobody knows where its prepare stands");
        plan.was_decided(&txid(2, 6));
        plan.was_decided(&txid(1, 5));
        assert!(plan.not_found().is_empty());
        assert_eq!(txids(&plan.unvoted()), [txid(0, 4)]);
    }

    #[test]
    fn commits_come_in_the_order_of_the_log_and_of_time_between_shards() {
        let mut plan = Plan::new([]);
        // A clock that went back for a moment does not change the order within a shard.
        for (shard, offset, time_ms) in [(0, 10, 5), (0, 11, 3), (0, 9, 8), (1, 20, 4), (1, 21, 5), (2, 30, 9)] {
            plan.decided(&decision(txid(shard, offset), Verdict::Commit), time_ms);
        }
        let order: Vec<Txid> = plan.to_redo().iter().map(|due| due.txid).collect();
        let expected = [txid(1, 20), txid(0, 10), txid(0, 11), txid(1, 21), txid(0, 9), txid(2, 30)];
        assert_eq!(order, expected);
    }

    #[test]
    fn a_portion_is_bounded_and_never_empty() {
        let due: Vec<Due> = (0..5).map(|n| Due { txid: txid(0, n), place: Some(at(n)) }).collect();
        let count = |most, bytes| portion(&due, most, bytes).0.len();
        assert_eq!(count(3, 10_000), 3);
        assert_eq!(count(9, 10_000), 5);
        assert_eq!(count(9, 250), 2);
        assert_eq!(count(9, 1), 1, "one that is longer than all of it goes alone");
        assert!(portion(&[], 9, 9).0.is_empty());
    }
}
