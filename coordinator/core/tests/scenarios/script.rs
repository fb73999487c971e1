//! Runs the stories. A line that begins with `>` is a command, one with `#` a comment; two spaces begin what came out, which
//! is compared. `UPDATE_GOLDEN=1` writes it instead.
//!
//! ```text
//! serve P..                      these participants have topics
//! limits window=N held=N         for the owners that come
//! request P.. [deadline=MS] [ordered] [patient=N] [hash=]   appends a request; the patient is its order key
//! vote P N yes|no [code=] [hash=] [by=] [txid=] [names=] [key=] [duplicate_of=] [inquiry] [later=60m]
//! cancel N                       appends a cancellation of the transaction at offset N
//! decide N commit|abort [hash=]  appends a decision, as another coordinator would
//! raw TOPIC KEY VALUE            appends anything; `-` is null, \xNN a byte, size:N so many letters; as a key `patient` is the
//!                                first patient, `stranger` another shard's, `odd` no order key
//! lose TOPIC N                   the records from offset N on are gone, though they were acknowledged
//! take A [from N] [at 5s] [later=10m]   reads everything from positions record N (or the logs' starts) and goes live
//! new A [from N]; live A [at 5s]        the same in two halves
//! read A [TOPIC [COUNT]]         reads on
//! feed A TOPIC N [recalled]      a record that was under way to the reader, or a request that was read once more
//! step A [at 31s] [silent|lost|refused|kept][=TOPIC]   appends; without a word everything is acknowledged
//! ack A, fail A [TOPIC]          reports on what is under way
//! land A                         what was kept reaches the broker only now
//! run A [at 31s]                 reads and steps until nothing comes any more
//! look A [start=N]               looks through the decision log for what was asked for; the requests log begins at N
//! standing A P; commit A; crash A; show A
//! ```

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use suture_contract::messages::{Ballot, Cancel, Decision, Voter};
use suture_contract::topic_map::Topic;
use suture_coordinator_core::shard::{Delivery, Limits, Raw, Record};

use crate::world::{self, Send, Stored, World, participant, stored, txid};

#[test]
fn every_story_gives_just_these_messages() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut stories: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    stories.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    stories.sort();
    assert!(!stories.is_empty());
    let mut differing = Vec::new();
    for path in stories {
        let expected = std::fs::read_to_string(&path).unwrap();
        let found = play(&expected);
        if found == expected {
            continue;
        }
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, found).unwrap();
            continue;
        }
        let line = expected.lines().zip(found.lines()).position(|(a, b)| a != b).unwrap_or_default();
        println!(
            "{}, line {}:\n- {}\n+ {}",
            path.display(),
            line + 1,
            expected.lines().nth(line).unwrap_or_default(),
            found.lines().nth(line).unwrap_or_default()
        );
        differing.push(path);
    }
    assert!(differing.is_empty(), "{differing:?}; UPDATE_GOLDEN=1 writes them anew");
}

fn play(story: &str) -> String {
    let mut world = World::default();
    let mut out = String::new();
    for line in story.lines().filter(|line| !line.starts_with("  ")) {
        let _ = writeln!(out, "{line}");
        if let Some(command) = line.strip_prefix("> ") {
            out += &run_command(&mut world, command);
        }
    }
    out
}

/// Runs one command and tells what it did: notes, then every record that was appended.
fn run_command(world: &mut World, command: &str) -> String {
    let before: Vec<(Topic, usize)> = world.logs.iter().map(|(topic, log)| (topic.clone(), log.len())).collect();
    let stopped: Vec<String> =
        world.owners.iter().filter(|(_, o)| o.stopped.is_some()).map(|(n, _)| n.clone()).collect();
    let mut notes = Vec::new();
    obey(world, command, &mut notes);
    let mut out = String::new();
    for note in notes {
        let _ = writeln!(out, "  {note}");
    }
    for (topic, log) in &world.logs {
        let known = before.iter().find(|(known, _)| known == topic).map_or(0, |(_, len)| *len);
        for (offset, record) in log.iter().enumerate().skip(known) {
            let _ = writeln!(out, "  {}@{offset} {}", short(topic), written(record));
        }
    }
    for (name, owner) in &world.owners {
        if let Some(stop) = owner.stopped.as_ref().filter(|_| !stopped.contains(name)) {
            let _ = writeln!(out, "  STOP {name}: {stop}");
        }
    }
    out
}

