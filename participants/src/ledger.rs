//! What all ledgers have in common, in whatever database they lie.
//!
//! | table | one row a | holds |
//! |---|---|---|
//! | `suture_ledger` | txid | state, hash, business key and attempt, the live key, operation, code, duplicate_of |
//! | `suture_positions` | topic, letters, shard | the offset below which all is done |
//! | `suture_meta` | name | `schema_version`, `ledger_id`, `deployment`, `participant`, `identity_key` |
//!
//! The live key is the business key while the branch is in doubt or committed, else NULL; it is unique, and so is
//! (business key, attempt). An opened ledger is checked against who opens it.

use std::collections::BTreeMap;

use suture_contract::ids::{Code, RequestHash, Txid};
use suture_participants_core::branch::{Refusal, Row, State};

use crate::resource::{Fault, OpenError, Opening};

/// The version of the ledger's tables.
pub const SCHEMA_VERSION: &str = "1";

/// The row of `suture_meta` that names the ledger.
pub const LEDGER_ID: &str = "ledger_id";

/// Compares the ledger's marks with who opens it. Answers the marks that are still to be written.
pub fn check_marks(
    found: &BTreeMap<String, String>,
    opening: &Opening,
) -> Result<Vec<(&'static str, String)>, OpenError> {
    let wanted = [
        ("schema_version", Some(SCHEMA_VERSION.to_string())),
        ("deployment", Some(opening.owner.deployment.to_string())),
        ("participant", Some(opening.owner.participant.to_string())),
        ("identity_key", opening.identity_fingerprint.clone()),
    ];
    let mut missing = Vec::new();
    for (what, wanted) in wanted {
        let Some(wanted) = wanted else { continue };
        match found.get(what) {
            None => missing.push((what, wanted)),
            Some(found) if *found == wanted => {}
            Some(found) => return Err(OpenError::Foreign { what, found: found.clone(), wanted }),
        }
    }
    Ok(missing)
}

/// A ledger row as a database holds it.
#[derive(Debug, Clone)]
pub struct StoredRow {
    /// Column `state`.
    pub state: String,
    /// Column `hash`.
    pub hash: String,
    /// Column `code`.
    pub code: Option<String>,
    /// Column `duplicate_of`.
    pub duplicate_of: Option<String>,
}

impl StoredRow {
    /// Checks what is read back as strictly as a message.
    pub fn read(self) -> Result<Row, Fault> {
        let state = State::of_ledger(&self.state).ok_or(Fault::BrokenRow)?;
        let hash: RequestHash = self.hash.parse().map_err(|_| Fault::BrokenRow)?;
        let refusal = match self.code {
            None => None,
            Some(code) => {
                let code: Code = code.parse().map_err(|_| Fault::BrokenRow)?;
                let duplicate_of = self.duplicate_of.map(|txid| txid.parse::<Txid>()).transpose();
                Some(Refusal { code, duplicate_of: duplicate_of.map_err(|_| Fault::BrokenRow)? })
            }
        };
        Ok(Row { state, hash, refusal })
    }
}
