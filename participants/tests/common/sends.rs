//! A participant that ends by SIGKILL before or after something that it sends, and what the next one makes of it; on real
//! Kafka. Of two transactions one is committed and one aborted.
//!
//! The process that ends is this test once more. It passes its points until it is told to count; then it ends at one of them.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::sys::signal::Signal;
use suture_contract::codec::{Message, decode, encode};
use suture_contract::ids::{LogLetters, Participant, Txid};
use suture_contract::messages::{Ballot, Decision, Prepare, Verdict, Vote};
use suture_participants::config::UpkeepSettings;
use suture_participants::points::{Act, MARK, Place, names};
use suture_participants::resource::Resource;
use suture_participants::service;
use suture_topics::acks::GroupOffsets;
use suture_topics::admin::apply;
use suture_topics::outbox::Outbox;
use suture_topics::plan::{Wanted, is_safe};
use suture_topics::probe::Probe;
use suture_topics::scan::Scanner;
use suture_topics::settings::KafkaSettings;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::{sleep, timeout};

use super::crash::{Crashes, add_up, arm, count_rows, ordered, points_of, provide, this_test};
use super::{decision, put};

/// A test that waits for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The next process gets the dead one's shard after this.
const SESSION_TIMEOUT_MS: u32 = 1_000;

/// From when on a point counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before the prepares.
    Asked,
    /// Before the decisions, when the prepares are acknowledged.
    Decided,
}

/// What the process ends at, and at which time.
const ENDS: [(Stage, Act, usize); 8] = [
    (Stage::Asked, Act::AppendVote, 1),
    (Stage::Asked, Act::AppendVote, 2),
    (Stage::Asked, Act::VoteIsThere, 1),
    (Stage::Asked, Act::VoteIsThere, 2),
    (Stage::Asked, Act::StorePositions, 1),
    (Stage::Asked, Act::CommitOffsets, 1),
    (Stage::Decided, Act::StorePositions, 1),
    (Stage::Decided, Act::CommitOffsets, 1),
];

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
    assert_eq!(ended, points_of(&[Place::Service]), "every point was an end, and there are no others");
}

// ---- the process that ends -------------------------------------------------------------------------------------------

