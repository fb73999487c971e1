//! How fast a coordinator decides.
//!
//! ```text
//!   submitter --requests--> coordinator --prepares--> N stub participants --votes--> coordinator --decisions--> submitter
//! ```
//!
//! Coordinator and stubs are those of production as far as Kafka is concerned: groups, readers, idempotent appends, committed
//! positions. A stub says yes to every prepare without touching a database, so that the figures are the protocol's own.
//!
//! Three phases:
//!
//! 1. *hop*: one record at a time, on idle clients, from an append to a reader of the same program;
//! 2. *idle*: one transaction at a time, from the append of its request to the reading of its decision. That is four hops;
//!    the last one only brings the decision to this program, so the time to the decision's append is one hop less;
//! 3. *load*: a closed loop with a fixed number of transactions under way, for the rate, and their latencies under that load.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use serde_json::value::RawValue;
use suture_contract::codec::{Message, decode, encode};
use suture_contract::ids::{Participant, RequestHash, Shard, Txid};
use suture_contract::messages::{Ballot, Decision, Prepare, Vote, Voter};
use suture_contract::topic_map::{Topic, participant_group};
use suture_coordinator::service::CoordinatorSettings;
use suture_topics::membership::{Commit, MemberEvent, Membership};
use suture_topics::outbox::Outbox;
use suture_topics::probe::Probe;
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::settings::KafkaSettings;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::submitter::Submitter;
use super::{BenchArgs, PATIENCE, broker, cpu, histogram, hop_topic, letters, micros, ms, unsteady};
use crate::{out, services};

/// Between two idle samples, so that one does not meet the tail of the other: its outcome, and the decision's other readers.
const IDLE: Duration = Duration::from_millis(20);

/// How long a participant may be silent. None is.
const DEADLINE_MS: u64 = 30_000;

/// Measures and prints.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    services::block_on(async {
        let stubs = super::participants("stub", args.participants);
        let (kafka, broker) = broker(args.bootstrap.clone(), letters()?, stubs.clone()).await?;
        let bench = Bench::start(args, kafka, stubs).await?;
        let figures = bench.measure(args).await?;
        let mut text = String::new();
        if let Some(unsteady) = unsteady(&figures.load, args.seconds) {
            eprintln!("{unsteady}");
        }
        figures.write(&mut text, args, broker.is_some())?;
        out::line(text.trim_end())?;
        drop(broker);
        Ok(ExitCode::SUCCESS)
    })
}

/// Everything that runs during a measurement.
struct Bench {
    kafka: KafkaSettings,
    participants: Vec<Participant>,
    submitter: Submitter,
    reader: Reader,
    events: mpsc::Receiver<ReaderEvent>,
    services: JoinSet<anyhow::Result<()>>,
    stop: watch::Sender<bool>,
    payload: Box<RawValue>,
}

/// What was measured.
struct Figures {
    hop: Histogram<u64>,
    idle: Histogram<u64>,
    load: Histogram<u64>,
    transactions: u64,
    elapsed: Duration,
    cpu: Duration,
    total: u64,
    records: BTreeMap<String, u64>,
}

