//! Reading blocks: runs of neighbouring stripes with one request a directory, parity when a shard is missing, late or
//! wrong, and a careful way for a stripe that does not open.

use std::collections::HashMap;
use std::sync::Arc;

use super::damage::DamageEvent;
use super::{Blocks, Chunk};
use crate::backing::{ReadFault, ReadPlan, ShardRead};
use crate::error::{Error, Result};
use crate::ids::{BlockId, BlockKey, Ino, ShardIndex};
use crate::meta::rows::BlockRow;
use crate::seal::{BlockKind, Sealer};
use crate::shard::{RecordHeader, quick_check};
use crate::stripes::{GoodShard, SegmentInfo, StripePlace, Survey};

/// Longest run of records read at once from one directory, bytes.
const RUN_LEN_MAX: u64 = 512 << 10;
/// Subsets of shards tried when checksums hold and yet a tag fails: someone wrote well-formed wrong shards.
const SUBSETS_MAX: usize = 64;

/// A block to read and where it lies.
struct Wanted {
    key: BlockKey,
    row: BlockRow,
}

impl Blocks {
    /// The plaintexts of these blocks, from the cache or the backing directories. `ino` names the file in what is
    /// logged of damage. Errors of single blocks do not hide the others.
    pub fn get(&self, keys: &[BlockKey], ino: Option<Ino>) -> Result<Vec<Result<Arc<Chunk>>>> {
        let _pin = self.pins.enter();
        let ids: Vec<BlockId> = keys.iter().map(Sealer::block_id).collect();
        let mut found: Vec<Option<Result<Arc<Chunk>>>> = ids.iter().map(|id| self.cache.get(id).map(Ok)).collect();
        let missing: Vec<usize> = (0..keys.len()).filter(|&i| found[i].is_none()).collect();
        if !missing.is_empty() {
            let rows: Vec<Option<BlockRow>> =
                self.meta.with(|txn| missing.iter().map(|&i| txn.block(&ids[i])).collect::<Result<Vec<_>>>())?;
            let mut wanted: HashMap<BlockId, Wanted> = HashMap::new();
            for (&i, row) in missing.iter().zip(rows) {
                match row {
                    Some(row) => {
                        wanted.insert(ids[i], Wanted { key: keys[i], row });
                    }
                    None => found[i] = Some(Err(unknown_block(ids[i]))),
                }
            }
            let mut read = self.fetch(wanted.into_values().collect(), ino);
            for &i in &missing {
                if found[i].is_none() {
                    found[i] = match read.get_mut(&ids[i]) {
                        Some(Ok(chunk)) => Some(Ok(chunk.clone())),
                        Some(Err(_)) => read.remove(&ids[i]),
                        None => Some(Err(unknown_block(ids[i]))),
                    };
                }
            }
        }
        Ok(found.into_iter().zip(ids).map(|(chunk, id)| chunk.unwrap_or_else(|| Err(unknown_block(id)))).collect())
    }

    /// The plaintext of one block whose key is known, past the cache.
    pub fn get_uncached(&self, key: &BlockKey, row: &BlockRow, ino: Option<Ino>) -> Result<Arc<Chunk>> {
        let wanted = vec![Wanted { key: *key, row: row.clone() }];
        self.fetch(wanted, ino).remove(&row.id).unwrap_or_else(|| Err(unknown_block(row.id)))
    }

    fn fetch(&self, mut wanted: Vec<Wanted>, ino: Option<Ino>) -> HashMap<BlockId, Result<Arc<Chunk>>> {
        wanted.sort_by_key(|w| (w.row.segment, w.row.offset, w.row.message_offset));
        let mut out = HashMap::with_capacity(wanted.len());
        let mut start = 0;
        while start < wanted.len() {
            let end = run_end(&wanted, start);
            self.fetch_run(&wanted[start..end], ino, &mut out);
            start = end;
        }
        out
    }

