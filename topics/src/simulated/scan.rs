//! Reading a stretch: see [`crate::simulated`].

use std::ops::ControlFlow;
use std::sync::Arc;

use super::Cluster;
use crate::failure::KafkaFailure;
use crate::record::Record;
use crate::settings::KafkaSettings;
pub use crate::told::ScanFailure;

/// Reads one stretch after the other.
pub struct Scanner {
    cluster: Cluster,
}

impl Scanner {
    /// Opens the client.
    pub fn start(_: &KafkaSettings, _: &str) -> Result<Self, KafkaFailure> {
        Ok(Self { cluster: Cluster::current() })
    }

    /// Hands out the records of a partition at the offsets `from..to`, in order, until `take` breaks off. A leader that was cut off
    /// shows an old end, and that is the end; who has rested and looks again finds the new leader.
    pub fn scan(
        &mut self,
        (topic, partition): (&str, i32),
        (from, to): (u64, u64),
        mut take: impl FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), ScanFailure> {
        if from >= to {
            return Ok(());
        }
        let (records, end): (Vec<Arc<Record>>, u64) = {
            let mut state = self.cluster.lock();
            let missing = || KafkaFailure::Fatal(format!("there is no {topic}/{partition}"));
            let log = state.log(topic, partition).ok_or_else(missing)?;
            if from < log.start || from > log.next {
                return Err(ScanFailure::OutOfRange(format!("{topic}/{partition}/{from}")));
            }
            let (end, records) =
                (log.next, log.records.range(from..to).map(|(_, record)| Arc::clone(record)).collect());
            let old = state.stale_end((topic, partition), from).unwrap_or(end);
            (records, old)
        };
        let records = records.into_iter().take_while(|record: &Arc<Record>| record.offset < end);
        for record in records {
            if take((*record).clone()).is_break() {
                break;
            }
        }
        Ok(())
    }
}
