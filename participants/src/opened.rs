//! A participant's database, whichever kind its configuration names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use suture_contract::ids::Txid;
use suture_contract::messages::{Decision, Prepare};
use suture_participants_core::branch::State;
use suture_participants_core::doubts::InDoubt;
use suture_participants_core::marks::Marks;
use suture_participants_core::settle::Unsettled;
use tokio::time::sleep;

use crate::config::{Database, ParticipantConfig};
use crate::mariadb::MariadbResource;
use crate::postgres::PostgresResource;
use crate::resource::{
    Batching, Decided, Entry, Leftover, Noted, OpenError, Opening, Page, Position, Prepared, Purged, Redone,
    Resolution, Resource, SeedError, Stored, Unavailable, Which,
};
use crate::sqlite::SqliteResource;

/// How long a database that is not there yet rests.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// An opened database.
#[expect(missing_docs)]
pub enum OpenedResource {
    Sqlite(SqliteResource),
    Postgres(Box<PostgresResource>),
    Mariadb(Box<MariadbResource>),
}

impl OpenedResource {
    /// Opens the database that the configuration names.
    pub async fn open(config: &ParticipantConfig, opening: Opening) -> Result<Self, OpenError> {
        Ok(match &config.database {
            Database::Sqlite(settings) => Self::Sqlite(SqliteResource::open(settings.clone(), opening).await?),
            Database::Postgres(settings) => {
                Self::Postgres(Box::new(PostgresResource::open(settings.clone(), opening).await?))
            }
            Database::Mariadb(settings) => {
                Self::Mariadb(Box::new(MariadbResource::open(settings.clone(), opening).await?))
            }
        })
    }

    /// The same, once the database is there: a service may be started before it. Says once that it waits, and for what.
    ///
    /// # Errors
    /// What will not pass by itself: a password that is refused, a ledger that is another's, settings that are unsafe.
    pub async fn open_when_there(config: &ParticipantConfig, opening: Opening) -> Result<Self, OpenError> {
        let (participant, database) = (&config.name, config.database.place());
        let mut is_away = false;
        loop {
            match Self::open(config, opening.clone()).await {
                Err(OpenError::Unavailable(unavailable)) if unavailable.passes() => {
                    if !is_away {
                        let Unavailable { doing, code } = unavailable;
                        tracing::warn!(%participant, database, doing, code, "the database is not there; asking until it answers");
                    }
                    is_away = true;
                    sleep(OPEN_AGAIN_AFTER).await;
                }
                opened => {
                    if is_away && opened.is_ok() {
                        tracing::info!(%participant, database, "the database answers");
                    }
                    return opened;
                }
            }
        }
    }
}

impl Resource for OpenedResource {
    fn ledger_id(&self) -> String {
        match self {
            Self::Sqlite(resource) => resource.ledger_id(),
            Self::Postgres(resource) => resource.ledger_id(),
            Self::Mariadb(resource) => resource.ledger_id(),
        }
    }

    fn batching(&self) -> Batching {
        match self {
            Self::Sqlite(resource) => resource.batching(),
            Self::Postgres(resource) => resource.batching(),
            Self::Mariadb(resource) => resource.batching(),
        }
    }

