//! Local tables: where on the commit log the last generations stand, and what this machine remembers for itself.

use rusqlite::{Connection, params};

use super::sql::{At, blob, int, number};
use super::txn::Txn;
use crate::error::Result;
use crate::ids::Generation;

/// What is noted of a generation's record in the transaction that commits its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Generation of the record.
    pub generation: Generation,
    /// Number of the part.
    pub part: u16,
    /// Whatever the commit module needs to find it on the log.
    pub message: Vec<u8>,
}

pub(super) fn put(conn: &Connection, row: &OutboxRow) -> rusqlite::Result<usize> {
    conn.prepare_cached("INSERT OR REPLACE INTO outbox (generation, part, message) VALUES (?1, ?2, ?3)")?
        .execute(params![int(row.generation.0), row.part, row.message])
}

/// Under what [`Txn::put_local`] keeps a name of the caller's.
pub(super) fn local_key(key: &str) -> String {
    format!("user.{key}")
}

pub(super) fn get_local(conn: &Connection, key: &str) -> rusqlite::Result<Option<Box<[u8]>>> {
    let mut statement = conn.prepare_cached("SELECT value FROM local WHERE key = ?1")?;
    let mut rows = statement.query([key])?;
    rows.next()?.map(|row| blob(row, 0)).transpose()
}

pub(super) fn put_local(conn: &Connection, key: &str, value: &[u8]) -> rusqlite::Result<usize> {
    conn.prepare_cached("INSERT OR REPLACE INTO local (key, value) VALUES (?1, ?2)")?.execute(params![key, value])
}

impl Txn<'_> {
    /// What is noted of the last generations, in order.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn outbox(&mut self) -> Result<Vec<OutboxRow>> {
        let core = &*self.core;
        let sql = "SELECT generation, part, message FROM outbox ORDER BY generation, part";
        let mut statement = core.conn.prepare_cached(sql).at(&core.path)?;
        let rows = statement
            .query_map([], |row| {
                let generation = Generation(number(row, 0)?);
                Ok(OutboxRow { generation, part: row.get(1)?, message: row.get(2)? })
            })
            .at(&core.path)?;
        rows.collect::<rusqlite::Result<_>>().at(&core.path)
    }

    /// Forget the notes of generations up to this one. Written with the next commit.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn clear_outbox(&mut self, through: Generation) -> Result<()> {
        let core = &mut *self.core;
        core.before_write()?;
        core.local_dirty = true;
        let mut statement = core.conn.prepare_cached("DELETE FROM outbox WHERE generation <= ?1").at(&core.path)?;
        statement.execute([int(through.0)]).at(&core.path).map(|_| ())
    }

    /// What this machine remembers under a name of the caller's.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn local(&mut self, key: &str) -> Result<Option<Box<[u8]>>> {
        get_local(&self.core.conn, &local_key(key)).at(&self.core.path)
    }

    /// Remember something on this machine; in neither records nor checkpoints. Written with the next commit.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn put_local(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.core.before_write()?;
        self.core.local_dirty = true;
        put_local(&self.core.conn, &local_key(key), value).at(&self.core.path).map(|_| ())
    }
}
