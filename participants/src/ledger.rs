//! What all ledgers have in common, in whatever database they lie.
//!
//! | table | one row a | holds |
//! |---|---|---|
//! | `suture_ledger` | txid | state, hash, business key and attempt, the live key, operation (of a row in doubt with the version of its last steps), code, duplicate_of |
//! | `suture_positions` | topic, letters, shard | the offset below which all is done |
//! | `suture_marks` | letters, shard | the offset below which finished rows are purged |
//! | `suture_audit` | entry | what a person must know, or has settled: the record, and whether it was told |
//! | `suture_meta` | name | `schema_version`, `ledger_id`, `deployment`, `participant`, `identity_key`; `restoring`, while it is |
//!
//! The live key is the business key while the branch is in doubt or committed, else NULL; it is unique, and so is
//! (business key, attempt). An opened ledger is checked against who opens it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::value::RawValue;
use suture_contract::ids::{Attempt, Code, RequestHash, Txid};
use suture_contract::messages::Prepare;
use suture_participants_core::branch::{KeyRow, Refusal, Row, State};
use suture_participants_core::operations::{self, Mode, Operation, Seed, Values, noted_operation};

use crate::books::TextRow;
use crate::resource::{Fault, OpenError, Opening, Position, SeedError, Unavailable};

/// The version of the ledger's tables.
pub const SCHEMA_VERSION: u32 = 2;

/// The row of `suture_meta` that names the ledger.
pub const LEDGER_ID: &str = "ledger_id";

/// The row of `suture_meta` that is there while the ledger is brought back. It holds the name that the ledger had before.
pub const RESTORING: &str = "restoring";

/// The name of a ledger, as this process knows it.
#[derive(Debug, Default)]
pub(crate) struct LedgerName(Mutex<String>);

impl LedgerName {
    pub fn new(name: String) -> Self {
        Self(Mutex::new(name))
    }

    pub fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, name: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }
}

/// Whether the database went back: the ledger has another name, or less of a position than was seen there.
pub(crate) fn went_back(
    (known, found): (&str, Option<&str>),
    seen: &[Position],
    stored: impl IntoIterator<Item = Position>,
) -> bool {
    let place = |position: Position| ((position.topic, position.letters, position.shard), position.next_offset);
    let stored: BTreeMap<_, _> = stored.into_iter().map(place).collect();
    let is_less = |position: &Position| {
        let (place, offset) = place(position.clone());
        stored.get(&place).is_none_or(|stored| *stored < offset)
    };
    found != Some(known) || seen.iter().any(is_less)
}

/// Compares the ledger's marks with who opens it. Answers the marks that are still to be written.
pub fn check_marks(
    found: &BTreeMap<String, String>,
    opening: &Opening,
) -> Result<Vec<(&'static str, String)>, OpenError> {
    if let Some(found) = found.get("schema_version")
        && *found != SCHEMA_VERSION.to_string()
    {
        return Err(OpenError::Version { found: found.clone() });
    }
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
pub(crate) struct StoredRow {
    /// Column `state`.
    pub state: String,
    /// Column `hash`.
    pub hash: String,
    /// Column `operation`.
    pub operation: Option<String>,
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

/// What became of the branches of these rows.
pub(crate) fn states_of(
    rows: impl IntoIterator<Item = (Txid, StoredRow)>,
) -> Result<BTreeMap<Txid, State>, Unavailable> {
    let read = |(txid, row): (Txid, StoredRow)| Some((txid, State::of_ledger(&row.state)?));
    let unreadable = || Unavailable::new("looking at the ledger", "a state cannot be read");
    rows.into_iter().map(|row| read(row).ok_or_else(unreadable)).collect()
}

/// A row of a business key, as a database holds it.
#[derive(Debug, Clone)]
pub(crate) struct StoredKeyRow {
    /// Column `business_key`.
    pub business_key: String,
    /// Column `txid`.
    pub txid: String,
    /// Column `state`.
    pub state: String,
    /// Column `hash`.
    pub hash: String,
    /// Column `attempt`.
    pub attempt: i64,
}

impl StoredKeyRow {
    /// Checks what is read back as strictly as a message.
    pub fn read(&self) -> Result<KeyRow, Fault> {
        let read = || {
            Some(KeyRow {
                txid: self.txid.parse().ok()?,
                state: State::of_ledger(&self.state)?,
                hash: self.hash.parse().ok()?,
                attempt: u32::try_from(self.attempt).ok().and_then(Attempt::new)?,
            })
        };
        read().ok_or(Fault::BrokenRow)
    }
}

/// A row as it is inserted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LedgerRow {
    pub txid: String,
    pub state: &'static str,
    pub hash: String,
    pub business_key: Option<String>,
    pub attempt: Option<i64>,
    pub live_key: Option<String>,
    pub operation: Option<String>,
    pub code: Option<String>,
    pub duplicate_of: Option<String>,
}

impl LedgerRow {
    /// The row of a branch. One about an older branch carries neither key nor attempt: those are taken.
    pub fn of(prepare: &Prepare, state: State, refusal: Option<&Refusal>) -> Self {
        let named = !refusal.is_some_and(Refusal::is_repeat);
        let key = prepare.business_key.to_string();
        Self {
            business_key: named.then(|| key.clone()),
            attempt: named.then(|| i64::from(prepare.attempt.number())),
            live_key: state.is_live().then_some(key),
            // Of what was refused it may be anything, even text that a database does not store.
            operation: state.is_live().then(|| prepare.operation.clone()),
            code: refusal.map(|refusal| refusal.code.to_string()),
            duplicate_of: refusal.and_then(|refusal| refusal.duplicate_of).map(|txid| txid.to_string()),
            ..Self::unnamed(&prepare.txid, state, &prepare.hash)
        }
    }

    /// A row without key and attempt.
    pub fn unnamed(txid: &Txid, state: State, hash: &RequestHash) -> Self {
        Self {
            txid: txid.to_string(),
            state: state.as_str(),
            hash: hash.to_string(),
            business_key: None,
            attempt: None,
            live_key: None,
            operation: None,
            code: None,
            duplicate_of: None,
        }
    }
}

/// What a no leaves in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnNo {
    /// A `refused` row: it is voted.
    Row,
    /// Nothing: it may be tried again.
    Nothing,
}

