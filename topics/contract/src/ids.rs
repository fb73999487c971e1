//! The names of the protocol. One word, one type; all of them validate when made, so a value that exists is valid.
//!
//! Txid, hash and participant end up in SQL literals and in global transaction ids (gtrid, gid), which databases do not
//! take as bind parameters. That is why their alphabets are closed: letters, digits and `-` only.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// A name that breaks the rules of its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {what}: {rule}")]
pub struct InvalidName {
    /// Which type refused.
    pub what: &'static str,
    /// The rule that was broken. Never holds the refused text: it may be a patient's number.
    pub rule: &'static str,
}

/// Five base32 letters (Crockford's alphabet) that name one incarnation of a topic.
///
/// Made from the topic's id, so a topic that was deleted and created again never reuses a txid although its offsets
/// start at 0 again. Brokers without topic ids (the embedded one) are given random letters at every start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogLetters([u8; 5]);

impl LogLetters {
    const ALPHABET: &'static [u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

    /// The letters of a topic id (the 16 bytes of Kafka's UUID, KIP-516).
    pub fn from_topic_id(topic_id: &[u8; 16]) -> Self {
        Self::from_bytes(&Sha256::digest(topic_id))
    }

    /// Letters from at least four random bytes.
    pub fn from_random(random: [u8; 4]) -> Self {
        Self::from_bytes(&random)
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let bits = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let mut letters = [0; 5];
        for (i, letter) in letters.iter_mut().enumerate() {
            *letter = Self::ALPHABET[(bits >> (27 - 5 * i)) as usize & 31];
        }
        Self(letters)
    }

    /// The letters as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base32 letters are ASCII")
    }
}

impl FromStr for LogLetters {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match <[u8; 5]>::try_from(text.as_bytes()) {
            Ok(letters) if letters.iter().all(|l| Self::ALPHABET.contains(l)) => Ok(Self(letters)),
            _ => Err(InvalidName { what: "log name", rule: "five of 0-9 and a-z without i, l, o and u" }),
        }
    }
}

/// Partition i of all protocol topics: the unit of ownership, of order and of scaling.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(pub u16);

impl Shard {
    /// The Kafka partition that carries this shard.
    pub fn partition(self) -> i32 {
        i32::from(self.0)
    }

    /// The shard that a Kafka partition carries; `None` for what is no partition.
    pub fn of_partition(partition: i32) -> Option<Self> {
        u16::try_from(partition).ok().map(Self)
    }
}

/// A transaction's name: `<log>-<shard>-<offset>` of its request record, for example `k3f9q-3-1042`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid {
    /// The incarnation of the requests topic.
    pub log: LogLetters,
    /// The partition of the request.
    pub shard: Shard,
    /// The offset of the request in its partition.
    pub offset: u64,
}

impl FromStr for Txid {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = InvalidName { what: "txid", rule: "<five letters>-<shard>-<offset>, for example k3f9q-3-1042" };
        let mut parts = text.split('-');
        let (Some(log), Some(shard), Some(offset), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid);
        };
        let txid = Self {
            log: log.parse().map_err(|_| invalid.clone())?,
            shard: Shard(decimal(shard).and_then(|n| u16::try_from(n).ok()).ok_or_else(|| invalid.clone())?),
            offset: decimal(offset).filter(|&n| i64::try_from(n).is_ok()).ok_or(invalid)?,
        };
        Ok(txid)
    }
}

/// A canonical decimal number: no sign, no leading zero. One txid has one spelling.
fn decimal(text: &str) -> Option<u64> {
    let canonical =
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    canonical.then(|| text.parse().ok()).flatten()
}

/// An organisation's service that owns a database, for example `surgeon-log`: 1 to 24 of a-z, 0-9 and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Participant(Box<str>);

impl FromStr for Participant {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if is_name(text, 24) {
            return Ok(Self(text.into()));
        }
        Err(InvalidName { what: "participant", rule: "1 to 24 of a-z, 0-9 and -, beginning with a letter" })
    }
}

