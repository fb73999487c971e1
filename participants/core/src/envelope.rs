//! From a record to a message for this participant: what is trusted about a record before anything acts on it.
//!
//! | found | prepare | decision |
//! |---|---|---|
//! | a newer version | the shard stops | the shard stops |
//! | unreadable | passed: without its hash there is nothing to vote on, the deadline decides | the shard stops |
//! | key, partition or log are not the txid's | passed: nobody would read the vote | the shard stops |
//! | no value | passed | passed: cleaned up |
//! | does not name us | | passed |
//!
//! The log letters of a decision are not compared: the requests topic may have been made anew, and the ledger knows
//! what the txid was.

use std::sync::Arc;

use suture_contract::codec::{Unreadable, decode};
use suture_contract::ids::{LogLetters, Participant, Txid};
use suture_contract::messages::{Decision, Prepare};

/// A record as Kafka gives it.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    /// Its partition.
    pub partition: i32,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
}

/// What a record is to us.
#[derive(Debug, Clone)]
pub enum Read<M> {
    /// To be acted upon.
    Ours(Arc<M>),
    /// Done by having been read; nothing to say.
    Passed,
    /// Done by having been read, with a warning.
    Odd(&'static str),
    /// The shard stops in front of it.
    Stop(&'static str),
}

/// Reads a record of our prepare topic.
pub fn read_prepare(raw: Raw<'_>, requests: LogLetters) -> Read<Prepare> {
    let prepare: Prepare = match raw.value.map(decode) {
        None => return Read::Odd("empty"),
        Some(Err(unreadable @ Unreadable::Newer { .. })) => return Read::Stop(unreadable.code()),
        Some(Err(unreadable)) => return Read::Odd(unreadable.code()),
        Some(Ok(prepare)) => prepare,
    };
    if !is_routed(raw, prepare.txid) {
        return Read::Odd("misrouted");
    }
    if prepare.txid.log != requests {
        return Read::Odd("foreign_log");
    }
    Read::Ours(Arc::new(prepare))
}

/// Reads a record of the decision log.
pub fn read_decision(raw: Raw<'_>, participant: &Participant) -> Read<Decision> {
    let decision: Decision = match raw.value.map(decode) {
        None => return Read::Passed,
        Some(Err(unreadable)) => return Read::Stop(unreadable.code()),
        Some(Ok(decision)) => decision,
    };
    if !is_routed(raw, decision.txid) {
        return Read::Stop("misrouted");
    }
    if !decision.participants.contains(participant) {
        return Read::Passed;
    }
    Read::Ours(Arc::new(decision))
}

/// Whether a record stands where its txid says.
fn is_routed(raw: Raw<'_>, txid: Txid) -> bool {
    raw.partition == txid.shard.partition() && raw.key == Some(txid.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREPARE: &str = r#"{"type":"prepare","v":1,"txid":"k3f9q-3-1042","business_key":"surgery:1","attempt":1,"operation":"o","payload":{},"hash":"k1:0123456789abcdef0123456789abcdef"}"#;
    const DECISION: &str = r#"{"type":"decision","v":1,"txid":"k3f9q-3-1042","outcome":"commit","participants":["insurer","hospital"],"business_key":"surgery:1","attempt":1,"hash":"k1:0123456789abcdef0123456789abcdef"}"#;

    fn raw<'a>(partition: i32, key: &'a str, value: Option<&'a str>) -> Raw<'a> {
        Raw { partition, key: Some(key.as_bytes()), value: value.map(str::as_bytes) }
    }

    fn verdict<M>(read: Read<M>) -> &'static str {
        match read {
            Read::Ours(_) => "ours",
            Read::Passed => "passed",
            Read::Odd(why) => why,
            Read::Stop("newer_version") => "stop: newer",
            Read::Stop("misrouted") => "stop: misrouted",
            Read::Stop(_) => "stop",
        }
    }

    #[test]
    fn a_prepare_is_taken_from_its_own_place_only() {
        let read = |partition, key, value: Option<&str>, letters: &str| {
            verdict(read_prepare(raw(partition, key, value), letters.parse().unwrap()))
        };
        let key = "k3f9q-3-1042";
        assert_eq!(read(3, key, Some(PREPARE), "k3f9q"), "ours");
        assert_eq!(read(4, key, Some(PREPARE), "k3f9q"), "misrouted");
        assert_eq!(read(3, "k3f9q-3-1043", Some(PREPARE), "k3f9q"), "misrouted");
        assert_eq!(read(3, key, Some(PREPARE), "aaaaa"), "foreign_log");
        assert_eq!(read(3, key, Some(&PREPARE.replace("\"v\":1", "\"v\":2")), "k3f9q"), "stop: newer");
        assert_eq!(read(3, key, Some(&PREPARE[..40]), "k3f9q"), "not_json");
        assert_eq!(read(3, key, Some(""), "k3f9q"), "empty");
        assert_eq!(read(3, key, Some(DECISION), "k3f9q"), "wrong_type");
        assert_eq!(read(3, key, None, "k3f9q"), "empty");
    }

    #[test]
    fn a_decision_is_never_passed_over_unread() {
        let read = |partition, key, value: Option<&str>, participant: &str| {
            verdict(read_decision(raw(partition, key, value), &participant.parse().unwrap()))
        };
        let key = "k3f9q-3-1042";
        assert_eq!(read(3, key, Some(DECISION), "insurer"), "ours");
        assert_eq!(read(3, key, Some(DECISION), "surgeon-log"), "passed");
        assert_eq!(read(3, key, None, "insurer"), "passed");
        assert_eq!(read(4, key, Some(DECISION), "insurer"), "stop: misrouted");
        assert_eq!(read(3, "x", Some(DECISION), "insurer"), "stop: misrouted");
        assert_eq!(read(3, key, Some(&DECISION.replace("\"v\":1", "\"v\":2")), "insurer"), "stop: newer");
        for broken in ["", "{", &DECISION[..60], PREPARE, "\u{0}"] {
            assert_eq!(read(3, key, Some(broken), "insurer"), "stop", "{broken}");
        }
    }
}
