//! From where to read: the topics as they are, and our own rows of positions compared with them.
//!
//! | own row of these letters | prepares | decisions |
//! |---|---|---|
//! | none | the log's start | the log's start |
//! | below the log's start | the log's start: those have expired long ago | the shard stops |
//! | inside the log | there | there |
//! | past the log's end, also when looked at again | the shard stops | the shard stops |
//!
//! Branches in doubt of another requests log, or while the decision log is another one, are refused before anything is
//! read: their decisions may be gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use suture_contract::ids::{LogLetters, Participant, Shard, Txid};
use suture_contract::topic_map::Topic;
use suture_participants_core::doubts::InDoubt;
use suture_topics::blocking;
use suture_topics::failure::KafkaFailure;
use suture_topics::probe::{Probe, refuse_unfit};
use suture_topics::settings::KafkaSettings;
use tokio::time::sleep;

use crate::incidents::{Place, skipped};
use crate::jobs::until_answered;
use crate::resource::{Position, Resource, Which};
use crate::service::ServiceError;

/// How often an end of a log that lies before our position is looked at again before it is believed, and the pause between.
const LOOKS_AT_END: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

/// The names of the topics that a participant meets.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) requests: String,
    pub(crate) prepares: String,
    pub(crate) votes: String,
    pub(crate) decisions: String,
    pub(crate) outcomes: String,
}

impl Names {
    pub(crate) fn new(kafka: &KafkaSettings, participant: &Participant) -> Self {
        let name = |topic: Topic| topic.name(&kafka.prefix);
        Self {
            requests: name(Topic::Requests),
            prepares: name(Topic::Prepare(participant.clone())),
            votes: name(Topic::Votes(participant.clone())),
            decisions: name(Topic::Decisions),
            outcomes: name(Topic::Outcomes),
        }
    }
}

/// Which incarnations of the topics there are now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Letters {
    pub(crate) requests: LogLetters,
    pub(crate) prepares: LogLetters,
    pub(crate) decisions: LogLetters,
}

pub(crate) async fn look_at_topics(
    probe: &Arc<Probe>,
    names: &Names,
    partitions: u16,
) -> Result<Letters, ServiceError> {
    let needed = [&names.requests, &names.prepares, &names.votes, &names.decisions].map(String::clone);
    let found = {
        let needed = needed.clone();
        ask(probe, move |probe| probe.topics_with(&needed.each_ref().map(String::as_str))).await?
    };
    refuse_unfit(&found, &needed, partitions)?;
    let letters = async |topic: &String| {
        let topic = topic.clone();
        ask(probe, move |probe| probe.letters(&topic)).await
    };
    Ok(Letters {
        requests: letters(&names.requests).await?,
        prepares: letters(&names.prepares).await?,
        decisions: letters(&names.decisions).await?,
    })
}

/// Asks Kafka until it answers.
async fn ask<T: Send + 'static>(
    probe: &Arc<Probe>,
    question: impl Fn(&Probe) -> Result<T, KafkaFailure> + Send + Sync + 'static,
) -> Result<T, ServiceError> {
    let probe = Arc::clone(probe);
    Ok(suture_topics::failure::until_answered(move || question(&probe)).await?)
}

/// A branch of another requests log will never be decided in this one; neither will any, if the decision log is new.
pub(crate) async fn refuse_foreign<R: Resource>(
    resource: &R,
    names: &Names,
    letters: &Letters,
) -> Result<(), ServiceError> {
    let in_doubt = until_answered(|| resource.in_doubt()).await;
    let known = until_answered(|| resource.load_positions(names.decisions.clone())).await;
    let is_new_log = !known.is_empty() && known.iter().all(|position| position.letters != letters.decisions);
    let foreign = |waiting: &InDoubt| is_new_log || waiting.txid.log != letters.requests;
    let txids: Vec<Txid> = in_doubt.iter().filter(|waiting| foreign(waiting)).map(|waiting| waiting.txid).collect();
    if txids.is_empty() { Ok(()) } else { Err(ServiceError::ForeignInDoubt { txids }) }
}

/// Where to read a shard from.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) shard: Shard,
    pub(crate) prepares: u64,
    pub(crate) decisions: u64,
    pub(crate) decisions_end: u64,
    /// Our own rows, where there are any.
    pub(crate) stored: (Option<u64>, Option<u64>),
    /// What is in doubt there since before.
    pub(crate) in_doubt: Vec<Txid>,
    /// Records that a person has let be passed.
    pub(crate) skipped_prepares: BTreeSet<u64>,
    pub(crate) skipped_decisions: BTreeSet<u64>,
    /// Why it cannot be read.
    pub(crate) problem: Option<String>,
}

