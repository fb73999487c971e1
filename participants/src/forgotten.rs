//! A commit that was applied here and of which the ledger has no row any more: somebody has deleted it.
//!
//! No shard stops for that, for the participant is past the decision; an audit finds it. What a person says about it is taken
//! ([`crate::incidents::resolve_forgotten`]) if the row is really missing, and nothing but a person will write it.

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
    /// It is there.
    #[error("its row is there ({0}): nothing is to be settled")]
    Row(State),
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
        if let Some(row) = books.rows(&[txid]).await?.first() {
            return Ok(Err(Remembered::Row(row.state)));
        }
        // After the row: one that was purged meanwhile lies below its mark.
        let marks = books.marks().await?;
        if marks
            .iter()
            .any(|mark| (mark.letters, mark.shard) == (txid.log, txid.shard) && txid.offset < mark.next_offset)
        {
            return Ok(Err(Remembered::Purged));
        }
        Ok(Ok(Self { participant: participant.clone(), decision: decision.clone(), last: last.clone() }))
    }

    pub(crate) fn known(&self) -> (&Participant, &Decision, &Place) {
        (&self.participant, &self.decision, &self.last)
    }
}
