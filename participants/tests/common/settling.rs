//! What a person says about a branch: on every database, in every mode.

use std::sync::Arc;

use suture_contract::codec::{decode, encode};
use suture_contract::messages::{Incident, IncidentKind, Prepare, Settled, Verdict};
use suture_participants::incidents::{Refused, Said, Taken, list, resolve};
use suture_participants::resource::{Effect, Entry, Resource, Which};
use suture_participants_core::branch::{State, Wrong};
use suture_participants_core::settle::Unsettled;

use super::{Bench, abort, code, commit, prepare, prepare_one, put, wrong, yes};

/// Text that means something to databases.
const BECAUSE: &str = "ticket 4711: M\u{fc}ller's \\\" $1 ? -- \u{1f600}";

/// As the service notes it.
pub fn met(what: IncidentKind, of: &Prepare, outcome: Verdict) -> Entry {
    let incident = Incident {
        participant: "bank".parse().unwrap(),
        what,
        txid: Some(of.txid),
        business_key: Some(of.business_key.clone()),
        attempt: Some(of.attempt),
        hash: Some(of.hash),
        outcome: Some(outcome),
        origin: Some("suture.decisions/3/77".parse().unwrap()),
        code: None,
        settled: None,
        who: None,
        because: None,
    };
    Entry {
        entry: format!("{}:{}", what.as_str(), of.txid),
        record_key: of.business_key.to_string(),
        record: String::from_utf8(encode(&incident)).unwrap(),
    }
}

pub async fn say<R: Resource>(bank: &R, of: &Prepare, settled: Settled) -> Result<Taken, Refused> {
    resolve(bank, of.txid, settled, Said::new("maria", BECAUSE).unwrap()).await
}

