//! A broker inside this process: librdkafka's mock cluster, for the demo and for fast tests. Clients of other processes
//! reach it too.
//!
//! It is not Kafka: no compaction, no retention by time, nothing on disk, a partition keeps about 5 MiB and then drops its
//! oldest records; no admin, no access rights. A waiting fetch is not woken by an append, so a hop lasts about
//! `fetch_wait_max_ms`, which [`EmbeddedBroker::settings`] sets low. Whoever shows it must say that it is a mock.
//!
//! Left out: more than one broker, injected errors.

use std::sync::mpsc;
use std::thread;

use suture_contract::ids::{Deployment, LogLetters, Participant};
use suture_contract::topic_map::Topic;

use crate::failure::KafkaFailure;
use crate::ffi::MockCluster;
use crate::settings::KafkaSettings;

/// How long the embedded broker may hold an empty fetch: a hop lasts about this, a client asks this often when idle.
pub const FETCH_WAIT_MAX_MS: u32 = 5;

/// A running embedded broker. Ends with the value; clients then find no broker.
pub struct EmbeddedBroker {
    bootstrap: String,
    letters: LogLetters,
    commands: mpsc::Sender<Command>,
    thread: Option<thread::JoinHandle<()>>,
}

enum Command {
    CreateTopic(String, u16, mpsc::Sender<Result<(), String>>),
    Stop,
}

impl EmbeddedBroker {
    /// Starts it on a free port of the loopback interface, with random log letters.
    #[expect(clippy::disallowed_methods, reason = "the shell's draw: a broker's incarnation has a random name")]
    pub fn start() -> Result<Self, KafkaFailure> {
        let mut random = [0; 4];
        getrandom::fill(&mut random)
            .map_err(|error| KafkaFailure::Fatal(format!("starting the embedded broker: {error}")))?;
        let (commands, received) = mpsc::channel();
        let (tell, started) = mpsc::channel();
        // The cluster is made, used and destroyed on this one thread.
        let thread = thread::Builder::new()
            .name("embedded-broker".to_string())
            .spawn(move || run(&received, &tell))
            .map_err(|error| KafkaFailure::Again(format!("starting the embedded broker's thread: {error}")))?;
        let started = started.recv().unwrap_or_else(|_| Err("its thread ended".to_string()));
        let bootstrap =
            started.map_err(|reason| KafkaFailure::Fatal(format!("starting the embedded broker: {reason}")))?;
        Ok(Self { bootstrap, letters: LogLetters::from_random(random), commands, thread: Some(thread) })
    }

    /// Where it listens: `127.0.0.1:<port>`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Stand in for the id of the requests topic: random at every start, so no txid of an earlier run comes back.
    pub fn letters(&self) -> LogLetters {
        self.letters
    }

    /// Settings for its clients, in this process or in others.
    pub fn settings(&self, prefix: Deployment) -> KafkaSettings {
        let mut settings = KafkaSettings::new(self.bootstrap.clone(), prefix);
        settings.log_letters = Some(self.letters);
        settings.fetch_wait_max_ms = FETCH_WAIT_MAX_MS;
        settings.session_timeout_ms = 1_500;
        settings
    }

    /// Creates the protocol's topics. (A topic that was not created would appear by itself, with 4 partitions.)
    pub fn create_topics(&self, settings: &KafkaSettings, participants: &[Participant]) -> Result<(), KafkaFailure> {
        for topic in Topic::all(participants) {
            self.create_topic(&topic.name(&settings.prefix), settings.partitions)?;
        }
        Ok(())
    }

    /// Creates one topic, for example an upstream one.
    pub fn create_topic(&self, name: &str, partitions: u16) -> Result<(), KafkaFailure> {
        let (reply, answer) = mpsc::channel();
        // Without a thread to take it the reply is dropped.
        let _ = self.commands.send(Command::CreateTopic(name.to_string(), partitions, reply));
        let created = answer.recv().unwrap_or_else(|_| Err("the embedded broker has ended".to_string()));
        created.map_err(|reason| KafkaFailure::Fatal(format!("creating topic {name}: {reason}")))
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the embedded broker's thread panicked");
        }
    }
}

fn run(commands: &mpsc::Receiver<Command>, started: &mpsc::Sender<Result<String, String>>) {
    let cluster = match MockCluster::start() {
        Ok(cluster) => cluster,
        Err(error) => {
            let _ = started.send(Err(error.to_string()));
            return;
        }
    };
    if started.send(Ok(cluster.bootstrap())).is_err() {
        return;
    }
    for command in commands {
        match command {
            Command::CreateTopic(name, partitions, reply) => {
                let created = cluster.create_topic(&name, partitions).map_err(|code| code.to_string());
                let _ = reply.send(created);
            }
            Command::Stop => return,
        }
    }
}
