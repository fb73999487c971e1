//! What an audit says: counts first, then a line for each finding with what to do about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use suture_contract::ids::{Participant, Txid};
use suture_coordinator_core::audit::{About, Finding, Kind, Standing, Wait, Waits, Wrong};
use suture_participants::books::BookRow;
use suture_participants::config::Database;
use suture_participants_core::gid::Gid;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::look::{Look, Seen};
use crate::out;

/// Most lines of one kind that are printed for people; the counts and the JSON have them all.
const MOST_LINES: usize = 100;

/// What was seen.
pub struct Report {
    began_ms: i64,
    since_ms: Option<i64>,
    overdue: Duration,
    standings: BTreeMap<Standing, u64>,
    /// Counted as wrong.
    wrong: BTreeSet<Txid>,
    older: u64,
    waits: BTreeMap<(Txid, Option<Participant>), Wait>,
    pub findings: BTreeSet<Finding>,
    unseen: BTreeSet<Participant>,
    went_back: BTreeSet<Participant>,
    gids: BTreeMap<(Txid, Participant), Gid>,
    ledgers: BTreeMap<Participant, Ledger>,
}

/// A participant's books.
#[derive(Default, Serialize)]
struct Ledger {
    ledger_id: String,
    database: String,
    version: String,
    /// Absent, unless all were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<BTreeMap<&'static str, u64>>,
    foreign_branches: u64,
    #[serde(skip)]
    is_mariadb: bool,
}

/// As JSON. Durations end in their unit.
#[derive(Serialize)]
struct Json<'a> {
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    clean: bool,
    transactions: u64,
    committed: u64,
    aborted: u64,
    open: u64,
    in_doubt: u64,
    not_applied: u64,
    settled: u64,
    wrong: u64,
    older: u64,
    contradictions: usize,
    lost: usize,
    orphans: usize,
    overdue: usize,
    waits: Vec<JsonWait<'a>>,
    findings: Vec<JsonFinding<'a>>,
    ledgers: &'a BTreeMap<Participant, Ledger>,
    without_books: &'a BTreeSet<Participant>,
    /// Whose databases went back, and are not brought back yet.
    went_back: &'a BTreeSet<Participant>,
}

#[derive(Serialize)]
struct JsonWait<'a> {
    txid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    participant: Option<&'a Participant>,
    waits: &'static str,
    age_ms: i64,
    overdue: bool,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    kind: String,
    what: &'static str,
    about: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    participant: Option<&'a Participant>,
    says: String,
    remedy: String,
}

impl Report {
    /// Nothing seen yet.
    pub fn new(began_ms: i64, since_ms: Option<i64>, overdue: Duration) -> Self {
        Self {
            began_ms,
            since_ms,
            overdue,
            standings: BTreeMap::new(),
            wrong: BTreeSet::new(),
            older: 0,
            waits: BTreeMap::new(),
            findings: BTreeSet::new(),
            unseen: BTreeSet::new(),
            went_back: BTreeSet::new(),
            gids: BTreeMap::new(),
            ledgers: BTreeMap::new(),
        }
    }

    /// A first look at a shard.
    pub fn take_in(&mut self, seen: &Seen) {
        for (offset, standing) in &seen.judged.standings {
            *self.standings.entry(*standing).or_default() += 1;
            if *standing == Standing::Wrong {
                self.wrong.insert(Txid { offset: *offset, ..seen.first });
            }
        }
        self.older += seen.judged.older;
        self.take_in_rest(seen);
    }

    /// A second look at these: what was counted as wrong counts for what it is.
    pub fn correct(&mut self, seen: &Seen, again: &BTreeSet<u64>) {
        for txid in again.iter().map(|offset| Txid { offset: *offset, ..seen.first }) {
            self.waits.retain(|(of, _), _| *of != txid);
            let standing = seen.judged.standings.get(&txid.offset).copied();
            if standing == Some(Standing::Wrong) || !self.wrong.remove(&txid) {
                continue;
            }
            *self.standings.entry(Standing::Wrong).or_default() -= 1;
            match standing {
                Some(standing) => *self.standings.entry(standing).or_default() += 1,
                // Its request has left the topic in between.
                None => self.older += 1,
            }
        }
        self.take_in_rest(seen);
    }

    fn take_in_rest(&mut self, seen: &Seen) {
        for wait in &seen.judged.waits {
            self.waits.insert((wait.txid, wait.participant.clone()), wait.clone());
        }
        self.unseen.extend(seen.unseen.iter().cloned());
        self.went_back.extend(seen.went_back.iter().cloned());
        self.gids.extend(seen.gids.iter().map(|(about, gid)| (about.clone(), gid.clone())));
        for (name, foreign) in &seen.foreign {
            self.ledgers.entry(name.clone()).or_default().foreign_branches = *foreign;
        }
    }

    /// A page of a ledger.
    pub fn count_rows(&mut self, name: &Participant, page: &[BookRow]) {
        let rows = self.ledgers.entry(name.clone()).or_default().rows.get_or_insert_default();
        for row in page {
            *rows.entry(row.state.as_str()).or_default() += 1;
        }
    }

