//! The daemon's side: start a spawner, and have it make sandboxes.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::COMMAND;
use crate::copies::Copies;
use crate::error::{Error, Result};
use crate::protocol::frame::{Frame, Kind, receive_frame, send_frame};
use crate::sandbox::message::{Failure, Make};

/// How long a spawner may take to answer: it never waits for anything but memory and the processor.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// A running spawner.
#[derive(Debug)]
pub(crate) struct Client {
    socket: UnixStream,
    child: Child,
    /// It may take other identities than its own.
    pub privileged: bool,
    /// What its sandboxes may run instead of the volume's.
    pub copies: Arc<Copies>,
}

impl Client {
    /// Start one from a sealed copy of `program`, with the volume mounted at `volume`.
    pub fn start(program: &Path, volume: Option<&Path>) -> Result<Self> {
        let copy = sealed_copy(program).map_err(Error::step("copying the program for the spawner"))?;
        let (socket, theirs) = UnixStream::pair().map_err(Error::step("a socket for the spawner"))?;
        socket.set_read_timeout(Some(ANSWER_WAIT)).map_err(Error::step("a socket for the spawner"))?;
        let mut child = Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()))
            .arg(COMMAND)
            .arg(volume.unwrap_or(Path::new("")))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::step("starting the spawner"))?;
        let answer = receive(&socket).and_then(|mut frame| match (frame.kind, frame.fds.pop()) {
            (Kind::Ready, Some(copies)) => Ok((frame.body == [1], copies)),
            _ => Err(failed(&frame)),
        });
        match answer {
            Ok((privileged, copies)) => Ok(Self { socket, child, privileged, copies: Arc::new(Copies::new(copies)) }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    /// Make a sandbox; its init builds it and says on its socket when it is ready.
    pub fn make(&mut self, make: &Make, fds: &[RawFd]) -> Result<(i32, OwnedFd)> {
        send_frame(&self.socket, Kind::Make, &make.encode(), fds).map_err(|_| Error::SpawnerLost)?;
        let mut frame = receive(&self.socket)?;
        match (frame.kind, frame.fds.pop()) {
            (Kind::Made, Some(pidfd)) => {
                let pid = frame.body.try_into().map(u32::from_le_bytes);
                Ok((pid.map_err(|_| Error::Malformed("a spawner's answer"))? as i32, pidfd))
            }
            _ => Err(failed(&frame)),
        }
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

fn receive(socket: &UnixStream) -> Result<Frame> {
    receive_frame(socket).ok().flatten().ok_or(Error::SpawnerLost)
}

impl Drop for Client {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// It ends when its socket does; killing it is the same to its sandboxes, and sooner.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn failed(frame: &Frame) -> Error {
    match (frame.kind, Failure::decode(&frame.body)) {
        (Kind::Failed, Ok(failure)) => failure.into(),
        _ => Error::Malformed("a spawner's answer"),
    }
}

/// A copy nobody can write to any more.
fn sealed_copy(program: &Path) -> io::Result<OwnedFd> {
    let copy = memfd_create(c"brine-spawner", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(copy);
    io::copy(&mut File::open(program)?, &mut file)?;
    file.flush()?;
    file.rewind()?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    // A descriptor that can only be read: a file open for writing cannot be executed.
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}
