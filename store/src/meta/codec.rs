//! Bytes of row changes: what commit records and checkpoints hold. docs/FORMAT.md owns them.
//!
//! A sequence is a 2-byte version and then changes: tag (1 byte), fields in the order of the structs, little-endian,
//! fixed width; byte strings carry a length of 1, 2 or 4 bytes, fixed for the field. Nothing is allocated before the
//! bytes that would fill it are there, and every limit of [`super::rows`] is checked.

use std::sync::Arc;

use super::changes::{Past, PastKey, RowChange};
use super::rows::*;
use super::segment::{decode_slots, encode_slots};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::ids::{BlockId, BlockKey, ChunkNo, ContentDigest, DataId, Generation, Incarnation, Ino, SegmentId, Version};

/// Version of the row types below.
pub const CHANGES_VERSION: u16 = 1;

/// Length of what [`begin_changes`] writes, bytes.
pub const CHANGES_HEADER_LEN: usize = 2;

/// Longest value of a shelf row, bytes.
pub const SHELF_VALUE_MAX: usize = 16 << 20;
/// Longest key of a shelf row, bytes.
pub const SHELF_KEY_MAX: usize = 4096;
/// Longest patch, bytes: a chunk.
pub const PATCH_MAX: usize = 1 << 20;

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

/// Decode a whole sequence.
///
/// # Errors
/// [`Error::Format`] if it has another version, breaks off, or holds what no writer writes.
pub fn decode_changes(bytes: &[u8]) -> Result<Vec<RowChange>> {
    let mut input = Input { rest: bytes, start: bytes.len() };
    let decoded = (|| {
        let version = input.u16()?;
        if version != CHANGES_VERSION {
            return Err("another version of the row types; use a program that knows it");
        }
        let mut changes = Vec::new();
        while !input.rest.is_empty() {
            changes.push(input.change()?);
        }
        Ok(changes)
    })();
    decoded.map_err(|reason| {
        let at = input.start - input.rest.len();
        Error::format("row changes of a commit record", format!("{reason}, at byte {at} of {}", bytes.len()))
    })
}

// Tags are never reused.
const PUT_INODE: u8 = 1;
const DEL_INODE: u8 = 2;
const PUT_DENTRY: u8 = 3;
const DEL_DENTRY: u8 = 4;
const PUT_EXTENT: u8 = 5;
const DEL_EXTENTS: u8 = 6;
const PUT_XATTR: u8 = 7;
const DEL_XATTR: u8 = 8;
const PUT_BLOCK: u8 = 9;
const SET_REFS: u8 = 10;
const DEL_BLOCK: u8 = 11;
const PUT_SEGMENT: u8 = 12;
const DEL_SEGMENT: u8 = 13;
const PUT_PATCH: u8 = 14;
const DEL_PATCHES: u8 = 15;
const PUT_LINK: u8 = 16;
const DEL_LINK: u8 = 17;
const PUT_CUT: u8 = 18;
const DEL_CUT: u8 = 19;
const PUT_GENERATION: u8 = 20;
const DEL_GENERATION: u8 = 21;
const PUT_SNAPSHOT: u8 = 22;
const DEL_SNAPSHOT: u8 = 23;
const PUT_SHELF: u8 = 24;
const DEL_SHELF: u8 = 25;
const PUT_PAST_INODE: u8 = 26;
const PUT_PAST_DENTRY: u8 = 27;
const PUT_PAST_EXTENT: u8 = 28;
const PUT_PAST_XATTR: u8 = 29;
const DEL_PAST_INODE: u8 = 30;
const DEL_PAST_DENTRY: u8 = 31;
const DEL_PAST_EXTENT: u8 = 32;
const DEL_PAST_XATTR: u8 = 33;
const PUT_PAST_PATCH: u8 = 34;
const DEL_PAST_PATCH: u8 = 35;

/// No inline content: a length no inline content has.
const NO_INLINE: u16 = u16::MAX;

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

type Read<T> = Result<T, &'static str>;

struct Input<'i> {
    rest: &'i [u8],
    start: usize,
}

