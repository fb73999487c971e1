//! What people read. `UPDATE_GOLDEN=1` writes the files anew.

use serde_json::Value;
use suture_coordinator_core::ingest::explain::explain;

use crate::{APPENDIX, compose_rules, keys};

fn explained(event: &str) -> suture_coordinator_core::ingest::explain::Explanation {
    explain(&compose_rules("rules.toml"), &keys(), 12, Some(event.as_bytes()))
}

fn assert_golden(name: &str, text: &str) {
    let path = format!("{}/tests/ingest/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(text, golden, "{name}");
}

#[test]
fn a_surgery() {
    assert_golden("surgery.txt", &explained(APPENDIX).to_text());
}

#[test]
fn aftercare_is_the_second_rule() {
    let event = APPENDIX.replace("80146002", "699253003").replace("11466000", "699253003");
    assert_golden("aftercare.txt", &explained(&event).to_text());
}

#[test]
fn an_ordered_surgery() {
    let rules =
        crate::compose_file("config/rules.toml").replace("id = \"surgery\"", "id = \"surgery\"\nordered = true");
    let rules = suture_coordinator_core::ingest::rules::Rules::parse(&rules).unwrap();
    let explanation = explain(&rules, &keys(), 12, Some(APPENDIX.as_bytes()));
    let head = |line: &&str| !line.is_empty();
    let text = explanation.to_text().lines().take_while(head).map(|line| format!("{line}\n")).collect::<String>();
    assert_golden("ordered.txt", &text);
    let json: Value = serde_json::from_str(&explanation.to_json()).unwrap();
    assert_eq!(json["result"]["request"]["ordered"], true);
}

#[test]
fn a_rejected_event() {
    assert_golden("rejected.txt", &explained(&APPENDIX.replace("15402.80", "15402.805")).to_text());
}

#[test]
fn an_ignored_event() {
    assert_golden("ignored.txt", &explained(&APPENDIX.replace("\"completed\"", "\"in-progress\"")).to_text());
}

#[test]
fn the_json_form_says_the_same() {
    let json: Value = serde_json::from_str(&explained(APPENDIX).to_json()).unwrap();
    let request = &json["result"]["request"];
    assert_eq!(
        (&request["rule"], &request["key"], &request["shards"]),
        (&"surgery".into(), &"case-17".into(), &12.into())
    );
    assert_eq!(request["branches"][2]["payload"]["total"]["value"].to_string(), "15402.80");
    let json: Value = serde_json::from_str(&explained("{").to_json()).unwrap();
    assert_eq!(json["result"]["rejected"]["code"], "not_json");
}
