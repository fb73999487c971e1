//! Paths over an event: JSONPath (RFC 9535) from the event itself or from one of the rule's named resources.
//!
//! A name is looked up when a path needs it, once an event. So what no path uses may be broken, and is not looked at.

use std::cell::OnceCell;

use serde_json::Value;
use serde_json_path::JsonPath;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::bundle::{Bundle, Resource};
use super::reason;
use super::rules::{CodeList, Condition, Named, Rule, Take, Test};

/// A JSONPath, and where it begins: in a named resource, or in whatever is looked at (the event, an item of a list).
#[derive(Debug)]
pub(super) struct Path {
    pub resource: Option<usize>,
    pub query: JsonPath,
    pub text: String,
}

/// Several paths; the first one that hits counts.
#[derive(Debug)]
pub(super) struct Paths(pub Vec<Path>);

/// Why a field has no value: a reason code, and where in the event (as the rule names it; never any content).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub code: &'static str,
    pub at: String,
}

/// A node of the event and the resource that it stands in.
#[derive(Clone, Copy)]
pub(super) struct Hit<'a> {
    pub node: &'a Value,
    pub owner: Resource<'a>,
}

/// One event under one rule.
pub(super) struct Scope<'a> {
    rule: &'a Rule,
    codes: &'a [CodeList],
    bundle: &'a Bundle<'a>,
    found: Vec<OnceCell<Result<Vec<Resource<'a>>, Fault>>>,
}

impl Paths {
    /// The paths as the rule names them.
    pub fn text(&self) -> String {
        self.0.iter().map(|path| path.text.as_str()).collect::<Vec<_>>().join(" | ")
    }

    pub fn fault(&self, code: &'static str) -> Fault {
        Fault { code, at: self.text() }
    }
}

impl<'a> Scope<'a> {
    pub fn new(rule: &'a Rule, codes: &'a [CodeList], bundle: &'a Bundle<'a>) -> Self {
        Self { rule, codes, bundle, found: rule.resources.iter().map(|_| OnceCell::new()).collect() }
    }

