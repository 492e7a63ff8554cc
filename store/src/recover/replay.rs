//! Bringing a database along the log.

use std::collections::{BTreeSet, HashMap};

use super::chain::{Link, Log, Path};
use super::scan::on_threads;
use super::{Again, Reader, Recovered};
use crate::commit_log::{HEAD_KEY, Head, standing_of};
use crate::error::{Error, Result};
use crate::ids::{Generation, SegmentId};
use crate::meta::Meta;
use crate::meta::changes::RowChange;
use crate::meta::codec::decode_changes;
use crate::record::RowsDigest;
use crate::stripes::{SegmentInfo, StripePlace};

/// Records decoded at once.
const BATCH: usize = 64;
/// Generations after which the database's own log is folded.
const FOLD: u64 = 512;

impl Reader<'_> {
    /// Apply what follows on the log. With `verify` the rows are compared with the digests that the log has of them.
    pub(super) fn replay(&self, meta: &Meta, log: &Log, path: Path, verify: bool) -> Result<Recovered> {
        let digests: HashMap<Generation, [u8; 32]> = path
            .links
            .iter()
            .filter_map(|at| log.link(*at).rows_digest)
            .map(|RowsDigest { generation, digest }| (generation, digest))
            .filter(|_| verify)
            .collect();
        let mut replayed = 0;
        let total = path.links.len() as u64;
        for batch in path.links.chunks(BATCH) {
            let decoded = on_threads(batch, |at| self.changes(log.link(*at)));
            for (at, changes) in batch.iter().zip(decoded) {
                let link = log.link(*at);
                let head = Head { generation: link.generation, chain: link.chain };
                meta.replay_noting(link.generation, &changes?, HEAD_KEY, &head.encode())?;
                replayed += 1;
                if replayed % FOLD == 0 {
                    meta.checkpoint_wal()?;
                }
                if let Some(expected) = digests.get(&link.generation) {
                    (self.report)("verifying the rows", replayed, total);
                    if meta.reader()?.digest()? != *expected {
                        return Err(Error::format(
                            format!("rows of generation {}", link.generation),
                            "they are not those that the log has the digest of",
                        ));
                    }
                }
            }
            (self.report)("replaying the commit log", replayed, total);
        }
        meta.settle()?;
        // A rebuilt database says where it stands even if nothing followed.
        if replayed == 0 && standing_of(meta)?.map(|standing| standing.head) != Some(path.end) {
            meta.with(|txn| txn.put_local(HEAD_KEY, &path.end.encode()))?;
        }
        let again = self.not_known_durable(log, &path)?;
        Ok(Recovered { head: path.end, replayed, notes: path.notes, again, durable: path.durable })
    }

    /// Records past what is known durable.
    fn not_known_durable(&self, log: &Log, path: &Path) -> Result<Vec<Again>> {
        let mut again = Vec::new();
        let links = path.head.iter().chain(&path.links).map(|at| log.link(*at));
        for link in links.filter(|link| link.generation > path.durable) {
            let parts = link.parts.iter().map(|part| Some((part.header, self.message(part)?)));
            let parts = parts.collect::<Option<Vec<_>>>().ok_or_else(|| gone(link))?;
            again.push(Again { parts, places: places(&self.changes(link)?) });
        }
        Ok(again)
    }

    /// The row changes of a record.
    pub(super) fn changes(&self, link: &Link) -> Result<Vec<RowChange>> {
        if let Some(kept) = &link.changes {
            return decode_changes(kept);
        }
        let mut changes = Vec::new();
        for part in &link.parts {
            let (record, _) = self.open_part(part).ok_or_else(|| gone(link))?;
            changes.extend_from_slice(&record.changes);
        }
        decode_changes(&changes)
    }

    /// True if every stripe of the blocks that a record adds still has k good shards.
    pub(super) fn blocks_hold(&self, changes: &[RowChange]) -> bool {
        let mut infos: HashMap<SegmentId, Vec<SegmentInfo>> = HashMap::new();
        places(changes).into_iter().all(|place| {
            let infos = infos.entry(place.segment).or_insert_with(|| self.stripes.segment_infos(place.segment));
            infos.iter().any(|info| self.stripes.survey(place, info).largest_group().len() >= info.geometry.data())
        })
    }
}

fn gone(link: &Link) -> Error {
    Error::format(
        format!("commit record of generation {}", link.generation),
        "it could be read a moment ago and cannot any more; a directory was lost meanwhile, try again",
    )
}

/// Stripes of the blocks that changes add or move.
fn places(changes: &[RowChange]) -> BTreeSet<StripePlace> {
    let put = |change: &RowChange| match change {
        RowChange::PutBlock(row) => {
            Some(StripePlace { segment: row.segment, offset: row.offset, record_len: row.record_len })
        }
        _ => None,
    };
    changes.iter().filter_map(put).collect()
}
