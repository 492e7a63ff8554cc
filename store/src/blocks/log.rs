//! Appending what is no file data: commit records and the blocks of checkpoint images.

use super::Blocks;
use crate::error::Result;
use crate::ids::{BlockId, BlockKey, Generation};
use crate::seal::{BlockKind, Codec, Sealer};
use crate::shard::{CommitHeader, Location, RecordKind};

/// Shard lengths are multiples of this, bytes.
const SHARD_ALIGN: usize = 64;

impl Blocks {
    /// Append one part of a commit record, erasure-coded. Not synced when it returns.
    pub fn append_commit(&self, commit: CommitHeader, message: &[u8]) -> Result<()> {
        let shard_len = message.len().div_ceil(self.geometry.data()).next_multiple_of(SHARD_ALIGN);
        let generation = commit.generation;
        let pieces = [(BlockId::default(), 0, message)];
        let mut stripe = self.make_stripe(RecordKind::CommitShard, &pieces, shard_len, Vec::new());
        stripe.commit = Some(commit);
        let mut stripes = [stripe];
        let written = self.write_stripes(&mut stripes, generation);
        let [stripe] = stripes;
        self.give_back(stripe.shards);
        let (_, opened) = written?;
        self.unrecorded.lock().extend(opened);
        Ok(())
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
        let written = self.write_stripes(&mut stripes, generation);
        let [stripe] = stripes;
        let at = stripe.at;
        self.give_back(stripe.shards);
        let (extent, opened) = written?;
        self.unrecorded.lock().extend(opened);
        Ok(Location { segment: extent.segment.id, stripe: extent.offset + at, offset: 0, len })
    }
}
