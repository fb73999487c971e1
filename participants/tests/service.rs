//! The service between an embedded broker and a SQLite file: what it votes, acknowledges, passes, and stops at.

mod common;
#[path = "service/incidents.rs"]
mod incidents;
#[path = "service/restore.rs"]
mod restore;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{decision, hash, txid};
use rusqlite::Connection;
use serde_json::value::RawValue;
use suture_contract::codec::{Message, decode, encode};
use suture_contract::ids::{Attempt, LogLetters, Participant, Txid};
use suture_contract::messages::{Ballot, Decision, Prepare, Verdict, Vote};
use suture_participants::config::{Database, ParticipantConfig, UpkeepSettings};
use suture_participants::opened::OpenedResource;
use suture_participants::resource::Resource;
use suture_participants::service::{self, ServiceError};
use suture_topics::acks::GroupOffsets;
use suture_topics::embedded::EmbeddedBroker;
use suture_topics::membership::{Commit, Committed, MemberEvent, Membership};
use suture_topics::outbox::Outbox;
use suture_topics::probe::Probe;
use suture_topics::reader::{Reader, ReaderEvent};
use suture_topics::settings::KafkaSettings;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const CONFIG: &str = r#"
name = "bank"
mode = "reserve"
[database]
kind = "sqlite"
path = "bank.sqlite"
[operation.put]
confirm = [{ sql = "update item set done = done + 1 where txid = :txid", rows = 1 }]
cancel = [{ sql = "delete from item where txid = :txid", rows = 1 }]
reserve = [{ sql = "insert into item (id, txid) values (:id, :txid)", rows = 1, unique = "TAKEN" }]
parameters.id = { path = "/id", type = "text" }
[operation.after]
confirm = [{ sql = "update item set done = 1 where txid = :txid", rows = 1 }]
cancel = [{ sql = "delete from item where txid = :txid", rows = 1 }]
[[operation.after.reserve]]
sql = "update item set done = done where id = :needs"
rows = 1
code = "MISSING"
[[operation.after.reserve]]
sql = "insert into item (id, txid) values (:id, :txid)"
rows = 1
[operation.after.parameters]
id = { path = "/id", type = "text" }
needs = { path = "/needs", type = "text" }
"#;

const SCHEMA: &str =
    "create table if not exists item (id text primary key, done integer not null default 0, txid text not null) strict";

const PREPARES: &str = "suture.prepare.bank";
const VOTES: &str = "suture.votes.bank";
const DECISIONS: &str = "suture.decisions";
const GROUP: &str = "suture.participant.bank";

/// Long enough for a rebalance; a test that waits for so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A broker, a file, and the coordinator's side of the topics.
struct World {
    _broker: EmbeddedBroker,
    kafka: KafkaSettings,
    folder: tempfile::TempDir,
    outbox: Outbox,
    votes: mpsc::Receiver<ReaderEvent>,
    unread: std::collections::VecDeque<(Vote, Option<String>)>,
    _reader: Reader,
}

/// A running service.
struct Running {
    stop: watch::Sender<bool>,
    service: JoinHandle<Result<(), ServiceError>>,
    ledger: String,
}

impl World {
    fn new() -> Self {
        Self::of_log(None)
    }

    /// Whose requests have these letters, or new ones.
    fn of_log(letters: Option<LogLetters>) -> Self {
        let broker = EmbeddedBroker::start().unwrap();
        let mut kafka = broker.settings("suture".parse().unwrap());
        kafka.log_letters = letters.or(kafka.log_letters);
        kafka.partitions = 3;
        broker.create_topics(&kafka, &["bank".parse().unwrap()]).unwrap();
        let outbox = Outbox::start(&kafka, "test", |_| ()).unwrap();
        let (sender, votes) = mpsc::channel(16);
        let reader = Reader::start(&kafka, "test", sender).unwrap();
        reader.add(&[(VOTES, 0, 0), (VOTES, 1, 0), (VOTES, 2, 0)]);
        let folder = tempfile::tempdir().unwrap();
        Self { _broker: broker, kafka, folder, outbox, votes, unread: Default::default(), _reader: reader }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("bank.sqlite")
    }

    async fn resource(&self) -> OpenedResource {
        self.resource_with(SCHEMA).await
    }

    async fn resource_with(&self, schema: &str) -> OpenedResource {
        let config = ParticipantConfig::parse(CONFIG, &self.folder.path().join("bank.toml")).unwrap();
        assert!(matches!(config.database, Database::Sqlite(_)));
        let mut opening = config.opening(&self.kafka.prefix, None, false).unwrap();
        opening.schema = Some(schema.to_string());
        OpenedResource::open(&config, opening).await.unwrap()
    }

    async fn start(&self) -> Running {
        self.start_with(UpkeepSettings::default()).await
    }

    async fn start_with(&self, upkeep: UpkeepSettings) -> Running {
        self.serve(self.resource().await, upkeep)
    }

    fn serve(&self, resource: impl Resource, upkeep: UpkeepSettings) -> Running {
        let resource = Arc::new(resource);
        let ledger = resource.ledger_id();
        let (stop, stopped) = watch::channel(false);
        let kafka = self.kafka.clone();
        let participant: Participant = "bank".parse().unwrap();
        let service = tokio::spawn(async move { service::run(&kafka, &participant, resource, upkeep, stopped).await });
        Running { stop, service, ledger }
    }

    /// A txid of this broker's requests.
    fn txid(&self, shard: u16, offset: u64) -> Txid {
        format!("{}-{shard}-{offset}", self.kafka.log_letters.unwrap()).parse().unwrap()
    }

