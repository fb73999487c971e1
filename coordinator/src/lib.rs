//! The coordinator's shell: Kafka in, the pure core of `suture-coordinator-core` in the middle, Kafka out.
//!
//! - [`ingest`]: turns upstream events into requests.
//! - [`service`]: the coordinator. It owns shards, applies what it reads and appends what the core says.
//! - `takeover`: where the owner of a shard starts to read.
//! - `recall`, `seek`: requests that are read once more, and decisions that are looked for in their log.
//! - [`cleanup`]: tombstones for decisions that nobody needs any more.
//! - `clients`: what both do alike with their Kafka clients.
//! - `under_way`, `clock`: appends without a report yet, and the one place that reads clocks.

pub mod cleanup;
pub mod ingest;
pub mod service;

mod clients;
mod clock;
mod recall;
mod seek;
mod takeover;
mod under_way;