fn unsettled(said: Result<Taken, Refused>) -> Unsettled {
    match said {
        Err(Refused::Unsettled { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

async fn state<R: Resource>(bank: &R, of: &Prepare) -> Option<State> {
    bank.states(vec![of.txid]).await.unwrap().get(&of.txid).copied()
}

/// All of it; its branches are those from 200 on.
pub async fn settles<B: Bench>(bench: &B) {
    what_is_noted_is_told_once(bench).await;
    an_effect_made_by_hand_is_committed(bench).await;
    what_is_abandoned_is_nobodys_effect(bench).await;
    what_is_not_lost_is_not_settled(bench).await;
    who_is_abandoned_waits_for_nobody_in_doubt(bench).await;
}

async fn what_is_noted_is_told_once<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let entry = met(IncidentKind::Lost, &put(200, "key-200", "i200", "a", 1), Verdict::Commit);
    let later = met(IncidentKind::Contradiction, &put(201, "key-201", "i201", "a", 1), Verdict::Abort);
    bank.note(vec![]).await.unwrap();
    bank.note(vec![entry.clone()]).await.unwrap();
    let repeat = Entry { record: "{}".to_string(), ..entry.clone() };
    bank.note(vec![repeat, later.clone()]).await.unwrap();
    let untold = bank.noted(Which::Untold).await.unwrap();
    assert_eq!(untold.iter().map(|noted| &noted.entry).collect::<Vec<_>>(), [&entry, &later]);
    assert!(untold.iter().all(|noted| !noted.told && noted.since.year() >= 2020));
    bank.mark_told(vec![]).await.unwrap();
    bank.mark_told(vec![entry.entry.clone(), "not there".to_string()]).await.unwrap();
    drop(bank);
    let bank = bench.open().await;
    let untold = bank.noted(Which::Untold).await.unwrap();
    assert_eq!(untold.iter().map(|noted| &noted.entry).collect::<Vec<_>>(), [&later]);
    assert_eq!(bank.noted(Which::All).await.unwrap().len(), 2);
}

async fn an_effect_made_by_hand_is_committed<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let payload = r#"{"id":"i210","account":"a","amount":1}"#;
    let lost = prepare(210, "key-210", 1, payload);
    let nothing_noted = say(&bank, &lost, Settled::Committed).await;
    assert!(matches!(nothing_noted, Err(Refused::NothingThere(_))), "{nothing_noted:?}");
    assert_eq!(commit(&bank, &lost).await.map_err(wrong), Err(Wrong::Lost));
    bank.note(vec![met(IncidentKind::Lost, &lost, Verdict::Commit)]).await.unwrap();
    assert_eq!(commit(&bank, &lost).await.map_err(wrong), Err(Wrong::Lost), "until somebody says something");

    assert_eq!(say(&bank, &lost, Settled::Committed).await, Ok(Taken::Whole));
    assert_eq!(state(&bank, &lost).await, Some(State::Committed));
    assert_eq!(commit(&bank, &lost).await, Ok(Effect::Repeated));
    assert_eq!(prepare_one(&bank, &lost).await, yes());
    assert_eq!(code(&prepare_one(&bank, &prepare(211, "key-210", 2, payload)).await), "duplicate");
    let again = say(&bank, &lost, Settled::Abandoned).await;
    assert!(matches!(again, Err(Refused::Already { ref who, .. }) if who == "maria"), "{again:?}");

    let listed = list(&bank).await.unwrap();
    let listed = listed.iter().find(|listed| listed.incident.txid == Some(lost.txid)).unwrap();
    let (settled, _) = listed.settled.clone().unwrap();
    assert_eq!((settled.what, settled.settled), (IncidentKind::Resolved, Some(Settled::Committed)));
    assert_eq!((settled.who.as_deref(), settled.because.as_deref()), (Some("maria"), Some(BECAUSE)));
    assert!(!listed.is_open());
    let told = bank.noted(Which::Untold).await.unwrap();
    let told = told.iter().find(|noted| noted.entry.entry == format!("resolved:{}", lost.txid)).expect("to be told");
    assert_eq!(decode::<Incident>(told.entry.record.as_bytes()).unwrap(), settled);
    assert_eq!(told.entry.record_key, "key-210");
}

async fn what_is_abandoned_is_nobodys_effect<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let items = bench.number("select count(*) from item").await;
    // Lost: it never said yes.
    let refused = put(220, "key-220", "i220", "nobody", 1);
    assert_eq!(code(&prepare_one(&bank, &refused).await), "NO_ACCOUNT");
    assert_eq!(commit(&bank, &refused).await.map_err(wrong), Err(Wrong::Lost));
    bank.note(vec![met(IncidentKind::Lost, &refused, Verdict::Commit)]).await.unwrap();
    assert_eq!(say(&bank, &refused, Settled::Abandoned).await, Ok(Taken::Whole));
    for _ in 0..2 {
        assert_eq!(commit(&bank, &refused).await, Ok(Effect::Repeated));
        assert_eq!(abort(&bank, &refused).await, Ok(Effect::Repeated));
        assert_eq!(code(&prepare_one(&bank, &refused).await), "aborted");
        assert_eq!(state(&bank, &refused).await, Some(State::Abandoned));
    }
    assert_eq!(code(&prepare_one(&bank, &put(221, "key-220", "i221", "a", 1)).await), "aborted_before");
    assert_eq!(bench.number("select count(*) from item").await, items);

    // A contradiction: the effect is here and must go, by hand.
    let payload = r#"{"id":"i222","account":"a","amount":1}"#;
    let committed = prepare(222, "key-222", 1, payload);
    assert_eq!(prepare_one(&bank, &committed).await, yes());
    assert_eq!(commit(&bank, &committed).await, Ok(Effect::Finished));
    assert_eq!(abort(&bank, &committed).await.map_err(wrong), Err(Wrong::Contradiction));
    bank.note(vec![met(IncidentKind::Contradiction, &committed, Verdict::Abort)]).await.unwrap();
    assert_eq!(unsettled(say(&bank, &committed, Settled::Committed).await), Unsettled::MustGo);
    assert_eq!(say(&bank, &committed, Settled::Abandoned).await, Ok(Taken::Whole));
    assert_eq!(abort(&bank, &committed).await, Ok(Effect::Repeated));
    let next = prepare(223, "key-222", 2, &payload.replace("i222", "i223"));
    assert_eq!(prepare_one(&bank, &next).await, yes(), "the key is free for the next attempt");
    assert_eq!(abort(&bank, &next).await, Ok(Effect::Finished));
}

async fn what_is_not_lost_is_not_settled<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let payload = r#"{"id":"i230","account":"y","amount":1}"#;
    let in_doubt = prepare(230, "key-230", 1, payload);
    assert_eq!(prepare_one(&bank, &in_doubt).await, yes());
    assert_eq!(state(&bank, &in_doubt).await, Some(State::InDoubt));
    bank.note(vec![met(IncidentKind::Lost, &in_doubt, Verdict::Commit)]).await.unwrap();
    for settled in [Settled::Committed, Settled::Abandoned] {
        assert_eq!(unsettled(say(&bank, &in_doubt, settled).await), Unsettled::InDoubt);
    }
    // Another one of the same key, while the first is in doubt and afterwards.
    let rival =
        Arc::new(Prepare { attempt: suture_contract::ids::Attempt::new(2).unwrap(), ..put_like(231, &in_doubt) });
    bank.note(vec![met(IncidentKind::Lost, &rival, Verdict::Commit)]).await.unwrap();
    let blocked = unsettled(say(&bank, &rival, Settled::Committed).await);
    assert!(matches!(blocked, Unsettled::Held | Unsettled::KeyTaken(_)), "{blocked:?}");
    assert_eq!(state(&bank, &rival).await, None);
    assert_eq!(commit(&bank, &in_doubt).await, Ok(Effect::Finished), "nothing was changed");
    assert_eq!(unsettled(say(&bank, &rival, Settled::Committed).await), Unsettled::KeyTaken(in_doubt.txid));
    assert_eq!(unsettled(say(&bank, &in_doubt, Settled::Committed).await), Unsettled::Agrees(State::Committed));
    assert_eq!(say(&bank, &rival, Settled::Abandoned).await, Ok(Taken::Whole));
    assert_eq!(commit(&bank, &rival).await, Ok(Effect::Repeated));
    assert_eq!(state(&bank, &rival).await, Some(State::Abandoned));
}

