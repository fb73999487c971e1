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
//! - **Branches go many at once**, each behind a savepoint of its own, for a round trip costs more than a branch. After one that
//!   fails those behind it are done again: at once go as many then as went well before it, and twice as many each time
//!   that all go well.
//! - Branches run sorted by their business keys, so that two batches do not wait for each other's ledger rows in a circle; of
//!   one txid or one key only the first runs in a local transaction, and the next sees what it left.
//! - **After every error it is asked whether the local transaction is still there**: a deadlock or a full disk ends all of
//!   it, and what followed would be in autocommit. Then, and when it cannot be committed as a whole (a deferred
//!   constraint), the batch is done again branch by branch, so that the one at fault is refused and the others are not.
//! - The mark of purged rows is consulted after the row, and once more after the ledger row was inserted: an insert waits for
//!   a purge of its row, so what was purged since the first look shows there, and the branch is looked at again.
//! - A branch holds no lock between vote and decision, so all checks belong into `reserve`; `confirm` and `cancel` must be
//!   able to run whatever comes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use suture_contract::ids::{Code, Txid};
use suture_contract::messages::{Decision, Prepare, Verdict};
use suture_participants_core::branch::{
    Answer, Event, KeyRow, Refusal, Row, State, Step, answer_without_row, refusal_by_key, step_of_row,
};
use suture_participants_core::marks::{Candidate, Marks, Purge};
use suture_participants_core::operations::{self, Operation, Values, noted_operation, statement_failed};

