//! Every configured database.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use suture_contract::ids::LogLetters;
use suture_participants::incidents::Listed;
use suture_participants::inspect::{Inspection, Ledger, inspect};
use suture_participants::needs::Verdict;
use suture_participants::resource::{OpenError, Unavailable};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;

use super::line::Line;
use crate::services::remedy;
use crate::settings::Settings;

/// How long a database may take for all of its answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// A branch that waits longer has met something that lasts.
const LONG_IN_DOUBT: Duration = Duration::from_secs(60);

/// Clocks that are further apart make ages and times say something else than they seem to.
pub const FAR_APART: Duration = Duration::from_secs(5);

const GROUP: &str = "database";

/// A participant's database.
pub struct Looked {
    /// Whose.
    pub name: String,
    place: String,
    seen: Seen,
    /// This machine's clock when it was seen.
    now_ms: i64,
}

enum Seen {
    /// Its file cannot be used.
    Misconfigured(String),
    /// It does not answer.
    Away(Unavailable),
    /// It answers.
    There(Box<Inspection>),
}

/// Looks at all of them at once.
pub async fn look_at_all(settings: &Settings, names: &[String]) -> Vec<Looked> {
    let mut asked = Vec::new();
    for name in names {
        let prepared = settings.participant(name).and_then(|config| {
            let fingerprint = settings.identity_key().ok().flatten().map(|key| key.fingerprint());
            let opening = config.opening(&settings.kafka.prefix, fingerprint, false)?;
            Ok((config, opening))
        });
        // As tasks, so that one which does not answer holds up nobody.
        asked.push(tokio::spawn(async move {
            match prepared {
                Err(error) => (String::new(), Seen::Misconfigured(format!("{error:#}"))),
                Ok((config, opening)) => {
                    let seen = timeout(PATIENCE, inspect(&config, &opening)).await;
                    let seen = seen.unwrap_or_else(|_| Err(Unavailable::new("looking at it", "no answer in time")));
                    let seen = seen.map_or_else(Seen::Away, |inspection| Seen::There(Box::new(inspection)));
                    (config.database.place(), seen)
                }
            }
        }));
    }
    let mut looked = Vec::new();
    for (name, asked) in names.iter().zip(asked) {
        let lost = |_| (String::new(), Seen::Away(Unavailable::new("looking at it", "the task ended")));
        let (place, seen) = asked.await.unwrap_or_else(lost);
        looked.push(Looked { name: name.clone(), place, seen, now_ms: now_ms() });
    }
    looked
}

/// How far each database's clock is from this machine's.
pub fn clocks(databases: &[Looked]) -> Vec<Line> {
    databases
        .iter()
        .map(|Looked { name, seen, now_ms, .. }| {
            let subject = format!("database of {name}");
            let Seen::There(inspection) = seen else { return Line::unknown("clocks", subject, "it does not answer") };
            let Some(its_ms) = inspection.now_ms else {
                return Line::unknown("clocks", subject, "it does not tell its time");
            };
            let apart = Duration::from_millis(its_ms.abs_diff(*now_ms));
            let said = format!("{:.1} s from this machine's", apart.as_secs_f64());
            match apart > FAR_APART {
                false => Line::ok("clocks", subject, said),
                true => Line::warn(
                    "clocks",
                    subject,
                    said,
                    "ages and times of logs cannot be compared",
                    "run a time service (chrony) on both",
                ),
            }
        })
        .collect()
}

/// Since 1970.
pub fn now_ms() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

impl Looked {
    /// The name of its ledger, if it could be read.
    pub fn ledger_id(&self) -> Option<&str> {
        match &self.seen {
            Seen::There(inspection) => inspection.ledger.as_ref().ok().map(|ledger| ledger.id.as_str()),
            Seen::Misconfigured(_) | Seen::Away(_) => None,
        }
    }

    /// `letters`: of the requests topic that is there now.
    pub fn into_lines(self, letters: Option<LogLetters>) -> Vec<Line> {
        let Self { name, place, seen, .. } = self;
        let inspection = match seen {
            Seen::Misconfigured(problem) => {
                return vec![Line::bad(GROUP, name, problem, "its participant does not start", "correct the file")];
            }
            Seen::Away(unavailable) => {
                let mend = remedy(&OpenError::Unavailable(unavailable.clone()));
                let mend = match mend.trim_start_matches([':', ' ']) {
                    "" => "start it, or correct its URL",
                    mend => mend,
                };
                let why = "its transactions expire and abort; what is in doubt there stays so";
                return vec![Line::bad(GROUP, name, format!("{place}: {unavailable}"), why, mend)];
            }
            Seen::There(inspection) => *inspection,
        };
        let mut lines = vec![Line::ok(GROUP, name.as_str(), format!("{place}: {} answers", inspection.version))];
        lines.extend(settings(&name, &inspection));
        lines.extend(rights(&name, &inspection));
        lines.extend(operations(&name, &inspection));
        match &inspection.ledger {
            Ok(ledger) => lines.extend(of_ledger(&name, ledger, letters)),
            Err(error) => lines.push(no_ledger(&name, error)),
        }
        lines
    }
}

