//! What is read from a log.

use std::sync::Arc;

use suture_contract::remark::Remark;

/// One record of a partition, as it was read. Nothing about it is trusted yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The topic's full name.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: u64,
    /// By the broker's clock (`message.timestamp.type=LogAppendTime`): age, never order.
    pub timestamp_ms: Option<i64>,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The header `traceparent`, if it is there and visible ASCII.
    pub traceparent: Option<String>,
    /// By whom it was asked for again, if its headers say so.
    pub remark: Option<Box<Remark>>,
}

impl Record {
    /// What the record weighs in a batch.
    #[cfg(not(suture_simulated))]
    pub(crate) fn bytes(&self) -> usize {
        let length = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        length(&self.key) + length(&self.value)
    }
}
