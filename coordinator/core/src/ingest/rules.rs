//! Rules: TOML, compiled once. What is wrong with a file is said with the key it stands under.
//!
//! ```toml
//! [codes.surgery]                      # a code list
//! system = "http://snomed.info/sct"
//! codes = ["80146002"]
//!
//! [[rule]]
//! id = "surgery"
//! topics = ["hospital.surgeries"]
//! deadline_ms = 30000                  # the default
//! match = [                            # all must hold
//!     { path = "$.type", is = "transaction" },
//!     { path = "operation $.id", present = true },
//! ]
//! key = { source = "hospital", id = ["encounter $.id"], revision = ["encounter $.status"] }
//! order = { name = "patient", of = ["encounter $.subject.reference"] }    # default: the business key
//! ordered = true                       # transactions of one order key run one after the other; default: false
//! retry_after_ms = [1000, 5000, 30000] # the default: what may pass by itself is asked for again, up to three times
//!
//! [rule.resources]                     # names for resources
//! encounter = { type = "Encounter" }                                      # exactly one
//! operation = { type = "Procedure", take = "first", order = [["$.performedDateTime"]],
//!     where = [{ path = "$.code.coding[*]", coded = "surgery" }] }
//! coverage = { type = "Coverage", refer = ["claim $.insurance[*].coverage"] }    # where a reference leads
//!
//! [[rule.branch]]
//! participant = "hospital"
//! operation = "record_surgery"
//! payload = { case = "encounter $.id", code = { coding = "operation $.code.coding[*]", in = "surgery" } }
//! ```
//!
//! A path is `<resource> <JSONPath>`, or a JSONPath alone: from the event in `match`, from the candidate in `where` and
//! `order` of a resource, from the item in a list. Where one path may stand, a list of paths may: the first hit counts.
//!
//! | field of a payload | value |
//! |---|---|
//! | `"path"` or `["path", ..]` or `{ copy = .. }` | a text, number or truth value |
//! | `{ constant = x }` | x |
//! | `{ identifier = .., of = "Patient", kind = "MR", system = "http://.." }` | `{system, value}` of what a reference means |
//! | `{ coding = .., in = "code list" }` | `{system, code}` |
//! | `{ time = .. }`, `{ date = .. }` | a time with its zone; a day |
//! | `{ earliest = .. }`, `{ latest = .. }` | of all hits of all paths |
//! | `{ amount = .. }` | `{value, currency}`, exact |
//! | `{ sum = .., like = .. }` | exact sum of amounts, in the currency of `like` |
//! | `{ list = "resource", item = { .. } }`, `{ object = { .. } }` | fields |
//! | `{ pseudonym = "domain", of = [..] }` | keyed hash of other values |
//! | `{ bucket = "salt", of = [..] }` | a number from 0 to 19, for reference data |
//!
//! Beside any of them: `optional = true` (left out if the event has none) or `default = x`.
//!
//! **Order.** The order key decides the shard. With `ordered = true` it decides the order too: of the same order key the next
//! transaction starts when the one before is decided, whatever the decision is. The price is that a slow participant holds up
//! whatever else there is about that patient, so a rule asks for it where the order matters (a merge before its later
//! events) and names the order key itself: of one business key there is only one transaction to be ordered.
//!
//! **Driving again.** An abort whose reasons may pass by themselves (`expired`, `busy`, `in_progress`) is asked for again as
//! the next attempt, so many milliseconds after its outcome: attempt 1 after the first number, attempt 2 after the second,
//! and what was aborted once more than there are numbers is a person's (`suture tx retry`). `[]`: always a person's. The
//! default outlasts a participant's restart; a participant that is away for longer costs four deadlines and 36 s. Of an
//! ordered rule the next attempt takes its place behind whatever was asked for meanwhile. See [`crate::redrive`].
//!
//! Left out: branches that only some events of a rule have, versions of a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json_path::JsonPath;
use suture_contract::ids::Participant;
use suture_contract::messages::{MAX_BRANCHES, MAX_DEADLINE_MS};
use toml::{Table, Value as Toml};

use super::bundle::Wanted;
use super::projection::{Absent, Field, Maker};
use super::scope::{Path, Paths};

