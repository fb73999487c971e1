//! Operations: named templates of SQL from a participant's configuration.
//!
//! A message names an operation and brings a payload; what is done with it stands here and is never on the wire. So a
//! database joins by configuration alone.
//!
//! ```toml
//! [operation.reserve_claim.parameters]
//! claim = { path = "/claim", type = "text" }
//! total = { path = "/total", type = "minor" }
//!
//! [[operation.reserve_claim.prepare]]      # mode xa: `prepare`; mode reserve: `reserve`, `confirm` and `cancel`
//! sql = "insert into claim (id, amount, txid) values (:claim, :total, :txid)"
//! rows = 1                                 # or "any"
//! code = "NO_COVERAGE"                     # the reason when it is another number of rows
//! unique = "DUPLICATE"                     # the reason when a unique key is violated
//! check = "LIMIT"                          # the reason when a check is violated
//! ```
//!
//! - The steps run in order, in one local transaction with the ledger row. The first that fails decides the code, and
//!   everything is rolled back. A code that is not given is `statement_failed`.
//! - `:txid` is always there; every business row carries it. `confirm` and `cancel` know the branch by `:txid` alone:
//!   what they need, `reserve` has written into rows. They cannot refuse any more: another number of rows than expected
//!   stops the shard.
//! - All is compiled and checked at start: unknown placeholders, parameters that nobody uses, missing steps, misplaced
//!   ones. Whether the SQL fits the tables is asked from the database when it is opened.
//!
//! A *seed* has the same shape, with `steps` and without `:txid`. Seeds fill reference data, and no prepare reaches them.
//!
//! What finishes a branch must be what was there when it was reserved. So in mode reserve a ledger row in doubt notes a
//! version beside the operation's name, made of its `confirm` and `cancel` steps ([`Operation::noted`]). While it is in doubt
//! those steps stay as they are: others are refused at start, and never run ([`noted_operation`]). Its `reserve` steps may change
//! at any time, and a changed operation may take a new name beside the old one. In mode xa nothing runs after the vote.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use suture_contract::ids::{Code, Txid, code};

use crate::sample::sample_payload;
use crate::sql::{Dialect, number_placeholders};
use crate::values::{Declared, Kind, Value};

/// Most steps of one kind. They go to the database in one flight.
pub const MAX_STEPS: usize = 16;

/// Longest name of an operation, in bytes: it stands in the ledger, with a version behind it.
const LONGEST_NAME: usize = 200;

/// Between an operation's name and its version, and how many hex digits that has.
const BEFORE_VERSION: char = '#';
const VERSION_DIGITS: usize = 16;

/// How a participant keeps its promise between vote and decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The database holds the prepared branch with its row locks.
    Xa,
    /// The operation reserves; confirm and cancel finish. No lock is held while in doubt.
    Reserve,
}

/// `[operation.<name>]` as it stands in the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationConfig {
    /// By name, without the colon.
    #[serde(default)]
    pub parameters: BTreeMap<String, Declared>,
    /// Mode xa.
    pub prepare: Option<Vec<StepConfig>>,
    /// Mode reserve.
    pub reserve: Option<Vec<StepConfig>>,
    /// Mode reserve; may be empty where `reserve` leaves nothing to do.
    pub confirm: Option<Vec<StepConfig>>,
    /// Mode reserve.
    pub cancel: Option<Vec<StepConfig>>,
}

/// `[seed.<name>]` as it stands in the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedConfig {
    /// By name, without the colon.
    #[serde(default)]
    pub parameters: BTreeMap<String, Declared>,
    /// What inserts a row where it is missing.
    pub steps: Vec<StepConfig>,
}

/// One statement as it stands in the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepConfig {
    /// With parameters as `:name`.
    pub sql: String,
    /// How many rows it must read or change.
    pub rows: Rows,
    /// The reason when it is another number.
    pub code: Option<Code>,
    /// The reason when a unique key is violated.
    pub unique: Option<Code>,
    /// The reason when a check is violated.
    pub check: Option<Code>,
}

/// An expected number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Whatever it is.
    Any,
    /// This many.
    Exactly(u64),
}

/// A problem of the configuration. Holds no secret and no data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct Misconfigured {
    /// Where, as a path of keys.
    pub key: String,
    /// What is wrong and what to do about it.
    pub problem: String,
}

