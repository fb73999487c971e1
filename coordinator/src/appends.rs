//! Appends of a service, each kept until it is acknowledged, and sent again for as long as that may help.

use std::collections::VecDeque;
use std::time::Duration;

use suture_contract::remark::Remark;
use suture_topics::failure::KafkaFailure;
use suture_topics::outbox::{Delivery, Failure, Outbox};
use suture_topics::settings::KafkaSettings;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use crate::clock;
use crate::under_way::UnderWay;

/// A failed append waits this long before it is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// One record to be written, and what it is about.
pub(crate) struct Append<T> {
    pub about: T,
    pub topic: String,
    pub partition: i32,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub kind: &'static str,
    pub traceparent: Option<String>,
    pub remark: Option<Remark>,
}

/// How an append ended.
pub(crate) enum Ended<T> {
    /// It is in the log.
    Written(Append<T>),
    /// This record can never be written.
    Refused(Append<T>, String),
    /// Nothing can be written to the topic.
    Denied(Append<T>, String),
}

/// What is under way.
pub(crate) struct Appends<T> {
    outbox: Outbox,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    reports: Vec<Delivery>,
    under_way: UnderWay<Append<T>>,
    retries: VecDeque<(Instant, Append<T>)>,
    failed: u64,
}

impl<T> Appends<T> {
    /// Starts a producer. Blocks: not for a tokio worker.
    pub(crate) fn start(kafka: &KafkaSettings, client_id: &str) -> Result<Self, KafkaFailure> {
        let (post, deliveries) = mpsc::unbounded_channel();
        let outbox = Outbox::start(kafka, client_id, move |delivery| {
            // The receiver goes away only with the whole service.
            let _ = post.send(delivery);
        })?;
        let (reports, retries) = (Vec::new(), VecDeque::new());
        Ok(Self { outbox, deliveries, reports, under_way: UnderWay::default(), retries, failed: 0 })
    }

    /// How many have not ended.
    pub(crate) fn len(&self) -> usize {
        self.under_way.len() + self.retries.len()
    }

    /// Hands one over.
    pub(crate) fn send(&mut self, append: Append<T>) {
        let token = self.under_way.put(append);
        let Some(append) = self.under_way.get(token) else { return };
        let Append { topic, partition, key, value, kind, traceparent, remark, .. } = append;
        let (traceparent, remark) = (traceparent.as_deref(), remark.as_ref());
        let sent = self.outbox.append_remarked(topic, *partition, key, Some(value), kind, traceparent, remark, token);
        if sent.is_err()
            && let Some(append) = self.under_way.take(token)
        {
            self.retries.push_back((clock::now() + RETRY_PAUSE, append));
        }
    }

    /// Sends again what has rested.
    pub(crate) fn on_tick(&mut self) {
        let now = clock::now();
        while self.retries.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, append)) = self.retries.pop_front() {
                self.send(append);
            }
        }
    }

    /// What has ended meanwhile. Nothing is lost when it is dropped while it waits.
    ///
    /// # Errors
    /// Nothing can be written any more.
    pub(crate) async fn ended(&mut self) -> Result<Vec<Ended<T>>, KafkaFailure> {
        if self.deliveries.recv_many(&mut self.reports, 4_096).await == 0 {
            return Err(KafkaFailure::Fatal("the Kafka client threads ended unexpectedly".to_string()));
        }
        let mut ended = Vec::new();
        for Delivery { token, result } in std::mem::take(&mut self.reports) {
            let Some(append) = self.under_way.take(token) else { continue };
            ended.push(match result {
                Ok(_) => Ended::Written(append),
                Err(Failure::Again(reason)) => {
                    self.failed += 1;
                    if self.failed == 1 {
                        let topic = append.topic.as_str();
                        warn!(topic, reason, "an append failed and is sent again; the summary counts more");
                    }
                    self.retries.push_back((clock::now() + RETRY_PAUSE, append));
                    continue;
                }
                Err(Failure::Refused(reason)) => Ended::Refused(append, reason),
                Err(Failure::Denied(reason)) => Ended::Denied(append, reason),
                Err(Failure::Fatal(reason)) => return Err(KafkaFailure::Fatal(reason)),
            });
        }
        Ok(ended)
    }

    /// How many failed and were sent again since the last call.
    pub(crate) fn take_failed(&mut self) -> u64 {
        std::mem::take(&mut self.failed)
    }

    /// Whether reports are missing: what waits to be sent again does not count, it ends with the service.
    pub(crate) fn is_flying(&self) -> bool {
        self.under_way.len() > 0
    }

    /// The producer, to be closed.
    pub(crate) fn into_outbox(self) -> Outbox {
        self.outbox
    }
}
