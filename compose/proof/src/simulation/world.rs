//! One run: the processes over a simulated Kafka and simulated databases, as a plan says, from its first request until all of
//! it is settled.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::value::RawValue;
use suture_contract::codec::encode;
use suture_contract::ids::{Attempt, Deployment, LogLetters, Participant, RequestHash, Shard, Txid};
use suture_contract::messages::{Branch, Cancel, Request};
use suture_contract::partitioner::shard_of;
use suture_contract::topic_map::{Topic, coordinator_group, participant_group};
use suture_coordinator::service::CoordinatorSettings;
use suture_participants::config::ParticipantConfig;
use suture_participants::service::ServiceError;
use suture_participants::simulated::{Backup, DatabaseLuck, Fate, SimulatedDatabase, SimulatedServer};
use suture_topics::settings::KafkaSettings;
pub use suture_topics::simulated::BEGINS_MS;
use suture_topics::simulated::{Cluster, Luck};
use tokio::time::{Instant, sleep_until};

use super::check::{self, Asked};
use super::operator::{Effect, Operator};
use super::plan::{Ask, Plan, PutBackup, Seat, Trouble};
use super::processes::{Process, Service};

/// How long all of it may take to settle once everything works.
const SETTLES_WITHIN: Duration = Duration::from_secs(600);
/// After this long without its processes a group is empty.
const EMPTY: Duration = Duration::from_millis(7_000);
/// What was committed so long ago is never committed again.
const OLD: Duration = Duration::from_secs(6);
/// So long after a process was killed no commit of it lands any more.
const LATEST_COMMIT: Duration = Duration::from_secs(6);
/// Longer than keeping a backup matters: none that is put back is older than what is kept of the decisions.
const KEEP_S: u64 = 30 * 86_400;
/// Between two looks of whoever supervises the processes.
const LOOK: Duration = Duration::from_millis(250);

/// Something that went wrong, and which transactions it may have touched.
#[derive(Debug, Clone)]
pub struct Struck {
    /// What.
    pub kind: &'static str,
    /// When.
    pub at: Duration,
    /// One transaction; else all of these shards and of this participant.
    pub txid: Option<Txid>,
    /// Of one shard only.
    pub shard: Option<Shard>,
    /// Of one participant only.
    pub participant: Option<&'static str>,
}

/// Everything of a run.
pub struct World {
    /// What was planned.
    pub plan: Plan,
    /// The deployment.
    pub kafka: KafkaSettings,
    /// The brokers.
    pub cluster: Cluster,
    /// Which incarnation of the requests.
    pub letters: LogLetters,
    /// By participant, in the plan's order.
    pub databases: Vec<SimulatedDatabase>,
    coordinators: Vec<Process>,
    /// With the participant's place.
    participants: Vec<(usize, Process)>,
    /// By place in the plan: where it stands.
    pub asked: BTreeMap<usize, Asked>,
    /// What went wrong.
    pub struck: Vec<Struck>,
    /// When each transaction was applied everywhere, as far as somebody looked.
    pub applied: BTreeMap<Txid, Duration>,
    /// How many records were no requests.
    pub poison: usize,
    fates: Arc<Mutex<Vec<Struck>>>,
    began: Instant,
    /// What is done with the offsets of a group once it is empty.
    with_offsets: Vec<(Instant, Trouble)>,
    /// What the coordinators had committed of the requests, when: what lies below is old some time later.
    committed: Vec<(Instant, Shard, u64)>,
    /// Backups that are going to be put back.
    restores: Vec<Restore>,
    /// By participant whose database was put back: the name of its ledger then, if nobody has said so to it.
    put_back: BTreeMap<usize, Option<String>>,
    /// Each of a branch that somebody ends as soon as there is one: of which participant, and how.
    to_end: Vec<(usize, bool)>,
    /// By participant.
    pub operators: Vec<Operator>,
}

