//! Blocks that are to lie elsewhere: out of a segment that gc wants empty, and out of one that lost a directory while they
//! were synced (R9).

use std::time::Duration;

use super::Volume;
use crate::backing::Health;
use crate::error::{Error, Result};
use crate::ids::SegmentId;
use crate::meta::rows::{BlockRow, BlockState};

/// Rows read in one operation.
const PAGE: usize = 1000;
/// Sealed bytes moved in one operation.
const BATCH: u64 = 2 << 20;
/// Who stored something ahead has put its rows after this time, or is asked again in the next round.
const ROWS_WAIT: Duration = Duration::from_secs(2);

impl Volume {
    /// Move the blocks of a segment that lie at or past `from` (bytes) to the open segment, in batches. Returns how many
    /// sealed bytes were moved. Errors as of [`crate::blocks::Blocks::relocate`].
    pub(crate) fn move_blocks(&self, segment: SegmentId, mut from: u64) -> Result<u64> {
        let mut moved = 0;
        loop {
            let mut page = self.meta.with(|txn| txn.blocks_of_segment(segment, from, PAGE))?;
            let Some(last) = page.last().map(|row| row.offset) else { return Ok(moved) };
            // A stripe that the page may have cut comes with the next one.
            if page.len() == PAGE && page[0].offset != last {
                page.retain(|row| row.offset != last);
            }
            // Whole stripes, as many as make a batch.
            let mut batch: Vec<BlockRow> = Vec::new();
            let mut bytes = 0;
            for row in page {
                let same = batch.last().is_some_and(|last: &BlockRow| last.offset == row.offset);
                if !same && bytes >= BATCH {
                    break;
                }
                bytes += u64::from(row.sealed_len);
                from = row.offset + 1;
                batch.push(row);
            }
            batch.retain(|row| row.state != BlockState::Condemned);
            if !batch.is_empty() {
                let _held = self.gate();
                let bytes = self.blocks.relocate(&batch)?;
                self.space.wrote(bytes);
                moved += bytes;
            }
        }
    }

    /// Write again, in a new segment, the blocks that a directory lost with a failed sync, if another directory can take
    /// its place: they have all their shards at once, and not only when the one that failed is healed (R9). Where none
    /// can, the shards that were synced are as many as would be written.
    ///
    /// # Errors
    /// Those of [`Self::move_blocks`], but not for want of space: then they wait for healing.
    pub(super) fn move_what_missed_a_sync(&self) -> Result<()> {
        let segments = self.blocks.segments();
        for segment in segments.missed() {
            if !self.lies_better_elsewhere(segment) {
                continue;
            }
            // What misses a sync meanwhile is told anew.
            let Some(from) = segments.take_missed(segment) else { continue };
            // What is stored ahead has no rows yet when it misses one.
            if !self.blocks.pins().wait_for_earlier(ROWS_WAIT) {
                segments.give_back_missed(segment, from);
                continue;
            }
            match self.move_blocks(segment, from) {
                Ok(moved) => log::info!("segment {segment}: {moved} bytes that missed a sync are written elsewhere"),
                Err(Error::NoSpace) => log::warn!("segment {segment}: no room elsewhere for what missed a sync"),
                Err(error) => {
                    segments.give_back_missed(segment, from);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// True if a slot of a segment lacks something, its directory failed, and a healthy one that has no slot could have it
    /// in a new segment. One that is merely silent is waited for.
    pub(super) fn lies_better_elsewhere(&self, segment: SegmentId) -> bool {
        let lacking = self.blocks.segments().lacking(segment);
        // What nobody knows any more was given back.
        let Ok(info) = self.blocks.segment_info(segment) else { return false };
        let lacks = info.slots.iter().enumerate().filter(|(slot, _)| lacking >> slot & 1 == 1);
        let mut members = lacks.filter_map(|(_, id)| self.set.get(id.as_ref()?));
        let failed = members.any(|member| !matches!(member.health(), Health::Healthy | Health::Sick));
        failed && self.set.healthy().any(|member| !info.slots.contains(&Some(member.id)))
    }
}
