//! Requests read back by their names, for what is asked for again: a txid says partition and offset.
//!
//! [`recall`] reads, on a thread of its own, one round at a time. The log's ends are asked for before, so that what has left
//! the topic by age is told from what is late to be seen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use suture_contract::codec::{RequestsRecord, decode_requests_record};
use suture_contract::ids::{LogLetters, Shard};
use suture_contract::messages::Request;
use suture_contract::topic_map::{Topic, retry_group};
use suture_coordinator_core::redrive::Ask;
use suture_topics::blocking;
use suture_topics::failure::KafkaFailure;
use suture_topics::probe::Probe;
use suture_topics::record::Record;
use suture_topics::scan::{ScanFailure, Scanner};
use suture_topics::settings::KafkaSettings;
use tokio::sync::mpsc;
use tracing::warn;

use crate::recall::{MOST_RECALLS, Recalled, recall};

/// How often an end below what is wanted is looked at, and the pause between two such looks.
const LOOKS: u32 = 6;
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// What became of a look-up.
pub(crate) struct Found {
    pub ask: Ask,
    /// With its key and its trace, or why there is none.
    pub request: Result<(Request, Vec<u8>, Option<String>), &'static str>,
}

/// A place in the requests.
type Place = (Shard, u64);

/// The requests topic, by name.
pub(crate) struct Lookup {
    kafka: KafkaSettings,
    probe: Arc<Probe>,
    letters: LogLetters,
    wanted: BTreeMap<Place, Ask>,
    /// What the round that is under way looks for, as far as it is still wanted.
    under_way: BTreeMap<Place, Ask>,
    /// Away while a round is under way.
    scanner: Option<Scanner>,
    rounds: mpsc::UnboundedReceiver<Round>,
    post: mpsc::UnboundedSender<Round>,
    /// Known without a look.
    found: VecDeque<Found>,
}

/// What a round has found. What it does not name is to be looked for again.
struct Round {
    scanner: Scanner,
    found: BTreeMap<Place, Result<Record, &'static str>>,
    failure: Option<KafkaFailure>,
}

impl Lookup {
    /// Opens the client.
    pub(crate) fn start(kafka: &KafkaSettings, probe: &Arc<Probe>, letters: LogLetters) -> Result<Self, KafkaFailure> {
        let (post, rounds) = mpsc::unbounded_channel();
        Ok(Self {
            kafka: kafka.clone(),
            probe: Arc::clone(probe),
            letters,
            wanted: BTreeMap::new(),
            under_way: BTreeMap::new(),
            scanner: Some(Scanner::start(kafka, &retry_group(&kafka.prefix))?),
            rounds,
            post,
            found: VecDeque::new(),
        })
    }

    /// How many are looked for.
    pub(crate) fn len(&self) -> usize {
        self.found.len() + self.wanted.len() + self.under_way.len()
    }

    /// Looks for the request of an aborted transaction.
    pub(crate) fn want(&mut self, ask: Ask) {
        if ask.txid.log != self.letters {
            let request = Err("the requests topic was created again since");
            return self.found.push_back(Found { ask, request });
        }
        self.wanted.insert((ask.txid.shard, ask.txid.offset), ask);
        self.begin();
    }

    /// Forgets what is looked for in a shard.
    pub(crate) fn forget(&mut self, shard: Shard) {
        self.wanted.retain(|(of, _), _| *of != shard);
        self.under_way.retain(|(of, _), _| *of != shard);
    }

    /// What was found next. Nothing is lost when it is dropped while it waits.
    ///
    /// # Errors
    /// What will not pass by itself.
    pub(crate) async fn next(&mut self) -> Result<Vec<Found>, KafkaFailure> {
        if !self.found.is_empty() {
            return Ok(self.found.drain(..).collect());
        }
        let Some(Round { scanner, mut found, failure }) = self.rounds.recv().await else { return Ok(Vec::new()) };
        self.scanner = Some(scanner);
        let mut ended = Vec::new();
        for (place, ask) in std::mem::take(&mut self.under_way) {
            match found.remove(&place) {
                Some(record) => ended.push(Found { ask, request: record.and_then(request_of) }),
                None => drop(self.wanted.insert(place, ask)),
            }
        }
        match failure {
            Some(failure) if failure.is_fatal() => return Err(failure),
            Some(failure) => warn!(%failure, "reading requests back"),
            None => {}
        }
        self.begin();
        Ok(ended)
    }

