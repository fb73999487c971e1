//! MySQL 9.7, where there is one: what is as in MariaDB, and the differences. It is the only server that may be missing.

use std::io::Write;
use std::sync::Once;

use crate::mariadb::{self, Db, LOCKED, Session, UNKNOWN};
use crate::server::Private;

const NOT_A_TRANSACTION_ERROR: u16 = 1401; // XAER_RMERR
const NOT_AS_A_PREPARED_STATEMENT: u16 = 1295;

/// The shared server; without one it says so once, past the test runner, which would swallow it.
fn server() -> Option<String> {
    static SAY: Once = Once::new();
    let server = std::env::var("SUTURE_TEST_MYSQL").ok();
    if server.is_none() {
        SAY.call_once(|| std::io::stderr().write_all(b"MySQL: not tested\n").unwrap());
    }
    server
}

async fn shared() -> Option<Db> {
    Some(Db::on(&server()?).await)
}

/// M1, M2 do not hold: with `xa_detach_on_prepare` others finish a branch while the session that prepared it lives.
/// MariaDB's rules hold here too, and `xa_detach_on_prepare` has to be 1.
#[tokio::test]
async fn mysql_m1_others_finish_a_branch_while_its_session_lives() {
    let Some(db) = shared().await else { return };
    assert_eq!(db.number("select @@xa_detach_on_prepare").await, 1);
    let mut holder = db.prepared("a", &["insert into t values (1, 1)"]).await;
    let commit = format!("xa commit {}", db.xid("a"));
    db.execute(&commit).await;
    assert_eq!(holder.run(&commit).await, Err(UNKNOWN));
    assert_eq!(holder.number("select count(*) from t where id = 1").await, 1, "and it can go on");
    db.drop_database().await;
}

/// M3 does not hold: a reset leaves the branch in the list, and it is committed.
#[tokio::test]
async fn mysql_m3_a_reset_leaves_a_branch_alone() {
    let Some(db) = shared().await else { return };
    let mut holder = db.prepared("a", &["insert into t values (1, 1)"]).await;
    holder.reset().await;
    assert!(db.lists("a").await);
    db.execute(&format!("xa commit {}", db.xid("a"))).await;
    assert_eq!(db.number("select count(*) from t where id = 1").await, 1);
    db.drop_database().await;
}

/// M4 does not hold: XA ROLLBACK is durable when it returns. M5 does: a prepared branch survives kill -9.
#[tokio::test]
async fn mysql_m4_and_m5_what_returned_survives_kill() {
    if server().is_none() {
        return;
    }
    let server = Private::start("mysql");
    let db = Db::on(&server.url()).await;
    for branch in ["a0", "a1", "a2"] {
        let prepared = format!("{branch}-prepared");
        db.prepared(&prepared, &[&format!("insert into ledger values ('{prepared}', 'x')")]).await.close().await;
        mariadb::finish_and_kill(&server, &db, branch, "rollback", None).await;
        assert!(!db.lists(branch).await);
        assert!(db.lists(&prepared).await);
    }
}

/// M6, as in MariaDB.
#[tokio::test]
async fn mysql_m6_after_an_error_half_the_work_can_be_committed() {
    let Some(db) = shared().await else { return };
    mariadb::half_the_work(&db).await;
    db.drop_database().await;
}

/// M7, as in MariaDB.
#[tokio::test]
async fn mysql_m7_after_a_deadlock_a_local_transaction_is_in_autocommit() {
    let Some(db) = shared().await else { return };
    let victim = mariadb::after_a_deadlock(&db, "begin").await;
    mariadb::what_follows_stays(&db, victim).await;
    db.drop_database().await;
}

/// M9. An account needs XA_RECOVER_ADMIN to list branches; the code refuses to start without it.
#[tokio::test]
async fn mysql_m9_the_list_needs_a_right() {
    if server().is_none() {
        return;
    }
    let server = Private::start("mysql");
    let db = Db::on(&server.url()).await;
    db.execute("create user somebody").await;
    let mut somebody = Session::open(&server.url().replace("root@", "somebody@"), None).await;
    assert_eq!(somebody.run("xa recover").await, Err(NOT_A_TRANSACTION_ERROR));
    db.execute("grant XA_RECOVER_ADMIN on *.* to somebody").await;
    let mut somebody = Session::open(&server.url().replace("root@", "somebody@"), None).await;
    somebody.ok("xa recover").await;
}

/// M10 does not hold: a branch that wrote nothing can be committed later.
#[tokio::test]
async fn mysql_m10_a_branch_that_wrote_nothing_can_be_committed_later() {
    let Some(db) = shared().await else { return };
    db.prepared("a", &["select count(*) from t"]).await.close().await;
    db.execute(&format!("xa commit {}", db.xid("a"))).await;
    db.drop_database().await;
}

/// M12, as in MariaDB; and XA statements cannot be prepared statements. So they are sent as text.
#[tokio::test]
async fn mysql_m12_a_branchs_name_is_a_literal_of_twice_64_bytes() {
    let Some(db) = shared().await else { return };
    mariadb::names_are_literals(&db).await;
    let prepare = format!("prepare s from \"xa start {}\"", db.xid("b"));
    assert_eq!(db.session().await.run(&prepare).await, Err(NOT_AS_A_PREPARED_STATEMENT));
    db.drop_database().await;
}

/// M14. A prepared branch keeps its share locks, until a restart. MariaDB's rule holds: what a vote depends on is written.
#[tokio::test]
async fn mysql_m14_share_locks_stay_after_prepare() {
    let Some(db) = shared().await else { return };
    let read = "select v from t where id = 10 for share";
    db.prepared("a", &[read, "update t set v = 9 where id = 40"]).await.close().await;
    let mut other = db.session().await;
    other.ok("set innodb_lock_wait_timeout = 1").await;
    assert_eq!(other.run("update t set v = 1 where id = 10").await, Err(LOCKED));
    db.finish("rollback", "a").await;
    db.drop_database().await;
}

/// M15, as in MariaDB.
#[tokio::test]
async fn mysql_m15_without_flush_at_commit_a_prepared_branch_is_lost() {
    if server().is_none() {
        return;
    }
    let server = Private::start("mysql");
    let db = Db::on(&server.url()).await;
    mariadb::lost_without_flush(&server, &db).await;
}
