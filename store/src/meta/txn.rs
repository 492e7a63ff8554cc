//! One operation on the metadata: reads, row changes, and what undoes them.
//!
//! Every change of a non-local table goes through [`Core::apply`] (inode rows on their way out of the cache), which
//! projects it on SQL and records it for the commit record. An operation opens its savepoint with its first SQL write,
//! so that reading costs none.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::Connection;

use super::audit::{Audit, Place};
use super::cache::{InodeCache, NumberMap};
use super::changes::{Past, PastKey, RowChange};
use super::counters::{COUNTERS_KEY, Counters};
use super::dentry::NameHash;
use super::extent::Cuts;
use super::history::HISTORY_KEY;
use super::outbox::Notes;
use super::patch::Patched;
use super::quota::Quotas;
use super::rows::*;
use super::sql::At;
use super::{BlockIdOf, block, dentry, extent, history, inode, patch, segment, shelf, snapshot, xattr};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::ids::{BlockId, BlockKey, ChunkNo, DataId, Generation, Ino, SegmentId};

/// Reference changes are folded early when there are more than this.
const REFS_MAX: usize = 10_000;

/// The writing connection and the state of its open transaction.
pub(super) struct Core {
    pub conn: Connection,
    pub path: PathBuf,
    pub names: NameHash,
    pub clock: Arc<dyn Clock>,
    pub block_id: BlockIdOf,
    /// Why nothing works any more.
    pub poisoned: Option<String>,
    /// The last committed generation; the open one is the next.
    pub committed: Generation,
    /// Time of the last committed generation.
    pub committed_ns: i64,
    /// Of the last of them, so many are in the open transaction still.
    pub uncommitted: u32,
    /// Generations that are not to be left open.
    pub interruptions: u32,
    pub inodes: InodeCache,
    /// Access times not yet in their rows.
    pub atimes: NumberMap<i64>,
    pub counters: Counters,
    /// Counters as last written.
    pub counters_written: Counters,
    pub cuts: Cuts,
    pub patched: Patched,
    pub quotas: Quotas,
    /// Former rows are kept.
    pub history: bool,
    /// Recorded changes of the open generation, in order.
    pub changes: Vec<RowChange>,
    /// Reference changes not yet folded.
    pub refs: Vec<RefChange>,
    /// An audit of references that goes on.
    pub audit: Option<Box<Audit>>,
    /// Written with the next COMMIT.
    pub notes: Notes,
    /// Local rows changed in the open transaction.
    pub local_dirty: bool,
    /// Conditional writes that met another version.
    pub conflicts: u64,
    /// False while rows come from a record or an image.
    pub recording: bool,
    /// Most names an inode may have, [`LINK_MAX`] unless told otherwise.
    pub nlink_max: u32,
    /// Extents deleted in the foreground; more are cut off and retired behind.
    pub cut_at_once: usize,
    /// Whether there are files whose data id is not their number, once somebody asked.
    pub numbered_apart: Option<bool>,
    operation: Option<Operation>,
}

/// What undoes the running operation, besides the cache's own list.
struct Operation {
    savepoint: bool,
    changes: usize,
    refs: usize,
    counters: Counters,
    /// Cuts or settings changed: read them again.
    reload: bool,
}

/// One running operation. Made by [`super::Meta::with`]; everything it did is undone if its closure fails or panics.
pub struct Txn<'m> {
    pub(super) core: &'m mut Core,
    now_ns: Option<i64>,
    done: bool,
}

impl Core {
    pub fn new(
        conn: Connection,
        path: PathBuf,
        names: NameHash,
        clock: Arc<dyn Clock>,
        block_id: BlockIdOf,
        committed: Generation,
        committed_ns: i64,
    ) -> Self {
        Self {
            conn,
            path,
            names,
            clock,
            block_id,
            poisoned: None,
            committed,
            committed_ns,
            inodes: InodeCache::default(),
            atimes: NumberMap::default(),
            counters: Counters::fresh(),
            counters_written: Counters::default(),
            cuts: Cuts::default(),
            patched: Patched::default(),
            quotas: Quotas::default(),
            history: false,
            changes: Vec::new(),
            refs: Vec::new(),
            audit: None,
            uncommitted: 0,
            interruptions: 0,
            notes: Notes::default(),
            local_dirty: false,
            conflicts: 0,
            numbered_apart: None,
            recording: true,
            nlink_max: LINK_MAX,
            cut_at_once: extent::CUT_AT_ONCE,
            operation: None,
        }
    }

