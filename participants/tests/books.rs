//! A participant's books are read beside the participant, and nothing is changed by it: on each database.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::server::shared;
use common::settling::{met, say};
use common::{abort, commit, decision, deployment, prepare, prepare_one, txid, yes};
use mysql_async::prelude::Queryable;
use suture_contract::ids::{LogLetters, Shard};
use suture_contract::messages::{IncidentKind, Prepare, Settled, Verdict};
use suture_participants::books::{Books, ListedBranch, Mark};
use suture_participants::config::ParticipantConfig;
use suture_participants::forgotten::{Forgotten, Remembered};
use suture_participants::incidents::{self, Place, Refused, Said, Taken, resolve_forgotten};
use suture_participants::opened::OpenedResource;
use suture_participants::resource::{Effect, OpenError, Opening, Position, Resource};
use suture_participants_core::branch::State;
use suture_participants_core::gid::Gid;

const CONFIG: &str = r#"
name = "bank"
mode = "MODE"
[database]
DATABASE
[operation.put.parameters]
id = { path = "/id", type = "text" }
[[operation.put.PREPARE]]
sql = "insert into item (id, txid) values (:id, :txid)"
rows = 1
"#;

const FINISH: &str = r#"
[[operation.put.cancel]]
sql = "delete from item where txid = :txid"
rows = 1
[operation.put]
confirm = []
"#;

const SCHEMA: &str = "create table if not exists item (id varchar(40) primary key, txid varchar(64) not null);";

/// A database of one test: how it is reached, and how a person changes it.
enum Db {
    Sqlite(tempfile::TempDir),
    Postgres(String),
    Mariadb(String),
}

impl Db {
    async fn postgres() -> Self {
        let server = shared("SUTURE_TEST_POSTGRES");
        let name = format!("books_{}", std::process::id());
        let base = server.rsplit_once('/').expect("a URL with a database").0.to_string();
        Self::Postgres(server).execute(&format!("create database {name}")).await;
        Self::Postgres(format!("{base}/{name}"))
    }

    async fn mariadb(server: String) -> Self {
        let name = format!("books_{}", std::process::id());
        let base = server.trim_end_matches('/').to_string();
        Self::Mariadb(server).execute(&format!("create database {name}")).await;
        Self::Mariadb(format!("{base}/{name}"))
    }

    fn config(&self, participant: &str) -> (ParticipantConfig, Opening) {
        let (mode, database) = match self {
            Self::Sqlite(folder) => {
                let path = folder.path().join("bank.sqlite");
                ("reserve", format!("kind = \"sqlite\"\npath = \"{}\"", path.display()))
            }
            Self::Postgres(url) => ("xa", format!("kind = \"postgres\"\nurl = \"{url}\"")),
            Self::Mariadb(url) => ("xa", format!("kind = \"mariadb\"\nurl = \"{url}\"\ncap = 20")),
        };
        let finish = if mode == "xa" { "" } else { FINISH };
        let text = CONFIG.replace("MODE", mode).replace("DATABASE", &database);
        let text = text.replace("PREPARE", if mode == "xa" { "prepare" } else { "reserve" }) + finish;
        let text = text.replace("\"bank\"", &format!("\"{participant}\""));
        let config = ParticipantConfig::parse(&text, std::path::Path::new("bank.toml")).unwrap();
        let opening = config.opening(&self.deployment(), Some("fingerprint".to_string()), false).unwrap();
        (config, opening)
    }

    /// Gids are one list for a whole server, whatever the database.
    fn deployment(&self) -> suture_contract::ids::Deployment {
        match self {
            Self::Sqlite(_) => deployment(),
            Self::Postgres(_) | Self::Mariadb(_) => format!("b{}", std::process::id()).parse().unwrap(),
        }
    }

    async fn participant(&self) -> OpenedResource {
        let (config, mut opening) = self.config("bank");
        opening.schema = Some(SCHEMA.to_string());
        OpenedResource::open(&config, opening).await.unwrap()
    }

    async fn books(&self) -> Result<Books, OpenError> {
        let (config, opening) = self.config("bank");
        Books::open(&config, &opening).await
    }

