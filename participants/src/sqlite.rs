//! SQLite in mode reserve: one writer connection in a thread of its own, one local transaction a batch, a savepoint a
//! branch.
//!
//! - Settings are set and read back at every open, because they belong to the connection: WAL, `synchronous=FULL`,
//!   foreign keys, a busy timeout. The version must be one without the WAL-reset race.
//! - Every transaction is BEGIN IMMEDIATE: one that reads first and writes later fails at once when another process
//!   wrote in between, whatever the timeout.
//! - A failed statement is undone by rolling back to the branch's savepoint. After every error the connection is asked
//!   whether the transaction is still there: a full disk ends all of it, and what followed would be in autocommit.
//! - A batch that cannot be committed as a whole (a deferred foreign key, a `ON CONFLICT ROLLBACK`) is done again branch by
//!   branch, so that the one at fault is refused and the others are not.
//! - Branches run in the order of the log; two with the same txid or business key in one batch meet each other's rows.
//!
//! A branch holds no lock between vote and decision, so all checks belong into `reserve`; `confirm` and `cancel` must be
//! able to run whatever comes.
//!
//! Left out: several writers; attached files (in WAL they are not atomic together).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OptionalExtension, ToSql, ffi, params};
use serde_json::value::RawValue;
use suture_contract::ids::{Attempt, Code, Shard, Txid};
use suture_contract::messages::{Decision, Prepare, Verdict};
use suture_participants_core::branch::{Answer, Event, KeyRow, Refusal, State, Step, refusal_by_key, step_of_row};
use suture_participants_core::operations::{self, Operation, Rows, Seed, Values, statement_failed};
use suture_participants_core::values::Value;
use tokio::sync::oneshot;

use crate::config::SqliteSettings;
use crate::ledger::{LEDGER_ID, StoredRow, check_marks};
use crate::resource::{
    Batching, Decided, Effect, Fault, InDoubt, OpenError, Opening, Position, Prepared, Resource, SeedError, Unavailable,
};

/// The first version without the WAL-reset race, in SQLite's numbers.
const FIRST_SOUND_VERSION: i32 = 3_051_003;

const LEDGER_TABLES: &str = "
    create table if not exists suture_meta (
        name text primary key,
        value text not null
    ) strict;
    create table if not exists suture_positions (
        topic text not null,
        letters text not null,
        shard integer not null,
        next_offset integer not null,
        primary key (topic, letters, shard)
    ) strict;
    create table if not exists suture_ledger (
        txid text primary key,
        state text not null check (state in ('in_doubt', 'committed', 'aborted', 'refused')),
        hash text not null,
        business_key text,
        attempt integer,
        live_key text unique,
        operation text,
        code text,
        duplicate_of text,
        changed_at integer not null default (unixepoch()),
        unique (business_key, attempt),
        check ((business_key is null) = (attempt is null)),
        check ((live_key is not null) = (state in ('in_doubt', 'committed')))
    ) strict;
    create index if not exists suture_ledger_in_doubt on suture_ledger (txid) where state = 'in_doubt';
";

/// A participant's SQLite file.
pub struct SqliteResource {
    jobs: mpsc::Sender<Job>,
    ledger_id: String,
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
            drop(opened.send(Ok(ledger.id.clone())));
            while let Ok(job) = inbox.recv() {
                job(&mut ledger);
            }
        });
        if spawned.is_err() {
            return Err(thread_gone().into());
        }
        let ledger_id = wait.await.map_err(|_| thread_gone())??;
        Ok(Self { jobs, ledger_id })
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

fn thread_gone() -> Unavailable {
    Unavailable::new("handing over work", "thread ended")
}

impl Resource for SqliteResource {
    fn ledger_id(&self) -> &str {
        &self.ledger_id
    }

    /// One thread, and no waiting for locks.
    fn batching(&self) -> Batching {
        Batching { branches: 128, jobs: 1 }
    }

