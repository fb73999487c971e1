//! The judge of an audit, case by case. A case is a line of words: what stands in the logs, and what the participants `a` and
//! `b` have. The transaction is the request at offset 5; the requests are read from 3 up to 10.
//!
//! ```text
//! asked                     the request, naming a and b; `asked-old`: it has left its topic
//! a:yes a:no a:expired a:other      votes; a coordinator's no; a vote of another hash
//! commit abort other-hash cleaned unreadable    records of the decision log
//! told-commit told-abort    outcomes; a=resolved skipped: a person's incidents there
//! a=committed (any row)     a's ledger; a=branch: its list; a=past: its position is past the decision; a=purged
//! a=back                    a's database went back
//! ```

use std::collections::{BTreeMap, BTreeSet};

use suture_contract::codec::encode;
use suture_contract::ids::{Participant, RequestHash};
use suture_contract::messages::{Decision, Outcome, Request, Verdict, Vote};
use suture_contract::partitioner::shard_of;
use suture_coordinator_core::audit::{About, Judged, Range, Row, ShardBooks, Trail, judge};
use suture_coordinator_core::records::Place;
use suture_coordinator_core::shard::Raw;

const HASH: &str = "k1:0123456789abcdef0123456789abcdef";
const OTHER_HASH: &str = "k1:aaaaaaaaaaaaaaaa0123456789abcdef";
const KEY: &[u8] = b"patient";
const PARTITIONS: u16 = 12;
const BOTH: &str = "a:yes b:yes commit";

#[test]
fn each_transaction_has_one_standing_and_its_findings() {
    let cases = [
        // How it should go.
        ("asked", "open", "open"),
        ("asked a:yes a=branch", "in doubt", "a in doubt"),
        ("asked a:yes a=in_doubt b:yes b=branch", "in doubt", "a in doubt, b in doubt"),
        ("asked a=branch", "in doubt", "a in doubt"),
        ("asked a:no a=refused", "open", "open"),
        ("asked BOTH a=committed b=committed", "committed", ""),
        ("asked BOTH told-commit a=committed a=past b=committed b=past", "committed", ""),
        ("asked BOTH a=branch b=committed", "not applied", "a not applied"),
        ("asked BOTH a=in_doubt b=committed b=past", "not applied", "a not applied"),
        ("asked a:no b:yes abort a=refused b=aborted", "aborted", ""),
        ("asked a:expired b:yes abort told-abort b=branch", "not applied", "a not applied, b not applied"),
        ("asked a:no abort abort a=refused b=aborted b=past", "aborted", ""),
        ("asked a:yes a:no b:yes commit a=committed b=committed", "committed", ""),
        ("asked a:other a:yes b:yes commit a=committed b=committed", "committed", ""),
        // A row that was purged is finished.
        ("asked BOTH a=purged b=committed", "committed", ""),
        ("asked a:no abort a=purged a=past b=purged b=past", "aborted", ""),
        // Settled by a person.
        ("asked BOTH a=abandoned b=committed", "settled", ""),
        ("asked BOTH a=resolved b=committed", "settled", ""),
        ("asked a:no abort a=resolved a=committed b=aborted", "settled", ""),
        ("skipped unreadable", "", ""),
        // A request that has left its topic.
        ("asked-old commit a=committed b=committed", "older", ""),
        ("asked-old abort a=aborted b=refused", "older", ""),
        ("asked-old commit a=branch b=committed", "older", "a not applied"),
        ("asked-old commit cleaned", "", ""),
        // What must not be: in the logs.
        ("asked a:yes b:yes abort a=aborted b=aborted", "wrong", "not_the_product"),
        ("asked a:no b:yes commit a=committed b=committed", "wrong", "not_the_product"),
        ("asked a:yes commit a=committed b=committed", "wrong", "not_the_product"),
        ("asked abort a=aborted b=aborted", "wrong", "not_the_product"),
        ("asked BOTH abort a=committed b=committed", "wrong", "copies_differ"),
        ("asked BOTH told-abort a=committed b=committed", "wrong", "told_otherwise"),
        ("asked a:yes told-commit a=branch", "wrong", "told_otherwise, a in doubt"),
        ("asked a:yes b:yes other-hash a=committed b=committed", "wrong", "about_another"),
        ("commit", "", "nobody_asked"),
        ("unreadable", "", "unreadable"),
        // Against the ledgers.
        ("asked a:no b:yes abort a=refused b=committed", "wrong", "committed_against_abort b"),
        ("asked a:yes a=committed", "wrong", "committed_undecided a"),
        ("asked a:yes a=aborted", "wrong", "aborted_undecided a"),
        ("asked a:no abort a=refused b=past", "wrong", "row_missing b"),
        ("asked BOTH a=other-row b=committed", "wrong", "other_hash a"),
        ("asked a:yes a=other-branch", "wrong", "other_hash a, a in doubt"),
        // Lost.
        ("asked BOTH b=committed", "wrong", "lost a"),
        ("asked BOTH a=past b=committed", "wrong", "lost a"),
        ("asked BOTH a=aborted b=committed", "wrong", "lost a"),
        ("asked BOTH a=refused b=committed", "wrong", "lost a"),
        ("asked-old commit b=committed", "older", "lost a"),
        ("asked a:yes", "wrong", "gone a"),
        ("asked a:yes a=refused", "wrong", "gone a"),
        // Restored, and not brought back yet.
        ("asked BOTH a=back b=committed", "not applied", "a not applied"),
        ("asked-old commit a=back b=committed", "older", "a not applied"),
        ("asked a:yes a=back", "in doubt", "a in doubt"),
        ("asked a:no a=back", "open", "open"),
        ("asked a:no b:yes abort a=refused b=back", "not applied", "b not applied"),
        ("asked BOTH a=back a=past b=committed", "wrong", "lost a"),
        ("asked BOTH a=back a=aborted b=committed", "wrong", "lost a"),
        ("asked a:yes a=back a=refused", "wrong", "gone a"),
        // Orphans.
        ("a=branch", "", "no_request a"),
        ("a=in_doubt", "", "no_request a"),
        ("asked BOTH a=committed b=committed c=branch", "committed", "not_named c"),
        ("asked BOTH a=committed a=branch b=committed", "wrong", "left_over a"),
        ("asked BOTH a=branch a=past b=committed", "wrong", "left_over a"),
        ("asked a:no abort a=refused b=in_doubt b=past", "wrong", "left_over b"),
    ];
    for (case, standing, expected) in cases {
        let (judged, _) = judged(case, Range { from: 3, end: 10, is_all: true, only: None });
        assert_eq!(told(&judged), (standing.to_string(), expected.to_string()), "{case}");
    }
}

