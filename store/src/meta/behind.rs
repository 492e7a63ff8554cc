//! Ending the transaction of a generation behind the back of who closed it.
//!
//! The log is what an answer waits for; the database only has to be done before somebody needs it again. Its writing
//! connection goes to a thread that commits, and whoever wants it next waits there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Sender, bounded};
use parking_lot::{ArcMutexGuard, Condvar, Mutex, RawMutex};

use super::txn::Core;

type Job = (ArcMutexGuard<RawMutex, Core>, bool);

/// The thread, and whether it is at it.
pub(super) struct Behind {
    shared: Arc<Shared>,
    thread: Option<(Sender<Job>, JoinHandle<()>)>,
}

#[derive(Default)]
struct Shared {
    busy: Mutex<bool>,
    done: Condvar,
}

impl Behind {
    pub(super) fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = bounded::<Job>(1);
        let served = shared.clone();
        let run = move || {
            for (mut core, restart_wal) in receiver {
                // A panic poisons nothing that is not poisoned already: whoever comes next finds no transaction.
                let ended = catch_unwind(AssertUnwindSafe(|| end(&mut core, restart_wal)));
                if ended.is_err() {
                    core.poison("committing it panicked");
                }
                // Before anybody else can have the connection, and be busy in turn.
                *served.busy.lock() = false;
                served.done.notify_all();
            }
        };
        let thread = thread::Builder::new().name("brine-rows".into()).spawn(run);
        Self { shared, thread: thread.ok().map(|thread| (sender, thread)) }
    }

    /// Have the transaction committed and the next begun. An error poisons the connection.
    pub(super) fn end(&self, mut core: ArcMutexGuard<RawMutex, Core>, restart_wal: bool) {
        let Some((sender, _)) = &self.thread else { return end(&mut core, restart_wal) };
        *self.shared.busy.lock() = true;
        if let Err(refused) = sender.send((core, restart_wal)) {
            // It ends by a panic only.
            let (mut core, restart_wal) = refused.0;
            end(&mut core, restart_wal);
            *self.shared.busy.lock() = false;
        }
    }

    /// Wait until what was closed before is in the file, for who reads it on another connection.
    pub(super) fn settle(&self) {
        self.shared.done.wait_while(&mut self.shared.busy.lock(), |busy| *busy);
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

fn end(core: &mut Core, restart_wal: bool) {
    // What fails here is told by every later call. The generation itself may be durable: the log has it.
    let _ = core.commit_and_begin(restart_wal);
    core.inodes.trim();
}
