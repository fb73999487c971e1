//! Every record that this process reads: any number of partitions, each from an explicit offset, on one thread.
//!
//! The reader belongs to no group (it names one only because librdkafka wants a name), commits nothing, and never moves a
//! position by itself. It reads `read_committed` and hands records on in batches: one record goes out at once; under load
//! a batch holds up to [`BATCH_RECORDS`] records or [`BATCH_BYTES`]. The channel is bounded; when it is full the reader
//! waits, and librdkafka with it.
//!
//! **Positions.** Offsets of a partition have gaps (compaction, markers), so a record's offset does not tell whether it
//! belongs to the position asked for last. [`ReaderEvent::Positioned`] does: after `add` or `seek` the caller ignores the
//! partition's records until the `Positioned` with that offset has come; every record of the partition after it is from
//! there on, in order and without a gap in the log. After `remove` what still comes is ignored likewise.
//!
//! **Pausing** forgets what was read ahead and reads it again on resume, so nothing is lost or repeated. (It is
//! librdkafka's un-assign and assign, as `seek` is: one mechanism, with a version barrier that drops what is stale.)
//!
//! A position outside the log (trimmed, or past the end that a cut-off leader shows) gives [`ReaderEvent::OutOfRange`], and
//! the partition rests until `seek` or `remove`. A topic that we may not even describe gives nothing at all: whoever adds a
//! partition has asked the probe for its ends before, which fails then.
//!
//! Left out: subscriptions, commits (both [`crate::membership`]), and any judgement of a record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc as commands;
use std::thread;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use crate::failure::KafkaFailure;
use crate::ffi::{ConsumerQueue, Polled, Quiet, Waker};
use crate::record::Record;
use crate::settings::KafkaSettings;
pub use crate::told::ReaderEvent;
use crate::weight::{Weight, weight};

/// Most records in a batch.
pub const BATCH_RECORDS: usize = 1_000;

/// A batch ends after the record with which it reaches this size.
pub const BATCH_BYTES: usize = 1 << 20;

/// The handle of the reading thread.
pub struct Reader {
    commands: commands::Sender<Command>,
    waker: Waker,
    ended: commands::Receiver<()>,
}

enum Command {
    Position(Arc<str>, i32, u64),
    Remove(Arc<str>, i32),
    Pause(Arc<str>, i32),
    Resume(Arc<str>, i32),
    Stop,
}

impl Reader {
    /// Starts the thread. It ends with [`Reader::close`], with the handle, or when nobody receives any more.
    pub fn start(
        settings: &KafkaSettings,
        group: &str,
        events: mpsc::Sender<ReaderEvent>,
    ) -> Result<Self, KafkaFailure> {
        let consumer = BaseConsumer::from_config_and_context(&settings.reader(group)?, Quiet)
            .map_err(|error| KafkaFailure::of("starting the reader", &error))?;
        let queue = ConsumerQueue::of(Arc::new(consumer))
            .ok_or_else(|| KafkaFailure::Fatal("starting the reader: no consumer queue".to_string()))?;
        let waker = queue.waker();
        let (commands, received) = commands::channel();
        let (end, ended) = commands::channel();
        let thread = Thread { queue, commands: received, events, partitions: BTreeMap::new() };
        thread::Builder::new()
            .name("kafka-reader".to_string())
            .spawn(move || {
                thread.run();
                // Nobody waits for it unless the handle is being closed.
                let _ = end.send(());
            })
            .map_err(|error| KafkaFailure::Again(format!("starting the reader's thread: {error}")))?;
        Ok(Self { commands, waker, ended })
    }

    /// Reads these partitions too, each from its offset. One that is read already is positioned anew.
    pub fn add(&self, positions: &[(&str, i32, u64)]) {
        for &(topic, partition, offset) in positions {
            self.send(Command::Position(topic.into(), partition, offset));
        }
        self.waker.wake();
    }

