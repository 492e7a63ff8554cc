//! The figures of a run, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::bars::Bar;
use crate::facts::{Facts, load};
use crate::metrics::{METRICS, Metric, Results, Summary};
use crate::options::{Options, SIDES};
use crate::watch::Peak;

type Memory = BTreeMap<&'static str, Peak>;

/// Tables that also read as Markdown.
pub fn text(options: &Options, facts: &Facts, results: &Results, memory: &Memory, bars: &[Bar]) -> String {
    let mut out = heading(options, facts);
    out.push_str(&figures(options, results));
    out.push_str(&daemons(options, results, memory));
    out.push_str("\nbars\n");
    for bar in bars {
        let word = match bar.reached {
            Some(true) => "PASS",
            Some(false) => "MISS",
            None => "-   ",
        };
        line(&mut out, format_args!("  {word}  {:<62} {}", bar.aim, bar.figure));
    }
    if !results.failures.is_empty() {
        out.push_str("\nfailed\n");
        for failed in &results.failures {
            let (side, workload, repeat) = (failed.side, failed.workload, failed.repeat + 1);
            line(&mut out, format_args!("  {side}, {workload}, repeat {repeat}: {}", failed.what));
        }
    }
    out
}

fn heading(options: &Options, facts: &Facts) -> String {
    let mut out = String::new();
    let Facts { processor, cores, memory_mib, kernel, filesystem, load_before, programs, caches_dropped } = facts;
    line(&mut out, format_args!("{processor}, {cores} cores, {memory_mib} MiB; Linux {kernel}; {filesystem}"));
    line(&mut out, format_args!("load {load_before} before, {} after", load()));
    for program in programs {
        line(&mut out, format_args!("{program}"));
    }
    let cold = if *caches_dropped { "remounted, page cache dropped" } else { "remounted only" };
    line(
        &mut out,
        format_args!(
            "large file {} MiB; {} small files; tree of {} files, {} MiB; {} random reads; {} appends",
            options.size >> 20,
            options.files,
            options.tree_files,
            options.tree_size >> 20,
            options.reads,
            options.appends
        ),
    );
    line(
        &mut out,
        format_args!("cold: {cold}; repeats: {}; median (least-greatest); x: times as fast\n", options.repeat),
    );
    out
}

fn figures(options: &Options, results: &Results) -> String {
    let sides = shown_sides(options, results);
    let mut head = vec!["workload".to_string(), "unit".to_string()];
    head.extend(sides.iter().map(ToString::to_string));
    let compared: Vec<&str> = ["gocryptfs", "plain"].into_iter().filter(|other| sides.contains(other)).collect();
    if sides.contains(&"brine") {
        head.extend(compared.iter().map(|other| format!("brine x {other}")));
    }
    let mut rows = vec![head];
    for metric in shown_metrics(options) {
        let mut row = vec![metric.title.to_string(), metric.unit.to_string()];
        row.extend(sides.iter().map(|side| results.summary(metric.name, side).map_or("-".into(), show)));
        if sides.contains(&"brine") {
            let speed = |other: &&str| results.speed(metric, "brine", other);
            row.extend(compared.iter().map(|other| speed(other).map_or("-".into(), |speed| format!("{speed:.2}"))));
        }
        rows.push(row);
    }
    table(&rows)
}

/// Processor time by workload, and memory.
fn daemons(options: &Options, results: &Results, memory: &Memory) -> String {
    let sides: Vec<&str> = memory.keys().copied().collect();
    if sides.is_empty() {
        return String::new();
    }
    let mut rows = vec![vec!["daemon".to_string(), "unit".to_string()]];
    rows[0].extend(sides.iter().map(ToString::to_string));
    let mut add = |title: String, unit: &str, cells: Vec<String>| {
        let mut row = vec![title, unit.to_string()];
        row.extend(cells);
        rows.push(row);
    };
    for metric in shown_metrics(options).filter(|metric| metric.name != "append-p99") {
        let seconds = |side: &&str| results.daemon_seconds(metric.name, side);
        let cells = sides.iter().map(|side| seconds(side).map_or("-".into(), |seconds| format!("{seconds:.2}")));
        add(format!("processor, {}", metric.title), "s", cells.collect());
    }
    let mib = |of: fn(&Peak) -> u64| sides.iter().map(|side| (of(&memory[side]) >> 20).to_string()).collect();
    add("resident, high water".into(), "MiB", mib(|peak| peak.high_water));
    add("resident, greatest sampled".into(), "MiB", mib(|peak| peak.sampled));
    add("resident, mean".into(), "MiB", mib(Peak::mean));
    format!("\n{}", table(&rows))
}

