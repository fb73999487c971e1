//! `suture coordinator` and `suture participant`: configuration, log, service, signal, drain.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use suture_participants::config::ParticipantConfig;
use suture_participants::opened::OpenedResource;
use suture_participants::resource::{OpenError, Unavailable};
use suture_topics::settings::KafkaSettings;
use tokio::sync::watch;

use crate::ConfigArg;
use crate::logging;
use crate::settings::Settings;

/// Arguments of a service.
#[derive(clap::Args)]
pub struct ServiceArgs {
    #[command(flatten)]
    config: ConfigArg,
}

/// `suture coordinator`.
pub fn coordinator(args: &ServiceArgs, format: logging::Format) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&args.config.config)?;
    logging::start(format, "info");
    let participants = settings.participant_names()?;
    block_on(async {
        let mut shutdown = signalled()?;
        // A participant without topics is no reason to stop: its transactions abort, and say so.
        tokio::select! {
            safe = crate::topics::refuse_unsafe(&settings.kafka, participants) => safe?,
            _ = shutdown.wait_for(|stop| *stop) => return Ok(ExitCode::SUCCESS),
        }
        suture_coordinator::service::run(settings.kafka, settings.coordinator, shutdown).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// `suture participant <name>`.
pub fn participant(
    settings: Settings,
    name: &str,
    create_tables: bool,
    format: logging::Format,
) -> anyhow::Result<ExitCode> {
    let participant = settings.participant(name)?;
    let fingerprint = settings.identity_key()?.map(|key| key.fingerprint());
    logging::start(format, "info");
    block_on(async {
        let shutdown = signalled()?;
        run_participant(settings.kafka, participant, fingerprint, create_tables, shutdown).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Opens the participant's database, once it is there, and serves it.
async fn run_participant(
    kafka: KafkaSettings,
    participant: ParticipantConfig,
    identity_fingerprint: Option<String>,
    create_tables: bool,
    mut shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut opening = participant.opening(&kafka.prefix, identity_fingerprint, create_tables)?;
    // A service fills no reference data, and its role need not be allowed to.
    opening.seeds.clear();
    let opened = tokio::select! {
        opened = OpenedResource::open_when_there(&participant, opening) => opened,
        _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
    };
    let resource = opened.map_err(|error| not_opened(&participant, &error))?;
    let ParticipantConfig { name, upkeep, .. } = participant;
    suture_participants::service::run(&kafka, &name, Arc::new(resource), upkeep, shutdown).await?;
    Ok(())
}

/// Why a participant's database is not opened, and what to do.
pub fn not_opened(participant: &ParticipantConfig, error: &OpenError) -> anyhow::Error {
    let place = match error {
        OpenError::Statement { .. } | OpenError::NoOperation { .. } | OpenError::ChangedOperation { .. } => {
            participant.file.display().to_string()
        }
        _ => format!("the database of {} ({})", participant.name, participant.database.place()),
    };
    match error {
        // What fills reference data is nothing that a participant's role need be allowed.
        OpenError::Lacks { place: seed, .. } if seed.starts_with("seed.") => {
            anyhow::anyhow!(
                "{place}: {error}: grant it, or name the owner of the tables in the URL for as long as you seed"
            )
        }
        OpenError::Lacks { .. } => anyhow::anyhow!("{place}: {error}: {}", gives_rights(participant.name.as_str())),
        error => anyhow::anyhow!("{place}: {error}{}", remedy(error)),
    }
}

/// How a participant's role comes to its rights.
pub fn gives_rights(name: &str) -> String {
    format!(
        "`suture participant init {name} --database ADMIN_URL --apply` gives its user what it needs; or grant it by hand"
    )
}

/// What a person may do about an error that is only a code.
pub fn remedy(error: &OpenError) -> &'static str {
    let code = match error {
        OpenError::Unavailable(Unavailable { code, .. }) => code.as_str(),
        OpenError::Schema { code } if ["42501", "1044", "1142"].contains(&code.as_str()) => {
            return ": this user may not create tables. If they are there, leave --create-tables out; else run the schema file as \
                    their owner, or with an owner's URL, and then `suture participant init NAME --database ADMIN_URL --apply`";
        }
        _ => return "",
    };
    match code {
        "connection" | "no answer in time" => {
            ": nothing answers there; see whether the server runs, and whether host and port are right and open to this machine"
        }
        "28P01" | "28000" => {
            ": the server refuses this user or his password; correct the URL, or the server's pg_hba.conf"
        }
        "1045" => ": the server refuses this user or his password; correct the URL, or create the account",
        "4151" | "3118" => {
            ": this account is locked; give it a password and unlock it, as `suture participant init` says"
        }
        "3D000" | "1049" => ": there is no such database; create it, or correct the URL",
        "1044" | "1142" => ": this user lacks a right; `suture participant init` prints those that it needs",
        "42501" => ": this user lacks a right; `suture participant init` prints those that it needs",
        "SQLite 14" => ": the file cannot be opened; check its path, or make it with `suture participant init`",
        "SQLite 26" => ": this file is no SQLite database; check its path",
        // A database that was moved; and all others that are read-only.
        "SQLite 1032" => ": the file was moved or replaced while it was open; put it back, and start again",
        "SQLite 8" | "SQLite 264" | "SQLite 520" | "SQLite 776" | "SQLite 1288" | "SQLite 1544" => {
            ": the file is read-only for this user; it must be allowed to write the file and in its folder, on a disk that is \
             mounted for writing"
        }
        "client" => ": the server asks for a password that the URL does not give, or it is no PostgreSQL",
        _ => "",
    }
}

/// How long a process that has ended waits for questions to Kafka that nobody waits for any more.
const LAST_QUESTIONS: Duration = Duration::from_secs(2);

/// Runs a service to its end on a runtime of its own.
pub fn block_on<T>(service: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let ended = runtime.block_on(service);
    runtime.shutdown_timeout(LAST_QUESTIONS);
    ended
}

/// Turns true at SIGTERM or SIGINT: the service drains. A second signal ends the process at once.
pub fn signalled() -> anyhow::Result<watch::Receiver<bool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (stop, stopped) = watch::channel(false);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        // The service may have ended by itself.
        let _ = stop.send(true);
        next().await;
        std::process::exit(130);
    });
    Ok(stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_goes_with_what_to_do() {
        let unavailable = |code: &str| OpenError::Unavailable(Unavailable::new("connecting", code));
        for (error, expected) in [
            (unavailable("connection"), "whether host and port are right"),
            (unavailable("no answer in time"), "see whether the server runs"),
            (unavailable("28P01"), "correct the URL"),
            (unavailable("SQLite 8"), "be allowed to write the file and in its folder"),
            (unavailable("SQLite 1544"), "be allowed to write the file and in its folder"),
            (unavailable("SQLite 1032"), "moved or replaced"),
            (OpenError::Schema { code: "42501".to_string() }, "leave --create-tables out"),
            (OpenError::Schema { code: "1142".to_string() }, "as their owner"),
            (OpenError::Schema { code: "42601".to_string() }, ""),
            (OpenError::NoLedger, ""),
        ] {
            let remedy = remedy(&error);
            assert!(remedy.contains(expected) && remedy.is_empty() == expected.is_empty(), "{error}{remedy}");
        }
    }
}
