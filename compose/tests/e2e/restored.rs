//! Databases that are restored from backups, each kind in its own way, while the others go on: afterwards they hold what they
//! hold after a run in which nobody restores anything.
//!
//! | participant | mode | backup | what it does not hold of the branches that are in doubt then |
//! |---|---|---|---|
//! | hospital | xa, PostgreSQL | a dump, while it serves | all of them: a dump has no prepared branches |
//! | insurer | reserve, MariaDB | its tables, while it is down | nothing |
//! | surgeon-log | reserve, SQLite | the file with its log, while it is down | nothing is in doubt |
//!
//! Between backup and restore the branches that were in doubt are committed, others are committed and aborted, and when the
//! databases are put back others again are in doubt. The insurer is killed while it is brought back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::cluster;
use crate::feed::{Place, Sample, samples};
use crate::operator::no_group_lags;
use crate::rows::{self, execute_on_mariadb, query_on_mariadb};
use crate::world::{Crew, Options, PARTICIPANTS, World};
use crate::{check, oracle, undisturbed};

/// Nothing may expire: the rows would be others.
const DEADLINE_MS: u64 = 600_000;

/// Longer than the surgeon-log is frozen.
const SESSION_TIMEOUT_MS: u32 = 30_000;

/// Surgeries that are open when backups are made, and when databases are put back.
const OPEN: usize = 4;

const RESTORING: &str = "select value from suture_meta where name = 'restoring'";

#[test]
fn restored_databases_come_to_the_same() {
    let surgeries = undisturbed::surgeries();
    let undisturbed = undisturbed::rows();
    let world = World::start(&Options {
        session_timeout_ms: SESSION_TIMEOUT_MS,
        deadline_ms: DEADLINE_MS,
        ..Options::default()
    });
    let (mut crew, mut feed) = (world.crew(), world.feed());
    let is_sound = |sample: &Sample| oracle::commits_in_all_three(sample, &surgeries);
    let (mut open_then, rest): (Vec<Sample>, Vec<Sample>) = surgeries.iter().cloned().partition(is_sound);
    let mut rest = [open_then.split_off(2 * OPEN), rest].concat();
    let open_now = open_then.split_off(OPEN);
    let (between, after) = (rest.split_off(rest.len() / 3), rest.split_off(rest.len() / 6));
    let mut fed = feed.feed(&rest);
    world.wait_for_the_end(&fed);

    let file = world.sqlite("surgeon-log");
    let copy = copy_of_file(&world, &mut crew);
    crew.surgeon_log.freeze();
    let now = feed.feed(&open_then);
    wait_until_in_doubt(&world, &now);
    let dump = dump_hospital(&world);
    let tables = Tables::copy(&world, &mut crew);
    crew.surgeon_log.thaw();
    fed.extend(now);
    fed.extend(feed.feed(&between));
    world.wait_for_the_end(&fed);
    let created = PARTICIPANTS.map(|participant| name_of(&world, participant));

    crew.surgeon_log.freeze();
    let now = feed.feed(&open_now);
    wait_until_in_doubt(&world, &now);
    assert!(crew.hospital.terminate().success());
    assert!(crew.insurer.terminate().success());
    put_hospital_back(&world, &dump);
    tables.put_back();
    crew.hospital.start_again();
    kill_while_it_is_brought_back(&world, &mut crew);
    crew.insurer.start_again();
    world.wait_until("the hospital has its branches again", || {
        rows::prepared(world.postgres("hospital")).len() == open_now.len()
    });
    crew.surgeon_log.thaw();
    fed.extend(now);
    world.wait_for_the_end(&fed);

    assert!(crew.surgeon_log.terminate().success());
    copy_sqlite(&copy, file);
    crew.surgeon_log.start_again();
    fed.extend(feed.feed(&after));
    world.wait_for_the_end(&fed);
    for (participant, created) in PARTICIPANTS.into_iter().zip(&created) {
        world.wait_until(&format!("{participant} has acknowledged everything anew"), || {
            world.applied_as(participant).is_some_and(|name| name != *created)
        });
        assert!(name_of(&world, participant).starts_with(&format!("{created}-")));
    }
    let (_, rows) = check::everything(&world);
    oracle::verify_rows(&oracle::expect(&surgeries), &rows);
    assert_eq!(rows.without_txids(), *undisturbed, "as if nothing had been restored");
    assert_eq!(query_on_mariadb(world.mariadb("insurer"), RESTORING), Vec::<String>::new());
    no_group_lags(&world);
    crew.terminate();
    tables.drop_copy();
}

