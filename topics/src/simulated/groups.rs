//! One consumer group, as its coordinator keeps it: members, generations, committed offsets.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Cluster, State};
use crate::told::{Commit, CommitError, Committed, MemberEvent};

/// How long a group waits for others before it divides the partitions.
const GATHERING_MS: (u64, u64) = (20, 400);

#[derive(Default)]
pub(super) struct Group {
    members: BTreeMap<u64, Member>,
    last_member: u64,
    generation: u64,
    /// It is going to divide the partitions.
    is_gathering: bool,
    offsets: BTreeMap<(String, i32), Committed>,
}

struct Member {
    topics: Vec<String>,
    /// What it is told, in order, each when it arrives.
    tell: Tell,
    owned: Vec<(String, i32)>,
    /// The generation that it knows of.
    knows: u64,
}

/// Tells a member, who is known by it.
pub(super) type Tell = mpsc::UnboundedSender<(Instant, Told)>;
pub(super) type WeakTell = mpsc::WeakUnboundedSender<(Instant, Told)>;

pub(super) struct Told {
    pub event: MemberEvent,
    pub generation: u64,
}

impl Group {
    pub fn committed(&self, (topic, partition): (&str, i32)) -> Option<Committed> {
        self.offsets.get(&(topic.to_string(), partition)).cloned()
    }

    fn member(&self, tell: &WeakTell) -> Option<u64> {
        let tell = tell.upgrade()?;
        self.members.iter().find(|(_, member)| member.tell.same_channel(&tell)).map(|(id, _)| *id)
    }
}

impl Cluster {
    pub(super) fn join(&self, group: &str, topics: &[String], tell: Tell) {
        {
            let mut state = self.lock();
            let found = state.groups.entry(group.to_string()).or_default();
            found.last_member += 1;
            let member = Member { topics: topics.to_vec(), tell, owned: Vec::new(), knows: 0 };
            found.members.insert(found.last_member, member);
        }
        self.gather(group);
    }

    pub(super) fn leave(&self, group: &str, tell: &WeakTell) {
        let was_there = {
            let mut state = self.lock();
            let found = state.groups.get_mut(group).and_then(|group| Some((group.member(tell)?, group)));
            found.and_then(|(id, group)| group.members.remove(&id)).is_some()
        };
        if was_there {
            self.gather(group);
        }
    }

    /// The partitions are divided anew, soon.
    fn gather(&self, group: &str) {
        let waits = {
            let mut state = self.lock();
            let waits = state.between(GATHERING_MS.0, GATHERING_MS.1);
            match state.groups.get_mut(group) {
                Some(group) if !group.is_gathering => group.is_gathering = true,
                _ => return,
            }
            waits
        };
        let (cluster, group) = (self.clone(), group.to_string());
        tokio::spawn(async move {
            tokio::time::sleep(waits).await;
            cluster.lock().divide(&group);
        });
    }

    /// Divides a group's partitions anew although nobody came or went.
    pub fn rebalance(&self, group: &str) {
        self.gather(group);
    }

    /// The group takes one of its members for dead, who hears of it later and joins again. Answers whether there was one.
    pub fn expel(&self, group: &str) -> bool {
        let Some((member, hears)) = ({
            let mut state = self.lock();
            let (draw, hears) = (state.draw(u64::MAX), state.between(0, 15_000));
            let found = state.groups.get_mut(group);
            found
                .and_then(|group| {
                    let ids: Vec<u64> = group.members.keys().copied().collect();
                    let id = *ids.get(draw as usize % ids.len().max(1))?;
                    group.members.remove(&id)
                })
                .map(|member| (member, hears))
        }) else {
            return false;
        };
        self.gather(group);
        let (cluster, group) = (self.clone(), group.to_string());
        tokio::spawn(async move {
            tokio::time::sleep(hears).await;
            let Member { topics, tell, .. } = member;
            let _ = tell.send((Instant::now(), Told { event: MemberEvent::Lost, generation: 0 }));
            if !tell.is_closed() {
                cluster.join(&group, &topics, tell);
            }
        });
        true
    }

    /// A group's committed offsets are gone, as after seven days without members. `false`: it has members, and Kafka refuses.
    pub fn forget_offsets(&self, group: &str) -> bool {
        match self.lock().groups.get_mut(group).filter(|group| group.members.is_empty()) {
            Some(group) => {
                group.offsets.clear();
                true
            }
            None => false,
        }
    }

    /// Somebody sets a group's offset by hand. `false`: it has members, and Kafka refuses.
    pub fn set_offset(&self, group: &str, topic: &str, partition: i32, offset: u64) -> bool {
        match self.lock().groups.get_mut(group).filter(|group| group.members.is_empty()) {
            Some(group) => {
                group.offsets.insert((topic.to_string(), partition), Committed { offset, metadata: String::new() });
                true
            }
            None => false,
        }
    }

    /// A group's committed position.
    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<Committed> {
        self.lock().groups.get(group)?.committed((topic, partition))
    }
}

impl State {
    /// Range, as the members ask for it: the same shard of every topic comes to the same member.
    fn divide(&mut self, name: &str) {
        let Some(mut group) = self.groups.remove(name) else { return };
        group.is_gathering = false;
        group.generation += 1;
        let count = group.members.len();
        for (index, member) in group.members.values_mut().enumerate() {
            let mut assigned = Vec::new();
            for topic in &member.topics {
                let partitions = self.topics.get(topic.as_str()).map_or(0, |topic| topic.logs.len());
                let (whole, rest) = (partitions / count, partitions % count);
                let first = whole * index + rest.min(index);
                let until = first + whole + usize::from(index < rest);
                assigned.extend((first..until).map(|partition| (topic.clone(), partition as i32)));
            }
            assigned.sort();
            let revoked = std::mem::replace(&mut member.owned, assigned.clone());
            let revoked_at = Instant::now() + self.delay();
            let assigned_at = revoked_at + self.delay() + Duration::from_millis(1);
            let generation = group.generation;
            // A member that is gone hears nothing.
            if !revoked.is_empty() {
                let event = MemberEvent::Revoked(revoked);
                let _ = member.tell.send((revoked_at, Told { event, generation: 0 }));
            }
            let event = MemberEvent::Assigned(assigned);
            let _ = member.tell.send((assigned_at, Told { event, generation }));
        }
        self.groups.insert(name.to_string(), group);
    }

    /// A member has heard of a generation.
    pub(super) fn learn(&mut self, group: &str, tell: &WeakTell, generation: u64) {
        let found = self.groups.get_mut(group).and_then(|group| Some((group.member(tell)?, group)));
        if let Some(member) = found.and_then(|(id, group)| group.members.get_mut(&id)) {
            member.knows = generation;
        }
    }

    /// Writes positions, if whoever commits them is a member of this generation.
    pub(super) fn commit(&mut self, group: &str, tell: &WeakTell, positions: &[Commit]) -> Result<(), CommitError> {
        let not_member = || CommitError::NotMember("the group has gone on".to_string());
        let group = self.groups.get_mut(group).ok_or_else(not_member)?;
        let member = group.member(tell).and_then(|id| group.members.get(&id)).ok_or_else(not_member)?;
        if member.knows != group.generation {
            return Err(not_member());
        }
        for Commit { topic, partition, offset, metadata } in positions {
            let committed = Committed { offset: *offset, metadata: metadata.clone() };
            group.offsets.insert((topic.clone(), *partition), committed);
        }
        Ok(())
    }
}
