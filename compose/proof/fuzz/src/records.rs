//! Records in their logs: what a shard, a clean-up, an audit, who drives again and a participant make of them.
//!
//! The input is lines. One that has four parts is a record, and its offset is how many its log has before it:
//!
//! ```text
//! <r|v|w|p|d|o> <partition> <key> <value>    requests; votes of `insurer`, of `hospital`; insurer's prepares; decisions; outcomes
//! ```
//!
//! The key `-` is none, `=` is what belongs there (the txid that the value names, for requests `a`); the value `-` is none, and `+`
//! in front of one makes it longer than a request may be. One of a single letter makes something happen to the shard:
//!
//! ```text
//! s  it steps; what it appends is acknowledged and read back       l  it goes live
//! x  it steps; what it appends is refused                          c  its participants are served, and their votes read
//! y  it steps; whether anything is appended is unknown             m  its participants have no topics
//! t  a minute passes                                               k  what it recalls is read again
//! n  what it seeks in the decision log is not there                q  what it recalls is another record
//! f  what it seeks is the decisions that were read
//! ```
//!
//! It runs twice: a shard is a function of what it is given.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;
use suture_contract::codec::{self, Message, OutcomesRecord, RequestsRecord, VERSION, encode};
use suture_contract::ids::{Attempt, Participant, Shard as ShardId, Txid};
use suture_contract::messages::{Ballot, Decision, MAX_REQUEST_BYTES, Outcome, Request, Verdict, Vote, Voter};
use suture_contract::partitioner::shard_of;
use suture_coordinator_core::audit::{Range, ShardBooks, Trail, judge};
use suture_coordinator_core::cleanup::{self, Sweep};
use suture_coordinator_core::ingest::rules::Rules;
use suture_coordinator_core::positions::{BadPositions, Positions, TopicIds};
use suture_coordinator_core::records::Place;
use suture_coordinator_core::redrive::{Redrive, by_hand};
use suture_coordinator_core::shard::{
    Alarm, Append, Delivery, Limits, LookedFor, Raw, Record, Shard, Step, Stop, What,
};
use suture_participants_core::envelope::{self, Read};

use crate::assert_is_silent;
use crate::met::Met;

/// Two partitions, and the shard of the key `a` among them.
const PARTITIONS: u16 = 2;
const SHARD: u16 = 0;

static RULES: LazyLock<Rules> =
    LazyLock::new(|| Rules::parse(include_str!("../../../config/rules.toml")).expect("the rules that are shipped"));

/// Runs all lines.
pub fn check(input: &[u8]) -> Met {
    let (met, told) = run(input);
    let (met_again, told_again) = run(input);
    assert_eq!((&met_again, told_again), (&met, told), "run again");
    met
}

fn run(input: &[u8]) -> (Met, String) {
    let mut world = World::new();
    for line in input.split(|b| *b == b'\n') {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let lived = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(&[log]), Some(partition), Some(key), Some(value)) => world.record(log, partition, key, value),
            (Some(&[event]), None, None, None) => world.happens(event),
            _ => Ok(()),
        };
        if let Err(stop) = lived {
            assert_is_silent(&stop.to_string());
            world.met.variant(&stop);
            world.told.push_str(&stop.to_string());
            break;
        }
    }
    world.end()
}

/// A record of this input.
#[derive(Clone)]
struct Kept {
    offset: u64,
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

struct World {
    place: Place,
    participants: [Participant; 2],
    shard: Shard,
    now: Duration,
    logs: BTreeMap<u8, Vec<Kept>>,
    requests: BTreeMap<u64, Request>,
    /// Of this shard, that stand where they belong, in the order read.
    votes: Vec<Vote>,
    recalls: Vec<u64>,
    sought: Vec<Txid>,
    sweep: Option<Sweep>,
    trail: Option<Trail>,
    redrive: Redrive,
    met: Met,
    told: String,
}

impl World {
    fn new() -> Self {
        let participants = ["insurer", "hospital"].map(|name| name.parse::<Participant>().expect("a valid name"));
        let log = "k3f9q".parse().expect("valid letters");
        let place = Place { log, shard: ShardId(SHARD), partitions: PARTITIONS };
        let limits = Limits { window: 4, held_votes: 3 };
        let requests = "suture.requests".to_string();
        let acks = participants.iter().map(|participant| (participant.clone(), 4)).collect();
        let rules = cleanup::Rules { log, requests_start: 2, acks, end: 100, before_ms: 1_000_000, most: 2 };
        let range = Range { from: 1, end: 100, is_all: true, only: None };
        Self {
            place,
            shard: Shard::new(log, place.shard, PARTITIONS, requests, limits, &Positions::default()),
            participants,
            now: Duration::ZERO,
            logs: BTreeMap::new(),
            requests: BTreeMap::new(),
            votes: Vec::new(),
            recalls: Vec::new(),
            sought: Vec::new(),
            sweep: Some(Sweep::new(rules)),
            trail: Some(Trail::new(place, range, "suture.decisions".to_string())),
            redrive: Redrive::new(0, 3),
            met: Met::default(),
            told: String::new(),
        }
    }