    /// The open generation.
    pub fn generation(&self) -> Generation {
        Generation(self.committed.0 + 1)
    }

    pub fn usable(&self) -> Result<()> {
        match &self.poisoned {
            Some(reason) => Err(Error::ReadOnly(reason.clone())),
            None => Ok(()),
        }
    }

    pub fn poison(&mut self, reason: impl std::fmt::Display) {
        self.poisoned.get_or_insert_with(|| {
            format!("metadata database {}: {reason}; unmount, run `brine check`, mount again", self.path.display())
        });
    }

    /// Cuts, settings and counters as the tables have them.
    pub fn reload(&mut self) -> Result<()> {
        self.numbered_apart = None;
        self.cuts = extent::load_cuts(&self.conn).at(&self.path)?;
        self.patched = patch::load(&self.conn).at(&self.path)?;
        self.history = shelf::get(&self.conn, Shelf::Settings, HISTORY_KEY).at(&self.path)?.as_deref() == Some(&[1]);
        Ok(())
    }

    /// Counters and quotas as their rows have them.
    pub fn reload_counters(&mut self) -> Result<()> {
        self.quotas.load(&self.conn, &self.path)?;
        if let Some(bytes) = shelf::get(&self.conn, Shelf::Settings, COUNTERS_KEY).at(&self.path)? {
            self.counters = Counters::decode(&bytes)?;
            self.counters_written = self.counters;
        }
        Ok(())
    }

    fn begin_operation(&mut self) {
        self.operation = Some(Operation {
            savepoint: false,
            changes: self.changes.len(),
            refs: self.refs.len(),
            counters: self.counters,
            reload: false,
        });
    }

    fn end_operation(&mut self) -> Result<()> {
        self.inodes.keep_operation();
        self.quotas.keep_operation();
        if let Some(operation) = self.operation.take()
            && operation.savepoint
            && let Err(error) = self.conn.prepare_cached("RELEASE op").and_then(|mut release| release.execute([]))
        {
            self.poison(&error);
            return Err(error).at(&self.path);
        }
        self.in_transaction()
    }

    fn undo_operation(&mut self) {
        let Some(operation) = self.operation.take() else { return };
        self.inodes.undo_operation();
        self.quotas.undo_operation();
        self.changes.truncate(operation.changes);
        self.refs.truncate(operation.refs);
        self.counters = operation.counters;
        self.check_transaction();
        if self.poisoned.is_some() {
            return;
        }
        if operation.savepoint
            && let Err(error) = self.conn.execute_batch("ROLLBACK TO op; RELEASE op")
        {
            self.poison(error);
            return;
        }
        if operation.reload
            && let Err(error) = self.reload()
        {
            self.poison(error);
        }
    }

    /// To be called before anything is written to a table.
    pub fn before_write(&mut self) -> Result<()> {
        // Without a transaction a savepoint would start one, and its release commit half a generation.
        self.in_transaction()?;
        if let Some(operation) = &mut self.operation
            && !operation.savepoint
        {
            self.conn.prepare_cached("SAVEPOINT op").and_then(|mut open| open.execute([])).at(&self.path)?;
            operation.savepoint = true;
        }
        Ok(())
    }

    /// Change rows and record the change. Returns how many rows it touched.
    pub fn apply(&mut self, change: RowChange) -> Result<usize> {
        self.before_write()?;
        let touched = project(&self.conn, &change, self.history, &self.cuts).at(&self.path)?;
        self.note(change);
        Ok(touched)
    }

