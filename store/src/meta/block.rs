//! Block rows: where sealed blocks lie, how many extents name them, and their way from live to freed (R17).

use rusqlite::{Connection, Row, params};

use super::audit::Place;
use super::changes::RowChange;
use super::rows::*;
use super::sql::{At, enumerated, int, number};
use super::txn::{Core, RefChange, Txn, sum_refs};
use crate::error::{Error, Result};
use crate::ids::{BlockId, ContentDigest, Generation, SegmentId};

macro_rules! columns {
    () => {
        "id, digest, domain, epoch, idx, segment, offset, record_len, stripe_blocks, message_offset, sealed_len, \
         plain_len, refs, state, state_since, codec, since, verified"
    };
}

const GET: &str = concat!("SELECT ", columns!(), " FROM blocks WHERE id = ?1");
const PUT: &str = concat!(
    "INSERT OR REPLACE INTO blocks (",
    columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)"
);
const SET_REFS: &str = "UPDATE blocks SET refs = ?2, state = ?3, state_since = ?4 WHERE id = ?1";
const STATE: &str = "SELECT refs, state, sealed_len, plain_len FROM blocks WHERE id = ?1";
const OF_STRIPE: &str = concat!("SELECT ", columns!(), " FROM blocks WHERE segment = ?1 AND offset = ?2");
const OF_SEGMENT: &str =
    concat!("SELECT ", columns!(), " FROM blocks WHERE segment = ?1 AND offset >= ?2 ORDER BY offset LIMIT ?3");
const LIVE_STRIPES: &str = "SELECT offset, max(record_len) FROM blocks \
    WHERE segment = ?1 AND offset >= ?2 AND state <> 2 GROUP BY offset ORDER BY offset LIMIT ?3";
const OF_DIGEST: &str = concat!("SELECT ", columns!(), " FROM blocks WHERE digest = ?1");
const DEAD: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM blocks WHERE state = ?1 AND state <> 0 AND state_since <= ?2 ORDER BY state_since LIMIT ?3"
);
const ALL: &str = concat!("SELECT ", columns!(), " FROM blocks WHERE id > ?1 ORDER BY id LIMIT ?2");

/// A row of the columns above.
pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<BlockRow> {
    Ok(BlockRow { verified: row.get(17)?, ..non_local_from_row(row)? })
}

/// A row of the columns above but the last, which is of this database alone.
pub(super) fn non_local_from_row(row: &Row<'_>) -> rusqlite::Result<BlockRow> {
    Ok(BlockRow {
        id: BlockId(row.get(0)?),
        digest: ContentDigest(row.get(1)?),
        domain: number(row, 2)?,
        epoch: row.get(3)?,
        index: row.get(4)?,
        segment: SegmentId(number(row, 5)?),
        offset: number(row, 6)?,
        record_len: row.get(7)?,
        stripe_blocks: row.get(8)?,
        message_offset: row.get(9)?,
        sealed_len: row.get(10)?,
        plain_len: row.get(11)?,
        refs: number(row, 12)?,
        state: enumerated(row, 13, BlockState::from_number)?,
        state_since: Generation(number(row, 14)?),
        codec: row.get(15)?,
        since: Generation(number(row, 16)?),
        verified: false,
    })
}

pub(super) fn get(conn: &Connection, id: &BlockId) -> rusqlite::Result<Option<BlockRow>> {
    let mut statement = conn.prepare_cached(GET)?;
    let mut rows = statement.query(params![id.0])?;
    rows.next()?.map(from_row).transpose()
}

pub(super) fn put(conn: &Connection, row: &BlockRow) -> rusqlite::Result<usize> {
    conn.prepare_cached(PUT)?.execute(params![
        row.id.0,
        row.digest.0,
        int(row.domain),
        row.epoch,
        row.index,
        int(row.segment.0),
        int(row.offset),
        row.record_len,
        row.stripe_blocks,
        row.message_offset,
        row.sealed_len,
        row.plain_len,
        int(row.refs),
        row.state as u8,
        int(row.state_since.0),
        row.codec,
        int(row.since.0),
        row.verified,
    ])
}