    async fn prepare(&self, batch: Vec<Arc<Prepare>>) -> Result<Vec<Prepared>, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.prepare(batch).await,
            Self::Postgres(resource) => resource.prepare(batch).await,
            Self::Mariadb(resource) => resource.prepare(batch).await,
        }
    }

    async fn prepare_again(&self, batch: Vec<Arc<Prepare>>) -> Result<Vec<Prepared>, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.prepare_again(batch).await,
            Self::Postgres(resource) => resource.prepare_again(batch).await,
            Self::Mariadb(resource) => resource.prepare_again(batch).await,
        }
    }

    async fn commit(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.commit(batch).await,
            Self::Postgres(resource) => resource.commit(batch).await,
            Self::Mariadb(resource) => resource.commit(batch).await,
        }
    }

    async fn abort(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.abort(batch).await,
            Self::Postgres(resource) => resource.abort(batch).await,
            Self::Mariadb(resource) => resource.abort(batch).await,
        }
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.in_doubt().await,
            Self::Postgres(resource) => resource.in_doubt().await,
            Self::Mariadb(resource) => resource.in_doubt().await,
        }
    }

    async fn leftovers(&self) -> Result<Vec<Leftover>, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.leftovers().await,
            Self::Postgres(resource) => resource.leftovers().await,
            Self::Mariadb(resource) => resource.leftovers().await,
        }
    }

    async fn sweep(&self, txids: Vec<Txid>) -> Result<usize, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.sweep(txids).await,
            Self::Postgres(resource) => resource.sweep(txids).await,
            Self::Mariadb(resource) => resource.sweep(txids).await,
        }
    }

    async fn purge(&self, page: Page) -> Result<Purged, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.purge(page).await,
            Self::Postgres(resource) => resource.purge(page).await,
            Self::Mariadb(resource) => resource.purge(page).await,
        }
    }

    async fn load_positions(&self, topic: String) -> Result<Vec<Position>, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.load_positions(topic).await,
            Self::Postgres(resource) => resource.load_positions(topic).await,
            Self::Mariadb(resource) => resource.load_positions(topic).await,
        }
    }

    async fn store_positions(&self, positions: Vec<Position>, seen: Vec<Position>) -> Result<Stored, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.store_positions(positions, seen).await,
            Self::Postgres(resource) => resource.store_positions(positions, seen).await,
            Self::Mariadb(resource) => resource.store_positions(positions, seen).await,
        }
    }

    async fn redo(&self, batch: Vec<Arc<Prepare>>) -> Result<Option<Vec<Redone>>, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.redo(batch).await,
            Self::Postgres(resource) => resource.redo(batch).await,
            Self::Mariadb(resource) => resource.redo(batch).await,
        }
    }

    async fn is_restoring(&self) -> Result<bool, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.is_restoring().await,
            Self::Postgres(resource) => resource.is_restoring().await,
            Self::Mariadb(resource) => resource.is_restoring().await,
        }
    }

    async fn begin_restore(&self) -> Result<(), Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.begin_restore().await,
            Self::Postgres(resource) => resource.begin_restore().await,
            Self::Mariadb(resource) => resource.begin_restore().await,
        }
    }

    async fn end_restore(&self) -> Result<(), Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.end_restore().await,
            Self::Postgres(resource) => resource.end_restore().await,
            Self::Mariadb(resource) => resource.end_restore().await,
        }
    }

    async fn states(&self, txids: Vec<Txid>) -> Result<BTreeMap<Txid, State>, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.states(txids).await,
            Self::Postgres(resource) => resource.states(txids).await,
            Self::Mariadb(resource) => resource.states(txids).await,
        }
    }

    async fn marks(&self) -> Result<Marks, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.marks().await,
            Self::Postgres(resource) => resource.marks().await,
            Self::Mariadb(resource) => resource.marks().await,
        }
    }

    async fn note(&self, entries: Vec<Entry>) -> Result<(), Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.note(entries).await,
            Self::Postgres(resource) => resource.note(entries).await,
            Self::Mariadb(resource) => resource.note(entries).await,
        }
    }

    async fn noted(&self, which: Which) -> Result<Vec<Noted>, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.noted(which).await,
            Self::Postgres(resource) => resource.noted(which).await,
            Self::Mariadb(resource) => resource.noted(which).await,
        }
    }

    async fn mark_told(&self, entries: Vec<String>) -> Result<(), Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.mark_told(entries).await,
            Self::Postgres(resource) => resource.mark_told(entries).await,
            Self::Mariadb(resource) => resource.mark_told(entries).await,
        }
    }

    async fn resolve(&self, resolution: Resolution) -> Result<Result<(), Unsettled>, Unavailable> {
        match self {
            Self::Sqlite(resource) => resource.resolve(resolution).await,
            Self::Postgres(resource) => resource.resolve(resolution).await,
            Self::Mariadb(resource) => resource.resolve(resolution).await,
        }
    }

    async fn seed(&self, name: String, payloads: Vec<Box<RawValue>>) -> Result<u64, SeedError> {
        match self {
            Self::Sqlite(resource) => resource.seed(name, payloads).await,
            Self::Postgres(resource) => resource.seed(name, payloads).await,
            Self::Mariadb(resource) => resource.seed(name, payloads).await,
        }
    }
}
