//! What some coordinator can do now, from the logs alone.
//!
//! Coordinators have no state of their own in the model. Any number of them may own the shard at once, be dead, be late,
//! or have started at **any positions record that can ever have been committed**, or at none; each has read some beginning of each log.
//! So what any of them can do is a function of the logs: a closure over all such starts and all such beginnings, each of them
//! played through the [`Shard`] of production.
//!
//! ```text
//!   start (positions, or none)  x  beginning of each log  x  order of reading  x  what was acknowledged
//!     -> Shard::apply .. go_live, step, delivered .. -> what it sends;  positions() -> another start
//! ```
//!
//! - What a dead owner has sent and what lands late or twice is what some owner sends.
//! - An owner that has seen an old end of a log is one that has read a beginning of it.
//! - Time is not modelled: each owner is asked once before and once after every deadline.
//! - An append is acknowledged only if such a record was ever in the log; whether the report has come is left open.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use suture_contract::messages::Verdict;
use suture_coordinator_core::positions::Positions;
use suture_coordinator_core::shard::{Delivery, Limits, Record, Shard, Step, Stop, What};

use super::alphabet::{Alphabet, PARTICIPANTS, REQUESTS, SHARD};
use super::hash::Mixed;
use super::logs::{Log, Logs};
use super::property::{Broken, Property};
use super::world::Bounds;

/// After every deadline.
const LATE: Duration = Duration::from_secs(3_000);

/// What owners may send, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sends(u32);

/// One thing that an owner may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Prepare(usize, usize),
    No(usize, usize),
    Decision(usize, Verdict),
    Outcome(usize, Verdict),
}

impl Sent {
    const REGISTERS: usize = REQUESTS * PARTICIPANTS;

    fn bit(self) -> u32 {
        let verdict = |verdict| usize::from(verdict == Verdict::Abort);
        1 << match self {
            Self::Prepare(request, participant) => request * PARTICIPANTS + participant,
            Self::No(request, participant) => Self::REGISTERS + request * PARTICIPANTS + participant,
            Self::Decision(request, outcome) => 2 * Self::REGISTERS + 2 * request + verdict(outcome),
            Self::Outcome(request, outcome) => 2 * Self::REGISTERS + 2 * (REQUESTS + request) + verdict(outcome),
        }
    }
}

impl Sends {
    /// Whether it is among them.
    pub fn has(self, sent: Sent) -> bool {
        self.0 & sent.bit() != 0
    }

    fn add(&mut self, sent: Sent) {
        self.0 |= sent.bit();
    }

    fn has_no(self) -> bool {
        let any = |request| (0..PARTICIPANTS).any(|participant| self.has(Sent::No(request, participant)));
        (0..REQUESTS).any(any)
    }

    fn join(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Where an owner starts to read: W, D, and V of both participants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Start {
    /// W.
    pub requests: u8,
    /// D.
    pub decisions: u8,
    /// V.
    pub votes: [u8; PARTICIPANTS],
}

/// What an owner has read, and what may have been acknowledged to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct View {
    start: Start,
    requests: u8,
    votes: [Log; PARTICIPANTS],
    decisions: Log,
    /// Decisions that were ever appended, by request.
    logged: u8,
}

/// What such an owner can do.
#[derive(Debug)]
struct Seen {
    sends: Sends,
    starts: Box<[Start]>,
    broken: Option<Broken>,
}

/// What all owners together can do.
#[derive(Debug, Default)]
pub struct Owners {
    /// What they may send.
    pub sends: Sends,
    /// Every positions record that can have been committed, and every start without one.
    pub starts: BTreeSet<Start>,
    /// What an owner has done that none may do, and which.
    pub broken: Option<Broken>,
}

/// Remembers what was found out.
pub struct Oracle<'a> {
    alphabet: &'a Alphabet,
    limits: Limits,
    unknown: bool,
    views: HashMap<View, Arc<Seen>, Mixed>,
    logs: HashMap<Logs, Arc<Owners>, Mixed>,
}

/// In which order the beginnings of the logs are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Everything is loaded, then the shard goes live.
    Loaded,
    /// The shard goes live with nothing, and everything comes after.
    Live,
    /// Votes and decisions before their requests.
    Early,
    /// Everything is loaded, but nobody says that the votes have ended.
    Unread,
    /// As loaded, but this participant has no topics, and gets them later.
    Unknown(usize),
}

