//! PostgreSQL, in mode xa and in mode reserve.
//!
//! ```text
//! xa        BEGIN; SET LOCAL ..; the ledger row; the steps                      in one flight
//!           PREPARE TRANSACTION gid; look for gid in pg_prepared_xacts          in one flight
//!           COMMIT PREPARED gid, or ROLLBACK PREPARED gid
//! reserve   a branch: SAVEPOINT; the ledger row; the steps                      all branches in one flight
//! ```
//!
//! How a branch goes through these stands in `xa` and `reserve`.
//!
//! - PREPARE in a failed block answers ROLLBACK without an error, COMMIT too, and the driver drops the tag.
//! - Connections: some for prepares, some for decisions, one for positions. None is shared, and one that was left in the
//!   middle of something is closed. Session settings are set and read back on each.
//!
//! Error text holds row values, so it goes nowhere; notices are dropped too. (The driver logs parameters at debug level under
//! its own name: keep `tokio_postgres` out of the log.)
//!
//! Left out: TLS, standbys (an asynchronous one loses yes votes when it is promoted).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use rust_decimal::Decimal;
use serde_json::value::RawValue;
use suture_contract::ids::{Shard, Txid};
use suture_contract::messages::{Decision, Prepare};
use suture_participants_core::branch::{KeyRow, Refusal, State};
use suture_participants_core::doubts::{InDoubt, SeenHash};
use suture_participants_core::gid::{Gid, Owner};
use suture_participants_core::marks::{Candidate, Marks, Purge};
use suture_participants_core::operations::{self, Operation, Rows, Values, statement_failed};
use suture_participants_core::restore::beginning_of_next;
use suture_participants_core::settle::Unsettled;
use suture_participants_core::sql;
use suture_participants_core::values::{Kind, Value};
use time::{Date, OffsetDateTime};
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Error, NoTls, SimpleQueryMessage, Statement};

use crate::books::{Dialect, LOCK_PATIENCE, PATIENCE, TextRow, facts_of};
use crate::config::ServerSettings;
use crate::flights::{InFlight, one_behind_the_other};
use crate::install::{names, tables_of};
use crate::ledger::{
    LEDGER_ID, LedgerName, LedgerRow, OPERATIONS_IN_DOUBT, OnNo, RESTORING, StoredKeyRow, StoredRow, all_steps,
    bind_seed, check_marks, check_mode, check_operations, went_back,
};
use crate::needs;
use crate::points::{Act, around};
use crate::pool::Dial;
use crate::purge::purge_page;
use crate::reserve::{self, Session, Work};
use crate::resolve::resolve;
use crate::resource::{
    Decided, Entry, Fault, Noted, OpenError, Opening, Page, Position, Prepared, Purged, Redone, Resolution, SeedError,
    Stored, Unavailable, Which,
};
use crate::rights::{self, is_denied};
use crate::server::{Opened, Server};
use crate::tables::{self, READ_MARKS, missing_marks};
use crate::trial::{self, Tried, Wish};
use crate::trouble::{Blame, Landed, Trouble, busy};
use crate::xa::{self, AbortedRow, Branches, Collision, How, Known, LOOK_AGAIN, LOOKS, Ran};

/// How long a decision's insert waits for a lock before it looks at the list again.
const DECISION_LOCK_TIMEOUT: Duration = Duration::from_millis(200);

const INSERT_ROW: &str = "
    insert into suture_ledger (txid, state, hash, business_key, attempt, live_key, operation, code, duplicate_of)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9)";

const LOOK_AT_LIST: &str = "
    select count(*), min(gid) filter (where starts_with(gid, $2 || $1))
    from pg_prepared_xacts where database = current_database() and position($1 in gid) > 0";

/// Each in an index of its own accord: for `= any($1)` a ledger that was small, or was never analysed, is read from end to end,
/// and the plan stays when it has grown.
const LOOK_AT_ROWS: &str = "
    select found.* from unnest($1) as asked cross join lateral (
        select txid, state, hash, operation, code, duplicate_of from suture_ledger where txid = asked offset 0
    ) as found";

const LOCK_ROWS: &str = "
    select found.* from unnest($1) as asked cross join lateral (
        select txid, state, hash, operation, code, duplicate_of from suture_ledger where txid = asked for update
    ) as found";

const LOOK_AT_MARKS: &str = "select letters, shard, next_offset from suture_marks";

const LOOK_AT_MARK: &str = "select 1 from suture_marks where letters = $1 and shard = $2 and next_offset > $3";

const LOOK_AT_KEYS: &str = "
    select found.* from unnest($1) as asked cross join lateral (
        select business_key, txid, state, hash, attempt from suture_ledger where business_key = asked offset 0
    ) as found";

const FINISH_ROW: &str = "
    update suture_ledger set state = $2, changed_at = now(), live_key = case when $2 = 'committed' then live_key end
    where txid = $1";

const LOOKING: &str = "looking for the ledger";

/// Which server this is: a standby that is promoted begins a timeline of its own.
const SERVER: &str = "
    select system_identifier || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) from pg_control_system()";

/// A participant's PostgreSQL database.
pub struct PostgresResource {
    opened: Opened,
    workers: Pool,
    deciders: Pool,
    clerks: Pool,
}

impl PostgresResource {
    /// Connects, creates what is missing, and refuses what is unsafe or somebody else's.
    pub async fn open(settings: ServerSettings, opening: Opening) -> Result<Self, OpenError> {
        let pool = |most, lock_timeout| {
            Dialer::new(&settings, &opening.owner, lock_timeout).map(|dialer| Pool::new(dialer, most))
        };
        let workers = pool(settings.connections, settings.lock_timeout)?;
        let deciders = pool(settings.decision_connections, DECISION_LOCK_TIMEOUT)?;
        let clerks = pool(1, settings.lock_timeout)?;
        let mut clerk = clerks.lease().await?;
        let facts = facts_of(texts(&clerk.client, "reading settings", &needs::postgres_facts(&opening.owner)).await?);
        needs::refuse(needs::of_postgres(&facts, opening.mode, &settings))?;
        check_ledger(&mut clerk, &opening).await?;
        if let Some(schema) = &opening.schema {
            let failed = |error: Error| OpenError::Schema { code: sqlstate(&error) };
            clerk.client.batch_execute(schema).await.map_err(failed)?;
        }
        for step in all_steps(&opening.operations, &opening.seeds) {
            check_statement(&mut clerk, step).await?;
        }
        // The last of all, so that a database that is refused is left as it was.
        let ledger_id = prepare_ledger(&clerk.client, &opening).await?;
        let Opening { mode, owner, operations, seeds, .. } = opening;
        let server = clerk.client.query_one(SERVER, &[]).await;
        let server = server.map_err(|error| unavailable("asking for the server's name", &error))?.get(0);
        clerk.give_back();
        let ledger = LedgerName::new(ledger_id);
        let opened = Opened { mode, settings, owner, operations, seeds, ledger, server };
        Ok(Self { opened, workers, deciders, clerks })
    }
}

// ---- mode xa ---------------------------------------------------------------------------------------------------------

impl Branches for PostgresResource {
    fn opened(&self) -> &Opened {
        &self.opened
    }

