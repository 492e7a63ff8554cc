//! The exec directory: running a file in it starts a sandbox, reading it reads the program.
//!
//! When the kernel opens a function to run it, it gets one line, `#!LAUNCHER TICKET`; the launcher then asks for the run
//! through a socket ([`host`]). Everybody else sees the real file. What is decided here: which function, for whom, with
//! what of the volume ([`policy`], [`grant`]), and what is kept of a run ([`record`]). How a sandbox is made is the exec
//! crate's; it knows no FUSE, and this module starts no process.

pub mod code;
pub mod command;
pub mod entrance;
pub mod environment;
pub mod grant;
pub mod host;
pub mod open;
pub mod permission;
pub mod pin;
pub mod policies;
pub mod policy;
pub mod record;
pub mod request;
pub mod runs;
pub mod staging;
pub mod ticket;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

use pin::{Pin, Pins};
use policies::Policies;
use runs::Runs;
use ticket::Tickets;

/// Set in the flags of an open by the kernel when it is about to run the file (FMODE_EXEC).
pub const FMODE_EXEC: i32 = 0x20;
/// Longest interpreter line, bytes: the kernel reads 256.
const LINE_MAX: usize = 255;
/// What a ticket takes on the line.
const TICKET_LEN: usize = 32;

/// The state of the exec directory of a mount.
#[derive(Default)]
pub struct ExecDir {
    /// Everything before the ticket on an interpreter line, and the launcher; none while files cannot be run.
    line: RwLock<Option<(Vec<u8>, PathBuf)>>,
    /// Tickets out.
    pub tickets: Tickets<Arc<Pin>>,
    /// Functions that run, or are about to.
    pub(crate) pins: Pins,
    /// What functions were granted.
    pub policies: Policies,
    /// Records of runs.
    pub(crate) runs: OnceLock<Arc<Runs>>,
}

impl ExecDir {
    /// From now on files are run by `launcher`.
    ///
    /// # Errors
    /// Why its path cannot stand on an interpreter line.
    pub fn start(&self, launcher: &Path) -> Result<(), &'static str> {
        let line = interpreter_line(launcher.as_os_str())?;
        *self.line.write() = Some((line, launcher.to_owned()));
        Ok(())
    }

    /// From now on nothing is run, and what is about to be is refused. Records of runs that ended are written.
    pub fn stop(&self) {
        *self.line.write() = None;
        self.tickets.clear();
        if let Some(runs) = self.runs.get() {
            runs.settle();
        }
    }

    /// Everything before the ticket on an interpreter line.
    pub(crate) fn line_start(&self) -> Option<Vec<u8>> {
        self.line.read().as_ref().map(|(line, _)| line.clone())
    }

    /// The program that files are run by.
    pub(crate) fn launcher(&self) -> Option<PathBuf> {
        self.line.read().as_ref().map(|(_, launcher)| launcher.clone())
    }
}

fn interpreter_line(launcher: &OsStr) -> Result<Vec<u8>, &'static str> {
    let bytes = launcher.as_bytes();
    if bytes.iter().any(|byte| matches!(byte, b' ' | b'\t' | b'\n' | 0)) {
        return Err("the path of the launcher contains a blank");
    }
    if b"#!".len() + bytes.len() + b" ".len() + TICKET_LEN + b"\n".len() > LINE_MAX {
        return Err("the path of the launcher is too long for an interpreter line");
    }
    Ok([b"#!", bytes, b" "].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_stand_on_one_line() {
        assert_eq!(interpreter_line(OsStr::new("/mnt/.brine/launcher")).unwrap(), b"#!/mnt/.brine/launcher ");
        assert!(interpreter_line(OsStr::new("/my volume/.brine/launcher")).is_err());
        assert!(interpreter_line(OsStr::new(&format!("/{}", "x".repeat(216)))).is_ok());
        assert!(interpreter_line(OsStr::new(&format!("/{}", "x".repeat(250)))).is_err());
    }
}
