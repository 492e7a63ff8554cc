//! `contend append|names|cut DIRECTORY ID COUNT SEED`: one of several processes that meet in one directory; what it must
//! hold afterwards is looked at by `brine_tests::scenario::concurrent`.

use std::path::Path;
use std::process::ExitCode;

use brine_tests::scenario::concurrent;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|arg| arg.parse::<u64>().ok());
    let (Some(what), Some(directory), Some(id), Some(count), Some(seed)) =
        (args.first(), args.get(1), number(2), number(3), number(4))
    else {
        eprintln!("contend append|names|cut DIRECTORY ID COUNT SEED");
        return ExitCode::from(2);
    };
    match concurrent::worker(what, Path::new(directory), id, count, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("contend: {error}");
            ExitCode::FAILURE
        }
    }
}
