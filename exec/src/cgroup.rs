//! Control groups: one place that knows of version 1, version 2, both at once, and none.
//!
//! A [`Tree`] is where this daemon's groups go; a [`Group`] is one sandbox's. Limits are written before anything is in
//! the group. Names start with `brine-LABEL`, so that a later daemon of the same volume finds what a killed one left.
//!
//! What is tried on a real kernel and what on a recorded tree only: the tests name it. The reference machine has
//! version 1 controllers and a version 2 tree without controllers, in which birth, kill and emptiness work.

mod detect;
mod files;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use detect::{Backend, Places};
use files::{Number, open_directory, read_number, read_word, write};

use crate::error::{Error, Result};

/// How long a removed group is waited for: the kernel takes namespaces apart later.
const REMOVE_WAIT: Duration = Duration::from_secs(5);
/// Period of processor quotas.
const CPU_PERIOD_US: u64 = 100_000;
/// A group is asked to give back page cache before it goes if it holds more than this (X14)...
const RECLAIM_FROM_BYTES: u64 = 256 << 10;
/// ...and than each processor keeps charged ahead: the kernel's `MEMCG_CHARGE_BATCH` pages of 4 KiB. The group of a program
/// that left nothing is charged with some of these, and to look for what is not there takes 0.3 ms.
const CHARGED_AHEAD_BYTES: u64 = 64 * 4096;

/// What a group is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Memory, bytes; no swap on top.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Processor, thousandths of a core.
    pub cpu_milli: u32,
}

/// What a group used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupUsage {
    /// Most memory at one time, if the group can tell.
    pub memory_peak_bytes: Option<u64>,
    /// Most processes at one time, if the group can tell.
    pub pids_peak: Option<u32>,
    /// Processor time, if the group can tell.
    pub cpu: Option<Duration>,
    /// Processes killed because memory was out.
    pub oom_kills: u64,
    /// Forks refused because of the process limit.
    pub fork_failures: u64,
}

/// Where this daemon's groups go.
#[derive(Debug)]
pub struct Tree {
    places: Places,
    label: String,
}

/// One sandbox's group, in every hierarchy that is used. It is removed with [`Group::remove`].
#[derive(Debug)]
pub struct Group {
    places: Places,
    limits: Option<GroupLimits>,
    /// Most memory and most processes at one time.
    peaks: [Option<Number>; 2],
}

impl Tree {
    /// Find out what this machine has, and make the parent groups. `label` names the volume.
    ///
    /// # Errors
    /// What the system says about files that should be there.
    pub fn open(label: &str) -> io::Result<Self> {
        let mut places = detect::of_this_process()?;
        let name = format!("brine-{label}");
        places.go_below(&name);
        Ok(Self { places, label: label.to_owned() })
    }

    /// Which kind of tree it is.
    pub fn backend(&self) -> Backend {
        self.places.backend
    }

    /// What cannot be enforced here, by name; empty if everything can.
    pub fn missing(&self) -> Vec<&'static str> {
        let places = &self.places;
        [("memory", &places.memory), ("pids", &places.pids), ("cpus", &places.cpu)]
            .into_iter()
            .filter(|(_, place)| place.is_none())
            .map(|(name, _)| name)
            .collect()
    }

    /// Whether processes can be born in a group and killed by it.
    pub fn has_core(&self) -> bool {
        self.places.core.is_some()
    }

    /// The label given.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A new, empty group of this name with these limits.
    ///
    /// # Errors
    /// What the system says; nothing is left behind.
    pub fn make(&self, name: &str, limits: &GroupLimits) -> Result<Group> {
        let places = self.places.below(name);
        let mut group = Group::at(places);
        let made = group.create().and_then(|()| group.limit(limits));
        if let Err(source) = made {
            group.remove_now();
            return Err(Error::Step { step: "making its control group", source });
        }
        group.open_peaks();
        Ok(group)
    }

    /// Kill and remove every group below this tree: what a killed daemon left, or what is left at the end. Returns how
    /// many there were.
    pub fn sweep(&self) -> usize {
        let mut names = std::collections::BTreeSet::new();
        for place in self.places.all() {
            let Ok(entries) = fs::read_dir(place) else { continue };
            names.extend(entries.flatten().filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name()));
        }
        for name in &names {
            let group = Group::at(self.places.below(&name.to_string_lossy()));
            group.kill_all();
            group.remove();
        }
        names.len()
    }

    /// Remove the parent groups too. Call after [`Self::sweep`].
    pub fn remove(&self) {
        for place in self.places.all() {
            let _ = fs::remove_dir(place);
        }
    }
}

impl Group {
    fn at(places: Places) -> Self {
        Self { places, limits: None, peaks: [None, None] }
    }

    fn open_peaks(&mut self) {
        let memory = if self.places.backend == Backend::V2 { "memory.peak" } else { "memory.max_usage_in_bytes" };
        let open = |place: &Option<PathBuf>, name| place.as_ref().and_then(|place| Number::open(place, name));
        self.peaks = [open(&self.places.memory, memory), open(&self.places.pids, "pids.peak")];
    }

