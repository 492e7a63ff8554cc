//! Rows of the metadata database as values.
//!
//! Pure: knows neither SQL nor bytes on disk ([`super::codec`] owns those). Every row that has a `since` says the
//! generation since which it is true. Times are nanoseconds since 1970-01-01 00:00:00 UTC.

use std::sync::Arc;

use crate::ids::{
    BlockId, BlockKey, ChunkNo, ContentDigest, DataId, Generation, Incarnation, Ino, MemberId, SegmentId, Version,
};

/// What rows are made of, and what is made of them.
pub use super::node::*;

/// Beyond every chunk: numbers of chunks are stored as 64-bit signed numbers.
pub const CHUNK_END: ChunkNo = ChunkNo(i64::MAX as u64);

/// Flag of an inode: it has extended attributes (look-ups of absent ones then cost nothing).
pub const INODE_HAS_XATTRS: u32 = 1;
/// Flag of an inode: it is the exec directory or lies in it or below, with all its names.
pub const INODE_IN_EXEC: u32 = 2;
/// Flag of an inode: it has, or had, more than one name at a time, so `parent` may not be the only place it was in.
pub const INODE_HAD_LINKS: u32 = 4;
/// The flags from this bit on are the number of the innermost quota an inode counts in.
pub const INODE_QUOTA_SHIFT: u32 = 8;

/// One inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeRow {
    /// Inode number.
    pub ino: Ino,
    /// Compare token.
    pub version: Version,
    /// Kind.
    pub kind: FileKind,
    /// Permission bits, 0o7777.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Device number.
    pub rdev: u32,
    /// Size, bytes.
    pub size: u64,
    /// Last access.
    pub atime_ns: i64,
    /// Last change of content.
    pub mtime_ns: i64,
    /// Last change of the inode.
    pub ctime_ns: i64,
    /// Birth.
    pub btime_ns: i64,
    /// Data id of a regular file, else 0.
    pub data: DataId,
    /// Log2 of the chunk length; a directory's is inherited by what is made in it.
    pub chunk_bits: u8,
    /// [`INODE_HAS_XATTRS`], [`INODE_IN_EXEC`], [`INODE_HAD_LINKS`], from [`INODE_QUOTA_SHIFT`] on the number of a quota.
    pub flags: u32,
    /// Content of a small file, at most [`INLINE_MAX`] bytes, or the target of a symbolic link.
    pub inline: Option<Arc<[u8]>>,
    /// See [`Attr::ino_generation`].
    pub ino_generation: u32,
    /// Extent rows of `data` times the chunk length, bytes (those hidden by a cut count until retired).
    pub allocated: u64,
    /// Directory: its parent. Else: a directory that had a name of it, a hint for messages.
    pub parent: Ino,
    /// True since this generation.
    pub since: Generation,
}

impl InodeRow {
    /// Number of the innermost quota it counts in, perhaps removed since; 0 if none.
    pub fn quota(&self) -> u32 {
        self.flags >> INODE_QUOTA_SHIFT
    }

    /// Bytes that `st_blocks` counts, and quotas.
    pub fn charge(&self) -> u64 {
        match (&self.inline, self.kind) {
            (Some(inline), FileKind::File) => (inline.len() as u64).next_multiple_of(512),
            (_, FileKind::Directory) => self.size,
            (Some(_), _) => 0,
            // A short last chunk takes less than a chunk's length; what a cut hides is no longer the file's.
            (None, _) => self.allocated.min(self.size.min(FILE_SIZE_MAX).next_multiple_of(4096)),
        }
    }

    /// What the crates above see of it.
    pub fn attr(&self) -> Attr {
        Attr {
            ino: self.ino,
            version: self.version,
            kind: self.kind,
            perm: self.perm,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: self.size,
            allocated: self.charge(),
            chunk_bits: self.chunk_bits,
            data: self.data,
            atime_ns: self.atime_ns,
            mtime_ns: self.mtime_ns,
            ctime_ns: self.ctime_ns,
            btime_ns: self.btime_ns,
            ino_generation: self.ino_generation,
            in_exec: self.flags & INODE_IN_EXEC != 0,
            quota: self.quota(),
            chunk_bytes: if self.kind == FileKind::File { self.allocated } else { 0 },
            guessed: false,
        }
    }
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DentryRow {
    /// The directory.
    pub parent: Ino,
    /// 62-bit keyed hash of the name, at least [`COOKIE_MIN`]; also its place in listings.
    pub hash: u64,
    /// Name, 1 to 255 bytes.
    pub name: Box<[u8]>,
    /// What it names.
    pub ino: Ino,
    /// Kind of what it names.
    pub kind: FileKind,
    /// True since this generation.
    pub since: Generation,
}

/// One chunk of a data id that has a block. A chunk without a row is a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentRow {
    /// Whose chunk.
    pub data: DataId,
    /// Which chunk.
    pub chunk: ChunkNo,
    /// Its block.
    pub key: BlockKey,
    /// Cuts made in the volume when it was written: a cut with a higher number hides it.
    pub sequence: u64,
    /// True since this generation.
    pub since: Generation,
}

/// Extents of `data` in `from..to` that have a lower sequence are gone: they read as holes at once and their rows are
/// deleted in batches behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutRow {
    /// Whose extents.
    pub data: DataId,
    /// Number of this cut in the volume.
    pub sequence: u64,
    /// First chunk cut off.
    pub from: ChunkNo,
    /// Chunk after the last; [`CHUNK_END`] when everything beyond is cut off.
    pub to: ChunkNo,
    /// The inode whose allocated bytes shrink as rows are deleted (it may be gone).
    pub ino: Ino,
    /// Generation of the cut: where the history of what it hides ends.
    pub since: Generation,
}