/// Its decision may stand behind the one that this shard has stopped for.
async fn who_is_abandoned_waits_for_nobody_in_doubt<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let in_doubt = prepare(240, "key-240", 1, r#"{"id":"i240","account":"y","amount":1}"#);
    assert_eq!(prepare_one(&bank, &in_doubt).await, yes());
    let lost = Arc::new(put_like(241, &in_doubt));
    bank.note(vec![met(IncidentKind::Lost, &lost, Verdict::Commit)]).await.unwrap();
    let is_xa = bank.batching().branches == 1;
    let taken = if is_xa { Taken::WithoutKey } else { Taken::Whole };
    assert_eq!(say(&bank, &lost, Settled::Abandoned).await, Ok(taken), "in mode reserve the row in doubt is seen");
    assert_eq!(state(&bank, &lost).await, Some(State::Abandoned));
    assert_eq!(commit(&bank, &lost).await, Ok(Effect::Repeated), "its shard goes on");
    assert_eq!(commit(&bank, &in_doubt).await, Ok(Effect::Finished), "and gets there");
    assert_eq!(code(&prepare_one(&bank, &Arc::new(put_like(242, &in_doubt))).await), "duplicate");
    let listed = list(&bank).await.unwrap();
    let listed = listed.iter().find(|listed| listed.incident.txid == Some(lost.txid)).unwrap();
    let (settled, _) = listed.settled.clone().unwrap();
    assert_eq!(settled.code.is_some_and(|code| code.as_str() == "without_key"), is_xa);
}

fn put_like(n: u64, of: &Prepare) -> Prepare {
    Prepare { txid: super::txid(n), ..of.clone() }
}
