//! A commit that this participant is past and of which the ledger has no row, or one that says otherwise: somebody has deleted or
//! changed it, or has moved the position.
//!
//! No shard stops for that; an audit finds it. What a person says about it is taken ([`crate::incidents::resolve_forgotten`]) if the
//! row is really missing or says aborted or refused, and nothing but a person will write it.

use suture_contract::ids::Participant;
use suture_contract::messages::{Decision, Verdict};
use suture_participants_core::branch::State;

use crate::books::Books;
use crate::incidents::Place;
use crate::resource::Unavailable;

/// Such a commit. Only a look at the books makes one.
#[derive(Debug, Clone)]
pub struct Forgotten {
    participant: Participant,
    decision: Decision,
    last: Place,
}

/// Why it is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Remembered {
    /// Its decision has no effect here.
    #[error("its decision is abort, which has no effect here")]
    Abort,
    /// It is about to be done again.
    #[error(
        "the database went back and is being brought back: see that its participant runs, and look again when it is through"
    )]
    Restoring,
    /// The participant will meet it.
    #[error(
        "this participant has not got to its decision yet ({0}): see that it runs; it carries the decision out, or stops there \
         and lists it"
    )]
    NotMet(Place),
    /// It was finished so long ago.
    #[error("its row was purged by age: it was finished long before")]
    Purged,
    /// It is there, and agrees.
    #[error("its row is there ({0}): nothing is to be settled")]
    Row(State),
    /// It is not finished.
    #[error(
        "its branch is in doubt here, left over: see that its participant runs, and look again; if it stays, finish it as \
         `suture tx show` says"
    )]
    LeftOver,
}

impl Forgotten {
    /// Looks whether a decision about this participant is of that kind. `last`: its last copy in the log.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn look(
        books: &mut Books,
        participant: &Participant,
        decision: &Decision,
        last: &Place,
    ) -> Result<Result<Self, Remembered>, Unavailable> {
        let txid = decision.txid;
        if decision.outcome == Verdict::Abort {
            return Ok(Err(Remembered::Abort));
        }
        if books.is_restoring().await? {
            return Ok(Err(Remembered::Restoring));
        }
        let is_past = books.positions().await?.into_iter().any(|position| {
            (position.topic.as_str(), position.letters, position.shard)
                == (last.topic.as_str(), last.letters, last.shard)
                && position.next_offset > last.offset
        });
        if !is_past {
            return Ok(Err(Remembered::NotMet(last.clone())));
        }
        let row = books.states(&[txid]).await?.remove(&txid);
        // After the row: one that was purged meanwhile lies below its mark.
        let without_row = if books.purged_below().await?.covers(&txid) { State::Purged } else { State::Absent };
        Ok(match row.unwrap_or(without_row) {
            state @ (State::Committed | State::Abandoned) => Err(Remembered::Row(state)),
            State::InDoubt => Err(Remembered::LeftOver),
            State::Purged => Err(Remembered::Purged),
            State::Absent | State::Aborted | State::Refused => {
                Ok(Self { participant: participant.clone(), decision: decision.clone(), last: last.clone() })
            }
        })
    }

    pub(crate) fn known(&self) -> (&Participant, &Decision, &Place) {
        (&self.participant, &self.decision, &self.last)
    }
}
