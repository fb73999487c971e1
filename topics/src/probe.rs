//! Questions about the cluster, from a client that reads nothing: on a reading one they wait behind its long poll.
//!
//! It sees logs `read_uncommitted`, so the end that it tells is the true one. A reader that does not get there has met
//! somebody's Kafka transaction in a protocol topic, which is an alarm.
//!
//! **Topic ids** tell one incarnation of a topic from the next. Brokers since Kafka 2.8 have them. For others, and for the
//! embedded broker, `kafka.log_letters` stands in: the requests topic's letters are exactly those, and every topic's id is
//! derived from them and its name.
//!
//! All calls block (0.2 to 8 ms; up to 10 s when no broker answers): `spawn_blocking` inside tokio.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use sha2::{Digest, Sha256};
use suture_contract::ids::LogLetters;
use suture_contract::topic_map::Topic;

use crate::failure::KafkaFailure;
use crate::ffi::{self, Quiet};
use crate::settings::KafkaSettings;
pub use crate::told::{GroupInfo, TopicInfo, UnfitTopic, refuse_unfit};

/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(10);

/// How often a topic that a broker does not know is asked for again, this far apart.
const LOOKS: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Answers questions about the cluster.
pub struct Probe {
    consumer: BaseConsumer<Quiet>,
    bootstrap: String,
    requests_topic: String,
    log_letters: Option<LogLetters>,
    embedded: OnceLock<bool>,
}

impl Probe {
    /// Opens the client; connects with the first question.
    pub fn start(settings: &KafkaSettings) -> Result<Self, KafkaFailure> {
        let consumer = BaseConsumer::from_config_and_context(&settings.probe()?, Quiet)
            .map_err(|error| KafkaFailure::of("starting the probe", &error))?;
        let requests_topic = Topic::Requests.name(&settings.prefix);
        let (bootstrap, log_letters) = (settings.bootstrap.clone(), settings.log_letters);
        Ok(Self { consumer, bootstrap, requests_topic, log_letters, embedded: OnceLock::new() })
    }

    /// A partition's first offset, and the one that its next record will get.
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<(u64, u64), KafkaFailure> {
        self.serve_queue();
        let doing = || format!("asking for the ends of {topic}/{partition}");
        let (low, high) = self
            .consumer
            .fetch_watermarks(topic, partition, ANSWER)
            .map_err(|error| self.of_leaders(topic, doing(), &error))?;
        match (u64::try_from(low), u64::try_from(high)) {
            (Ok(low), Ok(high)) => Ok((low, high)),
            _ => Err(KafkaFailure::Again(format!("{}: no leader knows them", doing()))),
        }
    }

    /// All topics of the cluster that we may see.
    pub fn topics(&self) -> Result<BTreeMap<String, TopicInfo>, KafkaFailure> {
        self.serve_queue();
        let metadata = self
            .consumer
            .fetch_metadata(None, ANSWER)
            .map_err(|error| KafkaFailure::of("asking for the topics", &error))?;
        let info = |topic: &rdkafka::metadata::MetadataTopic| {
            let mut partitions: Vec<_> = topic.partitions().iter().collect();
            partitions.sort_unstable_by_key(|partition| partition.id());
            TopicInfo { replicas: partitions.iter().map(|partition| partition.replicas().to_vec()).collect() }
        };
        let usable = metadata.topics().iter().filter(|topic| topic.error().is_none());
        Ok(usable.map(|topic| (topic.name().to_string(), info(topic))).collect())
    }

    /// The same, once these are among them or have not come for some seconds: a broker hears of a new topic a little later
    /// than whoever created it.
    pub fn topics_with(&self, names: &[&str]) -> Result<BTreeMap<String, TopicInfo>, KafkaFailure> {
        for _ in 0..LOOKS {
            let topics = self.topics()?;
            if names.iter().all(|name| topics.contains_key(*name)) {
                return Ok(topics);
            }
            thread::sleep(BETWEEN_LOOKS);
        }
        self.topics()
    }

