//! The branch: one participant's part of one transaction, as its ledger knows it.
//!
//! | state | prepare | commit | abort |
//! |---|---|---|---|
//! | absent | run the operation, if the business key allows it | violation: **lost** | note the abort, so that the late prepare finds it |
//! | purged | answer no | nothing: finished long ago | nothing: finished long ago |
//! | in doubt | answer yes again | commit | roll back |
//! | committed | answer yes again | nothing: done before | violation: **contradiction** |
//! | aborted | answer no | violation: **lost** | nothing: done before |
//! | refused | answer no again | violation: **lost** | nothing: it changed nothing here |
//! | abandoned | answer no again | nothing: an operator has taken it over | nothing: an operator has taken it over |
//!
//! - The hash comes first: an event whose hash is not the row's is about something else under the same name. That is a
//!   violation in every state.
//! - **Purged** is what has no row and lies below the mark of its shard ([`crate::marks`]). Nobody reads that no, for what was
//!   finished has its vote in the log; and it takes no row.
//! - **Lost**: the decision is commit, so all others count this branch as a success, yet here is nothing to commit, or
//!   this participant never said yes. It is never acknowledged and never repaired in silence: an operator says what he did
//!   about it, and his word becomes the row, `committed` or `abandoned`.
//! - A violation changes nothing. It stops the shard, because nobody can know what else is wrong with it.
//!
//! **The business key** is settled before an absent branch runs. A ledger has at most one *live* row a key (in doubt or
//! committed, over all attempts) and one row a (key, attempt). What is met answers the prepare:
//!
//! | the ledger has of the same key | answer |
//! |---|---|
//! | a live row with another hash, made with the same hash key | no, `conflict` |
//! | a committed row | no, `duplicate`, naming its txid |
//! | a row in doubt | no, `in_progress` (may be asked again) |
//! | this attempt or a later one, aborted, refused or abandoned | no, `aborted_before` |
//! | nothing of these | the operation runs |
//!
//! Such a no is about an older branch, so its own row carries neither key nor attempt ([`Refusal::is_repeat`]). Nor does the
//! `aborted` row of an abort that overtakes its prepare: it may be that of a duplicate, and the original is still to come.
//!
//! Left out: how rows are read and locked; each database does that its own way.

use std::fmt;

use suture_contract::ids::{Attempt, Code, RequestHash, Txid, code};

/// What became of a txid here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Nothing is known. Goes to in doubt or refused by a prepare, to aborted by an abort.
    Absent,
    /// No row, and below the mark: it was finished, and how is forgotten. Stays.
    Purged,
    /// Said yes, or about to. Goes to committed or aborted, and by a decision only.
    InDoubt,
    /// Its effect is durable. Stays.
    Committed,
    /// It has no effect, and never will. Stays.
    Aborted,
    /// Said no and has no effect. Stays, also after the abort that follows.
    Refused,
    /// Has no effect whatever was decided, and an operator answers for that. Stays.
    Abandoned,
}

/// What reaches a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs)]
pub enum Event {
    Prepare,
    Commit,
    Abort,
}

/// What an event asks for: a transition, or (the last three) a harmless repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Run the operation and become in doubt; or refuse, and become refused.
    Run,
    /// Make the effect durable and become committed.
    Commit,
    /// Undo everything and become aborted.
    RollBack,
    /// Become aborted without having run.
    NoteAbort,
    /// Answer yes once more.
    AnswerYes,
    /// Answer no, as the row says.
    AnswerNo,
    /// The decision was carried out before, or has nothing to undo.
    Nothing,
}

/// An event that must not happen. Stops the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event} of a branch that is {state} here: {wrong}")]
pub struct Violation {
    /// What the ledger says.
    pub state: State,
    /// What came.
    pub event: Event,
    /// What is wrong about it.
    pub wrong: Wrong,
}

/// The kinds of violations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// The same txid, but about something else.
    OtherHash,
    /// All others count on an effect that this participant does not have, or never agreed to.
    Lost,
    /// Two decisions of one txid, or a decision against the ledger.
    Contradiction,
}

