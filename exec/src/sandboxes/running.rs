//! One run, watched until it is over, and why it ended.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Disposed;
use super::make::is_readable;
use crate::cgroup::GroupUsage;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::policy::Limits;
use crate::protocol::frame::{Frame, Kind, receive_frame};
use crate::run_record::{ExitCause, Outcome, RunId, Steps, Usage, Verdict};
use crate::sandbox::message::{EndedBy, Failure, Finished};
use crate::sys;

/// How often a run's group is looked at for what the kernel does not tell by itself.
const TICK: Duration = Duration::from_millis(100);
/// An init that was told to end its run, or whose time is over, has this long before it is ended from outside.
pub(super) const KILL_WAIT: Duration = Duration::from_secs(5);
/// So many refused forks are a bomb and not a program that met its limit once.
const FORK_FAILURES_MAX: u64 = 512;

/// A run that was begun. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    id: RunId,
    limits: Limits,
    template: [u8; 32],
    begun: Instant,
    steps: Steps,
    killed: Arc<AtomicBool>,
    sandbox: Disposed,
}

/// What is left of a run that is over: an empty sandbox, and what it was promised.
#[derive(Debug)]
pub struct Remains {
    _running: Running,
}

/// Why the daemon ended a run from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Memory,
    Pids,
    CpuTime,
    Wall,
    Order,
}

/// What is told of a run that goes on.
#[derive(Debug)]
pub enum Event {
    /// The socket of its credential: whoever connects there is in its sandbox, or got in there by other means.
    Listens(OwnedFd),
    /// The program runs, and has for a moment: of one that ended at once this is not told.
    Started,
}

impl Running {
    pub(super) fn new(
        id: RunId,
        plan: &Plan,
        sandbox: Disposed,
        killed: Arc<AtomicBool>,
        begun: Instant,
        steps: Steps,
    ) -> Self {
        let (limits, template) = (plan.limits, plan.template.digest());
        Self { id, limits, template, begun, steps, killed, sandbox }
    }

    /// Which run.
    pub fn id(&self) -> RunId {
        self.id
    }

    /// Process number of its init.
    pub fn init(&self) -> i32 {
        self.sandbox.get().pid
    }

    /// Wait until the program and all it started is gone. `tell` is called with what happens meanwhile. The sandbox is
    /// taken apart when what is left of it is dropped: whoever waits for the outcome may be told before.
    ///
    /// # Errors
    /// It could not be started, or its sandbox broke before it was.
    pub fn wait(mut self, mut tell: impl FnMut(Event)) -> Result<(Outcome, Remains)> {
        let finished = self.watch(&mut tell);
        self.steps.gone = self.begun.elapsed();
        let group = &self.sandbox.get().group;
        let usage = match &finished {
            // Its init has told the rest, and nothing else is asked of a program that succeeded.
            Ok((Some(report), None)) if report.status == 0 => group.peaks(),
            _ => group.usage(),
        };
        match finished {
            Ok((finished, by)) => {
                let outcome = self.outcome(finished, by, &usage);
                // It is not going on any more, whatever is left of it.
                self.sandbox.shared.active.lock().remove(&self.id);
                Ok((outcome, Remains { _running: self }))
            }
            Err(error) => Err(error),
        }
    }

