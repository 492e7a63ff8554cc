//! How full the volume is.

use brine_store::ids::ROOT_INO;
use brine_store::volume::StatFs;

use super::Vfs;
use crate::errno::Outcome;

impl Vfs {
    /// Space and inodes, used and free.
    pub fn stat_fs(&self) -> Outcome<StatFs> {
        self.volume.stat_fs().map_err(|error| self.fail("statfs at", ROOT_INO, &error))
    }
}
