//! One daemon a volume on one host: a lock in the state directory, released by the kernel however the holder ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};

/// Name of the lock file in a state directory.
pub const LOCK_FILE: &str = "lock";

/// The lock of one volume on this host. Dropping it releases it.
#[derive(Debug)]
pub struct LocalLock {
    _file: Flock<File>,
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| Error::io(format!("opening {}", path.display()), source))
}

impl LocalLock {
    /// Take the lock, and leave this process's number in it for whoever finds it taken.
    pub fn take(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join(LOCK_FILE);
        let file = open(&path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let wrote = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| writeln!(file, "{}", std::process::id()));
                wrote.map_err(|source| Error::io(format!("writing {}", path.display()), source))?;
                Ok(Self { _file: file })
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let who =
                    holder.trim().parse::<u32>().map_or_else(|_| String::new(), |pid| format!(" by process {pid}"));
                Err(Error::InUse(format!(
                    "the volume is in use{who} (lock {}); unmount it first: `brine status` shows where it is mounted. If that \
                     process is stuck, end it, or take the volume from it with a state directory of your own: \
                     -o take_over,state=DIR",
                    path.display()
                )))
            }
            Err((_, errno)) => Err(Error::io(format!("locking {}", path.display()), errno.into())),
        }
    }

    /// The process that holds the lock, if any does.
    pub fn holder(state_dir: &Path) -> Option<u32> {
        let mut file = File::open(state_dir.join(LOCK_FILE)).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => None,
            Err(_) => text.trim().parse().ok(),
        }
    }
}
