//! The whole upstream topic delivered twice, and once more after everything: one effect a case, and every further
//! delivery is answered as what it is.

use std::collections::BTreeSet;

use crate::check;
use crate::feed::{Place, samples};
use crate::logs::{Logs, Story};
use crate::oracle::{self, Case};
use crate::rows::Rows;
use crate::world::{Options, World};

/// What a participant says of a business key that it met before; `aborted`: the abort came before the prepare.
const REPEATS: [&str; 5] = ["duplicate", "in_progress", "aborted_before", "conflict", "aborted"];

#[test]
fn a_surgery_that_is_delivered_again_changes_nothing() {
    let samples = samples();
    let expected = oracle::expect(&samples);
    let world = World::start(&Options::default());
    let mut crew = world.crew();
    let mut feed = world.feed();

    // Side by side in the upstream topic, in different partitions: the second arrives while the first is under way.
    let fed = feed.feed(samples.iter().flat_map(|sample| [sample, sample]));
    world.wait_for_the_end(&fed);
    let (logs, rows) = check::everything(&world);
    oracle::verify_rows(&expected, &rows);
    for (index, case) in oracle::cases(&expected) {
        one_effect(case, &logs, &rows, &fed[2 * index..2 * index + 2]);
    }

    let after_all = feed.feed(&samples);
    world.wait_for_the_end(&after_all);
    let (logs, rows_afterwards) = check::everything(&world);
    assert_eq!(rows_afterwards.with_txids(), rows.with_txids(), "no row changes");
    let mut duplicates = 0;
    for (index, case) in oracle::cases(&expected) {
        duplicates += usize::from(answered_as_repeat(case, &logs, &rows_afterwards, &after_all[index]));
    }
    assert!(duplicates * 10 >= samples.len() * 6, "{duplicates} named the transaction that they repeat");
    crew.terminate();
}

/// Of both deliveries at most one commits; the other one is told that it is no news.
fn one_effect(case: &Case, logs: &Logs, rows: &Rows, deliveries: &[Place]) {
    let stories = logs.stories();
    let asked: Vec<&Story> =
        stories.values().filter(|story| story.source().is_some_and(|source| deliveries.contains(&source))).collect();
    assert_eq!(asked.len(), 2, "a request for each delivery of {}", case.number);
    let committed = asked.iter().filter(|story| story.verdict() == Some("commit")).count();
    assert_eq!(committed, usize::from(committed_as(case, rows).is_some()), "{}", case.number);
    if committed == 1 {
        for story in asked.iter().filter(|story| story.verdict() == Some("abort")) {
            only_repeats(story);
        }
    }
}

/// Whether it was named a duplicate of what had committed. What had aborted is refused as a repeat too: it would be
/// another attempt.
fn answered_as_repeat(case: &Case, logs: &Logs, rows: &Rows, delivery: &Place) -> bool {
    let stories = logs.stories();
    let story = stories.values().find(|story| story.source().as_ref() == Some(delivery)).expect("a request");
    assert_eq!(story.verdict(), Some("abort"), "{} took effect again", story.txid);
    only_repeats(story);
    let outcome = &story.outcomes[0];
    let Some(original) = committed_as(case, rows) else {
        assert!(story.noes().values().all(|code| code != "duplicate"), "{}: of nothing", story.txid);
        return false;
    };
    assert_eq!(outcome.text("duplicate_of"), original, "{}: the outcome names what took effect", story.txid);
    for participant in story.noes().into_iter().filter(|(_, code)| code == "duplicate").map(|(who, _)| who) {
        let vote = story.register(&participant).expect("a vote");
        assert_eq!(vote.text("duplicate_of"), original, "{}: {participant} names it", story.txid);
        let noted = rows.of(&participant).ledger[&story.txid].duplicate_of.as_deref();
        assert_eq!(noted, Some(original), "{}: so does its ledger", story.txid);
    }
    assert_eq!(outcome.json.as_ref().expect("JSON")["retryable"], false, "{}", story.txid);
    true
}

fn only_repeats(story: &Story) {
    let codes: BTreeSet<String> = story.noes().into_values().collect();
    assert!(codes.iter().all(|code| REPEATS.contains(&code.as_str())), "{}: {codes:?}", story.txid);
    assert!(codes.iter().any(|code| code != "aborted"), "{}: nobody said why", story.txid);
}

/// The transaction by which a case took effect.
fn committed_as<'r>(case: &Case, rows: &'r Rows) -> Option<&'r str> {
    let row = rows.of("hospital").table("encounter").find(|row| row.fields["case_id"] == case.number.as_str())?;
    Some(&row.txid)
}
