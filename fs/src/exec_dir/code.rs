//! Code nodes: a second, immutable inode of each function version that runs, below `.brine/code/` (X2).
//!
//! A sandbox executes the code node, never the name: running the name would start the launcher again. The names here
//! are random and not listed, so that only who was told one, to build a sandbox, finds the node. A node exists while a
//! run of its function version does; it has the same number for all of them, so their pages are shared.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use brine_exec::{ProgramId, RunId};
use brine_store::ids::{Ino, Version};
use brine_store::volume::{Attr, FileKind};
use parking_lot::Mutex;

use super::pin::Pin;
use crate::control_dir::{Branch, Caching, Family, Opening, VirtualFile, plain_attr, reading_only};
use crate::errno::{Errno, Outcome};
use crate::vfs::{Caller, Vfs};

/// What the directory may be done with: searched by name.
const DIRECTORY_PERM: u16 = 0o711;

struct Node {
    attr: Attr,
    name: String,
    pin: Weak<CodePin>,
}

/// Keeps a code node and what it shows.
pub struct CodePin {
    pin: Arc<Pin>,
    code: Weak<CodeNodes>,
    function: (Ino, Version),
    name: String,
    program: ProgramId,
}

impl CodePin {
    /// The node's name in `.brine/code/`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it shows.
    pub fn program(&self) -> ProgramId {
        self.program
    }
}

impl Drop for CodePin {
    fn drop(&mut self) {
        if let Some(code) = self.code.upgrade() {
            let mut nodes = code.nodes.lock();
            // Another run may have made it anew in between.
            if nodes.get(&self.function).is_some_and(|node| node.pin.strong_count() == 0) {
                nodes.remove(&self.function);
            }
        }
    }
}

/// All code nodes.
pub struct CodeNodes {
    vfs: Weak<Vfs>,
    nodes: Mutex<HashMap<(Ino, Version), Node>>,
    /// Numbers and names of the nodes there ever were: the kernel keeps pages by number and paths by name, so a version
    /// has the same ones again.
    numbers: Mutex<Numbers>,
    since_ns: i64,
}

#[derive(Default)]
struct Numbers {
    next: u64,
    known: HashMap<(Ino, Version), (u64, String)>,
}

/// Function versions whose number and name are remembered after their last run.
const NUMBERS_MAX: usize = 10_000;

impl Numbers {
    fn of(&mut self, function: (Ino, Version)) -> (u64, String) {
        if let Some(known) = self.known.get(&function) {
            return known.clone();
        }
        if self.known.len() >= NUMBERS_MAX {
            self.known.clear();
        }
        self.next += 1;
        let known = (self.next, RunId::random().to_string());
        self.known.insert(function, known.clone());
        known
    }
}

impl CodeNodes {
    /// None yet.
    pub fn new(vfs: &Arc<Vfs>, since_ns: i64) -> Arc<Self> {
        Arc::new(Self { vfs: Arc::downgrade(vfs), nodes: Mutex::default(), numbers: Mutex::default(), since_ns })
    }

    /// The node of a function version that `pin` keeps as it is; `attr` are the function's attributes. Whether it never
    /// was before is told with it.
    pub fn node(self: &Arc<Self>, pin: &Arc<Pin>, attr: &Attr) -> (Arc<CodePin>, bool) {
        let function = (attr.ino, attr.version);
        let mut nodes = self.nodes.lock();
        if let Some(pin) = nodes.get(&function).and_then(|node| node.pin.upgrade()) {
            return (pin, false);
        }
        let (number, name, new) = {
            let mut numbers = self.numbers.lock();
            let last = numbers.next;
            let (number, name) = numbers.of(function);
            (number, name, number > last)
        };
        let shown = Attr {
            ino: Family::Code.number(number, true),
            perm: attr.perm & !0o6000,
            nlink: 1,
            in_exec: false,
            ..*attr
        };
        let program = ProgramId {
            inode: attr.ino.0,
            generation: attr.ino_generation,
            version: attr.version.0,
            bytes: attr.size,
            mode: u32::from(shown.perm),
            uid: attr.uid,
            gid: attr.gid,
            modified_ns: attr.mtime_ns,
        };
        let code = CodePin { pin: Arc::clone(pin), code: Arc::downgrade(self), function, name: name.clone(), program };
        let code = Arc::new(code);
        nodes.insert(function, Node { attr: shown, name, pin: Arc::downgrade(&code) });
        (code, new)
    }

    fn find<T>(&self, wanted: impl Fn(&Node) -> bool, take: impl FnOnce(&Node) -> Option<T>) -> Option<T> {
        self.nodes.lock().values().find(|node| wanted(node)).and_then(take)
    }

    /// Nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Branch for CodeNodes {
    fn family(&self) -> Family {
        Family::Code
    }

    fn attr(&self, ino: Ino) -> Outcome<Attr> {
        if ino == Family::Code.top() {
            return Ok(plain_attr(ino, FileKind::Directory, DIRECTORY_PERM, 0, self.since_ns));
        }
        self.find(|node| node.attr.ino == ino, |node| Some(node.attr)).ok_or(Errno::STALE)
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Outcome<Attr> {
        if parent != Family::Code.top() {
            return Err(Errno(libc::ENOTDIR));
        }
        self.find(|node| node.name.as_bytes() == name, |node| Some(node.attr)).ok_or(Errno::NOT_FOUND)
    }

    fn open(&self, _caller: Caller, ino: Ino, flags: i32) -> Outcome<Opening> {
        reading_only(flags)?;
        let pin = self.find(|node| node.attr.ino == ino, |node| node.pin.upgrade()).ok_or(Errno::STALE)?;
        let file = CodeFile { vfs: Weak::clone(&self.vfs), pin };
        Ok(Opening { file: Arc::new(file), caching: Caching::Keep })
    }
}

/// An open code node.
struct CodeFile {
    vfs: Weak<Vfs>,
    pin: Arc<CodePin>,
}

impl VirtualFile for CodeFile {
    fn read(&self, offset: u64, len: usize) -> Outcome<Vec<u8>> {
        let vfs = self.vfs.upgrade().ok_or(Errno::IO)?;
        vfs.read_now(self.pin.pin.handle(), offset, len).map(|bytes| bytes.as_slice().to_vec())
    }
}
