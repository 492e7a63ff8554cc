//! Giving a lost member's place to an empty directory.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::Volume;
use super::superblocks::write_copies;
use crate::backing::{Backing, DirBacking};
use crate::blocks::Need;
use crate::error::{Error, Result};
use crate::ids::{Generation, MemberId, SegmentId};
use crate::meta::Txn;
use crate::meta::rows::{SegmentRow, SegmentState};
use crate::superblock::{BEHIND_MAX, Superblock};

/// Segments whose vacant slots are given away at once.
const FILL_STEP: usize = 256;
/// Segments that can be noted as behind beyond those whose slots were filled.
const BEHIND_SPARE: usize = 256;
/// Stripes asked of the database in one operation.
const STRIPES_PAGE: usize = 4096;

impl Volume {
    /// Bring directories up to date that came back: they are given slots that stood vacant while they were away, of one
    /// segment a call, and what they missed is written. A round of the housekeeper's.
    pub(crate) fn catch_up(&self) -> Result<()> {
        let healthy: Vec<MemberId> = self.set.healthy().map(|member| member.id).collect();
        let vacated = self.blocks.segments().take_vacated();
        if vacated || self.fruitless.lock().as_ref() != Some(&healthy) {
            let (filled, _) = self.fill_vacant_slots(SegmentId(0), 1)?;
            // With no room to note more there may be some yet.
            *self.fruitless.lock() = (filled == 0 && self.room_to_note() > 0).then_some(healthy);
        }
        self.catch_up_noted()
    }

    /// Write what directories miss of the segments that are noted, as far as it can be now.
    pub(crate) fn catch_up_noted(&self) -> Result<()> {
        let behind = self.blocks.segments().lacking_segments();
        if !behind.is_empty() {
            self.blocks.catch_up(self.identity(), self)?;
            if self.blocks.segments().lacking_segments() != behind {
                self.write_superblocks(|_| {})?;
            }
        }
        Ok(())
    }

    /// Give the vacant slots of at most `max` segments, from `from` on, to members that are there now; of how many, and up
    /// to where, is the answer. What belongs there is missing until it is healed: until then they count as behind, also
    /// for the next to open the volume. No more are filled than can be noted.
    pub(crate) fn fill_vacant_slots(&self, from: SegmentId, max: usize) -> Result<(usize, SegmentId)> {
        self.writable()?;
        let segments = self.blocks.segments();
        let max = max.min(self.room_to_note());
        let mut filled = Vec::new();
        let rows = self.meta.with(|txn| txn.segments())?.into_iter();
        let is_vacant = |row: &SegmentRow| row.slots.contains(&None) && row.state != SegmentState::Condemned;
        for mut row in rows.filter(|row| is_vacant(row) && row.id >= from) {
            // What is being appended there goes to the slots it was opened with.
            if filled.len() >= max || segments.in_use(row.id) {
                continue;
            }
            row.slots.clone_from(&self.blocks.placement(row.id)?.slots);
            let mut free: Vec<_> =
                self.set.healthy().map(|member| member.id).filter(|id| !row.slots.contains(&Some(*id))).collect();
            let mut mask = 0;
            for (number, slot) in row.slots.iter_mut().enumerate().filter(|(_, slot)| slot.is_none()) {
                *slot = free.pop();
                mask |= u64::from(slot.is_some()) << number;
            }
            // Without any: it was given before, and only the row is to say so.
            if mask != 0 || !row.slots.contains(&None) {
                filled.push((row, mask));
            }
        }
        let Some((last, _)) = filled.last() else { return Ok((0, from)) };
        let next = SegmentId(last.id.0 + 1);
        // Noted before the rows say that the slots are taken.
        filled.iter().for_each(|(row, mask)| segments.note_lacking(row.id, *mask));
        self.write_superblocks(|_| {})?;
        let _held = self.gate();
        for (row, _) in &filled {
            self.meta.with(|txn| take_slots(txn, row))?;
            self.blocks.forget_segment(row.id);
        }
        Ok((filled.len(), next))
    }

    /// Of how many more segments the superblocks have room to say that they are behind, some being left for syncs that
    /// fail.
    fn room_to_note(&self) -> usize {
        (BEHIND_MAX - BEHIND_SPARE).saturating_sub(self.blocks.segments().lacking_segments().len())
    }

