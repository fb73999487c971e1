//! SIGKILL of coordinator, participants and brokers while surgeries flow: afterwards the databases hold what they hold
//! after a run in which nobody is killed.
//!
//! **A kill counts only while a transaction is open**, which is proved afterwards. Before the kill the request was read;
//! and after it, while the victim is dead,
//!
//! | victim | proof |
//! |---|---|
//! | the coordinator | the decision log, read to its end, has no decision |
//! | a participant | the same; or there is one, and the participant's ledger does not know it |
//! | a broker | the ledger of one that the request names does not know the decision |
//!
//! Nobody is killed again before he has worked: the coordinator appended something, the participant voted, the broker is
//! in sync. All choices are drawn from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::cluster::{self, now};
use crate::feed::{Feed, Place, Sample};
use crate::logs::{Logs, Story};
use crate::operator::no_group_lags;
use crate::process::Process;
use crate::rows::Rows;
use crate::world::{Crew, Options, PARTICIPANTS, World};
use crate::{check, oracle, undisturbed};

const COORDINATOR_KILLS: usize = 20;
/// Of each of the three.
const PARTICIPANT_KILLS: usize = 7;
const BROKER_KILLS: usize = 5;

/// Another seed can be given in this variable.
const SEED_VARIABLE: &str = "SUTURE_TEST_SEED";
const SEED: u64 = 0x5375_7475_7265;

/// Nothing may expire: the rows would be others.
const DEADLINE_MS: u64 = 600_000;

/// Each kill costs so much time, until the group has gone on.
const SESSION_TIMEOUT_MS: u32 = 2_000;

#[test]
fn kills_change_nothing_in_the_end() {
    let random = Random::seeded();
    let surgeries = undisturbed::surgeries();
    let undisturbed = undisturbed::rows();
    let world = World::start(&Options {
        session_timeout_ms: SESSION_TIMEOUT_MS,
        deadline_ms: DEADLINE_MS,
        ..Options::default()
    });
    let mut siege = Siege::begin(&world, random, surgeries.clone());
    let plan = siege.random.plan();
    for (done, victim) in plan.iter().enumerate() {
        siege.kill_while_open(*victim, plan.len() - done);
    }
    let Siege { mut crew, mut feed, left, mut fed, counted, in_vain, .. } = siege;
    eprintln!("counted: {counted:?}; in vain: {in_vain}; {} events are left", left.len());
    world.wait_for_the_end(&fed);
    fed.extend(feed.feed(&left));
    world.wait_for_the_end(&fed);

    let (logs, rows) = check::everything(&world);
    oracle::verify_rows(&oracle::expect(&surgeries), &rows);
    assert_eq!(rows.without_txids(), *undisturbed, "as if nobody had been killed");
    no_group_lags(&world);
    let copies = logs.topic("decisions").len() - logs.stories().len();
    eprintln!("{} transactions; {copies} decisions were appended again", logs.stories().len());
    crew.terminate();
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Coordinator,
    Participant(&'static str),
    Broker(u8),
}

/// How far a transaction has come, as far as the victim is concerned, when the victim is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Requested,
    Asked,
    Voted,
    Decided,
}

struct Siege<'w> {
    world: &'w World,
    crew: Crew,
    feed: Feed,
    random: Random,
    /// Not fed yet.
    left: Vec<Sample>,
    fed: Vec<Place>,
    /// Who has an event of each place.
    patients: BTreeMap<Place, String>,
    /// How many records each victim had appended when it was killed last.
    written: BTreeMap<Victim, usize>,
    counted: BTreeMap<&'static str, usize>,
    in_vain: usize,
}