/// A backup on its way.
struct Restore {
    backup: Backup,
    put: PutBackup,
    /// When the next thing happens with it.
    at: Instant,
    is_down: bool,
}

/// Chance for one database.
struct Chance {
    random: ChaCha8Rng,
    participant: &'static str,
    struck: Arc<Mutex<Vec<Struck>>>,
    began: Instant,
}

impl Fate for Chance {
    fn draw(&mut self, most: u64) -> u64 {
        self.random.next_u64() % most.max(1)
    }

    fn struck(&mut self, kind: &'static str, txid: Option<Txid>) {
        let at = self.began.elapsed();
        let struck = Struck { kind, at, txid, shard: None, participant: Some(self.participant) };
        self.struck.lock().unwrap_or_else(PoisonError::into_inner).push(struck);
    }
}

impl World {
    fn new(plan: Plan) -> Self {
        let began = Instant::now();
        let deployment: Deployment = "sim".parse().expect("a deployment's name");
        let kafka = KafkaSettings { partitions: plan.shards, ..KafkaSettings::new("simulated", deployment.clone()) };
        let cluster = Cluster::new(plan.seed ^ 0x6b61_666b_6100, plan.luck);
        cluster.enter();
        let names: Vec<Participant> =
            plan.participants.iter().map(|seat| seat.name.parse().expect("a participant's name")).collect();
        for topic in Topic::all(&names) {
            cluster.create(&topic.name(&kafka.prefix), plan.shards);
        }
        let letters = suture_topics::probe::Probe::start(&kafka)
            .and_then(|probe| probe.letters(&Topic::Requests.name(&kafka.prefix)))
            .expect("the topic was created");
        let fates: Arc<Mutex<Vec<Struck>>> = Arc::default();
        let accounts: BTreeMap<String, i64> =
            plan.accounts.iter().enumerate().map(|(number, left)| (account(number), *left)).collect();
        let database = |(place, seat): (usize, &Seat)| {
            let random = ChaCha8Rng::seed_from_u64(plan.seed ^ (0x6461_7461 + place as u64));
            let chance = Chance { random, participant: seat.name, struck: Arc::clone(&fates), began };
            SimulatedDatabase::new(accounts.clone(), plan.database_luck, Box::new(chance))
        };
        let databases: Vec<SimulatedDatabase> = plan.participants.iter().enumerate().map(database).collect();
        let operators = databases.iter().map(|database| Operator::new(database.clone())).collect();
        let settings = coordinator_settings(&plan);
        let coordinators = (0..plan.coordinators)
            .map(|number| {
                let (kafka, settings) = (kafka.clone(), settings.clone());
                let start = move |stop| -> Service {
                    let (kafka, settings) = (kafka.clone(), settings.clone());
                    Box::pin(async move {
                        suture_coordinator::service::run(kafka, settings, stop).await.map_err(|e| e.to_string())
                    })
                };
                Process::new(format!("coordinator-{number}"), Box::new(start))
            })
            .collect();
        let mut participants = Vec::new();
        for (place, seat) in plan.participants.iter().enumerate() {
            let config = ParticipantConfig::parse(&config_of(*seat), Path::new("simulated.toml"))
                .expect("the simulation's configuration");
            for number in 0..seat.processes {
                let (kafka, config, database) = (kafka.clone(), config.clone(), databases[place].clone());
                let deployment = deployment.clone();
                let start = move |stop| -> Service {
                    let (kafka, config) = (kafka.clone(), config.clone());
                    let server = SimulatedServer::open(&database, &config, &deployment);
                    Box::pin(async move {
                        let server = Arc::new(server.ok_or("no server")?);
                        let (name, upkeep) = (config.name.clone(), config.upkeep);
                        let run = suture_participants::service::run(&kafka, &name, server, upkeep, stop);
                        run.await.map_err(|failure| failure.to_string())
                    })
                };
                participants.push((place, Process::new(format!("{}-{number}", seat.name), Box::new(start))));
            }
        }
        Self {
            plan,
            kafka,
            cluster,
            letters,
            databases,
            coordinators,
            participants,
            asked: BTreeMap::new(),
            struck: Vec::new(),
            poison: 0,
            applied: BTreeMap::new(),
            fates,
            began,
            with_offsets: Vec::new(),
            committed: Vec::new(),
            restores: Vec::new(),
            put_back: BTreeMap::new(),
            to_end: Vec::new(),
            operators,
        }
    }

