//! A process that ends by SIGKILL at one of its fail points, and what the next one makes of it: rows are counted.
//!
//! The process that ends is this test once more, told by [`ORDER`] what to do and where to end. A story is played without an
//! end first, which tells the points that it passes; then it ends at each of them, the first time and the second time that
//! it gets there, for a story is about two branches. The next process is told what a participant is told after a restart: the
//! decisions that there are, its prepares, and the decisions again. What it does beside its messages it does again as well.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::{Signal, raise};
use suture_contract::ids::Txid;
use suture_contract::messages::{IncidentKind, Prepare, Settled, Verdict};
use suture_participants::incidents::{Refused, Taken};
use suture_participants::points::{Place, TABLE, names};
use suture_participants::resource::{Decided, Effect, Fault, Prepared, Redone, Resource, Unavailable, Which};
use suture_participants_core::branch::{State, Wrong};
use suture_participants_core::settle::Unsettled;

use super::settling::{met, say};
use super::{Bench, MARK, MONEY, abort, code, commit, decision, page, prepare_one, purge, put, until_answered, yes};

/// Tells the process what to do and where to end.
const ORDER: &str = "SUTURE_TEST_CRASH";

/// What is in an account at the start.
pub const MUCH: i64 = 100_000;

/// No point is called so.
pub const NOWHERE: &str = "nowhere";

/// How often a point is an end in one story.
const TIMES: usize = 2;

/// A database in which a process may end anywhere.
pub trait Crashes: Bench {
    /// By what another process finds it.
    fn name(&self) -> String;
    /// Which acts it must get to.
    fn places(&self) -> &'static [Place];
    /// SQL that makes a confirm step come to nothing with all of its local transaction, and SQL that takes that back.
    fn hindrance(&self) -> Option<[&'static str; 2]>;
    /// Prepares something under the name of this branch, by hand.
    async fn come_back(&self, branch: &Prepare);
    /// Runs SQL.
    async fn execute(&self, sql: &str);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Story {
    /// Both branches say yes and are committed.
    Commit,
    /// Both say yes and are aborted.
    Abort,
    /// The first is refused, and both are aborted.
    Refused,
    /// The aborts come before the prepares.
    Overtaken,
    /// The commits come and nobody here said yes.
    Lost,
    /// Both have said yes; the commits meet something in the way, which is gone afterwards.
    Hindered,
    /// Both are aborted, and prepared beside their rows.
    Swept,
    /// One is committed, one aborted, and their rows are old.
    Purged,
    /// One is lost, the other only called so, and a person says what became of them.
    Resolved,
    /// The commits of both are done again, and one fails.
    Redone,
}

const STORIES: [Story; 10] = [
    Story::Commit,
    Story::Abort,
    Story::Refused,
    Story::Overtaken,
    Story::Lost,
    Story::Hindered,
    Story::Swept,
    Story::Purged,
    Story::Resolved,
    Story::Redone,
];

/// What a participant is told, or does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Prepares,
    Decisions,
    Sweep,
    Purge,
    Words,
    Redo,
}

impl Story {
    fn told(self) -> &'static [Told] {
        match self {
            Self::Commit | Self::Abort | Self::Refused => &[Told::Prepares, Told::Decisions],
            Self::Overtaken => &[Told::Decisions, Told::Prepares],
            Self::Lost | Self::Hindered => &[Told::Decisions],
            Self::Swept => &[Told::Sweep],
            Self::Purged => &[Told::Purge],
            Self::Resolved => &[Told::Words],
            Self::Redone => &[Told::Redo],
        }
    }

    fn is_of(self, bench: &impl Crashes) -> bool {
        match self {
            Self::Hindered => bench.hindrance().is_some(),
            Self::Swept => bench.places().contains(&Place::Xa),
            _ => true,
        }
    }

    fn verdict(self) -> Verdict {
        match self {
            Self::Commit | Self::Lost | Self::Hindered | Self::Purged | Self::Resolved | Self::Redone => {
                Verdict::Commit
            }
            Self::Abort | Self::Refused | Self::Overtaken | Self::Swept => Verdict::Abort,
        }
    }

