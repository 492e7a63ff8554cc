//! Namespace operations, to the letter of POSIX and, where POSIX leaves a choice, of Linux and ext4.
//!
//! Each is one change: it steps the version of every inode it touches by one, all or nothing. The kernel has checked
//! permissions and stripped set-group-id from files (`mode_strip_sgid`); this module decides what exists.

use super::changes::RowChange;
use super::dentry::check_name;
use super::quota::tagged;
use super::rows::*;
use super::txn::Txn;
use crate::error::{Error, Result};
use crate::ids::{DataId, Generation, Ino, ROOT_INO, Version};

/// Directories nest at most this deep: walking up from deeper ones is refused as a loop.
const DEPTH_MAX: usize = 1 << 20;

/// Size reported of a directory, bytes.
const DIRECTORY_SIZE: u64 = 4096;

/// Symbolic links count their target, as lstat(2) asks.
fn size_of(node: &NewNode<'_>) -> u64 {
    match node.kind {
        FileKind::Directory => DIRECTORY_SIZE,
        FileKind::Symlink => node.target.map_or(0, |target| target.len() as u64),
        _ => 0,
    }
}

/// Whether a directory of this name is the exec directory.
fn is_exec_place(parent: Ino, name: &[u8]) -> bool {
    parent == ROOT_INO && name == EXEC_NAME
}

