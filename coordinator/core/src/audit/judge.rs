//! The judgement about a shard.
//!
//! What a participant has of a transaction, against what is decided about it:
//!
//! | here | not decided | commit | abort |
//! |---|---|---|---|
//! | nothing | fine; **gone** if it said yes itself | **lost** | not applied; **row missing** below its position |
//! | in doubt, or prepared | in doubt | not applied; **left over** below its position | the same |
//! | committed | **committed undecided** | fine | **committed against abort** |
//! | aborted | **aborted undecided** | **lost** | fine |
//! | refused | fine; **gone** if it said yes itself | **lost** | fine |
//! | abandoned | settled by a person | settled | settled |
//!
//! "Nothing" below the purge's mark is fine, whatever is decided: it is finished. While the database is to be brought back after a
//! restore, nothing of a commit above its position is not applied, and nothing of what it said yes to is in doubt. What a person has resolved at a participant is
//! settled there, whatever is here.

use std::collections::{BTreeMap, BTreeSet};

use suture_contract::ids::{Participant, Txid};
use suture_contract::messages::{Ballot, Verdict};

use super::trail::{Register, Story, Trail};
use super::{About, Finding, Row, ShardBooks, Wrong};

/// How a transaction stands. Each has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Committed in all ledgers.
    Committed,
    /// Decided so, and applied by all.
    Aborted,
    /// Not decided, and nobody is in doubt.
    Open,
    /// Not decided, and somebody said yes.
    InDoubt,
    /// Decided, and somebody has not applied it yet.
    NotApplied,
    /// A person has given up some part of it.
    Settled,
    /// Something about it must not be.
    Wrong,
}

/// Who waits for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// Which transaction.
    pub txid: Txid,
    /// Who; `None`: nobody has prepared yet.
    pub participant: Option<Participant>,
    /// For what.
    pub waits: Waits,
    /// Since when, by the broker's clock.
    pub since_ms: i64,
}

/// For what somebody waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waits {
    /// For votes.
    Open,
    /// It said yes; for a decision.
    InDoubt,
    /// There is a decision, and it is not applied.
    NotApplied,
}

/// What became of a shard's transactions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// How each stands whose request is there, by the request's offset.
    pub standings: BTreeMap<u64, Standing>,
    /// Those whose requests have left the topic by age, and whose decisions are still there.
    pub older: u64,
    /// What is not finished.
    pub waits: Vec<Wait>,
    /// What must not be, in this look.
    pub findings: BTreeSet<Finding>,
}

/// Judges a shard.
pub fn judge(trail: &Trail, books: &BTreeMap<Participant, ShardBooks>) -> Judged {
    let mut judged = Judged::default();
    for (offset, story) in trail.stories() {
        let (txid, findings_before) = (trail.txid(offset), judged.findings.len());
        let mut find = |wrong, participant: Option<&Participant>| {
            let about = About::Transaction(txid);
            judged.findings.insert(Finding { wrong, about, participant: participant.cloned() });
        };
        for wrong in in_the_logs(trail, story) {
            find(wrong, None);
        }
        let (mut waits, mut is_settled) = (Vec::new(), false);
        for register in &story.registers {
            let participant = trail.participant(register);
            let Some(book) = books.get(participant) else { continue };
            if trail.is_resolved(offset, participant) {
                is_settled = true;
                continue;
            }
            for wrong in beside_the_row(story, book, offset) {
                find(wrong, Some(participant));
            }
            match at_one(story, register, book, offset) {
                One::Fine => {}
                One::Settled => is_settled = true,
                One::Wrong(wrong) => find(wrong, Some(participant)),
                One::Waits(wait) => waits.push((participant, wait)),
            }
        }
        let standing = match &story.decided {
            _ if judged.findings.len() > findings_before => Standing::Wrong,
            _ if is_settled => Standing::Settled,
            Some(_) if !waits.is_empty() => Standing::NotApplied,
            Some(decided) if decided.verdict == Verdict::Commit => Standing::Committed,
            Some(_) => Standing::Aborted,
            None if waits.is_empty() => Standing::Open,
            None => Standing::InDoubt,
        };
        let since_ms = story.decided.as_ref().map_or(story.asked_ms.unwrap_or_default(), |decided| decided.at_ms);
        if standing == Standing::Open {
            judged.waits.push(Wait { txid, participant: None, waits: Waits::Open, since_ms });
        }
        judged.waits.extend(waits.into_iter().map(|(participant, waits)| Wait {
            txid,
            participant: Some(participant.clone()),
            waits,
            since_ms,
        }));
        match story.asked_ms {
            Some(_) => drop(judged.standings.insert(offset, standing)),
            None => judged.older += 1,
        }
    }
    for offset in trail.nobody_asked() {
        let about = About::Transaction(trail.txid(offset));
        judged.findings.insert(Finding { wrong: Wrong::NobodyAsked, about, participant: None });
    }
    for offset in trail.unreadable() {
        let about = About::Decision { shard: trail.shard(), offset };
        judged.findings.insert(Finding { wrong: Wrong::Unreadable, about, participant: None });
    }
    for (participant, book) in books {
        let in_doubt = book.rows.iter().filter(|(_, (row, _))| *row == Row::InDoubt).map(|(offset, _)| offset);
        for offset in book.branches.keys().chain(in_doubt) {
            let wrong = match trail.story(*offset) {
                Some(story) if names(trail, story, participant) => continue,
                Some(_) => Wrong::NotNamed,
                None if trail.has_no_request(*offset) => Wrong::NoRequest,
                None => continue,
            };
            let (about, participant) = (About::Transaction(trail.txid(*offset)), Some(participant.clone()));
            judged.findings.insert(Finding { wrong, about, participant });
        }
    }
    judged
}