    async fn look(&self, txid: &Txid) -> Result<Known, Unavailable> {
        let failed = |error: Error| unavailable("looking at the ledger", &error);
        let mut worker = self.workers.lease().await?;
        let list = worker.statement(LOOK_AT_LIST, &[Type::TEXT, Type::TEXT]).await.map_err(failed)?;
        let row = worker.statement(LOOK_AT_ROWS, &[Type::TEXT_ARRAY]).await.map_err(failed)?;
        let marks = worker.statement(LOOK_AT_MARKS, &[]).await.map_err(failed)?;
        let (mark, name) = (mark(&self.opened.owner), txid.to_string());
        let names = [name.as_str()];
        let (list_parameters, row_parameters): ([&(dyn ToSql + Sync); 2], [&(dyn ToSql + Sync); 1]) =
            ([&mark, &name], [&names.as_slice()]);
        let client = &worker.client;
        // In this order: what is being committed is in one of them.
        let (list, rows, marks) = tokio::join!(
            biased;
            client.query_one(&list, &list_parameters),
            client.query(&row, &row_parameters),
            client.query(&marks, &[]),
        );
        let (list, rows, marks) = (list.map_err(failed)?, rows.map_err(failed)?, marks.map_err(failed)?);
        worker.give_back();
        let in_doubt = usize::try_from(list.get::<_, i64>(0)).unwrap_or(usize::MAX);
        let gid = list.get::<_, Option<&str>>(1).and_then(|gid| gid.parse().ok());
        let gids = gid.map(|gid| (*txid, gid)).into_iter().collect();
        Ok(Known { in_doubt, gids, rows: stored_rows(&rows)?, marks: stored_marks(&marks)? })
    }

    async fn look_at_all(&self, txids: &[Txid]) -> Result<Known, Unavailable> {
        let failed = |error: Error| unavailable("looking at the ledger", &error);
        let mut decider = self.deciders.lease().await?;
        let list_sql =
            "select gid from pg_prepared_xacts where database = current_database() and position($1 in gid) > 0";
        let list = decider.statement(list_sql, &[Type::TEXT]).await.map_err(failed)?;
        let rows = decider.statement(LOOK_AT_ROWS, &[Type::TEXT_ARRAY]).await.map_err(failed)?;
        let marks = decider.statement(LOOK_AT_MARKS, &[]).await.map_err(failed)?;
        let mark = mark(&self.opened.owner);
        let txids: Vec<String> = txids.iter().map(Txid::to_string).collect();
        let client = &decider.client;
        let (list_parameters, row_parameters): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 1]) =
            ([&mark], [&txids]);
        // In this order: what is being committed is in one of them.
        let (list, rows, marks) = tokio::join!(
            biased;
            client.query(&list, &list_parameters),
            client.query(&rows, &row_parameters),
            client.query(&marks, &[]),
        );
        let (list, rows, marks) = (list.map_err(failed)?, rows.map_err(failed)?, marks.map_err(failed)?);
        decider.give_back();
        let ours = |gid: &Gid| gid.owner == self.opened.owner;
        let gids = list.iter().filter_map(|row| row.get::<_, &str>(0).parse().ok()).filter(ours);
        let gids = gids.map(|gid| (gid.txid, gid)).collect();
        Ok(Known { in_doubt: list.len(), gids, rows: stored_rows(&rows)?, marks: stored_marks(&marks)? })
    }

    async fn rows_of_key(&self, prepare: &Prepare) -> Result<Result<Vec<KeyRow>, Fault>, Unavailable> {
        let mut worker = self.workers.lease().await?;
        let rows = rows_of_keys(&mut worker, &[prepare.business_key.as_str()]).await;
        let rows = rows.map_err(|error| unavailable("looking at the ledger", &error))?;
        worker.give_back();
        Ok(rows.iter().map(StoredKeyRow::read).collect())
    }

    async fn run(&self, prepare: &Prepare, operation: &Operation, values: &Values) -> Result<Ran, Unavailable> {
        let mut worker = self.workers.lease().await?;
        let ran = match self.run_steps(&mut worker, prepare, operation, values).await? {
            None => self.prepare_transaction(&mut worker, prepare).await?,
            Some(ran) => ran,
        };
        if !matches!(ran, Ran::Seen) {
            let rolled_back = around(Act::Undo, worker.client.batch_execute("rollback")).await;
            rolled_back.map_err(|error| unavailable("rolling back", &error))?;
        }
        worker.give_back();
        Ok(ran)
    }

    async fn insert_refused(&self, txid: &Txid, row: LedgerRow) -> Result<bool, Unavailable> {
        let mut worker = self.workers.lease().await?;
        let begin = begin(&self.opened.settings, self.opened.settings.lock_timeout);
        let flight = [Flown::Script(&begin), Flown::Work(Work::Insert(&row)), Flown::Work(Work::LookAtMark(txid))];
        let Landed { rows, trouble } = worker.fly(&flight).await;
        let is_inserted = trouble.is_none() && rows.last() == Some(&0);
        let ended = worker.client.batch_execute(if is_inserted { "commit" } else { "rollback" }).await;
        ended.map_err(|error| unavailable("refusing", &error))?;
        worker.give_back();
        match trouble {
            Some(trouble) if !trouble.is_met() => Err(trouble.unavailable("refusing")),
            Some(_) | None => Ok(is_inserted),
        }
    }

    async fn finish_one(&self, how: How, gid: &Gid) -> Result<(), Unavailable> {
        let how = match how {
            How::Commit => "commit prepared",
            How::RollBack => "rollback prepared",
        };
        let decider = self.deciders.lease().await?;
        for _ in 0..LOOKS {
            let finished = decider.client.batch_execute(&format!("{how} '{gid}'")).await;
            match finished.as_ref().map_err(sqlstate) {
                // Being finished by another session.
                Err(code) if code == "55000" => sleep(LOOK_AGAIN).await,
                Err(code) if code != "42704" => return Err(Unavailable::new("finishing a branch", code)),
                // Finished, by us or by another session.
                Ok(()) | Err(_) => {
                    decider.give_back();
                    return Ok(());
                }
            }
        }
        Err(Unavailable::new("finishing a branch", "55000"))
    }

    async fn insert_aborted(&self, rows: &[AbortedRow<'_>]) -> Result<bool, Unavailable> {
        let failed = |error: Error| unavailable("noting aborts", &error);
        let mut decider = self.deciders.lease().await?;
        let sql = "insert into suture_ledger (txid, state, hash, business_key, attempt)
                   select t, 'aborted', h, k, a from unnest($1, $2, $3, $4) as aborted (t, h, k, a)
                   on conflict do nothing";
        let texts = Type::TEXT_ARRAY;
        let insert =
            decider.statement(sql, &[texts.clone(), texts.clone(), texts, Type::INT8_ARRAY]).await.map_err(failed)?;
        let txids: Vec<String> = rows.iter().map(|row| row.decision.txid.to_string()).collect();
        let hashes: Vec<String> = rows.iter().map(|row| row.decision.hash.to_string()).collect();
        let keys: Vec<Option<&str>> =
            rows.iter().map(|row| row.named.then_some(row.decision.business_key.as_str())).collect();
        let attempts: Vec<Option<i64>> =
            rows.iter().map(|row| row.named.then_some(i64::from(row.decision.attempt.number()))).collect();
        let inserted = decider.client.execute(&insert, &[&txids, &hashes, &keys, &attempts]).await;
        decider.give_back();
        match inserted {
            Ok(_) => Ok(true),
            Err(error) if blame(&error) == Blame::Busy => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    async fn wait_for_holder(&self, decision: &Decision) -> Result<(), Unavailable> {
        let failed = |error: Error| unavailable("looking for a branch", &error);
        let decider = self.deciders.lease().await?;
        let trial = format!(
            "begin; insert into suture_ledger (txid, state, hash) values ('{}', 'aborted', '{}') on conflict do nothing",
            decision.txid, decision.hash
        );
        let tried = decider.client.batch_execute(&trial).await;
        decider.client.batch_execute("rollback").await.map_err(failed)?;
        decider.give_back();
        match tried {
            Err(error) if blame(&error) == Blame::Busy => {}
            Err(error) => return Err(failed(error)),
            Ok(()) => sleep(LOOK_AGAIN).await,
        }
        Ok(())
    }
}

impl PostgresResource {
    /// Everything up to the PREPARE, in one flight. `None`: all went as it should. The first that did not decides.
    async fn run_steps(
        &self,
        worker: &mut Lease<'_>,
        prepare: &Prepare,
        operation: &Operation,
        values: &Values,
    ) -> Result<Option<Ran>, Unavailable> {
        let begin = begin(&self.opened.settings, self.opened.settings.key_timeout);
        let step_locks = format!("set local lock_timeout = {}", self.opened.settings.lock_timeout.as_millis());
        let row = LedgerRow::of(prepare, State::Committed, None);
        let mut flight = vec![Flown::Script(&begin), Flown::Work(Work::Insert(&row)), Flown::Script(&step_locks)];
        flight.extend(operation.prepare.iter().map(|step| Flown::Work(Work::Step(step, values))));
        flight.push(Flown::Work(Work::LookAtMark(&prepare.txid)));
        xa::judge(prepare, &operation.prepare, around(Act::Run, worker.fly(&flight)).await)
    }

    /// It goes by itself: a branch that is in the list says yes, so the rows that its steps changed are counted before.
    async fn prepare_transaction(&self, worker: &mut Lease<'_>, prepare: &Prepare) -> Result<Ran, Unavailable> {
        let gid = Gid::new(prepare.txid, &self.opened.owner, &prepare.hash).to_string();
        let both = format!(
            "prepare transaction '{gid}'; \
             select gid from pg_prepared_xacts where gid = '{gid}' and database = current_database()"
        );
        match around(Act::Prepare, worker.client.simple_query(&both)).await {
            Ok(messages) if shows(&messages, &gid) => Ok(Ran::Seen),
            // The block had failed: the answer was ROLLBACK, without an error.
            Ok(_) => Ok(Ran::Refused(Refusal::with(statement_failed()))),
            Err(error) if sqlstate(&error) == "42710" => Ok(Ran::Met(Collision::Visible)),
            Err(error) => match blame(&error) {
                Blame::Busy => Ok(Ran::Refused(Refusal::with(busy()))),
                Blame::Unique | Blame::Check | Blame::Statement => Ok(Ran::Refused(Refusal::with(statement_failed()))),
                Blame::Database => Err(unavailable("preparing", &error)),
            },
        }
    }
}

/// Opens a local transaction that waits so long for a lock.
fn begin(settings: &ServerSettings, lock_timeout: Duration) -> String {
    format!(
        "begin isolation level read committed; set local lock_timeout = {}; set local statement_timeout = {}",
        lock_timeout.as_millis(),
        settings.statement_timeout.max(lock_timeout).as_millis(),
    )
}

/// What stands in all gids of this ledger, and in no others.
fn mark(owner: &Owner) -> String {
    format!("/{}/{}/", owner.deployment, owner.participant)
}

// ---- mode reserve ----------------------------------------------------------------------------------------------------

/// A connection in mode reserve.
struct LocalSession<'a> {
    lease: Lease<'a>,
    begin: String,
    /// How many savepoints this transaction has had. None takes the name of another: to roll back to the wrong one would take
    /// branches along that have gone well.
    savepoints: usize,
    /// The first of those that were set last, and whether it is still there.
    first: usize,
    has_first: bool,
}

impl PostgresResource {
    async fn session<'a>(&self, pool: &'a Pool, lock_timeout: Duration) -> Result<LocalSession<'a>, Unavailable> {
        let (lease, begin) = (pool.lease().await?, begin(&self.opened.settings, lock_timeout));
        Ok(LocalSession { lease, begin, savepoints: 0, first: 0, has_first: false })
    }
}