/// An operation, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// `prepare` or `reserve`.
    pub prepare: Vec<Step>,
    /// Runs on commit; always empty in mode xa.
    pub confirm: Vec<Step>,
    /// Runs on abort; always empty in mode xa.
    pub cancel: Vec<Step>,
    /// Of `confirm` and `cancel`; none in mode xa.
    version: Option<String>,
    parameters: Parameters,
}

/// A seed, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Seed {
    /// Its name.
    pub name: String,
    /// In order.
    pub steps: Vec<Step>,
    parameters: Parameters,
}

/// A statement, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its place in the configuration, for messages.
    pub place: String,
    /// With the database's own placeholders.
    pub sql: String,
    /// For MariaDB: where each placeholder stands in `sql`, in bytes.
    pub marks: Vec<usize>,
    /// Which of the values stands behind each placeholder.
    pub binds: Vec<usize>,
    /// The type of each placeholder.
    pub kinds: Vec<Kind>,
    /// How many rows it must read or change.
    pub rows: Rows,
    code: Option<Code>,
    unique: Option<Code>,
    check: Option<Code>,
}

/// The values of one branch, in the order that [`Step::binds`] counts in.
#[derive(Debug, Clone, PartialEq)]
pub struct Values(Vec<Value>);

/// A payload that does not fit its operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// The reason code of the no.
    pub code: Code,
    /// The parameter at fault; absent when it is the whole payload.
    pub parameter: Option<String>,
}

/// Why there are no steps that may finish a branch in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoSteps {
    /// The operation of this name is not configured any more.
    Missing(String),
    /// It is, with other steps than when the branch was reserved.
    Changed(String),
}

/// The operation that may finish a branch in doubt, by what the branch's ledger row notes. A row of an older build notes no
/// version; of that the name alone is compared.
pub fn noted_operation<'a>(operations: &'a BTreeMap<String, Operation>, noted: &str) -> Result<&'a Operation, NoSteps> {
    let is_version = |text: &str| text.len() == VERSION_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit());
    let (name, version) = match noted.rsplit_once(BEFORE_VERSION) {
        Some((name, version)) if is_version(version) => (name, Some(version)),
        _ => (noted, None),
    };
    let operation = operations.get(name).ok_or_else(|| NoSteps::Missing(name.to_string()))?;
    match version.is_none() || version == operation.version.as_deref() {
        true => Ok(operation),
        false => Err(NoSteps::Changed(name.to_string())),
    }
}

/// Tells lists of steps apart by what they do to rows.
fn version_of(lists: [&Option<Vec<StepConfig>>; 2]) -> String {
    let mut digest = Sha256::new();
    // Counts and lengths first, so that nothing moves from one place to the next unnoticed.
    for steps in lists.map(|steps| steps.as_deref().unwrap_or_default()) {
        digest.update(format!("{}\n", steps.len()));
        for StepConfig { sql, rows, .. } in steps {
            let rows = match rows {
                Rows::Any => "any".to_string(),
                Rows::Exactly(rows) => rows.to_string(),
            };
            digest.update(format!("{} {rows} {sql}\n", sql.len()));
        }
    }
    let digits: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    digits[..VERSION_DIGITS].to_string()
}

/// Compiles `[operation.*]`.
pub fn compile_operations(
    configs: &BTreeMap<String, OperationConfig>,
    mode: Mode,
    dialect: Dialect,
) -> Result<BTreeMap<String, Operation>, Misconfigured> {
    configs.iter().map(|(name, config)| Ok((name.clone(), compile_operation(name, config, mode, dialect)?))).collect()
}

/// Compiles `[seed.*]`.
pub fn compile_seeds(
    configs: &BTreeMap<String, SeedConfig>,
    dialect: Dialect,
) -> Result<BTreeMap<String, Seed>, Misconfigured> {
    let compile = |name: &String, config: &SeedConfig| {
        let key = format!("seed.{name}");
        let parameters = Parameters::new(&key, &config.parameters, dialect)?;
        let steps = parameters.compile(&key, "steps", Some(&config.steps), Scope::Payload, dialect)?;
        parameters.check_used(&key, &steps)?;
        Ok((name.clone(), Seed { name: name.clone(), steps, parameters }))
    };
    configs.iter().map(|(name, config)| compile(name, config)).collect()
}

