//! Upstream events under fixed rules: those that are shipped, and `rules.toml` here, which has a small rule for everything that a
//! rule can say.
//!
//! The first byte says which: `s` those that are shipped, `a` these. `t` is a tombstone, `u` an event of another topic, and `+`
//! an event longer than may be.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::Value;
use suture_contract::codec::{RequestsRecord, encode};
use suture_contract::ids::{LogLetters, OrderKey};
use suture_contract::messages::{MAX_REQUEST_BYTES, Rejection, Request};
use suture_contract::partitioner::shard_of;
use suture_coordinator_core::ingest::explain::{Explained, explain};
use suture_coordinator_core::ingest::rules::Rules;
use suture_coordinator_core::ingest::{Event, Mapped, map};
use suture_coordinator_core::records::Place;
use suture_coordinator_core::shard::Raw;

use crate::messages::respell;
use crate::met::Met;
use crate::numbers::Exact;
use crate::{KEYS, assert_is_silent};

const PARTITIONS: u16 = 12;

/// A file of rules, and its words.
struct Known {
    rules: Rules,
    words: BTreeSet<String>,
}

static SHIPPED: LazyLock<Known> = LazyLock::new(|| Known::of(include_str!("../../../config/rules.toml")));
static ALL: LazyLock<Known> = LazyLock::new(|| {
    let constant = "x".repeat(MAX_REQUEST_BYTES);
    Known::of(&include_str!("../rules.toml").replace("LONGER THAN A REQUEST MAY BE", &constant))
});

/// Maps an event.
pub fn check(input: &[u8]) -> Met {
    let mut met = Met::default();
    let Some((&which, value)) = input.split_first() else { return met };
    let known = if which == b's' { &*SHIPPED } else { &*ALL };
    let longer = [value, &vec![b' '; MAX_REQUEST_BYTES]].concat();
    let value = match which {
        b't' => None,
        b'+' => Some(longer.as_slice()),
        _ => Some(value),
    };
    let topic = if which == b'u' { "another" } else { "hospital.surgeries" };
    let mapped = known.map(topic, value);
    let told = format!("{mapped:?}");
    assert_eq!(told, format!("{:?}", known.map(topic, value)), "mapped again");
    match &mapped {
        Mapped::Ignored { why } => met.variant(why),
        Mapped::Rejected(rejection) => known.refused(rejection, &mut met),
        Mapped::Request { order_key, request } => is_taken(order_key, request, &mut met),
    }
    if topic == "another" {
        return met;
    }
    known.explains(value, &mapped);
    if let Some(value) = value.filter(|value| value.len() <= 64 * 1024) {
        known.hangs_on_content(value, &mapped);
    }
    met
}

impl Known {
    fn of(toml: &str) -> Self {
        let rules = Rules::parse(toml).unwrap_or_else(|error| panic!("{error}"));
        Self { rules, words: words(toml).map(str::to_string).collect() }
    }

    fn map(&self, topic: &str, value: Option<&[u8]>) -> Mapped {
        map(&self.rules, &KEYS, &Event { topic, partition: 3, offset: 41, value })
    }

    /// A rejection is made of the rules' words alone.
    fn refused(&self, rejection: &Rejection, met: &mut Met) {
        met.text(rejection.code.as_str().to_string());
        assert_is_silent(&format!("{rejection:?}"));
        for word in words(rejection.field.as_deref().unwrap_or_default()) {
            let is_known = ["match", "business_key", "order_key", "entry"].contains(&word)
                || word.bytes().all(|b| b.is_ascii_digit())
                || self.words.contains(word);
            assert!(is_known, "of the event: {word}");
        }
    }

    /// What people are told is what happens.
    fn explains(&self, value: Option<&[u8]>, mapped: &Mapped) {
        let explanation = explain(&self.rules, &KEYS, PARTITIONS, value);
        explanation.to_text();
        explanation.to_json();
        match (explanation.result, mapped) {
            (Explained::Request(told), Mapped::Request { order_key, request }) => {
                assert_eq!(
                    (told.order_key, told.business_key),
                    (order_key.to_string(), request.business_key.to_string())
                );
                assert_eq!((told.hash, told.branches.len()), (request.hash.to_string(), request.branches.len()));
                assert_eq!(told.shard, shard_of(order_key.as_str().as_bytes(), PARTITIONS).0);
            }
            (Explained::Rejected { code, field }, Mapped::Rejected(rejection)) => {
                assert_eq!((code, &field), (rejection.code.as_str(), &rejection.field));
            }
            (Explained::Ignored { why: told }, Mapped::Ignored { why }) => assert_eq!(told, why.as_str()),
            (explained, mapped) => panic!("{explained:?}, and {mapped:?}"),
        }
    }

    /// White space, the order of an object's keys and that of the Bundle's entries change nothing.
    fn hangs_on_content(&self, value: &[u8], mapped: &Mapped) {
        let Ok(mut event) = serde_json::from_slice::<Value>(value) else { return };
        let mut text = String::new();
        respell(&event, &mut text);
        let spelled_otherwise = self.map("hospital.surgeries", Some(text.as_bytes()));
        assert_eq!(format!("{spelled_otherwise:?}"), format!("{mapped:?}"), "spelled otherwise");
        let Some(entries) = event.get_mut("entry").and_then(Value::as_array_mut) else { return };
        entries.reverse();
        let reversed = self.map("hospital.surgeries", Some(event.to_string().as_bytes()));
        assert_eq!(without_place(&reversed), without_place(mapped), "entries the other way round");
    }
}

/// An entry's number is the one thing that hangs on its place, and so does which of several faults is told.
fn without_place(mapped: &Mapped) -> String {
    match mapped {
        Mapped::Rejected(_) => "rejected".to_string(),
        Mapped::Request { .. } | Mapped::Ignored { .. } => format!("{mapped:?}"),
    }
}

/// The coordinator takes what ingest makes, and amounts are those of the source.
fn is_taken(order_key: &OrderKey, request: &Request, met: &mut Met) {
    met.text("a request");
    let shard = shard_of(order_key.as_str().as_bytes(), PARTITIONS);
    let log: LogLetters = "k3f9q".parse().expect("valid letters");
    let place = Place { log, shard, partitions: PARTITIONS };
    let value = encode(request);
    let key = Some(order_key.as_str().as_bytes());
    let raw = Raw { offset: 7, timestamp_ms: 0, key, value: Some(&value), traceparent: None };
    match place.read_request(raw) {
        Ok(Ok(RequestsRecord::Request(read))) => {
            let hash = KEYS.hash.request_hash(&read.business_key, &read.branches).ok();
            assert_eq!((hash, read.hash), (Some(request.hash), request.hash));
            assert_eq!(encode(&read), value);
        }
        other => panic!("{other:?}"),
    }
    for branch in &request.branches {
        let payload: Value = serde_json::from_str(branch.payload.get()).expect("a payload is JSON");
        if let (Some(source), Some(amount)) = (payload.get("digits"), payload.pointer("/amount/value")) {
            assert_eq!(Exact::read(&amount.to_string()), Exact::read(&source.to_string()), "an amount");
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}
