//! Groups that stand still although somebody may be running: what lies before them, and since when.
//!
//! An offset that is committed says how far a group has come; the record that stands there says since when it could have gone on.
//! Its age is the difference between its own timestamp (the broker's clock, or the writer's in an upstream topic) and this
//! machine's clock.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use suture_topics::failure::KafkaFailure;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;
use tokio::time::Instant;

use super::databases::now_ms;

/// What is read and done in time is younger.
pub const LONG: Duration = Duration::from_secs(60);

/// How long all of them may take together.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a group has not done of a partition.
pub struct Left {
    pub topic: String,
    pub partition: i32,
    /// The offset that is committed, or the log's start.
    pub from: u64,
    pub end: u64,
}

/// What is left of a group, as far as it is old.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// By topic.
    topics: BTreeMap<String, Old>,
    /// Where the oldest record stands.
    pub oldest: Option<(i32, u64)>,
    /// Why not all of it was looked at.
    pub not_looked: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Old {
    partitions: Vec<i32>,
    records: u64,
    age_ms: i64,
}

/// Looks at one record of each partition.
pub struct Watch {
    scanner: Scanner,
    began: Instant,
}

impl Watch {
    /// Opens the client.
    pub fn start(kafka: &KafkaSettings) -> Result<Self, KafkaFailure> {
        let scanner = Scanner::start(kafka, &format!("{}.doctor", kafka.prefix))?;
        Ok(Self { scanner, began: Instant::now() })
    }

    /// What of this lies there for longer than `long`. What is compacted away lies nowhere.
    pub fn look(&mut self, left: &[Left], long: Duration) -> Behind {
        let mut behind = Behind::default();
        let long_ms = i64::try_from(long.as_millis()).unwrap_or(i64::MAX);
        let mut oldest_ms = long_ms;
        for Left { topic, partition, from, end } in left.iter().filter(|left| left.from < left.end) {
            if self.began.elapsed() > PATIENCE {
                behind.not_looked = Some("no time was left for all of its partitions".to_string());
                break;
            }
            let mut first = None;
            let scanned = self.scanner.scan((topic, *partition), (*from, *end), |record| {
                first = Some((record.offset, record.timestamp_ms));
                ControlFlow::Break(())
            });
            match scanned {
                Ok(()) => {}
                // The start has moved on meanwhile: somebody else is at work, or the group's own line says that it lies outside.
                Err(ScanFailure::OutOfRange(_)) => continue,
                Err(ScanFailure::Kafka(failure)) => {
                    behind.not_looked = Some(failure.to_string());
                    break;
                }
            }
            let Some((offset, Some(timestamp_ms))) = first else { continue };
            let age_ms = now_ms() - timestamp_ms;
            if age_ms < long_ms {
                continue;
            }
            let old = behind.topics.entry(topic.clone()).or_default();
            old.partitions.push(*partition);
            old.records += end.saturating_sub(offset);
            old.age_ms = old.age_ms.max(age_ms);
            if behind.oldest.is_none() || age_ms > oldest_ms {
                (behind.oldest, oldest_ms) = (Some((*partition, offset)), age_ms);
            }
        }
        behind
    }
}

impl Behind {
    /// What is said of it; `None`: nothing old is left.
    pub fn said(&self) -> Option<String> {
        let of_topic = |(topic, Old { partitions, records, age_ms }): (&String, &Old)| {
            let partitions: Vec<String> = partitions.iter().map(ToString::to_string).collect();
            let (partitions, seconds) = (partitions.join(", "), age_ms / 1_000);
            format!("{records} records not done in {topic}/{partitions}, the oldest for {seconds} s")
        };
        let said: Vec<String> = self.topics.iter().map(of_topic).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use suture_topics::embedded::EmbeddedBroker;
    use suture_topics::outbox::Outbox;

    use super::*;

    #[test]
    fn who_stands_before_an_old_record_is_behind() {
        let broker = EmbeddedBroker::start().unwrap();
        let kafka = broker.settings("t".parse().unwrap());
        broker.create_topic("upstream", 3).unwrap();
        let (tell, deliveries) = mpsc::channel();
        let outbox = Outbox::start(&kafka, "t", move |delivery| drop(tell.send(delivery))).unwrap();
        for (partition, records) in [(0, 2), (2, 3)] {
            for token in 0..records {
                outbox.append("upstream", partition, b"k", Some(b"v"), "event", None, token).unwrap();
                deliveries.recv().unwrap().result.unwrap();
            }
        }
        let left = |ranges: [(u64, u64); 3]| -> Vec<Left> {
            let left = |(partition, (from, end))| Left { topic: "upstream".to_string(), partition, from, end };
            (0..).zip(ranges).map(left).collect()
        };
        let mut watch = Watch::start(&kafka).unwrap();
        let mut said = |ranges, long| watch.look(&left(ranges), long).said();
        let all = [(0, 2), (0, 0), (1, 3)];
        let behind = said(all, Duration::ZERO).unwrap();
        assert!(behind.starts_with("4 records not done in upstream/0, 2, the oldest for "), "{behind}");
        assert_eq!(said(all, LONG), None, "they are new");
        assert_eq!(said([(2, 2), (0, 0), (3, 3)], Duration::ZERO), None, "all of it is done");
        let behind = watch.look(&left([(1, 2), (0, 0), (3, 3)]), Duration::ZERO);
        assert_eq!((behind.oldest, behind.not_looked), (Some((0, 1)), None));
    }
}
