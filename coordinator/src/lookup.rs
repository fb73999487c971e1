//! Requests read back by their names: a txid says partition and offset.
//!
//! In each partition one pass at a time goes upwards through what is wanted; what is wanted below it waits for the next one.
//! Before a pass the log's ends are asked for, so that what has left the topic by age is told from what is late to be seen.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use suture_contract::codec::{RequestsRecord, decode_requests_record};
use suture_contract::ids::{LogLetters, Shard};
use suture_contract::messages::Request;
use suture_contract::topic_map::{Topic, retry_group};
use suture_coordinator_core::redrive::Ask;
use suture_topics::failure::KafkaFailure;
use suture_topics::probe::Probe;
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::record::Record;
use suture_topics::settings::KafkaSettings;
use tokio::sync::mpsc;
use tracing::warn;

/// What lies farther away than this is sought, not read up to.
const FAR: u64 = 1_000;
/// How often an end below what is wanted is looked at, and the pause between two such looks.
const LOOKS: u32 = 6;
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// What became of a look-up.
pub(crate) struct Found {
    pub ask: Ask,
    /// With its key and its trace, or why there is none.
    pub request: Result<(Request, Vec<u8>, Option<String>), &'static str>,
}

/// A partition's first and next offset.
type Ends = Result<(u64, u64), KafkaFailure>;

/// The requests topic, by name.
pub(crate) struct Lookup {
    reader: Reader,
    events: mpsc::Receiver<ReaderEvent>,
    probe: Arc<Probe>,
    topic: String,
    letters: LogLetters,
    ends: mpsc::UnboundedReceiver<(i32, Ends)>,
    post_ends: mpsc::UnboundedSender<(i32, Ends)>,
    passes: BTreeMap<i32, Pass>,
    /// Known without a look.
    found: VecDeque<Found>,
}

/// What is wanted of a partition.
struct Pass {
    wanted: BTreeMap<u64, Ask>,
    looks: u32,
    /// The next offset that counts; `None` while the ends are asked for.
    next: Option<u64>,
    positioned: bool,
}

impl Lookup {
    /// Starts the reader. Blocks: not for a tokio worker.
    pub(crate) fn start(kafka: &KafkaSettings, probe: &Arc<Probe>, letters: LogLetters) -> Result<Self, KafkaFailure> {
        let (post, events) = mpsc::channel(4);
        let (post_ends, ends) = mpsc::unbounded_channel();
        Ok(Self {
            reader: Reader::start(kafka, &retry_group(&kafka.prefix), post)?,
            events,
            probe: Arc::clone(probe),
            topic: Topic::Requests.name(&kafka.prefix),
            letters,
            ends,
            post_ends,
            passes: BTreeMap::new(),
            found: VecDeque::new(),
        })
    }

    /// How many are looked for.
    pub(crate) fn len(&self) -> usize {
        self.found.len() + self.passes.values().map(|pass| pass.wanted.len()).sum::<usize>()
    }

    /// Looks for the request of an aborted transaction.
    pub(crate) fn want(&mut self, ask: Ask) {
        if ask.txid.log != self.letters {
            let request = Err("the requests topic was created again since");
            return self.found.push_back(Found { ask, request });
        }
        let partition = ask.txid.shard.partition();
        let is_new = !self.passes.contains_key(&partition);
        let empty = || Pass { wanted: BTreeMap::new(), looks: 0, next: None, positioned: false };
        self.passes.entry(partition).or_insert_with(empty).wanted.insert(ask.txid.offset, ask);
        if is_new {
            self.ask_for_ends(partition, Duration::ZERO);
        }
    }

    /// Forgets what is looked for in a shard.
    pub(crate) fn forget(&mut self, shard: Shard) {
        if self.passes.remove(&shard.partition()).is_some() {
            self.reader.remove(&[(&self.topic, shard.partition())]);
        }
    }

    /// What was found next. Nothing is lost when it is dropped while it waits.
    ///
    /// # Errors
    /// What will not pass by itself.
    pub(crate) async fn next(&mut self) -> Result<Vec<Found>, KafkaFailure> {
        if !self.found.is_empty() {
            return Ok(self.found.drain(..).collect());
        }
        tokio::select! {
            event = self.events.recv() => match event {
                Some(event) => self.on_reader(event),
                None => Err(KafkaFailure::Fatal("the Kafka client threads ended unexpectedly".to_string())),
            },
            Some((partition, ends)) = self.ends.recv() => self.on_ends(partition, ends),
        }
    }

    /// Ends the reader. Blocks: not for a tokio worker.
    pub(crate) fn close(self, deadline: Duration) {
        drop(self.events);
        self.reader.close(deadline);
    }

