//! `suture ingest` and `suture ingest explain`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Subcommand;
use serde::de::IgnoredAny;
use suture_contract::keys::{HashKey, IdentityKey};
use suture_contract::topic_map::DEFAULT_PARTITIONS;
use suture_coordinator_core::ingest::Keys;
use suture_coordinator_core::ingest::explain::{Explained, explain};

use crate::settings::Settings;
use crate::{ConfigArg, DEFAULT_CONFIG, logging, services};

/// Arguments of `suture ingest`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct IngestArgs {
    #[command(subcommand)]
    command: Option<IngestCommand>,
    #[command(flatten)]
    config: ConfigArg,
}

#[derive(Subcommand)]
enum IngestCommand {
    /// Show what the rules make of an event, without Kafka: the rule, the keys, what each participant gets, or why it
    /// is rejected (then the exit code is 1).
    Explain(ExplainArgs),
}

#[derive(clap::Args)]
struct ExplainArgs {
    /// One event, or one a line; `-` is standard input.
    file: PathBuf,
    /// Only this line, from 1.
    #[arg(long)]
    line: Option<usize>,
    /// One JSON object an event.
    #[arg(long)]
    json: bool,
    /// The configuration file. Where there is none, the rules of the demo and a key that is no secret.
    #[arg(long, short, env = "SUTURE_CONFIG", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

impl IngestArgs {
    /// Whether this is no service.
    pub fn only_prints(&self) -> bool {
        self.command.is_some()
    }
}

/// Runs the service, or explains.
pub fn run(args: IngestArgs, format: logging::Format) -> anyhow::Result<ExitCode> {
    if let Some(IngestCommand::Explain(args)) = args.command {
        return explain_file(&args);
    }
    let settings = Settings::load(&args.config.config)?;
    let (rules, keys) = (settings.rules()?, settings.keys()?);
    logging::start(format, "info");
    let unknown: Vec<String> = settings.not_configured(&rules).iter().map(ToString::to_string).collect();
    if !unknown.is_empty() {
        tracing::warn!(
            participants = unknown.join(","),
            "rules name participants that are not in [participants]: right if another configuration has them, else correct \
             the name; transactions that name a participant without topics abort"
        );
    }
    services::block_on(async {
        let shutdown = services::signalled()?;
        suture_coordinator::ingest::run(settings.kafka, Arc::new(rules), keys, Arc::default(), shutdown).await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn explain_file(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let has_config = args.config != Path::new(DEFAULT_CONFIG) || args.config.exists();
    let (rules, keys, shards) = match has_config {
        true => {
            let settings = Settings::load(&args.config)?;
            (settings.rules()?, settings.keys()?, settings.kafka.partitions)
        }
        false => {
            eprintln!("suture: no --config: these are the demo's rules, with keys that are no secret");
            (crate::demo::demo_rules()?, example_keys()?, DEFAULT_PARTITIONS)
        }
    };
    let mut bytes = Vec::new();
    let place = args.file.display();
    if args.file.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes).context("reading standard input")?;
    } else {
        bytes = std::fs::read(&args.file).with_context(|| format!("{place}: cannot be read; check the path"))?;
    }
    let mut filled = bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let begins_with_an_event = filled.next().is_some_and(|line| serde_json::from_slice::<IgnoredAny>(line).is_ok());
    let is_lines = args.line.is_some()
        || args.file.extension().is_some_and(|extension| extension == "ndjson")
        || (begins_with_an_event && filled.next().is_some());
    let events: Vec<(usize, &[u8])> = match is_lines {
        true => {
            bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()).collect()
        }
        false => vec![(0, bytes.as_slice())],
    };
    let (mut explained, mut rejected) = (0, 0);
    for (index, event) in events.into_iter().filter(|(index, _)| args.line.is_none_or(|line| line == index + 1)) {
        let explanation = explain(&rules, &keys, shards, Some(event));
        if args.json {
            println!("{}", explanation.to_json());
        } else {
            if is_lines {
                println!("# line {}", index + 1);
            }
            println!("{}", explanation.to_text());
        }
        explained += 1;
        rejected += usize::from(matches!(explanation.result, Explained::Rejected { .. }));
    }
    if explained == 0 {
        match args.line {
            Some(line) => anyhow::bail!("{place}: line {line} is empty, or behind the end"),
            None => anyhow::bail!("{place}: holds no event"),
        }
    }
    Ok(if rejected == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn example_keys() -> anyhow::Result<Keys> {
    let secret = b"an example, and no secret";
    Ok(Keys { identity: IdentityKey::new(secret)?, hash: HashKey::new("example".parse()?, secret)? })
}
