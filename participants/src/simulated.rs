//! A database server in memory, for simulations by seed: both modes, as `server`, `xa` and `reserve` run them, over tables that
//! survive a crash and sessions that do not.
//!
//! | what it does like a real one | fact |
//! |---|---|
//! | a local transaction is there as a whole or not at all, also when the answer to its commit is lost | |
//! | a prepared branch survives everything; its ledger row is invisible and blocks its txid and its key, its business rows are locked | Q16, M7 |
//! | finishing a branch answers OK, and nothing has happened | M3 |
//! | a rollback of a prepared branch is undone by a crash | M4 |
//! | what came first is decided by locks that are waited for, and given up after a while | |
//! | another state of the tables is put in place of this one | |
//!
//! One call is one statement (or one flight of them): it happens at one moment, and anything may come between two of them.
//! The business is one table of accounts and one of effects. Steps of operations are no SQL here but a word behind `update`, with its
//! parameters: `spend` (account, amount, token) in mode xa; `reserve` (account, amount, token, txid), `keep` (txid) and `release`
//! (txid) in mode reserve.
//!
//! Left out: deadlocks and lost connections of single sessions in the middle of a reserve batch (real servers: the shared
//! conformance suite).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use suture_contract::ids::{Deployment, LogLetters, Shard, Txid};
use suture_contract::messages::{Decision, Prepare};
use suture_participants_core::branch::{KeyRow, Refusal, State};
use suture_participants_core::doubts::{InDoubt, SeenHash};
use suture_participants_core::gid::Gid;
use suture_participants_core::marks::{Candidate, Marks, Purge};
use suture_participants_core::operations::{self, Operation, Values};
use suture_participants_core::restore::beginning_of_next;
use suture_participants_core::settle::Unsettled;
use suture_participants_core::values::Value;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::config::{Database, ParticipantConfig};
use crate::ledger::{LEDGER_ID, LedgerName, LedgerRow, OnNo, RESTORING, StoredKeyRow, StoredRow, went_back};
use crate::purge::purge_page;
use crate::reserve::{self, Session, Work};
use crate::resolve::resolve;
use crate::resource::{
    Decided, Entry, Fault, Noted, Page, Position, Prepared, Purged, Redone, Resolution, SeedError, Stored, Unavailable,
    Which,
};
use crate::server::{Opened, Server};
use crate::trouble::{Blame, Landed, Trouble, busy};
use crate::xa::{self, AbortedRow, Branches, Collision, How, Known, LOOK_AGAIN, Ran};

/// How often something goes wrong: one in a thousand statements, for each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatabaseLuck {
    /// What was asked for is done, and the answer lost.
    pub lost_answer: u16,
    /// Nothing is done, and nothing answered.
    pub no_answer: u16,
    /// A branch is said to be finished, and is not.
    pub empty_ok: u16,
    /// A statement takes long.
    pub slow: u16,
}

/// Draws numbers, and is told what went wrong about which transaction.
pub trait Fate: Send {
    /// A number below `most`.
    fn draw(&mut self, most: u64) -> u64;
    /// Something went wrong.
    fn struck(&mut self, kind: &'static str, txid: Option<Txid>);
}

/// The server, its disk, and whoever waits for locks.
#[derive(Clone)]
pub struct SimulatedDatabase {
    data: Arc<Mutex<Data>>,
    released: Arc<Notify>,
}

struct Data {
    tables: Tables,
    prepared: BTreeMap<Txid, Branch>,
    /// Rolled back, with a row or without, and not yet so that a crash could not undo it.
    rolled_back: Vec<(Instant, Branch)>,
    /// Counts crashes: a session of before one is gone.
    life: u64,
    serves_from: Instant,
    luck: DatabaseLuck,
    fate: Box<dyn Fate>,
}

/// What is on disk. A copy of it, with the prepared branches, is a backup.
#[derive(Clone, Default)]
struct Tables {
    ledger: BTreeMap<Txid, LedgerEntry>,
    positions: BTreeMap<(String, LogLetters, Shard), u64>,
    marks: Marks,
    audit: BTreeMap<String, (Entry, bool, u64)>,
    meta: BTreeMap<String, String>,
    accounts: BTreeMap<String, i64>,
    /// By txid.
    reserved: BTreeMap<String, Spent>,
    effects: BTreeMap<String, u32>,
}

#[derive(Clone)]
struct LedgerEntry {
    row: LedgerRow,
    changed_at: Instant,
}

/// A prepared branch.
#[derive(Clone)]
struct Branch {
    gid: Gid,
    row: LedgerRow,
    spent: Vec<Spent>,
    since: Instant,
}

#[derive(Clone)]
struct Spent {
    account: String,
    amount: i64,
    token: String,
}

/// A database as it was.
#[derive(Clone)]
pub struct Backup(Tables, BTreeMap<Txid, Branch>);

impl Backup {
    /// The same as a dump holds it: without what is prepared.
    pub fn dumped(self) -> Self {
        Self(self.0, BTreeMap::new())
    }

