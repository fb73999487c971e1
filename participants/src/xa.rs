//! Mode xa, in every database that can prepare a transaction and keep it.
//!
//! ```text
//! prepare   look; a branch: ledger row as `committed`, the steps; the database prepares it; seen in its list: yes
//! commit    look; finish what is in the list; look: its row is seen in a new snapshot: done
//! abort     look; finish what is in the list; insert the `aborted` row; look: seen: done
//! ```
//!
//! - The ledger row lies inside the branch, invisible until the branch is committed; that it becomes visible is the proof. So
//!   what is in doubt is told by the database's list and not by the ledger. The list is read first, the row second: a branch
//!   that is being committed is in one of them.
//! - **Neither tag nor OK is believed.** What counts is what is seen afterwards.
//! - While a branch is in doubt, its txid and its business key block a second insert. That is waited for briefly and is a
//!   retryable no then. A row for an abort waits likewise until the branch is in the list, where it can be rolled back.
//! - The mark of purged rows is consulted last of the three, and once more after the ledger row was inserted, in the same flight
//!   as the steps: an insert waits for a purge of its row, so what was purged since the first look shows there.
//! - A branch in the list whose row says `aborted` or `refused` is over: MariaDB's rollback is undone by a crash, the row is
//!   not. A sweep rolls it back again.
//! - A commit for what is neither in the list nor in the ledger is looked for over some seconds, with a trial insert
//!   that waits for whoever holds the row. After that it is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use suture_contract::ids::{RequestHash, Txid, code};
use suture_contract::messages::{Decision, Prepare};
use suture_participants_core::branch::{
    Answer, Event, KeyRow, Refusal, Row, State, Step, Violation, Wrong, answer_without_row, refusal_by_key, step,
    step_of_row,
};
use suture_participants_core::gid::Gid;
use suture_participants_core::marks::Marks;
use suture_participants_core::operations::{self, Operation, Values};
use tokio::time::sleep;

use crate::flights::{InFlight, in_order};
use crate::ledger::{LedgerRow, OnNo, StoredRow, bind_branch};
use crate::points::{Act, around};
use crate::reserve::{Failed, first_failed};
use crate::resource::{Decided, Effect, Fault, Leftover, Prepared, Unavailable};
use crate::server::Opened;
use crate::trouble::{Blame, Landed};

/// How long to rest before a look that may show something else.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// How often a branch is looked at anew when another session is at it or at its key.
pub(crate) const LOOKS: u32 = 40;

/// What a database does for mode xa: what differs between databases, and nothing else.
pub(crate) trait Branches: Sync {
    /// What it was opened with.
    fn opened(&self) -> &Opened;

    /// What the list and then the ledger say of a txid that is to be prepared.
    fn look(&self, txid: &Txid) -> impl Future<Output = Result<Known, Unavailable>> + Send;

    /// What they say of txids that are decided, on the connections for decisions.
    fn look_at_all(&self, txids: &[Txid]) -> impl Future<Output = Result<Known, Unavailable>> + Send;

    /// The ledger's rows of a business key.
    fn rows_of_key(
        &self,
        prepare: &Prepare,
    ) -> impl Future<Output = Result<Result<Vec<KeyRow>, Fault>, Unavailable>> + Send;

    /// Runs a branch and prepares it.
    fn run(
        &self,
        prepare: &Prepare,
        operation: &Operation,
        values: &Values,
    ) -> impl Future<Output = Result<Ran, Unavailable>> + Send;

