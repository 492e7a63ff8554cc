//! Inode rows: reading, conditional writing (R5), attributes.

use std::sync::Arc;

use rusqlite::{Connection, Row, ToSql};

use super::changes::RowChange;
use super::rows::*;
use super::schema::inode_columns;
use super::sql::{At, enumerated, int, number};
use super::txn::{Core, Txn};
use crate::error::{Error, Result};
use crate::ids::{ChunkNo, DataId, Generation, Ino, Version};

const GET: &str = concat!("SELECT ", inode_columns!(), " FROM inodes WHERE ino = ?1");
const PUT: &str = concat!(
    "INSERT OR REPLACE INTO inodes (",
    inode_columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)"
);
const UPDATE: &str = "UPDATE inodes SET version = ?2, kind = ?3, perm = ?4, uid = ?5, gid = ?6, nlink = ?7, \
    rdev = ?8, size = ?9, atime = ?10, mtime = ?11, ctime = ?12, btime = ?13, data = ?14, chunk_bits = ?15, \
    flags = ?16, inline = ?17, ino_generation = ?18, allocated = ?19, parent = ?20, since = ?21 \
    WHERE ino = ?1 AND version = ?22";
const KEEP: &str =
    concat!("INSERT INTO inodes_past SELECT ", inode_columns!(), ", ?2 FROM inodes WHERE ino = ?1 AND since < ?2");
/// Number of `inode_columns!`.
pub(super) const COLUMNS: usize = 21;
const ORPHANS: &str = "SELECT ino FROM inodes WHERE nlink = 0 ORDER BY ino";

/// A row of columns in the order of `inode_columns!`.
pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<InodeRow> {
    Ok(InodeRow {
        ino: Ino(number(row, 0)?),
        version: Version(number(row, 1)?),
        kind: enumerated(row, 2, FileKind::from_number)?,
        perm: row.get(3)?,
        uid: row.get(4)?,
        gid: row.get(5)?,
        nlink: row.get(6)?,
        rdev: row.get(7)?,
        size: number(row, 8)?,
        atime_ns: row.get(9)?,
        mtime_ns: row.get(10)?,
        ctime_ns: row.get(11)?,
        btime_ns: row.get(12)?,
        data: DataId(number(row, 13)?),
        chunk_bits: row.get(14)?,
        flags: row.get(15)?,
        inline: row.get_ref(16)?.as_blob_or_null()?.map(Arc::from),
        ino_generation: row.get(17)?,
        allocated: number(row, 18)?,
        parent: Ino(number(row, 19)?),
        since: Generation(number(row, 20)?),
    })
}

/// Calls `run` with the values of ?1 to ?21, and ?22 if given.
pub(super) fn bind<T>(row: &InodeRow, last: Option<u64>, run: impl FnOnce(&[&dyn ToSql]) -> T) -> T {
    let (ino, version, kind, size) = (int(row.ino.0), int(row.version.0), row.kind as u8, int(row.size));
    let (data, allocated, parent, since) = (int(row.data.0), int(row.allocated), int(row.parent.0), int(row.since.0));
    let inline = row.inline.as_deref();
    let last_value = last.map(int);
    let values: [&dyn ToSql; 22] = [
        &ino,
        &version,
        &kind,
        &row.perm,
        &row.uid,
        &row.gid,
        &row.nlink,
        &row.rdev,
        &size,
        &row.atime_ns,
        &row.mtime_ns,
        &row.ctime_ns,
        &row.btime_ns,
        &data,
        &row.chunk_bits,
        &row.flags,
        &inline,
        &row.ino_generation,
        &allocated,
        &parent,
        &since,
        &last_value,
    ];
    run(if last.is_some() { &values } else { &values[..21] })
}

pub(super) fn get(conn: &Connection, ino: Ino) -> rusqlite::Result<Option<InodeRow>> {
    let mut statement = conn.prepare_cached(GET)?;
    let mut rows = statement.query([int(ino.0)])?;
    rows.next()?.map(from_row).transpose()
}

fn keep(conn: &Connection, ino: Ino, until: Generation) -> rusqlite::Result<()> {
    conn.prepare_cached(KEEP)?.execute([int(ino.0), int(until.0)]).map(|_| ())
}

