//! Bringing past states back: one file or tree under a name, or a directory as a whole (`rewind`).
//!
//! Promises: all of it or nothing, in one generation of its own; blocks are shared and no data is read or moved; the state
//! before is a closed generation, so that it can be gone back to; what did not change since keeps its inode, open files
//! included. Everybody else is held off meanwhile, for a time that grows with the number of names and changed chunks.
//! Knows neither the kernel's caches nor who has what open: it returns what the caller must tell them.

mod inode;

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::Volume;
use crate::commit::Flusher;
use crate::error::{Error, Result};
use crate::ids::{Generation, Ino, Version};
use crate::meta::Txn;
use crate::meta::rows::{Attr, FileKind, InodeRow, NewNode, RenameFlags, Unlinked};

/// What was done to one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Done {
    /// It was not there, or was something else.
    Created,
    /// Its content or attributes are those of the past state, as a new version.
    Changed,
    /// It had another name.
    Moved,
    /// It was not there in the past state.
    Removed,
}

/// What bringing a state back did, and whom it concerns.
#[derive(Debug, Default)]
pub struct Restored {
    /// Each name that was touched, from where the restore began, in the order it was done.
    pub actions: Vec<(Vec<u8>, Done)>,
    /// What has no name any more: orphans, to be given back when nobody uses them.
    pub unlinked: Vec<Unlinked>,
    /// Inodes whose content or attributes changed.
    pub changed: Vec<Ino>,
    /// Names that came, went or mean something else: directory and name.
    pub names: Vec<(Ino, Vec<u8>)>,
}

/// Where a past state is brought back to.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// The directory.
    pub parent: Ino,
    /// The name in it.
    pub name: &'a [u8],
    /// A regular file that has the name becomes a new version of itself; else the name must be free.
    pub replace: bool,
    /// The name must stand for an inode of this version.
    pub version: Option<Version>,
}

/// Inodes whose content must stay as it is for the moment.
pub type Busy<'a> = &'a dyn Fn(Ino) -> bool;

impl Volume {
    /// Bring back what inode `source` was in a generation, with everything below it, as `to`. It gets the content,
    /// attributes and modification times of then.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the generation is not kept or the inode was not there; [`Error::Exists`] if the name is
    /// taken by something that cannot be a version of it; [`Error::Conflict`] if it is not of the version wanted;
    /// [`Error::Refused`] if it is busy; those of making names. Nothing was done then.
    pub fn restore(
        self: &std::sync::Arc<Self>,
        flusher: &dyn Flusher,
        generation: Generation,
        source: Ino,
        to: Destination<'_>,
        busy: Busy<'_>,
    ) -> Result<Restored> {
        self.commit(flusher)?;
        let pinned = self.view_of(generation, source)?;
        let restored = self.alone(flusher, false, |txn| {
            txn.quotas_late();
            let mut work = Restorer::new(txn, generation, busy);
            let past = work.txn.inode_at(source, generation)?.ok_or(Error::NotFound)?;
            let now = work.txn.lookup(to.parent, to.name);
            match (to.version, &now) {
                (Some(version), Ok(now)) => work.txn.expect_version(now.ino, version)?,
                (Some(_), Err(Error::NotFound)) => return Err(Error::Conflict(to.parent)),
                _ => {}
            }
            match now {
                Err(Error::NotFound) => work.create(to.parent, to.name, &past, b"")?,
                Err(error) => return Err(error),
                Ok(now) if to.replace && now.kind == FileKind::File && past.kind == FileKind::File => {
                    work.revert(now.ino, &past, b"")?;
                }
                Ok(_) => return Err(Error::Exists),
            }
            work.finish()
        });
        drop(pinned);
        self.commit(flusher)?;
        restored
    }

    /// Make directory `target` and everything below it what `source` (mostly itself) was in a generation. With
    /// `dry_run` nothing is changed, and what would be done is told.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the generation is not kept or there was no such directory; [`Error::Refused`] if a file that
    /// would change is busy. Nothing was done then.
    pub fn rewind(
        self: &std::sync::Arc<Self>,
        flusher: &dyn Flusher,
        generation: Generation,
        source: Ino,
        target: Ino,
        dry_run: bool,
        busy: Busy<'_>,
    ) -> Result<Restored> {
        self.commit(flusher)?;
        let pinned = self.view_of(generation, source)?;
        let restored = self.alone(flusher, dry_run, |txn| {
            txn.quotas_late();
            let mut work = Restorer::new(txn, generation, busy);
            let past = work.txn.inode_at(source, generation)?.ok_or(Error::NotFound)?;
            if past.kind != FileKind::Directory {
                return Err(Error::NotADirectory);
            }
            work.directory(target, &past, b"")?;
            work.finish()
        });
        drop(pinned);
        if !dry_run {
            self.commit(flusher)?;
        }
        restored
    }

