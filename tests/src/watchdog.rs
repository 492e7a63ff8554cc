//! Ends a test that hangs: when a volume outlives its deadline, its daemon is killed and its mountpoint detached, so
//! that the blocked system call returns ENOTCONN and the test fails with a place in the source instead of never.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::volume::Daemon;

/// Longest a volume may live in a test.
const LIFETIME: Duration = Duration::from_secs(120);

/// What to end.
#[derive(Default)]
struct Target {
    done: bool,
    daemon: Option<Daemon>,
}

/// Watches one volume until dropped.
pub(crate) struct Watchdog {
    target: Arc<(Mutex<Target>, Condvar)>,
}

impl Watchdog {
    /// Starts watching the volume mounted at `mountpoint`.
    pub(crate) fn new(name: &str, mountpoint: PathBuf, lifetime: Option<Duration>) -> Self {
        let target = Arc::new((Mutex::new(Target::default()), Condvar::new()));
        let (watched, name) = (target.clone(), name.to_owned());
        let deadline = Instant::now() + lifetime.unwrap_or(LIFETIME);
        std::thread::spawn(move || {
            let (lock, changed) = &*watched;
            let mut target = lock.lock().expect("watchdog lock");
            while !target.done {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    eprintln!("watchdog: {name} took longer than its deadline; ending its daemon");
                    if let Some(daemon) = &target.daemon {
                        daemon.kill();
                    }
                    let _ = nix::mount::umount2(&mountpoint, nix::mount::MntFlags::MNT_DETACH);
                    return;
                }
                target = changed.wait_timeout(target, left).expect("watchdog lock").0;
            }
        });
        Self { target }
    }

    /// The daemon to end at the deadline.
    pub(crate) fn set_daemon(&self, daemon: Option<Daemon>) {
        self.target.0.lock().expect("watchdog lock").daemon = daemon;
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Ok(mut target) = self.target.0.lock() {
            target.done = true;
        }
        self.target.1.notify_all();
    }
}