    fn branches(self, n: u64) -> [Arc<Prepare>; 2] {
        let accounts = match self {
            Self::Refused => ["nobody", "z"],
            Self::Redone => ["y", "nobody"],
            _ => ["y", "z"],
        };
        [(n, accounts[0]), (n + 1, accounts[1])]
            .map(|(n, account)| put(n, &format!("key-{n}"), &format!("i{n}"), account, 1))
    }

    /// What the votes must be, before or after the decisions.
    fn votes_are_right(self, votes: &[Prepared], is_decided: bool) -> bool {
        let is_no = |vote: &Prepared, expected: &str| *vote != yes() && code(vote) == expected;
        let is_usual = |vote: &Prepared| match self.verdict() {
            Verdict::Abort if is_decided => is_no(vote, "aborted"),
            Verdict::Commit | Verdict::Abort => *vote == yes(),
        };
        match self {
            Self::Refused => is_no(&votes[0], "NO_ACCOUNT") && is_usual(&votes[1]),
            _ => votes.iter().all(is_usual),
        }
    }

    /// The ledger's states in the end.
    fn states(self) -> [Option<&'static str>; 2] {
        match self {
            Self::Commit | Self::Hindered => [Some("committed"); 2],
            Self::Abort | Self::Overtaken | Self::Swept => [Some("aborted"); 2],
            Self::Refused => [Some("refused"), Some("aborted")],
            Self::Resolved => [Some("abandoned"), Some("committed")],
            Self::Redone => [Some("committed"), None],
            Self::Lost | Self::Purged => [None; 2],
        }
    }
}

/// What this process is told, if it is one that ends: first the database.
pub fn ordered() -> Option<Vec<String>> {
    Some(std::env::var(ORDER).ok()?.lines().map(str::to_string).collect())
}

/// This test once more.
pub fn this_test(order: &[String]) -> Command {
    let test = std::thread::current().name().expect("the name of the test").to_string();
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", "--nocapture", &test]).env(ORDER, order.join("\n"));
    process
}

/// Every point says that it is passed; one of them is the end, at this time of those that count.
pub fn arm(end: &str, time: usize, counts: &Arc<AtomicBool>) {
    let times = Arc::new(AtomicUsize::new(0));
    for point in TABLE.iter().flat_map(|(act, _, _)| names(*act)) {
        let (name, is_end, times, counts) = (point.clone(), point == end, Arc::clone(&times), Arc::clone(counts));
        let passed = move || {
            println!("{name}");
            if is_end && counts.load(Ordering::Relaxed) && times.fetch_add(1, Ordering::Relaxed) + 1 == time {
                raise(Signal::SIGKILL).unwrap();
            }
        };
        fail::cfg_callback(point, passed).unwrap();
    }
}

/// The points of all acts in these places.
pub fn points_of(places: &[Place]) -> BTreeSet<String> {
    TABLE.iter().filter(|(_, _, place)| places.contains(place)).flat_map(|(act, _, _)| names(*act)).collect()
}

/// Ends a process at each fail point of this database, in each story.
pub async fn at_every_point<B: Crashes>(bench: &B) {
    if let Some(order) = ordered() {
        obey(bench, &Order::of(&order)).await;
        // The database is the other one's.
        std::process::exit(0);
    }
    provide(bench).await;
    let (mut n, mut ends) = (1000, BTreeSet::new());
    for story in STORIES.into_iter().filter(|story| story.is_of(bench)) {
        let mut play = async |point: &str, time: usize| {
            n += 10;
            let order = Order { database: bench.name(), story, n, point: point.to_string(), time };
            let (said, has_ended) = end_a_process(bench, &order).await;
            assert_eq!(has_ended, point != NOWHERE, "{story:?}, {point}, time {time}: {said:#?}");
            println!("{story:?}: ended {point}, time {time}");
            all_or_nothing(bench, story, n, said.iter().any(|line| line == "decisions")).await;
            said
        };
        let mut passed = BTreeMap::new();
        for point in
            play(NOWHERE, 0).await.into_iter().filter(|line| line.starts_with(suture_participants::points::MARK))
        {
            *passed.entry(point).or_insert(0) += 1;
        }
        for (point, times) in passed {
            for time in 1..=TIMES.min(times) {
                play(&point, time).await;
            }
            ends.insert(point);
        }
    }
    assert_eq!(ends, points_of(bench.places()), "every point was an end, and there are no others");
}

// ---- the process that ends -------------------------------------------------------------------------------------------

