//! SQLite in mode reserve: one writer connection in a thread of its own.
//!
//! - Settings are set and read back at every open, because they belong to the connection: WAL, `synchronous=FULL`,
//!   foreign keys, a busy timeout. The version must be one without the WAL-reset race.
//! - Every transaction is BEGIN IMMEDIATE: one that reads first and writes later fails at once when another process
//!   wrote in between, whatever the timeout.
//! - After every error the connection is asked whether the transaction is still there: a full disk ends all of it, and
//!   what followed would be in autocommit.
//!
//! How batches run stands in `reserve`.
//!
//! Left out: several writers; attached files (in WAL they are not atomic together).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, ToSql, TransactionBehavior, ffi, params};
use serde_json::value::RawValue;
use suture_contract::ids::{Shard, Txid};
use suture_contract::messages::{Decision, Prepare};
use suture_participants_core::branch::State;
use suture_participants_core::doubts::{InDoubt, SeenHash};
use suture_participants_core::marks::{Candidate, Marks, Purge};
use suture_participants_core::operations::{self, Operation, Rows, Seed, Values};
use suture_participants_core::restore::beginning_of_next;
use suture_participants_core::settle::Unsettled;
use suture_participants_core::sql::Dialect;
use suture_participants_core::values::Value;
use time::OffsetDateTime;
use tokio::sync::oneshot;

use crate::books::{self, TextRow};
use crate::config::SqliteSettings;
use crate::ledger::{
    LEDGER_ID, LedgerName, OPERATIONS_IN_DOUBT, OnNo, RESTORING, StoredKeyRow, StoredRow, all_steps, bind_seed,
    check_marks, check_operations, states_of, went_back,
};
use crate::needs;
use crate::points::{Act, around};
use crate::purge::purge_page;
use crate::reserve::{self, Session, Work};
use crate::resolve::resolve;
use crate::resource::{
    Batching, Decided, Entry, Noted, OpenError, Opening, Page, Position, Prepared, Purged, Redone, Resolution,
    Resource, SeedError, Stored, Unavailable, Which,
};
use crate::tables::{self, READ_MARKS, missing_marks};
use crate::trial::{self, Tried, Wish};
use crate::trouble::{Blame, Landed, Trouble};

/// A participant's SQLite file.
pub struct SqliteResource {
    jobs: mpsc::Sender<Job>,
    ledger: Arc<LedgerName>,
}

/// Work for the thread that owns the connection.
type Job = Box<dyn FnOnce(&mut Ledger) + Send>;

impl SqliteResource {
    /// Opens the file, creates what is missing, and refuses what is unsafe or somebody else's.
    pub async fn open(settings: SqliteSettings, opening: Opening) -> Result<Self, OpenError> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (opened, wait) = oneshot::channel();
        let spawned = std::thread::Builder::new().name("suture-sqlite".to_string()).spawn(move || {
            let mut ledger = match Ledger::open(&settings, opening) {
                Ok(ledger) => ledger,
                Err(error) => return drop(opened.send(Err(error))),
            };
            // Whoever opened it is gone if it does not listen; the channel closes then, and so does the file.
            drop(opened.send(Ok(Arc::clone(&ledger.name))));
            while let Ok(job) = inbox.recv() {
                job(&mut ledger);
            }
        });
        if spawned.is_err() {
            return Err(thread_gone().into());
        }
        let ledger = wait.await.map_err(|_| thread_gone())??;
        Ok(Self { jobs, ledger })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Ledger) -> Result<T, Unavailable> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let (done, wait) = oneshot::channel();
        let job: Job = Box::new(move |ledger| drop(done.send(work(ledger))));
        self.jobs.send(job).map_err(|_| thread_gone())?;
        wait.await.map_err(|_| thread_gone())?
    }
}

/// What never waits, on a thread of its own that may block.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    match std::pin::pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a SQLite session has nothing to wait for"),
    }
}

fn thread_gone() -> Unavailable {
    Unavailable::new("handing over work", "thread ended")
}

impl Resource for SqliteResource {
    fn ledger_id(&self) -> String {
        self.ledger.get()
    }

    /// One thread, and no waiting for locks.
    fn batching(&self) -> Batching {
        Batching::RESERVE
    }

    async fn prepare(&self, batch: Vec<Arc<Prepare>>) -> Result<Vec<Prepared>, Unavailable> {
        self.run(move |ledger| at_once(ledger.prepare(&batch, OnNo::Row))).await
    }

