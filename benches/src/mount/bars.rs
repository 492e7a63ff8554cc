//! What brine has set itself to reach, and whether this run reached it.

use std::collections::BTreeMap;

use crate::metrics::{Results, metric};
use crate::options::Options;
use crate::sides::{DATA_SHARDS, MEMBERS};
use crate::watch::Peak;

/// One aim.
pub struct Bar {
    pub aim: &'static str,
    /// The figures it is judged by.
    pub figure: String,
    /// `None`: not measured in this run.
    pub reached: Option<bool>,
}

const MEMORY_MAX: u64 = 512 << 20;
const RAW_SHARE_MIN: f64 = 0.8;
const COLD_READ_SPEED: f64 = 1.5;
const COLD_READ_SHARE: f64 = 0.8;

/// All aims whose workloads are shown.
pub fn judge(options: &Options, results: &Results, memory: &BTreeMap<&'static str, Peak>) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut add = |workload: &str, bar: Bar| {
        if options.shows(workload) {
            bars.push(bar);
        }
    };
    add("seq-write", beside_gocryptfs(results, "seq-write", 1.5, "sequential write >= 1.5 x gocryptfs"));
    add("seq-write", raw_write(results));
    add("seq-read-cold", cold_read(results));
    add("second-copy", beside_gocryptfs(results, "second-copy", 3.0, "same data again >= 3 x gocryptfs"));
    add("create", beside_gocryptfs(results, "create", 5.0, "create small files >= 5 x gocryptfs"));
    add("remove", beside_gocryptfs(results, "remove", 2.0, "remove small files >= 2 x gocryptfs"));
    add("untar", beside_gocryptfs(results, "untar", 3.0, "untar >= 3 x as fast as gocryptfs"));
    add("append", beside_plain(results));
    add(
        "append-eight",
        own_figures(results, "append-eight-rate", "append-rate", 4.0, "eight fsyncing writers >= 4 x one"),
    );
    add(
        "append-stream",
        own_figures(results, "append-p99", "append-stream-p99", 0.25, "fsync p99 beside a stream <= 4 x alone"),
    );
    add("stalls", stall(results));
    bars.push(resident(memory));
    bars
}

fn beside_plain(results: &Results) -> Bar {
    let speed = metric("append-p50").and_then(|metric| results.speed(metric, "brine", "plain"));
    let aim = "4 KiB append + fsync p50 <= 2 x a plain directory";
    bar(aim, speed.map(|speed| (format!("{:.2} x", 1.0 / speed), speed >= 0.5)))
}

/// One of brine's figures beside another: the first at least `least` times the second.
fn own_figures(results: &Results, name: &str, other: &str, least: f64, aim: &'static str) -> Bar {
    let figures = results.summary(name, "brine").zip(results.summary(other, "brine"));
    bar(
        aim,
        figures.map(|(one, other)| {
            let ratio = one.median / other.median;
            (format!("{:.0} and {:.0}", one.median, other.median), ratio >= least)
        }),
    )
}

fn stall(results: &Results) -> Bar {
    let aim = "what does not sync: p99.9 <= 100 ms";
    bar(
        aim,
        results.summary("stall-p999", "brine").map(|p999| (format!("{:.1} ms", p999.median / 1e3), p999.median <= 1e5)),
    )
}

fn beside_gocryptfs(results: &Results, name: &str, least: f64, aim: &'static str) -> Bar {
    let speed = metric(name).and_then(|metric| results.speed(metric, "brine", "gocryptfs"));
    bar(aim, speed.map(|speed| (format!("{speed:.2} x"), speed >= least)))
}

/// What reaches the disk for each byte written is n/k bytes; that rate beside six plain files that take as much.
fn raw_write(results: &Results) -> Bar {
    let rates = results.summary("seq-write", "brine").zip(results.summary("seq-write", "six"));
    let judged = rates.map(|(brine, six)| {
        let raw = brine.median * MEMBERS as f64 / DATA_SHARDS as f64;
        let share = raw / six.median;
        (format!("{raw:.0} of {:.0} MiB/s, {:.0} %", six.median, share * 100.0), share >= RAW_SHARE_MIN)
    });
    bar("raw rate of writing >= 80 % of six plain files", judged)
}

fn cold_read(results: &Results) -> Bar {
    let beside = |other| metric("seq-read-cold").and_then(|metric| results.speed(metric, "brine", other));
    let (gocryptfs, plain) = (beside("gocryptfs"), beside("plain"));
    let judged = (gocryptfs.is_some() || plain.is_some()).then(|| {
        let figure = [
            gocryptfs.map(|speed| format!("{speed:.2} x gocryptfs")),
            plain.map(|share| format!("{:.0} % of plain", share * 100.0)),
        ];
        let reached = gocryptfs.is_some_and(|speed| speed >= COLD_READ_SPEED)
            || plain.is_some_and(|share| share >= COLD_READ_SHARE);
        (figure.into_iter().flatten().collect::<Vec<_>>().join(", "), reached)
    });
    bar("cold sequential read >= 1.5 x gocryptfs or >= 80 % of plain", judged)
}

fn resident(memory: &BTreeMap<&'static str, Peak>) -> Bar {
    let judged = memory
        .get("brine")
        .filter(|peak| peak.high_water > 0)
        .map(|peak| (format!("{} MiB at most", peak.high_water >> 20), peak.high_water < MEMORY_MAX));
    bar("resident memory < 512 MiB", judged)
}

fn bar(aim: &'static str, judged: Option<(String, bool)>) -> Bar {
    match judged {
        Some((figure, reached)) => Bar { aim, figure, reached: Some(reached) },
        None => Bar { aim, figure: "not measured".to_string(), reached: None },
    }
}