/// Deadline of a rule that names none, in milliseconds.
const DEFAULT_DEADLINE_MS: u64 = 30_000;

/// How long after its abort each attempt of a rule that says nothing is asked for again, in milliseconds.
const DEFAULT_RETRY_AFTER_MS: [u64; 3] = [1_000, 5_000, 30_000];

/// Most attempts that may follow the first one by themselves.
const MAX_RETRIES: usize = 10;

/// Longest wait before one: a day. The request is read again then, and stays in its topic for a week.
const MAX_RETRY_AFTER_MS: u64 = 86_400_000;

/// A compiled file of rules. The first rule that matches an event takes it.
#[derive(Debug)]
pub struct Rules {
    pub(super) rules: Vec<Rule>,
    pub(super) codes: Vec<CodeList>,
}

/// What is wrong with a file of rules, where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct RulesError {
    /// The key in the file, as a path.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

/// A compiled rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub id: String,
    pub topics: BTreeSet<String>,
    pub conditions: Vec<Condition>,
    pub key: Key,
    pub order: Option<Order>,
    pub ordered: bool,
    pub retry_after_ms: Vec<u64>,
    pub deadline_ms: u64,
    pub resources: Vec<Named>,
    pub branches: Vec<BranchRule>,
}

/// Where the business key comes from, beside the rule's id.
#[derive(Debug)]
pub(super) struct Key {
    pub source: String,
    pub id: Paths,
    pub revision: Paths,
}

/// Where the order key comes from.
#[derive(Debug)]
pub(super) struct Order {
    pub name: String,
    pub of: Vec<Maker>,
}

/// A name for resources of the event.
#[derive(Debug)]
pub(super) struct Named {
    pub name: String,
    pub kind: String,
    pub refer: Option<Paths>,
    pub conditions: Vec<Condition>,
    pub take: Take,
    pub order: Vec<Paths>,
}

/// How many resources a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Take {
    /// There must be exactly one.
    One,
    /// The first in the name's order.
    First,
    /// All, in the name's order, or none.
    All,
}

/// A question with the answer yes or no.
#[derive(Debug)]
pub(super) struct Condition {
    pub paths: Paths,
    pub test: Test,
    /// For people.
    pub text: String,
}

/// What a condition asks of the nodes that its paths hit.
#[derive(Debug)]
pub(super) enum Test {
    /// Whether there is any.
    Present(bool),
    /// Whether one is one of these.
    Is(Vec<Value>),
    /// Whether one is a coding of this code list.
    Coded(usize),
}

/// Codes of one system.
#[derive(Debug)]
pub(super) struct CodeList {
    name: String,
    system: String,
    codes: BTreeSet<String>,
}

/// What one participant is asked.
#[derive(Debug)]
pub(super) struct BranchRule {
    pub participant: Participant,
    pub operation: String,
    pub payload: Vec<Field>,
}

