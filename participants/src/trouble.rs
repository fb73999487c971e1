//! A database's error, by who is to blame for it and by a code that holds no row values.

use std::time::Duration;

use suture_contract::ids::{Code, code};
use suture_participants_core::branch::Refusal;
use suture_participants_core::operations::{Step, statement_failed};
use tokio::time::timeout;

use crate::resource::Unavailable;

/// What the caller does next depends on this alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// A unique key has it already.
    Unique,
    /// A check constraint says no.
    Check,
    /// Others are in the way; the same may succeed later.
    Busy,
    /// The statement, or its values.
    Statement,
    /// Nobody knows what was done.
    Database,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Whose fault.
    pub blame: Blame,
    /// SQLSTATE or the database's number; never text, which may hold values of a row.
    pub code: String,
}

impl Trouble {
    /// No answer, where there should be one.
    pub fn silence() -> Self {
        Self { blame: Blame::Database, code: "no answer".to_string() }
    }

    /// To be asked again.
    pub fn unavailable(&self, doing: &'static str) -> Unavailable {
        Unavailable::new(doing, &self.code)
    }

    /// The reason that a step with this error gives its branch; `None`: nobody knows what was done.
    pub fn refuses(&self, step: &Step) -> Option<Code> {
        match self.blame {
            Blame::Unique => Some(step.on_unique()),
            Blame::Check => Some(step.on_check()),
            Blame::Busy => Some(busy()),
            Blame::Statement => Some(statement_failed()),
            Blame::Database => None,
        }
    }

    /// Whether another session has the row, or is about to.
    pub fn is_met(&self) -> bool {
        matches!(self.blame, Blame::Unique | Blame::Busy)
    }
}

/// How far a row of statements came.
pub(crate) struct Landed {
    /// How many rows each of them read or changed.
    pub rows: Vec<u64>,
    /// Why the one behind them failed.
    pub trouble: Option<Trouble>,
}

impl Landed {
    /// Nobody said anything.
    pub fn nothing() -> Self {
        Self { rows: Vec::new(), trouble: Some(Trouble::silence()) }
    }

    /// What each of these branches came to, up to the first that failed. A branch is one statement that sets its savepoint, and then
    /// so many of its own.
    pub fn by_branch(self, own_statements: impl IntoIterator<Item = usize>) -> Vec<Self> {
        let Self { rows, mut trouble } = self;
        let mut rows = rows.into_iter();
        let mut landed = Vec::new();
        for own in own_statements {
            let is_whole = rows.len() > own;
            let of_branch: Vec<u64> = rows.by_ref().take(1 + own).skip(1).collect();
            let of_branch =
                Self { rows: of_branch, trouble: (!is_whole).then(|| trouble.take().unwrap_or_else(Trouble::silence)) };
            landed.push(of_branch);
            if !is_whole {
                break;
            }
        }
        landed
    }
}

/// Gives up after some time: a connection may be cut without anybody noticing.
pub(crate) async fn within<T>(
    patience: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T, Unavailable>>,
) -> Result<T, Unavailable> {
    timeout(patience, work).await.unwrap_or_else(|_| Err(Unavailable::new(doing, "no answer in time")))
}

/// The code of what may succeed later.
pub(crate) fn busy() -> Code {
    Refusal::because(code::BUSY).code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Branches of two statements, none and one.
    const OWN: [usize; 3] = [2, 0, 1];

    fn landed(rows: &[u64], fails: bool) -> Vec<(Vec<u64>, bool)> {
        let trouble = fails.then(|| Trouble { blame: Blame::Busy, code: String::new() });
        let landed = Landed { rows: rows.to_vec(), trouble }.by_branch(OWN);
        landed.into_iter().map(|branch| (branch.rows, branch.trouble.is_some())).collect()
    }

    #[test]
    fn a_failure_belongs_to_the_branch_that_it_ends() {
        let all = [0, 1, 2, 0, 0, 3];
        let (first, second) = ((vec![1, 2], false), (Vec::new(), false));
        assert_eq!(landed(&all, false), [first.clone(), second.clone(), (vec![3], false)]);
        assert_eq!(landed(&all[..5], true), [first.clone(), second, (Vec::new(), true)], "its statement");
        assert_eq!(landed(&all[..3], true), [first, (Vec::new(), true)], "its savepoint");
        assert_eq!(landed(&all[..2], true), [(vec![1], true)]);
        assert_eq!(landed(&[], true), [(Vec::new(), true)]);
        assert_eq!(landed(&all[..2], false), [(vec![1], true)], "what is not answered has not gone well");
    }
}