/// Of what a look does not cover nothing is said.
#[test]
fn what_is_later_or_older_than_a_look_is_passed_over() {
    let later = Range { from: 3, end: 5, is_all: true, only: None };
    for case in ["asked BOTH", "commit", "asked a:yes abort a=committed"] {
        let (judged, _) = judged(case, later.clone());
        assert_eq!(told(&judged), (String::new(), String::new()), "later: {case}");
    }
    // Only a second look can tell it from an orphan.
    assert_eq!(told(&judged("asked a=branch", later).0).1, "no_request a");
    let ranges = [
        ("only younger ones are looked at", Range { from: 6, end: 10, is_all: false, only: None }),
        ("only another one is looked at", Range { from: 3, end: 10, is_all: true, only: Some([7].into()) }),
    ];
    for (what, range) in ranges {
        for case in ["a=branch", "asked BOTH", "commit", "asked a:yes abort a=committed"] {
            let (judged, _) = judged(case, range.clone());
            assert_eq!(told(&judged), (String::new(), String::new()), "{what}: {case}");
        }
    }
}

#[test]
fn a_register_that_has_left_its_topic_is_not_judged() {
    let range = Range { from: 3, end: 10, is_all: true, only: None };
    let (_, mut trail) = judged("asked b:yes commit", range);
    let story = trail.story(5).unwrap().clone();
    assert_eq!(trail.product(&story), Some(None));
    trail.votes_begin(&"a".parse().unwrap(), 1_000);
    assert_eq!(trail.product(&story), Some(None), "it was there when this was asked for");
    trail.votes_begin(&"a".parse().unwrap(), 1_001);
    assert_eq!(trail.product(&story), None);
}