fn obey(world: &mut World, command: &str, notes: &mut Vec<String>) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let after = |word: &str| words.iter().position(|w| *w == word).map(|at| words[at + 1]);
    let option = |name: &str| words.iter().find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
    let number = |at: usize| words[at].parse::<usize>().unwrap_or_else(|_| panic!("a number in: {command}"));
    let name = words.get(1).copied().unwrap_or_default();
    match words[0] {
        "serve" => world.served.extend(words[1..].iter().map(|name| participant(name))),
        "limits" => {
            let limit = |name: &str, default| option(name).map_or(default, |text| text.parse().unwrap());
            let Limits { window, held_votes } = Limits::default();
            world.limits = Limits { window: limit("window", window), held_votes: limit("held", held_votes) };
        }
        "request" => {
            let names: Vec<_> = words[1..].iter().filter(|w| !w.contains('=') && **w != "ordered").collect();
            let names: Vec<_> = names.into_iter().map(|name| participant(name)).collect();
            let mut request = world::request(world.log(&Topic::Requests).len(), &names);
            request.deadline_ms = option("deadline").map_or(request.deadline_ms, |ms| ms.parse().unwrap());
            request.ordered = words.contains(&"ordered");
            request.hash = option("hash").map_or(request.hash, |hash| hash.parse().unwrap());
            let patient = world::nth_order_key(option("patient").map_or(0, |n| n.parse().unwrap()));
            world.append(Topic::Requests, stored(patient, &request));
        }
        "vote" => {
            let voter = participant(name);
            let ballot = if words[3] == "yes" { Ballot::Yes } else { Ballot::No };
            let mut vote = world::vote(number(2), &voter, ballot);
            vote.hash = option("hash").map_or(vote.hash, |hash| hash.parse().unwrap());
            vote.txid = option("txid").map_or(vote.txid, |txid| txid.parse().unwrap());
            vote.participant = option("names").map_or(vote.participant, participant);
            vote.duplicate_of = option("duplicate_of").map(|txid| txid.parse().unwrap());
            vote.inquiry = words.contains(&"inquiry");
            match option("code") {
                Some("-") => vote.code = None,
                Some(code) => vote.code = Some(code.parse().unwrap()),
                None => {}
            }
            if option("by") == Some("coordinator") {
                vote.by = Voter::Coordinator;
            }
            if let Some(later) = option("later") {
                let (topic, later_ms) = (Topic::Votes(voter.clone()), duration(later).as_millis() as i64);
                world.later_ms.insert((topic.clone(), world.log(&topic).len()), later_ms);
            }
            let key = option("key").map_or(bytes(&vote.txid.to_string()), bytes);
            world.append(Topic::Votes(voter), Stored { key, ..stored("", &vote) });
        }
        "cancel" => {
            let target = option("txid").map_or_else(|| txid(number(1)), |txid| txid.parse().unwrap());
            let cancel = Cancel { txid: target, who: "ward 3".to_string(), why: "entered twice".to_string() };
            world.append(Topic::Requests, stored(world::order_key(), &cancel));
        }
        "decide" => {
            let request = world.request_at(number(1)).unwrap();
            let decision = Decision {
                txid: txid(number(1)),
                outcome: if words[2] == "commit" {
                    suture_contract::messages::Verdict::Commit
                } else {
                    suture_contract::messages::Verdict::Abort
                },
                participants: request.branches.into_iter().map(|branch| branch.participant).collect(),
                business_key: request.business_key,
                attempt: request.attempt,
                hash: option("hash").map_or(request.hash, |hash| hash.parse().unwrap()),
            };
            world.append(Topic::Decisions, stored(decision.txid, &decision));
        }
        "raw" => {
            let value = command.splitn(4, ' ').nth(3).unwrap_or("");
            let key = match words[2] {
                "patient" => world::order_key(),
                "stranger" => world::foreign_order_key(),
                "odd" => world::odd_key(),
                key => key.to_string(),
            };
            world.append(topic(name), Stored { key: bytes(&key), value: bytes(value) });
        }
        "lose" => world.logs.get_mut(&topic(name)).unwrap().truncate(number(2)),
        "new" | "take" => {
            let from = after("from").map(|n| world.positions[n.parse::<usize>().unwrap()].clone());
            world.start(name, from.as_ref());
            world.wall_later_ms = option("later").map_or(0, |text| duration(text).as_millis() as i64);
            if let Some(at) = after("at") {
                world.owners.get_mut(name).unwrap().now = duration(at);
            }
            if words[0] == "take" {
                world.read_all(name);
                world.go_live(name);
            }
        }
        "live" => {
            if let Some(at) = after("at") {
                world.owners.get_mut(name).unwrap().now = duration(at);
            }
            world.go_live(name);
        }
        "read" => {
            let count = match words.get(2) {
                Some(of) => world.read(name, &topic(of), words.get(3).map_or(usize::MAX, |n| n.parse().unwrap())),
                None => world.read_all(name),
            };
            notes.push(format!("read {count}"));
        }
        "feed" => {
            let topic = topic(words[2]);
            let stored = world.log(&topic)[number(3)].clone();
            let raw = Raw {
                offset: number(3) as u64,
                timestamp_ms: world::WALL_MS,
                key: stored.key.as_deref(),
                value: stored.value.as_deref(),
                traceparent: None,
            };
            let owner = world.owners.get_mut(name).unwrap();
            let taken = match &topic {
                Topic::Votes(participant) => owner.shard.apply(Record::Vote(participant, raw)),
                Topic::Decisions => owner.shard.apply(Record::Decision(raw)),
                _ if words.contains(&"recalled") => owner.shard.recalled(raw),
                _ => owner.shard.apply(Record::Request(raw)),
            };
            owner.stopped = taken.err();
        }
        "step" => {
            if let Some(at) = after("at") {
                world.owners.get_mut(name).unwrap().now = duration(at);
            }
            step(world, name, &words[2..], notes);
        }
        "run" => {
            if let Some(at) = after("at") {
                world.owners.get_mut(name).unwrap().now = duration(at);
            }
            while world.read_all(name) + step(world, name, &[], notes) > 0 {}
        }
        "ack" | "fail" => {
            let of = words.get(2).map(|of| topic(of));
            let concerned = |send: &Send| of.as_ref().is_none_or(|of| *of == send.topic);
            let owner = world.owners.get_mut(name).unwrap();
            let (reported, rest) = std::mem::take(&mut owner.under_way).into_iter().partition::<Vec<_>, _>(concerned);
            owner.under_way = rest;
            for send in reported {
                let delivery = if words[0] == "ack" { Delivery::Acknowledged } else { Delivery::Again };
                world.report(name, send.what, delivery);
                notes.push(format!("{}: {} {:?}", words[0], short(&send.topic), send.what));
            }
        }
        "land" => {
            let mut under_way = std::mem::take(&mut world.owners.get_mut(name).unwrap().under_way);
            for send in under_way.iter_mut().filter(|send| !send.written) {
                world.write(send);
            }
            world.owners.get_mut(name).unwrap().under_way = under_way;
        }
        "look" => world.look_for(name, option("start").map_or(0, |n| n.parse().unwrap())),
        "standing" => world.tell_standing(name, &participant(words[2])),
        "commit" => {
            let positions = world.owners[name].shard.positions();
            let votes: Vec<_> = positions.votes.iter().map(|(p, at)| format!("{p}={at}")).collect();
            let (w, d, n) = (positions.requests, positions.decisions, world.positions.len());
            notes.push(format!("positions {n}: W={w} D={d} V {}", votes.join(" ")));
            world.positions.push(positions);
        }
        "crash" => {
            world.owners.remove(name);
        }
        "show" => {
            let shard = &world.owners[name].shard;
            let missing: Vec<_> = shard.missing().map(ToString::to_string).collect();
            notes.push(format!("{:?}", shard.summary()));
            notes.push(format!(
                "wants requests: {}, next deadline: {:?}, missing: {missing:?}",
                shard.wants_requests(),
                shard.next_deadline()
            ));
        }
        unknown => panic!("no such command: {unknown}"),
    }
}

