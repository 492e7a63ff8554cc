//! A member of the backing set: its directory, how it fares, and the threads that may wait for it.
//!
//! A member falls sick when one of its calls has been running for [`Limits::sick_after`], or 20 times its usual 99th
//! percentile if that is more. It is well again once nothing overdue is running and a call (a probe if need be)
//! completes in time. Health given from above (failed, missing, duplicate) is never changed by that.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use super::pool::{Pool, Queue, Refused};
use super::stats::{Counters, MemberStats};
use super::{Backing, Space};
use crate::ids::MemberId;

/// How a member fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Read and written.
    Healthy,
    /// Not there: neither read nor written.
    Missing {
        /// Why it counts as missing.
        reason: String,
    },
    /// Silent for long: read last, and not waited for by commits. It may recover by itself.
    Sick,
    /// A write or sync failed: read after the healthy ones, not written until it is restored.
    Failed {
        /// What failed.
        reason: String,
    },
    /// Two directories claim to be this member: neither is read or written.
    Duplicate,
}

/// Times and bounds of a member. The defaults are the design's; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A read is late after 3 times the member's 99th percentile, but not before this.
    pub hedge_after_min: Duration,
    /// However slow the member usually is, a read is late after this.
    pub hedge_after_max: Duration,
    /// A call that runs for this long makes the member sick, unless 20 times its 99th percentile is longer.
    pub sick_after: Duration,
    /// A read is given up after this, and without hedging a shard is replaced only then.
    pub read_patience: Duration,
    /// How old figures of room may be.
    pub room_age_max: Duration,
    /// Reads that may be queued, beyond those that run, and as many writes and syncs.
    pub queue_max: usize,
    /// Threads: calls that may run at once.
    pub threads_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hedge_after_min: Duration::from_millis(20),
            hedge_after_max: Duration::from_secs(2),
            sick_after: Duration::from_secs(2),
            read_patience: Duration::from_secs(30),
            room_age_max: Duration::from_millis(500),
            queue_max: 64,
            threads_max: 4,
        }
    }
}

/// A late read is this many times the usual 99th percentile.
const HEDGE_P99S: u32 = 3;
/// A sick member's call is this many times the usual 99th percentile.
const SICK_P99S: u32 = 20;

/// A member of the backing set.
pub struct Member {
    /// Its identity, from its superblock.
    pub id: MemberId,
    /// Another one after the directory was replaced.
    path: RwLock<Arc<Path>>,
    pub(super) room: Room,
    pub(super) limits: Limits,
    pub(super) counters: Counters,
    pool: Pool,
    /// One of its threads makes more ready to be written directly.
    pub(super) making_direct: AtomicBool,
    /// Never held across I/O.
    state: Mutex<State>,
}

/// What is known of the room in a directory.
#[derive(Default)]
pub(super) struct Room {
    pub(super) known: Mutex<KnownRoom>,
    /// The directory answered, in one way or another.
    pub(super) told: Condvar,
}

#[derive(Default)]
pub(super) struct KnownRoom {
    /// When it last told, and what.
    pub(super) last: Option<(Instant, Space)>,
    /// Why it did not tell when it was last asked.
    pub(super) error: Option<io::Error>,
    /// It was asked and has not answered.
    pub(super) asked: bool,
}

impl KnownRoom {
    pub(super) fn is_fresh(&self, limits: &Limits) -> bool {
        self.last.as_ref().is_some_and(|(taken, _)| taken.elapsed() < limits.room_age_max)
    }
}

struct State {
    health: Health,
    backing: Option<Arc<dyn Backing>>,
    running: Vec<(u64, CallKind, Instant)>,
    next_token: u64,
    probe_queued: bool,
}

/// What a call does, as far as its usual duration goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallKind {
    Read,
    Write,
    Sync,
    Probe,
}

/// A call that is running; ends when dropped.
pub(super) struct Running {
    member: Arc<Member>,
    token: u64,
    kind: CallKind,
    since: Instant,
}

impl Member {
    /// A member as found at mount. `path` is where it is or should be, for messages; `backing` is `None` if it is not
    /// there.
    pub fn new(id: MemberId, path: impl Into<PathBuf>, backing: Option<Arc<dyn Backing>>, health: Health) -> Self {
        Self::with_limits(id, path, backing, health, Limits::default())
    }

