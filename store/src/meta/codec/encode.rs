//! From changes to bytes.

use super::*;
use crate::meta::changes::{Past, PastKey, RowChange};
use crate::meta::rows::{BlockRow, DentryRow, ExtentRow, InodeRow, PatchRow, SegmentRow, XattrRow};
use crate::meta::segment::encode_slots;

/// Changes, all of them: version, then each change.
pub fn encode_changes(changes: &[RowChange]) -> Vec<u8> {
    let mut out = Vec::with_capacity(CHANGES_HEADER_LEN + changes.len() * 96);
    begin_changes(&mut out);
    changes.iter().for_each(|change| encode_change(change, &mut out));
    out
}

/// Start a sequence that [`encode_change`] goes on with.
pub fn begin_changes(out: &mut Vec<u8>) {
    out.extend_from_slice(&CHANGES_VERSION.to_le_bytes());
}

/// Append one change.
pub fn encode_change(change: &RowChange, out: &mut Vec<u8>) {
    let mut to = Output(out);
    match change {
        RowChange::PutInode(row) => to.tag(PUT_INODE).inode(row),
        RowChange::DelInode { ino, at } => to.tag(DEL_INODE).u64(ino.0).u64(at.0),
        RowChange::PutDentry(row) => to.tag(PUT_DENTRY).dentry(row),
        RowChange::DelDentry { parent, hash, name, at } => {
            to.tag(DEL_DENTRY).u64(parent.0).u64(*hash).bytes8(name).u64(at.0)
        }
        RowChange::PutExtent(row) => to.tag(PUT_EXTENT).extent(row),
        RowChange::DelExtents { data, from, to: end, below, at } => {
            to.tag(DEL_EXTENTS).u64(data.0).u64(from.0).u64(end.0).u64(*below).u64(at.0)
        }
        RowChange::PutXattr(row) => to.tag(PUT_XATTR).xattr(row),
        RowChange::DelXattr { ino, name, at } => to.tag(DEL_XATTR).u64(ino.0).bytes8(name).u64(at.0),
        RowChange::PutBlock(row) => to.tag(PUT_BLOCK).block(row),
        RowChange::SetRefs { id, refs, state, state_since } => {
            to.tag(SET_REFS).raw(&id.0).u64(*refs).u8(*state as u8).u64(state_since.0)
        }
        RowChange::DelBlock(id) => to.tag(DEL_BLOCK).raw(&id.0),
        RowChange::PutSegment(row) => to.tag(PUT_SEGMENT).segment(row),
        RowChange::DelSegment(id) => to.tag(DEL_SEGMENT).u64(id.0),
        RowChange::PutPatch(row) => to.tag(PUT_PATCH).patch(row),
        RowChange::DelPatches { data, from, to: end, through, at } => {
            to.tag(DEL_PATCHES).u64(data.0).u64(from.0).u64(end.0).u64(*through).u64(at.0)
        }
        RowChange::PutLink(row) => to
            .tag(PUT_LINK)
            .u64(row.data.0)
            .u64(row.chunk.0)
            .u64(row.count)
            .u64(row.source.0)
            .u64(row.source_chunk.0)
            .u64(row.source_generation.0)
            .u64(row.since.0),
        RowChange::DelLink { data, chunk } => to.tag(DEL_LINK).u64(data.0).u64(chunk.0),
        RowChange::PutCut(row) => to
            .tag(PUT_CUT)
            .u64(row.data.0)
            .u64(row.sequence)
            .u64(row.from.0)
            .u64(row.to.0)
            .u64(row.ino.0)
            .u64(row.since.0),
        RowChange::DelCut { data, sequence } => to.tag(DEL_CUT).u64(data.0).u64(*sequence),
        RowChange::PutGeneration(row) => to.tag(PUT_GENERATION).u64(row.generation.0).i64(row.time_ns),
        RowChange::DelGeneration(generation) => to.tag(DEL_GENERATION).u64(generation.0),
        RowChange::PutSnapshot(row) => {
            to.tag(PUT_SNAPSHOT).bytes8(&row.name).u64(row.generation.0).i64(row.time_ns).u64(row.since.0)
        }
        RowChange::DelSnapshot { name } => to.tag(DEL_SNAPSHOT).bytes8(name),
        RowChange::PutShelf(row) => {
            to.tag(PUT_SHELF).u8(row.shelf as u8).bytes16(&row.key).bytes32(&row.value).u64(row.since.0)
        }
        RowChange::DelShelf { shelf, key } => to.tag(DEL_SHELF).u8(*shelf as u8).bytes16(key),
        RowChange::PutPast { past, until } => match past {
            Past::Inode(row) => to.tag(PUT_PAST_INODE).inode(row).u64(until.0),
            Past::Dentry(row) => to.tag(PUT_PAST_DENTRY).dentry(row).u64(until.0),
            Past::Extent(row) => to.tag(PUT_PAST_EXTENT).extent(row).u64(until.0),
            Past::Xattr(row) => to.tag(PUT_PAST_XATTR).xattr(row).u64(until.0),
            Past::Patch(row) => to.tag(PUT_PAST_PATCH).patch(row).u64(until.0),
        },
        RowChange::DelPast(key) => match key {
            PastKey::Inode(ino, version, since) => to.tag(DEL_PAST_INODE).u64(ino.0).u64(version.0).u64(since.0),
            PastKey::Dentry(parent, hash, name, since) => {
                to.tag(DEL_PAST_DENTRY).u64(parent.0).u64(*hash).bytes8(name).u64(since.0)
            }
            PastKey::Extent(data, chunk, since) => to.tag(DEL_PAST_EXTENT).u64(data.0).u64(chunk.0).u64(since.0),
            PastKey::Xattr(ino, name, since) => to.tag(DEL_PAST_XATTR).u64(ino.0).bytes8(name).u64(since.0),
            PastKey::Patch(data, chunk, sequence) => to.tag(DEL_PAST_PATCH).u64(data.0).u64(chunk.0).u64(*sequence),
        },
    };
}

