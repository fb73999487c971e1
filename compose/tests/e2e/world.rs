//! A deployment of one's own for each test: topics, databases, configuration and reference data that no other test has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, Weak};

use suture_contract::ids::{LogLetters, Participant};
use suture_contract::topic_map::participant_group;
use suture_topics::acks::GroupOffsets;
use suture_topics::admin;
use suture_topics::membership::Committed;
use suture_topics::settings::KafkaSettings;
use tempfile::TempDir;

use crate::cluster::{self, Cluster};
use crate::feed::Feed;
use crate::logs::{Follower, Logs};
use crate::modes;
use crate::process::{Life, Process, SUTURE};
use crate::rows::{self, Database, Rows};

/// The three organisations, in the order of the surgery.
pub const PARTICIPANTS: [&str; 3] = ["hospital", "surgeon-log", "insurer"];

/// Partitions of the upstream topic.
pub const UPSTREAM_PARTITIONS: u16 = 3;

/// The same in all tests, so that rows of two deployments can be compared.
const IDENTITY_KEY: &str = "identity key of the tests, and no secret";
const HASH_KEY: &str = "hash key of the tests, and no secret";

/// What a test may want otherwise.
pub struct Options {
    /// After this long without a heartbeat a process's shards go to others.
    pub session_timeout_ms: u32,
    /// How long participants have to vote.
    pub deadline_ms: u64,
    /// Where the insurer's rows are.
    pub insurer: Insurer,
    /// Whether hospital and insurer work in the mode that the example has not given them.
    pub other_modes: bool,
    /// Whether the transactions of a patient run one after the other.
    pub ordered: bool,
    /// When ingest asks again for what may pass by itself. Most tests are about what becomes of one attempt.
    pub retry_after_ms: &'static [u64],
}

/// The insurer's database.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Insurer {
    /// Mode reserve, as the example has it.
    Mariadb,
    /// Mode xa.
    Postgres,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            session_timeout_ms: 3_000,
            deadline_ms: 120_000,
            insurer: Insurer::Mariadb,
            other_modes: false,
            ordered: false,
            retry_after_ms: &[],
        }
    }
}

/// A deployment. Ends all that it started, in this order.
pub struct World {
    /// The prefix of its topics and groups.
    pub prefix: String,
    /// The topic that ingest reads.
    pub upstream: String,
    /// For clients of the test's own.
    pub kafka: KafkaSettings,
    /// The databases, by participant.
    pub databases: BTreeMap<String, Database>,
    /// An own copy of all topics.
    pub follower: Follower,
    ordered: bool,
    retry_after_ms: &'static [u64],
    environment: Vec<(String, String)>,
    lives: Mutex<Vec<Weak<Life>>>,
    acks: Mutex<GroupOffsets>,
    folder: Folder,
    /// The servers, which no other test uses meanwhile.
    pub cluster: Cluster,
}

/// All services of a deployment, one process each.
pub struct Crew {
    pub ingest: Process,
    pub coordinator: Process,
    pub hospital: Process,
    pub surgeon_log: Process,
    pub insurer: Process,
}

impl World {
    /// Topics, databases, configuration, seeded for the sample surgeries. Nothing of `suture` runs yet.
    pub fn start(options: &Options) -> Self {
        let cluster = Cluster::take();
        let letters = LogLetters::from_random(random());
        let prefix = format!("t-{letters}");
        let upstream = format!("{prefix}.surgeries");
        let mut kafka = KafkaSettings::new(cluster.bootstrap.clone(), prefix.parse().unwrap());
        kafka.session_timeout_ms = options.session_timeout_ms;
        let folder = Folder::new(&prefix);
        let mut environment = Vec::new();
        let mut databases = BTreeMap::new();
        for (participant, is_in_postgres) in [("hospital", true), ("insurer", options.insurer == Insurer::Postgres)] {
            let database = format!("t_{letters}_{participant}");
            let create = format!("create database {database}");
            let (url, place) = if is_in_postgres {
                rows::execute(cluster.postgres_admin(), &create).unwrap();
                let url = cluster.postgres(&database);
                (url.clone(), Database::Postgres(url))
            } else {
                rows::execute_on_mariadb(&cluster.mariadb(""), &create);
                let url = cluster.mariadb(&database);
                (url.clone(), Database::Mariadb(url))
            };
            environment.push((format!("SUTURE_{}_URL", participant.to_uppercase()), url));
            databases.insert(participant.to_string(), place);
        }
        let surgeon_log = folder.path().join("config/participants/surgeon-log.sqlite");
        databases.insert("surgeon-log".to_string(), Database::Sqlite(surgeon_log));
        configure(folder.path(), &kafka, &upstream, options);

        let suture = |arguments: &[&str]| suture(folder.path(), &environment, arguments);
        // The databases' disk and the brokers' work do not wait for each other.
        std::thread::scope(|scope| {
            let seeded = scope.spawn(|| succeeds(&suture(&["seed", "--create-tables"])));
            succeeds(&suture(&["topics", "apply"]));
            // The last one, and asked for at each broker: who knows it knows all that were made before.
            for broker in kafka.bootstrap.split(',') {
                let kafka = KafkaSettings { bootstrap: broker.to_string(), ..kafka.clone() };
                admin::create_upstream(&kafka, &upstream, UPSTREAM_PARTITIONS).unwrap();
            }
            seeded.join().unwrap();
        });
        let follower = Follower::start(&kafka, &topics(&prefix));
        let acks = Mutex::new(GroupOffsets::new(&kafka));
        let lives = Mutex::default();
        let Options { ordered, retry_after_ms, .. } = *options;
        Self {
            prefix,
            upstream,
            kafka,
            databases,
            follower,
            ordered,
            retry_after_ms,
            environment,
            lives,
            acks,
            folder,
            cluster,
        }
    }

