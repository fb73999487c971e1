//! `suture participant <name>`: the service; what comes before it (`joining`); and what an operator does when a shard of it stands still: `lost`, `resolve`,
//! `skip`.
//!
//! The commands work on the participant's own database and write nothing to Kafka: the service tells the outcomes topic what
//! they have noted, now or at its next start. `docs/operations.md` says when to use which.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde::Serialize;
use suture_contract::ids::{Shard, Txid};
use suture_contract::messages::{Incident, IncidentKind, Settled, Verdict};
use suture_contract::topic_map::Topic;
use suture_participants::books::Books;
use suture_participants::envelope::read_decision;
use suture_participants::incidents::{self, Listed, Place, Refused, Said, Taken};
use suture_participants::opened::OpenedResource;
use suture_participants_core::envelope::Read;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::logs::Logs;
use crate::settings::Settings;
use crate::{ConfigArg, forgotten, joining, logging, out, services, user};

/// `init` and `check` have the name behind them, because it need not be configured yet.
const USAGE: &str = "suture participant [OPTIONS] <NAME>
       suture participant <init|check> [OPTIONS] <NAME>
       suture participant <NAME> <lost|resolve|skip> [OPTIONS]";

/// Arguments of `suture participant`.
#[derive(clap::Args)]
#[command(subcommand_negates_reqs = true, override_usage = USAGE)]
pub struct ParticipantArgs {
    /// Which of the configured participants.
    #[arg(required = true)]
    name: Option<String>,
    /// Create the business tables from the participant's `schema_file` where they are missing.
    #[arg(long)]
    create_tables: bool,
    #[command(flatten)]
    config: ConfigArg,
    #[command(subcommand)]
    command: Option<ParticipantCommand>,
}

#[derive(Subcommand)]
enum ParticipantCommand {
    /// Print the SQL that makes a database ready: the ledger and the least rights. An older ledger is brought up to date.
    Init(joining::InitArgs),
    /// Try every operation on the real tables, inside a transaction that is rolled back. Changes nothing; the exit code is 0 if
    /// all steps run (and, with --payload, if the vote would be yes).
    Check(joining::CheckArgs),
    /// List what a person must know or settle: lost commits, records that stopped a shard, branches finished by hand.
    #[command(override_usage = "suture participant <NAME> lost [OPTIONS]")]
    Lost(LostArgs),
    /// Say what became of a branch whose decision could not be obeyed. Its shard goes on then. Or of a commit whose ledger row
    /// somebody has deleted (`suture audit` finds it).
    ///
    /// Say `committed` after you have made its effect by hand (all others have it), `abandoned` if it is not there and will not be,
    /// or if it was there and you have undone it by hand. This changes the ledger's row and no business row, and it is recorded
    /// with your name.
    #[command(override_usage = "suture participant <NAME> resolve [OPTIONS] --as <HOW> --because <TEXT> <TXID>")]
    Resolve(ResolveArgs),
    /// Let a shard pass the one record that it stopped at, which decides about no branch of this participant.
    ///
    /// What can be read as a decision about one is refused: that is resolved.
    #[command(
        override_usage = "suture participant <NAME> skip [OPTIONS] --topic <TOPIC> --shard <NUMBER> --offset <NUMBER> \
                                --because <TEXT>"
    )]
    Skip(SkipArgs),
}

