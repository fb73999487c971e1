//! Where the owner of a shard starts to read, and how far it must read before it may act.
//!
//! Everything here blocks, and runs on a thread of its own. It looks up, in this order: the committed positions, and then
//! the starts and ends of all logs. Without usable positions the votes' starts are looked up first and the requests' start
//! last: votes outlive their requests, so what is still there of the requests then has all its votes.

use std::collections::BTreeMap;
use std::time::Duration;

use suture_contract::ids::{Participant, Shard};
use suture_contract::topic_map::{Topic, coordinator_group};
use suture_coordinator_core::positions::{BadPositions, Positions, TopicIds};
use suture_topics::failure::KafkaFailure;
use suture_topics::membership::Membership;
use suture_topics::probe::Probe;
use suture_topics::settings::KafkaSettings;

/// What a look-up gives.
#[derive(Debug)]
pub(crate) struct Start {
    /// Where to start.
    pub positions: Positions,
    /// The end that each log had: the shard acts once it has read up to it.
    pub ends: BTreeMap<Topic, u64>,
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

/// How often an end below the position is looked at again: a leader that was cut off shows an old one.
const LOOKS: u32 = 6;
/// The pause between two such looks.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Everything a look-up needs.
pub(crate) struct TakeOver<'a> {
    pub kafka: &'a KafkaSettings,
    pub probe: &'a Probe,
    pub member: &'a Membership,
    pub ids: &'a TopicIds,
    pub shard: Shard,
}

impl TakeOver<'_> {
    pub fn look_up(&self) -> Result<Start, TakeOverFailure> {
        match self.committed()? {
            Some(positions) => self.start_at(positions),
            None => self.start_at_the_logs_starts(),
        }
    }

    fn committed(&self) -> Result<Option<Positions>, TakeOverFailure> {
        let requests = self.name(&Topic::Requests);
        let committed = self.member.committed(&[(&requests, self.shard.partition())])?;
        let Some(committed) = committed.into_iter().next().flatten() else { return Ok(None) };
        // An offset without metadata was set by hand, and says nothing about the votes.
        if committed.metadata.is_empty() {
            return Ok(None);
        }
        Positions::from_metadata(committed.offset, &committed.metadata, self.ids)
            .map(Some)
            .map_err(|bad: BadPositions| self.unusable(bad.to_string()))
    }

    fn start_at(&self, mut positions: Positions) -> Result<Start, TakeOverFailure> {
        let mut ends = BTreeMap::new();
        ends.insert(Topic::Requests, self.end(&Topic::Requests, positions.requests)?);
        ends.insert(Topic::Decisions, self.end(&Topic::Decisions, positions.decisions)?);
        for participant in self.ids.votes.keys() {
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
        Ok(Start { positions, ends })
    }

    fn start_at_the_logs_starts(&self) -> Result<Start, TakeOverFailure> {
        let mut ends = BTreeMap::new();
        let mut votes: Vec<(Participant, u64)> = Vec::new();
        for participant in self.ids.votes.keys() {
            let topic = Topic::Votes(participant.clone());
            let (start, end) = self.watermarks(&topic)?;
            votes.push((participant.clone(), start));
            ends.insert(topic, end);
        }
        let (decisions, end) = self.watermarks(&Topic::Decisions)?;
        ends.insert(Topic::Decisions, end);
        let (requests, end) = self.watermarks(&Topic::Requests)?;
        ends.insert(Topic::Requests, end);
        Ok(Start { positions: Positions { requests, decisions, votes }, ends })
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
            std::thread::sleep(LOOK_PAUSE);
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
