//! The spawner: the one process that makes processes.
//!
//! It is started by the daemon from a sealed copy of the daemon's own program (a program inside a sandbox that could
//! write to it would own the next run, CVE-2019-5736), has one thread, and lives in a mount namespace pruned to what
//! sandboxes are built from: a small namespace is cheap to copy, and what is not there cannot leak. It never waits for
//! a run and never looks up a path in the volume (X5). If it dies its sandboxes die with it.

mod client;
mod namespace;

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

pub(crate) use client::Client;

use crate::plan::Identity;
use crate::policy::Network;
use crate::protocol::frame::{Kind, receive_frame, send_frame};
use crate::sandbox::init;
use crate::sandbox::message::{Failure, Make};
use crate::sys;

/// First argument of a process that is a spawner; a hidden command of the program.
pub const COMMAND: &str = "sandbox-spawner";

/// Call this at the very start of `main`, before any thread: it returns unless this process was started as a spawner.
pub fn enter() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == COMMAND) {
        let volume = arguments.next().filter(|path| !path.is_empty()).map(PathBuf::from);
        serve(volume);
    }
}

fn serve(volume: Option<PathBuf>) -> ! {
    let _ = nix::sys::prctl::set_name(c"brine-spawner");
    let Ok(socket) = take_socket() else { sys::exit_now(125) };
    let (privileged, copies) = match namespace::enter(volume.as_deref()) {
        Ok(entered) => entered,
        Err(failure) => {
            let _ = send_frame(&socket, Kind::Failed, &failure.encode(), &[]);
            sys::exit_now(125);
        }
    };
    if privileged {
        // Nobody looks into this process. An ordinary user's must be able to map the ids of its own children, whose
        // files in /proc it would not own then; its user may look into it, as into any of his processes.
        let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0, 0);
    }
    let Ok(signals) = child_signals() else { sys::exit_now(125) };
    if send_frame(&socket, Kind::Ready, &[u8::from(privileged)], &[copies.as_raw_fd()]).is_err() {
        sys::exit_now(0);
    }
    drop(copies);
    loop {
        let mut files =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut files, PollTimeout::NONE);
        let (asked, ended) = (files[0].any().unwrap_or(false), files[1].any().unwrap_or(false));
        if ended {
            while let Ok(Some(_)) = signals.read_signal() {}
            while let Ok(Some(_)) = sys::wait_any(false) {}
        }
        if asked {
            match receive_frame(&socket) {
                Ok(Some(frame)) if frame.kind == Kind::Make => answer(&socket, &frame.body, frame.fds, privileged),
                // The daemon is gone, and with this process its sandboxes.
                _ => sys::exit_now(0),
            }
        }
    }
}

/// The socket is standard input; /dev/null takes its place.
fn take_socket() -> io::Result<OwnedFd> {
    let socket = nix::fcntl::fcntl(io::stdin(), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(10))?;
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    for standard in 0..3 {
        sys::duplicate(null.as_raw_fd(), standard)?;
    }
    Ok(sys::own(socket))
}

fn child_signals() -> io::Result<SignalFd> {
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGCHLD);
    blocked.thread_block()?;
    Ok(SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn answer(socket: &OwnedFd, body: &[u8], fds: Vec<OwnedFd>, privileged: bool) {
    let malformed = |_| Failure { code: 125, step: "a malformed order to make a sandbox".into(), errno: 0 };
    let made = Make::decode(body).map_err(malformed).and_then(|make| spawn(&make, fds, privileged));
    let said = match made {
        Ok((pid, pidfd)) => send_frame(socket, Kind::Made, &(pid.as_raw() as u32).to_le_bytes(), &[pidfd.as_raw_fd()]),
        Err(failure) => send_frame(socket, Kind::Failed, &failure.encode(), &[]),
    };
    if said.is_err() {
        sys::exit_now(0);
    }
}

/// A new init in its namespaces and groups. It builds its sandbox by itself.
fn spawn(make: &Make, fds: Vec<OwnedFd>, privileged: bool) -> Result<(Pid, OwnedFd), Failure> {
    let missing = || Failure { code: 125, step: "an order without its descriptors".into(), errno: 0 };
    let mut fds = fds.into_iter();
    let control = fds.next().ok_or_else(missing)?;
    let group = if make.born { Some(fds.next().ok_or_else(missing)?) } else { None };
    let mut flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    if make.template.network == Network::None {
        flags |= libc::CLONE_NEWNET;
    }
    let (gate, open) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(io::Error::from).map_err(Failure::step("a pipe"))?;
    let side = sys::clone3(flags, group.as_ref().map(AsFd::as_fd)).map_err(Failure::step("new namespaces"))?;
    let (pid, pidfd) = match side {
        sys::Side::Child => {
            drop(open);
            init::main(&control, &gate, make, privileged)
        }
        sys::Side::Parent { pid, pidfd } => (pid, pidfd.ok_or_else(missing)?),
    };
    let prepared = map(pid, &make.identity, privileged)
        .map_err(Failure::step("mapping the caller's ids"))
        .and_then(|()| enter_groups(pid, fds).map_err(Failure::step("entering the control groups")))
        .and_then(|()| fs::File::from(open).write_all(&[1]).map_err(Failure::step("starting the init")));
    if let Err(failure) = prepared {
        let _ = sys::pidfd_signal(&pidfd, libc::SIGKILL);
        return Err(failure);
    }
    Ok((pid, pidfd))
}

/// One to one, and nothing else (X7).
fn map(pid: Pid, identity: &Identity, privileged: bool) -> io::Result<()> {
    let file = |name: &str| format!("/proc/{pid}/{name}");
    let mut ids = vec![identity.gid];
    if privileged {
        ids.extend(&identity.groups);
        ids.sort_unstable();
        ids.dedup();
    } else {
        fs::write(file("setgroups"), "deny")?;
    }
    fs::write(file("uid_map"), format!("{0} {0} 1\n", identity.uid))?;
    let lines: String = ids.iter().map(|id| format!("{id} {id} 1\n")).collect();
    fs::write(file("gid_map"), lines)
}

fn enter_groups(pid: Pid, entrances: impl Iterator<Item = OwnedFd>) -> io::Result<()> {
    for entrance in entrances {
        fs::File::from(entrance).write_all(pid.to_string().as_bytes())?;
    }
    Ok(())
}
