//! Which ranges of which segments hold nothing alive.

use std::collections::HashMap;

use super::{BATCH, Gc, GcReport, PATIENCE};
use crate::error::Result;
use crate::ids::{Generation, SegmentId};
use crate::meta::rows::{SegmentRow, SegmentState};
use crate::shard::SEGMENT_HEADER_LEN;
use crate::volume::Volume;

/// Bytes of one file below which a plan is not worth its calls, in the background.
const GAIN_MIN: u64 = 256 << 10;
/// Blocks of the filesystem, assumed, bytes: less than one in a row is not counted as gain.
const FS_BLOCK: u64 = 4096;

/// What of a segment is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The state that says so is that of this generation or a later one.
    pub noted: Generation,
    /// Dead ranges of each file: start and end, ascending.
    pub dead: Vec<(u64, u64)>,
    /// Nothing in the segment is alive.
    pub whole: bool,
}

/// Where the blocks of the kept checkpoints lie: they have no rows.
#[derive(Debug)]
pub(crate) struct Images {
    /// The checkpoints they were read from.
    pub of: Vec<Generation>,
    /// Offset and record length of each stripe, by segment.
    pub stripes: HashMap<SegmentId, Vec<(u64, u64)>>,
}

/// Ranges between `live` ones (ascending, perhaps overlapping) from the end of the header to `end`.
pub(super) fn complement(live: &[(u64, u64)], end: u64) -> Vec<(u64, u64)> {
    let mut dead = Vec::new();
    let mut at = SEGMENT_HEADER_LEN as u64;
    for &(offset, len) in live {
        if offset > at {
            dead.push((at, offset));
        }
        at = at.max(offset.saturating_add(len));
    }
    if at < end {
        dead.push((at, end));
    }
    dead
}

/// Bytes of whole filesystem blocks inside these ranges.
fn punchable(ranges: &[(u64, u64)]) -> u64 {
    let inward =
        |&(start, end): &(u64, u64)| (end / FS_BLOCK * FS_BLOCK).saturating_sub(start.next_multiple_of(FS_BLOCK));
    ranges.iter().map(inward).sum()
}

/// Stripes of a segment that a row keeps alive: (offset, length), ascending. A row may go while this runs, but none
/// can come in a closed segment, so the pages need not be of one moment.
pub(super) fn live_stripes(volume: &Volume, segment: SegmentId) -> Result<(Vec<(u64, u64)>, Generation)> {
    let mut live = Vec::new();
    let mut from = 0;
    loop {
        let (page, noted) =
            volume.meta().with(|txn| Ok((txn.live_stripes(segment, from, BATCH)?, txn.settled_in())))?;
        let Some(&(last, _)) = page.last() else { return Ok((live, noted)) };
        from = last + 1;
        live.extend(page);
    }
}

impl Gc {
    /// Closed segments that may be looked at: nobody is about to put the row of a block in them.
    fn settled(&self, volume: &Volume) -> Result<Option<Vec<SegmentRow>>> {
        let rows = volume.meta().with(|txn| txn.segments())?;
        // Whoever appended to a segment before it was closed holds a pin until the rows are put.
        if !volume.blocks().pins().wait_for_earlier(PATIENCE) {
            return Ok(None);
        }
        Ok(Some(rows.into_iter().filter(|row| row.state != SegmentState::Open).collect()))
    }

    /// Live bytes of one file of a segment, ranges of blocks and of images together.
    fn live(&self, volume: &Volume, segment: SegmentId) -> Result<(Vec<(u64, u64)>, Generation)> {
        let (mut live, noted) = live_stripes(volume, segment)?;
        if let Some(images) = &self.images {
            live.extend(images.stripes.get(&segment).into_iter().flatten());
            live.sort_unstable();
        }
        Ok((live, noted))
    }

