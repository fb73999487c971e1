//! What was aborted is asked for again: by ingest, when the insurer was only away; by a person, when the cause had to be
//! mended first. Each surgery takes effect once, in all three databases, also when its event is delivered again meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use crate::check;
use crate::feed::{Place, Sample, samples};
use crate::logs::{Logs, Story};
use crate::oracle::{self, Expected};
use crate::rows::{self, Rows};
use crate::world::{Options, PARTICIPANTS, World, succeeds};

/// Long enough for whoever is there.
const SHORT_MS: u64 = 10_000;

#[test]
fn what_an_absent_insurer_lets_expire_is_driven_again_until_it_is_back() {
    let all = samples();
    let surgeries: Vec<Sample> =
        all.iter().filter(|sample| oracle::commits_in_all_three(sample, &all)).take(12).cloned().collect();
    let expected = oracle::expect_of(&surgeries, &all);
    // More often than by default: however slow the machine is, the insurer is back before people are asked.
    let options = Options { deadline_ms: SHORT_MS, retry_after_ms: &[500; 10], ..Options::default() };
    let world = World::start(&options);
    let mut present = [
        world.participant("hospital"),
        world.participant("surgeon-log"),
        world.service("coordinator", &["coordinator"]),
        world.service("ingest", &["ingest"]),
    ];
    let mut feed = world.feed();
    let fed = feed.feed(&surgeries);
    world.wait_for_logs("all have expired once", |logs| {
        let expired = attempts(logs, &fed)
            .into_values()
            .filter(|of_event| of_event.first().is_some_and(|story| !story.outcomes.is_empty()));
        expired.count() == fed.len()
    });
    for of_event in attempts(&world.follower.now(), &fed).values() {
        let first = &of_event[0].outcomes[0];
        assert_eq!(first.text("outcome"), "abort", "{}", of_event[0].txid);
        assert_eq!(first.json.as_ref().expect("JSON")["retryable"], true, "{}", of_event[0].txid);
    }
    // The same events once more, and whatever drives again is killed.
    let delivered_again = feed.feed(&surgeries);
    present[3].kill();
    present[3].start_again();
    let mut insurer = world.participant("insurer");
    world.wait_for_logs("each has committed", |logs| {
        let fed = attempts(logs, &[fed.clone(), delivered_again.clone()].concat());
        by_key(fed).values().all(|of_key| committed(of_key).count() == 1)
    });
    world.wait_until("nothing waits to be asked for again", || nothing_waits(&world));
    world.wait_for_the_end(&[fed.clone(), delivered_again.clone()].concat());

    let (logs, rows) = check::everything(&world);
    oracle::verify_rows(&expected, &rows);
    for of_key in by_key(attempts(&logs, &[fed, delivered_again].concat())).values() {
        let [story] = committed(of_key).collect::<Vec<_>>()[..] else { panic!("one of them takes effect") };
        assert!(attempt(story) >= 2, "{} could not have been the first", story.txid);
        same_but_for_the_attempt(of_key);
        in_all_three(story, &rows);
    }
    let driven_again = logs.stories().into_values().find(|story| attempt(story) == 2).expect("each was");
    let told = succeeds(&world.suture(&["tx", "show", &driven_again.txid]));
    assert!(told.contains("asked again   after ") && told.contains(", by ingest: "), "{told}");
    for process in present.iter_mut().chain([&mut insurer]) {
        let status = process.terminate();
        assert!(status.success(), "{} drained with {status}", process.name());
    }
}

