//! Reading: see [`crate::simulated`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::Cluster;
use crate::failure::KafkaFailure;
use crate::settings::KafkaSettings;
pub use crate::told::ReaderEvent;

/// The handle of the reading task.
pub struct Reader {
    commands: mpsc::UnboundedSender<Command>,
}

enum Command {
    Position(Arc<str>, i32, u64),
    Remove(Arc<str>, i32),
    Pause(Arc<str>, i32),
    Resume(Arc<str>, i32),
}

impl Reader {
    /// Starts the task. It ends with the handle, or when nobody receives any more.
    pub fn start(_: &KafkaSettings, _: &str, events: mpsc::Sender<ReaderEvent>) -> Result<Self, KafkaFailure> {
        let (commands, received) = mpsc::unbounded_channel();
        let (cluster, partitions, more) = (Cluster::current(), BTreeMap::new(), Arc::new(Notify::new()));
        tokio::spawn(Task { cluster, commands: received, events, partitions, more }.run());
        Ok(Self { commands })
    }

    /// Reads these partitions too, each from its offset. One that is read already is positioned anew.
    pub fn add(&self, positions: &[(&str, i32, u64)]) {
        for &(topic, partition, offset) in positions {
            self.send(Command::Position(topic.into(), partition, offset));
        }
    }

    /// Reads a partition from another offset.
    pub fn seek(&self, topic: &str, partition: i32, offset: u64) {
        self.add(&[(topic, partition, offset)]);
    }

    /// Reads these partitions no more.
    pub fn remove(&self, partitions: &[(&str, i32)]) {
        for &(topic, partition) in partitions {
            self.send(Command::Remove(topic.into(), partition));
        }
    }

    /// Holds a partition where it is; what is in the channel already still comes.
    pub fn pause(&self, topic: &str, partition: i32) {
        self.send(Command::Pause(topic.into(), partition));
    }

    /// Reads a paused partition on, with the record after the last one handed out.
    pub fn resume(&self, topic: &str, partition: i32) {
        self.send(Command::Resume(topic.into(), partition));
    }

    /// Ends the task.
    pub fn close(self, _: Duration) -> bool {
        true
    }

    /// A task that has ended takes no more commands, which is what its end means.
    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

struct Task {
    cluster: Cluster,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<ReaderEvent>,
    partitions: BTreeMap<(Arc<str>, i32), Position>,
    /// A log that is read has more.
    more: Arc<Notify>,
}

/// Where a partition stands.
struct Position {
    next: u64,
    is_paused: bool,
    /// Outside the log: it rests.
    is_outside: bool,
    /// When what there is of it arrives.
    arrives: Option<Instant>,
}

/// Nobody receives any more, or the handle is gone: the task ends.
struct Over;

impl Task {
    async fn run(mut self) {
        while self.turn().await.is_ok() {}
    }

    /// Commands first, then what has arrived.
    async fn turn(&mut self) -> Result<(), Over> {
        self.fetch();
        let arrives = self.partitions.values().filter_map(|position| position.arrives).min();
        let far = Instant::now() + Duration::from_secs(86_400);
        tokio::select! {
            biased;
            command = self.commands.recv() => self.obey(command.ok_or(Over)?).await,
            () = sleep_until(arrives.unwrap_or(far)) => self.hand_out().await,
            () = self.more.notified() => Ok(()),
        }
    }

    async fn obey(&mut self, command: Command) -> Result<(), Over> {
        match command {
            Command::Position(topic, partition, offset) => {
                let key = (Arc::clone(&topic), partition);
                let is_paused = self.partitions.get(&key).is_some_and(|position| position.is_paused);
                let position = Position { next: offset, is_paused, is_outside: false, arrives: None };
                self.partitions.insert(key, position);
                self.tell(ReaderEvent::Positioned { topic, partition, offset }).await
            }
            Command::Remove(topic, partition) => {
                self.partitions.remove(&(topic, partition));
                Ok(())
            }
            Command::Pause(topic, partition) => {
                if let Some(position) = self.partitions.get_mut(&(topic, partition)) {
                    (position.is_paused, position.arrives) = (true, None);
                }
                Ok(())
            }
            Command::Resume(topic, partition) => {
                if let Some(position) = self.partitions.get_mut(&(topic, partition)) {
                    position.is_paused = false;
                }
                Ok(())
            }
        }
    }

    /// Asks for what there is.
    fn fetch(&mut self) {
        let mut state = self.cluster.lock();
        let luck = state.luck;
        for ((topic, partition), position) in &mut self.partitions {
            if position.is_paused || position.is_outside || position.arrives.is_some() {
                continue;
            }
            let Some(log) = state.log(topic, *partition) else { continue };
            log.tell(&self.more);
            let has_more = log.records.range(position.next..).next().is_some();
            if has_more || position.next < log.start || position.next > log.next {
                let takes = match state.strikes("slow_fetch", luck.slow_fetch, (topic, *partition, None)) {
                    true => state.between(500, 20_000),
                    false => state.delay(),
                };
                position.arrives = Some(Instant::now() + takes);
            }
        }
    }

    /// What has arrived, all partitions in one event.
    async fn hand_out(&mut self) -> Result<(), Over> {
        let now = Instant::now();
        let mut batch = Vec::new();
        let mut outside = Vec::new();
        {
            let mut state = self.cluster.lock();
            for ((topic, partition), position) in &mut self.partitions {
                if position.arrives.is_none_or(|arrives| arrives > now) {
                    continue;
                }
                position.arrives = None;
                let most = state.draw(40) as usize + 1;
                let Some(log) = state.log(topic, *partition) else { continue };
                if position.next < log.start || position.next > log.next {
                    position.is_outside = true;
                    outside.push(ReaderEvent::OutOfRange { topic: Arc::clone(topic), partition: *partition });
                    continue;
                }
                for (offset, record) in log.records.range(position.next..).take(most) {
                    position.next = offset + 1;
                    batch.push((**record).clone());
                }
            }
        }
        if !batch.is_empty() {
            self.tell(ReaderEvent::Records(batch)).await?;
        }
        for event in outside {
            self.tell(event).await?;
        }
        Ok(())
    }

    async fn tell(&self, event: ReaderEvent) -> Result<(), Over> {
        self.events.send(event).await.map_err(|_| Over)
    }
}
