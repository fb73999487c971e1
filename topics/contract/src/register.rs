//! A record of a votes topic: whether it is a vote, by the record alone. Fixed rules, never configuration: the coordinators and the
//! participant whose register it is see the same, in every version.
//!
//! Whether the vote *counts* is another question: the first one of the right hash does.

use crate::codec::{self, Unreadable};
use crate::ids::{LogLetters, Participant, Shard};
use crate::messages::{Ballot, Vote, Voter};

/// Where a record of votes was read.
#[derive(Debug, Clone, Copy)]
pub struct Register<'a> {
    /// Which incarnation of the requests topic there is.
    pub log: LogLetters,
    /// Its partition.
    pub shard: Shard,
    /// Whose votes these are.
    pub participant: &'a Participant,
}

/// Why a record of a votes topic is no vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoVote {
    /// A later version of Suture has written it: it may be a vote.
    Newer {
        /// Its version.
        v: u64,
    },
    /// Nobody can read it.
    Unreadable,
    /// Of another incarnation of the requests topic.
    ForeignLog,
    /// Key, partition or topic do not fit what it says.
    Misrouted,
    /// A `no` without a reason, or a coordinator's yes.
    Malformed,
}

impl Register<'_> {
    /// Reads a record.
    ///
    /// # Errors
    /// Why it is no vote.
    pub fn read_vote(&self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Vote, NoVote> {
        let vote: Vote = codec::decode(value.unwrap_or_default()).map_err(|unreadable| match unreadable {
            Unreadable::Newer { v } => NoVote::Newer { v },
            _ => NoVote::Unreadable,
        })?;
        if vote.txid.log != self.log {
            return Err(NoVote::ForeignLog);
        }
        let key_fits = key.is_some_and(|key| key == vote.txid.to_string().as_bytes());
        if !key_fits || vote.txid.shard != self.shard || vote.participant != *self.participant {
            return Err(NoVote::Misrouted);
        }
        let well_formed = match (vote.vote, vote.by) {
            (Ballot::No, Voter::Participant | Voter::Coordinator) => vote.code.is_some(),
            (Ballot::Yes, Voter::Participant) => true,
            (Ballot::Yes, Voter::Coordinator) => false,
        };
        if well_formed { Ok(vote) } else { Err(NoVote::Malformed) }
    }
}
