//! Whether names came or went in a directory since somebody looked: inotify(7) in place of looking again.
//!
//! Only of filesystems whose names nobody but this machine changes. The kernel queues what happened before the call that
//! made it happen returns, so whoever asks afterwards hears of it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};

use crate::backing::FENCE_DIR;

/// Of the small files of a member directory and those of its fences.
pub(super) struct Watch {
    inotify: Option<Inotify>,
    /// Counted on from another number by each: a directory opened anew is never taken for one that did not change.
    changes: u64,
}

impl Default for Watch {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { inotify: None, changes: NEXT.fetch_add(1 << 40, Ordering::Relaxed) }
    }
}

impl Watch {
    /// Watch from now on, if that is not done yet and the system lets us: who asks is told `None` else.
    pub(super) fn begin(&mut self, dir: &OwnedFd) {
        if self.inotify.is_some() {
            return;
        }
        let names = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        let watching = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).and_then(|inotify| {
            // Through the descriptor: the path may lead elsewhere by now.
            let dir = format!("/proc/self/fd/{}", dir.as_raw_fd());
            inotify.add_watch(dir.as_str(), names)?;
            inotify.add_watch(format!("{dir}/{FENCE_DIR}").as_str(), names)?;
            Ok(inotify)
        });
        match watching {
            Ok(inotify) => {
                self.inotify = Some(inotify);
                // Whatever happened while nobody watched.
                self.changes += 1;
            }
            Err(errno) => log::debug!("inotify: {errno}; directories are looked at instead"),
        }
    }

    /// How often something changed since it was begun; `None` if that is not known.
    pub(super) fn changes(&mut self) -> Option<u64> {
        loop {
            match self.inotify.as_ref()?.read_events() {
                Ok(events) => {
                    self.changes += 1;
                    // A directory is gone, or its filesystem; or another one is that of the fences.
                    let gone = |event: &InotifyEvent| {
                        event.mask.contains(AddWatchFlags::IN_IGNORED)
                            || event.name.as_deref().is_some_and(|name| name == FENCE_DIR)
                    };
                    if events.iter().any(gone) {
                        self.inotify = None;
                    }
                }
                Err(Errno::EAGAIN) => return Some(self.changes),
                Err(Errno::EINTR) => {}
                Err(_) => self.inotify = None,
            }
        }
    }
}
