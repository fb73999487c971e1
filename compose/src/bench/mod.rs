//! `suture bench`: how fast transactions are, over real clients and a real (or the embedded) broker.
//!
//! - [`protocol`]: participants vote without a database, so that the figures are the protocol's own;
//! - [`databases`]: the participants of production on PostgreSQL and MariaDB, in modes xa and reserve, in one run.
//!
//! In both: `submitter` asks for transactions; coordinator, groups, readers, idempotent appends and committed positions
//! are those of production.
//!
//! All on one machine: this shows the cost of a transaction, not how it scales out.

mod databases;
mod load;
mod protocol;
mod report;
mod scratch;
mod sql;
mod submitter;
mod watched;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use suture_contract::ids::{LogLetters, Participant};
use suture_topics::embedded::EmbeddedBroker;
use suture_topics::settings::KafkaSettings;

use crate::{logging, random};

/// Arguments of `suture bench`.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// How long the load phase lasts.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// A cluster to measure on; without it the embedded broker, whose figures say little.
    #[arg(long, value_name = "HOST:PORT")]
    bootstrap: Option<String>,
    /// Branches of each transaction, each with a participant of its own.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=32))]
    participants: u8,
    /// Transactions under way in the load phase.
    #[arg(long, default_value_t = 2_000, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    window: usize,
    /// Bytes of each branch's payload.
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// How many single hops and single transactions are timed.
    #[arg(long, default_value_t = 300, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    samples: usize,
    /// Print a JSON object as the last line of standard output.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    databases: databases::DatabaseArgs,
}

/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures and prints.
pub fn run(args: &BenchArgs, format: logging::Format) -> anyhow::Result<ExitCode> {
    logging::start(format, "warn");
    match args.databases.are_given() {
        true => databases::run(args),
        false => protocol::run(args),
    }
}

/// A broker with the topics of these participants, and what only this run may need besides.
async fn broker(
    bootstrap: Option<String>,
    letters: LogLetters,
    participants: Vec<Participant>,
) -> anyhow::Result<(KafkaSettings, Option<EmbeddedBroker>)> {
    let started = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        // Topics of their own for each run: end offsets then count the run's records.
        let prefix = format!("bench-{letters}").parse()?;
        let Some(bootstrap) = bootstrap else {
            let broker = EmbeddedBroker::start()?;
            let kafka = broker.settings(prefix);
            broker.create_topics(&kafka, &participants)?;
            broker.create_topic(&hop_topic(&kafka), 1)?;
            return Ok((kafka, Some(broker)));
        };
        let kafka = KafkaSettings::new(bootstrap, prefix);
        crate::topics::create_for_demo(&kafka, &participants, &hop_topic(&kafka), 1)?;
        Ok((kafka, None))
    });
    started.await?
}

fn hop_topic(kafka: &KafkaSettings) -> String {
    format!("{}.hop", kafka.prefix)
}

/// A name that no other run has.
fn letters() -> anyhow::Result<LogLetters> {
    Ok(LogLetters::from_random(random::bytes()?))
}

/// `<what>-1` and so on.
fn participants(what: &str, count: u8) -> Vec<Participant> {
    (1..=count).map(|i| format!("{what}-{i}").parse().expect("a valid name")).collect()
}

/// Microseconds up to two minutes, to three digits.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 120_000_000, 3)?)
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros().clamp(1, 120_000_000) as u64
}

/// A quantile in milliseconds.
fn ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1_000.0
}

/// What is to be said about a rate whose transactions took longer than it was measured: it is that of a queue that is filled or drained.
fn unsteady(latencies: &Histogram<u64>, seconds: u64) -> Option<String> {
    let median = ms(latencies, 0.5) / 1_000.0;
    (median > seconds as f64).then(|| {
        format!(
            "the median latency, {median:.1} s, is longer than the {seconds} s that were measured: no steady state; give more \
             --seconds, or fewer under way (--window, --xa-window)"
        )
    })
}

/// What this process has used, in user and kernel mode.
fn cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_of_less_than_a_turn_is_told_so() {
        let of = |median_ms: u64| {
            let mut latencies = histogram().unwrap();
            latencies.record_n(median_ms * 1_000, 9).unwrap();
            unsteady(&latencies, 2)
        };
        assert_eq!(of(1_900), None);
        assert!(of(2_100).unwrap().starts_with("the median latency, 2.1 s, is longer than the 2 s that were measured"));
        assert_eq!(unsteady(&histogram().unwrap(), 2), None, "nothing was measured");
    }
}
