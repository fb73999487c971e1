//! PostgreSQL in mode xa: a branch is a prepared transaction, which keeps its row locks until the decision.
//!
//! ```text
//! prepare   BEGIN; SET LOCAL ..; insert the ledger row as `committed`; the steps        in one flight
//!           PREPARE TRANSACTION gid; look for gid in pg_prepared_xacts                  seen there: yes
//! commit    COMMIT PREPARED gid; look for the ledger row in a new snapshot              seen there: done
//! abort     ROLLBACK PREPARED gid; insert the ledger row as `aborted`
//! ```
//!
//! - The ledger row lies inside the branch, invisible until COMMIT PREPARED; that it becomes visible is the proof. So what is
//!   in doubt is told by the database's list and not by the ledger. The list is read first, the row second: a branch that
//!   is being committed is in one of them.
//! - **Neither tag nor OK is believed.** PREPARE in a failed block answers ROLLBACK without an error, and the driver drops
//!   the tag.
//! - While a branch is in doubt, its txid and its business key block a second insert. That is waited for briefly and is a
//!   retryable no then. A row for an abort waits likewise until the branch is in the list, where it can be rolled back.
//! - A commit for what is neither in the list nor in the ledger is looked for over some seconds, with a trial insert
//!   that waits for whoever holds the row. After that it is lost.
//! - Connections: some for prepares, some for decisions, one for positions. None is shared, and one that was left in the middle of
//!   something is closed. Session settings are set and read back on each.
//!
//! Error text holds row values, so it goes nowhere; notices are dropped too. (The driver logs parameters at debug level under
//! its own name: keep `tokio_postgres` out of the log.)
//!
//! Left out: reserve mode, TLS, standbys (an asynchronous one loses yes votes when it is promoted).

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use rust_decimal::Decimal;
use serde_json::value::RawValue;
use suture_contract::ids::{Attempt, Code, Shard, Txid, code};
use suture_contract::messages::{Decision, Prepare};
use suture_participants_core::branch::{
    Answer, Event, KeyRow, Refusal, Row, State, Step, Violation, Wrong, refusal_by_key, step, step_of_row,
};
use suture_participants_core::gid::{Gid, Owner};
use suture_participants_core::operations::{self, Operation, Rows, Seed, Values, statement_failed};
use suture_participants_core::values::{Kind, Value};
use time::{Date, OffsetDateTime};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Error, NoTls, SimpleQueryMessage, Statement};

use crate::config::PostgresSettings;
use crate::ledger::{LEDGER_ID, StoredRow, check_marks};
use crate::resource::{
    Batching, Decided, Effect, Fault, InDoubt, OpenError, Opening, Position, Prepared, Resource, SeedError, Unavailable,
};

/// The oldest version that has all that is used here.
const OLDEST_VERSION: i32 = 130_000;

/// How long a decision's insert waits for a lock before it looks at the list again.
const DECISION_LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// How long to rest before a look that may show something else.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// How often a prepare is looked at anew when another session is at the same branch or key.
const LOOKS: u32 = 40;

/// The server ends a local transaction of ours that stalls for longer. Nothing is prepared then.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// No index stands by itself: `create index if not exists` would wait for prepared branches at every start.
const LEDGER_TABLES: &str = "
    create table if not exists suture_meta (
        name text primary key,
        value text not null
    );
    create table if not exists suture_positions (
        topic text not null,
        letters text not null,
        shard integer not null,
        next_offset bigint not null,
        primary key (topic, letters, shard)
    );
    create table if not exists suture_ledger (
        txid text primary key,
        state text not null check (state in ('committed', 'aborted', 'refused')),
        hash text not null,
        business_key text,
        attempt bigint,
        live_key text unique,
        operation text,
        code text,
        duplicate_of text,
        changed_at timestamptz not null default now(),
        unique (business_key, attempt),
        check ((business_key is null) = (attempt is null)),
        check ((live_key is not null) = (state = 'committed'))
    );
";

const INSERT_ROW: &str = "
    insert into suture_ledger (txid, state, hash, business_key, attempt, live_key, operation, code, duplicate_of)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9)";

const LOOK_AT_LIST: &str = "
    select count(*), min(gid) filter (where starts_with(gid, $2 || $1))
    from pg_prepared_xacts where database = current_database() and position($1 in gid) > 0";

const LOOK_AT_ROW: &str = "select txid, state, hash, code, duplicate_of from suture_ledger where txid = any($1)";

const LOOK_AT_KEY: &str = "select txid, state, hash, attempt from suture_ledger where business_key = $1";

/// A participant's PostgreSQL database.
pub struct PostgresResource {
    settings: PostgresSettings,
    owner: Owner,
    operations: BTreeMap<String, Operation>,
    seeds: BTreeMap<String, Seed>,
    ledger_id: String,
    workers: Pool,
    deciders: Pool,
    clerks: Pool,
}

