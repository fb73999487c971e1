//! From a payload's JSON to the typed values that a database gets.
//!
//! | type | taken | becomes |
//! |---|---|---|
//! | `text` | a string without NUL | text |
//! | `integer` | a whole number of 64 bits | integer |
//! | `decimal` | a number of at most 28 digits, not rounded | numeric (not for SQLite, which has none) |
//! | `minor` | money: `{"value":15402.80,"currency":"USD"}`, or a number with `currency` or `scale` declared | integer minor units: 1540280 |
//! | `timestamp` | RFC 3339 with any zone, of the years 0000 to 9999 in UTC | timestamptz; SQLite: integer milliseconds UTC |
//! | `date` | `2020-02-29`; of a timestamp the day as written | date; SQLite: text |
//! | `json` | anything | compact text |
//! | `boolean` | true or false | boolean; SQLite: 0 or 1 |
//!
//! Nothing is converted in silence: what is missing or of another kind makes the payload unreadable, and an amount with
//! more decimals than its currency has is refused as [`AMOUNT`], where databases would round it.
//!
//! No error here holds a value.

use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::Deserialize;
use serde_json::Value as Json;
use suture_contract::decimal;
use suture_contract::ids::code;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, UtcOffset};

/// The code of an amount with more decimals than its currency has.
pub const AMOUNT: &str = "AMOUNT";

/// A parameter as the configuration declares it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// Where it stands in the payload: a JSON pointer such as `/total/value`.
    pub path: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Whether it may be missing or null; it is NULL then.
    #[serde(default)]
    pub optional: bool,
    /// For a `minor` that is a bare number: its currency, as a code (`USD`) or as a JSON pointer to one.
    pub currency: Option<String>,
    /// For a `minor` that is a bare number: how many decimals it may have.
    pub scale: Option<u32>,
}

/// The types of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs)]
pub enum Kind {
    Text,
    Integer,
    Decimal,
    Minor,
    Timestamp,
    Date,
    Json,
    Boolean,
}

/// A value for a database.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs)]
pub enum Value {
    Null,
    Text(String),
    Integer(i64),
    Decimal(Decimal),
    Timestamp(OffsetDateTime),
    Date(Date),
    Boolean(bool),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Decimal => "decimal",
            Self::Minor => "minor",
            Self::Timestamp => "timestamp",
            Self::Date => "date",
            Self::Json => "json",
            Self::Boolean => "boolean",
        })
    }
}

impl Declared {
    /// Reads the value out of a payload. The error is a reason code.
    pub fn read(&self, payload: &Json) -> Result<Value, &'static str> {
        let Some(found) = payload.pointer(&self.path).filter(|found| !found.is_null()) else {
            return if self.optional { Ok(Value::Null) } else { Err(code::UNREADABLE) };
        };
        let read = match self.kind {
            Kind::Text => found.as_str().filter(|text| !text.contains('\0')).map(|text| Value::Text(text.to_string())),
            Kind::Integer => found.as_i64().map(Value::Integer),
            Kind::Decimal => exact(found).map(Value::Decimal),
            Kind::Minor => return self.read_minor(found, payload),
            Kind::Timestamp => found.as_str().and_then(timestamp).and_then(in_utc).map(Value::Timestamp),
            Kind::Date => found.as_str().and_then(day).map(Value::Date),
            Kind::Json => Some(Value::Text(found.to_string())),
            Kind::Boolean => found.as_bool().map(Value::Boolean),
        };
        read.ok_or(code::UNREADABLE)
    }

    fn read_minor(&self, found: &Json, payload: &Json) -> Result<Value, &'static str> {
        let amount = found.get("value").unwrap_or(found);
        let scale = match (self.scale, &self.currency) {
            (Some(scale), _) => Some(scale),
            (None, Some(pointer)) if pointer.starts_with('/') => {
                payload.pointer(pointer).and_then(Json::as_str).and_then(decimals_of)
            }
            (None, Some(currency)) => decimals_of(currency),
            (None, None) => found.get("currency").and_then(Json::as_str).and_then(decimals_of),
        };
        let (Some(amount), Some(scale)) = (exact(amount), scale) else { return Err(code::UNREADABLE) };
        if amount.normalize().scale() > scale {
            return Err(AMOUNT);
        }
        let minor = Decimal::from(10_i64.pow(scale)).checked_mul(amount).and_then(|minor| minor.to_i64());
        minor.map(Value::Integer).ok_or(code::UNREADABLE)
    }

    /// What is wrong with the declaration itself; `None`: nothing.
    pub fn problem(&self) -> Option<&'static str> {
        if !self.path.is_empty() && !self.path.starts_with('/') {
            return Some("path is no JSON pointer; write it as /total/value");
        }
        if self.kind != Kind::Minor && (self.currency.is_some() || self.scale.is_some()) {
            return Some("currency and scale belong to parameters of type minor");
        }
        if self.currency.is_some() && self.scale.is_some() {
            return Some("give currency or scale, not both");
        }
        if self.scale.is_some_and(|scale| scale > 9) {
            return Some("scale is at most 9");
        }
        match self.currency.as_deref() {
            Some(currency) if !currency.starts_with('/') && decimals_of(currency).is_none() => {
                Some("currency is three capital letters, or a JSON pointer")
            }
            _ => None,
        }
    }
}