    /// Make plans of all segments where something can be freed, however little if `all`. Returns how many bytes of all
    /// devices that would give back.
    pub(super) fn plan_all(&mut self, volume: &Volume, all: bool, report: &mut GcReport) -> Result<u64> {
        self.plans.clear();
        // The blocks of an image that is just being written are told of by nothing.
        let images = volume.hold_images();
        let Some(segments) = self.settled(volume)? else {
            report.problems.push("somebody has been reading or writing for long; try again later".into());
            return Ok(0);
        };
        self.images = Some(volume.image_stripes(self.images.take())?);
        let rows_live = volume.meta().reader()?.live_bytes(false)?;
        let mut gain = 0;
        for row in segments {
            let allocated = volume.allocated(&row);
            let occupied = allocated.len() as u64;
            let total: u64 = allocated.iter().sum();
            // Without reading its rows: is there anything to gain?
            let most = total.saturating_sub(occupied * rows_live.get(&row.id).copied().unwrap_or(0));
            if most < if all { occupied * FS_BLOCK } else { GAIN_MIN } && row.state != SegmentState::Condemned {
                continue;
            }
            let (live, noted) = self.live(volume, row.id)?;
            // No commit record in it is of a later generation than that in which it was closed, so they are dead, too,
            // once both checkpoints are past that. A condemned one was dead by then.
            let noted = if row.state == SegmentState::Condemned { row.since } else { noted.max(row.since) };
            let dead = complement(&live, row.capacity);
            let whole = live.is_empty();
            // What lies in holes already is not gained again: at most what is allocated beyond the live blocks is.
            let kept = row.capacity - punchable(&dead);
            let gained: u64 = if whole {
                total
            } else {
                let slots = volume.allocated_where(&row, |member| !self.no_punch.contains(member));
                slots.iter().map(|bytes| bytes.saturating_sub(kept)).sum()
            };
            let worth = if all { gained >= FS_BLOCK } else { gained >= GAIN_MIN };
            if whole || worth {
                gain += gained;
                self.plans.insert(row.id, Plan { noted, dead, whole });
            }
        }
        drop(images);
        Ok(gain)
    }

    /// Move the live blocks out of segments that waste much, at most `max` sealed bytes of them, and no more than there is
    /// room for while nothing is freed yet. Returns how many were.
    pub(super) fn rewrite_all(&mut self, volume: &Volume, max: u64, report: &mut GcReport) -> Result<u64> {
        let Some(segments) = self.settled(volume)? else { return Ok(0) };
        self.images = Some(volume.image_stripes(self.images.take())?);
        let rows_live = volume.meta().reader()?.live_bytes(false)?;
        let room = volume.movable();
        let mut moved = 0;
        let mut leaving = Vec::new();
        for row in segments.iter().filter(|row| row.state == SegmentState::Closed) {
            if moved >= max {
                break;
            }
            // Without reading its rows: can it waste anything?
            let most = volume.allocated(row).into_iter().max().unwrap_or(0);
            if most < 2 * rows_live.get(&row.id).copied().unwrap_or(0) + 4 * FS_BLOCK {
                continue;
            }
            let (live, _) = self.live(volume, row.id)?;
            let alive: u64 = live.iter().map(|(_, len)| len).sum();
            if live.is_empty() || !self.wastes(volume, row, &live, alive) {
                continue;
            }
            if moved + alive * u64::from(row.data) > room {
                log::debug!("gc: no room to move what lives in segment {}", row.id);
                continue;
            }
            leaving.push(row.id);
            let moved_here = volume.move_blocks(row.id, 0)?;
            self.step_done()?;
            moved += moved_here;
            report.segments_rewritten += 1;
            report.bytes_moved += moved_here;
        }
        volume.leave_in_images(leaving);
        Ok(moved)
    }

    /// True if, after punching what can be punched, less than half of what a segment takes is alive: `alive` bytes of each
    /// file, at `live`.
    fn wastes(&self, volume: &Volume, row: &SegmentRow, live: &[(u64, u64)], alive: u64) -> bool {
        let dead = complement(live, row.capacity);
        let holes = punchable(&dead);
        let punched = (row.capacity - holes).max(alive);
        let unpunched = volume.allocated_where(row, |member| self.no_punch.contains(member));
        let most = unpunched.into_iter().max().unwrap_or(0).max(punched);
        most >= 2 * alive + 4 * FS_BLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_alive_is_dead() {
        assert_eq!(complement(&[], 8192), [(4096, 8192)]);
        assert_eq!(complement(&[(4096, 4096)], 8192), []);
        assert_eq!(
            complement(&[(5120, 512), (5120, 1024), (9216, 512)], 16384),
            [(4096, 5120), (6144, 9216), (9728, 16384)]
        );
        assert_eq!(complement(&[(4096, 1 << 20)], 8192), [], "never beyond its end");
    }

    #[test]
    fn only_whole_blocks_are_punched() {
        assert_eq!(punchable(&[(4096, 8192)]), 4096);
        assert_eq!(punchable(&[(4608, 8192), (8704, 12000)]), 0);
        assert_eq!(punchable(&[(4608, 16384)]), 8192);
    }
}
