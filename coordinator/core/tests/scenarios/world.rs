//! A fake Kafka for one shard, and any number of coordinators that own it at once.
//!
//! A topic's partition is a `Vec` of records. Owners read at their own pace; what they send may be written, lost, refused or
//! kept under way, and the report may be lost too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use suture_contract::codec::{self, Message, RequestsRecord, encode};
use suture_contract::ids::{Participant, Shard as ShardId, Txid};
use suture_contract::messages::{Ballot, Branch, Request, Verdict, Vote, Voter};
use suture_contract::partitioner::shard_of;
use suture_contract::topic_map::Topic;
use suture_coordinator_core::positions::Positions;
use suture_coordinator_core::shard::{Alarm, Delivery, Limits, LookedFor, Raw, Record, Shard, Step, Stop, What};

pub const LOG: &str = "k3f9q";
pub const SHARD: ShardId = ShardId(3);
pub const PARTITIONS: u16 = 12;
/// When every record was appended and every shard taken, in milliseconds since 1970, unless a story says otherwise.
pub const WALL_MS: i64 = 1_700_000_000_000;

/// One record of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

/// An append under way.
#[derive(Debug, Clone)]
pub struct Send {
    pub what: What,
    pub topic: Topic,
    pub record: Stored,
    /// The broker has it; only the report is missing.
    pub written: bool,
}

/// What came out of a step.
#[derive(Debug, Default)]
pub struct Stepped {
    pub sends: Vec<Send>,
    pub alarms: Vec<Alarm>,
    pub rereads: Vec<(Participant, u64)>,
    pub recalls: Vec<u64>,
    pub seek: Vec<Txid>,
}

impl Stepped {
    /// Whether nothing is left to do before something else happens.
    pub fn is_empty(&self) -> bool {
        self.sends.is_empty() && self.rereads.is_empty() && self.recalls.is_empty()
    }
}

/// A coordinator process with the shard.
pub struct Owner {
    pub shard: Shard,
    pub now: Duration,
    pub live: bool,
    /// The offset to read next, by topic.
    pub read: BTreeMap<Topic, usize>,
    pub under_way: Vec<Send>,
    /// Requests to read once more.
    pub recalls: Vec<u64>,
    /// Decisions to look for in their log.
    pub seek: Vec<Txid>,
    pub stopped: Option<Stop>,
}

/// Kafka, and who works on it.
#[derive(Default)]
pub struct World {
    pub logs: BTreeMap<Topic, Vec<Stored>>,
    /// By how much later than [`WALL_MS`] a record was appended, for those that were not then.
    pub later_ms: BTreeMap<(Topic, usize), i64>,
    pub served: BTreeSet<Participant>,
    /// Every positions record ever written.
    pub positions: Vec<Positions>,
    pub owners: BTreeMap<String, Owner>,
    pub limits: Limits,
    /// By how much later than [`WALL_MS`] shards are taken.
    pub wall_later_ms: i64,
}

pub fn participant(name: &str) -> Participant {
    name.parse().unwrap()
}

pub fn txid(offset: usize) -> Txid {
    Txid { log: LOG.parse().unwrap(), shard: SHARD, offset: offset as u64 }
}

/// Some patient of the shard.
pub fn order_key() -> String {
    nth_order_key(0)
}

/// One of the shard's patients.
pub fn nth_order_key(n: usize) -> String {
    let of_shard = |key: &String| shard_of(key.as_bytes(), PARTITIONS) == SHARD;
    (0..).map(|n| format!("patient-{n}")).filter(of_shard).nth(n).unwrap()
}

/// A key of the shard that is no order key.
pub fn odd_key() -> String {
    (0..).map(|n| format!("patient {n}")).find(|key| shard_of(key.as_bytes(), PARTITIONS) == SHARD).unwrap()
}

