//! The index blocks of a checkpoint image. FORMAT.md section 8.3.

use super::{ChainHash, RecordError};
use crate::ids::{BlockKey, Generation, SegmentId, VolumeId};
use crate::seal::CHUNK_LEN_MAX;
use crate::shard::Location;
use crate::wire::{Put, Reader};

const MAGIC: [u8; 8] = *b"brineIMG";
const FORMAT: u16 = 1;
const HEAD_LEN: usize = 104;
const ENTRY_LEN: usize = 56;

/// Deepest index: with 18,722 entries a block, a root of this level names 350 million chunks.
const LEVEL_MAX: u8 = 1;

/// Most entries of one index block: it is a chunk as any other.
pub const IMAGE_ENTRIES_MAX: usize = (CHUNK_LEN_MAX - HEAD_LEN) / ENTRY_LEN;

/// A block of the image: all that is needed to read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// Its key.
    pub key: BlockKey,
    /// Where it lies.
    pub location: Location,
}

/// An index block; the root is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageIndex {
    /// 0: the entries are chunks of rows. Else they are index blocks one level lower.
    pub level: u8,
    /// The volume.
    pub volume: VolumeId,
    /// The closed generation whose rows these are.
    pub generation: Generation,
    /// Chain hash of that generation.
    pub chain: ChainHash,
    /// Digest of the rows (FORMAT.md section 8.4); the next record carries the same.
    pub rows_digest: [u8; 32],
    /// The blocks, in order.
    pub entries: Vec<ImageEntry>,
}

impl ImageIndex {
    /// The block's plaintext.
    ///
    /// # Panics
    /// If there are more than [`IMAGE_ENTRIES_MAX`] entries or too many levels.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.entries.len() <= IMAGE_ENTRIES_MAX && self.level <= LEVEL_MAX, "image index too large");
        let mut out = Vec::with_capacity(HEAD_LEN + ENTRY_LEN * self.entries.len());
        out.put(&MAGIC);
        out.put_u16(FORMAT);
        out.put_u8(self.level);
        out.put_u8(0);
        out.put_u32(self.entries.len() as u32);
        out.put(&self.volume.0);
        out.put_u64(self.generation.0);
        out.put(&self.chain.0);
        out.put(&self.rows_digest);
        debug_assert_eq!(out.len(), HEAD_LEN);
        for entry in &self.entries {
            out.put(&entry.key.0);
            put_location(&mut out, &entry.location);
        }
        out
    }

    /// Reads an index block's plaintext.
    pub fn decode(plain: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(plain);
        if reader.array()? != MAGIC {
            return Err(RecordError::Form("no checkpoint index"));
        }
        let format = reader.u16()?;
        if format != FORMAT {
            return Err(RecordError::Version(format));
        }
        let (level, reserved, count) = (reader.u8()?, reader.u8()?, reader.u32()? as usize);
        if level > LEVEL_MAX || reserved != 0 {
            return Err(RecordError::Form("level"));
        }
        let (volume, generation) = (VolumeId(reader.array()?), Generation(reader.u64()?));
        let (chain, rows_digest) = (ChainHash(reader.array()?), reader.array()?);
        if count > IMAGE_ENTRIES_MAX || reader.rest().len() != count * ENTRY_LEN {
            return Err(RecordError::Form("number of entries"));
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(ImageEntry { key: BlockKey(reader.array()?), location: read_location(&mut reader)? });
        }
        Ok(Self { level, volume, generation, chain, rows_digest, entries })
    }
}

/// 24 bytes: segment, stripe, offset, length.
pub(crate) fn put_location(out: &mut Vec<u8>, location: &Location) {
    out.put_u64(location.segment.0);
    out.put_u64(location.stripe);
    out.put_u32(location.offset);
    out.put_u32(location.len);
}

pub(crate) fn read_location(reader: &mut Reader<'_>) -> Result<Location, crate::wire::Short> {
    Ok(Location { segment: SegmentId(reader.u64()?), stripe: reader.u64()?, offset: reader.u32()?, len: reader.u32()? })
}
