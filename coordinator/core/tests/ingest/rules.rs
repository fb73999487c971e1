//! The language: what a file may say, what it is told when it is wrong, and what the makers make.

use serde_json::{Value, json};
use suture_coordinator_core::ingest::Mapped;
use suture_coordinator_core::ingest::rules::Rules;

use crate::{TOPIC, map_text, payload, rejection, request};

const HEAD: &str = r#"
    [codes.list]
    system = "s"
    codes = ["a", "b"]
    [[rule]]
    id = "r"
    topics = ["hospital.surgeries"]
    match = [{ path = "$.id", present = true }]
    key = { source = "s", id = "$.id", revision = ["$.version", "$.status"] }
    [rule.resources]
    thing = { type = "Thing", take = "all", order = ["$.at", "$.id"] }
    one = { type = "One" }
    [[rule.branch]]
    participant = "p"
    operation = "o"
"#;

fn with_payload(payload: &str) -> String {
    format!("{HEAD}\n[rule.branch.payload]\n{payload}\n")
}

/// The payload that one field gives for an event.
fn made(field: &str, event: &Value) -> Value {
    let rules = Rules::parse(&with_payload(&format!("x = {field}"))).unwrap_or_else(|error| panic!("{field}: {error}"));
    payload(&request(map_text(&rules, &event.to_string())), "p")
}

fn refused(field: &str, event: &Value) -> (String, String) {
    let rules = Rules::parse(&with_payload(&format!("x = {field}"))).unwrap_or_else(|error| panic!("{field}: {error}"));
    let rejection = rejection(map_text(&rules, &event.to_string()));
    (rejection.code.to_string(), rejection.field.unwrap())
}

fn event() -> Value {
    json!({
        "id": 7, "status": "done", "yes": true, "none": null, "blank": "", "deep": {"x": 1}, "day": "2024-02-29",
        "codings": [{"system": "local", "code": "a"}, {"system": "s", "code": "b"}],
        "entry": [
            {"resource": {"resourceType": "Thing", "id": "3", "at": "2024-01-01T10:00:00+02:00"}},
            {"resource": {"resourceType": "Thing", "id": "2", "at": "2024-01-01T09:00:00Z"}},
            {"resource": {"resourceType": "Thing", "id": "1"}},
            {"resource": {"resourceType": "Two"}}
        ]
    })
}

