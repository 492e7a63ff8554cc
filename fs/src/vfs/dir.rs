//! Entries of directories: making, removing, linking and listing them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use brine_store::ids::Ino;
use brine_store::volume::{Attr, FileKind, NewNode, Unlinked};

use super::{Caller, Vfs};
use crate::control_dir::{is_control, is_reserved};
use crate::errno::{Errno, Outcome};
use crate::handle::OpenDir;

/// Positions of "." and ".."; entries follow, at the store's cookie plus this many.
const DOTS: u64 = 2;
/// Entries asked of the store at first: most directories have fewer, and that many take no time on the event thread.
const BATCH_FIRST: usize = 64;
/// Most entries asked of the store at a time.
const BATCH_MAX: usize = 1024;

/// One entry of a listing.
pub struct DirItem<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Where the listing goes on after it.
    pub offset: u64,
    /// Its attributes, if they were asked for.
    pub attr: Option<&'a Attr>,
}

impl Vfs {
    /// Make a node of any kind and a name for it. `target` is for symbolic links.
    #[allow(clippy::too_many_arguments)] // the request's fields
    pub fn make(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        kind: FileKind,
        perm: u16,
        rdev: u32,
        target: Option<&[u8]>,
    ) -> Outcome<Attr> {
        let attr = {
            let _gate = self.buffer.change();
            self.make_under_gate(caller, parent, name, kind, perm, rdev, target)?
        };
        Ok(self.entry(attr))
    }

    #[allow(clippy::too_many_arguments)] // the request's fields
    pub(super) fn make_under_gate(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        kind: FileKind,
        perm: u16,
        rdev: u32,
        target: Option<&[u8]>,
    ) -> Outcome<Attr> {
        self.check_makeable(parent, name)?;
        let (perm, gid) = self.inherit(caller, parent, kind, perm)?;
        let node = NewNode { kind, perm, uid: caller.uid, gid, rdev, target };
        self.volume
            .create_masked(parent, name, &node, caller.umask)
            .map_err(|error| self.fail("create in", parent, &error))
    }

    /// Refuse names that are not for users, and those below `.brine`.
    pub(super) fn check_makeable(&self, parent: Ino, name: &[u8]) -> Outcome<()> {
        self.check_live(parent)?;
        if is_reserved(parent, name) { Err(Errno::NOT_PERMITTED) } else { Ok(()) }
    }

    /// Give an inode another name.
    pub fn link(&self, caller: Caller, ino: Ino, parent: Ino, name: &[u8]) -> Outcome<Attr> {
        if is_control(ino) {
            // As between any two filesystems: programs then copy.
            return Err(Errno(libc::EXDEV));
        }
        self.check_makeable(parent, name)?;
        let attr = {
            let _gate = self.buffer.change();
            self.volume.link(ino, parent, name).map_err(|error| self.fail("link to", ino, &error))?
        };
        self.name_changed(caller, parent, name);
        Ok(self.entry(attr))
    }

