//! The servers: those that all tests share, and one of a test's own, which it may kill.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the environment names. Without the servers these tests fail; only MySQL may be missing.
pub fn shared(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run these tests with compose/test, which starts the servers")
    })
}

/// A name that no other test has.
pub fn fresh_name() -> String {
    static NAMES: AtomicU32 = AtomicU32::new(0);
    format!("facts_{}_{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed))
}

/// Asks again until it holds. No fact is about time: who waits for a minute waits for what will not come.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A server of one test. Its folder lies in that of the shared servers, which end it if the test is killed.
pub struct Private {
    which: &'static str,
    folder: PathBuf,
}

impl Private {
    pub fn start(which: &'static str) -> Self {
        let folder = Path::new(&shared("SUTURE_TEST_SERVERS")).join(fresh_name());
        let server = Self { which, folder };
        server.script("up", &["--only", which]);
        server
    }

    pub fn url(&self) -> String {
        let env = std::fs::read_to_string(self.folder.join("env")).unwrap();
        let (_, url) = env.lines().next().and_then(|line| line.split_once('=')).unwrap();
        url.to_string()
    }

    /// kill -9, with PostgreSQL's backends.
    pub fn kill(&self) {
        self.script(&format!("kill-{}", self.which), &[]);
    }

    /// kill -9 without the time that a script takes: what is in memory then is lost. Not for PostgreSQL's backends.
    pub async fn kill_at_once(&self) {
        kill(self.pid(), Signal::SIGKILL).unwrap();
        self.until_it_ended().await;
    }

    /// The same port, the same data.
    pub fn start_again(&self) {
        assert!(self.starts_again());
    }

    pub fn starts_again(&self) -> bool {
        self.run(&format!("start-{}", self.which), &[])
    }

    /// After it was told to; it may have to be reaped yet.
    pub async fn until_it_ended(&self) {
        let status = format!("/proc/{}/status", self.pid());
        until("it has ended", async || match std::fs::read_to_string(&status) {
            Ok(status) => status.lines().any(|line| line.starts_with("State:\tZ")),
            Err(_) => true,
        })
        .await;
    }

    fn pid(&self) -> Pid {
        let pid = std::fs::read_to_string(self.folder.join(format!("{}.pid", self.which))).unwrap();
        Pid::from_raw(pid.trim().parse().unwrap())
    }

    fn script(&self, command: &str, options: &[&str]) {
        assert!(self.run(command, options), "servers {command} failed");
    }

    fn run(&self, command: &str, options: &[&str]) -> bool {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/servers/servers");
        let output = Command::new(script).arg(command).arg(&self.folder).args(options).output().unwrap();
        eprint!("{}", String::from_utf8_lossy(&output.stderr)); // the test runner shows it where the test fails
        output.status.success()
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.run("down", &[]);
    }
}
