//! `suture` as real processes, each with a log file. A process that is still there when its value goes is killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::wait_until;

/// How much of a log a failed test shows.
const TAIL_LINES: usize = 25;

/// The program under test.
pub const SUTURE: &str = env!("CARGO_BIN_EXE_suture");

/// A service that is run by `suture <arguments>`, as often as it is started.
pub struct Process {
    name: String,
    log: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    life: Arc<Life>,
}

/// Shared with whoever waits, so that a process that ends by itself is noticed.
pub struct Life {
    name: String,
    child: Mutex<Option<Child>>,
}

impl Process {
    /// Starts it. The log is appended to over all its starts.
    pub fn start(name: &str, folder: &Path, arguments: &[&str], environment: &[(String, String)]) -> Self {
        let life = Arc::new(Life { name: name.to_string(), child: Mutex::default() });
        let mut process = Self {
            name: name.to_string(),
            log: folder.join(format!("{name}.log")),
            arguments: arguments.iter().map(|argument| (*argument).to_string()).collect(),
            environment: environment.to_vec(),
            life,
        };
        process.start_again();
        process
    }

    /// Starts it after it was killed or drained.
    pub fn start_again(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = Command::new(SUTURE);
        command.args(&self.arguments).envs(self.environment.iter().cloned()).env("RUST_LOG", "info");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        let mut child = self.life.child.lock().unwrap();
        assert!(child.is_none(), "{} runs already", self.name);
        *child = Some(command.spawn().expect("suture starts"));
    }

    /// Its name, which is also that of its log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it can be asked about by others.
    pub fn life(&self) -> Weak<Life> {
        Arc::downgrade(&self.life)
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(&mut self) {
        let mut child = self.life.child.lock().unwrap().take().unwrap_or_else(|| panic!("{} does not run", self.name));
        child.kill().expect("a living process");
        child.wait().expect("its end");
    }

    /// SIGTERM: it drains. Returns when it has ended.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let mut child = self.life.child.lock().unwrap().take().unwrap_or_else(|| panic!("{} does not run", self.name));
        let mut ended = None;
        wait_until(&format!("{} has drained", self.name), || {
            ended = child.try_wait().expect("its end");
            ended.is_some()
        });
        ended.expect("it has ended")
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// All that it has logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let child = self.life.child.lock().unwrap();
        let child = child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        let pid = i32::try_from(child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("a living process");
    }
}

impl Life {
    /// How it ended by itself, with its name.
    pub fn ended(&self) -> Option<String> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let status = child.as_mut()?.try_wait().ok()??;
        Some(format!("{} ended by itself: {status}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.life.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            // It may have ended by itself a moment ago.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            eprintln!("---- {} ({} lines in {})\n{}", self.name, lines.len(), self.log.display(), tail.join("\n"));
        }
    }
}
