//! A FHIR Bundle as ingest sees it: resources by type, references that lead to one of them, identifiers.
//!
//! Entries have no order that means anything, a `fullUrl` is only a handle inside the Bundle (absolute or relative), and
//! an identity that stands there twice makes the whole transaction invalid.
//!
//! Left out: references to another server, versions of one resource, search beyond `identifier`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use super::reason;

/// The entries of an event; none if it is no Bundle.
pub(super) struct Bundle<'a> {
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    full_url: Option<&'a str>,
    method: Option<&'a str>,
    url: Option<&'a str>,
    resource: Option<&'a Value>,
}

/// A resource, and for a contained one the resource around it (where its `#id` references lead).
#[derive(Debug, Clone, Copy)]
pub(super) struct Resource<'a> {
    pub value: &'a Value,
    container: Option<&'a Value>,
}

/// Which of a resource's identifiers is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The type of resource that carries it.
    pub of: String,
    /// A code of `Identifier.type`, for example MR.
    pub kind: Option<String>,
    /// `Identifier.system`: the authority that gave the number.
    pub system: Option<String>,
}

/// An identifier: system and value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identifier<'a> {
    pub system: Cow<'a, str>,
    pub value: Cow<'a, str>,
}

impl<'a> Bundle<'a> {
    /// Reads the entries of an event.
    pub fn of(event: &'a Value) -> Self {
        let entries = event.get("entry").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        Self { entries: entries.iter().map(Entry::of).collect() }
    }

    /// The number of the first entry whose identity an earlier one has already.
    pub fn duplicate_identity(&self) -> Option<usize> {
        let mut seen = BTreeMap::new();
        for (number, entry) in self.entries.iter().enumerate() {
            for identity in entry.identities() {
                if *seen.entry(identity).or_insert(number) != number {
                    return Some(number);
                }
            }
        }
        None
    }

    /// All resources of a type that have an entry of their own.
    pub fn of_type(&self, kind: &str) -> impl Iterator<Item = Resource<'a>> {
        self.entries.iter().filter_map(|entry| entry.resource).filter(move |r| type_of(r) == kind).map(Resource::whole)
    }

    /// The resource of a type that a `Reference` leads to. `Ok(None)`: it names nothing (a mere display text).
    pub fn follow(
        &self,
        reference: &'a Value,
        owner: Resource<'a>,
        kind: &str,
    ) -> Result<Option<Resource<'a>>, &'static str> {
        let literal = reference.get("reference").and_then(Value::as_str);
        let logical = reference.get("identifier").and_then(Identifier::read);
        if literal.is_none() && logical.is_none() {
            return Ok(None);
        }
        let found = literal.and_then(|literal| self.lead(literal, owner)).or_else(|| self.identified(kind, &logical?));
        match found {
            Some(resource) if type_of(resource.value) == kind => Ok(Some(resource)),
            _ => Err(reason::UNRESOLVED_REFERENCE),
        }
    }

    /// The wanted identifier of what a `Reference` means: its own; else that of a conditional reference; else that of the
    /// resource in the Bundle. `Ok(None)`: it names nothing.
    pub fn identifier(
        &self,
        reference: &'a Value,
        owner: Resource<'a>,
        wanted: &Wanted,
    ) -> Result<Option<Identifier<'a>>, &'static str> {
        if let Some(own) = reference.get("identifier").filter(|own| wanted.accepts_untyped(own)) {
            return Ok(Identifier::read(own));
        }
        if let Some((kind, identifier)) = reference.get("reference").and_then(Value::as_str).and_then(conditional)
            && kind == wanted.of
            && wanted.system.as_deref() == Some(&*identifier.system)
        {
            return Ok(Some(identifier));
        }
        let Some(resource) = self.follow(reference, owner, &wanted.of)? else { return Ok(None) };
        let mut matching = identifiers(resource.value).filter(|i| wanted.accepts(i)).filter_map(Identifier::read);
        let first = matching.next().ok_or(reason::UNRESOLVED_REFERENCE)?;
        if matching.any(|other| other != first) {
            return Err(reason::AMBIGUOUS);
        }
        Ok(Some(first))
    }

    /// Where a `Reference.reference` leads: contained, `fullUrl`, `Type/id`, or a conditional reference.
    fn lead(&self, literal: &'a str, owner: Resource<'a>) -> Option<Resource<'a>> {
        if let Some(id) = literal.strip_prefix('#') {
            return owner.contained(id);
        }
        if let Some((kind, identifier)) = conditional(literal) {
            return self.identified(kind, &identifier);
        }
        let literal = literal.split("/_history/").next().unwrap_or(literal);
        let by_url = self.entries.iter().find(|entry| entry.full_url == Some(literal));
        let entry = by_url.or_else(|| {
            let (kind, id) = literal.split_once('/')?;
            self.entries.iter().find(|entry| entry.resource.is_some_and(|r| type_of(r) == kind && id_of(r) == Some(id)))
        })?;
        entry.resource.map(Resource::whole)
    }

    /// The one resource of a type with an identifier.
    fn identified(&self, kind: &str, identifier: &Identifier<'_>) -> Option<Resource<'a>> {
        let mut matching = self
            .of_type(kind)
            .filter(|r| identifiers(r.value).any(|i| Identifier::read(i).as_ref() == Some(identifier)));
        let first = matching.next()?;
        matching.next().is_none().then_some(first)
    }
}

