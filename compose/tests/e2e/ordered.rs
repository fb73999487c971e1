//! Ordered keys: one patient's transactions run one after the other, in the order of the log, in all three databases, also when
//! those who order them are killed in the middle of it.

use std::collections::BTreeMap;

use serde_json::json;
use suture_contract::partitioner::shard_of;

use crate::check;
use crate::logs::{Logs, Story};
use crate::rows::Rows;
use crate::template::Template;
use crate::world::{Options, PARTICIPANTS, World};

const PATIENTS: usize = 3;
const SURGERIES_EACH: usize = 14;

#[test]
fn the_transactions_of_a_patient_run_one_after_the_other() {
    let world = World::start(&Options { ordered: true, ..Options::default() });
    let mut feed = world.feed();
    let template = Template::of_ingest(&world, &mut feed);
    assert_eq!(template.field("ordered"), &json!(true), "the rule asks for it");

    let mut lines: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for number in 0..PATIENTS * SURGERIES_EACH {
        let patient = number % PATIENTS;
        let key = format!("patient:{patient}");
        let shard = shard_of(key.as_bytes(), world.kafka.partitions);
        let branches = PARTICIPANTS.map(|participant| template.branch_of_its_own(participant, number));
        let request = template.request(&format!("test:{number}"), &branches).to_string();
        let offset = feed.append(&world.topic("requests"), shard.partition(), key.as_bytes(), Some(request.as_bytes()));
        lines.entry(patient).or_default().push(format!("{}-{shard}-{offset}", world.follower.letters()));
    }
    let mut crew = world.crew();
    let ended = |logs: &Logs| logs.stories().values().filter(|story| !story.outcomes.is_empty()).count();
    for (after, victim) in [(8, "coordinator"), (16, "insurer"), (24, "hospital"), (30, "coordinator")] {
        world.wait_for_logs("it has come so far", |logs| ended(logs) >= after);
        let victim = crew.all().into_iter().find(|process| process.name() == victim).expect("one of the crew");
        victim.kill();
        victim.start_again();
    }
    // The one that the others were made from is the last.
    world.wait_for_logs("all have ended", |logs| ended(logs) == PATIENTS * SURGERIES_EACH + 1);
    for participant in PARTICIPANTS {
        world.wait_until("all decisions are applied", || world.unapplied(participant) == 0);
    }

    let (logs, rows) = check::everything(&world);
    let stories = logs.stories();
    for line in lines.values() {
        for txid in line {
            assert_eq!(stories[txid].verdict(), Some("commit"), "{txid}: {:?}", stories[txid].noes());
        }
        for pair in line.windows(2) {
            let [before, after] = [&stories[&pair[0]], &stories[&pair[1]]];
            starts_when_the_one_before_is_decided(before, after);
            takes_effect_behind(before, after, &rows);
        }
    }
    crew.terminate();
}

/// By the brokers' clocks, which are one here.
fn starts_when_the_one_before_is_decided(before: &Story, after: &Story) {
    let decided = before.decisions.iter().map(|decision| decision.timestamp_ms).min().expect("a decision");
    for (participant, prepares) in &after.prepares {
        let asked = prepares.iter().map(|prepare| prepare.timestamp_ms).min().expect("a prepare");
        assert!(asked >= decided, "{participant} was asked for {} before {} was decided", after.txid, before.txid);
    }
}

/// By each database's own clock.
fn takes_effect_behind(before: &Story, after: &Story, rows: &Rows) {
    for participant in PARTICIPANTS {
        let [before, after] = [before, after].map(|story| &rows.of(participant).ledger[&story.txid].changed_at);
        assert!(before <= after, "{participant}: {before} is later than {after}");
    }
}
