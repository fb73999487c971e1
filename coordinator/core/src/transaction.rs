//! One transaction: its vote registers, its state, and the one table of transitions.
//!
//! ```text
//!            vote (all registers yes, or one no)      append acknowledged         outcome acknowledged
//!   Open ------------------------------------> Decided ---------------> Told ------------------------> Finished
//!     \                                           ^                      ^
//!      \-- deadline, cancel: a `no` is due, which  |                     |-- or read in the decision log, and no
//!          counts only when it is read back -------+                         append of our own is under way
//! ```
//!
//! An ordered transaction is `Waiting` before it is `Open`, for as long as an earlier one of its order key is not told: no
//! prepare is sent, and no deadline runs. Votes decide it as they decide an open one, for what was cancelled ends while it
//! waits, and another owner may have seen its turn come.
//!
//! [`Transaction::on`] is that table: one `match` over state and event without a wildcard. What a transition makes due is
//! not sent from here: [`crate::shard::Shard::step`] looks at what a transaction lacks.

use std::num::NonZeroU64;

use sha2::{Digest, Sha256};
use suture_contract::ids::{Attempt, BusinessKey, Code, OrderKey, RequestHash, Txid};
use suture_contract::messages::{Ballot, Branch, Verdict};

use crate::shard::{Delivery, What};

/// Where a transaction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// At least one register is empty and none says no, and an earlier transaction of the order key is not told. Goes to
    /// `Open` when it is its turn, and to `Decided` by votes.
    Waiting,
    /// At least one register is empty and none says no. Goes to `Decided` by a vote, and by nothing else.
    Open,
    /// The registers give the decision; its append is not acknowledged. Goes to `Told`.
    Decided(Verdict),
    /// The decision stands in the log; its outcome is not acknowledged. Goes to `Finished`.
    Told(Verdict),
    /// Decision and outcome stand in the logs. Stays until the watermark has passed it.
    Finished(Verdict),
}

/// What can happen to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The first vote of a register was read, and with it the registers now give `product` (`None`: some are empty and
    /// none says no).
    Vote {
        /// The product of the registers.
        product: Option<Verdict>,
    },
    /// A copy of the decision was read from the decision log.
    DecisionRead(Verdict),
    /// Our append of the decision was acknowledged.
    DecisionAcknowledged,
    /// Our append of the outcome was acknowledged.
    OutcomeAcknowledged,
    /// The deadline has passed.
    Deadline,
    /// A cancellation was read.
    Cancel,
    /// No earlier transaction of the order key is left that is not told.
    Turn,
}

/// What a transition calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A harmless repeat, or too late to matter.
    Nothing,
    /// Something is due now: a decision or an outcome to append.
    Due,
    /// A `no` is due in every empty register.
    NoDue,
    /// Prepares are due, and the deadline runs from now on.
    Starts,
}

/// A pair of state and event that cannot be unless acknowledged records were lost. The shard stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} in state {state:?}")]
pub struct Violation {
    /// The transaction's state.
    pub state: State,
    /// What contradicts it.
    pub event: Event,
}

/// Whether a record of ours is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// Nothing to send.
    Idle,
    /// To be appended by the next step.
    Due,
    /// Appended; no report yet.
    UnderWay,
    /// Acknowledged.
    Done,
}

/// An open or decided transaction, without its payloads once they are delivered.
#[derive(Debug)]
pub struct Transaction {
    /// Where it stands.
    pub state: State,
    /// What it is about.
    pub business_key: BusinessKey,
    /// How often it was asked for.
    pub attempt: Attempt,
    /// What a vote must carry.
    pub hash: RequestHash,
    /// How long the participants have, from when an owner first read the request live, or from its turn.
    pub deadline_ms: u32,
    /// When the broker took the request, in milliseconds since 1970. Of an ordered one that has a vote, when it took that:
    /// what waited for its turn is not old for that. Only the age matters.
    pub since_ms: i64,
    /// The trace that the request belongs to.
    pub traceparent: Option<Box<str>>,
    /// One a branch, in the request's order.
    pub registers: Box<[Register]>,
    /// The line of its order key, for an ordered one.
    pub line: Option<Line>,
    /// What prepares are made of. Dropped as soon as none will be sent any more, and for as long as it waits for its turn.
    pub content: Option<Box<Content>>,
    /// Whether the content must be read again from the request.
    pub recall: Sending,
    /// A verdict that was read from the decision log.
    pub in_log: Option<Verdict>,
    /// The lowest offset at which a copy of the decision was read.
    pub decision_at: Option<u64>,
    /// Our append of the decision.
    pub decision: Sending,
    /// Our append of the outcome.
    pub outcome: Sending,
    /// Why a `no` goes into the empty registers, once one is called for.
    pub no_reason: Option<NoReason>,
    /// The deadline, in milliseconds on the owner's clock; not before the transaction is seen live.
    pub deadline_at_ms: Option<u64>,
    /// Whether it waits until a named participant has topics: no register can take a `no`.
    pub waits_for_topics: bool,
    /// Whether the transaction waits in the shard's list of things to look at.
    pub queued: bool,
}

