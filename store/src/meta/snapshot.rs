//! Generations by their time, and snapshots: generations with a name, which is what keeps them.
//!
//! A generation is readable while it has its row in `generations`, or a snapshot: whoever forgets former rows that were
//! true in it removes that row in the same operation.

use rusqlite::{Connection, Row, params};

use super::changes::RowChange;
use super::dentry::check_name;
use super::rows::*;
use super::sql::{At, blob, int, number};
use super::txn::Txn;
use crate::error::{Error, Result};
use crate::ids::Generation;

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

const SNAPSHOTS: &str = "SELECT name, generation, time, since FROM snapshots ORDER BY name";
const SNAPSHOT: &str = "SELECT name, generation, time, since FROM snapshots WHERE name = ?1";

fn snapshot_row(row: &Row<'_>) -> rusqlite::Result<SnapshotRow> {
    Ok(SnapshotRow {
        name: blob(row, 0)?,
        generation: Generation(number(row, 1)?),
        time_ns: row.get(2)?,
        since: Generation(number(row, 3)?),
    })
}

fn check_snapshot_name(name: &[u8]) -> Result<()> {
    check_name(name)?;
    if matches!(name, b"." | b"..") {
        return Err(Error::InvalidArgument("a snapshot cannot have this name"));
    }
    Ok(())
}

/// The snapshot of a name.
pub(super) fn named(conn: &Connection, name: &[u8]) -> rusqlite::Result<Option<SnapshotRow>> {
    let mut statement = conn.prepare_cached(SNAPSHOT)?;
    let mut rows = statement.query([name])?;
    rows.next()?.map(snapshot_row).transpose()
}

/// All snapshots, sorted by name.
pub(super) fn all(conn: &Connection) -> rusqlite::Result<Vec<SnapshotRow>> {
    let mut statement = conn.prepare_cached(SNAPSHOTS)?;
    let rows = statement.query_map([], snapshot_row)?;
    rows.collect()
}

/// The last generation closed at or before a time that is still kept.
pub(super) fn generation_at(conn: &Connection, time_ns: i64) -> rusqlite::Result<Option<GenerationRow>> {
    // Times never decrease with the number.
    let closed =
        "SELECT generation, time FROM generations WHERE time <= ?1 ORDER BY time DESC, generation DESC LIMIT 1";
    let mut statement = conn.prepare_cached(closed)?;
    let mut rows = statement.query([time_ns])?;
    rows.next()?.map(generation_row).transpose()
}

/// A generation that is kept.
pub(super) fn kept(conn: &Connection, generation: Generation) -> rusqlite::Result<Option<GenerationRow>> {
    let sql = "SELECT generation, time FROM generations WHERE generation = ?1 \
        UNION ALL SELECT generation, time FROM snapshots WHERE generation = ?1 LIMIT 1";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([int(generation.0)])?;
    rows.next()?.map(generation_row).transpose()
}

/// The first generation that is kept of those from `since` on, before `until`.
pub(super) fn kept_within(
    conn: &Connection,
    since: Generation,
    until: Option<Generation>,
) -> rusqlite::Result<Option<GenerationRow>> {
    let sql = "SELECT generation, time FROM generations WHERE generation >= ?1 AND generation < ?2 \
        UNION ALL SELECT generation, time FROM snapshots WHERE generation >= ?1 AND generation < ?2 \
        ORDER BY generation LIMIT 1";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([int(since.0), until.map_or(i64::MAX, |until| int(until.0))])?;
    rows.next()?.map(generation_row).transpose()
}

/// The last generation that is kept of those from `since` on, before `until`.
pub(super) fn last_kept_within(
    conn: &Connection,
    since: Generation,
    until: Generation,
) -> rusqlite::Result<Option<GenerationRow>> {
    let sql = "SELECT generation, time FROM generations WHERE generation >= ?1 AND generation < ?2 \
        UNION ALL SELECT generation, time FROM snapshots WHERE generation >= ?1 AND generation < ?2 \
        ORDER BY generation DESC LIMIT 1";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([int(since.0), int(until.0)])?;
    rows.next()?.map(generation_row).transpose()
}

fn generation_row(row: &Row<'_>) -> rusqlite::Result<GenerationRow> {
    Ok(GenerationRow { generation: Generation(number(row, 0)?), time_ns: row.get(1)? })
}

