//! Participants: a service that lets one organisation's database take part in transactions.
//!
//! In reading order:
//!
//! - [`service`]: the loop between Kafka and a database;
//! - `take`: from where a shard is read, and `jobs`: work for the database;
//! - `upkeep`: what is done now and then, with `seek`, which looks into the logs for it;
//! - `restore`: a database that went back is brought back;
//! - [`envelope`]: from Kafka's records to those of the core;
//! - [`incidents`]: what a person must know, and how he settles it; `alarms`: the service's side of it; [`forgotten`]: a row that
//!   somebody has deleted;
//! - [`config`]: a participant's TOML file;
//! - [`resource`]: what a database must be able to do, and what the loop may rely on;
//! - `reserve`, `xa`: how a branch goes through each mode, whatever the database; `server`: both, behind a server;
//!   `resolve`: what a person says about a branch; `purge`: how finished rows go;
//! - [`sqlite`], [`postgres`], [`mariadb`]: what differs between databases, one file each;
//! - [`opened`]: one of them, as the configuration says;
//! - [`books`]: a participant's ledger, positions and list, read by others;
//! - [`needs`]: what a database must be like; [`inspect`]: all of that for `suture doctor`;
//! - [`install`]: tables and rights of a new participant; `tables`: the ledger's tables, and from one version to the next;
//!   [`trial`]: operations tried, and rolled back; `rights`: what a role may not do;
//! - [`ledger`]: what all ledgers have in common; `trouble`: errors by who is to blame; `pool`, `flights`: connections;
//! - [`points`]: where the fault tests end the process.
//!
//! What is decided about a branch is decided in the pure crate `suture-participants-core`. The only SQL in these files
//! is the ledger's own; the business has its SQL in the configuration.
//!
//! Architecture invariant: a branch's effect is durable before its vote, or the offset that acknowledges it, leaves.

pub mod service;

mod clock;
mod jobs;
mod restore;
mod seek;
mod take;
mod upkeep;

pub mod envelope;

mod alarms;
pub mod forgotten;
pub mod incidents;

pub mod config;

pub mod resource;

mod flights;
mod pool;
mod trouble;

mod purge;
mod reserve;
mod resolve;
mod server;
mod xa;

pub mod mariadb;
pub mod postgres;
#[cfg(suture_simulated)]
pub mod simulated;
pub mod sqlite;

pub mod opened;

pub mod books;

pub mod ledger;
mod tables;

pub mod needs;

pub mod inspect;
pub mod install;
mod rights;
pub mod trial;

pub mod points;
