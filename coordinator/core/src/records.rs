//! What a record of the requests or of the votes is, by the record alone: fixed rules, never configuration. A shard acts by them,
//! and whoever reads the logs afterwards sees what it saw.

use std::collections::BTreeSet;

use suture_contract::codec::{self, RequestsRecord, Unreadable};
use suture_contract::ids::{LogLetters, OrderKey, Participant, Shard};
use suture_contract::messages::{Cancel, MAX_BRANCHES, MAX_DEADLINE_MS, MAX_REQUEST_BYTES, Request, Vote};
use suture_contract::partitioner::shard_of;
use suture_contract::register::{NoVote, Register};

use crate::shard::{Raw, Rejected, VoidVote};

/// One partition of the protocol's topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which incarnation of the requests topic.
    pub log: LogLetters,
    /// The partition.
    pub shard: Shard,
    /// Of how many.
    pub partitions: u16,
}

impl Place {
    /// What a record of the requests is.
    ///
    /// # Errors
    /// The version of a record that a later version of Suture has written.
    pub fn read_request(&self, raw: Raw<'_>) -> Result<Result<RequestsRecord, Rejected>, u64> {
        let value = raw.value.unwrap_or_default();
        if value.len() > MAX_REQUEST_BYTES {
            return Ok(Err(Rejected::TooLarge));
        }
        let record = match codec::decode_requests_record(value) {
            Ok(record) => record,
            Err(Unreadable::Newer { v }) => return Err(v),
            Err(unreadable) => return Ok(Err(Rejected::Unreadable(unreadable))),
        };
        let rejected = match &record {
            RequestsRecord::Request(request) => self.why_no_request(raw.key, request),
            RequestsRecord::Cancel(cancel) => self.why_no_cancel(raw.offset, cancel),
        };
        Ok(rejected.map_or(Ok(record), Err))
    }

    fn why_no_request(&self, key: Option<&[u8]>, request: &Request) -> Option<Rejected> {
        let Some(key) = key.filter(|key| !key.is_empty()) else { return Some(Rejected::NoKey) };
        if shard_of(key, self.partitions) != self.shard {
            return Some(Rejected::Misrouted);
        }
        if request.branches.is_empty() {
            return Some(Rejected::NoParticipant);
        }
        if request.branches.len() > MAX_BRANCHES {
            return Some(Rejected::TooManyParticipants);
        }
        let named: BTreeSet<_> = request.branches.iter().map(|branch| &branch.participant).collect();
        if named.len() < request.branches.len() {
            return Some(Rejected::ParticipantTwice);
        }
        if !(1..=MAX_DEADLINE_MS).contains(&request.deadline_ms) {
            return Some(Rejected::BadDeadline);
        }
        (request.ordered && order_key(key).is_none()).then_some(Rejected::BadOrderKey)
    }

    fn why_no_cancel(&self, offset: u64, cancel: &Cancel) -> Option<Rejected> {
        if cancel.txid.log != self.log || cancel.txid.offset >= offset {
            return Some(Rejected::UnknownTransaction);
        }
        (cancel.txid.shard != self.shard).then_some(Rejected::Misrouted)
    }

    /// What a record of a participant's votes is.
    ///
    /// # Errors
    /// The version of a record that a later version of Suture has written.
    pub fn read_vote(&self, participant: &Participant, raw: Raw<'_>) -> Result<Result<Vote, VoidVote>, u64> {
        let register = Register { log: self.log, shard: self.shard, participant };
        match register.read_vote(raw.key, raw.value) {
            Ok(vote) => Ok(Ok(vote)),
            Err(NoVote::Newer { v }) => Err(v),
            Err(NoVote::Unreadable) => Ok(Err(VoidVote::Unreadable)),
            Err(NoVote::ForeignLog) => Ok(Err(VoidVote::ForeignLog)),
            Err(NoVote::Misrouted) => Ok(Err(VoidVote::Misrouted)),
            Err(NoVote::Malformed) => Ok(Err(VoidVote::Malformed)),
        }
    }
}

/// The key of a request record, where it may stand for the order of transactions.
pub(crate) fn order_key(key: &[u8]) -> Option<OrderKey> {
    std::str::from_utf8(key).ok()?.parse().ok()
}
