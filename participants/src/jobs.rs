//! Work for the database that the service waits for beside everything else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use suture_contract::ids::Shard;
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

/// Prepares a batch. What the database does not answer is to be asked for again. Not here, because the abort of one of them,
/// and prepares that have come since, must not wait for that.
pub(crate) async fn prepare<R: Resource>(
    resource: &R,
    batch: Vec<Job<Prepare>>,
) -> Vec<(Job<Prepare>, Result<Prepared, Unavailable>)> {
    let messages: Vec<Arc<Prepare>> = batch.iter().map(|job| Arc::clone(&job.message)).collect();
    let prepared = match prepare_or_divide(resource, &messages).await {
        Ok(prepared) => prepared,
        Err(unavailable) => {
            sleep(RETRY_AFTER).await;
            vec![Err(unavailable); messages.len()]
        }
    };
    batch.into_iter().zip(prepared).collect()
}

/// If the database does not answer it may be because of one of them: that one must not keep the others from their votes.
async fn prepare_or_divide<R: Resource>(
    resource: &R,
    batch: &[Arc<Prepare>],
) -> Result<Vec<Result<Prepared, Unavailable>>, Unavailable> {
    let unavailable = match resource.prepare(batch.to_vec()).await {
        Ok(prepared) => return Ok(prepared.into_iter().map(Ok).collect()),
        Err(unavailable) if batch.len() == 1 => return Err(unavailable),
        Err(unavailable) => unavailable,
    };
    let mut divided = Vec::with_capacity(batch.len());
    for prepare in batch {
        match resource.prepare(vec![Arc::clone(prepare)]).await {
            Ok(alone) => divided.extend(alone.into_iter().map(Ok)),
            // A second one: it is the database.
            Err(_) if divided.iter().any(Result::is_err) => return Err(unavailable),
            Err(alone) => divided.push(Err(alone)),
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

/// Asks the database until it answers. Says once that it does not, and once that it does again.
pub(crate) async fn until_answered<T, F: Future<Output = Result<T, Unavailable>>>(mut ask: impl FnMut() -> F) -> T {
    let mut is_away = false;
    loop {
        match ask().await {
            Ok(answer) => {
                if is_away {
                    tell_answers();
                }
                return answer;
            }
            Err(unavailable) => {
                if !is_away {
                    tell_silence(&unavailable);
                }
                is_away = true;
                sleep(RETRY_AFTER).await;
            }
        }
    }
}

pub(crate) fn tell_silence(Unavailable { doing, code }: &Unavailable) {
    tracing::warn!(doing, code, "the database is unavailable; asking until it answers");
}

pub(crate) fn tell_answers() {
    tracing::info!("the database answers again");
}