/// Unconditional: replay, images, and rows the table does not have.
pub(super) fn put(conn: &Connection, row: &InodeRow, history: bool) -> rusqlite::Result<usize> {
    if history {
        keep(conn, row.ino, row.since)?;
    }
    let mut statement = conn.prepare_cached(PUT)?;
    bind(row, None, |values| statement.execute(values))
}

fn update(conn: &Connection, row: &InodeRow, stored: Version, history: bool) -> rusqlite::Result<usize> {
    if history {
        keep(conn, row.ino, row.since)?;
    }
    let mut statement = conn.prepare_cached(UPDATE)?;
    bind(row, Some(stored.0), |values| statement.execute(values))
}

pub(super) fn delete(conn: &Connection, ino: Ino, at: Generation, history: bool) -> rusqlite::Result<usize> {
    if history {
        keep(conn, ino, at)?;
    }
    conn.prepare_cached("DELETE FROM inodes WHERE ino = ?1")?.execute([int(ino.0)])
}

impl Core {
    /// The row, from the cache or its table. The reference ends before the next change.
    pub fn inode(&mut self, ino: Ino) -> Result<Option<&InodeRow>> {
        if self.inodes.get(ino).is_none() {
            match get(&self.conn, ino).at(&self.path)? {
                Some(row) => self.inodes.remember(row),
                None => return Ok(None),
            }
        }
        Ok(self.inodes.get(ino).map(|entry| &entry.row))
    }

