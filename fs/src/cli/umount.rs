//! `brine umount`.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use lexopt::{Arg, Parser};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::target::{Live, Target, resolve};
use super::{args, output};
use crate::control::{self, Client, Request};
use crate::exit_code::{ExitCode, Failure};
use crate::mount::users_of;
use crate::mount_table::{self, Answer, Mount, UnmountError};
use crate::sys;

/// How long the daemon may take to end after it has said that everything is durable.
const END_PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut paths = Vec::new();
    let mut lazy = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('l') | Arg::Long("lazy") => lazy = true,
            other => args::positional(other, &mut paths)?,
        }
    }
    let [named] = args::exactly(paths, "MOUNTPOINT")?;
    let point = args::absolute(&named);
    // A mount whose daemon cannot be asked is seen to first: asking would hang or fail.
    if let Some(mount) = mount_table::at(&point).ok().flatten().filter(Mount::is_brine)
        && control::find_mountpoint(&point).is_none()
        && (lazy || mount.answer() == Answer::Dead)
    {
        return without_daemon(&mount, lazy);
    }
    match resolve(&point) {
        Ok(Target::Mounted(live)) if live.inside.is_some() => Err(Failure::new(
            ExitCode::NotMounted,
            format!(
                "{} is not a mountpoint; it lies in the volume mounted at {}",
                point.display(),
                live.mountpoint.as_deref().unwrap_or(Path::new("?")).display()
            ),
        )),
        Ok(Target::Mounted(live)) => ask(&live, lazy),
        Ok(Target::Unmounted(_)) => Err(not_mounted(&point)),
        Err(failure) if failure.code() == ExitCode::NotFound => Err(not_mounted(&point)),
        Err(failure) if failure.code() == ExitCode::NotPermitted && !nix::unistd::geteuid().is_root() => Err(failure),
        // A daemon of which nothing is known here.
        Err(failure) => match mount_table::at(&point).ok().flatten().filter(Mount::is_brine) {
            Some(mount) => without_daemon(&mount, lazy),
            None => Err(failure),
        },
    }
}

fn not_mounted(point: &Path) -> Failure {
    Failure::new(
        ExitCode::NotMounted,
        format!("no brine volume is mounted at {}; `brine status` lists those that are", point.display()),
    )
}

fn ask(live: &Live, lazy: bool) -> Result<ExitCode, Failure> {
    // Before it can end and its number be given to another.
    let ends: Vec<_> =
        live.pid.iter().chain(&live.supervisor).filter_map(|pid| Some((*pid, sys::pidfd_open(*pid).ok()?))).collect();
    // Without its socket a daemon still sees that it is unmounted.
    let answered = if Client::connect(&live.socket).is_err()
        && let Some(mount) = live.mountpoint.as_deref().and_then(|point| mount_table::at(point).ok().flatten())
    {
        unmount(&mount, lazy).map(|_| Value::Null)
    } else {
        live.ask_long(&Request::Umount { lazy }, |_| {})
    };
    if lazy {
        answered?;
        let daemon = live.pid.map_or(String::new(), |pid| format!(" {pid}"));
        output::note(&format!("taken out of sight; the daemon{daemon} ends when nobody uses it any more"));
        return Ok(ExitCode::Success);
    }
    if let Err(failure) = &answered
        && failure.code() == ExitCode::Busy
    {
        return Err(who_else(live, failure));
    }
    // Also after a failure: the daemon is on its way out.
    let started = Instant::now();
    for (pid, end) in &ends {
        let left = END_PATIENCE.saturating_sub(started.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(end.as_fd(), PollFlags::POLLIN)], timeout) == Ok(0) && answered.is_ok() {
            return Err(Failure::new(
                ExitCode::Failed,
                format!("everything is durable, but process {pid} has not ended in {} s", END_PATIENCE.as_secs()),
            ));
        }
    }
    answered.map(|_| ExitCode::Success)
}

/// The daemon may see fewer processes than whoever asks, root for one.
fn who_else(live: &Live, failure: &Failure) -> Failure {
    let mount = live.mountpoint.as_deref().and_then(|point| mount_table::at(point).ok().flatten());
    match mount.map(|mount| (users_of(&mount), mount)) {
        Some((users, mount)) if !users.is_empty() => busy(&mount, &users),
        _ => failure.clone(),
    }
}

fn busy(mount: &Mount, users: &[impl ToString]) -> Failure {
    let who: Vec<String> = users.iter().map(ToString::to_string).collect();
    let who = if who.is_empty() { "a process this user may not look into".to_owned() } else { who.join(", ") };
    let shown = mount.point.display();
    Failure::new(
        ExitCode::Busy,
        format!(
            "{shown} is in use by {who}; end that, or take the mount out of sight with `brine umount --lazy {shown}`"
        ),
    )
}

/// Nobody to ask: take the mount away ourselves.
fn without_daemon(mount: &Mount, lazy: bool) -> Result<ExitCode, Failure> {
    let dead = mount.answer() == Answer::Dead;
    // A supervisor would bring it back.
    if let Some(supervisor) = control::supervisor_of(&mount.point) {
        let end = sys::pidfd_open(supervisor).ok();
        let _ = kill(Pid::from_raw(supervisor as i32), Signal::SIGTERM);
        if let Some(end) = end {
            let timeout = PollTimeout::try_from(END_PATIENCE).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(end.as_fd(), PollFlags::POLLIN)], timeout);
        }
        if mount_table::at(&mount.point).ok().flatten().is_none_or(|still| still.device != mount.device) {
            return Ok(ExitCode::Success);
        }
    }
    if dead {
        output::note(&format!(
            "{}: the daemon of this mount had died; what it had not said to be durable may be lost",
            mount.point.display()
        ));
    }
    unmount(mount, lazy || dead)
}

fn unmount(mount: &Mount, lazy: bool) -> Result<ExitCode, Failure> {
    match mount_table::unmount(&mount.point, lazy) {
        Ok(()) | Err(UnmountError::NotMounted) => Ok(ExitCode::Success),
        Err(UnmountError::Busy) => Err(busy(mount, &users_of(mount))),
        Err(UnmountError::Other(reason)) => {
            Err(Failure::new(ExitCode::NotPermitted, format!("unmounting {}: {reason}", mount.point.display())))
        }
    }
}