/// One step, and what becomes of what it sends; returns how much that was.
fn step(world: &mut World, name: &str, words: &[&str], notes: &mut Vec<String>) -> usize {
    let stepped = world.step(name);
    for alarm in &stepped.alarms {
        notes.push(format!("ALARM {name}: {alarm:?}"));
    }
    for (participant, from) in &stepped.rereads {
        notes.push(format!("{name} reads votes.{participant} again from {from}"));
    }
    for offset in &stepped.recalls {
        notes.push(format!("{name} reads requests@{offset} once more"));
    }
    for txid in &stepped.seek {
        notes.push(format!("{name} looks for the decision of {txid}"));
    }
    let count = stepped.sends.len() + stepped.rereads.len() + stepped.recalls.len();
    for mut send in stepped.sends {
        let applies = |fate: &str| {
            words.iter().any(|word| match word.split_once('=') {
                Some((word, of)) => word == fate && topic(of) == send.topic,
                None => *word == fate,
            })
        };
        let fates = ["silent", "lost", "refused", "kept"];
        match fates.into_iter().find(|fate| applies(fate)) {
            None => {
                world.write(&mut send);
                world.report(name, send.what, Delivery::Acknowledged);
            }
            Some("silent") => {
                world.write(&mut send);
                world.owners.get_mut(name).unwrap().under_way.push(send);
            }
            Some(fate) => {
                notes.push(format!("({fate}) {} {}", short(&send.topic), written(&send.record)));
                match fate {
                    "lost" => world.report(name, send.what, Delivery::Again),
                    "refused" => world.report(name, send.what, Delivery::Refused),
                    _ => world.owners.get_mut(name).unwrap().under_way.push(send),
                }
            }
        }
    }
    count
}