    /// Reads a partition from another offset.
    pub fn seek(&self, topic: &str, partition: i32, offset: u64) {
        self.add(&[(topic, partition, offset)]);
    }

    /// Reads these partitions no more.
    pub fn remove(&self, partitions: &[(&str, i32)]) {
        for &(topic, partition) in partitions {
            self.send(Command::Remove(topic.into(), partition));
        }
        self.waker.wake();
    }

    /// Holds a partition where it is; what is in the channel already still comes.
    pub fn pause(&self, topic: &str, partition: i32) {
        self.send(Command::Pause(topic.into(), partition));
        self.waker.wake();
    }

    /// Reads a paused partition on, with the record after the last one handed out.
    pub fn resume(&self, topic: &str, partition: i32) {
        self.send(Command::Resume(topic.into(), partition));
        self.waker.wake();
    }

    /// Ends the thread and waits for it, at most until `deadline`; says whether it ended. Drop or drain the receiver first:
    /// a reader that waits for room in the channel cannot end. Blocks: not for a tokio worker.
    pub fn close(self, deadline: Duration) -> bool {
        self.send(Command::Stop);
        self.waker.wake();
        !matches!(self.ended.recv_timeout(deadline), Err(commands::RecvTimeoutError::Timeout))
    }

    /// A thread that has ended (nobody received) takes no more commands, which is what its end means.
    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.send(Command::Stop);
        self.waker.wake();
    }
}

/// What the thread owns.
struct Thread {
    queue: ConsumerQueue,
    commands: commands::Receiver<Command>,
    events: mpsc::Sender<ReaderEvent>,
    partitions: BTreeMap<(Arc<str>, i32), Position>,
}

/// Where a partition stands.
struct Position {
    /// The offset after the last record handed out.
    next: u64,
    /// Not to be read now.
    paused: bool,
    /// librdkafka reads it.
    assigned: bool,
}

/// Nobody receives any more, or the handle is gone: the thread ends.
struct Over;

impl Thread {
    fn run(mut self) {
        while self.turn().is_ok() {}
    }