    /// The ids of the brokers that the cluster has now. The first question of a tool: its failure names kafka.bootstrap.
    pub fn brokers(&self) -> Result<Vec<i32>, KafkaFailure> {
        self.serve_queue();
        let metadata = self
            .consumer
            .fetch_metadata(Some(&self.requests_topic), ANSWER)
            .map_err(|error| KafkaFailure::of(format!("asking kafka.bootstrap ({})", self.bootstrap), &error))?;
        let mut ids: Vec<i32> = metadata.brokers().iter().map(rdkafka::metadata::MetadataBroker::id).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// A consumer group as its coordinator describes it; `None` if the brokers know of none.
    pub fn group(&self, name: &str) -> Result<Option<GroupInfo>, KafkaFailure> {
        self.serve_queue();
        describe_group(&self.consumer, name)
    }

    /// The ids of these topics, by name. A topic that does not exist is a fatal failure.
    pub fn topic_ids(&self, topics: &[&str]) -> Result<BTreeMap<String, [u8; 16]>, KafkaFailure> {
        if !self.is_embedded()? {
            let ids = self.described_ids(topics)?;
            let has_ids = ids.values().all(|id| *id != [0; 16]);
            match self.log_letters {
                None if has_ids => return Ok(ids),
                // Letters that outlive a topic's re-creation would name other transactions like those before it.
                Some(_) if has_ids => {
                    let said = "kafka.log_letters is set, and the brokers have topic ids: remove it";
                    return Err(KafkaFailure::Fatal(said.to_string()));
                }
                _ => {}
            }
        }
        let Some(letters) = self.log_letters else {
            let said =
                "the brokers give topics no ids (they are older than Kafka 2.8, or no Kafka): set kafka.log_letters";
            return Err(KafkaFailure::Fatal(said.to_string()));
        };
        Ok(topics.iter().map(|topic| ((*topic).to_string(), derived_id(letters, topic))).collect())
    }

    /// The letters that stand in txids for a topic's records.
    pub fn letters(&self, topic: &str) -> Result<LogLetters, KafkaFailure> {
        let ids = self.topic_ids(&[topic])?;
        match (self.log_letters, ids.get(topic)) {
            (Some(letters), _) if topic == self.requests_topic => Ok(letters),
            (_, Some(id)) => Ok(LogLetters::from_topic_id(id)),
            (_, None) => Err(KafkaFailure::Again(format!("asking for the id of topic {topic}: it is left out"))),
        }
    }

    /// The first offset of each partition whose record is not older than `timestamp_ms` (broker's clock); `None`: no such
    /// record yet. Not on the embedded broker.
    pub fn offsets_for_time(
        &self,
        topic: &str,
        partitions: u16,
        timestamp_ms: i64,
    ) -> Result<Vec<Option<u64>>, KafkaFailure> {
        self.serve_queue();
        let doing = || format!("asking for the offsets of {topic} at a time");
        let mut list = TopicPartitionList::with_capacity(usize::from(partitions));
        for partition in 0..i32::from(partitions) {
            list.add_partition_offset(topic, partition, Offset::Offset(timestamp_ms))
                .map_err(|error| KafkaFailure::of(doing(), &error))?;
        }
        let list =
            self.consumer.offsets_for_times(list, ANSWER).map_err(|error| self.of_leaders(topic, doing(), &error))?;
        let mut entries = ffi::list_entries(&list);
        entries.sort_by_key(|entry| entry.partition);
        let offset = |entry: ffi::ListEntry| match entry.code {
            RDKafkaErrorCode::NoError => Ok(u64::try_from(entry.offset).ok()),
            code => Err(KafkaFailure::of_code(doing(), code)),
        };
        entries.into_iter().map(offset).collect()
    }

    /// The ids as the brokers have them, for every topic asked for; zeroes where brokers have none.
    fn described_ids(&self, topics: &[&str]) -> Result<BTreeMap<String, [u8; 16]>, KafkaFailure> {
        let mut unknown = String::new();
        for _ in 0..LOOKS {
            self.serve_queue();
            let answers = ffi::describe_topic_ids(self.consumer.client(), topics, ANSWER)
                .map_err(|reason| KafkaFailure::Again(format!("asking for topic ids: {reason}")))?;
            let mut ids = BTreeMap::new();
            for (topic, answer) in answers {
                match answer {
                    Ok(id) => drop(ids.insert(topic, id)),
                    Err(RDKafkaErrorCode::UnknownTopicOrPartition) => unknown = topic,
                    Err(code) => {
                        return Err(KafkaFailure::of_code(format!("asking for the id of topic {topic}"), code));
                    }
                }
            }
            if topics.iter().all(|topic| ids.contains_key(*topic)) {
                return Ok(ids);
            }
            // One that was just created is known to one broker after the other.
            thread::sleep(BETWEEN_LOOKS);
        }
        Err(KafkaFailure::Fatal(format!("topic {unknown} does not exist: run `suture topics apply`")))
    }

    /// librdkafka's mock cluster, which would not answer a question for ids. It says so in its name.
    fn is_embedded(&self) -> Result<bool, KafkaFailure> {
        if let Some(known) = self.embedded.get() {
            return Ok(*known);
        }
        self.serve_queue();
        let name = self.consumer.client().fetch_cluster_id(ANSWER);
        let name = name.ok_or_else(|| KafkaFailure::Again("asking for the cluster's id: no answer".to_string()))?;
        Ok(*self.embedded.get_or_init(|| name.starts_with("mockCluster")))
    }

    /// Classes the failure of a question to partitions' leaders. Of partitions without one, because a broker was killed,
    /// librdkafka says that they are unknown, and believes it for as long as it keeps what it knows (minutes): it must be
    /// told to look again. Of a topic that is gone it says something else.
    fn of_leaders(&self, topic: &str, doing: String, error: &KafkaError) -> KafkaFailure {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::UnknownPartition) {
            return KafkaFailure::of(doing, error);
        }
        match self.consumer.fetch_metadata(Some(topic), ANSWER) {
            Ok(_) => KafkaFailure::Again(format!("{doing}: no leader")),
            Err(error) => KafkaFailure::of(doing, &error),
        }
    }

    /// A client's log lines and errors queue up until somebody polls.
    fn serve_queue(&self) {
        for _ in 0..100 {
            if self.consumer.poll(Duration::ZERO).is_none() {
                return;
            }
        }
    }
}

/// See [`Probe::group`].
pub(crate) fn describe_group<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    name: &str,
) -> Result<Option<GroupInfo>, KafkaFailure> {
    let listed = consumer
        .client()
        .fetch_group_list(Some(name), ANSWER)
        .map_err(|error| KafkaFailure::of(format!("asking for the group {name}"), &error))?;
    let found = listed.groups().iter().find(|group| group.name() == name);
    Ok(found.map(|group| GroupInfo { state: group.state().to_string(), members: group.members().len() }))
}

/// The id of a topic on a broker without ids.
fn derived_id(letters: LogLetters, topic: &str) -> [u8; 16] {
    let digest = Sha256::new().chain_update(letters.as_str()).chain_update([0]).chain_update(topic).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    id
}