fn compile_operation(
    name: &str,
    config: &OperationConfig,
    mode: Mode,
    dialect: Dialect,
) -> Result<Operation, Misconfigured> {
    let key = format!("operation.{name}");
    if name.len() > LONGEST_NAME {
        return Err(misconfigured(&key, &format!("a name has at most {LONGEST_NAME} bytes; choose a shorter one")));
    }
    let misplaced = match mode {
        Mode::Xa => [("reserve", &config.reserve), ("confirm", &config.confirm), ("cancel", &config.cancel)]
            .into_iter()
            .find_map(|(kind, steps)| steps.as_ref().map(|_| (kind, "mode xa has `prepare` steps only"))),
        Mode::Reserve => {
            config.prepare.as_ref().map(|_| ("prepare", "mode reserve has `reserve`, `confirm` and `cancel` steps"))
        }
    };
    if let Some((kind, problem)) = misplaced {
        return Err(misconfigured(&format!("{key}.{kind}"), problem));
    }
    let parameters = Parameters::new(&key, &config.parameters, dialect)?;
    let compile =
        |kind, steps: &Option<Vec<StepConfig>>, scope| parameters.compile(&key, kind, steps.as_deref(), scope, dialect);
    let (prepare, confirm, cancel) = match mode {
        Mode::Xa => (compile("prepare", &config.prepare, Scope::Branch)?, Vec::new(), Vec::new()),
        Mode::Reserve => (
            compile("reserve", &config.reserve, Scope::Branch)?,
            compile("confirm", &config.confirm, Scope::TxidMaybeEmpty)?,
            compile("cancel", &config.cancel, Scope::Txid)?,
        ),
    };
    parameters.check_used(&key, &prepare)?;
    let version = (mode == Mode::Reserve).then(|| version_of([&config.confirm, &config.cancel]));
    Ok(Operation { name: name.to_string(), prepare, confirm, cancel, version, parameters })
}

/// Which placeholders a step may use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The payload's.
    Payload,
    /// The payload's, and `:txid`.
    Branch,
    /// `:txid` alone.
    Txid,
    /// The same, and there may be no steps at all.
    TxidMaybeEmpty,
}

/// The declared parameters in their fixed order; `:txid` is number 0.
#[derive(Debug, Clone, PartialEq)]
struct Parameters(Vec<(String, Declared)>);

const TXID: &str = "txid";

impl Parameters {
    fn new(key: &str, declared: &BTreeMap<String, Declared>, dialect: Dialect) -> Result<Self, Misconfigured> {
        for (name, parameter) in declared {
            let key = format!("{key}.parameters.{name}");
            let well_formed = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if !well_formed {
                return Err(misconfigured(&key, "name it with a-z, 0-9 and _"));
            }
            if name == TXID {
                return Err(misconfigured(&key, ":txid is always there; remove it"));
            }
            if dialect == Dialect::Sqlite && parameter.kind == Kind::Decimal {
                return Err(misconfigured(&key, "SQLite has no decimal; use type minor"));
            }
            if let Some(problem) = parameter.problem() {
                return Err(misconfigured(&key, problem));
            }
        }
        Ok(Self(declared.iter().map(|(name, parameter)| (name.clone(), parameter.clone())).collect()))
    }

    fn compile(
        &self,
        key: &str,
        kind: &str,
        steps: Option<&[StepConfig]>,
        scope: Scope,
        dialect: Dialect,
    ) -> Result<Vec<Step>, Misconfigured> {
        let key = format!("{key}.{kind}");
        let Some(steps) = steps else { return Err(misconfigured(&key, "the steps are missing")) };
        if steps.is_empty() && scope != Scope::TxidMaybeEmpty {
            return Err(misconfigured(&key, "at least one step is needed"));
        }
        if steps.len() > MAX_STEPS {
            return Err(misconfigured(&key, &format!("at most {MAX_STEPS} steps are taken")));
        }
        let place = |i: usize| format!("{key}[{i}]");
        steps.iter().enumerate().map(|(i, step)| self.compile_step(place(i), step, scope, dialect)).collect()
    }