    /// Starts all five services.
    pub fn crew(&self) -> Crew {
        Crew {
            coordinator: self.service("coordinator", &["coordinator"]),
            hospital: self.participant("hospital"),
            surgeon_log: self.participant("surgeon-log"),
            insurer: self.participant("insurer"),
            ingest: self.service("ingest", &["ingest"]),
        }
    }

    /// Starts a participant.
    pub fn participant(&self, name: &str) -> Process {
        self.service(name, &["participant", name])
    }

    /// Starts any service under a name of its own, which must be new: a second coordinator, for example.
    pub fn service(&self, name: &str, arguments: &[&str]) -> Process {
        let config = self.config_file();
        let arguments = [arguments, &["--config", config.to_str().unwrap()]].concat();
        let process = Process::start(name, self.folder.path(), &arguments, &self.environment);
        self.lives.lock().unwrap().push(process.life());
        process
    }

    /// Runs `suture` with this deployment's configuration to its end.
    pub fn suture(&self, arguments: &[&str]) -> Output {
        suture(self.folder.path(), &self.environment, arguments)
    }

    /// The same, to be run beside the test.
    pub fn command(&self, arguments: &[&str]) -> Command {
        command(self.folder.path(), &self.environment, arguments)
    }

    /// What every process has logged, by its name.
    pub fn process_logs(&self) -> BTreeMap<String, String> {
        let files = fs::read_dir(self.folder.path()).unwrap().map(|file| file.unwrap().path());
        let logs = files.filter(|file| file.extension().is_some_and(|extension| extension == "log"));
        let name = |file: &Path| file.file_stem().expect("a name").to_string_lossy().into_owned();
        logs.map(|file| (name(&file), fs::read_to_string(&file).unwrap())).collect()
    }

    /// The configuration file, beside which all others lie.
    pub fn config_file(&self) -> PathBuf {
        config_file(self.folder.path())
    }

    /// How long participants have to vote on what an ingest asks for that starts from now on.
    pub fn set_deadline(&self, deadline_ms: u64) {
        let options =
            Options { deadline_ms, ordered: self.ordered, retry_after_ms: self.retry_after_ms, ..Options::default() };
        write_rules(self.folder.path(), &self.upstream, &options);
    }

    /// A producer for the upstream topic, and for anything else.
    pub fn feed(&self) -> Feed {
        Feed::start(&self.kafka, &self.upstream, UPSTREAM_PARTITIONS)
    }

    /// A protocol topic's full name: `requests`, `votes.hospital`.
    pub fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// The URL of a participant's PostgreSQL database.
    pub fn postgres(&self, participant: &str) -> &str {
        match &self.databases[participant] {
            Database::Postgres(url) => url,
            Database::Mariadb(_) | Database::Sqlite(_) => panic!("{participant} has no PostgreSQL"),
        }
    }

    /// A participant's SQLite file.
    pub fn sqlite(&self, participant: &str) -> &Path {
        match &self.databases[participant] {
            Database::Sqlite(file) => file,
            Database::Postgres(_) | Database::Mariadb(_) => panic!("{participant} has no SQLite"),
        }
    }

    /// The URL of a participant's MariaDB database.
    pub fn mariadb(&self, participant: &str) -> &str {
        match &self.databases[participant] {
            Database::Mariadb(url) => url,
            Database::Postgres(_) | Database::Sqlite(_) => panic!("{participant} has no MariaDB"),
        }
    }

