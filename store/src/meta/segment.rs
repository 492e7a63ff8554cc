//! Segment rows.

use rusqlite::{Connection, Row, params};

use super::changes::RowChange;
use super::rows::*;
use super::sql::{At, enumerated, int, malformed, number};
use super::txn::Txn;
use crate::error::{Error, Result};
use crate::geometry::SLOTS_MAX;
use crate::ids::{Generation, Incarnation, MemberId, SegmentId};

const GET: &str =
    "SELECT id, incarnation, data, parity, slots, capacity, tail, state, since FROM segments WHERE id = ?1";
const ALL: &str = "SELECT id, incarnation, data, parity, slots, capacity, tail, state, since FROM segments ORDER BY id";
const PUT: &str = "INSERT OR REPLACE INTO segments \
    (id, incarnation, data, parity, slots, capacity, tail, state, since) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

/// Member ids in the order of the slots; a vacant slot is all zeros, which no member's random id is.
pub(super) fn encode_slots(slots: &[Option<MemberId>]) -> Vec<u8> {
    slots.iter().flat_map(|slot| slot.unwrap_or_default().0).collect()
}

/// `None` if the bytes are not whole ids or too many.
pub(super) fn decode_slots(bytes: &[u8]) -> Option<Vec<Option<MemberId>>> {
    let (ids, rest) = bytes.as_chunks::<{ MemberId::LEN }>();
    let vacant = [0; MemberId::LEN];
    (rest.is_empty() && ids.len() <= SLOTS_MAX)
        .then(|| ids.iter().map(|id| (*id != vacant).then_some(MemberId(*id))).collect())
}

pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<SegmentRow> {
    Ok(SegmentRow {
        id: SegmentId(number(row, 0)?),
        incarnation: Incarnation(row.get(1)?),
        data: row.get(2)?,
        parity: row.get(3)?,
        slots: decode_slots(row.get_ref(4)?.as_blob()?).ok_or_else(|| malformed(4, "slots of a segment"))?,
        capacity: number(row, 5)?,
        tail: number(row, 6)?,
        state: enumerated(row, 7, SegmentState::from_number)?,
        since: Generation(number(row, 8)?),
    })
}

pub(super) fn all(conn: &Connection) -> rusqlite::Result<Vec<SegmentRow>> {
    let mut statement = conn.prepare_cached(ALL)?;
    let rows = statement.query_map([], from_row)?;
    rows.collect()
}

pub(super) fn put(conn: &Connection, row: &SegmentRow) -> rusqlite::Result<usize> {
    conn.prepare_cached(PUT)?.execute(params![
        int(row.id.0),
        row.incarnation.0,
        row.data,
        row.parity,
        encode_slots(&row.slots),
        int(row.capacity),
        int(row.tail),
        row.state as u8,
        int(row.since.0)
    ])
}

pub(super) fn delete(conn: &Connection, id: SegmentId) -> rusqlite::Result<usize> {
    conn.prepare_cached("DELETE FROM segments WHERE id = ?1")?.execute([int(id.0)])
}

impl Txn<'_> {
    /// Insert or replace a segment; `since` is set here.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if its slots are not k+m.
    pub fn put_segment(&mut self, row: &SegmentRow) -> Result<()> {
        if row.slots.len() != usize::from(row.data) + usize::from(row.parity) || row.slots.len() > SLOTS_MAX {
            return Err(Error::InvalidArgument("a segment has as many slots as shards"));
        }
        let since = self.generation();
        self.skip_segment_ids(row.id);
        self.core.apply(RowChange::PutSegment(SegmentRow { since, ..row.clone() })).map(|_| ())
    }

    /// The row of a segment.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn segment(&mut self, id: SegmentId) -> Result<Option<SegmentRow>> {
        let core = &*self.core;
        let mut statement = core.conn.prepare_cached(GET).at(&core.path)?;
        let mut rows = statement.query([int(id.0)]).at(&core.path)?;
        rows.next().at(&core.path)?.map(|row| from_row(row).at(&core.path)).transpose()
    }

    /// All segments, in the order of their numbers.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn segments(&mut self) -> Result<Vec<SegmentRow>> {
        all(&self.core.conn).at(&self.core.path)
    }

    /// Forget a segment.
    ///
    /// # Errors
    /// [`Error::Refused`] if a block lies in it.
    pub fn delete_segment(&mut self, id: SegmentId) -> Result<()> {
        if !self.blocks_of_segment(id, 0, 1)?.is_empty() {
            return Err(Error::Refused(format!("segment {id} holds blocks; it cannot be forgotten")));
        }
        self.core.apply(RowChange::DelSegment(id)).map(|_| ())
    }
}
