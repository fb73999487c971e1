//! Somebody works on the databases by hand: rolls a prepared branch back, deletes a ledger row; and somebody writes into the
//! decision log. Each stops one shard at one participant (the last one that shard at all of them), everything else goes on. An
//! operator lists what was lost, says what became of it, and the shards go on without a restart.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::feed::{Place, Sample, samples};
use crate::logs::{Logs, Story};
use crate::oracle::{self, Expected};
use crate::process::Process;
use crate::world::{Options, PARTICIPANTS, World, succeeds};
use crate::{check, rows};

/// Nothing expires, however busy the machine is.
const DEADLINE_MS: u64 = 600_000;

/// So few that some shards have none of them.
const EVENTS: usize = 7;

const BECAUSE: &str = "found and mended, ticket 4711";

#[test]
fn what_is_lost_stops_its_shard_until_an_operator_says_what_became_of_it() {
    let chosen = chosen();
    let world = World::start(&Options { deadline_ms: DEADLINE_MS, ..Options::default() });
    let mut feed = world.feed();
    let mut coordinator = world.service("coordinator", &["coordinator"]);
    let mut ingest = world.service("ingest", &["ingest"]);
    let (mut hospital, mut insurer) = (world.participant("hospital"), world.participant("insurer"));

    // Nothing is decided while the third participant is away.
    let fed = feed.feed(&chosen);
    let stories = wait_for_votes(&world, &fed);
    let lost = &stories[0];
    let forgotten = stories.iter().find(|story| story.shard() != lost.shard()).expect("another shard");
    let gids = rows::prepared(world.postgres("hospital"));
    let gid = gids.iter().find(|gid| gid.starts_with(&format!("{}/", lost.txid))).expect("it is prepared");
    rows::execute(world.postgres("hospital"), &format!("rollback prepared '{gid}'")).unwrap();
    let deletes = format!("delete from suture_ledger where txid = '{}'", forgotten.txid);
    rows::execute_on_mariadb(world.mariadb("insurer"), &deletes);

    // Noticed at once, long before the decision.
    for (participant, story) in [("hospital", lost), ("insurer", forgotten)] {
        let what = format!("{participant} tells that {} was finished by hand", story.txid);
        world.wait_for_logs(&what, |logs| told(logs, participant, "finished_by_hand", &story.txid).is_some());
        let listed = listed(&world, participant);
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!((&listed[0]["open"], &listed[0]["incident"]["settled"]), (&false.into(), &"rolled_back".into()));
    }

    let used: BTreeSet<i32> = stories.iter().filter_map(Story::shard).collect();
    let broken = (0..i32::from(world.kafka.partitions)).find(|shard| !used.contains(shard)).expect("an unused shard");
    let decisions = world.topic("decisions");
    let broken_offset = feed.append(&decisions, broken, b"x", Some(b"{"));
    let mut surgeon_log = world.participant("surgeon-log");
    for participant in PARTICIPANTS {
        let what = format!("{participant} stops in front of what it cannot read");
        world.wait_until(&what, || {
            listed(&world, participant).iter().any(|line| line["incident"]["what"] == "unreadable")
        });
    }
    for (participant, story) in [("hospital", lost), ("insurer", forgotten)] {
        world.wait_for_logs(&format!("{participant} has lost {}", story.txid), |logs| {
            told(logs, participant, "lost", &story.txid).is_some()
        });
    }

    // All other shards go on.
    let stops = |participant: &str, shard: i32| {
        shard == broken
            || (participant == "hospital" && Some(shard) == lost.shard())
            || (participant == "insurer" && Some(shard) == forgotten.shard())
    };
    world.wait_for_logs("all have ended", |logs| logs.not_ended(&fed).is_empty());
    for participant in PARTICIPANTS {
        let others = || (0..i32::from(world.kafka.partitions)).filter(|shard| !stops(participant, *shard));
        world.wait_until("all others are applied", || world.unapplied_on(participant, others()) == 0);
    }
    assert_ne!(world.unapplied_on("hospital", lost.shard()), 0, "not acknowledged");
    assert_ne!(world.unapplied_on("insurer", forgotten.shard()), 0, "not acknowledged");
    let alarms = |process: &Process| process.log().lines().filter(|line| line.contains("LOST")).count();
    assert_eq!((alarms(&hospital), alarms(&insurer), alarms(&surgeon_log)), (1, 1, 0), "one alarm each");
    let shown = succeeds(&world.suture(&["participant", "hospital", "lost"]));
    for part in ["lost", &lost.txid, "commit", &format!("participant hospital resolve {}", lost.txid), "--offset"] {
        assert!(shown.contains(part), "{part} is missing in:\n{shown}");
    }

    nothing_else_may_be_said(&world, lost, &decisions);

    // By hand what the branch would have done; undone by hand what the other one has reserved.
    rows::execute(world.postgres("hospital"), &effect(lost)).unwrap();
    undo_reservation(&world, forgotten);
    says(&world, "hospital", &["resolve", &lost.txid, "--as", "committed"]);
    says(&world, "insurer", &["resolve", &forgotten.txid, "--as", "abandoned"]);
    let offset = broken_offset.to_string();
    for participant in PARTICIPANTS {
        let place = ["skip", "--topic", &decisions, "--shard", &broken.to_string(), "--offset", &offset];
        says(&world, participant, &place);
    }
    for participant in PARTICIPANTS {
        world.wait_until(&format!("{participant} goes on"), || world.unapplied(participant) == 0);
        assert!(listed(&world, participant).iter().all(|line| line["open"] == false));
    }

    // The rows, the records, the story.
    let (logs, found) = check::shards(&world, |shard| Some(shard) != forgotten.shard() && shard != broken);
    let count =
        |participant: &str, txid: &str| found.of(participant).business.iter().filter(|row| row.txid == txid).count();
    assert_eq!((count("hospital", &lost.txid), found.of("hospital").state(&lost.txid)), (2, Some("committed")));
    assert_eq!((count("insurer", &forgotten.txid), found.of("insurer").state(&forgotten.txid)), (0, Some("abandoned")));
    assert_eq!((count("insurer", &lost.txid), count("hospital", &forgotten.txid)), (1, 2), "as everywhere else");
    for (participant, story, settled) in [("hospital", lost, "committed"), ("insurer", forgotten, "abandoned")] {
        world.wait_for_logs("it is told", |logs| told(logs, participant, "resolved", &story.txid).is_some());
        let logs = world.follower.now();
        let resolved = told(&logs, participant, "resolved", &story.txid).expect("it is told");
        let said = ["settled", "who", "because"].map(|field| resolved[field].as_str().unwrap_or_default());
        assert_eq!(said, [settled, "maria", BECAUSE]);
        let shown = succeeds(&world.suture(&["tx", "show", &story.txid]));
        let line = format!("resolved as {settled} by maria ({BECAUSE})");
        assert!(shown.contains(&line), "{line} is missing in:\n{shown}");
        assert!(shown.contains("applied"), "{shown}");
    }
    assert_eq!(told_of(&logs, "skipped").count(), PARTICIPANTS.len());

    for process in [&mut ingest, &mut hospital, &mut insurer, &mut surgeon_log] {
        let status = process.terminate();
        assert!(status.success(), "{} drained with {status}: nothing stands still any more", process.name());
    }
    assert!(!coordinator.terminate().success(), "nobody has told the coordinator to pass it");
}

