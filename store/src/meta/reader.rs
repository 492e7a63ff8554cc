//! Reading one committed state beside the writer: for check, checkpoints, and messages.
//!
//! A [`Reader`] holds one read transaction from when it was made; the log of the database cannot start anew while it
//! lives, so it is not to be kept for longer than its work.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use rusqlite::{Connection, Row, params};

use super::changes::{Past, RowChange};
use super::rows::*;
use super::schema::SHELVES;
use super::sql::{At, blob, enumerated, int, number};
use super::{Meta, block, dentry, digest, extent, inode, outbox, patch, segment};
use crate::error::{Error, Result};
use crate::ids::{BlockId, BlockKey, ChunkNo, DataId, Generation, Ino, ROOT_INO, SegmentId};

/// Entries and rows fetched at a time.
const PAGE: usize = 1024;
/// Longest path followed, bytes: beyond this the tree is taken for a loop.
const PATH_MAX_BYTES: usize = 1 << 20;

/// One committed state.
pub struct Reader {
    pub(super) conn: Connection,
    pub(super) path: PathBuf,
    pub(super) block_id: super::BlockIdOf,
    names: dentry::NameHash,
    generation: Generation,
}

/// What to do after an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// Go on, into it if it is a directory.
    On,
    /// Go on, but not into this directory.
    Past,
    /// End here.
    Stop,
}

impl Meta {
    /// Read the last committed state, beside whatever goes on.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn reader(&self) -> Result<Reader> {
        self.settle()?;
        let conn = self.read_connection()?;
        conn.execute_batch("BEGIN").at(&self.path)?;
        // The transaction sees the state as of its first query.
        let generation = outbox::get_generation(&conn, outbox::GENERATION_KEY).at(&self.path)?;
        Ok(Reader {
            conn,
            path: self.path.clone(),
            block_id: self.block_id,
            names: self.core.lock().names.clone(),
            generation: generation.unwrap_or(Generation(0)),
        })
    }
}

