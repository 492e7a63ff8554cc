//! A member's I/O threads: few, started when needed, gone when idle, fed by bounded queues.
//!
//! A directory that hangs keeps the threads it has and nobody else's. Nothing here waits for a thread: dropping the
//! pool drops what is queued and lets hung threads end whenever their call returns.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long a thread watches for the job that is about to follow, before it sleeps: waking it would cost a commit more.
const WATCH: Duration = Duration::from_micros(50);

/// An idle thread ends after this long.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// I/O calls nest little; the default of 2 MiB for each of up to 4 threads a member would be waste.
const STACK_BYTES: usize = 256 << 10;

type Job = Box<dyn FnOnce() + Send>;
type Jobs = VecDeque<(Job, Queue)>;

/// Which queue a job waits in. Each has its own bound, so that readers cannot have a commit refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Someone's generation waits for it: served first.
    Commit,
    /// As `Commit`, and when it is done another is about to follow.
    CommitStep,
    /// Reads, which have substitutes.
    Read,
}

/// Why a job was not taken: so many are queued already, or no thread could be started.
#[derive(Debug)]
pub(super) struct Refused;

pub(super) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Jobs queued, for who does not hold the lock.
    queued: AtomicUsize,
    wake: Condvar,
    threads_max: usize,
    name: String,
}

#[derive(Default)]
struct State {
    commits: Jobs,
    reads: Jobs,
    threads: usize,
    idle: usize,
    /// Threads that are about to look for a job by themselves.
    watching: usize,
    closed: bool,
}

impl State {
    fn queue(&mut self, queue: Queue) -> &mut Jobs {
        match queue {
            Queue::Commit | Queue::CommitStep => &mut self.commits,
            Queue::Read => &mut self.reads,
        }
    }

    fn queued(&self) -> usize {
        self.commits.len() + self.reads.len()
    }

    fn next(&mut self) -> Option<(Job, Queue)> {
        self.commits.pop_front().or_else(|| self.reads.pop_front())
    }

    /// All that is queued; dropping the jobs, outside the lock, tells those who wait for them.
    fn take_all(&mut self) -> (Jobs, Jobs) {
        (std::mem::take(&mut self.commits), std::mem::take(&mut self.reads))
    }
}

impl Pool {
    pub(super) fn new(name: String, threads_max: usize) -> Self {
        let (state, queued, wake) = (Mutex::default(), AtomicUsize::new(0), Condvar::new());
        Self { shared: Arc::new(Shared { state, queued, wake, threads_max, name }) }
    }

    /// Whether a job would be begun without waking a thread.
    pub(super) fn is_watching(&self) -> bool {
        self.shared.state.lock().watching > 0
    }

    /// Queue a job unless `queue_max` are in that queue already.
    pub(super) fn submit(&self, queue: Queue, queue_max: usize, job: Job) -> Result<(), Refused> {
        let mut state = self.shared.state.lock();
        if state.queue(queue).len() >= queue_max {
            return Err(Refused);
        }
        state.queue(queue).push_back((job, queue));
        self.shared.note(&state);
        if state.queued() <= state.watching {
            return Ok(());
        }
        if state.queued() <= state.idle + state.watching || state.threads >= self.shared.threads_max {
            drop(state);
            self.shared.wake.notify_one();
            return Ok(());
        }
        state.threads += 1;
        drop(state);
        let shared = self.shared.clone();
        let started = thread::Builder::new().name(self.shared.name.clone()).stack_size(STACK_BYTES).spawn(move || {
            shared.work();
        });
        if started.is_err() {
            let mut state = self.shared.state.lock();
            state.threads -= 1;
            if state.threads == 0 {
                // Nobody is left to run what is queued.
                let orphans = state.take_all();
                self.shared.note(&state);
                drop(state);
                drop(orphans);
                return Err(Refused);
            }
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        let orphans = state.take_all();
        drop(state);
        drop(orphans);
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some((job, queue)) = state.next() {
                self.note(&state);
                drop(state);
                // A panic in a job is that job's failure (its waiter sees the channel close), not this pool's.
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.state.lock();
                if queue == Queue::CommitStep && state.queued() == 0 {
                    state.watching += 1;
                    drop(state);
                    self.watch();
                    state = self.state.lock();
                    state.watching -= 1;
                }
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let timed_out = self.wake.wait_for(&mut state, IDLE_MAX).timed_out();
            state.idle -= 1;
            if timed_out && state.queued() == 0 {
                break;
            }
        }
        state.threads -= 1;
    }

    /// Tell those who watch how much is queued.
    fn note(&self, state: &State) {
        self.queued.store(state.queued(), Ordering::Release);
    }

    /// Return when something is queued, or after [`WATCH`].
    fn watch(&self) {
        let since = Instant::now();
        while self.queued.load(Ordering::Acquire) == 0 && since.elapsed() < WATCH {
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_hung_pool_refuses_rather_than_grows() {
        let pool = Pool::new("test".into(), 2);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (started, running) = mpsc::channel();
        let (done, finished) = mpsc::channel();
        for _ in 0..2 {
            let (gate, started) = (gate.clone(), started.clone());
            let job = move || {
                started.send(()).unwrap();
                let _ = gate.lock().recv();
            };
            pool.submit(Queue::Read, 3, Box::new(job)).unwrap();
            running.recv().unwrap();
        }
        for i in 0..3 {
            let done = done.clone();
            pool.submit(Queue::Read, 3, Box::new(move || done.send(i).unwrap())).unwrap();
        }
        assert!(pool.submit(Queue::Read, 3, Box::new(|| ())).is_err());
        // Readers do not keep a commit out.
        pool.submit(Queue::Commit, 3, Box::new(move || done.send(99).unwrap())).unwrap();
        drop(release);
        let mut got: Vec<i32> = (0..4).map(|_| finished.recv().unwrap()).collect();
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 99]);
    }

    #[test]
    fn a_panic_costs_only_its_job() {
        let pool = Pool::new("test".into(), 1);
        let (done, finished) = mpsc::channel();
        let lost = done.clone();
        pool.submit(Queue::Read, 9, Box::new(move || std::panic::resume_unwind(Box::new(lost)))).unwrap();
        pool.submit(Queue::Read, 9, Box::new(move || done.send(7).unwrap())).unwrap();
        assert_eq!(finished.recv().unwrap(), 7);
    }

    #[test]
    fn what_follows_a_step_is_done_whether_watched_for_or_not() {
        let pool = Pool::new("test".into(), 1);
        let (done, finished) = mpsc::channel();
        for i in 0..200 {
            let done = done.clone();
            pool.submit(Queue::CommitStep, 9, Box::new(move || done.send(i).unwrap())).unwrap();
            assert_eq!(finished.recv().unwrap(), i);
            if i % 50 == 0 {
                // Long enough for it to have fallen asleep.
                while pool.is_watching() {
                    thread::yield_now();
                }
            }
        }
    }
}
