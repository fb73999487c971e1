//! Quick hashes of what is small. Nobody from outside chooses what is hashed here.

use std::hash::{BuildHasher, Hasher};

/// Hashes word by word. Each step can be undone, so nothing is lost but where two different ways meet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mixer(u64);

impl Mixer {
    /// Odd, its bits without any order: the golden ratio's.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ self.0 >> 29).wrapping_mul(Self::FACTOR);
        mixed ^ mixed >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_u64(&mut self, word: u64) {
        // Never zero for the first words that are.
        let mixed = (self.0 ^ word).wrapping_add(Self::FACTOR).wrapping_mul(Self::FACTOR);
        self.0 = mixed ^ mixed >> 32;
    }
}

/// Makes [`Mixer`]s.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mixed;

impl BuildHasher for Mixed {
    type Hasher = Mixer;

    fn build_hasher(&self) -> Mixer {
        Mixer::default()
    }
}

/// For what is a hash already.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unmixed;

impl BuildHasher for Unmixed {
    type Hasher = AsIs;

    fn build_hasher(&self) -> AsIs {
        AsIs(0)
    }
}

/// Takes a hash for its hash.
#[derive(Debug)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are remembered")
    }

    fn write_u64(&mut self, fingerprint: u64) {
        self.0 = fingerprint;
    }
}