impl Session for LocalSession<'_> {
    async fn begin(&mut self) -> Result<(), Trouble> {
        (self.savepoints, self.has_first) = (0, false);
        self.lease.client.batch_execute(&self.begin).await.map_err(|error| trouble(&error))
    }

    /// In a block that has failed COMMIT answers ROLLBACK, without an error, and the driver drops the tag: so something that
    /// only a sound block can do stands before it.
    async fn commit(&mut self) -> Result<(), Trouble> {
        self.lease.client.batch_execute("select 1; commit").await.map_err(|error| trouble(&error))
    }

    async fn roll_back(&mut self) -> Result<(), Trouble> {
        self.lease.client.batch_execute("rollback").await.map_err(|error| trouble(&error))
    }

    async fn rows(&mut self, txids: &[Txid], lock: bool) -> Result<BTreeMap<Txid, StoredRow>, Trouble> {
        let sql = if lock { LOCK_ROWS } else { LOOK_AT_ROWS };
        let failed = |error: Error| trouble(&error);
        let look = self.lease.statement(sql, &[Type::TEXT_ARRAY]).await.map_err(failed)?;
        let mut txids: Vec<String> = txids.iter().map(Txid::to_string).collect();
        // Locked in this order, which is everybody's.
        txids.sort_unstable();
        let rows = self.lease.client.query(&look, &[&txids]).await.map_err(failed)?;
        let unreadable = |unavailable: Unavailable| Trouble { blame: Blame::Database, code: unavailable.code };
        stored_rows(&rows).map_err(unreadable)
    }

    async fn rows_of_keys(&mut self, keys: &[&str]) -> Result<Vec<StoredKeyRow>, Trouble> {
        rows_of_keys(&mut self.lease, keys).await.map_err(|error| trouble(&error))
    }

    async fn marks(&mut self) -> Result<Marks, Trouble> {
        let failed = |error: Error| trouble(&error);
        let look = self.lease.statement(LOOK_AT_MARKS, &[]).await.map_err(failed)?;
        let rows = self.lease.client.query(&look, &[]).await.map_err(failed)?;
        stored_marks(&rows).map_err(|unavailable| Trouble { blame: Blame::Database, code: unavailable.code })
    }

    async fn page(
        &mut self,
        after: Option<&Txid>,
        older_than: Duration,
        rows: usize,
    ) -> Result<Vec<Candidate>, Trouble> {
        let failed = |error: Error| trouble(&error);
        let sql = "select txid, state <> 'in_doubt' and changed_at <= now() - make_interval(secs => $2)
                   from suture_ledger where txid > $1 order by txid limit $3";
        let look = self.lease.statement(sql, &[Type::TEXT, Type::FLOAT8, Type::INT8]).await.map_err(failed)?;
        let after = after.map(Txid::to_string).unwrap_or_default();
        let most = i64::try_from(rows).unwrap_or(i64::MAX);
        let rows = self.lease.client.query(&look, &[&after, &older_than.as_secs_f64(), &most]).await.map_err(failed)?;
        let read = |row: &tokio_postgres::Row| {
            Some(Candidate { txid: row.get::<_, &str>(0).parse().ok()?, is_old: row.get(1) })
        };
        let broken = || Trouble { blame: Blame::Database, code: "a txid cannot be read".to_string() };
        rows.iter().map(|row| read(row).ok_or_else(broken)).collect()
    }

    async fn purge(&mut self, purge: &Purge) -> Result<(), Trouble> {
        let failed = |error: Error| trouble(&error);
        let sql = "delete from suture_ledger where txid = any($1) and state <> 'in_doubt'";
        let delete = self.lease.statement(sql, &[Type::TEXT_ARRAY]).await.map_err(failed)?;
        let sql = "insert into suture_marks (letters, shard, next_offset) select * from unnest($1, $2, $3)
                   on conflict (letters, shard)
                   do update set next_offset = greatest(suture_marks.next_offset, excluded.next_offset)";
        let types = [Type::TEXT_ARRAY, Type::INT4_ARRAY, Type::INT8_ARRAY];
        let raise = self.lease.statement(sql, &types).await.map_err(failed)?;
        let txids: Vec<String> = purge.txids.iter().map(Txid::to_string).collect();
        let marks = &purge.marks.0;
        let letters: Vec<&str> = marks.keys().map(|(letters, _)| letters.as_str()).collect();
        let shards: Vec<i32> = marks.keys().map(|(_, shard)| i32::from(shard.0)).collect();
        let offsets: Vec<i64> = marks.values().map(|mark| mark.cast_signed()).collect();
        let (txids, marks): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 3]) =
            ([&txids], [&letters, &shards, &offsets]);
        let client = &self.lease.client;
        let (deleted, raised) = tokio::join!(biased; client.execute(&delete, &txids), client.execute(&raise, &marks));
        deleted.and(raised).map(drop).map_err(failed)
    }

    async fn branches(&mut self, works: &[Vec<Work<'_>>]) -> Vec<Landed> {
        let own = works.iter().map(Vec::len);
        // The first of them takes those behind it along.
        let released = match std::mem::replace(&mut self.has_first, true) {
            true => format!("release savepoint branch_{}; ", self.first),
            false => String::new(),
        };
        self.first = self.savepoints;
        self.savepoints += works.len();
        let savepoint = |number| {
            let released = if number == self.first { &released } else { "" };
            format!("{released}savepoint branch_{number}")
        };
        let savepoints: Vec<String> = (self.first..self.savepoints).map(savepoint).collect();
        let mut flight = Vec::with_capacity(works.len() + own.clone().sum::<usize>());
        for (savepoint, work) in savepoints.iter().zip(works) {
            flight.push(Flown::Script(savepoint));
            flight.extend(work.iter().map(|work| Flown::Work(*work)));
        }
        self.lease.fly(&flight).await.by_branch(own)
    }

    async fn check_deferred(&mut self) -> Result<(), Trouble> {
        self.lease.client.batch_execute("set constraints all immediate").await.map_err(|error| trouble(&error))
    }

    async fn undo_from(&mut self, branch: usize) -> Result<bool, Trouble> {
        self.has_first &= branch > 0;
        let number = self.first + branch;
        let undo = format!("rollback to savepoint branch_{number}; release savepoint branch_{number}");
        self.lease.client.batch_execute(&undo).await.map(|()| true).map_err(|error| trouble(&error))
    }
}

