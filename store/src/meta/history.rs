//! Former rows, kept while history is on, each with the generations between which it was true.
//!
//! History follows from the changes themselves: what replaces or deletes a row of an earlier generation keeps it (the
//! `KEEP` statements beside each table), so live operation and replay keep the same. A row that came and went inside
//! one generation leaves none. A kept extent holds the reference to its block until it is forgotten here.
//!
//! The schema holds that a former row is never changed, never kept twice, and never forgotten while a snapshot needs it;
//! what breaks that fails, and with it the whole operation.

use rusqlite::{Connection, params};

use super::changes::{Past, PastKey, RowChange};
use super::kept_below::Needed;
use super::rows::*;
use super::schema::inode_columns;
use super::sql::{At, blob, int, number};
use super::txn::{RefChange, Txn, block_of};
use super::{inode, past, patch};
use crate::error::{Error, Result};
use crate::ids::{BlockKey, ChunkNo, DataId, Generation, Ino, Version};

/// Settings key: `[1]` while former rows are kept.
pub(super) const HISTORY_KEY: &[u8] = b"history";

pub(super) fn put(conn: &Connection, past: &Past, end: Generation) -> rusqlite::Result<usize> {
    let until = int(end.0);
    match past {
        Past::Inode(row) => {
            let mut statement = conn.prepare_cached(concat!(
                "INSERT INTO inodes_past (",
                inode_columns!(),
                ", until) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, \
                 ?19, ?20, ?21, ?22)"
            ))?;
            inode::bind(row, Some(end.0), |values| statement.execute(values))
        }
        Past::Dentry(row) => conn
            .prepare_cached(
                "INSERT INTO dentries_past (parent, hash, name, ino, kind, since, until) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                int(row.parent.0),
                int(row.hash),
                &*row.name,
                int(row.ino.0),
                row.kind as u8,
                int(row.since.0),
                until
            ]),
        Past::Extent(row) => conn
            .prepare_cached(
                "INSERT INTO extents_past (data, chunk, key, sequence, since, until) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![int(row.data.0), int(row.chunk.0), row.key.0, int(row.sequence), int(row.since.0), until]),
        Past::Xattr(row) => conn
            .prepare_cached("INSERT INTO xattrs_past (ino, name, value, since, until) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![int(row.ino.0), &*row.name, &*row.value, int(row.since.0), until]),
        Past::Patch(row) => patch::put_past(conn, row, end),
    }
}

pub(super) fn delete(conn: &Connection, key: &PastKey) -> rusqlite::Result<usize> {
    match key {
        PastKey::Inode(ino, version, since) => conn
            .prepare_cached("DELETE FROM inodes_past WHERE ino = ?1 AND version = ?2 AND since = ?3")?
            .execute([int(ino.0), int(version.0), int(since.0)]),
        PastKey::Dentry(parent, hash, name, since) => conn
            .prepare_cached("DELETE FROM dentries_past WHERE parent = ?1 AND hash = ?2 AND name = ?3 AND since = ?4")?
            .execute(params![int(parent.0), int(*hash), &**name, int(since.0)]),
        PastKey::Extent(data, chunk, since) => conn
            .prepare_cached("DELETE FROM extents_past WHERE data = ?1 AND chunk = ?2 AND since = ?3")?
            .execute([int(data.0), int(chunk.0), int(since.0)]),
        PastKey::Xattr(ino, name, since) => conn
            .prepare_cached("DELETE FROM xattrs_past WHERE ino = ?1 AND name = ?2 AND since = ?3")?
            .execute(params![int(ino.0), &**name, int(since.0)]),
        PastKey::Patch(data, chunk, sequence) => patch::delete_past(conn, *data, *chunk, *sequence),
    }
}

/// A row that may be forgotten: which, from when until when, and the block it refers to.
struct Candidate {
    key: PastKey,
    since: Generation,
    until: Generation,
    block: Option<BlockKey>,
}

/// What to read of each table: the key, and of extents the block.
const COLUMNS: [&str; 5] = [
    "since, until, ino, version FROM inodes_past",
    "since, until, parent, hash, name FROM dentries_past",
    "since, until, data, chunk, key FROM extents_past",
    "since, until, ino, name FROM xattrs_past",
    "since, until, data, chunk, sequence FROM patches_past",
];

/// Content before the inodes that tell whose it is.
const ORDER: [usize; 5] = [2, 4, 3, 1, 0];

/// A run of generations that are not readable as a whole any more, and how far its rows are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The whole one before it; 0 if there is none.
    pub after: Generation,
    /// The whole one behind it.
    pub until: Generation,
    table: usize,
    skipped: usize,
}

