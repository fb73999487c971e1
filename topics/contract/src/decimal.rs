//! Numbers of payloads, exactly: nothing ever passes through a floating-point number, and nothing is rounded.

use rust_decimal::Decimal;
use serde_json::Number;

/// A JSON number as a decimal. `None` if it has more digits than a decimal holds, or is too small for one.
pub fn exact(number: &Number) -> Option<Decimal> {
    let text = number.as_str();
    let Some((digits, _)) = text.split_once(['e', 'E']) else { return Decimal::from_str_exact(text).ok() };
    // More would be rounded without a word, and so would what is too small.
    if digits.bytes().filter(u8::is_ascii_digit).count() > 28 {
        return None;
    }
    let value = Decimal::from_scientific(text).ok()?;
    let is_zero = !digits.bytes().any(|b| (b'1'..=b'9').contains(&b));
    (value.is_zero() == is_zero).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_exactly_or_not_at_all() {
        for (json, read) in [
            ("15402.80", Some("15402.80")),
            ("-3.10", Some("-3.10")),
            ("1.54028e4", Some("15402.8")),
            ("1E2", Some("100")),
            ("0e9", Some("0")),
            ("1e-28", Some("0.0000000000000000000000000001")),
            ("1e-29", None),
            ("1e-400", None),
            ("1e400", None),
            ("1234567890123456789012345678", Some("1234567890123456789012345678")),
            ("123456789012345678901234567890", None),
            ("1.234567890123456789012345678e0", Some("1.234567890123456789012345678")),
            ("1.00000000000000000000000000001", None),
            ("1.00000000000000000000000000001e0", None),
        ] {
            let number: Number = serde_json::from_str(json).unwrap();
            assert_eq!(exact(&number).map(|value| value.to_string()).as_deref(), read, "{json}");
        }
    }
}