    async fn prepare_again(&self, batch: Vec<Arc<Prepare>>) -> Result<Vec<Prepared>, Unavailable> {
        self.run(move |ledger| at_once(ledger.prepare(&batch, OnNo::Nothing))).await
    }

    async fn commit(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        self.run(move |ledger| at_once(ledger.decide(&batch))).await
    }

    async fn abort(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        self.run(move |ledger| at_once(ledger.decide(&batch))).await
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        self.run(|ledger| ledger.in_doubt()).await
    }

    async fn purge(&self, page: Page) -> Result<Purged, Unavailable> {
        let in_doubt = around(Act::LookBeforePurge, self.in_doubt()).await?;
        self.run(move |ledger| at_once(purge_page(ledger, &page, &in_doubt))).await
    }

    async fn load_positions(&self, topic: String) -> Result<Vec<Position>, Unavailable> {
        self.run(move |ledger| ledger.load_positions(&topic)).await
    }

    async fn store_positions(&self, positions: Vec<Position>, seen: Vec<Position>) -> Result<Stored, Unavailable> {
        self.run(move |ledger| ledger.store_positions(&positions, &seen)).await
    }

    async fn redo(&self, batch: Vec<Arc<Prepare>>) -> Result<Option<Vec<Redone>>, Unavailable> {
        self.run(move |ledger| at_once(ledger.redo(&batch))).await
    }

    async fn is_restoring(&self) -> Result<bool, Unavailable> {
        self.run(|ledger| ledger.is_restoring()).await
    }

    async fn begin_restore(&self) -> Result<(), Unavailable> {
        self.run(|ledger| ledger.begin_restore()).await
    }

    async fn end_restore(&self) -> Result<(), Unavailable> {
        self.run(|ledger| ledger.end_restore()).await
    }

    async fn states(&self, txids: Vec<Txid>) -> Result<BTreeMap<Txid, State>, Unavailable> {
        self.run(move |ledger| {
            let rows = at_once(ledger.rows(&txids, false));
            states_of(rows.map_err(|trouble| trouble.unavailable("looking at the ledger"))?)
        })
        .await
    }

    async fn marks(&self) -> Result<Marks, Unavailable> {
        self.run(|ledger| {
            at_once(Session::marks(ledger)).map_err(|trouble| trouble.unavailable("looking at the ledger"))
        })
        .await
    }

    async fn note(&self, entries: Vec<Entry>) -> Result<(), Unavailable> {
        self.run(move |ledger| ledger.note(&entries)).await
    }

    async fn noted(&self, which: Which) -> Result<Vec<Noted>, Unavailable> {
        self.run(move |ledger| ledger.noted(which)).await
    }

    async fn mark_told(&self, entries: Vec<String>) -> Result<(), Unavailable> {
        self.run(move |ledger| ledger.mark_told(&entries)).await
    }

    async fn resolve(&self, resolution: Resolution) -> Result<Result<(), Unsettled>, Unavailable> {
        self.run(move |ledger| at_once(resolve(ledger, &resolution))).await
    }

    async fn seed(&self, name: String, payloads: Vec<Box<RawValue>>) -> Result<u64, SeedError> {
        self.run(move |ledger| Ok(ledger.seed(&name, &payloads))).await?
    }
}

/// The connection, and what runs on it. Lives in its own thread.
struct Ledger {
    connection: Connection,
    /// The savepoint of a branch that stays; gone with its transaction.
    has_savepoint: bool,
    path: PathBuf,
    /// Which file that was when it was opened.
    file: Option<FileId>,
    name: Arc<LedgerName>,
    operations: Arc<BTreeMap<String, Operation>>,
    seeds: BTreeMap<String, Seed>,
}

