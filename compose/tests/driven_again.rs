//! Driving again against the ledgers, without Kafka and databases: the real rules of both sides, and everything between
//! them in any order. One surgery, delivered up to three times; three participants that are busy, absent or refuse; two instances that drive again,
//! die, and begin at any position that they ever committed; outcomes that are written twice; a person who asks too.
//!
//! Whatever happens, the surgery takes effect at most once and in all three, nobody asks for ever, and what failed only for reasons
//! that pass takes effect, unless it was asked for as often as the rule says. Each run is a function of its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use suture_contract::ids::{Attempt, BusinessKey, RequestHash, Txid, code};
use suture_contract::messages::{Ballot, Outcome, RegisterView, Verdict};
use suture_coordinator_core::ingest::rules::Rules;
use suture_coordinator_core::redrive::{Heard, Redrive, by_hand};
use suture_participants_core::branch::{Answer, Event, KeyRow, Refusal, Row, State, Step, refusal_by_key, step_of_row};

const SEEDS: u64 = 6_000;
/// What happens before all heals.
const EVENTS: usize = 120;
const PARTICIPANTS: [&str; 3] = ["hospital", "surgeon-log", "insurer"];
const RULES: &str = r#"
    [[rule]]
    id = "surgery"
    topics = ["t"]
    RETRIES
    match = [{ path = "$.id", present = true }]
    key = { source = "s", id = "$.id", revision = "$.status" }
    [[rule.branch]]
    participant = "hospital"
    operation = "o"
    payload = { x = "$.id" }
"#;

/// One participant's database: its ledger is all that it knows.
#[derive(Default)]
struct Ledger {
    rows: BTreeMap<Txid, LedgerRow>,
}

struct LedgerRow {
    row: Row,
    /// Carries business key and attempt.
    is_named: bool,
    attempt: Attempt,
}

/// A transaction, as its coordinator and its participants have it.
#[derive(Debug)]
struct Transaction {
    txid: Txid,
    attempt: Attempt,
    registers: [Option<Answer>; 3],
    is_prepared: [bool; 3],
    decided: Option<Verdict>,
    is_told: bool,
    is_applied: [bool; 3],
}

/// One instance of what drives again.
struct Instance {
    redrive: Redrive,
    read: usize,
    committed: Vec<u64>,
}

struct World<'r> {
    random: u64,
    rules: &'r Rules,
    /// How often the rule says that an abort is asked for again.
    retries: u32,
    now: Duration,
    ledgers: [Ledger; 3],
    /// The requests topic: a transaction's place is its name.
    transactions: Vec<Transaction>,
    /// The outcomes topic.
    outcomes: Vec<Outcome>,
    instances: [Instance; 2],
    deliveries: usize,
    is_mended: bool,
    is_healed: bool,
    used_up: usize,
    by_a_person: BTreeSet<Txid>,
}

#[test]
fn a_surgery_takes_effect_once_whoever_asks_again_and_however_often() {
    let mut met: BTreeMap<&str, u64> = BTreeMap::new();
    let rules = ["[]", "[10]", "[10, 10]", "[10, 10, 10]"]
        .map(|pauses| Rules::parse(&RULES.replace("RETRIES", &format!("retry_after_ms = {pauses}"))).unwrap());
    for seed in 0..SEEDS {
        let retries = (seed % 4) as u32;
        let mut world = World::new(seed, &rules[retries as usize], retries);
        (0..EVENTS).for_each(|_| world.something_happens());
        world.heal();
        world.check(seed);
        for situation in world.situations() {
            *met.entry(situation).or_default() += 1;
        }
    }
    println!("{met:?}");
    for situation in [
        "took effect",
        "took effect as a later attempt",
        "not at all, for a reason that does not pass",
        "not at all, for it was asked as often as the rule says",
        "an attempt was asked for twice",
        "crossed: two of one attempt were refused because of each other",
        "duplicate",
        "a person's attempt took effect",
    ] {
        assert!(met.get(situation).is_some_and(|times| *times >= 100), "{situation}: {met:?}");
    }
}

impl<'r> World<'r> {
    fn new(seed: u64, rules: &'r Rules, retries: u32) -> Self {
        let instance = || Instance { redrive: Redrive::new(0, 0), read: 0, committed: vec![0] };
        let mut world = Self {
            random: seed,
            rules,
            retries,
            now: Duration::ZERO,
            ledgers: Default::default(),
            transactions: Vec::new(),
            outcomes: Vec::new(),
            instances: [instance(), instance()],
            deliveries: 0,
            is_mended: true,
            is_healed: false,
            used_up: 0,
            by_a_person: BTreeSet::new(),
        };
        world.is_mended = world.below(3) > 0;
        world.deliver();
        world
    }

