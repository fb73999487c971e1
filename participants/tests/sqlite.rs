//! SQLite in mode reserve: the shared suite, and what is SQLite's own.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::*;
use rusqlite::Connection;
use suture_contract::messages::Verdict;
use suture_participants::config::{Database, ParticipantConfig};
use suture_participants::inspect::inspect;
use suture_participants::resource::{Effect, Fault, OpenError, Opening, Prepared, Resource, Stored};
use suture_participants::sqlite::SqliteResource;

const CONFIG: &str = r#"
name = "bank"
mode = "reserve"
[database]
kind = "sqlite"
path = "bank.sqlite"

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
sql = "insert into item (id, account, amount, txid) values (:id, :account, :amount, :txid)"
rows = 1
unique = "DUPLICATE"
[[operation.put.confirm]]
sql = "update account set held = held - i.amount from item i where i.txid = :txid and name = i.account"
rows = 1
[[operation.put.confirm]]
sql = "update item set done = 1 where txid = :txid"
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
create table if not exists account (name text primary key, balance integer not null check (balance >= 0), held integer not null default 0) strict;
create table if not exists parent (id text primary key) strict;
create table if not exists item (
    id text primary key, account text not null, amount integer not null, done integer not null default 0, txid text not null,
    parent text references parent deferrable initially deferred,
    constraint positive check (amount > 0)
) strict;
insert into account (name, balance) values ('a', 1000), ('y', 50), ('z', 50) on conflict do nothing;
";

/// In a folder that ends with it, or that is another process's.
struct File(PathBuf, #[expect(dead_code, reason = "ends with this value")] Option<tempfile::TempDir>);

impl File {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self(folder.path().to_path_buf(), Some(folder))
    }

    fn connection(&self) -> Connection {
        Connection::open(self.0.join("bank.sqlite")).unwrap()
    }

    fn config(&self, text: &str) -> (suture_participants::config::SqliteSettings, Opening) {
        let config = ParticipantConfig::parse(text, &self.0.join("bank.toml")).unwrap();
        let mut opening = config.opening(&deployment(), Some("fingerprint".to_string()), false).unwrap();
        opening.schema = Some(SCHEMA.to_string());
        let Database::Sqlite(settings) = config.database else { panic!("another kind") };
        (settings, opening)
    }

    async fn open_with(&self, changes: &[(&str, &str)]) -> Result<SqliteResource, OpenError> {
        let (settings, opening) =
            self.config(&changes.iter().fold(CONFIG.to_string(), |text, (a, b)| text.replace(a, b)));
        SqliteResource::open(settings, opening).await
    }

    async fn try_open(&self, change: impl FnOnce(&mut Opening)) -> Result<SqliteResource, OpenError> {
        let (settings, mut opening) = self.config(CONFIG);
        change(&mut opening);
        SqliteResource::open(settings, opening).await
    }
}

impl Bench for File {
    type R = SqliteResource;

    async fn open(&self) -> SqliteResource {
        self.try_open(|_| ()).await.unwrap()
    }

