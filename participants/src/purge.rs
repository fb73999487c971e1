//! Purge: a page of the ledger after the other, each in a local transaction of its own; see `suture_participants_core::marks`.
//!
//! ```text
//! what is in doubt; BEGIN; look at so many rows behind the last page; delete what may go, raise the marks; COMMIT
//! ```
//!
//! - What is in doubt is looked up before: who comes into doubt afterwards has no row that could go, and is found in ledger or
//!   list before the mark is asked.
//! - The order is that of the primary key, so that no index is needed and no page is longer than the others, however much there
//!   is or is not to delete.

use suture_contract::ids::Txid;
use suture_participants_core::doubts::InDoubt;
use suture_participants_core::marks::purge;

use crate::points::{Act, around};
use crate::reserve::Session;
use crate::resource::{Page, Purged, Unavailable};
use crate::trouble::Trouble;

/// Purges a page. After an error nobody knows what the session is in the middle of.
pub(crate) async fn purge_page<S: Session>(
    session: &mut S,
    page: &Page,
    in_doubt: &[InDoubt],
) -> Result<Purged, Unavailable> {
    let failed = |trouble: Trouble| trouble.unavailable("purging");
    let in_doubt = in_doubt.iter().map(|branch| branch.txid);
    let unfinished: Vec<Txid> = in_doubt.chain(page.unacknowledged.iter().copied()).collect();
    around(Act::Begin, session.begin()).await.map_err(failed)?;
    let looking = session.page(page.after.as_ref(), page.older_than, page.rows);
    let rows = around(Act::LookAtPage, looking).await.map_err(failed)?;
    let chosen = purge(&rows, &unfinished, |shard| page.shards.contains(&shard));
    if !chosen.txids.is_empty() {
        around(Act::Purge, session.purge(&chosen)).await.map_err(failed)?;
    }
    around(Act::CommitBatch, session.commit()).await.map_err(failed)?;
    let is_full = rows.len() >= page.rows;
    Ok(Purged { rows: chosen.txids.len(), next: rows.last().filter(|_| is_full).map(|row| row.txid) })
}
