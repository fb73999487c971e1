//! A participant's books: what stands in its database, read by somebody who is not the participant.
//!
//! ```text
//! ledger id, version     who keeps these books, and where
//! positions, marks       how far it has worked off its logs; below what its finished rows are purged
//! listed                 branches in the database's own list: ours by name, all others as a number
//! rows, page, in_doubt   the ledger
//! incidents              what a person must know, or has settled
//! ```
//!
//! Nothing is created or changed: the session is read-only where the database can say so (PostgreSQL, MariaDB and MySQL), the
//! file is opened for reading (SQLite, which may lay its `-shm` and `-wal` beside a file that nobody else has open). So it
//! may be done at any time, beside a running participant too. It takes one connection, and no locks.
//!
//! Every answer is a snapshot of its own. Whoever compares books with logs chooses the order in which both are read:
//! a position before the rows that it vouches for, the list before the rows (a branch that is being committed is in one of
//! them), the marks after the rows.
//!
//! Left out: business tables.

use std::collections::BTreeMap;
use std::time::Duration;

use suture_contract::ids::{LogLetters, RequestHash, Shard, Txid};
use suture_participants_core::branch::State;
use suture_participants_core::gid::{Gid, Owner};
use suture_participants_core::marks::Marks;
use suture_participants_core::operations::{Mode, Step};
use time::OffsetDateTime;

use crate::config::{Database, ParticipantConfig};
use crate::incidents::{self, Listed as Incident};
use crate::ledger::{LEDGER_ID, OPERATIONS_IN_DOUBT, RESTORING, check_marks};
use crate::resource::{OpenError, Opening, Position, Unavailable};
use crate::tables::READ_MARKS;
use crate::trouble::within;
use crate::{mariadb, postgres, sqlite};

/// Most rows of a page, and most txids of one question.
pub const PAGE: usize = 1_000;

/// How long an answer may take: pages of large ledgers, on a busy server.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long it waits for somebody who alters a table; longer than a migration tries to (`tables`).
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// A row as text, column by column; `None` is NULL, or what is no text.
pub(crate) type TextRow = Vec<Option<String>>;

/// A participant's books, opened for reading.
pub struct Books {
    asked: Asked,
    owner: Owner,
    mode: Mode,
    ledger_id: String,
    version: String,
}

/// Whom the questions go to.
pub(crate) enum Asked {
    Sqlite(sqlite::ReadOnly),
    Postgres(Box<postgres::ReadOnly>),
    Mariadb(Box<mariadb::ReadOnly>),
}

/// A row of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookRow {
    /// Which transaction.
    pub txid: Txid,
    /// What became of it here; any but absent.
    pub state: State,
    /// What it was about.
    pub hash: RequestHash,
    /// Since when, by the database's clock.
    pub age: Duration,
}

/// Below this offset of a shard's requests finished rows are purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Which incarnation of the requests topic.
    pub letters: LogLetters,
    /// Its partition.
    pub shard: Shard,
    /// Everything below is finished.
    pub next_offset: u64,
}

/// The database's own list of prepared branches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Those with this participant's name in this deployment.
    pub ours: Vec<ListedBranch>,
    /// How many others: another participant's, another deployment's, or none of Suture's.
    pub foreign: u64,
}

/// A prepared branch of this participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBranch {
    /// Its name.
    pub gid: Gid,
    /// Since when, by the database's clock; not every list tells.
    pub age: Option<Duration>,
}

impl Books {
    /// Connects, and refuses what is no ledger, of another version or somebody else's.
    pub async fn open(config: &ParticipantConfig, opening: &Opening) -> Result<Self, OpenError> {
        let owner = opening.owner.clone();
        let mut asked = Asked::open(&config.database, &owner).await?;
        let doing = "looking for the ledger";
        if asked.ask(doing, asked.dialect().is_there).await?.is_empty() {
            return Err(OpenError::NoLedger);
        }
        let doing = "reading the ledger's marks";
        let found = facts_of(asked.ask(doing, READ_MARKS).await?);
        // One that another version has made says so; one that lacks marks was never opened by its participant.
        let missing = check_marks(&found, opening)?;
        let ledger_id = found.get(LEDGER_ID).filter(|_| missing.iter().all(|(name, _)| *name == "identity_key"));
        let ledger_id = ledger_id.cloned().ok_or(OpenError::NoLedger)?;
        let version = asked.ask("asking for the version", asked.dialect().version).await?;
        let version = facts_text(version).unwrap_or_else(|| "?".to_string());
        Ok(Self { asked, owner, mode: opening.mode, ledger_id, version })
    }

    /// The name of this ledger, made when it was created.
    pub fn ledger_id(&self) -> &str {
        &self.ledger_id
    }

