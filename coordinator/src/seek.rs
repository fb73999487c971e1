//! Looking for decisions in their log: somebody in doubt asked, and this owner has forgotten.
//!
//! The shard is the partition, so the log of one shard is read from its start to its end, for all that were asked about
//! together. Blocks, and runs on a thread of its own, for one shard after the other.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use suture_contract::ids::{Shard, Txid};
use suture_contract::topic_map::{Topic, coordinator_group};
use suture_topics::probe::Probe;
use suture_topics::record::Record;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;

use crate::passing::Passed;

/// What the log says.
pub(crate) struct Sought {
    /// The last record of each transaction that there is one of.
    pub records: Vec<Record>,
    /// The start of the requests log, looked up after that: a decision is cleaned up only once its request is below it.
    pub requests_start: u64,
}

/// Looks for the decisions of these transactions.
pub(crate) fn seek(
    kafka: &KafkaSettings,
    probe: &Probe,
    passed: &Passed,
    shard: Shard,
    txids: &[Txid],
) -> Result<Sought, ScanFailure> {
    let (decisions, requests) = (Topic::Decisions.name(&kafka.prefix), Topic::Requests.name(&kafka.prefix));
    let mut last: BTreeMap<Vec<u8>, Option<Record>> =
        txids.iter().map(|txid| (txid.to_string().into_bytes(), None)).collect();
    let (start, end) = probe.watermarks(&decisions, shard.partition())?;
    let mut scanner = Scanner::start(kafka, &coordinator_group(&kafka.prefix))?;
    scanner.scan((&decisions, shard.partition()), (start, end), |record| {
        if let Some(place) = record.key.as_ref().and_then(|key| last.get_mut(key))
            && !passed.has(&record)
        {
            *place = Some(record);
        }
        ControlFlow::Continue(())
    })?;
    let (requests_start, _) = probe.watermarks(&requests, shard.partition())?;
    Ok(Sought { records: last.into_values().flatten().collect(), requests_start })
}
