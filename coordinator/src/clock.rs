//! The one place of this crate that reads clocks.

/// The wall clock, in milliseconds since 1970. Only for ages of records, which carry the broker's clock.
#[cfg(not(suture_simulated))]
#[expect(clippy::disallowed_methods, reason = "the shell's clock: the core takes time as an argument")]
pub(crate) fn wall_ms() -> i64 {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

/// That of the simulation.
#[cfg(suture_simulated)]
pub(crate) use suture_topics::simulated::wall_ms;

/// The monotonic clock.
pub(crate) fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