impl Txn<'_> {
    /// The root directory of a new volume: inode 1.
    pub(super) fn create_root(&mut self, node: &NewNode<'_>, chunk_bits: u8) -> Attr {
        let row = self.new_row(node, Ino(0), chunk_bits);
        self.insert_inode(row)
    }

    fn new_row(&mut self, node: &NewNode<'_>, parent: Ino, chunk_bits: u8) -> InodeRow {
        let now = self.now_ns();
        InodeRow {
            ino: Ino(0),
            version: Version(1),
            kind: node.kind,
            perm: node.perm & 0o7777,
            uid: node.uid,
            gid: node.gid,
            nlink: if node.kind == FileKind::Directory { 2 } else { 1 },
            rdev: if matches!(node.kind, FileKind::CharDevice | FileKind::BlockDevice) { node.rdev } else { 0 },
            size: size_of(node),
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            btime_ns: now,
            data: DataId(0),
            chunk_bits,
            flags: 0,
            inline: node.target.map(Into::into),
            ino_generation: 1,
            allocated: 0,
            parent,
            since: Generation(0),
        }
    }

    /// A directory that names can be looked up in.
    fn directory(&mut self, ino: Ino) -> Result<&InodeRow> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        if row.kind == FileKind::Directory { Ok(row) } else { Err(Error::NotADirectory) }
    }

    /// A directory that names can be made in: one that was not removed.
    fn living_directory(&mut self, ino: Ino) -> Result<&InodeRow> {
        let row = self.directory(ino)?;
        if row.nlink == 0 { Err(Error::NotFound) } else { Ok(row) }
    }

    fn find(&mut self, parent: Ino, name: &[u8]) -> Result<Option<(Ino, FileKind)>> {
        let hash = self.core.names.hash(name);
        self.core.dentry(parent, hash, name)
    }

    fn name_row(&self, parent: Ino, name: &[u8], ino: Ino, kind: FileKind) -> DentryRow {
        let hash = self.core.names.hash(name);
        DentryRow { parent, hash, name: name.into(), ino, kind, since: self.core.generation() }
    }

    fn put_name(&mut self, parent: Ino, name: &[u8], ino: Ino, kind: FileKind) -> Result<()> {
        let row = self.name_row(parent, name, ino, kind);
        self.core.apply(RowChange::PutDentry(row)).map(|_| ())
    }

    fn add_name(&mut self, parent: Ino, name: &[u8], ino: Ino, kind: FileKind) -> Result<()> {
        let row = self.name_row(parent, name, ino, kind);
        if self.core.add_dentry(row)? { Ok(()) } else { Err(Error::Exists) }
    }

    fn remove_name(&mut self, parent: Ino, name: &[u8]) -> Result<()> {
        let hash = self.core.names.hash(name);
        let at = self.core.generation();
        self.core.apply(RowChange::DelDentry { parent, hash, name: name.into(), at }).map(|_| ())
    }

    /// Content of a directory changed; `subdirectories` more (or fewer) names of directories in it.
    fn touch_directory(&mut self, ino: Ino, subdirectories: i64) -> Result<()> {
        let now = self.now_ns();
        self.step(ino, |row| {
            row.mtime_ns = now;
            row.ctime_ns = now;
            row.nlink = (i64::from(row.nlink) + subdirectories) as u32;
        })
        .map(|_| ())
    }

    /// What `name` stands for in `parent`; "." and ".." included.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotADirectory`], [`Error::NameTooLong`], [`Error::Stale`] (no such directory).
    pub fn lookup(&mut self, parent: Ino, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        let row = self.directory(parent)?;
        let ino = match name {
            b"." => parent,
            b".." => row.parent,
            _ => self.find(parent, name)?.ok_or(Error::NotFound)?.0,
        };
        self.attr(ino)
    }

    /// The directory that holds this one; the root's is itself.
    ///
    /// # Errors
    /// [`Error::NotADirectory`], [`Error::Stale`].
    pub fn parent_of(&mut self, ino: Ino) -> Result<Ino> {
        self.directory(ino).map(|row| row.parent)
    }

    /// [`Self::create_masked`] without a mask.
    ///
    /// # Errors
    /// As there.
    pub fn create(&mut self, parent: Ino, name: &[u8], node: &NewNode<'_>) -> Result<Attr> {
        self.create_masked(parent, name, node, 0)
    }

    /// What a name stands for, and since which generation. None if it is not there.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn name_since(&mut self, parent: Ino, name: &[u8]) -> Result<Option<(Ino, FileKind, Generation)>> {
        let hash = self.core.names.hash(name);
        self.core.dentry_since(parent, hash, name)
    }

    /// Make an inode and its name. It inherits the directory's default access control list; without one, the bits of
    /// `umask` are taken from its permissions.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NotFound`] (the directory was removed), [`Error::NotADirectory`],
    /// [`Error::NameTooLong`], [`Error::TooManyLinks`], [`Error::QuotaExceeded`], [`Error::InvalidArgument`] (a target where none belongs, or
    /// none, or longer than [`TARGET_MAX`]).
    pub fn create_masked(&mut self, parent: Ino, name: &[u8], node: &NewNode<'_>, umask: u16) -> Result<Attr> {
        check_name(name)?;
        match (node.kind, node.target) {
            (FileKind::Symlink, Some(target)) if target.len() > TARGET_MAX => return Err(Error::NameTooLong),
            (FileKind::Symlink, Some(target)) if !target.is_empty() => {}
            (FileKind::Symlink, _) => return Err(Error::InvalidArgument("a symbolic link needs a target")),
            (_, Some(_)) => return Err(Error::InvalidArgument("only a symbolic link has a target")),
            _ => {}
        }
        if name == b"." || name == b".." {
            return Err(Error::Exists);
        }
        let nlink_max = self.core.nlink_max;
        let directory = self.living_directory(parent)?;
        let is_directory = node.kind == FileKind::Directory;
        let too_many = is_directory && directory.nlink >= nlink_max;
        let mut node = *node;
        if directory.perm & 0o2000 != 0 {
            node.gid = directory.gid;
            if is_directory {
                node.perm |= 0o2000;
            }
        }
        let chunk_bits = directory.chunk_bits;
        let (in_exec, quota) = (directory.flags & INODE_IN_EXEC, directory.quota());
        let inherited = self.inherit_acl(parent, node.kind, node.perm, umask)?;
        node.perm = inherited.perm;
        let mut row = self.new_row(&node, parent, chunk_bits);
        row.flags |= if inherited.attributes.is_empty() { 0 } else { INODE_HAS_XATTRS };
        row.flags |= if is_directory && is_exec_place(parent, name) { INODE_IN_EXEC } else { in_exec };
        row.flags = tagged(row.flags, quota);
        let fits = self.quota_fits(quota, row.charge(), 1);
        let attr = self.insert_inode(row);
        for (name, value) in &inherited.attributes {
            self.put_xattr(attr.ino, name, value)?;
        }
        self.add_name(parent, name, attr.ino, node.kind)?;
        if too_many {
            return Err(Error::TooManyLinks);
        }
        fits?;
        self.touch_directory(parent, i64::from(is_directory))?;
        Ok(attr)
    }

    /// Give an inode one more name.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NotPermitted`] (a directory), [`Error::NotFound`] (the inode or the directory was
    /// removed), [`Error::TooManyLinks`], [`Error::NotADirectory`], [`Error::NameTooLong`].
    pub fn link(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        let side = self.living_directory(parent)?.flags & INODE_IN_EXEC;
        if name == b"." || name == b".." || self.find(parent, name)?.is_some() {
            return Err(Error::Exists);
        }
        let nlink_max = self.core.nlink_max;
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let kind = row.kind;
        if kind == FileKind::File && row.flags & INODE_IN_EXEC != side {
            return Err(Error::CrossesDevices);
        }
        if kind == FileKind::Directory {
            return Err(Error::NotPermitted("directories have one name"));
        }
        if row.nlink == 0 {
            return Err(Error::NotFound);
        }
        if row.nlink >= nlink_max {
            return Err(Error::TooManyLinks);
        }
        self.quota_border(ino, None, parent)?;
        let now = self.now_ns();
        self.add_name(parent, name, ino, kind)?;
        self.touch_directory(parent, 0)?;
        self.step(ino, |row| {
            row.nlink += 1;
            row.flags |= INODE_HAD_LINKS;
            row.ctime_ns = now;
        })
    }

    /// Remove a name of anything but a directory. With its last name the inode becomes an orphan.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::IsADirectory`], [`Error::NotADirectory`] (the parent), [`Error::NameTooLong`].
    pub fn unlink(&mut self, parent: Ino, name: &[u8]) -> Result<Unlinked> {
        check_name(name)?;
        self.directory(parent)?;
        if name == b"." || name == b".." {
            return Err(Error::IsADirectory);
        }
        let (ino, kind) = self.find(parent, name)?.ok_or(Error::NotFound)?;
        if kind == FileKind::Directory {
            return Err(Error::IsADirectory);
        }
        self.remove_name(parent, name)?;
        self.touch_directory(parent, 0)?;
        self.lose_name(ino)
    }

    /// Remove an empty directory. It becomes an orphan.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotADirectory`], [`Error::NotEmpty`] (also for ".."), [`Error::InvalidArgument`]
    /// (for "."), [`Error::NameTooLong`].
    pub fn rmdir(&mut self, parent: Ino, name: &[u8]) -> Result<Unlinked> {
        check_name(name)?;
        self.directory(parent)?;
        match name {
            b"." => return Err(Error::InvalidArgument("\".\" cannot be removed")),
            b".." => return Err(Error::NotEmpty),
            _ => {}
        }
        let (ino, kind) = self.find(parent, name)?.ok_or(Error::NotFound)?;
        if kind != FileKind::Directory {
            return Err(Error::NotADirectory);
        }
        if !self.core.is_empty_directory(ino)? {
            return Err(Error::NotEmpty);
        }
        self.remove_name(parent, name)?;
        self.touch_directory(parent, -1)?;
        self.lose_name(ino)
    }

    /// The inode lost one name (a directory: its only one).
    fn lose_name(&mut self, ino: Ino) -> Result<Unlinked> {
        let now = self.now_ns();
        let attr = self.step(ino, |row| {
            row.nlink = if row.kind == FileKind::Directory { 0 } else { row.nlink.saturating_sub(1) };
            row.ctime_ns = now;
        })?;
        if attr.kind == FileKind::Directory {
            self.forget_quota_of(ino);
        }
        Ok(Unlinked { ino, nlink: attr.nlink, kind: attr.kind })
    }

    /// True if `ancestor` is `ino` or above it.
    fn is_above(&mut self, ancestor: Ino, ino: Ino) -> Result<bool> {
        let mut at = ino;
        for _ in 0..DEPTH_MAX {
            if at == ancestor {
                return Ok(true);
            }
            let parent = self.core.inode(at)?.ok_or(Error::Stale(at))?.parent;
            if parent == at {
                return Ok(false);
            }
            at = parent;
        }
        Err(Error::format(format!("directory {ino}"), "its parents form a loop; unmount and run `brine check`"))
    }

    /// Rename, replace or exchange, as renameat2(2). Returns what lost its name by being replaced; when both names
    /// stand for one inode nothing happens.
    ///
    /// # Errors
    /// [`Error::NotFound`] (the old name; the new one in an exchange; a removed new directory), [`Error::Exists`]
    /// (`no_replace`), [`Error::IsADirectory`], [`Error::NotADirectory`], [`Error::NotEmpty`],
    /// [`Error::InvalidArgument`] (a directory into itself; "." or ".."; flags that exclude each other),
    /// [`Error::TooManyLinks`], [`Error::NameTooLong`], [`Error::CrossesDevices`] (see [`Self::border`]).
    pub fn rename(
        &mut self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<Option<Unlinked>> {
        check_name(name)?;
        check_name(new_name)?;
        if flags.exchange && (flags.no_replace || flags.whiteout) {
            return Err(Error::InvalidArgument("rename flags exclude each other"));
        }
        if [name, new_name].iter().any(|name| *name == b"." || *name == b"..") {
            return Err(Error::InvalidArgument("\".\" and \"..\" cannot be renamed"));
        }
        self.directory(parent)?;
        self.directory(new_parent)?;
        let (ino, kind) = self.find(parent, name)?.ok_or(Error::NotFound)?;
        self.living_directory(new_parent)?;
        let target = self.find(new_parent, new_name)?;
        if target.is_some() && flags.no_replace {
            return Err(Error::Exists);
        }
        if target.is_none() && flags.exchange {
            return Err(Error::NotFound);
        }
        if parent != new_parent {
            if kind == FileKind::Directory && self.is_above(ino, new_parent)? {
                return Err(Error::InvalidArgument("a directory cannot move below itself"));
            }
            if let Some((target, FileKind::Directory)) = target
                && self.is_above(target, parent)?
            {
                return Err(if flags.exchange {
                    Error::InvalidArgument("a directory cannot move below itself")
                } else {
                    Error::NotEmpty
                });
            }
        }
        if !matches!(target, Some((target, _)) if target == ino) {
            self.border(ino, new_parent, new_name)?;
            self.quota_border(ino, Some(parent), new_parent)?;
            if let (Some((target, _)), true) = (target, flags.exchange) {
                self.border(target, parent, name)?;
                self.quota_border(target, Some(new_parent), parent)?;
            }
        }
        match target {
            Some((target, _)) if target == ino => Ok(None),
            Some(target) if flags.exchange => {
                self.exchange((parent, name, ino, kind), (new_parent, new_name, target.0, target.1)).map(|()| None)
            }
            _ => self.move_name(
                (parent, name),
                (ino, kind),
                (new_parent, new_name),
                target,
                flags.whiteout.then_some(flags.owner),
            ),
        }
    }

    /// Whether `ino` may get this name, as far as the exec directory is concerned: all names of a file lie on one side
    /// of its border, so only a file that is not executable and has one name crosses it, and a directory never does. A
    /// program then cannot be run plainly by another name, and whoever moves one copies it (as mv does at EXDEV).
    fn border(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Result<()> {
        let side = self.directory(parent)?.flags & INODE_IN_EXEC;
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let crosses = row.flags & INODE_IN_EXEC != side;
        let allowed = match row.kind {
            FileKind::File => !crosses || (row.perm & 0o111 == 0 && row.nlink == 1),
            // A directory becomes the exec directory by being made as such, empty.
            FileKind::Directory => !crosses && !is_exec_place(parent, name),
            _ => true,
        };
        if allowed { Ok(()) } else { Err(Error::CrossesDevices) }
    }

    fn move_name(
        &mut self,
        (parent, name): (Ino, &[u8]),
        (ino, kind): (Ino, FileKind),
        (new_parent, new_name): (Ino, &[u8]),
        target: Option<(Ino, FileKind)>,
        whiteout: Option<(u32, u32)>,
    ) -> Result<Option<Unlinked>> {
        let is_directory = kind == FileKind::Directory;
        match target {
            Some((_, FileKind::Directory)) if !is_directory => return Err(Error::IsADirectory),
            Some((target, FileKind::Directory)) if !self.core.is_empty_directory(target)? => {
                return Err(Error::NotEmpty);
            }
            Some((_, target)) if is_directory && target != FileKind::Directory => return Err(Error::NotADirectory),
            _ => {}
        }
        let gained = i64::from(is_directory) - i64::from(matches!(target, Some((_, FileKind::Directory))));
        if parent != new_parent && gained > 0 && self.directory(new_parent)?.nlink >= self.core.nlink_max {
            return Err(Error::TooManyLinks);
        }
        self.remove_name(parent, name)?;
        self.put_name(new_parent, new_name, ino, kind)?;
        if parent == new_parent {
            // The moved directory stays; the replaced one is gone.
            self.touch_directory(parent, gained - i64::from(is_directory))?;
        } else {
            self.touch_directory(parent, -i64::from(is_directory))?;
            self.touch_directory(new_parent, gained)?;
        }
        self.moved(ino, new_parent)?;
        if let Some(owner) = whiteout {
            self.add_whiteout(parent, name, owner)?;
        }
        target.map(|(target, _)| self.lose_name(target)).transpose()
    }

    /// The inode has another name now.
    fn moved(&mut self, ino: Ino, parent: Ino) -> Result<()> {
        let now = self.now_ns();
        let side = self.directory(parent)?.flags & INODE_IN_EXEC;
        self.step(ino, |row| {
            row.parent = parent;
            row.flags = row.flags & !INODE_IN_EXEC | side;
            row.ctime_ns = now;
        })
        .map(|_| ())
    }

    /// A new inode like any other: group and access control list are the directory's to give. The parent's version was
    /// stepped by the rename this belongs to.
    fn add_whiteout(&mut self, parent: Ino, name: &[u8], (uid, gid): (u32, u32)) -> Result<()> {
        let (gid, chunk_bits, quota) = {
            let directory = self.directory(parent)?;
            let gid = if directory.perm & 0o2000 != 0 { directory.gid } else { gid };
            (gid, directory.chunk_bits, directory.quota())
        };
        self.quota_fits(quota, 0, 1)?;
        let inherited = self.inherit_acl(parent, FileKind::CharDevice, 0, 0)?;
        let perm = inherited.perm;
        let node = NewNode { kind: FileKind::CharDevice, perm, uid, gid, rdev: 0, target: None };
        let mut row = self.new_row(&node, parent, chunk_bits);
        row.flags = tagged(row.flags, quota);
        row.flags |= if inherited.attributes.is_empty() { 0 } else { INODE_HAS_XATTRS };
        let attr = self.insert_inode(row);
        for (name, value) in &inherited.attributes {
            self.put_xattr(attr.ino, name, value)?;
        }
        self.add_name(parent, name, attr.ino, attr.kind)
    }

    fn exchange(&mut self, one: (Ino, &[u8], Ino, FileKind), two: (Ino, &[u8], Ino, FileKind)) -> Result<()> {
        let (parent, name, ino, kind) = one;
        let (new_parent, new_name, target, target_kind) = two;
        let gained = i64::from(kind == FileKind::Directory) - i64::from(target_kind == FileKind::Directory);
        let nlink_max = self.core.nlink_max;
        if parent != new_parent {
            let grows = if gained > 0 { new_parent } else { parent };
            if gained != 0 && self.directory(grows)?.nlink >= nlink_max {
                return Err(Error::TooManyLinks);
            }
        }
        self.put_name(new_parent, new_name, ino, kind)?;
        self.put_name(parent, name, target, target_kind)?;
        if parent == new_parent {
            self.touch_directory(parent, 0)?;
        } else {
            self.touch_directory(parent, -gained)?;
            self.touch_directory(new_parent, gained)?;
        }
        self.moved(ino, new_parent)?;
        self.moved(target, parent)
    }
}