    async fn execute(&self, sql: &str) {
        match self {
            Self::Sqlite(folder) => {
                let file = rusqlite::Connection::open(folder.path().join("bank.sqlite")).unwrap();
                file.execute_batch(sql).unwrap();
            }
            Self::Postgres(url) => {
                let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                client.batch_execute(sql).await.unwrap();
            }
            Self::Mariadb(url) => {
                let mut connection = mysql_async::Conn::from_url(url).await.unwrap();
                connection.query_iter(sql).await.unwrap().drop_result().await.unwrap();
            }
        }
    }

    /// Not in `Drop`, which cannot wait. A test that failed leaves its database for whoever looks into it.
    async fn drop_database(&self) {
        let name = format!("books_{}", std::process::id());
        match self {
            Self::Sqlite(_) => {}
            Self::Postgres(_) => {
                Self::Postgres(shared("SUTURE_TEST_POSTGRES"))
                    .execute(&format!("drop database {name} with (force)"))
                    .await;
            }
            Self::Mariadb(_) => self.execute(&format!("drop database {name}")).await,
        }
    }

    /// Prepares a branch that is none of ours.
    async fn prepare_foreign(&self) {
        match self {
            Self::Sqlite(_) => {}
            Self::Postgres(_) => {
                self.execute("begin; insert into item values ('f', 'f'); prepare transaction 'somebody else''s'").await;
            }
            Self::Mariadb(_) => {
                self.execute(
                    "xa start 'theirs'; insert into item values ('f', 'f'); xa end 'theirs'; xa prepare 'theirs'",
                )
                .await;
            }
        }
    }

    async fn drop_foreign(&self) {
        match self {
            Self::Sqlite(_) => {}
            Self::Postgres(_) => self.execute("rollback prepared 'somebody else''s'").await,
            Self::Mariadb(_) => self.execute("xa rollback 'theirs'").await,
        }
    }
}