impl<'a> Oracle<'a> {
    /// Knows nothing yet.
    pub fn new(alphabet: &'a Alphabet, bounds: &Bounds) -> Self {
        let limits = Limits { window: 64, held_votes: bounds.held_votes };
        Self { alphabet, limits, unknown: bounds.unknown, views: HashMap::default(), logs: HashMap::default() }
    }

    /// How many views and how many sets of logs were played through.
    pub fn counts(&self) -> (usize, usize) {
        (self.views.len(), self.logs.len())
    }

    /// What owners can do with these logs.
    pub fn owners(&mut self, logs: &Logs) -> Arc<Owners> {
        if let Some(known) = self.logs.get(logs) {
            return Arc::clone(known);
        }
        let mut owners = Owners::default();
        let mut unread: Vec<Start> = starts_without_positions(logs);
        let logged =
            (0..REQUESTS).filter(|request| logs.is_logged(*request)).fold(0, |mask, request| mask | 1 << request);
        let contents = [logs.decisions, logs.decisions.without(logs.removed)];
        let contents = if logs.removed == 0 { &contents[..1] } else { &contents[..] };
        while let Some(start) = unread.pop() {
            if !owners.starts.insert(start) {
                continue;
            }
            for view in beginnings(start, logs, contents, logged) {
                let seen = self.view(view);
                owners.sends.join(seen.sends);
                unread.extend(seen.starts.iter().filter(|start| !owners.starts.contains(start)));
                if let (Some(broken), None) = (&seen.broken, &owners.broken) {
                    let what = format!("{}, for {view:?}", broken.what);
                    owners.broken = Some(Broken { what, ..*broken });
                }
            }
        }
        let owners = Arc::new(owners);
        self.logs.insert(*logs, Arc::clone(&owners));
        owners
    }

    /// What an owner decides that starts here and reads all that is there; by request.
    pub fn verdicts(&mut self, start: Start, logs: &Logs) -> Sends {
        let decisions = logs.decisions.without(logs.removed);
        let Start { decisions: from, votes, .. } = start;
        let all = |participant: usize| {
            let log = &logs.votes[participant];
            log.between(usize::from(votes[participant]), log.len())
        };
        let decisions = decisions.between(usize::from(from), decisions.len());
        self.view(View { start, requests: logs.requests, votes: [all(0), all(1)], decisions, logged: 0 }).sends
    }

    fn view(&mut self, view: View) -> Arc<Seen> {
        if let Some(seen) = self.views.get(&view) {
            return Arc::clone(seen);
        }
        let seen = Arc::new(self.play(&view));
        self.views.insert(view, Arc::clone(&seen));
        seen
    }

    fn play(&self, view: &View) -> Seen {
        let mut seen = Seen { sends: Sends::default(), starts: Box::default(), broken: None };
        let mut starts = BTreeSet::new();
        let unknown = (0..PARTICIPANTS).filter(|_| self.unknown).map(Order::Unknown);
        for order in [Order::Loaded, Order::Live, Order::Early, Order::Unread].into_iter().chain(unknown) {
            let mut tried = BTreeSet::new();
            let mut reports = vec![[0; REQUESTS]];
            while let Some(report) = reports.pop() {
                if !tried.insert(report) {
                    continue;
                }
                let mut owner = Owner::new(self, view, order);
                if let Err(stop) = owner.live(order, &report) {
                    let what = format!("an owner stops: {stop} ({order:?})");
                    seen.broken.get_or_insert(Broken::of(Property::Stop, what));
                    continue;
                }
                if order == Order::Unread && owner.sends.has_no() {
                    let what = "an owner that has not read the votes to their end says no for somebody";
                    seen.broken.get_or_insert(Broken::of(Property::Expiry, what));
                }
                seen.sends.join(owner.sends);
                starts.extend(owner.committed);
                // Whatever it has decided may be reported once more.
                for request in 0..REQUESTS {
                    let is_decided = [Verdict::Commit, Verdict::Abort].into_iter().any(|verdict| {
                        owner.sends.has(Sent::Decision(request, verdict))
                            || owner.sends.has(Sent::Outcome(request, verdict))
                    });
                    let may = order != Order::Unread && view.logged & (1 << request) != 0;
                    if is_decided && may && report[request] < 2 {
                        let mut more = report;
                        more[request] += 1;
                        reports.push(more);
                    }
                }
            }
        }
        seen.starts = starts.into_iter().collect();
        seen
    }
}

