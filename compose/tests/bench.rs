//! `suture bench` with real databases, as a process of its own: it measures, and leaves nothing behind.

use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio_postgres::NoTls;

/// Longest wait for anything; only a broken test gets there.
const DEADLINE: Duration = Duration::from_secs(300);

/// Each looks at the databases that are left.
static TURN: Mutex<()> = Mutex::new(());

fn server(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run the tests with compose/test, which starts the servers that they need")
    })
}

fn bench(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_suture"));
    command.arg("bench").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("suture starts")
}

fn ended(bench: Child) -> (Output, String) {
    let output = bench.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[tokio::main(flavor = "current_thread")]
async fn postgres(sql: &str) -> Vec<String> {
    let (client, connection) =
        tokio_postgres::connect(&server("SUTURE_TEST_POSTGRES"), NoTls).await.expect("PostgreSQL");
    tokio::spawn(connection);
    let answered = client.simple_query(sql).await.expect("an answer");
    let rows = answered.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    rows.map(str::to_string).collect()
}

#[tokio::main(flavor = "current_thread")]
async fn mariadb(sql: &str) -> Vec<String> {
    let opts = Opts::from_url(&server("SUTURE_TEST_MARIADB")).expect("a URL");
    Conn::new(opts).await.expect("MariaDB").query(sql).await.expect("an answer")
}

/// The bench's databases.
fn left() -> Vec<String> {
    let mut left = postgres("select datname from pg_database where starts_with(datname, 'suture_bench_')");
    left.extend(mariadb(
        "select schema_name from information_schema.schemata where left(schema_name, 13) = 'suture_bench_'",
    ));
    left
}

#[test]
fn every_mode_runs_on_every_database_and_nothing_is_left() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (bootstrap, postgres_url, mariadb_url) =
        (server("SUTURE_TEST_BOOTSTRAP"), server("SUTURE_TEST_POSTGRES"), server("SUTURE_TEST_MARIADB"));
    let (output, said) = ended(bench(&[
        "--bootstrap",
        &bootstrap,
        "--postgres",
        &postgres_url,
        "--mariadb",
        &mariadb_url,
        "--seconds",
        "1",
        "--window",
        "50",
        "--xa-window",
        "5",
        "--json",
    ]));
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let told: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    let cells = told["cells"].as_array().expect("cells");
    assert_eq!(cells.len(), 8, "two databases, two modes, alone and under load: {text}");
    for cell in cells {
        assert!(cell["committed"].as_u64() > Some(0), "{cell}");
        assert_eq!(cell["aborted"], 0, "{cell}");
        assert!(cell["fsyncs"].as_u64() > Some(0), "{cell}");
    }
    for database in ["postgres", "mariadb"] {
        assert_eq!(told["reserve_to_xa"][database].as_array().expect("ratios").len(), 1, "{text}");
    }
    assert_eq!(left(), [""; 0]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a limit for broken tests")]
fn an_interrupted_run_leaves_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut run = bench(&["--mariadb", &server("SUTURE_TEST_MARIADB"), "--modes", "xa", "--seconds", "600"]);
    let deadline = Instant::now() + DEADLINE;
    let has_committed = |name: &String| {
        mariadb(&format!("select txid from {name}.suture_ledger where state = 'committed' limit 1")).len() == 1
    };
    // Three databases with ledgers, and transactions under way.
    while !(left().len() == 3 && tables("suture_ledger") == 3 && left().iter().all(has_committed)) {
        assert!(Instant::now() < deadline && run.try_wait().expect("its state").is_none(), "nothing is committed");
        sleep(Duration::from_millis(50));
    }
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGINT).expect("a signal");
    let (output, said) = ended(run);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted"), "{said}");
    assert_eq!(left(), [""; 0], "{said}");
}

fn tables(name: &str) -> usize {
    let sql = "select table_name from information_schema.tables where left(table_schema, 13) = 'suture_bench_'";
    mariadb(&format!("{sql} and table_name = '{name}'")).len()
}

#[test]
fn without_the_right_to_create_databases_it_says_so() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    postgres("drop role if exists suture_bench_guest");
    postgres("create role suture_bench_guest login");
    let url = server("SUTURE_TEST_POSTGRES").replacen("postgres@", "suture_bench_guest@", 1);
    let (output, said) = ended(bench(&["--postgres", &url]));
    postgres("drop role suture_bench_guest");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--postgres") && said.contains("may create databases") && said.contains("42501"), "{said}");
    assert_eq!(left(), [""; 0]);
}
