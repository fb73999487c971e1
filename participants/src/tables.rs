//! The ledger's tables in each database, and how those of an older version become the present ones.
//!
//! A participant creates what is missing where its role may, and touches nothing else: a ledger of another version is refused. What
//! brings it up to date is run by a person (`suture participant init`), because `alter table` waits for branches in doubt, and
//! everybody else for it. So each migration waits a few seconds and gives up.
//!
//! | version | new in it |
//! |---|---|
//! | 2 | `suture_marks`, `suture_audit`, the state `abandoned` |

use std::collections::BTreeMap;

use suture_participants_core::sql::Dialect;

use crate::ledger::{LEDGER_ID, check_marks};
use crate::resource::{OpenError, Opening};

/// How long a migration waits for the ledger, in seconds.
const WAIT_S: u32 = 5;

/// Asks for the ledger's marks.
pub(crate) const READ_MARKS: &str = "select name, value from suture_meta";

/// What writes the marks that a ledger lacks.
///
/// # Errors
/// It is somebody else's, or of another version.
pub(crate) fn missing_marks(
    dialect: Dialect,
    found: &BTreeMap<String, String>,
    opening: &Opening,
) -> Result<Vec<String>, OpenError> {
    let mut missing = Vec::new();
    if !found.contains_key(LEDGER_ID) {
        let random = match dialect {
            Dialect::Postgres => "substr(replace(gen_random_uuid()::text, '-', ''), 1, 16)",
            Dialect::Mariadb => "left(sha2(concat(uuid(), rand()), 256), 16)",
            Dialect::Sqlite => "lower(hex(randomblob(8)))",
        };
        missing.push(mark(dialect, LEDGER_ID, random));
    }
    // All of them have closed alphabets, without quotes.
    missing.extend(check_marks(found, opening)?.iter().map(|(name, value)| mark(dialect, name, &format!("'{value}'"))));
    Ok(missing)
}

/// Two that open a ledger at once write the same, but for its name: the first one stays.
fn mark(dialect: Dialect, name: &str, value: &str) -> String {
    let stays = match dialect {
        Dialect::Postgres | Dialect::Sqlite => "on conflict do nothing",
        Dialect::Mariadb => "on duplicate key update value = suture_meta.value",
    };
    format!("insert into suture_meta (name, value) values ('{name}', {value}) {stays}")
}

// ---- PostgreSQL ------------------------------------------------------------------------------------------------------

/// Run only where there is no ledger, or where nothing is in doubt: `create index` would wait for prepared branches.
pub(crate) const POSTGRES: &str = "
    create table if not exists suture_meta (
        name text primary key,
        value text not null
    );
    create table if not exists suture_positions (
        topic text not null,
        letters text not null,
        shard integer not null,
        next_offset bigint not null,
        primary key (topic, letters, shard)
    );
    create table if not exists suture_marks (
        letters text not null,
        shard integer not null,
        next_offset bigint not null,
        primary key (letters, shard)
    );
    create table if not exists suture_audit (
        entry text primary key,
        record_key text not null,
        record text not null,
        told boolean not null default false,
        changed_at timestamptz not null default now()
    );
    create table if not exists suture_ledger (
        txid text primary key,
        state text not null check (state in ('in_doubt', 'committed', 'aborted', 'refused', 'abandoned')),
        hash text not null,
        business_key text,
        attempt bigint,
        live_key text unique,
        operation text,
        code text,
        duplicate_of text,
        changed_at timestamptz not null default now(),
        unique (business_key, attempt),
        check ((business_key is null) = (attempt is null)),
        check ((live_key is not null) = (state in ('in_doubt', 'committed')))
    );
    create index if not exists suture_ledger_in_doubt on suture_ledger (txid) where state = 'in_doubt';
";

/// To version 2. One transaction.
pub(crate) fn postgres_from_1() -> String {
    format!(
        "    set local lock_timeout = '{WAIT_S}s';
    set local statement_timeout = 0;
    alter table suture_ledger drop constraint suture_ledger_state_check;
    alter table suture_ledger add constraint suture_ledger_state_check
        check (state in ('in_doubt', 'committed', 'aborted', 'refused', 'abandoned'));
    {POSTGRES}    update suture_meta set value = '2' where name = 'schema_version' and value = '1';
"
    )
}

// ---- MariaDB and MySQL -----------------------------------------------------------------------------------------------

