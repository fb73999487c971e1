//! Broken input on every topic. What is data is refused, where it stands, with its reason and without its content, and stops
//! nothing. What somebody of a newer version wrote, and a decision that cannot be obeyed, stops the shard in front of it, at
//! whoever reads it, with one clear message: the process stays up, and all other shards go on.

use std::collections::{BTreeMap, BTreeSet};

use suture_contract::ids::{LogLetters, Shard, Txid};
use suture_contract::partitioner::shard_of;
use suture_topics::probe::Probe;

use crate::check;
use crate::feed::{Feed, Place, Sample, samples};
use crate::logs::{Logs, Story};
use crate::oracle::{self, Expected};
use crate::process::Process;
use crate::rows::Rows;
use crate::world::{Crew, Options, PARTICIPANTS, UPSTREAM_PARTITIONS, World};

/// Stands in everything that is broken, and must stand in nothing that is said about it.
const CONTENT: &str = "CONTENT-OF-WHAT-IS-BROKEN";

/// Longer than a request may be, and nested as deep.
const TOO_LONG: usize = 950_000;

const HASH: &str = "k1:00000000000000000000000000000000";

#[test]
fn what_cannot_be_obeyed_is_refused_and_stops_nothing() {
    let samples = samples();
    let expected = oracle::expect(&samples);
    let world = World::start(&Options::default());
    let broken = Broken::on(&world);
    let mut feed = world.feed();

    // Half of it lies in the logs when the shards are taken, half comes while everybody works.
    let mut fates = broken.append(&mut feed, 0..6);
    broken.append_votes_for_what_comes(&world, &mut feed, 0..6);
    let mut crew = world.crew();
    let (first, second) = samples.split_at(samples.len() / 2);
    let mut fed = feed.feed(first);
    fates.extend(broken.append(&mut feed, 6..12));
    fed.extend(feed.feed(second));

    world.wait_for_the_end(&fed);
    world.wait_for_logs("all that is broken was rejected", |logs| {
        let rejections = logs.rejections();
        fates.iter().all(|(place, fate)| !matches!(fate, Fate::Rejected(_)) || rejections.contains_key(place))
    });
    world.wait_for_logs("what nobody can carry out is aborted", |logs| {
        logs.stories().values().all(|story| !story.outcomes.is_empty())
    });
    world.wait_until("all prepares were read", || fates.iter().all(|(place, fate)| fate.is_told(&world, &crew, place)));
    for participant in PARTICIPANTS {
        world.wait_until("all decisions are applied", || world.unapplied(participant) == 0);
    }

    let (logs, rows) = check::everything(&world);
    oracle::verify_registers(&expected, &logs, &fed);
    oracle::verify_rows(&expected, &rows);
    rejections_say_what_was_wrong(&logs, &fates, &expected, &fed);
    for reason in ["Unreadable", "Misrouted", "ForeignLog", "Malformed", "WrongHash"] {
        let is_told =
            |line: &str| line.contains("a vote record does not count") && line.contains(&format!("reason={reason}"));
        assert!(crew.coordinator.log().lines().any(is_told), "{reason}");
    }
    for story in logs.stories().values().filter(|story| story.source().is_none()) {
        let known = ["unreadable", "unknown_participant", "aborted"];
        assert!(story.noes().values().all(|code| known.contains(&code.as_str())), "{}: {:?}", story.txid, story.noes());
    }

    payloads_that_cannot_be_read_are_refused(&world, &broken, &mut feed);
    for process in crew.all() {
        let log = process.log();
        let stop = log.lines().find(|line| line.contains(STOPPED_COORDINATOR) || line.contains(STOPPED_PARTICIPANT));
        assert_eq!(stop, None, "{}", process.name());
        assert!(!log.contains(CONTENT), "the log of {} holds what it refused", process.name());
    }
    crew.terminate();
}