    pub fn rule(&self) -> &'a Rule {
        self.rule
    }

    pub fn bundle(&self) -> &'a Bundle<'a> {
        self.bundle
    }

    /// Whether a condition holds. A test of a resource's content needs that resource: if it is not there, or not
    /// alone, the event is not simply another one, and that is a fault. Only a test for presence takes absence for an
    /// answer.
    pub fn holds(&self, condition: &Condition, here: Resource<'a>) -> Result<bool, Fault> {
        let mut hits = Vec::new();
        for path in &condition.paths.0 {
            match self.hits(path, here) {
                Ok(found) => hits.extend(found),
                Err(fault) if fault.code == reason::MISSING && matches!(condition.test, Test::Present(_)) => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(match &condition.test {
            Test::Present(wanted) => hits.is_empty() != *wanted,
            Test::Is(values) => hits.iter().any(|hit| values.contains(hit.node)),
            Test::Coded(list) => hits.iter().any(|hit| self.codes[*list].has(hit.node)),
        })
    }

    pub fn code_list(&self, list: usize) -> &'a CodeList {
        &self.codes[list]
    }

    /// The hits of the first path that has any.
    ///
    /// Only absence lets the next path try. A reference that leads nowhere does not: the next path may well lead to
    /// somebody else.
    pub fn first_hits(&self, paths: &Paths, here: Resource<'a>) -> Result<Vec<Hit<'a>>, Fault> {
        let mut missing = paths.fault(reason::MISSING);
        for path in &paths.0 {
            match self.hits(path, here) {
                Ok(hits) if hits.is_empty() => {}
                Ok(hits) => return Ok(hits),
                Err(fault) if fault.code == reason::MISSING => {
                    // With a single path the missing resource says more than the path through it.
                    if paths.0.len() == 1 {
                        missing = fault;
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
        Err(missing)
    }

    /// What the first reference that names anything leads to. A mere display text names nothing, so the next one may.
    pub fn first_reference<T>(
        &self,
        paths: &Paths,
        here: Resource<'a>,
        lead: impl Fn(Hit<'a>) -> Result<Option<T>, &'static str>,
    ) -> Result<T, Fault> {
        for path in &paths.0 {
            let hits = match self.hits(path, here) {
                Err(fault) if fault.code == reason::MISSING && paths.0.len() > 1 => continue,
                hits => hits?,
            };
            for hit in hits {
                if let Some(found) = lead(hit).map_err(|code| Fault { code, at: path.text.clone() })? {
                    return Ok(found);
                }
            }
        }
        Err(paths.fault(reason::MISSING))
    }

    /// All nodes of one path, without nulls and empty texts.
    pub fn hits(&self, path: &Path, here: Resource<'a>) -> Result<Vec<Hit<'a>>, Fault> {
        let one;
        let owners = match path.resource {
            Some(resource) => self.resources(resource)?,
            None => {
                one = [here];
                &one[..]
            }
        };
        let mut hits = Vec::new();
        for &owner in owners {
            let nodes = path.query.query(owner.value).all();
            hits.extend(nodes.into_iter().filter(|node| !is_nothing(node)).map(|node| Hit { node, owner }));
        }
        Ok(hits)
    }

    /// The resources of a name, looked up once.
    pub fn resources(&self, resource: usize) -> Result<&[Resource<'a>], Fault> {
        let found = self.found[resource].get_or_init(|| self.look_up(&self.rule.resources[resource]));
        found.as_deref().map_err(Fault::clone)
    }

    fn look_up(&self, named: &'a Named) -> Result<Vec<Resource<'a>>, Fault> {
        let fault = |code| Fault { code, at: named.name.clone() };
        if let Some(paths) = &named.refer {
            let follow = |hit: Hit<'a>| self.bundle.follow(hit.node, hit.owner, &named.kind);
            return Ok(vec![self.first_reference(paths, Resource::whole(&NOTHING), follow)?]);
        }

        let mut found = Vec::new();
        for resource in self.bundle.of_type(&named.kind) {
            let mut all_hold = true;
            for condition in &named.conditions {
                all_hold = all_hold && self.holds(condition, resource)?;
            }
            if all_hold {
                found.push(resource);
            }
        }
        self.sort(&mut found, &named.order);
        match named.take {
            Take::All => {}
            _ if found.is_empty() => return Err(fault(reason::MISSING)),
            Take::First => found.truncate(1),
            Take::One if found.len() > 1 => return Err(fault(reason::AMBIGUOUS)),
            Take::One => {}
        }
        Ok(found)
    }

    /// Times by the clock, everything else as text; what has none stands last. What is equal in all of that is told apart by
    /// its content: the place of its entry means nothing.
    fn sort(&self, resources: &mut [Resource<'a>], order: &[Paths]) {
        if resources.len() < 2 {
            return;
        }
        let first = |paths: &Paths, here| {
            let hit = self.first_hits(paths, here).ok()?.first()?.node;
            Some(SortKey::of(hit))
        };
        let keys = |resource| -> Vec<SortKey> {
            order.iter().map(|paths| first(paths, resource).unwrap_or(SortKey::Absent)).collect()
        };
        let mut keyed: Vec<_> = resources.iter().map(|&resource| (keys(resource), resource)).collect();
        keyed
            .sort_by(|(a, one), (b, other)| a.cmp(b).then_with(|| one.value.to_string().cmp(&other.value.to_string())));
        for (place, (_, resource)) in resources.iter_mut().zip(keyed) {
            *place = resource;
        }
    }
}

/// What a path looks at that must begin in a named resource.
static NOTHING: Value = Value::Null;

/// The time of an RFC 3339 text.
pub(super) fn instant(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// The text of a scalar: as in the source.
pub(super) fn scalar_text(node: &Value) -> Option<String> {
    match node {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn is_nothing(node: &Value) -> bool {
    node.is_null() || node.as_str() == Some("")
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum SortKey {
    Time(OffsetDateTime),
    Text(String),
    Absent,
}

impl SortKey {
    fn of(node: &Value) -> Self {
        match node.as_str().and_then(instant) {
            Some(time) => Self::Time(time),
            None => scalar_text(node).map_or(Self::Absent, Self::Text),
        }
    }
}
