//! The protocol's topics as a person's tools read them: a partition from somewhere to the end that it has now, and nothing else. It
//! joins no group and commits nothing.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use anyhow::bail;
use suture_contract::ids::{LogLetters, Shard};
use suture_contract::topic_map::Topic;
use suture_topics::probe::{Probe, TopicInfo};
use suture_topics::record::Record;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;

/// How often a partition that is trimmed while it is read is read from its new start.
const LOOKS: u32 = 5;

/// What followed may be older by the clock of another broker, but not by more than this.
const CLOCKS_APART_MS: i64 = 3_600_000;

/// Reads partitions.
pub struct Logs {
    /// How to reach Kafka.
    pub kafka: KafkaSettings,
    /// For questions besides.
    pub probe: Probe,
    /// With what the names of transactions begin.
    pub log: LogLetters,
    scanner: Scanner,
    topics: BTreeMap<String, TopicInfo>,
}

/// Where a partition began and ended when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ends {
    /// Its first offset.
    pub start: u64,
    /// The offset of its next record.
    pub end: u64,
}

impl Logs {
    /// Opens the clients. `tool` names them.
    pub fn open(kafka: &KafkaSettings, tool: &str) -> anyhow::Result<Self> {
        let probe = Probe::start(kafka)?;
        probe.brokers()?;
        let log = probe.letters(&Topic::Requests.name(&kafka.prefix))?;
        let topics = probe.topics()?;
        let scanner = Scanner::start(kafka, &format!("{}.{tool}", kafka.prefix))?;
        Ok(Self { kafka: kafka.clone(), probe, log, scanner, topics })
    }

    /// A topic's full name.
    pub fn name(&self, topic: &Topic) -> String {
        topic.name(&self.kafka.prefix)
    }

    /// Which incarnation of a topic there is now.
    pub fn letters(&self, topic: &Topic) -> anyhow::Result<LogLetters> {
        Ok(self.probe.letters(&self.name(topic))?)
    }

    /// All shards.
    pub fn shards(&self) -> impl Iterator<Item = Shard> + use<> {
        (0..self.kafka.partitions).map(Shard)
    }

    /// Where a partition begins and ends; `None`: there is none.
    pub fn ends(&self, topic: &Topic, shard: Shard) -> anyhow::Result<Option<Ends>> {
        let name = self.name(topic);
        if self.topics.get(&name).is_none_or(|topic| topic.partitions() <= shard.0) {
            return Ok(None);
        }
        let (start, end) = self.probe.watermarks(&name, shard.partition())?;
        Ok(Some(Ends { start, end }))
    }

    /// The first offset whose record is not older than a time; the end if there is none; the start if the broker cannot tell.
    pub fn offset_at(&self, topic: &Topic, shard: Shard, time_ms: i64) -> anyhow::Result<u64> {
        let Some(Ends { start, end }) = self.ends(topic, shard)? else { return Ok(0) };
        let offsets = self.probe.offsets_for_time(&self.name(topic), self.kafka.partitions, time_ms);
        Ok(offsets.map_or(start, |offsets| offsets.get(usize::from(shard.0)).copied().flatten().unwrap_or(end)))
    }

    /// Reads all that followed upon something that happened at a time in another topic; everything, without a time.
    pub fn read_since(
        &mut self,
        topic: &Topic,
        shard: Shard,
        time_ms: Option<i64>,
        mut each: impl FnMut(&Record),
    ) -> anyhow::Result<Ends> {
        let from = time_ms.map_or(Ok(0), |time_ms| self.offset_at(topic, shard, time_ms - CLOCKS_APART_MS))?;
        self.read(topic, shard, from, |record| {
            each(record);
            true
        })
    }

    /// Reads from an offset, or from the log's start if that is later, to the end that it has now, as long as `each` says
    /// true. A topic that is not there is empty.
    pub fn read(
        &mut self,
        topic: &Topic,
        shard: Shard,
        from: u64,
        mut each: impl FnMut(&Record) -> bool,
    ) -> anyhow::Result<Ends> {
        let (name, partition) = (self.name(topic), shard.partition());
        let mut next = from;
        for _ in 0..LOOKS {
            let Some(ends) = self.ends(topic, shard)? else { return Ok(Ends::default()) };
            next = next.max(ends.start);
            let scanned = self.scanner.scan((&name, partition), (next, ends.end), |record| {
                next = record.offset + 1;
                if each(&record) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            match scanned {
                Ok(()) => return Ok(ends),
                Err(ScanFailure::OutOfRange(_)) => {}
                Err(ScanFailure::Kafka(failure)) => return Err(failure.into()),
            }
        }
        bail!("{name}/{partition} is trimmed while it is read; ask again")
    }
}

/// What a record holds.
pub fn value(record: &Record) -> &[u8] {
    record.value.as_deref().unwrap_or_default()
}
