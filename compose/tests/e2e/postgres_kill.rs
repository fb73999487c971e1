//! PostgreSQL is killed with -9 while branches are prepared there, voted yes and not decided: they survive, and end as it
//! is decided, whether that happens while PostgreSQL is away or after it has come back.
//!
//! The decision is held open by the surgeon-log, which does not run until its vote is wanted.

use std::collections::{BTreeMap, BTreeSet};

use suture_contract::codec::encode;
use suture_contract::messages::Cancel;

use crate::check;
use crate::feed::{Feed, Place, Sample, samples};
use crate::logs::Story;
use crate::oracle::{self, Expected};
use crate::process::Process;
use crate::rows::prepared;
use crate::world::{Insurer, Options, World};

/// Cases in each round.
const CASES: usize = 4;

/// Nothing expires here.
const DEADLINE_MS: u64 = 1_800_000;

/// Whose branches lie in PostgreSQL.
const IN_POSTGRES: [&str; 2] = ["hospital", "insurer"];

#[test]
fn branches_prepared_before_postgresql_was_killed_are_committed_as_decided() {
    let (all, rounds) = two_rounds(|case| case.must_commit());
    let world = World::start(&Options { deadline_ms: DEADLINE_MS, insurer: Insurer::Postgres, ..Options::default() });
    let (mut crew, mut feed) = (Crew::start(&world), world.feed());

    // Decided while PostgreSQL is away.
    let mut fed = feed.feed(&rounds[0]);
    let held = hold(&world, &fed);
    world.cluster.kill_postgres();
    let mut surgeon_log = world.participant("surgeon-log");
    wait_for_verdicts(&world, &held, "commit");
    world.cluster.start_postgres();
    world.wait_for_the_end(&fed);

    // Decided after it has come back.
    assert!(surgeon_log.terminate().success());
    let second = feed.feed(&rounds[1]);
    let held = hold(&world, &second);
    world.cluster.kill_postgres();
    world.cluster.start_postgres();
    assert_eq!(prepared_txids(&world), both(&held), "the branches have survived");
    no_decision(&world, &held);
    surgeon_log.start_again();
    wait_for_verdicts(&world, &held, "commit");
    fed.extend(second);
    world.wait_for_the_end(&fed);

    let expected = oracle::expect_of(&rounds.concat(), &all);
    let (logs, rows) = check::everything(&world);
    oracle::verify_registers(&expected, &logs, &fed);
    oracle::verify_rows(&expected, &rows);
    assert_eq!(rows.of("hospital").txids().len(), 2 * CASES);
    crew.terminate();
    assert!(surgeon_log.terminate().success());
}

#[test]
fn branches_prepared_before_postgresql_was_killed_are_rolled_back_as_decided() {
    let (_, [cancelled, refused]) = two_rounds(|case| {
        // In the second round the surgeon-log refuses, and nobody else.
        case.must_commit() || case.noes.keys().eq(&["surgeon-log"])
    });
    let world = World::start(&Options { deadline_ms: DEADLINE_MS, insurer: Insurer::Postgres, ..Options::default() });
    let (mut crew, mut feed) = (Crew::start(&world), world.feed());
    let before = world.rows().without_txids();

    // Cancelled while PostgreSQL is away.
    let mut fed = feed.feed(&cancelled);
    let held = hold(&world, &fed);
    world.cluster.kill_postgres();
    for story in held.values() {
        cancel(&world, &mut feed, story);
    }
    wait_for_verdicts(&world, &held, "abort");
    world.cluster.start_postgres();
    // It notes the aborts of what it was never asked before it is asked.
    let mut surgeon_log = world.participant("surgeon-log");
    world.wait_for_the_end(&fed);
    for story in world.follower.to_the_ends().stories().values() {
        let noes = BTreeMap::from([("surgeon-log".to_string(), "cancelled".to_string())]);
        assert_eq!(story.noes(), noes, "{}", story.txid);
    }

    // Refused after it has come back.
    assert!(surgeon_log.terminate().success());
    let second = feed.feed(&refused);
    let held = hold(&world, &second);
    world.cluster.kill_postgres();
    world.cluster.start_postgres();
    assert_eq!(prepared_txids(&world), both(&held), "the branches have survived");
    no_decision(&world, &held);
    surgeon_log.start_again();
    wait_for_verdicts(&world, &held, "abort");
    fed.extend(second);
    world.wait_for_the_end(&fed);

    let (logs, rows) = check::everything(&world);
    assert_eq!(rows.without_txids(), before, "nothing is left of what was rolled back");
    for participant in IN_POSTGRES {
        let states: Vec<_> = rows.of(participant).ledger.values().map(|row| row.state.as_str()).collect();
        assert_eq!(states, ["aborted"].repeat(fed.len()), "{participant}");
    }
    for (txid, story) in logs.stories().iter().filter(|(txid, _)| held.contains_key(*txid)) {
        assert_eq!(story.noes().get("surgeon-log").map(String::as_str), Some("NOT_PRIVILEGED"), "{txid}");
    }
    crew.terminate();
    assert!(surgeon_log.terminate().success());
}

