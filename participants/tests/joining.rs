//! How a database joins: its ledger is made or brought up to date, its role gets the least rights, and its operations are tried. On
//! each database.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::server::shared;
use common::{PATIENCE, commit, prepare, prepare_one, txid, yes};
use mysql_async::prelude::Queryable;
use serde_json::value::RawValue;
use suture_contract::ids::{Deployment, LogLetters, Shard};
use suture_contract::messages::Prepare;
use suture_participants::config::{Database, ParticipantConfig};
use suture_participants::inspect::inspect;
use suture_participants::install::{Script, Wanted};
use suture_participants::opened::OpenedResource;
use suture_participants::resource::{Effect, Entry, OpenError, Opening, Position, Resource, Unavailable};
use suture_participants::trial::{StepResult, Tried, Wish, try_operations};
use suture_participants_core::gid::{Gid, Owner};
use tokio::time::timeout;

const XA: &str = r#"
name = "bank"
mode = "xa"
[database]
DATABASE
[operation.put.parameters]
id = { path = "/id", type = "text" }
[[operation.put.prepare]]
sql = "update shelf set held = held + 1 where name = 'only'"
rows = 1
code = "NO_SHELF"
check = "FULL"
[[operation.put.prepare]]
sql = "insert into item (id, txid) values (:id, :txid)"
rows = 1
unique = "DUPLICATE"
"#;

const RESERVE: &str = r#"
name = "bank"
mode = "reserve"
[database]
DATABASE
[operation.put.parameters]
id = { path = "/id", type = "text" }
[[operation.put.reserve]]
sql = "update shelf set held = held + 1 where name = 'only'"
rows = 1
code = "NO_SHELF"
check = "FULL"
[[operation.put.reserve]]
sql = "insert into item (id, txid) values (:id, :txid)"
rows = 1
unique = "DUPLICATE"
[[operation.put.confirm]]
sql = "update item set done = 1 where txid = :txid"
rows = 1
[[operation.put.cancel]]
sql = "delete from item where txid = :txid"
rows = 1
[[operation.put.cancel]]
sql = "update shelf set held = held - 1 where name = 'only'"
rows = 1
"#;

const SCHEMA: &str = "create table shelf (name varchar(40) primary key, held integer not null, check (held < 3));
    create table item (id varchar(40) primary key, done integer not null default 0, txid varchar(64) not null);
    insert into shelf values ('only', 0);";

/// A ledger as version 1 made it, with a row that is committed.
const VERSION_1: [&str; 3] = [
    "create table suture_meta (name text primary key, value text not null) STRICT;
     create table suture_positions (topic text not null, letters text not null, shard integer not null, next_offset BIGINT not null,
         primary key (topic, letters, shard)) STRICT;
     create table suture_ledger (txid text primary key,
         state text not null check (state in ('in_doubt', 'committed', 'aborted', 'refused')), hash text not null,
         business_key text, attempt BIGINT, live_key text unique, operation text, code text, duplicate_of text, changed_at CHANGED,
         unique (business_key, attempt), check ((business_key is null) = (attempt is null)),
         check ((live_key is not null) = (state in ('in_doubt', 'committed')))) STRICT;",
    "create table suture_meta (name varchar(64) character set ascii collate ascii_bin primary key,
         value varchar(255) character set ascii collate ascii_bin not null) engine = InnoDB;
     create table suture_positions (topic varchar(255) character set ascii collate ascii_bin not null,
         letters varchar(5) character set ascii collate ascii_bin not null, shard integer not null, next_offset bigint not null,
         primary key (topic, letters, shard)) engine = InnoDB;
     create table suture_ledger (txid varchar(64) character set ascii collate ascii_bin primary key,
         state varchar(16) character set ascii collate ascii_bin not null
             check (state in ('in_doubt', 'committed', 'aborted', 'refused')),
         hash varchar(64) character set ascii collate ascii_bin not null,
         business_key varchar(200) character set ascii collate ascii_bin, attempt bigint,
         live_key varchar(200) character set ascii collate ascii_bin unique,
         operation varchar(255) character set utf8mb4 collate utf8mb4_bin,
         code varchar(40) character set ascii collate ascii_bin,
         duplicate_of varchar(64) character set ascii collate ascii_bin,
         changed_at timestamp(6) not null default current_timestamp(6), unique (business_key, attempt), key (state),
         check ((business_key is null) = (attempt is null)),
         check ((live_key is not null) = (state in ('in_doubt', 'committed')))) engine = InnoDB;",
    "insert into suture_meta values ('schema_version', '1'), ('ledger_id', '0123456789abcdef'), ('deployment', 'DEPLOYMENT'),
         ('participant', 'bank');
     insert into suture_positions values ('suture.decisions', 'aaaaa', 3, 7);
     insert into suture_ledger (txid, state, hash, business_key, attempt, live_key, operation)
         values ('TXID', 'committed', 'HASH', 'item:1:1', 1, 'item:1:1', 'put');",
];