/// One extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrRow {
    /// Whose.
    pub ino: Ino,
    /// Name with its namespace, 1 to 255 bytes.
    pub name: Box<[u8]>,
    /// Value, at most [`XATTR_SIZE_MAX`] bytes.
    pub value: Box<[u8]>,
    /// True since this generation.
    pub since: Generation,
}

/// Life of a block (R17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// Referenced, or just stored in the open generation.
    Live = 0,
    /// Unreferenced; a duplicate write may revive it.
    Zero = 1,
    /// About to be freed; invisible to deduplication.
    Condemned = 2,
}

impl BlockState {
    /// The state with this stored number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Live,
            1 => Self::Zero,
            2 => Self::Condemned,
            _ => return None,
        })
    }
}

/// One sealed block: where it lies and who refers to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRow {
    /// Its id.
    pub id: BlockId,
    /// Content digest; siblings under other salts share it.
    pub digest: ContentDigest,
    /// Salt: dedup domain.
    pub domain: u64,
    /// Salt: epoch.
    pub epoch: u32,
    /// Salt: copy index.
    pub index: u16,
    /// Segment its stripe lies in.
    pub segment: SegmentId,
    /// Offset of the stripe's records in each segment file, bytes.
    pub offset: u64,
    /// Length of the stripe's record in each segment file, header and padding included, bytes.
    pub record_len: u32,
    /// Number of blocks in the stripe.
    pub stripe_blocks: u16,
    /// Offset in the stripe's message, bytes.
    pub message_offset: u32,
    /// Sealed length, bytes.
    pub sealed_len: u32,
    /// Plaintext length, bytes.
    pub plain_len: u32,
    /// Extents, current and kept, that name it. Folded at generation close.
    pub refs: u64,
    /// Its state.
    pub state: BlockState,
    /// Generation in which the state was entered.
    pub state_since: Generation,
    /// Its key was re-derived from its plaintext on this machine. Local knowledge: in neither records nor digest.
    pub verified: bool,
    /// Codec number inside the seal.
    pub codec: u8,
    /// True since this generation.
    pub since: Generation,
}

/// Life of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SegmentState {
    /// Takes records.
    Open = 1,
    /// Takes no more records.
    Closed = 2,
    /// All its blocks are freed; its files are being removed.
    Condemned = 3,
}

impl SegmentState {
    /// The state with this stored number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Open,
            2 => Self::Closed,
            3 => Self::Condemned,
            _ => return None,
        })
    }
}

/// One segment and the members it is placed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRow {
    /// Its number.
    pub id: SegmentId,
    /// Random number of its life.
    pub incarnation: Incarnation,
    /// Data shards of its stripes, k.
    pub data: u8,
    /// Parity shards of its stripes, m.
    pub parity: u8,
    /// Who holds each of the k+m slots; `None` is vacant. At most [`crate::geometry::SLOTS_MAX`].
    pub slots: Vec<Option<MemberId>>,
    /// Length of its files when full, bytes.
    pub capacity: u64,
    /// Where the next record goes, bytes; of an open segment at least this.
    pub tail: u64,
    /// Its state.
    pub state: SegmentState,
    /// True since this generation.
    pub since: Generation,
}

/// A small write kept in the commit log until it is folded into a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchRow {
    /// Whose chunk.
    pub data: DataId,
    /// Which chunk.
    pub chunk: ChunkNo,
    /// Patches of a chunk apply in ascending order. Never used again in a data id.
    pub sequence: u64,
    /// The inode it was written to (it may be gone).
    pub ino: Ino,
    /// Offset in the chunk, bytes.
    pub offset: u32,
    /// The bytes written.
    pub bytes: Box<[u8]>,
    /// True since this generation.
    pub since: Generation,
}

/// A range of one data id that shares the chunks of another until materialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLinkRow {
    /// The target data id.
    pub data: DataId,
    /// First chunk in the target.
    pub chunk: ChunkNo,
    /// Number of chunks.
    pub count: u64,
    /// Where they come from.
    pub source: DataId,
    /// First chunk in the source.
    pub source_chunk: ChunkNo,
    /// State of the source that is linked.
    pub source_generation: Generation,
    /// True since this generation.
    pub since: Generation,
}

/// One committed state of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationRow {
    /// Its number.
    pub generation: Generation,
    /// When it closed; never less than an earlier generation's.
    pub time_ns: i64,
}

/// A named, retained generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRow {
    /// Its name.
    pub name: Box<[u8]>,
    /// The generation it pins.
    pub generation: Generation,
    /// When it was made.
    pub time_ns: i64,
    /// True since this generation.
    pub since: Generation,
}

/// Tables whose rows are (key, value) with a value that belongs to the module that writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shelf {
    /// Counters and settings of the volume.
    Settings = 1,
    /// Members of the backing set, by member id.
    Members = 2,
    /// Quotas.
    Quotas = 3,
    /// Run records.
    Runs = 4,
    /// Policies of functions.
    Policies = 5,
    /// Triggers.
    Triggers = 6,
}

impl Shelf {
    /// All shelves, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Settings, Self::Members, Self::Quotas, Self::Runs, Self::Policies, Self::Triggers];

    /// The shelf with this stored number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|shelf| *shelf as u8 == number)
    }
}

/// One row of a [`Shelf`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShelfRow {
    /// Which table.
    pub shelf: Shelf,
    /// Key.
    pub key: Box<[u8]>,
    /// Value, encoded by its owner.
    pub value: Box<[u8]>,
    /// True since this generation.
    pub since: Generation,
}
