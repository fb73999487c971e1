//! Where an owner of a shard starts to read: one small record.
//!
//! | | |
//! |---|---|
//! | W | the lowest unfinished offset of the requests partition |
//! | V | for each participant, an offset at or before the first vote of every transaction at or above W, decided or not |
//! | D | an offset at or before every decision of a transaction at or above W |
//!
//! W is committed as the group's offset on the requests partition; V and D, with the ids of the topics that they are
//! offsets of, are the metadata of that same commit. One record is never torn, and every one ever written stays correct
//! as long as the logs reach back to it: a late or lower one costs only reading.
//!
//! The metadata is base64 of bytes, because Kafka takes 4,096 of them at most: version (1), the first 8 bytes of the
//! requests topic's and the decisions topic's id, D, the number of participants, and for each the first 8 bytes of its votes
//! topic's id and V. Numbers are LEB128. A participant takes some 16 bytes, so 200 participants fit.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use suture_contract::ids::Participant;

/// Most metadata that a broker takes with an offset, in bytes (`offset.metadata.max.bytes`).
pub const MAX_METADATA_BYTES: usize = 4_096;

const VERSION: u8 = 1;

/// Where to start to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Positions {
    /// W.
    pub requests: u64,
    /// D.
    pub decisions: u64,
    /// V. A participant that is not here joined later: its votes are read from the log's start.
    pub votes: Vec<(Participant, u64)>,
}

/// The ids of the topics that offsets belong to. A topic that was deleted and created again has another one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs)]
pub struct TopicIds {
    pub requests: [u8; 16],
    pub decisions: [u8; 16],
    pub votes: BTreeMap<Participant, [u8; 16]>,
}

/// Why positions cannot be used. The shard stops: the remedy is to delete the group's offsets, which costs only reading.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPositions {
    /// Not written by this version.
    #[error("the positions in the offset's metadata cannot be read")]
    Unreadable,
    /// Offsets of topics that are not there any more.
    #[error(
        "the positions belong to another {topic} topic than the one that is there now (deleted and created again?)"
    )]
    ForeignTopic {
        /// Which, without the prefix.
        topic: &'static str,
    },
    /// More than a broker takes.
    #[error(
        "{bytes} bytes of positions are more than the {MAX_METADATA_BYTES} that a broker takes: too many participants"
    )]
    TooLong {
        /// How many.
        bytes: usize,
    },
}

impl Positions {
    /// The metadata of the commit.
    ///
    /// # Errors
    /// [`BadPositions::TooLong`]; a participant without a topic id is left out, which costs its next reader a longer read.
    pub fn to_metadata(&self, ids: &TopicIds) -> Result<String, BadPositions> {
        let mut bytes = vec![VERSION];
        bytes.extend(&ids.requests[..8]);
        bytes.extend(&ids.decisions[..8]);
        write_number(&mut bytes, self.decisions);
        let votes: Vec<_> = self.votes.iter().filter_map(|(name, at)| Some((ids.votes.get(name)?, *at))).collect();
        write_number(&mut bytes, votes.len() as u64);
        for (id, at) in votes {
            bytes.extend(&id[..8]);
            write_number(&mut bytes, at);
        }
        let metadata = URL_SAFE_NO_PAD.encode(bytes);
        if metadata.len() > MAX_METADATA_BYTES {
            return Err(BadPositions::TooLong { bytes: metadata.len() });
        }
        Ok(metadata)
    }

    /// Reads what [`Positions::to_metadata`] wrote; `requests` is the committed offset itself.
    ///
    /// A participant that is not in the metadata is left out: it joined later.
    pub fn from_metadata(requests: u64, metadata: &str, ids: &TopicIds) -> Result<Self, BadPositions> {
        let bytes = URL_SAFE_NO_PAD.decode(metadata).map_err(|_| BadPositions::Unreadable)?;
        let mut rest = bytes.as_slice();
        if take::<1>(&mut rest)? != [VERSION] {
            return Err(BadPositions::Unreadable);
        }
        if take::<8>(&mut rest)? != ids.requests[..8] {
            return Err(BadPositions::ForeignTopic { topic: "requests" });
        }
        if take::<8>(&mut rest)? != ids.decisions[..8] {
            return Err(BadPositions::ForeignTopic { topic: "decisions" });
        }
        let decisions = read_number(&mut rest)?;
        let mut votes = Vec::new();
        for _ in 0..read_number(&mut rest)? {
            let id = take::<8>(&mut rest)?;
            let at = read_number(&mut rest)?;
            let Some((participant, _)) = ids.votes.iter().find(|(_, known)| known[..8] == id) else {
                return Err(BadPositions::ForeignTopic { topic: "votes" });
            };
            votes.push((participant.clone(), at));
        }
        if !rest.is_empty() {
            return Err(BadPositions::Unreadable);
        }
        Ok(Self { requests, decisions, votes })
    }
}

fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read_number(rest: &mut &[u8]) -> Result<u64, BadPositions> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let [byte] = take::<1>(rest)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(BadPositions::Unreadable)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BadPositions> {
    let (first, behind) = rest.split_first_chunk::<N>().ok_or(BadPositions::Unreadable)?;
    *rest = behind;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(participants: usize) -> TopicIds {
        let votes = (0..participants).map(|i| (name(i), [i as u8; 16])).collect();
        TopicIds { requests: [101; 16], decisions: [102; 16], votes }
    }

    fn name(i: usize) -> Participant {
        format!("p{i}").parse().unwrap()
    }

    #[test]
    fn metadata_round_trips_and_stays_below_the_brokers_limit() {
        let ids = ids(200);
        let votes = (0..200).map(|i| (name(i), 1_000_000 + i as u64)).collect();
        let positions = Positions { requests: 7, decisions: 300, votes };
        let metadata = positions.to_metadata(&ids).unwrap();
        let mut read = Positions::from_metadata(7, &metadata, &ids).unwrap();
        read.votes.sort_by_key(|(_, at)| *at);
        assert_eq!(read, positions);
    }

    #[test]
    fn too_many_participants_are_refused_and_not_cut() {
        let many = TopicIds { votes: (0..400).map(|i| (name(i), [1; 16])).collect(), ..ids(0) };
        let votes = (0..400).map(|i| (name(i), u64::MAX >> 1)).collect();
        let positions = Positions { requests: 0, decisions: 0, votes };
        assert!(matches!(positions.to_metadata(&many), Err(BadPositions::TooLong { .. })));
    }

    #[test]
    fn positions_of_another_topic_or_cut_ones_are_refused() {
        let positions = Positions { requests: 7, decisions: 300, votes: vec![(name(1), 9)] };
        let metadata = positions.to_metadata(&ids(2)).unwrap();
        let other = TopicIds { requests: [9; 16], ..ids(2) };
        let foreign = Positions::from_metadata(7, &metadata, &other);
        assert_eq!(foreign, Err(BadPositions::ForeignTopic { topic: "requests" }));
        for cut in 0..metadata.len() {
            assert!(Positions::from_metadata(7, &metadata[..cut], &ids(2)).is_err(), "cut at {cut}");
        }
        assert!(Positions::from_metadata(7, "hello", &ids(2)).is_err());
        let gone = Positions::from_metadata(7, &metadata, &ids(1));
        assert_eq!(gone, Err(BadPositions::ForeignTopic { topic: "votes" }));
        let joined = Positions::from_metadata(7, &metadata, &ids(3)).unwrap();
        assert_eq!(joined.votes, positions.votes, "who joined later has no position yet");
    }
}