    fn create(&self) -> io::Result<()> {
        for place in self.places.all() {
            match fs::create_dir(place) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Hold it to `limits`. Cheap if they are those it has.
    ///
    /// # Errors
    /// What the system says.
    pub fn limit(&mut self, limits: &GroupLimits) -> io::Result<()> {
        if self.limits.as_ref() == Some(limits) {
            return Ok(());
        }
        let v2 = self.places.backend == Backend::V2;
        if let Some(memory) = &self.places.memory {
            let bytes = limits.memory_bytes.to_string();
            if v2 {
                write(memory, "memory.max", &bytes)?;
                // Without swap on the host the file may be missing; then there is nothing to limit.
                files::write_if_there(memory, "memory.swap.max", "0")?;
                write(memory, "memory.oom.group", "1")?;
            } else {
                // memory+swap may never be below memory: which of the two comes first depends on the direction.
                if write(memory, "memory.limit_in_bytes", &bytes).is_err() {
                    files::write_if_there(memory, "memory.memsw.limit_in_bytes", &bytes)?;
                    write(memory, "memory.limit_in_bytes", &bytes)?;
                }
                files::write_if_there(memory, "memory.memsw.limit_in_bytes", &bytes)?;
            }
        }
        if let Some(pids) = &self.places.pids {
            write(pids, "pids.max", &limits.pids.to_string())?;
        }
        if let Some(cpu) = &self.places.cpu {
            let quota = u64::from(limits.cpu_milli) * CPU_PERIOD_US / 1000;
            // The kernel's least quota is a millisecond.
            let quota = quota.max(1000);
            if v2 {
                write(cpu, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
            } else {
                write(cpu, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
                write(cpu, "cpu.cfs_quota_us", &quota.to_string())?;
            }
        }
        self.limits = Some(*limits);
        Ok(())
    }

    /// For a process to be born in: the version 2 group, if there is one.
    ///
    /// # Errors
    /// What the system says.
    pub fn birth(&self) -> io::Result<Option<OwnedFd>> {
        self.places.core.as_deref().map(open_directory).transpose()
    }

    /// `cgroup.procs` of the hierarchies nobody can be born in: a process is put there before it does anything.
    ///
    /// # Errors
    /// What the system says.
    pub fn entrances(&self) -> io::Result<Vec<OwnedFd>> {
        if self.places.backend == Backend::V2 {
            return Ok(Vec::new());
        }
        let places = [&self.places.memory, &self.places.pids, &self.places.cpu, &self.places.cpuacct];
        places.into_iter().flatten().map(|place| files::open_write(&place.join("cgroup.procs"))).collect()
    }

    /// Kill every process in it, at once.
    pub fn kill_all(&self) {
        if let Some(core) = &self.places.core
            && write(core, "cgroup.kill", "1").is_ok()
        {
            return;
        }
        // Without it: what is listed, until nothing is. Processes of a sandbox die with their init, which is listed.
        for place in self.places.all() {
            for _ in 0..100 {
                let Ok(list) = fs::read_to_string(place.join("cgroup.procs")) else { break };
                let pids: Vec<i32> = list.lines().filter_map(|line| line.parse().ok()).collect();
                if pids.is_empty() {
                    break;
                }
                for pid in pids {
                    let _ = crate::sys::kill(pid, libc::SIGKILL);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Whether no process is in it.
    pub fn is_empty(&self) -> bool {
        self.places.all().all(|place| fs::read_to_string(place.join("cgroup.procs")).is_ok_and(|list| list.is_empty()))
    }

    /// The most it used at one time, and nothing else: each file that is read costs a run some of its time.
    pub fn peaks(&self) -> GroupUsage {
        let [memory, pids] = self.peaks.each_ref().map(|peak| peak.as_ref().and_then(Number::read));
        let pids_peak = pids.and_then(|peak| u32::try_from(peak).ok());
        GroupUsage { memory_peak_bytes: memory, pids_peak, ..GroupUsage::default() }
    }

    /// What it used so far.
    pub fn usage(&self) -> GroupUsage {
        let v2 = self.places.backend == Backend::V2;
        let mut usage = self.peaks();
        if let Some(memory) = &self.places.memory {
            let events = if v2 { "memory.events" } else { "memory.oom_control" };
            usage.oom_kills = read_word(memory, events, "oom_kill").unwrap_or(0);
        }
        if let Some(pids) = &self.places.pids {
            usage.fork_failures = read_word(pids, "pids.events", "max").unwrap_or(0);
        }
        usage.cpu = if v2 {
            let core = self.places.core.as_ref();
            core.and_then(|core| read_word(core, "cpu.stat", "usage_usec")).map(Duration::from_micros)
        } else {
            let account = self.places.cpuacct.as_ref();
            account.and_then(|account| read_number(account, "cpuacct.usage")).map(Duration::from_nanos)
        };
        usage
    }

    /// Memory charged to it now, bytes.
    pub fn memory_bytes(&self) -> Option<u64> {
        let memory = self.places.memory.as_ref()?;
        let name = if self.places.backend == Backend::V2 { "memory.current" } else { "memory.usage_in_bytes" };
        read_number(memory, name)
    }

    /// Remove it: its page cache is given back first (X14), then the directories go, as soon as the kernel lets them.
    /// Returns false if something is still in it after [`REMOVE_WAIT`]; a sweep finds it then.
    pub fn remove(&self) -> bool {
        if let Some(memory) = &self.places.memory
            && self.memory_bytes().is_some_and(|bytes| bytes > reclaim_from())
        {
            // What a reclaim returns says nothing; what is left goes to the parent with the group.
            let _ = match self.places.backend {
                Backend::V2 => write(memory, "memory.reclaim", &u64::from(u32::MAX).to_string()),
                _ => write(memory, "memory.force_empty", "0"),
            };
        }
        let deadline = Instant::now() + REMOVE_WAIT;
        loop {
            if self.remove_now() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn remove_now(&self) -> bool {
        let mut all = true;
        for place in self.places.all() {
            let removed = fs::remove_dir(place);
            all &= removed.is_ok() || removed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        }
        all
    }

    /// Directories of this group, for reports.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.places.all().map(PathBuf::as_path)
    }
}

fn reclaim_from() -> u64 {
    static BYTES: OnceLock<u64> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        RECLAIM_FROM_BYTES + processors as u64 * CHARGED_AHEAD_BYTES
    })
}

#[cfg(test)]
mod tests;
