//! MariaDB and MySQL, in mode xa and in mode reserve.
//!
//! ```text
//! xa        XA START xid
//!           the ledger row; the steps                        in one round trip
//!           XA END; XA PREPARE xid; XA RECOVER               in one round trip
//!           XA COMMIT xid, or XA ROLLBACK xid                on the branch's own connection while it is ours
//! reserve   a branch: SAVEPOINT; the ledger row; the steps   all branches in one round trip
//! ```
//!
//! How a branch goes through these stands in `xa` and `reserve`.
//!
//! - **Text protocol, values as literals.** XA statements cannot be prepared, and only text takes several statements in one trip.
//!   Text goes as `_utf8mb4 x'..'`: hexadecimal digits, so that no rule of quoting is relied on.
//! - **A branch in doubt keeps its connection** for a moment, for its decision mostly comes at once and is one round trip then.
//!   Nobody else can finish it while that session lives, and its shard may be another process's by now: so after some
//!   seconds the connection is closed. Whoever comes before the server has noticed that asks again; until then the
//!   branch is listed and yet "unknown".
//! - **No connection is ever reset or handed to a pool of the driver's**: after a reset a prepared branch is "committed" with
//!   OK and nothing happens. So no OK counts here; the row is looked for afterwards.
//! - XA ROLLBACK is not durable when it returns. The `aborted` row is, and takes the rollback with it.
//! - A deadlock ends the whole local transaction, and what follows would be in autocommit: a script ends with its first
//!   error, and a savepoint that is gone tells it (`GONE`).
//!
//! MySQL: branches are detached at once (`xa_detach_on_prepare`), listing them needs XA_RECOVER_ADMIN, and a statement has no
//! time limit unless it is a SELECT.
//!
//! Error text holds row values, so it goes nowhere.
//!
//! Left out: TLS; replicas and Galera (XA does not survive a failover); the age of a branch in doubt, which the list does not
//! tell.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Error, Opts, OptsBuilder, Row};
use serde_json::value::RawValue;
use suture_contract::ids::{Shard, Txid};
use suture_contract::messages::{Decision, Prepare};
use suture_participants_core::branch::{KeyRow, Refusal, State};
use suture_participants_core::doubts::{InDoubt, SeenHash};
use suture_participants_core::gid::Gid;
use suture_participants_core::marks::{Candidate, Marks, Purge};
use suture_participants_core::operations::{self, Mode, Operation, Rows, Values, statement_failed};
use suture_participants_core::restore::beginning_of_next;
use suture_participants_core::settle::Unsettled;
use suture_participants_core::sql;
use suture_participants_core::values::Value;
use time::OffsetDateTime;
use tokio::time::sleep;

use crate::books::{Dialect, LOCK_PATIENCE, PATIENCE, TextRow, facts_of, facts_text};
use crate::config::ServerSettings;
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
use crate::trouble::{Blame, Landed, Trouble, busy, within};
use crate::xa::{self, AbortedRow, Branches, Collision, How, Known, LOOK_AGAIN, Ran};

/// Stands in every xid of Suture.
pub const FORMAT_ID: u32 = 0x5375_7475;

/// Which server this is: in a replication no two have the same id.
const SERVER: &str = "concat_ws('/', @@server_id, @@hostname, @@port)";

/// How long a decision's insert waits for a lock before it looks at the list again; the shortest there is.
const DECISION_LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest script of one branch, in bytes; the server must take somewhat more at once (`needs`).
const LONGEST_SCRIPT: usize = 12 << 20;
/// Room in it for what is no step of an operation and stands behind the steps.
const LONGEST_END: usize = 1 << 10;
/// A script takes no more branches when it is so long: nothing is won by then.
const LONG_SCRIPT: usize = 1 << 20;

/// After so long without a word the server closes the connection of a branch in doubt: that of a process that stands still, or
/// whose host is gone, must not keep the branch to itself. Afterwards the server's own patience counts again.
const SILENCE: Duration = Duration::from_secs(30);
const USUAL_SILENCE: &str = "set session wait_timeout = default";

/// A branch in doubt keeps its connection for two to three of these.
const HELD_TURN: Duration = Duration::from_secs(1);
const HELD_TURNS: u8 = 3;

/// The server knows no such savepoint: its transaction is gone.
const GONE: &str = "1305";
/// XAER_NOTA: finished, or attached to a session that still lives.
const UNKNOWN_XID: &str = "1397";
/// ER_PARSE_ERROR: it is no query. ER_VIEW_NO_EXPLAIN: SHOW VIEW is lacking, which nobody needs to run it.
const NOT_EXPLAINED: [u16; 2] = [1064, 1345];
/// XAER_DUPID.
const XID_IN_USE: &str = "1440";

/// Everything about quoting and rounding that a server's default could change.
const SQL_MODE: &str = "ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES,NO_ZERO_IN_DATE,\
                        NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION";

/// A participant's MariaDB or MySQL database.
pub struct MariadbResource {
    opened: Opened,
    workers: Pool,
    deciders: Pool,
    clerks: Pool,
    held: Arc<Held>,
}

/// The connections of branches in doubt.
#[derive(Default)]
struct Held(Mutex<HashMap<Txid, (u8, Conn)>>);

impl Held {
    fn put(&self, txid: Txid, connection: Conn) {
        self.all().insert(txid, (0, connection));
    }

    fn take(&self, txid: &Txid) -> Option<Conn> {
        self.all().remove(txid).map(|(_, connection)| connection)
    }

