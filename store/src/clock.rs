//! Time and randomness, handed in so that tests can hold both still.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where times come from.
pub trait Clock: Send + Sync {
    /// Nanoseconds since 1970-01-01 00:00:00 UTC.
    fn now_ns(&self) -> i64;
}

/// The machine's real-time clock.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ns(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_nanos() as i64,
            Err(before) => -(before.duration().as_nanos() as i64),
        }
    }
}

/// A clock that moves only when told to, plus one nanosecond a reading so that times differ.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// Move forward by `ns` nanoseconds.
    pub fn advance(&self, ns: i64) {
        self.0.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now_ns(&self) -> i64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// Where random bytes come from.
pub trait Entropy: Send + Sync {
    /// Fill `out` with random bytes.
    fn fill(&self, out: &mut [u8]);
}

/// The kernel's random numbers.
#[derive(Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, out: &mut [u8]) {
        // The kernel cannot fail this after boot on any Linux that has getrandom(2); without randomness no key and
        // no incarnation may be made, so stopping is the only safe answer.
        getrandom::fill(out).expect("getrandom(2) failed: no random numbers, refusing to make keys");
    }
}

/// Reproducible bytes for tests: BLAKE3 of seed and counter. Never for keys of a real volume.
#[derive(Debug, Default)]
pub struct SeededEntropy {
    seed: u64,
    count: AtomicU64,
}

impl SeededEntropy {
    /// A sequence that depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self { seed, count: AtomicU64::new(0) }
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, out: &mut [u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&self.count.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        hasher.finalize_xof().fill(out);
    }
}