    /// Below which offsets all is done in it: by topic, of one incarnation.
    pub fn positions(&self) -> BTreeMap<(String, Shard), u64> {
        let position =
            |((topic, _, shard), next): (&(String, LogLetters, Shard), &u64)| ((topic.clone(), *shard), *next);
        self.0.positions.iter().map(position).collect()
    }
}

/// What a person counts in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Count {
    /// How often each token has taken effect.
    pub effects: BTreeMap<String, u32>,
    /// What is reserved, neither kept nor released, by txid.
    pub reserved: BTreeSet<String>,
    /// What each account has left.
    pub accounts: BTreeMap<String, i64>,
    /// Branches in doubt, prepared or reserved.
    pub in_doubt: BTreeSet<Txid>,
    /// What the ledger says of each transaction.
    pub states: BTreeMap<Txid, State>,
    /// Names of what a person must know.
    pub incidents: BTreeSet<String>,
}

const LOCK_TIMEOUT: Duration = Duration::from_millis(1_500);
const KEY_TIMEOUT: Duration = Duration::from_millis(150);
/// So long after a rollback a crash may undo it. (Longer than a server's: what a rollback leaves must not hang on it.)
const UNFLUSHED: Duration = Duration::from_secs(60);

impl SimulatedDatabase {
    /// An empty one with these accounts.
    pub fn new(accounts: BTreeMap<String, i64>, luck: DatabaseLuck, mut fate: Box<dyn Fate>) -> Self {
        let ledger_id = format!("{:016x}", fate.draw(u64::MAX));
        let meta = BTreeMap::from([(LEDGER_ID.to_string(), ledger_id)]);
        let data = Data {
            tables: Tables { meta, accounts, ..Tables::default() },
            prepared: BTreeMap::new(),
            rolled_back: Vec::new(),
            life: 0,
            serves_from: Instant::now(),
            luck,
            fate,
        };
        Self { data: Arc::new(Mutex::new(data)), released: Arc::new(Notify::new()) }
    }

    /// From now on.
    pub fn set_luck(&self, luck: DatabaseLuck) {
        self.lock().luck = luck;
    }

    /// It ends at once, with all sessions, and serves again after a while.
    pub fn crash(&self, away: Duration) {
        let mut data = self.lock();
        data.life += 1;
        data.serves_from = Instant::now() + away;
        let now = Instant::now();
        for (at, branch) in std::mem::take(&mut data.rolled_back) {
            let is_free = branch.spent.iter().all(|spent| !data.is_locked(&spent.account));
            if now - at <= UNFLUSHED && is_free {
                data.fate.struck("undone_rollback", Some(branch.gid.txid));
                data.prepared.insert(branch.gid.txid, branch);
            }
        }
        self.released.notify_waiters();
    }

    /// Its state now.
    pub fn backup(&self) -> Backup {
        let data = self.lock();
        Backup(data.tables.clone(), data.prepared.clone())
    }

    /// That state is put in place of this one.
    pub fn restore(&self, Backup(tables, prepared): Backup) {
        let mut data = self.lock();
        (data.tables, data.prepared) = (tables, prepared);
        data.rolled_back.clear();
        data.life += 1;
        self.released.notify_waiters();
    }

    /// Somebody says by hand that it is to be brought back.
    pub fn mark_as_restored(&self) {
        self.lock().tables.meta.insert(RESTORING.to_string(), "by hand".to_string());
    }

    /// Whether it is to be brought back, or is being so.
    pub fn is_restoring(&self) -> bool {
        self.lock().tables.meta.contains_key(RESTORING)
    }

    /// Somebody ends a branch in doubt by hand, if there is one; not one that is only left over, for the ledger has its row. What he
    /// rolls back stays so: he has seen that it is gone.
    pub fn finish_by_hand(&self, how_is_commit: bool) -> Option<Txid> {
        let mut data = self.lock();
        let txid = *data.prepared.keys().find(|txid| !data.tables.ledger.contains_key(txid))?;
        match how_is_commit {
            true => data.finish(&txid, How::Commit),
            false => drop(data.prepared.remove(&txid)),
        }
        self.released.notify_waiters();
        Some(txid)
    }

