//! Talking to a running daemon: a socket in the state directory, and a registry of what is mounted.
//!
//! One JSON object a line. A request: `{"command": NAME, ...}`. Answers: any number of `{"progress": {...}}`, then
//! `{"done": ...}` or `{"failed": {"code": N, "message": TEXT}}`. Lengths are bounded at both ends; only the daemon's
//! own user and root are heard. Each family of commands has its own enum of requests in a module of its own.

mod client;
mod quota;
mod registry;
mod retention;
mod server;
#[cfg(test)]
mod tests;
mod versions;

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

pub use client::Client;
pub use quota::{NewLimit, QuotaRequest};
pub use registry::{Entry, Registration, find_mountpoint, find_volume, list, process_alive, start_time, supervisor_of};
pub use retention::{RetentionChange, RetentionRequest, answer_retention, rules_of};
pub use server::{Server, Service};
pub use versions::VersionsRequest;

use serde::{Deserialize, Serialize};

use crate::exec_dir::request::ExecRequest;

/// Name of the socket in a state directory.
pub const SOCKET_FILE: &str = "control.sock";

/// Longest request, bytes: two paths and a little.
const REQUEST_LEN_MAX: u64 = 64 << 10;
/// Longest answer line, bytes: a check that lists the most files it may, with the longest paths.
const ANSWER_LEN_MAX: u64 = 64 << 20;
/// Connections served at a time.
const CONNECTIONS_MAX: usize = 16;

/// What a daemon can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Everything `brine status` shows.
    Status,
    /// Make everything accepted so far durable.
    Sync,
    /// Read and verify.
    Check {
        /// Only at and below this path inside the volume.
        path: Option<PathBuf>,
        /// Write bad shards anew.
        repair: bool,
    },
    /// Rebuild what is missing or wrong.
    Heal,
    /// Give a lost directory's place to an empty one.
    Replace {
        /// Path of the lost one.
        old: PathBuf,
        /// Path of the empty one.
        new: PathBuf,
    },
    /// Free what nothing refers to.
    Gc {
        /// Only tell how much that is.
        dry_run: bool,
    },
    /// Which former states are kept.
    Retention {
        /// What of that.
        ask: RetentionRequest,
    },
    /// Salt epochs.
    Salt {
        /// What of them.
        ask: SaltRequest,
    },
    /// What takes the space.
    Usage {
        /// Of what is at and below this path inside the volume.
        path: Option<PathBuf>,
    },
    /// Functions and their runs.
    Exec {
        /// What of them.
        request: ExecRequest,
    },
    /// Unmount, and answer when everything is durable.
    Umount {
        /// Take it out of sight at once, and answer at once.
        lazy: bool,
    },
    /// Quotas of directories.
    Quota {
        /// What.
        ask: QuotaRequest,
    },
    /// Something about past states.
    Versions {
        /// What.
        ask: VersionsRequest,
    },
}

/// What can be asked about salt epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaltRequest {
    /// Which there are.
    Show,
    /// Begin a new one.
    Rotate,
    /// Seal what is of earlier ones anew.
    Reseal,
}

/// One line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Progress(Progress),
    Done(serde_json::Value),
    Failed(crate::exit_code::Failure),
}

/// How far a long command is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub phase: String,
    /// Bytes done of this phase.
    pub done_bytes: u64,
    /// Bytes of this phase, 0 while unknown.
    pub total_bytes: u64,
}

/// A line of at most `max` bytes; `None` at the end of the stream.
fn read_line(reader: &mut impl BufRead, max: u64) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.take(max).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line that is too long or not ended"));
    }
    String::from_utf8(line).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Call `act` with a name of the socket that fits into a socket address (108 bytes), however long `path` is.
pub(crate) fn with_short_name<R>(path: &Path, act: impl FnOnce(&Path) -> io::Result<R>) -> io::Result<R> {
    const ADDRESS_LEN_MAX: usize = 100;
    if path.as_os_str().len() <= ADDRESS_LEN_MAX {
        return act(path);
    }
    let directory = File::open(path.parent().unwrap_or(Path::new("/")))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    act(&short.join(path.file_name().unwrap_or_default()))
}
