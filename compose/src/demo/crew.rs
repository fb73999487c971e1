//! The services of a demo: ingest, the coordinator and the participants.
//!
//! Normally all of them are tasks of this process. Under --crash ingest stays here and the others are children of the same
//! binary on the same broker, which are killed with SIGKILL while a transaction is open, and started again at once.
//!
//! The kills are spread over the run: the seed chooses after how many finished events each one is due, and whom it hits;
//! the first ones hit each process once.

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use suture_contract::ids::{Deployment, LogLetters, Participant};
use suture_coordinator::ingest::IngestCounts;
use suture_coordinator::service::CoordinatorSettings;
use suture_participants::config::UpkeepSettings;
use suture_topics::settings::KafkaSettings;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::world::{self, World};
use crate::{logging, services};

/// How many kills are planned.
const KILLS: usize = 12;
/// How long services may take to end.
const DRAIN: Duration = Duration::from_secs(30);

/// The services that run.
pub struct Crew {
    world: Arc<World>,
    format: logging::Format,
    shutdown: watch::Sender<bool>,
    tasks: JoinSet<(String, anyhow::Result<()>)>,
    children: Vec<(Role, Child)>,
    plan: Vec<(u64, usize)>,
    kills: usize,
}

/// What a child does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    Coordinator,
    Participant(Participant),
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Coordinator => f.write_str("coordinator"),
            Self::Participant(participant) => participant.fmt(f),
        }
    }
}

impl Crew {
    /// Starts all services; with a seed, as children that will be killed.
    pub async fn start(
        world: Arc<World>,
        events: usize,
        counts: Arc<IngestCounts>,
        crash: Option<u64>,
        format: logging::Format,
    ) -> anyhow::Result<Self> {
        let (shutdown, stopped) = watch::channel(false);
        let roles = std::iter::once(Role::Coordinator).chain(world.participants().into_iter().map(Role::Participant));
        let roles: Vec<Role> = roles.collect();
        let mut crew = Self {
            plan: crash.map(|seed| plan(seed, events as u64, roles.len())).unwrap_or_default(),
            world,
            format,
            shutdown,
            tasks: JoinSet::new(),
            children: Vec::new(),
            kills: 0,
        };
        let (kafka, rules, keys) = (crew.world.kafka.clone(), Arc::clone(&crew.world.rules), crew.world.keys.clone());
        let stop = stopped.clone();
        crew.tasks.spawn(async move {
            let ended = suture_coordinator::ingest::run(kafka, rules, keys, counts, stop).await;
            ("ingest".to_string(), ended.map_err(Into::into))
        });
        for role in roles {
            if crash.is_some() {
                let child = crew.spawn_child(&role)?;
                crew.children.push((role, child));
            } else {
                let (world, stop) = (Arc::clone(&crew.world), stopped.clone());
                crew.tasks.spawn(async move {
                    let name = role.to_string();
                    let ended = serve(role, world.kafka.clone(), world.folder.clone(), stop).await;
                    (name, ended)
                });
            }
        }
        Ok(crew)
    }

