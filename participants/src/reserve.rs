//! Mode reserve, in every database that has local transactions with savepoints.
//!
//! ```text
//! prepare   BEGIN; look at the txids and keys; a branch: SAVEPOINT, ledger row `in_doubt`, the reserve steps;  COMMIT: yes
//! commit    BEGIN; look, locking;              a branch: SAVEPOINT, the confirm steps, `committed`;            COMMIT: done
//! abort     the same with the cancel steps and `aborted`
//! redo      BEGIN;                             a branch: SAVEPOINT, ledger row `committed`, the reserve and the confirm steps; COMMIT
//! ```
//!
//! - A batch is one local transaction. A branch that fails is rolled back to its savepoint and refused; the others stay.
//! - Branches run sorted by their business keys, so that two batches do not wait for each other's ledger rows in a circle; of
//!   one txid or one key only the first runs in a local transaction, and the next sees what it left.
//! - **After every error it is asked whether the local transaction is still there**: a deadlock or a full disk ends all of
//!   it, and what followed would be in autocommit. Then, and when it cannot be committed as a whole (a deferred
//!   constraint), the batch is done again branch by branch, so that the one at fault is refused and the others are not.
//! - The mark of purged rows is consulted after the row, and once more after the ledger row was inserted: an insert waits for
//!   a purge of its row, so what was purged since the first look shows there, and the branch is looked at again.
//! - A branch holds no lock between vote and decision, so all checks belong into `reserve`; `confirm` and `cancel` must be
//!   able to run whatever comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use suture_contract::ids::{Code, Txid};
use suture_contract::messages::{Decision, Prepare, Verdict};
use suture_participants_core::branch::{
    Answer, Event, KeyRow, Refusal, Row, State, Step, answer_without_row, refusal_by_key, step_of_row,
};
use suture_participants_core::marks::{Candidate, Marks, Purge};
use suture_participants_core::operations::{self, Operation, Values, statement_failed};

use crate::ledger::{LedgerRow, StoredKeyRow, StoredRow, bind_branch};
use crate::points::{Act, around};
use crate::resource::{Decided, Effect, Entry, Fault, Prepared, Redone, Unavailable};
use crate::trouble::{Blame, Landed, Trouble, busy};

/// How often a branch is looked at anew that another session has.
const LOOKS: u32 = 3;