    /// Remove a name that is not a directory's.
    pub fn unlink(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Outcome<()> {
        self.check_makeable(parent, name)?;
        let gone = {
            let _gate = self.buffer.change();
            self.volume.unlink(parent, name)
        };
        self.removed(gone.map_err(|error| self.fail("unlink in", parent, &error))?);
        Ok(())
    }

    /// Remove an empty directory.
    pub fn rmdir(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Outcome<()> {
        self.check_makeable(parent, name)?;
        let gone = {
            let _gate = self.buffer.change();
            self.volume.rmdir(parent, name)
        };
        self.removed(gone.map_err(|error| self.fail("rmdir in", parent, &error))?);
        Ok(())
    }

    /// A name is gone; if it was the last one, so is the inode once nothing refers to it.
    pub(super) fn removed(self: &Arc<Self>, unlinked: Unlinked) {
        if unlinked.nlink == 0 {
            let gone = self.inodes.unlinked(unlinked.ino);
            self.release(gone);
        }
    }

    /// Open a directory for listing.
    pub fn open_dir(&self, ino: Ino) -> u64 {
        self.dirs.insert(OpenDir { ino, end: AtomicU64::new(u64::MAX), batch: AtomicUsize::new(BATCH_FIRST) })
    }

    /// Close a directory.
    pub fn close_dir(&self, handle: u64) {
        self.dirs.remove(handle);
    }

    /// Whether listing on from `offset` is more than a moment's work: all but the beginning and the known end.
    pub fn read_dir_waits(&self, handle: u64, offset: u64) -> bool {
        let goes_on = |dir: &OpenDir| dir.end.load(Ordering::Relaxed) != offset;
        self.dirs.get(handle).is_some_and(|dir| is_control(dir.ino) || offset > DOTS && goes_on(&dir))
    }

    /// List a directory from `offset` (0: its beginning) until `emit` says that it has enough, having not taken the
    /// entry it was given. With `plus` the kernel knows every entry taken.
    pub fn read_dir(
        &self,
        handle: u64,
        offset: u64,
        plus: bool,
        emit: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Outcome<()> {
        let dir = self.dirs.get(handle).ok_or(Errno::BAD_HANDLE)?;
        if dir.end.load(Ordering::Relaxed) == offset {
            return Ok(());
        }
        if offset < DOTS && self.emit_dots(dir.ino, offset, plus, emit)? {
            return Ok(());
        }
        let mut cookie = offset.saturating_sub(DOTS);
        let batch = dir.batch.load(Ordering::Relaxed);
        let control = is_control(dir.ino);
        let entries = if control {
            self.control.entries(dir.ino, cookie, batch, plus)?
        } else {
            let read = self.volume.read_dir(dir.ino, cookie, batch, plus);
            read.map_err(|error| self.fail("readdir of", dir.ino, &error))?
        };
        let reached_end = entries.len() < batch;
        for (taken, entry) in entries.iter().enumerate() {
            let attr = entry.attr.map(|mut attr| {
                if let Some(node) = self.inodes.file(attr.ino) {
                    self.buffer.overlay(&node, &mut attr);
                }
                attr
            });
            let item = DirItem {
                name: &entry.name,
                ino: entry.ino,
                kind: entry.kind,
                offset: entry.cookie + DOTS,
                attr: attr.as_ref(),
            };
            if emit(&item) {
                dir.batch.store(taken + 1, Ordering::Relaxed);
                if control && plus {
                    // They count as told of; these were not.
                    entries[taken..].iter().for_each(|entry| self.control.forget(entry.ino, 1));
                }
                return Ok(());
            }
            if plus && !control {
                self.inodes.remember(entry.ino);
            }
            cookie = entry.cookie;
        }
        dir.batch.store((batch * 2).min(BATCH_MAX), Ordering::Relaxed);
        if reached_end {
            // The kernel asks once more, to be told that nothing follows.
            dir.end.store((cookie + DOTS).max(DOTS), Ordering::Relaxed);
        }
        Ok(())
    }

    /// "." and ".."; true if `emit` had enough. The kernel does not count these as told of.
    fn emit_dots(
        &self,
        ino: Ino,
        offset: u64,
        plus: bool,
        emit: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Outcome<bool> {
        let fail = |error| self.fail("readdir of", ino, &error);
        let attr = self.attr(ino)?;
        let parent = if is_control(ino) {
            self.control.parent(ino)?
        } else {
            self.touch_atime(&attr);
            self.volume.parent_of(ino).map_err(fail)?
        };
        let parent = if parent == ino { attr } else { self.attr(parent)? };
        let dots: [(&[u8], &Attr); 2] = [(b".", &attr), (b"..", &parent)];
        for (position, (name, attr)) in (1..).zip(dots) {
            let attr_wanted = plus.then_some(attr);
            let item = DirItem { name, ino: attr.ino, kind: attr.kind, offset: position, attr: attr_wanted };
            if position > offset && emit(&item) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
