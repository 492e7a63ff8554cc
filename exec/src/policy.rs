//! What a function may be granted, set by its owner or root; a row of the metadata.

use std::time::Duration;

use crate::scope::Scope;

/// Network of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// None at all.
    #[default]
    None,
    /// The host's.
    Host,
}

/// Limits of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Processor, thousandths of a core.
    pub cpu_milli: u32,
    /// Processes and threads.
    pub pids: u32,
    /// Wall-clock time.
    pub wall: Duration,
    /// Private scratch space, bytes.
    pub scratch_bytes: u64,
}

/// The policy of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Paths granted beside the function itself.
    pub scope: Scope,
    /// Network.
    pub network: Network,
    /// Limits.
    pub limits: Limits,
    /// Names of environment variables passed on.
    pub environment: Vec<String>,
    /// Runs at one time at most.
    pub concurrency: u32,
}
