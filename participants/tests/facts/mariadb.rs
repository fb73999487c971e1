//! MariaDB. What stands here as a function with a [`Db`] holds for MySQL too.

use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{ChangeUserOpts, Conn, Error, OptsBuilder};

use crate::server::{Private, fresh_name, shared, until};

/// A database of one test.
pub struct Db {
    server: String,
    name: String,
}

impl Db {
    async fn shared() -> Self {
        Self::on(&shared("SUTURE_TEST_MARIADB")).await
    }

    pub async fn on(server: &str) -> Self {
        let db = Self { server: server.to_string(), name: fresh_name() };
        let mut session = Session::open(server, None).await;
        session.ok(&format!("create database {}", db.name)).await;
        let mut session = db.session().await;
        session.ok("create table t (id int primary key, v int) engine = innodb").await;
        session.ok("create table ledger (txid varchar(64) primary key, state varchar(9)) engine = innodb").await;
        session.ok("insert into t values (10, 0), (20, 0), (30, 0), (40, 0)").await;
        db
    }

    pub async fn session(&self) -> Session {
        Session::open(&self.server, Some(&self.name)).await
    }

    /// Not in `Drop`, which cannot wait. A test that failed leaves its database for whoever looks into it.
    pub async fn drop_database(self) {
        self.session().await.ok(&format!("drop database {}", self.name)).await;
    }

    /// Branches are one list for the whole server: the second half of each name is the database.
    pub fn xid(&self, branch: &str) -> String {
        format!("'{branch}','{}'", self.name)
    }

    /// The session that prepared this branch, still open.
    pub async fn prepared(&self, branch: &str, statements: &[&str]) -> Session {
        let mut session = self.started(branch, statements).await;
        session.ok(&format!("xa end {}", self.xid(branch))).await;
        session.ok(&format!("xa prepare {}", self.xid(branch))).await;
        session
    }

    /// The session that works in this branch.
    pub async fn started(&self, branch: &str, statements: &[&str]) -> Session {
        let mut session = self.session().await;
        session.ok(&format!("xa start {}", self.xid(branch))).await;
        for statement in statements {
            session.ok(statement).await;
        }
        session
    }

    pub async fn lists(&self, branch: &str) -> bool {
        let rows: Vec<(i64, usize, usize, Vec<u8>)> = self.session().await.rows("xa recover").await.unwrap();
        rows.iter()
            .any(|(_, gtrid, _, data)| data[..*gtrid] == *branch.as_bytes() && data[*gtrid..] == *self.name.as_bytes())
    }

    /// By another session, as soon as the one that prepared is gone (M1).
    pub async fn finish(&self, verb: &str, branch: &str) {
        let mut session = self.session().await;
        let finish = format!("xa {verb} {}", self.xid(branch));
        until("the branch is free", async || match session.run(&finish).await {
            Err(UNKNOWN) => false,
            answer => {
                assert_eq!(answer, Ok(()));
                true
            }
        })
        .await;
    }

    pub async fn number(&self, sql: &str) -> i64 {
        self.session().await.number(sql).await
    }

    pub async fn execute(&self, sql: &str) {
        self.session().await.ok(sql).await;
    }

    pub async fn until_it_is_gone(&self, session: u32) {
        let mut other = self.session().await;
        let sql = format!("select count(*) from information_schema.processlist where id = {session}");
        until("the session is gone", async || other.number(&sql).await == 0).await;
    }

    /// Whether somebody else may write this row of `t`. Nobody waits long for what is not given back meanwhile.
    async fn is_free(&self, id: u32) -> bool {
        let mut session = self.session().await;
        session.ok("set innodb_lock_wait_timeout = 1").await;
        match session.run(&format!("update t set v = v + 1 where id = {id}")).await {
            Ok(()) => true,
            Err(LOCKED) => false,
            Err(other) => panic!("error {other}"),
        }
    }
}

pub struct Session(Conn);

/// What the server answers, by its number.
pub const DUPLICATE: u16 = 1062;
pub const SYNTAX: u16 = 1064;
pub const LOCKED: u16 = 1205;
pub const DEADLOCK: u16 = 1213;
pub const NO_SAVEPOINT: u16 = 1305;
pub const UNKNOWN: u16 = 1397;
pub const WRONG_STATE: u16 = 1399;
pub const OUTSIDE: u16 = 1400;
pub const ROLLED_BACK: u16 = 1402;
pub const IN_USE: u16 = 1440;

