//! The model check: every state that can be reached within some bounds, through the functions of production.
//!
//! ```text
//!   World (logs, ledgers)                          a state; no time, no counter, no coordinator
//!     -> Oracle::owners(logs)                      what some coordinator can do: Shard of production, over all starts
//!     -> Ledger::{prepare, decide, purge, restore} branch, marks, restore, Lines of production
//!     -> World::tombstones                         cleanup::Sweep of production
//!     -> World::check                              what must hold, by the logs alone
//! ```
//!
//! Breadth first, so that what is found is found by a shortest way. A state is remembered by 64 bits; two that share them would
//! hide what is behind one of them: with n states the chance is n * n / 2^65.

mod alphabet;
mod hash;
mod ledger;
mod logs;
mod owners;
mod property;
mod runs;
mod situations;
mod world;

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::time::Duration;

use alphabet::Alphabet;
use hash::{Mixed, Unmixed};
use owners::Oracle;
use property::Broken;
use situations::Situation;
use world::{Action, Bounds, World};

use crate::clock;

pub use runs::{CI, FULL};
pub use world::Met;

/// What a run has come to.
#[derive(Debug)]
pub struct Explored {
    /// Different states.
    pub states: u64,
    /// Ways between them.
    pub transitions: u64,
    /// States from which everything was drained.
    pub drained: u64,
    /// The longest shortest way.
    pub depth: usize,
    /// Whether everything within the bounds was seen.
    pub is_complete: bool,
    /// What was met on the way.
    pub met: Met,
    /// Views of owners and sets of logs that were played through.
    pub played: (usize, usize),
    /// How long it took.
    pub took: Duration,
}

/// Something is broken, and how one comes there.
#[derive(Debug)]
pub struct Violation {
    /// What.
    pub broken: Broken,
    /// The shortest way.
    pub way: Vec<Action>,
    /// Where it ends.
    pub world: World,
    /// States that were seen before it was found.
    pub states: u64,
    /// How long that took.
    pub took: Duration,
}

/// A long run tells how far it is as often as this.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Every state within the bounds, or as many as there may be.
pub fn explore(bounds: &Bounds, most: u64, drain_every: u64) -> Result<Explored, Box<Violation>> {
    let start = clock::now();
    let mut told = start;
    let alphabet = Alphabet::of(bounds.asked);
    let mut oracle = Oracle::new(&alphabet, bounds);
    let mut seen: HashSet<u64, Unmixed> = HashSet::default();
    let mut frontier = vec![World::default()];
    seen.insert(fingerprint(&frontier[0]));
    let mut explored = Explored {
        states: 1,
        transitions: 0,
        drained: 0,
        depth: 0,
        is_complete: true,
        met: Met::default(),
        played: (0, 0),
        took: Duration::ZERO,
    };
    let mut next = Vec::new();
    while !frontier.is_empty() {
        let mut deeper = Vec::new();
        for (looked_at, world) in frontier.iter().enumerate() {
            if looked_at % 4_096 == 0 && told.elapsed() >= TELL_EVERY {
                told = clock::now();
                let (states, seconds) = (explored.states, start.elapsed().as_secs_f64());
                let queue = frontier.len() - looked_at + deeper.len();
                eprintln!(
                    "{}: {states} states in {seconds:.0} s, {:.0} a second, depth {}, {queue} to be looked at",
                    bounds.name,
                    states as f64 / seconds,
                    explored.depth
                );
            }
            let found = world.expand(bounds, &alphabet, &mut oracle, &mut next, &mut explored.met);
            let is_drained = drain_every > 0 && fingerprint(world).is_multiple_of(drain_every);
            let drained = found.and_then(|()| match is_drained {
                true => drain(bounds, &alphabet, &mut oracle, world),
                false => Ok(0),
            });
            match drained {
                Ok(drained) => explored.drained += drained,
                Err(broken) => {
                    let (states, took) = (explored.states, start.elapsed());
                    let way = way_to(bounds, &alphabet, world);
                    return Err(Box::new(Violation { broken, way, world: *world, states, took }));
                }
            }
            for next in next.drain(..) {
                explored.transitions += 1;
                if seen.insert(fingerprint(&next.world)) {
                    explored.states += 1;
                    deeper.push(next.world);
                }
            }
            if explored.states >= most {
                explored.is_complete = false;
                break;
            }
        }
        explored.depth += usize::from(!deeper.is_empty());
        if !explored.is_complete {
            break;
        }
        frontier = deeper;
    }
    explored.played = oracle.counts();
    explored.took = start.elapsed();
    Ok(explored)
}

/// From each positions record that can have been written, with participants that answer and with silent ones.
fn drain(bounds: &Bounds, alphabet: &Alphabet, oracle: &mut Oracle<'_>, world: &World) -> Result<u64, Broken> {
    if bounds.retention == world::Retention::Anything {
        return Ok(0);
    }
    let owners = oracle.owners(&world.logs);
    let mut drained = 0;
    for start in &owners.starts {
        // A start below what is there any more is refused: the operator deletes it.
        if start.requests < world.logs.requests_start {
            continue;
        }
        for answer in [true, false] {
            world.drain(alphabet, oracle, *start, answer)?;
            drained += 1;
        }
    }
    Ok(drained)
}

/// Finds the way to a state once more: only fingerprints were kept.
fn way_to(bounds: &Bounds, alphabet: &Alphabet, to: &World) -> Vec<Action> {
    let mut oracle = Oracle::new(alphabet, bounds);
    let wanted = fingerprint(to);
    let mut known: Vec<(World, usize, Option<Action>)> = vec![(World::default(), 0, None)];
    let mut seen: HashSet<u64, Unmixed> = HashSet::default();
    let mut at = 0;
    while at < known.len() {
        let world = known[at].0;
        if fingerprint(&world) == wanted {
            let mut way = Vec::new();
            let mut step = at;
            while let (_, before, Some(action)) = known[step] {
                way.push(action);
                step = before;
            }
            way.reverse();
            return way;
        }
        let mut next = Vec::new();
        // What is broken on the way there was found before.
        let _ = world.expand(bounds, alphabet, &mut oracle, &mut next, &mut Met::default());
        for next in next {
            if seen.insert(fingerprint(&next.world)) {
                known.push((next.world, at, Some(next.action)));
            }
        }
        at += 1;
    }
    Vec::new()
}

/// The same for a state and its mirror image.
fn fingerprint(world: &World) -> u64 {
    Mixed.hash_one(world).wrapping_add(Mixed.hash_one(world.mirrored()))
}

/// How many situations there are.
pub const SITUATIONS: usize = Situation::ALL.len();

/// Situations that none of these runs has met.
pub fn unmet(met: Met) -> Vec<Situation> {
    Situation::ALL.into_iter().filter(|situation| !met.has(*situation)).collect()
}
