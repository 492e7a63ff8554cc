//! How full the volume is.

use brine_store::ids::Ino;
use brine_store::volume::StatFs;

use super::Vfs;
use crate::control_dir::is_control;
use crate::errno::Outcome;

impl Vfs {
    /// Space and inodes, used and free: where a quota leaves less than the volume has, those of the quota.
    pub fn stat_fs(&self, ino: Ino) -> Outcome<StatFs> {
        let fail = |error| self.fail("statfs at", ino, &error);
        let mut stat = self.volume.stat_fs().map_err(fail)?;
        if is_control(ino) {
            return Ok(stat);
        }
        let room = self.volume.quota_room(ino).map_err(fail)?;
        let unit = u64::from(stat.block_size);
        if let Some((limit, free)) = room.bytes
            && free / unit < stat.free
        {
            stat.free = free / unit;
            stat.available = stat.free;
            // As of a disk of that size: what is used is the difference.
            stat.blocks = limit / unit;
        }
        if let Some((limit, free)) = room.inodes
            && free < stat.files_free
        {
            (stat.files, stat.files_free) = (limit, free);
        }
        Ok(stat)
    }
}
