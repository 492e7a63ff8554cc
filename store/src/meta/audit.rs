//! Whether every block has as many references as extents name it, found out in slices beside whatever goes on.
//!
//! A slice counts the extents of a range of places, current and former ones, under the writer's lock and after all
//! changes of references were folded. What is folded later and lies in a range that was counted is added to the
//! counts. A former row keeps its place, so what becomes history is neither missed nor counted twice. The counts are
//! thus those of the present all the time, and so are the references they are compared with, slice by slice, when all
//! extents are counted. No state is held meanwhile: the log of the database can start anew.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use super::Meta;
use super::rows::BlockState;
use super::sql::{At, enumerated, int, number};
use super::txn::{Core, RefChange};
use crate::error::Result;
use crate::ids::{BlockId, BlockKey, ChunkNo, DataId};

/// Findings listed.
const FINDINGS_MAX: usize = 20;

/// Where an extent is: in the order that they are counted in.
pub(super) type Place = (DataId, ChunkNo);

/// How far it is.
#[derive(Debug)]
enum Stage {
    /// Extents of places before this one are counted.
    Counting { next: Place },
    /// All are, and blocks with ids up to this one compared.
    Comparing { after: Option<BlockId> },
}

/// An audit that goes on. Memory: about 60 bytes a block.
#[derive(Debug)]
pub(super) struct Audit {
    stage: Stage,
    /// Extents that name a block, of those counted; blocks that were compared are gone.
    counts: HashMap<BlockId, i64>,
    findings: Findings,
}

impl Audit {
    fn new() -> Self {
        let stage = Stage::Counting { next: (DataId(0), ChunkNo(0)) };
        Self { stage, counts: HashMap::new(), findings: Findings::default() }
    }

    /// A change of references that is folded now: of an extent that came or went since the last slice.
    pub fn note(&mut self, change: &RefChange) {
        let counted = match &self.stage {
            Stage::Counting { next } => change.place < *next,
            Stage::Comparing { after } => after.is_none_or(|after| after < change.id),
        };
        if counted && change.change != 0 {
            self.add(change.id, change.change);
        }
    }

    fn add(&mut self, id: BlockId, change: i64) {
        let count = self.counts.entry(id).or_default();
        *count += change;
        if *count == 0 {
            self.counts.remove(&id);
        }
    }
}

/// What was found wrong, a sentence each; not more of it than somebody will read.
#[derive(Debug, Default)]
pub(super) struct Findings {
    found: usize,
    listed: Vec<String>,
}

impl Findings {
    fn note(&mut self, finding: impl FnOnce() -> String) {
        self.found += 1;
        if self.found <= FINDINGS_MAX {
            self.listed.push(finding());
        }
    }

    /// A block, and how many extents name it.
    pub fn block(&mut self, id: BlockId, refs: u64, state: BlockState, counted: i64) {
        if i64::try_from(refs) != Ok(counted) {
            self.note(|| format!("block {id} says {refs} references, {counted} extents name it"));
        }
        if (refs == 0) != (state != BlockState::Live) {
            self.note(|| format!("block {id} has {refs} references and is {state:?}"));
        }
    }

    /// What is named and has no row.
    pub fn unknown(&mut self, counts: HashMap<BlockId, i64>) {
        for (id, count) in counts {
            self.note(|| format!("{count} extents name block {id}, which does not exist"));
        }
    }

    pub fn into_lines(mut self) -> Vec<String> {
        if self.found > FINDINGS_MAX {
            self.listed.push(format!("and {} more like the last", self.found - FINDINGS_MAX));
        }
        self.listed
    }
}

impl Meta {
    /// Go on with the audit of references, or begin one, looking at about `max` rows. `None`: call again. When it is
    /// done: what is wrong, one sentence each; nothing if all is well.
    ///
    /// # Errors
    /// [`crate::Error::Database`]; [`crate::Error::ReadOnly`].
    pub fn audit(&self, max: usize) -> Result<Option<Vec<String>>> {
        let mut core = self.core.lock();
        core.usable()?;
        core.fold_refs()?;
        let mut audit = core.audit.take().unwrap_or_else(|| Box::new(Audit::new()));
        if core.audit_slice(&mut audit, max.max(1))? {
            audit.findings.unknown(audit.counts);
            return Ok(Some(audit.findings.into_lines()));
        }
        core.audit = Some(audit);
        Ok(None)
    }
}

impl Core {
    /// True when all is compared.
    fn audit_slice(&self, audit: &mut Audit, max: usize) -> Result<bool> {
        match audit.stage {
            Stage::Counting { next } => {
                let (keys, end) = extents_from(&self.conn, next, max).at(&self.path)?;
                for key in &keys {
                    audit.add((self.block_id)(key), 1);
                }
                audit.stage = match end {
                    Some(next) => Stage::Counting { next },
                    None => Stage::Comparing { after: None },
                };
                Ok(false)
            }
            Stage::Comparing { after } => {
                let blocks = blocks_after(&self.conn, after, max).at(&self.path)?;
                for &(id, refs, state) in &blocks {
                    let counted = audit.counts.remove(&id).unwrap_or(0);
                    audit.findings.block(id, refs, state, counted);
                }
                let Some(&(last, ..)) = blocks.last() else { return Ok(true) };
                audit.stage = Stage::Comparing { after: Some(last) };
                Ok(false)
            }
        }
    }
}

/// Keys of the extents, current and former, from a place on: at least one if there is any. The place where the next
/// ones begin, `None` at the end.
fn extents_from(conn: &Connection, from: Place, max: usize) -> rusqlite::Result<(Vec<BlockKey>, Option<Place>)> {
    let mut max = max;
    loop {
        let tables = [page(conn, "extents", from, max)?, page(conn, "extents_past", from, max)?];
        // A full page may lack rows of its last place.
        let full = tables.iter().filter(|rows| rows.len() == max);
        let end = full.filter_map(|rows| rows.last()).map(|(place, _)| *place).min();
        if end != Some(from) {
            let before = |(place, _): &&(Place, BlockKey)| end.is_none_or(|end| *place < end);
            let keys = tables.iter().flatten().filter(before).map(|(_, key)| *key).collect();
            return Ok((keys, end));
        }
        // One chunk with that many former states.
        max *= 2;
    }
}

fn page(conn: &Connection, table: &str, from: Place, max: usize) -> rusqlite::Result<Vec<(Place, BlockKey)>> {
    let sql =
        format!("SELECT data, chunk, key FROM {table} WHERE (data, chunk) >= (?1, ?2) ORDER BY data, chunk LIMIT ?3");
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map(params![int(from.0.0), int(from.1.0), max as i64], |row| {
        Ok(((DataId(number(row, 0)?), ChunkNo(number(row, 1)?)), BlockKey(row.get(2)?)))
    })?;
    rows.collect()
}

type Counted = (BlockId, u64, BlockState);

fn blocks_after(conn: &Connection, after: Option<BlockId>, max: usize) -> rusqlite::Result<Vec<Counted>> {
    let sql = "SELECT id, refs, state FROM blocks WHERE id > ?1 ORDER BY id LIMIT ?2";
    let after = after.as_ref().map_or(&[][..], |id| &id.0);
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params![after, max as i64], |row| {
        Ok((BlockId(row.get(0)?), number(row, 1)?, enumerated(row, 2, BlockState::from_number)?))
    })?;
    rows.collect()
}