    /// Begins a round, unless one is under way.
    fn begin(&mut self) {
        if self.wanted.is_empty() {
            return;
        }
        let Some(scanner) = self.scanner.take() else { return };
        self.under_way = (0..MOST_RECALLS).map_while(|_| self.wanted.pop_first()).collect();
        let places = self.under_way.keys().copied().collect();
        let (kafka, probe, post) = (self.kafka.clone(), Arc::clone(&self.probe), self.post.clone());
        blocking::spawn(move || {
            let round = look(&kafka, &probe, scanner, places);
            if round.failure.is_some() {
                blocking::pause(LOOK_PAUSE);
            }
            // The receiver goes away only with the whole service.
            let _ = post.send(round);
        });
    }
}

/// One round. The ends come first: what a scan does not find below an end that was seen before it is not there.
fn look(kafka: &KafkaSettings, probe: &Probe, mut scanner: Scanner, places: BTreeSet<Place>) -> Round {
    let (mut found, mut readable, mut failure) = (BTreeMap::new(), Vec::new(), None);
    let mut by_shard: BTreeMap<Shard, Vec<u64>> = BTreeMap::new();
    for (shard, offset) in places {
        by_shard.entry(shard).or_default().push(offset);
    }
    for (shard, offsets) in by_shard {
        match ends(kafka, probe, shard, offsets.iter().max().copied().unwrap_or_default()) {
            Ok((start, end)) => {
                for place @ (_, offset) in offsets.into_iter().map(|offset| (shard, offset)) {
                    if offset < start {
                        found.insert(place, Err("its request has left the topic by age"));
                    } else if offset >= end {
                        found.insert(place, Err("the requests topic ends before it: records were lost"));
                    } else {
                        readable.push(place);
                    }
                }
            }
            Err(failed) => failure = Some(failed),
        }
    }
    for Recalled { shard, wanted, found: records } in recall(kafka, &mut scanner, readable) {
        match records {
            Ok(records) => {
                found.extend(wanted.into_iter().map(|offset| ((shard, offset), Err("no request stands there"))));
                found.extend(records.into_iter().map(|record| ((shard, record.offset), Ok(record))));
            }
            // Trimmed a moment ago: the next round sees it.
            Err(ScanFailure::OutOfRange(_)) => {}
            Err(ScanFailure::Kafka(failed)) => failure = Some(failed),
        }
    }
    Round { scanner, found, failure }
}

/// A shard's first and next offset. A leader that was cut off shows an old end, so one below what is wanted is looked at again.
fn ends(kafka: &KafkaSettings, probe: &Probe, shard: Shard, wanted: u64) -> Result<(u64, u64), KafkaFailure> {
    let topic = Topic::Requests.name(&kafka.prefix);
    for _ in 1..LOOKS {
        let (start, end) = probe.watermarks(&topic, shard.partition())?;
        if wanted < end {
            return Ok((start, end));
        }
        blocking::pause(LOOK_PAUSE);
    }
    probe.watermarks(&topic, shard.partition())
}

fn request_of(record: Record) -> Result<(Request, Vec<u8>, Option<String>), &'static str> {
    match decode_requests_record(record.value.as_deref().unwrap_or_default()) {
        Ok(RequestsRecord::Request(request)) => Ok((request, record.key.unwrap_or_default(), record.traceparent)),
        Ok(RequestsRecord::Cancel(_)) => Err("a cancellation stands there"),
        Err(_) => Err("its request cannot be read"),
    }
}
