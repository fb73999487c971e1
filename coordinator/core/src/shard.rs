//! The shard: the coordinator's whole judgement about one partition, without a clock, I/O or randomness.
//!
//! ```text
//!   requests, votes.*, decisions --> apply(record)          the only way in for protocol state
//!   what the broker acknowledged --> delivered(what, how)   moves the watermark, and nothing else
//!   time                         --> step(now) -> Step      what is to be appended, in this order of durability:
//!                                                             prepares, noes   at once
//!                                                             decisions        registers filled, by records read
//!                                                             outcomes         their decision is acknowledged
//!   positions()                  --> where another owner may start to read
//! ```
//!
//! The rules, by the numbers of the design's chapter on the coordinator:
//!
//! 1. *Open.* A request opens a transaction named by its place in the log. Whether a record is a request hangs on the
//!    record alone ([`crate::shard::Rejected`] lists the reasons), never on configuration.
//! 2. *Vote.* The first vote record of a register is the vote. It must carry txid and hash of the request. A vote for a
//!    request that was not read yet is held; past a bound it is let go and read again later ([`crate::early`]).
//! 3. *Decide.* The decision is the product of the registers, nothing else. It is told when its append is acknowledged.
//! 4. *Expire.* A silent, cancelled or unknown participant gets a `no` in its register, which counts when it is read back.
//!    Expiry waits until the votes partition was read to its end once.
//! 5. *Positions.* W, V and D are one record; see [`crate::positions`].
//! 6. *Take a shard.* Everything is folded through the same `apply`; `step` answers nothing before [`Shard::go_live`].
//! 7. *Duplicates* are settled in the ledgers; the outcome repeats what the votes say.
//! 8. *Bounded.* [`Limits::window`] pauses requests, never votes; [`Limits::held_votes`] bounds what is held. Transactions
//!    that wait for a missing topic, or for their turn, may wait for days: they have a bound of their own, and what was
//!    finished behind them is not kept (`Floor`).
//! 9. *Ordered keys.* A transaction whose request asks for it starts when no earlier one with its order key is left whose
//!    decision does not stand in the log. Until then it is sent nowhere and has no deadline. The order is that of the
//!    requests log, so every owner has the same. What it asks for is not kept while it waits, but read again at its turn
//!    ([`Step::recalls`]).
//!
//! 10. *Clean-up* is judged apart from any shard: [`crate::cleanup`].
//! 11. *Inquiry.* A vote that is said again and marked asks for its decision. Who is answered, and how often, says
//!     [`crate::inquiry`]. What is read while the shard is being taken is not answered: who is in doubt asks again.
//!
//! A failed append needs no undo: `step` only marks what is under way, and what was not delivered is due again, the same
//! bytes under the same key.
//!
//! Left out: a hot standby.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use suture_contract::codec::{self, RequestsRecord, Unreadable};
use suture_contract::ids::{LogLetters, Origin, Participant, RequestHash, Shard as ShardId, Txid, code};
use suture_contract::messages::{
    Ballot, Cancel, Decision, Outcome, Prepare, RegisterView, Rejection, Request, Verdict, Vote, Voter,
};

use crate::early::{EarlyVotes, HeldVote};
use crate::inquiry::{Claim, Inquiries};
use crate::positions::Positions;
use crate::records::{Place, order_key};
use crate::transaction::{
    Content, Effect, Event, Line, NoReason, Reason, Register, Sending, State, Transaction, Violation,
};

/// Bounds of one shard's memory.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests are not read further while the window holds this many. Bounds the transactions that wait for a missing
    /// topic or for their turn too, which the window does not count.
    pub window: usize,
    /// Votes of one participant held for requests that were not read yet.
    pub held_votes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { window: 50_000, held_votes: 4_096 }
    }
}

/// A record as Kafka gives it.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    /// Its offset.
    pub offset: u64,
    /// The broker's time of append, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// The `traceparent` header.
    pub traceparent: Option<&'a str>,
}

/// A record of this shard's partition, by topic.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs)]
pub enum Record<'a> {
    Request(Raw<'a>),
    Vote(&'a Participant, Raw<'a>),
    Decision(Raw<'a>),
}

/// Why a shard must not go on. Nothing is acknowledged; other shards go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// A newer version of Suture is writing.
    #[error("{topic} offset {offset}: written by version {v}, newer than this build; upgrade this coordinator")]
    Newer {
        /// Which topic, without the prefix.
        topic: String,
        /// Where.
        offset: u64,
        /// The version found.
        v: u64,
    },
    /// A decision that cannot be read or does not belong here.
    #[error(
        "decisions offset {offset}: {reason}; no coordinator writes that, so somebody else has the right to write: find out who; to pass it name it under coordinator.pass in the configuration of every coordinator (docs/operations.md)"
    )]
    BadDecision {
        /// Where.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two decisions of one transaction, read before its request.
    #[error(
        "decisions offsets {earlier} and {offset}: they are of {txid} and not equal, so one of them is not a coordinator's: compare them with the votes (`suture tx show {txid}`); find out who wrote it; to pass that one name it under coordinator.pass in the configuration of every coordinator (docs/operations.md)"
    )]
    UnequalDecisions {
        /// Of which transaction.
        txid: Txid,
        /// Where the first is.
        earlier: u64,
        /// Where the other one is.
        offset: u64,
    },
    /// The logs contradict each other.
    #[error(
        "transaction {txid}: {violation}; acknowledged records were lost or changed, do not go on before that is understood"
    )]
    Contradiction {
        /// Which transaction.
        txid: Txid,
        /// The pair that cannot be.
        violation: Violation,
    },
    /// A request that was read again is not the one that was there.
    #[error(
        "transaction {txid}: its place in the requests holds another record than before; acknowledged records were lost or changed, do not go on before that is understood"
    )]
    RequestChanged {
        /// Which transaction.
        txid: Txid,
    },
    /// The broker will never take an append that the protocol needs.
    #[error(
        "transaction {txid}: the broker refuses to take the {what}; check the coordinator's rights and the topic's max.message.bytes"
    )]
    AppendRefused {
        /// Which transaction (or the place of the rejected request).
        txid: Txid,
        /// Which append.
        what: &'static str,
    },
    /// More distinct participants were named than a shard can count.
    #[error("more than 65535 different participants were named in this shard's window")]
    TooManyParticipants,
}

/// One append, as `delivered` names it. A branch is an index of the request's branches: the same for every owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs)]
pub enum What {
    Prepare { offset: u64, branch: u16 },
    No { offset: u64, branch: u16 },
    Decision { offset: u64 },
    Outcome { offset: u64 },
    Rejection { offset: u64 },
    Echo { offset: u64 },
}

