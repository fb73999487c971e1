//! Reads the databases back over fresh connections, and judges.
//!
//! Only rows count here: the ledgers, and the business rows by their column `txid`. A transaction is *committed* when the
//! ledger of every participant that its rule names says so and business rows stand in each of them. It is *partial* when
//! only some do, or when business rows stand without a committed ledger row. What the topics said is used for one thing
//! only: to name the reasons of what did not commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use rusqlite::{Connection, OpenFlags};
use serde_json::json;
use suture_contract::ids::{BusinessKey, Origin, Participant, Txid, code};
use suture_contract::messages::{Ballot, Outcome};
use suture_coordinator::ingest::IngestCounts;

use super::watch::Watch;
use super::world::World;

/// What a run came to.
pub struct Report {
    events: u64,
    committed: u64,
    /// The same of all transactions in the files, whatever run they are of.
    committed_in_files: u64,
    aborted: u64,
    rejected: u64,
    ignored: u64,
    duplicates: u64,
    in_doubt: BTreeSet<String>,
    partial: BTreeSet<String>,
    /// Reason code -> (events, who said it).
    reasons: BTreeMap<String, (u64, BTreeSet<String>)>,
    rejections: BTreeMap<String, u64>,
    databases: Vec<(Participant, Rows)>,
    kills: usize,
    elapsed: Duration,
}

/// What one database holds, over all runs.
#[derive(Default)]
struct Rows {
    /// Transaction -> (state, rule).
    ledger: BTreeMap<String, (String, Option<String>)>,
    /// Business keys that were committed here, or refused for a reason of the business.
    settled: BTreeSet<String>,
    /// Transactions with business rows.
    business: BTreeSet<String>,
    /// How many business rows those are.
    business_rows: u64,
}

impl Rows {
    fn state(&self, txid: &str) -> Option<&str> {
        self.ledger.get(txid).map(|(state, _)| state.as_str())
    }
}

impl Report {
    /// Opens every database anew and reads all of its rows.
    pub fn read(
        world: &World,
        watch: &Watch,
        counts: &IngestCounts,
        kills: usize,
        elapsed: Duration,
    ) -> anyhow::Result<Self> {
        let mut databases = Vec::new();
        for participant in world.participants() {
            let rows = read_rows(&world.database(&participant))?;
            databases.push((participant, rows));
        }
        let mut report = Self {
            events: counts.read.load(Ordering::Relaxed),
            committed: 0,
            committed_in_files: 0,
            aborted: 0,
            rejected: watch.rejections.len() as u64,
            ignored: counts.ignored.load(Ordering::Relaxed),
            duplicates: 0,
            in_doubt: BTreeSet::new(),
            partial: BTreeSet::new(),
            reasons: BTreeMap::new(),
            rejections: BTreeMap::new(),
            databases,
            kills,
            elapsed,
        };
        for code in watch.rejections.values() {
            *report.rejections.entry(code.to_string()).or_default() += 1;
        }
        report.judge_all(world);
        // An event that was read twice (ingest was killed before it committed) asked twice, and so did one whose first attempt
        // failed for a reason that passed; it counts once.
        let mut asked: BTreeMap<&Origin, Vec<Txid>> = BTreeMap::new();
        for (txid, origin) in &watch.requests {
            if let Some(origin) = origin {
                asked.entry(origin).or_default().push(*txid);
            }
        }
        for txids in asked.values() {
            report.count(world, watch, txids);
        }
        Ok(report)
    }

    /// Whether nothing is partial or in doubt.
    pub fn is_clean(&self) -> bool {
        self.in_doubt.is_empty() && self.partial.is_empty()
    }

