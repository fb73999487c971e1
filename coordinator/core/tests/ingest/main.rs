//! Ingest against the rules of `compose/config`: the samples, odd events, the language itself.

mod events;
mod explain;
mod rules;
mod samples;

use serde_json::Value;
use suture_contract::keys::{HashKey, IdentityKey};
use suture_contract::messages::{Rejection, Request};
use suture_coordinator_core::ingest::rules::Rules;
use suture_coordinator_core::ingest::{Event, Ignored, Keys, Mapped, map};

const TOPIC: &str = "hospital.surgeries";

/// A small case: a `PUT` without urn:uuid, a conditional reference, contained coverage, exact digits, canaries.
const APPENDIX: &str = include_str!("appendix.json");

fn compose_file(name: &str) -> String {
    let path = format!("{}/../../compose/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn compose_rules(name: &str) -> Rules {
    Rules::parse(&compose_file(&format!("config/{name}"))).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn keys() -> Keys {
    let hash = HashKey::new("k1".parse().unwrap(), b"a hash key for tests").unwrap();
    Keys { identity: IdentityKey::new(b"an identity key for tests").unwrap(), hash }
}

fn map_bytes(rules: &Rules, value: Option<&[u8]>) -> Mapped {
    map(rules, &keys(), &Event { topic: TOPIC, partition: 3, offset: 41, value })
}

fn map_text(rules: &Rules, event: &str) -> Mapped {
    map_bytes(rules, Some(event.as_bytes()))
}

fn request(mapped: Mapped) -> Request {
    match mapped {
        Mapped::Request { request, .. } => *request,
        other => panic!("{other:?}"),
    }
}

fn rejection(mapped: Mapped) -> Rejection {
    match mapped {
        Mapped::Rejected(rejection) => rejection,
        other => panic!("{other:?}"),
    }
}

fn ignored(mapped: Mapped) -> Ignored {
    match mapped {
        Mapped::Ignored { why } => why,
        other => panic!("{other:?}"),
    }
}

fn payload(request: &Request, participant: &str) -> Value {
    let branch = request.branches.iter().find(|branch| branch.participant.as_str() == participant).unwrap();
    serde_json::from_str(branch.payload.get()).unwrap()
}