    /// Make the content of one file that of another, which loses its name, in one step: a new version of it that is the
    /// last state of its generation, so that it is kept, and durable when this returns. With `version` only if it is of
    /// that version. Blocks are shared.
    ///
    /// # Errors
    /// [`Error::Conflict`]; [`Error::InvalidArgument`] if either is no regular file; [`Error::NotFound`] if `from` has
    /// another name meanwhile; [`Error::Refused`] if the target is busy. Nothing was done then.
    pub fn take_content(
        &self,
        flusher: &dyn Flusher,
        target: Ino,
        version: Option<Version>,
        from: (Ino, &[u8]),
        busy: Busy<'_>,
    ) -> Result<(Attr, Restored)> {
        self.closing(flusher, |txn| {
            if let Some(version) = version {
                txn.expect_version(target, version)?;
            }
            let source = txn.lookup(from.0, from.1)?.ino;
            let mut new = txn.inode(source)?;
            if new.kind != FileKind::File || source == target {
                return Err(Error::InvalidArgument("not a regular file of its own"));
            }
            new.mtime_ns = txn.now_ns();
            // The source makes room for what the target gains.
            txn.quotas_late();
            // What is open now is as readable as what is committed.
            let open = txn.generation();
            refuse_busy(busy, target, b"")?;
            inode::content(txn, open, target, &new)?;
            let mut out = Restored::default();
            out.changed.push(target);
            out.unlinked.push(txn.unlink(from.0, from.1)?);
            out.names.push((from.0, from.1.to_vec()));
            txn.check_late_quotas()?;
            Ok((txn.attr(target)?, out))
        })
    }

    /// Run one operation with everybody else held off and nothing buffered; undone if it fails, or with `dry_run`.
    pub(super) fn alone(
        &self,
        flusher: &dyn Flusher,
        dry_run: bool,
        operation: impl FnOnce(&mut Txn<'_>) -> Result<Restored>,
    ) -> Result<Restored> {
        let _held_off = self.commit.exclusive();
        flusher.flush(true)?;
        if flusher.has_dirty() {
            return Err(Error::Refused(
                "some writes could not be stored yet; see the daemon's log, and try again".into(),
            ));
        }
        let mut tried = None;
        let outcome = self.change(|txn| {
            let restored = operation(txn)?;
            if dry_run {
                tried = Some(restored);
                return Err(Error::InvalidArgument("a trial is undone"));
            }
            Ok(restored)
        });
        match tried {
            Some(restored) => Ok(restored),
            None => outcome,
        }
    }
}

/// A name that the past state does not have (there).
#[derive(Clone)]
struct Spare {
    parent: Ino,
    name: Vec<u8>,
    kind: FileKind,
    path: Vec<u8>,
}

/// A name that is to stand for a past inode.
struct Missing {
    parent: Ino,
    name: Vec<u8>,
    past: InodeRow,
    path: Vec<u8>,
}

struct Restorer<'t, 'm> {
    txn: &'t mut Txn<'m>,
    generation: Generation,
    busy: Busy<'t>,
    out: Restored,
    /// Past inodes that have a living one by now, for their further names.
    links: HashMap<Ino, Ino>,
    /// By inode: names to be removed in the end, unless they turn out to be what is missing elsewhere.
    spare: BTreeMap<Ino, Vec<Spare>>,
    missing: Vec<Missing>,
    /// Directories whose attributes are set when everything in them is done.
    directories: Vec<(Ino, InodeRow)>,
    /// Names moved aside so far.
    aside: u64,
}

fn refuse_busy(busy: Busy<'_>, now: Ino, path: &[u8]) -> Result<()> {
    if !busy(now) {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(path);
    let name = if shown.is_empty() { "the file".into() } else { shown };
    Err(Error::Refused(format!("{name} is being run; wait for that to end (`brine exec ps`)")))
}

fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut out = path.to_vec();
    if !out.is_empty() {
        out.push(b'/');
    }
    out.extend_from_slice(name);
    out
}

impl<'t, 'm> Restorer<'t, 'm> {
    fn new(txn: &'t mut Txn<'m>, generation: Generation, busy: Busy<'t>) -> Self {
        Self {
            txn,
            generation,
            busy,
            out: Restored::default(),
            links: HashMap::new(),
            spare: BTreeMap::new(),
            missing: Vec::new(),
            directories: Vec::new(),
            aside: 0,
        }
    }

