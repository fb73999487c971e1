//! `suture participant init` and `suture participant check`: how a database joins, by configuration alone.
//!
//! ```text
//! init NAME --database URL      SQL on standard output: the ledger (or what brings an older one up to date), least rights
//! init NAME --apply             the same, run
//! init NAME --offline           the SQL for a database without a ledger, which is not looked at
//! init NAME --toml              a participant's file to begin with
//! check NAME                    every operation, tried and rolled back
//! ```
//!
//! Standard output holds what is piped on, with what was found as comments; what was run says so on standard error.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::value::RawValue;
use suture_contract::ids::Participant;
use suture_participants::config::{Database, ParticipantConfig};
use suture_participants::install::{Script, Wanted};
use suture_participants::resource::{OpenError, Opening};
use suture_participants::trial::{StepResult, Tried, TriedStep, Wish, try_operations};
use suture_participants_core::gid::Owner;
use suture_participants_core::operations::{Mode, Rows};
use suture_participants_core::sql::Dialect;

use crate::ConfigArg;
use crate::services::{block_on, gives_rights, not_opened, remedy};
use crate::settings::Settings;

/// Arguments of `suture participant init`.
#[derive(clap::Args)]
pub struct InitArgs {
    /// Which participant. It need not be configured yet.
    name: Participant,
    /// The database as somebody reaches it who may create tables and grant rights: postgres://.., mysql://.., or the path of a
    /// SQLite file. Default: as the participant itself reaches it.
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// Who the participant logs in as (MariaDB: user@host). Default: who its configuration names, if that is somebody else than in
    /// --database.
    #[arg(long)]
    role: Option<String>,
    /// Run it, instead of printing it.
    #[arg(long, conflicts_with = "toml")]
    apply: bool,
    /// Print it without looking at the database: for one that holds no ledger yet.
    #[arg(long, conflicts_with_all = ["apply", "toml"])]
    offline: bool,
    /// Print a participant's TOML file to begin with, instead of SQL.
    #[arg(long)]
    toml: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// Arguments of `suture participant check`.
#[derive(clap::Args)]
pub struct CheckArgs {
    /// Which of the configured participants.
    name: String,
    /// Only this operation.
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
    /// The payload of an event, as `suture ingest explain --json` shows it, in place of made-up values.
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArg,
}

const NOT_LOOKED_AT: &str = "the database could not be looked at, so there is no script (--offline prints one for a database that \
                             holds no ledger yet)";

/// Prints the SQL, or runs it.
pub fn init(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let InitArgs { name, .. } = args;
    let settings = Settings::load(&args.config.config)?;
    let configured = match settings.participants().any(|known| known == name.as_str()) {
        true => Some(settings.participant(name.as_str())?),
        false => None,
    };
    let database = match (&args.database, &configured) {
        (Some(url), _) => Database::of_url(url)?,
        (None, Some(config)) => config.database.clone(),
        (None, None) => bail!(
            "{name} is not configured yet, so say where its database is: --database postgres://.., mysql://.. or the path of a \
             SQLite file"
        ),
    };
    if args.toml {
        print!("{}", first_file(name, database.dialect()));
        return Ok(ExitCode::SUCCESS);
    }
    let fingerprint = settings.identity_key()?.map(|key| key.fingerprint());
    let opening = match &configured {
        Some(config) if config.database.dialect() != database.dialect() => {
            bail!("--database is of another kind than database.kind in {}", config.file.display())
        }
        Some(config) => config.opening(&settings.kafka.prefix, fingerprint, false)?,
        None => Opening {
            mode: if database.dialect() == Dialect::Sqlite { Mode::Reserve } else { Mode::Xa },
            owner: Owner { deployment: settings.kafka.prefix.clone(), participant: name.clone() },
            identity_fingerprint: fingerprint,
            schema: None,
            operations: BTreeMap::new(),
            seeds: BTreeMap::new(),
        },
    };
    // Who sets it up needs no grants from himself.
    let configured_role = configured
        .as_ref()
        .and_then(|config| config.database.user())
        .filter(|user| database.user().as_ref() != Some(user));
    let role = args.role.clone().or(configured_role);
    let wanted = Wanted { database: &database, opening: &opening, role: role.as_deref() };
    block_on(async {
        let place = format!("the database of {name} ({})", database.place());
        let failed = |error: OpenError| anyhow::anyhow!("{place}: {error}{}", remedy(&error));
        let mut script = match args.offline {
            true => Script::unseen(&wanted).map_err(failed)?,
            false => Script::of(&wanted).await.map_err(|error| match error {
                OpenError::Unavailable(_) => failed(error).context(NOT_LOOKED_AT),
                _ => failed(error),
            })?,
        };
        if configured.is_none() {
            script.notes.push(format!("{name} is not configured: its rights on tables of the business are left out"));
        }
        if !args.apply {
            if args.offline {
                eprintln!("suture: {place}: not looked at: whether it holds a ledger already, and which tables");
            }
            print!("{}", script.text());
            return Ok(ExitCode::SUCCESS);
        }
        for note in &script.notes {
            eprintln!("suture: {place}: {note}");
        }
        script.run(&wanted).await.map_err(failed)?;
        eprintln!("suture: {place}: {} statements were run", script.statements.len());
        Ok(ExitCode::SUCCESS)
    })
}

/// A file that is right as soon as it has an operation.
fn first_file(name: &Participant, dialect: Dialect) -> String {
    let variable = format!("SUTURE_{}_URL", name.as_str().to_uppercase().replace('-', "_"));
    let (mode, database, steps) = match dialect {
        Dialect::Sqlite => ("reserve", format!("kind = \"sqlite\"\npath = \"{name}.sqlite\""), "reserve"),
        Dialect::Postgres => ("xa", format!("kind = \"postgres\"\nurl_env = \"{variable}\""), "prepare"),
        Dialect::Mariadb => ("reserve", format!("kind = \"mariadb\"\nurl_env = \"{variable}\""), "reserve"),
    };
    let rest = match mode {
        "xa" => "",
        _ => {
            "#\n# [[operation.OPERATION.confirm]]          # on commit; knows :txid alone\n# sql = \"update .. where txid = :txid\"\n\
             # rows = 1\n#\n# [[operation.OPERATION.cancel]]           # on abort; knows :txid alone\n\
             # sql = \"delete from .. where txid = :txid\"\n# rows = 1\n"
        }
    };
    format!(
        "name = \"{name}\"\nmode = \"{mode}\"\n\n[database]\n{database}\n\n# What it does, by the name that a rule calls it by. Take the \
         comment signs away.\n# [operation.OPERATION.parameters]\n# id = {{ path = \"/id\", type = \"text\" }}\n#\n\
         # [[operation.OPERATION.{steps}]]\n# sql = \"insert into .. (id, txid) values (:id, :txid)\"\n# rows = 1\n\
         # unique = \"DUPLICATE\"\n{rest}"
    )
}

/// Tries operations.
pub fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&args.config.config)?;
    let config = settings.participant(&args.name)?;
    let wish = wish(args, &config)?;
    let opening = config.opening(&settings.kafka.prefix, None, false)?;
    let is_sample = wish.payload.is_none();
    block_on(async {
        let tried = try_operations(&config, opening, wish).await.map_err(|error| not_opened(&config, &error))?;
        for operation in &tried {
            tell(operation, is_sample);
        }
        println!("nothing was changed: all of it was rolled back");
        if tried.iter().any(Tried::is_denied) {
            println!("{} lacks rights: {}", config.name, gives_rights(config.name.as_str()));
        }
        let fails =
            |tried: &Tried| !tried.runs() || (!is_sample && tried.refusal().is_some()) || tried.deferred.is_some();
        Ok(if tried.iter().any(fails) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}

fn wish(args: &CheckArgs, config: &ParticipantConfig) -> anyhow::Result<Wish> {
    let known = || config.operations.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(name) = args.operation.as_ref().filter(|name| !config.operations.contains_key(*name)) {
        bail!("{} has no operation {name}: it has {}", config.file.display(), known());
    }
    let Some(file) = &args.payload else { return Ok(Wish { operation: args.operation.clone(), payload: None }) };
    if args.operation.is_none() && config.operations.len() > 1 {
        bail!("--payload is of one operation: add --operation NAME ({})", known());
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("{}: cannot be read", file.display()))?;
    let payload = serde_json::from_str::<Box<RawValue>>(&text)
        .with_context(|| format!("{}: is no JSON; give the payload that the operation gets", file.display()))?;
    Ok(Wish { operation: args.operation.clone(), payload: Some(payload) })
}

fn tell(tried: &Tried, is_sample: bool) {
    match &tried.sample {
        Some(sample) => println!("{} with made-up values: {sample}", tried.operation),
        None => println!("{} with the payload that was given", tried.operation),
    }
    if let Some((code, parameter)) = &tried.unusable {
        println!(
            "  the payload cannot be used: {code}, parameter {}",
            parameter.as_deref().unwrap_or("(the whole of it)")
        );
    }
    let width = tried.steps.iter().map(|step| step.place.len()).max().unwrap_or(0);
    for step in &tried.steps {
        println!("  {:width$}  {}{}", step.place, said(step), types(step));
    }
    if let Some(code) = &tried.deferred {
        println!("  at the end of the transaction: a deferred constraint fails ({code})");
    }
    match (tried.refusal(), is_sample) {
        (_, _) if !tried.runs() => println!("  it does not run"),
        (None, _) => println!("  the vote: yes"),
        (Some(code), false) => println!("  the vote: no ({code})"),
        (Some(code), true) => println!("  it runs; the vote on these made-up values would be no ({code})"),
    }
}

fn said(step: &TriedStep) -> String {
    let rows = |rows: u64| if rows == 1 { "1 row".to_string() } else { format!("{rows} rows") };
    match &step.result {
        StepResult::Ran(count) => rows(*count),
        StepResult::Refuses { code, because } => match step.expected {
            Rows::Exactly(expected) if because.ends_with("rows") => {
                format!("{because} where {expected} must be: refuses with {code}")
            }
            _ => format!("refuses with {code} ({because})"),
        },
        StepResult::Broken(said) => format!("DOES NOT RUN: {said}"),
        StepResult::Denied(said) => format!("MAY NOT RUN: {said}"),
    }
}

fn types(step: &TriedStep) -> String {
    match step.parameters.is_empty() {
        true => String::new(),
        false => format!("  [{}]", step.parameters.join(", ")),
    }
}