impl Reader {
    /// The generation this is the state of.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Digest of all non-local rows.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn digest(&self) -> Result<[u8; 32]> {
        digest::digest(&self.conn, &self.path, |_, _| Ok(()))
    }

    /// The row of an inode.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn inode(&self, ino: Ino) -> Result<Option<InodeRow>> {
        inode::get(&self.conn, ino).at(&self.path)
    }

    /// The inode at a path of the volume (slashes between names; empty or "/": the root), or `None`.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn find(&self, path: &[u8]) -> Result<Option<InodeRow>> {
        let mut ino = ROOT_INO;
        let sql = "SELECT ino FROM dentries WHERE parent = ?1 AND hash = ?2 AND name = ?3";
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            let mut statement = self.conn.prepare_cached(sql).at(&self.path)?;
            let mut rows = statement.query(params![int(ino.0), int(self.names.hash(name)), name]).at(&self.path)?;
            let Some(row) = rows.next().at(&self.path)? else { return Ok(None) };
            ino = Ino(number(row, 0).at(&self.path)?);
        }
        self.inode(ino)
    }

    /// Every name below a directory (itself first, with `path` as given), a directory before what is in it. An inode
    /// comes once for each of its names. True if the walk was not stopped.
    ///
    /// # Errors
    /// Those of `visit`; [`Error::Format`] if a name stands for nothing.
    pub fn walk(
        &self,
        start: Ino,
        path: &[u8],
        mut visit: impl FnMut(&[u8], &InodeRow) -> Result<Walk>,
    ) -> Result<bool> {
        let Some(row) = self.inode(start)? else { return Err(Error::Stale(start)) };
        match visit(path, &row)? {
            Walk::Stop => return Ok(false),
            Walk::Past => return Ok(true),
            Walk::On if row.kind != FileKind::Directory => return Ok(true),
            Walk::On => {}
        }
        let base = path.strip_suffix(b"/").unwrap_or(path).to_vec();
        let mut stack = vec![(start, base, 0u64)];
        while let Some((directory, path, cookie)) = stack.pop() {
            let page = dentry::list(&self.conn, directory, cookie, PAGE).at(&self.path)?;
            let Some(last) = page.last() else { continue };
            let mut below = Vec::new();
            let next = (directory, path.clone(), last.cookie);
            for entry in page {
                let mut path = path.clone();
                path.push(b'/');
                path.extend_from_slice(&entry.name);
                if path.len() > PATH_MAX_BYTES {
                    let reason = "its path never ends; unmount and run `brine check --repair`";
                    return Err(Error::format(format!("directory {directory}"), reason));
                }
                let Some(row) = self.inode(entry.ino)? else {
                    let reason = format!("stands for inode {}, which does not exist", entry.ino);
                    return Err(Error::format(String::from_utf8_lossy(&path), reason));
                };
                match visit(&path, &row)? {
                    Walk::Stop => return Ok(false),
                    Walk::On if row.kind == FileKind::Directory => below.push((entry.ino, path, 0)),
                    Walk::On | Walk::Past => {}
                }
            }
            stack.push(next);
            stack.extend(below);
        }
        Ok(true)
    }

    /// A path of an inode, from the root; `None` if it has none (an orphan) or if following parents fails.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn path_of(&self, ino: Ino) -> Result<Option<Vec<u8>>> {
        path_of(&self.conn, ino).at(&self.path)
    }

    /// Blocks of chunks `from..to` of a data id, at most `max` of them; chunks not among them are holes.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn extents(&self, data: DataId, from: ChunkNo, to: ChunkNo, max: usize) -> Result<Vec<(ChunkNo, BlockKey)>> {
        let cuts = extent::load_cuts(&self.conn).at(&self.path)?;
        let rows = extent::range(&self.conn, data, (from, to), i64::MAX as u64, max).at(&self.path)?;
        let visible = |row: &ExtentRow| cuts.hidden(data, row.chunk, row.sequence).is_none();
        Ok(rows.into_iter().filter(visible).map(|row| (row.chunk, row.key)).collect())
    }

    /// Every block, in the order of ids.
    ///
    /// # Errors
    /// Those of `visit`, [`Error::Database`].
    pub fn for_each_block(&self, mut visit: impl FnMut(&BlockRow) -> Result<()>) -> Result<()> {
        let mut after = Vec::new();
        loop {
            let page = block::page(&self.conn, &after, PAGE).at(&self.path)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id.0.to_vec();
            page.iter().try_for_each(&mut visit)?;
        }
    }

    /// All segments, in the order of their numbers.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn segments(&self) -> Result<Vec<SegmentRow>> {
        segment::all(&self.conn).at(&self.path)
    }

    /// The block that a key names.
    pub fn block_id(&self, key: &BlockKey) -> BlockId {
        (self.block_id)(key)
    }

    /// Blocks that only former states name, and those of them that are named in a snapshot.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn only_in_history(&self) -> Result<(HashSet<BlockId>, HashSet<BlockId>)> {
        let (mut past, mut pinned) = (HashSet::new(), HashSet::new());
        let sql = "SELECT key, EXISTS (SELECT 1 FROM snapshots \
            WHERE generation >= extents_past.since AND generation < extents_past.until) FROM extents_past";
        let mut statement = self.conn.prepare(sql).at(&self.path)?;
        let mut rows = statement.query([]).at(&self.path)?;
        while let Some(row) = rows.next().at(&self.path)? {
            let id = self.block_id(&BlockKey(row.get(0).at(&self.path)?));
            past.insert(id);
            if row.get(1).at(&self.path)? {
                pinned.insert(id);
            }
        }
        if past.is_empty() {
            return Ok((past, pinned));
        }
        let mut statement = self.conn.prepare("SELECT key FROM extents").at(&self.path)?;
        let mut rows = statement.query([]).at(&self.path)?;
        while let Some(row) = rows.next().at(&self.path)? {
            let id = self.block_id(&BlockKey(row.get(0).at(&self.path)?));
            past.remove(&id);
            pinned.remove(&id);
        }
        Ok((past, pinned))
    }

    /// Blocks in use by salt epoch, ascending: epoch, blocks, sealed bytes.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn epochs(&self) -> Result<Vec<(u32, u64, u64)>> {
        let sql = "SELECT epoch, count(*), sum(sealed_len) FROM blocks WHERE state = 0 GROUP BY epoch ORDER BY epoch";
        let mut statement = self.conn.prepare_cached(sql).at(&self.path)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, number(row, 1)?, number(row, 2)?))).at(&self.path)?;
        rows.collect::<rusqlite::Result<_>>().at(&self.path)
    }

    /// Sum of the sealed lengths of these blocks.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn sealed_bytes(&self, blocks: &HashSet<BlockId>) -> Result<u64> {
        let mut sum = 0;
        for id in blocks {
            sum += block::get(&self.conn, id).at(&self.path)?.map_or(0, |row| u64::from(row.sealed_len));
        }
        Ok(sum)
    }

    /// Bytes of each segment's files, in one slot, that stripes take in which a block is not condemned (`referenced`:
    /// in which a block is referenced). Segments without such stripes are not listed.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn live_bytes(&self, referenced: bool) -> Result<HashMap<SegmentId, u64>> {
        let condition = if referenced { "state = 0" } else { "state <> 2" };
        let sql = &format!(
            "SELECT segment, sum(len) FROM (SELECT segment, offset, max(record_len) AS len FROM blocks \
             WHERE {condition} GROUP BY segment, offset) GROUP BY segment"
        );
        let mut statement = self.conn.prepare_cached(sql).at(&self.path)?;
        let rows = statement.query_map([], |row| Ok((SegmentId(number(row, 0)?), number(row, 1)?))).at(&self.path)?;
        rows.collect::<rusqlite::Result<_>>().at(&self.path)
    }

    /// Every non-local row as the change that puts it: the image of a checkpoint, sorted table by table. A blank
    /// database that imports them all has this one's digest, which is returned.
    ///
    /// # Errors
    /// Those of `take`, [`Error::Database`].
    pub fn image(&self, mut take: impl FnMut(RowChange) -> Result<()>) -> Result<[u8; 32]> {
        digest::digest(&self.conn, &self.path, |table, row| take(change_of(table, row).at(&self.path)?))
    }
}

