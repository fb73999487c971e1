//! PostgreSQL on a real server: the shared suite in both modes, and what is PostgreSQL's own about mode xa.
//!
//! Each test has a database of its own, which it creates and drops. The server is named by `SUTURE_TEST_POSTGRES`;
//! `compose/test` starts one and sets it.

mod common;
#[path = "common/way.rs"]
mod way;

use std::fmt::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::server::{Private, shared};
use common::*;
use suture_contract::ids::code::is_retryable;
use suture_contract::ids::{Deployment, Shard};
use suture_contract::messages::{Prepare, Verdict};
use suture_participants::config::{Database, ParticipantConfig, ServerSettings};
use suture_participants::postgres::PostgresResource;
use suture_participants::resource::{
    Effect, Fault, Leftover, OpenError, Opening, Position, Prepared, Redone, Resource, Stored,
};
use suture_participants_core::branch::{State, Wrong};
use tokio_postgres::{Client, NoTls};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use way::{address, way_to};

const CONFIG: &str = r#"
name = "bank"
mode = "xa"
[database]
kind = "postgres"
url = "URL"
connections = 8
cap = 20
lock_timeout_ms = 300
key_timeout_ms = 300
lost_after_ms = 300

[operation.put.parameters]
id = { path = "/id", type = "text" }
account = { path = "/account", type = "text" }
amount = { path = "/amount", type = "integer" }
[[operation.put.prepare]]
sql = "update account set balance = balance - :amount where name = :account"
rows = 1
code = "NO_ACCOUNT"
check = "LIMIT"
[[operation.put.prepare]]
sql = "insert into item (id, account, amount, txid) values (:id, :account, :amount, :txid)"
rows = 1
unique = "DUPLICATE"

[operation.put_only.parameters]
id = { path = "/id", type = "text" }
amount = { path = "/amount", type = "integer" }
[[operation.put_only.prepare]]
sql = "insert into item (id, account, amount, txid) values (:id, '-', :amount, :txid)"
rows = 1

[operation.put_child.parameters]
id = { path = "/id", type = "text" }
[[operation.put_child.prepare]]
sql = "insert into child (id, txid) values (:id, :txid)"
rows = 1

[operation.sleep.parameters]
seconds = { path = "/seconds", type = "decimal" }
[[operation.sleep.prepare]]
sql = "select pg_sleep(:seconds::float8)"
rows = 1

[operation.shout.parameters]
word = { path = "/word", type = "text" }
[[operation.shout.prepare]]
sql = "select pg_notify('shout', :word)"
rows = 1

[seed.account.parameters]
name = { path = "/name", type = "text" }
bucket = { path = "/bucket", type = "integer" }
[[seed.account.steps]]
sql = "insert into account (name, balance) select :name, 0 where :bucket <> 0 on conflict do nothing"
rows = "any"
"#;

/// The same business in mode reserve.
const RESERVE_CONFIG: &str = r#"
name = "bank"
mode = "reserve"
[database]
kind = "postgres"
url = "URL"
lock_timeout_ms = 300

[operation.put.parameters]
id = { path = "/id", type = "text" }
account = { path = "/account", type = "text" }
amount = { path = "/amount", type = "integer" }
[[operation.put.reserve]]
sql = "update account set balance = balance - :amount, held = held + :amount where name = :account"
rows = 1
code = "NO_ACCOUNT"
check = "LIMIT"
[[operation.put.reserve]]
sql = "insert into item (id, account, amount, done, txid) values (:id, :account, :amount, false, :txid)"
rows = 1
unique = "DUPLICATE"
[[operation.put.confirm]]
sql = "update account set held = held - i.amount from item i where i.txid = :txid and name = i.account"
rows = 1
[[operation.put.confirm]]
sql = "update item set done = true where txid = :txid"
rows = 1
[[operation.put.cancel]]
sql = "update account set held = held - i.amount, balance = balance + i.amount from item i where i.txid = :txid and name = i.account"
rows = 1
[[operation.put.cancel]]
sql = "delete from item where txid = :txid"
rows = 1

[seed.account.parameters]
name = { path = "/name", type = "text" }
bucket = { path = "/bucket", type = "integer" }
[[seed.account.steps]]
sql = "insert into account (name, balance) select :name, 0 where :bucket <> 0 on conflict do nothing"
rows = "any"
"#;

const SCHEMA: &str = "
create table if not exists account (name text primary key, balance bigint not null check (balance >= 0), held bigint not null default 0);
create table if not exists item (
    id text primary key, account text not null, amount bigint not null, done boolean not null default true,
    txid text not null, constraint positive check (amount > 0)
);
create table if not exists child (id text primary key references item deferrable initially deferred, txid text not null);
";

/// A fresh database.
struct Db {
    name: String,
    url: String,
}

static DATABASES: AtomicU32 = AtomicU32::new(0);

