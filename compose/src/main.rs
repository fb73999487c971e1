//! `suture`: everything put together. One file a subcommand.

mod audit;
mod bench;
mod demo;
mod doctor;
mod forgotten;
mod ingest;
mod joining;
mod logging;
mod logs;
mod out;
mod participant;
mod random;
mod seed;
mod services;
mod settings;
mod topics;
mod tx;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Makes one hospital event change several organisations' databases completely or not at all, over Kafka.
///
/// Begin with `suture demo`, which needs nothing but this program.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    /// How logs are written.
    #[arg(long, global = true, value_enum, default_value_t = logging::Format::Text)]
    log_format: logging::Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the whole thing at work on an embedded broker and three SQLite files.
    Demo(demo::DemoArgs),
    /// Run a coordinator: decide transactions.
    Coordinator(services::ServiceArgs),
    /// Turn upstream events into requests and ask again for what was aborted in passing; or show what a rule makes of an event.
    Ingest(ingest::IngestArgs),
    /// Run a participant: keep one database's part of every transaction; or make a database ready for one, or settle what a shard
    /// of it stopped at.
    Participant(participant::ParticipantArgs),
    /// Plan, create and check the protocol's topics.
    Topics(topics::TopicsArgs),
    /// Look at brokers, topics, groups, databases, keys and clocks: a line each, and what mends it.
    ///
    /// The exit code is 0 if all is well, 1 if something should be looked at, 2 if something must be mended.
    Doctor(doctor::DoctorArgs),
    /// Fill the participants' databases with reference data, derived from the events that need it.
    Seed(seed::SeedArgs),
    /// Measure how fast transactions are: with participants that only vote, or with databases made for the run.
    Bench(bench::BenchArgs),
    /// Ask about transactions, or ask for one again.
    Tx(tx::TxArgs),
    /// Compare the logs with every participant's ledger, and say what must not be. Changes nothing, whatever runs meanwhile.
    ///
    /// Counts all transactions whose requests are still in their topic: committed everywhere, aborted, open, in doubt, decided
    /// and not applied, with ages and by participant. Then come the findings, each with what to do: contradictions (a decision against
    /// the votes, a ledger against the decision, two ledgers against each other), LOST effects (decided, and not there), orphans
    /// (branches and rows that nothing accounts for), and what waits for longer than --overdue. Whatever looks wrong is looked
    /// at again after some seconds, so that what is just happening is not told.
    ///
    /// It reads the databases of all `[participants]` in the configuration, read-only, and needs some 300 bytes of memory for each
    /// transaction of one shard: with millions of them, give --since. The exit code is 0 if nothing was found, 1 for findings, 2
    /// if it could not look.
    Audit(audit::AuditArgs),
}

/// Where the configuration is if nobody says so.
const DEFAULT_CONFIG: &str = "suture.toml";

/// The configuration file.
#[derive(clap::Args, Clone)]
struct ConfigArg {
    /// The configuration file.
    #[arg(long, short, env = "SUTURE_CONFIG", default_value = DEFAULT_CONFIG, global = true)]
    config: PathBuf,
}

fn main() -> ExitCode {
    let Cli { log_format, command } = Cli::parse();
    let only_prints = match &command {
        Command::Audit(_) | Command::Doctor(_) | Command::Topics(_) | Command::Tx(_) => true,
        Command::Ingest(args) => args.only_prints(),
        Command::Participant(args) => args.only_prints(),
        _ => false,
    };
    // It has nothing to put away.
    if only_prints {
        end_by_sigpipe();
    }
    let ended = match command {
        Command::Demo(args) => demo::run(args, log_format),
        Command::Coordinator(args) => services::coordinator(&args, log_format),
        Command::Ingest(args) => ingest::run(args, log_format),
        Command::Participant(args) => participant::run(&args, log_format),
        Command::Bench(args) => bench::run(&args, log_format),
        Command::Topics(args) => topics::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Seed(args) => seed::run(&args),
        Command::Tx(args) => tx::run(args),
        Command::Audit(args) => Ok(audit::run(&args)),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            if error.downcast_ref::<out::Unwritable>().is_some_and(out::Unwritable::has_no_reader) {
                end_by_sigpipe();
                // Returns only where somebody has blocked the signal.
                let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGPIPE);
                return ExitCode::FAILURE;
            }
            eprintln!("suture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `suture tx show .. | head` must end like any other tool, by the signal that Rust ignores.
fn end_by_sigpipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: it installs no handler of ours.
    let set = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    debug_assert!(set.is_ok());
}
