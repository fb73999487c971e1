//! `suture audit`: compares the logs with every participant's books, shard by shard, and changes nothing.
//!
//! ```text
//!   look.rs     one look at a shard: who went back, positions, logs, lists, rows, marks, in this order, to what
//!               coordinator/core judges
//!   ledgers.rs  what the ledgers hold besides: rows that no log accounts for
//!   report.rs   counts, findings with what to do about them, as text or as JSON
//! ```
//!
//! Why that order, and why a finding is looked for twice, stands in `suture_coordinator_core::audit`. One shard is in memory at a
//! time: some 300 bytes for each of its transactions.

mod ledgers;
mod look;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use suture_contract::ids::{Participant, Shard, Txid};
use suture_coordinator_core::audit::{About, Finding};
use suture_participants::books::Books;
use suture_participants::config::ParticipantConfig;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::ConfigArg;
use crate::logs::Logs;
use crate::services::{block_on, not_opened};
use crate::settings::Settings;
use look::{Look, Wanted};
use report::Report;

/// When what the first look suspects is looked at again: whatever a participant was in the middle of is over then.
const SECOND_LOOK_AFTER: Duration = Duration::from_secs(5);

/// Something was found that must not be.
const FOUND: u8 = 1;
/// A log or a database could not be read.
const NOT_LOOKED: u8 = 2;

/// Arguments of `suture audit`.
#[derive(clap::Args)]
pub struct AuditArgs {
    /// Only what was asked for since then: a time (2026-05-04T10:00:00Z), or so long ago (90s, 15m, 2h, 7d).
    #[arg(long, value_name = "WHEN", value_parser = parse_since)]
    since: Option<Since>,
    /// Only this transaction.
    #[arg(long, conflicts_with = "since")]
    txid: Option<Txid>,
    /// What is open, in doubt or not applied for longer is a finding too (90s, 15m, 2h, 7d). A deadline is an hour at most.
    #[arg(long, value_name = "AGE", default_value = "1h", value_parser = parse_age)]
    overdue: Duration,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    Ago(Duration),
    Time(OffsetDateTime),
}

/// The exit code is 0 if nothing was found, 1 for findings, 2 if it could not look.
pub fn run(args: &AuditArgs) -> ExitCode {
    let audited = audit(args).and_then(|report| {
        match args.json {
            true => report.print_json()?,
            false => report.print()?,
        }
        Ok(report.is_clean())
    });
    match audited {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FOUND),
        Err(error) => {
            eprintln!("suture: {error:#}");
            ExitCode::from(NOT_LOOKED)
        }
    }
}

fn audit(args: &AuditArgs) -> anyhow::Result<Report> {
    let settings = Settings::load(&args.config.config)?;
    let configs = settings.participants().map(|name| settings.participant(name)).collect::<Result<Vec<_>, _>>()?;
    if configs.is_empty() {
        bail!("{}: [participants] is missing; give the file of each whose books are to be read", settings.file_name());
    }
    let fingerprint = settings.identity_key()?.map(|key| key.fingerprint());
    block_on(async {
        let mut books = BTreeMap::new();
        for config in configs {
            let opening = config.opening(&settings.kafka.prefix, fingerprint.clone(), false)?;
            let opened = Books::open(&config, &opening).await.map_err(|error| not_opened(&config, &error))?;
            books.insert(config.name.clone(), Audited { books: opened, config });
        }
        let logs = tokio::task::block_in_place(|| Logs::open(&settings.kafka, "audit"))?;
        let began_ms = now_ms();
        let since_ms = args.since.map(|since| match since {
            Since::Ago(age) => began_ms - i64::try_from(age.as_millis()).unwrap_or(i64::MAX),
            Since::Time(time) => i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX),
        });
        Auditor { look: Look::open(logs, books)?, report: Report::new(began_ms, since_ms, args.overdue) }
            .audit(since_ms, args.txid)
            .await
    })
}

/// A participant, and its books.
struct Audited {
    books: Books,
    config: ParticipantConfig,
}

struct Auditor {
    look: Look,
    report: Report,
}

