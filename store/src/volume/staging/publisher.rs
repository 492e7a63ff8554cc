//! Giving what was staged its place, one operation: the overlay's upper layer merged into the directory it was made over.

use std::collections::{BTreeMap, HashMap};

use super::{Base, Staged, StagedWhat, UPPER};
use crate::error::{Error, Result};
use crate::ids::Ino;
use crate::meta::rows::{ACL_ACCESS, ACL_DEFAULT, DirEntry, FileKind, InodeRow, RenameFlags, SetAttr, Unlinked};
use crate::meta::{Txn, Who};
use crate::volume::Restored;

/// What overlayfs keeps in attributes of its upper layer, mounted by an ordinary user.
const OVERLAY: &[u8] = b"user.overlay.";
/// Write permission, a bit of a mode.
const WRITE: u16 = 2;
/// Search permission, a bit of a mode.
const SEARCH: u16 = 1;
/// Paths of conflicts that are told.
const CONFLICTS_MAX: usize = 8;
/// Bytes of a path that are told.
const PATH_MAX: usize = 4096;
/// Names of a directory that are looked at together.
const PAGE: usize = 256;

/// A name that is removed with everything below it: what is above is removed after what is below, which stands behind it.
#[derive(Debug)]
pub(super) struct Removal(pub(super) Vec<(Ino, Vec<u8>, Ino, FileKind)>);

pub(super) struct Publisher<'t, 'm, 'b> {
    pub(super) txn: &'t mut Txn<'m>,
    /// Without one nothing is a conflict.
    base: Option<&'b Base>,
    pub(super) out: Restored,
    pub(super) conflicts: Vec<Vec<u8>>,
    /// See [`Self::is_quiet`].
    quiet: HashMap<Ino, bool>,
    who: Who<'b>,
}

impl<'t, 'm, 'b> Publisher<'t, 'm, 'b> {
    pub(super) fn new(txn: &'t mut Txn<'m>, base: Option<&'b Base>, who: Who<'b>) -> Self {
        Self { txn, base, out: Restored::default(), conflicts: Vec::new(), quiet: HashMap::new(), who }
    }
}

/// `path` cut to its first `len` bytes, and a name.
fn step_down(path: &mut Vec<u8>, len: usize, name: &[u8]) {
    path.truncate(len);
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
}

fn shown(path: &[u8]) -> String {
    let cut = path.get(..PATH_MAX).map_or((path, ""), |path| (path, "..."));
    format!("{}{}", String::from_utf8_lossy(cut.0), cut.1)
}