impl<'a> Entry<'a> {
    fn of(entry: &'a Value) -> Self {
        let text = |value: Option<&'a Value>| value.and_then(Value::as_str);
        let request = entry.get("request");
        Self {
            full_url: text(entry.get("fullUrl")),
            method: text(request.and_then(|r| r.get("method"))),
            url: text(request.and_then(|r| r.get("url"))),
            resource: entry.get("resource").filter(|r| r.is_object()),
        }
    }

    /// All names of what this entry is about. A conditional update or delete names it by its query.
    fn identities(&self) -> impl Iterator<Item = String> {
        let by_id = self.resource.and_then(|r| Some(format!("{}/{}", type_of(r), id_of(r)?)));
        let target = self.url.filter(|_| matches!(self.method, Some("PUT" | "PATCH" | "DELETE")));
        [self.full_url.map(str::to_string), by_id, target.map(str::to_string)].into_iter().flatten()
    }
}

impl<'a> Resource<'a> {
    pub fn whole(value: &'a Value) -> Self {
        Self { value, container: None }
    }

    fn contained(self, id: &str) -> Option<Self> {
        let container = self.container.unwrap_or(self.value);
        let inner = container.get("contained")?.as_array()?.iter().find(|r| id_of(r) == Some(id))?;
        Some(Self { value: inner, container: Some(container) })
    }
}

impl Wanted {
    fn accepts(&self, identifier: &Value) -> bool {
        self.kind.as_deref().is_none_or(|kind| has_type(identifier, kind)) && self.accepts_system(identifier)
    }

    /// As [`Self::accepts`]; an identifier without any type will do if its system is the wanted one.
    fn accepts_untyped(&self, identifier: &Value) -> bool {
        let untyped = identifier.get("type").is_none() && self.system.is_some();
        if untyped { self.accepts_system(identifier) } else { self.accepts(identifier) }
    }

    fn accepts_system(&self, identifier: &Value) -> bool {
        let system = identifier.get("system").and_then(Value::as_str);
        self.system.as_deref().is_none_or(|wanted| system == Some(wanted))
    }
}

impl<'a> Identifier<'a> {
    /// `None` without a system or a value: half an identifier identifies nobody.
    fn read(identifier: &'a Value) -> Option<Self> {
        let part =
            |name| identifier.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(Cow::Borrowed);
        Some(Self { system: part("system")?, value: part("value")? })
    }
}

fn type_of(resource: &Value) -> &str {
    resource.get("resourceType").and_then(Value::as_str).unwrap_or_default()
}

fn id_of(resource: &Value) -> Option<&str> {
    resource.get("id").and_then(Value::as_str)
}

fn identifiers(resource: &Value) -> impl Iterator<Item = &Value> {
    resource.get("identifier").and_then(Value::as_array).into_iter().flatten()
}

fn has_type(identifier: &Value, kind: &str) -> bool {
    let codings = identifier.get("type").and_then(|t| t.get("coding")).and_then(Value::as_array);
    codings.into_iter().flatten().any(|coding| coding.get("code").and_then(Value::as_str) == Some(kind))
}

