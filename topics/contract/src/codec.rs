//! One-line JSON to messages and back.
//!
//! Every value is an object with `type` and `v` beside the message's own fields:
//!
//! ```json
//! {"type":"vote","v":1,"txid":"k3f9q-3-1042","participant":"insurer","vote":"yes","hash":"k1:...","by":"participant"}
//! ```
//!
//! Reading is strict: an unknown, missing or doubled field, another type, or anything behind the object makes the
//! record [`Unreadable`]. There are two kinds of that, and a reader must tell them apart:
//!
//! - [`Unreadable::Newer`]: a later version of Suture wrote it. The reader stops, for it cannot know what it would miss.
//! - everything else is data: a request is rejected, a vote is void, a prepare is answered with no.
//!
//! No error here holds any of the record's content, which may be a patient's.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, forward_to_deserialize_any};

use crate::messages::{Cancel, Decision, Incident, Outcome, Prepare, Rejection, Request, Vote};

/// The version that this build writes, and the newest that it reads.
pub const VERSION: u64 = 1;

/// A protocol message: a struct and its `type`.
pub trait Message: Serialize + DeserializeOwned {
    /// The value of `type`.
    const TYPE: &'static str;
}

impl Message for Request {
    const TYPE: &'static str = "request";
}
impl Message for Cancel {
    const TYPE: &'static str = "cancel";
}
impl Message for Prepare {
    const TYPE: &'static str = "prepare";
}
impl Message for Vote {
    const TYPE: &'static str = "vote";
}
impl Message for Decision {
    const TYPE: &'static str = "decision";
}
impl Message for Outcome {
    const TYPE: &'static str = "outcome";
}
impl Message for Rejection {
    const TYPE: &'static str = "rejection";
}
impl Message for Incident {
    const TYPE: &'static str = "incident";
}

/// What may stand in the requests topic.
#[derive(Debug, Clone)]
#[expect(missing_docs)]
pub enum RequestsRecord {
    Request(Request),
    Cancel(Cancel),
}

/// What may stand in the outcomes topic.
#[derive(Debug, Clone)]
#[expect(missing_docs)]
pub enum OutcomesRecord {
    Outcome(Outcome),
    Incident(Box<Incident>),
}

/// Why a record is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A later version wrote it: the reader stops.
    #[error("version {v} is newer than this build, which reads up to version {VERSION}")]
    Newer {
        /// The record's version.
        v: u64,
    },
    /// No value, or an empty one.
    #[error("the record is empty")]
    Empty,
    /// A message, but not one that belongs here.
    #[error("the record is of another type than belongs here")]
    WrongType,
    /// Not JSON, cut off, or nested too deep.
    #[error("not valid JSON (column {column})")]
    NotJson {
        /// Where reading ended, in bytes from 1.
        column: usize,
    },
    /// JSON, but not the fields of this message.
    #[error("not the fields of this message (column {column})")]
    WrongFields {
        /// Where reading ended, in bytes from 1.
        column: usize,
    },
}

impl Unreadable {
    /// The reason code of a rejection.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Newer { .. } => "newer_version",
            Self::Empty => "empty",
            Self::WrongType => "wrong_type",
            Self::NotJson { .. } => "not_json",
            Self::WrongFields { .. } => "wrong_fields",
        }
    }
}

