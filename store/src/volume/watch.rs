//! Looking after the directories: one that was removed or unmounted is noticed though its files are still open.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};

use crate::backing::BackingSet;
use crate::error::{Error, Result};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// One look in so many tries failed directories again.
const RETRY_LOOKS: u32 = 10;

/// A thread of its own: a directory that hangs holds up nothing but this.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(super) fn start(set: Arc<BackingSet>) -> Result<Self> {
        let (stop, stopped) = bounded::<()>(0);
        let thread = std::thread::Builder::new()
            .name("watcher".into())
            .spawn(move || {
                let mut looks = 0;
                while matches!(stopped.recv_timeout(PAUSE), Err(RecvTimeoutError::Timeout)) {
                    looks += 1;
                    set.look_for_markers(looks % RETRY_LOOKS == 0);
                }
            })
            .map_err(|source| Error::io("starting the thread that watches the directories", source))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop = None;
        // One that hangs in a directory is left behind; it holds nothing that anyone waits for.
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _ = thread.join();
        }
    }
}
