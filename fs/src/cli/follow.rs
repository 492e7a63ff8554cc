//! `brine follow`: a second metadata database beside the daemon's, in the foreground.

use std::time::Duration;

use brine_store::volume::{Followed, Follower, probe};
use lexopt::Parser;
use serde_json::json;

use super::asked::Asked;
use super::output::{grouped, plural};
use super::{args, output, target};
use crate::exit_code::{ExitCode, Failure};
use crate::telemetry::printable;

/// Longest pause between two looks, seconds.
const INTERVAL_MAX: u64 = 3600;

pub(super) fn run(parser: Parser) -> Result<ExitCode, Failure> {
    let (mut once, mut interval) = (false, 1);
    let mut asked = Asked::parse_with(parser, |name, parser| {
        match name {
            "once" => once = true,
            "interval" => interval = args::count(parser, "--interval", 1, INTERVAL_MAX)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let [named] = asked.exactly("SOURCE (any directory of the volume)")?;
    let Some(state_dir) = &asked.state_dir else {
        return Err(Failure::usage("give --state-dir DIR: the second database needs a directory of its own"));
    };
    let sources = args::sources(&named);
    let found = probe(&sources)?;
    if std::fs::canonicalize(state_dir).is_ok_and(|dir| std::fs::canonicalize(&found.state_dir).is_ok_and(|w| w == dir))
    {
        return Err(Failure::new(
            ExitCode::Refused,
            format!("{} is the state directory of the volume's writer; name another", state_dir.display()),
        ));
    }
    let unlock = asked.unlock(&target::name(&found))?.into_unlock();
    let mut follower = Follower::open(asked.open_options(sources, unlock, true))?;
    let (mut shown, mut told) = (None, String::new());
    loop {
        match follower.step() {
            Ok(step) => {
                told.clear();
                let done = step.generation >= step.durable;
                if shown != Some(step.generation) || !step.notes.is_empty() {
                    show(&step, asked.json);
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
                let error = error.to_string();
                if error != told {
                    output::warn(&error);
                    told = error;
                }
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
