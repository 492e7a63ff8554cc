//! `brine follow`: a second metadata database beside the daemon's, in the foreground.

use std::time::Duration;

use brine_store::volume::{Followed, Follower, probe};
use lexopt::{Arg, Parser};
use serde_json::json;

use super::output::{grouped, plural};
use super::secret::SecretArgs;
use super::status::open_options;
use super::{args, output, target};
use crate::exit_code::{ExitCode, Failure};
use crate::mount::harden;
use crate::telemetry::{self, printable};

/// Longest pause between two looks, seconds.
const INTERVAL_MAX: u64 = 3600;

pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut json, mut once, mut interval, mut state_dir) = (false, false, 1, None);
    let mut secret = SecretArgs::default();
    let mut paths = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => json = true,
            Arg::Long("once") => once = true,
            Arg::Long("interval") => interval = args::count(&mut parser, "--interval", 1, INTERVAL_MAX)?,
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
    let Some(state_dir) = state_dir else {
        return Err(Failure::usage("give --state-dir DIR: the second database needs a directory of its own"));
    };
    let sources = args::sources(&named);
    let found = probe(&sources)?;
    if std::fs::canonicalize(&state_dir)
        .is_ok_and(|dir| std::fs::canonicalize(&found.state_dir).is_ok_and(|w| w == dir))
    {
        return Err(Failure::new(
            ExitCode::Refused,
            format!("{} is the state directory of the volume's writer; name another", state_dir.display()),
        ));
    }
    harden();
    telemetry::log_to_terminal();
    let unlock = secret.unlock(&target::name(&found))?.into_unlock();
    let mut follower = Follower::open(open_options(sources, unlock, Some(state_dir), true))?;
    let mut shown = None;
    loop {
        match follower.step() {
            Ok(step) => {
                let done = step.generation >= step.durable;
                if shown != Some(step.generation) || !step.notes.is_empty() {
                    show(&step, json);
                    shown = Some(step.generation);
                }
                if once && done {
                    follower.close()?;
                    return Ok(ExitCode::Success);
                }
                if !once || step.applied == 0 {
                    std::thread::sleep(Duration::from_secs(interval));
                }
            }
            Err(error) if once => return Err(error.into()),
            // Directories come and go; the next look may find them.
            Err(error) => {
                output::warn(&format!("{error}"));
                std::thread::sleep(Duration::from_secs(interval));
            }
        }
    }
}

fn show(step: &Followed, as_json: bool) {
    if as_json {
        output::say(&json!({ "followed": step }).to_string());
        return;
    }
    step.notes.iter().for_each(|note| output::note(note));
    let behind = match step.last.saturating_sub(step.generation) {
        0 => String::new(),
        more => format!("; {} not known durable yet", plural(more, "generation is", "generations are")),
    };
    output::say(&format!(
        "generation {}: {} applied; written by {} (term {}){behind}",
        grouped(step.generation),
        plural(step.applied, "generation", "generations"),
        printable(&step.host),
        step.term,
    ));
}