    /// Record a change that is in its table already, and what memory holds of it.
    pub fn note(&mut self, change: RowChange) {
        let reload = match &change {
            RowChange::PutCut(cut) => {
                self.cuts.insert(*cut);
                true
            }
            RowChange::DelCut { data, sequence } => {
                self.cuts.remove(*data, *sequence);
                true
            }
            RowChange::PutPatch(row) => {
                self.patched.insert(row);
                true
            }
            RowChange::DelPatches { data, from, to, through, .. } => {
                self.patched.remove(*data, *from, *to, *through);
                true
            }
            RowChange::PutShelf(row) if row.shelf == Shelf::Settings && &*row.key == HISTORY_KEY => {
                self.history = *row.value == [1];
                true
            }
            _ => false,
        };
        if let Some(operation) = &mut self.operation {
            operation.reload |= reload;
        }
        if self.recording {
            self.changes.push(change);
        }
    }

    /// Between operations: keep what is held in memory within bounds.
    pub fn relieve(&mut self) -> Result<()> {
        if self.inodes.wants_write() {
            self.write_inodes()?;
        }
        if self.refs.len() > REFS_MAX {
            self.fold_refs()?;
        }
        self.inodes.trim();
        Ok(())
    }

    /// Fails if a failure took the whole transaction with it, now and ever after.
    pub fn in_transaction(&mut self) -> Result<()> {
        self.check_transaction();
        self.usable()
    }

    /// Note it if a failure took the whole transaction with it, for who has an error to tell already.
    pub fn check_transaction(&mut self) {
        if self.conn.is_autocommit() {
            // Every operation since the last commit is gone from the tables, though users saw it succeed.
            self.poison("its transaction was rolled back by SQLite");
        }
    }

    /// Recorded changes without those that a later one of the same key replaces; order is kept. Changes of different
    /// keys commute, except ranges of extents with single ones, and those keep their order.
    pub fn take_changes(&mut self) -> Vec<RowChange> {
        let changes = std::mem::take(&mut self.changes);
        let mut keep = vec![false; changes.len()];
        {
            let mut seen = HashSet::with_capacity(changes.len());
            for (at, change) in changes.iter().enumerate().rev() {
                keep[at] = seen.insert(Key::of(change));
            }
        }
        let mut keep = keep.into_iter();
        let mut changes = changes;
        changes.retain(|_| keep.next().unwrap_or(true));
        changes
    }
}

impl<'m> Txn<'m> {
    pub(super) fn begin(core: &'m mut Core) -> Self {
        core.begin_operation();
        Self { core, now_ns: None, done: false }
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.done = true;
        self.core.end_operation()
    }

    /// One reading of the clock for the whole operation.
    pub fn now_ns(&mut self) -> i64 {
        *self.now_ns.get_or_insert_with(|| self.core.clock.now_ns())
    }

    /// The open generation: what this operation becomes part of.
    pub fn generation(&self) -> Generation {
        self.core.generation()
    }

    /// The generation that what is seen now is, or becomes, part of: the open one if anything changed in it.
    pub fn settled_in(&self) -> Generation {
        if self.core.has_changes() { self.core.generation() } else { self.core.committed }
    }

    /// Counters as of now; those of blocks as of the last folding.
    pub fn counters(&self) -> Counters {
        self.core.counters
    }

    /// A segment number never handed out before.
    pub fn next_segment_id(&mut self) -> SegmentId {
        let id = SegmentId(self.core.counters.next_segment);
        self.core.counters.next_segment += 1;
        id
    }

    /// Never hand out segment numbers up to `id` (files of it were found).
    pub fn skip_segment_ids(&mut self, id: SegmentId) {
        self.core.counters.next_segment = self.core.counters.next_segment.max(id.0 + 1);
    }

    /// Change a row that this module has no operation for (range links, generations) and record the change.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for rows that have operations, which keep counts and caches.
    pub fn apply(&mut self, change: RowChange) -> Result<()> {
        match change {
            RowChange::PutLink(_) | RowChange::DelLink { .. } | RowChange::DelGeneration(_) => {
                self.core.apply(change).map(|_| ())
            }
            _ => Err(Error::InvalidArgument("rows of this table change by operations only")),
        }
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.core.undo_operation();
        }
    }
}

