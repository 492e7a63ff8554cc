//! Outputs that nobody sees until they are published: directories and files of the volume below one that has no name
//! for anybody, and the one step that gives them their names (X13).
//!
//! What is staged for a directory is an overlay's upper layer: what was made or changed, whiteouts for what was
//! removed. Publishing is one operation, all of it or nothing, and conditional: whatever it replaces or removes must be
//! as it was when the run began (its [`Base`]), and what it makes must still not be there; and whoever it is done for must
//! be one who could have done it by hand ([`Who`]). Nothing is known here of runs; a staged tree has the name its owner
//! gave it.
//!
//! How deep directories are is somebody else's choice: nothing here calls itself for those below.

mod publisher;

use std::sync::Arc;

use super::{Restored, View, Volume};
use crate::commit::Flusher;
use crate::error::{Error, Result};
use crate::ids::{Generation, Ino, ROOT_INO, Version};
use crate::meta::Who;
use crate::meta::rows::{Attr, DirEntry, FileKind, NewNode, STAGED_NAME};
use publisher::{Publisher, Removal};

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

/// Name of the upper layer in the directory of a part.
const UPPER: &[u8] = b"upper";

/// May do everything.
const ROOT: Who<'static> = Who { uid: 0, gid: 0, groups: &[] };

/// One thing that was staged, and where it belongs. Everything is what it was by its inode: that others gave its name to
/// something else is found out.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The granted path, for messages.
    pub path: Vec<u8>,
    /// The directory that it was staged in.
    pub part: Ino,
    /// What was.
    pub what: StagedWhat,
}

/// What was staged.
#[derive(Clone, Debug)]
pub enum StagedWhat {
    /// Changes of a directory and of what is below it.
    Tree {
        /// The upper layer: `upper` in the part's directory.
        upper: Ino,
        /// The directory.
        target: Ino,
    },
    /// A new content of a file.
    File {
        /// Name and inode of the staged copy, and the version it was made with: it is published if it has another now.
        copy: (Vec<u8>, Ino, Version),
        /// The directory that holds the file, and its name there.
        to: (Ino, Vec<u8>),
        /// The file.
        of: Ino,
    },
}

/// What became of a publication.
#[derive(Debug)]
pub enum Published {
    /// Everything has its name.
    Done(Restored),
    /// Nothing was published: these paths, each beginning with a granted one, were changed meanwhile.
    Conflict(Vec<Vec<u8>>),
}

/// Names that one step of a [`Discard`] removes.
const DISCARD_STEP: usize = 1024;

/// A staging directory that is being removed, in steps: what it holds may be as much as a volume does.
#[derive(Debug)]
pub struct Discard {
    name: Vec<u8>,
    removal: Option<Removal>,
}

impl Discard {
    /// Of the staging directory of this name.
    pub fn new(name: &[u8]) -> Self {
        Self { name: name.into(), removal: None }
    }
}

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

    /// A directory for staged outputs, of this name, that only root gets into. The caller holds the gate.
    ///
    /// # Errors
    /// [`Error::Exists`]; those of making names.
    pub fn make_staging(&self, name: &[u8]) -> Result<Attr> {
        self.change(|txn| {
            let top = match txn.lookup(ROOT_INO, STAGED_NAME) {
                Err(Error::NotFound) => txn.create(ROOT_INO, STAGED_NAME, &directory(0o700, (0, 0)))?,
                found => found?,
            };
            txn.create(top.ino, name, &directory(0o700, (0, 0)))
        })
    }

    /// In a staging directory, one for something that is staged: root's, and user `uid` may search it. They may not change
    /// names in it, as all that is in it is removed without asking for their rights. The caller holds the gate.
    ///
    /// # Errors
    /// Those of making names.
    pub fn make_part(&self, staging: Ino, name: &[u8], uid: u32) -> Result<Ino> {
        self.change(|txn| {
            let part = txn.create(staging, name, &directory(0o700, (0, 0)))?.ino;
            if uid != 0 {
                txn.let_search(part, uid)?;
            }
            Ok(part)
        })
    }

    /// In the directory of a part, what changes of `target` are gathered in: an upper layer with its attributes, and
    /// a directory of `owner`'s for overlayfs to work in. Returns the upper layer. The caller holds the gate.
    ///
    /// # Errors
    /// Those of making names.
    pub fn make_layer(&self, part: Ino, target: Ino, owner: (u32, u32)) -> Result<Ino> {
        self.change(|txn| {
            let like = txn.inode(target)?;
            txn.create(part, b"work", &directory(0o700, owner))?;
            let upper = txn.create(part, UPPER, &directory(like.perm, (like.uid, like.gid)))?;
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
    /// something is not as it was then, nothing. It is done on behalf of `who`.
    ///
    /// # Errors
    /// What kept it from being done; nothing was done then. [`Error::Refused`] names what `who` may not do.
    pub fn publish(
        &self,
        flusher: &dyn Flusher,
        base: Option<&Base>,
        staged: &[Staged],
        who: Who<'_>,
    ) -> Result<Published> {
        let mut conflicts = Vec::new();
        let outcome = self.alone(flusher, false, |txn| {
            // What is replaced makes room for what is published.
            txn.quotas_late();
            let mut work = Publisher::new(txn, base, who);
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
            Err(_) if !conflicts.is_empty() => Ok(Published::Conflict(conflicts)),
            outcome => outcome.map(Published::Done),
        }
    }

    /// Remove some of a staging directory; false: nothing is left of it. The caller holds the gate, for each step anew.
    ///
    /// # Errors
    /// What keeps it from being removed; the step was not done then, and a new [`Discard`] begins with what is left. That
    /// there is none is no error.
    pub fn discard_some(&self, discard: &mut Discard) -> Result<(Restored, bool)> {
        let mut more = false;
        let done = self.change(|txn| {
            let mut work = Publisher::new(txn, None, ROOT);
            let removal = match &mut discard.removal {
                Some(removal) => removal,
                none => {
                    let top = match work.txn.lookup(ROOT_INO, STAGED_NAME) {
                        Err(Error::NotFound) => return Ok(work.out),
                        found => found?,
                    };
                    let Some((ino, kind, _)) = work.txn.name_since(top.ino, &discard.name)? else {
                        return Ok(work.out);
                    };
                    none.insert(Removal(vec![(top.ino, discard.name.clone(), ino, kind)]))
                }
            };
            more = work.remove_some(removal, DISCARD_STEP, None)?;
            Ok(work.out)
        })?;
        Ok((done, more))
    }
}

fn directory(perm: u16, (uid, gid): (u32, u32)) -> NewNode<'static> {
    NewNode { kind: FileKind::Directory, perm, uid, gid, rdev: 0, target: None }
}