/// Compares our own rows with the logs as they are.
pub(crate) async fn look_up<R: Resource>(
    resource: &R,
    probe: Arc<Probe>,
    names: Names,
    letters: Letters,
    shards: Vec<Shard>,
) -> Result<Vec<Taken>, ServiceError> {
    let of_prepares = until_answered(|| resource.load_positions(names.prepares.clone())).await;
    let of_decisions = until_answered(|| resource.load_positions(names.decisions.clone())).await;
    let in_doubt = until_answered(|| resource.in_doubt()).await;
    let skipped = skipped(&until_answered(|| resource.noted(Which::All)).await);
    let skipped_of = |topic: &str, letters: LogLetters, shard: Shard| {
        let is_there = |place: &&Place| place.topic == topic && place.letters == letters && place.shard == shard;
        skipped.iter().filter(is_there).map(|place| place.offset).collect()
    };
    let in_doubt_of =
        |shard: Shard| in_doubt.iter().map(|waiting| waiting.txid).filter(move |txid| txid.shard == shard);
    let own = |rows: &[Position], letters: LogLetters, shard: Shard| {
        rows.iter().find(|row| row.letters == letters && row.shard == shard).map(|row| row.next_offset)
    };
    let mut taken = Vec::with_capacity(shards.len());
    for shard in shards {
        let prepares = own(&of_prepares, letters.prepares, shard);
        let decisions = own(&of_decisions, letters.decisions, shard);
        let in_doubt = in_doubt_of(shard).collect();
        taken.push(Taken {
            in_doubt,
            skipped_prepares: skipped_of(&names.prepares, letters.prepares, shard),
            skipped_decisions: skipped_of(&names.decisions, letters.decisions, shard),
            ..take_from(&probe, &names, shard, prepares, decisions).await?
        });
    }
    Ok(taken)
}

async fn take_from(
    probe: &Arc<Probe>,
    names: &Names,
    shard: Shard,
    prepares: Option<u64>,
    decisions: Option<u64>,
) -> Result<Taken, ServiceError> {
    let (prepares_start, prepares_end) = range(probe, &names.prepares, shard, prepares).await?;
    let (decisions_start, decisions_end) = range(probe, &names.decisions, shard, decisions).await?;
    let outside = |topic: &str, own: u64, start: u64, end: u64| {
        format!(
            "our position {own} on {topic} lies outside the log ({start} to {end}): records are missing; compare the topic \
             with its backup before deleting the row in suture_positions"
        )
    };
    let problem = match (prepares, decisions) {
        (Some(own), _) if own > prepares_end => Some(outside(&names.prepares, own, prepares_start, prepares_end)),
        (_, Some(own)) if own > decisions_end || own < decisions_start => {
            Some(outside(&names.decisions, own, decisions_start, decisions_end))
        }
        _ => None,
    };
    let stored = (prepares, decisions);
    // Prepares that were trimmed have expired long ago.
    let prepares = prepares.unwrap_or(prepares_start).max(prepares_start);
    Ok(Taken {
        shard,
        prepares,
        decisions: decisions.unwrap_or(decisions_start),
        decisions_end,
        stored,
        in_doubt: Vec::new(),
        skipped_prepares: BTreeSet::new(),
        skipped_decisions: BTreeSet::new(),
        problem,
    })
}

/// The first offset of a log and its end. A leader that was cut off shows an old end, so one that lies before our own
/// position is looked at again.
pub(crate) async fn range(
    probe: &Arc<Probe>,
    topic: &str,
    shard: Shard,
    own: Option<u64>,
) -> Result<(u64, u64), ServiceError> {
    let watermarks = async || {
        let topic = topic.to_string();
        ask(probe, move |probe| probe.watermarks(&topic, shard.partition())).await
    };
    let mut range = watermarks().await?;
    for _ in 0..LOOKS_AT_END {
        if own.is_none_or(|own| own <= range.1) {
            break;
        }
        sleep(BETWEEN_LOOKS).await;
        range = watermarks().await?;
    }
    Ok(range)
}

/// Records of a topic that are not done here yet; `None` if Kafka does not say. Blocks.
pub(crate) fn lag(probe: &Probe, topic: &str, done: &[(Shard, u64)]) -> Option<u64> {
    let behind = |&(shard, position): &(Shard, u64)| {
        let (start, end) = probe.watermarks(topic, shard.partition()).ok()?;
        Some(end.saturating_sub(position.max(start)))
    };
    done.iter().map(behind).sum()
}

/// Runs what blocks on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ServiceError> {
    blocking::spawn(work).await.map_err(|_| ServiceError::Job)
}
