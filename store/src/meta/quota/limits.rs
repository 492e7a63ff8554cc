//! Whether something fits, and how much does.

use std::collections::HashMap;

use super::table::Quotas;
use super::{Quota, QuotaState};
use crate::error::{Error, Result};
use crate::ids::Ino;
use crate::meta::rows::{FileKind, InodeRow};
use crate::meta::txn::Txn;

/// What is left of a chain of quotas: of each kind the tightest limit, and how much of it is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaRoom {
    /// Limit and what is free of it, bytes.
    pub bytes: Option<(u64, u64)>,
    /// Limit and what is free of it, inodes.
    pub inodes: Option<(u64, u64)>,
}

impl Quotas {
    /// Whether `bytes` and `inodes` more fit from `number` outwards.
    pub(super) fn room(&self, number: u32, bytes: u64, inodes: u64) -> Result<()> {
        let full = |used: u64, more: u64, limit: Option<u64>| {
            more > 0 && limit.is_some_and(|limit| used.saturating_add(more) > limit)
        };
        for quota in self.chain(number).filter(|quota| quota.state == QuotaState::Enforced) {
            let held = if bytes > 0 { self.held_in(quota.number) } else { 0 };
            if full(quota.bytes.saturating_add(held), bytes, quota.limits.bytes)
                || full(quota.inodes, inodes, quota.limits.inodes)
            {
                return Err(Error::QuotaExceeded);
            }
        }
        Ok(())
    }
}

impl Txn<'_> {
    /// All quotas that are not removed, by number.
    pub fn quotas(&self) -> Vec<Quota> {
        let all = self.core.quotas.rows.values();
        all.filter(|quota| quota.state != QuotaState::Removed).copied().collect()
    }

    /// The quotas that an inode counts in, innermost first.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn quotas_of(&mut self, ino: Ino) -> Result<Vec<Quota>> {
        let number = self.core.inode(ino)?.ok_or(Error::Stale(ino))?.quota();
        let chain = self.core.quotas.chain(number);
        Ok(chain.filter(|quota| quota.state != QuotaState::Removed).copied().collect())
    }

    /// What the quotas that an inode counts in leave free; what writers were promised is not.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn quota_room(&mut self, ino: Ino) -> Result<QuotaRoom> {
        let mut room = QuotaRoom::default();
        let tighter = |room: &mut Option<(u64, u64)>, limit: Option<u64>, used: u64| {
            if let Some(limit) = limit
                && room.is_none_or(|(_, free)| limit.saturating_sub(used) < free)
            {
                *room = Some((limit, limit.saturating_sub(used)));
            }
        };
        for quota in self.quotas_of(ino)? {
            let held = self.core.quotas.held_in(quota.number);
            tighter(&mut room.bytes, quota.limits.bytes, quota.bytes.saturating_add(held));
            tighter(&mut room.inodes, quota.limits.inodes, quota.inodes);
        }
        Ok(room)
    }

    /// Whether what counts in quota `number` may take `bytes` and `inodes` more.
    pub(in crate::meta) fn quota_fits(&mut self, number: u32, bytes: u64, inodes: u64) -> Result<()> {
        let quotas = &self.core.quotas;
        if quotas.late.is_some() { Ok(()) } else { quotas.room(number, bytes, inodes) }
    }

    /// From now on limits are looked at by [`Self::check_late_quotas`], not by each step: for an operation that removes
    /// after it has made.
    pub fn quotas_late(&mut self) {
        self.core.quotas.late = Some(HashMap::new());
    }

    /// Whether all quotas that grew since [`Self::quotas_late`] are within their limits.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`].
    pub fn check_late_quotas(&mut self) -> Result<()> {
        let quotas = &mut self.core.quotas;
        for (number, (bytes, inodes)) in quotas.late.take().unwrap_or_default() {
            let Some(quota) = quotas.rows.get(&number).filter(|quota| quota.state == QuotaState::Enforced) else {
                continue;
            };
            let over = |now: u64, before: u64, limit: Option<u64>| now > before && limit.is_some_and(|max| now > max);
            if over(quota.bytes, bytes, quota.limits.bytes) || over(quota.inodes, inodes, quota.limits.inodes) {
                return Err(Error::QuotaExceeded);
            }
        }
        Ok(())
    }

    /// Whether an inode may have a name in `parent`, as far as quotas are concerned: all names of an inode are in one, so
    /// that what it takes counts where it is seen. `from`: the directory that it had a name in so far, if it is renamed.
    ///
    /// # Errors
    /// [`Error::CrossesDevices`]: programs then copy, as between filesystems.
    pub(in crate::meta) fn quota_border(&mut self, ino: Ino, from: Option<Ino>, parent: Ino) -> Result<()> {
        if self.core.quotas.rows.is_empty() {
            return Ok(());
        }
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let (tag, kind) = (row.quota(), row.kind);
        let to = self.core.inode(parent)?.ok_or(Error::Stale(parent))?.quota();
        let from = from.map(|from| self.core.inode(from).map(|row| row.map_or(0, InodeRow::quota))).transpose()?;
        let quotas = &self.core.quotas;
        let to = quotas.effective(to);
        // A directory with a quota of its own moves in what is around it.
        let own = quotas.by_directory.get(&ino).and_then(|number| quotas.rows.get(number));
        let outside = own.map_or_else(|| quotas.effective(tag), |own| quotas.effective(own.outer));
        // A name of a file that got another one inside before the quota was set moves among its like. While a quota
        // counts, what it has not seen yet must not get past it.
        let counting = quotas.rows.get(&to).is_some_and(|quota| quota.state == QuotaState::Counting);
        let among = kind != FileKind::Directory && !counting && from.map(|from| quotas.effective(from)) == Some(to);
        if outside == to || among { Ok(()) } else { Err(Error::CrossesDevices) }
    }
}
