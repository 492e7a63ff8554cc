//! Open files and directories, by the number the kernel carries for us.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

use brine_store::ids::Ino;
use parking_lot::{Mutex, RwLock};

use crate::readahead::Readahead;
use crate::write_buffer::FileNode;

/// One open(2) of a file.
pub struct OpenFile {
    /// The file, shared with its other handles.
    pub node: Arc<FileNode>,
    /// Where this reader is.
    pub readahead: Mutex<Readahead>,
    /// Errors of the file this handle was told of.
    pub seen: AtomicU32,
    /// Failed commits this handle was told of.
    pub seen_commit: AtomicU32,
    /// Whether something was written through it: only then do failed commits concern it.
    pub wrote: AtomicBool,
    /// Whether it was opened to be written.
    pub writer: bool,
}

/// One opendir(3).
pub struct OpenDir {
    /// The directory.
    pub ino: Ino,
    /// Position after the last entry, once it was found; `u64::MAX` before.
    pub end: AtomicU64,
    /// Entries worth asking the store for: what the last answer had room for.
    pub batch: AtomicUsize,
}

/// Numbers for open things. A number is used again only after its handle was closed.
pub struct Handles<T> {
    slots: RwLock<Slots<T>>,
}

struct Slots<T> {
    used: Vec<Option<Arc<T>>>,
    free: Vec<usize>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { slots: RwLock::new(Slots { used: Vec::new(), free: Vec::new() }) }
    }
}

impl<T> Handles<T> {
    /// Keep an open thing and give it a number.
    pub fn insert(&self, open: T) -> u64 {
        let mut slots = self.slots.write();
        let open = Some(Arc::new(open));
        match slots.free.pop() {
            Some(index) => {
                slots.used[index] = open;
                index as u64
            }
            None => {
                slots.used.push(open);
                slots.used.len() as u64 - 1
            }
        }
    }

    /// The open thing of a number.
    pub fn get(&self, number: u64) -> Option<Arc<T>> {
        self.slots.read().used.get(usize::try_from(number).ok()?)?.clone()
    }

    /// Close a number.
    pub fn remove(&self, number: u64) -> Option<Arc<T>> {
        let mut slots = self.slots.write();
        let index = usize::try_from(number).ok()?;
        let open = slots.used.get_mut(index)?.take()?;
        slots.free.push(index);
        Some(open)
    }

    /// Number of open things.
    pub fn len(&self) -> usize {
        let slots = self.slots.read();
        slots.used.len() - slots.free.len()
    }

    /// Whether nothing is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_reused_only_when_closed() {
        let handles = Handles::default();
        let numbers: Vec<u64> = (0..5).map(|value| handles.insert(value)).collect();
        assert_eq!(handles.remove(numbers[2]).as_deref(), Some(&2));
        assert!(handles.remove(numbers[2]).is_none(), "closed twice");
        assert!(handles.get(numbers[2]).is_none());
        assert!(handles.get(u64::MAX).is_none());
        assert_eq!(handles.insert(9), numbers[2]);
        assert_eq!(handles.get(numbers[2]).as_deref(), Some(&9));
        assert_eq!(handles.get(numbers[4]).as_deref(), Some(&4));
        assert_eq!(handles.len(), 5);
    }
}
