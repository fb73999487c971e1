//! What every resource must do, whatever the database: one suite, run on each.
//!
//! The business is a bank with one table of accounts and one of items. Money is conserved; an item carries its txid.

#![allow(dead_code, reason = "each test binary uses a part of it")]

#[cfg(feature = "failpoints")]
pub mod crash;
#[cfg(feature = "failpoints")]
pub mod sends;
pub mod server;
pub mod settling;

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use suture_contract::ids::{Attempt, Deployment, LogLetters, Shard, Txid};
use suture_contract::messages::{Decision, Prepare, Verdict};
use suture_participants::resource::{
    Effect, Fault, OpenError, Page, Position, Prepared, Redone, Resource, Stored, Unavailable,
};
use suture_participants_core::branch::{Answer, State, Wrong};
use tokio::time::timeout;

/// Longer than it takes to notice that a connection is gone.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A database for one test, which can be opened again and again.
pub trait Bench {
    type R: Resource;
    /// Opens it, as a new process would.
    async fn open(&self) -> Self::R;
    /// One number, over a fresh connection.
    async fn number(&self, sql: &str) -> i64;
    /// One text, over a fresh connection.
    async fn text(&self, sql: &str) -> String;
}

pub fn deployment() -> Deployment {
    "suture".parse().unwrap()
}

pub fn txid(n: u64) -> Txid {
    format!("k3f9q-3-{n}").parse().unwrap()
}

/// A prepare of operation `put`: takes `amount` from `account` for the item `id`.
pub fn put(n: u64, key: &str, id: &str, account: &str, amount: i64) -> Arc<Prepare> {
    prepare(n, key, 1, &format!(r#"{{"id":"{id}","account":"{account}","amount":{amount}}}"#))
}

pub fn prepare(n: u64, key: &str, attempt: u32, payload: &str) -> Arc<Prepare> {
    Arc::new(Prepare {
        txid: txid(n),
        business_key: key.parse().unwrap(),
        attempt: Attempt::new(attempt).unwrap(),
        operation: "put".to_string(),
        payload: RawValue::from_string(payload.to_string()).unwrap(),
        hash: hash(payload),
        order_key: None,
    })
}

/// Differs as the payload does.
pub fn hash(payload: &str) -> suture_contract::ids::RequestHash {
    let sum =
        payload.bytes().fold(7u128, |sum, b| sum.wrapping_mul(0x0100_0000_0000_0000_0000_013b).wrapping_add(b.into()));
    format!("k1:{sum:032x}").parse().unwrap()
}

/// The same, asked for after the hash key was rotated.
pub fn with_rotated_key(of: &Prepare) -> Arc<Prepare> {
    Arc::new(Prepare { hash: of.hash.to_string().replace("k1:", "k2:").parse().unwrap(), ..of.clone() })
}

pub fn decision(of: &Prepare, outcome: Verdict) -> Arc<Decision> {
    Arc::new(Decision {
        txid: of.txid,
        outcome,
        participants: vec!["bank".parse().unwrap()],
        business_key: of.business_key.clone(),
        attempt: of.attempt,
        hash: of.hash,
    })
}

pub fn yes() -> Prepared {
    Prepared::Answer(Answer::Yes)
}

/// The code of a no.
pub fn code(prepared: &Prepared) -> &str {
    match prepared {
        Prepared::Answer(Answer::No(refusal)) => refusal.code.as_str(),
        other => panic!("not a no: {other:?}"),
    }
}

/// Asks again as the service does: a server, or a client, may not have noticed yet that a connection is gone.
pub async fn until_answered<T, F: Future<Output = Result<T, Unavailable>>>(mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            if let Ok(answer) = ask().await {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, asking).await.expect("the database does not answer")
}

pub async fn prepare_one<R: Resource>(resource: &R, prepare: &Arc<Prepare>) -> Prepared {
    let mut prepared = resource.prepare(vec![prepare.clone()]).await.unwrap();
    assert_eq!(prepared.len(), 1);
    prepared.remove(0)
}

pub async fn decide<R: Resource>(resource: &R, of: &Prepare, outcome: Verdict) -> Result<Effect, Fault> {
    let batch = vec![decision(of, outcome)];
    let mut decided = match outcome {
        Verdict::Commit => resource.commit(batch).await.unwrap(),
        Verdict::Abort => resource.abort(batch).await.unwrap(),
    };
    assert_eq!(decided.len(), 1);
    decided.remove(0)
}

pub async fn commit<R: Resource>(resource: &R, of: &Prepare) -> Result<Effect, Fault> {
    decide(resource, of, Verdict::Commit).await
}

pub async fn abort<R: Resource>(resource: &R, of: &Prepare) -> Result<Effect, Fault> {
    decide(resource, of, Verdict::Abort).await
}

fn wrong(fault: Fault) -> Wrong {
    match fault {
        Fault::Violation(violation) => violation.wrong,
        other => panic!("another fault: {other}"),
    }
}

/// What the bank holds in all, wherever it stands. 1100 at the start of every test.
pub const MONEY: &str = "select cast(coalesce((select sum(balance + held) from account), 0) + coalesce((select sum(amount) from item where done), 0) as bigint)";
const ITEMS: &str = "select count(*) from item";
const DONE: &str = "select count(*) from item where done";
const LEDGER: &str = "select count(*) from suture_ledger where state = 'STATE'";

async fn states<B: Bench>(bench: &B, state: &str) -> i64 {
    bench.number(&LEDGER.replace("STATE", state)).await
}

/// All of it. Each part begins where the one before ended, on one database with accounts `a` of 1000, `y` and `z` of 50.
/// (A branch in doubt may lock its account, so branches that are in doubt together use different ones.)
pub async fn conforms<B: Bench>(bench: &B) {
    a_yes_is_committed_once(bench).await;
    a_yes_is_rolled_back(bench).await;
    a_no_changes_nothing(bench).await;
    business_keys_take_effect_once(bench).await;
    an_abort_may_overtake_its_prepare(bench).await;
    what_must_not_happen_stops(bench).await;
    a_batch_holds_anything(bench).await;
    hostile_values_are_values(bench).await;
    positions_are_kept(bench).await;
    a_database_that_went_back_takes_no_positions(bench).await;
    seeds_insert_what_is_missing(bench).await;
    finished_rows_are_purged_and_what_they_were_about_stays_finished(bench).await;
    what_is_unfinished_holds_back_its_shard(bench).await;
    commits_are_done_again(bench).await;
    what_is_prepared_again_and_refused_leaves_nothing(bench).await;
    settling::settles(bench).await;
    assert_eq!(bench.number(MONEY).await, 1100);
    assert_eq!(bench.number("select held from account where name = 'a'").await, 0, "nothing is in doubt");
}

async fn a_yes_is_committed_once<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let branch = put(1, "key-1", "i1", "a", 10);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    assert_eq!(bench.number(DONE).await, 0, "no effect before the decision");
    assert_eq!(bench.number(MONEY).await, 1100);
    assert_eq!(prepare_one(&bank, &branch).await, yes(), "the stored vote");
    let waiting = bank.in_doubt().await.unwrap();
    assert_eq!(waiting.iter().map(|w| w.txid).collect::<Vec<_>>(), [txid(1)]);
    drop(bank);

    let bank = bench.open().await;
    assert_eq!(prepare_one(&bank, &branch).await, yes(), "also after a crash");
    assert_eq!(commit(&bank, &branch).await, Ok(Effect::Finished));
    assert_eq!(commit(&bank, &branch).await, Ok(Effect::Repeated));
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    drop(bank);

    let bank = bench.open().await;
    assert_eq!(commit(&bank, &branch).await, Ok(Effect::Repeated));
    assert!(bank.in_doubt().await.unwrap().is_empty());
    assert_eq!(bench.number("select count(*) from item where done and txid = 'k3f9q-3-1'").await, 1);
    assert_eq!(bench.number("select balance from account where name = 'a'").await, 990);
}

async fn a_yes_is_rolled_back<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let branch = put(2, "key-2", "i2", "a", 10);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    drop(bank);
    let bank = bench.open().await;
    assert_eq!(abort(&bank, &branch).await, Ok(Effect::Finished));
    assert_eq!(abort(&bank, &branch).await, Ok(Effect::Repeated));
    assert_eq!(code(&prepare_one(&bank, &branch).await), "aborted");
    assert_eq!(bench.number("select count(*) from item where txid = 'k3f9q-3-2'").await, 0);
    assert_eq!(bench.number("select balance from account where name = 'a'").await, 990);
    assert_eq!(states(bench, "aborted").await, 1);
}

