//! The table of transitions, pair by pair: what `Transaction::on` does must be what `docs/protocol.md` says.
//!
//! `UPDATE_GOLDEN=1` writes the table anew.

use std::fmt::Write as _;
use std::path::Path;

use suture_contract::ids::Attempt;
use suture_contract::messages::Verdict;
use suture_coordinator_core::transaction::{Effect, Event, Sending, State, Transaction};

const BEGIN: &str = "<!-- transitions -->";
const END: &str = "<!-- /transitions -->";

type Column = (&'static str, fn(Verdict) -> Transaction);
type Row = (&'static str, fn(Verdict) -> Event);

/// Every state, and what else the result hangs on. V is the verdict that the state, or the log, has.
const COLUMNS: [Column; 11] = [
    ("Waiting", |_| transaction(State::Waiting)),
    ("Waiting, V read in the decision log", |v| Transaction { in_log: Some(v), ..transaction(State::Waiting) }),
    ("Open", |_| transaction(State::Open)),
    ("Open, V read in the decision log", |v| Transaction { in_log: Some(v), ..transaction(State::Open) }),
    ("Decided V", |v| transaction(State::Decided(v))),
    ("Decided V, append under way or due again", |v| Transaction {
        decision: Sending::UnderWay,
        ..transaction(State::Decided(v))
    }),
    ("Decided V, append due again", |v| Transaction { decision: Sending::Due, ..transaction(State::Decided(v)) }),
    ("Told V", |v| transaction(State::Told(v))),
    ("Told V, append under way", |v| Transaction { outcome: Sending::UnderWay, ..transaction(State::Told(v)) }),
    ("Finished V", |v| transaction(State::Finished(v))),
    ("Finished V, read in the decision log", |v| Transaction { in_log: Some(v), ..transaction(State::Finished(v)) }),
];

/// Every event, with the verdict V of the column or the other one.
const ROWS: [Row; 10] = [
    ("first vote, the registers do not decide yet", |_| Event::Vote { product: None }),
    ("first vote, the registers give V", |v| Event::Vote { product: Some(v) }),
    ("first vote, the registers give the other verdict", |v| Event::Vote { product: Some(other(v)) }),
    ("V read in the decision log", Event::DecisionRead),
    ("the other verdict read in the decision log", |v| Event::DecisionRead(other(v))),
    ("append of the decision acknowledged", |_| Event::DecisionAcknowledged),
    ("append of the outcome acknowledged", |_| Event::OutcomeAcknowledged),
    ("deadline", |_| Event::Deadline),
    ("cancellation", |_| Event::Cancel),
    ("its turn", |_| Event::Turn),
];

#[test]
fn every_pair_is_what_the_document_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("the marker in docs/protocol.md");
    let (_, after) = rest.split_once(END).expect("the closing marker in docs/protocol.md");
    let found = format!("{before}{BEGIN}\n{}{END}{after}", table());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
    } else {
        assert!(found == document, "the table is now\n{}\nUPDATE_GOLDEN=1 writes it to the document", table());
    }
}

#[test]
fn nothing_leaves_finished_only_votes_decide_and_only_its_turn_opens() {
    for verdict in [Verdict::Commit, Verdict::Abort] {
        for (name, column) in COLUMNS {
            for (event, row) in ROWS {
                let mut transaction = column(verdict);
                let from = transaction.state;
                let result = transaction.on(row(verdict));
                let stays = transaction.state == from;
                let (is_vote, is_turn) = (matches!(row(verdict), Event::Vote { .. }), row(verdict) == Event::Turn);
                let decides = from.verdict().is_none() && transaction.state.verdict().is_some();
                assert!(stays || from != State::Finished(verdict), "{name}, {event}");
                assert!(is_vote || !decides, "{name}, {event}");
                assert!(stays || is_turn || transaction.state != State::Open, "{name}, {event}");
                assert!(transaction.state != State::Waiting || from == State::Waiting, "{name}, {event}");
                assert!(stays || result.is_ok(), "{name}, {event}: a violation changes nothing");
                assert!(from.verdict().is_none() || from.verdict() == transaction.state.verdict(), "{name}, {event}");
            }
        }
    }
}

/// Columns that never differ are one column.
fn table() -> String {
    let cells = |column: &Column| ROWS.map(|row| cell(*column, row));
    let mut columns: Vec<(&str, [String; ROWS.len()])> = Vec::new();
    for column in &COLUMNS {
        let cells = cells(column);
        if columns.last().is_none_or(|(_, last)| *last != cells) {
            columns.push((column.0, cells));
        }
    }
    let mut out = "| |".to_string();
    for (name, _) in &columns {
        let _ = write!(out, " {name} |");
    }
    let _ = writeln!(out, "\n|---|{}", "---|".repeat(columns.len()));
    for (i, (event, _)) in ROWS.iter().enumerate() {
        let _ = write!(out, "| {event} |");
        for (_, cells) in &columns {
            let _ = write!(out, " {} |", cells[i]);
        }
        out.push('\n');
    }
    out
}

/// What happens, and that it is the same whichever verdict V is.
fn cell((_, column): Column, (_, row): Row) -> String {
    let [commit, abort] = [Verdict::Commit, Verdict::Abort].map(|verdict| {
        let mut transaction = column(verdict);
        let (from, log) = (transaction.state, transaction.in_log);
        let Ok(effect) = transaction.on(row(verdict)) else { return "stop".to_string() };
        let of = |decided: Verdict| if decided == verdict { "V" } else { "the other" };
        let state = match transaction.state {
            state if state == from && transaction.in_log != log => "remembered".to_string(),
            state if state == from => String::new(),
            State::Waiting => "Waiting".to_string(),
            State::Open => "Open".to_string(),
            State::Decided(decided) => format!("Decided {}", of(decided)),
            State::Told(decided) => format!("Told {}", of(decided)),
            State::Finished(decided) => format!("Finished {}", of(decided)),
        };
        let due = match (effect, transaction.state) {
            (Effect::Nothing, _) => "",
            (Effect::Due, State::Decided(_)) => "decision due",
            (Effect::Due, _) => "outcome due",
            (Effect::NoDue, _) => "`no` due in the empty registers",
            (Effect::Starts, _) => "prepares due",
        };
        match (state.is_empty(), due.is_empty()) {
            (true, true) => "-".to_string(),
            (false, false) => format!("{state}, {due}"),
            _ => format!("{state}{due}"),
        }
    });
    assert_eq!(commit, abort);
    commit
}

fn other(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Commit => Verdict::Abort,
        Verdict::Abort => Verdict::Commit,
    }
}

fn transaction(state: State) -> Transaction {
    Transaction {
        state,
        business_key: "surgery:1".parse().unwrap(),
        attempt: Attempt::FIRST,
        hash: "k1:00000000000000000000000000000001".parse().unwrap(),
        deadline_ms: 30_000,
        since_ms: 0,
        traceparent: None,
        registers: Box::default(),
        line: None,
        content: None,
        recall: Sending::Idle,
        in_log: None,
        decision_at: None,
        decision: Sending::Idle,
        outcome: Sending::Idle,
        no_reason: None,
        deadline_at_ms: None,
        waits_for_topics: false,
        queued: false,
    }
}
