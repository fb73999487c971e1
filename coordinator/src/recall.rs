//! Reading requests once more: what a transaction asks for is not kept while it waits for its turn.
//!
//! Blocks, and runs on a thread of its own, one round at a time. A round is bounded, for requests may be large; what lies close
//! together in a shard is read in one stretch.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use suture_contract::ids::Shard;
use suture_contract::topic_map::Topic;
use suture_topics::record::Record;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;

/// Most requests of a round: at 900,000 bytes each they are 58 MB.
pub(crate) const MOST_RECALLS: usize = 64;

/// Requests that are not farther apart are read in one stretch.
const CLOSE: u64 = 256;

/// One stretch of a shard's requests, and what was found there.
pub(crate) struct Recalled {
    pub shard: Shard,
    pub wanted: BTreeSet<u64>,
    pub found: Result<Vec<Record>, ScanFailure>,
}

/// Reads these requests.
pub(crate) fn recall(
    kafka: &KafkaSettings,
    scanner: &mut Scanner,
    requests: impl IntoIterator<Item = (Shard, u64)>,
) -> Vec<Recalled> {
    let topic = Topic::Requests.name(&kafka.prefix);
    let mut stretches = stretches(requests);
    for Recalled { shard, wanted, found } in &mut stretches {
        let (Some(&first), Some(&last)) = (wanted.first(), wanted.last()) else { continue };
        let mut records = Vec::new();
        let scanned = scanner.scan((&topic, shard.partition()), (first, last + 1), |record| {
            if wanted.contains(&record.offset) {
                records.push(record);
            }
            ControlFlow::Continue(())
        });
        *found = scanned.map(|()| records);
    }
    stretches
}

/// Groups what is close together; nothing is found yet. The requests come in order.
fn stretches(requests: impl IntoIterator<Item = (Shard, u64)>) -> Vec<Recalled> {
    let mut stretches: Vec<Recalled> = Vec::new();
    for (shard, offset) in requests {
        let is_close = |stretch: &&mut Recalled| {
            stretch.shard == shard && stretch.wanted.last().is_some_and(|last| offset.saturating_sub(*last) <= CLOSE)
        };
        match stretches.last_mut().filter(is_close) {
            Some(stretch) => drop(stretch.wanted.insert(offset)),
            None => stretches.push(Recalled { shard, wanted: BTreeSet::from([offset]), found: Ok(Vec::new()) }),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_close_together_is_one_stretch() {
        let requests = [(0, 5), (0, 6), (0, 261), (0, 600), (1, 601), (1, 602)];
        let found = stretches(requests.map(|(shard, offset)| (Shard(shard), offset)));
        let found: Vec<_> = found.iter().map(|one| (one.shard.0, Vec::from_iter(one.wanted.clone()))).collect();
        assert_eq!(found, [(0, vec![5, 6, 261]), (0, vec![600]), (1, vec![601, 602])]);
    }
}