/// The SQL of each change: the only way that rows of non-local tables change, live or in replay.
fn project(conn: &Connection, change: &RowChange, history: bool, cuts: &Cuts) -> rusqlite::Result<usize> {
    match change {
        RowChange::PutInode(row) => inode::put(conn, row, history),
        RowChange::DelInode { ino, at } => inode::delete(conn, *ino, *at, history),
        RowChange::PutDentry(row) => dentry::put(conn, row, history),
        RowChange::DelDentry { parent, hash, name, at } => dentry::delete(conn, *parent, *hash, name, *at, history),
        RowChange::PutExtent(row) => extent::put(conn, row, history, cuts),
        RowChange::DelExtents { data, from, to, below, at } => {
            extent::delete(conn, *data, *from, *to, *below, *at, history)
        }
        RowChange::PutXattr(row) => xattr::put(conn, row, history),
        RowChange::DelXattr { ino, name, at } => xattr::delete(conn, *ino, name, *at, history),
        RowChange::PutBlock(row) => block::put(conn, row),
        RowChange::SetRefs { id, refs, state, state_since } => block::set_refs(conn, id, *refs, *state, *state_since),
        RowChange::DelBlock(id) => block::delete(conn, id),
        RowChange::PutSegment(row) => segment::put(conn, row),
        RowChange::DelSegment(id) => segment::delete(conn, *id),
        RowChange::PutPatch(row) => patch::put(conn, row),
        RowChange::DelPatches { data, from, to, through, at } => {
            patch::delete(conn, *data, (*from, *to), *through, *at, history)
        }
        RowChange::PutLink(row) => extent::put_link(conn, row),
        RowChange::DelLink { data, chunk } => extent::delete_link(conn, *data, *chunk),
        RowChange::PutCut(row) => extent::put_cut(conn, row),
        RowChange::DelCut { data, sequence } => extent::delete_cut(conn, *data, *sequence),
        RowChange::PutGeneration(row) => snapshot::put_generation(conn, row),
        RowChange::DelGeneration(generation) => snapshot::delete_generation(conn, *generation),
        RowChange::PutSnapshot(row) => snapshot::put_snapshot(conn, row),
        RowChange::DelSnapshot { name } => snapshot::delete_snapshot(conn, name),
        RowChange::PutShelf(row) => shelf::put(conn, row),
        RowChange::DelShelf { shelf, key } => shelf::delete(conn, *shelf, key),
        RowChange::PutPast { past, until } => history::put(conn, past, *until),
        RowChange::DelPast(key) => history::delete(conn, key),
    }
}

