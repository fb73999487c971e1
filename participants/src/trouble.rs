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
