//! `suture doctor`: one line for each thing that a deployment needs, whether the rest of it is up or not.
//!
//! ```text
//! configuration   the file
//! keys            the two secrets: there, long enough, for nobody else's eyes
//! rules           they compile; their participants and operations exist
//! brokers         they answer; how many
//! topics          settings, partitions and ids of each; the upstream topics
//! groups          members, what they have not read and since when, whose acknowledgements
//! databases       version, settings, rights, operations, the ledger, branches in doubt, incidents, foreign branches
//! clocks          how far those of databases and of Kafka's writers are from this machine's
//! ```
//!
//! Nothing is changed anywhere: it may be asked at any time. Each question has a bound, so a line comes for what does not answer too;
//! what could not be looked at because something before it is down says so. The order is always the same.
//!
//! The exit code: 0 all is well, 1 something should be looked at, 2 something keeps transactions from being decided or applied,
//! or is not safe.

mod behind;
mod databases;
mod files;
mod kafka;
mod line;

use std::process::ExitCode;

use crate::ConfigArg;
use crate::out;
use crate::services::block_on;
use crate::settings::Settings;

use line::{Line, State};

/// Arguments of `suture doctor`.
#[derive(clap::Args)]
pub struct DoctorArgs {
    /// One JSON document instead of lines.
    #[arg(long)]
    json: bool,
    /// Only what is not well.
    #[arg(long, short)]
    quiet: bool,
    /// For a laboratory: one copy of each record is enough.
    #[arg(long)]
    allow_single_broker: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// Looks at everything, and says what it has seen.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let lines = look(args);
    let worst = lines.iter().map(|line| line.state).max().unwrap_or(State::Ok);
    if args.json {
        out::line(line::json(&lines, worst))?;
    } else {
        let coloured = line::is_coloured();
        for line in lines.iter().filter(|line| !args.quiet || line.state != State::Ok) {
            out::line(line.text(coloured))?;
        }
        if !args.quiet {
            out::line(line::summary(&lines))?;
        }
    }
    Ok(ExitCode::from(match worst {
        State::Ok => 0,
        State::Unknown | State::Warn => 1,
        State::Bad => 2,
    }))
}

fn look(args: &DoctorArgs) -> Vec<Line> {
    let file = args.config.config.display().to_string();
    let settings = match Settings::load(&args.config.config) {
        Ok(settings) => settings,
        Err(error) => {
            let why = "nothing can be looked at without it";
            return vec![Line::bad("configuration", file, format!("{error:#}"), why, "correct the file")];
        }
    };
    let mut lines = vec![Line::ok("configuration", file, "read")];
    lines.extend(files::keys(&settings));
    let (of_rules, rules) = files::rules(&settings);
    lines.extend(of_rules);
    let looked = block_on(async {
        let configured: Vec<String> = settings.participants().map(str::to_string).collect();
        let databases = databases::look_at_all(&settings, &configured);
        let (kafka, databases) =
            tokio::join!(kafka::look(&settings, rules.as_ref(), args.allow_single_broker), databases,);
        Ok((kafka, databases))
    });
    match looked {
        Ok((kafka, databases)) => {
            let clocks = databases::clocks(&databases).into_iter().chain(kafka.clock.clone());
            let clocks: Vec<Line> = clocks.collect();
            lines.extend(kafka.lines(&databases));
            lines.extend(databases.into_iter().flat_map(|database| database.into_lines(kafka.letters)));
            lines.extend(clocks);
        }
        Err(error) => {
            lines.push(Line::bad("doctor", "runtime", format!("{error:#}"), "it cannot ask anybody", "try again"))
        }
    }
    lines
}