#[test]
fn a_later_version_is_not_judged() {
    let place = place();
    let mut trail =
        Trail::new(place, Range { from: 0, end: 10, is_all: true, only: None }, "suture.decisions".to_string());
    let newer = br#"{"type":"decision","v":2}"#;
    assert!(trail.decision(raw(0, Some(b"x"), Some(newer))).is_err());
    assert!(trail.outcome(raw(0, None, Some(br#"{"type":"outcome","v":2}"#))).is_err());
    assert!(trail.vote(&"a".parse().unwrap(), raw(0, None, Some(br#"{"type":"vote","v":2}"#))).is_err());
    assert!(trail.request(raw(0, None, Some(br#"{"type":"request","v":2}"#))).is_err());
}

fn place() -> Place {
    Place { log: "k3f9q".parse().unwrap(), shard: shard_of(KEY, PARTITIONS), partitions: PARTITIONS }
}

fn raw<'a>(offset: u64, key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> Raw<'a> {
    Raw { offset, timestamp_ms: 1_000, key, value, traceparent: None }
}

fn judged(case: &str, range: Range) -> (Judged, Trail) {
    let (place, case) = (place(), case.replace("BOTH", BOTH));
    let words: Vec<&str> = case.split_whitespace().collect();
    let txid = format!("k3f9q-{}-5", place.shard);
    let mut trail = Trail::new(place, range, "suture.decisions".to_string());
    if words.contains(&"asked") {
        let request = format!(
            r#"{{"business_key":"s:1:1","attempt":1,"rule":"s","deadline_ms":1000,"ordered":false,"branches":[BRANCHES],"hash":"{HASH}"}}"#
        );
        let branch = |name| format!(r#"{{"participant":"{name}","operation":"o","payload":{{}}}}"#);
        let request = request.replace("BRANCHES", &format!("{},{}", branch("a"), branch("b")));
        let request: Request = serde_json::from_str(&request).unwrap();
        trail.request(raw(5, Some(KEY), Some(&encode(&request)))).unwrap();
    }
    for (offset, word) in (0..).zip(&words) {
        let incident = |rest: String| format!(r#"{{"type":"incident","v":1,"participant":"a",{rest}}}"#);
        let settled = format!(r#""what":"resolved","txid":"{txid}","settled":"committed","who":"w","because":"b""#);
        // The record that is skipped is the next one.
        let (topic, at) = ("suture.decisions", offset + 1);
        let partition = place.shard.partition();
        let skipped = format!(
            r#""what":"skipped","origin":{{"topic":"{topic}","partition":{partition},"offset":{at}}},"who":"w","because":"b""#
        );
        let outcome = match *word {
            "a=resolved" => {
                trail.outcome(raw(offset, None, Some(incident(settled).as_bytes()))).unwrap();
                continue;
            }
            "skipped" => {
                trail.outcome(raw(offset, None, Some(incident(skipped).as_bytes()))).unwrap();
                continue;
            }
            "told-commit" => Verdict::Commit,
            "told-abort" => Verdict::Abort,
            _ => continue,
        };
        let outcome = Outcome {
            txid: txid.parse().unwrap(),
            business_key: "s:1:1".parse().unwrap(),
            attempt: serde_json::from_str("1").unwrap(),
            outcome,
            votes: Vec::new(),
            duplicate_of: None,
            retryable: false,
        };
        trail.outcome(raw(offset, None, Some(&encode(&outcome)))).unwrap();
    }
    // A request that has left its topic lies below what is read.
    let decided = if words.contains(&"asked-old") { format!("k3f9q-{}-2", place.shard) } else { txid.clone() };
    for (offset, word) in (0..).zip(&words) {
        let (outcome, hash) = match *word {
            "commit" => (Verdict::Commit, HASH),
            "abort" => (Verdict::Abort, HASH),
            "other-hash" => (Verdict::Commit, OTHER_HASH),
            "cleaned" => {
                trail.decision(raw(offset, Some(decided.as_bytes()), None)).unwrap();
                continue;
            }
            "unreadable" => {
                trail.decision(raw(offset, Some(decided.as_bytes()), Some(b"{"))).unwrap();
                continue;
            }
            _ => continue,
        };
        let decision = Decision {
            txid: decided.parse().unwrap(),
            outcome,
            participants: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            business_key: "s:1:1".parse().unwrap(),
            attempt: serde_json::from_str("1").unwrap(),
            hash: hash.parse().unwrap(),
        };
        trail.decision(raw(offset, Some(decided.as_bytes()), Some(&encode(&decision)))).unwrap();
    }
    for (offset, word) in (0..).zip(&words) {
        let Some((participant, vote)) = word.split_once(':') else { continue };
        let (ballot, by, hash) = match vote {
            "yes" => ("yes", "participant", HASH),
            "no" => ("no", "participant", HASH),
            "expired" => ("no", "coordinator", HASH),
            "other" => ("no", "participant", OTHER_HASH),
            _ => panic!("{word}"),
        };
        let code = if ballot == "no" { r#","code":"LIMIT""# } else { "" };
        let vote = format!(
            r#"{{"txid":"{txid}","participant":"{participant}","vote":"{ballot}","hash":"{hash}","by":"{by}"{code}}}"#
        );
        let vote: Vote = serde_json::from_str(&vote).unwrap();
        let participant: Participant = participant.parse().unwrap();
        trail.vote(&participant, raw(offset, Some(txid.as_bytes()), Some(&encode(&vote)))).unwrap();
    }
    let at = if words.contains(&"asked-old") { 2 } else { 5 };
    let mut books: BTreeMap<Participant, ShardBooks> =
        ["a", "b", "c"].map(|name| (name.parse().unwrap(), ShardBooks::default())).into();
    let hash: RequestHash = HASH.parse().unwrap();
    let other: RequestHash = OTHER_HASH.parse().unwrap();
    for word in &words {
        let Some((participant, has)) = word.split_once('=') else { continue };
        let book = books.get_mut(&participant.parse().unwrap()).unwrap();
        let row = match has {
            "past" => {
                book.past = 100;
                continue;
            }
            "back" => {
                book.went_back = true;
                continue;
            }
            "resolved" => continue,
            "purged" => {
                book.purged = 6;
                continue;
            }
            "branch" | "other-branch" => {
                let short = if has == "branch" { hash.short() } else { other.short() };
                book.branches.insert(at, BTreeSet::from([short]));
                continue;
            }
            "in_doubt" => (Row::InDoubt, hash),
            "committed" => (Row::Committed, hash),
            "aborted" => (Row::Aborted, hash),
            "refused" => (Row::Refused, hash),
            "abandoned" => (Row::Abandoned, hash),
            "other-row" => (Row::Committed, other),
            _ => panic!("{word}"),
        };
        book.rows.insert(at, row);
    }
    (judge(&trail, &books), trail)
}

/// The one standing, and the findings and waits as text.
fn told(judged: &Judged) -> (String, String) {
    use suture_coordinator_core::audit::{Standing, Waits};
    let standing = |standing: &Standing| match standing {
        Standing::Committed => "committed",
        Standing::Aborted => "aborted",
        Standing::Open => "open",
        Standing::InDoubt => "in doubt",
        Standing::NotApplied => "not applied",
        Standing::Settled => "settled",
        Standing::Wrong => "wrong",
    };
    let mut standings: Vec<&str> = judged.standings.values().map(standing).collect();
    standings.extend((judged.older > 0).then_some("older"));
    let mut told: Vec<String> = Vec::new();
    for finding in &judged.findings {
        let participant = finding.participant.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        assert!(matches!(finding.about, About::Transaction(_)) || finding.wrong.as_str() == "unreadable");
        told.push(format!("{}{participant}", finding.wrong.as_str()));
    }
    for wait in &judged.waits {
        let waits = match wait.waits {
            Waits::Open => "open",
            Waits::InDoubt => "in doubt",
            Waits::NotApplied => "not applied",
        };
        told.push(wait.participant.as_ref().map_or(waits.to_string(), |name| format!("{name} {waits}")));
    }
    (standings.join(", "), told.join(", "))
}
