//! `brine image import`.

use lexopt::{Arg, Parser};
use serde_json::json;

use super::{args, output};
use crate::control::Progress;
use crate::exit_code::{ExitCode, Failure};
use crate::image::{self, Error};

pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    match parser.next()? {
        Some(Arg::Value(word)) if word == "import" => import(parser),
        _ => Err(Failure::usage("give: import SOURCE DIRECTORY")),
    }
}

fn import(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut paths, mut as_json) = (Vec::new(), false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => as_json = true,
            other => args::positional(other, &mut paths)?,
        }
    }
    let [source, target] = args::exactly(paths, "an archive or OCI layout, and the directory to make")?;
    let mut meter = output::Meter::new(as_json);
    let outcome = image::import(&source, &target, |done_bytes| {
        meter.step(&Progress { phase: "image".into(), done_bytes, total_bytes: 0 });
    });
    meter.finish();
    let done = outcome.map_err(|error| match &error {
        Error::Io { doing, source } => Failure::io(doing, source),
        Error::Malformed { .. } | Error::Escapes(_) => Failure::new(ExitCode::Refused, error.to_string()),
    })?;
    if as_json {
        output::say_json(&json!({
            "directory": target.to_string_lossy(), "layers": done.layers, "entries": done.entries,
            "bytes": done.bytes, "devices_left_out": done.devices,
        }));
    } else {
        output::note(&format!(
            "{}: {}, {}, {}",
            target.display(),
            output::plural(done.layers as u64, "layer", "layers"),
            output::plural(done.entries, "entry", "entries"),
            output::bytes(done.bytes)
        ));
    }
    Ok(ExitCode::Success)
}
