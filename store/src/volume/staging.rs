//! Outputs that nobody sees until they are published: directories and files of the volume below one that has no name
//! for anybody, and the one step that gives them their names (X13).
//!
//! What is staged for a directory is an overlay's upper layer: what was made or changed, whiteouts for what was
//! removed. Publishing is one operation, all of it or nothing, and conditional: whatever it replaces or removes must be
//! as it was when the run began (its [`Base`]), and what it makes must still not be there. Nothing is known here of
//! runs; a staged tree has the name its owner gave it.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Restored, View, Volume};
use crate::commit::Flusher;
use crate::error::{Error, Result};
use crate::ids::{Generation, Ino, ROOT_INO};
use crate::meta::Txn;
use crate::meta::rows::{Attr, DirEntry, FileKind, InodeRow, NewNode, RenameFlags, STAGED_NAME, SetAttr};

/// What overlayfs keeps in attributes of its upper layer, mounted by an ordinary user.
const OVERLAY: &[u8] = b"user.overlay.";

/// The state that a staged tree was begun from.
#[derive(Debug)]
pub struct Base {
    generation: Generation,
    /// Keeps history from forgetting it; none on a volume without history.
    _view: Option<View>,
}

impl Base {
    /// Which state.
    pub fn generation(&self) -> Generation {
        self.generation
    }
}

/// One thing that was staged, and where it belongs.
#[derive(Clone, Debug)]
pub enum Staged {
    /// Changes of a directory and of what is below it.
    Tree {
        /// The upper layer.
        upper: Ino,
        /// The directory.
        target: Ino,
    },
    /// A new content of a file.
    File {
        /// The directory that holds the staged copy, and its name there.
        from: (Ino, Vec<u8>),
        /// The directory that holds the file, and its name there.
        to: (Ino, Vec<u8>),
    },
}

/// What became of a publication.
#[derive(Debug)]
pub enum Published {
    /// Everything has its name.
    Done(Restored),
    /// Nothing was published: these paths, from where the staged trees begin, were changed meanwhile.
    Conflict(Vec<Vec<u8>>),
}

/// Paths of conflicts that are told.
const CONFLICTS_MAX: usize = 8;

impl Volume {
    /// The present state, to stage from: what was accepted is committed if anything is open.
    ///
    /// # Errors
    /// Those of a commit.
    pub fn base(self: &Arc<Self>, flusher: &dyn Flusher) -> Result<Base> {
        let generation =
            if flusher.has_dirty() || self.has_changes() { self.commit(flusher)? } else { self.meta.committed() };
        let history = self.meta.with(|txn| Ok(txn.keeps_history()))?;
        let view = if history { Some(self.view(generation)?) } else { None };
        Ok(Base { generation, _view: view })
    }

    /// A directory for staged outputs, of this name and owner, with mode 700. The caller holds the gate.
    ///
    /// # Errors
    /// [`Error::Exists`]; those of making names.
    pub fn make_staging(&self, name: &[u8], uid: u32, gid: u32) -> Result<Attr> {
        let node = |perm, uid, gid| NewNode { kind: FileKind::Directory, perm, uid, gid, rdev: 0, target: None };
        self.change(|txn| {
            let top = match txn.lookup(ROOT_INO, STAGED_NAME) {
                Err(Error::NotFound) => txn.create(ROOT_INO, STAGED_NAME, &node(0o711, 0, 0))?,
                found => found?,
            };
            txn.create(top.ino, name, &node(0o700, uid, gid))
        })
    }

    /// In a staging directory, one that changes of `target` are gathered in: an upper layer with its attributes, and
    /// a directory for overlayfs to work in. Returns the upper layer. The caller holds the gate.
    ///
    /// # Errors
    /// Those of making names.
    pub fn make_layer(&self, staging: Ino, name: &[u8], target: Ino) -> Result<Ino> {
        self.change(|txn| {
            let (owner, like) = (txn.inode(staging)?, txn.inode(target)?);
            let node = |perm, uid, gid| NewNode { kind: FileKind::Directory, perm, uid, gid, rdev: 0, target: None };
            let layer = txn.create(staging, name, &node(0o700, owner.uid, owner.gid))?;
            txn.create(layer.ino, b"work", &node(0o700, owner.uid, owner.gid))?;
            let upper = txn.create(layer.ino, b"upper", &node(like.perm, like.uid, like.gid))?;
            if upper.chunk_bits != like.chunk_bits {
                txn.set_chunk_bits(upper.ino, like.chunk_bits)?;
            }
            for name in txn.list_xattrs(target)? {
                let value = txn.get_xattr(target, &name)?;
                txn.set_xattr(upper.ino, &name, &value, false, false)?;
            }
            Ok(upper.ino)
        })
    }

