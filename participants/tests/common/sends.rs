//! A participant that ends by SIGKILL before or after something that it sends, and what the next one makes of it; on real
//! Kafka. Of two transactions one is committed and one aborted.
//!
//! The process that ends is this test once more. It passes its points until it is told to count; then it ends at one of them.
//!
//! At last its database is put back, again and again, and it ends at each point that it passes while it brings it back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::sys::signal::Signal;
use suture_contract::codec::{Message, OutcomesRecord, decode, decode_outcomes_record, encode};
use suture_contract::ids::{LogLetters, Participant, Txid};
use suture_contract::messages::{Ballot, Decision, Incident, IncidentKind, Prepare, Settled, Verdict, Vote};
use suture_participants::config::UpkeepSettings;
use suture_participants::incidents::{Said, list, resolve};
use suture_participants::points::{Act, MARK, Place, names};
use suture_participants::resource::{Resource, Which};
use suture_participants::service::{self, ServiceError};
use suture_topics::acks::GroupOffsets;
use suture_topics::admin::apply;
use suture_topics::membership::Committed;
use suture_topics::outbox::Outbox;
use suture_topics::plan::{Wanted, is_safe};
use suture_topics::probe::Probe;
use suture_topics::record::Record;
use suture_topics::scan::Scanner;
use suture_topics::settings::KafkaSettings;
use tokio::sync::watch;
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::{sleep, timeout};

use super::crash::{Crashes, MUCH, NOWHERE, add_up, arm, count_rows, ordered, points_of, provide, this_test};
use super::{MONEY, decision, put, until_answered};

/// A test that waits for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The next process gets the dead one's shard after this.
const SESSION_TIMEOUT_MS: u32 = 1_000;

/// Who is in doubt for so long asks, at the stage where that is looked at.
const SOON: Duration = Duration::from_millis(200);

/// From when on a point counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before the prepares.
    Asked,
    /// Before the decisions, when the prepares are acknowledged.
    Decided,
    /// When the prepares are acknowledged, and no decision comes.
    InDoubt,
    /// Before the decisions, and nobody has asked.
    Lost,
    /// From the start, of a database that was put back.
    PutBack,
}

const STAGES: [Stage; 5] = [Stage::Asked, Stage::Decided, Stage::InDoubt, Stage::Lost, Stage::PutBack];

impl Stage {
    fn upkeep(self) -> UpkeepSettings {
        let usual = UpkeepSettings::default();
        match self {
            Self::InDoubt => UpkeepSettings { inquire_after: SOON, ..usual },
            Self::Asked | Self::Decided | Self::Lost | Self::PutBack => usual,
        }
    }

    /// The ledger's states in the end.
    fn states(self) -> [&'static str; 2] {
        match self {
            Self::Lost => ["abandoned", "aborted"],
            Self::Asked | Self::Decided | Self::InDoubt | Self::PutBack => ["committed", "aborted"],
        }
    }
}

/// What the process ends at, and at which time.
const ENDS: [(Stage, Act, usize); 14] = [
    (Stage::Asked, Act::AppendVote, 1),
    (Stage::Asked, Act::AppendVote, 2),
    (Stage::Asked, Act::VoteIsThere, 1),
    (Stage::Asked, Act::VoteIsThere, 2),
    (Stage::Asked, Act::StorePositions, 1),
    (Stage::Asked, Act::CommitOffsets, 1),
    (Stage::Decided, Act::StorePositions, 1),
    (Stage::Decided, Act::CommitOffsets, 1),
    (Stage::InDoubt, Act::AppendInquiry, 1),
    (Stage::InDoubt, Act::AppendInquiry, 2),
    (Stage::Lost, Act::Note, 1),
    (Stage::Lost, Act::AppendIncident, 1),
    (Stage::Lost, Act::IncidentIsThere, 1),
    (Stage::Lost, Act::MarkTold, 1),
];

/// All tables, and where a copy of each is kept.
const TABLES: [&str; 7] =
    ["account", "item", "suture_ledger", "suture_positions", "suture_marks", "suture_audit", "suture_meta"];

