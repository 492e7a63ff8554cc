//! The metadata database: rows, transactions, conditional writes.
//!
//! One SQLCipher file in the state directory, a cache of the commit log: every change of a non-local table is recorded
//! ([`changes::RowChange`]) and handed out when its generation closes, and replaying the records of all generations
//! gives the same rows. One connection writes, in an open transaction that a generation ends, or one of several that follow
//! each other closely; each operation is atomic within it ([`Meta::with`]). All SQL of this crate stands in this folder.
//!
//! Knows nothing of shards, keys of blocks (it is handed the function that names a block) or FUSE.

mod acl;
mod audit;
mod behind;
mod block;
mod cache;
pub mod changes;
pub mod codec;
mod counters;
mod dentry;
mod digest;
mod extent;
mod generations;
mod history;
mod inode;
mod kept_below;
mod namespace;
mod node;
mod open;
mod outbox;
mod past;
pub mod patch;
pub mod quota;
mod reader;
pub mod rows;
mod schema;
mod segment;
mod share;
mod shelf;
mod snapshot;
mod sql;
mod txn;
mod verify;
mod xattr;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;
use zeroize::Zeroizing;

pub use acl::Who;
pub use counters::Counters;
pub use generations::Closed;
pub use history::Gap;
pub use kept_below::KeptBelow;
pub use outbox::OutboxRow;
pub use past::{NameSpan, PastReader, Xattrs};
pub use reader::{Reader, Walk};
#[cfg(test)]
pub(crate) use schema::{SCHEMA_VERSION, make_of_version as make_database_of_version};
pub use txn::Txn;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::ids::{BlockId, BlockKey, Generation, VolumeId};
use behind::Behind;
use dentry::NameHash;
use rows::LINK_MAX;
use schema::Role;
use sql::At;
use txn::Core;

/// Names a block by its key.
pub type BlockIdOf = fn(&BlockKey) -> BlockId;

/// Name of the database file in the state directory.
pub const DATABASE_FILE: &str = "meta.db";

/// The log of the database is started anew when it has grown past this, pages: 64 MiB.
const WAL_RESTART_PAGES: i64 = 16 << 10;

/// How often a conditional write that met another version is tried.
const CONFLICT_TRIES: u32 = 8;

/// What the database must agree with, and what it is handed.
pub struct Setup {
    /// The volume it belongs to.
    pub volume: VolumeId,
    /// Key of the name hash.
    pub name_key: [u8; 32],
    /// Where times come from.
    pub clock: Arc<dyn Clock>,
    /// Names a block by its key.
    pub block_id: BlockIdOf,
}

/// The metadata database of one volume.
pub struct Meta {
    path: PathBuf,
    key: Zeroizing<[u8; 32]>,
    block_id: BlockIdOf,
    /// Dropped, and so ended, before `core`.
    behind: Behind,
    /// The open generation is being put and closed, all writers are held off.
    closing: AtomicBool,
    /// The writing connection. Held for one operation, or one commit; taken before no other lock.
    core: Arc<Mutex<Core>>,
    /// Hashes names as `core` does.
    names: NameHash,
    idle: past::Idle,
    /// Connection that copies the log back into the database beside the writer. Independent of `core`.
    copier: Mutex<Connection>,
    /// The log, to be synced. Never the database file itself: closing another descriptor of it would drop the
    /// process's locks on it.
    wal: File,
    restart_wal: AtomicBool,
    retries: AtomicU64,
}

