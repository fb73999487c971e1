//! End to end, on three real brokers, PostgreSQL and MariaDB, with the services as real processes. `compose/test` starts the
//! servers; where they are missing these tests fail.
//!
//! ```text
//! cluster.rs      the servers, Kafka's own tools, whose turn it is
//! world.rs        a deployment of one's own: topics, databases, configuration, seeded
//! process.rs      `suture` as processes: start, kill, freeze, drain
//! feed.rs         events into the upstream topic
//! modes.rs        the example with its modes exchanged
//! template.rs     requests of the test's own
//! logs.rs         an own copy of every topic
//! rows.rs         what stands in the three databases
//! oracle.rs       what must become of each event, computed from events and seeds alone
//! check.rs        what must hold whatever happened
//! undisturbed.rs  what the databases hold when nothing happens
//! joining.rs      docs/joining.md, run
//! doctor.rs       what `suture doctor` says, whatever is down
//! secrets.rs      who the patients are stands nowhere but at the hospital
//! ```

mod check;
mod cluster;
mod feed;
mod logs;
mod modes;
mod oracle;
mod process;
mod rows;
mod secrets;
mod template;
mod undisturbed;
mod world;

mod absent;
mod again;
mod audit;
mod broken;
mod database_kill;
mod doctor;
mod hostile;
mod inquiry;
mod joining;
mod kill;
mod lost;
mod operator;
mod ordered;
mod postgres_kill;
mod recreated;
mod restored;
mod surgeries;
mod twice;
mod zombie;