/// What must become of a record.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// An entry in `rejected`, with this code.
    Rejected(&'static str),
    /// A warning of the participant with this word, and no vote.
    Passed(&'static str),
    /// Nothing that could be seen.
    Nothing,
}

impl Fate {
    /// Whether a passed record has its one line; true for all others.
    fn is_told(self, world: &World, crew: &Crew, place: &Place) -> bool {
        let Self::Passed(why) = self else { return true };
        let process = [&crew.hospital, &crew.surgeon_log, &crew.insurer]
            .into_iter()
            .find(|process| place.topic == world.topic(&format!("prepare.{}", process.name())))
            .expect("a participant's topic");
        let words =
            [format!("shard={}", place.partition), format!("offset={}", place.offset), format!("why=\"{why}\"")];
        let log = process.log();
        let passed = log.lines().filter(|line| line.contains("a record on our prepare topic is passed without a vote"));
        let told = passed.filter(|line| words.iter().all(|word| line.split_whitespace().any(|found| found == word)));
        told.count() == 1
    }
}

/// Each rejection names the record and the code, and nothing is rejected that should not be.
fn rejections_say_what_was_wrong(logs: &Logs, fates: &[(Place, Fate)], expected: &[Expected], fed: &[Place]) {
    let mut wanted = BTreeMap::new();
    for (place, fate) in fates {
        if let Fate::Rejected(code) = fate {
            wanted.insert(place.clone(), vec![(*code).to_string()]);
        }
    }
    for (expected, place) in expected.iter().zip(fed) {
        if let Expected::Rejected(code) = expected {
            wanted.insert(place.clone(), vec![(*code).to_string()]);
        }
    }
    assert_eq!(logs.rejections(), wanted);
    for entry in logs.topic("rejected") {
        let fields: BTreeSet<&str> = entry
            .json
            .as_ref()
            .and_then(|json| json.as_object())
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        assert!(fields.is_subset(&BTreeSet::from(["type", "v", "origin", "code", "field"])), "{fields:?}");
    }
    for topic in ["rejected", "outcomes", "decisions"] {
        for entry in logs.topic(topic) {
            let value = String::from_utf8_lossy(entry.value.as_deref().unwrap_or_default());
            assert!(!value.contains(CONTENT), "{:?} holds what was refused", entry.place);
        }
    }
}

/// Requests and prepares whose messages are sound and whose payloads are not: a no vote `unreadable`, and nothing else.
fn payloads_that_cannot_be_read_are_refused(world: &World, broken: &Broken, feed: &mut Feed) {
    let before = world.rows().without_txids();
    // As deep as it gets in a record that may be a request. The three payloads are sound JSON all the same.
    let deep = format!("{}{}", "[".repeat(120_000), "]".repeat(120_000));
    let branches = PARTICIPANTS.map(|participant| branch(participant, operation_of(participant), &deep)).join(",");
    let key = key_of(0, world.kafka.partitions);
    // Another business key than that of the requests before.
    let request = broken.request(&format!("{key}:deep"), 60_000, &branches);
    let place = append(feed, &world.topic("requests"), 0, key.as_bytes(), Some(request.as_bytes()));
    let deep = broken.txid(0, place.offset).to_string();
    world.wait_for_logs("what is nested too deep is aborted", |logs| {
        logs.topic("outcomes").iter().any(|outcome| outcome.text("txid") == deep && outcome.text("outcome") == "abort")
    });
    // A prepare of a transaction that nobody asked for.
    let unasked = broken.txid(1, 2_000_000);
    for participant in PARTICIPANTS {
        let prepare = broken.prepare(unasked, "no_such_operation");
        let topic = world.topic(&format!("prepare.{participant}"));
        append(feed, &topic, 1, unasked.to_string().as_bytes(), Some(prepare.as_bytes()));
    }
    for participant in PARTICIPANTS {
        for (txid, codes) in [(&deep, ["unreadable", "aborted"].as_slice()), (&unasked.to_string(), &["unreadable"])] {
            let mut code = String::new();
            world.wait_for_logs("it is voted on", |logs| {
                let votes = logs.topic(&format!("votes.{participant}")).iter();
                let vote = votes.rev().find(|vote| vote.text("txid") == txid && vote.text("by") == "participant");
                code = vote.map(|vote| vote.text("code").to_string()).unwrap_or_default();
                vote.is_some()
            });
            assert!(codes.contains(&code.as_str()), "{participant} said {code} to {txid}");
        }
        world.wait_until("all decisions are applied", || world.unapplied(participant) == 0);
    }
    let rows = world.rows();
    assert_eq!(rows.without_txids(), before, "business rows");
    for participant in PARTICIPANTS {
        assert!(matches!(rows.of(participant).state(&deep), Some("refused" | "aborted")), "{participant}");
        assert_eq!(rows.of(participant).state(&unasked.to_string()), Some("refused"), "{participant}");
    }
}

/// How the coordinator says that a shard stops.
const STOPPED_COORDINATOR: &str = "the shard STOPS here; nothing of it is acknowledged, the other shards go on";

/// How a participant says it.
const STOPPED_PARTICIPANT: &str = "shard stopped: nothing behind this is acknowledged; the other shards go on";

/// Everybody who reads the decisions.
const ALL: [&str; 4] = ["coordinator", "hospital", "surgeon-log", "insurer"];

/// What whoever is told to commit what he never prepared says.
const LOST: &str = "LOST";

/// A participant that stopped has no vote until then. Long enough for all others.
const DEADLINE_MS: u64 = 30_000;

#[test]
fn what_must_not_be_passed_stops_its_shard_and_no_other() {
    let samples = samples();
    let world = World::start(&Options { deadline_ms: DEADLINE_MS, ..Options::default() });
    let broken = Broken::on(&world);
    let mut feed = world.feed();
    let mut ingest = world.service("ingest", &["ingest"]);
    let fed = feed.feed(&samples);
    let shard_of_event = wait_for_requests(&world, &fed);
    let plan = Plan::of(&samples, &shard_of_event);

    // In the logs when the shards are taken.
    let mut stops = Stops::default();
    for (shard, kind) in &plan.at_first {
        stops.extend(broken.stop(&world, &mut feed, *shard, *kind));
    }
    let mut readers: Vec<Process> = ALL
        .iter()
        .map(|name| if *name == "coordinator" { world.service(name, &[name]) } else { world.participant(name) })
        .collect();
    stops.wait(&world, &readers);
    let ends_at_coordinator = |stops: &Stops, event: usize| match shard_of_event[event] {
        Some(shard) => !stops.has("coordinator", shard),
        None => true,
    };
    let to_end: Vec<Place> =
        (0..fed.len()).filter(|event| ends_at_coordinator(&stops, *event)).map(|event| fed[event].clone()).collect();
    world.wait_for_logs("all has ended where the coordinator goes on", |logs| logs.not_ended(&to_end).is_empty());
    stops.wait_for_the_others(&world);
    let (logs, rows) = check::shards(&world, |shard| stops.nobody_at(shard));
    ended_as_before(&world, &samples, &fed, |event, expected| {
        let Some(shard) = shard_of_event[event] else { return true };
        let needs_insurer = matches!(expected, Expected::Case(case) if case.participants.contains(&"insurer"));
        stops.nobody_at(shard) || (shard == plan.without_insurer && !needs_insurer)
    });
    for story in logs.stories().values() {
        expired_without_the_stopped(story, &stops, &rows);
    }

    // While everybody works.
    for (shard, kind) in &plan.later {
        stops.extend(broken.stop(&world, &mut feed, *shard, *kind));
    }
    stops.wait(&world, &readers);
    let before = world.rows().with_txids();
    let left: Vec<usize> =
        (0..fed.len()).filter(|event| shard_of_event[*event].is_some_and(|shard| stops.nobody_at(shard))).collect();
    assert!(left.len() >= 10, "{} events on shards that go on", left.len());
    let again = feed.feed(left.iter().map(|event| &samples[*event]));
    world.wait_for_logs("what is delivered again has ended", |logs| logs.not_ended(&again).is_empty());
    stops.wait_for_the_others(&world);
    check::shards(&world, |shard| stops.nobody_at(shard));
    assert_eq!(world.rows().with_txids(), before, "delivered again");

    stops.each_was_told_once(&readers);
    for process in &mut readers {
        let (name, status) = (process.name().to_string(), process.terminate());
        assert!(!status.success(), "{name} drained with {status}, as if nothing had stopped");
        assert!(process.log().contains("shard(s) had stopped"), "the last word of {name}");
    }
    assert!(ingest.terminate().success());
}

/// Each event's shard, where its request stands; none for what is rejected.
fn wait_for_requests(world: &World, fed: &[Place]) -> Vec<Option<i32>> {
    let mut shards = Vec::new();
    world.wait_for_logs("all is asked for", |logs| {
        let (stories, rejections) = (logs.stories(), logs.rejections());
        let asked: BTreeMap<_, _> = stories.values().map(|story| (story.source(), story.shard())).collect();
        shards = fed.iter().map(|place| asked.get(&Some(place.clone())).copied().flatten()).collect();
        fed.iter().zip(&shards).all(|(place, shard)| shard.is_some() || rejections.contains_key(place))
    });
    shards
}

/// What stops a shard.
#[derive(Debug, Clone, Copy)]
enum Kind {
    NewerRequest,
    NewerVoteAndNewerPrepareOfHospital,
    NewerPrepareOfInsurer,
    ForeignCommitForHospitalAndNewerPrepareOfSurgeonLog,
    Decision(Unusable),
}

#[derive(Debug, Clone, Copy)]
enum Unusable {
    Empty,
    Cut,
    NotUtf8,
    Deep,
    Newer,
    Misrouted,
}

/// Which shard is stopped by what.
struct Plan {
    at_first: Vec<(u16, Kind)>,
    later: Vec<(u16, Kind)>,
    /// Only the insurer stops there.
    without_insurer: i32,
}

impl Plan {
    /// The shards with the fewest events stop, those of the rivals never.
    fn of(samples: &[Sample], shard_of_event: &[Option<i32>]) -> Self {
        let expected = oracle::expect(samples);
        let is_on = |shard: i32, wanted: &dyn Fn(&oracle::Case) -> bool| {
            oracle::cases(&expected)
                .filter(|(event, case)| shard_of_event[*event] == Some(shard) && wanted(case))
                .count()
        };
        let mut shards: Vec<i32> =
            (0..12).filter(|shard| is_on(*shard, &|case| !case.rivals.is_empty()) == 0).collect();
        shards.sort_by_key(|shard| is_on(*shard, &|_| true));
        let aftercare = |case: &oracle::Case| case.participants.len() == 2 && case.must_commit();
        let without_insurer =
            *shards.iter().find(|shard| is_on(**shard, &aftercare) > 0).expect("a shard with aftercare");
        shards.retain(|shard| *shard != without_insurer);
        let kinds = [
            Kind::NewerRequest,
            Kind::NewerVoteAndNewerPrepareOfHospital,
            Kind::ForeignCommitForHospitalAndNewerPrepareOfSurgeonLog,
            Kind::Decision(Unusable::Deep),
            Kind::Decision(Unusable::Newer),
            Kind::Decision(Unusable::Misrouted),
            Kind::Decision(Unusable::Cut),
            Kind::Decision(Unusable::NotUtf8),
            Kind::Decision(Unusable::Empty),
        ];
        let shards = shards.iter().map(|shard| u16::try_from(*shard).expect("a shard"));
        let mut at_first: Vec<_> = shards.zip(kinds).collect();
        assert_eq!(at_first.len(), kinds.len(), "a shard for each kind");
        let later = at_first.split_off(6);
        at_first.push((u16::try_from(without_insurer).expect("a shard"), Kind::NewerPrepareOfInsurer));
        Self { at_first, later, without_insurer }
    }
}

/// Who stops at which shard, and what he says.
#[derive(Default)]
struct Stops(BTreeMap<(&'static str, i32), String>);

impl Stops {
    fn extend(&mut self, stops: Vec<(&'static str, i32, String)>) {
        for (who, shard, says) in stops {
            assert!(self.0.insert((who, shard), says).is_none(), "{who} stops twice at {shard}");
        }
    }

    fn has(&self, who: &str, shard: i32) -> bool {
        self.0.keys().any(|stop| *stop == (who, shard))
    }

    fn nobody_at(&self, shard: i32) -> bool {
        ALL.iter().all(|who| !self.has(who, shard))
    }

    fn wait(&self, world: &World, readers: &[Process]) {
        for ((who, shard), says) in &self.0 {
            let process = readers.iter().find(|process| process.name() == *who).expect("it runs");
            world.wait_until(&format!("{who} stops at shard {shard}"), || !lines_of_stop(process, *shard).is_empty());
            let lines = lines_of_stop(process, *shard);
            assert!(lines[0].contains(says), "{who} should say {says:?}: {lines:?}");
        }
    }

    /// Each participant has applied all decisions of the shards at which it has not stopped, and acknowledges nothing where it
    /// stopped at a decision.
    fn wait_for_the_others(&self, world: &World) {
        for participant in PARTICIPANTS {
            let goes_on = || (0..i32::from(world.kafka.partitions)).filter(|shard| !self.has(participant, *shard));
            world.wait_until(&format!("{participant} has applied all others"), || {
                world.unapplied_on(participant, goes_on()) == 0
            });
        }
        for ((who, shard), says) in self.0.iter().filter(|(_, says)| says.contains("decision")) {
            if *who != "coordinator" {
                assert_ne!(
                    world.unapplied_on(who, [*shard]),
                    0,
                    "{who} acknowledged a decision behind which it stopped: {says}"
                );
            }
        }
    }

    fn each_was_told_once(&self, readers: &[Process]) {
        for process in readers {
            let log = process.log();
            let told =
                log.lines().filter(|line| line.contains(STOPPED_COORDINATOR) || line.contains(STOPPED_PARTICIPANT));
            let stops = self.0.keys().filter(|(who, _)| *who == process.name());
            assert_eq!(told.count(), stops.count(), "{} says it once for each shard", process.name());
        }
    }
}

fn lines_of_stop(process: &Process, shard: i32) -> Vec<String> {
    let of_shard = format!("shard={shard}");
    let is_stop = |line: &&str| {
        (line.contains(STOPPED_COORDINATOR) || line.contains(STOPPED_PARTICIPANT))
            && line.split_whitespace().any(|word| word == of_shard)
    };
    process.log().lines().filter(is_stop).map(str::to_string).collect()
}

/// The oracle's word holds for these events, as if the others had never been.
fn ended_as_before(world: &World, samples: &[Sample], fed: &[Place], goes_on: impl Fn(usize, &Expected) -> bool) {
    let alone = oracle::expect(samples);
    let events: Vec<usize> = (0..samples.len()).filter(|event| goes_on(*event, &alone[*event])).collect();
    let part: Vec<Sample> = events.iter().map(|event| samples[*event].clone()).collect();
    let fed: Vec<Place> = events.iter().map(|event| fed[*event].clone()).collect();
    let expected = oracle::expect_of(&part, samples);
    let rivals = oracle::cases(&expected).filter(|(_, case)| !case.rivals.is_empty());
    assert_eq!(rivals.count(), 2, "both rivals are where nothing stops");
    oracle::verify_registers(&expected, &world.follower.to_the_ends(), &fed);
    oracle::verify_rows(&expected, &world.rows());
}

/// Where a participant stopped and the coordinator did not, what names that participant is aborted, at the deadline unless
/// somebody else refuses. Where the coordinator stopped nothing is decided, and nobody is asked.
fn expired_without_the_stopped(story: &Story, stops: &Stops, rows: &Rows) {
    let shard = story.shard().expect("asked for");
    let named = story.named();
    if stops.has("coordinator", shard) {
        assert!(story.decisions.is_empty() && story.outcomes.is_empty(), "{}", story.txid);
        return;
    }
    let silent: BTreeSet<String> = named.into_iter().filter(|participant| stops.has(participant, shard)).collect();
    if silent.is_empty() {
        return;
    }
    assert_eq!(story.verdict(), Some("abort"), "{}", story.txid);
    let noes = story.noes();
    for participant in &silent {
        let code = noes.get(participant).map(String::as_str);
        assert!(matches!(code, None | Some("expired")), "{}: {participant} said {code:?}", story.txid);
    }
    let is_reason = |(who, code): (&String, &String)| {
        (silent.contains(who) && code == "expired")
            || code.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_')
    };
    assert!(noes.iter().any(is_reason), "{}: {noes:?}", story.txid);
    for participant in PARTICIPANTS {
        assert!(!rows.of(participant).txids().contains(story.txid.as_str()), "{} at {participant}", story.txid);
    }
}

/// Makes what is broken.
struct Broken {
    letters: LogLetters,
    foreign: LogLetters,
    prefix: String,
    upstream: String,
    partitions: u16,
}

/// A record for one shard, and what must become of it.
struct Record {
    topic: String,
    key: String,
    value: Option<Vec<u8>>,
    fate: Fate,
}

impl Broken {
    fn on(world: &World) -> Self {
        let letters = Probe::start(&world.kafka).unwrap().letters(&world.topic("requests")).unwrap();
        let foreign = if letters.as_str() == "zzzzz" { "yyyyy" } else { "zzzzz" }.parse().unwrap();
        let (prefix, upstream, partitions) = (world.prefix.clone(), world.upstream.clone(), world.kafka.partitions);
        Self { letters, foreign, prefix, upstream, partitions }
    }

    /// Each kind once, on these shards in turn.
    fn append(&self, feed: &mut Feed, shards: std::ops::Range<u16>) -> Vec<(Place, Fate)> {
        let mut fates = Vec::new();
        let kinds = self.kinds(shards.start).len();
        for (kind, shard) in (0..kinds).zip(shards.cycle()) {
            // The kinds again for each shard: txids and keys must fit it.
            let Record { topic, key, value, fate } = self.kinds(shard).swap_remove(kind);
            let partition = match topic == self.upstream {
                true => shard % UPSTREAM_PARTITIONS,
                false => shard,
            };
            let place = append(feed, &topic, partition, key.as_bytes(), value.as_deref());
            fates.push((place, fate));
        }
        fates
    }

    /// Noes to what will be asked for next on some of these shards: they do not know its hash.
    fn append_votes_for_what_comes(&self, world: &World, feed: &mut Feed, shards: std::ops::Range<u16>) {
        for (participant, shard) in PARTICIPANTS.iter().zip(shards) {
            let next = world.follower.end(&self.topic("requests"), i32::from(shard)).expect("the end of the requests");
            let txid = self.txid(shard, next);
            let vote = self.vote(txid, participant, r#""vote":"no","by":"participant","code":"FORGED""#);
            let topic = self.topic(&format!("votes.{participant}"));
            append(feed, &topic, shard, txid.to_string().as_bytes(), Some(vote.as_bytes()));
        }
    }

    fn kinds(&self, shard: u16) -> Vec<Record> {
        let mut kinds = self.upstream_kinds();
        kinds.extend(self.requests_kinds(shard));
        for participant in PARTICIPANTS {
            kinds.extend(self.votes_kinds(shard, participant));
            kinds.extend(self.prepare_kinds(shard, participant));
        }
        kinds.extend(self.decisions_kinds(shard));
        kinds
    }

    fn upstream_kinds(&self) -> Vec<Record> {
        let record =
            |value: Option<Vec<u8>>, fate| Record { topic: self.upstream.clone(), key: "k".into(), value, fate };
        let text = |text: &str| Some(text.as_bytes().to_vec());
        vec![
            record(None, Fate::Nothing),
            record(text(""), Fate::Rejected("empty")),
            record(text(&format!(r#"{{"resourceType":"Bundle","{CONTENT}":["#)), Fate::Rejected("not_json")),
            record(Some(not_utf8(&format!(r#"{{"resourceType":"{CONTENT}"}}"#))), Fate::Rejected("not_utf8")),
            record(text(&"[".repeat(800_000)), Fate::Rejected("too_deep")),
            record(text(&"[".repeat(TOO_LONG)), Fate::Rejected("too_big")),
            record(text(&format!(r#"{{"resourceType":"Basic","id":"{CONTENT}"}}"#)), Fate::Nothing),
            record(text(&format!(r#""{CONTENT}""#)), Fate::Nothing),
        ]
    }

    fn requests_kinds(&self, shard: u16) -> Vec<Record> {
        let (here, elsewhere) = (key_of(shard, self.partitions), key_of(shard + 1, self.partitions));
        let hospital = branch("hospital", "record_surgery", "{}");
        let sound = self.request(&here, 60_000, &hospital);
        let record = |key: &str, value: Option<Vec<u8>>, fate| Record {
            topic: self.topic("requests"),
            key: key.into(),
            value,
            fate,
        };
        let refused = |value: &str, code| record(&here, Some(value.as_bytes().to_vec()), Fate::Rejected(code));
        let branches = |names: &[&str]| {
            let branches: Vec<_> = names.iter().map(|name| branch(name, operation_of(name), "{}")).collect();
            self.request(&here, 60_000, &branches.join(","))
        };
        let many: Vec<String> = (0..33).map(|number| format!("p{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let cancel =
            |txid: Txid| format!(r#"{{"type":"cancel","v":1,"txid":"{txid}","who":"{CONTENT}","why":"{CONTENT}"}}"#);
        vec![
            record(&here, None, Fate::Rejected("empty")),
            refused("", "empty"),
            refused(&sound[..sound.len() - 5], "not_json"),
            record(&here, Some(not_utf8(&sound)), Fate::Rejected("not_json")),
            refused(&sound.replace("{}", &"[".repeat(800_000)), "not_json"),
            refused(&"[".repeat(800_000), "wrong_fields"),
            refused(&"[".repeat(TOO_LONG), "too_large"),
            refused(&branch_of_length(&sound, TOO_LONG), "too_large"),
            refused("{}", "wrong_fields"),
            refused(&self.prepare(self.txid(shard, 0), "record_surgery"), "wrong_type"),
            record(&elsewhere, Some(sound.clone().into_bytes()), Fate::Rejected("misrouted")),
            record("", Some(sound.clone().into_bytes()), Fate::Rejected("no_key")),
            refused(&branches(&[]), "no_participant"),
            refused(&branches(&["hospital", "insurer", "hospital"]), "participant_twice"),
            refused(&branches(&many), "too_many_participants"),
            refused(&self.request(&here, 0, &hospital), "bad_deadline"),
            refused(&cancel(Txid { log: self.foreign, ..self.txid(shard, 0) }), "unknown_transaction"),
            refused(&cancel(self.txid(shard, 1_000_000)), "unknown_transaction"),
            refused(&cancel(self.txid((shard + 1) % self.partitions, 0)), "misrouted"),
            // These are requests: what they ask for is refused by those who are asked.
            record(&here, Some(branches(&PARTICIPANTS).into_bytes()), Fate::Nothing),
            record(&here, Some(branches(&["hospital", "nobody"]).into_bytes()), Fate::Nothing),
        ]
    }

    fn votes_kinds(&self, shard: u16, participant: &str) -> Vec<Record> {
        let topic = self.topic(&format!("votes.{participant}"));
        let unknown = self.txid(shard, 1_000_000);
        let elsewhere = self.txid((shard + 1) % self.partitions, 1_000_000);
        let foreign = Txid { log: self.foreign, ..unknown };
        let (yes, no) = (r#""vote":"yes","by":"participant""#, r#""vote":"no","by":"participant","code":"FORGED""#);
        let of_other = if participant == "hospital" { "insurer" } else { "hospital" };
        let sound = self.vote(unknown, participant, yes);
        let record = |key: Txid, value: Option<Vec<u8>>| Record {
            topic: topic.clone(),
            key: key.to_string(),
            value,
            fate: Fate::Nothing,
        };
        let text = |key: Txid, value: &str| record(key, Some(value.as_bytes().to_vec()));
        vec![
            record(unknown, None),
            text(unknown, ""),
            text(unknown, &sound[..sound.len() - 5]),
            record(unknown, Some(not_utf8(&sound.replace(yes, &no.replace("FORGED", CONTENT))))),
            text(unknown, &"[".repeat(TOO_LONG)),
            text(unknown, "{}"),
            text(unknown, &self.prepare(unknown, "record_surgery")),
            text(elsewhere, &self.vote(elsewhere, participant, yes)),
            text(elsewhere, &sound),
            text(unknown, &self.vote(unknown, of_other, yes)),
            text(foreign, &self.vote(foreign, participant, yes)),
            text(unknown, &self.vote(unknown, participant, r#""vote":"no","by":"participant""#)),
            text(unknown, &self.vote(unknown, participant, r#""vote":"yes","by":"coordinator""#)),
            // Its request may come: it is held, and holds up nothing.
            text(unknown, &sound),
        ]
    }

    fn prepare_kinds(&self, shard: u16, participant: &str) -> Vec<Record> {
        let topic = self.topic(&format!("prepare.{participant}"));
        let (here, elsewhere) = (self.txid(shard, 1_000_000), self.txid((shard + 1) % self.partitions, 1_000_000));
        let foreign = Txid { log: self.foreign, ..here };
        let prepare = |txid| self.prepare(txid, operation_of(participant));
        let sound = prepare(here);
        let record = |key: Txid, value: Option<Vec<u8>>, why| Record {
            topic: topic.clone(),
            key: key.to_string(),
            value,
            fate: Fate::Passed(why),
        };
        let text = |key: Txid, value: &str, why| record(key, Some(value.as_bytes().to_vec()), why);
        vec![
            record(here, None, "empty"),
            text(here, "", "empty"),
            text(here, &sound[..sound.len() - 5], "not_json"),
            record(here, Some(not_utf8(&sound)), "not_json"),
            text(here, &"[".repeat(TOO_LONG), "wrong_fields"),
            text(here, "{}", "wrong_fields"),
            text(here, &self.vote(here, participant, r#""vote":"yes","by":"participant""#), "wrong_type"),
            text(elsewhere, &prepare(elsewhere), "misrouted"),
            text(elsewhere, &sound, "misrouted"),
            text(foreign, &prepare(foreign), "foreign_log"),
        ]
    }

    /// Only what was cleaned up, and what concerns nobody here, is passed; all else stops: see below.
    fn decisions_kinds(&self, shard: u16) -> Vec<Record> {
        let unknown = self.txid(shard, 1_000_000);
        let foreign = Txid { log: self.foreign, ..unknown };
        let record = |key: String, value: Option<String>| Record {
            topic: self.topic("decisions"),
            key,
            value: value.map(String::into_bytes),
            fate: Fate::Nothing,
        };
        vec![
            record(CONTENT.to_string(), None),
            record(foreign.to_string(), Some(self.decision(foreign, "abort", "elsewhere"))),
            record(unknown.to_string(), Some(self.decision(unknown, "abort", "elsewhere"))),
        ]
    }

    /// Appends what stops this shard, and tells who stops and what he must say.
    fn stop(&self, world: &World, feed: &mut Feed, shard: u16, kind: Kind) -> Vec<(&'static str, i32, String)> {
        let partition = i32::from(shard);
        let txid = self.txid(shard, 1_000_000);
        let mut append = |name: &str, key: Txid, value: &[u8]| {
            append(feed, &world.topic(name), shard, key.to_string().as_bytes(), Some(value)).offset
        };
        let newer = |text: &str| text.replace(r#""v":1"#, r#""v":2"#).into_bytes();
        let newer_prepare = |participant: &str| newer(&self.prepare(txid, operation_of(participant)));
        let stopped_at_prepare = |participant: &str, at: u64| {
            let topic = world.topic(&format!("prepare.{participant}"));
            format!("the prepare at {topic}/{partition}/{at} is newer_version: upgrade this participant")
        };
        match kind {
            Kind::NewerRequest => {
                let request =
                    self.request(&key_of(shard, self.partitions), 60_000, &branch("hospital", "record_surgery", "{}"));
                let at = append("requests", txid, &newer(&request));
                vec![(
                    "coordinator",
                    partition,
                    format!("requests offset {at}: written by version 2, newer than this build"),
                )]
            }
            Kind::NewerVoteAndNewerPrepareOfHospital => {
                let vote = self.vote(txid, "insurer", r#""vote":"yes","by":"participant""#);
                let at = append("votes.insurer", txid, &newer(&vote));
                let says = format!("votes.insurer offset {at}: written by version 2, newer than this build");
                let at = append("prepare.hospital", txid, &newer_prepare("hospital"));
                vec![("coordinator", partition, says), ("hospital", partition, stopped_at_prepare("hospital", at))]
            }
            Kind::NewerPrepareOfInsurer => {
                let at = append("prepare.insurer", txid, &newer_prepare("insurer"));
                vec![("insurer", partition, stopped_at_prepare("insurer", at))]
            }
            Kind::ForeignCommitForHospitalAndNewerPrepareOfSurgeonLog => {
                // The coordinator reads its own log's transactions only; whoever is told to commit what he never prepared stops.
                let foreign = Txid { log: self.foreign, ..txid };
                append("decisions", foreign, self.decision(foreign, "commit", "hospital").as_bytes());
                let at = append("prepare.surgeon-log", txid, &newer_prepare("surgeon-log"));
                let says = stopped_at_prepare("surgeon-log", at);
                vec![("hospital", partition, LOST.to_string()), ("surgeon-log", partition, says)]
            }
            Kind::Decision(unusable) => {
                let sound = self.decision(txid, "commit", "hospital");
                let elsewhere = self.txid((shard + 1) % self.partitions, 1_000_000);
                let (key, value, code) = match unusable {
                    Unusable::Empty => (txid, Vec::new(), "empty"),
                    Unusable::Cut => (txid, sound.as_bytes()[..sound.len() - 5].to_vec(), "not_json"),
                    Unusable::NotUtf8 => (txid, not_utf8(&sound.replace("test:", CONTENT)), "not_json"),
                    Unusable::Deep => (txid, "[".repeat(TOO_LONG).into_bytes(), "wrong_fields"),
                    Unusable::Newer => (txid, newer(&sound), "newer_version"),
                    Unusable::Misrouted => {
                        (elsewhere, self.decision(elsewhere, "commit", "hospital").into_bytes(), "misrouted")
                    }
                };
                let at = append("decisions", key, &value);
                let coordinator = match unusable {
                    Unusable::Newer => format!("decisions offset {at}: written by version 2, newer than this build"),
                    Unusable::Misrouted => format!("decisions offset {at}: its key or partition is another's"),
                    _ => format!("decisions offset {at}: it cannot be read"),
                };
                let participants = format!("the decision at {}/{partition}/{at} is {code}: ", world.topic("decisions"));
                let mut stops = vec![("coordinator", partition, coordinator)];
                stops.extend(PARTICIPANTS.map(|participant| (participant, partition, participants.clone())));
                stops
            }
        }
    }

    fn txid(&self, shard: u16, offset: u64) -> Txid {
        Txid { log: self.letters, shard: Shard(shard), offset }
    }

    fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn request(&self, key: &str, deadline_ms: u64, branches: &str) -> String {
        format!(
            r#"{{"type":"request","v":1,"business_key":"{key}","attempt":1,"rule":"{CONTENT}","deadline_ms":{deadline_ms},"ordered":false,"branches":[{branches}],"hash":"{HASH}"}}"#
        )
    }

    fn prepare(&self, txid: Txid, operation: &str) -> String {
        format!(
            r#"{{"type":"prepare","v":1,"txid":"{txid}","business_key":"test:{txid}","attempt":1,"operation":"{operation}","payload":{{"x":"{CONTENT}"}},"hash":"{HASH}"}}"#
        )
    }

    fn vote(&self, txid: Txid, participant: &str, ballot: &str) -> String {
        format!(r#"{{"type":"vote","v":1,"txid":"{txid}","participant":"{participant}",{ballot},"hash":"{HASH}"}}"#)
    }

    fn decision(&self, txid: Txid, outcome: &str, participant: &str) -> String {
        format!(
            r#"{{"type":"decision","v":1,"txid":"{txid}","outcome":"{outcome}","participants":["{participant}"],"business_key":"test:{txid}","attempt":1,"hash":"{HASH}"}}"#
        )
    }
}

/// Appends a record; gives its place.
fn append(feed: &mut Feed, topic: &str, shard: u16, key: &[u8], value: Option<&[u8]>) -> Place {
    let partition = i32::from(shard);
    Place { topic: topic.to_string(), partition, offset: feed.append(topic, partition, key, value) }
}

fn branch(participant: &str, operation: &str, payload: &str) -> String {
    format!(r#"{{"participant":"{participant}","operation":"{operation}","payload":{payload}}}"#)
}

fn operation_of(participant: &str) -> &'static str {
    match participant {
        "hospital" => "record_surgery",
        "surgeon-log" => "log_operation",
        "insurer" => "reserve_claim",
        _ => "unknown",
    }
}

/// The same request with a payload that makes it this long.
fn branch_of_length(request: &str, bytes: usize) -> String {
    request.replace("{}", &format!(r#"{{"x":"{}"}}"#, "x".repeat(bytes - request.len())))
}

/// A byte that no UTF-8 has, behind the content.
fn not_utf8(text: &str) -> Vec<u8> {
    let at = text.find(CONTENT).expect("the content") + CONTENT.len();
    [&text.as_bytes()[..at], b"\xff", &text.as_bytes()[at..]].concat()
}

/// An order key of this shard.
fn key_of(shard: u16, partitions: u16) -> String {
    let keys = (0..).map(|number| format!("test:{number}"));
    let shard = Shard(shard % partitions);
    keys.into_iter().find(|key| shard_of(key.as_bytes(), partitions) == shard).expect("there are enough")
}
