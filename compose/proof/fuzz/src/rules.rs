//! Files of rules: compiled or refused, with a key and a text of ours; those that compile map a small event.

use suture_coordinator_core::ingest::rules::Rules;
use suture_coordinator_core::ingest::{Event, map};

use crate::KEYS;
use crate::met::Met;

/// Each is small: how long a path takes is the business of who writes it.
const EVENTS: [&str; 3] = [
    r#"{"resourceType":"Bundle","type":"transaction","id":"1","entry":[{"resource":{"resourceType":"A","id":"1"}}]}"#,
    r#"{"id":1,"a":{"value":1.5,"currency":"USD"},"b":["2020-02-29T12:00:00Z"]}"#,
    "[]",
];

/// Compiles a file.
pub fn check(input: &[u8]) -> Met {
    let mut met = Met::default();
    let Ok(toml) = std::str::from_utf8(input) else { return met };
    match Rules::parse(toml) {
        Ok(rules) => maps(rules),
        Err(error) => {
            assert_eq!(Rules::parse(toml).err().as_ref(), Some(&error));
            met.text(error.problem);
        }
    }
    met
}

fn maps(rules: Rules) {
    assert!(!rules.topics().is_empty() && !rules.participants().is_empty());
    assert!(rules.operations().len() >= rules.participants().len());
    assert!(rules.drive_again() || rules.longest_retry().is_zero());
    let rules = rules.reading("t");
    for event in EVENTS {
        let event = Event { topic: "t", partition: 0, offset: 0, value: Some(event.as_bytes()) };
        assert_eq!(format!("{:?}", map(&rules, &KEYS, &event)), format!("{:?}", map(&rules, &KEYS, &event)));
    }
}
