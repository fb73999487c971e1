//! What an operator's word makes of a branch whose decision could not be obeyed.
//!
//! | the ledger has; the decision is | `committed`: he has made the effect by hand | `abandoned`: the effect is not here |
//! |---|---|---|
//! | nothing, aborted, refused; commit (lost) | `committed`, with its key, which must be free | `abandoned` |
//! | committed; abort (contradiction) | no: the others have no effect, so undo it here | `abandoned`: he has undone it by hand |
//! | what agrees with the decision | no: there is nothing to settle | no |
//! | another hash | no: that row is about something else | no |
//!
//! An abandoned row keeps key and attempt, if they are free, so that a late repeat of the attempt is refused.

use suture_contract::ids::{Attempt, RequestHash, Txid};
use suture_contract::messages::Settled;

use crate::branch::{Event, KeyRow, Row, State, Violation, Wrong, step_of_row};

/// What an operator says about a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Which branch.
    pub txid: Txid,
    /// The attempt of its decision.
    pub attempt: Attempt,
    /// The hash of its decision.
    pub hash: RequestHash,
    /// The decision.
    pub decision: Event,
    /// How he has left it.
    pub settled: Settled,
}

/// The row that his word becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Committed or abandoned.
    pub state: State,
    /// With key and attempt.
    pub named: bool,
}

/// Why his word is not taken. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsettled {
    /// The decision can be obeyed by now.
    #[error(
        "the ledger says {0} by now, which agrees with the decision: nothing is to be settled; start the participant anew"
    )]
    Agrees(State),
    /// The branch is in doubt.
    #[error(
        "the branch is in doubt here: nothing is lost; start the participant anew, and it carries the decision out"
    )]
    InDoubt,
    /// The row is about something else.
    #[error("the ledger has another content under this txid: leave that row alone, and pass the record with `skip`")]
    OtherHash,
    /// An effect that must not be.
    #[error("it was decided to abort, so nobody else has the effect: undo it here by hand, then say --as abandoned")]
    MustGo,
    /// The key belongs to another transaction.
    #[error(
        "{0} has the same business key here, and it takes effect once: find out which of the two is the effect; if it is {0}, say --as abandoned"
    )]
    KeyTaken(Txid),
    /// Nobody can say so.
    #[error("an operator says committed or abandoned")]
    NoSuchWord,
    /// Somebody else has the row, or its key.
    #[error(
        "another transaction holds this row or its business key: wait until that one is decided, then say it again; if it is \
         decided behind this one, undo the effect here by hand, then say --as abandoned"
    )]
    Held,
}

/// The rule. `of_key`: the ledger's rows of the same business key.
pub fn settle(row: Option<&Row>, of_key: &[KeyRow], word: &Word) -> Result<Written, Unsettled> {
    match step_of_row(row, false, word.decision, &word.hash) {
        Ok(_) => {
            let state = row.map_or(State::Absent, |row| row.state);
            return Err(if state == State::InDoubt { Unsettled::InDoubt } else { Unsettled::Agrees(state) });
        }
        Err(Violation { wrong: Wrong::OtherHash, .. }) => return Err(Unsettled::OtherHash),
        Err(Violation { wrong: Wrong::Lost | Wrong::Contradiction, .. }) => {}
    }
    let others = of_key.iter().filter(|other| other.txid != word.txid);
    let same_attempt = others.clone().find(|other| other.attempt == word.attempt);
    match (word.settled, word.decision) {
        (Settled::Committed, Event::Abort) => Err(Unsettled::MustGo),
        (Settled::Committed, Event::Commit | Event::Prepare) => {
            match others.clone().find(|other| other.state.is_live()).or(same_attempt) {
                Some(other) => Err(Unsettled::KeyTaken(other.txid)),
                None => Ok(Written { state: State::Committed, named: true }),
            }
        }
        (Settled::Abandoned, _) => Ok(Written { state: State::Abandoned, named: same_attempt.is_none() }),
        (Settled::RolledBack, _) => Err(Unsettled::NoSuchWord),
    }
}

