//! What an operator sees with the tools that he has: kcat, Kafka's own commands, and `suture` itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::check;
use crate::feed::{Sample, samples};
use crate::logs::Logs;
use crate::world::{Options, PARTICIPANTS, World, succeeds};

/// Short, so that what waits for an absent participant ends soon.
const DEADLINE_MS: u64 = 20_000;

#[test]
fn an_operator_sees_everything_with_the_usual_tools() {
    let samples = samples();
    let (before, meanwhile) = samples.split_at(100);
    let world = World::start(&Options { deadline_ms: DEADLINE_MS, ..Options::default() });
    let mut crew = world.crew();
    let mut feed = world.feed();
    let fed = feed.feed(before);
    world.wait_for_the_end(&fed);
    let (logs, _) = check::everything(&world);

    messages_are_readable_lines(&world, &logs);
    topics_are_as_declared(&world);
    no_group_lags(&world);

    // One participant away: its lag is what it has not applied.
    let status = crew.insurer.terminate();
    assert!(status.success(), "{status}");
    let late = feed.feed(meanwhile);
    world.wait_for_logs("the other events have ended", |logs| logs.not_ended(&late).is_empty());
    for participant in ["hospital", "surgeon-log"] {
        world.wait_until(&format!("{participant} has applied them"), || world.unapplied(participant) == 0);
    }
    lag_is_what_is_not_applied(&world, logs.topic("decisions").len());
    crew.insurer.start_again();
    world.wait_for_the_end(&late);
    no_group_lags(&world);
    let (logs, _) = check::everything(&world);

    let places = [fed, late].concat();
    let stories = logs.stories();
    for verdict in ["commit", "abort"] {
        let story = stories.values().find(|story| story.verdict() == Some(verdict)).expect("some of both");
        let source = story.source().expect("an upstream event");
        let sample = &samples[places.iter().position(|place| *place == source).expect("one of ours")];
        story_is_told(&world, &story.txid, &source.to_string(), verdict, sample);
    }
    what_is_not_there_is_told(&world, &stories.values().next().expect("a story").txid);
    crew.terminate();
    let secrets: BTreeSet<String> = samples.iter().flat_map(secrets).collect();
    for process in crew.all() {
        nothing_of(&secrets, process.name(), &process.log());
    }
}

/// Text keys, one line of JSON each, the type repeated in a header.
fn messages_are_readable_lines(world: &World, logs: &Logs) {
    let votes = PARTICIPANTS.map(|participant| format!("votes.{participant}"));
    let kinds = votes.iter().map(|topic| (topic.as_str(), "vote"));
    for (topic, kind) in kinds.chain([("requests", "request"), ("decisions", "decision")]) {
        let printed = world.cluster.kcat(&["-C", "-e", "-q", "-t", &world.topic(topic), "-f", "%k\t%h\t%s\n"]);
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines.len(), logs.topic(topic).len(), "a line for each record of {topic}");
        for line in lines {
            let parts: Vec<&str> = line.splitn(3, '\t').collect();
            let [key, headers, value] = parts.as_slice() else { panic!("{topic}: {line}") };
            assert!(!key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic()), "{topic}: key {key}");
            assert!(headers.contains(&format!("type={kind}")), "{topic}: headers {headers}");
            let value: Value = serde_json::from_str(value).unwrap_or_else(|error| panic!("{topic}: {error}: {value}"));
            assert_eq!(value["type"], kind, "{topic}");
            let is_keyed_by_txid = kind == "request" || value["txid"] == *key;
            assert!(is_keyed_by_txid, "{topic}: {key}");
        }
    }
}