    /// The report as one JSON object on one line.
    pub fn to_json(&self) -> String {
        let reasons: BTreeMap<&String, u64> = self.reasons.iter().map(|(code, (count, _))| (code, *count)).collect();
        json!({
            "events": self.events,
            "committed": self.committed,
            "aborted": self.aborted,
            "rejected": self.rejected,
            "ignored": self.ignored,
            "duplicates": self.duplicates,
            "in_doubt": self.in_doubt.len(),
            "partial": self.partial.len(),
            "reasons": reasons,
            "kills": self.kills,
            "seconds": (self.elapsed.as_secs_f64() * 10.0).round() / 10.0,
        })
        .to_string()
    }

    /// Every transaction that any database knows, of this run and of earlier ones.
    fn judge_all(&mut self, world: &World) {
        let ledgers = self.databases.iter().flat_map(|(_, rows)| rows.ledger.keys());
        let business = self.databases.iter().flat_map(|(_, rows)| rows.business.iter());
        let txids: BTreeSet<String> = ledgers.chain(business).cloned().collect();
        for txid in txids {
            if self.databases.iter().any(|(_, rows)| rows.state(&txid) == Some("in_doubt")) {
                self.in_doubt.insert(txid);
                continue;
            }
            let has_rows = |rows: &Rows| rows.business.contains(&txid);
            let is_committed = |rows: &Rows| rows.state(&txid) == Some("committed");
            let uneven = self.databases.iter().any(|(_, rows)| has_rows(rows) != is_committed(rows));
            let somewhere = self.databases.iter().any(|(_, rows)| is_committed(rows));
            let everywhere = self.is_committed(world, &txid);
            if uneven || (somewhere && !everywhere) {
                self.partial.insert(txid);
            } else if everywhere {
                self.committed_in_files += 1;
            }
        }
    }

    /// Whether every participant that the transaction's rule names has committed it.
    fn is_committed(&self, world: &World, txid: &str) -> bool {
        let rule = self.databases.iter().find_map(|(_, rows)| rows.ledger.get(txid)?.1.as_deref());
        let Some(named) = rule.and_then(|rule| world.rules.participants_of(rule)) else { return false };
        named.iter().all(|participant| {
            let rows = self.databases.iter().find(|(name, _)| name == *participant);
            rows.is_some_and(|(_, rows)| rows.state(txid) == Some("committed") && rows.business.contains(txid))
        })
    }

