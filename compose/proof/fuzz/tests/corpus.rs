//! Every input of the corpus through its target; and each way of refusing is met by one of them.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use suture_fuzz::{TARGETS, met};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

fn source(path: &str) -> String {
    let path = root().join(path);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.split("#[cfg(test)]").next().unwrap_or_default().to_string()
}

thread_local! {
    /// What a target said that panicked on this thread.
    static BROKEN: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A target that panics fails the test that has asked it, in the test's own words.
fn keep_panics_of_targets() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match panic.location() {
            Some(at) if at.file().ends_with("tests/corpus.rs") => told(panic),
            _ => BROKEN.set(panic.to_string()),
        }));
    });
}

/// What one target meets in its corpus.
fn met_by(target: &str) -> BTreeSet<Cow<'static, str>> {
    keep_panics_of_targets();
    let (_, check) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut met = BTreeSet::new();
    for file in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let file = file.unwrap().path();
        let input = fs::read(&file).unwrap();
        match std::panic::catch_unwind(|| check(&input)) {
            Ok(reached) => met.extend(reached.0),
            Err(_) => panic!("{target} is broken by {}: {}", file.display(), BROKEN.take()),
        }
    }
    assert!(!met.is_empty(), "{target}");
    met
}

/// The texts behind a mark, each as what stands between its gaps (`{..}`). A line that goes on is one text.
fn texts_behind(source: &str, marks: &[&str]) -> Vec<Vec<String>> {
    let code: String =
        source.lines().filter(|line| !line.trim_start().starts_with("//")).map(|l| format!("{l}\n")).collect();
    let mut texts = Vec::new();
    for mark in marks {
        for (at, _) in code.match_indices(mark) {
            let behind = code[at + mark.len()..].trim_start();
            let behind = behind.strip_prefix("&format!(").unwrap_or(behind).trim_start();
            if let Some(text) = behind.strip_prefix('"') {
                texts.push(gaps(&literal(text)));
            }
        }
    }
    assert!(!texts.is_empty(), "no text behind {marks:?}");
    texts
}

/// To the end of a string literal.
fn literal(text: &str) -> String {
    let mut literal = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => match chars.next() {
                Some('\n') => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                Some(escaped) => literal.push(escaped),
                None => {}
            },
            c => literal.push(c),
        }
    }
    literal
}

fn gaps(literal: &str) -> Vec<String> {
    let whole = literal.replace("{{", "\u{1}").replace("}}", "\u{2}");
    let parts = whole.split('{').flat_map(|part| part.split_once('}').map(|(_, behind)| behind).or(Some(part)));
    parts.map(|part| part.replace('\u{1}', "{").replace('\u{2}', "}")).collect()
}

fn is_met(text: &[String], met: &BTreeSet<Cow<'static, str>>) -> bool {
    let fits = |met: &str| {
        let mut rest = met;
        text.iter().all(|part| match rest.split_once(part.as_str()) {
            Some((_, behind)) => {
                rest = behind;
                true
            }
            None => false,
        })
    };
    met.iter().any(|met| fits(met))
}

fn assert_all_met(what: &str, texts: &[Vec<String>], met: &BTreeSet<Cow<'static, str>>) {
    let unmet: Vec<_> = texts.iter().filter(|text| !is_met(text, met)).collect();
    assert!(unmet.is_empty(), "{what}: no input of the corpus meets {unmet:#?}");
}

#[test]
fn each_variant_of_each_error_is_met() {
    let mut met = BTreeSet::new();
    for target in ["messages", "records", "positions", "events", "operations"] {
        met.extend(met_by(target));
    }
    // 65,536 participants do not fit into an input.
    let unmet: Vec<_> =
        met::all().into_iter().filter(|name| !met.contains(*name) && *name != "Stop::TooManyParticipants").collect();
    assert!(unmet.is_empty(), "no input of the corpus meets {unmet:#?}");
}

#[test]
fn each_rule_of_a_name_is_met() {
    let mut texts = Vec::new();
    for file in ["ids.rs", "keys.rs", "remark.rs"] {
        texts.extend(texts_behind(&source(&format!("topics/contract/src/{file}")), &["rule:"]));
    }
    texts.extend(texts_behind(&source("participants/core/src/gid.rs"), &["rule:"]));
    assert_all_met("names", &texts, &met_by("names"));
}

#[test]
fn positions_of_each_topic_are_met() {
    let met = met_by("positions");
    for topic in ["requests", "decisions", "votes"] {
        assert!(met.contains(format!("positions of a foreign topic: {topic}").as_str()), "{topic}");
    }
}

#[test]
fn each_reason_of_a_rejected_event_is_met() {
    let reasons = texts_behind(&source("coordinator/core/src/ingest/reason.rs"), &[": &str ="]);
    let met = met_by("events");
    assert_all_met("reasons", &reasons, &met);
    assert!(met.contains("a request"));
}

#[test]
fn each_thing_that_is_wrong_with_a_record_is_met() {
    let met = met_by("records");
    let odd = texts_behind(&source("participants/core/src/envelope.rs"), &["Read::Odd(", "Read::Stop("]);
    assert_all_met("a participant", &odd, &met);
    assert!(is_met(&["a participant stops: newer_version".to_string()], &met));
    assert_all_met("driving again", &texts_behind(&source("coordinator/core/src/redrive.rs"), &["Err("]), &met);
}

#[test]
fn each_thing_that_is_wrong_with_rules_is_met() {
    let source = source("coordinator/core/src/ingest/rules.rs");
    let problems = texts_behind(&source, &[".error(", "problem:", "let problem = format!("]);
    assert!(problems.len() > 40, "{}", problems.len());
    assert_all_met("rules", &problems, &met_by("rules"));
}

#[test]
fn each_thing_that_is_wrong_with_operations_is_met() {
    let operations = source("participants/core/src/operations.rs");
    let mut problems =
        texts_behind(&operations, &["misconfigured(&key, ", "misconfigured(&place, ", "let problem = format!("]);
    problems.extend(texts_behind(&operations, &["(kind, ", "(\"prepare\", "]));
    problems.extend(texts_behind(&source("participants/core/src/sql.rs"), &["Err(", "ok_or("]));
    problems.extend(texts_behind(&source("participants/core/src/values.rs"), &["Some(\""].map(|mark| &mark[..5])));
    assert!(problems.len() > 25, "{}", problems.len());
    assert_all_met("operations", &problems, &met_by("operations"));
}

#[test]
fn each_type_of_a_parameter_is_bound_and_refused() {
    let met = met_by("payloads");
    for kind in ["text", "integer", "decimal", "minor", "timestamp", "date", "json", "boolean"] {
        assert!(met.contains(format!("bound: {kind}").as_str()), "{kind}");
    }
    for refused in ["payload: unreadable", "parameter: unreadable", "parameter: AMOUNT"] {
        assert!(met.contains(refused), "{refused}");
    }
}
