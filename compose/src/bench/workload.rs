//! What each branch does to its database: a row in a journal, and an amount taken from an account that holds enough.
//!
//! No two transactions under way meet the same account: the figures are those of the protocol, of the database and of its
//! disk, and not of a hot row.

use anyhow::Context;
use serde_json::value::RawValue;
use std::path::Path;
use suture_contract::ids::Participant;
use suture_participants::config::{Database, ParticipantConfig, ServerSettings};

use super::sql::Kind;

/// The operation that every branch names.
pub const OPERATION: &str = "transfer";

/// Accounts of each database: more than may be under way.
pub const ACCOUNTS: usize = 20_000;

/// Prime to the number of accounts, so that neighbours are far apart and all come before one comes again.
const STRIDE: u64 = 7_919;

/// What is on each account at first: enough for any run.
const BALANCE: u64 = 1_000_000_000_000;

/// How many accounts go in one statement.
const ACCOUNTS_AT_ONCE: usize = 5_000;

const TABLES: [&str; 2] = [
    "create table account (id bigint primary key, balance bigint not null check (balance >= 0))",
    "create table journal (
         txid varchar(64) primary key, account bigint not null, amount bigint not null, note text not null,
         is_final boolean not null default false
     )",
];

const PARAMETERS: &str = r#"
    [operation.transfer.parameters]
    account = { path = "/account", type = "integer" }
    amount = { path = "/amount", type = "integer" }
    note = { path = "/note", type = "text" }
"#;

const XA: &str = r#"
    [[operation.transfer.prepare]]
    sql = "insert into journal (txid, account, amount, note, is_final) values (:txid, :account, :amount, :note, true)"
    rows = 1
    [[operation.transfer.prepare]]
    sql = "update account set balance = balance - :amount where id = :account and balance >= :amount"
    rows = 1
"#;

const RESERVE: &str = r#"
    [[operation.transfer.reserve]]
    sql = "insert into journal (txid, account, amount, note) values (:txid, :account, :amount, :note)"
    rows = 1
    [[operation.transfer.reserve]]
    sql = "update account set balance = balance - :amount where id = :account and balance >= :amount"
    rows = 1
    [[operation.transfer.confirm]]
    sql = "update journal set is_final = true where txid = :txid"
    rows = 1
    [[operation.transfer.cancel]]
    sql = """
    update account set balance = balance + (select amount from journal where txid = :txid)
    where id = (select account from journal where txid = :txid)"""
    rows = 1
    [[operation.transfer.cancel]]
    sql = "delete from journal where txid = :txid"
    rows = 1
"#;

/// How a database keeps its promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// By preparing each branch.
    Xa,
    /// By reserving, many branches in one local transaction.
    Reserve,
}

impl Mode {
    /// As it stands in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xa => "xa",
            Self::Reserve => "reserve",
        }
    }
}

/// A participant as production has it: its file, with the URL and the cap of this run.
pub fn config(
    participant: &Participant,
    kind: Kind,
    mode: Mode,
    url: &str,
    most_in_doubt: usize,
) -> anyhow::Result<ParticipantConfig> {
    let name = kind.name();
    let (scheme, steps) = (kind.scheme(), if mode == Mode::Xa { XA } else { RESERVE });
    let text = format!(
        "name = \"{participant}\"\nmode = \"{}\"\n\
         [database]\nkind = \"{name}\"\nurl = \"{scheme}://user@host/database\"\n{PARAMETERS}{steps}",
        mode.name()
    );
    let mut config =
        ParticipantConfig::parse(&text, Path::new("bench.toml")).context("the bench's own configuration")?;
    if let Database::Postgres(settings) | Database::Mariadb(settings) = &mut config.database {
        // A lock that is waited for here is a broken bench: it must fail, and not only be slow.
        let cap = most_in_doubt.max(settings.cap);
        *settings = ServerSettings { url: url.to_string(), cap, ..settings.clone() };
    }
    Ok(config)
}

/// The statements that create and fill the tables.
pub fn tables() -> impl Iterator<Item = String> {
    let accounts: Vec<usize> = (0..ACCOUNTS).collect();
    let insert = |ids: &[usize]| {
        let rows: Vec<String> = ids.iter().map(|id| format!("({id}, {BALANCE})")).collect();
        format!("insert into account (id, balance) values {}", rows.join(", "))
    };
    let inserts: Vec<String> = accounts.chunks(ACCOUNTS_AT_ONCE).map(insert).collect();
    TABLES.iter().map(ToString::to_string).chain(inserts)
}

/// What the branches of one transaction carry.
pub fn payload(number: u64, bytes: usize) -> anyhow::Result<Box<RawValue>> {
    let (account, amount) = ((number % ACCOUNTS as u64) * STRIDE % ACCOUNTS as u64, 1 + number % 5);
    let note = "x".repeat(bytes);
    Ok(RawValue::from_string(format!(r#"{{"account":{account},"amount":{amount},"note":"{note}"}}"#))?)
}

/// Questions about a database at rest, and the only right answers if so many transactions were committed.
pub fn truths(committed: u64) -> [(&'static str, String); 4] {
    [
        ("select count(*) from suture_ledger where state = 'committed'", committed.to_string()),
        ("select count(*) from suture_ledger where state = 'in_doubt'", "0".to_string()),
        ("select count(*) from journal where is_final", committed.to_string()),
        (
            "select (select sum(balance) from account) + coalesce((select sum(amount) from journal), 0)",
            (BALANCE * ACCOUNTS as u64).to_string(),
        ),
    ]
}