    /// Read a run of stripes that lie side by side in one segment.
    fn fetch_run(&self, run: &[Wanted], ino: Option<Ino>, out: &mut HashMap<BlockId, Result<Arc<Chunk>>>) {
        let info = match self.segment_info(run[0].row.segment) {
            Ok(info) => info,
            Err(error) => {
                let text = error.to_string();
                for w in run {
                    out.insert(w.row.id, Err(Error::format(format!("block {}", w.row.id), text.clone())));
                }
                return;
            }
        };
        let shards = self.read_run(run, &info, ino);
        for w in run {
            let chunk = shards
                .as_ref()
                .and_then(|shards| self.open_quickly(w, run[0].row.offset, &info, shards))
                .map_or_else(|| self.read_carefully(w, &info, ino), Ok);
            if let Ok(chunk) = &chunk {
                self.cache.insert(w.row.id, chunk.clone());
            }
            out.insert(w.row.id, chunk);
        }
    }

    /// k shards of every stripe of the run, by slot; `None` if they cannot be had for the run as a whole.
    fn read_run(&self, run: &[Wanted], info: &SegmentInfo, ino: Option<Ino>) -> Option<Vec<(usize, Vec<u8>)>> {
        let first = &run[0].row;
        let last = &run[run.len() - 1].row;
        let len = (last.offset + u64::from(last.record_len) - first.offset) as usize;
        let k = info.geometry.data();
        let present: Vec<usize> = (0..info.slots.len())
            .filter(|&slot| info.slots[slot].and_then(|id| self.set.get(&id).map(|m| m.can_read())) == Some(true))
            .collect();
        if present.len() < k {
            return None;
        }
        // A block that lies within one data shard needs no other, if that one is well.
        let single = (run.len() == 1).then(|| self.single_shard(&run[0], info)).flatten();
        let (need, order) = match single {
            Some(slot) if present.contains(&slot) => (1, vec![slot]),
            _ => (k, present),
        };
        let wants: Vec<ShardRead> = order
            .iter()
            .map(|&slot| ShardRead {
                member: info.slots[slot].unwrap_or_default(),
                segment: first.segment,
                offset: first.offset,
                len,
            })
            .collect();
        let mut records: Vec<(u64, usize)> = run.iter().map(|w| (w.row.offset, w.row.record_len as usize)).collect();
        records.dedup();
        let accept = |want: usize, bytes: &[u8]| {
            bytes.len() == len
                && records.iter().all(|&(offset, record_len)| {
                    let at = (offset - first.offset) as usize;
                    let shard = ShardIndex(order[want] as u8);
                    quick_check(&bytes[at..at + record_len], info.incarnation, offset, shard).is_some()
                })
        };
        let outcome = self.set.read_shards(&wants, ReadPlan { need, first: need, hedge: self.hedge, accept: &accept });
        if outcome.good.len() < need {
            return None;
        }
        for (want, fault) in &outcome.bad {
            match fault {
                // Which record of the run was refused is not known: each is looked at alone.
                ReadFault::Rejected => return None,
                ReadFault::Late => {}
                ReadFault::Missing | ReadFault::Io(_) => self.note_unreadable(run, info, order[*want], ino),
            }
        }
        Some(outcome.good.into_iter().map(|(want, bytes)| (order[want], bytes)).collect())
    }

    fn note_unreadable(&self, run: &[Wanted], info: &SegmentInfo, slot: usize, ino: Option<Ino>) {
        for w in run {
            let what = describe(&[(slot, "unreadable")], info, self);
            let event = DamageEvent { ino, block: w.row.id, what, recoverable: true };
            self.damage.degraded(event, 1 << slot, w.row.segment, w.row.offset);
        }
    }