    /// Write every changed row to its table. Between operations only; a failure ends the volume's writing, since
    /// which rows are written is then unknown.
    pub fn write_inodes(&mut self) -> Result<()> {
        for ino in self.inodes.take_dirty() {
            let Some(entry) = self.inodes.get(ino) else { continue };
            let written = match entry.stored {
                None => put(&self.conn, &entry.row, self.history),
                Some(stored) => update(&self.conn, &entry.row, stored, self.history),
            };
            let row = entry.row.clone();
            match written.at(&self.path) {
                Ok(1) => {
                    self.note(RowChange::PutInode(row));
                    self.inodes.written(ino);
                }
                Ok(_) => {
                    self.poison(format_args!("inode {ino} has another version in its table than in memory"));
                    return self.usable();
                }
                Err(error) => {
                    self.poison(&error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Put access times that wait into their rows; they then are part of the open generation.
    pub fn write_atimes(&mut self) -> Result<()> {
        for (ino, atime_ns) in std::mem::take(&mut self.atimes) {
            let ino = Ino(ino);
            if self.inode(ino)?.is_some_and(|row| row.atime_ns != atime_ns)
                && let Some(row) = self.inodes.change(ino)
            {
                // No change, so `since` stays: no former row comes of it.
                row.atime_ns = atime_ns;
            }
            self.inodes.keep_operation();
        }
        Ok(())
    }

    fn attr_of(&self, row: &InodeRow) -> Attr {
        let mut attr = row.attr();
        if !self.atimes.is_empty()
            && let Some(atime_ns) = self.atimes.get(&row.ino.0)
        {
            attr.atime_ns = *atime_ns;
        }
        attr
    }
}

impl Txn<'_> {
    /// The row of an inode.
    ///
    /// # Errors
    /// [`Error::Stale`] if there is none.
    pub fn inode(&mut self, ino: Ino) -> Result<InodeRow> {
        self.core.inode(ino)?.cloned().ok_or(Error::Stale(ino))
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// [`Error::Stale`] if there is none.
    pub fn attr(&mut self, ino: Ino) -> Result<Attr> {
        self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        self.cached_attr(ino)
    }

    fn cached_attr(&self, ino: Ino) -> Result<Attr> {
        let entry = self.core.inodes.get(ino).ok_or(Error::Stale(ino))?;
        Ok(self.core.attr_of(&entry.row))
    }

    /// Fails with [`Error::Conflict`] unless the inode has this version: put before a change, it makes the change a
    /// conditional write.
    pub fn expect_version(&mut self, ino: Ino, version: Version) -> Result<()> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        if row.version == version {
            return Ok(());
        }
        self.core.conflicts += 1;
        Err(Error::Conflict(ino))
    }

    /// One accepted change of an inode: its version grows by one.
    pub(super) fn step(&mut self, ino: Ino, change: impl FnOnce(&mut InodeRow)) -> Result<Attr> {
        self.amend(ino, |row| {
            change(row);
            row.version.0 += 1;
        })?;
        self.cached_attr(ino)
    }

    /// A change that belongs to another one, or is none: no version.
    pub(super) fn amend(&mut self, ino: Ino, change: impl FnOnce(&mut InodeRow)) -> Result<()> {
        let generation = self.core.generation();
        self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let row = self.core.inodes.change(ino).ok_or(Error::Stale(ino))?;
        let (size, before) = (row.size, (row.quota(), row.charge()));
        change(row);
        row.since = generation;
        let after = (row.quota(), row.charge());
        if row.kind == FileKind::File {
            let counters = &mut self.core.counters;
            counters.logical_bytes = counters.logical_bytes.wrapping_sub(size).wrapping_add(row.size);
        }
        self.core.charge(ino, Some(before), Some(after));
        Ok(())
    }

    /// Correct how many bytes of extents an inode has. No change, so no version and no former row.
    pub(super) fn allocate(&mut self, ino: Ino, change: impl FnOnce(u64) -> u64) -> Result<()> {
        self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let row = self.core.inodes.change(ino).ok_or(Error::Stale(ino))?;
        let before = (row.quota(), row.charge());
        row.allocated = change(row.allocated);
        let after = (row.quota(), row.charge());
        self.core.charge(ino, Some(before), Some(after));
        Ok(())
    }

    /// A new inode; its number and data id are given here.
    pub(super) fn insert_inode(&mut self, mut row: InodeRow) -> Attr {
        let counters = &mut self.core.counters;
        row.ino = Ino(counters.next_ino);
        counters.next_ino += 1;
        counters.inodes += 1;
        if row.kind == FileKind::File {
            // Above every data id there is: those of files made before were not above the next inode either.
            row.data = DataId(row.ino.0);
            counters.next_data = row.ino.0 + 1;
            counters.files += 1;
            counters.logical_bytes += row.size;
        }
        if row.kind == FileKind::Directory && row.parent == Ino(0) {
            row.parent = row.ino;
        }
        row.since = self.core.generation();
        let attr = row.attr();
        self.core.charge(row.ino, None, Some((row.quota(), row.charge())));
        self.core.inodes.insert(row);
        attr
    }

    fn delete_inode(&mut self, row: &InodeRow) -> Result<()> {
        let counters = &mut self.core.counters;
        counters.inodes -= 1;
        if row.kind == FileKind::File {
            counters.files -= 1;
            counters.logical_bytes = counters.logical_bytes.wrapping_sub(row.size);
        }
        self.core.atimes.remove(&row.ino.0);
        self.core.charge(row.ino, Some((row.quota(), row.charge())), None);
        let at = self.core.generation();
        if self.core.inodes.remove(row.ino) {
            self.core.apply(RowChange::DelInode { ino: row.ino, at })?;
        }
        Ok(())
    }

    /// Change attributes. One change, even if every field is as before.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn set_attr(&mut self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        let now = self.now_ns();
        if change.atime_ns.is_some() {
            self.core.atimes.remove(&ino.0);
        }
        if let Some(perm) = change.perm {
            self.acl_follows_mode(ino, perm)?;
        }
        self.step(ino, |row| {
            if let Some(perm) = change.perm {
                row.perm = perm & 0o7777;
            }
            row.uid = change.uid.unwrap_or(row.uid);
            row.gid = change.gid.unwrap_or(row.gid);
            row.atime_ns = change.atime_ns.unwrap_or(row.atime_ns);
            row.mtime_ns = change.mtime_ns.unwrap_or(row.mtime_ns);
            row.ctime_ns = change.ctime_ns.unwrap_or(now);
        })
    }

    /// Chunk length of an empty file, or of what will be made in a directory, as its log2.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless it is in [`CHUNK_BITS`] and the inode a directory or a file without content.
    pub fn set_chunk_bits(&mut self, ino: Ino, chunk_bits: u8) -> Result<Attr> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let empty = row.size == 0 && row.allocated == 0 && row.inline.is_none();
        if !CHUNK_BITS.contains(&chunk_bits) {
            return Err(Error::InvalidArgument("chunks are 4 KiB to 1 MiB long"));
        }
        if !(row.kind == FileKind::Directory || row.kind == FileKind::File && empty) {
            return Err(Error::InvalidArgument("the chunk length of a file is fixed once it has content"));
        }
        let now = self.now_ns();
        self.step(ino, |row| {
            row.chunk_bits = chunk_bits;
            row.ctime_ns = now;
        })
    }

    /// Note an access time. No change: it has no version, and is written with the next generation that something else
    /// makes, or by [`super::Meta::flush_atimes`].
    pub fn touch_atime(&mut self, ino: Ino, atime_ns: i64) {
        self.core.atimes.insert(ino.0, atime_ns);
    }

    /// Size, times and inline content of a file whose chunks were put before. Shrinking cuts off extents past the new
    /// end; a chunk that the end falls into keeps its bytes, so the caller puts it anew, shortened.
    /// Inline content that is not replaced is shortened with the file; when the file grows, the rest reads as zeros.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::IsADirectory`], [`Error::FileTooBig`], [`Error::InvalidArgument`] (not a regular
    /// file; inline content longer than [`INLINE_MAX`] or than the file).
    pub fn set_file(&mut self, ino: Ino, change: &FileChange) -> Result<Attr> {
        let row = self.inode(ino)?;
        match row.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(Error::IsADirectory),
            _ => return Err(Error::InvalidArgument("not a regular file")),
        }
        if change.size > FILE_SIZE_MAX {
            return Err(Error::FileTooBig);
        }
        let inline = match &change.inline {
            Some(inline) if inline.len() > INLINE_MAX || inline.len() as u64 > change.size => {
                return Err(Error::InvalidArgument("inline content too long"));
            }
            Some(inline) => {
                self.cut_extents(ino, ChunkNo(0), CHUNK_END)?;
                Some(Arc::from(inline.as_slice()))
            }
            None => row.inline.map(|inline| match usize::try_from(change.size) {
                Ok(size) if size < inline.len() => Arc::from(&inline[..size]),
                _ => inline,
            }),
        };
        if change.size < row.size {
            let chunks = change.size.div_ceil(1 << row.chunk_bits);
            self.cut_extents(ino, ChunkNo(chunks), CHUNK_END)?;
        }
        self.step(ino, |row| {
            row.size = change.size;
            row.inline = inline;
            row.mtime_ns = change.mtime_ns;
            row.ctime_ns = change.ctime_ns;
            if change.clear_suid {
                row.perm &= if row.perm & 0o010 != 0 { !0o6000 } else { !0o4000 };
            }
        })
    }

    /// Content of a file that lives in its row, or `None`. It may be shorter than the file; the rest is zeros.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn inline_data(&mut self, ino: Ino) -> Result<Option<Arc<[u8]>>> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        Ok(if row.kind == FileKind::File { row.inline.clone() } else { None })
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::InvalidArgument`] if it is none.
    pub fn read_link(&mut self, ino: Ino) -> Result<Vec<u8>> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        match (&row.inline, row.kind) {
            (Some(target), FileKind::Symlink) => Ok(target.to_vec()),
            _ => Err(Error::InvalidArgument("not a symbolic link")),
        }
    }

    /// Inodes without a name: at mount those whose last user went away with the old mount.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn orphans(&mut self) -> Result<Vec<Ino>> {
        let core = &mut *self.core;
        let mut found: Vec<Ino> = {
            let mut statement = core.conn.prepare_cached(ORPHANS).at(&core.path)?;
            let rows = statement.query_map([], |row| Ok(Ino(number(row, 0)?))).at(&core.path)?;
            rows.collect::<rusqlite::Result<_>>().at(&core.path)?
        };
        found.retain(|ino| core.inodes.get(*ino).is_none_or(|entry| entry.row.nlink == 0));
        found.extend(core.inodes.orphans().filter(|ino| found.binary_search(ino).is_err()).collect::<Vec<_>>());
        found.sort_unstable();
        Ok(found)
    }

    /// The last user of an inode without names is gone: delete it; its extents go at once or behind.
    /// Nothing happens if it is gone already.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it still has a name.
    pub fn release_orphan(&mut self, ino: Ino) -> Result<()> {
        let Some(row) = self.core.inode(ino)?.cloned() else { return Ok(()) };
        if row.nlink != 0 {
            return Err(Error::InvalidArgument("the inode still has a name"));
        }
        if row.kind == FileKind::File {
            self.cut_extents(ino, ChunkNo(0), CHUNK_END)?;
        }
        if row.flags & INODE_HAS_XATTRS != 0 {
            self.drop_xattrs(ino)?;
        }
        // Cutting may have changed what it takes.
        let row = self.inode(ino)?;
        self.delete_inode(&row)
    }
}