impl Ledger {
    fn open(settings: &SqliteSettings, opening: Opening) -> Result<Self, OpenError> {
        let connection = connect(&settings.path, settings.busy_timeout, opening.schema.is_some())?;
        let (path, file) = (settings.path.clone(), file_id(&settings.path));
        let creating = |error: rusqlite::Error| unavailable("creating the ledger", &error);
        let is_there = connection.prepare(DIALECT.is_there).and_then(|mut look| look.exists([])).map_err(creating)?;
        if is_there {
            check_marks(&read_meta(&connection)?, &opening)?;
        }
        if let Some(schema) = &opening.schema {
            let failed = |error: rusqlite::Error| OpenError::Schema { code: number(&error) };
            connection.execute_batch(schema).map_err(failed)?;
            if !connection.is_autocommit() {
                return Err(OpenError::Schema { code: "an open transaction at its end".to_string() });
            }
        }
        for step in all_steps(&opening.operations, &opening.seeds) {
            check_statement(&connection, step)?;
        }
        // The last of all, so that a file that is refused is left as it was.
        set(
            &connection,
            ("journal_mode", "wal", "wal", "put the file on a local disk that can hold a write-ahead log"),
        )?;
        if !is_there {
            connection.execute_batch(&format!("begin immediate; {} commit;", tables::SQLITE)).map_err(creating)?;
        }
        let name = Arc::new(LedgerName::new(check_meta(&connection, &opening)?));
        let Opening { operations, seeds, .. } = opening;
        connection.set_prepared_statement_cache_capacity(256);
        let ledger =
            Self { connection, has_savepoint: false, path, file, name, operations: Arc::new(operations), seeds };
        let noted = ledger.query(OPERATIONS_IN_DOUBT, &[], |row| Ok(vec![row.get::<_, Option<String>>(0)?]));
        check_operations(&ledger.operations, noted.map_err(|error| unavailable("reading the ledger", &error))?)?;
        Ok(ledger)
    }

    async fn prepare(&mut self, batch: &[Arc<Prepare>], on_no: OnNo) -> Result<Vec<Prepared>, Unavailable> {
        let operations = Arc::clone(&self.operations);
        reserve::prepare(self, &operations, batch, on_no).await
    }

    async fn decide(&mut self, batch: &[Arc<Decision>]) -> Result<Vec<Decided>, Unavailable> {
        let operations = Arc::clone(&self.operations);
        reserve::decide(self, &operations, batch).await
    }

    async fn redo(&mut self, batch: &[Arc<Prepare>]) -> Result<Option<Vec<Redone>>, Unavailable> {
        let operations = Arc::clone(&self.operations);
        reserve::redo(self, &operations, batch).await
    }

    // ---- what the service asks besides -------------------------------------------------------------------------------

    fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let sql = "select txid, unixepoch() - changed_at, hash from suture_ledger where state = 'in_doubt'";
        let rows =
            self.query(sql, &[], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?)));
        let read = |(txid, seconds, hash): (String, i64, String)| {
            let age = u64::try_from(seconds).ok().map(Duration::from_secs);
            Some(InDoubt { txid: txid.parse().ok()?, age, hash: SeenHash::Whole(hash.parse().ok()?) })
        };
        let rows = rows.map_err(|error| unavailable("reading the ledger", &error))?;
        rows.into_iter().map(|row| read(row).ok_or_else(|| broken("row"))).collect()
    }

    fn load_positions(&self, topic: &str) -> Result<Vec<Position>, Unavailable> {
        let sql = "select letters, shard, next_offset from suture_positions where topic = ?1";
        let rows = self.query(sql, params![topic], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        });
        let read = |(letters, shard, next_offset): (String, i64, i64)| {
            Some(Position {
                topic: topic.to_string(),
                letters: letters.parse().ok()?,
                shard: Shard(u16::try_from(shard).ok()?),
                next_offset: u64::try_from(next_offset).ok()?,
            })
        };
        let rows = rows.map_err(|error| unavailable("reading positions", &error))?;
        rows.into_iter().map(|row| read(row).ok_or_else(|| broken("position"))).collect()
    }

    fn store_positions(&mut self, positions: &[Position], seen: &[Position]) -> Result<Stored, Unavailable> {
        let failed = |error: rusqlite::Error| unavailable("storing positions", &error);
        let stored = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let name = read_mark(&stored, LEDGER_ID).map_err(failed)?;
        let mut there = Vec::with_capacity(seen.len());
        for Position { topic, letters, shard, .. } in seen {
            let sql = "select next_offset from suture_positions where topic = ?1 and letters = ?2 and shard = ?3";
            let found = stored.prepare_cached(sql).and_then(|mut look| {
                look.query_row(params![topic, letters.as_str(), shard.0], |row| row.get::<_, i64>(0)).optional()
            });
            let position = |next_offset: i64| Position {
                topic: topic.clone(),
                letters: *letters,
                shard: *shard,
                next_offset: next_offset.cast_unsigned(),
            };
            there.extend(found.map_err(failed)?.map(position));
        }
        // A copy that was put in its place: what is written here is gone with the old file.
        let is_another_file = file_id(&self.path) != self.file;
        if is_another_file || went_back((&self.name.get(), name.as_deref()), seen, there) {
            return Ok(Stored::WentBack);
        }
        for Position { topic, letters, shard, next_offset } in positions {
            stored
                .prepare_cached(
                    "insert into suture_positions (topic, letters, shard, next_offset) values (?1, ?2, ?3, ?4)
                     on conflict do update set next_offset = max(next_offset, excluded.next_offset)",
                )
                .and_then(|mut store| {
                    store.execute(params![topic, letters.as_str(), shard.0, next_offset.cast_signed()])
                })
                .map_err(failed)?;
        }
        stored.commit().map_err(failed)?;
        Ok(Stored::All)
    }

    fn is_restoring(&self) -> Result<bool, Unavailable> {
        let mark = read_mark(&self.connection, RESTORING);
        mark.map(|mark| mark.is_some()).map_err(|error| unavailable("reading the ledger's marks", &error))
    }

    fn begin_restore(&mut self) -> Result<(), Unavailable> {
        let failed = |error: rusqlite::Error| unavailable("renaming the ledger", &error);
        let from = self.name.get();
        let renaming = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let rename = "update suture_meta set value = ?3 || lower(hex(randomblob(4))) where name = ?1 and value = ?2";
        if renaming.execute(rename, params![LEDGER_ID, from, beginning_of_next(&from)]).map_err(failed)? == 1 {
            let mark = "insert into suture_meta values (?1, ?2) on conflict do update set value = excluded.value";
            renaming.execute(mark, params![RESTORING, from]).map_err(failed)?;
        }
        let name = read_mark(&renaming, LEDGER_ID).map_err(failed)?.ok_or_else(|| broken("ledger_id"))?;
        renaming.commit().map_err(failed)?;
        self.name.set(name);
        Ok(())
    }

    fn end_restore(&self) -> Result<(), Unavailable> {
        let ended = self.execute("delete from suture_meta where name = ?1", params![RESTORING]);
        ended.map(drop).map_err(|error| unavailable("ending the restore", &error))
    }

    fn note(&mut self, entries: &[Entry]) -> Result<(), Unavailable> {
        let failed = |error: rusqlite::Error| unavailable("noting", &error);
        let noted = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        for Entry { entry, record_key, record } in entries {
            noted
                .prepare_cached(
                    "insert into suture_audit (entry, record_key, record) values (?1, ?2, ?3) on conflict do nothing",
                )
                .and_then(|mut note| note.execute(params![entry, record_key, record]))
                .map_err(failed)?;
        }
        noted.commit().map_err(failed)
    }

    fn noted(&self, which: Which) -> Result<Vec<Noted>, Unavailable> {
        let sql =
            "select entry, record_key, record, told, changed_at from suture_audit where ?1 or not told order by rowid";
        let rows = self.query(sql, params![which == Which::All], |row| {
            let entry = Entry { entry: row.get(0)?, record_key: row.get(1)?, record: row.get(2)? };
            Ok((entry, row.get::<_, bool>(3)?, row.get::<_, i64>(4)?))
        });
        let read = |(entry, told, since): (Entry, bool, i64)| {
            Some(Noted { entry, told, since: OffsetDateTime::from_unix_timestamp(since).ok()? })
        };
        let rows = rows.map_err(|error| unavailable("reading what was noted", &error))?;
        rows.into_iter().map(|row| read(row).ok_or_else(|| broken("what was noted"))).collect()
    }

    fn mark_told(&mut self, entries: &[String]) -> Result<(), Unavailable> {
        let failed = |error: rusqlite::Error| unavailable("noting", &error);
        let marked = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        for entry in entries {
            marked
                .prepare_cached("update suture_audit set told = 1 where entry = ?1")
                .and_then(|mut mark| mark.execute(params![entry]))
                .map_err(failed)?;
        }
        marked.commit().map_err(failed)
    }

    fn seed(&mut self, name: &str, payloads: &[Box<RawValue>]) -> Result<u64, SeedError> {
        let seed = self.seeds.get(name).ok_or_else(|| SeedError::Unknown(name.to_string()))?;
        let rows = bind_seed(seed, payloads)?;
        let failed = |error: rusqlite::Error| unavailable("seeding", &error);
        let seeded = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let mut inserted = 0;
        for values in &rows {
            for step in &seed.steps {
                let failed = |code| SeedError::Failed { place: step.place.clone(), code };
                let changed = count_rows(&seeded, step, values).map_err(|error| failed(number(&error)))?;
                if step.rows != Rows::Any && step.refuses_rows(changed).is_some() {
                    return Err(failed(format!("{changed} rows")));
                }
                inserted += changed;
            }
        }
        seeded.commit().map_err(|error| match trouble(&error).blame {
            Blame::Database => SeedError::from(failed(error)),
            _ => SeedError::Failed { place: format!("seed.{name}"), code: number(&error) },
        })?;
        Ok(inserted)
    }

    fn query<T>(
        &self,
        sql: &str,
        params: &[&dyn ToSql],
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.connection.prepare_cached(sql)?.query_map(params, read)?.collect()
    }

    fn execute(&self, sql: &str, params: &[&dyn ToSql]) -> rusqlite::Result<u64> {
        self.connection.prepare_cached(sql)?.execute(params).map(|rows| rows as u64)
    }

    fn work(&self, work: Work<'_>) -> rusqlite::Result<u64> {
        match work {
            Work::Step(step, values) => count_rows(&self.connection, step, values),
            Work::Insert(row) => self.execute(
                "insert into suture_ledger (txid, state, hash, business_key, attempt, live_key, operation, code, duplicate_of)
                 values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    row.txid, row.state, row.hash, row.business_key, row.attempt, row.live_key, row.operation, row.code,
                    row.duplicate_of
                ],
            ),
            Work::Remove(txid) => {
                self.execute("delete from suture_ledger where txid = ?1", params![txid.to_string()])
            }
            Work::Note(Entry { entry, record_key, record }) => self.execute(
                "insert into suture_audit (entry, record_key, record) values (?1, ?2, ?3)",
                params![entry, record_key, record],
            ),
            Work::LookAtMark(Txid { log, shard, offset }) => self
                .query(
                    "select 1 from suture_marks where letters = ?1 and shard = ?2 and next_offset > ?3",
                    params![log.as_str(), shard.0, offset.cast_signed()],
                    |_| Ok(()),
                )
                .map(|rows| rows.len() as u64),
            Work::Finish(txid, state) => self.execute(
                "update suture_ledger set state = ?2, changed_at = unixepoch(),
                                          live_key = case when ?2 = 'committed' then live_key end
                 where txid = ?1",
                params![txid.to_string(), state.as_str()],
            ),
        }
    }
}