    async fn prepare(&self, batch: Vec<Arc<Prepare>>) -> Result<Vec<Prepared>, Unavailable> {
        self.run(move |ledger| ledger.prepare(&batch)).await
    }

    async fn commit(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        self.run(move |ledger| ledger.decide(&batch)).await
    }

    async fn abort(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        self.run(move |ledger| ledger.decide(&batch)).await
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        self.run(|ledger| ledger.in_doubt()).await
    }

    async fn load_positions(&self, topic: String) -> Result<Vec<Position>, Unavailable> {
        self.run(move |ledger| ledger.load_positions(&topic)).await
    }

    async fn store_positions(&self, positions: Vec<Position>) -> Result<(), Unavailable> {
        self.run(move |ledger| ledger.store_positions(&positions)).await
    }

    async fn seed(&self, name: String, payloads: Vec<Box<RawValue>>) -> Result<u64, SeedError> {
        self.run(move |ledger| Ok(ledger.seed(&name, &payloads))).await?
    }
}

/// The connection, and what runs on it. Lives in its own thread.
struct Ledger {
    connection: Connection,
    id: String,
    operations: BTreeMap<String, Operation>,
    seeds: BTreeMap<String, Seed>,
}

/// Why a batch came to nothing.
enum Broken {
    /// The database is at fault.
    Unavailable(Unavailable),
    /// One of the branches is at fault, and took the transaction with it.
    Batch(Code),
}

/// Why a branch's steps did not run to their end.
enum Failed {
    /// The branch is at fault; its savepoint still stands.
    Refused { code: Code, place: String, cause: String },
    /// The transaction is gone.
    Broken(Broken),
}

impl From<Unavailable> for Broken {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

impl Ledger {
    fn open(settings: &SqliteSettings, opening: Opening) -> Result<Self, OpenError> {
        let connection = connect(&settings.path, settings.busy_timeout)?;
        let creating = |error: rusqlite::Error| unavailable("creating the ledger", &error);
        connection.execute_batch(&format!("begin immediate; {LEDGER_TABLES} commit;")).map_err(creating)?;
        let id = check_meta(&connection, &opening)?;
        if let Some(schema) = &opening.schema {
            let failed = |error: rusqlite::Error| OpenError::Schema { code: number(&error) };
            connection.execute_batch(schema).map_err(failed)?;
            if !connection.is_autocommit() {
                return Err(OpenError::Schema { code: "an open transaction at its end".to_string() });
            }
        }
        let Opening { operations, seeds, .. } = opening;
        let steps = operations.values().flat_map(|o| o.prepare.iter().chain(&o.confirm).chain(&o.cancel));
        for step in steps.chain(seeds.values().flat_map(|seed| &seed.steps)) {
            connection
                .prepare(&step.sql)
                .map_err(|error| OpenError::Statement { place: step.place.clone(), code: number(&error) })?;
        }
        connection.set_prepared_statement_cache_capacity(256);
        let ledger = Self { connection, id, operations, seeds };
        ledger.check_operations_in_doubt()?;
        Ok(ledger)
    }

    fn check_operations_in_doubt(&self) -> Result<(), OpenError> {
        let sql = "select distinct operation from suture_ledger where state = 'in_doubt'";
        let read = self.query(sql, &[], |row| row.get::<_, String>(0));
        let unknown = read
            .map_err(|error| unavailable("reading the ledger", &error))?
            .into_iter()
            .find(|operation| !self.operations.contains_key(operation));
        unknown.map_or(Ok(()), |operation| Err(OpenError::NoOperation { operation }))
    }

    // ---- prepare -----------------------------------------------------------------------------------------------------

    fn prepare(&mut self, batch: &[Arc<Prepare>]) -> Result<Vec<Prepared>, Unavailable> {
        match self.prepare_together(batch) {
            Ok(prepared) => Ok(prepared),
            Err(Broken::Unavailable(unavailable)) => Err(unavailable),
            Err(Broken::Batch(_)) => batch.iter().map(|prepare| self.prepare_alone(prepare)).collect(),
        }
    }