fn settings(name: &str, inspection: &Inspection) -> Vec<Line> {
    let mut lines = Vec::new();
    for need in &inspection.needs {
        let what = format!("{} is {}", need.setting, need.value);
        match &need.verdict {
            Verdict::Met => {}
            Verdict::Advice { why, mend } => lines.push(Line::warn(GROUP, format!("{name} settings"), what, why, mend)),
            Verdict::Unmet { why, mend } => lines.push(Line::bad(GROUP, format!("{name} settings"), what, why, mend)),
        }
    }
    if lines.is_empty() {
        let said = format!("all {} are as they must be", inspection.needs.len());
        lines.push(Line::ok(GROUP, format!("{name} settings"), said));
    }
    lines
}

fn rights(name: &str, inspection: &Inspection) -> Vec<Line> {
    let subject = format!("{name} rights");
    if inspection.lacks.is_empty() {
        return vec![Line::ok(GROUP, subject, "all that it needs")];
    }
    let lacks = inspection.lacks.join("; ");
    let mend = format!("suture participant init {name} --database ADMIN_URL --apply");
    vec![Line::bad(GROUP, subject, lacks, "its participant does not start", mend)]
}

fn operations(name: &str, inspection: &Inspection) -> Vec<Line> {
    let subject = format!("{name} operations");
    if inspection.unfit.is_empty() {
        return vec![Line::ok(GROUP, subject, "all of them fit the tables")];
    }
    let mend = format!("correct the SQL or the tables, then suture participant check {name}");
    let line = |error: &OpenError| {
        let what = match error {
            OpenError::Statement { place, code, said } => format!("{place} does not fit the tables ({code}: {said})"),
            error => error.to_string(),
        };
        Line::bad(GROUP, subject.clone(), what, "its participant does not start", mend.clone())
    };
    inspection.unfit.iter().map(line).collect()
}

fn no_ledger(name: &str, error: &OpenError) -> Line {
    let init = format!("suture participant init {name} --database ADMIN_URL --apply");
    let (why, mend) = match error {
        OpenError::NoLedger => ("its participant makes it if its role may create tables", init),
        OpenError::Version { .. } => ("its participant does not start", init),
        OpenError::Foreign { what: "identity_key", .. } => {
            ("with another key the same event becomes another transaction", "restore the identity key".to_string())
        }
        OpenError::Foreign { .. } => {
            ("two participants must never share a ledger", "correct the URL, or kafka.prefix".to_string())
        }
        _ => ("its participant does not start", "see what is said".to_string()),
    };
    let subject = format!("{name} ledger");
    match error {
        OpenError::NoLedger => Line::warn(GROUP, subject, "there is none", why, mend),
        error => Line::bad(GROUP, subject, error.to_string(), why, mend),
    }
}

fn of_ledger(name: &str, ledger: &Ledger, letters: Option<LogLetters>) -> Vec<Line> {
    let mut lines = vec![Line::ok(GROUP, format!("{name} ledger"), format!("id {}", ledger.id))];
    let subject = format!("{name} in doubt");
    let oldest = ledger.in_doubt.iter().filter_map(|(_, age)| *age).max();
    let said = match oldest {
        Some(oldest) => format!("{}, the oldest for {} s", ledger.in_doubt.len(), oldest.as_secs()),
        None => ledger.in_doubt.len().to_string(),
    };
    lines.push(match oldest.filter(|oldest| *oldest > LONG_IN_DOUBT) {
        None => Line::ok(GROUP, subject, said),
        Some(_) => {
            let eldest = ledger.in_doubt.iter().max_by_key(|(_, age)| *age).map(|(txid, _)| *txid);
            let mend =
                eldest.map(|txid| format!("suture tx show {txid}; is a coordinator running, and this participant?"));
            let why = "it holds its locks or reservations until its decision is applied";
            Line::warn(GROUP, subject, said, why, mend.unwrap_or_default())
        }
    });
    lines.push(incidents(name, &ledger.waiting));
    if let Some(letters) = letters {
        let stranded = ledger.in_doubt.iter().filter(|(txid, _)| txid.log != letters).count();
        if stranded > 0 {
            lines.push(Line::bad(
                GROUP,
                format!("{name} in doubt"),
                format!("{stranded} of another requests topic than the one that is there (its transactions begin with {letters})"),
                "their decisions will never come from here",
                "bring the former topics back, or connect to the right cluster",
            ));
        }
    }
    if ledger.foreign > 0 {
        lines.push(Line::warn(
            GROUP,
            format!("{name} foreign branches"),
            format!("{} prepared by somebody else", ledger.foreign),
            "they hold locks, and nobody here finishes them",
            "ask who uses two-phase commit there: another deployment, or another program",
        ));
    }
    lines
}

/// What a person must look into: for each a shard stands still.
fn incidents(name: &str, waiting: &[Listed]) -> Line {
    let subject = format!("{name} incidents");
    let Some(oldest) = waiting.iter().map(|listed| listed.since).min() else {
        return Line::ok(GROUP, subject, "none waits for a person");
    };
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for listed in waiting {
        *kinds.entry(listed.incident.what.as_str()).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {}", kind.replace('_', " "))).collect();
    let shards: BTreeSet<i32> =
        waiting.iter().filter_map(|listed| Some(listed.incident.origin.as_ref()?.partition)).collect();
    let shards: Vec<String> = shards.iter().map(ToString::to_string).collect();
    let since = oldest.format(&Rfc3339).unwrap_or_default();
    let said = format!("{} incidents wait for a person: {}, since {since}", waiting.len(), kinds.join(", "));
    let why = format!("shard {} stands still here: what is decided there is not applied", shards.join(", "));
    Line::bad(GROUP, subject, said, why, format!("suture participant {name} lost"))
}
