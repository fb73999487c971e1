//! `suture tx show`: the whole story of one transaction, from the logs alone; and `suture tx retry` (`tx/retry.rs`).
//!
//! ```text
//!   txid                  names the request's place: its partition holds everything else
//!   topic/partition/offset   of an upstream event: the request that has it as its source
//!   --case NUMBER         through the identity key to the business keys of the case: every request of them
//! ```
//!
//! It reads each partition from its start (or from the request's time) to the end that it has now, and nothing else: it
//! joins no group and commits nothing. Payloads are never printed.

mod retry;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use suture_contract::codec::{self, OutcomesRecord, RequestsRecord};
use suture_contract::ids::{LogLetters, Origin, Participant, Shard, Txid};
use suture_contract::messages::{
    Ballot, Decision, Incident, Outcome, Prepare, Rejection, Request, Verdict, Vote, Voter,
};
use suture_contract::partitioner::shard_of;
use suture_contract::remark::Remark;
use suture_contract::topic_map::{Topic, ingest_group, participant_group};
use suture_topics::acks::GroupOffsets;
use suture_topics::probe::TopicInfo;
use suture_topics::record::Record;

use crate::ConfigArg;
use crate::logs::{Logs, value};
use crate::settings::Settings;

/// Arguments of `suture tx`.
#[derive(clap::Args)]
pub struct TxArgs {
    #[command(subcommand)]
    command: TxCommand,
}

#[derive(Subcommand)]
enum TxCommand {
    /// Tell the whole story of a transaction: request, prepares, votes, decision, who has applied it.
    Show(ShowArgs),
    /// Ask for an aborted transaction again, as the next attempt, after its cause was mended.
    ///
    /// The request is written again as it was, so this helps where a database had to be put right (a coverage, a privilege) and
    /// not where the event was wrong: correct that upstream. Refused while the same is under way or has taken effect. What
    /// may pass by itself (expired, busy) is asked for again by ingest, as often as its rule says.
    Retry(retry::RetryArgs),
}

#[derive(clap::Args)]
struct ShowArgs {
    /// A txid (k3f9q-3-1042), or an upstream event as topic/partition/offset.
    #[arg(required_unless_present = "case")]
    what: Option<String>,
    /// A case number, as the event says it. Needs the identity key and the rules.
    #[arg(long, conflicts_with = "what", value_name = "NUMBER")]
    case: Option<String>,
    #[command(flatten)]
    config: ConfigArg,
}

/// Shows, or asks again.
pub fn run(args: TxArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        TxCommand::Show(args) => show(&args),
        TxCommand::Retry(args) => retry::run(&args),
    }
}