fn exact(found: &Json) -> Option<Decimal> {
    decimal::exact(found.as_number()?)
}

fn timestamp(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// Drivers convert it too, and panic over a year that no zone of theirs has. One before the year 0000 no literal can say.
fn in_utc(at: OffsetDateTime) -> Option<OffsetDateTime> {
    at.checked_to_offset(UtcOffset::UTC).filter(|at| at.year() >= 0)
}

fn day(text: &str) -> Option<Date> {
    if text.len() == 10 {
        // ISO 8601 has days of weeks and of years of the same length.
        return Date::parse(text, format_description!("[year]-[month]-[day]")).ok();
    }
    timestamp(text).map(OffsetDateTime::date)
}

/// How many decimals a currency has (ISO 4217).
fn decimals_of(currency: &str) -> Option<u32> {
    if currency.len() != 3 || !currency.bytes().all(|b| b.is_ascii_uppercase()) {
        return None;
    }
    Some(match currency {
        "BIF" | "CLP" | "DJF" | "GNF" | "ISK" | "JPY" | "KMF" | "KRW" | "PYG" | "RWF" | "UGX" | "UYI" | "VND"
        | "VUV" | "XAF" | "XOF" | "XPF" => 0,
        "BHD" | "IQD" | "JOD" | "KWD" | "LYD" | "OMR" | "TND" => 3,
        "CLF" | "UYW" => 4,
        _ => 2,
    })
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text)).map_err(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn declared(kind: &str) -> Declared {
        Declared { path: "/x".to_string(), kind: kind.parse().unwrap(), optional: false, currency: None, scale: None }
    }

    fn read(declared: &Declared, payload: &str) -> Result<Value, &'static str> {
        declared.read(&serde_json::from_str(payload).unwrap())
    }

    #[test]
    fn each_type_takes_its_own_and_nothing_else() {
        let x = |kind: &str, text: &str| read(&declared(kind), &format!("{{\"x\":{text}}}")).ok();
        let int = |n| Some(Value::Integer(n));
        assert_eq!(x("text", "\"a\""), Some(Value::Text("a".to_string())));
        assert_eq!(x("integer", "-9223372036854775808"), int(i64::MIN));
        assert_eq!(x("decimal", "15402.80"), Some(Value::Decimal("15402.80".parse().unwrap())));
        assert_eq!(x("decimal", "1.0e2"), Some(Value::Decimal("100".parse().unwrap())));
        let digits = "1.234567890123456789012345678"; // as many as there may be
        assert_eq!(x("decimal", &format!("{digits}e0")), Some(Value::Decimal(digits.parse().unwrap())));
        assert_eq!(x("decimal", &format!("{digits}9e0")), None);
        assert_eq!(x("json", "{\"b\" : [1.50]}"), Some(Value::Text("{\"b\":[1.50]}".to_string())));
        assert_eq!(x("boolean", "true"), Some(Value::Boolean(true)));
        let utc = |ms: i128| Some(Value::Timestamp(OffsetDateTime::from_unix_timestamp_nanos(ms * 1_000_000).unwrap()));
        assert_eq!(x("timestamp", "\"1970-01-01T00:00:01Z\""), utc(1000));
        assert_eq!(x("timestamp", "\"1969-12-31T19:00:01.5-05:00\""), utc(1500));
        let leap = Some(Value::Date(time::macros::date!(2020 - 02 - 29)));
        assert_eq!(x("date", "\"2020-02-29\""), leap);
        assert_eq!(x("date", "\"2020-02-29T23:30:00-05:00\""), leap, "the day as written");
        let last = "\"9999-12-31T23:59:59-05:00\"";
        assert_eq!(x("timestamp", last), None, "the year 10000 in UTC");
        assert_eq!(x("date", last), Some(Value::Date(time::macros::date!(9999 - 12 - 31))));
        assert!(x("timestamp", "\"9999-12-31T23:59:59Z\"").is_some());
        assert_eq!(x("timestamp", "\"0000-01-01T00:00:00+05:00\""), None, "the year before 0000 in UTC");
        assert!(x("timestamp", "\"0000-01-01T00:00:00Z\"").is_some());

        let others: [(&str, &[&str]); 8] = [
            ("text", &["1", "true", "{}", "\"a\\u0000\"", "null"]),
            ("integer", &["1.0", "1e3", "\"1\"", "9223372036854775808", "1e400"]),
            ("decimal", &["\"1\"", "1e400", "1e-400", "1.00000000000000000000000000001", "{}"]),
            (
                "minor",
                &["1", "{\"value\":1}", "{\"value\":\"1\",\"currency\":\"USD\"}", "{\"value\":1,\"currency\":\"usd\"}"],
            ),
            ("timestamp", &["\"2020-02-29\"", "\"2020-02-29T00:00:00\"", "\"2020\"", "0"]),
            (
                "date",
                &[
                    "\"2020-02-30\"",
                    "\"2020-02\"",
                    "\"2020\"",
                    "\"20200229aa\"",
                    "20200229",
                    "\"2020-W09-6\"",
                    "\"-002202258\"",
                ],
            ),
            ("boolean", &["1", "\"true\""]),
            ("json", &["null"]),
        ];
        for (kind, texts) in others {
            for text in texts {
                assert_eq!(x(kind, text), None, "{kind} {text}");
            }
        }
    }

    #[test]
    fn money_becomes_minor_units_or_is_refused() {
        let x = |text: &str| read(&declared("minor"), &format!("{{\"x\":{text}}}"));
        assert_eq!(x(r#"{"value":15402.80,"currency":"USD"}"#), Ok(Value::Integer(1_540_280)));
        assert_eq!(x(r#"{"value":15402.8,"currency":"USD"}"#), Ok(Value::Integer(1_540_280)));
        assert_eq!(x(r#"{"value":0.1000,"currency":"USD"}"#), Ok(Value::Integer(10)), "zeros say nothing");
        assert_eq!(x(r#"{"value":0.001,"currency":"USD"}"#), Err(AMOUNT));
        assert_eq!(x(r#"{"value":0.001,"currency":"KWD"}"#), Ok(Value::Integer(1)));
        assert_eq!(x(r#"{"value":0.5,"currency":"JPY"}"#), Err(AMOUNT));
        assert_eq!(x(r#"{"value":0.0001,"currency":"CLF"}"#), Ok(Value::Integer(1)));
        assert_eq!(x(r#"{"value":0e-5,"currency":"USD"}"#), Ok(Value::Integer(0)));
        assert_eq!(x(r#"{"value":1e18,"currency":"USD"}"#), Err(code::UNREADABLE), "more than 64 bits");

        let bare = |currency: Option<&str>, scale| Declared {
            currency: currency.map(str::to_string),
            scale,
            ..declared("minor")
        };
        let payload = r#"{"x":12.5,"total":{"currency":"JPY"}}"#;
        assert_eq!(read(&bare(Some("USD"), None), payload), Ok(Value::Integer(1250)));
        assert_eq!(read(&bare(None, Some(3)), payload), Ok(Value::Integer(12_500)));
        assert_eq!(read(&bare(Some("/total/currency"), None), payload), Err(AMOUNT));
    }

    #[test]
    fn what_is_optional_may_be_missing_but_not_wrong() {
        let optional = Declared { optional: true, ..declared("integer") };
        assert_eq!(read(&optional, "{}"), Ok(Value::Null));
        assert_eq!(read(&optional, r#"{"x":null}"#), Ok(Value::Null));
        assert_eq!(read(&optional, r#"{"x":"a"}"#), Err(code::UNREADABLE));
        assert_eq!(read(&declared("integer"), "[]"), Err(code::UNREADABLE));
    }

    #[test]
    fn a_declaration_says_what_is_wrong_with_it() {
        let problem = |declared: Json| {
            let declared: Declared = serde_json::from_value(declared).unwrap();
            declared.problem().map(|problem| problem.split(' ').next().unwrap().to_string())
        };
        let wrong = |word: &str| Some(word.to_string());
        for right in [
            json!({ "path": "", "type": "json" }),
            json!({ "path": "/a", "type": "minor", "scale": 9 }),
            json!({ "path": "/a", "type": "minor", "currency": "EUR" }),
            json!({ "path": "/a", "type": "minor", "currency": "/b" }),
        ] {
            assert_eq!(problem(right.clone()), None, "{right}");
        }
        assert_eq!(problem(json!({ "path": "total", "type": "text" })), wrong("path"));
        assert_eq!(problem(json!({ "path": "/a", "type": "integer", "scale": 2 })), wrong("currency"));
        assert_eq!(problem(json!({ "path": "/a", "type": "minor", "currency": "EUR", "scale": 2 })), wrong("give"));
        assert_eq!(problem(json!({ "path": "/a", "type": "minor", "scale": 10 })), wrong("scale"));
        for currency in ["eur", "EURO", "E1R", ""] {
            assert_eq!(problem(json!({ "path": "/a", "type": "minor", "currency": currency })), wrong("currency"));
        }
    }

    #[test]
    fn kinds_are_written_as_they_are_read() {
        for kind in ["text", "integer", "decimal", "minor", "timestamp", "date", "json", "boolean"] {
            assert_eq!(kind.parse::<Kind>().unwrap().to_string(), kind);
        }
    }
}
