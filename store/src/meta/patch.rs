//! Patches: small writes that stand in the commit log until they are folded into a block (R7).
//!
//! The patches of a chunk are laid over its extent, or over zeros, by ascending sequence. Which chunks have any is held
//! in memory, so that reading a file without patches costs nothing more.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use rusqlite::{Connection, params};

use super::changes::RowChange;
use super::rows::*;
use super::schema::patch_columns;
use super::sql::{At, blob, int, number};
use super::txn::Txn;
use crate::error::{Error, Result};
use crate::ids::{BlockKey, ChunkNo, DataId, Generation, Ino};

/// Above every sequence number.
const ANY_SEQUENCE: u64 = i64::MAX as u64;

const PUT: &str =
    "INSERT OR REPLACE INTO patches (data, chunk, sequence, ino, at, since) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const PUT_PAST: &str = "INSERT INTO patches_past (data, chunk, sequence, ino, at, since, until) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const PUT_BYTES: &str = "INSERT OR REPLACE INTO patch_bytes (sequence, bytes) VALUES (?1, ?2)";
const RANGE: &str = concat!(
    "SELECT ",
    patch_columns!("patches"),
    " FROM patches WHERE data = ?1 AND chunk >= ?2 AND chunk < ?3 ORDER BY chunk, sequence"
);
const RANGE_AT: &str = concat!(
    "SELECT ",
    patch_columns!("patches"),
    " FROM patches WHERE data = ?1 AND chunk >= ?2 AND chunk < ?3 AND since <= ?4 UNION ALL SELECT ",
    patch_columns!("patches_past"),
    " FROM patches_past WHERE data = ?1 AND chunk >= ?2 AND chunk < ?3 AND since <= ?4 AND until > ?4 ORDER BY 2, 3"
);
const KEEP: &str = "INSERT INTO patches_past (data, chunk, sequence, ino, at, since, until) \
    SELECT data, chunk, sequence, ino, at, since, ?5 FROM patches \
    WHERE data = ?1 AND chunk >= ?2 AND chunk < ?3 AND sequence <= ?4 AND since < ?5";
/// Bytes of what is not kept: `?5` is the first generation whose patches are not.
const DELETE_BYTES: &str = "DELETE FROM patch_bytes WHERE sequence IN (SELECT sequence FROM patches \
    WHERE data = ?1 AND chunk >= ?2 AND chunk < ?3 AND sequence <= ?4 AND since >= ?5)";
const DELETE: &str = "DELETE FROM patches WHERE data = ?1 AND chunk >= ?2 AND chunk < ?3 AND sequence <= ?4";

/// A small write: which chunk, at which offset in it, and the bytes.
pub type Patch<'a> = (ChunkNo, u32, &'a [u8]);

/// The patches of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkPatches {
    /// Whose they are.
    pub ino: Ino,
    /// How many.
    pub rows: u32,
    /// Their length together, bytes.
    pub bytes: u64,
    /// The highest sequence.
    pub last: u64,
    /// When the last came, or the database was opened.
    pub touched: Instant,
    /// They are as long as the chunk, which takes no more: not known of those that were there when the database was read.
    pub full: bool,
}

/// Which chunks have patches.
#[derive(Default)]
pub(super) struct Patched {
    by_data: HashMap<DataId, BTreeMap<ChunkNo, ChunkPatches>>,
    /// Of all patches, bytes.
    bytes: u64,
}

impl Patched {
    pub fn get(&self, data: DataId, chunk: ChunkNo) -> Option<&ChunkPatches> {
        self.by_data.get(&data)?.get(&chunk)
    }

    /// Chunks of a range that have patches, ascending.
    pub fn range(&self, data: DataId, from: ChunkNo, to: ChunkNo) -> impl Iterator<Item = (ChunkNo, &ChunkPatches)> {
        let range = from..to.max(from);
        self.by_data.get(&data).into_iter().flat_map(move |chunks| chunks.range(range.clone()).map(|(c, p)| (*c, p)))
    }

