//! The coordinator's shell: Kafka in, the pure core of `suture-coordinator-core` in the middle, Kafka out.
//!
//! - [`ingest`]: turns upstream events into requests.
//! - `redrive`, `lookup`: beside it, asks again for what was aborted for a reason that may pass.
//! - [`service`]: the coordinator. It owns shards, applies what it reads and appends what the core says.
//! - `takeover`: where the owner of a shard starts to read.
//! - `recall`, `seek`: requests that are read once more, and decisions that are looked for in their log.
//! - [`passing`]: records of the decision log that a person lets every coordinator pass.
//! - [`cleanup`]: tombstones for decisions that nobody needs any more.
//! - `consumer`, `appends`: reading topics as a member of a group, and writing until it is acknowledged.
//! - `clients`: what the services do alike with their Kafka clients.
//! - `under_way`, `clock`: appends without a report yet, and the one place that reads clocks.

pub mod cleanup;
pub mod ingest;
pub mod passing;
pub mod service;

mod appends;
mod clients;
mod clock;
mod consumer;
mod lookup;
mod recall;
mod redrive;
mod seek;
mod takeover;
mod under_way;
