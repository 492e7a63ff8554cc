//! Checkpoint pointers: sealed, since the root's key in clear would open the whole image.

use super::SuperblockError;
use crate::ids::{BlockKey, Generation, SegmentId};
use crate::record::{ChainHash, put_location, read_location};
use crate::seal::{NONCE_ZERO, TAG_LEN, VolumeKeys, decrypt, encrypt};
use crate::shard::Location;
use crate::wire::{Purpose, Put, Reader, associated};

const FORMAT: u16 = 1;
const HEAD_LEN: usize = 104;
const OPEN_LEN: usize = 16;

/// Most segments that may be open at once.
pub const OPEN_SEGMENTS_MAX: usize = 1024;

/// Longest sealed pointer, bytes.
pub(super) const SEALED_LEN_MAX: usize = HEAD_LEN + OPEN_SEGMENTS_MAX * OPEN_LEN + TAG_LEN;

/// A segment that was open when a checkpoint was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSegment {
    /// The segment.
    pub segment: SegmentId,
    /// Where its next record went, bytes: replay scans from here.
    pub tail: u64,
}

/// What recovery starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointPointer {
    /// The closed generation whose rows the image holds.
    pub generation: Generation,
    /// Chain hash of that generation.
    pub chain: ChainHash,
    /// Key of the image's root block.
    pub root: BlockKey,
    /// Where the root block lies.
    pub location: Location,
    /// Segments open then.
    pub open_segments: Vec<OpenSegment>,
}

impl CheckpointPointer {
    /// The sealed pointer. The nonce is zero: equal pointers give equal bytes, which tells only that they are equal.
    pub(super) fn seal(&self, keys: &VolumeKeys) -> Result<Vec<u8>, SuperblockError> {
        if self.open_segments.len() > OPEN_SEGMENTS_MAX {
            return Err(SuperblockError::Field("number of open segments"));
        }
        let mut out = Vec::with_capacity(HEAD_LEN + self.open_segments.len() * OPEN_LEN + TAG_LEN);
        out.put_u16(FORMAT);
        out.put_u16(self.open_segments.len() as u16);
        out.put_u32(0);
        out.put_u64(self.generation.0);
        out.put(&self.chain.0);
        out.put(&self.root.0);
        put_location(&mut out, &self.location);
        debug_assert_eq!(out.len(), HEAD_LEN);
        for open in &self.open_segments {
            out.put_u64(open.segment.0);
            out.put_u64(open.tail);
        }
        let aad = associated(&keys.volume(), Purpose::CheckpointPointer);
        let tag = encrypt(keys.checkpoint_pointer_key(), &NONCE_ZERO, &aad, &mut out);
        out.put(&tag);
        Ok(out)
    }

    pub(super) fn open(keys: &VolumeKeys, sealed: &[u8]) -> Result<Self, SuperblockError> {
        let mut sealed = sealed.to_vec();
        let damaged = SuperblockError::Damaged("a checkpoint pointer does not open");
        let (body, tag) = sealed.split_last_chunk_mut::<TAG_LEN>().ok_or(damaged)?;
        let aad = associated(&keys.volume(), Purpose::CheckpointPointer);
        if !decrypt(keys.checkpoint_pointer_key(), &NONCE_ZERO, &aad, body, tag) {
            return Err(damaged);
        }
        let mut reader = Reader::new(body);
        let needs = reader.u16()?;
        if needs != FORMAT {
            return Err(SuperblockError::Version { needs });
        }
        let count = usize::from(reader.u16()?);
        if reader.u32()? != 0 || count > OPEN_SEGMENTS_MAX {
            return Err(SuperblockError::Field("checkpoint pointer"));
        }
        let (generation, chain) = (Generation(reader.u64()?), ChainHash(reader.array()?));
        let (root, location) = (BlockKey(reader.array()?), read_location(&mut reader)?);
        if reader.rest().len() != count * OPEN_LEN {
            return Err(SuperblockError::Field("number of open segments"));
        }
        let mut open_segments = Vec::with_capacity(count);
        for _ in 0..count {
            open_segments.push(OpenSegment { segment: SegmentId(reader.u64()?), tail: reader.u64()? });
        }
        Ok(Self { generation, chain, root, location, open_segments })
    }
}
