//! Participants: a service that lets one organisation's database take part in transactions.
//!
//! In reading order:
//!
//! - [`service`]: the loop between Kafka and a database;
//! - `take`: from where a shard is read, and `jobs`: work for the database;
//! - [`envelope`]: what is trusted about a record before anything acts on it;
//! - [`config`]: a participant's TOML file;
//! - [`resource`]: what a database must be able to do, and what the loop may rely on;
//! - [`sqlite`]: mode reserve, in batches;
//! - [`postgres`]: mode xa, with prepared transactions;
//! - [`opened`]: either of them, as the configuration says;
//! - [`ledger`]: what all ledgers have in common.
//!
//! What is decided about a branch is decided in the pure crate `suture-participants-core`. The only SQL in these files
//! is the ledger's own; the business has its SQL in the configuration.
//!
//! Architecture invariant: a branch's effect is durable before its vote, or the offset that acknowledges it, leaves.
//!
//! Left out: MariaDB and MySQL; reserve mode on PostgreSQL; ordered keys, inquiry, sweep, purge and restore.

pub mod service;

mod jobs;
mod take;

pub mod envelope;

pub mod config;

pub mod resource;

mod trouble;

mod reserve;
mod xa;

pub mod postgres;
pub mod sqlite;

pub mod opened;

pub mod ledger;