impl Gap {
    /// Between two generations that are kept whole.
    pub fn new(after: Generation, until: Generation) -> Self {
        Self { after, until, table: 0, skipped: 0 }
    }
}

fn candidates(conn: &Connection, table: usize, from: Generation, to: Generation) -> rusqlite::Result<Vec<Candidate>> {
    let sql = format!("SELECT {} WHERE until > ?1 AND until <= ?2 ORDER BY until", COLUMNS[table]);
    read_candidates(conn, table, &sql, &[int(from.0), int(to.0)])
}

/// Rows that began after `after` and ended with `until` at the latest, without the first `skip` of them.
fn between(
    conn: &Connection,
    table: usize,
    (after, until): (Generation, Generation),
    skip: usize,
    max: usize,
) -> rusqlite::Result<Vec<Candidate>> {
    let sql = format!(
        "SELECT {} WHERE until > ?1 AND until <= ?2 AND since > ?1 ORDER BY until LIMIT ?3 OFFSET ?4",
        COLUMNS[table]
    );
    read_candidates(conn, table, &sql, &[int(after.0), int(until.0), max as i64, skip as i64])
}

fn read_candidates(conn: &Connection, table: usize, sql: &str, values: &[i64]) -> rusqlite::Result<Vec<Candidate>> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        let (since, until) = (Generation(number(row, 0)?), Generation(number(row, 1)?));
        let owner = number(row, 2)?;
        let (key, block) = match table {
            0 => (PastKey::Inode(Ino(owner), Version(number(row, 3)?), since), None),
            1 => (PastKey::Dentry(Ino(owner), number(row, 3)?, blob(row, 4)?, since), None),
            2 => {
                let key = PastKey::Extent(DataId(owner), ChunkNo(number(row, 3)?), since);
                (key, Some(BlockKey(row.get(4)?)))
            }
            3 => (PastKey::Xattr(Ino(owner), blob(row, 3)?, since), None),
            _ => (PastKey::Patch(DataId(owner), ChunkNo(number(row, 3)?), number(row, 4)?), None),
        };
        out.push(Candidate { key, since, until, block });
    }
    Ok(out)
}

