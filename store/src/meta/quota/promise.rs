//! What writers were promised of quotas and is not stored yet.
//!
//! A promise says how many bytes a file may come to take. What the file takes already is used by itself; the rest is held,
//! and counts as used, too. As the file's row grows, what is held shrinks with it, in the same operation: nothing counts
//! twice, and nothing is forgotten in between.

use std::collections::HashMap;

use super::table::Quotas;
use crate::error::{Error, Result};
use crate::ids::{ChunkNo, Ino};
use crate::meta::rows::Attr;
use crate::meta::txn::Txn;

#[derive(Clone, Copy)]
struct Promise {
    /// Number of the quota that the file counts in.
    number: u32,
    /// Bytes that the file may come to take, and that it takes.
    most: u64,
    taken: u64,
}

impl Promise {
    fn held(&self) -> u64 {
        self.most.saturating_sub(self.taken)
    }
}

/// All promises of a volume. In memory only: what a crash does not store is promised to nobody.
#[derive(Default)]
pub(super) struct Promises {
    by_inode: HashMap<Ino, Promise>,
    /// Sums of what is held, by number of the quota; never 0.
    held: HashMap<u32, u64>,
    /// What the running operation has replaced, oldest first.
    undo: Vec<(Ino, Option<Promise>)>,
}

impl Promises {
    fn put(&mut self, ino: Ino, promise: Option<Promise>) -> Option<Promise> {
        if let Some(promise) = &promise
            && promise.held() > 0
        {
            *self.held.entry(promise.number).or_default() += promise.held();
        }
        let before = match promise {
            Some(promise) => self.by_inode.insert(ino, promise),
            None => self.by_inode.remove(&ino),
        };
        if let Some(before) = &before
            && let Some(held) = self.held.get_mut(&before.number)
        {
            *held -= before.held();
            if *held == 0 {
                self.held.remove(&before.number);
            }
        }
        before
    }

    fn set(&mut self, ino: Ino, promise: Option<Promise>) {
        let before = self.put(ino, promise);
        self.undo.push((ino, before));
    }

    /// An inode's row changed: the quota it counts in and what it takes now; `None`: it is gone.
    pub(super) fn follow(&mut self, ino: Ino, now: Option<(u32, u64)>) {
        if !self.by_inode.is_empty()
            && let Some(promise) = self.by_inode.get(&ino).copied()
        {
            self.set(ino, now.map(|(number, taken)| Promise { number, taken, ..promise }));
        }
    }

    pub(super) fn keep_operation(&mut self) {
        self.undo.clear();
    }

    pub(super) fn undo_operation(&mut self) {
        for (ino, before) in std::mem::take(&mut self.undo).into_iter().rev() {
            self.put(ino, before);
        }
    }
}

impl Quotas {
    /// Bytes held in a quota and those within.
    pub(super) fn held_in(&self, number: u32) -> u64 {
        let within = |inner: u32| self.chain(inner).any(|quota| quota.number == number);
        self.promises.held.iter().filter(|(inner, _)| within(**inner)).map(|(_, held)| held).sum()
    }
}

impl Txn<'_> {
    /// Promise a writer that its file may come to take as much as `most` says: of the file's attributes, and the number of
    /// `chunks` that have no row. It takes the place of what was promised for the file before. Returns the bytes promised.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`]: then what was promised before still is. [`Error::Stale`].
    pub fn promise_quota(&mut self, ino: Ino, chunks: &[ChunkNo], most: impl FnOnce(&Attr, u64) -> u64) -> Result<u64> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let (attr, number, taken, data) = (row.attr(), row.quota(), row.charge(), row.data);
        let mut missing = 0;
        for chunk in chunks {
            missing += u64::from(!self.has_row(data, *chunk)?);
        }
        let promise = Promise { number, most: most(&attr, missing), taken };
        let quotas = &mut self.core.quotas;
        let before =
            quotas.promises.by_inode.get(&ino).filter(|before| before.number == number).map_or(0, Promise::held);
        // What is held so far is counted as used already, and less than that always fits.
        quotas.room(number, promise.held().saturating_sub(before), 0)?;
        quotas.promises.set(ino, (number != 0).then_some(promise));
        Ok(promise.most)
    }

    /// What is left of a promise after the file was changed: as much as it takes, and is still to come to it. No limit is
    /// looked at.
    pub fn keep_promise(&mut self, ino: Ino, most: u64) -> Result<()> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let promise = Promise { number: row.quota(), most, taken: row.charge() };
        self.core.quotas.promises.set(ino, (promise.number != 0).then_some(promise));
        Ok(())
    }

    /// Take a promise back.
    pub fn release_quota(&mut self, ino: Ino) {
        if self.core.quotas.promises.by_inode.contains_key(&ino) {
            self.core.quotas.promises.set(ino, None);
        }
    }
}
