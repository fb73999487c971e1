//! The insurer is absent: never started at first, ended by SIGTERM later. Transactions that do not name it go on; those
//! that name it abort at their deadline. When it is back it notes these aborts, touches no business row, and serves again.

use std::collections::{BTreeMap, BTreeSet};

use crate::feed::{Feed, Place, Sample, samples};
use crate::logs::{Logs, Story};
use crate::oracle::{self, Expected};
use crate::process::Process;
use crate::world::{Options, PARTICIPANTS, World};
use crate::{check, rows};

/// For what waits in vain for the insurer; long enough for the others.
const SHORT_MS: u64 = 12_000;

/// For everything else: nothing expires, however busy the machine is.
const LONG_MS: u64 = 600_000;

/// What the insurer says when it is back.
const BACK: &str = "aborts were noted of transactions whose prepares never ran here; no business row was touched";

#[test]
fn who_does_not_need_an_absent_insurer_goes_on_and_who_does_expires() {
    let all = samples();
    let [first, second, third, fourth] = four_parts(&all);
    let world = World::start(&Options { deadline_ms: LONG_MS, ..Options::default() });
    let mut present = [
        world.participant("hospital"),
        world.participant("surgeon-log"),
        world.service("coordinator", &["coordinator"]),
    ];
    for process in &present[..2] {
        // One that is still joining its group would lose the deadline's time.
        world.wait_until(&format!("{} serves", process.name()), || process.log().contains("shards assigned"));
    }
    let mut ingest = Ingest { world: &world, process: None, feed: world.feed() };

    // Never started.
    let mut fed = ingest.feed_without_the_insurer(&first);
    let expired = ended_without_the_insurer(&world, &first, &all, &fed);
    let decisions = world.follower.to_the_ends().topic("decisions").len() as u64;
    assert_eq!(world.unapplied("insurer"), decisions, "the lag of who never applied anything");
    let before = world.rows();
    let mut insurer = world.participant("insurer");
    insurer_is_back(&world, &insurer, 1, &expired, before.of("insurer"));

    let fed_second = ingest.feed(&second, LONG_MS);
    world.wait_for_the_end(&fed_second);
    ended_with_all(&world, &second, &all, &fed_second);

    // Ended.
    let status = insurer.terminate();
    assert!(status.success(), "{status}");
    let fed_third = ingest.feed_without_the_insurer(&third);
    let expired = ended_without_the_insurer(&world, &third, &all, &fed_third);
    let before = world.rows();
    insurer.start_again();
    insurer_is_back(&world, &insurer, 2, &expired, before.of("insurer"));

    let fed_fourth = ingest.feed(&fourth, LONG_MS);
    world.wait_for_the_end(&fed_fourth);
    ended_with_all(&world, &fourth, &all, &fed_fourth);

    fed.extend([fed_second, fed_third, fed_fourth].concat());
    world.wait_for_the_end(&fed);
    let (_, rows) = check::everything(&world);
    let aftercare = first.iter().chain(&third).filter(|sample| !names_the_insurer(sample, &all)).cloned();
    let committed: Vec<Sample> = aftercare.chain(second).chain(fourth).collect();
    oracle::verify_rows(&oracle::expect_of(&committed, &all), &rows);
    for process in present.iter_mut().chain([&mut insurer]).chain(&mut ingest.process) {
        let status = process.terminate();
        assert!(status.success(), "{} drained with {status}", process.name());
    }
}

/// Most of the aftercare and a part of the surgeries go where the insurer is absent, the surgeries first, for those stay open.
/// The rivals meet where all are there.
fn four_parts(all: &[Sample]) -> [Vec<Sample>; 4] {
    let mut parts = [const { Vec::new() }; 4];
    let mut aftercare = 0;
    for (number, (sample, expected)) in all.iter().zip(oracle::expect(all)).enumerate() {
        let part = match expected {
            Expected::Case(case) if !case.rivals.is_empty() => 1,
            Expected::Case(case) if case.participants.len() == 2 => {
                aftercare += 1;
                [0, 2, 0, 2, 1, 3][aftercare % 6]
            }
            _ => [0, 1, 1, 2, 3, 3][number % 6],
        };
        parts[part].push(sample.clone());
    }
    for part in &mut parts {
        part.sort_by_key(|sample| !names_the_insurer(sample, all));
    }
    parts
}

