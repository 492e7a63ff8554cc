//! A terminal of the run's own, and the relay between it and the caller's.
//!
//! The program never gets the caller's terminal: it has a pseudo terminal of its sandbox as its controlling one, with
//! job control and window size of its own, and the init copies bytes. The caller's terminal is raw meanwhile, so that
//! keys mean to the inner one what they mean; it is set back when the run is over, by the init and once more by the
//! launcher, so that either may be killed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::pty::{PtyMaster, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::message::Failure;
use crate::protocol::Window;
use crate::sys;

/// Bytes under way in each direction at most.
const BUFFER_BYTES: usize = 4096;
/// Bytes written to the caller's terminal at a time: what it takes without waiting when it says that it takes some.
const PIECE_BYTES: usize = 256;

/// The init's side of a relayed terminal.
pub(super) struct Terminal {
    /// The caller's.
    outer: File,
    /// The run's.
    inner: PtyMaster,
    /// How the caller's was set.
    saved: Termios,
    to_run: Vec<u8>,
    to_caller: Vec<u8>,
    outer_open: bool,
    inner_open: bool,
}

impl Terminal {
    /// A new one in place of those streams that are the caller's terminal (standard input is). Returns the run's end.
    pub fn open(streams: &mut [Option<OwnedFd>; 3], window: Window) -> Result<(Self, OwnedFd), Failure> {
        let failed = || Failure::step("a terminal for the run");
        let missing = || Failure { code: 125, step: "a terminal to relay is missing".into(), errno: 0 };
        let outer = streams[0].take().ok_or_else(missing)?;
        let device = device(&outer);
        let saved = tcgetattr(&outer).map_err(io::Error::from).map_err(failed())?;
        let open = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let inner = posix_openpt(open).map_err(io::Error::from).map_err(failed())?;
        unlockpt(&inner).map_err(io::Error::from).map_err(failed())?;
        let path = ptsname_r(&inner).map_err(io::Error::from).map_err(failed())?;
        let end = nix::fcntl::open(
            path.as_str(),
            OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )
        .map_err(io::Error::from)
        .map_err(failed())?;
        sys::set_window(&end, window.0).map_err(failed())?;
        tcsetattr(&end, SetArg::TCSANOW, &saved).map_err(io::Error::from).map_err(failed())?;
        for stream in streams.iter_mut() {
            let same = stream.as_ref().is_some_and(|stream| self::device(stream) == device);
            if same {
                *stream = Some(end.try_clone().map_err(failed())?);
            }
        }
        streams[0] = Some(end.try_clone().map_err(failed())?);
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&outer, SetArg::TCSANOW, &raw).map_err(io::Error::from).map_err(failed())?;
        let terminal = Self {
            outer: outer.into(),
            inner,
            saved,
            to_run: Vec::new(),
            to_caller: Vec::new(),
            outer_open: true,
            inner_open: true,
        };
        Ok((terminal, end))
    }

    /// What to wait for: at most the caller's and the run's end, in this order; what has nothing to do is left out.
    pub fn polled(&self) -> Vec<PollFd<'_>> {
        let flags = |input: bool, output: bool| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, input);
            flags.set(PollFlags::POLLOUT, output);
            flags
        };
        let outer = flags(self.to_run.is_empty(), !self.to_caller.is_empty());
        let inner = flags(self.to_caller.is_empty(), !self.to_run.is_empty());
        let mut out = Vec::new();
        if self.outer_open && !outer.is_empty() {
            out.push(PollFd::new(self.outer.as_fd(), outer));
        }
        if self.inner_open && !inner.is_empty() {
            out.push(PollFd::new(self.inner.as_fd(), inner));
        }
        out
    }

    /// Copy what can be copied, for what was found: descriptor and events.
    pub fn pump(&mut self, found: &[(i32, PollFlags)]) {
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        for (fd, flags) in found {
            if *fd == self.outer.as_raw_fd() {
                if flags.contains(PollFlags::POLLIN) {
                    self.outer_open &= fill(&mut self.outer, &mut self.to_run);
                } else if flags.intersects(gone) {
                    self.outer_open = false;
                }
                if flags.contains(PollFlags::POLLOUT) {
                    self.show();
                }
            } else {
                if flags.contains(PollFlags::POLLIN) || flags.intersects(gone) {
                    self.inner_open &= fill(&mut self.inner, &mut self.to_caller);
                }
                if flags.contains(PollFlags::POLLOUT) {
                    drain(&mut self.inner, &mut self.to_run);
                }
            }
        }
        if !self.outer_open {
            self.to_caller.clear();
        }
    }

    fn show(&mut self) {
        let len = self.to_caller.len().min(PIECE_BYTES);
        match self.outer.write(&self.to_caller[..len]) {
            Ok(written) => drop(self.to_caller.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.outer_open = false,
        }
    }

    /// Size of the caller's window.
    pub fn resize(&self, window: Window) {
        let _ = sys::set_window(&self.inner, window.0);
    }

    /// The run is over: show what it wrote last, and set the caller's terminal back.
    pub fn finish(mut self) {
        loop {
            while self.outer_open && !self.to_caller.is_empty() {
                self.show();
            }
            if !self.outer_open || !fill(&mut self.inner, &mut self.to_caller) || self.to_caller.is_empty() {
                break;
            }
        }
        let _ = tcsetattr(&self.outer, SetArg::TCSADRAIN, &self.saved);
    }
}

/// Read once. False if nothing will come any more.
fn fill(from: &mut impl Read, buffer: &mut Vec<u8>) -> bool {
    let mut bytes = [0; BUFFER_BYTES];
    match from.read(&mut bytes) {
        Ok(0) => false,
        Ok(len) => {
            buffer.extend(&bytes[..len]);
            true
        }
        Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    }
}

/// Write once. What nobody takes any more is dropped.
fn drain(to: &mut impl Write, buffer: &mut Vec<u8>) {
    match to.write(buffer) {
        Ok(len) => drop(buffer.drain(..len)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
        Err(_) => buffer.clear(),
    }
}

fn device(fd: &OwnedFd) -> Option<u64> {
    let stat = nix::sys::stat::fstat(fd).ok()?;
    (stat.st_mode & libc::S_IFMT == libc::S_IFCHR).then_some(stat.st_rdev)
}
