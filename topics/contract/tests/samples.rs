//! `samples/<topic>/*.json` are read and written again byte by byte; `samples/broken/<topic>/*` are refused, each as the
//! first part of its name says. Who changes a message adds a sample; who changes one breaks what is in the logs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use suture_contract::codec::{
    OutcomesRecord, RequestsRecord, Unreadable, VERSION, decode, decode_outcomes_record, decode_requests_record, encode,
};
use suture_contract::keys::HashKey;
use suture_contract::messages::{Decision, Prepare, Rejection, Request, Vote};

const TOPICS: [&str; 6] = ["requests", "prepare", "votes", "decisions", "outcomes", "rejected"];

/// Reads a record of a topic and writes it again.
fn read_and_write(topic: &str, value: &[u8]) -> Result<Vec<u8>, Unreadable> {
    match topic {
        "requests" => decode_requests_record(value).map(|record| match record {
            RequestsRecord::Request(request) => encode(&request),
            RequestsRecord::Cancel(cancel) => encode(&cancel),
        }),
        "prepare" => decode::<Prepare>(value).map(|message| encode(&message)),
        "votes" => decode::<Vote>(value).map(|message| encode(&message)),
        "decisions" => decode::<Decision>(value).map(|message| encode(&message)),
        "outcomes" => decode_outcomes_record(value).map(|record| match record {
            OutcomesRecord::Outcome(outcome) => encode(&outcome),
            OutcomesRecord::Incident(incident) => encode(&*incident),
        }),
        "rejected" => decode::<Rejection>(value).map(|message| encode(&message)),
        _ => panic!("no such topic: {topic}"),
    }
}

/// The files of a folder, without the line break that editors want at their end.
fn samples(folder: &str) -> BTreeMap<String, Vec<u8>> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(folder);
    let mut samples = BTreeMap::new();
    for file in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let file = file.unwrap();
        let mut value = fs::read(file.path()).unwrap();
        if value.last() == Some(&b'\n') {
            value.pop();
        }
        samples.insert(file.file_name().into_string().unwrap(), value);
    }
    assert!(!samples.is_empty(), "{}", folder.display());
    samples
}

fn sample(topic: &str, name: &str) -> Vec<u8> {
    samples(topic).remove(name).unwrap()
}

#[test]
fn every_sample_comes_back_byte_by_byte() {
    for topic in TOPICS {
        for (name, value) in samples(topic) {
            let again = read_and_write(topic, &value).unwrap_or_else(|error| panic!("{topic}/{name}: {error}"));
            assert_eq!(String::from_utf8(again), String::from_utf8(value), "{topic}/{name}");
        }
    }
}

#[test]
fn every_broken_sample_is_refused_as_its_name_says() {
    for topic in TOPICS {
        for (name, value) in samples(&format!("broken/{topic}")) {
            let code = name.split('.').next().unwrap();
            match read_and_write(topic, &value) {
                Ok(_) => panic!("{topic}/{name} was read"),
                Err(error) => assert_eq!(error.code(), code, "{topic}/{name}: {error}"),
            }
        }
    }
}

#[test]
fn every_optional_field_is_there_once_and_absent_once() {
    let optional = [
        ("requests", "source"),
        ("prepare", "order_key"),
        ("votes", "code"),
        ("votes", "duplicate_of"),
        ("votes", "inquiry"),
        ("outcomes", "duplicate_of"),
        ("outcomes", "votes.vote"),
        ("outcomes", "votes.code"),
        ("outcomes", "txid"),
        ("outcomes", "business_key"),
        ("outcomes", "attempt"),
        ("outcomes", "hash"),
        ("outcomes", "outcome"),
        ("outcomes", "origin"),
        ("outcomes", "code"),
        ("outcomes", "settled"),
        ("outcomes", "who"),
        ("outcomes", "because"),
        ("rejected", "field"),
    ];
    for (topic, path) in optional {
        let mut seen = BTreeSet::new();
        for value in samples(topic).values() {
            let message: Value = serde_json::from_slice(value).unwrap();
            match path.split_once('.') {
                None => drop(seen.insert(message.get(path).is_some())),
                Some((list, field)) => {
                    let items = message[list].as_array().into_iter().flatten();
                    seen.extend(items.map(|item| item.get(field).is_some()));
                }
            }
        }
        assert_eq!(seen.len(), 2, "{topic}: {path}");
    }
    for (topic, field, values) in [
        ("requests", "type", &["cancel", "request"][..]),
        ("votes", "vote", &["no", "yes"]),
        ("votes", "by", &["coordinator", "participant"]),
        ("decisions", "outcome", &["abort", "commit"]),
        ("outcomes", "type", &["incident", "outcome"]),
        ("outcomes", "outcome", &["abort", "commit"]),
        ("outcomes", "settled", &["abandoned", "committed", "rolled_back"]),
        (
            "outcomes",
            "what",
            &["contradiction", "finished_by_hand", "lost", "other_hash", "resolved", "skipped", "unreadable"],
        ),
    ] {
        let seen: BTreeSet<String> = samples(topic)
            .values()
            .filter_map(|value| serde_json::from_slice::<Value>(value).unwrap()[field].as_str().map(str::to_string))
            .collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), values, "{topic}: {field}");
    }
}

