//! Stories of the clean-up as text, one file each (`*.txt` beside this file), of one shard's decision log.
//!
//! A line that begins with `>` is a command, one with `#` a comment; two spaces begin what came out, which is compared.
//! `UPDATE_GOLDEN=1` writes it instead.
//!
//! ```text
//! decide N P.. [day=D] [abort] [log=LETTERS]   appends a decision of the request at offset N
//! raw KEY VALUE                                appends anything; `-` is null
//! compact N                                    the record at offset N is gone
//! start N                                      the requests log begins at N
//! commits P SHARD=OFFSET[:LEDGER]..            what a participant's group has committed; the shard of the stories is 3
//! round                                        fetches the committed offsets
//! sweep [keep=DAYS before the newest record] [most=N] [from=N] [end=N]  reads the log to its end, and appends the tombstones
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use suture_contract::codec::encode;
use suture_contract::ids::{Attempt, Participant, Shard, Txid};
use suture_contract::messages::{Decision, Verdict};
use suture_coordinator_core::cleanup::{Ledgers, MOST_CANDIDATES, Mark, Rules, Sweep};
use suture_coordinator_core::shard::Raw;

const SHARD: Shard = Shard(3);
const DAY_MS: i64 = 86_400_000;

#[derive(Default)]
struct World {
    /// The decision log; `None` was compacted away.
    log: Vec<Option<Stored>>,
    requests_start: u64,
    /// By participant, the offset and metadata of each shard.
    committed: BTreeMap<Participant, [Option<(u64, String)>; 4]>,
    ledgers: Ledgers,
    acks: BTreeMap<Participant, u64>,
}

struct Stored {
    at_ms: i64,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

#[test]
fn every_story_lets_go_of_just_these_decisions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cleanup");
    let mut stories: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    stories.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    assert!(!stories.is_empty());
    for path in stories {
        let expected = std::fs::read_to_string(&path).unwrap();
        let found = play(&expected);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, found).unwrap();
            continue;
        }
        assert!(found == expected, "{} gives\n{found}\nUPDATE_GOLDEN=1 writes it anew", path.display());
    }
}

fn play(story: &str) -> String {
    let mut world = World::default();
    let mut out = String::new();
    for line in story.lines().filter(|line| !line.starts_with("  ")) {
        let _ = writeln!(out, "{line}");
        if let Some(command) = line.strip_prefix("> ") {
            for said in world.obey(command) {
                let _ = writeln!(out, "  {said}");
            }
        }
    }
    out
}

impl World {
    fn obey(&mut self, command: &str) -> Vec<String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let option = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str, default: i64| option(name).map_or(default, |text| text.parse().unwrap());
        match words[0] {
            "decide" => {
                let log = option("log").unwrap_or("k3f9q").parse().unwrap();
                let txid = Txid { log, shard: SHARD, offset: words[1].parse().unwrap() };
                let participants = words[2..].iter().filter(|word| !word.contains('=') && **word != "abort");
                let decision = Decision {
                    txid,
                    outcome: if words.contains(&"abort") { Verdict::Abort } else { Verdict::Commit },
                    participants: participants.map(|name| name.parse().unwrap()).collect(),
                    business_key: format!("surgery:{}", txid.offset).parse().unwrap(),
                    attempt: Attempt::FIRST,
                    hash: format!("k1:{:032x}", txid.offset).parse().unwrap(),
                };
                self.append(number("day", 0), txid.to_string(), Some(encode(&decision)))
            }
            "raw" => {
                let value = Some(words[2].as_bytes().to_vec()).filter(|value| value != b"-");
                self.append(0, words[1].to_string(), value)
            }
            "compact" => {
                self.log[words[1].parse::<usize>().unwrap()] = None;
                Vec::new()
            }
            "start" => {
                self.requests_start = words[1].parse().unwrap();
                Vec::new()
            }
            "commits" => {
                let shards = self.committed.entry(words[1].parse().unwrap()).or_default();
                for word in &words[2..] {
                    let (shard, mark) = word.split_once('=').unwrap();
                    let (offset, ledger) = mark.split_once(':').unwrap_or((mark, ""));
                    shards[shard.parse::<usize>().unwrap()] = Some((offset.parse().unwrap(), ledger.to_string()));
                }
                Vec::new()
            }
            "round" => self.round(),
            "sweep" => {
                let rules = Rules {
                    log: "k3f9q".parse().unwrap(),
                    requests_start: self.requests_start,
                    acks: self.acks.clone(),
                    end: number("end", self.log.len() as i64) as u64,
                    before_ms: self.newest_ms() - number("keep", 0) * DAY_MS,
                    most: number("most", MOST_CANDIDATES as i64) as usize,
                };
                self.sweep(rules, number("from", 0) as usize)
            }
            unknown => panic!("no such command: {unknown}"),
        }
    }

    fn newest_ms(&self) -> i64 {
        self.log.iter().flatten().map(|stored| stored.at_ms).max().unwrap_or(0)
    }

    fn append(&mut self, day: i64, key: String, value: Option<Vec<u8>>) -> Vec<String> {
        self.log.push(Some(Stored { at_ms: day * DAY_MS, key: key.into_bytes(), value }));
        vec![format!("decisions@{}", self.log.len() - 1)]
    }

    fn round(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        self.acks.clear();
        for (participant, shards) in &self.committed {
            let mark = |mark: &Option<(u64, String)>| mark.clone();
            let shards: Vec<_> = shards.iter().map(mark).collect();
            let marks: Vec<_> = shards
                .iter()
                .map(|mark| mark.as_ref().map(|(offset, ledger)| Mark { offset: *offset, ledger }))
                .collect();
            match self.ledgers.acks(participant, &marks) {
                Ok(acks) => {
                    said.push(format!("{participant}: {acks:?}"));
                    self.acks.extend(acks[usize::from(SHARD.0)].map(|ack| (participant.clone(), ack)));
                }
                Err(unknown) => said.push(format!("{participant}: unknown, {unknown}")),
            }
        }
        said
    }

    fn sweep(&mut self, rules: Rules, from: usize) -> Vec<String> {
        let mut sweep = Sweep::new(rules);
        for (offset, stored) in self.log.iter().enumerate().skip(from) {
            let Some(Stored { at_ms, key, value }) = stored else { continue };
            let raw = Raw {
                offset: offset as u64,
                timestamp_ms: *at_ms,
                key: Some(key),
                value: value.as_deref(),
                traceparent: None,
            };
            if let Err(bad) = sweep.read(raw) {
                return vec![format!("nothing goes: {bad}")];
            }
        }
        let swept = sweep.end();
        let newest = self.newest_ms() / DAY_MS;
        let mut said = Vec::new();
        for txid in &swept.tombstones {
            said.push(format!("{} goes, {}", txid, self.append(newest, txid.to_string(), None).concat()));
        }
        let waiting = swept.report.waiting_for.iter().map(|(name, count)| format!("{name}={count}"));
        let waiting = Vec::from_iter(waiting).join(" ");
        let (readable, young) = (swept.report.readable, swept.report.young);
        said.push(format!("stay: readable {readable}, young {young}, waiting for [{waiting}], next {:?}", swept.next));
        said
    }
}
