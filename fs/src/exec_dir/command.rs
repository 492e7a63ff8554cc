//! Answers to `brine exec policy`, `ps`, `kill` and `log`. Everybody sees and ends his own runs and sets the policy of
//! his own files; root, and who mounted the volume, those of all.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use brine_exec::{Identity, RunId};
use brine_store::volume::FileKind;
use serde_json::{Value, json};

use super::grant::Scout;
use super::host::RunHost;
use super::policies::Place;
use super::policy::PolicyChange;
use super::record::{OUTPUTS_KEPT, OUTPUTS_PUBLISHED, RunRow, key};
use super::request::{Asker, ExecRequest};
use crate::exit_code::{ExitCode, Failure};

/// Records told in one answer: all there are at once would take a hundred megabytes.
const LOG_MAX: u64 = 200;

/// Ends runs.
pub type Kill<'a> = &'a dyn Fn(RunId);

/// Answer a request.
///
/// # Errors
/// Why it is refused.
pub fn answer(host: &RunHost, request: &ExecRequest, asker: Asker, kill: Kill<'_>) -> Result<Value, Failure> {
    match request {
        ExecRequest::Policy { path, change } => policy(host, path, change.as_deref(), asker),
        ExecRequest::Ps => {
            let mut rows: Vec<RunRow> = host.active().into_iter().map(|(_, row)| row).collect();
            rows.retain(|row| sees(asker, row));
            rows.sort_by_key(|row| row.started_ns);
            to_json(&rows)
        }
        ExecRequest::Kill { run } => {
            let found: Vec<(RunId, RunRow)> =
                host.active().into_iter().filter(|(_, row)| row.id.starts_with(&**run) && sees(asker, row)).collect();
            match &found[..] {
                [] => Err(Failure::new(ExitCode::NotFound, format!("no run {run} goes on (`brine exec ps`)"))),
                [(id, _)] => {
                    kill(*id);
                    Ok(json!({ "killed": id.to_string() }))
                }
                several => {
                    Err(Failure::usage(format!("{} runs begin with {run}; give more of the name", several.len())))
                }
            }
        }
        ExecRequest::Publish { run } => publish(host, run, asker),
        ExecRequest::Log { run: None, max, before } => {
            let before = before.as_ref().map(|(started_ns, id)| key(*started_ns, id));
            let max = (*max).min(LOG_MAX) as usize;
            to_json(&host.runs().newest(before, max, |row| sees(asker, row)))
        }
        ExecRequest::Log { run: Some(run), .. } => {
            let mut rows = host.runs().named(run);
            rows.retain(|row| sees(asker, row));
            match rows.len() {
                0 => Err(Failure::new(ExitCode::NotFound, format!("there is no record of a run {run}"))),
                1 => to_json(&rows),
                many => Err(Failure::usage(format!("{many} runs begin with {run}; give more of the name"))),
            }
        }
    }
}

fn publish(host: &RunHost, run: &str, asker: Asker) -> Result<Value, Failure> {
    let mut rows = host.runs().named(run);
    rows.retain(|row| sees(asker, row));
    let [row] = &mut rows[..] else {
        return Err(match rows.len() {
            0 => Failure::new(ExitCode::NotFound, format!("there is no record of a run {run}")),
            many => Failure::usage(format!("{many} runs begin with {run}; give more of the name")),
        });
    };
    if row.outputs != OUTPUTS_KEPT {
        let what = if row.outputs.is_empty() { "it has none" } else { &row.outputs };
        let why = format!("run {}: outputs to publish are those kept after a conflict, for a day; {what}", row.id);
        return Err(Failure::new(ExitCode::Refused, why));
    }
    // As the run was started, however long ago: rights that were taken from its caller since are gone.
    let who = match asker.commands {
        true => Identity { uid: 0, gid: 0, groups: Vec::new() },
        false => Identity { uid: row.uid, gid: row.gid, groups: Vec::new() },
    };
    let refused = |why| Failure::new(ExitCode::Refused, format!("run {}: {why}", row.id));
    let scout = Scout { vfs: host.vfs(), mountpoint: host.mountpoint(), who: &who, within: None };
    host.stagings().publish_kept(row, &scout).map_err(refused)?;
    row.outputs = OUTPUTS_PUBLISHED.into();
    host.runs().put(row);
    let paths: Vec<&str> = row.staged.iter().map(|staged| &*staged.path).collect();
    Ok(json!({ "published": row.id, "paths": paths }))
}

fn sees(asker: Asker, row: &RunRow) -> bool {
    asker.commands || asker.uid == row.uid
}

fn policy(host: &RunHost, path: &Path, change: Option<&PolicyChange>, asker: Asker) -> Result<Value, Failure> {
    let shown = host.mountpoint().join(path);
    let who = Identity { uid: asker.uid, gid: u32::MAX, groups: Vec::new() };
    // Who may reach the function is the kernel's to say when it is run; here only what it is matters.
    let root = Identity { uid: 0, ..who };
    let scout = Scout { vfs: host.vfs(), mountpoint: host.mountpoint(), who: &root, within: None };
    let missing = || Failure::new(ExitCode::NotFound, format!("{}: no such file", shown.display()));
    let attr = scout.find(path).ok_or_else(missing)?;
    if !attr.in_exec || attr.kind != FileKind::File {
        return Err(Failure::new(ExitCode::Refused, format!("{}: not a file in exec/", shown.display())));
    }
    let directory = scout.find(path.parent().unwrap_or(Path::new(""))).ok_or_else(missing)?;
    let place: Place = (directory.ino, path.file_name().unwrap_or_default().as_bytes().to_vec());
    let refuse = |why: String| Failure::new(ExitCode::Refused, format!("{}: {why}", shown.display()));
    let policies = &host.vfs().exec().policies;
    let old = policies.get(&place);
    if let Some(change) = change {
        if asker.uid != 0 && asker.uid != attr.uid {
            return Err(Failure::new(
                ExitCode::NotPermitted,
                format!("{}: only its owner (user {}) and root may set its policy", shown.display(), attr.uid),
            ));
        }
        let new = if change.reset {
            None
        } else {
            // One that cannot be read is set anew.
            let old = old.unwrap_or_default().unwrap_or_default();
            let new = change.clone().apply(old, asker.uid);
            new.check().map_err(refuse)?;
            for granted in new.read.iter().chain(&new.write).chain(&new.root).chain(&new.call).chain(&new.open) {
                match scout.find(Path::new(granted.trim_start_matches('/'))).map(|attr| attr.kind) {
                    Some(FileKind::File | FileKind::Directory) => {}
                    Some(_) => return Err(refuse(format!("{granted} is neither a file nor a directory"))),
                    None => {
                        let why = format!("{granted} does not exist, or is reached through a symbolic link");
                        return Err(refuse(why));
                    }
                }
            }
            Some(new)
        };
        let row = new.as_ref().map(super::policy::FunctionPolicy::encode);
        host.vfs().put_policy(place.0, &place.1, row.as_deref())?;
        policies.set(place.clone(), new);
    }
    let now = policies.get(&place).map_err(refuse)?;
    let set = now.is_some();
    Ok(json!({ "path": path.to_string_lossy(), "set": set, "policy": to_json(&now.unwrap_or_default())? }))
}

fn to_json(value: &impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::new(ExitCode::Failed, format!("writing JSON: {error}")))
}
