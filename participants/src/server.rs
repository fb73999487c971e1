//! A participant behind a database server: what PostgreSQL and MariaDB do alike, in either mode.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;
use suture_contract::ids::Txid;
use suture_contract::messages::{Decision, Prepare};
use suture_participants_core::branch::State;
use suture_participants_core::doubts::InDoubt;
use suture_participants_core::gid::Owner;
use suture_participants_core::marks::Marks;
use suture_participants_core::operations::{Mode, Operation, Seed};
use suture_participants_core::settle::Unsettled;

use crate::config::ServerSettings;
use crate::ledger::{LEDGER_ID, LedgerName, OnNo, RESTORING, StoredRow, states_of};
use crate::points::{Act, around};
use crate::resource::{
    Batching, Decided, Entry, Leftover, Noted, Page, Position, Prepared, Purged, Redone, Resolution, Resource,
    SeedError, Stored, Unavailable, Which,
};
use crate::trouble::within;
use crate::xa::{self, Branches};

/// What a database was opened with.
pub(crate) struct Opened {
    pub mode: Mode,
    pub settings: ServerSettings,
    pub owner: Owner,
    pub operations: BTreeMap<String, Operation>,
    pub seeds: BTreeMap<String, Seed>,
    pub ledger: LedgerName,
    /// Which server that was. Another one may lack the last of what this one had.
    pub server: String,
}

/// A database behind a server: its two modes, and what the service asks besides.
pub(crate) trait Server: Branches + Send + 'static {
    /// Mode reserve: prepares a batch.
    fn reserve(
        &self,
        batch: &[Arc<Prepare>],
        on_no: OnNo,
    ) -> impl Future<Output = Result<Vec<Prepared>, Unavailable>> + Send;

    /// Mode reserve: carries out decisions.
    fn confirm_or_cancel(
        &self,
        batch: &[Arc<Decision>],
    ) -> impl Future<Output = Result<Vec<Decided>, Unavailable>> + Send;

    /// Mode xa: what stands in the database's list.
    fn list_in_doubt(&self) -> impl Future<Output = Result<Vec<InDoubt>, Unavailable>> + Send;

    /// Mode reserve: what stands in the ledger.
    fn rows_in_doubt(&self) -> impl Future<Output = Result<Vec<InDoubt>, Unavailable>> + Send;

    /// See [`Resource::purge`].
    fn purge_page(&self, page: &Page, in_doubt: &[InDoubt])
    -> impl Future<Output = Result<Purged, Unavailable>> + Send;

    /// See [`Resource::load_positions`].
    fn read_positions(&self, topic: String) -> impl Future<Output = Result<Vec<Position>, Unavailable>> + Send;

    /// See [`Resource::store_positions`].
    fn write_positions(
        &self,
        positions: Vec<Position>,
        seen: Vec<Position>,
    ) -> impl Future<Output = Result<Stored, Unavailable>> + Send;

    /// See [`Resource::redo`].
    fn redo_together(
        &self,
        batch: &[Arc<Prepare>],
    ) -> impl Future<Output = Result<Option<Vec<Redone>>, Unavailable>> + Send;

    /// The ledger's marks.
    fn read_meta(&self) -> impl Future<Output = Result<BTreeMap<String, String>, Unavailable>> + Send;

    /// Renames the ledger and marks it as being restored, if it has this name.
    fn rename(&self, from: &str) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Takes the mark away.
    fn unmark(&self) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// The ledger's rows.
    fn ledger_rows(
        &self,
        txids: &[Txid],
    ) -> impl Future<Output = Result<BTreeMap<Txid, StoredRow>, Unavailable>> + Send;

    /// See [`Resource::marks`].
    fn read_marks(&self) -> impl Future<Output = Result<Marks, Unavailable>> + Send;

    /// See [`Resource::note`].
    fn insert_entries(&self, entries: &[Entry]) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// See [`Resource::noted`].
    fn read_entries(&self, which: Which) -> impl Future<Output = Result<Vec<Noted>, Unavailable>> + Send;

    /// See [`Resource::mark_told`].
    fn mark_entries(&self, entries: &[String]) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// See [`Resource::resolve`]; the branch is not prepared.
    fn write_resolution(
        &self,
        resolution: &Resolution,
    ) -> impl Future<Output = Result<Result<(), Unsettled>, Unavailable>> + Send;

    /// See [`Resource::seed`].
    fn insert_seeds(
        &self,
        name: &str,
        payloads: &[Box<RawValue>],
    ) -> impl Future<Output = Result<u64, SeedError>> + Send;
}

impl<S: Server> Resource for S {
    fn ledger_id(&self) -> String {
        self.opened().ledger.get()
    }

    /// In mode xa one after the other: a branch may wait for the decision of the one before it.
    fn batching(&self) -> Batching {
        match self.opened().mode {
            Mode::Xa => Batching { branches: 1, jobs: self.opened().settings.connections },
            Mode::Reserve => Batching::RESERVE,
        }
    }

    async fn prepare(&self, batch: Vec<Arc<Prepare>>) -> Result<Vec<Prepared>, Unavailable> {
        prepare(self, &batch, OnNo::Row).await
    }

    async fn prepare_again(&self, batch: Vec<Arc<Prepare>>) -> Result<Vec<Prepared>, Unavailable> {
        prepare(self, &batch, OnNo::Nothing).await
    }

    async fn commit(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        let (doing, patience) = ("committing", self.opened().settings.patience());
        match self.opened().mode {
            Mode::Xa => within(patience, doing, xa::commit(self, &batch)).await,
            Mode::Reserve => within(patience, doing, self.confirm_or_cancel(&batch)).await,
        }
    }