/// How an append ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It stands in the log.
    Acknowledged,
    /// Unknown, or not written: due again.
    Again,
    /// The broker will never take it.
    Refused,
}

/// What is to be appended now. Everything may be sent at once; the order of durability is kept by what becomes due when.
#[derive(Debug, Default)]
pub struct Step {
    /// To each named participant's prepare topic.
    pub prepares: Vec<Append<(Participant, Prepare)>>,
    /// `no` in a participant's place, to its votes topic. Counts when it is read back.
    pub noes: Vec<Append<Vote>>,
    /// To the decision log. Registers are filled.
    pub decisions: Vec<Append<Decision>>,
    /// To the outcomes. Their decisions are acknowledged.
    pub outcomes: Vec<Append<Outcome>>,
    /// Decisions that are in the decision log already, once more, equal: a participant asked.
    pub echoes: Vec<Append<Decision>>,
    /// To the rejected.
    pub rejections: Vec<Append<Rejection>>,
    /// Votes partitions to read again from an offset: votes that were let go can be placed now.
    pub rereads: Vec<(Participant, u64)>,
    /// Requests to read once more, by offset: what they ask for is needed again. Give them to [`Shard::recalled`].
    pub recalls: Vec<u64>,
    /// Transactions whose decisions are to be looked for in the decision log: answer with [`Shard::looked_for`].
    pub seek: Vec<Txid>,
    /// Participants of which the shard must know whether they have topics: answer with [`Shard::standing`].
    pub look_up: Vec<Participant>,
    /// What an operator should know.
    pub alarms: Vec<Alarm>,
}

/// A message and what it is.
#[derive(Debug)]
pub struct Append<M> {
    /// Names the append in [`Shard::delivered`].
    pub what: What,
    /// What to append.
    pub message: M,
    /// The trace it belongs to.
    pub traceparent: Option<Box<str>>,
}

/// What an operator should know. The shard goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// A vote was void for a reason that an honest participant does not give.
    ForeignVote {
        /// In whose votes topic.
        participant: Participant,
        /// Where.
        offset: u64,
        /// Why it does not count.
        reason: VoidVote,
    },
    /// A named participant has no topics, and no register that is still empty can take the `no`. Said once a transaction.
    NobodyKnown {
        /// Which transaction waits.
        txid: Txid,
        /// Who has no topics.
        participants: Vec<Participant>,
    },
    /// A participant asks for a decision, and the decision log has none of that transaction.
    NoDecision {
        /// Which transaction.
        txid: Txid,
        /// Who asks.
        participant: Participant,
        /// Whether the request is below the start of its log: the decision may have been cleaned up. If not, it was lost, or
        /// there was no such transaction.
        is_gone: bool,
    },
    /// Votes have been waiting for their requests for so long that somebody invented them, or requests were lost.
    EarlyVotes {
        /// Whose.
        participants: Vec<Participant>,
    },
    /// A request or a cancellation was refused; the rejection says the same.
    RequestRejected {
        /// Where.
        offset: u64,
        /// Why.
        why: Rejected,
    },
}

/// Why a vote record does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VoidVote {
    /// Unreadable.
    Unreadable,
    /// Key, partition or topic do not fit what the record says.
    Misrouted,
    /// Of another incarnation of the requests topic.
    ForeignLog,
    /// The request has another hash.
    WrongHash,
    /// The request does not name this participant.
    NotNamed,
    /// There is no such transaction: its place holds no request.
    NoTransaction,
    /// A `no` without a reason, or a coordinator's yes.
    Malformed,
}

/// Why a record of the requests topic is no request. Fixed rules: every coordinator of every version 1 sees the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs)]
pub enum Rejected {
    Unreadable(Unreadable),
    TooLarge,
    NoKey,
    Misrouted,
    NoParticipant,
    TooManyParticipants,
    ParticipantTwice,
    BadDeadline,
    BadOrderKey,
    UnknownTransaction,
}

impl Rejected {
    /// The reason code and the field at fault.
    pub fn code_and_field(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Unreadable(unreadable) => (unreadable.code(), None),
            Self::TooLarge => ("too_large", None),
            Self::NoKey => ("no_key", None),
            Self::Misrouted => ("misrouted", None),
            Self::NoParticipant => ("no_participant", Some("branches")),
            Self::TooManyParticipants => ("too_many_participants", Some("branches")),
            Self::ParticipantTwice => ("participant_twice", Some("branches")),
            Self::BadDeadline => ("bad_deadline", Some("deadline_ms")),
            Self::BadOrderKey => ("bad_order_key", None),
            Self::UnknownTransaction => ("unknown_transaction", Some("txid")),
        }
    }
}

/// Figures for the summary line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Transactions without a decision.
    pub open: usize,
    /// Everything that is remembered from the watermark on.
    pub window: usize,
    /// Transactions that wait for a missing topic.
    pub waiting: usize,
    /// Transactions that wait for their turn.
    pub in_line: usize,
    /// Votes held for requests that were not read yet.
    pub held_votes: usize,
    /// Decisions computed since this owner took the shard.
    pub committed: u64,
    /// Decisions computed since this owner took the shard.
    pub aborted: u64,
    /// Requests refused since this owner took the shard.
    pub rejected: u64,
    /// Votes that did not count, late ones aside.
    pub void_votes: u64,
    /// Decisions appended again because a participant asked.
    pub echoed: u64,
}

/// What the decision log says of transactions that were looked for.
#[derive(Debug, Clone, Copy)]
pub struct LookedFor<'a> {
    /// All that were looked for.
    pub txids: &'a [Txid],
    /// The last record of each that there is one of. The log was read to its end.
    pub records: &'a [Raw<'a>],
    /// The start of the requests log, looked up after that.
    pub requests_start: u64,
}

/// One partition of all protocol topics, as its owner knows it.
#[derive(Debug)]
pub struct Shard {
    log: LogLetters,
    id: ShardId,
    partitions: u16,
    requests_topic: String,
    limits: Limits,
    live: bool,

    roster: Vec<Seat>,
    window: BTreeMap<u64, Entry>,
    /// Everything in the window below this offset waits, for a missing topic or for its turn.
    front: u64,
    /// Transactions in the window that wait so.
    waiting: usize,
    floor: Floor,
    /// The ordered transactions that are not told, by line and place: the first of each line may go.
    lines: BTreeSet<(Line, u64)>,
    next_request: u64,
    next_decision: u64,
    /// Decisions that were read before their requests, by request offset; at most as many as the window.
    early_decisions: BTreeMap<u64, EarlyDecision>,
    /// Since when early votes were there, whenever a step looked.
    early_votes_since: Option<Duration>,
    inquiries: Inquiries,