struct Output<'o>(&'o mut Vec<u8>);

impl Output<'_> {
    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn tag(&mut self, tag: u8) -> &mut Self {
        self.u8(tag)
    }
    fn u8(&mut self, number: u8) -> &mut Self {
        self.0.push(number);
        self
    }
    fn u16(&mut self, number: u16) -> &mut Self {
        self.raw(&number.to_le_bytes())
    }
    fn u32(&mut self, number: u32) -> &mut Self {
        self.raw(&number.to_le_bytes())
    }
    fn u64(&mut self, number: u64) -> &mut Self {
        self.raw(&number.to_le_bytes())
    }
    fn i64(&mut self, number: i64) -> &mut Self {
        self.raw(&number.to_le_bytes())
    }
    /// Names: at most 255 bytes, checked where they enter the volume.
    fn bytes8(&mut self, bytes: &[u8]) -> &mut Self {
        debug_assert!(bytes.len() <= 255);
        self.u8(bytes.len() as u8).raw(bytes)
    }
    fn bytes16(&mut self, bytes: &[u8]) -> &mut Self {
        debug_assert!(bytes.len() < usize::from(u16::MAX));
        self.u16(bytes.len() as u16).raw(bytes)
    }
    fn bytes32(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(bytes.len() as u32).raw(bytes)
    }

    fn patch(&mut self, row: &PatchRow) -> &mut Self {
        self.u64(row.data.0)
            .u64(row.chunk.0)
            .u64(row.sequence)
            .u64(row.ino.0)
            .u32(row.offset)
            .bytes32(&row.bytes)
            .u64(row.since.0)
    }

    fn inode(&mut self, row: &InodeRow) -> &mut Self {
        self.u64(row.ino.0)
            .u64(row.version.0)
            .u8(row.kind as u8)
            .u16(row.perm)
            .u32(row.uid)
            .u32(row.gid)
            .u32(row.nlink)
            .u32(row.rdev)
            .u64(row.size)
            .i64(row.atime_ns)
            .i64(row.mtime_ns)
            .i64(row.ctime_ns)
            .i64(row.btime_ns)
            .u64(row.data.0)
            .u8(row.chunk_bits)
            .u32(row.flags);
        match &row.inline {
            Some(inline) => self.bytes16(inline),
            None => self.u16(NO_INLINE),
        };
        self.u32(row.ino_generation).u64(row.allocated).u64(row.parent.0).u64(row.since.0)
    }

    fn dentry(&mut self, row: &DentryRow) -> &mut Self {
        self.u64(row.parent.0).u64(row.hash).bytes8(&row.name).u64(row.ino.0).u8(row.kind as u8).u64(row.since.0)
    }

    fn extent(&mut self, row: &ExtentRow) -> &mut Self {
        self.u64(row.data.0).u64(row.chunk.0).raw(&row.key.0).u64(row.sequence).u64(row.since.0)
    }

    fn xattr(&mut self, row: &XattrRow) -> &mut Self {
        self.u64(row.ino.0).bytes8(&row.name).bytes32(&row.value).u64(row.since.0)
    }

    fn block(&mut self, row: &BlockRow) -> &mut Self {
        self.raw(&row.id.0)
            .raw(&row.digest.0)
            .u64(row.domain)
            .u32(row.epoch)
            .u16(row.index)
            .u64(row.segment.0)
            .u64(row.offset)
            .u32(row.record_len)
            .u16(row.stripe_blocks)
            .u32(row.message_offset)
            .u32(row.sealed_len)
            .u32(row.plain_len)
            .u64(row.refs)
            .u8(row.state as u8)
            .u64(row.state_since.0)
            .u8(row.codec)
            .u64(row.since.0)
    }

    fn segment(&mut self, row: &SegmentRow) -> &mut Self {
        self.u64(row.id.0)
            .raw(&row.incarnation.0)
            .u8(row.data)
            .u8(row.parity)
            .bytes16(&encode_slots(&row.slots))
            .u64(row.capacity)
            .u64(row.tail)
            .u8(row.state as u8)
            .u64(row.since.0)
    }
}
