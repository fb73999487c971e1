//! What a database must be able to do to take part, and what the service may rely on.
//!
//! A resource keeps the *ledger*, a table in the same database that changes in the same local transaction as the
//! business rows. Whatever a resource is asked may be asked again at any time, by another process too; the ledger makes
//! a repeat harmless.
//!
//! Three kinds of answers, by what the caller does next:
//!
//! - an answer of the branch: [`Answer`] or [`Effect`]. It is durable when it is returned;
//! - a [`Fault`]: something that must not happen. Nothing was changed; the shard stops;
//! - [`Unavailable`]: nobody knows what was done. The caller asks again, with the same, until there is an answer. No vote is
//!   cast about it: a silent participant expires.
//!
//! Text of a database's errors holds row values, so it is neither returned nor logged: only its code is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use suture_contract::ids::{BusinessKey, Code, LogLetters, Shard, Txid};
use suture_contract::messages::{Decision, Prepare};
use suture_participants_core::branch::{Answer, State, Violation};
use suture_participants_core::doubts::InDoubt;
use suture_participants_core::gid::Owner;
use suture_participants_core::marks::Marks;
use suture_participants_core::operations::{Mode, NoSteps, Operation, Seed};
use suture_participants_core::settle::{Unsettled, Word};
use time::OffsetDateTime;

/// A database that takes part in transactions.
pub trait Resource: Send + Sync + 'static {
    /// The name of this ledger, made when it was created, and anew each time it is brought back. Stands beside every
    /// acknowledgement.
    fn ledger_id(&self) -> String;

    /// What to hand over at once.
    fn batching(&self) -> Batching;

    /// Prepares branches, in order. Yes only for what survives a crash. One answer each, in order.
    fn prepare(&self, batch: Vec<Arc<Prepare>>) -> impl Future<Output = Result<Vec<Prepared>, Unavailable>> + Send;

    /// The same for what may have said yes here once. A no leaves nothing, for it is not voted and may be tried again.
    fn prepare_again(
        &self,
        batch: Vec<Arc<Prepare>>,
    ) -> impl Future<Output = Result<Vec<Prepared>, Unavailable>> + Send;

    /// Commits branches. No txid twice in a batch. One answer each, in order.
    fn commit(&self, batch: Vec<Arc<Decision>>) -> impl Future<Output = Result<Vec<Decided>, Unavailable>> + Send;

    /// Aborts branches. No txid twice in a batch. One answer each, in order.
    fn abort(&self, batch: Vec<Arc<Decision>>) -> impl Future<Output = Result<Vec<Decided>, Unavailable>> + Send;

    /// What said yes here and has no decision yet.
    fn in_doubt(&self) -> impl Future<Output = Result<Vec<InDoubt>, Unavailable>> + Send;

    /// Prepared branches of ours that ought not to be there. The list is looked at first. Where nothing is prepared there are
    /// none.
    fn leftovers(&self) -> impl Future<Output = Result<Vec<Leftover>, Unavailable>> + Send {
        async { Ok(Vec::new()) }
    }

    /// Rolls back those of these that are over. Answers how many.
    fn sweep(&self, txids: Vec<Txid>) -> impl Future<Output = Result<usize, Unavailable>> + Send {
        let _ = txids;
        async { Ok(0) }
    }

    /// Deletes finished rows, a page of the ledger at a time, and raises the marks past them, in one local transaction.
    fn purge(&self, page: Page) -> impl Future<Output = Result<Purged, Unavailable>> + Send;

    /// All positions that were ever stored for a topic.
    fn load_positions(&self, topic: String) -> impl Future<Output = Result<Vec<Position>, Unavailable>> + Send;

    /// Stores positions, in a local transaction of their own. A stored position never goes back: if one of those that the
    /// caller has `seen` there does, or the ledger has another name than this resource knows, or lies on another server, nothing is
    /// stored.
    fn store_positions(
        &self,
        positions: Vec<Position>,
        seen: Vec<Position>,
    ) -> impl Future<Output = Result<Stored, Unavailable>> + Send;

    /// Runs and commits branches whose commit is decided already, in order and in one local transaction, whatever the mode. One
    /// that fails leaves nothing; one that meets somebody else's lock does not fail, but is to be asked for again. One answer
    /// each, in order; `None`: nothing was done, for they do not go together; ask for one after the other.
    fn redo(&self, batch: Vec<Arc<Prepare>>) -> impl Future<Output = Result<Option<Vec<Redone>>, Unavailable>> + Send;

    /// Whether the ledger is being brought back: it was begun, and has not ended.
    fn is_restoring(&self) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Begins to bring the ledger back: it takes a new name of the same stem, unless it had another one than this resource knows,
    /// and somebody else has begun it, or even ended it.
    fn begin_restore(&self) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// The ledger is brought back.
    fn end_restore(&self) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// What became of these branches; one that is prepared is in doubt, whatever else the ledger says.
    fn states(&self, txids: Vec<Txid>) -> impl Future<Output = Result<BTreeMap<Txid, State>, Unavailable>> + Send;

    /// Below what finished rows are purged.
    fn marks(&self) -> impl Future<Output = Result<Marks, Unavailable>> + Send;

    /// Notes what a person must know. An entry that is there stays as it is.
    fn note(&self, entries: Vec<Entry>) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// What was noted, the oldest first: all of it, or what was not told yet.
    fn noted(&self, which: Which) -> impl Future<Output = Result<Vec<Noted>, Unavailable>> + Send;

    /// These entries were told.
    fn mark_told(&self, entries: Vec<String>) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Makes a person's word the branch's row and notes it, in one local transaction.
    fn resolve(
        &self,
        resolution: Resolution,
    ) -> impl Future<Output = Result<Result<(), Unsettled>, Unavailable>> + Send;

    /// Runs a seed for each payload, in one local transaction. Answers how many rows were inserted.
    fn seed(&self, name: String, payloads: Vec<Box<RawValue>>) -> impl Future<Output = Result<u64, SeedError>> + Send;
}