    /// Somebody makes an effect by hand, if that does not take what a branch in doubt may still take. (He waits for nobody's
    /// locks.)
    pub fn spend_by_hand(&self, account: &str, amount: i64, token: &str) -> bool {
        let mut data = self.lock();
        let spent = data.prepared.values().flat_map(|branch| &branch.spent).filter(|spent| spent.account == account);
        let promised: i64 = spent.map(|spent| spent.amount).sum();
        let left = data.tables.accounts.entry(account.to_string()).or_default();
        if *left - promised < amount {
            return false;
        }
        *left -= amount;
        *data.tables.effects.entry(token.to_string()).or_default() += 1;
        true
    }

    /// Somebody undoes an effect by hand.
    pub fn undo_by_hand(&self, account: &str, amount: i64, token: &str) {
        let mut data = self.lock();
        *data.tables.accounts.entry(account.to_string()).or_default() += amount;
        let times = data.tables.effects.entry(token.to_string()).or_default();
        *times = times.saturating_sub(1);
        data.tables.effects.retain(|_, times| *times > 0);
    }

    /// What is in it.
    pub fn count(&self) -> Count {
        let data = self.lock();
        let tables = &data.tables;
        let states = tables.states();
        let in_doubt = states.iter().filter(|(_, state)| **state == State::InDoubt).map(|(txid, _)| *txid);
        Count {
            effects: tables.effects.clone(),
            reserved: tables.reserved.keys().cloned().collect(),
            accounts: tables.accounts.clone(),
            in_doubt: in_doubt.chain(data.prepared.keys().copied()).collect(),
            states,
            incidents: tables.audit.keys().cloned().collect(),
        }
    }

    /// What the ledger says of each transaction; nothing of what is prepared.
    pub fn states(&self) -> BTreeMap<Txid, State> {
        self.lock().tables.states()
    }

    /// The ledger's name.
    pub fn ledger_id(&self) -> String {
        self.lock().tables.meta.get(LEDGER_ID).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a prepared branch holds what a statement of a local transaction needs.
    fn is_in_the_way_of(&self, work: Work<'_>) -> bool {
        let data = self.lock();
        match work {
            Work::Insert(row) => data.is_held(row),
            Work::Step(step, values) => spent(&texts(step, values)).is_some_and(|spent| data.is_locked(&spent.account)),
            Work::Finish(..) | Work::Remove(_) | Work::Note(_) | Work::LookAtMark(_) => false,
        }
    }

    /// Until somebody has released one, and no longer than for a while. Who waits here is refused also if it is released: a copy of
    /// the tables was made before.
    async fn wait_for_lock(&self) {
        let _ = timeout(LOCK_TIMEOUT, self.released.notified()).await;
    }

    /// One statement, or one flight: it happens at one moment, or not at all.
    async fn ask<T>(
        &self,
        doing: &'static str,
        txid: Option<Txid>,
        statement: impl FnOnce(&mut Data) -> T,
    ) -> Result<T, Unavailable> {
        let lost = || Unavailable::new(doing, "connection");
        let (life, there, back, luck) = {
            let mut data = self.lock();
            (data.life, data.way(), data.way(), data.luck)
        };
        sleep(there).await;
        let answer = {
            let mut data = self.lock();
            if data.life != life || Instant::now() < data.serves_from {
                return Err(lost());
            }
            if data.strikes("no_answer", luck.no_answer, txid) {
                return Err(lost());
            }
            statement(&mut data)
        };
        sleep(back).await;
        let mut data = self.lock();
        match data.life == life && !data.strikes("lost_database_answer", luck.lost_answer, txid) {
            true => Ok(answer),
            false => Err(lost()),
        }
    }
}

impl Data {
    fn way(&mut self) -> Duration {
        let slow = self.luck.slow;
        match slow > 0 && self.fate.draw(1_000) < u64::from(slow) {
            true => Duration::from_millis(50 + self.fate.draw(3_000)),
            false => Duration::from_millis(self.fate.draw(2)),
        }
    }

    fn strikes(&mut self, kind: &'static str, in_thousand: u16, txid: Option<Txid>) -> bool {
        let strikes = in_thousand > 0 && self.fate.draw(1_000) < u64::from(in_thousand);
        if strikes {
            self.fate.struck(kind, txid);
        }
        strikes
    }

    fn is_locked(&self, account: &str) -> bool {
        self.prepared.values().any(|branch| branch.spent.iter().any(|spent| spent.account == account))
    }

    /// Whether a row that nobody sees yet holds what this one needs.
    fn is_held(&self, row: &LedgerRow) -> bool {
        self.prepared.values().any(|branch| collides(&branch.row, row))
    }

