//! Appends: see [`crate::simulated`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use suture_contract::remark::Remark;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{Cluster, Message, is_killing};
use crate::failure::KafkaFailure;
use crate::settings::KafkaSettings;
pub use crate::told::{Delivery, Failure, Full};

/// Appends records and reports what became of them.
pub struct Outbox {
    shared: Arc<Shared>,
    /// Where each partition's appends queue up.
    lanes: Mutex<BTreeMap<(String, i32), mpsc::UnboundedSender<Append>>>,
}

struct Shared {
    cluster: Cluster,
    on_delivery: Box<dyn Fn(Delivery) + Send + Sync>,
    is_killed: AtomicBool,
    in_flight: AtomicUsize,
}

/// One append, and how it will go.
struct Append {
    message: Message,
    token: u64,
    lands: Option<Instant>,
    /// `None`: as soon as it can be known.
    fails: Option<Instant>,
}

impl Outbox {
    /// Starts the producer.
    pub fn start(
        _: &KafkaSettings,
        _: &str,
        on_delivery: impl Fn(Delivery) + Send + Sync + 'static,
    ) -> Result<Self, KafkaFailure> {
        let shared = Shared {
            cluster: Cluster::current(),
            on_delivery: Box::new(on_delivery),
            is_killed: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
        };
        Ok(Self { shared: Arc::new(shared), lanes: Mutex::default() })
    }

    /// Hands one record over.
    #[expect(clippy::too_many_arguments, reason = "a record has this many parts, and each call names them all")]
    pub fn append(
        &self,
        topic: &str,
        partition: i32,
        key: &[u8],
        value: Option<&[u8]>,
        kind: &'static str,
        traceparent: Option<&str>,
        token: u64,
    ) -> Result<(), Full> {
        self.append_remarked(topic, partition, key, value, kind, traceparent, None, token)
    }

    /// The same, with a remark in the headers.
    #[expect(clippy::too_many_arguments, reason = "a record has this many parts, and each call names them all")]
    pub fn append_remarked(
        &self,
        topic: &str,
        partition: i32,
        key: &[u8],
        value: Option<&[u8]>,
        _: &'static str,
        traceparent: Option<&str>,
        remark: Option<&Remark>,
        token: u64,
    ) -> Result<(), Full> {
        let remark = remark.cloned().map(Box::new);
        let traceparent = traceparent.map(str::to_string);
        let message = Message { traceparent, remark, ..Message::new(key, value) };
        let append = self.shared.fate(topic, partition, message, token);
        self.shared.in_flight.fetch_add(1, Ordering::AcqRel);
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.entry((topic.to_string(), partition)).or_insert_with(|| {
            let (lane, appends) = mpsc::unbounded_channel();
            tokio::spawn(serve(Arc::clone(&self.shared), topic.to_string(), partition, appends));
            lane
        });
        // It lives as long as we do.
        let _ = lane.send(append);
        Ok(())
    }

    /// How many appends have not been reported yet.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// Ends the producer.
    pub fn close(self, _: Duration) -> Result<(), usize> {
        match self.in_flight() {
            0 => Ok(()),
            left => Err(left),
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.shared.is_killed.store(is_killing(), Ordering::Release);
    }
}

impl Shared {
    fn fate(&self, topic: &str, partition: i32, message: Message, token: u64) -> Append {
        let mut state = self.cluster.lock();
        let (luck, now) = (state.luck, Instant::now());
        let lands = now + state.delay();
        let whom = || (topic, partition, Some(&*message.key));
        let (lands, fails) = if state.strikes("lost_answer", luck.lost_answer, whom()) {
            (Some(lands), Some(lands + state.between(100, 10_000)))
        } else if state.strikes("lost_append", luck.lost_append, whom()) {
            (None, Some(now + state.between(100, 10_000)))
        } else if state.strikes("late_append", luck.late_append, whom()) {
            let fails = now + state.between(100, 10_000);
            (Some(fails + state.between(1, 60_000)), Some(fails))
        } else {
            (Some(lands), None)
        };
        Append { message, token, lands, fails }
    }

    fn report(&self, token: u64, result: Result<u64, Failure>) {
        if !self.is_killed.load(Ordering::Acquire) {
            (self.on_delivery)(Delivery { token, result });
        }
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }

    /// What a killed process had handed over may have left it before.
    fn has_left(&self) -> bool {
        !self.is_killed.load(Ordering::Acquire) || self.cluster.lock().draw(2) == 0
    }

    fn land(&self, topic: &str, partition: i32, message: Message) -> Result<u64, Failure> {
        let landed = self.cluster.lock().append(topic, partition, message);
        landed.ok_or_else(|| Failure::Denied(format!("there is no {topic}/{partition}")))
    }
}

/// The appends of one partition, in order; one that is given up keeps nobody back.
async fn serve(shared: Arc<Shared>, topic: String, partition: i32, mut appends: mpsc::UnboundedReceiver<Append>) {
    while let Some(Append { message, token, lands, fails }) = appends.recv().await {
        let given_up = || Failure::Again("no answer in time".to_string());
        match (lands, fails) {
            (Some(lands), None) => {
                sleep_until(lands).await;
                if !shared.has_left() {
                    continue;
                }
                let result = shared.land(&topic, partition, message);
                let (shared, back) = (Arc::clone(&shared), shared.cluster.lock().delay());
                tokio::spawn(async move {
                    tokio::time::sleep(back).await;
                    shared.report(token, result);
                });
            }
            (lands, Some(fails)) => {
                let (shared, topic) = (Arc::clone(&shared), topic.clone());
                tokio::spawn(async move {
                    let mut message = Some(message);
                    let mut is_reported = false;
                    while message.is_some() || !is_reported {
                        let next = lands.filter(|lands| message.is_some() && (is_reported || *lands <= fails));
                        sleep_until(next.unwrap_or(fails)).await;
                        match next {
                            Some(_) => {
                                if let Some(message) = message.take().filter(|_| shared.has_left()) {
                                    let _ = shared.land(&topic, partition, message);
                                }
                            }
                            None => {
                                shared.report(token, Err(given_up()));
                                is_reported = true;
                                if lands.is_none() {
                                    message = None;
                                }
                            }
                        }
                    }
                });
            }
            (None, None) => {}
        }
    }
}
