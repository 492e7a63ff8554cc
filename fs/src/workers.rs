//! Threads that wait so that the event thread need not.
//!
//! A job owns all it needs, the reply to the kernel included. Queues are not bounded here: what fills them is bounded
//! by the requests the kernel has in flight and by the write buffer's limit.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Sender, unbounded};
use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads fed from one queue, first come first served. Without threads every job runs where it is given.
pub struct Pool {
    queue: Mutex<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// Start `threads` threads, named `name-N`.
    ///
    /// # Errors
    /// What the system says when it cannot start a thread.
    pub fn new(name: &str, threads: usize) -> io::Result<Self> {
        let (sender, receiver) = unbounded::<Job>();
        let mut started = Vec::new();
        for index in 0..threads {
            let receiver = receiver.clone();
            let thread = thread::Builder::new().name(format!("{name}-{index}"));
            started.push(thread.spawn(move || receiver.iter().for_each(run_caught))?);
        }
        Ok(Self { queue: Mutex::new((threads > 0).then_some(sender)), threads: Mutex::new(started) })
    }

    /// Run `job` on one of the threads; without any, and after [`Self::finish`], here and now.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let sender = self.queue.lock().clone();
        match sender {
            // A send fails only when all threads are gone; the job still runs.
            Some(sender) => {
                if let Err(refused) = sender.send(Box::new(job)) {
                    (refused.0)();
                }
            }
            None => job(),
        }
    }

    /// Take no more jobs, run those queued, and end the threads.
    pub fn finish(&self) {
        drop(self.queue.lock().take());
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // Jobs cannot end a thread, so joining cannot fail.
            let _ = thread.join();
        }
    }
}

/// A job that panics has dropped its reply, which answers EIO; its thread goes on.
fn run_caught(job: Job) {
    let _ = panic::catch_unwind(AssertUnwindSafe(job));
}

/// Ends the process if it is dropped by a panic: for work that leaves others waiting for ever if it is not finished. A
/// dead mount is found and mounted again; a hanging one is not.
pub struct MustFinish;

impl Drop for MustFinish {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("brine: a thread that others wait for has panicked (see above): ending, so that nothing hangs");
            std::process::abort();
        }
    }
}

/// Number of processors this process may use, at least 1. Asked once: finding out reads files of its control group.
pub fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// Call `work` for each of `0..count` from up to one thread a processor, the caller's among them, and wait for all.
pub fn for_each_parallel(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let drain = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            work(index);
        }
    };
    let helpers = processors().min(count).saturating_sub(1);
    if helpers == 0 {
        return drain();
    }
    thread::scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(drain);
        }
        drain();
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_job_runs_before_finish_returns_and_later_ones_run_in_place() {
        let sum = Arc::new(AtomicU64::new(0));
        let pool = Pool::new("test", 3).unwrap();
        for value in 0..100 {
            let sum = Arc::clone(&sum);
            pool.run(move || {
                sum.fetch_add(value, Ordering::Relaxed);
            });
        }
        pool.finish();
        assert_eq!(sum.load(Ordering::Relaxed), 4950);
        let later = Arc::clone(&sum);
        pool.run(move || later.store(1, Ordering::Relaxed));
        assert_eq!(sum.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn without_threads_a_job_is_done_when_it_was_given() {
        let done = Arc::new(AtomicU64::new(0));
        let job = Arc::clone(&done);
        Pool::new("test", 0).unwrap().run(move || job.store(1, Ordering::Relaxed));
        assert_eq!(done.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_job_that_panics_ends_no_thread() {
        let (sender, receiver) = unbounded();
        let pool = Pool::new("test", 1).unwrap();
        pool.run(|| panic!("asked for by a test"));
        pool.run(move || sender.send(7).unwrap());
        assert_eq!(receiver.recv(), Ok(7));
    }

    #[test]
    fn parallel_visits_each_index_once() {
        let seen: Vec<AtomicU64> = (0..57).map(|_| AtomicU64::new(0)).collect();
        for_each_parallel(seen.len(), |index| {
            seen[index].fetch_add(1, Ordering::Relaxed);
        });
        assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        for_each_parallel(0, |_| panic!("nothing to visit"));
    }
}
