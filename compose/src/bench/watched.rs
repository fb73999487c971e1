//! A participant's database that tells when a decision is durable there, and why a branch was refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;
use suture_contract::ids::Txid;
use suture_contract::messages::{Decision, Prepare, Verdict};
use suture_participants::resource::{
    Batching, Decided, Entry, Leftover, Noted, Page, Position, Prepared, Purged, Redone, Resolution, Resource,
    SeedError, Stored, Unavailable, Which,
};
use suture_participants_core::branch::State;
use suture_participants_core::doubts::InDoubt;
use suture_participants_core::marks::Marks;
use suture_participants_core::settle::Unsettled;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A decision is durable at a participant.
pub struct Applied {
    /// Its place among the participants.
    pub participant: u8,
    /// The transaction's shard.
    pub shard: u16,
    /// And its offset there.
    pub offset: u64,
    /// How it ended.
    pub verdict: Verdict,
    /// When.
    pub at: Instant,
}

/// The database itself, with a witness.
pub struct Watched<R> {
    inner: R,
    participant: u8,
    told: mpsc::UnboundedSender<Applied>,
}

impl<R: Resource> Watched<R> {
    /// Watches a participant.
    pub fn new(inner: R, participant: u8, told: mpsc::UnboundedSender<Applied>) -> Self {
        Self { inner, participant, told }
    }

    fn tell(&self, batch: &[Arc<Decision>], decided: &[Decided]) {
        let at = Instant::now();
        for (decision, _) in batch.iter().zip(decided).filter(|(_, decided)| decided.is_ok()) {
            let (txid, verdict, participant) = (decision.txid, decision.outcome, self.participant);
            let applied = Applied { participant, shard: txid.shard.0, offset: txid.offset, verdict, at };
            // The receiver goes away only with the whole bench.
            let _ = self.told.send(applied);
        }
    }
}

impl<R: Resource> Resource for Watched<R> {
    fn ledger_id(&self) -> String {
        self.inner.ledger_id()
    }

    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    async fn prepare(&self, batch: Vec<Arc<Prepare>>) -> Result<Vec<Prepared>, Unavailable> {
        self.inner.prepare(batch).await
    }

    async fn prepare_again(&self, batch: Vec<Arc<Prepare>>) -> Result<Vec<Prepared>, Unavailable> {
        self.inner.prepare_again(batch).await
    }

    async fn commit(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        let decided = self.inner.commit(batch.clone()).await?;
        self.tell(&batch, &decided);
        Ok(decided)
    }

    async fn abort(&self, batch: Vec<Arc<Decision>>) -> Result<Vec<Decided>, Unavailable> {
        let decided = self.inner.abort(batch.clone()).await?;
        self.tell(&batch, &decided);
        Ok(decided)
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        self.inner.in_doubt().await
    }

    async fn leftovers(&self) -> Result<Vec<Leftover>, Unavailable> {
        self.inner.leftovers().await
    }

    async fn sweep(&self, txids: Vec<Txid>) -> Result<usize, Unavailable> {
        self.inner.sweep(txids).await
    }

    async fn purge(&self, page: Page) -> Result<Purged, Unavailable> {
        self.inner.purge(page).await
    }

    async fn load_positions(&self, topic: String) -> Result<Vec<Position>, Unavailable> {
        self.inner.load_positions(topic).await
    }

    async fn store_positions(&self, positions: Vec<Position>, seen: Vec<Position>) -> Result<Stored, Unavailable> {
        self.inner.store_positions(positions, seen).await
    }

    async fn redo(&self, batch: Vec<Arc<Prepare>>) -> Result<Option<Vec<Redone>>, Unavailable> {
        self.inner.redo(batch).await
    }

    async fn is_restoring(&self) -> Result<bool, Unavailable> {
        self.inner.is_restoring().await
    }

    async fn begin_restore(&self) -> Result<(), Unavailable> {
        self.inner.begin_restore().await
    }

    async fn end_restore(&self) -> Result<(), Unavailable> {
        self.inner.end_restore().await
    }

    async fn states(&self, txids: Vec<Txid>) -> Result<BTreeMap<Txid, State>, Unavailable> {
        self.inner.states(txids).await
    }

    async fn marks(&self) -> Result<Marks, Unavailable> {
        self.inner.marks().await
    }

    async fn note(&self, entries: Vec<Entry>) -> Result<(), Unavailable> {
        self.inner.note(entries).await
    }

    async fn noted(&self, which: Which) -> Result<Vec<Noted>, Unavailable> {
        self.inner.noted(which).await
    }

    async fn mark_told(&self, entries: Vec<String>) -> Result<(), Unavailable> {
        self.inner.mark_told(entries).await
    }

    async fn resolve(&self, resolution: Resolution) -> Result<Result<(), Unsettled>, Unavailable> {
        self.inner.resolve(resolution).await
    }

    async fn seed(&self, name: String, payloads: Vec<Box<RawValue>>) -> Result<u64, SeedError> {
        self.inner.seed(name, payloads).await
    }
}