    /// SplitMix64.
    fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn something_happens(&mut self) {
        let (one, who, instance) = (self.below(self.transactions.len()), self.below(3), self.below(2));
        match self.below(40) {
            0 if self.deliveries < 3 => self.deliver(),
            1 => self.expire(one),
            2 => self.crash(instance),
            3 if !self.outcomes.is_empty() => {
                let again = self.below(self.outcomes.len());
                self.outcomes.push(self.outcomes[again].clone());
            }
            4 => self.person(one),
            5..15 => self.prepare(one, who),
            15..20 => self.decide(one),
            20..25 => self.tell(one),
            25..32 => self.apply(one, who),
            32..36 => self.read(instance),
            _ => self.act(instance),
        }
    }

    /// Nobody is busy or absent any more, and everything runs to its end.
    fn heal(&mut self) {
        self.is_healed = true;
        for round in 0.. {
            assert!(round < 200, "it does not end");
            let before = (self.transactions.len(), self.outcomes.len());
            for one in 0..self.transactions.len() {
                (0..3).for_each(|who| self.prepare(one, who));
                self.decide(one);
                self.tell(one);
                (0..3).for_each(|who| self.apply(one, who));
            }
            for instance in 0..2 {
                (0..=self.outcomes.len()).for_each(|_| self.read(instance));
                self.act(instance);
            }
            let waits = self.instances.iter().any(|instance| instance.redrive.waiting() > 0);
            if before == (self.transactions.len(), self.outcomes.len()) && !waits {
                return;
            }
        }
    }

    // Upstream, ingest, a person.

    fn deliver(&mut self) {
        self.deliveries += 1;
        self.ask(Attempt::FIRST);
    }

    fn ask(&mut self, attempt: Attempt) {
        self.transactions.push(Transaction {
            txid: format!("k3f9q-3-{}", self.transactions.len()).parse().unwrap(),
            attempt,
            registers: [const { None }; 3],
            is_prepared: [false; 3],
            decided: None,
            is_told: false,
            is_applied: [false; 3],
        });
    }

    fn person(&mut self, one: usize) {
        let requests: Vec<_> = self.transactions.iter().map(|asked| (asked.txid, asked.attempt)).collect();
        if let Ok(attempt) = by_hand(self.transactions[one].txid, &requests, &self.outcomes) {
            self.is_mended = true;
            self.ask(attempt);
            self.by_a_person.extend(self.transactions.last().map(|asked| asked.txid));
        }
    }

    // Participants.

    fn prepare(&mut self, one: usize, who: usize) {
        if std::mem::replace(&mut self.transactions[one].is_prepared[who], true) {
            return;
        }
        let is_busy = !self.is_healed && self.below(4) == 0;
        let (txid, attempt) = (self.transactions[one].txid, self.transactions[one].attempt);
        let is_limited = who == 2 && !self.is_mended;
        let ledger = &mut self.ledgers[who];
        let row = ledger.rows.get(&txid).map(|known| &known.row);
        let answer = match step_of_row(row, false, Event::Prepare, &hash()).unwrap() {
            Step::AnswerYes | Step::AnswerNo => row.expect("it is known").answer(),
            Step::Run => {
                let refusal = refusal_by_key(&ledger.key_rows(), attempt, &hash())
                    .or_else(|| is_busy.then(|| Refusal::because(code::BUSY)))
                    .or_else(|| is_limited.then(|| Refusal::with("LIMIT".parse().unwrap())));
                let state = if refusal.is_some() { State::Refused } else { State::InDoubt };
                let is_named = !refusal.as_ref().is_some_and(Refusal::is_repeat);
                ledger.insert(txid, Row { state, hash: hash(), refusal: refusal.clone() }, is_named, attempt);
                refusal.map_or(Answer::Yes, Answer::No)
            }
            other => panic!("{other:?} of a prepare"),
        };
        // The first vote of a register counts, and the outcome tells what stood there when it was decided.
        let asked = &mut self.transactions[one];
        if asked.decided.is_none() {
            asked.registers[who].get_or_insert(answer);
        }
    }

