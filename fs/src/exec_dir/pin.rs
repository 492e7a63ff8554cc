//! What keeps a function as it is from its exec open to the end of its run: the file stays, though its last name may
//! go, and its content is not changed. Whoever opens it to write meanwhile gets ETXTBSY, as from any filesystem while a
//! program runs; replacing the name works.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use brine_store::ids::Ino;
use parking_lot::Mutex;

use crate::vfs::Vfs;

/// Files that are pinned, files that are open to be written, and how often each.
#[derive(Default)]
pub struct Pins(Mutex<Uses>);

#[derive(Default)]
struct Uses {
    pinned: HashMap<Ino, usize>,
    written: HashMap<Ino, usize>,
}

impl Pins {
    /// Whether a file is pinned.
    pub fn holds(&self, ino: Ino) -> bool {
        self.0.lock().pinned.contains_key(&ino)
    }

    /// Whether a file is open to be written. Who closed it may be counted for a moment longer.
    pub fn is_written(&self, ino: Ino) -> bool {
        self.0.lock().written.contains_key(&ino)
    }

    /// A file is opened to be written: false, and not counted, if it is pinned.
    pub(crate) fn begin_writing(&self, ino: Ino) -> bool {
        let mut uses = self.0.lock();
        let free = !uses.pinned.contains_key(&ino);
        if free {
            *uses.written.entry(ino).or_default() += 1;
        }
        free
    }

    /// One that was opened so is closed.
    pub(crate) fn end_writing(&self, ino: Ino) {
        one_less(&mut self.0.lock().written, ino);
    }

    fn add(&self, ino: Ino) {
        *self.0.lock().pinned.entry(ino).or_default() += 1;
    }

    fn remove(&self, ino: Ino) {
        one_less(&mut self.0.lock().pinned, ino);
    }
}

fn one_less(counts: &mut HashMap<Ino, usize>, ino: Ino) {
    if let Some(count) = counts.get_mut(&ino) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&ino);
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
