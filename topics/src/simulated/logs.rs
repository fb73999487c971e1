//! One partition.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::record::Record;

/// How long a leader that was cut off may show an old end.
const STALE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Log {
    pub start: u64,
    pub next: u64,
    pub records: BTreeMap<u64, Arc<Record>>,
    pub history: Vec<Arc<Record>>,
    /// When the log had which end, for as long as somebody may be shown it.
    ends: VecDeque<(Instant, u64)>,
    waiting: Vec<Weak<Notify>>,
}

impl Log {
    pub fn append(&mut self, record: Record) -> u64 {
        let (offset, record) = (self.next, Arc::new(record));
        let now = Instant::now();
        self.ends.push_back((now, offset));
        while self.ends.front().is_some_and(|(at, _)| now - *at > STALE) {
            self.ends.pop_front();
        }
        self.next = offset + 1;
        self.records.insert(offset, Arc::clone(&record));
        self.history.push(record);
        self.waiting.retain(|waiting| {
            waiting.upgrade().is_some_and(|waiting| {
                waiting.notify_one();
                true
            })
        });
        offset
    }

    /// Ends that the log had within the last seconds, the oldest first.
    pub fn old_ends(&self) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator {
        self.ends.iter().map(|(_, end)| *end)
    }

    /// Who wants to know when there is more.
    pub fn tell(&mut self, waiting: &Arc<Notify>) {
        let new = Arc::downgrade(waiting);
        if !self.waiting.iter().any(|known| known.ptr_eq(&new)) {
            self.waiting.push(new);
        }
    }

    pub fn delete_below(&mut self, offset: u64) {
        self.start = self.start.max(offset.min(self.next));
        self.records = self.records.split_off(&self.start);
        // Who reads below it must hear of it.
        self.waiting.iter().filter_map(Weak::upgrade).for_each(|waiting| waiting.notify_one());
    }

    pub fn compact(&mut self) {
        let last: BTreeMap<&[u8], u64> =
            self.records.iter().filter_map(|(offset, record)| Some((record.key.as_deref()?, *offset))).collect();
        let stays: Vec<u64> = last.into_values().collect();
        // The last record lies in the segment that is written to, which is never compacted.
        let end = self.next;
        self.records.retain(|offset, record| *offset + 1 == end || (record.value.is_some() && stays.contains(offset)));
    }
}
