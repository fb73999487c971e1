//! What must hold.

use std::fmt;

/// A property. The invariants are those of the failure catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property {
    /// Each decision is the product of the registers, and a commit has a yes of everybody (I2, I4).
    Product,
    /// An owner from any positions decides by the first votes, as one that has read everything (I1, I13).
    Positions,
    /// No owner finds a contradiction in logs that are whole (I2).
    Stop,
    /// No `no` in somebody's place before the votes were read to their end (G11).
    Expiry,
    /// No effect but by a decision, and none against it (I3).
    Atomicity,
    /// What is committed is not denied (I4, I6).
    Answer,
    /// No decision meets a ledger that it does not fit (I3, I11).
    Ledger,
    /// A decision that comes again changes nothing (I6).
    Redelivery,
    /// A key takes effect once at most (I7).
    ExactlyOnce,
    /// Who is called a duplicate is one: the other is committed (I11).
    Duplicate,
    /// What is acknowledged is over (I8).
    AckTruth,
    /// What is cleaned up is over for everybody (I9).
    CleanUp,
    /// One patient's transactions begin one after the other (I14).
    Order,
    /// A database that is restored gets all back that counts (I3, I11).
    Restore,
    /// Everything ends, and nothing is left in doubt (I10, I11).
    Liveness,
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Product => "PRODUCT",
            Self::Positions => "POSITIONS",
            Self::Stop => "STOP",
            Self::Expiry => "EXPIRY",
            Self::Atomicity => "ATOMICITY",
            Self::Answer => "ANSWER",
            Self::Ledger => "LEDGER",
            Self::Redelivery => "REDELIVERY",
            Self::ExactlyOnce => "EXACTLY ONCE",
            Self::Duplicate => "DUPLICATE",
            Self::AckTruth => "ACK TRUTH",
            Self::CleanUp => "CLEAN-UP",
            Self::Order => "ORDER",
            Self::Restore => "RESTORE",
            Self::Liveness => "LIVENESS",
        })
    }
}

/// A property does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub property: Property,
    /// By what.
    pub what: String,
}

impl Broken {
    /// This one.
    pub fn of(property: Property, what: impl fmt::Display) -> Self {
        Self { property, what: what.to_string() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.what)
    }
}
