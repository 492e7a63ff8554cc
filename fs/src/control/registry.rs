//! What is mounted on this host: a file a volume and mountpoint in a directory that only its user can read.
//!
//! Entries of processes that ended without taking theirs back are recognised by start time and removed.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use brine_store::ids::VolumeId;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::mount_table::{self, spellings};

/// Longest entry that is read, bytes.
const ENTRY_LEN_MAX: u64 = 64 << 10;

/// A mounted volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its identity, hexadecimal.
    pub volume: String,
    /// Its label.
    pub label: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The backing directory it was mounted by.
    pub source: PathBuf,
    /// Its daemon.
    pub pid: u32,
    /// When that started, in the kernel's ticks: tells it from a later process of the same number.
    pub start_time: u64,
    /// The process that starts it again if it dies.
    pub supervisor: Option<u32>,
    /// The control socket.
    pub socket: PathBuf,
    /// Device number of the mount, "major:minor", if it was found.
    #[serde(default)]
    pub device: Option<String>,
}

impl Entry {
    /// Whether it was unmounted, where its daemon is: that ends when the rest is durable and nobody has a file of it open.
    pub fn is_unmounted(&self) -> bool {
        let Some(device) = &self.device else { return false };
        let names = spellings(&self.mountpoint);
        match mount_table::seen_by(self.pid) {
            // A number alone may be that of a later mount, somewhere else.
            Ok(mounts) => !mounts.iter().any(|mount| mount.device == *device && names.contains(&mount.point)),
            // A process that ends is in no namespace any more.
            Err(error) => error.kind() != io::ErrorKind::PermissionDenied,
        }
    }

    /// Whether its daemon still runs.
    pub fn alive(&self) -> bool {
        process_alive(self.pid, self.start_time)
    }
}

/// When a process started, in ticks since boot; `None` if it has ended.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ended = matches!(*fields.first()?, "Z" | "X");
    if ended { None } else { fields.get(19)?.parse().ok() }
}

/// Whether the process that had this number and start time runs.
pub fn process_alive(pid: u32, started: u64) -> bool {
    start_time(pid) == Some(started)
}

/// An entry, taken back when dropped.
#[derive(Debug)]
pub struct Registration {
    file: PathBuf,
}

impl Registration {
    /// Make an entry known.
    ///
    /// # Errors
    /// What the system says; the directory must belong to this user alone.
    pub fn new(entry: &Entry) -> io::Result<Self> {
        let dir = own_dir();
        make_private(&dir)?;
        Self::new_in(&dir, entry)
    }

    pub(super) fn new_in(dir: &Path, entry: &Entry) -> io::Result<Self> {
        // One a mountpoint: while a volume is taken over, two daemons of this host have it.
        let mut hasher = DefaultHasher::new();
        entry.mountpoint.hash(&mut hasher);
        let file = dir.join(format!("{}-{:016x}.json", entry.volume, hasher.finish()));
        let temporary = dir.join(format!("{}.{}.tmp", entry.volume, entry.pid));
        fs::write(&temporary, serde_json::to_vec(entry)?)?;
        fs::rename(&temporary, &file)?;
        Ok(Self { file })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Readers recognise an entry that stays.
        let _ = fs::remove_file(&self.file);
    }
}

/// Where this user's mounts are registered.
fn own_dir() -> PathBuf {
    let uid = geteuid();
    if uid.is_root() {
        return "/run/brine".into();
    }
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    let runtime = given.filter(|path| path.is_dir()).or_else(|| usual.is_dir().then_some(usual));
    runtime.map_or_else(|| std::env::temp_dir().join(format!("brine-{uid}")), |path| path.join("brine"))
}

/// Entries of other users, for root. Believed only where the kernel says that this user has mounted something there:
/// else a user could speak for a mount of root's.
fn list_of_users() -> Vec<Entry> {
    let mounts = mount_table::all().unwrap_or_default();
    let users = fs::read_dir("/run/user").into_iter().flatten().flatten().map(|user| user.path().join("brine"));
    let mut entries = Vec::new();
    for dir in users.filter(|dir| is_private(dir)) {
        let Ok(owner) = fs::symlink_metadata(&dir).map(|meta| meta.uid()) else { continue };
        let theirs = |entry: &Entry| {
            let last = mounts.iter().rev().find(|mount| mount.point == entry.mountpoint);
            last.is_some_and(|mount| mount.is_brine() && mount.user == Some(owner))
        };
        entries.extend(list_in(&dir).into_iter().filter(theirs));
    }
    entries
}

fn make_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if is_private(dir) {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{} must belong to this user, with mode 700", dir.display()),
        ))
    }
}

/// A real directory of this user that nobody else can write to. Root also believes the owners of /run/user/UID.
fn is_private(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|meta| {
        let trusted = meta.uid() == geteuid().as_raw() || geteuid().is_root();
        meta.is_dir() && trusted && meta.mode() & 0o077 == 0
    })
}

/// All volumes mounted by this user; by anybody, for root.
pub fn list() -> Vec<Entry> {
    let own = own_dir();
    let mut entries = if is_private(&own) { list_in(&own) } else { Vec::new() };
    if geteuid().is_root() {
        entries.extend(list_of_users());
    }
    entries.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    entries
}

pub(super) fn list_in(dir: &Path) -> Vec<Entry> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    files
        .filter_map(|path| {
            let entry = read(&path)?;
            if entry.alive() {
                return Some(entry);
            }
            // A supervisor will start another, which makes its own entry.
            if entry.supervisor.is_none_or(|pid| start_time(pid).is_none()) {
                let _ = fs::remove_file(&path);
            }
            None
        })
        .collect()
}

fn read(path: &Path) -> Option<Entry> {
    let len = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?.len();
    if len > ENTRY_LEN_MAX {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The volume mounted at `point`.
pub fn find_mountpoint(point: &Path) -> Option<Entry> {
    let names = spellings(point);
    list().into_iter().find(|entry| names.contains(&entry.mountpoint))
}

/// Where a volume is mounted; by whom it was mounted last, if it was taken over.
pub fn find_volume(volume: VolumeId) -> Option<Entry> {
    let volume = volume.to_string();
    list().into_iter().filter(|entry| entry.volume == volume).max_by_key(|entry| entry.start_time)
}

/// The living supervisor of the volume last mounted at `point` by this user, its daemon alive or dead.
pub fn supervisor_of(point: &Path) -> Option<u32> {
    let names = spellings(point);
    let files = fs::read_dir(own_dir()).into_iter().flatten().flatten().filter_map(|file| read(&file.path()));
    let supervisors = files.filter(|entry| names.contains(&entry.mountpoint)).filter_map(|entry| entry.supervisor);
    // Its number may have been given to another process since.
    let is_ours = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "brine");
    supervisors.into_iter().find(|pid| start_time(*pid).is_some() && is_ours(pid))
}
