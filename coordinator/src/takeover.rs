//! Where the owner of a shard starts to read, and how far it must read before it may act.
//!
//! Everything here blocks, and runs on a thread of its own. It looks up, in this order: the ids that the topics have now, the
//! committed positions, and then the starts and ends of all logs. The ids are asked for anew, because the owner before may have
//! met a participant that joined after this process started. Without usable positions the votes' starts are looked up first
//! and the requests' start last: votes outlive their requests, so what is still there of the requests then has all its votes.

use std::collections::BTreeMap;
use std::time::Duration;

use suture_contract::ids::{Participant, Shard};
use suture_contract::topic_map::{Topic, coordinator_group};
use suture_coordinator_core::positions::{BadPositions, Positions, TopicIds};
use suture_topics::blocking;
use suture_topics::failure::KafkaFailure;
use suture_topics::membership::Membership;
use suture_topics::probe::{Probe, TopicInfo};
use suture_topics::settings::KafkaSettings;

/// What a look-up gives.
#[derive(Debug)]
pub(crate) struct Start {
    /// Where to start.
    pub positions: Positions,
    /// The end that each log had: the shard acts once it has read up to it.
    pub ends: BTreeMap<Topic, u64>,
    /// The votes topics that there are now.
    pub votes_ids: BTreeMap<Participant, [u8; 16]>,
}

/// Why a shard cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeOverFailure {
    /// Kafka; tried again when it passes.
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    /// The positions do not fit the logs. The text names the remedy.
    #[error("{problem}; stop all coordinators and run `{remedy}`: the next owner then reads all logs from their start")]
    Positions {
        /// What does not fit.
        problem: String,
        /// The command that deletes the group's offsets.
        remedy: String,
    },
}

/// How often what does not fit the positions is looked at again: a leader that was cut off shows an old end, and a broker may
/// not have heard yet of a topic that was just created.
const LOOKS: u32 = 6;
/// The pause between two such looks.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Everything a look-up needs.
pub(crate) struct TakeOver<'a> {
    pub kafka: &'a KafkaSettings,
    pub probe: &'a Probe,
    pub member: &'a Membership,
    /// The ids that this process works with.
    pub known: &'a TopicIds,
    pub shard: Shard,
}