/// Surgeries that commit, whatever else happens, and name all three.
fn chosen() -> Vec<Sample> {
    let samples = samples();
    let is_chosen = |expected: &Expected| matches!(expected, Expected::Case(case) if case.must_commit() && case.participants.len() == 3);
    let expected = oracle::expect(&samples);
    let chosen = samples.into_iter().zip(expected).filter(|(_, expected)| is_chosen(expected));
    chosen.map(|(sample, _)| sample).take(EVENTS).collect()
}

/// The transactions of these events, once the two that are there have said yes to all.
fn wait_for_votes(world: &World, fed: &[Place]) -> Vec<Story> {
    let mut stories = Vec::new();
    world.wait_for_logs("hospital and insurer have voted", |logs| {
        stories = logs.stories().into_values().collect();
        let votes = stories.iter().filter(|story| {
            let says_yes = |participant| story.register(participant).is_some_and(|vote| vote.text("vote") == "yes");
            says_yes("hospital") && says_yes("insurer")
        });
        votes.count() == fed.len()
    });
    stories
}

/// What `lost --json` lists.
fn listed(world: &World, participant: &str) -> Vec<Value> {
    let shown = succeeds(&world.suture(&["participant", participant, "lost", "--json"]));
    shown.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn told_of<'a>(logs: &'a Logs, what: &'a str) -> impl Iterator<Item = &'a Value> {
    let incidents = logs.topic("outcomes").iter().filter(|entry| entry.text("type") == "incident");
    incidents.filter_map(|entry| entry.json.as_ref()).filter(move |json| json["what"] == what)
}

fn told<'a>(logs: &'a Logs, participant: &str, what: &'a str, txid: &str) -> Option<&'a Value> {
    told_of(logs, what).find(|json| json["participant"] == participant && json["txid"] == txid)
}

fn says(world: &World, participant: &str, words: &[&str]) {
    let who = ["--because", BECAUSE, "--who", "maria"];
    let said = succeeds(&world.suture(&[&["participant", participant], words, &who].concat()));
    assert!(said.contains("by your word"), "{said}");
}

/// What is no loss here, what decides about a branch, and what nobody stopped at.
fn nothing_else_may_be_said(world: &World, lost: &Story, decisions: &str) {
    let logs = world.follower.to_the_ends();
    let decision = &logs.stories()[&lost.txid].decisions[0].place;
    let (shard, offset) = (decision.partition.to_string(), decision.offset.to_string());
    let elsewhere = world.topic("votes.hospital");
    for (participant, words, why) in [
        (
            "insurer",
            vec!["resolve", &lost.txid, "--as", "committed"],
            "no shard of insurer stopped for that, and its row is there",
        ),
        ("hospital", vec!["skip", "--topic", decisions, "--shard", &shard, "--offset", &offset], "is the decision of"),
        (
            "hospital",
            vec!["skip", "--topic", decisions, "--shard", &shard, "--offset", "999999"],
            "there is no such record",
        ),
        ("hospital", vec!["skip", "--topic", &elsewhere, "--shard", "0", "--offset", "0"], "stops at records of"),
    ] {
        let words = [&["participant", participant], words.as_slice(), &["--because", BECAUSE]].concat();
        let output = world.suture(&words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{words:?}: {said}");
    }
}

/// The rows of the hospital's operation, from what it was asked for.
fn effect(story: &Story) -> String {
    let prepare = story.prepares["hospital"][0].json.as_ref().expect("JSON");
    let (txid, payload) = (&story.txid, prepare["payload"].to_string());
    format!(
        "begin;
         insert into encounter (case_id, patient_system, patient_value, class, status, start_at, end_at, txid)
         select p ->> 'case', p #>> '{{patient,system}}', p #>> '{{patient,value}}', p ->> 'class', p ->> 'status',
                (p ->> 'start')::timestamptz, (p ->> 'end')::timestamptz, '{txid}' from (select $payload${payload}$payload$::jsonb) t (p);
         insert into surgery (case_id, surgeon_system, surgeon_value, code_system, code, first_start, last_end, procedures, txid)
         select p ->> 'case', p #>> '{{surgeon,system}}', p #>> '{{surgeon,value}}', p #>> '{{code,system}}', p #>> '{{code,code}}',
                (p ->> 'first_start')::timestamptz, (p ->> 'last_end')::timestamptz, p -> 'procedures', '{txid}'
         from (select $payload${payload}$payload$::jsonb) t (p);
         commit"
    )
}

/// As the operation's own cancel steps do it.
fn undo_reservation(world: &World, story: &Story) {
    let txid = &story.txid;
    let undo = format!(
        "update coverage join claim on claim.txid = '{txid}' and coverage.member = claim.member
           and coverage.payer = claim.payer and coverage.currency = claim.currency
           and coverage.start_date = claim.coverage_start
         set reserved_minor = reserved_minor - amount_minor"
    );
    rows::execute_on_mariadb(world.mariadb("insurer"), &undo);
    rows::execute_on_mariadb(world.mariadb("insurer"), &format!("delete from claim where txid = '{txid}'"));
}