    pub fn insert(&mut self, row: &PatchRow) {
        let fresh = ChunkPatches { ino: row.ino, rows: 0, bytes: 0, last: 0, touched: Instant::now(), full: false };
        let chunk = self.by_data.entry(row.data).or_default().entry(row.chunk).or_insert(fresh);
        // Replay may bring one that is there already.
        if row.sequence > chunk.last {
            chunk.rows += 1;
            chunk.bytes += row.bytes.len() as u64;
            chunk.last = row.sequence;
            chunk.touched = Instant::now();
            self.bytes += row.bytes.len() as u64;
        }
    }

    /// Chunks of this file have so many bytes.
    fn note_full(&mut self, data: DataId, chunk: ChunkNo, chunk_len: u64) {
        if let Some(patches) = self.by_data.get_mut(&data).and_then(|chunks| chunks.get_mut(&chunk)) {
            patches.full = patches.bytes >= chunk_len;
        }
    }

    /// Patches of a range up to a sequence are gone. Of a chunk that keeps some the figures stay as they were.
    pub fn remove(&mut self, data: DataId, from: ChunkNo, to: ChunkNo, through: u64) {
        let Some(chunks) = self.by_data.get_mut(&data) else { return };
        let gone: Vec<ChunkNo> =
            chunks.range(from..to.max(from)).filter(|(_, patches)| patches.last <= through).map(|(c, _)| *c).collect();
        for chunk in gone {
            self.bytes -= chunks.remove(&chunk).map_or(0, |patches| patches.bytes);
        }
        if chunks.is_empty() {
            self.by_data.remove(&data);
        }
    }
}

pub(super) fn load(conn: &Connection) -> rusqlite::Result<Patched> {
    let sql = "SELECT data, chunk, max(ino), count(*), coalesce(sum(length(bytes)), 0), max(sequence) FROM patches \
        LEFT JOIN patch_bytes USING (sequence) GROUP BY data, chunk";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut patched = Patched::default();
    while let Some(row) = rows.next()? {
        let patches = ChunkPatches {
            ino: Ino(number(row, 2)?),
            rows: row.get(3)?,
            bytes: number(row, 4)?,
            last: number(row, 5)?,
            touched: Instant::now(),
            full: false,
        };
        patched.bytes += patches.bytes;
        patched.by_data.entry(DataId(number(row, 0)?)).or_default().insert(ChunkNo(number(row, 1)?), patches);
    }
    Ok(patched)
}

/// A row of the columns data, chunk, sequence, ino, at, bytes, since.
pub(super) fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<PatchRow> {
    Ok(PatchRow {
        data: DataId(number(row, 0)?),
        chunk: ChunkNo(number(row, 1)?),
        sequence: number(row, 2)?,
        ino: Ino(number(row, 3)?),
        offset: row.get(4)?,
        bytes: blob(row, 5)?,
        since: Generation(number(row, 6)?),
    })
}

pub(super) fn put(conn: &Connection, row: &PatchRow) -> rusqlite::Result<usize> {
    conn.prepare_cached(PUT_BYTES)?.execute(params![int(row.sequence), &*row.bytes])?;
    conn.prepare_cached(PUT)?.execute(params![
        int(row.data.0),
        int(row.chunk.0),
        int(row.sequence),
        int(row.ino.0),
        row.offset,
        int(row.since.0)
    ])
}

/// Put one that ended.
pub(super) fn put_past(conn: &Connection, row: &PatchRow, until: Generation) -> rusqlite::Result<usize> {
    conn.prepare_cached(PUT_BYTES)?.execute(params![int(row.sequence), &*row.bytes])?;
    conn.prepare_cached(PUT_PAST)?.execute(params![
        int(row.data.0),
        int(row.chunk.0),
        int(row.sequence),
        int(row.ino.0),
        row.offset,
        int(row.since.0),
        int(until.0)
    ])
}