use crate::ledger::{LedgerRow, OnNo, StoredKeyRow, StoredRow, bind_branch};
use crate::points::{Act, after, around, before};
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

    /// Sets a savepoint before each of these branches and runs them: the first, or as many as go in one round trip, up to the
    /// first statement that fails. What ran before can be rolled back no more, save all of it.
    fn branches(&mut self, works: &[Vec<Work<'_>>]) -> impl Future<Output = Vec<Landed>> + Send;

    /// Checks now what is checked at the end of a transaction, where the database can; only a trial asks for it.
    fn check_deferred(&mut self) -> impl Future<Output = Result<(), Trouble>> + Send {
        async { Ok(()) }
    }

    /// Rolls back what ran last, from the branch of this number on. `false`: the local transaction is gone, with all branches
    /// before that one.
    fn undo_from(&mut self, branch: usize) -> impl Future<Output = Result<bool, Trouble>> + Send;

    /// Runs one branch.
    fn branch(&mut self, work: &[Work<'_>]) -> impl Future<Output = Landed> + Send {
        async { self.branches(&[work.to_vec()]).await.into_iter().next().unwrap_or_else(Landed::nothing) }
    }
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
    on_no: OnNo,
) -> Result<Vec<Prepared>, Unavailable> {
    let mut prepared: Vec<Option<Prepared>> = batch.iter().map(|_| None).collect();
    let mut open: Vec<usize> = (0..batch.len()).collect();
    open.sort_by_key(|index| &batch[*index].business_key);
    let mut looks = 0;
    while !open.is_empty() {
        let (now, mut later) = without_repeats(batch, &open);
        let round: Vec<&Prepare> = now.iter().map(|index| &*batch[*index]).collect();
        let answers = prepare_round(session, operations, &round, on_no).await?;
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
    on_no: OnNo,
) -> Result<Vec<Option<Prepared>>, Unavailable> {
    match prepare_together(session, operations, round, on_no).await {
        Ok(prepared) => return Ok(prepared),
        Err(Broken::Unavailable(unavailable) | Broken::Blocked(unavailable)) => return Err(unavailable),
        Err(Broken::Batch(_)) => {}
    }
    let mut prepared = Vec::with_capacity(round.len());
    for prepare in round {
        prepared.push(prepare_alone(session, operations, prepare, on_no).await?);
    }
    Ok(prepared)
}

async fn prepare_together<S: Session>(
    session: &mut S,
    operations: &Operations,
    round: &[&Prepare],
    on_no: OnNo,
) -> Result<Vec<Option<Prepared>>, Broken> {
    let doing = "preparing";
    around(Act::Begin, session.begin()).await.map_err(|trouble| trouble.unavailable(doing))?;
    let known = look(session, round).await.map_err(|trouble| trouble.unavailable("reading the ledger"))?;
    let tasks =
        round.iter().map(|prepare| PrepareTask { prepare, course: course(operations, &known, prepare, on_no), on_no });
    match carry_out(session, tasks.collect()).await {
        Ok(prepared) => commit(session, doing).await.map(|()| prepared),
        Err(broken) => give_up(session, broken).await,
    }
}

/// A branch that breaks its own local transaction is refused in another one.
async fn prepare_alone<S: Session>(
    session: &mut S,
    operations: &Operations,
    prepare: &Prepare,
    on_no: OnNo,
) -> Result<Option<Prepared>, Unavailable> {
    let code = match prepare_together(session, operations, &[prepare], on_no).await {
        Ok(prepared) => return Ok(prepared.into_iter().flatten().next()),
        Err(Broken::Unavailable(unavailable) | Broken::Blocked(unavailable)) => return Err(unavailable),
        Err(Broken::Batch(code)) => code,
    };
    match refuse_alone(session, prepare, Refusal::with(code), on_no).await {
        Ok(refused) => Ok(refused),
        Err(Broken::Unavailable(unavailable) | Broken::Blocked(unavailable)) => Err(unavailable),
        Err(Broken::Batch(code)) => Err(Unavailable::new("refusing", code)),
    }
}

async fn refuse_alone<S: Session>(
    session: &mut S,
    prepare: &Prepare,
    refusal: Refusal,
    on_no: OnNo,
) -> Result<Option<Prepared>, Broken> {
    let doing = "refusing";
    around(Act::Begin, session.begin()).await.map_err(|trouble| trouble.unavailable(doing))?;
    let course = PrepareCourse::refuse(prepare, refusal, on_no);
    match carry_out(session, VecDeque::from([PrepareTask { prepare, course, on_no }])).await {
        Ok(mut refused) => commit(session, doing).await.map(|()| refused.pop().flatten()),
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

/// A prepare inside the round's local transaction.
struct PrepareTask<'a> {
    prepare: &'a Prepare,
    course: PrepareCourse<'a>,
    on_no: OnNo,
}

/// What becomes of it, as far as one knows.
enum PrepareCourse<'a> {
    /// It is answered, or another session has it.
    Done(Option<Prepared>),
    /// Its row says no.
    Refuse(LedgerRow, Refusal),
    /// It runs.
    Run(LedgerRow, &'a Operation, Values),
}

fn course<'a>(operations: &'a Operations, known: &Known, prepare: &Prepare, on_no: OnNo) -> PrepareCourse<'a> {
    let done = |prepared: Prepared| PrepareCourse::Done(Some(prepared));
    let fault = |fault: Fault| done(Prepared::Fault(fault));
    let row = match known.row(&prepare.txid) {
        Ok(row) => row,
        Err(broken) => return fault(broken),
    };
    let is_below_mark = known.marks.covers(&prepare.txid);
    match (step_of_row(row.as_ref(), is_below_mark, Event::Prepare, &prepare.hash), row) {
        (Ok(Step::Run), _) => {}
        (Ok(_), Some(row)) => return done(Prepared::Answer(row.answer())),
        (Ok(Step::AnswerNo), None) => return done(Prepared::Answer(answer_without_row())),
        (Ok(_), None) => return fault(Fault::BrokenRow),
        (Err(violation), _) => return fault(violation.into()),
    }
    let of_key = match known.rows_of_key(prepare.business_key.as_str()) {
        Ok(rows) => rows,
        Err(broken) => return fault(broken),
    };
    if let Some(refusal) = refusal_by_key(&of_key, prepare.attempt, &prepare.hash) {
        return PrepareCourse::refuse(prepare, refusal, on_no);
    }
    match bind_branch(operations, prepare) {
        Ok((operation, values)) => {
            let row = LedgerRow::of(prepare, State::InDoubt, None);
            PrepareCourse::Run(LedgerRow { operation: Some(operation.noted()), ..row }, operation, values)
        }
        Err(refusal) => PrepareCourse::refuse(prepare, refusal, on_no),
    }
}

impl PrepareCourse<'_> {
    fn refuse(prepare: &Prepare, refusal: Refusal, on_no: OnNo) -> Self {
        match on_no {
            OnNo::Row => Self::Refuse(LedgerRow::of(prepare, State::Refused, Some(&refusal)), refusal),
            OnNo::Nothing => Self::Done(Some(Prepared::Answer(Answer::No(refusal)))),
        }
    }
}

impl<'a> Task for PrepareTask<'a> {
    /// `None`: another session has it.
    type Done = Option<Prepared>;

    fn act(&self) -> Option<Act> {
        match self.course {
            PrepareCourse::Done(_) => None,
            PrepareCourse::Refuse(..) => Some(Act::RefuseBranch),
            PrepareCourse::Run(..) => Some(Act::Reserve),
        }
    }

    fn work(&self) -> Vec<Work<'_>> {
        match &self.course {
            PrepareCourse::Done(_) => Vec::new(),
            PrepareCourse::Refuse(row, _) => vec![Work::Insert(row), Work::LookAtMark(&self.prepare.txid)],
            PrepareCourse::Run(row, operation, values) => {
                let steps = operation.prepare.iter().map(|step| Work::Step(step, values));
                [Work::Insert(row)].into_iter().chain(steps).chain([Work::LookAtMark(&self.prepare.txid)]).collect()
            }
        }
    }

    fn land(self, Landed { rows, trouble }: Landed) -> Result<Ended<Self>, Broken> {
        let Self { prepare, course, on_no } = self;
        let instead = |course, code| Ok(Ended::Badly(Self { prepare, course, on_no }, code));
        let has_risen = trouble.is_none() && rows.last() != Some(&0);
        match course {
            PrepareCourse::Done(prepared) => Ok(Ended::Well(prepared)),
            PrepareCourse::Run(_, operation, _) if !rows.is_empty() => {
                match first_failed(&operation.prepare, &rows[1..], trouble)? {
                    None if has_risen => instead(PrepareCourse::Done(None), busy()),
                    None => Ok(Ended::Well(Some(Prepared::Answer(Answer::Yes)))),
                    Some(Failed { step, code, cause }) => {
                        tracing::debug!(txid = %prepare.txid, %code, place = step.place, cause, "refused");
                        instead(PrepareCourse::refuse(prepare, Refusal::with(code.clone()), on_no), code)
                    }
                }
            }
            PrepareCourse::Refuse(_, refusal) if trouble.is_none() && !has_risen => {
                Ok(Ended::Well(Some(Prepared::Answer(Answer::No(refusal)))))
            }
            // Its ledger row is another session's, or one that is purged meanwhile; or the database is at fault.
            PrepareCourse::Refuse(..) | PrepareCourse::Run(..) => match trouble {
                Some(trouble) if !trouble.is_met() => Err(trouble.unavailable("opening a branch").into()),
                Some(_) | None => instead(PrepareCourse::Done(None), busy()),
            },
        }
    }
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
        Err(Broken::Blocked(_)) if batch.len() == 1 => return Ok(vec![Ok(Effect::Later)]),
        Err(Broken::Batch(_) | Broken::Blocked(_)) => {}
    }
    let mut decided = Vec::with_capacity(batch.len());
    for decision in batch.chunks(1) {
        match decide_together(session, operations, decision).await {
            Ok(mut alone) => decided.append(&mut alone),
            Err(Broken::Unavailable(unavailable)) => return Err(unavailable),
            Err(Broken::Batch(code)) => {
                let place = "a confirm or cancel step".to_string();
                decided.push(Err(Fault::Finish { place, code: code.to_string() }));
            }
            Err(Broken::Blocked(_)) => decided.push(Ok(Effect::Later)),
        }
    }
    Ok(decided)
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
    let tasks = batch.iter().map(|decision| DecideTask {
        decision,
        course: course_of_decision(operations, rows.get(&decision.txid), &marks, decision),
    });
    match carry_out(session, tasks.collect()).await {
        Ok(decided) => commit(session, doing).await.map(|()| decided),
        Err(broken) => give_up(session, broken).await,
    }
}

