//! Everything that reads bytes from outside, given any bytes: it ends, it does not panic, and what it says of them holds.
//!
//! Each module is one target: a function of one input, which panics if something is broken, and answers what it has [met].
//! `compose/proof/fuzz/run` lets libFuzzer look for inputs that reach new code; `corpus/<target>/` is where it begins, and keeps
//! whatever has broken something. `tests/corpus.rs` is an ordinary test: it gives them to the same functions, and asks that each way of
//! refusing was met.
//!
//! - [`names`]: txids, participants, keys, hashes, gids, topics, remarks, and the shard of a key;
//! - [`positions`]: what stands in the metadata of a committed offset;
//! - [`messages`]: the values of all topics;
//! - [`records`]: records in their logs, as coordinator, clean-up, audit, driving again and participants take them;
//! - [`events`]: upstream events under fixed rules; [`rules`]: files of rules;
//! - [`payloads`]: payloads under a fixed operation; [`operations`]: files of operations.
//!
//! Left out: what only drivers and servers read (Kafka's own protocol, SQL answers), and the services' configuration files,
//! but for their operations and rules.

pub mod met;

pub mod names;
pub mod positions;

pub mod messages;
pub mod records;

pub mod events;
pub mod rules;

pub mod operations;
pub mod payloads;

mod numbers;

use std::sync::LazyLock;

use suture_contract::keys::{HashKey, IdentityKey};
use suture_coordinator_core::ingest::Keys;

/// A function of one input.
pub type Check = fn(&[u8]) -> met::Met;

/// All targets. Each has a file in `fuzz_targets` and a folder in `corpus`.
pub const TARGETS: [(&str, Check); 8] = [
    ("names", names::check),
    ("positions", positions::check),
    ("messages", messages::check),
    ("records", records::check),
    ("events", events::check),
    ("rules", rules::check),
    ("operations", operations::check),
    ("payloads", payloads::check),
];

/// Stands in for what must never be in an error: the inputs of the corpus hold it wherever content may stand.
pub const CANARY: &str = "canary";

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let secret = b"a key for fuzzing";
    let id = "k1".parse().expect("a valid name");
    let hash = HashKey::new(id, secret).expect("it is long enough");
    Keys { identity: IdentityKey::new(secret).expect("it is long enough"), hash }
});

/// An error says nothing of the content.
fn assert_is_silent(error: &str) {
    assert!(!error.contains(CANARY), "content in an error: {error}");
}

/// What a target is without libFuzzer.
pub fn not_built_for_it() -> std::process::ExitCode {
    eprintln!("this is no fuzzer: compose/proof/fuzz/run builds one");
    std::process::ExitCode::FAILURE
}