/// How prepares are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Most branches in a batch. All of a batch are answered together, so where a branch waits for locks it stands alone:
    /// it might wait for the decision of another one in its own batch.
    pub branches: usize,
    /// Most batches at once.
    pub jobs: usize,
}

impl Batching {
    /// Where no branch waits for another one's decision: a local transaction for all that is there.
    pub const RESERVE: Self = Self { branches: 128, jobs: 1 };
}

/// What became of a prepare.
#[derive(Debug, Clone, PartialEq)]
pub enum Prepared {
    /// Durable, to be voted.
    Answer(Answer),
    /// Not tried: as many branches as may be are in doubt. To be asked again when decisions have come.
    Later,
    /// The shard stops.
    Fault(Fault),
}

/// What became of a commit that is done again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redone {
    /// Its effect and its row are durable.
    Done,
    /// It is finished, and its row purged: nothing was done.
    Known,
    /// It has no effect and no row. What it builds on may still come.
    Failed(Code),
}

/// What became of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Durable.
    All,
    /// Nothing was stored: the database went back behind what was stored there before, or may have.
    WentBack,
}

/// What a decision did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The branch was in doubt and is finished.
    Finished,
    /// An abort whose prepare never ran here; it has its row now.
    NotedAbort,
    /// Nothing was to be done.
    Repeated,
    /// Not done: something is in the way of this one alone. To be asked again.
    Later,
}

/// What became of a decision.
pub type Decided = Result<Effect, Fault>;

/// Something that must not happen. It changed nothing, and the shard stops.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Against the ledger.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// A confirm or cancel step failed, which must be able to run whatever comes.
    #[error("{place} failed ({code}); mend the step or the rows it needs, then start again")]
    Finish {
        /// The step's place in the configuration.
        place: String,
        /// The database's code, or the number of rows.
        code: String,
    },
    /// The branch's operation is no longer configured.
    #[error("operation {operation} is not configured any more; restore it, then start again")]
    NoOperation {
        /// Its name.
        operation: String,
    },
    /// The branch was reserved for other confirm and cancel steps than those that are configured.
    #[error(
        "operation {operation} has other confirm or cancel steps than when the branch was reserved; restore them, then start \
         again"
    )]
    ChangedOperation {
        /// Its name.
        operation: String,
    },
    /// The ledger holds what no version of Suture wrote.
    #[error("the ledger row cannot be read")]
    BrokenRow,
}

