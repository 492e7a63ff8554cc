//! The metadata database: rows, transactions, conditional writes.
//!
//! One SQLCipher file in the state directory, a cache of the commit log: every change of a non-local table is recorded
//! ([`changes::RowChange`]) and handed out when its generation closes, and replaying the records of all generations
//! gives the same rows. One connection writes, in one open transaction a generation; each operation is atomic within it
//! ([`Meta::with`]). All SQL of this crate stands in this folder.
//!
//! Knows nothing of shards, keys of blocks (it is handed the function that names a block) or FUSE.

mod acl;
mod audit;
mod block;
mod cache;
pub mod changes;
pub mod codec;
mod counters;
mod dentry;
mod digest;
mod extent;
mod history;
mod inode;
mod kept_below;
mod namespace;
mod node;
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
use rusqlite::{Connection, ErrorCode};
use zeroize::Zeroizing;

pub use acl::Who;
pub use counters::Counters;
pub use history::Gap;
pub use kept_below::KeptBelow;
pub use outbox::OutboxRow;
pub use past::{NameSpan, PastReader, Xattrs};
pub use reader::{Reader, Walk};
#[cfg(test)]
pub(crate) use schema::make_former as make_former_database;
pub use txn::Txn;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::ids::{BlockId, BlockKey, Generation, VolumeId};
use changes::RowChange;
use counters::COUNTERS_KEY;
use dentry::NameHash;
use rows::{GenerationRow, LINK_MAX, NewNode, Shelf, ShelfRow};
use schema::Role;
use sql::{At, int};
use txn::Core;

/// Names a block by its key.
pub type BlockIdOf = fn(&BlockKey) -> BlockId;

/// Name of the database file in the state directory.
pub const DATABASE_FILE: &str = "meta.db";

/// The log of the database is started anew when it has grown past this, bytes.
const WAL_RESTART_BYTES: u64 = 64 << 20;

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

/// The metadata database of one volume.
pub struct Meta {
    path: PathBuf,
    key: Zeroizing<[u8; 32]>,
    block_id: BlockIdOf,
    /// The writing connection. Held for one operation, or one commit; taken before no other lock.
    core: Mutex<Core>,
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
    /// Make the database of a new volume in a state directory, with its root directory in the open generation.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is a database already.
    /// [`Error::InvalidArgument`] unless chunks are 4 KiB to 1 MiB.
    pub fn create(dir: &Path, key: &[u8; 32], setup: &Setup, root: &NewNode<'_>, chunk_bits: u8) -> Result<Self> {
        if !rows::CHUNK_BITS.contains(&chunk_bits) {
            return Err(Error::InvalidArgument("chunks are 4 KiB to 1 MiB long"));
        }
        let meta = Self::create_blank(dir, key, setup)?;
        meta.with(|txn| {
            txn.create_root(root, chunk_bits);
            Ok(())
        })?;
        Ok(meta)
    }

