//! Giving a lost member's place to an empty directory.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::Volume;
use super::open::write_copies;
use crate::backing::{Backing, DirBacking};
use crate::error::{Error, Result};
use crate::superblock::Superblock;

impl Volume {
    /// Give the vacant slots of all segments to members that are there now. What belongs there is missing until it is
    /// healed, and found so by whoever reads it.
    pub(crate) fn fill_vacant_slots(&self) -> Result<()> {
        self.writable()?;
        let rows = self.meta.with(|txn| txn.segments())?;
        for mut row in rows.into_iter().filter(|row| row.slots.contains(&None)) {
            let mut free: Vec<_> =
                self.set.healthy().map(|member| member.id).filter(|id| !row.slots.contains(&Some(*id))).collect();
            if free.is_empty() {
                continue;
            }
            for slot in row.slots.iter_mut().filter(|slot| slot.is_none()) {
                *slot = free.pop();
            }
            self.meta.with(|txn| txn.put_segment(&row))?;
            self.blocks.forget_segment(row.id);
        }
        Ok(())
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
