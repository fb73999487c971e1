//! Measures one hop: from the hand-over of a record to its arrival through a reader, and to its delivery report.
//!
//! ```text
//! cargo run --release -p suture-topics --example hop                       # the embedded broker
//! cargo run --release -p suture-topics --example hop -- 127.0.0.1:19092    # a real one
//! ```

use std::error::Error;
use std::sync::mpsc as reports;
use std::time::{Duration, Instant};

use suture_topics::admin::apply;
use suture_topics::embedded::EmbeddedBroker;
use suture_topics::outbox::Outbox;
use suture_topics::plan::Wanted;
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::settings::KafkaSettings;
use tokio::sync::mpsc;

const HOPS: usize = 2_000;
const BURST: u64 = 300_000;
/// The embedded broker keeps 5 MiB a partition.
const EMBEDDED_BURST: u64 = 10_000;
const TOPIC: &str = "hop.requests";

fn main() -> Result<(), Box<dyn Error>> {
    let _broker;
    let (settings, burst) = match std::env::args().nth(1) {
        Some(bootstrap) => {
            let settings = KafkaSettings::new(bootstrap, "hop".parse()?);
            apply(Wanted { settings: &settings, participants: &[], allow_single_broker: true })?;
            (settings, BURST)
        }
        None => {
            let broker = EmbeddedBroker::start()?;
            let settings = broker.settings("hop".parse()?);
            broker.create_topics(&settings, &[])?;
            _broker = broker;
            (settings, EMBEDDED_BURST)
        }
    };
    let (tell, delivered) = reports::channel();
    let outbox = Outbox::start(&settings, "hop", move |delivery| drop(tell.send((delivery, now()))))?;
    let (tell, mut events) = mpsc::channel(64);
    let reader = Reader::start(&settings, "hop", tell)?;
    // The end of the log: what the first report says.
    outbox.append(TOPIC, 0, b"k", Some(b"start"), "request", None, 0)?;
    let start = delivered.recv_timeout(Duration::from_secs(30))?.0.result? + 1;
    reader.add(&[(TOPIC, 0, start)]);
    let value = [b'x'; 300];

    let (mut hops, mut acks) = (Vec::new(), Vec::new());
    for n in 0..HOPS {
        let appended = now();
        outbox.append(TOPIC, 0, b"k", Some(&value), "request", None, n as u64)?;
        while !matches!(events.blocking_recv(), Some(ReaderEvent::Records(_))) {}
        hops.push(appended.elapsed());
        acks.push(delivered.recv()?.1 - appended);
    }
    report("append to arrival", &mut hops);
    report("append to report ", &mut acks);

    let began = now();
    let producing = std::thread::spawn(move || {
        for n in 0..burst {
            while outbox.append(TOPIC, 0, b"k", Some(&value), "request", None, n).is_err() {
                std::thread::yield_now();
            }
        }
        outbox.close(Duration::from_secs(60))
    });
    let (mut read, mut batches) = (0, 0);
    while read < burst {
        match events.blocking_recv() {
            Some(ReaderEvent::Records(batch)) => {
                read += batch.len() as u64;
                batches += 1;
            }
            other => return Err(format!("the reader says {other:?}").into()),
        }
    }
    let rate = burst as f64 / began.elapsed().as_secs_f64();
    println!("burst: {rate:.0} records/s written and read at once, {} a batch", read / batches);
    producing.join().map_err(|_| "the producing thread panicked")?.map_err(|left| format!("{left} not reported"))?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "this is a measurement")]
fn now() -> Instant {
    Instant::now()
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100];
    println!("{what}: p50 {:?}, p99 {:?}", at(50), at(99));
}