    fn apply(&mut self, one: usize, who: usize) {
        let asked = &mut self.transactions[one];
        let (Some(verdict), false) = (asked.decided, asked.is_applied[who]) else { return };
        asked.is_applied[who] = true;
        let (txid, attempt) = (asked.txid, asked.attempt);
        let event = if verdict == Verdict::Commit { Event::Commit } else { Event::Abort };
        let ledger = &mut self.ledgers[who];
        let row = ledger.rows.get(&txid).map(|known| &known.row);
        match step_of_row(row, false, event, &hash()).unwrap_or_else(|lost| panic!("{txid}: {lost}")) {
            Step::Commit => ledger.become_(txid, State::Committed),
            Step::RollBack => ledger.become_(txid, State::Aborted),
            Step::NoteAbort => {
                let row = Row { state: State::Aborted, hash: hash(), refusal: None };
                ledger.insert(txid, row, false, attempt);
            }
            Step::Nothing => {}
            other => panic!("{other:?} of a decision"),
        }
    }

    // The coordinator.

    fn expire(&mut self, one: usize) {
        if self.transactions[one].decided.is_none() {
            let expired = || Answer::No(Refusal::because(code::EXPIRED));
            for register in &mut self.transactions[one].registers {
                register.get_or_insert_with(expired);
            }
        }
    }

    fn decide(&mut self, one: usize) {
        let asked = &mut self.transactions[one];
        let says_no = asked.registers.iter().flatten().any(|answer| *answer != Answer::Yes);
        if asked.decided.is_none() && (says_no || asked.registers.iter().all(Option::is_some)) {
            asked.decided = Some(if says_no { Verdict::Abort } else { Verdict::Commit });
        }
    }

    fn tell(&mut self, one: usize) {
        let asked = &mut self.transactions[one];
        let (Some(verdict), false) = (asked.decided, asked.is_told) else { return };
        asked.is_told = true;
        let views = PARTICIPANTS.iter().zip(&asked.registers).map(|(participant, register)| RegisterView {
            participant: participant.parse().unwrap(),
            vote: register.as_ref().map(|answer| if *answer == Answer::Yes { Ballot::Yes } else { Ballot::No }),
            code: register.as_ref().and_then(|answer| Some(refusal(answer)?.code.clone())),
        });
        let noes: Vec<&Refusal> = asked.registers.iter().flatten().filter_map(refusal).collect();
        self.outcomes.push(Outcome {
            txid: asked.txid,
            business_key: key(),
            attempt: asked.attempt,
            outcome: verdict,
            votes: views.collect(),
            duplicate_of: noes.iter().find_map(|refusal| refusal.duplicate_of),
            retryable: verdict == Verdict::Abort
                && noes.iter().all(|refusal| code::is_retryable(refusal.code.as_str())),
        });
    }

    // What drives again.

    fn read(&mut self, instance: usize) {
        let Instance { redrive, read, .. } = &mut self.instances[instance];
        if let Some(outcome) = self.outcomes.get(*read) {
            let heard = redrive.hear(self.rules, *read as u64, Some(outcome), self.now);
            self.used_up += usize::from(heard == Heard::UsedUp);
            *read += 1;
        }
    }

    fn act(&mut self, instance: usize) {
        self.now += Duration::from_millis(5);
        let asks = self.instances[instance].redrive.due(self.now, usize::MAX);
        for ask in asks {
            self.ask(ask.attempt.next());
            // Killed between the append and its report.
            if !self.is_healed && self.below(4) == 0 {
                return self.crash(instance);
            }
            self.instances[instance].redrive.done(&ask.business_key, ask.txid);
        }
        let position = self.instances[instance].redrive.position();
        self.instances[instance].committed.push(position);
    }

    /// Begins anew, at any position that was ever committed.
    fn crash(&mut self, instance: usize) {
        let any = self.below(self.instances[instance].committed.len());
        let position = self.instances[instance].committed[any];
        let end = self.outcomes.len() as u64;
        let Instance { redrive, read, .. } = &mut self.instances[instance];
        (*redrive, *read) = (Redrive::new(position, end), position as usize);
    }

    // What must hold.

