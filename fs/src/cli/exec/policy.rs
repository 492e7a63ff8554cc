//! `brine exec policy`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lexopt::{Arg, Parser, ValueExt};
use serde_json::{Value, json};

use super::super::{args, output};
use super::{Place, place};
use crate::exec_dir::policy::PolicyChange;
use crate::exec_dir::request::ExecRequest;
use crate::exit_code::{ExitCode, Failure};

pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut names = Vec::new();
    let mut change = PolicyChange::default();
    let mut paths: Vec<(&'static str, OsString)> = Vec::new();
    let (mut as_json, mut resume) = (false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("read") => paths.push(("read", parser.value()?)),
            Arg::Long("write") => paths.push(("write", parser.value()?)),
            Arg::Long("call") => paths.push(("call", parser.value()?)),
            Arg::Long("open") => paths.push(("open", parser.value()?)),
            Arg::Long("root") => paths.push(("root", parser.value()?)),
            Arg::Long("no-read") => change.read = Some(Vec::new()),
            Arg::Long("no-write") => change.write = Some(Vec::new()),
            Arg::Long("no-call") => change.call = Some(Vec::new()),
            Arg::Long("no-open") => change.open = Some(Vec::new()),
            Arg::Long("no-env") => change.env = Some(Vec::new()),
            Arg::Long("memory") => change.memory_bytes = Some(size(&mut parser, "--memory")?),
            Arg::Long("scratch") => change.scratch_bytes = Some(size(&mut parser, "--scratch")?),
            Arg::Long("cpus") => change.cpu_milli = Some(cpus(&mut parser)?),
            Arg::Long("pids") => change.pids = Some(args::count(&mut parser, "--pids", 1, 1 << 20)? as u32),
            Arg::Long("timeout") => change.timeout_ms = Some(time(&mut parser, "--timeout")?),
            Arg::Long("cpu-time") => change.cpu_time_ms = Some(time(&mut parser, "--cpu-time")?),
            Arg::Long("concurrency") => {
                change.concurrency = Some(args::count(&mut parser, "--concurrency", 1, 1 << 20)? as u32);
            }
            Arg::Long("net") => change.net_host = Some(choice(&mut parser, "--net", "none", "host")?),
            Arg::Long("stage") => change.stage = Some(choice(&mut parser, "--stage", "off", "on")?),
            Arg::Long("args") => change.args = Some(choice(&mut parser, "--args", "none", "read")?),
            Arg::Long("best-effort") => change.best_effort = Some(choice(&mut parser, "--best-effort", "off", "on")?),
            Arg::Long("env") => change.env.get_or_insert_default().push(parser.value()?.string()?),
            Arg::Long("uid") => change.uid = Some(args::count(&mut parser, "--uid", 1, u32::MAX.into())? as u32),
            Arg::Long("reset") => change.reset = true,
            Arg::Long("resume") => resume = true,
            Arg::Long("json") => as_json = true,
            other => args::positional(other, &mut names)?,
        }
    }
    let [name] = args::exactly(names, "the path of a function")?;
    let function = place(&name)?;
    for (option, path) in paths {
        let path = if option == "root" && path == "host" { String::new() } else { inside(&function, option, &path)? };
        match option {
            "read" => change.read.get_or_insert_default().push(path),
            "write" => change.write.get_or_insert_default().push(path),
            "open" => change.open.get_or_insert_default().push(path),
            "call" => change.call.get_or_insert_default().push(path),
            _ => change.root = Some(path),
        }
    }
    let shown_only = change.is_empty() && !resume;
    let request =
        ExecRequest::Policy { path: function.inside.clone(), change: (!shown_only).then(|| Box::new(change)) };
    let answer = function.ask(request)?;
    if as_json {
        output::say_json(&answer);
    } else if shown_only {
        show(&name, &answer);
    }
    Ok(ExitCode::Success)
}

/// A path as it is stored: from the root of the volume. A relative one is meant from the function's directory.
fn inside(function: &Place, option: &str, path: &OsString) -> Result<String, Failure> {
    let refused =
        |why: &str| Failure::new(ExitCode::Refused, format!("--{option} {}: {why}", Path::new(path).display()));
    let base = function.inside.parent().unwrap_or(Path::new(""));
    let named = Path::new(path);
    let from_root = if named.is_absolute() {
        named.strip_prefix(&function.mount.point).map_err(|_| refused("not a path of the volume the function is on"))?
    } else {
        named
    };
    let start = if named.is_absolute() { PathBuf::new() } else { base.to_owned() };
    let mut out = start;
    for part in from_root.components() {
        match part {
            std::path::Component::Normal(name) => out.push(name),
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if out.pop() => {}
            _ => return Err(refused("not a path of the volume the function is on")),
        }
    }
    out.to_str().map(|text| format!("/{text}")).ok_or_else(|| refused("paths that are no text cannot be granted"))
}