/// Each time with another deadline.
struct Ingest<'a> {
    world: &'a World,
    process: Option<Process>,
    feed: Feed,
}

impl Ingest<'_> {
    /// Feeds these and returns when all are asked for, or rejected.
    fn feed(&mut self, part: &[Sample], deadline_ms: u64) -> Vec<Place> {
        self.world.set_deadline(deadline_ms);
        match &mut self.process {
            None => self.process = Some(self.world.service("ingest", &["ingest"])),
            Some(process) => {
                let status = process.terminate();
                assert!(status.success(), "{status}");
                process.start_again();
            }
        }
        let fed = self.feed.feed(part);
        self.world.wait_for_logs("all are asked for", |logs| {
            let (stories, rejections) = (logs.stories(), logs.rejections());
            let asked: BTreeSet<_> = stories.values().filter_map(Story::source).collect();
            fed.iter().all(|place| asked.contains(place) || rejections.contains_key(place))
        });
        fed
    }

    /// What names the insurer first, with a short deadline; what does not while that is open. Returns when all is over, and
    /// applied by all that are there.
    fn feed_without_the_insurer(&mut self, part: &[Sample]) -> Vec<Place> {
        let all = samples();
        let needs_it = part.iter().take_while(|sample| names_the_insurer(sample, &all)).count();
        let mut fed = self.feed(&part[..needs_it], SHORT_MS);
        fed.extend(self.feed(&part[needs_it..], LONG_MS));
        self.world.wait_for_logs("all have ended", |logs| logs.not_ended(&fed).is_empty());
        for participant in ["hospital", "surgeon-log"] {
            self.world.wait_until("all is applied", || self.world.unapplied(participant) == 0);
        }
        fed
    }
}

fn names_the_insurer(sample: &Sample, all: &[Sample]) -> bool {
    match &oracle::expect_of(std::slice::from_ref(sample), all)[0] {
        Expected::Case(case) => case.participants.contains(&"insurer"),
        Expected::Rejected(_) => true,
    }
}

/// What does not name the insurer ended as always; what names it was aborted, because it expired, unless somebody else
/// refused it before. Gives the transactions that name it.
fn ended_without_the_insurer(world: &World, part: &[Sample], all: &[Sample], fed: &[Place]) -> BTreeSet<String> {
    let logs = world.follower.to_the_ends();
    let (mut aftercare, mut fed_aftercare) = (Vec::new(), Vec::new());
    let (mut aborted, mut expired) = (BTreeSet::new(), 0);
    for ((sample, place), expected) in part.iter().zip(fed).zip(oracle::expect_of(part, all)) {
        let Expected::Case(case) = expected else { continue };
        if !case.participants.contains(&"insurer") {
            aftercare.push(sample.clone());
            fed_aftercare.push(place.clone());
            continue;
        }
        let story =
            logs.stories().into_values().find(|story| story.source().as_ref() == Some(place)).expect("asked for");
        assert_eq!(story.verdict(), Some("abort"), "{}: {case:?}", story.txid);
        let others: BTreeMap<_, _> = case.noes.iter().filter(|(who, _)| **who != "insurer").collect();
        let noes = story.noes();
        if others.is_empty() {
            assert_eq!(noes, BTreeMap::from([("insurer".to_string(), "expired".to_string())]), "{}", story.txid);
            let outcome = story.outcomes[0].json.as_ref().expect("JSON");
            assert_eq!(outcome["retryable"], true, "{}: may be asked for again", story.txid);
            let asked_at = story.request.as_ref().expect("a request").timestamp_ms;
            let deadline_ms = i64::try_from(SHORT_MS).unwrap();
            let waited_ms = story.decisions[0].timestamp_ms - asked_at;
            assert!(waited_ms >= deadline_ms, "{}: decided {waited_ms} ms after it was asked for", story.txid);
            expired += 1;
        } else {
            let is_reason = |(who, code): (&String, &String)| others.get(&who.as_str()).is_some_and(|of| *of == code);
            // Whoever had read the abort before he was asked says so.
            assert!(noes.iter().all(|no| is_reason(no) || no.1 == "aborted"), "{}: {noes:?}, {case:?}", story.txid);
            assert!(noes.iter().any(is_reason), "{}: {noes:?}, {case:?}", story.txid);
        }
        aborted.insert(story.txid);
    }
    assert!(expired >= 10, "{expired} expired");
    let expected = oracle::expect_of(&aftercare, all);
    oracle::verify_registers(&expected, &logs, &fed_aftercare);
    let commits = oracle::cases(&expected).filter(|(_, case)| case.must_commit()).count();
    assert!(commits >= 3, "{commits} of {} that do not need the insurer commit", aftercare.len());
    aborted
}

