//! What the filesystem sees: it decides through [`Host`], and is told what became of it.

use std::os::fd::OwnedFd;

use crate::error::{Error, Result};
use crate::invocation::Caller;
use crate::plan::Plan;
use crate::protocol::Request;
use crate::run_record::{Outcome, RunId};

/// A run the host agreed to.
#[derive(Debug)]
pub struct Admitted {
    /// What to do.
    pub plan: Plan,
    /// The credential's inner end (X12): descriptor 3 of the program.
    pub credential: Option<OwnedFd>,
}

/// Who decides what is run, and keeps the records. Called on threads of the service, one a run; may block.
pub trait Host: Send + Sync + 'static {
    /// A launcher asks. `function` is an O_PATH descriptor sent instead of a ticket (`brine exec run`). The caller's
    /// identity is what the kernel says about the socket's other end.
    ///
    /// # Errors
    /// Why not; [`Error::exit_code`] and the message are what the launcher ends with. [`Self::refused`] follows.
    fn admit(&self, id: RunId, request: Request, function: Option<OwnedFd>, caller: &Caller) -> Result<Admitted>;

    /// The run was not started: refused by [`Self::admit`], no room, or its sandbox could not be made.
    fn refused(&self, id: RunId, caller: &Caller, why: &Error);

    /// The program has been started.
    fn started(&self, id: RunId);

    /// The run ended and nothing of it is left. Called before its launcher hears: revoke, publish, record here; what is
    /// changed in `outcome` (verdict, cause, line) is what the launcher is told.
    fn ended(&self, outcome: &mut Outcome);
}