impl Session {
    pub async fn open(server: &str, database: Option<&str>) -> Self {
        let url = mysql_async::Opts::from_url(server).unwrap();
        let options = OptsBuilder::from_opts(url).db_name(database).prefer_socket(false);
        Self(Conn::new(options).await.unwrap())
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// The error's number, never its text.
    pub async fn run(&mut self, sql: &str) -> Result<(), u16> {
        self.0.query_drop(sql).await.map_err(|error| number_of(&error))
    }

    pub async fn ok(&mut self, sql: &str) {
        assert_eq!(self.run(sql).await, Ok(()), "{sql}");
    }

    pub async fn rows<T: FromRow + Send + 'static>(&mut self, sql: &str) -> Result<Vec<T>, u16> {
        self.0.query(sql).await.map_err(|error| number_of(&error))
    }

    pub async fn number(&mut self, sql: &str) -> i64 {
        self.rows(sql).await.unwrap()[0]
    }

    /// COM_RESET_CONNECTION, what pools send.
    pub async fn reset(&mut self) {
        assert!(self.0.reset().await.unwrap());
    }

    pub async fn close(self) {
        self.0.disconnect().await.unwrap();
    }
}

fn number_of(error: &Error) -> u16 {
    match error {
        Error::Server(error) => error.code,
        other => panic!("{other}"),
    }
}

/// M1. XAER_NOTA is also the answer for a branch that is prepared and listed, while the session that prepared it lives.
/// So an unknown branch is no commit: the code looks at the list, then reads the ledger row with a lock, and repeats.
#[tokio::test]
async fn m1_an_unknown_branch_may_be_prepared_and_listed() {
    let db = Db::shared().await;
    let holder = db.prepared("a", &["insert into ledger values ('a', 'committed')"]).await;
    let mut other = db.session().await;
    let commit = format!("xa commit {}", db.xid("a"));
    assert!(db.lists("a").await);
    assert_eq!(other.run(&commit).await, Err(UNKNOWN));
    // A plain read would take it for LOST; the locking one waits.
    assert_eq!(other.number("select count(*) from ledger").await, 0);
    other.ok("set innodb_lock_wait_timeout = 1").await;
    assert_eq!(other.run("select count(*) from ledger where txid = 'a' for update").await, Err(LOCKED));
    holder.close().await;
    db.finish("commit", "a").await;
    assert_eq!(db.number("select count(*) from ledger").await, 1);
    assert_eq!(other.run(&commit).await, Err(UNKNOWN), "finished is unknown too");
    db.drop_database().await;
}

/// M2. A session that has prepared can do nothing else, and others finish its branch as soon as it is gone.
/// So a connection is closed after XA PREPARE, and the decision is tried until it is free.
#[tokio::test]
async fn m2_after_prepare_a_session_can_only_finish_its_branch() {
    let db = Db::shared().await;
    let mut holder = db.prepared("a", &["insert into t values (1, 1)"]).await;
    for statement in ["select count(*) from t", "begin", "xa start 'b'"] {
        assert_eq!(holder.run(statement).await, Err(WRONG_STATE), "{statement}");
    }
    db.execute(&format!("kill {}", holder.id())).await;
    db.finish("commit", "a").await;
    assert_eq!(db.number("select count(*) from t where id = 1").await, 1);
    db.drop_database().await;
}

/// M3. After COM_RESET_CONNECTION or COM_CHANGE_USER, XA COMMIT answers OK and commits nothing: the branch leaves the list,
/// its rows stay locked, a restart brings it back. So no connection goes back to a pool after XA PREPARE, and a commit is
/// acknowledged only when its ledger row is seen.
#[tokio::test]
async fn m3_after_a_reset_xa_commit_answers_ok_and_commits_nothing() {
    let server = Private::start("mariadb");
    let db = Db::on(&server.url()).await;
    let mut reset = db.prepared("a", &["update t set v = 1 where id = 10"]).await;
    reset.reset().await;
    let mut changed = db.prepared("b", &["update t set v = 1 where id = 20"]).await;
    changed.0.change_user(ChangeUserOpts::default()).await.unwrap();
    for (branch, row) in [("a", 10), ("b", 20)] {
        assert!(db.lists(branch).await, "still");
        db.execute(&format!("xa commit {}", db.xid(branch))).await;
        assert!(!db.lists(branch).await);
        assert!(!db.is_free(row).await);
    }
    assert_eq!(db.number("select sum(v) from t").await, 0);
    server.kill();
    server.start_again();
    for branch in ["a", "b"] {
        assert!(db.lists(branch).await, "a restart brings it back");
        db.execute(&format!("xa commit {}", db.xid(branch))).await;
    }
    assert_eq!(db.number("select sum(v) from t").await, 2);
}