/// A database of one test.
enum Db {
    Sqlite(tempfile::TempDir),
    Postgres { server: String, name: String },
    Mariadb { server: String, name: String },
}

static DATABASES: AtomicU32 = AtomicU32::new(0);

impl Db {
    fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    async fn postgres() -> Self {
        let db = Self::Postgres { server: shared("SUTURE_TEST_POSTGRES"), name: name() };
        let Self::Postgres { server, name } = &db else { unreachable!() };
        execute_on_postgres(server, &format!("create database {name}")).await.unwrap();
        db
    }

    async fn mariadb(variable: &str) -> Self {
        let db = Self::Mariadb { server: shared(variable), name: name() };
        let Self::Mariadb { server, name } = &db else { unreachable!() };
        execute_on_mariadb(server, &format!("create database {name}")).await.unwrap();
        db
    }

    fn deployment(&self) -> Deployment {
        match self {
            Self::Sqlite(_) => "joining".parse().unwrap(),
            Self::Postgres { name, .. } | Self::Mariadb { name, .. } => name.replace('_', "-").parse().unwrap(),
        }
    }

    fn owner(&self) -> Owner {
        Owner { deployment: self.deployment(), participant: "bank".parse().unwrap() }
    }

    /// The URL for somebody.
    fn url(&self, user: Option<&str>) -> String {
        match self {
            Self::Sqlite(folder) => folder.path().join("bank.sqlite").display().to_string(),
            Self::Postgres { server, name } => {
                let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
                user.map_or(url.clone(), |user| url.replace("postgres@", &format!("{user}@")))
            }
            Self::Mariadb { server, name } => {
                let url = format!("{}/{name}", server.trim_end_matches('/'));
                user.map_or(url.clone(), |user| url.replace("root@", &format!("{user}@")))
            }
        }
    }

    fn config(&self, user: Option<&str>, text: &str) -> (ParticipantConfig, Opening) {
        let url = self.url(user);
        let database = match self {
            Self::Sqlite(_) => format!("kind = \"sqlite\"\npath = \"{url}\""),
            Self::Postgres { .. } => format!("kind = \"postgres\"\nurl = \"{url}\"\ncap = 20"),
            Self::Mariadb { .. } => format!("kind = \"mariadb\"\nurl = \"{url}\"\ncap = 20"),
        };
        let text = text.replace("DATABASE", &database);
        let config = ParticipantConfig::parse(&text, std::path::Path::new("bank.toml")).unwrap();
        let opening = config.opening(&self.deployment(), None, false).unwrap();
        (config, opening)
    }