    fn compile_step(
        &self,
        place: String,
        config: &StepConfig,
        scope: Scope,
        dialect: Dialect,
    ) -> Result<Step, Misconfigured> {
        let numbered = number_placeholders(&config.sql, dialect).map_err(|problem| misconfigured(&place, problem))?;
        let mut binds = Vec::new();
        let mut kinds = Vec::new();
        for name in &numbered.names {
            let declared = self.0.iter().position(|(declared, _)| declared == name);
            let (bind, kind) = match (declared, scope) {
                _ if name == TXID && scope != Scope::Payload => (0, Kind::Text),
                (Some(i), Scope::Payload | Scope::Branch) => (i + 1, self.0[i].1.kind),
                (Some(_), Scope::Txid | Scope::TxidMaybeEmpty) => {
                    let problem = format!(
                        "confirm and cancel know :txid alone, not :{name}; let reserve write it into a row with the txid"
                    );
                    return Err(misconfigured(&place, &problem));
                }
                (None, _) => {
                    return Err(misconfigured(&place, &format!("no parameter is declared for :{name}; declare it")));
                }
            };
            binds.push(bind);
            kinds.push(kind);
        }
        Ok(Step {
            place,
            sql: numbered.sql,
            marks: numbered.marks,
            binds,
            kinds,
            rows: config.rows,
            code: config.code.clone(),
            unique: config.unique.clone(),
            check: config.check.clone(),
        })
    }

    fn check_used(&self, key: &str, steps: &[Step]) -> Result<(), Misconfigured> {
        for (i, (name, _)) in self.0.iter().enumerate() {
            if !steps.iter().any(|step| step.binds.contains(&(i + 1))) {
                let key = format!("{key}.parameters.{name}");
                return Err(misconfigured(&key, "no step uses it; a payload carries what is needed, so remove it"));
            }
        }
        Ok(())
    }

    fn bind(&self, txid: Value, payload: &RawValue) -> Result<Values, Unusable> {
        let unusable = |code: &str, parameter: Option<&String>| Unusable {
            code: code.parse().unwrap_or_else(|_| unreadable()),
            parameter: parameter.cloned(),
        };
        let payload = serde_json::from_str(payload.get()).map_err(|_| unusable(code::UNREADABLE, None))?;
        let mut values = vec![txid];
        for (name, parameter) in &self.0 {
            values.push(parameter.read(&payload).map_err(|code| unusable(code, Some(name)))?);
        }
        Ok(Values(values))
    }
}

impl Operation {
    /// What the ledger row of a branch in doubt notes of it.
    pub fn noted(&self) -> String {
        match &self.version {
            Some(version) => format!("{}{BEFORE_VERSION}{version}", self.name),
            None => self.name.clone(),
        }
    }

    /// The values of a branch, from its payload.
    pub fn bind(&self, txid: &Txid, payload: &RawValue) -> Result<Values, Unusable> {
        self.parameters.bind(Value::Text(txid.to_string()), payload)
    }

    /// A payload that fits the parameters, with made-up values.
    pub fn sample_payload(&self) -> Json {
        sample_payload(self.parameters.0.iter().map(|(_, declared)| declared))
    }

    /// The parameters behind a step's placeholders, each once: its name and type.
    pub fn parameters_of(&self, step: &Step) -> Vec<(&str, Kind)> {
        let name =
            |bind: usize| bind.checked_sub(1).and_then(|i| self.parameters.0.get(i)).map_or(TXID, |(name, _)| name);
        let mut named: Vec<(&str, Kind)> = Vec::new();
        for (bind, kind) in step.binds.iter().zip(&step.kinds) {
            if !named.iter().any(|(known, _)| *known == name(*bind)) {
                named.push((name(*bind), *kind));
            }
        }
        named
    }

    /// The values that confirm and cancel need.
    pub fn bind_txid(txid: &Txid) -> Values {
        Values(vec![Value::Text(txid.to_string())])
    }
}

impl Seed {
    /// The values of a row, from its payload.
    pub fn bind(&self, payload: &RawValue) -> Result<Values, Unusable> {
        self.parameters.bind(Value::Null, payload)
    }
}

impl Step {
    /// A statement without values that stands in no configuration.
    pub fn own(place: &str, sql: String) -> Self {
        let place = place.to_string();
        let (marks, binds, kinds, rows) = (Vec::new(), Vec::new(), Vec::new(), Rows::Any);
        Self { place, sql, marks, binds, kinds, rows, code: None, unique: None, check: None }
    }