/// Local transactions. None of this ever waits for anything but the disk.
impl Session for Ledger {
    async fn begin(&mut self) -> Result<(), Trouble> {
        self.roll_back().await?;
        self.has_savepoint = false;
        self.execute("begin immediate", &[]).map(drop).map_err(|error| trouble(&error))
    }

    async fn commit(&mut self) -> Result<(), Trouble> {
        self.execute("commit", &[]).map(drop).map_err(|error| match self.connection.is_autocommit() {
            // A transaction that is gone must not be taken for one whose branches are at fault.
            true => Trouble { blame: Blame::Database, code: number(&error) },
            false => trouble(&error),
        })
    }

    async fn roll_back(&mut self) -> Result<(), Trouble> {
        match self.connection.is_autocommit() {
            true => Ok(()),
            false => self.connection.execute_batch("rollback").map_err(|error| trouble(&error)),
        }
    }

    /// The transaction is the only writer, so it needs no locks.
    async fn rows(&mut self, txids: &[Txid], _: bool) -> Result<BTreeMap<Txid, StoredRow>, Trouble> {
        let sql = "select state, hash, operation, code, duplicate_of from suture_ledger where txid = ?1";
        let mut rows = BTreeMap::new();
        for txid in txids {
            let found = self.query(sql, params![txid.to_string()], |row| {
                Ok(StoredRow {
                    state: row.get(0)?,
                    hash: row.get(1)?,
                    operation: row.get(2)?,
                    code: row.get(3)?,
                    duplicate_of: row.get(4)?,
                })
            });
            rows.extend(found.map_err(|error| trouble(&error))?.pop().map(|row| (*txid, row)));
        }
        Ok(rows)
    }

    async fn rows_of_keys(&mut self, keys: &[&str]) -> Result<Vec<StoredKeyRow>, Trouble> {
        let sql = "select business_key, txid, state, hash, attempt from suture_ledger where business_key = ?1";
        let mut rows = Vec::new();
        for key in keys {
            let found = self.query(sql, params![key], |row| {
                Ok(StoredKeyRow {
                    business_key: row.get(0)?,
                    txid: row.get(1)?,
                    state: row.get(2)?,
                    hash: row.get(3)?,
                    attempt: row.get(4)?,
                })
            });
            rows.append(&mut found.map_err(|error| trouble(&error))?);
        }
        Ok(rows)
    }

