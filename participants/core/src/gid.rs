//! The name of a prepared branch in its database's own list: `txid/deployment/participant/hash`, the hash by its first
//! 16 hex digits.
//!
//! A database's list is shared by everybody who prepares there, so the name says whose branch it is; only what carries
//! this deployment and this participant is ours to finish. The hash in it answers a repeated prepare while the ledger
//! row is still invisible inside the branch.
//!
//! A gid stands in SQL as a literal. All four parts have closed alphabets (letters, digits, `-`), and it is shorter
//! than 100 bytes, where PostgreSQL takes 200.

use std::fmt;
use std::str::FromStr;

use suture_contract::ids::{Deployment, InvalidName, Participant, RequestHash, Txid};

/// Whose branches: the part of a gid that is the same for all branches of one ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The deployment.
    pub deployment: Deployment,
    /// The participant.
    pub participant: Participant,
}

/// A prepared branch's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gid {
    /// The transaction.
    pub txid: Txid,
    /// Whose branch.
    pub owner: Owner,
    /// The first 16 hex digits of the request's hash.
    pub short_hash: String,
}

impl Gid {
    /// The name of a branch.
    pub fn new(txid: Txid, owner: &Owner, hash: &RequestHash) -> Self {
        Self { txid, owner: owner.clone(), short_hash: hash.short() }
    }

    /// Whether the branch is about what this hash is about.
    pub fn has_hash(&self, hash: &RequestHash) -> bool {
        self.short_hash == hash.short()
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner { deployment, participant } = &self.owner;
        write!(f, "{}/{deployment}/{participant}/{}", self.txid, self.short_hash)
    }
}

impl FromStr for Gid {
    type Err = InvalidName;

    /// Refuses everything that is not ours, byte for byte.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName { what: "gid", rule: "txid/deployment/participant/16 hex digits" };
        let mut parts = text.split('/');
        let (Some(txid), Some(deployment), Some(participant), Some(short_hash), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid());
        };
        if short_hash.len() != 16 || !short_hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(invalid());
        }
        let owner = Owner { deployment: deployment.parse()?, participant: participant.parse()? };
        Ok(Self { txid: txid.parse()?, owner, short_hash: short_hash.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gid_is_read_back_and_short_enough() {
        let owner = Owner { deployment: "suture".parse().unwrap(), participant: "surgeon-log".parse().unwrap() };
        let hash: RequestHash = "k1:0123456789abcdef0123456789abcdef".parse().unwrap();
        let gid = Gid::new("k3f9q-3-1042".parse().unwrap(), &owner, &hash);
        assert_eq!(gid.to_string(), "k3f9q-3-1042/suture/surgeon-log/0123456789abcdef");
        assert_eq!(gid.to_string().parse(), Ok(gid.clone()));
        assert!(gid.has_hash(&hash));
        assert!(!gid.has_hash(&"k1:1123456789abcdef0123456789abcdef".parse().unwrap()));

        let owner = Owner { deployment: "a".repeat(16).parse().unwrap(), participant: "b".repeat(24).parse().unwrap() };
        let longest = Gid::new(format!("zzzzz-65535-{}", i64::MAX).parse().unwrap(), &owner, &hash);
        assert!(longest.to_string().len() < 100);
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        for foreign in [
            "",
            "mine",
            "k3f9q-3-1042",
            "k3f9q-3-1042/suture/surgeon-log",
            "k3f9q-3-1042/suture/surgeon-log/0123456789abcde",
            "k3f9q-3-1042/suture/surgeon-log/0123456789ABCDEF",
            "k3f9q-3-1042/suture/surgeon-log/0123456789abcdef/x",
            "k3f9q-3-1042/suture/surgeon'log/0123456789abcdef",
        ] {
            assert!(foreign.parse::<Gid>().is_err(), "{foreign}");
        }
    }
}
