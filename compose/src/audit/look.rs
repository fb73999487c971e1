//! One look at a shard: who went back, positions, logs, lists, rows, marks, in this order.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use suture_contract::ids::{LogLetters, Participant, Shard, Txid};
use suture_contract::topic_map::{Topic, participant_group};
use suture_coordinator_core::audit::{About, Finding, Judged, Newer, Range, Row, ShardBooks, Trail, Wrong, judge};
use suture_coordinator_core::records::Place;
use suture_coordinator_core::shard::Raw;
use suture_participants::books::BookRow;
use suture_participants::resource::Position;
use suture_participants_core::branch::State;
use suture_participants_core::gid::Gid;
use suture_participants_core::restore::went_back;
use suture_topics::acks::GroupOffsets;
use suture_topics::record::Record;

use super::{All, unreadable};
use crate::logs::{Ends, Logs};

/// Which transactions.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Asked for since then.
    pub since_ms: Option<i64>,
    /// These alone.
    pub only: Option<BTreeSet<u64>>,
    /// What is no decision in the decision log, wherever it stands.
    pub all_decisions: bool,
}

/// What looks.
pub struct Look {
    pub logs: Logs,
    pub all: All,
    offsets: GroupOffsets,
    /// Of the decision log: a position names them.
    decisions: LogLetters,
}

/// What one look at a shard has seen.
pub struct Seen {
    pub judged: Judged,
    /// The name of the first request that the shard has had; all others differ in their offsets.
    pub first: Txid,
    /// The requests that there are.
    pub requests: Requests,
    /// Named by transactions, and without books here.
    pub unseen: BTreeSet<Participant>,
    /// The names of our branches, by transaction and participant.
    pub gids: BTreeMap<(Txid, Participant), Gid>,
    /// Branches of others in each participant's list.
    pub foreign: BTreeMap<Participant, u64>,
    /// Whose databases went back, and are not brought back yet.
    pub went_back: BTreeSet<Participant>,
}

/// The requests of a shard, as runs of offsets.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    /// Where the log began and ended.
    pub ends: Ends,
    runs: Vec<(u64, u64)>,
}

/// What the logs say about a ledger row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// Its request was read.
    Read,
    /// No request stands there.
    None,
    /// Its request has left the topic by age.
    Older,
    /// It is later than the look.
    Later,
}

impl Look {
    /// Asks for the letters.
    pub fn open(logs: Logs, all: All) -> anyhow::Result<Self> {
        let decisions = tokio::task::block_in_place(|| logs.letters(&Topic::Decisions))?;
        let offsets = GroupOffsets::new(&logs.kafka);
        Ok(Self { logs, all, offsets, decisions })
    }

    /// One look.
    pub async fn at(&mut self, shard: Shard, wanted: &Wanted) -> anyhow::Result<Seen> {
        let went_back = self.went_back().await?;
        let mut books = self.positions(shard).await?;
        for name in &went_back {
            books.entry(name.clone()).or_default().went_back = true;
        }
        let (trail, ends) = tokio::task::block_in_place(|| self.read_logs(shard, wanted))?;
        let mut seen = Seen {
            judged: Judged::default(),
            first: trail.txid(0),
            requests: Requests::of(&trail, ends),
            unseen: trail.roster().iter().filter(|name| !self.all.contains_key(*name)).cloned().collect(),
            gids: BTreeMap::new(),
            foreign: BTreeMap::new(),
            went_back,
        };
        for (name, audited) in &mut self.all {
            let Some(book) = books.get_mut(name) else { continue };
            let listed = audited.books.listed().await;
            let listed = listed.map_err(|error| unreadable(audited, error))?;
            seen.foreign.insert(name.clone(), listed.foreign);
            for gid in listed.ours.into_iter().map(|branch| branch.gid) {
                if gid.txid.log == self.logs.log && gid.txid.shard == shard {
                    book.branches.entry(gid.txid.offset).or_default().insert(gid.short_hash.clone());
                    seen.gids.insert((gid.txid, name.clone()), gid);
                }
            }
            let names = |register| trail.participant(register) == name;
            let named = trail.stories().filter(|(_, story)| story.registers.iter().any(names));
            let txids: Vec<Txid> = named.map(|(offset, _)| trail.txid(offset)).collect();
            for which in [audited.books.rows(&txids).await, audited.books.in_doubt().await] {
                let rows = which.map_err(|error| unreadable(audited, error))?;
                let of_shard = rows.iter().filter(|row| row.txid.log == self.logs.log && row.txid.shard == shard);
                book.rows.extend(of_shard.map(|row| (row.txid.offset, (row_of(row), row.hash))));
            }
            let marks = audited.books.marks().await.map_err(|error| unreadable(audited, error))?;
            let mark = marks.iter().find(|mark| mark.letters == self.logs.log && mark.shard == shard);
            book.purged = mark.map_or(0, |mark| mark.next_offset);
        }
        seen.judged = judge(&trail, &books);
        Ok(seen)
    }

