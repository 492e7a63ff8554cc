//! Starting and ending the programs a run needs. Nothing is ever ended by name.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::failure::{Doing, Failure, Result};
use crate::place::is_mounted;

/// A mount that takes longer is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);
const BUSY_PATIENCE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(2);

/// Runs a program to its end; its output, if it went well.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().doing(|| format!("start {}", describe(command)))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Failure::new(format!(
        "{} ended with {}: {}",
        describe(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    words.join(" ")
}

/// One process, told from a later one with the same number by when it started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    started: u64,
}

impl Process {
    /// The process that has this number now.
    pub fn now(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        if fields.trim_start().starts_with('Z') {
            return None;
        }
        Some(Self { pid, started: fields.split_whitespace().nth(19)?.parse().ok()? })
    }

    /// Its number.
    pub fn pid(self) -> u32 {
        self.pid
    }

    fn is_alive(self) -> bool {
        Self::now(self.pid) == Some(self)
    }

    /// Waits until it has ended.
    pub fn wait(self, patience: Duration) -> bool {
        wait_until(patience, || !self.is_alive())
    }

    /// Ends it, without asking.
    pub fn kill(self) {
        if self.is_alive() {
            // It may have ended meanwhile: then there is nothing to do.
            let _ = kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL);
        }
    }
}

/// Waits until something is mounted on `point`; an error if the child that should do it ends first.
pub fn wait_for_mount(child: &mut Child, point: &Path) -> Result<()> {
    let started = Instant::now();
    while !is_mounted(point) {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Failure::new(format!("the daemon for {} ended with {status}", point.display())));
        }
        if started.elapsed() > PATIENCE {
            return Err(Failure::new(format!("nothing was mounted on {} in {PATIENCE:?}", point.display())));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Whether `done` came true in time.
pub fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if done() {
            return true;
        }
        if started.elapsed() > patience {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// Runs an unmounting command until it succeeds, for a few seconds: something may still look at the mount.
pub fn ask_to_unmount(command: impl Fn() -> Command) -> Result<()> {
    let mut last = Ok(());
    wait_until(BUSY_PATIENCE, || {
        last = run(&mut command()).map(drop);
        last.is_ok()
    });
    last
}

/// For guards: takes `point` away even if it is busy, and says so if that does not work.
pub fn detach(point: &Path) {
    if !is_mounted(point) || umount2(point, MntFlags::MNT_DETACH).is_ok() {
        return;
    }
    // Not root: fusermount may.
    let mut command = Command::new("fusermount3");
    if let Err(failure) = run(command.arg("-u").arg("-z").arg(point)) {
        eprintln!("bench-mount: {failure}");
    }
}
