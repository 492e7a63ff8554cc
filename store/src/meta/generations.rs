//! Generations: closing the open one, and applying those of the log or of a checkpoint.
//!
//! Promises: rows of a generation are committed together with its record in the outbox, or stay open; what is applied
//! is not recorded again. After a failed COMMIT the database takes nothing more. Knows nothing of how a record looks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Meta;
use super::changes::RowChange;
use super::counters::COUNTERS_KEY;
use super::outbox::{self, OutboxRow};
use super::rows::{GenerationRow, Shelf, ShelfRow};
use super::sql::At;
use super::txn::Core;
use crate::error::{Error, Result};
use crate::ids::Generation;

/// A closed generation.
#[derive(Debug)]
pub struct Closed {
    /// The last closed generation: a new one if `changed`.
    pub generation: Generation,
    /// When it closed, nanoseconds since 1970.
    pub time_ns: i64,
    /// Its row changes, in the order they are to be applied.
    pub changes: Vec<RowChange>,
    /// A generation was closed; false if there was nothing to close.
    pub changed: bool,
}

/// Generations that are left in one transaction at most.
const LEFT_OPEN_MAX: u32 = 16;

/// Generations of the log that are applied in one transaction at most, and how many changes one may have that is left open.
const APPLIED_TOGETHER: u32 = 64;
const APPLIED_CHANGES_MAX: usize = 1024;

/// Generations that are not left open after somebody had to end the transaction of a single one.
const INTERRUPTED_FOR: u32 = 16;

/// Pause between two looks whether a generation is closed.
const CLOSING_PAUSE: Duration = Duration::from_millis(1);

/// A generation is being put and closed.
#[derive(Debug)]
pub struct Closing<'m>(&'m AtomicBool);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Meta {
    /// Close the open generation and open the next.
    ///
    /// # Errors
    /// [`Error::Database`]; whatever fails from COMMIT on makes every later call fail with [`Error::ReadOnly`].
    pub fn commit_generation(&self) -> Result<Closed> {
        self.commit_with(|_| Ok(Vec::new()))
    }

    /// Close the open generation; `seal` makes its commit record, which is put into the outbox in the same
    /// transaction. If `seal` fails the generation stays open and can be closed later. Not called if nothing changed.
    ///
    /// # Errors
    /// As [`Self::commit_generation`], and those of `seal`.
    pub fn commit_with(&self, seal: impl FnOnce(&Closed) -> Result<Vec<OutboxRow>>) -> Result<Closed> {
        let closed = self.commit_behind(seal, false);
        self.behind.settle();
        self.core.lock().usable()?;
        closed
    }

    /// As [`Self::commit_with`], but the transaction is committed while the caller goes on: whoever needs the database
    /// next waits for it, and is told if it failed. What the record of the generation promises does not depend on it.
    ///
    /// With `left_open` another commit is about to follow, and the transaction stays open for it, a few times: most pages
    /// are the same in each. It ends before anything else is changed ([`Self::with`]) or read beside it ([`Self::settle`]).
    ///
    /// # Errors
    /// Those of `seal`; [`Error::Database`] for what fails before COMMIT.
    pub fn commit_behind(
        &self,
        seal: impl FnOnce(&Closed) -> Result<Vec<OutboxRow>>,
        left_open: bool,
    ) -> Result<Closed> {
        let mut core = self.core.lock_arc();
        core.usable()?;
        let restart = self.restart_wal.swap(false, Ordering::Relaxed);
        let closed = core.close_generation(seal, restart);
        match &closed {
            Ok(Closed { changed: true, .. })
                if left_open && !restart && core.uncommitted < LEFT_OPEN_MAX && !core.is_interrupted() => {}
            Ok(Closed { changed: true, .. }) => self.behind.end(core, restart),
            Ok(_) => {}
            Err(_) => core.check_transaction(),
        }
        closed
    }

    /// This generation is durable. The database says so from the next commit on.
    pub fn note_durable(&self, generation: Generation) {
        let mut core = self.core.lock();
        core.local_dirty |= core.notes.durable(generation);
    }

    /// From here to the end of [`Self::commit_behind`] changes belong to the generation that is being closed: writers are
    /// held off as long as what is returned is kept.
    pub fn begin_closing(&self) -> Closing<'_> {
        self.closing.store(true, Ordering::Relaxed);
        Closing(&self.closing)
    }

    /// Have all closed generations in the file, for who reads it on another connection.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn settle(&self) -> Result<()> {
        loop {
            self.behind.settle();
            let mut core = self.core.lock();
            if core.uncommitted == 0 || core.poisoned.is_some() {
                return Ok(());
            }
            if !core.has_changes() {
                return core.commit_and_begin(false);
            }
            // What is being closed is in the transaction in part. If closing it has failed, what is committed has to do.
            if !self.closing.load(Ordering::Relaxed) {
                return Ok(());
            }
            drop(core);
            std::thread::sleep(CLOSING_PAUSE);
        }
    }

    /// Apply the changes of one generation of the log. False: it is there already, nothing was done. It is committed with
    /// some of those that follow, by [`Self::settle`] at the latest; a crash before loses whole generations, the last first.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is not the next one or if operations are open; after [`Error::Database`] the database
    /// is of no use.
    pub fn replay(&self, generation: Generation, changes: &[RowChange]) -> Result<bool> {
        self.replay_with(generation, changes, None)
    }

    /// [`Self::replay`], remembering something on this machine in the same transaction.
    ///
    /// # Errors
    /// As [`Self::replay`].
    pub fn replay_noting(
        &self,
        generation: Generation,
        changes: &[RowChange],
        key: &str,
        value: &[u8],
    ) -> Result<bool> {
        self.replay_with(generation, changes, Some((key, value)))
    }

    fn replay_with(&self, generation: Generation, changes: &[RowChange], note: Option<(&str, &[u8])>) -> Result<bool> {
        let restart = self.restart_wal.swap(false, Ordering::Relaxed);
        let mut core = self.core.lock();
        core.usable()?;
        if generation <= core.committed {
            return Ok(false);
        }
        core.check_idle()?;
        if generation != core.generation() {
            return Err(Error::Refused(format!(
                "metadata database {}: generation {generation} cannot follow generation {}",
                self.path.display(),
                core.committed
            )));
        }
        core.load(changes)?;
        if let Some((key, value)) = note {
            outbox::put_local(&core.conn, &outbox::local_key(key), value).at(&self.path)?;
        }
        core.set_applied(generation)?;
        core.uncommitted += 1;
        if restart || core.uncommitted >= APPLIED_TOGETHER || changes.len() > APPLIED_CHANGES_MAX {
            core.commit_and_begin(restart)?;
        }
        Ok(true)
    }

    /// Apply rows of a checkpoint; [`Self::finish_import`] ends it.
    ///
    /// # Errors
    /// As [`Self::replay`].
    pub fn import(&self, changes: &[RowChange]) -> Result<()> {
        let mut core = self.core.lock();
        core.usable()?;
        core.check_idle()?;
        core.load(changes)
    }

    /// The rows imported are those of `generation`: commit them.
    ///
    /// # Errors
    /// As [`Self::replay`].
    pub fn finish_import(&self, generation: Generation) -> Result<()> {
        let mut core = self.core.lock();
        core.usable()?;
        core.set_applied(generation)?;
        core.commit_and_begin(false)?;
        core.reload()
    }
}