#[test]
fn what_travels_of_an_incident_has_one_spelling() {
    for value in samples("outcomes").values() {
        let Ok(OutcomesRecord::Incident(incident)) = decode_outcomes_record(value) else { continue };
        let json: Value = serde_json::from_slice(value).unwrap();
        assert_eq!(json["what"], incident.what.as_str());
        assert_eq!(json["settled"].as_str(), incident.settled.map(|settled| settled.as_str()));
    }
}

#[test]
fn cut_anywhere_or_with_anything_behind_it_is_refused() {
    for topic in TOPICS {
        for (name, value) in samples(topic) {
            for end in 0..value.len() {
                assert!(read_and_write(topic, &value[..end]).is_err(), "{topic}/{name} cut at {end}");
            }
            for behind in ["x", "{}", "\0", "]", "}"] {
                let longer = [&value[..], behind.as_bytes()].concat();
                assert!(read_and_write(topic, &longer).is_err(), "{topic}/{name} with {behind:?} behind it");
            }
        }
    }
}

#[test]
fn a_megabyte_of_nesting_is_refused_without_harm() {
    const DEEP: usize = 500_000;
    let nested = format!("{}{}", "[".repeat(DEEP), "]".repeat(DEEP));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(DEEP / 5), "}".repeat(DEEP / 5));
    for topic in TOPICS {
        for value in ["[".repeat(2 * DEEP), "{\"a\":".repeat(DEEP / 5), nested.clone(), objects.clone()] {
            assert!(read_and_write(topic, value.as_bytes()).is_err(), "{topic}");
        }
        let (_, message) = samples(topic).pop_first().unwrap();
        let message = String::from_utf8(message).unwrap();
        let body = message.strip_suffix('}').unwrap();
        for deep in [&nested, &objects] {
            let read = read_and_write(topic, format!(r#"{body},"extra":{deep}}}"#).as_bytes()).unwrap_err();
            assert_eq!(read.code(), "wrong_fields", "{topic}");
            let newer = format!(r#"{{"extra":{deep},"type":"whatever","v":{}}}"#, VERSION + 1);
            assert_eq!(read_and_write(topic, newer.as_bytes()), Err(Unreadable::Newer { v: VERSION + 1 }), "{topic}");
        }
    }
}

/// A payload is the participants' business: it passes as it is. Only who must look into it refuses it.
#[test]
fn a_megabyte_of_nesting_in_a_payload_passes_and_has_no_hash() {
    let mut request: Request = decode(&sample("requests", "request.json")).unwrap();
    let nested = format!("{}{}", "[".repeat(400_000), "]".repeat(400_000));
    request.branches[0].payload = serde_json::value::RawValue::from_string(nested.clone()).unwrap();
    let read: Request = decode(&encode(&request)).unwrap();
    assert_eq!(read.branches[0].payload.get(), nested);
    let key = HashKey::new("k1".parse().unwrap(), b"0123456789abcdef").unwrap();
    assert!(key.request_hash(&read.business_key, &read.branches).is_err());
}

#[test]
fn digits_and_spelling_of_a_payload_are_kept_on_one_line() {
    let mut request: Request = decode(&sample("requests", "request.json")).unwrap();
    let payload = "{ \"amount\" :\r\n 15402.80,\t\"big\": 123456789012345678901234567890.10 }";
    request.branches[0].payload = serde_json::value::RawValue::from_string(payload.to_string()).unwrap();
    let line = encode(&request);
    assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
    let read: Request = decode(&line).unwrap();
    assert_eq!(read.branches[0].payload.get(), payload.replace("\r\n", "  "));
}

#[test]
fn fields_may_come_in_any_order_and_with_escapes() {
    let text = String::from_utf8(sample("votes", "no.json")).unwrap();
    let expected: Vote = decode(text.as_bytes()).unwrap();
    let Value::Object(fields) = serde_json::from_str(&text).unwrap() else { panic!() };
    let mut reversed: Vec<String> = fields.iter().map(|(name, value)| format!(" {:?} : {value}", name)).collect();
    reversed.sort();
    reversed.reverse();
    let reversed = format!("{{{}}}\n", reversed.join(",")).replace("\"type\"", "\"t\\u0079pe\"");
    assert_eq!(decode::<Vote>(reversed.as_bytes()).unwrap(), expected);
}

#[test]
fn a_field_twice_is_refused() {
    let text = String::from_utf8(sample("votes", "no.json")).unwrap();
    let Value::Object(fields) = serde_json::from_str(&text).unwrap() else { panic!() };
    for (name, value) in fields {
        let twice = text.replacen('{', &format!("{{{name:?}:{value},"), 1);
        assert!(matches!(decode::<Vote>(twice.as_bytes()), Err(Unreadable::WrongFields { .. })), "{twice}");
    }
}

#[test]
fn no_error_says_anything_of_the_record() {
    for (name, value) in samples("broken/requests") {
        let error = decode_requests_record(&value).unwrap_err().to_string();
        for secret in ["9f86d081", "15402", "surgeries", "night shift", "hello"] {
            assert!(!error.contains(secret), "{name}: {error}");
        }
    }
}
