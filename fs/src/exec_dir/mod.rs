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
pub mod line;
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

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

use line::Launchers;
use pin::{Pin, Pins};
use policies::Policies;
use runs::Runs;
use ticket::Tickets;

/// Set in the flags of an open by the kernel when it is about to run the file (FMODE_EXEC).
pub const FMODE_EXEC: i32 = 0x20;
/// The state of the exec directory of a mount.
#[derive(Default)]
pub struct ExecDir {
    /// What files are run by; none while they cannot be run.
    launchers: RwLock<Option<Launchers>>,
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
    /// From now on files are run by these.
    pub fn start(&self, launchers: Launchers) {
        *self.launchers.write() = Some(launchers);
    }

    /// From now on nothing is run, and what is about to be is refused. Records of runs that ended are written.
    pub fn stop(&self) {
        *self.launchers.write() = None;
        self.tickets.clear();
        if let Some(runs) = self.runs.get() {
            runs.settle();
        }
    }

    /// Everything before the ticket on the interpreter line that the process `caller` gets.
    pub(crate) fn line_start(&self, caller: u32) -> Option<Vec<u8>> {
        self.launchers.read().as_ref().map(|launchers| launchers.line(caller).to_vec())
    }

    /// The program that files are run by, where everybody has it.
    pub(crate) fn launcher(&self) -> Option<PathBuf> {
        self.launchers.read().as_ref().map(|launchers| launchers.everywhere().to_owned())
    }
}
