//! What a seed plans: who is there, what is asked for, and what goes wrong. All of it is drawn before anything runs, so that a
//! story can be shortened by leaving parts of its plan out.

use std::collections::BTreeSet;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use suture_participants::simulated::DatabaseLuck;
use suture_topics::simulated::Luck;

/// A whole run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// All further chance follows from it.
    pub seed: u64,
    /// How many shards.
    pub shards: u16,
    /// How many coordinators.
    pub coordinators: usize,
    /// Most transactions in a shard's window.
    pub window: usize,
    /// Most early votes of one participant that a shard holds.
    pub held_votes: usize,
    /// The participants, and how many processes each has.
    pub participants: Vec<Seat>,
    /// What each account holds at first, the same everywhere.
    pub accounts: Vec<i64>,
    /// What is asked for, when.
    pub asks: Vec<(Duration, Ask)>,
    /// What goes wrong, when.
    pub troubles: Vec<(Duration, Trouble)>,
    /// How often things go wrong with Kafka.
    pub luck: Luck,
    /// How often things go wrong with the databases.
    pub database_luck: DatabaseLuck,
    /// When all troubles end.
    pub heals: Duration,
    /// Names of parts that are left out.
    pub left_out: BTreeSet<String>,
}

fn rates<'a>(kafka: &'a mut Luck, database: &'a mut DatabaseLuck) -> [(&'static str, &'a mut u16); 11] {
    [
        ("lost_answer", &mut kafka.lost_answer),
        ("lost_append", &mut kafka.lost_append),
        ("late_append", &mut kafka.late_append),
        ("stale_end", &mut kafka.stale_end),
        ("slow_fetch", &mut kafka.slow_fetch),
        ("lost_commit_answer", &mut kafka.lost_commit_answer),
        ("late_commit", &mut kafka.late_commit),
        ("lost_database_answer", &mut database.lost_answer),
        ("no_answer", &mut database.no_answer),
        ("empty_ok", &mut database.empty_ok),
        ("slow", &mut database.slow),
    ]
}

/// A participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Its name.
    pub name: &'static str,
    /// Whether it prepares in mode xa; else it reserves.
    pub is_xa: bool,
    /// How many processes serve it.
    pub processes: usize,
}

/// Something that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A request.
    Request {
        /// Which business key.
        key: u32,
        /// Which attempt.
        attempt: u32,
        /// Which order key, which also says its shard. Ordered or not.
        line: u32,
        /// Whether it must wait for its turn.
        ordered: bool,
        /// How long its participants have.
        deadline: Duration,
        /// By place among the participants: from which account how much.
        branches: Vec<(usize, usize, i64)>,
    },
    /// A cancellation of what was asked for at this place of the plan.
    Cancel(usize),
    /// What no version of Suture reads, under this order key.
    Poison(u32),
    /// A request that its participants cannot read, under this order key.
    Unreadable(u32),
}

/// Something that goes wrong. Numbers of processes count all of their kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    KillCoordinator { process: usize, away: Duration },
    StopCoordinator { process: usize, away: Duration },
    StallCoordinator { process: usize, time: Duration },
    KillParticipant { process: usize, away: Duration },
    StopParticipant { process: usize, away: Duration },
    StallParticipant { process: usize, time: Duration },
    CrashDatabase { seat: usize, away: Duration },
    ExpelCoordinator,
    ExpelParticipant { seat: usize },
    RebalanceCoordinators,
    LoseCoordinatorsOffsets,
    ResetCoordinatorsOffset { shard: u16 },
    LoseParticipantsOffsets { seat: usize },
    ResetParticipantsOffset { seat: usize, shard: u16 },
    Compact,
    Retention,
    JumpClock { ms: i64 },
    StayAway { seat: usize },
    PutBackup(PutBackup),
    EndBranch { seat: usize, is_commit: bool },
}

/// A backup is made, and put in place of the database some time later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutBackup {
    /// Whose database.
    pub seat: usize,
    /// How long after it was made all processes of it are ended.
    pub after: Duration,
    /// How long they are away until it is in its place.
    pub takes: Duration,
    /// It has no prepared branches.
    pub is_dump: bool,
    /// Whoever puts it back forgets to say so, if the participant notices by itself.
    pub is_unsaid: bool,
}

