//! The only place where a clock is read.

use std::time::Instant;

/// The time, to tell how long something took.
#[expect(clippy::disallowed_methods, reason = "only for what is told: nothing that is checked has a time")]
pub fn now() -> Instant {
    Instant::now()
}
