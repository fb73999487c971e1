//! What a participant decides, without a database and without Kafka: records and ledger rows in, answers out.
//!
//! In reading order:
//!
//! - [`envelope`]: what is trusted about a record before anything acts on it;
//! - [`branch`]: the states of a branch, what each event does to them, and the rule of business keys;
//! - [`settle`]: what an operator's word makes of a branch whose decision could not be obeyed;
//! - [`gid`]: the name of a prepared branch in a database's own list;
//! - [`operations`]: the named SQL templates of a participant's configuration, compiled and checked at start;
//! - [`sql`]: from `:name` to the placeholders of a database;
//! - [`values`]: from a payload's JSON to typed values;
//! - [`sample`]: a payload with made-up values; [`touched`]: the tables that a statement touches;
//! - [`progress`]: positions, which move only past what is done;
//! - [`lines`]: ordered keys, and who waits for whom;
//! - [`doubts`]: who asks for a decision that does not come;
//! - [`leftovers`]: prepared branches that are over and still there;
//! - [`watch`]: branches in doubt, and whether somebody finishes one by hand;
//! - [`marks`]: what stays of rows that are purged;
//! - [`restore`]: a database that went back, and what becomes of each transaction then.
//!
//! Architecture invariant: nothing here reads a clock, a file or a socket. SQL passes through as text; who runs it, and
//! what the ledger's tables look like, is the business of `suture-participants`.

pub mod envelope;

pub mod branch;
pub mod gid;
pub mod settle;

pub mod operations;
pub mod sample;
pub mod sql;
pub mod touched;
pub mod values;

pub mod doubts;
pub mod leftovers;
pub mod lines;
pub mod marks;
pub mod progress;
pub mod restore;
pub mod watch;