    fn finish(&mut self, txid: &Txid, how: How) {
        let Some(branch) = self.prepared.remove(txid) else { return };
        match how {
            How::RollBack => self.rolled_back.push((Instant::now(), branch)),
            How::Commit => {
                let Branch { row, spent, since, .. } = branch;
                for Spent { account, amount, token } in spent {
                    *self.tables.accounts.entry(account).or_default() -= amount;
                    *self.tables.effects.entry(token).or_default() += 1;
                }
                self.tables.ledger.insert(*txid, LedgerEntry { row, changed_at: since });
            }
        }
    }
}

/// The ledger's unique keys: txid, live key, business key with attempt.
fn collides(one: &LedgerRow, other: &LedgerRow) -> bool {
    let is_same_attempt =
        one.business_key.is_some() && (&one.business_key, one.attempt) == (&other.business_key, other.attempt);
    one.txid == other.txid || (one.live_key.is_some() && one.live_key == other.live_key) || is_same_attempt
}

impl Tables {
    fn states(&self) -> BTreeMap<Txid, State> {
        let state = |(txid, entry): (&Txid, &LedgerEntry)| Some((*txid, State::of_ledger(entry.row.state)?));
        self.ledger.iter().filter_map(state).collect()
    }

    fn insert(&mut self, row: &LedgerRow) -> Result<u64, Trouble> {
        let unique = || Trouble { blame: Blame::Unique, code: "unique".to_string() };
        if self.ledger.values().any(|entry| collides(&entry.row, row)) {
            return Err(unique());
        }
        let txid = row.txid.parse().map_err(|_| unique())?;
        self.ledger.insert(txid, LedgerEntry { row: row.clone(), changed_at: Instant::now() });
        Ok(1)
    }

    fn step(&mut self, step: &operations::Step, values: &Values) -> u64 {
        let texts = texts(step, values);
        match (step.sql.split_whitespace().nth(1), spent(&texts), &texts[..]) {
            (Some("reserve"), Some(spent), [.., txid]) => {
                let left = self.accounts.entry(spent.account.clone()).or_default();
                if *left < spent.amount {
                    return 0;
                }
                *left -= spent.amount;
                self.reserved.insert(txid.clone(), spent);
            }
            (Some("keep"), _, [txid]) => {
                let Some(spent) = self.reserved.remove(txid) else { return 0 };
                *self.effects.entry(spent.token).or_default() += 1;
            }
            (Some("release"), _, [txid]) => {
                let Some(spent) = self.reserved.remove(txid) else { return 0 };
                *self.accounts.entry(spent.account).or_default() += spent.amount;
            }
            // Of a commit that is done again, in mode xa.
            (Some("spend"), Some(spent), _) => {
                let left = self.accounts.entry(spent.account).or_default();
                if *left < spent.amount {
                    return 0;
                }
                *left -= spent.amount;
                *self.effects.entry(spent.token).or_default() += 1;
            }
            _ => return 0,
        }
        1
    }

    fn work(&mut self, work: Work<'_>) -> Result<u64, Trouble> {
        match work {
            Work::Insert(row) => self.insert(row),
            Work::Step(step, values) => Ok(self.step(step, values)),
            Work::Finish(txid, state) => Ok(self.ledger.get_mut(txid).map_or(0, |entry| {
                let live_key = entry.row.live_key.take().filter(|_| state == State::Committed);
                entry.row = LedgerRow { state: state.as_str(), live_key, ..entry.row.clone() };
                entry.changed_at = Instant::now();
                1
            })),
            Work::Remove(txid) => Ok(self.ledger.remove(txid).map_or(0, |_| 1)),
            Work::Note(entry) => match self.audit.contains_key(&entry.entry) {
                true => Err(Trouble { blame: Blame::Unique, code: "unique".to_string() }),
                false => {
                    self.note(entry);
                    Ok(1)
                }
            },
            Work::LookAtMark(txid) => Ok(u64::from(self.marks.covers(txid))),
        }
    }

    fn note(&mut self, entry: &Entry) {
        let number = self.audit.len() as u64;
        self.audit.entry(entry.entry.clone()).or_insert_with(|| (entry.clone(), false, number));
    }

    fn rows(&self, txids: &[Txid]) -> BTreeMap<Txid, StoredRow> {
        let row = |txid: &Txid| Some((*txid, stored(&self.ledger.get(txid)?.row)));
        txids.iter().filter_map(row).collect()
    }

