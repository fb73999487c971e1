//! Driving again: which aborts are asked for again, and when. Pure: outcomes and the time come in, what is due goes out.
//!
//! ```text
//!   suture.outcomes, one shard of it, in order --> hear(offset, outcome, now)    waits, or lets go of what waits
//!   time                                       --> due(now) -> [Ask]             read the request back, append the next attempt
//!   what the broker acknowledged               --> done(txid)                    and only then the position moves
//!                                                  position()                    the lowest outcome that still waits
//! ```
//!
//! **What an outcome says** of its business key ([`Word`]):
//!
//! | outcome | word |
//! |---|---|
//! | commit; or abort as a duplicate of a commit | took effect |
//! | abort, and every no may pass by itself (`retryable`: expired, busy, in progress) | may pass |
//! | the same, but somebody else said `aborted_before`: this attempt is used up there, and the next one is not | may pass |
//! | abort with a no that will not pass (`LIMIT`, `cancelled`, `unreadable`) | refused |
//! | any other abort (`aborted_before` alone, `conflict`) | repeated: about another request of the same key |
//!
//! **What follows**, by what waits of the same key. At most one request a key waits. "Settled" is remembered for a while of a
//! key that took effect, of an attempt that was refused, and of one that was asked for again.
//!
//! | | nothing waits | it is settled | an earlier attempt waits | the same attempt waits | a later attempt waits |
//! |---|---|---|---|---|---|
//! | took effect | - | - | let go | let go | let go |
//! | may pass | waits | - | waits instead | - | - |
//! | refused | - | - | let go | let go | - |
//! | repeated | - | - | let go | - | - |
//!
//! "Waits" if its rule has a time for that attempt ([`Rules::retries_of`]), else it is a person's. So an attempt's number
//! alone bounds how often it is followed by another one, whoever asks, however often, and whatever the answers are.
//!
//! **Nothing here is needed for safety.** An outcome that is written, read or driven twice asks twice for the same attempt,
//! and the ledgers let one of them through (design 4.7). The memory only spares such repeats. For the same reason nothing is
//! asked for before this owner has read what the log held when it began: the answer may stand there.
//!
//! **Whose rule.** An outcome names no rule, but a business key that ingest has made begins with it. Requests of an
//! application's own making are the application's to repeat.
//!
//! **By hand.** Aborts for a reason that does not pass by itself are a person's, who mends the cause first. [`by_hand`] says
//! whether asking again makes sense, and as which attempt: one above all that the logs hold of the key.
//!
//! Left out: knowing whether the cause was mended. The participants will say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use suture_contract::ids::{Attempt, BusinessKey, Txid, code};
use suture_contract::messages::{Ballot, Outcome, Request, Verdict};

use crate::ingest::rules::Rules;

/// Most that waits in a shard. Beyond it the reader rests; some 500 bytes each.
pub const MAX_WAITING: usize = 10_000;

/// Of how many keys a shard remembers that they are settled.
const MAX_SETTLED: usize = 4_096;

/// What an outcome says of its business key. See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs)]
pub enum Word {
    TookEffect,
    MayPass,
    Refused,
    Repeated,
}

impl Word {
    /// Of an outcome.
    pub fn of(outcome: &Outcome) -> Self {
        if outcome.outcome == Verdict::Commit || outcome.duplicate_of.is_some() {
            return Self::TookEffect;
        }
        let passes = |code: &str| code::is_retryable(code);
        let is_used_up = |code: &str| code == code::ABORTED_BEFORE || code == code::ABORTED;
        let may_pass = noes(outcome).any(|(_, code)| passes(code))
            && noes(outcome).all(|(_, code)| passes(code) || is_used_up(code));
        if outcome.retryable || may_pass {
            return Self::MayPass;
        }
        match noes(outcome).any(|(_, code)| !passes(code) && !is_used_up(code) && !code::is_repeat(code)) {
            true => Self::Refused,
            false => Self::Repeated,
        }
    }
}

/// What follows from one outcome, for counters and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing is to be asked for.
    Settled,
    /// It waits; asked for again after this.
    Waits(Duration),
    /// It may pass, and was asked for as often as its rule says: a person's.
    UsedUp,
    /// It may pass, and its business key begins with no rule that is configured: a person's, or an application's.
    NoRule,
}

/// An aborted transaction that is to be asked for again now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Which one. Its name is also the place of its request.
    pub txid: Txid,
    /// What it was about.
    pub business_key: BusinessKey,
    /// The attempt that was aborted.
    pub attempt: Attempt,
    /// Who said no, and why: names and codes.
    pub because: String,
}

