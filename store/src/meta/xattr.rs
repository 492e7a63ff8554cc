//! Extended attributes. Namespaces and permissions are the adapter's; here a name is bytes.

use rusqlite::{Connection, params};

use super::changes::RowChange;
use super::rows::*;
use super::sql::{At, blob, int};
use super::txn::Txn;
use crate::error::{Error, Result};
use crate::ids::{Generation, Ino};

const GET: &str = "SELECT value FROM xattrs WHERE ino = ?1 AND name = ?2";
const LIST: &str = "SELECT name FROM xattrs WHERE ino = ?1 ORDER BY name";
const PUT: &str = "INSERT OR REPLACE INTO xattrs (ino, name, value, since) VALUES (?1, ?2, ?3, ?4)";
const KEEP: &str = "INSERT INTO xattrs_past (ino, name, value, since, until) \
    SELECT ino, name, value, since, ?3 FROM xattrs WHERE ino = ?1 AND name = ?2 AND since < ?3";

fn keep(conn: &Connection, ino: Ino, name: &[u8], until: Generation) -> rusqlite::Result<()> {
    conn.prepare_cached(KEEP)?.execute(params![int(ino.0), name, int(until.0)]).map(|_| ())
}

pub(super) fn put(conn: &Connection, row: &XattrRow, history: bool) -> rusqlite::Result<usize> {
    if history {
        keep(conn, row.ino, &row.name, row.since)?;
    }
    conn.prepare_cached(PUT)?.execute(params![int(row.ino.0), &*row.name, &*row.value, int(row.since.0)])
}

pub(super) fn delete(
    conn: &Connection,
    ino: Ino,
    name: &[u8],
    at: Generation,
    history: bool,
) -> rusqlite::Result<usize> {
    if history {
        keep(conn, ino, name, at)?;
    }
    conn.prepare_cached("DELETE FROM xattrs WHERE ino = ?1 AND name = ?2")?.execute(params![int(ino.0), name])
}

fn check(name: &[u8]) -> Result<()> {
    match name.len() {
        0 => Err(Error::InvalidArgument("an attribute needs a name")),
        1..=NAME_MAX if !name.contains(&0) => Ok(()),
        1..=NAME_MAX => Err(Error::InvalidArgument("an attribute's name holds no NUL")),
        _ => Err(Error::XattrTooBig),
    }
}

impl Txn<'_> {
    fn has_xattrs(&mut self, ino: Ino) -> Result<bool> {
        Ok(self.core.inode(ino)?.ok_or(Error::Stale(ino))?.flags & INODE_HAS_XATTRS != 0)
    }

    /// Value of an extended attribute.
    ///
    /// # Errors
    /// [`Error::NoSuchXattr`], [`Error::Stale`], [`Error::XattrTooBig`] (the name).
    pub fn get_xattr(&mut self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        check(name)?;
        if !self.has_xattrs(ino)? {
            return Err(Error::NoSuchXattr);
        }
        let core = &*self.core;
        let mut statement = core.conn.prepare_cached(GET).at(&core.path)?;
        let mut rows = statement.query(params![int(ino.0), name]).at(&core.path)?;
        match rows.next().at(&core.path)? {
            Some(row) => blob(row, 0).at(&core.path).map(Into::into),
            None => Err(Error::NoSuchXattr),
        }
    }

    /// Names of all extended attributes, sorted.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn list_xattrs(&mut self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        if !self.has_xattrs(ino)? {
            return Ok(Vec::new());
        }
        let core = &*self.core;
        let mut statement = core.conn.prepare_cached(LIST).at(&core.path)?;
        let rows = statement.query_map([int(ino.0)], |row| blob(row, 0).map(Vec::from)).at(&core.path)?;
        rows.collect::<rusqlite::Result<_>>().at(&core.path)
    }

    /// Set an extended attribute; `create`: it must not exist, `replace`: it must.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NoSuchXattr`], [`Error::XattrTooBig`] (name over 255 bytes, value over
    /// [`XATTR_SIZE_MAX`], or all names together over it), [`Error::Stale`].
    pub fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8], create: bool, replace: bool) -> Result<()> {
        check(name)?;
        if value.len() > XATTR_SIZE_MAX {
            return Err(Error::XattrTooBig);
        }
        let names = self.list_xattrs(ino)?;
        let exists = names.iter().any(|other| other == name);
        if exists && create {
            return Err(Error::Exists);
        }
        if !exists && replace {
            return Err(Error::NoSuchXattr);
        }
        let listed: usize = names.iter().map(|other| other.len() + 1).sum();
        if !exists && listed + name.len() + 1 > XATTR_SIZE_MAX {
            return Err(Error::XattrTooBig);
        }
        self.put_xattr(ino, name, value)?;
        let now = self.now_ns();
        self.step(ino, |row| {
            row.flags |= INODE_HAS_XATTRS;
            row.ctime_ns = now;
        })
        .map(|_| ())
    }

    /// The row of an attribute that was checked; no change of the inode.
    pub(super) fn put_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8]) -> Result<()> {
        let since = self.generation();
        let row = XattrRow { ino, name: name.into(), value: value.into(), since };
        self.core.apply(RowChange::PutXattr(row)).map(|_| ())
    }

    /// Remove an extended attribute.
    ///
    /// # Errors
    /// [`Error::NoSuchXattr`], [`Error::Stale`], [`Error::XattrTooBig`] (the name).
    pub fn remove_xattr(&mut self, ino: Ino, name: &[u8]) -> Result<()> {
        check(name)?;
        let at = self.generation();
        if !self.has_xattrs(ino)? || self.core.apply(RowChange::DelXattr { ino, name: name.into(), at })? == 0 {
            return Err(Error::NoSuchXattr);
        }
        let left = !self.list_xattrs(ino)?.is_empty();
        let now = self.now_ns();
        self.step(ino, |row| {
            row.flags = if left { row.flags } else { row.flags & !INODE_HAS_XATTRS };
            row.ctime_ns = now;
        })
        .map(|_| ())
    }

    /// Delete all extended attributes of an inode that is being deleted.
    pub(super) fn drop_xattrs(&mut self, ino: Ino) -> Result<()> {
        let at = self.generation();
        for name in self.list_xattrs(ino)? {
            self.core.apply(RowChange::DelXattr { ino, name: name.into(), at })?;
        }
        Ok(())
    }
}