    /// Offsets to look at in the next step; each transaction stands here at most once.
    due: VecDeque<u64>,
    /// (milliseconds on the owner's clock, request offset).
    deadlines: BTreeSet<(u64, u64)>,
    alarms: Vec<Alarm>,
    summary: Summary,
}

/// A place in the window.
#[derive(Debug)]
enum Entry {
    Transaction(Box<Transaction>),
    /// A refused record whose rejection is not acknowledged.
    Rejected {
        why: Rejected,
        sending: Sending,
    },
}

/// One participant as this shard knows it.
#[derive(Debug)]
struct Seat {
    participant: Participant,
    standing: Standing,
    /// Whether the votes partition was read to its end once.
    caught_up: bool,
    /// The offset after the last vote record read.
    next_vote: u64,
    early: EarlyVotes,
}

/// Whether a participant has topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    NotAsked,
    Asked,
    Served,
    Missing,
}

/// A decision that was read before its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EarlyDecision {
    at: u64,
    verdict: Verdict,
    hash: RequestHash,
}

/// What the positions must not pass although the window does not hold it: votes and decisions of transactions that were
/// finished behind one that waits.
#[derive(Debug, Default)]
struct Floor {
    /// It holds while the watermark is below this request.
    below: u64,
    /// The lowest first vote by seat; the roster may have grown longer.
    votes: Vec<u64>,
    decisions: Option<u64>,
}

/// Early votes that are there for so long are an operator's business.
const EARLY_FOR_LONG: Duration = Duration::from_secs(3_600);

impl Shard {
    /// A shard that has read nothing. Reading starts at `positions`; without one, at the logs' starts.
    ///
    /// `requests_topic` is the full name, as it stands in the origin of rejections.
    pub fn new(
        log: LogLetters,
        id: ShardId,
        partitions: u16,
        requests_topic: String,
        limits: Limits,
        positions: &Positions,
    ) -> Self {
        let mut shard = Self {
            log,
            id,
            partitions,
            requests_topic,
            limits,
            live: false,
            roster: Vec::new(),
            window: BTreeMap::new(),
            front: 0,
            waiting: 0,
            floor: Floor::default(),
            lines: BTreeSet::new(),
            next_request: positions.requests,
            next_decision: positions.decisions,
            early_decisions: BTreeMap::new(),
            early_votes_since: None,
            inquiries: Inquiries::default(),
            due: VecDeque::new(),
            deadlines: BTreeSet::new(),
            alarms: Vec::new(),
            summary: Summary::default(),
        };
        for (participant, next_vote) in &positions.votes {
            shard.roster.push(Seat {
                participant: participant.clone(),
                standing: Standing::Served,
                caught_up: false,
                next_vote: *next_vote,
                early: EarlyVotes::default(),
            });
        }
        shard
    }

    /// Takes in one record. Records of one partition come in their order; one that was read before changes nothing.
    pub fn apply(&mut self, record: Record<'_>) -> Result<(), Stop> {
        match record {
            Record::Request(raw) => self.apply_request(raw),
            Record::Vote(participant, raw) => self.apply_vote(participant, raw),
            Record::Decision(raw) => self.apply_decision(raw),
        }
    }

    /// A request was read once more: what it asks for was not kept while the transaction waited for its turn. Unless this
    /// shard asked ([`Step::recalls`]) it changes nothing; an earlier tenure of this process may have asked.
    pub fn recalled(&mut self, raw: Raw<'_>) -> Result<(), Stop> {
        let asked_for = |transaction: &&mut Transaction| transaction.recall == Sending::UnderWay;
        if transaction_mut(&mut self.window, raw.offset).filter(asked_for).is_none() {
            return Ok(());
        }
        let read = self.read_request(raw)?;
        let txid = self.txid(raw.offset);
        let Some(transaction) = transaction_mut(&mut self.window, raw.offset) else { return Ok(()) };
        match read {
            Ok(RequestsRecord::Request(request)) if request.hash == transaction.hash => {
                transaction.recall = Sending::Done;
                if transaction.state == State::Open && transaction.no_reason.is_none() {
                    transaction.content = Some(content_of(raw.key, request));
                }
                self.queue(raw.offset);
                Ok(())
            }
            Ok(_) | Err(_) => Err(Stop::RequestChanged { txid }),
        }
    }

    /// All logs were read to the ends that they had when the shard was taken: from now on `step` answers. A full window
    /// ([`Shard::wants_requests`]) counts as the requests' end.
    ///
    /// `wall_ms` is the wall clock in milliseconds since 1970. It only finds requests that were handed on so often that
    /// they never reach a deadline: with a vote in a register and ten deadlines old, they get no new one. (An ordered one is as
    /// old as its first vote: it may have waited long for its turn.)
    pub fn go_live(&mut self, now: Duration, wall_ms: i64) {
        self.live = true;
        for (&offset, entry) in &mut self.window {
            if let Entry::Transaction(transaction) = entry {
                let age_ms = wall_ms.saturating_sub(transaction.since_ms);
                let overdue = age_ms > 10 * i64::from(transaction.deadline_ms)
                    && transaction.registers.iter().any(|register| register.vote.is_some());
                if overdue && transaction.state == State::Open {
                    transaction.deadline_at_ms = Some(millis(now));
                    self.deadlines.insert((millis(now), offset));
                }
                transaction.queued = true;
            }
            self.due.push_back(offset);
        }
    }

    /// Whether a participant has topics, in answer to [`Step::look_up`] or because that changed.
    ///
    /// A participant that gets served here is read from `first_vote`, its votes partition's start. Returns whether it is
    /// one: then its votes have to be read from there.
    pub fn standing(&mut self, participant: &Participant, first_vote: Option<u64>) -> bool {
        let Ok(seat) = self.seat_of(participant) else { return false };
        let entry = &mut self.roster[usize::from(seat)];
        entry.standing = match (entry.standing, first_vote) {
            (Standing::Served, _) | (Standing::Missing, None) => return false,
            (_, Some(first)) => {
                entry.next_vote = first;
                Standing::Served
            }
            (_, None) => Standing::Missing,
        };
        self.queue_all_naming(seat);
        first_vote.is_some()
    }

    /// A participant's votes partition was read to its end once: expiries may now go there.
    pub fn caught_up(&mut self, participant: &Participant) {
        let Ok(seat) = self.seat_of(participant) else { return };
        if !std::mem::replace(&mut self.roster[usize::from(seat)].caught_up, true) {
            self.queue_all_naming(seat);
        }
    }

