//! Payloads under one operation that has a parameter of each kind: what is bound is what the payload says, exactly.
//!
//! The first byte is the parameter that is there (`a`, `b`, ..); all others are optional. The rest is the payload.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value as Json;
use serde_json::value::RawValue;
use suture_contract::ids::Txid;
use suture_participants_core::operations::{Mode, Operation, OperationConfig, compile_operations};
use suture_participants_core::sql::Dialect;
use suture_participants_core::values::{Kind, Value};

use crate::met::Met;
use crate::numbers::Exact;

/// One operation for each parameter, by its name.
#[derive(Deserialize)]
struct File {
    operation: std::collections::BTreeMap<String, OperationConfig>,
}

static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(|| {
    let file: File = toml::from_str(include_str!("../operations.toml")).expect("the file here");
    let operations = compile_operations(&file.operation, Mode::Xa, Dialect::Postgres).expect("the file here");
    operations.into_values().collect()
});

/// Binds a payload.
pub fn check(input: &[u8]) -> Met {
    let mut met = Met::default();
    let Some((&which, payload)) = input.split_first() else { return met };
    let Some(operation) = OPERATIONS.get(usize::from(which.wrapping_sub(b'a'))) else { return met };
    let Ok(payload) = serde_json::from_slice::<&RawValue>(payload) else { return met };
    let txid: Txid = "k3f9q-3-1042".parse().expect("a valid name");
    let bound = operation.bind(&txid, payload);
    assert_eq!(operation.bind(&txid, payload), bound);
    match bound {
        Ok(values) => {
            let payload: Json = serde_json::from_str(payload.get()).expect("it was bound");
            let step = &operation.prepare[0];
            for (value, kind) in step.values(&values).zip(&step.kinds).skip(1) {
                met.text(format!("bound: {kind}"));
                is_what_it_was(value, *kind, &payload, &operation.name);
            }
        }
        Err(unusable) => {
            let whole = if unusable.parameter.is_none() { "payload" } else { "parameter" };
            met.text(format!("{whole}: {}", unusable.code));
        }
    }
    met
}

fn is_what_it_was(value: &Value, kind: Kind, payload: &Json, operation: &str) {
    let source = payload.get("x").unwrap_or(&Json::Null);
    match (value, kind) {
        (Value::Null, _) => assert!(source.is_null() && operation.ends_with("optional")),
        (Value::Text(text), Kind::Text) => assert!(source == text.as_str() && !text.contains('\0')),
        (Value::Text(text), Kind::Json) => assert_eq!(&serde_json::from_str::<Json>(text).expect("it is JSON"), source),
        (Value::Integer(number), Kind::Integer) => {
            assert_eq!(Exact::read(&number.to_string()), Exact::read(&source.to_string()), "an integer");
        }
        (Value::Integer(minor), Kind::Minor) => {
            let amount = source.get("value").unwrap_or(source);
            let scale = match (source.get("currency").or(payload.get("currency")).and_then(Json::as_str), operation) {
                (_, "g minor scale") => 3,
                (_, "f minor currency") | (Some("USD"), _) => 2,
                (Some("JPY"), _) => 0,
                (Some("KWD"), _) => 3,
                _ => return,
            };
            let exact = Exact::read(&amount.to_string()).map(|exact| exact.shifted(scale));
            assert_eq!(Exact::read(&minor.to_string()), exact, "an amount");
        }
        (Value::Decimal(decimal), Kind::Decimal) => {
            assert_eq!(Exact::read(&decimal.to_string()), Exact::read(&source.to_string()), "a decimal");
        }
        (Value::Timestamp(at), Kind::Timestamp) => assert!(at.offset().is_utc() && (0..=9999).contains(&at.year())),
        (Value::Date(day), Kind::Date) => {
            let text = source.as_str().unwrap_or_default();
            assert_eq!(Some(day.to_string().as_str()), text.get(..10));
        }
        (Value::Boolean(truth), Kind::Boolean) => assert_eq!(source.as_bool(), Some(*truth)),
        (value, kind) => panic!("{value:?} of type {kind}"),
    }
}
