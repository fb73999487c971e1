//! What a participant gets: an allow-list of fields, each made by one of a dozen makers.
//!
//! A maker gives one JSON value, or a fault. `copy` takes texts, numbers and truth values only: whoever copies an object
//! copies what somebody adds to it later. Fields are written sorted by name, so the same event gives the same bytes.
//!
//! Left out: arithmetic beyond one sum, text editing, look-ups in tables.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use suture_contract::keys::IdentityKey;
use time::Date;
use time::macros::format_description;

use super::bundle::{Resource, Wanted};
use super::money::{Money, number_of};
use super::reason;
use super::scope::{Fault, Hit, Paths, Scope, instant, scalar_text};

/// Over how many numbers a bucket is spread.
pub(super) const BUCKETS: u32 = 20;

/// One field of an object.
#[derive(Debug)]
pub(super) struct Field {
    pub name: String,
    pub maker: Maker,
    pub absent: Absent,
}

/// What becomes of a field that the event does not have.
#[derive(Debug)]
pub(super) enum Absent {
    /// The event is rejected.
    Refuse,
    /// The field is left out.
    Omit,
    /// This instead.
    Default(Value),
}

/// How a value is made.
#[derive(Debug)]
pub(super) enum Maker {
    /// A scalar, digits and all.
    Copy(Paths),
    /// Always the same.
    Constant(Value),
    /// `{system, value}` of what a reference means.
    Identifier(Paths, Wanted),
    /// `{system, code}` of the first coding, or of the first one that is in a code list.
    Coding(Paths, Option<usize>),
    /// An item for each resource of a name.
    List(usize, Vec<Field>),
    /// Fields.
    Object(Vec<Field>),
    /// `{value, currency}`, not negative.
    Amount(Paths),
    /// The exact sum of all hits, in the currency of another amount; no hits are 0.
    Sum(Paths, Paths),
    /// Keyed hash of the parts in a domain.
    Pseudonym(String, Vec<Maker>),
    /// A number from 0 to 19 that anybody can compute again: SHA-256 of salt and parts, joined with `|`; its first four
    /// bytes, big endian, modulo 20.
    Bucket(String, Vec<Maker>),
    /// The earliest of all hits of all paths.
    Earliest(Paths),
    /// The latest of all hits of all paths.
    Latest(Paths),
    /// A time with its zone, as in the source.
    Time(Paths),
    /// The day of a day or a time, in its own zone: YYYY-MM-DD.
    Date(Paths),
}

/// A fault, and the field that could not be made (`surgeon.value`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldFault {
    pub field: String,
    pub fault: Fault,
}

/// Makes values of one event.
pub(super) struct Projector<'a, 's> {
    pub scope: &'s Scope<'a>,
    pub identity: &'s IdentityKey,
}