#[test]
fn an_audit_sends_whoever_has_put_a_backup_back_to_the_participant() {
    let samples = samples();
    let world = World::start(&Options::default());
    let (mut crew, mut feed) = (world.crew(), world.feed());
    let fed = feed.feed(&samples[..30]);
    world.wait_for_the_end(&fed);
    let copy = copy_of_file(&world, &mut crew);
    let fed = feed.feed(&samples[30..60]);
    world.wait_for_the_end(&fed);
    let created = name_of(&world, "surgeon-log");
    assert_eq!(audit(&world, 0)["went_back"], serde_json::json!([]));
    assert!(crew.surgeon_log.terminate().success());
    copy_sqlite(&copy, world.sqlite("surgeon-log"));

    let audited = audit(&world, 1);
    assert_eq!(audited["went_back"], serde_json::json!(["surgeon-log"]));
    assert_eq!(audited["findings"], serde_json::json!([]), "its start brings that back");
    let waits = audited["waits"].as_array().expect("a list");
    assert!(!waits.is_empty());
    for wait in waits {
        assert_eq!((&wait["participant"], &wait["waits"]), (&"surgeon-log".into(), &"not_applied".into()));
    }
    let printed = String::from_utf8(world.suture(&["audit"]).stdout).unwrap();
    assert!(printed.starts_with("surgeon-log's database went back ("), "{printed}");
    assert!(!printed.contains("by hand"), "{printed}");

    crew.surgeon_log.start_again();
    world.wait_until("all is acknowledged under the new name", || {
        world.applied_as("surgeon-log").is_some_and(|name| name != created)
    });
    let audited = audit(&world, 0);
    assert_eq!((&audited["not_applied"], &audited["went_back"]), (&0.into(), &serde_json::json!([])));
    crew.terminate();
}

