//! A participant as the model holds it: its ledger, what it has ever said, and how far it has obeyed. What becomes of a branch is
//! the judgement of production: [`branch`], [`marks`], [`course`], [`Lines`].

use suture_contract::ids::Attempt;
use suture_contract::messages::{Ballot, Verdict};
use suture_participants_core::branch::{self, Answer, Event, KeyRow, Row, State, Step, Violation};
use suture_participants_core::lines::Lines;
use suture_participants_core::marks::{self, Candidate, Marks};
use suture_participants_core::restore::{Asked as Found, Course, Has, course};

use super::alphabet::{Alphabet, Asked, REQUESTS, SHARD};
use super::property::{Broken, Property};

/// A row of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Kept {
    /// None.
    #[default]
    Nothing,
    /// Said yes.
    InDoubt,
    /// Committed.
    Committed,
    /// Aborted; holds its key and attempt.
    Aborted,
    /// Aborted; the abort came before its prepare, and it holds no key.
    Noted,
    /// Refused; holds its key and attempt.
    Refused,
    /// Refused because of another row of its key; holds none.
    Repeat,
}

impl Kept {
    fn state(self) -> State {
        match self {
            Self::Nothing => State::Absent,
            Self::InDoubt => State::InDoubt,
            Self::Committed => State::Committed,
            Self::Aborted | Self::Noted => State::Aborted,
            Self::Refused | Self::Repeat => State::Refused,
        }
    }

    fn is_named(self) -> bool {
        matches!(self, Self::InDoubt | Self::Committed | Self::Aborted | Self::Refused)
    }
}

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Backup {
    /// The rows.
    pub rows: [Kept; REQUESTS],
    /// The mark.
    pub mark: u8,
    /// The own position.
    pub position: u8,
}

/// A participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ledger {
    /// What it has, and how far it has obeyed and acknowledged.
    pub now: Backup,
    /// Transactions that it has ever said yes to, by request. Such a vote may still land.
    pub said_yes: u8,
    /// And no.
    pub said_no: u8,
    /// What can be restored.
    pub backup: Option<Backup>,
    /// Whether it was.
    pub restored: bool,
}

impl Ledger {
    fn marks(&self, alphabet: &Alphabet) -> Marks {
        let mark = (self.now.mark > 0).then(|| ((alphabet.log, SHARD), u64::from(self.now.mark)));
        Marks(mark.into_iter().collect())
    }

    fn row(&self, alphabet: &Alphabet, request: usize) -> Option<Row> {
        let kept = self.now.rows[request];
        let row = Row { state: kept.state(), hash: alphabet.hash(request), refusal: None };
        (kept != Kept::Nothing).then_some(row)
    }

    fn step(&self, alphabet: &Alphabet, request: usize, event: Event) -> Result<Step, Violation> {
        let is_below_mark = self.marks(alphabet).covers(&alphabet.txid(request));
        branch::step_of_row(self.row(alphabet, request).as_ref(), is_below_mark, event, &alphabet.hash(request))
    }

    /// Whether the branch is over here, for good.
    pub fn is_over(&self, alphabet: &Alphabet, request: usize) -> bool {
        match self.now.rows[request] {
            Kept::InDoubt => false,
            Kept::Nothing => self.marks(alphabet).covers(&alphabet.txid(request)),
            Kept::Committed | Kept::Aborted | Kept::Noted | Kept::Refused | Kept::Repeat => true,
        }
    }

    /// A prepare comes: what may become of it. Nothing, if it is parked.
    pub fn prepare(&self, alphabet: &Alphabet, request: usize) -> Result<Vec<Self>, Broken> {
        let answered = |ledger: &Self, yes: bool| {
            let mut ledger = *ledger;
            let said = if yes { &mut ledger.said_yes } else { &mut ledger.said_no };
            *said |= 1 << request;
            ledger
        };
        let step = self.step(alphabet, request, Event::Prepare);
        match step.map_err(|violation| Broken::of(Property::Ledger, violation))? {
            Step::AnswerYes | Step::AnswerNo => {
                let answer = self.answer(alphabet, request).unwrap_or_else(branch::answer_without_row);
                Ok(vec![answered(self, answer == Answer::Yes)])
            }
            Step::Run if self.is_parked(alphabet, request) => Ok(Vec::new()),
            Step::Run => {
                let with = |kept| {
                    let mut ledger = *self;
                    ledger.now.rows[request] = kept;
                    ledger
                };
                let Asked::Request { key, attempt, .. } = alphabet.asked[request] else { return Ok(Vec::new()) };
                let of_key = self.rows_of_key(alphabet, key);
                let attempt = Attempt::new(attempt).expect("a valid attempt");
                let refusal = branch::refusal_by_key(&of_key, attempt, &alphabet.hash(request));
                if let Some(other) = refusal.as_ref().and_then(|refusal| refusal.duplicate_of)
                    && self.now.rows[other.offset as usize] != Kept::Committed
                {
                    let what = format!("{request} is refused for {}, which is not committed", other.offset);
                    return Err(Broken::of(Property::Duplicate, what));
                }
                Ok(match refusal {
                    Some(refusal) if refusal.is_repeat() => vec![answered(&with(Kept::Repeat), false)],
                    Some(_) => vec![answered(&with(Kept::Refused), false)],
                    // What ran before the restore fits again; where somebody has changed the rows by hand it does not, and
                    // its commit is LOST, which a person settles.
                    None if self.restored && self.said_yes & (1 << request) != 0 => vec![with(Kept::InDoubt)],
                    None => vec![answered(&with(Kept::InDoubt), true), answered(&with(Kept::Refused), false)],
                })
            }
            Step::Commit | Step::RollBack | Step::NoteAbort | Step::Nothing => unreachable!("no answer to a prepare"),
        }
    }

