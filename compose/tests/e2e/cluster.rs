//! The servers that all tests share, Kafka's own tools, and whose turn it is.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for anything; only a broken test gets there.
pub const DEADLINE: Duration = Duration::from_secs(600);

/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Each test starts five processes and kills servers: one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Three brokers, PostgreSQL and MariaDB, ours for as long as the value lives. Whatever a test killed runs again afterwards.
pub struct Cluster {
    /// Addresses of the brokers.
    pub bootstrap: String,
    postgres: String,
    mariadb: String,
    folder: String,
    killed: Mutex<BTreeSet<Server>>,
    _turn: MutexGuard<'static, ()>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Server {
    Broker(u8),
    Postgres,
    Mariadb,
}

impl Cluster {
    /// Waits for its turn.
    pub fn take() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            bootstrap: server("SUTURE_TEST_BOOTSTRAP"),
            postgres: server("SUTURE_TEST_POSTGRES"),
            mariadb: server("SUTURE_TEST_MARIADB"),
            folder: server("SUTURE_TEST_SERVERS"),
            killed: Mutex::default(),
            _turn: turn,
        }
    }

    /// The URL of one of the server's databases.
    pub fn postgres(&self, database: &str) -> String {
        let (server, _) = self.postgres.rsplit_once('/').expect("SUTURE_TEST_POSTGRES ends in /<database>");
        format!("{server}/{database}")
    }

    /// The URL of the server's own database.
    pub fn postgres_admin(&self) -> &str {
        &self.postgres
    }

    /// The URL of one of MariaDB's databases; empty: of the server.
    pub fn mariadb(&self, database: &str) -> String {
        format!("{}/{database}", self.mariadb.trim_end_matches('/'))
    }

    /// kill -9 of broker 1, 2 or 3; returns when it is gone.
    pub fn kill_broker(&self, number: u8) {
        self.killed.lock().unwrap().insert(Server::Broker(number));
        self.servers(&["kill-broker", &self.folder, &number.to_string()]);
    }

    /// Starts a killed broker on its old data; returns when it serves.
    pub fn start_broker(&self, number: u8) {
        self.servers(&["start-broker", &self.folder, &number.to_string()]);
        self.killed.lock().unwrap().remove(&Server::Broker(number));
    }

    /// kill -9 of PostgreSQL with all its backends.
    pub fn kill_postgres(&self) {
        self.killed.lock().unwrap().insert(Server::Postgres);
        self.servers(&["kill-postgres", &self.folder]);
    }

    /// Starts PostgreSQL on its old data; returns when it serves.
    pub fn start_postgres(&self) {
        self.servers(&["start-postgres", &self.folder]);
        self.killed.lock().unwrap().remove(&Server::Postgres);
    }

    /// kill -9 of MariaDB.
    pub fn kill_mariadb(&self) {
        self.killed.lock().unwrap().insert(Server::Mariadb);
        self.servers(&["kill-mariadb", &self.folder]);
    }

    /// Starts MariaDB on its old data; returns when it serves.
    pub fn start_mariadb(&self) {
        self.servers(&["start-mariadb", &self.folder]);
        self.killed.lock().unwrap().remove(&Server::Mariadb);
    }

    /// What one of Kafka's own tools prints, for example `ConsumerGroupCommand`.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> String {
        let all = [&["tool", class, "--bootstrap-server", &self.bootstrap], arguments].concat();
        self.servers(&all)
    }

    /// What kcat prints.
    pub fn kcat(&self, arguments: &[&str]) -> String {
        let all = [&["-b", &self.bootstrap], arguments].concat();
        text_of(&run(Command::new("kcat").args(&all)), "kcat", &all)
    }

    fn servers(&self, arguments: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers/servers");
        text_of(&run(Command::new(script).args(arguments)), "servers", arguments)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let killed = std::mem::take(&mut *self.killed.lock().unwrap_or_else(PoisonError::into_inner));
        for server in killed {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers/servers");
            let mut command = Command::new(script);
            match server {
                Server::Broker(number) => command.args(["start-broker", &self.folder, &number.to_string()]),
                Server::Postgres => command.args(["start-postgres", &self.folder]),
                Server::Mariadb => command.args(["start-mariadb", &self.folder]),
            };
            // Only after a test that failed between kill and start; the next test tells if this did not help.
            let _ = command.output();
        }
    }
}

/// Looks until the condition holds. `what` completes "waited in vain until ..".
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "waited {} s in vain until {what}", DEADLINE.as_secs());
        thread::sleep(LOOK_EVERY);
    }
}

/// The only clock of these tests.
#[expect(clippy::disallowed_methods, reason = "real processes take real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{}: {error}", command.get_program().to_string_lossy()))
}

fn text_of(output: &Output, program: &str, arguments: &[&str]) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {}\n{stderr}", arguments.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set: run the tests with compose/test, which starts real Kafka, PostgreSQL and MariaDB"
        )
    })
}
