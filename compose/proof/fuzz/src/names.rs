//! Names: what parses is written again byte by byte, what does not is told by a fixed text.
//!
//! The input is one text, read as each of them; its lines are the headers of a remark; all of its bytes are a key.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use suture_contract::ids::{
    BusinessKey, Code, Deployment, InvalidName, KeyId, LogLetters, OrderKey, Origin, Participant, RequestHash, Txid,
};
use suture_contract::keys::{HashKey, IdentityKey};
use suture_contract::partitioner::shard_of;
use suture_contract::remark::Remark;
use suture_contract::topic_map::Topic;
use suture_participants_core::gid::Gid;

use crate::assert_is_silent;
use crate::met::Met;

/// Reads the input as each name.
pub fn check(input: &[u8]) -> Met {
    let mut met = Met::default();
    for partitions in [1, 2, 12, u16::MAX] {
        let shard = shard_of(input, partitions);
        assert!(shard.0 < partitions);
        assert_eq!(shard, shard_of(&[input, b""].concat(), partitions));
    }
    secrets(input, &mut met);
    remark(input, &mut met);
    let Ok(text) = std::str::from_utf8(input) else { return met };
    both::<LogLetters>(text, &mut met);
    both::<Txid>(text, &mut met);
    both::<Participant>(text, &mut met);
    both::<Deployment>(text, &mut met);
    both::<BusinessKey>(text, &mut met);
    both::<OrderKey>(text, &mut met);
    both::<Code>(text, &mut met);
    both::<KeyId>(text, &mut met);
    both::<RequestHash>(text, &mut met);
    match text.parse::<Origin>() {
        Ok(origin) => assert_eq!(origin.to_string().parse(), Ok(origin)),
        Err(invalid) => refused(&invalid, &mut met),
    }
    if let Some(gid) = one::<Gid>(text, &mut met) {
        assert!(
            gid.to_string().len() < 100 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'/'))
        );
    }
    let deployment: Deployment = "suture".parse().expect("a valid name");
    if let Some(topic) = Topic::parse(text, &deployment) {
        assert_eq!(topic.name(&deployment), text);
    }
    met
}

/// As text, and as JSON.
fn both<T: FromStr<Err = InvalidName> + Display + DeserializeOwned>(text: &str, met: &mut Met) {
    let read = one::<T>(text, met);
    let json = serde_json::to_string(text).expect("a text is JSON");
    assert_eq!(serde_json::from_str::<T>(&json).is_ok(), read.is_some());
}

/// What is read is written as it was: each name has one spelling.
fn one<T: FromStr<Err = InvalidName> + Display>(text: &str, met: &mut Met) -> Option<T> {
    match text.parse::<T>() {
        Ok(name) => {
            assert_eq!(name.to_string(), text);
            Some(name)
        }
        Err(invalid) => {
            refused(&invalid, met);
            None
        }
    }
}

fn refused(invalid: &InvalidName, met: &mut Met) {
    assert_is_silent(&invalid.to_string());
    met.text(invalid.rule);
}

fn secrets(input: &[u8], met: &mut Met) {
    match (IdentityKey::new(input), HashKey::new("k1".parse().expect("a valid name"), input)) {
        (Ok(identity), Ok(_)) => assert_eq!(identity.fingerprint().len(), 16),
        (Err(invalid), Err(_)) => refused(&invalid, met),
        _ => panic!("a secret is long enough for one key and not for the other"),
    }
}

fn remark(input: &[u8], met: &mut Met) {
    let mut lines = input.splitn(3, |b| *b == b'\n');
    let values = [lines.next(), lines.next(), lines.next()];
    if let [Some(_), Some(who), Some(because)] = values.map(|value| value.and_then(|v| std::str::from_utf8(v).ok())) {
        let txid = "k3f9q-3-1042".parse().expect("a valid name");
        if let Err(invalid) = Remark::new(txid, who, because) {
            refused(&invalid, met);
        }
    }
    if let Some(remark) = Remark::of_headers(values) {
        let headers = remark.headers();
        assert!(headers.iter().all(|(_, value)| !value.contains(char::is_control)));
        assert_eq!(Remark::of_headers(headers.each_ref().map(|(_, value)| Some(value.as_bytes()))), Some(remark));
    }
}