/// The state machine. `same_hash`: whether the event's hash is the row's; meaningless for what has no row.
pub fn step(state: State, event: Event, same_hash: bool) -> Result<Step, Violation> {
    let violation = |wrong| Err(Violation { state, event, wrong });
    if !matches!(state, State::Absent | State::Purged) && !same_hash {
        return violation(Wrong::OtherHash);
    }
    match (state, event) {
        (State::Absent, Event::Prepare) => Ok(Step::Run),
        (State::Absent, Event::Commit) => violation(Wrong::Lost),
        (State::Absent, Event::Abort) => Ok(Step::NoteAbort),

        (State::Purged, Event::Prepare) => Ok(Step::AnswerNo),
        (State::Purged, Event::Commit | Event::Abort) => Ok(Step::Nothing),

        (State::InDoubt, Event::Prepare) => Ok(Step::AnswerYes),
        (State::InDoubt, Event::Commit) => Ok(Step::Commit),
        (State::InDoubt, Event::Abort) => Ok(Step::RollBack),

        (State::Committed, Event::Prepare) => Ok(Step::AnswerYes),
        (State::Committed, Event::Commit) => Ok(Step::Nothing),
        (State::Committed, Event::Abort) => violation(Wrong::Contradiction),

        (State::Aborted, Event::Prepare) => Ok(Step::AnswerNo),
        (State::Aborted, Event::Commit) => violation(Wrong::Lost),
        (State::Aborted, Event::Abort) => Ok(Step::Nothing),

        (State::Refused, Event::Prepare) => Ok(Step::AnswerNo),
        (State::Refused, Event::Commit) => violation(Wrong::Lost),
        (State::Refused, Event::Abort) => Ok(Step::Nothing),

        (State::Abandoned, Event::Prepare) => Ok(Step::AnswerNo),
        (State::Abandoned, Event::Commit) => Ok(Step::Nothing),
        (State::Abandoned, Event::Abort) => Ok(Step::Nothing),
    }
}

/// A row of the ledger: what became of one txid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Neither absent nor purged.
    pub state: State,
    /// What it was about.
    pub hash: RequestHash,
    /// For a refused branch: why.
    pub refusal: Option<Refusal>,
}

impl Row {
    /// The answer to a prepare that is met by this row.
    pub fn answer(&self) -> Answer {
        match self.state {
            State::InDoubt | State::Committed => Answer::Yes,
            State::Absent | State::Purged | State::Aborted | State::Refused | State::Abandoned => {
                Answer::No(self.refusal.clone().unwrap_or_else(|| Refusal::because(code::ABORTED)))
            }
        }
    }
}

/// [`step`] for what the ledger has of a txid: a row, or none, and then its mark.
pub fn step_of_row(
    row: Option<&Row>,
    is_below_mark: bool,
    event: Event,
    hash: &RequestHash,
) -> Result<Step, Violation> {
    match row {
        Some(row) => step(row.state, event, row.hash == *hash),
        None if is_below_mark => step(State::Purged, event, true),
        None => step(State::Absent, event, true),
    }
}

/// The answer to a prepare that no row and no operation answers: of what is purged.
pub fn answer_without_row() -> Answer {
    Answer::No(Refusal::because(code::FINISHED_BEFORE))
}

/// A participant's answer to a prepare; becomes its vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Can commit whatever comes.
    Yes,
    /// Changed nothing.
    No(Refusal),
}

/// Why a prepare was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason code.
    pub code: Code,
    /// The committed transaction of the same business key.
    pub duplicate_of: Option<Txid>,
}

impl Refusal {
    /// With one of Suture's own codes.
    ///
    /// # Panics
    /// If the constant is no valid code; all of [`suture_contract::ids::code`] are.
    pub fn because(code: &'static str) -> Self {
        Self { code: code.parse().expect("Suture's own codes are valid"), duplicate_of: None }
    }

    /// With a participant's code.
    pub fn with(code: Code) -> Self {
        Self { code, duplicate_of: None }
    }

    /// Whether it is about an older branch of the same key: then its own row carries neither key nor attempt.
    pub fn is_repeat(&self) -> bool {
        code::is_repeat(self.code.as_str())
    }
}

/// A ledger row of the business key in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// Whose row.
    pub txid: Txid,
    /// Neither absent nor purged.
    pub state: State,
    /// What it was about.
    pub hash: RequestHash,
    /// Which attempt.
    pub attempt: Attempt,
}

