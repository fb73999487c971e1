//! `suture seed`: reference data for the participants' databases, derived from the very events that need it.
//!
//! Seeds are rules (see `compose/config/seeds.toml`) whose operations are the participants' `[seed.<name>]`. Only what is
//! missing is inserted, so it may be done again at any time. For demonstrations and tests: who runs a hospital has its
//! patients already.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::value::RawValue;
use suture_contract::ids::Participant;
use suture_coordinator_core::ingest::rules::Rules;
use suture_coordinator_core::ingest::{Event, Keys, Mapped, map};
use suture_participants::opened::OpenedResource;
use suture_participants::resource::Resource;

use crate::settings::Settings;
use crate::{ConfigArg, demo, out, services};

const DEMO_SEEDS: &str = include_str!("../config/seeds.toml");

/// The events of a seed stand in no topic.
const TOPIC: &str = "seed";

/// Arguments of `suture seed`.
#[derive(clap::Args)]
pub struct SeedArgs {
    /// Events, one FHIR transaction Bundle a line. Without it: the synthetic surgeries that come with the program.
    #[arg(long, value_name = "FILE.ndjson")]
    events: Option<PathBuf>,
    /// Rules whose operations are the participants' seeds. Without it: those of the demo.
    #[arg(long, value_name = "FILE.toml")]
    seeds: Option<PathBuf>,
    /// Create the business tables from each participant's `schema_file` where they are missing.
    #[arg(long)]
    create_tables: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// Seeds the databases of all participants that have a file of their own in the configuration.
pub fn run(args: &SeedArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&args.config.config)?;
    let seeds = match &args.seeds {
        Some(file) => Seeds(crate::settings::load_rules(file)?.reading(TOPIC)),
        None => Seeds::of_demo()?,
    };
    let keys = settings.keys()?;
    let events = demo::read_events(args.events.as_deref())?;
    services::block_on(async {
        for name in settings.participants() {
            let config = settings.participant(name)?;
            let fingerprint = Some(keys.identity.fingerprint());
            let opening = config.opening(&settings.kafka.prefix, fingerprint, args.create_tables)?;
            let opened = OpenedResource::open(&config, opening).await;
            let resource = opened.map_err(|error| services::not_opened(&config, &error))?;
            let rows = seeds.apply(&resource, &config.name, &keys, &events).await?;
            out::line(format_args!("{name}: {rows} rows inserted"))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Rules that make reference data of events.
pub struct Seeds(Rules);

impl Seeds {
    /// Those that come with the program.
    pub fn of_demo() -> anyhow::Result<Self> {
        Ok(Self(Rules::parse(DEMO_SEEDS).context("seeds.toml")?.reading(TOPIC)))
    }

    /// Puts a participant's rows into its database. Answers how many were missing.
    pub async fn apply(
        &self,
        resource: &OpenedResource,
        participant: &Participant,
        keys: &Keys,
        events: &[Vec<u8>],
    ) -> anyhow::Result<u64> {
        let mut payloads: BTreeMap<String, Vec<Box<RawValue>>> = BTreeMap::new();
        for event in events {
            let event = Event { topic: TOPIC, partition: 0, offset: 0, value: Some(event) };
            let Mapped::Request { request, .. } = map(&self.0, keys, &event) else { continue };
            for branch in request.branches.into_iter().filter(|branch| branch.participant == *participant) {
                payloads.entry(branch.operation).or_default().push(branch.payload);
            }
        }
        let mut inserted = 0;
        for (seed, payloads) in payloads {
            inserted += resource.seed(seed, payloads).await.with_context(|| participant.to_string())?;
        }
        Ok(inserted)
    }
}
