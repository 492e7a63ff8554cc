//! Reading the state of a committed generation, beside the writer.
//!
//! What was true in a generation never changes, so each look is a short read transaction of its own on one of a few
//! read-only connections. The caller keeps the generation from being forgotten while it reads (see
//! [`super::snapshot`]). Each function looks at current rows first and then at former ones; an inode, a name or an
//! attribute of a past state is found without walking through its other states.

use std::path::Path;

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};

use super::dentry::NameHash;
use super::extent::{self, Cuts};
use super::rows::*;
use super::schema::inode_columns;
use super::sql::{At, blob, enumerated, int, number};
use super::{Meta, dentry, inode, patch, snapshot};
use crate::error::{Error, Result};
use crate::ids::{BlockKey, ChunkNo, DataId, Generation, Ino};

/// Connections kept for the next look.
const IDLE_MAX: usize = 4;

/// Read-only connections that nobody uses at the moment.
#[derive(Default)]
pub(super) struct Idle(Mutex<Vec<Connection>>);

/// Extended attributes: names and values.
pub type Xattrs = Vec<(Box<[u8]>, Box<[u8]>)>;

/// One look at committed states: everything asked of it is as of one moment.
pub struct PastReader<'m> {
    pub(super) conn: &'m Connection,
    pub(super) path: &'m Path,
    names: &'m NameHash,
}

/// What a name stood for, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameSpan {
    /// The name.
    pub name: Box<[u8]>,
    /// What it stood for.
    pub ino: Ino,
    /// Kind of that.
    pub kind: FileKind,
    /// Since this generation.
    pub since: Generation,
    /// Until this generation, exclusive; `None`: it still does.
    pub until: Option<Generation>,
}