    fn record(&mut self, log: u8, partition: &[u8], key: &[u8], value: &[u8]) -> Result<(), Stop> {
        let value = match value {
            b"-" => None,
            [b'+', value @ ..] => Some([value, &vec![b' '; MAX_REQUEST_BYTES + 1]].concat()),
            value => Some(value.to_vec()),
        };
        let key = match key {
            b"-" => None,
            b"=" => Some(own_key(log, value.as_deref().unwrap_or_default())),
            key => Some(key.to_vec()),
        };
        let partition = std::str::from_utf8(partition).ok().and_then(|digits| digits.parse().ok());
        self.append(log, partition.unwrap_or(i32::from(SHARD)), key, value)
    }

    fn append(&mut self, log: u8, partition: i32, key: Option<Vec<u8>>, value: Option<Vec<u8>>) -> Result<(), Stop> {
        let records = self.logs.entry(log).or_default();
        let kept = Kept { offset: records.len() as u64, partition, key, value };
        records.push(kept.clone());
        match log {
            b'r' => self.request(kept.raw()),
            b'v' => self.vote(0, kept.raw()),
            b'w' => self.vote(1, kept.raw()),
            b'd' => self.decision(&kept),
            b'o' => {
                self.outcome(kept.raw());
                Ok(())
            }
            b'p' => {
                self.envelope(
                    envelope::read_prepare(kept.of_participants(), self.place.log),
                    |prepare| prepare.txid,
                    &kept,
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn request(&mut self, raw: Raw<'_>) -> Result<(), Stop> {
        match self.place.read_request(raw) {
            Ok(Ok(RequestsRecord::Request(request))) => {
                assert_eq!(raw.key.map(|key| shard_of(key, PARTITIONS)), Some(self.place.shard), "of another shard");
                assert!((1..=32).contains(&request.branches.len()));
                self.requests.insert(raw.offset, request);
            }
            Ok(Ok(RequestsRecord::Cancel(cancel))) => {
                assert_eq!((cancel.txid.log, cancel.txid.shard), (self.place.log, self.place.shard));
                assert!(cancel.txid.offset < raw.offset, "of a later request");
            }
            Ok(Err(rejected)) => {
                let (code, field) = rejected.code_and_field();
                self.told.push_str(&format!("{code} {field:?}\n"));
                self.met.variant(&rejected);
            }
            Err(v) => assert!(v > VERSION),
        }
        self.audit(|trail| trail.request(raw).is_ok());
        self.shard.apply(Record::Request(raw))
    }

    fn vote(&mut self, of: usize, raw: Raw<'_>) -> Result<(), Stop> {
        let participant = self.participants[of].clone();
        match self.place.read_vote(&participant, raw) {
            Ok(Ok(vote)) => {
                assert_eq!((vote.txid.log, vote.txid.shard), (self.place.log, self.place.shard));
                assert_eq!(vote.participant, participant);
                assert_eq!(raw.key, Some(vote.txid.to_string().as_bytes()));
                assert!(vote.vote == Ballot::Yes || vote.code.is_some(), "a no without a reason");
                assert!(vote.vote == Ballot::No || vote.by == Voter::Participant, "a coordinator's yes");
                self.votes.push(vote);
            }
            Ok(Err(void)) => self.met.variant(&void),
            Err(v) => assert!(v > VERSION),
        }
        self.audit(|trail| trail.vote(&participant, raw).is_ok());
        self.shard.apply(Record::Vote(&participant, raw))
    }

    fn decision(&mut self, kept: &Kept) -> Result<(), Stop> {
        let raw = kept.raw();
        if let Some(sweep) = &mut self.sweep
            && let Err(bad) = sweep.read(raw)
        {
            assert_is_silent(&bad.to_string());
            self.met.variant(&bad);
            self.sweep = None;
        }
        self.audit(|trail| trail.decision(raw).is_ok());
        let read = envelope::read_decision(kept.of_participants(), &self.participants[0]);
        if let Read::Ours(decision) = &read {
            assert!(decision.participants.contains(&self.participants[0]), "it does not name us");
        }
        self.envelope(read, |decision| decision.txid, kept);
        self.shard.apply(Record::Decision(raw))
    }

    fn envelope<M>(&mut self, read: Read<M>, txid: fn(&M) -> Txid, kept: &Kept) {
        match read {
            Read::Ours(message) => {
                let txid = txid(&message);
                assert_eq!(kept.partition, txid.shard.partition());
                assert_eq!(kept.key.as_deref(), Some(txid.to_string().as_bytes()));
            }
            Read::Passed => self.met.text("a participant passes"),
            Read::Odd(why) => self.met.text(format!("a participant passes with a warning: {why}")),
            Read::Stop(why) => self.met.text(format!("a participant stops: {why}")),
        }
    }

    fn outcome(&mut self, raw: Raw<'_>) {
        self.audit(|trail| trail.outcome(raw).is_ok());
        let read = codec::decode_outcomes_record(raw.value.unwrap_or_default());
        let outcome = match &read {
            Ok(OutcomesRecord::Outcome(outcome)) => Some(outcome),
            Ok(OutcomesRecord::Incident(_)) | Err(_) => None,
        };
        let heard = self.redrive.hear(&RULES, raw.offset, outcome, self.now);
        self.told.push_str(&format!("{heard:?}\n"));
        assert!(self.redrive.position() <= raw.offset + 1);
        if let Some(outcome) = outcome {
            let is_same = |(_, request): &(&u64, &Request)| request.business_key == outcome.business_key;
            let place = |offset| Txid { log: self.place.log, shard: self.place.shard, offset };
            let asked: Vec<(Txid, Attempt)> = self
                .requests
                .iter()
                .filter(is_same)
                .map(|(offset, request)| (place(*offset), request.attempt))
                .collect();
            let told: Vec<Outcome> = self.logs[&b'o'].iter().filter_map(decoded).collect();
            for txid in told.iter().map(|outcome| outcome.txid).chain(outcome.duplicate_of) {
                match by_hand(txid, &asked, &told) {
                    Ok(attempt) => {
                        assert!(told.iter().all(|told| told.attempt < attempt || told.attempt == Attempt::LAST))
                    }
                    Err(why) => self.met.variant(&why),
                }
            }
        }
    }

    /// The audit ends where it says that a later version has written.
    fn audit(&mut self, takes: impl FnOnce(&mut Trail) -> bool) {
        if self.trail.as_mut().is_some_and(|trail| !takes(trail)) {
            self.trail = None;
        }
    }

    fn happens(&mut self, event: u8) -> Result<(), Stop> {
        match event {
            b's' => self.step(Delivery::Acknowledged),
            b'x' => self.step(Delivery::Refused),
            b'y' => self.step(Delivery::Again),
            b'l' => {
                self.shard.go_live(self.now, 0);
                Ok(())
            }
            b't' => {
                self.now += Duration::from_secs(60);
                self.again();
                Ok(())
            }
            b'c' | b'm' => {
                for participant in &self.participants {
                    self.shard.standing(participant, (event == b'c').then_some(0));
                    if event == b'c' {
                        self.shard.caught_up(participant);
                    }
                }
                Ok(())
            }
            b'k' | b'q' => self.recalled(event == b'k'),
            b'n' | b'f' => self.looked_for(event == b'f'),
            _ => Ok(()),
        }
    }

    fn recalled(&mut self, is_same: bool) -> Result<(), Stop> {
        let last = self.logs.get(&b'r').and_then(|records| records.last()).cloned();
        for offset in std::mem::take(&mut self.recalls) {
            let there = self.logs[&b'r'].iter().find(|kept| kept.offset == offset).cloned();
            let read = if is_same { there } else { last.clone().map(|last| Kept { offset, ..last }) };
            if let Some(kept) = read {
                self.shard.recalled(kept.raw())?;
            }
        }
        Ok(())
    }

    fn looked_for(&mut self, are_there: bool) -> Result<(), Stop> {
        let txids = std::mem::take(&mut self.sought);
        let log = self.logs.get(&b'd').cloned().unwrap_or_default();
        let records: Vec<Raw<'_>> = log.iter().filter(|_| are_there).map(Kept::raw).collect();
        self.shard.looked_for(LookedFor { txids: &txids, records: &records, requests_start: 1 })
    }

    /// What may pass is asked for again.
    fn again(&mut self) {
        for ask in self.redrive.due(self.now, 2) {
            if let Some(request) = self.requests.get(&ask.txid.offset) {
                match ask.next_attempt(request.clone()) {
                    Ok(next) => assert!(next.attempt > request.attempt && next.hash == request.hash),
                    Err(why) => self.met.text(why),
                }
            }
            self.redrive.done(&ask.business_key, ask.txid);
        }
    }

    fn step(&mut self, delivery: Delivery) -> Result<(), Stop> {
        let step = self.shard.step(self.now, 64);
        self.told.push_str(&format!("{step:?}\n"));
        for alarm in &step.alarms {
            assert_is_silent(&format!("{alarm:?}"));
            if let Alarm::ForeignVote { reason, .. } = alarm {
                self.met.variant(reason);
            }
        }
        for append in &step.decisions {
            self.is_the_product(&append.message);
        }
        self.recalls.extend(&step.recalls);
        self.sought.extend(&step.seek);
        for what in appends(&step) {
            self.shard.delivered(what, delivery)?;
        }
        if delivery == Delivery::Acknowledged {
            for no in &step.noes {
                let log = if no.message.participant == self.participants[0] { b'v' } else { b'w' };
                self.read_back(log, no.message.txid, &no.message)?;
            }
            for decision in step.decisions.iter().chain(&step.echoes) {
                self.read_back(b'd', decision.message.txid, &decision.message)?;
            }
        }
        self.positions();
        Ok(())
    }

    fn read_back(&mut self, log: u8, txid: Txid, message: &impl Message) -> Result<(), Stop> {
        self.append(log, i32::from(SHARD), Some(txid.to_string().into_bytes()), Some(encode(message)))
    }

    /// A commit has everybody's yes, an abort somebody's no: each by the first vote on this request.
    fn is_the_product(&self, decision: &Decision) {
        let request = &self.requests[&decision.txid.offset];
        let named = || request.branches.iter().map(|branch| &branch.participant);
        assert!(decision.participants.iter().eq(named()) && decision.hash == request.hash);
        let first = |participant: &Participant| {
            let is_first = |vote: &&Vote| {
                vote.txid == decision.txid && vote.participant == *participant && vote.hash == request.hash
            };
            self.votes.iter().find(is_first).map(|vote| vote.vote)
        };
        match decision.outcome {
            Verdict::Commit => assert!(named().all(|participant| first(participant) == Some(Ballot::Yes))),
            Verdict::Abort => assert!(named().any(|participant| first(participant) == Some(Ballot::No))),
        }
    }

    /// Another owner can read them.
    fn positions(&self) {
        let positions = self.shard.positions();
        let votes = positions.votes.iter().enumerate();
        let votes = votes.map(|(i, (participant, _))| (participant.clone(), [i as u8; 16])).collect();
        let ids = TopicIds { requests: [255; 16], decisions: [254; 16], votes };
        match positions.to_metadata(&ids) {
            Ok(metadata) => {
                let read = Positions::from_metadata(positions.requests, &metadata, &ids);
                assert_eq!(read, Ok(positions));
            }
            Err(bad) => assert!(matches!(bad, BadPositions::TooLong { .. })),
        }
    }

    fn end(mut self) -> (Met, String) {
        if let Some(sweep) = self.sweep.take() {
            self.told.push_str(&format!("{:?}\n", sweep.end()));
        }
        if let Some(trail) = self.trail.take() {
            let books =
                self.participants.iter().map(|name| (name.clone(), ShardBooks { past: 2, ..Default::default() }));
            let judged = judge(&trail, &books.collect());
            for finding in &judged.findings {
                assert_is_silent(&format!("{finding:?}"));
            }
            self.told.push_str(&format!("{:?}\n", judged.findings));
        }
        (self.met, self.told)
    }
}

impl Kept {
    fn raw(&self) -> Raw<'_> {
        Raw {
            offset: self.offset,
            timestamp_ms: 1_000 * self.offset.cast_signed(),
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            traceparent: None,
        }
    }

    fn of_participants(&self) -> envelope::Raw<'_> {
        envelope::Raw { partition: self.partition, key: self.key.as_deref(), value: self.value.as_deref() }
    }
}

/// The key that a record should have.
fn own_key(log: u8, value: &[u8]) -> Vec<u8> {
    let txid = || serde_json::from_slice::<Value>(value).ok()?.get("txid")?.as_str().map(str::to_string);
    if log == b'r' { b"a".to_vec() } else { txid().unwrap_or_default().into_bytes() }
}

fn decoded(kept: &Kept) -> Option<Outcome> {
    codec::decode(kept.value.as_deref()?).ok()
}

fn appends(step: &Step) -> Vec<What> {
    fn whats<M>(appends: &[Append<M>]) -> impl Iterator<Item = What> {
        appends.iter().map(|append| append.what)
    }
    whats(&step.prepares)
        .chain(whats(&step.noes))
        .chain(whats(&step.decisions))
        .chain(whats(&step.outcomes))
        .chain(whats(&step.echoes))
        .chain(whats(&step.rejections))
        .collect()
}