    /// The data shard that holds all of the block, if one does and its place is known from the row alone.
    fn single_shard(&self, w: &Wanted, info: &SegmentInfo) -> Option<usize> {
        if w.row.stripe_blocks < 2 {
            return None;
        }
        let header_len = RecordHeader::header_len(usize::from(w.row.stripe_blocks), crate::shard::RecordKind::Stripe);
        // The record is padded by less than RECORD_ALIGN, so the shard's length is known only to that accuracy: only
        // a block that lies inside whatever the true length is may be read this way.
        let longest = w.row.record_len as usize - header_len;
        let shortest = longest.saturating_sub(crate::shard::RECORD_ALIGN as usize - 1).max(1);
        let start = w.row.message_offset as usize;
        let end = start + w.row.sealed_len as usize;
        let slot = start / shortest;
        (slot == start / longest && end <= (slot + 1) * shortest && slot < info.geometry.data()).then_some(slot)
    }

    /// Join or rebuild the stripe of `w` from the shards of its run and open it. `None`: look more carefully.
    fn open_quickly(
        &self,
        w: &Wanted,
        run_offset: u64,
        info: &SegmentInfo,
        shards: &[(usize, Vec<u8>)],
    ) -> Option<Arc<Chunk>> {
        let at = (w.row.offset - run_offset) as usize;
        let record = at..at + w.row.record_len as usize;
        let k = info.geometry.data();
        let mut payloads: Vec<(ShardIndex, &[u8])> = Vec::with_capacity(shards.len());
        for (slot, bytes) in shards {
            let index = ShardIndex(*slot as u8);
            let bytes = bytes.get(record.clone())?;
            payloads.push((index, &bytes[quick_check(bytes, info.incarnation, w.row.offset, index)?]));
        }
        let shard_len = payloads.first()?.1.len();
        if shard_len == 0 || payloads.iter().any(|(_, payload)| payload.len() != shard_len) {
            return None;
        }
        let wanted = w.row.message_offset as usize..w.row.message_offset as usize + w.row.sealed_len as usize;
        if wanted.end > k * shard_len {
            return None;
        }
        let mut sealed = Vec::with_capacity(wanted.len());
        let needed = wanted.start / shard_len..(wanted.end - 1) / shard_len + 1;
        let mut rebuilt = Vec::new();
        for slot in needed {
            let from = wanted.start.max(slot * shard_len) - slot * shard_len;
            let to = wanted.end.min((slot + 1) * shard_len) - slot * shard_len;
            if let Some((_, payload)) = payloads.iter().find(|(index, _)| usize::from(index.0) == slot) {
                sealed.extend_from_slice(&payload[from..to]);
                continue;
            }
            rebuilt.resize(shard_len, 0);
            self.stripes
                .coder(info.geometry)
                .reconstruct(&payloads, &[ShardIndex(slot as u8)], &mut [&mut rebuilt[..]])
                .ok()?;
            sealed.extend_from_slice(&rebuilt[from..to]);
        }
        let degraded = payloads.len() >= k && payloads.iter().any(|(index, _)| usize::from(index.0) >= k);
        let chunk = self.open_block(&w.key, sealed)?;
        if degraded {
            Self::count(&self.figures.degraded_reads, 1);
        }
        Some(chunk)
    }

    fn open_block(&self, key: &BlockKey, mut sealed: Vec<u8>) -> Option<Arc<Chunk>> {
        let base = sealed.as_ptr() as usize;
        let (start, len) = match self.sealer.open(BlockKind::FileData, key, &mut sealed).ok()?.plain {
            std::borrow::Cow::Borrowed(plain) => (plain.as_ptr() as usize - base, plain.len()),
            std::borrow::Cow::Owned(plain) => return Some(Arc::new(Chunk::whole(plain))),
        };
        Some(Arc::new(Chunk::part(sealed, start, len)))
    }

