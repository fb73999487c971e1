//! The bounds that are explored.

use super::alphabet::Asked;
use super::world::{Bounds, Retention};

const NOTHING: Bounds = Bounds {
    name: "",
    asked: &[],
    votes: 2,
    decisions: 2,
    held_votes: 8,
    clean_up: false,
    purge: false,
    retention: Retention::Nothing,
    restore: false,
    strays: false,
    unknown: false,
};

const fn of_key(attempt: u32, content: u8) -> Asked {
    Asked::Request { key: 0, attempt, content, ordered: false }
}

const ONE: &[Asked] = &[Asked::own(0)];
const TWO: &[Asked] = &[Asked::own(0), Asked::own(1)];

const THREE: &[Asked] = &[Asked::own(0), Asked::own(1), Asked::own(2)];

const ORDERED: Asked = Asked::Request { key: 0, attempt: 1, content: 0, ordered: true };
const ORDERED_NEXT: Asked = Asked::Request { key: 1, attempt: 1, content: 0, ordered: true };

const fn one(name: &'static str) -> Bounds {
    Bounds { name, asked: ONE, ..NOTHING }
}

const fn two(name: &'static str) -> Bounds {
    Bounds { name, asked: TWO, ..NOTHING }
}

const fn cleaned(bounds: Bounds, retention: Retention) -> Bounds {
    Bounds { clean_up: true, purge: true, retention, ..bounds }
}

/// A run, and how many states it has, if it ever came to its end. A count that changes says that what can happen has changed: look
/// why.
pub type Run = (Bounds, Option<u64>);

/// What runs for every change: the longest first, for several run at once.
pub const CI: &[Run] = &[
    (
        cleaned(Bounds { votes: 1, decisions: 3, ..two("two requests, cleaned up") }, Retention::Finished),
        Some(12_635_346),
    ),
    (Bounds { votes: 3, decisions: 3, ..one("one request") }, Some(59_818)),
    (cleaned(Bounds { decisions: 3, ..one("one request, cleaned up") }, Retention::Finished), Some(1_509_781)),
    (cleaned(one("one request, deleted too early"), Retention::Anything), Some(305_557)),
    (Bounds { restore: true, ..one("one request, restored") }, Some(56_203)),
    (Bounds { restore: true, clean_up: true, decisions: 3, ..one("one request, restored, cleaned up") }, Some(424_412)),
    (two("two requests"), Some(881_110)),
    (Bounds { decisions: 1, held_votes: 0, ..two("two requests, no early vote held") }, Some(136_907)),
    (Bounds { asked: &[of_key(1, 0), of_key(1, 0)], ..one("one key twice") }, Some(780_182)),
    (Bounds { asked: &[of_key(1, 0), of_key(2, 0)], ..one("a second attempt") }, Some(1_250_022)),
    (Bounds { asked: &[of_key(1, 0), of_key(1, 1)], decisions: 1, ..one("a conflict") }, Some(126_873)),
    (Bounds { asked: &[Asked::own(0), Asked::Cancel(0)], ..one("cancelled") }, Some(9_151)),
    (Bounds { decisions: 1, strays: true, ..one("stray votes") }, Some(10_505)),
    (Bounds { unknown: true, decisions: 1, ..two("a participant that few know") }, Some(136_907)),
    (Bounds { asked: THREE, votes: 1, decisions: 3, ..one("three requests") }, Some(2_502_212)),
    (Bounds { asked: &[ORDERED, ORDERED_NEXT, Asked::Cancel(0)], ..one("ordered, cancelled") }, Some(656_176)),
    (Bounds { asked: &[ORDERED, ORDERED_NEXT], ..one("ordered") }, Some(330_376)),
];

/// What runs by hand, beside those.
pub const FULL: &[Run] = &[
    (
        cleaned(Bounds { votes: 3, decisions: 4, ..one("one request, cleaned up, larger") }, Retention::Finished),
        Some(67_403_678),
    ),
    (cleaned(two("two requests, cleaned up, larger"), Retention::Finished), Some(52_919_833)),
    (Bounds { restore: true, ..two("two requests, restored") }, Some(25_115_060)),
    (Bounds { decisions: 3, ..two("two requests, larger") }, Some(4_093_944)),
    (Bounds { asked: THREE, ..one("three requests, larger") }, Some(46_281_466)),
];