    /// Who keeps the books.
    pub fn take_in_books(&mut self, look: &Look) {
        for (name, audited) in &look.all {
            let ledger = self.ledgers.entry(name.clone()).or_default();
            ledger.ledger_id = audited.books.ledger_id().to_string();
            ledger.database = audited.config.database.place();
            ledger.version = audited.books.version().to_string();
            ledger.is_mariadb = matches!(audited.config.database, Database::Mariadb(_));
        }
    }

    /// Nothing that must not be.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.overdue().count() == 0 && self.went_back.is_empty()
    }

    /// Whether there was nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.standings.is_empty() && self.older == 0 && self.findings.is_empty()
    }

    fn overdue(&self) -> impl Iterator<Item = &Wait> {
        self.waits.values().filter(|wait| self.is_overdue(wait))
    }

    fn is_overdue(&self, wait: &Wait) -> bool {
        self.age_ms(wait) > i64::try_from(self.overdue.as_millis()).unwrap_or(i64::MAX)
    }

    /// Brokers' clocks and this one may differ: nothing is younger than new.
    fn age_ms(&self, wait: &Wait) -> i64 {
        (self.began_ms - wait.since_ms).max(0)
    }

    fn count(&self, standing: Standing) -> u64 {
        self.standings.get(&standing).copied().unwrap_or(0)
    }

    fn count_of(&self, kind: Kind) -> usize {
        self.findings.iter().filter(|finding| finding.wrong.kind() == kind).count()
    }

    fn total(&self) -> u64 {
        self.standings.values().sum()
    }

    /// For people.
    pub fn print(&self) -> Result<(), out::Unwritable> {
        for name in &self.went_back {
            out::line(format_args!(
                "{name}'s database went back (a backup was put back, or a standby that lacks something took over): start its \
                 participant, or leave it running; it brings back what is missing, which is counted as not applied or in doubt here"
            ))?;
        }
        let since = self.since_ms.map(|ms| format!("asked for since {}", time_of(ms))).unwrap_or_default();
        out::line(format_args!("{:<24}{:>9}  {since}", "transactions", self.total()))?;
        let standings = [
            ("committed everywhere", Standing::Committed, None),
            ("aborted", Standing::Aborted, None),
            ("open", Standing::Open, Some(Waits::Open)),
            ("in doubt", Standing::InDoubt, Some(Waits::InDoubt)),
            ("decided, not applied", Standing::NotApplied, Some(Waits::NotApplied)),
            ("settled by a person", Standing::Settled, None),
            ("with findings", Standing::Wrong, None),
        ];
        for (name, standing, waits) in standings {
            let who = waits.map(|waits| self.who_waits(waits)).unwrap_or_default();
            out::line(format_args!("  {name:<22}{:>9}  {who}", self.count(standing)))?;
        }
        if self.older > 0 {
            out::line(format_args!(
                "{:<24}{:>9}  whose requests have left their topic by age",
                "older decisions", self.older
            ))?;
        }
        for kind in [Kind::Contradiction, Kind::Lost, Kind::Orphan] {
            out::line(format_args!("{:<24}{:>9}", kind.to_string(), self.count_of(kind)))?;
        }
        let overdue = format!("longer than {}", age(i64::try_from(self.overdue.as_millis()).unwrap_or(i64::MAX)));
        out::line(format_args!("{:<24}{:>9}  {overdue}", "overdue", self.overdue().count()))?;
        for (name, ledger) in &self.ledgers {
            out::line(format_args!("ledger of {name}: {}", ledger.line()))?;
        }
        if !self.unseen.is_empty() {
            let names: Vec<String> = self.unseen.iter().map(ToString::to_string).collect();
            out::line(format_args!(
                "without books here, judged by the logs alone: {}; give their files under [participants]",
                names.join(", ")
            ))?;
        }
        for finding in self.findings.iter().take(MOST_LINES) {
            out::line(format_args!(
                "{}: {}{}: {}; {}",
                finding.wrong.kind(),
                finding.about,
                finding.participant.as_ref().map(|name| format!(" at {name}")).unwrap_or_default(),
                finding.wrong,
                self.remedy(finding)
            ))?;
        }
        for wait in self.overdue().take(MOST_LINES) {
            let who = wait.participant.as_ref().map(|name| format!(" at {name}")).unwrap_or_default();
            out::line(format_args!(
                "overdue: {}{who}: {} for {}; see `suture tx show {}`",
                wait.txid,
                waits_for(wait.waits),
                age(self.age_ms(wait)),
                wait.txid
            ))?;
        }
        let left = self.findings.len().saturating_sub(MOST_LINES) + self.overdue().count().saturating_sub(MOST_LINES);
        if left > 0 {
            out::line(format_args!("and {left} more: --json tells them all"))?;
        }
        Ok(())
    }

    /// How many wait at each participant, and since when the first.
    fn who_waits(&self, waits: Waits) -> String {
        let mut by_name: BTreeMap<Option<&Participant>, (u64, i64)> = BTreeMap::new();
        for wait in self.waits.values().filter(|wait| wait.waits == waits) {
            let (count, oldest) = by_name.entry(wait.participant.as_ref()).or_default();
            (*count, *oldest) = (*count + 1, (*oldest).max(self.age_ms(wait)));
        }
        let mut text = String::new();
        for (name, (count, oldest)) in by_name {
            let comma = if text.is_empty() { "" } else { ", " };
            let name = name.map(|name| format!("{name} {count}, ")).unwrap_or_default();
            // Writing to a text cannot fail.
            let _ = write!(text, "{comma}{name}oldest {}", age(oldest));
        }
        text
    }

    /// For programs.
    pub fn print_json(&self) -> anyhow::Result<()> {
        let waits = self.waits.values().map(|wait| JsonWait {
            txid: wait.txid.to_string(),
            participant: wait.participant.as_ref(),
            waits: match wait.waits {
                Waits::Open => "open",
                Waits::InDoubt => "in_doubt",
                Waits::NotApplied => "not_applied",
            },
            age_ms: self.age_ms(wait),
            overdue: self.is_overdue(wait),
        });
        let findings = self.findings.iter().map(|finding| JsonFinding {
            kind: finding.wrong.kind().to_string().to_lowercase(),
            what: finding.wrong.as_str(),
            about: finding.about.to_string(),
            participant: finding.participant.as_ref(),
            says: finding.wrong.to_string(),
            remedy: self.remedy(finding),
        });
        let json = Json {
            at: time_of(self.began_ms),
            since: self.since_ms.map(time_of),
            clean: self.is_clean(),
            transactions: self.total(),
            committed: self.count(Standing::Committed),
            aborted: self.count(Standing::Aborted),
            open: self.count(Standing::Open),
            in_doubt: self.count(Standing::InDoubt),
            not_applied: self.count(Standing::NotApplied),
            settled: self.count(Standing::Settled),
            wrong: self.count(Standing::Wrong),
            older: self.older,
            contradictions: self.count_of(Kind::Contradiction),
            lost: self.count_of(Kind::Lost),
            orphans: self.count_of(Kind::Orphan),
            overdue: self.overdue().count(),
            waits: waits.collect(),
            findings: findings.collect(),
            ledgers: &self.ledgers,
            without_books: &self.unseen,
            went_back: &self.went_back,
        };
        out::line(serde_json::to_string(&json)?)?;
        Ok(())
    }

    /// What a person does about it.
    fn remedy(&self, finding: &Finding) -> String {
        let About::Transaction(txid) = finding.about else {
            return "see who wrote it, and let it be passed as docs/operations.md says".to_string();
        };
        let show = format!("`suture tx show {txid}`");
        match finding.wrong.kind() {
            Kind::Contradiction => {
                format!(
                    "records were lost, or changed by hand: compare {show} with the ledgers before anything is restarted"
                )
            }
            Kind::Lost => {
                let name = finding.participant.as_ref().map_or("NAME", Participant::as_str);
                match finding.wrong {
                    Wrong::Gone => format!(
                        "wait for its decision: if that is commit, the shard stops there, and `suture participant {name} lost` \
                         lists it"
                    ),
                    _ => format!(
                        "look first whether its effect is there; {show} says what all others have; if it is not there, make it by \
                         hand; then `suture participant {name} resolve {txid} --as committed --because TEXT`"
                    ),
                }
            }
            Kind::Orphan => match (finding.wrong, self.finish(finding, txid)) {
                (Wrong::LeftOver, _) => format!("finish the branch as {show} says"),
                (_, Some(command)) => format!("nothing decides it any more: {command}"),
                (_, None) => "nothing decides it any more: undo it by hand, with its row in suture_ledger".to_string(),
            },
        }
    }

    /// The statement that rolls a listed branch back.
    fn finish(&self, finding: &Finding, txid: Txid) -> Option<String> {
        let participant = finding.participant.clone()?;
        let ledger = self.ledgers.get(&participant)?;
        let gid = self.gids.get(&(txid, participant))?.to_string();
        Some(match ledger.is_mariadb {
            true => {
                let (global, branch) = gid.split_once('/')?;
                format!("xa rollback '{global}','{branch}',{}", suture_participants::mariadb::FORMAT_ID)
            }
            false => format!("rollback prepared '{gid}'"),
        })
    }
}

impl Ledger {
    fn line(&self) -> String {
        let rows = self.rows.iter().flatten().map(|(state, count)| format!("{count} {}", state.replace('_', " ")));
        let mut parts: Vec<String> = rows.collect();
        if self.rows.is_some() && parts.is_empty() {
            parts.push("no rows".to_string());
        }
        if self.foreign_branches > 0 {
            parts.push(format!("{} prepared branches of others, not touched", self.foreign_branches));
        }
        parts.push(format!("{}, ledger {}", self.version, self.ledger_id));
        parts.join("; ")
    }
}

fn waits_for(waits: Waits) -> &'static str {
    match waits {
        Waits::Open => "not voted on",
        Waits::InDoubt => "in doubt",
        Waits::NotApplied => "decided and not applied",
    }
}

/// In the largest unit that tells two digits.
fn age(ms: i64) -> String {
    match ms / 1_000 {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7_200 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

fn time_of(ms: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}