    /// The staging directories there are.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn stagings(&self) -> Result<Vec<DirEntry>> {
        self.meta.with(|txn| match txn.lookup(ROOT_INO, STAGED_NAME) {
            Ok(top) => txn.read_dir(top.ino, 0, usize::MAX, false),
            Err(Error::NotFound) => Ok(Vec::new()),
            Err(error) => Err(error),
        })
    }

    /// What `path` (slashes between names) leads to in the staging directory of this name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn find_staged(&self, name: &[u8], path: &str) -> Result<Attr> {
        self.meta.with(|txn| {
            let mut at = txn.lookup(ROOT_INO, STAGED_NAME)?.ino;
            for name in std::iter::once(name).chain(path.split('/').map(str::as_bytes).filter(|name| !name.is_empty()))
            {
                at = txn.lookup(at, name)?.ino;
            }
            txn.attr(at)
        })
    }

    /// Give everything that was staged its place, in one step with everybody else held off; or, if `base` is given and
    /// something is not as it was then, nothing. `allowed` says in which directories names may be changed.
    ///
    /// # Errors
    /// What kept it from being done; nothing was done then.
    pub fn publish(
        &self,
        flusher: &dyn Flusher,
        base: Option<&Base>,
        staged: &[Staged],
        allowed: &dyn Fn(&Attr) -> bool,
    ) -> Result<Published> {
        let mut conflicts = Vec::new();
        let outcome = self.alone(flusher, false, |txn| {
            // What is replaced makes room for what is published.
            txn.quotas_late();
            let mut work = Publisher::new(txn, base, allowed);
            for one in staged {
                work.publish(one)?;
            }
            if work.conflicts.is_empty() {
                work.txn.check_late_quotas()?;
                return Ok(work.out);
            }
            conflicts = work.conflicts;
            // Undone, and told apart by the conflicts.
            Err(Error::NotFound)
        });
        match outcome {
            Err(_) if !conflicts.is_empty() => {
                conflicts.truncate(CONFLICTS_MAX);
                Ok(Published::Conflict(conflicts))
            }
            outcome => outcome.map(Published::Done),
        }
    }

    /// Remove the staging directory of this name and everything in it. The caller holds the gate.
    ///
    /// # Errors
    /// What keeps it from being removed; nothing was done then. That there is none is no error.
    pub fn discard_staging(&self, name: &[u8]) -> Result<Restored> {
        self.change(|txn| {
            let mut work = Publisher::new(txn, None, &|_| true);
            let top = match work.txn.lookup(ROOT_INO, STAGED_NAME) {
                Err(Error::NotFound) => return Ok(work.out),
                found => found?,
            };
            if let Some((ino, kind, _)) = work.txn.name_since(top.ino, name)? {
                work.remove(top.ino, name, ino, kind)?;
            }
            Ok(work.out)
        })
    }
}

struct Publisher<'t, 'm, 'b> {
    txn: &'t mut Txn<'m>,
    /// Without one nothing is a conflict.
    base: Option<&'b Base>,
    out: Restored,
    conflicts: Vec<Vec<u8>>,
    /// See [`Self::is_quiet`].
    quiet: HashMap<Ino, bool>,
    allowed: &'b dyn Fn(&Attr) -> bool,
}

impl<'t, 'm, 'b> Publisher<'t, 'm, 'b> {
    fn new(txn: &'t mut Txn<'m>, base: Option<&'b Base>, allowed: &'b dyn Fn(&Attr) -> bool) -> Self {
        Self { txn, base, out: Restored::default(), conflicts: Vec::new(), quiet: HashMap::new(), allowed }
    }
}

fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

