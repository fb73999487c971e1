//! Events into the upstream topic.
//!
//! The embedded broker drops the oldest records of a partition above 5 MiB, read or not. So the feeder keeps at most
//! [`WINDOW`] events unfinished and at most [`UNREAD_BYTES`] of a partition's events unread.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use suture_coordinator::ingest::IngestCounts;
use suture_topics::outbox::{Delivery, Failure, Outbox};
use tokio::sync::{mpsc, watch};

use super::watch::Progress;
use super::world::{UPSTREAM_PARTITIONS, World};

/// Most events that are fed and have no end yet.
pub const WINDOW: usize = 256;
/// The same under --crash: few enough that the kills are spread over the run.
pub const CRASH_WINDOW: usize = 16;
/// Most bytes of a partition that ingest has not read.
const UNREAD_BYTES: usize = 1 << 20;

/// Most events whose append is not acknowledged.
const MOST_UNDER_WAY: usize = 32;

/// The default limit of librdkafka's producers, less room for key and headers.
const LARGEST_EVENT: usize = 999_000;

const SAMPLES: [&str; 2] = [
    include_str!("../../samples/synthea-surgery-transactions.ndjson"),
    include_str!("../../samples/pysynthea-surgery-transactions.ndjson"),
];

/// The events of a file, one a line, or those that come with the program. The bytes stay as they are: what is broken is
/// for ingest to reject.
pub fn read_events(file: Option<&Path>) -> anyhow::Result<Vec<Vec<u8>>> {
    let Some(file) = file else {
        return Ok(SAMPLES.into_iter().flat_map(|text| texts(text.as_bytes())).collect());
    };
    let name = file.display();
    let bytes = std::fs::read(file).with_context(|| {
        format!("{name}: cannot be read; --events takes a file with one FHIR transaction Bundle a line")
    })?;
    for (number, event) in lines(&bytes) {
        let bytes = event.len();
        if bytes > LARGEST_EVENT {
            bail!(
                "{name}: line {number} has {bytes} bytes, and Kafka's producers take {LARGEST_EVENT} at most; remove it"
            );
        }
    }
    let events = texts(&bytes);
    if events.is_empty() {
        bail!("{name}: there is no event in it; --events takes one FHIR transaction Bundle a line");
    }
    Ok(events)
}

fn texts(bytes: &[u8]) -> Vec<Vec<u8>> {
    lines(bytes).map(|(_, line)| line.to_vec()).collect()
}

/// The lines that are not empty, with their numbers in the file.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let numbered = bytes.split(|byte| *byte == b'\n').enumerate().map(|(index, line)| (index + 1, line));
    numbered.filter(|(_, line)| !line.trim_ascii().is_empty())
}

/// Feeds until all events are acknowledged, or `stop` turns true. Returns how many were.
pub async fn feed(
    world: Arc<World>,
    events: Vec<Vec<u8>>,
    window: usize,
    mut progress: watch::Receiver<Progress>,
    counts: Arc<IngestCounts>,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<u64> {
    let (post, mut deliveries) = mpsc::unbounded_channel();
    let kafka = world.kafka.clone();
    let outbox = tokio::task::spawn_blocking(move || {
        Outbox::start(&kafka, "demo-feeder", move |delivery| {
            // The receiver goes away only with the feeder.
            let _ = post.send(delivery);
        })
    })
    .await??;
    let mut feeder = Feeder { world: &world, outbox: &outbox, events: &events, under_way: 0 };
    let mut fed = 0;
    // Sizes of the events that ingest has not read, in the order fed; all partitions together, which is stricter.
    let mut unread = VecDeque::new();
    let (mut unread_bytes, mut read) = (0, 0);
    while fed < events.len() {
        let now_read = counts.read.load(Ordering::Relaxed);
        for _ in read..now_read {
            unread_bytes -= unread.pop_front().unwrap_or(0);
        }
        read = now_read;
        let finished = progress.borrow_and_update().finished + counts.ignored.load(Ordering::Relaxed);
        let unfinished = (fed as u64).saturating_sub(finished);
        let length = events[fed].len();
        let fits = (unfinished as usize) < window && (unread_bytes + length <= UNREAD_BYTES || unread.is_empty());
        if fits && feeder.under_way < MOST_UNDER_WAY {
            feeder.append(fed)?;
            fed += 1;
            unread.push_back(length);
            unread_bytes += length;
            continue;
        }
        tokio::select! {
            report = deliveries.recv() => feeder.settle(report.context("the producer has ended")?)?,
            changed = progress.changed() => changed.context("the run has ended")?,
            () = stopped(&mut stop) => break,
        }
    }
    while feeder.under_way > 0 {
        feeder.settle(deliveries.recv().await.context("the producer has ended")?)?;
    }
    Ok(fed as u64)
}

struct Feeder<'a> {
    world: &'a World,
    outbox: &'a Outbox,
    events: &'a [Vec<u8>],
    /// Appends without a report: a lost one would be missed at the end.
    under_way: usize,
}

impl Feeder<'_> {
    fn append(&mut self, index: usize) -> anyhow::Result<()> {
        let (topic, key) = (&self.world.upstream, index.to_string());
        let partition = (index % usize::from(UPSTREAM_PARTITIONS)) as i32;
        let event = Some(self.events[index].as_slice());
        if self.outbox.append(topic, partition, key.as_bytes(), event, "event", None, index as u64).is_err() {
            bail!("the producer's queue is full although it holds {MOST_UNDER_WAY} events at most");
        }
        self.under_way += 1;
        Ok(())
    }

    fn settle(&mut self, report: Delivery) -> anyhow::Result<()> {
        self.under_way -= 1;
        match report.result {
            Ok(_) => Ok(()),
            Err(Failure::Again(_)) => self.append(report.token as usize),
            Err(failure @ (Failure::Refused(_) | Failure::Denied(_) | Failure::Fatal(_))) => {
                Err(failure).context("feeding an event")
            }
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An ended sender stops the feed as well.
    let _ = stop.wait_for(|stop| *stop).await;
}
