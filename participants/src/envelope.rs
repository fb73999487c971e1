//! A record of Kafka's as [`suture_participants_core::envelope`] takes it.

use suture_contract::ids::{LogLetters, Participant};
use suture_contract::messages::{Decision, Prepare};
use suture_participants_core::envelope::{self, Raw, Read};
use suture_topics::record::Record;

/// Reads a record of our prepare topic.
pub fn read_prepare(record: &Record, requests: LogLetters) -> Read<Prepare> {
    envelope::read_prepare(raw(record), requests)
}

/// Reads a record of the decision log.
pub fn read_decision(record: &Record, participant: &Participant) -> Read<Decision> {
    envelope::read_decision(raw(record), participant)
}

fn raw(record: &Record) -> Raw<'_> {
    Raw { partition: record.partition, key: record.key.as_deref(), value: record.value.as_deref() }
}
