//! A payload with made-up values, of the declared types and at the declared places: for whoever tries an operation before
//! the first event has come, and for whoever wants to know what a payload looks like.

use serde_json::{Map, Value, json};

use crate::values::{Declared, Kind};

/// The currency of made-up amounts.
const CURRENCY: &str = "USD";

/// A payload that each of these can be read from.
pub fn sample_payload<'a>(declared: impl Iterator<Item = &'a Declared> + Clone) -> Value {
    let mut payload = Value::Object(Map::new());
    for parameter in declared.clone().filter(|parameter| parameter.kind != Kind::Minor) {
        place(&mut payload, &parameter.path, value(parameter.kind));
    }
    // Behind the texts, one of which may stand where an amount has its currency.
    for parameter in declared.filter(|parameter| parameter.kind == Kind::Minor) {
        place(&mut payload, &format!("{}/value", parameter.path), json!(1));
        match &parameter.currency {
            Some(pointer) if pointer.starts_with('/') => place(&mut payload, pointer, json!(CURRENCY)),
            Some(_) => {}
            None if parameter.scale.is_some() => {}
            None => place(&mut payload, &format!("{}/currency", parameter.path), json!(CURRENCY)),
        }
    }
    payload
}

fn value(kind: Kind) -> Value {
    match kind {
        Kind::Text => json!("sample"),
        Kind::Integer | Kind::Decimal | Kind::Minor => json!(1),
        Kind::Timestamp => json!("2020-02-29T12:00:00Z"),
        Kind::Date => json!("2020-02-29"),
        Kind::Json => json!([]),
        Kind::Boolean => json!(true),
    }
}

/// Sets what a JSON pointer means, and makes the objects on the way there.
fn place(payload: &mut Value, pointer: &str, value: Value) {
    let mut at = payload;
    for key in pointer.split('/').skip(1) {
        let key = key.replace("~1", "/").replace("~0", "~");
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(object) = at else { return };
        at = object.entry(key).or_insert(Value::Null);
    }
    *at = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_can_be_read_by_its_parameters() {
        let declared: Vec<Declared> = serde_json::from_value(json!([
            { "path": "/patient/value", "type": "text" },
            { "path": "/total/currency", "type": "text" },
            { "path": "/total", "type": "minor" },
            { "path": "/net", "type": "minor", "currency": "/billed/in" },
            { "path": "/fee", "type": "minor", "currency": "EUR" },
            { "path": "/tax", "type": "minor", "scale": 2 },
            { "path": "/at", "type": "timestamp" },
            { "path": "/day", "type": "date" },
            { "path": "/rate", "type": "decimal" },
            { "path": "/count", "type": "integer" },
            { "path": "/all", "type": "json" },
            { "path": "/is", "type": "boolean" }
        ]))
        .unwrap();
        let payload = sample_payload(declared.iter());
        assert_eq!(payload["total"], json!({ "value": 1, "currency": "USD" }));
        assert_eq!(payload["net"], json!({ "value": 1 }), "its currency stands elsewhere");
        assert_eq!(payload["billed"], json!({ "in": "USD" }));
        assert_eq!(payload["tax"], json!({ "value": 1 }), "no currency is needed");
        assert_eq!(payload.get("EUR"), None);
        for parameter in &declared {
            assert!(parameter.read(&payload).is_ok(), "{parameter:?} of {payload}");
        }
    }
}
