//! The machine a run took place on.

use std::fs;
use std::process::Command;

use crate::failure::Result;
use crate::options::Options;
use crate::place::{Place, filesystem_of};
use crate::sides::{brine_program, gocryptfs_version};

/// What must be known to judge the figures.
pub struct Facts {
    pub processor: String,
    pub cores: usize,
    pub memory_mib: u64,
    pub kernel: String,
    /// Type and source, as in `ext4 on /dev/vda`.
    pub filesystem: String,
    pub load_before: String,
    /// What the programs say about themselves.
    pub programs: Vec<String>,
    /// Whether the page cache was emptied for cold reads.
    pub caches_dropped: bool,
}

impl Facts {
    /// To be called before the load that the run itself makes.
    pub fn gather(options: &Options, place: &Place) -> Result<Self> {
        let (kind, source) = filesystem_of(place.path())?;
        let brine = brine_program(options)?;
        let mut programs: Vec<String> = Vec::new();
        if options.has_side("brine") {
            programs.extend(brine_version(&brine));
        }
        if options.has_side("gocryptfs") {
            programs.extend(gocryptfs_version());
        }
        Ok(Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_string()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: field("/proc/meminfo", "MemTotal")
                .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib >> 10),
            kernel: read("/proc/sys/kernel/osrelease"),
            filesystem: format!("{kind} on {source}"),
            load_before: load(),
            programs,
            caches_dropped: place.can_drop_caches() && kind != "tmpfs",
        })
    }
}

/// Load averages over 1, 5 and 15 minutes.
pub fn load() -> String {
    read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

fn brine_version(program: &std::path::Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_string()).unwrap_or_default()
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim().to_string())
}