impl std::fmt::Debug for Meta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meta").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Meta {
    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on an inode gets no more names than this, a directory not more subdirectories.
    pub fn limit_links(&self, max: u32) {
        self.core.lock().nlink_max = max.min(LINK_MAX);
    }

    /// Run one operation. If `operation` fails (or panics) everything it changed is undone.
    ///
    /// # Errors
    /// Those of `operation`; [`Error::ReadOnly`] for ever after SQLite gave up the open transaction.
    pub fn with<R>(&self, operation: impl FnOnce(&mut Txn<'_>) -> Result<R>) -> Result<R> {
        let mut core = self.core.lock();
        core.usable()?;
        if !self.closing.load(Ordering::Relaxed) {
            core.end_left_open()?;
        }
        core.relieve()?;
        let mut txn = Txn::begin(&mut core);
        let out = operation(&mut txn)?;
        txn.finish()?;
        Ok(out)
    }

    /// As [`Self::with`], for what changes nothing and is asked for between two commits that follow each other closely: a
    /// transaction that was left open stays so.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn look<R>(&self, read: impl FnOnce(&mut Txn<'_>) -> Result<R>) -> Result<R> {
        let mut core = self.core.lock();
        core.usable()?;
        let mut txn = Txn::begin(&mut core);
        let out = read(&mut txn)?;
        txn.finish()?;
        Ok(out)
    }

    /// [`Self::with`], tried again when it fails with [`Error::Conflict`]: `operation` then reads and decides anew.
    ///
    /// # Errors
    /// As [`Self::with`]; [`Error::Conflict`] after eight tries.
    pub fn with_retry<R>(&self, mut operation: impl FnMut(&mut Txn<'_>) -> Result<R>) -> Result<R> {
        self.retry(|| self.with(&mut operation))
    }

    /// Try again what fails with [`Error::Conflict`]: it then reads and decides anew. Nothing is held between tries.
    ///
    /// # Errors
    /// Those of `attempt`; [`Error::Conflict`] after eight tries.
    pub fn retry<R>(&self, mut attempt: impl FnMut() -> Result<R>) -> Result<R> {
        let mut tried = 0;
        loop {
            match attempt() {
                Err(Error::Conflict(ino)) => {
                    tried += 1;
                    if tried == CONFLICT_TRIES {
                        return Err(Error::Conflict(ino));
                    }
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    // The address of a local differs between threads: jitter enough to part two that collide.
                    let jitter = (&raw const tried as usize >> 4) as u64 % 50;
                    std::thread::sleep(Duration::from_micros((10 << tried) + jitter));
                }
                other => return other,
            }
        }
    }

    /// Conditional writes that met another version, and how often one was tried again, since the database was opened.
    pub fn conflicts(&self) -> (u64, u64) {
        (self.core.lock().conflicts, self.retries.load(Ordering::Relaxed))
    }

    /// The last committed generation.
    pub fn committed(&self) -> Generation {
        self.core.lock().committed
    }

    /// Counters as of now; those of blocks as of the last folding of references.
    pub fn counters(&self) -> Counters {
        self.core.lock().counters
    }

    /// True if a commit would close a generation.
    pub fn has_changes(&self) -> bool {
        self.core.lock().has_changes()
    }

    /// Row changes recorded so far for the open generation: when there are many it is better closed early. Inodes
    /// that changed and are not in their table yet do not count.
    pub fn open_changes(&self) -> usize {
        self.core.lock().changes.len()
    }

    /// Make access times that wait part of the open generation (at unmount, or once in a while).
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn flush_atimes(&self) -> Result<()> {
        let mut core = self.core.lock();
        core.usable()?;
        core.write_atimes()
    }

    /// Make every commit so far durable on the local disk.
    ///
    /// # Errors
    /// [`Error::Io`]; what was not synced may then be lost by a power cut, not by a crash of the process.
    pub fn sync(&self) -> Result<()> {
        self.settle()?;
        self.wal.sync_data().map_err(|error| {
            Error::io(format!("log of the metadata database {}: fdatasync", self.path.display()), error)
        })
    }

    /// Copy committed pages from the log into the database, beside the writer. From another thread, now and then.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn checkpoint_wal(&self) -> Result<()> {
        let copier = self.copier.lock();
        let copy = || copier.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get::<_, i64>(1));
        let pages = copy().at(&self.path)?;
        // Not the length of the file, which stays when its pages are used again.
        if pages > WAL_RESTART_PAGES {
            // What was committed meanwhile: the less is left, the shorter the writer is at it.
            copy().at(&self.path)?;
            // The writer's next transaction starts at the head of the log only if everything was copied before it
            // begins: that moment is within its commit.
            self.restart_wal.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Bytes of the database's file that hold something: freed pages stay in it.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn used_bytes(&self) -> Result<u64> {
        let length = self.path.metadata().map_or(0, |meta| meta.len());
        let copier = self.copier.lock();
        let number = |sql| copier.query_row(sql, [], |row| sql::number(row, 0)).at(&self.path);
        let (pages, free) = (number("PRAGMA page_count")?, number("PRAGMA freelist_count")?);
        Ok(length / pages.max(1) * pages.saturating_sub(free))
    }

    /// Commit local rows, copy the log back and refuse everything from now on. Changes of a generation that was not
    /// closed are dropped, since no record of them exists.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn close(&self) -> Result<()> {
        let mut core = self.core.lock();
        core.in_transaction()?;
        self.drop_idle();
        core.poisoned = Some("the metadata database is closed".to_owned());
        if core.has_changes() {
            core.conn.execute_batch("ROLLBACK").at(&self.path)?;
        } else {
            let Core { notes, conn, committed, .. } = &mut *core;
            notes.write(conn, *committed).at(&self.path)?;
            conn.execute_batch("COMMIT").at(&self.path)?;
        }
        core.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).at(&self.path)
    }

    /// A connection for reading committed states beside the writer.
    fn read_connection(&self) -> Result<Connection> {
        let conn = schema::connect(&self.path, &self.key, Role::Read).at(&self.path)?;
        schema::identity(&conn).at(&self.path)?;
        Ok(conn)
    }
}

#[cfg(test)]
mod tests;