    /// Make a database without any row, to be filled by [`Self::import`] and [`Self::replay`].
    ///
    /// # Errors
    /// [`Error::Refused`] if there is a database already.
    pub fn create_blank(dir: &Path, key: &[u8; 32], setup: &Setup) -> Result<Self> {
        let path = dir.join(DATABASE_FILE);
        if path.symlink_metadata().is_ok() {
            return Err(Error::Refused(format!("metadata database {}: there is one already", path.display())));
        }
        let conn = schema::connect(&path, key, Role::Create).at(&path)?;
        schema::settle(&conn).at(&path)?;
        conn.execute_batch("BEGIN IMMEDIATE").at(&path)?;
        schema::make_tables(&conn).at(&path)?;
        outbox::put_local(&conn, "volume", &setup.volume.0).at(&path)?;
        outbox::put_local(&conn, "generation", &0u64.to_le_bytes()).at(&path)?;
        conn.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE);").at(&path)?;
        drop(conn);
        Self::open(dir, key, setup)
    }

    /// Open the database of a volume.
    ///
    /// # Errors
    /// [`Error::DatabaseVersion`]; [`Error::Format`] if it is damaged or the key is wrong; [`Error::Refused`] naming what
    /// else is wrong: none there, another volume's, in use by another process.
    pub fn open(dir: &Path, key: &[u8; 32], setup: &Setup) -> Result<Self> {
        let path = dir.join(DATABASE_FILE);
        let refused = |reason: &str| {
            Error::Refused(format!(
                "metadata database {}: {reason}; move it aside and mount again to rebuild it from the backing directories",
                path.display()
            ))
        };
        match path.symlink_metadata() {
            Ok(meta) if meta.is_file() => {}
            Ok(_) => return Err(refused("is not a regular file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(refused("does not exist")),
            Err(source) => return Err(Error::io(format!("metadata database {}", path.display()), source)),
        }
        let of_version = |found| Error::DatabaseVersion { path: path.clone(), found, known: schema::SCHEMA_VERSION };
        let conn = schema::connect(&path, key, Role::Write);
        let identified = conn.and_then(|conn| schema::identity(&conn).map(|found| (conn, found)));
        let conn = match identified {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
                return Err(schema::former_version(&path, key).map(of_version).unwrap_or_else(|| {
                    let object = format!("metadata database {}", path.display());
                    Error::format(object, "it is damaged, or was made with another key")
                }));
            }
            Err(source) => return Err(Error::Database { path, source }),
            Ok((conn, (false, _))) if schema::is_blank(&conn).at(&path)? => {
                return Err(Error::format(
                    format!("metadata database {}", path.display()),
                    "it has no tables: making it was cut short",
                ));
            }
            Ok((_, (false, _))) => return Err(refused("is not a metadata database of brine")),
            Ok((conn, (true, schema::SCHEMA_VERSION))) => conn,
            Ok((_, (true, version))) => return Err(of_version(version)),
        };
        if outbox::get_local(&conn, "volume").at(&path)?.as_deref() != Some(&setup.volume.0) {
            return Err(refused("belongs to another volume"));
        }
        schema::settle(&conn).at(&path)?;
        match conn.execute_batch("BEGIN IMMEDIATE") {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                let path = path.display();
                return Err(Error::Refused(format!(
                    "metadata database {path}: in use by another process; stop it first"
                )));
            }
            other => other.at(&path)?,
        }
        let generation = outbox::get_local(&conn, "generation").at(&path)?;
        let Some(generation) = generation.and_then(|bytes| Some(u64::from_le_bytes((*bytes).try_into().ok()?))) else {
            return Err(refused("does not say which generation it holds"));
        };
        let committed_ns = conn
            .query_row(
                "SELECT coalesce(max(time), 0) FROM generations WHERE generation = ?1",
                [int(generation)],
                |row| row.get(0),
            )
            .at(&path)?;
        let names = NameHash::new(setup.name_key);
        let own_names = names.clone();
        let clock = Arc::clone(&setup.clock);
        let mut core =
            Core::new(conn, path.clone(), names, clock, setup.block_id, Generation(generation), committed_ns);
        core.reload()?;
        core.reload_counters()?;
        let copier = schema::connect(&path, key, Role::Write).at(&path)?;
        schema::identity(&copier).at(&path)?;
        schema::settle(&copier).at(&path)?;
        let wal_path = wal_path(&path);
        let wal = File::open(&wal_path)
            .map_err(|error| Error::io(format!("log of the metadata database {}", wal_path.display()), error))?;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| Error::io(format!("state directory {}: sync", dir.display()), error))?;
        Ok(Self {
            path,
            key: Zeroizing::new(*key),
            block_id: setup.block_id,
            core: Mutex::new(core),
            names: own_names,
            idle: past::Idle::default(),
            copier: Mutex::new(copier),
            wal,
            restart_wal: AtomicBool::new(false),
            retries: AtomicU64::new(0),
        })
    }

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
        core.relieve()?;
        let mut txn = Txn::begin(&mut core);
        let out = operation(&mut txn)?;
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
        let mut core = self.core.lock();
        core.usable()?;
        let restart = self.restart_wal.swap(false, Ordering::Relaxed);
        let closed = core.commit(seal, restart);
        if closed.is_err() {
            core.check_transaction();
        }
        closed
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

    /// Apply the changes of one generation of the log. False: it is committed here already, nothing was done.
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
        core.set_committed(generation, false, restart)?;
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
        core.set_committed(generation, true, false)
    }

    /// Make every commit so far durable on the local disk.
    ///
    /// # Errors
    /// [`Error::Io`]; what was not synced may then be lost by a power cut, not by a crash of the process.
    pub fn sync(&self) -> Result<()> {
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
        copier.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).at(&self.path)?;
        let length = self.wal.metadata().map(|meta| meta.len()).unwrap_or(0);
        if length > WAL_RESTART_BYTES {
            // The writer's next transaction starts at the head of the log only if everything was copied before it
            // begins: that moment is within its commit.
            self.restart_wal.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Commit local rows, copy the log back and refuse everything from now on. Changes of a generation that was not
    /// closed are dropped, since no record of them exists.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn close(&self) -> Result<()> {
        let mut core = self.core.lock();
        core.usable()?;
        self.drop_idle();
        let end = if core.has_changes() { "ROLLBACK" } else { "COMMIT" };
        core.poisoned = Some("the metadata database is closed".to_owned());
        core.conn.execute_batch(end).at(&self.path)?;
        core.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).at(&self.path)
    }

    /// A connection for reading committed states beside the writer.
    fn read_connection(&self) -> Result<Connection> {
        let conn = schema::connect(&self.path, &self.key, Role::Read).at(&self.path)?;
        schema::identity(&conn).at(&self.path)?;
        Ok(conn)
    }
}

fn wal_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
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

    fn commit(&mut self, seal: impl FnOnce(&Closed) -> Result<Vec<OutboxRow>>, restart_wal: bool) -> Result<Closed> {
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
            Ok(parts) => {
                for part in parts {
                    outbox::put(&self.conn, &part).at(&self.path)?;
                }
            }
            Err(error) => {
                self.changes = closed.changes;
                return Err(error);
            }
        }
        outbox::put_local(&self.conn, "generation", &generation.0.to_le_bytes()).at(&self.path)?;
        self.commit_and_begin(restart_wal)?;
        self.committed = generation;
        self.committed_ns = time_ns;
        self.inodes.trim();
        Ok(closed)
    }

    fn commit_and_begin(&mut self, restart_wal: bool) -> Result<()> {
        let run = |sql| self.conn.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map(|_| ());
        let mut done = run("COMMIT");
        if restart_wal && done.is_ok() {
            done = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        }
        let done = done.and_then(|()| run("BEGIN IMMEDIATE"));
        if let Err(error) = done {
            self.poison(&error);
            return Err(error).at(&self.path);
        }
        self.local_dirty = false;
        Ok(())
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

    fn set_committed(&mut self, generation: Generation, all: bool, restart_wal: bool) -> Result<()> {
        outbox::put_local(&self.conn, "generation", &generation.0.to_le_bytes()).at(&self.path)?;
        self.commit_and_begin(restart_wal)?;
        self.committed = generation;
        self.committed_ns = self
            .conn
            .query_row("SELECT coalesce(max(time), 0) FROM generations", [], |row| row.get(0))
            .at(&self.path)?;
        self.inodes.clear();
        if all {
            self.reload()?;
        }
        self.reload_counters()
    }
}

#[cfg(test)]
mod tests;