/// M4. XA ROLLBACK is not durable when it returns: after kill -9 the branch is prepared again.
/// So the `aborted` row is committed after the rollback and before the acknowledgement, and the sweep looks again.
#[tokio::test]
async fn m4_xa_rollback_is_not_durable_when_it_returns() {
    // Something else may write the log in between: it came back in two of three tries on a busy machine, in 11 of 12 on
    // an idle one. Once is enough.
    const TRIES: u32 = 20;
    let server = Private::start("mariadb");
    let db = Db::on(&server.url()).await;
    for n in 0..TRIES {
        let branch = format!("a{n}");
        until_the_log_is_written(&db).await;
        finish_and_kill(&server, &db, &branch, "rollback", None).await;
        if db.lists(&branch).await {
            return;
        }
    }
    panic!("rolled back for good, {TRIES} of {TRIES}");
}

/// M4. A row committed after XA ROLLBACK makes that durable. So this is what the code does before it acknowledges.
#[tokio::test]
async fn m4_a_committed_row_makes_the_rollback_before_it_durable() {
    let server = Private::start("mariadb");
    let db = Db::on(&server.url()).await;
    for branch in ["a0", "a1", "a2"] {
        let row = format!("insert into ledger values ('{branch}', 'aborted')");
        until_the_log_is_written(&db).await;
        finish_and_kill(&server, &db, branch, "rollback", Some(&row)).await;
        assert!(!db.lists(branch).await);
    }
}

/// M4. XA COMMIT is durable when it returns. So a ledger row that was seen stays.
#[tokio::test]
async fn m4_xa_commit_is_durable_when_it_returns() {
    let server = Private::start("mariadb");
    let db = Db::on(&server.url()).await;
    for branch in ["a0", "a1", "a2"] {
        until_the_log_is_written(&db).await;
        finish_and_kill(&server, &db, branch, "commit", None).await;
        assert!(!db.lists(branch).await);
        assert_eq!(db.number(&format!("select count(*) from ledger where txid = '{branch}'")).await, 1);
    }
}

/// MariaDB writes its log once a second whatever is asked of it, and the first time after a start whatever it is told.
/// After this it can be told to wait.
async fn until_the_log_is_written(db: &Db) {
    let mut session = db.session().await;
    for statement in ["begin", "update t set v = v + 1 where id = 40", "rollback"] {
        session.ok(statement).await; // nothing that has to be durable
    }
    let unwritten = "select max(variable_value + 0) - min(variable_value + 0) from information_schema.global_status
        where variable_name in ('innodb_lsn_current', 'innodb_lsn_flushed')";
    until("the log is written", async || session.rows::<f64>(unwritten).await.unwrap()[0] == 0.0).await;
}

pub async fn finish_and_kill(server: &Private, db: &Db, branch: &str, verb: &str, then: Option<&str>) {
    let row = format!("insert into ledger values ('{branch}', 'committed')");
    let mut session = db.prepared(branch, &[&row]).await;
    // The writing that is due each second must not come before the kill: this is about what the return promises.
    db.execute("set global innodb_flush_log_at_timeout = 2700").await;
    session.ok(&format!("xa {verb} {}", db.xid(branch))).await;
    if let Some(statement) = then {
        session.ok(statement).await;
    }
    server.kill_at_once().await;
    server.start_again();
}

/// M5. A branch ends with its session before XA PREPARE. So a connection that died in a branch needs no clean-up.
#[tokio::test]
async fn m5_a_lost_session_rolls_back_what_is_not_prepared() {
    let db = Db::shared().await;
    let session = db.started("a", &["insert into t values (1, 1)"]).await;
    let id = session.id();
    session.close().await;
    db.until_it_is_gone(id).await;
    assert!(!db.lists("a").await);
    assert!(db.is_free(1).await);
    assert_eq!(db.number("select count(*) from t where id = 1").await, 0);
    db.drop_database().await;
}