/// `Type?identifier=system|value`, the bar and others possibly as %XX.
fn conditional(literal: &str) -> Option<(&str, Identifier<'_>)> {
    let (kind, token) = literal.split_once("?identifier=")?;
    if token.contains('&') {
        return None;
    }
    let token = percent_decoded(token)?;
    let (system, value) = token.split_once('|').filter(|(system, value)| !system.is_empty() && !value.is_empty())?;
    Some((kind, Identifier { system: system.to_string().into(), value: value.to_string().into() }))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let hex = std::str::from_utf8(after.get(..2)?).ok().filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bundle() -> Value {
        json!({"entry": [
            {"fullUrl": "urn:uuid:1", "resource": {"resourceType": "Patient", "id": "p", "identifier": [
                {"system": "http://ssn", "value": "999", "type": {"coding": [{"code": "SS"}]}},
                {"system": "http://mrn", "value": "42", "type": {"coding": [{"code": "MR"}]}}]}},
            {"fullUrl": "Organization/o", "resource": {"resourceType": "Organization", "id": "o"},
                "request": {"method": "PUT", "url": "Organization/o"}},
            {"resource": {"resourceType": "Claim", "id": "c", "contained": [
                {"resourceType": "Coverage", "id": "cov", "payor": [{"reference": "#org"}]},
                {"resourceType": "Organization", "id": "org", "name": "Payer"}]}}
        ]})
    }

    fn wanted(kind: Option<&str>, system: Option<&str>) -> Wanted {
        Wanted { of: "Patient".into(), kind: kind.map(Into::into), system: system.map(Into::into) }
    }

    #[test]
    fn every_way_of_naming_a_patient_gives_the_same_identifier() {
        let event = bundle();
        let bundle = Bundle::of(&event);
        let owner = bundle.of_type("Claim").next().unwrap();
        for reference in [
            json!({"identifier": {"system": "http://mrn", "value": "42"}}),
            json!({"identifier": {"system": "http://ssn", "value": "999"}, "reference": "urn:uuid:1"}),
            json!({"reference": "Patient?identifier=http://mrn|42"}),
            json!({"reference": "Patient?identifier=http%3A%2F%2Fmrn%7C42"}),
            json!({"reference": "urn:uuid:1"}),
            json!({"reference": "Patient/p"}),
            json!({"reference": "Patient/p/_history/3"}),
        ] {
            let found = bundle.identifier(&reference, owner, &wanted(Some("MR"), Some("http://mrn"))).map(|found| {
                let found = found.unwrap();
                (found.system.into_owned(), found.value.into_owned())
            });
            assert_eq!(found, Ok(("http://mrn".to_string(), "42".to_string())), "{reference}");
        }
    }

    #[test]
    fn what_leads_nowhere_says_so() {
        let event = bundle();
        let bundle = Bundle::of(&event);
        let owner = bundle.of_type("Claim").next().unwrap();
        for (reference, expected) in [
            (json!({"display": "somebody"}), Ok(None)),
            (json!({"reference": "urn:uuid:2"}), Err(reason::UNRESOLVED_REFERENCE)),
            (json!({"reference": "http://elsewhere/fhir/Patient/p"}), Err(reason::UNRESOLVED_REFERENCE)),
            (json!({"reference": "Organization/o"}), Err(reason::UNRESOLVED_REFERENCE)),
            (json!({"reference": "Patient?identifier=42"}), Err(reason::UNRESOLVED_REFERENCE)),
            (json!({"reference": "#nothing"}), Err(reason::UNRESOLVED_REFERENCE)),
        ] {
            assert_eq!(bundle.identifier(&reference, owner, &wanted(Some("MR"), None)), expected, "{reference}");
        }
        let by_id = json!({"reference": "Patient/p"});
        assert_eq!(bundle.identifier(&by_id, owner, &wanted(Some("DL"), None)), Err(reason::UNRESOLVED_REFERENCE));
        assert_eq!(bundle.identifier(&by_id, owner, &wanted(None, None)), Err(reason::AMBIGUOUS));
    }

    #[test]
    fn contained_resources_refer_to_their_siblings() {
        let event = bundle();
        let bundle = Bundle::of(&event);
        let owner = bundle.of_type("Claim").next().unwrap();
        let to_coverage = json!({"reference": "#cov"});
        let coverage = bundle.follow(&to_coverage, owner, "Coverage").unwrap().unwrap();
        let payer = bundle.follow(&coverage.value["payor"][0], coverage, "Organization").unwrap().unwrap();
        assert_eq!(payer.value["name"], "Payer");
        assert_eq!(bundle.of_type("Coverage").count(), 0, "a contained resource has no entry");
    }

    #[test]
    fn one_identity_stands_once() {
        assert_eq!(Bundle::of(&bundle()).duplicate_identity(), None);
        for again in [
            json!({"fullUrl": "urn:uuid:1"}),
            json!({"resource": {"resourceType": "Patient", "id": "p"}}),
            json!({"request": {"method": "DELETE", "url": "Patient/p"}}),
            json!({"request": {"method": "PATCH", "url": "Organization/o"}}),
        ] {
            let mut event = bundle();
            event["entry"].as_array_mut().unwrap().push(again.clone());
            assert_eq!(Bundle::of(&event).duplicate_identity(), Some(3), "{again}");
        }
        let mut event = bundle();
        event["entry"].as_array_mut().unwrap().push(json!({"request": {"method": "GET", "url": "Patient/p"}}));
        assert_eq!(Bundle::of(&event).duplicate_identity(), None, "reading is no identity");
    }
}
