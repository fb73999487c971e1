//! The few calls of librdkafka that rdkafka does not wrap, and all of this crate's `unsafe`:
//!
//! - [`ConsumerQueue`]: polling a consumer so that another thread can wake it, and so that an error says which partition
//!   it is about (rdkafka's own `poll` can do neither);
//! - [`list_entries`]: offset metadata as bytes (rdkafka panics on what is not UTF-8);
//! - [`describe_topic_ids`]: topic ids;
//! - [`MockCluster`]: the embedded broker with its group delay.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::client::Client;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::{RDKafkaRespErr, RDKafkaType};
use rdkafka::{ClientConfig, ClientContext, TopicPartitionList};
use suture_contract::remark::{self, Remark};

use crate::record::Record;

/// The context of clients whose errors come back from the calls themselves.
pub(crate) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "client error");
    }
}

impl ConsumerContext for Quiet {}

/// librdkafka's log lines. It calls every lost connection an error; ours are told where they matter.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: "librdkafka", facility, message);
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, message),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
            tracing::debug!(target: "librdkafka", facility, message);
        }
    }
}

/// A consumer's queue of records and errors. Lives on one thread.
pub(crate) struct ConsumerQueue {
    queue: NonNull<native::rd_kafka_queue_t>,
    waker: Waker,
    topics: BTreeMap<Box<[u8]>, Arc<str>>,
    /// The queue must go before its consumer does: see `Drop`.
    consumer: Arc<BaseConsumer<Quiet>>,
}

/// Ends a running [`ConsumerQueue::poll`] early, or the next one. Harmless after the queue is gone.
#[derive(Clone)]
pub(crate) struct Waker(Arc<Mutex<Option<QueuePointer>>>);

struct QueuePointer(NonNull<native::rd_kafka_queue_t>);

// SAFETY: rd_kafka_queue_yield and rd_kafka_queue_poll lock the queue themselves; librdkafka's handles may be used from
// any thread.
unsafe impl Send for QueuePointer {}

// SAFETY: as above; `ConsumerQueue` is moved to its thread once and not shared (it is not `Sync`).
unsafe impl Send for ConsumerQueue {}

/// What a poll brings.
pub(crate) enum Polled {
    /// The time is over, or somebody woke us.
    Nothing,
    /// A record.
    Record(Record),
    /// An error, of one partition if it names one.
    Failed { partition: Option<(Arc<str>, i32)>, code: RDKafkaErrorCode, fatal: bool, reason: String },
}