impl PostgresResource {
    /// Connects, creates what is missing, and refuses what is unsafe or somebody else's.
    pub async fn open(settings: PostgresSettings, opening: Opening) -> Result<Self, OpenError> {
        let pool = |count, lock_timeout| Pool::new(&settings, &opening.owner, count, lock_timeout);
        let workers = pool(settings.connections, settings.lock_timeout)?;
        let deciders = pool(settings.decision_connections, DECISION_LOCK_TIMEOUT)?;
        let clerks = pool(1, settings.lock_timeout)?;
        let mut clerk = clerks.lease().await?;
        check_needs(&clerk.client, &settings, &opening.owner).await?;
        let ledger_id = prepare_ledger(&clerk.client, &opening).await?;
        let Opening { owner, operations, seeds, schema, .. } = opening;
        if let Some(schema) = schema {
            let failed = |error: Error| OpenError::Schema { code: sqlstate(&error) };
            clerk.client.batch_execute(&schema).await.map_err(failed)?;
        }
        let steps = operations.values().flat_map(|operation| &operation.prepare);
        for step in steps.chain(seeds.values().flat_map(|seed| &seed.steps)) {
            clerk.statement_of(step).await.map_err(|error| match blame(&error) {
                Blame::Database => OpenError::from(unavailable("checking statements", &error)),
                _ => OpenError::Statement { place: step.place.clone(), code: sqlstate(&error) },
            })?;
        }
        clerk.give_back();
        Ok(Self { settings, owner, operations, seeds, ledger_id, workers, deciders, clerks })
    }

    /// Gives up after some time: a connection may be cut without anybody noticing.
    async fn limit<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let patience = self.settings.lock_timeout + self.settings.statement_timeout + self.settings.lost_after;
        let patience = patience * 2 + Duration::from_secs(10);
        timeout(patience, work).await.unwrap_or_else(|_| Err(Unavailable::new(doing, "no answer in time")))
    }
}

impl Resource for PostgresResource {
    fn ledger_id(&self) -> &str {
        &self.ledger_id
    }

    /// One after the other: a branch may wait for the decision of the one before it.
    fn batching(&self) -> Batching {
        Batching { branches: 1, jobs: self.settings.connections }
    }

    async fn prepare(&self, batch: Vec<Arc<Prepare>>) -> Result<Vec<Prepared>, Unavailable> {
        let mut prepared = Vec::with_capacity(batch.len());
        for prepare in &batch {
            prepared.push(self.limit("preparing", self.prepare_one(prepare)).await?);
        }
        Ok(prepared)
    }

    async fn commit(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        self.limit("committing", self.commit_all(&batch)).await
    }

    async fn abort(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        self.limit("aborting", self.abort_all(&batch)).await
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        self.limit("reading the list", self.list_in_doubt()).await
    }

    async fn load_positions(&self, topic: String) -> Result<Vec<Position>, Unavailable> {
        self.limit("reading positions", self.read_positions(topic)).await
    }

    async fn store_positions(&self, positions: Vec<Position>) -> Result<(), Unavailable> {
        self.limit("storing positions", self.write_positions(positions)).await
    }

    async fn seed(&self, name: String, payloads: Vec<Box<RawValue>>) -> Result<u64, SeedError> {
        self.insert_seeds(&name, &payloads).await
    }
}

// ---- prepare ---------------------------------------------------------------------------------------------------------

/// How a branch's local transaction ended.
enum Ran {
    /// Prepared, and seen in the list.
    Seen,
    /// Rolled back; the branch is at fault, or the database busy.
    Refused(Refusal),
    /// Rolled back: another session has this txid or this business key.
    Met(Collision),
}

/// What another session has.
enum Collision {
    /// It is not finished: its row is invisible, and we waited.
    InProgress,
    /// It is finished: its row or its branch can be read now.
    Visible,
}