    /// How an append ended. Reports of an earlier tenure of this process are as good: they speak of equal records.
    pub fn delivered(&mut self, what: What, delivery: Delivery) -> Result<(), Stop> {
        let offset = what.offset();
        if let (Some(what), Delivery::Refused) = (what.indispensable(), delivery) {
            return Err(Stop::AppendRefused { txid: self.txid(offset), what });
        }
        match self.window.get_mut(&offset) {
            Some(Entry::Transaction(transaction)) => {
                transaction.sent(what, delivery);
                match (what, delivery) {
                    (What::Decision { .. }, Delivery::Acknowledged) => {
                        self.on(offset, Event::DecisionAcknowledged)?;
                    }
                    (What::Outcome { .. }, Delivery::Acknowledged) => {
                        self.on(offset, Event::OutcomeAcknowledged)?;
                    }
                    _ => {}
                }
            }
            Some(Entry::Rejected { sending, .. }) => match delivery {
                Delivery::Acknowledged => {
                    self.window.remove(&offset);
                }
                Delivery::Again | Delivery::Refused => *sending = Sending::Due,
            },
            None => {}
        }
        match delivery {
            Delivery::Acknowledged => self.pass_finished(),
            Delivery::Again | Delivery::Refused => self.queue(offset),
        }
        Ok(())
    }

    /// What is to be appended now, at most about `budget` messages; the rest stays due.
    ///
    /// `now` is the time since any fixed moment on the owner's monotonic clock.
    pub fn step(&mut self, now: Duration, budget: usize) -> Step {
        let mut step = Step { alarms: std::mem::take(&mut self.alarms), ..Step::default() };
        if !self.live {
            return step;
        }
        self.expire(now);
        let mut appended = 0;
        while appended < budget {
            let Some(offset) = self.due.pop_front() else { break };
            appended += self.send_due(offset, now, &mut step);
        }
        self.answer_inquiries(now, &mut step);
        self.ask_for_rereads(&mut step);
        self.mind_early_votes(now, &mut step);
        self.pass_finished();
        step
    }

    /// Whether [`Shard::step`] has more to say at once.
    pub fn has_due(&self) -> bool {
        self.live && !self.due.is_empty()
    }

