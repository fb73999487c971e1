//! Requests of the test's own, made from what ingest makes of a sound event.

use serde_json::{Value, json};

use crate::feed::{Feed, samples};
use crate::oracle;
use crate::world::World;

/// The request of a surgery that commits in all three databases.
pub struct Template(Value);

impl Template {
    /// Has ingest make it. Its transaction stays open until somebody decides it.
    pub fn of_ingest(world: &World, feed: &mut Feed) -> Self {
        let samples = samples();
        let sound = samples.iter().find(|sample| oracle::commits_in_all_three(sample, &samples)).expect("one of 125");
        let mut ingest = world.service("ingest", &["ingest"]);
        feed.feed([sound]);
        let mut request = None;
        world.wait_for_logs("there is a request", |logs| {
            request = logs.topic("requests").first().and_then(|request| request.json.clone());
            request.is_some()
        });
        assert!(ingest.terminate().success());
        Self(request.expect("found"))
    }

    /// A field of the request.
    pub fn field(&self, name: &str) -> &Value {
        &self.0[name]
    }

    /// Its branches.
    pub fn branches(&self) -> &[Value] {
        self.0["branches"].as_array().expect("branches")
    }

    /// A participant's branch.
    pub fn branch(&self, participant: &str) -> Value {
        let found = self.branches().iter().find(|branch| branch["participant"] == participant);
        found.unwrap_or_else(|| panic!("{participant} takes part")).clone()
    }

    /// A participant's branch about a case and a time of its own: else all but the first would be duplicates.
    pub fn branch_of_its_own(&self, participant: &str, number: usize) -> Value {
        let mut branch = self.branch(participant);
        let (name, year) = (format!("test:{number}"), 1000 + number);
        let own = match participant {
            "insurer" => vec![("/claim", name.clone()), ("/code/code", name)],
            "surgeon-log" => vec![
                ("/case", name),
                ("/start", format!("{year}-01-01T08:00:00Z")),
                ("/end", format!("{year}-01-01T09:00:00Z")),
            ],
            _ => vec![("/case", name)],
        };
        for (field, value) in own {
            *branch["payload"].pointer_mut(field).expect("a field") = json!(value);
        }
        branch
    }

    /// The request with another business key and these branches.
    pub fn request(&self, business_key: &str, branches: &[Value]) -> Value {
        let mut request = self.0.clone();
        request["business_key"] = json!(business_key);
        request["branches"] = json!(branches);
        request.as_object_mut().expect("an object").remove("source");
        request
    }
}
