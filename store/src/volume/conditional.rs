//! Conditional writes for callers that compute between reading and writing, and states that are asked to be kept (R5).
//!
//! A state that must be kept is the last of its generation: the generation is closed with the change that makes it, so
//! that history has it whatever comes next. Nobody waits for such a change but while it and the rows are written.

use super::Volume;
use crate::commit::Flusher;
use crate::error::{Error, Result};
use crate::ids::{Ino, Version};
use crate::meta::Txn;
use crate::meta::rows::{Attr, SetAttr};

impl Volume {
    /// Change attributes, one change, if the inode still has the version that the change was computed from. With `keep`
    /// the state it makes is kept in history, and durable when this returns.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it has another version: read, decide and try again ([`Volume::retry`]).
    pub fn set_attr_if(
        &self,
        flusher: &dyn Flusher,
        ino: Ino,
        version: Version,
        change: &SetAttr,
        keep: bool,
    ) -> Result<Attr> {
        self.change_if(flusher, ino, version, keep, |txn| txn.set_attr(ino, change))
    }

    /// Try again what fails with [`Error::Conflict`], a bounded number of times with growing pauses; nothing is held
    /// between tries.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub fn retry<R>(&self, attempt: impl FnMut() -> Result<R>) -> Result<R> {
        self.meta.retry(attempt)
    }

    /// See that the present state of an inode is kept, with what is buffered of it, and tell its version.
    ///
    /// # Errors
    /// [`Error::Stale`]; those of a commit.
    pub fn keep(&self, flusher: &dyn Flusher, ino: Ino) -> Result<Version> {
        if !flusher.has_dirty() {
            // Committed already, and nothing came since: history will keep it.
            let settled = self.meta.with(|txn| {
                let (row, open) = (txn.inode(ino)?, txn.generation());
                Ok((row.since < open).then_some(row.version))
            })?;
            if let Some(version) = settled {
                return Ok(version);
            }
        }
        self.closing(flusher, |txn| Ok(txn.inode(ino)?.version))
    }

    fn change_if<R>(
        &self,
        flusher: &dyn Flusher,
        ino: Ino,
        version: Version,
        keep: bool,
        mut operation: impl FnMut(&mut Txn<'_>) -> Result<R>,
    ) -> Result<R> {
        let conditional = |txn: &mut Txn<'_>| {
            txn.expect_version(ino, version)?;
            operation(txn)
        };
        if keep { self.closing(flusher, conditional) } else { self.change(conditional) }
    }

    /// One operation that is the last of its generation.
    pub(super) fn closing<R>(
        &self,
        flusher: &dyn Flusher,
        mut operation: impl FnMut(&mut Txn<'_>) -> Result<R>,
    ) -> Result<R> {
        self.writable()?;
        let mut outcome = None;
        let closed = self.commit.run_with(&self.parts(), flusher, &mut || {
            let done = self.change(&mut operation);
            let refused = done.is_err();
            outcome = Some(done);
            // The error itself is in `outcome`.
            if refused { Err(Error::NotFound) } else { Ok(()) }
        });
        match outcome {
            Some(Err(refused)) => Err(refused),
            Some(Ok(done)) => self.committed_or_read_only(closed).map(|_| done),
            None => self.committed_or_read_only(closed).and(Err(Error::NotFound)),
        }
    }
}
