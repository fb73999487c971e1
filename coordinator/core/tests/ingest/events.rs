//! One event, and its odd relatives.

use serde_json::{Value, json};
use suture_contract::codec::encode;
use suture_contract::keys::HashKey;
use suture_coordinator_core::ingest::rules::Rules;
use suture_coordinator_core::ingest::{Event, Ignored, Keys, Mapped, map};

use crate::{APPENDIX, TOPIC, compose_rules, ignored, keys, map_bytes, map_text, payload, rejection, request};

#[test]
fn every_participant_gets_his_part() {
    let request = request(map_text(&compose_rules("rules.toml"), APPENDIX));
    assert_eq!(request.rule, "surgery");
    assert_eq!(request.source.as_ref().unwrap().to_string(), "hospital.surgeries/3/41");
    assert_eq!((request.attempt.number(), request.deadline_ms, request.ordered), (1, 30_000, false));
    let appendix = json!({"system": "http://snomed.info/sct", "code": "80146002"});
    assert_eq!(
        payload(&request, "hospital"),
        json!({
            "case": "case-17",
            "patient": {"system": "http://hospital.smarthealthit.org", "value": "canary-mrn"},
            "class": "IMP",
            "status": "finished",
            "start": "2026-03-01T08:00:00+01:00",
            "end": "2026-03-02T09:00:00+01:00",
            "first_start": "2026-03-01T09:30:00+01:00",
            "last_end": "2026-03-01T12:00:00+01:00",
            "surgeon": {"system": "http://hl7.org/fhir/sid/us-npi", "value": "4242"},
            "code": appendix,
            "procedures": [
                {"system": "local", "code": "APP", "start": "2026-03-01T09:30:00+01:00", "end": "2026-03-01T08:45:00Z"},
                {
                    "system": "http://snomed.info/sct",
                    "code": "11466000",
                    "start": "2026-03-01T12:00:00+01:00",
                    "end": "2026-03-01T12:00:00+01:00",
                },
            ],
        })
    );
    let identity = keys().identity;
    assert_eq!(
        payload(&request, "surgeon-log"),
        json!({
            "case": identity.pseudonym("case", &["case-17"]),
            "practitioner": {"system": "http://hl7.org/fhir/sid/us-npi", "value": "4242"},
            "role": "surgeon",
            "code": appendix,
            "start": "2026-03-01T09:30:00+01:00",
            "end": "2026-03-01T12:00:00+01:00",
        })
    );
    let member = ["http://hospital.smarthealthit.org", "canary-mrn", "Payer & Sons"];
    let expected = json!({
        "claim": "claim-5",
        "member": identity.pseudonym("member", &member),
        "payer": "Payer & Sons",
        "provider": {"system": "https://github.com/synthetichealth/synthea", "value": "clinic-3"},
        "code": appendix,
        "service_date": "2026-03-01",
        "total": {"value": serde_json::from_str::<serde_json::Number>("15402.80").unwrap(), "currency": "USD"},
        "net_sum": serde_json::from_str::<serde_json::Number>("15020.60").unwrap(),
    });
    assert_eq!(payload(&request, "insurer"), expected);
}

