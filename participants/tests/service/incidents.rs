//! What stops a shard is noted and told, and goes on when a person has settled it; and what is finished by hand is noticed.

use suture_contract::codec::OutcomesRecord;
use suture_contract::codec::decode_outcomes_record;
use suture_contract::messages::{Incident, IncidentKind, Settled};
use suture_participants::incidents::{self, Place, Refused, Said};

use super::*;

const OUTCOMES: &str = "suture.outcomes";

/// The incidents of the outcomes topic, as they come.
struct Told {
    events: mpsc::Receiver<ReaderEvent>,
    unread: std::collections::VecDeque<Incident>,
    read: Vec<Incident>,
    _reader: Reader,
}

impl Told {
    fn on(world: &World) -> Self {
        let (sender, events) = mpsc::channel(16);
        let reader = Reader::start(&world.kafka, "test", sender).unwrap();
        reader.add(&[(OUTCOMES, 0, 0), (OUTCOMES, 1, 0), (OUTCOMES, 2, 0)]);
        Self { events, unread: Default::default(), read: Vec::new(), _reader: reader }
    }

    /// Each is told at least once.
    async fn next(&mut self) -> Incident {
        loop {
            if let Some(incident) = self.unread.pop_front() {
                return incident;
            }
            let event = timeout(PATIENCE, self.events.recv()).await.expect("nothing is told").unwrap();
            let ReaderEvent::Records(records) = event else { continue };
            for record in records {
                let OutcomesRecord::Incident(incident) = decode_outcomes_record(&record.value.unwrap()).unwrap() else {
                    panic!("no incident");
                };
                let key = incident.business_key.as_ref().map(ToString::to_string);
                let key = key.or(incident.txid.map(|txid| txid.to_string()));
                let key = key.or(incident.origin.as_ref().map(ToString::to_string)).unwrap();
                assert_eq!(record.key.unwrap(), key.as_bytes());
                if !self.read.contains(&incident) {
                    self.read.push(Incident::clone(&incident));
                    self.unread.push_back(*incident);
                }
            }
        }
    }
}

pub fn said() -> Said {
    Said::new("maria", "ticket 4711").unwrap()
}

pub fn place(world: &World, topic: &str, shard: u16, offset: u64) -> Place {
    let letters = Probe::start(&world.kafka).unwrap().letters(topic).unwrap();
    Place { topic: topic.to_string(), letters, shard: suture_contract::ids::Shard(shard), offset }
}