/// The exit code is 1 if there is no such transaction.
fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&args.config.config)?;
    let mut logs = Logs::open(&settings.kafka, "tx")?;
    let wanted = match (&args.what, &args.case) {
        (_, Some(case)) => {
            let Some(identity) = settings.identity_key()? else {
                bail!("a case number is found through the identity key: configure keys.identity_file");
            };
            let prefixes = settings.rules()?.business_key_prefixes(&identity, case);
            logs.requests(|request| prefixes.iter().any(|prefix| request.business_key.as_str().starts_with(prefix)))?
        }
        (Some(what), None) => match (what.parse::<Txid>(), what.parse::<Origin>()) {
            (Ok(txid), _) => logs.request(txid)?.into_iter().collect(),
            (_, Ok(origin)) => logs.requests(|request| request.source.as_ref() == Some(&origin))?,
            (Err(_), Err(_)) => bail!("{what}: neither a txid (k3f9q-3-1042) nor topic/partition/offset"),
        },
        (None, None) => bail!("name a transaction"),
    };
    if wanted.is_empty() {
        match args.what.as_deref().and_then(|what| logs.place_of(what)) {
            Some(place) => println!("{}", logs.why_absent(&place)?),
            None => println!("no request of this case is in the requests topic (its records may have left it by age)"),
        }
        return Ok(ExitCode::FAILURE);
    }
    for found in wanted {
        logs.tell(&found)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A request, as it stands in its topic.
struct Found {
    txid: Txid,
    at_ms: Option<i64>,
    key: Vec<u8>,
    traceparent: Option<String>,
    remark: Option<Box<Remark>>,
    request: Request,
}

impl Logs {
    /// The request of a txid.
    fn request(&mut self, txid: Txid) -> anyhow::Result<Option<Found>> {
        self.is_of_this_topic(txid)?;
        let mut found = None;
        self.read(&Topic::Requests, txid.shard, txid.offset, |record| {
            found = as_request(txid.log, record);
            // One record is enough.
            false
        })?;
        Ok(found.filter(|found| found.txid == txid))
    }

    fn is_of_this_topic(&self, txid: Txid) -> anyhow::Result<()> {
        if txid.log != self.log {
            bail!(
                "{txid} is of another requests topic than the one that is there now, whose transactions begin with {}",
                self.log
            );
        }
        Ok(())
    }

    /// All requests of all shards that are wanted.
    fn requests(&mut self, wanted: impl Fn(&Request) -> bool) -> anyhow::Result<Vec<Found>> {
        let (log, mut found) = (self.log, Vec::new());
        for shard in self.shards() {
            self.read(&Topic::Requests, shard, 0, |record| {
                found.extend(as_request(log, record).filter(|found| wanted(&found.request)));
                true
            })?;
        }
        Ok(found)
    }

    /// The rejection of an event or of a request.
    fn rejection(&mut self, origin: &Origin) -> anyhow::Result<Option<Rejection>> {
        let key = origin.to_string();
        let shard = shard_of(key.as_bytes(), self.kafka.partitions);
        let mut found = None;
        for shard in [shard, Shard::of_partition(origin.partition).unwrap_or(shard)] {
            if shard.0 < self.kafka.partitions {
                self.read(&Topic::Rejected, shard, 0, |record| {
                    let rejection = codec::decode::<Rejection>(value(record)).ok();
                    found = found.take().or(rejection.filter(|rejection| rejection.origin == *origin));
                    found.is_none()
                })?;
            }
        }
        Ok(found)
    }

    /// The record that is named: an upstream event, or a request.
    fn place_of(&self, what: &str) -> Option<Origin> {
        let of_request = |Txid { shard, offset, .. }: Txid| {
            let (topic, partition) = (self.name(&Topic::Requests), shard.partition());
            Some(Origin { topic, partition, offset: i64::try_from(offset).ok()? })
        };
        what.parse().ok().or_else(|| what.parse().ok().and_then(of_request))
    }

    /// Why there is no transaction of a record.
    fn why_absent(&mut self, place: &Origin) -> anyhow::Result<String> {
        let Origin { topic, partition, offset } = place;
        let Some(partitions) = self.probe.topics()?.get(topic).map(TopicInfo::partitions) else {
            return Ok(format!("there is no topic {topic} (or this user may not see it)"));
        };
        if !(0..i32::from(partitions)).contains(partition) {
            return Ok(format!("{topic} has {partitions} partitions, from 0: there is no partition {partition}"));
        }
        if let Some(Rejection { code, field, .. }) = self.rejection(place)? {
            let field = field.map(|field| format!(", field {field}")).unwrap_or_default();
            return Ok(format!("{place} was rejected: {code}{field}"));
        }
        let (start, end) = self.probe.watermarks(topic, *partition)?;
        let Some(at) = u64::try_from(*offset).ok().filter(|at| *at < end) else {
            return Ok(format!("{place} does not exist: the next record of this partition gets offset {end}"));
        };
        if at < start {
            return Ok(format!("{place} has left its topic by age: the log starts at offset {start} now"));
        }
        if *topic == self.name(&Topic::Requests) {
            return Ok(format!("{place} is no request: a cancellation, or what cannot be read"));
        }
        let group = ingest_group(&self.kafka.prefix);
        let committed = GroupOffsets::new(&self.kafka).committed(&group, &[(topic, *partition)])?.into_iter().next();
        Ok(match committed.flatten() {
            None => format!("ingest has not read {place}: its group {group} has committed nothing of this partition"),
            Some(committed) if committed.offset <= at => {
                format!("ingest has not done {place} yet: its group {group} is at offset {}", committed.offset)
            }
            Some(_) => format!(
                "ingest has read {place} and asked for nothing: no rule matches it (see `suture ingest explain`), or its \
                 request has left the requests topic by age"
            ),
        })
    }

    fn tell(&mut self, found: &Found) -> anyhow::Result<()> {
        let Found { txid, at_ms, request, remark, .. } = found;
        let (txid, at_ms, shard) = (*txid, *at_ms, txid.shard);
        let named: Vec<&Participant> = request.branches.iter().map(|branch| &branch.participant).collect();
        println!("transaction {txid}");
        println!("  business key  {} (attempt {})", request.business_key, request.attempt.number());
        if let Some(remark) = remark {
            println!("  asked again   after {}, by {}: {}", remark.retry_of(), remark.who(), remark.because());
        }
        println!("  rule          {}", request.rule);
        if let Some(source) = &request.source {
            println!("  source        {source}");
        }
        println!("  hash          {}", request.hash);
        println!("  request       {}/{shard}/{}{}", self.name(&Topic::Requests), txid.offset, at(at_ms));
        let key = txid.to_string();
        let mine = |record: &Record| record.key.as_deref() == Some(key.as_bytes());
        for participant in &named {
            let topic = Topic::Prepare((*participant).clone());
            let mut lines = Vec::new();
            self.read_since(&topic, shard, at_ms, |record| {
                if mine(record)
                    && let Ok(prepare) = codec::decode::<Prepare>(value(record))
                {
                    lines.push(format!("{} at offset {}{}", prepare.operation, record.offset, at(record.timestamp_ms)));
                }
            })?;
            print_lines(&format!("prepare {participant}"), &lines, "not sent");
        }
        let mut registers = BTreeMap::new();
        for participant in &named {
            let topic = Topic::Votes((*participant).clone());
            let mut lines = Vec::new();
            self.read_since(&topic, shard, at_ms, |record| {
                if !mine(record) {
                    return;
                }
                let Ok(vote) = codec::decode::<Vote>(value(record)) else { return };
                let counts = vote.txid == txid && vote.participant == **participant && vote.hash == request.hash;
                let is_first = counts && !registers.contains_key(*participant);
                if is_first {
                    registers.insert((*participant).clone(), vote.vote);
                }
                lines.push(format!(
                    "{}{}",
                    describe(&vote, record),
                    if is_first { "" } else { "  (void: not the first)" }
                ));
            })?;
            print_lines(&format!("vote {participant}"), &lines, "none yet");
        }
        let mut last_copy = None;
        let mut lines = Vec::new();
        self.read_since(&Topic::Decisions, shard, at_ms, |record| {
            if mine(record)
                && let Ok(decision) = codec::decode::<Decision>(value(record))
            {
                last_copy = Some(record.offset);
                let verdict = verdict(decision.outcome);
                lines.push(format!("{verdict} at offset {}{}", record.offset, at(record.timestamp_ms)));
            }
        })?;
        print_lines("decision", &lines, "none yet");
        let (mut lines, mut incidents) = (Vec::new(), Vec::new());
        self.read_since(&Topic::Outcomes, shard, at_ms, |record| match codec::decode_outcomes_record(value(record)) {
            Ok(OutcomesRecord::Outcome(outcome)) if outcome.txid == txid => lines.push(story(&outcome, record)),
            Ok(OutcomesRecord::Incident(incident)) if incident.txid == Some(txid) => {
                incidents.push((incident.participant.clone(), tale(&incident, record)));
            }
            Ok(_) | Err(_) => {}
        })?;
        print_lines("outcome", &lines, "none yet");
        for (participant, line) in incidents {
            print_lines(&format!("incident {participant}"), &[line], "");
        }
        let decisions = self.name(&Topic::Decisions);
        let mut acks = GroupOffsets::new(&self.kafka);
        for participant in named {
            let group = participant_group(&self.kafka.prefix, participant);
            let committed = acks.committed(&group, &[(&decisions, shard.partition())])?.into_iter().next().flatten();
            let line = match (last_copy, committed) {
                (None, _) => "nothing to apply yet".to_string(),
                (Some(_), None) => "unknown: the group has committed nothing".to_string(),
                (Some(copy), Some(committed)) if committed.offset <= copy => {
                    format!("not yet: its offset is {}, the decision's {copy}", committed.offset)
                }
                (Some(_), Some(committed)) if committed.metadata.is_empty() => {
                    "unknown: the group's offset was set by hand".to_string()
                }
                (Some(_), Some(committed)) => format!("applied (ledger {})", committed.metadata),
            };
            print_lines(&format!("applied {participant}"), &[line], "");
        }
        println!();
        Ok(())
    }
}

fn as_request(log: LogLetters, record: &Record) -> Option<Found> {
    let shard = Shard::of_partition(record.partition)?;
    match codec::decode_requests_record(value(record)) {
        Ok(RequestsRecord::Request(request)) => {
            let txid = Txid { log, shard, offset: record.offset };
            let key = record.key.clone().unwrap_or_default();
            let (traceparent, remark) = (record.traceparent.clone(), record.remark.clone());
            Some(Found { txid, at_ms: record.timestamp_ms, key, traceparent, remark, request })
        }
        Ok(RequestsRecord::Cancel(_)) | Err(_) => None,
    }
}

fn describe(vote: &Vote, record: &Record) -> String {
    let ballot = match vote.vote {
        Ballot::Yes => "yes",
        Ballot::No => "no",
    };
    let by = match vote.by {
        Voter::Participant => "",
        Voter::Coordinator => ", in its place by the coordinator",
    };
    let code = vote.code.as_ref().map(|code| format!(" {code}")).unwrap_or_default();
    let duplicate_of = vote.duplicate_of.map(|txid| format!(" of {txid}")).unwrap_or_default();
    format!("{ballot}{code}{duplicate_of}{by} at offset {}{}", record.offset, at(record.timestamp_ms))
}

fn story(outcome: &Outcome, record: &Record) -> String {
    let reasons: Vec<_> = outcome
        .votes
        .iter()
        .filter_map(|view| view.code.as_ref().map(|code| format!("{} {code}", view.participant)))
        .collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    let retryable = if outcome.retryable { ", may be asked for again" } else { "" };
    format!("{}{reasons}{retryable} at offset {}{}", verdict(outcome.outcome), record.offset, at(record.timestamp_ms))
}

fn tale(incident: &Incident, record: &Record) -> String {
    let settled = incident.settled.map(|settled| format!(" as {}", settled.as_str())).unwrap_or_default();
    let who = incident.who.as_ref().map(|who| format!(" by {who}")).unwrap_or_default();
    let because = incident.because.as_ref().map(|because| format!(" ({because})")).unwrap_or_default();
    let what = incident.what.as_str();
    format!("{what}{settled}{who}{because} at offset {}{}", record.offset, at(record.timestamp_ms))
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Commit => "commit",
        Verdict::Abort => "abort",
    }
}

fn at(timestamp_ms: Option<i64>) -> String {
    let time =
        timestamp_ms.and_then(|ms| time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok());
    let text = time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok());
    text.map(|text| format!(", {text}")).unwrap_or_default()
}

fn print_lines(name: &str, lines: &[String], without: &str) {
    if lines.is_empty() {
        println!("  {name:<22}{without}");
    }
    for (index, line) in lines.iter().enumerate() {
        println!("  {:<22}{line}", if index == 0 { name } else { "" });
    }
}