    async fn marks(&mut self) -> Result<Marks, Trouble> {
        let rows = self.query("select letters, shard, next_offset from suture_marks", &[], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, u16>(1)?, row.get::<_, i64>(2)?))
        });
        let read = |(letters, shard, mark): (String, u16, i64)| {
            Some(((letters.parse().ok()?, Shard(shard)), u64::try_from(mark).ok()?))
        };
        let broken = || Trouble { blame: Blame::Database, code: "a mark cannot be read".to_string() };
        let rows = rows.map_err(|error| trouble(&error))?;
        rows.into_iter().map(|row| read(row).ok_or_else(broken)).collect::<Result<_, _>>().map(Marks)
    }

    async fn page(
        &mut self,
        after: Option<&Txid>,
        older_than: Duration,
        rows: usize,
    ) -> Result<Vec<Candidate>, Trouble> {
        let sql = "select txid, state <> 'in_doubt' and changed_at <= unixepoch() - ?2
                   from suture_ledger where txid > ?1 order by txid limit ?3";
        let (after, seconds) = (after.map(Txid::to_string).unwrap_or_default(), older_than.as_secs().cast_signed());
        let most = i64::try_from(rows).unwrap_or(i64::MAX);
        let rows = self
            .query(sql, params![after, seconds, most], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)));
        let read = |(txid, is_old): (String, bool)| Some(Candidate { txid: txid.parse().ok()?, is_old });
        let broken = || Trouble { blame: Blame::Database, code: "a txid cannot be read".to_string() };
        rows.map_err(|error| trouble(&error))?.into_iter().map(|row| read(row).ok_or_else(broken)).collect()
    }

    async fn purge(&mut self, purge: &Purge) -> Result<(), Trouble> {
        let failed = |error: rusqlite::Error| trouble(&error);
        for txid in &purge.txids {
            let sql = "delete from suture_ledger where txid = ?1 and state <> 'in_doubt'";
            self.execute(sql, params![txid.to_string()]).map_err(failed)?;
        }
        for ((letters, shard), mark) in &purge.marks.0 {
            let sql = "insert into suture_marks (letters, shard, next_offset) values (?1, ?2, ?3)
                       on conflict do update set next_offset = max(next_offset, excluded.next_offset)";
            self.execute(sql, params![letters.as_str(), shard.0, mark.cast_signed()]).map_err(failed)?;
        }
        Ok(())
    }

    /// One by one: there is no way to spare, and savepoints that lie in one another cost.
    async fn branches(&mut self, works: &[Vec<Work<'_>>]) -> Vec<Landed> {
        works.first().map(|work| self.run_branch(work)).into_iter().collect()
    }

    async fn undo_from(&mut self, _: usize) -> Result<bool, Trouble> {
        self.has_savepoint = false;
        if self.connection.is_autocommit() {
            return Ok(false);
        }
        let undone = self.execute("rollback to branch", &[]).and_then(|_| self.execute("release branch", &[]));
        undone.map(|_| true).map_err(|error| trouble(&error))
    }
}

impl Ledger {
    fn run_branch(&mut self, work: &[Work<'_>]) -> Landed {
        let mut rows = Vec::with_capacity(work.len());
        let savepoint = match self.has_savepoint {
            true => self.execute("release branch", &[]).and_then(|_| self.execute("savepoint branch", &[])),
            false => self.execute("savepoint branch", &[]),
        };
        if let Err(error) = savepoint {
            return Landed { rows, trouble: Some(trouble(&error)) };
        }
        self.has_savepoint = true;
        for work in work {
            match self.work(*work) {
                Ok(changed) => rows.push(changed),
                Err(error) => return Landed { rows, trouble: Some(trouble(&error)) },
            }
        }
        Landed { rows, trouble: None }
    }
}

/// How many rows a step reads or changes.
fn count_rows(connection: &Connection, step: &operations::Step, values: &Values) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached(&step.sql)?;
    for (i, value) in step.values(values).enumerate() {
        statement.raw_bind_parameter(i + 1, Bound(value))?;
    }
    if statement.column_count() == 0 {
        return statement.raw_execute().map(|rows| rows as u64);
    }
    let mut rows = statement.raw_query();
    let mut count = 0;
    while rows.next()?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// Opens the file with safe settings of the connection, each read back. A file that is not there is made only for who brings the tables:
/// without these it is a wrong path.
fn connect(path: &Path, busy_timeout: Duration, may_make: bool) -> Result<Connection, OpenError> {
    needs::refuse(vec![needs::of_sqlite(rusqlite::version())])?;
    let failed = |error: rusqlite::Error| unavailable("opening the file", &error);
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, may_make);
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(busy_timeout).map_err(failed)?;
    let timeout_ms = busy_timeout.as_millis().to_string();
    let settings = [
        ("synchronous", "full", "2", "use SQLite's own build; NORMAL loses commits on power loss"),
        ("foreign_keys", "on", "1", "use a build with foreign keys"),
        ("busy_timeout", timeout_ms.as_str(), timeout_ms.as_str(), "set busy_timeout_ms to at most 2147483647"),
    ];
    for setting in settings {
        set(&connection, setting)?;
    }
    Ok(connection)
}