impl ConsumerQueue {
    /// `None` if librdkafka has no consumer queue for it: a consumer without a group.
    pub(crate) fn of(consumer: Arc<BaseConsumer<Quiet>>) -> Option<Self> {
        // SAFETY: the client lives as long as `consumer`, which is kept here.
        let queue = unsafe { native::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        let queue = NonNull::new(queue)?;
        let waker = Waker(Arc::new(Mutex::new(Some(QueuePointer(queue)))));
        Some(Self { queue, waker, topics: BTreeMap::new(), consumer })
    }

    pub(crate) fn consumer(&self) -> &BaseConsumer<Quiet> {
        &self.consumer
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The next record or error; waits for at most `longest`.
    pub(crate) fn poll(&mut self, longest: Duration) -> Polled {
        let milliseconds = c_int::try_from(longest.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the queue is ours until `drop`.
        let event = unsafe { native::rd_kafka_queue_poll(self.queue.as_ptr(), milliseconds) };
        let Some(event) = Event::of(event) else { return Polled::Nothing };
        // SAFETY: each accessor is called for the event types that it is documented for; what they return is owned by
        // the event, lives as long as it, and is copied before it ends.
        unsafe {
            match native::rd_kafka_event_type(event.0.as_ptr()) {
                native::RD_KAFKA_EVENT_FETCH => match native::rd_kafka_event_message_next(event.0.as_ptr()).as_ref() {
                    Some(message) => self.record_of(message),
                    None => Polled::Nothing,
                },
                native::RD_KAFKA_EVENT_ERROR => self.failure_of(&event),
                native::RD_KAFKA_EVENT_LOG => {
                    event.log();
                    Polled::Nothing
                }
                _ => Polled::Nothing,
            }
        }
    }

    /// # Safety
    /// `message` belongs to a live FETCH event.
    unsafe fn record_of(&mut self, message: &native::rd_kafka_message_t) -> Polled {
        // SAFETY: by the caller; the topic handle lives as long as the message, names are NUL-terminated.
        unsafe {
            let topic = CStr::from_ptr(native::rd_kafka_topic_name(message.rkt));
            let topic = self.interned(topic);
            let code = RDKafkaErrorCode::from(message.err);
            let offset = u64::try_from(message.offset);
            let (RDKafkaErrorCode::NoError, Ok(offset)) = (code, offset) else {
                let partition = Some((topic, message.partition));
                return Polled::Failed { partition, code, fatal: false, reason: code.to_string() };
            };
            let mut kind = native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
            let timestamp = native::rd_kafka_message_timestamp(message, &mut kind);
            let headers = Headers::of(message);
            Polled::Record(Record {
                topic,
                partition: message.partition,
                offset,
                timestamp_ms: (timestamp >= 0).then_some(timestamp),
                key: bytes(message.key, message.key_len),
                value: bytes(message.payload, message.len),
                traceparent: headers.as_ref().and_then(Headers::traceparent),
                remark: headers.as_ref().and_then(Headers::remark).map(Box::new),
            })
        }
    }

    /// # Safety
    /// `event` is an ERROR event.
    unsafe fn failure_of(&mut self, event: &Event) -> Polled {
        // SAFETY: by the caller; the topic partition is ours and freed here.
        unsafe {
            let raw = event.0.as_ptr();
            let code = RDKafkaErrorCode::from(native::rd_kafka_event_error(raw));
            let fatal = native::rd_kafka_event_error_is_fatal(raw) != 0;
            let reason = text(native::rd_kafka_event_error_string(raw));
            let named = native::rd_kafka_event_topic_partition(raw);
            let partition = named.as_ref().map(|p| (self.interned(CStr::from_ptr(p.topic)), p.partition));
            if !named.is_null() {
                native::rd_kafka_topic_partition_destroy(named);
            }
            Polled::Failed { partition, code, fatal, reason }
        }
    }

    fn interned(&mut self, topic: &CStr) -> Arc<str> {
        if let Some(known) = self.topics.get(topic.to_bytes()) {
            return Arc::clone(known);
        }
        let name: Arc<str> = topic.to_string_lossy().into();
        self.topics.insert(topic.to_bytes().into(), Arc::clone(&name));
        name
    }
}

impl Drop for ConsumerQueue {
    fn drop(&mut self) {
        let mut pointer = self.waker.0.lock().unwrap_or_else(PoisonError::into_inner);
        *pointer = None;
        // SAFETY: the queue came from rd_kafka_queue_get_consumer, no waker has it any more, and the consumer still lives.
        unsafe { native::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

impl Waker {
    pub(crate) fn wake(&self) {
        let pointer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(QueuePointer(queue)) = &*pointer {
            // SAFETY: the queue lives as long as the pointer stands here, and the lock is held.
            unsafe { native::rd_kafka_queue_yield(queue.as_ptr()) };
        }
    }
}

/// An event that is destroyed when it goes.
struct Event(NonNull<native::rd_kafka_event_t>);

impl Event {
    fn of(raw: *mut native::rd_kafka_event_t) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// # Safety
    /// It is a LOG event.
    unsafe fn log(&self) {
        let (mut facility, mut message, mut level): (*const c_char, *const c_char, c_int) =
            (ptr::null(), ptr::null(), 0);
        // SAFETY: by the caller; the texts live as long as the event.
        unsafe {
            if native::rd_kafka_event_log(self.0.as_ptr(), &mut facility, &mut message, &mut level) == 0 {
                let level = match level {
                    ..=2 => RDKafkaLogLevel::Critical,
                    3..=4 => RDKafkaLogLevel::Warning,
                    _ => RDKafkaLogLevel::Debug,
                };
                log(level, &text(facility), &text(message));
            }
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: events are ours once polled.
        unsafe { native::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

/// # Safety
/// `text` is null or NUL-terminated.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_string()
}

/// # Safety
/// `start` is null or the start of `length` readable bytes.
unsafe fn bytes(start: *const c_void, length: usize) -> Option<Vec<u8>> {
    // SAFETY: by the caller.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) }.to_vec())
}

/// The headers of a message.
struct Headers<'m>(NonNull<native::rd_kafka_headers_t>, PhantomData<&'m native::rd_kafka_message_t>);

impl<'m> Headers<'m> {
    /// # Safety
    /// `message` came from librdkafka.
    unsafe fn of(message: &'m native::rd_kafka_message_t) -> Option<Self> {
        let mut headers = ptr::null_mut();
        // SAFETY: by the caller; headers belong to the message, and this value does not outlive it.
        let code = unsafe { native::rd_kafka_message_headers(message, &mut headers) };
        let headers = NonNull::new(headers).filter(|_| code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR)?;
        Some(Self(headers, PhantomData))
    }

    /// The last value of a name.
    fn last(&self, name: &CStr) -> Option<Vec<u8>> {
        let (mut value, mut length) = (ptr::null(), 0);
        // SAFETY: the headers are alive, and their values as long as they.
        unsafe {
            let code = native::rd_kafka_header_get_last(self.0.as_ptr(), name.as_ptr(), &mut value, &mut length);
            if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR { bytes(value, length) } else { None }
        }
    }

    fn traceparent(&self) -> Option<String> {
        let text = String::from_utf8(self.last(c"traceparent")?).ok()?;
        (text.len() <= 128 && text.bytes().all(|b| b.is_ascii_graphic())).then_some(text)
    }

    fn remark(&self) -> Option<Remark> {
        let [retry_of, who, because] = remark::NAMES;
        // Nearly no record has one.
        let retry_of = self.last(retry_of)?;
        let (who, because) = (self.last(who), self.last(because));
        Remark::of_headers([Some(&retry_of), who.as_deref(), because.as_deref()])
    }
}

/// One line of a list of partitions.
pub(crate) struct ListEntry {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) metadata: String,
    pub(crate) code: RDKafkaErrorCode,
}

/// What a list of partitions says. Metadata that is not UTF-8 is nobody's of ours; what cannot be read in it is replaced.
pub(crate) fn list_entries(list: &TopicPartitionList) -> Vec<ListEntry> {
    // SAFETY: the list is alive; `elems` points at `cnt` entries, whose topics are NUL-terminated and whose metadata is
    // null or `metadata_size` bytes.
    unsafe {
        let raw = &*list.ptr();
        let Ok(count) = usize::try_from(raw.cnt) else { return Vec::new() };
        if count == 0 {
            return Vec::new();
        }
        let entries = std::slice::from_raw_parts(raw.elems, count);
        let entry = |entry: &native::rd_kafka_topic_partition_t| ListEntry {
            topic: CStr::from_ptr(entry.topic).to_string_lossy().into_owned(),
            partition: entry.partition,
            offset: entry.offset,
            metadata: bytes(entry.metadata, entry.metadata_size)
                .map(|metadata| String::from_utf8_lossy(&metadata).into_owned())
                .unwrap_or_default(),
            code: RDKafkaErrorCode::from(entry.err),
        };
        entries.iter().map(entry).collect()
    }
}

/// What [`describe_topic_ids`] tells.
pub(crate) type TopicIds = BTreeMap<String, Result<[u8; 16], RDKafkaErrorCode>>;

/// Topic ids (KIP-516) by name, zeroes from a broker without ids; or why a topic has none.
pub(crate) fn describe_topic_ids<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    longest: Duration,
) -> Result<TopicIds, String> {
    let names: Vec<CString> =
        topics.iter().map(|name| CString::new(*name)).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let milliseconds = c_int::try_from(longest.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: the client outlives the call; queue, options and collection are made and destroyed here; names are copied
    // by librdkafka; everything read from the event is copied before the event ends.
    unsafe {
        let rk = client.native_ptr();
        let queue = native::rd_kafka_queue_new(rk);
        let options =
            native::rd_kafka_AdminOptions_new(rk, native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let mut error_text = [0 as c_char; 256];
        native::rd_kafka_AdminOptions_set_request_timeout(
            options,
            milliseconds,
            error_text.as_mut_ptr(),
            error_text.len(),
        );
        let collection = native::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        native::rd_kafka_DescribeTopics(rk, collection, options, queue);
        let event = Event::of(native::rd_kafka_queue_poll(queue, milliseconds.saturating_add(1_000)));
        let result = event.as_ref().map_or(Err("no answer".to_string()), |event| topic_ids_of(event));
        drop(event);
        native::rd_kafka_TopicCollection_destroy(collection);
        native::rd_kafka_AdminOptions_destroy(options);
        native::rd_kafka_queue_destroy(queue);
        result
    }
}

/// # Safety
/// `event` answers a DescribeTopics.
unsafe fn topic_ids_of(event: &Event) -> Result<TopicIds, String> {
    // SAFETY: by the caller; the result is the event under another name, and owns what is read from it.
    unsafe {
        let raw = event.0.as_ptr();
        if native::rd_kafka_event_error(raw) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(text(native::rd_kafka_event_error_string(raw)));
        }
        let result = native::rd_kafka_event_DescribeTopics_result(raw);
        if result.is_null() {
            return Err("another kind of answer".to_string());
        }
        let mut count = 0;
        let descriptions = native::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        let mut ids = BTreeMap::new();
        for i in 0..count {
            let description = *descriptions.add(i);
            let name = text(native::rd_kafka_TopicDescription_name(description));
            let error = native::rd_kafka_TopicDescription_error(description);
            let code = RDKafkaErrorCode::from(native::rd_kafka_error_code(error));
            if code != RDKafkaErrorCode::NoError {
                ids.insert(name, Err(code));
                continue;
            }
            let mut bytes = [0; 16];
            if let Some(id) = native::rd_kafka_TopicDescription_topic_id(description).as_ref() {
                bytes[..8].copy_from_slice(&native::rd_kafka_Uuid_most_significant_bits(id).to_be_bytes());
                bytes[8..].copy_from_slice(&native::rd_kafka_Uuid_least_significant_bits(id).to_be_bytes());
            }
            ids.insert(name, Ok(bytes));
        }
        Ok(ids)
    }
}

/// librdkafka's mock cluster with one broker. Neither `Send` nor `Sync`: it lives and ends on one thread.
pub(crate) struct MockCluster {
    cluster: NonNull<native::rd_kafka_mock_cluster_t>,
    /// The cluster must go before its client does: see `Drop`.
    _client: Client<Quiet>,
}

impl MockCluster {
    pub(crate) fn start() -> Result<Self, KafkaError> {
        let mut config = ClientConfig::new();
        config.set("client.id", "suture-embedded").set_log_level(RDKafkaLogLevel::Error);
        let client = Client::new(&config, config.create_native_config()?, RDKafkaType::RD_KAFKA_PRODUCER, Quiet)?;
        // SAFETY: the client outlives the cluster, see `Drop`. Without a delay the first member joins in 2 ms and not 3 s.
        let cluster = unsafe {
            let cluster = NonNull::new(native::rd_kafka_mock_cluster_new(client.native_ptr(), 1))
                .ok_or_else(|| KafkaError::ClientCreation("the mock cluster cannot open its sockets".to_string()))?;
            native::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster.as_ptr(), 0);
            cluster
        };
        Ok(Self { cluster, _client: client })
    }

    pub(crate) fn bootstrap(&self) -> String {
        // SAFETY: the text belongs to the cluster, which is alive.
        unsafe { text(native::rd_kafka_mock_cluster_bootstraps(self.cluster.as_ptr())) }
    }

    pub(crate) fn create_topic(&self, name: &str, partitions: u16) -> Result<(), RDKafkaErrorCode> {
        let name = CString::new(name).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
        // SAFETY: the cluster is alive; the name is copied.
        let code = unsafe {
            native::rd_kafka_mock_topic_create(self.cluster.as_ptr(), name.as_ptr(), c_int::from(partitions), 1)
        };
        match RDKafkaErrorCode::from(code) {
            RDKafkaErrorCode::NoError => Ok(()),
            code => Err(code),
        }
    }
}

impl Drop for MockCluster {
    fn drop(&mut self) {
        // SAFETY: made by rd_kafka_mock_cluster_new, destroyed once, before the client's own drop.
        unsafe { native::rd_kafka_mock_cluster_destroy(self.cluster.as_ptr()) };
    }
}
