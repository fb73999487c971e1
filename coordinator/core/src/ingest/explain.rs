//! What the rules make of one event, for people: `suture ingest explain`. The same way as [`map`](super::map), without
//! Kafka: which rule took the event and why the ones before it did not, the keys and what they are made of, what each
//! participant would get, or why it is rejected.
//!
//! An explanation holds the event's content. It is for the person who has the event in hand; it goes into no log.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;
use suture_contract::partitioner::shard_of;

use super::rules::Rules;
use super::{Examination, Keys, Made, Refusal, Tried, examine};

/// What the rules make of an event.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The rules that were asked, in order.
    pub rules: Vec<RuleAsked>,
    /// What came of it.
    pub result: Explained,
}

/// A rule that was asked whether the event is its own.
#[derive(Debug, Clone, Serialize)]
pub struct RuleAsked {
    /// The rule's id.
    pub rule: String,
    /// The first condition that does not hold; absent if the rule takes the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fails: Option<String>,
}

/// What would become of the event.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Explained {
    /// This request.
    Request(ExplainedRequest),
    /// A rejection.
    Rejected {
        /// The reason.
        code: &'static str,
        /// What could not be made, and from where in the event.
        #[serde(skip_serializing_if = "Option::is_none")]
        field: Option<String>,
    },
    /// Nothing.
    Ignored {
        /// Why.
        why: &'static str,
    },
}

/// A request, and what its keys are made of.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs)]
pub struct ExplainedRequest {
    pub rule: String,
    pub source: String,
    pub key: String,
    pub revision: String,
    pub business_key: String,
    pub order_key: String,
    pub shard: u16,
    pub shards: u16,
    pub ordered: bool,
    pub deadline_ms: u64,
    pub retry_after_ms: Vec<u64>,
    pub hash: String,
    pub branches: Vec<ExplainedBranch>,
}

/// What one participant would get.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs)]
pub struct ExplainedBranch {
    pub participant: String,
    pub operation: String,
    pub payload: Value,
}

/// Explains one event, under the rules of all topics, in a deployment of so many shards (> 0).
pub fn explain(rules: &Rules, keys: &Keys, shards: u16, value: Option<&[u8]>) -> Explanation {
    let Examination { tried, result } = examine(rules, keys, None, value);
    Explanation {
        rules: tried.iter().map(RuleAsked::of).collect(),
        result: match result {
            Ok(made) => Explained::Request(ExplainedRequest::of(made, rules, shards)),
            Err(Refusal::Rejected { code, field }) => Explained::Rejected { code, field },
            Err(Refusal::Ignored(why)) => Explained::Ignored { why: why.as_str() },
        },
    }
}

impl Explanation {
    /// As one JSON object.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain structs of texts and numbers always serialise")
    }

    /// For a terminal; ends with a line break.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("writing to a String cannot fail");
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        for asked in &self.rules {
            match &asked.fails {
                Some(condition) => writeln!(out, "rule {}: no, because this does not hold: {condition}", asked.rule)?,
                None => writeln!(out, "rule {}: yes", asked.rule)?,
            }
        }
        match &self.result {
            Explained::Request(request) => request.write(out),
            Explained::Rejected { code, field } => {
                writeln!(out, "rejected: {code}")?;
                field.iter().try_for_each(|field| writeln!(out, "field: {field}"))
            }
            Explained::Ignored { why } => writeln!(out, "ignored: {why}"),
        }
    }
}

impl RuleAsked {
    fn of(tried: &Tried<'_>) -> Self {
        Self { rule: tried.rule.id.clone(), fails: tried.failed.map(|condition| condition.text.clone()) }
    }
}

impl ExplainedRequest {
    fn of(made: Made, rules: &Rules, shards: u16) -> Self {
        let Made { order_key, request, key } = made;
        let retries = rules.retries_of(&request.rule).unwrap_or_default();
        Self {
            rule: request.rule,
            source: key.source,
            key: key.id,
            revision: key.revision,
            business_key: request.business_key.to_string(),
            shard: shard_of(order_key.as_str().as_bytes(), shards).0,
            shards,
            order_key: order_key.to_string(),
            ordered: request.ordered,
            deadline_ms: request.deadline_ms,
            retry_after_ms: retries.iter().map(|pause| pause.as_millis() as u64).collect(),
            hash: request.hash.to_string(),
            branches: request
                .branches
                .into_iter()
                .map(|branch| ExplainedBranch {
                    participant: branch.participant.to_string(),
                    operation: branch.operation,
                    payload: serde_json::from_str(branch.payload.get()).expect("a payload is JSON"),
                })
                .collect(),
        }
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "about: {} of source {}, revision {}", self.key, self.source, self.revision)?;
        writeln!(out, "business key: {}", self.business_key)?;
        writeln!(out, "order key: {}, shard {} of {}", self.order_key, self.shard, self.shards)?;
        if self.ordered {
            writeln!(out, "ordered: starts when the transaction before it of this order key is decided")?;
        }
        writeln!(out, "deadline: {} ms", self.deadline_ms)?;
        let retries: Vec<String> = self.retry_after_ms.iter().map(u64::to_string).collect();
        match retries.as_slice() {
            [] => writeln!(out, "driven again: never")?,
            retries => writeln!(out, "driven again: {} ms after an abort that may pass", retries.join(", "))?,
        }
        writeln!(out, "hash: {}", self.hash)?;
        for branch in &self.branches {
            writeln!(out, "\n{} is asked to {}:\n{:#}", branch.participant, branch.operation, branch.payload)?;
        }
        Ok(())
    }
}