    /// One event of this run: committed by its rows, else by the reasons that its outcomes give.
    fn count(&mut self, world: &World, watch: &Watch, txids: &[Txid]) {
        let names: Vec<String> = txids.iter().map(Txid::to_string).collect();
        if names.iter().any(|name| self.in_doubt.contains(name) || self.partial.contains(name)) {
            return;
        }
        if names.iter().any(|name| self.is_committed(world, name)) {
            self.committed += 1;
            return;
        }
        let outcomes: Vec<&Outcome> = txids.iter().filter_map(|txid| watch.outcomes.get(txid)).collect();
        // A repeat of what nobody has settled would be a surgery that got lost: that is no `met before`.
        let is_settled = |key: &BusinessKey| self.databases.iter().any(|(_, rows)| rows.settled.contains(key.as_str()));
        let met_before = outcomes.iter().any(|outcome| is_settled(&outcome.business_key));
        // What was asked for again is refused for the reasons of the last time.
        let last = outcomes.iter().map(|outcome| outcome.attempt).max();
        let outcomes = outcomes.iter().filter(|outcome| Some(outcome.attempt) == last);
        let noes = outcomes.flat_map(|outcome| &outcome.votes).filter(|view| view.vote == Some(Ballot::No));
        let reasons: BTreeSet<(String, String)> = noes
            .filter_map(|view| Some((view.code.as_ref()?.to_string(), view.participant.to_string())))
            .filter(|(reason, _)| !(met_before && code::is_repeat(reason)))
            .collect();
        if reasons.is_empty() {
            self.duplicates += 1;
            return;
        }
        self.aborted += 1;
        let codes: BTreeSet<&String> = reasons.iter().map(|(code, _)| code).collect();
        for code in codes {
            let (events, who) = self.reasons.entry(code.clone()).or_default();
            *events += 1;
            who.extend(reasons.iter().filter(|(said, _)| said == code).map(|(_, who)| who.clone()));
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, count: u64, note: &str| {
            let line = format!("  {name:<38} {count:>6}  {note}");
            writeln!(f, "{}", line.trim_end())
        };
        writeln!(f, "\nRead back from the databases over fresh connections:")?;
        let in_files = format!("of this run's events; in the files, of all runs: {}", self.committed_in_files);
        row(f, "committed in all their databases", self.committed, &in_files)?;
        row(f, "refused, and in none of them", self.aborted, "")?;
        for (code, (count, who)) in &self.reasons {
            let who: Vec<_> = who.iter().map(String::as_str).collect();
            row(f, &format!("    {code}"), *count, &format!("said by {}", who.join(", ")))?;
        }
        row(f, "met before (duplicates)", self.duplicates, "")?;
        row(f, "rejected by ingest", self.rejected, "")?;
        for (code, count) in &self.rejections {
            row(f, &format!("    {code}"), *count, "")?;
        }
        row(f, "ignored, since no rule matches", self.ignored, "")?;
        row(f, "in doubt", self.in_doubt.len() as u64, "")?;
        row(f, "partial", self.partial.len() as u64, "")?;
        for txid in self.in_doubt.iter().chain(&self.partial).take(10) {
            writeln!(f, "      {txid}")?;
        }
        for (participant, rows) in &self.databases {
            let committed = rows.ledger.values().filter(|(state, _)| state == "committed").count();
            let note = format!("business rows of {committed} committed transactions");
            row(f, &format!("  {participant}"), rows.business_rows, &note)?;
        }
        let killed =
            if self.kills > 0 { format!(", {} processes killed meanwhile", self.kills) } else { String::new() };
        write!(f, "{} events in {:.1} s{killed}", self.events, self.elapsed.as_secs_f64())
    }
}

/// The branches in doubt of a database file; none if it is not there yet.
pub fn in_doubt(file: &Path) -> anyhow::Result<Vec<String>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let states = read_rows(file)?.ledger.into_iter();
    Ok(states.filter(|(_, (state, _))| state == "in_doubt").map(|(txid, _)| txid).collect())
}

fn read_rows(file: &Path) -> anyhow::Result<Rows> {
    let place = || file.display().to_string();
    // Not a read-only connection: the last one to close tidies the write-ahead log away, which such a one cannot.
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE).with_context(place)?;
    connection.pragma_update(None, "query_only", true).with_context(place)?;
    let tables = text_column(
        &connection,
        "select m.name from sqlite_schema m join pragma_table_info(m.name) c on c.name = 'txid' where m.type = 'table'",
    )
    .with_context(place)?;
    let mut rows = Rows::default();
    for table in tables {
        if table == "suture_ledger" {
            let mut statement = connection.prepare("select txid, state, business_key, code from suture_ledger")?;
            let mut found = statement.query([])?;
            while let Some(row) = found.next().with_context(place)? {
                let business_key: Option<String> = row.get(2)?;
                let (state, refusal): (String, Option<String>) = (row.get(1)?, row.get(3)?);
                let rule = business_key.as_deref().and_then(|key| Some(key.split_once(':')?.0.to_string()));
                let is_refused = refusal.is_some_and(|code| !code::is_repeat(&code));
                if state == "committed" || (state == "refused" && is_refused) {
                    rows.settled.extend(business_key);
                }
                rows.ledger.insert(row.get(0)?, (state, rule));
            }
        } else if !table.starts_with("suture_") {
            let txids = text_column(&connection, &format!("select txid from \"{table}\" where txid is not null"))?;
            rows.business_rows += txids.len() as u64;
            rows.business.extend(txids);
        }
    }
    Ok(rows)
}

fn text_column(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
}