    fn check(&self, seed: u64) {
        for asked in &self.transactions {
            let states: BTreeSet<_> =
                self.ledgers.iter().map(|ledger| ledger.rows[&asked.txid].row.state == State::Committed).collect();
            assert_eq!(states.len(), 1, "seed {seed}: {} is in some databases", asked.txid);
            let is_committed = states.contains(&true);
            assert_eq!(asked.decided, Some(if is_committed { Verdict::Commit } else { Verdict::Abort }), "seed {seed}");
        }
        assert!(self.committed().len() <= 1, "seed {seed}: it took effect twice: {:?}", self.committed());
        for ledger in &self.ledgers {
            assert!(ledger.rows.values().all(|known| known.row.state != State::InDoubt), "seed {seed}");
        }
        for asked in self.transactions.iter().filter(|asked| !self.by_a_person.contains(&asked.txid)) {
            assert!(asked.attempt.number() <= self.retries + 1, "seed {seed}: {} goes beyond the rule", asked.txid);
        }
        let is_refused = self
            .outcomes
            .iter()
            .flat_map(|outcome| &outcome.votes)
            .any(|view| view.code.as_ref().is_some_and(|code| code.as_str() == "LIMIT"));
        let is_over = !self.committed().is_empty() || is_refused || self.used_up > 0;
        assert!(is_over, "seed {seed}: nobody refused it, and nobody asks for it: {:?}", self.outcomes);
    }

    fn committed(&self) -> Vec<&Transaction> {
        self.transactions.iter().filter(|asked| asked.decided == Some(Verdict::Commit)).collect()
    }

    fn situations(&self) -> BTreeSet<&'static str> {
        let mut met = BTreeSet::new();
        match self.committed().first() {
            Some(asked) => {
                met.insert("took effect");
                if asked.attempt > Attempt::FIRST {
                    met.insert("took effect as a later attempt");
                }
                if self.by_a_person.contains(&asked.txid) {
                    met.insert("a person's attempt took effect");
                }
            }
            None => {
                met.insert(match self.used_up > 0 {
                    true => "not at all, for it was asked as often as the rule says",
                    false => "not at all, for a reason that does not pass",
                });
            }
        }
        let mut attempts = BTreeSet::new();
        if self.transactions.iter().any(|asked| asked.attempt > Attempt::FIRST && !attempts.insert(asked.attempt)) {
            met.insert("an attempt was asked for twice");
        }
        let mut in_progress = BTreeSet::new();
        for outcome in self.outcomes.iter().filter(|outcome| outcome.outcome == Verdict::Abort) {
            met.extend(outcome.duplicate_of.map(|_| "duplicate"));
            let said = |view: &RegisterView| view.code.as_ref().is_some_and(|said| said.as_str() == code::IN_PROGRESS);
            let others = in_progress.iter().any(|(attempt, txid)| *attempt == outcome.attempt && *txid != outcome.txid);
            if outcome.votes.iter().any(said) {
                met.extend(others.then_some("crossed: two of one attempt were refused because of each other"));
                in_progress.insert((outcome.attempt, outcome.txid));
            }
        }
        met
    }
}

impl Ledger {
    fn insert(&mut self, txid: Txid, row: Row, is_named: bool, attempt: Attempt) {
        let is_live = |state| matches!(state, State::InDoubt | State::Committed);
        let named = || self.rows.values().filter(|known| known.is_named);
        if is_named {
            assert!(named().all(|known| known.attempt != attempt), "{txid}: two rows of one attempt");
            let live = named().filter(|known| is_live(known.row.state)).count();
            assert!(live == 0 || !is_live(row.state), "{txid}: two live rows of one key");
        }
        let before = self.rows.insert(txid, LedgerRow { row, is_named, attempt });
        assert!(before.is_none(), "{txid}: two rows");
    }

    fn become_(&mut self, txid: Txid, state: State) {
        self.rows.get_mut(&txid).expect("it is known").row.state = state;
    }

    fn key_rows(&self) -> Vec<KeyRow> {
        let named = self.rows.iter().filter(|(_, known)| known.is_named);
        named
            .map(|(txid, LedgerRow { row, attempt, .. })| KeyRow {
                txid: *txid,
                state: row.state,
                hash: row.hash,
                attempt: *attempt,
            })
            .collect()
    }
}

fn refusal(answer: &Answer) -> Option<&Refusal> {
    match answer {
        Answer::Yes => None,
        Answer::No(refusal) => Some(refusal),
    }
}

fn key() -> BusinessKey {
    "surgery:1:finished".parse().unwrap()
}

fn hash() -> RequestHash {
    "k1:00000000000000000000000000000001".parse().unwrap()
}