/// Ends a participant before and after each thing that it sends.
pub async fn at_every_send<B: Crashes>(bench: &B) {
    if let Some(order) = ordered() {
        return serve(bench, &order).await;
    }
    provide(bench).await;
    let mut world = World::new(bench);
    let mut ended = BTreeSet::new();
    for (stage, act, time) in ENDS {
        for point in names(act) {
            println!("{stage:?}: {point}, time {time}");
            world.end_at(stage, &point, time).await;
            ended.insert(point);
        }
    }
    ended.extend(world.end_while_brought_back().await);
    assert!(ended.is_superset(&points_of(&[Place::Service])), "every point was an end: {ended:#?}");
}

// ---- the process that ends -------------------------------------------------------------------------------------------

async fn serve<B: Crashes>(bench: &B, order: &[String]) {
    let [_, prefix, stage, time, point] = order else { panic!("{order:?}") };
    let stage = STAGES.into_iter().find(|known| format!("{known:?}") == *stage).unwrap();
    // The harness has begun a line.
    println!();
    let counts = Arc::new(AtomicBool::new(stage == Stage::PutBack));
    arm(point, time.parse().unwrap(), &counts);
    std::thread::spawn(move || {
        // Who is not told is ended by others.
        let Some(Ok(_)) = std::io::stdin().lines().next() else { return };
        counts.store(true, Ordering::Relaxed);
        println!("counting");
    });
    let (_never, stopped) = watch::channel(false);
    let resource = Arc::new(bench.open().await);
    let ended = service::run(&settings(prefix), &bank(), resource, stage.upkeep(), stopped).await;
    panic!("{ended:?}");
}

/// That process, from outside.
struct Doomed {
    process: Child,
    orders: ChildStdin,
    said: mpsc::Receiver<String>,
}

impl Doomed {
    fn start(order: &[String]) -> Self {
        let mut process = this_test(order).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (lines, said) = mpsc::channel();
        let output = std::io::BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().try_for_each(|line| lines.send(line.unwrap())));
        Self { orders: process.stdin.take().unwrap(), process, said }
    }

    /// Answers what it has passed until it says this.
    fn until_said(&self, what: &str) -> BTreeSet<String> {
        self.passed_until(what).expect("it ended too early, or says nothing")
    }

    fn passed_until(&self, what: &str) -> Result<BTreeSet<String>, RecvTimeoutError> {
        let mut passed = BTreeSet::new();
        loop {
            let line = block_in_place(|| self.said.recv_timeout(PATIENCE))?;
            let is_it = line == what;
            if line.starts_with(MARK) {
                passed.insert(line);
            }
            if is_it {
                return Ok(passed);
            }
        }
    }

    /// What it passes from here on counts. It may be in the middle of just that, and end before it has said so.
    fn count(&mut self) {
        std::io::Write::write_all(&mut self.orders, b"now\n").unwrap();
        let said = self.passed_until("counting");
        assert_ne!(said, Err(RecvTimeoutError::Timeout));
    }

    fn until_killed(mut self) {
        let passed: Vec<String> = block_in_place(|| {
            std::iter::from_fn(|| self.said.recv_timeout(PATIENCE).ok()).filter(|line| line.starts_with(MARK)).collect()
        });
        let ended = self.process.try_wait().unwrap().map(|status| status.signal());
        // Its output has ended; a moment later so has it.
        let ended = ended.unwrap_or_else(|| block_in_place(|| self.process.wait()).unwrap().signal());
        assert_eq!(ended, Some(Signal::SIGKILL as i32), "it passed {passed:#?}");
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        // Whose end is not its own; else it is gone.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

// ---- the world around it ---------------------------------------------------------------------------------------------

fn bank() -> Participant {
    "bank".parse().unwrap()
}

fn settings(prefix: &str) -> KafkaSettings {
    let bootstrap = std::env::var("SUTURE_TEST_BOOTSTRAP")
        .expect("SUTURE_TEST_BOOTSTRAP names no brokers: run the tests with compose/test, which starts real Kafka");
    let mut kafka = KafkaSettings::new(bootstrap, prefix.parse().unwrap());
    kafka.partitions = 1;
    kafka.session_timeout_ms = SESSION_TIMEOUT_MS;
    kafka
}

/// The topics, and the coordinator's side of them.
struct World<'a, B> {
    bench: &'a B,
    kafka: KafkaSettings,
    letters: LogLetters,
    outbox: Outbox,
    probe: Probe,
    acks: GroupOffsets,
    scanner: Scanner,
    /// How many branches there are.
    asked: u64,
    /// How much was appended to each topic.
    ends: BTreeMap<&'static str, u64>,
}