/// See [`Reader::path_of`]. The parent that a file's row names is a hint; names elsewhere are found by a scan.
fn path_of(conn: &Connection, ino: Ino) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut names: Vec<Box<[u8]>> = Vec::new();
    let mut at = ino;
    let mut length = 0;
    while at != ROOT_INO {
        let Some(row) = inode::get(conn, at)? else { return Ok(None) };
        let by_hint = "SELECT parent, name FROM dentries WHERE parent = ?2 AND ino = ?1 LIMIT 1";
        let by_scan = "SELECT parent, name FROM dentries WHERE ino = ?1 LIMIT 1";
        let mut found = None;
        for (sql, values) in [(by_hint, &[int(at.0), int(row.parent.0)][..]), (by_scan, &[int(at.0)][..])] {
            if found.is_none() && row.nlink > 0 {
                let mut statement = conn.prepare_cached(sql)?;
                let mut rows = statement.query(rusqlite::params_from_iter(values))?;
                found =
                    rows.next()?.map(|row| Ok::<_, rusqlite::Error>((number(row, 0)?, blob(row, 1)?))).transpose()?;
            }
        }
        let Some((parent, name)) = found else { return Ok(None) };
        length += name.len() + 1;
        if length > PATH_MAX_BYTES {
            return Ok(None);
        }
        names.push(name);
        at = Ino(parent);
    }
    let mut path = Vec::with_capacity(length.max(1));
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    if path.is_empty() {
        path.push(b'/');
    }
    Ok(Some(path))
}