    fn rows_of_keys(&self, keys: &[&str]) -> Vec<StoredKeyRow> {
        let rows = self.ledger.values().map(|entry| &entry.row);
        let of_key = rows.filter_map(|row| {
            let business_key = row.business_key.clone().filter(|key| keys.contains(&key.as_str()))?;
            let (txid, state, hash) = (row.txid.clone(), row.state.to_string(), row.hash.clone());
            Some(StoredKeyRow { business_key, txid, state, hash, attempt: row.attempt? })
        });
        of_key.collect()
    }
}

fn stored(row: &LedgerRow) -> StoredRow {
    StoredRow {
        state: row.state.to_string(),
        hash: row.hash.clone(),
        operation: row.operation.clone(),
        code: row.code.clone(),
        duplicate_of: row.duplicate_of.clone(),
    }
}

fn texts(step: &operations::Step, values: &Values) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        other => format!("{other:?}"),
    };
    step.values(values).map(text).collect()
}

/// The parameters account, amount and token.
fn spent(texts: &[String]) -> Option<Spent> {
    let [account, amount, token, ..] = texts else { return None };
    Some(Spent { account: account.clone(), amount: amount.parse().ok()?, token: token.clone() })
}

/// A participant's connections to it.
pub struct SimulatedServer {
    database: SimulatedDatabase,
    opened: Opened,
}

impl SimulatedServer {
    /// Connects. `None`: not the configuration of a database behind a server.
    pub fn open(database: &SimulatedDatabase, config: &ParticipantConfig, deployment: &Deployment) -> Option<Self> {
        let opening = config.opening(deployment, None, false).ok()?;
        let Database::Postgres(settings) = config.database.clone() else { return None };
        let ledger = LedgerName::new(database.ledger_id());
        let server = String::new();
        let opened = Opened {
            mode: opening.mode,
            settings,
            owner: opening.owner,
            operations: opening.operations,
            seeds: opening.seeds,
            ledger,
            server,
        };
        Some(Self { database: database.clone(), opened })
    }

    fn session(&self) -> LocalSession<'_> {
        LocalSession { database: &self.database, open: None }
    }

    /// Runs a branch at one moment. `None`: a lock is in its way.
    fn try_branch(&self, data: &mut Data, prepare: &Prepare, operation: &Operation, values: &Values) -> Tried {
        let row = LedgerRow::of(prepare, State::Committed, None);
        let unique = Trouble { blame: Blame::Unique, code: "unique".to_string() };
        if data.tables.ledger.values().any(|entry| collides(&entry.row, &row)) {
            return Tried::Landed(Landed { rows: vec![0], trouble: Some(unique) });
        }
        if data.is_held(&row) {
            return Tried::KeyIsHeld;
        }
        let mut spent = Vec::new();
        let mut rows = vec![0, 1, 0];
        for step in &operation.prepare {
            let Some(spends) = self::spent(&texts(step, values)) else {
                rows.push(0);
                continue;
            };
            if data.is_locked(&spends.account) {
                return Tried::RowIsLocked;
            }
            let left = data.tables.accounts.get(&spends.account).copied().unwrap_or(0);
            rows.push(u64::from(left >= spends.amount));
            spent.push(spends);
        }
        rows.push(u64::from(data.tables.marks.covers(&prepare.txid)));
        let is_well = rows[3..rows.len() - 1].iter().all(|rows| *rows == 1) && rows.last() == Some(&0);
        if is_well {
            let gid = Gid::new(prepare.txid, &self.opened.owner, &prepare.hash);
            data.prepared.insert(prepare.txid, Branch { gid, row, spent, since: Instant::now() });
        }
        Tried::Landed(Landed { rows, trouble: None })
    }
}

enum Tried {
    Landed(Landed),
    KeyIsHeld,
    RowIsLocked,
}

impl Branches for SimulatedServer {
    fn opened(&self) -> &Opened {
        &self.opened
    }

    async fn look(&self, txid: &Txid) -> Result<Known, Unavailable> {
        self.look_at_all(&[*txid]).await
    }

    async fn look_at_all(&self, txids: &[Txid]) -> Result<Known, Unavailable> {
        let look = |data: &mut Data| {
            let gids: BTreeMap<Txid, Gid> =
                data.prepared.iter().map(|(txid, branch)| (*txid, branch.gid.clone())).collect();
            Known { in_doubt: gids.len(), gids, rows: data.tables.rows(txids), marks: data.tables.marks.clone() }
        };
        self.database.ask("looking at the ledger", txids.first().copied(), look).await
    }

    async fn rows_of_key(&self, prepare: &Prepare) -> Result<Result<Vec<KeyRow>, Fault>, Unavailable> {
        let look = |data: &mut Data| data.tables.rows_of_keys(&[prepare.business_key.as_str()]);
        let rows = self.database.ask("looking at the ledger", Some(prepare.txid), look).await?;
        Ok(rows.iter().map(StoredKeyRow::read).collect())
    }