#[cfg(test)]
mod tests {
    use suture_contract::ids::code;

    use super::*;
    use crate::branch::Refusal;

    const HASH: &str = "k1:00000000000000000000000000000001";
    const OTHER: &str = "k1:00000000000000000000000000000002";

    fn word(decision: Event, settled: Settled) -> Word {
        let txid = "k3f9q-3-1042".parse().unwrap();
        Word { txid, attempt: Attempt::FIRST, hash: HASH.parse().unwrap(), decision, settled }
    }

    fn row(state: State, hash: &str) -> Option<Row> {
        let refusal = (state == State::Refused).then(|| Refusal::because(code::BUSY));
        (state != State::Absent).then(|| Row { state, hash: hash.parse().unwrap(), refusal })
    }

    fn of_key(txid: &str, state: State, attempt: u32) -> KeyRow {
        let attempt = Attempt::new(attempt).unwrap();
        KeyRow { txid: txid.parse().unwrap(), state, hash: HASH.parse().unwrap(), attempt }
    }

    #[test]
    fn only_what_cannot_be_obeyed_is_settled() {
        use Event::{Abort, Commit};
        use State::{Abandoned, Aborted, Absent, Committed, InDoubt, Refused};
        let said = |state, decision, settled| settle(row(state, HASH).as_ref(), &[], &word(decision, settled));
        for lost in [Absent, Aborted, Refused] {
            assert_eq!(said(lost, Commit, Settled::Committed), Ok(Written { state: Committed, named: true }));
            assert_eq!(said(lost, Commit, Settled::Abandoned), Ok(Written { state: Abandoned, named: true }));
            assert_eq!(said(lost, Commit, Settled::RolledBack), Err(Unsettled::NoSuchWord));
        }
        assert_eq!(said(Committed, Abort, Settled::Committed), Err(Unsettled::MustGo));
        assert_eq!(said(Committed, Abort, Settled::Abandoned), Ok(Written { state: Abandoned, named: true }));
        for settled in [Settled::Committed, Settled::Abandoned] {
            for (state, decision) in [(Committed, Commit), (Abandoned, Commit), (Abandoned, Abort), (Absent, Abort)] {
                assert_eq!(said(state, decision, settled), Err(Unsettled::Agrees(state)));
            }
            assert_eq!(said(InDoubt, Commit, settled), Err(Unsettled::InDoubt));
            assert_eq!(said(InDoubt, Abort, settled), Err(Unsettled::InDoubt));
            for state in [InDoubt, Committed, Aborted, Refused, Abandoned] {
                let met = settle(row(state, OTHER).as_ref(), &[], &word(Commit, settled));
                assert_eq!(met, Err(Unsettled::OtherHash));
            }
        }
    }

    #[test]
    fn a_business_key_still_takes_effect_once() {
        let said = |keys: &[KeyRow], settled| settle(None, keys, &word(Event::Commit, settled));
        let own = of_key("k3f9q-3-1042", State::Aborted, 1);
        let other = |state, attempt| of_key("k3f9q-3-7", state, attempt);
        assert!(said(std::slice::from_ref(&own), Settled::Committed).is_ok(), "its own row is replaced");
        for live in [other(State::Committed, 2), other(State::InDoubt, 2), other(State::Aborted, 1)] {
            let taken = Unsettled::KeyTaken(live.txid);
            assert_eq!(said(&[own.clone(), live], Settled::Committed), Err(taken));
        }
        assert!(said(&[other(State::Aborted, 2)], Settled::Committed).is_ok());
        let abandoned = |named| Ok(Written { state: State::Abandoned, named });
        assert_eq!(said(&[other(State::Committed, 2)], Settled::Abandoned), abandoned(true));
        assert_eq!(said(&[other(State::Aborted, 1)], Settled::Abandoned), abandoned(false));
    }
}
