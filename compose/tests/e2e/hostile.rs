//! Payloads that fit the message and not the tables: of every field of every operation another type, nothing, 800,000 bytes, NUL,
//! quotes, numbers beyond the column, days that no calendar has; and 1 MB, which no request carries. Each is a `no` with a code, or text that is stored as it
//! is; and nothing of it, nor of what a database said about it, stands on any other topic or in any log.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::{Value, json};
use suture_contract::partitioner::shard_of;

use crate::check;
use crate::feed::Feed;
use crate::logs::Logs;
use crate::template::Template;
use crate::world::{Options, PARTICIPANTS, World};

/// Stands in everything hostile.
const CANARY: &str = "CANARY-8f2e";

/// As long as a request can carry.
const LONG: usize = 800_000;

/// 1 MB with what is around it, the most that a producer takes: longer than a request may be, so such a prepare is written by hand.
const LONGER: usize = 999_000;

/// What databases and drivers say about values and statements.
const SAID_BY_DATABASES: [&str; 12] = [
    "syntax error",
    "violates",
    "duplicate key value",
    "Duplicate entry",
    "too long for",
    "Data too long",
    "Out of range value",
    "out of range",
    "UNIQUE constraint failed",
    "CHECK constraint",
    "foreign key",
    "datatype mismatch",
];

#[test]
fn a_hostile_payload_is_refused_with_a_code_or_stored_as_it_is() {
    let world = World::start(&Options::default());
    let mut feed = world.feed();

    let template = Template::of_ingest(&world, &mut feed);
    let cases = cases(&template);
    assert!(cases.len() > 250, "{} cases", cases.len());
    let requests = world.topic("requests");
    let mut by_txid = BTreeMap::new();
    let letters = world.follower.letters();
    for (number, case) in cases.iter().enumerate() {
        let key = format!("test:{number}");
        let shard = shard_of(key.as_bytes(), world.kafka.partitions);
        let request = request(&template, number, case).to_string();
        let offset = feed.append(&requests, shard.partition(), key.as_bytes(), Some(request.as_bytes()));
        by_txid.insert(format!("{letters}-{shard}-{offset}"), case);
    }
    let mut crew = world.crew();
    world.wait_for_logs("all have ended", |logs| {
        logs.stories().values().all(|story| !story.outcomes.is_empty()) && logs.topic("outcomes").len() > cases.len()
    });
    for participant in PARTICIPANTS {
        world.wait_until("all decisions are applied", || world.unapplied(participant) == 0);
    }
    let (_, rows) = check::everything(&world);
    let beyond = prepares_beyond_a_request(&world, &mut feed, &template);
    world.wait_for_logs("they are voted on", |logs| {
        beyond.iter().all(|(participant, txid)| code_of(logs, participant, txid).is_some())
    });

    let logs = world.follower.to_the_ends();
    let mut codes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut stored = 0;
    let stories = logs.stories();
    for (txid, case) in &by_txid {
        let (story, is_stored) = (&stories[txid], rows.of(&case.participant).txids().contains(txid.as_str()));
        match story.verdict() {
            Some("commit") => {
                assert!(is_stored && case.kind != Kind::Nul, "{txid}: {case:?}");
                stored += 1;
            }
            _ => {
                assert!(!is_stored, "{txid}: {case:?}");
                let noes = story.noes();
                let code = noes.get(&case.participant).unwrap_or_else(|| panic!("{txid}: {case:?} has no code"));
                assert!(!["expired", "busy"].contains(&code.as_str()), "{txid}: {case:?}: {code}");
                codes.entry(format!("{:?}", case.kind)).or_default().insert(code.clone());
            }
        }
    }
    println!("{} cases: {stored} stored as they are, the others refused: {codes:?}", cases.len());
    assert!(codes.len() == Kind::ALL.len() && stored > 0, "each kind is refused somewhere");
    for (participant, txid) in &beyond {
        let code = code_of(&logs, participant, txid).expect("waited for");
        assert!(["unreadable", "statement_failed"].contains(&code.as_str()), "{participant}: {code:?}");
    }
    says_nothing_of_it(&world, &logs);
    crew.terminate();
    a_template_that_does_not_fit_is_refused_at_start(&world);
}

/// With the file, the key in it, and what the database said.
fn a_template_that_does_not_fit_is_refused_at_start(world: &World) {
    let templates = [
        ("hospital", "hospital.postgres.toml", "operation.record_surgery.prepare[4]", "insert into encounter (case_id"),
        (
            "surgeon-log",
            "surgeon-log.sqlite.toml",
            "operation.log_operation.reserve[2]",
            "insert into log_entry (case_pseudonym",
        ),
        ("insurer", "insurer.mariadb.toml", "operation.reserve_claim.reserve[2]", "insert into claim (claim_id"),
    ];
    for (participant, file, key, sql) in templates {
        let file = world.config_file().with_file_name("participants").join(file);
        let sound = fs::read_to_string(&file).unwrap();
        fs::write(&file, sound.replace(sql, &format!("{sql}_of_old"))).unwrap();
        let output = world.suture(&["participant", participant]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let column = sql.rsplit_once('(').expect("a list of columns").1;
        let words = [&file.display().to_string(), key, &format!("{column}_of_old"), "does not fit the tables"];
        assert!(!output.status.success() && words.iter().all(|word| said.contains(*word)), "{words:?}: {said}");
        println!("{}", said.trim());
        fs::write(&file, sound).unwrap();
    }
}

/// What a field is replaced by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    OtherType,
    Missing,
    Null,
    Long,
    Nul,
    Quotes,
    Big,
    Huge,
    Endless,
    NoSuchDay,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::OtherType,
        Self::Missing,
        Self::Null,
        Self::Long,
        Self::Nul,
        Self::Quotes,
        Self::Big,
        Self::Huge,
        Self::Endless,
        Self::NoSuchDay,
    ];

    fn value(self) -> Option<Value> {
        let number = |digits: &str| serde_json::from_str(digits).expect("a number");
        match self {
            Self::OtherType => Some(json!({ CANARY: [CANARY, 1, true] })),
            Self::Missing => None,
            Self::Null => Some(Value::Null),
            Self::Long => Some(json!(format!("{CANARY}{}", "x".repeat(LONG)))),
            Self::Nul => Some(json!(format!("{CANARY}\0{CANARY}"))),
            Self::Quotes => Some(json!(format!("{CANARY}'\"`\\'; drop table coverage; drop table encounter; --"))),
            // The largest number of cents that fits 64 bits: what it is added to does not fit any more.
            Self::Big => Some(number("92233720368547758.07")),
            Self::Huge => Some(number("98765432109876543210")),
            Self::Endless => Some(number("1e400")),
            Self::NoSuchDay => Some(json!(format!("2023-02-30T25:61:00Z {CANARY}"))),
        }
    }
}