    /// [`Self::fill_vacant_slots`] of all segments, the open one too. Of many, what is missing is written in between: no
    /// more are behind at a time than can be noted. Ends early if `cancelled`.
    pub(crate) fn fill_all_vacant_slots(&self, cancelled: &dyn Fn() -> bool) -> Result<()> {
        self.writable()?;
        self.blocks.segments().close_vacant();
        // What waits to be synced goes to the slots that are taken.
        self.blocks.segments().sync()?;
        self.blocks.settled(|_| Ok(()))?;
        let mut from = SegmentId(0);
        while !cancelled() {
            let (filled, next) = self.fill_vacant_slots(from, FILL_STEP)?;
            if filled == 0 {
                break;
            }
            from = next;
            if self.blocks.segments().lacking_segments().len() >= FILL_STEP {
                self.catch_up_noted()?;
            }
        }
        Ok(())
    }
}

/// Say in a segment's row who has its vacant slots. What else it says may have changed since `given` was read, or it may
/// be gone.
pub(super) fn take_slots(txn: &mut Txn<'_>, given: &SegmentRow) -> Result<()> {
    let Some(mut row) = txn.segment(given.id)?.filter(|row| row.state != SegmentState::Condemned) else {
        return Ok(());
    };
    if row.incarnation == given.incarnation {
        row.slots.iter_mut().zip(&given.slots).for_each(|(slot, given)| *slot = slot.or(*given));
        txn.put_segment(&row)?;
    }
    Ok(())
}

impl Need for Volume {
    fn stripes(&self, segment: SegmentId) -> Result<Vec<u64>> {
        // What an image that is being written has stored is told of by nothing yet.
        let _images = self.hold_images();
        let images = self.image_stripes(None)?;
        let mut stripes: Vec<u64> = images.stripes.get(&segment).into_iter().flatten().map(|(at, _)| *at).collect();
        let mut from = 0;
        loop {
            let page = self.meta.with(|txn| txn.live_stripes(segment, from, STRIPES_PAGE))?;
            let Some((last, _)) = page.last() else { return Ok(stripes) };
            from = last + 1;
            stripes.extend(page.into_iter().map(|(at, _)| at));
        }
    }

    fn log_from(&self) -> Option<Generation> {
        self.oldest_checkpoint()
    }

    fn log_until(&self, segment: SegmentId) -> Result<Option<Generation>> {
        let row = self.meta.with(|txn| txn.segment(segment))?;
        // Nothing was appended after it was closed.
        Ok(row.filter(|row| row.state != SegmentState::Open).map(|row| row.since))
    }
}

/// Give the place of the member at `old`, which must be lost, to the empty directory `new`. `brine heal` fills it.
pub fn replace(volume: &Volume, old: &Path, new: &Path) -> Result<()> {
    volume.writable()?;
    let old_known = std::fs::canonicalize(old).unwrap_or_else(|_| old.to_owned());
    let member = volume
        .set
        .members()
        .iter()
        .find(|member| *member.path() == *old_known || *member.path() == *old)
        .ok_or_else(|| {
            let paths: Vec<String> = volume.set.members().iter().map(|m| m.path().display().to_string()).collect();
            Error::Refused(format!("{} is no directory of the volume, which has {}", old.display(), paths.join(", ")))
        })?;
    if member.can_write() && !member.verify_marker() {
        volume.set.mark_missing(&member.id, "its superblock is gone");
    }
    if member.can_write() {
        return Err(Error::Refused(format!(
            "{} is healthy; only a directory that is missing or failed can be replaced",
            member.path().display()
        )));
    }
    let path = std::fs::canonicalize(new)
        .map_err(|source| Error::io(format!("{} (make it first: mkdir)", new.display()), source))?;
    if volume.set.members().iter().any(|other| *other.path() == *path && other.can_read()) {
        return Err(Error::Refused(format!("{} is a directory of the volume already", path.display())));
    }
    super::format::check_empty(&path)?;
    let backing: Arc<dyn Backing> =
        Arc::new(DirBacking::open(&path).map_err(|source| Error::io(path.display().to_string(), source))?);
    backing.lock().map_err(|source| Error::io(format!("locking {}", path.display()), source))?;
    {
        let mut superblock = volume.superblock.lock();
        for entry in &mut superblock.members {
            if entry.id == member.id {
                entry.path = path.as_os_str().as_bytes().to_vec();
            }
        }
        superblock.sequence += 1;
        let own = Superblock { member: member.id, ..superblock.clone() };
        write_copies(backing.as_ref(), &own, &volume.keys).map_err(|source| Error::Backing {
            directory: path.clone(),
            operation: "writing the superblock".into(),
            source,
        })?;
    }
    volume.fence.extend_to(member.id, backing.as_ref())?;
    member.replace(path, backing);
    volume.write_superblocks(|_| {})
}
