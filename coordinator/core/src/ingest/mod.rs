//! Ingest: an upstream event and declarative rules give a request, or a rejection, or nothing. Pure.
//!
//! - Events are FHIR R4 JSON, one a record. The first [rule](rules) that matches takes the event; if none does, the
//!   event is somebody else's and is ignored. So is a null value (a tombstone).
//! - A matching event becomes a [`Request`]: business key, order key, and for each branch an allow-list projection.
//!   The same event gives the same bytes; entries may come in any order.
//! - Whatever a used field lacks rejects the event, with a [`reason`] and the field; what no rule uses is not
//!   looked at. A rejection never holds content, and the partition moves on.
//! - The business key is `<rule>:<keyed hash of source and key>:<revision>`. So an amendment is a new thing, a redelivered
//!   event the same one, and whoever knows a case number and holds the identity key finds its transactions
//!   ([`Rules::business_key_prefixes`]).
//! - Amounts keep their digits.
//!
//! In reading order: this file (the way of one event), [`rules`] (the language), `scope` (paths and named
//! resources), `bundle` (references), `projection` (values), `money`, [`explain`] (the same way, told to people).
//!
//! A rejection names the field as `<what could not be made> <- <paths of the rule>`, for example `insurer.total <- claim
//! $.total`; `match` stands for a condition of the rule.
//!
//! Left out: HL7 v2, CDC rows, CloudEvents, single resources, FHIR `batch`, events in production that are marked as
//! tests, a key twice in one JSON object (the last counts).

pub mod explain;
pub mod reason;
pub mod rules;

mod bundle;
mod money;
mod projection;
mod scope;

use serde_json::Value;
use serde_json::value::to_raw_value;
use suture_contract::codec;
use suture_contract::ids::{Attempt, BusinessKey, Code, OrderKey, Origin};
use suture_contract::keys::{HashKey, IdentityKey};
use suture_contract::messages::{Branch, MAX_REQUEST_BYTES, Rejection, Request};

use bundle::{Bundle, Resource};
use projection::{FieldFault, Projector};
use rules::{Condition, Rule, Rules};
use scope::Scope;

/// A record of an upstream topic.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// The topic's full name.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// `None`: a null value.
    pub value: Option<&'a [u8]>,
}

/// The secrets that requests are made with.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Makes business keys, order keys and pseudonyms.
    pub identity: IdentityKey,
    /// Makes the request's hash.
    pub hash: HashKey,
}

/// What became of an event.
#[derive(Debug, Clone)]
pub enum Mapped {
    /// It asks for a transaction.
    Request {
        /// The key of the request's record; its shard is the partition.
        order_key: OrderKey,
        /// The first attempt.
        request: Box<Request>,
    },
    /// It cannot be mapped.
    Rejected(Rejection),
    /// It is no transaction, or none of these rules'.
    Ignored {
        /// Why not.
        why: Ignored,
    },
}

/// Why an event is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// A null value.
    Tombstone,
    /// No rule reads its topic.
    OtherTopic,
    /// No rule matches.
    NoMatch,
}

impl Ignored {
    /// A word for logs and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tombstone => "tombstone",
            Self::OtherTopic => "other_topic",
            Self::NoMatch => "no_match",
        }
    }
}

/// Maps one event. A function of its arguments alone.
pub fn map(rules: &Rules, keys: &Keys, event: &Event<'_>) -> Mapped {
    let origin = Origin { topic: event.topic.to_string(), partition: event.partition, offset: event.offset };
    match examine(rules, keys, Some(&origin), event.value).result {
        Ok(made) => Mapped::Request { order_key: made.order_key, request: Box::new(made.request) },
        Err(Refusal::Ignored(why)) => Mapped::Ignored { why },
        Err(Refusal::Rejected { code, field }) => {
            Mapped::Rejected(Rejection { origin, code: reason_code(code), field })
        }
    }
}

impl Rules {
    /// What the business keys of a case begin with, one for each rule: the case's number as the rule's key has it, in
    /// the rule's own source. What follows is the revision.
    pub fn business_key_prefixes(&self, identity: &IdentityKey, number: &str) -> Vec<String> {
        self.rules.iter().map(|rule| business_key_prefix(rule, identity, number)).collect()
    }
}

/// What happened to an event on its way, for [`map`] and [`explain`] alike.
struct Examination<'r> {
    /// The rules that were asked, in order; the last one may have matched.
    tried: Vec<Tried<'r>>,
    result: Result<Made, Refusal>,
}

/// A rule that was asked, and the condition that did not hold.
struct Tried<'r> {
    rule: &'r Rule,
    failed: Option<&'r Condition>,
}

/// A request and what it was made of.
struct Made {
    order_key: OrderKey,
    request: Request,
    key: KeyParts,
}

struct KeyParts {
    source: String,
    id: String,
    revision: String,
}

enum Refusal {
    Ignored(Ignored),
    Rejected { code: &'static str, field: Option<String> },
}

/// Without an origin (a file in a person's hand) the rules of all topics are asked.
fn examine<'r>(rules: &'r Rules, keys: &Keys, origin: Option<&Origin>, value: Option<&[u8]>) -> Examination<'r> {
    let mut tried = Vec::new();
    let result = walk(rules, keys, origin, value, &mut tried);
    Examination { tried, result }
}

/// The whole way: bytes, JSON, rule, request.
fn walk<'r>(
    rules: &'r Rules,
    keys: &Keys,
    origin: Option<&Origin>,
    value: Option<&[u8]>,
    tried: &mut Vec<Tried<'r>>,
) -> Result<Made, Refusal> {
    let value = value.ok_or(Refusal::Ignored(Ignored::Tombstone))?;
    let reads_topic = |rule: &&Rule| origin.is_none_or(|origin| rule.topics.contains(&origin.topic));
    let asked: Vec<&Rule> = rules.rules.iter().filter(reads_topic).collect();
    if asked.is_empty() {
        return Err(Refusal::Ignored(Ignored::OtherTopic));
    }
    let event = read(value).map_err(|code| rejected(code, None))?;
    let bundle = Bundle::of(&event);
    let scope = choose(&asked, rules, &event, &bundle, tried)?;
    make(&scope, keys, origin, &event)
}