    /// When `step` must be called although nothing was applied.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|&(at_ms, _)| Duration::from_millis(at_ms))
    }

    /// Whether the requests may be read further. Votes are read always.
    pub fn wants_requests(&self) -> bool {
        self.window.len() - self.waiting < self.limits.window && self.waiting < self.limits.window
    }

    /// The offset after the last request record read.
    pub fn next_request(&self) -> u64 {
        self.next_request
    }

    /// Where another owner may start to read: W, V and D (rule 5).
    pub fn positions(&self) -> Positions {
        let requests = self.window.first_key_value().map_or(self.next_request, |(&offset, _)| offset);
        let early = |seat: &Seat| seat.early.lowest().map_or(seat.next_vote, |lowest| lowest.min(seat.next_vote));
        let mut votes: Vec<u64> = self.roster.iter().map(early).collect();
        for (lowest, floor) in votes.iter_mut().zip(&self.floor.votes) {
            *lowest = (*lowest).min(*floor);
        }
        let early = self.early_decisions.values().map(|early| early.at).chain(self.floor.decisions).min();
        let mut decisions = early.map_or(self.next_decision, |early| early.min(self.next_decision));
        for entry in self.window.values() {
            let Entry::Transaction(transaction) = entry else { continue };
            for register in transaction.registers.iter().filter(|register| register.vote.is_some()) {
                let lowest = &mut votes[usize::from(register.seat)];
                *lowest = register.vote_at.min(*lowest);
            }
            decisions = transaction.decision_at.map_or(decisions, |at| at.min(decisions));
        }
        let served = self.roster.iter().zip(votes).filter(|(seat, _)| seat.standing == Standing::Served);
        Positions { requests, decisions, votes: served.map(|(seat, at)| (seat.participant.clone(), at)).collect() }
    }

    /// Participants that were named and have no topics: look again now and then, and tell [`Shard::standing`].
    pub fn missing(&self) -> impl Iterator<Item = &Participant> {
        self.roster.iter().filter(|seat| seat.standing == Standing::Missing).map(|seat| &seat.participant)
    }

    /// Figures for the summary line.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary { window: self.window.len(), ..self.summary };
        for entry in self.window.values() {
            let Entry::Transaction(transaction) = entry else { continue };
            summary.open += usize::from(transaction.state.verdict().is_none());
            summary.waiting += usize::from(transaction.waits_for_topics);
            summary.in_line += usize::from(transaction.state == State::Waiting);
        }
        summary.held_votes = self.roster.iter().map(|seat| seat.early.count()).sum();
        summary
    }

    /// When the broker took the oldest request without a decision, in milliseconds since 1970.
    pub fn oldest_open_ms(&self) -> Option<i64> {
        self.window.values().find_map(|entry| match entry {
            Entry::Transaction(transaction) if transaction.state.verdict().is_none() => Some(transaction.since_ms),
            Entry::Transaction(_) | Entry::Rejected { .. } => None,
        })
    }

    // Requests.

    fn apply_request(&mut self, raw: Raw<'_>) -> Result<(), Stop> {
        if raw.offset < self.next_request {
            return Ok(());
        }
        self.next_request = raw.offset + 1;
        match self.read_request(raw)? {
            Ok(RequestsRecord::Request(request)) => self.open(raw, request)?,
            Ok(RequestsRecord::Cancel(cancel)) => self.cancel(&cancel)?,
            Err(why) => self.reject(raw.offset, why),
        }
        self.place_early()
    }

    fn read_request(&self, raw: Raw<'_>) -> Result<Result<RequestsRecord, Rejected>, Stop> {
        let newer = |v| Stop::Newer { topic: "requests".to_string(), offset: raw.offset, v };
        self.place().read_request(raw).map_err(newer)
    }

    fn open(&mut self, raw: Raw<'_>, request: Request) -> Result<(), Stop> {
        let offset = raw.offset;
        let line = raw.key.filter(|_| request.ordered).and_then(order_key).map(|key| Line::of(&key));
        let waits = line.is_some_and(|line| self.first_of(line).is_some());
        let mut registers = Vec::with_capacity(request.branches.len());
        for branch in &request.branches {
            registers.push(Register {
                seat: self.seat_of(&branch.participant)?,
                vote: None,
                prepare: Sending::Due,
                no: Sending::Idle,
                vote_at: 0,
                reason: None,
            });
        }
        let transaction = Transaction {
            state: if waits { State::Waiting } else { State::Open },
            business_key: request.business_key.clone(),
            attempt: request.attempt,
            hash: request.hash,
            deadline_ms: request.deadline_ms as u32,
            since_ms: raw.timestamp_ms,
            traceparent: raw.traceparent.map(Into::into),
            registers: registers.into(),
            line,
            content: (!waits).then(|| content_of(raw.key, request)),
            recall: if waits { Sending::Due } else { Sending::Idle },
            in_log: None,
            decision_at: None,
            decision: Sending::Idle,
            outcome: Sending::Idle,
            no_reason: None,
            deadline_at_ms: None,
            waits_for_topics: false,
            queued: false,
        };
        self.window.insert(offset, Entry::Transaction(Box::new(transaction)));
        self.waiting += usize::from(waits);
        self.lines.extend(line.map(|line| (line, offset)));
        self.queue(offset);
        Ok(())
    }

    /// Takes a cancellation in. It needs no place in the window: what it is about stands before it in the log, and holds
    /// the watermark until it is decided.
    fn cancel(&mut self, cancel: &Cancel) -> Result<(), Stop> {
        let target = cancel.txid.offset;
        if self.on(target, Event::Cancel)? == Effect::NoDue
            && let Some(transaction) = transaction_mut(&mut self.window, target)
        {
            transaction.call_for_no(NoReason::Cancelled);
        }
        Ok(())
    }

    fn reject(&mut self, offset: u64, why: Rejected) {
        self.summary.rejected += 1;
        self.alarms.push(Alarm::RequestRejected { offset, why });
        self.window.insert(offset, Entry::Rejected { why, sending: Sending::Due });
        self.queue(offset);
    }

    // Votes.

    fn apply_vote(&mut self, participant: &Participant, raw: Raw<'_>) -> Result<(), Stop> {
        let seat = self.seat_of(participant)?;
        let place = &mut self.roster[usize::from(seat)];
        if !place.early.admit(raw.offset, place.next_vote) {
            return Ok(());
        }
        place.next_vote = raw.offset + 1;
        let newer = |v| Stop::Newer { topic: format!("votes.{participant}"), offset: raw.offset, v };
        let vote = match self.place().read_vote(participant, raw).map_err(newer)? {
            Ok(vote) => HeldVote { at: raw.offset, came_ms: raw.timestamp_ms, vote },
            Err(void) => {
                self.void(seat, raw.offset, void);
                return Ok(());
            }
        };
        let request = vote.vote.txid.offset;
        let early = &mut self.roster[usize::from(seat)].early;
        if early.passes_over(request) {
            return Ok(());
        }
        if request >= self.next_request {
            early.hold(vote, self.limits.held_votes);
            return Ok(());
        }
        self.count_vote(seat, vote)
    }

    /// Fills a register, if the vote is its first. The request was read before.
    fn count_vote(&mut self, seat: u16, vote: HeldVote) -> Result<(), Stop> {
        let HeldVote { at: vote_at, came_ms, vote } = vote;
        let offset = vote.txid.offset;
        let asks = vote.inquiry && vote.by == Voter::Participant && self.live;
        let Some(transaction) = transaction_mut(&mut self.window, offset) else {
            // Not in the window it is finished; there it is a place that holds no request.
            if self.window.contains_key(&offset) {
                self.void(seat, vote_at, VoidVote::NoTransaction);
                return Ok(());
            }
            if offset < self.floor.below {
                self.floor.keep_vote(seat, vote_at);
            }
            if asks {
                self.inquiries.claim(offset, seat, Claim { at: vote_at, hash: vote.hash });
            }
            return Ok(());
        };
        if transaction.hash != vote.hash {
            self.void(seat, vote_at, VoidVote::WrongHash);
            return Ok(());
        }
        let is_told = transaction.state.is_told();
        let Some(register) = transaction.register_mut(seat) else {
            self.void(seat, vote_at, VoidVote::NotNamed);
            return Ok(());
        };
        if asks && is_told {
            self.inquiries.ask(offset);
        }
        if register.vote.is_some() {
            return Ok(());
        }
        register.vote = Some(vote.vote);
        register.vote_at = vote_at;
        let duplicate_of = vote.duplicate_of;
        register.reason = vote.code.map(|code| Box::new(Reason { code, duplicate_of }));
        let is_first = transaction.registers.iter().filter(|register| register.vote.is_some()).count() == 1;
        if is_first && transaction.line.is_some() {
            transaction.since_ms = came_ms;
        }
        transaction.drop_delivered_payloads();
        let product = transaction.product();
        let was_open = transaction.state == State::Open;
        let effect = self.on(offset, Event::Vote { product })?;
        if let (true, Effect::Due, Some(verdict)) = (was_open, effect, product) {
            match verdict {
                Verdict::Commit => self.summary.committed += 1,
                Verdict::Abort => self.summary.aborted += 1,
            }
        }
        Ok(())
    }

    fn void(&mut self, seat: u16, offset: u64, reason: VoidVote) {
        self.summary.void_votes += 1;
        let participant = self.roster[usize::from(seat)].participant.clone();
        self.alarms.push(Alarm::ForeignVote { participant, offset, reason });
    }

    /// Votes and decisions that waited for the requests read by now.
    fn place_early(&mut self) -> Result<(), Stop> {
        for seat in 0..self.roster.len() {
            while let Some((request, held)) = self.roster[seat].early.take_below(self.next_request) {
                for held in held {
                    match self.window.contains_key(&request) {
                        true => self.count_vote(seat as u16, held)?,
                        false => self.void(seat as u16, held.at, VoidVote::NoTransaction),
                    }
                }
            }
        }
        while let Some(first) = self.early_decisions.first_entry()
            && *first.key() < self.next_request
        {
            let (request, early) = first.remove_entry();
            self.compare_decision(request, early)?;
        }
        Ok(())
    }

    fn ask_for_rereads(&mut self, step: &mut Step) {
        for seat in &mut self.roster {
            if let Some(from) = seat.early.read_again(self.next_request) {
                step.rereads.push((seat.participant.clone(), from));
            }
        }
    }

    fn mind_early_votes(&mut self, now: Duration, step: &mut Step) {
        let early = self.roster.iter().filter(|seat| !seat.early.is_empty());
        let participants: Vec<Participant> = early.map(|seat| seat.participant.clone()).collect();
        if participants.is_empty() {
            self.early_votes_since = None;
        } else if now.saturating_sub(*self.early_votes_since.get_or_insert(now)) >= EARLY_FOR_LONG {
            self.early_votes_since = Some(now);
            step.alarms.push(Alarm::EarlyVotes { participants });
        }
    }

    // Inquiries.

    /// The decision log was looked through for [`Step::seek`]. Answers to an earlier tenure of this process are as good.
    pub fn looked_for(&mut self, answer: LookedFor<'_>) -> Result<(), Stop> {
        let mut decisions = BTreeMap::new();
        for raw in answer.records {
            let Some(value) = raw.value else { continue };
            let decision = read_decision(raw.offset, value)?;
            decisions.insert(decision.txid, decision);
        }
        for &txid in answer.txids {
            let mut fits = self.inquiries.take_displaced(txid.offset);
            for (seat, Claim { at, hash }) in self.inquiries.take_sought(txid.offset) {
                let participant = &self.roster[usize::from(seat)].participant;
                match decisions.get(&txid) {
                    None => {
                        let (participant, is_gone) = (participant.clone(), txid.offset < answer.requests_start);
                        self.alarms.push(Alarm::NoDecision { txid, participant, is_gone });
                    }
                    Some(decision) if decision.hash != hash => self.void(seat, at, VoidVote::WrongHash),
                    Some(decision) if !decision.participants.contains(participant) => {
                        self.void(seat, at, VoidVote::NotNamed);
                    }
                    Some(_) => fits = true,
                }
            }
            if let Some(decision) = decisions.remove(&txid).filter(|_| fits) {
                self.inquiries.found(decision);
            }
        }
        Ok(())
    }

    /// A person has let a record of the decision log pass that stands under this transaction's name.
    pub fn displaced(&mut self, txid: Txid) {
        if (txid.log, txid.shard) == (self.log, self.id) {
            self.inquiries.displaced(txid.offset);
        }
    }

    /// The decision log could not be looked through: who is in doubt asks again.
    pub fn not_looked_for(&mut self, txids: &[Txid]) {
        for txid in txids {
            self.inquiries.take_sought(txid.offset);
        }
    }

    fn answer_inquiries(&mut self, now: Duration, step: &mut Step) {
        let echo = |message: Decision, traceparent| Append {
            what: What::Echo { offset: message.txid.offset },
            message,
            traceparent,
        };
        for offset in self.inquiries.take_asked(now) {
            let txid = self.txid(offset);
            let Some(transaction) = transaction_mut(&mut self.window, offset) else { continue };
            let Some(verdict) = transaction.state.verdict() else { continue };
            let decision = decision_of(txid, verdict, transaction, &self.roster);
            step.echoes.push(echo(decision, transaction.traceparent.clone()));
        }
        step.echoes.extend(self.inquiries.take_found(now).into_iter().map(|decision| echo(decision, None)));
        self.summary.echoed += step.echoes.len() as u64;
        step.seek = self.inquiries.seek(now).into_iter().map(|offset| self.txid(offset)).collect();
    }

    // Decisions.

    fn apply_decision(&mut self, raw: Raw<'_>) -> Result<(), Stop> {
        if raw.offset < self.next_decision {
            return Ok(());
        }
        self.next_decision = raw.offset + 1;
        let Some(value) = raw.value else { return Ok(()) };
        let bad = |reason| Stop::BadDecision { offset: raw.offset, reason };
        let decision = read_decision(raw.offset, value)?;
        if decision.txid.log != self.log {
            return Ok(());
        }
        if decision.txid.shard != self.id || raw.key != Some(decision.txid.to_string().as_bytes()) {
            return Err(bad("its key or partition is another's"));
        }
        let request = decision.txid.offset;
        let early = EarlyDecision { at: raw.offset, verdict: decision.outcome, hash: decision.hash };
        if request < self.next_request {
            return self.compare_decision(request, early);
        }
        match self.early_decisions.get(&request) {
            Some(first) if (first.verdict, first.hash) != (early.verdict, early.hash) => {
                let (txid, earlier) = (decision.txid, first.at);
                return Err(Stop::UnequalDecisions { txid, earlier, offset: raw.offset });
            }
            Some(_) => {}
            None if self.early_decisions.len() < self.limits.window => {
                self.early_decisions.insert(request, early);
            }
            // It will be appended again, which is harmless. The next owner reads it.
            None => self.floor.keep_decision(request, raw.offset),
        }
        Ok(())
    }

    fn compare_decision(&mut self, request: u64, read: EarlyDecision) -> Result<(), Stop> {
        let Some(transaction) = transaction_mut(&mut self.window, request) else {
            if request < self.floor.below {
                self.floor.keep_decision(request, read.at);
            }
            return Ok(());
        };
        if transaction.hash != read.hash {
            return Err(Stop::BadDecision { offset: read.at, reason: "its hash is not the request's" });
        }
        transaction.decision_at.get_or_insert(read.at);
        self.on(request, Event::DecisionRead(read.verdict)).map(|_| ())
    }

    // Transitions and what they make due.

    /// Sends an event through the table of transitions.
    fn on(&mut self, offset: u64, event: Event) -> Result<Effect, Stop> {
        let txid = self.txid(offset);
        let Some(transaction) = transaction_mut(&mut self.window, offset) else { return Ok(Effect::Nothing) };
        let (waited, was_told) = (transaction.waits(), transaction.state.is_told());
        let effect = transaction.on(event).map_err(|violation| Stop::Contradiction { txid, violation })?;
        let (waits, is_told, line) = (transaction.waits(), transaction.state.is_told(), transaction.line);
        match effect {
            Effect::Nothing => {}
            Effect::Due => {
                if let Some(at_ms) = transaction.leave_open() {
                    self.deadlines.remove(&(at_ms, offset));
                }
                self.queue(offset);
            }
            Effect::NoDue | Effect::Starts => self.queue(offset),
        }
        self.count_waiting(offset, waited, waits);
        if let Some(line) = line.filter(|_| is_told && !was_told) {
            self.lines.remove(&(line, offset));
            if let Some(first) = self.first_of(line) {
                self.on(first, Event::Turn)?;
            }
        }
        Ok(effect)
    }

    /// The first transaction of a line that is not told.
    fn first_of(&self, line: Line) -> Option<u64> {
        self.lines.range((line, 0)..).next().filter(|(first, _)| *first == line).map(|&(_, offset)| offset)
    }

    fn count_waiting(&mut self, offset: u64, waited: bool, waits: bool) {
        match (waited, waits) {
            (false, true) => self.waiting += 1,
            (true, false) => {
                self.waiting -= 1;
                self.front = self.front.min(offset);
            }
            (false, false) | (true, true) => {}
        }
    }

    fn expire(&mut self, now: Duration) {
        while let Some(&(at_ms, offset)) = self.deadlines.first()
            && at_ms <= millis(now)
        {
            self.deadlines.pop_first();
            let Some(transaction) = transaction_mut(&mut self.window, offset) else { continue };
            // An open transaction takes a deadline and a decided one ignores it: never a violation.
            if let Ok(Effect::NoDue) = transaction.on(Event::Deadline) {
                transaction.call_for_no(NoReason::Expired);
                self.queue(offset);
            }
        }
    }

    /// Sends what one place of the window lacks; returns how many messages that is.
    fn send_due(&mut self, offset: u64, now: Duration, step: &mut Step) -> usize {
        let txid = self.txid(offset);
        match self.window.get_mut(&offset) {
            Some(Entry::Transaction(transaction)) => {
                transaction.queued = false;
                if transaction.state == State::Open && transaction.deadline_at_ms.is_none() {
                    let at_ms = millis(now) + u64::from(transaction.deadline_ms);
                    transaction.deadline_at_ms = Some(at_ms);
                    self.deadlines.insert((at_ms, offset));
                }
                let waited = transaction.waits();
                let waited_for_topics = std::mem::take(&mut transaction.waits_for_topics);
                let sent = match transaction.state {
                    // Only a cancellation is not a matter of its turn.
                    State::Waiting if transaction.no_reason.is_none() => 0,
                    State::Waiting | State::Open => {
                        send_open(txid, transaction, &mut self.roster, waited_for_topics, step)
                    }
                    State::Decided(verdict) => send_decision(txid, verdict, transaction, &self.roster, step),
                    State::Told(verdict) => send_outcome(txid, verdict, transaction, &self.roster, step),
                    State::Finished(_) => 0,
                };
                let waits = transaction.waits();
                self.count_waiting(offset, waited, waits);
                sent
            }
            Some(Entry::Rejected { why, sending }) if *sending == Sending::Due => {
                *sending = Sending::UnderWay;
                let (code, field) = why.code_and_field();
                step.rejections.push(Append {
                    what: What::Rejection { offset },
                    message: Rejection {
                        origin: Origin {
                            topic: self.requests_topic.clone(),
                            partition: self.id.partition(),
                            offset: offset as i64,
                        },
                        code: code.parse().expect("Suture's own codes are valid"),
                        field: field.map(str::to_string),
                    },
                    traceparent: None,
                });
                1
            }
            Some(Entry::Rejected { .. }) | None => 0,
        }
    }

    /// Moves the watermark. What waits holds it, but what was finished behind need not be kept.
    fn pass_finished(&mut self) {
        while let Some((&offset, entry)) = self.window.range(self.front..).next() {
            let Entry::Transaction(transaction) = entry else { break };
            if transaction.waits() {
                self.front = offset + 1;
            } else if transaction.is_finished() {
                if self.window.first_key_value().is_some_and(|(&first, _)| first < offset) {
                    self.floor.keep(offset, transaction);
                }
                self.window.remove(&offset);
            } else {
                break;
            }
        }
        if self.window.first_key_value().map_or(self.next_request, |(&first, _)| first) >= self.floor.below {
            self.floor = Floor::default();
        }
    }

    fn queue(&mut self, offset: u64) {
        if !self.live {
            return;
        }
        if let Some(transaction) = transaction_mut(&mut self.window, offset)
            && std::mem::replace(&mut transaction.queued, true)
        {
            return;
        }
        self.due.push_back(offset);
    }

    fn queue_all_naming(&mut self, seat: u16) {
        let naming: Vec<u64> =
            self.window.iter().filter(|(_, entry)| entry.is_undecided_and_names(seat)).map(|(&at, _)| at).collect();
        for offset in naming {
            self.queue(offset);
        }
    }

    fn seat_of(&mut self, participant: &Participant) -> Result<u16, Stop> {
        if let Some(seat) = self.roster.iter().position(|seat| seat.participant == *participant) {
            return Ok(seat as u16);
        }
        let seat = u16::try_from(self.roster.len()).map_err(|_| Stop::TooManyParticipants)?;
        self.roster.push(Seat {
            participant: participant.clone(),
            standing: Standing::NotAsked,
            caught_up: false,
            next_vote: 0,
            early: EarlyVotes::default(),
        });
        Ok(seat)
    }

    fn place(&self) -> Place {
        Place { log: self.log, shard: self.id, partitions: self.partitions }
    }

    fn txid(&self, offset: u64) -> Txid {
        Txid { log: self.log, shard: self.id, offset }
    }
}