async fn a_no_changes_nothing<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let items = bench.number(ITEMS).await;
    let cases = [
        (put(10, "key-10", "i10", "nobody", 10), "NO_ACCOUNT"),
        (put(11, "key-11", "i11", "a", 100_000), "LIMIT"),
        (put(12, "key-12", "i1", "a", 10), "DUPLICATE"),
        (put(13, "key-13", "i13", "a", -5), "statement_failed"),
        (prepare(14, "key-14", 1, r#"{"id":"i14","account":"a"}"#), "unreadable"),
        (prepare(15, "key-15", 1, r#"{"id":"i15","account":"a","amount":"10"}"#), "unreadable"),
        (prepare(16, "key-16", 1, "[]"), "unreadable"),
        (prepare(17, "key-17", 1, r#"{"id":"i17\u0000","account":"a","amount":1}"#), "unreadable"),
    ];
    for (branch, expected) in cases {
        assert_eq!(code(&prepare_one(&bank, &branch).await), expected);
        assert_eq!(code(&prepare_one(&bank, &branch).await), expected, "the stored vote");
        assert_eq!(abort(&bank, &branch).await, Ok(Effect::Repeated));
        assert_eq!(code(&prepare_one(&bank, &branch).await), expected, "it stays refused");
    }
    let mut unknown = Prepare::clone(&put(18, "key-18", "i18", "a", 1));
    unknown.operation = "nothing_here".to_string();
    assert_eq!(code(&prepare_one(&bank, &Arc::new(unknown)).await), "unreadable");
    assert_eq!(bench.number(ITEMS).await, items);
    assert_eq!(bench.number("select balance from account where name = 'a'").await, 990);
    assert!(bank.in_doubt().await.unwrap().is_empty());
}

async fn business_keys_take_effect_once<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let payload = r#"{"id":"i20","account":"a","amount":20}"#;
    let first = prepare(20, "key-20", 1, payload);
    assert_eq!(prepare_one(&bank, &first).await, yes());

    let meanwhile = prepare(21, "key-20", 2, payload);
    assert_eq!(code(&prepare_one(&bank, &meanwhile).await), "in_progress");
    assert_eq!(code(&prepare_one(&bank, &with_rotated_key(&prepare(35, "key-20", 1, payload))).await), "in_progress");
    assert_eq!(abort(&bank, &meanwhile).await, Ok(Effect::Repeated));
    assert_eq!(commit(&bank, &first).await, Ok(Effect::Finished));

    let again = prepare(22, "key-20", 1, payload);
    let Prepared::Answer(Answer::No(refusal)) = prepare_one(&bank, &again).await else { panic!("not a no") };
    assert_eq!((refusal.code.as_str(), refusal.duplicate_of), ("duplicate", Some(txid(20))));
    let Prepared::Answer(Answer::No(stored)) = prepare_one(&bank, &again).await else { panic!("not a no") };
    assert_eq!(stored, refusal);
    let amended = prepare(23, "key-20", 3, r#"{"id":"i20b","account":"a","amount":21}"#);
    assert_eq!(code(&prepare_one(&bank, &amended).await), "conflict");
    // O4: hashes of two hash keys cannot be compared; the business key says that it is the same thing.
    let rotated = with_rotated_key(&prepare(36, "key-20", 1, payload));
    let Prepared::Answer(Answer::No(refusal)) = prepare_one(&bank, &rotated).await else { panic!("not a no") };
    assert_eq!((refusal.code.as_str(), refusal.duplicate_of), ("duplicate", Some(txid(20))));
    let of_key = "select count(*) from suture_ledger where business_key = 'key-20'";
    assert_eq!(bench.number(of_key).await, 1, "refused duplicates carry no key");

    // An aborted attempt blocks itself and what came before it, and nothing else.
    let payload = r#"{"id":"i24","account":"a","amount":1}"#;
    let second = prepare(24, "key-24", 2, payload);
    assert_eq!(prepare_one(&bank, &second).await, yes());
    assert_eq!(abort(&bank, &second).await, Ok(Effect::Finished));
    assert_eq!(code(&prepare_one(&bank, &prepare(25, "key-24", 2, payload)).await), "aborted_before");
    assert_eq!(code(&prepare_one(&bank, &prepare(26, "key-24", 1, payload)).await), "aborted_before");
    let third = with_rotated_key(&prepare(27, "key-24", 3, payload));
    assert_eq!(prepare_one(&bank, &third).await, yes());
    assert_eq!(commit(&bank, &third).await, Ok(Effect::Finished));
    // So does a refused one.
    let refused = put(28, "key-28", "i28", "nobody", 1);
    assert_eq!(code(&prepare_one(&bank, &refused).await), "NO_ACCOUNT");
    assert_eq!(code(&prepare_one(&bank, &put(29, "key-28", "i28", "a", 1)).await), "aborted_before");
}

async fn an_abort_may_overtake_its_prepare<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let items = bench.number(ITEMS).await;
    let payload = r#"{"id":"i30","account":"a","amount":30}"#;
    let late = prepare(30, "key-30", 1, payload);
    assert_eq!(abort(&bank, &late).await, Ok(Effect::NotedAbort));
    assert_eq!(abort(&bank, &late).await, Ok(Effect::Repeated));
    assert_eq!(code(&prepare_one(&bank, &late).await), "aborted");

    // What was aborted was a duplicate, perhaps: the original may still come.
    let original = prepare(31, "key-30", 1, payload);
    assert_eq!(prepare_one(&bank, &original).await, yes());
    let crossed = prepare(32, "key-30", 1, payload);
    assert_eq!(abort(&bank, &crossed).await, Ok(Effect::NotedAbort));
    assert_eq!(abort(&bank, &original).await, Ok(Effect::Finished));
    let named = "select count(*) from suture_ledger where business_key = 'key-30' and attempt = 1";
    assert_eq!(bench.number(named).await, 1);
    assert_eq!(code(&prepare_one(&bank, &crossed).await), "aborted");
    assert_eq!(code(&prepare_one(&bank, &prepare(33, "key-30", 1, payload)).await), "aborted_before");
    assert_eq!(bench.number(ITEMS).await, items);
}

async fn what_must_not_happen_stops<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let items = bench.number(ITEMS).await;
    let unknown = put(40, "key-40", "i40", "a", 1);
    assert_eq!(commit(&bank, &unknown).await.map_err(wrong), Err(Wrong::Lost), "no row");

    let refused = put(41, "key-41", "i41", "nobody", 1);
    assert_eq!(code(&prepare_one(&bank, &refused).await), "NO_ACCOUNT");
    assert_eq!(commit(&bank, &refused).await.map_err(wrong), Err(Wrong::Lost), "never said yes");

    let aborted = put(42, "key-42", "i42", "a", 1);
    assert_eq!(abort(&bank, &aborted).await, Ok(Effect::NotedAbort));
    assert_eq!(commit(&bank, &aborted).await.map_err(wrong), Err(Wrong::Lost));

    let committed = put(43, "key-43", "i43", "a", 1);
    assert_eq!(prepare_one(&bank, &committed).await, yes());
    assert_eq!(commit(&bank, &committed).await, Ok(Effect::Finished));
    assert_eq!(abort(&bank, &committed).await.map_err(wrong), Err(Wrong::Contradiction));

    // Another hash, in doubt and afterwards.
    let branch = put(44, "key-44", "i44", "a", 1);
    let other = put(44, "key-44", "i44", "a", 2);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    let Prepared::Fault(fault) = prepare_one(&bank, &other).await else { panic!("obeyed") };
    assert_eq!(wrong(fault), Wrong::OtherHash);
    assert_eq!(commit(&bank, &other).await.map_err(wrong), Err(Wrong::OtherHash));
    assert_eq!(abort(&bank, &other).await.map_err(wrong), Err(Wrong::OtherHash));
    assert_eq!(bank.in_doubt().await.unwrap().len(), 1, "nothing was changed");
    assert_eq!(abort(&bank, &branch).await, Ok(Effect::Finished));
    assert_eq!(abort(&bank, &other).await.map_err(wrong), Err(Wrong::OtherHash));
    assert_eq!(bench.number(ITEMS).await, items + 1);
}

async fn a_batch_holds_anything<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let batch = vec![
        put(50, "key-50", "i50", "a", 1),
        put(51, "key-51", "i51", "nobody", 1),
        put(52, "key-50", "i50", "a", 1),
        put(50, "key-50", "i50", "a", 1),
        put(53, "key-53", "i53", "y", 1),
        put(54, "key-54", "i1", "z", 1),
    ];
    let prepared = bank.prepare(batch.clone()).await.unwrap();
    assert_eq!(prepared[0], yes());
    assert_eq!(code(&prepared[1]), "NO_ACCOUNT");
    assert_eq!(code(&prepared[2]), "in_progress");
    assert_eq!(prepared[3], yes());
    assert_eq!(prepared[4], yes());
    assert_eq!(code(&prepared[5]), "DUPLICATE");

    let commits = [&batch[0], &batch[4]].map(|p| decision(p, Verdict::Commit)).to_vec();
    let unknown = decision(&put(55, "key-55", "i55", "a", 1), Verdict::Commit);
    let decided = bank.commit([commits.clone(), vec![unknown]].concat()).await.unwrap();
    assert_eq!(decided[..2], [Ok(Effect::Finished), Ok(Effect::Finished)], "one lost branch holds up no other");
    assert_eq!(decided[2].clone().map_err(wrong), Err(Wrong::Lost));
    assert_eq!(bank.commit(commits).await.unwrap(), [Ok(Effect::Repeated), Ok(Effect::Repeated)]);

    let aborts: Vec<_> =
        (60..90).map(|n| decision(&put(n, &format!("key-{n}"), "x", "a", 1), Verdict::Abort)).collect();
    assert!(bank.abort(aborts.clone()).await.unwrap().iter().all(|e| *e == Ok(Effect::NotedAbort)));
    assert!(bank.abort(aborts).await.unwrap().iter().all(|e| *e == Ok(Effect::Repeated)));
    assert!(bank.prepare(vec![]).await.unwrap().is_empty());
    assert!(bank.commit(vec![]).await.unwrap().is_empty());
}

/// In mode reserve, where the branches of a batch may meet one row. Some are refused for their rows, some by an error, among many
/// that are not.
pub async fn a_long_batch_loses_only_those_at_fault<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let (money, items) = (bench.number(MONEY).await, bench.number(ITEMS).await);
    let expected = |n: u64| match n {
        _ if n % 7 == 3 || (1050..1056).contains(&n) => Some("NO_ACCOUNT"),
        _ if n % 11 == 5 => Some("DUPLICATE"),
        _ => None,
    };
    let branch = |n: u64| match expected(n) {
        Some("NO_ACCOUNT") => put(n, &format!("key-{n}"), &format!("i{n}"), "nobody", 1),
        Some(_) => put(n, &format!("key-{n}"), "i1000", "a", 1),
        None => put(n, &format!("key-{n}"), &format!("i{n}"), "a", 1),
    };
    let batch: Vec<_> = (1000..1100).map(branch).collect();
    let prepared = bank.prepare(batch.clone()).await.unwrap();
    for (n, prepared) in (1000..).zip(&prepared) {
        match expected(n) {
            None => assert_eq!(*prepared, yes(), "{n}"),
            Some(refused) => assert_eq!(code(prepared), refused, "{n}"),
        }
    }
    assert_eq!(bank.prepare(batch.clone()).await.unwrap(), prepared, "all of it is in the ledger");
    let good: Vec<_> =
        batch.iter().zip(&prepared).filter(|(_, prepared)| **prepared == yes()).map(|(of, _)| of).collect();
    assert_eq!(bench.number(ITEMS).await - items, good.len() as i64);

    let of = |keep: usize, outcome| {
        good.iter().enumerate().filter(move |(i, _)| i % 3 == keep).map(move |(_, of)| decision(of, outcome))
    };
    let aborts: Vec<_> = of(0, Verdict::Abort).collect();
    let commits: Vec<_> = of(1, Verdict::Commit).chain(of(2, Verdict::Commit)).collect();
    assert!(bank.abort(aborts.clone()).await.unwrap().iter().all(|effect| *effect == Ok(Effect::Finished)));
    assert!(bank.commit(commits.clone()).await.unwrap().iter().all(|effect| *effect == Ok(Effect::Finished)));
    assert_eq!(bench.number(ITEMS).await - items, commits.len() as i64);
    assert_eq!(bench.number(MONEY).await, money);
    assert_eq!(bench.number("select held from account where name = 'a'").await, 0);
}

/// In mode reserve: the row that a confirm step needs is hidden for a while.
pub async fn what_cannot_be_confirmed_holds_up_no_other<B: Bench>(bench: &B, execute: impl AsyncFn(&str)) {
    let bank = bench.open().await;
    let batch: Vec<_> = (1200..1220).map(|n| put(n, &format!("key-{n}"), &format!("i{n}"), "a", 1)).collect();
    assert!(bank.prepare(batch.clone()).await.unwrap().iter().all(|prepared| *prepared == yes()));
    let commits: Vec<_> = batch.iter().map(|of| decision(of, Verdict::Commit)).collect();
    execute("update item set txid = concat(txid, '-') where id in ('i1205', 'i1206')").await;
    for (n, decided) in (1200..).zip(bank.commit(commits.clone()).await.unwrap()) {
        match n {
            1205 | 1206 => assert!(matches!(decided, Err(Fault::Finish { .. })), "{n}: {decided:?}"),
            _ => assert_eq!(decided, Ok(Effect::Finished), "{n}"),
        }
    }
    assert_eq!(bank.in_doubt().await.unwrap().len(), 2);
    execute("update item set txid = left(txid, length(txid) - 1) where id in ('i1205', 'i1206')").await;
    let finished = bank.commit(commits).await.unwrap();
    assert_eq!(finished.iter().filter(|decided| **decided == Ok(Effect::Finished)).count(), 2);
    assert_eq!(bench.number("select held from account where name = 'a'").await, 0);
}

/// R15, in mode reserve. `open_with` opens it with another text of its configuration.
pub async fn what_is_in_doubt_is_finished_as_it_was_begun<B: Bench>(
    bench: &B,
    open_with: impl AsyncFn(&[(&str, &str)]) -> Result<B::R, OpenError>,
) {
    const CONFIRM: (&str, &str) = ("update item set done", "update item set account = account, done");
    const CANCEL: (&str, &str) = ("delete from item where txid = :txid", "delete from item where :txid = txid");
    const RESERVE: (&str, &str) = ("code = \"NO_ACCOUNT\"", "code = \"UNKNOWN\"");
    const NAME: (&str, &str) = ("operation.put.", "operation.put_again.");
    let changed = open_with(&[CONFIRM]).await.expect("nothing is in doubt");
    let (money, branch) = (bench.number(MONEY).await, put(1300, "key-1300", "i1300", "a", 1));
    assert_eq!(prepare_one(&bench.open().await, &branch).await, yes());

    let fault = Fault::ChangedOperation { operation: "put".to_string() };
    assert_eq!(commit(&changed, &branch).await, Err(fault.clone()), "by a process that was there before");
    assert_eq!(abort(&changed, &branch).await, Err(fault));
    let put = || "put".to_string();
    for (change, refused) in [
        (CONFIRM, OpenError::ChangedOperation { operation: put() }),
        (CANCEL, OpenError::ChangedOperation { operation: put() }),
        (NAME, OpenError::NoOperation { operation: put() }),
    ] {
        assert_eq!(open_with(&[change]).await.err(), Some(refused), "{change:?}");
    }
    assert_eq!(bench.number("select count(*) from item where id = 'i1300' and done").await, 0);

    let bank = open_with(&[RESERVE]).await.expect("what reserves may change");
    assert_eq!(commit(&bank, &branch).await, Ok(Effect::Finished));
    assert!(open_with(&[CONFIRM, CANCEL]).await.is_ok(), "it is decided");
    assert_eq!(bench.number(MONEY).await, money);
}

/// X1, X2: what a payload holds is stored as it is, or refused with a code.
async fn hostile_values_are_values<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let ids = [
        "', 'a', 1); drop table item; --",
        "\"`$1 :id ? @x #",
        "back\\slash\\'",
        "line\nbreak\ttab",
        "\u{1f600} e\u{301} \u{fffd}",
        "",
    ];
    for (n, id) in (100..).zip(ids) {
        let payload = serde_json::json!({ "id": id, "account": "a", "amount": 1 }).to_string();
        let branch = prepare(n, &format!("key-{n}"), 1, &payload);
        assert_eq!(prepare_one(&bank, &branch).await, yes(), "{id:?}");
        assert_eq!(commit(&bank, &branch).await, Ok(Effect::Finished));
        assert_eq!(bench.text(&format!("select id from item where txid = '{}'", branch.txid)).await, id);
    }
    let items = bench.number(ITEMS).await;
    let numbers =
        ["9223372036854775807", "9223372036854775808", "-9223372036854775808", "1e400", "0.5", "true", "null"];
    for (n, number) in (110..).zip(numbers) {
        let branch = prepare(n, &format!("key-{n}"), 1, &format!(r#"{{"id":"n{n}","account":"a","amount":{number}}}"#));
        let prepared = prepare_one(&bank, &branch).await;
        let code = code(&prepared);
        assert!(["unreadable", "statement_failed", "LIMIT"].contains(&code), "{number}: {code}");
        assert_eq!(abort(&bank, &branch).await, Ok(Effect::Repeated));
    }
    let long = "x".repeat(1 << 20);
    let branch = prepare(120, "key-120", 1, &format!(r#"{{"id":"i120","account":"{long}","amount":1}}"#));
    assert_eq!(code(&prepare_one(&bank, &branch).await), "NO_ACCOUNT", "there is none of that name");
    // As a script it may be longer than a server takes at once.
    let long = long.repeat(8);
    let branch = prepare(121, "key-121", 1, &format!(r#"{{"id":"i121","account":"{long}","amount":1}}"#));
    let prepared = prepare_one(&bank, &branch).await;
    assert!(["NO_ACCOUNT", "statement_failed"].contains(&code(&prepared)), "{prepared:?}");
    let branch = put(122, "key-122", "i122", "a", 1);
    assert_eq!(prepare_one(&bank, &branch).await, yes(), "nothing is left of it");
    assert_eq!(abort(&bank, &branch).await, Ok(Effect::Finished));
    assert_eq!(bench.number(ITEMS).await, items);
}

async fn positions_are_kept<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    // R19: what is in doubt locks no position.
    let branch = put(119, "key-119", "i119", "a", 1);
    assert_eq!(prepare_one(&bank, &branch).await, yes());
    let position = |letters: &str, shard, next_offset| Position {
        topic: "suture.decisions".to_string(),
        letters: letters.parse::<LogLetters>().unwrap(),
        shard: Shard(shard),
        next_offset,
    };
    let store = async |positions| assert_eq!(bank.store_positions(positions, vec![]).await, Ok(Stored::All));
    store(vec![position("aaaaa", 0, 7), position("aaaaa", 1, 8)]).await;
    store(vec![position("aaaaa", 0, 9), position("bbbbb", 0, 1)]).await;
    store(vec![position("aaaaa", 1, 3)]).await;
    store(vec![]).await;
    let stored = bank.load_positions("suture.decisions".to_string()).await.unwrap();
    assert!(stored.contains(&position("aaaaa", 1, 8)), "none goes back: {stored:?}");
    store(vec![position("aaaaa", 0, 10), position("aaaaa", 1, 11)]).await;
    drop(bank);
    let bank = bench.open().await;
    let mut stored = bank.load_positions("suture.decisions".to_string()).await.unwrap();
    stored.sort_by_key(|p| (p.letters, p.shard));
    assert_eq!(stored, [position("aaaaa", 0, 10), position("aaaaa", 1, 11), position("bbbbb", 0, 1)]);
    assert!(bank.load_positions("suture.prepare.bank".to_string()).await.unwrap().is_empty());
    assert_eq!(bank.in_doubt().await.unwrap().len(), 1);
    assert_eq!(abort(&bank, &branch).await, Ok(Effect::Finished));
}

async fn a_database_that_went_back_takes_no_positions<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let position = |shard, next_offset| Position {
        topic: "suture.prepare.bank".to_string(),
        letters: "ccccc".parse().unwrap(),
        shard: Shard(shard),
        next_offset,
    };
    let stored = async |bank: &B::R| {
        let mut stored = bank.load_positions("suture.prepare.bank".to_string()).await.unwrap();
        stored.sort_by_key(|p| p.shard);
        stored
    };
    let now = vec![position(0, 7), position(1, 8)];
    assert_eq!(bank.store_positions(now.clone(), vec![]).await, Ok(Stored::All));
    assert_eq!(bank.store_positions(vec![position(0, 9)], now.clone()).await, Ok(Stored::All));
    assert_eq!(bank.store_positions(vec![], vec![position(0, 8)]).await, Ok(Stored::All), "another one stored more");
    let cases = [
        ("one has gone back", vec![position(0, 10), position(1, 8)]),
        ("one is not there any more", vec![position(2, 0)]),
    ];
    for (what, seen) in cases {
        assert_eq!(bank.store_positions(vec![position(1, 99)], seen).await, Ok(Stored::WentBack), "{what}");
        assert_eq!(stored(&bank).await, [position(0, 9), position(1, 8)], "{what}: nothing is stored");
    }

    // The name: kept by a process that does not know of the new one, and drawn once if two begin.
    let (old, both) = (bank.ledger_id(), [bench.open().await, bench.open().await]);
    assert!(!both[0].is_restoring().await.unwrap());
    both[0].begin_restore().await.unwrap();
    let new = both[0].ledger_id();
    both[1].begin_restore().await.unwrap();
    assert_eq!(both[1].ledger_id(), new, "not drawn again");
    assert!(new != old && new.starts_with(&format!("{old}-")), "{old} and {new}");
    assert!(both[1].is_restoring().await.unwrap());
    assert_eq!(bank.store_positions(vec![position(1, 9)], vec![]).await, Ok(Stored::WentBack), "the old name");
    assert_eq!(both[0].store_positions(vec![position(1, 9)], now).await, Ok(Stored::All));
    drop((bank, both));

    let bank = bench.open().await;
    assert_eq!(bank.ledger_id(), new, "also after a crash");
    assert!(bank.is_restoring().await.unwrap());
    bank.end_restore().await.unwrap();
    assert!(!bank.is_restoring().await.unwrap());
    bank.begin_restore().await.unwrap();
    let next = bank.ledger_id();
    assert!(next != new && next.starts_with(&format!("{old}-")) && next.len() == new.len(), "{next}");
    bank.end_restore().await.unwrap();
}

/// The yes of then stands, and whoever is in the way now may go.
async fn what_is_prepared_again_and_refused_leaves_nothing<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let (in_the_way, branch) = (put(190, "key-190", "i190", "z", 40), put(191, "key-191", "i191", "z", 40));
    let again = async || bank.prepare_again(vec![branch.clone()]).await.unwrap().remove(0);
    assert_eq!(prepare_one(&bank, &in_the_way).await, yes());
    let refused = again().await;
    assert!(["busy", "LIMIT"].contains(&code(&refused)), "{refused:?}");
    assert!(bank.states(vec![branch.txid]).await.unwrap().is_empty());
    assert_eq!(abort(&bank, &in_the_way).await, Ok(Effect::Finished));
    assert_eq!(again().await, yes());
    assert_eq!(again().await, yes());
    assert_eq!(abort(&bank, &branch).await, Ok(Effect::Finished));
}

/// Prepare and commit in one, for what was decided before the database went back.
async fn commits_are_done_again<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let redo = async |batch: &[Arc<Prepare>]| bank.redo(batch.to_vec()).await.unwrap();
    let failed = |code: &str| Redone::Failed(code.parse().unwrap());
    let (items, done) = (bench.number(ITEMS).await, bench.number(DONE).await);
    let branches = [put(150, "key-150", "i150", "a", 1), put(151, "key-151", "i151", "y", 2)];
    let states = async |numbers: std::ops::Range<u64>| bank.states(numbers.map(txid).collect()).await.unwrap();
    assert!(states(150..153).await.is_empty());
    assert_eq!(redo(&branches).await, Some(vec![Redone::Done, Redone::Done]));
    assert_eq!(states(150..153).await, [(txid(150), State::Committed), (txid(151), State::Committed)].into());
    for branch in &branches {
        assert_eq!(commit(&bank, branch).await, Ok(Effect::Repeated));
        assert_eq!(prepare_one(&bank, branch).await, yes());
    }
    assert_eq!(bench.number(DONE).await, done + 2);
    assert_eq!(redo(&branches[..1]).await, Some(vec![failed("busy")]), "its row is there");

    // What fails leaves nothing, and keeps nobody else from it.
    let batch = [
        put(153, "key-153", "i153", "nobody", 1),
        put(154, "key-154", "i154", "a", 100_000),
        put(155, "key-155", "i155", "a", 1),
        put(156, "key-156", "i150", "a", 1),
        prepare(157, "key-157", 1, "[]"),
    ];
    let tried = redo(&batch).await.unwrap();
    let codes = ["NO_ACCOUNT", "LIMIT", "", "DUPLICATE", "unreadable"];
    for (tried, code) in tried.into_iter().zip(codes) {
        assert_eq!(tried, if code.is_empty() { Redone::Done } else { failed(code) });
    }
    assert_eq!(states(153..158).await, [(txid(155), State::Committed)].into(), "no row of the others");
    assert_eq!(commit(&bank, &batch[0]).await.map_err(wrong), Err(Wrong::Lost));
    assert_eq!(prepare_one(&bank, &batch[2]).await, yes());
    assert_eq!(bench.number(ITEMS).await, items + 3);

    // A branch in doubt is no case for it.
    let in_doubt = put(158, "key-158", "i158", "z", 1);
    assert_eq!(prepare_one(&bank, &in_doubt).await, yes());
    let tried = bank.redo(vec![in_doubt.clone()]).await;
    assert!(tried.is_err() || tried == Ok(Some(vec![failed("busy")])), "{tried:?}");
    assert_eq!(commit(&bank, &in_doubt).await, Ok(Effect::Finished));
    assert_eq!(bank.redo(vec![]).await.unwrap(), Some(vec![]));
    assert_eq!(bench.number(MONEY).await, 1100);
}

async fn seeds_insert_what_is_missing<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let rows =
        |texts: &[&str]| texts.iter().map(|t| RawValue::from_string((*t).to_string()).unwrap()).collect::<Vec<_>>();
    let both = rows(&[r#"{"name":"b","bucket":3}"#, r#"{"name":"c","bucket":0}"#, r#"{"name":"b","bucket":3}"#]);
    assert_eq!(bank.seed("account".to_string(), both.clone()).await, Ok(1), "bucket 0 is left out");
    assert_eq!(bank.seed("account".to_string(), both).await, Ok(0));
    assert!(bank.seed("account".to_string(), rows(&["{}"])).await.is_err());
    assert!(bank.seed("put".to_string(), rows(&["{}"])).await.is_err(), "operations are no seeds");
    let mut prepared = Prepare::clone(&put(95, "key-95", "i95", "a", 1));
    prepared.operation = "account".to_string();
    assert_eq!(code(&prepare_one(&bank, &Arc::new(prepared)).await), "unreadable", "and seeds no operations");
}

/// A page of all shards' rows, with nothing to wait for.
pub fn page(after: Option<Txid>, rows: usize) -> Page {
    let shards = (0..12).map(Shard).collect();
    Page { after, rows, older_than: Duration::ZERO, shards, unacknowledged: Vec::new() }
}

/// Walks through the whole ledger; answers how many rows went.
pub async fn purge<R: Resource>(resource: &R, of: &Page) -> usize {
    let mut page = of.clone();
    let mut rows = 0;
    loop {
        let purged = until_answered(|| resource.purge(page.clone())).await;
        rows += purged.rows;
        match purged.next {
            Some(_) => page.after = purged.next,
            None => return rows,
        }
    }
}

const ROWS: &str = "select count(*) from suture_ledger";
const MARK: &str = "select coalesce(max(next_offset), 0) from suture_marks where letters = 'k3f9q' and shard = 3";

async fn finished_rows_are_purged_and_what_they_were_about_stays_finished<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let (committed, aborted) = (put(130, "key-130", "i130", "a", 1), put(131, "key-131", "i131", "a", 1));
    let refused = put(132, "key-132", "i132", "nobody", 1);
    assert_eq!(prepare_one(&bank, &committed).await, yes());
    assert_eq!(commit(&bank, &committed).await, Ok(Effect::Finished));
    assert_eq!(prepare_one(&bank, &aborted).await, yes());
    assert_eq!(abort(&bank, &aborted).await, Ok(Effect::Finished));
    assert_eq!(code(&prepare_one(&bank, &refused).await), "NO_ACCOUNT");
    let (rows, items) = (bench.number(ROWS).await, bench.number(ITEMS).await);

    let young = Page { older_than: Duration::from_secs(3_600), ..page(None, 7) };
    assert_eq!(purge(&bank, &young).await, 0, "nothing is old enough");
    let elsewhere = Page { shards: [Shard(1)].into(), ..page(None, 7) };
    assert_eq!(purge(&bank, &elsewhere).await, 0, "another shard");
    let unacknowledged = Page { unacknowledged: vec![txid(0)], ..page(None, 7) };
    assert_eq!(purge(&bank, &unacknowledged).await, 0, "a decision below is not acknowledged");
    assert_eq!(bench.number(MARK).await, 0);

    assert_eq!(purge(&bank, &page(None, 7)).await as i64, rows, "in pages of seven");
    assert_eq!(bench.number(ROWS).await, 0);
    assert_eq!(bench.number(MARK).await, 133, "just past the last one");
    assert_eq!(purge(&bank, &page(None, 7)).await, 0);
    assert_eq!(bench.number(MARK).await, 133);
    drop(bank);

    // P25: whatever comes late, it is finished.
    let bank = bench.open().await;
    for late in [&committed, &aborted, &refused, &put(129, "key-129", "i129", "a", 1)] {
        assert_eq!(code(&prepare_one(&bank, late).await), "finished_before");
        assert_eq!(commit(&bank, late).await, Ok(Effect::Repeated));
        assert_eq!(abort(&bank, late).await, Ok(Effect::Repeated));
        assert_eq!(bank.redo(vec![late.clone()]).await, Ok(Some(vec![Redone::Known])), "nor is it done again");
    }
    assert_eq!((bench.number(ROWS).await, bench.number(ITEMS).await), (0, items), "and leaves nothing");

    // The row is consulted first, and the mark is of this log alone.
    let above = put(133, "key-133", "i133", "a", 1);
    assert_eq!(prepare_one(&bank, &above).await, yes());
    assert_eq!(commit(&bank, &above).await, Ok(Effect::Finished));
    let mut other_log = Prepare::clone(&put(1, "key-134", "i134", "a", 1));
    other_log.txid = "aaaaa-3-1".parse().unwrap();
    let other_log = Arc::new(other_log);
    assert_eq!(prepare_one(&bank, &other_log).await, yes());
    assert_eq!(abort(&bank, &other_log).await, Ok(Effect::Finished));

    // L6: with its row the business key is forgotten, so purge_after must outlive any replay.
    assert_eq!(purge(&bank, &page(None, 100)).await, 2);
    let replayed = put(135, "key-133", "i135", "a", 1);
    assert_eq!(prepare_one(&bank, &replayed).await, yes());
    assert_eq!(abort(&bank, &replayed).await, Ok(Effect::Finished));
}

async fn what_is_unfinished_holds_back_its_shard<B: Bench>(bench: &B) {
    let bank = bench.open().await;
    let (below, in_doubt, above) =
        (put(140, "key-140", "i140", "a", 1), put(141, "key-141", "i141", "y", 1), put(142, "key-142", "i142", "a", 1));
    assert_eq!(prepare_one(&bank, &in_doubt).await, yes());
    for branch in [&below, &above] {
        assert_eq!(prepare_one(&bank, branch).await, yes());
        assert_eq!(commit(&bank, branch).await, Ok(Effect::Finished));
    }
    purge(&bank, &page(None, 100)).await;
    assert_eq!(bench.number(MARK).await, 141);
    assert_eq!(bench.number("select count(*) from suture_ledger where txid = 'k3f9q-3-142'").await, 1);
    assert_eq!(prepare_one(&bank, &in_doubt).await, yes(), "it is in doubt as before");
    assert_eq!(commit(&bank, &in_doubt).await, Ok(Effect::Finished));
    assert_eq!(purge(&bank, &page(None, 100)).await, 2);
    assert_eq!(bench.number(MARK).await, 143);
    assert_eq!(commit(&bank, &in_doubt).await, Ok(Effect::Repeated));
    assert_eq!(abort(&bank, &in_doubt).await, Ok(Effect::Repeated), "how it was finished is forgotten");
}