    /// Commands first, then one batch.
    fn turn(&mut self) -> Result<(), Over> {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command)?,
                Err(commands::TryRecvError::Empty) => break,
                Err(commands::TryRecvError::Disconnected) => return Err(Over),
            }
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut polled = self.queue.poll(Duration::from_secs(1));
        loop {
            match polled {
                Polled::Nothing => return self.hand_out(batch),
                Polled::Record(record) => {
                    bytes += record.bytes();
                    batch.push(record);
                    if batch.len() >= BATCH_RECORDS || bytes >= BATCH_BYTES {
                        return self.hand_out(batch);
                    }
                }
                Polled::Failed { partition, code, fatal, reason } => {
                    self.hand_out(batch)?;
                    return self.tell_failure(partition, code, fatal, &reason);
                }
            }
            polled = self.queue.poll(Duration::ZERO);
        }
    }

    fn hand_out(&mut self, batch: Vec<Record>) -> Result<(), Over> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut run: Option<(&Arc<str>, i32, u64)> = None;
        for record in &batch {
            match &mut run {
                Some((topic, partition, last)) if **topic == record.topic && *partition == record.partition => {
                    *last = record.offset;
                }
                _ => {
                    if let Some((topic, partition, last)) = run {
                        advance(&mut self.partitions, topic, partition, last);
                    }
                    run = Some((&record.topic, record.partition, record.offset));
                }
            }
        }
        if let Some((topic, partition, last)) = run {
            advance(&mut self.partitions, topic, partition, last);
        }
        self.tell(ReaderEvent::Records(batch))
    }

    fn obey(&mut self, command: Command) -> Result<(), Over> {
        match command {
            Command::Position(topic, partition, offset) => {
                let key = (topic, partition);
                self.unassign(&key)?;
                let paused = self.partitions.get(&key).is_some_and(|position| position.paused);
                self.partitions.insert(key.clone(), Position { next: offset, paused, assigned: false });
                self.tell(ReaderEvent::Positioned { topic: Arc::clone(&key.0), partition, offset })?;
                self.assign(&key)
            }
            Command::Remove(topic, partition) => {
                let key = (topic, partition);
                self.unassign(&key)?;
                self.partitions.remove(&key);
                Ok(())
            }
            Command::Pause(topic, partition) => {
                let key = (topic, partition);
                self.unassign(&key)?;
                if let Some(position) = self.partitions.get_mut(&key) {
                    position.paused = true;
                }
                Ok(())
            }
            Command::Resume(topic, partition) => {
                let key = (topic, partition);
                if let Some(position) = self.partitions.get_mut(&key) {
                    position.paused = false;
                }
                self.assign(&key)
            }
            Command::Stop => Err(Over),
        }
    }

    /// Lets librdkafka read a partition from its position, unless it is paused, read already, or none of ours.
    fn assign(&mut self, key: &(Arc<str>, i32)) -> Result<(), Over> {
        let Some(position) = self.partitions.get_mut(key) else { return Ok(()) };
        if position.paused || position.assigned {
            return Ok(());
        }
        position.assigned = true;
        let offset = i64::try_from(position.next).unwrap_or(i64::MAX);
        let mut list = TopicPartitionList::with_capacity(1);
        let assigned = list
            .add_partition_offset(&key.0, key.1, Offset::Offset(offset))
            .and_then(|()| self.queue.consumer().incremental_assign(&list));
        match assigned {
            Ok(()) => Ok(()),
            Err(error) => {
                let doing = format!("reading {}/{} from {offset}", key.0, key.1);
                self.tell(ReaderEvent::Failed(KafkaFailure::of(doing, &error)))
            }
        }
    }

    /// After this no record of the partition comes from librdkafka that it had read ahead.
    fn unassign(&mut self, key: &(Arc<str>, i32)) -> Result<(), Over> {
        let Some(position) = self.partitions.get_mut(key) else { return Ok(()) };
        if !position.assigned {
            return Ok(());
        }
        position.assigned = false;
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition(&key.0, key.1);
        match self.queue.consumer().incremental_unassign(&list) {
            Ok(()) => Ok(()),
            Err(error) => {
                let doing = format!("leaving {}/{}", key.0, key.1);
                self.tell(ReaderEvent::Failed(KafkaFailure::of(doing, &error)))
            }
        }
    }

    fn tell_failure(
        &mut self,
        partition: Option<(Arc<str>, i32)>,
        code: RDKafkaErrorCode,
        fatal: bool,
        reason: &str,
    ) -> Result<(), Over> {
        if let Some(key) = &partition {
            let position_is_outside = matches!(
                code,
                RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::LogTruncation
                    | RDKafkaErrorCode::OffsetOutOfRange
            );
            if position_is_outside {
                self.unassign(key)?;
                return self.tell(ReaderEvent::OutOfRange { topic: Arc::clone(&key.0), partition: key.1 });
            }
        }
        if !fatal && weight(code) == Weight::Passing {
            tracing::debug!(%code, reason, "the reader goes on");
            return Ok(());
        }
        let place =
            partition.map_or_else(|| "the logs".to_string(), |(topic, partition)| format!("{topic}/{partition}"));
        self.tell(ReaderEvent::Failed(KafkaFailure::Fatal(format!("reading {place}: {code} ({reason})"))))
    }

    fn tell(&self, event: ReaderEvent) -> Result<(), Over> {
        self.events.blocking_send(event).map_err(|_| Over)
    }
}

fn advance(partitions: &mut BTreeMap<(Arc<str>, i32), Position>, topic: &Arc<str>, partition: i32, last: u64) {
    if let Some(position) = partitions.get_mut(&(Arc::clone(topic), partition)) {
        position.next = last + 1;
    }
}
