//! Giving a lost member's place to an empty directory.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::Volume;
use super::open::write_copies;
use crate::backing::{Backing, DirBacking};
use crate::error::{Error, Result};
use crate::ids::MemberId;
use crate::superblock::Superblock;

impl Volume {
    /// Bring directories up to date that came back: they are given slots that stood vacant while they were away, of one
    /// segment a call, and what they missed is written. A round of the housekeeper's.
    pub(crate) fn catch_up(&self) -> Result<()> {
        let healthy: Vec<MemberId> = self.set.healthy().map(|member| member.id).collect();
        let vacated = self.blocks.segments().take_vacated();
        if vacated || self.fruitless.lock().as_ref() != Some(&healthy) {
            let filled = self.fill_vacant_slots(1)?;
            *self.fruitless.lock() = (filled == 0).then_some(healthy);
        }
        let behind = self.blocks.segments().lacking_segments();
        if !behind.is_empty() {
            self.blocks.catch_up(self.identity())?;
            if self.blocks.segments().lacking_segments() != behind {
                self.write_superblocks(|_| {})?;
            }
        }
        Ok(())
    }

    /// Give the vacant slots of at most `max` segments to members that are there now; of how many, is the answer. What
    /// belongs there is missing until it is healed: until then they count as behind, also for the next to open the volume.
    pub(crate) fn fill_vacant_slots(&self, max: usize) -> Result<usize> {
        self.writable()?;
        let segments = self.blocks.segments();
        let mut filled = Vec::new();
        for mut row in self.meta.with(|txn| txn.segments())?.into_iter().filter(|row| row.slots.contains(&None)) {
            // What is being appended there goes to the slots it was opened with.
            if filled.len() >= max || segments.in_use(row.id) {
                continue;
            }
            row.slots.clone_from(&self.blocks.segment_info(row.id)?.slots);
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
        if filled.is_empty() {
            return Ok(0);
        }
        // Noted before the rows say that the slots are taken.
        filled.iter().for_each(|(row, mask)| segments.note_lacking(row.id, *mask));
        self.write_superblocks(|_| {})?;
        let _held = self.gate();
        for (row, _) in &filled {
            self.meta.with(|txn| txn.put_segment(row))?;
            self.blocks.forget_segment(row.id);
        }
        Ok(filled.len())
    }

    /// [`Self::fill_vacant_slots`] of all segments, the open one too.
    pub(crate) fn fill_all_vacant_slots(&self) -> Result<()> {
        self.writable()?;
        self.blocks.segments().close_vacant();
        // What waits to be synced goes to the slots that are taken.
        self.blocks.segments().sync()?;
        self.meta.with(|txn| self.blocks.settle_segments(txn))?;
        self.fill_vacant_slots(usize::MAX).map(drop)
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