    /// Deletes these protocol topics and creates them again, empty. The own copy of the topics begins anew.
    pub fn recreate(&mut self, names: &[&str]) {
        self.follower = Follower::start(&self.kafka, &[]);
        let names: Vec<String> = names.iter().map(|name| self.topic(name)).collect();
        for name in &names {
            self.cluster.tool("TopicCommand", &["--delete", "--topic", name]);
        }
        cluster::wait_until("the topics are gone", || {
            let there = self.cluster.tool("TopicCommand", &["--list"]);
            !there.lines().any(|line| names.iter().any(|name| name == line))
        });
        succeeds(&self.suture(&["topics", "apply"]));
        self.follower = Follower::start(&self.kafka, &topics(&self.prefix));
    }

    /// All rows of all databases.
    pub fn rows(&self) -> Rows {
        Rows::read(&self.databases)
    }

    /// Looks until the condition holds, and fails at once when a service ended by itself.
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        cluster::wait_until(what, || {
            for life in self.lives.lock().unwrap().iter().filter_map(Weak::upgrade) {
                if let Some(ended) = life.ended() {
                    panic!("{ended}, while the test waited until {what}");
                }
            }
            condition()
        });
    }

    /// Looks at the own copy of the topics until the condition holds.
    pub fn wait_for_logs(&self, what: &str, mut condition: impl FnMut(&Logs) -> bool) {
        self.wait_until(what, || condition(&self.follower.now()));
    }

    /// Until each of these events is a transaction that is over, or rejected, and every participant has applied every
    /// decision.
    pub fn wait_for_the_end(&self, fed: &[crate::feed::Place]) {
        let mut left = fed.to_vec();
        self.wait_for_logs("all events have ended", |logs| {
            left = logs.not_ended(fed);
            left.is_empty()
        });
        for participant in PARTICIPANTS {
            self.wait_until(&format!("{participant} has applied all decisions"), || self.unapplied(participant) == 0);
        }
    }

    /// The name of the ledger under which the participant has acknowledged all decisions. `None`: it has not, or not under one
    /// name.
    pub fn applied_as(&self, participant: &str) -> Option<String> {
        let group = participant_group(&self.kafka.prefix, &participant.parse::<Participant>().unwrap());
        let topic = self.topic("decisions");
        let partitions: Vec<_> = (0..i32::from(self.kafka.partitions)).map(|of| (topic.as_str(), of)).collect();
        let committed = self.acks.lock().unwrap().committed(&group, &partitions).ok()?;
        let committed: Vec<_> = committed.into_iter().collect::<Option<_>>()?;
        let name = committed.first()?.metadata.clone();
        let is_done = |(partition, committed): (i32, &Committed)| {
            committed.metadata == name && self.follower.end(&topic, partition).is_none_or(|end| end == committed.offset)
        };
        (0..).zip(&committed).all(is_done).then_some(name)
    }

    /// How many decision records lie at or above the offset that the participant's group has committed: its lag.
    pub fn unapplied(&self, participant: &str) -> u64 {
        self.unapplied_on(participant, 0..i32::from(self.kafka.partitions))
    }

    /// The same, of some shards.
    pub fn unapplied_on(&self, participant: &str, shards: impl IntoIterator<Item = i32>) -> u64 {
        let group = participant_group(&self.kafka.prefix, &participant.parse::<Participant>().unwrap());
        let topic = self.topic("decisions");
        let partitions: Vec<_> = shards.into_iter().map(|of| (topic.as_str(), of)).collect();
        // Passing failures happen while brokers are killed; whoever waits asks again.
        let Ok(committed) = self.acks.lock().unwrap().committed(&group, &partitions) else { return u64::MAX };
        let ends = partitions.iter().map(|(topic, partition)| self.follower.end(topic, *partition));
        let lag = ends.zip(committed).map(|(end, committed)| match (end, committed) {
            (Some(end), Some(committed)) => end.saturating_sub(committed.offset),
            (Some(end), None) => end,
            (None, _) => u64::MAX,
        });
        lag.fold(0, u64::saturating_add)
    }
}

impl Crew {
    /// All of them.
    pub fn all(&mut self) -> [&mut Process; 5] {
        [&mut self.ingest, &mut self.coordinator, &mut self.hospital, &mut self.surgeon_log, &mut self.insurer]
    }

    /// SIGTERM to all; each must drain and end well.
    pub fn terminate(&mut self) {
        for process in self.all() {
            let status = process.terminate();
            assert!(status.success(), "{} drained with {status}", process.name());
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- deployment {}", self.prefix);
            return;
        }
        for database in self.databases.values() {
            match database {
                Database::Postgres(url) => {
                    let (_, name) = url.rsplit_once('/').unwrap();
                    // Processes that are still connected are ended with it; what fails here costs disk and nothing else.
                    let drop = format!("drop database {name} with (force)");
                    let _ = rows::execute(self.cluster.postgres_admin(), &drop);
                }
                Database::Mariadb(url) => {
                    let (_, name) = url.rsplit_once('/').unwrap();
                    rows::execute_on_mariadb(&self.cluster.mariadb(""), &format!("drop database {name}"));
                }
                Database::Sqlite(_) => {}
            }
        }
    }
}