/// Runs every operation in a local transaction that is rolled back.
pub(crate) async fn try_all(
    settings: &ServerSettings,
    opening: &Opening,
    wish: &Wish,
) -> Result<Vec<Tried>, OpenError> {
    let pool = Pool::new(Dialer::new(settings, &opening.owner, settings.lock_timeout)?, 1);
    let mut lease = pool.lease().await?;
    check_ledger_rights(&mut lease).await?;
    let mut unfit = Vec::new();
    for step in trial::steps(opening) {
        unfit.extend(trial::unfit(check_statement(&mut lease, step).await)?);
    }
    let begin = begin(settings, settings.lock_timeout);
    let mut session = LocalSession { lease, begin, savepoints: 0, first: 0, has_first: false };
    trial::try_all(&mut session, opening, wish, &unfit).await
}

// ---- what the service asks besides -----------------------------------------------------------------------------------

impl Server for PostgresResource {
    async fn reserve(&self, batch: &[Arc<Prepare>], on_no: OnNo) -> Result<Vec<Prepared>, Unavailable> {
        let mut session = self.session(&self.workers, self.opened.settings.lock_timeout).await?;
        let prepared = reserve::prepare(&mut session, &self.opened.operations, batch, on_no).await?;
        session.lease.give_back();
        Ok(prepared)
    }

    async fn confirm_or_cancel(&self, batch: &[Arc<Decision>]) -> Result<Vec<Decided>, Unavailable> {
        let mut session = self.session(&self.deciders, self.opened.settings.lock_timeout).await?;
        let decided = reserve::decide(&mut session, &self.opened.operations, batch).await?;
        session.lease.give_back();
        Ok(decided)
    }

    async fn list_in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let doing = "reading the list";
        let clerk = self.clerks.lease().await?;
        let rows = clerk
            .client
            .query(
                "select gid, extract(epoch from now() - prepared)::float8 from pg_prepared_xacts
                 where database = current_database() and position($1 in gid) > 0",
                &[&mark(&self.opened.owner)],
            )
            .await
            .map_err(|error| unavailable(doing, &error))?;
        clerk.give_back();
        let read = |row: &tokio_postgres::Row| {
            let gid: Gid = row.get::<_, &str>(0).parse().ok()?;
            let age = Duration::try_from_secs_f64(row.get(1)).ok();
            let hash = SeenHash::Short(gid.short_hash);
            (gid.owner == self.opened.owner).then_some(InDoubt { txid: gid.txid, age, hash })
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    async fn rows_in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let doing = "reading the ledger";
        let clerk = self.clerks.lease().await?;
        let sql = "select txid, extract(epoch from now() - changed_at)::float8, hash from suture_ledger
                   where state = 'in_doubt'";
        let rows = clerk.client.query(sql, &[]).await.map_err(|error| unavailable(doing, &error))?;
        clerk.give_back();
        let read = |row: &tokio_postgres::Row| {
            let age = Duration::try_from_secs_f64(row.get(1)).ok();
            let hash = SeenHash::Whole(row.get::<_, &str>(2).parse().ok()?);
            Some(InDoubt { txid: row.get::<_, &str>(0).parse().ok()?, age, hash })
        };
        rows.iter().map(|row| read(row).ok_or_else(|| Unavailable::new(doing, "a row cannot be read"))).collect()
    }

    async fn purge_page(&self, page: &Page, in_doubt: &[InDoubt]) -> Result<Purged, Unavailable> {
        let mut session = self.session(&self.clerks, self.opened.settings.lock_timeout).await?;
        let purged = purge_page(&mut session, page, in_doubt).await?;
        session.lease.give_back();
        Ok(purged)
    }

    async fn read_positions(&self, topic: String) -> Result<Vec<Position>, Unavailable> {
        let doing = "reading positions";
        let clerk = self.clerks.lease().await?;
        let sql = "select topic, letters, shard, next_offset from suture_positions where topic = $1";
        let rows = clerk.client.query(sql, &[&topic]).await.map_err(|error| unavailable(doing, &error))?;
        clerk.give_back();
        rows.iter().map(|row| position_of(row).ok_or_else(|| Unavailable::new(doing, "a row cannot be read"))).collect()
    }