impl Publisher<'_, '_, '_> {
    fn publish(&mut self, staged: &Staged) -> Result<()> {
        match staged {
            Staged::Tree { upper, target } => {
                match self.txn.inode(*target) {
                    Ok(row) if row.nlink > 0 && row.kind == FileKind::Directory => {}
                    Ok(_) | Err(Error::Stale(_)) => {
                        self.conflicts.push(b".".to_vec());
                        return if self.base.is_none() { Err(Error::NotFound) } else { Ok(()) };
                    }
                    Err(error) => return Err(error),
                }
                self.merge(*upper, *target, b"")
            }
            Staged::File { from, to } => {
                let Some((ino, _, _)) = self.txn.name_since(from.0, &from.1)? else { return Ok(()) };
                let now = self.txn.name_since(to.0, &to.1)?;
                if let (Some((now, FileKind::File, _)), new) = (now, self.txn.inode(ino)?) {
                    let now = self.txn.inode(now)?;
                    let plain = |row: &InodeRow| (row.size, row.mtime_ns, row.perm, row.uid, row.gid);
                    if plain(&now) == plain(&new) {
                        return Ok(());
                    }
                }
                self.is_quiet(to.0)?;
                self.put((from.0, &from.1), (to.0, &to.1), &to.1)
            }
        }
    }

    /// The changes in one directory of an upper layer.
    fn merge(&mut self, upper: Ino, target: Ino, path: &[u8]) -> Result<()> {
        self.is_quiet(target)?;
        for entry in self.txn.read_dir(upper, 0, usize::MAX, false)? {
            let path = below(path, &entry.name);
            if self.is_whiteout(&entry)? {
                if let Some((ino, kind)) = self.as_it_was(target, &entry.name, true, &path)? {
                    self.remove(target, &entry.name, ino, kind)?;
                }
                continue;
            }
            let now = self.txn.name_since(target, &entry.name)?;
            let merged = matches!(now, Some((_, FileKind::Directory, _)))
                && entry.kind == FileKind::Directory
                && !self.is_opaque(entry.ino)?;
            match now {
                Some((ino, ..)) if merged => {
                    self.same_name(target, &entry.name, &path)?;
                    self.directory_attributes(entry.ino, ino, &path)?;
                    self.merge(entry.ino, ino, &path)?;
                }
                _ => self.put((upper, &entry.name), (target, &entry.name), &path)?,
            }
        }
        Ok(())
    }

    /// Give a staged name its place, in place of what is there.
    fn put(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8]), path: &[u8]) -> Result<()> {
        let Some((ino, kind, _)) = self.txn.name_since(from.0, from.1)? else { return Err(Error::NotFound) };
        // Only what was there when the run began can have been copied up.
        let copied = kind != FileKind::Symlink && self.txn.list_xattrs(ino)?.iter().any(|name| is_origin(name));
        let replaced = self.as_it_was(to.0, to.1, copied, path)?;
        if let Some((old, old_kind)) = replaced
            && (old_kind == FileKind::Directory || kind == FileKind::Directory)
        {
            self.remove(to.0, to.1, old, old_kind)?;
        }
        self.strip(ino, kind)?;
        self.may_change(to.0)?;
        self.txn.adopt_quota(ino, to.0)?;
        let unlinked = self.txn.rename(from.0, from.1, to.0, to.1, RenameFlags::default())?;
        self.out.names.push((from.0, from.1.to_vec()));
        self.out.names.push((to.0, to.1.to_vec()));
        match unlinked {
            Some(unlinked) if unlinked.nlink == 0 => self.out.unlinked.push(unlinked),
            Some(unlinked) => self.out.changed.push(unlinked.ino),
            None => {}
        }
        Ok(())
    }

    /// What a name that is replaced or removed stands for; a conflict is noted if it is not as it was. `was_there`: what
    /// is staged tells that the name stood for something.
    fn as_it_was(&mut self, parent: Ino, name: &[u8], was_there: bool, path: &[u8]) -> Result<Option<(Ino, FileKind)>> {
        self.same_name(parent, name, path)?;
        let Some((ino, kind, _)) = self.txn.name_since(parent, name)? else {
            if was_there && !self.history()? && !self.is_quiet(parent)? {
                // Names came or went here, and there is no history to tell whether this one did.
                self.conflict(path);
            }
            return Ok(None);
        };
        self.same_below(ino, kind, path)?;
        Ok(Some((ino, kind)))
    }

    fn history(&mut self) -> Result<bool> {
        Ok(self.txn.keeps_history())
    }

    /// Whether no name in a directory came or went before this operation began to change it.
    fn is_quiet(&mut self, directory: Ino) -> Result<bool> {
        let Some(base) = self.base.map(Base::generation) else { return Ok(true) };
        if let Some(quiet) = self.quiet.get(&directory) {
            return Ok(*quiet);
        }
        let quiet = self.txn.inode(directory)?.since <= base;
        self.quiet.insert(directory, quiet);
        Ok(quiet)
    }

    fn conflict(&mut self, path: &[u8]) {
        self.conflicts.push(path.to_vec());
    }

    /// A name stands for what it stood for: the same inode, or nothing.
    fn same_name(&mut self, parent: Ino, name: &[u8], path: &[u8]) -> Result<()> {
        let Some(base) = self.base.map(Base::generation) else { return Ok(()) };
        let same = match self.txn.name_since(parent, name)? {
            Some((.., since)) => since <= base,
            None if self.history()? => matches!(self.txn.lookup_at(parent, name, base), Err(Error::NotFound)),
            // Without history it is told by what was staged.
            None => true,
        };
        if !same {
            self.conflict(path);
        }
        Ok(())
    }

    /// An inode that goes, and all below it, is what it was.
    fn same_below(&mut self, ino: Ino, kind: FileKind, path: &[u8]) -> Result<()> {
        let Some(base) = self.base.map(Base::generation) else { return Ok(()) };
        let row = self.txn.inode(ino)?;
        // A row may be written anew without a change: its version tells.
        let same = row.since <= base
            || self.history()? && self.txn.inode_at(ino, base)?.is_some_and(|then| then.version == row.version);
        if !same {
            self.conflict(path);
        }
        if kind == FileKind::Directory {
            for entry in self.txn.read_dir(ino, 0, usize::MAX, false)? {
                self.same_below(entry.ino, entry.kind, &below(path, &entry.name))?;
            }
        }
        Ok(())
    }

    /// Mode, owner and attributes that the run gave a directory that was there.
    fn directory_attributes(&mut self, upper: Ino, target: Ino, path: &[u8]) -> Result<()> {
        let (staged, now) = (self.txn.inode(upper)?, self.txn.inode(target)?);
        let plain = |row: &InodeRow| (row.perm, row.uid, row.gid);
        if plain(&staged) != plain(&now) {
            if let Some(base) = self.base.map(Base::generation)
                && now.since > base
            {
                match if self.history()? { self.txn.inode_at(target, base)? } else { None } {
                    // It is somebody else who changed them.
                    Some(then) if plain(&then) == plain(&staged) => return Ok(()),
                    Some(then) if plain(&then) == plain(&now) => {}
                    _ => self.conflict(path),
                }
            }
            let (perm, uid, gid) = plain(&staged);
            let change = SetAttr { perm: Some(perm), uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
            self.txn.set_attr(target, &change)?;
            self.out.changed.push(target);
        }
        for name in self.txn.list_xattrs(upper)? {
            let value = self.txn.get_xattr(upper, &name)?;
            let known = match self.txn.get_xattr(target, &name) {
                Err(Error::NoSuchXattr) => None,
                known => Some(known?),
            };
            if !name.starts_with(OVERLAY) && known.as_ref() != Some(&value) {
                self.txn.set_xattr(target, &name, &value, false, false)?;
                self.out.changed.push(target);
            }
        }
        Ok(())
    }

    /// What overlayfs noted in an upper layer is no part of the output.
    fn strip(&mut self, ino: Ino, kind: FileKind) -> Result<()> {
        for name in self.txn.list_xattrs(ino)? {
            if name.starts_with(OVERLAY) {
                self.txn.remove_xattr(ino, &name)?;
                self.out.changed.push(ino);
            }
        }
        if kind == FileKind::Directory {
            for entry in self.txn.read_dir(ino, 0, usize::MAX, false)? {
                if self.is_whiteout(&entry)? {
                    self.remove(ino, &entry.name, entry.ino, entry.kind)?;
                } else {
                    self.strip(entry.ino, entry.kind)?;
                }
            }
        }
        Ok(())
    }

    fn is_whiteout(&mut self, entry: &DirEntry) -> Result<bool> {
        match entry.kind {
            FileKind::CharDevice => Ok(self.txn.inode(entry.ino)?.rdev == 0),
            FileKind::File => Ok(self.txn.list_xattrs(entry.ino)?.iter().any(|name| name == b"user.overlay.whiteout")),
            _ => Ok(false),
        }
    }

    /// A directory that hides the one of its name below it.
    fn is_opaque(&mut self, ino: Ino) -> Result<bool> {
        match self.txn.get_xattr(ino, b"user.overlay.opaque") {
            Ok(value) => Ok(value == b"y"),
            Err(Error::NoSuchXattr) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn may_change(&mut self, directory: Ino) -> Result<()> {
        let attr = self.txn.attr(directory)?;
        if (self.allowed)(&attr) {
            Ok(())
        } else {
            Err(Error::NotPermitted("a directory may not be written to any more"))
        }
    }

    fn remove(&mut self, parent: Ino, name: &[u8], ino: Ino, kind: FileKind) -> Result<()> {
        self.may_change(parent)?;
        let unlinked = if kind == FileKind::Directory {
            for entry in self.txn.read_dir(ino, 0, usize::MAX, false)? {
                self.remove(ino, &entry.name, entry.ino, entry.kind)?;
            }
            self.txn.rmdir(parent, name)?
        } else {
            self.txn.unlink(parent, name)?
        };
        self.out.names.push((parent, name.to_vec()));
        if unlinked.nlink == 0 {
            self.out.unlinked.push(unlinked);
        } else {
            self.out.changed.push(ino);
        }
        Ok(())
    }
}

fn is_origin(name: &[u8]) -> bool {
    name == b"user.overlay.origin"
}