    /// Branches and rows in doubt of another requests topic than there is now. Nothing can decide them any more.
    pub async fn foreign_logs(&mut self) -> anyhow::Result<BTreeSet<Finding>> {
        let mut found = BTreeSet::new();
        for (name, audited) in &mut self.all {
            let listed = audited.books.listed().await.map_err(|error| unreadable(audited, error))?;
            let in_doubt = audited.books.in_doubt().await.map_err(|error| unreadable(audited, error))?;
            let txids = listed.ours.iter().map(|branch| branch.gid.txid).chain(in_doubt.iter().map(|row| row.txid));
            let is_foreign = |txid: &Txid| txid.log != self.logs.log || txid.shard.0 >= self.logs.kafka.partitions;
            found.extend(txids.filter(is_foreign).map(|txid| Finding {
                wrong: Wrong::OtherLog,
                about: About::Transaction(txid),
                participant: Some(name.clone()),
            }));
        }
        Ok(found)
    }

    /// As the participants notice it themselves at their start. The groups are asked first: a position is stored before it is
    /// committed.
    async fn went_back(&mut self) -> anyhow::Result<BTreeSet<Participant>> {
        let mut back = BTreeSet::new();
        for (name, audited) in &mut self.all {
            let group = participant_group(&self.logs.kafka.prefix, name);
            let mut acknowledged = Vec::new();
            for topic in [Topic::Prepare(name.clone()), Topic::Decisions] {
                let full_name = self.logs.name(&topic);
                let partitions: Vec<(&str, i32)> =
                    self.logs.shards().map(|shard| (full_name.as_str(), shard.partition())).collect();
                let committed = tokio::task::block_in_place(|| self.offsets.committed(&group, &partitions))
                    .with_context(|| format!("what {name} has acknowledged; grant DESCRIBE on the group {group}"))?;
                if committed.iter().any(Option::is_some) {
                    let letters = tokio::task::block_in_place(|| self.logs.letters(&topic))?;
                    let committed = self.logs.shards().zip(committed);
                    acknowledged
                        .extend(committed.map(|(shard, committed)| (full_name.clone(), letters, shard, committed)));
                }
            }
            let positions = audited.books.positions().await.map_err(|error| unreadable(audited, error))?;
            let is_back = acknowledged.iter().any(|(topic, letters, shard, committed)| {
                let Some(committed) = committed else { return false };
                let is_own = |own: &&Position| (&own.topic, &own.letters, &own.shard) == (topic, letters, shard);
                let own = positions.iter().find(is_own).map(|own| own.next_offset);
                went_back(audited.books.ledger_id(), own, committed.offset, &committed.metadata)
            });
            if is_back || audited.books.is_restoring().await.map_err(|error| unreadable(audited, error))? {
                back.insert(name.clone());
            }
        }
        Ok(back)
    }

    async fn positions(&mut self, shard: Shard) -> anyhow::Result<BTreeMap<Participant, ShardBooks>> {
        let decisions = self.logs.name(&Topic::Decisions);
        let mut books = BTreeMap::new();
        for (name, audited) in &mut self.all {
            let positions = audited.books.positions().await.map_err(|error| unreadable(audited, error))?;
            let position = positions.iter().find(|position| {
                position.topic == decisions && position.letters == self.decisions && position.shard == shard
            });
            let past = position.map_or(0, |position| position.next_offset);
            books.insert(name.clone(), ShardBooks { past, ..ShardBooks::default() });
        }
        Ok(books)
    }