fn names(trail: &Trail, story: &Story, participant: &Participant) -> bool {
    story.registers.iter().any(|register| trail.participant(register) == participant)
}

/// What the logs alone say against each other.
fn in_the_logs(trail: &Trail, story: &Story) -> Vec<Wrong> {
    let mut wrongs = Vec::new();
    if story.copies_differ {
        wrongs.push(Wrong::CopiesDiffer);
    }
    let decided = story.decided.as_ref();
    // A decision that is cleaned up leaves its outcome behind; then the request is gone too.
    if story.told.is_some() && story.told != decided.map(|decided| decided.verdict) {
        wrongs.push(Wrong::ToldOtherwise);
    }
    let Some(decided) = decided else { return wrongs };
    if decided.hash != story.hash {
        wrongs.push(Wrong::AboutAnother);
    }
    if trail.product(story).is_some_and(|product| product != Some(decided.verdict)) {
        wrongs.push(Wrong::NotTheProduct);
    }
    wrongs
}

/// Whatever is decided.
fn beside_the_row(story: &Story, book: &ShardBooks, offset: u64) -> Vec<Wrong> {
    let mut wrongs = Vec::new();
    let row = book.rows.get(&offset);
    let branches = book.branches.get(&offset);
    let other_row = row.is_some_and(|(_, hash)| *hash != story.hash);
    let other_branch = branches.is_some_and(|hashes| hashes.iter().any(|hash| *hash != story.hash.short()));
    if other_row || other_branch {
        wrongs.push(Wrong::OtherHash);
    }
    if branches.is_some() && row.is_some() {
        wrongs.push(Wrong::LeftOver);
    }
    wrongs
}

/// What one participant has.
enum One {
    Fine,
    Settled,
    Waits(Waits),
    Wrong(Wrong),
}

fn at_one(story: &Story, register: &Register, book: &ShardBooks, offset: u64) -> One {
    let said_yes = register.is_own && register.vote == Some(Ballot::Yes);
    let is_prepared = book.branches.contains_key(&offset);
    let is_past = story.decided.as_ref().is_some_and(|decided| decided.last < book.past);
    let row = book.rows.get(&offset).map(|(row, _)| *row);
    let verdict = story.decided.as_ref().map(|decided| decided.verdict);
    match (row, verdict) {
        (Some(Row::Abandoned), _) => One::Settled,
        (Some(Row::InDoubt), Some(_)) if is_past => One::Wrong(Wrong::LeftOver),
        (None, Some(_)) if is_prepared && is_past => One::Wrong(Wrong::LeftOver),
        (Some(Row::InDoubt), Some(_)) => One::Waits(Waits::NotApplied),
        (None, Some(_)) if is_prepared => One::Waits(Waits::NotApplied),
        (Some(Row::InDoubt), None) => One::Waits(Waits::InDoubt),
        (None, None) if is_prepared => One::Waits(Waits::InDoubt),

        (Some(Row::Committed), Some(Verdict::Commit)) => One::Fine,
        (Some(Row::Committed), Some(Verdict::Abort)) => One::Wrong(Wrong::CommittedAgainstAbort),
        (Some(Row::Committed), None) => One::Wrong(Wrong::CommittedUndecided),

        (Some(Row::Aborted | Row::Refused), Some(Verdict::Commit)) => One::Wrong(Wrong::Lost),
        (Some(Row::Aborted | Row::Refused), Some(Verdict::Abort)) => One::Fine,
        (Some(Row::Aborted), None) => One::Wrong(Wrong::AbortedUndecided),
        (Some(Row::Refused), None) if said_yes => One::Wrong(Wrong::Gone),
        (Some(Row::Refused), None) => One::Fine,

        (None, _) if offset < book.purged => One::Fine,
        (None, Some(Verdict::Commit)) if book.went_back && !is_past => One::Waits(Waits::NotApplied),
        (None, Some(Verdict::Commit)) => One::Wrong(Wrong::Lost),
        (None, Some(Verdict::Abort)) if is_past => One::Wrong(Wrong::RowMissing),
        (None, Some(Verdict::Abort)) => One::Waits(Waits::NotApplied),
        (None, None) if said_yes && book.went_back => One::Waits(Waits::InDoubt),
        (None, None) if said_yes => One::Wrong(Wrong::Gone),
        (None, None) => One::Fine,
    }
}
