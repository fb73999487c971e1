//! `suture-proof`: what is checked about the cores by exploring, and about the services by simulating, not by examples.

mod clock;
mod model;
#[cfg(suture_simulated)]
mod simulation;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::{Parser, Subcommand};

/// Checks Suture without brokers and databases: the functions that run in production, in every situation within some bounds, and
/// the services that run in production, by seed.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    layer: Layer,
}

#[derive(Subcommand)]
enum Layer {
    /// Explores every state that can be reached within bounds: logs, ledgers, and all that any coordinator could do.
    ///
    /// Ends with an error if something is broken that must hold, if a run has another number of states than is written down
    /// for it, or if a situation is not met that must be reached.
    Model(ModelArgs),
    /// Runs the services by seed, over a Kafka and databases in memory (compose/proof/simulate builds for it).
    ///
    /// Ends with an error if something is broken that must hold, if a seed that is run twice has two digests, or if, in 20,000
    /// seeds or more, a kind of fault has met fewer than 1,000 open transactions.
    #[cfg(suture_simulated)]
    Simulate(simulation::Args),
}

#[derive(clap::Args)]
struct ModelArgs {
    /// Larger bounds too; takes hours.
    #[arg(long)]
    full: bool,
    /// Only this run; of larger bounds too.
    #[arg(long, value_name = "RUN")]
    only: Option<String>,
    /// Most states of a run; the rest is said to be unseen.
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    states: u64,
    /// Everything is drained from one in so many states.
    #[arg(long, default_value_t = 50)]
    drain_every: u64,
}

/// What all runs together have come to.
#[derive(Default)]
struct Sum {
    states: u64,
    met: model::Met,
    is_broken: bool,
}

fn main() -> ExitCode {
    match Args::parse().layer {
        Layer::Model(args) => check_model(&args),
        #[cfg(suture_simulated)]
        Layer::Simulate(args) => simulation::simulate(&args),
    }
}

fn check_model(args: &ModelArgs) -> ExitCode {
    let start = clock::now();
    let is_wanted = |name: &str| args.only.as_ref().is_none_or(|only| only == name);
    let more = if args.full || args.only.is_some() { model::FULL } else { &[] };
    let runs: Vec<_> = model::CI.iter().chain(more).filter(|(bounds, _)| is_wanted(bounds.name)).collect();
    if runs.is_empty() {
        eprintln!("there is no such run; these are:");
        model::CI.iter().chain(model::FULL).for_each(|(bounds, _)| eprintln!("  {}", bounds.name));
        return ExitCode::FAILURE;
    }
    println!(
        "{:36} {:>11} {:>12} {:>5} {:>9} {:>9} {:>8}",
        "run", "states", "transitions", "depth", "drained", "views", "seconds"
    );
    let next = AtomicUsize::new(0);
    let sum = Mutex::new(Sum::default());
    let work = || {
        while let Some((bounds, pinned)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = model::explore(bounds, args.states, args.drain_every);
            let mut sum = sum.lock().expect("nobody has panicked");
            let is_good = match found {
                Ok(explored) => {
                    sum.met.join(explored.met);
                    sum.states += explored.states;
                    report(bounds.name, &explored, *pinned)
                }
                Err(violation) => {
                    report_violation(bounds.name, &violation);
                    false
                }
            };
            sum.is_broken |= !is_good;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(runs.len()) {
            scope.spawn(work);
        }
    });
    let Sum { states, met, mut is_broken } = sum.into_inner().expect("nobody has panicked");
    if args.only.is_none() && args.states == u64::MAX {
        let unmet = model::unmet(met);
        unmet.iter().for_each(|situation| println!("NOT MET: {}", situation.what()));
        is_broken |= !unmet.is_empty();
        println!("{} of {} situations are met", model::SITUATIONS - unmet.len(), model::SITUATIONS);
    }
    let memory = most_memory().map_or_else(|| "unknown".to_string(), |mib| format!("{mib} MiB"));
    println!("{states} states, {} s, most memory: {memory}", start.elapsed().as_secs());
    if is_broken { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Answers whether all is as it was.
fn report(name: &str, explored: &model::Explored, pinned: Option<u64>) -> bool {
    let model::Explored { states, transitions, depth, drained, is_complete, .. } = explored;
    let (views, seconds) = (explored.played.0, explored.took.as_secs_f64());
    let remark = match (is_complete, pinned) {
        (false, _) => "  TRUNCATED",
        (true, None) => "  NOT PINNED",
        (true, Some(_)) => "",
    };
    println!("{name:36} {states:>11} {transitions:>12} {depth:>5} {drained:>9} {views:>9} {seconds:>8.1}{remark}");
    let Some(pinned) = pinned.filter(|pinned| *is_complete && states != pinned) else { return true };
    println!("CHANGED: {name}: {states} states, and {pinned} are written down in compose/proof/src/model/runs.rs");
    false
}

fn report_violation(name: &str, violation: &model::Violation) {
    let model::Violation { broken, way, world, states, took } = violation;
    println!("BROKEN: {name}: {broken}");
    println!("  after {states} states and {:.1} s, in {} steps:", took.as_secs_f64(), way.len());
    way.iter().for_each(|action| println!("    {action:?}"));
    println!("  {world:?}");
}

/// Of this process, in MiB.
fn most_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}
