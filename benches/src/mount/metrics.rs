//! What is measured, in which unit, and the figures of a run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::watch::processor_time;

/// A row of the table.
pub struct Metric {
    pub name: &'static str,
    /// The workload that yields it.
    pub workload: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    /// Whether a greater figure is a better one.
    pub greater_is_better: bool,
}

const fn rate(name: &'static str, workload: &'static str, title: &'static str, unit: &'static str) -> Metric {
    Metric { name, workload, title, unit, greater_is_better: true }
}

const fn time(name: &'static str, workload: &'static str, title: &'static str, unit: &'static str) -> Metric {
    Metric { name, workload, title, unit, greater_is_better: false }
}

/// All rows, in the order in which they are shown.
pub static METRICS: [Metric; 24] = [
    rate("seq-write", "seq-write", "sequential write + fsync", "MiB/s"),
    rate("seq-read-cold", "seq-read-cold", "sequential read, cold", "MiB/s"),
    rate("seq-read-warm", "seq-read-warm", "sequential read, warm", "MiB/s"),
    rate("second-copy", "second-copy", "same data again + fsync", "MiB/s"),
    rate("rand-read-cold", "rand-read-cold", "random 4 KiB read, cold", "/s"),
    rate("rand-read-warm", "rand-read-warm", "random 4 KiB read, warm", "/s"),
    rate("rand-write", "rand-write", "random 4 KiB overwrite + fsync", "/s"),
    rate("create", "create", "create 4 KiB files", "/s"),
    time("create-sync", "create", "sync after it", "s"),
    rate("stat", "stat", "stat, warm", "/s"),
    rate("read-files-cold", "read-files-cold", "read 4 KiB files, cold", "/s"),
    rate("remove", "remove", "remove them", "/s"),
    time("untar", "untar", "untar", "s"),
    time("find", "find", "find in it, cold", "s"),
    time("git-clone", "git-clone", "git clone of it", "s"),
    time("remove-tree", "remove-tree", "rm -rf of the tree", "s"),
    time("append-p50", "append", "4 KiB append + fsync, p50", "us"),
    time("append-p99", "append", "4 KiB append + fsync, p99", "us"),
    rate("append-rate", "append", "the same, one writer", "/s"),
    rate("append-eight-rate", "append-eight", "the same, eight writers", "/s"),
    time("append-stream-p50", "append-stream", "the same beside a stream, p50", "us"),
    time("append-stream-p99", "append-stream", "the same beside a stream, p99", "us"),
    time("stall-p50", "stalls", "without sync beside both, p50", "us"),
    time("stall-p999", "stalls", "without sync beside both, p99.9", "us"),
];

/// One figure, and the processor time its daemon took meanwhile.
#[derive(Clone, Copy)]
pub struct Sample {
    pub metric: &'static str,
    pub value: f64,
    pub daemon: Duration,
}

/// Times one step and what its daemon does in it.
pub struct Stopwatch {
    pid: Option<u32>,
    daemon: Duration,
    start: Instant,
}

/// What a stopwatch shows.
#[derive(Clone, Copy)]
pub struct Lap {
    wall: Duration,
    daemon: Duration,
}

impl Stopwatch {
    /// Starts now; `pid` is the daemon, if there is one.
    pub fn start(pid: Option<u32>) -> Self {
        let daemon = pid.map(processor_time).unwrap_or_default();
        Self { pid, daemon, start: Instant::now() }
    }

    /// Ends now.
    pub fn stop(self) -> Lap {
        let wall = self.start.elapsed();
        let daemon = self.pid.map(processor_time).unwrap_or_default().saturating_sub(self.daemon);
        Lap { wall, daemon }
    }
}

impl Lap {
    /// `amount` a second.
    pub fn rate(self, metric: &'static str, amount: f64) -> Sample {
        Sample { metric, value: amount / self.wall.as_secs_f64().max(1e-9), daemon: self.daemon }
    }

    /// `bytes` in MiB a second.
    pub fn mib_rate(self, metric: &'static str, bytes: u64) -> Sample {
        self.rate(metric, bytes as f64 / f64::from(1 << 20))
    }

    /// The time itself, in seconds.
    pub fn seconds(self, metric: &'static str) -> Sample {
        Sample { metric, value: self.wall.as_secs_f64(), daemon: self.daemon }
    }
}

/// Median, least and greatest of the repeats.
#[derive(Clone, Copy)]
pub struct Summary {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

/// A step that did not work.
pub struct Failed {
    pub side: &'static str,
    pub family: &'static str,
    pub workload: &'static str,
    pub repeat: usize,
    pub what: String,
    /// The side could not be mounted again.
    pub lost: bool,
}

/// All figures of a run.
#[derive(Default)]
pub struct Results {
    samples: BTreeMap<(&'static str, &'static str), Vec<Sample>>,
    pub failures: Vec<Failed>,
}

impl Results {
    /// Notes what one step on one side yielded.
    pub fn add(&mut self, side: &'static str, samples: Vec<Sample>) {
        for sample in samples {
            self.samples.entry((sample.metric, side)).or_default().push(sample);
        }
    }

    /// Notes a step that did not work.
    pub fn fail(
        &mut self,
        side: &'static str,
        family: &'static str,
        workload: &'static str,
        repeat: usize,
        what: String,
        lost: bool,
    ) {
        self.failures.push(Failed { side, family, workload, repeat, what, lost });
    }

    /// Whether a side takes no further part in this repeat of a family.
    pub fn leaves_out(&self, side: &str, family: &str, repeat: usize) -> bool {
        self.failures
            .iter()
            .any(|failed| failed.side == side && (failed.lost || failed.family == family && failed.repeat == repeat))
    }

    /// Whether a side could not be mounted again.
    pub fn is_lost(&self, side: &str) -> bool {
        self.failures.iter().any(|failed| failed.side == side && failed.lost)
    }

    /// The figures themselves, in the order of the repeats.
    pub fn values(&self, metric: &str, side: &str) -> Vec<f64> {
        self.all(metric, side).iter().map(|sample| sample.value).collect()
    }

    /// `None`: not measured.
    pub fn summary(&self, metric: &str, side: &str) -> Option<Summary> {
        summary(self.values(metric, side))
    }

    /// Median of the daemon's processor time, in seconds.
    pub fn daemon_seconds(&self, metric: &str, side: &str) -> Option<f64> {
        let seconds = self.all(metric, side).iter().map(|sample| sample.daemon.as_secs_f64()).collect();
        summary(seconds).map(|summary| summary.median)
    }

    /// How many times as fast `side` is as `other`, by their medians.
    pub fn speed(&self, metric: &Metric, side: &str, other: &str) -> Option<f64> {
        let (mine, theirs) = (self.summary(metric.name, side)?.median, self.summary(metric.name, other)?.median);
        Some(if metric.greater_is_better { mine / theirs } else { theirs / mine })
    }

    fn all(&self, metric: &str, side: &str) -> &[Sample] {
        self.samples
            .iter()
            .find(|((name, of), _)| *name == metric && *of == side)
            .map_or(&[], |(_, samples)| samples.as_slice())
    }
}

/// The row of that name.
pub fn metric(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

fn summary(mut values: Vec<f64>) -> Option<Summary> {
    values.sort_by(f64::total_cmp);
    let (least, greatest) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
    Some(Summary { median, least, greatest })
}