    /// Ends with the resource.
    async fn close_what_stays(held: Weak<Self>) {
        loop {
            sleep(HELD_TURN).await;
            let Some(held) = held.upgrade() else { return };
            // Closed by being dropped.
            held.all().retain(|_, (turns, _)| {
                *turns += 1;
                *turns < HELD_TURNS
            });
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Txid, (u8, Conn)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MariadbResource {
    /// Connects, creates what is missing, and refuses what is unsafe or somebody else's.
    pub async fn open(settings: ServerSettings, opening: Opening) -> Result<Self, OpenError> {
        let pool = |most, lock_timeout| Dialer::new(&settings, lock_timeout).map(|dialer| Pool::new(dialer, most));
        let workers = pool(settings.connections, settings.lock_timeout)?;
        let deciders = pool(settings.decision_connections, DECISION_LOCK_TIMEOUT)?;
        let clerks = pool(1, settings.lock_timeout)?;
        let mut clerk = clerks.lease().await?;
        check_needs(&mut clerk, &settings, &opening).await?;
        check_ledger(&mut clerk, &opening).await?;
        if let Some(schema) = &opening.schema {
            let ran = run(&mut clerk, schema).await;
            ran.map_err(|trouble| OpenError::Schema { code: trouble.code })?;
        }
        check_engines(&mut clerk).await?;
        for step in all_steps(&opening.operations, &opening.seeds) {
            check_statement(&mut clerk, step).await?;
        }
        // The last of all, so that a database that is refused is left as it was.
        let ledger_id = prepare_ledger(&mut clerk, &opening).await?;
        let server = texts(&mut clerk, "asking for the server's name", &format!("select {SERVER}")).await?;
        let server = facts_text(server).unwrap_or_default();
        let Opening { mode, owner, operations, seeds, .. } = opening;
        clerk.give_back();
        let held = Arc::new(Held::default());
        tokio::spawn(Held::close_what_stays(Arc::downgrade(&held)));
        let ledger = LedgerName::new(ledger_id);
        let opened = Opened { mode, settings, owner, operations, seeds, ledger, server };
        Ok(Self { opened, workers, deciders, clerks, held })
    }
}

// ---- mode xa ---------------------------------------------------------------------------------------------------------

impl Branches for MariadbResource {
    fn opened(&self) -> &Opened {
        &self.opened
    }

    async fn look(&self, txid: &Txid) -> Result<Known, Unavailable> {
        self.look_with(&self.workers, &[*txid]).await
    }

    async fn look_at_all(&self, txids: &[Txid]) -> Result<Known, Unavailable> {
        self.look_with(&self.deciders, txids).await
    }

    async fn rows_of_key(&self, prepare: &Prepare) -> Result<Result<Vec<KeyRow>, Fault>, Unavailable> {
        let mut worker = self.workers.lease().await?;
        let rows = rows_of_keys(&mut worker, &[prepare.business_key.as_str()]).await;
        let rows = rows.map_err(|trouble| trouble.unavailable("looking at the ledger"))?;
        worker.give_back();
        Ok(rows.iter().map(StoredKeyRow::read).collect())
    }

    async fn run(&self, prepare: &Prepare, operation: &Operation, values: &Values) -> Result<Ran, Unavailable> {
        let mut connection = self.workers.keep_one().await?;
        let xid = xid(&Gid::new(prepare.txid, &self.opened.owner, &prepare.hash));
        match around(Act::Open, run(&mut connection, &format!("xa start {xid}"))).await {
            Ok(()) => {}
            // Whoever has it may have voted: it is not ours to roll back.
            Err(trouble) if trouble.code == XID_IN_USE => {
                self.workers.put(connection);
                return Ok(Ran::Met(Collision::Visible));
            }
            Err(trouble) => return Err(trouble.unavailable("opening a branch")),
        }
        let ran = match self.run_steps(&mut connection, prepare, operation, values).await? {
            None => self.prepare_branch(&mut connection, &xid).await?,
            Some(ran) => ran,
        };
        if matches!(ran, Ran::Seen) {
            self.held.put(prepare.txid, connection);
            return Ok(ran);
        }
        // A branch that a deadlock has ended already cannot be ended again; it is rolled back all the same.
        let _ = run(&mut connection, &format!("xa end {xid}")).await;
        let rolled_back = around(Act::Undo, run(&mut connection, &format!("xa rollback {xid}; {USUAL_SILENCE}"))).await;
        rolled_back.map_err(|trouble| trouble.unavailable("rolling back"))?;
        self.workers.put(connection);
        Ok(ran)
    }

    async fn insert_refused(&self, txid: &Txid, row: LedgerRow) -> Result<bool, Unavailable> {
        let mut worker = self.workers.lease().await?;
        let script = ["start transaction".to_string(), insert_row(&row), look_at_mark(txid)];
        let Landed { rows, trouble } = send(&mut worker, &script).await;
        let is_inserted = trouble.is_none() && rows.last() == Some(&0);
        let ended = run(&mut worker, if is_inserted { "commit" } else { "rollback" }).await;
        ended.map_err(|trouble| trouble.unavailable("refusing"))?;
        worker.give_back();
        match trouble {
            Some(trouble) if !trouble.is_met() => Err(trouble.unavailable("refusing")),
            Some(_) | None => Ok(is_inserted),
        }
    }

    /// On the branch's own connection, if that is here; a failure there is tried again on another one.
    async fn finish_one(&self, how: How, gid: &Gid) -> Result<(), Unavailable> {
        let how = match how {
            How::Commit => "commit",
            How::RollBack => "rollback",
        };
        let finish = format!("xa {how} {}", xid(gid));
        let own = self.held.take(&gid.txid);
        if let Some(mut own) = own
            && run(&mut own, &format!("{finish}; {USUAL_SILENCE}")).await.is_ok()
        {
            self.workers.put(own);
            return Ok(());
        }
        let mut decider = self.deciders.lease().await?;
        match run(&mut decider, &finish).await {
            Ok(_) => {}
            // Finished by another session, or attached to one that the server still believes to live.
            Err(trouble) if trouble.code == UNKNOWN_XID => sleep(LOOK_AGAIN).await,
            Err(trouble) => return Err(trouble.unavailable("finishing a branch")),
        }
        decider.give_back();
        Ok(())
    }

    /// Committed at once, and with it the rollbacks before it: the server flushes its log up to here.
    async fn insert_aborted(&self, rows: &[AbortedRow<'_>]) -> Result<bool, Unavailable> {
        let mut sql = "insert into suture_ledger (txid, state, hash, business_key, attempt) values ".to_string();
        for (index, AbortedRow { decision, named }) in rows.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let (key, attempt) = match named {
                true => (text(decision.business_key.as_str()), decision.attempt.number().to_string()),
                false => ("null".to_string(), "null".to_string()),
            };
            let _ = write!(sql, "{comma}('{}', 'aborted', '{}', {key}, {attempt})", decision.txid, decision.hash);
        }
        // What another row has is left to it.
        sql.push_str(" on duplicate key update txid = suture_ledger.txid");
        let mut decider = self.deciders.lease().await?;
        match run(&mut decider, &sql).await {
            Ok(_) => {
                decider.give_back();
                Ok(true)
            }
            Err(trouble) if trouble.blame == Blame::Busy => Ok(false),
            Err(trouble) => Err(trouble.unavailable("noting aborts")),
        }
    }

    async fn wait_for_holder(&self, decision: &Decision) -> Result<(), Unavailable> {
        let failed = |trouble: Trouble| trouble.unavailable("looking for a branch");
        let mut decider = self.deciders.lease().await?;
        let trial = format!(
            "start transaction; insert into suture_ledger (txid, state, hash) values ('{}', 'aborted', '{}')
             on duplicate key update txid = suture_ledger.txid",
            decision.txid, decision.hash
        );
        let tried = run(&mut decider, &trial).await;
        run(&mut decider, "rollback").await.map_err(failed)?;
        decider.give_back();
        match tried {
            Err(trouble) if trouble.blame == Blame::Busy => {}
            Err(trouble) => return Err(failed(trouble)),
            Ok(_) => sleep(LOOK_AGAIN).await,
        }
        Ok(())
    }
}

impl MariadbResource {
    /// In this order: what is being committed is in one of them.
    async fn look_with(&self, pool: &Pool, txids: &[Txid]) -> Result<Known, Unavailable> {
        let failed = |trouble: Trouble| trouble.unavailable("looking at the ledger");
        let mut connection = pool.lease().await?;
        let gids = self.list(&mut connection).await.map_err(failed)?;
        let rows = rows(&mut connection, txids, "").await.map_err(failed)?;
        let marks = marks(&mut connection).await.map_err(failed)?;
        connection.give_back();
        let in_doubt = gids.len();
        let gids = gids.into_iter().map(|gid| (gid.txid, gid)).collect();
        Ok(Known { in_doubt, gids, rows: rows.into_iter().collect(), marks })
    }

    /// Our branches in the server's list.
    async fn list(&self, connection: &mut Conn) -> Result<Vec<Gid>, Trouble> {
        let listed = query(connection, "xa recover").await?;
        Ok(listed.iter().filter_map(listed_gid).filter(|gid| gid.owner == self.opened.owner).collect())
    }

    /// Everything up to the PREPARE. `None`: all went as it should. The first that did not decides.
    async fn run_steps(
        &self,
        connection: &mut Conn,
        prepare: &Prepare,
        operation: &Operation,
        values: &Values,
    ) -> Result<Option<Ran>, Unavailable> {
        let row = LedgerRow::of(prepare, State::Committed, None);
        let wait = |timeout: Duration| format!("set session innodb_lock_wait_timeout = {}", timeout.as_secs());
        let silence = format!("{}, wait_timeout = {}", wait(self.opened.settings.key_timeout), SILENCE.as_secs());
        let mut script = vec![silence, insert_row(&row), wait(self.opened.settings.lock_timeout)];
        script.extend(operation.prepare.iter().map(|step| rendered(step, values)));
        script.push(look_at_mark(&prepare.txid));
        xa::judge(prepare, &operation.prepare, around(Act::Run, send(connection, &script)).await)
    }

    /// It goes by itself: a branch that is in the list says yes, so the rows that its steps changed are counted before.
    async fn prepare_branch(&self, connection: &mut Conn, xid: &str) -> Result<Ran, Unavailable> {
        let prepared = around(Act::Prepare, run(connection, &format!("xa end {xid}; xa prepare {xid}"))).await;
        match prepared {
            Ok(_) => {}
            Err(trouble) => {
                return match trouble.blame {
                    Blame::Busy => Ok(Ran::Refused(Refusal::with(busy()))),
                    Blame::Unique | Blame::Check | Blame::Statement => {
                        Ok(Ran::Refused(Refusal::with(statement_failed())))
                    }
                    Blame::Database => Err(trouble.unavailable("preparing")),
                };
            }
        }
        let listed = around(Act::See, query(connection, "xa recover"))
            .await
            .map_err(|trouble| trouble.unavailable("preparing"))?;
        match listed.iter().filter_map(listed_gid).any(|gid| self::xid(&gid) == *xid) {
            true => Ok(Ran::Seen),
            false => Err(Unavailable::new("preparing", "the branch is not in the list")),
        }
    }
}

/// An xid as it stands in SQL. All its parts have closed alphabets.
fn xid(gid: &Gid) -> String {
    let name = gid.to_string();
    let (global, branch) = name.split_once('/').unwrap_or((&name, ""));
    format!("'{global}','{branch}',{FORMAT_ID}")
}

/// A row of XA RECOVER, if it is one of Suture's: format, the lengths of both parts, and the parts joined.
fn listed_gid(row: &Row) -> Option<Gid> {
    let number = |column: usize| row.get_opt::<u64, _>(column)?.ok();
    let (format, global) = (number(0)?, usize::try_from(number(1)?).ok()?);
    let data: Vec<u8> = row.get_opt(3)?.ok()?;
    let data = String::from_utf8(data).ok()?;
    let (global, branch) = data.split_at_checked(global)?;
    (format == u64::from(FORMAT_ID)).then(|| format!("{global}/{branch}").parse().ok())?
}

// ---- mode reserve ----------------------------------------------------------------------------------------------------

/// A connection in mode reserve.
struct LocalSession<'a> {
    lease: Lease<'a>,
    /// How many savepoints it has had. None takes the name of another: to roll back to the wrong one would take branches along
    /// that have gone well.
    savepoints: usize,
    /// The first of those that were set last.
    first: usize,
}

impl<'a> LocalSession<'a> {
    async fn on(pool: &'a Pool) -> Result<Self, Unavailable> {
        Ok(Self { lease: pool.lease().await?, savepoints: 0, first: 0 })
    }
}

impl Session for LocalSession<'_> {
    async fn begin(&mut self) -> Result<(), Trouble> {
        run(&mut self.lease, "start transaction; savepoint batch").await.map(drop)
    }

    /// Where a deadlock has ended the transaction its savepoint is gone, and the script ends there.
    async fn commit(&mut self) -> Result<(), Trouble> {
        run(&mut self.lease, "release savepoint batch; commit").await.map(drop).map_err(|trouble| {
            match trouble.code.as_str() {
                GONE => Trouble { blame: Blame::Database, ..trouble },
                _ => trouble,
            }
        })
    }

    async fn roll_back(&mut self) -> Result<(), Trouble> {
        run(&mut self.lease, "rollback").await.map(drop)
    }

    async fn rows(&mut self, txids: &[Txid], lock: bool) -> Result<BTreeMap<Txid, StoredRow>, Trouble> {
        rows(&mut self.lease, txids, if lock { " order by txid for update" } else { "" }).await
    }

    async fn rows_of_keys(&mut self, keys: &[&str]) -> Result<Vec<StoredKeyRow>, Trouble> {
        rows_of_keys(&mut self.lease, keys).await
    }

    async fn marks(&mut self) -> Result<Marks, Trouble> {
        marks(&mut self.lease).await
    }

    async fn page(
        &mut self,
        after: Option<&Txid>,
        older_than: Duration,
        rows: usize,
    ) -> Result<Vec<Candidate>, Trouble> {
        let sql = format!(
            "select txid, state <> 'in_doubt' and changed_at <= current_timestamp(6) - interval {} microsecond
             from suture_ledger where txid > '{}' order by txid limit {rows}",
            older_than.as_micros(),
            after.map(Txid::to_string).unwrap_or_default(),
        );
        let read =
            |row: &Row| Some(Candidate { txid: column::<String>(row, 0)?.parse().ok()?, is_old: column(row, 1)? });
        let broken = || Trouble { blame: Blame::Database, code: "a ledger row cannot be read".to_string() };
        query(&mut self.lease, &sql).await?.iter().map(|row| read(row).ok_or_else(broken)).collect()
    }

    async fn purge(&mut self, purge: &Purge) -> Result<(), Trouble> {
        let txids: Vec<String> = purge.txids.iter().map(|txid| format!("'{txid}'")).collect();
        let marks: Vec<String> =
            purge.marks.0.iter().map(|((letters, shard), mark)| format!("('{letters}', {shard}, {mark})")).collect();
        let script = format!(
            "delete from suture_ledger where txid in ({}) and state <> 'in_doubt';
             insert into suture_marks (letters, shard, next_offset) values {}
             on duplicate key update next_offset = greatest(next_offset, values(next_offset))",
            txids.join(", "),
            marks.join(", "),
        );
        run(&mut self.lease, &script).await
    }

    async fn branches(&mut self, works: &[Vec<Work<'_>>]) -> Vec<Landed> {
        let mut script = Vec::new();
        let mut own = Vec::with_capacity(works.len());
        let mut bytes = 0;
        self.first = self.savepoints;
        for work in works {
            let statements: Vec<String> = work.iter().map(|work| statement(*work)).collect();
            bytes += statements.iter().map(String::len).sum::<usize>();
            if !own.is_empty() && bytes > LONG_SCRIPT {
                break;
            }
            own.push(work.len());
            script.push(format!("savepoint branch_{}", self.savepoints));
            self.savepoints += 1;
            script.extend(statements);
        }
        send(&mut self.lease, &script).await.by_branch(own)
    }

    async fn undo_from(&mut self, branch: usize) -> Result<bool, Trouble> {
        match run(&mut self.lease, &format!("rollback to savepoint branch_{}", self.first + branch)).await {
            Ok(_) => Ok(true),
            Err(trouble) if trouble.code == GONE => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }
}

fn statement(work: Work<'_>) -> String {
    match work {
        Work::Insert(row) => insert_row(row),
        Work::Step(step, values) => rendered(step, values),
        Work::Remove(txid) => format!("delete from suture_ledger where txid = '{txid}'"),
        Work::Note(entry) => format!("{INSERT_ENTRY} {}", entry_values(entry)),
        Work::LookAtMark(txid) => look_at_mark(txid),
        Work::Finish(txid, state) => format!(
            "update suture_ledger set state = '{state}', changed_at = current_timestamp(6), live_key = {}
             where txid = '{txid}'",
            if state == State::Committed { "live_key" } else { "null" },
        ),
    }
}

/// Runs every operation in a local transaction that is rolled back.
pub(crate) async fn try_all(
    settings: &ServerSettings,
    opening: &Opening,
    wish: &Wish,
) -> Result<Vec<Tried>, OpenError> {
    let pool = Pool::new(Dialer::new(settings, settings.lock_timeout)?, 1);
    let mut lease = pool.lease().await?;
    check_engines(&mut lease).await?;
    let there = there(&mut lease).await?;
    check_ledger_rights(&mut lease, &there).await?;
    let mut unfit = Vec::new();
    for step in trial::steps(opening) {
        unfit.extend(trial::unfit(check_statement(&mut lease, step).await)?);
    }
    trial::try_all(&mut LocalSession { lease, savepoints: 0, first: 0 }, opening, wish, &unfit).await
}

// ---- what the service asks besides -----------------------------------------------------------------------------------

impl Server for MariadbResource {
    async fn reserve(&self, batch: &[Arc<Prepare>], on_no: OnNo) -> Result<Vec<Prepared>, Unavailable> {
        let mut session = LocalSession::on(&self.workers).await?;
        let prepared = reserve::prepare(&mut session, &self.opened.operations, batch, on_no).await?;
        session.lease.give_back();
        Ok(prepared)
    }

    async fn confirm_or_cancel(&self, batch: &[Arc<Decision>]) -> Result<Vec<Decided>, Unavailable> {
        let mut session = LocalSession::on(&self.deciders).await?;
        let decided = reserve::decide(&mut session, &self.opened.operations, batch).await?;
        session.lease.give_back();
        Ok(decided)
    }

    async fn list_in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let mut clerk = self.clerks.lease().await?;
        let listed = self.list(&mut clerk).await.map_err(|trouble| trouble.unavailable("reading the list"))?;
        clerk.give_back();
        let in_doubt = |gid: Gid| InDoubt { txid: gid.txid, age: None, hash: SeenHash::Short(gid.short_hash) };
        Ok(listed.into_iter().map(in_doubt).collect())
    }

    async fn rows_in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let doing = "reading the ledger";
        let sql = "select txid, timestampdiff(second, changed_at, current_timestamp(6)), hash from suture_ledger
                   where state = 'in_doubt'";
        let mut clerk = self.clerks.lease().await?;
        let rows = query(&mut clerk, sql).await.map_err(|trouble| trouble.unavailable(doing))?;
        clerk.give_back();
        let read = |row: &Row| {
            let age = column::<i64>(row, 1).and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
            let hash = SeenHash::Whole(column::<String>(row, 2)?.parse().ok()?);
            Some(InDoubt { txid: column::<String>(row, 0)?.parse().ok()?, age, hash })
        };
        rows.iter().map(|row| read(row).ok_or_else(|| unreadable(doing))).collect()
    }

    async fn purge_page(&self, page: &Page, in_doubt: &[InDoubt]) -> Result<Purged, Unavailable> {
        let mut session = LocalSession::on(&self.clerks).await?;
        let purged = purge_page(&mut session, page, in_doubt).await?;
        session.lease.give_back();
        Ok(purged)
    }

    async fn read_positions(&self, topic: String) -> Result<Vec<Position>, Unavailable> {
        let doing = "reading positions";
        let sql =
            format!("select topic, letters, shard, next_offset from suture_positions where topic = {}", text(&topic));
        let mut clerk = self.clerks.lease().await?;
        let rows = query(&mut clerk, &sql).await.map_err(|trouble| trouble.unavailable(doing))?;
        clerk.give_back();
        rows.iter().map(|row| position_of(row).ok_or_else(|| unreadable(doing))).collect()
    }

    async fn write_positions(&self, positions: Vec<Position>, seen: Vec<Position>) -> Result<Stored, Unavailable> {
        let failed = |trouble: Trouble| trouble.unavailable("storing positions");
        // An error leaves the transaction open; the lease closes the connection then.
        let mut clerk = self.clerks.lease().await?;
        let topics: BTreeSet<&str> = seen.iter().map(|position| position.topic.as_str()).collect();
        let topics: Vec<String> = topics.into_iter().map(text).collect();
        // Whoever puts back an older state of these tables must wait for this transaction, or it for him.
        run(&mut clerk, "start transaction").await.map_err(failed)?;
        let look = format!(
            "select p.topic, p.letters, p.shard, p.next_offset, m.value, {SERVER}
             from suture_meta as m left join suture_positions as p on p.topic in ({})
             where m.name = '{LEDGER_ID}'",
            if topics.is_empty() { "null".to_string() } else { topics.join(", ") }
        );
        let found = query(&mut clerk, &look).await.map_err(failed)?;
        let name = found.first().and_then(|row| column::<String>(row, 4));
        let server = found.first().and_then(|row| column::<String>(row, 5));
        let is_another_server = server.is_some_and(|server| server != self.opened.server);
        let there = found.iter().filter_map(position_of);
        let is_back = is_another_server || went_back((&self.opened.ledger.get(), name.as_deref()), &seen, there);
        let stored = if is_back {
            Stored::WentBack
        } else {
            store(&mut clerk, &positions).await.map_err(failed)?;
            Stored::All
        };
        run(&mut clerk, "commit").await.map_err(failed)?;
        clerk.give_back();
        Ok(stored)
    }

    async fn redo_together(&self, batch: &[Arc<Prepare>]) -> Result<Option<Vec<Redone>>, Unavailable> {
        let mut session = LocalSession::on(&self.workers).await?;
        let redone = reserve::redo(&mut session, &self.opened.operations, batch).await?;
        session.lease.give_back();
        Ok(redone)
    }

    async fn read_meta(&self) -> Result<BTreeMap<String, String>, Unavailable> {
        let mut clerk = self.clerks.lease().await?;
        let meta = read_meta(&mut clerk).await;
        let meta = meta.map_err(|trouble| trouble.unavailable("reading the ledger's marks"))?;
        clerk.give_back();
        Ok(meta)
    }

    async fn rename(&self, from: &str) -> Result<(), Unavailable> {
        let failed = |trouble: Trouble| trouble.unavailable("renaming the ledger");
        let mut clerk = self.clerks.lease().await?;
        run(&mut clerk, "start transaction; savepoint batch").await.map_err(failed)?;
        let rename = format!(
            "update suture_meta set value = concat({}, left(sha2(concat(uuid(), rand()), 256), 8))
             where name = '{LEDGER_ID}' and value = {}",
            text(&beginning_of_next(from)),
            text(from)
        );
        let Landed { rows, trouble } = send(&mut clerk, &[rename]).await;
        trouble.map_or(Ok(()), Err).map_err(failed)?;
        if rows == [1] {
            let mark = format!("replace into suture_meta values ('{RESTORING}', {})", text(from));
            run(&mut clerk, &mark).await.map_err(failed)?;
        }
        run(&mut clerk, "release savepoint batch; commit").await.map_err(failed)?;
        clerk.give_back();
        Ok(())
    }

    async fn unmark(&self) -> Result<(), Unavailable> {
        let mut clerk = self.clerks.lease().await?;
        let unmark = format!("delete from suture_meta where name = '{RESTORING}'");
        run(&mut clerk, &unmark).await.map_err(|trouble| trouble.unavailable("ending the restore"))?;
        clerk.give_back();
        Ok(())
    }

    async fn ledger_rows(&self, txids: &[Txid]) -> Result<BTreeMap<Txid, StoredRow>, Unavailable> {
        let mut clerk = self.clerks.lease().await?;
        let found = rows(&mut clerk, txids, "").await;
        let found = found.map_err(|trouble| trouble.unavailable("looking at the ledger"))?;
        clerk.give_back();
        Ok(found)
    }

    async fn read_marks(&self) -> Result<Marks, Unavailable> {
        let mut clerk = self.clerks.lease().await?;
        let marks = marks(&mut clerk).await.map_err(|trouble| trouble.unavailable("looking at the ledger"))?;
        clerk.give_back();
        Ok(marks)
    }

    async fn insert_entries(&self, entries: &[Entry]) -> Result<(), Unavailable> {
        if entries.is_empty() {
            return Ok(());
        }
        let values: Vec<String> = entries.iter().map(entry_values).collect();
        let sql = format!("{INSERT_ENTRY} {} on duplicate key update entry = suture_audit.entry", values.join(", "));
        let mut clerk = self.clerks.lease().await?;
        run(&mut clerk, &sql).await.map_err(|trouble| trouble.unavailable("noting"))?;
        clerk.give_back();
        Ok(())
    }

    async fn read_entries(&self, which: Which) -> Result<Vec<Noted>, Unavailable> {
        let doing = "reading what was noted";
        let untold = if which == Which::Untold { "where not told" } else { "" };
        let sql = format!(
            "select entry, record_key, record, told, floor(unix_timestamp(changed_at)) from suture_audit {untold}
             order by changed_at, entry"
        );
        let mut clerk = self.clerks.lease().await?;
        let rows = query(&mut clerk, &sql).await.map_err(|trouble| trouble.unavailable(doing))?;
        clerk.give_back();
        let read = |row: &Row| {
            let entry = Entry { entry: column(row, 0)?, record_key: column(row, 1)?, record: column(row, 2)? };
            let since = OffsetDateTime::from_unix_timestamp(column(row, 4)?).ok()?;
            Some(Noted { entry, told: column(row, 3)?, since })
        };
        rows.iter().map(|row| read(row).ok_or_else(|| unreadable(doing))).collect()
    }

    async fn mark_entries(&self, entries: &[String]) -> Result<(), Unavailable> {
        if entries.is_empty() {
            return Ok(());
        }
        let entries: Vec<String> = entries.iter().map(|entry| text(entry)).collect();
        let sql = format!("update suture_audit set told = true where entry in ({})", entries.join(", "));
        let mut clerk = self.clerks.lease().await?;
        run(&mut clerk, &sql).await.map_err(|trouble| trouble.unavailable("noting"))?;
        clerk.give_back();
        Ok(())
    }

    async fn write_resolution(&self, resolution: &Resolution) -> Result<Result<(), Unsettled>, Unavailable> {
        let mut session = LocalSession::on(&self.clerks).await?;
        let resolved = resolve(&mut session, resolution).await?;
        session.lease.give_back();
        Ok(resolved)
    }

    async fn insert_seeds(&self, name: &str, payloads: &[Box<RawValue>]) -> Result<u64, SeedError> {
        let seed = self.opened.seeds.get(name).ok_or_else(|| SeedError::Unknown(name.to_string()))?;
        let rows = bind_seed(seed, payloads)?;
        let failed = |trouble: Trouble| trouble.unavailable("seeding");
        // An error leaves the transaction open; the lease closes the connection then, and all of it is undone.
        let mut clerk = self.clerks.lease().await?;
        run(&mut clerk, "start transaction; savepoint batch").await.map_err(failed)?;
        let mut inserted = 0;
        for values in &rows {
            for step in &seed.steps {
                let failed = |code| SeedError::Failed { place: step.place.clone(), code };
                let Landed { rows, trouble } = send(&mut clerk, &[rendered(step, values)]).await;
                match trouble {
                    None => {}
                    Some(trouble) if trouble.blame == Blame::Database => {
                        return Err(trouble.unavailable("seeding").into());
                    }
                    Some(trouble) => return Err(failed(trouble.code)),
                }
                let changed: u64 = rows.iter().sum();
                if step.rows != Rows::Any && step.refuses_rows(changed).is_some() {
                    return Err(failed(format!("{changed} rows")));
                }
                inserted += changed;
            }
        }
        run(&mut clerk, "release savepoint batch; commit").await.map_err(failed)?;
        clerk.give_back();
        Ok(inserted)
    }
}

/// A position whose columns come first. `None`, if it has none, or cannot be read.
fn position_of(row: &Row) -> Option<Position> {
    Some(Position {
        topic: column(row, 0)?,
        letters: column::<String>(row, 1)?.parse().ok()?,
        shard: Shard(column(row, 2)?),
        next_offset: column(row, 3)?,
    })
}

async fn store(clerk: &mut Conn, positions: &[Position]) -> Result<(), Trouble> {
    if positions.is_empty() {
        return Ok(());
    }
    let mut sql = "insert into suture_positions (topic, letters, shard, next_offset) values ".to_string();
    for (index, Position { topic, letters, shard, next_offset }) in positions.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(sql, "{comma}({}, '{letters}', {shard}, {next_offset})", text(topic));
    }
    sql.push_str(" on duplicate key update next_offset = greatest(next_offset, values(next_offset))");
    run(clerk, &sql).await
}

