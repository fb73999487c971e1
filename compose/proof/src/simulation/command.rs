//! The command: many seeds, or one with its story.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tracing_subscriber::EnvFilter;

use super::plan::Plan;
use super::shrink::shrink;
use super::{Ran, run};
use crate::clock;

/// So often a seed is run twice.
const TWICE_EVERY: u64 = 100;
/// Of so many seeds it is demanded that each kind of fault has met [`FEWEST_HITS`] open transactions.
const MANY: u64 = 20_000;
const FEWEST_HITS: u64 = 1_000;
/// So many broken seeds are told in short.
const TOLD_SHORT: u64 = 3;
/// How often it is said how far it is.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What to simulate.
#[derive(clap::Args)]
pub struct Args {
    /// Only this one: its plan, and what the services log (RUST_LOG).
    #[arg(long)]
    seed: Option<u64>,
    /// Leaves these parts of its plan out.
    #[arg(long, requires = "seed", value_delimiter = ',')]
    without: Vec<String>,
    /// How many.
    #[arg(long, default_value_t = MANY)]
    seeds: u64,
    /// A million, beginning behind the others.
    #[arg(long, conflicts_with = "seeds")]
    full: bool,
    /// The first.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Only up to one that is broken.
    #[arg(long)]
    until_broken: bool,
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    committed: u64,
    aborted: u64,
    broken: u64,
    hits: BTreeMap<&'static str, u64>,
    /// Of these seeds, in whatever order they were run.
    digests: BTreeMap<u64, String>,
    told: Duration,
}

/// Runs the command.
pub fn simulate(args: &Args) -> ExitCode {
    if let Some(seed) = args.seed {
        return tell(Plan::of(seed).without(args.without.iter().map(String::as_str)));
    }
    let (from, seeds) = if args.full { (args.from + MANY, 1_000_000) } else { (args.from, args.seeds) };
    let (start, next, sum) = (clock::now(), AtomicU64::new(from), Mutex::new(Sum::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds || args.until_broken && sum.lock().expect("nobody has panicked").broken > 0 {
                return;
            }
            let ran = run(Plan::of(seed));
            let again = (seed % TWICE_EVERY == 0).then(|| run(Plan::of(seed)).digest);
            let mut sum = sum.lock().expect("nobody has panicked");
            sum.take_in(seed, ran, again);
            if start.elapsed() >= sum.told + TELL_EVERY {
                sum.told = start.elapsed();
                eprintln!("{} of {seeds} seeds, {} s, {} broken", sum.seeds, sum.told.as_secs(), sum.broken);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let sum = sum.into_inner().expect("nobody has panicked");
    let mut is_broken = sum.broken > 0;
    println!("{:28} {:>9}", "fault", "hits");
    for (kind, hits) in &sum.hits {
        let is_rare = seeds >= MANY && *hits < FEWEST_HITS;
        println!("{kind:28} {hits:>9}{}", if is_rare { "  TOO RARE" } else { "" });
        is_broken |= is_rare;
    }
    let digest = sum.digests.values().fold(Sha256::new(), |digest, of| digest.chain_update(of)).finalize();
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    println!(
        "{} seeds from {from} on, {} committed, {} aborted, {} broken, {} s, digest {digest}",
        sum.seeds,
        sum.committed,
        sum.aborted,
        sum.broken,
        start.elapsed().as_secs()
    );
    if is_broken { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

impl Sum {
    fn take_in(&mut self, seed: u64, ran: Ran, again: Option<String>) {
        let mut wrong = ran.wrong;
        if again.is_some_and(|again| again != ran.digest) {
            wrong.push("run twice, it has two digests".to_string());
        }
        if let Some(first) = wrong.first() {
            println!("BROKEN: seed {seed}");
            wrong.iter().take(5).for_each(|wrong| println!("  {wrong}"));
            self.broken += 1;
            if self.broken <= TOLD_SHORT {
                tell_short(seed, first);
            }
        }
        self.seeds += 1;
        self.committed += ran.committed;
        self.aborted += ran.aborted;
        for (kind, hits) in ran.hits {
            *self.hits.entry(kind).or_default() += hits;
        }
        self.digests.insert(seed, ran.digest);
    }
}

/// What remains of a broken run when everything is left out that it does not need, and the command that repeats it.
fn tell_short(seed: u64, broken: &str) {
    let plan = shrink(Plan::of(seed), broken);
    let left_out: Vec<&str> = plan.left_out.iter().map(String::as_str).collect();
    plan.story().iter().for_each(|line| println!("    {line}"));
    println!("  again: compose/proof/simulate --seed {seed} --without {}", left_out.join(","));
}

/// One run, with everything that can be seen of it.
fn tell(plan: Plan) -> ExitCode {
    tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    plan.story().iter().for_each(|line| println!("{line}"));
    let ran = run(plan);
    ran.wrong.iter().for_each(|wrong| println!("BROKEN: {wrong}"));
    println!("{} committed, {} aborted, digest {}", ran.committed, ran.aborted, ran.digest);
    if ran.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