/// A decision inside the batch's local transaction.
struct DecideTask<'a> {
    decision: &'a Decision,
    course: DecideCourse<'a>,
}

/// What becomes of it, as far as one knows.
enum DecideCourse<'a> {
    /// Nothing is to be done, or nothing can be.
    Done(Decided),
    /// The branch is confirmed or cancelled, and its row set.
    Finish { name: &'a str, steps: &'a [operations::Step], values: Values, state: State },
    /// The abort overtook its prepare.
    Note(LedgerRow),
}

fn course_of_decision<'a>(
    operations: &'a Operations,
    stored: Option<&StoredRow>,
    marks: &Marks,
    decision: &Decision,
) -> DecideCourse<'a> {
    let event = match decision.outcome {
        Verdict::Commit => Event::Commit,
        Verdict::Abort => Event::Abort,
    };
    let row = match stored.cloned().map(StoredRow::read).transpose() {
        Ok(row) => row,
        Err(fault) => return DecideCourse::Done(Err(fault)),
    };
    let finish = |state: State| {
        let noted = stored.and_then(|stored| stored.operation.as_deref()).unwrap_or_default();
        let operation = match noted_operation(operations, noted) {
            Ok(operation) => operation,
            Err(no_steps) => return DecideCourse::Done(Err(no_steps.into())),
        };
        let steps = if state == State::Committed { &operation.confirm } else { &operation.cancel };
        DecideCourse::Finish { name: &operation.name, steps, values: Operation::bind_txid(&decision.txid), state }
    };
    match step_of_row(row.as_ref(), marks.covers(&decision.txid), event, &decision.hash) {
        Ok(Step::Commit) => finish(State::Committed),
        Ok(Step::RollBack) => finish(State::Aborted),
        // The row takes neither key nor attempt: it may be that of a duplicate, and the original is still to come.
        Ok(Step::NoteAbort) => DecideCourse::Note(LedgerRow::unnamed(&decision.txid, State::Aborted, &decision.hash)),
        Ok(Step::Nothing) => DecideCourse::Done(Ok(Effect::Repeated)),
        Ok(Step::Run | Step::AnswerYes | Step::AnswerNo) => DecideCourse::Done(Err(Fault::BrokenRow)),
        Err(violation) => DecideCourse::Done(Err(violation.into())),
    }
}