#[test]
fn the_business_key_is_found_by_the_case_number_and_tells_revisions_apart() {
    let rules = compose_rules("rules.toml");
    let first = request(map_text(&rules, APPENDIX));
    let prefixes = rules.business_key_prefixes(&keys().identity, "case-17");
    assert_eq!(first.business_key.as_str(), format!("{}finished", prefixes[0]));
    let amended = APPENDIX.replace(r#""id": "case-17","#, r#""id": "case-17", "meta": { "versionId": "2" },"#);
    assert_eq!(request(map_text(&rules, &amended)).business_key.as_str(), format!("{}2", prefixes[0]));
}

/// O4: what is asked for is the same thing, and its hash says which key has made it.
#[test]
fn a_rotated_hash_key_changes_the_hash_and_nothing_else() {
    let rules = compose_rules("rules.toml");
    let before = request(map_text(&rules, APPENDIX));
    let hash = HashKey::new("k2".parse().unwrap(), b"another hash key for tests").unwrap();
    let rotated = Keys { hash, ..keys() };
    let event = Event { topic: TOPIC, partition: 3, offset: 41, value: Some(APPENDIX.as_bytes()) };
    let mut after = request(map(&rules, &rotated, &event));
    assert_eq!((before.hash.key_id.to_string(), after.hash.key_id.to_string()), ("k1".to_string(), "k2".to_string()));
    assert_ne!(before.hash.mac, after.hash.mac);
    after.hash = before.hash;
    assert_eq!(encode(&after), encode(&before));
}

#[test]
fn what_is_no_event_of_ours_is_ignored() {
    let rules = compose_rules("rules.toml");
    assert_eq!(ignored(map_bytes(&rules, None)), Ignored::Tombstone);
    let elsewhere = Event { topic: "other", partition: 0, offset: 0, value: Some(APPENDIX.as_bytes()) };
    assert_eq!(ignored(map(&rules, &keys(), &elsewhere)), Ignored::OtherTopic);
    assert!(matches!(map(&rules.reading("other"), &keys(), &elsewhere), Mapped::Request { .. }));

    let rules = compose_rules("rules.toml");
    for other in [
        "null",
        "3",
        "[]",
        "{}",
        r#"{"resourceType":"Patient"}"#,
        r#"{"resourceType":"Bundle","type":"transaction"}"#,
        r#"{"resourceType":"Bundle","type":"transaction","entry":{}}"#,
        r#"{"resourceType":"Bundle","type":"transaction","entry":[null,3,{"resource":[]}]}"#,
        &APPENDIX.replace(r#""transaction""#, r#""batch""#),
        &APPENDIX.replace(r#""finished""#, r#""in-progress""#),
        &APPENDIX.replace("80146002", "1").replace("11466000", "2"),
        &APPENDIX.replace("http://snomed.info/sct", "http://elsewhere"),
    ] {
        assert_eq!(ignored(map_text(&rules, other)), Ignored::NoMatch, "{}", &other[..other.len().min(80)]);
    }
}

#[test]
fn a_byte_order_mark_changes_nothing() {
    let rules = compose_rules("rules.toml");
    let marked = request(map_text(&rules, &format!("\u{feff}{APPENDIX}")));
    assert_eq!(marked.hash, request(map_text(&rules, APPENDIX)).hash);
}

#[test]
fn what_is_not_readable_is_rejected_as_a_whole() {
    let rules = compose_rules("rules.toml");
    let latin_1 = [&APPENDIX.as_bytes()[..100], b"\xe9", &APPENDIX.as_bytes()[100..]].concat();
    let huge = APPENDIX.replace("canary-ssn", &"9".repeat(900_000));
    for (bytes, code) in [
        (&b""[..], "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b" ", "not_json"),
        (&APPENDIX.as_bytes()[..APPENDIX.len() / 2], "not_json"),
        (&[APPENDIX.as_bytes(), b"{}"].concat(), "not_json"),
        (b"MSH|^~\\&|EPIC", "not_json"),
        (&latin_1, "not_utf8"),
        (b"\x00\x00\x00\x00\x07", "not_json"),
        ("[".repeat(500_000).as_bytes(), "too_deep"),
        (r#"{"a":"#.repeat(1_000).as_bytes(), "too_deep"),
        ("[".repeat(1_000_000).as_bytes(), "too_big"),
        (huge.as_bytes(), "too_big"),
    ] {
        let rejection = rejection(map_bytes(&rules, Some(bytes)));
        assert_eq!((rejection.code.as_str(), rejection.field), (code, None));
        assert_eq!(rejection.origin.to_string(), "hospital.surgeries/3/41");
    }
}

#[test]
fn what_is_as_long_as_may_be_is_taken() {
    let rules = compose_rules("rules.toml");
    let padded = |length: usize| format!("{}{APPENDIX}", " ".repeat(length - APPENDIX.len()));
    request(map_text(&rules, &padded(900_000)));
    assert_eq!(rejection(map_text(&rules, &padded(900_001))).code.as_str(), "too_big");
    let revised = |length: usize| {
        let version = "a".repeat(length);
        APPENDIX.replace(r#""id": "case-17""#, &format!(r#""id": "case-17", "meta": {{"versionId": "{version}"}}"#))
    };
    request(map_text(&rules, &revised(64)));
    assert_eq!(rejection(map_text(&rules, &revised(65))).code.as_str(), "bad_revision");
}

#[test]
fn what_a_used_field_lacks_is_named() {
    let rules = compose_rules("rules.toml");
    for (from, to, code, field) in [
        // Several, or none.
        (r#""urn:uuid:later""#, r#""urn:uuid:first""#, "duplicate_identity", "entry[5]"),
        (r#""id": "later""#, r#""id": "first""#, "duplicate_identity", "entry[5]"),
        (r#""pharmacy""#, r#""institutional""#, "ambiguous", "insurer.claim <- claim"),
        (r#""institutional""#, r#""vision""#, "missing", "insurer.claim <- claim"),
        (r#""Condition", "id": "c""#, r#""Encounter", "id": "c""#, "ambiguous", "match <- encounter"),
        (r#""resourceType": "Encounter""#, r#""resourceType": "Visit""#, "missing", "match <- encounter"),
        (r#""id": "case-17""#, r#""id": null"#, "missing", "business_key <- encounter $.id"),
        (
            r#""id": "case-17""#,
            r#""id": "case-17", "meta": {"versionId": "1 2"}"#,
            "bad_revision",
            "business_key <- encounter $.meta.versionId | encounter $.status",
        ),
        // References.
        ("Patient/canary-patient\" },", "Patient/9\" },", "unresolved_reference", "order_key <- encounter $.subject"),
        (
            "canary-mrn\" }",
            "canary-mrn\" }, { \"type\": { \"coding\": [{ \"code\": \"MR\" }] }, \
            \"system\": \"http://hospital.smarthealthit.org\", \"value\": \"2\" }",
            "ambiguous",
            "order_key <- encounter $.subject",
        ),
        (r#""code": "MR""#, r#""code": "PI""#, "unresolved_reference", "order_key <- encounter $.subject"),
        (
            r#""reference": "Organization/clinic""#,
            r#""reference": "urn:uuid:first""#,
            "unresolved_reference",
            "insurer.provider <- claim $.provider",
        ),
        (
            r##""reference": "#payer""##,
            r##""reference": "#nobody""##,
            "unresolved_reference",
            "insurer.member <- coverage $.payor[*]",
        ),
        (
            r##""reference": "#payer""##,
            r##""reference": "Patient/canary-patient""##,
            "unresolved_reference",
            "insurer.member <- coverage $.payor[*]",
        ),
        (
            r##""reference": "#cov""##,
            r##""display": "private""##,
            "missing",
            "insurer.member <- coverage $.payor[*].display | payer $.name",
        ),
        (r#""value": "4242" } }"#, r#""value": "4242" }, "reference": "urn:uuid:9" }"#, "", ""),
        (
            r#""identifier": { "system": "http://hl7.org/fhir/sid/us-npi", "value": "4242" }"#,
            r#""reference": "urn:uuid:9""#,
            "unresolved_reference",
            "hospital.surgeon <- operation $.performer[?@.function.coding[?@.code=='304292004']].actor",
        ),
        // Values.
        (
            r#"{ "code": "IMP" }"#,
            r#"{ "code": { "name": "Canary" } }"#,
            "not_a_value",
            "hospital.class <- encounter $.class.code",
        ),
        ("2026-03-02T09:00:00+01:00", "2026-03-02", "bad_time", "hospital.end <- encounter $.period.end"),
        ("2026-03-01T12:00:00+01:00", "noon", "bad_time", "hospital.first_start <- procedures $.performedDateTime"),
        // Amounts.
        ("15402.80", "1e400", "bad_amount", "insurer.net_sum <- claim $.total"),
        ("15402.80", "\"15402.80\"", "bad_amount", "insurer.net_sum <- claim $.total"),
        ("15402.80", "-15402.80", "bad_amount", "insurer.total <- claim $.total"),
        ("15402.80", "15402.805", "too_many_decimals", "insurer.net_sum <- claim $.total"),
        ("0.205e2", "20.505", "too_many_decimals", "insurer.net_sum <- claim $.item[*].net"),
        (
            r#"15402.80, "currency": "USD""#,
            r#"15402.80, "currency": "EUR""#,
            "currency_mismatch",
            "insurer.net_sum <- claim $.item[*].net",
        ),
        (r#"15402.80, "currency": "USD""#, r#"15402.80"#, "bad_currency", "insurer.net_sum <- claim $.total"),
    ] {
        let event = APPENDIX.replace(from, to);
        assert_ne!(event, APPENDIX, "{from}");
        if code.is_empty() {
            request(map_text(&rules, &event));
            continue;
        }
        let rejection = rejection(map_text(&rules, &event));
        assert_eq!((rejection.code.as_str(), rejection.field.as_deref()), (code, Some(field)), "{from} -> {to}");
    }
}

#[test]
fn what_no_rule_uses_may_be_broken() {
    let rules = compose_rules("rules.toml");
    let broken =
        APPENDIX.replace("\"1911-11-11\"", "1e400").replace("0.123456789", "-1e999").replace("canary-ssn", "\\u0000");
    assert_eq!(request(map_text(&rules, &broken)).hash, request(map_text(&rules, APPENDIX)).hash);
}

#[test]
fn a_request_that_grows_too_big_is_rejected() {
    let rules = Rules::parse(&format!(
        r#"
        [[rule]]
        id = "growing"
        topics = ["{TOPIC}"]
        match = [{{ path = "$.id", present = true }}]
        key = {{ source = "s", id = "$.id", revision = "$.id" }}
        resources = {{ things = {{ type = "T", take = "all" }} }}
        [[rule.branch]]
        participant = "p"
        operation = "o"
        payload = {{ all = {{ list = "things", item = {{ x = {{ constant = "{}" }} }} }} }}
        "#,
        "x".repeat(1_000)
    ))
    .unwrap();
    let event =
        |things| json!({"id": "1", "entry": vec![json!({"resource": {"resourceType": "T"}}); things]}).to_string();
    request(map_text(&rules, &event(800)));
    assert_eq!(rejection(map_text(&rules, &event(1_000))).code.as_str(), "too_big");
}

/// What the rules sort by may be equal. Entries have no order that means anything then either.
#[test]
fn resources_that_are_equal_in_their_order_are_not_told_apart_by_their_entries() {
    let rules = compose_rules("rules.toml");
    let mut event: Value = serde_json::from_str(APPENDIX).unwrap();
    let entries = event["entry"].as_array_mut().unwrap();
    for end in ["2026-03-01T13:00:00+01:00", "2026-03-01T14:00:00+01:00"] {
        let period = json!({"start": "2026-03-01T12:30:00+01:00", "end": end});
        let code = json!({"coding": [{"system": "local", "code": "X"}]});
        entries.push(json!({"resource": {"resourceType": "Procedure", "code": code, "performedPeriod": period}}));
    }
    let first = request(map_text(&rules, &event.to_string()));
    event["entry"].as_array_mut().unwrap().reverse();
    assert_eq!(encode(&request(map_text(&rules, &event.to_string()))), encode(&first));
}

#[test]
fn whatever_is_replaced_the_answer_is_one_of_three() {
    let rules = compose_rules("rules.toml");
    let event: Value = serde_json::from_str(APPENDIX).unwrap();
    let mut pointers = Vec::new();
    collect_pointers(&event, "", &mut pointers);
    let mut requests = 0;
    for pointer in &pointers {
        for odd in
            [json!(null), json!(0), json!(""), json!("Patient?identifier=%"), json!([[]]), json!({"reference": "#"})]
        {
            let mut changed = event.clone();
            *changed.pointer_mut(pointer).unwrap() = odd;
            let mapped = map_text(&rules, &changed.to_string());
            requests += usize::from(matches!(mapped, Mapped::Request { .. }));
        }
    }
    let changes = pointers.len() * 6;
    assert!(requests > 0 && requests < changes, "{requests} of {changes}: some fields are used, some are not");
}

fn collect_pointers(value: &Value, at: &str, pointers: &mut Vec<String>) {
    pointers.push(at.to_string());
    match value {
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| collect_pointers(item, &format!("{at}/{i}"), pointers));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| collect_pointers(field, &format!("{at}/{name}"), pointers));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