#[test]
fn makers_make() {
    for (field, expected) in [
        (r#""$.id""#, json!(7)),
        (r#"{ copy = "$.yes" }"#, json!(true)),
        (r#"["$.none", "$.blank", "$.nothing", "one $.id", "$.status"]"#, json!("done")),
        (r#"{ constant = "c" }"#, json!("c")),
        (r#"{ copy = "$.none", default = 0 }"#, json!(0)),
        (r#"{ object = { a = "$.id", b = { copy = "$.none", optional = true } } }"#, json!({"a": 7})),
        (r#"{ list = "thing", item = { id = "$.id" } }"#, json!([{"id": "3"}, {"id": "2"}, {"id": "1"}])),
        (r#"{ earliest = ["thing $.at"] }"#, json!("2024-01-01T10:00:00+02:00")),
        (r#"{ latest = ["thing $.at"] }"#, json!("2024-01-01T09:00:00Z")),
        (r#"{ coding = "$.codings[*]" }"#, json!({"system": "local", "code": "a"})),
        (r#"{ coding = "$.codings[*]", in = "list" }"#, json!({"system": "s", "code": "b"})),
        (r#"{ date = "$.day" }"#, json!("2024-02-29")),
        (r#"{ date = "thing $.at" }"#, json!("2024-01-01")),
        // printf 'salt|7|done' | sha256sum
        (r#"{ bucket = "salt", of = ["$.id", "$.status"] }"#, json!(0x2c89_f582_u32 % 20)),
    ] {
        assert_eq!(made(field, &event())["x"], expected, "{field}");
    }
    let pseudonym = crate::keys().identity.pseudonym("d", &["7", "done"]);
    assert_eq!(made(r#"{ pseudonym = "d", of = ["$.id", "$.status"] }"#, &event())["x"], pseudonym.as_str());
    assert_eq!(made(r#"{ copy = "one $.id", optional = true }"#, &event()), json!({}));
}

#[test]
fn makers_refuse() {
    for (field, code, place) in [
        (r#""$.none""#, "missing", "p.x <- $.none"),
        (r#""one $.id""#, "missing", "p.x <- one"),
        (r#""$.deep""#, "not_a_value", "p.x <- $.deep"),
        (r#"{ copy = "$.deep", optional = true }"#, "not_a_value", "p.x <- $.deep"),
        (r#"{ object = { y = { object = { z = "$.none" } } } }"#, "missing", "p.x.y.z <- $.none"),
        (r#"{ list = "thing", item = { at = "$.at" } }"#, "missing", "p.x.at <- $.at"),
        (r#"{ time = "$.day" }"#, "bad_time", "p.x <- $.day"),
        (r#"{ date = "$.status" }"#, "bad_time", "p.x <- $.status"),
        (r#"{ earliest = "$.none" }"#, "missing", "p.x <- $.none"),
        (r#"{ pseudonym = "d", of = ["$.none"] }"#, "missing", "p.x <- $.none"),
        (r#"{ coding = "$.codings[0]", in = "list" }"#, "missing", "p.x <- $.codings[0]"),
    ] {
        assert_eq!(refused(field, &event()), (code.to_string(), place.to_string()), "{field}");
    }
}

#[test]
fn fields_are_written_sorted_by_name() {
    let rules = Rules::parse(&with_payload("b = \"$.id\"\na = { object = { d = \"$.id\", c = \"$.id\" } }")).unwrap();
    let request = request(map_text(&rules, &event().to_string()));
    assert_eq!(request.branches[0].payload.get(), r#"{"a":{"c":7,"d":7},"b":7}"#);
    assert_eq!(rules.topics(), [TOPIC]);
    assert_eq!(rules.participants().iter().map(|p| p.as_str()).collect::<Vec<_>>(), ["p"]);
}

#[test]
fn a_rule_that_asks_for_order_gets_it_under_its_order_key() {
    let order = |ordered: &str| {
        with_payload("x = \"$.id\"").replace(
            "id = \"r\"",
            &format!("id = \"r\"\norder = {{ name = \"patient\", of = [\"$.status\"] }}\n{ordered}"),
        )
    };
    let expected = format!("patient:{}", crate::keys().identity.pseudonym("patient", &["done"]));
    for (line, ordered) in [("", false), ("ordered = false", false), ("ordered = true", true)] {
        let rules = Rules::parse(&order(line)).unwrap();
        let Mapped::Request { order_key, request } = map_text(&rules, &event().to_string()) else { panic!("{line}") };
        assert_eq!((order_key.as_str(), request.ordered), (expected.as_str(), ordered), "{line}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_key() {
    let fine = with_payload("x = \"$.id\"");
    let change = |from: &str, to: &str| {
        assert!(fine.contains(from), "{from}");
        fine.replace(from, to)
    };
    for (file, key, problem) in [
        (String::new(), "rule", "write [[rule]]"),
        ("rule = 3".to_string(), "the file", "expected a sequence"),
        (change("id = \"r\"", "id = \"R!\""), "rule R!: id", "1 to 40 of a-z"),
        (change("id = \"r\"", "id = \"r\"\nname = 3"), "the file", "unknown field `name`"),
        (change("id = \"r\"", "id = \"r\"\nordered = true"), "rule r: ordered", "Name the order key"),
        (change("id = \"r\"", "id = \"r\"\ndeadline_ms = 0"), "rule r: deadline_ms", "1 to 3600000"),
        (
            change("id = \"r\"", "id = \"r\"\nretry_after_ms = [86400001]"),
            "rule r: retry_after_ms",
            "up to 10 numbers from 0 to 86400000",
        ),
        (change("topics = [\"hospital.surgeries\"]", "topics = []"), "rule r: topics", "at least one"),
        (change("present = true", ""), "rule r: match[0]", "needs one test"),
        (change("present = true", "present = 1"), "rule r: match[0]", "a test is"),
        (change("present = true", "coded = \"other\""), "rule r: match[0]", "[codes.other]"),
        (change("id = \"$.id\"", "id = \"id\""), "rule r: key: id", "begins with $"),
        (change("id = \"$.id\"", "id = \"two $.id\""), "rule r: key: id", "no resource \"two\" (one, thing)"),
        (change("type = \"One\"", "type = \"One\", take = \"first\""), "rule r: resources.one: order", "sort by"),
        (change("type = \"One\"", "type = \"One\", refer = \"$.x\""), "rule r: resources.one: refer", "begins nowhere"),
        (change("type = \"One\"", "type = \"One\", refer = \"one $.x\""), "rule r: resources.one.refer", "circle"),
        (
            change("type = \"One\"", "type = \"One\", where = [{ path = \"thing $.x\", present = true }]"),
            "rule r: resources.one: where[0]: path",
            "no names may stand here",
        ),
        (change("participant = \"p\"", "participant = \"P\""), "rule r: branch P: participant", "1 to 24"),
        (change("codes = [\"a\", \"b\"]", "codes = []"), "codes.list", "at least one code"),
        (
            format!("{fine}[[rule.branch]]\nparticipant = \"p\"\noperation = \"o\"\npayload = {{ x = \"$.id\" }}"),
            "rule r: branch p",
            "one branch a transaction",
        ),
        (with_payload(""), "rule r: branch p: payload", "is empty"),
        (with_payload("x = 3"), "rule r: branch p: payload.x", "write a path"),
        (with_payload("x = \"$.[\""), "rule r: branch p: payload.x", "no JSONPath"),
        (with_payload("x = { }"), "rule r: branch p: payload.x", "exactly one of copy"),
        (
            with_payload("x = { copy = \"$.id\", time = \"$.id\" }"),
            "rule r: branch p: payload.x",
            "exactly one of copy",
        ),
        (
            with_payload("x = { copy = \"$.id\", of = \"y\" }"),
            "rule r: branch p: payload.x",
            "\"of\" does not belong here",
        ),
        (
            with_payload("x = { copy = \"$.id\", optional = true, default = 1 }"),
            "rule r: branch p: payload.x",
            "not both",
        ),
        (with_payload("x = { constant = 1.5 }"), "rule r: branch p: payload.x", "whole number"),
        (
            with_payload("x = { identifier = \"$.id\", of = \"Patient\" }"),
            "rule r: branch p: payload.x",
            "which of its identifiers",
        ),
        (with_payload("x = { sum = \"$.id\" }"), "rule r: branch p: payload.x", "needs like"),
        (
            with_payload("x = { list = \"things\", item = { y = \"$.id\" } }"),
            "rule r: branch p: payload.x",
            "no resource \"things\"",
        ),
        (with_payload("x = { object = { y = { time = 3 } } }"), "rule r: branch p: payload.x: y", "write a path"),
        (with_payload("x = { pseudonym = \"\", of = [\"$.id\"] }"), "rule r: branch p: payload.x", "sets it apart"),
        (with_payload("x = { bucket = \"b\", of = [] }"), "rule r: branch p: payload.x: of", "at least one value"),
        (
            with_payload("x = { pseudonym = \"d\", of = [{ amount = \"$.id\" }] }"),
            "rule r: branch p: payload.x: of",
            "texts and identifiers",
        ),
    ] {
        let error = Rules::parse(&file).expect_err(problem);
        assert_eq!(error.key, key, "{error}");
        assert!(error.problem.contains(problem), "{error}");
    }
    Rules::parse(&fine).unwrap();
}
