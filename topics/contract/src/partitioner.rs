//! The shard of a key, as Kafka's Java producer computes a partition.
//!
//! librdkafka's default partitioner is CRC32 and Java's is murmur2, so Suture's producers always set the partition
//! themselves. Source: `org.apache.kafka.common.utils.Utils.murmur2` and `BuiltInPartitioner.partitionForKey`.

use crate::ids::Shard;

/// The shard of an order key among `partitions` (> 0).
pub fn shard_of(key: &[u8], partitions: u16) -> Shard {
    let positive = murmur2(key) & 0x7fff_ffff;
    Shard((positive % u32::from(partitions)) as u16)
}

/// MurmurHash 2, 32 bit, with Kafka's seed.
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    let mut h = SEED ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k ^= k >> R;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (i, &byte) in rest.iter().enumerate() {
            h ^= u32::from(byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}