    async fn write_positions(&self, positions: Vec<Position>, seen: Vec<Position>) -> Result<Stored, Unavailable> {
        let failed = |error: Error| unavailable("storing positions", &error);
        // An error leaves the transaction open; the lease closes the connection then.
        let mut clerk = self.clerks.lease().await?;
        let look_sql = "select p.topic, p.letters, p.shard, p.next_offset, name.value
                        from (select value from suture_meta where name = $1) as name
                        left join suture_positions as p on p.topic = any($2)";
        let look = clerk.statement(look_sql, &[Type::TEXT, Type::TEXT_ARRAY]).await.map_err(failed)?;
        let server = clerk.statement(SERVER, &[]).await.map_err(failed)?;
        let sql = "insert into suture_positions (topic, letters, shard, next_offset)
                   select * from unnest($1, $2, $3, $4)
                   on conflict (topic, letters, shard)
                   do update set next_offset = greatest(suture_positions.next_offset, excluded.next_offset)";
        let texts = Type::TEXT_ARRAY;
        let types = [texts.clone(), texts, Type::INT4_ARRAY, Type::INT8_ARRAY];
        let store = clerk.statement(sql, &types).await.map_err(failed)?;
        let topics: BTreeSet<&str> = seen.iter().map(|position| position.topic.as_str()).collect();
        let topics: Vec<&str> = topics.into_iter().collect();
        let parameters: [&(dyn ToSql + Sync); 2] = [&LEDGER_ID, &topics];
        let client = &clerk.client;
        // Whoever puts back an older state of these tables must wait for this transaction, or it for him.
        let (begun, server, found) = tokio::join!(
            biased;
            client.batch_execute("begin"),
            client.query_one(&server, &[]),
            client.query(&look, &parameters),
        );
        begun.map_err(failed)?;
        let (server, found) = (server.map_err(failed)?, found.map_err(failed)?);
        let is_another_server = server.get::<_, &str>(0) != self.opened.server;
        let name = found.first().map(|row| row.get::<_, &str>(4));
        let there = found.iter().filter_map(position_of);
        if is_another_server || went_back((&self.opened.ledger.get(), name), &seen, there) {
            client.batch_execute("rollback").await.map_err(failed)?;
            clerk.give_back();
            return Ok(Stored::WentBack);
        }
        let topics: Vec<&str> = positions.iter().map(|position| position.topic.as_str()).collect();
        let letters: Vec<&str> = positions.iter().map(|position| position.letters.as_str()).collect();
        let shards: Vec<i32> = positions.iter().map(|position| i32::from(position.shard.0)).collect();
        let offsets: Vec<i64> = positions.iter().map(|position| position.next_offset.cast_signed()).collect();
        let parameters: [&(dyn ToSql + Sync); 4] = [&topics, &letters, &shards, &offsets];
        // A commit of what has failed answers ROLLBACK without an error, but then the statement before it had one.
        let (stored, committed) =
            tokio::join!(biased; client.execute(&store, &parameters), client.batch_execute("commit"));
        stored.map_err(failed)?;
        committed.map_err(failed)?;
        clerk.give_back();
        Ok(Stored::All)
    }

    async fn redo_together(&self, batch: &[Arc<Prepare>]) -> Result<Option<Vec<Redone>>, Unavailable> {
        let mut session = self.session(&self.workers, self.opened.settings.lock_timeout).await?;
        let redone = reserve::redo(&mut session, &self.opened.operations, batch).await?;
        session.lease.give_back();
        Ok(redone)
    }

    async fn read_meta(&self) -> Result<BTreeMap<String, String>, Unavailable> {
        let clerk = self.clerks.lease().await?;
        let meta = read_meta(&clerk.client).await;
        let meta = meta.map_err(|error| unavailable("reading the ledger's marks", &error))?;
        clerk.give_back();
        Ok(meta)
    }

    async fn rename(&self, from: &str) -> Result<(), Unavailable> {
        let failed = |error: Error| unavailable("renaming the ledger", &error);
        let clerk = self.clerks.lease().await?;
        let rename = format!(
            "with renamed as (
                 update suture_meta set value = $2 || left(gen_random_uuid()::text, 8)
                 where name = '{LEDGER_ID}' and value = $1 returning 1)
             insert into suture_meta select '{RESTORING}', $1 from renamed
             on conflict (name) do update set value = excluded.value"
        );
        clerk.client.execute(&rename, &[&from, &beginning_of_next(from)]).await.map_err(failed)?;
        clerk.give_back();
        Ok(())
    }

    async fn unmark(&self) -> Result<(), Unavailable> {
        let failed = |error: Error| unavailable("ending the restore", &error);
        let clerk = self.clerks.lease().await?;
        clerk.client.execute("delete from suture_meta where name = $1", &[&RESTORING]).await.map_err(failed)?;
        clerk.give_back();
        Ok(())
    }

    async fn ledger_rows(&self, txids: &[Txid]) -> Result<BTreeMap<Txid, StoredRow>, Unavailable> {
        let failed = |error: Error| unavailable("looking at the ledger", &error);
        let mut clerk = self.clerks.lease().await?;
        let look = clerk.statement(LOOK_AT_ROWS, &[Type::TEXT_ARRAY]).await.map_err(failed)?;
        let txids: Vec<String> = txids.iter().map(Txid::to_string).collect();
        let rows = clerk.client.query(&look, &[&txids]).await.map_err(failed)?;
        clerk.give_back();
        stored_rows(&rows)
    }

    async fn read_marks(&self) -> Result<Marks, Unavailable> {
        let mut session = self.session(&self.clerks, self.opened.settings.lock_timeout).await?;
        let marks = session.marks().await.map_err(|trouble| trouble.unavailable("looking at the ledger"))?;
        session.lease.give_back();
        Ok(marks)
    }

    async fn insert_entries(&self, entries: &[Entry]) -> Result<(), Unavailable> {
        let failed = |error: Error| unavailable("noting", &error);
        let mut clerk = self.clerks.lease().await?;
        let sql = "insert into suture_audit (entry, record_key, record) select * from unnest($1, $2, $3)
                   on conflict do nothing";
        let texts = Type::TEXT_ARRAY;
        let note = clerk.statement(sql, &[texts.clone(), texts.clone(), texts]).await.map_err(failed)?;
        let columns: [fn(&Entry) -> &str; 3] = [|of| &of.entry, |of| &of.record_key, |of| &of.record];
        let [names, keys, records] = columns.map(|column| entries.iter().map(column).collect::<Vec<&str>>());
        clerk.client.execute(&note, &[&names, &keys, &records]).await.map_err(failed)?;
        clerk.give_back();
        Ok(())
    }

    async fn read_entries(&self, which: Which) -> Result<Vec<Noted>, Unavailable> {
        let doing = "reading what was noted";
        let clerk = self.clerks.lease().await?;
        let sql = "select entry, record_key, record, told, floor(extract(epoch from changed_at))::bigint
                   from suture_audit where $1 or not told order by changed_at, entry";
        let rows = clerk.client.query(sql, &[&(which == Which::All)]).await;
        let rows = rows.map_err(|error| unavailable(doing, &error))?;
        clerk.give_back();
        let read = |row: &tokio_postgres::Row| {
            let entry = Entry { entry: row.get(0), record_key: row.get(1), record: row.get(2) };
            let since = OffsetDateTime::from_unix_timestamp(row.get(4)).ok()?;
            Some(Noted { entry, told: row.get(3), since })
        };
        rows.iter().map(|row| read(row).ok_or_else(|| Unavailable::new(doing, "a row cannot be read"))).collect()
    }

    async fn mark_entries(&self, entries: &[String]) -> Result<(), Unavailable> {
        let clerk = self.clerks.lease().await?;
        let sql = "update suture_audit set told = true where entry = any($1)";
        clerk.client.execute(sql, &[&entries]).await.map_err(|error| unavailable("noting", &error))?;
        clerk.give_back();
        Ok(())
    }

    async fn write_resolution(&self, resolution: &Resolution) -> Result<Result<(), Unsettled>, Unavailable> {
        let mut session = self.session(&self.clerks, self.opened.settings.lock_timeout).await?;
        let resolved = resolve(&mut session, resolution).await?;
        session.lease.give_back();
        Ok(resolved)
    }

    async fn insert_seeds(&self, name: &str, payloads: &[Box<RawValue>]) -> Result<u64, SeedError> {
        let seed = self.opened.seeds.get(name).ok_or_else(|| SeedError::Unknown(name.to_string()))?;
        let rows = bind_seed(seed, payloads)?;
        // An error leaves the transaction open; the lease closes the connection then, and all of it is undone.
        let mut clerk = self.clerks.lease().await?;
        let begun = clerk.client.batch_execute("begin").await;
        begun.map_err(|error| unavailable("seeding", &error))?;
        let mut inserted = 0;
        for values in &rows {
            for step in &seed.steps {
                inserted += insert_seed(&mut clerk, step, values).await?;
            }
        }
        let committed = clerk.client.batch_execute("commit").await;
        committed.map_err(|error| unavailable("seeding", &error))?;
        clerk.give_back();
        Ok(inserted)
    }
}

