//! `brine gc`, `brine usage`, `brine salt`: what takes space, giving it back, and salt epochs.

use lexopt::{Arg, Parser};
use serde_json::Value;

use super::asked::Asked;
use super::check::{inside, perform, whole};
use super::output::{self, bytes, grouped, plural};
use super::target::resolve;
use crate::control::{Request, SaltRequest};
use crate::exit_code::{ExitCode, Failure};
use crate::telemetry::printable;

/// Entries of a directory shown to people; `--json` has them all.
const SHOWN_MAX: usize = 40;

/// `brine gc VOLUME`.
pub(super) fn run_gc(parser: Parser) -> Result<ExitCode, Failure> {
    let mut dry_run = false;
    let mut asked = Asked::parse_with(parser, |name, _| {
        let own = name == "dry-run";
        dry_run |= own;
        Ok(own)
    })?;
    let [named] = asked.exactly("one SOURCE or MOUNTPOINT")?;
    let target = whole(resolve(&named)?, &named)?;
    let report = perform(&target, &Request::Gc { dry_run }, &asked)?;
    if asked.json {
        output::say_json(&report);
    } else {
        show_gc(&report);
    }
    let sound = report["problems"].as_array().is_none_or(Vec::is_empty);
    Ok(if sound { ExitCode::Success } else { ExitCode::Damaged })
}

fn show_gc(report: &Value) {
    let figure = |key: &str| report[key].as_u64().unwrap_or_default();
    if report["dry_run"] == true {
        output::say(&format!("about {} could be given back in the directories", bytes(figure("reclaimable_bytes"))));
    } else {
        output::say(&format!(
            "{} given back in the directories; about {} left for later",
            bytes(figure("freed_bytes")),
            bytes(figure("reclaimable_bytes"))
        ));
        output::say(&format!(
            "  {} freed, {} deleted, {} rewritten ({} moved)",
            plural(figure("blocks_freed"), "block", "blocks"),
            plural(figure("segments_deleted"), "segment", "segments"),
            grouped(figure("segments_rewritten")),
            bytes(figure("bytes_moved")),
        ));
    }
    for problem in report["problems"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::say(&format!("  ! {}", printable(problem)));
    }
}

/// `brine usage [PATH] VOLUME`.
pub(super) fn run_usage(parser: Parser) -> Result<ExitCode, Failure> {
    let mut asked = Asked::parse(parser)?;
    let path = (asked.paths.len() == 2).then(|| asked.paths.remove(0));
    let [named] = asked.exactly("[PATH] and one SOURCE or MOUNTPOINT")?;
    let target = resolve(&named)?;
    let path = inside(&target, path.as_deref())?;
    let report = perform(&target, &Request::Usage { path }, &asked)?;
    if asked.json {
        output::say_json(&report);
    } else {
        show_usage(&report);
    }
    Ok(ExitCode::Success)
}

fn show_usage(report: &Value) {
    let row = |entry: &Value, name: &str| {
        let column = |key: &str| bytes(entry[key].as_u64().unwrap_or_default());
        let slash = if entry["kind"] == "directory" { "/" } else { "" };
        output::say(&format!(
            "{:>12} {:>12} {:>12}  {}{slash}",
            column("logical_bytes"),
            column("stored_bytes"),
            column("exclusive_bytes"),
            printable(name)
        ));
    };
    output::say(&format!("{:>12} {:>12} {:>12}", "size", "stored", "its own"));
    let entries = report["entries"].as_array().map(Vec::as_slice).unwrap_or_default();
    for entry in entries.iter().take(SHOWN_MAX) {
        row(entry, entry["name"].as_str().unwrap_or_default());
    }
    if entries.len() > SHOWN_MAX {
        output::say(&format!("  ... and {} more; --json lists them", grouped((entries.len() - SHOWN_MAX) as u64)));
    }
    let path = report["path"].as_str().unwrap_or_default();
    row(&report["total"], path.strip_suffix('/').unwrap_or(path));
    let figure = |key: &str| bytes(report[key].as_u64().unwrap_or_default());
    output::say(&format!(
        "\nvolume: {} stored, of it {} only in history ({} pinned by snapshots); parity adds {}",
        figure("stored_bytes"),
        figure("history_bytes"),
        figure("snapshot_bytes"),
        figure("redundancy_bytes")
    ));
    output::say(&format!(
        "        {} taken in the directories, of it about {} can be given back",
        figure("raw_bytes"),
        figure("reclaimable_bytes")
    ));
}

/// `brine salt show|rotate|reseal VOLUME`.
pub(super) fn run_salt(mut parser: Parser) -> Result<ExitCode, Failure> {
    let ask = match parser.next()? {
        Some(Arg::Value(word)) if word == "show" => SaltRequest::Show,
        Some(Arg::Value(word)) if word == "rotate" => SaltRequest::Rotate,
        Some(Arg::Value(word)) if word == "reseal" => SaltRequest::Reseal,
        _ => return Err(Failure::usage("give \"show\", \"rotate\" or \"reseal\" first")),
    };
    let mut asked = Asked::parse(parser)?;
    let [named] = asked.exactly("one SOURCE or MOUNTPOINT")?;
    let target = whole(resolve(&named)?, &named)?;
    let report = perform(&target, &Request::Salt { ask }, &asked)?;
    if asked.json {
        output::say_json(&report);
    } else {
        show_salt(&report, ask);
    }
    Ok(ExitCode::Success)
}

fn show_salt(report: &Value, ask: SaltRequest) {
    let figure = |value: &Value, key: &str| value[key].as_u64().unwrap_or_default();
    if ask == SaltRequest::Reseal {
        output::say(&format!(
            "{} sealed anew ({})",
            plural(figure(report, "resealed_chunks"), "chunk", "chunks"),
            bytes(figure(report, "resealed_bytes"))
        ));
    }
    let drained = match figure(report, "drained") {
        0 => String::new(),
        count => format!("; {} before it drained", plural(count, "epoch", "epochs")),
    };
    output::say(&format!("new blocks are of epoch {}{drained}", figure(report, "epoch")));
    for epoch in report["epochs"].as_array().into_iter().flatten() {
        output::say(&format!(
            "  epoch {:<6} {:>14} {:>12}",
            figure(epoch, "epoch"),
            plural(figure(epoch, "blocks"), "block", "blocks"),
            bytes(figure(epoch, "stored_bytes"))
        ));
    }
}
