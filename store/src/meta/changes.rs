//! Changes of rows: what commit records and checkpoints are made of.
//!
//! Pure: knows neither SQL nor bytes on disk ([`super::codec`] owns those).

use super::rows::{
    BlockRow, BlockState, CutRow, DentryRow, ExtentRow, GenerationRow, InodeRow, PatchRow, RangeLinkRow, SegmentRow,
    Shelf, ShelfRow, SnapshotRow, XattrRow,
};
use crate::ids::{BlockId, ChunkNo, DataId, Generation, Ino, SegmentId, Version};

/// A former row: true from its `since` until, exclusive, a later generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Past {
    /// Of an inode.
    Inode(InodeRow),
    /// Of a name.
    Dentry(DentryRow),
    /// Of a chunk; holds a reference to its block.
    Extent(ExtentRow),
    /// Of an extended attribute.
    Xattr(XattrRow),
    /// A patch.
    Patch(PatchRow),
}

/// Identifies a former row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PastKey {
    /// Of an inode.
    Inode(Ino, Version, Generation),
    /// Of a name: directory, hash, name, since.
    Dentry(Ino, u64, Box<[u8]>, Generation),
    /// Of a chunk.
    Extent(DataId, ChunkNo, Generation),
    /// Of an extended attribute.
    Xattr(Ino, Box<[u8]>, Generation),
    /// A patch: data id, chunk, sequence.
    Patch(DataId, ChunkNo, u64),
}

/// One change of one row (or of one range of rows). What a commit record and a checkpoint are made of.
///
/// Applying the changes of a generation in order, once or again, gives the same rows. `at` is the generation in which a
/// row ended: where its history ends, if history is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// Insert or replace.
    PutInode(InodeRow),
    /// Delete.
    DelInode {
        /// Which.
        ino: Ino,
        /// When it ended.
        at: Generation,
    },
    /// Insert or replace.
    PutDentry(DentryRow),
    /// Delete.
    DelDentry {
        /// The directory.
        parent: Ino,
        /// Hash of the name.
        hash: u64,
        /// The name.
        name: Box<[u8]>,
        /// When it ended.
        at: Generation,
    },
    /// Insert or replace.
    PutExtent(ExtentRow),
    /// Delete the extents of `from..to` whose sequence is below `below`.
    DelExtents {
        /// Whose.
        data: DataId,
        /// First chunk.
        from: ChunkNo,
        /// Chunk after the last.
        to: ChunkNo,
        /// Those with this sequence or a higher one stay.
        below: u64,
        /// When they ended.
        at: Generation,
    },
    /// Insert or replace.
    PutXattr(XattrRow),
    /// Delete.
    DelXattr {
        /// Whose.
        ino: Ino,
        /// Its name.
        name: Box<[u8]>,
        /// When it ended.
        at: Generation,
    },
    /// Insert or replace.
    PutBlock(BlockRow),
    /// Set references and state; no effect if the block is gone.
    SetRefs {
        /// Which block.
        id: BlockId,
        /// Its references.
        refs: u64,
        /// Its state.
        state: BlockState,
        /// Since when.
        state_since: Generation,
    },
    /// Delete.
    DelBlock(BlockId),
    /// Insert or replace.
    PutSegment(SegmentRow),
    /// Delete.
    DelSegment(SegmentId),
    /// Insert or replace.
    PutPatch(PatchRow),
    /// Delete the patches of `from..to` up to a sequence.
    DelPatches {
        /// Whose.
        data: DataId,
        /// First chunk.
        from: ChunkNo,
        /// Chunk after the last.
        to: ChunkNo,
        /// Those with a higher sequence stay.
        through: u64,
        /// When they ended.
        at: Generation,
    },
    /// Insert or replace.
    PutLink(RangeLinkRow),
    /// Delete.
    DelLink {
        /// The target data id.
        data: DataId,
        /// First chunk in the target.
        chunk: ChunkNo,
    },
    /// Insert or replace.
    PutCut(CutRow),
    /// Delete.
    DelCut {
        /// Whose.
        data: DataId,
        /// Which cut.
        sequence: u64,
    },
    /// Insert or replace.
    PutGeneration(GenerationRow),
    /// Delete.
    DelGeneration(Generation),
    /// Insert or replace.
    PutSnapshot(SnapshotRow),
    /// Delete.
    DelSnapshot {
        /// Its name.
        name: Box<[u8]>,
    },
    /// Insert or replace.
    PutShelf(ShelfRow),
    /// Delete.
    DelShelf {
        /// Which table.
        shelf: Shelf,
        /// Its key.
        key: Box<[u8]>,
    },
    /// Insert or replace a former row (checkpoints; in the log history follows from the other changes).
    PutPast {
        /// The former row.
        past: Past,
        /// Generation, exclusive, until which it was true.
        until: Generation,
    },
    /// Forget a former row.
    DelPast(PastKey),
}