impl Task for DecideTask<'_> {
    type Done = Decided;

    fn act(&self) -> Option<Act> {
        match self.course {
            DecideCourse::Done(_) => None,
            DecideCourse::Note(_) => Some(Act::NoteAbort),
            DecideCourse::Finish { .. } => Some(Act::Finish),
        }
    }

    fn work(&self) -> Vec<Work<'_>> {
        match &self.course {
            DecideCourse::Done(_) => Vec::new(),
            DecideCourse::Note(row) => vec![Work::Insert(row)],
            DecideCourse::Finish { steps, values, state, .. } => {
                let steps = steps.iter().map(|step| Work::Step(step, values));
                steps.chain([Work::Finish(&self.decision.txid, *state)]).collect()
            }
        }
    }

    fn land(self, Landed { rows, trouble }: Landed) -> Result<Ended<Self>, Broken> {
        let Self { decision, course } = self;
        match (course, trouble) {
            (DecideCourse::Done(decided), _) => Ok(Ended::Well(decided)),
            (DecideCourse::Note(_), None) => Ok(Ended::Well(Ok(Effect::NotedAbort))),
            // Its prepare, in another session: the next look shows it.
            (DecideCourse::Note(_), Some(trouble)) => Err(trouble.unavailable("noting an abort").into()),
            (DecideCourse::Finish { name, .. }, Some(trouble)) if trouble.blame == Blame::Busy => {
                // Whoever is in the way goes; a decision waits for that, and nobody else does.
                let (txid, code) = (decision.txid, &trouble.code);
                tracing::warn!(%txid, operation = name, code, "a decision waits for somebody else's lock");
                Err(Broken::Blocked(trouble.unavailable("running a confirm or cancel step")))
            }
            (DecideCourse::Finish { .. }, None) if rows.last() != Some(&1) => {
                Err(Unavailable::new("deciding", "the ledger row was not changed").into())
            }
            (DecideCourse::Finish { steps, .. }, trouble) => {
                match first_failed(steps, &rows[..rows.len().min(steps.len())], trouble)? {
                    None => Ok(Ended::Well(Ok(Effect::Finished))),
                    Some(Failed { step, code, cause }) => {
                        let fault = Fault::Finish { place: step.place.clone(), code: cause };
                        Ok(Ended::Badly(Self { decision, course: DecideCourse::Done(Err(fault)) }, code))
                    }
                }
            }
        }
    }
}