/// A position whose columns come first. `None`, if it has none, or cannot be read.
fn position_of(row: &tokio_postgres::Row) -> Option<Position> {
    Some(Position {
        topic: row.get::<_, Option<String>>(0)?,
        letters: row.get::<_, &str>(1).parse().ok()?,
        shard: Shard(u16::try_from(row.get::<_, i32>(2)).ok()?),
        next_offset: u64::try_from(row.get::<_, i64>(3)).ok()?,
    })
}

async fn insert_seed(clerk: &mut Lease<'_>, step: &operations::Step, values: &Values) -> Result<u64, SeedError> {
    let failed = |code| SeedError::Failed { place: step.place.clone(), code };
    let of_error = |error: Error| match blame(&error) {
        Blame::Database => SeedError::from(unavailable("seeding", &error)),
        Blame::Unique | Blame::Check | Blame::Busy | Blame::Statement => failed(sqlstate(&error)),
    };
    let statement = clerk.statement_of(step).await.map_err(of_error)?;
    let bound = bound(step, values);
    let rows = clerk.client.execute(&statement, &references(&bound)).await.map_err(of_error)?;
    if step.rows != Rows::Any && step.refuses_rows(rows).is_some() {
        return Err(failed(format!("{rows} rows")));
    }
    Ok(rows)
}

// ---- the ledger ------------------------------------------------------------------------------------------------------

const INSERT_ROW_TYPES: [Type; 9] =
    [Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT, Type::INT8, Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT];

fn parameters(row: &LedgerRow) -> Vec<Box<dyn ToSql + Sync + Send + '_>> {
    vec![
        Box::new(&row.txid),
        Box::new(row.state),
        Box::new(&row.hash),
        Box::new(&row.business_key),
        Box::new(row.attempt),
        Box::new(&row.live_key),
        Box::new(&row.operation),
        Box::new(&row.code),
        Box::new(&row.duplicate_of),
    ]
}

/// The ledger rows of [`LOOK_AT_ROWS`].
fn stored_rows<M: FromIterator<(Txid, StoredRow)>>(rows: &[tokio_postgres::Row]) -> Result<M, Unavailable> {
    let read = |row: &tokio_postgres::Row| {
        let txid = row.get::<_, &str>(0).parse().ok()?;
        let stored = StoredRow {
            state: row.get(1),
            hash: row.get(2),
            operation: row.get(3),
            code: row.get(4),
            duplicate_of: row.get(5),
        };
        Some((txid, stored))
    };
    let unreadable = || Unavailable::new("reading the ledger", "a txid cannot be read");
    rows.iter().map(|row| read(row).ok_or_else(unreadable)).collect()
}

/// The rows of [`LOOK_AT_MARKS`].
fn stored_marks(rows: &[tokio_postgres::Row]) -> Result<Marks, Unavailable> {
    let read = |row: &tokio_postgres::Row| {
        let place = (row.get::<_, &str>(0).parse().ok()?, Shard(u16::try_from(row.get::<_, i32>(1)).ok()?));
        Some((place, u64::try_from(row.get::<_, i64>(2)).ok()?))
    };
    let unreadable = || Unavailable::new("reading the ledger", "a mark cannot be read");
    rows.iter().map(|row| read(row).ok_or_else(unreadable)).collect::<Result<_, _>>().map(Marks)
}

async fn rows_of_keys(connection: &mut Connection, keys: &[&str]) -> Result<Vec<StoredKeyRow>, Error> {
    let look = connection.statement(LOOK_AT_KEYS, &[Type::TEXT_ARRAY]).await?;
    let rows = connection.client.query(&look, &[&keys]).await?;
    let read = |row: &tokio_postgres::Row| StoredKeyRow {
        business_key: row.get(0),
        txid: row.get(1),
        state: row.get(2),
        hash: row.get(3),
        attempt: row.get(4),
    };
    Ok(rows.iter().map(read).collect())
}

// ---- opening ---------------------------------------------------------------------------------------------------------

/// Whether a step fits the tables, and the role may run it. To parse it shows the one, EXPLAIN the other. Who alters a table may
/// wait for a branch in doubt that only this participant ends: a lock in the way is no reason not to open.
async fn check_statement(connection: &mut Connection, step: &operations::Step) -> Result<(), OpenError> {
    let judged = |error: &Error| {
        let (code, said) = (sqlstate(error), error.as_db_error().map(|error| error.message().to_string()));
        match blame(error) {
            Blame::Busy => {
                rights::not_checked(step, &code);
                Ok(())
            }
            Blame::Database => Err(OpenError::from(unavailable("checking statements", error))),
            _ if is_denied(&code) => Err(rights::lacks(step, code, said.unwrap_or_default())),
            _ => Err(OpenError::Statement { place: step.place.clone(), code, said: said.unwrap_or_default() }),
        }
    };
    if let Err(error) = connection.statement_of(step).await {
        return judged(&error);
    }
    let types: Vec<Type> = step.kinds.iter().map(|kind| type_of(*kind)).collect();
    let nulls: Vec<_> = step.kinds.iter().map(|kind| bound_value(&Value::Null, *kind)).collect();
    let client = &connection.client;
    let explained = async {
        let explain = client.prepare_typed(&format!("explain {}", step.sql), &types).await?;
        client.execute(&explain, &references(&nulls)).await
    };
    match explained.await {
        Ok(_) => Ok(()),
        Err(error) if is_denied(&sqlstate(&error)) || matches!(blame(&error), Blame::Busy | Blame::Database) => {
            judged(&error)
        }
        // What cannot be planned without values says nothing about rights.
        Err(_) => Ok(()),
    }
}

async fn check_ledger_rights(connection: &mut Connection) -> Result<(), OpenError> {
    let tables = texts(&connection.client, LOOKING, tables_of(sql::Dialect::Postgres)).await?;
    for step in rights::of_ledger(&names(tables)) {
        check_statement(connection, &step).await?;
    }
    Ok(())
}

/// Refuses a ledger that is somebody else's, or holds in doubt what nobody would finish.
async fn check_ledger(connection: &mut Connection, opening: &Opening) -> Result<(), OpenError> {
    let is_there = !texts(&connection.client, LOOKING, DIALECT.is_there).await?.is_empty();
    let (mut rows, mut noted) = (0, Vec::new());
    if is_there {
        check_marks(&facts_of(texts(&connection.client, "reading the ledger's marks", READ_MARKS).await?), opening)?;
        check_ledger_rights(connection).await?;
        rows = count(&connection.client, "select count(*) from suture_ledger where state = 'in_doubt'", &[]).await?;
        noted = texts(&connection.client, "reading the ledger", OPERATIONS_IN_DOUBT).await?;
    }
    let listed = "select count(*) from pg_prepared_xacts
                  where database = current_database() and position($1 in gid) > 0";
    let listed = count(&connection.client, listed, &[&mark(&opening.owner)]).await?;
    check_mode(opening.mode, rows, listed)?;
    check_operations(&opening.operations, noted)
}