    /// What the database says about its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// All positions that were ever stored, of all topics.
    pub async fn positions(&mut self) -> Result<Vec<Position>, Unavailable> {
        let sql = "select topic, letters, shard, next_offset from suture_positions";
        self.read("reading positions", sql, |row| {
            let (topic, letters) = (text(row, 0)?.to_string(), parsed(row, 1)?);
            Some(Position { topic, letters, shard: Shard(parsed(row, 2)?), next_offset: parsed(row, 3)? })
        })
        .await
    }

    /// Below which offsets rows are purged.
    pub async fn marks(&mut self) -> Result<Vec<Mark>, Unavailable> {
        self.read("reading the purge's marks", "select letters, shard, next_offset from suture_marks", |row| {
            Some(Mark { letters: parsed(row, 0)?, shard: Shard(parsed(row, 1)?), next_offset: parsed(row, 2)? })
        })
        .await
    }

    /// Whether the database is being brought back after a restore, or that was cut off.
    pub async fn is_restoring(&mut self) -> Result<bool, Unavailable> {
        let marks = self.asked.ask("reading the ledger's marks", READ_MARKS).await?;
        Ok(facts_of(marks).contains_key(RESTORING))
    }

    /// All incidents, the oldest first, each with what settled it.
    pub async fn incidents(&mut self) -> Result<Vec<Incident>, Unavailable> {
        let sql =
            format!("select entry, record, {} from suture_audit order by changed_at, entry", self.asked.dialect().age);
        let now = OffsetDateTime::now_utc();
        let noted = self.read("reading what was noted", &sql, |row| {
            let since = now - time::Duration::seconds(parsed(row, 2)?);
            Some((text(row, 0)?.to_string(), text(row, 1)?.to_string(), since))
        });
        let mut listed = incidents::listed(noted.await?)?;
        let positions = self.positions().await?;
        let states = self.states(&incidents::decisions(&listed)).await?;
        // After the rows: what is purged meanwhile lies below its mark.
        incidents::compare(&mut listed, &positions, &states, &self.purged_below().await?);
        Ok(listed)
    }

    /// What became of these transactions; one that is prepared is in doubt, whatever else the ledger says.
    pub(crate) async fn states(&mut self, txids: &[Txid]) -> Result<BTreeMap<Txid, State>, Unavailable> {
        // Before the rows: what is finished meanwhile has one.
        let listed = self.listed().await?.ours.into_iter().map(|branch| branch.gid.txid);
        let rows = self.rows(txids).await?.into_iter().map(|row| (row.txid, row.state));
        Ok(rows.chain(listed.filter(|txid| txids.contains(txid)).map(|txid| (txid, State::InDoubt))).collect())
    }

    /// [`Self::marks`], to be asked about a transaction that has no row.
    pub(crate) async fn purged_below(&mut self) -> Result<Marks, Unavailable> {
        Ok(Marks(self.marks().await?.iter().map(|mark| ((mark.letters, mark.shard), mark.next_offset)).collect()))
    }

    /// The rows of these transactions, as far as there are any, in no order.
    pub async fn rows(&mut self, txids: &[Txid]) -> Result<Vec<BookRow>, Unavailable> {
        let mut rows = Vec::with_capacity(txids.len());
        for txids in txids.chunks(PAGE) {
            // A txid has a closed alphabet, without quotes.
            let names: Vec<String> = txids.iter().map(|txid| format!("'{txid}'")).collect();
            rows.extend(self.ledger(&format!("where txid in ({})", names.join(", "))).await?);
        }
        Ok(rows)
    }

    /// The next page of the whole ledger, in its database's own order; an empty one is its end.
    pub async fn page(&mut self, after: Option<&Txid>) -> Result<Vec<BookRow>, Unavailable> {
        let after = after.map(|txid| format!("where txid > '{txid}' ")).unwrap_or_default();
        self.ledger(&format!("{after}order by txid limit {PAGE}")).await
    }

    /// The rows in doubt. In mode xa there are none: the branch is in the list instead.
    pub async fn in_doubt(&mut self) -> Result<Vec<BookRow>, Unavailable> {
        self.ledger("where state = 'in_doubt'").await
    }

    /// The database's list of prepared branches.
    pub async fn listed(&mut self) -> Result<Listed, Unavailable> {
        let listed = self.asked.listed().await;
        let listed = match (self.mode, listed) {
            // An account that may not see the list has nothing in it.
            (Mode::Reserve, Err(Unavailable { code, .. })) if code == mariadb::NO_PRIVILEGE => Vec::new(),
            (_, listed) => listed?,
        };
        let mut sorted = Listed::default();
        for (gid, age) in listed {
            match gid.filter(|gid| gid.owner == self.owner) {
                Some(gid) => sorted.ours.push(ListedBranch { gid, age }),
                None => sorted.foreign += 1,
            }
        }
        Ok(sorted)
    }