/// A setting, its new value, how that is read back, and what to do if it is another one.
type Setting<'a> = (&'static str, &'a str, &'a str, &'a str);

fn set(connection: &Connection, (setting, set, expected, remedy): Setting<'_>) -> Result<(), OpenError> {
    let failed = |error: rusqlite::Error| unavailable("opening the file", &error);
    // Some answer with the new value, some with nothing; only what is read back afterwards counts.
    connection.pragma_update(None, setting, set).map_err(failed)?;
    let value = connection
        .pragma_query_value(None, setting, |row| {
            Ok(match row.get_ref(0)? {
                ValueRef::Integer(number) => number.to_string(),
                other => other.as_str().unwrap_or("?").to_string(),
            })
        })
        .map_err(failed)?;
    match value == expected {
        true => Ok(()),
        false => Err(OpenError::Need { setting, value, remedy: remedy.to_string() }),
    }
}

/// Whether a step fits the tables.
fn check_statement(connection: &Connection, step: &operations::Step) -> Result<(), OpenError> {
    let prepared = connection.prepare(&step.sql).map(drop);
    prepared.map_err(|error| OpenError::Statement {
        place: step.place.clone(),
        code: number(&error),
        said: error.to_string(),
    })
}

/// Checks the ledger's marks and answers its name.
fn check_meta(connection: &Connection, opening: &Opening) -> Result<String, OpenError> {
    let failed = |error: rusqlite::Error| unavailable("writing the ledger's marks", &error);
    for sql in missing_marks(Dialect::Sqlite, &read_meta(connection)?, opening)? {
        connection.execute_batch(&sql).map_err(failed)?;
    }
    read_meta(connection)?.remove(LEDGER_ID).ok_or_else(|| broken("ledger_id").into())
}

fn read_meta(connection: &Connection) -> Result<BTreeMap<String, String>, Unavailable> {
    let read = || -> rusqlite::Result<BTreeMap<String, String>> {
        connection.prepare(READ_MARKS)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    read().map_err(|error| unavailable("reading the ledger's marks", &error))
}

/// Runs every operation in a local transaction that is rolled back. The file is as it is found: its journal too.
pub(crate) async fn try_all(settings: SqliteSettings, opening: Opening, wish: Wish) -> Result<Vec<Tried>, OpenError> {
    let work = move || {
        let failed = |error: rusqlite::Error| unavailable("opening the file", &error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&settings.path, flags).map_err(failed)?;
        connection.busy_timeout(settings.busy_timeout).map_err(failed)?;
        connection.pragma_update(None, "foreign_keys", "on").map_err(failed)?;
        let mut unfit = Vec::new();
        for step in trial::steps(&opening) {
            unfit.extend(trial::unfit(check_statement(&connection, step))?);
        }
        let (path, file) = (settings.path.clone(), file_id(&settings.path));
        let mut ledger = Ledger {
            connection,
            has_savepoint: false,
            path,
            file,
            name: Arc::default(),
            operations: Arc::default(),
            seeds: BTreeMap::new(),
        };
        at_once(trial::try_all(&mut ledger, &opening, &wish, &unfit))
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(thread_gone().into()))
}

/// Runs what `suture participant init` has made.
pub(crate) async fn execute(settings: SqliteSettings, statements: &[String]) -> Result<(), Unavailable> {
    let script = format!("begin immediate; {}; commit;", statements.join(";\n"));
    blocking(move || {
        let failed = |error: rusqlite::Error| unavailable("setting up the ledger", &error);
        let connection = Connection::open(&settings.path).map_err(failed)?;
        connection.busy_timeout(settings.busy_timeout).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
        connection.execute_batch(&script).map_err(failed)
    })
    .await
}

pub(crate) const DIALECT: books::Dialect = books::Dialect {
    is_there: "select 1 from sqlite_master where type = 'table' and name = 'suture_meta'",
    version: "select 'SQLite ' || sqlite_version()",
    age: "unixepoch() - changed_at",
    now_ms: "select cast(unixepoch('subsec') * 1000 as integer)",
};

/// A file that is opened for reading only.
pub(crate) struct ReadOnly(Arc<Mutex<Connection>>);

impl ReadOnly {
    pub async fn open(settings: SqliteSettings) -> Result<Self, Unavailable> {
        let opened = blocking(move || {
            let failed = |error: rusqlite::Error| unavailable("opening the file", &error);
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&settings.path, flags).map_err(failed)?;
            connection.busy_timeout(settings.busy_timeout).map_err(failed)?;
            Ok(connection)
        });
        Ok(Self(Arc::new(Mutex::new(opened.await?))))
    }

    pub async fn ask(&mut self, doing: &'static str, sql: &str) -> Result<Vec<TextRow>, Unavailable> {
        let (connection, sql) = (Arc::clone(&self.0), sql.to_string());
        blocking(move || {
            let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let failed = |error: rusqlite::Error| unavailable(doing, &error);
            let mut statement = connection.prepare(&sql).map_err(failed)?;
            let columns = statement.column_count();
            let texts = |row: &rusqlite::Row<'_>| (0..columns).map(|column| text_of(row.get_ref(column)?)).collect();
            statement.query_map([], texts).and_then(Iterator::collect).map_err(failed)
        })
        .await
    }
}

