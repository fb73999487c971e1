//! Two coordinators on the same shards: one is frozen past its session, another takes over and decides; then the first
//! goes on, with votes that it has never read, and decides too.
//!
//! ```text
//!   A owns all shards   the surgeon log is frozen: its votes are missing
//!   A is frozen         the surgeon log votes; B comes, takes over once A's session is over, and decides
//!   B is frozen         all records from here on that only a coordinator writes are A's
//!   A goes on           and finds the votes that it was waiting for; more surgeries come
//!   B goes on           both are at work; more surgeries come
//! ```
//!
//! Whoever stood still for long reads his shards anew before he acts and finds everything decided. So the test goes
//! through this, with other surgeries, until A has appended decisions that B had appended before; without any it is void.

use std::collections::BTreeSet;

use crate::feed::{Feed, Place, Sample};
use crate::kill::patient;
use crate::logs::Logs;
use crate::process::Process;
use crate::world::{Crew, Options, PARTICIPANTS, World};
use crate::{check, oracle, undisturbed};

/// Short, so that the other one takes over before the frozen one has stood still for long.
const SESSION_TIMEOUT_MS: u32 = 1_500;

/// Nothing may expire: the rows would be others.
const DEADLINE_MS: u64 = 600_000;

/// How often it is tried at most.
const ATTEMPTS: usize = 4;

#[test]
fn a_coordinator_that_was_taken_for_dead_decides_the_same() {
    let surgeries = undisturbed::surgeries();
    let undisturbed = undisturbed::rows();
    let world = World::start(&Options {
        session_timeout_ms: SESSION_TIMEOUT_MS,
        deadline_ms: DEADLINE_MS,
        ..Options::default()
    });
    let mut theatre = Theatre { world: &world, crew: world.crew(), b: None, feed: world.feed(), fed: Vec::new() };
    let mut copies = 0;
    let mut left = surgeries.as_slice();
    for attempt in 0..ATTEMPTS {
        let (batch, rest) = left.split_at(left.len() / (ATTEMPTS - attempt));
        left = rest;
        copies = theatre.take_over(batch);
        if copies > 0 {
            break;
        }
    }
    assert!(copies > 0, "void: A never decided what B had decided already");
    // The rest with both, side by side.
    theatre.feed(left);
    let Theatre { mut crew, b, fed, .. } = theatre;
    world.wait_for_the_end(&fed);

    let (_, rows) = check::everything(&world);
    oracle::verify_rows(&oracle::expect(&surgeries), &rows);
    assert_eq!(rows.without_txids(), *undisturbed, "as if there had been one coordinator all the time");
    let status = b.expect("it runs").terminate();
    assert!(status.success(), "B drained with {status}");
    crew.terminate();
}

/// The services; A is the crew's coordinator.
struct Theatre<'w> {
    world: &'w World,
    crew: Crew,
    b: Option<Process>,
    feed: Feed,
    fed: Vec<Place>,
}

impl Theatre<'_> {
    /// The whole play with some surgeries; both run afterwards. Answers how many decisions A appended that B had appended
    /// before.
    fn take_over(&mut self, surgeries: &[Sample]) -> usize {
        if let Some(b) = &mut self.b {
            let status = b.terminate();
            assert!(status.success(), "B drained with {status}");
        }
        let [first, second, third] = thirds(surgeries);
        self.crew.surgeon_log.freeze();
        let waiting = self.feed(&first);
        self.world.wait_for_logs("only the surgeon log has not voted", |logs| is_surgeon_missing(logs, &waiting));
        self.crew.coordinator.freeze();
        let logs = self.world.follower.to_the_ends();
        assert!(!logs.open().is_empty(), "void: nothing is open");
        self.crew.surgeon_log.thaw();
        match &mut self.b {
            Some(b) => b.start_again(),
            None => self.b = Some(self.world.service("coordinator-b", &["coordinator"])),
        }
        self.until_told("by B", &waiting);

        self.b().freeze();
        let before = self.world.follower.to_the_ends();
        self.crew.coordinator.thaw();
        let more = self.feed(&second);
        self.until_told("by A, for B is frozen", &more);
        let after = self.world.follower.to_the_ends();
        self.b().thaw();
        let more = self.feed(&third);
        self.until_told("by whomever", &more);

        let appended = coordinators_records(&after) - coordinators_records(&before);
        assert!(appended > 0, "void: A appended nothing after it was continued");
        let copies = copies(&before, &after);
        eprintln!("A appended {appended} records after it was continued, {copies} of them decisions of B's");
        copies
    }

    fn feed(&mut self, surgeries: &[Sample]) -> Vec<Place> {
        let places = self.feed.feed(surgeries);
        self.fed.extend_from_slice(&places);
        places
    }

    fn b(&self) -> &Process {
        self.b.as_ref().expect("it runs")
    }

    fn until_told(&self, by: &str, places: &[Place]) {
        self.world.wait_for_logs(&format!("all are told, {by}"), |logs| logs.not_ended(places).is_empty());
    }
}

/// Whether all these events have arrived, and all have voted but the surgeon log.
fn is_surgeon_missing(logs: &Logs, events: &[Place]) -> bool {
    let (stories, rejections) = (logs.stories(), logs.rejections());
    events.iter().all(|event| {
        let mut asked = stories.values().filter(|story| story.source().as_ref() == Some(event));
        let others_voted = asked.next().is_some_and(|story| {
            let others = story.named().into_iter().filter(|name| name != "surgeon-log");
            others.into_iter().all(|name| story.register(&name).is_some())
        });
        others_voted || rejections.contains_key(event)
    })
}

/// How many records there are that only a coordinator writes.
fn coordinators_records(logs: &Logs) -> usize {
    let prepares: usize = PARTICIPANTS.iter().map(|name| logs.topic(&format!("prepare.{name}")).len()).sum();
    prepares + logs.topic("decisions").len() + logs.topic("outcomes").len()
}

/// How many decisions of what was decided before came after.
fn copies(before: &Logs, after: &Logs) -> usize {
    let decisions = |logs: &Logs| logs.topic("decisions").to_vec();
    let (before, after) = (decisions(before), decisions(after));
    let decided: BTreeSet<&str> = before.iter().map(|decision| decision.text("txid")).collect();
    let of_decided = after.iter().filter(|decision| decided.contains(decision.text("txid"))).count();
    of_decided - before.len()
}

/// Three parts. In the first, which waits for its decisions, no patient comes twice: an insurer's coverage row is locked from
/// vote to decision, so the insurer would not vote on the second one.
fn thirds(surgeries: &[Sample]) -> [Vec<Sample>; 3] {
    let third = surgeries.len() / 3;
    let (first, rest) = surgeries.split_at(surgeries.len() - 2 * third);
    let (second, last) = rest.split_at(third);
    let mut met = BTreeSet::new();
    let (first, again): (Vec<_>, Vec<_>) = first.iter().cloned().partition(|sample| met.insert(patient(sample)));
    [first, [again.as_slice(), second].concat(), last.to_vec()]
}