/// It has noted each abort, said so in one line for each time it was away, and answered the prepares that it missed with a
/// no that comes too late to count. No business row has changed.
fn insurer_is_back(
    world: &World,
    insurer: &Process,
    times: usize,
    aborted: &BTreeSet<String>,
    before: &rows::Contents,
) {
    world.wait_until("the insurer has noted all aborts", || world.unapplied("insurer") == 0);
    world.wait_for_logs("the insurer has answered what it missed", |logs| {
        let stories = logs.stories();
        aborted.iter().all(|txid| answered(logs, txid) || !stories[txid].prepares.contains_key("insurer"))
    });
    let lines: Vec<String> = insurer.log().lines().filter(|line| line.contains(BACK)).map(str::to_string).collect();
    assert_eq!(lines.len(), times, "{lines:?}");
    let count = format!("noted_aborts={}", aborted.len());
    assert!(lines[times - 1].split_whitespace().any(|word| word == count), "{count}: {lines:?}");

    let after = world.rows();
    let after = after.of("insurer");
    let business = |contents: &rows::Contents| -> BTreeSet<(String, String, String)> {
        let rows = contents.business.iter();
        rows.map(|row| (row.table.clone(), row.txid.clone(), row.fields.to_string())).collect()
    };
    assert_eq!(business(after), business(before), "business rows");
    assert_eq!(after.reference["coverage"], before.reference["coverage"], "coverages");
    for txid in aborted {
        assert_eq!(after.state(txid), Some("aborted"), "{txid}");
        assert!(!after.txids().contains(txid.as_str()), "{txid}");
    }
    let of_others = after.ledger.keys().filter(|txid| !aborted.contains(*txid));
    assert!(of_others.eq(before.ledger.keys().filter(|txid| !aborted.contains(*txid))), "rows of nothing else");
}

fn answered(logs: &Logs, txid: &str) -> bool {
    let late = |vote: &&std::sync::Arc<crate::logs::Entry>| {
        vote.text("txid") == txid && vote.text("by") == "participant" && vote.text("code") == "aborted"
    };
    logs.topic("votes.insurer").iter().any(|vote| late(&vote))
}

fn ended_with_all(world: &World, part: &[Sample], all: &[Sample], fed: &[Place]) {
    let expected = oracle::expect_of(part, all);
    oracle::verify_registers(&expected, &world.follower.to_the_ends(), fed);
    let (rows, mut surgeries) = (world.rows(), 0);
    let logs = world.follower.now();
    for story in logs.stories().values().filter(|story| story.source().is_some_and(|source| fed.contains(&source))) {
        let is_committed = story.verdict() == Some("commit");
        for participant in PARTICIPANTS {
            let has_rows = rows.of(participant).txids().contains(story.txid.as_str());
            let is_named = story.named().iter().any(|named| named == participant);
            assert_eq!(has_rows, is_committed && is_named, "{} at {participant}", story.txid);
        }
        surgeries += usize::from(is_committed && story.named().len() == 3);
    }
    assert!(surgeries >= 10, "{surgeries} surgeries committed in all three");
}