#[derive(clap::Args)]
struct LostArgs {
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct ResolveArgs {
    /// The txid that `lost` lists (k3f9q-3-1042).
    txid: Txid,
    /// How the branch is now.
    #[arg(long = "as", value_name = "HOW")]
    settled: HowLeft,
    #[command(flatten)]
    said: SaidArgs,
}

#[derive(clap::Args)]
struct SkipArgs {
    /// The topic's full name.
    #[arg(long)]
    topic: String,
    /// The partition.
    #[arg(long, value_name = "NUMBER")]
    shard: u16,
    /// The offset.
    #[arg(long, value_name = "NUMBER")]
    offset: u64,
    #[command(flatten)]
    said: SaidArgs,
}

#[derive(clap::Args)]
struct SaidArgs {
    /// Why, for whoever asks later: one line, and nothing about the patient.
    #[arg(long, value_name = "TEXT")]
    because: String,
    /// Who says so; the user's name, unless given.
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum HowLeft {
    Committed,
    Abandoned,
}

impl ParticipantArgs {
    /// Whether this is a command and not the service.
    pub fn only_prints(&self) -> bool {
        self.command.is_some()
    }
}

/// Serves, lists or records.
pub fn run(args: &ParticipantArgs, format: logging::Format) -> anyhow::Result<ExitCode> {
    let settings = || Settings::load(&args.config.config);
    let name = || args.name.as_deref().context("name the participant before the command: suture participant NAME lost");
    match &args.command {
        None => services::participant(settings()?, name()?, args.create_tables, format),
        Some(ParticipantCommand::Init(init)) => joining::init(init),
        Some(ParticipantCommand::Check(check)) => joining::check(check),
        Some(ParticipantCommand::Lost(lost)) => list(&settings()?, name()?, lost),
        Some(ParticipantCommand::Resolve(resolve)) => self::resolve(&settings()?, name()?, resolve),
        Some(ParticipantCommand::Skip(skip)) => self::skip(&settings()?, name()?, skip),
    }
}

/// Opens the participant's database and works on it, whatever is wrong with the operations. Its ledger must be there: who opens it
/// as the service does creates what is missing.
fn on_database<T>(
    settings: &Settings,
    name: &str,
    work: impl AsyncFnOnce(&OpenedResource) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let participant = settings.participant(name)?;
    let fingerprint = settings.identity_key()?.map(|key| key.fingerprint());
    let opening = participant.opening(&settings.kafka.prefix, fingerprint, false)?.without_operations();
    services::block_on(async {
        let open = async {
            drop(Books::open(&participant, &opening).await?);
            OpenedResource::open(&participant, opening).await
        };
        work(&open.await.map_err(|error| services::not_opened(&participant, &error))?).await
    })
}

// ---- lost ------------------------------------------------------------------------------------------------------------

fn list(settings: &Settings, name: &str, args: &LostArgs) -> anyhow::Result<ExitCode> {
    let listed = on_database(settings, name, async |resource| Ok(incidents::list(resource).await?))?;
    if args.json {
        for listed in &listed {
            out::line(serde_json::to_string(&Line::of(listed))?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if listed.is_empty() {
        out::line(format_args!("nothing is lost at {name}, and nobody has finished a branch by hand"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let header = ["SINCE", "WHAT", "ABOUT", "BUSINESS KEY", "DETAIL", "SETTLED"].map(str::to_string);
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(listed.iter().map(row)).collect();
    let widths: [usize; 5] = std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        out::line(format_args!("{}  {}", cells.collect::<Vec<_>>().join("  "), row[5]))?;
    }
    let remedies: Vec<String> = listed.iter().filter_map(|listed| remedy(name, listed)).collect();
    if !remedies.is_empty() {
        out::line("\nTheir shards stand still until somebody has looked into it and says:")?;
    }
    for remedy in remedies {
        out::line(format_args!("  {remedy}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// An incident as `--json` shows it.
#[derive(Serialize)]
struct Line<'a> {
    since: String,
    open: bool,
    incident: &'a Incident,
    #[serde(skip_serializing_if = "Option::is_none")]
    settled_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settled: Option<&'a Incident>,
}

impl<'a> Line<'a> {
    fn of(listed: &'a Listed) -> Self {
        let settled = listed.settled.as_ref();
        Self {
            since: at(listed.since),
            open: listed.is_open(),
            incident: &listed.incident,
            settled_at: settled.map(|(_, since)| at(*since)),
            settled: settled.map(|(settled, _)| settled),
        }
    }
}

fn row(listed: &Listed) -> [String; 6] {
    let Listed { incident, since, settled, .. } = listed;
    let Incident { what, txid, origin, business_key, outcome, code, .. } = incident;
    let about = txid.map(|txid| txid.to_string()).or_else(|| origin.as_ref().map(ToString::to_string));
    let decision = outcome.map(|outcome| match outcome {
        Verdict::Commit => "commit".to_string(),
        Verdict::Abort => "abort".to_string(),
    });
    let code = code.as_ref().map(ToString::to_string);
    let left = incident.settled.map(|settled| settled.as_str().to_string());
    let settled = settled.as_ref().map(|(settled, _)| {
        let Incident { what, settled, who, because, .. } = settled;
        let how = settled.map_or_else(|| what.as_str().to_string(), |settled| settled.as_str().to_string());
        format!("{how} by {}: {}", who.as_deref().unwrap_or("-"), because.as_deref().unwrap_or("-"))
    });
    let settled = settled.unwrap_or_else(|| if listed.is_open() { "no".to_string() } else { "-".to_string() });
    [
        at(*since),
        what.as_str().to_string(),
        about.unwrap_or_else(dash),
        business_key.as_ref().map_or_else(dash, ToString::to_string),
        decision.or(code).or(left).unwrap_or_else(dash),
        settled,
    ]
}

/// The command that settles it.
fn remedy(name: &str, listed: &Listed) -> Option<String> {
    let Incident { what, txid, origin, .. } = listed.is_open().then_some(&listed.incident)?;
    match what {
        IncidentKind::Lost => Some(format!(
            "suture participant {name} resolve {} --as committed|abandoned --because TEXT",
            txid.as_ref()?
        )),
        IncidentKind::Contradiction => {
            Some(format!("suture participant {name} resolve {} --as abandoned --because TEXT", txid.as_ref()?))
        }
        IncidentKind::OtherHash | IncidentKind::Unreadable => {
            let origin = origin.as_ref()?;
            let (topic, shard, offset) = (&origin.topic, origin.partition, origin.offset);
            Some(format!(
                "suture participant {name} skip --topic {topic} --shard {shard} --offset {offset} --because TEXT"
            ))
        }
        IncidentKind::FinishedByHand | IncidentKind::Resolved | IncidentKind::Skipped => None,
    }
}

fn dash() -> String {
    "-".to_string()
}

fn at(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| dash())
}

// ---- resolve, skip ---------------------------------------------------------------------------------------------------

fn resolve(settings: &Settings, name: &str, args: &ResolveArgs) -> anyhow::Result<ExitCode> {
    let settled = match args.settled {
        HowLeft::Committed => Settled::Committed,
        HowLeft::Abandoned => Settled::Abandoned,
    };
    let said = said(&args.said)?;
    let resolved = on_database(settings, name, async |resource| {
        Ok(incidents::resolve(resource, args.txid, settled, said.clone()).await)
    })?;
    let (taken, and_so) = match resolved {
        Err(Refused::NothingThere(_)) => {
            let forgotten = forgotten::look(settings, name, args.txid)?;
            let taken = on_database(settings, name, async |resource| {
                Ok(incidents::resolve_forgotten(resource, &forgotten, settled, said).await?)
            })?;
            (taken, NOT_MISSED)
        }
        resolved => (resolved?, GOES_ON),
    };
    let (txid, how) = (args.txid, settled.as_str());
    out::line(format_args!("{txid} is {how} at {name} by your word; {and_so}"))?;
    if taken == Taken::WithoutKey {
        out::line(WITHOUT_KEY)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn skip(settings: &Settings, name: &str, args: &SkipArgs) -> anyhow::Result<ExitCode> {
    let said = said(&args.said)?;
    let participant = settings.participant(name)?.name;
    let topic = match Topic::parse(&args.topic, &settings.kafka.prefix) {
        Some(topic @ Topic::Decisions) => topic,
        Some(topic @ Topic::Prepare(_)) if topic == Topic::Prepare(participant.clone()) => topic,
        _ => {
            let own = [Topic::Prepare(participant), Topic::Decisions].map(|topic| topic.name(&settings.kafka.prefix));
            bail!("{}: a shard of {name} stops at records of {} only", args.topic, own.join(" and "))
        }
    };
    let mut logs = Logs::open(&settings.kafka, "participant")?;
    let shard = Shard(args.shard);
    let place = Place { topic: args.topic.clone(), letters: logs.letters(&topic)?, shard, offset: args.offset };
    let mut record = None;
    logs.read(&topic, shard, args.offset, |found| {
        record = (found.offset == args.offset).then(|| found.clone());
        // The first one is it, or it is gone.
        false
    })?;
    let record = record.with_context(|| format!("{}/{shard}/{}: there is no such record", args.topic, args.offset))?;
    let is_decision = match topic {
        Topic::Decisions => match read_decision(&record, &participant) {
            Read::Ours(decision) => Some(decision.txid),
            Read::Stop(_) => None,
            Read::Passed | Read::Odd(_) => {
                bail!("{}/{shard}/{}: this version passes it by itself; start {name} anew", args.topic, args.offset)
            }
        },
        _ => None,
    };
    on_database(settings, name, async |resource| Ok(incidents::skip(resource, &place, is_decision, said).await?))?;
    out::line(format_args!("{}/{shard}/{} is passed at {name} by your word; {GOES_ON}", args.topic, args.offset))?;
    Ok(ExitCode::SUCCESS)
}

const GOES_ON: &str = "the shard goes on within seconds, or at the service's next start";
const WITHOUT_KEY: &str =
    "its row has no business key: a branch in doubt holds that, and its decision may stand behind this one";
const NOT_MISSED: &str = "the ledger had no commit of it, and no shard had stopped for that";

fn said(args: &SaidArgs) -> anyhow::Result<Said> {
    let who = match &args.who {
        Some(who) => who.clone(),
        None => user::name()?,
    };
    Said::new(&who, &args.because).context("--who and --because")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use suture_participants::install::{Script, Wanted};

    use super::*;

    const BANK: &str = r#"
name = "bank"
mode = "reserve"
[database]
kind = "sqlite"
path = "bank.sqlite"
[operation.put]
reserve = [{ sql = "insert into item (txid) values (:txid)", rows = 1 }]
confirm = [{ sql = "update item set done = 1 where txid = :txid", rows = 1 }]
cancel = [{ sql = "delete from item where txid = :txid", rows = 1 }]
"#;

    /// A wrong path must not look like a database where nothing is lost.
    #[test]
    fn an_operator_makes_no_ledger_by_looking() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let settings = configured(folder.path());
        let refused = || format!("{:#}", list(&settings, "bank", &LostArgs { json: false }).unwrap_err());
        assert!(refused().contains("the file cannot be opened; check its path"), "{}", refused());
        assert!(!at("bank.sqlite").exists());
        std::fs::write(at("bank.sqlite"), "").unwrap();
        assert!(refused().contains("there is no ledger in this database"), "{}", refused());
        assert!(std::fs::read(at("bank.sqlite")).unwrap().is_empty());
    }

    /// Who is called at night must come to the ledger, whatever somebody has done to a table or a template.
    #[test]
    fn an_operator_works_while_no_operation_fits_the_tables() {
        let folder = tempfile::tempdir().unwrap();
        let settings = configured(folder.path());
        let config = settings.participant("bank").unwrap();
        let opening = config.opening(&settings.kafka.prefix, None, false).unwrap();
        let wanted = Wanted { database: &config.database, opening: &opening, role: None };
        services::block_on(async { Ok(Script::of(&wanted).await?.run(&wanted).await?) }).unwrap();
        let refused = services::block_on(async { Ok(OpenedResource::open(&config, opening.clone()).await?) });
        assert!(refused.err().unwrap().to_string().contains("does not fit the tables"));
        assert_eq!(list(&settings, "bank", &LostArgs { json: false }).unwrap(), ExitCode::SUCCESS);
    }

    fn configured(folder: &std::path::Path) -> Settings {
        let kafka = "[kafka]\nbootstrap = \"localhost:9092\"\nprefix = \"suture\"\n";
        std::fs::write(folder.join("suture.toml"), format!("{kafka}[participants]\nbank = \"bank.toml\"")).unwrap();
        std::fs::write(folder.join("bank.toml"), BANK).unwrap();
        Settings::load(&folder.join("suture.toml")).unwrap()
    }

    #[test]
    fn a_usage_line_says_where_the_name_stands() {
        let mut command = crate::Cli::command();
        command.build();
        let participant = command.find_subcommand_mut("participant").unwrap();
        for (word, expected) in [
            ("init", "suture participant init [OPTIONS] <NAME>"),
            ("check", "suture participant check [OPTIONS] <NAME>"),
            ("lost", "suture participant <NAME> lost [OPTIONS]"),
            ("resolve", "suture participant <NAME> resolve [OPTIONS] --as"),
            ("skip", "suture participant <NAME> skip [OPTIONS] --topic"),
        ] {
            let usage = participant.find_subcommand_mut(word).unwrap().render_usage().to_string();
            assert!(usage.starts_with(&format!("Usage: {expected}")), "{usage}");
        }
    }
}