/// The same, complete, for programs.
pub fn json(options: &Options, facts: &Facts, results: &Results, memory: &Memory, bars: &[Bar]) -> Value {
    let mut figures = Vec::new();
    for metric in shown_metrics(options) {
        for side in SIDES {
            let Some(summary) = results.summary(metric.name, side) else { continue };
            figures.push(json!({
                "metric": metric.name,
                "unit": metric.unit,
                "greater_is_better": metric.greater_is_better,
                "side": side,
                "median": summary.median,
                "least": summary.least,
                "greatest": summary.greatest,
                "values": results.values(metric.name, side),
                "daemon_processor_seconds": results.daemon_seconds(metric.name, side),
            }));
        }
    }
    let memory: BTreeMap<&str, Value> = memory
        .iter()
        .map(|(side, peak)| {
            let figures = json!({
                "high_water_bytes": peak.high_water,
                "sampled_max_bytes": peak.sampled,
                "sampled_mean_bytes": peak.mean(),
            });
            (*side, figures)
        })
        .collect();
    let bars: Vec<Value> =
        bars.iter().map(|bar| json!({ "aim": bar.aim, "figure": bar.figure, "reached": bar.reached })).collect();
    let failures: Vec<Value> = results
        .failures
        .iter()
        .map(|failed| {
            json!({
                "side": failed.side,
                "workload": failed.workload,
                "repeat": failed.repeat + 1,
                "what": failed.what,
                "side_lost": failed.lost,
            })
        })
        .collect();
    json!({
        "machine": {
            "processor": facts.processor,
            "cores": facts.cores,
            "memory_mib": facts.memory_mib,
            "kernel": facts.kernel,
            "filesystem": facts.filesystem,
            "load_before": facts.load_before,
            "load_after": load(),
            "programs": facts.programs,
            "caches_dropped": facts.caches_dropped,
        },
        "options": {
            "repeat": options.repeat,
            "size_bytes": options.size,
            "reads": options.reads,
            "files": options.files,
            "tree_files": options.tree_files,
            "tree_bytes": options.tree_size,
            "appends": options.appends,
            "tmpfs": options.tmpfs,
            "mount_options": options.mount_options,
        },
        "figures": figures,
        "memory": memory,
        "bars": bars,
        "failures": failures,
    })
}

fn shown_metrics(options: &Options) -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().filter(|metric| options.shows(metric.workload))
}

fn shown_sides(options: &Options, results: &Results) -> Vec<&'static str> {
    let measured = |side: &&str| shown_metrics(options).any(|metric| results.summary(metric.name, side).is_some());
    SIDES.into_iter().filter(measured).collect()
}

fn show(summary: Summary) -> String {
    let Summary { median, least, greatest } = summary;
    // As many digits as the spread of such figures makes sense of.
    let digits = if median >= 100.0 { 0 } else { 2 };
    let short = |figure: f64| format!("{figure:.digits$}");
    if least == greatest { short(median) } else { format!("{} ({}-{})", short(median), short(least), short(greatest)) }
}

fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String does not fail.
            let _ = write!(out, "| {cell:<width$} ");
        }
        out.push_str("|\n");
        if number == 0 {
            for width in &widths {
                let _ = write!(out, "| {} ", "-".repeat(*width));
            }
            out.push_str("|\n");
        }
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{text}");
}