pub(super) fn set_refs(
    conn: &Connection,
    id: &BlockId,
    refs: u64,
    state: BlockState,
    since: Generation,
) -> rusqlite::Result<usize> {
    conn.prepare_cached(SET_REFS)?.execute(params![id.0, int(refs), state as u8, int(since.0)])
}

pub(super) fn delete(conn: &Connection, id: &BlockId) -> rusqlite::Result<usize> {
    conn.prepare_cached("DELETE FROM blocks WHERE id = ?1")?.execute(params![id.0])
}

/// Up to `max` blocks with ids after `after`, in order.
pub(super) fn page(conn: &Connection, after: &[u8], max: usize) -> rusqlite::Result<Vec<BlockRow>> {
    let mut statement = conn.prepare_cached(ALL)?;
    let rows = statement.query_map(params![after, max as i64], from_row)?;
    rows.collect()
}

/// What folding needs of a block.
struct Counted {
    refs: u64,
    state: BlockState,
    sealed_len: u64,
    plain_len: u64,
}

fn counted(conn: &Connection, id: &BlockId) -> rusqlite::Result<Option<Counted>> {
    let mut statement = conn.prepare_cached(STATE)?;
    let mut rows = statement.query(params![id.0])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Counted {
        refs: number(row, 0)?,
        state: enumerated(row, 1, BlockState::from_number)?,
        sealed_len: number(row, 2)?,
        plain_len: number(row, 3)?,
    }))
}

impl Core {
    /// Sums of blocks: one enters (`live`: live, else dead) or leaves.
    fn count_block(&mut self, live: bool, enters: bool, sealed_len: u64, plain_len: u64) {
        let counters = &mut self.counters;
        let add = |sum: &mut u64, amount: u64| {
            *sum = if enters { sum.wrapping_add(amount) } else { sum.wrapping_sub(amount) };
        };
        if live {
            add(&mut counters.live_blocks, 1);
            add(&mut counters.unique_bytes, plain_len);
            add(&mut counters.stored_bytes, sealed_len);
        } else {
            add(&mut counters.dead_blocks, 1);
            add(&mut counters.dead_bytes, sealed_len);
        }
    }

    fn set_block_state(&mut self, id: BlockId, block: &Counted, refs: u64, state: BlockState) -> Result<()> {
        let (was_live, is_live) = (block.state == BlockState::Live, state == BlockState::Live);
        if was_live != is_live {
            self.count_block(was_live, false, block.sealed_len, block.plain_len);
            self.count_block(is_live, true, block.sealed_len, block.plain_len);
        }
        let state_since = self.generation();
        self.apply(RowChange::SetRefs { id, refs, state, state_since }).map(|_| ())
    }

    /// Add up reference changes and write them; blocks left without a reference become [`BlockState::Zero`]. Between
    /// operations only; counts that cannot be end the volume's writing, since something else would be freed wrongly.
    pub fn fold_refs(&mut self) -> Result<()> {
        let folded = self.try_fold_refs();
        if let Err(error) = &folded {
            self.poison(error);
        }
        folded
    }

    fn try_fold_refs(&mut self) -> Result<()> {
        let changes = std::mem::take(&mut self.refs);
        if let Some(audit) = &mut self.audit {
            changes.iter().for_each(|change| audit.note(change));
        }
        for (id, change) in sum_refs(&changes) {
            let Some(block) = counted(&self.conn, &id).at(&self.path)? else {
                if change != 0 {
                    self.poison(format_args!("block {id} is referenced but unknown"));
                    return self.usable();
                }
                continue;
            };
            let Some(refs) = block.refs.checked_add_signed(change) else {
                self.poison(format_args!("block {id} has fewer references than were given back"));
                return self.usable();
            };
            let state = match (block.state, refs) {
                (BlockState::Condemned, 1..) => {
                    self.poison(format_args!("block {id} is condemned and referenced"));
                    return self.usable();
                }
                (BlockState::Condemned, 0) => BlockState::Condemned,
                (_, 0) => BlockState::Zero,
                (_, 1..) => BlockState::Live,
            };
            if refs != block.refs || state != block.state {
                self.set_block_state(id, &block, refs, state)?;
            }
        }
        Ok(())
    }