/// One statement of a branch.
#[derive(Clone, Copy)]
pub(crate) enum Work<'a> {
    /// Its ledger row.
    Insert(&'a LedgerRow),
    /// A step of its operation.
    Step(&'a operations::Step, &'a Values),
    /// From `in_doubt` to `committed`, or to `aborted` without its live key.
    Finish(&'a Txid, State),
    /// Away with its ledger row, if it has one: another one comes.
    Remove(&'a Txid),
    /// What is noted about it.
    Note(&'a Entry),
    /// Reads one row if the mark has risen above it, and none if not.
    LookAtMark(&'a Txid),
}

/// A connection with local transactions: what differs between databases, and nothing else.
pub(crate) trait Session: Send {
    /// Opens a local transaction that sees what others commit meanwhile, and that changes nothing before its first write.
    fn begin(&mut self) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Commits it. A transaction that is gone is a [`Blame::Database`], never a success.
    fn commit(&mut self) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Ends whatever is open.
    fn roll_back(&mut self) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// The ledger's rows of these transactions; locked until the end, if they are to be changed.
    fn rows(
        &mut self,
        txids: &[Txid],
        lock: bool,
    ) -> impl Future<Output = Result<BTreeMap<Txid, StoredRow>, Trouble>> + Send;

    /// The ledger's rows of these business keys.
    fn rows_of_keys(&mut self, keys: &[&str]) -> impl Future<Output = Result<Vec<StoredKeyRow>, Trouble>> + Send;

    /// All marks of purged rows, without a lock.
    fn marks(&mut self) -> impl Future<Output = Result<Marks, Trouble>> + Send;

    /// The first rows behind a txid, in the database's own order; what has not changed for so long is old.
    fn page(
        &mut self,
        after: Option<&Txid>,
        older_than: Duration,
        rows: usize,
    ) -> impl Future<Output = Result<Vec<Candidate>, Trouble>> + Send;

    /// Deletes these rows, and raises these marks. A mark never goes back.
    fn purge(&mut self, purge: &Purge) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Sets a savepoint and runs these statements, in one round trip where the database can, up to the first that fails.
    fn branch(&mut self, work: &[Work<'_>]) -> impl Future<Output = Landed> + Send;

    /// Checks now what is checked at the end of a transaction, where the database can; only a trial asks for it.
    fn check_deferred(&mut self) -> impl Future<Output = Result<(), Trouble>> + Send {
        async { Ok(()) }
    }

    /// Rolls back to the last savepoint. `false`: the local transaction is gone, with all branches before this one.
    fn undo_branch(&mut self) -> impl Future<Output = Result<bool, Trouble>> + Send;
}

/// Why a local transaction came to nothing.
enum Broken {
    /// The database is at fault.
    Unavailable(Unavailable),
    /// One of the branches is at fault, and took the others with it.
    Batch(Code),
    /// One of the decisions must wait for somebody else's lock.
    Blocked(Unavailable),
}

impl From<Unavailable> for Broken {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

type Operations = BTreeMap<String, Operation>;

// ---- prepare ---------------------------------------------------------------------------------------------------------

/// Prepares a batch. After an error nobody knows what the session is in the middle of.
pub(crate) async fn prepare<S: Session>(
    session: &mut S,
    operations: &Operations,
    batch: &[Arc<Prepare>],
) -> Result<Vec<Prepared>, Unavailable> {
    let mut prepared: Vec<Option<Prepared>> = batch.iter().map(|_| None).collect();
    let mut open: Vec<usize> = (0..batch.len()).collect();
    open.sort_by_key(|index| &batch[*index].business_key);
    let mut looks = 0;
    while !open.is_empty() {
        let (now, mut later) = without_repeats(batch, &open);
        let round: Vec<&Prepare> = now.iter().map(|index| &*batch[*index]).collect();
        let answers = prepare_round(session, operations, &round).await?;
        let answered = answers.iter().any(Option::is_some);
        for (index, answer) in now.into_iter().zip(answers) {
            match answer {
                Some(answer) => prepared[index] = Some(answer),
                None => later.push(index),
            }
        }
        later.sort_by_key(|index| &batch[*index].business_key);
        open = later;
        looks += u32::from(!answered);
        if looks == LOOKS {
            return Err(Unavailable::new("preparing", "another session has the branch"));
        }
    }
    Ok(prepared.into_iter().flatten().collect())
}

/// The first of each txid and of each business key, and the others.
fn without_repeats(batch: &[Arc<Prepare>], open: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let (mut txids, mut keys) = (BTreeSet::new(), BTreeSet::new());
    open.iter().partition(|index| {
        let prepare = &batch[**index];
        // Both are noted, also of what waits: what comes after it must not overtake it.
        txids.insert(prepare.txid) & keys.insert(&prepare.business_key)
    })
}

/// `None` in the place of what another session has.
async fn prepare_round<S: Session>(
    session: &mut S,
    operations: &Operations,
    round: &[&Prepare],
) -> Result<Vec<Option<Prepared>>, Unavailable> {
    match prepare_together(session, operations, round).await {
        Ok(prepared) => return Ok(prepared),
        Err(Broken::Unavailable(unavailable) | Broken::Blocked(unavailable)) => return Err(unavailable),
        Err(Broken::Batch(_)) => {}
    }
    let mut prepared = Vec::with_capacity(round.len());
    for prepare in round {
        prepared.push(prepare_alone(session, operations, prepare).await?);
    }
    Ok(prepared)
}

async fn prepare_together<S: Session>(
    session: &mut S,
    operations: &Operations,
    round: &[&Prepare],
) -> Result<Vec<Option<Prepared>>, Broken> {
    let doing = "preparing";
    around(Act::Begin, session.begin()).await.map_err(|trouble| trouble.unavailable(doing))?;
    let known = look(session, round).await.map_err(|trouble| trouble.unavailable("reading the ledger"))?;
    let mut prepared = Vec::with_capacity(round.len());
    for prepare in round {
        match prepare_one(session, operations, &known, prepare).await {
            Ok(answer) => prepared.push(answer),
            Err(broken) => return give_up(session, broken).await,
        }
    }
    commit(session, doing).await?;
    Ok(prepared)
}

/// A branch that breaks its own local transaction is refused in another one.
async fn prepare_alone<S: Session>(
    session: &mut S,
    operations: &Operations,
    prepare: &Prepare,
) -> Result<Option<Prepared>, Unavailable> {
    let code = match prepare_together(session, operations, &[prepare]).await {
        Ok(prepared) => return Ok(prepared.into_iter().flatten().next()),
        Err(Broken::Unavailable(unavailable) | Broken::Blocked(unavailable)) => return Err(unavailable),
        Err(Broken::Batch(code)) => code,
    };
    match refuse_alone(session, prepare, Refusal::with(code)).await {
        Ok(refused) => Ok(refused),
        Err(Broken::Unavailable(unavailable) | Broken::Blocked(unavailable)) => Err(unavailable),
        Err(Broken::Batch(code)) => Err(Unavailable::new("refusing", code)),
    }
}

async fn refuse_alone<S: Session>(
    session: &mut S,
    prepare: &Prepare,
    refusal: Refusal,
) -> Result<Option<Prepared>, Broken> {
    let doing = "refusing";
    around(Act::Begin, session.begin()).await.map_err(|trouble| trouble.unavailable(doing))?;
    match refuse(session, prepare, refusal).await {
        Ok(refused) => commit(session, doing).await.map(|()| refused),
        Err(broken) => give_up(session, broken).await,
    }
}

/// What the ledger says of a round.
struct Known {
    rows: BTreeMap<Txid, StoredRow>,
    marks: Marks,
    keys: Vec<StoredKeyRow>,
}

async fn look<S: Session>(session: &mut S, round: &[&Prepare]) -> Result<Known, Trouble> {
    let txids: Vec<Txid> = round.iter().map(|prepare| prepare.txid).collect();
    let keys: Vec<&str> = round.iter().map(|prepare| prepare.business_key.as_str()).collect();
    let (rows, marks) = around(Act::LookAtBatch, rows_then_marks(session, &txids, false)).await?;
    Ok(Known { rows, marks, keys: around(Act::LookAtKeys, session.rows_of_keys(&keys)).await? })
}

/// The rows first; the marks only matter to what has none.
async fn rows_then_marks<S: Session>(
    session: &mut S,
    txids: &[Txid],
    lock: bool,
) -> Result<(BTreeMap<Txid, StoredRow>, Marks), Trouble> {
    let rows = session.rows(txids, lock).await?;
    let marks = if rows.len() < txids.len() { session.marks().await? } else { Marks::default() };
    Ok((rows, marks))
}

impl Known {
    fn row(&self, txid: &Txid) -> Result<Option<Row>, Fault> {
        self.rows.get(txid).cloned().map(StoredRow::read).transpose()
    }

    fn rows_of_key(&self, key: &str) -> Result<Vec<KeyRow>, Fault> {
        self.keys.iter().filter(|row| row.business_key == key).map(StoredKeyRow::read).collect()
    }
}

/// One branch inside the round's local transaction. `None`: another session has it.
async fn prepare_one<S: Session>(
    session: &mut S,
    operations: &Operations,
    known: &Known,
    prepare: &Prepare,
) -> Result<Option<Prepared>, Broken> {
    let fault = |fault: Fault| Ok(Some(Prepared::Fault(fault)));
    let row = match known.row(&prepare.txid) {
        Ok(row) => row,
        Err(broken) => return fault(broken),
    };
    let is_below_mark = known.marks.covers(&prepare.txid);
    match (step_of_row(row.as_ref(), is_below_mark, Event::Prepare, &prepare.hash), row) {
        (Ok(Step::Run), _) => {}
        (Ok(_), Some(row)) => return Ok(Some(Prepared::Answer(row.answer()))),
        (Ok(Step::AnswerNo), None) => return Ok(Some(Prepared::Answer(answer_without_row()))),
        (Ok(_), None) => return fault(Fault::BrokenRow),
        (Err(violation), _) => return fault(violation.into()),
    }
    let of_key = match known.rows_of_key(prepare.business_key.as_str()) {
        Ok(rows) => rows,
        Err(broken) => return fault(broken),
    };
    if let Some(refusal) = refusal_by_key(&of_key, prepare.attempt, &prepare.hash) {
        return refuse(session, prepare, refusal).await;
    }
    let (operation, values) = match bind_branch(operations, prepare) {
        Ok(bound) => bound,
        Err(refusal) => return refuse(session, prepare, refusal).await,
    };
    let row = LedgerRow::of(prepare, State::InDoubt, None);
    let mut work = vec![Work::Insert(&row)];
    work.extend(operation.prepare.iter().map(|step| Work::Step(step, &values)));
    work.push(Work::LookAtMark(&prepare.txid));
    let Landed { rows, trouble } = around(Act::Reserve, session.branch(&work)).await;
    if rows.is_empty() {
        return met(session, trouble).await;
    }
    let failed = match first_failed(&operation.prepare, &rows[1..], trouble) {
        Ok(None) if rows.last() != Some(&0) => return undo(session, &busy()).await.map(|()| None),
        Ok(None) => return Ok(Some(Prepared::Answer(Answer::Yes))),
        Ok(Some(failed)) => failed,
        Err(unavailable) => return Err(unavailable.into()),
    };
    undo(session, &failed.code).await?;
    let Failed { step, code, cause } = failed;
    tracing::debug!(txid = %prepare.txid, %code, place = step.place, cause, "refused");
    refuse(session, prepare, Refusal::with(code)).await
}

/// A step that did not do what it must.
pub(crate) struct Failed<'a> {
    /// Which.
    pub step: &'a operations::Step,
    /// The branch's reason.
    pub code: Code,
    /// The database's code, or the number of rows.
    pub cause: String,
}

/// The first step that failed: the reason of the branch.
pub(crate) fn first_failed<'a>(
    steps: &'a [operations::Step],
    rows: &[u64],
    trouble: Option<Trouble>,
) -> Result<Option<Failed<'a>>, Unavailable> {
    for (step, rows) in steps.iter().zip(rows) {
        if let Some(code) = step.refuses_rows(*rows) {
            return Ok(Some(Failed { step, code, cause: format!("{rows} rows") }));
        }
    }
    match (trouble, steps.get(rows.len())) {
        (None, _) => Ok(None),
        (Some(trouble), Some(step)) => match trouble.refuses(step) {
            Some(code) => Ok(Some(Failed { step, code, cause: trouble.code })),
            None => Err(trouble.unavailable("running a step")),
        },
        (Some(trouble), None) => Err(trouble.unavailable("running a branch")),
    }
}

/// Its own row, under a savepoint of its own.
async fn refuse<S: Session>(session: &mut S, prepare: &Prepare, refusal: Refusal) -> Result<Option<Prepared>, Broken> {
    let row = LedgerRow::of(prepare, State::Refused, Some(&refusal));
    let work = [Work::Insert(&row), Work::LookAtMark(&prepare.txid)];
    let Landed { rows, trouble } = around(Act::RefuseBranch, session.branch(&work)).await;
    match trouble {
        None if rows.last() != Some(&0) => undo(session, &busy()).await.map(|()| None),
        None => Ok(Some(Prepared::Answer(Answer::No(refusal)))),
        trouble => met(session, trouble).await,
    }
}

/// A ledger row could not be inserted: another session has it, or the database is at fault.
async fn met<S: Session>(session: &mut S, trouble: Option<Trouble>) -> Result<Option<Prepared>, Broken> {
    match trouble {
        Some(trouble) if trouble.is_met() => undo(session, &busy()).await.map(|()| None),
        Some(trouble) => Err(trouble.unavailable("opening a branch").into()),
        None => Err(Unavailable::new("opening a branch", "no answer").into()),
    }
}

// ---- decide ----------------------------------------------------------------------------------------------------------

/// Carries out decisions, no txid twice. After an error nobody knows what the session is in the middle of.
pub(crate) async fn decide<S: Session>(
    session: &mut S,
    operations: &Operations,
    batch: &[Arc<Decision>],
) -> Result<Vec<Decided>, Unavailable> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    match decide_together(session, operations, batch).await {
        Ok(decided) => return Ok(decided),
        Err(Broken::Unavailable(unavailable)) => return Err(unavailable),
        Err(Broken::Blocked(unavailable)) if batch.len() == 1 => return Err(unavailable),
        Err(Broken::Batch(_) | Broken::Blocked(_)) => {}
    }
    let mut blocked = None;
    let mut decided = Vec::with_capacity(batch.len());
    for decision in batch.chunks(1) {
        match decide_together(session, operations, decision).await {
            Ok(mut alone) => decided.append(&mut alone),
            Err(Broken::Unavailable(unavailable)) => return Err(unavailable),
            Err(Broken::Batch(code)) => {
                let place = "a confirm or cancel step".to_string();
                decided.push(Err(Fault::Finish { place, code: code.to_string() }));
            }
            Err(Broken::Blocked(unavailable)) => blocked = Some(unavailable),
        }
    }
    // What is done is done; it is only a repeat when all of it is asked again.
    blocked.map_or(Ok(decided), Err)
}

async fn decide_together<S: Session>(
    session: &mut S,
    operations: &Operations,
    batch: &[Arc<Decision>],
) -> Result<Vec<Decided>, Broken> {
    let doing = "deciding";
    around(Act::Begin, session.begin()).await.map_err(|trouble| trouble.unavailable(doing))?;
    let txids: Vec<Txid> = batch.iter().map(|decision| decision.txid).collect();
    let (rows, marks) = around(Act::LookLocking, rows_then_marks(session, &txids, true))
        .await
        .map_err(|trouble| trouble.unavailable("reading the ledger"))?;
    let mut decided = Vec::with_capacity(batch.len());
    for decision in batch {
        match decide_one(session, operations, rows.get(&decision.txid), &marks, decision).await {
            Ok(done) => decided.push(done),
            Err(broken) => return give_up(session, broken).await,
        }
    }
    commit(session, doing).await?;
    Ok(decided)
}

async fn decide_one<S: Session>(
    session: &mut S,
    operations: &Operations,
    stored: Option<&StoredRow>,
    marks: &Marks,
    decision: &Decision,
) -> Result<Decided, Broken> {
    let event = match decision.outcome {
        Verdict::Commit => Event::Commit,
        Verdict::Abort => Event::Abort,
    };
    let row = match stored.cloned().map(StoredRow::read).transpose() {
        Ok(row) => row,
        Err(fault) => return Ok(Err(fault)),
    };
    let operation = || stored.and_then(|stored| stored.operation.as_deref()).unwrap_or_default();
    match step_of_row(row.as_ref(), marks.covers(&decision.txid), event, &decision.hash) {
        Ok(Step::Commit) => finish(session, operations, operation(), &decision.txid, State::Committed).await,
        Ok(Step::RollBack) => finish(session, operations, operation(), &decision.txid, State::Aborted).await,
        Ok(Step::NoteAbort) => note_abort(session, decision).await,
        Ok(Step::Nothing) => Ok(Ok(Effect::Repeated)),
        Ok(Step::Run | Step::AnswerYes | Step::AnswerNo) => Ok(Err(Fault::BrokenRow)),
        Err(violation) => Ok(Err(violation.into())),
    }
}

/// Confirms or cancels, and sets the row.
async fn finish<S: Session>(
    session: &mut S,
    operations: &Operations,
    name: &str,
    txid: &Txid,
    state: State,
) -> Result<Decided, Broken> {
    let Some(operation) = operations.get(name) else {
        return Ok(Err(Fault::NoOperation { operation: name.to_string() }));
    };
    let steps = if state == State::Committed { &operation.confirm } else { &operation.cancel };
    let values = Operation::bind_txid(txid);
    let mut work: Vec<Work<'_>> = steps.iter().map(|step| Work::Step(step, &values)).collect();
    work.push(Work::Finish(txid, state));
    let Landed { rows, trouble } = around(Act::Finish, session.branch(&work)).await;
    if let Some(trouble) = trouble.as_ref().filter(|trouble| trouble.blame == Blame::Busy) {
        // Whoever is in the way goes; a decision waits for that, and nobody else does.
        tracing::warn!(%txid, operation = name, code = trouble.code, "a decision waits for somebody else's lock");
        return Err(Broken::Blocked(trouble.unavailable("running a confirm or cancel step")));
    }
    if trouble.is_none() && rows.last() != Some(&1) {
        return Err(Unavailable::new("deciding", "the ledger row was not changed").into());
    }
    match first_failed(steps, &rows[..rows.len().min(steps.len())], trouble) {
        Ok(None) => Ok(Ok(Effect::Finished)),
        Ok(Some(Failed { step, code, cause })) => {
            undo(session, &code).await?;
            Ok(Err(Fault::Finish { place: step.place.clone(), code: cause }))
        }
        Err(unavailable) => Err(unavailable.into()),
    }
}

/// The abort overtook its prepare. The row takes neither key nor attempt: it may be that of a duplicate, and the original is
/// still to come.
async fn note_abort<S: Session>(session: &mut S, decision: &Decision) -> Result<Decided, Broken> {
    let row = LedgerRow::unnamed(&decision.txid, State::Aborted, &decision.hash);
    match around(Act::NoteAbort, session.branch(&[Work::Insert(&row)])).await.trouble {
        None => Ok(Ok(Effect::NotedAbort)),
        // Its prepare, in another session: the next look shows it.
        Some(trouble) => Err(trouble.unavailable("noting an abort").into()),
    }
}

// ---- redo ------------------------------------------------------------------------------------------------------------

/// Runs and commits, in order, branches that are decided already: in either mode, for none of them is in doubt for a moment. See
/// [`Resource::redo`](crate::resource::Resource::redo).
pub(crate) async fn redo<S: Session>(
    session: &mut S,
    operations: &Operations,
    batch: &[Arc<Prepare>],
) -> Result<Option<Vec<Redone>>, Unavailable> {
    match redo_together(session, operations, batch).await {
        Ok(redone) => Ok(Some(redone)),
        Err(Broken::Unavailable(unavailable) | Broken::Blocked(unavailable)) => Err(unavailable),
        Err(Broken::Batch(code)) => Ok((batch.len() == 1).then(|| vec![Redone::Failed(code)])),
    }
}

async fn redo_together<S: Session>(
    session: &mut S,
    operations: &Operations,
    batch: &[Arc<Prepare>],
) -> Result<Vec<Redone>, Broken> {
    let doing = "doing commits again";
    around(Act::Begin, session.begin()).await.map_err(|trouble| trouble.unavailable(doing))?;
    let mut redone = Vec::with_capacity(batch.len());
    for prepare in batch {
        match redo_one(session, operations, prepare).await {
            Ok(one) => redone.push(one),
            Err(broken) => return give_up(session, broken).await,
        }
    }
    commit(session, doing).await?;
    Ok(redone)
}

async fn redo_one<S: Session>(session: &mut S, operations: &Operations, prepare: &Prepare) -> Result<Redone, Broken> {
    let (operation, values) = match bind_branch(operations, prepare) {
        Ok(bound) => bound,
        Err(refusal) => return Ok(Redone::Failed(refusal.code)),
    };
    let row = LedgerRow::of(prepare, State::Committed, None);
    let own_values = Operation::bind_txid(&prepare.txid);
    let mut work = vec![Work::Insert(&row)];
    work.extend(operation.prepare.iter().map(|step| Work::Step(step, &values)));
    work.extend(operation.confirm.iter().map(|step| Work::Step(step, &own_values)));
    let Landed { rows, trouble } = session.branch(&work).await;
    let Some((_, rows)) = rows.split_first() else {
        // The row is there, or its key is another one's: a branch in doubt that is to be decided, or somebody at it.
        return met(session, trouble).await.map(|_| Redone::Failed(busy()));
    };
    let (prepared, confirmed) = rows.split_at(rows.len().min(operation.prepare.len()));
    let has_confirmed = prepared.len() == operation.prepare.len();
    let (of_prepare, of_confirm) = if has_confirmed { (None, trouble) } else { (trouble, None) };
    let failed = match first_failed(&operation.prepare, prepared, of_prepare)? {
        None if has_confirmed => first_failed(&operation.confirm, confirmed, of_confirm)?,
        failed => failed,
    };
    let Some(Failed { step, code, cause }) = failed else { return Ok(Redone::Done) };
    undo(session, &code).await?;
    tracing::debug!(txid = %prepare.txid, %code, place = step.place, cause, "not done again");
    Ok(Redone::Failed(code))
}

// ---- local transactions ----------------------------------------------------------------------------------------------

async fn commit<S: Session>(session: &mut S, doing: &'static str) -> Result<(), Broken> {
    let Err(trouble) = around(Act::CommitBatch, session.commit()).await else { return Ok(()) };
    let broken = match trouble.blame {
        Blame::Database => trouble.unavailable(doing).into(),
        Blame::Busy => Broken::Batch(busy()),
        Blame::Unique | Blame::Check | Blame::Statement => Broken::Batch(statement_failed()),
    };
    give_up(session, broken).await
}

/// Rolls the last branch back. If the whole local transaction is gone, `code` is the branch's reason.
async fn undo<S: Session>(session: &mut S, code: &Code) -> Result<(), Broken> {
    match around(Act::UndoBranch, session.undo_branch()).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Broken::Batch(code.clone())),
        Err(trouble) => Err(trouble.unavailable("rolling a branch back").into()),
    }
}

async fn give_up<S: Session, T>(session: &mut S, broken: Broken) -> Result<T, Broken> {
    around(Act::RollBackBatch, session.roll_back()).await.map_err(|trouble| trouble.unavailable("rolling back"))?;
    Err(broken)
}