/// Until something is noted about a transaction, as an operator would look for it.
pub async fn until_listed(resource: &OpenedResource, is_it: impl Fn(&Incident) -> bool) -> incidents::Listed {
    let looking = async {
        loop {
            let listed = incidents::list(resource).await.unwrap();
            if let Some(listed) = listed.into_iter().find(|listed| is_it(&listed.incident)) {
                return listed;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, looking).await.expect("nothing is noted")
}

/// LOST, a contradiction: the operator settles them while the service runs, and while it does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_goes_on_when_what_stopped_it_is_settled() {
    let mut world = World::new();
    let mut told = Told::on(&world);
    let running = world.start().await;
    let operator = world.resource().await;
    let lost = world.said_yes(0, 0, "a").await;
    // By hand, between vote and decision.
    Connection::open(world.file()).unwrap().execute_batch("delete from suture_ledger; delete from item").unwrap();
    world.decide(&lost, Verdict::Commit);
    let behind = world.prepare(0, 1, "b");
    world.ask(&behind);
    world.decide(&behind, Verdict::Abort);

    let incident = until_listed(&operator, |incident| incident.what == IncidentKind::Lost).await;
    assert!(incident.is_open());
    assert_eq!((incident.incident.txid, incident.incident.outcome), (Some(lost.txid), Some(Verdict::Commit)));
    let first = told.next().await;
    // Whether it was seen to be gone before its decision came is nobody's promise.
    let first = if first.what == IncidentKind::FinishedByHand { told.next().await } else { first };
    assert_eq!(first, incident.incident);
    let decisions = world.number(
        "select coalesce(max(next_offset), 0) from suture_positions where topic = 'suture.decisions' and shard = 0",
    );
    assert_eq!(decisions, 0, "nothing is acknowledged past it");
    let unknown = incidents::resolve(&operator, behind.txid, Settled::Committed, said()).await;
    assert!(matches!(unknown, Err(Refused::NothingThere(_))), "{unknown:?}");

    incidents::resolve(&operator, lost.txid, Settled::Committed, said()).await.unwrap();
    world.until_acknowledged(DECISIONS, 0, 2).await;
    let resolved = told.next().await;
    assert_eq!(
        (resolved.what, resolved.txid, resolved.settled),
        (IncidentKind::Resolved, Some(lost.txid), Some(Settled::Committed))
    );
    assert_eq!((resolved.who.as_deref(), resolved.because.as_deref()), (Some("maria"), Some("ticket 4711")));
    running.stop().await;

    // The effect is here by the operator's word, and now it is to be undone; nobody serves while he says so.
    let running = world.start().await;
    world.decide(&lost, Verdict::Abort);
    until_listed(&operator, |incident| incident.what == IncidentKind::Contradiction).await;
    assert_eq!(told.next().await.what, IncidentKind::Contradiction);
    assert!(matches!(running.end().await, Err(ServiceError::StoppedShards(1))));
    incidents::resolve(&operator, lost.txid, Settled::Abandoned, said()).await.unwrap();
    let running = world.start().await;
    world.until_acknowledged(DECISIONS, 0, 3).await;
    assert_eq!(told.next().await.settled, Some(Settled::Abandoned));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_settled_while_nobody_serves_is_passed_at_the_next_start() {
    let mut world = World::new();
    let mut told = Told::on(&world);
    let running = world.start().await;
    let operator = world.resource().await;
    let unknown = world.prepare(1, 0, "a");
    world.decide(&unknown, Verdict::Commit);
    until_listed(&operator, |incident| incident.what == IncidentKind::Lost).await;
    assert!(matches!(running.end().await, Err(ServiceError::StoppedShards(1))));
    incidents::resolve(&operator, unknown.txid, Settled::Abandoned, said()).await.unwrap();
    let running = world.start().await;
    world.until_acknowledged(DECISIONS, 1, 1).await;
    assert_eq!(told.next().await.what, IncidentKind::Lost);
    assert_eq!(told.next().await.settled, Some(Settled::Abandoned));
    world.ask(&unknown);
    assert_eq!(world.ballot(&unknown).await, no("aborted"));
    running.stop().await;
    let untold = operator.noted(suture_participants::resource::Which::Untold).await.unwrap();
    let entries: Vec<_> = untold.into_iter().map(|noted| noted.entry.entry).collect();
    assert!(entries.is_empty() || entries == [format!("resolved:{}", unknown.txid)], "at least once: {entries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_nobodys_decision_is_passed_when_a_person_says_so() {
    let mut world = World::new();
    let mut told = Told::on(&world);
    let running = world.start().await;
    let operator = world.resource().await;
    let branch = world.said_yes(0, 0, "a").await;
    world.append_raw(DECISIONS, 0, "x", Some(b"{"));
    let other = Decision { hash: hash("other"), ..Decision::clone(&decision(&branch, Verdict::Commit)) };
    world.append(DECISIONS, other.txid, &other);
    world.decide(&branch, Verdict::Commit);

    let unreadable = until_listed(&operator, |incident| incident.what == IncidentKind::Unreadable).await.incident;
    assert_eq!(told.next().await, unreadable);
    let at = place(&world, DECISIONS, 0, 0);
    assert_eq!(unreadable.origin.as_ref().map(ToString::to_string), Some("suture.decisions/0/0".to_string()));
    assert_eq!(unreadable.code.as_ref().map(|code| code.as_str()), Some("not_json"));
    let elsewhere = incidents::skip(&operator, &place(&world, DECISIONS, 0, 2), None, said()).await;
    assert!(matches!(elsewhere, Err(Refused::NothingThere(_))), "only what has stopped a shard: {elsewhere:?}");
    let decides = incidents::skip(&operator, &at, Some(branch.txid), said()).await;
    assert!(matches!(decides, Err(Refused::IsDecision { .. })), "{decides:?}");
    incidents::skip(&operator, &at, None, said()).await.unwrap();
    let twice = incidents::skip(&operator, &at, None, said()).await;
    assert!(matches!(twice, Err(Refused::Already { .. })), "{twice:?}");
    assert_eq!(told.next().await.what, IncidentKind::Skipped);

    // The next one is about something else under the branch's name. It can be read, and decides about no branch of ours.
    until_listed(&operator, |incident| incident.what == IncidentKind::OtherHash).await;
    assert_eq!(told.next().await.what, IncidentKind::OtherHash);
    incidents::skip(&operator, &place(&world, DECISIONS, 0, 1), Some(branch.txid), said()).await.unwrap();
    assert_eq!(told.next().await.what, IncidentKind::Skipped);
    world.until_acknowledged(DECISIONS, 0, 3).await;
    assert_eq!(world.number("select count(*) from item where done"), 1, "the decision behind them was carried out");

    // A prepare is passed without a vote, also across a restart.
    let newer = String::from_utf8(encode(&world.prepare(0, 1, "b"))).unwrap().replace("\"v\":1", "\"v\":2");
    world.append_raw(PREPARES, 0, "x", Some(newer.as_bytes()));
    let is_prepare = |incident: &Incident| incident.origin.as_ref().is_some_and(|origin| origin.topic == PREPARES);
    until_listed(&operator, is_prepare).await;
    assert!(matches!(running.end().await, Err(ServiceError::StoppedShards(1))));
    incidents::skip(&operator, &place(&world, PREPARES, 0, 1), None, said()).await.unwrap();
    let running = world.start().await;
    world.until_acknowledged(PREPARES, 0, 2).await;
    let past = incidents::skip(&operator, &at, None, said()).await;
    assert!(matches!(past, Err(Refused::Already { .. } | Refused::Past(_))), "{past:?}");
    running.stop().await;
}

/// O1: with and without this process having voted, in a shard that goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_is_finished_by_hand_is_noticed() {
    let mut world = World::new();
    let mut told = Told::on(&world);
    let running = world.start().await;
    let (before, repeated) = (world.prepare(0, 0, "a"), world.prepare(1, 0, "b"));
    for branch in [&before, &repeated] {
        world.ask(branch);
        assert_eq!(world.ballot(branch).await, YES);
    }
    world.decide(&repeated, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 1, 1).await;
    running.kill().await;

    let running = world.start().await;
    // Long decided: its yes is a repeat, and nothing to watch.
    world.ask(&repeated);
    assert_eq!(world.ballot(&repeated).await, YES);
    let meanwhile = world.said_yes(0, 1, "c").await;
    let rows = "update suture_ledger set state = 'committed' where txid like '%-0-0'";
    Connection::open(world.file()).unwrap().execute_batch(rows).unwrap();
    let by_hand = told.next().await;
    let expected = (IncidentKind::FinishedByHand, Some(before.txid), Some(Settled::Committed));
    assert_eq!((by_hand.what, by_hand.txid, by_hand.settled), expected);
    // It agrees, and the shard goes on.
    world.decide(&before, Verdict::Commit);
    world.decide(&meanwhile, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 2).await;
    assert_eq!(world.number("select count(*) from suture_audit"), 1, "and nobody else was");
    running.stop().await;
}
