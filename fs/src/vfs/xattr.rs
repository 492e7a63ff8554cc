//! Extended attributes.

use std::sync::atomic::Ordering;

use brine_store::ids::Ino;

use super::Vfs;
use crate::control_dir::is_control;
use crate::errno::{Errno, Outcome};

/// Kept by the kernel's capability code; asked for before the first write to every file.
const CAPABILITY: &[u8] = b"security.capability";
/// A function's policy, to be read; archives and copies must not install one.
const POLICY: &[u8] = b"user.brine.policy";
/// Attributes of this namespace mean something to the kernel that we would not enforce (access control lists).
const SYSTEM: &[u8] = b"system.";

impl Vfs {
    /// The value of an attribute.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Outcome<Vec<u8>> {
        if is_control(ino) {
            return self.control.get_xattr(ino, name);
        }
        if name == POLICY {
            return self.policy_of(ino).map(|policy| policy.encode()).ok_or(Errno(libc::ENODATA));
        }
        if name.starts_with(SYSTEM) {
            return Err(Errno::NOT_SUPPORTED);
        }
        // Half of all requests of a program that makes small files, were it not answered from memory.
        if name == CAPABILITY && self.inodes.file(ino).is_some_and(|node| node.no_xattrs.load(Ordering::Relaxed)) {
            return Err(Errno(libc::ENODATA));
        }
        self.volume.get_xattr(ino, name).map_err(|error| self.fail("getxattr of", ino, &error))
    }

    /// The names of all attributes, each followed by a zero byte.
    pub fn list_xattrs(&self, ino: Ino) -> Outcome<Vec<u8>> {
        let names = if is_control(ino) {
            self.control.list_xattrs(ino)?
        } else {
            self.volume.list_xattrs(ino).map_err(|error| self.fail("listxattr of", ino, &error))?
        };
        let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for name in names {
            list.extend_from_slice(&name);
            list.push(0);
        }
        Ok(list)
    }

    /// Set an attribute; `flags` are those of setxattr(2).
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Outcome<()> {
        self.check_live(ino)?;
        if name == POLICY {
            return Err(Errno::NOT_PERMITTED);
        }
        if name.starts_with(SYSTEM) {
            return Err(Errno::NOT_SUPPORTED);
        }
        let (create, replace) = (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0);
        let _gate = self.buffer.change();
        if let Some(node) = self.inodes.file(ino) {
            node.no_xattrs.store(false, Ordering::Relaxed);
        }
        self.volume.set_xattr(ino, name, value, create, replace).map_err(|error| self.fail("setxattr of", ino, &error))
    }

    /// Remove an attribute.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Outcome<()> {
        self.check_live(ino)?;
        if name == POLICY {
            return Err(Errno::NOT_PERMITTED);
        }
        if name.starts_with(SYSTEM) {
            return Err(Errno::NOT_SUPPORTED);
        }
        let _gate = self.buffer.change();
        self.volume.remove_xattr(ino, name).map_err(|error| self.fail("removexattr of", ino, &error))
    }
}
