//! `brine status`.

use std::path::PathBuf;

use brine_store::volume::{NothingDirty, Probe, Volume};
use lexopt::Parser;
use serde_json::{Map, Value, json};

use super::asked::Asked;
use super::target::{Offline, Target, resolve};
use super::{output, show};
use crate::control::{self, Client, Request};
use crate::exit_code::{ExitCode, Failure};

pub(super) fn run(parser: Parser) -> Result<ExitCode, Failure> {
    let mut asked = Asked::parse(parser)?;
    if asked.paths.is_empty() {
        return Ok(all(asked.json));
    }
    let [named] = asked.exactly("one SOURCE or MOUNTPOINT, or none")?;
    let status = match resolve(&named)? {
        Target::Mounted(live) => {
            let mut status = live.ask(&Request::Status)?;
            if let (Some(supervisor), Some(object)) = (live.supervisor, status.as_object_mut()) {
                object.insert("supervisor_pid".into(), supervisor.into());
            }
            status
        }
        Target::Unmounted(offline) if asked.secret.is_given() => opened(&offline, &asked)?,
        Target::Unmounted(offline) => probed(&offline),
    };
    if asked.json {
        output::say_json(&status);
    } else {
        output::say(&show::screen(&status));
    }
    Ok(code_of(&status))
}

/// Non-zero unless healthy.
fn code_of(status: &Value) -> ExitCode {
    if status["health"] == "healthy" { ExitCode::Success } else { ExitCode::Unhealthy }
}

/// All mounted volumes.
fn all(json: bool) -> ExitCode {
    let mut code = ExitCode::Success;
    let mut statuses = Vec::new();
    for entry in control::list() {
        let asked = Client::connect(&entry.socket).map_err(|error| Failure::io(entry.socket.display(), &error));
        let answer = asked.and_then(|client| client.ask(&Request::Status, Some(super::target::PATIENCE), |_| {}));
        let status = answer.unwrap_or_else(|failure| {
            json!({
                "volume": entry.volume, "label": entry.label, "mounted": true, "mountpoint": entry.mountpoint,
                "pid": entry.pid, "health": "failed", "health_reason": [failure.message()],
            })
        });
        if code_of(&status) != ExitCode::Success {
            code = ExitCode::Unhealthy;
        }
        statuses.push(status);
    }
    if json {
        output::say_json(&Value::Array(statuses));
    } else if statuses.is_empty() {
        output::say("No volume is mounted by this user.");
    } else if let [one] = statuses.as_slice() {
        output::say(&show::screen(one));
    } else {
        statuses.iter().for_each(|status| output::say(&show::line(status)));
    }
    code
}

/// What can be said without a key.
fn probed(offline: &Offline) -> Value {
    let probe = &offline.probe;
    let (health, mut reasons) = health(probe);
    let directories: Vec<Value> = probe
        .members
        .iter()
        .map(|member| {
            let (state, reason) = match &member.present {
                Ok(()) => ("healthy", ""),
                Err(reason) => ("missing", reason.as_str()),
            };
            json!({ "id": member.id.to_string(), "path": member.path.to_string_lossy(), "state": state, "reason": reason })
        })
        .collect();
    let absent = absent(probe);
    let mut status = json!({
        "volume": probe.volume.to_string(),
        "label": probe.label,
        "generation": probe.generation.0,
        "health": health,
        "geometry": { "data": probe.geometry.data(), "parity": probe.geometry.parity() },
        "tolerated_losses": probe.geometry.parity().saturating_sub(absent),
        "directories": directories,
        "state_dir": probe.state_dir.to_string_lossy(),
        "mounted": false,
    });
    if let Some(point) = &offline.dead_mount {
        status["health"] = "failed".into();
        status["dead_mountpoint"] = point.to_string_lossy().into();
        reasons.insert(
            0,
            format!(
                "its daemon died; mount it again: `brine mount {} {}`",
                offline.sources.first().unwrap_or(&PathBuf::new()).display(),
                point.display()
            ),
        );
    }
    if let Some(pid) = probe.holder {
        status["in_use_by_pid"] = pid.into();
    }
    status["health_reason"] = reasons.into();
    status
}

fn absent(probe: &Probe) -> usize {
    probe.members.iter().filter(|member| member.present.is_err()).count()
}

fn health(probe: &Probe) -> (&'static str, Vec<String>) {
    let missing = probe.members.iter().filter_map(|member| Some((member, member.present.as_ref().err()?)));
    let mut reasons: Vec<String> =
        missing.map(|(member, reason)| format!("directory {} is missing: {reason}", member.path.display())).collect();
    if probe.holder.is_none() && !probe.state_dir.is_dir() {
        reasons.push(format!("the metadata database is not in {}; mounting rebuilds it", probe.state_dir.display()));
    }
    let (absent, parity) = (absent(probe), probe.geometry.parity());
    let word = match absent {
        _ if absent > parity => "failed",
        0 if reasons.is_empty() => "healthy",
        0 => "degraded",
        _ if absent == parity => "critical",
        _ => "degraded",
    };
    (word, reasons)
}

/// Everything, with the volume opened read-only for the moment.
fn opened(offline: &Offline, asked: &Asked) -> Result<Value, Failure> {
    let unlock = asked.unlock(&offline.name())?.into_unlock();
    let volume = Volume::open(asked.open_options(offline.sources.clone(), unlock, true))?;
    let status = volume.status();
    volume.close(&NothingDirty)?;
    let status = serde_json::to_value(status?).map_err(|error| Failure::new(ExitCode::Failed, error.to_string()))?;
    let mut object: Map<String, Value> = status.as_object().cloned().unwrap_or_default();
    object.insert("mounted".into(), false.into());
    Ok(Value::Object(object))
}
