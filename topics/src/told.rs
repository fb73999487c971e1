//! What the clients tell: the types that a service meets, whoever stands behind the clients.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::failure::KafkaFailure;
use crate::record::Record;

/// What the reader tells.
#[derive(Debug)]
pub enum ReaderEvent {
    /// Records of any of the partitions; of one partition in order.
    Records(Vec<Record>),
    /// An `add` or a `seek` has taken effect: this partition's records after this event are from `offset` on.
    Positioned {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: i32,
        /// The offset asked for.
        offset: u64,
    },
    /// The position is outside the log; the partition rests.
    OutOfRange {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: i32,
    },
    /// A topic is gone or not for us, or the client is broken. Passing failures are not told.
    Failed(KafkaFailure),
}

/// What becomes of our membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberEvent {
    /// All partitions that are ours now, in order.
    Assigned(Vec<(String, i32)>),
    /// These were ours; the next `Assigned` says what is.
    Revoked(Vec<(String, i32)>),
    /// The group went on without us (we were silent for too long); others may own our shards already. We join again by ourselves.
    Lost,
    /// Membership cannot be had. Passing failures are not told.
    Failed(KafkaFailure),
}

/// One position to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The topic.
    pub topic: String,
    /// The partition; need not be assigned to us.
    pub partition: i32,
    /// The next offset to read.
    pub offset: u64,
    /// At most 4096 bytes.
    pub metadata: String,
}

/// A committed position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The next offset to read.
    pub offset: u64,
    /// As it was committed; empty if an operator's tool did it.
    pub metadata: String,
}

/// Why a commit did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The group has gone on without us, or is just being rebalanced. Harmless: whoever owns the shard commits.
    #[error("not a member any more: {0}")]
    NotMember(String),
    /// Passing; commit again with the next positions.
    #[error("not committed: {0}")]
    Again(String),
    /// Never (metadata too long, no rights).
    #[error("refused: {0}")]
    Refused(String),
}

/// The answer to a commit, to be awaited. The commit happens whether or not anybody waits for it.
#[must_use = "the commit happens anyway, but whether it did is only known from this"]
pub struct Committing(pub(crate) oneshot::Receiver<Result<(), CommitError>>);

impl Future for Committing {
    type Output = Result<(), CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(has_left())))
    }
}

impl fmt::Debug for Committing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Committing")
    }
}

pub(crate) fn has_left() -> CommitError {
    CommitError::NotMember("the group has been left".to_string())
}

/// What became of one append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The caller's.
    pub token: u64,
    /// The record's offset, or why there is none.
    pub result: Result<u64, Failure>,
}

/// Why an append has no offset, by what the caller does. The text is for logs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Passing; it may have been written all the same. Append it again.
    #[error("not acknowledged: {0}")]
    Again(String),
    /// This record can never be written: too large, for example. Others can.
    #[error("refused: {0}")]
    Refused(String),
    /// Nothing can be written to this topic: no rights there, no such topic or partition.
    #[error("denied: {0}")]
    Denied(String),
    /// Nothing can be written any more.
    #[error("the producer failed: {0}")]
    Fatal(String),
}

/// The producer's queue is full: stop reading what causes appends, and come again after some reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the producer's queue is full")]
pub struct Full;

/// Why a stretch was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanFailure {
    /// It begins outside the log: before its start, or past its end.
    #[error("{0} is outside the log")]
    OutOfRange(String),
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
}

/// What a topic looks like from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// For each partition the ids of the brokers that hold a copy, the preferred leader first.
    pub replicas: Vec<Vec<i32>>,
}

/// What a consumer group looks like from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    /// In Kafka's words: `Stable`, `Empty`, `PreparingRebalance`.
    pub state: String,
    /// How many processes are in it.
    pub members: usize,
}

impl TopicInfo {
    /// How many partitions.
    pub fn partitions(&self) -> u16 {
        count(self.replicas.len())
    }

    /// Copies of each record: those of the partition with the fewest.
    pub fn replication(&self) -> u16 {
        count(self.replicas.iter().map(Vec::len).min().unwrap_or(0))
    }
}

/// A protocol topic that a service cannot start with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnfitTopic {
    /// It is not there.
    #[error("the topic {topic} does not exist: create the topics with `suture topics apply`")]
    Missing {
        /// Its full name.
        topic: String,
    },
    /// It has another partition count than configured.
    #[error(
        "the topic {topic} has {found} partitions and [kafka] partitions says {expected}: see `suture topics check`"
    )]
    WrongPartitions {
        /// Its full name.
        topic: String,
        /// What the broker says.
        found: u16,
        /// What the configuration says.
        expected: u16,
    },
}

/// Refuses protocol topics that are missing, or not of so many partitions: a record in another shard than its key's would be
/// rejected, and its event lost.
pub fn refuse_unfit(
    topics: &BTreeMap<String, TopicInfo>,
    needed: &[String],
    partitions: u16,
) -> Result<(), UnfitTopic> {
    for topic in needed {
        match topics.get(topic).map(TopicInfo::partitions) {
            None => return Err(UnfitTopic::Missing { topic: topic.clone() }),
            Some(found) if found != partitions => {
                return Err(UnfitTopic::WrongPartitions { topic: topic.clone(), found, expected: partitions });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn count(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}