/// Removed at the end, unless the test failed.
struct Folder(Option<TempDir>);

impl Folder {
    fn new(prefix: &str) -> Self {
        Self(Some(tempfile::Builder::new().prefix(prefix).tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()))
    }

    fn path(&self) -> &Path {
        self.0.as_ref().expect("there until the end").path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(folder) = self.0.take()
        {
            eprintln!("---- kept: {}", folder.keep().display());
        }
    }
}

/// The files as a hospital would have them: `compose/config` and `compose/schema`, with another upstream topic.
fn configure(folder: &Path, kafka: &KafkaSettings, upstream: &str, options: &Options) {
    let compose = Path::new(env!("CARGO_MANIFEST_DIR"));
    for sub in ["config/participants", "schema"] {
        fs::create_dir_all(folder.join(sub)).unwrap();
        for file in fs::read_dir(compose.join(sub)).unwrap() {
            let file = file.unwrap();
            let (name, mut text) = (file.file_name(), fs::read_to_string(file.path()).unwrap());
            if options.other_modes {
                text = modes::other(name.to_str().expect("text"), &text);
            }
            fs::write(folder.join(sub).join(name), patient(&text, options.deadline_ms)).unwrap();
        }
    }
    write_rules(folder, upstream, options);
    fs::write(folder.join("config/identity.key"), IDENTITY_KEY).unwrap();
    fs::write(folder.join("config/hash.key"), HASH_KEY).unwrap();
    let (bootstrap, prefix, session_timeout_ms) = (&kafka.bootstrap, &kafka.prefix, kafka.session_timeout_ms);
    let insurer = match options.insurer {
        Insurer::Mariadb => "mariadb",
        Insurer::Postgres => "postgres",
    };
    let settings = format!(
        r#"
[kafka]
bootstrap = "{bootstrap}"
prefix = "{prefix}"
session_timeout_ms = {session_timeout_ms}

[keys]
identity_file = "identity.key"
hash_file = "hash.key"

[ingest]
rules = "rules.toml"

[participants]
hospital = "participants/hospital.postgres.toml"
surgeon-log = "participants/surgeon-log.sqlite.toml"
insurer = "participants/insurer.{insurer}.toml"
"#
    );
    fs::write(config_file(folder), settings).unwrap();
}

/// The rules of `compose/config` for another upstream topic.
fn write_rules(folder: &Path, upstream: &str, options: &Options) {
    let Options { deadline_ms, ordered, retry_after_ms, .. } = options;
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/rules.toml");
    let rules = fs::read_to_string(rules).unwrap();
    let topics = "topics = [\"hospital.surgeries\"]";
    assert!(rules.contains(topics));
    let ours = format!(
        "topics = [\"{upstream}\"]\ndeadline_ms = {deadline_ms}\nordered = {ordered}\nretry_after_ms = {retry_after_ms:?}"
    );
    let rules = rules.replace(topics, &ours);
    fs::write(folder.join("config/rules.toml"), rules).unwrap();
}

/// A participant's file with locks waited for as long as a vote may take: on a busy machine `busy` is no answer that a test
/// could foresee.
fn patient(text: &str, deadline_ms: u64) -> String {
    let wait = |line: &str| match line.split_once(" = ") {
        Some((key @ ("lock_timeout_ms" | "statement_timeout_ms"), _)) => format!("{key} = {deadline_ms}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(wait).collect()
}

fn config_file(folder: &Path) -> PathBuf {
    folder.join("config/suture.toml")
}

/// All protocol topics.
fn topics(prefix: &str) -> Vec<String> {
    let of_each = |kind: &str| PARTICIPANTS.map(|participant| format!("{prefix}.{kind}.{participant}"));
    let common = ["requests", "decisions", "outcomes", "rejected"].map(|name| format!("{prefix}.{name}"));
    [common.as_slice(), &of_each("prepare"), &of_each("votes")].concat()
}

fn suture(folder: &Path, environment: &[(String, String)], arguments: &[&str]) -> Output {
    cluster::run(&mut command(folder, environment, arguments))
}

fn command(folder: &Path, environment: &[(String, String)], arguments: &[&str]) -> Command {
    let mut command = Command::new(SUTURE);
    command.args(arguments).arg("--config").arg(config_file(folder)).envs(environment.iter().cloned());
    command
}

/// Standard output of what must succeed.
pub fn succeeds(output: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "suture: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

#[expect(clippy::disallowed_methods, reason = "the brokers may outlive a test run")]
fn random() -> [u8; 4] {
    let mut random = [0; 4];
    getrandom::fill(&mut random).unwrap();
    random
}
