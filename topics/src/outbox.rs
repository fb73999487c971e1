//! Every append of this process: one idempotent producer, `acks=all`, no lingering.
//!
//! An append is handed over at once and reports later, with its token, through the callback. Nothing waits for a report
//! in the path of a message: a report moves the watermark of what is known to be in the log, and nothing else. A record
//! whose report is an error may still have been written; appending it again is harmless, for every reader takes the first
//! of equals.
//!
//! | report | what the caller does |
//! |---|---|
//! | `Ok(offset)` | it is on all in-sync replicas, there |
//! | [`Failure::Again`] | the same append again |
//! | [`Failure::Refused`] | this record can never be written: say so, do not repeat |
//! | [`Failure::Denied`] | nothing can be written to this topic |
//! | [`Failure::Fatal`] | this producer writes nothing any more: the process ends |
//!
//! A write that one topic's ACL denies is `Denied`, and the others go on. An idempotent producer that may write nowhere
//! fails as a whole and purges its queue; the purged records come back as `Fatal` with the first cause.
//!
//! Left out: waiting for one append (`flush` sleeps in steps of 100 ms), partitioning (the shard is always given), and
//! rdkafka's `ThreadedProducer` (its callbacks cannot ask the producer for the cause of its failure).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientContext, Message};
use suture_contract::codec;
use suture_contract::remark::Remark;

use crate::failure::KafkaFailure;
use crate::ffi;
use crate::settings::KafkaSettings;
pub use crate::told::{Delivery, Failure, Full};
use crate::weight::{Weight, weight};

/// How long the reporting thread waits for a report: ending the producer takes up to this.
const POLL: Duration = Duration::from_millis(100);

/// Appends records and reports what became of them.
pub struct Outbox {
    producer: Arc<BaseProducer<Reports>>,
    flight: Arc<Flight>,
    version: String,
    thread: Option<JoinHandle<()>>,
}

impl Outbox {
    /// Starts the producer. `on_delivery` runs on the producer's thread, in the order of the reports, and must not block;
    /// for a record that is refused at once it runs inside [`Outbox::append`].
    pub fn start(
        settings: &KafkaSettings,
        client_id: &str,
        on_delivery: impl Fn(Delivery) + Send + Sync + 'static,
    ) -> Result<Self, KafkaFailure> {
        let flight = Arc::new(Flight::default());
        let reports =
            Reports { flight: Arc::clone(&flight), on_delivery: Box::new(on_delivery), producer: OnceLock::new() };
        let producer = BaseProducer::from_config_and_context(&settings.producer(client_id)?, reports)
            .map_err(|error| KafkaFailure::of("starting the producer", &error))?;
        let producer = Arc::new(producer);
        producer.context().producer.get_or_init(|| Arc::downgrade(&producer));
        let thread = {
            let (producer, flight) = (Arc::clone(&producer), Arc::clone(&flight));
            let reporting = move || {
                while !flight.over.load(Ordering::Acquire) {
                    producer.poll(POLL);
                }
            };
            thread::Builder::new()
                .name("kafka-reports".to_string())
                .spawn(reporting)
                .map_err(|error| KafkaFailure::Again(format!("starting the producer's thread: {error}")))?
        };
        Ok(Self { producer, flight, version: codec::VERSION.to_string(), thread: Some(thread) })
    }