    fn ask_for_ends(&self, partition: i32, pause: Duration) {
        let (probe, topic, post) = (Arc::clone(&self.probe), self.topic.clone(), self.post_ends.clone());
        tokio::task::spawn_blocking(move || {
            std::thread::sleep(pause);
            // The receiver goes away only with the whole service.
            let _ = post.send((partition, probe.watermarks(&topic, partition)));
        });
    }

    fn on_ends(&mut self, partition: i32, ends: Ends) -> Result<Vec<Found>, KafkaFailure> {
        let Some(pass) = self.passes.get_mut(&partition) else { return Ok(Vec::new()) };
        let (start, end) = match ends {
            Ok(ends) => ends,
            Err(failure) if failure.is_fatal() => return Err(failure),
            Err(failure) => {
                warn!(%failure, "reading requests back");
                self.ask_for_ends(partition, LOOK_PAUSE);
                return Ok(Vec::new());
            }
        };
        let wanted = pass.wanted.split_off(&start);
        let mut found = gone(std::mem::replace(&mut pass.wanted, wanted), "its request has left the topic by age");
        let is_late = |(offset, _): (&u64, &Ask)| *offset >= end;
        if pass.wanted.first_key_value().is_some_and(is_late) {
            // A leader that was cut off shows an old end.
            pass.looks += 1;
            if pass.looks < LOOKS {
                self.ask_for_ends(partition, LOOK_PAUSE);
                return Ok(found);
            }
            found
                .extend(gone(std::mem::take(&mut pass.wanted), "the requests topic ends before it: records were lost"));
        }
        match pass.wanted.first_key_value() {
            None => drop(self.passes.remove(&partition)),
            Some((first, _)) => {
                (pass.next, pass.positioned, pass.looks) = (Some(*first), false, 0);
                self.reader.seek(&self.topic, partition, *first);
            }
        }
        Ok(found)
    }

    fn on_reader(&mut self, event: ReaderEvent) -> Result<Vec<Found>, KafkaFailure> {
        match event {
            ReaderEvent::Records(records) => return Ok(self.on_records(records)),
            ReaderEvent::Positioned { partition, offset, .. } => {
                if let Some(pass) = self.passes.get_mut(&partition) {
                    pass.positioned |= pass.next == Some(offset);
                }
            }
            ReaderEvent::OutOfRange { partition, .. } => self.begin_again(partition, LOOK_PAUSE),
            ReaderEvent::Failed(failure) if failure.is_fatal() => return Err(failure),
            ReaderEvent::Failed(failure) => warn!(%failure, "reading requests back"),
        }
        Ok(Vec::new())
    }

    fn on_records(&mut self, records: Vec<Record>) -> Vec<Found> {
        let (mut found, mut last) = (Vec::new(), BTreeMap::new());
        for record in records {
            let Some(pass) = self.passes.get_mut(&record.partition) else { continue };
            let Some(next) = pass.next.filter(|next| pass.positioned && record.offset >= *next) else { continue };
            pass.next = Some(record.offset + 1);
            last.insert(record.partition, record.offset);
            let mut above = pass.wanted.split_off(&record.offset);
            let ask = above.remove(&record.offset);
            let below = std::mem::replace(&mut pass.wanted, above);
            // What is wanted below came after the pass had been there; between two records of a log there is none.
            let (later, passed) = below.into_iter().partition(|(offset, _)| *offset < next);
            found.extend(gone(passed, "no request stands there"));
            pass.wanted.extend::<BTreeMap<u64, Ask>>(later);
            if let Some(ask) = ask {
                found.push(Found { ask, request: request_of(record) });
            }
        }
        for (partition, last) in last {
            let next = self.passes.get(&partition).and_then(|pass| pass.wanted.first_key_value());
            match next.map(|(offset, _)| *offset) {
                None => {
                    self.passes.remove(&partition);
                    self.reader.remove(&[(&self.topic, partition)]);
                }
                Some(next) if next > last && next - last <= FAR => {}
                Some(_) => self.begin_again(partition, Duration::ZERO),
            }
        }
        found
    }

    fn begin_again(&mut self, partition: i32, pause: Duration) {
        if let Some(pass) = self.passes.get_mut(&partition)
            && pass.next.take().is_some()
        {
            self.ask_for_ends(partition, pause);
        }
    }
}

fn request_of(record: Record) -> Result<(Request, Vec<u8>, Option<String>), &'static str> {
    match decode_requests_record(record.value.as_deref().unwrap_or_default()) {
        Ok(RequestsRecord::Request(request)) => Ok((request, record.key.unwrap_or_default(), record.traceparent)),
        Ok(RequestsRecord::Cancel(_)) => Err("a cancellation stands there"),
        Err(_) => Err("its request cannot be read"),
    }
}

fn gone(asks: BTreeMap<u64, Ask>, why: &'static str) -> Vec<Found> {
    asks.into_values().map(|ask| Found { ask, request: Err(why) }).collect()
}