    /// As [`Member::new`] with other limits.
    pub fn with_limits(
        id: MemberId,
        path: impl Into<PathBuf>,
        backing: Option<Arc<dyn Backing>>,
        health: Health,
        limits: Limits,
    ) -> Self {
        let state = State { health, backing, running: Vec::new(), next_token: 0, probe_queued: false };
        // Thread names are cut to 15 bytes by the kernel.
        let name = format!("brine-io-{}", &id.to_string()[..6]);
        Self {
            id,
            path: RwLock::new(path.into().into()),
            room: Room::default(),
            limits,
            counters: Counters::default(),
            pool: Pool::new(name, limits.threads_max),
            making_direct: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    /// Its times and bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Where the directory is or should be.
    pub fn path(&self) -> Arc<Path> {
        self.path.read().clone()
    }

    /// The directory at `path` takes this member's place.
    pub fn replace(&self, path: PathBuf, backing: Arc<dyn Backing>) {
        *self.path.write() = path.into();
        self.room.known.lock().last = None;
        let old = {
            let mut state = self.state.lock();
            state.health = Health::Healthy;
            state.backing.replace(backing)
        };
        drop(old);
    }

    /// The directory, if there is one, whatever its health. For superblocks and fences; who uses it waits for it.
    pub fn backing(&self) -> Option<Arc<dyn Backing>> {
        self.state.lock().backing.clone()
    }

    /// How it fares now.
    pub fn health(self: &Arc<Self>) -> Health {
        self.fresh_state(|state| state.health.clone())
    }

    /// Whether it is healthy now: may be written and waited for.
    pub fn is_healthy(self: &Arc<Self>) -> bool {
        self.fresh_state(|state| state.health == Health::Healthy && state.backing.is_some())
    }

    /// What it did since it was opened.
    pub fn stats(&self) -> MemberStats {
        self.counters.snapshot()
    }

    /// A write or sync failed there: nothing more is written until [`Member::restore`].
    pub fn mark_failed(&self, reason: impl Into<String>) {
        self.state.lock().health = Health::Failed { reason: reason.into() };
    }

    /// It is gone. The directory is let go of, with its lock.
    pub fn mark_missing(&self, reason: impl Into<String>) {
        let old = {
            let mut state = self.state.lock();
            state.health = Health::Missing { reason: reason.into() };
            state.backing.take()
        };
        // Closing files of a directory that hangs may wait, so not here. If the job is refused (no thread could be
        // started) it is dropped here after all.
        let _ = self.pool.submit(Queue::Commit, usize::MAX, Box::new(move || drop(old)));
    }

    /// It is back, in `backing` if given, else where it was. Without either it stays missing: `false`.
    pub fn restore(&self, backing: Option<Arc<dyn Backing>>) -> bool {
        let mut state = self.state.lock();
        let old = match backing {
            Some(new) => state.backing.replace(new),
            None => None,
        };
        let back = state.backing.is_some();
        if back {
            state.health = Health::Healthy;
        }
        drop(state);
        drop(old);
        back
    }

    /// It did not answer in time. Recovers by itself, as in the head of this module.
    pub fn mark_sick(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.health == Health::Healthy {
            state.health = Health::Sick;
            self.queue_probe(state);
        }
    }

    /// The directory for reading, and how late to ask it: 0 healthy, 1 failed, 2 sick. `None`: not to be read.
    pub(super) fn readable(self: &Arc<Self>) -> Option<(Arc<dyn Backing>, u8)> {
        self.fresh_state(|state| {
            let turn = match state.health {
                Health::Healthy => 0,
                Health::Failed { .. } => 1,
                Health::Sick => 2,
                Health::Missing { .. } | Health::Duplicate => return None,
            };
            state.backing.clone().map(|backing| (backing, turn))
        })
    }

    /// The directory for writing, or why not.
    pub(super) fn writable(self: &Arc<Self>) -> io::Result<Arc<dyn Backing>> {
        let refuse = |kind, why: &str| Err(io::Error::new(kind, format!("{} {why}", self.path().display())));
        match (self.health(), self.backing()) {
            (Health::Healthy, Some(backing)) => Ok(backing),
            (Health::Sick, _) => refuse(io::ErrorKind::TimedOut, "does not answer; it rejoins when it does"),
            (Health::Failed { reason }, _) => refuse(io::ErrorKind::Other, &format!("failed before: {reason}")),
            (Health::Missing { reason }, _) => refuse(io::ErrorKind::NotFound, &format!("is missing: {reason}")),
            (Health::Healthy, None) => refuse(io::ErrorKind::NotFound, "is missing"),
            (Health::Duplicate, _) => {
                refuse(io::ErrorKind::Other, "shares its member id with another directory; name one by option")
            }
        }
    }

    /// When a read that started now is late.
    pub(super) fn hedge_after(&self) -> Duration {
        (self.counters.read_latency.p99() * HEDGE_P99S).clamp(self.limits.hedge_after_min, self.limits.hedge_after_max)
    }

    /// Run a read on one of the member's threads. A sick member gets no more than it has threads.
    pub(super) fn submit_read(&self, sick: bool, job: impl FnOnce() + Send + 'static) -> Result<(), Refused> {
        let queue_max = if sick { self.limits.threads_max } else { self.limits.queue_max };
        self.pool.submit(Queue::Read, queue_max, Box::new(job))
    }

    /// Run a write or sync on one of the member's threads.
    pub(super) fn submit_commit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Refused> {
        self.submit_in(Queue::Commit, job)
    }

    /// Run a write or sync on one of the member's threads. `queue` is none for reads.
    pub(super) fn submit_in(&self, queue: Queue, job: impl FnOnce() + Send + 'static) -> Result<(), Refused> {
        self.pool.submit(queue, self.limits.queue_max, Box::new(job))
    }

    /// Whether a call would be begun without waking a thread.
    pub(super) fn is_watching(&self) -> bool {
        self.pool.is_watching()
    }

    /// Tell that a call begins; it ends when the result is dropped.
    pub(super) fn begin(self: &Arc<Self>, kind: CallKind) -> Running {
        let since = Instant::now();
        let mut state = self.state.lock();
        let token = state.next_token;
        state.next_token += 1;
        state.running.push((token, kind, since));
        drop(state);
        Running { member: self.clone(), token, kind, since }
    }

    /// How long a write or sync may take before the member is sick.
    pub fn patience(&self) -> Duration {
        self.sick_after(CallKind::Write).max(self.sick_after(CallKind::Sync))
    }

    fn sick_after(&self, kind: CallKind) -> Duration {
        let usual = match kind {
            CallKind::Read => self.counters.read_latency.p99(),
            CallKind::Write => self.counters.write_latency.p99(),
            CallKind::Sync => self.counters.sync_latency.p99(),
            CallKind::Probe => Duration::ZERO,
        };
        self.limits.sick_after.max(usual * SICK_P99S)
    }

    fn has_overdue(&self, state: &State) -> bool {
        state.running.iter().any(|(_, kind, since)| since.elapsed() >= self.sick_after(*kind))
    }

    /// Look at the state after falling sick if that is due.
    fn fresh_state<T>(self: &Arc<Self>, look: impl FnOnce(&State) -> T) -> T {
        let mut state = self.state.lock();
        if state.health == Health::Healthy && self.has_overdue(&state) {
            state.health = Health::Sick;
        }
        look(&state)
    }

    fn end(self: &Arc<Self>, token: u64, kind: CallKind, since: Instant) {
        let took = since.elapsed();
        let in_time = took < self.sick_after(kind);
        match kind {
            CallKind::Read => self.counters.read_latency.record(took),
            CallKind::Write => self.counters.write_latency.record(took),
            CallKind::Sync => self.counters.sync_latency.record(took),
            CallKind::Probe => {}
        }
        let mut state = self.state.lock();
        state.running.retain(|(running, ..)| *running != token);
        if state.health == Health::Sick && !self.has_overdue(&state) {
            if in_time {
                state.health = Health::Healthy;
            } else {
                self.queue_probe(state);
            }
        }
    }

    /// Have a thread find out whether the directory answers again. Runs when a thread is free, that is not before
    /// one of those that hang returns.
    fn queue_probe(self: &Arc<Self>, mut state: parking_lot::MutexGuard<'_, State>) {
        if std::mem::replace(&mut state.probe_queued, true) {
            return;
        }
        drop(state);
        let member = self.clone();
        let probe = move || {
            let backing = {
                let mut state = member.state.lock();
                state.probe_queued = false;
                state.backing.clone()
            };
            if let Some(backing) = backing {
                let running = member.begin(CallKind::Probe);
                let _ = backing.space();
                drop(running);
            }
        };
        if self.pool.submit(Queue::Commit, usize::MAX, Box::new(probe)).is_err() {
            self.state.lock().probe_queued = false;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.member.end(self.token, self.kind, self.since);
    }
}
