//! The coordinator's judgement, without a clock, I/O or randomness.
//!
//! In reading order, along the way of one event:
//!
//! - [`ingest`]: an upstream event and declarative rules give a request, or a rejection;
//! - [`redrive`]: which aborts are asked for again, and when;
//! - [`shard`]: requests and votes give decisions;
//! - [`records`]: what a record of the requests or votes is, by the record alone;
//! - [`transaction`]: one transaction and the table of its transitions;
//! - [`inquiry`]: participants that ask again;
//! - [`early`]: votes that came before their requests;
//! - [`positions`]: where another owner of a shard may start to read;
//! - [`cleanup`]: which decisions may go from their log;
//! - [`audit`]: what must not be, judged from the logs and from what every participant has.

pub mod ingest;
pub mod redrive;
pub mod shard;

pub mod audit;
pub mod cleanup;
pub mod early;
pub mod inquiry;
pub mod positions;
pub mod records;
pub mod transaction;
