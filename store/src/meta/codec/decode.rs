//! From bytes to changes. The bytes may be anybody's: what no writer writes is refused.

use std::sync::Arc;

use super::*;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::ids::{BlockId, BlockKey, ChunkNo, ContentDigest, DataId, Generation, Incarnation, Ino, SegmentId, Version};
use crate::meta::changes::{Past, PastKey, RowChange};
use crate::meta::rows::*;
use crate::meta::segment::decode_slots;

/// Decode a whole sequence.
///
/// # Errors
/// [`Error::Format`] if it has another version, breaks off, or holds what no writer writes.
pub fn decode_changes(bytes: &[u8]) -> Result<Vec<RowChange>> {
    let mut input = Input { rest: bytes };
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
        let at = bytes.len() - input.rest.len();
        Error::format("row changes of a commit record", format!("{reason}, at byte {at} of {}", bytes.len()))
    })
}

type Read<T> = Result<T, &'static str>;

struct Input<'i> {
    rest: &'i [u8],
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