    fn past(&mut self, ino: Ino) -> Result<InodeRow> {
        let generation = self.generation;
        self.txn.inode_at(ino, generation)?.ok_or_else(|| {
            Error::format(format!("inode {ino} of generation {generation}"), "a name stands for it, but it is not kept")
        })
    }

    /// Make living directory `now` what `past` was; names that are missing or too many are noted for [`Self::finish`].
    fn directory(&mut self, now: Ino, past: &InodeRow, path: &[u8]) -> Result<()> {
        self.directories.push((now, past.clone()));
        let wanted = self.txn.read_dir_at(past.ino, self.generation, 0, usize::MAX)?;
        let have = self.txn.read_dir(now, 0, usize::MAX, false)?;
        let mut have: BTreeMap<Vec<u8>, (Ino, FileKind)> =
            have.into_iter().map(|entry| (entry.name, (entry.ino, entry.kind))).collect();
        for entry in wanted {
            let path = below(path, &entry.name);
            let past = self.past(entry.ino)?;
            match have.remove(&entry.name) {
                Some((ino, FileKind::Directory)) if past.kind == FileKind::Directory => {
                    self.directory(ino, &past, &path)?;
                }
                Some((ino, _)) if ino == entry.ino => {
                    self.links.insert(ino, ino);
                    if self.txn.inode(ino)?.version != past.version
                        && !inode::is_same(self.txn, self.generation, ino, &past)?
                    {
                        self.revert(ino, &past, &path)?;
                    }
                }
                Some((ino, kind)) => {
                    let unclaimed = self.links.get(&entry.ino).is_none_or(|living| *living == ino);
                    if kind == past.kind && unclaimed && inode::is_same(self.txn, self.generation, ino, &past)? {
                        self.links.insert(entry.ino, ino);
                        continue;
                    }
                    // In the way; it may be what is missing elsewhere.
                    let aside = self.move_aside(now, &entry.name)?;
                    self.spare.entry(ino).or_default().push(Spare {
                        parent: now,
                        name: aside,
                        kind,
                        path: path.clone(),
                    });
                    self.out.names.push((now, entry.name.clone()));
                    self.missing.push(Missing { parent: now, name: entry.name, past, path });
                }
                None => self.missing.push(Missing { parent: now, name: entry.name, past, path }),
            }
        }
        for (name, (ino, kind)) in have {
            let path = below(path, &name);
            self.spare.entry(ino).or_default().push(Spare { parent: now, name, kind, path });
        }
        Ok(())
    }

