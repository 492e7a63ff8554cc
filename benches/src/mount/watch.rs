//! Memory and processor time of the daemons, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// Often enough to see a buffer that lives for a second, seldom enough to cost nothing.
const PERIOD: Duration = Duration::from_millis(100);

/// Memory of one side's daemons over the whole run, in bytes.
#[derive(Clone, Copy, Default)]
pub struct Peak {
    /// The greatest `VmHWM`: the kernel's own mark, misses nothing.
    pub high_water: u64,
    /// The greatest `VmRSS` sampled, and the mean of the samples.
    pub sampled: u64,
    sum: u64,
    samples: u64,
}

impl Peak {
    /// Mean of the samples; 0 without any.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.samples).unwrap_or(0)
    }
}

#[derive(Default)]
struct Watched {
    pids: BTreeMap<&'static str, u32>,
    peaks: BTreeMap<&'static str, Peak>,
}

/// Samples the memory of the daemons that are mounted now.
pub struct Watch {
    watched: Arc<Mutex<Watched>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to sample.
    pub fn new() -> Self {
        let watched = Arc::new(Mutex::new(Watched::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (watched, stop) = (Arc::clone(&watched), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    sample(&mut lock(&watched));
                    std::thread::sleep(PERIOD);
                }
            }
        });
        Self { watched, stop, thread: Some(thread) }
    }

    /// A handle by which a side tells its daemon's process.
    pub fn reporter(&self, side: &'static str) -> Reporter {
        Reporter { side, watched: Arc::clone(&self.watched) }
    }

    /// What was seen so far, by side.
    pub fn peaks(&self) -> BTreeMap<&'static str, Peak> {
        lock(&self.watched).peaks.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A sampler that panicked has printed why; its figures end there.
            let _ = thread.join();
        }
    }
}

/// Tells the watch which process serves a side.
pub struct Reporter {
    side: &'static str,
    watched: Arc<Mutex<Watched>>,
}

impl Reporter {
    /// The daemon runs as `pid` from now on.
    pub fn started(&self, pid: u32) {
        lock(&self.watched).pids.insert(self.side, pid);
    }

    /// The daemon is about to end: takes its last figures.
    pub fn ending(&self) {
        let mut watched = lock(&self.watched);
        sample(&mut watched);
        watched.pids.remove(self.side);
    }
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sample(watched: &mut Watched) {
    let Watched { pids, peaks } = watched;
    for (side, pid) in pids {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let peak = peaks.entry(side).or_default();
        if let Some(bytes) = kib_field(&status, "VmHWM:") {
            peak.high_water = peak.high_water.max(bytes);
        }
        if let Some(bytes) = kib_field(&status, "VmRSS:") {
            peak.sampled = peak.sampled.max(bytes);
            peak.sum += bytes;
            peak.samples += 1;
        }
    }
}

fn kib_field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Processor time a process has used, user and system, all threads; 0 if it is gone.
pub fn processor_time(pid: u32) -> Duration {
    let ticks_per_second = match sysconf(SysconfVar::CLK_TCK) {
        Ok(Some(ticks)) if ticks > 0 => ticks as f64,
        _ => return Duration::ZERO,
    };
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return Duration::ZERO };
    // The name may hold blanks and parentheses; fields are counted after the last one (proc_pid_stat(5): 14 and 15).
    let Some((_, fields)) = stat.rsplit_once(')') else { return Duration::ZERO };
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_secs_f64(ticks as f64 / ticks_per_second)
}
