//! State directories: where a volume's is, whose one is, and where none may lie.
//!
//! Promises: the directory of another volume is never taken. Knows nothing of the database in it, and takes no lock.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::backing::is_network_fs;
use crate::error::{Error, Result};
use crate::ids::VolumeId;
use crate::superblock::Superblock;

/// Name of the file in a state directory that tells without a key whose it is.
const OWNER_FILE: &str = "volume";

/// The state directory: as asked, else where the last writer had it, else the default.
pub(super) fn state_dir_of(asked: Option<&Path>, superblock: &Superblock) -> PathBuf {
    match asked {
        Some(path) => path.to_owned(),
        None if superblock.state_dir.is_empty() => default_state_dir(superblock.volume),
        None => OsStr::from_bytes(&superblock.state_dir).into(),
    }
}

/// Where a volume's metadata database lies if nobody says otherwise: `/var/lib/brine/ID` for root, else
/// `$XDG_STATE_HOME/brine/ID` or `~/.local/state/brine/ID`.
pub fn default_state_dir(volume: VolumeId) -> PathBuf {
    let base = if nix::unistd::geteuid().is_root() {
        PathBuf::from("/var/lib/brine")
    } else {
        let state_home = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| PathBuf::from("/"));
        state_home.unwrap_or_else(|| home.join(".local/state")).join("brine")
    };
    base.join(volume.to_string())
}

/// The state directory at a path, made if there is none, as this volume's. Its canonical path.
pub(super) fn make_state_dir(path: &Path, volume: VolumeId) -> Result<PathBuf> {
    make(path)?;
    claim_state_dir(path, volume)?;
    canonical(path)
}

/// A state directory at a path for a volume to come: empty, and nobody's yet. Its canonical path.
pub(super) fn make_empty_state_dir(path: &Path) -> Result<PathBuf> {
    make(path)?;
    let mut entries = std::fs::read_dir(path).map_err(|source| Error::io(path.display().to_string(), source))?;
    if entries.next().is_some() {
        return Err(Error::Refused(format!(
            "the state directory {} is not empty; give another with --state-dir",
            path.display()
        )));
    }
    canonical(path)
}

fn make(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::io(format!("making the state directory {}", path.display()), source))?;
    refuse_network(path)
}

fn canonical(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|source| Error::io(format!("state directory {}", path.display()), source))
}

/// Refuse a state directory of another volume. `Ok(false)`: it does not say whose it is.
///
/// # Errors
/// [`Error::Refused`]; [`Error::Io`] if it cannot be read.
pub fn check_state_dir(path: &Path, volume: VolumeId) -> Result<bool> {
    let file = path.join(OWNER_FILE);
    match std::fs::read_to_string(&file) {
        Ok(text) if text.trim() == volume.to_string() => Ok(true),
        Ok(text) => Err(Error::Refused(format!(
            "the state directory {} belongs to volume {}, not to {volume}; name another with -o state=",
            path.display(),
            text.trim()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::io(format!("reading {}", file.display()), source)),
    }
}

/// Make an unowned state directory this volume's.
pub(super) fn claim_state_dir(path: &Path, volume: VolumeId) -> Result<()> {
    if check_state_dir(path, volume)? {
        return Ok(());
    }
    let file = path.join(OWNER_FILE);
    let write = || {
        let mut owner = std::fs::File::create(&file)?;
        owner.write_all(format!("{volume}\n").as_bytes())?;
        owner.sync_all()?;
        std::fs::File::open(path)?.sync_all()
    };
    write().map_err(|source| Error::io(format!("writing {}", file.display()), source))
}

/// SQLite's locks and syncs cannot be trusted on network filesystems.
fn refuse_network(path: &Path) -> Result<()> {
    match is_network_fs(path) {
        Ok(None) => Ok(()),
        Ok(Some(kind)) => Err(Error::Refused(format!(
            "the state directory {} is on a network filesystem ({kind}), on which a database is not safe; \
             name one on a local disk (-o state= or --state-dir)",
            path.display()
        ))),
        Err(source) => Err(Error::io(format!("looking at {}", path.display()), source)),
    }
}