// ---- the ledger ------------------------------------------------------------------------------------------------------

fn insert_row(row: &LedgerRow) -> String {
    let optional = |value: &Option<String>| value.as_deref().map_or("null".to_string(), text);
    format!(
        "insert into suture_ledger (txid, state, hash, business_key, attempt, live_key, operation, code, duplicate_of)
         values ({}, {}, {}, {}, {}, {}, {}, {}, {})",
        text(&row.txid),
        text(row.state),
        text(&row.hash),
        optional(&row.business_key),
        row.attempt.map_or("null".to_string(), |attempt| attempt.to_string()),
        optional(&row.live_key),
        optional(&row.operation),
        optional(&row.code),
        optional(&row.duplicate_of),
    )
}

const INSERT_ENTRY: &str = "insert into suture_audit (entry, record_key, record) values";

fn entry_values(Entry { entry, record_key, record }: &Entry) -> String {
    format!("({}, {}, {})", text(entry), text(record_key), text(record))
}

async fn rows(connection: &mut Conn, txids: &[Txid], how: &str) -> Result<BTreeMap<Txid, StoredRow>, Trouble> {
    if txids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let txids: Vec<String> = txids.iter().map(|txid| format!("'{txid}'")).collect();
    let sql = format!(
        "select txid, state, hash, operation, code, duplicate_of from suture_ledger where txid in ({}){how}",
        txids.join(", ")
    );
    let read = |row: &Row| {
        let stored = StoredRow {
            state: column(row, 1)?,
            hash: column(row, 2)?,
            operation: column(row, 3),
            code: column(row, 4),
            duplicate_of: column(row, 5),
        };
        Some((column::<String>(row, 0)?.parse().ok()?, stored))
    };
    let broken = || Trouble { blame: Blame::Database, code: "a ledger row cannot be read".to_string() };
    query(connection, &sql).await?.iter().map(|row| read(row).ok_or_else(broken)).collect()
}