    async fn number(&self, sql: &str) -> i64 {
        self.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    async fn text(&self, sql: &str) -> String {
        self.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

#[tokio::test]
async fn sqlite_conforms() {
    // A check that is not the account's own answers `statement_failed` in the suite.
    let file = File::new();
    conforms(&file).await;
    a_long_batch_loses_only_those_at_fault(&file).await;
}

/// E1: the settings belong to the connection and are read back.
#[tokio::test]
async fn the_file_is_in_wal_and_a_file_that_cannot_be_is_refused() {
    let file = File::new();
    drop(file.open().await);
    let mode: String = file.connection().query_row("pragma journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");

    let (mut settings, opening) = file.config(CONFIG);
    settings.path = Path::new(":memory:").to_path_buf();
    let refused = SqliteResource::open(settings, opening).await.err().unwrap();
    assert!(matches!(refused, OpenError::Need { setting: "journal_mode", .. }), "{refused}");
}

/// E2: another process writes between our batches, and even while we wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn another_writer_is_waited_for_or_reported() {
    let file = File::new();
    let (mut settings, opening) = file.config(CONFIG);
    settings.busy_timeout = std::time::Duration::from_millis(50);
    let bank = SqliteResource::open(settings, opening).await.unwrap();
    let other = file.connection();
    other.execute_batch("begin immediate; insert into account values ('other', 0, 0)").unwrap();
    let refused = bank.prepare(vec![put(1, "key-1", "i1", "a", 1)]).await.unwrap_err();
    assert_eq!(refused.code, "SQLite 5");
    other.execute_batch("commit").unwrap();
    assert_eq!(prepare_one(&bank, &put(1, "key-1", "i1", "a", 1)).await, yes(), "the same, asked again");
}

/// E4: a full disk rolls back the whole transaction; nothing of the batch may stay, and nothing is voted.
#[tokio::test]
async fn a_full_disk_loses_the_batch_and_nothing_else() {
    let file = File::new();
    // The limit belongs to the connection; the schema script runs on ours.
    let limited = |opening: &mut Opening, pages: u32| {
        opening.schema = Some(format!("{SCHEMA} pragma max_page_count = {pages};"));
    };
    drop(file.open().await);
    let pages: u32 = file.connection().query_row("pragma page_count", [], |row| row.get(0)).unwrap();
    let bank = file.try_open(|opening| limited(opening, pages + 2)).await.unwrap();
    let long = "x".repeat(3000);
    let batch: Vec<_> = (0..20).map(|n| put(n, &format!("key-{n}"), &format!("{long}{n}"), "a", 1)).collect();
    assert_eq!(bank.prepare(batch.clone()).await.unwrap_err().code, "SQLite 13");
    assert_eq!(file.number("select count(*) from item").await, 0);
    assert_eq!(file.number("select count(*) from suture_ledger").await, 0);
    assert_eq!(file.number("select balance from account where name = 'a'").await, 1000);
    drop(bank);
    let bank = file.open().await;
    assert!(bank.prepare(batch).await.unwrap().iter().all(|p| *p == yes()), "with room again");
}

/// E4, E6: what breaks the transaction itself is refused alone.
#[tokio::test]
async fn a_branch_that_takes_the_transaction_with_it_is_refused_alone() {
    let deferred = CONFIG.replace(
        "insert into item (id, account, amount, txid) values (:id, :account, :amount, :txid)",
        "insert into item (id, account, amount, txid, parent) values (:id, :account, :amount, :txid, case when :id = 'bad' then 'nobody' end)",
    );
    let rolling_back = CONFIG.replace(
        "insert into item (id, account, amount, txid) values",
        "insert or rollback into item (id, account, amount, txid) values",
    );
    for (text, bad, code_of_bad) in [
        (deferred, put(2, "key-2", "bad", "a", 1), "statement_failed"),
        (rolling_back, put(2, "key-2", "i0", "a", 1), "DUPLICATE"),
    ] {
        let file = File::new();
        let (settings, opening) = file.config(&text);
        let bank = SqliteResource::open(settings, opening).await.unwrap();
        assert_eq!(prepare_one(&bank, &put(0, "key-0", "i0", "a", 1)).await, yes());
        let batch = vec![put(1, "key-1", "i1", "a", 1), bad.clone(), put(3, "key-3", "i3", "a", 1)];
        let prepared = bank.prepare(batch.clone()).await.unwrap();
        assert_eq!([&prepared[0], &prepared[2]], [&yes(), &yes()]);
        assert_eq!(code(&prepared[1]), code_of_bad);
        assert_eq!(bank.in_doubt().await.unwrap().len(), 3, "every yes was durable");
        assert_eq!(bank.prepare(batch).await.unwrap(), prepared, "and is the stored one");
        assert_eq!(file.number("select count(*) from item").await, 3);
        assert_eq!(file.number("select held from account where name = 'a'").await, 3);
    }
}

/// R15: what reserve promised cannot be confirmed any more.
#[tokio::test]
async fn a_confirm_that_fails_stops_and_changes_nothing() {
    let file = File::new();
    let bank = file.open().await;
    let (broken, sound) = (put(1, "key-1", "i1", "a", 1), put(2, "key-2", "i2", "a", 1));
    bank.prepare(vec![broken.clone(), sound.clone()]).await.unwrap();
    file.connection().execute_batch("update account set name = 'hidden' where name = 'a'").unwrap();
    let place = "operation.put.confirm[0]".to_string();
    assert_eq!(commit(&bank, &broken).await, Err(Fault::Finish { place, code: "0 rows".to_string() }));
    assert_eq!(bank.in_doubt().await.unwrap().len(), 2);
    file.connection().execute_batch("update account set name = 'a' where name = 'hidden'").unwrap();
    let batch = [&broken, &sound].map(|p| decision(p, Verdict::Commit)).to_vec();
    assert_eq!(bank.commit(batch).await.unwrap(), [Ok(Effect::Finished), Ok(Effect::Finished)]);
}

/// R11: however long no decision comes, and whatever else happens meanwhile.
#[tokio::test]
async fn a_yes_stands_until_its_decision_comes() {
    let file = File::new();
    let bank = file.open().await;
    let (old, other) = (put(1, "key-1", "i1", "a", 1), put(2, "key-2", "i2", "y", 1));
    assert_eq!(prepare_one(&bank, &old).await, yes());
    file.connection().execute_batch("update suture_ledger set changed_at = changed_at - 10 * 365 * 86400").unwrap();
    drop(bank);
    let bank = file.open().await;
    assert_eq!(bank.in_doubt().await.unwrap().len(), 1);
    assert_eq!(prepare_one(&bank, &other).await, yes());
    assert_eq!(abort(&bank, &other).await, Ok(Effect::Finished));
    assert_eq!(commit(&bank, &old).await, Ok(Effect::Finished));
}

#[tokio::test]
async fn a_ledger_knows_whose_it_is() {
    let file = File::new();
    let bank = file.open().await;
    let id = bank.ledger_id();
    assert_eq!(id.len(), 16);
    drop(bank);
    assert_eq!(file.open().await.ledger_id(), id);

    let what = |result: Result<SqliteResource, OpenError>| match result {
        Err(OpenError::Foreign { what, .. }) => what,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened"),
    };
    let other_deployment = file.try_open(|o| o.owner.deployment = "other".parse().unwrap()).await;
    assert_eq!(what(other_deployment), "deployment");
    assert_eq!(what(file.try_open(|o| o.owner.participant = "other".parse().unwrap()).await), "participant");
    assert_eq!(what(file.try_open(|o| o.identity_fingerprint = Some("other".to_string())).await), "identity_key");
    assert!(file.try_open(|o| o.identity_fingerprint = None).await.is_ok());
}

#[tokio::test]
async fn statements_are_checked_against_the_tables_at_start() {
    let file = File::new();
    let (settings, opening) = file.config(&CONFIG.replace("update item set done = 1", "update item set finished = 1"));
    let refused = SqliteResource::open(settings, opening).await.err().unwrap();
    assert!(matches!(&refused, OpenError::Statement { place, .. } if place == "operation.put.confirm[1]"), "{refused}");
}

#[tokio::test]
async fn an_operation_stays_as_it_is_while_a_branch_of_it_is_in_doubt() {
    let file = File::new();
    what_is_in_doubt_is_finished_as_it_was_begun(&file, async |changes| file.open_with(changes).await).await;

    // The doctor says so before it is started.
    let branch = put(1, "key-1", "i1", "a", 1);
    assert_eq!(prepare_one(&file.open().await, &branch).await, yes());
    let text = CONFIG.replace("set done = 1", "set done = 1, account = account");
    let config = ParticipantConfig::parse(&text, &file.0.join("bank.toml")).unwrap();
    let seen = inspect(&config, &file.config(&text).1).await.unwrap();
    assert_eq!(seen.ledger.err(), Some(OpenError::ChangedOperation { operation: "put".to_string() }));

    // Who looks after what stands still has no operations, so none of them is in the way.
    let settling = file.try_open(|opening| *opening = opening.clone().without_operations()).await.unwrap();
    assert_eq!(settling.in_doubt().await.unwrap().len(), 1);
    drop(settling);

    // An older build has noted no version: then the name alone is compared.
    file.connection().execute("update suture_ledger set operation = 'put' where state = 'in_doubt'", []).unwrap();
    let changed = file.open_with(&[("set done = 1", "set done = 1, account = account")]).await.unwrap();
    assert_eq!(commit(&changed, &branch).await, Ok(Effect::Finished));
}

/// O7, as docs/operations.md says.
#[tokio::test]
async fn a_participant_is_renamed_when_nothing_is_in_doubt() {
    const DOCUMENT: &str = include_str!("../../docs/operations.md");
    let rename = "update suture_meta set value = 'clinic' where name = 'participant' and value = 'hospital'\n  \
                  and not exists (select 1 from suture_ledger where state = 'in_doubt');\n";
    assert!(DOCUMENT.contains(rename), "{rename}");
    let rename = rename.replace("hospital", "bank");
    let file = File::new();
    let renamed = async || file.try_open(|opening| opening.owner.participant = "clinic".parse().unwrap()).await;
    let branch = put(1, "key-1", "i1", "a", 1);
    let bank = file.open().await;
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    assert_eq!(file.connection().execute(&rename, []).unwrap(), 0, "in doubt");
    let refused = renamed().await.err().unwrap();
    assert!(matches!(refused, OpenError::Foreign { what: "participant", .. }), "{refused}");
    assert_eq!(commit(&bank, &branch).await, Ok(Effect::Finished));
    drop(bank);
    assert_eq!(file.connection().execute(&rename, []).unwrap(), 1);
    let clinic = renamed().await.unwrap();
    assert_eq!(code(&prepare_one(&clinic, &put(2, "key-1", "i1", "a", 1)).await), "duplicate");
    assert!(file.try_open(|_| ()).await.is_err(), "under the old name");
}

/// E8, as far as a test without power can: what was answered is there after the file is opened again without a close.
#[tokio::test]
async fn an_answer_survives_the_process() {
    let file = File::new();
    let bank = file.open().await;
    let branch = put(1, "key-1", "i1", "a", 1);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    let copy = File::new();
    for name in ["bank.sqlite", "bank.sqlite-wal"] {
        std::fs::copy(file.0.join(name), copy.0.join(name)).unwrap();
    }
    let bank = copy.open().await;
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    assert_eq!(commit(&bank, &branch).await, Ok(Effect::Finished));
}

#[tokio::test]
async fn no_row_value_leaves_in_an_error() {
    let file = File::new();
    let bank = file.open().await;
    let canary = "canary-4711";
    let branch = put(1, "key-1", canary, "a", 1);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    let twice: Arc<_> = put(2, "key-2", canary, "a", 1);
    let Prepared::Answer(answer) = prepare_one(&bank, &twice).await else { panic!("no answer") };
    assert!(!format!("{answer:?}").contains(canary));
}

/// Whoever puts an older file back while a service runs: SQLite goes on with the old one, which has no name any more.
#[tokio::test]
async fn a_file_that_another_one_was_put_in_the_place_of_takes_no_positions() {
    let file = File::new();
    let bank = file.open().await;
    assert_eq!(bank.store_positions(vec![], vec![]).await, Ok(Stored::All));
    let (path, copy) = (file.0.join("bank.sqlite"), file.0.join("backup"));
    std::fs::copy(&path, &copy).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    assert_eq!(bank.store_positions(vec![], vec![]).await, Ok(Stored::WentBack));
}

/// R1: the process ends at any point of its work.
#[cfg(feature = "failpoints")]
mod crashes {
    use suture_contract::messages::Prepare;
    use suture_participants::points::Place;

    use super::common::crash::{Crashes, at_every_point, ordered};
    use super::common::sends::at_every_send;
    use super::*;

    /// Another process's, or a new one.
    async fn file() -> File {
        let file = match ordered() {
            Some(order) => File(order[0].clone().into(), None),
            None => File::new(),
        };
        drop(file.open().await);
        file
    }

    #[tokio::test]
    async fn a_crash_at_any_point_of_mode_reserve_changes_nothing_in_the_end() {
        at_every_point(&file().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_crash_at_any_send_of_mode_reserve_changes_nothing_in_the_end() {
        at_every_send(&file().await).await;
    }

    impl Crashes for File {
        fn name(&self) -> String {
            self.0.to_str().unwrap().to_string()
        }

        fn places(&self) -> &'static [Place] {
            &[Place::Reserve, Place::Local]
        }

        fn hindrance(&self) -> Option<[&'static str; 2]> {
            let rolling_back =
                "create trigger hinder before update of done on item begin select raise(rollback, ''); end";
            Some([rolling_back, "drop trigger hinder"])
        }

        async fn come_back(&self, _: &Prepare) {
            unreachable!("nothing is prepared in mode reserve");
        }

        async fn execute(&self, sql: &str) {
            self.connection().execute_batch(sql).unwrap();
        }
    }
}
