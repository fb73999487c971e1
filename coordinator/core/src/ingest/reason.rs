//! Why an event is rejected. The codes stand in `suture.rejected`; what to do about each is in its comment.

/// No bytes at all (a null value is a tombstone, which is ignored).
pub const EMPTY: &str = "empty";
/// The event, or the request made of it, is longer than a request may be: the source must send one case an event.
pub const TOO_BIG: &str = "too_big";
/// Not UTF-8: the source sends another character set.
pub const NOT_UTF8: &str = "not_utf8";
/// Not JSON, or cut off.
pub const NOT_JSON: &str = "not_json";
/// Nested deeper than 128.
pub const TOO_DEEP: &str = "too_deep";
/// Two entries of the Bundle are the same thing, so FHIR fails all of it.
pub const DUPLICATE_IDENTITY: &str = "duplicate_identity";
/// A resource or an element that the rule needs is not there.
pub const MISSING: &str = "missing";
/// There are several where the rule needs one.
pub const AMBIGUOUS: &str = "ambiguous";
/// A reference leads out of the Bundle, to another type, or to something without the wanted identifier.
pub const UNRESOLVED_REFERENCE: &str = "unresolved_reference";
/// An object or a list where the rule copies a text, a number or a truth value.
pub const NOT_A_VALUE: &str = "not_a_value";
/// Not a time with its zone (RFC 3339), or not a day.
pub const BAD_TIME: &str = "bad_time";
/// Not a JSON number, negative, or of more than 28 digits.
pub const BAD_AMOUNT: &str = "bad_amount";
/// More decimals than the currency has.
pub const TOO_MANY_DECIMALS: &str = "too_many_decimals";
/// No currency, or not three capital letters.
pub const BAD_CURRENCY: &str = "bad_currency";
/// Amounts of several currencies in one sum.
pub const CURRENCY_MISMATCH: &str = "currency_mismatch";
/// A revision that is not 1 to 64 of letters, digits, `.`, `_` and `-`.
pub const BAD_REVISION: &str = "bad_revision";
