//! Rights that a role lacks. The database itself is asked, by EXPLAIN: it checks the rights of the statement that it explains, and runs
//! nothing of it. So a grant to a group counts, or of some columns, or through a view, as it counts when the statement runs. MariaDB and
//! MySQL explain a view only to who has SHOW VIEW on it too; for all others it must do that the statement can be prepared.
//!
//! Each step of a configuration is explained where it is compared with the tables (`check_statement` of each database), at every
//! start, in `suture participant check` and in `suture doctor`; so are statements that change the ledger.
//!
//! Left out: what a statement reaches only when it runs, a sequence, or the tables of a trigger or a function. `suture participant check`
//! runs the steps.

use std::collections::BTreeSet;

use suture_participants_core::operations::Step;
use suture_participants_core::touched::{Right, rights};

use crate::install::{LEDGER, list};
use crate::resource::OpenError;

/// Whether a database's code says that the role may not do this: PostgreSQL's, then MariaDB's about a table, a column, anything at all and
/// a routine.
pub(crate) fn is_denied(code: &str) -> bool {
    ["42501", "1142", "1143", "1227", "1370"].contains(&code)
}

/// Statements that need all rights of a participant on the ledger's tables, as far as these are there.
pub(crate) fn of_ledger(there: &BTreeSet<String>) -> Vec<Step> {
    let here = LEDGER.iter().filter(|(table, ..)| there.contains(*table));
    here.flat_map(|(table, column, rights)| {
        rights.iter().map(move |right| match right {
            Right::Select => format!("select {column} from {table} where 1 = 0"),
            Right::Insert => format!("insert into {table} select * from {table} where 1 = 0"),
            Right::Update => format!("update {table} set {column} = {column} where 1 = 0"),
            Right::Delete => format!("delete from {table} where 1 = 0"),
        })
    })
    .map(|sql| Step::own("the ledger", sql))
    .collect()
}

/// Somebody holds a lock on what this step names.
pub(crate) fn not_checked(step: &Step, code: &str) {
    tracing::warn!(place = step.place, code, "locked, not checked: whether it fits the tables shows when it runs");
}

/// The role may not run this step.
pub(crate) fn lacks(step: &Step, code: String, said: String) -> OpenError {
    let needed = rights(&step.sql).into_iter().map(|(table, needed)| {
        let needed: Vec<_> = needed.into_iter().collect();
        format!("{} on {table}", list(&needed))
    });
    let needed = needed.collect::<Vec<_>>().join("; ");
    OpenError::Lacks { place: step.place.clone(), needed, code, said }
}