/// The database did not answer, or not in a way that says what was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the database is unavailable while {doing} ({code})")]
pub struct Unavailable {
    /// What was tried.
    pub doing: &'static str,
    /// SQLSTATE or SQLite's number; never text.
    pub code: String,
}

/// A prepared branch that ought not to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leftover {
    /// Which.
    pub txid: Txid,
    /// Aborted or refused: its row says so. Purged: it has no row, and lies below the mark.
    pub state: State,
}

/// A part of a ledger that is to be purged.
#[derive(Debug, Clone)]
pub struct Page {
    /// It begins behind this one, in the database's own order.
    pub after: Option<Txid>,
    /// Most rows to look at.
    pub rows: usize,
    /// Rows that have not changed for so long may go, by the database's clock. In mode `xa` a row changes last when its
    /// branch is prepared.
    pub older_than: Duration,
    /// Of these shards.
    pub shards: BTreeSet<Shard>,
    /// Decided, and not acknowledged yet: neither these go, nor what lies above them.
    pub unacknowledged: Vec<Txid>,
}

/// What became of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purged {
    /// How many rows went.
    pub rows: usize,
    /// Its last row; `None`: the ledger ends here.
    pub next: Option<Txid>,
}

/// How far a log was worked off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The topic's full name.
    pub topic: String,
    /// Which incarnation of it.
    pub letters: LogLetters,
    /// Its partition.
    pub shard: Shard,
    /// Everything below is done.
    pub next_offset: u64,
}

/// What a person must know, or has settled: a row of `suture_audit` that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// A name that makes a repeat harmless.
    pub entry: String,
    /// The key of its record in the outcomes topic.
    pub record_key: String,
    /// Its record there, an incident.
    pub record: String,
}

/// Such a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// What was noted.
    pub entry: Entry,
    /// Whether the record stands in the outcomes topic.
    pub told: bool,
    /// When it was noted, by the database's clock.
    pub since: OffsetDateTime,
}

/// Which entries are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs)]
pub enum Which {
    All,
    Untold,
}

/// A person's word about a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// What he says.
    pub word: Word,
    /// What the branch is about, as its decision says.
    pub business_key: BusinessKey,
    /// Of what is abandoned: its row takes neither key nor attempt, also if they are free.
    pub without_key: bool,
    /// What is noted.
    pub entry: Entry,
}

/// What a resource is opened with.
#[derive(Debug, Clone)]
pub struct Opening {
    /// How it keeps its promise.
    pub mode: Mode,
    /// Whose ledger it must be.
    pub owner: Owner,
    /// The fingerprint of the identity key that made the business keys; another one in the ledger is refused. `None`:
    /// not checked, for a participant who never sees the key's owner.
    pub identity_fingerprint: Option<String>,
    /// A script that creates the business tables where they are missing.
    pub schema: Option<String>,
    /// What may be prepared. None: nothing is prepared, confirmed or cancelled, and what is in doubt is left as it is.
    pub operations: BTreeMap<String, Operation>,
    /// What may be seeded.
    pub seeds: BTreeMap<String, Seed>,
}

impl Opening {
    /// For a person who looks at a ledger or settles something in it, whatever is wrong with the operations.
    pub fn without_operations(self) -> Self {
        Self { operations: BTreeMap::new(), seeds: BTreeMap::new(), ..self }
    }
}