/// The deployment: the prefix of all topics and groups, in ledgers and gids too. 1 to 16 of a-z, 0-9 and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deployment(Box<str>);

impl FromStr for Deployment {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if is_name(text, 16) {
            return Ok(Self(text.into()));
        }
        Err(InvalidName { what: "topic prefix", rule: "1 to 16 of a-z, 0-9 and -, beginning with a letter" })
    }
}

fn is_name(text: &str, longest: usize) -> bool {
    text.len() <= longest
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What an event is about (rule, source, case, revision): decides that two requests are the same thing.
///
/// It is a record key, so numbers of cases or patients in it are HMACs ([`crate::keys::IdentityKey`]). 1 to 200
/// visible ASCII characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusinessKey(Box<str>);

impl FromStr for BusinessKey {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if is_visible(text, 200) {
            return Ok(Self(text.into()));
        }
        Err(InvalidName { what: "business key", rule: "1 to 200 visible ASCII characters" })
    }
}

/// Decides a request's shard, and the order of transactions for rules that ask for it. The key of the request record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderKey(Box<str>);

impl FromStr for OrderKey {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if is_visible(text, 200) {
            return Ok(Self(text.into()));
        }
        Err(InvalidName { what: "order key", rule: "1 to 200 visible ASCII characters" })
    }
}

fn is_visible(text: &str, longest: usize) -> bool {
    !text.is_empty() && text.len() <= longest && text.bytes().all(|b| b.is_ascii_graphic())
}

/// 1, 2, ..: how often the same thing was asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Attempt(u32);

impl Attempt {
    /// The first time that something is asked for.
    pub const FIRST: Self = Self(1);

    /// The last number there is. Nobody gets there.
    pub const LAST: Self = Self(u32::MAX);

    /// Refuses 0.
    pub fn new(number: u32) -> Option<Self> {
        (number > 0).then_some(Self(number))
    }

    /// The number, from 1.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The one after it.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Serialize for Attempt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

impl<'de> Deserialize<'de> for Attempt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(u32::deserialize(deserializer)?).ok_or_else(|| de::Error::custom("an attempt counts from 1"))
    }
}

/// Why a branch or a request was refused. Lower case: Suture's own and neutral ([`code`]); upper case: a participant's.
///
/// 1 to 40 of A-Z, a-z, 0-9 and `_`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(Box<str>);

impl FromStr for Code {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let valid = (1..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if valid {
            return Ok(Self(text.into()));
        }
        Err(InvalidName { what: "reason code", rule: "1 to 40 of A-Z, a-z, 0-9 and _" })
    }
}

/// Suture's own reason codes: said by coordinator, participants and ingest alike, and known to no one's business.
pub mod code {
    /// Coordinator: the participant had not voted at the deadline.
    pub const EXPIRED: &str = "expired";
    /// Coordinator: somebody asked to cancel before the participant had voted.
    pub const CANCELLED: &str = "cancelled";
    /// Coordinator: a named participant has no topics.
    pub const UNKNOWN_PARTICIPANT: &str = "unknown_participant";
    /// Coordinator: the broker refused the prepare (size, rights).
    pub const PREPARE_REFUSED: &str = "prepare_refused";
    /// Participant: the business key is committed here already; `duplicate_of` says as which transaction.
    pub const DUPLICATE: &str = "duplicate";
    /// Participant: the business key is in doubt here as another transaction.
    pub const IN_PROGRESS: &str = "in_progress";
    /// Participant: this attempt, or a later one, was aborted here.
    pub const ABORTED_BEFORE: &str = "aborted_before";
    /// Participant: the business key lives here with another content.
    pub const CONFLICT: &str = "conflict";
    /// Participant: the decision to abort came first.
    pub const ABORTED: &str = "aborted";
    /// Participant: this transaction was finished here so long ago that its row is gone.
    pub const FINISHED_BEFORE: &str = "finished_before";
    /// Participant: the prepare cannot be read, or names no operation known here.
    pub const UNREADABLE: &str = "unreadable";
    /// Participant: the database is busy (lock, deadlock, slots used up); the same may succeed later.
    pub const BUSY: &str = "busy";
    /// Participant: a statement failed.
    pub const STATEMENT_FAILED: &str = "statement_failed";
    /// Participant: its database was put back to a backup before it had voted.
    pub const RESTORED: &str = "restored";

