//! Tables whose values belong to other modules, snapshots, and the list of generations.

use rusqlite::{Connection, params};

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

pub(super) fn put(conn: &Connection, row: &ShelfRow) -> rusqlite::Result<usize> {
    let sql = format!("INSERT OR REPLACE INTO {} (key, value, since) VALUES (?1, ?2, ?3)", table(row.shelf));
    conn.prepare_cached(&sql)?.execute(params![&*row.key, &*row.value, int(row.since.0)])
}

pub(super) fn delete(conn: &Connection, shelf: Shelf, key: &[u8]) -> rusqlite::Result<usize> {
    conn.prepare_cached(&format!("DELETE FROM {} WHERE key = ?1", table(shelf)))?.execute(params![key])
}

pub(super) fn put_generation(conn: &Connection, row: &GenerationRow) -> rusqlite::Result<usize> {
    conn.prepare_cached("INSERT OR REPLACE INTO generations (generation, time) VALUES (?1, ?2)")?
        .execute([int(row.generation.0), row.time_ns])
}

pub(super) fn delete_generation(conn: &Connection, generation: Generation) -> rusqlite::Result<usize> {
    conn.prepare_cached("DELETE FROM generations WHERE generation = ?1")?.execute([int(generation.0)])
}

pub(super) fn put_snapshot(conn: &Connection, row: &SnapshotRow) -> rusqlite::Result<usize> {
    conn.prepare_cached("INSERT OR REPLACE INTO snapshots (name, generation, time, since) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![&*row.name, int(row.generation.0), row.time_ns, int(row.since.0)])
}

pub(super) fn delete_snapshot(conn: &Connection, name: &[u8]) -> rusqlite::Result<usize> {
    conn.prepare_cached("DELETE FROM snapshots WHERE name = ?1")?.execute(params![name])
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

    /// Name the open generation, so that it is kept.
    ///
    /// # Errors
    /// [`Error::Exists`] if the name is taken, [`Error::NameTooLong`].
    pub fn create_snapshot(&mut self, name: &[u8]) -> Result<SnapshotRow> {
        super::dentry::check_name(name)?;
        if matches!(name, b"." | b"..") {
            return Err(Error::InvalidArgument("a snapshot cannot have this name"));
        }
        if self.snapshots()?.iter().any(|row| *row.name == *name) {
            return Err(Error::Exists);
        }
        let (generation, time_ns) = (self.generation(), self.now_ns());
        let row = SnapshotRow { name: name.into(), generation, time_ns, since: generation };
        self.core.apply(RowChange::PutSnapshot(row.clone()))?;
        Ok(row)
    }

    /// Give a snapshot up.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn delete_snapshot(&mut self, name: &[u8]) -> Result<()> {
        match self.core.apply(RowChange::DelSnapshot { name: name.into() })? {
            0 => Err(Error::NotFound),
            _ => Ok(()),
        }
    }

    /// All snapshots, sorted by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn snapshots(&mut self) -> Result<Vec<SnapshotRow>> {
        let core = &*self.core;
        let sql = "SELECT name, generation, time, since FROM snapshots ORDER BY name";
        let mut statement = core.conn.prepare_cached(sql).at(&core.path)?;
        let rows = statement
            .query_map([], |row| {
                Ok(SnapshotRow {
                    name: blob(row, 0)?,
                    generation: Generation(number(row, 1)?),
                    time_ns: row.get(2)?,
                    since: Generation(number(row, 3)?),
                })
            })
            .at(&core.path)?;
        rows.collect::<rusqlite::Result<_>>().at(&core.path)
    }

    /// The last generation closed at or before a time.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn generation_at(&mut self, time_ns: i64) -> Result<Option<GenerationRow>> {
        let core = &*self.core;
        // Times never decrease with the number, so the last row not past the time is found from the end.
        let sql = "SELECT generation, time FROM generations WHERE time <= ?1 ORDER BY generation DESC LIMIT 1";
        let mut statement = core.conn.prepare_cached(sql).at(&core.path)?;
        let mut rows = statement.query([time_ns]).at(&core.path)?;
        let Some(row) = rows.next().at(&core.path)? else { return Ok(None) };
        let generation = Generation(number(row, 0).at(&core.path)?);
        Ok(Some(GenerationRow { generation, time_ns: row.get(1).at(&core.path)? }))
    }
}
