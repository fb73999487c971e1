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
        return Ok(SAMPLES.into_iter().flat_map(|text| lines(text.as_bytes())).collect());
    };
    let name = file.display();
    let bytes = std::fs::read(file).with_context(|| {
        format!("{name}: cannot be read; --events takes a file with one FHIR transaction Bundle a line")
    })?;
    let events = lines(&bytes);
    if events.is_empty() {
        bail!("{name}: there is no event in it; --events takes one FHIR transaction Bundle a line");
    }
    if let Some((index, event)) = events.iter().enumerate().find(|(_, event)| event.len() > LARGEST_EVENT) {
        let bytes = event.len();
        bail!(
            "{name}: event {} has {bytes} bytes, and Kafka's producers take {LARGEST_EVENT} at most; remove it",
            index + 1
        );
    }
    Ok(events)
}

fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).map(<[u8]>::to_vec).collect()
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
    let mut fed = 0;
    // Sizes of the events that ingest has not read, in the order fed; all partitions together, which is stricter.
    let mut unread = VecDeque::new();
    let (mut unread_bytes, mut read) = (0, 0);
    for (index, event) in events.iter().enumerate() {
        loop {
            let now_read = counts.read.load(Ordering::Relaxed);
            for _ in read..now_read {
                unread_bytes -= unread.pop_front().unwrap_or(0);
            }
            read = now_read;
            let finished = progress.borrow_and_update().finished + counts.ignored.load(Ordering::Relaxed);
            let unfinished = fed - finished.min(fed);
            if (unfinished as usize) < window && (unread_bytes + event.len() <= UNREAD_BYTES || unread.is_empty()) {
                break;
            }
            tokio::select! {
                changed = progress.changed() => changed.context("the run has ended")?,
                () = stopped(&mut stop) => return Ok(fed),
            }
        }
        if *stop.borrow() {
            break;
        }
        append(&world, &outbox, &mut deliveries, index as u64, event).await?;
        fed += 1;
        unread.push_back(event.len());
        unread_bytes += event.len();
    }
    let closed = tokio::task::spawn_blocking(move || outbox.close(std::time::Duration::from_secs(10))).await?;
    closed.map_err(|open| anyhow::anyhow!("{open} events were not acknowledged"))?;
    Ok(fed)
}

/// Appends one event and waits for its report: a lost one would be missed at the end.
async fn append(
    world: &World,
    outbox: &Outbox,
    deliveries: &mut mpsc::UnboundedReceiver<Delivery>,
    index: u64,
    event: &[u8],
) -> anyhow::Result<()> {
    let partition = (index % u64::from(UPSTREAM_PARTITIONS)) as i32;
    loop {
        let key = index.to_string();
        if outbox.append(&world.upstream, partition, key.as_bytes(), Some(event), "event", None, index).is_err() {
            bail!("the producer's queue is full although it holds one event");
        }
        match deliveries.recv().await.context("the producer has ended")?.result {
            Ok(_) => return Ok(()),
            Err(Failure::Again(_)) => {}
            Err(failure @ (Failure::Refused(_) | Failure::Fatal(_))) => {
                return Err(failure).context("feeding an event");
            }
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An ended sender stops the feed as well.
    let _ = stop.wait_for(|stop| *stop).await;
}