fn size(parser: &mut Parser, option: &str) -> Result<u64, Failure> {
    let word = args::word(parser)?;
    crate::config::size(&word).ok_or_else(|| Failure::usage(format!("{option} {word}: give bytes, or 512K, 64M, 2G")))
}

fn cpus(parser: &mut Parser) -> Result<u32, Failure> {
    let word = args::word(parser)?;
    let milli =
        word.parse::<f64>().ok().map(|cpus| (cpus * 1000.0).round()).filter(|milli| (1.0..=1e7).contains(milli));
    milli
        .map(|milli| milli as u32)
        .ok_or_else(|| Failure::usage(format!("--cpus {word}: give a number such as 0.5 or 2")))
}

/// Milliseconds.
fn time(parser: &mut Parser, option: &str) -> Result<u64, Failure> {
    let word = args::word(parser)?;
    let (number, unit) = match word.find(|letter: char| !letter.is_ascii_digit() && letter != '.') {
        Some(at) => word.split_at(at),
        None => (&word[..], "s"),
    };
    let factor = match unit {
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        "h" => 3600e3,
        _ => 0.0,
    };
    let ms = number.parse::<f64>().ok().map(|number| number * factor).filter(|ms| *ms >= 1.0 && *ms < 1e12);
    ms.map(|ms| ms as u64)
        .ok_or_else(|| Failure::usage(format!("{option} {word}: give seconds, or a number with ms, s, m or h")))
}

/// False for the first word, true for the second.
fn choice(parser: &mut Parser, option: &str, off: &str, on: &str) -> Result<bool, Failure> {
    let word = args::word(parser)?;
    if word == off || word == on {
        return Ok(word == on);
    }
    Err(Failure::usage(format!("{option} {word}: give {off} or {on}")))
}

fn show(name: &Path, answer: &Value) {
    let policy = answer.get("policy").cloned().unwrap_or_else(|| json!({}));
    output::say(&name.display().to_string());
    if let Some(uid) = policy.get("suspended_by").and_then(Value::as_u64) {
        output::say(&format!("  SUSPENDED: user {uid} changed the program; `--resume` when you have looked at it"));
    }
    if answer.get("set").and_then(Value::as_bool) != Some(true) {
        output::say("  no policy: the program itself, its streams, files its arguments name, nothing else");
    }
    for (field, value) in policy.as_object().into_iter().flatten() {
        let nothing = value.is_null() || value == &json!(false) || value.as_array().is_some_and(Vec::is_empty);
        if !nothing && !matches!(field.as_str(), "set_by" | "suspended_by") {
            let shown = match value {
                Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
                other => other.to_string(),
            };
            output::say(&format!("  {field:<14} {shown}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parser(words: &[&str]) -> Parser {
        let mut parser = Parser::from_args(words.iter().map(OsString::from));
        assert!(matches!(parser.next(), Ok(Some(Arg::Long(_)))));
        parser
    }

    #[test]
    fn times_sizes_and_shares_are_read_as_people_write_them() {
        for (word, ms) in [("1500ms", 1500), ("2", 2000), ("0.5s", 500), ("3m", 180_000), ("1h", 3_600_000)] {
            assert_eq!(time(&mut parser(&["--timeout", word]), "--timeout").unwrap(), ms, "{word}");
        }
        for word in ["", "x", "5d", "0", "-1", "1e99h"] {
            assert!(time(&mut parser(&[&format!("--timeout={word}")]), "--timeout").is_err(), "{word}");
        }
        assert_eq!(cpus(&mut parser(&["--cpus", "0.25"])).unwrap(), 250);
        assert!(cpus(&mut parser(&["--cpus", "0"])).is_err());
        assert_eq!(size(&mut parser(&["--memory", "64M"]), "--memory").unwrap(), 64 << 20);
        assert!(choice(&mut parser(&["--net", "host"]), "--net", "none", "host").unwrap());
        assert!(choice(&mut parser(&["--net", "all"]), "--net", "none", "host").is_err());
    }
}