/// M5. A prepared branch survives its session, kill -9 and a clean restart. So a yes may be given after XA PREPARE.
#[tokio::test]
async fn m5_a_prepared_branch_survives_kill_and_restart() {
    let server = Private::start("mariadb");
    let db = Db::on(&server.url()).await;
    db.prepared("a", &["insert into t values (1, 1)"]).await.close().await;
    server.kill();
    server.start_again();
    assert!(db.lists("a").await);
    db.execute("shutdown").await;
    server.until_it_ended().await;
    server.start_again();
    assert!(db.lists("a").await);
    db.finish("commit", "a").await;
    assert_eq!(db.number("select count(*) from t where id = 1").await, 1);
}

/// M6. A lock timeout or a duplicate key undoes its statement only, and the branch prepares: half the work is committed.
/// So any error in a branch rolls back all of it.
#[tokio::test]
async fn m6_after_an_error_half_the_work_can_be_committed() {
    let db = Db::shared().await;
    half_the_work(&db).await;
    db.drop_database().await;
}

pub async fn half_the_work(db: &Db) {
    let mut other = db.session().await;
    other.ok("begin").await;
    other.ok("update t set v = 1 where id = 30").await;
    let mut session = db.started("a", &["set innodb_lock_wait_timeout = 1", "insert into t values (1, 7)"]).await;
    assert_eq!(session.run("update t set v = 2 where id = 30").await, Err(LOCKED));
    assert_eq!(session.run("insert into t values (1, 8)").await, Err(DUPLICATE));
    for verb in ["end", "prepare", "commit"] {
        session.ok(&format!("xa {verb} {}", db.xid("a"))).await;
    }
    other.ok("rollback").await;
    assert_eq!(db.number("select v from t where id = 1").await, 7);
    assert_eq!(db.number("select v from t where id = 30").await, 0);
}

/// M7. A deadlock ends all of a local transaction with its savepoints; what follows is in autocommit and stays.
/// So after 1213 the batch is abandoned.
#[tokio::test]
async fn m7_after_a_deadlock_a_local_transaction_is_in_autocommit() {
    let db = Db::shared().await;
    let mut victim = after_a_deadlock(&db, "begin").await;
    assert_eq!(victim.number("select @@in_transaction").await, 0, "what the code tests");
    what_follows_stays(&db, victim).await;
    db.drop_database().await;
}

/// A session whose transaction was the victim of a deadlock: it had inserted row 1, with a savepoint `s` before it.
pub async fn after_a_deadlock(db: &Db, begin: &str) -> Session {
    let (mut victim, mut other) = (db.session().await, db.session().await);
    victim.ok(begin).await;
    if begin == "begin" {
        victim.ok("savepoint s").await;
    }
    victim.ok("insert into t values (1, 1)").await;
    victim.ok("update t set v = v + 1 where id = 10").await;
    // The one that has written less is the victim, whoever closes the circle.
    other.ok("begin").await;
    let rows: Vec<String> = (1000..1200).map(|id| format!("({id}, 1)")).collect();
    other.ok(&format!("insert into t values {}", rows.join(", "))).await;
    other.ok("update t set v = v + 1 where id = 20").await;
    let (answer, ()) = tokio::join!(
        victim.run("update t set v = v + 1 where id = 20"),
        other.ok("update t set v = v + 1 where id = 10"),
    );
    assert_eq!(answer, Err(DEADLOCK));
    other.ok("rollback").await;
    victim
}

pub async fn what_follows_stays(db: &Db, mut victim: Session) {
    assert_eq!(victim.run("rollback to s").await, Err(NO_SAVEPOINT));
    victim.ok("insert into t values (3, 1)").await;
    victim.ok("rollback").await;
    assert_eq!(db.number("select count(*) from t where id = 1").await, 0);
    assert_eq!(db.number("select count(*) from t where id = 3").await, 1);
}

/// M8. After a deadlock in a branch everything but its rollback is refused. So there is nothing that could stay.
#[tokio::test]
async fn m8_after_a_deadlock_a_branch_can_only_be_rolled_back() {
    let db = Db::shared().await;
    let mut victim = after_a_deadlock(&db, &format!("xa start {}", db.xid("a"))).await;
    assert_eq!(victim.run("insert into t values (3, 1)").await, Err(WRONG_STATE));
    for verb in ["end", "prepare"] {
        assert_eq!(victim.run(&format!("xa {verb} {}", db.xid("a"))).await, Err(WRONG_STATE), "{verb}");
    }
    victim.ok(&format!("xa rollback {}", db.xid("a"))).await;
    assert_eq!(db.number("select count(*) from t where id in (1, 3)").await, 0);
    db.drop_database().await;
}

