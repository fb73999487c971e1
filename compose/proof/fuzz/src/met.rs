//! What was met, by name: variants of errors, reason codes, and texts that say what is wrong.

use std::borrow::Cow;
use std::collections::BTreeSet;

use suture_contract::codec::Unreadable;
use suture_coordinator_core::cleanup::BadLog;
use suture_coordinator_core::ingest::Ignored;
use suture_coordinator_core::positions::BadPositions;
use suture_coordinator_core::redrive::NotAgain;
use suture_coordinator_core::shard::{Rejected, Stop, VoidVote};
use suture_participants_core::operations::NoSteps;

/// What one input has met.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Met(pub BTreeSet<Cow<'static, str>>);

impl Met {
    /// Notes a variant.
    pub fn variant(&mut self, error: &impl Variants) {
        self.0.insert(Cow::Borrowed(error.name()));
    }

    /// Notes a text.
    pub fn text(&mut self, text: impl Into<Cow<'static, str>>) {
        self.0.insert(text.into());
    }
}

/// An error whose variants must all be met.
pub trait Variants {
    /// The names of all.
    const ALL: &'static [&'static str];

    /// The name of this one.
    fn name(&self) -> &'static str;
}

/// One list is both the `match`, so that a new variant does not compile before it stands here, and [`Variants::ALL`], so that it
/// must be met once it does.
macro_rules! variants {
    ($($error:ident { $($variant:ident $(($tuple:tt))? $({ $fields:tt })?),+ $(,)? })+) => {
        $(impl Variants for $error {
            const ALL: &'static [&'static str] = &[$(concat!(stringify!($error), "::", stringify!($variant))),+];

            fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant $(($tuple))? $({ $fields })? => {
                        concat!(stringify!($error), "::", stringify!($variant))
                    })+
                }
            }
        })+

        /// The names of all variants of all errors.
        pub fn all() -> Vec<&'static str> {
            [$($error::ALL),+].concat()
        }
    };
}

variants! {
    Unreadable { Newer { .. }, Empty, WrongType, NotJson { .. }, WrongFields { .. } }
    Rejected {
        Unreadable(..), TooLarge, NoKey, Misrouted, NoParticipant, TooManyParticipants, ParticipantTwice, BadDeadline,
        BadOrderKey, UnknownTransaction,
    }
    VoidVote { Unreadable, Misrouted, ForeignLog, WrongHash, NotNamed, NoTransaction, Malformed }
    Stop {
        Newer { .. }, BadDecision { .. }, UnequalDecisions { .. }, Contradiction { .. }, RequestChanged { .. },
        AppendRefused { .. }, TooManyParticipants,
    }
    BadLog { Unreadable { .. }, Unequal { .. } }
    BadPositions { Unreadable, ForeignTopic { .. }, TooLong { .. } }
    NotAgain { NotDecided(..), TookEffect(..), TookEffectAs(..), UnderWay(..) }
    Ignored { Tombstone, OtherTopic, NoMatch }
    NoSteps { Missing(..), Changed(..) }
}