    /// The step's own values, in the order of its placeholders.
    pub fn values<'a>(&'a self, all: &'a Values) -> impl ExactSizeIterator<Item = &'a Value> + Clone {
        self.binds.iter().map(|&bind| all.0.get(bind).unwrap_or(&Value::Null))
    }

    /// Why the branch is refused after so many rows; `None`: it goes on.
    pub fn refuses_rows(&self, rows: u64) -> Option<Code> {
        match self.rows {
            Rows::Any => None,
            Rows::Exactly(expected) if expected == rows => None,
            Rows::Exactly(_) => Some(self.code.clone().unwrap_or_else(statement_failed)),
        }
    }

    /// The reason when a unique key is violated.
    pub fn on_unique(&self) -> Code {
        self.unique.clone().unwrap_or_else(statement_failed)
    }

    /// The reason when a check is violated.
    pub fn on_check(&self) -> Code {
        self.check.clone().unwrap_or_else(statement_failed)
    }
}

/// The code `statement_failed`.
pub fn statement_failed() -> Code {
    crate::branch::Refusal::because(code::STATEMENT_FAILED).code
}

/// The code `unreadable`.
pub fn unreadable() -> Code {
    crate::branch::Refusal::because(code::UNREADABLE).code
}

fn misconfigured(key: &str, problem: &str) -> Misconfigured {
    Misconfigured { key: key.to_string(), problem: problem.to_string() }
}

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RowsVisitor)
    }
}

/// Reads `1` or `"any"`.
struct RowsVisitor;

