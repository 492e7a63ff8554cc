//! What counts in which quota: a quota set on a directory that has content, taken away, or content that moves into it.

use super::{NESTING_MAX, NUMBER_END, Quota, QuotaLimits, QuotaState, tagged};
use crate::error::{Error, Result};
use crate::ids::Ino;
use crate::meta::rows::{DirEntry, FileKind};
use crate::meta::txn::Txn;

/// What is still to be looked at while a quota counts what was there before it.
#[derive(Debug, Default)]
pub struct Counting {
    /// Directories, and where in each of them.
    todo: Vec<(Ino, u64)>,
}

impl Txn<'_> {
    /// Give a directory a quota, or its quota other limits. A new one is to be counted by [`Self::count_quota`].
    ///
    /// # Errors
    /// [`Error::NotADirectory`], [`Error::Stale`], [`Error::NotFound`] (the directory was removed),
    /// [`Error::InvalidArgument`] (nested too deep, or no number is left).
    pub fn set_quota(&mut self, directory: Ino, limits: QuotaLimits) -> Result<Quota> {
        let row = self.core.inode(directory)?.ok_or(Error::Stale(directory))?;
        let (kind, nlink, tag) = (row.kind, row.nlink, row.quota());
        if kind != FileKind::Directory {
            return Err(Error::NotADirectory);
        }
        if nlink == 0 {
            return Err(Error::NotFound);
        }
        let quotas = &mut self.core.quotas;
        if let Some(quota) = quotas.by_directory.get(&directory).and_then(|number| quotas.rows.get(number)).copied() {
            let quota = Quota { limits, ..quota };
            quotas.put(quota);
            return Ok(quota);
        }
        let outer = quotas.effective(tag);
        if quotas.chain(outer).count() >= NESTING_MAX {
            return Err(Error::InvalidArgument("quotas nest at most 64 deep"));
        }
        let number = quotas.next.max(1);
        if number >= NUMBER_END {
            return Err(Error::InvalidArgument("the volume has no number left for another quota"));
        }
        quotas.next = number + 1;
        let state = QuotaState::Counting;
        quotas.put(Quota { number, directory, outer, limits, bytes: 0, inodes: 0, state });
        self.retag(directory, number)?;
        Ok(self.core.quotas.rows[&number])
    }

    /// Take a directory's quota away. What is in it goes on counting in those around it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it has none.
    pub fn remove_quota(&mut self, directory: Ino) -> Result<()> {
        let quotas = &mut self.core.quotas;
        let number = *quotas.by_directory.get(&directory).ok_or(Error::NotFound)?;
        let quota = quotas.rows[&number];
        quotas.put(Quota { state: QuotaState::Removed, limits: QuotaLimits::default(), ..quota });
        Ok(())
    }

    /// The directory is gone, and so is its quota.
    pub(in crate::meta) fn forget_quota_of(&mut self, directory: Ino) {
        if self.core.quotas.by_directory.contains_key(&directory) {
            // It is there: nothing else fails.
            let _ = self.remove_quota(directory);
        }
    }

    /// Let an inode count in a quota. No change of it: no version, no former row.
    fn retag(&mut self, ino: Ino, number: u32) -> Result<()> {
        self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let row = self.core.inodes.change(ino).ok_or(Error::Stale(ino))?;
        let before = (row.quota(), row.charge());
        row.flags = tagged(row.flags, number);
        let after = (number, row.charge());
        self.core.charge(ino, Some(before), Some(after));
        Ok(())
    }

    /// Look at up to `max` more names below the directory of a quota that is being counted, and let them count in it.
    /// Begin with a fresh `counting`; to begin anew is harmless. True: call again. At the end the quota is enforced.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn count_quota(&mut self, number: u32, counting: &mut Option<Counting>, max: usize) -> Result<bool> {
        let quotas = &self.core.quotas;
        let Some(quota) = quotas.rows.get(&number).filter(|quota| quota.state == QuotaState::Counting).copied() else {
            return Ok(false);
        };
        let outer = quotas.effective(quota.outer);
        let counting = counting.get_or_insert_with(|| Counting { todo: vec![(quota.directory, 0)] });
        let mut left = max.max(1);
        while let Some((directory, cookie)) = counting.todo.pop() {
            let entries = match self.read_dir(directory, cookie, left, false) {
                // It was removed meanwhile, empty.
                Err(Error::Stale(_) | Error::NotFound) => continue,
                entries => entries?,
            };
            let Some(last) = entries.last() else { continue };
            left -= entries.len().min(left);
            counting.todo.push((directory, last.cookie));
            for entry in entries {
                self.count_name(&entry, number, outer, &mut counting.todo)?;
            }
            if left == 0 {
                return Ok(true);
            }
        }
        let quota = self.core.quotas.rows[&number];
        self.core.quotas.put(Quota { state: QuotaState::Enforced, ..quota });
        Ok(false)
    }

    fn count_name(&mut self, entry: &DirEntry, number: u32, outer: u32, todo: &mut Vec<(Ino, u64)>) -> Result<()> {
        let tag = self.core.inode(entry.ino)?.ok_or(Error::Stale(entry.ino))?.quota();
        if let Some(inner) = self.core.quotas.by_directory.get(&entry.ino).copied() {
            // A quota within: all of it counts in the new one.
            let inner = self.core.quotas.rows[&inner];
            if self.core.quotas.effective(inner.outer) == outer {
                self.core.quotas.charge(inner.outer, -(inner.bytes as i64), -(inner.inodes as i64));
                self.core.quotas.put(Quota { outer: number, ..inner });
                self.core.quotas.charge(number, inner.bytes as i64, inner.inodes as i64);
            }
            return Ok(());
        }
        let now = self.core.quotas.effective(tag);
        if now == outer {
            self.retag(entry.ino, number)?;
        }
        if entry.kind == FileKind::Directory && (now == outer || now == number) {
            todo.push((entry.ino, 0));
        }
        Ok(())
    }

    /// Let an inode and all below it count where `parent` does, to be renamed there by this operation, across the border.
    /// Limits are looked at as for any step of it ([`Self::quotas_late`]).
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn adopt_quota(&mut self, ino: Ino, parent: Ino) -> Result<()> {
        if self.core.quotas.rows.is_empty() {
            return Ok(());
        }
        let to = self.core.inode(parent)?.ok_or(Error::Stale(parent))?.quota();
        let mut todo = vec![ino];
        while let Some(ino) = todo.pop() {
            let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
            let (kind, tag) = (row.kind, row.quota());
            if tag != to {
                self.retag(ino, to)?;
            }
            if kind == FileKind::Directory {
                todo.extend(self.read_dir(ino, 0, usize::MAX, false)?.into_iter().map(|entry| entry.ino));
            }
        }
        Ok(())
    }
}
