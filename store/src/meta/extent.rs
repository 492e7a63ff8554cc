//! Extents: which block holds which chunk of a data id; cutting them off at once and deleting their rows behind (R6).
//!
//! A cut has a number; extents remember how many cuts there were when they were written. An extent below a cut that is
//! younger than it reads as a hole and is deleted by [`Txn::retire_step`]; one written later is not touched by it.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use super::audit::Place;
use super::changes::RowChange;
use super::rows::*;
use super::sql::{At, int, number};
use super::txn::{RefChange, Txn, block_of};
use crate::error::{Error, Result};
use crate::ids::{BlockKey, ChunkNo, DataId, Generation, Ino};

/// Default of [`super::txn::Core::cut_at_once`]: deleting as many takes about half a millisecond.
pub(super) const CUT_AT_ONCE: usize = 256;
/// Above every sequence number.
pub(super) const ANY_SEQUENCE: u64 = i64::MAX as u64;

const GET: &str = "SELECT key, sequence, since FROM extents WHERE data = ?1 AND chunk = ?2";
const RANGE: &str = "SELECT chunk, key, sequence, since FROM extents \
    WHERE data = ?1 AND chunk >= ?2 AND chunk < ?3 AND sequence < ?4 ORDER BY chunk LIMIT ?5";
pub(super) const PUT: &str =
    "INSERT OR REPLACE INTO extents (data, chunk, key, sequence, since) VALUES (?1, ?2, ?3, ?4, ?5)";
const KEEP: &str = "INSERT INTO extents_past (data, chunk, key, sequence, since, until) \
    SELECT data, chunk, key, sequence, since, ?5 FROM extents \
    WHERE data = ?1 AND chunk >= ?2 AND chunk < ?3 AND sequence < ?4 AND since < ?5";
const DELETE: &str = "DELETE FROM extents WHERE data = ?1 AND chunk >= ?2 AND chunk < ?3 AND sequence < ?4";

/// Cuts whose rows are not all deleted yet.
#[derive(Default)]
pub(super) struct Cuts {
    /// Each list ascends by sequence.
    by_data: HashMap<DataId, Vec<CutRow>>,
}

impl Cuts {
    pub fn insert(&mut self, cut: CutRow) {
        let cuts = self.by_data.entry(cut.data).or_default();
        cuts.retain(|other| other.sequence != cut.sequence);
        let at = cuts.partition_point(|other| other.sequence < cut.sequence);
        cuts.insert(at, cut);
    }

    pub fn remove(&mut self, data: DataId, sequence: u64) {
        if let Some(cuts) = self.by_data.get_mut(&data) {
            cuts.retain(|cut| cut.sequence != sequence);
            if cuts.is_empty() {
                self.by_data.remove(&data);
            }
        }
    }

    /// The generation since which an extent reads as a hole, if it does: that of the oldest cut that hides it.
    pub fn hidden(&self, data: DataId, chunk: ChunkNo, sequence: u64) -> Option<Generation> {
        if self.by_data.is_empty() {
            return None;
        }
        let hides = |cut: &&CutRow| sequence < cut.sequence && cut.from <= chunk && chunk < cut.to;
        self.by_data.get(&data)?.iter().find(hides).map(|cut| cut.since)
    }

    fn pending(&self, data: DataId) -> bool {
        self.by_data.contains_key(&data)
    }

    /// The cut to retire next: of one data id the oldest first, so that history ends where it was first cut off.
    fn next(&self) -> Option<CutRow> {
        self.by_data.values().filter_map(|cuts| cuts.first()).min_by_key(|cut| cut.sequence).copied()
    }

    pub fn is_empty(&self) -> bool {
        self.by_data.is_empty()
    }
}

pub(super) fn load_cuts(conn: &Connection) -> rusqlite::Result<Cuts> {
    let mut statement = conn.prepare_cached("SELECT data, sequence, first, beyond, ino, since FROM cuts")?;
    cuts_of(statement.query([])?)
}

