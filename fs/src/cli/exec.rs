//! `brine exec ...`: functions and their runs, by command line.

mod policy;
mod run;
mod runs;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use lexopt::{Arg, Parser};
use serde_json::Value;

use super::args::absolute;
use super::target::PATIENCE;
use crate::control::{Client, Request};
use crate::exec_dir::request::ExecRequest;
use crate::exit_code::{ExitCode, Failure};
use crate::mount_table::{self, Mount};

pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let Some(Arg::Value(word)) = parser.next()? else {
        return Err(Failure::usage("give one of run, ps, kill, log, policy, publish"));
    };
    match word.to_string_lossy().as_ref() {
        "policy" => policy::run(parser),
        "run" => run::run(parser),
        "ps" => runs::ps(parser),
        "kill" => runs::kill(parser),
        "log" => runs::log(parser),
        "publish" => runs::publish(parser),
        other => Err(Failure::usage(format!(
            "there is no `brine exec {other}`; give one of run, policy, ps, kill, log, publish"
        ))),
    }
}

/// A mounted volume whose functions are meant.
struct Place {
    mount: Mount,
    /// What was named, from the root of the volume.
    inside: PathBuf,
}

/// The mount that holds `path`, which need not exist.
fn place(path: &Path) -> Result<Place, Failure> {
    let path = absolute(path);
    let table = |error| Failure::io("reading /proc/self/mountinfo", &error);
    let mount = mount_table::holding(&path).map_err(table)?.filter(Mount::is_brine).ok_or_else(|| {
        Failure::new(ExitCode::NotMounted, format!("{} is not on a mounted brine volume", path.display()))
    })?;
    let spelled = mount_table::spellings(&path);
    let inside = spelled.iter().find_map(|path| path.strip_prefix(&mount.point).ok()).map(Path::to_owned);
    Ok(Place { mount, inside: inside.unwrap_or_default() })
}

impl Place {
    /// The socket that runs are asked for at.
    fn socket(&self) -> Result<PathBuf, Failure> {
        let link = self.mount.point.join(".brine/exec.sock");
        std::fs::read_link(&link).map_err(|error| {
            Failure::new(
                ExitCode::NotMounted,
                format!("{}: {error}; nothing can be run on this mount, its log says why", link.display()),
            )
        })
    }

    /// Ask the daemon, at the socket everybody who may run functions can reach.
    fn ask(&self, request: ExecRequest) -> Result<Value, Failure> {
        let socket = self.socket()?.with_file_name(crate::exec_dir::request::COMMAND_SOCKET);
        let client = Client::connect(&socket).map_err(|error| unreachable(&socket, &error))?;
        client.ask(&Request::Exec { request }, Some(PATIENCE), |_| {})
    }
}

/// The daemon cannot be reached at `socket`.
fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        // It is in a directory of the mounting user's own.
        io::ErrorKind::PermissionDenied => {
            Failure::new(ExitCode::NotPermitted, "only the user who mounted this volume can run functions on it")
        }
        _ => Failure::new(ExitCode::NotMounted, format!("the daemon's socket {}: {error}", socket.display())),
    }
}

/// The one volume that is meant: the one named, or the one the working directory is on, or the only one mounted.
fn place_or_only(named: Option<OsString>) -> Result<Place, Failure> {
    if let Some(named) = named {
        return place(Path::new(&named));
    }
    let here = std::env::current_dir().ok().and_then(|here| place(&here).ok());
    if let Some(here) = here {
        return Ok(here);
    }
    let mounts: Vec<Mount> = mount_table::all().unwrap_or_default().into_iter().filter(Mount::is_brine).collect();
    match <[Mount; 1]>::try_from(mounts) {
        Ok([mount]) => Ok(Place { mount, inside: PathBuf::new() }),
        Err(mounts) if mounts.is_empty() => Err(Failure::new(ExitCode::NotMounted, "no brine volume is mounted")),
        Err(_) => Err(Failure::usage("several volumes are mounted: name a mountpoint with --at")),
    }
}