    async fn run(&self, prepare: &Prepare, operation: &Operation, values: &Values) -> Result<Ran, Unavailable> {
        let began = Instant::now();
        loop {
            let released = self.database.released.notified();
            let try_it = |data: &mut Data| self.try_branch(data, prepare, operation, values);
            let (deadline, given_up) = match self.database.ask("running a branch", Some(prepare.txid), try_it).await? {
                Tried::Landed(landed) => {
                    let judged = xa::judge(prepare, &operation.prepare, landed)?;
                    return Ok(judged.unwrap_or(Ran::Seen));
                }
                Tried::KeyIsHeld => (began + KEY_TIMEOUT, Ran::Met(Collision::InProgress)),
                Tried::RowIsLocked => (began + LOCK_TIMEOUT, Ran::Refused(Refusal::with(busy()))),
            };
            if timeout_at(deadline, released).await.is_err() {
                return Ok(given_up);
            }
        }
    }

    async fn insert_refused(&self, txid: &Txid, row: LedgerRow) -> Result<bool, Unavailable> {
        let insert = |data: &mut Data| {
            !data.is_held(&row) && !data.tables.marks.covers(txid) && data.tables.insert(&row).is_ok()
        };
        self.database.ask("refusing", Some(*txid), insert).await
    }

    async fn finish_one(&self, how: How, gid: &Gid) -> Result<(), Unavailable> {
        let finish = |data: &mut Data| {
            let empty_ok = data.luck.empty_ok;
            if !data.strikes("empty_ok", empty_ok, Some(gid.txid)) {
                data.finish(&gid.txid, how);
            }
        };
        let finished = self.database.ask("finishing a branch", Some(gid.txid), finish).await;
        self.database.released.notify_waiters();
        finished
    }

    async fn insert_aborted(&self, rows: &[AbortedRow<'_>]) -> Result<bool, Unavailable> {
        let insert = |data: &mut Data| {
            let rows: Vec<LedgerRow> = rows.iter().map(aborted_row).collect();
            if rows.iter().any(|row| data.is_held(row)) {
                return false;
            }
            for row in &rows {
                // On conflict do nothing.
                let _ = data.tables.insert(row);
            }
            true
        };
        let first = rows.first().map(|row| row.decision.txid);
        self.database.ask("noting aborts", first, insert).await
    }

    async fn wait_for_holder(&self, _: &Decision) -> Result<(), Unavailable> {
        sleep(LOOK_AGAIN).await;
        Ok(())
    }
}

fn aborted_row(AbortedRow { decision, named }: &AbortedRow<'_>) -> LedgerRow {
    LedgerRow {
        business_key: named.then(|| decision.business_key.to_string()),
        attempt: named.then(|| i64::from(decision.attempt.number())),
        ..LedgerRow::unnamed(&decision.txid, State::Aborted, &decision.hash)
    }
}

/// A local transaction: a copy of the tables that takes their place. Nothing comes between its beginning and its end but the
/// way there and back.
struct LocalSession<'a> {
    database: &'a SimulatedDatabase,
    open: Option<Open>,
}

struct Open {
    life: u64,
    tables: Tables,
    /// Before each branch of the last call.
    savepoints: Vec<Tables>,
    /// It has waited: the copy is an old one, and takes nobody's place any more.
    is_old: bool,
}

impl LocalSession<'_> {
    fn open(&mut self) -> Result<&mut Open, Trouble> {
        self.open.as_mut().ok_or_else(Trouble::silence)
    }
}

