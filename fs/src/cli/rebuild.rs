//! `brine rebuild`: the metadata database anew, in this process.

use std::sync::Mutex;

use brine_store::volume::{ReportFn, rebuild};
use lexopt::{Arg, Parser};

use super::output::{Meter, grouped, plural};
use super::secret::SecretArgs;
use super::status::open_options;
use super::target::{Live, Target, resolve};
use super::{args, output};
use crate::control::Progress;
use crate::exit_code::{ExitCode, Failure};
use crate::mount::harden;
use crate::telemetry::{self, printable};

pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut json, mut accept_rollback, mut state_dir) = (false, false, None);
    let mut secret = SecretArgs::default();
    let mut paths = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => json = true,
            Arg::Long("accept-rollback") => accept_rollback = true,
            Arg::Long("state-dir") => state_dir = Some(args::absolute(&args::path(&mut parser, "--state-dir")?)),
            Arg::Long(name) => {
                let name = name.to_owned();
                if !secret.take(&name, &mut parser)? {
                    return Err(Failure::usage(format!("unknown option --{name}")));
                }
            }
            other => args::positional(other, &mut paths)?,
        }
    }
    let [named] = args::exactly(paths, "SOURCE (any directory of the volume)")?;
    let offline = match resolve(&named)? {
        Target::Unmounted(offline) => offline,
        Target::Mounted(Live { mountpoint, .. }) => {
            let place = mountpoint.map_or_else(String::new, |at| format!(" at {}", at.display()));
            return Err(Failure::new(
                ExitCode::Busy,
                format!("the volume is mounted{place} with the database that is to be made anew; unmount it first"),
            ));
        }
    };
    harden();
    telemetry::log_to_terminal();
    let unlock = secret.unlock(&offline.name())?.into_unlock();
    let mut options = open_options(offline.sources.clone(), unlock, state_dir, true);
    options.accept_rollback = accept_rollback;
    let meter = std::sync::Arc::new(Mutex::new(Meter::counting(json)));
    let told = meter.clone();
    options.report = Some(ReportFn(Box::new(move |phase, done, total| {
        if let Ok(mut meter) = told.lock() {
            meter.step(&Progress { phase: phase.to_owned(), done_bytes: done, total_bytes: total });
        }
    })));
    let outcome = rebuild(&options);
    if let Ok(meter) = meter.lock() {
        meter.finish();
    }
    let made = outcome?;
    let sound = made.tables.is_empty();
    if json {
        output::say_json(&serde_json::to_value(&made).map_err(|e| Failure::new(ExitCode::Failed, e.to_string()))?);
    } else {
        made.notes.iter().for_each(|note| output::note(note));
        output::say(&format!(
            "REBUILT: generation {}, {}, in {} ({:.1} s); rows verified, digest {}",
            grouped(made.generation),
            plural(made.inodes, "file or directory", "files and directories"),
            printable(&made.state_dir),
            made.seconds,
            made.digest,
        ));
        made.tables.iter().for_each(|finding| output::say(&format!("  metadata: {}", printable(finding))));
    }
    Ok(if sound { ExitCode::Success } else { ExitCode::Damaged })
}