    /// Give a name that is in the way another one for as long as this operation lasts.
    fn move_aside(&mut self, parent: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let flags = RenameFlags { no_replace: true, ..RenameFlags::default() };
        loop {
            self.aside += 1;
            let aside = format!(".brine rewinding {}", self.aside).into_bytes();
            match self.txn.rename(parent, name, parent, &aside, flags) {
                Ok(_) => return Ok(aside),
                Err(Error::Exists) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Everything that was noted: what is missing, then what is too many, then attributes of directories.
    fn finish(mut self) -> Result<Restored> {
        while let Some(missing) = self.missing.pop() {
            if !self.find_spare(&missing)? {
                self.create(missing.parent, &missing.name, &missing.past, &missing.path)?;
            }
        }
        for (ino, names) in std::mem::take(&mut self.spare) {
            for spare in names {
                self.remove(&spare, ino)?;
            }
        }
        // What is in a directory changes its times: the deepest were noted last.
        while let Some((ino, past)) = self.directories.pop() {
            let now = self.txn.inode(ino)?;
            let same = (now.perm, now.uid, now.gid, now.mtime_ns) == (past.perm, past.uid, past.gid, past.mtime_ns);
            if inode::xattrs(self.txn, self.generation, ino, &past)? || !same {
                self.attributes(ino, &past)?;
            }
        }
        self.txn.check_late_quotas()?;
        Ok(self.out)
    }

    /// Whether what is missing has a name too many elsewhere, which it loses by being moved here.
    fn find_spare(&mut self, missing: &Missing) -> Result<bool> {
        let ino = missing.past.ino;
        let Some(spare) = self.spare.get(&ino).and_then(|names| names.last()).cloned() else { return Ok(false) };
        let flags = RenameFlags { no_replace: true, ..RenameFlags::default() };
        match self.txn.rename(spare.parent, &spare.name, missing.parent, &missing.name, flags) {
            Ok(_) => {}
            // Across the border of exec/ or of a quota, or a directory that came to lie below itself: made anew.
            Err(Error::CrossesDevices | Error::InvalidArgument(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        if let Some(names) = self.spare.get_mut(&ino) {
            names.pop();
            if names.is_empty() {
                self.spare.remove(&ino);
            }
        }
        self.out.names.push((spare.parent, spare.name));
        self.out.names.push((missing.parent, missing.name.clone()));
        self.out.actions.push((missing.path.clone(), Done::Moved));
        if missing.past.kind == FileKind::Directory {
            self.directory(ino, &missing.past, &missing.path)?;
        } else {
            self.links.insert(ino, ino);
            self.fill(ino, &missing.past)?;
        }
        Ok(true)
    }

    /// Make what a past inode was, with everything below it, under a free name.
    fn create(&mut self, parent: Ino, name: &[u8], past: &InodeRow, path: &[u8]) -> Result<()> {
        self.out.names.push((parent, name.to_vec()));
        self.out.actions.push((path.to_vec(), Done::Created));
        if let Some(living) = self.links.get(&past.ino).copied() {
            match self.txn.link(living, parent, name) {
                Ok(_) => {
                    self.out.changed.push(living);
                    return Ok(());
                }
                Err(Error::CrossesDevices) => {}
                Err(error) => return Err(error),
            }
        }
        let target = if past.kind == FileKind::Symlink { past.inline.as_deref() } else { None };
        let node = NewNode { kind: past.kind, perm: past.perm, uid: past.uid, gid: past.gid, rdev: past.rdev, target };
        let made = self.txn.create(parent, name, &node)?;
        if matches!(past.kind, FileKind::Directory | FileKind::File) && made.chunk_bits != past.chunk_bits {
            self.txn.set_chunk_bits(made.ino, past.chunk_bits)?;
        }
        if past.kind != FileKind::Directory {
            self.links.insert(past.ino, made.ino);
            return self.fill(made.ino, past);
        }
        self.directories.push((made.ino, past.clone()));
        for entry in self.txn.read_dir_at(past.ino, self.generation, 0, usize::MAX)? {
            let past = self.past(entry.ino)?;
            let (parent, path) = (made.ino, below(path, &entry.name));
            self.missing.push(Missing { parent, name: entry.name, past, path });
        }
        Ok(())
    }

    /// Make a living inode of the same kind what a past one was: a new version of it.
    fn revert(&mut self, now: Ino, past: &InodeRow, path: &[u8]) -> Result<()> {
        self.out.actions.push((path.to_vec(), Done::Changed));
        if past.kind == FileKind::File {
            refuse_busy(self.busy, now, path)?;
        }
        self.fill(now, past)
    }

    /// Content, extended attributes and attributes of anything but a directory.
    fn fill(&mut self, now: Ino, past: &InodeRow) -> Result<()> {
        if past.kind == FileKind::File {
            inode::content(self.txn, self.generation, now, past)?;
        }
        inode::xattrs(self.txn, self.generation, now, past)?;
        self.attributes(now, past)
    }

    fn attributes(&mut self, now: Ino, past: &InodeRow) -> Result<()> {
        self.out.changed.push(now);
        inode::attributes(self.txn, now, past)
    }

    /// Remove a name and everything below it.
    fn remove(&mut self, spare: &Spare, ino: Ino) -> Result<()> {
        let unlinked = if spare.kind == FileKind::Directory {
            for entry in self.txn.read_dir(ino, 0, usize::MAX, false)? {
                let path = below(&spare.path, &entry.name);
                self.remove(&Spare { parent: ino, name: entry.name, kind: entry.kind, path }, entry.ino)?;
            }
            self.txn.rmdir(spare.parent, &spare.name)?
        } else {
            self.txn.unlink(spare.parent, &spare.name)?
        };
        self.out.names.push((spare.parent, spare.name.clone()));
        self.out.actions.push((spare.path.clone(), Done::Removed));
        if unlinked.nlink == 0 {
            self.out.unlinked.push(unlinked);
        } else {
            self.out.changed.push(ino);
        }
        Ok(())
    }
}