async fn marks(connection: &mut Conn) -> Result<Marks, Trouble> {
    let read = |row: &Row| {
        let place = (column::<String>(row, 0)?.parse().ok()?, Shard(column(row, 1)?));
        Some((place, column(row, 2)?))
    };
    let broken = || Trouble { blame: Blame::Database, code: "a mark cannot be read".to_string() };
    let rows = query(connection, "select letters, shard, next_offset from suture_marks").await?;
    rows.iter().map(|row| read(row).ok_or_else(broken)).collect::<Result<_, _>>().map(Marks)
}

/// See [`Work::LookAtMark`].
fn look_at_mark(Txid { log, shard, offset }: &Txid) -> String {
    format!("select 1 from suture_marks where letters = '{log}' and shard = {shard} and next_offset > {offset}")
}

async fn rows_of_keys(connection: &mut Conn, keys: &[&str]) -> Result<Vec<StoredKeyRow>, Trouble> {
    let keys: Vec<String> = keys.iter().map(|key| text(key)).collect();
    let sql = format!(
        "select business_key, txid, state, hash, attempt from suture_ledger where business_key in ({})",
        keys.join(", ")
    );
    let read = |row: &Row| {
        Some(StoredKeyRow {
            business_key: column(row, 0)?,
            txid: column(row, 1)?,
            state: column(row, 2)?,
            hash: column(row, 3)?,
            attempt: column(row, 4)?,
        })
    };
    let broken = || Trouble { blame: Blame::Database, code: "a ledger row cannot be read".to_string() };
    query(connection, &sql).await?.iter().map(|row| read(row).ok_or_else(broken)).collect()
}