    fn prepare_together(&mut self, batch: &[Arc<Prepare>]) -> Result<Vec<Prepared>, Broken> {
        self.begin("preparing")?;
        let mut prepared = Vec::with_capacity(batch.len());
        for prepare in batch {
            prepared.push(self.prepare_one(prepare).or_else(|broken| self.give_up(broken))?);
        }
        self.commit_batch("preparing")?;
        Ok(prepared)
    }

    fn prepare_alone(&mut self, prepare: &Arc<Prepare>) -> Result<Prepared, Unavailable> {
        let code = match self.prepare_together(std::slice::from_ref(prepare)) {
            Ok(mut prepared) => return Ok(prepared.remove(0)),
            Err(Broken::Unavailable(unavailable)) => return Err(unavailable),
            Err(Broken::Batch(code)) => code,
        };
        let refusal = Refusal::with(code);
        let doing = "refusing";
        self.begin(doing)?;
        let inserted = self.insert_row(prepare, State::Refused, Some(&refusal));
        let inserted = inserted.map_err(|error| unavailable(doing, &error));
        if let Err(error) = inserted {
            self.roll_back();
            return Err(error);
        }
        match self.commit_batch(doing) {
            Ok(()) => Ok(Prepared::Answer(Answer::No(refusal))),
            Err(Broken::Unavailable(unavailable)) => Err(unavailable),
            Err(Broken::Batch(code)) => Err(Unavailable::new(doing, code)),
        }
    }

    /// One branch inside the batch's transaction.
    fn prepare_one(&self, prepare: &Prepare) -> Result<Prepared, Broken> {
        let doing = "reading the ledger";
        let row = match self.row(&prepare.txid).map_err(|error| unavailable(doing, &error))? {
            Ok(row) => row,
            Err(fault) => return Ok(Prepared::Fault(fault)),
        };
        let step = match step_of_row(row.as_ref(), Event::Prepare, &prepare.hash) {
            Ok(step) => step,
            Err(violation) => return Ok(Prepared::Fault(violation.into())),
        };
        match (step, row) {
            (Step::Run, _) => {}
            (_, Some(row)) => return Ok(Prepared::Answer(row.answer())),
            (_, None) => return Ok(Prepared::Fault(Fault::BrokenRow)),
        }
        let of_key = match self.rows_of_key(prepare).map_err(|error| unavailable(doing, &error))? {
            Ok(rows) => rows,
            Err(fault) => return Ok(Prepared::Fault(fault)),
        };
        if let Some(refusal) = refusal_by_key(&of_key, prepare.attempt, &prepare.hash) {
            return self.refuse(prepare, refusal);
        }
        let Some(operation) = self.operations.get(&prepare.operation) else {
            tracing::warn!(txid = %prepare.txid, "prepare names an operation that is not configured");
            return self.refuse(prepare, Refusal::with(operations::unreadable()));
        };
        let values = match operation.bind(&prepare.txid, &prepare.payload) {
            Ok(values) => values,
            Err(unusable) => {
                let parameter = unusable.parameter.as_deref().unwrap_or("the whole payload");
                tracing::warn!(txid = %prepare.txid, code = %unusable.code, parameter, "payload cannot be used");
                return self.refuse(prepare, Refusal::with(unusable.code));
            }
        };
        match self.reserve(prepare, operation, &values) {
            Ok(()) => Ok(Prepared::Answer(Answer::Yes)),
            Err(Failed::Broken(broken)) => Err(broken),
            Err(Failed::Refused { code, place, cause }) => {
                self.roll_back_branch()?;
                tracing::debug!(txid = %prepare.txid, %code, place, cause, "refused");
                self.refuse(prepare, Refusal::with(code))
            }
        }
    }

    fn reserve(&self, prepare: &Prepare, operation: &Operation, values: &Values) -> Result<(), Failed> {
        let doing = "opening a branch";
        let failed = |error: rusqlite::Error| Failed::Broken(unavailable(doing, &error).into());
        self.execute("savepoint branch", &[]).map_err(failed)?;
        self.insert_row(prepare, State::InDoubt, None).map_err(failed)?;
        for step in &operation.prepare {
            self.run_step(step, values)?;
        }
        self.execute("release branch", &[]).map_err(failed)?;
        Ok(())
    }