/// What prepares are made of, beside the transaction's own fields.
#[derive(Debug)]
pub struct Content {
    /// The order key of an ordered request.
    pub order_key: Option<OrderKey>,
    /// Operations and payloads, in the request's order.
    pub branches: Box<[Branch]>,
}

/// The ordered transactions of one order key: they run one after the other.
///
/// Eight bytes of the key's SHA-256, for a window holds many. Two keys that share them would wait for each other, which is
/// slow and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line(NonZeroU64);

impl Line {
    /// The line of an order key.
    pub fn of(key: &OrderKey) -> Self {
        let digest = Sha256::digest(key.as_str());
        let first = digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Self(NonZeroU64::new(first).unwrap_or(NonZeroU64::MIN))
    }
}

/// One participant's vote register of one transaction, and what we sent for it.
#[derive(Debug)]
pub struct Register {
    /// The participant, as an index of the shard's roster.
    pub seat: u16,
    /// The first vote.
    pub vote: Option<Ballot>,
    /// Our prepare.
    pub prepare: Sending,
    /// Our `no`.
    pub no: Sending,
    /// The offset of the first vote; meaningful when `vote` is there.
    pub vote_at: u64,
    /// The first vote's reason.
    pub reason: Option<Box<Reason>>,
}

/// What a `no` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Why.
    pub code: Code,
    /// The transaction that took effect.
    pub duplicate_of: Option<Txid>,
}

/// Why a coordinator says no in a participant's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoReason {
    /// The deadline passed.
    Expired,
    /// Somebody asked for it.
    Cancelled,
    /// A named participant has no topics.
    UnknownParticipant,
    /// The broker refused a prepare.
    PrepareRefused,
}

impl Transaction {
    /// The product of the registers: commit if all say yes, abort as soon as one says no.
    pub fn product(&self) -> Option<Verdict> {
        if self.registers.iter().any(|register| register.vote == Some(Ballot::No)) {
            return Some(Verdict::Abort);
        }
        let all_yes = self.registers.iter().all(|register| register.vote == Some(Ballot::Yes));
        all_yes.then_some(Verdict::Commit)
    }

    /// The table of transitions. Changes the state and nothing else.
    pub fn on(&mut self, event: Event) -> Result<Effect, Violation> {
        let violation = Violation { state: self.state, event };
        let (next, effect) = match (self.state, event) {
            (State::Waiting | State::Open, Event::Vote { product: None }) => (self.state, Effect::Nothing),
            (State::Waiting | State::Open, Event::Vote { product: Some(verdict) }) => match self.in_log {
                // An earlier owner has told it. With our own append under way its report settles the matter.
                Some(told) if told == verdict => (State::Told(verdict), Effect::Due),
                Some(_) => return Err(violation),
                None => (State::Decided(verdict), Effect::Due),
            },
            // The votes that decided it have not been read here yet; they are compared when they are.
            (State::Waiting | State::Open, Event::DecisionRead(verdict)) => match self.in_log {
                Some(told) if told != verdict => return Err(violation),
                Some(_) | None => {
                    self.in_log = Some(verdict);
                    (self.state, Effect::Nothing)
                }
            },
            // Of an append before this process took the shard anew: the registers will say the same.
            (State::Waiting | State::Open, Event::DecisionAcknowledged | Event::OutcomeAcknowledged) => {
                (self.state, Effect::Nothing)
            }
            (State::Waiting | State::Open, Event::Cancel) => (self.state, Effect::NoDue),
            (State::Open, Event::Deadline) => (State::Open, Effect::NoDue),
            // Its deadline has not begun.
            (State::Waiting, Event::Deadline) => (State::Waiting, Effect::Nothing),
            (State::Waiting, Event::Turn) => (State::Open, Effect::Starts),
            (State::Open, Event::Turn) => (State::Open, Effect::Nothing),

            (State::Decided(_), Event::Vote { product }) if product != self.state.verdict() => return Err(violation),
            (State::Decided(verdict), Event::Vote { .. }) => (State::Decided(verdict), Effect::Nothing),
            (State::Decided(verdict), Event::DecisionRead(read)) if read != verdict => return Err(violation),
            // Readable is not yet acknowledged: one replica may be enough to read, and that one may vanish. Our own append,
            // under way or due again, settles it.
            (State::Decided(verdict), Event::DecisionRead(_)) if self.decision != Sending::Idle => {
                (State::Decided(verdict), Effect::Nothing)
            }
            (State::Decided(verdict), Event::DecisionRead(_)) => (State::Told(verdict), Effect::Due),
            (State::Decided(verdict), Event::DecisionAcknowledged) => (State::Told(verdict), Effect::Due),
            (State::Decided(verdict), Event::OutcomeAcknowledged) => (State::Decided(verdict), Effect::Nothing),
            (State::Decided(verdict), Event::Deadline | Event::Cancel | Event::Turn) => {
                (State::Decided(verdict), Effect::Nothing)
            }

            (State::Told(_), Event::Vote { product }) if product != self.state.verdict() => return Err(violation),
            (State::Told(verdict), Event::Vote { .. }) => (State::Told(verdict), Effect::Nothing),
            (State::Told(verdict), Event::DecisionRead(read)) if read != verdict => return Err(violation),
            (State::Told(verdict), Event::DecisionRead(_)) => (State::Told(verdict), Effect::Nothing),
            (State::Told(verdict), Event::DecisionAcknowledged) => (State::Told(verdict), Effect::Nothing),
            (State::Told(verdict), Event::OutcomeAcknowledged) => (State::Finished(verdict), Effect::Nothing),
            (State::Told(verdict), Event::Deadline | Event::Cancel | Event::Turn) => {
                (State::Told(verdict), Effect::Nothing)
            }

            (State::Finished(_), Event::Vote { product }) if product != self.state.verdict() => return Err(violation),
            (State::Finished(verdict), Event::Vote { .. }) => (State::Finished(verdict), Effect::Nothing),
            (State::Finished(verdict), Event::DecisionRead(read)) if read != verdict => return Err(violation),
            (State::Finished(verdict), Event::DecisionRead(_)) => (State::Finished(verdict), Effect::Nothing),
            (State::Finished(verdict), Event::DecisionAcknowledged | Event::OutcomeAcknowledged) => {
                (State::Finished(verdict), Effect::Nothing)
            }
            (State::Finished(verdict), Event::Deadline | Event::Cancel | Event::Turn) => {
                (State::Finished(verdict), Effect::Nothing)
            }
        };
        self.state = next;
        Ok(effect)
    }

