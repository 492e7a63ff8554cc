//! `brine rebuild`: the metadata database anew, in this process.

use std::sync::Mutex;

use brine_store::volume::{ReportFn, rebuild};
use lexopt::Parser;

use super::asked::Asked;
use super::output::{self, Meter, grouped, plural};
use super::target::{Live, Target, resolve};
use crate::control::Progress;
use crate::exit_code::{ExitCode, Failure};
use crate::telemetry::printable;

pub(super) fn run(parser: Parser) -> Result<ExitCode, Failure> {
    let mut accept_rollback = false;
    let mut asked = Asked::parse_with(parser, |name, _| {
        let own = name == "accept-rollback";
        accept_rollback |= own;
        Ok(own)
    })?;
    let [named] = asked.exactly("SOURCE (any directory of the volume)")?;
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
    let unlock = asked.unlock(&offline.name())?.into_unlock();
    let mut options = asked.open_options(offline.sources.clone(), unlock, true);
    options.accept_rollback = accept_rollback;
    let meter = std::sync::Arc::new(Mutex::new(Meter::counting(asked.json)));
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
    if asked.json {
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