impl Session for LocalSession<'_> {
    async fn begin(&mut self) -> Result<(), Trouble> {
        let begin = |data: &mut Data| Open {
            life: data.life,
            tables: data.tables.clone(),
            savepoints: Vec::new(),
            is_old: false,
        };
        // The answer to it is the first one's: nothing may come between the copy and its use.
        let (there, luck) = {
            let mut data = self.database.lock();
            (data.way(), data.luck)
        };
        sleep(there).await;
        let mut data = self.database.lock();
        if Instant::now() < data.serves_from || data.strikes("no_answer", luck.no_answer, None) {
            return Err(Trouble::silence());
        }
        self.open = Some(begin(&mut data));
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Trouble> {
        let Some(open) = self.open.take() else { return Err(Trouble::silence()) };
        let (back, life) = {
            let mut data = self.database.lock();
            if data.life != open.life || open.is_old {
                return Err(Trouble::silence());
            }
            data.tables = open.tables;
            (data.way(), data.life)
        };
        sleep(back).await;
        let mut data = self.database.lock();
        let luck = data.luck;
        match data.life == life && !data.strikes("lost_database_answer", luck.lost_answer, None) {
            true => Ok(()),
            false => Err(Trouble::silence()),
        }
    }

    async fn roll_back(&mut self) -> Result<(), Trouble> {
        self.open = None;
        Ok(())
    }

    async fn rows(&mut self, txids: &[Txid], _: bool) -> Result<BTreeMap<Txid, StoredRow>, Trouble> {
        Ok(self.open()?.tables.rows(txids))
    }

    async fn rows_of_keys(&mut self, keys: &[&str]) -> Result<Vec<StoredKeyRow>, Trouble> {
        Ok(self.open()?.tables.rows_of_keys(keys))
    }

    async fn marks(&mut self) -> Result<Marks, Trouble> {
        Ok(self.open()?.tables.marks.clone())
    }

    async fn page(
        &mut self,
        after: Option<&Txid>,
        older_than: Duration,
        rows: usize,
    ) -> Result<Vec<Candidate>, Trouble> {
        let now = Instant::now();
        let is_old = |entry: &LedgerEntry| {
            entry.row.state != State::InDoubt.as_str() && now.duration_since(entry.changed_at) >= older_than
        };
        let behind = self.open()?.tables.ledger.iter().filter(|(txid, _)| after.is_none_or(|after| *txid > after));
        Ok(behind.take(rows).map(|(txid, entry)| Candidate { txid: *txid, is_old: is_old(entry) }).collect())
    }

    async fn purge(&mut self, purge: &Purge) -> Result<(), Trouble> {
        let tables = &mut self.open()?.tables;
        for txid in &purge.txids {
            tables.ledger.remove(txid);
        }
        for (place, mark) in &purge.marks.0 {
            let known = tables.marks.0.entry(*place).or_default();
            *known = (*known).max(*mark);
        }
        Ok(())
    }

    async fn branches(&mut self, works: &[Vec<Work<'_>>]) -> Vec<Landed> {
        let database = self.database.clone();
        let Ok(open) = self.open() else { return Vec::new() };
        open.savepoints.clear();
        let mut landed = Vec::new();
        for work in works {
            open.savepoints.push(open.tables.clone());
            let mut rows = Vec::new();
            let mut trouble = None;
            for work in work {
                if database.is_in_the_way_of(*work) {
                    database.wait_for_lock().await;
                    open.is_old = true;
                    trouble = Some(Trouble { blame: Blame::Busy, code: "lock".to_string() });
                    break;
                }
                match open.tables.work(*work) {
                    Ok(changed) => rows.push(changed),
                    Err(met) => {
                        trouble = Some(met);
                        break;
                    }
                }
            }
            let has_failed = trouble.is_some();
            landed.push(Landed { rows, trouble });
            if has_failed {
                break;
            }
        }
        landed
    }

    async fn undo_from(&mut self, branch: usize) -> Result<bool, Trouble> {
        let open = self.open()?;
        match open.savepoints.get(branch).cloned() {
            Some(before) => {
                open.tables = before;
                open.savepoints.truncate(branch);
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

impl Server for SimulatedServer {
    async fn reserve(&self, batch: &[Arc<Prepare>], on_no: OnNo) -> Result<Vec<Prepared>, Unavailable> {
        reserve::prepare(&mut self.session(), &self.opened.operations, batch, on_no).await
    }

    async fn confirm_or_cancel(&self, batch: &[Arc<Decision>]) -> Result<Vec<Decided>, Unavailable> {
        reserve::decide(&mut self.session(), &self.opened.operations, batch).await
    }

    async fn list_in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let list = |data: &mut Data| {
            let in_doubt = |branch: &Branch| InDoubt {
                txid: branch.gid.txid,
                age: Some(branch.since.elapsed()),
                hash: SeenHash::Short(branch.gid.short_hash.clone()),
            };
            data.prepared.values().map(in_doubt).collect()
        };
        self.database.ask("reading the list", None, list).await
    }

    async fn rows_in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let list = |data: &mut Data| {
            let in_doubt = data.tables.ledger.iter().filter(|(_, entry)| entry.row.state == State::InDoubt.as_str());
            let read = |(txid, entry): (&Txid, &LedgerEntry)| {
                let hash = SeenHash::Whole(entry.row.hash.parse().ok()?);
                Some(InDoubt { txid: *txid, age: Some(entry.changed_at.elapsed()), hash })
            };
            in_doubt.filter_map(read).collect()
        };
        self.database.ask("reading the ledger", None, list).await
    }

    async fn purge_page(&self, page: &Page, in_doubt: &[InDoubt]) -> Result<Purged, Unavailable> {
        purge_page(&mut self.session(), page, in_doubt).await
    }

    async fn read_positions(&self, topic: String) -> Result<Vec<Position>, Unavailable> {
        let read =
            |data: &mut Data| {
                let of_topic = data.tables.positions.iter().filter(|((of, _, _), _)| *of == topic);
                let position = |((topic, letters, shard), next_offset): (&(String, LogLetters, Shard), &u64)| {
                    Position { topic: topic.clone(), letters: *letters, shard: *shard, next_offset: *next_offset }
                };
                of_topic.map(position).collect()
            };
        self.database.ask("reading positions", None, read).await
    }

    async fn write_positions(&self, positions: Vec<Position>, seen: Vec<Position>) -> Result<Stored, Unavailable> {
        let write = |data: &mut Data| {
            let tables = &mut data.tables;
            let there = seen.iter().filter_map(|Position { topic, letters, shard, .. }| {
                let next_offset = *tables.positions.get(&(topic.clone(), *letters, *shard))?;
                Some(Position { topic: topic.clone(), letters: *letters, shard: *shard, next_offset })
            });
            let name = tables.meta.get(LEDGER_ID).map(String::as_str);
            if went_back((&self.opened.ledger.get(), name), &seen, there.collect::<Vec<_>>()) {
                return Stored::WentBack;
            }
            for Position { topic, letters, shard, next_offset } in positions {
                let known = tables.positions.entry((topic, letters, shard)).or_default();
                *known = (*known).max(next_offset);
            }
            Stored::All
        };
        self.database.ask("storing positions", None, write).await
    }

    async fn redo_together(&self, batch: &[Arc<Prepare>]) -> Result<Option<Vec<Redone>>, Unavailable> {
        reserve::redo(&mut self.session(), &self.opened.operations, batch).await
    }

    async fn read_meta(&self) -> Result<BTreeMap<String, String>, Unavailable> {
        self.database.ask("reading the ledger's marks", None, |data| data.tables.meta.clone()).await
    }

    async fn rename(&self, from: &str) -> Result<(), Unavailable> {
        let rename = |data: &mut Data| {
            let drawn = data.fate.draw(u64::from(u32::MAX));
            if data.tables.meta.get(LEDGER_ID).map(String::as_str) == Some(from) {
                let name = format!("{}{drawn:08x}", beginning_of_next(from));
                data.tables.meta.insert(LEDGER_ID.to_string(), name);
                data.tables.meta.insert(RESTORING.to_string(), from.to_string());
            }
        };
        self.database.ask("renaming the ledger", None, rename).await
    }

    async fn unmark(&self) -> Result<(), Unavailable> {
        self.database.ask("ending the restore", None, |data| drop(data.tables.meta.remove(RESTORING))).await
    }

    async fn ledger_rows(&self, txids: &[Txid]) -> Result<BTreeMap<Txid, StoredRow>, Unavailable> {
        self.database.ask("looking at the ledger", txids.first().copied(), |data| data.tables.rows(txids)).await
    }

    async fn read_marks(&self) -> Result<Marks, Unavailable> {
        self.database.ask("looking at the ledger", None, |data| data.tables.marks.clone()).await
    }

    async fn insert_entries(&self, entries: &[Entry]) -> Result<(), Unavailable> {
        let note = |data: &mut Data| entries.iter().for_each(|entry| data.tables.note(entry));
        self.database.ask("noting", None, note).await
    }

    async fn read_entries(&self, which: Which) -> Result<Vec<Noted>, Unavailable> {
        let read = |data: &mut Data| {
            let mut noted: Vec<_> = data.tables.audit.values().cloned().collect();
            noted.sort_by_key(|(_, _, number)| *number);
            let noted = noted.into_iter().filter(|(_, told, _)| which == Which::All || !told);
            noted.map(|(entry, told, _)| Noted { entry, told, since: OffsetDateTime::UNIX_EPOCH }).collect()
        };
        self.database.ask("reading what was noted", None, read).await
    }

    async fn mark_entries(&self, entries: &[String]) -> Result<(), Unavailable> {
        let mark = |data: &mut Data| {
            for entry in entries {
                if let Some((_, told, _)) = data.tables.audit.get_mut(entry) {
                    *told = true;
                }
            }
        };
        self.database.ask("noting", None, mark).await
    }

    async fn write_resolution(&self, resolution: &Resolution) -> Result<Result<(), Unsettled>, Unavailable> {
        resolve(&mut self.session(), resolution).await
    }

    async fn insert_seeds(&self, name: &str, _: &[Box<RawValue>]) -> Result<u64, SeedError> {
        Err(SeedError::Unknown(name.to_string()))
    }
}