    /// Runs a step. An error of the branch leaves the savepoint to roll back to.
    fn run_step(&self, step: &operations::Step, values: &Values) -> Result<(), Failed> {
        let refused = |code, cause| Err(Failed::Refused { code, place: step.place.clone(), cause });
        let error = match self.count_rows(step, values) {
            Ok(rows) => {
                return match step.refuses_rows(rows) {
                    None => Ok(()),
                    Some(code) => refused(code, format!("{rows} rows")),
                };
            }
            Err(error) => error,
        };
        let code = match blame(&error) {
            Blame::Unique => step.on_unique(),
            Blame::Check => step.on_check(),
            Blame::Statement => statement_failed(),
            Blame::Database => return Err(Failed::Broken(unavailable("running a step", &error).into())),
        };
        if self.connection.is_autocommit() {
            return Err(Failed::Broken(Broken::Batch(code)));
        }
        refused(code, number(&error))
    }

    /// How many rows a step read or changed.
    fn count_rows(&self, step: &operations::Step, values: &Values) -> Result<u64, rusqlite::Error> {
        let mut statement = self.connection.prepare_cached(&step.sql)?;
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

    fn refuse(&self, prepare: &Prepare, refusal: Refusal) -> Result<Prepared, Broken> {
        self.insert_row(prepare, State::Refused, Some(&refusal)).map_err(|error| unavailable("refusing", &error))?;
        Ok(Prepared::Answer(Answer::No(refusal)))
    }

    /// A row about an older branch carries neither key nor attempt: those are taken.
    fn insert_row(&self, prepare: &Prepare, state: State, refusal: Option<&Refusal>) -> rusqlite::Result<usize> {
        let named = !refusal.is_some_and(Refusal::is_repeat);
        let key = prepare.business_key.as_str();
        self.execute(
            "insert into suture_ledger (txid, state, hash, business_key, attempt, live_key, operation, code, duplicate_of)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                prepare.txid.to_string(),
                state.as_str(),
                prepare.hash.to_string(),
                named.then_some(key),
                named.then_some(prepare.attempt.number()),
                (state == State::InDoubt).then_some(key),
                prepare.operation,
                refusal.map(|refusal| refusal.code.as_str()),
                refusal.and_then(|refusal| refusal.duplicate_of).map(|txid| txid.to_string()),
            ],
        )
    }

    // ---- decide ------------------------------------------------------------------------------------------------------

    fn decide(&mut self, batch: &[Arc<Decision>]) -> Result<Vec<Decided>, Unavailable> {
        let broken = match self.decide_together(batch) {
            Ok(decided) => return Ok(decided),
            Err(broken) => broken,
        };
        let code = match broken {
            Broken::Unavailable(unavailable) => return Err(unavailable),
            Broken::Batch(code) => code,
        };
        if let [_] = batch {
            let place = "a confirm or cancel step".to_string();
            return Ok(vec![Err(Fault::Finish { place, code: code.to_string() })]);
        }
        let mut decided = Vec::with_capacity(batch.len());
        for decision in batch {
            decided.append(&mut self.decide(std::slice::from_ref(decision))?);
        }
        Ok(decided)
    }

    fn decide_together(&mut self, batch: &[Arc<Decision>]) -> Result<Vec<Decided>, Broken> {
        self.begin("deciding")?;
        let mut decided = Vec::with_capacity(batch.len());
        for decision in batch {
            decided.push(self.decide_one(decision).or_else(|broken| self.give_up(broken))?);
        }
        self.commit_batch("deciding")?;
        Ok(decided)
    }

