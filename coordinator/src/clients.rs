//! What the coordinator and ingest do alike with their Kafka clients.

use std::sync::Arc;
use std::time::Duration;

use suture_topics::blocking;
use suture_topics::membership::{CommitError, Committing, Membership};
use suture_topics::outbox::Outbox;
use suture_topics::reader::Reader;
use tokio::task::JoinError;
use tokio::time::Instant;

/// How long a shutdown waits for reports, and for leaving the group.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// The answer to the commit under way; never comes while there is none.
pub(crate) async fn answered(committing: &mut Option<Committing>) -> Result<(), CommitError> {
    match committing {
        Some(committing) => committing.await,
        None => std::future::pending().await,
    }
}

/// Waits for the last commit until `deadline`, leaves the group and ends the clients. Their reports were waited for and their
/// receivers are dropped: a reader that waits for room in its channel could not end.
///
/// # Errors
/// A thread that panicked.
pub(crate) async fn end(
    committing: Option<Committing>,
    deadline: Instant,
    membership: Arc<Membership>,
    reader: Reader,
    outbox: Outbox,
) -> Result<(), JoinError> {
    if let Some(committing) = committing {
        // A failed last commit costs the next member some reading.
        let _ = tokio::time::timeout_at(deadline, committing).await;
    }
    let ended = blocking::spawn(move || {
        // A look-up that is still under way holds the membership a little longer; it leaves when dropped.
        if let Some(membership) = Arc::into_inner(membership) {
            membership.leave(DRAIN);
        }
        reader.close(DRAIN);
        // Nothing is left in flight but what the deadline gave up.
        let _ = outbox.close(DRAIN);
    });
    ended.await
}
