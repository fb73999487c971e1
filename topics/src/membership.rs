//! Which shards are ours: a member of a consumer group that reads nothing.
//!
//! The member subscribes, so that Kafka divides the shards among the processes of the group (classic protocol, range
//! assignor alone: the same shard of every topic comes to the same member), and takes part in rebalances with an **empty**
//! reading list: all reading is [`crate::reader`]'s, for owners, standbys and participants alike. What it does besides is
//! commit positions, because only a member may while the group lives.
//!
//! A rebalance revokes everything, also what comes back: `Revoked` says stop, the next `Assigned` holds all partitions
//! that are ours then. Whoever keeps a shard's state until an `Assigned` lacks it saves himself a take-over. A commit after
//! the shard went to another is refused as [`CommitError::NotMember`], which harms nothing.
//!
//! Two threads: one polls (heartbeats, rebalances) and must never wait, so its events queue up here when the channel is
//! full; the other commits and looks up positions, one request after the other.
//!
//! Left out: asynchronous commits (their callback did not come within 2 s of polling, unexplained), storing offsets,
//! static membership, the cooperative assignor.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as requests;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};

use crate::failure::KafkaFailure;
use crate::ffi;
use crate::probe::{GroupInfo, describe_group};
use crate::settings::KafkaSettings;
use crate::told::has_left;
pub use crate::told::{Commit, CommitError, Committed, Committing, MemberEvent};
use crate::weight::{Weight, weight};

/// How long a look-up of committed positions may take.
const LOOK_UP: Duration = Duration::from_secs(10);

/// How long the polling thread sleeps at most: leaving waits for it.
const POLL: Duration = Duration::from_millis(50);

/// After so many polls without a partition, some 30 s, it is said why, once.
const MANY_POLLS: u32 = 600;

/// A member of a consumer group.
pub struct Membership {
    requests: requests::Sender<Request>,
    leaving: Arc<AtomicBool>,
    /// Behind a lock only so that a membership can be shared; nobody but `leave` receives.
    left: Mutex<requests::Receiver<()>>,
}

enum Request {
    Commit(Vec<Commit>, oneshot::Sender<Result<(), CommitError>>),
    Committed(Vec<(String, i32)>, oneshot::Sender<Result<Vec<Option<Committed>>, KafkaFailure>>),
    SayWhyNothingIsOurs,
    Stop,
}

impl Membership {
    /// Joins `group` with a subscription to `topics`. Every member of a group must subscribe to the same ones.
    pub fn start(
        settings: &KafkaSettings,
        group: &str,
        topics: &[String],
        events: mpsc::Sender<MemberEvent>,
    ) -> Result<Self, KafkaFailure> {
        let context = Rebalances::default();
        let consumer: BaseConsumer<Rebalances> =
            BaseConsumer::from_config_and_context(&settings.member(group)?, context)
                .map_err(|error| KafkaFailure::of(format!("joining {group}"), &error))?;
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&names).map_err(|error| KafkaFailure::of(format!("joining {group}"), &error))?;

        let consumer = Arc::new(consumer);
        let leaving = Arc::new(AtomicBool::new(false));
        let (requests, received) = requests::channel();
        let (leave, left) = requests::channel();
        let threads = |error| KafkaFailure::Again(format!("starting the threads of {group}: {error}"));
        let clerk = {
            let (consumer, group) = (Arc::clone(&consumer), group.to_string());
            thread::Builder::new()
                .name("kafka-positions".to_string())
                .spawn(move || serve(&consumer, &group, &received))
                .map_err(threads)?
        };
        let (waiting, group) = (VecDeque::new(), group.to_string());
        let member = Member { consumer, events, waiting, group, idle: Idle::default() };
        let poller = {
            let (leaving, to_clerk) = (Arc::clone(&leaving), requests.clone());
            thread::Builder::new()
                .name("kafka-member".to_string())
                .spawn(move || {
                    member.run(&leaving, &to_clerk, clerk);
                    // Nobody waits for it unless `leave` was called.
                    let _ = leave.send(());
                })
                .map_err(threads)
        };
        // Without a poller the clerk ends with the last sender, and the consumer with it.
        poller?;
        Ok(Self { requests, leaving, left: Mutex::new(left) })
    }

    /// Commits, and waits until Kafka has it (2 ms). Blocks: inside tokio use [`Membership::commit_async`].
    pub fn commit(&self, positions: Vec<Commit>) -> Result<(), CommitError> {
        self.commit_async(positions).0.blocking_recv().unwrap_or_else(|_| Err(has_left()))
    }

    /// Hands positions over; commits happen in this order.
    pub fn commit_async(&self, positions: Vec<Commit>) -> Committing {
        let (reply, answer) = oneshot::channel();
        // Without a thread to take it the reply is dropped, which the caller sees.
        let _ = self.requests.send(Request::Commit(positions, reply));
        Committing(answer)
    }

    /// Our group's committed positions, one for each partition asked for; `None`: never committed, or expired. Blocks.
    pub fn committed(&self, partitions: &[(&str, i32)]) -> Result<Vec<Option<Committed>>, KafkaFailure> {
        let partitions = partitions.iter().map(|&(topic, partition)| (topic.to_string(), partition)).collect();
        let (reply, answer) = oneshot::channel();
        let _ = self.requests.send(Request::Committed(partitions, reply));
        let left = || Err(KafkaFailure::Again("reading positions: the group has been left".to_string()));
        answer.blocking_recv().unwrap_or_else(|_| left())
    }

    /// Leaves the group at once, so that others take over without waiting for the session to end. Waits at most until
    /// `deadline`; says whether that was enough. Blocks: not for a tokio worker.
    pub fn leave(self, deadline: Duration) -> bool {
        self.leaving.store(true, Ordering::Release);
        let left = self.left.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        !matches!(left.recv_timeout(deadline), Err(requests::RecvTimeoutError::Timeout))
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.leaving.store(true, Ordering::Release);
    }
}

