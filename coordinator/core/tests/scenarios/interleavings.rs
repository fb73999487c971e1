//! Thousands of short random lives of one shard: owners that come and go, from any positions record ever written, and whose
//! sends are lost, doubled, late or without a report; participants that vote twice, differently, or never.
//!
//! Against the logs themselves, and never against what an owner believes:
//!
//! - each decision is the product of the first votes, and all copies are equal to the byte;
//! - no positions record passes a first vote or a decision of a transaction at or above its watermark;
//! - after healing and draining, every request has a decision and an outcome, and the watermark stands at the end;
//! - an owner from any positions record, with or without the decision log, decides what was decided;
//! - who asks for its decision gets equal copies of it, and costs nothing else;
//! - an ordered transaction is asked for only when each earlier one of its order key has its decision in the log.

use std::collections::BTreeMap;
use std::time::Duration;

use suture_contract::codec;
use suture_contract::ids::{Participant, Txid};
use suture_contract::messages::{Ballot, Branch, Cancel, Decision, Outcome, Prepare, Verdict, Vote, Voter};
use suture_contract::topic_map::Topic;
use suture_coordinator_core::positions::Positions;
use suture_coordinator_core::shard::{Alarm, Delivery, Limits, What};

use crate::world::{self, Send, Stored, World, participant, stored, txid};

const RUNS: u64 = 1_500;
const MOVES: usize = 100;
const MOST_REQUESTS: usize = 7;
const OWNERS: [&str; 2] = ["A", "B"];

/// How often each kind of thing happened in all runs: a test that never meets a fault proves nothing.
type Met = BTreeMap<&'static str, u64>;

#[test]
fn any_interleaving_decides_the_product_of_the_first_votes() {
    let mut met = Met::new();
    for seed in 1..=RUNS {
        let mut life = Life::new(seed);
        for _ in 0..MOVES {
            life.one_move();
            life.check_decisions();
        }
        life.drain();
        for (what, times) in life.met {
            *met.entry(what).or_default() += times;
        }
    }
    println!("{met:?}");
    let least = |what: &str, times: u64| assert!(met.get(what).is_some_and(|met| *met >= times), "{what}: {met:?}");
    let kinds =
        ["crash", "lost", "doubled", "late", "refused prepare", "old positions", "early vote", "let go", "cancel"];
    for what in kinds {
        least(what, 100);
    }
    for what in [
        "commit",
        "abort",
        "expired",
        "decided twice",
        "waits for topics",
        "waits for its turn",
        "had its turn",
        "echo",
        "looked for",
    ] {
        least(what, 100);
    }
}

