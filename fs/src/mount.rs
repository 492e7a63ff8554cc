//! Mounting: from a source, a mountpoint and options to a daemon that serves.
//!
//! Three processes: the command, which prepares everything, waits and tells; the supervisor, which starts the daemon
//! again if it dies; the daemon. Each is started by executing this program anew, before any thread exists. What they
//! need, the secret included, is passed in a memory file as standard input; how it went comes back through a pipe as
//! standard output.

mod busy;
mod daemon;
mod exec_side;
mod launch;
mod plan;
mod point;
mod process;
mod quota;
mod service;
mod supervisor;
mod versions;
mod watch;

pub use busy::users_of;
pub use daemon::{run_foreground, serve_command};
pub use launch::{Mounted, launch};
pub use plan::{Plan, Secret};
pub use point::{Mountpoint, check_overlap, prepare, wait_for_supervisor};
pub use process::harden;
pub use supervisor::supervise_command;