const BROKEN_OFF: &str = "it breaks off";
const UNKNOWN_NUMBER: &str = "an unknown kind or state";
const TOO_LONG: &str = "a byte string longer than its field allows";
const TOO_LARGE: &str = "a number larger than its field allows";
const BAD_NAME: &str = "a name that no entry has";

impl<'i> Input<'i> {
    fn raw(&mut self, length: usize) -> Read<&'i [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(BROKEN_OFF)?;
        self.rest = rest;
        Ok(bytes)
    }
    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(BROKEN_OFF)?;
        self.rest = rest;
        Ok(*bytes)
    }
    fn u8(&mut self) -> Read<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
    fn u16(&mut self) -> Read<u16> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }
    /// A number that SQL holds as a 64-bit signed one.
    fn u64(&mut self) -> Read<u64> {
        let number = self.any_u64()?;
        if number > i64::MAX as u64 { Err(TOO_LARGE) } else { Ok(number) }
    }
    fn any_u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn i64(&mut self) -> Read<i64> {
        self.array().map(i64::from_le_bytes)
    }
    fn name(&mut self) -> Read<Box<[u8]>> {
        let length = self.u8()?;
        if length == 0 {
            return Err(BAD_NAME);
        }
        Ok(self.raw(usize::from(length))?.into())
    }
    fn entry_name(&mut self) -> Read<Box<[u8]>> {
        let name = self.name()?;
        if name.contains(&b'/') || name.contains(&0) || matches!(&*name, b"." | b"..") {
            return Err(BAD_NAME);
        }
        Ok(name)
    }
    fn bytes16(&mut self, max: usize) -> Read<Box<[u8]>> {
        let length = usize::from(self.u16()?);
        if length > max { Err(TOO_LONG) } else { Ok(self.raw(length)?.into()) }
    }
    fn bytes32(&mut self, max: usize) -> Read<Box<[u8]>> {
        let length = self.u32()? as usize;
        if length > max { Err(TOO_LONG) } else { Ok(self.raw(length)?.into()) }
    }
    fn numbered<T>(&mut self, from: fn(u8) -> Option<T>) -> Read<T> {
        from(self.u8()?).ok_or(UNKNOWN_NUMBER)
    }
    fn ino(&mut self) -> Read<Ino> {
        self.u64().map(Ino)
    }
    fn data(&mut self) -> Read<DataId> {
        self.u64().map(DataId)
    }
    fn chunk_no(&mut self) -> Read<ChunkNo> {
        self.u64().map(ChunkNo)
    }
    fn generation(&mut self) -> Read<Generation> {
        self.u64().map(Generation)
    }

    fn inode(&mut self) -> Read<InodeRow> {
        let row = InodeRow {
            ino: self.ino()?,
            version: Version(self.u64()?),
            kind: self.numbered(FileKind::from_number)?,
            perm: self.u16()?,
            uid: self.u32()?,
            gid: self.u32()?,
            nlink: self.u32()?,
            rdev: self.u32()?,
            size: self.u64()?,
            atime_ns: self.i64()?,
            mtime_ns: self.i64()?,
            ctime_ns: self.i64()?,
            btime_ns: self.i64()?,
            data: self.data()?,
            chunk_bits: self.u8()?,
            flags: self.u32()?,
            inline: self.inline()?,
            ino_generation: self.u32()?,
            allocated: self.u64()?,
            parent: self.ino()?,
            since: self.generation()?,
        };
        if row.perm > 0o7777 || !CHUNK_BITS.contains(&row.chunk_bits) {
            return Err(TOO_LARGE);
        }
        Ok(row)
    }

    fn inline(&mut self) -> Read<Option<Arc<[u8]>>> {
        match self.u16()? {
            NO_INLINE => Ok(None),
            length if usize::from(length) > TARGET_MAX.max(INLINE_MAX) => Err(TOO_LONG),
            length => Ok(Some(self.raw(usize::from(length))?.into())),
        }
    }

    fn dentry(&mut self) -> Read<DentryRow> {
        Ok(DentryRow {
            parent: self.ino()?,
            hash: self.u64()?,
            name: self.entry_name()?,
            ino: self.ino()?,
            kind: self.numbered(FileKind::from_number)?,
            since: self.generation()?,
        })
    }

    fn extent(&mut self) -> Read<ExtentRow> {
        Ok(ExtentRow {
            data: self.data()?,
            chunk: self.chunk_no()?,
            key: BlockKey(self.array()?),
            sequence: self.u64()?,
            since: self.generation()?,
        })
    }

    fn xattr(&mut self) -> Read<XattrRow> {
        Ok(XattrRow {
            ino: self.ino()?,
            name: self.name()?,
            value: self.bytes32(XATTR_SIZE_MAX)?,
            since: self.generation()?,
        })
    }

    fn block(&mut self) -> Read<BlockRow> {
        Ok(BlockRow {
            id: BlockId(self.array()?),
            digest: ContentDigest(self.array()?),
            // A domain may be a hash: all 64 bits are its own.
            domain: self.any_u64()?,
            epoch: self.u32()?,
            index: self.u16()?,
            segment: SegmentId(self.u64()?),
            offset: self.u64()?,
            record_len: self.u32()?,
            stripe_blocks: self.u16()?,
            message_offset: self.u32()?,
            sealed_len: self.u32()?,
            plain_len: self.u32()?,
            refs: self.u64()?,
            state: self.numbered(BlockState::from_number)?,
            state_since: self.generation()?,
            verified: false,
            codec: self.u8()?,
            since: self.generation()?,
        })
    }

    fn segment(&mut self) -> Read<SegmentRow> {
        let (id, incarnation) = (SegmentId(self.u64()?), Incarnation(self.array()?));
        let (data, parity) = (self.u8()?, self.u8()?);
        let geometry = Geometry::new(data, parity).ok_or(TOO_LARGE)?;
        let length = usize::from(self.u16()?);
        let slots = decode_slots(self.raw(length)?).ok_or(TOO_LONG)?;
        if slots.len() != geometry.total() {
            return Err("a segment with other slots than shards");
        }
        Ok(SegmentRow {
            id,
            incarnation,
            data,
            parity,
            slots,
            capacity: self.u64()?,
            tail: self.u64()?,
            state: self.numbered(SegmentState::from_number)?,
            since: self.generation()?,
        })
    }

    fn patch(&mut self) -> Read<PatchRow> {
        Ok(PatchRow {
            data: self.data()?,
            chunk: self.chunk_no()?,
            sequence: self.u64()?,
            ino: self.ino()?,
            offset: self.u32()?,
            bytes: self.bytes32(PATCH_MAX)?,
            since: self.generation()?,
        })
    }

    fn link(&mut self) -> Read<RangeLinkRow> {
        Ok(RangeLinkRow {
            data: self.data()?,
            chunk: self.chunk_no()?,
            count: self.u64()?,
            source: self.data()?,
            source_chunk: self.chunk_no()?,
            source_generation: self.generation()?,
            since: self.generation()?,
        })
    }

    fn cut(&mut self) -> Read<CutRow> {
        Ok(CutRow {
            data: self.data()?,
            sequence: self.u64()?,
            from: self.chunk_no()?,
            to: self.chunk_no()?,
            ino: self.ino()?,
            since: self.generation()?,
        })
    }

    fn snapshot(&mut self) -> Read<SnapshotRow> {
        Ok(SnapshotRow {
            name: self.entry_name()?,
            generation: self.generation()?,
            time_ns: self.i64()?,
            since: self.generation()?,
        })
    }

    fn shelf(&mut self) -> Read<ShelfRow> {
        Ok(ShelfRow {
            shelf: self.numbered(Shelf::from_number)?,
            key: self.bytes16(SHELF_KEY_MAX)?,
            value: self.bytes32(SHELF_VALUE_MAX)?,
            since: self.generation()?,
        })
    }

    fn past(&mut self, past: Past) -> Read<RowChange> {
        Ok(RowChange::PutPast { past, until: self.generation()? })
    }

    fn change(&mut self) -> Read<RowChange> {
        Ok(match self.u8()? {
            PUT_INODE => RowChange::PutInode(self.inode()?),
            DEL_INODE => RowChange::DelInode { ino: self.ino()?, at: self.generation()? },
            PUT_DENTRY => RowChange::PutDentry(self.dentry()?),
            DEL_DENTRY => RowChange::DelDentry {
                parent: self.ino()?,
                hash: self.u64()?,
                name: self.entry_name()?,
                at: self.generation()?,
            },
            PUT_EXTENT => RowChange::PutExtent(self.extent()?),
            DEL_EXTENTS => RowChange::DelExtents {
                data: self.data()?,
                from: self.chunk_no()?,
                to: self.chunk_no()?,
                below: self.u64()?,
                at: self.generation()?,
            },
            PUT_XATTR => RowChange::PutXattr(self.xattr()?),
            DEL_XATTR => RowChange::DelXattr { ino: self.ino()?, name: self.name()?, at: self.generation()? },
            PUT_BLOCK => RowChange::PutBlock(self.block()?),
            SET_REFS => RowChange::SetRefs {
                id: BlockId(self.array()?),
                refs: self.u64()?,
                state: self.numbered(BlockState::from_number)?,
                state_since: self.generation()?,
            },
            DEL_BLOCK => RowChange::DelBlock(BlockId(self.array()?)),
            PUT_SEGMENT => RowChange::PutSegment(self.segment()?),
            DEL_SEGMENT => RowChange::DelSegment(SegmentId(self.u64()?)),
            PUT_PATCH => RowChange::PutPatch(self.patch()?),
            DEL_PATCHES => RowChange::DelPatches {
                data: self.data()?,
                from: self.chunk_no()?,
                to: self.chunk_no()?,
                through: self.u64()?,
                at: self.generation()?,
            },
            PUT_LINK => RowChange::PutLink(self.link()?),
            DEL_LINK => RowChange::DelLink { data: self.data()?, chunk: self.chunk_no()? },
            PUT_CUT => RowChange::PutCut(self.cut()?),
            DEL_CUT => RowChange::DelCut { data: self.data()?, sequence: self.u64()? },
            PUT_GENERATION => {
                RowChange::PutGeneration(GenerationRow { generation: self.generation()?, time_ns: self.i64()? })
            }
            DEL_GENERATION => RowChange::DelGeneration(self.generation()?),
            PUT_SNAPSHOT => RowChange::PutSnapshot(self.snapshot()?),
            DEL_SNAPSHOT => RowChange::DelSnapshot { name: self.entry_name()? },
            PUT_SHELF => RowChange::PutShelf(self.shelf()?),
            DEL_SHELF => {
                RowChange::DelShelf { shelf: self.numbered(Shelf::from_number)?, key: self.bytes16(SHELF_KEY_MAX)? }
            }
            PUT_PAST_INODE => {
                let row = self.inode()?;
                self.past(Past::Inode(row))?
            }
            PUT_PAST_DENTRY => {
                let row = self.dentry()?;
                self.past(Past::Dentry(row))?
            }
            PUT_PAST_EXTENT => {
                let row = self.extent()?;
                self.past(Past::Extent(row))?
            }
            PUT_PAST_XATTR => {
                let row = self.xattr()?;
                self.past(Past::Xattr(row))?
            }
            PUT_PAST_PATCH => {
                let row = self.patch()?;
                self.past(Past::Patch(row))?
            }
            DEL_PAST_INODE => RowChange::DelPast(PastKey::Inode(self.ino()?, Version(self.u64()?), self.generation()?)),
            DEL_PAST_DENTRY => {
                RowChange::DelPast(PastKey::Dentry(self.ino()?, self.u64()?, self.entry_name()?, self.generation()?))
            }
            DEL_PAST_EXTENT => RowChange::DelPast(PastKey::Extent(self.data()?, self.chunk_no()?, self.generation()?)),
            DEL_PAST_XATTR => RowChange::DelPast(PastKey::Xattr(self.ino()?, self.name()?, self.generation()?)),
            DEL_PAST_PATCH => RowChange::DelPast(PastKey::Patch(self.data()?, self.chunk_no()?, self.u64()?)),
            _ => return Err("an unknown kind of change"),
        })
    }
}
