//! What a part of `.brine` is to the rest: the operations the kernel may ask of it.
//!
//! Everything that changes something is refused before a branch is asked. A branch's methods may wait for a disk,
//! except [`Branch::attr`] of its own top and whatever it says of itself in [`VirtualFile::waits`].

use std::sync::Arc;

use brine_store::ids::{Ino, Version};
use brine_store::volume::{Attr, DirEntry, FileKind};

use super::number::Family;
use crate::errno::{Errno, Outcome};
use crate::vfs::Caller;

/// One name in `.brine` and what is below it.
pub trait Branch: Send + Sync {
    /// Which part it is; gives it its name and its inode numbers.
    fn family(&self) -> Family;

    /// Attributes of one of its inodes; [`Family::top`] stands for the branch itself.
    ///
    /// # Errors
    /// ESTALE if it is gone.
    fn attr(&self, ino: Ino) -> Outcome<Attr>;

    /// The inode of a name, which the kernel knows once more from now on (see [`Self::forget`]).
    ///
    /// # Errors
    /// ENOENT; ENOTDIR.
    fn lookup(&self, _parent: Ino, _name: &[u8]) -> Outcome<Attr> {
        Err(Errno(libc::ENOTDIR))
    }

    /// The kernel forgot `count` of the times it was told of an inode.
    fn forget(&self, _ino: Ino, _count: u64) {}

    /// The directory that holds a directory; of the branch itself this is not asked.
    ///
    /// # Errors
    /// ESTALE if it is gone.
    fn parent(&self, _dir: Ino) -> Outcome<Ino> {
        Ok(self.family().top())
    }

    /// Entries after `cookie` (0: from the start), at most `max`, without "." and "..". With `plus` each comes with its
    /// attributes, and counts as told to the kernel: the caller gives those it does not use back by [`Self::forget`].
    ///
    /// # Errors
    /// ENOTDIR; ESTALE.
    fn entries(&self, _dir: Ino, _cookie: u64, _max: usize, _plus: bool) -> Outcome<Vec<DirEntry>> {
        Err(Errno(libc::ENOTDIR))
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// EINVAL if it is none.
    fn read_link(&self, _ino: Ino) -> Outcome<Vec<u8>> {
        Err(Errno::INVALID)
    }

    /// Open a file; `flags` are those of open(2).
    ///
    /// # Errors
    /// EROFS for writing, unless the branch takes it.
    fn open(&self, caller: Caller, ino: Ino, flags: i32) -> Outcome<Opening>;

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// ENODATA.
    fn get_xattr(&self, _ino: Ino, _name: &[u8]) -> Outcome<Vec<u8>> {
        Err(Errno(libc::ENODATA))
    }

    /// Names of the extended attributes.
    ///
    /// # Errors
    /// ESTALE.
    fn list_xattrs(&self, _ino: Ino) -> Outcome<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }
}

/// What the kernel may keep of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Pages stay, from one open to the next.
    Keep,
    /// Pages of earlier opens stay; this open reads past them.
    Direct,
}

/// A file that was opened.
pub struct Opening {
    /// What is read.
    pub file: Arc<dyn VirtualFile>,
    /// What the kernel may keep of it.
    pub caching: Caching,
}

/// An open file of a branch.
pub trait VirtualFile: Send + Sync {
    /// Up to `len` bytes at `offset`; fewer at the end only.
    ///
    /// # Errors
    /// EIO; ESTALE.
    fn read(&self, offset: u64, len: usize) -> Outcome<Vec<u8>>;

    /// Whether [`Self::read`] may wait, for a disk or for anything else.
    fn waits(&self) -> bool {
        true
    }

    /// SEEK_DATA and SEEK_HOLE of lseek(2).
    ///
    /// # Errors
    /// EINVAL if holes are not known; the kernel then takes the file for one without any.
    fn seek(&self, _offset: u64, _whence: i32) -> Outcome<u64> {
        Err(Errno::INVALID)
    }
}

/// A file whose content is at hand.
impl VirtualFile for Arc<[u8]> {
    fn read(&self, offset: u64, len: usize) -> Outcome<Vec<u8>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        Ok(self[start..start.saturating_add(len).min(self.len())].to_vec())
    }

    fn waits(&self) -> bool {
        false
    }
}

/// EROFS unless a file is opened for nothing but reading.
///
/// # Errors
/// EROFS.
pub fn reading_only(flags: i32) -> Outcome<()> {
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
    if writes { Err(Errno::READ_ONLY) } else { Ok(()) }
}

/// Attributes of an inode that no volume holds: owned by the daemon's user, with `time_ns` for every time.
pub fn plain_attr(ino: Ino, kind: FileKind, perm: u16, size: u64, time_ns: i64) -> Attr {
    Attr {
        ino,
        version: Version(1),
        kind,
        perm,
        nlink: if kind == FileKind::Directory { 2 } else { 1 },
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        rdev: 0,
        size,
        allocated: size.next_multiple_of(512),
        chunk_bits: 17,
        data: brine_store::ids::DataId(0),
        atime_ns: time_ns,
        mtime_ns: time_ns,
        ctime_ns: time_ns,
        btime_ns: time_ns,
        ino_generation: 1,
        in_exec: false,
        quota: 0,
        chunk_bytes: 0,
        guessed: false,
    }
}
