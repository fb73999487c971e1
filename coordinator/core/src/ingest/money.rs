//! Amounts, exactly: the digits of the source stay, and nothing ever passes through a floating-point number.
//!
//! An amount with more decimals than its currency has is refused, because databases round such a one in silence.
//! Trailing zeros are no decimals in that sense: `125.0` is an amount of yen.

use rust_decimal::Decimal;
use serde_json::{Number, Value};
use suture_contract::decimal::exact;

use super::reason;

/// FHIR's `Money`: value and currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Money {
    /// The exact value.
    pub value: Decimal,
    /// As in the source; plain digits where the source has an exponent.
    pub digits: Number,
    /// Three capital letters (ISO 4217).
    pub currency: String,
}

impl Money {
    /// Reads a `Money`; the error is a reason code.
    pub fn read(node: &Value) -> Result<Self, &'static str> {
        let Some(Value::Number(number)) = node.get("value") else { return Err(reason::BAD_AMOUNT) };
        let currency = node.get("currency").and_then(Value::as_str).unwrap_or_default();
        if currency.len() != 3 || !currency.bytes().all(|b| b.is_ascii_uppercase()) {
            return Err(reason::BAD_CURRENCY);
        }
        let value = exact(number).ok_or(reason::BAD_AMOUNT)?;
        if value.normalize().scale() > minor_digits(currency) {
            return Err(reason::TOO_MANY_DECIMALS);
        }
        let has_exponent = number.as_str().contains(['e', 'E']);
        let digits = if has_exponent { number_of(value) } else { number.clone() };
        Ok(Self { value, digits, currency: currency.to_string() })
    }
}

/// A decimal as a JSON number, digit by digit.
pub(super) fn number_of(value: Decimal) -> Number {
    serde_json::from_str(&value.to_string()).expect("a decimal is written as digits with at most one point")
}

/// How many decimals a currency has (ISO 4217, "minor unit").
fn minor_digits(currency: &str) -> u32 {
    match currency {
        "BIF" | "CLP" | "DJF" | "GNF" | "ISK" | "JPY" | "KMF" | "KRW" | "PYG" | "RWF" | "UGX" | "UYI" | "VND"
        | "VUV" | "XAF" | "XOF" | "XPF" => 0,
        "BHD" | "IQD" | "JOD" | "KWD" | "LYD" | "OMR" | "TND" => 3,
        "CLF" | "UYW" => 4,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Money, &'static str> {
        Money::read(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn digits_stay_as_they_are() {
        for digits in ["15402.80", "15402.8", "15402", "125.0", "0.00", "-3.10", "15402.8000"] {
            let money = read(&format!(r#"{{"value":{digits},"currency":"USD"}}"#)).unwrap();
            assert_eq!(money.digits.to_string(), digits);
        }
        assert_eq!(read(r#"{"value":1.54028e4,"currency":"USD"}"#).unwrap().digits.to_string(), "15402.8");
        assert_eq!(read(r#"{"value":125.0,"currency":"JPY"}"#).unwrap().digits.to_string(), "125.0");
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for (json, code) in [
            (r#"{"value":0.125,"currency":"USD"}"#, reason::TOO_MANY_DECIMALS),
            (r#"{"value":0.5,"currency":"JPY"}"#, reason::TOO_MANY_DECIMALS),
            (r#"{"value":0.1255,"currency":"KWD"}"#, reason::TOO_MANY_DECIMALS),
            (r#"{"value":1e-3,"currency":"USD"}"#, reason::TOO_MANY_DECIMALS),
            (r#"{"value":1e400,"currency":"USD"}"#, reason::BAD_AMOUNT),
            (r#"{"value":1e-400,"currency":"USD"}"#, reason::BAD_AMOUNT),
            (r#"{"value":1.00000000000000000000000000001e0,"currency":"USD"}"#, reason::BAD_AMOUNT),
            (r#"{"value":"12.50","currency":"USD"}"#, reason::BAD_AMOUNT),
            (r#"{"value":123456789012345678901234567890,"currency":"USD"}"#, reason::BAD_AMOUNT),
            (r#"{"currency":"USD"}"#, reason::BAD_AMOUNT),
            (r#"{"value":1}"#, reason::BAD_CURRENCY),
            (r#"{"value":1,"currency":"usd"}"#, reason::BAD_CURRENCY),
            (r#"{"value":1,"currency":"US Dollar"}"#, reason::BAD_CURRENCY),
            ("125", reason::BAD_AMOUNT),
        ] {
            assert_eq!(read(json), Err(code), "{json}");
        }
    }
}
