//! Where a file has data and where holes.

use brine_store::volume::Attr;

use super::Vfs;
use crate::errno::{Errno, Outcome};

type NextDirty<'a> = &'a dyn Fn(u64) -> Option<(u64, u64)>;

impl Vfs {
    /// SEEK_DATA and SEEK_HOLE. Data and holes come in whole chunks, except for what is not flushed yet.
    pub fn seek(&self, handle: u64, offset: i64, whence: i32) -> Outcome<i64> {
        if let Some(file) = self.control.file(handle) {
            let from = u64::try_from(offset).map_err(|_| Errno::NO_DATA_THERE)?;
            return file?.seek(from, whence).map(|found| found as i64);
        }
        let file = self.file(handle)?;
        let from = u64::try_from(offset).map_err(|_| Errno::NO_DATA_THERE)?;
        let look = |attr: &Attr, dirty: NextDirty<'_>| match whence {
            libc::SEEK_DATA => self.next_data(attr, dirty, from),
            libc::SEEK_HOLE => self.next_hole(attr, dirty, from),
            _ => Err(Errno::INVALID),
        };
        let found = match self.buffer.inspect(&file.node, look) {
            Some(found) => found,
            None => look(&self.attr(file.node.ino)?, &|_| None),
        }?;
        Ok(found as i64)
    }

    fn next_data(&self, attr: &Attr, dirty: NextDirty<'_>, from: u64) -> Outcome<u64> {
        if from >= attr.size {
            return Err(Errno::NO_DATA_THERE);
        }
        let stored = self.volume.seek_data(attr, from).map_err(|error| self.fail("lseek in", attr.ino, &error))?;
        let found = match (stored, dirty(from).map(|run| run.0)) {
            (Some(stored), Some(dirty)) => stored.min(dirty),
            (stored, dirty) => stored.or(dirty).ok_or(Errno::NO_DATA_THERE)?,
        };
        // The store may know of bytes that a truncate not flushed yet has cut off.
        if found < attr.size { Ok(found) } else { Err(Errno::NO_DATA_THERE) }
    }

    fn next_hole(&self, attr: &Attr, dirty: NextDirty<'_>, from: u64) -> Outcome<u64> {
        if from >= attr.size {
            return Err(Errno::NO_DATA_THERE);
        }
        let mut at = from;
        while at < attr.size {
            if let Some((start, end)) = dirty(at)
                && start <= at
            {
                at = end;
                continue;
            }
            let hole = self.volume.seek_hole(attr, at).map_err(|error| self.fail("lseek in", attr.ino, &error))?;
            if hole <= at {
                return Ok(at);
            }
            at = hole;
        }
        Ok(attr.size)
    }
}