    fn decide_one(&self, decision: &Decision) -> Result<Decided, Broken> {
        let event = match decision.outcome {
            Verdict::Commit => Event::Commit,
            Verdict::Abort => Event::Abort,
        };
        let row = match self.row(&decision.txid).map_err(|error| unavailable("reading the ledger", &error))? {
            Ok(row) => row,
            Err(fault) => return Ok(Err(fault)),
        };
        match step_of_row(row.as_ref(), event, &decision.hash) {
            Ok(Step::Commit) => self.finish(&decision.txid, State::Committed),
            Ok(Step::RollBack) => self.finish(&decision.txid, State::Aborted),
            Ok(Step::NoteAbort) => self.note_abort(decision),
            Ok(Step::Nothing) => Ok(Ok(Effect::Repeated)),
            Ok(Step::Run | Step::AnswerYes | Step::AnswerNo) => Ok(Err(Fault::BrokenRow)),
            Err(violation) => Ok(Err(violation.into())),
        }
    }

    /// Confirms or cancels, and sets the row.
    fn finish(&self, txid: &Txid, state: State) -> Result<Decided, Broken> {
        let doing = "deciding";
        let failed = |error: rusqlite::Error| Broken::from(unavailable(doing, &error));
        let name: String = self
            .connection
            .prepare_cached("select operation from suture_ledger where txid = ?1")
            .and_then(|mut statement| statement.query_row([txid.to_string()], |row| row.get(0)))
            .map_err(failed)?;
        let Some(operation) = self.operations.get(&name) else {
            return Ok(Err(Fault::NoOperation { operation: name }));
        };
        let steps = if state == State::Committed { &operation.confirm } else { &operation.cancel };
        let values = Operation::bind_txid(txid);
        self.execute("savepoint branch", &[]).map_err(failed)?;
        for step in steps {
            match self.run_step(step, &values) {
                Ok(()) => {}
                Err(Failed::Broken(broken)) => return Err(broken),
                Err(Failed::Refused { place, cause, .. }) => {
                    self.roll_back_branch()?;
                    return Ok(Err(Fault::Finish { place, code: cause }));
                }
            }
        }
        let sql = match state {
            State::Committed => {
                "update suture_ledger set state = 'committed', changed_at = unixepoch() where txid = ?1"
            }
            State::Aborted | State::Absent | State::InDoubt | State::Refused => {
                "update suture_ledger set state = 'aborted', live_key = null, changed_at = unixepoch() where txid = ?1"
            }
        };
        self.execute(sql, params![txid.to_string()]).map_err(failed)?;
        self.execute("release branch", &[]).map_err(failed)?;
        Ok(Ok(Effect::Finished))
    }

    /// The abort overtook its prepare. The row takes neither key nor attempt: it may be that of a duplicate, and the
    /// original is still to come.
    fn note_abort(&self, decision: &Decision) -> Result<Decided, Broken> {
        let inserted = self.execute(
            "insert into suture_ledger (txid, state, hash) values (?1, 'aborted', ?2)",
            params![decision.txid.to_string(), decision.hash.to_string()],
        );
        inserted.map_err(|error| unavailable("noting an abort", &error))?;
        Ok(Ok(Effect::NotedAbort))
    }

    // ---- what the service asks besides -------------------------------------------------------------------------------

    fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let sql = "select txid, unixepoch() - changed_at from suture_ledger where state = 'in_doubt'";
        let rows = self.query(sql, &[], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)));
        let read = |(txid, seconds): (String, i64)| {
            let age = u64::try_from(seconds).ok().map(Duration::from_secs);
            txid.parse().ok().map(|txid| InDoubt { txid, age })
        };
        let rows = rows.map_err(|error| unavailable("reading the ledger", &error))?;
        rows.into_iter().map(|row| read(row).ok_or_else(|| broken("txid"))).collect()
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

    fn store_positions(&mut self, positions: &[Position]) -> Result<(), Unavailable> {
        let doing = "storing positions";
        self.begin(doing)?;
        for Position { topic, letters, shard, next_offset } in positions {
            let stored = self.execute(
                "insert into suture_positions (topic, letters, shard, next_offset) values (?1, ?2, ?3, ?4)
                 on conflict do update set next_offset = max(next_offset, excluded.next_offset)",
                params![topic, letters.as_str(), shard.0, next_offset.cast_signed()],
            );
            if let Err(error) = stored {
                self.roll_back();
                return Err(unavailable(doing, &error));
            }
        }
        match self.commit_batch(doing) {
            Ok(()) => Ok(()),
            Err(Broken::Unavailable(unavailable)) => Err(unavailable),
            Err(Broken::Batch(code)) => Err(Unavailable::new(doing, code)),
        }
    }

    fn seed(&mut self, name: &str, payloads: &[Box<RawValue>]) -> Result<u64, SeedError> {
        let seed = self.seeds.get(name).ok_or_else(|| SeedError::Unknown(name.to_string()))?;
        let mut rows = Vec::with_capacity(payloads.len());
        for (index, payload) in payloads.iter().enumerate() {
            let unusable = |unusable: operations::Unusable| SeedError::Unusable {
                index,
                code: unusable.code.to_string(),
                parameter: unusable.parameter,
            };
            rows.push(seed.bind(payload).map_err(unusable)?);
        }
        let doing = "seeding";
        self.begin(doing)?;
        let inserted = self.insert_seeds(seed, &rows);
        let committed = inserted.and_then(|inserted| match self.commit_batch(doing) {
            Ok(()) => Ok(inserted),
            Err(Broken::Unavailable(unavailable)) => Err(unavailable.into()),
            Err(Broken::Batch(code)) => {
                Err(SeedError::Failed { place: format!("seed.{name}"), code: code.to_string() })
            }
        });
        if committed.is_err() {
            self.roll_back();
        }
        committed
    }

    fn insert_seeds(&self, seed: &Seed, rows: &[Values]) -> Result<u64, SeedError> {
        let mut inserted = 0;
        for values in rows {
            for step in &seed.steps {
                let failed = |code| SeedError::Failed { place: step.place.clone(), code };
                let changed = self.count_rows(step, values).map_err(|error| failed(number(&error)))?;
                if step.rows != Rows::Any && step.refuses_rows(changed).is_some() {
                    return Err(failed(format!("{changed} rows")));
                }
                inserted += changed;
            }
        }
        Ok(inserted)
    }

    // ---- reading the ledger ------------------------------------------------------------------------------------------

    fn row(&self, txid: &Txid) -> rusqlite::Result<Result<Option<suture_participants_core::branch::Row>, Fault>> {
        let stored = self
            .connection
            .prepare_cached("select state, hash, code, duplicate_of from suture_ledger where txid = ?1")?
            .query_row([txid.to_string()], |row| {
                Ok(StoredRow { state: row.get(0)?, hash: row.get(1)?, code: row.get(2)?, duplicate_of: row.get(3)? })
            })
            .optional()?;
        Ok(stored.map(StoredRow::read).transpose())
    }

    fn rows_of_key(&self, prepare: &Prepare) -> rusqlite::Result<Result<Vec<KeyRow>, Fault>> {
        let sql = "select txid, state, hash, attempt from suture_ledger where business_key = ?1";
        let rows = self.query(sql, params![prepare.business_key.as_str()], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, u32>(3)?))
        })?;
        let read = |(txid, state, hash, attempt): (String, String, String, u32)| {
            Some(KeyRow {
                txid: txid.parse().ok()?,
                state: State::of_ledger(&state)?,
                hash: hash.parse().ok()?,
                attempt: Attempt::new(attempt)?,
            })
        };
        Ok(rows.into_iter().map(|row| read(row).ok_or(Fault::BrokenRow)).collect())
    }

    fn query<T>(
        &self,
        sql: &str,
        params: &[&dyn ToSql],
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.connection.prepare_cached(sql)?.query_map(params, read)?.collect()
    }

    fn execute(&self, sql: &str, params: &[&dyn ToSql]) -> rusqlite::Result<usize> {
        self.connection.prepare_cached(sql)?.execute(params)
    }

    // ---- transactions ------------------------------------------------------------------------------------------------

    fn begin(&self, doing: &'static str) -> Result<(), Unavailable> {
        self.roll_back();
        self.execute("begin immediate", &[]).map(|_| ()).map_err(|error| unavailable(doing, &error))
    }

    fn commit_batch(&self, doing: &'static str) -> Result<(), Broken> {
        // A transaction that is gone must not be taken for one that was committed.
        if self.connection.is_autocommit() {
            return Err(Unavailable::new(doing, "no transaction").into());
        }
        let Err(error) = self.execute("commit", &[]) else { return Ok(()) };
        self.roll_back();
        match blame(&error) {
            Blame::Database => Err(unavailable(doing, &error).into()),
            Blame::Unique | Blame::Check | Blame::Statement => Err(Broken::Batch(statement_failed())),
        }
    }

    fn roll_back_branch(&self) -> Result<(), Broken> {
        let doing = "rolling a branch back";
        let failed = |error: rusqlite::Error| Broken::from(unavailable(doing, &error));
        self.execute("rollback to branch", &[]).map_err(failed)?;
        self.execute("release branch", &[]).map_err(failed)?;
        Ok(())
    }

    fn give_up<T>(&self, broken: Broken) -> Result<T, Broken> {
        self.roll_back();
        Err(broken)
    }

    /// Ends whatever is open. A connection that cannot even do that says so when it is used next.
    fn roll_back(&self) {
        if !self.connection.is_autocommit() {
            drop(self.connection.execute_batch("rollback"));
        }
    }
}