/// A column's value; `None` for NULL and for what is of another kind.
fn column<T: mysql_async::prelude::FromValue>(row: &Row, index: usize) -> Option<T> {
    row.get_opt::<Option<T>, _>(index)?.ok()?
}

fn unreadable(doing: &'static str) -> Unavailable {
    Unavailable::new(doing, "a row cannot be read")
}

// ---- opening ---------------------------------------------------------------------------------------------------------

async fn check_needs(clerk: &mut Conn, settings: &ServerSettings, opening: &Opening) -> Result<(), OpenError> {
    let doing = "reading settings";
    let version = facts_text(texts(clerk, doing, needs::MARIADB_VERSION).await?).unwrap_or_default();
    let facts = facts_of(texts(clerk, doing, needs::mariadb_facts(&version)).await?);
    let mut all = needs::of_mariadb(&version, &facts, opening.mode, settings);
    all.extend(needs::of_read_locks(
        opening.mode,
        opening.operations.values().flat_map(|operation| &operation.prepare),
    ));
    if opening.mode == Mode::Xa {
        let refused = query(clerk, "xa recover").await.err();
        all.push(needs::of_listing(refused.as_ref().map(|trouble| trouble.code.as_str())));
    }
    needs::refuse(all)
}

/// Refuses a ledger that is somebody else's, or holds in doubt what nobody would finish. Some of its tables may be missing, for each
/// is created by itself.
async fn check_ledger(clerk: &mut Conn, opening: &Opening) -> Result<(), OpenError> {
    let there = there(clerk).await?;
    if there.contains("suture_meta") {
        check_marks(&facts_of(texts(clerk, "reading the ledger's marks", READ_MARKS).await?), opening)?;
    }
    check_ledger_rights(clerk, &there).await?;
    let (mut rows, mut noted) = (0, Vec::new());
    if there.contains("suture_ledger") {
        noted = texts(clerk, "reading the ledger", OPERATIONS_IN_DOUBT).await?;
        let counted = query(clerk, "select count(*) from suture_ledger where state = 'in_doubt'").await;
        let counted = counted.map_err(|trouble| trouble.unavailable("reading the ledger"))?;
        rows = counted.first().and_then(|row| column(row, 0)).unwrap_or(0);
    }
    // An account that may not see the list has nothing in it.
    let listed = query(clerk, "xa recover").await.unwrap_or_default();
    let ours = listed.iter().filter_map(listed_gid).filter(|gid| gid.owner == opening.owner).count();
    check_mode(opening.mode, rows, i64::try_from(ours).unwrap_or(i64::MAX))?;
    check_operations(&opening.operations, noted)
}

