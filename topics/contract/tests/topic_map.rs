//! The map of topics: names that come back, settings that hold together, and the documentation's table.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use suture_contract::ids::{Deployment, Participant};
use suture_contract::topic_map::{Topic, markdown_table};

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

#[test]
fn the_documentation_shows_this_map() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (_, rest) = text.split_once("<!-- topics -->\n").expect("the marker <!-- topics -->");
    let (table, _) = rest.split_once("<!-- /topics -->").expect("the marker <!-- /topics -->");
    assert_eq!(table.trim(), markdown_table().trim(), "put this there:\n\n{}", markdown_table());
}