/// The cuts of one data id.
pub(super) fn load_cuts_of(conn: &Connection, data: DataId) -> rusqlite::Result<Cuts> {
    let sql = "SELECT data, sequence, first, beyond, ino, since FROM cuts WHERE data = ?1";
    let mut statement = conn.prepare_cached(sql)?;
    cuts_of(statement.query([int(data.0)])?)
}

fn cuts_of(mut rows: rusqlite::Rows<'_>) -> rusqlite::Result<Cuts> {
    let mut cuts = Cuts::default();
    while let Some(row) = rows.next()? {
        cuts.insert(CutRow {
            data: DataId(number(row, 0)?),
            sequence: number(row, 1)?,
            from: ChunkNo(number(row, 2)?),
            to: ChunkNo(number(row, 3)?),
            ino: Ino(number(row, 4)?),
            since: Generation(number(row, 5)?),
        });
    }
    Ok(cuts)
}

/// An extent without what it is looked up by.
struct Stored {
    key: BlockKey,
    sequence: u64,
    since: Generation,
}

fn get(conn: &Connection, data: DataId, chunk: ChunkNo) -> rusqlite::Result<Option<Stored>> {
    let mut statement = conn.prepare_cached(GET)?;
    let mut rows = statement.query([int(data.0), int(chunk.0)])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Stored { key: BlockKey(row.get(0)?), sequence: number(row, 1)?, since: Generation(number(row, 2)?) }))
}

/// Extent rows of a range with a sequence below `below`, at most `max` of them, hidden ones included.
pub(super) fn range(
    conn: &Connection,
    data: DataId,
    (from, to): (ChunkNo, ChunkNo),
    below: u64,
    max: usize,
) -> rusqlite::Result<Vec<ExtentRow>> {
    let mut statement = conn.prepare_cached(RANGE)?;
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let to = to.min(CHUNK_END);
    let mut rows = statement.query(params![int(data.0), int(from.0), int(to.0), int(below), max])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(ExtentRow {
            data,
            chunk: ChunkNo(number(row, 0)?),
            key: BlockKey(row.get(1)?),
            sequence: number(row, 2)?,
            since: Generation(number(row, 3)?),
        });
    }
    Ok(out)
}

pub(super) fn put(conn: &Connection, row: &ExtentRow, history: bool, cuts: &Cuts) -> rusqlite::Result<usize> {
    if history && let Some(old) = get(conn, row.data, row.chunk)? {
        let until = cuts.hidden(row.data, row.chunk, old.sequence).unwrap_or(row.since);
        keep(conn, row.data, (row.chunk, ChunkNo(row.chunk.0 + 1)), ANY_SEQUENCE, until)?;
    }
    conn.prepare_cached(PUT)?.execute(params![
        int(row.data.0),
        int(row.chunk.0),
        row.key.0,
        int(row.sequence),
        int(row.since.0)
    ])
}

fn keep(
    conn: &Connection,
    data: DataId,
    (from, to): (ChunkNo, ChunkNo),
    below: u64,
    until: Generation,
) -> rusqlite::Result<usize> {
    conn.prepare_cached(KEEP)?.execute([int(data.0), int(from.0), int(to.0), int(below), int(until.0)])
}

pub(super) fn delete(
    conn: &Connection,
    data: DataId,
    from: ChunkNo,
    to: ChunkNo,
    below: u64,
    at: Generation,
    history: bool,
) -> rusqlite::Result<usize> {
    if history {
        keep(conn, data, (from, to), below, at)?;
    }
    conn.prepare_cached(DELETE)?.execute([int(data.0), int(from.0), int(to.0), int(below)])
}

pub(super) fn put_cut(conn: &Connection, row: &CutRow) -> rusqlite::Result<usize> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO cuts (data, sequence, first, beyond, ino, since) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute([
        int(row.data.0),
        int(row.sequence),
        int(row.from.0),
        int(row.to.0),
        int(row.ino.0),
        int(row.since.0),
    ])
}

pub(super) fn delete_cut(conn: &Connection, data: DataId, sequence: u64) -> rusqlite::Result<usize> {
    conn.prepare_cached("DELETE FROM cuts WHERE data = ?1 AND sequence = ?2")?.execute([int(data.0), int(sequence)])
}