/// The rule of business keys: why a branch that is absent must not run; `None`: it may.
pub fn refusal_by_key(rows: &[KeyRow], attempt: Attempt, hash: &RequestHash) -> Option<Refusal> {
    if let Some(live) = rows.iter().find(|row| row.state.is_live()) {
        if live.hash.key_id == hash.key_id && live.hash.mac != hash.mac {
            return Some(Refusal::because(code::CONFLICT));
        }
        return match live.state {
            State::Committed => Some(Refusal { duplicate_of: Some(live.txid), ..Refusal::because(code::DUPLICATE) }),
            State::Absent | State::Purged | State::InDoubt | State::Aborted | State::Refused | State::Abandoned => {
                Some(Refusal::because(code::IN_PROGRESS))
            }
        };
    }
    let aborted_before = rows.iter().any(|row| row.attempt >= attempt);
    aborted_before.then(|| Refusal::because(code::ABORTED_BEFORE))
}

impl State {
    /// Whether a row of this state holds its business key against all others.
    pub fn is_live(self) -> bool {
        matches!(self, State::InDoubt | State::Committed)
    }

    /// As it stands in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Purged => "purged",
            Self::InDoubt => "in_doubt",
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::Refused => "refused",
            Self::Abandoned => "abandoned",
        }
    }

    /// From the ledger; `None` for what no version of Suture wrote.
    pub fn of_ledger(text: &str) -> Option<Self> {
        let stored = [Self::InDoubt, Self::Committed, Self::Aborted, Self::Refused, Self::Abandoned];
        stored.into_iter().find(|s| s.as_str() == text)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::Abort => "abort",
        })
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherHash => "the hash is another one",
            Self::Lost => "LOST, the others count on an effect that is not here",
            Self::Contradiction => "the decision contradicts what was decided before",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 7] = [
        State::Absent,
        State::Purged,
        State::InDoubt,
        State::Committed,
        State::Aborted,
        State::Refused,
        State::Abandoned,
    ];
    const EVENTS: [Event; 3] = [Event::Prepare, Event::Commit, Event::Abort];

    /// The table of the module's documentation, read from that documentation.
    fn documented() -> Vec<(State, Event, String)> {
        let rows: Vec<Vec<String>> = include_str!("branch.rs")
            .lines()
            .map_while(|line| line.strip_prefix("//!"))
            .filter_map(|line| line.trim().strip_prefix('|'))
            .map(|line| line.trim_end_matches('|').split('|').map(|cell| cell.trim().to_string()).collect())
            .take(2 + STATES.len())
            .collect();
        assert_eq!(rows[0], ["state", "prepare", "commit", "abort"]);
        let mut cells = Vec::new();
        for (row, state) in rows[2..].iter().zip(STATES) {
            assert_eq!(row[0].replace(' ', "_"), state.as_str());
            for (cell, event) in row[1..].iter().zip(EVENTS) {
                cells.push((state, event, cell.clone()));
            }
        }
        cells
    }

    #[test]
    fn every_pair_does_what_the_table_says() {
        let cells = documented();
        assert_eq!(cells.len(), 21);
        for (state, event, cell) in cells {
            let expected = match cell.as_str() {
                "run the operation, if the business key allows it" => Ok(Step::Run),
                "note the abort, so that the late prepare finds it" => Ok(Step::NoteAbort),
                "answer yes again" => Ok(Step::AnswerYes),
                "answer no" | "answer no again" => Ok(Step::AnswerNo),
                "commit" => Ok(Step::Commit),
                "roll back" => Ok(Step::RollBack),
                "nothing: done before"
                | "nothing: it changed nothing here"
                | "nothing: finished long ago"
                | "nothing: an operator has taken it over" => Ok(Step::Nothing),
                "violation: **lost**" => Err(Violation { state, event, wrong: Wrong::Lost }),
                "violation: **contradiction**" => Err(Violation { state, event, wrong: Wrong::Contradiction }),
                other => panic!("the table says {other:?}"),
            };
            assert_eq!(step(state, event, true), expected, "{event} of {state}");
        }
    }

    #[test]
    fn a_violation_says_what_met_what() {
        let said = |state, event| step(state, event, true).unwrap_err().to_string();
        assert_eq!(
            said(State::Aborted, Event::Commit),
            "commit of a branch that is aborted here: LOST, the others count on an effect that is not here"
        );
        assert_eq!(
            said(State::Committed, Event::Abort),
            "abort of a branch that is committed here: the decision contradicts what was decided before"
        );
        let other = step(State::InDoubt, Event::Prepare, false).unwrap_err().to_string();
        assert_eq!(other, "prepare of a branch that is in_doubt here: the hash is another one");
    }

    #[test]
    fn a_refusal_knows_whether_an_older_branch_is_meant() {
        assert!(Refusal::because(code::DUPLICATE).is_repeat());
        assert!(!Refusal::because(code::BUSY).is_repeat());
        assert!(!Refusal::with("NOT_PRIVILEGED".parse().unwrap()).is_repeat());
    }

    #[test]
    fn another_hash_is_a_violation_in_every_state_that_has_one() {
        for state in STATES {
            for event in EVENTS {
                let met = step(state, event, false);
                match state {
                    State::Absent | State::Purged => assert_eq!(met, step(state, event, true)),
                    _ => assert_eq!(met, Err(Violation { state, event, wrong: Wrong::OtherHash })),
                }
            }
        }
    }

    fn hash(text: &str) -> RequestHash {
        text.parse().unwrap()
    }

    fn row(state: State, attempt: u32) -> KeyRow {
        KeyRow {
            txid: "k3f9q-3-1042".parse().unwrap(),
            state,
            hash: hash("k1:00000000000000000000000000000001"),
            attempt: Attempt::new(attempt).unwrap(),
        }
    }

    #[test]
    fn a_business_key_takes_effect_once() {
        let same = "k1:00000000000000000000000000000001";
        let other = "k1:00000000000000000000000000000002";
        let rotated = "k2:00000000000000000000000000000002";
        let met = |rows: &[KeyRow], attempt, hashed: &str| {
            refusal_by_key(rows, Attempt::new(attempt).unwrap(), &hash(hashed))
                .map(|r| (r.code.to_string(), r.duplicate_of.is_some()))
        };
        let no = |code: &str, named| Some((code.to_string(), named));

        assert_eq!(met(&[], 1, same), None);
        for attempt in [1, 2, 3] {
            assert_eq!(met(&[row(State::Committed, 2)], attempt, same), no("duplicate", true));
            assert_eq!(met(&[row(State::InDoubt, 2)], attempt, same), no("in_progress", false));
            assert_eq!(met(&[row(State::Committed, 2)], attempt, other), no("conflict", false));
            assert_eq!(met(&[row(State::InDoubt, 2)], attempt, other), no("conflict", false));
            // Hashes of two hash keys cannot be compared.
            assert_eq!(met(&[row(State::Committed, 2)], attempt, rotated), no("duplicate", true));
        }
        for finished in [State::Aborted, State::Refused, State::Abandoned] {
            assert_eq!(met(&[row(finished, 2)], 1, same), no("aborted_before", false));
            assert_eq!(met(&[row(finished, 2)], 2, same), no("aborted_before", false));
            assert_eq!(met(&[row(finished, 2)], 3, same), None, "a new attempt runs");
            assert_eq!(met(&[row(finished, 1), row(State::Committed, 2)], 3, same), no("duplicate", true));
        }
    }

    #[test]
    fn a_stored_row_answers_as_it_did() {
        let stored = |state, refusal| Row { state, hash: hash("k1:00000000000000000000000000000001"), refusal };
        assert_eq!(stored(State::InDoubt, None).answer(), Answer::Yes);
        assert_eq!(stored(State::Committed, None).answer(), Answer::Yes);
        assert_eq!(stored(State::Aborted, None).answer(), Answer::No(Refusal::because(code::ABORTED)));
        assert_eq!(stored(State::Abandoned, None).answer(), Answer::No(Refusal::because(code::ABORTED)));
        let limit = Refusal::with("LIMIT".parse().unwrap());
        assert_eq!(stored(State::Refused, Some(limit.clone())).answer(), Answer::No(limit));
    }

    #[test]
    fn the_row_is_consulted_first_and_the_mark_second() {
        let hash = hash("k1:00000000000000000000000000000001");
        let in_doubt = Row { state: State::InDoubt, hash, refusal: None };
        let cases = [
            (None, false, Event::Prepare, Step::Run),
            (None, true, Event::Prepare, Step::AnswerNo),
            (None, true, Event::Commit, Step::Nothing),
            (Some(&in_doubt), true, Event::Prepare, Step::AnswerYes),
            (Some(&in_doubt), true, Event::Commit, Step::Commit),
        ];
        for (row, is_below_mark, event, expected) in cases {
            assert_eq!(step_of_row(row, is_below_mark, event, &hash), Ok(expected));
        }
    }

    #[test]
    fn states_survive_the_ledger() {
        for state in STATES {
            assert_eq!(
                State::of_ledger(state.as_str()),
                (!matches!(state, State::Absent | State::Purged)).then_some(state)
            );
        }
    }
}
