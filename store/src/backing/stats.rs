//! What a member did, in numbers: counters, and latencies of its device.
//!
//! Everything is a relaxed atomic: a snapshot may be off by what happens while it is taken.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A member's counters since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberStats {
    /// Shard reads that were answered, from memory or device.
    pub reads: u64,
    /// Of those, answered from the page cache on the calling thread.
    pub reads_cached: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Reads that found no file, or nothing at that offset.
    pub absent: u64,
    /// Reads whose bytes were not what was asked for.
    pub rejected: u64,
    /// Reads that took so long that another shard was asked, or that were not even queued.
    pub late: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Of the writes, those past the page cache, durable when they were done.
    pub direct_writes: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Syncs.
    pub syncs: u64,
    /// Syncs that failed or were given up.
    pub sync_errors: u64,
    /// Moving average of device reads, microseconds.
    pub read_mean_us: u64,
    /// About 99 of 100 recent device reads took less than this, microseconds.
    pub read_p99_us: u64,
    /// Moving average of syncs, microseconds.
    pub sync_mean_us: u64,
    /// About 99 of 100 recent syncs took less than this, microseconds.
    pub sync_p99_us: u64,
}

macro_rules! counters {
    ($($name:ident)*) => {
        /// The counters behind [`MemberStats`].
        #[derive(Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
            /// Latency of reads that went to a thread; those answered from memory would hide the device.
            pub(super) read_latency: Latency,
            pub(super) write_latency: Latency,
            pub(super) sync_latency: Latency,
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> MemberStats {
                MemberStats {
                    $($name: self.$name.0.load(Ordering::Relaxed),)*
                    read_mean_us: self.read_latency.mean_us(),
                    read_p99_us: self.read_latency.p99().as_micros() as u64,
                    sync_mean_us: self.sync_latency.mean_us(),
                    sync_p99_us: self.sync_latency.p99().as_micros() as u64,
                }
            }
        }
    };
}

counters! {
    reads reads_cached read_bytes read_errors absent rejected late writes write_bytes direct_writes write_errors syncs sync_errors
}

/// A number that only grows.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }
}

/// Buckets of powers of two of a microsecond: the last one begins at 2^31 us, 36 minutes.
const BUCKETS: usize = 32;

/// After so many samples all counts are halved, so that the estimate follows the last thousand or two.
const SAMPLES_MAX: u32 = 1024;

/// Latencies: a moving average (weight 1/8) and a histogram of powers of two.
#[derive(Default)]
pub(super) struct Latency {
    buckets: [AtomicU32; BUCKETS],
    samples: AtomicU32,
    /// Microseconds times 8.
    mean_us_x8: AtomicU64,
}

impl Latency {
    pub(super) fn record(&self, took: Duration) {
        let us = took.as_micros().min(u128::from(u32::MAX)) as u64;
        self.buckets[us.max(1).ilog2().min(BUCKETS as u32 - 1) as usize].fetch_add(1, Ordering::Relaxed);
        let mean = self.mean_us_x8.load(Ordering::Relaxed);
        let next = if mean == 0 { us * 8 } else { mean - mean / 8 + us };
        self.mean_us_x8.store(next, Ordering::Relaxed);
        if self.samples.fetch_add(1, Ordering::Relaxed) >= SAMPLES_MAX {
            // Two threads may halve at once, or a sample get lost: the estimate does not mind.
            self.samples.store(SAMPLES_MAX / 2, Ordering::Relaxed);
            for bucket in &self.buckets {
                bucket.store(bucket.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
            }
        }
    }

    /// An upper bound of about 99 in 100 recent samples, at most twice too large; zero without samples.
    pub(super) fn p99(&self) -> Duration {
        let counts = self.buckets.each_ref().map(|bucket| u64::from(bucket.load(Ordering::Relaxed)));
        let mut above = counts.iter().sum::<u64>() / 100;
        for (bucket, &count) in counts.iter().enumerate().rev() {
            if count > above {
                return Duration::from_micros(2 << bucket);
            }
            above -= count;
        }
        Duration::ZERO
    }

    fn mean_us(&self) -> u64 {
        self.mean_us_x8.load(Ordering::Relaxed) / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_passes_over_one_in_a_hundred() {
        let latency = Latency::default();
        assert_eq!(latency.p99(), Duration::ZERO);
        for _ in 0..198 {
            latency.record(Duration::from_micros(100));
        }
        latency.record(Duration::from_millis(900));
        assert_eq!(latency.p99(), Duration::from_micros(128));
        latency.record(Duration::from_millis(900));
        latency.record(Duration::from_millis(900));
        assert_eq!(latency.p99(), Duration::from_micros(1 << 20));
        assert!(latency.mean_us() > 100_000);
    }

    #[test]
    fn old_samples_fade() {
        let latency = Latency::default();
        for _ in 0..100 {
            latency.record(Duration::from_millis(50));
        }
        for _ in 0..6 * SAMPLES_MAX {
            latency.record(Duration::from_micros(10));
        }
        assert_eq!(latency.p99(), Duration::from_micros(16));
        assert!(latency.mean_us() <= 17);
        latency.record(Duration::from_secs(1 << 40));
        latency.record(Duration::ZERO);
    }
}