    /// Hands one record over. `kind` is the message's type, repeated in the header `type`; a `value` of `None` is a
    /// tombstone.
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
        kind: &'static str,
        traceparent: Option<&str>,
        remark: Option<&Remark>,
        token: u64,
    ) -> Result<(), Full> {
        let mut headers = OwnedHeaders::new_with_capacity(6)
            .insert(Header { key: "type", value: Some(kind) })
            .insert(Header { key: "v", value: Some(&self.version) });
        if let Some(traceparent) = traceparent {
            headers = headers.insert(Header { key: "traceparent", value: Some(traceparent) });
        }
        for (key, value) in remark.into_iter().flat_map(Remark::headers) {
            headers = headers.insert(Header { key, value: Some(&value) });
        }
        let mut record =
            BaseRecord::with_opaque_to(topic, Box::new(token)).partition(partition).key(key).headers(headers);
        if let Some(value) = value {
            record = record.payload(value);
        }
        self.flight.takes_off();
        match self.producer.send(record) {
            Ok(()) => Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                self.flight.lands();
                Err(Full)
            }
            Err((error, _)) => {
                self.producer.context().report(token, Err(&error));
                Ok(())
            }
        }
    }

    /// How many appends have not been reported yet.
    pub fn in_flight(&self) -> usize {
        self.flight.count.load(Ordering::Acquire)
    }

    /// Waits for all reports, at most until `deadline`, and ends the producer. What is still in flight then is reported as
    /// [`Failure::Again`], and counted in the error. Blocks: not for a tokio worker.
    pub fn close(self, deadline: Duration) -> Result<(), usize> {
        let left = self.flight.wait_until_landed(deadline);
        if left == 0 { Ok(()) } else { Err(left) }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.flight.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reports appends panicked");
        }
        // The producer goes now, on this thread, and reports what it purges.
    }
}

/// The producer's context: turns librdkafka's reports into ours.
struct Reports {
    flight: Arc<Flight>,
    on_delivery: Box<dyn Fn(Delivery) + Send + Sync>,
    /// Itself, for the cause of its failure. Gone while it purges at its end.
    producer: OnceLock<Weak<BaseProducer<Reports>>>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        ffi::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "producer error");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, token: Box<u64>) {
        let result = match result {
            Ok(record) => Ok(u64::try_from(record.offset()).unwrap_or_default()),
            Err((error, _)) => Err(error),
        };
        self.report(*token, result);
    }
}

impl Reports {
    /// The report goes out before the count goes down, so that nothing is unreported when nothing is in flight.
    fn report(&self, token: u64, result: Result<u64, &KafkaError>) {
        (self.on_delivery)(Delivery { token, result: result.map_err(|error| self.failure(error)) });
        self.flight.lands();
    }

    fn failure(&self, error: &KafkaError) -> Failure {
        use RDKafkaErrorCode as Code;
        let Some(code) = error.rdkafka_error_code() else { return Failure::Refused(error.to_string()) };
        match code {
            Code::PurgeQueue | Code::PurgeInflight if self.flight.over.load(Ordering::Acquire) => {
                Failure::Again("the outbox closed before the report came".to_string())
            }
            Code::PurgeQueue | Code::PurgeInflight | Code::Fatal => Failure::Fatal(self.cause(code)),
            Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            // Said by the record's own arguments when it is handed over: no fault of the producer's.
            | Code::InvalidArgument => Failure::Refused(code.to_string()),
            _ => match weight(code) {
                Weight::Topic => Failure::Denied(code.to_string()),
                Weight::Client => Failure::Fatal(code.to_string()),
                Weight::Passing => Failure::Again(code.to_string()),
            },
        }
    }

    fn cause(&self, code: RDKafkaErrorCode) -> String {
        let producer = self.producer.get().and_then(Weak::upgrade);
        match producer.and_then(|producer| producer.client().fatal_error()) {
            Some((first, reason)) => format!("{first}: {reason}"),
            None => code.to_string(),
        }
    }
}

/// What is out.
#[derive(Default)]
struct Flight {
    count: AtomicUsize,
    /// The outbox is closing: nobody polls any more.
    over: AtomicBool,
    /// Held by nobody for long; it only makes `landed` work.
    lock: Mutex<()>,
    landed: Condvar,
}

impl Flight {
    fn takes_off(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    fn lands(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.landed.notify_all();
        }
    }

    /// Returns how many are still out.
    fn wait_until_landed(&self, deadline: Duration) -> usize {
        let held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.landed.wait_timeout_while(held, deadline, |()| self.count.load(Ordering::Acquire) > 0);
        drop(waited);
        self.count.load(Ordering::Acquire)
    }
}