pub(super) fn put_link(conn: &Connection, row: &RangeLinkRow) -> rusqlite::Result<usize> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO range_links (data, chunk, chunks, source, source_chunk, source_generation, since) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute([
        int(row.data.0),
        int(row.chunk.0),
        int(row.count),
        int(row.source.0),
        int(row.source_chunk.0),
        int(row.source_generation.0),
        int(row.since.0),
    ])
}

pub(super) fn delete_link(conn: &Connection, data: DataId, chunk: ChunkNo) -> rusqlite::Result<usize> {
    conn.prepare_cached("DELETE FROM range_links WHERE data = ?1 AND chunk = ?2")?.execute([int(data.0), int(chunk.0)])
}

impl Txn<'_> {
    /// Blocks of chunks `from..to` of a data id, in order; chunks not among them are holes.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn extents(&mut self, data: DataId, from: ChunkNo, to: ChunkNo) -> Result<Vec<(ChunkNo, BlockKey)>> {
        let core = &*self.core;
        let rows = range(&core.conn, data, (from, to), ANY_SEQUENCE, usize::MAX).at(&core.path)?;
        let visible = |row: &ExtentRow| core.cuts.hidden(data, row.chunk, row.sequence).is_none();
        Ok(rows.into_iter().filter(visible).map(|row| (row.chunk, row.key)).collect())
    }

    /// The block of one chunk; `None` is a hole.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn extent(&mut self, data: DataId, chunk: ChunkNo) -> Result<Option<BlockKey>> {
        let core = &*self.core;
        let stored = get(&core.conn, data, chunk).at(&core.path)?;
        Ok(stored.filter(|old| core.cuts.hidden(data, chunk, old.sequence).is_none()).map(|old| old.key))
    }

    /// The reference that the extent of `place` held moves to its former row if that is kept, else it is given back.
    pub(super) fn release(&mut self, place: Place, key: &BlockKey, since: Generation, until: Generation) {
        if !(self.core.history && since < until) {
            let id = block_of(self.core, key);
            self.core.refs.push(RefChange { id, change: -1, place });
        }
    }

    /// Put blocks (`None`: holes) into chunks of a regular file. The blocks must be there; unreferenced ones are
    /// revived. Inline content of the file is dropped: the caller writes it as chunk 0. No version step: a
    /// [`Txn::set_file`] follows.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::InvalidArgument`] (not a regular file), [`Error::FileTooBig`],
    /// [`Error::Refused`] if a block is unknown or condemned: store its chunk again.
    pub fn put_extents(&mut self, ino: Ino, chunks: &[(ChunkNo, Option<BlockKey>)]) -> Result<()> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        if row.kind != FileKind::File {
            return Err(Error::InvalidArgument("not a regular file"));
        }
        let (data, chunk_bits, inline) = (row.data, row.chunk_bits, row.inline.is_some());
        let mut rows_gained = 0i64;
        for (chunk, key) in chunks {
            if chunk.0 >= (FILE_SIZE_MAX >> chunk_bits) {
                return Err(Error::FileTooBig);
            }
            rows_gained += self.put_extent(data, *chunk, key.as_ref())?;
        }
        if rows_gained != 0 || inline {
            self.amend(ino, |row| {
                row.inline = None;
                row.allocated = row.allocated.wrapping_add_signed(rows_gained << chunk_bits);
            })?;
        }
        Ok(())
    }

    /// How many of the chunks `from..to` are no holes, at most.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn rows_in(&mut self, data: DataId, from: ChunkNo, to: ChunkNo) -> Result<u64> {
        let extents = self.extents(data, from, to)?.len() as u64;
        Ok(extents + self.core.patched.range(data, from, to).count() as u64)
    }

    /// True if there is an extent row of a chunk, though it may be cut off.
    pub(super) fn has_extent_row(&mut self, data: DataId, chunk: ChunkNo) -> Result<bool> {
        Ok(get(&self.core.conn, data, chunk).at(&self.core.path)?.is_some())
    }

    /// Put or drop one extent, with the patches over it. Returns by how many the chunks of the data id that have rows
    /// grew: -1, 0 or 1.
    fn put_extent(&mut self, data: DataId, chunk: ChunkNo, key: Option<&BlockKey>) -> Result<i64> {
        let alone = self.end_patches(data, chunk, ChunkNo(chunk.0 + 1))?;
        Ok(self.put_extent_row(data, chunk, key)? - alone as i64)
    }

    fn put_extent_row(&mut self, data: DataId, chunk: ChunkNo, key: Option<&BlockKey>) -> Result<i64> {
        let core = &*self.core;
        let since = core.generation();
        let old = get(&core.conn, data, chunk).at(&core.path)?;
        let hidden = old.as_ref().and_then(|old| core.cuts.hidden(data, chunk, old.sequence));
        let had_row = i64::from(old.is_some());
        if let (Some(old), Some(key)) = (&old, key)
            && old.key == *key
            && hidden.is_none()
        {
            return Ok(0);
        }
        if let Some(old) = &old {
            self.release((data, chunk), &old.key, old.since, hidden.unwrap_or(since));
        }
        match key {
            Some(key) => {
                let id = block_of(self.core, key);
                self.refer_to(&id, (data, chunk))?;
                let sequence = self.core.counters.cuts;
                self.core.apply(RowChange::PutExtent(ExtentRow { data, chunk, key: *key, sequence, since }))?;
                Ok(1 - had_row)
            }
            None if old.is_some() => {
                let (from, to, at) = (chunk, ChunkNo(chunk.0 + 1), hidden.unwrap_or(since));
                self.core.apply(RowChange::DelExtents { data, from, to, below: ANY_SEQUENCE, at })?;
                Ok(-1)
            }
            None => Ok(0),
        }
    }

    /// Chunks `first..first + count` of a file become holes. No version step: a [`Txn::set_file`] follows.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::InvalidArgument`] (not a regular file).
    pub fn punch(&mut self, ino: Ino, first: ChunkNo, count: u64) -> Result<()> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        if row.kind != FileKind::File {
            return Err(Error::InvalidArgument("not a regular file"));
        }
        let to = ChunkNo(first.0.saturating_add(count)).min(CHUNK_END);
        if first >= to {
            return Ok(());
        }
        if first.0 == 0 && row.inline.is_some() {
            self.amend(ino, |row| row.inline = None)?;
        }
        self.cut_extents(ino, first, to)
    }

    /// Few extents are deleted, many are cut off: either way they read as holes from now on.
    pub(super) fn cut_extents(&mut self, ino: Ino, from: ChunkNo, to: ChunkNo) -> Result<()> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let (data, chunk_bits) = (row.data, row.chunk_bits);
        if row.allocated == 0 {
            return Ok(());
        }
        let alone = self.end_patches(data, from, to)?;
        if alone != 0 {
            self.amend(ino, |row| row.allocated = row.allocated.saturating_sub(alone << chunk_bits))?;
        }
        let core = &mut *self.core;
        let at = core.generation();
        let rows = range(&core.conn, data, (from, to), ANY_SEQUENCE, core.cut_at_once + 1).at(&core.path)?;
        if rows.is_empty() {
            return Ok(());
        }
        if rows.len() > core.cut_at_once || core.cuts.pending(data) {
            core.counters.cuts += 1;
            let sequence = core.counters.cuts;
            core.apply(RowChange::PutCut(CutRow { data, sequence, from, to, ino, since: at }))?;
            return Ok(());
        }
        for row in &rows {
            self.release((data, row.chunk), &row.key, row.since, at);
        }
        self.core.apply(RowChange::DelExtents { data, from, to, below: ANY_SEQUENCE, at })?;
        self.amend(ino, |row| row.allocated = row.allocated.saturating_sub((rows.len() as u64) << chunk_bits))
    }

    /// Delete up to `max` extents that were cut off. True: call again, there may be more.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn retire_step(&mut self, max: usize) -> Result<bool> {
        let max = max.max(1);
        let core = &mut *self.core;
        let Some(cut) = core.cuts.next() else { return Ok(false) };
        let rows = range(&core.conn, cut.data, (cut.from, cut.to), cut.sequence, max).at(&core.path)?;
        for row in &rows {
            self.release((cut.data, row.chunk), &row.key, row.since, cut.since);
        }
        if let (Some(first), Some(last)) = (rows.first(), rows.last()) {
            let to = ChunkNo(last.chunk.0 + 1);
            let (data, from, below, at) = (cut.data, first.chunk, cut.sequence, cut.since);
            self.core.apply(RowChange::DelExtents { data, from, to, below, at })?;
            if let Some(inode) = self.core.inode(cut.ino)?
                && inode.data == cut.data
            {
                let bits = inode.chunk_bits;
                // What was written since as a patch keeps its chunk allocated.
                let patched = |row: &&ExtentRow| self.core.patched.get(row.data, row.chunk).is_none();
                let gone = rows.iter().filter(patched).count() as u64;
                self.allocate(cut.ino, |allocated| allocated.saturating_sub(gone << bits))?;
            }
        }
        if rows.len() < max {
            self.core.apply(RowChange::DelCut { data: cut.data, sequence: cut.sequence })?;
        }
        Ok(!self.core.cuts.is_empty())
    }

    /// The first chunk at or after `from` that is no hole.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn seek_data(&mut self, data: DataId, from: ChunkNo) -> Result<Option<ChunkNo>> {
        let patched = self.core.patched.range(data, from, CHUNK_END).next().map(|(chunk, _)| chunk);
        let extent = self.seek_extent(data, from)?;
        Ok([patched, extent].into_iter().flatten().min())
    }

    fn seek_extent(&mut self, data: DataId, from: ChunkNo) -> Result<Option<ChunkNo>> {
        let mut at = from;
        loop {
            let Some(row) = self.page(data, at)?.into_iter().next() else { return Ok(None) };
            match row {
                Seen::Visible(chunk) => return Ok(Some(chunk)),
                Seen::HiddenUpTo(chunk) => at = ChunkNo(chunk.0 + 1),
            }
        }
    }

    /// The first chunk at or after `from` that is a hole; one past the last extent is.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn seek_hole(&mut self, data: DataId, from: ChunkNo) -> Result<ChunkNo> {
        let mut at = self.seek_no_extent(data, from)?;
        while self.core.patched.get(data, at).is_some() {
            at = self.seek_no_extent(data, ChunkNo(at.0 + 1))?;
        }
        Ok(at)
    }

    fn seek_no_extent(&mut self, data: DataId, from: ChunkNo) -> Result<ChunkNo> {
        let mut at = from;
        loop {
            let page = self.page(data, at)?;
            if page.is_empty() {
                return Ok(at);
            }
            for seen in page {
                match seen {
                    Seen::Visible(chunk) if chunk == at => at = ChunkNo(at.0 + 1),
                    _ => return Ok(at),
                }
            }
        }
    }

    /// Up to some hundred extents from `from` on; runs of hidden ones are one item, and end a page when they lead it.
    fn page(&mut self, data: DataId, from: ChunkNo) -> Result<Vec<Seen>> {
        let core = &*self.core;
        let rows = range(&core.conn, data, (from, CHUNK_END), ANY_SEQUENCE, 512).at(&core.path)?;
        let mut out: Vec<Seen> = Vec::new();
        for row in rows {
            let hidden = core.cuts.hidden(data, row.chunk, row.sequence).is_some();
            match (out.last_mut(), hidden) {
                (Some(Seen::HiddenUpTo(last)), true) => *last = row.chunk,
                (_, true) => out.push(Seen::HiddenUpTo(row.chunk)),
                (_, false) => out.push(Seen::Visible(row.chunk)),
            }
        }
        // A hidden run that leads is skipped by its end; what follows it is read again with the next page.
        if let [Seen::HiddenUpTo(_), ..] = out[..] {
            out.truncate(1);
        }
        Ok(out)
    }
}

enum Seen {
    Visible(ChunkNo),
    HiddenUpTo(ChunkNo),
}
