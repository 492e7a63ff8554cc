//! Notices that a mount is gone. The kernel does not say so to the daemon while namespaces of sandboxes hold copies of the
//! mount (X6), so the table of mounts is watched.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::mount_table;

/// The kernel reports changes of the table at once; this is for those it forgets, milliseconds.
const LOOK_MS: u16 = 500;

/// A thread that watches; ended when dropped.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Call `gone` once when what is mounted at `mountpoint` with this device number is not there any more, and `tick`
    /// about twice a second until then.
    ///
    /// # Errors
    /// The table cannot be read, or no thread started.
    pub(super) fn start(
        mountpoint: &Path,
        device: &str,
        mut tick: impl FnMut() + Send + 'static,
        gone: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let table = File::open("/proc/self/mountinfo")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (mountpoint, device) = (mountpoint.to_owned(), device.to_owned());
        let thread = std::thread::Builder::new().name("brine-watch".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut files = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
                let _ = poll(&mut files, PollTimeout::from(LOOK_MS));
                let there = mount_table::all()
                    .map(|mounts| mounts.iter().any(|mount| mount.point == mountpoint && mount.device == device));
                // A table that cannot be read says nothing.
                if matches!(there, Ok(false)) {
                    return gone();
                }
                tick();
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mounted_is_noticed_once() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let watch = Watch::start(Path::new("/nowhere"), "0:1", || {}, move || sender.send(()).unwrap()).unwrap();
        receiver.recv().unwrap();
        assert!(receiver.recv().is_err(), "once");
        drop(watch);
        let mount = mount_table::holding(Path::new("/proc/self")).unwrap().unwrap();
        let (ticked, ticks) = std::sync::mpsc::channel();
        let tick = move || {
            let _ = ticked.send(());
        };
        let watch = Watch::start(&mount.point, &mount.device, tick, || panic!("it is there")).unwrap();
        ticks.recv().unwrap();
        drop(watch);
    }
}
