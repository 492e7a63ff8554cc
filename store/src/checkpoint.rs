//! Checkpoints: an image of the metadata as sealed blocks, from which the log is replayed.
//!
//! Promises: an image is published in the superblocks only after its blocks are synced and its generation is durable
//! (R11). Parts that did not change since the image before are not written again: rows are cut into blocks where a
//! hash of a row says so, and equal blocks have equal keys.

use std::collections::HashMap;

use crate::blocks::Blocks;
use crate::commit_log::Head;
use crate::error::{Error, Result};
use crate::ids::{BlockKey, VolumeId};
use crate::meta::Reader as MetaReader;
use crate::meta::codec::{CHANGES_HEADER_LEN, begin_changes, encode_change};
use crate::record::{IMAGE_ENTRIES_MAX, ImageEntry, ImageIndex};
use crate::seal::{BlockKind, Salt, Sealer};
use crate::shard::Location;

/// Longest block of rows, bytes.
const PART_LEN_MAX: usize = 512 << 10;
/// Shortest, bytes.
const PART_LEN_MIN: usize = 64 << 10;
/// A row ends a block if its hash has these bits clear: one in 1024.
const CUT_MASK: u64 = 0x3ff;

/// An image that was written.
#[derive(Debug)]
pub struct Written {
    /// Key of its root block.
    pub root: BlockKey,
    /// Where that lies.
    pub location: Location,
    /// Blocks of rows.
    pub entries: Vec<ImageEntry>,
    /// Digest of the rows.
    pub rows_digest: [u8; 32],
    /// Bytes of rows that were written, and that stood in the image before.
    pub bytes: (u64, u64),
}

struct Image<'a> {
    blocks: &'a Blocks,
    sealer: &'a Sealer,
    head: Head,
    before: HashMap<[u8; 32], Location>,
    bytes: (u64, u64),
}

impl Image<'_> {
    fn put(&mut self, plain: &[u8]) -> Result<ImageEntry> {
        let digest = self.sealer.content_digest(BlockKind::Checkpoint, plain);
        let key = self.sealer.block_key(&Salt { domain: 0, epoch: 0, index: 0 }, &digest);
        if let Some(location) = self.before.get(&key.0) {
            self.bytes.1 += plain.len() as u64;
            return Ok(ImageEntry { key, location: *location });
        }
        let location = self.blocks.append_image(&key, plain, self.head.generation)?;
        self.bytes.0 += plain.len() as u64;
        self.before.insert(key.0, location);
        Ok(ImageEntry { key, location })
    }
}

/// Write the image of one committed state. Synced when it returns; publishing it is the caller's.
///
/// # Errors
/// Those of reading the database and of appending.
pub fn write(
    blocks: &Blocks,
    sealer: &Sealer,
    volume: VolumeId,
    state: &MetaReader,
    head: Head,
    before: &[ImageEntry],
) -> Result<Written> {
    if state.generation() != head.generation {
        return Err(Error::format("checkpoint", "the state read is not the one the log ends with"));
    }
    let before = before.iter().map(|entry| (entry.key.0, entry.location)).collect();
    let mut image = Image { blocks, sealer, head, before, bytes: (0, 0) };
    let mut entries = Vec::new();
    let mut part = Vec::new();
    begin_changes(&mut part);
    let rows_digest = state.image(|change| {
        let start = part.len();
        encode_change(&change, &mut part);
        let cut = part.len() >= PART_LEN_MIN && fnv(&part[start..]) & CUT_MASK == 0;
        if cut || part.len() >= PART_LEN_MAX {
            entries.push(image.put(&part)?);
            part.clear();
            begin_changes(&mut part);
        }
        Ok(())
    })?;
    if part.len() > CHANGES_HEADER_LEN {
        entries.push(image.put(&part)?);
    }
    let index = |level, entries| ImageIndex {
        level,
        volume,
        generation: head.generation,
        chain: head.chain,
        rows_digest,
        entries,
    };
    let mut level = 0;
    let mut top = entries.clone();
    while top.len() > IMAGE_ENTRIES_MAX {
        top = top
            .chunks(IMAGE_ENTRIES_MAX)
            .map(|some| image.put(&index(level, some.to_vec()).encode()))
            .collect::<Result<Vec<_>>>()?;
        level += 1;
    }
    let root = image.put(&index(level, top).encode())?;
    blocks.segments().sync()?;
    Ok(Written { root: root.key, location: root.location, entries, rows_digest, bytes: image.bytes })
}

/// FNV-1a (Fowler, Noll, Vo) of eight bytes at a time: where to cut needs no secrecy, only that equal rows cut alike.
fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x0100_0000_01b3);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| step(hash, u64::from_le_bytes(*word)));
    let hash = rest.iter().fold(hash, |hash, byte| step(hash, u64::from(*byte)));
    // Of a word's high bytes the low bits of a product know nothing.
    hash ^ hash >> 32
}