// ---- branches --------------------------------------------------------------------------------------------------------

/// What is to be done with one branch of a batch.
trait Task: Sized {
    /// What comes of it.
    type Done;

    /// What that is, if it is anything.
    fn act(&self) -> Option<Act>;

    /// Its statements.
    fn work(&self) -> Vec<Work<'_>>;

    /// What they came to.
    fn land(self, landed: Landed) -> Result<Ended<Self>, Broken>;
}

/// How a branch ended.
enum Ended<T: Task> {
    /// It stays.
    Well(T::Done),
    /// It is rolled back for this reason, and something else is done.
    Badly(T, Code),
}

/// As many at once as go well.
async fn carry_out<S: Session, T: Task>(session: &mut S, mut tasks: VecDeque<T>) -> Result<Vec<T::Done>, Broken> {
    let mut done = Vec::with_capacity(tasks.len());
    let most = tasks.len();
    let mut at_once = most;
    while !tasks.is_empty() {
        let works: Vec<Vec<Work<'_>>> = tasks.iter().take(at_once).map(T::work).collect();
        let acts: Vec<Act> = tasks.iter().take(at_once).filter_map(T::act).collect();
        acts.iter().copied().for_each(before);
        let landed = session.branches(&works).await;
        acts.into_iter().for_each(after);
        if landed.is_empty() {
            return Err(Unavailable::new("running a batch", "no answer").into());
        }
        at_once = most.min(at_once * 2);
        for (index, landed) in landed.into_iter().enumerate() {
            let Some(task) = tasks.pop_front() else { break };
            match task.land(landed)? {
                Ended::Well(one) => done.push(one),
                Ended::Badly(instead, code) => {
                    undo(session, index, &code).await?;
                    tasks.push_front(instead);
                    at_once = index.max(1);
                    break;
                }
            }
        }
    }
    Ok(done)
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
    let tasks = batch.iter().map(|prepare| RedoTask::of(operations, prepare));
    match carry_out(session, tasks.collect()).await {
        Ok(redone) => commit(session, doing).await.map(|()| redone),
        Err(broken) => give_up(session, broken).await,
    }
}

