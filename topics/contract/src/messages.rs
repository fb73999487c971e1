//! The protocol messages. Field by field what travels, nothing about what follows from it.
//!
//! Payloads (patient data) travel in [`Request`] and [`Prepare`] only; every other message carries names, keyed hashes
//! and codes. All copies of a [`Decision`] are equal to the byte, so it holds no time, no reason and no author.
//!
//! Serde rules: unknown fields are refused and nothing is flattened or untagged (both buffer, and lose the digits of a
//! decimal). A field that is absent is not written, so that each message has one spelling.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ids::{Attempt, BusinessKey, Code, OrderKey, Origin, Participant, RequestHash, Txid};

/// Most branches a request may name.
pub const MAX_BRANCHES: usize = 32;

/// Longest request record that is taken, in bytes of its value. Below the default limit of every Kafka producer.
pub const MAX_REQUEST_BYTES: usize = 900_000;

/// Longest deadline that a request may ask for: one hour.
pub const MAX_DEADLINE_MS: u64 = 3_600_000;

/// Asks for a transaction. Its place in the requests topic becomes the transaction's name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What the event is about.
    pub business_key: BusinessKey,
    /// How often this was asked for, from 1.
    pub attempt: Attempt,
    /// The ingest rule that made it, or the application's own name for it.
    pub rule: String,
    /// The upstream event; absent when an application asks by itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<Origin>,
    /// How long the participants have to vote, in milliseconds from when an owner first reads the request live.
    pub deadline_ms: u64,
    /// Whether transactions of the same order key run one after the other.
    pub ordered: bool,
    /// One branch a participant.
    pub branches: Vec<Branch>,
    /// Covers business key and branches.
    pub hash: RequestHash,
}

/// One participant's part of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Branch {
    /// Who.
    pub participant: Participant,
    /// The name of an operation in the participant's own configuration.
    pub operation: String,
    /// What the operation needs, and nothing else. Any JSON; its digits are kept as they are.
    pub payload: Box<RawValue>,
}

/// Asks to end a transaction before its deadline. Stands in the requests topic, in the transaction's own shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// Which transaction.
    pub txid: Txid,
    /// Who asks.
    pub who: String,
    /// Why.
    pub why: String,
}

/// Asks one participant to prepare its branch.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// The transaction.
    pub txid: Txid,
    /// What it is about.
    pub business_key: BusinessKey,
    /// How often this was asked for.
    pub attempt: Attempt,
    /// The operation to prepare.
    pub operation: String,
    /// What the operation needs.
    pub payload: Box<RawValue>,
    /// The request's.
    pub hash: RequestHash,
    /// For ordered keys only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub order_key: Option<OrderKey>,
}

/// A claim to fill one register. The first record of a (transaction, participant) in its votes partition is the vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// The transaction.
    pub txid: Txid,
    /// Whose register.
    pub participant: Participant,
    /// Yes: can commit whatever comes. No: the transaction aborts.
    pub vote: Ballot,
    /// The hash of what was voted on.
    pub hash: RequestHash,
    /// Who wrote it; a coordinator writes `no` only.
    pub by: Voter,
    /// Why not. Every `no` has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<Code>,
    /// The transaction that took effect for the same business key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub duplicate_of: Option<Txid>,
    /// Said again because no decision came.
    #[serde(skip_serializing_if = "is_false", default)]
    pub inquiry: bool,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs)]
pub enum Ballot {
    Yes,
    No,
}

/// Who wrote a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Voter {
    /// The participant itself.
    Participant,
    /// A coordinator, for a participant that was silent, unknown or cancelled.
    Coordinator,
}

/// Commit or abort: the product of all votes. Byte-equal in all its copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// The transaction.
    pub txid: Txid,
    /// What was decided.
    pub outcome: Verdict,
    /// Whom it concerns, in the request's order.
    pub participants: Vec<Participant>,
    /// The request's, for a ledger that never saw the prepare.
    pub business_key: BusinessKey,
    /// The request's.
    pub attempt: Attempt,
    /// The request's.
    pub hash: RequestHash,
}

/// Commit or abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs)]
pub enum Verdict {
    Commit,
    Abort,
}

/// The result with its reasons, for submitters and operators. Readers take the first of a txid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The transaction.
    pub txid: Txid,
    /// What it was about.
    pub business_key: BusinessKey,
    /// How often it was asked for.
    pub attempt: Attempt,
    /// What was decided.
    pub outcome: Verdict,
    /// All named participants, in the request's order.
    pub votes: Vec<RegisterView>,
    /// The committed transaction of the same business key, where a participant named one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub duplicate_of: Option<Txid>,
    /// Whether asking again, unchanged, may succeed: every `no` is a passing one.
    pub retryable: bool,
}

/// What stood in a register when the transaction was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterView {
    /// Whose.
    pub participant: Participant,
    /// Absent: no vote was read before another's `no` decided.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vote: Option<Ballot>,
    /// The reason of a `no`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<Code>,
}

/// What could not be accepted, why, and where it came from. Never the content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejection {
    /// The record that was refused.
    pub origin: Origin,
    /// Why.
    pub code: Code,
    /// The field at fault, as a path; absent when it is the whole record.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub field: Option<String>,
}

/// What a person must know about a participant, or has settled there. Stands beside the outcomes. Nobody obeys it: what counts
/// is the participant's own ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incident {
    /// Where it happened.
    pub participant: Participant,
    /// What happened.
    pub what: IncidentKind,
    /// The transaction, where one is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub txid: Option<Txid>,
    /// What it was about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub business_key: Option<BusinessKey>,
    /// How often it was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attempt: Option<Attempt>,
    /// The hash of the message that was met.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hash: Option<RequestHash>,
    /// The verdict that could not be obeyed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub outcome: Option<Verdict>,
    /// The record that could not be obeyed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub origin: Option<Origin>,
    /// Why a record is unreadable; `without_key`, if a word was taken whose row has no business key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<Code>,
    /// How a branch was left.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub settled: Option<Settled>,
    /// The person who settled it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub who: Option<String>,
    /// Why so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub because: Option<String>,
}

/// What happened at a participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncidentKind {
    /// A commit, and nothing here to commit: the others count on an effect that is not here.
    Lost,
    /// A decision against the ledger.
    Contradiction,
    /// A message about something else under the same txid.
    OtherHash,
    /// A record that cannot be read, or is misrouted, and must not be passed.
    Unreadable,
    /// A branch in doubt was finished, and no decision was carried out.
    FinishedByHand,
    /// A person has taken the branch over.
    Resolved,
    /// A person has let a record be passed.
    Skipped,
}

/// How a branch was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settled {
    /// Its effect is there; made by hand, if somebody resolved it so.
    Committed,
    /// Its effect is not there, and somebody answers for that.
    Abandoned,
    /// Its effect is not there.
    RolledBack,
}

impl IncidentKind {
    /// As it travels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Contradiction => "contradiction",
            Self::OtherHash => "other_hash",
            Self::Unreadable => "unreadable",
            Self::FinishedByHand => "finished_by_hand",
            Self::Resolved => "resolved",
            Self::Skipped => "skipped",
        }
    }
}

impl Settled {
    /// As it travels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Abandoned => "abandoned",
            Self::RolledBack => "rolled_back",
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}