impl Entry {
    fn is_undecided_and_names(&self, seat: u16) -> bool {
        let Self::Transaction(transaction) = self else { return false };
        let names = || transaction.registers.iter().any(|register| register.seat == seat);
        transaction.state.verdict().is_none() && names()
    }
}

impl Floor {
    fn keep(&mut self, request: u64, transaction: &Transaction) {
        self.below = self.below.max(request + 1);
        for register in transaction.registers.iter().filter(|register| register.vote.is_some()) {
            self.keep_vote(register.seat, register.vote_at);
        }
        if let Some(at) = transaction.decision_at {
            self.keep_decision(request, at);
        }
    }

    fn keep_vote(&mut self, seat: u16, at: u64) {
        let seat = usize::from(seat);
        if self.votes.len() <= seat {
            self.votes.resize(seat + 1, u64::MAX);
        }
        self.votes[seat] = self.votes[seat].min(at);
    }

    fn keep_decision(&mut self, request: u64, at: u64) {
        self.below = self.below.max(request + 1);
        self.decisions = Some(self.decisions.map_or(at, |lowest| lowest.min(at)));
    }
}

impl What {
    /// The place in the requests partition of what the append is about.
    pub fn offset(self) -> u64 {
        match self {
            Self::Prepare { offset, .. }
            | Self::No { offset, .. }
            | Self::Decision { offset }
            | Self::Outcome { offset }
            | Self::Rejection { offset }
            | Self::Echo { offset } => offset,
        }
    }