/// Created only where they are missing: even `create table if not exists` would wait for branches in doubt.
pub(crate) const MARIADB: [(&str, &str); 5] = [
    (
        "suture_meta",
        "name varchar(64) character set ascii collate ascii_bin primary key,
         value varchar(255) character set ascii collate ascii_bin not null",
    ),
    (
        "suture_positions",
        "topic varchar(255) character set ascii collate ascii_bin not null,
         letters varchar(5) character set ascii collate ascii_bin not null,
         shard integer not null,
         next_offset bigint not null,
         primary key (topic, letters, shard)",
    ),
    (
        "suture_marks",
        "letters varchar(5) character set ascii collate ascii_bin not null,
         shard integer not null,
         next_offset bigint not null,
         primary key (letters, shard)",
    ),
    (
        "suture_audit",
        "entry varchar(320) character set ascii collate ascii_bin primary key,
         record_key varchar(320) character set ascii collate ascii_bin not null,
         record text character set utf8mb4 collate utf8mb4_bin not null,
         told boolean not null default false,
         changed_at timestamp(6) not null default current_timestamp(6)",
    ),
    (
        "suture_ledger",
        "txid varchar(64) character set ascii collate ascii_bin primary key,
         state varchar(16) character set ascii collate ascii_bin not null
             check (state in ('in_doubt', 'committed', 'aborted', 'refused', 'abandoned')),
         hash varchar(64) character set ascii collate ascii_bin not null,
         business_key varchar(200) character set ascii collate ascii_bin,
         attempt bigint,
         live_key varchar(200) character set ascii collate ascii_bin unique,
         operation varchar(255) character set utf8mb4 collate utf8mb4_bin,
         code varchar(40) character set ascii collate ascii_bin,
         duplicate_of varchar(64) character set ascii collate ascii_bin,
         changed_at timestamp(6) not null default current_timestamp(6),
         unique (business_key, attempt),
         key (state),
         check ((business_key is null) = (attempt is null)),
         check ((live_key is not null) = (state in ('in_doubt', 'committed')))",
    ),
];

/// The statement that creates a table of [`MARIADB`].
pub(crate) fn mariadb_table(name: &str, columns: &str) -> String {
    format!("create table if not exists {name} ({columns}) engine = InnoDB")
}

/// To version 2: `alter table` commits by itself there, so every statement may be run again. `named_check` is the name that
/// MySQL has given the check of the states; MariaDB keeps it with its column.
pub(crate) fn mariadb_from_1(named_check: Option<&str>) -> Vec<String> {
    let states = "check (state in ('in_doubt', 'committed', 'aborted', 'refused', 'abandoned'))";
    let alter = match named_check {
        None => format!(
            "alter table suture_ledger modify column state varchar(16) character set ascii collate ascii_bin not null {states}"
        ),
        Some(name) => format!("alter table suture_ledger drop check {name}, add constraint {name} {states}"),
    };
    let mut statements = vec![
        format!(
            "set session lock_wait_timeout = {WAIT_S}, innodb_lock_wait_timeout = {WAIT_S} /*M!100500 , max_statement_time = 0 */"
        ),
        alter,
    ];
    statements.extend(MARIADB.map(|(name, columns)| mariadb_table(name, columns)));
    statements.push("update suture_meta set value = '2' where name = 'schema_version' and value = '1'".to_string());
    statements
}

// ---- SQLite ----------------------------------------------------------------------------------------------------------

pub(crate) const SQLITE: &str = "
    create table if not exists suture_meta (
        name text primary key,
        value text not null
    ) strict;
    create table if not exists suture_positions (
        topic text not null,
        letters text not null,
        shard integer not null,
        next_offset integer not null,
        primary key (topic, letters, shard)
    ) strict;
    create table if not exists suture_marks (
        letters text not null,
        shard integer not null,
        next_offset integer not null,
        primary key (letters, shard)
    ) strict;
    create table if not exists suture_audit (
        entry text primary key,
        record_key text not null,
        record text not null,
        told integer not null default 0,
        changed_at integer not null default (unixepoch())
    ) strict;
    create table if not exists suture_ledger (
        txid text primary key,
        state text not null check (state in ('in_doubt', 'committed', 'aborted', 'refused', 'abandoned')),
        hash text not null,
        business_key text,
        attempt integer,
        live_key text unique,
        operation text,
        code text,
        duplicate_of text,
        changed_at integer not null default (unixepoch()),
        unique (business_key, attempt),
        check ((business_key is null) = (attempt is null)),
        check ((live_key is not null) = (state in ('in_doubt', 'committed')))
    ) strict;
    create index if not exists suture_ledger_in_doubt on suture_ledger (txid) where state = 'in_doubt';
";

/// To version 2. One transaction; SQLite alters no check, so the rows move into a new table.
pub(crate) fn sqlite_from_1() -> String {
    format!(
        "    alter table suture_ledger rename to suture_ledger_1;
    drop index if exists suture_ledger_in_doubt;
    {SQLITE}
    insert into suture_ledger select * from suture_ledger_1;
    drop table suture_ledger_1;
    update suture_meta set value = '2' where name = 'schema_version' and value = '1';
"
    )
}