    /// A `no` is due in every register that is empty and has none of ours.
    pub fn call_for_no(&mut self, reason: NoReason) {
        for branch in 0..self.registers.len() {
            self.refuse(branch, reason);
        }
    }

    /// A `no` is due in one register, unless it is filled or has one of ours. No prepares are sent from then on.
    pub fn refuse(&mut self, branch: usize, reason: NoReason) {
        let Some(register) = self.registers.get_mut(branch).filter(|register| register.vote.is_none()) else { return };
        if register.no == Sending::Idle {
            register.no = Sending::Due;
        }
        self.no_reason.get_or_insert(reason);
        self.content = None;
    }

    /// The transaction was decided: returns the deadline that it does not need any more.
    pub fn leave_open(&mut self) -> Option<u64> {
        self.content = None;
        self.deadline_at_ms.take()
    }

    /// Notes how an append ended. What was not under way stays as it is.
    pub fn sent(&mut self, what: What, delivery: Delivery) {
        match what {
            What::Prepare { branch, .. } => {
                let branch = usize::from(branch);
                let Some(register) = self.registers.get_mut(branch) else { return };
                register.prepare.settle(delivery);
                if delivery == Delivery::Refused {
                    self.refuse(branch, NoReason::PrepareRefused);
                }
                self.drop_delivered_payloads();
            }
            What::No { branch, .. } => {
                if let Some(register) = self.registers.get_mut(usize::from(branch)) {
                    register.no.settle(delivery);
                }
            }
            What::Decision { .. } => self.decision.settle(delivery),
            What::Outcome { .. } => self.outcome.settle(delivery),
            What::Rejection { .. } | What::Echo { .. } => {}
        }
    }

    /// Payloads are needed until each participant has its prepare or has voted.
    pub fn drop_delivered_payloads(&mut self) {
        let needed = |register: &Register| register.vote.is_none() && register.prepare != Sending::Done;
        if !self.registers.iter().any(needed) {
            self.content = None;
        }
    }

    /// The register of a seat.
    pub fn register_mut(&mut self, seat: u16) -> Option<&mut Register> {
        self.registers.iter_mut().find(|register| register.seat == seat)
    }

    /// Whether only others can set it going: its turn has not come, or a missing topic has not.
    pub fn waits(&self) -> bool {
        self.state == State::Waiting || self.waits_for_topics
    }

    /// Whether the transaction no longer holds the watermark.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished(_))
    }
}

impl Sending {
    fn settle(&mut self, delivery: Delivery) {
        if *self == Self::UnderWay {
            *self = match delivery {
                Delivery::Acknowledged => Self::Done,
                Delivery::Again => Self::Due,
                Delivery::Refused => Self::Idle,
            };
        }
    }
}

impl State {
    /// What was decided, if it is.
    pub fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Waiting | Self::Open => None,
            Self::Decided(verdict) | Self::Told(verdict) | Self::Finished(verdict) => Some(verdict),
        }
    }

    /// Whether the decision stands in the log.
    pub fn is_told(self) -> bool {
        match self {
            Self::Waiting | Self::Open | Self::Decided(_) => false,
            Self::Told(_) | Self::Finished(_) => true,
        }
    }
}

impl NoReason {
    /// The code that the vote carries.
    pub fn code(self) -> &'static str {
        use suture_contract::ids::code;
        match self {
            Self::Expired => code::EXPIRED,
            Self::Cancelled => code::CANCELLED,
            Self::UnknownParticipant => code::UNKNOWN_PARTICIPANT,
            Self::PrepareRefused => code::PREPARE_REFUSED,
        }
    }
}
