//! A participant may be started before its database: what is waited for, and what ends it at once. On a real PostgreSQL.

#[path = "common/way.rs"]
mod way;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use suture_participants::config::ParticipantConfig;
use suture_participants::opened::OpenedResource;
use suture_participants::resource::{OpenError, Unavailable};
use tokio_postgres::NoTls;
use way::{address, way_to};

const CONFIG: &str = r#"
name = "bank"
mode = "xa"
[database]
kind = "postgres"
url = "URL"
[operation.put]
parameters.id = { path = "/id", type = "text" }
[[operation.put.prepare]]
sql = "select 1 where :id <> :txid"
rows = 1
"#;

/// How many connections the way to the server swallows before it lets one through.
const IN_VAIN: usize = 2;

fn server() -> String {
    std::env::var("SUTURE_TEST_POSTGRES").expect(
        "SUTURE_TEST_POSTGRES is not set: these tests need a PostgreSQL server; run them with compose/test, which starts one",
    )
}

fn server_as(user: &str, address: &str, database: &str) -> String {
    format!("postgres://{user}@{address}/{database}")
}

async fn open(url: &str) -> Result<OpenedResource, OpenError> {
    let config = ParticipantConfig::parse(&CONFIG.replace("URL", url), Path::new("bank.toml")).unwrap();
    let opening = config.opening(&"opening".parse().unwrap(), None, false).unwrap();
    OpenedResource::open_when_there(&config, opening).await
}

async fn execute(sql: &str) {
    let (client, connection) = tokio_postgres::connect(&server(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(sql).await.unwrap();
}

/// A way to the server that is closed at first. Answers its port, and counts who came.
fn way_to_the_server() -> (u16, Arc<AtomicUsize>) {
    let came = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&came);
    (way_to(address(&server()), move || counter.fetch_add(1, Ordering::Relaxed) >= IN_VAIN, |_| ()), came)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_up_is_waited_for() {
    let database = format!("opening_{}", std::process::id());
    execute(&format!("create database {database}")).await;
    let (port, came) = way_to_the_server();
    let opened = open(&server_as("postgres", &format!("127.0.0.1:{port}"), &database)).await;
    assert!(opened.is_ok(), "{:?}", opened.err());
    assert!(came.load(Ordering::Relaxed) > IN_VAIN);
    drop(opened);
    execute(&format!("drop database {database} with (force)")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_will_not_pass_ends_at_once() {
    for (user, database, code) in [("postgres", "no_such_database", "3D000"), ("no_such_user", "postgres", "28000")] {
        match open(&server_as(user, &address(&server()), database)).await.err() {
            Some(OpenError::Unavailable(Unavailable { code: found, .. })) => assert_eq!(found, code),
            other => panic!("{user}, {database}: {other:?}"),
        }
    }
}

#[test]
fn what_passes_is_told_by_its_code() {
    let passes = |code: &str| Unavailable::new("connecting", code).passes();
    for code in [
        "connection",
        "no answer in time",
        "08006",
        "53300",
        "57P03",
        "25006",
        "55P03",
        "1205",
        "SQLite 5",
        "SQLite 517",
    ] {
        assert!(passes(code), "{code}");
    }
    for code in ["28P01", "28000", "3D000", "42501", "1045", "1049", "client", "SQLite 14", "SQLite 26"] {
        assert!(!passes(code), "{code}");
    }
}
