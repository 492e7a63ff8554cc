//! Names in directories, and listings that stay true while names come and go.

use rusqlite::{Connection, ToSql, params};

use super::changes::RowChange;
use super::rows::*;
use super::sql::{At, blob, enumerated, int, number};
use super::txn::{Core, Txn};
use crate::error::{Error, Result};
use crate::ids::{Generation, Ino};

/// What keeps [`STAGED_NAME`] in the root out of every listing.
macro_rules! listed {
    () => {
        "NOT (parent = 1 AND name = X'2e6272696e652e737461676564')"
    };
}
pub(super) use listed;

const GET: &str = "SELECT ino, kind FROM dentries WHERE parent = ?1 AND hash = ?2 AND name = ?3";
const PUT: &str =
    "INSERT OR REPLACE INTO dentries (parent, hash, name, ino, kind, since) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const ADD: &str =
    "INSERT OR IGNORE INTO dentries (parent, hash, name, ino, kind, since) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const DELETE: &str = "DELETE FROM dentries WHERE parent = ?1 AND hash = ?2 AND name = ?3";
const KEEP: &str = "INSERT INTO dentries_past (parent, hash, name, ino, kind, since, until) \
    SELECT parent, hash, name, ino, kind, since, ?4 FROM dentries \
    WHERE parent = ?1 AND hash = ?2 AND name = ?3 AND since < ?4";
const ANY: &str = "SELECT 1 FROM dentries WHERE parent = ?1 LIMIT 1";
const SINCE: &str = "SELECT ino, kind, since FROM dentries WHERE parent = ?1 AND hash = ?2 AND name = ?3";
const LIST: &str = concat!(
    "SELECT hash, name, ino, kind FROM dentries WHERE parent = ?1 AND hash > ?2 AND ",
    listed!(),
    " ORDER BY hash, name"
);

/// Keyed hash of names: the order of listings tells nothing of names to who sees only hashes, and no one without the
/// key can make names that collide.
#[derive(Clone)]
pub(super) struct NameHash {
    key: [u8; 32],
    /// All ones, except in tests that want collisions.
    pub(super) mask: u64,
}

impl NameHash {
    pub fn new(key: [u8; 32]) -> Self {
        Self { key, mask: u64::MAX }
    }

    /// 62 bits, so that the cookies above leave room for "." and "..", at least [`COOKIE_MIN`].
    pub fn hash(&self, name: &[u8]) -> u64 {
        let digest = blake3::keyed_hash(&self.key, name);
        let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
        let hash = u64::from_le_bytes([a, b, c, d, e, f, g, h]) & self.mask & (i64::MAX as u64 >> 1);
        hash.max(COOKIE_MIN)
    }
}

/// Fails unless the bytes can name a directory entry.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() {
        return Err(Error::NotFound);
    }
    if name.contains(&b'/') || name.contains(&0) {
        return Err(Error::InvalidArgument("a name holds neither slash nor NUL"));
    }
    Ok(())
}

fn keep(conn: &Connection, parent: Ino, hash: u64, name: &[u8], until: Generation) -> rusqlite::Result<()> {
    conn.prepare_cached(KEEP)?.execute(params![int(parent.0), int(hash), name, int(until.0)]).map(|_| ())
}

pub(super) fn put(conn: &Connection, row: &DentryRow, history: bool) -> rusqlite::Result<usize> {
    if history {
        keep(conn, row.parent, row.hash, &row.name, row.since)?;
    }
    write(conn, PUT, row)
}

fn write(conn: &Connection, sql: &str, row: &DentryRow) -> rusqlite::Result<usize> {
    conn.prepare_cached(sql)?.execute(params![
        int(row.parent.0),
        int(row.hash),
        &*row.name,
        int(row.ino.0),
        row.kind as u8,
        int(row.since.0)
    ])
}

pub(super) fn delete(
    conn: &Connection,
    parent: Ino,
    hash: u64,
    name: &[u8],
    at: Generation,
    history: bool,
) -> rusqlite::Result<usize> {
    if history {
        keep(conn, parent, hash, name, at)?;
    }
    conn.prepare_cached(DELETE)?.execute(params![int(parent.0), int(hash), name])
}