async fn check_ledger_rights(clerk: &mut Conn, there: &BTreeSet<String>) -> Result<(), OpenError> {
    for step in rights::of_ledger(there) {
        check_statement(clerk, &step).await?;
    }
    Ok(())
}

/// The tables that are there.
async fn there(clerk: &mut Conn) -> Result<BTreeSet<String>, Unavailable> {
    Ok(names(texts(clerk, "looking for the ledger", tables_of(sql::Dialect::Mariadb)).await?))
}

/// What another engine holds would survive a rollback.
async fn check_engines(clerk: &mut Conn) -> Result<(), OpenError> {
    let table = facts_text(texts(clerk, "reading settings", needs::OTHER_ENGINES).await?);
    needs::refuse(vec![needs::of_engines(table.as_deref())])
}

/// Whether a step fits the tables, and the account may run it. Preparing it shows its syntax, and not whether the columns exist
/// that an `insert .. select` names; EXPLAIN shows that, and runs nothing. Who alters a table may wait for a branch in doubt that
/// only this participant ends: a lock in the way is no reason not to open.
async fn check_statement(clerk: &mut Conn, step: &operations::Step) -> Result<(), OpenError> {
    let judged = |error: Error| {
        let trouble = trouble(&error);
        match error {
            Error::Server(_) if trouble.blame == Blame::Busy => {
                rights::not_checked(step, &trouble.code);
                Ok(())
            }
            Error::Server(error) if is_denied(&trouble.code) => Err(rights::lacks(step, trouble.code, error.message)),
            Error::Server(error) if trouble.blame != Blame::Database => {
                Err(OpenError::Statement { place: step.place.clone(), code: trouble.code, said: error.message })
            }
            _ => Err(trouble.unavailable("checking statements").into()),
        }
    };
    let prepared = async {
        let statement = clerk.prep(step.sql.as_str()).await?;
        clerk.close(statement).await
    };
    if let Err(error) = prepared.await {
        return judged(error);
    }
    match clerk.query_drop(format!("explain {}", filled(step, || "null".to_string()))).await {
        // It was prepared before, which shows its syntax and the rights on its tables.
        Err(Error::Server(error)) if NOT_EXPLAINED.contains(&error.code) => Ok(()),
        explained => explained.or_else(judged),
    }
}

/// Creates the tables where they are missing, checks the marks, and answers the ledger's name. Where they are there no right to
/// create any is needed.
async fn prepare_ledger(clerk: &mut Conn, opening: &Opening) -> Result<String, OpenError> {
    let failed = |trouble: Trouble| OpenError::from(trouble.unavailable("creating the ledger"));
    let reading = "reading the ledger's marks";
    let there = there(clerk).await?;
    for (name, columns) in tables::MARIADB {
        if !there.contains(name) {
            run(clerk, &tables::mariadb_table(name, columns)).await.map_err(failed)?;
        }
    }
    for sql in missing_marks(sql::Dialect::Mariadb, &facts_of(texts(clerk, reading, READ_MARKS).await?), opening)? {
        run(clerk, &sql).await.map_err(failed)?;
    }
    let found = facts_of(texts(clerk, reading, READ_MARKS).await?);
    found.get(LEDGER_ID).cloned().ok_or_else(|| unreadable("creating the ledger").into())
}

