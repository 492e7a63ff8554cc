//! Seeded random numbers and file contents.
//!
//! Promises: the same seed gives the same numbers on every machine. Not for keys.

use std::time::{SystemTime, UNIX_EPOCH};

/// The seed of this run: `BRINE_TEST_SEED` if set, else the clock. It is printed, so that a failure can be repeated.
pub fn seed(test: &str) -> u64 {
    let seed = match std::env::var("BRINE_TEST_SEED") {
        Ok(text) => text.parse().expect("BRINE_TEST_SEED is a decimal number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64),
    };
    println!("{test}: repeat with BRINE_TEST_SEED={seed}");
    seed
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for choosing operations.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }

    /// A number in `low..high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low)
    }

    /// True once in `n` times on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `items`.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// `len` bytes that do not compress and do not repeat.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        content(self.next_u64(), len)
    }
}

/// `len` bytes that do not compress, a function of `seed` alone; a longer content begins with the shorter one.
pub fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