    async fn abort(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        let (doing, patience) = ("aborting", self.opened().settings.patience());
        match self.opened().mode {
            Mode::Xa => within(patience, doing, xa::abort(self, &batch)).await,
            Mode::Reserve => within(patience, doing, self.confirm_or_cancel(&batch)).await,
        }
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let patience = self.opened().settings.patience();
        match self.opened().mode {
            Mode::Xa => within(patience, "reading the list", self.list_in_doubt()).await,
            Mode::Reserve => within(patience, "reading the ledger", self.rows_in_doubt()).await,
        }
    }

    async fn leftovers(&self) -> Result<Vec<Leftover>, Unavailable> {
        match self.opened().mode {
            Mode::Xa => within(self.opened().settings.patience(), "reading the list", xa::leftovers(self)).await,
            Mode::Reserve => Ok(Vec::new()),
        }
    }

    async fn sweep(&self, txids: Vec<Txid>) -> Result<usize, Unavailable> {
        within(self.opened().settings.patience(), "sweeping", xa::sweep(self, &txids)).await
    }

    async fn purge(&self, page: Page) -> Result<Purged, Unavailable> {
        let in_doubt = around(Act::LookBeforePurge, self.in_doubt()).await?;
        within(self.opened().settings.patience(), "purging", self.purge_page(&page, &in_doubt)).await
    }

    async fn load_positions(&self, topic: String) -> Result<Vec<Position>, Unavailable> {
        within(self.opened().settings.patience(), "reading positions", self.read_positions(topic)).await
    }

    async fn store_positions(&self, positions: Vec<Position>, seen: Vec<Position>) -> Result<Stored, Unavailable> {
        within(self.opened().settings.patience(), "storing positions", self.write_positions(positions, seen)).await
    }

    async fn redo(&self, batch: Vec<Arc<Prepare>>) -> Result<Option<Vec<Redone>>, Unavailable> {
        within(self.opened().settings.patience(), "doing commits again", self.redo_together(&batch)).await
    }

    async fn is_restoring(&self) -> Result<bool, Unavailable> {
        let meta = within(self.opened().settings.patience(), "reading the ledger's marks", self.read_meta()).await?;
        Ok(meta.contains_key(RESTORING))
    }

    async fn begin_restore(&self) -> Result<(), Unavailable> {
        let (doing, patience) = ("renaming the ledger", self.opened().settings.patience());
        within(patience, doing, self.rename(&self.opened().ledger.get())).await?;
        let mut meta = within(patience, doing, self.read_meta()).await?;
        let name = meta.remove(LEDGER_ID).ok_or_else(|| Unavailable::new(doing, "its name cannot be read"))?;
        self.opened().ledger.set(name);
        Ok(())
    }

    async fn end_restore(&self) -> Result<(), Unavailable> {
        within(self.opened().settings.patience(), "ending the restore", self.unmark()).await
    }

    async fn states(&self, txids: Vec<Txid>) -> Result<BTreeMap<Txid, State>, Unavailable> {
        let (doing, patience) = ("looking at the ledger", self.opened().settings.patience());
        match self.opened().mode {
            Mode::Xa => {
                let known = within(patience, doing, self.look_at_all(&txids)).await?;
                let listed = txids.iter().filter(|txid| known.gids.contains_key(txid)).copied();
                let listed: Vec<_> = listed.map(|txid| (txid, State::InDoubt)).collect();
                Ok(states_of(known.rows)?.into_iter().chain(listed).collect())
            }
            Mode::Reserve => states_of(within(patience, doing, self.ledger_rows(&txids)).await?),
        }
    }

    async fn marks(&self) -> Result<Marks, Unavailable> {
        within(self.opened().settings.patience(), "looking at the ledger", self.read_marks()).await
    }

    async fn note(&self, entries: Vec<Entry>) -> Result<(), Unavailable> {
        within(self.opened().settings.patience(), "noting", self.insert_entries(&entries)).await
    }

    async fn noted(&self, which: Which) -> Result<Vec<Noted>, Unavailable> {
        within(self.opened().settings.patience(), "reading what was noted", self.read_entries(which)).await
    }

    async fn mark_told(&self, entries: Vec<String>) -> Result<(), Unavailable> {
        within(self.opened().settings.patience(), "noting", self.mark_entries(&entries)).await
    }

    async fn resolve(&self, resolution: Resolution) -> Result<Result<(), Unsettled>, Unavailable> {
        let (doing, patience) = ("resolving", self.opened().settings.patience());
        let txid = resolution.word.txid;
        if self.opened().mode == Mode::Xa {
            let listed = around(Act::LookBeforeWord, within(patience, doing, self.look_at_all(&[txid]))).await?.gids;
            if listed.contains_key(&txid) {
                return Ok(Err(Unsettled::InDoubt));
            }
        }
        within(patience, doing, self.write_resolution(&resolution)).await
    }

    async fn seed(&self, name: String, payloads: Vec<Box<RawValue>>) -> Result<u64, SeedError> {
        self.insert_seeds(&name, &payloads).await
    }
}

async fn prepare<S: Server>(server: &S, batch: &[Arc<Prepare>], on_no: OnNo) -> Result<Vec<Prepared>, Unavailable> {
    let (doing, patience) = ("preparing", server.opened().settings.patience());
    if server.opened().mode == Mode::Reserve {
        return within(patience, doing, server.reserve(batch, on_no)).await;
    }
    let mut prepared = Vec::with_capacity(batch.len());
    for prepare in batch {
        prepared.push(within(patience, doing, xa::prepare(server, prepare, on_no)).await?);
    }
    Ok(prepared)
}
