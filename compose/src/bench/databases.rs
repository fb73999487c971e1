//! How fast transactions are with real databases: the participants of production, in modes xa and reserve, in one run.
//!
//! ```text
//!   submitter --requests--> coordinator --prepares--> N participants --votes--> coordinator --decisions--> N participants
//!       ^                                                  |                                                    |
//!       |                                             N databases                                          N databases
//!       `--------------------------------- durable in the last one ----------------------------------------------'
//! ```
//!
//! A *cell* is one database, one mode and one number of transactions under way. Each has databases, topics and services of its
//! own, so nothing of one cell is in the way of the next. A round goes through all of them, every second one backwards; what
//! counts is the ratio inside a round, for the machine may be another one a minute later.
//!
//! - The workload is the same in both modes (`workload`), and after each cell **the rows are compared** with what was told.
//! - A transaction counts when its decision is durable in all databases: that is seen where the service hands it over
//!   (`watched`), not in the acknowledgements, which are told ten times a second.
//! - fsyncs are the servers' own counters over the whole cell, divided by all its transactions, those of the warm-up too.
//! - The databases are dropped whatever happens, save a second signal or the end of the server.
//!
//! Left out: rows that many transactions want, refusals, open loops.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use suture_contract::ids::Participant;
use suture_participants::config::ParticipantConfig;
use suture_participants::opened::OpenedResource;
use suture_topics::settings::KafkaSettings;
use tokio::sync::watch;

use super::load::{Load, Loaded, Serving};
use super::report::{Figures, Report};
use super::scratch::Scratch;
use super::sql::{Kind, Server};
use super::workload::{self, Mode};
use super::{BenchArgs, broker, letters, participants, unsteady};
use crate::{out, services};

/// Which databases, and how.
#[derive(clap::Args)]
#[command(next_help_heading = "With real databases")]
pub struct DatabaseArgs {
    /// A PostgreSQL server, where databases are made for this run and dropped; once a participant, or one for all.
    #[arg(long, value_name = "URL")]
    postgres: Vec<String>,
    /// A MariaDB or MySQL server, likewise.
    #[arg(long, value_name = "URL")]
    mariadb: Vec<String>,
    /// Which modes.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Mode::Xa, Mode::Reserve])]
    modes: Vec<Mode>,
    /// Transactions under way in mode xa, where each keeps a slot or a connection of every server.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    xa_window: u16,
    /// How often all is measured; the ratios are told of each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: u8,
}

impl DatabaseArgs {
    /// Whether there is any database.
    pub fn are_given(&self) -> bool {
        !(self.postgres.is_empty() && self.mariadb.is_empty())
    }

    fn servers(&self) -> anyhow::Result<BTreeMap<Kind, Vec<Server>>> {
        let mut servers: BTreeMap<Kind, Vec<Server>> = BTreeMap::new();
        for (kind, urls) in [(Kind::Postgres, &self.postgres), (Kind::Mariadb, &self.mariadb)] {
            for url in urls {
                servers.entry(kind).or_default().push(Server::new(kind, url)?);
            }
        }
        Ok(servers)
    }
}

/// What is measured at once.
#[derive(Clone, Copy)]
struct Cell {
    kind: Kind,
    mode: Mode,
    window: usize,
}

/// Measures and prints.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let servers = args.databases.servers()?;
    if args.window > workload::ACCOUNTS {
        bail!("--window: at most {} transactions find an account of their own", workload::ACCOUNTS);
    }
    services::block_on(async {
        let mut interrupted = services::signalled()?;
        let mut report = Report::new(args.bootstrap.is_none(), args.participants, args.seconds);
        for round in 1..=args.databases.rounds {
            let mut cells = cells(args, &servers);
            // What grows warm or slow over a round does so for both modes alike.
            if round % 2 == 0 {
                cells.reverse();
            }
            for cell in cells {
                let Cell { kind, mode, window } = cell;
                eprintln!("round {round}: {}, {}, {window} under way", kind.name(), mode.name());
                let figures = measure(args, &servers[&kind], cell, &mut interrupted).await?;
                if let Some(unsteady) = unsteady(&figures.loaded.applied, args.seconds) {
                    eprintln!("{unsteady}");
                }
                report.add(round, kind, mode, window, figures);
            }
        }
        out::line(report.text(args.json)?.trim_end())?;
        Ok(ExitCode::SUCCESS)
    })
}

fn cells(args: &BenchArgs, servers: &BTreeMap<Kind, Vec<Server>>) -> Vec<Cell> {
    let mut cells = Vec::new();
    for kind in servers.keys() {
        for mode in &args.databases.modes {
            let most = if *mode == Mode::Xa { usize::from(args.databases.xa_window) } else { args.window };
            let mut windows = vec![1, most];
            windows.dedup();
            cells.extend(windows.into_iter().map(|window| Cell { kind: *kind, mode: *mode, window }));
        }
    }
    cells
}

/// Databases of their own, whatever becomes of the measurement.
async fn measure(
    args: &BenchArgs,
    servers: &[Server],
    cell: Cell,
    interrupted: &mut watch::Receiver<bool>,
) -> anyhow::Result<Figures> {
    let letters = letters()?;
    let names = participants(cell.kind.name(), args.participants);
    let (kafka, broker) = broker(args.bootstrap.clone(), letters, names.clone()).await?;
    let mut scratch = Scratch::new(servers, letters, &kafka.prefix, args.participants);
    let measured = measure_in(&mut scratch, &kafka, &names, args, cell, interrupted).await;
    let dropped = scratch.drop_all().await;
    drop(broker);
    match (measured, dropped) {
        (Ok(figures), dropped) => dropped.map(|()| figures),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(left)) => Err(error.context(left)),
    }
}

async fn measure_in(
    scratch: &mut Scratch,
    kafka: &KafkaSettings,
    names: &[Participant],
    args: &BenchArgs,
    cell: Cell,
    interrupted: &mut watch::Receiver<bool>,
) -> anyhow::Result<Figures> {
    scratch.create().await?;
    let configs = names.iter().zip(scratch.urls()).map(|(name, url)| {
        let config = workload::config(name, cell.kind, cell.mode, &url, cell.window)?;
        Ok(config)
    });
    let configs: Vec<ParticipantConfig> = configs.collect::<anyhow::Result<_>>()?;
    // Makes the ledgers, so that this is not counted; and refuses what is unsafe before anything is measured.
    drop(open(&configs, kafka).await?);
    let commits_alone = scratch.commits_alone().await?;
    let fsyncs_before = scratch.fsyncs().await?;
    let mut serving = Serving::start(kafka, open(&configs, kafka).await?).await?;
    let load = Load { window: cell.window, time: Duration::from_secs(args.seconds), payload: args.payload };
    let loaded = serving.load(load, interrupted).await;
    let stopped = serving.stop().await;
    let loaded: Loaded = loaded?;
    stopped?;
    let fsyncs = scratch.fsyncs().await? - fsyncs_before;
    scratch.verify(loaded.committed).await?;
    Ok(Figures { fsyncs, commits_alone, loaded })
}

async fn open(
    configs: &[ParticipantConfig],
    kafka: &KafkaSettings,
) -> anyhow::Result<Vec<(Participant, OpenedResource)>> {
    let mut opened = Vec::new();
    for config in configs {
        let opening = config.opening(&kafka.prefix, None, false)?;
        let resource = OpenedResource::open(config, opening).await;
        let resource = resource.map_err(|error| services::not_opened(config, &error))?;
        opened.push((config.name.clone(), resource));
    }
    Ok(opened)
}
