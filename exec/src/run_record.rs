//! What is kept of a run, and how a launcher ends for it.

use std::fmt;
use std::time::Duration;

use brine_store::ids::{Ino, Version};

/// Name of one run: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub [u8; 16]);

impl RunId {
    /// A new one.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the system has random numbers");
        Self(bytes)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunId({self})")
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// The program ended with this code.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
    /// It ran out of wall-clock time.
    TimedOut,
    /// It ran out of processor time.
    OutOfCpuTime,
    /// It ran out of memory.
    OutOfMemory,
    /// It had too many processes.
    OutOfPids,
    /// It ran out of scratch space and failed.
    OutOfScratch,
    /// It was ended from outside: `brine exec kill`, or its launcher died.
    Killed,
    /// It was not started: not allowed, or no room.
    Refused,
    /// The program, its interpreter or a granted path was not found.
    NotFound,
    /// Its sandbox could not be made or broke.
    SandboxFailed,
    /// Its staged outputs met changes made by others meanwhile.
    Conflict,
    /// The daemon ended before it did.
    Lost,
}

impl ExitCause {
    /// Stable word for records and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Exited(_) => "exited",
            Self::Signaled(_) => "signal",
            Self::TimedOut => "timeout",
            Self::OutOfCpuTime => "cpu-time",
            Self::OutOfMemory => "memory",
            Self::OutOfPids => "pids",
            Self::OutOfScratch => "scratch",
            Self::Killed => "killed",
            Self::Refused => "refused",
            Self::NotFound => "not-found",
            Self::SandboxFailed => "sandbox",
            Self::Conflict => "conflict",
            Self::Lost => "lost",
        }
    }
}

/// How a launcher ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With this exit code.
    Code(u8),
    /// By raising this signal.
    Signal(u8),
}

/// What a run used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Wall-clock time from the program's start to its end.
    pub wall: Duration,
    /// Processor time of all its processes, in user and system mode.
    pub cpu: Duration,
    /// Most memory at one time, bytes: the group's figure, or without a group the largest process.
    pub memory_peak_bytes: u64,
    /// Most processes at one time; 0 if the group cannot tell.
    pub pids_peak: u32,
    /// Scratch bytes in use at the end.
    pub scratch_bytes: u64,
    /// Scratch files in use at the end.
    pub scratch_files: u64,
    /// Bytes read from and written to block devices on its behalf.
    pub io_bytes: u64,
}

/// How far a run's request took to get to each step, from its acceptance on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Promised by the ledger.
    pub admitted: Duration,
    /// Had a sandbox.
    pub sandbox: Duration,
    /// The sandbox came from the pool.
    pub pooled: bool,
    /// The program's execve succeeded.
    pub started: Duration,
    /// The program had ended.
    pub ended: Duration,
    /// What it left was killed and reaped.
    pub gone: Duration,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Which run.
    pub id: RunId,
    /// Why it ended.
    pub cause: ExitCause,
    /// How its launcher ends.
    pub verdict: Verdict,
    /// A line for standard error, without `brine: `; brine's own failures always have one.
    pub line: Option<String>,
    /// What it used.
    pub usage: Usage,
    /// When what happened.
    pub steps: Steps,
    /// Digest of the state its sandbox started from (X8).
    pub template: [u8; 32],
}

/// One run as kept in the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// Which run.
    pub id: RunId,
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
    /// Digest of the state its sandbox started from (X8).
    pub template: [u8; 32],
}
