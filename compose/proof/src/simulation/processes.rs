//! Processes: services that can be killed, stopped, stalled and started again.

use std::pin::Pin;
use std::time::Duration;

use suture_topics::simulated::kill;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until};

/// A service that runs, until it ends or its sender of `true` does.
pub type Service = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Starts a service; `false` turns true when it must stop.
pub type Start = Box<dyn Fn(watch::Receiver<bool>) -> Service>;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Nothing of it was closed.
    Killed,
    /// By itself, or because it was stopped.
    By(Result<(), String>),
}

enum Order {
    Kill,
    Stall(Duration),
}

/// One of them.
pub struct Process {
    /// For messages.
    pub name: String,
    start: Start,
    running: Option<Running>,
    /// When it is started again; none while it runs.
    starts_at: Option<Instant>,
    /// Nobody starts it until it comes back.
    is_away: bool,
    /// So many keep it from being started.
    held: u32,
    /// What it said when it ended with an error.
    pub said: Vec<String>,
}

struct Running {
    orders: mpsc::UnboundedSender<Order>,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<Ended>,
}

impl Process {
    /// Not started yet.
    pub fn new(name: String, start: Start) -> Self {
        Self { name, start, running: None, starts_at: Some(Instant::now()), is_away: false, held: 0, said: Vec::new() }
    }

    /// Ends it at once.
    pub fn kill(&mut self, away: Duration) {
        if let Some(running) = &self.running {
            let _ = running.orders.send(Order::Kill);
            self.starts_at = Some(Instant::now() + away);
        }
    }

    /// Ends it at once, and for as long as it does not come back.
    pub fn leave(&mut self) {
        self.kill(Duration::ZERO);
        self.is_away = true;
    }

    /// Ends it at once, and nobody starts it until it is let go.
    pub fn hold(&mut self) {
        self.kill(Duration::ZERO);
        self.held += 1;
    }

    /// Whoever held it lets it go.
    pub fn let_go(&mut self) {
        self.held = self.held.saturating_sub(1);
        self.hurry();
    }

    /// Whether it has left.
    pub fn is_away(&self) -> bool {
        self.is_away
    }

    /// Starts it now, if it does not run.
    pub fn come_back(&mut self) {
        self.is_away = false;
        self.hurry();
    }

    /// Lets nothing of it happen for a while.
    pub fn stall(&mut self, time: Duration) {
        if let Some(running) = &self.running {
            let _ = running.orders.send(Order::Stall(time));
        }
    }

    /// Asks it to end.
    pub fn stop(&mut self, away: Duration) {
        if let Some(running) = &self.running {
            let _ = running.shutdown.send(true);
            self.starts_at = Some(Instant::now() + away);
        }
    }

    /// Looks whether it has ended, and starts it if it is time: also one that ended by itself, as whoever supervises it would.
    pub async fn supervise(&mut self) {
        if self.running.as_ref().is_some_and(|running| running.task.is_finished())
            && let Some(running) = self.running.take()
        {
            let ended = running.task.await;
            self.ended(ended);
            self.starts_at.get_or_insert(Instant::now() + Duration::from_secs(1));
        }
        let may_start = !self.is_away && self.held == 0;
        if self.running.is_none() && may_start && self.starts_at.is_some_and(|at| at <= Instant::now()) {
            self.starts_at = None;
            let (shutdown, stop) = watch::channel(false);
            let (orders, received) = mpsc::unbounded_channel();
            let task = tokio::spawn(host((self.start)(stop), received));
            self.running = Some(Running { orders, shutdown, task });
        }
    }

    /// Starts it now, if it does not run and is not away.
    pub fn hurry(&mut self) {
        if let Some(at) = &mut self.starts_at {
            *at = (*at).min(Instant::now());
        }
    }

    /// Stops it and waits for its end.
    pub async fn end(&mut self) {
        let Some(running) = self.running.take() else { return };
        let _ = running.shutdown.send(true);
        self.ended(running.task.await);
    }

    fn ended(&mut self, ended: Result<Ended, JoinError>) {
        match ended {
            Ok(Ended::Killed | Ended::By(Ok(()))) => {}
            Ok(Ended::By(Err(said))) => self.said.push(said),
            Err(panicked) => self.said.push(format!("PANIC {panicked}")),
        }
    }
}

async fn host(mut service: Service, mut orders: mpsc::UnboundedReceiver<Order>) -> Ended {
    let mut goes_on = Instant::now();
    loop {
        let is_stalled = goes_on > Instant::now();
        tokio::select! {
            biased;
            // Also one that is stalled can be killed.
            order = orders.recv() => match order {
                Some(Order::Stall(time)) => goes_on = goes_on.max(Instant::now() + time),
                Some(Order::Kill) | None => {
                    kill(service);
                    return Ended::Killed;
                }
            },
            () = sleep_until(goes_on), if is_stalled => {}
            result = &mut service, if !is_stalled => return Ended::By(result),
        }
    }
}