struct Life {
    seed: u64,
    random: u64,
    world: World,
    participants: Vec<Participant>,
    /// Sends of any owner, dead ones too, that may still reach the broker.
    late: Vec<Send>,
    checked: usize,
    decided: BTreeMap<u64, Stored>,
    met: Met,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut life = Self {
            seed,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            world: World::default(),
            participants: ["p", "q", "unknown"].into_iter().map(participant).collect(),
            late: Vec::new(),
            checked: 0,
            decided: BTreeMap::new(),
            met: Met::new(),
        };
        life.world.served.extend(life.participants[..2].iter().cloned());
        life.world.limits = Limits { window: 2 + life.below(4), held_votes: life.below(3) };
        for owner in OWNERS {
            life.world.start(owner, None);
            life.world.go_live(owner);
        }
        life
    }

    /// xorshift64*
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }

    fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn one_move(&mut self) {
        let owner = OWNERS[self.below(2)];
        match self.below(32) {
            0..=2 => self.request(),
            3..=8 => self.vote(),
            9 | 10 => self.land_late(),
            11 => self.crash(owner),
            12 | 13 => self.commit(owner),
            14..=23 => self.read(owner),
            _ => self.step(owner),
        }
    }

    fn request(&mut self) {
        let place = self.world.log(&Topic::Requests).len();
        if place >= MOST_REQUESTS {
            return;
        }
        if place > 0 && self.one_in(6) {
            self.meet("cancel");
            let cancel = Cancel { txid: txid(self.below(place)), who: "ward".to_string(), why: "typo".to_string() };
            return self.world.append(Topic::Requests, stored(world::order_key(), &cancel));
        }
        if self.one_in(10) {
            return self.world.append(Topic::Requests, Stored { key: None, value: Some(b"rubbish".to_vec()) });
        }
        let mut named = self.participants[..2].to_vec();
        match self.below(10) {
            0 => named = vec![self.participants[2].clone()],
            1 => named = self.participants.clone(),
            2 | 3 => named.truncate(1),
            _ => {}
        }
        let mut request = world::request(place, &named);
        request.ordered = self.one_in(2);
        let patient = world::nth_order_key(self.below(2));
        self.world.append(Topic::Requests, stored(patient, &request));
    }

    /// Participants answer prepares, some of them twice, and differently.
    fn vote(&mut self) {
        let which = self.below(2);
        let voter = self.participants[which].clone();
        let prepares = self.world.log(&Topic::Prepare(voter.clone()));
        if prepares.is_empty() {
            return;
        }
        let (many, votes) = (prepares.len(), Topic::Votes(voter.clone()));
        let prepare = self.below(many);
        let key = self.world.log(&Topic::Prepare(voter.clone()))[prepare].key.clone().unwrap();
        let request: Txid = String::from_utf8(key).unwrap().parse().unwrap();
        let ballot = if self.one_in(5) { Ballot::No } else { Ballot::Yes };
        let mut vote = world::vote(request.offset as usize, &voter, ballot);
        match self.below(20) {
            0 => vote.hash = "k1:00000000000000000000000000000abc".parse().unwrap(),
            1 => vote.by = if ballot == Ballot::Yes { Voter::Coordinator } else { Voter::Participant },
            2 => return self.world.append(votes, Stored { key: None, value: Some(b"{".to_vec()) }),
            3..=6 => vote.inquiry = true,
            _ => {}
        }
        self.world.append(votes, stored(vote.txid, &vote));
    }

    fn land_late(&mut self) {
        if !self.late.is_empty() {
            self.meet("late");
            let which = self.below(self.late.len());
            let mut send = self.late.swap_remove(which);
            self.world.write(&mut send);
        }
    }

    /// The process dies; another one, or the same, takes the shard.
    fn crash(&mut self, owner: &str) {
        self.meet("crash");
        let written = self.world.positions.len();
        let from = self.below(written + 1);
        let from = self.world.positions.get(from).cloned();
        if from.as_ref().is_some_and(|from| Some(from) != self.world.positions.last()) {
            self.meet("old positions");
        }
        self.world.start(owner, from.as_ref());
    }

    fn commit(&mut self, owner: &str) {
        let owner = &self.world.owners[owner];
        let positions = owner.shard.positions();
        if owner.stopped.is_none() {
            self.check_positions(&positions);
            self.world.positions.push(positions);
        }
    }

    fn read(&mut self, owner: &str) {
        self.read_in_any_order(owner, 4);
        if self.world.owners[owner].shard.summary().held_votes > 0 {
            self.meet("early vote");
        }
        self.no_stop(owner);
        if !self.world.owners[owner].live && self.world.is_loaded(owner) {
            self.world.go_live(owner);
        }
    }

    fn step(&mut self, owner: &str) {
        if !self.world.owners[owner].live {
            return;
        }
        let live_for = self.world.owners[owner].now;
        let later = [0, 0, 0, 0, 1, 1, 10, 31][self.below(8)];
        self.world.owners.get_mut(owner).unwrap().now = live_for + Duration::from_secs(later);
        let stepped = self.world.step(owner);
        if !stepped.rereads.is_empty() {
            self.meet("let go");
        }
        if self.world.owners[owner].shard.summary().waiting > 0 {
            self.meet("waits for topics");
        }
        let lost = stepped.alarms.iter().find(|alarm| matches!(alarm, Alarm::NoDecision { .. }));
        assert!(lost.is_none(), "seed {}: {lost:?}", self.seed);
        if !stepped.seek.is_empty() {
            self.meet("looked for");
        }
        if self.one_in(2) {
            self.world.look_for(owner, 0);
        }
        let echoes = stepped.sends.iter().filter(|send| matches!(send.what, What::Echo { .. })).count();
        (0..echoes).for_each(|_| self.meet("echo"));
        if self.world.owners[owner].shard.summary().in_line > 0 {
            self.meet("waits for its turn");
        }
        for _ in &stepped.recalls {
            self.meet("had its turn");
        }
        self.check_order(&stepped.sends);
        for send in stepped.sends {
            self.send(owner, send);
        }
        self.no_stop(owner);
    }

    /// Before a prepare of an ordered transaction leaves, the decisions of all earlier ones of its order key stand in the log.
    fn check_order(&self, sends: &[Send]) {
        for send in sends.iter().filter(|send| matches!(send.topic, Topic::Prepare(_))) {
            let prepare: Prepare = codec::decode(send.record.value.as_deref().unwrap()).unwrap();
            let ordered = |place: usize| self.world.request_at(place).is_some_and(|request| request.ordered);
            let place = prepare.txid.offset as usize;
            let requests = self.world.log(&Topic::Requests);
            let key = requests[place].key.clone().filter(|_| ordered(place));
            assert_eq!(prepare.order_key.map(|key| key.to_string().into_bytes()), key, "seed {}", self.seed);
            for before in (0..place).filter(|&before| ordered(before) && requests[before].key == key) {
                let decided = |record: &Stored| record.key == Some(txid(before).to_string().into_bytes());
                let told = self.world.log(&Topic::Decisions).iter().any(decided);
                assert!(told, "seed {}: {place} is asked for before {before} is told", self.seed);
            }
        }
    }

    fn send(&mut self, owner: &str, mut send: Send) {
        let what = send.what;
        match self.below(12) {
            0 => {
                self.meet("lost");
                self.world.report(owner, what, Delivery::Again);
            }
            1 => {
                self.meet("doubled");
                self.world.write(&mut send);
                self.world.report(owner, what, Delivery::Again);
            }
            2 => {
                self.late.push(send);
                self.world.report(owner, what, Delivery::Again);
            }
            // The report never comes, until this owner is gone.
            3 if self.one_in(4) => self.late.push(send),
            4 if matches!(send.topic, Topic::Prepare(_)) && self.one_in(6) => {
                self.meet("refused prepare");
                self.world.report(owner, what, Delivery::Refused);
            }
            _ => {
                self.world.write(&mut send);
                self.world.report(owner, what, Delivery::Acknowledged);
            }
        }
    }

    fn no_stop(&self, owner: &str) {
        let stop = &self.world.owners[owner].stopped;
        assert!(stop.is_none(), "seed {}: {owner} stops: {stop:?}", self.seed);
    }

    /// Every new decision is the product of the first votes, and equal to what was there.
    fn check_decisions(&mut self) {
        while let Some(record) = self.world.log(&Topic::Decisions).get(self.checked).cloned() {
            self.checked += 1;
            let decision: Decision = codec::decode(record.value.as_deref().unwrap()).unwrap();
            let product = self.world.product(decision.txid.offset as usize);
            assert_eq!(Some(decision.outcome), product, "seed {}: {decision:?}", self.seed);
            match self.decided.insert(decision.txid.offset, record.clone()) {
                Some(earlier) => {
                    self.meet("decided twice");
                    assert_eq!(earlier, record, "seed {}: unequal copies", self.seed);
                }
                None => self.meet(if decision.outcome == Verdict::Commit { "commit" } else { "abort" }),
            }
        }
    }

    /// No position passes what an owner from there needs.
    fn check_positions(&self, positions: &Positions) {
        let after = positions.requests as usize;
        for request in after..self.world.log(&Topic::Requests).len() {
            for (name, at) in &positions.votes {
                let Some((first, _)) = self.world.first_vote(request, name) else { continue };
                let names = |branch: &Branch| branch.participant == *name;
                let passed = (first as u64) < *at && self.world.request_at(request).unwrap().branches.iter().any(names);
                assert!(!passed, "seed {}: {positions:?} passes the first vote of {name} for {request}", self.seed);
            }
        }
        for record in self.world.log(&Topic::Decisions).iter().take(positions.decisions as usize) {
            let decided: Txid = std::str::from_utf8(record.key.as_deref().unwrap()).unwrap().parse().unwrap();
            assert!(decided.offset < positions.requests, "seed {}: {positions:?} passes {decided}", self.seed);
        }
    }

    /// Everything heals: late records land, missing topics come, one owner of the two works on without faults.
    fn drain(&mut self) {
        while !self.late.is_empty() {
            self.land_late();
        }
        self.check_decisions();
        let seed = self.seed;
        let survivor = OWNERS[self.below(2)];
        let hangs = |world: &World| world.owners.get(survivor).is_none_or(|owner| !owner.live);
        if hangs(&self.world) || self.one_in(2) {
            let from = self.below(self.world.positions.len() + 1);
            let from = self.world.positions.get(from).cloned();
            self.world.start(survivor, from.as_ref());
            self.world.read_all(survivor);
            self.world.go_live(survivor);
        } else {
            // Reports that never came: what is under way for too long is due again.
            let from = self.world.owners[survivor].shard.positions();
            self.check_positions(&from);
            self.world.start(survivor, Some(&from));
            self.world.read_all(survivor);
            self.world.go_live(survivor);
        }
        self.world.served.insert(self.participants[2].clone());
        for round in 0.. {
            assert!(round < 200, "seed {seed}: does not come to an end: {:?}", self.world.owners[survivor].shard);
            let read = self.world.read_all(survivor);
            let stepped = self.world.step(survivor);
            self.check_order(&stepped.sends);
            for mut send in stepped.sends.clone() {
                self.world.write(&mut send);
                self.world.report(survivor, send.what, Delivery::Acknowledged);
            }
            self.no_stop(survivor);
            self.check_decisions();
            if read == 0 && stepped.is_empty() {
                let owner = self.world.owners.get_mut(survivor).unwrap();
                let Some(deadline) = owner.shard.next_deadline() else {
                    if owner.shard.missing().next().is_none() {
                        break;
                    }
                    self.world.tell_standing(survivor, &self.participants[2].clone());
                    continue;
                };
                owner.now = owner.now.max(deadline);
            }
        }
        let end = self.world.log(&Topic::Requests).len();
        let positions = self.world.owners[survivor].shard.positions();
        assert_eq!(positions.requests, end as u64, "seed {seed}: the watermark stands");
        self.check_positions(&positions);
        self.world.positions.push(positions);
        self.check_all_ended(end);
        self.check_all_positions();
    }

    fn check_all_ended(&mut self, end: usize) {
        let outcomes: Vec<Outcome> = self
            .world
            .log(&Topic::Outcomes)
            .iter()
            .map(|record| codec::decode(record.value.as_deref().unwrap()).unwrap())
            .collect();
        for request in 0..end {
            let Some(asked) = self.world.request_at(request) else {
                assert!(!self.decided.contains_key(&(request as u64)));
                continue;
            };
            assert!(self.decided.contains_key(&(request as u64)), "seed {}: {request} has no decision", self.seed);
            let product = self.world.product(request).unwrap();
            let mut of = outcomes.iter().filter(|outcome| outcome.txid.offset == request as u64).peekable();
            assert!(of.peek().is_some(), "seed {}: {request} has no outcome", self.seed);
            assert!(of.all(|outcome| outcome.outcome == product), "seed {}: {request}", self.seed);
            let expired = asked.branches.iter().any(|branch| {
                let Some((at, _)) = self.world.first_vote(request, &branch.participant) else { return false };
                let record = &self.world.log(&Topic::Votes(branch.participant.clone()))[at];
                let vote: Vote = codec::decode(record.value.as_deref().unwrap()).unwrap();
                vote.code.is_some_and(|code| code.as_str() == "expired")
            });
            if expired {
                self.meet("expired");
            }
        }
    }

    /// Who starts anywhere decides what was decided, also without the decision log.
    fn check_all_positions(&mut self) {
        let written = self.world.positions.len();
        for with_decisions in [true, false] {
            for _ in 0..1 {
                let from = self.below(written + 1);
                let from = self.world.positions.get(from).cloned();
                self.world.limits.window = 2 + self.below(MOST_REQUESTS);
                self.world.limits.held_votes = self.below(5);
                self.world.start("C", from.as_ref());
                if !with_decisions {
                    self.world.owners.get_mut("C").unwrap().read.remove(&Topic::Decisions);
                }
                self.world.go_live("C");
                loop {
                    let read = self.read_in_any_order("C", 9);
                    let stepped = self.world.step("C");
                    for send in &stepped.sends {
                        if send.topic == Topic::Decisions {
                            let decision: Decision = codec::decode(send.record.value.as_deref().unwrap()).unwrap();
                            assert_eq!(
                                Some(&send.record),
                                self.decided.get(&decision.txid.offset),
                                "seed {}: from {from:?}",
                                self.seed
                            );
                        }
                        self.world.report("C", send.what, Delivery::Acknowledged);
                    }
                    self.no_stop("C");
                    if read == 0 && stepped.is_empty() && self.world.is_loaded("C") {
                        break;
                    }
                }
                let end = self.world.log(&Topic::Requests).len() as u64;
                let positions = self.world.owners["C"].shard.positions();
                assert_eq!(positions.requests, end, "seed {}: from {from:?}, decisions {with_decisions}", self.seed);
                self.check_positions(&positions);
            }
        }
    }

    fn read_in_any_order(&mut self, owner: &str, most: usize) -> usize {
        let mut topics: Vec<Topic> = self.world.owners[owner].read.keys().cloned().collect();
        let mut count = 0;
        while !topics.is_empty() {
            let topic = topics.swap_remove(self.below(topics.len()));
            let most = self.below(most);
            count += self.world.read(owner, &topic, most);
        }
        count
    }
}
