//! `brine sync`.

use lexopt::Parser;

use super::args;
use super::target::{Target, resolve};
use crate::control::Request;
use crate::exit_code::{ExitCode, Failure};

pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut paths = Vec::new();
    while let Some(argument) = parser.next()? {
        args::positional(argument, &mut paths)?;
    }
    let [named] = args::exactly(paths, "MOUNTPOINT")?;
    match resolve(&named)? {
        Target::Mounted(live) => live.ask_long(&Request::Sync, |_| {}).map(|_| ExitCode::Success),
        Target::Unmounted(_) => Err(Failure::new(
            ExitCode::NotMounted,
            format!("{}: the volume is not mounted, so all of it is durable", named.display()),
        )),
    }
}
