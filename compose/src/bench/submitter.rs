//! Asks for transactions.

use anyhow::Context;
use serde_json::value::RawValue;
use suture_contract::codec::{Message, encode};
use suture_contract::ids::{Attempt, Participant, Shard};
use suture_contract::keys::HashKey;
use suture_contract::messages::{Branch, Request};
use suture_contract::partitioner::shard_of;
use suture_contract::topic_map::Topic;
use suture_topics::outbox::{Delivery, Outbox};
use suture_topics::settings::KafkaSettings;
use tokio::sync::mpsc;

/// A producer of requests, each with a branch for every participant.
pub struct Submitter {
    kafka: KafkaSettings,
    participants: Vec<Participant>,
    operation: &'static str,
    deadline_ms: u64,
    key: HashKey,
    /// Appends.
    pub outbox: Outbox,
    /// What became of the appends, by token.
    pub deliveries: mpsc::UnboundedReceiver<Delivery>,
    /// How many were asked for.
    pub sent: u64,
}

impl Submitter {
    /// Connects.
    pub async fn start(
        kafka: &KafkaSettings,
        participants: &[Participant],
        operation: &'static str,
        deadline_ms: u64,
    ) -> anyhow::Result<Self> {
        let (post, deliveries) = mpsc::unbounded_channel();
        let for_client = kafka.clone();
        let outbox = tokio::task::spawn_blocking(move || {
            Outbox::start(&for_client, "bench", move |delivery| {
                // The receiver goes away only with the whole bench.
                let _ = post.send(delivery);
            })
        })
        .await??;
        let key = HashKey::new("bench".parse()?, b"a bench, and no secret")?;
        let (kafka, participants) = (kafka.clone(), participants.to_vec());
        Ok(Self { kafka, participants, operation, deadline_ms, key, outbox, deliveries, sent: 0 })
    }

    /// Asks for a transaction, all of whose branches carry this. Answers the token of its append, and where it went.
    pub fn ask(&mut self, payload: &RawValue) -> anyhow::Result<(u64, Shard)> {
        self.sent += 1;
        let token = self.sent;
        // As long as a real key: a rule and 32 hex digits.
        let business_key = format!("bench:{:032x}:finished", u128::from(token)).parse()?;
        let branches: Vec<Branch> = self
            .participants
            .iter()
            .map(|participant| Branch {
                participant: participant.clone(),
                operation: self.operation.to_string(),
                payload: payload.to_owned(),
            })
            .collect();
        let hash = self.key.request_hash(&business_key, &branches)?;
        let order_key = format!("patient:{:032x}", u128::from(token));
        let request = Request {
            business_key,
            attempt: Attempt::FIRST,
            rule: "bench".to_string(),
            source: None,
            deadline_ms: self.deadline_ms,
            ordered: false,
            branches,
            hash,
        };
        let shard = shard_of(order_key.as_bytes(), self.kafka.partitions);
        let topic = Topic::Requests.name(&self.kafka.prefix);
        let (key, value) = (order_key.as_bytes(), encode(&request));
        self.outbox
            .append(&topic, shard.partition(), key, Some(&value), Request::TYPE, None, token)
            .ok()
            .context("the producer's queue is full; use a smaller --window")?;
        Ok((token, shard))
    }
}