    /// What to call an append without which the shard cannot go on. A prepare that is refused becomes a `no`, and who was
    /// not answered asks again.
    fn indispensable(self) -> Option<&'static str> {
        match self {
            Self::Prepare { .. } | Self::Echo { .. } => None,
            Self::No { .. } => Some("no in a participant's place"),
            Self::Decision { .. } => Some("decision"),
            Self::Outcome { .. } => Some("outcome"),
            Self::Rejection { .. } => Some("rejection"),
        }
    }
}

/// What an open transaction lacks: noes that were called for, else prepares. Returns how many messages that is.
fn send_open(txid: Txid, transaction: &mut Transaction, roster: &mut [Seat], waited: bool, step: &mut Step) -> usize {
    let mut unanswered = false;
    for register in &transaction.registers {
        let seat = &mut roster[usize::from(register.seat)];
        if seat.standing == Standing::NotAsked {
            seat.standing = Standing::Asked;
            step.look_up.push(seat.participant.clone());
        }
        unanswered |= seat.standing == Standing::Asked;
    }
    if unanswered {
        return 0;
    }
    let seat = |register: &Register| &roster[usize::from(register.seat)];
    let missing = |register: &&Register| seat(register).standing == Standing::Missing;
    if transaction.registers.iter().any(|register| missing(&register)) {
        let can_take = |register: &Register| register.vote.is_none() && seat(register).standing == Standing::Served;
        let Some(branch) = transaction.registers.iter().position(can_take) else {
            transaction.waits_for_topics = true;
            if !waited {
                let participants = transaction.registers.iter().filter(missing);
                let participants = participants.map(|register| seat(register).participant.clone()).collect();
                step.alarms.push(Alarm::NobodyKnown { txid, participants });
            }
            return 0;
        };
        transaction.refuse(branch, NoReason::UnknownParticipant);
    }
    match transaction.no_reason {
        Some(reason) => send_noes(txid, reason, transaction, roster, step),
        None => send_prepares(txid, transaction, roster, step),
    }
}