fn dentry_row(row: &Row<'_>) -> rusqlite::Result<DentryRow> {
    Ok(DentryRow {
        parent: Ino(number(row, 0)?),
        hash: number(row, 1)?,
        name: blob(row, 2)?,
        ino: Ino(number(row, 3)?),
        kind: enumerated(row, 4, FileKind::from_number)?,
        since: Generation(number(row, 5)?),
    })
}

fn extent_row(row: &Row<'_>) -> rusqlite::Result<ExtentRow> {
    Ok(ExtentRow {
        data: DataId(number(row, 0)?),
        chunk: ChunkNo(number(row, 1)?),
        key: BlockKey(row.get(2)?),
        sequence: number(row, 3)?,
        since: Generation(number(row, 4)?),
    })
}

fn xattr_row(row: &Row<'_>) -> rusqlite::Result<XattrRow> {
    Ok(XattrRow {
        ino: Ino(number(row, 0)?),
        name: blob(row, 1)?,
        value: blob(row, 2)?,
        since: Generation(number(row, 3)?),
    })
}

/// A row of the columns that [`super::schema::TABLES`] lists.
fn change_of(table: &str, row: &Row<'_>) -> rusqlite::Result<RowChange> {
    let until = |at| number(row, at).map(Generation);
    Ok(match table {
        "inodes" => RowChange::PutInode(inode::from_row(row)?),
        "inodes_past" => RowChange::PutPast { past: Past::Inode(inode::from_row(row)?), until: until(21)? },
        "dentries" => RowChange::PutDentry(dentry_row(row)?),
        "dentries_past" => RowChange::PutPast { past: Past::Dentry(dentry_row(row)?), until: until(6)? },
        "extents" => RowChange::PutExtent(extent_row(row)?),
        "extents_past" => RowChange::PutPast { past: Past::Extent(extent_row(row)?), until: until(5)? },
        "xattrs" => RowChange::PutXattr(xattr_row(row)?),
        "xattrs_past" => RowChange::PutPast { past: Past::Xattr(xattr_row(row)?), until: until(4)? },
        "cuts" => RowChange::PutCut(CutRow {
            data: DataId(number(row, 0)?),
            sequence: number(row, 1)?,
            from: ChunkNo(number(row, 2)?),
            to: ChunkNo(number(row, 3)?),
            ino: Ino(number(row, 4)?),
            since: until(5)?,
        }),
        "patches" => RowChange::PutPatch(patch::from_row(row)?),
        "patches_past" => RowChange::PutPast { past: Past::Patch(patch::from_row(row)?), until: until(7)? },
        "range_links" => RowChange::PutLink(RangeLinkRow {
            data: DataId(number(row, 0)?),
            chunk: ChunkNo(number(row, 1)?),
            count: number(row, 2)?,
            source: DataId(number(row, 3)?),
            source_chunk: ChunkNo(number(row, 4)?),
            source_generation: until(5)?,
            since: until(6)?,
        }),
        "blocks" => RowChange::PutBlock(block::non_local_from_row(row)?),
        "segments" => RowChange::PutSegment(segment::from_row(row)?),
        "generations" => RowChange::PutGeneration(GenerationRow { generation: until(0)?, time_ns: row.get(1)? }),
        "snapshots" => RowChange::PutSnapshot(SnapshotRow {
            name: blob(row, 0)?,
            generation: until(1)?,
            time_ns: row.get(2)?,
            since: until(3)?,
        }),
        shelf => {
            let shelf = SHELVES.iter().position(|name| *name == shelf).unwrap_or(0);
            let (key, value, since) = (blob(row, 0)?, blob(row, 1)?, until(2)?);
            RowChange::PutShelf(ShelfRow { shelf: Shelf::ALL[shelf], key, value, since })
        }
    })
}