impl Txn<'_> {
    /// Name the open generation, so that it is kept. Costs the same whatever the volume holds.
    ///
    /// # Errors
    /// [`Error::Exists`] if the name is taken; [`Error::NameTooLong`], [`Error::InvalidArgument`] if it can name nothing.
    pub fn create_snapshot(&mut self, name: &[u8]) -> Result<SnapshotRow> {
        check_snapshot_name(name)?;
        if !self.core.history {
            let reason = "this volume keeps no history (it was formatted with --no-history)";
            return Err(Error::Refused(reason.to_owned()));
        }
        if self.snapshot(name)?.is_some() {
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

    /// Give a snapshot another name.
    ///
    /// # Errors
    /// As [`Self::create_snapshot`] for the new name; [`Error::NotFound`].
    pub fn rename_snapshot(&mut self, name: &[u8], new_name: &[u8]) -> Result<SnapshotRow> {
        check_snapshot_name(new_name)?;
        let row = self.snapshot(name)?.ok_or(Error::NotFound)?;
        if self.snapshot(new_name)?.is_some() {
            return Err(Error::Exists);
        }
        let row = SnapshotRow { name: new_name.into(), since: self.generation(), ..row };
        // The new name first: at no moment is the generation without one.
        self.core.apply(RowChange::PutSnapshot(row.clone()))?;
        self.delete_snapshot(name)?;
        Ok(row)
    }

    /// The snapshot of a name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn snapshot(&mut self, name: &[u8]) -> Result<Option<SnapshotRow>> {
        named(&self.core.conn, name).at(&self.core.path)
    }

    /// All snapshots, sorted by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn snapshots(&mut self) -> Result<Vec<SnapshotRow>> {
        all(&self.core.conn).at(&self.core.path)
    }

    /// Up to `max` generations that are readable by their time, the oldest first.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn generation_rows(&mut self, max: usize) -> Result<Vec<GenerationRow>> {
        let core = &*self.core;
        let sql = "SELECT generation, time FROM generations ORDER BY generation LIMIT ?1";
        let mut statement = core.conn.prepare_cached(sql).at(&core.path)?;
        let rows = statement
            .query_map([max as i64], |row| {
                Ok(GenerationRow { generation: Generation(number(row, 0)?), time_ns: row.get(1)? })
            })
            .at(&core.path)?;
        rows.collect::<rusqlite::Result<_>>().at(&core.path)
    }

    /// True if extents wait to be retired, or former ones are kept: blocks may become unreferenced.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn has_loose_ends(&mut self) -> Result<bool> {
        let core = &*self.core;
        let sql = "SELECT EXISTS (SELECT 1 FROM cuts) OR EXISTS (SELECT 1 FROM extents_past)";
        core.conn.prepare_cached(sql).and_then(|mut it| it.query_row([], |row| row.get(0))).at(&core.path)
    }

    /// True if a committed generation can be read: it has its row, or a snapshot names it.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn is_kept(&mut self, generation: Generation) -> Result<bool> {
        let core = &*self.core;
        let sql = "SELECT EXISTS (SELECT 1 FROM generations WHERE generation = ?1) \
            OR EXISTS (SELECT 1 FROM snapshots WHERE generation = ?1)";
        let mut statement = core.conn.prepare_cached(sql).at(&core.path)?;
        statement.query_row([int(generation.0)], |row| row.get(0)).at(&core.path)
    }

    /// A generation is readable no longer. Its rows are forgotten in the same operation, or by [`Txn::forget_gap`].
    ///
    /// # Errors
    /// [`Error::Refused`] for the newest.
    pub fn forget_generation(&mut self, generation: Generation) -> Result<()> {
        if generation >= self.core.committed {
            return Err(Error::Refused(format!("generation {generation} is the newest; it is never given up")));
        }
        self.core.apply(RowChange::DelGeneration(generation)).map(|_| ())
    }

    /// The last generation closed at or before a time that is still kept.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn generation_at(&mut self, time_ns: i64) -> Result<Option<GenerationRow>> {
        generation_at(&self.core.conn, time_ns).at(&self.core.path)
    }

    /// When a generation closed; `None` if it is not kept.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn kept_generation(&mut self, generation: Generation) -> Result<Option<GenerationRow>> {
        kept(&self.core.conn, generation).at(&self.core.path)
    }
}
