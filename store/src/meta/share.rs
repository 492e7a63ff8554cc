//! Chunks of one file that become another's too: what copy_file_range(2) does here instead of moving data.
//!
//! Extents are copied at once, some microseconds each, and the caller bounds how many; a copy then depends on its source
//! in nothing. (Links resolved on look-up would make a copy of any length one row, and every look-up, cut and kept state
//! of either file depend on the other.)

use rusqlite::params;

use super::changes::RowChange;
use super::extent::{ANY_SEQUENCE, PUT, range};
use super::patch::Patch;
use super::rows::*;
use super::sql::{At, int};
use super::txn::{RefChange, Txn, block_of};
use crate::error::{Error, Result};
use crate::ids::{ChunkNo, Ino};

impl Txn<'_> {
    /// Chunks `from..from + count` of one file become those at `to` of another (or, without overlap, of the same), holes
    /// as holes. No version step: a [`Txn::set_file`] follows. Inline content of the target is dropped.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::FileTooBig`], [`Error::InvalidArgument`] (not two regular files of one chunk length, a
    /// source whose content is inline, overlapping ranges).
    pub fn share_extents(
        &mut self,
        (source, from): (Ino, ChunkNo),
        (target, to): (Ino, ChunkNo),
        count: u64,
    ) -> Result<()> {
        let (one, two) = (self.inode(source)?, self.inode(target)?);
        if one.kind != FileKind::File || two.kind != FileKind::File || one.chunk_bits != two.chunk_bits {
            return Err(Error::InvalidArgument("chunks are shared between regular files of one chunk length"));
        }
        if one.inline.is_some() {
            return Err(Error::InvalidArgument("inline content has no chunks to share"));
        }
        let past = to.0.checked_add(count).filter(|past| *past <= (FILE_SIZE_MAX >> two.chunk_bits) + 1);
        let past = ChunkNo(past.ok_or(Error::FileTooBig)?);
        let from_past = ChunkNo(from.0.checked_add(count).ok_or(Error::FileTooBig)?);
        if source == target && from < past && to < from_past {
            return Err(Error::InvalidArgument("a range cannot be copied onto itself"));
        }
        let replaced = self.clear(&two, to, past)?;
        let copied = self.put_shared(&one, (from, from_past), &two, to)?;
        let patches = self.patches(one.data, from, from_past)?;
        self.amend(target, |row| {
            row.inline = None;
            let bytes = |rows: u64| rows << row.chunk_bits;
            row.allocated = row.allocated.saturating_sub(bytes(replaced)) + bytes(copied);
        })?;
        let patches: Vec<Patch<'_>> = patches
            .iter()
            .map(|patch| (ChunkNo(to.0 + (patch.chunk.0 - from.0)), patch.offset, &*patch.bytes))
            .collect();
        if patches.is_empty() { Ok(()) } else { self.put_patches(target, &patches) }
    }

    /// Delete the rows of a range at once, those that were cut off too, and its patches. Returns how many chunks had any.
    fn clear(&mut self, file: &InodeRow, from: ChunkNo, past: ChunkNo) -> Result<u64> {
        let now = self.generation();
        let alone = self.end_patches(file.data, from, past)?;
        let core = &*self.core;
        let rows = range(&core.conn, file.data, (from, past), ANY_SEQUENCE, usize::MAX).at(&core.path)?;
        let ended: Vec<_> =
            rows.iter().map(|row| core.cuts.hidden(row.data, row.chunk, row.sequence).unwrap_or(now)).collect();
        for (row, until) in rows.iter().zip(&ended) {
            self.release((file.data, row.chunk), &row.key, row.since, *until);
        }
        // One change for each run of rows that ended together, so that history has the generation right.
        let mut start = 0;
        while start < rows.len() {
            let run = ended[start..].iter().take_while(|until| **until == ended[start]).count();
            let (first, last) = (rows[start].chunk, rows[start + run - 1].chunk);
            let (data, to, at) = (file.data, ChunkNo(last.0 + 1), ended[start]);
            self.core.apply(RowChange::DelExtents { data, from: first, to, below: ANY_SEQUENCE, at })?;
            start += run;
        }
        Ok(rows.len() as u64 + alone)
    }

    /// The target's range is clear. Returns the number of rows put.
    fn put_shared(
        &mut self,
        source: &InodeRow,
        (from, past): (ChunkNo, ChunkNo),
        target: &InodeRow,
        to: ChunkNo,
    ) -> Result<u64> {
        self.core.before_write()?;
        let core = &*self.core;
        let (sequence, since) = (core.counters.cuts, core.generation());
        let rows: Vec<ExtentRow> = range(&core.conn, source.data, (from, past), ANY_SEQUENCE, usize::MAX)
            .at(&core.path)?
            .into_iter()
            .filter(|row| core.cuts.hidden(row.data, row.chunk, row.sequence).is_none())
            .map(|row| {
                let chunk = ChunkNo(to.0 + (row.chunk.0 - from.0));
                ExtentRow { data: target.data, chunk, key: row.key, sequence, since }
            })
            .collect();
        let mut put = core.conn.prepare_cached(PUT).at(&core.path)?;
        for row in &rows {
            let (data, chunk) = (int(row.data.0), int(row.chunk.0));
            put.execute(params![data, chunk, row.key.0, int(sequence), int(since.0)]).at(&core.path)?;
        }
        drop(put);
        let copied = rows.len() as u64;
        for row in rows {
            // The source refers to the block, so it lives.
            let id = block_of(self.core, &row.key);
            self.core.refs.push(RefChange { id, change: 1, place: (row.data, row.chunk) });
            self.core.note(RowChange::PutExtent(row));
        }
        Ok(copied)
    }
}
