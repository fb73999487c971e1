//! The section `[kafka]` of a configuration file.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use suture_contract::ids::{Deployment, LogLetters};
use suture_contract::topic_map::DEFAULT_PARTITIONS;

/// How to reach Kafka, and how this deployment is laid out there.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaSettings {
    /// `host:port`, several with commas.
    pub bootstrap: String,
    /// The prefix of all topics and groups.
    #[serde(default = "default_prefix")]
    pub prefix: Deployment,
    /// How many shards; fixed for life.
    #[serde(default = "default_partitions")]
    pub partitions: u16,
    /// Stands in for the requests topic's id on brokers without topic ids. Elsewhere it is refused.
    #[serde(default)]
    pub log_letters: Option<LogLetters>,
    /// After this long without a heartbeat a member's shards go to others.
    #[serde(default = "default_session_timeout_ms")]
    pub session_timeout_ms: u32,
    /// How long a broker may hold an empty fetch. Real Kafka answers as soon as data comes; the embedded broker does not.
    #[serde(default = "default_fetch_wait_max_ms")]
    pub fetch_wait_max_ms: u32,
    /// Handed to librdkafka as it is.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// Shows the names of the properties and not their values: some are passwords.
impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSettings")
            .field("bootstrap", &self.bootstrap)
            .field("prefix", &self.prefix)
            .field("partitions", &self.partitions)
            .field("properties", &self.properties.keys())
            .finish_non_exhaustive()
    }
}

/// A setting that cannot be obeyed. Names the key and the remedy, never a value: it may be a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kafka.{key}: {remedy}")]
pub struct RefusedSetting {
    /// The key, below `kafka`.
    pub key: String,
    /// What to do.
    pub remedy: String,
}

impl KafkaSettings {
    /// Settings for a bootstrap address, all else as by default.
    pub fn new(bootstrap: impl Into<String>, prefix: Deployment) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            prefix,
            partitions: default_partitions(),
            log_letters: None,
            session_timeout_ms: default_session_timeout_ms(),
            fetch_wait_max_ms: default_fetch_wait_max_ms(),
            properties: BTreeMap::new(),
        }
    }
}

fn default_prefix() -> Deployment {
    "suture".parse().expect("a valid deployment name")
}

fn default_partitions() -> u16 {
    DEFAULT_PARTITIONS
}

fn default_session_timeout_ms() -> u32 {
    6_000
}

fn default_fetch_wait_max_ms() -> u32 {
    100
}
