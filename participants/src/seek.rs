//! Looking into the logs, beside what is read all the time.
//!
//! Prepares are looked for when a branch is in doubt since before this process, and its database tells only half of its
//! hash.
//!
//! The log of one shard is read from its start to its end, for all that are looked for together. Blocks, and runs on a
//! thread of its own, for one shard after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use suture_contract::ids::{LogLetters, RequestHash, Shard, Txid};
use suture_participants_core::envelope::Read;
use suture_topics::probe::Probe;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;

use crate::envelope::read_prepare;
use crate::take::Names;

/// Where it is looked.
#[derive(Clone)]
pub(crate) struct Seeker {
    pub kafka: KafkaSettings,
    pub group: String,
    pub probe: Arc<Probe>,
    pub names: Names,
    pub requests: LogLetters,
}

impl Seeker {
    /// Where the decision logs of these shards end; without those that Kafka does not tell.
    pub fn decisions_ends(&self, shards: &BTreeSet<Shard>) -> BTreeMap<Shard, u64> {
        let end = |shard: &Shard| self.probe.watermarks(&self.names.decisions, shard.partition()).ok();
        shards.iter().filter_map(|shard| end(shard).map(|(_, end)| (*shard, end))).collect()
    }

    /// What the prepares of these transactions are about, one entry each record.
    pub fn seek(&self, txids: &[Txid]) -> Result<Vec<(Txid, RequestHash)>, ScanFailure> {
        let keys: BTreeSet<Vec<u8>> = txids.iter().map(|txid| txid.to_string().into_bytes()).collect();
        let shards: BTreeSet<Shard> = txids.iter().map(|txid| txid.shard).collect();
        let mut scanner = Scanner::start(&self.kafka, &self.group)?;
        let mut found = Vec::new();
        for shard in shards {
            let range = self.probe.watermarks(&self.names.prepares, shard.partition())?;
            scanner.scan((&self.names.prepares, shard.partition()), range, |record| {
                if record.key.as_ref().is_some_and(|key| keys.contains(key))
                    && let Read::Ours(prepare) = read_prepare(&record, self.requests)
                {
                    found.push((prepare.txid, prepare.hash));
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(found)
    }
}