impl<'a> Projector<'a, '_> {
    /// All fields of an object.
    pub fn object(&self, fields: &[Field], here: Resource<'a>) -> Result<Value, FieldFault> {
        let mut object = Map::new();
        for field in fields {
            if let Some(value) = self.field(field, here)? {
                object.insert(field.name.clone(), value);
            }
        }
        Ok(Value::Object(object))
    }

    fn field(&self, field: &Field, here: Resource<'a>) -> Result<Option<Value>, FieldFault> {
        let fault = match self.make(&field.maker, here) {
            Ok(value) => return Ok(Some(value)),
            Err(inner) => inner,
        };
        let is_absent = matches!(fault.fault.code, reason::MISSING | reason::UNRESOLVED_REFERENCE);
        match &field.absent {
            Absent::Omit if is_absent => Ok(None),
            Absent::Default(value) if is_absent => Ok(Some(value.clone())),
            Absent::Refuse | Absent::Omit | Absent::Default(_) => Err(fault.inside(&field.name)),
        }
    }

    /// One value. The field of the fault is relative to it.
    pub fn make(&self, maker: &Maker, here: Resource<'a>) -> Result<Value, FieldFault> {
        Ok(match maker {
            Maker::List(resource, item) => {
                let mut items = Vec::new();
                for &owner in self.scope.resources(*resource)? {
                    items.push(self.object(item, owner)?);
                }
                Value::Array(items)
            }
            Maker::Object(fields) => self.object(fields, here)?,
            Maker::Constant(value) => value.clone(),
            Maker::Copy(paths) => self.copy(paths, here)?,
            Maker::Identifier(paths, wanted) => self.identifier(paths, wanted, here)?,
            Maker::Coding(paths, list) => self.coding(paths, *list, here)?,
            Maker::Amount(paths) => self.amount(paths, here)?,
            Maker::Sum(paths, like) => self.sum(paths, like, here)?,
            Maker::Pseudonym(domain, parts) => {
                let parts = self.parts(parts, here)?;
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                self.identity.pseudonym(domain, &parts).into()
            }
            Maker::Bucket(salt, parts) => bucket(salt, &self.parts(parts, here)?).into(),
            Maker::Earliest(paths) => self.times(paths, here)?.0.into(),
            Maker::Latest(paths) => self.times(paths, here)?.1.into(),
            Maker::Time(paths) => {
                let text = self.text(paths, here)?;
                instant(&text).ok_or_else(|| paths.fault(reason::BAD_TIME))?;
                text.into()
            }
            Maker::Date(paths) => day(&self.text(paths, here)?).ok_or_else(|| paths.fault(reason::BAD_TIME))?.into(),
        })
    }

    /// The texts of several makers, for a keyed hash: of an object its values, in the order of its names.
    pub fn parts(&self, makers: &[Maker], here: Resource<'a>) -> Result<Vec<String>, FieldFault> {
        let mut parts = Vec::new();
        for maker in makers {
            match self.make(maker, here)? {
                Value::Object(object) => {
                    let mut fields: Vec<_> = object.iter().collect();
                    fields.sort_by_key(|(name, _)| *name);
                    parts.extend(fields.into_iter().filter_map(|(_, value)| scalar_text(value)));
                }
                value => parts.extend(scalar_text(&value)),
            }
        }
        Ok(parts)
    }

    fn copy(&self, paths: &Paths, here: Resource<'a>) -> Result<Value, Fault> {
        match self.first(paths, here)? {
            Value::Object(_) | Value::Array(_) => Err(paths.fault(reason::NOT_A_VALUE)),
            scalar => Ok(scalar.clone()),
        }
    }

    /// The text of a scalar.
    pub fn text(&self, paths: &Paths, here: Resource<'a>) -> Result<String, Fault> {
        scalar_text(self.first(paths, here)?).ok_or_else(|| paths.fault(reason::NOT_A_VALUE))
    }

    fn first(&self, paths: &Paths, here: Resource<'a>) -> Result<&'a Value, Fault> {
        let hits = self.scope.first_hits(paths, here)?;
        hits.first().map(|hit| hit.node).ok_or_else(|| paths.fault(reason::MISSING))
    }

    fn identifier(&self, paths: &Paths, wanted: &Wanted, here: Resource<'a>) -> Result<Value, Fault> {
        let identifier = |hit: Hit<'a>| self.scope.bundle().identifier(hit.node, hit.owner, wanted);
        let found = self.scope.first_reference(paths, here, identifier)?;
        Ok(object([("system", &*found.system), ("value", &*found.value)]))
    }

    fn coding(&self, paths: &Paths, list: Option<usize>, here: Resource<'a>) -> Result<Value, Fault> {
        let hits = self.scope.first_hits(paths, here)?;
        let chosen = hits.iter().find(|hit| list.is_none_or(|list| self.scope.code_list(list).has(hit.node)));
        let part = |name| chosen.and_then(|hit| hit.node.get(name)).and_then(Value::as_str);
        match (part("system"), part("code")) {
            (Some(system), Some(code)) => Ok(object([("code", code), ("system", system)])),
            _ => Err(paths.fault(reason::MISSING)),
        }
    }

    fn amount(&self, paths: &Paths, here: Resource<'a>) -> Result<Value, Fault> {
        let money = Money::read(self.first(paths, here)?).map_err(|code| paths.fault(code))?;
        if money.value.is_sign_negative() && !money.value.is_zero() {
            return Err(paths.fault(reason::BAD_AMOUNT));
        }
        let mut object = Map::new();
        object.insert("currency".into(), money.currency.into());
        object.insert("value".into(), Value::Number(money.digits));
        Ok(Value::Object(object))
    }

    fn sum(&self, paths: &Paths, like: &Paths, here: Resource<'a>) -> Result<Value, Fault> {
        let currency = Money::read(self.first(like, here)?).map_err(|code| like.fault(code))?.currency;
        let hits = match self.scope.first_hits(paths, here) {
            Err(fault) if fault.code == reason::MISSING => Vec::new(),
            hits => hits?,
        };
        let mut sum = rust_decimal::Decimal::ZERO;
        for hit in hits {
            let money = Money::read(hit.node).map_err(|code| paths.fault(code))?;
            if money.currency != currency {
                return Err(paths.fault(reason::CURRENCY_MISMATCH));
            }
            sum = sum.checked_add(money.value).ok_or_else(|| paths.fault(reason::BAD_AMOUNT))?;
        }
        Ok(Value::Number(number_of(sum)))
    }

    /// The earliest and the latest of all hits of all paths.
    fn times(&self, paths: &Paths, here: Resource<'a>) -> Result<(&'a str, &'a str), Fault> {
        let mut times = Vec::new();
        for path in &paths.0 {
            for hit in self.scope.hits(path, here)? {
                let text = hit.node.as_str();
                let time = text.and_then(|text| Some((instant(text)?, text)));
                times.push(time.ok_or_else(|| Fault { code: reason::BAD_TIME, at: path.text.clone() })?);
            }
        }
        // Equal times are told apart by their text, so that the result does not hang on the order of entries.
        match (times.iter().min(), times.iter().max()) {
            (Some(earliest), Some(latest)) => Ok((earliest.1, latest.1)),
            _ => Err(paths.fault(reason::MISSING)),
        }
    }
}

impl FieldFault {
    fn inside(mut self, name: &str) -> Self {
        let separator = if self.field.is_empty() { "" } else { "." };
        self.field = format!("{name}{separator}{}", self.field);
        self
    }
}

impl From<Fault> for FieldFault {
    fn from(fault: Fault) -> Self {
        Self { field: String::new(), fault }
    }
}

fn object<'v>(fields: impl IntoIterator<Item = (&'v str, &'v str)>) -> Value {
    Value::Object(fields.into_iter().map(|(name, value)| (name.to_string(), Value::from(value))).collect())
}

fn bucket(salt: &str, parts: &[String]) -> u32 {
    let digest = Sha256::digest(format!("{salt}|{}", parts.join("|")));
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % BUCKETS
}

fn day(text: &str) -> Option<String> {
    let is_time = text.len() > 10;
    if is_time && instant(text).is_none() {
        return None;
    }
    let day = text.get(..10)?;
    Date::parse(day, format_description!("[year]-[month]-[day]")).ok()?;
    Some(day.to_string())
}