impl Meta {
    /// Look at committed states.
    ///
    /// # Errors
    /// Those of `look`, [`Error::Database`].
    pub fn past<R>(&self, look: impl FnOnce(&PastReader<'_>) -> Result<R>) -> Result<R> {
        self.settle()?;
        let idle = self.idle.0.lock().pop();
        let conn = match idle {
            Some(conn) => conn,
            None => self.read_connection()?,
        };
        conn.execute_batch("BEGIN").at(&self.path)?;
        let out = look(&PastReader { conn: &conn, path: &self.path, names: &self.names });
        // A connection whose transaction does not end is not used again.
        if conn.execute_batch("COMMIT").is_ok() {
            let mut idle = self.idle.0.lock();
            if idle.len() < IDLE_MAX {
                idle.push(conn);
            }
        }
        out
    }

    /// Close the connections that nobody uses.
    pub(super) fn drop_idle(&self) {
        self.idle.0.lock().clear();
    }
}

impl PastReader<'_> {
    /// The last generation closed at or before a time that is still kept.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn generation_at(&self, time_ns: i64) -> Result<Option<GenerationRow>> {
        snapshot::generation_at(self.conn, time_ns).at(self.path)
    }

    /// When a generation closed; `None` if it is not kept (or not there yet).
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn generation(&self, generation: Generation) -> Result<Option<GenerationRow>> {
        snapshot::kept(self.conn, generation).at(self.path)
    }

    /// The first generation that is kept of those from `since` on, before `until`.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn kept_within(&self, since: Generation, until: Option<Generation>) -> Result<Option<GenerationRow>> {
        snapshot::kept_within(self.conn, since, until).at(self.path)
    }

    /// The last generation that is kept of those from `since` on, before `until`.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn last_kept_within(&self, since: Generation, until: Generation) -> Result<Option<GenerationRow>> {
        snapshot::last_kept_within(self.conn, since, until).at(self.path)
    }

    /// The oldest generation that is kept.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn oldest(&self) -> Result<Option<GenerationRow>> {
        snapshot::kept_within(self.conn, Generation(0), None).at(self.path)
    }

    /// The snapshot of a name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn snapshot(&self, name: &[u8]) -> Result<Option<SnapshotRow>> {
        snapshot::named(self.conn, name).at(self.path)
    }

    /// All snapshots, sorted by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn snapshots(&self) -> Result<Vec<SnapshotRow>> {
        snapshot::all(self.conn).at(self.path)
    }

    /// The row of an inode at the end of a generation; `None` if it was not there.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn inode(&self, ino: Ino, generation: Generation) -> Result<Option<InodeRow>> {
        inode_at(self.conn, ino, generation).at(self.path)
    }

    /// What a name stood for at the end of a generation.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NameTooLong`], [`Error::InvalidArgument`] for what cannot be a name.
    pub fn lookup(&self, parent: Ino, name: &[u8], generation: Generation) -> Result<InodeRow> {
        dentry::check_name(name)?;
        let found = lookup_at(self.conn, self.names, parent, name, generation).at(self.path)?;
        let (ino, _) = found.ok_or(Error::NotFound)?;
        self.inode(ino, generation)?.ok_or(Error::NotFound)
    }

    /// The inode at a path of the volume (slashes between names; empty or "/": the root) at the end of a generation.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotADirectory`].
    pub fn find(&self, path: &[u8], generation: Generation) -> Result<InodeRow> {
        let mut row = self.inode(crate::ids::ROOT_INO, generation)?.ok_or(Error::NotFound)?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            if row.kind != FileKind::Directory {
                return Err(Error::NotADirectory);
            }
            row = self.lookup(row.ino, name, generation)?;
        }
        Ok(row)
    }

    /// A page of a directory at the end of a generation; as [`super::Txn::read_dir`].
    ///
    /// # Errors
    /// [`Error::NotFound`] if there was no such inode, [`Error::NotADirectory`].
    pub fn read_dir(
        &self,
        ino: Ino,
        generation: Generation,
        cookie: u64,
        max: usize,
        plus: bool,
    ) -> Result<Vec<DirEntry>> {
        if self.inode(ino, generation)?.ok_or(Error::NotFound)?.kind != FileKind::Directory {
            return Err(Error::NotADirectory);
        }
        let mut entries = read_dir_at(self.conn, ino, generation, cookie, max).at(self.path)?;
        if plus {
            for entry in &mut entries {
                entry.attr = Some(self.inode(entry.ino, generation)?.ok_or(Error::Stale(entry.ino))?.attr());
            }
        }
        Ok(entries)
    }

    /// Names of the extended attributes of an inode at the end of a generation, with their values, sorted by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn xattrs(&self, ino: Ino, generation: Generation) -> Result<Xattrs> {
        xattrs_at(self.conn, ino, generation).at(self.path)
    }

    /// Blocks of chunks `from..to` of a data id at the end of a generation, in order.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn extents(
        &self,
        data: DataId,
        generation: Generation,
        from: ChunkNo,
        to: ChunkNo,
    ) -> Result<Vec<(ChunkNo, BlockKey)>> {
        let cuts = extent::load_cuts_of(self.conn, data).at(self.path)?;
        extents_at(self.conn, &cuts, data, generation, from, to).at(self.path)
    }

    /// Patches of chunks `from..to` at the end of a generation, in the order they apply; they lie over the extents.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn patches(&self, data: DataId, generation: Generation, from: ChunkNo, to: ChunkNo) -> Result<Vec<PatchRow>> {
        patch::range_at(self.conn, data, generation, from, to).at(self.path)
    }

    /// All states of an inode that are kept, oldest first, each with the generation that ended it (`None`: current).
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn states(&self, ino: Ino) -> Result<Vec<(InodeRow, Option<Generation>)>> {
        let mut states = past_states(self.conn, ino).at(self.path)?;
        states.extend(inode::get(self.conn, ino).at(self.path)?.map(|row| (row, None)));
        Ok(states)
    }

    /// Everything a name has stood for, oldest first, as far as it is kept.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn name_spans(&self, parent: Ino, name: &[u8]) -> Result<Vec<NameSpan>> {
        let sql = "SELECT name, ino, kind, since, until FROM dentries_past WHERE parent = ?1 AND hash = ?2 AND name = ?3 \
            UNION ALL SELECT name, ino, kind, since, NULL FROM dentries WHERE parent = ?1 AND hash = ?2 AND name = ?3 \
            ORDER BY since";
        self.spans(sql, &[&int(parent.0), &int(self.names.hash(name)), &name])
    }

    /// The last thing that each name of a directory stood for, of names that stand for nothing now.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn deleted_names(&self, parent: Ino) -> Result<Vec<NameSpan>> {
        // With one max() the other columns come from the row that has it.
        let sql = "SELECT p.name, p.ino, p.kind, p.since, max(p.until) FROM dentries_past p WHERE p.parent = ?1 \
            AND NOT EXISTS (SELECT 1 FROM dentries d WHERE d.parent = p.parent AND d.hash = p.hash AND d.name = p.name) \
            GROUP BY p.name ORDER BY p.name";
        self.spans(sql, &[&int(parent.0)])
    }

    fn spans(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<NameSpan>> {
        let mut statement = self.conn.prepare_cached(sql).at(self.path)?;
        let rows = statement
            .query_map(values, |row| {
                Ok(NameSpan {
                    name: blob(row, 0)?,
                    ino: Ino(number(row, 1)?),
                    kind: enumerated(row, 2, FileKind::from_number)?,
                    since: Generation(number(row, 3)?),
                    until: row.get::<_, Option<i64>>(4)?.map(|until| Generation(until as u64)),
                })
            })
            .at(self.path)?;
        rows.collect::<rusqlite::Result<_>>().at(self.path)
    }
}