    /// Ends only when a service of this process does, which none should.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok((name, Err(error)))) => error.context(format!("{name} ended")),
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("{name} ended by itself"),
            Some(Err(error)) => anyhow::Error::new(error).context("a service panicked"),
            None => std::future::pending().await,
        }
    }

    /// Kills when a kill is due and a transaction is open; starts again what was killed. With no more to be fed the last
    /// open ones must not end before all kills are done.
    pub fn glance(&mut self, finished: u64, open: u64, is_fed: bool) -> anyhow::Result<()> {
        if open == 0 || self.kills == self.plan.len() {
            return Ok(());
        }
        let (after, victim) = self.plan[self.kills];
        let last_chance = is_fed && open <= (self.plan.len() - self.kills) as u64;
        if finished < after && !last_chance {
            return Ok(());
        }
        let (role, child) = &mut self.children[victim];
        if let Some(status) = child.try_wait()? {
            bail!("{role} ended by itself: {status}");
        }
        child.start_kill().with_context(|| format!("killing {role}"))?;
        let role = role.clone();
        self.kills += 1;
        self.children[victim].1 = self.spawn_child(&role)?;
        Ok(())
    }

    /// Kills nobody any more.
    pub fn spare(&mut self) {
        self.plan.truncate(self.kills);
    }

    /// How often a process was killed.
    pub fn kills(&self) -> usize {
        self.kills
    }

    /// Ends all services and waits until they have drained.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        // Nobody listens any more only if all have ended.
        let _ = self.shutdown.send(true);
        for (role, child) in &self.children {
            if let Some(id) = child.id() {
                kill(Pid::from_raw(id as i32), Signal::SIGTERM).with_context(|| format!("ending {role}"))?;
            }
        }
        let ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                let (name, ended) = ended.context("a service panicked")?;
                ended.with_context(|| format!("{name} ended"))?;
            }
            for (role, child) in &mut self.children {
                let status = child.wait().await?;
                if !status.success() {
                    bail!("{role} ended with {status}");
                }
            }
            Ok(())
        };
        tokio::time::timeout(DRAIN, ended).await.context("the services did not end in time")?
    }

    fn spawn_child(&self, role: &Role) -> anyhow::Result<Child> {
        let KafkaSettings { bootstrap, prefix, log_letters, session_timeout_ms, fetch_wait_max_ms, .. } =
            &self.world.kafka;
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.args(["--log-format", self.format.as_arg(), "demo", "child"]);
        command.args(["--role", &role.to_string(), "--bootstrap", bootstrap, "--prefix", prefix.as_str()]);
        command.args(["--session-timeout-ms", &session_timeout_ms.to_string()]);
        command.args(["--fetch-wait-max-ms", &fetch_wait_max_ms.to_string()]);
        command.arg("--folder").arg(&self.world.folder);
        if let Some(letters) = log_letters {
            command.args(["--letters", letters.as_str()]);
        }
        // Its own errors, and nothing else, stand on the terminal of the demo.
        // A process group of its own: Ctrl-C is for the demo, which then ends its children in order.
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).process_group(0);
        command.spawn().with_context(|| format!("starting {role}"))
    }
}

/// Arguments of a child.
#[derive(clap::Args)]
pub struct ChildArgs {
    #[arg(long)]
    role: String,
    #[arg(long)]
    bootstrap: String,
    #[arg(long)]
    prefix: Deployment,
    #[arg(long)]
    letters: Option<LogLetters>,
    #[arg(long)]
    session_timeout_ms: u32,
    #[arg(long)]
    fetch_wait_max_ms: u32,
    #[arg(long)]
    folder: PathBuf,
}

/// One service of a demo, until SIGTERM or until the demo dies.
pub fn run_child(args: &ChildArgs, format: logging::Format) -> anyhow::Result<ExitCode> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("asking to end with the demo")?;
    // Restarts and rebalances are the point of the exercise; only errors are worth a line.
    logging::start(format, "error");
    let mut kafka = KafkaSettings::new(args.bootstrap.clone(), args.prefix.clone());
    kafka.log_letters = args.letters;
    kafka.session_timeout_ms = args.session_timeout_ms;
    kafka.fetch_wait_max_ms = args.fetch_wait_max_ms;
    let role = match args.role.as_str() {
        "coordinator" => Role::Coordinator,
        name => Role::Participant(name.parse()?),
    };
    services::block_on(async {
        let shutdown = services::signalled()?;
        serve(role, kafka, args.folder.clone(), shutdown).await?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn serve(role: Role, kafka: KafkaSettings, folder: PathBuf, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    match role {
        Role::Coordinator => {
            suture_coordinator::service::run(kafka, CoordinatorSettings::default(), stop).await?;
        }
        Role::Participant(participant) => {
            let identity = world::keys(&folder)?.identity;
            let resource = world::open_participant(&folder, &kafka.prefix, &identity, participant.as_str()).await?;
            let upkeep = UpkeepSettings::default();
            suture_participants::service::run(&kafka, &participant, Arc::new(resource), upkeep, stop).await?;
        }
    }
    Ok(())
}

/// After how many finished events each kill is due, and whom it hits. Every process is hit at least once.
fn plan(seed: u64, events: u64, processes: usize) -> Vec<(u64, usize)> {
    let mut random = SplitMix64(seed);
    let mut first: Vec<usize> = (0..processes).collect();
    for i in (1..first.len()).rev() {
        first.swap(i, random.below(i as u64 + 1) as usize);
    }
    let mut moments: Vec<u64> = (0..KILLS).map(|_| random.below(events.max(1))).collect();
    moments.sort_unstable();
    let victims = first.into_iter().chain(std::iter::repeat_with(|| random.below(processes as u64) as usize));
    moments.into_iter().zip(victims).collect()
}

/// A small generator whose numbers depend on the seed alone (Steele, Lea, Flood: Fast Splittable PRNGs, 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