/// Without positions an owner begins at the logs' starts, as they were at some time: the votes' starts are looked up first, so
/// they reach as far back as the requests.
fn starts_without_positions(logs: &Logs) -> Vec<Start> {
    let mut starts = Vec::new();
    for requests in 0..=logs.requests_start {
        let reaches = |participant: usize, votes: &u8| {
            usize::from(*votes) <= logs.first_vote_from(usize::from(requests), participant)
        };
        for p in (0..=logs.votes_start[0]).filter(|votes| reaches(0, votes)) {
            for q in (0..=logs.votes_start[1]).filter(|votes| reaches(1, votes)) {
                starts.push(Start { requests, decisions: 0, votes: [p, q] });
            }
        }
    }
    starts
}

/// All that an owner from this start can have read.
fn beginnings(start: Start, logs: &Logs, contents: &[Log], logged: u8) -> Vec<View> {
    let mut views = Vec::new();
    let until = |from: u8, to: usize| usize::from(from)..=to.max(usize::from(from));
    let parts = |log: &Log, from: u8| -> Vec<Log> {
        until(from, log.len()).map(|to| log.between(usize::from(from), to)).collect()
    };
    let (p, q) = (parts(&logs.votes[0], start.votes[0]), parts(&logs.votes[1], start.votes[1]));
    let decisions: BTreeSet<Log> = contents.iter().flat_map(|log| parts(log, start.decisions)).collect();
    for requests in start.requests..=logs.requests.max(start.requests) {
        for p in &p {
            for q in &q {
                for decisions in &decisions {
                    views.push(View { start, requests, votes: [*p, *q], decisions: *decisions, logged });
                }
            }
        }
    }
    views
}

/// One coordinator with the shard.
struct Owner<'a> {
    alphabet: &'a Alphabet,
    view: &'a View,
    shard: Shard,
    sends: Sends,
    committed: Vec<Start>,
}

impl<'a> Owner<'a> {
    fn new(oracle: &Oracle<'a>, view: &'a View, order: Order) -> Self {
        let alphabet = oracle.alphabet;
        let Start { requests, decisions, votes } = view.start;
        let known = alphabet.participants.iter().cloned().zip(votes.map(u64::from)).enumerate();
        let known = known.filter(|(participant, _)| order != Order::Unknown(*participant));
        let votes = known.map(|(_, position)| position).collect();
        let positions = Positions { requests: requests.into(), decisions: decisions.into(), votes };
        let shard = Shard::new(alphabet.log, SHARD, 1, "suture.requests".to_string(), oracle.limits, &positions);
        Self { alphabet, view, shard, sends: Sends::default(), committed: vec![view.start] }
    }

    /// Reports: by request, how many of its appends were acknowledged, the decision first.
    fn live(&mut self, order: Order, reports: &[u8; REQUESTS]) -> Result<(), Stop> {
        match order {
            Order::Loaded => {
                self.read_requests()?;
                self.read_votes(0, usize::from(self.view.start.votes[0]))?;
                self.read_votes(1, usize::from(self.view.start.votes[1]))?;
                self.read_decisions()?;
                self.go_live();
            }
            Order::Live => {
                self.go_live();
                self.read_requests()?;
                self.send(Duration::ZERO)?;
                self.read_votes(1, usize::from(self.view.start.votes[1]))?;
                self.read_votes(0, usize::from(self.view.start.votes[0]))?;
                self.send(Duration::ZERO)?;
                self.read_decisions()?;
            }
            Order::Early => {
                self.read_decisions()?;
                self.read_votes(1, usize::from(self.view.start.votes[1]))?;
                self.read_votes(0, usize::from(self.view.start.votes[0]))?;
                self.read_requests()?;
                self.go_live();
            }
            Order::Unread => {
                self.read_requests()?;
                self.read_votes(0, usize::from(self.view.start.votes[0]))?;
                self.read_votes(1, usize::from(self.view.start.votes[1]))?;
                self.read_decisions()?;
                self.shard.go_live(Duration::ZERO, 0);
            }
            Order::Unknown(participant) => {
                let known = 1 - participant;
                self.read_requests()?;
                self.read_votes(known, usize::from(self.view.start.votes[known]))?;
                self.read_decisions()?;
                self.shard.caught_up(&self.alphabet.participants[known]);
                self.shard.go_live(Duration::ZERO, 0);
                self.send(Duration::ZERO)?;
                self.send(LATE)?;
                self.committed.push(self.positions());
                let from = self.view.start.votes[participant];
                if self.shard.standing(&self.alphabet.participants[participant], Some(from.into())) {
                    self.read_votes(participant, from.into())?;
                }
                self.shard.caught_up(&self.alphabet.participants[participant]);
            }
        }
        self.send(Duration::ZERO)?;
        for (offset, report) in (0..).zip(reports) {
            if *report >= 1 {
                self.shard.delivered(What::Decision { offset }, Delivery::Acknowledged)?;
            }
        }
        self.send(Duration::ZERO)?;
        for (offset, report) in (0..).zip(reports) {
            if *report >= 2 {
                self.shard.delivered(What::Outcome { offset }, Delivery::Acknowledged)?;
            }
        }
        self.send(Duration::ZERO)?;
        self.committed.push(self.positions());
        self.send(LATE)?;
        self.report_noes()?;
        self.send(LATE)
    }

