//! A member of a group: see [`crate::simulated`].

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::groups::{Told, WeakTell};
use super::{Cluster, is_killing};
use crate::failure::KafkaFailure;
use crate::settings::KafkaSettings;
pub use crate::told::{Commit, CommitError, Committed, Committing, MemberEvent};

/// A member of a consumer group.
pub struct Membership {
    cluster: Cluster,
    group: String,
    tell: WeakTell,
    session: Duration,
}

impl Membership {
    /// Joins `group` with a subscription to `topics`.
    pub fn start(
        settings: &KafkaSettings,
        group: &str,
        topics: &[String],
        events: mpsc::Sender<MemberEvent>,
    ) -> Result<Self, KafkaFailure> {
        let cluster = Cluster::current();
        let (tell, told) = mpsc::unbounded_channel();
        let weak = tell.downgrade();
        cluster.join(group, topics, tell);
        tokio::spawn(hear(cluster.clone(), group.to_string(), weak.clone(), told, events));
        let session = Duration::from_millis(settings.session_timeout_ms.into());
        Ok(Self { cluster, group: group.to_string(), tell: weak, session })
    }

    /// Hands positions over; commits happen in this order, unless one is given up.
    pub fn commit_async(&self, positions: Vec<Commit>) -> Committing {
        let (reply, answer) = oneshot::channel();
        let (there, back, late, is_lost, is_late) = {
            let mut state = self.cluster.lock();
            let luck = state.luck;
            let (topic, partition) = positions.first().map_or(("", 0), |commit| (&*commit.topic, commit.partition));
            let is_lost = state.strikes("lost_commit_answer", luck.lost_commit_answer, (topic, partition, None));
            let is_late = !is_lost && state.strikes("late_commit", luck.late_commit, (topic, partition, None));
            (state.delay(), state.delay(), state.between(100, 5_000), is_lost, is_late)
        };
        let (cluster, group, tell) = (self.cluster.clone(), self.group.clone(), self.tell.clone());
        tokio::spawn(async move {
            let given_up = || Err(CommitError::Again("no answer in time".to_string()));
            tokio::time::sleep(there).await;
            if is_late {
                let _ = reply.send(given_up());
                tokio::time::sleep(late).await;
                // Whoever waited has given up.
                let _ = cluster.lock().commit(&group, &tell, &positions);
                return;
            }
            let committed = cluster.lock().commit(&group, &tell, &positions);
            tokio::time::sleep(back).await;
            let _ = reply.send(if is_lost { given_up() } else { committed });
        });
        Committing(answer)
    }

    /// Our group's committed positions, one for each partition asked for.
    pub fn committed(&self, partitions: &[(&str, i32)]) -> Result<Vec<Option<Committed>>, KafkaFailure> {
        let state = self.cluster.lock();
        let group = state.groups.get(&self.group);
        let committed = |place: &(&str, i32)| group.and_then(|group| group.committed(*place));
        Ok(partitions.iter().map(committed).collect())
    }

    /// Leaves the group at once.
    pub fn leave(self, _: Duration) -> bool {
        true
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if !is_killing() {
            return self.cluster.leave(&self.group, &self.tell);
        }
        let (cluster, group, tell, session) =
            (self.cluster.clone(), self.group.clone(), self.tell.clone(), self.session);
        tokio::spawn(async move {
            tokio::time::sleep(session).await;
            cluster.leave(&group, &tell);
        });
    }
}

/// Hands on what the member is told, when it arrives.
async fn hear(
    cluster: Cluster,
    group: String,
    tell: WeakTell,
    mut told: mpsc::UnboundedReceiver<(Instant, Told)>,
    events: mpsc::Sender<MemberEvent>,
) {
    loop {
        let next = tokio::select! {
            biased;
            // The process is gone: it must not be taken back into the group.
            () = events.closed() => return,
            next = told.recv() => next,
        };
        let Some((at, Told { event, generation })) = next else { return };
        sleep_until(at).await;
        if generation > 0 {
            cluster.lock().learn(&group, &tell, generation);
        }
        if events.send(event).await.is_err() {
            return;
        }
    }
}
