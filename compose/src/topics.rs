//! `suture topics plan | apply | check`.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use suture_contract::ids::Participant;
use suture_contract::topic_map::Topic;
use suture_topics::admin;
use suture_topics::failure::until_answered;
use suture_topics::plan::{Finding, Severity, Wanted, is_safe};
use suture_topics::probe::Probe;
use suture_topics::settings::KafkaSettings;

use crate::ConfigArg;
use crate::settings::Settings;

/// Arguments of `suture topics`.
#[derive(clap::Args)]
pub struct TopicsArgs {
    #[command(subcommand)]
    command: TopicsCommand,
}

#[derive(Subcommand)]
enum TopicsCommand {
    /// Show what is there, what is missing and what is wrong; changes nothing.
    Plan(PlanArgs),
    /// Create what is missing, unless something is wrong; never alters a topic that is there.
    Apply(PlanArgs),
    /// Exit with 0 only if every topic is there and safe.
    Check(PlanArgs),
}

#[derive(clap::Args)]
struct PlanArgs {
    /// Participants beside those that the configuration names.
    #[arg(long = "participant", value_name = "NAME")]
    participants: Vec<Participant>,
    /// For a laboratory: one copy of each record is enough.
    #[arg(long)]
    allow_single_broker: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// Plans, applies or checks. The exit code is 0 if every topic is there and safe; for `plan` also if some are missing.
pub fn run(args: &TopicsArgs) -> anyhow::Result<ExitCode> {
    let (args, apply, tolerated) = match &args.command {
        TopicsCommand::Plan(args) => (args, false, Severity::Missing),
        TopicsCommand::Apply(args) => (args, true, Severity::Advice),
        TopicsCommand::Check(args) => (args, false, Severity::Advice),
    };
    let settings = Settings::load(&args.config.config)?;
    let mut participants = settings.participant_names()?;
    participants.extend(args.participants.iter().cloned());
    participants.sort();
    participants.dedup();
    if participants.is_empty() {
        bail!("no participant is named: add them to [participants] or to the rules, or use --participant NAME");
    }
    let allow_single_broker = args.allow_single_broker;
    let wanted = Wanted { settings: &settings.kafka, participants: &participants, allow_single_broker };
    let before = admin::plan(wanted)?;
    let findings = if apply { admin::apply(wanted)? } else { before.clone() };
    for finding in &findings {
        let was_missing = |known: &&Finding| known.subject == finding.subject && known.severity == Severity::Missing;
        let created = finding.severity < Severity::Missing && before.iter().any(|known| was_missing(&known));
        println!("{finding}{}", if created { " (created)" } else { "" });
    }
    let wrong = findings.iter().filter(|finding| finding.severity == Severity::Wrong).count();
    if apply && wrong > 0 {
        println!("nothing was created, because {wrong} finding(s) are WRONG");
    }
    let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Fine);
    Ok(if worst <= tolerated { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Refuses to serve on topics that would break safety; what is merely missing is the service's own error. Participants that
/// have a votes topic are served, so theirs are looked at beside those that the configuration names.
/// Asks until the brokers answer.
pub async fn refuse_unsafe(settings: &KafkaSettings, participants: Vec<Participant>) -> anyhow::Result<()> {
    let settings = settings.clone();
    let findings = until_answered(move || {
        let mut served: BTreeSet<Participant> = participants.iter().cloned().collect();
        for name in Probe::start(&settings)?.topics()?.keys() {
            if let Some(Topic::Votes(participant)) = Topic::parse(name, &settings.prefix) {
                served.insert(participant);
            }
        }
        let participants: Vec<Participant> = served.into_iter().collect();
        // One copy of each record is the operator's choice, made when the topics were applied.
        admin::plan(Wanted { settings: &settings, participants: &participants, allow_single_broker: true })
    })
    .await?;
    let wrong: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Wrong).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = wrong.iter().map(|finding| format!("  {finding}")).collect();
    bail!("the topics would break safety:\n{}", lines.join("\n"))
}

/// The topics of a demo on a cluster, its upstream topic with them.
pub fn create_for_demo(
    kafka: &KafkaSettings,
    participants: &[Participant],
    upstream: &str,
    partitions: u16,
) -> anyhow::Result<()> {
    let findings = admin::apply(Wanted { settings: kafka, participants, allow_single_broker: true })
        .with_context(|| format!("--bootstrap {}: creating the topics {}.*", kafka.bootstrap, kafka.prefix))?;
    if !is_safe(&findings) {
        let wrong = findings.iter().filter(|finding| finding.severity > Severity::Advice);
        let lines: Vec<_> = wrong.map(|finding| format!("  {finding}")).collect();
        bail!("the demo's topics are not as they must be:\n{}", lines.join("\n"));
    }
    admin::create_upstream(kafka, upstream, partitions).with_context(|| format!("creating {upstream}"))
}
