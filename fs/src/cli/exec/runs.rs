//! `brine exec ps`, `kill`, `publish` and `log`.

use lexopt::{Arg, Parser};
use serde_json::Value;

use super::super::{args, output};
use super::{Place, place_or_only};
use crate::exec_dir::request::ExecRequest;
use crate::exit_code::{ExitCode, Failure};
use crate::telemetry::timestamp;

/// Runs that `log` shows unless told otherwise.
const SHOWN: u64 = 20;

pub(super) fn ps(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut at, mut as_json) = (None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => as_json = true,
            Arg::Long("at") => at = Some(parser.value()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let answer = place_or_only(at)?.ask(ExecRequest::Ps)?;
    list(&answer, as_json);
    Ok(ExitCode::Success)
}

pub(super) fn kill(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut at, mut names) = (None, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("at") => at = Some(parser.value()?),
            other => args::positional(other, &mut names)?,
        }
    }
    let [run] = args::exactly(names, "the name of a run (`brine exec ps` lists them)")?;
    let run = run.to_string_lossy().into_owned();
    place_or_only(at)?.ask(ExecRequest::Kill { run })?;
    Ok(ExitCode::Success)
}

pub(super) fn publish(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut at, mut as_json, mut names) = (None, false, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => as_json = true,
            Arg::Long("at") => at = Some(parser.value()?),
            other => args::positional(other, &mut names)?,
        }
    }
    let [run] = args::exactly(names, "the name of a run (`brine exec log` lists them)")?;
    let run = run.to_string_lossy().into_owned();
    let answer = place_or_only(at)?.ask(ExecRequest::Publish { run })?;
    if as_json {
        output::say_json(&answer);
    }
    Ok(ExitCode::Success)
}

pub(super) fn log(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut at, mut names, mut as_json, mut max) = (None, Vec::new(), false, SHOWN);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => as_json = true,
            Arg::Long("at") => at = Some(parser.value()?),
            Arg::Short('n') => max = args::count(&mut parser, "-n", 1, 100_000)?,
            other => args::positional(other, &mut names)?,
        }
    }
    let place = place_or_only(at)?;
    if names.is_empty() {
        list(&newest(&place, max)?, as_json);
        return Ok(ExitCode::Success);
    }
    let [run] = args::exactly(names, "the name of a run")?;
    let answer = place.ask(ExecRequest::Log { run: Some(run.to_string_lossy().into_owned()), max: 1, before: None })?;
    let row = answer.get(0).unwrap_or(&Value::Null);
    if as_json {
        output::say_json(row);
    } else {
        show(row);
    }
    Ok(ExitCode::Success)
}

/// Records, as many as are told at a time.
fn newest(place: &Place, max: u64) -> Result<Value, Failure> {
    let (mut rows, mut before) = (Vec::new(), None);
    while (rows.len() as u64) < max {
        let max = max - rows.len() as u64;
        let Value::Array(more) = place.ask(ExecRequest::Log { run: None, max, before })? else { break };
        let Some(last) = more.last() else { break };
        let started_ns = last.get("started_ns").and_then(Value::as_i64).unwrap_or_default();
        before = Some((started_ns, text(last, "id").to_owned()));
        rows.extend(more);
    }
    Ok(Value::Array(rows))
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn when(row: &Value, field: &str) -> String {
    let ns = row.get(field).and_then(Value::as_u64).unwrap_or_default();
    timestamp(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(ns))
}

/// "exited 1", "signal 9", "memory".
fn end(row: &Value) -> String {
    let cause = text(row, "cause");
    let number = ["program_code", "program_signal"].iter().find_map(|field| row.get(field)?.as_i64());
    match (cause, number) {
        ("exited" | "signal", Some(number)) => format!("{cause} {number}"),
        _ => cause.to_owned(),
    }
}

fn list(rows: &Value, as_json: bool) {
    if as_json {
        return output::say_json(rows);
    }
    for row in rows.as_array().into_iter().flatten() {
        let uid = row.get("uid").and_then(Value::as_u64).unwrap_or_default();
        let id = text(row, "id");
        let short = id.get(..12).unwrap_or(id);
        output::say(&format!(
            "{short}  {}  {uid:>5}  {:<12} {}",
            when(row, "started_ns"),
            end(row),
            text(row, "function")
        ));
    }
}

fn show(row: &Value) {
    output::say(&format!("run       {}", text(row, "id")));
    let version = row.get("version").and_then(Value::as_u64).unwrap_or_default();
    output::say(&format!("function  {} (version {version})", text(row, "function")));
    output::say(&format!("caller    user {}", row.get("uid").and_then(Value::as_u64).unwrap_or_default()));
    output::say(&format!("started   {}", when(row, "started_ns")));
    output::say(&format!("end       {}", end(row)));
    if let Some(message) = row.get("message").and_then(Value::as_str) {
        output::say(&format!("message   {message}"));
    }
    for granted in row.get("scope").and_then(Value::as_array).into_iter().flatten() {
        output::say(&format!("granted   {} {}", text(granted, "access"), text(granted, "path")));
    }
    if let Some(usage) = row.get("usage") {
        let number = |field: &str| usage.get(field).and_then(Value::as_u64).unwrap_or_default();
        output::say(&format!(
            "used      {:.3} s, {:.3} s of processor, {} of memory, {} written to scratch",
            number("wall_us") as f64 / 1e6,
            number("cpu_us") as f64 / 1e6,
            output::bytes(number("memory_peak_bytes")),
            output::bytes(number("scratch_bytes"))
        ));
    }
}
