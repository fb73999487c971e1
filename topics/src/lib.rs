//! The only door to Kafka: nobody else names librdkafka.
//!
//! A process that takes part in the protocol opens these clients, and no others:
//!
//! | client | job | thread |
//! |---|---|---|
//! | [`outbox::Outbox`] | every append | librdkafka's, and one that runs the delivery reports |
//! | [`reader::Reader`] | every record that is read, from explicit offsets | one |
//! | [`membership::Membership`] | which shards are ours; committing positions | two |
//! | [`scan::Scanner`] | a stretch of a log that is looked up now and then | the caller's |
//! | [`probe::Probe`] | ends of logs, topics and their ids | the caller's |
//! | [`acks::GroupOffsets`] | another group's committed offsets, without joining it | the caller's |
//!
//! All of them are threads and bounded channels; nothing here is polled or dropped by a tokio worker. What is read all the
//! time is the reader's, for owners, standbys and participants alike; the membership reads nothing.
//!
//! In reading order:
//!
//! - [`settings`]: the configuration, and what it becomes for librdkafka (`properties`);
//! - [`failure`], [`record`], `told`: what goes wrong, what is read, and what the clients tell;
//! - [`outbox`], [`reader`], [`membership`], [`scan`], [`probe`], [`acks`]: the clients;
//! - [`plan`], [`admin`]: comparing topics with their declarations, and creating what is missing;
//! - [`embedded`]: a broker in this process, for the demo and for fast tests;
//! - [`blocking`]: where what blocks runs;
//! - `simulated`: the clients once more, over a Kafka in memory whose time and faults a seed decides. In a build of its own only
//!   (`--cfg suture_simulated`), so that nothing of it can be in a release;
//! - `ffi`: the few calls that rdkafka does not wrap, and all of this crate's `unsafe`.
//!
//! Left out: Kafka transactions (two readers could take different first votes), KIP-848 groups, altering topics (an
//! `alter` resets what is not named; the command is printed instead), schema registries.

pub mod blocking;
pub mod failure;
pub mod record;
pub mod settings;

mod told;

#[cfg(suture_simulated)]
pub mod simulated;
#[cfg(suture_simulated)]
pub use simulated::{acks, membership, outbox, probe, reader, scan};

#[cfg(not(suture_simulated))]
pub mod acks;
#[cfg(not(suture_simulated))]
pub mod admin;
#[cfg(not(suture_simulated))]
pub mod embedded;
#[cfg(not(suture_simulated))]
mod ffi;
#[cfg(not(suture_simulated))]
pub mod membership;
#[cfg(not(suture_simulated))]
pub mod outbox;
#[cfg(not(suture_simulated))]
pub mod plan;
#[cfg(not(suture_simulated))]
pub mod probe;
#[cfg(not(suture_simulated))]
mod properties;
#[cfg(not(suture_simulated))]
pub mod reader;
#[cfg(not(suture_simulated))]
pub mod scan;
#[cfg(not(suture_simulated))]
mod weight;