/// Another shard's patient.
pub fn foreign_order_key() -> String {
    let foreign = |key: &String| shard_of(key.as_bytes(), PARTITIONS) != SHARD;
    (0..).map(|n| format!("patient-{n}")).find(foreign).unwrap()
}

/// The request at an offset: each place has its own business key and hash.
pub fn request(offset: usize, participants: &[Participant]) -> Request {
    let branch = |participant: &Participant| Branch {
        participant: participant.clone(),
        operation: "record".to_string(),
        payload: serde_json::value::RawValue::from_string(format!(r#"{{"case":{offset}}}"#)).unwrap(),
    };
    Request {
        business_key: format!("surgery:{offset}").parse().unwrap(),
        attempt: suture_contract::ids::Attempt::FIRST,
        rule: "surgery".to_string(),
        source: None,
        deadline_ms: 30_000,
        ordered: false,
        branches: participants.iter().map(branch).collect(),
        hash: format!("k1:{:032x}", offset + 1).parse().unwrap(),
    }
}

pub fn vote(offset: usize, participant: &Participant, ballot: Ballot) -> Vote {
    Vote {
        txid: txid(offset),
        participant: participant.clone(),
        vote: ballot,
        hash: format!("k1:{:032x}", offset + 1).parse().unwrap(),
        by: Voter::Participant,
        code: (ballot == Ballot::No).then(|| "NOT_PRIVILEGED".parse().unwrap()),
        duplicate_of: None,
        inquiry: false,
    }
}

pub fn stored<M: Message>(key: impl ToString, message: &M) -> Stored {
    Stored { key: Some(key.to_string().into_bytes()), value: Some(encode(message)) }
}

impl World {
    pub fn log(&self, topic: &Topic) -> &[Stored] {
        self.logs.get(topic).map_or(&[], Vec::as_slice)
    }

    pub fn append(&mut self, topic: Topic, record: Stored) {
        self.logs.entry(topic).or_default().push(record);
    }

    /// A shard that has read nothing yet.
    pub fn start(&mut self, name: &str, positions: Option<&Positions>) {
        let served = |at: &dyn Fn(&Participant) -> u64| self.served.iter().map(|p| (p.clone(), at(p))).collect();
        let positions = match positions {
            Some(written) => {
                let of = |p: &Participant| written.votes.iter().find(|(known, _)| known == p).map_or(0, |(_, at)| *at);
                Positions { votes: served(&of), ..written.clone() }
            }
            None => Positions { votes: served(&|_| 0), ..Positions::default() },
        };
        let topics = positions.votes.iter().map(|(p, at)| (Topic::Votes(p.clone()), *at as usize));
        let logs = [(Topic::Requests, positions.requests as usize), (Topic::Decisions, positions.decisions as usize)];
        let owner = Owner {
            shard: Shard::new(
                LOG.parse().unwrap(),
                SHARD,
                PARTITIONS,
                "suture.requests".to_string(),
                self.limits,
                &positions,
            ),
            now: Duration::ZERO,
            live: false,
            read: topics.chain(logs).collect(),
            under_way: Vec::new(),
            recalls: Vec::new(),
            seek: Vec::new(),
            stopped: None,
        };
        self.owners.insert(name.to_string(), owner);
    }

    pub fn go_live(&mut self, name: &str) {
        let owner = self.owners.get_mut(name).unwrap();
        if owner.stopped.is_none() {
            owner.live = true;
            owner.shard.go_live(owner.now, WALL_MS + self.wall_later_ms);
        }
    }

    /// Whether everything was read that must be before a shard goes live.
    pub fn is_loaded(&self, name: &str) -> bool {
        let owner = &self.owners[name];
        let unread = |topic: &Topic, at: usize| at < self.log(topic).len();
        owner.read.iter().all(|(topic, &at)| match topic {
            Topic::Requests => !owner.shard.wants_requests() || !unread(topic, at),
            _ => !unread(topic, at),
        })
    }

    /// Reads up to `most` records of a topic; returns how many. Requests that were asked for again come first.
    pub fn read(&mut self, name: &str, topic: &Topic, most: usize) -> usize {
        let owner = self.owners.get_mut(name).unwrap();
        let Some(at) = owner.read.get_mut(topic) else { return 0 };
        let log = self.logs.get(topic).map_or(&[][..], Vec::as_slice);
        let mut count = 0;
        while count < most && *topic == Topic::Requests && owner.stopped.is_none() {
            let Some(offset) = owner.recalls.pop() else { break };
            let Stored { key, value } = &log[offset as usize];
            let (key, value) = (key.as_deref(), value.as_deref());
            let raw = Raw { offset, timestamp_ms: WALL_MS, key, value, traceparent: None };
            owner.stopped = owner.shard.recalled(raw).err();
            count += 1;
        }
        while count < most && *at < log.len() && owner.stopped.is_none() {
            if *topic == Topic::Requests && !owner.shard.wants_requests() {
                break;
            }
            let later_ms = self.later_ms.get(&(topic.clone(), *at)).copied().unwrap_or_default();
            let raw = Raw {
                offset: *at as u64,
                timestamp_ms: WALL_MS + later_ms,
                key: log[*at].key.as_deref(),
                value: log[*at].value.as_deref(),
                traceparent: None,
            };
            let record = match topic {
                Topic::Requests => Record::Request(raw),
                Topic::Votes(participant) => Record::Vote(participant, raw),
                Topic::Decisions => Record::Decision(raw),
                Topic::Prepare(_) | Topic::Outcomes | Topic::Rejected => unreachable!("no coordinator reads {topic:?}"),
            };
            owner.stopped = owner.shard.apply(record).err();
            *at += 1;
            count += 1;
        }
        if let Topic::Votes(participant) = topic
            && *at >= log.len()
        {
            owner.shard.caught_up(participant);
        }
        count
    }

    /// Reads everything there is: requests first, as the service does.
    pub fn read_all(&mut self, name: &str) -> usize {
        let mut topics: Vec<Topic> = self.owners[name].read.keys().cloned().collect();
        topics.sort_by_key(|topic| *topic != Topic::Requests);
        topics.iter().map(|topic| self.read(name, topic, usize::MAX)).sum()
    }

    /// One step. Nothing of it is written yet.
    pub fn step(&mut self, name: &str) -> Stepped {
        let mut stepped = Stepped::default();
        loop {
            let owner = self.owners.get_mut(name).unwrap();
            if owner.stopped.is_some() {
                return stepped;
            }
            let step = owner.shard.step(owner.now, usize::MAX);
            let Step {
                prepares,
                noes,
                decisions,
                outcomes,
                echoes,
                rejections,
                rereads,
                recalls,
                seek,
                look_up,
                alarms,
            } = step;
            owner.seek.extend(&seek);
            stepped.seek.extend(seek);
            owner.recalls.extend(&recalls);
            stepped.recalls.extend(recalls);
            let mut send = |what, topic, record| stepped.sends.push(Send { what, topic, record, written: false });
            for append in prepares {
                let (participant, prepare) = append.message;
                send(append.what, Topic::Prepare(participant), stored(prepare.txid, &prepare));
            }
            for append in noes {
                let topic = Topic::Votes(append.message.participant.clone());
                send(append.what, topic, stored(append.message.txid, &append.message));
            }
            for append in decisions.into_iter().chain(echoes) {
                send(append.what, Topic::Decisions, stored(append.message.txid, &append.message));
            }
            for append in outcomes {
                send(append.what, Topic::Outcomes, stored(&append.message.business_key, &append.message));
            }
            for append in rejections {
                send(append.what, Topic::Rejected, stored(&append.message.origin, &append.message));
            }
            stepped.alarms.extend(alarms);
            for (participant, from) in rereads {
                owner.read.insert(Topic::Votes(participant.clone()), from as usize);
                stepped.rereads.push((participant, from));
            }
            if look_up.is_empty() {
                return stepped;
            }
            for participant in look_up {
                self.tell_standing(name, &participant);
            }
        }
    }

    pub fn tell_standing(&mut self, name: &str, participant: &Participant) {
        let owner = self.owners.get_mut(name).unwrap();
        let served = self.served.contains(participant);
        if owner.shard.standing(participant, served.then_some(0)) {
            owner.read.insert(Topic::Votes(participant.clone()), 0);
            if self.log(&Topic::Votes(participant.clone())).is_empty() {
                self.owners.get_mut(name).unwrap().shard.caught_up(participant);
            }
        }
    }

    /// Looks through the decision log for what was asked for; the requests log begins at `requests_start`.
    pub fn look_for(&mut self, name: &str, requests_start: u64) {
        let owner = self.owners.get_mut(name).unwrap();
        let txids = std::mem::take(&mut owner.seek);
        let log = self.logs.get(&Topic::Decisions).map_or(&[][..], Vec::as_slice);
        let last = |txid: &Txid| {
            let key = txid.to_string().into_bytes();
            let (at, found) = log.iter().enumerate().rfind(|(_, record)| record.key.as_ref() == Some(&key))?;
            let (key, value) = (found.key.as_deref(), found.value.as_deref());
            Some(Raw { offset: at as u64, timestamp_ms: WALL_MS, key, value, traceparent: None })
        };
        let records: Vec<Raw<'_>> = txids.iter().filter_map(last).collect();
        let answer = LookedFor { txids: &txids, records: &records, requests_start };
        if owner.stopped.is_none() {
            owner.stopped = owner.shard.looked_for(answer).err();
        }
    }

    /// Writes what was sent.
    pub fn write(&mut self, send: &mut Send) {
        send.written = true;
        self.append(send.topic.clone(), send.record.clone());
    }

    pub fn report(&mut self, name: &str, what: What, delivery: Delivery) {
        let owner = self.owners.get_mut(name).unwrap();
        if owner.stopped.is_none() {
            owner.stopped = owner.shard.delivered(what, delivery).err();
        }
    }

    /// The request at an offset, as the record alone says; by hand, not with the shard's code.
    pub fn request_at(&self, offset: usize) -> Option<Request> {
        let record = self.log(&Topic::Requests).get(offset)?;
        match codec::decode_requests_record(record.value.as_deref()?) {
            Ok(RequestsRecord::Request(request)) => Some(request),
            Ok(RequestsRecord::Cancel(_)) | Err(_) => None,
        }
    }

    /// The first vote of a register and its offset, as the logs say.
    pub fn first_vote(&self, request: usize, participant: &Participant) -> Option<(usize, Ballot)> {
        let key = txid(request).to_string().into_bytes();
        let votes = self.log(&Topic::Votes(participant.clone()));
        let mut keyed = votes.iter().enumerate().filter(|(_, record)| record.key.as_ref() == Some(&key)).peekable();
        keyed.peek()?;
        let hash = self.request_at(request)?.hash;
        keyed.find_map(|(at, record)| {
            let vote: Vote = codec::decode(record.value.as_deref()?).ok()?;
            let fits = vote.participant == *participant && vote.txid == txid(request) && vote.hash == hash;
            (fits && (vote.by == Voter::Participant || vote.vote == Ballot::No)).then_some((at, vote.vote))
        })
    }

    /// The product of the first votes.
    pub fn product(&self, request: usize) -> Option<Verdict> {
        let named = self.request_at(request)?.branches;
        let votes: Vec<_> = named.iter().map(|b| self.first_vote(request, &b.participant).map(|(_, v)| v)).collect();
        match votes.contains(&Some(Ballot::No)) {
            true => Some(Verdict::Abort),
            false => votes.iter().all(|vote| *vote == Some(Ballot::Yes)).then_some(Verdict::Commit),
        }
    }
}
