//! A process that ends by SIGKILL at one of its fail points, and what the next one makes of it: rows are counted.
//!
//! The process that ends is this test once more, told by [`ORDER`] what to do and where to end. A story is played without an
//! end first, which tells the points that it passes; then it ends at each of them, the first time and the second time that
//! it gets there, for a story is about two branches. The next process is told what a participant is told after a restart: the
//! decisions that there are, its prepares, and the decisions again.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::{Signal, raise};
use suture_contract::messages::{Prepare, Verdict};
use suture_participants::points::{Place, TABLE, names};
use suture_participants::resource::{Decided, Effect, Fault, Prepared, Resource, Unavailable};
use suture_participants_core::branch::Wrong;

use super::{Bench, MONEY, code, decision, put, until_answered, yes};

/// Tells the process what to do and where to end.
const ORDER: &str = "SUTURE_TEST_CRASH";

/// What is in an account at the start.
const MUCH: i64 = 100_000;

/// No point is called so.
const NOWHERE: &str = "nowhere";

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
}

const STORIES: [Story; 6] =
    [Story::Commit, Story::Abort, Story::Refused, Story::Overtaken, Story::Lost, Story::Hindered];

/// What a participant is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Prepares,
    Decisions,
}

impl Story {
    fn told(self) -> &'static [Told] {
        match self {
            Self::Commit | Self::Abort | Self::Refused => &[Told::Prepares, Told::Decisions],
            Self::Overtaken => &[Told::Decisions, Told::Prepares],
            Self::Lost | Self::Hindered => &[Told::Decisions],
        }
    }

    fn verdict(self) -> Verdict {
        match self {
            Self::Commit | Self::Lost | Self::Hindered => Verdict::Commit,
            Self::Abort | Self::Refused | Self::Overtaken => Verdict::Abort,
        }
    }

    fn branches(self, n: u64) -> [Arc<Prepare>; 2] {
        let first = if self == Self::Refused { "nobody" } else { "y" };
        [(n, first), (n + 1, "z")].map(|(n, account)| put(n, &format!("key-{n}"), &format!("i{n}"), account, 1))
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
            Self::Abort | Self::Overtaken => [Some("aborted"); 2],
            Self::Refused => [Some("refused"), Some("aborted")],
            Self::Lost => [None; 2],
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
    for story in STORIES {
        if story == Story::Hindered && bench.hindrance().is_none() {
            continue;
        }
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
    if let Some([hinder, _]) = hindrance {
        let bank = bench.open().await;
        assert_eq!(bank.prepare(order.story.branches(order.n).to_vec()).await.unwrap(), [yes(), yes()]);
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
        }
    }
}

// ---- the next process ------------------------------------------------------------------------------------------------

async fn all_or_nothing<B: Crashes>(bench: &B, story: Story, n: u64, had_decisions: bool) {
    let branches = story.branches(n);
    let bank = bench.open().await;
    let usual = |decided: &Decided| match story {
        Story::Lost => matches!(decided, Err(Fault::Violation(violation)) if violation.wrong == Wrong::Lost),
        _ => decided.is_ok(),
    };
    if had_decisions {
        let decided = decide(&bank, story, &branches).await;
        assert!(decided.iter().all(usual), "{decided:?}");
    }
    if story != Story::Lost {
        let votes = until_answered(|| bank.prepare(branches.to_vec())).await;
        assert!(story.votes_are_right(&votes, had_decisions), "{votes:?}");
    }
    for is_repeat in [false, true] {
        let decided = decide(&bank, story, &branches).await;
        assert!(decided.iter().all(usual), "{decided:?}");
        let repeated = decided.iter().all(|decided| *decided == Ok(Effect::Repeated));
        assert!(repeated || !is_repeat || story == Story::Lost, "{decided:?}");
    }
    for (branch, state) in branches.iter().zip(story.states()) {
        count_rows(bench, branch, state).await;
    }
    assert!(bank.in_doubt().await.unwrap().is_empty(), "nothing is in doubt");
    add_up(bench).await;
}

/// The ledger's row and the effect of a branch that is decided.
pub async fn count_rows<B: Crashes>(bench: &B, branch: &Prepare, state: Option<&str>) {
    let of = format!("where txid = '{}'", branch.txid);
    let effects = i64::from(state == Some("committed"));
    let rows = |table: &str, and: &str| format!("select count(*) from {table} {of} {and}");
    assert_eq!(bench.number(&rows("item", "")).await, effects, "{state:?}");
    assert_eq!(bench.number(&rows("item", "and done")).await, effects, "{state:?}");
    assert_eq!(bench.number(&rows("suture_ledger", "")).await, i64::from(state.is_some()));
    if let Some(state) = state {
        assert_eq!(bench.text(&format!("select state from suture_ledger {of}")).await, state);
    }
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