impl ReadOnly {
    /// See [`check_statement`].
    pub async fn check_statement(&mut self, step: &operations::Step) -> Result<(), OpenError> {
        check_statement(&self.0.lock().unwrap_or_else(PoisonError::into_inner), step)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unavailable> + Send + 'static,
) -> Result<T, Unavailable> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(thread_gone()))
}

/// A value as text; `None` for what is none.
fn text_of(value: ValueRef<'_>) -> rusqlite::Result<Option<String>> {
    Ok(match value {
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Text(_) => Some(value.as_str()?.to_string()),
        ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_) => None,
    })
}

/// Device and number: a file that is put in another one's place has other ones.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

fn read_mark(connection: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    connection.query_row("select value from suture_meta where name = ?1", [name], |row| row.get(0)).optional()
}

fn trouble(error: &rusqlite::Error) -> Trouble {
    Trouble { blame: blame(error), code: number(error) }
}

fn blame(error: &rusqlite::Error) -> Blame {
    let Some(error) = error.sqlite_error() else { return Blame::Statement };
    match error.extended_code {
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => {
            Blame::Unique
        }
        ffi::SQLITE_CONSTRAINT_CHECK => Blame::Check,
        _ => match error.code {
            ErrorCode::ConstraintViolation
            | ErrorCode::TypeMismatch
            | ErrorCode::TooBig
            | ErrorCode::ParameterOutOfRange
            | ErrorCode::Unknown => Blame::Statement,
            // The disk, another process, memory: not the branch's fault, and it may pass.
            _ => Blame::Database,
        },
    }
}

/// SQLite's extended number. Its text may hold values of a row.
fn number(error: &rusqlite::Error) -> String {
    match error.sqlite_error() {
        Some(error) => format!("SQLite {}", error.extended_code),
        None => "SQLite: the statement does not fit".to_string(),
    }
}

fn unavailable(doing: &'static str, error: &rusqlite::Error) -> Unavailable {
    Unavailable::new(doing, number(error))
}

fn broken(what: &'static str) -> Unavailable {
    Unavailable::new("reading the ledger", format!("{what} cannot be read"))
}

/// A value as SQLite takes it.
struct Bound<'a>(&'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Value::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Value::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Value::Integer(number) => ToSqlOutput::Borrowed(ValueRef::Integer(*number)),
            // Configurations with decimals are refused for SQLite.
            Value::Decimal(decimal) => ToSqlOutput::from(decimal.to_string()),
            Value::Timestamp(at) => {
                ToSqlOutput::from(i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).unwrap_or(i64::MAX))
            }
            Value::Date(date) => {
                ToSqlOutput::from(format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day()))
            }
            Value::Boolean(yes) => ToSqlOutput::from(*yes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_version_is_sound() {
        assert_eq!(needs::of_sqlite(rusqlite::version()).verdict, needs::Verdict::Met);
    }
}
