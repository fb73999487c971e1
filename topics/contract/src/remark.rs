//! By whom a transaction was asked for again, and why: headers of the request's record, for people.
//!
//! | header | value |
//! |---|---|
//! | `suture-retry-of` | the txid that was aborted |
//! | `suture-who` | who asked: a user's name, or `ingest` |
//! | `suture-because` | why |
//!
//! Nobody obeys them, so they need no version of the message: an older reader passes over them. They go with their record,
//! and whoever must keep them longer exports them before.
//!
//! Left out: any other header. `type`, `v` and `traceparent` are the codec's and the tracer's.

use std::ffi::CStr;

use crate::ids::{InvalidName, Txid};

/// Who asked again, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    retry_of: Txid,
    who: String,
    because: String,
}

/// Longest text, in bytes.
pub const MAX_BYTES: usize = 500;

/// The headers' names, as librdkafka takes them.
pub const NAMES: [&CStr; 3] = [c"suture-retry-of", c"suture-who", c"suture-because"];

impl Remark {
    /// Takes texts of 1 to [`MAX_BYTES`] bytes on one line.
    ///
    /// # Errors
    /// A text that is not so.
    pub fn new(retry_of: Txid, who: &str, because: &str) -> Result<Self, InvalidName> {
        let (who, because) = (line("who", who)?, line("because", because)?);
        Ok(Self { retry_of, who, because })
    }

    /// Of which transaction this is the next attempt.
    pub fn retry_of(&self) -> Txid {
        self.retry_of
    }

    /// Who asked.
    pub fn who(&self) -> &str {
        &self.who
    }

    /// Why.
    pub fn because(&self) -> &str {
        &self.because
    }

    /// As headers, in the order of [`NAMES`].
    pub fn headers(&self) -> [(&'static str, String); 3] {
        let [retry_of, who, because] = NAMES.map(|name| name.to_str().expect("they are ASCII"));
        [(retry_of, self.retry_of.to_string()), (who, self.who.clone()), (because, self.because.clone())]
    }

    /// From the headers' values in the order of [`NAMES`]; `None` unless all are there and as they should be.
    pub fn of_headers(values: [Option<&[u8]>; 3]) -> Option<Self> {
        let text = |value: Option<&[u8]>| value.and_then(|value| String::from_utf8(value.to_vec()).ok());
        let [retry_of, who, because] = values.map(text);
        Self::new(retry_of?.parse().ok()?, &who?, &because?).ok()
    }
}

/// What a person writes for people: 1 to [`MAX_BYTES`] bytes on one line.
///
/// # Errors
/// A text that is not so.
pub fn line(what: &'static str, text: &str) -> Result<String, InvalidName> {
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_BYTES || text.chars().any(char::is_control) {
        return Err(InvalidName { what, rule: "1 to 500 bytes of text on one line" });
    }
    Ok(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_survives_its_headers() {
        let remark =
            Remark::new("k3f9q-3-1042".parse().unwrap(), " maria ", "coverage put right, ticket 4711").unwrap();
        let headers = remark.headers();
        assert_eq!(headers.clone().map(|(name, _)| name), ["suture-retry-of", "suture-who", "suture-because"]);
        assert_eq!((remark.who(), remark.retry_of().to_string().as_str()), ("maria", "k3f9q-3-1042"));
        assert_eq!(remark.because(), "coverage put right, ticket 4711");
        let values = headers.each_ref().map(|(_, value)| Some(value.as_bytes()));
        assert_eq!(Remark::of_headers(values), Some(remark));
        for missing in 0..3 {
            let mut values = values;
            values[missing] = None;
            assert_eq!(Remark::of_headers(values), None);
        }
        assert_eq!(Remark::of_headers([Some(b"k3f9q"), values[1], values[2]]), None);
        assert_eq!(Remark::of_headers([values[0], Some(b"\xff"), values[2]]), None);
    }

    #[test]
    fn who_and_why_are_one_line_each() {
        let txid: Txid = "k3f9q-3-1042".parse().unwrap();
        for wrong in ["", "  ", "a\nb", "\x1b[31mred", &"x".repeat(501)] {
            assert!(Remark::new(txid, wrong, "why").is_err() && Remark::new(txid, "who", wrong).is_err(), "{wrong:?}");
        }
        assert!(line("because", &"x".repeat(MAX_BYTES)).is_ok());
    }
}