const NAMES: [&str; 3] = ["hospital", "insurer", "surgeon-log"];

struct Draw(ChaCha8Rng);

impl Draw {
    fn below(&mut self, most: u64) -> u64 {
        self.0.next_u64() % most.max(1)
    }

    fn index(&mut self, most: usize) -> usize {
        self.below(most as u64) as usize
    }

    fn ms(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least + 1))
    }

    /// A rate in a thousand: mostly none, sometimes much.
    fn rate(&mut self, most: u64) -> u16 {
        if self.below(3) > 0 { 0 } else { self.below(most + 1) as u16 }
    }
}

impl Plan {
    /// What this seed plans.
    pub fn of(seed: u64) -> Self {
        let mut draw = Draw(ChaCha8Rng::seed_from_u64(seed));
        let shards = 1 + draw.below(3) as u16;
        let coordinators = 1 + draw.index(3);
        let count = 2 + draw.index(2);
        let mut seat = |name| Seat { name, is_xa: draw.below(2) == 0, processes: 1 + draw.index(2) };
        let participants: Vec<Seat> = NAMES[..count].iter().map(|name| seat(name)).collect();
        let accounts = (0..1 + draw.index(4)).map(|_| [6, 60, 600, 600, 600, 600][draw.index(6)]).collect::<Vec<i64>>();
        let length = draw.ms(5_000, 25_000);
        let mut plan = Self {
            seed,
            shards,
            coordinators,
            window: [3, 10, 50_000, 50_000][draw.index(4)],
            held_votes: [1, 3, 10_000, 10_000][draw.index(4)],
            participants,
            accounts,
            asks: Vec::new(),
            troubles: Vec::new(),
            luck: Luck {
                lost_answer: draw.rate(80),
                lost_append: draw.rate(80),
                late_append: draw.rate(80),
                stale_end: draw.rate(400),
                slow_fetch: draw.rate(60),
                lost_commit_answer: draw.rate(100),
                late_commit: draw.rate(100),
            },
            database_luck: DatabaseLuck {
                lost_answer: draw.rate(40),
                no_answer: draw.rate(40),
                empty_ok: draw.rate(100),
                slow: draw.rate(40),
            },
            heals: length,
            left_out: BTreeSet::new(),
        };
        plan.draw_asks(&mut draw, length);
        plan.draw_troubles(&mut draw, length);
        plan
    }

    /// The names of all parts that can be left out: each ask, each trouble, each kind of bad luck that there is.
    pub fn parts(&self) -> Vec<String> {
        let asks = (0..self.asks.len()).map(|place| format!("a{place}"));
        let troubles = (0..self.troubles.len()).map(|place| format!("t{place}"));
        let lucks = self.lucks().map(|(name, _)| name.to_string());
        lucks.chain(troubles).chain(asks).filter(|name| !self.left_out.contains(name)).collect()
    }

