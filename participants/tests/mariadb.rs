//! MariaDB on a real server: the shared suite in both modes, and what is MariaDB's own. The suite runs on MySQL too.
//!
//! Each test has a database of its own, which it creates and drops. The server is named by `SUTURE_TEST_MARIADB`;
//! `compose/test` starts one and sets it.

mod common;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::server::{Private, shared};
use common::*;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use suture_contract::ids::Deployment;
use suture_contract::messages::{Prepare, Verdict};
use suture_participants::config::{Database, ParticipantConfig, ServerSettings};
use suture_participants::mariadb::MariadbResource;
use suture_participants::resource::{Effect, Fault, Leftover, OpenError, Opening, Redone, Resource};
use suture_participants_core::branch::{State, Wrong};
use suture_participants_core::operations::Mode;

const XA: &str = r#"
name = "bank"
mode = "xa"
[database]
kind = "mariadb"
url = "URL"
connections = 8
cap = 20
lock_timeout_ms = 1000
key_timeout_ms = 1000
lost_after_ms = 300

[operation.put.parameters]
id = { path = "/id", type = "text" }
account = { path = "/account", type = "text" }
amount = { path = "/amount", type = "integer" }
[[operation.put.prepare]]
sql = "update account set balance = balance - :amount where name = :account -- a comment ends with its line"
rows = 1
code = "NO_ACCOUNT"
check = "LIMIT"
[[operation.put.prepare]]
sql = "insert into item (id, account, amount, txid) values (:id, :account, :amount, :txid)"
rows = 1
unique = "DUPLICATE"

[seed.account.parameters]
name = { path = "/name", type = "text" }
bucket = { path = "/bucket", type = "integer" }
[[seed.account.steps]]
sql = "insert ignore into account (name, balance) select :name, 0 from dual where :bucket <> 0"
rows = "any"
"#;

/// The same business in mode reserve.
const RESERVE: &str = r#"
name = "bank"
mode = "reserve"
[database]
kind = "mariadb"
url = "URL"
lock_timeout_ms = 1000

[operation.put.parameters]
id = { path = "/id", type = "text" }
account = { path = "/account", type = "text" }
amount = { path = "/amount", type = "integer" }
[[operation.put.reserve]]
sql = "update account set balance = balance - :amount, held = held + :amount where name = :account -- a comment ends with its line"
rows = 1
code = "NO_ACCOUNT"
check = "LIMIT"
[[operation.put.reserve]]
sql = "insert into item (id, account, amount, done, txid) values (:id, :account, :amount, false, :txid)"
rows = 1
unique = "DUPLICATE"
[[operation.put.confirm]]
sql = "update account join item on item.txid = :txid and account.name = item.account set held = held - amount"
rows = 1
[[operation.put.confirm]]
sql = "update item set done = true where txid = :txid -- a comment ends with its line"
rows = 1
[[operation.put.cancel]]
sql = "update account join item on item.txid = :txid and account.name = item.account set held = held - amount, balance = balance + amount"
rows = 1
[[operation.put.cancel]]
sql = "delete from item where txid = :txid -- a comment ends with its line"
rows = 1

[seed.account.parameters]
name = { path = "/name", type = "text" }
bucket = { path = "/bucket", type = "integer" }
[[seed.account.steps]]
sql = "insert ignore into account (name, balance) select :name, 0 from dual where :bucket <> 0"
rows = "any"
"#;

const SCHEMA: &str = "
create table account (name varchar(40) primary key, balance bigint not null check (balance >= 0), held bigint not null default 0);
create table item (
    id varchar(40) primary key, account varchar(40) not null, amount bigint not null, done boolean not null default true,
    txid varchar(64) not null, constraint positive check (amount > 0), key (txid)
);
insert into account (name, balance) values ('a', 1000), ('y', 50), ('z', 50);
";

/// A fresh database, and how its participant works.
struct Db {
    server: String,
    name: String,
    url: String,
    config: &'static str,
}

