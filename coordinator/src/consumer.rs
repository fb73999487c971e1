//! Topics read as a member of a group: which partitions are ours, and from where each is read.
//!
//! ```text
//!   Membership -- assigned --> look up the committed offset, the log's start and end --> Reader from there
//! ```
//!
//! Where reading starts is the group's committed offset, and without one the log's start. The letters of the topic stand
//! beside each committed offset, so that offsets of a topic that was deleted and created again are not believed.
//!
//! How far everything is done is the caller's to know ([`Consumer::commit`]). After a crash what was not done is read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use suture_contract::ids::LogLetters;
use suture_topics::blocking;
use suture_topics::failure::KafkaFailure;
use suture_topics::membership::{Commit, CommitError, Committing, MemberEvent, Membership};
use suture_topics::probe::Probe;
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::record::Record;
use suture_topics::settings::KafkaSettings;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::clients::{self, answered};

/// A failed look-up waits this long before the next one.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How often an end below the committed offset is looked at again, and the pause between two such looks.
const LOOKS: u32 = 6;
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Topic and partition.
pub(crate) type Place = (String, i32);

/// What came of one event.
pub(crate) enum Happened {
    /// These partitions are ours now, and are read.
    Begun { place: Place, start: u64, end: u64 },
    /// Records of partitions that are ours, each in order, from its start.
    Records(Vec<Record>),
    /// Not ours any more, or to be begun anew.
    Left(Place),
    /// Some are about to go to others: it is the time to commit.
    Revoked,
}

/// A member of a group, and its reader.
pub(crate) struct Consumer {
    reader: Reader,
    membership: Arc<Membership>,
    probe: Arc<Probe>,
    reader_events: mpsc::Receiver<ReaderEvent>,
    member_events: mpsc::Receiver<MemberEvent>,
    starts: mpsc::UnboundedReceiver<(Place, Start)>,
    post_start: mpsc::UnboundedSender<(Place, Start)>,
    starting: BTreeSet<Place>,
    partitions: BTreeMap<Place, Partition>,
    committing: Option<Committing>,
}

/// One partition that is ours.
struct Partition {
    letters: LogLetters,
    next: u64,
    /// The reader has begun at the offset it was told; records until then are older ones.
    positioned: bool,
    paused: bool,
    committed: Option<u64>,
}

/// Where reading of a partition starts.
struct Beginning {
    offset: u64,
    end: u64,
    /// Of the topic that there is now.
    letters: LogLetters,
    /// What happened to the records before it, if it is worth an error.
    remark: Option<&'static str>,
}

type Start = Result<Beginning, KafkaFailure>;

enum Event {
    Reader(ReaderEvent),
    Member(MemberEvent),
    Start(Place, Start),
    Committed(Result<(), CommitError>),
}

impl Consumer {
    /// Joins the group. Blocks: not for a tokio worker.
    pub(crate) fn start(
        kafka: &KafkaSettings,
        probe: &Arc<Probe>,
        group: &str,
        topics: &[String],
    ) -> Result<Self, KafkaFailure> {
        let (post_reader, reader_events) = mpsc::channel(16);
        let (post_member, member_events) = mpsc::channel(16);
        let (post_start, starts) = mpsc::unbounded_channel();
        Ok(Self {
            reader: Reader::start(kafka, group, post_reader)?,
            membership: Arc::new(Membership::start(kafka, group, topics, post_member)?),
            probe: Arc::clone(probe),
            reader_events,
            member_events,
            starts,
            post_start,
            starting: BTreeSet::new(),
            partitions: BTreeMap::new(),
            committing: None,
        })
    }

    /// What happens next. Without `room` no records come. Nothing is lost when it is dropped while it waits.
    ///
    /// # Errors
    /// What will not pass by itself.
    pub(crate) async fn next(&mut self, room: bool) -> Result<Vec<Happened>, KafkaFailure> {
        let gone = || KafkaFailure::Fatal("the Kafka client threads ended unexpectedly".to_string());
        let event = tokio::select! {
            event = self.reader_events.recv(), if room => Event::Reader(event.ok_or_else(gone)?),
            event = self.member_events.recv() => Event::Member(event.ok_or_else(gone)?),
            Some((place, start)) = self.starts.recv() => Event::Start(place, start),
            answer = answered(&mut self.committing) => Event::Committed(answer),
        };
        match event {
            Event::Reader(event) => self.on_reader(event),
            Event::Member(event) => self.on_member(event),
            Event::Start(place, start) => self.on_start(place, start),
            Event::Committed(answer) => {
                self.committing = None;
                if let Err(failure) = answer {
                    self.on_uncommitted(&failure);
                }
                Ok(Vec::new())
            }
        }
    }

