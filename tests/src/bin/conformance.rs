//! `conformance DIRECTORY...`: the checks of `brine_tests::conformance` in each directory, whatever filesystem it is on.
//!
//! Exit code 0 if all hold, 1 if one does not, 2 on wrong use.

use std::path::Path;
use std::process::ExitCode;

use brine_tests::conformance;

const HELP: &str = "\
conformance: POSIX and the Linux manual pages, as checks

  conformance [--only PART] DIRECTORY...

Runs in a new directory below each DIRECTORY, as root, and prints what does not hold and how many checks there were.
";

fn main() -> ExitCode {
    let (mut only, mut directories) = (String::new(), Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--only" => only = args.next().unwrap_or_default(),
            "--help" | "-h" => {
                print!("{HELP}");
                return ExitCode::SUCCESS;
            }
            _ => directories.push(arg),
        }
    }
    if directories.is_empty() {
        eprint!("{HELP}");
        return ExitCode::from(2);
    }
    let mut held = true;
    for directory in &directories {
        let report = conformance::run(Path::new(directory), &only);
        report.failures.iter().for_each(|failure| println!("{directory}: {failure}"));
        println!("{directory}: checks {}, failures {}", report.checks, report.failures.len());
        held &= report.failures.is_empty();
    }
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