/// A commit that is done again inside a local transaction.
enum RedoTask<'a> {
    /// It has no effect.
    Not(Redone),
    /// It runs, with what its prepare and its confirm bind.
    Run { prepare: &'a Prepare, row: Box<LedgerRow>, operation: &'a Operation, values: Values, own: Values },
}

impl<'a> RedoTask<'a> {
    fn of(operations: &'a Operations, prepare: &'a Prepare) -> Self {
        match bind_branch(operations, prepare) {
            Ok((operation, values)) => Self::Run {
                prepare,
                row: Box::new(LedgerRow::of(prepare, State::Committed, None)),
                operation,
                values,
                own: Operation::bind_txid(&prepare.txid),
            },
            Err(refusal) => Self::Not(Redone::Failed(refusal.code)),
        }
    }
}

impl Task for RedoTask<'_> {
    type Done = Redone;

    fn act(&self) -> Option<Act> {
        match self {
            Self::Not(_) => None,
            Self::Run { .. } => Some(Act::Redo),
        }
    }

    fn work(&self) -> Vec<Work<'_>> {
        let Self::Run { prepare, row, operation, values, own } = self else { return Vec::new() };
        let steps = operation.prepare.iter().map(|step| Work::Step(step, values));
        let confirm = operation.confirm.iter().map(|step| Work::Step(step, own));
        [Work::Insert(row), Work::LookAtMark(&prepare.txid)].into_iter().chain(steps).chain(confirm).collect()
    }

    fn land(self, Landed { rows, trouble }: Landed) -> Result<Ended<Self>, Broken> {
        let (prepare, operation) = match self {
            Self::Not(redone) => return Ok(Ended::Well(redone)),
            Self::Run { prepare, operation, .. } => (prepare, operation),
        };
        let instead = |code: Code| Ok(Ended::Badly(Self::Not(Redone::Failed(code.clone())), code));
        let rows = match (rows.as_slice(), &trouble) {
            (_, Some(trouble)) if trouble.blame == Blame::Busy => {
                return Err(Broken::Blocked(trouble.unavailable("doing a commit again")));
            }
            // The row is there, or its key is another one's: a branch in doubt that is to be decided, or somebody at it.
            ([], Some(trouble)) if trouble.blame == Blame::Unique => return instead(busy()),
            ([] | [_], trouble) => {
                let trouble = trouble.clone().unwrap_or_else(Trouble::silence);
                return Err(trouble.unavailable("opening a branch").into());
            }
            ([_, 0, steps @ ..], _) => steps,
            ([_, _, ..], _) => return Ok(Ended::Badly(Self::Not(Redone::Known), busy())),
        };
        let (prepared, confirmed) = rows.split_at(rows.len().min(operation.prepare.len()));
        let has_prepared = prepared.len() == operation.prepare.len();
        let (of_prepare, of_confirm) = if has_prepared { (None, trouble) } else { (trouble, None) };
        let failed = match first_failed(&operation.prepare, prepared, of_prepare)? {
            None if has_prepared => first_failed(&operation.confirm, confirmed, of_confirm)?,
            failed => failed,
        };
        let Some(Failed { step, code, cause }) = failed else { return Ok(Ended::Well(Redone::Done)) };
        tracing::debug!(txid = %prepare.txid, %code, place = step.place, cause, "not done again");
        instead(code)
    }
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

/// Rolls back from this branch on. If the whole local transaction is gone, `code` is the branch's reason.
async fn undo<S: Session>(session: &mut S, branch: usize, code: &Code) -> Result<(), Broken> {
    match around(Act::UndoBranch, session.undo_from(branch)).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Broken::Batch(code.clone())),
        Err(trouble) => Err(trouble.unavailable("rolling a branch back").into()),
    }
}

async fn give_up<S: Session, T>(session: &mut S, broken: Broken) -> Result<T, Broken> {
    around(Act::RollBackBatch, session.roll_back()).await.map_err(|trouble| trouble.unavailable("rolling back"))?;
    Err(broken)
}