    /// Inserts a `refused` row, in a local transaction of its own that looks at the mark last. `false`: another session has the
    /// txid, or its key, or it is purged; look again.
    fn insert_refused(&self, txid: &Txid, row: LedgerRow) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Commits or rolls back a prepared branch. One that is unknown by now shows in the look that follows.
    fn finish_one(&self, how: How, gid: &Gid) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Inserts `aborted` rows where their way is free, durably. `false`: a lock was waited for in vain, and none was inserted.
    fn insert_aborted(&self, rows: &[AbortedRow<'_>]) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Rests until a ledger row that nobody can see yet is finished, or for a moment.
    fn wait_for_holder(&self, decision: &Decision) -> impl Future<Output = Result<(), Unavailable>> + Send;
}

/// How a prepared branch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Commit,
    RollBack,
}

impl How {
    fn act(self) -> Act {
        match self {
            Self::Commit => Act::Commit,
            Self::RollBack => Act::RollBack,
        }
    }
}

/// How a branch's local transaction ended.
pub(crate) enum Ran {
    /// Prepared, and seen in the list.
    Seen,
    /// Rolled back; the branch is at fault, or the database busy.
    Refused(Refusal),
    /// Rolled back: another session has this txid or this business key.
    Met(Collision),
}

/// What another session has.
pub(crate) enum Collision {
    /// It is not finished: its row is invisible, and we waited.
    InProgress,
    /// It is finished: its row, its branch or its mark can be read now.
    Visible,
}

/// An `aborted` row. One that stands alone in its local transaction keeps nobody else back.
pub(crate) struct AbortedRow<'a> {
    /// Of which transaction.
    pub decision: &'a Decision,
    /// With its key and attempt.
    pub named: bool,
}

/// What was found of some transactions.
#[derive(Default)]
pub(crate) struct Known {
    /// How many branches of ours are prepared in all.
    pub in_doubt: usize,
    /// Those in the list.
    pub gids: BTreeMap<Txid, Gid>,
    /// Those in the ledger.
    pub rows: BTreeMap<Txid, StoredRow>,
    /// What is purged, looked at after the rows.
    pub marks: Marks,
}

impl Known {
    /// The row, or what stands for it while it is invisible. A gid tells only the first half of a hash.
    fn row(&self, txid: &Txid, hash: &RequestHash) -> Result<Option<Row>, Fault> {
        if let Some(row) = self.rows.get(txid) {
            return row.clone().read().map(Some);
        }
        let Some(gid) = self.gids.get(txid) else { return Ok(None) };
        if !gid.has_hash(hash) {
            let violation = Violation { state: State::InDoubt, event: Event::Prepare, wrong: Wrong::OtherHash };
            return Err(violation.into());
        }
        Ok(Some(Row { state: State::InDoubt, hash: *hash, refusal: None }))
    }

    fn step(&self, decision: &Decision, event: Event) -> Result<Step, Fault> {
        if let Some(row) = self.rows.get(&decision.txid) {
            let row = row.clone().read()?;
            if row.state == State::InDoubt {
                // No row of this mode says so.
                return Err(Fault::BrokenRow);
            }
            return Ok(step_of_row(Some(&row), false, event, &decision.hash)?);
        }
        match self.gids.get(&decision.txid) {
            Some(gid) => Ok(step(State::InDoubt, event, gid.has_hash(&decision.hash))?),
            None => Ok(step_of_row(None, self.marks.covers(&decision.txid), event, &decision.hash)?),
        }
    }
}

// ---- prepare ---------------------------------------------------------------------------------------------------------

/// Prepares one branch.
pub(crate) async fn prepare<B: Branches>(
    branches: &B,
    prepare: &Prepare,
    on_no: OnNo,
) -> Result<Prepared, Unavailable> {
    let mut in_progress = false;
    for _ in 0..LOOKS {
        let known = around(Act::Look, branches.look(&prepare.txid)).await?;
        let row = match known.row(&prepare.txid, &prepare.hash) {
            Ok(row) => row,
            Err(fault) => return Ok(Prepared::Fault(fault)),
        };
        let is_below_mark = known.marks.covers(&prepare.txid);
        match (step_of_row(row.as_ref(), is_below_mark, Event::Prepare, &prepare.hash), row) {
            (Ok(Step::Run), _) => {}
            (Ok(_), Some(row)) => return Ok(Prepared::Answer(row.answer())),
            (Ok(Step::AnswerNo), None) => return Ok(Prepared::Answer(answer_without_row())),
            (Ok(_), None) => return Ok(Prepared::Fault(Fault::BrokenRow)),
            (Err(violation), _) => return Ok(Prepared::Fault(violation.into())),
        }
        let refusal = match why_not(branches, prepare, in_progress).await? {
            Ok(Some(refusal)) => refusal,
            Ok(None) if known.in_doubt >= branches.opened().settings.cap => return Ok(Prepared::Later),
            Ok(None) => match run(branches, prepare).await? {
                Ran::Seen => return Ok(Prepared::Answer(Answer::Yes)),
                Ran::Refused(refusal) => refusal,
                Ran::Met(collision) => {
                    in_progress = matches!(collision, Collision::InProgress);
                    continue;
                }
            },
            Err(fault) => return Ok(Prepared::Fault(fault)),
        };
        if on_no == OnNo::Nothing {
            return Ok(Prepared::Answer(Answer::No(refusal)));
        }
        let row = LedgerRow::of(prepare, State::Refused, Some(&refusal));
        if around(Act::Refuse, branches.insert_refused(&prepare.txid, row)).await? {
            return Ok(Prepared::Answer(Answer::No(refusal)));
        }
        sleep(LOOK_AGAIN).await;
    }
    Err(Unavailable::new("preparing", "another session has the branch"))
}