fn put(n: u64) -> Arc<Prepare> {
    prepare(n, &format!("item:{n}:1"), 1, &format!(r#"{{"id":"{n}"}}"#))
}

#[tokio::test]
async fn the_books_of_sqlite_are_read() {
    let db = Db::Sqlite(tempfile::tempdir().unwrap());
    db.execute("create table item (id text primary key, txid text)").await;
    books_are_read(&db).await;
    // Nobody else has the file open any more.
    assert_eq!(db.books().await.unwrap().page(None).await.unwrap().len(), 4);
}

#[tokio::test]
async fn the_books_of_postgres_are_read() {
    books_are_read(&Db::postgres().await).await;
}

#[tokio::test]
async fn the_books_of_mariadb_are_read() {
    books_are_read(&Db::mariadb(shared("SUTURE_TEST_MARIADB")).await).await;
}

#[tokio::test]
async fn the_books_of_mysql_are_read() {
    let Ok(server) = std::env::var("SUTURE_TEST_MYSQL") else { return };
    books_are_read(&Db::mariadb(server).await).await;
}

async fn books_are_read(db: &Db) {
    assert_eq!(db.books().await.err(), Some(OpenError::NoLedger));
    let bank = db.participant().await;
    let is_xa = !matches!(db, Db::Sqlite(_));
    for n in 1..=3 {
        assert_eq!(prepare_one(&bank, &put(n)).await, yes());
    }
    commit(&bank, &put(1)).await.unwrap();
    abort(&bank, &put(2)).await.unwrap();
    // Refused: the item is there already.
    let refused = prepare(4, "other:1:1", 1, r#"{"id":"1"}"#);
    assert_ne!(prepare_one(&bank, &refused).await, yes());
    let letters: LogLetters = "k3f9q".parse().unwrap();
    let position = Position { topic: "t.decisions".to_string(), letters, shard: Shard(3), next_offset: 17 };
    bank.store_positions(vec![position.clone()], vec![]).await.unwrap();
    db.execute("insert into suture_marks values ('k3f9q', 3, 1)").await;
    db.prepare_foreign().await;

    let mut books = db.books().await.unwrap();
    assert_eq!(books.ledger_id(), bank.ledger_id());
    assert_ne!(books.version(), "?");
    assert_eq!(books.positions().await.unwrap(), [position]);
    assert_eq!(books.marks().await.unwrap(), [Mark { letters, shard: Shard(3), next_offset: 1 }]);
    let mut states = vec![(1, State::Committed), (2, State::Aborted), (4, State::Refused)];
    let in_doubt = books.in_doubt().await.unwrap();
    let listed = books.listed().await.unwrap();
    if is_xa {
        let [ListedBranch { gid, .. }] = listed.ours.as_slice() else { panic!("one branch: {listed:?}") };
        let (_, opening) = db.config("bank");
        assert_eq!(*gid, Gid::new(txid(3), &opening.owner, &put(3).hash));
        assert!(listed.foreign >= 1 && in_doubt.is_empty());
    } else {
        states.push((3, State::InDoubt));
        assert!(listed.ours.is_empty() && in_doubt.len() == 1 && in_doubt[0].txid == txid(3));
    }
    states.sort_unstable();
    let of_rows = |rows: Vec<suture_participants::books::BookRow>| {
        let mut found = Vec::from_iter(rows.iter().map(|row| (row.txid.offset, row.state)));
        found.sort_unstable();
        assert!(rows.iter().all(|row| row.age < Duration::from_secs(600)));
        found
    };
    let all = books.page(None).await.unwrap();
    let last = all.last().unwrap().txid;
    assert_eq!(of_rows(all), states);
    assert!(books.page(Some(&last)).await.unwrap().is_empty());
    let asked: Vec<_> = (0..9).map(txid).collect();
    assert_eq!(of_rows(books.rows(&asked).await.unwrap()), states);
    assert_eq!(of_rows(books.rows(&[txid(2), txid(9)]).await.unwrap()), [(2, State::Aborted)]);

    let (config, opening) = db.config("another");
    let refused = Books::open(&config, &opening).await.err();
    assert!(matches!(refused, Some(OpenError::Foreign { what: "participant", .. })), "{refused:?}");

    db.drop_foreign().await;
    what_is_in_doubt_is_left_over(&bank, &mut books).await;
    what_is_past_waits_for_nobody(db, &bank, &mut books).await;
    a_row_that_is_gone_is_written_by_a_persons_word(db, &bank, &mut books).await;
    drop((bank, books));
    db.drop_database().await;
}

/// The list tells it, or the row.
async fn what_is_in_doubt_is_left_over(bank: &OpenedResource, books: &mut Books) {
    let (topic, letters) = ("t.decisions".to_string(), "k3f9q".parse().unwrap());
    let place = Place { topic, letters, shard: Shard(3), offset: 16 };
    let commit = decision(&put(3), Verdict::Commit);
    let looked = Forgotten::look(books, &"bank".parse().unwrap(), &commit, &place).await.unwrap();
    assert_eq!(looked.map(drop), Err(Remembered::LeftOver));
    abort(bank, &put(3)).await.unwrap();
    assert!(books.listed().await.unwrap().ours.is_empty());
}

async fn what_is_past_waits_for_nobody(db: &Db, bank: &OpenedResource, books: &mut Books) {
    bank.note(vec![met(IncidentKind::Lost, &put(7), Verdict::Commit)]).await.unwrap();
    let row = format!(
        "insert into suture_ledger (txid, state, hash, business_key, attempt, live_key)
         values ('{}', 'committed', '{}', 'item:7:1', 1, 'item:7:1')",
        txid(7),
        put(7).hash
    );
    for (change, next_offset, is_open) in [
        ("", 77, true),
        // By hand, which settles nothing.
        ("", 78, true),
        (row.as_str(), 78, false),
        ("update suture_ledger set state = 'aborted', live_key = null where txid = 'k3f9q-3-7'", 78, true),
        ("delete from suture_ledger where txid = 'k3f9q-3-7'", 78, true),
        ("update suture_marks set next_offset = 8", 78, false),
        ("update suture_marks set next_offset = 1", 78, true),
    ] {
        if !change.is_empty() {
            db.execute(change).await;
        }
        let (topic, letters) = ("suture.decisions".to_string(), "abcde".parse().unwrap());
        bank.store_positions(vec![Position { topic, letters, shard: Shard(3), next_offset }], vec![]).await.unwrap();
        let [listed] = &incidents::list(bank).await.unwrap()[..] else { panic!("one") };
        let [read] = &books.incidents().await.unwrap()[..] else { panic!("one") };
        assert_eq!((listed.is_open(), read.is_open()), (is_open, is_open), "{next_offset}, {change}");
        assert_eq!((&listed.entry, &listed.incident), (&read.entry, &read.incident));
        assert!((listed.since - read.since).abs() < time::Duration::minutes(10));
    }
}

async fn a_row_that_is_gone_is_written_by_a_persons_word(db: &Db, bank: &OpenedResource, books: &mut Books) {
    let participant = "bank".parse().unwrap();
    let (committed, aborted) = (decision(&put(1), Verdict::Commit), decision(&put(2), Verdict::Abort));
    let place = |offset| {
        let (topic, letters) = ("t.decisions".to_string(), "k3f9q".parse().unwrap());
        Place { topic, letters, shard: Shard(3), offset }
    };
    let mut remembered = async |decision, offset| {
        Forgotten::look(books, &participant, decision, &place(offset)).await.unwrap().map(drop)
    };
    assert_eq!(remembered(&committed, 16).await, Err(Remembered::Row(State::Committed)));
    db.execute("delete from suture_ledger where txid = 'k3f9q-3-1'").await;
    assert_eq!(remembered(&aborted, 16).await, Err(Remembered::Abort));
    assert_eq!(remembered(&committed, 17).await, Err(Remembered::NotMet(place(17))), "the position is there");
    db.execute("update suture_marks set next_offset = 2").await;
    assert_eq!(remembered(&committed, 16).await, Err(Remembered::Purged));
    db.execute("update suture_marks set next_offset = 1").await;
    db.execute("insert into suture_meta values ('restoring', 'by hand')").await;
    assert_eq!(remembered(&committed, 16).await, Err(Remembered::Restoring));
    db.execute("delete from suture_meta where name = 'restoring'").await;

    let nothing = say(bank, &put(1), Settled::Committed).await;
    assert!(matches!(nothing, Err(Refused::NothingThere(_))), "{nothing:?}");
    let forgotten = Forgotten::look(books, &participant, &committed, &place(16)).await.unwrap().unwrap();
    let said = Said::new("maria", "its effect is there").unwrap();
    assert_eq!(resolve_forgotten(bank, &forgotten, Settled::Committed, said).await, Ok(Taken::Whole));
    assert_eq!(bank.states(vec![txid(1)]).await.unwrap()[&txid(1)], State::Committed);
    assert_eq!(commit(bank, &put(1)).await, Ok(Effect::Repeated));
    let listed = incidents::list(bank).await.unwrap();
    let listed = listed.iter().find(|listed| listed.incident.txid == Some(txid(1))).unwrap();
    assert_eq!((listed.entry.as_str(), listed.is_open()), ("resolved:k3f9q-3-1", false));
    let (settled, _) = listed.settled.as_ref().unwrap();
    assert_eq!((settled.what, settled.settled), (IncidentKind::Resolved, Some(Settled::Committed)));
    assert_eq!(settled.origin.as_ref().unwrap().to_string(), "t.decisions/3/16");
    // A row that says otherwise is no better than none.
    let refused = prepare(4, "other:1:1", 1, r#"{"id":"1"}"#);
    for (branch, before, settled) in
        [(put(2), State::Aborted, Settled::Committed), (refused, State::Refused, Settled::Abandoned)]
    {
        assert_eq!(bank.states(vec![branch.txid]).await.unwrap()[&branch.txid], before);
        let looked =
            Forgotten::look(books, &participant, &decision(&branch, Verdict::Commit), &place(16)).await.unwrap();
        let said = Said::new("maria", "its position was moved").unwrap();
        assert_eq!(resolve_forgotten(bank, &looked.unwrap(), settled, said).await, Ok(Taken::Whole));
        let looked =
            Forgotten::look(books, &participant, &decision(&branch, Verdict::Commit), &place(16)).await.unwrap();
        let row = if settled == Settled::Committed { State::Committed } else { State::Abandoned };
        assert_eq!(looked.map(drop), Err(Remembered::Row(row)));
    }
    let again = say(bank, &put(1), Settled::Abandoned).await;
    assert!(matches!(again, Err(Refused::Already { ref who, .. }) if who == "maria"), "{again:?}");
}
