//! SQLite, the bundled one.

use std::process::{Command, Stdio};

use rusqlite::{Connection, ErrorCode, ffi};
use tempfile::TempDir;

fn open(folder: &TempDir) -> Connection {
    Connection::open(folder.path().join("facts.sqlite")).unwrap()
}

/// A file in WAL mode with a table, and a connection to it.
fn file() -> (TempDir, Connection) {
    let folder = tempfile::tempdir().unwrap();
    let connection = open(&folder);
    connection
        .execute_batch(
            "pragma journal_mode = wal; pragma synchronous = full;
             create table t (id integer primary key, v integer check (v >= 0)) strict; insert into t values (1, 5), (2, 5)",
        )
        .unwrap();
    (folder, connection)
}

/// The extended error code.
fn run(connection: &Connection, sql: &str) -> Result<(), i32> {
    connection.execute_batch(sql).map_err(|error| error.sqlite_error().unwrap().extended_code)
}

fn number(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// E1. The journal mode stays in the file; synchronous, foreign_keys and busy_timeout are the connection's.
/// So all of them are set and read back at every open.
#[test]
fn e1_only_the_journal_mode_stays_in_the_file() {
    let (folder, connection) = file();
    let set = [("synchronous", 0), ("foreign_keys", 0), ("busy_timeout", 7777)];
    for (name, value) in set {
        connection.pragma_update(None, name, value).unwrap();
        assert_eq!(number(&connection, &format!("pragma {name}")), value);
    }
    connection.close().unwrap();
    let reopened = open(&folder);
    let mode: String = reopened.query_row("pragma journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    for (name, value) in set {
        assert_ne!(number(&reopened, &format!("pragma {name}")), value, "{name}");
    }
}

/// E2. Who reads and then writes after somebody else's commit gets BUSY_SNAPSHOT at once, whatever the timeout.
/// So every transaction begins IMMEDIATE, and a file has one writer.
#[test]
fn e2_reading_before_writing_may_fail_at_once() {
    let (folder, first) = file();
    let second = open(&folder);
    run(&second, "pragma busy_timeout = 600000; begin; select * from t").unwrap();
    run(&first, "update t set v = 6 where id = 1").unwrap();
    assert_eq!(run(&second, "update t set v = 7 where id = 2"), Err(ffi::SQLITE_BUSY_SNAPSHOT));
    assert!(!second.is_autocommit(), "its transaction is still open");
    run(&second, "rollback; begin immediate; select * from t; update t set v = 7 where id = 2; commit").unwrap();
}

/// E4. A broken constraint undoes its statement only. So the code rolls back to its savepoint.
#[test]
fn e4_a_broken_constraint_undoes_its_statement_only() {
    let (_folder, connection) = file();
    run(&connection, "begin immediate; insert into t values (10, 1)").unwrap();
    assert_eq!(run(&connection, "insert into t values (10, 1)"), Err(ffi::SQLITE_CONSTRAINT_PRIMARYKEY));
    assert_eq!(run(&connection, "update t set v = -1 where id = 1"), Err(ffi::SQLITE_CONSTRAINT_CHECK));
    assert!(!connection.is_autocommit());
    run(&connection, "commit").unwrap();
    assert_eq!(number(&connection, "select count(*) from t where id = 10"), 1);
}

/// E4. A full disk rolls back all of the transaction, and what follows is in autocommit and stays.
/// So autocommit is checked after every error.
#[test]
fn e4_a_full_disk_rolls_back_everything_and_the_rest_is_in_autocommit() {
    let (_folder, connection) = file();
    run(&connection, "create table big (x blob) strict").unwrap();
    let pages = number(&connection, "pragma page_count") + 3;
    number(&connection, &format!("pragma max_page_count = {pages}"));
    run(&connection, "begin immediate; savepoint s; insert into t values (20, 1)").unwrap();
    let full = connection.execute("insert into big values (zeroblob(1000000))", []).unwrap_err();
    assert_eq!(full.sqlite_error_code(), Some(ErrorCode::DiskFull));
    assert!(connection.is_autocommit());
    assert_eq!(number(&connection, "select count(*) from t where id = 20"), 0);
    run(&connection, "insert into t values (21, 1)").unwrap();
    assert_eq!(run(&connection, "rollback to s"), Err(ffi::SQLITE_ERROR));
    assert_eq!(run(&connection, "rollback"), Err(ffi::SQLITE_ERROR));
    assert_eq!(number(&connection, "select count(*) from t where id = 21"), 1);
}

/// E5. RELEASE of an outermost savepoint commits. So BEGIN comes first.
#[test]
fn e5_releasing_an_outermost_savepoint_commits() {
    let (folder, connection) = file();
    run(&connection, "savepoint s; insert into t values (30, 1); release s").unwrap();
    assert!(connection.is_autocommit());
    assert_eq!(number(&open(&folder), "select count(*) from t where id = 30"), 1);
}

/// E6. A deferred foreign key fails at COMMIT, and the transaction stays open. So the code rolls back then.
#[test]
fn e6_a_deferred_foreign_key_fails_at_commit_and_leaves_the_transaction_open() {
    let (_folder, connection) = file();
    run(&connection, "pragma foreign_keys = on").unwrap();
    run(&connection, "create table child (i integer references t (id) deferrable initially deferred) strict").unwrap();
    run(&connection, "begin immediate; insert into child values (999)").unwrap();
    assert_eq!(run(&connection, "commit"), Err(ffi::SQLITE_CONSTRAINT_FOREIGNKEY));
    assert!(!connection.is_autocommit());
    run(&connection, "rollback").unwrap();
}

/// E7. The main file copied without its `-wal` misses commits. So the ledger id tells a copy.
#[test]
fn e7_a_copy_without_the_wal_misses_commits() {
    let (folder, connection) = file();
    run(&connection, "pragma wal_checkpoint(truncate)").unwrap();
    run(&connection, "insert into t values (40, 1)").unwrap();
    let copy = folder.path().join("copy.sqlite");
    std::fs::copy(folder.path().join("facts.sqlite"), &copy).unwrap();
    assert_eq!(number(&connection, "select count(*) from t where id = 40"), 1);
    assert_eq!(number(&Connection::open(copy).unwrap(), "select count(*) from t where id = 40"), 0);
}

/// E8. What COMMIT returned for survives kill -9 of the process. So a position that was committed holds.
#[test]
fn e8_a_commit_survives_kill() {
    const FOLDER: &str = "SUTURE_TEST_E8"; // the process to kill is this test once more, told to commit here
    if let Some(folder) = std::env::var_os(FOLDER) {
        let connection = Connection::open(std::path::Path::new(&folder).join("facts.sqlite")).unwrap();
        run(&connection, "pragma synchronous = full; begin immediate; insert into t (v) values (8); commit").unwrap();
        println!("committed");
        loop {
            std::thread::park();
        }
    }
    let (folder, connection) = file();
    for n in 1..=20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "sqlite::e8_a_commit_survives_kill"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = std::io::BufReader::new(child.stdout.take().unwrap());
        assert!(std::io::BufRead::lines(said).any(|line| line.unwrap().ends_with("committed")));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(number(&connection, "select count(*) from t where v = 8"), n);
    }
}

/// E9. Types are not enforced without STRICT. So the ledger is STRICT.
#[test]
fn e9_types_are_enforced_by_strict_only() {
    let (_folder, connection) = file();
    run(&connection, "create table loose (n integer); insert into loose values ('abc')").unwrap();
    let strict = run(&connection, "create table tight (n integer) strict; insert into tight values ('abc')");
    assert_eq!(strict, Err(ffi::SQLITE_CONSTRAINT_DATATYPE));
}
