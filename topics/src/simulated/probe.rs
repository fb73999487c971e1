//! Questions about the cluster: see [`crate::simulated`].

use std::collections::BTreeMap;

use suture_contract::ids::LogLetters;

use super::Cluster;
use crate::failure::KafkaFailure;
use crate::settings::KafkaSettings;
pub use crate::told::{GroupInfo, TopicInfo, UnfitTopic, refuse_unfit};

/// Answers questions about the cluster.
pub struct Probe {
    cluster: Cluster,
}

impl Probe {
    /// Opens the client.
    pub fn start(_: &KafkaSettings) -> Result<Self, KafkaFailure> {
        Ok(Self { cluster: Cluster::current() })
    }

    /// A partition's first offset, and the one that its next record will get. A leader that was cut off shows an old one; who
    /// has rested and looks again finds the new leader.
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<(u64, u64), KafkaFailure> {
        let mut state = self.cluster.lock();
        let log = state.log(topic, partition).ok_or_else(|| unknown(topic))?;
        let (start, end) = (log.start, log.next);
        let end = state.stale_end((topic, partition), start).unwrap_or(end);
        Ok((start, end))
    }

    /// All topics of the cluster.
    pub fn topics(&self) -> Result<BTreeMap<String, TopicInfo>, KafkaFailure> {
        let state = self.cluster.lock();
        let replicas = |partitions: usize| vec![vec![1, 2, 3]; partitions];
        let info = state
            .topics
            .iter()
            .map(|(name, topic)| (name.to_string(), TopicInfo { replicas: replicas(topic.logs.len()) }));
        Ok(info.collect())
    }

    /// The same.
    pub fn topics_with(&self, _: &[&str]) -> Result<BTreeMap<String, TopicInfo>, KafkaFailure> {
        self.topics()
    }

    /// The ids of these topics, by name.
    pub fn topic_ids(&self, topics: &[&str]) -> Result<BTreeMap<String, [u8; 16]>, KafkaFailure> {
        let state = self.cluster.lock();
        let id = |name: &&str| {
            let topic = state.topics.get(*name).ok_or_else(|| unknown(name))?;
            Ok(((*name).to_string(), topic.id))
        };
        topics.iter().map(id).collect()
    }

    /// The letters that stand in txids for a topic's records.
    pub fn letters(&self, topic: &str) -> Result<LogLetters, KafkaFailure> {
        let state = self.cluster.lock();
        state.topics.get(topic).map(|topic| LogLetters::from_topic_id(&topic.id)).ok_or_else(|| unknown(topic))
    }

    /// The first offset of each partition whose record is not older than `timestamp_ms`; `None`: no such record yet.
    pub fn offsets_for_time(
        &self,
        topic: &str,
        partitions: u16,
        timestamp_ms: i64,
    ) -> Result<Vec<Option<u64>>, KafkaFailure> {
        let mut state = self.cluster.lock();
        let mut offset = |partition: u16| {
            let log = state.log(topic, i32::from(partition)).ok_or_else(|| unknown(topic))?;
            let is_young = |record: &crate::record::Record| record.timestamp_ms.is_some_and(|at| at >= timestamp_ms);
            Ok(log.records.values().find(|record| is_young(record)).map(|record| record.offset))
        };
        (0..partitions).map(&mut offset).collect()
    }
}

fn unknown(topic: &str) -> KafkaFailure {
    KafkaFailure::Fatal(format!("topic {topic} does not exist"))
}