impl Core {
    pub(in crate::meta) fn has_changes(&self) -> bool {
        !self.changes.is_empty() || !self.refs.is_empty() || self.inodes.has_dirty() || self.quotas.has_dirty()
    }

    fn check_idle(&self) -> Result<()> {
        if self.has_changes() {
            return Err(Error::Refused(format!(
                "metadata database {}: operations are open; records can only be applied to a committed state",
                self.path.display()
            )));
        }
        Ok(())
    }

    /// All of a commit but its COMMIT, if anything changed.
    fn close_generation(
        &mut self,
        seal: impl FnOnce(&Closed) -> Result<Vec<OutboxRow>>,
        restart_wal: bool,
    ) -> Result<Closed> {
        if !self.has_changes() {
            if self.local_dirty || restart_wal {
                self.commit_and_begin(restart_wal)?;
            }
            let (generation, time_ns) = (self.committed, self.committed_ns);
            return Ok(Closed { generation, time_ns, changes: Vec::new(), changed: false });
        }
        self.write_atimes()?;
        self.write_inodes()?;
        self.fold_refs()?;
        self.write_quotas()?;
        let generation = self.generation();
        if self.counters != self.counters_written {
            let value = self.counters.encode().into();
            let row = ShelfRow { shelf: Shelf::Settings, key: COUNTERS_KEY.into(), value, since: generation };
            self.apply(RowChange::PutShelf(row))?;
            self.counters_written = self.counters;
        }
        let time_ns = self.clock.now_ns().max(self.committed_ns);
        self.apply(RowChange::PutGeneration(GenerationRow { generation, time_ns }))?;
        let changes = self.take_changes();
        let closed = Closed { generation, time_ns, changes, changed: true };
        match seal(&closed) {
            Ok(rows) => self.notes.closed(rows),
            Err(error) => {
                self.changes = closed.changes;
                return Err(error);
            }
        }
        self.committed = generation;
        self.committed_ns = time_ns;
        self.uncommitted += 1;
        Ok(closed)
    }

    pub(super) fn commit_and_begin(&mut self, restart_wal: bool) -> Result<()> {
        // What is noted without a transaction stays, though the rows went with it.
        self.in_transaction()?;
        let run = |sql| self.conn.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map(|_| ());
        // No transaction may hold the rows of a record without saying so.
        let mut done = self.notes.write(&self.conn, self.committed).and_then(|()| run("COMMIT"));
        if restart_wal && done.is_ok() {
            done = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        }
        let done = done.and_then(|()| run("BEGIN IMMEDIATE"));
        if let Err(error) = done {
            self.poison(&error);
            return Err(error).at(&self.path);
        }
        self.local_dirty = false;
        self.uncommitted = 0;
        Ok(())
    }

    /// Commit generations that were left in the open transaction, if nothing of the next is in it.
    pub(super) fn end_left_open(&mut self) -> Result<()> {
        if self.uncommitted == 0 || self.has_changes() {
            return Ok(());
        }
        if self.uncommitted == 1 {
            self.interruptions = INTERRUPTED_FOR;
        }
        self.commit_and_begin(false)
    }

    /// Somebody else came lately between two commits that follow each other closely, and had to end their transaction.
    fn is_interrupted(&mut self) -> bool {
        let interrupted = self.interruptions > 0;
        self.interruptions = self.interruptions.saturating_sub(1);
        interrupted
    }

    /// Rows from a record or an image: not recorded again.
    fn load(&mut self, changes: &[RowChange]) -> Result<()> {
        self.recording = false;
        let loaded = changes.iter().try_for_each(|change| self.apply(change.clone()).map(|_| ()));
        self.recording = true;
        if let Err(error) = &loaded {
            self.poison(error);
        }
        loaded
    }

    /// The rows are those of this generation now.
    fn set_applied(&mut self, generation: Generation) -> Result<()> {
        self.committed = generation;
        self.committed_ns = self
            .conn
            .query_row("SELECT coalesce(max(time), 0) FROM generations", [], |row| row.get(0))
            .at(&self.path)?;
        self.inodes.clear();
        self.reload_counters()
    }
}