static DATABASES: AtomicU32 = AtomicU32::new(0);

fn server() -> String {
    shared("SUTURE_TEST_MARIADB")
}

async fn connect(url: &str) -> Conn {
    Conn::new(Opts::from_url(url).unwrap()).await.unwrap()
}

async fn execute(connection: &mut Conn, sql: &str) {
    connection.query_iter(sql).await.unwrap().drop_result().await.unwrap();
}

impl Db {
    async fn new(config: &'static str) -> Self {
        Self::on(server(), config).await
    }

    fn named(server: String, name: String, config: &'static str) -> Self {
        Self { url: format!("{}/{name}", server.trim_end_matches('/')), name, config, server }
    }

    async fn on(server: String, config: &'static str) -> Self {
        let name = format!("p{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed));
        execute(&mut connect(&server).await, &format!("create database {name}")).await;
        let db = Self::named(server, name, config);
        db.execute(SCHEMA).await;
        db
    }

    /// Xids are one list for the whole server, whatever the database.
    fn deployment(&self) -> Deployment {
        self.name.replace('_', "-").parse().unwrap()
    }

    /// Not in `Drop`, which cannot wait. A test that failed leaves its database for whoever looks into it.
    async fn drop_database(self) {
        assert!(self.listed().await.is_empty(), "nothing is left in the list");
        execute(&mut connect(&self.server).await, &format!("drop database {}", self.name)).await;
    }

    fn config(&self) -> (ServerSettings, Opening) {
        self.config_of(self.config)
    }

    fn config_of(&self, text: &str) -> (ServerSettings, Opening) {
        let text = text.replace("URL", &self.url);
        let config = ParticipantConfig::parse(&text, Path::new("bank.toml")).unwrap();
        let opening = config.opening(&self.deployment(), Some("fingerprint".to_string()), false).unwrap();
        let Database::Mariadb(settings) = config.database else { panic!("another kind") };
        (settings, opening)
    }

    async fn open_with(&self, change: impl FnOnce(&mut ServerSettings)) -> MariadbResource {
        let (mut settings, opening) = self.config();
        change(&mut settings);
        MariadbResource::open(settings, opening).await.unwrap()
    }

    async fn refused(&self, change: impl FnOnce(&mut ServerSettings, &mut Opening)) -> OpenError {
        let (mut settings, mut opening) = self.config();
        change(&mut settings, &mut opening);
        MariadbResource::open(settings, opening).await.err().expect("refused")
    }

    /// Ends all sessions of this database.
    async fn kill_connections(&self) {
        let mut server = connect(&self.server).await;
        let sql = format!("select id from information_schema.processlist where db = '{}'", self.name);
        let ids: Vec<u64> = server.query(sql).await.unwrap();
        assert!(!ids.is_empty());
        for id in ids {
            // It may have gone by itself.
            let _ = server.query_drop(format!("kill connection {id}")).await;
        }
    }

    fn xid(&self, branch: &Prepare) -> String {
        format!("'{}','{}/bank/{}',1400206453", branch.txid, self.deployment(), branch.hash.short())
    }

    async fn finish_by_hand(&self, how: &str, branch: &Prepare) {
        self.until_finished_by_hand(&format!("xa {how} {}", self.xid(branch))).await;
    }

    /// Its session may not be gone yet.
    async fn until_finished_by_hand(&self, sql: &str) {
        let mut operator = connect(&self.url).await;
        while operator.query_drop(sql).await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    async fn execute(&self, sql: &str) {
        execute(&mut connect(&self.url).await, sql).await;
    }

    /// Waits until a statement on this database waits for a lock.
    async fn until_somebody_waits(&self) {
        let waits = "select count(*) from information_schema.innodb_trx t join information_schema.processlist p
                     on p.id = t.trx_mysql_thread_id where t.trx_state = 'LOCK WAIT' and p.db = database()";
        while self.number(waits).await == 0 {
            // The table is filled anew only when nobody has read it for 100 ms.
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    /// The txids of this deployment's branches in the server's list.
    async fn listed(&self) -> Vec<String> {
        let rows: Vec<(u64, usize, usize, String)> = connect(&self.url).await.query("xa recover").await.unwrap();
        let ours = format!("{}/", self.deployment());
        let split = rows.iter().map(|(_, global, _, data)| data.split_at(*global));
        split.filter(|(_, branch)| branch.starts_with(&ours)).map(|(txid, _)| txid.to_string()).collect()
    }
}

impl Bench for Db {
    type R = MariadbResource;

    async fn open(&self) -> MariadbResource {
        let (settings, opening) = self.config();
        MariadbResource::open(settings, opening).await.unwrap()
    }

    async fn number(&self, sql: &str) -> i64 {
        let sql = sql.replace("as bigint", "as signed");
        connect(&self.url).await.query_first(sql).await.unwrap().unwrap()
    }

    async fn text(&self, sql: &str) -> String {
        connect(&self.url).await.query_first(sql).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn mariadb_conforms_in_mode_xa() {
    let db = Db::new(XA).await;
    conforms(&db).await;
    db.drop_database().await;
}

#[tokio::test]
async fn mariadb_conforms_in_mode_reserve() {
    let db = Db::new(RESERVE).await;
    conforms(&db).await;
    a_long_batch_loses_only_those_at_fault(&db).await;
    what_cannot_be_confirmed_holds_up_no_other(&db, async |sql| db.execute(sql).await).await;
    what_is_in_doubt_is_finished_as_it_was_begun(&db, async |changes| {
        let (settings, opening) =
            db.config_of(&changes.iter().fold(RESERVE.to_string(), |text, (a, b)| text.replace(a, b)));
        MariadbResource::open(settings, opening).await
    })
    .await;
    db.drop_database().await;
}

/// Its server cannot be had everywhere: the only one that may be missing.
fn mysql() -> Option<String> {
    let server = std::env::var("SUTURE_TEST_MYSQL").ok();
    if server.is_none() {
        // Past the test's own output, which is shown only when it fails.
        std::io::stderr().write_all(b"MySQL: not tested\n").unwrap();
    }
    server
}

/// The adapter is MariaDB's.
#[tokio::test]
async fn mysql_conforms_in_both_modes() {
    let Some(server) = mysql() else { return };
    for config in [XA, RESERVE] {
        let db = Db::on(server.clone(), config).await;
        conforms(&db).await;
        db.drop_database().await;
    }
}

/// A shard goes to another process while this one lives on: its connections must not keep the branches to themselves.
#[tokio::test]
async fn a_process_that_lives_on_lets_its_branches_go() {
    let db = Db::new(XA).await;
    let (first, second) = (db.open().await, db.open().await);
    let (one, two) = (put(1, "key-1", "i1", "a", 10), put(2, "key-2", "i2", "y", 10));
    assert_eq!(first.prepare(vec![one.clone(), two.clone()]).await.unwrap(), [yes(), yes()]);
    assert_eq!(until_answered(|| second.commit(vec![decision(&one, Verdict::Commit)])).await, [Ok(Effect::Finished)]);
    assert_eq!(until_answered(|| second.abort(vec![decision(&two, Verdict::Abort)])).await, [Ok(Effect::Finished)]);
    assert_eq!(commit(&first, &one).await, Ok(Effect::Repeated));
    assert_eq!(db.number(MONEY).await, 1100);
    db.drop_database().await;
}

/// Two processes prepare the same branch at once: the one that comes second must not take the other's branch away.
#[tokio::test]
async fn two_processes_prepare_one_branch() {
    for config in [XA, RESERVE] {
        let db = Db::new(config).await;
        let (one, two) = (Arc::new(db.open().await), Arc::new(db.open().await));
        for n in 0..10 {
            let branch = put(n, &format!("key-{n}"), &format!("i{n}"), "a", 1);
            let at_once = [&one, &two].map(|bank| {
                let (bank, branch) = (Arc::clone(bank), Arc::clone(&branch));
                tokio::spawn(async move { bank.prepare(vec![branch]).await })
            });
            for prepared in at_once {
                // Who has met the other one may be told to ask again.
                match prepared.await.unwrap() {
                    Ok(prepared) => assert_eq!(prepared, [yes()]),
                    Err(_) => assert_eq!(prepare_one(&*one, &branch).await, yes()),
                }
            }
            let committed = tokio::join!(commit(&*one, &branch), commit(&*two, &branch));
            assert!(committed.0.is_ok() && committed.1.is_ok(), "{committed:?}");
        }
        assert_eq!(db.number("select count(*) from item where done").await, 10);
        assert_eq!(db.number(MONEY).await, 1100);
        db.drop_database().await;
    }
}

/// R7, O1: a branch that an operator removed is lost; one that he committed is committed.
#[tokio::test]
async fn what_was_done_by_hand_is_found_out() {
    let db = Db::new(XA).await;
    let bank = db.open().await;
    let (gone, committed) = (put(1, "key-1", "i1", "a", 10), put(2, "key-2", "i2", "y", 10));
    bank.prepare(vec![gone.clone(), committed.clone()]).await.unwrap();
    drop(bank);
    for (branch, how) in [(&gone, "rollback"), (&committed, "commit")] {
        db.finish_by_hand(how, branch).await;
    }
    let bank = db.open().await;
    let decided = bank.commit([&gone, &committed].map(|p| decision(p, Verdict::Commit)).to_vec()).await.unwrap();
    let Err(Fault::Violation(violation)) = &decided[0] else { panic!("acknowledged") };
    assert_eq!(violation.wrong, Wrong::Lost);
    assert_eq!(decided[1], Ok(Effect::Repeated), "the other one is not held up");
    db.drop_database().await;
}

/// R6, M3: after a reset XA COMMIT answers OK and does nothing. Only its ledger row is believed, so that is no commit; when a
/// restart has brought the branch back it is one.
#[tokio::test]
async fn a_commit_that_answers_ok_and_does_nothing_is_not_acknowledged() {
    let server = Private::start("mariadb");
    let db = Db::on(server.url(), XA).await;
    let bank = db.open().await;
    let branch = put(1, "key-1", "i1", "a", 10);
    let (xid, mut careless) = (db.xid(&branch), connect(&db.url).await);
    let script = format!(
        "xa start {xid}; insert into item values ('i1', 'a', 10, true, '{txid}');
         update account set balance = balance - 10 where name = 'a';
         insert into suture_ledger (txid, state, hash, business_key, attempt, live_key, operation)
         values ('{txid}', 'committed', '{hash}', 'key-1', 1, 'key-1', 'put'); xa end {xid}; xa prepare {xid}",
        txid = branch.txid,
        hash = branch.hash
    );
    execute(&mut careless, &script).await;
    careless.reset().await.unwrap();
    assert_eq!(prepare_one(&bank, &branch).await, yes(), "it is in the list");
    let Err(Fault::Violation(violation)) = commit(&bank, &branch).await else { panic!("acknowledged") };
    assert_eq!(violation.wrong, Wrong::Lost);
    assert!(db.listed().await.is_empty(), "the server has said OK");
    server.kill();
    server.start_again();
    assert_eq!(until_answered(|| bank.commit(vec![decision(&branch, Verdict::Commit)])).await, [Ok(Effect::Finished)]);
    assert_eq!(db.number("select count(*) from item where txid = 'k3f9q-3-1'").await, 1);
    assert_eq!(db.number(MONEY).await, 1100);
}

/// R2, R3: the abort comes while its prepare is running, whose row is in the way of the `aborted` one.
#[tokio::test]
async fn an_abort_meets_its_prepare_on_the_way() {
    for config in [XA, RESERVE] {
        let db = Db::new(config).await;
        let bank = Arc::new(db.open_with(|settings| settings.lock_timeout = Duration::from_secs(60)).await);
        // The account is locked by somebody else, so the branch stands still with its ledger row inserted.
        let mut other = connect(&db.url).await;
        execute(&mut other, "start transaction; select 1 from account where name = 'a' for update").await;
        let branch = put(1, "key-1", "i1", "a", 10);
        let preparing = {
            let (bank, branch) = (Arc::clone(&bank), Arc::clone(&branch));
            tokio::spawn(async move { bank.prepare(vec![branch]).await })
        };
        db.until_somebody_waits().await;
        let aborting = {
            let (bank, branch) = (Arc::clone(&bank), Arc::clone(&branch));
            tokio::spawn(async move { until_answered(|| bank.abort(vec![decision(&branch, Verdict::Abort)])).await })
        };
        execute(&mut other, "rollback").await;
        // Whichever came first, in the end there is a row, no branch and no effect.
        match preparing.await.unwrap() {
            Ok(vote) => assert!(vote[0] == yes() || code(&vote[0]) == "aborted", "{vote:?}"),
            Err(_) => assert_eq!(code(&prepare_one(&*bank, &branch).await), "aborted"),
        }
        assert!(matches!(aborting.await.unwrap()[0], Ok(Effect::Finished | Effect::NotedAbort)));
        assert_eq!(db.number("select count(*) from suture_ledger where state = 'aborted'").await, 1);
        assert_eq!(db.number("select count(*) from item").await, 0);
        assert_eq!(code(&prepare_one(&*bank, &branch).await), "aborted");
        assert_eq!(db.number(MONEY).await, 1100);
        db.drop_database().await;
    }
}

/// M5: every connection dies between vote and decision.
#[tokio::test]
async fn killed_connections_lose_nothing() {
    for config in [XA, RESERVE] {
        let db = Db::new(config).await;
        let bank = db.open().await;
        let (one, two) = (put(1, "key-1", "i1", "a", 10), put(2, "key-2", "i2", "y", 10));
        assert_eq!(bank.prepare(vec![one.clone(), two.clone()]).await.unwrap(), [yes(), yes()]);
        db.kill_connections().await;
        assert_eq!(until_answered(|| bank.commit(vec![decision(&one, Verdict::Commit)])).await, [Ok(Effect::Finished)]);
        assert_eq!(until_answered(|| bank.abort(vec![decision(&two, Verdict::Abort)])).await, [Ok(Effect::Finished)]);
        assert_eq!(db.number("select count(*) from item where done").await, 1);
        assert_eq!(db.number("select balance from account where name = 'y'").await, 50);
        assert_eq!(db.number(MONEY).await, 1100);
        db.drop_database().await;
    }
}

/// M7: a deadlock ends the whole batch, not the one branch that met it; all of it is done again.
#[tokio::test]
async fn a_deadlock_loses_the_batch_and_nothing_else() {
    let db = Db::new(RESERVE).await;
    let bank = Arc::new(db.open_with(|settings| settings.lock_timeout = Duration::from_secs(60)).await);
    let mut other = connect(&db.url).await;
    // The one with fewer changed rows is ended.
    execute(
        &mut other,
        "start transaction; insert into account (name, balance) select concat('x', seq), 0 from seq_1_to_100",
    )
    .await;
    execute(&mut other, "update account set balance = balance where name = 'y'").await;
    let batch = vec![put(1, "key-1", "i1", "a", 1), put(2, "key-2", "i2", "y", 1)];
    let preparing = {
        let (bank, batch) = (Arc::clone(&bank), batch.clone());
        tokio::spawn(async move { bank.prepare(batch).await })
    };
    db.until_somebody_waits().await;
    execute(&mut other, "update account set balance = balance where name = 'a'").await;
    execute(&mut other, "rollback").await;
    assert_eq!(preparing.await.unwrap().unwrap(), [yes(), yes()]);
    assert_eq!(db.number("select count(*) from item").await, 2);
    assert_eq!(db.number("select count(*) from suture_ledger where state = 'in_doubt'").await, 2);
    let aborted = bank.abort(batch.iter().map(|p| decision(p, Verdict::Abort)).collect()).await.unwrap();
    assert_eq!(aborted, [Ok(Effect::Finished), Ok(Effect::Finished)]);
    assert_eq!(db.number(MONEY).await, 1100);
    db.drop_database().await;
}

/// P58: what others prepared on the same server is nobody's business here.
#[tokio::test]
async fn foreign_branches_stay_untouched() {
    let db = Db::new(XA).await;
    let bank = db.open().await;
    let branch = put(1, "key-1", "i1", "a", 10);
    let foreign = [
        format!("'{}','other-{}/bank/{}',1400206453", branch.txid, db.name.replace('_', "-"), branch.hash.short()),
        format!("'{}','{}/bank/{}',1", branch.txid, db.deployment(), branch.hash.short()),
    ];
    for (n, xid) in foreign.iter().enumerate() {
        let mut other = connect(&db.url).await;
        let script = format!(
            "xa start {xid}; insert into item values ('f{n}', '-', 1, true, '-'); xa end {xid}; xa prepare {xid}"
        );
        execute(&mut other, &script).await;
    }
    assert!(bank.in_doubt().await.unwrap().is_empty());
    let Err(Fault::Violation(violation)) = commit(&bank, &branch).await else { panic!("obeyed") };
    assert_eq!(violation.wrong, Wrong::Lost);
    assert_eq!(abort(&bank, &branch).await, Ok(Effect::NotedAbort));
    for xid in &foreign {
        db.until_finished_by_hand(&format!("xa rollback {xid}")).await;
    }
    db.drop_database().await;
}

/// M4, P58: after a crash a branch that was aborted is prepared again, beside its row. That, and nothing else, is swept.
#[tokio::test]
async fn a_branch_that_comes_back_is_swept() {
    let db = Db::new(XA).await;
    let bank = db.open().await;
    let (over, in_doubt) = (put(1, "key-1", "i1", "a", 10), put(2, "key-2", "i2", "y", 10));
    let noted = put(3, "key-3", "i3", "z", 10);
    assert_eq!(abort(&bank, &noted).await, Ok(Effect::NotedAbort));
    assert_eq!(prepare_one(&bank, &over).await, yes());
    assert_eq!(abort(&bank, &over).await, Ok(Effect::Finished));
    assert_eq!(prepare_one(&bank, &in_doubt).await, yes());
    let foreign = [
        format!("'{}','other-{}/bank/{}',1400206453", over.txid, db.name.replace('_', "-"), over.hash.short()),
        format!("'{}','{}/teller/{}',1400206453", over.txid, db.deployment(), over.hash.short()),
        format!("'{}','{}/bank/{}',1", noted.txid, db.deployment(), noted.hash.short()),
    ];
    let back = format!("'{}','{}/bank/{}',1400206453", over.txid, db.deployment(), over.hash.short());
    for (n, xid) in foreign.iter().chain([&back]).enumerate() {
        let mut other = connect(&db.url).await;
        let script = format!(
            "xa start {xid}; insert into item values ('f{n}', '-', 1, true, '-'); xa end {xid}; xa prepare {xid}"
        );
        execute(&mut other, &script).await;
        other.disconnect().await.unwrap();
    }
    assert_eq!(bank.leftovers().await.unwrap(), [Leftover { txid: over.txid, state: State::Aborted }]);
    let both = vec![over.txid, in_doubt.txid];
    // The session that prepared it may not be gone yet: then it is found again.
    while bank.sweep(both.clone()).await.unwrap() > 0 {}
    assert!(bank.leftovers().await.unwrap().is_empty());
    assert_eq!(db.number("select count(*) from item where id = 'f3'").await, 0);
    assert_eq!(commit(&bank, &in_doubt).await, Ok(Effect::Finished));
    assert_eq!(db.number(MONEY).await, 1100);
    // None of these is gone.
    for xid in &foreign {
        execute(&mut connect(&db.url).await, &format!("xa rollback {xid}")).await;
    }
    db.drop_database().await;
}

/// R12, P25: a zombie has looked, and before its row is in the ledger the branch is prepared, finished and purged elsewhere. All of that
/// happens while its insert waits.
#[tokio::test]
async fn a_zombie_does_not_run_what_was_purged_since_it_looked() {
    for config in [XA, RESERVE] {
        let db = Db::new(config).await;
        let patient = |settings: &mut ServerSettings| {
            settings.key_timeout = Duration::from_secs(30);
            settings.lock_timeout = Duration::from_secs(30);
        };
        let zombie = Arc::new(db.open_with(patient).await);
        // One that would run, and one that would be refused: a refused row is in the way of a late copy of the commit.
        for branch in [put(1, "key-1", "i1", "a", 10), put(2, "key-2", "i2", "nobody", 10)] {
            let mut other = connect(&db.url).await;
            let by_another = format!(
                "start transaction; insert into suture_ledger (txid, state, hash) values ('{}', 'aborted', '{}')",
                branch.txid, branch.hash
            );
            execute(&mut other, &by_another).await;
            let late = {
                let (zombie, branch) = (Arc::clone(&zombie), branch.clone());
                tokio::spawn(async move { prepare_one(&*zombie, &branch).await })
            };
            let waits = format!(
                "select count(*) from information_schema.processlist
                 where db = '{}' and command = 'Query' and trim(info) like 'insert into suture_ledger%'",
                db.name
            );
            while db.number(&waits).await == 0 {
                assert!(!late.is_finished(), "it does not wait: {:?}", late.await);
                tokio::task::yield_now().await;
            }
            let purged = format!(
                "delete from suture_ledger where txid = '{}';
                 replace into suture_marks values ('k3f9q', 3, {}); commit",
                branch.txid,
                branch.txid.offset + 1
            );
            execute(&mut other, &purged).await;
            assert_eq!(code(&late.await.unwrap()), "finished_before");
            assert!(zombie.in_doubt().await.unwrap().is_empty());
        }
        assert_eq!(db.number("select count(*) from item").await, 0);
        assert_eq!(db.number("select count(*) from suture_ledger").await, 0);
        db.drop_database().await;
    }
}

/// O3: somebody else's lock is waited for, and no reason to call a commit lost.
#[tokio::test]
async fn a_commit_that_is_done_again_waits_for_locks() {
    for config in [XA, RESERVE] {
        let db = Db::new(config).await;
        let bank = db.open().await;
        let branch = put(1, "key-1", "i1", "a", 10);
        let mut other = connect(&db.url).await;
        execute(&mut other, "start transaction; update account set balance = balance + 1 where name = 'a'").await;
        assert_eq!(bank.redo(vec![branch.clone()]).await.unwrap_err().code, "1205");
        execute(&mut other, "rollback").await;
        assert_eq!(bank.redo(vec![branch]).await, Ok(Some(vec![Redone::Done])));
        db.drop_database().await;
    }
}

#[tokio::test]
async fn unsafe_or_foreign_databases_are_refused() {
    let db = Db::new(XA).await;
    let refused = db.refused(|settings, _| settings.cap = 9_000).await;
    assert!(matches!(refused, OpenError::Need { setting: "max_connections", .. }), "{refused}");
    drop(db.open().await);
    let refused = db.refused(|_, opening| opening.owner.deployment = "other".parse().unwrap()).await;
    assert!(matches!(refused, OpenError::Foreign { what: "deployment", .. }), "{refused}");
    let refused = db.refused(|settings, _| settings.url = settings.url.replace(&db.name, "no_such_database")).await;
    assert_eq!(refused.to_string(), "the database is unavailable while connecting (1049)");
    // M11: it would keep its rows whatever becomes of the branch.
    db.execute("create table stray (id integer) engine = MyISAM").await;
    let refused = db.refused(|_, _| ()).await;
    assert!(matches!(refused, OpenError::Need { setting: "the engine of a table", .. }), "{refused}");
    let branch = put(1, "key-1", "i1", "a", 10);
    db.execute("drop table stray").await;
    let bank = db.open().await;
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    let refused = db.refused(|_, opening| opening.mode = Mode::Reserve).await;
    assert!(matches!(refused, OpenError::Need { setting: "mode", .. }), "{refused}");
    assert_eq!(abort(&bank, &branch).await, Ok(Effect::Finished));
    db.execute("alter table item drop column amount").await;
    let refused = db.refused(|_, _| ()).await;
    assert!(matches!(&refused, OpenError::Statement { place, .. } if place == "operation.put.prepare[1]"), "{refused}");
    db.drop_database().await;
}

/// A restart with a branch in doubt must not wait for its locks, not even for those on the tables themselves.
#[tokio::test]
async fn opening_again_does_not_wait_for_branches_in_doubt() {
    let db = Db::new(XA).await;
    let branch = put(1, "key-1", "i1", "a", 10);
    assert_eq!(prepare_one(&db.open().await, &branch).await, yes());
    let two = [db.open().await, db.open().await];
    assert_eq!(two[0].ledger_id(), two[1].ledger_id());
    assert_eq!(commit(&two[1], &branch).await, Ok(Effect::Finished));
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
    async fn db(server: String, config: &'static str) -> Db {
        match ordered() {
            Some(order) => Db::named(server, order[0].clone(), config),
            None => Db::on(server, config).await,
        }
    }

    async fn at_every_point_of(server: String, config: &'static str) {
        let db = db(server, config).await;
        at_every_point(&db).await;
        db.drop_database().await;
    }

    #[tokio::test]
    async fn a_crash_at_any_point_of_mode_xa_changes_nothing_in_the_end() {
        at_every_point_of(server(), XA).await;
    }

    #[tokio::test]
    async fn a_crash_at_any_point_of_mode_reserve_changes_nothing_in_the_end() {
        at_every_point_of(server(), RESERVE).await;
    }

    #[tokio::test]
    async fn a_crash_at_any_point_of_mode_xa_changes_nothing_in_mysql() {
        if let Some(server) = mysql() {
            at_every_point_of(server, XA).await;
        }
    }

    #[tokio::test]
    async fn a_crash_at_any_point_of_mode_reserve_changes_nothing_in_mysql() {
        if let Some(server) = mysql() {
            at_every_point_of(server, RESERVE).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_crash_at_any_send_of_mode_xa_changes_nothing_in_the_end() {
        let db = db(server(), XA).await;
        at_every_send(&db).await;
        db.drop_database().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_crash_at_any_send_of_mode_reserve_changes_nothing_in_the_end() {
        let db = db(server(), RESERVE).await;
        at_every_send(&db).await;
        db.drop_database().await;
    }

    impl Crashes for Db {
        fn name(&self) -> String {
            self.name.clone()
        }

        fn places(&self) -> &'static [Place] {
            match self.config {
                XA => &[Place::Xa, Place::XaOfMariadb, Place::Local],
                _ => &[Place::Reserve, Place::Local],
            }
        }

        fn hindrance(&self) -> Option<[&'static str; 2]> {
            let busy = "create trigger hinder before update on item for each row signal sqlstate '45000' set mysql_errno = 1205";
            (self.config == RESERVE).then_some([busy, "drop trigger hinder"])
        }

        async fn come_back(&self, branch: &Prepare) {
            let (xid, txid) = (self.xid(branch), branch.txid);
            let item = format!("insert into item values ('back-{txid}', '-', 1, true, '{txid}')");
            self.execute(&format!("xa start {xid}; {item}; xa end {xid}; xa prepare {xid}")).await;
        }

        async fn execute(&self, sql: &str) {
            self.execute(sql).await;
        }
    }
}
