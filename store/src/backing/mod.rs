//! Directories that hold segment files: the seam below which bytes leave this program.
//!
//! Promises: a write is whole or an error; a sync that returns success found the file and the directory's marker
//! still in place (R9); names never lead outside the directory; a directory that hangs costs a reader time, never
//! its thread. Knows nothing of keys, records or superblocks: bytes at offsets of numbered files.
//!
//! [`DirBacking`] is the real thing, [`MemBacking`] the same in memory with exact power-cut semantics,
//! [`FaultyBacking`] wraps either and injects faults from a script. [`Directories`] says which of them a path leads to,
//! [`BackingSet`] puts members together.

mod access;
mod dir;
mod faulty;
mod mem;
mod member;
mod pool;
mod read;
mod ring;
mod set;
mod space;
mod stats;
mod sys;
mod through;

#[cfg(test)]
mod conformance;

use std::fs::File;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ids::SegmentId;

pub use dir::DirBacking;
pub use faulty::{Call, Fault, FaultyBacking, Gate, Rule};
pub use mem::MemBacking;
pub use member::{Health, Limits, Member};
pub use read::{Hedge, ReadFault, ReadOutcome, ReadPlan, ShardRead};
pub use ring::DIRECT_ALIGN;
pub use set::{BackingSet, ShardWrite, SharedBytes, SyncResult, Syncs, Wait};
pub use space::{Space, is_network_fs};
pub use stats::MemberStats;
pub use through::WriteThrough;

/// Writes of at least this length that are whole pages ([`DIRECT_ALIGN`]) may go past the page cache, bytes: they do where that
/// is possible and somebody syncs again and again.
pub const LONG_WRITE_MIN: u64 = 64 << 10;

/// Most bytes of a small file (superblock, fence): what a hostile directory can make a reader allocate.
pub const SMALL_FILE_LEN_MAX: usize = 1 << 20;

/// Names of the two alternating superblock copies. One of them must be there for a directory to count as a member's.
pub const MARKER_NAMES: [&str; 2] = ["superblock.0", "superblock.1"];

/// Directory of the fences in each member.
pub const FENCE_DIR: &str = "fence";

/// What a path of a backing directory leads to: the seam by which a whole volume is opened over something else than
/// real directories.
pub trait Directories: Send + Sync {
    /// The directory there. `NotFound` if there is none.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn Backing>>;

    /// The one path of a directory that may be named in several ways; the path itself if it leads nowhere.
    fn canonical(&self, path: &Path) -> PathBuf;

    /// How patient to be with them, and whether anything is done behind.
    fn pace(&self) -> Pace {
        Pace::default()
    }
}

/// What of a volume's doings depends on the clock of the machine. Proofs that compare outcomes have nothing do.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Times and bounds of its members.
    pub limits: Limits,
    /// Threads look after the directories, heal, fold and free behind. Without them a volume does what it is asked to only.
    pub background: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { limits: Limits::default(), background: true }
    }
}

impl Pace {
    /// Nobody is ever late, figures of room never old, and nothing is done behind: the same calls have the same outcome,
    /// however slow the machine is. Directories must not hang.
    pub fn steady() -> Self {
        const LONG: std::time::Duration = std::time::Duration::from_secs(3600);
        let limits = Limits {
            hedge_after_min: LONG,
            hedge_after_max: LONG,
            sick_after: LONG,
            read_patience: LONG,
            room_age_max: LONG,
            ..Limits::default()
        };
        Self { limits, background: false }
    }
}

/// Directories of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDirectories;

impl Directories for RealDirectories {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn Backing>> {
        Ok(Arc::new(DirBacking::open(path)?))
    }

    fn canonical(&self, path: &Path) -> PathBuf {
        std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
    }
}

/// How a record can be written past the page cache.
pub enum Direct {
    /// Not in this segment.
    Never,
    /// After [`Backing::make_direct`].
    NotYet,
    /// Through this file, with RWF_DSYNC or `flush`: nothing is allocated for it, and nobody else touches its pages.
    Ready {
        /// Open for direct writes.
        file: Arc<File>,
        /// What makes direct writes durable that are done; `None`: only each by itself is.
        flush: Option<DeviceFlush>,
        /// Little more can be written behind it in this way until [`Backing::make_direct`] is called again.
        scarce: bool,
    },
}

/// A flush of the cache of a device that several directories may lie on.
#[derive(Clone, Debug)]
pub struct DeviceFlush {
    /// Number of the device (`st_dev`).
    pub device: u64,
    /// A file that nobody writes to: an fdatasync(2) of it makes durable all direct writes to the device that were done
    /// before it began.
    pub file: Arc<File>,
}

/// What a direct write came to.
#[derive(Debug)]
pub enum DirectEnd {
    /// The record is durable, and file and marker are in place.
    Done,
    /// As a sync that failed ([`Backing::sync_segment`]).
    Failed(io::Error),
    /// This file cannot be written directly after all, and is not any more: the record is to be written and synced.
    Refused,
    /// The record is durable; whether file and marker are in place a sync will tell.
    Unsure,
}

/// One member directory.
///
/// Errors are the system's own (`raw_os_error` is kept where there is one), so the caller names directory and
/// operation around them. `NotFound` always means that the segment or file is not there.
pub trait Backing: Send + Sync {
    /// The directory's path, for messages only.
    fn describe(&self) -> PathBuf;

    /// Make the file of a new segment, durable by name when this returns (its content is not: that is
    /// [`Backing::sync_segment`]). `capacity` is the most bytes it will hold; space is preallocated in steps up to
    /// it. The file may be longer than what was written, by zeros. `AlreadyExists` if there is one: segment ids are never reused.
    fn create_segment(&self, id: SegmentId, capacity: u64) -> io::Result<()>;