    /// As the participant has it: xa where that can be.
    fn usual(&self) -> &'static str {
        if matches!(self, Self::Sqlite(_)) { RESERVE } else { XA }
    }

    async fn open(&self, user: Option<&str>) -> Result<OpenedResource, OpenError> {
        let (config, opening) = self.config(user, self.usual());
        OpenedResource::open(&config, opening).await
    }

    async fn script(&self, role: Option<&str>) -> Result<Script, OpenError> {
        let (database, (_, opening)) = (self.database(), self.config(None, self.usual()));
        Script::of(&Wanted { database: &database, opening: &opening, role }).await
    }

    async fn set_up(&self, role: Option<&str>) -> Result<(), OpenError> {
        let (database, (_, opening)) = (self.database(), self.config(None, self.usual()));
        let wanted = Wanted { database: &database, opening: &opening, role };
        Script::of(&wanted).await?.run(&wanted).await
    }

    fn database(&self) -> Database {
        Database::of_url(&self.url(None)).unwrap()
    }

    async fn try_all(&self, text: &str, wish: Wish) -> Vec<Tried> {
        let (config, opening) = self.config(None, text);
        try_operations(&config, opening, wish).await.unwrap()
    }

    async fn execute(&self, sql: &str) {
        self.try_to(sql).await.unwrap();
    }

    /// The error's code.
    async fn try_to(&self, sql: &str) -> Result<(), String> {
        match self {
            Self::Sqlite(_) => {
                let file = rusqlite::Connection::open(self.url(None)).unwrap();
                file.execute_batch(sql).map_err(|error| error.to_string())
            }
            Self::Postgres { .. } => execute_on_postgres(&self.url(None), sql).await,
            Self::Mariadb { .. } => execute_on_mariadb(&self.url(None), sql).await,
        }
    }

    async fn number(&self, sql: &str) -> i64 {
        match self {
            Self::Sqlite(_) => {
                rusqlite::Connection::open(self.url(None)).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
            }
            Self::Postgres { .. } => {
                let (client, connection) =
                    tokio_postgres::connect(&self.url(None), tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                client.query_one(sql, &[]).await.unwrap().get(0)
            }
            Self::Mariadb { .. } => {
                let mut connection = mysql_async::Conn::from_url(self.url(None)).await.unwrap();
                connection.query_first(sql).await.unwrap().unwrap()
            }
        }
    }

    /// A ledger of version 1 with one row.
    async fn set_up_version_1(&self) {
        let (tables, strict, bigint, changed) = match self {
            Self::Sqlite(_) => (VERSION_1[0], "strict", "integer", "integer not null default (unixepoch())"),
            Self::Postgres { .. } => (VERSION_1[0], "", "bigint", "timestamptz not null default now()"),
            Self::Mariadb { .. } => (VERSION_1[1], "", "bigint", ""),
        };
        let first = put(1);
        let tables = tables.replace("STRICT", strict).replace("BIGINT", bigint).replace("CHANGED", changed);
        let rows = VERSION_1[2].replace("DEPLOYMENT", self.deployment().as_str());
        let rows = rows.replace("TXID", &first.txid.to_string()).replace("HASH", &first.hash.to_string());
        self.execute(&format!("{tables}{rows}")).await;
    }

    /// A branch that an older build has left in doubt, in this participant's name or in another's.
    async fn prepare_by_hand(&self, n: u64, owner: &Owner) {
        let (branch, row) =
            (put(n), format!("insert into suture_ledger (txid, state, hash) values ('{}', 'aborted', 'x')", txid(n)));
        let gid = Gid::new(branch.txid, owner, &branch.hash).to_string();
        match self {
            Self::Sqlite(_) => {}
            Self::Postgres { .. } => self.execute(&format!("begin; {row}; prepare transaction '{gid}'")).await,
            Self::Mariadb { .. } => {
                let xid = xid(&gid);
                self.execute(&format!("xa start {xid}; {row}; xa end {xid}; xa prepare {xid}")).await;
            }
        }
    }

    async fn roll_back_by_hand(&self, n: u64, owner: &Owner) {
        let branch = put(n);
        let gid = Gid::new(branch.txid, owner, &branch.hash).to_string();
        let finish = match self {
            Self::Sqlite(_) => return,
            Self::Postgres { .. } => format!("rollback prepared '{gid}'"),
            Self::Mariadb { .. } => format!("xa rollback {}", xid(&gid)),
        };
        // MariaDB: until the session that has prepared it is gone.
        for _ in 0..1_000 {
            if self.try_to(&finish).await.is_ok() {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{finish} does not come to an end");
    }

    /// Not in `Drop`, which cannot wait. A test that failed leaves its database for whoever looks into it.
    async fn drop_database(&self, role: Option<&str>) {
        match self {
            Self::Sqlite(_) => {}
            Self::Postgres { server, name } => {
                execute_on_postgres(server, &format!("drop database {name} with (force)")).await.unwrap();
                if let Some(role) = role {
                    execute_on_postgres(server, &format!("drop role {role}")).await.unwrap();
                }
            }
            Self::Mariadb { name, .. } => {
                self.execute(&format!("drop database {name}")).await;
                if let (Some(role), Self::Mariadb { server, .. }) = (role, self) {
                    execute_on_mariadb(server, &format!("drop user {role}")).await.unwrap();
                }
            }
        }
    }
}

fn name() -> String {
    format!("j{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed))
}

fn xid(gid: &str) -> String {
    let (global, branch) = gid.split_once('/').unwrap();
    format!("'{global}','{branch}',{}", 0x5375_7475)
}

async fn execute_on_postgres(url: &str, sql: &str) -> Result<(), String> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(sql).await.map_err(|error| format!("{error:?}"))
}

async fn execute_on_mariadb(url: &str, sql: &str) -> Result<(), String> {
    let mut connection = mysql_async::Conn::from_url(url).await.unwrap();
    let ran = async { connection.query_iter(sql).await?.drop_result().await };
    let ran = ran.await.map_err(|error: mysql_async::Error| error.to_string());
    connection.disconnect().await.unwrap();
    ran
}

fn put(n: u64) -> Arc<Prepare> {
    prepare(n, &format!("item:{n}:1"), 1, &format!(r#"{{"id":"{n}"}}"#))
}

// ---- from version 1 --------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_sqlite_ledger_of_version_1_is_brought_up_to_date() {
    is_brought_up_to_date(&Db::sqlite()).await;
}

#[tokio::test]
async fn a_postgres_ledger_of_version_1_is_brought_up_to_date() {
    is_brought_up_to_date(&Db::postgres().await).await;
}

#[tokio::test]
async fn a_mariadb_ledger_of_version_1_is_brought_up_to_date() {
    is_brought_up_to_date(&Db::mariadb("SUTURE_TEST_MARIADB").await).await;
}

#[tokio::test]
async fn a_mysql_ledger_of_version_1_is_brought_up_to_date() {
    if std::env::var("SUTURE_TEST_MYSQL").is_ok() {
        is_brought_up_to_date(&Db::mariadb("SUTURE_TEST_MYSQL").await).await;
    }
}

async fn is_brought_up_to_date(db: &Db) {
    db.execute(SCHEMA).await;
    db.set_up_version_1().await;
    let refused = db.open(None).await.err().unwrap();
    assert_eq!(refused, OpenError::Version { found: "1".to_string() });
    assert!(db.try_to("select * from suture_marks").await.is_err(), "what is refused is not touched");

    if !matches!(db, Db::Sqlite(_)) {
        // The participant's own branch is seen before anything is tried; another's makes it give up, but for MariaDB, which
        // changes a check without touching rows.
        let is_mariadb = matches!(db, Db::Mariadb { server, .. } if *server == self::shared("SUTURE_TEST_MARIADB"));
        let other = Owner { participant: "other".parse().unwrap(), ..db.owner() };
        for (n, owner) in [(2, db.owner()), (3, other)].into_iter().take(if is_mariadb { 1 } else { 2 }) {
            db.prepare_by_hand(n, &owner).await;
            let refused = db.set_up(None).await.err().unwrap();
            assert!(
                matches!(&refused, OpenError::Need { remedy, .. } if remedy.starts_with("wait until")),
                "{refused}"
            );
            db.roll_back_by_hand(n, &owner).await;
        }
    }
    db.set_up(None).await.unwrap();
    assert!(db.script(None).await.unwrap().is_empty(), "a second time there is nothing to be done");
    db.execute("insert into suture_ledger (txid, state, hash) values ('a', 'abandoned', 'x'); delete from suture_ledger where txid = 'a'").await;
    assert!(db.try_to("insert into suture_ledger (txid, state, hash) values ('b', 'something', 'x')").await.is_err());
    let twice = "insert into suture_ledger (txid, state, hash, business_key, attempt) values ('c', 'aborted', 'x', 'item:1:1', 1)";
    assert!(db.try_to(twice).await.is_err(), "one row a key and attempt");

    let bank = db.open(None).await.unwrap();
    assert_eq!(bank.ledger_id(), "0123456789abcdef");
    assert_eq!(commit(&bank, &put(1)).await, Ok(Effect::Repeated), "what was committed is known");
    assert_eq!(bank.load_positions("suture.decisions".to_string()).await.unwrap().len(), 1);
    assert_eq!(prepare_one(&bank, &put(4)).await, yes());
    assert_eq!(commit(&bank, &put(4)).await, Ok(Effect::Finished));
    drop(bank);

    db.execute("update suture_meta set value = '3' where name = 'schema_version'").await;
    let refused = db.script(None).await.err().unwrap();
    assert_eq!(refused, OpenError::Version { found: "3".to_string() });
    db.drop_database(None).await;
}

// ---- least rights ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_postgres_role_with_the_least_rights_serves() {
    serves_with_the_least_rights(&Db::postgres().await, "42501").await;
}

#[tokio::test]
async fn a_mariadb_account_with_the_least_rights_serves() {
    serves_with_the_least_rights(&Db::mariadb("SUTURE_TEST_MARIADB").await, "1044").await;
}

#[tokio::test]
async fn a_mysql_account_with_the_least_rights_serves() {
    if std::env::var("SUTURE_TEST_MYSQL").is_ok() {
        serves_with_the_least_rights(&Db::mariadb("SUTURE_TEST_MYSQL").await, "1044").await;
    }
}

async fn serves_with_the_least_rights(db: &Db, denied: &str) {
    db.execute(SCHEMA).await;
    let role = format!("r{}", name());
    match db {
        Db::Postgres { .. } => db.execute(&format!("create role {role} login")).await,
        _ => db.execute(&format!("create user {role}")).await,
    }
    let refused = db.open(Some(&role)).await.err().unwrap();
    let (OpenError::Unavailable(Unavailable { code, .. }) | OpenError::Lacks { code, .. }) = &refused else {
        panic!("{refused}")
    };
    assert_eq!(code, denied, "{refused}");
    db.set_up(Some(&role)).await.unwrap();

    let bank = db.open(Some(&role)).await.unwrap();
    let (first, second) = (put(1), put(2));
    assert_eq!(prepare_one(&bank, &first).await, yes());
    assert_eq!(commit(&bank, &first).await, Ok(Effect::Finished));
    assert_eq!(prepare_one(&bank, &second).await, yes());
    assert_eq!(common::abort(&bank, &second).await, Ok(Effect::Finished));
    let position = Position {
        topic: "suture.decisions".to_string(),
        letters: "aaaaa".parse::<LogLetters>().unwrap(),
        shard: Shard(0),
        next_offset: 1,
    };
    bank.store_positions(vec![position], vec![]).await.unwrap();
    assert_eq!(db.number("select count(*) from item").await, 1);
    let [entry, record_key, record] = ["lost:x", "x", "{}"].map(str::to_string);
    bank.note(vec![Entry { entry: entry.clone(), record_key, record }]).await.unwrap();
    bank.mark_told(vec![entry]).await.unwrap();
    assert_eq!(common::purge(&bank, &common::page(None, 9)).await, 2);
    bank.begin_restore().await.unwrap();
    bank.end_restore().await.unwrap();
    drop(bank);
    drop(db.open(Some(&role)).await.unwrap());
    db.drop_database(Some(&role)).await;
}

// ---- not looked at ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_script_for_a_database_that_is_not_looked_at_must_be_asked_for() {
    let db = Db::Postgres { server: "postgres://postgres@127.0.0.1:1/x".to_string(), name: "far_off".to_string() };
    let (database, (_, opening)) = (db.database(), db.config(None, XA));
    let wanted = Wanted { database: &database, opening: &opening, role: Some("somebody") };
    let refused = Script::of(&wanted).await.unwrap_err();
    assert_eq!(refused.to_string(), "the database is unavailable while connecting (connection)");
    let script = Script::unseen(&wanted).unwrap();
    assert!(script.notes[0].starts_with("127.0.0.1:1/far_off was not looked at"), "{:?}", script.notes);
    let text = script.text();
    for line in [
        "create table if not exists suture_ledger",
        "grant connect on database \"far_off\" to \"somebody\"",
        "grant select, insert, update, delete on suture_ledger to \"somebody\"",
        "grant select, insert, update on suture_positions to \"somebody\"",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

/// Nobody knows which of the two it will be.
#[tokio::test]
async fn a_script_for_either_of_mariadb_and_mysql_lets_a_mysql_account_see_the_list() {
    let db = Db::Mariadb { server: "mysql://root@127.0.0.1:1".to_string(), name: "far_off".to_string() };
    let database = db.database();
    for (config, is_there) in [(XA, true), (RESERVE, false)] {
        let (_, opening) = db.config(None, config);
        let script =
            Script::unseen(&Wanted { database: &database, opening: &opening, role: Some("somebody") }).unwrap();
        let text = script.text();
        let grant = "\ngrant usage /*!80000 , xa_recover_admin */ on *.* to 'somebody'@'%';\n";
        assert_eq!(text.contains(grant), is_there, "{text}");
    }
}

#[tokio::test]
async fn a_script_that_was_made_without_looking_sets_mariadb_up() {
    is_set_up_unseen(&Db::mariadb("SUTURE_TEST_MARIADB").await).await;
}

#[tokio::test]
async fn a_script_that_was_made_without_looking_sets_mysql_up() {
    if std::env::var("SUTURE_TEST_MYSQL").is_ok() {
        is_set_up_unseen(&Db::mariadb("SUTURE_TEST_MYSQL").await).await;
    }
}

async fn is_set_up_unseen(db: &Db) {
    db.execute(SCHEMA).await;
    let role = format!("r{}", name());
    let (database, (_, opening)) = (db.database(), db.config(None, XA));
    let script = Script::unseen(&Wanted { database: &database, opening: &opening, role: Some(&role) }).unwrap();
    db.execute(&script.text()).await;
    db.execute(&format!("alter user {role} account unlock")).await;
    let bank = db.open(Some(&role)).await.unwrap();
    assert_eq!(prepare_one(&bank, &put(1)).await, yes());
    assert_eq!(commit(&bank, &put(1)).await, Ok(Effect::Finished));
    drop(bank);
    db.drop_database(Some(&role)).await;
}

// ---- refused ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_refused_start_leaves_a_postgres_database_as_it_was() {
    leaves_as_it_was(&Db::postgres().await).await;
}

#[tokio::test]
async fn a_refused_start_leaves_a_mariadb_database_as_it_was() {
    leaves_as_it_was(&Db::mariadb("SUTURE_TEST_MARIADB").await).await;
}

#[tokio::test]
async fn a_refused_start_leaves_a_sqlite_file_as_it_was() {
    let db = Db::sqlite();
    let refused = db.open(None).await.err().unwrap();
    assert_eq!(refused.to_string(), "the database is unavailable while opening the file (SQLite 14)");
    assert!(!std::path::Path::new(&db.url(None)).exists(), "a wrong path");
    leaves_as_it_was(&db).await;
    let before = std::fs::read(db.url(None)).unwrap();
    drop(db.open(None).await);
    assert!(std::fs::read(db.url(None)).unwrap() == before, "its journal mode too");
}

async fn leaves_as_it_was(db: &Db) {
    db.execute("create table somebodys (id integer)").await;
    let refused = db.open(None).await.err().unwrap();
    assert!(matches!(&refused, OpenError::Statement { .. }), "{refused}");
    assert!(db.try_to("select * from suture_meta").await.is_err(), "no ledger is made");
    db.drop_database(None).await;
}

#[tokio::test]
async fn a_right_that_a_postgres_role_lacks_is_refused_at_start() {
    lacks_a_right(&Db::postgres().await, "42501").await;
}

#[tokio::test]
async fn a_right_that_a_mariadb_account_lacks_is_refused_at_start() {
    lacks_a_right(&Db::mariadb("SUTURE_TEST_MARIADB").await, "1142").await;
}

#[tokio::test]
async fn a_right_that_a_mysql_account_lacks_is_refused_at_start() {
    if std::env::var("SUTURE_TEST_MYSQL").is_ok() {
        lacks_a_right(&Db::mariadb("SUTURE_TEST_MYSQL").await, "1142").await;
    }
}

/// At run time each branch would be refused for it, and not tried again.
async fn lacks_a_right(db: &Db, denied: &str) {
    db.execute(SCHEMA).await;
    let role = format!("r{}", name());
    match db {
        Db::Postgres { .. } => db.execute(&format!("create role {role} login")).await,
        _ => db.execute(&format!("create user {role}")).await,
    }
    db.set_up(Some(&role)).await.unwrap();
    let (config, opening) = db.config(Some(&role), XA);
    for (right, place, expected) in [
        ("update on shelf", "operation.put.prepare[0]", "select, update on shelf"),
        ("insert on item", "operation.put.prepare[1]", "insert on item"),
        ("delete on suture_ledger", "the ledger", "select, delete on suture_ledger"),
    ] {
        db.execute(&format!("revoke {right} from {role}")).await;
        let refused = db.open(Some(&role)).await.err().unwrap();
        let OpenError::Lacks { place: found, needed, code, .. } = &refused else { panic!("{refused}") };
        assert_eq!((found.as_str(), needed.as_str(), code.as_str()), (place, expected, denied), "{refused}");
        let seen = inspect(&config, &opening).await.unwrap();
        assert_eq!(seen.lacks, [refused.to_string()], "the doctor says the same");
        assert_eq!(seen.unfit, []);
        match try_operations(&config, opening.clone(), Wish::default()).await {
            Ok(tried) => {
                let broken = tried[0].steps.iter().find(|step| step.place == place).unwrap();
                let StepResult::Denied(said) = &broken.result else { panic!("{broken:?}") };
                assert!(tried[0].is_denied() && said.contains(expected) && said.contains(denied), "{said}");
            }
            Err(error) => assert_eq!(error, refused, "of the ledger"),
        }
        db.execute(&format!("grant {right} to {role}")).await;
    }
    // As somebody may give it who gives less, or to many at once.
    db.execute(&format!("revoke update on shelf from {role}")).await;
    db.execute(&format!("grant update (held) on shelf to {role}")).await;
    drop(db.open(Some(&role)).await.unwrap());
    let Db::Postgres { server, .. } = db else { return db.drop_database(Some(&role)).await };
    let group = format!("g{role}");
    db.execute(&format!("revoke update (held) on shelf from {role}; create role {group}; grant {group} to {role}"))
        .await;
    assert!(matches!(db.open(Some(&role)).await.err(), Some(OpenError::Lacks { .. })));
    db.execute(&format!("grant update on shelf to {group}")).await;
    drop(db.open(Some(&role)).await.unwrap());
    db.drop_database(Some(&role)).await;
    execute_on_postgres(server, &format!("drop role {group}")).await.unwrap();
}

#[tokio::test]
async fn a_mariadb_account_runs_a_step_on_a_view_that_it_may_not_show() {
    runs_on_a_view(&Db::mariadb("SUTURE_TEST_MARIADB").await).await;
}

#[tokio::test]
async fn a_mysql_account_runs_a_step_on_a_view_that_it_may_not_show() {
    if std::env::var("SUTURE_TEST_MYSQL").is_ok() {
        runs_on_a_view(&Db::mariadb("SUTURE_TEST_MYSQL").await).await;
    }
}

/// EXPLAIN needs SHOW VIEW, and the statement does not.
async fn runs_on_a_view(db: &Db) {
    let read = "sql = \"insert into item (id, txid) select :id, :txid from places\"";
    let text = XA.replace("sql = \"insert into item (id, txid) values (:id, :txid)\"", read);
    assert!(text.contains(read));
    db.execute(SCHEMA).await;
    db.execute("create view places as select name from shelf").await;
    let role = format!("r{}", name());
    db.set_up(Some(&role)).await.unwrap();
    db.execute(&format!("alter user {role} account unlock")).await;
    let (config, opening) = db.config(Some(&role), &text);
    let refused = OpenedResource::open(&config, opening.clone()).await.err().unwrap();
    assert!(matches!(&refused, OpenError::Lacks { place, .. } if place == "operation.put.prepare[1]"), "{refused}");
    db.execute(&format!("grant select on places to {role}")).await;
    let bank = OpenedResource::open(&config, opening).await.unwrap();
    assert_eq!(prepare_one(&bank, &put(1)).await, yes());
    assert_eq!(commit(&bank, &put(1)).await, Ok(Effect::Finished));
    drop(bank);
    db.drop_database(Some(&role)).await;
}

// ---- locked ----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_participant_opens_where_postgres_alters_a_table_behind_its_branch() {
    opens_behind_a_lock(Db::postgres().await, "set lock_timeout = '1s'", "55P03").await;
}

#[tokio::test]
async fn a_participant_opens_where_mariadb_alters_a_table_behind_its_branch() {
    opens_behind_a_lock(Db::mariadb("SUTURE_TEST_MARIADB").await, "set lock_wait_timeout = 1", "1205").await;
}

#[tokio::test]
async fn a_participant_opens_where_mysql_alters_a_table_behind_its_branch() {
    if std::env::var("SUTURE_TEST_MYSQL").is_ok() {
        opens_behind_a_lock(Db::mariadb("SUTURE_TEST_MYSQL").await, "set lock_wait_timeout = 1", "1205").await;
    }
}

/// Who alters waits for the branch, who checks its steps for him, and the branch for nobody but the participant. On MariaDB he has
/// the table to himself already, and waits in the engine: a branch whose session is gone holds its rows, and no longer the table's
/// name.
async fn opens_behind_a_lock(db: Db, impatient: &str, locked: &str) {
    db.execute(SCHEMA).await;
    let branch = put(1);
    let bank = db.open(None).await.unwrap();
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    drop(bank);
    let db = Arc::new(db);
    let altering = tokio::spawn({
        let patient = if matches!(*db, Db::Postgres { .. }) { "" } else { "set innodb_lock_wait_timeout = 600;" };
        let (db, sql) = (Arc::clone(&db), format!("{patient} alter table item add column note varchar(9)"));
        async move { db.execute(&sql).await }
    });
    let reading = format!("{impatient}; select id from item");
    let waits = async {
        loop {
            if let Err(refused) = db.try_to(&reading).await {
                break refused;
            }
        }
    };
    let refused = timeout(PATIENCE, waits).await.expect("it does not wait");
    assert!(refused.contains(locked), "{refused}");

    let (config, opening) = db.config(None, &XA.replace("DATABASE", "DATABASE\nstatement_timeout_ms = 1000"));
    let bank = OpenedResource::open(&config, opening.clone()).await.unwrap();
    assert_eq!(inspect(&config, &opening).await.unwrap().unfit, []);
    let committing = async { while commit(&bank, &branch).await == Ok(Effect::Later) {} };
    timeout(PATIENCE, committing).await.expect("it is never committed");
    timeout(PATIENCE, altering).await.expect("it waits for ever").unwrap();
    assert_eq!(db.number("select count(*) from item where note is null").await, 1);
    drop(bank);
    db.drop_database(None).await;
}

// ---- trying ----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn operations_are_tried_on_sqlite() {
    let db = Db::sqlite();
    operations_are_tried(&db, RESERVE).await;
}