    /// Whether the same request may succeed when it is asked for again, with nothing else changed.
    pub fn is_retryable(code: &str) -> bool {
        matches!(code, EXPIRED | IN_PROGRESS | BUSY | RESTORED)
    }

    /// Whether the code says that the business key was met before, and nothing about the business itself.
    pub fn is_repeat(code: &str) -> bool {
        matches!(code, DUPLICATE | IN_PROGRESS | ABORTED_BEFORE | CONFLICT)
    }
}

/// The name of a hash key, so that the key can rotate: 1 to 8 of a-z and 0-9.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..end]).expect("key ids are ASCII")
    }
}

impl FromStr for KeyId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let valid = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !valid {
            return Err(InvalidName { what: "key id", rule: "1 to 8 of a-z and 0-9" });
        }
        let mut id = [0; 8];
        id[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(id))
    }
}

/// What a request says, in 16 bytes of HMAC-SHA-256, with the id of the key: `k1:` and 32 hex digits.
///
/// It covers business key and branches, not source, attempt or deadline: a redelivered event has the same hash. Keyed,
/// because small known data could be guessed back from a plain one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestHash {
    /// Which hash key made it. Hashes of different keys cannot be compared.
    pub key_id: KeyId,
    /// The first 16 bytes of the HMAC.
    pub mac: [u8; 16],
}

impl RequestHash {
    /// The first 16 hex digits, as they stand in global transaction ids.
    pub fn short(&self) -> String {
        self.mac[..8].iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl FromStr for RequestHash {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = InvalidName { what: "hash", rule: "<key id>:<32 lower-case hex digits>" };
        let (key_id, hex) = text.split_once(':').ok_or_else(|| invalid.clone())?;
        if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(invalid);
        }
        let mut mac = [0; 16];
        for (i, byte) in mac.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|_| invalid.clone())?;
        }
        Ok(Self { key_id: key_id.parse().map_err(|_| invalid)?, mac })
    }
}

/// A record's place: `topic/partition/offset`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The topic's full name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

impl FromStr for Origin {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = InvalidName { what: "record's place", rule: "topic/partition/offset" };
        let mut parts = text.rsplitn(3, '/');
        let (Some(offset), Some(partition), Some(topic)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(invalid);
        };
        Ok(Self {
            topic: topic.to_string(),
            partition: partition.parse().map_err(|_| invalid.clone())?,
            offset: offset.parse().map_err(|_| invalid)?,
        })
    }
}

// How each name is written. `Debug` is `Display`: these stand in logs, where quotes and type names only hide them.

impl fmt::Display for LogLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.log, self.shard, self.offset)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for RequestHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:032x}", self.key_id, u128::from_be_bytes(self.mac))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// What the names that are plain text share.
macro_rules! text_name {
    ($($name:ident),*) => {$(
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

text_name!(Participant, Deployment, BusinessKey, OrderKey, Code);

/// What all names share: `Debug` as `Display`, and JSON as the text that `Display` writes and `FromStr` reads.
macro_rules! written_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(FromText(PhantomData))
            }
        }
    )*};
}

written_as_text!(LogLetters, Txid, Participant, Deployment, BusinessKey, OrderKey, Code, KeyId, RequestHash);

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads a name without copying the text first.
struct FromText<T>(PhantomData<T>);

