//! Simulation by seed (layer S): the services that run in production, over a Kafka and databases in memory, whose time is
//! tokio's paused clock and whose chance is the seed's. One seed is one run is one digest, on every machine.

mod check;
mod command;
mod operator;
mod plan;
mod processes;
mod shrink;
mod world;

use std::collections::BTreeMap;

pub use command::{Args, simulate};

use sha2::{Digest, Sha256};
use suture_contract::ids::Txid;
use suture_contract::messages::Verdict;

use check::Story;
use plan::Plan;
use world::World;

/// What a run came to.
struct Ran {
    /// Of everything that was ever written.
    pub digest: String,
    /// What must not be.
    pub wrong: Vec<String>,
    /// How many were committed, and how many aborted.
    pub committed: u64,
    /// See there.
    pub aborted: u64,
    /// How often each kind of fault met an open transaction.
    pub hits: BTreeMap<&'static str, u64>,
}

/// Runs a plan.
fn run(plan: Plan) -> Ran {
    let (world, wrong) = world::run(plan);
    let stories = world.stories();
    let verdicts: Vec<Verdict> =
        stories.values().filter_map(|story| Some(story.decisions.first()?.1.outcome)).collect();
    let committed = verdicts.iter().filter(|verdict| **verdict == Verdict::Commit).count() as u64;
    Ran {
        digest: digest(&world),
        wrong,
        committed,
        aborted: verdicts.len() as u64 - committed,
        hits: hits(&world, &stories),
    }
}

fn digest(world: &World) -> String {
    let mut digest = Sha256::new();
    for topic in world.cluster.topics() {
        for partition in 0..world.cluster.partitions(&topic) {
            for record in world.cluster.history(&topic, partition) {
                digest.update(topic.as_bytes());
                digest.update(record.offset.to_be_bytes());
                digest.update(record.timestamp_ms.unwrap_or_default().to_be_bytes());
                digest.update(record.key.as_deref().unwrap_or_default());
                digest.update(record.value.as_deref().unwrap_or_default());
            }
        }
    }
    for database in &world.databases {
        digest.update(format!("{:?}", database.count()));
    }
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The one kind of fault after which a branch is open again that was finished.
const REOPENS: &str = "undone_rollback";

/// A fault counts if a transaction was open that it touched: asked for, and not yet finished in all ledgers.
fn hits(world: &World, stories: &BTreeMap<Txid, Story>) -> BTreeMap<&'static str, u64> {
    let open: Vec<(Txid, i64, i64, Vec<&str>)> = world
        .asked
        .values()
        .map(|asked| {
            let applied = world.applied.get(&asked.txid).map(|at| at.as_millis() as i64);
            let told = stories[&asked.txid].outcomes.first().map(|(at, _)| at - world::BEGINS_MS);
            let told = applied.max(told).unwrap_or(i64::MAX);
            let names = asked.request.branches.iter().map(|branch| branch.participant.as_str()).collect();
            (asked.txid, asked.at.as_millis() as i64, told, names)
        })
        .collect();
    let mut hits = BTreeMap::new();
    for struck in &world.struck {
        let at = struck.at.as_millis() as i64;
        let touches = |(txid, asked, told, names): &(Txid, i64, i64, Vec<&str>)| {
            ((*asked..=*told).contains(&at) || struck.kind == REOPENS)
                && struck.txid.is_none_or(|of| of == *txid)
                && struck.shard.is_none_or(|of| of == txid.shard)
                && struck.participant.is_none_or(|of| names.contains(&of))
        };
        *hits.entry(struck.kind).or_default() += u64::from(open.iter().any(touches));
    }
    hits
}