fn topics_are_as_declared(world: &World) {
    let settings = |topic: &str| {
        let topic = world.topic(topic);
        world.cluster.tool("ConfigCommand", &["--describe", "--entity-type", "topics", "--entity-name", &topic])
    };
    assert!(settings("decisions").contains("cleanup.policy=compact"), "{}", settings("decisions"));
    assert!(settings("votes.insurer").contains("cleanup.policy=delete"), "{}", settings("votes.insurer"));
    let shape = world.cluster.tool("TopicCommand", &["--describe", "--topic", &world.topic("decisions")]);
    let shape: String = shape.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(shape.contains("PartitionCount: 12 ReplicationFactor: 3"), "{shape}");

    let checked = succeeds(&world.suture(&["topics", "check"]));
    for topic in ["requests", "prepare.insurer", "votes.insurer", "decisions", "outcomes", "rejected"] {
        assert!(checked.contains(&world.topic(topic)), "{topic} is missing in:\n{checked}");
    }
}

/// A partition as Kafka's consumer-groups tool shows it.
#[derive(Debug)]
struct Partition {
    topic: String,
    partition: i32,
    committed: Option<u64>,
    end: u64,
    lag: Option<u64>,
}

/// Group -> what it reads.
fn groups(world: &World) -> BTreeMap<String, Vec<Partition>> {
    let shown = world.cluster.tool("ConsumerGroupCommand", &["--describe", "--all-groups"]);
    let mut groups: BTreeMap<String, Vec<Partition>> = BTreeMap::new();
    for line in shown.lines() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [group, topic, partition, committed, end, lag, ..] = columns.as_slice() else { continue };
        if let Some(group) = group.strip_prefix(&format!("{}.", world.prefix)) {
            groups.entry(group.to_string()).or_default().push(Partition {
                topic: (*topic).to_string(),
                partition: partition.parse().expect("a partition"),
                committed: committed.parse().ok(),
                end: end.parse().expect("an end"),
                lag: lag.parse().ok(),
            });
        }
    }
    groups
}

pub fn no_group_lags(world: &World) {
    let mut shown = BTreeMap::new();
    // The coordinator's position follows a moment later.
    world.wait_until("no group lags", || {
        shown = groups(world);
        shown.values().flatten().all(|partition| partition.lag == Some(0))
    });
    let names: Vec<&str> = shown.keys().map(String::as_str).collect();
    let participants = ["participant.hospital", "participant.insurer", "participant.surgeon-log"];
    assert_eq!(names, [["coordinator", "ingest"].as_slice(), &participants].concat());
    let reads = |group: &str, topic: &str| {
        let topic = world.topic(topic);
        shown[group].iter().filter(|partition| partition.topic == topic).count()
    };
    assert_eq!(shown["ingest"].iter().filter(|partition| partition.topic == world.upstream).count(), 3);
    assert_eq!(reads("coordinator", "requests"), 12);
    for participant in PARTICIPANTS {
        let group = format!("participant.{participant}");
        assert_eq!((reads(&group, "decisions"), reads(&group, &format!("prepare.{participant}"))), (12, 12));
    }
}

/// The lag of the participant that is away: the decisions that were appended since, partition by partition.
fn lag_is_what_is_not_applied(world: &World, decisions_before: usize) {
    let logs = world.follower.to_the_ends();
    let (topic, shown) = (world.topic("decisions"), groups(world));
    let mut lag = 0;
    for partition in shown["participant.insurer"].iter().filter(|partition| partition.topic == topic) {
        let committed = partition.committed.unwrap_or(0);
        let of_partition = logs.topic("decisions").iter().filter(|entry| entry.place.partition == partition.partition);
        let beyond = of_partition.filter(|entry| entry.place.offset >= committed).count() as u64;
        assert_eq!(partition.lag, Some(beyond), "{partition:?}");
        assert_eq!(partition.end - committed, beyond, "{partition:?}");
        lag += beyond;
    }
    assert!(lag > 0, "something was decided meanwhile");
    assert_eq!(lag, (logs.topic("decisions").len() - decisions_before) as u64, "decided since it went away");
    for others in ["participant.hospital", "participant.surgeon-log"] {
        let decisions = shown[others].iter().filter(|partition| partition.topic == topic);
        assert!(decisions.clone().all(|partition| partition.lag == Some(0)), "{others}: {shown:?}");
    }
}