/// M9. Any account may list and finish anybody's branch. So each participant needs a server of its own.
#[tokio::test]
async fn m9_any_account_may_finish_anybodys_branch() {
    let server = Private::start("mariadb");
    let db = Db::on(&server.url()).await;
    db.execute("create user somebody").await;
    db.prepared("a", &["insert into t values (1, 1)"]).await.close().await;
    let mut somebody = Session::open(&server.url().replace("root@", "somebody@"), None).await;
    let commit = format!("xa commit {}", db.xid("a"));
    until("the branch is free", async || somebody.run(&commit).await == Ok(())).await;
    assert_eq!(db.number("select count(*) from t where id = 1").await, 1);
}

/// M10. XA COMMIT of a branch that wrote nothing gives 1402 once its session is gone. The ledger row makes every branch
/// a writer.
#[tokio::test]
async fn m10_a_branch_that_wrote_nothing_cannot_be_committed_later() {
    let db = Db::shared().await;
    let holder = db.prepared("a", &["select count(*) from t"]).await;
    let id = holder.id();
    holder.close().await;
    db.until_it_is_gone(id).await;
    assert_eq!(db.session().await.run(&format!("xa commit {}", db.xid("a"))).await, Err(ROLLED_BACK));
    db.drop_database().await;
}

/// M11. A table without transactions keeps what a branch wrote that was rolled back. So every table has to be InnoDB.
#[tokio::test]
async fn m11_a_myisam_row_survives_the_rollback() {
    let db = Db::shared().await;
    db.execute("create table m (id int) engine = myisam").await;
    let mut session = db.prepared("a", &["insert into m values (1)"]).await;
    session.ok(&format!("xa rollback {}", db.xid("a"))).await;
    assert_eq!(db.number("select count(*) from m").await, 1);
    db.drop_database().await;
}

/// M11. Tables cannot be changed in a branch, and a branch cannot start in a transaction.
#[tokio::test]
async fn m11_a_branch_refuses_ddl_and_a_transaction_refuses_a_branch() {
    let db = Db::shared().await;
    let mut session = db.started("a", &[]).await;
    assert_eq!(session.run("create table z (i int)").await, Err(WRONG_STATE));
    let mut session = db.session().await;
    session.ok("begin").await;
    assert_eq!(session.run(&format!("xa start {}", db.xid("b"))).await, Err(OUTSIDE));
    db.drop_database().await;
}

/// M12. Both halves of a name hold 64 bytes; whoever finishes must repeat both; one in use is refused; it is never a
/// parameter. So names are checked for length and letters, and written as literals.
#[tokio::test]
async fn m12_a_branchs_name_is_a_literal_of_twice_64_bytes() {
    let db = Db::shared().await;
    names_are_literals(&db).await;
    db.drop_database().await;
}

pub async fn names_are_literals(db: &Db) {
    let (full, over) = ("y".repeat(64), "y".repeat(65));
    let mut session = db.session().await;
    session.ok(&format!("xa start '{full}','{full}'")).await;
    session.ok(&format!("xa end '{full}','{full}'")).await;
    session.ok(&format!("xa rollback '{full}','{full}'")).await;
    assert_eq!(session.run(&format!("xa start '{over}','b'")).await, Err(SYNTAX));
    assert_eq!(session.run(&format!("xa start 'b','{over}'")).await, Err(SYNTAX));
    assert_eq!(session.run("prepare s from 'xa commit ?'").await, Err(SYNTAX));

    let holder = db.prepared("a", &["insert into t values (1, 1)"]).await;
    assert_eq!(session.run(&format!("xa start {}", db.xid("a"))).await, Err(IN_USE));
    holder.close().await;
    assert_eq!(session.run("xa rollback 'a'").await, Err(UNKNOWN));
    db.finish("rollback", "a").await;
}

