//! `.brine` in the root of a mount: past states, and what runs. Reachable by name and not listed.
//!
//! A tree of parts ([`Branch`]), each with inode numbers of its own that never equal a live one's. Nothing in it can be
//! changed through the mount. Knows what the kernel may ask of it and who answers; what a part holds is the part's.

mod branch;
mod number;
mod views;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use brine_store::ids::{Ino, ROOT_INO};
use brine_store::volume::{Attr, COOKIE_MIN, DirEntry, FileKind};
use parking_lot::RwLock;

pub use branch::{Branch, Caching, Opening, VirtualFile, plain_attr, reading_only};
pub use number::{CONTROL_BIT, Family, LOCAL_MASK, is_control, is_passing};
pub use views::Views;

use crate::errno::{Errno, Outcome};
use crate::handle::Handles;
use crate::vfs::Caller;

/// What reserved names in the root begin with, and the name of this tree.
pub const CONTROL_NAME: &[u8] = b".brine";

/// Whether `name` in `parent` is reserved: it cannot be made, removed or replaced.
pub fn is_reserved(parent: Ino, name: &[u8]) -> bool {
    parent == ROOT_INO && name.starts_with(CONTROL_NAME)
}

/// The tree, and its open files.
pub struct ControlDir {
    /// In the order they were added, which is that of listings.
    branches: RwLock<Vec<Arc<dyn Branch>>>,
    files: Handles<Opening>,
    since_ns: i64,
}

impl ControlDir {
    /// A tree without parts, made at `since_ns`.
    pub fn new(since_ns: i64) -> Self {
        Self { branches: RwLock::default(), files: Handles::default(), since_ns }
    }

    /// Add a part. One of the same family that is there already is replaced.
    pub fn add(&self, branch: Arc<dyn Branch>) {
        let mut branches = self.branches.write();
        branches.retain(|other| other.family() != branch.family());
        branches.push(branch);
    }

    /// The part that an inode belongs to.
    fn branch(&self, ino: Ino) -> Outcome<Arc<dyn Branch>> {
        let family = Family::of(ino).ok_or(Errno::STALE)?;
        self.branches.read().iter().find(|branch| branch.family() == family).cloned().ok_or(Errno::STALE)
    }

    /// Attributes of `.brine`, or of what is below it.
    pub fn attr(&self, ino: Ino) -> Outcome<Attr> {
        if ino != Family::Control.top() {
            return self.branch(ino)?.attr(ino);
        }
        let mut attr = plain_attr(ino, FileKind::Directory, 0o755, 0, self.since_ns);
        let directories = |branch: &&Arc<dyn Branch>| {
            branch.attr(branch.family().top()).is_ok_and(|attr| attr.kind == FileKind::Directory)
        };
        attr.nlink += self.branches.read().iter().filter(directories).count() as u32;
        Ok(attr)
    }

    /// A name in the root of the mount or in this tree; the kernel knows the inode from now on.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Outcome<Attr> {
        if parent == ROOT_INO {
            return if name == CONTROL_NAME { self.attr(Family::Control.top()) } else { Err(Errno::NOT_FOUND) };
        }
        match name {
            b"." => return self.attr(parent),
            b".." => return Err(Errno::STALE),
            _ => {}
        }
        if parent != Family::Control.top() {
            return self.branch(parent)?.lookup(parent, name);
        }
        let branch = self.branches.read().iter().find(|branch| branch.family().name() == name).cloned();
        let branch = branch.ok_or(Errno::NOT_FOUND)?;
        branch.attr(branch.family().top())
    }

    /// The kernel forgot `count` of the times it was told of an inode.
    pub fn forget(&self, ino: Ino, count: u64) {
        if let Ok(branch) = self.branch(ino)
            && ino != branch.family().top()
        {
            branch.forget(ino, count);
        }
    }

    /// The directory that holds a directory.
    pub fn parent(&self, dir: Ino) -> Outcome<Ino> {
        if dir == Family::Control.top() {
            return Ok(ROOT_INO);
        }
        let branch = self.branch(dir)?;
        if dir == branch.family().top() { Ok(Family::Control.top()) } else { branch.parent(dir) }
    }

    /// As [`Branch::entries`].
    pub fn entries(&self, dir: Ino, cookie: u64, max: usize, plus: bool) -> Outcome<Vec<DirEntry>> {
        if dir != Family::Control.top() {
            return self.branch(dir)?.entries(dir, cookie, max, plus);
        }
        let branches = self.branches.read().clone();
        let mut entries = Vec::new();
        for (at, branch) in (COOKIE_MIN..).zip(branches).filter(|(at, _)| *at > cookie).take(max) {
            // What is not there (yet) is not listed.
            let Ok(attr) = branch.attr(branch.family().top()) else { continue };
            entries.push(DirEntry {
                name: branch.family().name().to_vec(),
                ino: attr.ino,
                kind: attr.kind,
                cookie: at,
                attr: plus.then_some(attr),
            });
        }
        Ok(entries)
    }

    /// Target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Outcome<Vec<u8>> {
        self.branch(ino)?.read_link(ino)
    }

    /// The value of an extended attribute.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Outcome<Vec<u8>> {
        if ino == Family::Control.top() {
            return Err(Errno(libc::ENODATA));
        }
        self.branch(ino)?.get_xattr(ino, name)
    }

    /// The names of all extended attributes.
    pub fn list_xattrs(&self, ino: Ino) -> Outcome<Vec<Vec<u8>>> {
        if ino == Family::Control.top() { Ok(Vec::new()) } else { self.branch(ino)?.list_xattrs(ino) }
    }

    /// Open a file: its handle has [`CONTROL_BIT`] set.
    pub fn open(&self, caller: Caller, ino: Ino, flags: i32) -> Outcome<(u64, Caching)> {
        let opening = self.branch(ino)?.open(caller, ino, flags)?;
        Ok(self.keep(opening))
    }

    /// Give an open file a handle.
    pub fn keep(&self, opening: Opening) -> (u64, Caching) {
        let caching = opening.caching;
        (self.files.insert(opening) | CONTROL_BIT, caching)
    }

    /// The open file of a handle; `None` if the handle is a live file's.
    pub fn file(&self, handle: u64) -> Option<Outcome<Arc<dyn VirtualFile>>> {
        (handle & CONTROL_BIT != 0).then(|| {
            let opening = self.files.get(handle & !CONTROL_BIT).ok_or(Errno::BAD_HANDLE)?;
            Ok(Arc::clone(&opening.file))
        })
    }

    /// Close a handle; false if it is a live file's.
    pub fn close(&self, handle: u64) -> bool {
        let ours = handle & CONTROL_BIT != 0;
        if ours {
            self.files.remove(handle & !CONTROL_BIT);
        }
        ours
    }
}
