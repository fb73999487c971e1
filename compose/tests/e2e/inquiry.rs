//! The hospital, in mode xa, never reads a decision: somebody moved its position past it while it was away. It comes back in
//! doubt, reads from its log what it said yes to, asks, and is told: by a coordinator that remembers, and by one that has to
//! look. What came back beside an `aborted` row is swept; what somebody else has prepared stays.
//!
//! The decision is held open by the surgeon-log, which does not run until its vote is wanted.

use std::fs;

use crate::check;
use crate::feed::{Place, Sample, samples};
use crate::logs::{Entry, Story};
use crate::oracle::{self, Expected};
use crate::rows::{execute, prepared, query};
use crate::world::{Options, World};

/// Nothing expires here.
const DEADLINE_MS: u64 = 1_800_000;

#[test]
fn who_missed_a_decision_asks_for_it_and_is_told() {
    let (all, cases) = two_cases();
    let world = World::start(&Options { deadline_ms: DEADLINE_MS, ..Options::default() });
    soon(&world);
    let (mut ingest, mut insurer) = (world.service("ingest", &["ingest"]), world.participant("insurer"));
    let (mut coordinator, mut hospital) =
        (world.service("coordinator", &["coordinator"]), world.participant("hospital"));
    let (mut surgeon_log, mut feed, mut fed) = (None, world.feed(), Vec::new());
    let database = world.postgres("hospital").to_string();

    for (round, case) in cases.iter().enumerate() {
        let places = feed.feed([case]);
        let (mut txid, mut shard) = (String::new(), 0);
        world.wait_for_logs("the hospital has voted", |logs| {
            let story = logs.stories().into_values().find(|story| is_of(story, &places));
            let Some(story) = story.filter(|story| story.register("hospital").is_some()) else { return false };
            (txid, shard) = (story.txid.clone(), story.shard().unwrap_or_default());
            true
        });
        let end = |topic: &str| world.follower.end(&world.topic(topic), shard).expect("the brokers run");
        let place = |topic: &str| format!("where topic = '{}' and shard = {shard}", world.topic(topic));
        // From here on it does not read the prepare again.
        let voted = format!("select next_offset::text from suture_positions {}", place("prepare.hospital"));
        world.wait_until("its position is behind the prepare", || {
            query(&database, &voted) == [end("prepare.hospital").to_string()]
        });
        hospital.kill();
        let surgeon_log = surgeon_log.get_or_insert_with(|| world.participant("surgeon-log"));
        if round > 0 {
            surgeon_log.start_again();
        }
        world.wait_for_logs("it is decided", |logs| logs.stories()[&txid].verdict() == Some("commit"));
        let pass = format!("update suture_positions set next_offset = {} {}", end("decisions"), place("decisions"));
        execute(&database, &pass).unwrap();
        assert!(surgeon_log.terminate().success());
        if round > 0 {
            // It finds nothing in its memory, and the decision in the log.
            assert!(coordinator.terminate().success());
            coordinator.start_again();
        }
        assert_eq!(prepared(&database).len(), 1, "in doubt");
        hospital.start_again();
        world.wait_until("it is in doubt no more", || prepared(&database).is_empty());
        let logs = world.follower.to_the_ends();
        let story = &logs.stories()[&txid];
        assert!(story.decisions.len() > 1, "the decision was appended again");
        assert!(story.votes["hospital"].iter().any(|vote| is_inquiry(vote)));
        fed.extend(places);
    }
    surgeon_log.as_mut().expect("it was started").start_again();
    world.wait_for_the_end(&fed);
    let (_, rows) = check::everything(&world);
    oracle::verify_rows(&oracle::expect_of(&cases, &all), &rows);

    let txid = rows.of("hospital").txids().into_iter().next().expect("one of the two").to_string();
    sweep(&world, &database, &txid);
    for process in [&mut ingest, &mut insurer, &mut coordinator, &mut hospital].into_iter().chain(&mut surgeon_log) {
        assert!(process.terminate().success(), "{}", process.name());
    }
}

/// A branch beside an aborted row, as a database might bring it back, and one of another deployment.
fn sweep(world: &World, database: &str, txid: &str) {
    let (log_and_shard, _) = txid.rsplit_once('-').expect("letters, shard, offset");
    let (over, hash) = (format!("{log_and_shard}-999999"), "0123456789abcdef");
    let row = format!("insert into suture_ledger (txid, state, hash) values ('{over}', 'aborted', 'k1:{hash}{hash}')");
    execute(database, &row).unwrap();
    let foreign = format!("{over}/other/hospital/{hash}");
    for gid in [format!("{over}/{}/hospital/{hash}", world.prefix), foreign.clone()] {
        execute(database, &format!("begin; prepare transaction '{gid}'")).unwrap();
    }
    world.wait_until("it is swept", || prepared(database) == [foreign.as_str()]);
    execute(database, &format!("rollback prepared '{foreign}'")).unwrap();
}

/// The hospital asks and sweeps within seconds.
fn soon(world: &World) {
    let file = world.config_file().with_file_name("participants").join("hospital.postgres.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("inquire_after_ms = 1000\nsweep_after_ms = 500\n{text}")).unwrap();
}

fn two_cases() -> (Vec<Sample>, Vec<Sample>) {
    let all = samples();
    let commits = |expected: &Expected| match expected {
        Expected::Case(case) => case.participants.len() == 3 && case.must_commit(),
        _ => false,
    };
    let cases = all.iter().zip(oracle::expect(&all)).filter(|(_, expected)| commits(expected));
    let cases = cases.map(|(sample, _)| sample.clone()).take(2).collect();
    (all, cases)
}

fn is_of(story: &Story, places: &[Place]) -> bool {
    story.source().is_some_and(|source| places.contains(&source))
}

fn is_inquiry(vote: &Entry) -> bool {
    vote.json.as_ref().is_some_and(|json| json["inquiry"] == true)
}
