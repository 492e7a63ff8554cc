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

/// What the database is to say of where it stands, once it is committed.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Of generations closed since the last COMMIT.
    outbox: Vec<OutboxRow>,
    /// The last generation known to be durable.
    durable: Generation,
}

impl Notes {
    pub(super) fn closed(&mut self, rows: Vec<OutboxRow>) {
        self.outbox.extend(rows);
    }

    /// True if this is news.
    pub(super) fn durable(&mut self, generation: Generation) -> bool {
        std::mem::replace(&mut self.durable, generation) != generation
    }

    /// Into the tables, for a COMMIT that ends with this generation. Of it and the one before the notes are kept: whether
    /// the last record became durable is not known.
    pub(super) fn write(&mut self, conn: &Connection, committed: Generation) -> rusqlite::Result<()> {
        let before = Generation(committed.0.saturating_sub(1));
        for row in self.outbox.drain(..).filter(|row| row.generation >= before) {
            conn.prepare_cached("INSERT OR REPLACE INTO outbox (generation, part, message) VALUES (?1, ?2, ?3)")?
                .execute(params![int(row.generation.0), row.part, row.message])?;
        }
        conn.prepare_cached("DELETE FROM outbox WHERE generation < ?1")?.execute([int(before.0)])?;
        put_local(conn, GENERATION_KEY, &committed.0.to_le_bytes())?;
        if self.durable > Generation(0) {
            put_local(conn, DURABLE_KEY, &self.durable.0.to_le_bytes())?;
        }
        Ok(())
    }
}

/// Name of the last generation that the tables hold.
pub(super) const GENERATION_KEY: &str = "generation";
/// Name of the last generation that was known to be durable.
const DURABLE_KEY: &str = "user.durable";

/// Under what [`Txn::put_local`] keeps a name of the caller's.
pub(super) fn local_key(key: &str) -> String {
    format!("user.{key}")
}

pub(super) fn get_local(conn: &Connection, key: &str) -> rusqlite::Result<Option<Box<[u8]>>> {
    let mut statement = conn.prepare_cached("SELECT value FROM local WHERE key = ?1")?;
    let mut rows = statement.query([key])?;
    rows.next()?.map(|row| blob(row, 0)).transpose()
}

/// A generation kept under a name.
pub(super) fn get_generation(conn: &Connection, key: &str) -> rusqlite::Result<Option<Generation>> {
    let bytes = get_local(conn, key)?;
    Ok(bytes.and_then(|bytes| Some(Generation(u64::from_le_bytes((*bytes).try_into().ok()?)))))
}

/// The last generation that a database of whatever version holds and that was acknowledged, as far as it tells: of the last it
/// holds it is not known.
pub(super) fn acknowledged(conn: &Connection) -> Generation {
    let noted = |key| get_generation(conn, key).ok().flatten().unwrap_or(Generation(0));
    noted(DURABLE_KEY).max(Generation(noted(GENERATION_KEY).0.saturating_sub(1)))
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

    /// The last generation that was known to be durable when something was committed last.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn durable(&mut self) -> Result<Generation> {
        Ok(get_generation(&self.core.conn, DURABLE_KEY).at(&self.core.path)?.unwrap_or(Generation(0)))
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