/// What the polling thread owns.
struct Member {
    consumer: Arc<BaseConsumer<Rebalances>>,
    events: mpsc::Sender<MemberEvent>,
    waiting: VecDeque<MemberEvent>,
    group: String,
    idle: Idle,
}

impl Member {
    fn run(mut self, leaving: &AtomicBool, to_clerk: &requests::Sender<Request>, clerk: JoinHandle<()>) {
        while !leaving.load(Ordering::Acquire) && !self.events.is_closed() {
            if let Some(Err(error)) = self.consumer.poll(POLL) {
                self.note(&error);
            }
            let mut news = self.consumer.context().take();
            if self.idle.polled(&news) {
                // The clerk lives as long as we do.
                let _ = to_clerk.send(Request::SayWhyNothingIsOurs);
            }
            self.waiting.append(&mut news);
            self.tell();
        }
        // The clerk first: the consumer leaves its group when its last owner drops it, and that must be here.
        let _ = to_clerk.send(Request::Stop);
        if clerk.join().is_err() {
            tracing::error!(group = self.group, "the thread that commits positions panicked");
        }
        drop(self.consumer);
    }

    fn note(&mut self, error: &KafkaError) {
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        let Some(code) = error.rdkafka_error_code() else { return };
        if code == RDKafkaErrorCode::PollExceeded {
            tracing::warn!(group = self.group, "this process was silent for too long, the group goes on without it");
        } else if code == RDKafkaErrorCode::UnknownTopicOrPartition {
            // Whoever joins has looked for its topics before, and a broker hears of a new one later than the others. Of
            // one that is gone whoever reads it is told.
            tracing::warn!(group = self.group, "a broker does not know a topic of the group; asking again");
        } else if fatal || weight(code) != Weight::Passing {
            let said = format!("membership in {}: {code}", self.group);
            self.waiting.push_back(MemberEvent::Failed(KafkaFailure::Fatal(said)));
        } else {
            tracing::debug!(group = self.group, %code, "membership goes on");
        }
    }

    fn tell(&mut self) {
        while let Some(event) = self.waiting.pop_front() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => return self.waiting.push_front(event),
                // `run` sees it.
                Err(mpsc::error::TrySendError::Closed(_)) => return self.waiting.clear(),
            }
        }
    }
}

/// For how long nothing has been ours.
#[derive(Default)]
struct Idle {
    has_partitions: bool,
    polls: u32,
}

impl Idle {
    /// Takes in what a poll has brought; says when it is time to say why nothing is ours.
    fn polled(&mut self, news: &VecDeque<MemberEvent>) -> bool {
        for event in news {
            self.has_partitions = matches!(event, MemberEvent::Assigned(partitions) if !partitions.is_empty());
            if self.has_partitions {
                self.polls = 0;
            }
        }
        if !self.has_partitions {
            self.polls = self.polls.saturating_add(1);
        }
        self.polls == MANY_POLLS
    }
}

/// The other thread: commits and look-ups, in order.
fn serve(consumer: &BaseConsumer<Rebalances>, group: &str, requests: &requests::Receiver<Request>) {
    // Whoever asked may have stopped waiting.
    for request in requests {
        match request {
            Request::Commit(positions, reply) => {
                let _ = reply.send(commit(consumer, positions));
            }
            Request::Committed(partitions, reply) => {
                let _ = reply.send(committed(consumer, &partitions));
            }
            Request::SayWhyNothingIsOurs => say_why_nothing_is_ours(consumer, group),
            Request::Stop => return,
        }
    }
}

fn say_why_nothing_is_ours(consumer: &BaseConsumer<Rebalances>, group: &str) {
    match describe_group(consumer, group) {
        Ok(Some(GroupInfo { state, members })) if state == "Stable" && members > 1 => {
            tracing::info!(group, members, "no partition is ours: other members of the group have them all");
        }
        Ok(found) => {
            let GroupInfo { state, members } = found.unwrap_or(GroupInfo { state: "unknown".to_string(), members: 0 });
            tracing::warn!(
                group,
                state,
                members,
                "no partition is ours, and nothing is read: are the topics there, and the brokers well? see `suture doctor`"
            );
        }
        Err(failure) => tracing::warn!(group, %failure, "no partition is ours, and nothing is read"),
    }
}