/// One field of one participant's payload.
#[derive(Debug)]
struct Case {
    participant: String,
    /// As a JSON pointer.
    field: String,
    kind: Kind,
}

fn cases(template: &Template) -> Vec<Case> {
    let mut cases = Vec::new();
    for branch in template.branches() {
        let mut fields = Vec::new();
        leaves(&branch["payload"], String::new(), &mut fields);
        for field in fields {
            let participant = branch["participant"].as_str().expect("a name").to_string();
            cases.extend(Kind::ALL.map(|kind| Case { participant: participant.clone(), field: field.clone(), kind }));
        }
    }
    cases
}

/// Of a list the first item stands for all.
fn leaves(value: &Value, pointer: String, fields: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            object.iter().for_each(|(name, value)| leaves(value, format!("{pointer}/{name}"), fields));
        }
        Value::Array(items) if !items.is_empty() => leaves(&items[0], format!("{pointer}/0"), fields),
        _ => fields.push(pointer),
    }
}

/// A request with this branch alone.
fn request(template: &Template, number: usize, case: &Case) -> Value {
    let mut branch = template.branch_of_its_own(&case.participant, number);
    put(&mut branch["payload"], &case.field, case.kind.value());
    template.request(&format!("test:{number}"), &[branch])
}

fn put(payload: &mut Value, field: &str, value: Option<Value>) {
    match value {
        Some(value) => *payload.pointer_mut(field).expect("a field") = value,
        None => {
            let (parent, name) = field.rsplit_once('/').expect("a pointer");
            match payload.pointer_mut(parent).expect("its parent") {
                Value::Object(object) => drop(object.remove(name)),
                Value::Array(items) => items.clear(),
                _ => {}
            }
        }
    }
}

/// Prepares as long as Kafka takes them, of transactions that nobody asked for: one a participant.
fn prepares_beyond_a_request(world: &World, feed: &mut Feed, template: &Template) -> Vec<(&'static str, String)> {
    let letters = world.follower.letters();
    let fields = [("hospital", "/case"), ("surgeon-log", "/start"), ("insurer", "/claim")];
    fields
        .map(|(participant, field)| {
            let mut branch = template.branch(participant);
            let text = format!("{CANARY}{}", "x".repeat(LONGER - CANARY.len() - branch.to_string().len() - 500));
            put(&mut branch["payload"], field, Some(json!(text)));
            let txid = format!("{letters}-0-2000000");
            let prepare = json!({
                "type": "prepare", "v": 1, "txid": txid, "business_key": "test:longer", "attempt": 1,
                "operation": branch["operation"], "payload": branch["payload"], "hash": template.field("hash"),
            });
            let (topic, prepare) = (world.topic(&format!("prepare.{participant}")), prepare.to_string());
            feed.append(&topic, 0, txid.as_bytes(), Some(prepare.as_bytes()));
            (participant, txid)
        })
        .to_vec()
}

/// Why a participant says no; empty for a yes.
fn code_of(logs: &Logs, participant: &str, txid: &str) -> Option<String> {
    let votes = logs.topic(&format!("votes.{participant}"));
    votes.iter().find(|vote| vote.text("txid") == txid).map(|vote| vote.text("code").to_string())
}

/// Only what was asked for holds it, and the prepare of whom it was for.
fn says_nothing_of_it(world: &World, logs: &Logs) {
    for topic in logs.topics() {
        let may_hold = topic == "requests" || topic.starts_with("prepare.");
        for entry in logs.topic(topic) {
            let said = String::from_utf8_lossy(entry.value.as_deref().unwrap_or_default());
            let key = String::from_utf8_lossy(&entry.key);
            assert!(may_hold || !(said.contains(CANARY) || key.contains(CANARY)), "{} holds it", entry.place);
            if !may_hold {
                let found = SAID_BY_DATABASES.iter().find(|phrase| said.contains(**phrase));
                assert_eq!(found, None, "{}: {said}", entry.place);
            }
        }
    }
    for (process, log) in world.process_logs() {
        for line in log.lines() {
            assert!(!line.contains(CANARY), "the log of {process} holds it: {line}");
            let found = SAID_BY_DATABASES.iter().find(|phrase| line.contains(**phrase));
            assert_eq!(found, None, "the log of {process}: {line}");
        }
    }
}