impl Core {
    /// What a name in a directory stands for.
    pub fn dentry(&self, parent: Ino, hash: u64, name: &[u8]) -> Result<Option<(Ino, FileKind)>> {
        let mut statement = self.conn.prepare_cached(GET).at(&self.path)?;
        let mut rows = statement.query(params![int(parent.0), int(hash), name]).at(&self.path)?;
        match rows.next().at(&self.path)? {
            None => Ok(None),
            Some(row) => {
                let kind = enumerated(row, 1, FileKind::from_number).at(&self.path)?;
                Ok(Some((Ino(number(row, 0).at(&self.path)?), kind)))
            }
        }
    }

    /// As [`Self::dentry`], with the generation since which it does.
    pub fn dentry_since(&self, parent: Ino, hash: u64, name: &[u8]) -> Result<Option<(Ino, FileKind, Generation)>> {
        let mut statement = self.conn.prepare_cached(SINCE).at(&self.path)?;
        let mut rows = statement.query(params![int(parent.0), int(hash), name]).at(&self.path)?;
        let Some(row) = rows.next().at(&self.path)? else { return Ok(None) };
        let kind = enumerated(row, 1, FileKind::from_number).at(&self.path)?;
        let since = Generation(number(row, 2).at(&self.path)?);
        Ok(Some((Ino(number(row, 0).at(&self.path)?), kind, since)))
    }

    /// Add a name; false if there is one already.
    pub fn add_dentry(&mut self, row: DentryRow) -> Result<bool> {
        self.before_write()?;
        let added = write(&self.conn, ADD, &row).at(&self.path)? == 1;
        if added {
            self.note(RowChange::PutDentry(row));
        }
        Ok(added)
    }

    pub fn is_empty_directory(&self, ino: Ino) -> Result<bool> {
        let mut statement = self.conn.prepare_cached(ANY).at(&self.path)?;
        statement.exists([int(ino.0)]).map(|any| !any).at(&self.path)
    }
}

/// A page of a directory: at least one entry if there is any, at most `max`, more only to end with all names of one
/// hash. Cookies of names that share a hash point before it, except the last one's.
pub(super) fn list(conn: &Connection, parent: Ino, cookie: u64, max: usize) -> rusqlite::Result<Vec<DirEntry>> {
    list_with(conn, LIST, &[&int(parent.0), &int(cookie.min(i64::MAX as u64))], max)
}

/// [`list`] of a query that yields hash, name, inode and kind in the order of hash and name.
pub(super) fn list_with(
    conn: &Connection,
    sql: &str,
    values: &[&dyn ToSql],
    max: usize,
) -> rusqlite::Result<Vec<DirEntry>> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(values)?;
    let mut out: Vec<DirEntry> = Vec::with_capacity(max.clamp(1, 256));
    while let Some(row) = rows.next()? {
        let hash = number(row, 0)?;
        if let Some(last) = out.last_mut() {
            if last.cookie == hash {
                last.cookie = hash - 1;
            } else if out.len() >= max.max(1) {
                break;
            }
        }
        out.push(DirEntry {
            name: blob(row, 1)?.into_vec(),
            ino: Ino(number(row, 2)?),
            kind: enumerated(row, 3, FileKind::from_number)?,
            cookie: hash,
            attr: None,
        });
    }
    Ok(out)
}

impl Txn<'_> {
    /// Entries after `cookie` (0: from the start), in the order of their hashes, "." and ".." not among them; about
    /// `max` of them, with attributes if `plus`. A name present from the first page to the last comes exactly once,
    /// whatever else comes and goes. Empty at the end, and for a removed directory.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::NotADirectory`].
    pub fn read_dir(&mut self, ino: Ino, cookie: u64, max: usize, plus: bool) -> Result<Vec<DirEntry>> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        if row.kind != FileKind::Directory {
            return Err(Error::NotADirectory);
        }
        let mut entries = list(&self.core.conn, ino, cookie, max).at(&self.core.path)?;
        if plus {
            for entry in &mut entries {
                entry.attr = Some(self.attr(entry.ino)?);
            }
        }
        Ok(entries)
    }
}