impl Visitor<'_> for RowsVisitor {
    type Value = Rows;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of rows or \"any\"")
    }

    fn visit_u64<E: de::Error>(self, rows: u64) -> Result<Rows, E> {
        Ok(Rows::Exactly(rows))
    }

    fn visit_i64<E: de::Error>(self, rows: i64) -> Result<Rows, E> {
        u64::try_from(rows).map(Rows::Exactly).map_err(|_| E::custom("a number of rows must not be negative"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Rows, E> {
        if text == "any" { Ok(Rows::Any) } else { Err(E::custom("write a number of rows or \"any\"")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn compile(config: serde_json::Value, mode: Mode) -> Result<Operation, Misconfigured> {
        // Through u64, as TOML would: this workspace's JSON numbers arrive as text.
        let config: OperationConfig = serde_json::from_value(config).unwrap();
        compile_operation("op", &config, mode, Dialect::Sqlite)
    }

    fn xa(sql: &str) -> serde_json::Value {
        json!({
            "parameters": { "a": { "path": "/a", "type": "text" } },
            "prepare": [{ "sql": sql, "rows": "any" }],
        })
    }

    #[test]
    fn an_operation_binds_its_payload() {
        let operation = compile(
            json!({
                "parameters": {
                    "a": { "path": "/deep/a", "type": "text" },
                    "b": { "path": "/b", "type": "integer", "optional": true },
                },
                "prepare": [{ "sql": "insert into t values (:b, :txid, :a, :b)", "rows": "any" }],
            }),
            Mode::Xa,
        )
        .unwrap();
        let txid: Txid = "k3f9q-3-1042".parse().unwrap();
        let raw = |text: &str| RawValue::from_string(text.to_string()).unwrap();
        let values = operation.bind(&txid, &raw(r#"{"deep":{"a":"x"},"other":1}"#)).unwrap();
        let step = &operation.prepare[0];
        assert_eq!(step.sql, "insert into t values (?1, ?2, ?3, ?1)");
        let bound: Vec<_> = step.values(&values).cloned().collect();
        assert_eq!(bound, [Value::Null, Value::Text("k3f9q-3-1042".to_string()), Value::Text("x".to_string())]);
        assert_eq!(step.kinds, [Kind::Integer, Kind::Text, Kind::Text]);

        let unusable = operation.bind(&txid, &raw(r#"{"deep":{"a":1}}"#)).unwrap_err();
        assert_eq!(unusable, Unusable { code: unreadable(), parameter: Some("a".to_string()) });
        let nested = format!("{}1{}", "[".repeat(500), "]".repeat(500));
        assert_eq!(operation.bind(&txid, &raw("[]")).unwrap_err().code, unreadable());
        if let Ok(nested) = RawValue::from_string(nested) {
            assert_eq!(operation.bind(&txid, &nested).unwrap_err().parameter, None);
        }
    }

    #[test]
    fn an_operation_tells_what_it_is_given() {
        let config: OperationConfig = serde_json::from_value(json!({
            "parameters": {
                "a": { "path": "/deep/a", "type": "text" },
                "b": { "path": "/b", "type": "integer" },
            },
            "prepare": [
                { "sql": "update t set a = :a, b = :b where c = :a and d = :txid", "rows": 1 },
                { "sql": "select 1", "rows": "any" },
            ],
        }))
        .unwrap();
        let operations =
            compile_operations(&BTreeMap::from([("op".to_string(), config)]), Mode::Xa, Dialect::Mariadb).unwrap();
        let operation = &operations["op"];
        assert_eq!(operation.sample_payload(), json!({ "deep": { "a": "sample" }, "b": 1 }));
        let named = [("a", Kind::Text), ("b", Kind::Integer), ("txid", Kind::Text)];
        assert_eq!(
            operation.parameters_of(&operation.prepare[0]),
            named,
            "each once, though MariaDB is given :a twice"
        );
        assert_eq!(operation.parameters_of(&operation.prepare[1]), []);
    }

    #[test]
    fn names_and_steps_have_an_end() {
        let config = |steps: usize| -> OperationConfig {
            let step = json!({ "sql": "select 1", "rows": "any" });
            serde_json::from_value(json!({ "prepare": vec![step; steps] })).unwrap()
        };
        let is_taken = |name: &str, steps| compile_operation(name, &config(steps), Mode::Xa, Dialect::Sqlite).is_ok();
        assert!(is_taken(&"x".repeat(LONGEST_NAME), MAX_STEPS));
        assert!(!is_taken(&"x".repeat(LONGEST_NAME + 1), 1));
        assert!(!is_taken("op", MAX_STEPS + 1));
    }

    #[test]
    fn rows_are_a_number_or_any() {
        let rows = |rows: serde_json::Value| serde_json::from_value::<Rows>(rows).map_err(|error| error.to_string());
        assert_eq!(rows(json!("any")), Ok(Rows::Any));
        for wrong in [json!(-1), json!("some"), json!(true)] {
            let said = rows(wrong.clone()).unwrap_err();
            assert!(said.contains("a number of rows"), "{wrong}: {said}");
        }
    }

    #[test]
    fn mistakes_are_found_before_anything_runs() {
        let reserve = |confirm: &str| {
            json!({
                "parameters": { "a": { "path": "/a", "type": "text" } },
                "reserve": [{ "sql": "insert into t values (:a)", "rows": "any" }],
                "confirm": [{ "sql": confirm, "rows": "any" }],
                "cancel": [{ "sql": "delete from t where txid = :txid", "rows": "any" }],
            })
        };
        assert!(compile(xa("select :a"), Mode::Xa).is_ok());
        assert!(compile(reserve("update t set a = 1 where txid = :txid"), Mode::Reserve).is_ok());
        let wrong = [
            (xa("select :a, :b"), Mode::Xa, "operation.op.prepare[0]: no parameter is declared for :b"),
            (xa("select 1"), Mode::Xa, "operation.op.parameters.a: no step uses it"),
            (xa("commit"), Mode::Xa, "operation.op.prepare[0]: a step must begin with SELECT"),
            (xa("select :a"), Mode::Reserve, "operation.op.prepare: mode reserve has"),
            (reserve("select 1"), Mode::Xa, "operation.op.reserve: mode xa has"),
            (reserve("select :a"), Mode::Reserve, "operation.op.confirm[0]: confirm and cancel know :txid alone"),
            (json!({}), Mode::Xa, "operation.op.prepare: the steps are missing"),
            (json!({ "prepare": [] }), Mode::Xa, "operation.op.prepare: at least one step"),
            (
                json!({ "reserve": [{ "sql": "select 1", "rows": "any" }], "confirm": [] }),
                Mode::Reserve,
                "operation.op.cancel: the steps are missing",
            ),
            (
                json!({ "parameters": { "txid": { "path": "/a", "type": "text" } } }),
                Mode::Xa,
                "operation.op.parameters.txid: :txid is always there",
            ),
            (
                json!({ "parameters": { "A": { "path": "/a", "type": "text" } } }),
                Mode::Xa,
                "operation.op.parameters.A: name it with",
            ),
            (
                json!({ "parameters": { "a": { "path": "a", "type": "text" } } }),
                Mode::Xa,
                "operation.op.parameters.a: path is no JSON pointer",
            ),
            (
                json!({ "parameters": { "a": { "path": "/a", "type": "decimal" } } }),
                Mode::Xa,
                "operation.op.parameters.a: SQLite has no decimal",
            ),
        ];
        for (config, mode, expected) in wrong {
            let problem = compile(config, mode).unwrap_err().to_string();
            assert!(problem.starts_with(expected), "{problem}");
        }
    }

    #[test]
    fn what_finishes_a_branch_is_what_was_there_when_it_was_reserved() {
        let steps = |sql: &str| json!([{ "sql": sql, "rows": 1 }, { "sql": "select 1", "rows": 1 }]);
        let config = json!({
            "reserve": [{ "sql": "insert into t values (:txid)", "rows": 1, "code": "FULL" }],
            "confirm": steps("update t set a = 1 where txid = :txid"),
            "cancel": steps("delete from t where txid = :txid"),
        });
        let compiled = |config: &serde_json::Value| {
            BTreeMap::from([("op".to_string(), compile(config.clone(), Mode::Reserve).unwrap())])
        };
        let noted = compiled(&config)["op"].noted();
        let found = |operations: &BTreeMap<String, Operation>, noted: &str| {
            noted_operation(operations, noted).map(|operation| operation.name.clone())
        };
        let changed = |pointer: &str, value: serde_json::Value| {
            let mut config = config.clone();
            *config.pointer_mut(pointer).unwrap() = value;
            compiled(&config)
        };
        let same = changed("/reserve/0/sql", json!("insert into u values (:txid)"));
        assert_eq!(found(&same, &noted), Ok("op".to_string()), "what reserves may change");
        for other in [
            changed("/confirm/0/sql", json!("update t set a = 2 where txid = :txid")),
            changed("/cancel/0/rows", json!("any")),
            changed("/confirm/1/rows", json!(2)),
            changed("/confirm", json!([])),
        ] {
            assert_eq!(found(&other, &noted), Err(NoSteps::Changed("op".to_string())));
            assert_eq!(found(&other, "op"), Ok("op".to_string()), "a row of an older build");
        }
        let mut swapped = config.clone();
        swapped["confirm"] = config["cancel"].clone();
        swapped["cancel"] = config["confirm"].clone();
        assert_eq!(found(&compiled(&swapped), &noted), Err(NoSteps::Changed("op".to_string())));
        assert_eq!(found(&BTreeMap::new(), &noted), Err(NoSteps::Missing("op".to_string())));
        assert_eq!(found(&same, "other#1"), Err(NoSteps::Missing("other#1".to_string())));
        assert_eq!(compile(xa("select :a"), Mode::Xa).unwrap().noted(), "op", "mode xa has nothing left to run");
    }

    #[test]
    fn a_seed_has_no_txid() {
        let seed = |sql: &str| {
            let config = json!({ "steps": [{ "sql": sql, "rows": "any" }] });
            compile_seeds(
                &BTreeMap::from([("s".to_string(), serde_json::from_value(config).unwrap())]),
                Dialect::Sqlite,
            )
        };
        assert!(seed("insert into t values (1)").is_ok());
        assert_eq!(seed("insert into t values (:txid)").unwrap_err().key, "seed.s.steps[0]");
    }

    #[test]
    fn the_first_code_that_fits_is_given() {
        let mut operation = xa("select :a");
        operation["prepare"][0]["code"] = json!("GONE");
        operation["prepare"][0]["unique"] = json!("TWICE");
        let mut step = compile(operation, Mode::Xa).unwrap().prepare.remove(0);
        assert_eq!(step.refuses_rows(0), None);
        step.rows = Rows::Exactly(1);
        assert_eq!(step.refuses_rows(1), None);
        assert_eq!(step.refuses_rows(2).unwrap().as_str(), "GONE");
        assert_eq!(step.on_unique().as_str(), "TWICE");
        assert_eq!(step.on_check().as_str(), "statement_failed");
        step.code = None;
        assert_eq!(step.refuses_rows(2).unwrap().as_str(), "statement_failed");
    }
}
