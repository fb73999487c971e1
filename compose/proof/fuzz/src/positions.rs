//! Positions: whatever stands in an offset's metadata is read or refused, and what is written is never cut.
//!
//! The first byte says what the rest is: `m` metadata as it stands there, `b` what the metadata is base64 of, `n` numbers to
//! be written, eight bytes each.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use suture_contract::ids::Participant;
use suture_coordinator_core::positions::{BadPositions, MAX_METADATA_BYTES, Positions, TopicIds};

use crate::met::Met;

/// As many participants as are known here.
const KNOWN: usize = 300;

/// Reads, or writes.
pub fn check(input: &[u8]) -> Met {
    let mut met = Met::default();
    match input.split_first() {
        Some((b'm', text)) => read(&String::from_utf8_lossy(text), &mut met),
        Some((b'b', bytes)) => read(&URL_SAFE_NO_PAD.encode(bytes), &mut met),
        Some((b'n', numbers)) => write(numbers, &mut met),
        _ => {}
    }
    met
}

fn read(metadata: &str, met: &mut Met) {
    let ids = ids();
    let read = Positions::from_metadata(7, metadata, &ids);
    assert_eq!(read, Positions::from_metadata(7, metadata, &ids));
    match read {
        Ok(positions) => round_trip(&positions, &ids, met),
        Err(bad) => refused(&bad, metadata, met),
    }
}

/// Numbers that are offsets: D, and V of one participant after the other.
fn write(numbers: &[u8], met: &mut Met) {
    let mut offsets = numbers.chunks_exact(8).map(|number| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(number);
        u64::from_le_bytes(bytes) >> 1
    });
    let decisions = offsets.next().unwrap_or_default();
    let votes = offsets.take(KNOWN).enumerate().map(|(i, at)| (name(i), at)).collect();
    round_trip(&Positions { requests: 7, decisions, votes }, &ids(), met);
}

fn round_trip(positions: &Positions, ids: &TopicIds, met: &mut Met) {
    match positions.to_metadata(ids) {
        Ok(metadata) => {
            assert!(metadata.len() <= MAX_METADATA_BYTES);
            assert_eq!(Positions::from_metadata(7, &metadata, ids).as_ref(), Ok(positions));
        }
        Err(bad) => {
            assert!(matches!(bad, BadPositions::TooLong { bytes } if bytes > MAX_METADATA_BYTES));
            met.variant(&bad);
        }
    }
}

fn refused(bad: &BadPositions, metadata: &str, met: &mut Met) {
    assert!(metadata.len() < 20 || !bad.to_string().contains(metadata));
    met.variant(bad);
    if let BadPositions::ForeignTopic { topic } = bad {
        met.text(format!("positions of a foreign topic: {topic}"));
    }
}

fn ids() -> TopicIds {
    let id = |i: usize| {
        let mut id = [b'v'; 16];
        id[..2].copy_from_slice(&(i as u16).to_be_bytes());
        id
    };
    let votes = (0..KNOWN).map(|i| (name(i), id(i))).collect();
    TopicIds { requests: [b'r'; 16], decisions: [b'd'; 16], votes }
}

fn name(i: usize) -> Participant {
    format!("p{i}").parse().expect("a valid name")
}