impl Bench {
    async fn start(args: &BenchArgs, kafka: KafkaSettings, participants: Vec<Participant>) -> anyhow::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut services = JoinSet::new();
        let (for_coordinator, stop_coordinator) = (kafka.clone(), stopped.clone());
        services.spawn(async move {
            suture_coordinator::service::run(for_coordinator, CoordinatorSettings::default(), stop_coordinator).await?;
            Ok(())
        });
        for participant in &participants {
            services.spawn(stub(kafka.clone(), participant.clone(), stopped.clone()));
        }
        let submitter = Submitter::start(&kafka, &participants, "bench", DEADLINE_MS).await?;
        let (post_event, events) = mpsc::channel(64);
        let for_reader = kafka.clone();
        let reader = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let kafka = for_reader;
            let reader = Reader::start(&kafka, &format!("{}.bench", kafka.prefix), post_event)?;
            let decisions = Topic::Decisions.name(&kafka.prefix);
            for partition in 0..i32::from(kafka.partitions) {
                reader.seek(&decisions, partition, 0);
            }
            reader.seek(&hop_topic(&kafka), 0, 0);
            Ok(reader)
        })
        .await??;
        let payload = RawValue::from_string(format!(r#"{{"text":"{}"}}"#, "x".repeat(args.payload)))?;
        Ok(Self { kafka, participants, submitter, reader, events, services, stop, payload })
    }

    async fn measure(mut self, args: &BenchArgs) -> anyhow::Result<Figures> {
        eprintln!("warming up");
        // A broker that was just started runs interpreted code at first.
        self.load(Duration::from_secs(5), args.window.min(500), &mut histogram()?).await?;
        eprintln!("timing {} single hops and {} single transactions", args.samples, args.samples);
        let mut hop = histogram()?;
        for _ in 0..args.samples {
            tokio::time::sleep(IDLE).await;
            self.hop(&mut hop).await?;
        }
        let mut idle = histogram()?;
        for _ in 0..args.samples {
            tokio::time::sleep(IDLE).await;
            self.load_some(1, 1, None, &mut idle).await?;
        }
        eprintln!("load: {} s with {} transactions under way", args.seconds, args.window);
        let mut load = histogram()?;
        let (cpu_before, started) = (cpu()?, Instant::now());
        let transactions = self.load(Duration::from_secs(args.seconds), args.window, &mut load).await?;
        let (elapsed, cpu) = (started.elapsed(), cpu()? - cpu_before);
        let total = self.submitter.sent;
        let records = self.stop().await?;
        Ok(Figures { hop, idle, load, transactions, elapsed, cpu, total, records })
    }

    /// One record from an append to the reader.
    async fn hop(&mut self, into: &mut Histogram<u64>) -> anyhow::Result<()> {
        let (topic, started) = (hop_topic(&self.kafka), Instant::now());
        self.submitter
            .outbox
            .append(&topic, 0, b"hop", Some(&[b'x'; 300]), "hop", None, 0)
            .map_err(|_| anyhow::anyhow!("full"))?;
        let read = async {
            loop {
                if let ReaderEvent::Records(records) = self.events.recv().await.context("the reader has ended")?
                    && records.iter().any(|record| *record.topic == *topic)
                {
                    return anyhow::Ok(());
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.context("a record did not arrive")??;
        into.record(micros(started.elapsed()))?;
        // Its report, so that the next one starts on an idle client.
        self.submitter.deliveries.recv().await.context("the producer has ended")?;
        Ok(())
    }

    /// A closed loop for some time; then what is under way is finished. Returns how many were decided.
    async fn load(&mut self, time: Duration, window: usize, into: &mut Histogram<u64>) -> anyhow::Result<u64> {
        let until = Instant::now() + time;
        self.load_some(u64::MAX, window, Some(until), into).await
    }

    async fn load_some(
        &mut self,
        most: u64,
        window: usize,
        until: Option<Instant>,
        into: &mut Histogram<u64>,
    ) -> anyhow::Result<u64> {
        let mut under_way: HashMap<(u16, u64), Instant> = HashMap::new();
        // Requests without an offset yet, by token.
        let mut asked: HashMap<u64, (Shard, Instant)> = HashMap::new();
        // Decisions may be read before the report of their own request.
        let mut early: HashMap<(u16, u64), Instant> = HashMap::new();
        let (mut sent, mut decided) = (0, 0);
        let mut reports = Vec::new();
        loop {
            while sent < most
                && asked.len() + under_way.len() < window
                && until.is_none_or(|until| Instant::now() < until)
            {
                let (token, shard) = self.submitter.ask(&self.payload)?;
                asked.insert(token, (shard, Instant::now()));
                sent += 1;
            }
            if asked.is_empty() && under_way.is_empty() {
                return Ok(decided);
            }
            tokio::select! {
                count = self.submitter.deliveries.recv_many(&mut reports, 4_096) => {
                    if count == 0 { bail!("the producer has ended") }
                    for report in reports.drain(..) {
                        let Some((shard, started)) = asked.remove(&report.token) else { continue };
                        let offset = report.result.context("appending a request")?;
                        match early.remove(&(shard.0, offset)) {
                            Some(read) => {
                                decided += 1;
                                into.record(micros(read - started))?;
                            }
                            None => drop(under_way.insert((shard.0, offset), started)),
                        }
                    }
                }
                event = self.events.recv() => {
                    let ReaderEvent::Records(records) = event.context("the reader has ended")? else { continue };
                    let now = Instant::now();
                    for record in &records {
                        let Ok(decision) = decode::<Decision>(record.value.as_deref().unwrap_or_default()) else { continue };
                        let Txid { shard, offset, .. } = decision.txid;
                        match under_way.remove(&(shard.0, offset)) {
                            Some(started) => {
                                decided += 1;
                                into.record(micros(now - started))?;
                            }
                            None => drop(early.entry((shard.0, offset)).or_insert(now)),
                        }
                    }
                }
                Some(ended) = self.services.join_next() => {
                    ended.context("a service panicked")??;
                    bail!("a service ended by itself");
                }
                () = tokio::time::sleep(PATIENCE) => bail!("nothing was decided for {} s", PATIENCE.as_secs()),
            }
        }
    }

    /// Ends everything and counts the records of each topic.
    async fn stop(mut self) -> anyhow::Result<BTreeMap<String, u64>> {
        // Nobody listens any more only if all have ended.
        let _ = self.stop.send(true);
        while let Some(ended) = self.services.join_next().await {
            ended.context("a service panicked")??;
        }
        drop((self.reader, self.submitter));
        let (kafka, participants) = (self.kafka, self.participants);
        tokio::task::spawn_blocking(move || {
            let probe = Probe::start(&kafka)?;
            let mut records = BTreeMap::new();
            for topic in Topic::all(&participants) {
                let name = topic.name(&kafka.prefix);
                let mut count = 0;
                for partition in 0..i32::from(kafka.partitions) {
                    count += probe.watermarks(&name, partition)?.1;
                }
                records.insert(name, count);
            }
            Ok(records)
        })
        .await?
    }
}

/// A participant that says yes to everything.
async fn stub(kafka: KafkaSettings, participant: Participant, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    let prepare = Topic::Prepare(participant.clone()).name(&kafka.prefix);
    let decisions = Topic::Decisions.name(&kafka.prefix);
    let votes = Topic::Votes(participant.clone()).name(&kafka.prefix);
    let group = participant_group(&kafka.prefix, &participant);
    let (post_event, mut events) = mpsc::channel(64);
    let (post_member, mut member_events) = mpsc::channel(16);
    let subscribed = [prepare.clone(), decisions.clone()];
    let (outbox, reader, membership) = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        // Reports are not waited for: a vote that is lost would show as a transaction that never ends.
        let outbox = Outbox::start(&kafka, "stub", |_| {})?;
        let reader = Reader::start(&kafka, &group, post_event)?;
        let membership = Membership::start(&kafka, &group, &subscribed, post_member)?;
        Ok((outbox, reader, membership))
    })
    .await??;
    let mut read: BTreeMap<(Arc<str>, i32), u64> = BTreeMap::new();
    let mut committed = read.clone();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            event = events.recv() => {
                let ReaderEvent::Records(records) = event.context("the reader has ended")? else { continue };
                for record in records {
                    if *record.topic == *prepare
                        && let Ok(prepare) = decode::<Prepare>(record.value.as_deref().unwrap_or_default())
                    {
                        let vote = yes(&prepare, &participant);
                        let key = prepare.txid.to_string();
                        outbox
                            .append(&votes, record.partition, key.as_bytes(), Some(&encode(&vote)), Vote::TYPE, None, 0)
                            .map_err(|_| anyhow::anyhow!("the stub's queue is full"))?;
                    }
                    read.insert((record.topic, record.partition), record.offset + 1);
                }
            }
            event = member_events.recv() => match event.context("the member has ended")? {
                MemberEvent::Assigned(partitions) => {
                    for (topic, partition) in &partitions {
                        reader.seek(topic, *partition, 0);
                    }
                }
                MemberEvent::Failed(failure) if failure.is_fatal() => return Err(failure.into()),
                MemberEvent::Revoked(_) | MemberEvent::Lost | MemberEvent::Failed(_) => {}
            },
            _ = tick.tick() => {
                let commits: Vec<_> = read.iter().filter(|(place, offset)| committed.get(*place) != Some(offset)).collect();
                if commits.is_empty() { continue }
                let commits = commits.into_iter().map(|((topic, partition), offset)| Commit {
                    topic: topic.to_string(), partition: *partition, offset: *offset, metadata: "stub".to_string(),
                });
                // The next commit says it again.
                drop(membership.commit_async(commits.collect()));
                committed = read.clone();
            }
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    drop((events, member_events));
    tokio::task::spawn_blocking(move || {
        membership.leave(Duration::from_secs(10));
        reader.close(Duration::from_secs(10));
        outbox.close(Duration::from_secs(10))
    })
    .await?
    .map_err(|left| anyhow::anyhow!("{left} votes were not acknowledged"))
}

fn yes(prepare: &Prepare, participant: &Participant) -> Vote {
    let (txid, hash): (Txid, RequestHash) = (prepare.txid, prepare.hash);
    Vote {
        txid,
        participant: participant.clone(),
        vote: Ballot::Yes,
        hash,
        by: Voter::Participant,
        code: None,
        duplicate_of: None,
        inquiry: false,
    }
}

impl Figures {
    fn write(&self, f: &mut impl Write, args: &BenchArgs, embedded: bool) -> fmt::Result {
        let hop = ms(&self.hop, 0.5);
        let to_decision = ms(&self.idle, 0.5) - hop;
        let rate = self.transactions as f64 / self.elapsed.as_secs_f64();
        let cores = self.cpu.as_secs_f64() / self.elapsed.as_secs_f64();
        writeln!(
            f,
            "broker                      {}",
            if embedded { "embedded (librdkafka's mock): says little" } else { "real" }
        )?;
        writeln!(f, "branches                    {}", args.participants)?;
        writeln!(f, "hop, idle                   p50 {hop:.2} ms, p99 {:.2} ms", ms(&self.hop, 0.99))?;
        writeln!(
            f,
            "request to decision, idle   p50 {to_decision:.2} ms; limit 3 hops + 2 ms = {:.2} ms",
            3.0 * hop + 2.0
        )?;
        writeln!(
            f,
            "  until it is read again    p50 {:.2} ms, p99 {:.2} ms",
            ms(&self.idle, 0.5),
            ms(&self.idle, 0.99)
        )?;
        writeln!(
            f,
            "rate under load             {rate:.0} transactions/s ({} in {:.1} s)",
            self.transactions,
            self.elapsed.as_secs_f64()
        )?;
        writeln!(
            f,
            "  latency                   p50 {:.1} ms, p99 {:.1} ms, with {} under way",
            ms(&self.load, 0.5),
            ms(&self.load, 0.99),
            args.window
        )?;
        let unsteady = unsteady(&self.load, args.seconds);
        if let Some(unsteady) = &unsteady {
            writeln!(f, "  NOTE                      {unsteady}")?;
        }
        writeln!(
            f,
            "  CPU of this program       {cores:.2} cores, {:.0} us a transaction (submitter, coordinator and stubs)",
            self.cpu.as_micros() as f64 / self.transactions.max(1) as f64
        )?;
        writeln!(f, "records, all phases         {} transactions", self.total)?;
        for (topic, count) in &self.records {
            writeln!(f, "  {topic:<28} {count:>9}  {:.3} a transaction", *count as f64 / self.total.max(1) as f64)?;
        }
        let all: u64 = self.records.values().sum();
        writeln!(
            f,
            "  all                          {all:>9}  {:.3} a transaction (2N+2 and the outcome: {})",
            all as f64 / self.total.max(1) as f64,
            2 * u64::from(args.participants) + 3
        )?;
        if args.json {
            writeln!(
                f,
                "{}",
                serde_json::json!({
                    "embedded": embedded, "branches": args.participants,
                    "hop_p50_ms": hop, "request_to_decision_p50_ms": to_decision,
                    "idle_p50_ms": ms(&self.idle, 0.5), "idle_p99_ms": ms(&self.idle, 0.99),
                    "transactions_per_second": rate, "load_p50_ms": ms(&self.load, 0.5), "load_p99_ms": ms(&self.load, 0.99),
                    "steady": unsteady.is_none(),
                    "window": args.window, "cpu_cores": cores, "transactions": self.total, "records": self.records,
                })
            )?;
        }
        Ok(())
    }
}
