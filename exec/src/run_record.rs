//! What is kept of a run.

use std::time::Duration;

use brine_store::ids::{Ino, Version};

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// The program ended with this code.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
    /// It ran out of time.
    TimedOut,
    /// It ran out of memory.
    OutOfMemory,
    /// It had too many processes.
    OutOfPids,
    /// It ran out of scratch space.
    OutOfScratch,
    /// It was not started.
    Refused,
    /// The daemon ended before it did.
    Lost,
}

/// What a run used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Wall-clock time.
    pub wall: Duration,
    /// Processor time.
    pub cpu: Duration,
    /// Most memory at one time, bytes.
    pub memory_peak_bytes: u64,
    /// Bytes read and written through the volume.
    pub io_bytes: u64,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// Number of the run.
    pub id: u64,
    /// The function.
    pub function: Ino,
    /// Its version.
    pub version: Version,
    /// User that called.
    pub uid: u32,
    /// Start, nanoseconds since 1970.
    pub started_ns: i64,
    /// Why it ended.
    pub cause: ExitCause,
    /// What it used.
    pub usage: Usage,
}
