//! The records that the model's logs are made of: each symbol is a real message, encoded once.
//!
//! A symbol is a byte, so that a state is small; what the production functions read are the bytes of the message.

use serde_json::value::RawValue;
use suture_contract::codec::encode;
use suture_contract::ids::{Attempt, LogLetters, Participant, RequestHash, Shard as ShardId, Txid};
use suture_contract::messages::{Ballot, Branch, Cancel, Decision, Request, Verdict, Vote, Voter};
use suture_coordinator_core::shard::Raw;

/// Most requests.
pub const REQUESTS: usize = 3;

/// Participants.
pub const PARTICIPANTS: usize = 2;

/// The only shard there is.
pub const SHARD: ShardId = ShardId(0);

/// A record of the requests topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A transaction of both participants.
    Request {
        /// Its business key.
        key: u8,
        /// Which attempt at it.
        attempt: u32,
        /// What it asks for. Another one under the same key is a conflict.
        content: u8,
        /// Whether it waits for the others of its patient; there is one patient.
        ordered: bool,
    },
    /// Ends the transaction at this place, if it is undecided.
    Cancel(u8),
}

impl Asked {
    /// A first attempt at something of its own.
    pub const fn own(key: u8) -> Self {
        Self::Request { key, attempt: 1, content: 0, ordered: false }
    }
}

/// A record of a votes topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cast {
    /// The participant's yes.
    Yes(u8),
    /// The participant's no.
    No(u8),
    /// A coordinator's no.
    Expired(u8),
    /// A yes to something else under the same name.
    OtherHash(u8),
    /// A yes to the same, asked for at this place of a requests topic that is not there any more.
    OtherLog(u8),
}

impl Cast {
    const PER_REQUEST: u8 = 5;

    /// Which place of the requests it names.
    pub fn request(self) -> usize {
        let (Self::Yes(request)
        | Self::No(request)
        | Self::Expired(request)
        | Self::OtherHash(request)
        | Self::OtherLog(request)) = self;
        usize::from(request)
    }

    /// Whether it is a vote on that transaction.
    pub fn is_about(self, request: usize) -> bool {
        self.request() == request && !matches!(self, Self::OtherHash(_) | Self::OtherLog(_))
    }

    /// What it says.
    pub fn ballot(self) -> Ballot {
        match self {
            Self::Yes(_) | Self::OtherHash(_) | Self::OtherLog(_) => Ballot::Yes,
            Self::No(_) | Self::Expired(_) => Ballot::No,
        }
    }

    /// As a byte, from 1 on.
    pub fn to_byte(self) -> u8 {
        let kind = match self {
            Self::Yes(_) => 0,
            Self::No(_) => 1,
            Self::Expired(_) => 2,
            Self::OtherHash(_) => 3,
            Self::OtherLog(_) => 4,
        };
        1 + self.request() as u8 * Self::PER_REQUEST + kind
    }

    /// From [`Cast::to_byte`].
    pub fn from_byte(byte: u8) -> Self {
        let request = (byte - 1) / Self::PER_REQUEST;
        match (byte - 1) % Self::PER_REQUEST {
            0 => Self::Yes(request),
            1 => Self::No(request),
            2 => Self::Expired(request),
            3 => Self::OtherHash(request),
            _ => Self::OtherLog(request),
        }
    }
}

/// A record of the decision log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// A decision.
    Decision(u8, Verdict),
    /// Its tombstone.
    Tombstone(u8),
}

impl Noted {
    const PER_REQUEST: u8 = 3;

    /// Which transaction it is about.
    pub fn request(self) -> usize {
        let (Self::Decision(request, _) | Self::Tombstone(request)) = self;
        usize::from(request)
    }

    /// As a byte, from 1 on.
    pub fn to_byte(self) -> u8 {
        let kind = match self {
            Self::Decision(_, Verdict::Commit) => 0,
            Self::Decision(_, Verdict::Abort) => 1,
            Self::Tombstone(_) => 2,
        };
        1 + self.request() as u8 * Self::PER_REQUEST + kind
    }

    /// From [`Noted::to_byte`].
    pub fn from_byte(byte: u8) -> Self {
        let request = (byte - 1) / Self::PER_REQUEST;
        match (byte - 1) % Self::PER_REQUEST {
            0 => Self::Decision(request, Verdict::Commit),
            1 => Self::Decision(request, Verdict::Abort),
            _ => Self::Tombstone(request),
        }
    }
}

/// A key and a value.
#[derive(Debug, Clone)]
pub struct Bytes {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl Bytes {
    /// As a record at an offset.
    pub fn at(&self, offset: usize) -> Raw<'_> {
        Raw {
            offset: offset as u64,
            timestamp_ms: offset as i64,
            key: Some(&self.key),
            value: self.value.as_deref(),
            traceparent: None,
        }
    }
}

/// All records of one run, encoded.
pub struct Alphabet {
    /// Names of the participants.
    pub participants: [Participant; PARTICIPANTS],
    /// The letters of the requests topic.
    pub log: LogLetters,
    /// Those of one that was there before.
    other_log: LogLetters,
    /// What is asked for, in the order of the log.
    pub asked: Vec<Asked>,
    requests: Vec<Bytes>,
    hashes: Vec<RequestHash>,
    votes: [Vec<Bytes>; PARTICIPANTS],
    decisions: Vec<Bytes>,
}