impl Publisher<'_, '_, '_> {
    pub(super) fn publish(&mut self, staged: &Staged) -> Result<()> {
        let (name, ino) = match &staged.what {
            StagedWhat::Tree { upper, .. } => (UPPER, *upper),
            StagedWhat::File { copy, .. } => (&*copy.0, copy.1),
        };
        if !matches!(self.txn.name_since(staged.part, name)?, Some((there, ..)) if there == ino) {
            return Err(Error::Refused(format!("what was staged for {} was taken away", shown(&staged.path))));
        }
        match &staged.what {
            StagedWhat::Tree { upper, target } => {
                match self.txn.inode(*target) {
                    Ok(row) if row.nlink > 0 && row.kind == FileKind::Directory => {}
                    Ok(_) | Err(Error::Stale(_)) if self.base.is_some() => {
                        self.conflict(&staged.path);
                        return Ok(());
                    }
                    Ok(_) | Err(Error::Stale(_)) => {
                        let path = shown(&staged.path);
                        return Err(Error::Refused(format!("the granted directory {path} is not there any more")));
                    }
                    Err(error) => return Err(error),
                }
                self.merge(*upper, *target, &staged.path)
            }
            StagedWhat::File { copy, to, of } => {
                if self.txn.inode(ino)?.version == copy.2 {
                    // The run changed nothing of it.
                    return Ok(());
                }
                self.is_quiet(to.0)?;
                let now = self.txn.name_since(to.0, &to.1)?.map(|(now, ..)| now);
                if self.base.is_some() && now.is_some_and(|now| now != *of) {
                    self.conflict(&staged.path);
                }
                self.put((staged.part, name), (to.0, &to.1), &staged.path)
            }
        }
    }

    /// The changes in a directory of an upper layer, and in those below it.
    fn merge(&mut self, upper: Ino, target: Ino, granted: &[u8]) -> Result<()> {
        let mut path = granted.to_vec();
        let mut todo = vec![(upper, target, path.len(), Vec::new())];
        while let Some((upper, target, len, name)) = todo.pop() {
            step_down(&mut path, len, &name);
            self.is_quiet(target)?;
            let entries = self.txn.read_dir(upper, 0, usize::MAX, false)?;
            if !entries.is_empty() {
                self.may(target, SEARCH, &path)?;
            }
            let len = path.len();
            for entry in entries {
                step_down(&mut path, len, &entry.name);
                if self.is_whiteout(&entry)? {
                    if let Some((ino, kind)) = self.as_it_was(target, &entry.name, true, &path)? {
                        self.remove(target, &entry.name, ino, kind, &path)?;
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
                        self.is_quiet(ino)?;
                        self.directory_attributes(entry.ino, ino, &path)?;
                        todo.push((entry.ino, ino, len, entry.name));
                    }
                    _ => self.put((upper, &entry.name), (target, &entry.name), &path)?,
                }
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
            self.remove(to.0, to.1, old, old_kind, path)?;
        }
        self.strip(ino, kind)?;
        self.may_change(to.0, replaced.map(|(ino, _)| ino), path)?;
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
        if self.conflicts.len() < CONFLICTS_MAX {
            self.conflicts.push(shown(path).into_bytes());
        }
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
    fn same_below(&mut self, ino: Ino, kind: FileKind, top: &[u8]) -> Result<()> {
        let Some(base) = self.base.map(Base::generation) else { return Ok(()) };
        let mut path = top.to_vec();
        let mut todo = vec![(ino, kind, path.len(), Vec::new())];
        while let Some((ino, kind, len, name)) = todo.pop() {
            step_down(&mut path, len, &name);
            let row = self.txn.inode(ino)?;
            // A row may be written anew without a change: its version tells.
            let same = row.since <= base
                || self.history()? && self.txn.inode_at(ino, base)?.is_some_and(|then| then.version == row.version);
            if !same {
                self.conflict(&path);
            }
            if kind == FileKind::Directory {
                let entries = self.txn.read_dir(ino, 0, usize::MAX, false)?;
                todo.extend(entries.into_iter().map(|entry| (entry.ino, entry.kind, path.len(), entry.name)));
            }
        }
        Ok(())
    }

    /// Mode, owner and attributes that the run gave a directory that was there.
    fn directory_attributes(&mut self, upper: Ino, target: Ino, path: &[u8]) -> Result<()> {
        let (staged, now) = (self.txn.inode(upper)?, self.txn.inode(target)?);
        let changed = match self.base.map(Base::generation) {
            Some(base) if now.since > base => Some(base),
            _ => None,
        };
        let plain = |row: &InodeRow| (row.perm, row.uid, row.gid);
        let mut staged_plain = Some(plain(&staged)).filter(|staged| *staged != plain(&now));
        if let (Some(base), Some(staged)) = (changed, staged_plain) {
            match if self.history()? { self.txn.inode_at(target, base)? } else { None } {
                // It is somebody else who changed them.
                Some(then) if plain(&then) == staged => staged_plain = None,
                Some(then) if plain(&then) == plain(&now) => {}
                _ => self.conflict(path),
            }
        }
        if let Some((perm, uid, gid)) = staged_plain {
            let who = self.who.uid;
            let group = gid == now.gid || self.who.is_in(gid);
            if who != 0 && (who != now.uid || uid != now.uid || !group) {
                return Err(self.refused(path, "its mode, owner or group may not be changed"));
            }
            let change = SetAttr { perm: Some(perm), uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
            self.txn.set_attr(target, &change)?;
            self.out.changed.push(target);
        }
        let (staged, current) = (self.attributes(upper)?, self.attributes(target)?);
        if staged == current {
            return Ok(());
        }
        if let Some(base) = changed {
            let mut then = match self.history()? {
                true => Some(self.txn.xattrs_at(target, base)?),
                false => None,
            };
            if let Some(then) = &mut then {
                then.retain(|(name, _)| is_copied(name));
                let same = |these: &Attributes| {
                    these.len() == then.len()
                        && then.iter().all(|(name, value)| these.get(&**name).is_some_and(|known| **known == **value))
                };
                if same(&staged) {
                    return Ok(());
                }
                if !same(&current) {
                    self.conflict(path);
                }
            } else {
                self.conflict(path);
            }
        }
        if ![0, now.uid].contains(&self.who.uid) {
            return Err(self.refused(path, "its attributes may not be changed"));
        }
        for name in current.keys().filter(|name| !staged.contains_key(*name)) {
            match self.txn.remove_xattr(target, name) {
                // A list of who may do what goes with the mode.
                Ok(()) | Err(Error::NoSuchXattr) => {}
                Err(error) => return Err(error),
            }
        }
        for (name, value) in staged.iter().filter(|(name, value)| current.get(*name) != Some(value)) {
            self.txn.set_xattr(target, name, value, false, false)?;
        }
        self.out.changed.push(target);
        Ok(())
    }

    /// The attributes that overlayfs copies with a directory, for any user.
    fn attributes(&mut self, ino: Ino) -> Result<Attributes> {
        let mut out = Attributes::new();
        for name in self.txn.list_xattrs(ino)?.into_iter().filter(|name| is_copied(name)) {
            let value = self.txn.get_xattr(ino, &name)?;
            out.insert(name, value.to_vec());
        }
        Ok(out)
    }

    /// What overlayfs noted in an upper layer is no part of the output.
    fn strip(&mut self, ino: Ino, kind: FileKind) -> Result<()> {
        let mut todo = vec![(ino, kind)];
        while let Some((ino, kind)) = todo.pop() {
            for name in self.txn.list_xattrs(ino)? {
                if name.starts_with(OVERLAY) {
                    self.txn.remove_xattr(ino, &name)?;
                    self.out.changed.push(ino);
                }
            }
            if kind != FileKind::Directory {
                continue;
            }
            for entry in self.txn.read_dir(ino, 0, usize::MAX, false)? {
                if self.is_whiteout(&entry)? {
                    let unlinked = self.txn.unlink(ino, &entry.name)?;
                    self.gone(ino, entry.name, unlinked);
                } else {
                    todo.push((entry.ino, entry.kind));
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

    fn refused(&self, path: &[u8], what: &str) -> Error {
        Error::Refused(format!("{}: {what} by user {}", shown(path), self.who.uid))
    }

    /// All of `wanted`, bits of one digit of a mode; or it is theirs, and they could give it themselves.
    fn may(&mut self, directory: Ino, wanted: u16, path: &[u8]) -> Result<()> {
        if self.txn.inode(directory)?.uid == self.who.uid || self.txn.permits(directory, self.who, wanted)? {
            Ok(())
        } else {
            Err(self.refused(path, "its directory may not be entered or written to"))
        }
    }

    /// Whether a name in a directory may come or, if it stands for something, go.
    fn may_change(&mut self, directory: Ino, replaced: Option<Ino>, path: &[u8]) -> Result<()> {
        self.may(directory, WRITE | SEARCH, path)?;
        let row = self.txn.inode(directory)?;
        if let Some(replaced) = replaced
            && row.perm & 0o1000 != 0
            && ![0, row.uid, self.txn.inode(replaced)?.uid].contains(&self.who.uid)
        {
            return Err(
                self.refused(path, "it is another user's in a directory with the sticky bit, and may not be replaced")
            );
        }
        Ok(())
    }

    fn remove(&mut self, parent: Ino, name: &[u8], ino: Ino, kind: FileKind, path: &[u8]) -> Result<()> {
        let mut removal = Removal(vec![(parent, name.to_vec(), ino, kind)]);
        self.remove_some(&mut removal, usize::MAX, Some(path)).map(drop)
    }

    /// Up to `max` names, and whether there are more. With a path, which is for messages, rights are asked for.
    pub(super) fn remove_some(&mut self, removal: &mut Removal, max: usize, path: Option<&[u8]>) -> Result<bool> {
        let mut removed = 0;
        while let Some((parent, name, ino, kind)) = removal.0.last() {
            if removed >= max {
                return Ok(true);
            }
            let (parent, ino, kind) = (*parent, *ino, *kind);
            if kind == FileKind::Directory {
                let below = self.txn.read_dir(ino, 0, PAGE, false)?;
                if !below.is_empty() {
                    removal.0.extend(below.into_iter().map(|entry| (ino, entry.name, entry.ino, entry.kind)));
                    continue;
                }
            }
            if let Some(path) = path {
                self.may_change(parent, Some(ino), path)?;
            }
            let unlinked = match kind {
                FileKind::Directory => self.txn.rmdir(parent, name),
                _ => self.txn.unlink(parent, name),
            }?;
            if let Some((_, name, ..)) = removal.0.pop() {
                self.gone(parent, name, unlinked);
            }
            removed += 1;
        }
        Ok(false)
    }

    fn gone(&mut self, parent: Ino, name: Vec<u8>, unlinked: Unlinked) {
        self.out.names.push((parent, name));
        if unlinked.nlink == 0 {
            self.out.unlinked.push(unlinked);
        } else {
            self.out.changed.push(unlinked.ino);
        }
    }
}

type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

fn is_copied(name: &[u8]) -> bool {
    name.starts_with(b"user.") && !name.starts_with(OVERLAY) || [ACL_ACCESS, ACL_DEFAULT].contains(&name)
}

fn is_origin(name: &[u8]) -> bool {
    name == b"user.overlay.origin"
}
