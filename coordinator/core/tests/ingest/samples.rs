//! All sample surgeries under the rules and the seeds. What must come out is computed from the events here, by itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{compose_file, compose_rules, map_text, payload, rejection, request};

/// The payer is the patient, so there is no insurer to ask: (file, line).
const SELF_PAYER: (&str, usize) = ("pysynthea", 13);

struct Sample {
    file: &'static str,
    line: usize,
    text: String,
    event: Value,
}

fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    for file in ["synthea", "pysynthea"] {
        for (number, text) in compose_file(&format!("samples/{file}-surgery-transactions.ndjson")).lines().enumerate() {
            let event = serde_json::from_str(text).unwrap();
            samples.push(Sample { file, line: number + 1, text: text.to_string(), event });
        }
    }
    assert_eq!(samples.len(), 125);
    samples
}

/// All samples but the one that is rejected for a reason of its own.
fn insured() -> impl Iterator<Item = Sample> {
    samples().into_iter().filter(|sample| (sample.file, sample.line) != SELF_PAYER)
}

fn resources<'a>(event: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let entries = event["entry"].as_array().unwrap().iter().map(|entry| &entry["resource"]);
    entries.filter(move |resource| resource["resourceType"] == kind)
}

fn identifier_of_type<'a>(patient: &'a Value, kind: &str) -> &'a Value {
    let all = patient["identifier"].as_array().unwrap();
    all.iter().find(|identifier| identifier["type"]["coding"][0]["code"] == kind).unwrap()
}

#[test]
fn every_sample_maps_and_no_two_are_the_same_thing() {
    let rules = compose_rules("rules.toml");
    let mut keys = BTreeSet::new();
    let mut by_rule = BTreeMap::new();
    for sample in insured() {
        let request = request(map_text(&rules, &sample.text));
        assert!(keys.insert(request.business_key.clone()), "{} {}", sample.file, sample.line);
        *by_rule.entry(request.rule).or_insert(0) += 1;
    }
    assert_eq!(by_rule, BTreeMap::from([("aftercare".to_string(), 15), ("surgery".to_string(), 109)]));
}

#[test]
fn who_pays_for_himself_has_no_insurer_and_is_rejected() {
    let (file, line) = SELF_PAYER;
    let sample = samples().into_iter().find(|sample| (sample.file, sample.line) == (file, line)).unwrap();
    let rejection = rejection(map_text(&compose_rules("rules.toml"), &sample.text));
    assert_eq!(rejection.code.as_str(), "unresolved_reference");
    assert_eq!(rejection.field.as_deref(), Some("insurer.member <- coverage $.payor[*]"));
}

#[test]
fn payloads_hold_what_the_events_say() {
    let rules = compose_rules("rules.toml");
    for sample in insured() {
        let event = &sample.event;
        let request = request(map_text(&rules, &sample.text));
        let encounter = resources(event, "Encounter").next().unwrap();
        let record = identifier_of_type(resources(event, "Patient").next().unwrap(), "MR");
        let surgeon = &resources(event, "Practitioner").next().unwrap()["identifier"][0];

        let hospital = payload(&request, "hospital");
        assert_eq!(hospital["case"], encounter["id"]);
        assert_eq!(hospital["patient"]["value"], record["value"]);
        assert_eq!(hospital["surgeon"]["value"], surgeon["value"]);
        assert_eq!(hospital["start"], encounter["period"]["start"]);
        assert_eq!(hospital["procedures"].as_array().unwrap().len(), resources(event, "Procedure").count());
        let log = payload(&request, "surgeon-log");
        assert_eq!(log["practitioner"]["value"], surgeon["value"]);
        assert_eq!((&log["start"], &log["end"]), (&hospital["first_start"], &hospital["last_end"]));
        if request.rule == "surgery" {
            let claim = resources(event, "Claim").find(|c| c["type"]["coding"][0]["code"] == "institutional").unwrap();
            let insurer = payload(&request, "insurer");
            assert_eq!(insurer["claim"], claim["id"]);
            assert_eq!(insurer["total"], claim["total"], "digits and all");
            assert_eq!(insurer["service_date"], encounter["period"]["start"].as_str().unwrap()[..10]);
            assert_eq!(insurer["code"], hospital["code"]);
        }
    }
}

#[test]
fn nobody_learns_what_is_not_his() {
    for file in ["rules.toml", "seeds.toml"] {
        let rules = compose_rules(file);
        for sample in insured() {
            let request = request(map_text(&rules, &sample.text));
            let mut seen = vec![Value::from(request.business_key.as_str())];
            for branch in request.branches.iter().filter(|branch| branch.participant.as_str() != "hospital") {
                seen.push(payload(&request, branch.participant.as_str()));
            }
            let mut texts = Vec::new();
            seen.iter().for_each(|value| collect_texts(value, &mut texts));
            // An insurer knows from when it insures, be it from birth.
            let born = resources(&sample.event, "Patient").next().unwrap()["birthDate"].as_str().unwrap();
            for secret in secrets(&sample.event).iter().filter(|secret| file == "rules.toml" || *secret != born) {
                // A very short name may stand in a hospital's name by chance.
                let leaks = |text: &&String| *text == secret || (secret.len() > 4 && text.contains(secret));
                assert_eq!(texts.iter().find(leaks), None, "{file}, {} {}", sample.file, sample.line);
            }
        }
    }
}