impl<T: FromStr<Err = InvalidName>> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name as text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_txid_has_one_spelling() {
        let txid: Txid = "k3f9q-3-1042".parse().unwrap();
        assert_eq!(txid.to_string(), "k3f9q-3-1042");
        for wrong in [
            "",
            "k3f9q",
            "k3f9q-3",
            "k3f9q-3-",
            "k3f9q-03-1",
            "k3f9q-3-01",
            "k3f9q-3-+1",
            "K3F7Q-3-1",
            "k3fuq-3-1",
            "k3f9q-3-1-1",
            "k3f9q-65536-1",
            "k3f9q-3-9223372036854775808",
            "k3f9q-3-1'; drop table ledger; --",
        ] {
            assert!(wrong.parse::<Txid>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn log_letters_differ_by_topic_id_and_are_stable() {
        let one = LogLetters::from_topic_id(&[1; 16]);
        assert_eq!(one, LogLetters::from_topic_id(&[1; 16]));
        assert_ne!(one, LogLetters::from_topic_id(&[2; 16]));
        assert_eq!(one, one.as_str().parse().unwrap());
        assert_eq!(LogLetters::from_random([0xff; 4]).as_str(), "zzzzz");
        assert_eq!(
            LogLetters::from_random([0x00, 0x44, 0x32, 0x00]).as_str(),
            "01234",
            "five bits a letter, the first on top"
        );
    }

    #[test]
    fn a_shard_is_the_number_of_its_partition() {
        for number in [0, 1, 7, u16::MAX] {
            assert_eq!(Shard(number).partition(), i32::from(number));
            assert_eq!(Shard::of_partition(i32::from(number)), Some(Shard(number)));
            assert_eq!(format!("{:?}", Shard(number)), number.to_string());
        }
        assert_eq!((Shard::of_partition(-1), Shard::of_partition(65_536)), (None, None));
    }

    #[test]
    fn attempts_count_from_one() {
        assert_eq!((Attempt::new(0), Attempt::new(1)), (None, Some(Attempt::FIRST)));
        assert_eq!((Attempt::FIRST.number(), Attempt::FIRST.next().next().number()), (1, 3));
        assert_eq!((Attempt::LAST.number(), Attempt::LAST.next()), (u32::MAX, Attempt::LAST));
    }

    #[test]
    fn codes_say_whether_to_ask_again_and_whether_a_key_was_met_before() {
        for (text, retryable, repeat) in [
            (code::EXPIRED, true, false),
            (code::IN_PROGRESS, true, true),
            (code::BUSY, true, false),
            (code::DUPLICATE, false, true),
            (code::ABORTED_BEFORE, false, true),
            (code::CONFLICT, false, true),
            (code::CANCELLED, false, false),
            ("NOT_PRIVILEGED", false, false),
        ] {
            assert_eq!((code::is_retryable(text), code::is_repeat(text)), (retryable, repeat), "{text}");
        }
    }

    #[test]
    fn a_name_of_another_kind_is_refused_with_what_was_wanted() {
        let error = serde_json::from_str::<Txid>("17").unwrap_err().to_string();
        assert!(error.contains("expected a name as text"), "{error}");
    }

    #[test]
    fn an_origin_is_topic_partition_and_offset() {
        let origin = Origin { topic: "his.events".to_string(), partition: 3, offset: 1042 };
        assert_eq!(origin.to_string(), "his.events/3/1042");
    }

    #[test]
    fn names_refuse_what_could_break_out_of_a_literal() {
        for wrong in ["", "A", "a b", "a'b", "a.b", "a_b", "-a", "9a", "a\u{e9}", "abcdefghijklmnopqrstuvwxy"] {
            assert!(wrong.parse::<Participant>().is_err(), "{wrong}");
        }
        assert!("surgeon-log".parse::<Participant>().is_ok());
        assert!("a b".parse::<BusinessKey>().is_err());
        assert!("NOT PRIVILEGED".parse::<Code>().is_err());
        for wrong in ["", "K1", "k-1", "k12345678"] {
            assert!(wrong.parse::<KeyId>().is_err(), "{wrong}");
        }
        assert!("k1:0123456789abcdef0123456789abcdeF".parse::<RequestHash>().is_err());
        let hash: RequestHash = "k1:0123456789abcdef0123456789abcdef".parse().unwrap();
        assert_eq!(hash.to_string(), "k1:0123456789abcdef0123456789abcdef");
        assert_eq!(hash.short(), "0123456789abcdef");
    }
}