/// Why a branch that is absent must not run by the rule of keys.
async fn why_not<B: Branches>(
    branches: &B,
    prepare: &Prepare,
    in_progress: bool,
) -> Result<Result<Option<Refusal>, Fault>, Unavailable> {
    let of_key = match around(Act::LookAtKey, branches.rows_of_key(prepare)).await? {
        Ok(rows) => rows,
        Err(fault) => return Ok(Err(fault)),
    };
    if let Some(refusal) = refusal_by_key(&of_key, prepare.attempt, &prepare.hash) {
        return Ok(Ok(Some(refusal)));
    }
    // The branch in doubt that holds the key keeps its row to itself.
    Ok(Ok(in_progress.then(|| Refusal::because(code::IN_PROGRESS))))
}

async fn run<B: Branches>(branches: &B, prepare: &Prepare) -> Result<Ran, Unavailable> {
    match bind_branch(&branches.opened().operations, prepare) {
        Ok((operation, values)) => branches.run(prepare, operation, &values).await,
        Err(refusal) => Ok(Ran::Refused(refusal)),
    }
}

/// How what goes before the PREPARE has ended: what opens the branch, its ledger row, what stands before the steps, the steps,
/// the look at the mark. `None`: all went as it should. The first that did not decides.
pub(crate) fn judge(
    prepare: &Prepare,
    steps: &[operations::Step],
    Landed { rows, trouble }: Landed,
) -> Result<Option<Ran>, Unavailable> {
    match (rows.len(), trouble) {
        (1, Some(trouble)) if trouble.blame == Blame::Unique => Ok(Some(Ran::Met(Collision::Visible))),
        (1, Some(trouble)) if trouble.blame == Blame::Busy => Ok(Some(Ran::Met(Collision::InProgress))),
        (0..=2, Some(trouble)) => Err(trouble.unavailable("opening a branch")),
        (_, trouble) => {
            let Some(Failed { step, code, cause }) = first_failed(steps, &rows[3..], trouble)? else {
                return Ok((rows.last() != Some(&0)).then_some(Ran::Met(Collision::Visible)));
            };
            tracing::debug!(txid = %prepare.txid, %code, place = step.place, cause, "refused");
            Ok(Some(Ran::Refused(Refusal::with(code))))
        }
    }
}

// ---- decide ----------------------------------------------------------------------------------------------------------

/// A decision under way: settled, or to be looked at again.
struct Undecided<'a> {
    index: usize,
    decision: &'a Decision,
    /// Finished by us: what is reported when it is seen.
    effect: Effect,
    /// Whether its `aborted` row is tried with key and attempt next.
    named: bool,
}