/// M13. XA RECOVER gives both halves joined, with their lengths, and no time and no database. So the code cuts by the
/// lengths, and takes the age from the log.
#[tokio::test]
async fn m13_the_list_joins_both_halves_of_a_name() {
    let db = Db::shared().await;
    let holder = db.prepared("abc", &["insert into t values (1, 1)"]).await;
    let rows: Vec<mysql_async::Row> = db.session().await.rows("xa recover").await.unwrap();
    let data = format!("abc{}", db.name);
    let ours = rows.iter().find(|row| row.get::<String, _>("data").is_some_and(|found| found == data)).unwrap();
    let names: Vec<_> = ours.columns_ref().iter().map(|column| column.name_str().to_string()).collect();
    assert_eq!(names, ["formatID", "gtrid_length", "bqual_length", "data"]);
    let lengths = ["formatID", "gtrid_length", "bqual_length"].map(|name| ours.get::<usize, _>(name).unwrap());
    assert_eq!(lengths, [1, 3, db.name.len()]);
    holder.close().await;
    db.finish("rollback", "abc").await;
    db.drop_database().await;
}

/// M14. A prepared branch keeps no share lock, keeps FOR UPDATE until a restart, and keeps what it wrote for good.
/// So what a vote depends on has to be written.
#[tokio::test]
async fn m14_only_written_rows_stay_locked() {
    let server = Private::start("mariadb");
    let db = Db::on(&server.url()).await;
    let work = [
        "select v from t where id = 10 lock in share mode",
        "select v from t where id = 20 for update",
        "update t set v = 9 where id = 40",
    ];
    db.prepared("a", &work).await.close().await;
    assert_eq!([db.is_free(10).await, db.is_free(20).await, db.is_free(40).await], [true, false, false]);
    server.kill();
    server.start_again();
    assert_eq!([db.is_free(10).await, db.is_free(20).await, db.is_free(40).await], [true, true, false]);
}

/// M15. With `innodb_flush_log_at_trx_commit` = 0 a prepared branch is lost by kill -9. So the code refuses all but 1.
#[tokio::test]
async fn m15_without_flush_at_commit_a_prepared_branch_is_lost() {
    let server = Private::start("mariadb");
    let db = Db::on(&server.url()).await;
    lost_without_flush(&server, &db).await;
}

pub async fn lost_without_flush(server: &Private, db: &Db) {
    const TRIES: u32 = 20; // Something else may write the log in between. Once is enough.
    for n in 0..TRIES {
        // The writing that is due each second must not come before the kill.
        db.execute("set global innodb_flush_log_at_timeout = 2700").await;
        db.execute("set global innodb_flush_log_at_trx_commit = 0").await;
        let branch = format!("a{n}");
        let row = format!("insert into ledger values ('{branch}', 'committed')");
        let _holder = db.prepared(&branch, &[&row]).await;
        server.kill_at_once().await;
        server.start_again();
        if !db.lists(&branch).await {
            return;
        }
    }
    panic!("kept, {TRIES} of {TRIES}");
}

/// M17. A prepared branch holds its unique business key against others; committed, the key is a duplicate.
/// So 1205 on the key is a no that may be tried again, and 1062 is a duplicate.
#[tokio::test]
async fn m17_a_prepared_branch_holds_its_unique_key() {
    let db = Db::shared().await;
    let insert = "insert into ledger values ('key', 'x')";
    db.prepared("a", &[insert]).await.close().await;
    let mut other = db.session().await;
    other.ok("set innodb_lock_wait_timeout = 1").await;
    for statement in [insert, "insert ignore into ledger values ('key', 'x')"] {
        assert_eq!(other.run(statement).await, Err(LOCKED), "{statement}");
    }
    db.finish("commit", "a").await;
    assert_eq!(other.run(insert).await, Err(DUPLICATE));
    db.drop_database().await;
}

/// M17. `idle_transaction_timeout` ends a branch that stalls before XA PREPARE. So a stalled participant gives its locks
/// back long before its branch may be purged.
#[tokio::test]
async fn m17_a_branch_that_stalls_is_ended() {
    let db = Db::shared().await;
    let stalled = db.started("a", &["set idle_transaction_timeout = 1", "update t set v = 9 where id = 10"]).await;
    db.until_it_is_gone(stalled.id()).await;
    assert!(!db.lists("a").await);
    assert!(db.is_free(10).await);
    assert_eq!(db.number("select v from t where id = 10").await, 1, "only the one who came after");
    db.drop_database().await;
}