    fn prepare(&self, shard: u16, offset: u64, id: &str) -> Prepare {
        let payload = format!(r#"{{"id":"{id}"}}"#);
        Prepare {
            txid: self.txid(shard, offset),
            business_key: format!("item:{id}").parse().unwrap(),
            attempt: Attempt::FIRST,
            operation: "put".to_string(),
            hash: hash(&payload),
            payload: RawValue::from_string(payload).unwrap(),
            order_key: None,
        }
    }

    /// An item that there can only be where there is another one.
    fn prepare_after(&self, shard: u16, offset: u64, id: &str, needs: &str) -> Prepare {
        let payload = format!(r#"{{"id":"{id}","needs":"{needs}"}}"#);
        Prepare {
            operation: "after".to_string(),
            hash: hash(&payload),
            payload: RawValue::from_string(payload).unwrap(),
            ..self.prepare(shard, offset, id)
        }
    }

    fn append<M: Message>(&self, topic: &str, txid: Txid, message: &M) {
        self.append_raw(topic, txid.shard.partition(), &txid.to_string(), Some(&encode(message)));
    }

    fn append_raw(&self, topic: &str, partition: i32, key: &str, value: Option<&[u8]>) {
        let trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        self.outbox.append(topic, partition, key.as_bytes(), value, "test", trace, 0).unwrap();
    }

    /// The same, of an order key.
    fn ordered(&self, shard: u16, offset: u64, id: &str, key: &str) -> Prepare {
        Prepare { order_key: Some(key.parse().unwrap()), ..self.prepare(shard, offset, id) }
    }

    fn ask(&self, prepare: &Prepare) {
        self.append(PREPARES, prepare.txid, prepare);
    }

    fn decide(&self, prepare: &Prepare, outcome: Verdict) {
        self.append(DECISIONS, prepare.txid, &*decision(prepare, outcome));
    }

    async fn vote(&mut self) -> (Vote, Option<String>) {
        loop {
            if let Some(vote) = self.unread.pop_front() {
                return vote;
            }
            let event = timeout(PATIENCE, self.votes.recv()).await.expect("no vote came").unwrap();
            if let ReaderEvent::Records(records) = event {
                for record in records {
                    let vote: Vote = decode(&record.value.unwrap()).unwrap();
                    assert_eq!(record.key.unwrap(), vote.txid.to_string().as_bytes());
                    assert_eq!(record.partition, vote.txid.shard.partition());
                    self.unread.push_back((vote, record.traceparent));
                }
            }
        }
    }

    async fn ballot(&mut self, prepare: &Prepare) -> (Ballot, Option<String>) {
        let (vote, _) = self.vote().await;
        assert_eq!((vote.txid, vote.hash), (prepare.txid, prepare.hash));
        (vote.vote, vote.code.map(|code| code.to_string()))
    }

    /// A branch that is in doubt here.
    async fn said_yes(&mut self, shard: u16, offset: u64, id: &str) -> Prepare {
        let branch = self.prepare(shard, offset, id);
        self.ask(&branch);
        assert_eq!(self.ballot(&branch).await, YES);
        branch
    }

    /// Waits for a vote that this branch says again.
    async fn inquiry(&mut self, prepare: &Prepare) {
        loop {
            let (vote, _) = self.vote().await;
            if vote.inquiry && vote.txid == prepare.txid {
                assert_eq!((vote.vote, vote.hash), (Ballot::Yes, prepare.hash));
                return;
            }
        }
    }

    /// Waits until the group's offset on a topic's partition is this.
    async fn until_acknowledged(&self, topic: &'static str, partition: i32, offset: u64) -> Committed {
        let kafka = self.kafka.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let mut offsets = GroupOffsets::new(&kafka);
            loop {
                let committed = offsets.committed(GROUP, &[(topic, partition)]).unwrap().remove(0);
                match committed {
                    Some(committed) if committed.offset == offset => return committed,
                    Some(committed) => {
                        assert!(committed.offset < offset, "{topic}/{partition} is at {}", committed.offset)
                    }
                    None => {}
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        timeout(PATIENCE, asking).await.expect("not acknowledged").unwrap()
    }

    /// A backup that knows of no transaction.
    async fn copy_of_a_new_one(&self) -> Vec<u8> {
        let running = self.start().await;
        self.until_acknowledged(DECISIONS, 0, 0).await;
        running.stop().await;
        self.copy().await
    }

    /// The file, when nobody has it open any more.
    async fn copy(&self) -> Vec<u8> {
        self.until_closed().await;
        std::fs::read(self.file()).unwrap()
    }

    async fn put_back(&self, copy: &[u8]) {
        self.until_closed().await;
        std::fs::write(self.file(), copy).unwrap();
    }

    /// Whoever closes it last tidies its log away.
    async fn until_closed(&self) {
        let log = self.folder.path().join("bank.sqlite-wal");
        let closing = async {
            while log.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, closing).await.expect("the file is still open");
    }

    /// Waits until the decisions are acknowledged up to here under one name, which is another one than before.
    async fn until_renamed(&self, before: &str, ends: &[(i32, u64)]) -> String {
        let (kafka, before, ends) = (self.kafka.clone(), before.to_string(), ends.to_vec());
        let asking = tokio::task::spawn_blocking(move || {
            let mut offsets = GroupOffsets::new(&kafka);
            let partitions: Vec<(&str, i32)> = ends.iter().map(|(shard, _)| (DECISIONS, *shard)).collect();
            loop {
                let committed = offsets.committed(GROUP, &partitions).unwrap();
                let name = committed[0].as_ref().map(|committed| committed.metadata.clone()).unwrap_or_default();
                let is_there = |(committed, (_, end)): (&Option<Committed>, &(i32, u64))| {
                    committed.as_ref().is_some_and(|there| there.offset == *end && there.metadata == name)
                };
                if name != before && committed.iter().zip(&ends).all(is_there) {
                    return name;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        timeout(PATIENCE, asking).await.expect("not acknowledged anew").unwrap()
    }

    /// Waits until a partition ends here: appends are on their way for a moment.
    async fn until_appended(&self, topic: &'static str, partition: i32, end: u64) {
        let kafka = self.kafka.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let probe = Probe::start(&kafka).unwrap();
            while probe.watermarks(topic, partition).unwrap().1 < end {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        timeout(PATIENCE, asking).await.expect("not appended").unwrap();
    }

    /// Appends until the first record of a partition is gone, and what stands there now is none of the service's; answers where the
    /// partition ends.
    async fn trim(&self, topic: &'static str, partition: i32) -> u64 {
        let (kafka, outbox) = (self.kafka.clone(), &self.outbox);
        let probe = Probe::start(&kafka).unwrap();
        let range = || tokio::task::block_in_place(|| probe.watermarks(topic, partition).unwrap());
        let trimming = async {
            while range().0 < 2 {
                let end = range().1;
                outbox.append(topic, partition, b"x", Some(&[b'{'; 900_000]), "test", None, 0).unwrap();
                self.until_appended(topic, partition, end + 1).await;
            }
        };
        timeout(PATIENCE, trimming).await.expect("nothing is trimmed");
        range().1
    }

    async fn until_counted(&self, sql: &str, wanted: i64) {
        let counting = async {
            while self.number(sql) != wanted {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, counting).await.expect("another number stays");
    }

    /// As Kafka's tools do, which write no metadata.
    async fn set_offset_by_hand(&self, topic: &'static str, partition: i32, offset: u64) {
        let (tell, mut events) = mpsc::channel(4);
        let member = Membership::start(&self.kafka, GROUP, &[topic.to_string()], tell).unwrap();
        let joined = async {
            loop {
                match events.recv().await.expect("a living member") {
                    MemberEvent::Assigned(partitions) if !partitions.is_empty() => return,
                    MemberEvent::Failed(failure) => panic!("{failure}"),
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, joined).await.expect("not joined");
        let commit = Commit { topic: topic.to_string(), partition, offset, metadata: String::new() };
        let committed = tokio::task::spawn_blocking(move || {
            member.commit(vec![commit]).unwrap();
            assert!(member.leave(PATIENCE));
        });
        committed.await.unwrap();
    }

    fn number(&self, sql: &str) -> i64 {
        Connection::open(self.file()).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

impl Running {
    async fn stop(self) {
        self.end().await.unwrap();
    }

    async fn end(self) -> Result<(), ServiceError> {
        self.stop.send(true).unwrap();
        timeout(PATIENCE, self.service).await.expect("it does not end").unwrap()
    }

    async fn kill(self) {
        self.service.abort();
        assert!(self.service.await.unwrap_err().is_cancelled());
    }
}

const YES: (Ballot, Option<String>) = (Ballot::Yes, None);

fn no(code: &str) -> (Ballot, Option<String>) {
    (Ballot::No, Some(code.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn prepares_are_voted_and_decisions_are_acknowledged() {
    let mut world = World::new();
    let running = world.start().await;
    let (one, two, three) = (world.prepare(0, 0, "a"), world.prepare(1, 0, "b"), world.prepare(2, 0, "a"));
    world.ask(&one);
    let (vote, trace) = world.vote().await;
    assert_eq!((vote.txid, vote.vote), (one.txid, Ballot::Yes));
    assert!(trace.unwrap().starts_with("00-0af7"), "the prepare's traceparent is the vote's");
    world.ask(&two);
    assert_eq!(world.ballot(&two).await, YES);
    world.ask(&three);
    assert_eq!(world.ballot(&three).await, no("in_progress"));
    assert_eq!(world.number("select count(*) from item where done"), 0);
    world.until_acknowledged(PREPARES, 0, 1).await;

    world.decide(&one, Verdict::Commit);
    world.decide(&two, Verdict::Abort);
    world.decide(&three, Verdict::Abort);
    let not_ours = Decision {
        participants: vec!["somebody".parse().unwrap()],
        ..Decision::clone(&decision(&world.prepare(0, 1, "c"), Verdict::Commit))
    };
    world.append(DECISIONS, not_ours.txid, &not_ours);
    world.append_raw(DECISIONS, 0, &world.txid(0, 2).to_string(), None);
    let acknowledged = world.until_acknowledged(DECISIONS, 0, 3).await;
    assert_eq!(acknowledged.metadata, running.ledger);
    assert_eq!(world.until_acknowledged(DECISIONS, 1, 1).await.metadata, running.ledger);
    world.until_acknowledged(DECISIONS, 2, 1).await;
    assert_eq!(world.number("select count(*) from item"), 1);
    assert_eq!(world.number("select count(*) from item where done and id = 'a'"), 1);
    running.stop().await;

    // Copies, after a restart: answered as before, and no row changes.
    let running = world.start().await;
    world.ask(&one);
    assert_eq!(world.ballot(&one).await, YES);
    world.decide(&one, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 4).await;
    let again = world.prepare(0, 9, "a");
    world.ask(&again);
    let (vote, _) = world.vote().await;
    assert_eq!((vote.code.unwrap().as_str(), vote.duplicate_of), ("duplicate", Some(one.txid)));
    assert_eq!(world.number("select count(*) from item"), 1);
    running.stop().await;
}

/// R10: the decision of the one before may come after the next one's prepare.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_is_parked_while_the_one_before_it_is_in_doubt() {
    let mut world = World::new();
    let running = world.start().await;
    let (one, two) = (world.ordered(0, 0, "a", "patient-1"), world.ordered(0, 1, "b", "patient-1"));
    let (given_up, other) = (world.ordered(0, 2, "c", "patient-1"), world.ordered(0, 3, "d", "patient-2"));
    world.ask(&one);
    assert_eq!(world.ballot(&one).await, YES);
    world.ask(&two);
    world.ask(&given_up);
    world.ask(&other);
    assert_eq!(world.ballot(&other).await, YES, "another key is not held up");
    // It expires while it is parked.
    world.decide(&given_up, Verdict::Abort);
    world.until_acknowledged(DECISIONS, 0, 1).await;
    assert_eq!(world.ballot(&given_up).await, no("aborted"), "it waits for nobody any more");
    world.until_acknowledged(PREPARES, 0, 1).await;
    world.decide(&one, Verdict::Commit);
    assert_eq!(world.ballot(&two).await, YES);
    assert_eq!(world.number("select count(*) from item where id = 'a' and done"), 1);
    world.decide(&two, Verdict::Commit);
    world.decide(&other, Verdict::Abort);
    world.until_acknowledged(DECISIONS, 0, 4).await;
    world.until_acknowledged(PREPARES, 0, 4).await;

    // A repeat of what was decided long ago keeps nobody waiting for ever.
    world.ask(&two);
    assert_eq!(world.ballot(&two).await, YES);
    let next = world.ordered(0, 4, "e", "patient-1");
    world.ask(&next);
    assert_eq!(world.ballot(&next).await, YES);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_prepare_is_parked_after_a_restart_too() {
    let mut world = World::new();
    let running = world.start().await;
    let (one, two) = (world.ordered(0, 0, "a", "patient-1"), world.ordered(0, 1, "b", "patient-1"));
    world.ask(&one);
    assert_eq!(world.ballot(&one).await, YES);
    world.until_acknowledged(PREPARES, 0, 1).await;
    world.ask(&two);
    running.kill().await;

    // The ledger does not know the key of what is in doubt.
    let running = world.start().await;
    let elsewhere = world.ordered(1, 0, "c", "patient-1");
    world.ask(&elsewhere);
    assert_eq!(world.ballot(&elsewhere).await, YES);
    world.decide(&one, Verdict::Commit);
    assert_eq!(world.ballot(&two).await, YES);
    assert_eq!(world.number("select count(*) from item where id = 'a' and done"), 1, "decided first");
    running.stop().await;
}

/// More than are held at once, behind one that is in doubt since before: they expire, and others are read again.
#[tokio::test(flavor = "multi_thread")]
async fn parked_prepares_that_have_expired_take_no_room() {
    let mut world = World::new();
    let running = world.start().await;
    let stuck = world.ordered(0, 0, "stuck", "patient-0");
    world.ask(&stuck);
    assert_eq!(world.ballot(&stuck).await, YES);
    world.until_acknowledged(PREPARES, 0, 1).await;
    running.kill().await;

    let running = world.start().await;
    const PARKED: u64 = 1_200;
    for n in 1..=PARKED {
        let next = world.ordered(0, n, &format!("i{n}"), &format!("patient-{n}"));
        world.ask(&next);
        world.decide(&next, Verdict::Abort);
        if n % 200 == 0 {
            world.until_appended(DECISIONS, 0, n).await;
        }
    }
    world.until_counted("select count(*) from suture_ledger where state = 'aborted'", PARKED as i64).await;
    let plain = world.prepare(1, 0, "plain");
    world.ask(&plain);
    world.until_acknowledged(PREPARES, 1, 1).await;
    world.until_acknowledged(PREPARES, 0, PARKED + 1).await;
    assert_eq!(world.number("select count(*) from item"), 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_off_is_done_again() {
    let mut world = World::new();
    let running = world.start().await;
    let branch = world.said_yes(0, 0, "a").await;
    running.kill().await;
    // R8: copies of one decision, for one batch.
    for _ in 0..3 {
        world.decide(&branch, Verdict::Commit);
    }
    world.until_appended(DECISIONS, 0, 3).await;
    let running = world.start().await;
    world.until_acknowledged(DECISIONS, 0, 3).await;
    assert_eq!(world.number("select count(*) from item where done"), 1);
    running.stop().await;
}

/// R8: copies that lie behind one another are carried out one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_decision_take_effect_once() {
    let mut world = World::new();
    let running = world.start().await;
    let branch = world.said_yes(0, 0, "a").await;
    running.stop().await;
    for _ in 0..5 {
        world.decide(&branch, Verdict::Commit);
    }
    world.until_appended(DECISIONS, 0, 5).await;
    let running = world.start().await;
    world.until_acknowledged(DECISIONS, 0, 5).await;
    assert_eq!(world.number("select done from item"), 1);
    running.stop().await;
}

/// R9: the database's own row alone says where to start.
#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_was_set_by_hand_skips_nothing() {
    let mut world = World::new();
    let running = world.start().await;
    let branch = world.said_yes(0, 0, "a").await;
    running.stop().await;
    world.decide(&branch, Verdict::Commit);
    world.until_appended(DECISIONS, 0, 1).await;
    world.set_offset_by_hand(DECISIONS, 0, 1).await;

    let running = world.start().await;
    world
        .until_counted("select count(*) from suture_positions where topic = 'suture.decisions' and next_offset = 1", 1)
        .await;
    assert_eq!(world.number("select count(*) from item where done"), 1);
    running.stop().await;
}

/// R9: a week without the participant, and the group's offsets have expired.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_has_forgotten_its_offsets_goes_on_at_the_rows() {
    let mut world = World::new();
    let running = world.start().await;
    let branch = world.said_yes(0, 0, "a").await;
    world.decide(&branch, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 1).await;
    world.until_acknowledged(PREPARES, 0, 1).await;
    running.stop().await;

    // A broker with the same logs, and without the group.
    let World { folder, kafka, .. } = world;
    let mut world = World { folder, ..World::of_log(kafka.log_letters) };
    world.ask(&branch);
    world.decide(&branch, Verdict::Commit);
    world.until_appended(PREPARES, 0, 1).await;
    world.until_appended(DECISIONS, 0, 1).await;
    let running = world.start().await;
    assert_eq!(world.until_acknowledged(DECISIONS, 0, 1).await.metadata, running.ledger);
    let next = world.prepare(0, 1, "b");
    world.ask(&next);
    assert_eq!(world.ballot(&next).await, YES, "the first vote in this log");
    world.decide(&next, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 2).await;
    assert_eq!(world.number("select count(*) from item where done = 1"), 2);
    running.stop().await;
}

/// R9: what was trimmed of the prepares has expired long ago. Decisions that were trimmed are missing.
#[tokio::test(flavor = "multi_thread")]
async fn below_the_start_of_its_log_a_shard_goes_on_with_prepares_and_stops_at_decisions() {
    let mut world = World::new();
    let running = world.start().await;
    let (one, other) = (world.prepare(0, 0, "a"), world.prepare(1, 0, "b"));
    world.ask(&one);
    assert_eq!(world.ballot(&one).await, YES);
    world.until_acknowledged(PREPARES, 0, 1).await;
    world.until_acknowledged(DECISIONS, 1, 0).await;
    running.stop().await;
    let end = world.trim(PREPARES, 0).await;
    world.trim(DECISIONS, 1).await;

    let running = world.start().await;
    world.until_acknowledged(PREPARES, 0, end).await;
    world.said_yes(0, 1, "c").await;
    world.decide(&one, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 1).await;
    world.ask(&other);
    world.until_appended(PREPARES, 1, 1).await;
    assert!(matches!(running.end().await, Err(ServiceError::StoppedShards(1))));
    assert_eq!(world.number("select count(*) from suture_audit"), 0, "and not in front of a record");
    assert_eq!(world.number("select count(*) from item"), 2);
}

/// R9: also when it is looked at again.
#[tokio::test(flavor = "multi_thread")]
async fn past_the_end_of_a_log_a_shard_stops() {
    let mut world = World::new();
    let running = world.start().await;
    world.until_acknowledged(PREPARES, 0, 0).await;
    world.until_acknowledged(DECISIONS, 1, 0).await;
    running.stop().await;
    for place in ["topic = 'suture.prepare.bank' and shard = 0", "topic = 'suture.decisions' and shard = 1"] {
        let ahead = format!("update suture_positions set next_offset = 9 where {place} returning next_offset");
        assert_eq!(world.number(&ahead), 9);
    }
    let running = world.start().await;
    for (shard, id) in [(0, "a"), (1, "b"), (2, "c")] {
        world.ask(&world.prepare(shard, 0, id));
    }
    let sound = world.prepare(2, 0, "c");
    assert_eq!(world.ballot(&sound).await, YES, "the others are not asked");
    assert!(matches!(running.end().await, Err(ServiceError::StoppedShards(2))));
    assert_eq!(world.number("select count(*) from item"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_participant_that_comes_back_late_notes_aborts_and_touches_nothing() {
    let mut world = World::new();
    let late: Vec<Prepare> = (0..5).map(|n| world.prepare(0, n, &format!("late-{n}"))).collect();
    for prepare in &late {
        world.ask(prepare);
        world.decide(prepare, Verdict::Abort);
    }
    world.until_appended(DECISIONS, 0, 5).await;
    let running = world.start().await;
    for prepare in &late {
        assert_eq!(world.ballot(prepare).await, no("aborted"), "decisions are read before prepares");
    }
    world.until_acknowledged(DECISIONS, 0, 5).await;
    assert_eq!(world.number("select count(*) from suture_ledger where state = 'aborted'"), 5);
    assert_eq!(world.number("select count(*) from item"), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_prepares_are_passed_or_refused() {
    let mut world = World::new();
    let running = world.start().await;
    let sound = world.prepare(0, 50, "sound");
    let key = sound.txid.to_string();
    for broken in [&b""[..], b"{", b"\xff\xfe", &b"[".repeat(900_000), &encode(&*decision(&sound, Verdict::Commit))] {
        world.append_raw(PREPARES, 0, &key, Some(broken));
    }
    world.append_raw(PREPARES, 0, &key, None);
    world.append_raw(PREPARES, 0, "another-key", Some(&encode(&sound)));
    world.append_raw(PREPARES, 0, &key, Some(&encode(&world.prepare(1, 50, "wrong-partition"))));
    let mut foreign = world.prepare(0, 51, "foreign");
    foreign.txid = txid(51);
    foreign.txid.shard.0 = 0;
    world.ask(&foreign);
    let mut unusable = world.prepare(0, 52, "x");
    unusable.payload = RawValue::from_string("[]".to_string()).unwrap();
    world.ask(&unusable);
    assert_eq!(world.ballot(&unusable).await, no("unreadable"));
    world.ask(&sound);
    assert_eq!(world.ballot(&sound).await, YES);
    world.until_acknowledged(PREPARES, 0, 11).await;
    assert_eq!(world.number("select count(*) from item"), 1);
    running.stop().await;
}

/// Each of these stops shard 0 in front of it, and shard 1 goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_skipped_stops_its_shard_only() {
    let stops: [fn(&World, &Prepare); 6] = [
        |world, sound| world.append_raw(DECISIONS, 0, &sound.txid.to_string(), Some(b"{")),
        |world, sound| {
            let newer =
                String::from_utf8(encode(&*decision(sound, Verdict::Commit))).unwrap().replace("\"v\":1", "\"v\":2");
            world.append_raw(DECISIONS, 0, &sound.txid.to_string(), Some(newer.as_bytes()));
        },
        |world, sound| {
            let newer = String::from_utf8(encode(sound)).unwrap().replace("\"v\":1", "\"v\":2");
            world.append_raw(PREPARES, 0, &sound.txid.to_string(), Some(newer.as_bytes()));
        },
        |world, _| {
            let elsewhere = decision(&world.prepare(1, 7, "elsewhere"), Verdict::Abort);
            world.append_raw(DECISIONS, 0, &elsewhere.txid.to_string(), Some(&encode(&*elsewhere)));
        },
        // LOST: a commit that nobody here agreed to.
        |world, _| world.decide(&world.prepare(0, 8, "unknown"), Verdict::Commit),
        // The same txid about something else.
        |world, sound| {
            let other = Decision { hash: hash("other"), ..Decision::clone(&decision(sound, Verdict::Commit)) };
            world.append(DECISIONS, other.txid, &other);
        },
    ];
    for stop in stops {
        let mut world = World::new();
        let running = world.start().await;
        let (sound, neighbour) = (world.prepare(0, 0, "a"), world.prepare(1, 0, "b"));
        world.ask(&sound);
        assert_eq!(world.ballot(&sound).await, YES);
        world.until_acknowledged(PREPARES, 0, 1).await;
        stop(&world, &sound);
        world.decide(&sound, Verdict::Commit);

        world.ask(&neighbour);
        assert_eq!(world.ballot(&neighbour).await, YES);
        world.decide(&neighbour, Verdict::Commit);
        world.until_acknowledged(DECISIONS, 1, 1).await;
        assert_eq!(world.number("select count(*) from item where done and id = 'b'"), 1);
        assert!(matches!(running.end().await, Err(ServiceError::StoppedShards(1))), "a stopped shard is an error");
        let committed = GroupOffsets::new(&world.kafka).committed(GROUP, &[(DECISIONS, 0)]).unwrap().remove(0);
        assert!(committed.unwrap().offset <= 1, "nothing is acknowledged past what stopped the shard");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_share_the_shards() {
    let mut world = World::new();
    let first = world.start().await;
    let branch = world.said_yes(0, 0, "a").await;
    let second = world.start().await;
    let branches: Vec<Prepare> = (0..30).map(|n| world.prepare((n % 3) as u16, n + 1, &format!("i{n}"))).collect();
    for (n, branch) in branches.iter().enumerate() {
        if n == 10 {
            // The other one takes over while there is work.
            first.stop.send(true).unwrap();
        }
        world.ask(branch);
    }
    let mut yes = std::collections::BTreeSet::new();
    while yes.len() < branches.len() {
        let (vote, _) = world.vote().await;
        assert_eq!(vote.vote, Ballot::Yes);
        if vote.txid != branch.txid {
            yes.insert(vote.txid);
        }
    }
    timeout(PATIENCE, first.service).await.unwrap().unwrap().unwrap();
    for branch in branches.iter().chain([&branch]) {
        world.decide(branch, Verdict::Commit);
    }
    world.until_acknowledged(DECISIONS, 0, 11).await;
    world.until_acknowledged(DECISIONS, 1, 10).await;
    world.until_acknowledged(DECISIONS, 2, 10).await;
    assert_eq!(world.number("select count(*) from item where done"), 31);
    second.stop().await;
}

/// R11: it asks, and asks again, and never ends its branch by itself.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_doubt_for_too_long_asks_until_it_is_told() {
    let mut world = World::new();
    let soon = UpkeepSettings { inquire_after: Duration::from_millis(200), ..UpkeepSettings::default() };
    let running = world.start_with(soon).await;
    for branch in [&world.prepare(0, 0, "a"), &world.prepare(1, 0, "b")] {
        world.ask(branch);
        world.inquiry(branch).await;
        world.inquiry(branch).await;
        world.decide(branch, Verdict::Commit);
        world.until_acknowledged(DECISIONS, branch.txid.shard.partition(), 1).await;
    }
    let never = world.prepare(2, 0, "c");
    world.ask(&never);
    world.until_acknowledged(PREPARES, 2, 1).await;
    running.kill().await;

    // Another process asks for it too.
    let running = world.start_with(soon).await;
    world.inquiry(&never).await;
    world.inquiry(&never).await;
    assert_eq!(world.number("select count(*) from suture_ledger where state = 'in_doubt'"), 1);
    running.stop().await;
}

/// W13: what is finished is purged at once, and whatever comes late is answered as finished.
#[tokio::test(flavor = "multi_thread")]
async fn finished_rows_are_purged_behind_the_acknowledgement() {
    let mut world = World::new();
    let at_once = UpkeepSettings { purge_after: Some(Duration::from_millis(1)), ..UpkeepSettings::default() };
    let running = world.start_with(at_once).await;
    let (one, two, in_doubt) = (world.prepare(0, 0, "a"), world.prepare(0, 1, "b"), world.prepare(0, 2, "c"));
    for branch in [&one, &two, &in_doubt] {
        world.ask(branch);
        assert_eq!(world.ballot(branch).await, YES);
    }
    world.decide(&one, Verdict::Commit);
    world.decide(&two, Verdict::Abort);
    world.until_counted("select count(*) from suture_ledger", 1).await;
    world.until_acknowledged(DECISIONS, 0, 2).await;
    assert_eq!(world.number("select next_offset from suture_marks"), 2);
    running.kill().await;

    let running = world.start_with(at_once).await;
    world.ask(&one);
    assert_eq!(world.ballot(&one).await, no("finished_before"));
    world.decide(&one, Verdict::Commit);
    world.decide(&in_doubt, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 4).await;
    world.until_counted("select count(*) from suture_ledger", 0).await;
    assert_eq!(world.number("select count(*) from item where done"), 2);
    running.stop().await;
}

/// The embedded broker forgets everything at its end; what was in doubt then can never be decided.
#[tokio::test(flavor = "multi_thread")]
async fn branches_in_doubt_of_another_log_are_refused() {
    let mut world = World::new();
    let running = world.start().await;
    let branch = world.said_yes(0, 0, "a").await;
    running.kill().await;
    // Another cluster, to which somebody has copied the topics: the names are the same, ids and offsets are not.
    let World { folder, .. } = world;
    let world = World { folder, ..World::new() };
    world.ask(&branch);
    world.decide(&branch, Verdict::Commit);
    let running = world.start().await;
    match timeout(PATIENCE, running.service).await.unwrap().unwrap() {
        Err(ServiceError::ForeignInDoubt { txids }) => assert_eq!(txids, [branch.txid]),
        other => panic!("{other:?}"),
    }
}

/// O3: while it is away the file is put back to what it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_is_brought_back() {
    let mut world = World::new();
    let running = world.start().await;
    let created = running.ledger.clone();
    let (one, in_doubt) = (world.prepare(0, 0, "before"), world.prepare(1, 0, "in-doubt"));
    for prepare in [&one, &in_doubt] {
        world.ask(prepare);
        assert_eq!(world.ballot(prepare).await, YES);
    }
    world.decide(&one, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 1).await;
    running.stop().await;
    let backup = world.copy().await;

    // What the backup does not know: a commit that builds on one that was decided later, an abort, a no, one undecided.
    let running = world.start().await;
    let (low, high) = (world.prepare(2, 0, "low"), world.prepare_after(0, 1, "high", "low"));
    let (aborted, refused) = (world.prepare(1, 1, "aborted"), world.prepare(2, 1, "before"));
    let open = world.prepare(2, 2, "open");
    for (prepare, vote) in [(&low, YES), (&high, YES), (&aborted, YES), (&refused, no("duplicate")), (&open, YES)] {
        world.ask(prepare);
        assert_eq!(world.ballot(prepare).await, vote);
    }
    world.decide(&high, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 2).await;
    for (prepare, outcome) in
        [(&in_doubt, Verdict::Commit), (&low, Verdict::Commit), (&aborted, Verdict::Abort), (&refused, Verdict::Abort)]
    {
        world.decide(prepare, outcome);
    }
    let ends = [(0, 2), (1, 2), (2, 2)];
    for (shard, end) in ends {
        world.until_acknowledged(DECISIONS, shard, end).await;
    }
    world.until_acknowledged(PREPARES, 2, 3).await;
    running.stop().await;
    let rows = "select count(*) from item where done";
    assert_eq!(world.number(rows), 4);

    let mut before = created.clone();
    for round in 1..=2 {
        // The second time from the same backup: by then the group knows another name.
        world.put_back(&backup).await;
        assert_eq!(world.number(rows), 1);
        let running = world.start().await;
        before = world.until_renamed(&before, &ends).await;
        assert!(before.starts_with(&format!("{created}-")), "{before}");
        assert_eq!(world.number(rows), 4, "round {round}");
        assert_eq!(world.number("select count(*) from suture_ledger where state = 'committed'"), 4);
        assert_eq!(world.number("select count(*) from suture_ledger where state = 'aborted'"), 2);
        assert_eq!(world.number("select count(*) from suture_meta where name = 'restoring'"), 0);
        world.until_acknowledged(PREPARES, 2, 3).await;
        assert_eq!(world.number("select count(*) from item where id = 'open' and not done"), 1, "prepared again");
        running.stop().await;
    }
    let running = world.start().await;
    world.decide(&open, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 2, 3).await;
    assert_eq!(world.number(rows), 5);
    running.stop().await;
}

/// Only what fails whatever the others do is lost, and stops its shard when the service meets it.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_brought_back_is_lost_and_nothing_else() {
    let mut world = World::new();
    let backup = world.copy_of_a_new_one().await;
    let running = world.start().await;
    let (lost, sound) = (world.prepare(0, 0, "lost"), world.prepare(1, 0, "sound"));
    for prepare in [&lost, &sound] {
        world.ask(prepare);
        assert_eq!(world.ballot(prepare).await, YES);
        world.decide(prepare, Verdict::Commit);
    }
    world.until_acknowledged(DECISIONS, 0, 1).await;
    world.until_acknowledged(DECISIONS, 1, 1).await;
    running.stop().await;

    world.put_back(&backup).await;
    let entered_by_hand = "insert into item (id, done, txid) values ('lost', 1, 'nobody') returning 1";
    assert_eq!(world.number(entered_by_hand), 1);
    let running = world.start().await;
    world.until_renamed(&running.ledger, &[(1, 1)]).await;
    assert_eq!(world.number("select count(*) from suture_ledger where state = 'committed'"), 1);
    let answer = running.end().await;
    assert!(matches!(answer, Err(ServiceError::StoppedShards(1))), "{answer:?}");
    let committed = GroupOffsets::new(&world.kafka).committed(GROUP, &[(DECISIONS, 0)]).unwrap().remove(0).unwrap();
    assert_eq!(committed.offset, 0, "never acknowledged");
}

/// Whoever said no once may say yes when he is asked again, and nobody counts it.
#[tokio::test(flavor = "multi_thread")]
async fn who_said_no_does_not_take_the_place_of_who_said_yes() {
    let mut world = World::new();
    let running = world.start().await;
    let (no_sayer, low) = (world.prepare_after(0, 0, "place", "low"), world.prepare(0, 1, "low"));
    world.ask(&no_sayer);
    let (ballot, _) = world.ballot(&no_sayer).await;
    assert_eq!(ballot, Ballot::No, "what it needs is not there");
    world.ask(&low);
    assert_eq!(world.ballot(&low).await, YES);
    world.decide(&low, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 1).await;
    let yes_sayer = Prepare { business_key: "item:other".parse().unwrap(), ..world.prepare(0, 2, "place") };
    world.ask(&yes_sayer);
    assert_eq!(world.ballot(&yes_sayer).await, YES);
    world.until_acknowledged(PREPARES, 0, 3).await;
    running.stop().await;

    world.until_closed().await;
    for change in [
        format!("delete from suture_ledger where txid in ('{}', '{}') returning 1", no_sayer.txid, yes_sayer.txid),
        "delete from item where id = 'place' returning 1".to_string(),
        "insert into suture_meta values ('restoring', 'by hand') returning 1".to_string(),
    ] {
        assert_eq!(world.number(&change), 1);
    }
    let running = world.start().await;
    assert_eq!(world.ballot(&yes_sayer).await, YES, "said again");
    world.until_acknowledged(PREPARES, 0, 3).await;
    world.decide(&no_sayer, Verdict::Abort);
    world.decide(&yes_sayer, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 3).await;
    assert_eq!(world.number("select count(*) from item where id = 'place' and done"), 1);
    running.stop().await;
}

/// A vote of before may land at any time; so what was not voted on is prepared, or its register filled.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_brought_back_leaves_no_register_empty() {
    let mut world = World::new();
    drop(world.resource().await);
    let (unvoted, taken) = (world.prepare(0, 0, "a"), world.prepare(0, 1, "taken"));
    world.ask(&unvoted);
    world.ask(&taken);
    world.until_appended(PREPARES, 0, 2).await;
    world.until_closed().await;
    for change in [
        "insert into suture_meta values ('restoring', 'by hand') returning 1",
        "insert into item (id, done, txid) values ('taken', 1, 'nobody') returning 1",
    ] {
        assert_eq!(world.number(change), 1);
    }
    let running = world.start().await;
    assert_eq!(world.ballot(&taken).await, no("restored"));
    assert_eq!(world.ballot(&unvoted).await, YES);
    world.decide(&unvoted, Verdict::Commit);
    world.decide(&taken, Verdict::Abort);
    world.until_acknowledged(DECISIONS, 0, 2).await;
    assert_eq!(world.number("select count(*) from item where done"), 2);
    running.stop().await;
}

/// R16: it said yes, went back, and says no now. The first vote counts, so the commit finds nothing here.
#[tokio::test(flavor = "multi_thread")]
async fn who_votes_differently_after_a_restore_has_lost_the_commit() {
    let mut world = World::new();
    let backup = world.copy_of_a_new_one().await;
    let running = world.start().await;
    let branch = world.said_yes(0, 0, "a").await;
    world.until_acknowledged(PREPARES, 0, 1).await;
    running.stop().await;

    world.put_back(&backup).await;
    assert_eq!(world.number("insert into item (id, done, txid) values ('a', 1, 'nobody') returning 1"), 1);
    let running = world.start().await;
    assert_eq!(world.ballot(&branch).await, YES, "said again, to know where the votes end");
    assert_eq!(world.ballot(&branch).await, no("TAKEN"));
    world.decide(&branch, Verdict::Commit);
    world.until_counted("select count(*) from suture_audit where entry like 'lost:%'", 1).await;
    assert!(matches!(running.end().await, Err(ServiceError::StoppedShards(1))));
    let committed = GroupOffsets::new(&world.kafka).committed(GROUP, &[(DECISIONS, 0)]).unwrap().remove(0).unwrap();
    assert_eq!(committed.offset, 0, "never acknowledged");
}

/// A copy that is put back under it, and a ledger that somebody else has brought back.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_back_under_a_service_ends_it() {
    let changes = [
        "update suture_positions set next_offset = 0 where topic = 'suture.decisions' and shard = 0 returning 1",
        "delete from suture_positions where topic = 'suture.prepare.bank' and shard = 0 returning 1",
        "update suture_meta set value = value || '-0' where name = 'ledger_id' returning 1",
    ];
    for change in changes {
        let mut world = World::new();
        let running = world.start().await;
        let branch = world.prepare(0, 0, "a");
        world.ask(&branch);
        assert_eq!(world.ballot(&branch).await, YES);
        world.decide(&branch, Verdict::Commit);
        world.until_acknowledged(DECISIONS, 0, 1).await;
        world.until_acknowledged(PREPARES, 0, 1).await;
        assert_eq!(world.number(change), 1);
        let ended = timeout(PATIENCE, running.service).await.expect("it goes on").unwrap();
        assert!(matches!(ended, Err(ServiceError::WentBack)), "{change}: {ended:?}");
        let went_on = "select count(*) from suture_positions where next_offset > 1";
        assert_eq!(world.number(went_on), 0, "nothing is stored over it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_not_as_configured_are_named() {
    let world = World::new();
    let resource = Arc::new(world.resource().await);
    let refused = async |kafka: KafkaSettings| {
        let (_stop, stopped) = watch::channel(false);
        let participant = "bank".parse().unwrap();
        service::run(&kafka, &participant, Arc::clone(&resource), UpkeepSettings::default(), stopped)
            .await
            .unwrap_err()
            .to_string()
    };
    let missing = KafkaSettings { prefix: "other".parse().unwrap(), ..world.kafka.clone() };
    assert_eq!(
        refused(missing).await,
        "the topic other.requests does not exist: create the topics with `suture topics apply`"
    );
    let fewer = KafkaSettings { partitions: 2, ..world.kafka.clone() };
    assert_eq!(
        refused(fewer).await,
        "the topic suture.requests has 3 partitions and [kafka] partitions says 2: see `suture topics check`"
    );
}

/// What has no room on the disk gets no answer, whatever else has room.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_without_an_answer_keeps_neither_others_nor_its_own_abort_back() {
    let mut world = World::new();
    drop(world.resource().await);
    let pages = world.number("pragma page_count");
    let limited = format!("{SCHEMA}; pragma max_page_count = {}", pages + 20);
    let mut branches: Vec<Prepare> = (0..5).map(|n| world.prepare(0, n, &format!("i{n}"))).collect();
    let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(200_000));
    branches[2].hash = hash(&long);
    branches[2].payload = RawValue::from_string(long).unwrap();
    for branch in &branches {
        world.ask(branch);
    }
    world.until_appended(PREPARES, 0, 5).await;
    let running = world.serve(world.resource_with(&limited).await, UpkeepSettings::default());
    for n in [0, 1, 3, 4] {
        assert_eq!(world.ballot(&branches[n]).await, YES);
    }
    world.until_acknowledged(PREPARES, 0, 2).await;
    world.decide(&branches[3], Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 1).await;
    world.decide(&branches[2], Verdict::Abort);
    assert_eq!(world.ballot(&branches[2]).await, no("aborted"));
    world.until_acknowledged(DECISIONS, 0, 2).await;
    world.until_acknowledged(PREPARES, 0, 5).await;
    assert_eq!(world.number("select count(*) from item where id = 'i3' and done"), 1);
    assert_eq!(world.number("select count(*) from item"), 4);
    running.stop().await;
}

/// R14: what is in the way of one decision, here a full disk, is in the way of no other transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_is_not_carried_out_keeps_no_other_transaction_back() {
    let mut world = World::new();
    let schema = format!(
        "{SCHEMA}; create table if not exists obstacle (id text primary key) strict;
         create table if not exists filler (data blob) strict;
         create trigger if not exists obstruct after update on item when exists (select 1 from obstacle where id = new.id)
         begin insert into filler values (zeroblob(200000)); end"
    );
    drop(world.resource_with(&schema).await);
    let pages = world.number("pragma page_count");
    let limited = format!("{schema}; pragma max_page_count = {}", pages + 20);
    assert_eq!(world.number("insert into obstacle values ('i0'), ('i2') returning 1"), 1);
    let running = world.serve(world.resource_with(&limited).await, UpkeepSettings::default());
    let branches: Vec<Prepare> = (0..7).map(|n| world.prepare((n % 2) as u16, n, &format!("i{n}"))).collect();
    for branch in &branches[..6] {
        world.ask(branch);
        assert_eq!(world.ballot(branch).await, YES);
    }
    for branch in &branches[..6] {
        world.decide(branch, Verdict::Commit);
    }
    world.decide(&branches[0], Verdict::Commit);
    world.until_acknowledged(DECISIONS, 1, 3).await;
    world.until_counted("select count(*) from item where done", 4).await;
    world.ask(&branches[6]);
    assert_eq!(world.ballot(&branches[6]).await, YES);
    world.decide(&branches[6], Verdict::Commit);
    // What comes behind one that waits waits too.
    world.decide(&branches[2], Verdict::Abort);
    world.until_counted("select count(*) from item where id = 'i6' and done", 1).await;
    world.until_acknowledged(DECISIONS, 0, 0).await;

    assert_eq!(world.number("delete from obstacle returning 1"), 1);
    world.until_acknowledged(DECISIONS, 0, 5).await;
    assert_eq!(world.number("select count(*) from item where done = 1"), 7);
    assert!(matches!(running.end().await, Err(ServiceError::StoppedShards(1))), "a contradiction");
}