async fn read_meta(clerk: &mut Conn) -> Result<BTreeMap<String, String>, Trouble> {
    let rows = query(clerk, "select name, value from suture_meta").await?;
    Ok(rows.iter().filter_map(|row| Some((column(row, 0)?, column(row, 1)?))).collect())
}

// ---- connections -----------------------------------------------------------------------------------------------------

/// Opens connections with one way to wait for locks.
struct Dialer {
    opts: Opts,
    session: String,
    /// Answers 1 if the session is as it must be.
    read_back: String,
}

type Pool = crate::pool::Pool<Dialer>;
type Lease<'a> = crate::pool::Lease<'a, Dialer>;

impl Dialer {
    fn new(settings: &ServerSettings, lock_timeout: Duration) -> Result<Self, Unavailable> {
        // Written out, so that no default of the server counts. What stands in the comment is for MariaDB alone.
        let session = format!(
            "set names utf8mb4; set session sql_mode = '{SQL_MODE}', time_zone = '+00:00', autocommit = 1,
             foreign_key_checks = 1, unique_checks = 1, completion_type = 0, lock_wait_timeout = {wait},
             innodb_lock_wait_timeout = {locks} /*M!100500 , max_statement_time = {time}, idle_transaction_timeout = {idle} */;
             set session transaction isolation level read committed",
            wait = settings.statement_timeout.max(lock_timeout).as_secs().max(1),
            locks = lock_timeout.as_secs().max(1),
            time = settings.statement_timeout.max(lock_timeout).as_secs_f64(),
            idle = settings.idle_timeout.as_secs(),
        );
        let read_back = format!(
            "select @@sql_mode like '%STRICT_ALL_TABLES%' and @@sql_mode like '%NO_BACKSLASH_ESCAPES%'
                and @@autocommit = 1 and @@innodb_lock_wait_timeout = {}",
            lock_timeout.as_secs().max(1)
        );
        Ok(Self { opts: Self::opts(settings)?, session, read_back })
    }

    /// For somebody who only reads.
    fn reading(settings: &ServerSettings) -> Result<Self, Unavailable> {
        let session = format!(
            "set names utf8mb4; set session time_zone = '+00:00', autocommit = 1, lock_wait_timeout = {locks}
             /*M!100500 , max_statement_time = {time} */;
             set session transaction isolation level read committed, read only",
            locks = LOCK_PATIENCE.as_secs(),
            time = PATIENCE.as_secs(),
        );
        // MariaDB's name for it until 11.1; MySQL has the other one, and the server skips what is not for it.
        let read_back = "select /*M!100000 @@tx_read_only */ /*!80003 @@transaction_read_only */".to_string();
        Ok(Self { opts: Self::opts(settings)?, session, read_back })
    }

    fn opts(settings: &ServerSettings) -> Result<Opts, Unavailable> {
        let opts = Opts::from_url(&settings.url);
        let opts = opts.map_err(|_| Unavailable::new("connecting", "the URL cannot be read"))?;
        // Rows that a statement has met, not only those that it has changed: as it is counted everywhere else.
        Ok(OptsBuilder::from_opts(opts).client_found_rows(true).prefer_socket(false).stmt_cache_size(0).into())
    }
}

impl Dial for Dialer {
    type Connection = Conn;

    async fn dial(&self) -> Result<Conn, Unavailable> {
        let dialled = within(Duration::from_secs(5), "connecting", async {
            Conn::new(self.opts.clone()).await.map_err(|error| trouble_at(&error, "connecting"))
        });
        let mut connection = dialled.await?;
        let failed = |trouble: Trouble| trouble.unavailable("connecting");
        run(&mut connection, &self.session).await.map_err(failed)?;
        let read_back = query(&mut connection, &self.read_back).await.map_err(failed)?;
        match read_back.first().and_then(|row| column(row, 0)) {
            Some(1) => Ok(connection),
            _ => Err(Unavailable::new("connecting", "session settings are not taken")),
        }
    }

    /// The driver does not know; the next question tells.
    fn is_closed(_: &Conn) -> bool {
        false
    }
}

/// A comment at the end of a statement ends with its line.
const BETWEEN: &str = "\n; do 0; ";

/// How many statements of a script are sent: all, or those before the one with which it is too long.
fn sendable(script: &[String]) -> usize {
    let ends = script.iter().scan(0, |end, statement| {
        *end += statement.len() + BETWEEN.len();
        Some(*end)
    });
    let ends: Vec<usize> = ends.collect();
    match ends.last() {
        Some(end) if *end > LONGEST_SCRIPT => ends.partition_point(|end| *end <= LONGEST_SCRIPT - LONGEST_END),
        Some(_) | None => script.len(),
    }
}

/// Sends statements in one round trip, up to the first that fails, or with which the script is too long: that one is to blame. Between
/// them stands one that cannot fail, so that an error while rows are read is told from an error of the statement that comes next.
async fn send(connection: &mut Conn, script: &[String]) -> Landed {
    let (script, too_long) = script.split_at(sendable(script));
    let too_long = (!too_long.is_empty()).then(|| Trouble { blame: Blame::Statement, code: "too long".to_string() });
    let mut rows = Vec::with_capacity(script.len());
    if script.is_empty() {
        return Landed { rows, trouble: too_long };
    }
    let mut result = match connection.query_iter(script.join(BETWEEN)).await {
        Ok(result) => result,
        Err(error) => return Landed { rows, trouble: Some(trouble(&error)) },
    };
    for index in 0.. {
        let is_statement = index % 2 == 0;
        let is_there = result.columns().is_some();
        let mut count = if result.columns_ref().is_empty() { result.affected_rows() } else { 0 };
        loop {
            match result.next().await {
                Ok(Some(_)) => count += 1,
                Ok(None) => break,
                // In a statement without rows it is that of the one behind it, which is a `do 0`.
                Err(error) => return Landed { rows, trouble: Some(trouble(&error)) },
            }
        }
        if !is_there {
            // What came back does not fit what was sent, and nothing may be concluded from it.
            let trouble = Trouble { blame: Blame::Database, code: "fewer answers than statements".to_string() };
            return Landed { rows, trouble: Some(trouble) };
        }
        if is_statement {
            rows.push(count);
        }
        if rows.len() == script.len() {
            break;
        }
    }
    Landed { rows, trouble: too_long }
}

/// Runs statements whose answers do not matter.
async fn run(connection: &mut Conn, script: &str) -> Result<(), Trouble> {
    let ran = async { connection.query_iter(script).await?.drop_result().await };
    ran.await.map_err(|error| trouble(&error))
}

/// The rows of one statement.
async fn query(connection: &mut Conn, sql: &str) -> Result<Vec<Row>, Trouble> {
    connection.query(sql).await.map_err(|error| trouble(&error))
}

// ---- reading ---------------------------------------------------------------------------------------------------------

/// The account lacks a privilege (MySQL: XA_RECOVER_ADMIN).
pub(crate) const NO_PRIVILEGE: &str = "1401";

pub(crate) const DIALECT: Dialect = Dialect {
    is_there: "select 1 from information_schema.tables where table_schema = database() and table_name = 'suture_meta'",
    version: "select if(version() like '%MariaDB%', version(), concat('MySQL ', version()))",
    age: "timestampdiff(second, changed_at, current_timestamp(6))",
    now_ms: "select cast(unix_timestamp(current_timestamp(6)) * 1000 as unsigned)",
};

