//! What a launcher finds in `.brine/`: its own program, and the way to the socket it asks at.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use brine_store::ids::Ino;
use brine_store::volume::{Attr, FileKind};

use crate::control_dir::{Branch, Caching, Family, Opening, plain_attr, reading_only};
use crate::errno::{Errno, Outcome};
use crate::vfs::Caller;

/// `.brine/launcher`: the program that interpreter lines name.
pub struct Launcher {
    program: Arc<[u8]>,
    since_ns: i64,
}

impl Launcher {
    /// With these bytes.
    pub fn new(program: &[u8], since_ns: i64) -> Self {
        Self { program: program.into(), since_ns }
    }
}

impl Branch for Launcher {
    fn family(&self) -> Family {
        Family::Launcher
    }

    fn attr(&self, _ino: Ino) -> Outcome<Attr> {
        // Its number lasts: the kernel asks for it once an hour, not once a run.
        let ino = Family::Launcher.number(1, true);
        Ok(plain_attr(ino, FileKind::File, 0o555, self.program.len() as u64, self.since_ns))
    }

    fn open(&self, _caller: Caller, _ino: Ino, flags: i32) -> Outcome<Opening> {
        reading_only(flags)?;
        Ok(Opening { file: Arc::new(Arc::clone(&self.program)), caching: Caching::Keep })
    }
}

/// `.brine/exec.sock`: a symbolic link to where the daemon listens. A socket bound in the mount itself would keep the
/// mount busy for as long as the daemon lives.
pub struct SocketLink {
    target: PathBuf,
    since_ns: i64,
}

impl SocketLink {
    /// To this socket.
    pub fn new(target: PathBuf, since_ns: i64) -> Self {
        Self { target, since_ns }
    }
}

impl Branch for SocketLink {
    fn family(&self) -> Family {
        Family::ExecSocket
    }

    fn attr(&self, _ino: Ino) -> Outcome<Attr> {
        let ino = Family::ExecSocket.number(1, true);
        let len = self.target.as_os_str().len() as u64;
        Ok(plain_attr(ino, FileKind::Symlink, 0o777, len, self.since_ns))
    }

    fn read_link(&self, _ino: Ino) -> Outcome<Vec<u8>> {
        Ok(self.target.as_os_str().as_bytes().to_vec())
    }

    fn open(&self, _caller: Caller, _ino: Ino, _flags: i32) -> Outcome<Opening> {
        Err(Errno::INVALID)
    }
}