pub(super) fn inode_at(conn: &Connection, ino: Ino, generation: Generation) -> rusqlite::Result<Option<InodeRow>> {
    if let Some(row) = inode::get(conn, ino)?
        && row.since <= generation
    {
        return Ok(Some(row));
    }
    let sql = concat!(
        "SELECT ",
        inode_columns!(),
        ", until FROM inodes_past WHERE ino = ?1 AND since <= ?2 ORDER BY since DESC LIMIT 1"
    );
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([int(ino.0), int(generation.0)])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let until = number(row, inode::COLUMNS)?;
    if generation.0 < until { inode::from_row(row).map(Some) } else { Ok(None) }
}

pub(super) fn lookup_at(
    conn: &Connection,
    names: &NameHash,
    parent: Ino,
    name: &[u8],
    generation: Generation,
) -> rusqlite::Result<Option<(Ino, FileKind)>> {
    let values = params![int(parent.0), int(names.hash(name)), name, int(generation.0)];
    let current = "SELECT ino, kind FROM dentries WHERE parent = ?1 AND hash = ?2 AND name = ?3 AND since <= ?4";
    let found = |row: &rusqlite::Row<'_>| Ok((Ino(number(row, 0)?), enumerated(row, 1, FileKind::from_number)?));
    if let Some(row) = conn.prepare_cached(current)?.query_row(values, found).optional()? {
        return Ok(Some(row));
    }
    let past = "SELECT ino, kind, until FROM dentries_past WHERE parent = ?1 AND hash = ?2 AND name = ?3 \
        AND since <= ?4 ORDER BY since DESC LIMIT 1";
    let mut statement = conn.prepare_cached(past)?;
    let mut rows = statement.query(values)?;
    let Some(row) = rows.next()? else { return Ok(None) };
    if generation.0 < number(row, 2)? { found(row).map(Some) } else { Ok(None) }
}

pub(super) fn read_dir_at(
    conn: &Connection,
    ino: Ino,
    generation: Generation,
    cookie: u64,
    max: usize,
) -> rusqlite::Result<Vec<DirEntry>> {
    // Both parts come in the order of their primary keys and are merged.
    let sql = concat!(
        "SELECT hash, name, ino, kind FROM dentries WHERE parent = ?1 AND hash > ?2 AND since <= ?3 AND ",
        dentry::listed!(),
        " UNION ALL SELECT hash, name, ino, kind FROM dentries_past \
        WHERE parent = ?1 AND hash > ?2 AND since <= ?3 AND until > ?3 AND ",
        dentry::listed!(),
        " ORDER BY hash, name"
    );
    dentry::list_with(conn, sql, &[&int(ino.0), &int(cookie.min(i64::MAX as u64)), &int(generation.0)], max)
}

/// Extended attributes of an inode at the end of a generation, sorted by name.
pub(super) fn xattrs_at(conn: &Connection, ino: Ino, generation: Generation) -> rusqlite::Result<Xattrs> {
    let sql = "SELECT name, value FROM xattrs WHERE ino = ?1 AND since <= ?2 \
        UNION ALL SELECT name, value FROM xattrs_past WHERE ino = ?1 AND since <= ?2 AND until > ?2 ORDER BY name";
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map([int(ino.0), int(generation.0)], |row| Ok((blob(row, 0)?, blob(row, 1)?)))?;
    rows.collect()
}

pub(super) fn extents_at(
    conn: &Connection,
    cuts: &Cuts,
    data: DataId,
    generation: Generation,
    from: ChunkNo,
    to: ChunkNo,
) -> rusqlite::Result<Vec<(ChunkNo, BlockKey)>> {
    let cut_by_then =
        |row: &ExtentRow| cuts.hidden(data, row.chunk, row.sequence).is_some_and(|since| since <= generation);
    let mut out: Vec<_> = extent::range(conn, data, (from, to), i64::MAX as u64, usize::MAX)?
        .into_iter()
        .filter(|row| row.since <= generation && !cut_by_then(row))
        .map(|row| (row.chunk, row.key))
        .collect();
    let sql = "SELECT chunk, key FROM extents_past \
        WHERE data = ?1 AND chunk >= ?2 AND chunk < ?3 AND since <= ?4 AND until > ?4";
    let mut statement = conn.prepare_cached(sql)?;
    let to = to.min(CHUNK_END);
    let rows = statement.query_map([int(data.0), int(from.0), int(to.0), int(generation.0)], |row| {
        Ok((ChunkNo(number(row, 0)?), BlockKey(row.get(1)?)))
    })?;
    for row in rows {
        out.push(row?);
    }
    out.sort_unstable_by_key(|(chunk, _)| *chunk);
    Ok(out)
}

/// Former states of an inode, oldest first, each with the generation that ended it.
pub(super) fn past_states(conn: &Connection, ino: Ino) -> rusqlite::Result<Vec<(InodeRow, Option<Generation>)>> {
    let sql = concat!("SELECT ", inode_columns!(), ", until FROM inodes_past WHERE ino = ?1 ORDER BY since");
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement
        .query_map([int(ino.0)], |row| Ok((inode::from_row(row)?, Some(Generation(number(row, inode::COLUMNS)?)))))?;
    rows.collect()
}
