//! A person's word becomes a branch's row: in one local transaction with what is noted about it, whatever the database.

use suture_contract::ids::BusinessKey;
use suture_participants_core::branch::{KeyRow, Row};
use suture_participants_core::settle::{Unsettled, Word, Written, settle};

use crate::ledger::{LedgerRow, StoredKeyRow, StoredRow};
use crate::points::{Act, around};
use crate::reserve::{Session, Work};
use crate::resource::{Fault, Resolution, Unavailable};
use crate::trouble::{Blame, Trouble};

/// Takes his word, or says why not. After an error nobody knows what the session is in the middle of.
pub(crate) async fn resolve<S: Session>(
    session: &mut S,
    resolution: &Resolution,
) -> Result<Result<(), Unsettled>, Unavailable> {
    let Resolution { word, entry, .. } = resolution;
    around(Act::Begin, session.begin()).await.map_err(at_fault)?;
    let row = match ledger_row(session, resolution).await? {
        Ok(row) => row,
        Err(unsettled) => {
            around(Act::RollBackBatch, session.roll_back()).await.map_err(at_fault)?;
            return Ok(Err(unsettled));
        }
    };
    let work = [Work::Remove(&word.txid), Work::Insert(&row), Work::Note(entry)];
    match around(Act::TakeWord, session.branch(&work)).await.trouble {
        None => around(Act::CommitBatch, session.commit()).await.map_err(at_fault).map(Ok),
        Some(trouble) if trouble.is_met() => {
            around(Act::RollBackBatch, session.roll_back()).await.map_err(at_fault)?;
            Ok(Err(Unsettled::Held))
        }
        Some(trouble) => Err(at_fault(trouble)),
    }
}

async fn ledger_row<S: Session>(
    session: &mut S,
    Resolution { word, business_key, without_key, .. }: &Resolution,
) -> Result<Result<LedgerRow, Unsettled>, Unavailable> {
    let stored = match around(Act::LookLocking, session.rows(&[word.txid], true)).await {
        Ok(mut rows) => rows.remove(&word.txid),
        Err(trouble) if trouble.blame == Blame::Busy => return Ok(Err(Unsettled::Held)),
        Err(trouble) => return Err(at_fault(trouble)),
    };
    let keys = [business_key.as_str()];
    let of_key = around(Act::LookAtKeys, session.rows_of_keys(&keys)).await.map_err(at_fault)?;
    let (row, of_key) =
        read(stored, &of_key).map_err(|_| Unavailable::new("resolving", "a ledger row cannot be read"))?;
    let written = settle(row.as_ref(), &of_key, word).map(|written| {
        let must_have_key = written.state.is_live();
        Written { named: written.named && (must_have_key || !without_key), ..written }
    });
    Ok(written.map(|written| LedgerRow::resolved(word, business_key, written)))
}

fn read(row: Option<StoredRow>, of_key: &[StoredKeyRow]) -> Result<(Option<Row>, Vec<KeyRow>), Fault> {
    let row = row.map(StoredRow::read).transpose()?;
    Ok((row, of_key.iter().map(StoredKeyRow::read).collect::<Result<_, _>>()?))
}

impl LedgerRow {
    fn resolved(word: &Word, business_key: &BusinessKey, Written { state, named }: Written) -> Self {
        let key = business_key.to_string();
        Self {
            business_key: named.then(|| key.clone()),
            attempt: named.then(|| i64::from(word.attempt.number())),
            live_key: state.is_live().then_some(key),
            ..Self::unnamed(&word.txid, state, &word.hash)
        }
    }
}

fn at_fault(trouble: Trouble) -> Unavailable {
    trouble.unavailable("resolving")
}