/// Runs what `suture participant init` has made.
pub(crate) async fn execute(settings: &ServerSettings, statements: &[String]) -> Result<(), Unavailable> {
    let mut connection = Dialer::new(settings, settings.lock_timeout)?.dial().await?;
    for statement in statements {
        run(&mut connection, statement).await.map_err(|trouble| trouble.unavailable("setting up the ledger"))?;
    }
    Ok(())
}

/// The rows of a query, as texts.
async fn texts(connection: &mut Conn, doing: &'static str, sql: &str) -> Result<Vec<TextRow>, Unavailable> {
    let rows = query(connection, sql).await.map_err(|trouble| trouble.unavailable(doing))?;
    Ok(rows.iter().map(|row| (0..row.len()).map(|index| column(row, index)).collect()).collect())
}

/// A connection that changes nothing.
pub(crate) struct ReadOnly(Conn);

impl ReadOnly {
    pub async fn open(settings: &ServerSettings) -> Result<Self, Unavailable> {
        Ok(Self(Dialer::reading(settings)?.dial().await?))
    }

    pub async fn ask(&mut self, doing: &'static str, sql: &str) -> Result<Vec<TextRow>, Unavailable> {
        texts(&mut self.0, doing, sql).await
    }

    /// See [`check_statement`]. MariaDB does not even explain a change in a session that only reads.
    pub async fn check_statement(&mut self, step: &operations::Step) -> Result<(), OpenError> {
        let set = async |connection: &mut Conn, access: &str| {
            let ran = run(connection, &format!("set session transaction {access}")).await;
            ran.map_err(|trouble| OpenError::from(trouble.unavailable("checking statements")))
        };
        set(&mut self.0, "read write").await?;
        let checked = check_statement(&mut self.0, step).await;
        set(&mut self.0, "read only").await?;
        checked
    }

    /// All that is prepared on this server, as far as its name is one of Suture's. It does not tell since when.
    pub async fn listed(&mut self) -> Result<Vec<(Option<Gid>, Option<Duration>)>, Unavailable> {
        let listed = query(&mut self.0, "xa recover").await;
        let listed = listed.map_err(|trouble| trouble.unavailable("reading the list"))?;
        Ok(listed.iter().map(|row| (listed_gid(row), None)).collect())
    }
}

// ---- errors and values -----------------------------------------------------------------------------------------------

fn trouble(error: &Error) -> Trouble {
    let Error::Server(error) = error else {
        return Trouble { blame: Blame::Database, code: "connection".to_string() };
    };
    let blame = match error.code {
        1062 | 1586 => Blame::Unique,
        3819 | 4025 => Blame::Check,
        // Lock timeout, deadlock, record changed, a branch that was rolled back or timed out or is in a deadlock,
        // statement interrupted or timed out.
        1205 | 1213 | 1020 | 1317 | 1402 | 1613 | 1614 | 1969 | 3024 => Blame::Busy,
        // Memory, disk, connections, shutdown, rights to connect, read-only, the engine, a commit that failed.
        1021
        | 1026
        | 1030
        | 1037
        | 1038
        | 1040..=1045
        | 1053
        | 1077..=1080
        | 1114
        | 1129
        | 1130
        | 1152..=1161
        | 1180..=1184
        | 1203
        | 1290
        | 1836
        | 1927
        | 3100
        | 3169
        | 4031 => Blame::Database,
        _ => Blame::Statement,
    };
    Trouble { blame, code: error.code.to_string() }
}

fn trouble_at(error: &Error, doing: &'static str) -> Unavailable {
    trouble(error).unavailable(doing)
}

/// A step with its values in the place of the placeholders.
fn rendered(step: &operations::Step, values: &Values) -> String {
    let mut values = step.values(values);
    filled(step, || values.next().map(literal).unwrap_or_default())
}

/// A step with something in the place of each placeholder.
fn filled(step: &operations::Step, mut fill: impl FnMut() -> String) -> String {
    let mut sql = String::with_capacity(step.sql.len() + 64);
    let mut from = 0;
    for mark in &step.marks {
        sql.push_str(&step.sql[from..*mark]);
        sql.push_str(&fill());
        from = mark + 1;
    }
    sql.push_str(&step.sql[from..]);
    sql
}

fn literal(value: &Value) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Text(value) => text(value),
        // A sign must not meet one that stands before it: two of them begin a comment.
        Value::Integer(number) if *number < 0 => format!("({number})"),
        Value::Integer(number) => number.to_string(),
        Value::Decimal(decimal) if decimal.is_sign_negative() => format!("({decimal})"),
        Value::Decimal(decimal) => decimal.to_string(),
        Value::Timestamp(at) => {
            let at = at.to_offset(time::UtcOffset::UTC);
            let (date, (hour, minute, second, micro)) = (at.date(), at.time().as_hms_micro());
            format!("timestamp'{} {hour:02}:{minute:02}:{second:02}.{micro:06}'", day(date))
        }
        Value::Date(date) => format!("date'{}'", day(*date)),
        Value::Boolean(true) => "true".to_string(),
        Value::Boolean(false) => "false".to_string(),
    }
}

fn day(date: time::Date) -> String {
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

/// Text as hexadecimal digits.
fn text(text: &str) -> String {
    let mut sql = String::with_capacity(2 * text.len() + 12);
    sql.push_str("_utf8mb4 x'");
    for byte in text.bytes() {
        let _ = write!(sql, "{byte:02x}");
    }
    sql.push('\'');
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_literal() {
        assert_eq!(text("'; drop --"), "_utf8mb4 x'273b2064726f70202d2d'");
        assert_eq!(literal(&Value::Integer(-5)), "(-5)");
        assert_eq!(literal(&Value::Decimal("-1.50".parse().unwrap())), "(-1.50)");
        let at = time::macros::datetime!(2020-02-29 01:02:03.004005 +01:00);
        assert_eq!(literal(&Value::Timestamp(at)), "timestamp'2020-02-29 00:02:03.004005'");
        assert_eq!(literal(&Value::Date(time::macros::date!(0990 - 01 - 02))), "date'0990-01-02'");
    }

    #[test]
    fn what_is_sent_ends_before_the_statement_that_makes_it_too_long() {
        let script = |lengths: &[usize]| lengths.iter().map(|length| "x".repeat(*length)).collect::<Vec<_>>();
        let (half, all) = (LONGEST_SCRIPT / 2, LONGEST_SCRIPT);
        let cases: [(&str, &[usize], usize); 6] = [
            ("a short one", &[9, 9], 2),
            ("just as long as it may be", &[9, all - 9 - 2 * BETWEEN.len()], 2),
            ("one step that is too long", &[9, all, 9], 1),
            ("two of them together", &[9, half, half, 9], 2),
            ("a look behind the steps is never to blame", &[9, all - 100, 200], 1),
            ("nothing else", &[all + 1], 0),
        ];
        for (what, lengths, expected) in cases {
            assert_eq!(sendable(&script(lengths)), expected, "{what}");
        }
    }

    #[test]
    fn an_xid_has_two_parts() {
        let gid: Gid = "k3f9q-3-1042/suture/insurer/0123456789abcdef".parse().unwrap();
        assert_eq!(xid(&gid), format!("'k3f9q-3-1042','suture/insurer/0123456789abcdef',{FORMAT_ID}"));
    }
}
