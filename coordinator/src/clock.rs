//! The one place of this crate that reads clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock, in milliseconds since 1970. Only for ages of records, which carry the broker's clock.
#[expect(clippy::disallowed_methods, reason = "the shell's clock: the core takes time as an argument")]
pub(crate) fn wall_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

/// The monotonic clock.
pub(crate) fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
