//! Inode rows in memory: those read or changed lately.
//!
//! A changed row is written to its table when the generation closes (or when many have changed), once however often it
//! changed: a directory's row changes with every name made in it. Until then `stored` remembers the version its table
//! holds, so that the write is still conditional (R5).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::rows::{FileKind, InodeRow};
use crate::ids::{Ino, Version};

/// Rows kept, clean and changed. About 250 bytes each.
const ROWS_MAX: usize = 64 * 1024;
/// Changed rows written early when there are more than this.
const DIRTY_MAX: usize = 8 * 1024;

/// Inode numbers are handed out in sequence: one multiplication spreads them.
#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing; the rotation puts well-mixed bits where the table takes both its index and its tag from.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

pub(super) type NumberMap<V> = HashMap<u64, V, BuildHasherDefault<NumberHasher>>;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub row: InodeRow,
    /// Version in the table; `None`: not there yet.
    pub stored: Option<Version>,
    pub dirty: bool,
}

#[derive(Default)]
pub(super) struct InodeCache {
    entries: NumberMap<Entry>,
    /// Inodes that became dirty since the last write; some may be gone or named twice.
    dirty: Vec<Ino>,
    /// What the running operation has replaced, oldest first.
    undo: Vec<(Ino, Option<Entry>)>,
}

impl InodeCache {
    pub fn get(&self, ino: Ino) -> Option<&Entry> {
        self.entries.get(&ino.0)
    }

    /// A row just read from its table.
    pub fn remember(&mut self, row: InodeRow) {
        let stored = Some(row.version);
        self.entries.insert(row.ino.0, Entry { row, stored, dirty: false });
    }

    /// A row that is in no table yet.
    pub fn insert(&mut self, row: InodeRow) {
        let ino = row.ino;
        let before = self.entries.insert(ino.0, Entry { row, stored: None, dirty: true });
        self.undo.push((ino, before));
        self.dirty.push(ino);
    }

    /// The row, to be changed. It must be in the cache.
    pub fn change(&mut self, ino: Ino) -> Option<&mut InodeRow> {
        let entry = self.entries.get_mut(&ino.0)?;
        self.undo.push((ino, Some(entry.clone())));
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(ino);
        }
        Some(&mut entry.row)
    }

    /// Forget a row that is being deleted. True if its table has it.
    pub fn remove(&mut self, ino: Ino) -> bool {
        let Some(entry) = self.entries.remove(&ino.0) else { return true };
        let stored = entry.stored.is_some();
        self.undo.push((ino, Some(entry)));
        stored
    }

    pub fn keep_operation(&mut self) {
        self.undo.clear();
    }

    pub fn undo_operation(&mut self) {
        for (ino, before) in self.undo.drain(..).rev() {
            match before {
                Some(entry) => {
                    if entry.dirty {
                        self.dirty.push(ino);
                    }
                    self.entries.insert(ino.0, entry);
                }
                None => {
                    self.entries.remove(&ino.0);
                }
            }
        }
    }

    pub fn has_dirty(&self) -> bool {
        self.dirty.iter().any(|ino| self.entries.get(&ino.0).is_some_and(|entry| entry.dirty))
    }

    /// Rows that may not be in their table yet and have no name.
    pub fn orphans(&self) -> impl Iterator<Item = Ino> {
        self.entries.values().filter(|entry| entry.dirty && entry.row.nlink == 0).map(|entry| entry.row.ino)
    }

    pub fn wants_write(&self) -> bool {
        self.dirty.len() > DIRTY_MAX
    }

    /// Dirty inodes in ascending order, each once. The caller writes them all.
    pub fn take_dirty(&mut self) -> Vec<Ino> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        dirty.retain(|ino| self.entries.get(&ino.0).is_some_and(|entry| entry.dirty));
        dirty
    }

    /// The row was written.
    pub fn written(&mut self, ino: Ino) {
        if let Some(entry) = self.entries.get_mut(&ino.0) {
            entry.stored = Some(entry.row.version);
            entry.dirty = false;
            // Inline content is up to eight times the row: not worth its memory once it is in its table.
            if entry.row.kind == FileKind::File && entry.row.inline.is_some() {
                self.entries.remove(&ino.0);
            }
        }
    }

    /// Drop clean rows when there are too many. Not within an operation.
    pub fn trim(&mut self) {
        if self.entries.len() > ROWS_MAX {
            self.entries.retain(|_, entry| entry.dirty);
        }
    }

    /// Forget everything (rows were written past the cache).
    pub fn clear(&mut self) {
        self.entries.clear();
        self.dirty.clear();
        self.undo.clear();
    }
}
