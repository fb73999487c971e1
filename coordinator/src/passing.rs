//! Records of the decision log that a person lets every coordinator pass.
//!
//! No coordinator writes them, so a shard stops in front of them; and no coordinator has a ledger that could keep a person's
//! word. It stands in the configuration, which every coordinator of the deployment has, also the next owner of the shard: a
//! named record counts as if it were not there. What was decided follows from the votes, with or without it.

use std::collections::BTreeMap;

use suture_contract::ids::Shard;
use suture_topics::record::Record;
use tracing::warn;

/// One record of the decision log that is passed.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassedDecision {
    /// Its shard: the partition.
    pub shard: u16,
    /// Where it stands in the partition.
    pub offset: u64,
    /// Who found out what about it. Stands in the log whenever it is passed.
    pub because: String,
}

/// All of them.
#[derive(Debug, Clone)]
pub(crate) struct Passed(BTreeMap<(Shard, u64), String>);

impl Passed {
    pub fn new(named: &[PassedDecision]) -> Self {
        Self(named.iter().map(|named| ((Shard(named.shard), named.offset), named.because.clone())).collect())
    }

    /// Whether this record of the decision log is one of them. Says so.
    pub fn has(&self, record: &Record) -> bool {
        let place = Shard::of_partition(record.partition).map(|shard| (shard, record.offset));
        let Some(because) = place.and_then(|place| self.0.get(&place)) else { return false };
        warn!(
            shard = record.partition,
            offset = record.offset,
            because,
            "a record of the decision log is passed, as the configuration says"
        );
        true
    }
}