#[tokio::test]
async fn operations_are_tried_on_postgres() {
    for config in [XA, RESERVE] {
        operations_are_tried(&Db::postgres().await, config).await;
    }
}

#[tokio::test]
async fn operations_are_tried_on_mariadb() {
    for config in [XA, RESERVE] {
        operations_are_tried(&Db::mariadb("SUTURE_TEST_MARIADB").await, config).await;
    }
}

async fn operations_are_tried(db: &Db, config: &str) {
    db.execute(SCHEMA).await;
    db.execute("insert into item (id, txid) values ('taken', 'x')").await;
    let with =
        |payload: &str| Wish { operation: None, payload: Some(RawValue::from_string(payload.to_string()).unwrap()) };
    let results = |tried: &[Tried]| tried[0].steps.iter().map(|step| step.result.clone()).collect::<Vec<_>>();

    let tried = db.try_all(config, Wish::default()).await;
    assert!(tried[0].runs() && tried[0].refusal().is_none());
    let steps = if config == XA { 2 } else { 5 };
    assert_eq!(results(&tried), vec![StepResult::Ran(1); steps]);
    assert_eq!(tried[0].steps[1].parameters, ["id text", "txid text"]);

    let tried = db.try_all(config, with(r#"{"id":"taken"}"#)).await;
    let StepResult::Refuses { code, .. } = &results(&tried)[1] else { panic!("{tried:?}") };
    assert_eq!(code.as_str(), "DUPLICATE");
    assert_eq!(tried[0].refusal().unwrap().as_str(), "DUPLICATE");

    db.execute("update shelf set held = 2").await;
    let tried = db.try_all(config, with(r#"{"id":"new"}"#)).await;
    assert_eq!(tried[0].refusal().unwrap().as_str(), "FULL", "what the constraint says");
    assert!(tried[0].runs());
    let tried = db.try_all(config, with(r#"{"id":7}"#)).await;
    assert_eq!(tried[0].unusable.as_ref().unwrap().1.as_deref(), Some("id"));

    let wrong = config.replace("insert into item (id, txid)", "insert into item (id, nothing)");
    let tried = db.try_all(&wrong, Wish::default()).await;
    let StepResult::Broken(said) = &results(&tried)[1] else { panic!("{tried:?}") };
    assert!(said.contains("nothing") && !tried[0].runs(), "{said}");

    assert_eq!(db.number("select count(*) from item").await, 1);
    assert_eq!(
        db.number("select cast(sum(held) as signed) from shelf".replace("signed", signed(db)).as_str()).await,
        2
    );
    assert!(db.try_to("select * from suture_meta").await.is_err(), "no ledger is made");
    db.drop_database(None).await;
}

fn signed(db: &Db) -> &'static str {
    match db {
        Db::Mariadb { .. } => "signed",
        _ => "bigint",
    }
}

/// A constraint that is checked at the end only would refuse the branch at its prepare.
#[tokio::test]
async fn a_deferred_constraint_is_told() {
    let db = Db::postgres().await;
    db.execute(SCHEMA).await;
    db.execute("alter table item add foreign key (id) references shelf deferrable initially deferred").await;
    let tried = db.try_all(XA, Wish::default()).await;
    assert_eq!(tried[0].deferred.as_deref(), Some("23503"));
    db.drop_database(None).await;
}

/// M11: its rows would outlive the trial.
#[tokio::test]
async fn nothing_is_tried_where_a_rollback_leaves_rows() {
    let db = Db::mariadb("SUTURE_TEST_MARIADB").await;
    db.execute(SCHEMA).await;
    db.execute("alter table item engine = MyISAM").await;
    let (config, opening) = db.config(None, XA);
    let refused = try_operations(&config, opening, Wish::default()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Need { setting: "the engine of a table", .. }), "{refused}");
    assert_eq!(db.number("select count(*) from item").await, 0);
    db.drop_database(None).await;
}

/// M14.
#[tokio::test]
async fn a_lock_that_mariadb_loses_is_refused() {
    let db = Db::mariadb("SUTURE_TEST_MARIADB").await;
    db.execute(SCHEMA).await;
    let reads = |lock: &str| {
        XA.replace("update shelf set held = held + 1 where name = 'only'", &format!("select 1 from shelf {lock}"))
    };
    let open = async |text: &str| {
        let (config, opening) = db.config(None, text);
        OpenedResource::open(&config, opening).await.map(drop)
    };
    let refused = open(&reads("lock in share mode")).await.err().unwrap();
    let expected = "a lock that lasts is a share lock in operation.put.prepare[0]: write what the vote depends on";
    assert!(refused.to_string().starts_with(expected), "{refused}");
    open(&reads("for update")).await.unwrap();
    open(&reads("")).await.unwrap();
    db.drop_database(None).await;
}