/// All samples, and two times some surgeries of them.
fn two_rounds(wanted: impl Fn(&oracle::Case) -> bool) -> (Vec<Sample>, [Vec<Sample>; 2]) {
    let all = samples();
    let (mut plain, mut refused, mut patients) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (sample, expected) in all.iter().zip(oracle::expect(&all)) {
        // Two claims on one coverage would wait for each other's decision.
        if let Expected::Case(case) = expected
            && case.participants.len() == 3
            && wanted(&case)
            && patients.insert(case.patient.clone())
        {
            let list = if case.must_commit() { &mut plain } else { &mut refused };
            list.push(sample.clone());
        }
    }
    let first: Vec<_> = plain.drain(..CASES).collect();
    let second = if refused.is_empty() { plain } else { refused };
    (all, [first, second.into_iter().take(CASES).collect()])
}

/// Everybody but the surgeon-log.
struct Crew([Process; 4]);

impl Crew {
    fn start(world: &World) -> Self {
        let [hospital, insurer] = IN_POSTGRES.map(|participant| world.participant(participant));
        Self([world.service("ingest", &["ingest"]), world.service("coordinator", &["coordinator"]), hospital, insurer])
    }

    fn terminate(&mut self) {
        for process in &mut self.0 {
            assert!(process.terminate().success(), "{}", process.name());
        }
    }
}

/// Waits until both databases hold a branch of each event that they have voted yes for; gives the transactions. None is
/// decided.
fn hold(world: &World, fed: &[Place]) -> BTreeMap<String, Story> {
    let of_these = |story: &Story| story.source().is_some_and(|source| fed.contains(&source));
    let voted = |story: &Story| {
        IN_POSTGRES.iter().all(|participant| story.register(participant).is_some_and(|vote| vote.text("vote") == "yes"))
    };
    let mut held = BTreeMap::new();
    world.wait_for_logs("both have voted yes for all", |logs| {
        held = logs.stories();
        held.retain(|_, story| of_these(story) && voted(story));
        held.len() == fed.len()
    });
    assert_eq!(prepared_txids(world), both(&held), "prepared, between vote and decision");
    no_decision(world, &held);
    held
}

fn no_decision(world: &World, held: &BTreeMap<String, Story>) {
    let logs = world.follower.to_the_ends();
    let decided = logs.topic("decisions").iter().find(|decision| held.contains_key(decision.text("txid")));
    assert!(decided.is_none(), "{:?} is decided", decided.map(|decision| &decision.place));
}

fn wait_for_verdicts(world: &World, held: &BTreeMap<String, Story>, verdict: &str) {
    world.wait_for_logs(&format!("all are decided: {verdict}"), |logs| {
        let stories = logs.stories();
        held.keys().all(|txid| match stories[txid].verdict() {
            Some(found) => {
                assert_eq!(found, verdict, "{txid}");
                true
            }
            None => false,
        })
    });
}

/// (participant, txid) of what is in the databases' lists.
fn prepared_txids(world: &World) -> BTreeSet<(&'static str, String)> {
    let mut found = BTreeSet::new();
    for participant in IN_POSTGRES {
        for gid in prepared(world.postgres(participant)) {
            let (txid, _) = gid.split_once('/').expect("txid, deployment, participant, hash");
            assert!(found.insert((participant, txid.to_string())), "{gid}");
        }
    }
    found
}

fn both(held: &BTreeMap<String, Story>) -> BTreeSet<(&'static str, String)> {
    IN_POSTGRES.iter().flat_map(|participant| held.keys().map(move |txid| (*participant, txid.clone()))).collect()
}

fn cancel(world: &World, feed: &mut Feed, story: &Story) {
    let request = story.request.as_ref().expect("it was asked for");
    let txid = story.txid.parse().expect("a txid");
    let cancel = Cancel { txid, who: "the test".to_string(), why: "the case was entered twice".to_string() };
    feed.append(&world.topic("requests"), request.place.partition, &request.key, Some(&encode(&cancel)));
}