impl Ask {
    /// The next attempt of a request that was read back: all else stays, and its deadline begins when it is read.
    ///
    /// # Errors
    /// It is another request than the one that is to be asked for again.
    pub fn next_attempt(&self, request: Request) -> Result<Request, &'static str> {
        if request.business_key != self.business_key || request.attempt != self.attempt {
            return Err("another request stands there: the requests topic has lost records");
        }
        if rule_of(&self.business_key) != Some(request.rule.as_str()) {
            return Err("its business key begins with another rule than its own");
        }
        Ok(Request { attempt: self.attempt.next(), ..request })
    }
}

/// What waits in one shard of the outcomes.
#[derive(Debug)]
pub struct Redrive {
    /// Where the log ended when this owner began.
    end: u64,
    /// After the last outcome heard.
    next: u64,
    /// By the offset of its outcome.
    waiting: BTreeMap<u64, Waiting>,
    /// The same, by what it is about.
    keys: BTreeMap<BusinessKey, u64>,
    /// The same, by when it is due, but for what is under way.
    deadlines: BTreeSet<(Duration, u64)>,
    settled: Settled,
}

/// Up to which attempt nothing is to be asked for, of the last keys of which that is known.
#[derive(Debug, Default)]
struct Settled {
    attempts: BTreeMap<BusinessKey, Attempt>,
    oldest_first: VecDeque<BusinessKey>,
}

#[derive(Debug)]
struct Waiting {
    ask: Ask,
    due: Duration,
}

impl Redrive {
    /// Begins at an offset of a log that ends at `end` now.
    pub fn new(start: u64, end: u64) -> Self {
        Self {
            end,
            next: start,
            waiting: BTreeMap::new(),
            keys: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            settled: Settled::default(),
        }
    }

    /// Takes in the next record; `None`: it is no outcome.
    pub fn hear(&mut self, rules: &Rules, offset: u64, outcome: Option<&Outcome>, now: Duration) -> Heard {
        self.next = self.next.max(offset + 1);
        let Some(outcome) = outcome else { return Heard::Settled };
        let word = Word::of(outcome);
        match word {
            Word::TookEffect => self.settled.remember(&outcome.business_key, Attempt::LAST),
            Word::Refused => self.settled.remember(&outcome.business_key, outcome.attempt),
            Word::MayPass | Word::Repeated => {}
        }
        let waiting = self.keys.get(&outcome.business_key).map(|place| (*place, self.waiting[place].ask.attempt));
        if let Some((place, attempt)) = waiting {
            let lets_go = match word {
                Word::TookEffect => true,
                Word::Refused => attempt <= outcome.attempt,
                Word::MayPass | Word::Repeated => attempt < outcome.attempt,
            };
            if !lets_go {
                return Heard::Settled;
            }
            self.let_go(place);
        }
        if word != Word::MayPass || self.settled.covers(&outcome.business_key, outcome.attempt) {
            return Heard::Settled;
        }
        let rule = rule_of(&outcome.business_key).and_then(|rule| rules.retries_of(rule));
        let Some(retries) = rule else { return Heard::NoRule };
        let Some(pause) = retries.get(outcome.attempt.number() as usize - 1) else { return Heard::UsedUp };
        let because: Vec<_> = noes(outcome).map(|(participant, code)| format!("{participant} {code}")).collect();
        let ask = Ask {
            txid: outcome.txid,
            business_key: outcome.business_key.clone(),
            attempt: outcome.attempt,
            because: because.join(", "),
        };
        self.keys.insert(ask.business_key.clone(), offset);
        self.deadlines.insert((now + *pause, offset));
        self.waiting.insert(offset, Waiting { ask, due: now + *pause });
        Heard::Waits(*pause)
    }

    /// When [`Redrive::due`] has something.
    pub fn next_deadline(&self) -> Option<Duration> {
        if !self.may_ask() {
            return None;
        }
        self.deadlines.first().map(|(due, _)| *due)
    }

    /// What is to be asked for now, at most so many. Each is under way until [`Redrive::done`].
    pub fn due(&mut self, now: Duration, most: usize) -> Vec<Ask> {
        let mut due = Vec::new();
        while due.len() < most
            && self.next_deadline().is_some_and(|deadline| deadline <= now)
            && let Some((_, place)) = self.deadlines.pop_first()
        {
            due.push(self.waiting[&place].ask.clone());
        }
        due
    }

