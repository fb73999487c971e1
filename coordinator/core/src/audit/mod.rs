//! Audit: what must not be, judged for one shard from its logs and from what every participant has in its database.
//!
//! ```text
//!   positions                        how far each participant has worked off the decisions    first
//!   requests, outcomes, decisions, votes --> Trail: one story a transaction                   each to the end that it has then
//!   lists, rows, marks --> ShardBooks: what each participant has of them                      last, in this order
//!                                        |
//!                                        v
//!                            judge -> Standing, Waits, Findings
//! ```
//!
//! **Everything runs meanwhile**, so "not yet" must never look like "must not be". The order of reading does most of it:
//!
//! - A position is older than the rows that it vouches for: what lies below it was durable before the rows were read. The
//!   marks are younger than the rows: a row that was purged meanwhile lies below one.
//! - The requests come first: decisions and votes about a request at or above the end that they had are later than this look,
//!   and passed over. The outcomes come before the decisions that they repeat, and those before the votes that they are made of, so each
//!   is found with all that it rests on.
//! - The databases come after the logs: who has said yes in a log had its branch before. The list comes before the
//!   rows: a branch that is being committed stands in one of them.
//!
//! What is left: a decision that is made and carried out between the two, a branch that is rolled back before its row is there,
//! and a branch whose request is later than this look. So what the first look finds is a *suspicion*, and **what counts is what a second look finds about the transactions
//! under suspicion**, taken some time after the first one was over ([`Range::only`]). Its logs hold every decision that the first
//! look's rows came from, a transaction is decided once, and what a participant was in the middle of is over. What is wrong
//! stays wrong: rows of ledgers do not go back, and logs do not change.
//!
//! **Finished before.** A request that left its topic by age is finished, and its decision may be cleaned up. What is left of
//! it is judged as far as it goes: a decision without its request still says who must have it; a row below the participant's
//! purge mark may be gone; a tombstoned decision is forgotten; ledgers alone can still differ.
//!
//! **Restored databases.** A participant whose database went back has neither the commits above its own position nor all that it
//! was in doubt of; its service brings both back ([`ShardBooks::went_back`]). So they wait and are not lost. What lies below its
//! own position is not brought back.
//!
//! Left out: business rows (only the ledger that changes with them); participants whose books nobody gave, who are judged by nothing.

mod judge;
mod trail;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use suture_contract::ids::{Participant, RequestHash, Shard, Txid};

pub use judge::{Judged, Standing, Wait, Waits, judge};
pub use trail::{Newer, Range, Story, Trail};

/// What a participant's ledger says of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// Mode reserve: said yes, or about to.
    InDoubt,
    /// Its effect is durable.
    Committed,
    /// It has no effect, by a decision.
    Aborted,
    /// It has no effect, for this participant said no.
    Refused,
    /// A person has given it up.
    Abandoned,
}

/// What a participant has in its database of one shard.
#[derive(Debug, Clone, Default)]
pub struct ShardBooks {
    /// The decisions' offset below which all is durable here. Read before the logs.
    pub past: u64,
    /// The database went back, and what it misses is not brought back yet. Read before the position.
    pub went_back: bool,
    /// The branches in the database's list that carry this participant's name: the request's offset, and the first 16 digits of
    /// the hashes. Read after the logs.
    pub branches: BTreeMap<u64, BTreeSet<String>>,
    /// The ledger's rows, by the request's offset. Read after the branches.
    pub rows: BTreeMap<u64, (Row, RequestHash)>,
    /// Below this offset of the requests finished rows may be purged. Read after the rows.
    pub purged: u64,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What is wrong.
    pub wrong: Wrong,
    /// About what.
    pub about: About,
    /// At whom; `None`: in the logs.
    pub participant: Option<Participant>,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// A transaction, or what looks like one.
    Transaction(Txid),
    /// A record of the decision log.
    Decision {
        /// Its partition.
        shard: Shard,
        /// Its offset.
        offset: u64,
    },
}

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Two records that cannot both be true.
    Contradiction,
    /// An effect that all others count on and that is not there.
    Lost,
    /// A branch or a row that nothing accounts for.
    Orphan,
}

