//! Extended attributes and access control lists.
//!
//! The kernel checks who may touch which namespace, and asks us for lists when it checks permissions. Their other
//! side, modes and inheritance, is the store's.

use std::sync::atomic::Ordering;

use brine_store::ids::Ino;
use brine_store::volume::{ACL_ACCESS, ACL_DEFAULT};

use super::{Caller, Vfs};
use crate::control_dir::is_control;
use crate::errno::{Errno, Outcome};

/// Kept by the kernel's capability code; asked for before the first write to every file.
const CAPABILITY: &[u8] = b"security.capability";
/// A function's policy, to be read; archives and copies must not install one.
const POLICY: &[u8] = b"user.brine.policy";
/// Namespaces anything may be kept in. `system` is not one: its attributes mean something, and we know what only of
/// access control lists.
const NAMESPACES: [&[u8]; 3] = [b"user.", TRUSTED, b"security."];
/// Attributes only root may see.
const TRUSTED: &[u8] = b"trusted.";

fn is_acl(name: &[u8]) -> bool {
    name == ACL_ACCESS || name == ACL_DEFAULT
}

/// Refuse what no file here can have.
fn check_namespace(name: &[u8]) -> Outcome<()> {
    match NAMESPACES.iter().find(|space| name.starts_with(space)) {
        Some(space) if space.len() == name.len() => Err(Errno::INVALID),
        None if !is_acl(name) => Err(Errno::NOT_SUPPORTED),
        _ => Ok(()),
    }
}

impl Vfs {
    /// The value of an attribute.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Outcome<Vec<u8>> {
        if is_control(ino) {
            // The kernel takes every other answer for an error of the permission check.
            return if is_acl(name) { Err(Errno(libc::ENODATA)) } else { self.control.get_xattr(ino, name) };
        }
        if name == POLICY {
            return self.policy_of(ino).map(|policy| policy.encode()).ok_or(Errno(libc::ENODATA));
        }
        check_namespace(name)?;
        // Half of all requests of a program that makes small files, were it not answered from memory.
        if name == CAPABILITY && self.inodes.file(ino).is_some_and(|node| node.no_xattrs.load(Ordering::Relaxed)) {
            return Err(Errno(libc::ENODATA));
        }
        self.volume.get_xattr(ino, name).map_err(|error| self.fail("getxattr of", ino, &error))
    }

    /// The names of all attributes the caller may see, each followed by a zero byte.
    pub fn list_xattrs(&self, caller: Caller, ino: Ino) -> Outcome<Vec<u8>> {
        let names = if is_control(ino) {
            self.control.list_xattrs(ino)?
        } else {
            self.volume.list_xattrs(ino).map_err(|error| self.fail("listxattr of", ino, &error))?
        };
        let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for name in names.iter().filter(|name| caller.sees_trusted() || !name.starts_with(TRUSTED)) {
            list.extend_from_slice(name);
            list.push(0);
        }
        Ok(list)
    }

    /// Set an attribute; `flags` are those of setxattr(2).
    pub fn set_xattr(&self, caller: Caller, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Outcome<()> {
        self.check_live(ino)?;
        if name == POLICY {
            return Err(Errno::NOT_PERMITTED);
        }
        check_namespace(name)?;
        let (create, replace) = (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0);
        let _gate = self.buffer.change();
        if let Some(node) = self.inodes.file(ino) {
            node.no_xattrs.store(false, Ordering::Relaxed);
        }
        if is_acl(name) {
            return self.set_acl(caller, ino, name, value);
        }
        self.volume.set_xattr(ino, name, value, create, replace).map_err(|error| self.fail("setxattr of", ino, &error))
    }

    /// Remove an attribute.
    pub fn remove_xattr(&self, caller: Caller, ino: Ino, name: &[u8]) -> Outcome<()> {
        self.check_live(ino)?;
        if name == POLICY {
            return Err(Errno::NOT_PERMITTED);
        }
        check_namespace(name)?;
        let _gate = self.buffer.change();
        if is_acl(name) {
            return self.set_acl(caller, ino, name, &[]);
        }
        self.volume.remove_xattr(ino, name).map_err(|error| self.fail("removexattr of", ino, &error))
    }

    /// The caller holds the gate. The kernel would tell us to drop set-group-id, but the FUSE crate does not read that
    /// part of the request.
    fn set_acl(&self, caller: Caller, ino: Ino, name: &[u8], list: &[u8]) -> Outcome<()> {
        let fail = |error| self.fail("setting the access control list of", ino, &error);
        let attr = self.volume.attr(ino).map_err(fail)?;
        let clear_set_gid = attr.perm & 0o2000 != 0 && !caller.keeps_set_gid(attr.gid);
        self.volume.set_acl(ino, name, list, clear_set_gid).map_err(fail)?;
        if let Some(node) = self.inodes.file(ino) {
            let attr = self.volume.attr(ino).map_err(fail)?;
            self.buffer.note_attr(&node, &attr, None);
        }
        Ok(())
    }
}