/// Why a resource was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A setting with which an answer would not be durable.
    #[error("{setting} is {value}: {remedy}")]
    Need {
        /// The setting.
        setting: &'static str,
        /// What it is.
        value: String,
        /// What to do.
        remedy: String,
    },
    /// The ledger is somebody else's.
    #[error(
        "the ledger's {what} is {found}, not {wanted}: this is another participant's database, the wrong key, or a participant \
         that was renamed (see docs/operations.md)"
    )]
    Foreign {
        /// Which of its marks.
        what: &'static str,
        /// What the ledger says.
        found: String,
        /// What was expected.
        wanted: String,
    },
    /// The ledger was made by another version of Suture.
    #[error(
        "the ledger's tables are of version {found}, and this build needs version {}: if it is older, run `suture participant \
         init`, which prints what brings it up to date; if it is newer, upgrade this participant",
        crate::ledger::SCHEMA_VERSION
    )]
    Version {
        /// What the ledger says.
        found: String,
    },
    /// The database was never opened by a participant. Only who reads its books says so: a participant creates the tables.
    #[error("there is no ledger in this database: start its participant once, or run `suture participant init`")]
    NoLedger,
    /// A statement does not fit the tables.
    #[error("{place} does not fit the tables ({code}: {said}): correct the SQL, or apply the schema file")]
    Statement {
        /// The step's place in the configuration.
        place: String,
        /// The database's code.
        code: String,
        /// What the database said. No value goes with a statement that is only checked, so this text holds none.
        said: String,
    },
    /// The role may not run a statement.
    #[error("{place} needs a right that this user lacks: {needed} ({code}: {said})")]
    Lacks {
        /// The step's place in the configuration; or it is a statement about the ledger.
        place: String,
        /// All rights that it needs, as they stand in a GRANT.
        needed: String,
        /// The database's code.
        code: String,
        /// What the database said. The statement had no values, so this text holds none.
        said: String,
    },
    /// The schema script failed.
    #[error("the schema file failed ({code})")]
    Schema {
        /// The database's code.
        code: String,
    },
    /// Branches are in doubt whose operation is not configured.
    #[error("branches are in doubt whose operation {operation} is not configured: restore it until they are decided")]
    NoOperation {
        /// Its name.
        operation: String,
    },
    /// Branches are in doubt that were reserved for other steps.
    #[error(
        "branches are in doubt that were reserved before the confirm or cancel steps of operation {operation} were changed: \
         restore those steps until they are decided, or give the changed operation a name of its own beside it"
    )]
    ChangedOperation {
        /// Its name.
        operation: String,
    },
    /// The database does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<NoSteps> for Fault {
    fn from(no_steps: NoSteps) -> Self {
        match no_steps {
            NoSteps::Missing(operation) => Self::NoOperation { operation },
            NoSteps::Changed(operation) => Self::ChangedOperation { operation },
        }
    }
}

impl From<NoSteps> for OpenError {
    fn from(no_steps: NoSteps) -> Self {
        match no_steps {
            NoSteps::Missing(operation) => Self::NoOperation { operation },
            NoSteps::Changed(operation) => Self::ChangedOperation { operation },
        }
    }
}

/// Why nothing was seeded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// No such seed.
    #[error("seed.{0} is not configured")]
    Unknown(String),
    /// A payload does not fit.
    #[error("payload {index} of the seed is {code} (parameter {parameter:?})")]
    Unusable {
        /// Which, from 0.
        index: usize,
        /// Why.
        code: String,
        /// The parameter at fault.
        parameter: Option<String>,
    },
    /// A statement failed.
    #[error("{place} failed ({code})")]
    Failed {
        /// The step's place in the configuration.
        place: String,
        /// The database's code, or the number of rows.
        code: String,
    },
    /// The database does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Unavailable {
    /// From a code, which holds no row values.
    pub fn new(doing: &'static str, code: impl fmt::Display) -> Self {
        Self { doing, code: code.to_string() }
    }

    /// Whether it may pass by itself while a database is opened: it is not up, still recovering, shutting down, out of
    /// connections, read-only in a failover, or busy. Of anything else (a password, rights, a broken file) it is better
    /// to say so and end.
    pub fn passes(&self) -> bool {
        const CLASSES: [&str; 4] = ["08", "53", "57P", "58"];
        // Locked, too many connections, shutting down, read-only.
        const OF_POSTGRES: [&str; 4] = ["25006", "25P03", "55P03", "57014"];
        const OF_MARIADB: [&str; 7] = ["1040", "1053", "1205", "1290", "1836", "1969", "3024"];
        const CODES: [&str; 2] = ["connection", "no answer in time"];
        let is_locked = self.code.strip_prefix("SQLite ").and_then(|number| number.parse::<i32>().ok());
        let is_locked = is_locked.is_some_and(|number| matches!(number & 0xff, 5 | 6));
        let mut codes = CODES.into_iter().chain(OF_POSTGRES).chain(OF_MARIADB);
        is_locked || codes.any(|code| code == self.code) || CLASSES.iter().any(|class| self.code.starts_with(class))
    }
}
