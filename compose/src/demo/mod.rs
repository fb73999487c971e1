//! `suture demo`: the whole thing at work, with nothing else installed.
//!
//! ```text
//!   world.rs   the folder, its keys, the broker (embedded, or a cluster), topics, seeded databases
//!   feed.rs    events -> upstream topic, never more than the embedded broker can hold
//!   crew.rs    ingest, coordinator and participants: in this process, or as children that are killed (--crash)
//!   watch.rs   follows every topic: which event became which transaction, and how it ended
//!   show.rs    what a person sees meanwhile
//!   report.rs  reads the databases back over fresh connections, and judges
//! ```
//!
//! The exit code: 0 if nothing is partial or in doubt, 1 if something is or the run failed, 3 if the folder holds branches
//! in doubt whose decision log died with an earlier run.

mod crew;
mod feed;
mod report;
mod show;
mod watch;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use suture_coordinator::ingest::IngestCounts;
use tokio::sync::watch as signal;
use tokio::task::{JoinError, JoinHandle};

use crate::{logging, out, services};
use crew::Crew;
pub use feed::read_events;
use report::Report;
use show::Show;
use watch::Watch;
pub use world::demo_rules;
use world::{Doubts, World};

/// Arguments of `suture demo`.
#[derive(clap::Args)]
pub struct DemoArgs {
    /// Events to feed, one FHIR transaction Bundle a line. Without it: 125 synthetic surgeries that come with the program.
    #[arg(long, value_name = "FILE.ndjson")]
    events: Option<PathBuf>,
    /// Keep the databases (one .sqlite file a participant) and the demo's keys here. Without it: a temporary folder.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print a JSON object as the last line of standard output.
    #[arg(long)]
    json: bool,
    /// Kill coordinator and participants with SIGKILL, again and again, while transactions are open.
    #[arg(long)]
    crash: bool,
    /// Chooses the moments of the kills.
    #[arg(long, requires = "crash", default_value_t = 1)]
    seed: u64,
    /// Use this cluster instead of the embedded broker. Needs --data: the folder keeps the topic prefix.
    #[arg(long, value_name = "HOST:PORT", requires = "data")]
    bootstrap: Option<String>,
    /// Stay up afterwards, print how to look at the topics with kcat, and process what is appended by hand.
    #[arg(long)]
    hold: bool,
    /// One service as a child of the demo.
    #[command(subcommand)]
    child: Option<DemoCommand>,
}

#[derive(clap::Subcommand)]
enum DemoCommand {
    /// One service of a demo that is run with --crash. Not for people.
    #[command(hide = true)]
    Child(crew::ChildArgs),
}

/// How long a stopped demo waits for what is open: a transaction's deadline, and some time to settle it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the databases' progress is looked at and shown.
const GLANCE: Duration = Duration::from_millis(100);

/// Runs the demo, or one child of it.
pub fn run(args: DemoArgs, format: logging::Format) -> anyhow::Result<ExitCode> {
    if let Some(DemoCommand::Child(child)) = &args.child {
        return crew::run_child(child, format);
    }
    // A person who watches a demo wants to see surgeries; `RUST_LOG=info` shows the services' own lines.
    logging::start(format, if args.crash { "error" } else { "warn,librdkafka=off,rdkafka=off,suture_topics=error" });
    services::block_on(play(args, format))
}

/// The end of a look at the groups; never comes while there is none.
async fn ended<T>(job: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    match job {
        Some(job) => job.await,
        None => std::future::pending().await,
    }
}

async fn play(args: DemoArgs, format: logging::Format) -> anyhow::Result<ExitCode> {
    let mut interrupted = services::signalled()?;
    let events = feed::read_events(args.events.as_deref())?;
    let started = tokio::time::Instant::now();
    let world = match World::open(args.data.as_deref(), args.bootstrap.as_deref()).await? {
        Ok(world) => Arc::new(world),
        Err(Doubts { participant, txids }) => {
            eprintln!(
                "suture: {participant} holds {} branch(es) in doubt from a run that was killed: {}. The decision log died with \
                 that run's embedded broker, so nobody can decide them any more. Use another --data folder, or delete this one.",
                txids.len(),
                txids.join(", ")
            );
            return Ok(ExitCode::from(3));
        }
    };
    let mut show = Show::new(events.len());
    show.say(&world.introduction(events.len()))?;
    world.seed(&events).await.context("seeding the reference data")?;

    let counts = Arc::new(IngestCounts::default());
    let (stop_feed, feed_stopped) = signal::channel(false);
    let mut watch = Watch::start(&world).await?;
    let mut crew =
        Crew::start(Arc::clone(&world), events.len(), Arc::clone(&counts), args.crash.then_some(args.seed), format)
            .await?;
    let progress = watch.progress();
    let window = if args.crash { feed::CRASH_WINDOW } else { feed::WINDOW };
    let mut feeder =
        tokio::spawn(feed::feed(Arc::clone(&world), events, window, progress, Arc::clone(&counts), feed_stopped));

    // The feed ends, then everything that was fed or asked for again, then every database has applied every decision.
    let mut fed = None;
    let mut is_complete = true;
    let mut stopping = None;
    let mut held = false;
    let mut glancing: Option<JoinHandle<anyhow::Result<watch::Glance>>> = None;
    let mut glance = tokio::time::interval(GLANCE);
    loop {
        tokio::select! {
            ended = &mut feeder, if fed.is_none() => fed = Some(ended.context("feeding")??),
            event = watch.next() => {
                watch.take_in(event?)?;
                crew.glance(watch.finished(), watch.open(&counts), fed.is_some())?;
            }
            failed = crew.failed() => return Err(failed),
            _ = interrupted.wait_for(|stop| *stop), if stopping.is_none() => {
                stopping = Some(tokio::time::Instant::now());
                show.say("stopping: no more events are fed; what is open is finished")?;
                crew.spare();
                // The feeder may have ended by itself.
                let _ = stop_feed.send(true);
            }
            seen = ended(&mut glancing) => {
                glancing = None;
                watch.end_glance(seen.context("looking at the groups")?);
            }
            _ = glance.tick() => {
                if glancing.is_none() {
                    glancing = Some(watch.begin_glance(&world));
                }
                crew.glance(watch.finished(), watch.open(&counts), fed.is_some())?;
                show.progress(&watch, &counts, crew.kills())?;
            }
        }
        if stopping.is_some_and(|since| since.elapsed() > PATIENCE) {
            is_complete = false;
            show.say("not everything has ended in time; this is how it stands")?;
            break;
        }
        let Some(fed) = fed else { continue };
        let ingested = counts.read.load(Ordering::Relaxed) >= fed;
        let all_done = ingested && watch.open(&counts) == 0 && watch.all_applied() && watch.nothing_waits();
        if !all_done || (args.hold && stopping.is_none() && held) {
            continue;
        }
        if args.hold && stopping.is_none() {
            held = true;
            show.last(&watch, &counts, crew.kills())?;
            out::line(Report::read(&world, &watch, &counts, crew.kills(), started.elapsed())?)?;
            eprintln!("{}", world.kcat_lines());
            continue;
        }
        break;
    }
    show.last(&watch, &counts, crew.kills())?;
    let kills = crew.kills();
    crew.stop().await?;
    let report = Report::read(&world, &watch, &counts, kills, started.elapsed())?;
    out::line(&report)?;
    if args.json {
        out::line(report.to_json())?;
    }
    Ok(if is_complete && report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
