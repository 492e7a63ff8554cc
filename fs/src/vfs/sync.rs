//! Making changes durable: every second, and at once for who asks.
//!
//! One thread commits. Whoever asks while it does is answered by the next commit, all together: with one log to sync,
//! two commits at a time would only wait for each other.

use std::io;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use brine_store::gc::{GcOptions, GcReport};
use brine_store::ids::{Generation, Ino};
use parking_lot::{Condvar, Mutex};

use super::Vfs;
use crate::errno::{Errno, Outcome};
use crate::workers::MustFinish;

type Waiter = Box<dyn FnOnce(Outcome<()>) + Send>;

/// Who waits for a commit, and the thread that does it.
#[derive(Default)]
pub struct Committer {
    asked: Mutex<Asked>,
    wake: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Asked {
    waiters: Vec<Waiter>,
    /// When somebody asked last, and for which file.
    last: Option<(Instant, Option<Ino>)>,
    stop: bool,
}

impl Committer {
    /// Answer who waits, and end the thread.
    pub fn stop(&self) {
        self.asked.lock().stop = true;
        self.wake.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // It panics only with a bug in the store, which said so; what is dirty is put once more on closing.
            let _ = thread.join();
        }
    }
}

/// Start the thread that commits. It ends with its `Vfs`.
pub(super) fn start(vfs: &Arc<Vfs>) -> io::Result<()> {
    let weak = Arc::downgrade(vfs);
    let thread = thread::Builder::new().name("brine-commit".into()).spawn(move || run(&weak))?;
    *vfs.committer.thread.lock() = Some(thread);
    Ok(())
}

/// Most that a commit is put off so that writers who are about to ask, too, are answered by it.
const GATHER_MAX: Duration = Duration::from_millis(5);

/// If somebody asks this soon after an answer, somebody is taken to do so again: the database is written for several
/// commits together.
const FOLLOWED: Duration = Duration::from_millis(2);

/// Whoever asked since is taken to ask again.
const SYNCS_LATELY: Duration = Duration::from_millis(100);

fn run(vfs: &Weak<Vfs>) {
    let _finish = MustFinish;
    let mut last = Instant::now();
    // How many asked about the time of the last commit, and how long to wait for as many: those who were just answered
    // mostly ask again at once, and a commit costs the same for all of them as for the first to come.
    let (mut expected, mut patience) = (0, Duration::ZERO);
    // The last commit left the database to the next.
    let mut left_open = false;
    while let Some(vfs) = vfs.upgrade() {
        let interval = vfs.options.commit_interval;
        let followed;
        let (waiters, stop) = {
            let mut asked = vfs.committer.asked.lock();
            if asked.waiters.is_empty() && !asked.stop {
                // A wake-up too early or too late does no harm: at most an interval passes with nothing committed.
                let rest = interval.saturating_sub(last.elapsed());
                vfs.committer.wake.wait_for(&mut asked, if left_open { rest.min(FOLLOWED) } else { rest });
            }
            followed = !asked.waiters.is_empty() && last.elapsed() < FOLLOWED;
            let until = Instant::now() + patience;
            while !asked.waiters.is_empty() && asked.waiters.len() < expected && !asked.stop {
                if vfs.committer.wake.wait_until(&mut asked, until).timed_out() {
                    break;
                }
            }
            (std::mem::take(&mut asked.waiters), asked.stop)
        };
        if !waiters.is_empty() || last.elapsed() >= interval {
            let begun = Instant::now();
            let outcome = vfs.commit(followed);
            left_open = followed;
            last = Instant::now();
            expected = waiters.len() + vfs.committer.asked.lock().waiters.len();
            patience = (last.duration_since(begun) / 2).min(GATHER_MAX);
            waiters.into_iter().for_each(|waiter| waiter(outcome));
        } else if std::mem::take(&mut left_open) {
            vfs.volume.settle_database();
        }
        if stop {
            return;
        }
    }
}

impl Vfs {
    /// Make everything accepted so far durable, if anything is new since the last commit. Waits for disks.
    /// `followed` if the next to ask is about to come.
    fn commit(&self, followed: bool) -> Outcome<()> {
        // What goes on behind (retiring, gc, retention) changes the metadata, too.
        if !self.buffer.take_changed() && !self.volume.has_changes() {
            return Ok(());
        }
        let outcome = self.volume.commit_followed(&*self.buffer, followed);
        self.inodes.sweep();
        outcome.map(|_generation| ()).map_err(|error| {
            // Still to be made durable, and owed to every handle that wrote and asks for nothing.
            self.buffer.set_changed();
            let errno = Errno::from(&error);
            self.commit_errors.record(errno);
            (self.options.report)(&format!("commit: {error}"));
            errno
        })
    }

    /// Free what nothing refers to. Takes as long as it takes, with everybody else going on.
    ///
    /// # Errors
    /// Those of [`brine_store::volume::Volume::gc`].
    pub fn gc(&self, options: GcOptions, step: &dyn Fn(&str, u64, u64) -> bool) -> brine_store::Result<GcReport> {
        self.volume.gc(&*self.buffer, options, step)
    }

    /// Make everything accepted so far durable, and wait for it: for callers without an event thread.
    ///
    /// # Errors
    /// Why it is not.
    pub fn commit_now(&self) -> brine_store::Result<Generation> {
        let outcome = self.volume.commit(&*self.buffer);
        self.inodes.sweep();
        outcome
    }

    fn when_committed(&self, of: Option<Ino>, waiter: Waiter) {
        {
            let mut asked = self.committer.asked.lock();
            asked.waiters.push(waiter);
            asked.last = Some((Instant::now(), of));
        }
        self.committer.wake.notify_one();
    }

    /// Whether the last to ask for a commit did lately, and not for this file.
    pub(super) fn others_sync(&self, ino: Ino) -> bool {
        let last = self.committer.asked.lock().last;
        last.is_some_and(|(when, of)| of != Some(ino) && when.elapsed() < SYNCS_LATELY)
    }

    /// Answer when a file is durable, and with it everything accepted before: `answer` is called from another thread.
    pub fn sync_file(self: &Arc<Self>, handle: u64, answer: impl FnOnce(Outcome<()>) + Send + 'static) {
        if let Some(file) = self.control.file(handle) {
            return answer(file.map(|_| ()));
        }
        let file = match self.file(handle) {
            Ok(file) => file,
            Err(errno) => return answer(Err(errno)),
        };
        file.node.retry_now();
        let vfs = Arc::clone(self);
        self.when_committed(
            Some(file.node.ino),
            Box::new(move |outcome| {
                // A failed commit is told here and need not be told again; an error of the file itself comes first.
                let deferred = vfs.deferred_error(&file);
                answer(deferred.and(outcome));
            }),
        );
    }

    /// Answer when everything accepted so far is durable.
    pub fn sync_all(&self, answer: impl FnOnce(Outcome<()>) + Send + 'static) {
        self.when_committed(None, Box::new(answer));
    }
}