    /// The same without these parts, and with the same chance for all others.
    pub fn without<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut plan = self.clone();
        plan.left_out.extend(parts.into_iter().map(str::to_string));
        for (name, rate) in rates(&mut plan.luck, &mut plan.database_luck) {
            if plan.left_out.contains(name) {
                *rate = 0;
            }
        }
        plan
    }

    /// Each kind of bad luck that there is, in a thousand.
    fn lucks(&self) -> impl Iterator<Item = (&'static str, u16)> + use<> {
        let (mut kafka, mut database) = (self.luck, self.database_luck);
        let rates = rates(&mut kafka, &mut database).map(|(name, rate)| (name, *rate));
        rates.into_iter().filter(|(_, rate)| *rate > 0)
    }

    /// What happens when, of what is not left out; a line each.
    pub fn story(&self) -> Vec<String> {
        let mut lines: Vec<(Duration, String)> = Vec::new();
        for (place, (at, ask)) in self.asks.iter().enumerate() {
            lines.push((*at, format!("a{place}: {ask:?}")));
        }
        for (place, (at, trouble)) in self.troubles.iter().enumerate() {
            lines.push((*at, format!("t{place}: {trouble:?}")));
        }
        let is_told = |line: &str| line.split(':').next().is_some_and(|name| !self.left_out.contains(name));
        lines.retain(|(_, line)| is_told(line));
        lines.sort_by_key(|(at, _)| *at);
        let seats: Vec<String> = self
            .participants
            .iter()
            .map(|seat| format!("{} ({}, {})", seat.name, if seat.is_xa { "xa" } else { "reserve" }, seat.processes))
            .collect();
        let lucks: Vec<String> = self.lucks().map(|(name, rate)| format!("{name} {rate}/1000")).collect();
        let mut story = vec![
            format!(
                "{} shards, {} coordinators, window {}, {} early votes, {}; accounts {:?}",
                self.shards,
                self.coordinators,
                self.window,
                self.held_votes,
                seats.join(", "),
                self.accounts
            ),
            format!("bad luck: {}", if lucks.is_empty() { "none".to_string() } else { lucks.join(", ") }),
        ];
        story.extend(lines.into_iter().map(|(at, line)| format!("{:>9.3} s  {line}", at.as_secs_f64())));
        story.push(format!("{:>9.3} s  everything works again", self.heals.as_secs_f64()));
        story
    }

    fn draw_asks(&mut self, draw: &mut Draw, length: Duration) {
        let (keys, lines) = (2 + draw.below(80), 1 + draw.below(6));
        let ordered_in_four = draw.below(5);
        let mut attempts: Vec<u32> = vec![0; keys as usize];
        for _ in 0..5 + draw.index(25) {
            let at = draw.ms(0, length.as_millis() as u64);
            if !self.asks.is_empty() && draw.below(12) == 0 {
                self.asks.push((at, Ask::Cancel(draw.index(self.asks.len()))));
                continue;
            }
            if draw.below(20) == 0 {
                let line = draw.below(lines) as u32;
                self.asks.push((at, if draw.below(2) == 0 { Ask::Poison(line) } else { Ask::Unreadable(line) }));
                continue;
            }
            let key = draw.below(keys) as u32;
            // Mostly the next attempt, sometimes one that was there: delivered twice.
            let attempt = match draw.below(10) {
                0 => attempts[key as usize].max(1),
                _ => attempts[key as usize] + 1,
            };
            attempts[key as usize] = attempts[key as usize].max(attempt);
            let mut branches = Vec::new();
            for place in 0..self.participants.len() {
                if draw.below(5) > 0 {
                    branches.push((place, draw.index(self.accounts.len()), 1 + draw.below(3) as i64));
                }
            }
            if branches.is_empty() {
                branches.push((0, 0, 1));
            }
            let deadline = if draw.below(8) == 0 { draw.ms(200, 2_000) } else { draw.ms(8_000, 40_000) };
            let (line, ordered) = (draw.below(lines) as u32, draw.below(4) < ordered_in_four);
            self.asks.push((at, Ask::Request { key, attempt, line, ordered, deadline, branches }));
        }
    }

    fn draw_troubles(&mut self, draw: &mut Draw, length: Duration) {
        let processes: usize = self.participants.iter().map(|seat| seat.processes).sum();
        for _ in 0..draw.index(14) {
            let at = draw.ms(0, length.as_millis() as u64);
            let away = draw.ms(100, 12_000);
            let (seat, shard) = (draw.index(self.participants.len()), draw.below(self.shards.into()) as u16);
            let (coordinator, participant) = (draw.index(self.coordinators), draw.index(processes));
            let trouble = match draw.below(21) {
                0 | 1 => Trouble::KillCoordinator { process: coordinator, away },
                2 => Trouble::StopCoordinator { process: coordinator, away },
                3 => Trouble::StallCoordinator { process: coordinator, time: away },
                4 | 5 => Trouble::KillParticipant { process: participant, away },
                6 => Trouble::StopParticipant { process: participant, away },
                7 => Trouble::StallParticipant { process: participant, time: away },
                8 | 9 | 18 | 19 => Trouble::CrashDatabase { seat, away },
                10 => Trouble::ExpelCoordinator,
                11 => Trouble::ExpelParticipant { seat },
                12 => Trouble::RebalanceCoordinators,
                13 => Trouble::LoseCoordinatorsOffsets,
                14 => Trouble::ResetCoordinatorsOffset { shard },
                15 => match draw.below(2) {
                    0 => Trouble::LoseParticipantsOffsets { seat },
                    _ => Trouble::ResetParticipantsOffset { seat, shard },
                },
                16 => Trouble::Compact,
                20 => Trouble::JumpClock { ms: [-3_600_000, 3_600_000][draw.index(2)] },
                _ => Trouble::Retention,
            };
            self.troubles.push((at, trouble));
        }
        if draw.below(8) == 0 {
            let seat = draw.index(self.participants.len());
            self.troubles.push((draw.ms(0, length.as_millis() as u64), Trouble::StayAway { seat }));
        }
        if draw.below(5) == 0 {
            self.draw_backups(draw, length);
        }
        if draw.below(6) == 0 {
            self.draw_hands(draw, length);
        }
    }

    /// Not where a database goes back: what a hand has freed others may have taken, and then not all can be brought back.
    fn draw_hands(&mut self, draw: &mut Draw, length: Duration) {
        let goes_back = |of: usize| {
            let is_it =
                |(_, trouble): &(Duration, Trouble)| matches!(trouble, Trouble::PutBackup(put) if put.seat == of);
            self.troubles.iter().any(is_it)
        };
        let seats: Vec<usize> =
            (0..self.participants.len()).filter(|seat| self.participants[*seat].is_xa && !goes_back(*seat)).collect();
        for _ in 0..1 + draw.below(4) {
            let (at, is_commit) = (draw.ms(0, length.as_millis() as u64), draw.below(2) == 0);
            let Some(&seat) = seats.get(draw.index(seats.len())) else { continue };
            self.troubles.push((at, Trouble::EndBranch { seat, is_commit }));
            // Whoever misses its effect then sends the same thing once more.
            let is_his = |(asked, ask): &&(Duration, Ask)| {
                let has_branch = |ask: &Ask| matches!(ask, Ask::Request { branches, .. } if branches.iter().any(|(of, ..)| *of == seat));
                *asked <= at && has_branch(ask)
            };
            let last = self.asks.iter().filter(is_his).max_by_key(|(asked, _)| *asked).map(|(_, ask)| ask.clone());
            let again = at + draw.ms(0, 3_000);
            self.asks.extend(last.filter(|_| draw.below(2) == 0).map(|ask| (again.min(length), ask)));
        }
    }

    fn draw_backups(&mut self, draw: &mut Draw, length: Duration) {
        let length = length.as_millis() as u64;
        for _ in 0..1 + draw.below(2) {
            let at = draw.ms(0, length);
            let after = draw.ms(0, length - at.as_millis() as u64);
            let is_unsaid = draw.below(5) < 3;
            // What it acknowledged last has to be there if nobody says anything.
            let takes = draw.ms(if is_unsaid { 6_500 } else { 500 }, 12_000);
            let (seat, is_dump) = (draw.index(self.participants.len()), draw.below(2) == 0);
            self.troubles.push((at, Trouble::PutBackup(PutBackup { seat, after, takes, is_dump, is_unsaid })));
            // Nobody decides meanwhile: much is in doubt then.
            if draw.below(3) == 0 {
                let before = draw.ms(0, 4_000);
                let away = before + takes + draw.ms(0, 6_000);
                for process in 0..self.coordinators {
                    let at = (at + after).saturating_sub(before);
                    self.troubles.push((at, Trouble::KillCoordinator { process, away }));
                }
            }
        }
    }

    /// Whether a database of it goes back, were nothing left out.
    pub fn has_backups(&self) -> bool {
        self.troubles.iter().any(|(_, trouble)| matches!(trouble, Trouble::PutBackup(_)))
    }
}
