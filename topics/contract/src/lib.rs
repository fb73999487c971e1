//! The contract: what Suture's parties say to each other over Kafka.
//!
//! Everything here is pure: names, messages and their one-line JSON, and the map of topics. Whoever reads or writes a
//! Suture topic (the coordinator, a participant, an application in Rust) needs this crate and nothing else.
//!
//! In reading order:
//!
//! - [`ids`]: the names (txid, shard, participant, business key, attempt, hash);
//! - [`messages`]: the protocol messages, one struct each;
//! - [`codec`]: bytes to messages and back, and what "unreadable" means;
//! - [`register`]: what a record of a votes topic must be to be a vote;
//! - [`remark`]: who asked for a transaction again, and why, as headers for people;
//! - [`topic_map`]: every topic, declared once;
//! - [`partitioner`]: the shard of a key, as Kafka's Java clients compute it;
//! - [`keys`]: keyed hashes, so that record keys and hashes say nothing about a patient;
//! - [`decimal`]: a payload's numbers, exactly.
//!
//! Left out: Kafka itself (crate `suture-topics`), and what anybody decides on reading a message.

pub mod ids;
pub mod messages;

pub mod codec;
pub mod decimal;
pub mod keys;
pub mod partitioner;
pub mod register;
pub mod remark;
pub mod topic_map;
