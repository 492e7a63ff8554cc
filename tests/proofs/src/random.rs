//! Seeded random numbers: one seed, one sequence.

use brine_store::clock::{Entropy, SeededEntropy};

/// A sequence of random numbers that follows from its seed. Also an [`Entropy`], for what wants bytes.
pub struct Random(SeededEntropy);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(SeededEntropy::new(seed))
    }

    /// Any number.
    pub fn next(&self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Less than `bound`, which is not 0.
    pub fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// An index into something of this length, which is not 0.
    pub fn index(&self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True one time in `of`.
    pub fn one_in(&self, of: u64) -> bool {
        self.below(of) == 0
    }

    /// One of these.
    pub fn choose<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }
}

impl Entropy for Random {
    fn fill(&self, out: &mut [u8]) {
        self.0.fill(out);
    }
}

/// Bytes that follow from a seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// The seed of a run: `BRINE_TEST_SEED`, else one that is different each time. Printed, so that a failure can be
/// repeated as far as threads allow.
pub fn run_seed(what: &str) -> u64 {
    let given = std::env::var("BRINE_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        now ^ u64::from(std::process::id()) << 40
    });
    println!("{what}: seed {seed} (BRINE_TEST_SEED={seed} repeats it)");
    seed
}