impl Auditor {
    async fn audit(mut self, since_ms: Option<i64>, txid: Option<Txid>) -> anyhow::Result<Report> {
        let (shards, wanted) = match txid {
            None => (self.look.logs.shards().collect(), Wanted { since_ms, ..Wanted::default() }),
            Some(txid) => {
                self.look.must_be_there(txid)?;
                (vec![txid.shard], Wanted { only: Some([txid.offset].into()), ..Wanted::default() })
            }
        };
        let bar = progress(shards.len());
        let mut suspected = self.look.foreign_logs().await?;
        let mut accounted = BTreeMap::new();
        for shard in &shards {
            bar.set_message(format!("shard {shard}"));
            let seen = self.look.at(*shard, &wanted).await?;
            suspected.extend(seen.judged.findings.iter().cloned());
            self.report.take_in(&seen);
            accounted.insert(*shard, seen.requests);
            bar.inc(1);
        }
        if since_ms.is_none() && txid.is_none() {
            bar.set_message("ledgers");
            let found = ledgers::compare(&mut self.look, &accounted, &mut self.report).await?;
            // Rows that are final, and requests that are not there: neither changes any more.
            self.report.findings.extend(found);
        }
        if !suspected.is_empty() {
            bar.set_message(format!("a second look at {}", suspected.len()));
            tokio::time::sleep(SECOND_LOOK_AFTER).await;
            let confirmed = self.look_again(&suspected, &wanted).await?;
            self.report.findings.extend(confirmed);
        }
        self.report.take_in_books(&self.look);
        bar.finish_and_clear();
        match txid.filter(|_| self.report.is_empty()) {
            Some(txid) => bail!("{txid}: there is no such transaction; `suture tx show {txid}` says why"),
            None => Ok(self.report),
        }
    }

    /// What a second look finds about everything that the first one suspects.
    async fn look_again(
        &mut self,
        suspected: &BTreeSet<Finding>,
        wanted: &Wanted,
    ) -> anyhow::Result<BTreeSet<Finding>> {
        let mut again: BTreeMap<Shard, Wanted> = BTreeMap::new();
        for finding in suspected {
            let shard = match finding.about {
                About::Transaction(txid) if txid.log != self.look.logs.log => continue,
                About::Transaction(txid) => txid.shard,
                About::Decision { shard, .. } => shard,
            };
            let wanted = again.entry(shard).or_insert_with(|| Wanted {
                since_ms: wanted.since_ms,
                only: Some(BTreeSet::new()),
                all_decisions: false,
            });
            match finding.about {
                About::Transaction(txid) => wanted.only.get_or_insert_default().extend([txid.offset]),
                About::Decision { .. } => wanted.all_decisions = true,
            }
        }
        let foreign = self.look.foreign_logs().await?;
        let mut found: BTreeSet<Finding> = foreign.intersection(suspected).cloned().collect();
        for (shard, wanted) in again {
            if shard.0 < self.look.logs.kafka.partitions {
                let seen = self.look.at(shard, &wanted).await?;
                self.report.correct(&seen, &wanted.only.unwrap_or_default());
                found.extend(seen.judged.findings);
            }
        }
        Ok(found)
    }
}

impl Look {
    /// Whether a transaction of this name can be looked for at all.
    fn must_be_there(&self, txid: Txid) -> anyhow::Result<()> {
        if txid.log != self.logs.log {
            bail!(
                "{txid} is of another requests topic than there is now, whose transactions begin with {}",
                self.logs.log
            );
        }
        if txid.shard.0 >= self.logs.kafka.partitions {
            bail!("{txid}: there is no such shard; the requests topic has {}", self.logs.kafka.partitions);
        }
        Ok(())
    }
}

/// On standard error, and only for a person who looks at it.
fn progress(shards: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} shards, {elapsed}, {msg}");
    let bar = ProgressBar::new(shards as u64);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

#[expect(clippy::disallowed_methods, reason = "ages are told by the wall clock; nothing is decided by them")]
fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

fn parse_since(text: &str) -> Result<Since, String> {
    if let Ok(age) = parse_age(text) {
        return Ok(Since::Ago(age));
    }
    let time = OffsetDateTime::parse(text, &Rfc3339);
    time.map(Since::Time).map_err(|_| "neither an age (90s, 15m, 2h, 7d) nor a time (2026-05-04T10:00:00Z)".to_string())
}

fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || "no age: write 90s, 15m, 2h or 7d".to_string();
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3_600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|seconds| *seconds <= 100 * 365 * 86_400).map(Duration::from_secs).ok_or_else(wrong)
}

/// Whose books could not be read on.
fn unreadable(audited: &Audited, error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    let ParticipantConfig { name, database, .. } = &audited.config;
    anyhow::Error::new(error)
        .context(format!("the database of {name} ({}): see that it answers, and audit again", database.place()))
}

/// Participants by name.
type All = BTreeMap<Participant, Audited>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_a_unit() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("2h", 7_200), ("7d", 604_800), ("0s", 0)] {
            assert_eq!(parse_age(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "1", "-1s", "1.5h", "1w", "99999999999999999999s", "9999999d", "é"] {
            assert!(parse_age(text).is_err(), "{text}");
        }
        assert!(matches!(parse_since("2026-05-04T10:00:00Z"), Ok(Since::Time(_))));
        assert_eq!(parse_since("2h"), Ok(Since::Ago(Duration::from_secs(7_200))));
        assert!(parse_since("yesterday").is_err());
    }
}
