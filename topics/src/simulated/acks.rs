//! Other groups' committed offsets: see [`crate::simulated`].

use super::Cluster;
use crate::failure::KafkaFailure;
use crate::settings::KafkaSettings;
use crate::told::Committed;

/// Committed positions of any group.
pub struct GroupOffsets {
    cluster: Cluster,
}

impl GroupOffsets {
    /// Opens nothing yet.
    pub fn new(_: &KafkaSettings) -> Self {
        Self { cluster: Cluster::current() }
    }

    /// A group's committed positions, one for each partition asked for.
    pub fn committed(
        &mut self,
        group: &str,
        partitions: &[(&str, i32)],
    ) -> Result<Vec<Option<Committed>>, KafkaFailure> {
        let state = self.cluster.lock();
        let group = state.groups.get(group);
        let committed = |place: &(&str, i32)| group.and_then(|group| group.committed(*place));
        Ok(partitions.iter().map(committed).collect())
    }
}