    fn blocks(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<BlockRow>> {
        let mut statement = self.conn.prepare_cached(sql).at(&self.path)?;
        let rows = statement.query_map(values, from_row).at(&self.path)?;
        rows.collect::<rusqlite::Result<_>>().at(&self.path)
    }
}

impl Txn<'_> {
    /// The row of a block, whatever its state. Its references are as of the last folding.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn block(&mut self, id: &BlockId) -> Result<Option<BlockRow>> {
        get(&self.core.conn, id).at(&self.core.path)
    }

    /// The row of a block that a chunk with the same content may share: live, or unreferenced and revived here.
    /// A block that no extent names when references are folded next becomes unreferenced again.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn find_duplicate(&mut self, id: &BlockId) -> Result<Option<BlockRow>> {
        let Some(mut row) = self.block(id)? else { return Ok(None) };
        match row.state {
            BlockState::Condemned => Ok(None),
            BlockState::Live => Ok(Some(row)),
            BlockState::Zero => {
                self.revive(&row.id)?;
                row.state = BlockState::Live;
                row.state_since = self.generation();
                Ok(Some(row))
            }
        }
    }

    fn revive(&mut self, id: &BlockId) -> Result<()> {
        if let Some(block) = counted(&self.core.conn, id).at(&self.core.path)?
            && block.state == BlockState::Zero
        {
            self.core.set_block_state(*id, &block, block.refs, BlockState::Live)?;
            self.core.refs.push(RefChange::look(*id));
        }
        Ok(())
    }

    /// One more extent names the block: that of `place`.
    pub(super) fn refer_to(&mut self, id: &BlockId, place: Place) -> Result<()> {
        let block = counted(&self.core.conn, id).at(&self.core.path)?;
        match block.map(|block| block.state) {
            Some(BlockState::Live) => {}
            Some(BlockState::Zero) => self.revive(id)?,
            Some(BlockState::Condemned) => {
                return Err(Error::Refused(format!("block {id} is being freed; its chunk must be stored again")));
            }
            None => return Err(Error::Refused(format!("block {id} is not stored; its chunk must be stored first"))),
        }
        self.core.refs.push(RefChange { id: *id, change: 1, place });
        Ok(())
    }

    /// A block was appended to a segment. References, state and generations of the row are set here. A row that is
    /// there already (two writers stored one chunk) stays, and false is returned: what was appended is dead. The row
    /// of a condemned block gives way: no row tells of its old place any more, and gc frees what no row tells of.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_block(&mut self, row: &BlockRow) -> Result<bool> {
        let core = &mut *self.core;
        match counted(&core.conn, &row.id).at(&core.path)? {
            None => {}
            Some(old) if old.state == BlockState::Condemned => {
                core.count_block(false, false, old.sealed_len, old.plain_len);
            }
            Some(_) => return Ok(false),
        }
        let since = core.generation();
        core.count_block(true, true, u64::from(row.sealed_len), u64::from(row.plain_len));
        core.refs.push(RefChange::look(row.id));
        let row = BlockRow { refs: 0, state: BlockState::Live, state_since: since, since, ..row.clone() };
        core.apply(RowChange::PutBlock(row))?;
        Ok(true)
    }

    /// A block lies elsewhere now: `place` changes segment, offset, lengths and codec of its row. Its references,
    /// state and id stay.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no such block.
    pub fn move_block(&mut self, id: &BlockId, place: impl FnOnce(&mut BlockRow)) -> Result<()> {
        let Some(old) = self.block(id)? else {
            return Err(Error::Refused(format!("block {id} is not stored; it cannot be moved")));
        };
        let mut row = old.clone();
        place(&mut row);
        row.id = old.id;
        row.refs = old.refs;
        row.state = old.state;
        row.state_since = old.state_since;
        row.since = self.generation();
        let live = row.state == BlockState::Live;
        self.core.count_block(live, false, u64::from(old.sealed_len), u64::from(old.plain_len));
        self.core.count_block(live, true, u64::from(row.sealed_len), u64::from(row.plain_len));
        self.core.apply(RowChange::PutBlock(row)).map(|_| ())
    }

    /// The key of this block was re-derived from its plaintext. Known on this machine only; no change.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn mark_verified(&mut self, id: &BlockId) -> Result<()> {
        let core = &mut *self.core;
        core.before_write()?;
        core.local_dirty = true;
        let mut statement = core.conn.prepare_cached("UPDATE blocks SET verified = 1 WHERE id = ?1").at(&core.path)?;
        statement.execute(params![id.0]).at(&core.path).map(|_| ())
    }

    /// Blocks of the stripe at this place.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn blocks_of_stripe(&mut self, segment: SegmentId, offset: u64) -> Result<Vec<BlockRow>> {
        self.core.blocks(OF_STRIPE, &[&int(segment.0), &int(offset)])
    }

    /// Up to `max` blocks of a segment from `offset` on, in the order of their offsets.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn blocks_of_segment(&mut self, segment: SegmentId, offset: u64, max: usize) -> Result<Vec<BlockRow>> {
        self.core.blocks(OF_SEGMENT, &[&int(segment.0), &int(offset), &(max as i64)])
    }

    /// Up to `max` stripes of a segment, from `offset` on, in which a block is not condemned: offset and length of their
    /// records, bytes.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn live_stripes(&mut self, segment: SegmentId, offset: u64, max: usize) -> Result<Vec<(u64, u64)>> {
        let core = &*self.core;
        let mut statement = core.conn.prepare_cached(LIVE_STRIPES).at(&core.path)?;
        let rows = statement
            .query_map([int(segment.0), int(offset), max as i64], |row| Ok((number(row, 0)?, number(row, 1)?)))
            .at(&core.path)?;
        rows.collect::<rusqlite::Result<_>>().at(&core.path)
    }

    /// Blocks with this content under whatever salt. For heal and audit only: the write path looks up by id (R1).
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn blocks_of_digest(&mut self, digest: &ContentDigest) -> Result<Vec<BlockRow>> {
        self.core.blocks(OF_DIGEST, &[&digest.0])
    }

    /// Up to `max` blocks that are in `state`, not live, since `since` or longer; the oldest first.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn dead_blocks(&mut self, state: BlockState, since: Generation, max: usize) -> Result<Vec<BlockRow>> {
        self.core.blocks(DEAD, &[&(state as u8), &int(since.0), &(max as i64)])
    }

    /// Condemn a block if it is unreferenced still. False: it is not, leave it alone.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn condemn_block(&mut self, id: &BlockId) -> Result<bool> {
        // A reference not folded yet made the block live at once, so the state alone decides.
        match counted(&self.core.conn, id).at(&self.core.path)? {
            Some(block) if block.state == BlockState::Zero && block.refs == 0 => {
                self.core.set_block_state(*id, &block, 0, BlockState::Condemned)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Make a block's count wrong, as a defect would.
    #[cfg(test)]
    pub(crate) fn break_references(&mut self, id: &BlockId) -> Result<()> {
        let state_since = self.generation();
        self.core.apply(RowChange::SetRefs { id: *id, refs: 0, state: BlockState::Zero, state_since }).map(|_| ())
    }

    /// Forget a condemned block; when its bytes may go is the caller's to know (R18).
    ///
    /// # Errors
    /// [`Error::Refused`] if it is not condemned.
    pub fn free_block(&mut self, id: &BlockId) -> Result<()> {
        let core = &mut *self.core;
        match counted(&core.conn, id).at(&core.path)? {
            Some(block) if block.state == BlockState::Condemned => {
                core.count_block(false, false, block.sealed_len, block.plain_len);
                core.apply(RowChange::DelBlock(*id)).map(|_| ())
            }
            None => Ok(()),
            Some(_) => Err(Error::Refused(format!("block {id} is in use; it cannot be freed"))),
        }
    }
}
