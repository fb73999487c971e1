//! SIGKILL of the database servers while surgeries flow: afterwards the databases hold what they hold after a run in which
//! nobody is killed.
//!
//! **A kill counts only while a branch is open there**: this database's participant has voted yes, and while the server is
//! dead the decision log, read to its end, has no decision. So that this is so, the surgeon-log is frozen meanwhile: it
//! votes when the server has died, and what is decided then meets a dead or a recovering server.
//!
//! The hospital is on PostgreSQL and the insurer on MariaDB: once in the modes of the example, xa and reserve, and once each in
//! the other. All choices are drawn from one seed.

use std::collections::BTreeSet;

use crate::feed::Place;
use crate::kill::{Random, take};
use crate::logs::Story;
use crate::operator::no_group_lags;
use crate::rows::Rows;
use crate::world::{Options, World, succeeds};
use crate::{check, oracle, undisturbed};

/// Of each server.
const KILLS: usize = 10;

/// Who does not vote while a server is killed.
const FROZEN: &str = "surgeon-log";

/// Nothing may expire: the rows would be others.
const DEADLINE_MS: u64 = 600_000;

/// Longer than the surgeon-log is frozen.
const SESSION_TIMEOUT_MS: u32 = 30_000;

/// A server that is killed.
#[derive(Debug, Clone, Copy)]
enum Server {
    Postgres,
    Mariadb,
}

impl Server {
    fn participant(self) -> &'static str {
        match self {
            Self::Postgres => "hospital",
            Self::Mariadb => "insurer",
        }
    }

    fn kill(self, world: &World) {
        match self {
            Self::Postgres => world.cluster.kill_postgres(),
            Self::Mariadb => world.cluster.kill_mariadb(),
        }
    }

    fn start(self, world: &World) {
        match self {
            Self::Postgres => world.cluster.start_postgres(),
            Self::Mariadb => world.cluster.start_mariadb(),
        }
    }
}

#[test]
fn database_kills_change_nothing_in_the_end() {
    kill_in_modes(false);
}

#[test]
fn database_kills_in_the_other_modes_change_nothing_in_the_end() {
    kill_in_modes(true);
}

fn kill_in_modes(other_modes: bool) {
    let mut random = Random::seeded();
    let surgeries = undisturbed::surgeries();
    let undisturbed = undisturbed::rows();
    let world = World::start(&Options {
        session_timeout_ms: SESSION_TIMEOUT_MS,
        deadline_ms: DEADLINE_MS,
        other_modes,
        ..Options::default()
    });
    let (mut crew, mut feed) = (world.crew(), world.feed());
    let (mut left, mut fed) = (surgeries.clone(), Vec::new());
    let mut servers = [[Server::Postgres; KILLS], [Server::Mariadb; KILLS]].concat();
    for last in (1..servers.len()).rev() {
        servers.swap(last, random.below(last + 1));
    }
    let rounds = servers.len();
    for (done, server) in servers.into_iter().enumerate() {
        crew.surgeon_log.freeze();
        let mut now = Vec::new();
        let open = loop {
            let some = 1 + random.below((left.len() / (rounds - done)).max(1));
            let chosen = take(&mut left, some, BTreeSet::new());
            assert!(!chosen.is_empty(), "void: the sample surgeries did not last for all kills");
            now.extend(feed.feed(&chosen));
            if let Some(open) = wait_for_an_open_branch(&world, server, &now) {
                break open;
            }
        };
        server.kill(&world);
        let logs = world.follower.to_the_ends();
        let story = &logs.stories()[&open];
        assert!(story.decisions.is_empty(), "{open} was decided although a vote is missing");
        crew.surgeon_log.thaw();
        if random.below(2) == 0 {
            // The decision first, while nobody can obey it.
            world.wait_for_logs("the open transaction is decided", |logs| !logs.stories()[&open].decisions.is_empty());
        }
        server.start(&world);
        world.wait_for_the_end(&now);
        eprintln!("{server:?} killed ({} events left): {open} was open", left.len());
        fed.append(&mut now);
    }
    fed.extend(feed.feed(&left));
    world.wait_for_the_end(&fed);

    let (_, mut rows) = check::everything(&world);
    if other_modes {
        everything_is_recorded(&mut rows);
    }
    oracle::verify_rows(&oracle::expect(&surgeries), &rows);
    assert_eq!(rows.without_txids(), *undisturbed, "as if no server had been killed");
    no_group_lags(&world);
    // Exits with 1 if it finds anything that must not be.
    succeeds(&world.suture(&["audit"]));
    crew.terminate();
}

/// In mode reserve the hospital's rows have a state, which those of mode xa do without.
fn everything_is_recorded(rows: &mut Rows) {
    for row in rows.0.get_mut("hospital").into_iter().flat_map(|hospital| &mut hospital.business) {
        let state = row.fields.as_object_mut().and_then(|fields| fields.remove("state"));
        assert_eq!(state, Some("recorded".into()), "{}", row.txid);
    }
}

/// A transaction of these events to which the server's participant has said yes, and the frozen one nothing. `None`: there
/// will be none, since all are decided or wait for no one but him.
fn wait_for_an_open_branch(world: &World, server: Server, fed: &[Place]) -> Option<String> {
    let me = server.participant();
    let mut open = None;
    world.wait_for_logs(&format!("a branch of {me} is open"), |logs| {
        let stories = logs.stories();
        let ours = |story: &&Story| story.source().is_some_and(|source| fed.contains(&source));
        let is_yes = |story: &Story, name: &str| story.register(name).is_some_and(|vote| vote.text("vote") == "yes");
        // With a no of anybody else it would be decided without the frozen one.
        let is_open = |story: &&Story| {
            let named = story.named();
            named.iter().any(|name| name == me)
                && named.iter().all(|name| name == FROZEN || is_yes(story, name))
                && story.register(FROZEN).is_none()
        };
        open = stories.values().filter(ours).find(is_open).map(|story| story.txid.clone());
        // All others that are asked have voted.
        let settled = |story: &Story| {
            let voted = |name: &String| name == FROZEN || story.register(name).is_some();
            !story.decisions.is_empty() || story.named().iter().all(voted)
        };
        let rejected = logs.rejections().keys().filter(|place| fed.contains(place)).count();
        let asked = stories.values().filter(ours).count() + rejected;
        open.is_some() || (asked == fed.len() && stories.values().filter(ours).all(settled))
    });
    open
}
