//! What the adapters rely on, asked of the real servers: one test a fact, which fails if the fact does not hold.
//!
//! The adapters are built on how databases behave and not only on what their manuals promise. A new version may behave
//! otherwise; then a test here fails, its comment names the fact and what the code does because of it, and somebody
//! has to decide. The names are of PostgreSQL (q), MariaDB and MySQL (m) and SQLite (e).
//!
//! Most tests share the servers that `compose/test` starts. Those that kill or restart one start it for themselves.

mod mariadb;
mod mysql;
mod postgres;
#[path = "../common/server.rs"]
mod server;
mod sqlite;
