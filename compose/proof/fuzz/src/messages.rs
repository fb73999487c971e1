//! Messages: what is read is written again, on one line, and that is read as the same; what is refused is told by a fixed text.
//!
//! The first byte names the topic: `r` requests, `p` prepares, `v` votes, `d` decisions, `o` outcomes, `j` rejections. The rest
//! is the value.

use serde_json::Value;
use suture_contract::codec::{
    Message, OutcomesRecord, RequestsRecord, Unreadable, decode, decode_outcomes_record, decode_requests_record, encode,
};
use suture_contract::messages::{Branch, Decision, Prepare, Rejection, Request, Vote};

use crate::met::Met;
use crate::{KEYS, assert_is_silent};

/// Reads and writes.
pub fn check(input: &[u8]) -> Met {
    let mut met = Met::default();
    let Some((&topic, value)) = input.split_first() else { return met };
    match read_and_write(topic, value) {
        None => {}
        Some(Ok(line)) => {
            assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
            assert_eq!(read_and_write(topic, &line), Some(Ok(line)), "written again");
        }
        Some(Err(unreadable)) => {
            is_fixed(&unreadable);
            assert_eq!(read_and_write(topic, value), Some(Err(unreadable)));
            met.variant(&unreadable);
        }
    }
    if topic == b'r'
        && let Ok(RequestsRecord::Request(request)) = decode_requests_record(value)
    {
        hash_hangs_on_content(&request);
    }
    met
}

fn read_and_write(topic: u8, value: &[u8]) -> Option<Result<Vec<u8>, Unreadable>> {
    Some(match topic {
        b'r' => decode_requests_record(value).map(|record| match record {
            RequestsRecord::Request(request) => encode(&request),
            RequestsRecord::Cancel(cancel) => encode(&cancel),
        }),
        b'p' => again::<Prepare>(value),
        b'v' => again::<Vote>(value),
        b'd' => again::<Decision>(value),
        b'o' => decode_outcomes_record(value).map(|record| match record {
            OutcomesRecord::Outcome(outcome) => encode(&outcome),
            OutcomesRecord::Incident(incident) => encode(&*incident),
        }),
        b'j' => again::<Rejection>(value),
        _ => return None,
    })
}

fn again<M: Message>(value: &[u8]) -> Result<Vec<u8>, Unreadable> {
    decode::<M>(value).map(|message| encode(&message))
}

/// But for numbers, an error is one of five texts.
fn is_fixed(unreadable: &Unreadable) {
    let text = unreadable.to_string();
    assert_is_silent(&text);
    let words: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
    let fixed = [
        "version  is newer than this build, which reads up to version ",
        "the record is empty",
        "the record is of another type than belongs here",
        "not valid JSON (column )",
        "not the fields of this message (column )",
    ];
    assert!(fixed.contains(&words.as_str()), "{text}");
}

/// The hash of a request is that of its content, however the JSON is spelled.
fn hash_hangs_on_content(request: &Request) {
    let key = &KEYS.hash;
    let Ok(hash) = key.request_hash(&request.business_key, &request.branches) else { return };
    let respelled: Vec<Branch> = request.branches.iter().map(respelled).collect();
    assert_eq!(key.request_hash(&request.business_key, &respelled).ok(), Some(hash), "spelled otherwise");
    let mut other = request.branches.clone();
    if let Some(branch) = other.first_mut() {
        branch.operation.push('x');
        assert_ne!(key.request_hash(&request.business_key, &other).ok(), Some(hash), "another operation");
    }
}

fn respelled(branch: &Branch) -> Branch {
    let payload: Value = serde_json::from_str(branch.payload.get()).expect("it has a hash, so it is JSON");
    let mut text = String::new();
    respell(&payload, &mut text);
    let payload = serde_json::value::RawValue::from_string(text).expect("it is JSON again");
    Branch { payload, ..branch.clone() }
}

/// The same JSON with white space, and with the keys of objects the other way round.
pub(crate) fn respell(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            out.push('{');
            for (i, (name, field)) in fields.iter().rev().enumerate() {
                out.push_str(if i > 0 { " ,\t" } else { " " });
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push_str(" :\n");
                respell(field, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { " , " } else { " " });
                respell(item, out);
            }
            out.push_str(" ]");
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}