impl PostgresResource {
    async fn prepare_one(&self, prepare: &Prepare) -> Result<Prepared, Unavailable> {
        let mut worker = self.workers.lease().await?;
        let mut in_progress = false;
        for _ in 0..LOOKS {
            let known = self.look(&mut worker, &prepare.txid).await?;
            let row = match known.row(&prepare.hash) {
                Ok(row) => row,
                Err(fault) => return Ok(worker.answer(Prepared::Fault(fault))),
            };
            let next = match step_of_row(row.as_ref(), Event::Prepare, &prepare.hash) {
                Ok(next) => next,
                Err(violation) => return Ok(worker.answer(Prepared::Fault(violation.into()))),
            };
            match (next, row) {
                (Step::Run, _) => {}
                (_, Some(row)) => return Ok(worker.answer(Prepared::Answer(row.answer()))),
                (_, None) => return Ok(worker.answer(Prepared::Fault(Fault::BrokenRow))),
            }
            let refusal = match self.why_not(&mut worker, prepare, in_progress).await? {
                Ok(Some(refusal)) => refusal,
                Ok(None) if known.in_doubt >= self.settings.cap => return Ok(worker.answer(Prepared::Later)),
                Ok(None) => match self.run_branch(&mut worker, prepare).await? {
                    Ran::Seen => return Ok(worker.answer(Prepared::Answer(Answer::Yes))),
                    Ran::Refused(refusal) => refusal,
                    Ran::Met(collision) => {
                        in_progress = matches!(collision, Collision::InProgress);
                        continue;
                    }
                },
                Err(fault) => return Ok(worker.answer(Prepared::Fault(fault))),
            };
            if self.insert_refused(&mut worker, prepare, &refusal).await? {
                return Ok(worker.answer(Prepared::Answer(Answer::No(refusal))));
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(Unavailable::new("preparing", "another session has the branch"))
    }

    /// Why a branch that is absent must not run: the rule of keys, or a payload that does not fit.
    async fn why_not(
        &self,
        worker: &mut Lease<'_>,
        prepare: &Prepare,
        in_progress: bool,
    ) -> Result<Result<Option<Refusal>, Fault>, Unavailable> {
        let of_key = match rows_of_key(worker, prepare).await? {
            Ok(rows) => rows,
            Err(fault) => return Ok(Err(fault)),
        };
        if let Some(refusal) = refusal_by_key(&of_key, prepare.attempt, &prepare.hash) {
            return Ok(Ok(Some(refusal)));
        }
        // The branch in doubt that holds the key keeps its row to itself.
        Ok(Ok(in_progress.then(|| Refusal::because(code::IN_PROGRESS))))
    }

    async fn run_branch(&self, worker: &mut Lease<'_>, prepare: &Prepare) -> Result<Ran, Unavailable> {
        let Some(operation) = self.operations.get(&prepare.operation) else {
            tracing::warn!(txid = %prepare.txid, "prepare names an operation that is not configured");
            return Ok(Ran::Refused(Refusal::with(operations::unreadable())));
        };
        let values = match operation.bind(&prepare.txid, &prepare.payload) {
            Ok(values) => values,
            Err(unusable) => {
                let parameter = unusable.parameter.as_deref().unwrap_or("the whole payload");
                tracing::warn!(txid = %prepare.txid, code = %unusable.code, parameter, "payload cannot be used");
                return Ok(Ran::Refused(Refusal::with(unusable.code)));
            }
        };
        let ran = match self.run_steps(worker, prepare, operation, &values).await? {
            None => self.prepare_transaction(worker, prepare).await?,
            Some(ran) => ran,
        };
        if !matches!(ran, Ran::Seen) {
            let rolled_back = worker.client.batch_execute("rollback").await;
            rolled_back.map_err(|error| unavailable("rolling back", &error))?;
        }
        Ok(ran)
    }

    /// Everything up to the PREPARE, in one flight. `None`: all went as it should. The first that did not decides.
    async fn run_steps(
        &self,
        worker: &mut Lease<'_>,
        prepare: &Prepare,
        operation: &Operation,
        values: &Values,
    ) -> Result<Option<Ran>, Unavailable> {
        let failed = |error: Error| unavailable("preparing statements", &error);
        let insert = worker.statement(INSERT_ROW, &INSERT_ROW_TYPES).await.map_err(failed)?;
        let mut statements = Vec::with_capacity(operation.prepare.len());
        for step in &operation.prepare {
            statements.push(worker.statement_of(step).await.map_err(failed)?);
        }
        let begin = format!(
            "begin isolation level read committed; set local lock_timeout = {}; set local statement_timeout = {}",
            self.settings.key_timeout.as_millis(),
            self.settings.statement_timeout.as_millis(),
        );
        let step_locks = format!("set local lock_timeout = {}", self.settings.lock_timeout.as_millis());
        let row = LedgerRow::of(prepare, State::Committed, None);
        let row_parameters = row.parameters();
        let bound: Vec<_> = operation.prepare.iter().map(|step| bound(step, values)).collect();
        let parameters: Vec<_> = bound.iter().map(|bound| references(bound)).collect();

        let client = &worker.client;
        let mut flight: Vec<InFlight<'_, Result<u64, Error>>> = vec![
            Box::pin(async { client.batch_execute(&begin).await.map(|()| 0) }),
            Box::pin(client.execute(&insert, &row_parameters)),
            Box::pin(async { client.batch_execute(&step_locks).await.map(|()| 0) }),
        ];
        for (statement, parameters) in statements.iter().zip(&parameters) {
            flight.push(Box::pin(client.execute(statement, parameters)));
        }
        let mut landed = in_order(flight).await.into_iter();

        if let Some(Err(error)) = landed.next() {
            return Err(unavailable("opening a branch", &error));
        }
        if let Some(Err(error)) = landed.next() {
            return match blame(&error) {
                Blame::Unique => Ok(Some(Ran::Met(Collision::Visible))),
                Blame::Busy => Ok(Some(Ran::Met(Collision::InProgress))),
                Blame::Check | Blame::Statement | Blame::Database => Err(unavailable("opening a branch", &error)),
            };
        }
        if let Some(Err(error)) = landed.next() {
            return Err(unavailable("opening a branch", &error));
        }
        for (step, landed) in operation.prepare.iter().zip(landed) {
            let (code, cause) = match landed {
                Ok(rows) => (step.refuses_rows(rows), format!("{rows} rows")),
                Err(error) => {
                    let code = match blame(&error) {
                        Blame::Unique => step.on_unique(),
                        Blame::Check => step.on_check(),
                        Blame::Busy => busy(),
                        Blame::Statement => statement_failed(),
                        Blame::Database => return Err(unavailable("running a step", &error)),
                    };
                    (Some(code), sqlstate(&error))
                }
            };
            if let Some(code) = code {
                tracing::debug!(txid = %prepare.txid, %code, place = step.place, cause, "refused");
                return Ok(Some(Ran::Refused(Refusal::with(code))));
            }
        }
        Ok(None)
    }

    async fn prepare_transaction(&self, worker: &mut Lease<'_>, prepare: &Prepare) -> Result<Ran, Unavailable> {
        let gid = Gid::new(prepare.txid, &self.owner, &prepare.hash).to_string();
        let both = format!(
            "prepare transaction '{gid}'; \
             select gid from pg_prepared_xacts where gid = '{gid}' and database = current_database()"
        );
        match worker.client.simple_query(&both).await {
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

    /// A local transaction of its own. `false`: another session has the txid, or its key; look again.
    async fn insert_refused(
        &self,
        worker: &mut Lease<'_>,
        prepare: &Prepare,
        refusal: &Refusal,
    ) -> Result<bool, Unavailable> {
        let doing = "refusing";
        let sql = format!("{INSERT_ROW} on conflict do nothing");
        let failed = |error: Error| unavailable(doing, &error);
        let insert = worker.statement(&sql, &INSERT_ROW_TYPES).await.map_err(failed)?;
        let row = LedgerRow::of(prepare, State::Refused, Some(refusal));
        match worker.client.execute(&insert, &row.parameters()).await {
            Ok(inserted) => Ok(inserted == 1),
            Err(error) if matches!(blame(&error), Blame::Busy) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// What the list and the ledger say of a txid.
    async fn look(&self, connection: &mut Lease<'_>, txid: &Txid) -> Result<Known, Unavailable> {
        let failed = |error: Error| unavailable("looking at the ledger", &error);
        let list = connection.statement(LOOK_AT_LIST, &[Type::TEXT, Type::TEXT]).await.map_err(failed)?;
        let row = connection.statement(LOOK_AT_ROW, &[Type::TEXT_ARRAY]).await.map_err(failed)?;
        let (mark, name) = (self.mark(), txid.to_string());
        let names = [name.as_str()];
        let client = &connection.client;
        let (list_parameters, row_parameters): ([&(dyn ToSql + Sync); 2], [&(dyn ToSql + Sync); 1]) =
            ([&mark, &name], [&names.as_slice()]);
        // In this order: what is being committed is in one of them.
        let (list, row) = tokio::join!(
            biased;
            client.query_one(&list, &list_parameters),
            client.query_opt(&row, &row_parameters),
        );
        let (list, row) = (list.map_err(failed)?, row.map_err(failed)?);
        let in_doubt = usize::try_from(list.get::<_, i64>(0)).unwrap_or(usize::MAX);
        let gid = list.get::<_, Option<&str>>(1).and_then(|gid| gid.parse().ok());
        Ok(Known { in_doubt, gid, row: row.map(|row| stored_row(&row)) })
    }

    /// What stands in all gids of this ledger, and in no others.
    fn mark(&self) -> String {
        mark(&self.owner)
    }
}

fn mark(owner: &Owner) -> String {
    format!("/{}/{}/", owner.deployment, owner.participant)
}

/// What was found of a txid.
struct Known {
    /// How many branches of ours are prepared in all.
    in_doubt: usize,
    gid: Option<Gid>,
    row: Option<StoredRow>,
}

impl Known {
    /// The row, or what stands for it while it is invisible. A gid tells only the first half of a hash.
    fn row(&self, hash: &suture_contract::ids::RequestHash) -> Result<Option<Row>, Fault> {
        if let Some(row) = &self.row {
            return row.clone().read().map(Some);
        }
        let Some(gid) = &self.gid else { return Ok(None) };
        if !gid.has_hash(hash) {
            let violation = Violation { state: State::InDoubt, event: Event::Prepare, wrong: Wrong::OtherHash };
            return Err(violation.into());
        }
        Ok(Some(Row { state: State::InDoubt, hash: *hash, refusal: None }))
    }
}

// ---- decide ----------------------------------------------------------------------------------------------------------

/// A decision under way: settled, or to be looked at again.
struct Undecided<'a> {
    index: usize,
    decision: &'a Decision,
    /// Finished by us: what is reported when it is seen.
    effect: Effect,
    /// Whether its `aborted` row is tried with key and attempt next.
    named: bool,
}

impl PostgresResource {
    async fn commit_all(&self, batch: &[Arc<Decision>]) -> Result<Vec<Decided>, Unavailable> {
        let mut settled: Vec<Option<Decided>> = batch.iter().map(|_| None).collect();
        let mut open: Vec<Undecided<'_>> = undecided(batch);
        let looks = looks_within(self.settings.lost_after);
        let mut look = 0;
        loop {
            let mut decider = self.deciders.lease().await?;
            let known = self.look_at_all(&mut decider, &open).await?;
            let mut to_commit = Vec::new();
            let mut rest = Vec::new();
            for mut item in open {
                match known.step(item.decision, Event::Commit) {
                    Ok(Step::Nothing) => settled[item.index] = Some(Ok(item.effect)),
                    Ok(Step::Commit) => {
                        // Done only when its row is seen: it goes around once more.
                        item.effect = Effect::Finished;
                        to_commit.push(Gid::new(item.decision.txid, &self.owner, &item.decision.hash));
                        rest.push(item);
                    }
                    Ok(Step::Run | Step::RollBack | Step::NoteAbort | Step::AnswerYes | Step::AnswerNo) => {
                        settled[item.index] = Some(Err(Fault::BrokenRow));
                    }
                    Err(Fault::Violation(Violation { state: State::Absent, .. })) if look < looks => rest.push(item),
                    Err(fault) => settled[item.index] = Some(Err(fault)),
                }
            }
            open = rest;
            if open.is_empty() {
                decider.give_back();
                return Ok(settled.into_iter().map(|settled| settled.unwrap_or(Err(Fault::BrokenRow))).collect());
            }
            if to_commit.is_empty() {
                self.wait_for_holder(&mut decider, open[0].decision).await?;
                look += 1;
            }
            decider.give_back();
            self.finish("commit prepared", to_commit).await?;
        }
    }

    /// Rests until a row that nobody can see yet is finished, or for a moment.
    async fn wait_for_holder(&self, decider: &mut Lease<'_>, decision: &Decision) -> Result<(), Unavailable> {
        let failed = |error: Error| unavailable("looking for a branch", &error);
        let trial = format!(
            "begin; insert into suture_ledger (txid, state, hash) values ('{}', 'aborted', '{}') on conflict do nothing",
            decision.txid, decision.hash
        );
        let tried = decider.client.batch_execute(&trial).await;
        decider.client.batch_execute("rollback").await.map_err(failed)?;
        match tried {
            Err(error) if matches!(blame(&error), Blame::Busy) => {}
            Err(error) => return Err(failed(error)),
            Ok(()) => sleep(LOOK_AGAIN).await,
        }
        Ok(())
    }

    async fn abort_all(&self, batch: &[Arc<Decision>]) -> Result<Vec<Decided>, Unavailable> {
        let mut settled: Vec<Option<Decided>> = batch.iter().map(|_| None).collect();
        let mut open: Vec<Undecided<'_>> = undecided(batch);
        loop {
            let mut decider = self.deciders.lease().await?;
            let known = self.look_at_all(&mut decider, &open).await?;
            let mut to_roll_back = Vec::new();
            let mut rest = Vec::new();
            for mut item in open {
                match known.step(item.decision, Event::Abort) {
                    Ok(Step::Nothing) => settled[item.index] = Some(Ok(item.effect)),
                    Ok(Step::RollBack) => {
                        item.effect = Effect::Finished;
                        // What held key and attempt was this branch itself.
                        item.named = true;
                        to_roll_back.push(Gid::new(item.decision.txid, &self.owner, &item.decision.hash));
                        rest.push(item);
                    }
                    Ok(Step::NoteAbort) => {
                        if item.effect == Effect::Repeated {
                            // It may be the abort of a duplicate, and the original is still to come.
                            item.named = false;
                            item.effect = Effect::NotedAbort;
                        }
                        rest.push(item);
                    }
                    Ok(Step::Run | Step::Commit | Step::AnswerYes | Step::AnswerNo) => {
                        settled[item.index] = Some(Err(Fault::BrokenRow));
                    }
                    Err(fault) => settled[item.index] = Some(Err(fault)),
                }
            }
            open = rest;
            if open.is_empty() {
                decider.give_back();
                return Ok(settled.into_iter().map(|settled| settled.unwrap_or(Err(Fault::BrokenRow))).collect());
            }
            decider.give_back();
            self.finish("rollback prepared", to_roll_back).await?;
            // The next round sees the rows, or a branch that was prepared meanwhile and blocks one of them.
            self.insert_aborted(&mut open).await?;
        }
    }

    /// COMMIT PREPARED or ROLLBACK PREPARED for each, over all connections for decisions. What is unknown by now shows in
    /// the look that follows.
    async fn finish(&self, how: &'static str, gids: Vec<Gid>) -> Result<(), Unavailable> {
        let lanes = self.settings.decision_connections.min(gids.len());
        let lane = |lane: usize| {
            let gids = gids.iter().skip(lane).step_by(lanes);
            async move {
                let decider = self.deciders.lease().await?;
                for gid in gids {
                    finish_one(&decider.client, how, gid).await?;
                }
                decider.give_back();
                Ok(())
            }
        };
        let lanes: Vec<InFlight<'_, Result<(), Unavailable>>> =
            (0..lanes).map(|index| Box::pin(lane(index)) as InFlight<'_, _>).collect();
        in_order(lanes).await.into_iter().collect()
    }

    /// `aborted` rows, for all whose way is free. What is not there when it is looked for next was blocked: by its own
    /// prepare, which shows in the list then, or by another transaction that has key and attempt, and then it goes without
    /// them. An abort that overtook its prepare takes none.
    async fn insert_aborted(&self, open: &mut [Undecided<'_>]) -> Result<(), Unavailable> {
        let mut decider = self.deciders.lease().await?;
        if !insert_aborted_rows(&mut decider, open).await? && open.len() > 1 {
            for item in open.chunks(1) {
                insert_aborted_rows(&mut decider, item).await?;
            }
        }
        decider.give_back();
        for item in open {
            item.named = !item.named && item.effect == Effect::Finished;
        }
        Ok(())
    }

    async fn look_at_all(&self, decider: &mut Lease<'_>, open: &[Undecided<'_>]) -> Result<KnownOfAll, Unavailable> {
        let failed = |error: Error| unavailable("looking at the ledger", &error);
        let list_sql =
            "select gid from pg_prepared_xacts where database = current_database() and position($1 in gid) > 0";
        let list = decider.statement(list_sql, &[Type::TEXT]).await.map_err(failed)?;
        let rows = decider.statement(LOOK_AT_ROW, &[Type::TEXT_ARRAY]).await.map_err(failed)?;
        let mark = self.mark();
        let txids: Vec<String> = open.iter().map(|item| item.decision.txid.to_string()).collect();
        let client = &decider.client;
        let (list_parameters, row_parameters): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 1]) =
            ([&mark], [&txids]);
        // In this order: what is being committed is in one of them.
        let (list, rows) =
            tokio::join!(biased; client.query(&list, &list_parameters), client.query(&rows, &row_parameters));
        let ours = |gid: &Gid| gid.owner == self.owner;
        let list = list.map_err(failed)?;
        let gids = list.iter().filter_map(|row| row.get::<_, &str>(0).parse().ok()).filter(ours);
        Ok(KnownOfAll {
            gids: gids.map(|gid| (gid.txid, gid)).collect(),
            rows: rows.map_err(failed)?.iter().map(|row| (row.get(0), stored_row(row))).collect(),
        })
    }
}

/// What was found of several txids.
struct KnownOfAll {
    gids: HashMap<Txid, Gid>,
    rows: HashMap<String, StoredRow>,
}

impl KnownOfAll {
    fn step(&self, decision: &Decision, event: Event) -> Result<Step, Fault> {
        if let Some(row) = self.rows.get(&decision.txid.to_string()) {
            return Ok(step_of_row(Some(&row.clone().read()?), event, &decision.hash)?);
        }
        match self.gids.get(&decision.txid) {
            Some(gid) => Ok(step(State::InDoubt, event, gid.has_hash(&decision.hash))?),
            None => Ok(step(State::Absent, event, true)?),
        }
    }
}

fn undecided(batch: &[Arc<Decision>]) -> Vec<Undecided<'_>> {
    batch
        .iter()
        .enumerate()
        .map(|(index, decision)| Undecided { index, decision, effect: Effect::Repeated, named: true })
        .collect()
}

/// How many looks with a rest after each fill this time.
fn looks_within(time: Duration) -> u128 {
    time.as_millis() / LOOK_AGAIN.as_millis()
}

async fn finish_one(client: &Client, how: &str, gid: &Gid) -> Result<(), Unavailable> {
    for _ in 0..LOOKS {
        let Err(error) = client.batch_execute(&format!("{how} '{gid}'")).await else { return Ok(()) };
        match sqlstate(&error).as_str() {
            // Finished by another session.
            "42704" => return Ok(()),
            // Being finished by another session.
            "55000" => sleep(LOOK_AGAIN).await,
            _ => return Err(unavailable("finishing a branch", &error)),
        }
    }
    Err(Unavailable::new("finishing a branch", "55000"))
}

/// `false`: a lock was waited for in vain, and none was inserted.
async fn insert_aborted_rows(decider: &mut Lease<'_>, open: &[Undecided<'_>]) -> Result<bool, Unavailable> {
    let failed = |error: Error| unavailable("noting aborts", &error);
    let sql = "insert into suture_ledger (txid, state, hash, business_key, attempt)
               select t, 'aborted', h, k, a from unnest($1, $2, $3, $4) as aborted (t, h, k, a)
               on conflict do nothing";
    let texts = Type::TEXT_ARRAY;
    let insert =
        decider.statement(sql, &[texts.clone(), texts.clone(), texts, Type::INT8_ARRAY]).await.map_err(failed)?;
    let txids: Vec<String> = open.iter().map(|item| item.decision.txid.to_string()).collect();
    let hashes: Vec<String> = open.iter().map(|item| item.decision.hash.to_string()).collect();
    let keys: Vec<Option<&str>> =
        open.iter().map(|item| item.named.then_some(item.decision.business_key.as_str())).collect();
    let attempts: Vec<Option<i64>> =
        open.iter().map(|item| item.named.then_some(i64::from(item.decision.attempt.number()))).collect();
    match decider.client.execute(&insert, &[&txids, &hashes, &keys, &attempts]).await {
        Ok(_) => Ok(true),
        Err(error) if matches!(blame(&error), Blame::Busy) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

// ---- what the service asks besides -----------------------------------------------------------------------------------

impl PostgresResource {
    async fn list_in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let doing = "reading the list";
        let clerk = self.clerks.lease().await?;
        let rows = clerk
            .client
            .query(
                "select gid, extract(epoch from now() - prepared)::float8 from pg_prepared_xacts
                 where database = current_database() and position($1 in gid) > 0",
                &[&self.mark()],
            )
            .await
            .map_err(|error| unavailable(doing, &error))?;
        clerk.give_back();
        let read = |row: &tokio_postgres::Row| {
            let gid: Gid = row.get::<_, &str>(0).parse().ok()?;
            let age = Duration::try_from_secs_f64(row.get(1)).ok();
            (gid.owner == self.owner).then_some(InDoubt { txid: gid.txid, age })
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    async fn read_positions(&self, topic: String) -> Result<Vec<Position>, Unavailable> {
        let doing = "reading positions";
        let clerk = self.clerks.lease().await?;
        let sql = "select letters, shard, next_offset from suture_positions where topic = $1";
        let rows = clerk.client.query(sql, &[&topic]).await.map_err(|error| unavailable(doing, &error))?;
        clerk.give_back();
        let read = |row: &tokio_postgres::Row| {
            Some(Position {
                topic: topic.clone(),
                letters: row.get::<_, &str>(0).parse().ok()?,
                shard: Shard(u16::try_from(row.get::<_, i32>(1)).ok()?),
                next_offset: u64::try_from(row.get::<_, i64>(2)).ok()?,
            })
        };
        rows.iter().map(|row| read(row).ok_or_else(|| Unavailable::new(doing, "a row cannot be read"))).collect()
    }

    async fn write_positions(&self, positions: Vec<Position>) -> Result<(), Unavailable> {
        let failed = |error: Error| unavailable("storing positions", &error);
        let mut clerk = self.clerks.lease().await?;
        let sql = "insert into suture_positions (topic, letters, shard, next_offset)
                   select * from unnest($1, $2, $3, $4)
                   on conflict (topic, letters, shard)
                   do update set next_offset = greatest(suture_positions.next_offset, excluded.next_offset)";
        let texts = Type::TEXT_ARRAY;
        let types = [texts.clone(), texts, Type::INT4_ARRAY, Type::INT8_ARRAY];
        let store = clerk.statement(sql, &types).await.map_err(failed)?;
        let topics: Vec<&str> = positions.iter().map(|position| position.topic.as_str()).collect();
        let letters: Vec<&str> = positions.iter().map(|position| position.letters.as_str()).collect();
        let shards: Vec<i32> = positions.iter().map(|position| i32::from(position.shard.0)).collect();
        let offsets: Vec<i64> = positions.iter().map(|position| position.next_offset.cast_signed()).collect();
        clerk.client.execute(&store, &[&topics, &letters, &shards, &offsets]).await.map_err(failed)?;
        clerk.give_back();
        Ok(())
    }

    async fn insert_seeds(&self, name: &str, payloads: &[Box<RawValue>]) -> Result<u64, SeedError> {
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

/// A row as it is inserted.
struct LedgerRow {
    txid: String,
    state: &'static str,
    hash: String,
    business_key: Option<String>,
    attempt: Option<i64>,
    live_key: Option<String>,
    operation: Option<String>,
    code: Option<String>,
    duplicate_of: Option<String>,
}

impl LedgerRow {
    /// A row about an older branch carries neither key nor attempt: those are taken.
    fn of(prepare: &Prepare, state: State, refusal: Option<&Refusal>) -> Self {
        let named = !refusal.is_some_and(Refusal::is_repeat);
        // The name of an operation that is none may be anything, even text that PostgreSQL does not store.
        let is_readable = refusal.is_none_or(|refusal| refusal.code.as_str() != code::UNREADABLE);
        let key = prepare.business_key.to_string();
        Self {
            txid: prepare.txid.to_string(),
            state: state.as_str(),
            hash: prepare.hash.to_string(),
            business_key: named.then(|| key.clone()),
            attempt: named.then(|| i64::from(prepare.attempt.number())),
            live_key: (state == State::Committed).then_some(key),
            operation: is_readable.then(|| prepare.operation.clone()),
            code: refusal.map(|refusal| refusal.code.to_string()),
            duplicate_of: refusal.and_then(|refusal| refusal.duplicate_of).map(|txid| txid.to_string()),
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 9] {
        [
            &self.txid,
            &self.state,
            &self.hash,
            &self.business_key,
            &self.attempt,
            &self.live_key,
            &self.operation,
            &self.code,
            &self.duplicate_of,
        ]
    }
}

fn stored_row(row: &tokio_postgres::Row) -> StoredRow {
    StoredRow { state: row.get(1), hash: row.get(2), code: row.get(3), duplicate_of: row.get(4) }
}

async fn rows_of_key(worker: &mut Lease<'_>, prepare: &Prepare) -> Result<Result<Vec<KeyRow>, Fault>, Unavailable> {
    let failed = |error: Error| unavailable("looking at the ledger", &error);
    let statement = worker.statement(LOOK_AT_KEY, &[Type::TEXT]).await.map_err(failed)?;
    let rows = worker.client.query(&statement, &[&prepare.business_key.as_str()]).await.map_err(failed)?;
    let read = |row: &tokio_postgres::Row| {
        Some(KeyRow {
            txid: row.get::<_, &str>(0).parse().ok()?,
            state: State::of_ledger(row.get(1))?,
            hash: row.get::<_, &str>(2).parse().ok()?,
            attempt: u32::try_from(row.get::<_, i64>(3)).ok().and_then(Attempt::new)?,
        })
    };
    Ok(rows.iter().map(|row| read(row).ok_or(Fault::BrokenRow)).collect())
}

// ---- opening ---------------------------------------------------------------------------------------------------------

async fn check_needs(client: &Client, settings: &PostgresSettings, owner: &Owner) -> Result<(), OpenError> {
    let row = client
        .query_one(
            "select current_setting('server_version_num')::int, current_setting('server_version'),
                    current_setting('max_prepared_transactions')::bigint, current_setting('fsync'),
                    current_setting('full_page_writes'), pg_is_in_recovery(),
                    (select count(*) from pg_prepared_xacts
                     where database = current_database() and position($1 in gid) > 0
                       and owner is distinct from current_user
                       and not (select rolsuper from pg_roles where rolname = current_user))",
            &[&mark(owner)],
        )
        .await
        .map_err(|error| unavailable("reading settings", &error))?;
    let need = |setting, value: String, remedy: String| Err(OpenError::Need { setting, value, remedy });
    if row.get::<_, i32>(0) < OLDEST_VERSION {
        return need("server_version", row.get(1), "use PostgreSQL 13 or later, a current minor".to_string());
    }
    let (slots, wanted) = (row.get::<_, i64>(2), 2 * settings.cap);
    if slots < i64::try_from(wanted).unwrap_or(i64::MAX) {
        let remedy =
            format!("set it to {wanted} or more (twice database.cap) and restart PostgreSQL, or lower the cap");
        return need("max_prepared_transactions", slots.to_string(), remedy);
    }
    for (setting, column) in [("fsync", 3), ("full_page_writes", 4)] {
        let value: String = row.get(column);
        if value != "on" {
            return need(setting, value, "set it to on: a prepared branch must survive a power loss".to_string());
        }
    }
    if row.get::<_, bool>(5) {
        return need("pg_is_in_recovery", "true".to_string(), "connect to the primary".to_string());
    }
    if row.get::<_, i64>(6) > 0 {
        let remedy = "connect as the role that prepared them: no other may finish them".to_string();
        return need("the owner of branches in doubt", "another role".to_string(), remedy);
    }
    Ok(())
}

/// Creates the tables where they are missing, checks the marks, and answers the ledger's name.
async fn prepare_ledger(client: &Client, opening: &Opening) -> Result<String, OpenError> {
    let failed = |error: Error| unavailable("creating the ledger", &error);
    // Two that start at once would both create; the number is only a name for the lock.
    let create = format!(
        "begin; select pg_advisory_xact_lock(7355608571); {LEDGER_TABLES}
         insert into suture_meta values ('{LEDGER_ID}', substr(replace(gen_random_uuid()::text, '-', ''), 1, 16))
         on conflict do nothing; commit"
    );
    client.batch_execute(&create).await.map_err(failed)?;
    let rows = client.query("select name, value from suture_meta", &[]).await.map_err(failed)?;
    let found: BTreeMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (name, value) in check_marks(&found, opening)? {
        let sql = "insert into suture_meta values ($1, $2) on conflict do nothing";
        client.execute(sql, &[&name, &value]).await.map_err(failed)?;
    }
    found
        .get(LEDGER_ID)
        .cloned()
        .ok_or_else(|| Unavailable::new("creating the ledger", "its name cannot be read").into())
}

// ---- connections -----------------------------------------------------------------------------------------------------

/// Some connections of one kind. A connection is used by one at a time.
struct Pool {
    config: tokio_postgres::Config,
    session: String,
    room: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

/// A connection in use. Dropped without [`Lease::give_back`] it is closed: who knows what it was in the middle of.
struct Lease<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
    _room: SemaphorePermit<'a>,
}

struct Connection {
    client: Client,
    statements: HashMap<String, Statement>,
    driver: AbortHandle,
}

impl Pool {
    fn new(
        settings: &PostgresSettings,
        owner: &Owner,
        count: usize,
        lock_timeout: Duration,
    ) -> Result<Self, Unavailable> {
        let config = settings.url.parse::<tokio_postgres::Config>();
        let mut config = config.map_err(|_| Unavailable::new("connecting", "the URL cannot be read"))?;
        config.application_name(format!("suture {}", owner.participant));
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(5));
        }
        // Written out, so that no default of a role or a database counts.
        let session = format!(
            "set synchronous_commit = on; set default_transaction_isolation = 'read committed';
             set default_transaction_read_only = off; set idle_in_transaction_session_timeout = {};
             set lock_timeout = {}; set statement_timeout = {};
             select current_setting('synchronous_commit') || current_setting('idle_in_transaction_session_timeout')",
            IDLE_TIMEOUT.as_millis(),
            lock_timeout.as_millis(),
            settings.statement_timeout.max(lock_timeout).as_millis(),
        );
        Ok(Self { config, session, room: Semaphore::new(count), idle: Mutex::default() })
    }

    async fn lease(&self) -> Result<Lease<'_>, Unavailable> {
        let room = self.room.acquire().await.map_err(|_| Unavailable::new("connecting", "closed"))?;
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(connection) = idle() {
            if !connection.client.is_closed() {
                return Ok(Lease { pool: self, connection: Some(connection), _room: room });
            }
        }
        let connection = self.connect().await.map_err(|error| unavailable("connecting", &error))?;
        let read_back = connection.client.simple_query(&self.session).await;
        let read_back = read_back.map_err(|error| unavailable("connecting", &error))?;
        let expected = format!("on{}", minutes(IDLE_TIMEOUT));
        if !shows(&read_back, &expected) {
            return Err(Unavailable::new("connecting", "session settings are not taken"));
        }
        Ok(Lease { pool: self, connection: Some(connection), _room: room })
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

/// As PostgreSQL shows whole minutes.
fn minutes(time: Duration) -> String {
    format!("{}min", time.as_secs() / 60)
}

impl Lease<'_> {
    /// The connection is as it was: the next one may have it.
    fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }

    /// Gives the connection back and passes an answer on.
    fn answer<T>(self, answer: T) -> T {
        self.give_back();
        answer
    }
}

impl std::ops::Deref for Lease<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("a lease has its connection until it is given back, which takes the lease")
    }
}

impl std::ops::DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("a lease has its connection until it is given back, which takes the lease")
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

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

type InFlight<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Awaits all of them; they are first polled in order, which is the order that their messages are sent in.
async fn in_order<T>(futures: Vec<InFlight<'_, T>>) -> Vec<T> {
    let mut flights: Vec<(InFlight<'_, T>, Option<T>)> = futures.into_iter().map(|future| (future, None)).collect();
    poll_fn(|context| {
        let mut all = Poll::Ready(());
        for (future, landed) in &mut flights {
            if landed.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(output) => *landed = Some(output),
                    Poll::Pending => all = Poll::Pending,
                }
            }
        }
        all
    })
    .await;
    flights.into_iter().filter_map(|(_, landed)| landed).collect()
}

/// Whether the first column of a row says so.
fn shows(messages: &[SimpleQueryMessage], expected: &str) -> bool {
    messages.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0) == Some(expected),
        _ => false,
    })
}

// ---- errors and values -----------------------------------------------------------------------------------------------

/// Who is to blame for an error.
enum Blame {
    Unique,
    Check,
    /// Others are in the way; the same may succeed later.
    Busy,
    Statement,
    /// Nobody knows what was done.
    Database,
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

fn busy() -> Code {
    Refusal::because(code::BUSY).code
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

fn references(bound: &[Box<dyn ToSql + Sync + Send>]) -> Vec<&(dyn ToSql + Sync)> {
    bound.iter().map(|value| value.as_ref() as &(dyn ToSql + Sync)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn flights_are_sent_in_order() {
        let sent = Mutex::new(Vec::new());
        let flights = (0..40).map(|n| {
            let sent = &sent;
            Box::pin(async move {
                sent.lock().unwrap().push(n);
                tokio::task::yield_now().await;
                n
            }) as InFlight<'_, i32>
        });
        let landed = in_order(flights.collect()).await;
        assert_eq!(landed, (0..40).collect::<Vec<_>>());
        assert_eq!(*sent.lock().unwrap(), landed);
    }
}
