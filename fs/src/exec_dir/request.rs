//! What `brine exec` asks of a daemon, at the socket that everybody who may run functions can reach.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::policy::PolicyChange;

/// Name of that socket, beside the one launchers ask at.
pub const COMMAND_SOCKET: &str = "command.sock";

/// A request. Who asks is what the kernel says of the socket's other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum ExecRequest {
    /// Show or change the policy of a function.
    Policy {
        /// From the root of the volume.
        path: PathBuf,
        /// What to change; nothing: show.
        change: Option<Box<PolicyChange>>,
    },
    /// Runs that go on.
    Ps,
    /// End a run.
    Kill {
        /// Its name, or how it begins.
        run: String,
    },
    /// Publish the outputs that a run could not.
    Publish {
        /// Its name, or how it begins.
        run: String,
    },
    /// Records of runs, the newest first.
    Log {
        /// One run, by its name or how it begins.
        run: Option<String>,
        /// Records at most; an answer may have fewer, and none only if there are no more.
        max: u64,
        /// Those older than the run that began then, nanoseconds since 1970, and has this name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<(i64, String)>,
    },
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// User.
    pub uid: u32,
    /// Whether it is root or the user who mounted the volume.
    pub commands: bool,
}