    /// The init's report, if it could still make one, and what this side did to it.
    fn watch(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(Option<Finished>, Option<Ended>)> {
        let mut ended = None;
        let grace = self.limits.grace + KILL_WAIT;
        let mut last = self.begun.checked_add(self.limits.wall + grace);
        loop {
            match self.event() {
                Some(Some(Frame { kind: Kind::Listens, mut fds, .. })) => {
                    fds.pop().into_iter().for_each(|socket| tell(Event::Listens(socket)));
                    continue;
                }
                Some(Some(Frame { kind: Kind::Started, body, .. })) => {
                    self.started_at(body.try_into().map_or(u64::MAX, u64::from_le_bytes));
                    tell(Event::Started);
                    // Only now is the place it left in the pool filled: making a sandbox would have been in its way.
                    self.sandbox.shared.pool_changed.notify_all();
                    continue;
                }
                Some(Some(Frame { kind: Kind::Finished, body, .. })) => {
                    let finished = Finished::decode(&body)?;
                    if finished.started_ns > 0 {
                        self.started_at(finished.started_ns);
                    }
                    self.steps.ended = self.begun.elapsed();
                    return Ok((Some(finished), ended));
                }
                Some(Some(Frame { kind: Kind::Failed, body, .. })) => return Err(Failure::decode(&body)?.into()),
                Some(Some(_)) => return Err(Error::Malformed("an init's report")),
                // The init is gone without a word: killed, with everything in its namespace. Its socket closes before
                // that is done; its process ends only then.
                Some(None) => {
                    if !is_readable(&self.sandbox.get().pidfd, KILL_WAIT) {
                        log::warn!("run {}: some of its processes do not end", self.id);
                    }
                    self.steps.ended = self.begun.elapsed();
                    if ended.is_none() && self.steps.started.is_zero() && !self.killed.load(Ordering::SeqCst) {
                        let oom = self.sandbox.get().group.usage().oom_kills > 0;
                        let text = if oom {
                            "the run's memory is too small even to start it"
                        } else {
                            "the sandbox ended before the program started, or right after"
                        };
                        return Err(Error::Sandbox { code: 125, text: text.into() });
                    }
                    return Ok((None, ended));
                }
                None => {}
            }
            if ended.is_none() {
                ended = self.must_end();
                if ended.is_some() {
                    if ended == Some(Ended::Order) {
                        // Its init was told and ends it in order.
                        last = Instant::now().checked_add(KILL_WAIT);
                    } else {
                        self.sandbox.get().kill();
                    }
                }
            }
            if last.is_some_and(|last| Instant::now() >= last) {
                last = None;
                ended = ended.or(Some(Ended::Wall));
                self.sandbox.get().kill();
            }
        }
    }

    /// The program was started at this time, which is told when there is time for it.
    fn started_at(&mut self, at_ns: u64) {
        let ago = Duration::from_nanos(sys::monotonic_ns().saturating_sub(at_ns));
        self.steps.started = self.begun.elapsed().saturating_sub(ago);
    }

    /// One frame of the init, the end of its socket, or `None` after a tick.
    fn event(&self) -> Option<Option<Frame>> {
        let control = &self.sandbox.get().control;
        let timeout = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(control.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(receive_frame(control.as_ref()).ok().flatten()),
        }
    }

    /// What the kernel limits but does not end: half-killed programs, fork bombs, processor time.
    fn must_end(&self) -> Option<Ended> {
        if self.killed.load(Ordering::SeqCst) {
            return Some(Ended::Order);
        }
        let usage = self.sandbox.get().group.usage();
        if usage.oom_kills > 0 {
            // The kernel killed one process; the rest would limp on.
            return Some(Ended::Memory);
        }
        if usage.fork_failures > FORK_FAILURES_MAX {
            return Some(Ended::Pids);
        }
        let spent = usage.cpu.zip(self.limits.cpu_time);
        spent.is_some_and(|(cpu, limit)| cpu >= limit).then_some(Ended::CpuTime)
    }

    fn outcome(&self, finished: Option<Finished>, ended: Option<Ended>, group: &GroupUsage) -> Outcome {
        let report = finished.unwrap_or_default();
        let usage = Usage {
            wall: if finished.is_some() { report.wall } else { self.steps.ended.saturating_sub(self.steps.started) },
            cpu: if finished.is_some() { report.cpu } else { group.cpu.unwrap_or_default() },
            memory_peak_bytes: group.memory_peak_bytes.unwrap_or(report.resident_peak_bytes),
            pids_peak: group.pids_peak.unwrap_or(0),
            scratch_bytes: report.scratch_bytes,
            scratch_files: report.scratch_files,
            io_bytes: report.io_blocks * 512,
        };
        let (cause, verdict, line) = self.judge(finished.as_ref(), ended, group);
        Outcome { id: self.id, cause, verdict, line, usage, steps: self.steps, template: self.template }
    }

    fn judge(
        &self,
        finished: Option<&Finished>,
        ended: Option<Ended>,
        group: &GroupUsage,
    ) -> (ExitCause, Verdict, Option<String>) {
        const KILLED: Verdict = Verdict::Signal(libc::SIGKILL as u8);
        const TIMED_OUT: Verdict = Verdict::Code(124);
        let limits = &self.limits;
        let memory = || Some(format!("killed: it used more than its {} MiB of memory", limits.memory_bytes >> 20));
        let wall = || Some(format!("timed out after {} s", limits.wall.as_secs_f64()));
        let by = finished.map(|finished| finished.by).unwrap_or_default();
        match (ended, by) {
            (Some(Ended::Memory), _) => return (ExitCause::OutOfMemory, KILLED, memory()),
            (Some(Ended::Pids), _) => {
                let line = format!("killed: it kept starting processes beyond its limit of {}", limits.pids);
                return (ExitCause::OutOfPids, KILLED, Some(line));
            }
            (Some(Ended::CpuTime), _) => {
                let spent = limits.cpu_time.unwrap_or_default().as_secs_f64();
                return (ExitCause::OutOfCpuTime, TIMED_OUT, Some(format!("its {spent} s of processor time are over")));
            }
            (Some(Ended::Wall), _) | (None, EndedBy::Wall) => return (ExitCause::TimedOut, TIMED_OUT, wall()),
            (Some(Ended::Order), _) | (None, EndedBy::Order | EndedBy::Launcher) => {
                return (ExitCause::Killed, KILLED, Some("the run was killed".into()));
            }
            (None, EndedBy::Itself) => {}
        }
        let failed = finished.is_none_or(|finished| finished.status != 0);
        if failed && group.oom_kills > 0 {
            return (ExitCause::OutOfMemory, KILLED, memory());
        }
        let Some(finished) = finished else {
            if self.killed.load(Ordering::SeqCst) {
                return (ExitCause::Killed, KILLED, Some("the run was killed".into()));
            }
            let line = "the sandbox broke: its first process was killed from outside";
            return (ExitCause::SandboxFailed, Verdict::Code(125), Some(line.into()));
        };
        let (cause, verdict) = program(finished.status);
        // The program's own code passes unchanged; the line says what it met.
        if failed && group.fork_failures > 0 {
            let line = format!("the program failed after it met its limit of {} processes", limits.pids);
            return (ExitCause::OutOfPids, verdict, Some(line));
        }
        if failed && finished.scratch_full {
            let line = format!("the program failed with its {} MiB of scratch full", limits.scratch_bytes >> 20);
            return (ExitCause::OutOfScratch, verdict, Some(line));
        }
        (cause, verdict, None)
    }
}

/// How the program itself ended.
fn program(status: i32) -> (ExitCause, Verdict) {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        if signal == libc::SIGXCPU {
            return (ExitCause::OutOfCpuTime, Verdict::Code(124));
        }
        return (ExitCause::Signaled(signal), Verdict::Signal(signal as u8));
    }
    let code = libc::WEXITSTATUS(status);
    (ExitCause::Exited(code), Verdict::Code(code as u8))
}

impl Drop for Running {
    fn drop(&mut self) {
        self.sandbox.shared.active.lock().remove(&self.id);
    }
}