struct Order {
    database: String,
    story: Story,
    n: u64,
    point: String,
    time: usize,
}

impl Order {
    fn of(lines: &[String]) -> Self {
        let [database, story, n, time, point] = lines else { panic!("{lines:?}") };
        let story = STORIES.into_iter().find(|known| format!("{known:?}") == *story).unwrap();
        let (n, time) = (n.parse().unwrap(), time.parse().unwrap());
        Self { database: database.clone(), story, n, point: point.clone(), time }
    }

    fn lines(&self) -> [String; 5] {
        let Self { database, story, n, point, time } = self;
        [database.clone(), format!("{story:?}"), n.to_string(), time.to_string(), point.clone()]
    }
}

/// Plays the story as a new process; gives what that said, and whether SIGKILL was its end.
async fn end_a_process<B: Crashes>(bench: &B, order: &Order) -> (Vec<String>, bool) {
    let hindrance = bench.hindrance().filter(|_| order.story == Story::Hindered);
    set_the_scene(bench, order.story, &order.story.branches(order.n)).await;
    if let Some([hinder, _]) = hindrance {
        bench.execute(hinder).await;
    }
    let mut process = this_test(&order.lines());
    let output = tokio::task::spawn_blocking(move || process.output()).await.unwrap().unwrap();
    if let Some([_, clear]) = hindrance {
        bench.execute(clear).await;
    }
    let said = String::from_utf8(output.stdout).unwrap().lines().map(str::to_string).collect();
    let was_killed = output.status.signal() == Some(Signal::SIGKILL as i32);
    assert!(was_killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (said, was_killed)
}

/// What was before.
async fn set_the_scene<B: Crashes>(bench: &B, story: Story, branches: &[Arc<Prepare>; 2]) {
    let bank = bench.open().await;
    let [first, second] = branches;
    match story {
        Story::Commit | Story::Abort | Story::Refused | Story::Overtaken | Story::Lost | Story::Redone => {}
        Story::Hindered => assert_eq!(bank.prepare(branches.to_vec()).await.unwrap(), [yes(), yes()]),
        Story::Swept => {
            for branch in branches {
                assert_eq!(abort(&bank, branch).await, Ok(Effect::NotedAbort));
                bench.come_back(branch).await;
            }
        }
        Story::Purged => {
            purge(&bank, &page(None, 1_000)).await;
            assert_eq!(bank.prepare(branches.to_vec()).await.unwrap(), [yes(), yes()]);
            assert_eq!(commit(&bank, first).await, Ok(Effect::Finished));
            assert_eq!(abort(&bank, second).await, Ok(Effect::Finished));
        }
        Story::Resolved => {
            assert_eq!(prepare_one(&bank, second).await, yes());
            assert_eq!(commit(&bank, second).await, Ok(Effect::Finished));
            let lost = branches.each_ref().map(|branch| met(IncidentKind::Lost, branch, Verdict::Commit));
            bank.note(lost.to_vec()).await.unwrap();
        }
    }
}

async fn obey<B: Crashes>(bench: &B, order: &Order) {
    // The harness has begun a line.
    println!();
    let bank = bench.open().await;
    arm(&order.point, order.time, &Arc::new(AtomicBool::new(true)));
    let branches = order.story.branches(order.n);
    for told in order.story.told() {
        match told {
            Told::Prepares => {
                let _ = bank.prepare(branches.to_vec()).await;
            }
            Told::Decisions => {
                println!("decisions");
                // Once: what is in the way stays there.
                let _ = try_to_decide(&bank, order.story, &branches).await;
            }
            Told::Sweep => drop(sweep(&bank).await),
            Told::Purge => drop(purge(&bank, &page(None, 1)).await),
            Told::Words => drop(say_all(&bank, &branches).await),
            Told::Redo => drop(bank.redo(branches.to_vec()).await),
        }
    }
}

// ---- the next process ------------------------------------------------------------------------------------------------

async fn all_or_nothing<B: Crashes>(bench: &B, story: Story, n: u64, had_decisions: bool) {
    let branches = story.branches(n);
    let bank = bench.open().await;
    match story {
        Story::Swept => is_swept(&bank, &branches).await,
        Story::Purged => is_purged(bench, &bank, &branches).await,
        Story::Resolved => is_resolved(bench, &bank, &branches).await,
        Story::Redone => is_redone(&bank, &branches).await,
        _ => is_decided(&bank, story, &branches, had_decisions).await,
    }
    for (branch, state) in branches.iter().zip(story.states()) {
        let is_effective = state == Some("committed") || (story == Story::Purged && branch.txid.offset == n);
        count_effects(bench, branch, is_effective).await;
        count_row(bench, branch, state).await;
    }
    assert!(bank.in_doubt().await.unwrap().is_empty(), "nothing is in doubt");
    add_up(bench).await;
}

async fn is_decided<R: Resource>(bank: &R, story: Story, branches: &[Arc<Prepare>; 2], had_decisions: bool) {
    let usual = |decided: &Decided| match story {
        Story::Lost => is_lost(decided),
        _ => decided.is_ok(),
    };
    if had_decisions {
        let decided = decide(bank, story, branches).await;
        assert!(decided.iter().all(usual), "{decided:?}");
    }
    if story != Story::Lost {
        let votes = until_answered(|| bank.prepare(branches.to_vec())).await;
        assert!(story.votes_are_right(&votes, had_decisions), "{votes:?}");
    }
    for is_repeat in [false, true] {
        let decided = decide(bank, story, branches).await;
        assert!(decided.iter().all(usual), "{decided:?}");
        let repeated = decided.iter().all(|decided| *decided == Ok(Effect::Repeated));
        assert!(repeated || !is_repeat || story == Story::Lost, "{decided:?}");
    }
}

async fn is_swept<R: Resource>(bank: &R, branches: &[Arc<Prepare>; 2]) {
    // Who has prepared it may not be gone yet: then it is found again.
    let left = || Unavailable::new("sweeping", "something is left");
    until_answered(|| async { if sweep(bank).await?.is_empty() { Ok(()) } else { Err(left()) } }).await;
    for branch in branches {
        assert_eq!(code(&prepare_one(bank, branch).await), "aborted");
        assert_eq!(abort(bank, branch).await, Ok(Effect::Repeated));
    }
}

/// Answers what was found.
async fn sweep<R: Resource>(bank: &R) -> Result<Vec<Txid>, Unavailable> {
    let found: Vec<Txid> = bank.leftovers().await?.iter().map(|leftover| leftover.txid).collect();
    bank.sweep(found.clone()).await?;
    Ok(found)
}

/// What is gone lies below the mark, and whatever comes late about it comes to nothing.
async fn is_purged<B: Crashes>(bench: &B, bank: &B::R, branches: &[Arc<Prepare>; 2]) {
    let [committed, aborted] = branches;
    for _ in 0..2 {
        for branch in branches {
            let vote = prepare_one(bank, branch).await;
            if bench.number(&rows_of("suture_ledger", branch)).await == 0 {
                assert!(bench.number(MARK).await.cast_unsigned() > branch.txid.offset);
                assert_eq!(code(&vote), "finished_before");
            } else {
                let is_committed = branch.txid == committed.txid;
                assert!(if is_committed { vote == yes() } else { code(&vote) == "aborted" }, "{vote:?}");
            }
        }
        assert_eq!(commit(bank, committed).await, Ok(Effect::Repeated));
        assert_eq!(abort(bank, aborted).await, Ok(Effect::Repeated));
        purge(bank, &page(None, 1)).await;
    }
}

async fn is_resolved<B: Crashes>(bench: &B, bank: &B::R, branches: &[Arc<Prepare>; 2]) {
    for is_repeat in [false, true] {
        let [lost, agrees] = until_answered(|| say_all(bank, branches)).await;
        assert!(matches!(lost, Err(Refused::Already { .. })) || (!is_repeat && lost == Ok(Taken::Whole)), "{lost:?}");
        let why = Unsettled::Agrees(State::Committed);
        assert_eq!(agrees, Err(Refused::Unsettled { txid: branches[1].txid, why }));
    }
    assert_eq!(commit(bank, &branches[0]).await, Ok(Effect::Repeated));
    for (branch, words) in branches.iter().zip([1, 0]) {
        let entry = format!("resolved:{}", branch.txid);
        assert_eq!(bench.number(&format!("select count(*) from suture_audit where entry = '{entry}'")).await, words);
        let untold = bank.noted(Which::Untold).await.unwrap();
        assert_eq!(untold.iter().any(|noted| noted.entry.entry == entry), words == 1, "it is to be told");
    }
}

/// That the first is abandoned, and that the second is committed, which it is.
async fn say_all<R: Resource>(
    bank: &R,
    branches: &[Arc<Prepare>; 2],
) -> Result<[Result<Taken, Refused>; 2], Unavailable> {
    let mut answers = [Ok(Taken::Whole), Ok(Taken::Whole)];
    for (index, settled) in [Settled::Abandoned, Settled::Committed].into_iter().enumerate() {
        answers[index] = match say(bank, &branches[index], settled).await {
            Err(Refused::Unavailable(unavailable)) => return Err(unavailable),
            // By a session that has not noticed that its client is gone.
            Err(Refused::Unsettled { why: Unsettled::Held, .. }) => return Err(Unavailable::new("saying", "held")),
            answer => answer,
        };
    }
    Ok(answers)
}

async fn is_redone<R: Resource>(bank: &R, branches: &[Arc<Prepare>; 2]) {
    for is_repeat in [false, true] {
        let known = bank.states(branches.iter().map(|branch| branch.txid).collect()).await.unwrap();
        let missing = branches.iter().filter(|branch| !known.contains_key(&branch.txid));
        let missing: Vec<Arc<Prepare>> = missing.cloned().collect();
        assert!(!is_repeat || missing.len() == 1);
        let redone = until_answered(|| bank.redo(missing.clone())).await.expect("they go together");
        for (branch, redone) in missing.iter().zip(redone) {
            let fails = Redone::Failed("NO_ACCOUNT".parse().unwrap());
            assert_eq!(redone, if branch.txid == branches[0].txid { Redone::Done } else { fails });
        }
    }
    assert_eq!(commit(bank, &branches[0]).await, Ok(Effect::Repeated));
    assert!(is_lost(&commit(bank, &branches[1]).await));
}

fn is_lost(decided: &Decided) -> bool {
    matches!(decided, Err(Fault::Violation(violation)) if violation.wrong == Wrong::Lost)
}

/// The ledger's row and the effect of a branch that is decided.
pub async fn count_rows<B: Crashes>(bench: &B, branch: &Prepare, state: Option<&str>) {
    count_effects(bench, branch, state == Some("committed")).await;
    count_row(bench, branch, state).await;
}

async fn count_effects<B: Crashes>(bench: &B, branch: &Prepare, is_effective: bool) {
    let items = rows_of("item", branch);
    assert_eq!(bench.number(&items).await, i64::from(is_effective), "{}", branch.txid);
    assert_eq!(bench.number(&format!("{items} and done")).await, i64::from(is_effective), "{}", branch.txid);
}

async fn count_row<B: Crashes>(bench: &B, branch: &Prepare, state: Option<&str>) {
    assert_eq!(bench.number(&rows_of("suture_ledger", branch)).await, i64::from(state.is_some()));
    if let Some(state) = state {
        let stored = format!("select state from suture_ledger where txid = '{}'", branch.txid);
        assert_eq!(bench.text(&stored).await, state);
    }
}

fn rows_of(table: &str, branch: &Prepare) -> String {
    format!("select count(*) from {table} where txid = '{}'", branch.txid)
}

/// What there is when nothing is in doubt.
pub async fn add_up<B: Crashes>(bench: &B) {
    assert_eq!(bench.number(MONEY).await, 3 * MUCH, "nothing was lost or made");
    assert_eq!(bench.number("select count(*) from account where held <> 0").await, 0, "nothing is held");
}

/// Enough in each of the three accounts for all branches.
pub async fn provide<B: Crashes>(bench: &B) {
    bench.execute(&format!("update account set balance = {MUCH}")).await;
}

async fn decide<R: Resource>(bank: &R, story: Story, branches: &[Arc<Prepare>]) -> Vec<Decided> {
    until_answered(|| try_to_decide(bank, story, branches)).await
}

async fn try_to_decide<R: Resource>(
    bank: &R,
    story: Story,
    branches: &[Arc<Prepare>],
) -> Result<Vec<Decided>, Unavailable> {
    let batch = branches.iter().map(|branch| decision(branch, story.verdict())).collect();
    match story.verdict() {
        Verdict::Commit => bank.commit(batch).await,
        Verdict::Abort => bank.abort(batch).await,
    }
}