fn server() -> String {
    shared("SUTURE_TEST_POSTGRES")
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

impl Db {
    fn at(server: &str, name: String) -> Self {
        let (base, _) = server.rsplit_once('/').expect("a URL with a database");
        Self { url: format!("{base}/{name}"), name }
    }

    async fn new() -> Self {
        Self::on(&server()).await
    }

    async fn on(server: &str) -> Self {
        let name = format!("p{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed));
        let db = Self::at(server, name);
        connect(server).await.batch_execute(&format!("create database {}", db.name)).await.unwrap();
        db.execute(&format!("{SCHEMA} insert into account (name, balance) values ('a', 1000), ('y', 50), ('z', 50)"))
            .await;
        db
    }

    /// Gids are one list for the whole server, whatever the database.
    fn deployment(&self) -> Deployment {
        self.name.replace('_', "-").parse().unwrap()
    }

    fn gid(&self, prepare: &Prepare) -> String {
        format!("{}/{}/bank/{}", prepare.txid, self.deployment(), prepare.hash.short())
    }

    /// Not in `Drop`, which cannot wait. A test that failed leaves its database for whoever looks into it.
    async fn drop_database(self) {
        let own = connect(&self.url).await;
        for row in
            own.query("select gid from pg_prepared_xacts where database = current_database()", &[]).await.unwrap()
        {
            own.batch_execute(&format!("rollback prepared '{}'", row.get::<_, &str>(0))).await.unwrap();
        }
        drop(own);
        let server = connect(&server()).await;
        server.batch_execute(&format!("drop database {} with (force)", self.name)).await.unwrap();
    }

    fn config(&self, text: &str) -> (ServerSettings, Opening) {
        let text = text.replace("URL", &self.url);
        let config = ParticipantConfig::parse(&text, Path::new("bank.toml")).unwrap();
        let mut opening = config.opening(&self.deployment(), Some("fingerprint".to_string()), false).unwrap();
        opening.schema = Some(SCHEMA.to_string());
        let Database::Postgres(settings) = config.database else { panic!("another kind") };
        (settings, opening)
    }

    async fn try_open(
        &self,
        change: impl FnOnce(&mut ServerSettings, &mut Opening),
    ) -> Result<PostgresResource, OpenError> {
        let (mut settings, mut opening) = self.config(CONFIG);
        change(&mut settings, &mut opening);
        PostgresResource::open(settings, opening).await
    }

    async fn execute(&self, sql: &str) {
        connect(&self.url).await.batch_execute(sql).await.unwrap();
    }

    async fn gids(&self) -> Vec<String> {
        let sql = "select gid from pg_prepared_xacts where database = current_database() order by gid";
        connect(&self.url).await.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Ends all sessions of the participant; answers how many.
    async fn kill_connections(&self) -> i64 {
        self.number(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where datname = current_database() and application_name like 'suture %'",
        )
        .await
    }

    /// Waits until a statement of ours waits for a lock.
    async fn until_somebody_waits(&self) {
        let sql =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        while self.number(sql).await == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// A database whose participant works in mode reserve.
struct Reserving(Db);

impl Bench for Reserving {
    type R = PostgresResource;

    async fn open(&self) -> PostgresResource {
        let (settings, opening) = self.0.config(RESERVE_CONFIG);
        PostgresResource::open(settings, opening).await.unwrap()
    }

    async fn number(&self, sql: &str) -> i64 {
        self.0.number(sql).await
    }

    async fn text(&self, sql: &str) -> String {
        self.0.text(sql).await
    }
}

impl Bench for Db {
    type R = PostgresResource;

    async fn open(&self) -> PostgresResource {
        self.try_open(|_, _| ()).await.unwrap()
    }

    async fn number(&self, sql: &str) -> i64 {
        connect(&self.url).await.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn text(&self, sql: &str) -> String {
        connect(&self.url).await.query_one(sql, &[]).await.unwrap().get(0)
    }
}

fn of_operation(operation: &str, n: u64, payload: &str) -> Arc<Prepare> {
    let mut prepared = Prepare::clone(&prepare(n, &format!("key-{n}"), 1, payload));
    prepared.operation = operation.to_string();
    Arc::new(prepared)
}

#[tokio::test]
async fn postgres_conforms() {
    let db = Db::new().await;
    conforms(&db).await;
    assert!(db.gids().await.is_empty());
    db.drop_database().await;
}

/// Q8: what a yes means, and that the row is the proof.
#[tokio::test]
async fn a_yes_stands_in_the_list_and_its_row_is_invisible() {
    let db = Db::new().await;
    let bank = db.open().await;
    let branch = put(1, "key-1", "i1", "a", 10);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    assert_eq!(db.gids().await, [db.gid(&branch)]);
    assert_eq!(db.number("select count(*) from suture_ledger").await, 0);
    assert_eq!(db.number("select count(*) from item").await, 0);
    assert_eq!(commit(&bank, &branch).await, Ok(Effect::Finished));
    assert_eq!(
        db.number("select count(*) from suture_ledger where state = 'committed' and live_key = 'key-1'").await,
        1
    );
    assert!(db.gids().await.is_empty());
    db.drop_database().await;
}

#[tokio::test]
async fn postgres_conforms_in_mode_reserve() {
    let db = Reserving(Db::new().await);
    conforms(&db).await;
    a_long_batch_loses_only_those_at_fault(&db).await;
    what_cannot_be_confirmed_holds_up_no_other(&db, async |sql| db.0.execute(sql).await).await;
    what_is_in_doubt_is_finished_as_it_was_begun(&db, async |changes| {
        let text = changes.iter().fold(RESERVE_CONFIG.to_string(), |text, (a, b)| text.replace(a, b));
        let (settings, opening) = db.0.config(&text);
        PostgresResource::open(settings, opening).await
    })
    .await;
    let branch = put(900, "key-900", "i900", "a", 1);
    let bank = db.open().await;
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    let refused = db.0.try_open(|_, _| ()).await.err().expect("its branches would not be found in mode xa");
    assert!(matches!(refused, OpenError::Need { setting: "mode", .. }), "{refused}");
    assert_eq!(abort(&bank, &branch).await, Ok(Effect::Finished));
    assert!(db.0.gids().await.is_empty(), "mode reserve prepares nothing");
    db.0.drop_database().await;
}

/// Q7: nothing that a branch sets stays on the connection.
#[tokio::test]
async fn settings_end_with_their_branch() {
    let db = Db::new().await;
    let probe = CONFIG.replace(
        "select pg_sleep(:seconds::float8)",
        "select 1 where :seconds::float8 >= 0 and current_setting('lock_timeout') = '300ms' and current_setting('statement_timeout') = '5s' and current_setting('synchronous_commit') = 'on' and current_setting('idle_in_transaction_session_timeout') = '1min'",
    );
    db.execute(&format!("alter database {} set synchronous_commit = off", db.name)).await;
    let (mut settings, opening) = db.config(&probe);
    settings.connections = 1;
    let bank = PostgresResource::open(settings, opening).await.unwrap();
    for n in 1..4 {
        assert_eq!(prepare_one(&bank, &of_operation("sleep", n, r#"{"seconds":0}"#)).await, yes());
        assert_eq!(abort(&bank, &of_operation("sleep", n, r#"{"seconds":0}"#)).await, Ok(Effect::Finished));
    }
    db.drop_database().await;
}

/// R4: a repeated prepare in doubt answers from the gid, and one about something else is no repeat.
#[tokio::test]
async fn the_gid_tells_the_hash_while_the_row_is_invisible() {
    let db = Db::new().await;
    let branch = put(1, "key-1", "i1", "a", 10);
    assert_eq!(prepare_one(&db.open().await, &branch).await, yes());
    let bank = db.open().await;
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    let other = put(1, "key-1", "i1", "a", 11);
    let Prepared::Fault(Fault::Violation(violation)) = prepare_one(&bank, &other).await else { panic!("obeyed") };
    assert_eq!(violation.wrong, Wrong::OtherHash);
    assert_eq!(db.gids().await, [db.gid(&branch)]);
    db.drop_database().await;
}

/// Q3, R4: two sessions prepare the same branch at once; both answer yes, and it is there once.
#[tokio::test]
async fn two_sessions_prepare_one_branch() {
    let db = Db::new().await;
    let (one, two) = (Arc::new(db.open().await), Arc::new(db.open().await));
    for n in 0..20 {
        let branch = put(n, &format!("key-{n}"), &format!("i{n}"), "a", 1);
        let at_once = [&one, &two, &one].map(|bank| {
            let (bank, branch) = (Arc::clone(bank), Arc::clone(&branch));
            tokio::spawn(async move { prepare_one(&*bank, &branch).await })
        });
        for prepared in at_once {
            assert_eq!(prepared.await.unwrap(), yes());
        }
        assert_eq!(commit(&*one, &branch).await, Ok(Effect::Finished));
    }
    assert_eq!(db.number("select count(*) from item").await, 20);
    db.drop_database().await;
}

/// Q16, R18: a business key, and a row, that a branch in doubt holds.
#[tokio::test]
async fn what_is_in_doubt_blocks_others_for_a_moment_only() {
    let db = Db::new().await;
    let bank = db.open().await;
    let branch = put(1, "key-1", "i1", "a", 10);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    assert_eq!(code(&prepare_one(&bank, &put(2, "key-1", "i1", "a", 10)).await), "in_progress");
    assert_eq!(code(&prepare_one(&bank, &put(3, "key-3", "i3", "a", 10)).await), "busy", "the account is locked");
    assert_eq!(db.gids().await, [db.gid(&branch)]);

    // One that waits goes on as soon as the decision comes: decisions have connections of their own.
    db.execute("insert into account values ('b', 5)").await;
    let bank = Arc::new(
        db.try_open(|settings, _| {
            settings.connections = 1;
            settings.decision_connections = 1;
            settings.lock_timeout = Duration::from_secs(60);
            settings.statement_timeout = Duration::from_secs(60);
        })
        .await
        .unwrap(),
    );
    // A business key is waited for briefly, however long rows are: its connection is needed.
    let same_key = put(5, "key-1", "i1", "a", 10);
    let answer = tokio::time::timeout(Duration::from_secs(30), prepare_one(&*bank, &same_key)).await.unwrap();
    assert_eq!(code(&answer), "in_progress");
    let waiting = {
        let bank = Arc::clone(&bank);
        tokio::spawn(async move { prepare_one(&*bank, &put(4, "key-4", "i4", "a", 10)).await })
    };
    db.until_somebody_waits().await;
    let committed = tokio::time::timeout(Duration::from_secs(30), commit(&*bank, &branch)).await;
    assert_eq!(committed, Ok(Ok(Effect::Finished)));
    assert_eq!(waiting.await.unwrap(), yes());
    db.drop_database().await;
}

/// R18: a second transaction of the same key waits for the first, whose decision says what it is.
#[tokio::test]
async fn a_key_that_is_committed_meanwhile_is_a_duplicate() {
    let db = Db::new().await;
    let patient = |settings: &mut ServerSettings, _: &mut Opening| {
        settings.key_timeout = Duration::from_secs(60);
        settings.statement_timeout = Duration::from_secs(60);
    };
    let bank = Arc::new(db.try_open(patient).await.unwrap());
    for (first, second, verdict, expected) in
        [(1, 2, Verdict::Commit, "duplicate"), (3, 4, Verdict::Abort, "aborted_before")]
    {
        let (key, item) = (format!("key-{first}"), format!("i{first}"));
        let branch = put(first, &key, &item, "a", 10);
        assert_eq!(prepare_one(&*bank, &branch).await, yes());
        let waiting = {
            let (bank, again) = (Arc::clone(&bank), put(second, &key, &item, "a", 10));
            tokio::spawn(async move { prepare_one(&*bank, &again).await })
        };
        db.until_somebody_waits().await;
        assert_eq!(decide(&*bank, &branch, verdict).await, Ok(Effect::Finished));
        let answer = waiting.await.unwrap();
        if verdict == Verdict::Commit {
            assert_eq!(code(&answer), expected);
        } else {
            // Between the rollback and the `aborted` row the key is free: either is right.
            assert!(answer == yes() || code(&answer) == expected, "{answer:?}");
        }
    }
    db.drop_database().await;
}

/// Q2: a block that had failed answers ROLLBACK to the PREPARE; Q6: what cannot be prepared at all.
#[tokio::test]
async fn what_does_not_get_into_the_list_is_no_yes() {
    let db = Db::new().await;
    let bank = db.open().await;
    let child = of_operation("put_child", 1, r#"{"id":"nobody"}"#);
    assert_eq!(code(&prepare_one(&bank, &child).await), "statement_failed", "a deferred constraint fails at PREPARE");
    let shout = of_operation("shout", 2, r#"{"word":"x"}"#);
    assert_eq!(code(&prepare_one(&bank, &shout).await), "statement_failed", "NOTIFY");
    assert!(db.gids().await.is_empty());
    assert_eq!(db.number("select count(*) from suture_ledger where state = 'refused'").await, 2);
    // The connections are as good as new.
    for n in 3..12 {
        assert_eq!(
            prepare_one(&bank, &of_operation("put_only", n, &format!(r#"{{"id":"i{n}","amount":1}}"#))).await,
            yes()
        );
    }
    db.drop_database().await;
}

/// Q2: a block that has failed answers ROLLBACK to the PREPARE, and that is no error.
#[tokio::test]
async fn a_prepare_that_has_prepared_nothing_is_no_yes() {
    const PREPARE: &[u8] = b"prepare transaction '";
    const ROLL_BACK: &[u8; PREPARE.len()] = b"rollback; set a.b = '";
    let db = Db::new().await;
    let address = address(&db.url);
    let roll_back = |message: &mut [u8]| {
        if let Some(at) = message.windows(PREPARE.len()).position(|part| part == PREPARE) {
            message[at..at + PREPARE.len()].copy_from_slice(ROLL_BACK);
        }
    };
    let port = way_to(address.clone(), || true, roll_back);
    let detour = |settings: &mut ServerSettings, _: &mut Opening| {
        settings.url = settings.url.replace(&address, &format!("127.0.0.1:{port}"));
    };
    let bank = db.try_open(detour).await.unwrap();
    let branch = put(1, "key-1", "i1", "a", 10);
    assert_eq!(code(&prepare_one(&bank, &branch).await), "statement_failed");
    assert_eq!(db.number("select count(*) from suture_ledger where state = 'refused'").await, 1);
    assert!(db.gids().await.is_empty());
    db.drop_database().await;
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_busy() {
    let db = Db::new().await;
    let bank = db.try_open(|settings, _| settings.statement_timeout = Duration::from_millis(100)).await.unwrap();
    assert_eq!(code(&prepare_one(&bank, &of_operation("sleep", 1, r#"{"seconds":30}"#)).await), "busy");
    assert_eq!(prepare_one(&bank, &of_operation("sleep", 2, r#"{"seconds":0}"#)).await, yes());
    db.drop_database().await;
}

/// More than the cap is not tried, and nothing is voted about it.
#[tokio::test]
async fn beyond_the_cap_branches_wait() {
    let db = Db::new().await;
    let bank = db.try_open(|settings, _| settings.cap = 2).await.unwrap();
    let branches: Vec<_> =
        (1..=3).map(|n| of_operation("put_only", n, &format!(r#"{{"id":"i{n}","amount":1}}"#))).collect();
    let prepared = bank.prepare(branches.clone()).await.unwrap();
    assert_eq!(prepared, [yes(), yes(), Prepared::Later]);
    assert_eq!(bank.prepare(branches.clone()).await.unwrap(), prepared, "what is in doubt already answers");
    assert_eq!(abort(&bank, &branches[0]).await, Ok(Effect::Finished));
    assert_eq!(prepare_one(&bank, &branches[2]).await, yes());
    db.drop_database().await;
}

/// R14: the slots are the server's, and others prepare there too. A no that may pass is voted, and it stays: for a later yes
/// somebody has to ask again.
#[tokio::test]
async fn slots_that_somebody_else_uses_up_are_a_no_that_may_pass() {
    let server = Private::start("postgres");
    let db = Db::on(&server.url()).await;
    db.execute("alter system set max_prepared_transactions = 4").await;
    server.kill();
    server.start_again();
    let bank = db.try_open(|settings, _| settings.cap = 2).await.unwrap();
    let foreign = |n: u32| format!("begin; insert into account values ('f{n}', 0); prepare transaction 'foreign-{n}'");
    for n in 0..4 {
        db.execute(&foreign(n)).await;
    }
    let payload = r#"{"id":"i1","account":"a","amount":10}"#;
    let first = prepare(1, "key-1", 1, payload);
    assert_eq!(code(&prepare_one(&bank, &first).await), "busy");
    assert!(is_retryable("busy"));
    assert_eq!(db.gids().await.len(), 4, "theirs");
    assert_eq!(db.number("select balance from account where name = 'a'").await, 1000);

    for n in 0..4 {
        db.execute(&format!("rollback prepared 'foreign-{n}'")).await;
    }
    assert_eq!(code(&prepare_one(&bank, &first).await), "busy", "what was voted stays");
    assert_eq!(abort(&bank, &first).await, Ok(Effect::Repeated));
    let again = prepare(2, "key-1", 2, payload);
    assert_eq!(prepare_one(&bank, &again).await, yes());
    assert_eq!(commit(&bank, &again).await, Ok(Effect::Finished));
}

/// R2, R3: the abort comes while its prepare is running, and while it is prepared unseen.
#[tokio::test]
async fn an_abort_meets_its_prepare_on_the_way() {
    let db = Db::new().await;
    let bank = Arc::new(
        db.try_open(|settings, _| {
            settings.lock_timeout = Duration::from_secs(60);
            settings.statement_timeout = Duration::from_secs(60);
        })
        .await
        .unwrap(),
    );
    // The account is locked by somebody else, so the branch stands still with its ledger row inserted.
    let other = connect(&db.url).await;
    other.batch_execute("begin; update account set balance = balance").await.unwrap();
    let branch = put(1, "key-1", "i1", "a", 10);
    let preparing = {
        let (bank, branch) = (Arc::clone(&bank), Arc::clone(&branch));
        tokio::spawn(async move { prepare_one(&*bank, &branch).await })
    };
    db.until_somebody_waits().await;
    let aborting = {
        let (bank, branch) = (Arc::clone(&bank), Arc::clone(&branch));
        tokio::spawn(async move { abort(&*bank, &branch).await })
    };
    other.batch_execute("commit").await.unwrap();
    // Whichever came first, in the end there is a row, no branch and no effect.
    let vote = preparing.await.unwrap();
    assert!(vote == yes() || code(&vote) == "aborted", "{vote:?}");
    assert!(matches!(aborting.await.unwrap(), Ok(Effect::Finished | Effect::NotedAbort)));
    assert!(db.gids().await.is_empty());
    assert_eq!(db.number("select count(*) from suture_ledger where state = 'aborted'").await, 1);
    assert_eq!(db.number("select count(*) from item").await, 0);
    assert_eq!(code(&prepare_one(&*bank, &branch).await), "aborted");
    db.drop_database().await;
}

/// R17: the abort of a second transaction of the same key and attempt, while the first is in doubt and holds both.
#[tokio::test]
async fn an_abort_does_not_wait_for_another_branch_of_its_key() {
    let db = Db::new().await;
    let bank = db.open().await;
    let first = put(1, "key-1", "i1", "a", 10);
    let crossed = put(2, "key-1", "i1", "a", 10);
    assert_eq!(prepare_one(&bank, &first).await, yes());
    assert_eq!(abort(&bank, &crossed).await, Ok(Effect::NotedAbort));
    assert_eq!(
        db.number("select count(*) from suture_ledger where txid = 'k3f9q-3-2' and business_key is null").await,
        1
    );
    assert_eq!(abort(&bank, &first).await, Ok(Effect::Finished));
    assert_eq!(
        db.number("select count(*) from suture_ledger where txid = 'k3f9q-3-1' and business_key = 'key-1'").await,
        1
    );
    assert_eq!(code(&prepare_one(&bank, &put(3, "key-1", "i1", "a", 10)).await), "aborted_before");
    db.drop_database().await;
}

/// After ROLLBACK PREPARED and before the row a crash leaves nothing at all; the decision comes again.
#[tokio::test]
async fn a_crash_between_rollback_and_row_is_mended_by_the_decision() {
    let db = Db::new().await;
    let bank = db.open().await;
    let branch = put(1, "key-1", "i1", "a", 10);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    db.execute(&format!("rollback prepared '{}'", db.gid(&branch))).await;
    assert_eq!(abort(&bank, &branch).await, Ok(Effect::NotedAbort));
    assert_eq!(code(&prepare_one(&bank, &branch).await), "aborted");
    db.drop_database().await;
}

/// R7: a prepared branch that an operator removed. Nobody may call that a success.
#[tokio::test]
async fn a_branch_that_is_gone_is_lost() {
    let db = Db::new().await;
    let bank = db.open().await;
    let (gone, sound) = (put(1, "key-1", "i1", "a", 10), of_operation("put_only", 2, r#"{"id":"i2","amount":1}"#));
    bank.prepare(vec![gone.clone(), sound.clone()]).await.unwrap();
    db.execute(&format!("rollback prepared '{}'", db.gid(&gone))).await;
    let batch = [&gone, &sound].map(|p| decision(p, Verdict::Commit)).to_vec();
    let decided = bank.commit(batch).await.unwrap();
    let Err(Fault::Violation(violation)) = &decided[0] else { panic!("acknowledged") };
    assert_eq!(violation.wrong, Wrong::Lost);
    assert_eq!(decided[1], Ok(Effect::Finished), "the other one is not held up");
    assert_eq!(db.number("select count(*) from item").await, 1);
    db.drop_database().await;
}

/// R7 the other way: a branch that an operator committed by hand is committed.
#[tokio::test]
async fn a_branch_that_was_committed_by_hand_is_committed() {
    let db = Db::new().await;
    let bank = db.open().await;
    let branch = put(1, "key-1", "i1", "a", 10);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    db.execute(&format!("commit prepared '{}'", db.gid(&branch))).await;
    assert_eq!(commit(&bank, &branch).await, Ok(Effect::Repeated));
    db.drop_database().await;
}

/// A row that another session is still inserting is waited for before a branch is called lost.
#[tokio::test]
async fn a_row_on_its_way_is_not_lost() {
    let db = Db::new().await;
    let bank = Arc::new(db.try_open(|settings, _| settings.lost_after = Duration::from_secs(60)).await.unwrap());
    let branch = put(1, "key-1", "i1", "a", 10);
    let other = connect(&db.url).await;
    let row = format!(
        "begin; insert into suture_ledger (txid, state, hash, business_key, attempt, live_key)
         values ('{}', 'committed', '{}', 'key-1', 1, 'key-1')",
        branch.txid, branch.hash
    );
    other.batch_execute(&row).await.unwrap();
    let committing = {
        let (bank, branch) = (Arc::clone(&bank), Arc::clone(&branch));
        tokio::spawn(async move { commit(&*bank, &branch).await })
    };
    db.until_somebody_waits().await;
    other.batch_execute("commit").await.unwrap();
    assert_eq!(committing.await.unwrap(), Ok(Effect::Repeated));
    db.drop_database().await;
}

/// R1: every connection dies between vote and decision, and in the middle of a branch.
#[tokio::test]
async fn killed_connections_lose_nothing() {
    let db = Db::new().await;
    let bank = Arc::new(db.open().await);
    let branch = put(1, "key-1", "i1", "a", 10);
    assert_eq!(prepare_one(&*bank, &branch).await, yes());
    assert!(db.kill_connections().await > 0);
    assert_eq!(commit(&*bank, &branch).await, Ok(Effect::Finished));

    let other = connect(&db.url).await;
    other.batch_execute("begin; update account set balance = balance").await.unwrap();
    let branch = put(2, "key-2", "i2", "a", 10);
    let cut = {
        let (bank, branch) = (Arc::clone(&bank), Arc::clone(&branch));
        tokio::spawn(async move { bank.prepare(vec![branch]).await })
    };
    db.until_somebody_waits().await;
    db.kill_connections().await;
    other.batch_execute("rollback").await.unwrap();
    assert!(cut.await.unwrap().is_err(), "nobody knows, so nothing is answered");
    assert!(db.gids().await.is_empty());
    assert_eq!(prepare_one(&*bank, &branch).await, yes(), "the same, asked again");
    assert_eq!(abort(&*bank, &branch).await, Ok(Effect::Finished));
    assert_eq!(db.number(MONEY).await, 1100);
    db.drop_database().await;
}

/// X4, P58: what others prepared in the same database is nobody's business here.
#[tokio::test]
async fn foreign_branches_stay_untouched() {
    let db = Db::new().await;
    let bank = db.open().await;
    let other_deployment = put(1, "key-1", "i1", "a", 10);
    let foreign = [
        "somebody-elses".to_string(),
        format!("{}/other/bank/{}", txid(1), other_deployment.hash.short()),
        format!("{}/{}/teller/{}", txid(1), db.deployment(), other_deployment.hash.short()),
    ];
    for (n, gid) in foreign.iter().enumerate() {
        db.execute(&format!("begin; insert into item values ('f{n}', '-', 1, true, '-'); prepare transaction '{gid}'"))
            .await;
    }
    assert!(bank.in_doubt().await.unwrap().is_empty());
    let Err(Fault::Violation(violation)) = commit(&bank, &other_deployment).await else { panic!("obeyed") };
    assert_eq!(violation.wrong, Wrong::Lost);
    assert_eq!(abort(&bank, &other_deployment).await, Ok(Effect::NotedAbort));
    assert_eq!(db.gids().await.len(), 3);
    db.drop_database().await;
}

/// M4, P58: what the ledger calls over is rolled back; what is in doubt and what is foreign is not.
#[tokio::test]
async fn a_branch_that_is_over_is_swept() {
    let db = Db::new().await;
    let bank = db.open().await;
    let (over, refused, in_doubt) =
        (put(1, "key-1", "i1", "a", 10), put(2, "key-2", "i2", "nobody", 10), put(3, "key-3", "i3", "a", 10));
    assert_eq!(prepare_one(&bank, &over).await, yes());
    assert_eq!(abort(&bank, &over).await, Ok(Effect::Finished));
    assert_eq!(code(&prepare_one(&bank, &refused).await), "NO_ACCOUNT");
    assert_eq!(prepare_one(&bank, &in_doubt).await, yes());
    let other_hash = put(1, "key-1", "i1", "a", 11);
    let foreign = [
        "somebody-elses".to_string(),
        format!("{}/other/bank/{}", over.txid, over.hash.short()),
        format!("{}/{}/teller/{}", over.txid, db.deployment(), over.hash.short()),
    ];
    let back = [db.gid(&over), db.gid(&refused)];
    for (n, gid) in foreign.iter().chain(&back).enumerate() {
        db.execute(&format!("begin; insert into item values ('f{n}', '-', 1, true, '-'); prepare transaction '{gid}'"))
            .await;
    }
    let mut found = bank.leftovers().await.unwrap();
    found.sort_unstable_by_key(|leftover| leftover.txid);
    let leftover = |branch: &Prepare, state| Leftover { txid: branch.txid, state };
    assert_eq!(found, [leftover(&over, State::Aborted), leftover(&refused, State::Refused)]);
    let all = [over.txid, refused.txid, in_doubt.txid].to_vec();
    assert_eq!(bank.sweep(all.clone()).await, Ok(2), "whatever it is asked for");
    assert_eq!(bank.sweep(all).await, Ok(0));
    let mut left = foreign.to_vec();
    left.push(db.gid(&in_doubt));
    left.sort_unstable();
    let mut listed = db.gids().await;
    listed.sort_unstable();
    assert_eq!(listed, left);

    // About something else under the same name: nobody knows what that is.
    db.execute(&format!(
        "begin; insert into item values ('o', '-', 1, true, '-'); prepare transaction '{}'",
        db.gid(&other_hash)
    ))
    .await;
    assert!(bank.leftovers().await.unwrap().is_empty());
    assert_eq!(commit(&bank, &in_doubt).await, Ok(Effect::Finished));
    db.drop_database().await;
}

/// R12, P25: a zombie has looked, and before its row is in the ledger the branch is prepared, finished and purged elsewhere. All of that
/// happens while its insert waits.
#[tokio::test]
async fn a_zombie_does_not_run_what_was_purged_since_it_looked() {
    let db = Db::new().await;
    let patient = |settings: &mut ServerSettings| {
        settings.key_timeout = Duration::from_secs(30);
        settings.lock_timeout = Duration::from_secs(30);
    };
    let in_xa = db.try_open(|settings, _| patient(settings)).await.unwrap();
    let (mut settings, opening) = db.config(RESERVE_CONFIG);
    patient(&mut settings);
    let in_reserve = PostgresResource::open(settings, opening).await.unwrap();
    let (in_xa, in_reserve) = (Arc::new(in_xa), Arc::new(in_reserve));
    // One that would run, and one that would be refused: a refused row is in the way of a late copy of the commit.
    for (zombie, branch) in [
        (&in_xa, put(1, "key-1", "i1", "a", 10)),
        (&in_xa, put(2, "key-2", "i2", "nobody", 10)),
        (&in_reserve, put(3, "key-3", "i3", "a", 10)),
        (&in_reserve, put(4, "key-4", "i4", "nobody", 10)),
    ] {
        let other = connect(&db.url).await;
        let by_another = format!(
            "begin; insert into suture_ledger (txid, state, hash) values ('{}', 'aborted', '{}')",
            branch.txid, branch.hash
        );
        other.batch_execute(&by_another).await.unwrap();
        let late = {
            let (zombie, branch) = (Arc::clone(zombie), branch.clone());
            tokio::spawn(async move { prepare_one(&*zombie, &branch).await })
        };
        db.until_somebody_waits().await;
        let purged = format!(
            "delete from suture_ledger where txid = '{}';
             insert into suture_marks values ('k3f9q', 3, {}) on conflict (letters, shard) do update set next_offset = excluded.next_offset;
             commit",
            branch.txid,
            branch.txid.offset + 1
        );
        other.batch_execute(&purged).await.unwrap();
        assert_eq!(code(&late.await.unwrap()), "finished_before");
        assert!(zombie.in_doubt().await.unwrap().is_empty());
    }
    assert_eq!(db.number("select count(*) from item").await + db.number("select count(*) from suture_ledger").await, 0);
    db.drop_database().await;
}

/// O3: somebody else's lock is waited for, and no reason to call a commit lost.
#[tokio::test]
async fn a_commit_that_is_done_again_waits_for_locks() {
    let db = Db::new().await;
    let reserving = Reserving(db);
    let db = &reserving.0;
    let other = connect(&db.url).await;
    for (bank, branch) in
        [(db.open().await, put(1, "key-1", "i1", "a", 10)), (reserving.open().await, put(2, "key-2", "i2", "a", 10))]
    {
        other.batch_execute("begin; update account set balance = balance").await.unwrap();
        assert_eq!(bank.redo(vec![branch.clone()]).await.unwrap_err().code, "55P03");
        other.batch_execute("rollback").await.unwrap();
        assert_eq!(bank.redo(vec![branch]).await, Ok(Some(vec![Redone::Done])));
    }
    reserving.0.drop_database().await;
}

/// Many at once, over all connections, with every kind of end.
#[tokio::test]
async fn many_branches_at_once_add_up() {
    let db = Db::new().await;
    let bank = Arc::new(
        db.try_open(|settings, _| {
            settings.lock_timeout = Duration::from_secs(60);
            settings.statement_timeout = Duration::from_secs(60);
        })
        .await
        .unwrap(),
    );
    let tasks: Vec<_> = (1..=60_u64)
        .map(|n| {
            let bank = Arc::clone(&bank);
            tokio::spawn(async move {
                let branch = put(n, &format!("key-{n}"), &format!("i{n}"), "a", 1);
                assert_eq!(prepare_one(&*bank, &branch).await, yes());
                let verdict = if n % 3 == 0 { Verdict::Abort } else { Verdict::Commit };
                assert_eq!(decide(&*bank, &branch, verdict).await, Ok(Effect::Finished));
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(db.number("select balance from account where name = 'a'").await, 960);
    assert_eq!(db.number("select count(*) from item").await, 40);
    assert_eq!(db.number("select count(*) from suture_ledger where state = 'aborted'").await, 20);
    db.drop_database().await;
}

#[tokio::test]
async fn unsafe_or_foreign_databases_are_refused() {
    let db = Db::new().await;
    let refused = db.try_open(|settings, _| settings.cap = 1000).await.err().unwrap();
    assert!(matches!(refused, OpenError::Need { setting: "max_prepared_transactions", .. }), "{refused}");
    drop(db.open().await);
    let refused = db.try_open(|_, opening| opening.owner.deployment = "other".parse().unwrap()).await.err().unwrap();
    assert!(matches!(refused, OpenError::Foreign { what: "deployment", .. }), "{refused}");
    let refused =
        db.try_open(|_, opening| opening.identity_fingerprint = Some("other".to_string())).await.err().unwrap();
    assert!(matches!(refused, OpenError::Foreign { what: "identity_key", .. }), "{refused}");
    let (settings, opening) =
        db.config(&CONFIG.replace("insert into child (id, txid)", "insert into child (id, nothing)"));
    let refused = PostgresResource::open(settings, opening).await.err().unwrap();
    assert!(
        matches!(&refused, OpenError::Statement { place, .. } if place == "operation.put_child.prepare[0]"),
        "{refused}"
    );
    let refused = db
        .try_open(|settings, _| settings.url = settings.url.replace(&db.name, "no_such_database"))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.to_string(), "the database is unavailable while connecting (3D000)");
    db.drop_database().await;
}

/// A restart with a branch in doubt must not wait for its locks.
#[tokio::test]
async fn opening_again_does_not_wait_for_branches_in_doubt() {
    let db = Db::new().await;
    let branch = put(1, "key-1", "i1", "a", 10);
    assert_eq!(prepare_one(&db.open().await, &branch).await, yes());
    let two = [db.open().await, db.open().await];
    assert_eq!(two[0].ledger_id(), two[1].ledger_id());
    assert_eq!(commit(&two[1], &branch).await, Ok(Effect::Finished));
    db.drop_database().await;
}

/// The tables were changed under us. A connection that has parsed a step before fails when it runs it, a new one when it
/// parses it: either way it is a no.
#[tokio::test]
async fn a_step_that_does_not_parse_any_more_is_a_no() {
    let db = Db::new().await;
    let (in_xa, in_reserve) = (db.open().await, Reserving(Db::new().await));
    let reserving = in_reserve.open().await;
    for (bank, db) in [(&in_xa, &db), (&reserving, &in_reserve.0)] {
        let before = put(1, "key-1", "i1", "a", 1);
        assert_eq!(prepare_one(bank, &before).await, yes());
        assert_eq!(commit(bank, &before).await, Ok(Effect::Finished));
        db.execute("alter table item rename column amount to sum").await;
        for ns in [[2, 3], [4, 5]] {
            let batch = ns.map(|n| put(n, &format!("key-{n}"), &format!("i{n}"), "y", 1)).to_vec();
            let prepared = until_answered(|| bank.prepare(batch.clone())).await;
            assert!(prepared.iter().all(|prepared| code(prepared) == "statement_failed"), "{prepared:?}");
            db.kill_connections().await;
        }
        db.execute("alter table item rename column sum to amount").await;
        let sound = put(6, "key-6", "i6", "z", 1);
        assert_eq!(until_answered(|| bank.prepare(vec![sound.clone()])).await, [yes()]);
    }
    in_reserve.0.drop_database().await;
    db.drop_database().await;
}

/// R15: a confirm step that does not parse any more stops its shard, and is done when it parses again.
#[tokio::test]
async fn a_confirm_that_does_not_parse_any_more_is_a_fault() {
    let db = Reserving(Db::new().await);
    let bank = db.open().await;
    let branch = put(1, "key-1", "i1", "a", 1);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    db.0.execute("alter table item rename column done to finished").await;
    for _ in 0..2 {
        let batch = vec![decision(&branch, Verdict::Commit)];
        let confirmed = until_answered(|| bank.commit(batch.clone())).await.remove(0);
        let Err(Fault::Finish { place, code }) = confirmed else { panic!("confirmed") };
        assert_eq!((place.as_str(), code.as_str()), ("operation.put.confirm[1]", "42703"));
        db.0.kill_connections().await;
    }
    db.0.execute("alter table item rename column finished to done").await;
    let batch = vec![decision(&branch, Verdict::Commit)];
    assert_eq!(until_answered(|| bank.commit(batch.clone())).await, [Ok(Effect::Finished)]);
    assert_eq!(db.number(MONEY).await, 1100);
    db.0.drop_database().await;
}

/// What is logged on this thread, with all its fields.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<String>>);

impl Subscriber for Logged {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        span.record(&mut self.clone());
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut self.clone());
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Visit for Logged {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        writeln!(self.0.lock().unwrap(), "{field}: {value:?}").unwrap();
    }
}

#[tokio::test]
async fn no_row_value_leaves_in_an_error_or_in_the_log() {
    let logged = Logged::default();
    let _here = tracing::subscriber::set_default(logged.clone());
    let db = Db::new().await;
    let bank = db.open().await;
    let canary = "canary-4711";
    let branch = put(1, "key-1", canary, "a", 1);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    assert_eq!(commit(&bank, &branch).await, Ok(Effect::Finished));
    let Prepared::Answer(answer) = prepare_one(&bank, &put(2, "key-2", canary, "a", 1)).await else {
        panic!("no answer")
    };
    assert!(!format!("{answer:?}").contains(canary));
    let logged = logged.0.lock().unwrap().clone();
    assert!(logged.contains("refused") && logged.contains("23505"), "the error was logged by its code: {logged}");
    assert!(!logged.contains(canary), "and by nothing else: {logged}");
    db.drop_database().await;
}

/// R1: the process ends at any point of its work, in either mode.
#[cfg(feature = "failpoints")]
mod crashes {
    use suture_participants::points::Place;

    use super::common::crash::{Crashes, at_every_point, ordered};
    use super::common::sends::at_every_send;
    use super::*;

    /// Another process's, or a new one.
    async fn db() -> Db {
        match ordered() {
            Some(order) => Db::at(&server(), order[0].clone()),
            None => Db::new().await,
        }
    }

    #[tokio::test]
    async fn a_crash_at_any_point_of_mode_xa_changes_nothing_in_the_end() {
        let db = db().await;
        at_every_point(&db).await;
        db.drop_database().await;
    }

    #[tokio::test]
    async fn a_crash_at_any_point_of_mode_reserve_changes_nothing_in_the_end() {
        let db = Reserving(db().await);
        at_every_point(&db).await;
        db.0.drop_database().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_crash_at_any_send_of_mode_xa_changes_nothing_in_the_end() {
        let db = db().await;
        at_every_send(&db).await;
        db.drop_database().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_crash_at_any_send_of_mode_reserve_changes_nothing_in_the_end() {
        let db = Reserving(db().await);
        at_every_send(&db).await;
        db.0.drop_database().await;
    }

    impl Crashes for Db {
        fn name(&self) -> String {
            self.name.clone()
        }

        fn places(&self) -> &'static [Place] {
            &[Place::Xa, Place::Local]
        }

        fn hindrance(&self) -> Option<[&'static str; 2]> {
            None
        }

        async fn come_back(&self, branch: &Prepare) {
            let item = format!("insert into item values ('back-{0}', '-', 1, true, '{0}')", branch.txid);
            self.execute(&format!("begin; {item}; prepare transaction '{}'", self.gid(branch))).await;
        }

        async fn execute(&self, sql: &str) {
            self.execute(sql).await;
        }
    }

    impl Crashes for Reserving {
        fn name(&self) -> String {
            self.0.name.clone()
        }

        fn places(&self) -> &'static [Place] {
            &[Place::Reserve, Place::Local]
        }

        fn hindrance(&self) -> Option<[&'static str; 2]> {
            Some([
                "create or replace function hinder() returns trigger language plpgsql as
                     $$ begin raise exception using errcode = '58030'; end $$;
                 create trigger hinder before update of done on item execute function hinder()",
                "drop trigger hinder on item",
            ])
        }

        async fn come_back(&self, _: &Prepare) {
            unreachable!("nothing is prepared in mode reserve");
        }

        async fn execute(&self, sql: &str) {
            self.0.execute(sql).await;
        }
    }
}

/// R14: a lock that somebody else holds is in the way of one decision, and not of the others of its batch.
#[tokio::test]
async fn a_decision_that_meets_a_lock_keeps_no_other_back() {
    let db = Reserving(Db::new().await);
    let bank = db.open().await;
    let branches = [put(1, "key-1", "i1", "a", 1), put(2, "key-2", "i2", "y", 1), put(3, "key-3", "i3", "a", 1)];
    for branch in &branches {
        assert_eq!(prepare_one(&bank, branch).await, yes());
    }
    let mut somebody = connect(&db.0.url).await;
    let work = somebody.transaction().await.unwrap();
    work.batch_execute("select 1 from account where name = 'a' for update").await.unwrap();
    let batch = branches.each_ref().map(|branch| decision(branch, Verdict::Commit)).to_vec();
    let (later, done, repeated) = (Ok(Effect::Later), Ok(Effect::Finished), Ok(Effect::Repeated));
    assert_eq!(bank.commit(batch.clone()).await.unwrap(), [later.clone(), done.clone(), later]);
    work.rollback().await.unwrap();
    assert_eq!(bank.commit(batch).await.unwrap(), [done.clone(), repeated, done]);
    assert_eq!(db.number(MONEY).await, 1100);
    db.0.drop_database().await;
}

/// Q14: a standby that is promoted begins a timeline of its own. Here nothing but that is different.
#[tokio::test]
async fn a_server_that_has_taken_over_takes_no_positions() {
    const TIMELINE: &[u8] = b"pg_current_wal_insert_lsn()), 8)";
    let db = Db::new().await;
    let address = address(&db.url);
    let has_taken_over = Arc::new(AtomicBool::new(false));
    let takes_over = has_taken_over.clone();
    let another_timeline = move |message: &mut [u8]| {
        let at = message.windows(TIMELINE.len()).position(|part| part == TIMELINE);
        if let Some(at) = at.filter(|_| takes_over.load(Ordering::Relaxed)) {
            message[at + TIMELINE.len() - 2] = b'7';
        }
    };
    let port = way_to(address.clone(), || true, another_timeline);
    let detour = |settings: &mut ServerSettings, _: &mut Opening| {
        settings.url = settings.url.replace(&address, &format!("127.0.0.1:{port}"));
    };
    let bank = db.try_open(detour).await.unwrap();
    let position = |next_offset| {
        let (topic, letters) = ("suture.decisions".to_string(), "aaaaa".parse().unwrap());
        vec![Position { topic, letters, shard: Shard(0), next_offset }]
    };
    let store = async |next_offset| until_answered(|| bank.store_positions(position(next_offset), vec![])).await;
    assert_eq!(store(1).await, Stored::All);
    db.kill_connections().await;
    assert_eq!(store(2).await, Stored::All, "the same server, connected to anew");
    has_taken_over.store(true, Ordering::Relaxed);
    db.kill_connections().await;
    assert_eq!(store(3).await, Stored::WentBack);
    assert_eq!(bank.load_positions("suture.decisions".to_string()).await.unwrap(), position(2));
    db.drop_database().await;
}
