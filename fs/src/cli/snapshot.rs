//! `brine snapshot`: names for states of a mounted volume.

use std::path::{Path, PathBuf};

use lexopt::{Arg, Parser};
use serde_json::Value;

use super::target::{Live, Target, resolve};
use super::{args, output};
use crate::control::{Request, VersionsRequest};
use crate::exit_code::{ExitCode, Failure};
use crate::moment::bad_snapshot_name;
use crate::telemetry::printable;

/// `brine snapshot create|list|delete|rename|diff ...`.
pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut json = false;
    let mut words = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => json = true,
            other => args::positional(other, &mut words)?,
        }
    }
    let verb = if words.is_empty() { PathBuf::new() } else { words.remove(0) };
    match verb.to_str() {
        Some("create") => {
            let ([name], live) = named(words, "NAME and MOUNTPOINT")?;
            check_name(&name)?;
            let row = live.ask_long(&ask(VersionsRequest::CreateSnapshot { name }), |_| {})?;
            answer(json, &row, || format!("snapshot \"{}\" of {}", text(&row["name"]), text(&row["time"])));
        }
        Some("list") => {
            let ([], live) = named(words, "MOUNTPOINT")?;
            let listed = live.ask(&ask(VersionsRequest::Snapshots))?;
            answer(json, &listed, || list(&listed));
        }
        Some("delete") => {
            let ([name], live) = named(words, "NAME and MOUNTPOINT")?;
            let gone = live.ask_long(&ask(VersionsRequest::DeleteSnapshot { name: name.clone() }), |_| {})?;
            answer(json, &gone, || format!("snapshot \"{}\" is deleted", printable(&name)));
        }
        Some("rename") => {
            let ([name, new_name], live) = named(words, "NAME, NEW_NAME and MOUNTPOINT")?;
            check_name(&new_name)?;
            let row = live.ask_long(&ask(VersionsRequest::RenameSnapshot { name, new_name }), |_| {})?;
            answer(json, &row, || format!("it is snapshot \"{}\" now", text(&row["name"])));
        }
        Some("diff") => {
            let ([from, to], live) = named(words, "OLD, NEW and MOUNTPOINT")?;
            let request = VersionsRequest::Diff { path: "/".into(), from: from.clone(), to: Some(to.clone()) };
            let diff = live.ask_long(&ask(request), |_| {})?;
            return super::versions::show_diff(json, &live, &diff, Path::new("/"), &from, &to);
        }
        _ => return Err(Failure::usage("give create, list, delete, rename or diff")),
    }
    Ok(ExitCode::Success)
}

pub(super) fn ask(ask: VersionsRequest) -> Request {
    Request::Versions { ask }
}

fn check_name(name: &str) -> Result<(), Failure> {
    match bad_snapshot_name(name) {
        None => Ok(()),
        Some(reason) => Err(Failure::usage(format!("\"{name}\" cannot name a snapshot: {reason}"))),
    }
}

/// `N` names, and the mounted volume named last.
fn named<const N: usize>(mut words: Vec<PathBuf>, what: &str) -> Result<([String; N], Live), Failure> {
    if words.len() != N + 1 {
        return Err(Failure::usage(format!("give {what}")));
    }
    let mountpoint = words.pop().unwrap_or_default();
    let mut names = Vec::new();
    for word in words {
        let name = word.into_os_string().into_string();
        names.push(name.map_err(|word| Failure::usage(format!("{} is not UTF-8", word.display())))?);
    }
    let names = names.try_into().map_err(|_| Failure::usage(format!("give {what}")))?;
    match resolve(&mountpoint)? {
        Target::Mounted(live) => Ok((names, live)),
        Target::Unmounted(offline) => Err(Failure::new(
            ExitCode::NotMounted,
            format!("{} is not mounted; mount it first: its daemon keeps its history", offline.name()),
        )),
    }
}

/// The answer as JSON, or as text.
pub(super) fn answer(json: bool, value: &Value, text: impl FnOnce() -> String) {
    if json {
        output::say_json(value);
        return;
    }
    let text = text();
    if !text.is_empty() {
        output::say(&text);
    }
}

/// A text of an answer, harmless to a terminal.
pub(super) fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or_default())
}

fn list(listed: &Value) -> String {
    let rows = listed["snapshots"].as_array().cloned().unwrap_or_default();
    let lines: Vec<String> = rows.iter().map(|row| format!("{}  {}", text(&row["time"]), text(&row["name"]))).collect();
    lines.join("\n")
}
