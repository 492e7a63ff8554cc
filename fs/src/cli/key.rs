//! `brine key`: the secrets that open a volume.

use std::path::{Path, PathBuf};

use brine_store::volume::{KdfCost, NewKey, SlotKind, Unlock, Volume, probe};
use lexopt::{Arg, Parser};
use serde_json::json;

use super::asked::Asked;
use super::check::opened;
use super::output;
use super::secret::SecretArgs;
use super::target::{Target, resolve};
use crate::control::Request;
use crate::exit_code::{ExitCode, Failure};

/// The secret to add.
struct New {
    recovery: bool,
    secret: SecretArgs,
}

/// `brine key list|add|remove ...`.
pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let work: fn(Asked, New) -> Result<(), Failure> = match parser.next()? {
        Some(Arg::Value(word)) if word == "list" => list,
        Some(Arg::Value(word)) if word == "add" => add,
        Some(Arg::Value(word)) if word == "remove" => remove,
        _ => return Err(Failure::usage("give \"list\", \"add\" or \"remove\" first")),
    };
    let mut new = New { recovery: false, secret: SecretArgs::of_another() };
    let asked = Asked::parse_with(parser, |name, parser| match name {
        "new-recovery-key" => {
            new.recovery = true;
            Ok(true)
        }
        _ => new.secret.take(name, parser),
    })?;
    work(asked, new).map(|()| ExitCode::Success)
}

fn name_of(kind: SlotKind) -> &'static str {
    match kind {
        SlotKind::Passphrase => "passphrase",
        SlotKind::KeyFile => "key-file",
        SlotKind::RecoveryKey => "recovery-key",
        SlotKind::Other(_) => "unknown",
    }
}

fn list(mut asked: Asked, _new: New) -> Result<(), Failure> {
    let [named] = asked.exactly("one SOURCE or MOUNTPOINT")?;
    let found = match resolve(&named)? {
        Target::Unmounted(offline) => offline.probe,
        Target::Mounted(live) => {
            let status = live.ask(&Request::Status)?;
            let directories = status["directories"].as_array().map(Vec::as_slice).unwrap_or_default();
            let paths = directories.iter().filter_map(|entry| entry["path"].as_str());
            probe(&paths.map(PathBuf::from).collect::<Vec<_>>())?
        }
    };
    if asked.json {
        let slots = found.key_slots.iter().map(|(slot, kind)| json!({ "slot": slot, "kind": name_of(*kind) }));
        output::say_json(&json!({ "volume": found.volume.to_string(), "slots": slots.collect::<Vec<_>>() }));
        return Ok(());
    }
    for (slot, kind) in &found.key_slots {
        output::say(&format!("{slot:>4}  {kind}"));
    }
    Ok(())
}

/// Open the volume by a secret it knows, alone, and let `work` change its slots.
fn change<T>(
    asked: &Asked,
    named: &Path,
    work: impl FnOnce(&Volume, &Unlock) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let offline = match resolve(named)? {
        Target::Unmounted(offline) => offline,
        Target::Mounted(live) => {
            let shown = live.mountpoint.as_deref().unwrap_or(named).display().to_string();
            return Err(Failure::new(
                ExitCode::Busy,
                format!(
                    "the volume is mounted at {shown}; its keys are changed while it is not: `brine umount {shown}` first"
                ),
            ));
        }
    };
    opened(&offline, asked, false, |volume, secret| work(volume, &secret.into_unlock()))
}

fn add(mut asked: Asked, new: New) -> Result<(), Failure> {
    let [named] = asked.exactly("one SOURCE")?;
    if new.recovery && new.secret.is_given() {
        return Err(Failure::usage("give one of --new-recovery-key, --new-passphrase-file and --new-key-file"));
    }
    let added = change(&asked, &named, |volume, known| {
        let new = match new.recovery {
            true => NewKey::Recovery,
            false => NewKey::Secret(new.secret.for_new_slot()?, KdfCost::Default),
        };
        Ok(volume.add_key(known, &new)?)
    })?;
    let recovery_key = added.recovery_key.as_ref().map(|key| key.as_str());
    if asked.json {
        output::say_json(&json!({ "slot": added.slot, "recovery_key": recovery_key }));
        return Ok(());
    }
    output::say(&format!("The volume opens with it from now on: key slot {}.", added.slot));
    if let Some(key) = recovery_key {
        output::say(&format!("\nRecovery key, shown this once and stored nowhere:\n\n  {key}\n"));
    }
    Ok(())
}

fn remove(mut asked: Asked, _new: New) -> Result<(), Failure> {
    let [slot, named] = asked.exactly("SLOT and one SOURCE")?;
    let shown = slot.display().to_string();
    let slot: u32 =
        shown.parse().map_err(|_| Failure::usage(format!("{shown} is no slot number; `brine key list` shows them")))?;
    let away = change(&asked, &named, |volume, _| {
        volume.remove_key(slot)?;
        Ok(volume.status()?.directories.into_iter().filter(|directory| directory.state != "healthy").count())
    })?;
    if away > 0 {
        output::warn(&format!(
            "{} could not be told; the secret opens what is there until the volume is mounted with it",
            output::plural(away as u64, "directory", "directories")
        ));
    }
    if asked.json {
        output::say_json(&json!({ "slot": slot, "directories_not_told": away }));
    } else {
        output::say(&format!(
            "Key slot {slot} is gone. Copies of the directories made before still open with its secret."
        ));
    }
    Ok(())
}