    /// What the ledger answers to a prepare that it has a row for.
    pub fn answer(&self, alphabet: &Alphabet, request: usize) -> Option<Answer> {
        self.row(alphabet, request).map(|row| row.answer())
    }

    fn rows_of_key(&self, alphabet: &Alphabet, of: u8) -> Vec<KeyRow> {
        let row = |(request, kept): (usize, &Kept)| match alphabet.asked.get(request)? {
            Asked::Request { key, attempt, .. } if *key == of && kept.is_named() => Some(KeyRow {
                txid: alphabet.txid(request),
                state: kept.state(),
                hash: alphabet.hash(request),
                attempt: Attempt::new(*attempt).expect("a valid attempt"),
            }),
            _ => None,
        };
        self.now.rows.iter().enumerate().filter_map(row).collect()
    }

    fn is_parked(&self, alphabet: &Alphabet, request: usize) -> bool {
        let is_ordered = |request: usize| matches!(alphabet.asked[request], Asked::Request { ordered: true, .. });
        if !is_ordered(request) {
            return false;
        }
        let patient = "patient".parse().expect("a valid order key");
        let mut lines = Lines::default();
        for other in (0..alphabet.asked.len()).filter(|other| self.now.rows[*other] == Kept::InDoubt) {
            if is_ordered(other) {
                lines.enters(alphabet.txid(other), "patient".parse().expect("a valid order key"));
            }
        }
        !lines.is_first(&alphabet.txid(request), &patient)
    }

    /// A decision comes.
    pub fn decide(&self, alphabet: &Alphabet, request: usize, verdict: Verdict) -> Result<Self, Violation> {
        let event = if verdict == Verdict::Commit { Event::Commit } else { Event::Abort };
        let with = |kept| {
            let mut ledger = *self;
            ledger.now.rows[request] = kept;
            ledger
        };
        Ok(match self.step(alphabet, request, event)? {
            Step::Commit => with(Kept::Committed),
            Step::RollBack => with(Kept::Aborted),
            Step::NoteAbort => with(Kept::Noted),
            Step::Nothing => *self,
            Step::Run | Step::AnswerYes | Step::AnswerNo => unreachable!("no decision does that"),
        })
    }

    /// Purges some of the finished rows, a mask of requests.
    pub fn purge(&self, alphabet: &Alphabet, old: u8) -> Self {
        let (mut candidates, mut unfinished) = (Vec::new(), Vec::new());
        for (request, kept) in self.now.rows.iter().enumerate() {
            let txid = || alphabet.txid(request);
            match kept {
                Kept::Nothing => {}
                Kept::InDoubt => unfinished.push(txid()),
                _ => candidates.push(Candidate { txid: txid(), is_old: old & (1 << request) != 0 }),
            }
        }
        let purge = marks::purge(&candidates, &unfinished, |shard| shard == SHARD);
        let mut ledger = *self;
        for txid in &purge.txids {
            ledger.now.rows[txid.offset as usize] = Kept::Nothing;
        }
        for mark in purge.marks.0.values() {
            ledger.now.mark = ledger.now.mark.max(*mark as u8);
        }
        ledger
    }

    /// The backup is put back and what is missing is brought back. By request: what the decision log says from the backup's
    /// position on, whether the prepare stood in the log then, and what stands in the own register. `refused`: what is refused of what
    /// has no vote, a mask of requests; answers what was. `None`: something cannot be.
    pub fn restore(
        &self,
        alphabet: &Alphabet,
        decided: &[Option<Verdict>; REQUESTS],
        is_asked: &[bool; REQUESTS],
        said: &[Option<Ballot>; REQUESTS],
        refused: u8,
    ) -> Option<(Self, Vec<usize>)> {
        let mut ledger = Self { now: self.backup?, restored: true, backup: None, ..*self };
        let mut noes = Vec::new();
        for request in (0..alphabet.asked.len()).filter(|request| is_asked[*request]) {
            let has = match ledger.now.rows[request] {
                Kept::Nothing if ledger.is_over(alphabet, request) => Has::Row,
                Kept::Nothing => Has::Nothing,
                Kept::InDoubt => Has::InDoubt,
                _ => Has::Row,
            };
            match course(decided[request], has, Found::Before, said[request]) {
                Course::Decide => {
                    let verdict = decided[request]?;
                    ledger = ledger.decide(alphabet, request, verdict).ok()?;
                }
                Course::Redo => ledger.now.rows[request] = Kept::Committed,
                Course::Try if refused & (1 << request) != 0 => {
                    ledger.said_no |= 1 << request;
                    noes.push(request);
                }
                Course::Prepare | Course::Try => ledger.now.rows[request] = Kept::InDoubt,
                Course::Known | Course::Leave => {}
                Course::Lost => return None,
            }
        }
        Some((ledger, noes))
    }
}