#[test]
fn a_person_asks_again_when_the_cause_was_mended() {
    let all = samples();
    let limited = all.iter().find(|sample| refused_by_the_limit_alone(sample, &all)).expect("one of 125");
    let good = all.iter().find(|sample| oracle::commits_in_all_three(sample, &all)).expect("one of 125");
    let world = World::start(&Options { retry_after_ms: &[200, 200, 200], ..Options::default() });
    let mut crew = world.crew();
    let mut feed = world.feed();
    let fed = feed.feed([limited, good]);
    world.wait_for_the_end(&fed);
    let of_event = |place: &Place| attempts(&world.follower.to_the_ends(), std::slice::from_ref(place)).remove(place);
    let first = &of_event(&fed[0]).expect("asked for")[0];
    let done = &of_event(&fed[1]).expect("asked for")[0];
    // Whoever saw the decision before the prepare says `aborted`.
    let mut noes = first.noes();
    noes.retain(|_, code| code != "aborted");
    assert_eq!(noes, BTreeMap::from([("insurer".to_string(), "LIMIT".to_string())]));
    let retry =
        |txid: &str| world.suture(&["tx", "retry", txid, "--because", "limit raised, ticket 4711", "--who", "maria"]);
    let refused = |txid: &str, why: &str| {
        let output = retry(txid);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{why}: {said}");
    };
    refused(&done.txid, "took effect: there is nothing to ask for again");
    let (log_and_shard, _) = first.txid.rsplit_once('-').expect("a txid");
    refused(&format!("{log_and_shard}-999999"), "there is no such transaction");
    refused(&format!("zzzzz{}", &first.txid[5..]), "of another requests topic");
    let output = world.suture(&["tx", "retry", &first.txid, "--because", " "]);
    assert!(!output.status.success(), "a reason is a must");

    // Mended. The insurer is away for a moment, so that the second attempt stays under way.
    let mend = "update coverage set limit_minor = 1000000000 where limit_minor = 100";
    rows::execute_on_mariadb(world.mariadb("insurer"), mend);
    let status = crew.insurer.terminate();
    assert!(status.success(), "{status}");
    let said = succeeds(&retry(&first.txid));
    let second = said.strip_prefix("asked for again as ").and_then(|said| said.split_once(", attempt 2;"));
    let second = second.unwrap_or_else(|| panic!("{said}")).0.to_string();
    world.wait_for_logs("the others have voted", |logs| {
        let votes = ["votes.hospital", "votes.surgeon-log"].map(|topic| logs.topic(topic));
        votes.iter().all(|votes| votes.iter().any(|vote| vote.text("txid") == second))
    });
    refused(&first.txid, &format!("the same is under way as {second}"));
    refused(&second, "is not decided yet");
    let delivered_again = feed.feed([limited]);
    world.wait_for_logs("the second delivery has ended", |logs| logs.not_ended(&delivered_again).is_empty());
    crew.insurer.start_again();
    world.wait_for_logs("it has committed", |logs| logs.stories()[&second].verdict() == Some("commit"));
    world.wait_until("nothing waits to be asked for again", || nothing_waits(&world));
    world.wait_for_the_end(&[fed.clone(), delivered_again.clone()].concat());

    let (logs, rows) = check::everything(&world);
    let of_key = by_key(attempts(&logs, &[fed[0].clone(), delivered_again[0].clone()]));
    assert_eq!(of_key.len(), 1, "one and the same thing");
    let of_key = of_key.into_values().next().expect("one");
    same_but_for_the_attempt(&of_key);
    let committed: Vec<&Story> = committed(&of_key).collect();
    assert_eq!(committed.iter().map(|story| story.txid.as_str()).collect::<Vec<_>>(), [second.as_str()]);
    in_all_three(committed[0], &rows);
    refused(&first.txid, &format!("took effect as {second}"));
    refused(&second, "took effect");

    let told = succeeds(&world.suture(&["tx", "show", &second]));
    let remark = format!("asked again   after {}, by maria: limit raised, ticket 4711", first.txid);
    assert!(told.contains(&remark) && told.contains("(attempt 2)"), "{told}");
    let Expected::Case(case) = &oracle::expect_of(std::slice::from_ref(limited), &all)[0] else { panic!("a case") };
    for secret in [&case.number, &case.patient] {
        assert!(
            !told.contains(secret.as_str()) && !said.contains(secret.as_str()),
            "{secret} stands in:\n{told}{said}"
        );
    }
    crew.terminate();
}

/// All that was asked for because of each of these events, in the order of their attempts.
fn attempts(logs: &Logs, fed: &[Place]) -> BTreeMap<Place, Vec<Story>> {
    let mut attempts: BTreeMap<Place, Vec<Story>> = BTreeMap::new();
    for story in logs.stories().into_values() {
        if let Some(source) = story.source().filter(|source| fed.contains(source)) {
            attempts.entry(source).or_default().push(story);
        }
    }
    attempts.values_mut().for_each(|of_event| of_event.sort_by_key(attempt));
    attempts
}

fn by_key(attempts: BTreeMap<Place, Vec<Story>>) -> BTreeMap<String, Vec<Story>> {
    let mut keys: BTreeMap<String, Vec<Story>> = BTreeMap::new();
    for story in attempts.into_values().flatten() {
        let key = story.request_json()["business_key"].as_str().expect("text").to_string();
        keys.entry(key).or_default().push(story);
    }
    keys
}

fn attempt(story: &Story) -> u64 {
    story.request_json()["attempt"].as_u64().expect("a number")
}

fn committed(of_key: &[Story]) -> impl Iterator<Item = &Story> {
    of_key.iter().filter(|story| story.verdict() == Some("commit"))
}

/// The same key, shard, branches and hash in each attempt.
fn same_but_for_the_attempt(of_key: &[Story]) {
    let rest = |story: &Story| {
        let mut request = story.request_json().clone();
        let fields = request.as_object_mut().expect("an object");
        fields.remove("attempt");
        // Each delivery of the event names its own place.
        fields.remove("source");
        let entry = story.request.as_ref().expect("a request");
        (request.to_string(), entry.key.clone(), entry.place.partition)
    };
    let distinct: BTreeSet<_> = of_key.iter().map(rest).collect();
    assert_eq!(distinct.len(), 1, "{distinct:?}");
}

fn in_all_three(story: &Story, rows: &Rows) {
    for participant in PARTICIPANTS {
        assert!(rows.of(participant).txids().contains(story.txid.as_str()), "{} at {participant}", story.txid);
    }
}

/// The group that drives again has settled all outcomes there are.
fn nothing_waits(world: &World) -> bool {
    let topic = world.topic("outcomes");
    let partitions: Vec<_> = (0..i32::from(world.kafka.partitions)).map(|of| (topic.as_str(), of)).collect();
    let mut offsets = suture_topics::acks::GroupOffsets::new(&world.kafka);
    let Ok(committed) = offsets.committed(&format!("{}.retry", world.prefix), &partitions) else { return false };
    partitions.iter().zip(committed).all(|((topic, partition), committed)| {
        let end = world.follower.end(topic, *partition);
        end.is_some() && committed.map(|committed| committed.offset) == end
    })
}

fn refused_by_the_limit_alone(sample: &Sample, all: &[Sample]) -> bool {
    let Expected::Case(case) = &oracle::expect_of(std::slice::from_ref(sample), all)[0] else { return false };
    case.noes == BTreeMap::from([("insurer", "LIMIT")])
}
