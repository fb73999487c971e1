//! PostgreSQL.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::server::{Private, fresh_name, shared, until};

/// A database of one test.
struct Db {
    server: String,
    name: String,
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The error's code, never its text.
async fn run(client: &Client, sql: &str) -> Result<(), SqlState> {
    client.batch_execute(sql).await.map_err(|error| error.code().cloned().unwrap_or_else(|| panic!("{error}")))
}

impl Db {
    async fn shared() -> Self {
        Self::on(&shared("SUTURE_TEST_POSTGRES")).await
    }

    async fn on(server: &str) -> Self {
        let db = Self { server: server.to_string(), name: fresh_name() };
        run(&connect(server).await, &format!("create database {}", db.name)).await.unwrap();
        db.ok("create table t (id int primary key, v int); insert into t values (10, 0), (20, 0), (30, 0), (40, 0);
             create table ledger (txid text primary key, state text)")
            .await;
        db
    }

    async fn session(&self) -> Client {
        let (server, _) = self.server.rsplit_once('/').expect("a URL with a database");
        connect(&format!("{server}/{}", self.name)).await
    }

    /// Not in `Drop`, which cannot wait. A test that failed leaves its database for whoever looks into it.
    async fn drop_database(self) {
        let drop = format!("drop database {} with (force)", self.name);
        run(&connect(&self.server).await, &drop).await.unwrap();
    }

    /// Gids are one list for the whole server.
    fn gid(&self, branch: &str) -> String {
        format!("'{branch}/{}'", self.name)
    }

    async fn run(&self, sql: &str) -> Result<(), SqlState> {
        run(&self.session().await, sql).await
    }

    async fn ok(&self, sql: &str) {
        assert_eq!(self.run(sql).await, Ok(()), "{sql}");
    }

    /// BEGIN, these statements, PREPARE, in a session that then ends.
    async fn prepare(&self, branch: &str, statements: &str) -> Result<(), SqlState> {
        self.run(&format!("begin; {statements}; prepare transaction {}", self.gid(branch))).await
    }

    async fn finish(&self, verb: &str, branch: &str) {
        self.ok(&format!("{verb} prepared {}", self.gid(branch))).await;
    }

    async fn number(&self, sql: &str) -> i64 {
        self.session().await.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn lists(&self, branch: &str) -> bool {
        let gid = self.gid(branch);
        self.number(&format!(
            "select count(*) from pg_prepared_xacts where gid = {gid} and database = current_database()"
        ))
        .await
            == 1
    }

    /// Somebody who does not wait long for what is not given back meanwhile.
    async fn in_a_hurry(&self, sql: &str) -> Result<(), SqlState> {
        self.run(&format!("set lock_timeout = '100ms'; {sql}")).await
    }
}

const IN_USE: SqlState = SqlState::DUPLICATE_OBJECT;
const UNKNOWN: SqlState = SqlState::UNDEFINED_OBJECT;
const LOCKED: SqlState = SqlState::LOCK_NOT_AVAILABLE;

/// Q1. No slots is 55000, all slots used is 53200, and fewer slots than prepared branches keep the server from starting.
/// So the slots are checked at start against the cap, and 53200 is a no that may be tried again.
#[tokio::test]
async fn q1_prepared_transactions_take_slots() {
    let server = Private::start("postgres");
    let db = Db::on(&server.url()).await;
    let with_slots = async |slots: u32| {
        db.ok(&format!("alter system set max_prepared_transactions = {slots}")).await;
        server.kill();
        server.starts_again()
    };
    assert!(with_slots(0).await);
    let none = SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE;
    assert_eq!(db.prepare("a", "insert into t values (1, 1)").await, Err(none));
    assert!(with_slots(1).await);
    assert_eq!(db.prepare("a", "insert into t values (1, 1)").await, Ok(()));
    assert_eq!(db.prepare("b", "insert into t values (2, 1)").await, Err(SqlState::OUT_OF_MEMORY));
    assert!(!with_slots(0).await, "it started");
}

/// Q2. PREPARE TRANSACTION in a failed block answers with the tag ROLLBACK and no error, outside of a block with a
/// warning. So a yes is given only when the gid stands in `pg_prepared_xacts`.
#[tokio::test]
async fn q2_prepare_in_a_failed_block_is_no_error() {
    let db = Db::shared().await;
    let session = db.session().await;
    let prepare = format!("prepare transaction {}", db.gid("a"));
    run(&session, "begin; insert into t values (1, 1)").await.unwrap();
    assert_eq!(run(&session, "select 1 / 0").await, Err(SqlState::DIVISION_BY_ZERO));
    assert_eq!(run(&session, &prepare).await, Ok(()));
    assert!(!db.lists("a").await);
    assert_eq!(run(&session, &prepare).await, Ok(()), "outside of a block");
    assert!(!db.lists("a").await);
    assert_eq!(db.number("select count(*) from t where id = 1").await, 0);
    db.drop_database().await;
}

/// Q3. A gid in use is 42710, an unknown one 42704, finishing one in a block 25001, one of 200 bytes 22023.
/// So 42710 compares the hash in the gid, and 42704 looks at the list and the ledger.
#[tokio::test]
async fn q3_each_wrong_gid_has_its_code() {
    let db = Db::shared().await;
    db.prepare("a", "insert into t values (1, 1)").await.unwrap();
    assert_eq!(db.prepare("a", "insert into t values (2, 1)").await, Err(IN_USE));
    let commit = format!("commit prepared {}", db.gid("a"));
    assert_eq!(db.run(&format!("begin; {commit}")).await, Err(SqlState::ACTIVE_SQL_TRANSACTION));
    assert_eq!(db.run(&commit).await, Ok(()));
    assert_eq!(db.run(&commit).await, Err(UNKNOWN));
    let long = format!("begin; prepare transaction '{}'", "x".repeat(200));
    assert_eq!(db.run(&long).await, Err(SqlState::INVALID_PARAMETER_VALUE));
    db.drop_database().await;
}

/// Q4. Only from its own database and by its own role or a superuser can a branch be finished; every role sees every gid.
/// So a participant has one login role, and nothing secret stands in a gid.
#[tokio::test]
async fn q4_a_branch_belongs_to_its_database_and_role() {
    let db = Db::shared().await;
    let role = format!("role_{}", db.name);
    db.prepare("a", "insert into t values (1, 1)").await.unwrap();
    let commit = format!("commit prepared {}", db.gid("a"));
    assert_eq!(run(&connect(&db.server).await, &commit).await, Err(SqlState::FEATURE_NOT_SUPPORTED));
    db.ok(&format!("create role {role}")).await;
    let other = db.session().await;
    run(&other, &format!("set session authorization {role}")).await.unwrap();
    assert_eq!(run(&other, &commit).await, Err(SqlState::INSUFFICIENT_PRIVILEGE));
    let seen = format!("select 1 from pg_prepared_xacts where gid = {}", db.gid("a"));
    assert_eq!(other.query(&seen, &[]).await.unwrap().len(), 1);
    db.finish("rollback", "a").await;
    db.ok(&format!("drop role {role}")).await;
    db.drop_database().await;
}

/// Q6. Temporary tables, NOTIFY and cursors WITH HOLD cannot be prepared; a deferred constraint fails at PREPARE.
/// So a template that does such a thing ends in a no, and after PREPARE no check is left over.
#[tokio::test]
async fn q6_what_cannot_be_prepared_fails_at_prepare() {
    let db = Db::shared().await;
    for statement in ["create temp table temporary (i int)", "notify n", "declare c cursor with hold for select 1"] {
        assert_eq!(db.prepare("a", statement).await, Err(SqlState::FEATURE_NOT_SUPPORTED), "{statement}");
    }
    db.ok("create table child (i int references t deferrable initially deferred)").await;
    let orphan = db.prepare("a", "insert into child values (999)").await;
    assert_eq!(orphan, Err(SqlState::FOREIGN_KEY_VIOLATION));
    assert!(!db.lists("a").await);
    db.drop_database().await;
}

/// Q7. SET in a branch outlives PREPARE on the connection, SET LOCAL does not. So branches use SET LOCAL only.
#[tokio::test]
async fn q7_set_outlives_prepare_and_set_local_does_not() {
    let db = Db::shared().await;
    let session = db.session().await;
    for (set, left) in [("set local", "0"), ("set", "7s")] {
        let branch = format!("begin; {set} lock_timeout = '7s'; prepare transaction {}", db.gid("a"));
        run(&session, &branch).await.unwrap();
        let timeout: String = session.query_one("show lock_timeout", &[]).await.unwrap().get(0);
        assert_eq!(timeout, left, "{set}");
        run(&session, &format!("rollback prepared {}", db.gid("a"))).await.unwrap();
    }
    db.drop_database().await;
}

/// Q8. A prepared branch's ledger row is invisible and a second insert waits for it; after COMMIT PREPARED it is visible,
/// but not to an older snapshot. So an invisible row proves nothing, and the look-up is READ COMMITTED.
#[tokio::test]
async fn q8_the_ledger_row_is_visible_after_commit_to_new_snapshots() {
    let db = Db::shared().await;
    let rows = "select count(*) from ledger";
    let (older, newer) = (db.session().await, db.session().await);
    let count = async |session: &Client| session.query_one(rows, &[]).await.unwrap().get::<_, i64>(0);
    db.prepare("a", "insert into ledger values ('a', 'committed')").await.unwrap();
    assert_eq!(db.in_a_hurry("insert into ledger values ('a', 'aborted')").await, Err(LOCKED));
    run(&older, "begin isolation level repeatable read").await.unwrap();
    run(&newer, "begin isolation level read committed").await.unwrap();
    assert_eq!([count(&older).await, count(&newer).await], [0, 0]);
    db.finish("commit", "a").await;
    assert_eq!([count(&older).await, count(&newer).await], [0, 1]);
    db.drop_database().await;
}

/// Q9. What a branch wrote or read FOR UPDATE or FOR SHARE stays locked after kill -9, and so does its table against DDL.
/// So a read lock protects a check from vote to decision.
#[tokio::test]
async fn q9_the_locks_of_a_prepared_branch_survive_kill() {
    let server = Private::start("postgres");
    let db = Db::on(&server.url()).await;
    let work = "select 1 from t where id = 10 for share; select 1 from t where id = 20 for update; update t set v = 1 where id = 30";
    db.prepare("a", work).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            server.kill();
            server.start_again();
        }
        for id in [10, 20, 30] {
            assert_eq!(db.in_a_hurry(&format!("update t set v = 5 where id = {id}")).await, Err(LOCKED), "{id}");
        }
        assert_eq!(db.in_a_hurry("alter table t add column z int").await, Err(LOCKED));
        assert_eq!(db.in_a_hurry("update t set v = 5 where id = 40").await, Ok(()));
    }
}

/// Q10. A database with a prepared branch cannot be dropped, with force neither: there is no time limit in PostgreSQL.
/// So the age of the oldest branch is watched.
#[tokio::test]
async fn q10_a_database_with_a_prepared_branch_cannot_be_dropped() {
    let db = Db::shared().await;
    db.prepare("a", "insert into t values (1, 1)").await.unwrap();
    let drop = format!("drop database {} with (force)", db.name);
    assert_eq!(run(&connect(&db.server).await, &drop).await, Err(SqlState::OBJECT_IN_USE));
    db.finish("rollback", "a").await;
    db.drop_database().await;
}

/// Q11. With `synchronous_commit` = off PREPARE, COMMIT PREPARED and ROLLBACK PREPARED are durable all the same, and a
/// plain COMMIT is lost by kill -9. So every session sets it on: abort rows, reserve rows, positions depend on it.
#[tokio::test]
async fn q11_without_synchronous_commit_a_plain_commit_is_lost() {
    let server = Private::start("postgres");
    let db = Db::on(&server.url()).await;
    // The log writer would save the commit within 200 ms, if it came before the kill.
    db.ok("alter system set wal_writer_delay = '10s'").await;
    db.ok("select pg_reload_conf()").await;
    db.ok(&format!("alter database {} set synchronous_commit = off", db.name)).await;
    let restart = || {
        server.kill();
        server.start_again();
    };
    db.prepare("a", "insert into t values (1, 1)").await.unwrap();
    restart();
    assert!(db.lists("a").await, "PREPARE");
    db.finish("commit", "a").await;
    restart();
    assert_eq!(db.number("select count(*) from t where id = 1").await, 1, "COMMIT PREPARED");
    db.prepare("b", "insert into t values (2, 1)").await.unwrap();
    db.finish("rollback", "b").await;
    restart();
    assert!(!db.lists("b").await, "ROLLBACK PREPARED");

    const TRIES: u32 = 5; // It was lost each time. The log may happen to be written: once is enough.
    for n in 0..TRIES {
        let id = 100 + n;
        db.ok(&format!("insert into t values ({id}, 1)")).await;
        restart();
        if db.number(&format!("select count(*) from t where id = {id}")).await == 0 {
            return;
        }
    }
    panic!("kept, {TRIES} of {TRIES}");
}

/// Q12. An error is undone to a savepoint; without one all that follows is refused, and COMMIT rolls back without an
/// error. So the state is checked after each error.
#[tokio::test]
async fn q12_after_an_error_commit_rolls_back_without_an_error() {
    let db = Db::shared().await;
    let session = db.session().await;
    run(&session, "begin; insert into t values (1, 1); savepoint a").await.unwrap();
    assert_eq!(run(&session, "insert into t values (1, 2)").await, Err(SqlState::UNIQUE_VIOLATION));
    assert_eq!(run(&session, "insert into t values (2, 1)").await, Err(SqlState::IN_FAILED_SQL_TRANSACTION));
    run(&session, "rollback to a; insert into t values (3, 1); commit").await.unwrap();
    assert_eq!(db.number("select count(*) from t where id in (1, 2, 3)").await, 2);

    run(&session, "begin; insert into t values (4, 1)").await.unwrap();
    assert_eq!(run(&session, "insert into t values (1, 2)").await, Err(SqlState::UNIQUE_VIOLATION));
    assert_eq!(run(&session, "commit").await, Ok(()));
    assert_eq!(db.number("select count(*) from t where id = 4").await, 0);
    db.drop_database().await;
}

/// Q16. A prepared branch holds its unique key, its position row and what it read FOR SHARE against others, ON CONFLICT
/// DO NOTHING too; committed, the key is a duplicate. So 55P03 on the key is a no that may be tried again, 23505 a
/// duplicate, positions are written outside of branches, and the purge mark is not read FOR SHARE.
#[tokio::test]
async fn q16_a_prepared_branch_holds_its_key_and_rows() {
    let db = Db::shared().await;
    let insert = "insert into ledger values ('key', 'x')";
    let work = format!("{insert}; update t set v = 1 where id = 10; select 1 from t where id = 20 for share");
    db.prepare("a", &work).await.unwrap();
    let or_nothing = format!("{insert} on conflict do nothing");
    for blocked in [insert, &or_nothing, "update t set v = 2 where id = 10", "update t set v = 2 where id = 20"] {
        assert_eq!(db.in_a_hurry(blocked).await, Err(LOCKED), "{blocked}");
    }
    db.finish("commit", "a").await;
    assert_eq!(db.run(insert).await, Err(SqlState::UNIQUE_VIOLATION));
    db.drop_database().await;
}

/// Q17. `idle_in_transaction_session_timeout` ends a branch that stalls before PREPARE. So a stalled participant gives
/// its locks back long before its branch may be purged.
#[tokio::test]
async fn q17_a_branch_that_stalls_is_ended() {
    let db = Db::shared().await;
    let stalled = db.session().await;
    let begin = "begin; set local idle_in_transaction_session_timeout = '100ms'; update t set v = 9 where id = 10";
    run(&stalled, begin).await.unwrap();
    until("the session is ended", async || stalled.is_closed()).await;
    assert!(!db.lists("a").await);
    assert_eq!(db.in_a_hurry("update t set v = v + 1 where id = 10").await, Ok(()));
    assert_eq!(db.number("select v::bigint from t where id = 10").await, 1, "only the one who came after");
    db.drop_database().await;
}