    /// What the rows in doubt note of their operations.
    pub(crate) async fn operations_in_doubt(&mut self) -> Result<Vec<TextRow>, Unavailable> {
        self.asked.ask("reading the ledger", OPERATIONS_IN_DOUBT).await
    }

    async fn ledger(&mut self, which: &str) -> Result<Vec<BookRow>, Unavailable> {
        let sql = format!("select txid, state, hash, {} from suture_ledger {which}", self.asked.dialect().age);
        self.read("reading the ledger", &sql, |row| {
            let state = State::of_ledger(text(row, 1)?)?;
            // A clock that was set back makes nothing younger than new.
            let age = Duration::from_secs(u64::try_from(parsed::<i64>(row, 3)?).unwrap_or(0));
            Some(BookRow { txid: parsed(row, 0)?, state, hash: parsed(row, 2)?, age })
        })
        .await
    }

    /// What is read back is checked as strictly as a message.
    async fn read<T>(
        &mut self,
        doing: &'static str,
        sql: &str,
        row: impl Fn(&TextRow) -> Option<T>,
    ) -> Result<Vec<T>, Unavailable> {
        let rows = self.asked.ask(doing, sql).await?;
        rows.iter().map(|text| row(text).ok_or_else(|| Unavailable::new(doing, "a row cannot be read"))).collect()
    }
}

/// What differs from database to database.
pub(crate) struct Dialect {
    /// A row if there is a ledger.
    pub is_there: &'static str,
    /// Its version, for people.
    pub version: &'static str,
    /// The age of a ledger row in whole seconds.
    pub age: &'static str,
    /// The database's clock, in milliseconds since 1970.
    pub now_ms: &'static str,
}

impl Asked {
    /// Connects, to ask and to change nothing.
    pub async fn open(database: &Database, owner: &Owner) -> Result<Self, Unavailable> {
        Ok(match database {
            Database::Sqlite(settings) => Self::Sqlite(sqlite::ReadOnly::open(settings.clone()).await?),
            Database::Postgres(settings) => Self::Postgres(Box::new(postgres::ReadOnly::open(settings, owner).await?)),
            Database::Mariadb(settings) => Self::Mariadb(Box::new(mariadb::ReadOnly::open(settings).await?)),
        })
    }

    /// What is said to this database in its own way.
    pub fn dialect(&self) -> &'static Dialect {
        match self {
            Self::Sqlite(_) => &sqlite::DIALECT,
            Self::Postgres(_) => &postgres::DIALECT,
            Self::Mariadb(_) => &mariadb::DIALECT,
        }
    }

    /// Whether a step fits the tables.
    pub async fn check_statement(&mut self, step: &Step) -> Result<(), OpenError> {
        match self {
            Self::Sqlite(asked) => asked.check_statement(step).await,
            Self::Postgres(asked) => asked.check_statement(step).await,
            Self::Mariadb(asked) => asked.check_statement(step).await,
        }
    }

    /// What is prepared: its name, if that is one of Suture's, and since when, if the list tells it.
    pub async fn listed(&mut self) -> Result<Vec<(Option<Gid>, Option<Duration>)>, Unavailable> {
        let doing = "reading the list";
        match self {
            Self::Sqlite(_) => Ok(Vec::new()),
            Self::Postgres(asked) => within(PATIENCE, doing, asked.listed()).await,
            Self::Mariadb(asked) => within(PATIENCE, doing, asked.listed()).await,
        }
    }

    /// The rows of a query.
    pub async fn ask(&mut self, doing: &'static str, sql: &str) -> Result<Vec<TextRow>, Unavailable> {
        match self {
            Self::Sqlite(asked) => within(PATIENCE, doing, asked.ask(doing, sql)).await,
            Self::Postgres(asked) => within(PATIENCE, doing, asked.ask(doing, sql)).await,
            Self::Mariadb(asked) => within(PATIENCE, doing, asked.ask(doing, sql)).await,
        }
    }
}

/// Rows of names and texts.
pub(crate) fn facts_of(rows: Vec<TextRow>) -> BTreeMap<String, String> {
    let fact = |row: &TextRow| Some((text(row, 0)?.to_string(), text(row, 1)?.to_string()));
    rows.iter().filter_map(fact).collect()
}

/// The one text of an answer.
pub(crate) fn facts_text(rows: Vec<TextRow>) -> Option<String> {
    text(rows.first()?, 0).map(str::to_string)
}

fn text(row: &TextRow, column: usize) -> Option<&str> {
    row.get(column)?.as_deref()
}

/// A column that is read from text: a number, a name.
fn parsed<T: std::str::FromStr>(row: &TextRow, column: usize) -> Option<T> {
    text(row, column)?.parse().ok()
}
