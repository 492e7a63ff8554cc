//! What keeps a function as it is from its exec open to the end of its run: the file stays, though its last name may
//! go, and its content is not changed. Whoever opens it to write meanwhile gets ETXTBSY, as from any filesystem while a
//! program runs; replacing the name works.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use brine_store::ids::Ino;
use parking_lot::Mutex;

use crate::vfs::Vfs;

/// Files that are pinned, and how often.
#[derive(Default)]
pub struct Pins(Mutex<HashMap<Ino, usize>>);

impl Pins {
    /// Whether a file is pinned.
    pub fn holds(&self, ino: Ino) -> bool {
        self.0.lock().contains_key(&ino)
    }

    fn add(&self, ino: Ino) {
        *self.0.lock().entry(ino).or_default() += 1;
    }

    fn remove(&self, ino: Ino) {
        let mut pins = self.0.lock();
        if let Some(count) = pins.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&ino);
            }
        }
    }
}

/// One hold of a file; let go when dropped.
pub struct Pin {
    vfs: Weak<Vfs>,
    ino: Ino,
    handle: u64,
}

impl Pin {
    /// Hold the file that `handle`, opened for this and closed with the pin, reads.
    pub(crate) fn new(vfs: &Arc<Vfs>, ino: Ino, handle: u64) -> Arc<Self> {
        vfs.exec().pins.add(ino);
        Arc::new(Self { vfs: Arc::downgrade(vfs), ino, handle })
    }

    /// The file.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// A handle that reads it.
    pub fn handle(&self) -> u64 {
        self.handle
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(vfs) = self.vfs.upgrade() {
            vfs.exec().pins.remove(self.ino);
            vfs.close_file(self.handle);
        }
    }
}
