//! The map of topics: names that come back, settings that hold together, and the documentation's table.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use suture_contract::ids::{Deployment, Participant};
use suture_contract::topic_map::{
    Rule, Topic, coordinator_group, ingest_group, markdown_table, participant_group, retry_group,
};

fn participants() -> Vec<Participant> {
    ["hospital", "surgeon-log", "insurer"].map(|name| name.parse().unwrap()).to_vec()
}

#[test]
fn names_are_unique_and_come_back() {
    let deployment: Deployment = "suture".parse().unwrap();
    let topics = Topic::all(&participants());
    assert_eq!(topics.len(), 10);
    let names: BTreeSet<String> = topics.iter().map(|topic| topic.name(&deployment)).collect();
    assert_eq!(names.len(), 10);
    for topic in topics {
        assert_eq!(Topic::parse(&topic.name(&deployment), &deployment), Some(topic));
    }
    for foreign in [
        "suture",
        "suture.",
        "suture.other",
        "suture.votes",
        "suture.votes.",
        "suture.votes.A",
        "demo.requests",
        "requests",
    ] {
        assert_eq!(Topic::parse(foreign, &deployment), None, "{foreign}");
    }
    let longer: Deployment = "suture-b".parse().unwrap();
    assert_eq!(Topic::parse("suture-b.requests", &deployment), None);
    assert_eq!(Topic::parse("suture.requests", &longer), None);
}

/// `name=value`, with `!` where a broker's other value is refused and `>` where only a smaller one is.
fn settings(topic: &Topic, replicas: i32) -> Vec<String> {
    let line = |setting: &suture_contract::topic_map::Setting| {
        let mark = match setting.rule {
            Rule::Exactly(_) => "!",
            Rule::AtLeast(_) => ">",
            Rule::Advice => "",
        };
        format!("{}={}{mark}", setting.name, setting.value)
    };
    topic.settings(replicas).iter().map(line).collect()
}

#[test]
fn the_settings_that_hold_the_protocol_together_are_these() {
    const REPLICATED: [&str; 3] =
        ["min.insync.replicas=2>", "unclean.leader.election.enable=false!", "message.timestamp.type=LogAppendTime"];
    let deleted =
        |retention: &'static str| ["cleanup.policy=delete!", retention, "retention.bytes=-1!", "segment.ms=86400000"];
    let compacted = [
        "cleanup.policy=compact!",
        "segment.ms=3600000",
        "segment.bytes=67108864",
        "min.compaction.lag.ms=86400000",
        "max.compaction.lag.ms=1209600000",
    ];
    let insurer: Participant = "insurer".parse().unwrap();
    for (topic, cleanup) in [
        (Topic::Requests, &deleted("retention.ms=604800000>")[..]),
        (Topic::Votes(insurer.clone()), &deleted("retention.ms=1209600000>")),
        (Topic::Prepare(insurer), &deleted("retention.ms=604800000")),
        (Topic::Decisions, &compacted),
    ] {
        assert_eq!(settings(&topic, 3), [cleanup, &REPLICATED].concat(), "{topic:?}");
    }
    for (replicas, in_sync) in [(1, 1), (2, 1), (3, 2), (5, 4)] {
        let wanted = format!("min.insync.replicas={in_sync}>");
        assert!(settings(&Topic::Outcomes, replicas).contains(&wanted), "{replicas} replicas");
    }
}

#[test]
fn groups_have_these_names() {
    let deployment: Deployment = "suture".parse().unwrap();
    assert_eq!(coordinator_group(&deployment), "suture.coordinator");
    assert_eq!(ingest_group(&deployment), "suture.ingest");
    assert_eq!(retry_group(&deployment), "suture.retry");
    assert_eq!(participant_group(&deployment, &"insurer".parse().unwrap()), "suture.participant.insurer");
}

#[test]
fn the_documentation_shows_this_map() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (_, rest) = text.split_once("<!-- topics -->\n").expect("the marker <!-- topics -->");
    let (table, _) = rest.split_once("<!-- /topics -->").expect("the marker <!-- /topics -->");
    assert_eq!(table.trim(), markdown_table().trim(), "put this there:\n\n{}", markdown_table());
}
