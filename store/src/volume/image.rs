//! When a checkpoint is due, and publishing it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Volume;
use crate::checkpoint;
use crate::error::Result;
use crate::ids::SegmentId;
use crate::record::{ImageEntry, RowsDigest};
use crate::recover::Reader;
use crate::superblock::{CHECKPOINTS_MAX, CheckpointPointer, OpenSegment};

/// A checkpoint is due when replaying the log costs this much since the last, bytes: it takes two seconds. While much is
/// committed, which an image takes the processor from, twice as much. Of a large database so many times less than it takes:
/// an image is read from all of it.
const LOG_COST_DUE: u64 = 16 << 20;
const LOG_COST_MAX: u64 = 32 << 20;
const DATABASE_SHARE: u64 = 8;
/// Much is committed when the cost grows so much in a second, bytes.
const BUSY: u64 = 512 << 10;
/// A checkpoint is due when this many segments were opened since the last: their headers would be scanned.
const SEGMENTS_MAX: u64 = 8;

/// The image written last, whose blocks the next one need not write again.
#[derive(Debug, Default)]
pub(crate) struct LastImage {
    entries: Option<Vec<ImageEntry>>,
    /// Number of the next segment when it was written.
    next_segment: u64,
    /// When it was asked last whether another is due, and what replaying the log cost then.
    asked: Option<(Instant, u64)>,
    /// Segments that gc wants empty, or that lost a directory: parts of images that lie in them are written anew.
    pub(super) leaving: BTreeSet<SegmentId>,
}

impl LastImage {
    /// What is known of it when a volume is opened.
    pub(super) fn published(pointer: Option<&CheckpointPointer>) -> Self {
        let open = pointer.iter().flat_map(|pointer| &pointer.open_segments);
        Self { next_segment: open.map(|open| open.segment.0 + 1).max().unwrap_or(0), ..Self::default() }
    }
}

/// What the log may cost when that grew by so much in this time.
fn log_limit(grown: u64, time: Duration) -> u64 {
    let busy = u128::from(grown) * 1000 > u128::from(BUSY) * time.as_millis();
    if busy { LOG_COST_MAX } else { LOG_COST_DUE }
}

impl Volume {
    /// Write a checkpoint if one is due.
    pub(super) fn checkpoint_if_due(&self) -> Result<()> {
        let cost = self.log.cost_since_checkpoint();
        let asked = self.last_image.lock().asked.replace((Instant::now(), cost));
        let limit = asked.map_or(LOG_COST_DUE, |(when, before)| log_limit(cost.saturating_sub(before), when.elapsed()));
        self.checkpoint_past(limit)
    }

    /// [`Self::checkpoint_if_due`] when nothing more is committed.
    pub(super) fn checkpoint_at_end(&self) -> Result<()> {
        self.checkpoint_past(LOG_COST_DUE)
    }

    /// Write a checkpoint if the log costs more than this, or is in too many segments.
    fn checkpoint_past(&self, limit: u64) -> Result<()> {
        let opened = self.blocks.segments().next_id().0.saturating_sub(self.last_image.lock().next_segment);
        let cost = self.log.cost_since_checkpoint();
        let costly = cost >= limit && cost >= self.meta.used_bytes()? / DATABASE_SHARE;
        if costly || opened >= SEGMENTS_MAX {
            return self.checkpoint();
        }
        Ok(())
    }

    /// Write an image of the last committed state and publish it in the superblocks (R11).
    pub fn checkpoint(&self) -> Result<()> {
        self.writable()?;
        let mut last = self.last_image.lock();
        // What is read, where the log ends and where the segments end must be of one moment.
        let (state, head, tails, log_cost) = {
            let _held_off = self.commit.exclusive();
            self.log.usable()?;
            let state = self.meta.reader()?;
            (state, self.log.head(), self.blocks.segments().open_tails(), self.log.cost_since_checkpoint())
        };
        let pointer = self.superblock.lock().checkpoints.first().cloned();
        if pointer.as_ref().is_some_and(|pointer| pointer.generation == head.generation) {
            return Ok(());
        }
        if last.entries.is_none() {
            let (stripes, keys, sealer) = (self.blocks.stripes(), &self.keys, &*self.sealer);
            let reader = Reader { stripes, keys, sealer, overrides: &[], report: &|_, _, _| {} };
            // An image that cannot be read is no reason not to write a new one.
            last.entries = pointer.and_then(|pointer| reader.image_index(&pointer).ok()).map(|index| index.entries);
        }
        let mut before = last.entries.take().unwrap_or_default();
        let lacking = self.blocks.segments().lacking_segments().into_iter().map(|(segment, _)| segment);
        last.leaving.extend(lacking.filter(|segment| self.lies_better_elsewhere(*segment)));
        before.retain(|entry| !last.leaving.contains(&entry.location.segment));
        let written = checkpoint::write(&self.blocks, &self.sealer, self.id, &state, head, &before)?;
        drop(state);
        let pointer = CheckpointPointer {
            generation: head.generation,
            chain: head.chain,
            root: written.root,
            location: written.location,
            open_segments: tails.into_iter().map(|(segment, tail)| OpenSegment { segment, tail }).collect(),
        };
        self.write_superblocks(|superblock| {
            superblock.checkpoints.insert(0, pointer);
            superblock.checkpoints.truncate(CHECKPOINTS_MAX);
            superblock.generation = superblock.generation.max(head.generation);
        })?;
        // Not before it is published: what nothing names, gc frees.
        last.entries = Some(written.entries);
        last.next_segment = self.blocks.segments().next_id().0;
        self.log.checkpointed(log_cost, RowsDigest { generation: head.generation, digest: written.rows_digest });
        log::debug!(
            "checkpoint of generation {}: {} bytes written, {} kept",
            head.generation,
            written.bytes.0,
            written.bytes.1
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_may_cost_more_while_much_is_committed() {
        let second = Duration::from_secs(1);
        assert_eq!(log_limit(0, Duration::ZERO), LOG_COST_DUE);
        assert_eq!(log_limit(BUSY, second), LOG_COST_DUE);
        assert_eq!(log_limit(BUSY + 1, second), LOG_COST_MAX);
        assert_eq!(log_limit(BUSY, second / 2), LOG_COST_MAX);
        assert_eq!(log_limit(LOG_COST_MAX, 100 * second), LOG_COST_DUE);
    }
}
