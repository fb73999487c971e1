//! Work for the database that the service waits for beside everything else.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use suture_contract::ids::{Shard, Txid};
use suture_contract::messages::{Decision, Prepare, Verdict};
use tokio::time::sleep;

use crate::resource::{Decided, Prepared, Resource, Unavailable};

/// How long a question that the database did not answer rests.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// A message, and where it was read.
#[derive(Clone)]
pub(crate) struct Job<M> {
    pub(crate) shard: Shard,
    pub(crate) offset: u64,
    pub(crate) message: Arc<M>,
    pub(crate) traceparent: Option<String>,
}

/// Transactions whose abort waits for their prepare to end.
#[derive(Clone, Default)]
pub(crate) struct Overtaken(Arc<Mutex<HashSet<Txid>>>);

impl Overtaken {
    pub(crate) fn insert(&self, txid: Txid) {
        self.all().insert(txid);
    }

    pub(crate) fn remove(&self, txid: &Txid) {
        self.all().remove(txid);
    }

    fn any_of(&self, batch: &[Arc<Prepare>]) -> bool {
        let all = self.all();
        batch.iter().any(|prepare| all.contains(&prepare.txid))
    }

    fn all(&self) -> MutexGuard<'_, HashSet<Txid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Prepares a batch. What the database does not answer is asked for until it does, but not for longer than until the abort of
/// one of them is there: then all of them come back as [`Prepared::Later`], and the abort goes first.
pub(crate) async fn prepare<R: Resource>(
    resource: &R,
    batch: Vec<Job<Prepare>>,
    overtaken: &Overtaken,
) -> Vec<(Job<Prepare>, Prepared)> {
    let messages: Vec<Arc<Prepare>> = batch.iter().map(|job| Arc::clone(&job.message)).collect();
    let ask = || prepare_or_divide(resource, &messages);
    let give_up = || overtaken.any_of(&messages).then(|| vec![Prepared::Later; messages.len()]);
    let prepared = answered_unless(ask, give_up).await;
    batch.into_iter().zip(prepared).collect()
}

/// If the database does not answer it may be because of one of them: that one must not keep the others from their votes.
async fn prepare_or_divide<R: Resource>(resource: &R, batch: &[Arc<Prepare>]) -> Result<Vec<Prepared>, Unavailable> {
    let unavailable = match resource.prepare(batch.to_vec()).await {
        Ok(prepared) => return Ok(prepared),
        Err(unavailable) if batch.len() == 1 => return Err(unavailable),
        Err(unavailable) => unavailable,
    };
    let mut divided = Vec::with_capacity(batch.len());
    for prepare in batch {
        match resource.prepare(vec![Arc::clone(prepare)]).await {
            Ok(mut alone) => divided.append(&mut alone),
            // A second one: it is the database.
            Err(_) if divided.contains(&Prepared::Later) => return Err(unavailable),
            Err(_) => divided.push(Prepared::Later),
        }
    }
    Ok(divided)
}

/// Carries out a batch in rounds: a txid that comes again waits for the round after, so that its order is the log's.
pub(crate) async fn decide<R: Resource>(resource: &R, batch: Vec<Job<Decision>>) -> Vec<(Job<Decision>, Decided)> {
    let mut decided = Vec::with_capacity(batch.len());
    let mut rest = batch;
    while !rest.is_empty() {
        let mut seen = BTreeSet::new();
        let (round, again): (Vec<_>, Vec<_>) = rest.into_iter().partition(|job| seen.insert(job.message.txid));
        rest = again;
        let (commits, aborts): (Vec<_>, Vec<_>) =
            round.into_iter().partition(|job| job.message.outcome == Verdict::Commit);
        let messages = |jobs: &[Job<Decision>]| jobs.iter().map(|job| Arc::clone(&job.message)).collect::<Vec<_>>();
        let (to_commit, to_abort) = (messages(&commits), messages(&aborts));
        if !to_commit.is_empty() {
            let committed = until_answered(|| resource.commit(to_commit.clone())).await;
            decided.extend(commits.into_iter().zip(committed));
        }
        if !to_abort.is_empty() {
            let aborted = until_answered(|| resource.abort(to_abort.clone())).await;
            decided.extend(aborts.into_iter().zip(aborted));
        }
    }
    decided
}

/// Asks the database until it answers.
pub(crate) async fn until_answered<T, F: Future<Output = Result<T, Unavailable>>>(ask: impl FnMut() -> F) -> T {
    answered_unless(ask, || None).await
}

/// Asks the database until it answers, or until there is something else to say between two tries. Tells once that it does not
/// answer, and once that it does again.
async fn answered_unless<T, F: Future<Output = Result<T, Unavailable>>>(
    mut ask: impl FnMut() -> F,
    give_up: impl Fn() -> Option<T>,
) -> T {
    let mut is_away = false;
    loop {
        match ask().await {
            Ok(answer) => {
                if is_away {
                    tracing::info!("the database answers again");
                }
                return answer;
            }
            Err(Unavailable { doing, code }) => {
                if !is_away {
                    tracing::warn!(doing, code, "the database is unavailable; asking until it answers");
                }
                is_away = true;
                sleep(RETRY_AFTER).await;
            }
        }
        if let Some(instead) = give_up() {
            return instead;
        }
    }
}
