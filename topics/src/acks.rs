//! What other groups have committed, seen without joining them: a participant's acknowledgements, for the coordinator.
//!
//! One idle client a group. A committed offset that is missing, or without our mark in its metadata, is "unknown", never
//! "applied": offsets expire 7 days after a group falls empty, and operators reset them.
//!
//! Calls block (0.2 ms; up to 10 s when no broker answers): `spawn_blocking` inside tokio.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::BaseConsumer;

use crate::failure::KafkaFailure;
use crate::ffi::Quiet;
use crate::membership::{Committed, committed};
use crate::settings::KafkaSettings;

/// Committed positions of any group that we may describe.
pub struct GroupOffsets {
    settings: KafkaSettings,
    groups: BTreeMap<String, BaseConsumer<Quiet>>,
}

impl GroupOffsets {
    /// Opens nothing yet.
    pub fn new(settings: &KafkaSettings) -> Self {
        Self { settings: settings.clone(), groups: BTreeMap::new() }
    }

    /// A group's committed positions, one for each partition asked for.
    pub fn committed(
        &mut self,
        group: &str,
        partitions: &[(&str, i32)],
    ) -> Result<Vec<Option<Committed>>, KafkaFailure> {
        if !self.groups.contains_key(group) {
            let consumer = BaseConsumer::from_config_and_context(&self.settings.consumer(group)?, Quiet)
                .map_err(|error| KafkaFailure::of(format!("asking for the positions of {group}"), &error))?;
            self.groups.insert(group.to_string(), consumer);
        }
        let Some(consumer) = self.groups.get(group) else { return Ok(Vec::new()) };
        // A client's log lines queue up until somebody polls; no record comes, for it subscribes to nothing.
        let _ = consumer.poll(Duration::ZERO);
        let partitions: Vec<(String, i32)> =
            partitions.iter().map(|&(topic, partition)| (topic.to_string(), partition)).collect();
        committed(consumer, &partitions)
    }
}