/// Bytes to JSON; the error is a reason code.
fn read(value: &[u8]) -> Result<Value, &'static str> {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let value = value.strip_prefix(BYTE_ORDER_MARK).unwrap_or(value);
    if value.is_empty() {
        return Err(reason::EMPTY);
    }
    if value.len() > MAX_REQUEST_BYTES {
        return Err(reason::TOO_BIG);
    }
    let text = std::str::from_utf8(value).map_err(|_| reason::NOT_UTF8)?;
    // serde_json has no kind of its own for what is nested too deep.
    let is_too_deep = |error: &serde_json::Error| error.to_string().starts_with("recursion limit exceeded");
    serde_json::from_str(text).map_err(|error| if is_too_deep(&error) { reason::TOO_DEEP } else { reason::NOT_JSON })
}

/// The first rule whose conditions all hold.
fn choose<'a, 'r: 'a>(
    asked: &[&'r Rule],
    rules: &'r Rules,
    event: &'a Value,
    bundle: &'a Bundle<'a>,
    tried: &mut Vec<Tried<'r>>,
) -> Result<Scope<'a>, Refusal> {
    for &rule in asked {
        let scope = Scope::new(rule, &rules.codes, bundle);
        let mut failed = None;
        for condition in &rule.conditions {
            match scope.holds(condition, Resource::whole(event)) {
                Ok(true) => {}
                Ok(false) => {
                    failed = Some(condition);
                    break;
                }
                Err(fault) => {
                    tried.push(Tried { rule, failed: Some(condition) });
                    return Err(refusal("match", fault.into()));
                }
            }
        }
        tried.push(Tried { rule, failed });
        if failed.is_none() {
            return Ok(scope);
        }
    }
    Err(Refusal::Ignored(Ignored::NoMatch))
}

/// The request of an event that its rule has matched.
fn make<'a>(scope: &Scope<'a>, keys: &Keys, origin: Option<&Origin>, event: &'a Value) -> Result<Made, Refusal> {
    if let Some(entry) = scope.bundle().duplicate_identity() {
        return Err(rejected(reason::DUPLICATE_IDENTITY, Some(format!("entry[{entry}]"))));
    }
    let rule = scope.rule();
    let here = Resource::whole(event);
    let projector = Projector { scope, identity: &keys.identity };
    let key = key_parts(&projector, rule, here)?;
    let prefix = business_key_prefix(rule, &keys.identity, &key.id);
    let business_key: BusinessKey =
        format!("{prefix}{}", key.revision).parse().expect("id, digits and revision are visible and short");
    let order_key = match &rule.order {
        None => business_key.as_str().parse(),
        Some(order) => {
            let parts = projector.parts(&order.of, here).map_err(|fault| refusal("order_key", fault))?;
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            format!("{}:{}", order.name, keys.identity.pseudonym(&order.name, &parts)).parse()
        }
    };
    let order_key = order_key.expect("an order key is made of an id and digits, or it is the business key");

    let mut branches = Vec::with_capacity(rule.branches.len());
    for branch in &rule.branches {
        let payload = projector.object(&branch.payload, here);
        let payload = payload.map_err(|fault| refusal(branch.participant.as_str(), fault))?;
        branches.push(Branch {
            participant: branch.participant.clone(),
            operation: branch.operation.clone(),
            payload: to_raw_value(&payload).expect("a JSON value always serialises"),
        });
    }
    let hash = keys.hash.request_hash(&business_key, &branches).expect("payloads are JSON, and shallow");
    let request = Request {
        business_key,
        attempt: Attempt::FIRST,
        rule: rule.id.clone(),
        source: origin.cloned(),
        deadline_ms: rule.deadline_ms,
        ordered: rule.ordered,
        branches,
        hash,
    };
    if codec::encode(&request).len() > MAX_REQUEST_BYTES {
        return Err(rejected(reason::TOO_BIG, None));
    }
    Ok(Made { order_key, request, key })
}

fn key_parts<'a>(projector: &Projector<'a, '_>, rule: &Rule, here: Resource<'a>) -> Result<KeyParts, Refusal> {
    let text = |paths| projector.text(paths, here).map_err(|fault| refusal("business_key", fault.into()));
    let (id, revision) = (text(&rule.key.id)?, text(&rule.key.revision)?);
    let spelled = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if revision.len() > 64 || !revision.bytes().all(spelled) {
        return Err(refusal("business_key", rule.key.revision.fault(reason::BAD_REVISION).into()));
    }
    Ok(KeyParts { source: rule.key.source.clone(), id, revision })
}

fn business_key_prefix(rule: &Rule, identity: &IdentityKey, id: &str) -> String {
    format!("{}:{}:", rule.id, identity.pseudonym("business key", &[&rule.id, &rule.key.source, id]))
}

/// The rejection of a field: what could not be made, and from where.
fn refusal(part: &str, fault: FieldFault) -> Refusal {
    let separator = if fault.field.is_empty() { "" } else { "." };
    rejected(fault.fault.code, Some(format!("{part}{separator}{} <- {}", fault.field, fault.fault.at)))
}

fn rejected(code: &'static str, field: Option<String>) -> Refusal {
    Refusal::Rejected { code, field }
}

fn reason_code(code: &'static str) -> Code {
    code.parse().expect("all reasons are valid codes")
}