/// All that can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// Two decisions of one transaction are not equal.
    CopiesDiffer,
    /// The decision is not what the votes give.
    NotTheProduct,
    /// The outcome says another thing than the decision, or there is none to it.
    ToldOtherwise,
    /// The decision has another hash than the request.
    AboutAnother,
    /// A decision of what nobody asked for.
    NobodyAsked,
    /// A record of the decision log is no decision: coordinators and participants stop in front of it.
    Unreadable,
    /// The decision is abort, and it is committed here.
    CommittedAgainstAbort,
    /// There is no decision, and it is committed here.
    CommittedUndecided,
    /// There is no decision, and it is aborted here.
    AbortedUndecided,
    /// Committed here, and aborted or refused at another.
    LedgersDiffer,
    /// What is here has another hash than the request.
    OtherHash,
    /// The abort is applied by this participant's own position, and its ledger has no row.
    RowMissing,

    /// The decision is commit, and here is neither a branch nor a row that says so. The effect may be here.
    Lost,
    /// It said yes, nothing is decided, and nothing of it is here any more.
    Gone,

    /// What is here has no request.
    NoRequest,
    /// What is here is of another requests topic than there is now.
    OtherLog,
    /// The request names others.
    NotNamed,
    /// The branch is still there, though it is finished by the ledger or by this participant's own position.
    LeftOver,
}

impl Wrong {
    /// Which kind it is.
    pub fn kind(self) -> Kind {
        match self {
            Self::CopiesDiffer
            | Self::NotTheProduct
            | Self::ToldOtherwise
            | Self::AboutAnother
            | Self::NobodyAsked
            | Self::Unreadable
            | Self::CommittedAgainstAbort
            | Self::CommittedUndecided
            | Self::AbortedUndecided
            | Self::LedgersDiffer
            | Self::OtherHash
            | Self::RowMissing => Kind::Contradiction,
            Self::Lost | Self::Gone => Kind::Lost,
            Self::NoRequest | Self::OtherLog | Self::NotNamed | Self::LeftOver => Kind::Orphan,
        }
    }

    /// One word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CopiesDiffer => "copies_differ",
            Self::NotTheProduct => "not_the_product",
            Self::ToldOtherwise => "told_otherwise",
            Self::AboutAnother => "about_another",
            Self::NobodyAsked => "nobody_asked",
            Self::Unreadable => "unreadable",
            Self::CommittedAgainstAbort => "committed_against_abort",
            Self::CommittedUndecided => "committed_undecided",
            Self::AbortedUndecided => "aborted_undecided",
            Self::LedgersDiffer => "ledgers_differ",
            Self::OtherHash => "other_hash",
            Self::RowMissing => "row_missing",
            Self::Lost => "lost",
            Self::Gone => "gone",
            Self::NoRequest => "no_request",
            Self::OtherLog => "other_log",
            Self::NotNamed => "not_named",
            Self::LeftOver => "left_over",
        }
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transaction(txid) => txid.fmt(f),
            Self::Decision { shard, offset } => write!(f, "decisions/{shard}/{offset}"),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CopiesDiffer => "the decision log holds decisions of it that are not equal",
            Self::NotTheProduct => "its decision is not what the votes give",
            Self::ToldOtherwise => "its outcome says another thing than its decision",
            Self::AboutAnother => "its decision has another hash than its request",
            Self::NobodyAsked => "it is decided, and there is no such request",
            Self::Unreadable => {
                "it is no decision; coordinators and participants stop in front of it until a person lets them pass"
            }
            Self::CommittedAgainstAbort => "its decision is abort, and it is committed here",
            Self::CommittedUndecided => "it is not decided, and it is committed here",
            Self::AbortedUndecided => "it is not decided, and it is aborted here",
            Self::LedgersDiffer => "it is committed here, and not at another",
            Self::OtherHash => "what is here has another hash than its request",
            Self::RowMissing => "its abort is applied here, and the ledger has no row of it",
            Self::Lost => "its decision is commit, and the ledger has no row of that",
            Self::Gone => "it said yes here, nothing is decided, and its branch is gone",
            Self::NoRequest => "there is no such request",
            Self::OtherLog => "it is of another requests topic than there is now",
            Self::NotNamed => "its request does not name this participant",
            Self::LeftOver => "it is finished, and its branch is still there",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Contradiction => "contradiction",
            Self::Lost => "LOST",
            Self::Orphan => "orphan",
        })
    }
}