    /// Write all of `bufs`, one after the other, at `offset`, or fail. After a failure any part may be written.
    fn write_at(&self, id: SegmentId, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()>;

    /// Read at `offset`; returns fewer bytes than asked only at the end of the file. Holes read as zeros.
    fn read_at(&self, id: SegmentId, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// As [`Backing::read_at`], but never waits for a device: `WouldBlock` when the bytes are not in memory, or when
    /// that cannot be told.
    fn read_cached(&self, id: SegmentId, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Ask for `len` bytes at `offset` to be read ahead. Best effort.
    fn will_need(&self, id: SegmentId, offset: u64, len: u64);

    /// Start writing `len` bytes at `offset` to the device, without waiting and without durability. Best effort.
    fn start_writeback(&self, id: SegmentId, offset: u64, len: u64);

    /// Make everything written to the segment durable. After a failure (R9) everything past the last good sync is
    /// to be treated as missing, and further writes and syncs of this segment fail until [`Backing::reset_segment`].
    /// A segment or directory that was deleted, or a directory without its marker, is a failure.
    fn sync_segment(&self, id: SegmentId) -> io::Result<()>;

    /// Whether `len` bytes at `offset` can be written past the page cache ([`DIRECT_ALIGN`]). If so they count as written
    /// from now on, and [`Backing::end_direct`] is told how it ended. Never waits for a device.
    fn direct(&self, _id: SegmentId, _offset: u64, _len: u64) -> Direct {
        Direct::Never
    }

    /// Number of the device that everything here lies on (`st_dev`), if it is one.
    fn device(&self) -> Option<u64> {
        None
    }

    /// Make ready what [`Backing::direct`] answers for: zeros past the end of the segment that are durable.
    fn make_direct(&self, _id: SegmentId) -> io::Result<()> {
        Ok(())
    }

    /// A direct write has ended so; what that means. Never waits for a device.
    fn end_direct(&self, _id: SegmentId, result: io::Result<()>) -> DirectEnd {
        result.map_or_else(DirectEnd::Failed, |()| DirectEnd::Unsure)
    }

    /// How often names came or went among the small files ([`Backing::list_files`] of `""` and of the fences) as far as
    /// was seen; `None` if that cannot be told without waiting for a device. What had its name when this was called is
    /// counted.
    fn changes(&self) -> Option<u64> {
        None
    }

    /// Forget a failed sync: the segment may be written again, and reads see what the device holds rather than what
    /// memory pretends, as far as the system can tell. For healing, which treats all past the last good sync as
    /// missing.
    fn reset_segment(&self, id: SegmentId) -> io::Result<()>;

    /// The segment takes no more appends: give back what is preallocated past its end.
    fn finish_segment(&self, id: SegmentId) -> io::Result<()>;

    /// Free the whole filesystem blocks inside the range; it reads as zeros there. `Unsupported` if the filesystem
    /// cannot. The length of the file does not change.
    fn punch(&self, id: SegmentId, offset: u64, len: u64) -> io::Result<()>;

    /// Bytes of the device that the segment's file takes, holes not counted.
    fn allocated(&self, id: SegmentId) -> io::Result<u64>;

    /// Remove the segment's file. Not synced: a power cut may bring it back, which its never reused id makes harmless.
    fn remove_segment(&self, id: SegmentId) -> io::Result<()>;

    /// All segments with the lengths of their files in bytes, by id. Foreign files are passed over.
    fn list_segments(&self) -> io::Result<Vec<(SegmentId, u64)>>;

    /// A small file's bytes, `None` if there is none. `InvalidData` if it is longer than [`SMALL_FILE_LEN_MAX`].
    fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Replace a small file: after a crash it has either its old or its new content, after success the new.
    fn write_file(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Make a small file, durable with its name on success; `AlreadyExists` if there is one. After a crash or an
    /// error inside the call it may exist with any part of its content.
    fn create_file_exclusive(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Names of the small files in a directory (`""`: the member directory itself), sorted. None if it is missing.
    fn list_files(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Remove a small file durably.
    fn remove_file(&self, name: &str) -> io::Result<()>;

    /// Whether the directory's path still leads to a directory with a superblock; false also if that cannot be told.
    fn is_marked(&self) -> bool;

    /// How much room there is, and on what.
    fn space(&self) -> io::Result<Space>;

    /// Take the directory for this handle alone until it is dropped. Fails at once, with a message that says "in
    /// use", when another process or handle holds it. Idempotent.
    fn lock(&self) -> io::Result<()>;
}

/// A small file's name split into its directory (`""` for none) and base name, or `InvalidInput`: names are one or
/// two plain components, and a leading dot is reserved for temporary files.
fn split_name(name: &str) -> io::Result<(&str, &str)> {
    let (dir, base) = name.rsplit_once('/').unwrap_or(("", name));
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\0']);
    let reserved = base == "segments" || dir == "segments";
    if plain(base) && (dir.is_empty() && !name.starts_with('/') || plain(dir)) && !reserved {
        Ok((dir, base))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a name of a small file")))
    }
}

/// The error of a write to, or sync of, a segment whose last sync failed.
fn failed_before() -> io::Error {
    io::Error::other("an earlier sync of this segment failed: what it held since is lost; heal it")
}

/// The error of a sync that found its file or directory gone.
fn gone(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{what} was deleted or unmounted while in use; put the directory back or replace the member"),
    )
}

/// The error of [`Backing::lock`] when someone else has it.
fn in_use() -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, "in use by another brine process; unmount it there first")
}
