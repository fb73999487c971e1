//! PostgreSQL in mode xa.
use std::sync::Arc;
use serde_json::value::RawValue;
use suture_contract::messages::{Decision, Prepare};
use crate::config::PostgresSettings;
use crate::resource::{Effect, Fault, InDoubt, OpenError, Opening, Position, Prepared, Resource, SeedError, Unavailable};
/// A participant's PostgreSQL database.
pub struct PostgresResource;
impl PostgresResource {
    /// Opens it.
    pub async fn open(_settings: PostgresSettings, _opening: Opening) -> Result<Self, OpenError> {
        Err(Unavailable::new("opening", "not there yet").into())
    }
}
impl Resource for PostgresResource {
    fn ledger_id(&self) -> &str { "" }
    async fn prepare(&self, _: Vec<Arc<Prepare>>) -> Result<Vec<Prepared>, Unavailable> { Err(Unavailable::new("x", "x")) }
    async fn commit(&self, _: Vec<Arc<Decision>>) -> Result<Vec<Result<Effect, Fault>>, Unavailable> { Err(Unavailable::new("x", "x")) }
    async fn abort(&self, _: Vec<Arc<Decision>>) -> Result<Vec<Result<Effect, Fault>>, Unavailable> { Err(Unavailable::new("x", "x")) }
    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> { Err(Unavailable::new("x", "x")) }
    async fn load_positions(&self, _: String) -> Result<Vec<Position>, Unavailable> { Err(Unavailable::new("x", "x")) }
    async fn store_positions(&self, _: Vec<Position>) -> Result<(), Unavailable> { Err(Unavailable::new("x", "x")) }
    async fn seed(&self, _: String, _: Vec<Box<RawValue>>) -> Result<u64, SeedError> { Err(Unavailable::new("x", "x").into()) }
}
