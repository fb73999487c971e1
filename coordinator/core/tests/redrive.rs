//! Driving again: every pair of the module's table, and what restarts, repeats and bounds come to.

use std::time::Duration;

use suture_contract::codec::decode;
use suture_contract::ids::{Attempt, Txid};
use suture_contract::messages::{Outcome, Request};
use suture_coordinator_core::ingest::rules::Rules;
use suture_coordinator_core::redrive::{Ask, Heard, MAX_WAITING, NotAgain, Redrive, Word, by_hand};

const RULES: &str = r#"
    [[rule]]
    id = "surgery"
    topics = ["t"]
    match = [{ path = "$.id", present = true }]
    key = { source = "s", id = "$.id", revision = "$.status" }
    RETRY
    [[rule.branch]]
    participant = "p"
    operation = "o"
    payload = { x = "$.id" }
"#;

fn rules() -> Rules {
    rules_with("retry_after_ms = [10, 20]")
}

fn rules_with(retry: &str) -> Rules {
    Rules::parse(&RULES.replace("RETRY", retry)).unwrap()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn txid(offset: u64) -> Txid {
    format!("k3f9q-3-{offset}").parse().unwrap()
}

/// An outcome as the coordinator writes it: `commit`, or the noes of `hospital` and `insurer`.
fn outcome(offset: u64, key: &str, attempt: u32, noes: &str) -> Outcome {
    let codes: Vec<&str> = noes.split(' ').collect();
    let votes: Vec<String> = ["hospital", "insurer"]
        .iter()
        .zip(codes.iter().copied().chain(std::iter::repeat("yes")))
        .map(|(who, code)| match code {
            "yes" | "commit" => format!(r#"{{"participant":"{who}","vote":"yes"}}"#),
            code => format!(r#"{{"participant":"{who}","vote":"no","code":"{code}"}}"#),
        })
        .collect();
    let passing = |code: &&str| ["expired", "busy", "in_progress", "yes"].contains(code);
    let (verdict, retryable) = match noes {
        "commit" => ("commit", false),
        _ => ("abort", codes.iter().all(passing)),
    };
    let duplicate_of = if noes.contains("duplicate") { r#""duplicate_of":"k3f9q-3-1","# } else { "" };
    let json = format!(
        r#"{{"type":"outcome","v":1,"txid":"k3f9q-3-{offset}","business_key":"{key}","attempt":{attempt},"outcome":"{verdict}","votes":[{}],{duplicate_of}"retryable":{retryable}}}"#,
        votes.join(",")
    );
    decode(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"))
}

const KEY: &str = "surgery:1:finished";

/// A shard that has read everything, and what it says to one outcome after the other, at the offsets from 0.
fn hear(outcomes: &[(u32, &str)]) -> (Redrive, Vec<Heard>) {
    let mut redrive = Redrive::new(0, 0);
    let heard = outcomes.iter().enumerate().map(|(at, (attempt, noes))| {
        redrive.hear(&rules(), at as u64, Some(&outcome(100 + at as u64, KEY, *attempt, noes)), Duration::ZERO)
    });
    let heard = heard.collect();
    (redrive, heard)
}

fn due(redrive: &mut Redrive, now: u64) -> Vec<(Txid, u32, String)> {
    let asks = redrive.due(ms(now), usize::MAX);
    asks.into_iter().map(|ask| (ask.txid, ask.attempt.number(), ask.because)).collect()
}

#[test]
fn no_more_is_due_at_once_than_may_be() {
    let mut redrive = Redrive::new(0, 0);
    for (at, key) in ["surgery:1:finished", "surgery:2:finished", "surgery:3:finished"].into_iter().enumerate() {
        redrive.hear(&rules(), at as u64, Some(&outcome(100 + at as u64, key, 1, "busy")), Duration::ZERO);
    }
    let mut due = |most| redrive.due(ms(100), most).len();
    assert_eq!([due(2), due(2), due(2)], [2, 1, 0]);
}

#[test]
fn an_outcome_says_one_of_four_things() {
    for (noes, word) in [
        ("commit", Word::TookEffect),
        ("duplicate duplicate", Word::TookEffect),
        ("duplicate in_progress", Word::TookEffect),
        ("expired", Word::MayPass),
        ("busy in_progress", Word::MayPass),
        ("yes expired", Word::MayPass),
        ("LIMIT", Word::Refused),
        ("expired LIMIT", Word::Refused),
        ("cancelled", Word::Refused),
        ("unreadable", Word::Refused),
        ("unknown_participant", Word::Refused),
        ("aborted_before LIMIT", Word::Refused),
        ("aborted_before", Word::Repeated),
        ("aborted_before in_progress", Word::MayPass),
        ("aborted_before busy", Word::MayPass),
        ("conflict busy", Word::Repeated),
        ("conflict aborted", Word::Repeated),
    ] {
        assert_eq!(Word::of(&outcome(1, KEY, 1, noes)), word, "{noes}");
    }
}

/// The second table of the module's documentation, read from there.
#[test]
fn every_pair_does_what_the_table_says() {
    let documentation = include_str!("../src/redrive.rs");
    let rows: Vec<Vec<&str>> = documentation
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .filter_map(|line| line.trim().strip_prefix('|'))
        .map(|line| line.trim_end_matches('|').split('|').map(str::trim).collect::<Vec<_>>())
        .skip_while(|row| row.get(1) != Some(&"nothing waits"))
        .collect();
    let columns = ["it is settled", "an earlier attempt waits", "the same attempt waits", "a later attempt waits"];
    assert_eq!(rows[0][2..], columns);
    let words = [("took effect", "commit"), ("may pass", "busy"), ("refused", "LIMIT"), ("repeated", "aborted_before")];
    let rows = &rows[2..];
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), words.map(|(name, _)| name));
    // The outcome is of attempt 2; what waits is of attempt 1, 2 or 3.
    let rules = rules_with("retry_after_ms = [10, 10, 10, 10]");
    for (row, (name, noes)) in rows.iter().zip(words) {
        let before = [
            (None, ""),
            (None, "commit"),
            (None, "LIMIT"),
            (None, "asked"),
            (Some(1), ""),
            (Some(2), ""),
            (Some(3), ""),
        ];
        let cells = [row[1], row[2], row[2], row[2], row[3], row[4], row[5]];
        for (cell, (waits, settled)) in cells.iter().zip(before) {
            let mut redrive = Redrive::new(0, 0);
            if settled == "asked" {
                redrive.hear(&rules, 0, Some(&outcome(99, KEY, 2, "busy")), Duration::ZERO);
                redrive.done(&KEY.parse().unwrap(), txid(99));
            } else if !settled.is_empty() {
                redrive.hear(&rules, 0, Some(&outcome(99, KEY, 2, settled)), Duration::ZERO);
            }
            if let Some(attempt) = waits {
                redrive.hear(&rules, 0, Some(&outcome(100, KEY, attempt, "expired")), Duration::ZERO);
            }
            let heard = redrive.hear(&rules, 1, Some(&outcome(101, KEY, 2, noes)), Duration::ZERO);
            let asked = due(&mut redrive, 10);
            let (first, second) = (txid(100), txid(101));
            let expected = match *cell {
                "-" => (Heard::Settled, waits.map(|_| first)),
                "let go" => (Heard::Settled, None),
                "waits" | "waits instead" => (Heard::Waits(ms(10)), Some(second)),
                other => panic!("the table says {other:?}"),
            };
            let asked: Vec<Txid> = asked.into_iter().map(|(txid, ..)| txid).collect();
            assert_eq!((heard, asked.first().copied()), expected, "{name}, {waits:?} waits, {settled:?}");
            assert!(asked.len() <= 1);
        }
    }
}

#[test]
fn each_attempt_waits_as_its_rule_says_and_the_last_one_is_a_persons() {
    for (attempt, expected) in [
        (1, Heard::Waits(ms(10))),
        (2, Heard::Waits(ms(20))),
        (3, Heard::UsedUp),
        // A person asked for it.
        (7, Heard::UsedUp),
    ] {
        assert_eq!(hear(&[(attempt, "expired")]).1, [expected], "attempt {attempt}");
    }
    let once =
        |rules: &Rules, key| Redrive::new(0, 0).hear(rules, 0, Some(&outcome(1, key, 1, "busy")), Duration::ZERO);
    assert_eq!(once(&rules_with("retry_after_ms = []"), KEY), Heard::UsedUp);
    assert_eq!(once(&rules_with(""), KEY), Heard::Waits(ms(1_000)), "the default");
    for of_no_rule in ["aftercare:1:finished", "surgery", "surgery2:1"] {
        assert_eq!(once(&rules(), of_no_rule), Heard::NoRule, "{of_no_rule}");
    }
}

#[test]
fn it_is_due_when_its_time_has_come_and_once() {
    let (mut redrive, _) = hear(&[(1, "busy expired")]);
    assert_eq!(redrive.next_deadline(), Some(ms(10)));
    assert_eq!(due(&mut redrive, 9), []);
    assert_eq!(due(&mut redrive, 10), [(txid(100), 1, "hospital busy, insurer expired".to_string())]);
    assert_eq!((due(&mut redrive, 1_000), redrive.next_deadline()), (vec![], None), "it is under way");
    let key = KEY.parse().unwrap();
    assert_eq!((redrive.waiting(), redrive.position()), (1, 0));
    redrive.done(&key, txid(100));
    assert_eq!((redrive.waiting(), redrive.position()), (0, 1));
    // Reports of what was let go change nothing.
    redrive.done(&key, txid(100));
    assert_eq!((redrive.next_deadline(), redrive.position()), (None, 1));
}

#[test]
fn the_position_moves_only_past_what_was_asked_for() {
    let mut redrive = Redrive::new(7, 7);
    assert_eq!(redrive.position(), 7);
    for (at, key, noes) in [(7, "surgery:1:f", "commit"), (8, "surgery:2:f", "busy"), (9, "surgery:3:f", "expired")] {
        redrive.hear(&rules(), at, Some(&outcome(at, key, 1, noes)), ms(at));
    }
    assert_eq!(redrive.hear(&rules(), 10, None, ms(10)), Heard::Settled);
    assert_eq!(redrive.position(), 8);
    let asks = redrive.due(ms(100), usize::MAX);
    assert_eq!((asks.len(), redrive.position()), (2, 8), "sent is not acknowledged");
    redrive.done(&asks[1].business_key, asks[1].txid);
    assert_eq!(redrive.position(), 8, "the later one alone");
    redrive.done(&asks[0].business_key, asks[0].txid);
    assert_eq!(redrive.position(), 11);
}

/// The owner before asked again for attempt 1 and died before it committed its position; the answers stand in the log.
#[test]
fn a_new_owner_reads_to_the_end_before_it_asks() {
    let mut redrive = Redrive::new(0, 3);
    let say = |redrive: &mut Redrive, at, key, attempt, noes| {
        redrive.hear(&rules(), at, Some(&outcome(100 + at, key, attempt, noes)), Duration::ZERO);
    };
    say(&mut redrive, 0, KEY, 1, "expired");
    say(&mut redrive, 1, "surgery:2:f", 1, "expired");
    assert_eq!((redrive.next_deadline(), due(&mut redrive, 1_000)), (None, vec![]));
    say(&mut redrive, 2, KEY, 2, "commit");
    let asked = due(&mut redrive, 1_000);
    assert_eq!(asked.iter().map(|(txid, ..)| *txid).collect::<Vec<_>>(), [txid(101)], "the other one is settled");
}

/// Whoever repeats outcomes, and however often: an attempt's number grows by each round, and is bounded. One that remembers
/// asks once for each attempt; one that forgets everything at each record still ends.
#[test]
fn repeats_end() {
    for (forgets, expected) in [(false, 2), (true, 3 + 3 * 4)] {
        let mut asked = 0;
        let mut log: Vec<(u32, &str)> = vec![(1, "in_progress"); 3];
        let mut redrive = Redrive::new(0, 0);
        let mut at = 0;
        while let Some((attempt, noes)) = log.get(at).copied() {
            if forgets {
                redrive = Redrive::new(at as u64, 0);
            }
            redrive.hear(&rules(), at as u64, Some(&outcome(at as u64, KEY, attempt, noes)), Duration::ZERO);
            for ask in redrive.due(ms(1_000_000), usize::MAX) {
                asked += 1;
                redrive.done(&ask.business_key, ask.txid);
                // Two instances asked, each was refused because of the other, and each outcome is written twice.
                log.extend([(ask.attempt.number() + 1, "in_progress"); 4]);
            }
            at += 1;
        }
        assert_eq!(asked, expected, "attempts 2 and 3, and no attempt 4");
        assert!(log.iter().all(|(attempt, _)| *attempt <= 3));
    }
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut redrive = Redrive::new(0, 0);
    let key = |number: u64| format!("surgery:{number}:f");
    for at in 0..10_000 {
        redrive.hear(&rules(), at, Some(&outcome(at, &key(at), 1, "LIMIT")), Duration::ZERO);
    }
    let mut hear = |at, number| redrive.hear(&rules(), at, Some(&outcome(at, &key(number), 1, "busy")), Duration::ZERO);
    assert_eq!(hear(10_000, 9_999), Heard::Settled);
    assert_eq!(hear(10_001, 0), Heard::Waits(ms(10)), "forgotten: asked for once more, and refused");
}

/// The same event is delivered again while the first is under way: its refusal waits, and the first one's end settles both.
#[test]
fn a_second_delivery_is_settled_by_the_first_ones_end() {
    for end in ["commit", "LIMIT"] {
        let (mut redrive, heard) = hear(&[(1, "in_progress in_progress"), (1, end)]);
        assert_eq!(heard, [Heard::Waits(ms(10)), Heard::Settled]);
        assert_eq!((due(&mut redrive, 1_000), redrive.position()), (vec![], 2), "{end}");
        // Its refusal may be told after the first one's end.
        assert_eq!(hear(&[(1, end), (1, "in_progress in_progress")]).1, [Heard::Settled, Heard::Settled], "{end}");
    }
    // A person asked again after the refusal: that attempt is another one.
    assert_eq!(hear(&[(1, "LIMIT"), (2, "busy")]).1, [Heard::Settled, Heard::Waits(ms(20))]);
    // Crossed: each was refused because of the other. One of them is asked for again, once.
    let (mut redrive, _) = hear(&[(1, "in_progress"), (1, "yes in_progress")]);
    assert_eq!(due(&mut redrive, 10).len(), 1);
    // A third delivery after both says nothing new.
    let (mut redrive, _) = hear(&[(1, "expired"), (1, "aborted_before")]);
    assert_eq!(due(&mut redrive, 10).len(), 1);
}

#[test]
fn what_waits_is_bounded_and_a_full_shard_asks_before_its_end() {
    let mut redrive = Redrive::new(0, u64::MAX);
    for at in 0..MAX_WAITING as u64 {
        assert_eq!((redrive.is_full(), redrive.next_deadline()), (false, None));
        redrive.hear(&rules(), at, Some(&outcome(at, &format!("surgery:{at}:f"), 1, "busy")), ms(at));
    }
    assert!(redrive.is_full());
    assert_eq!(redrive.next_deadline(), Some(ms(10)));
    let ask = redrive.due(ms(10), 5).remove(0);
    redrive.done(&ask.business_key, ask.txid);
    assert_eq!((redrive.is_full(), redrive.next_deadline()), (false, None));
}

#[test]
fn the_next_attempt_is_the_same_request_with_another_number() {
    let path = format!("{}/../../topics/contract/samples/requests/request.json", env!("CARGO_MANIFEST_DIR"));
    let request: Request = decode(&std::fs::read(path).unwrap()).unwrap();
    let (business_key, attempt) = (request.business_key.clone(), request.attempt);
    let ask = Ask { txid: txid(1), business_key, attempt, because: String::new() };
    let next = ask.next_attempt(request.clone()).unwrap();
    assert_eq!(next.attempt, attempt.next());
    let expected = Request { attempt: attempt.next(), ..request.clone() };
    assert_eq!(serde_json::to_string(&next).unwrap(), serde_json::to_string(&expected).unwrap());

    let other = Ask { attempt: Attempt::new(9).unwrap(), ..ask.clone() };
    assert!(other.next_attempt(request.clone()).is_err(), "another attempt stands there");
    let other = Ask { business_key: "surgery:2:f".parse().unwrap(), ..ask.clone() };
    assert!(other.next_attempt(request.clone()).is_err(), "another request stands there");
    let of_an_application = Request { rule: "theirs".to_string(), ..request };
    assert!(ask.next_attempt(of_an_application).is_err(), "not of the rule that its key begins with");
}

#[test]
fn a_person_asks_for_what_was_aborted_and_is_neither_done_nor_under_way() {
    let one = || outcome(1, KEY, 1, "LIMIT");
    let requests = |all: &[(u64, u32)]| -> Vec<(Txid, Attempt)> {
        all.iter().map(|(offset, attempt)| (txid(*offset), Attempt::new(*attempt).unwrap())).collect()
    };
    let ask = |all: &[(u64, u32)], outcomes: &[Outcome]| by_hand(txid(1), &requests(all), outcomes);
    let attempt = |number| Ok(Attempt::new(number).unwrap());

    assert_eq!(ask(&[(1, 1)], &[one()]), attempt(2));
    assert_eq!(ask(&[], &[one()]), attempt(2), "finished requests need not be read");
    assert_eq!(ask(&[(1, 1), (2, 2)], &[one(), outcome(2, KEY, 2, "expired")]), attempt(3), "above the highest");
    // The event was delivered again, and refused.
    assert_eq!(ask(&[], &[outcome(3, KEY, 4, "LIMIT"), one(), outcome(5, KEY, 1, "aborted_before")]), attempt(5));

    assert_eq!(ask(&[(1, 1)], &[]), Err(NotAgain::NotDecided(txid(1))));
    assert_eq!(ask(&[(1, 1)], &[outcome(1, KEY, 1, "commit")]), Err(NotAgain::TookEffect(txid(1))));
    let later = outcome(7, KEY, 2, "commit");
    assert_eq!(ask(&[], &[one(), later]), Err(NotAgain::TookEffectAs(txid(1), txid(7))));
    let duplicate = outcome(9, KEY, 1, "duplicate");
    assert_eq!(ask(&[], &[one(), duplicate]), Err(NotAgain::TookEffectAs(txid(1), txid(1))), "what its ledgers named");
    assert_eq!(ask(&[(1, 1), (8, 2)], &[one()]), Err(NotAgain::UnderWay(txid(1), txid(8))));
}
