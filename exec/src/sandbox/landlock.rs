//! The second fence around files: what the mounts of a sandbox allow is allowed once more, and nothing else.
//!
//! It is also what keeps a standard stream from being reopened with more rights than it came with (X10), and what
//! closes abstract sockets and signals to the outside. Versions of Landlock differ in what they can forbid; what a
//! kernel lacks is reported by the doctor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use crate::sys;

/// Run a program from the file.
pub(crate) const EXECUTE: u64 = 1;
/// Write to the file.
pub(crate) const WRITE_FILE: u64 = 1 << 1;
/// Read the file.
pub(crate) const READ_FILE: u64 = 1 << 2;
/// List the directory.
pub(crate) const READ_DIR: u64 = 1 << 3;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_BLOCK: u64 = 1 << 11;
/// Link and rename across directories; version 2.
const REFER: u64 = 1 << 13;
/// Version 3.
const TRUNCATE: u64 = 1 << 14;
/// On devices opened after the restriction; version 5.
pub(crate) const IOCTL_DEV: u64 = 1 << 15;

/// Accesses that exist for what is no directory.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

/// Everything below the root of a sandbox.
pub(crate) const LOOK: u64 = READ_FILE | READ_DIR | EXECUTE;
/// Scratch and granted writes: all but device nodes.
pub(crate) const CHANGE: u64 = (REFER | TRUNCATE | (REFER - 1)) & !(MAKE_CHAR | MAKE_BLOCK);
/// Device nodes and terminals.
pub(crate) const DEVICE: u64 = READ_FILE | WRITE_FILE | IOCTL_DEV;

/// Rules being gathered.
pub(crate) struct Rules {
    set: OwnedFd,
    handled: u64,
}

impl Rules {
    /// An empty set: nothing is allowed. `None` if this kernel has no Landlock.
    pub fn new() -> io::Result<Option<Self>> {
        let Ok(abi) = sys::landlock_abi() else { return Ok(None) };
        let mut handled = REFER - 1;
        for (since, access) in [(2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)] {
            if abi >= since {
                handled |= access;
            }
        }
        // Abstract sockets and signals.
        let scoped = if abi >= 6 { 3 } else { 0 };
        Ok(Some(Self { set: sys::landlock_ruleset(abi, handled, scoped)?, handled }))
    }

    /// The descriptor it is.
    pub fn descriptor(&self) -> RawFd {
        self.set.as_raw_fd()
    }

    /// Allow `access` on a directory and what is below it.
    pub fn below(&self, directory: impl AsFd, access: u64) -> io::Result<()> {
        sys::landlock_allow(&self.set, directory, access & self.handled)
    }

    /// Allow `access` on one thing that is no directory.
    pub fn file(&self, file: impl AsFd, access: u64) -> io::Result<()> {
        sys::landlock_allow(&self.set, file, access & self.handled & OF_FILES)
    }
}

/// Hold this process to the rules of this descriptor from now on.
pub(crate) fn enforce(rules: impl AsFd) -> io::Result<()> {
    sys::landlock_restrict(rules)
}

/// Accesses of a stream that was opened with these flags.
pub(crate) fn of_stream(flags: i32) -> u64 {
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => READ_FILE,
        libc::O_WRONLY => WRITE_FILE | TRUNCATE,
        _ => READ_FILE | WRITE_FILE | TRUNCATE,
    }
}