/// By its name, by its event and by its case the same story, and nothing clinical in it.
fn story_is_told(world: &World, txid: &str, source: &str, verdict: &str, sample: &Sample) {
    let case = resources(&sample.event, "Encounter")[0]["id"].as_str().expect("a case number").to_string();
    let told = succeeds(&world.suture(&["tx", "show", txid]));
    for part in [txid, source, "hospital", "surgeon-log", "applied", "decision", &format!("{verdict} at offset")] {
        assert!(told.contains(part), "{part} is missing in:\n{told}");
    }
    assert!(!told.contains("not yet"), "all have applied it:\n{told}");
    assert_eq!(succeeds(&world.suture(&["tx", "show", source])), told, "by its event");
    assert_eq!(succeeds(&world.suture(&["tx", "show", "--case", &case])), told, "by its case");
    nothing_of(&secrets(sample), txid, &told);
    assert!(!told.contains(&case), "the case number stands in:\n{told}");
}

/// Whoever asks for a transaction that there is not is told which part of its name is wrong.
fn what_is_not_there_is_told(world: &World, txid: &str) {
    let (upstream, log) = (&world.upstream, txid.split('-').next().expect("letters"));
    for (what, says) in [
        ("nosuch/0/1".to_string(), "there is no topic nosuch"),
        (format!("{upstream}/77/0"), "there is no partition 77"),
        (format!("{upstream}/0/999999"), "does not exist: the next record"),
        (format!("{log}-77-1"), "there is no partition 77"),
        (format!("{log}-3-999999"), "does not exist: the next record"),
    ] {
        let output = world.suture(&["tx", "show", &what]);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && told.contains(says), "{what}: {told}");
    }
}

fn nothing_of(secrets: &BTreeSet<String>, what: &str, text: &str) {
    assert!(!text.is_empty(), "{what} said nothing");
    let found: Vec<_> = secrets.iter().filter(|secret| text.contains(secret.as_str())).collect();
    assert!(found.is_empty(), "{what} tells {found:?}");
}

/// What identifies the patient, and what he has. A very short text may stand anywhere by chance.
fn secrets(sample: &Sample) -> BTreeSet<String> {
    let mut texts = BTreeSet::new();
    for patient in resources(&sample.event, "Patient") {
        for part in ["id", "birthDate", "telecom"] {
            collect_texts(&patient[part], &mut texts);
        }
        for name in patient["name"].as_array().into_iter().flatten() {
            collect_texts(&name["family"], &mut texts);
            collect_texts(&name["given"], &mut texts);
        }
        for address in patient["address"].as_array().into_iter().flatten() {
            collect_texts(&address["line"], &mut texts);
        }
        for identifier in patient["identifier"].as_array().into_iter().flatten() {
            collect_texts(&identifier["value"], &mut texts);
        }
    }
    for condition in resources(&sample.event, "Condition") {
        collect_texts(&condition["code"]["text"], &mut texts);
        for coding in condition["code"]["coding"].as_array().into_iter().flatten() {
            collect_texts(&coding["display"], &mut texts);
        }
    }
    texts.retain(|text| text.len() > 5 && !["mobile", "official"].contains(&text.as_str()));
    assert!(texts.len() > 3, "{texts:?}");
    texts
}

fn resources<'a>(event: &'a Value, kind: &str) -> Vec<&'a Value> {
    let entries = event["entry"].as_array().expect("entries").iter().map(|entry| &entry["resource"]);
    entries.filter(|resource| resource["resourceType"] == kind).collect()
}

fn collect_texts(value: &Value, texts: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => drop(texts.insert(text.clone())),
        Value::Array(items) => items.iter().for_each(|item| collect_texts(item, texts)),
        Value::Object(fields) => fields.values().for_each(|field| collect_texts(field, texts)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
