//! What an open transaction costs in memory, counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use suture_contract::codec::encode;
use suture_contract::ids::{Attempt, Participant, Shard as ShardId, Txid};
use suture_contract::messages::{Ballot, Branch, Request, Vote, Voter};
use suture_contract::partitioner::shard_of;
use suture_coordinator_core::positions::Positions;
use suture_coordinator_core::shard::{Delivery, Limits, Raw, Record, Shard};

const TRANSACTIONS: u64 = 30_000;
const MOST_BYTES: usize = 400;
const PARTITIONS: u16 = 12;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

/// Counts the bytes that are asked for and not given back.
struct Counting;

// SAFETY: hands everything on to the system's allocator, and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Whether requests ask for ordered keys, and how many patients there are.
#[derive(Debug, Clone, Copy)]
struct Order {
    ordered: bool,
    patients: u64,
}

/// One test, for the allocator counts all threads.
#[test]
fn an_open_transaction_costs_at_most_400_bytes() {
    for order in [
        Order { ordered: false, patients: 1 },
        // Each is the first of its line.
        Order { ordered: true, patients: TRANSACTIONS },
        // All but one wait for their turn.
        Order { ordered: true, patients: 1 },
    ] {
        let bytes = bytes_a_transaction(order);
        println!("an open transaction costs {bytes} bytes: {order:?}");
        assert!(bytes <= MOST_BYTES, "{bytes} bytes, {order:?}");
    }
}

fn bytes_a_transaction(order: Order) -> usize {
    let participants: Vec<Participant> =
        ["hospital", "surgeon-log", "insurer"].iter().map(|name| name.parse().unwrap()).collect();
    let log = "k3f9q".parse().unwrap();
    let positions = Positions { votes: participants.iter().map(|p| (p.clone(), 0)).collect(), ..Positions::default() };
    // Pseudonyms are 32 hex digits, like these.
    let mut order_keys = (0..)
        .map(|patient: u64| format!("{patient:032x}"))
        .filter(|key| shard_of(key.as_bytes(), PARTITIONS) == ShardId(3));
    let mut order_key = order_keys.next().unwrap();

    let before = ALLOCATED.load(Ordering::Relaxed);
    let limits = Limits { window: TRANSACTIONS as usize + 1, ..Limits::default() };
    let mut shard = Shard::new(log, ShardId(3), PARTITIONS, "suture.requests".to_string(), limits, &positions);
    for participant in &participants {
        shard.caught_up(participant);
    }
    shard.go_live(Duration::ZERO, 0);
    for offset in 0..TRANSACTIONS {
        if offset > 0 && offset < order.patients {
            order_key = order_keys.next().unwrap();
        }
        let business_key = format!("surgery:{offset:032x}").parse().unwrap();
        let branch = |participant: &Participant| Branch {
            participant: participant.clone(),
            operation: "record_surgery".to_string(),
            payload: serde_json::value::RawValue::from_string(format!(r#"{{"note":"{:0>288}"}}"#, offset)).unwrap(),
        };
        let branches: Vec<Branch> = participants.iter().map(branch).collect();
        let hash = format!("k1:{offset:032x}").parse().unwrap();
        let attempt = Attempt::FIRST;
        let request = Request {
            business_key,
            attempt,
            rule: "surgery".to_string(),
            source: None,
            deadline_ms: 30_000,
            ordered: order.ordered,
            branches,
            hash,
        };
        let now = Duration::from_millis(offset / 10);
        shard.apply(Record::Request(raw(offset, order_key.as_bytes(), &encode(&request)))).unwrap();
        for append in shard.step(now, usize::MAX).prepares {
            shard.delivered(append.what, Delivery::Acknowledged).unwrap();
        }
        for participant in &participants[..2] {
            let txid = Txid { log, shard: ShardId(3), offset };
            let vote = Vote {
                txid,
                participant: participant.clone(),
                vote: Ballot::Yes,
                hash,
                by: Voter::Participant,
                code: None,
                duplicate_of: None,
                inquiry: false,
            };
            shard.apply(Record::Vote(participant, raw(offset, txid.to_string().as_bytes(), &encode(&vote)))).unwrap();
        }
        let step = shard.step(now, usize::MAX);
        assert!(step.prepares.is_empty() && step.noes.is_empty() && step.decisions.is_empty());
    }
    let bytes = (ALLOCATED.load(Ordering::Relaxed) - before) / TRANSACTIONS as usize;
    assert_eq!(shard.summary().open, TRANSACTIONS as usize);
    bytes
}

fn raw<'a>(offset: u64, key: &'a [u8], value: &'a [u8]) -> Raw<'a> {
    Raw { offset, timestamp_ms: 1_700_000_000_000, key: Some(key), value: Some(value), traceparent: None }
}
