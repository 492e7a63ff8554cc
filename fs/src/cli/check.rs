//! `brine check`, `brine heal`, `brine replace`: in the daemon of a mounted volume, else in this process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use brine_store::check::{CheckOptions, CheckProgress, check, heal};
use brine_store::gc::GcOptions;
use brine_store::reseal::{EpochReport, epochs, reseal};
use brine_store::usage::usage;
use brine_store::volume::{NothingDirty, Volume, replace};
use lexopt::Parser;
use serde::Serialize;
use serde_json::Value;

use super::asked::Asked;
use super::output::{Meter, bytes, grouped, plural};
use super::target::{Live, Offline, Target, resolve};
use super::{args, output};
use crate::control::{Progress, Request, RetentionChange, RetentionRequest, SaltRequest, answer_retention};
use crate::exit_code::{ExitCode, Failure};
use crate::mount::Secret;
use crate::telemetry::printable;

/// Damaged files listed for people; `--json` has them all.
const SHOWN_MAX: usize = 50;

/// `brine check [PATH] VOLUME`.
pub(super) fn run_check(parser: Parser) -> Result<ExitCode, Failure> {
    let (mut path, mut repair) = (None, false);
    let mut asked = Asked::parse_with(parser, |name, parser| {
        match name {
            "repair" => repair = true,
            "path" => path = Some(args::path(parser, "--path")?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if asked.paths.len() == 2 {
        let named = asked.paths.remove(0);
        if path.replace(named).is_some() {
            return Err(Failure::usage("the path to check is given twice, by --path and as an argument"));
        }
    }
    let [named] = asked.exactly("[PATH] and one SOURCE or MOUNTPOINT")?;
    let target = resolve(&named)?;
    let path = inside(&target, path.as_deref())?;
    let request = Request::Check { path, repair };
    let report = perform(&target, &request, &asked)?;
    if asked.json {
        output::say_json(&report);
    } else {
        show_check(&report);
    }
    Ok(if report["healthy"] == true { ExitCode::Success } else { ExitCode::Damaged })
}

/// `brine heal VOLUME`.
pub(super) fn run_heal(parser: Parser) -> Result<ExitCode, Failure> {
    let mut asked = Asked::parse(parser)?;
    let [named] = asked.exactly("one SOURCE or MOUNTPOINT")?;
    let target = whole(resolve(&named)?, &named)?;
    let report = perform(&target, &Request::Heal, &asked)?;
    Ok(healed(&report, asked.json))
}

/// `brine replace OLD NEW VOLUME`.
pub(super) fn run_replace(parser: Parser) -> Result<ExitCode, Failure> {
    let mut asked = Asked::parse(parser)?;
    let [old, new, named] = asked.exactly("OLD_DIR, NEW_DIR and one SOURCE or MOUNTPOINT")?;
    let (old, new) = (args::absolute(&old), args::absolute(&new));
    let target = whole(resolve(&named)?, &named)?;
    let report = perform(&target, &Request::Replace { old: old.clone(), new: new.clone() }, &asked)?;
    if !asked.json {
        output::say(&format!(
            "{} has the place of {}.",
            printable(&new.to_string_lossy()),
            printable(&old.to_string_lossy())
        ));
    }
    Ok(healed(&report, asked.json))
}

/// Heal and replace concern the whole volume.
pub(super) fn whole(target: Target, named: &Path) -> Result<Target, Failure> {
    match &target {
        Target::Mounted(Live { inside: Some(_), mountpoint, .. }) => Err(Failure::usage(format!(
            "{} lies in the volume mounted at {}; name the mountpoint",
            named.display(),
            mountpoint.as_deref().unwrap_or(Path::new("?")).display()
        ))),
        _ => Ok(target),
    }
}

/// A path inside the volume: as given, below the mountpoint, or what the target's own name already says.
pub(super) fn inside(target: &Target, path: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let (mountpoint, named) = match target {
        Target::Mounted(live) => (live.mountpoint.as_deref(), live.inside.as_deref()),
        Target::Unmounted(_) => (None, None),
    };
    let Some(path) = path else { return Ok(named.map(Path::to_owned)) };
    let below = mountpoint.and_then(|mountpoint| path.strip_prefix(mountpoint).ok());
    let path = Path::new("/").join(below.unwrap_or(path).strip_prefix("./").unwrap_or(below.unwrap_or(path)));
    match named {
        Some(_) => Err(Failure::usage(
            "the volume's name is a path on a mount, and a path is given as well; name the mountpoint",
        )),
        None => Ok(Some(path)),
    }
}

pub(super) fn perform(target: &Target, request: &Request, asked: &Asked) -> Result<Value, Failure> {
    let mut meter = Meter::new(asked.json);
    let outcome = match target {
        Target::Mounted(live) => live.ask_long(request, |step| meter.step(step)),
        Target::Unmounted(offline) => {
            let own = OwnProgress(Mutex::new(meter));
            let outcome = here(offline, request, asked, &own);
            meter = own.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            outcome
        }
    };
    meter.finish();
    outcome
}

/// Open a volume that is not mounted in this process, for as long as `work` takes.
pub(super) fn opened<T>(
    offline: &Offline,
    asked: &Asked,
    read_only: bool,
    work: impl FnOnce(&Volume, Secret) -> Result<T, Failure>,
) -> Result<T, Failure> {
    if let Some(pid) = offline.probe.holder {
        return Err(Failure::new(
            ExitCode::Busy,
            format!(
                "{} is in use by process {pid}, which cannot be asked; is it mounted by another user?",
                offline.name()
            ),
        ));
    }
    let secret = asked.unlock(&offline.name())?;
    let unlock = secret.clone().into_unlock();
    let volume = Volume::open(asked.open_options(offline.sources.clone(), unlock, read_only))?;
    volume.warnings().iter().for_each(|warning| output::warn(warning));
    let outcome = work(&volume, secret);
    // What was found is worth telling even if closing fails; what was healed is not said healed then.
    let closed = Arc::clone(&volume).close(&NothingDirty);
    let answer = outcome?;
    closed?;
    Ok(answer)
}

/// Do it in this process.
fn here(offline: &Offline, request: &Request, asked: &Asked, progress: &OwnProgress) -> Result<Value, Failure> {
    let read_only = matches!(
        request,
        Request::Check { repair: false, .. }
            | Request::Gc { dry_run: true }
            | Request::Usage { .. }
            | Request::Retention { ask: RetentionRequest { change: RetentionChange::None, .. } }
            | Request::Salt { ask: SaltRequest::Show }
    );
    opened(offline, asked, read_only, |volume, _| work(volume, request, progress))
}

fn work(volume: &Volume, request: &Request, progress: &OwnProgress) -> Result<Value, Failure> {
    match request {
        Request::Check { path, repair } => {
            json(&check(volume, &CheckOptions { path: path.clone(), repair: *repair }, progress)?)
        }
        Request::Replace { old, new } => {
            replace(volume, old, new)?;
            json(&heal(volume, progress)?)
        }
        Request::Gc { dry_run } => {
            let step = |phase: &str, done, total| {
                progress.progress(done, total, phase);
                true
            };
            json(&volume.gc(&NothingDirty, GcOptions { dry_run: *dry_run }, &step)?)
        }
        Request::Retention { ask } => answer_retention(volume, ask),
        Request::Salt { ask } => {
            let step = |phase: &str, done, total| {
                progress.progress(done, total, phase);
                true
            };
            match ask {
                SaltRequest::Show => {}
                SaltRequest::Rotate => {
                    volume.rotate_epoch()?;
                }
                SaltRequest::Reseal => {
                    let report = reseal(volume, &step)?;
                    volume.commit(&NothingDirty)?;
                    return json(&EpochReport {
                        resealed_chunks: report.resealed_chunks,
                        resealed_bytes: report.resealed_bytes,
                        complete: report.complete,
                        ..epochs(volume)?
                    });
                }
            }
            json(&epochs(volume)?)
        }
        Request::Usage { path } => json(&usage(volume, path.as_deref())?),
        _ => json(&heal(volume, progress)?),
    }
}

fn json(value: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::new(ExitCode::Failed, error.to_string()))
}

struct OwnProgress(Mutex<Meter>);

impl CheckProgress for OwnProgress {
    fn progress(&self, done_bytes: u64, total_bytes: u64, phase: &str) {
        if let Ok(mut meter) = self.0.lock() {
            meter.step(&Progress { phase: phase.to_owned(), done_bytes, total_bytes });
        }
    }

    /// Ctrl-C ends this process; a volume survives that at any time.
    fn cancelled(&self) -> bool {
        false
    }
}

fn show_check(report: &Value) {
    let figure = |key: &str| report[key].as_u64().unwrap_or_default();
    let word = if report["healthy"] == true { "CLEAN" } else { "DAMAGED" };
    output::say(&format!(
        "{word}: {}, {}, {} in {} read and verified, {}",
        plural(figure("files"), "file", "files"),
        plural(figure("directories"), "directory", "directories"),
        bytes(figure("bytes")),
        plural(figure("blocks"), "block", "blocks"),
        plural(figure("shards_checked"), "shard", "shards"),
    ));
    if report["complete"] == false {
        output::say("  It was stopped before the end: the rest is unknown.");
    }
    for table in report["tables"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::say(&format!("  metadata: {}", printable(table)));
    }
    let (bad, repaired) = (figure("shards_bad"), figure("shards_repaired"));
    if bad > 0 {
        output::say(&format!(
            "  {} missing or wrong, {} written anew; {}, {} lost",
            plural(bad, "shard", "shards"),
            grouped(repaired),
            plural(
                figure("blocks_degraded"),
                "block readable with less redundancy",
                "blocks readable with less redundancy"
            ),
            grouped(figure("blocks_lost")),
        ));
    }
    let damaged = report["damaged"].as_array().map(Vec::as_slice).unwrap_or_default();
    for file in damaged.iter().take(SHOWN_MAX) {
        let fate = if file["recoverable"] == true { "recoverable" } else { "LOST" };
        let [path, what] = ["path", "what"].map(|key| printable(file[key].as_str().unwrap_or_default()));
        output::say(&format!("  {fate:<11}  {path}: {what}"));
    }
    if damaged.len() > SHOWN_MAX {
        output::say(&format!("  ... and {} more; --json lists them", grouped((damaged.len() - SHOWN_MAX) as u64)));
    }
    if bad > repaired {
        output::say("  `brine heal` rebuilds what can be rebuilt.");
    }
}

fn healed(report: &Value, as_json: bool) -> ExitCode {
    if as_json {
        output::say_json(report);
    } else {
        show_heal(report);
    }
    if report["healed"] == true { ExitCode::Success } else { ExitCode::Damaged }
}

fn show_heal(report: &Value) {
    let figure = |key: &str| report[key].as_u64().unwrap_or_default();
    let word = if report["healed"] == true { "HEALED" } else { "NOT HEALED" };
    output::say(&format!(
        "{word}: {} looked at; {} missing or wrong, {} written anew and read back",
        plural(figure("stripes"), "stripe", "stripes"),
        plural(figure("shards_bad"), "shard", "shards"),
        grouped(figure("shards_repaired")),
    ));
    let left = figure("shards_left");
    if left > 0 {
        output::say(&format!(
            "  {} left: their directory cannot take them; `brine status` shows which, `brine replace` gives its place away",
            plural(left, "shard is", "shards are")
        ));
    }
    if figure("stripes_lost") > 0 {
        output::say(&format!(
            "  {} lost: more directories failed than parity covers; `brine check` names the files",
            plural(figure("stripes_lost"), "stripe is", "stripes are")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(inside: Option<&str>) -> Target {
        Target::Mounted(Live {
            socket: "/s".into(),
            mountpoint: Some("/mnt/a".into()),
            pid: None,
            supervisor: None,
            inside: inside.map(PathBuf::from),
        })
    }

    #[test]
    fn paths_are_taken_from_the_root_of_the_volume() {
        let path = |path: Option<&str>, named| inside(&mounted(named), path.map(Path::new)).map_err(|f| f.code());
        assert_eq!(path(None, None), Ok(None));
        assert_eq!(path(Some("photos/1"), None), Ok(Some("/photos/1".into())));
        assert_eq!(path(Some("/photos"), None), Ok(Some("/photos".into())));
        assert_eq!(path(Some("/mnt/a/photos"), None), Ok(Some("/photos".into())));
        assert_eq!(path(Some("./photos"), None), Ok(Some("/photos".into())));
        assert_eq!(path(None, Some("/photos")), Ok(Some("/photos".into())));
        assert_eq!(path(Some("x"), Some("/photos")), Err(ExitCode::Usage));
    }

    #[test]
    fn heal_takes_no_options_of_check() {
        let words = ["--repair", "/no/volume"];
        assert_eq!(run_heal(Parser::from_args(words)).unwrap_err().code(), ExitCode::Usage);
        assert_ne!(run_check(Parser::from_args(words)).unwrap_err().code(), ExitCode::Usage);
        assert!(whole(mounted(Some("/x")), Path::new("/mnt/a/x")).is_err());
        assert!(whole(mounted(None), Path::new("/mnt/a")).is_ok());
    }
}
