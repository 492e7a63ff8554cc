//! Appending what is no file data: commit records and the blocks of checkpoint images.

use std::time::Duration;

use super::Blocks;
use crate::backing::{DIRECT_ALIGN, SharedBytes};
use crate::error::{Error, Result};
use crate::ids::{BlockId, BlockKey, Generation, SegmentId, ShardIndex};
use crate::seal::{BlockKind, Codec, Sealer};
use crate::segment::{Extent, QUORUM_PATIENCE};
use crate::shard::{CommitHeader, Location, RecordHeader, RecordKind, payload_checksum, stripe_tag};

/// Shard lengths are multiples of this, bytes.
const SHARD_ALIGN: usize = 64;

/// Messages up to this long are written as whole copies, bytes: those of small syncs. A copy takes k times a shard's
/// room, which longer ones are not to cost.
const COPY_LEN_MAX: usize = 64 << 10;

/// Where a part of a commit record lies, and who is to sync it.
#[derive(Clone, Copy, Debug)]
pub struct AppendedCommit {
    /// The segment.
    pub segment: SegmentId,
    /// Number of the part.
    pub part: u16,
    /// The ack set its header names.
    pub ack_set: u64,
}

impl Blocks {
    /// Append one part of a commit record. Not synced when it returns.
    ///
    /// While stripes wait to be synced every file of the segment will be, and the record is erasure-coded. Else a short
    /// one is written in whole copies, so that few files need syncing. Silent directories without which there are too few
    /// are waited for at most `limit`.
    pub fn append_commit(&self, commit: CommitHeader, message: &[u8], limit: Duration) -> Result<AppendedCommit> {
        let copies = message.len() <= COPY_LEN_MAX && !self.segments.has_unsynced_stripes();
        let append = if copies { Self::append_copies } else { Self::append_coded };
        let (extent, ack_set) = append(self, commit, message, limit)?;
        Ok(AppendedCommit { segment: extent.segment.id, part: commit.part, ack_set })
    }

    fn append_coded(&self, commit: CommitHeader, message: &[u8], limit: Duration) -> Result<(Extent, u64)> {
        let shard_len = message.len().div_ceil(self.geometry.data()).next_multiple_of(SHARD_ALIGN);
        let pieces = [(BlockId::default(), 0, message)];
        let mut stripe = self.make_stripe(RecordKind::CommitShard, &pieces, shard_len, Vec::new());
        stripe.commit = Some(commit);
        let mut stripes = [stripe];
        let written = self.write_stripes(&mut stripes, commit.generation, limit);
        let [stripe] = stripes;
        let ack_set = stripe.commit.map_or(0, |commit| commit.ack_set);
        self.give_back_shared(stripe.shards);
        Ok((written?, ack_set))
    }

    fn append_copies(&self, commit: CommitHeader, message: &[u8], limit: Duration) -> Result<(Extent, u64)> {
        // The record takes whole pages, so that it can be written past the cache.
        let header_len = RecordHeader::header_len(0, RecordKind::CommitCopy);
        let len = ((header_len + message.len()) as u64).next_multiple_of(DIRECT_ALIGN);
        let tag = stripe_tag([message]);
        let mut payload = message.to_vec();
        payload.resize(len as usize - header_len, 0);
        let checksum = payload_checksum(&payload);
        let payload = SharedBytes::from(payload);
        let (mut written, mut through) = (0, false);
        let extent = self.append_run(len, DIRECT_ALIGN, commit.generation, limit, |extent| {
            let slots = self.segments.slots_for_copies(&extent.segment).ok_or_else(|| Error::TooFewMembers {
                healthy: self.segments.healthy(&extent.segment).count_ones() as usize,
                needed: self.segments.min_ack(),
            })?;
            written = slots;
            let copies = (0..extent.segment.slots.len()).filter(|slot| slots >> slot & 1 == 1).map(|slot| {
                let header = RecordHeader {
                    kind: RecordKind::CommitCopy,
                    volume: self.volume,
                    segment: extent.segment.id,
                    incarnation: extent.segment.incarnation,
                    offset: extent.offset,
                    shard: ShardIndex(slot as u8),
                    geometry: self.geometry,
                    message_len: message.len() as u32,
                    shard_len: payload.len() as u32,
                    stripe_tag: tag,
                    payload_checksum: checksum,
                    blocks: Vec::new(),
                    commit: Some(CommitHeader { ack_set: slots, copies: slots, ..commit }),
                }
                .encode(&self.header_mac);
                (slot, vec![header.into(), payload.clone()])
            });
            let copies: Vec<(usize, Vec<SharedBytes>)> = copies.collect();
            through = self.segments.write_through(extent, &copies);
            if through { Ok(()) } else { self.segments.write(extent, copies, true, limit) }
        })?;
        if !through {
            self.segments.appended_copies(&extent, len, written);
        }
        Ok((extent, written))
    }

    /// Seal a part of a checkpoint image and append it. Not synced when it returns.
    pub fn append_image(&self, key: &BlockKey, plain: &[u8], generation: Generation) -> Result<Location> {
        let mut sealed = self.arena();
        self.sealer.seal(BlockKind::Checkpoint, key, Codec::None, plain, &mut sealed);
        let shard_len = sealed.len().div_ceil(self.geometry.data()).next_multiple_of(SHARD_ALIGN);
        let len = sealed.len() as u32;
        let pieces = [(Sealer::block_id(key), 0, &sealed[..])];
        let mut stripes = [self.make_stripe(RecordKind::Stripe, &pieces, shard_len, Vec::new())];
        self.give_back(sealed);
        let written = self.write_stripes(&mut stripes, generation, QUORUM_PATIENCE);
        let [stripe] = stripes;
        let at = stripe.at;
        self.give_back_shared(stripe.shards);
        let extent = written?;
        Ok(Location { segment: extent.segment.id, stripe: extent.offset + at, offset: 0, len })
    }
}