impl Alphabet {
    /// Of these requests.
    pub fn of(asked: &[Asked]) -> Self {
        let participants = ["p", "q"].map(|name| name.parse().expect("a valid name"));
        let [log, other_log] = ["k3f9q", "m8x2t"].map(|letters| letters.parse().expect("valid letters"));
        let hashes: Vec<RequestHash> = asked.iter().map(hash_of).collect();
        let mut alphabet = Self {
            participants,
            log,
            other_log,
            asked: asked.to_vec(),
            requests: Vec::new(),
            hashes,
            votes: [Vec::new(), Vec::new()],
            decisions: Vec::new(),
        };
        alphabet.requests = (0..asked.len()).map(|request| alphabet.encode_request(request)).collect();
        for participant in 0..PARTICIPANTS {
            let last = Cast::OtherLog(asked.len() as u8 - 1).to_byte();
            let all = (1..=last).map(|byte| alphabet.encode_vote(participant, Cast::from_byte(byte)));
            alphabet.votes[participant] = all.collect();
        }
        let last = Noted::Tombstone(asked.len() as u8 - 1).to_byte();
        alphabet.decisions = (1..=last).map(|byte| alphabet.encode_noted(Noted::from_byte(byte))).collect();
        alphabet
    }

    /// Of the transaction at this place.
    pub fn txid(&self, request: usize) -> Txid {
        Txid { log: self.log, shard: SHARD, offset: request as u64 }
    }

    /// What the transaction at this place is about.
    pub fn hash(&self, request: usize) -> RequestHash {
        self.hashes[request]
    }

    /// Whether there is a transaction at this place.
    pub fn is_transaction(&self, request: usize) -> bool {
        matches!(self.asked[request], Asked::Request { .. })
    }

    /// The record at this place of the requests.
    pub fn request(&self, request: usize) -> &Bytes {
        &self.requests[request]
    }

    /// A vote.
    pub fn vote(&self, participant: usize, byte: u8) -> &Bytes {
        &self.votes[participant][usize::from(byte) - 1]
    }

    /// A decision or a tombstone.
    pub fn noted(&self, byte: u8) -> &Bytes {
        &self.decisions[usize::from(byte) - 1]
    }

    fn encode_request(&self, request: usize) -> Bytes {
        let (key, attempt, ordered) = match self.asked[request] {
            Asked::Request { key, attempt, ordered, .. } => (key, attempt, ordered),
            Asked::Cancel(target) => {
                let cancel = Cancel {
                    txid: self.txid(usize::from(target)),
                    who: "ward".to_string(),
                    why: "typed by mistake".to_string(),
                };
                return Bytes { key: b"patient".to_vec(), value: Some(encode(&cancel)) };
            }
        };
        let branch = |participant: &Participant| Branch {
            participant: participant.clone(),
            operation: "record".to_string(),
            payload: RawValue::from_string("{}".to_string()).expect("JSON"),
        };
        let message = Request {
            business_key: format!("surgery:{key}").parse().expect("a valid key"),
            attempt: Attempt::new(attempt).expect("a valid attempt"),
            rule: "surgery".to_string(),
            source: None,
            deadline_ms: 30_000,
            ordered,
            branches: self.participants.iter().map(branch).collect(),
            hash: self.hashes[request],
        };
        Bytes { key: b"patient".to_vec(), value: Some(encode(&message)) }
    }

    fn encode_vote(&self, participant: usize, cast: Cast) -> Bytes {
        let txid = match cast {
            Cast::OtherLog(_) => Txid { log: self.other_log, ..self.txid(cast.request()) },
            _ => self.txid(cast.request()),
        };
        let hash = match cast {
            Cast::OtherHash(_) => hash_of(&Asked::Cancel(0)),
            _ => self.hashes[cast.request()],
        };
        let code = match cast {
            Cast::Yes(_) | Cast::OtherHash(_) | Cast::OtherLog(_) => None,
            Cast::No(_) => Some("LIMIT"),
            Cast::Expired(_) => Some("expired"),
        };
        let vote = Vote {
            txid,
            participant: self.participants[participant].clone(),
            vote: cast.ballot(),
            hash,
            by: if matches!(cast, Cast::Expired(_)) { Voter::Coordinator } else { Voter::Participant },
            code: code.map(|code| code.parse().expect("a valid code")),
            duplicate_of: None,
            inquiry: false,
        };
        Bytes { key: txid.to_string().into_bytes(), value: Some(encode(&vote)) }
    }

    fn encode_noted(&self, noted: Noted) -> Bytes {
        let txid = self.txid(noted.request());
        let key = txid.to_string().into_bytes();
        match (noted, self.asked[noted.request()]) {
            (Noted::Decision(_, outcome), Asked::Request { key: business_key, attempt, .. }) => {
                let decision = Decision {
                    txid,
                    outcome,
                    participants: self.participants.to_vec(),
                    business_key: format!("surgery:{business_key}").parse().expect("a valid key"),
                    attempt: Attempt::new(attempt).expect("a valid attempt"),
                    hash: self.hashes[noted.request()],
                };
                Bytes { key, value: Some(encode(&decision)) }
            }
            (Noted::Decision(..), Asked::Cancel(_)) | (Noted::Tombstone(_), _) => Bytes { key, value: None },
        }
    }
}

fn hash_of(asked: &Asked) -> RequestHash {
    let number = match asked {
        Asked::Request { key, content, .. } => u32::from(*key) * 16 + u32::from(*content) + 1,
        Asked::Cancel(_) => 0,
    };
    format!("k1:{number:032x}").parse().expect("a valid hash")
}