    /// The partitions that are read, and the next offset of each.
    pub(crate) fn read(&self) -> Vec<(Place, u64)> {
        self.partitions.iter().map(|(place, partition)| (place.clone(), partition.next)).collect()
    }

    /// Reads a partition no further for the moment; what is on its way still comes.
    pub(crate) fn pause(&mut self, place: &Place, paused: bool) {
        let Some(partition) = self.partitions.get_mut(place) else { return };
        if partition.paused != paused {
            partition.paused = paused;
            match paused {
                true => self.reader.pause(&place.0, place.1),
                false => self.reader.resume(&place.0, place.1),
            }
        }
    }

    /// Commits how far everything is done, where it is further than before, unless a commit is under way: `done` answers for
    /// a partition and the next offset to be read.
    pub(crate) fn commit(&mut self, done: impl Fn(&Place, u64) -> u64) {
        if self.committing.is_none() {
            self.commit_now(done);
        }
    }

    /// The same, also if one is under way; they happen in this order.
    pub(crate) fn commit_now(&mut self, done: impl Fn(&Place, u64) -> u64) {
        let mut commits = Vec::new();
        for (place, partition) in &mut self.partitions {
            let done = done(place, partition.next);
            if partition.committed != Some(done) {
                partition.committed = Some(done);
                let (topic, metadata) = (place.0.clone(), partition.letters.to_string());
                commits.push(Commit { topic, partition: place.1, offset: done, metadata });
            }
        }
        if !commits.is_empty() {
            self.committing = Some(self.membership.commit_async(commits));
        }
    }

    /// Leaves the group and ends the clients, with an outbox whose reports were waited for.
    pub(crate) async fn end(
        self,
        deadline: Instant,
        outbox: suture_topics::outbox::Outbox,
    ) -> Result<(), tokio::task::JoinError> {
        drop((self.reader_events, self.member_events));
        clients::end(self.committing, deadline, self.membership, self.reader, outbox).await
    }

    fn on_member(&mut self, event: MemberEvent) -> Result<Vec<Happened>, KafkaFailure> {
        let mut happened = Vec::new();
        match event {
            MemberEvent::Assigned(assigned) => {
                let assigned: BTreeSet<Place> = assigned.into_iter().collect();
                let gone: Vec<Place> = self.partitions.keys().filter(|key| !assigned.contains(key)).cloned().collect();
                for place in gone {
                    self.reader.remove(&[(&place.0, place.1)]);
                    self.partitions.remove(&place);
                    happened.push(Happened::Left(place));
                }
                self.starting.retain(|place| assigned.contains(place));
                for place in assigned {
                    if !self.partitions.contains_key(&place) {
                        self.look_up_start(place);
                    }
                }
            }
            MemberEvent::Revoked(_) => happened.push(Happened::Revoked),
            MemberEvent::Lost => warn!("the group has taken this process for dead; joining again"),
            MemberEvent::Failed(failure) if failure.is_fatal() => return Err(failure),
            MemberEvent::Failed(failure) => warn!(%failure, "group membership"),
        }
        Ok(happened)
    }

    fn on_start(&mut self, place: Place, start: Start) -> Result<Vec<Happened>, KafkaFailure> {
        if !self.starting.remove(&place) {
            return Ok(Vec::new());
        }
        let (topic, partition) = (&place.0, place.1);
        match start {
            Ok(Beginning { offset, end, letters, remark }) => {
                if let Some(remark) = remark {
                    error!(topic, partition, offset, "{remark}");
                }
                self.reader.seek(topic, partition, offset);
                let begun = Partition { letters, next: offset, positioned: false, paused: false, committed: None };
                self.partitions.insert(place.clone(), begun);
                Ok(vec![Happened::Begun { place, start: offset, end }])
            }
            Err(failure) if failure.is_fatal() => Err(failure),
            Err(failure) => {
                warn!(topic, partition, %failure, "looking up where to start");
                self.look_up_start(place);
                Ok(Vec::new())
            }
        }
    }