impl<'a, B: Crashes> World<'a, B> {
    fn new(bench: &'a B) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let kafka = settings(&format!("c{:x}-{number}", std::process::id()));
        block_in_place(|| {
            let wanted = Wanted { settings: &kafka, participants: &[bank()], allow_single_broker: true };
            let findings = apply(wanted).unwrap();
            assert!(is_safe(&findings), "{findings:#?}");
            let probe = Probe::start(&kafka).unwrap();
            let letters = probe.letters(&format!("{}.requests", kafka.prefix)).unwrap();
            let outbox = Outbox::start(&kafka, "test", |_| ()).unwrap();
            let (acks, scanner) = (GroupOffsets::new(&kafka), Scanner::start(&kafka, "test").unwrap());
            Self { bench, kafka, letters, outbox, probe, acks, scanner, asked: 0, ends: BTreeMap::new() }
        })
    }

    fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.kafka.prefix)
    }

    fn doomed(&self, stage: Stage, point: &str, time: usize) -> Doomed {
        let (database, prefix) = (self.bench.name(), self.kafka.prefix.to_string());
        Doomed::start(&[database, prefix, format!("{stage:?}"), time.to_string(), point.to_string()])
    }

    async fn next(&self, stage: Stage) -> Next<B::R> {
        let resource = Arc::new(self.bench.open().await);
        let (stop, stopped) = watch::channel(false);
        let (kafka, served) = (self.kafka.clone(), Arc::clone(&resource));
        let service = tokio::spawn(async move { service::run(&kafka, &bank(), served, stage.upkeep(), stopped).await });
        Next { resource, stop, service }
    }

    async fn end_at(&mut self, stage: Stage, point: &str, time: usize) {
        let mut doomed = self.doomed(stage, point, time);
        // Where it starts from is stored, and does not count.
        doomed.until_said(&names(Act::CommitOffsets)[1]);
        let branches = self.branches();
        if stage == Stage::Asked {
            doomed.count();
        }
        if stage != Stage::Lost {
            self.append("prepare.bank", &branches);
        }
        if matches!(stage, Stage::Decided | Stage::InDoubt) {
            self.until_acknowledged("prepare.bank", None).await;
        }
        if stage != Stage::Asked {
            doomed.count();
        }
        if matches!(stage, Stage::Decided | Stage::Lost) {
            self.decide(&branches);
        }
        doomed.until_killed();

        let next = self.next(stage).await;
        match stage {
            Stage::Asked => self.until_voted(&branches, |_| true).await,
            Stage::InDoubt => self.until_voted(&branches, |vote| vote.inquiry).await,
            Stage::Decided | Stage::PutBack => {}
            Stage::Lost => {
                self.until_resolved(&next.resource, branches[0].txid).await;
                self.append("prepare.bank", &branches);
            }
        }
        if matches!(stage, Stage::Asked | Stage::InDoubt) {
            self.decide(&branches);
        }
        next.until_all_is_acknowledged(self).await;
        if stage == Stage::Lost {
            self.until_told(&next.resource, branches[0].txid).await;
        }
        next.stop().await;

        for branch in &branches {
            // The first counts; a copy says the same, or that it was aborted since.
            let first = if stage == Stage::Lost { Ballot::No } else { Ballot::Yes };
            assert_eq!(self.votes_on(branch.txid).first().map(|vote| vote.vote), Some(first));
        }
        for (branch, state) in branches.iter().zip(stage.states()) {
            count_rows(self.bench, branch, Some(state)).await;
        }
        assert!(self.bench.open().await.in_doubt().await.unwrap().is_empty(), "nothing is in doubt");
        add_up(self.bench).await;
    }

    // ---- incidents ---------------------------------------------------------------------------------------------------

    /// Waits until its loss is noted, and says that nobody here has its effect.
    async fn until_resolved(&self, resource: &B::R, lost: Txid) {
        let noting = async {
            while !list(resource).await.unwrap().iter().any(|listed| listed.incident.txid == Some(lost)) {
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(PATIENCE, noting).await.expect("nothing is noted");
        resolve(resource, lost, Settled::Abandoned, Said::new("maria", "ticket 4711").unwrap()).await.unwrap();
    }

    /// One row each of what was noted and said, and at least one record each, all equal.
    async fn until_told(&mut self, resource: &B::R, lost: Txid) {
        let telling = async {
            while !until_answered(|| resource.noted(Which::Untold)).await.is_empty() {
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(PATIENCE, telling).await.expect("something is not told");
        for what in [IncidentKind::Lost, IncidentKind::Resolved] {
            let entry = format!("{}:{lost}", what.as_str());
            let rows = format!("select count(*) from suture_audit where entry = '{entry}'");
            assert_eq!(self.bench.number(&rows).await, 1);
            let noted = resource.noted(Which::All).await.unwrap();
            let noted = noted.into_iter().find(|noted| noted.entry.entry == entry).expect("it is there");
            let noted: Incident = decode(noted.entry.record.as_bytes()).unwrap();
            let told = self.read("outcomes", |record| match decode_outcomes_record(&record.value.unwrap()).unwrap() {
                OutcomesRecord::Incident(incident) => Some(*incident).filter(|told| told.txid == Some(lost)),
                OutcomesRecord::Outcome(_) => None,
            });
            let told: Vec<Incident> = told.into_iter().filter(|told| told.what == what).collect();
            assert!(!told.is_empty() && told.iter().all(|told| *told == noted), "{told:?}");
        }
    }

    // ---- a database that was put back --------------------------------------------------------------------------------

    /// Ends at each point between the start of a process and the end of what it brings back. Answers at which.
    async fn end_while_brought_back(&mut self) -> BTreeSet<String> {
        for table in TABLES {
            self.bench.execute(&format!("create table copy_of_{table} as select * from {table}")).await;
        }
        let name = self.bench.text("select value from copy_of_suture_meta where name = 'ledger_id'").await;
        // In doubt when the copy was made, which does not hold it: like a dump.
        let in_doubt = [self.branch("a")];
        let next = self.next(Stage::PutBack).await;
        self.append("prepare.bank", &in_doubt);
        self.until_acknowledged("prepare.bank", Some(&next.resource)).await;
        self.bench.execute("delete from copy_of_suture_positions").await;
        self.bench.execute("insert into copy_of_suture_positions select * from suture_positions").await;
        let branches = self.branches();
        self.append("prepare.bank", &branches);
        self.until_voted(&branches, |_| true).await;
        self.decide(&branches);
        next.until_all_is_acknowledged(self).await;
        next.stop().await;

        self.put_back(&in_doubt[0]).await;
        let whole = self.doomed(Stage::PutBack, NOWHERE, 1);
        let points = whole.until_said(&names(Act::EndRestore)[1]);
        drop(whole);
        for point in &points {
            println!("put back: {point}");
            self.put_back(&in_doubt[0]).await;
            self.doomed(Stage::PutBack, point, 1).until_killed();
            let next = self.next(Stage::PutBack).await;
            next.until_renamed(&name).await;
            next.until_all_is_acknowledged(self).await;
            next.stop().await;
            for (branch, state) in branches.iter().zip(Stage::PutBack.states()) {
                count_rows(self.bench, branch, Some(state)).await;
            }
            let waiting = self.bench.open().await.in_doubt().await.unwrap();
            assert_eq!(waiting.iter().map(|waiting| waiting.txid).collect::<Vec<_>>(), [in_doubt[0].txid]);
            assert_eq!(self.bench.number(MONEY).await, 3 * MUCH);
            assert_eq!(self.bench.number("select count(*) from suture_meta where name = 'restoring'").await, 0);
        }
        let next = self.next(Stage::PutBack).await;
        self.append(
            "decisions",
            &in_doubt.each_ref().map(|branch| Decision::clone(&decision(branch, Verdict::Commit))),
        );
        next.until_all_is_acknowledged(self).await;
        next.stop().await;
        count_rows(self.bench, &in_doubt[0], Some("committed")).await;
        add_up(self.bench).await;
        points
    }

    /// The copy takes the place of the tables; nothing is prepared there.
    async fn put_back(&self, in_doubt: &Prepare) {
        let bank = self.bench.open().await;
        until_answered(|| bank.abort(vec![decision(in_doubt, Verdict::Abort)])).await[0].as_ref().unwrap();
        drop(bank);
        for table in TABLES {
            self.bench.execute(&format!("delete from {table}")).await;
            self.bench.execute(&format!("insert into {table} select * from copy_of_{table}")).await;
        }
    }

    // ---- the topics --------------------------------------------------------------------------------------------------

    /// The first will be committed, the second aborted.
    fn branches(&mut self) -> [Prepare; 2] {
        ["y", "z"].map(|account| self.branch(account))
    }

    fn branch(&mut self, account: &str) -> Prepare {
        let n = self.asked;
        self.asked += 1;
        let txid = format!("{}-0-{n}", self.letters).parse().unwrap();
        Prepare { txid, ..Prepare::clone(&put(n, &format!("key-{n}"), &format!("i{n}"), account, 1)) }
    }

    fn append<M: Message + OfTransaction>(&mut self, topic: &'static str, messages: &[M]) {
        for message in messages {
            let (key, value) = (message.txid().to_string(), encode(message));
            self.outbox.append(&self.topic(topic), 0, key.as_bytes(), Some(&value), "test", None, 0).unwrap();
            *self.ends.entry(topic).or_default() += 1;
        }
    }

    fn decide(&mut self, branches: &[Prepare; 2]) {
        let [commit, abort] = branches;
        let decisions = [decision(commit, Verdict::Commit), decision(abort, Verdict::Abort)];
        self.append("decisions", &decisions.map(|decision| Decision::clone(&decision)));
    }

    /// What is wanted of a topic, in the order of the log.
    fn read<T>(&mut self, topic: &str, mut wanted: impl FnMut(Record) -> Option<T>) -> Vec<T> {
        let topic = self.topic(topic);
        let mut found = Vec::new();
        block_in_place(|| {
            let range = self.probe.watermarks(&topic, 0).unwrap();
            let take = |record| {
                found.extend(wanted(record));
                ControlFlow::Continue(())
            };
            self.scanner.scan((&topic, 0), range, take).unwrap();
        });
        found
    }

    fn votes_on(&mut self, txid: Txid) -> Vec<Vote> {
        self.read("votes.bank", |record| {
            Some(decode::<Vote>(&record.value.unwrap()).unwrap()).filter(|vote| vote.txid == txid)
        })
    }

    async fn until_voted(&mut self, branches: &[Prepare], is_it: impl Fn(&Vote) -> bool) {
        let looking = async {
            while branches.iter().any(|branch| !self.votes_on(branch.txid).iter().any(&is_it)) {
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(PATIENCE, looking).await.expect("no vote came");
    }

    /// Waits until the group's offset is behind all that was appended, and this one says so, if it is known.
    async fn until_acknowledged(&mut self, topic: &'static str, by: Option<&B::R>) {
        let (end, group, topic) = (self.ends[topic], self.topic("participant.bank"), self.topic(topic));
        let looking = async {
            loop {
                let committed = block_in_place(|| self.acks.committed(&group, &[(&topic, 0)])).unwrap().remove(0);
                let is_it = |committed: &Committed| {
                    committed.offset == end && by.is_none_or(|by| by.ledger_id() == committed.metadata)
                };
                if committed.as_ref().is_some_and(is_it) {
                    return;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(PATIENCE, looking).await.expect("not acknowledged");
    }
}

/// A process that lives on.
struct Next<R> {
    resource: Arc<R>,
    stop: watch::Sender<bool>,
    service: JoinHandle<Result<(), ServiceError>>,
}

impl<R: Resource> Next<R> {
    async fn until_all_is_acknowledged<B: Crashes<R = R>>(&self, world: &mut World<'_, B>) {
        for topic in ["prepare.bank", "decisions"] {
            world.until_acknowledged(topic, Some(&self.resource)).await;
        }
    }

    /// Waits until its ledger has another name than this.
    async fn until_renamed(&self, name: &str) {
        let renaming = async {
            while self.resource.ledger_id() == name {
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(PATIENCE, renaming).await.expect("it is not brought back");
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        timeout(PATIENCE, self.service).await.expect("it does not end").unwrap().unwrap();
    }
}

trait OfTransaction {
    fn txid(&self) -> Txid;
}

impl OfTransaction for Prepare {
    fn txid(&self) -> Txid {
        self.txid
    }
}

impl OfTransaction for Decision {
    fn txid(&self) -> Txid {
        self.txid
    }
}
