//! NO SECRETS: who the patients are stands in the requests, in the hospital's prepares and in the hospital's database, and
//! nowhere else: in no other topic, no process log, no other organisation's database.

use std::collections::BTreeSet;

use crate::feed::samples;
use crate::logs::Logs;
use crate::rows::Rows;
use crate::world::{PARTICIPANTS, World};

/// The topics that carry what the hospital knows.
const OF_THE_HOSPITAL: [&str; 2] = ["requests", "prepare.hospital"];

/// Shorter words are found in anything.
const SHORTEST_NAME: usize = 3;

/// Looks for every patient of the samples.
pub fn stay_at_the_hospital(world: &World, logs: &Logs, rows: &Rows) {
    let patients = Patients::of_the_samples();
    let told = |entry: &crate::logs::Entry| {
        let (key, value) = (String::from_utf8_lossy(&entry.key), entry.value.as_deref().unwrap_or_default());
        patients.found_in(&key).or_else(|| patients.found_in(&String::from_utf8_lossy(value)))
    };
    for topic in logs.topics() {
        let found = logs.topic(topic).iter().find(|entry| told(entry).is_some());
        if OF_THE_HOSPITAL.contains(&topic) {
            assert!(found.is_some() || logs.topic(topic).is_empty(), "the search finds nobody in {topic} either");
        } else {
            assert_eq!(found.map(|entry| &entry.place), None, "a patient stands in {topic}");
        }
    }
    for (process, log) in world.process_logs() {
        let line = log.lines().find(|line| patients.found_in(line).is_some());
        assert_eq!(line, None, "a patient stands in the log of {process}");
    }
    for participant in PARTICIPANTS.iter().filter(|participant| **participant != "hospital") {
        let contents = rows.of(participant);
        let business = contents.business.iter().map(|row| row.fields.to_string());
        let reference = contents.reference.values().flatten().map(ToString::to_string);
        let ledger = contents.ledger.iter().map(|(txid, row)| format!("{txid} {:?} {:?}", row.business_key, row.code));
        let row = business.chain(reference).chain(ledger).find(|row| patients.found_in(row).is_some());
        assert_eq!(row, None, "a patient stands in the database of {participant}");
    }
}

struct Patients {
    /// Family and given names, word by word.
    names: BTreeSet<String>,
    /// Record numbers, social security numbers, any other identifier, and the numbers of their cases.
    numbers: BTreeSet<String>,
}

impl Patients {
    fn of_the_samples() -> Self {
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for sample in samples() {
            for entry in sample.event["entry"].as_array().expect("entries") {
                let resource = &entry["resource"];
                let list = |field: &str| resource[field].as_array().cloned().unwrap_or_default();
                match resource["resourceType"].as_str() {
                    Some("Patient") => {
                        for name in list("name") {
                            let given = name["given"].as_array().cloned().unwrap_or_default();
                            let all = given.iter().chain([&name["family"]]).filter_map(|part| part.as_str());
                            names.extend(all.flat_map(words).map(str::to_string));
                        }
                        let text = |value: &serde_json::Value| value.as_str().expect("text").to_string();
                        numbers.extend(list("identifier").iter().map(|identifier| text(&identifier["value"])));
                    }
                    Some("Encounter") => numbers.extend(resource["id"].as_str().map(str::to_string)),
                    _ => {}
                }
            }
        }
        names.retain(|name| name.len() >= SHORTEST_NAME);
        assert!(names.len() > 100 && numbers.len() > 300, "{} names, {} numbers", names.len(), numbers.len());
        Self { names, numbers }
    }

    fn found_in(&self, text: &str) -> Option<String> {
        let name = words(text).find(|word| self.names.contains(*word)).map(str::to_string);
        name.or_else(|| self.numbers.iter().find(|number| text.contains(number.as_str())).cloned())
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric())
}
