//! Which inodes the kernel knows, which are open, and which of them have lost their last name.
//!
//! An inode without a name lives until the kernel has forgotten it and its last handle is closed; only then is it given
//! back to the store. An entry goes when nothing refers to it and nothing of it is buffered.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use brine_store::ids::Ino;
use parking_lot::Mutex;

use crate::write_buffer::FileNode;

/// Enough that workers filling directory listings do not meet the event thread.
const SHARDS: usize = 16;

#[derive(Default)]
struct Entry {
    /// Times the kernel was told of this inode and has not forgotten.
    lookups: u64,
    /// Open handles.
    opens: u32,
    /// No name is left.
    orphan: bool,
    /// The file, while it is open or dirty.
    file: Option<Arc<FileNode>>,
}

impl Entry {
    fn is_referenced(&self) -> bool {
        self.lookups > 0 || self.opens > 0
    }
}

/// An inode without a name that nothing refers to any more: to be given back to the store.
pub struct Gone {
    /// The inode.
    pub ino: Ino,
    /// Its file, if something of it may be buffered.
    pub file: Option<Arc<FileNode>>,
}

/// References to inodes.
pub struct InodeTable {
    shards: Vec<Mutex<HashMap<Ino, Entry>>>,
    /// Unreferenced but dirty files, to be looked at again after a flush.
    lingering: Mutex<Vec<Ino>>,
}

impl Default for InodeTable {
    fn default() -> Self {
        Self::new()
    }
}

impl InodeTable {
    /// A table without inodes.
    pub fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), lingering: Mutex::default() }
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Entry>> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    /// The kernel is about to be told of an inode; the file is returned if there is one.
    pub fn remember(&self, ino: Ino) -> Option<Arc<FileNode>> {
        let mut shard = self.shard(ino).lock();
        let entry = shard.entry(ino).or_default();
        entry.lookups += 1;
        entry.file.clone()
    }

    /// The kernel forgot `count` of the times it was told of an inode.
    pub fn forget(&self, ino: Ino, count: u64) -> Option<Gone> {
        self.unreference(ino, |entry| entry.lookups = entry.lookups.saturating_sub(count))
    }

    /// A handle is opened; with `remember` the kernel is told of the inode in the same answer.
    pub fn open(&self, ino: Ino, remember: bool) -> Arc<FileNode> {
        let mut shard = self.shard(ino).lock();
        let entry = shard.entry(ino).or_default();
        entry.opens += 1;
        entry.lookups += u64::from(remember);
        Arc::clone(entry.file.get_or_insert_with(|| Arc::new(FileNode::new(ino))))
    }

    /// A handle is closed.
    pub fn close(&self, ino: Ino) -> Option<Gone> {
        self.unreference(ino, |entry| entry.opens = entry.opens.saturating_sub(1))
    }

    /// The file of an inode, if it is open or dirty.
    pub fn file(&self, ino: Ino) -> Option<Arc<FileNode>> {
        self.shard(ino).lock().get(&ino)?.file.clone()
    }

    /// The file of an inode the kernel knows, made if there is none: for changes by path.
    pub fn file_or_new(&self, ino: Ino) -> Arc<FileNode> {
        let mut shard = self.shard(ino).lock();
        let entry = shard.entry(ino).or_default();
        let file = Arc::clone(entry.file.get_or_insert_with(|| Arc::new(FileNode::new(ino))));
        if !entry.is_referenced() {
            self.lingering.lock().push(ino);
        }
        file
    }

    /// The last name of an inode is gone: `Some` if nothing else keeps it.
    pub fn unlinked(&self, ino: Ino) -> Option<Gone> {
        let mut shard = self.shard(ino).lock();
        match shard.entry(ino) {
            Slot::Vacant(_) => Some(Gone { ino, file: None }),
            Slot::Occupied(mut slot) => {
                slot.get_mut().orphan = true;
                if let Some(file) = &slot.get().file {
                    file.orphan.store(true, Ordering::Relaxed);
                }
                (!slot.get().is_referenced()).then(|| Gone { ino, file: slot.remove().file })
            }
        }
    }

    fn unreference(&self, ino: Ino, change: impl FnOnce(&mut Entry)) -> Option<Gone> {
        let mut shard = self.shard(ino).lock();
        let Slot::Occupied(mut slot) = shard.entry(ino) else { return None };
        change(slot.get_mut());
        let entry = slot.get();
        if entry.is_referenced() {
            return None;
        }
        if entry.orphan {
            return Some(Gone { ino, file: slot.remove().file });
        }
        if entry.file.as_ref().is_none_or(|file| file.is_clean()) {
            slot.remove();
        } else {
            self.lingering.lock().push(ino);
        }
        None
    }

    /// Let go of files that were dirty when their last reference went and are clean now. To be called after a flush.
    pub fn sweep(&self) {
        let lingering = std::mem::take(&mut *self.lingering.lock());
        for ino in lingering {
            let mut shard = self.shard(ino).lock();
            let Slot::Occupied(slot) = shard.entry(ino) else { continue };
            let entry = slot.get();
            if entry.is_referenced() || entry.orphan {
                continue;
            }
            if entry.file.as_ref().is_none_or(|file| file.is_clean()) {
                slot.remove();
            } else {
                self.lingering.lock().push(ino);
            }
        }
    }

    /// All inodes without a name, referenced or not: the kernel sends no forgets when it unmounts.
    pub fn drain_orphans(&self) -> Vec<Gone> {
        let mut gone = Vec::new();
        for shard in &self.shards {
            let orphans = shard.lock().extract_if(|_, entry| entry.orphan).collect::<Vec<_>>();
            gone.extend(orphans.into_iter().map(|(ino, entry)| Gone { ino, file: entry.file }));
        }
        gone
    }

    /// Number of inodes referenced or dirty.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether no inode is referenced or dirty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(77);

    #[test]
    fn an_inode_without_a_name_goes_with_its_last_reference() {
        let table = InodeTable::new();
        table.remember(INO);
        table.remember(INO);
        let file = table.open(INO, false);
        assert!(table.unlinked(INO).is_none());
        assert!(file.orphan.load(Ordering::Relaxed));
        assert!(table.forget(INO, 2).is_none());
        assert_eq!(table.close(INO).map(|gone| gone.ino), Some(INO));
        assert!(table.is_empty());
    }

    #[test]
    fn forgetting_last_releases_too() {
        let table = InodeTable::new();
        table.open(INO, true);
        assert!(table.close(INO).is_none());
        assert!(table.unlinked(INO).is_none());
        assert!(table.forget(INO, 1).is_some());
        assert!(table.unlinked(INO).is_some(), "an inode nobody knows goes at once");
    }

    #[test]
    fn inodes_with_names_leave_no_trace() {
        let table = InodeTable::new();
        for number in 1..200 {
            table.remember(Ino(number));
            table.open(Ino(number), false);
        }
        assert_eq!(table.len(), 199);
        for number in 1..200 {
            assert!(table.forget(Ino(number), 1).is_none());
            assert!(table.close(Ino(number)).is_none());
        }
        table.file_or_new(INO);
        assert_eq!(table.len(), 1);
        table.sweep();
        assert!(table.is_empty());
        assert!(table.forget(INO, 1).is_none(), "a forget too many is ignored");
    }

    #[test]
    fn unmounting_releases_every_orphan() {
        let table = InodeTable::new();
        for number in 1..40 {
            table.open(Ino(number), true);
            if number % 2 == 0 {
                table.unlinked(Ino(number));
            }
        }
        assert_eq!(table.drain_orphans().len(), 19);
        assert_eq!(table.len(), 20);
    }
}
