//! Work for the database that the service waits for beside everything else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use suture_contract::ids::Shard;
use suture_contract::messages::{Decision, Prepare, Verdict};
use tokio::time::sleep;

use crate::resource::{Decided, Effect, Prepared, Resource, Unavailable};

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

/// A prepare, and what came of it.
pub(crate) type Tried = (Job<Prepare>, Result<Prepared, Unavailable>);

/// Prepares a batch. What the database does not answer is to be asked for again. Not here, because the abort of one of them,
/// and prepares that have come since, must not wait for that.
pub(crate) async fn prepare<R: Resource>(resource: &R, batch: Vec<Job<Prepare>>) -> Vec<Tried> {
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

/// Carries out a batch in rounds: a txid that comes again waits for the round after, so that its order is the log's. What the
/// database does not carry out alone is to be asked for again, with all behind it of its txid. Not here, because the decisions
/// of others must not wait for that.
pub(crate) async fn decide<R: Resource>(resource: &R, batch: Vec<Job<Decision>>) -> Vec<(Job<Decision>, Decided)> {
    let mut decided = Vec::with_capacity(batch.len());
    let mut stuck = BTreeSet::new();
    let mut rest = batch;
    while !rest.is_empty() {
        let mut seen = BTreeSet::new();
        let (round, again): (Vec<_>, Vec<_>) = rest.into_iter().partition(|job| seen.insert(job.message.txid));
        rest = again;
        let (behind, round): (Vec<_>, Vec<_>) = round.into_iter().partition(|job| stuck.contains(&job.message.txid));
        decided.extend(behind.into_iter().map(|job| (job, Ok(Effect::Later))));
        let (commits, aborts): (Vec<_>, Vec<_>) =
            round.into_iter().partition(|job| job.message.outcome == Verdict::Commit);
        for (outcome, jobs) in [(Verdict::Commit, commits), (Verdict::Abort, aborts)] {
            let messages: Vec<Arc<Decision>> = jobs.iter().map(|job| Arc::clone(&job.message)).collect();
            if messages.is_empty() {
                continue;
            }
            let answers = until_answered(|| decide_or_divide(resource, outcome, &messages)).await;
            for (job, answer) in jobs.into_iter().zip(answers) {
                if answer == Ok(Effect::Later) {
                    stuck.insert(job.message.txid);
                }
                decided.push((job, answer));
            }
        }
    }
    decided
}

/// The same after a rest, for what was not carried out before.
pub(crate) async fn decide_again<R: Resource>(
    resource: &R,
    batch: Vec<Job<Decision>>,
) -> Vec<(Job<Decision>, Decided)> {
    sleep(RETRY_AFTER).await;
    decide(resource, batch).await
}

/// If the database does not answer it may be because of one of them. Whether it is the database shows something else that it
/// is asked.
async fn decide_or_divide<R: Resource>(
    resource: &R,
    outcome: Verdict,
    batch: &[Arc<Decision>],
) -> Result<Vec<Decided>, Unavailable> {
    let ask = async |batch: &[Arc<Decision>]| match outcome {
        Verdict::Commit => resource.commit(batch.to_vec()).await,
        Verdict::Abort => resource.abort(batch.to_vec()).await,
    };
    if let Ok(decided) = ask(batch).await {
        return Ok(decided);
    }
    let mut divided = Vec::with_capacity(batch.len());
    for decision in batch {
        match ask(std::slice::from_ref(decision)).await {
            Ok(mut alone) => divided.append(&mut alone),
            Err(Unavailable { doing, code }) => {
                resource.in_doubt().await?;
                tracing::warn!(txid = %decision.txid, doing, code, "a decision is not carried out; asking again");
                divided.push(Ok(Effect::Later));
            }
        }
    }
    Ok(divided)
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