impl TakeOver<'_> {
    pub fn look_up(&self) -> Result<Start, TakeOverFailure> {
        let mut looks = 0;
        loop {
            match self.ids() {
                Err(TakeOverFailure::Kafka(KafkaFailure::Fatal(_))) if looks < LOOKS => {}
                Err(failure) => return Err(failure),
                Ok(ids) => match self.committed(&ids)? {
                    Ok(Some(positions)) => return self.start_at(positions, ids),
                    Ok(None) => return self.start_at_the_logs_starts(ids),
                    Err(BadPositions::ForeignTopic { topic: "votes" }) if looks < LOOKS => {}
                    Err(bad) => return Err(self.unusable(bad.to_string())),
                },
            }
            looks += 1;
            blocking::pause(LOOK_PAUSE);
        }
    }

    /// The ids that the topics have now. Those that this process works with must be the same.
    fn ids(&self) -> Result<TopicIds, TakeOverFailure> {
        let ids = look_up_ids(self.kafka, self.probe, &self.probe.topics()?)?;
        let changed = |participant: &Participant| {
            let (known, now) = (self.known.votes.get(participant), ids.votes.get(participant));
            known.is_some() && now.is_some() && known != now
        };
        let foreign = [
            (Topic::Requests, ids.requests != self.known.requests),
            (Topic::Decisions, ids.decisions != self.known.decisions),
        ];
        let votes = ids.votes.keys().map(|participant| (Topic::Votes(participant.clone()), changed(participant)));
        match foreign.into_iter().chain(votes).find(|(_, is_foreign)| *is_foreign) {
            None => Ok(ids),
            Some((topic, _)) => {
                let said = format!(
                    "the topic {} was deleted and created again while this coordinator ran: start it anew",
                    self.name(&topic)
                );
                Err(KafkaFailure::Fatal(said).into())
            }
        }
    }

    fn committed(&self, ids: &TopicIds) -> Result<Result<Option<Positions>, BadPositions>, TakeOverFailure> {
        let requests = self.name(&Topic::Requests);
        let committed = self.member.committed(&[(&requests, self.shard.partition())])?;
        let Some(committed) = committed.into_iter().next().flatten() else { return Ok(Ok(None)) };
        // An offset without metadata was set by hand, and says nothing about the votes.
        if committed.metadata.is_empty() {
            return Ok(Ok(None));
        }
        Ok(Positions::from_metadata(committed.offset, &committed.metadata, ids).map(Some))
    }

    fn start_at(&self, mut positions: Positions, ids: TopicIds) -> Result<Start, TakeOverFailure> {
        let mut ends = BTreeMap::new();
        ends.insert(Topic::Requests, self.end(&Topic::Requests, positions.requests)?);
        ends.insert(Topic::Decisions, self.end(&Topic::Decisions, positions.decisions)?);
        for participant in ids.votes.keys() {
            let topic = Topic::Votes(participant.clone());
            let at = positions.votes.iter().find(|(name, _)| name == participant).map(|(_, at)| *at);
            let end = match at {
                Some(at) => self.end(&topic, at)?,
                None => {
                    let (start, end) = self.watermarks(&topic)?;
                    positions.votes.push((participant.clone(), start));
                    end
                }
            };
            ends.insert(topic, end);
        }
        Ok(Start { positions, ends, votes_ids: ids.votes })
    }

    fn start_at_the_logs_starts(&self, ids: TopicIds) -> Result<Start, TakeOverFailure> {
        let mut ends = BTreeMap::new();
        let mut votes: Vec<(Participant, u64)> = Vec::new();
        for participant in ids.votes.keys() {
            let topic = Topic::Votes(participant.clone());
            let (start, end) = self.watermarks(&topic)?;
            votes.push((participant.clone(), start));
            ends.insert(topic, end);
        }
        let (decisions, end) = self.watermarks(&Topic::Decisions)?;
        ends.insert(Topic::Decisions, end);
        let (requests, end) = self.watermarks(&Topic::Requests)?;
        ends.insert(Topic::Requests, end);
        Ok(Start { positions: Positions { requests, decisions, votes }, ends, votes_ids: ids.votes })
    }

    /// The end of a log whose position is `at`, which must lie inside it.
    fn end(&self, topic: &Topic, at: u64) -> Result<u64, TakeOverFailure> {
        let mut looks = 0;
        loop {
            let (start, end) = self.watermarks(topic)?;
            let name = self.name(topic);
            if at < start {
                let shard = self.shard;
                return Err(self.unusable(format!("{name}/{shard} begins at {start}, behind the position {at}")));
            }
            if at <= end {
                return Ok(end);
            }
            looks += 1;
            if looks == LOOKS {
                let shard = self.shard;
                return Err(self.unusable(format!("{name}/{shard} ends at {end}, before the position {at}")));
            }
            blocking::pause(LOOK_PAUSE);
        }
    }

    fn watermarks(&self, topic: &Topic) -> Result<(u64, u64), KafkaFailure> {
        self.probe.watermarks(&self.name(topic), self.shard.partition())
    }

    fn name(&self, topic: &Topic) -> String {
        topic.name(&self.kafka.prefix)
    }

    fn unusable(&self, problem: String) -> TakeOverFailure {
        let remedy = format!(
            "kafka-consumer-groups.sh --bootstrap-server {} --group {} --delete-offsets --topic {}",
            self.kafka.bootstrap,
            coordinator_group(&self.kafka.prefix),
            self.name(&Topic::Requests),
        );
        TakeOverFailure::Positions { problem, remedy }
    }
}

/// The ids of the topics that a coordinator reads, `topics` being those that there are: requests, decisions, and the votes
/// of every participant that is served.
pub(crate) fn look_up_ids(
    kafka: &KafkaSettings,
    probe: &Probe,
    topics: &BTreeMap<String, TopicInfo>,
) -> Result<TopicIds, KafkaFailure> {
    let participants = topics.keys().filter_map(|name| match Topic::parse(name, &kafka.prefix) {
        Some(Topic::Votes(participant)) => Some(participant),
        _ => None,
    });
    let served: Vec<Participant> = participants.filter(|name| is_served(kafka, topics, name)).collect();
    let name = |topic: &Topic| topic.name(&kafka.prefix);
    let read = [Topic::Requests, Topic::Decisions].into_iter().chain(served.iter().cloned().map(Topic::Votes));
    let names: Vec<String> = read.map(|topic| name(&topic)).collect();
    let ids = probe.topic_ids(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let id = |topic: &Topic| {
        let missing =
            || KafkaFailure::Fatal(format!("topic {} does not exist: run `suture topics apply`", name(topic)));
        ids.get(&name(topic)).copied().ok_or_else(missing)
    };
    let mut votes = BTreeMap::new();
    for participant in served {
        let topic_id = id(&Topic::Votes(participant.clone()))?;
        votes.insert(participant, topic_id);
    }
    Ok(TopicIds { requests: id(&Topic::Requests)?, decisions: id(&Topic::Decisions)?, votes })
}

/// Whether a participant's prepare and votes topics are there with all their partitions.
pub(crate) fn is_served(
    kafka: &KafkaSettings,
    topics: &BTreeMap<String, TopicInfo>,
    participant: &Participant,
) -> bool {
    [Topic::Prepare(participant.clone()), Topic::Votes(participant.clone())]
        .iter()
        .all(|topic| topics.get(&topic.name(&kafka.prefix)).is_some_and(|found| found.partitions() == kafka.partitions))
}
