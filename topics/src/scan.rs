//! Reading a stretch of one partition, on the caller's thread: what is looked up now and then, beside what is read all the time.
//!
//! A scan ends at the offset that it was given, or at the end of the log as its leader shows it, whichever comes first: offsets
//! have gaps, so the last one of a stretch may never come. Like every reader it is `read_committed`, belongs to no group and
//! commits nothing.
//!
//! Calls block: a thread of its own, or `spawn_blocking` inside tokio. Left out: several partitions at once.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use crate::failure::KafkaFailure;
use crate::ffi::{ConsumerQueue, Polled, Quiet};
use crate::record::Record;
use crate::settings::KafkaSettings;
pub use crate::told::ScanFailure;
use crate::weight::{Weight, weight};

/// One wait for the next record. After [`MOST_WAITS`] in a row without any the scan fails.
const WAIT: Duration = Duration::from_secs(1);
const MOST_WAITS: u32 = 10;

/// Reads one stretch after the other.
pub struct Scanner {
    queue: ConsumerQueue,
}

impl Scanner {
    /// Opens the client; connects with the first scan. The group only names it.
    pub fn start(settings: &KafkaSettings, group: &str) -> Result<Self, KafkaFailure> {
        let consumer = BaseConsumer::from_config_and_context(&settings.scanner(group)?, Quiet)
            .map_err(|error| KafkaFailure::of("starting a scanner", &error))?;
        let queue = ConsumerQueue::of(Arc::new(consumer))
            .ok_or_else(|| KafkaFailure::Fatal("starting a scanner: no consumer queue".to_string()))?;
        Ok(Self { queue })
    }

    /// Hands out the records of a partition at the offsets `from..to`, in order, until `take` breaks off.
    pub fn scan(
        &mut self,
        (topic, partition): (&str, i32),
        (from, to): (u64, u64),
        take: impl FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), ScanFailure> {
        if from >= to {
            return Ok(());
        }
        let doing = |error| KafkaFailure::of(format!("reading {topic}/{partition} from {from}"), &error);
        let mut list = TopicPartitionList::with_capacity(1);
        let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        list.add_partition_offset(topic, partition, offset).map_err(doing)?;
        self.queue.consumer().incremental_assign(&list).map_err(doing)?;
        let scanned = self.until(topic, partition, from, to, take);
        // After this nothing comes any more that was read ahead.
        self.queue.consumer().incremental_unassign(&list).map_err(doing)?;
        scanned
    }

    fn until(
        &mut self,
        topic: &str,
        partition: i32,
        from: u64,
        to: u64,
        mut take: impl FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), ScanFailure> {
        let mut waits = 0;
        while waits < MOST_WAITS {
            match self.queue.poll(WAIT) {
                Polled::Nothing => waits += 1,
                Polled::Record(record) => {
                    waits = 0;
                    let next = record.offset + 1;
                    if record.offset >= to || take(record).is_break() || next >= to {
                        return Ok(());
                    }
                }
                Polled::Failed { code: RDKafkaErrorCode::PartitionEOF, .. } => return Ok(()),
                Polled::Failed {
                    partition: Some(_),
                    code:
                        RDKafkaErrorCode::AutoOffsetReset
                        | RDKafkaErrorCode::LogTruncation
                        | RDKafkaErrorCode::OffsetOutOfRange,
                    ..
                } => return Err(ScanFailure::OutOfRange(format!("offset {from} of {topic}/{partition}"))),
                Polled::Failed { code, fatal, reason, .. } if fatal || weight(code) != Weight::Passing => {
                    let said = format!("reading {topic}/{partition}: {code} ({reason})");
                    return Err(KafkaFailure::Fatal(said).into());
                }
                Polled::Failed { code, reason, .. } => tracing::debug!(%code, reason, "the scan goes on"),
            }
        }
        Err(KafkaFailure::Again(format!("reading {topic}/{partition} from {from}: nothing comes")).into())
    }
}