    fn go_live(&mut self) {
        for participant in &self.alphabet.participants {
            self.shard.caught_up(participant);
        }
        self.shard.go_live(Duration::ZERO, 0);
    }

    /// Each is acknowledged at once: nothing may come of that, only of reading it.
    fn report_noes(&mut self) -> Result<(), Stop> {
        for (offset, request) in (0..).zip(0..REQUESTS) {
            for (branch, participant) in (0..).zip(0..PARTICIPANTS) {
                if self.sends.has(Sent::No(request, participant)) {
                    self.shard.delivered(What::No { offset, branch }, Delivery::Acknowledged)?;
                }
            }
        }
        Ok(())
    }

    fn read_requests(&mut self) -> Result<(), Stop> {
        for request in self.view.start.requests..self.view.requests {
            let request = usize::from(request);
            self.shard.apply(Record::Request(self.alphabet.request(request).at(request)))?;
        }
        Ok(())
    }

    fn read_votes(&mut self, participant: usize, from: usize) -> Result<(), Stop> {
        let log = &self.view.votes[participant];
        for offset in from..log.len() {
            let vote = self.alphabet.vote(participant, log.at(offset)).at(offset);
            self.shard.apply(Record::Vote(&self.alphabet.participants[participant], vote))?;
        }
        Ok(())
    }

    fn read_decisions(&mut self) -> Result<(), Stop> {
        let log = &self.view.decisions;
        for offset in usize::from(self.view.start.decisions)..log.len() {
            // Compaction leaves no record.
            if log.at(offset) != 0 {
                self.shard.apply(Record::Decision(self.alphabet.noted(log.at(offset)).at(offset)))?;
            }
        }
        Ok(())
    }

    /// Steps until there is nothing more to do.
    fn send(&mut self, now: Duration) -> Result<(), Stop> {
        loop {
            let Step { prepares, noes, decisions, outcomes, rereads, recalls, look_up, .. } =
                self.shard.step(now, usize::MAX);
            let is_quiet = rereads.is_empty() && recalls.is_empty() && look_up.is_empty();
            let of = |participant: &_| {
                let position = self.alphabet.participants.iter().position(|known| known == participant);
                position.expect("a participant of the model")
            };
            for append in &prepares {
                let (participant, prepare) = &append.message;
                self.sends.add(Sent::Prepare(prepare.txid.offset as usize, of(participant)));
            }
            for append in &noes {
                self.sends.add(Sent::No(append.message.txid.offset as usize, of(&append.message.participant)));
            }
            for append in &decisions {
                self.sends.add(Sent::Decision(append.message.txid.offset as usize, append.message.outcome));
            }
            for append in &outcomes {
                self.sends.add(Sent::Outcome(append.message.txid.offset as usize, append.message.outcome));
            }
            for (participant, from) in rereads {
                self.read_votes(of(&participant), from as usize)?;
            }
            for participant in look_up {
                self.shard.standing(&participant, None);
            }
            for offset in recalls {
                let request = offset as usize;
                self.shard.recalled(self.alphabet.request(request).at(request))?;
            }
            if is_quiet {
                return Ok(());
            }
        }
    }

    fn positions(&self) -> Start {
        let Positions { requests, decisions, votes } = self.shard.positions();
        // Who is not in them is read from the beginning of what there is; of one that not everybody knows nothing is deleted.
        let of = |participant: usize| {
            let name = &self.alphabet.participants[participant];
            votes.iter().find(|(known, _)| known == name).map_or(0, |(_, at)| *at as u8)
        };
        Start { requests: requests as u8, decisions: decisions as u8, votes: [of(0), of(1)] }
    }
}