fn send_noes(txid: Txid, reason: NoReason, transaction: &mut Transaction, roster: &[Seat], step: &mut Step) -> usize {
    let mut sent = 0;
    for (branch, register) in (0..).zip(&mut transaction.registers) {
        let seat = &roster[usize::from(register.seat)];
        // An expiry behind votes that nobody has read yet would often come second: it waits for the partition's end.
        let may = seat.standing == Standing::Served && seat.caught_up;
        if register.vote.is_some() || register.no != Sending::Due || !may {
            continue;
        }
        register.no = Sending::UnderWay;
        sent += 1;
        step.noes.push(Append {
            what: What::No { offset: txid.offset, branch },
            message: Vote {
                txid,
                participant: seat.participant.clone(),
                vote: Ballot::No,
                hash: transaction.hash,
                by: Voter::Coordinator,
                code: Some(reason.code().parse().expect("Suture's own codes are valid")),
                duplicate_of: None,
                inquiry: false,
            },
            traceparent: transaction.traceparent.clone(),
        });
    }
    sent
}

fn send_prepares(txid: Txid, transaction: &mut Transaction, roster: &[Seat], step: &mut Step) -> usize {
    let Some(content) = &transaction.content else {
        let is_due = transaction.recall == Sending::Due;
        if is_due {
            transaction.recall = Sending::UnderWay;
            step.recalls.push(txid.offset);
        }
        return usize::from(is_due);
    };
    let mut sent = 0;
    for (index, (register, branch)) in (0..).zip(transaction.registers.iter_mut().zip(&content.branches)) {
        if register.vote.is_some() || register.prepare != Sending::Due {
            continue;
        }
        debug_assert_eq!(roster[usize::from(register.seat)].participant, branch.participant);
        register.prepare = Sending::UnderWay;
        sent += 1;
        step.prepares.push(Append {
            what: What::Prepare { offset: txid.offset, branch: index },
            message: (
                branch.participant.clone(),
                Prepare {
                    txid,
                    business_key: transaction.business_key.clone(),
                    attempt: transaction.attempt,
                    operation: branch.operation.clone(),
                    payload: branch.payload.clone(),
                    hash: transaction.hash,
                    order_key: content.order_key.clone(),
                },
            ),
            traceparent: transaction.traceparent.clone(),
        });
    }
    sent
}

fn send_decision(
    txid: Txid,
    verdict: Verdict,
    transaction: &mut Transaction,
    roster: &[Seat],
    step: &mut Step,
) -> usize {
    if transaction.decision == Sending::UnderWay {
        return 0;
    }
    transaction.decision = Sending::UnderWay;
    step.decisions.push(Append {
        what: What::Decision { offset: txid.offset },
        message: decision_of(txid, verdict, transaction, roster),
        traceparent: transaction.traceparent.clone(),
    });
    1
}

/// The decision as it is appended, every time the same.
fn decision_of(txid: Txid, verdict: Verdict, transaction: &Transaction, roster: &[Seat]) -> Decision {
    let name = |register: &Register| roster[usize::from(register.seat)].participant.clone();
    Decision {
        txid,
        outcome: verdict,
        participants: transaction.registers.iter().map(name).collect(),
        business_key: transaction.business_key.clone(),
        attempt: transaction.attempt,
        hash: transaction.hash,
    }
}

fn send_outcome(
    txid: Txid,
    verdict: Verdict,
    transaction: &mut Transaction,
    roster: &[Seat],
    step: &mut Step,
) -> usize {
    if transaction.outcome == Sending::UnderWay {
        return 0;
    }
    transaction.outcome = Sending::UnderWay;
    let reasons = || transaction.registers.iter().filter_map(|register| register.reason.as_deref());
    let noes = || transaction.registers.iter().filter(|register| register.vote == Some(Ballot::No));
    let retryable =
        |register: &Register| register.reason.as_deref().is_some_and(|reason| code::is_retryable(reason.code.as_str()));
    let view = |register: &Register| RegisterView {
        participant: roster[usize::from(register.seat)].participant.clone(),
        vote: register.vote,
        code: register.reason.as_deref().map(|reason| reason.code.clone()),
    };
    step.outcomes.push(Append {
        what: What::Outcome { offset: txid.offset },
        message: Outcome {
            txid,
            business_key: transaction.business_key.clone(),
            attempt: transaction.attempt,
            outcome: verdict,
            votes: transaction.registers.iter().map(view).collect(),
            duplicate_of: reasons().find_map(|reason| reason.duplicate_of),
            retryable: verdict == Verdict::Abort && noes().all(retryable),
        },
        traceparent: transaction.traceparent.clone(),
    });
    1
}

fn read_decision(offset: u64, value: &[u8]) -> Result<Decision, Stop> {
    codec::decode(value).map_err(|unreadable| match unreadable {
        Unreadable::Newer { v } => Stop::Newer { topic: "decisions".to_string(), offset, v },
        _ => Stop::BadDecision { offset, reason: "it cannot be read" },
    })
}

fn content_of(key: Option<&[u8]>, request: Request) -> Box<Content> {
    let order_key = key.filter(|_| request.ordered).and_then(order_key);
    Box::new(Content { order_key, branches: request.branches.into() })
}

fn transaction_mut(window: &mut BTreeMap<u64, Entry>, offset: u64) -> Option<&mut Transaction> {
    match window.get_mut(&offset) {
        Some(Entry::Transaction(transaction)) => Some(transaction),
        Some(Entry::Rejected { .. }) | None => None,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