async fn count(client: &Client, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<i64, Unavailable> {
    let counted = client.query_one(sql, parameters).await;
    Ok(counted.map_err(|error| unavailable("reading the ledger", &error))?.get(0))
}

/// Creates the tables where there are none, checks the marks, and answers the ledger's name. Where they are there no right to create
/// any is needed.
async fn prepare_ledger(client: &Client, opening: &Opening) -> Result<String, OpenError> {
    let failed = |error: Error| unavailable("creating the ledger", &error);
    if texts(client, LOOKING, DIALECT.is_there).await?.is_empty() {
        // Two that start at once would both create; the number is only a name for the lock.
        let create = format!("begin; select pg_advisory_xact_lock(7355608571); {} commit", tables::POSTGRES);
        client.batch_execute(&create).await.map_err(failed)?;
    }
    let doing = "reading the ledger's marks";
    for sql in missing_marks(sql::Dialect::Postgres, &facts_of(texts(client, doing, READ_MARKS).await?), opening)? {
        client.batch_execute(&sql).await.map_err(failed)?;
    }
    let found = facts_of(texts(client, doing, READ_MARKS).await?);
    let unnamed = || Unavailable::new("creating the ledger", "its name cannot be read").into();
    found.get(LEDGER_ID).cloned().ok_or_else(unnamed)
}

async fn read_meta(client: &Client) -> Result<BTreeMap<String, String>, Error> {
    let rows = client.query("select name, value from suture_meta", &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

// ---- connections -----------------------------------------------------------------------------------------------------

/// Opens connections with one way to wait for locks.
struct Dialer {
    config: tokio_postgres::Config,
    session: String,
    /// What the session's last statement answers if it is as it must be.
    read_back: String,
}

type Pool = crate::pool::Pool<Dialer>;
type Lease<'a> = crate::pool::Lease<'a, Dialer>;

struct Connection {
    client: Client,
    statements: HashMap<String, Statement>,
    driver: AbortHandle,
}

impl Dialer {
    fn new(settings: &ServerSettings, owner: &Owner, lock_timeout: Duration) -> Result<Self, Unavailable> {
        // Written out, so that no default of a role or a database counts.
        let session = format!(
            "set synchronous_commit = on; set default_transaction_isolation = 'read committed';
             set default_transaction_read_only = off; set idle_in_transaction_session_timeout = {};
             set lock_timeout = {}; set statement_timeout = {};
             select current_setting('synchronous_commit') || ' ' ||
                    extract(epoch from current_setting('idle_in_transaction_session_timeout')::interval)::bigint",
            settings.idle_timeout.as_millis(),
            lock_timeout.as_millis(),
            settings.statement_timeout.max(lock_timeout).as_millis(),
        );
        let config = Self::config(settings, format!("suture {}", owner.participant))?;
        let read_back = format!("on {}", settings.idle_timeout.as_secs());
        Ok(Self { config, session, read_back })
    }

    /// For somebody who only reads.
    fn reading(settings: &ServerSettings, owner: &Owner) -> Result<Self, Unavailable> {
        let session = format!(
            "set default_transaction_isolation = 'read committed'; set default_transaction_read_only = on;
             set lock_timeout = {locks}; set statement_timeout = {time};
             select current_setting('default_transaction_read_only')",
            locks = LOCK_PATIENCE.as_millis(),
            time = PATIENCE.as_millis(),
        );
        let config = Self::config(settings, format!("suture reads {}", owner.participant))?;
        Ok(Self { config, session, read_back: "on".to_string() })
    }

    fn config(settings: &ServerSettings, name: String) -> Result<tokio_postgres::Config, Unavailable> {
        let config = settings.url.parse::<tokio_postgres::Config>();
        let mut config = config.map_err(|_| Unavailable::new("connecting", "the URL cannot be read"))?;
        config.application_name(name);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(5));
        }
        Ok(config)
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let (client, mut connection) = self.config.connect(NoTls).await?;
        // Driven by hand, because the driver's own loop logs notices, which may hold row values.
        let driver = tokio::spawn(async move {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                match message {
                    Ok(AsyncMessage::Notice(_) | AsyncMessage::Notification(_)) | Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        Ok(Connection { client, statements: HashMap::new(), driver: driver.abort_handle() })
    }
}

impl Dial for Dialer {
    type Connection = Connection;

    async fn dial(&self) -> Result<Connection, Unavailable> {
        let failed = |error: Error| unavailable("connecting", &error);
        let connection = self.connect().await.map_err(failed)?;
        let read_back = connection.client.simple_query(&self.session).await.map_err(failed)?;
        match shows(&read_back, &self.read_back) {
            true => Ok(connection),
            false => Err(Unavailable::new("connecting", "session settings are not taken")),
        }
    }

    fn is_closed(connection: &Connection) -> bool {
        connection.client.is_closed()
    }
}

impl Connection {
    /// A statement with declared types, prepared once a connection.
    async fn statement(&mut self, sql: &str, types: &[Type]) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare_typed(sql, types).await?;
        self.statements.insert(sql.to_string(), statement.clone());
        Ok(statement)
    }

    async fn statement_of(&mut self, step: &operations::Step) -> Result<Statement, Error> {
        let types: Vec<Type> = step.kinds.iter().map(|kind| type_of(*kind)).collect();
        self.statement(&step.sql, &types).await
    }
}

/// One message of a flight.
enum Flown<'a> {
    /// Statements without values.
    Script(&'a str),
    /// One statement of a branch.
    Work(Work<'a>),
}

impl Connection {
    /// Sends all of them at once, in order; what follows one that fails comes to nothing. A step that is new on this connection
    /// is parsed in its turn, behind what stands before it: if it does not parse it fails as if it had been run.
    async fn fly(&mut self, flight: &[Flown<'_>]) -> Landed {
        let (mut rows, mut loaded) = (Vec::with_capacity(flight.len()), Vec::with_capacity(flight.len()));
        for flown in flight {
            if let Flown::Work(Work::Step(step, _)) = flown
                && !self.statements.contains_key(&step.sql)
                && let Err(trouble) = self.send(&std::mem::take(&mut loaded), &mut rows).await
            {
                return Landed { rows, trouble: Some(trouble) };
            }
            let cargo = match flown {
                Flown::Script(script) => Ok(Cargo::Script(script)),
                Flown::Work(work) => self.load(*work).await,
            };
            match cargo {
                Ok(cargo) => loaded.push(cargo),
                Err(error) => return Landed { rows, trouble: Some(trouble(&error)) },
            }
        }
        let trouble = self.send(&loaded, &mut rows).await.err();
        Landed { rows, trouble }
    }

    async fn send(&mut self, loaded: &[Cargo<'_>], rows: &mut Vec<u64>) -> Result<(), Trouble> {
        let client = &self.client;
        let sent = loaded.iter().map(|cargo| match cargo {
            Cargo::Script(script) => {
                Box::pin(async { client.batch_execute(script).await.map(|()| 0_u64) }) as InFlight<'_, _>
            }
            Cargo::Bound(statement, values) => {
                Box::pin(async { client.execute(statement, &references(values)).await }) as InFlight<'_, _>
            }
        });
        for landed in one_behind_the_other(sent.collect()).await {
            match landed {
                Ok(count) => rows.push(count),
                Err(error) if sqlstate(&error) == "0A000" => {
                    // A plan that was made before the tables were changed. The next one is made anew.
                    self.statements.clear();
                    return Err(Trouble { blame: Blame::Busy, code: sqlstate(&error) });
                }
                Err(error) => return Err(trouble(&error)),
            }
        }
        Ok(())
    }

    async fn load<'a>(&mut self, work: Work<'a>) -> Result<Cargo<'a>, Error> {
        Ok(match work {
            Work::Step(step, values) => Cargo::Bound(self.statement_of(step).await?, bound(step, values)),
            Work::Insert(row) => {
                let insert = self.statement(INSERT_ROW, &INSERT_ROW_TYPES).await?;
                Cargo::Bound(insert, parameters(row))
            }
            Work::Remove(txid) => {
                let remove = self.statement("delete from suture_ledger where txid = $1", &[Type::TEXT]).await?;
                Cargo::Bound(remove, vec![Box::new(txid.to_string())])
            }
            Work::Note(Entry { entry, record_key, record }) => {
                let sql = "insert into suture_audit (entry, record_key, record) values ($1, $2, $3)";
                let note = self.statement(sql, &[Type::TEXT, Type::TEXT, Type::TEXT]).await?;
                Cargo::Bound(note, vec![Box::new(entry), Box::new(record_key), Box::new(record)])
            }
            Work::LookAtMark(txid) => {
                let look = self.statement(LOOK_AT_MARK, &[Type::TEXT, Type::INT4, Type::INT8]).await?;
                let (shard, offset) = (i32::from(txid.shard.0), txid.offset.cast_signed());
                Cargo::Bound(look, vec![Box::new(txid.log.to_string()), Box::new(shard), Box::new(offset)])
            }
            Work::Finish(txid, state) => {
                let finish = self.statement(FINISH_ROW, &[Type::TEXT, Type::TEXT]).await?;
                Cargo::Bound(finish, vec![Box::new(txid.to_string()), Box::new(state.as_str())])
            }
        })
    }
}

/// A message with its values.
enum Cargo<'a> {
    Script(&'a str),
    Bound(Statement, Vec<Box<dyn ToSql + Sync + Send + 'a>>),
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Whether the first column of a row says so.
fn shows(messages: &[SimpleQueryMessage], expected: &str) -> bool {
    messages.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0) == Some(expected),
        _ => false,
    })
}

// ---- reading ---------------------------------------------------------------------------------------------------------

pub(crate) const DIALECT: Dialect = Dialect {
    is_there: "select 1 where to_regclass('suture_meta') is not null",
    version: "select 'PostgreSQL ' || current_setting('server_version')",
    age: "floor(extract(epoch from now() - changed_at))::bigint",
    now_ms: "select floor(extract(epoch from clock_timestamp()) * 1000)::bigint",
};

/// Runs what `suture participant init` has made.
pub(crate) async fn execute(
    settings: &ServerSettings,
    owner: &Owner,
    statements: &[String],
) -> Result<(), Unavailable> {
    let connection = Dialer::new(settings, owner, settings.lock_timeout)?.dial().await?;
    let script = format!("begin; {}; commit", statements.join(";\n"));
    connection.client.batch_execute(&script).await.map_err(|error| unavailable("setting up the ledger", &error))
}

/// The rows of a query, as texts.
async fn texts(client: &Client, doing: &'static str, sql: &str) -> Result<Vec<TextRow>, Unavailable> {
    let messages = client.simple_query(sql).await.map_err(|error| unavailable(doing, &error))?;
    let texts = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).map(str::to_string)).collect())
        }
        _ => None,
    };
    Ok(messages.iter().filter_map(texts).collect())
}

