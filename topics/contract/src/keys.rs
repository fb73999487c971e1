//! Keyed hashes. Two keys, with different lives:
//!
//! - the [`IdentityKey`] turns numbers of cases and patients into business keys, order keys and pseudonyms. It is never
//!   rotated: another key would make another thing of the same case. Its fingerprint stands in every ledger.
//! - the [`HashKey`] makes the hash of a request. It rotates; its id stands in front of each hash.
//!
//! Both are HMAC-SHA-256: a plain hash of a medical record number can be guessed back.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

use crate::ids::{BusinessKey, InvalidName, KeyId, RequestHash};
use crate::messages::Branch;

/// Least length of a secret, in bytes.
pub const MIN_SECRET_BYTES: usize = 16;

/// Makes pseudonyms. Does not show its secret in `Debug`.
#[derive(Clone)]
pub struct IdentityKey(Hmac<Sha256>);

impl IdentityKey {
    /// Takes at least [`MIN_SECRET_BYTES`] of secret.
    pub fn new(secret: &[u8]) -> Result<Self, InvalidName> {
        Ok(Self(keyed(secret, "identity key")?))
    }

    /// 32 hex digits for a list of texts. `domain` keeps equal numbers of different kinds apart (a case is no member).
    pub fn pseudonym(&self, domain: &str, parts: &[&str]) -> String {
        let mut mac = self.0.clone();
        update_with_length(&mut mac, domain.as_bytes());
        for part in parts {
            update_with_length(&mut mac, part.as_bytes());
        }
        hex(&mac.finalize().into_bytes()[..16])
    }

    /// 16 hex digits that tell identity keys apart and say nothing about them.
    pub fn fingerprint(&self) -> String {
        self.pseudonym("suture identity key fingerprint", &[])[..16].to_string()
    }
}

impl std::fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentityKey({})", self.fingerprint())
    }
}

/// Makes request hashes. Does not show its secret in `Debug`.
#[derive(Clone)]
pub struct HashKey {
    id: KeyId,
    mac: Hmac<Sha256>,
}

impl HashKey {
    /// Takes at least [`MIN_SECRET_BYTES`] of secret.
    pub fn new(id: KeyId, secret: &[u8]) -> Result<Self, InvalidName> {
        Ok(Self { id, mac: keyed(secret, "hash key")? })
    }

    /// The hash of business key and branches. Object keys are sorted and numbers keep their text, so that it does not
    /// hang on how a JSON library orders or prints.
    ///
    /// # Errors
    /// A payload that is no JSON, or nested deeper than 128.
    pub fn request_hash(
        &self,
        business_key: &BusinessKey,
        branches: &[Branch],
    ) -> Result<RequestHash, serde_json::Error> {
        let mut mac = self.mac.clone();
        update_with_length(&mut mac, business_key.as_str().as_bytes());
        for branch in branches {
            let payload: Value = serde_json::from_str(branch.payload.get())?;
            let mut canonical = String::new();
            write_canonical(&payload, &mut canonical);
            for part in [branch.participant.as_str(), &branch.operation, &canonical] {
                update_with_length(&mut mac, part.as_bytes());
            }
        }
        let digest = mac.finalize().into_bytes();
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        Ok(RequestHash { key_id: self.id, mac: first })
    }
}

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HashKey({})", self.id)
    }
}

fn keyed(secret: &[u8], what: &'static str) -> Result<Hmac<Sha256>, InvalidName> {
    if secret.len() < MIN_SECRET_BYTES {
        return Err(InvalidName { what, rule: "at least 16 bytes of secret" });
    }
    Ok(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
}

/// Length first, so that ("ab", "c") and ("a", "bc") differ.
fn update_with_length(mac: &mut Hmac<Sha256>, part: &[u8]) {
    mac.update(&(part.len() as u64).to_be_bytes());
    mac.update(part);
}

/// JSON with sorted object keys and the number text of the source.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (i, (name, field)) in fields.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(name.clone()).to_string());
                out.push(':');
                write_canonical(field, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => out.push_str(&value.to_string()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;

    fn branch(payload: &str) -> Branch {
        Branch {
            participant: "insurer".parse().unwrap(),
            operation: "reserve_claim".to_string(),
            payload: RawValue::from_string(payload.to_string()).unwrap(),
        }
    }

    #[test]
    fn the_hash_hangs_on_content_and_not_on_spelling() {
        let key = HashKey::new("k1".parse().unwrap(), b"0123456789abcdef").unwrap();
        let business_key = "surgery:1".parse().unwrap();
        let hash = |payload| key.request_hash(&business_key, &[branch(payload)]).unwrap().to_string();
        assert_eq!(hash(r#"{"a":1,"b":{"c":15402.80,"d":"x"}}"#), hash(r#"{ "b" : {"d":"x", "c":15402.80}, "a":1 }"#));
        assert_ne!(hash(r#"{"a":15402.80}"#), hash(r#"{"a":15402.8}"#), "digits are kept");
        assert_ne!(hash("[1,2]"), hash("[12]"));
        assert_ne!(hash(r#"{"a":1,"b":2}"#), hash(r#"{"a":"1,\"b\":2"}"#));
        // Another value here makes every redelivered event a conflict with what stands in the ledgers.
        assert_eq!(hash(r#"{"b":[1,null,"x"],"a":15402.80}"#), "k1:326efb8b2f32246d460365427f6940ba");
        assert_eq!(format!("{key:?}"), "HashKey(k1)");
    }

    #[test]
    fn pseudonyms_keep_domains_and_parts_apart() {
        let key = IdentityKey::new(b"0123456789abcdef").unwrap();
        assert_eq!(key.pseudonym("case", &["1", "2"]), key.pseudonym("case", &["1", "2"]));
        assert_ne!(key.pseudonym("case", &["1", "2"]), key.pseudonym("member", &["1", "2"]));
        assert_ne!(key.pseudonym("case", &["12", ""]), key.pseudonym("case", &["1", "2"]));
        assert!(IdentityKey::new(b"short").is_err());
        assert_eq!(key.fingerprint(), "5e39b61942c8b744");
        assert_eq!(format!("{key:?}"), "IdentityKey(5e39b61942c8b744)");
    }
}
