//! The one place of this crate that reads a clock.

/// The monotonic clock.
pub(crate) fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