/// Commits branches, no txid twice.
pub(crate) async fn commit<B: Branches>(branches: &B, batch: &[Arc<Decision>]) -> Result<Vec<Decided>, Unavailable> {
    let mut settled: Vec<Option<Decided>> = batch.iter().map(|_| None).collect();
    let mut open = undecided(batch);
    let looks = branches.opened().settings.lost_after.as_millis() / LOOK_AGAIN.as_millis();
    let mut look = 0;
    while !open.is_empty() {
        let known = around(Act::LookForDecision, branches.look_at_all(&txids(&open))).await?;
        let mut to_commit = Vec::new();
        let mut rest = Vec::new();
        for mut item in open {
            match known.step(item.decision, Event::Commit) {
                Ok(Step::Nothing) => settled[item.index] = Some(Ok(item.effect)),
                Ok(Step::Commit) => {
                    // Done only when its row is seen: it goes around once more.
                    item.effect = Effect::Finished;
                    to_commit.push(Gid::new(item.decision.txid, &branches.opened().owner, &item.decision.hash));
                    rest.push(item);
                }
                Ok(Step::Run | Step::RollBack | Step::NoteAbort | Step::AnswerYes | Step::AnswerNo) => {
                    settled[item.index] = Some(Err(Fault::BrokenRow));
                }
                Err(Fault::Violation(Violation { state: State::Absent, .. })) if look < looks => rest.push(item),
                Err(fault) => settled[item.index] = Some(Err(fault)),
            }
        }
        open = rest;
        match open.first() {
            Some(first) if to_commit.is_empty() => {
                around(Act::WaitForHolder, branches.wait_for_holder(first.decision)).await?;
                look += 1;
            }
            _ => finish(branches, How::Commit, &to_commit).await?,
        }
    }
    Ok(all(settled))
}

/// Aborts branches, no txid twice.
pub(crate) async fn abort<B: Branches>(branches: &B, batch: &[Arc<Decision>]) -> Result<Vec<Decided>, Unavailable> {
    let mut settled: Vec<Option<Decided>> = batch.iter().map(|_| None).collect();
    let mut open = undecided(batch);
    while !open.is_empty() {
        let known = around(Act::LookForDecision, branches.look_at_all(&txids(&open))).await?;
        let mut to_roll_back = Vec::new();
        let mut rest = Vec::new();
        for mut item in open {
            match known.step(item.decision, Event::Abort) {
                Ok(Step::Nothing) => settled[item.index] = Some(Ok(item.effect)),
                Ok(Step::RollBack) => {
                    item.effect = Effect::Finished;
                    // What held key and attempt was this branch itself.
                    item.named = true;
                    to_roll_back.push(Gid::new(item.decision.txid, &branches.opened().owner, &item.decision.hash));
                    rest.push(item);
                }
                Ok(Step::NoteAbort) => {
                    if item.effect == Effect::Repeated {
                        // It may be the abort of a duplicate, and the original is still to come.
                        item.named = false;
                        item.effect = Effect::NotedAbort;
                    }
                    rest.push(item);
                }
                Ok(Step::Run | Step::Commit | Step::AnswerYes | Step::AnswerNo) => {
                    settled[item.index] = Some(Err(Fault::BrokenRow));
                }
                Err(fault) => settled[item.index] = Some(Err(fault)),
            }
        }
        open = rest;
        finish(branches, How::RollBack, &to_roll_back).await?;
        // The next round sees the rows, or a branch that was prepared meanwhile and blocks one of them.
        insert_aborted(branches, &mut open).await?;
    }
    Ok(all(settled))
}

// ---- sweep -----------------------------------------------------------------------------------------------------------

/// Our branches in the list that ought not to be there.
pub(crate) async fn leftovers<B: Branches>(branches: &B) -> Result<Vec<Leftover>, Unavailable> {
    let looking = around(Act::LookForLeftovers, branches.look_at_all(&[]));
    let listed: Vec<Txid> = looking.await?.gids.into_keys().collect();
    let found = left(branches, &listed).await?;
    Ok(found.into_iter().map(|(gid, state)| Leftover { txid: gid.txid, state }).collect())
}

/// Rolls back those of these that are over.
pub(crate) async fn sweep<B: Branches>(branches: &B, txids: &[Txid]) -> Result<usize, Unavailable> {
    let found = left(branches, txids).await?;
    let over = found.into_iter().filter(|(_, state)| *state != State::Purged);
    let gids: Vec<Gid> = over.map(|(gid, _)| gid).collect();
    finish(branches, How::RollBack, &gids).await?;
    Ok(gids.len())
}