/// Names, numbers, addresses, dates and diagnoses of the patient.
fn secrets(event: &Value) -> Vec<String> {
    let patient = resources(event, "Patient").next().unwrap();
    let mut secrets = Vec::new();
    for part in ["id", "name", "birthDate", "telecom"] {
        collect_texts(&patient[part], &mut secrets);
    }
    for address in patient["address"].as_array().into_iter().flatten() {
        collect_texts(&address["line"], &mut secrets);
    }
    secrets.extend(patient["identifier"].as_array().unwrap().iter().map(|i| i["value"].as_str().unwrap().to_string()));
    for condition in resources(event, "Condition") {
        collect_texts(&condition["code"]["text"], &mut secrets);
        let codings = condition["code"]["coding"].as_array().unwrap();
        secrets.extend(codings.iter().map(|coding| coding["code"].as_str().unwrap().to_string()));
    }
    secrets.retain(|secret| !["official", "maiden", "home", "phone", "email"].contains(&secret.as_str()));
    assert!(secrets.len() > 5);
    secrets
}

fn collect_texts(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect_texts(item, texts)),
        Value::Object(fields) => fields.values().for_each(|field| collect_texts(field, texts)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[test]
fn entries_in_another_order_make_the_same_request() {
    let rules = compose_rules("rules.toml");
    for sample in insured() {
        let mut turned = sample.event.clone();
        turned["entry"].as_array_mut().unwrap().reverse();
        let turned = request(map_text(&rules, &turned.to_string()));
        assert_eq!(turned.hash, request(map_text(&rules, &sample.text)).hash, "{} {}", sample.file, sample.line);
    }
}

#[test]
fn seeds_cover_what_the_rules_ask_for_and_leave_gaps_by_a_fixed_hash() {
    let (rules, seeds) = (compose_rules("rules.toml"), compose_rules("seeds.toml"));
    let mut gaps = BTreeMap::from([("bucket patient", 0), ("bucket privilege", 0), ("coverage", 0), ("limit", 0)]);
    for sample in insured() {
        let (asked, seeded) = (request(map_text(&rules, &sample.text)), request(map_text(&seeds, &sample.text)));
        let names = |request: &suture_contract::messages::Request| {
            request.branches.iter().map(|branch| branch.participant.to_string()).collect::<Vec<_>>()
        };
        let is_uninsured = seeded.rule == "seed-uninsured";
        assert_eq!(is_uninsured, (sample.file, sample.line) == ("synthea", 31));
        assert_eq!(names(&seeded), if is_uninsured { names(&asked)[..2].to_vec() } else { names(&asked) });

        let (patient, privilege) = (payload(&seeded, "hospital"), payload(&seeded, "surgeon-log"));
        assert_eq!(patient["patient"], payload(&asked, "hospital")["patient"]);
        assert_eq!(privilege["practitioner"], payload(&asked, "surgeon-log")["practitioner"]);
        assert_eq!(privilege["code"], payload(&asked, "surgeon-log")["code"]);
        let (who, whose) = (&patient["patient"], &privilege["practitioner"]);
        assert_eq!(patient["bucket"], bucket(&["patient-16", text(&who["system"]), text(&who["value"])]));
        let practitioner =
            ["privilege-4", text(&whose["system"]), text(&whose["value"]), text(&privilege["code"]["code"])];
        assert_eq!(privilege["bucket"], bucket(&practitioner));
        *gaps.get_mut("bucket patient").unwrap() += usize::from(patient["bucket"] == 0);
        *gaps.get_mut("bucket privilege").unwrap() += usize::from(privilege["bucket"] == 0);
        if names(&seeded).len() == 3 {
            let (coverage, claim) = (payload(&seeded, "insurer"), payload(&asked, "insurer"));
            assert_eq!((&coverage["member"], &coverage["payer"]), (&claim["member"], &claim["payer"]));
            assert!(text(&coverage["start"]) <= text(&claim["service_date"]));
            assert!(coverage.get("end").is_none_or(|end| text(end) >= text(&claim["service_date"])));
            *gaps.get_mut("coverage").unwrap() += usize::from(coverage["bucket_coverage"] == 0);
            *gaps.get_mut("limit").unwrap() += usize::from(coverage["bucket_limit"] == 0);
        }
    }
    let expected = BTreeMap::from([("bucket patient", 8), ("bucket privilege", 7), ("coverage", 4), ("limit", 5)]);
    assert_eq!(gaps, expected);
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn bucket(parts: &[&str]) -> u32 {
    let digest = Sha256::digest(parts.join("|"));
    u32::from_be_bytes(digest[..4].try_into().unwrap()) % 20
}
