//! What a function may be granted, set by its owner or root; a row of the metadata.

use std::sync::OnceLock;
use std::time::Duration;

use crate::scope::Scope;

/// Network of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Network {
    /// None at all: an empty network namespace without even a loopback that is up.
    #[default]
    None,
    /// The host's.
    Host,
}

/// Limits of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory without scratch, bytes. Swap is never given.
    pub memory_bytes: u64,
    /// Processor, thousandths of a core.
    pub cpu_milli: u32,
    /// Processes and threads.
    pub pids: u32,
    /// Wall-clock time.
    pub wall: Duration,
    /// Processor time of all its processes together; none means as much as `wall` allows.
    pub cpu_time: Option<Duration>,
    /// Time between SIGTERM and SIGKILL when `wall` or `cpu_time` is over.
    pub grace: Duration,
    /// Private scratch space, bytes; part of the memory the group is allowed (X9).
    pub scratch_bytes: u64,
    /// Open descriptors of one process.
    pub open_files: u64,
    /// Largest file it may write, bytes.
    pub file_size_bytes: u64,
}

/// Part of the machine's memory that a run has unless its policy says otherwise: half a hundred of them fit.
const MEMORY_PART: u64 = 96;
/// It has at least and at most this much, bytes.
const MEMORY_BYTES: (u64, u64) = (128 << 20, 1 << 30);

/// Memory of this machine, bytes.
pub(crate) fn machine_memory_bytes() -> u64 {
    static BYTES: OnceLock<u64> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib: Option<u64> =
            text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
        kib.unwrap_or(1 << 20) * 1024
    })
}

/// What a run gets of a machine with this much memory: whole MiB.
fn memory_of(machine_bytes: u64) -> u64 {
    (machine_bytes / MEMORY_PART).clamp(MEMORY_BYTES.0, MEMORY_BYTES.1) >> 20 << 20
}

/// Least memory a sandbox is given: below it not even its own init fits.
pub const MEMORY_BYTES_MIN: u64 = 8 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: memory_of(machine_memory_bytes()),
            cpu_milli: 1000,
            pids: 256,
            wall: Duration::from_secs(60),
            cpu_time: None,
            grace: Duration::from_secs(2),
            scratch_bytes: 64 << 20,
            open_files: 1024,
            file_size_bytes: 1 << 40,
        }
    }
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
    /// Run even if a limit cannot be enforced on this machine.
    pub best_effort: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_run_follows_the_machine_within_bounds() {
        assert_eq!(memory_of(2 << 30), 128 << 20);
        assert_eq!(memory_of(24 << 30), 256 << 20);
        assert_eq!(memory_of(1 << 40), 1 << 30);
        let machine = machine_memory_bytes();
        assert!(machine >= 64 << 20 && Limits::default().memory_bytes == memory_of(machine));
        let capacity = crate::ledger::Capacity::of_this_machine().memory_bytes;
        assert!(machine < 14 << 30 || capacity / (Limits::default().memory_bytes + (64 << 20)) >= 50);
    }
}
