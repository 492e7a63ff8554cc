//! Inodes and names as the crates above see them: attributes, what is asked of them, and their limits.
//!
//! Pure: knows neither rows nor what they are made of. Times are nanoseconds since 1970-01-01 00:00:00 UTC.

use crate::ids::{DataId, Ino, Version};

/// Longest file name, bytes.
pub const NAME_MAX: usize = 255;
/// Longest symbolic link target, bytes (PATH_MAX without its NUL).
pub const TARGET_MAX: usize = 4095;
/// Files up to this many bytes may live inline in their inode row.
pub const INLINE_MAX: usize = 2048;
/// Longest value of one extended attribute, bytes; also the most bytes all names of one inode take, each with a NUL.
pub const XATTR_SIZE_MAX: usize = 64 * 1024;
/// Largest file, bytes: sizes are stored as 64-bit signed numbers.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;
/// Most names of an inode, and subdirectories of a directory.
pub const LINK_MAX: u32 = 1 << 31;
/// Log2 of the chunk lengths there are: 4 KiB to 1 MiB.
pub const CHUNK_BITS: std::ops::RangeInclusive<u8> = 12..=20;
/// Smallest directory-listing cookie of an entry; those below are the adapter's ("." and "..").
pub const COOKIE_MIN: u64 = 16;

/// Name of the exec directory in the root.
pub const EXEC_NAME: &[u8] = b"exec";
/// Name in the root of the directory that holds what runs have written and not published yet. It is in no listing.
pub const STAGED_NAME: &[u8] = b".brine.staged";

/// The extended attribute that holds an inode's access control list, in the kernel's layout.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The extended attribute that holds the list new inodes of a directory inherit.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// Regular file.
    File = 1,
    /// Directory.
    Directory = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Named pipe.
    Fifo = 4,
    /// Unix socket.
    Socket = 5,
    /// Character device.
    CharDevice = 6,
    /// Block device.
    BlockDevice = 7,
}

impl FileKind {
    /// The kind with this stored number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::File,
            2 => Self::Directory,
            3 => Self::Symlink,
            4 => Self::Fifo,
            5 => Self::Socket,
            6 => Self::CharDevice,
            7 => Self::BlockDevice,
            _ => return None,
        })
    }
}

/// Attributes of an inode, as the crates above see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Compare token; grows by one with every accepted change.
    pub version: Version,
    /// Kind.
    pub kind: FileKind,
    /// Permission bits, 0o7777.
    pub perm: u16,
    /// Number of names; 2 plus subdirectories for a directory; 0 for an orphan.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device.
    pub rdev: u32,
    /// Size, bytes.
    pub size: u64,
    /// Bytes that `st_blocks` counts.
    pub allocated: u64,
    /// Log2 of the chunk length.
    pub chunk_bits: u8,
    /// What its extents belong to; 0 unless it is a regular file.
    pub data: DataId,
    /// Last access.
    pub atime_ns: i64,
    /// Last change of content.
    pub mtime_ns: i64,
    /// Last change of the inode.
    pub ctime_ns: i64,
    /// Birth.
    pub btime_ns: i64,
    /// Tells apart two files that had one inode number; numbers are never reused, so it stays 1.
    pub ino_generation: u32,
    /// It is the exec directory, or lies in it or below with all its names.
    pub in_exec: bool,
    /// Number of the innermost quota it counts in, perhaps removed since; 0 if none.
    pub quota: u32,
    /// Bytes of its chunks that have rows, whatever its size.
    pub chunk_bytes: u64,
    /// `allocated` is a guess, since whoever asks holds something of the file that the store was not given yet.
    pub guessed: bool,
}

/// What a new inode is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    /// Kind.
    pub kind: FileKind,
    /// Permission bits. The umask is applied already, or given to [`super::Txn::create_masked`].
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group; a set-group-id directory overrides it.
    pub gid: u32,
    /// Device number; 0 unless a device.
    pub rdev: u32,
    /// Target of a symbolic link; `None` for every other kind.
    pub target: Option<&'a [u8]>,
}

/// Attributes to change; `None` stays as it is. The change time becomes now unless given.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime_ns: Option<i64>,
    /// Last change of content.
    pub mtime_ns: Option<i64>,
    /// Last change of the inode.
    pub ctime_ns: Option<i64>,
}

/// What a flush changes in a file besides its extents.
#[derive(Clone, Debug)]
pub struct FileChange {
    /// New size, bytes.
    pub size: u64,
    /// Last change of content.
    pub mtime_ns: i64,
    /// Last change of the inode.
    pub ctime_ns: i64,
    /// Content of the whole file, at most [`INLINE_MAX`] bytes; replaces every extent.
    pub inline: Option<Vec<u8>>,
    /// Drop set-user-id, and set-group-id where the group may execute (a write by someone unprivileged).
    pub clear_suid: bool,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Name, 1 to 255 bytes.
    pub name: Vec<u8>,
    /// Inode.
    pub ino: Ino,
    /// Kind of the inode.
    pub kind: FileKind,
    /// A listing that goes on after this cookie goes on after this entry (or repeats entries whose names collide
    /// with it in 62 bits; it never skips one).
    pub cookie: u64,
    /// Attributes, if asked for.
    pub attr: Option<Attr>,
}

/// Flags of renameat2(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// Fail if the new name exists.
    pub no_replace: bool,
    /// Exchange the two names.
    pub exchange: bool,
    /// Leave a whiteout (character device 0:0) at the old name.
    pub whiteout: bool,
    /// Owner and group of the whiteout, as of any new inode.
    pub owner: (u32, u32),
}

/// What lost a name. With `nlink` 0 its data lives until the orphan is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unlinked {
    /// The inode.
    pub ino: Ino,
    /// Names it has left.
    pub nlink: u32,
    /// Its kind.
    pub kind: FileKind,
}