impl<'w> Siege<'w> {
    fn begin(world: &'w World, random: Random, left: Vec<Sample>) -> Self {
        let (crew, feed) = (world.crew(), world.feed());
        let (fed, patients, written, counted) = (Vec::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { world, crew, feed, random, left, fed, patients, written, counted, in_vain: 0 }
    }

    /// Kills and restarts until one kill counts.
    fn kill_while_open(&mut self, victim: Victim, kills_left: usize) {
        let started = now();
        let mut moment = self.random.moment(victim);
        loop {
            let before = self.wait_for(victim, moment, kills_left);
            self.kill(victim);
            let proof = self.proof(victim, &before);
            self.start_again(victim);
            if let Some(proof) = proof {
                *self.counted.entry(victim.kind()).or_default() += 1;
                let left = self.left.len();
                eprintln!("{victim:?} killed ({moment:?}; {:.1?}; {left} events left): {proof}", started.elapsed());
                return;
            }
            // The transaction was over meanwhile: once more, at a moment that lasts longer.
            self.in_vain += 1;
            eprintln!("{victim:?} killed ({moment:?}; {:.1?}) in vain", started.elapsed());
            moment = Moment::Asked;
        }
    }

    /// Feeds until a transaction is at this moment, and answers all that are not over then.
    fn wait_for(&mut self, victim: Victim, moment: Moment, kills_left: usize) -> Vec<Story> {
        if let Victim::Broker(_) = victim {
            self.world.wait_until("all replicas are in sync", || is_whole(self.world));
        }
        let decided = self.decided();
        let mut count = 1 + self.random.below((self.left.len() / kills_left).max(1));
        loop {
            self.feed_some(count);
            count = 1;
            let mut open = Vec::new();
            let mut is_there = false;
            self.world.wait_for_logs(&format!("a transaction is {moment:?}, to kill {victim:?}"), |logs| {
                open = logs.stories().into_values().filter(|story| !decided.contains(&story.txid)).collect();
                let has_worked = self.written.get(&victim).is_none_or(|written| victim.written(logs) > *written);
                is_there = has_worked && open.iter().any(|story| victim.is_at(moment, story));
                is_there || logs.not_ended(&self.fed).is_empty()
            });
            if is_there {
                return open;
            }
        }
    }

    fn decided(&self) -> BTreeSet<String> {
        let stories = self.world.follower.now().stories();
        stories.into_values().filter(|story| !story.decisions.is_empty()).map(|story| story.txid).collect()
    }

    /// Feeds a few events.
    fn feed_some(&mut self, count: usize) {
        let logs = self.world.follower.now();
        let open = logs.not_ended(&self.fed);
        let chosen = take(&mut self.left, count, open.iter().map(|place| self.patients[place].clone()).collect());
        assert!(!open.is_empty() || !chosen.is_empty(), "void: the sample surgeries did not last for all kills");
        let places = self.feed.feed(&chosen);
        for (place, sample) in places.iter().zip(&chosen) {
            self.patients.insert(place.clone(), patient(sample));
        }
        self.fed.extend(places);
    }

    fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Broker(number) => self.world.cluster.kill_broker(number),
            Victim::Coordinator | Victim::Participant(_) => self.process(victim).kill(),
        }
    }

    fn start_again(&mut self, victim: Victim) {
        match victim {
            Victim::Broker(number) => self.world.cluster.start_broker(number),
            Victim::Coordinator | Victim::Participant(_) => {
                let written = victim.written(&self.world.follower.to_the_ends());
                self.written.insert(victim, written);
                self.process(victim).start_again();
            }
        }
    }

    fn process(&mut self, victim: Victim) -> &mut Process {
        match victim {
            Victim::Coordinator => &mut self.crew.coordinator,
            Victim::Participant("hospital") => &mut self.crew.hospital,
            Victim::Participant("surgeon-log") => &mut self.crew.surgeon_log,
            Victim::Participant(_) => &mut self.crew.insurer,
            Victim::Broker(_) => unreachable!("no process of ours"),
        }
    }

    /// Which of these transactions were open while the victim died.
    fn proof(&self, victim: Victim, before: &[Story]) -> Option<String> {
        let undecided = || {
            let stories = self.world.follower.to_the_ends().stories();
            before.iter().find(|story| stories[&story.txid].decisions.is_empty())
        };
        let unapplied = |participants: &[&str]| {
            let databases = &self.world.databases;
            let asked = participants.iter().map(|name| ((*name).to_string(), databases[*name].clone()));
            let rows = Rows::read(&asked.collect());
            before.iter().find_map(|story| {
                let named = story.named().into_iter().filter(|name| participants.contains(&name.as_str()));
                let mut lacking =
                    named.filter(|name| matches!(rows.of(name).state(&story.txid), None | Some("in_doubt")));
                Some(format!("{} was not applied by {}", story.txid, lacking.next()?))
            })
        };
        let open = |story: &Story| format!("{} was not decided", story.txid);
        match victim {
            Victim::Coordinator => undecided().map(open),
            Victim::Participant(name) => undecided().map(open).or_else(|| unapplied(&[name])),
            Victim::Broker(_) => unapplied(&PARTICIPANTS),
        }
    }
}

