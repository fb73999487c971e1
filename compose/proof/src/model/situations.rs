//! Situations that must be reached somewhere: a check that never meets one proves nothing about it.

use suture_contract::messages::{Ballot, Verdict};

use super::alphabet::{Alphabet, Asked, Cast, Noted, PARTICIPANTS};
use super::ledger::Kept;
use super::owners::{Owners, Sent};
use super::world::{Bounds, World};

macro_rules! situations {
    ($($name:ident $what:literal),+ $(,)?) => {
        /// A situation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Situation {
            $(#[doc = $what] $name),+
        }

        impl Situation {
            /// All of them.
            pub const ALL: [Self; [$($what),+].len()] = [$(Self::$name),+];

            /// In words.
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$name => $what),+
                }
            }
        }
    };
}

situations! {
    Committed "a transaction is committed at both participants",
    AbortedByBoth "both say no",
    OneNo "one says yes and the other no",
    Expired "a coordinator's no is the first vote of a register",
    ExpiryLost "a coordinator's no comes behind a yes",
    ExpiryBothFirst "both registers begin with a coordinator's no",
    LateYes "a yes comes behind a coordinator's no",
    YesThenNo "a participant's no comes behind its yes",
    NoThenYes "a participant's yes comes behind its no",
    VoteTwice "one vote stands twice in a log",
    EarlyVote "a vote stands before one of an earlier request",
    OtherHashFirst "a yes to something else stands before a transaction's vote",
    OtherLogFirst "a yes to a request of a topic that is gone stands before a transaction's vote",
    VoteOfNothing "a vote stands in the log, and what it names was not asked for",
    HalfAVote "one register is filled and the other empty",
    DecidedTwice "a decision stands in the log twice",
    DecidedThrice "a decision stands in the log three times",
    DecidedAcross "copies of one decision enclose that of another transaction",
    SplitForAMoment "one participant has committed and the other is still in doubt",
    AbortFirst "an abort came before its prepare",
    RefusedThenAborted "a participant that said no has read the abort",
    RolledBack "a branch in doubt was rolled back",
    Behind "one participant has obeyed everything and the other nothing",
    ManyStarts "owners may start at four or more different positions records",
    StartsInTheMiddle "an owner may start behind a finished transaction that has votes",
    LowerVotes "votes of an unfinished transaction hold a position back",
    Repeated "a later request of a key is refused for an earlier one",
    BothAttemptsAborted "two requests of one key abort each other, crossed",
    SecondAttempt "a second attempt commits when the first was aborted",
    Conflict "one key with two contents",
    Cancelled "a transaction is cancelled and aborted",
    CancelledTooLate "a transaction is cancelled and commits",
    InLine "an ordered transaction waits for its turn",
    ThreeUndecided "three transactions are in doubt at once, and none is decided",
    LineMoves "two ordered transactions commit, one after the other",
    Parked "a prepare is parked behind a branch in doubt",
    Tombstone "a decision is cleaned up",
    DecidedAgain "a decision stands behind its own tombstone",
    CompactedCopy "a copy was compacted away that a participant has not read",
    CompactedAll "decision and tombstone are compacted away",
    Purged "a ledger row was purged",
    PurgedBelow "a row was purged, and a younger one below the mark was not",
    LateAfterPurge "a participant answers a prepare of what it has purged",
    CopyAfterPurge "a copy of a decision comes to whoever has purged the row",
    RequestsDeleted "a finished request was deleted",
    TooEarly "an undecided request was deleted",
    VotesDeleted "votes were deleted after their requests",
    WithoutPositions "an owner without positions begins behind a deleted request",
    BackedUp "a backup is older than what the ledger has obeyed",
    Restored "a database was restored",
    Redone "a commit was done again after a restore",
    PreparedAgain "a branch is in doubt again after a restore",
}

