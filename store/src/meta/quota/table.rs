//! The quotas of a volume while it is open: their rows, and what the running operation changed of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::Connection;

use super::promise::Promises;
use super::{NESTING_MAX, Quota, QuotaState};
use crate::error::Result;
use crate::ids::Ino;
use crate::meta::changes::RowChange;
use crate::meta::rows::{Shelf, ShelfRow};
use crate::meta::shelf;
use crate::meta::sql::At;
use crate::meta::txn::Core;

/// A quota as it was before the running operation changed it, and whether it was to be written then.
type Undo = (u32, Option<Quota>, bool);

/// What the open transaction knows of quotas.
#[derive(Default)]
pub(in crate::meta) struct Quotas {
    pub(super) rows: BTreeMap<u32, Quota>,
    /// By directory, those that are not removed.
    pub(super) by_directory: HashMap<Ino, u32>,
    /// Those whose row is to be written or, if gone, deleted.
    dirty: BTreeSet<u32>,
    pub(super) promises: Promises,
    /// What the running operation has replaced, oldest first.
    undo: Vec<Undo>,
    /// Never given out before.
    pub(super) next: u32,
    /// Usage before the running operation of what it grew, if limits are looked at when it ends.
    pub(super) late: Option<HashMap<u32, (u64, u64)>>,
}

impl Quotas {
    /// As the table has them. What is promised stays.
    pub fn load(&mut self, conn: &Connection, at: &std::path::Path) -> Result<()> {
        self.rows.clear();
        self.by_directory.clear();
        self.dirty.clear();
        for (key, value) in shelf::with_prefix(conn, Shelf::Quotas, &[]).at(at)? {
            self.insert(Quota::decode(&key, &value)?);
        }
        self.next = self.next.max(self.rows.keys().next_back().map_or(1, |last| last + 1));
        Ok(())
    }

    fn insert(&mut self, quota: Quota) {
        if quota.state == QuotaState::Removed {
            if self.by_directory.get(&quota.directory) == Some(&quota.number) {
                self.by_directory.remove(&quota.directory);
            }
        } else {
            self.by_directory.insert(quota.directory, quota.number);
        }
        self.rows.insert(quota.number, quota);
    }

    fn remove(&mut self, number: u32) {
        if let Some(quota) = self.rows.remove(&number)
            && self.by_directory.get(&quota.directory) == Some(&number)
        {
            self.by_directory.remove(&quota.directory);
        }
    }

    /// Put one in the place of what has its number.
    pub(super) fn put(&mut self, quota: Quota) {
        self.remember(quota.number);
        self.insert(quota);
        self.dirty.insert(quota.number);
    }

    fn remember(&mut self, number: u32) {
        self.undo.push((number, self.rows.get(&number).copied(), self.dirty.contains(&number)));
    }

    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub fn keep_operation(&mut self) {
        self.undo.clear();
        self.promises.keep_operation();
        self.late = None;
    }

    pub fn undo_operation(&mut self) {
        self.late = None;
        self.promises.undo_operation();
        for (number, before, dirty) in std::mem::take(&mut self.undo).into_iter().rev() {
            match before {
                Some(quota) => self.insert(quota),
                None => self.remove(number),
            }
            if dirty {
                self.dirty.insert(number)
            } else {
                self.dirty.remove(&number)
            };
        }
    }

    /// The numbers from `number` outwards.
    pub(super) fn chain(&self, number: u32) -> impl Iterator<Item = &Quota> {
        std::iter::successors(self.rows.get(&number), |quota| self.rows.get(&quota.outer)).take(NESTING_MAX + 1)
    }

    /// The innermost quota at `number` or around it that is not removed; 0 if none.
    pub(super) fn effective(&self, number: u32) -> u32 {
        self.chain(number).find(|quota| quota.state != QuotaState::Removed).map_or(0, |quota| quota.number)
    }

    /// Count `bytes` and `inodes` more (or fewer) from `number` outwards.
    pub(super) fn charge(&mut self, number: u32, bytes: i64, inodes: i64) {
        if number == 0 || (bytes == 0 && inodes == 0) {
            return;
        }
        let chain: Vec<Quota> = self.chain(number).copied().collect();
        for quota in chain {
            if let Some(late) = &mut self.late {
                late.entry(quota.number).or_insert((quota.bytes, quota.inodes));
            }
            let (bytes, inodes) = (quota.bytes.wrapping_add_signed(bytes), quota.inodes.wrapping_add_signed(inodes));
            if quota.state == QuotaState::Removed && inodes == 0 {
                self.remember(quota.number);
                self.dirty.insert(quota.number);
                self.remove(quota.number);
            } else {
                self.put(Quota { bytes, inodes, ..quota });
            }
        }
    }
}

impl Core {
    /// Count how the change of an inode's row moved the quota it counts in and what it takes. `None`: it is not there.
    pub fn charge(&mut self, ino: Ino, before: Option<(u32, u64)>, after: Option<(u32, u64)>) {
        self.quotas.promises.follow(ino, after);
        match (before, after) {
            _ if self.quotas.rows.is_empty() => {}
            (Some((one, old)), Some((two, new))) if one == two => {
                self.quotas.charge(one, new.wrapping_sub(old) as i64, 0);
            }
            _ => {
                // First what is added: a removed quota that both count in must not end in between.
                if let Some((number, bytes)) = after {
                    self.quotas.charge(number, bytes as i64, 1);
                }
                if let Some((number, bytes)) = before {
                    self.quotas.charge(number, -(bytes as i64), -1);
                }
            }
        }
    }

    /// Write the rows of quotas that changed.
    pub fn write_quotas(&mut self) -> Result<()> {
        let since = self.generation();
        for number in std::mem::take(&mut self.quotas.dirty) {
            let key = number.to_be_bytes();
            let change = match self.quotas.rows.get(&number) {
                Some(quota) => {
                    let value = quota.encode().into();
                    RowChange::PutShelf(ShelfRow { shelf: Shelf::Quotas, key: key.into(), value, since })
                }
                None => RowChange::DelShelf { shelf: Shelf::Quotas, key: key.into() },
            };
            self.apply(change)?;
        }
        Ok(())
    }
}
