//! Tries operations on the real tables, and changes nothing: all of it runs in a local transaction that is rolled back.
//!
//! ```text
//! BEGIN; each prepare (reserve) step under a savepoint of its own; deferred constraints; the confirm steps;  ROLLBACK
//! BEGIN; the reserve steps; the cancel steps;                                                                ROLLBACK
//! ```
//!
//! A step that fails is undone and the next one runs all the same, so that one report tells of all of them. What an operation finds
//! with made-up values says little (a patient called `sample` is unknown); that it runs at all says that text, types, rights and
//! tables fit. With a payload of a real event the report is what the vote would be.
//!
//! What a rollback leaves behind everywhere stays: numbers of a sequence are used up. The ledger is not touched.
//!
//! Of errors only codes are told, because their text may hold values; but of a step that does not fit the tables the text is the
//! template's own.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use suture_contract::ids::{Code, LogLetters, Shard, Txid};
use suture_participants_core::operations::{Operation, Rows, Step, Values};

use crate::config::{Database, ParticipantConfig};
use crate::reserve::{Session, Work};
use crate::resource::{OpenError, Opening, Unavailable};
use crate::rights::is_denied;
use crate::trouble::{Blame, Landed, Trouble};
use crate::{mariadb, postgres, sqlite};

/// What is to be tried.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// One operation; without it all of them.
    pub operation: Option<String>,
    /// The payload of an event; without it made-up values.
    pub payload: Option<Box<RawValue>>,
}

/// An operation that was tried.
#[derive(Debug, Clone)]
pub struct Tried {
    /// Which.
    pub operation: String,
    /// With what: the made-up payload.
    pub sample: Option<String>,
    /// The payload could not be read: why, and the parameter at fault.
    pub unusable: Option<(Code, Option<String>)>,
    /// Its steps, in order: prepare or reserve, then confirm, then cancel.
    pub steps: Vec<TriedStep>,
    /// The deferred constraint that would have failed at the end, as the database's code.
    pub deferred: Option<String>,
}

/// A step that was tried.
#[derive(Debug, Clone)]
pub struct TriedStep {
    /// Its place in the configuration.
    pub place: String,
    /// Its parameters with their types: `case text`.
    pub parameters: Vec<String>,
    /// How many rows it should read or change.
    pub expected: Rows,
    /// What became of it.
    pub result: StepResult,
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepResult {
    /// It ran; so many rows, as expected, or nothing may be said about them.
    Ran(u64),
    /// It ran, and would refuse the branch: by its number of rows, or by a constraint (the database's code).
    Refuses {
        /// The branch's reason.
        code: Code,
        /// How many rows, or the database's code.
        because: String,
    },
    /// It does not run: not with these tables or types. Text of the template's own, or a code.
    Broken(String),
    /// It does not run: the role may not. Text of the template's own, or a code.
    Denied(String),
}

impl Tried {
    /// Why a branch with these values would be refused; `None`: the vote is yes.
    pub fn refusal(&self) -> Option<Code> {
        let of_step = self.steps.iter().find_map(|step| match &step.result {
            StepResult::Refuses { code, .. } => Some(code.clone()),
            StepResult::Ran(_) | StepResult::Broken(_) | StepResult::Denied(_) => None,
        });
        self.unusable.as_ref().map(|(code, _)| code.clone()).or(of_step)
    }

    /// Whether every step runs.
    pub fn runs(&self) -> bool {
        self.steps.iter().all(|step| !matches!(step.result, StepResult::Broken(_) | StepResult::Denied(_)))
    }

    /// Whether the role lacks a right.
    pub fn is_denied(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.result, StepResult::Denied(_)))
    }
}

/// Tries operations on the participant's database.
pub async fn try_operations(config: &ParticipantConfig, opening: Opening, wish: Wish) -> Result<Vec<Tried>, OpenError> {
    match &config.database {
        Database::Sqlite(settings) => sqlite::try_all(settings.clone(), opening, wish).await,
        Database::Postgres(settings) => postgres::try_all(settings, &opening, &wish).await,
        Database::Mariadb(settings) => mariadb::try_all(settings, &opening, &wish).await,
    }
}

/// Every step that may be tried.
pub(crate) fn steps(opening: &Opening) -> impl Iterator<Item = &Step> {
    opening
        .operations
        .values()
        .flat_map(|operation| operation.prepare.iter().chain(&operation.confirm).chain(&operation.cancel))
}

/// Why a step cannot run, with its place.
pub(crate) fn unfit(checked: Result<(), OpenError>) -> Result<Option<(String, StepResult)>, OpenError> {
    match checked {
        Ok(()) => Ok(None),
        Err(OpenError::Statement { place, code, said }) => {
            Ok(Some((place, StepResult::Broken(format!("{code}: {said}")))))
        }
        Err(OpenError::Lacks { place, needed, code, said }) => {
            Ok(Some((place, StepResult::Denied(format!("it needs {needed} ({code}: {said})")))))
        }
        Err(error) => Err(error),
    }
}