impl Victim {
    fn kind(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Participant(_) => "participant",
            Self::Broker(_) => "broker",
        }
    }

    /// How many records it has appended, over all its lives.
    fn written(self, logs: &Logs) -> usize {
        match self {
            Self::Coordinator => ["decisions", "outcomes"]
                .map(str::to_string)
                .into_iter()
                .chain(PARTICIPANTS.map(|name| format!("prepare.{name}")))
                .map(|topic| logs.topic(&topic).len())
                .sum(),
            Self::Participant(name) => logs.topic(&format!("votes.{name}")).len(),
            Self::Broker(_) => usize::MAX,
        }
    }

    fn is_at(self, moment: Moment, story: &Story) -> bool {
        let (named, is_decided) = (story.named(), !story.decisions.is_empty());
        let concerned: Vec<&String> = match self {
            Self::Participant(me) => named.iter().filter(|name| *name == me).collect(),
            Self::Coordinator | Self::Broker(_) => named.iter().collect(),
        };
        let is_yes = |name: &&String| story.register(name).is_some_and(|vote| vote.text("vote") == "yes");
        match moment {
            Moment::Requested => !is_decided,
            Moment::Asked => !is_decided && concerned.iter().any(|name| story.prepares.contains_key(*name)),
            Moment::Voted => !is_decided && concerned.iter().any(is_yes),
            Moment::Decided => story.verdict() == Some("commit") && !concerned.is_empty(),
        }
    }
}

/// Whether every replica of every partition is in sync, by the word of every broker: one that was away too long to know
/// does not answer yet.
fn is_whole(world: &World) -> bool {
    let count = |list: &Value| list.as_array().map_or(0, Vec::len);
    let brokers: Vec<&str> = world.cluster.bootstrap.split(',').collect();
    brokers.iter().all(|broker| {
        let asked = cluster::run(Command::new("kcat").args(["-b", broker, "-L", "-J"]));
        let Ok(shown) = serde_json::from_slice::<Value>(&asked.stdout) else { return false };
        let topics = shown["topics"].as_array().into_iter().flatten();
        let mut partitions = topics.flat_map(|topic| topic["partitions"].as_array().into_iter().flatten());
        let is_in_sync = |partition: &Value| count(&partition["isrs"]) == count(&partition["replicas"]);
        count(&shown["brokers"]) == brokers.len() && partitions.all(is_in_sync)
    })
}

/// Takes some events, none of a busy patient and never two of one: who waits too long for another's decision is refused, as he
/// must be.
pub fn take(left: &mut Vec<Sample>, count: usize, mut busy: BTreeSet<String>) -> Vec<Sample> {
    let mut chosen = Vec::new();
    for sample in std::mem::take(left) {
        if chosen.len() < count && busy.insert(patient(&sample)) {
            chosen.push(sample);
        } else {
            left.push(sample);
        }
    }
    chosen
}

/// Who is operated, in the words of the event.
pub fn patient(sample: &Sample) -> String {
    let entries = sample.event["entry"].as_array().expect("entries").iter().map(|entry| &entry["resource"]);
    let mut encounters = entries.filter(|resource| resource["resourceType"] == "Encounter");
    encounters.next().expect("an encounter")["subject"]["reference"].as_str().expect("a patient").to_string()
}

/// SplitMix64: everything that is left to chance comes from one seed.
pub struct Random(u64);

impl Random {
    /// The seed that the environment gives, or the usual one. Printed.
    pub fn seeded() -> Self {
        let seed = std::env::var(SEED_VARIABLE).map_or(SEED, |seed| seed.parse().expect("a number"));
        eprintln!("{SEED_VARIABLE}={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 on, below the bound.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    fn moment(&mut self, victim: Victim) -> Moment {
        let of_a_participant = [Moment::Asked, Moment::Voted, Moment::Decided];
        let of_others = [Moment::Requested, Moment::Asked, Moment::Voted];
        match victim {
            Victim::Participant(_) => of_a_participant[self.below(3)],
            Victim::Coordinator | Victim::Broker(_) => of_others[self.below(3)],
        }
    }

    /// Who is killed, in this order: the brokers spread among the others.
    fn plan(&mut self) -> Vec<Victim> {
        let mut plan = vec![Victim::Coordinator; COORDINATOR_KILLS];
        for participant in PARTICIPANTS {
            plan.extend([Victim::Participant(participant); PARTICIPANT_KILLS]);
        }
        for last in (1..plan.len()).rev() {
            plan.swap(last, self.below(last + 1));
        }
        let apart = plan.len() / BROKER_KILLS;
        for broker in (0..BROKER_KILLS).rev() {
            let number = 1 + u8::try_from(self.below(3)).expect("1 to 3");
            plan.insert(broker * apart + self.below(apart), Victim::Broker(number));
        }
        plan
    }
}