impl Situation {
    /// Whether this state is one.
    pub fn is_met(self, world: &World, bounds: &Bounds, alphabet: &Alphabet, owners: &Owners) -> bool {
        let requests = || (0..usize::from(world.logs.requests)).filter(|request| alphabet.is_transaction(*request));
        let any = |is: &dyn Fn(usize) -> bool| requests().any(is);
        let each = |is: &dyn Fn(usize, usize) -> bool| {
            any(&|request| (0..PARTICIPANTS).any(|participant| is(request, participant)))
        };
        let kept = |request: usize, participant: usize| world.ledgers[participant].now.rows[request];
        let other = |participant: usize| 1 - participant;
        let holds = |request, participant, ballot| world.holds(request, participant, ballot);
        let is_first = |request, participant, wanted: fn(u8) -> Cast| {
            world.first_cast(request, participant) == Some(wanted(request as u8))
        };
        let casts =
            |participant: usize| world.logs.votes[participant].bytes().iter().map(|byte| Cast::from_byte(*byte));
        let is_before_vote = |request: usize, participant: usize, stray: Cast| {
            let mut until = casts(participant).take_while(|cast| !cast.is_about(request));
            until.any(|cast| cast == stray) && world.logs.register(request, participant).is_some()
        };
        let decisions = || world.logs.decisions.bytes().iter().map(|byte| Noted::from_byte(*byte));
        let copies = |request: usize| {
            decisions().filter(|noted| matches!(noted, Noted::Decision(..)) && noted.request() == request).count()
        };
        let asked = |request: usize| alphabet.asked[request];
        let key = |request: usize| match asked(request) {
            Asked::Request { key, .. } => Some(key),
            Asked::Cancel(_) => None,
        };
        let is_ordered = |request: usize| matches!(asked(request), Asked::Request { ordered: true, .. });
        let is_cancelled = |target: usize| {
            (0..usize::from(world.logs.requests)).any(|request| asked(request) == Asked::Cancel(target as u8))
        };
        let product = |request| world.logs.product(request);
        let twins = |is: &dyn Fn(usize, usize) -> bool| {
            any(&|first| any(&|second| first < second && key(first) == key(second) && is(first, second)))
        };
        let has_purged = |request: usize, participant: usize| {
            kept(request, participant) == Kept::Nothing && world.ledgers[participant].is_over(alphabet, request)
        };
        match self {
            Self::Committed => any(&|r| kept(r, 0) == Kept::Committed && kept(r, 1) == Kept::Committed),
            Self::AbortedByBoth => any(&|r| is_first(r, 0, Cast::No) && is_first(r, 1, Cast::No)),
            Self::OneNo => each(&|r, p| is_first(r, p, Cast::Yes) && is_first(r, other(p), Cast::No)),
            Self::Expired => each(&|r, p| is_first(r, p, Cast::Expired)),
            Self::ExpiryLost => {
                each(&|r, p| holds(r, p, Ballot::Yes) && casts(p).any(|cast| cast == Cast::Expired(r as u8)))
            }
            Self::ExpiryBothFirst => any(&|r| is_first(r, 0, Cast::Expired) && is_first(r, 1, Cast::Expired)),
            Self::LateYes => {
                each(&|r, p| is_first(r, p, Cast::Expired) && casts(p).any(|cast| cast == Cast::Yes(r as u8)))
            }
            Self::YesThenNo => {
                each(&|r, p| is_first(r, p, Cast::Yes) && casts(p).any(|cast| cast == Cast::No(r as u8)))
            }
            Self::NoThenYes => {
                each(&|r, p| is_first(r, p, Cast::No) && casts(p).any(|cast| cast == Cast::Yes(r as u8)))
            }
            Self::VoteTwice => each(&|r, p| casts(p).filter(|cast| *cast == Cast::Yes(r as u8)).count() > 1),
            Self::EarlyVote => (0..PARTICIPANTS).any(|p| {
                let order: Vec<usize> = casts(p).map(Cast::request).collect();
                order.windows(2).any(|pair| pair[0] > pair[1])
            }),
            Self::OtherHashFirst => each(&|r, p| is_before_vote(r, p, Cast::OtherHash(r as u8))),
            Self::OtherLogFirst => each(&|r, p| is_before_vote(r, p, Cast::OtherLog(r as u8))),
            Self::VoteOfNothing => {
                (0..PARTICIPANTS).any(|p| casts(p).any(|cast| cast.request() >= usize::from(world.logs.requests)))
            }
            Self::HalfAVote => {
                each(&|r, p| world.logs.register(r, p).is_some() && world.logs.register(r, other(p)).is_none())
            }
            Self::DecidedTwice => any(&|r| copies(r) == 2),
            Self::DecidedThrice => any(&|r| copies(r) >= 3),
            Self::DecidedAcross => {
                let order: Vec<usize> = decisions().map(Noted::request).collect();
                order.windows(3).any(|three| three[0] == three[2] && three[0] != three[1])
            }
            Self::SplitForAMoment => each(&|r, p| kept(r, p) == Kept::Committed && kept(r, other(p)) == Kept::InDoubt),
            Self::AbortFirst => each(&|r, p| kept(r, p) == Kept::Noted),
            Self::RefusedThenAborted => each(&|r, p| {
                kept(r, p) == Kept::Refused && copies(r) > 0 && usize::from(world.ledgers[p].now.position) > 0
            }),
            Self::RolledBack => each(&|r, p| kept(r, p) == Kept::Aborted && world.ledgers[p].said_yes & (1 << r) != 0),
            Self::Behind => (0..PARTICIPANTS).any(|p| {
                let end = world.logs.decisions.len();
                end > 1
                    && usize::from(world.ledgers[p].now.position) == end
                    && world.ledgers[other(p)].now.position == 0
            }),
            Self::ManyStarts => owners.starts.len() >= 4,
            Self::StartsInTheMiddle => owners.starts.iter().any(|start| start.requests > 0 && start.votes != [0, 0]),
            Self::LowerVotes => owners.starts.iter().any(|start| {
                start.requests > 0 && (0..PARTICIPANTS).any(|p| usize::from(start.votes[p]) < world.logs.votes[p].len())
            }),
            Self::Repeated => each(&|r, p| kept(r, p) == Kept::Repeat),
            Self::BothAttemptsAborted => twins(&|first, second| {
                product(first) == Some(Verdict::Abort)
                    && product(second) == Some(Verdict::Abort)
                    && (0..PARTICIPANTS)
                        .any(|p| kept(second, p) == Kept::Repeat && kept(first, other(p)) == Kept::Repeat)
            }),
            Self::SecondAttempt => twins(&|first, second| {
                product(first) == Some(Verdict::Abort) && product(second) == Some(Verdict::Commit)
            }),
            Self::Conflict => twins(&|first, second| {
                alphabet.hash(first) != alphabet.hash(second)
                    && (0..PARTICIPANTS).any(|p| kept(second, p) != Kept::Nothing && kept(first, p) != Kept::Nothing)
            }),
            Self::Cancelled => any(&|r| is_cancelled(r) && product(r) == Some(Verdict::Abort)),
            Self::CancelledTooLate => any(&|r| is_cancelled(r) && product(r) == Some(Verdict::Commit)),
            Self::InLine => any(&|first| {
                any(&|second| {
                    first < second
                        && is_ordered(first)
                        && is_ordered(second)
                        && product(first).is_none()
                        && !owners.sends.has(Sent::Prepare(second, 0))
                })
            }),
            Self::ThreeUndecided => {
                let is_begun = |r: usize| (0..PARTICIPANTS).any(|p| kept(r, p) == Kept::InDoubt);
                requests().filter(|r| is_begun(*r) && product(*r).is_none()).count() == 3
            }
            Self::LineMoves => any(&|first| {
                any(&|second| {
                    first < second
                        && is_ordered(first)
                        && is_ordered(second)
                        && kept(first, 0) == Kept::Committed
                        && kept(second, 0) == Kept::Committed
                })
            }),
            Self::Parked => each(&|r, p| {
                is_ordered(r)
                    && kept(r, p) == Kept::Nothing
                    && owners.sends.has(Sent::Prepare(r, p))
                    && (0..r).any(|before| is_ordered(before) && kept(before, p) == Kept::InDoubt)
            }),
            Self::Tombstone => decisions().any(|noted| matches!(noted, Noted::Tombstone(_))),
            Self::DecidedAgain => {
                let mut all = decisions().skip_while(|noted| !matches!(noted, Noted::Tombstone(_)));
                all.next().is_some_and(|tombstone| {
                    all.any(|noted| matches!(noted, Noted::Decision(..)) && noted.request() == tombstone.request())
                })
            }
            Self::CompactedCopy => (0..PARTICIPANTS).any(|p| {
                let position = u32::from(world.ledgers[p].now.position);
                u32::from(world.logs.removed) >> position != 0
            }),
            Self::CompactedAll => {
                any(&|r| copies(r) > 0 && !world.logs.decisions_from(0).any(|(_, noted)| noted.request() == r))
            }
            Self::Purged => each(&|r, p| has_purged(r, p)),
            Self::PurgedBelow => each(&|r, p| {
                let younger = (0..r).any(|below| kept(below, p) != Kept::Nothing);
                has_purged(r, p) && younger
            }),
            Self::LateAfterPurge => each(&|r, p| {
                let ledger = &world.ledgers[p];
                has_purged(r, p) && ledger.said_no & (1 << r) != 0 && product(r) == Some(Verdict::Commit)
            }),
            Self::CopyAfterPurge => each(&|r, p| {
                let from = usize::from(world.ledgers[p].now.position);
                has_purged(r, p) && world.logs.decisions_from(from).any(|(_, noted)| noted.request() == r)
            }),
            Self::RequestsDeleted => world.logs.requests_start > 0,
            Self::TooEarly => any(&|r| r < usize::from(world.logs.requests_start) && product(r).is_none()),
            Self::VotesDeleted => world.logs.votes_start != [0, 0],
            Self::WithoutPositions => {
                owners.starts.iter().any(|start| {
                    start.requests > 0 && start.decisions == 0 && start.requests == world.logs.requests_start
                }) && bounds.retention != super::world::Retention::Nothing
            }
            Self::BackedUp => world
                .ledgers
                .iter()
                .any(|ledger| ledger.backup.is_some_and(|backup| backup.position < ledger.now.position)),
            Self::Restored => world.ledgers.iter().any(|ledger| ledger.restored),
            Self::Redone => world.ledgers.iter().any(|ledger| {
                let redone = |r: usize| {
                    let at = world.logs.decisions_from(usize::from(ledger.now.position));
                    let mut ahead = at.filter(|(_, noted)| noted.request() == r);
                    ledger.now.rows[r] == Kept::Committed && ahead.next().is_some()
                };
                ledger.restored && any(&redone)
            }),
            Self::PreparedAgain => {
                world.ledgers.iter().any(|ledger| ledger.restored && any(&|r| ledger.now.rows[r] == Kept::InDoubt))
            }
        }
    }
}