    /// Read every shard of the stripe, keep those that verify, and try what they give until the block opens.
    fn read_carefully(&self, w: &Wanted, info: &Arc<SegmentInfo>, ino: Option<Ino>) -> Result<Arc<Chunk>> {
        let survey = self.stripes.survey(place_of(&w.row), info);
        let k = info.geometry.data();
        let event = |what: String, recoverable| DamageEvent { ino, block: w.row.id, what, recoverable };
        if let Some(chunk) = self.try_subsets(w, info, &survey) {
            Self::count(&self.figures.degraded_reads, 1);
            if !survey.bad.is_empty() {
                let what = describe(&survey.bad, info, self);
                self.damage.degraded(event(what, true), survey.wrong(), w.row.segment, w.row.offset);
            }
            return Ok(chunk);
        }
        // A directory that the row does not know may have a shard.
        let placed = self.with_files(w.row.segment, info.clone());
        if placed.slots != info.slots {
            return self.read_carefully(w, &placed, ino);
        }
        self.damage.lost(event(describe(&survey.bad, info, self), false));
        Err(Error::BlockLost {
            block: w.row.id,
            segment: w.row.segment,
            offset: w.row.offset,
            good: survey.good.len(),
            needed: k,
        })
    }

    fn try_subsets(&self, w: &Wanted, info: &SegmentInfo, survey: &Survey) -> Option<Arc<Chunk>> {
        let k = info.geometry.data();
        survey.groups().iter().filter(|group| group.len() >= k).find_map(|group| {
            subsets(group.len(), k).take(SUBSETS_MAX).find_map(|subset| {
                let chosen: Vec<&GoodShard> = subset.iter().map(|&i| group[i]).collect();
                let message = self.stripes.join(&chosen, info.geometry)?;
                let start = w.row.message_offset as usize;
                let sealed = message.get(start..start + w.row.sealed_len as usize)?.to_vec();
                self.open_block(&w.key, sealed)
            })
        })
    }
}

/// Where the stripe of a block lies.
pub(crate) fn place_of(row: &BlockRow) -> StripePlace {
    StripePlace { segment: row.segment, offset: row.offset, record_len: row.record_len }
}

fn unknown_block(id: BlockId) -> Error {
    Error::format(format!("block {id}"), "a file names it but the metadata has no row for it; run `brine check`")
}

/// End of the run that starts at `start`: records side by side in one segment, some gaps allowed.
fn run_end(wanted: &[Wanted], start: usize) -> usize {
    let first = &wanted[start].row;
    let mut end = start + 1;
    let mut reach = first.offset + u64::from(first.record_len);
    while let Some(w) = wanted.get(end) {
        let record_end = w.row.offset + u64::from(w.row.record_len);
        if w.row.segment != first.segment || w.row.offset > reach || record_end - first.offset > RUN_LEN_MAX {
            break;
        }
        reach = reach.max(record_end);
        end += 1;
    }
    end
}

fn describe(bad: &[(usize, &'static str)], info: &SegmentInfo, blocks: &Blocks) -> String {
    let parts: Vec<String> = bad
        .iter()
        .map(|(slot, what)| {
            let path = info.slots[*slot].and_then(|id| blocks.set.get(&id)).map(|m| m.path().display().to_string());
            format!("{what} in {}", path.unwrap_or_else(|| "an unknown directory".into()))
        })
        .collect();
    if parts.is_empty() { "the stored shards do not give the block".into() } else { parts.join(", ") }
}

/// All ways to choose `k` of `n`, the first `k` first.
fn subsets(n: usize, k: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut next = (k <= n).then(|| (0..k).collect::<Vec<usize>>());
    std::iter::from_fn(move || {
        let current = next.take()?;
        let mut following = current.clone();
        if let Some(i) = (0..k).rev().find(|&i| following[i] < n - k + i) {
            following[i] += 1;
            for j in i + 1..k {
                following[j] = following[j - 1] + 1;
            }
            next = Some(following);
        }
        Some(current)
    })
}

#[cfg(test)]
mod tests {
    use super::subsets;

    #[test]
    fn subsets_are_all_ways_to_choose() {
        assert_eq!(subsets(4, 2).count(), 6);
        assert_eq!(subsets(6, 4).count(), 15);
        assert_eq!(subsets(6, 4).next(), Some(vec![0, 1, 2, 3]));
        assert_eq!(subsets(3, 4).count(), 0);
        assert_eq!(subsets(3, 3).count(), 1);
    }
}
