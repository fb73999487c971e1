//! Fail points: places where a test ends the process, one before and one after every statement and every send.
//!
//! They exist only with the feature `failpoints`, which nothing else needs and no release build takes. Without it `before`,
//! `after` and `around` are nothing at all. What is done in one flight, or in a local transaction that is one act, has no point
//! in its middle: there the server sees a connection that ends, whatever ended it.
//!
//! [`TABLE`] names all of them once. A test walks through it, so a point that is reached by no test is found.

#[cfg(all(feature = "failpoints", not(debug_assertions)))]
compile_error!("fail points do not belong into a release build");

/// What the process may end before or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Look at the list and at the ledger, before a prepare.
    Look,
    /// Look at the rows of a business key.
    LookAtKey,
    /// XA START.
    Open,
    /// The ledger row and the steps of a branch.
    Run,
    /// PREPARE TRANSACTION; XA END and XA PREPARE.
    Prepare,
    /// Look for the branch in the list.
    See,
    /// Roll back what was not prepared.
    Undo,
    /// Insert a `refused` row.
    Refuse,
    /// Look at the list and at the ledger, for a decision.
    LookForDecision,
    /// COMMIT PREPARED; XA COMMIT.
    Commit,
    /// ROLLBACK PREPARED; XA ROLLBACK.
    RollBack,
    /// Insert `aborted` rows.
    NoteAborts,
    /// Wait for whoever holds a row.
    WaitForHolder,
    /// BEGIN.
    Begin,
    /// Look at the ledger, before a batch is reserved.
    LookAtBatch,
    /// Look at the rows of its business keys.
    LookAtKeys,
    /// The savepoint, the ledger row and the reserve steps of a branch.
    Reserve,
    /// Roll back to a savepoint.
    UndoBranch,
    /// Insert a `refused` row beside other branches.
    RefuseBranch,
    /// Look at the ledger and lock what is decided.
    LookLocking,
    /// The confirm or the cancel steps, and the ledger row.
    Finish,
    /// Insert an `aborted` row.
    NoteAbort,
    /// COMMIT.
    CommitBatch,
    /// ROLLBACK.
    RollBackBatch,
    /// Hand a vote to the producer.
    AppendVote,
    /// Take note that a vote is in the log.
    VoteIsThere,
    /// Store positions in the database.
    StorePositions,
    /// Commit the group's offsets.
    CommitOffsets,
    /// Look for branches that ought not to be in the list.
    LookForLeftovers,
    /// Look at the list, before a person's word becomes a branch's row.
    LookBeforeWord,
    /// Make it that, and note it.
    TakeWord,
    /// The ledger row, the steps and the confirm steps of a commit that is done again.
    Redo,
    /// Look for what is in doubt, before a page is purged.
    LookBeforePurge,
    /// Look at a page of the ledger.
    LookAtPage,
    /// Delete finished rows, and raise the marks past them.
    Purge,
    /// Hand an inquiry to the producer.
    AppendInquiry,
    /// Note what a person must know, or has said.
    Note,
    /// Hand an incident to the producer.
    AppendIncident,
    /// Take note that an incident is in the log.
    IncidentIsThere,
    /// Mark what was told.
    MarkTold,
    /// Rename the ledger, and mark it as being brought back.
    BeginRestore,
    /// Look at the ledger, before something is done again.
    LookForMissing,
    /// Take that mark away.
    EndRestore,
}

/// Where an act happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In mode xa.
    Xa,
    /// In mode xa, on MariaDB and MySQL only.
    XaOfMariadb,
    /// In mode reserve.
    Reserve,
    /// In a local transaction, in either mode.
    Local,
    /// In the service, in either mode.
    Service,
}