/// What is in the list first, and then is over by its row, or has none and is purged.
async fn left<B: Branches>(branches: &B, txids: &[Txid]) -> Result<Vec<(Gid, State)>, Unavailable> {
    if txids.is_empty() {
        return Ok(Vec::new());
    }
    let looking = around(Act::LookForLeftovers, branches.look_at_all(txids));
    let Known { mut gids, mut rows, marks, .. } = looking.await?;
    let state_of = |gid: Gid| match rows.remove(&gid.txid).map(StoredRow::read) {
        Some(Ok(Row { state, hash, .. })) if gid.has_hash(&hash) => {
            matches!(state, State::Aborted | State::Refused).then_some((gid, state))
        }
        Some(_) => None,
        None => marks.covers(&gid.txid).then_some((gid, State::Purged)),
    };
    Ok(txids.iter().filter_map(|txid| gids.remove(txid)).filter_map(state_of).collect())
}

// ---- what both need ---------------------------------------------------------------------------------------------------

/// Over all connections for decisions.
async fn finish<B: Branches>(branches: &B, how: How, gids: &[Gid]) -> Result<(), Unavailable> {
    let lanes = branches.opened().settings.decision_connections.min(gids.len());
    let lane = |lane: usize| async move {
        for gid in gids.iter().skip(lane).step_by(lanes) {
            around(how.act(), branches.finish_one(how, gid)).await?;
        }
        Ok(())
    };
    let lanes: Vec<InFlight<'_, Result<(), Unavailable>>> =
        (0..lanes).map(|index| Box::pin(lane(index)) as InFlight<'_, _>).collect();
    in_order(lanes).await.into_iter().collect()
}

/// `aborted` rows, for all whose way is free. What is not there when it is looked for next was blocked: by its own prepare,
/// which shows in the list then, or by another transaction that has key and attempt, and then it goes without them. An
/// abort that overtook its prepare takes none.
async fn insert_aborted<B: Branches>(branches: &B, open: &mut [Undecided<'_>]) -> Result<(), Unavailable> {
    let rows: Vec<AbortedRow<'_>> =
        open.iter().map(|item| AbortedRow { decision: item.decision, named: item.named }).collect();
    if !rows.is_empty() && !around(Act::NoteAborts, branches.insert_aborted(&rows)).await? && rows.len() > 1 {
        for row in rows.chunks(1) {
            around(Act::NoteAborts, branches.insert_aborted(row)).await?;
        }
    }
    for item in open {
        item.named = !item.named && item.effect == Effect::Finished;
    }
    Ok(())
}

fn undecided(batch: &[Arc<Decision>]) -> Vec<Undecided<'_>> {
    batch
        .iter()
        .enumerate()
        .map(|(index, decision)| Undecided { index, decision, effect: Effect::Repeated, named: true })
        .collect()
}

fn txids(open: &[Undecided<'_>]) -> Vec<Txid> {
    open.iter().map(|item| item.decision.txid).collect()
}

fn all(settled: Vec<Option<Decided>>) -> Vec<Decided> {
    settled.into_iter().map(|settled| settled.unwrap_or(Err(Fault::BrokenRow))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use suture_contract::messages::Verdict;
    use suture_participants_core::gid::Owner;
    use suture_participants_core::operations::Mode;

    use super::*;
    use crate::config::ServerSettings;

    /// A database with one branch, whose OKs mean nothing: the first so many of them leave the branch where it is (M3).
    struct Liar {
        opened: Opened,
        lies: AtomicU32,
        listed: Mutex<Option<Gid>>,
        row: Mutex<Option<StoredRow>>,
    }

    impl Liar {
        fn with(lies: u32, branch: &Decision) -> Self {
            let moment = Duration::from_millis(25);
            let settings = ServerSettings {
                url: String::new(),
                connections: 1,
                decision_connections: 1,
                cap: 1,
                lock_timeout: moment,
                key_timeout: moment,
                statement_timeout: moment,
                idle_timeout: moment,
                lost_after: moment,
            };
            let owner = Owner { deployment: "suture".parse().unwrap(), participant: "bank".parse().unwrap() };
            let listed = Mutex::new(Some(Gid::new(branch.txid, &owner, &branch.hash)));
            let (operations, seeds, ledger, server) = Default::default();
            let opened = Opened { mode: Mode::Xa, settings, owner, operations, seeds, ledger, server };
            Self { opened, lies: AtomicU32::new(lies), listed, row: Mutex::default() }
        }

        fn state(&self) -> Option<String> {
            self.row.lock().unwrap().as_ref().map(|row| row.state.clone())
        }

        fn store(&self, decision: &Decision, state: State) {
            let (operation, code, duplicate_of) = Default::default();
            let (state, hash) = (state.to_string(), decision.hash.to_string());
            *self.row.lock().unwrap() = Some(StoredRow { state, hash, operation, code, duplicate_of });
        }
    }

    impl Branches for Liar {
        fn opened(&self) -> &Opened {
            &self.opened
        }

        async fn look(&self, _: &Txid) -> Result<Known, Unavailable> {
            unreachable!("nothing is prepared here")
        }

        async fn look_at_all(&self, txids: &[Txid]) -> Result<Known, Unavailable> {
            let gids: BTreeMap<Txid, Gid> =
                self.listed.lock().unwrap().iter().map(|gid| (gid.txid, gid.clone())).collect();
            let rows = self.row.lock().unwrap().iter().map(|row| (txids[0], row.clone())).collect();
            Ok(Known { in_doubt: gids.len(), gids, rows, ..Known::default() })
        }

        async fn rows_of_key(&self, _: &Prepare) -> Result<Result<Vec<KeyRow>, Fault>, Unavailable> {
            unreachable!("nothing is prepared here")
        }

        async fn run(&self, _: &Prepare, _: &Operation, _: &Values) -> Result<Ran, Unavailable> {
            unreachable!("nothing is prepared here")
        }

        async fn insert_refused(&self, _: &Txid, _: LedgerRow) -> Result<bool, Unavailable> {
            unreachable!("nothing is prepared here")
        }

        async fn finish_one(&self, how: How, gid: &Gid) -> Result<(), Unavailable> {
            if self.lies.load(Ordering::Relaxed) > 0 {
                self.lies.fetch_sub(1, Ordering::Relaxed);
                return Ok(());
            }
            let listed = self.listed.lock().unwrap().take().filter(|listed| listed.txid == gid.txid);
            if listed.is_some() && how == How::Commit {
                self.store(&decision(Verdict::Commit), State::Committed);
            }
            Ok(())
        }

        async fn insert_aborted(&self, rows: &[AbortedRow<'_>]) -> Result<bool, Unavailable> {
            // Its own branch has the txid for as long as it is prepared.
            let is_free = self.listed.lock().unwrap().is_none();
            if is_free {
                self.store(rows[0].decision, State::Aborted);
            }
            Ok(is_free)
        }

        async fn wait_for_holder(&self, _: &Decision) -> Result<(), Unavailable> {
            Ok(())
        }
    }

    fn decision(outcome: Verdict) -> Decision {
        Decision {
            txid: "k3f9q-3-1042".parse().unwrap(),
            outcome,
            participants: vec!["bank".parse().unwrap()],
            business_key: "surgery:1".parse().unwrap(),
            attempt: suture_contract::ids::Attempt::FIRST,
            hash: "k1:00000000000000000000000000000001".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn an_ok_is_not_believed_before_the_row_is_seen() {
        for lies in [0, 1, 3] {
            let (committed, aborted) = (Arc::new(decision(Verdict::Commit)), Arc::new(decision(Verdict::Abort)));
            let bank = Liar::with(lies, &committed);
            assert_eq!(commit(&bank, &[committed]).await, Ok(vec![Ok(Effect::Finished)]));
            assert_eq!(bank.state().as_deref(), Some("committed"), "after {lies} lies");

            let bank = Liar::with(lies, &aborted);
            assert_eq!(abort(&bank, &[aborted]).await, Ok(vec![Ok(Effect::Finished)]));
            assert_eq!(bank.state().as_deref(), Some("aborted"), "after {lies} lies");
        }
    }
}