async fn serve<B: Crashes>(bench: &B, order: &[String]) {
    let [_, prefix, time, point] = order else { panic!("{order:?}") };
    // The harness has begun a line.
    println!();
    let counts = Arc::new(AtomicBool::new(false));
    arm(point, time.parse().unwrap(), &counts);
    std::thread::spawn(move || {
        std::io::stdin().lines().next().expect("told to count").unwrap();
        counts.store(true, Ordering::Relaxed);
        println!("counting");
    });
    let (_never, stopped) = watch::channel(false);
    let ended =
        service::run(&settings(prefix), &bank(), Arc::new(bench.open().await), UpkeepSettings::default(), stopped)
            .await;
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

    fn until_said(&self, what: &str) {
        while block_in_place(|| self.said.recv_timeout(PATIENCE)).expect("it ended too early, or says nothing") != what
        {
        }
    }

    fn count(&mut self) {
        std::io::Write::write_all(&mut self.orders, b"now\n").unwrap();
        self.until_said("counting");
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
        // Of a test that has failed; else it is gone.
        let _ = self.process.kill();
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
    votes: Scanner,
    /// Prepares and decisions that were appended, of each.
    appended: u64,
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
            let (acks, votes) = (GroupOffsets::new(&kafka), Scanner::start(&kafka, "test").unwrap());
            Self { bench, kafka, letters, outbox, probe, acks, votes, appended: 0 }
        })
    }

    fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.kafka.prefix)
    }

    async fn end_at(&mut self, stage: Stage, point: &str, time: usize) {
        let order = [self.bench.name(), self.kafka.prefix.to_string(), time.to_string(), point.to_string()];
        let mut doomed = Doomed::start(&order);
        // Where it starts from is stored, and does not count.
        doomed.until_said(&names(Act::CommitOffsets)[1]);
        let branches = self.branches();
        self.appended += 2;
        if stage == Stage::Asked {
            doomed.count();
        }
        self.append("prepare.bank", &branches);
        if stage == Stage::Decided {
            self.until_acknowledged("prepare.bank", None).await;
            doomed.count();
            self.decide(&branches);
        }
        doomed.until_killed();

        let resource = Arc::new(self.bench.open().await);
        let ledger = resource.ledger_id().to_string();
        let (stop, stopped) = watch::channel(false);
        let kafka = self.kafka.clone();
        let next =
            tokio::spawn(
                async move { service::run(&kafka, &bank(), resource, UpkeepSettings::default(), stopped).await },
            );
        if stage == Stage::Asked {
            self.until_voted(&branches).await;
            self.decide(&branches);
        }
        self.until_acknowledged("prepare.bank", Some(&ledger)).await;
        self.until_acknowledged("decisions", Some(&ledger)).await;
        stop.send(true).unwrap();
        timeout(PATIENCE, next).await.expect("it does not end").unwrap().unwrap();

        for branch in &branches {
            // The first counts; a copy says the same, or that it was aborted since.
            assert_eq!(self.ballots(branch.txid).first(), Some(&Ballot::Yes));
        }
        for (branch, state) in branches.iter().zip(["committed", "aborted"]) {
            count_rows(self.bench, branch, Some(state)).await;
        }
        assert!(self.bench.open().await.in_doubt().await.unwrap().is_empty(), "nothing is in doubt");
        add_up(self.bench).await;
    }

    /// The first will be committed, the second aborted.
    fn branches(&self) -> [Prepare; 2] {
        [(self.appended, "y"), (self.appended + 1, "z")].map(|(n, account)| {
            let txid = format!("{}-0-{n}", self.letters).parse().unwrap();
            Prepare { txid, ..Prepare::clone(&put(n, &format!("key-{n}"), &format!("i{n}"), account, 1)) }
        })
    }

    fn append<M: Message + OfTransaction>(&self, topic: &str, messages: &[M]) {
        for message in messages {
            let key = message.txid().to_string();
            let (topic, value) = (self.topic(topic), encode(message));
            self.outbox.append(&topic, 0, key.as_bytes(), Some(&value), "test", None, 0).unwrap();
        }
    }

    fn decide(&self, branches: &[Prepare; 2]) {
        let [commit, abort] = branches;
        let decisions = [decision(commit, Verdict::Commit), decision(abort, Verdict::Abort)];
        self.append("decisions", &decisions.map(|decision| Decision::clone(&decision)));
    }

    /// The votes on a transaction, in the order of the log.
    fn ballots(&mut self, txid: Txid) -> Vec<Ballot> {
        let topic = self.topic("votes.bank");
        let mut ballots = Vec::new();
        block_in_place(|| {
            let range = self.probe.watermarks(&topic, 0).unwrap();
            let take = |record: suture_topics::record::Record| {
                let vote: Vote = decode(&record.value.unwrap()).unwrap();
                if vote.txid == txid {
                    ballots.push(vote.vote);
                }
                ControlFlow::Continue(())
            };
            self.votes.scan((&topic, 0), range, take).unwrap();
        });
        ballots
    }

    async fn until_voted(&mut self, branches: &[Prepare]) {
        let looking = async {
            while branches.iter().any(|branch| self.ballots(branch.txid).is_empty()) {
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(PATIENCE, looking).await.expect("no vote came");
    }

    /// Waits until the group's offset is behind all that was appended, and looks who says so.
    async fn until_acknowledged(&mut self, topic: &str, ledger: Option<&str>) {
        let (topic, group) = (self.topic(topic), self.topic("participant.bank"));
        let looking = async {
            loop {
                let committed = block_in_place(|| self.acks.committed(&group, &[(&topic, 0)])).unwrap().remove(0);
                if let Some(committed) = committed.filter(|committed| committed.offset == self.appended) {
                    return committed.metadata;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        let metadata = timeout(PATIENCE, looking).await.expect("not acknowledged");
        assert!(ledger.is_none_or(|ledger| ledger == metadata), "{metadata}");
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