    /// Runs the plan. Answers what must not be.
    async fn run(&mut self) -> Vec<String> {
        enum Event {
            Ask(usize, Ask),
            Trouble(Trouble),
        }
        let is_in = |kind: &str, place: usize| !self.plan.left_out.contains(&format!("{kind}{place}"));
        let asks = self.plan.asks.iter().enumerate().filter(|(place, _)| is_in("a", *place));
        let troubles = self.plan.troubles.iter().enumerate().filter(|(place, _)| is_in("t", *place));
        let asks = asks.map(|(place, (at, ask))| (*at, Event::Ask(place, ask.clone())));
        let troubles = troubles.map(|(_, (at, trouble))| (*at, Event::Trouble(trouble.clone())));
        let mut events: Vec<(Duration, Event)> = asks.chain(troubles).collect();
        events.sort_by_key(|(at, _)| *at);
        let mut wrong = Vec::new();
        for (at, event) in events {
            self.until(self.began + at).await;
            match event {
                Event::Ask(place, ask) => self.ask(place, &ask),
                Event::Trouble(trouble) => {
                    self.trouble(&trouble);
                    wrong.extend(check::acknowledgements(self));
                }
            }
        }
        self.until(self.began + self.plan.heals).await;
        while !self.restores.is_empty() {
            self.until(Instant::now() + LOOK).await;
        }
        self.heal();
        // Whoever is away keeps nobody waiting for longer than the deadlines, of ordered ones one after the other.
        let is_away = self.participants.iter().any(|(_, process)| process.is_away());
        let deadlines = if is_away { self.asked.values().map(Asked::deadline).sum() } else { Duration::ZERO };
        wrong.extend(self.come_to("not decided", check::is_decided, SETTLES_WITHIN + deadlines).await);
        self.participants.iter_mut().for_each(|(_, process)| process.come_back());
        wrong.extend(self.come_to("not settled", check::is_settled, SETTLES_WITHIN).await);
        let processes = self.coordinators.iter_mut().chain(self.participants.iter_mut().map(|(_, process)| process));
        for process in processes {
            process.end().await;
        }
        wrong.extend(self.ended_by_themselves());
        self.struck.append(&mut self.fates.lock().unwrap_or_else(PoisonError::into_inner));
        self.struck.extend(self.cluster.hits().into_iter().map(|hit| {
            let txid =
                hit.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()).and_then(|key| key.parse().ok());
            Struck { kind: hit.kind, at: hit.at, txid, shard: Shard::of_partition(hit.partition), participant: None }
        }));
        check::called_for_nothing(self).into_iter().chain(wrong).chain(check::all(self)).collect()
    }

    /// Processes that nobody has ended.
    fn ended_by_themselves(&self) -> Vec<String> {
        let went_back = ServiceError::WentBack.to_string();
        // How many there were stands in front.
        let stopped = ServiceError::StoppedShards(0).to_string().split_off(1);
        let coordinators = self.coordinators.iter().map(|process| (None, process));
        let participants = self.participants.iter().map(|(seat, process)| (Some(*seat), process));
        let mut wrong = Vec::new();
        for (seat, process) in coordinators.chain(participants) {
            let was_put_back = seat.is_some_and(|seat| self.put_back.contains_key(&seat));
            let was_touched = seat.is_some_and(|seat| !self.operators[seat].hands().ended.is_empty());
            let is_right =
                |said: &&String| was_put_back && **said == went_back || was_touched && said.ends_with(&stopped);
            let said = process.said.iter().filter(|said| !is_right(said));
            wrong.extend(said.map(|said| format!("{} ended: {said}", process.name)));
        }
        wrong
    }

    /// Waits until something is so. Answers what is left to do if that takes too long.
    async fn come_to(
        &mut self,
        what: &str,
        is_so: fn(&Self) -> Result<(), String>,
        within: Duration,
    ) -> Option<String> {
        let deadline = Instant::now() + within;
        while let Err(left) = is_so(self) {
            if Instant::now() > deadline {
                return Some(format!("{what} after {} s: {left}", within.as_secs()));
            }
            self.until(Instant::now() + Duration::from_millis(500)).await;
        }
        None
    }

    /// Lets things happen, and supervises the processes.
    async fn until(&mut self, at: Instant) {
        loop {
            for process in self.coordinators.iter_mut().chain(self.participants.iter_mut().map(|(_, process)| process))
            {
                process.supervise().await;
            }
            self.see_committed();
            for txid in check::applied(self) {
                self.applied.entry(txid).or_insert(self.began.elapsed());
            }
            for (due, trouble) in std::mem::take(&mut self.with_offsets) {
                match due <= Instant::now() {
                    true => self.change_offsets(&trouble),
                    false => self.with_offsets.push((due, trouble)),
                }
            }
            self.go_on_with_restores();
            self.end_branches();
            self.operate();
            let next = (Instant::now() + LOOK).min(at);
            sleep_until(next).await;
            if next == at {
                return;
            }
        }
    }

    fn ask(&mut self, place: usize, ask: &Ask) {
        let requests = Topic::Requests.name(&self.kafka.prefix);
        match ask {
            Ask::Request { key, attempt, line, ordered, deadline, branches } => {
                let branch = |(participant, account, amount): &(usize, usize, i64)| Branch {
                    participant: self.plan.participants[*participant].name.parse().expect("a participant's name"),
                    operation: "spend".to_string(),
                    payload: payload(*account, *amount, *key),
                };
                let branches: Vec<Branch> = branches.iter().map(branch).collect();
                self.request(place, &token(*key), *attempt, *line, *ordered, *deadline, branches);
            }
            Ask::Poison(line) => {
                let order_key = format!("patient-{line}");
                let shard = shard_of(order_key.as_bytes(), self.plan.shards);
                self.cluster.append(&requests, shard.partition(), order_key.as_bytes(), Some(b"{\"type\":\"request\""));
                self.poison += 1;
            }
            Ask::Unreadable(line) => {
                let branch = |seat: &Seat| Branch {
                    participant: seat.name.parse().expect("a participant's name"),
                    operation: "spend".to_string(),
                    payload: RawValue::from_string("[1e400]".to_string()).expect("this is JSON"),
                };
                let branches: Vec<Branch> = self.plan.participants.iter().map(branch).collect();
                self.request(place, &format!("unreadable-{place}"), 1, *line, false, Duration::from_secs(30), branches);
            }
            Ask::Cancel(of) => {
                let Some(Asked { txid, order_key, .. }) = self.asked.get(of) else { return };
                let cancel = Cancel { txid: *txid, who: "maria".to_string(), why: "a test".to_string() };
                self.cluster.append(&requests, txid.shard.partition(), order_key.as_bytes(), Some(&encode(&cancel)));
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a request has this many parts")]
    fn request(
        &mut self,
        place: usize,
        business_key: &str,
        attempt: u32,
        line: u32,
        ordered: bool,
        deadline: Duration,
        branches: Vec<Branch>,
    ) {
        let order_key = format!("patient-{line}");
        let shard = shard_of(order_key.as_bytes(), self.plan.shards);
        let request = Request {
            business_key: business_key.parse().expect("a business key"),
            attempt: Attempt::new(attempt).expect("from 1"),
            rule: "simulated".to_string(),
            source: None,
            deadline_ms: deadline.as_millis() as u64,
            ordered,
            hash: hash_of(&branches),
            branches,
        };
        let (requests, value) = (Topic::Requests.name(&self.kafka.prefix), encode(&request));
        let offset = self.cluster.append(&requests, shard.partition(), order_key.as_bytes(), Some(&value));
        let txid = Txid { log: self.letters, shard, offset: offset.expect("the topic was created") };
        self.asked.insert(place, Asked { txid, request, order_key, at: self.began.elapsed() });
    }

    fn strike(&mut self, kind: &'static str, shard: Option<u16>, seat: Option<usize>) {
        let participant = seat.map(|seat| self.plan.participants[seat].name);
        let at = self.began.elapsed();
        self.struck.push(Struck { kind, at, txid: None, shard: shard.map(Shard), participant });
    }

    fn trouble(&mut self, trouble: &Trouble) {
        let coordinators = coordinator_group(&self.kafka.prefix);
        let group = |world: &Self, seat: usize| {
            let name = world.plan.participants[seat].name.parse().expect("a participant's name");
            participant_group(&world.kafka.prefix, &name)
        };
        let (requests, decisions) =
            (Topic::Requests.name(&self.kafka.prefix), Topic::Decisions.name(&self.kafka.prefix));
        match *trouble {
            Trouble::KillCoordinator { process, away } => {
                self.coordinators[process].kill(away);
                self.strike("kill_coordinator", None, None);
            }
            Trouble::StopCoordinator { process, away } => {
                self.coordinators[process].stop(away);
                self.strike("stop_coordinator", None, None);
            }
            Trouble::StallCoordinator { process, time } => {
                self.coordinators[process].stall(time);
                self.strike("stall_coordinator", None, None);
            }
            Trouble::KillParticipant { process, away } => {
                let (seat, process) = &mut self.participants[process];
                process.kill(away);
                let seat = *seat;
                self.strike("kill_participant", None, Some(seat));
            }
            Trouble::StopParticipant { process, away } => {
                let (seat, process) = &mut self.participants[process];
                process.stop(away);
                let seat = *seat;
                self.strike("stop_participant", None, Some(seat));
            }
            Trouble::StallParticipant { process, time } => {
                let (seat, process) = &mut self.participants[process];
                process.stall(time);
                let seat = *seat;
                self.strike("stall_participant", None, Some(seat));
            }
            Trouble::CrashDatabase { seat, away } => {
                self.databases[seat].crash(away);
                self.strike("crash_database", None, Some(seat));
            }
            Trouble::ExpelCoordinator => {
                self.cluster.expel(&coordinators);
                self.strike("expel_coordinator", None, None);
            }
            Trouble::ExpelParticipant { seat } => {
                self.cluster.expel(&group(self, seat));
                self.strike("expel_participant", None, Some(seat));
            }
            Trouble::RebalanceCoordinators => {
                self.cluster.rebalance(&coordinators);
                self.strike("rebalance_coordinators", None, None);
            }
            // Kafka refuses it while the group has members.
            Trouble::LoseCoordinatorsOffsets | Trouble::ResetCoordinatorsOffset { .. } => {
                self.coordinators.iter_mut().for_each(|process| process.kill(EMPTY + LOOK * 4));
                self.with_offsets.push((Instant::now() + EMPTY, trouble.clone()));
            }
            Trouble::LoseParticipantsOffsets { seat } | Trouble::ResetParticipantsOffset { seat, .. } => {
                let of_seat = self.participants.iter_mut().filter(|(of, _)| *of == seat);
                of_seat.for_each(|(_, process)| process.kill(EMPTY + LOOK * 4));
                self.with_offsets.push((Instant::now() + EMPTY, trouble.clone()));
            }
            Trouble::StayAway { seat } => {
                let of_seat = self.participants.iter_mut().filter(|(of, _)| *of == seat);
                of_seat.for_each(|(_, process)| process.leave());
                self.strike("stay_away", None, Some(seat));
            }
            Trouble::EndBranch { seat, is_commit } => self.to_end.push((seat, is_commit)),
            Trouble::PutBackup(ref put) => {
                let backup = self.databases[put.seat].backup();
                let backup = if put.is_dump { backup.dumped() } else { backup };
                let at = Instant::now() + put.after;
                self.restores.push(Restore { backup, put: put.clone(), at, is_down: false });
            }
            Trouble::JumpClock { ms } => {
                self.cluster.jump(ms);
                self.strike("jump_clock", None, None);
            }
            Trouble::Compact => {
                (0..self.plan.shards).for_each(|shard| self.cluster.compact(&decisions, shard.into()));
                self.strike("compact", None, None);
            }
            Trouble::Retention => {
                for shard in (0..self.plan.shards).map(Shard) {
                    let is_young = |(at, of, _): &&(Instant, Shard, u64)| *of == shard && at.elapsed() <= OLD;
                    let committed = self.committed.iter().filter(is_young).map(|(_, _, offset)| *offset).min();
                    if let (Some(committed), Some(told)) = (committed, check::all_told_below(self, shard)) {
                        self.cluster.delete_below(&requests, shard.partition(), committed.min(told));
                    }
                }
                self.strike("retention", None, None);
            }
        }
    }

    /// Ends the participants whose databases are going to be put back, puts them back, and starts them again.
    fn go_on_with_restores(&mut self) {
        let now = Instant::now();
        let (due, others) =
            std::mem::take(&mut self.restores).into_iter().partition(|restore: &Restore| restore.at <= now);
        self.restores = others;
        for restore in due {
            let seat = restore.put.seat;
            let of_seat = self.participants.iter_mut().filter(|(of, _)| *of == seat).map(|(_, process)| process);
            if restore.is_down {
                self.put_back(restore);
            } else {
                of_seat.for_each(Process::hold);
                let at = now + restore.put.takes;
                self.restores.push(Restore { at, is_down: true, ..restore });
            }
        }
    }

    fn put_back(&mut self, Restore { backup, put, .. }: Restore) {
        let PutBackup { seat, takes, is_dump, is_unsaid, .. } = put;
        let is_noticed = takes >= LATEST_COMMIT && self.tells_by_itself(seat, &backup);
        let database = &self.databases[seat];
        database.restore(backup);
        // The backup may say so itself: it was made while this one was brought back.
        let is_unsaid = is_unsaid && is_noticed && !database.is_restoring();
        if !is_unsaid {
            database.mark_as_restored();
        }
        self.put_back.insert(seat, is_unsaid.then(|| database.ledger_id()));
        let of_seat = self.participants.iter_mut().filter(|(of, _)| *of == seat).map(|(_, process)| process);
        of_seat.for_each(Process::let_go);
        self.strike(if is_dump { "put_dump" } else { "put_backup" }, None, Some(seat));
        if is_unsaid {
            self.strike("put_back_unsaid", None, Some(seat));
        }
    }

    /// Whether the group has acknowledged more than this backup holds, and nothing takes that away.
    fn tells_by_itself(&self, seat: usize, backup: &Backup) -> bool {
        let loses = |(_, trouble): &(Duration, Trouble)| match trouble {
            Trouble::LoseParticipantsOffsets { seat: of } | Trouble::ResetParticipantsOffset { seat: of, .. } => {
                *of == seat
            }
            _ => false,
        };
        let name = self.plan.participants[seat].name.parse().expect("a participant's name");
        let group = participant_group(&self.kafka.prefix, &name);
        let topics = [Topic::Prepare(name), Topic::Decisions].map(|topic| topic.name(&self.kafka.prefix));
        let positions = backup.positions();
        let logs = topics.iter().flat_map(|topic| (0..self.plan.shards).map(move |shard| (topic, Shard(shard))));
        let lies_above = |(topic, shard): (&String, Shard)| {
            let own = positions.get(&(topic.clone(), shard)).copied().unwrap_or(0);
            let committed = self.cluster.committed(&group, topic, shard.partition());
            committed.is_some_and(|committed| !committed.metadata.is_empty() && committed.offset > own)
        };
        !self.plan.troubles.iter().any(loses) && logs.into_iter().any(lies_above)
    }

    fn end_branches(&mut self) {
        for (seat, is_commit) in std::mem::take(&mut self.to_end) {
            match self.operators[seat].end_branch(is_commit) {
                Some(txid) => {
                    let kind = if is_commit { "committed_by_hand" } else { "rolled_back_by_hand" };
                    let (at, participant) = (self.began.elapsed(), Some(self.plan.participants[seat].name));
                    self.struck.push(Struck { kind, at, txid: Some(txid), shard: None, participant });
                }
                None => self.to_end.push((seat, is_commit)),
            }
        }
    }

    fn operate(&mut self) {
        for (seat, operator) in self.operators.iter_mut().enumerate() {
            let (database, place) = (&self.databases[seat], self.plan.participants[seat]);
            let server = || {
                let config = ParticipantConfig::parse(&config_of(place), Path::new("simulated.toml")).ok()?;
                SimulatedServer::open(database, &config, &self.kafka.prefix)
            };
            let effect = |txid: &Txid| {
                let (ask, _) = self.asked.iter().find(|(_, asked)| asked.txid == *txid)?;
                let Some((_, Ask::Request { key, branches, .. })) = self.plan.asks.get(*ask) else { return None };
                let (_, account, amount) = branches.iter().find(|(of, ..)| *of == seat)?;
                Some(Effect { account: self::account(*account), amount: *amount, token: token(*key) })
            };
            operator.look(server, effect);
        }
    }

    /// Whether what a participant has acknowledged is void, and it does not know yet.
    pub fn is_going_back(&self, seat: usize) -> bool {
        let database = &self.databases[seat];
        let is_unknown = self.put_back.get(&seat).is_some_and(|name| *name == Some(database.ledger_id()));
        database.is_restoring() || is_unknown
    }

    /// Whether its database was put back.
    pub fn was_put_back(&self, seat: usize) -> bool {
        self.put_back.contains_key(&seat)
    }

    fn change_offsets(&mut self, trouble: &Trouble) {
        let coordinators = coordinator_group(&self.kafka.prefix);
        let group = |seat: usize| {
            let name = self.plan.participants[seat].name.parse().expect("a participant's name");
            participant_group(&self.kafka.prefix, &name)
        };
        let (requests, decisions) =
            (Topic::Requests.name(&self.kafka.prefix), Topic::Decisions.name(&self.kafka.prefix));
        let end = |topic: &str, shard: u16| self.cluster.range(topic, shard.into()).map_or(0, |(_, end)| end);
        let (is_done, kind, shard, seat) = match *trouble {
            Trouble::LoseCoordinatorsOffsets => {
                (self.cluster.forget_offsets(&coordinators), "lose_coordinators_offsets", None, None)
            }
            Trouble::ResetCoordinatorsOffset { shard } => {
                let is_set = self.cluster.set_offset(&coordinators, &requests, shard.into(), end(&requests, shard));
                (is_set, "reset_coordinators_offset", Some(shard), None)
            }
            Trouble::LoseParticipantsOffsets { seat } => {
                (self.cluster.forget_offsets(&group(seat)), "lose_participants_offsets", None, Some(seat))
            }
            Trouble::ResetParticipantsOffset { seat, shard } => {
                let is_set = self.cluster.set_offset(&group(seat), &decisions, shard.into(), end(&decisions, shard));
                (is_set, "reset_participants_offset", Some(shard), Some(seat))
            }
            _ => return,
        };
        if is_done {
            self.strike(kind, shard, seat);
        }
    }

    fn see_committed(&mut self) {
        let (group, requests) = (coordinator_group(&self.kafka.prefix), Topic::Requests.name(&self.kafka.prefix));
        let now = Instant::now();
        for shard in (0..self.plan.shards).map(Shard) {
            let committed = self.cluster.committed(&group, &requests, shard.partition());
            let offset =
                committed.filter(|committed| !committed.metadata.is_empty()).map_or(0, |committed| committed.offset);
            self.committed.push((now, shard, offset));
        }
    }

    fn heal(&mut self) {
        self.to_end.clear();
        self.cluster.set_luck(Luck::default());
        self.databases.iter().for_each(|database| database.set_luck(DatabaseLuck::default()));
        let processes = self.coordinators.iter_mut().chain(self.participants.iter_mut().map(|(_, process)| process));
        processes.for_each(Process::hurry);
    }
}

/// Runs a plan from beginning to end, on this thread.
pub fn run(plan: Plan) -> (World, Vec<String>) {
    let mut seed = plan.seed.to_be_bytes().to_vec();
    seed.extend_from_slice(b"tokio");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(tokio::runtime::RngSeed::from_bytes(&seed))
        .build()
        .expect("a runtime");
    runtime.block_on(async move {
        let mut world = World::new(plan);
        let wrong = world.run().await;
        (world, wrong)
    })
}

fn coordinator_settings(plan: &Plan) -> CoordinatorSettings {
    let (window, held_votes) = (plan.window, plan.held_votes);
    let mut settings = CoordinatorSettings { window, held_votes, ..CoordinatorSettings::default() };
    settings.cleanup.interval_s = 7;
    settings.cleanup.keep_s = if plan.has_backups() { KEEP_S } else { 0 };
    settings.summary_interval_s = 3_600;
    settings
}

pub fn account(number: usize) -> String {
    format!("account-{number}")
}

/// A business key, and what its effects are counted by.
pub fn token(key: u32) -> String {
    format!("case-{key}")
}

fn payload(number: usize, amount: i64, key: u32) -> Box<RawValue> {
    let (account, token) = (account(number), token(key));
    RawValue::from_string(format!(r#"{{"account":"{account}","amount":"{amount}","token":"{token}"}}"#))
        .expect("this is JSON")
}

/// Any function of what is asked for: the same at every time.
fn hash_of(branches: &[Branch]) -> RequestHash {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for branch in branches {
        for byte in branch.participant.as_str().bytes().chain(branch.payload.get().bytes()) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
    format!("k1:{hash:032x}").parse().expect("a hash")
}

fn config_of(seat: Seat) -> String {
    let (mode, steps) = match seat.is_xa {
        true => (
            "xa",
            "[[operation.spend.prepare]]\nsql = \"update spend :account :amount :token\"\nrows = 1\ncode = \"LIMIT\"\n",
        ),
        false => (
            "reserve",
            "[[operation.spend.reserve]]\nsql = \"update reserve :account :amount :token :txid\"\nrows = 1\ncode = \"LIMIT\"\n\
             [[operation.spend.confirm]]\nsql = \"update keep :txid\"\nrows = 1\n\
             [[operation.spend.cancel]]\nsql = \"update release :txid\"\nrows = 1\n",
        ),
    };
    let name = seat.name;
    format!(
        "name = \"{name}\"\nmode = \"{mode}\"\ninquire_after_ms = 3000\nsweep_after_ms = 2000\n\
         [database]\nkind = \"postgres\"\nurl = \"postgres://simulated@localhost/simulated\"\nlost_after_ms = 2000\n\
         [operation.spend.parameters]\naccount = {{ path = \"/account\", type = \"text\" }}\n\
         amount = {{ path = \"/amount\", type = \"text\" }}\ntoken = {{ path = \"/token\", type = \"text\" }}\n{steps}"
    )
}