/// All acts, in the order of their declaration.
pub const TABLE: [(Act, &str, Place); 43] = [
    (Act::Look, "xa.look", Place::Xa),
    (Act::LookAtKey, "xa.look-at-key", Place::Xa),
    (Act::Open, "xa.open", Place::XaOfMariadb),
    (Act::Run, "xa.run", Place::Xa),
    (Act::Prepare, "xa.prepare", Place::Xa),
    (Act::See, "xa.see", Place::XaOfMariadb),
    (Act::Undo, "xa.undo", Place::Xa),
    (Act::Refuse, "xa.refuse", Place::Xa),
    (Act::LookForDecision, "xa.look-for-decision", Place::Xa),
    (Act::Commit, "xa.commit", Place::Xa),
    (Act::RollBack, "xa.roll-back", Place::Xa),
    (Act::NoteAborts, "xa.note-aborts", Place::Xa),
    (Act::WaitForHolder, "xa.wait-for-holder", Place::Xa),
    (Act::Begin, "local.begin", Place::Local),
    (Act::LookAtBatch, "reserve.look", Place::Reserve),
    (Act::LookAtKeys, "local.look-at-keys", Place::Local),
    (Act::Reserve, "reserve.reserve", Place::Reserve),
    (Act::UndoBranch, "local.undo", Place::Local),
    (Act::RefuseBranch, "reserve.refuse", Place::Reserve),
    (Act::LookLocking, "local.look-locking", Place::Local),
    (Act::Finish, "reserve.finish", Place::Reserve),
    (Act::NoteAbort, "reserve.note-abort", Place::Reserve),
    (Act::CommitBatch, "local.commit", Place::Local),
    (Act::RollBackBatch, "local.roll-back", Place::Local),
    (Act::AppendVote, "service.append-vote", Place::Service),
    (Act::VoteIsThere, "service.vote-is-there", Place::Service),
    (Act::StorePositions, "service.store-positions", Place::Service),
    (Act::CommitOffsets, "service.commit-offsets", Place::Service),
    (Act::LookForLeftovers, "xa.look-for-leftovers", Place::Xa),
    (Act::LookBeforeWord, "xa.look-before-word", Place::Xa),
    (Act::TakeWord, "local.take-word", Place::Local),
    (Act::Redo, "local.redo", Place::Local),
    (Act::LookBeforePurge, "local.look-before-purge", Place::Local),
    (Act::LookAtPage, "local.look-at-page", Place::Local),
    (Act::Purge, "local.purge", Place::Local),
    (Act::AppendInquiry, "service.append-inquiry", Place::Service),
    (Act::Note, "service.note", Place::Service),
    (Act::AppendIncident, "service.append-incident", Place::Service),
    (Act::IncidentIsThere, "service.incident-is-there", Place::Service),
    (Act::MarkTold, "service.mark-told", Place::Service),
    (Act::BeginRestore, "service.begin-restore", Place::Service),
    (Act::LookForMissing, "service.look-for-missing", Place::Service),
    (Act::EndRestore, "service.end-restore", Place::Service),
];

/// What every name begins with, so that a binary can be searched for it.
pub const MARK: &str = "failpoint";

/// The two points of an act, by the names that the library `fail` knows.
#[cfg(feature = "failpoints")]
pub fn names(act: Act) -> [String; 2] {
    ["before", "after"].map(|side| name(side, act))
}

#[cfg(feature = "failpoints")]
fn name(side: &str, act: Act) -> String {
    let (_, name, _) = TABLE[act as usize];
    format!("{MARK} {side} {name}")
}

/// An act is about to begin.
#[cfg(feature = "failpoints")]
pub(crate) fn before(act: Act) {
    fail::fail_point!(name("before", act).as_str());
}

/// An act has ended, in whatever way.
#[cfg(feature = "failpoints")]
pub(crate) fn after(act: Act) {
    fail::fail_point!(name("after", act).as_str());
}

/// The points around what is awaited.
#[cfg(feature = "failpoints")]
pub(crate) async fn around<T>(act: Act, work: impl Future<Output = T>) -> T {
    before(act);
    let done = work.await;
    after(act);
    done
}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn before(_: Act) {}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn after(_: Act) {}

/// What is awaited, and nothing else.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn around<W>(_: Act, work: W) -> W {
    work
}