/// The operation that a prepare names, and its values; or why there are none.
pub(crate) fn bind_branch<'a>(
    operations: &'a BTreeMap<String, Operation>,
    prepare: &Prepare,
) -> Result<(&'a Operation, Values), Refusal> {
    let Some(operation) = operations.get(&prepare.operation) else {
        tracing::warn!(txid = %prepare.txid, "prepare names an operation that is not configured");
        return Err(Refusal::with(operations::unreadable()));
    };
    match operation.bind(&prepare.txid, &prepare.payload) {
        Ok(values) => Ok((operation, values)),
        Err(unusable) => {
            let parameter = unusable.parameter.as_deref().unwrap_or("the whole payload");
            tracing::warn!(txid = %prepare.txid, code = %unusable.code, parameter, "payload cannot be used");
            Err(Refusal::with(unusable.code))
        }
    }
}

/// Refuses to open in one mode what is in doubt in the other: nobody would find it.
pub(crate) fn check_mode(mode: Mode, rows_in_doubt: i64, branches_in_doubt: i64) -> Result<(), OpenError> {
    let (value, other, count) = match mode {
        Mode::Xa => ("xa", "reserve", rows_in_doubt),
        Mode::Reserve => ("reserve", "xa", branches_in_doubt),
    };
    if count == 0 {
        return Ok(());
    }
    let remedy = format!("{count} branches are in doubt from mode {other}: go back to it until they are decided");
    Err(OpenError::Need { setting: "mode", value: value.to_string(), remedy })
}

/// What the rows in doubt note of their operations.
pub(crate) const OPERATIONS_IN_DOUBT: &str =
    "select distinct operation from suture_ledger where state = 'in_doubt' and operation is not null";

/// Refuses a configuration that cannot finish what is in doubt as it was begun. Who has no operations finishes nothing.
pub(crate) fn check_operations(operations: &BTreeMap<String, Operation>, noted: Vec<TextRow>) -> Result<(), OpenError> {
    if operations.is_empty() {
        return Ok(());
    }
    for noted in noted.into_iter().flatten().flatten() {
        noted_operation(operations, &noted)?;
    }
    Ok(())
}

/// The values of a seed's rows.
pub(crate) fn bind_seed(seed: &Seed, payloads: &[Box<RawValue>]) -> Result<Vec<Values>, SeedError> {
    let bound = payloads.iter().enumerate().map(|(index, payload)| {
        seed.bind(payload).map_err(|unusable| SeedError::Unusable {
            index,
            code: unusable.code.to_string(),
            parameter: unusable.parameter,
        })
    });
    bound.collect()
}

/// Every statement of the configuration.
pub(crate) fn all_steps<'a>(
    operations: &'a BTreeMap<String, Operation>,
    seeds: &'a BTreeMap<String, Seed>,
) -> Vec<&'a operations::Step> {
    let of_operations = operations.values().flat_map(|o| o.prepare.iter().chain(&o.confirm).chain(&o.cancel));
    of_operations.chain(seeds.values().flat_map(|seed| &seed.steps)).collect()
}
