//! Tables whose values belong to other modules.

use rusqlite::{Connection, params};

use super::changes::RowChange;
use super::codec::{SHELF_KEY_MAX, SHELF_VALUE_MAX};
use super::rows::*;
use super::schema::SHELVES;
use super::sql::{At, blob, int, number};
use super::txn::Txn;
use crate::error::{Error, Result};
use crate::ids::Generation;

fn table(shelf: Shelf) -> &'static str {
    SHELVES[shelf as usize - 1]
}

pub(super) fn get(conn: &Connection, shelf: Shelf, key: &[u8]) -> rusqlite::Result<Option<Box<[u8]>>> {
    let mut statement = conn.prepare_cached(&format!("SELECT value FROM {} WHERE key = ?1", table(shelf)))?;
    let mut rows = statement.query(params![key])?;
    rows.next()?.map(|row| blob(row, 0)).transpose()
}

/// A key and its value.
pub(super) type Pair = (Box<[u8]>, Box<[u8]>);

/// Keys that begin with `prefix`, in order, and their values.
pub(super) fn with_prefix(conn: &Connection, shelf: Shelf, prefix: &[u8]) -> rusqlite::Result<Vec<Pair>> {
    let sql = format!("SELECT key, value FROM {} WHERE key >= ?1 ORDER BY key", table(shelf));
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params![prefix])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        let key = blob(row, 0)?;
        if !key.starts_with(prefix) {
            break;
        }
        out.push((key, blob(row, 1)?));
    }
    Ok(out)
}

pub(super) fn put(conn: &Connection, row: &ShelfRow) -> rusqlite::Result<usize> {
    let sql = format!("INSERT OR REPLACE INTO {} (key, value, since) VALUES (?1, ?2, ?3)", table(row.shelf));
    conn.prepare_cached(&sql)?.execute(params![&*row.key, &*row.value, int(row.since.0)])
}

pub(super) fn delete(conn: &Connection, shelf: Shelf, key: &[u8]) -> rusqlite::Result<usize> {
    conn.prepare_cached(&format!("DELETE FROM {} WHERE key = ?1", table(shelf)))?.execute(params![key])
}

impl Txn<'_> {
    /// A value of a shelf.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn shelf(&mut self, shelf: Shelf, key: &[u8]) -> Result<Option<Box<[u8]>>> {
        get(&self.core.conn, shelf, key).at(&self.core.path)
    }

    /// All rows of a shelf, sorted by key.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn shelf_rows(&mut self, shelf: Shelf) -> Result<Vec<ShelfRow>> {
        let core = &*self.core;
        let sql = format!("SELECT key, value, since FROM {} ORDER BY key", table(shelf));
        let mut statement = core.conn.prepare_cached(&sql).at(&core.path)?;
        let rows = statement
            .query_map([], |row| {
                Ok(ShelfRow { shelf, key: blob(row, 0)?, value: blob(row, 1)?, since: Generation(number(row, 2)?) })
            })
            .at(&core.path)?;
        rows.collect::<rusqlite::Result<_>>().at(&core.path)
    }

    /// Put a value on a shelf.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the key or the value is longer than a record may hold.
    pub fn put_shelf(&mut self, shelf: Shelf, key: &[u8], value: &[u8]) -> Result<()> {
        if key.len() > SHELF_KEY_MAX || value.len() > SHELF_VALUE_MAX {
            return Err(Error::InvalidArgument("key or value of a shelf row too long"));
        }
        let since = self.generation();
        let row = ShelfRow { shelf, key: key.into(), value: value.into(), since };
        self.core.apply(RowChange::PutShelf(row)).map(|_| ())
    }

    /// Take a value off a shelf.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn delete_shelf(&mut self, shelf: Shelf, key: &[u8]) -> Result<()> {
        self.core.apply(RowChange::DelShelf { shelf, key: key.into() }).map(|_| ())
    }
}
