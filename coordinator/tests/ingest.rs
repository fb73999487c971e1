//! What ingest refuses before it reads anything.

use std::sync::Arc;

use suture_contract::keys::{HashKey, IdentityKey};
use suture_coordinator::ingest::{self, IngestFailure};
use suture_coordinator_core::ingest::Keys;
use suture_coordinator_core::ingest::rules::Rules;
use suture_topics::embedded::EmbeddedBroker;
use suture_topics::probe::UnfitTopic;
use suture_topics::settings::KafkaSettings;
use tokio::sync::watch;

const RULES: &str = include_str!("../../compose/config/rules.toml");

/// Requests in other shards than their keys' would be rejected, and the events lost.
#[tokio::test(flavor = "multi_thread")]
async fn another_partition_count_than_the_topics_is_refused() {
    let broker = EmbeddedBroker::start().unwrap();
    let kafka = broker.settings("suture".parse().unwrap());
    broker.create_topics(&kafka, &["hospital".parse().unwrap()]).unwrap();
    broker.create_topic("upstream", 3).unwrap();
    let wrong = KafkaSettings { partitions: 6, ..kafka };

    let secret = b"sixteen bytes, or more";
    let keys = Keys {
        identity: IdentityKey::new(secret).unwrap(),
        hash: HashKey::new("k1".parse().unwrap(), secret).unwrap(),
    };
    let rules = Arc::new(Rules::parse(RULES).unwrap().reading("upstream"));
    let (_stop, stopped) = watch::channel(false);
    match ingest::run(wrong, rules, keys, Arc::default(), stopped).await {
        Err(IngestFailure::Topic(UnfitTopic::WrongPartitions { topic, found: 12, expected: 6 })) => {
            assert_eq!(topic, "suture.requests");
        }
        other => panic!("{other:?}"),
    }
}