/// Forget one that ended.
pub(super) fn delete_past(conn: &Connection, data: DataId, chunk: ChunkNo, sequence: u64) -> rusqlite::Result<usize> {
    let sql = "DELETE FROM patches_past WHERE data = ?1 AND chunk = ?2 AND sequence = ?3";
    let rows = conn.prepare_cached(sql)?.execute([int(data.0), int(chunk.0), int(sequence)])?;
    if rows > 0 {
        conn.prepare_cached("DELETE FROM patch_bytes WHERE sequence = ?1")?.execute([int(sequence)])?;
    }
    Ok(rows)
}

pub(super) fn delete(
    conn: &Connection,
    data: DataId,
    (from, to): (ChunkNo, ChunkNo),
    through: u64,
    at: Generation,
    history: bool,
) -> rusqlite::Result<usize> {
    let range = [int(data.0), int(from.0), int(to.min(CHUNK_END).0), int(through)];
    let [data, from, to, through] = range;
    if history {
        conn.prepare_cached(KEEP)?.execute([data, from, to, through, int(at.0)])?;
    }
    let not_kept = if history { at } else { Generation(0) };
    conn.prepare_cached(DELETE_BYTES)?.execute([data, from, to, through, int(not_kept.0)])?;
    conn.prepare_cached(DELETE)?.execute(range)
}

/// Patches of a range of chunks, in the order they apply.
fn range(conn: &Connection, data: DataId, from: ChunkNo, to: ChunkNo) -> rusqlite::Result<Vec<PatchRow>> {
    let mut statement = conn.prepare_cached(RANGE)?;
    let rows = statement.query_map([int(data.0), int(from.0), int(to.min(CHUNK_END).0)], from_row)?;
    rows.collect()
}

/// Patches of a range of chunks as of the end of a committed generation, in the order they apply.
pub(super) fn range_at(
    conn: &Connection,
    data: DataId,
    generation: Generation,
    from: ChunkNo,
    to: ChunkNo,
) -> rusqlite::Result<Vec<PatchRow>> {
    let mut statement = conn.prepare_cached(RANGE_AT)?;
    let range = [int(data.0), int(from.0), int(to.min(CHUNK_END).0), int(generation.0)];
    let rows = statement.query_map(range, from_row)?;
    rows.collect()
}

/// A chunk whose patches are to be folded, and what its content was made from.
#[derive(Clone, Copy, Debug)]
pub struct Fold {
    /// The file.
    pub ino: Ino,
    /// Its data id.
    pub data: DataId,
    /// The chunk.
    pub chunk: ChunkNo,
    /// The block under the patches; `None`: a hole.
    pub under: Option<BlockKey>,
    /// The highest sequence that was laid over it.
    pub last: u64,
}