impl Rules {
    /// Compiles a file.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(toml: &str) -> Result<Self, RulesError> {
        let file: RulesFile = toml::from_str(toml).map_err(|error| RulesError {
            key: "the file".to_string(),
            problem: error.to_string().trim_end().to_string(),
        })?;
        if file.rule.is_empty() {
            return Err(RulesError { key: "rule".to_string(), problem: "there is none; write [[rule]]".to_string() });
        }
        let codes: Vec<CodeList> =
            file.codes.into_iter().map(|(name, list)| list.compile(name)).collect::<Result<_, _>>()?;
        let rules: Vec<Rule> = file.rule.into_iter().map(|rule| rule.compile(&codes)).collect::<Result<_, _>>()?;
        let mut ids = BTreeSet::new();
        for rule in &rules {
            if !ids.insert(&rule.id) {
                return Err(RulesError {
                    key: format!("rule {}", rule.id),
                    problem: "there are two rules of this id; business keys begin with it, so give one another id"
                        .into(),
                });
            }
        }
        Ok(Self { rules, codes })
    }

    /// The same rules, each for this topic alone: for a demonstration or a test with an upstream topic of its own.
    pub fn reading(mut self, topic: &str) -> Self {
        for rule in &mut self.rules {
            rule.topics = BTreeSet::from([topic.to_string()]);
        }
        self
    }

    /// The upstream topics that any rule reads, sorted.
    pub fn topics(&self) -> Vec<&str> {
        let topics: BTreeSet<&str> = self.rules.iter().flat_map(|rule| &rule.topics).map(String::as_str).collect();
        topics.into_iter().collect()
    }

    /// The participants that any rule names, sorted.
    pub fn participants(&self) -> Vec<&Participant> {
        let all = self.rules.iter().flat_map(|rule| &rule.branches).map(|branch| &branch.participant);
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What any rule asks of whom, sorted.
    pub fn operations(&self) -> Vec<(&Participant, &str)> {
        let all = self.rules.iter().flat_map(|rule| &rule.branches);
        let all = all.map(|branch| (&branch.participant, branch.operation.as_str()));
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// How long after its abort each attempt of a rule is asked for again; `None` if there is no such rule.
    pub fn retries_of(&self, rule: &str) -> Option<Vec<Duration>> {
        let rule = self.rules.iter().find(|known| known.id == rule)?;
        Some(rule.retry_after_ms.iter().copied().map(Duration::from_millis).collect())
    }

    /// Whether any rule asks for aborts to be driven again.
    pub fn drive_again(&self) -> bool {
        self.rules.iter().any(|rule| !rule.retry_after_ms.is_empty())
    }

    /// The longest that an abort waits before it is asked for again.
    pub fn longest_retry(&self) -> Duration {
        let pauses = self.rules.iter().flat_map(|rule| &rule.retry_after_ms);
        Duration::from_millis(pauses.copied().max().unwrap_or(0))
    }

    /// The longest deadline of a request.
    pub fn longest_deadline(&self) -> Duration {
        Duration::from_millis(self.rules.iter().map(|rule| rule.deadline_ms).max().unwrap_or(0))
    }

    /// The participants that one rule names, in its order; `None` if there is no such rule.
    pub fn participants_of(&self, rule: &str) -> Option<Vec<&Participant>> {
        let rule = self.rules.iter().find(|known| known.id == rule)?;
        Some(rule.branches.iter().map(|branch| &branch.participant).collect())
    }
}

impl CodeList {
    /// Whether a coding is in the list.
    pub fn has(&self, coding: &Value) -> bool {
        let part = |name| coding.get(name).and_then(Value::as_str);
        part("system") == Some(&self.system) && part("code").is_some_and(|code| self.codes.contains(code))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    #[serde(default)]
    codes: BTreeMap<String, CodeListFile>,
    #[serde(default)]
    rule: Vec<RuleFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CodeListFile {
    system: String,
    codes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    id: String,
    topics: BTreeSet<String>,
    #[serde(rename = "match")]
    conditions: Vec<Table>,
    key: KeyFile,
    order: Option<OrderFile>,
    deadline_ms: Option<u64>,
    #[serde(default)]
    ordered: bool,
    retry_after_ms: Option<Vec<u64>>,
    #[serde(default)]
    resources: BTreeMap<String, NamedFile>,
    branch: Vec<BranchFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    source: String,
    id: Toml,
    revision: Toml,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrderFile {
    name: String,
    of: Vec<Toml>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedFile {
    #[serde(rename = "type")]
    kind: String,
    refer: Option<Toml>,
    #[serde(rename = "where", default)]
    conditions: Vec<Table>,
    take: Option<Take>,
    #[serde(default)]
    order: Vec<Toml>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BranchFile {
    participant: String,
    operation: String,
    payload: Table,
}

impl CodeListFile {
    fn compile(self, name: String) -> Result<CodeList, RulesError> {
        if self.codes.is_empty() || self.system.is_empty() {
            return Err(RulesError {
                key: format!("codes.{name}"),
                problem: "needs a system and at least one code".into(),
            });
        }
        Ok(CodeList { name, system: self.system, codes: self.codes.into_iter().collect() })
    }
}

impl RuleFile {
    fn compile(self, codes: &[CodeList]) -> Result<Rule, RulesError> {
        let names: Vec<String> = self.resources.keys().cloned().collect();
        let at = At { key: format!("rule {}", self.id), names: &names, codes };
        if !is_id(&self.id) {
            return Err(at
                .key("id")
                .error("write 1 to 40 of a-z, 0-9 and -: it stands in front of every business key"));
        }
        if self.topics.is_empty() {
            return Err(at.key("topics").error("name at least one upstream topic"));
        }
        if self.ordered && self.order.is_none() {
            return Err(at
                .key("ordered")
                .error("one after the other of what? Name the order key: order = { name = \"patient\", of = [..] }"));
        }
        let deadline_ms = self.deadline_ms.unwrap_or(DEFAULT_DEADLINE_MS);
        if !(1..=MAX_DEADLINE_MS).contains(&deadline_ms) {
            return Err(at.key("deadline_ms").error(&format!("write 1 to {MAX_DEADLINE_MS}")));
        }
        let retry_after_ms = self.retry_after_ms.unwrap_or_else(|| DEFAULT_RETRY_AFTER_MS.to_vec());
        if retry_after_ms.len() > MAX_RETRIES || retry_after_ms.iter().any(|ms| *ms > MAX_RETRY_AFTER_MS) {
            return Err(at.key("retry_after_ms").error(&format!(
                "write up to {MAX_RETRIES} numbers from 0 to {MAX_RETRY_AFTER_MS}, one for each time that an abort is asked \
                 for again; [] for never"
            )));
        }
        if self.conditions.is_empty() {
            return Err(at.key("match").error("needs at least one condition, or the rule takes every event"));
        }
        let conditions = at.conditions("match", self.conditions)?;
        let key = self.key.compile(&at.key("key"))?;
        let order = self.order.map(|order| order.compile(&at.key("order"))).transpose()?;
        let resources =
            self.resources.into_iter().map(|(name, file)| file.compile(name, &at)).collect::<Result<Vec<_>, _>>()?;
        refuse_circles(&resources, &at)?;
        let branches = self.branch.into_iter().map(|branch| branch.compile(&at)).collect::<Result<Vec<_>, _>>()?;
        refuse_wrong_counts(&branches, &at)?;
        Ok(Rule {
            id: self.id,
            topics: self.topics,
            conditions,
            key,
            order,
            ordered: self.ordered,
            retry_after_ms,
            deadline_ms,
            resources,
            branches,
        })
    }
}

impl KeyFile {
    fn compile(self, at: &At<'_>) -> Result<Key, RulesError> {
        if self.source.is_empty() {
            return Err(at
                .key("source")
                .error("name the system that gives these numbers, for example \"st-mary-ehr\""));
        }
        let (id, revision) = (at.key("id").paths(&self.id)?, at.key("revision").paths(&self.revision)?);
        Ok(Key { source: self.source, id, revision })
    }
}

impl OrderFile {
    fn compile(self, at: &At<'_>) -> Result<Order, RulesError> {
        if !is_id(&self.name) {
            return Err(at.key("name").error("write 1 to 40 of a-z, 0-9 and -, for example \"patient\""));
        }
        Ok(Order { name: self.name, of: at.key("of").parts(&self.of)? })
    }
}

impl NamedFile {
    fn compile(self, name: String, at: &At<'_>) -> Result<Named, RulesError> {
        let at = at.key(&format!("resources.{name}"));
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !is_name {
            return Err(at.error("a resource's name is made of letters, digits, _ and -"));
        }
        // Conditions and order look at the candidate; another resource's name in them would ask in a circle.
        let of_candidate = At { names: &[], ..at.clone() };
        let refer = self.refer.as_ref().map(|paths| at.key("refer").paths(paths)).transpose()?;
        if refer.is_some() && (self.take.is_some() || !self.conditions.is_empty() || !self.order.is_empty()) {
            return Err(at.error("a reference leads to one resource: leave out where, take and order"));
        }
        if let Some(path) = refer.iter().flat_map(|paths| &paths.0).find(|path| path.resource.is_none()) {
            let problem = format!("\"{}\" begins nowhere: put a resource's name in front", path.text);
            return Err(at.key("refer").error(&problem));
        }
        let take = self.take.unwrap_or(Take::One);
        if take == Take::First && self.order.is_empty() {
            return Err(at.key("order").error("\"first\" of which order? Entries have none: name paths to sort by"));
        }
        Ok(Named {
            kind: self.kind,
            refer,
            conditions: of_candidate.conditions("where", self.conditions)?,
            take,
            order: self.order.iter().map(|paths| of_candidate.key("order").paths(paths)).collect::<Result<_, _>>()?,
            name,
        })
    }
}

impl BranchFile {
    fn compile(self, at: &At<'_>) -> Result<BranchRule, RulesError> {
        let at = at.key(&format!("branch {}", self.participant));
        let participant = self.participant.parse::<Participant>();
        let participant = participant.map_err(|error| at.key("participant").error(&error.to_string()))?;
        if self.operation.is_empty() {
            return Err(at.key("operation").error("name an operation of the participant's own configuration"));
        }
        let payload = at.key("payload").fields(&self.payload)?;
        Ok(BranchRule { participant, operation: self.operation, payload })
    }
}

fn refuse_circles(resources: &[Named], at: &At<'_>) -> Result<(), RulesError> {
    for (start, named) in resources.iter().enumerate() {
        let mut reached = BTreeSet::new();
        let mut next = vec![start];
        while let Some(resource) = next.pop() {
            let referred = resources[resource].refer.iter().flat_map(|paths| &paths.0).filter_map(|path| path.resource);
            next.extend(referred.filter(|&resource| reached.insert(resource)));
        }
        if reached.contains(&start) {
            let key = at.key(&format!("resources.{}.refer", named.name));
            return Err(key.error("refers to itself in a circle; begin at a resource that has a type only"));
        }
    }
    Ok(())
}

fn refuse_wrong_counts(branches: &[BranchRule], at: &At<'_>) -> Result<(), RulesError> {
    if !(1..=MAX_BRANCHES).contains(&branches.len()) {
        return Err(at.key("branch").error(&format!("write 1 to {MAX_BRANCHES} branches")));
    }
    let mut participants = BTreeSet::new();
    match branches.iter().find(|branch| !participants.insert(&branch.participant)) {
        None => Ok(()),
        Some(twice) => {
            let key = at.key(&format!("branch {}", twice.participant));
            Err(key.error("a participant has one branch a transaction; put both into one operation"))
        }
    }
}

fn is_id(text: &str) -> bool {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=40).contains(&text.len()) && text.bytes().all(valid)
}

/// Where in the file something is compiled, and what may be named there.
#[derive(Clone)]
struct At<'r> {
    key: String,
    names: &'r [String],
    codes: &'r [CodeList],
}

impl At<'_> {
    fn key(&self, key: &str) -> Self {
        Self { key: format!("{}: {key}", self.key).replacen(": payload: ", ": payload.", 1), ..self.clone() }
    }

    fn error(&self, problem: &str) -> RulesError {
        RulesError { key: self.key.clone(), problem: problem.to_string() }
    }

    /// One path or a list of them.
    fn paths(&self, value: &Toml) -> Result<Paths, RulesError> {
        let texts: Vec<&str> = match value {
            Toml::String(text) => vec![text],
            Toml::Array(items) if !items.is_empty() => {
                let texts: Option<Vec<_>> = items.iter().map(Toml::as_str).collect();
                texts.ok_or_else(|| self.error("a list of paths holds texts only"))?
            }
            _ => return Err(self.error("write a path (\"encounter $.id\") or a list of paths")),
        };
        Ok(Paths(texts.into_iter().map(|text| self.path(text)).collect::<Result<_, _>>()?))
    }

    fn path(&self, text: &str) -> Result<Path, RulesError> {
        let (name, query) = match text.split_once(' ') {
            Some((name, query)) if !text.starts_with('$') => (Some(name), query.trim_start()),
            _ => (None, text),
        };
        let resource = name.map(|name| self.resource(name)).transpose()?;
        let query = JsonPath::parse(query).map_err(|error| {
            self.error(&format!("\"{query}\" is no JSONPath (RFC 9535), which begins with $: {error}"))
        })?;
        Ok(Path { resource, query, text: text.to_string() })
    }

    fn resource(&self, name: &str) -> Result<usize, RulesError> {
        self.names.iter().position(|known| known == name).ok_or_else(|| {
            let known = if self.names.is_empty() { "no names may stand here".into() } else { self.names.join(", ") };
            self.error(&format!("there is no resource \"{name}\" ({known}); name it under [rule.resources]"))
        })
    }

    fn code_list(&self, name: &str) -> Result<usize, RulesError> {
        let found = self.codes.iter().position(|list| list.name == name);
        found.ok_or_else(|| self.error(&format!("there is no code list \"{name}\"; write [codes.{name}]")))
    }

    fn conditions(&self, key: &str, tables: Vec<Table>) -> Result<Vec<Condition>, RulesError> {
        let numbered = tables.into_iter().enumerate();
        numbered.map(|(i, table)| self.key(&format!("{key}[{i}]")).condition(table)).collect()
    }

    fn condition(&self, mut table: Table) -> Result<Condition, RulesError> {
        let paths = table.remove("path").ok_or_else(|| self.error("needs path = \"..\""))?;
        let paths = self.key("path").paths(&paths)?;
        let mut tests = table.into_iter();
        let (Some((name, value)), None) = (tests.next(), tests.next()) else {
            return Err(self.error("needs one test beside the path: present, is, or coded"));
        };
        let (test, text) = match (name.as_str(), &value) {
            ("present", Toml::Boolean(true)) => (Test::Present(true), "is present".to_string()),
            ("present", Toml::Boolean(false)) => (Test::Present(false), "is absent".to_string()),
            ("is", Toml::Array(items)) if !items.is_empty() => {
                let values = items.iter().map(|item| self.scalar(item)).collect::<Result<_, _>>()?;
                (Test::Is(values), format!("is one of {value}"))
            }
            ("is", single) => (Test::Is(vec![self.scalar(single)?]), format!("is {value}")),
            ("coded", Toml::String(list)) => (Test::Coded(self.code_list(list)?), format!("is coded as {list}")),
            _ => {
                return Err(
                    self.error("a test is: present = true, is = \"text\", is = [\"a\", \"b\"], or coded = \"list\"")
                );
            }
        };
        Ok(Condition { text: format!("{} {text}", paths.text()), paths, test })
    }

    fn scalar(&self, value: &Toml) -> Result<Value, RulesError> {
        match value {
            Toml::String(text) => Ok(text.as_str().into()),
            Toml::Integer(number) => Ok((*number).into()),
            Toml::Boolean(truth) => Ok((*truth).into()),
            Toml::Float(_) | Toml::Datetime(_) | Toml::Array(_) | Toml::Table(_) => {
                Err(self.error("write a text, a whole number, true or false"))
            }
        }
    }

    /// The fields of an object, sorted by name.
    fn fields(&self, table: &Table) -> Result<Vec<Field>, RulesError> {
        if table.is_empty() {
            return Err(self.error("is empty: name at least one field"));
        }
        let mut fields =
            table.iter().map(|(name, value)| self.key(name).field(name, value)).collect::<Result<Vec<_>, _>>()?;
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(fields)
    }

    fn field(&self, name: &str, value: &Toml) -> Result<Field, RulesError> {
        let mut absent = Absent::Refuse;
        let mut maker = value.clone();
        if let Toml::Table(table) = &mut maker {
            absent = match (table.remove("optional"), table.remove("default")) {
                (None | Some(Toml::Boolean(false)), None) => Absent::Refuse,
                (Some(Toml::Boolean(true)), None) => Absent::Omit,
                (None, Some(default)) => Absent::Default(self.key("default").scalar(&default)?),
                _ => return Err(self.error("write optional = true, or default = .., not both")),
            };
        }
        Ok(Field { name: name.to_string(), maker: self.maker(&maker)?, absent })
    }

    fn parts(&self, parts: &[Toml]) -> Result<Vec<Maker>, RulesError> {
        if parts.is_empty() {
            return Err(self.error("needs at least one value"));
        }
        let makers: Vec<Maker> = parts.iter().map(|part| self.maker(part)).collect::<Result<_, _>>()?;
        if makers.iter().any(|maker| matches!(maker, Maker::List(..) | Maker::Object(_) | Maker::Amount(_))) {
            return Err(self.error("a hash is made of texts and identifiers, not of lists, objects or amounts"));
        }
        Ok(makers)
    }

    fn maker(&self, value: &Toml) -> Result<Maker, RulesError> {
        let Toml::Table(table) = value else { return Ok(Maker::Copy(self.paths(value)?)) };
        const KINDS: [&str; 14] = [
            "copy",
            "constant",
            "identifier",
            "coding",
            "time",
            "date",
            "earliest",
            "latest",
            "amount",
            "sum",
            "list",
            "object",
            "pseudonym",
            "bucket",
        ];
        let mut kinds = KINDS.iter().filter(|kind| table.contains_key(**kind));
        let (Some(&kind), None) = (kinds.next(), kinds.next()) else {
            return Err(self.error(&format!("needs exactly one of {}", KINDS.join(", "))));
        };
        let mut rest = Rest { table: table.clone(), at: self };
        let value = rest.take(kind)?;
        let maker = match kind {
            "copy" => Maker::Copy(self.paths(&value)?),
            "constant" => Maker::Constant(self.scalar(&value)?),
            "identifier" => {
                let (of, kind, system) = (rest.text("of")?, rest.optional_text("kind")?, rest.optional_text("system")?);
                if kind.is_none() && system.is_none() {
                    return Err(
                        self.error("which of its identifiers? Write kind = \"MR\", system = \"http://..\", or both")
                    );
                }
                Maker::Identifier(self.paths(&value)?, Wanted { of, kind, system })
            }
            "coding" => {
                let list = rest.optional_text("in")?.map(|list| self.code_list(&list)).transpose()?;
                Maker::Coding(self.paths(&value)?, list)
            }
            "time" => Maker::Time(self.paths(&value)?),
            "date" => Maker::Date(self.paths(&value)?),
            "earliest" => Maker::Earliest(self.paths(&value)?),
            "latest" => Maker::Latest(self.paths(&value)?),
            "amount" => Maker::Amount(self.paths(&value)?),
            "sum" => Maker::Sum(self.paths(&value)?, self.key("like").paths(&rest.take("like")?)?),
            "list" => {
                let resource =
                    self.resource(value.as_str().ok_or_else(|| self.error("list = \"a resource's name\""))?)?;
                Maker::List(resource, self.fields(&rest.table_of("item")?)?)
            }
            "object" => match &value {
                Toml::Table(fields) => Maker::Object(self.fields(fields)?),
                _ => return Err(self.error("write object = { field = .. }")),
            },
            "pseudonym" | "bucket" => {
                let what = value.as_str().filter(|text| !text.is_empty());
                let what = what.ok_or_else(|| self.error(&format!("write {kind} = \"a text that sets it apart\"")))?;
                let of = rest.take("of")?;
                let parts = self.key("of").parts(of.as_array().ok_or_else(|| self.error("write of = [..]"))?)?;
                if kind == "bucket" { Maker::Bucket(what.into(), parts) } else { Maker::Pseudonym(what.into(), parts) }
            }
            _ => unreachable!("all kinds are above"),
        };
        rest.finish()?;
        Ok(maker)
    }
}

/// The keys of a value that have not been read yet.
struct Rest<'a, 'r> {
    table: Table,
    at: &'a At<'r>,
}

impl Rest<'_, '_> {
    fn take(&mut self, key: &str) -> Result<Toml, RulesError> {
        self.table.remove(key).ok_or_else(|| self.at.error(&format!("needs {key} = ..")))
    }

    fn text(&mut self, key: &str) -> Result<String, RulesError> {
        match self.take(key)? {
            Toml::String(text) if !text.is_empty() => Ok(text),
            _ => Err(self.at.key(key).error("write a text")),
        }
    }

    fn optional_text(&mut self, key: &str) -> Result<Option<String>, RulesError> {
        if self.table.contains_key(key) { self.text(key).map(Some) } else { Ok(None) }
    }

    fn table_of(&mut self, key: &str) -> Result<Table, RulesError> {
        match self.take(key)? {
            Toml::Table(table) => Ok(table),
            _ => Err(self.at.key(key).error("write { field = .. }")),
        }
    }

    fn finish(self) -> Result<(), RulesError> {
        match self.table.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.at.error(&format!("\"{key}\" does not belong here; leave it out"))),
        }
    }
}