fn commit(consumer: &BaseConsumer<Rebalances>, positions: Vec<Commit>) -> Result<(), CommitError> {
    if positions.is_empty() {
        return Ok(());
    }
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for position in positions {
        let offset = i64::try_from(position.offset)
            .map_err(|_| CommitError::Refused(format!("{} is no offset", position.offset)))?;
        let mut entry = list.add_partition(&position.topic, position.partition);
        entry.set_offset(Offset::Offset(offset)).map_err(|error| CommitError::Refused(error.to_string()))?;
        entry.set_metadata(position.metadata);
    }
    consumer.commit(&list, CommitMode::Sync).map_err(|error| commit_error(&error))
}

fn commit_error(error: &KafkaError) -> CommitError {
    use RDKafkaErrorCode as Code;
    let Some(code) = error.rdkafka_error_code() else { return CommitError::Refused(error.to_string()) };
    match code {
        Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::RebalanceInProgress
        | Code::FencedInstanceId
        | Code::StaleMemberEpoch
        | Code::AssignmentLost
        | Code::PollExceeded => CommitError::NotMember(code.to_string()),
        Code::OffsetMetadataTooLarge | Code::InvalidCommitOffsetSize => CommitError::Refused(code.to_string()),
        _ => match weight(code) {
            Weight::Topic | Weight::Client => CommitError::Refused(code.to_string()),
            Weight::Passing => CommitError::Again(code.to_string()),
        },
    }
}

/// The committed positions of a consumer's own group.
pub(crate) fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[(String, i32)],
) -> Result<Vec<Option<Committed>>, KafkaFailure> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition(topic, *partition);
    }
    let list = consumer
        .committed_offsets(list, LOOK_UP)
        .map_err(|error| KafkaFailure::of("reading committed positions", &error))?;
    let entries = ffi::list_entries(&list);
    let position = |(topic, partition): &(String, i32)| {
        let Some(entry) = entries.iter().find(|entry| entry.topic == *topic && entry.partition == *partition) else {
            return Ok(None);
        };
        if entry.code != RDKafkaErrorCode::NoError {
            let doing = format!("reading the committed position of {topic}/{partition}");
            return Err(KafkaFailure::of_code(doing, entry.code));
        }
        // Negative: none.
        let offset = u64::try_from(entry.offset).ok();
        Ok(offset.map(|offset| Committed { offset, metadata: entry.metadata.clone() }))
    };
    partitions.iter().map(position).collect()
}

/// The consumer's context: answers rebalances and keeps them for the polling thread, inside whose poll this runs.
#[derive(Default)]
struct Rebalances(Mutex<VecDeque<MemberEvent>>);

impl Rebalances {
    fn take(&self) -> VecDeque<MemberEvent> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep(&self, event: MemberEvent) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
    }
}

impl ClientContext for Rebalances {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        ffi::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "member error");
    }
}

impl ConsumerContext for Rebalances {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let mut partitions: Vec<(String, i32)> =
            ffi::list_entries(list).into_iter().map(|entry| (entry.topic, entry.partition)).collect();
        partitions.sort();
        let answered = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.keep(MemberEvent::Assigned(partitions));
                // Ours, and nothing of it to be read here.
                consumer.assign(&TopicPartitionList::new())
            }
            _ => {
                let lost = consumer.assignment_lost();
                self.keep(if lost { MemberEvent::Lost } else { MemberEvent::Revoked(partitions) });
                consumer.unassign()
            }
        };
        if let Err(error) = answered {
            let said = format!("answering a rebalance: {error}");
            self.keep(MemberEvent::Failed(KafkaFailure::Fatal(said)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_nothing_for_long_is_told_once_until_he_has_had_something() {
        let mut idle = Idle::default();
        let mut told_after = |first: &[MemberEvent]| {
            let mut polls = (0..2 * MANY_POLLS).map(|poll| if poll == 0 { first.to_vec() } else { Vec::new() });
            polls.position(|news| idle.polled(&news.into()))
        };
        let nothing = [MemberEvent::Assigned(Vec::new())];
        let something = [MemberEvent::Assigned(vec![("t".to_string(), 0)])];
        let many = Some(MANY_POLLS as usize - 1);
        assert_eq!(told_after(&[]), many, "nobody has answered");
        assert_eq!(told_after(&nothing), None, "told already");
        assert_eq!(told_after(&something), None);
        assert_eq!(told_after(&[MemberEvent::Revoked(Vec::new())]), many);
        assert_eq!(told_after(&[&something[..], &[MemberEvent::Lost], &nothing[..]].concat()), many);
    }
}
