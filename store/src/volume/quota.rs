//! Quotas of directories, and what writers are promised of them. The rules are in [`crate::meta::quota`].

use super::Volume;
use crate::error::Result;
use crate::ids::{ChunkNo, Ino};
use crate::meta::quota::{Quota, QuotaLimits, QuotaRoom, QuotaState};
use crate::meta::rows::{Attr, FileChange};
use crate::superblock::RO_COMPAT_QUOTAS;

/// Names looked at in one operation, so that no writer waits long.
const COUNT_BATCH: usize = 1000;

impl Volume {
    /// Give a directory a quota, or its quota other limits. What is there is counted first: until then nothing is refused
    /// for it. Others go on meanwhile; moving what is not counted yet within the directory answers EXDEV.
    ///
    /// # Errors
    /// [`crate::Error::NotADirectory`], [`crate::Error::NotFound`], [`crate::Error::InvalidArgument`] (too many).
    pub fn set_quota(&self, directory: Ino, limits: QuotaLimits) -> Result<Quota> {
        let _one = self.counting.lock();
        // A version that does not know quotas would not count what it writes.
        if self.superblock.lock().features.ro_compat & RO_COMPAT_QUOTAS == 0 {
            self.writable()?;
            self.write_superblocks(|superblock| superblock.features.ro_compat |= RO_COMPAT_QUOTAS)?;
        }
        self.count_all()?;
        let quota = {
            let _held = self.gate();
            self.change(|txn| txn.set_quota(directory, limits))?
        };
        self.count_all()?;
        Ok(self.quotas()?.into_iter().find(|other| other.number == quota.number).unwrap_or(quota))
    }

    /// Go on counting for quotas whose setting was cut short.
    pub(super) fn count_quotas(&self) -> Result<()> {
        match self.counting.try_lock() {
            Some(_one) => self.count_all(),
            None => Ok(()),
        }
    }

    fn count_all(&self) -> Result<()> {
        for quota in self.quotas()?.into_iter().filter(|quota| quota.state == QuotaState::Counting) {
            let mut counting = None;
            loop {
                let _held = self.gate();
                // Kept here, so that a step that fails is not half noted.
                if !self.change(|txn| txn.count_quota(quota.number, &mut counting, COUNT_BATCH))? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Take a directory's quota away.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] if it has none.
    pub fn remove_quota(&self, directory: Ino) -> Result<()> {
        let _held = self.gate();
        self.change(|txn| txn.remove_quota(directory))
    }

    /// All quotas, in the order they were set.
    pub fn quotas(&self) -> Result<Vec<Quota>> {
        self.meta.with(|txn| Ok(txn.quotas()))
    }

    /// The quotas that an inode counts in, innermost first.
    pub fn quotas_of(&self, ino: Ino) -> Result<Vec<Quota>> {
        self.meta.with(|txn| txn.quotas_of(ino))
    }

    /// What those leave free.
    pub fn quota_room(&self, ino: Ino) -> Result<QuotaRoom> {
        self.meta.with(|txn| txn.quota_room(ino))
    }

    /// Promise a writer that its file may come to take as much as `most` says: of the file's attributes and the number of
    /// `chunks` that nothing is stored of. It takes the place of what was promised for the file before. What of it is
    /// stored counts once. Returns the bytes promised.
    ///
    /// # Errors
    /// [`crate::Error::QuotaExceeded`]; what was promised before still is.
    pub fn promise_quota(&self, ino: Ino, chunks: &[ChunkNo], most: impl FnOnce(&Attr, u64) -> u64) -> Result<u64> {
        self.meta.with(|txn| txn.promise_quota(ino, chunks, most))
    }

    /// Take a promise back.
    pub fn release_quota(&self, ino: Ino) {
        // Fails only if nothing works any more, and then nobody is promised anything.
        let _ = self.meta.with(|txn| {
            txn.release_quota(ino);
            Ok(())
        });
    }

    /// [`Volume::set_file`], with what was promised for the file replaced by what it may come to take yet, in one with it:
    /// nobody sees a moment with both or neither. Returns what is promised now, if the file counts in a quota.
    pub fn set_file_promised(
        &self,
        ino: Ino,
        change: &FileChange,
        most: impl FnOnce(&Attr) -> u64,
    ) -> Result<(Attr, Option<u64>)> {
        self.change(|txn| {
            let attr = txn.set_file(ino, change)?;
            let most = (attr.quota != 0).then(|| most(&attr));
            if let Some(most) = most {
                txn.keep_promise(ino, most)?;
            }
            Ok((attr, most))
        })
    }

    /// How many of the chunks `from..from + count` of a file have something stored.
    pub fn chunks_stored(&self, attr: &Attr, from: ChunkNo, count: u64) -> Result<u64> {
        self.meta.with(|txn| txn.rows_in(attr.data, from, ChunkNo(from.0.saturating_add(count))))
    }
}