impl Txn<'_> {
    /// Patches of chunks `from..to`, in the order they apply.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn patches(&mut self, data: DataId, from: ChunkNo, to: ChunkNo) -> Result<Vec<PatchRow>> {
        if self.core.patched.range(data, from, to).next().is_none() {
            return Ok(Vec::new());
        }
        range(&self.core.conn, data, from, to).at(&self.core.path)
    }

    /// Patches of chunks `from..to` as of the end of a committed generation, in the order they apply. With
    /// [`Txn::extents_at`] of the same generation they are what the chunks held.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn patches_at(
        &mut self,
        data: DataId,
        generation: Generation,
        from: ChunkNo,
        to: ChunkNo,
    ) -> Result<Vec<PatchRow>> {
        range_at(&self.core.conn, data, generation, from, to).at(&self.core.path)
    }

    /// What stands over a chunk.
    pub fn chunk_patches(&self, data: DataId, chunk: ChunkNo) -> Option<ChunkPatches> {
        self.core.patched.get(data, chunk).copied()
    }

    /// Length of all patches together, bytes.
    pub fn patch_bytes(&self) -> u64 {
        self.core.patched.bytes
    }

    /// Chunks with patches for which `wanted` holds, at most `max`.
    pub fn patched_chunks(
        &self,
        max: usize,
        wanted: impl Fn(&(DataId, ChunkNo), &ChunkPatches) -> bool,
    ) -> Vec<(DataId, ChunkNo)> {
        let all = self.core.patched.by_data.iter();
        let all = all.flat_map(|(data, chunks)| chunks.iter().map(|(chunk, patches)| ((*data, *chunk), patches)));
        all.filter(|(at, patches)| wanted(at, patches)).map(|(at, _)| at).take(max).collect()
    }

    /// Put small writes over chunks of a regular file. Inline content of the file is dropped: the caller writes it, too.
    /// No version step: a [`Txn::set_file`] follows.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::InvalidArgument`] (not a regular file, or past the end of the chunk),
    /// [`Error::FileTooBig`].
    pub fn put_patches(&mut self, ino: Ino, patches: &[Patch<'_>]) -> Result<()> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        if row.kind != FileKind::File {
            return Err(Error::InvalidArgument("not a regular file"));
        }
        let (data, chunk_bits, inline) = (row.data, row.chunk_bits, row.inline.is_some());
        let mut gained = 0u64;
        for (chunk, offset, bytes) in patches {
            if chunk.0 >= (FILE_SIZE_MAX >> chunk_bits) {
                return Err(Error::FileTooBig);
            }
            if *offset as usize + bytes.len() > 1 << chunk_bits {
                return Err(Error::InvalidArgument("a patch that reaches past its chunk"));
            }
            gained += u64::from(!self.has_row(data, *chunk)?);
            self.core.counters.cuts += 1;
            let (sequence, since) = (self.core.counters.cuts, self.core.generation());
            let (offset, bytes) = (*offset, Box::from(*bytes));
            let patch = PatchRow { data, chunk: *chunk, sequence, ino, offset, bytes, since };
            self.core.apply(RowChange::PutPatch(patch))?;
            self.core.patched.note_full(data, *chunk, 1 << chunk_bits);
        }
        if gained != 0 || inline {
            self.amend(ino, |row| {
                row.inline = None;
                row.allocated += gained << chunk_bits;
            })?;
        }
        Ok(())
    }

    /// True if a chunk has an extent row or patches: then it counts as allocated.
    pub(super) fn has_row(&mut self, data: DataId, chunk: ChunkNo) -> Result<bool> {
        Ok(self.core.patched.get(data, chunk).is_some() || self.has_extent_row(data, chunk)?)
    }

    /// The patches of chunks `from..to` end. Returns of how many chunks they were all there was.
    pub(super) fn end_patches(&mut self, data: DataId, from: ChunkNo, to: ChunkNo) -> Result<u64> {
        let chunks: Vec<ChunkNo> = self.core.patched.range(data, from, to).map(|(chunk, _)| chunk).collect();
        if chunks.is_empty() {
            return Ok(0);
        }
        let mut alone = 0;
        for chunk in chunks {
            alone += u64::from(!self.has_extent_row(data, chunk)?);
        }
        let at = self.core.generation();
        self.core.apply(RowChange::DelPatches { data, from, to, through: ANY_SEQUENCE, at })?;
        Ok(alone)
    }

    /// Put the block made of a chunk and its patches in their place, unless either changed meanwhile: `false`. No version
    /// step: the content is the same.
    ///
    /// # Errors
    /// As [`Txn::put_extents`].
    pub fn fold(&mut self, fold: &Fold, key: Option<BlockKey>) -> Result<bool> {
        let lives = self.core.inode(fold.ino)?.is_some_and(|row| row.data == fold.data);
        let last = self.core.patched.get(fold.data, fold.chunk).map(|patches| patches.last);
        if !lives || last != Some(fold.last) || self.extent(fold.data, fold.chunk)? != fold.under {
            return Ok(false);
        }
        self.put_extents(fold.ino, &[(fold.chunk, key)])?;
        Ok(true)
    }
}

/// Lay patches over a chunk's content, in the order given.
pub fn lay<'a>(content: &mut Vec<u8>, patches: impl IntoIterator<Item = &'a PatchRow>) {
    for patch in patches {
        let (start, end) = (patch.offset as usize, patch.offset as usize + patch.bytes.len());
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(&patch.bytes);
    }
}