/// What a change replaces an earlier one by.
#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Inode(Ino),
    Dentry(Ino, u64, &'a [u8]),
    Extent(DataId, ChunkNo),
    Extents(DataId, ChunkNo, ChunkNo, u64, Generation),
    Xattr(Ino, &'a [u8]),
    Block(&'a BlockId),
    Refs(&'a BlockId),
    Segment(SegmentId),
    Patch(DataId, ChunkNo, u64),
    Patches(DataId, ChunkNo, ChunkNo, u64, Generation),
    Link(DataId, ChunkNo),
    Cut(DataId, u64),
    Generation(Generation),
    Snapshot(&'a [u8]),
    /// Apart, so that what was forgotten between the end of one and the start of another of its name replays.
    SnapshotGone(&'a [u8]),
    Shelf(Shelf, &'a [u8]),
    PastInode(Ino, u64, Generation),
    PastDentry(Ino, u64, &'a [u8], Generation),
    PastExtent(DataId, ChunkNo, Generation),
    PastXattr(Ino, &'a [u8], Generation),
    PastPatch(DataId, ChunkNo, u64),
}

impl<'a> Key<'a> {
    fn of(change: &'a RowChange) -> Self {
        match change {
            RowChange::PutInode(row) => Self::Inode(row.ino),
            RowChange::DelInode { ino, .. } => Self::Inode(*ino),
            RowChange::PutDentry(row) => Self::Dentry(row.parent, row.hash, &row.name),
            RowChange::DelDentry { parent, hash, name, .. } => Self::Dentry(*parent, *hash, name),
            RowChange::PutExtent(row) => Self::Extent(row.data, row.chunk),
            RowChange::DelExtents { data, from, to, below, at } => Self::Extents(*data, *from, *to, *below, *at),
            RowChange::PutXattr(row) => Self::Xattr(row.ino, &row.name),
            RowChange::DelXattr { ino, name, .. } => Self::Xattr(*ino, name),
            RowChange::PutBlock(row) => Self::Block(&row.id),
            RowChange::DelBlock(id) => Self::Block(id),
            RowChange::SetRefs { id, .. } => Self::Refs(id),
            RowChange::PutSegment(row) => Self::Segment(row.id),
            RowChange::DelSegment(id) => Self::Segment(*id),
            RowChange::PutPatch(row) => Self::Patch(row.data, row.chunk, row.sequence),
            RowChange::DelPatches { data, from, to, through, at } => Self::Patches(*data, *from, *to, *through, *at),
            RowChange::PutLink(row) => Self::Link(row.data, row.chunk),
            RowChange::DelLink { data, chunk } => Self::Link(*data, *chunk),
            RowChange::PutCut(row) => Self::Cut(row.data, row.sequence),
            RowChange::DelCut { data, sequence } => Self::Cut(*data, *sequence),
            RowChange::PutGeneration(row) => Self::Generation(row.generation),
            RowChange::DelGeneration(generation) => Self::Generation(*generation),
            RowChange::PutSnapshot(row) => Self::Snapshot(&row.name),
            RowChange::DelSnapshot { name } => Self::SnapshotGone(name),
            RowChange::PutShelf(row) => Self::Shelf(row.shelf, &row.key),
            RowChange::DelShelf { shelf, key } => Self::Shelf(*shelf, key),
            RowChange::PutPast { past, .. } => match past {
                Past::Inode(row) => Self::PastInode(row.ino, row.version.0, row.since),
                Past::Dentry(row) => Self::PastDentry(row.parent, row.hash, &row.name, row.since),
                Past::Extent(row) => Self::PastExtent(row.data, row.chunk, row.since),
                Past::Xattr(row) => Self::PastXattr(row.ino, &row.name, row.since),
                Past::Patch(row) => Self::PastPatch(row.data, row.chunk, row.sequence),
            },
            RowChange::DelPast(key) => match key {
                PastKey::Inode(ino, version, since) => Self::PastInode(*ino, version.0, *since),
                PastKey::Dentry(parent, hash, name, since) => Self::PastDentry(*parent, *hash, name, *since),
                PastKey::Extent(data, chunk, since) => Self::PastExtent(*data, *chunk, *since),
                PastKey::Xattr(ino, name, since) => Self::PastXattr(*ino, name, *since),
                PastKey::Patch(data, chunk, sequence) => Self::PastPatch(*data, *chunk, *sequence),
            },
        }
    }
}

/// Extents that name a block came or went.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefChange {
    pub id: BlockId,
    /// By how many there are more; 0 for a block to be looked at (just stored or revived).
    pub change: i64,
    /// Where the extent is, or was.
    pub place: Place,
}

impl RefChange {
    /// The block may be without a reference.
    pub fn look(id: BlockId) -> Self {
        Self { id, change: 0, place: (DataId(0), ChunkNo(0)) }
    }
}

/// Folds reference changes into one a block.
pub(super) fn sum_refs(changes: &[RefChange]) -> Vec<(BlockId, i64)> {
    let mut sums: HashMap<BlockId, i64> = HashMap::with_capacity(changes.len());
    for RefChange { id, change, .. } in changes {
        *sums.entry(*id).or_default() += change;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_unstable_by_key(|(id, _)| *id);
    sums
}

/// The block that a key names.
pub(super) fn block_of(core: &Core, key: &BlockKey) -> BlockId {
    (core.block_id)(key)
}