    /// Requests, outcomes, decisions, votes.
    fn read_logs(&mut self, shard: Shard, wanted: &Wanted) -> anyhow::Result<(Trail, Ends)> {
        let Some(ends) = self.logs.ends(&Topic::Requests, shard)? else {
            let topic = self.logs.name(&Topic::Requests);
            anyhow::bail!("there is no partition {shard} of {topic}; create the topics with `suture topics apply`");
        };
        let from = match wanted.since_ms {
            Some(since_ms) => self.logs.offset_at(&Topic::Requests, shard, since_ms)?,
            None => ends.start,
        };
        let range = Range { from, end: ends.end, is_all: wanted.since_ms.is_none(), only: wanted.only.clone() };
        let place = Place { log: self.logs.log, shard, partitions: self.logs.kafka.partitions };
        let mut trail = Trail::new(place, range, self.logs.name(&Topic::Decisions));
        let (first, next) = match &wanted.only {
            Some(only) => {
                let next = only.last().map_or(from, |last| last + 1);
                (only.first().map_or(from, |first| from.max(*first)), next.min(ends.end))
            }
            None => (from, ends.end),
        };
        let mut newer = None;
        if first < next {
            self.logs.read(&Topic::Requests, shard, first, |record| {
                keep(&mut newer, trail.request(raw(record)));
                newer.is_none() && record.offset + 1 < next
            })?;
        }
        let since_ms = when_to_begin(&trail, wanted);
        for topic in [Topic::Outcomes, Topic::Decisions] {
            let is_decisions = topic == Topic::Decisions;
            self.logs.read_since(&topic, shard, since_ms, |record| {
                let read = if is_decisions { trail.decision(raw(record)) } else { trail.outcome(raw(record)) };
                keep(&mut newer, read);
            })?;
        }
        for participant in trail.roster().to_vec() {
            let topic = Topic::Votes(participant.clone());
            let mut first = None;
            let read = self.logs.read_since(&topic, shard, since_ms, |record| {
                first = first.or(Some((record.offset, record.timestamp_ms.unwrap_or_default())));
                keep(&mut newer, trail.vote(&participant, raw(record)));
            })?;
            match first {
                Some((offset, at_ms)) if read.start > 0 && (since_ms.is_none() || offset == read.start) => {
                    trail.votes_begin(&participant, at_ms);
                }
                // Empty, and was not always so.
                None if read.start > 0 && read.start == read.end => trail.votes_begin(&participant, i64::MAX),
                Some(_) | None => {}
            }
        }
        match newer {
            Some(newer) => Err(newer.into()),
            None => Ok((trail, ends)),
        }
    }
}

/// From when on the other logs say anything about what is wanted; `None`: from their starts.
fn when_to_begin(trail: &Trail, wanted: &Wanted) -> Option<i64> {
    let asked_ms = || trail.stories().map(|(_, story)| story.asked_ms);
    match &wanted.only {
        Some(only) if !wanted.all_decisions && asked_ms().flatten().count() == only.len() => asked_ms().flatten().min(),
        Some(_) | None => wanted.since_ms,
    }
}

fn keep(newer: &mut Option<Newer>, read: Result<(), Newer>) {
    if let Err(found) = read {
        newer.get_or_insert(found);
    }
}

fn raw(record: &Record) -> Raw<'_> {
    Raw {
        offset: record.offset,
        timestamp_ms: record.timestamp_ms.unwrap_or_default(),
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        traceparent: None,
    }
}

fn row_of(row: &BookRow) -> Row {
    match row.state {
        // A row is never absent or purged.
        State::InDoubt | State::Absent | State::Purged => Row::InDoubt,
        State::Committed => Row::Committed,
        State::Aborted => Row::Aborted,
        State::Refused => Row::Refused,
        State::Abandoned => Row::Abandoned,
    }
}

impl Requests {
    fn of(trail: &Trail, ends: Ends) -> Self {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (offset, _) in trail.stories().filter(|(_, story)| story.asked_ms.is_some()) {
            match runs.last_mut() {
                Some((_, next)) if *next == offset => *next += 1,
                _ => runs.push((offset, offset + 1)),
            }
        }
        Self { ends, runs }
    }

    /// Whether there is a request.
    pub fn account(&self, offset: u64) -> Account {
        if offset >= self.ends.end {
            return Account::Later;
        }
        if offset < self.ends.start {
            return Account::Older;
        }
        let run = self.runs.partition_point(|(_, next)| *next <= offset);
        match self.runs.get(run) {
            Some((first, _)) if *first <= offset => Account::Read,
            Some(_) | None => Account::None,
        }
    }
}
