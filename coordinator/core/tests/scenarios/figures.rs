//! What a shell asks a shard beside its steps: whether there is more to do, how far it has read, and figures for people.

use std::time::Duration;

use suture_contract::messages::{Ballot, Request};
use suture_contract::topic_map::Topic;
use suture_coordinator_core::shard::{Delivery, Shard, Summary};

use crate::world::{Stored, WALL_MS, World, order_key, participant, request, stored, vote};

const A: &str = "A";
const DEADLINE_MS: i64 = 30_000;

/// Two participants with topics, and an owner that has read nothing.
fn world() -> World {
    let mut world = World::default();
    world.served.extend(["p", "q"].map(participant));
    world.start(A, None);
    world
}

fn ask(world: &mut World, participants: &[&str]) -> usize {
    ask_with(world, participants, |_| {})
}

fn ask_with(world: &mut World, participants: &[&str], change: impl FnOnce(&mut Request)) -> usize {
    let offset = world.log(&Topic::Requests).len();
    let mut request = request(offset, &participants.iter().map(|name| participant(name)).collect::<Vec<_>>());
    change(&mut request);
    world.append(Topic::Requests, stored(order_key(), &request));
    offset
}

fn say(world: &mut World, offset: usize, name: &str, ballot: Ballot) {
    let (of, vote) = (participant(name), vote(offset, &participant(name), ballot));
    world.append(Topic::Votes(of), stored(vote.txid, &vote));
}

fn shard(world: &World) -> &Shard {
    &world.owners[A].shard
}

/// Steps, writes and reads until nothing is left to do.
fn settle(world: &mut World) {
    loop {
        let stepped = world.step(A);
        let sends = stepped.sends.len();
        for mut send in stepped.sends {
            world.write(&mut send);
            world.report(A, send.what, Delivery::Acknowledged);
        }
        if world.read_all(A) + sends == 0 {
            return;
        }
    }
}

#[test]
fn a_step_says_no_more_than_it_may_and_that_there_is_more() {
    let mut world = world();
    for _ in 0..3 {
        ask(&mut world, &["p", "q"]);
    }
    assert_eq!(shard(&world).next_request(), 0);
    world.read_all(A);
    assert_eq!(shard(&world).next_request(), 3);
    assert!(!shard(&world).has_due(), "not before it is live");
    world.go_live(A);
    let shard = &mut world.owners.get_mut(A).unwrap().shard;
    let mut prepares = |budget| shard.step(Duration::ZERO, budget).prepares.len();
    assert_eq!([prepares(2), prepares(3)], [2, 4], "whole transactions, until it is enough");
    assert!(!shard.has_due());
    assert_eq!(shard.next_deadline(), Some(Duration::from_millis(DEADLINE_MS as u64)));
}

#[test]
fn there_is_more_to_say_as_long_as_something_is_due() {
    let mut world = world();
    for _ in 0..2 {
        ask(&mut world, &["p", "q"]);
    }
    world.read_all(A);
    world.go_live(A);
    let shard = &mut world.owners.get_mut(A).unwrap().shard;
    shard.step(Duration::ZERO, 1);
    assert!(shard.has_due());
    shard.step(Duration::ZERO, 1);
    assert!(!shard.has_due());
}

#[test]
fn who_is_handed_on_for_more_than_ten_deadlines_gets_no_new_one() {
    for (age_ms, overdue) in [(10 * DEADLINE_MS, None), (10 * DEADLINE_MS + 1, Some(Duration::ZERO))] {
        let mut world = world();
        ask(&mut world, &["p", "q"]);
        say(&mut world, 0, "p", Ballot::Yes);
        world.read_all(A);
        world.wall_later_ms = age_ms;
        world.go_live(A);
        assert_eq!(shard(&world).next_deadline(), overdue, "{age_ms} ms");
    }
}

#[test]
fn topics_that_are_there_are_news_once() {
    let mut world = world();
    let late = participant("late");
    let shard = &mut world.owners.get_mut(A).unwrap().shard;
    assert!(!shard.standing(&late, None));
    assert!(!shard.standing(&late, None), "missing still");
    assert!(shard.standing(&late, Some(0)));
    assert!(!shard.standing(&late, Some(0)));
    assert!(!shard.standing(&participant("p"), Some(0)), "read from the beginning");
}

#[test]
fn the_oldest_without_a_decision_is_told() {
    let mut world = world();
    assert_eq!(shard(&world).oldest_open_ms(), None);
    world.append(Topic::Requests, Stored { key: Some(b"x".to_vec()), value: None });
    for (offset, later_ms) in [(1, 5), (2, 9)] {
        ask(&mut world, &["p"]);
        world.later_ms.insert((Topic::Requests, offset), later_ms);
    }
    world.read_all(A);
    world.go_live(A);
    assert_eq!(shard(&world).oldest_open_ms(), Some(WALL_MS + 5));
    say(&mut world, 1, "p", Ballot::Yes);
    world.read_all(A);
    assert_eq!(shard(&world).oldest_open_ms(), Some(WALL_MS + 9), "decided, though nothing of it is written yet");
    say(&mut world, 2, "p", Ballot::No);
    settle(&mut world);
    assert_eq!(shard(&world).oldest_open_ms(), None);
}

#[test]
fn the_summary_counts_what_it_says() {
    let mut world = world();
    let [committed, aborted] = [ask(&mut world, &["p", "q"]), ask(&mut world, &["p", "q"])];
    world.append(Topic::Requests, Stored { key: Some(order_key().into_bytes()), value: Some(b"{".to_vec()) });
    for name in ["p", "q"] {
        say(&mut world, committed, name, Ballot::Yes);
    }
    say(&mut world, aborted, "q", Ballot::No);
    world.read_all(A);
    world.go_live(A);
    settle(&mut world);
    let decided = Summary { committed: 1, aborted: 1, rejected: 1, ..Summary::default() };
    assert_eq!(shard(&world).summary(), decided);

    let of_patient = |request: &mut Request| request.ordered = true;
    ask(&mut world, &["nobody"]);
    ask_with(&mut world, &["p"], of_patient);
    ask_with(&mut world, &["p"], of_patient);
    let early = world.log(&Topic::Requests).len() + 1;
    say(&mut world, early, "p", Ballot::Yes);
    let of_another = vote(4, &participant("p"), Ballot::Yes);
    world.append(Topic::Votes(participant("q")), stored(of_another.txid, &of_another));
    settle(&mut world);
    let open = Summary { open: 3, window: 3, waiting: 1, in_line: 1, held_votes: 1, void_votes: 1, ..decided };
    assert_eq!(shard(&world).summary(), open);
}