fn audit(world: &World, code: i32) -> Value {
    let output = world.suture(&["audit", "--json"]);
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{said}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

/// Under which all is acknowledged.
fn name_of(world: &World, participant: &str) -> String {
    let mut name = None;
    world.wait_until(&format!("{participant} has acknowledged everything"), || {
        name = world.applied_as(participant);
        name.is_some()
    });
    name.expect("it has")
}

/// The surgeon-log is missing; the others have said yes.
fn wait_until_in_doubt(world: &World, fed: &[Place]) {
    world.wait_for_logs("all of these are in doubt", |logs| {
        let stories = logs.stories();
        let open = stories.values().filter(|story| story.source().is_some_and(|source| fed.contains(&source)));
        let said_yes = |participant: &&str| {
            let yes = |story: &&crate::logs::Story| {
                story.register(participant).is_some_and(|vote| vote.text("vote") == "yes")
            };
            open.clone().filter(yes).count() == fed.len()
        };
        ["hospital", "insurer"].iter().all(said_yes)
    });
}

fn copy_of_file(world: &World, crew: &mut Crew) -> PathBuf {
    assert!(crew.surgeon_log.terminate().success());
    let file = world.sqlite("surgeon-log");
    let copy = file.with_extension("backup");
    copy_sqlite(file, &copy);
    crew.surgeon_log.start_again();
    copy
}

/// With its log: a process that ends leaves some of the file there. What belonged to the old file goes.
fn copy_sqlite(from: &Path, to: &Path) {
    let beside = |file: &Path, what: &str| PathBuf::from(format!("{}-{what}", file.display()));
    for what in ["wal", "shm"] {
        let _ = fs::remove_file(beside(to, what));
    }
    fs::copy(from, to).unwrap();
    if beside(from, "wal").exists() {
        fs::copy(beside(from, "wal"), beside(to, "wal")).unwrap();
    }
}

fn dump_hospital(world: &World) -> String {
    let url = world.postgres("hospital");
    assert_eq!(rows::prepared(url).len(), OPEN);
    let dump = cluster::run(Command::new("pg_dump").args(["--no-owner", "--dbname", url]));
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    String::from_utf8(dump.stdout).unwrap()
}

fn put_hospital_back(world: &World, dump: &str) {
    let url = world.postgres("hospital");
    // Of a server whose disk is lost nothing would be there.
    for gid in rows::prepared(url) {
        rows::execute(url, &format!("rollback prepared '{gid}'")).unwrap();
    }
    let (_, name) = url.rsplit_once('/').unwrap();
    rows::execute(world.cluster.postgres_admin(), &format!("drop database {name} with (force)")).unwrap();
    rows::execute(world.cluster.postgres_admin(), &format!("create database {name}")).unwrap();
    let file = world.sqlite("surgeon-log").with_extension("sql");
    fs::write(&file, dump).unwrap();
    let psql = ["--quiet", "--set", "ON_ERROR_STOP=1", "--file", file.to_str().unwrap(), url];
    let restored = cluster::run(Command::new("psql").args(psql));
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
}

/// The insurer's tables in another database.
struct Tables {
    url: String,
    database: String,
    names: Vec<String>,
}

impl Tables {
    fn copy(world: &World, crew: &mut Crew) -> Self {
        assert!(crew.insurer.terminate().success());
        let url = world.mariadb("insurer").to_string();
        let names =
            query_on_mariadb(&url, "select table_name from information_schema.tables where table_schema = database()");
        let (_, name) = url.rsplit_once('/').unwrap();
        let database = format!("{name}_copy");
        execute_on_mariadb(&url, &format!("create database {database}"));
        for table in &names {
            execute_on_mariadb(&url, &format!("create table {database}.{table} like {table}"));
            execute_on_mariadb(&url, &format!("insert into {database}.{table} select * from {table}"));
        }
        crew.insurer.start_again();
        Self { url, database, names }
    }

    fn put_back(&self) {
        for table in &self.names {
            execute_on_mariadb(&self.url, &format!("delete from {table}"));
            execute_on_mariadb(&self.url, &format!("insert into {table} select * from {}.{table}", self.database));
        }
    }

    fn drop_copy(&self) {
        execute_on_mariadb(&self.url, &format!("drop database {}", self.database));
    }
}

/// SIGKILL of the insurer while its first commits are done again: they wait for somebody who has their coverages locked.
fn kill_while_it_is_brought_back(world: &World, crew: &mut Crew) {
    let url = world.mariadb("insurer");
    let runtime = Runtime::new().unwrap();
    let mut holder = runtime.block_on(Conn::new(Opts::from_url(url).unwrap())).unwrap();
    // What is in doubt there can be decided; so some of it is done when it ends.
    let lock = "set session transaction isolation level read committed; start transaction;
                select member from coverage where reserved_minor = 0 for update";
    runtime.block_on(holder.query_drop(lock)).unwrap();
    crew.insurer.start_again();
    let waiting = "select info from information_schema.processlist
                   where db = database() and id <> connection_id() and command = 'Query' and time_ms > 500";
    world.wait_until("the insurer waits", || !query_on_mariadb(url, waiting).is_empty());
    crew.insurer.kill();
    assert_eq!(query_on_mariadb(url, RESTORING).len(), 1, "it was cut off in the middle");
    let in_doubt = "select txid from suture_ledger where state = 'in_doubt'";
    assert_eq!(query_on_mariadb(url, in_doubt), Vec::<String>::new(), "and has done some of it");
    runtime.block_on(holder.query_drop("rollback")).unwrap();
    runtime.block_on(holder.disconnect()).unwrap();
}