/// Opens the file with safe settings, each read back.
fn connect(path: &Path, busy_timeout: Duration) -> Result<Connection, OpenError> {
    if rusqlite::version_number() < FIRST_SOUND_VERSION {
        return Err(OpenError::Need {
            setting: "SQLite's version",
            value: rusqlite::version().to_string(),
            remedy: "build with one from 3.51.3 on; older ones may lose commits when two processes share a WAL"
                .to_string(),
        });
    }
    let failed = |error: rusqlite::Error| unavailable("opening the file", &error);
    let connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(busy_timeout).map_err(failed)?;
    let timeout_ms = busy_timeout.as_millis().to_string();
    let settings = [
        ("journal_mode", "wal", "wal", "put the file on a local disk that can hold a write-ahead log"),
        ("synchronous", "full", "2", "use SQLite's own build; NORMAL loses commits on power loss"),
        ("foreign_keys", "on", "1", "use a build with foreign keys"),
        ("busy_timeout", timeout_ms.as_str(), timeout_ms.as_str(), "set busy_timeout_ms to at most 2147483647"),
    ];
    for (setting, set, expected, remedy) in settings {
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
        if value != expected {
            return Err(OpenError::Need { setting, value, remedy: remedy.to_string() });
        }
    }
    Ok(connection)
}

/// Checks the ledger's marks and answers its name.
fn check_meta(connection: &Connection, opening: &Opening) -> Result<String, OpenError> {
    let failed = |error: rusqlite::Error| unavailable("reading the ledger's marks", &error);
    connection
        .execute("insert into suture_meta values (?1, lower(hex(randomblob(8)))) on conflict do nothing", [LEDGER_ID])
        .map_err(failed)?;
    let read = |connection: &Connection| -> rusqlite::Result<BTreeMap<String, String>> {
        connection
            .prepare("select name, value from suture_meta")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    };
    let found = read(connection).map_err(failed)?;
    for (name, value) in check_marks(&found, opening)? {
        connection.execute("insert into suture_meta values (?1, ?2)", params![name, value]).map_err(failed)?;
    }
    found.get(LEDGER_ID).cloned().ok_or_else(|| broken("ledger_id").into())
}

/// Who is to blame for an error.
enum Blame {
    Unique,
    Check,
    Statement,
    Database,
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
        assert!(rusqlite::version_number() >= FIRST_SOUND_VERSION);
    }
}