impl Txn<'_> {
    /// Keep former rows from now on, or no longer. Those kept so far stay until they are forgotten.
    ///
    /// # Errors
    /// [`Error::Refused`] if changes of the open generation are recorded already: commit first. Replay knows one
    /// setting a generation.
    pub fn set_history(&mut self, on: bool) -> Result<()> {
        if self.core.history != on {
            if !self.core.changes.is_empty() {
                return Err(Error::Refused("history can only be switched at the start of a generation".to_owned()));
            }
            self.put_shelf(Shelf::Settings, HISTORY_KEY, &[u8::from(on)])?;
        }
        Ok(())
    }

    /// Former rows are being kept.
    pub fn keeps_history(&self) -> bool {
        self.core.history
    }

    /// Forget former rows that ended after `from` and no later than `to`, unless they were true in a generation of
    /// `pinned` (ascending). Returns how many were forgotten. The caller chooses ranges small enough for one
    /// operation.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn forget_history(&mut self, from: Generation, to: Generation, pinned: &[Generation]) -> Result<usize> {
        let mut forgotten = 0;
        for table in 0..COLUMNS.len() {
            for candidate in candidates(&self.core.conn, table, from, to).at(&self.core.path)? {
                let first = pinned.partition_point(|generation| *generation < candidate.since);
                if pinned.get(first).is_some_and(|generation| *generation < candidate.until) {
                    continue;
                }
                self.give_back(&candidate);
                self.core.apply(RowChange::DelPast(candidate.key))?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// Forget former rows that were true only between `gap.after` and `gap.until`, both exclusive: that began after the
    /// one and ended with the other at the latest; but for what states kept for a directory need. Generations in between
    /// must not be readable any more as a whole. Looks at up to `max` rows and goes on from there when called again;
    /// true when all were looked at. Nobody else forgets rows meanwhile.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn forget_gap(&mut self, gap: &mut Gap, max: usize) -> Result<bool> {
        // What an operation that fails did is undone, and so is what it went on to.
        let mut at = *gap;
        let mut needed = Needed::between(&self.core.conn, gap.after, gap.until).at(&self.core.path)?;
        let mut left = max;
        while let Some(&table) = ORDER.get(at.table) {
            let found = between(&self.core.conn, table, (at.after, at.until), at.skipped, left).at(&self.core.path)?;
            let full = found.len() == left;
            left -= found.len();
            for candidate in found {
                let Candidate { key, since, until, .. } = &candidate;
                let core = &mut *self.core;
                if needed.has(&core.conn, &mut core.numbered_apart, key, *since, *until).at(&core.path)? {
                    at.skipped += 1;
                    continue;
                }
                self.give_back(&candidate);
                self.core.apply(RowChange::DelPast(candidate.key))?;
            }
            if full {
                break;
            }
            (at.table, at.skipped) = (at.table + 1, 0);
        }
        *gap = at;
        Ok(at.table >= ORDER.len())
    }

    /// The reference that a former row holds, if it holds one.
    fn give_back(&mut self, candidate: &Candidate) {
        if let (PastKey::Extent(data, chunk, _), Some(key)) = (&candidate.key, &candidate.block) {
            let id = block_of(self.core, key);
            self.core.refs.push(RefChange { id, change: -1, place: (*data, *chunk) });
        }
    }

    /// An inode as of the end of a committed generation; `None` if it was not there.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn inode_at(&mut self, ino: Ino, generation: Generation) -> Result<Option<InodeRow>> {
        past::inode_at(&self.core.conn, ino, generation).at(&self.core.path)
    }

    /// A directory's page as of the end of a committed generation; as [`Txn::read_dir`], without attributes.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there was no such inode, [`Error::NotADirectory`].
    pub fn read_dir_at(&mut self, ino: Ino, generation: Generation, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        if self.inode_at(ino, generation)?.ok_or(Error::NotFound)?.kind != FileKind::Directory {
            return Err(Error::NotADirectory);
        }
        past::read_dir_at(&self.core.conn, ino, generation, cookie, max).at(&self.core.path)
    }

    /// What a name stood for at the end of a committed generation.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn lookup_at(&mut self, parent: Ino, name: &[u8], generation: Generation) -> Result<Attr> {
        let core = &*self.core;
        let found = past::lookup_at(&core.conn, &core.names, parent, name, generation).at(&core.path)?;
        let (ino, _) = found.ok_or(Error::NotFound)?;
        Ok(self.inode_at(ino, generation)?.ok_or(Error::NotFound)?.attr())
    }

    /// Extended attributes of an inode as of the end of a committed generation, sorted by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn xattrs_at(&mut self, ino: Ino, generation: Generation) -> Result<past::Xattrs> {
        past::xattrs_at(&self.core.conn, ino, generation).at(&self.core.path)
    }

    /// Blocks of chunks `from..to` of a data id as of the end of a committed generation.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn extents_at(
        &mut self,
        data: DataId,
        generation: Generation,
        from: ChunkNo,
        to: ChunkNo,
    ) -> Result<Vec<(ChunkNo, BlockKey)>> {
        let core = &*self.core;
        past::extents_at(&core.conn, &core.cuts, data, generation, from, to).at(&core.path)
    }
}
