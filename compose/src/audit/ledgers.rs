//! What the ledgers hold besides: every row of each, page by page, against the requests that there are and against the other
//! ledgers.
//!
//! No second look is needed. A row whose request lies between the ends that its log had has a request there or never had one; and
//! a row that is committed, aborted or refused does not change any more.

use std::collections::{BTreeMap, BTreeSet};

use suture_contract::ids::{Participant, Shard, Txid};
use suture_coordinator_core::audit::{About, Finding, Wrong};
use suture_participants::books::BookRow;
use suture_participants_core::branch::State;

use super::look::{Account, Look, Requests};
use super::report::Report;
use super::unreadable;

/// Reads all ledgers, and counts their rows.
pub async fn compare(
    look: &mut Look,
    requests: &BTreeMap<Shard, Requests>,
    report: &mut Report,
) -> anyhow::Result<BTreeSet<Finding>> {
    let names: Vec<Participant> = look.all.keys().cloned().collect();
    let mut found = BTreeSet::new();
    for name in &names {
        let mut after = None;
        while let Some(audited) = look.all.get_mut(name) {
            let page = audited.books.page(after.as_ref()).await.map_err(|error| unreadable(audited, error))?;
            let Some(last) = page.last() else { break };
            after = Some(last.txid);
            report.count_rows(name, &page);
            let mut alone = Vec::new();
            for BookRow { txid, state, .. } in &page {
                let account = requests.get(&txid.shard).filter(|_| txid.log == look.logs.log);
                match account.map_or(Account::Older, |requests| requests.account(txid.offset)) {
                    Account::Read | Account::Later => {}
                    Account::None => {
                        let about = About::Transaction(*txid);
                        found.insert(Finding { wrong: Wrong::NoRequest, about, participant: Some(name.clone()) });
                    }
                    Account::Older => alone.extend((*state == State::Committed).then_some(*txid)),
                }
            }
            for txid in otherwise_elsewhere(look, name, &alone).await? {
                let about = About::Transaction(txid);
                found.insert(Finding { wrong: Wrong::LedgersDiffer, about, participant: Some(name.clone()) });
            }
        }
    }
    Ok(found)
}

/// Which of these are aborted or refused in another ledger.
async fn otherwise_elsewhere(look: &mut Look, name: &Participant, txids: &[Txid]) -> anyhow::Result<Vec<Txid>> {
    let mut otherwise = Vec::new();
    if txids.is_empty() {
        return Ok(otherwise);
    }
    for (_, audited) in look.all.iter_mut().filter(|(other, _)| *other != name) {
        let rows = audited.books.rows(txids).await.map_err(|error| unreadable(audited, error))?;
        let differs = |row: &&BookRow| matches!(row.state, State::Aborted | State::Refused);
        otherwise.extend(rows.iter().filter(differs).map(|row| row.txid));
    }
    Ok(otherwise)
}