fn duration(text: &str) -> Duration {
    match text.strip_suffix('m') {
        Some(minutes) => Duration::from_secs(60 * minutes.parse::<u64>().unwrap()),
        None => Duration::from_millis(text.strip_suffix('s').map_or_else(
            || panic!("a time in s or m: {text}"),
            |seconds| (1_000.0 * seconds.parse::<f64>().unwrap()) as u64,
        )),
    }
}

fn topic(text: &str) -> Topic {
    let found = Topic::parse(&format!("suture.{text}"), &"suture".parse().unwrap());
    found.unwrap_or_else(|| panic!("no such topic: {text}"))
}

/// A topic's name without the prefix.
fn short(topic: &Topic) -> String {
    topic.name(&"suture".parse().unwrap()).replacen("suture.", "", 1)
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    if text == "-" {
        return None;
    }
    if let Some(size) = text.strip_prefix("size:") {
        return Some(vec![b'x'; size.parse().unwrap()]);
    }
    let mut parts = text.split("\\x");
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        out.push(u8::from_str_radix(&part[..2], 16).unwrap());
        out.extend(&part.as_bytes()[2..]);
    }
    Some(out)
}

/// Key and value, as a console shows them.
fn written(record: &Stored) -> String {
    let text = |bytes: &Option<Vec<u8>>| match bytes {
        None => "(null)".to_string(),
        Some(bytes) if bytes.len() > 1_000 => format!("({} bytes)", bytes.len()),
        Some(bytes) => String::from_utf8(bytes.clone()).unwrap_or_else(|_| bytes.escape_ascii().to_string()),
    };
    format!("{} {}", text(&record.key), text(&record.value))
}