    /// It was asked for, or never can be. Unknown is what was let go meanwhile.
    pub fn done(&mut self, business_key: &BusinessKey, txid: Txid) {
        if let Some(place) = self.place_of(business_key, txid) {
            self.settled.remember(business_key, self.waiting[&place].ask.attempt);
            self.let_go(place);
        }
    }

    /// Where another owner may begin: before it nothing waits.
    pub fn position(&self) -> u64 {
        self.waiting.first_key_value().map_or(self.next, |(place, _)| *place)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no more may be read before something has been asked for.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }

    /// A full shard may hold what is answered further on; asking for it costs a refusal, and never ending would cost more.
    fn may_ask(&self) -> bool {
        self.next >= self.end || self.is_full()
    }

    fn place_of(&self, business_key: &BusinessKey, txid: Txid) -> Option<u64> {
        let place = self.keys.get(business_key)?;
        (self.waiting[place].ask.txid == txid).then_some(*place)
    }

    fn let_go(&mut self, place: u64) {
        if let Some(Waiting { ask, due }) = self.waiting.remove(&place) {
            self.keys.remove(&ask.business_key);
            self.deadlines.remove(&(due, place));
        }
    }
}

/// Why a transaction is not asked for again by hand, and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAgain {
    /// It has no outcome.
    #[error("{0} is not decided yet: wait for its outcome (`suture tx show {0}`), or cancel it first")]
    NotDecided(Txid),
    /// It is in all its databases.
    #[error("{0} took effect: there is nothing to ask for again")]
    TookEffect(Txid),
    /// The same thing is in all its databases.
    #[error("what {0} asks for took effect as {1}: there is nothing to ask for again")]
    TookEffectAs(Txid, Txid),
    /// Somebody has asked again already.
    #[error("the same is under way as {1}: wait for its outcome (`suture tx show {1}`) before {0} is asked for again")]
    UnderWay(Txid, Txid),
}

/// As which attempt a person may ask for an aborted transaction again. `requests` and `outcomes` are those of its business key,
/// the requests read first.
///
/// # Errors
/// It makes no sense to ask now. (If somebody asks at the same moment, the ledgers let one through.)
pub fn by_hand(txid: Txid, requests: &[(Txid, Attempt)], outcomes: &[Outcome]) -> Result<Attempt, NotAgain> {
    let Some(outcome) = outcomes.iter().find(|outcome| outcome.txid == txid) else {
        return Err(NotAgain::NotDecided(txid));
    };
    if outcome.outcome == Verdict::Commit {
        return Err(NotAgain::TookEffect(txid));
    }
    let took_effect = |outcome: &Outcome| match outcome.outcome {
        Verdict::Commit => Some(outcome.txid),
        Verdict::Abort => outcome.duplicate_of,
    };
    if let Some(as_txid) = outcomes.iter().find_map(took_effect) {
        return Err(NotAgain::TookEffectAs(txid, as_txid));
    }
    let is_open = |(request, _): &&(Txid, Attempt)| outcomes.iter().all(|outcome| outcome.txid != *request);
    if let Some((open, _)) = requests.iter().find(is_open) {
        return Err(NotAgain::UnderWay(txid, *open));
    }
    let attempts = requests.iter().map(|(_, attempt)| *attempt).chain(outcomes.iter().map(|outcome| outcome.attempt));
    Ok(attempts.max().unwrap_or(outcome.attempt).next())
}

impl Settled {
    fn remember(&mut self, key: &BusinessKey, attempt: Attempt) {
        let known = self.attempts.entry(key.clone()).or_insert_with(|| {
            self.oldest_first.push_back(key.clone());
            attempt
        });
        *known = attempt.max(*known);
        if self.attempts.len() > MAX_SETTLED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.attempts.remove(&oldest);
        }
    }

    fn covers(&self, key: &BusinessKey, attempt: Attempt) -> bool {
        self.attempts.get(key).is_some_and(|settled| attempt <= *settled)
    }
}

/// The rule that made a business key, if ingest did.
fn rule_of(business_key: &BusinessKey) -> Option<&str> {
    Some(business_key.as_str().split_once(':')?.0)
}

/// Who said no, and why.
fn noes(outcome: &Outcome) -> impl Iterator<Item = (&str, &str)> {
    let noes = outcome.votes.iter().filter(|view| view.vote == Some(Ballot::No));
    noes.filter_map(|view| Some((view.participant.as_str(), view.code.as_ref()?.as_str())))
}