/// A message as one line of JSON, `type` and `v` first.
pub fn encode<M: Message>(message: &M) -> Vec<u8> {
    let mut line = format!(r#"{{"type":"{}","v":{VERSION},"#, M::TYPE).into_bytes();
    let body_at = line.len();
    serde_json::to_writer(&mut line, message).expect("protocol messages are plain structs, which always serialise");
    // The body's own brace is the one that the envelope has opened already.
    line.remove(body_at);
    // A payload is copied as its author wrote it. In valid JSON a raw line break can only be white space.
    for byte in &mut line {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    line
}

/// Reads one message of a known type.
pub fn decode<M: Message>(value: &[u8]) -> Result<M, Unreadable> {
    if value.is_empty() {
        return Err(Unreadable::Empty);
    }
    let mut reader = serde_json::Deserializer::from_slice(value);
    let read = M::deserialize(Enveloped { inner: &mut reader, expected: M::TYPE })
        .and_then(|message| reader.end().map(|()| message));
    read.map_err(|error| explain(value, M::TYPE, &error))
}

/// Reads what may stand in the requests topic.
pub fn decode_requests_record(value: &[u8]) -> Result<RequestsRecord, Unreadable> {
    match serde_json::from_slice::<Envelope>(value) {
        Ok(envelope) if envelope.kind.as_deref() == Some(Cancel::TYPE) => decode(value).map(RequestsRecord::Cancel),
        _ => decode(value).map(RequestsRecord::Request),
    }
}

/// Reads what may stand in the outcomes topic.
pub fn decode_outcomes_record(value: &[u8]) -> Result<OutcomesRecord, Unreadable> {
    match serde_json::from_slice::<Envelope>(value) {
        Ok(envelope) if envelope.kind.as_deref() == Some(Incident::TYPE) => {
            decode(value).map(|incident| OutcomesRecord::Incident(Box::new(incident)))
        }
        _ => decode(value).map(OutcomesRecord::Outcome),
    }
}

/// Why a strict reading failed. Only here, off the fast path, the envelope is read by itself.
fn explain(value: &[u8], expected: &str, error: &serde_json::Error) -> Unreadable {
    match serde_json::from_slice::<Envelope>(value) {
        Ok(Envelope { v: Some(v), .. }) if v > VERSION => Unreadable::Newer { v },
        Ok(Envelope { kind: Some(kind), v: Some(VERSION) }) if kind != expected => Unreadable::WrongType,
        _ if error.is_data() => Unreadable::WrongFields { column: error.column() },
        _ => Unreadable::NotJson { column: error.column() },
    }
}

/// `type` and `v` alone; whatever else stands in the object is passed over, at any depth.
#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: Option<String>,
    v: Option<u64>,
}

/// Gives a message's struct its own fields and keeps `type` and `v` for itself. (Serde's own ways to do that, `flatten`
/// and internally tagged enums, buffer the object and lose exact decimals and raw payloads.)
struct Enveloped<D> {
    inner: D,
    expected: &'static str,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Enveloped<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_map(Fields { visitor, expected: self.expected })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// Visits the whole object.
struct Fields<V> {
    visitor: V,
    expected: &'static str,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Fields<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with type and v")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let mut own = OwnFields { map, expected: self.expected, type_seen: false, v_seen: false };
        let message = self.visitor.visit_map(&mut own)?;
        if own.type_seen && own.v_seen { Ok(message) } else { Err(A::Error::custom("type or v is missing")) }
    }
}

/// The object without `type` and `v`, which are checked in passing.
struct OwnFields<A> {
    map: A,
    expected: &'static str,
    type_seen: bool,
    v_seen: bool,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for &mut OwnFields<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        loop {
            let Some(name) = self.map.next_key_seed(FieldName)? else { return Ok(None) };
            match &*name {
                "type" if !self.type_seen => {
                    self.type_seen = true;
                    if self.map.next_value_seed(FieldName)? != self.expected {
                        return Err(A::Error::custom("another type"));
                    }
                }
                "v" if !self.v_seen => {
                    self.v_seen = true;
                    if self.map.next_value::<u64>()? != VERSION {
                        return Err(A::Error::custom("another version"));
                    }
                }
                "type" | "v" => return Err(A::Error::custom("type or v twice")),
                _ => return seed.deserialize((&*name).into_deserializer()).map(Some),
            }
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// A short text that is borrowed from the input where it has no escapes.
struct FieldName;

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = std::borrow::Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for FieldName {
    type Value = std::borrow::Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(text.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(text.to_string().into())
    }
}
