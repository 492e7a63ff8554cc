//! Names to inodes, and forgetting them.

use std::sync::Arc;

use brine_store::ids::Ino;
use brine_store::volume::Attr;

use super::Vfs;
use crate::control_dir::{is_control, is_reserved};
use crate::errno::Outcome;

impl Vfs {
    /// The inode of a name; the kernel knows it from now on. "." and ".." are asked for by file handles (NFS).
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Outcome<Attr> {
        if is_control(parent) || is_reserved(parent, name) {
            let attr = self.control.lookup(parent, name)?;
            // Staged outputs are live inodes.
            return Ok(if is_control(attr.ino) { attr } else { self.entry(attr) });
        }
        let found = match name {
            b"." => self.volume.attr(parent),
            b".." => self.volume.parent_of(parent).and_then(|ino| self.volume.attr(ino)),
            _ => self.volume.lookup(parent, name),
        };
        found.map(|attr| self.entry(attr)).map_err(|error| self.fail("lookup in", parent, &error))
    }

    /// The kernel forgot `count` of the times it was told of an inode.
    pub fn forget(self: &Arc<Self>, ino: Ino, count: u64) {
        if is_control(ino) {
            return self.control.forget(ino, count);
        }
        let gone = self.inodes.forget(ino, count);
        self.release(gone);
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Outcome<Vec<u8>> {
        if is_control(ino) {
            return self.control.read_link(ino);
        }
        let target = self.volume.read_link(ino).map_err(|error| self.fail("readlink of", ino, &error))?;
        if let Ok(attr) = self.volume.attr(ino) {
            self.touch_atime(&attr);
        }
        Ok(target)
    }
}
