//! What must hold whatever happened, once everything has ended: judged by the test's own copy of all topics and by the
//! databases' rows, with nothing of the coordinator or the participants.
//!
//! The names are those of the safety invariants in `docs/protocol.md`.

use std::collections::{BTreeMap, BTreeSet};

use crate::logs::{Logs, Story};
use crate::rows::{Contents, Rows};
use crate::secrets;
use crate::world::{PARTICIPANTS, World};

/// Reads everything, checks it, and gives what was read.
pub fn everything(world: &World) -> (Logs, Rows) {
    shards(world, |_| true)
}

/// The same, where everything has ended on these shards only. On the others nothing is invented, left or half done either.
pub fn shards(world: &World, have_ended: impl Fn(i32) -> bool) -> (Logs, Rows) {
    let (logs, rows) = (world.follower.to_the_ends(), world.rows());
    let stories = logs.stories();
    for story in stories.values().filter(|story| story.shard().is_some_and(&have_ended)) {
        decision_is_the_product(story);
        one_outcome(story, &stories);
        all_or_nothing(story, &rows);
    }
    for participant in PARTICIPANTS {
        let contents = rows.of(participant);
        nothing_invented(participant, contents, &stories);
        one_effect_a_key(participant, contents);
        no_orphans(participant, contents, &world.prefix);
    }
    nothing_reserved(&rows);
    used_is_what_was_claimed(&rows);
    secrets::stay_at_the_hospital(world, &logs, &rows);
    (logs, rows)
}

/// REGISTER, PRODUCT, VALIDITY: the decision is the product of the first votes, and all its copies are byte-equal.
fn decision_is_the_product(story: &Story) {
    let (txid, partition) = (&story.txid, story.shard());
    let first = story.decisions.first().unwrap_or_else(|| panic!("{txid} has no decision"));
    for copy in &story.decisions {
        assert_eq!(copy.value, first.value, "{txid}: two decisions differ");
        assert_eq!(Some(copy.place.partition), partition, "{txid}: a decision outside of its shard");
        assert_eq!(copy.key, txid.as_bytes(), "{txid}: the key of its decision");
    }
    let named = story.named();
    let registers: Vec<Option<&str>> =
        named.iter().map(|participant| story.register(participant).map(|vote| vote.text("vote"))).collect();
    let product = if registers.iter().all(|vote| *vote == Some("yes")) { "commit" } else { "abort" };
    assert_eq!(story.verdict(), Some(product), "{txid}: {named:?} voted {registers:?}");
    let says_no = registers.contains(&Some("no"));
    assert!(product == "commit" || says_no, "{txid}: aborted though nobody said no: {registers:?}");
    let decision = first.json.as_ref().expect("JSON");
    for field in ["business_key", "attempt", "hash"] {
        assert_eq!(decision[field], story.request_json()[field], "{txid}: {field} of the decision");
    }
    assert_eq!(decision["participants"], serde_json::json!(named), "{txid}: participants of the decision");
}

/// NOTHING LOST: an outcome for each request, which tells the decision; "duplicate" names a commit.
fn one_outcome(story: &Story, stories: &BTreeMap<String, Story>) {
    let txid = &story.txid;
    assert!(!story.outcomes.is_empty(), "{txid} has no outcome");
    for outcome in &story.outcomes {
        assert_eq!(Some(outcome.text("outcome")), story.verdict(), "{txid}: the outcome");
        let original = outcome.text("duplicate_of");
        if !original.is_empty() {
            let original = stories.get(original).unwrap_or_else(|| panic!("{txid} is a duplicate of nothing"));
            assert_eq!(original.verdict(), Some("commit"), "{txid} is a duplicate of what was aborted");
        }
    }
}

/// ATOMICITY: rows in the databases of all that are named, or in none.
fn all_or_nothing(story: &Story, rows: &Rows) {
    let (txid, named) = (&story.txid, story.named());
    let is_committed = story.verdict() == Some("commit");
    for participant in PARTICIPANTS {
        let contents = rows.of(participant);
        let (state, has_rows) = (contents.state(txid), contents.txids().contains(txid.as_str()));
        if is_committed && named.iter().any(|named| named == participant) {
            assert_eq!((state, has_rows), (Some("committed"), true), "{txid} is committed; {participant}");
        } else {
            assert!(!has_rows, "{txid} has rows in {participant}");
            assert!(matches!(state, None | Some("aborted" | "refused")), "{txid} is {state:?} in {participant}");
            let knows = state.is_some() || !named.iter().any(|named| named == participant);
            assert!(knows, "{participant} applied all decisions, and knows nothing of {txid}");
        }
    }
}

/// Rows and ledgers hold nothing but transactions that were asked for.
fn nothing_invented(participant: &str, contents: &Contents, stories: &BTreeMap<String, Story>) {
    let known = contents.ledger.keys().map(String::as_str).chain(contents.txids());
    let invented: Vec<&str> = known.filter(|txid| !stories.contains_key(*txid)).collect();
    assert!(invented.is_empty(), "{participant} has rows of what nobody asked for: {invented:?}");
}

/// EXACTLY ONCE: a business key takes effect at most once.
fn one_effect_a_key(participant: &str, contents: &Contents) {
    let mut seen = BTreeSet::new();
    for (txid, row) in contents.ledger.iter().filter(|(_, row)| row.state == "committed") {
        let key = row.business_key.as_deref().unwrap_or_else(|| panic!("{participant}: {txid} has no business key"));
        assert!(seen.insert(key), "{participant}: {key} took effect twice, the second time as {txid}");
    }
}

/// NO ORPHAN: nothing of ours is left prepared.
fn no_orphans(participant: &str, contents: &Contents, prefix: &str) {
    let ours: Vec<_> = contents.prepared.iter().filter(|gid| gid.split('/').nth(1) == Some(prefix)).collect();
    assert!(ours.is_empty(), "{participant}: prepared branches are left: {ours:?}");
    let in_doubt: Vec<_> = contents.ledger.iter().filter(|(_, row)| row.state == "in_doubt").collect();
    assert!(in_doubt.is_empty(), "{participant}: {} branches are left in doubt", in_doubt.len());
}

/// CONSERVATION: no surgeon's time is only reserved.
fn nothing_reserved(rows: &Rows) {
    for row in rows.of("surgeon-log").table("log_entry") {
        assert_eq!(row.fields["state"], "logged", "{}", row.txid);
    }
}

/// CONSERVATION: what is used of each coverage is the sum of its accepted claims.
fn used_is_what_was_claimed(rows: &Rows) {
    let key = |row: &serde_json::Value, start: &str| {
        ["member", "payer", "currency", start].map(|column| row[column].as_str().expect("text").to_string())
    };
    let minor = |amount: &serde_json::Value| amount.as_i64().expect("minor units");
    let insurer = rows.of("insurer");
    let mut claimed = BTreeMap::new();
    for claim in insurer.table("claim") {
        *claimed.entry(key(&claim.fields, "coverage_start")).or_insert(0) += minor(&claim.fields["amount_minor"]);
    }
    for coverage in &insurer.reference["coverage"] {
        let accepted = claimed.remove(&key(coverage, "start_date")).unwrap_or(0);
        assert_eq!(minor(&coverage["used_minor"]), accepted, "{coverage}");
    }
    assert!(claimed.is_empty(), "claims without a coverage: {claimed:?}");
}
