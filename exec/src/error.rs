//! The one error type of this crate. Messages name what failed and the next step; never arguments or environment.

use std::io;
use std::path::PathBuf;

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a run could not be started, or why sandboxes cannot be had at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request is against the rules: exit code 126.
    #[error("{0}")]
    Refused(String),
    /// The program, its interpreter or a granted path does not exist: exit code 127.
    #[error("{}: not found", .0.display())]
    NotFound(PathBuf),
    /// The ledger is promised out and the queue is full or the wait was too long: exit code 126.
    #[error("no room for this run: {0}; try again when other runs have ended, or see `brine exec ps`")]
    Full(&'static str),
    /// A limit was asked for that this machine cannot enforce: exit code 126.
    #[error("this machine cannot enforce {what}; see `brine doctor`, or let the policy say best effort")]
    Unenforceable {
        /// Which limit.
        what: &'static str,
    },
    /// A step of building the sandbox failed: exit code 125.
    #[error("building the sandbox failed at {step}: {source}")]
    Step {
        /// Which step.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What a process of a sandbox said that failed; exit code as it says.
    #[error("{text}")]
    Sandbox {
        /// 125, 126 or 127.
        code: u8,
        /// What was done to what, and what the system said.
        text: String,
    },
    /// The spawner is gone: exit code 125. It is started again for the next run.
    #[error("the sandbox spawner ended; try again")]
    SpawnerLost,
    /// What came over a socket is not what the protocol says.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// Sandboxes are being shut down, because the volume was unmounted.
    #[error("the volume is being unmounted")]
    Stopping,
}

impl Error {
    /// `step` failed with what the last system call said.
    pub(crate) fn step(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Step { step, source }
    }

    /// The exit code a launcher ends with: 125 sandbox failed, 126 refused, 127 not found.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Full(_) | Self::Unenforceable { .. } | Self::Malformed(_) => 126,
            Self::NotFound(_) => 127,
            Self::Sandbox { code, .. } => *code,
            Self::Step { .. } | Self::SpawnerLost | Self::Stopping => 125,
        }
    }
}