/// A connection that changes nothing.
pub(crate) struct ReadOnly(Connection);

impl ReadOnly {
    pub async fn open(settings: &ServerSettings, owner: &Owner) -> Result<Self, Unavailable> {
        Ok(Self(Dialer::reading(settings, owner)?.dial().await?))
    }

    pub async fn ask(&mut self, doing: &'static str, sql: &str) -> Result<Vec<TextRow>, Unavailable> {
        texts(&self.0.client, doing, sql).await
    }

    /// See [`check_statement`].
    pub async fn check_statement(&mut self, step: &operations::Step) -> Result<(), OpenError> {
        check_statement(&mut self.0, step).await
    }

    /// All that is prepared in this database, as far as its name is one of Suture's.
    pub async fn listed(&mut self) -> Result<Vec<(Option<Gid>, Option<Duration>)>, Unavailable> {
        let sql = "select gid, extract(epoch from now() - prepared)::float8 from pg_prepared_xacts
                   where database = current_database()";
        let rows = self.ask("reading the list", sql).await?;
        let read = |row: &TextRow| {
            let text = |column: usize| row.get(column).and_then(Option::as_deref);
            let age = text(1).and_then(|age| Duration::try_from_secs_f64(age.parse().ok()?).ok());
            (text(0).and_then(|gid| gid.parse().ok()), age)
        };
        Ok(rows.iter().map(read).collect())
    }
}

// ---- errors and values -----------------------------------------------------------------------------------------------

fn trouble(error: &Error) -> Trouble {
    Trouble { blame: blame(error), code: sqlstate(error) }
}

fn blame(error: &Error) -> Blame {
    let Some(state) = error.code() else { return Blame::Database };
    match state.code() {
        "23505" => Blame::Unique,
        "23514" => Blame::Check,
        // Lock, serialisation, deadlock, statement timeout, slots used up.
        "55P03" | "40001" | "40P01" | "57014" | "53200" => Blame::Busy,
        // Connection, resources, operator, system, internal; read-only after a failover.
        other if ["08", "53", "57", "58", "XX", "F0"].contains(&&other[..2]) => Blame::Database,
        "25006" | "25P03" | "26000" => Blame::Database,
        _ => Blame::Statement,
    }
}

/// The SQLSTATE. Its text may hold values of a row.
fn sqlstate(error: &Error) -> String {
    match error.code() {
        Some(state) => state.code().to_string(),
        None if error.is_closed() || is_of_the_network(error) => "connection".to_string(),
        // The driver itself gave up: no password for a server that wants one, TLS, a server that is no PostgreSQL.
        None => "client".to_string(),
    }
}

fn is_of_the_network(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
}

fn unavailable(doing: &'static str, error: &Error) -> Unavailable {
    Unavailable::new(doing, sqlstate(error))
}

fn type_of(kind: Kind) -> Type {
    match kind {
        Kind::Text | Kind::Json => Type::TEXT,
        Kind::Integer | Kind::Minor => Type::INT8,
        Kind::Decimal => Type::NUMERIC,
        Kind::Timestamp => Type::TIMESTAMPTZ,
        Kind::Date => Type::DATE,
        Kind::Boolean => Type::BOOL,
    }
}

/// A step's values as PostgreSQL takes them; the statement declares the same types.
fn bound(step: &operations::Step, values: &Values) -> Vec<Box<dyn ToSql + Sync + Send>> {
    step.values(values).zip(&step.kinds).map(|(value, kind)| bound_value(value, *kind)).collect()
}

fn bound_value(value: &Value, kind: Kind) -> Box<dyn ToSql + Sync + Send> {
    match value {
        Value::Null => match kind {
            Kind::Text | Kind::Json => Box::new(None::<String>),
            Kind::Integer | Kind::Minor => Box::new(None::<i64>),
            Kind::Decimal => Box::new(None::<Decimal>),
            Kind::Timestamp => Box::new(None::<OffsetDateTime>),
            Kind::Date => Box::new(None::<Date>),
            Kind::Boolean => Box::new(None::<bool>),
        },
        Value::Text(text) => Box::new(text.clone()),
        Value::Integer(number) => Box::new(*number),
        Value::Decimal(decimal) => Box::new(*decimal),
        Value::Timestamp(at) => Box::new(*at),
        Value::Date(date) => Box::new(*date),
        Value::Boolean(yes) => Box::new(*yes),
    }
}

fn references<'a>(bound: &'a [Box<dyn ToSql + Sync + Send + '_>]) -> Vec<&'a (dyn ToSql + Sync)> {
    bound.iter().map(|value| value.as_ref() as &(dyn ToSql + Sync)).collect()
}