/// Tries all that are wished for, one after the other.
pub(crate) async fn try_all<S: Session>(
    session: &mut S,
    opening: &Opening,
    wish: &Wish,
    unfit: &[(String, StepResult)],
) -> Result<Vec<Tried>, OpenError> {
    let unfit: BTreeMap<&str, &StepResult> = unfit.iter().map(|(place, result)| (place.as_str(), result)).collect();
    let is_wished = |operation: &&Operation| wish.operation.as_ref().is_none_or(|name| *name == operation.name);
    let mut tried = Vec::new();
    for operation in opening.operations.values().filter(is_wished) {
        tried.push(try_one(session, operation, wish, &unfit).await?);
    }
    Ok(tried)
}

async fn try_one<S: Session>(
    session: &mut S,
    operation: &Operation,
    wish: &Wish,
    unfit: &BTreeMap<&str, &StepResult>,
) -> Result<Tried, OpenError> {
    let sample = operation.sample_payload().to_string();
    let mut tried = Tried {
        operation: operation.name.clone(),
        sample: wish.payload.is_none().then(|| sample.clone()),
        unusable: None,
        steps: Vec::new(),
        deferred: None,
    };
    let unreadable = |_| OpenError::from(Unavailable::new("making values up", "they cannot be read"));
    let payload = match &wish.payload {
        Some(payload) => payload.clone(),
        None => RawValue::from_string(sample).map_err(unreadable)?,
    };
    let values = match operation.bind(&txid(), &payload) {
        Ok(values) => values,
        Err(unusable) => {
            tried.unusable = Some((unusable.code, unusable.parameter));
            return Ok(tried);
        }
    };
    let of_txid = Operation::bind_txid(&txid());
    begin(session).await?;
    let mut trial = Trial { session, operation, unfit, is_gone: false };
    let prepared = trial.steps(&operation.prepare, &values, true).await?;
    let is_yes = prepared.iter().all(|step| matches!(step.result, StepResult::Ran(_)));
    tried.steps.extend(prepared);
    if is_yes {
        tried.deferred = trial.session.check_deferred().await.err().map(|trouble| trouble.code);
    }
    // A constraint that has failed has ended the transaction.
    if tried.deferred.is_none() {
        tried.steps.extend(trial.steps(&operation.confirm, &of_txid, is_yes).await?);
    }
    roll_back(session).await?;
    if !operation.cancel.is_empty() {
        begin(session).await?;
        let mut trial = Trial { session, operation, unfit, is_gone: false };
        trial.steps(&operation.prepare, &values, true).await?;
        tried.steps.extend(trial.steps(&operation.cancel, &of_txid, is_yes).await?);
        roll_back(session).await?;
    }
    Ok(tried)
}

struct Trial<'a, S> {
    session: &'a mut S,
    operation: &'a Operation,
    unfit: &'a BTreeMap<&'a str, &'a StepResult>,
    /// An error has ended the whole local transaction, as a deadlock does.
    is_gone: bool,
}

impl<S: Session> Trial<'_, S> {
    /// `judged`: whether the number of rows says anything.
    async fn steps(&mut self, steps: &[Step], values: &Values, judged: bool) -> Result<Vec<TriedStep>, OpenError> {
        let mut tried = Vec::with_capacity(steps.len());
        for step in steps {
            let result = match self.unfit.get(step.place.as_str()) {
                Some(result) => StepResult::clone(result),
                None if self.is_gone => StepResult::Broken("not tried: the transaction has ended before".to_string()),
                None => self.run(step, values, judged).await?,
            };
            let parameters = self.operation.parameters_of(step);
            let parameters = parameters.into_iter().map(|(name, kind)| format!("{name} {kind}")).collect();
            tried.push(TriedStep { place: step.place.clone(), parameters, expected: step.rows, result });
        }
        Ok(tried)
    }

    async fn run(&mut self, step: &Step, values: &Values, judged: bool) -> Result<StepResult, OpenError> {
        let Landed { rows, trouble } = self.session.branch(&[Work::Step(step, values)]).await;
        let Some(trouble) = trouble else {
            let rows = rows.first().copied().unwrap_or(0);
            return Ok(match step.refuses_rows(rows).filter(|_| judged) {
                None => StepResult::Ran(rows),
                Some(code) => StepResult::Refuses { code, because: format!("{rows} rows") },
            });
        };
        self.is_gone = !self.session.undo_from(0).await.map_err(|trouble| trouble.unavailable("trying a step"))?;
        let result = match (trouble.blame, trouble.refuses(step)) {
            (Blame::Unique | Blame::Check | Blame::Busy, Some(code)) => {
                StepResult::Refuses { code, because: trouble.code }
            }
            (Blame::Statement, _) if is_denied(&trouble.code) => StepResult::Denied(trouble.code),
            (Blame::Statement, _) => StepResult::Broken(trouble.code),
            _ => return Err(trouble.unavailable("trying a step").into()),
        };
        Ok(result)
    }
}

async fn begin<S: Session>(session: &mut S) -> Result<(), OpenError> {
    session.begin().await.map_err(|trouble: Trouble| trouble.unavailable("trying an operation").into())
}

async fn roll_back<S: Session>(session: &mut S) -> Result<(), OpenError> {
    session.roll_back().await.map_err(|trouble: Trouble| trouble.unavailable("rolling back").into())
}

/// A name that no log gives.
fn txid() -> Txid {
    Txid { log: LogLetters::from_random([0; 4]), shard: Shard(0), offset: 0 }
}
