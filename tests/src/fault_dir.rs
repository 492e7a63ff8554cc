//! A backing directory that hangs, fails or is slow on demand: a FUSE passthrough run by the test itself, on one
//! thread, so that one hanging request makes the whole directory hang, as a dead disk or server does.
//!
//! It can also lose power: what was not synced is then gone, in whole, in part or not at all, as the seed says.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};

use crate::random::Random;
use crate::volume::detach;

mod passthrough;
mod undo;

use passthrough::Passthrough;
use undo::UndoLog;

/// Longest hang: a process whose request was taken cannot even be killed before it is answered.
pub const HANG_MAX: Duration = Duration::from_secs(45);

/// What is wrong with the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every request waits until the fault is gone, or [`HANG_MAX`] is over.
    Hang,
    /// Reads of file data take this long.
    SlowReads(Duration),
    /// Reads of file data fail with EIO.
    ReadErrors,
    /// Writes of file data fail with EIO.
    WriteErrors,
    /// fsync fails with EIO.
    SyncErrors,
    /// fsync succeeds and syncs nothing, as disks do that lie: a power cut then takes it all.
    LyingSyncs,
    /// Writes and allocations fail with ENOSPC.
    NoSpace,
    /// Every request fails with EIO.
    AllErrors,
}

/// Shared by the test and the thread that answers.
struct Control {
    fault: Mutex<Fault>,
    changed: Condvar,
    undo: Mutex<Option<UndoLog>>,
}

impl Control {
    fn undo(&self) -> MutexGuard<'_, Option<UndoLog>> {
        self.undo.lock().expect("undo log lock")
    }
}

/// The mounted passthrough. Dropping it unmounts it.
pub struct FaultDir {
    mountpoint: PathBuf,
    below: PathBuf,
    control: Arc<Control>,
    session: Option<BackgroundSession>,
}

impl FaultDir {
    /// Mounts a passthrough at `root/name`, whose files lie in `root/name-below`.
    ///
    /// # Panics
    /// If it cannot be mounted.
    #[track_caller]
    pub fn new(root: &Path, name: &str) -> Self {
        let (mountpoint, below) = (root.join(name), root.join(format!("{name}-below")));
        std::fs::create_dir_all(&mountpoint).expect("create a mountpoint");
        std::fs::create_dir_all(&below).expect("create a directory");
        let control =
            Arc::new(Control { fault: Mutex::new(Fault::None), changed: Condvar::new(), undo: Mutex::new(None) });
        let mut config = Config::default();
        config.acl = SessionACL::Owner;
        config.mount_options = vec![MountOption::FSName("fault-dir".into()), MountOption::DefaultPermissions];
        let session = fuser::spawn_mount(Passthrough::new(below.clone(), control.clone()), &mountpoint, &config);
        let session = session.unwrap_or_else(|error| panic!("cannot mount {}: {error}", mountpoint.display()));
        Self { mountpoint, below, control, session: Some(session) }
    }

    /// The directory to give to brine.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// Where the files really lie: never hangs, never fails.
    pub fn below(&self) -> &Path {
        &self.below
    }

    /// Breaks or mends it.
    pub fn set(&self, fault: Fault) {
        *self.control.fault.lock().expect("fault lock") = fault;
        self.control.changed.notify_all();
    }

    /// From now on remembers what is not synced.
    pub fn record(&self) {
        *self.control.undo() = Some(UndoLog::new(self.below.with_extension("aside")));
    }

    /// Loses what is not synced since [`Self::record`]. Nobody may use the directory meanwhile. Keeps recording.
    ///
    /// # Panics
    /// If the files cannot be put back.
    #[track_caller]
    pub fn cut_power(&self, random: &mut Random) {
        let log = self.control.undo().take().expect("record was called");
        log.undo(random).unwrap_or_else(|error| panic!("cannot undo what {} lost: {error}", self.below.display()));
        self.record();
    }
}

impl Drop for FaultDir {
    fn drop(&mut self) {
        self.set(Fault::None);
        // Detaching first: a plain unmount would wait for whoever still has files open there.
        detach(&self.mountpoint);
        drop(self.session.take());
        let _ = std::fs::remove_dir_all(self.below.with_extension("aside"));
    }
}