    fn on_reader(&mut self, event: ReaderEvent) -> Result<Vec<Happened>, KafkaFailure> {
        match event {
            ReaderEvent::Records(mut records) => {
                records.retain(|record| self.is_next(record));
                return Ok(vec![Happened::Records(records)]);
            }
            ReaderEvent::Positioned { topic, partition, offset } => {
                if let Some(partition) = self.partitions.get_mut(&(topic.to_string(), partition)) {
                    partition.positioned |= partition.next == offset;
                }
            }
            ReaderEvent::OutOfRange { topic, partition } => {
                // Of a partition that went to another member since, it is old news.
                let place = (topic.to_string(), partition);
                if self.partitions.remove(&place).is_some() {
                    self.look_up_start(place.clone());
                    return Ok(vec![Happened::Left(place)]);
                }
            }
            ReaderEvent::Failed(failure) if failure.is_fatal() => return Err(failure),
            ReaderEvent::Failed(failure) => warn!(%failure, "reading"),
        }
        Ok(Vec::new())
    }

    fn is_next(&mut self, record: &Record) -> bool {
        let Some(partition) = self.partitions.get_mut(&place_of(record)) else { return false };
        if !partition.positioned || record.offset < partition.next {
            return false;
        }
        partition.next = record.offset + 1;
        true
    }

    fn look_up_start(&mut self, place: Place) {
        if !self.starting.insert(place.clone()) {
            return;
        }
        let (member, probe, post) = (Arc::clone(&self.membership), Arc::clone(&self.probe), self.post_start.clone());
        blocking::spawn(move || {
            let start = start_of(&member, &probe, &place.0, place.1);
            if start.is_err() {
                blocking::pause(RETRY_PAUSE);
            }
            // The receiver goes away only with the whole service.
            let _ = post.send((place, start));
        });
    }

    /// What passes is committed again with the next tick, so that the group's lag does not stay behind.
    fn on_uncommitted(&mut self, failure: &CommitError) {
        match failure {
            CommitError::NotMember(reason) => debug!(reason, "offsets were not committed"),
            CommitError::Again(_) | CommitError::Refused(_) => warn!(%failure, "offsets were not committed"),
        }
        if !matches!(failure, CommitError::Refused(_)) {
            self.partitions.values_mut().for_each(|partition| partition.committed = None);
        }
    }
}

/// A record's topic and partition.
pub(crate) fn place_of(record: &Record) -> Place {
    (record.topic.to_string(), record.partition)
}

/// How many records of these partitions nobody has read; `None` if it cannot be told now. Blocks.
pub(crate) fn lag(probe: &Probe, read: &[(Place, u64)]) -> Option<u64> {
    let behind = |((topic, partition), next): &(Place, u64)| {
        probe.watermarks(topic, *partition).ok().map(|(_, end)| end.saturating_sub(*next))
    };
    // Without an answer for one partition the others are not asked: each would take its time, and hold up a shutdown.
    read.iter().map(behind).sum()
}

/// The committed offset, else the log's start: what is there was never read. So it is in a topic that was deleted and created
/// again; without letters (an operator's tool writes none) that shows only by an offset past the end.
fn start_of(member: &Membership, probe: &Probe, topic: &str, partition: i32) -> Start {
    let letters = probe.letters(topic)?;
    let committed = member.committed(&[(topic, partition)])?.into_iter().next().flatten();
    let (mut start, mut end) = probe.watermarks(topic, partition)?;
    let Some(committed) = committed else { return Ok(Beginning { offset: start, end, letters, remark: None }) };
    let is_foreign = !committed.metadata.is_empty() && committed.metadata != letters.as_str();
    for _ in 0..LOOKS {
        if is_foreign || committed.offset <= end {
            break;
        }
        // A leader that was cut off shows an old end.
        blocking::pause(LOOK_PAUSE);
        (start, end) = probe.watermarks(topic, partition)?;
    }
    let (offset, remark) = if is_foreign || committed.offset > end {
        (start, Some("the topic was created again since it was read, and is read from its start"))
    } else if committed.offset < start {
        (start, Some("records left the topic before they were read: they are lost to Suture"))
    } else {
        (committed.offset, None)
    };
    Ok(Beginning { offset, end, letters, remark })
}
