//! Storing chunks: digest, key, known? else seal, pack, code, append, and the rows, in that order.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::pack::{self, Plan};
use super::{Blocks, Chunk};
use crate::backing::{DIRECT_ALIGN, LONG_WRITE_MIN, SharedBytes};
use crate::error::{Error, Result};
use crate::ids::{BlockId, BlockKey, ContentDigest, Generation, SegmentId, ShardIndex};
use crate::meta::Txn;
use crate::meta::rows::{BlockRow, BlockState, SegmentRow, SegmentState};
use crate::seal::{BlockKind, Salt, Sealer};
use crate::segment::{Extent, QUORUM_PATIENCE, Segments, Unnoted};
use crate::shard::{
    BlockEntry, CommitHeader, RECORD_ALIGN, RecordHeader, RecordKind, payload_checksum, record_len, stripe_tag,
};
use crate::stripes::SegmentInfo;

/// A chunk to store.
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    /// Its plaintext, not empty, at most [`crate::seal::CHUNK_LEN_MAX`] bytes.
    pub plain: &'a [u8],
    /// The salt that decides with whom it is shared.
    pub salt: Salt,
}

/// A chunk that is stored.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// The key to read it by.
    pub key: BlockKey,
    /// Its public name.
    pub id: BlockId,
    /// True if nothing had to be written.
    pub duplicate: bool,
}

struct Candidate {
    digest: ContentDigest,
    key: BlockKey,
    id: BlockId,
}

/// What was appended for chunks.
#[derive(Default)]
struct Appended {
    rows: Vec<BlockRow>,
    /// Where, and its bytes in each file.
    run: Option<(Extent, u64)>,
}

/// A block to be sealed, and where its plaintext is.
struct Fresh {
    put: usize,
    sealed_len: usize,
}

/// Claims of blocks that this thread is storing; others that want the same wait.
struct Claims<'a> {
    blocks: &'a Blocks,
    ids: Vec<BlockId>,
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        let mut claimed = self.blocks.claimed.lock();
        for id in &self.ids {
            claimed.remove(id);
        }
        drop(claimed);
        self.blocks.unclaimed.notify_all();
    }
}

/// Rows of segments that go back when the operation that puts them fails, or panics: all of it is undone.
struct Taken<'a> {
    segments: &'a Segments,
    unnoted: Unnoted,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.segments.put_back(std::mem::take(&mut self.unnoted));
    }
}

/// Blocks stored ahead that are told from duplicates when they are put, for the figures.
const AHEAD_COUNTED_MAX: usize = 4096;

/// Attempts at appending before a put gives up: each failed one took a member out.
const APPEND_ATTEMPTS_MAX: usize = 8;

impl Blocks {
    /// Store `puts` and, in the same operation of the metadata, whatever `rows` does with their keys.
    ///
    /// Appended, not synced, when it returns. Errors: [`Error::NoSpace`], [`Error::TooFewMembers`], database errors.
    pub fn put<R>(&self, puts: &[Put<'_>], rows: impl FnOnce(&mut Txn<'_>, &[Stored]) -> Result<R>) -> Result<R> {
        let candidates = self.candidates(puts);
        let _pin = self.pins.enter();
        let claims = self.claim(candidates.iter().map(|c| c.id));
        let mut rows = Some(rows);
        loop {
            if let Some(done) = self.try_put(puts, &candidates, &claims, &mut rows)? {
                return Ok(done);
            }
        }
    }

    /// Store chunks that nothing refers to yet, so that a [`Self::put`] of them finds them: it has little to do then. What is
    /// never put is taken for any block without a reference.
    ///
    /// `enter` is called before the rows are put, and what it returns is held until they are: most of the work is done
    /// before, with who stores the same held off, and gc. Errors as of [`Self::put`].
    pub fn put_ahead<G>(&self, puts: &[Put<'_>], enter: impl FnOnce() -> G) -> Result<()> {
        let candidates = self.candidates(puts);
        let _pin = self.pins.enter();
        let generation = Generation(self.meta.committed().0 + 1);
        let Appended { rows: new_blocks, run } = {
            // Let go of afterwards: who waits for them may hold up whom `enter` waits for.
            let claims = self.claim(candidates.iter().map(|c| c.id));
            let known = self.known(&claims)?;
            let mut seen = HashSet::new();
            let fresh: Vec<usize> = (0..puts.len())
                .filter(|&index| known[&candidates[index].id].is_none() && seen.insert(candidates[index].id))
                .collect();
            self.append(puts, &candidates, &fresh, generation)?
        };
        let Some((extent, len)) = run else { return Ok(()) };
        // Rows of what is durable make no commit wait for it.
        self.segments.sync_apart(&extent, len);
        let _entered = enter();
        let stored = self.settled(|txn| {
            let mut stored = Vec::with_capacity(new_blocks.len());
            for row in &new_blocks {
                // Another may have stored it meanwhile.
                if txn.put_block(row)? {
                    stored.push(row.id);
                }
            }
            Ok(stored)
        })?;
        Self::count(&self.figures.stored_ahead, stored.len());
        let mut ahead = self.ahead.lock();
        if ahead.len() > AHEAD_COUNTED_MAX {
            ahead.clear();
        }
        ahead.extend(stored);
        Ok(())
    }

    fn candidates(&self, puts: &[Put<'_>]) -> Vec<Candidate> {
        let candidate = |put: &Put<'_>| {
            let digest = self.sealer.content_digest(BlockKind::FileData, put.plain);
            let key = self.sealer.block_key(&put.salt, &digest);
            Candidate { digest, key, id: Sealer::block_id(&key) }
        };
        puts.iter().map(candidate).collect()
    }

    /// What is known of the claimed blocks.
    fn known(&self, claims: &Claims<'_>) -> Result<HashMap<BlockId, Option<BlockRow>>> {
        self.meta.look(|txn| claims.ids.iter().map(|id| Ok((*id, txn.block(id)?))).collect())
    }

    /// One attempt at [`Self::put`]. `None`: a block that was to be shared has been condemned meanwhile; what was
    /// appended is there for the next attempt, which stores that block anew.
    fn try_put<R>(
        &self,
        puts: &[Put<'_>],
        candidates: &[Candidate],
        claims: &Claims<'_>,
        rows: &mut Option<impl FnOnce(&mut Txn<'_>, &[Stored]) -> Result<R>>,
    ) -> Result<Option<R>> {
        let known = self.known(claims)?;

        // The first of equal chunks in this call is stored, the others find it.
        let mut fresh_ids: HashMap<BlockId, usize> = HashMap::new();
        let mut fresh = Vec::new();
        let mut stored = Vec::with_capacity(puts.len());
        for (index, candidate) in candidates.iter().enumerate() {
            let usable =
                known.get(&candidate.id).and_then(Option::as_ref).is_some_and(|row| row.state != BlockState::Condemned);
            // Once blocks were found lost, a duplicate is taken only after it was read: what cannot be read is stored
            // again from the plaintext in hand.
            let usable = usable && self.is_sound(&candidate.key, known.get(&candidate.id).and_then(Option::as_ref));
            let duplicate = usable || fresh_ids.contains_key(&candidate.id);
            if !duplicate {
                fresh_ids.insert(candidate.id, index);
                fresh.push(index);
            }
            stored.push(Stored { key: candidate.key, id: candidate.id, duplicate });
        }
        let generation = Generation(self.meta.committed().0 + 1);
        let Appended { rows: new_blocks, run } = self.append(puts, candidates, &fresh, generation)?;
        run.inspect(|(extent, len)| self.segments.appended(extent, *len));
        let outcome = self.settled(|txn| {
            for row in &new_blocks {
                if !txn.put_block(row)? {
                    txn.move_block(&row.id, |old| old.clone_from(row))?;
                }
                self.damage.found(&row.id);
            }
            for shared in stored.iter().filter(|stored| stored.duplicate) {
                if txn.find_duplicate(&shared.id)?.is_none() {
                    return Ok(None);
                }
            }
            rows.take().map(|rows| rows(txn, &stored)).transpose()
        })?;
        if outcome.is_some() {
            let ahead = {
                let mut ahead = self.ahead.lock();
                stored.iter().filter(|stored| ahead.remove(&stored.id) && stored.duplicate).count()
            };
            Self::count(&self.figures.dedup_hits, puts.len() - fresh.len() - ahead);
            Self::count(&self.figures.dedup_misses, fresh.len() + ahead);
        }
        Ok(outcome)
    }

    /// An operation of the metadata, before which the rows of segments are put that were opened or closed since the last:
    /// none is named that has no row, whoever opened it and whatever became of what he wrote.
    pub fn settled<R>(&self, operation: impl FnOnce(&mut Txn<'_>) -> Result<R>) -> Result<R> {
        self.meta.with(|txn| {
            let mut taken = Taken { segments: &self.segments, unnoted: self.segments.take_unnoted() };
            note_segments(txn, &taken.unnoted)?;
            let done = operation(txn)?;
            taken.unnoted = Unnoted::default();
            Ok(done)
        })
    }

    fn is_sound(&self, key: &BlockKey, row: Option<&BlockRow>) -> bool {
        !self.damage.has_lost() || row.is_some_and(|row| self.get_uncached(key, row, None).is_ok())
    }

    fn claim(&self, ids: impl Iterator<Item = BlockId>) -> Claims<'_> {
        let mut ids: Vec<BlockId> = ids.collect();
        ids.sort_unstable();
        ids.dedup();
        let mut claimed = self.claimed.lock();
        // All at once or none: two threads can never wait for each other.
        while ids.iter().any(|id| claimed.contains(id)) {
            self.unclaimed.wait(&mut claimed);
        }
        claimed.extend(ids.iter().copied());
        drop(claimed);
        Claims { blocks: self, ids }
    }

    /// Seal chunks and append them. The segments are not told of the run yet.
    fn append(
        &self,
        puts: &[Put<'_>],
        candidates: &[Candidate],
        fresh: &[usize],
        generation: Generation,
    ) -> Result<Appended> {
        if fresh.is_empty() {
            return Ok(Appended::default());
        }
        // Sealed one after another into one arena, then laid out.
        let mut sealed = self.arena();
        let mut blocks = Vec::with_capacity(fresh.len());
        for &put in fresh {
            let start = sealed.len();
            let chunk = &puts[put];
            self.sealer.seal(BlockKind::FileData, &candidates[put].key, self.codec, chunk.plain, &mut sealed);
            blocks.push(Fresh { put, sealed_len: sealed.len() - start });
        }
        let lens: Vec<usize> = blocks.iter().map(|block| block.sealed_len).collect();
        let plans = pack::plan(&lens, self.geometry.data());
        let mut laid_out = self.lay_out(&plans, &lens, &sealed, candidates, &blocks);
        self.give_back(sealed);

        let written = self.place_stripes(&mut laid_out, generation, QUORUM_PATIENCE);
        let result = written.map(|(extent, len)| {
            let rows = block_rows(&laid_out, &extent, puts, candidates, &blocks, self.codec, generation);
            Appended { rows, run: Some((extent, len)) }
        });
        for stripe in laid_out {
            self.give_back_shared(stripe.shards);
        }
        result
    }

    fn lay_out(
        &self,
        plans: &[Plan],
        lens: &[usize],
        sealed: &[u8],
        candidates: &[Candidate],
        blocks: &[Fresh],
    ) -> Vec<Stripe> {
        let starts: Vec<usize> = lens
            .iter()
            .scan(0, |at, len| {
                let start = *at;
                *at += len;
                Some(start)
            })
            .collect();
        plans
            .iter()
            .map(|plan| {
                let pieces: Vec<(BlockId, usize, &[u8])> = plan
                    .blocks
                    .iter()
                    .map(|&(index, at)| {
                        let bytes = &sealed[starts[index]..starts[index] + lens[index]];
                        (candidates[blocks[index].put].id, at, bytes)
                    })
                    .collect();
                let indices = plan.blocks.iter().map(|&(index, _)| index).collect();
                self.make_stripe(RecordKind::Stripe, &pieces, plan.shard_len, indices)
            })
            .collect()
    }

    /// Code sealed messages, each at its offset, into the shards of one stripe.
    pub(super) fn make_stripe(
        &self,
        kind: RecordKind,
        pieces: &[(BlockId, usize, &[u8])],
        shard_len: usize,
        indices: Vec<usize>,
    ) -> Stripe {
        let (k, total) = (self.geometry.data(), self.geometry.total());
        let mut shards = self.arena();
        let mut entries = Vec::with_capacity(pieces.len());
        for &(id, at, bytes) in pieces {
            shards.resize(at, 0);
            shards.extend_from_slice(bytes);
            entries.push(BlockEntry { id, offset: at as u32, len: bytes.len() as u32 });
        }
        let message_len = shards.len();
        shards.resize(total * shard_len, 0);
        let (data, parity) = shards.split_at_mut(k * shard_len);
        let data: Vec<&[u8]> = data.chunks_exact(shard_len).collect();
        let mut parity: Vec<&mut [u8]> = parity.chunks_exact_mut(shard_len).collect();
        self.stripes.coder(self.geometry).encode(&data, &mut parity);
        let checksums = shards.chunks_exact(shard_len).map(payload_checksum).collect();
        // A commit record is no block: its header names none.
        if kind.is_commit() {
            entries.clear();
        }
        let header_len = RecordHeader::header_len(entries.len(), kind);
        Stripe {
            kind,
            commit: None,
            shards: Arc::new(shards),
            shard_len,
            message_len,
            tag: stripe_tag(pieces.iter().map(|&(_, _, bytes)| bytes)),
            checksums,
            entries,
            indices,
            record_len: record_len(header_len, shard_len),
            at: 0,
        }
    }

    /// Write stripes side by side at one offset, for the next sync; `limit` as of [`crate::segment::Segments::allocate`].
    pub(super) fn write_stripes(
        &self,
        stripes: &mut [Stripe],
        generation: Generation,
        limit: Duration,
    ) -> Result<Extent> {
        let (extent, len) = self.place_stripes(stripes, generation, limit)?;
        self.segments.appended(&extent, len);
        Ok(extent)
    }

    /// As [`Self::write_stripes`], but no sync covers them before the segments are told of the run, of so many bytes.
    fn place_stripes(&self, stripes: &mut [Stripe], generation: Generation, limit: Duration) -> Result<(Extent, u64)> {
        let total: u64 = stripes.iter().map(|stripe| stripe.record_len).sum();
        let mut at = 0;
        for stripe in stripes.iter_mut() {
            stripe.at = at;
            at += stripe.record_len;
        }
        // Long runs take whole pages, so that they can be written past the cache.
        let align = if total >= LONG_WRITE_MIN { DIRECT_ALIGN } else { RECORD_ALIGN };
        let padding = total.next_multiple_of(align) - total;
        let extent = self.append_run(total + padding, align, generation, limit, |extent| {
            for stripe in stripes.iter_mut() {
                if let Some(commit) = &mut stripe.commit {
                    commit.copies = extent.segment.occupied();
                    commit.ack_set = self.segments.healthy(&extent.segment);
                }
            }
            let occupied = extent.segment.occupied();
            let slots = (0..self.geometry.total()).filter(|slot| occupied >> slot & 1 == 1);
            self.segments.write(
                extent,
                slots.map(|slot| (slot, self.slot_bytes(extent, slot, stripes, padding))).collect(),
                false,
                limit,
            )
        })?;
        Ok((extent, total + padding))
    }

    /// Hand out a run of `len` bytes at a multiple of `align` and have `write` fill it. When that fails the directory at fault is taken out, and
    /// the whole run written again elsewhere (offsets are never reused).
    pub(super) fn append_run(
        &self,
        len: u64,
        align: u64,
        generation: Generation,
        limit: Duration,
        mut write: impl FnMut(&Extent) -> Result<()>,
    ) -> Result<Extent> {
        let mut last_error = None;
        for _ in 0..APPEND_ATTEMPTS_MAX {
            let extent = self.segments.allocate(len, align, generation, limit)?;
            if extent.fresh {
                let segment = &extent.segment;
                let info = SegmentInfo {
                    incarnation: segment.incarnation,
                    geometry: segment.geometry,
                    slots: segment.slots.clone(),
                    capacity: segment.capacity,
                };
                self.know_segment(segment.id, info);
            }
            match write(&extent) {
                Ok(()) => return Ok(extent),
                Err(error) => {
                    self.segments.abandon(extent.segment.id);
                    last_error = Some(error);
                }
            }
        }
        Err(last_error.unwrap_or(Error::NoSpace))
    }

    /// What a slot's file holds of a run of stripes.
    fn slot_bytes(&self, extent: &Extent, slot: usize, stripes: &[Stripe], after: u64) -> Vec<SharedBytes> {
        let mut parts = Vec::with_capacity(3 * stripes.len());
        for stripe in stripes {
            let header = self.header(extent, slot, stripe).encode(&self.header_mac);
            let padding = stripe.record_len as usize - header.len() - stripe.shard_len;
            parts.push(header.into());
            parts.push(SharedBytes::part(&stripe.shards, slot * stripe.shard_len..(slot + 1) * stripe.shard_len));
            parts.push(SharedBytes::part(&self.zeroes, 0..padding));
        }
        parts.push(SharedBytes::part(&self.zeroes, 0..after as usize));
        parts
    }

    fn header(&self, extent: &Extent, slot: usize, stripe: &Stripe) -> RecordHeader {
        RecordHeader {
            kind: stripe.kind,
            volume: self.volume,
            segment: extent.segment.id,
            incarnation: extent.segment.incarnation,
            offset: extent.offset + stripe.at,
            shard: ShardIndex(slot as u8),
            geometry: self.geometry,
            message_len: stripe.message_len as u32,
            shard_len: stripe.shard_len as u32,
            stripe_tag: stripe.tag,
            payload_checksum: stripe.checksums[slot],
            blocks: stripe.entries.clone(),
            commit: stripe.commit,
        }
    }

    /// Keep a chunk that was just stored in the cache, for readers that come soon.
    pub fn remember(&self, id: BlockId, plain: Vec<u8>) {
        self.cache.insert(id, std::sync::Arc::new(Chunk::whole(plain)));
    }
}

/// A stripe about to be written.
pub(super) struct Stripe {
    kind: RecordKind,
    pub(super) commit: Option<CommitHeader>,
    /// k data shards, then m parity shards.
    pub(super) shards: Arc<Vec<u8>>,
    shard_len: usize,
    message_len: usize,
    tag: [u8; 32],
    checksums: Vec<[u8; 32]>,
    pub(super) entries: Vec<BlockEntry>,
    /// Index of each entry among the fresh blocks.
    pub(super) indices: Vec<usize>,
    pub(super) record_len: u64,
    /// Offset in the run.
    pub(super) at: u64,
}

fn note_segments(txn: &mut Txn<'_>, unnoted: &Unnoted) -> Result<()> {
    unnoted.opened.iter().try_for_each(|row| txn.put_segment(row))?;
    unnoted.closed.iter().try_for_each(|(id, tail)| close_segment(txn, *id, *tail))
}

/// Note in its row that a segment takes no more records.
pub(crate) fn close_segment(txn: &mut Txn<'_>, id: SegmentId, tail: u64) -> Result<()> {
    match txn.segment(id)? {
        Some(row) => txn.put_segment(&SegmentRow { tail, state: SegmentState::Closed, ..row }),
        // What was in it is gone already.
        None => Ok(()),
    }
}

fn block_rows(
    stripes: &[Stripe],
    extent: &Extent,
    puts: &[Put<'_>],
    candidates: &[Candidate],
    blocks: &[Fresh],
    codec: crate::seal::Codec,
    generation: Generation,
) -> Vec<BlockRow> {
    let segment: SegmentId = extent.segment.id;
    stripes
        .iter()
        .flat_map(|stripe| {
            stripe.entries.iter().zip(&stripe.indices).map(move |(entry, &index)| {
                let put = blocks[index].put;
                BlockRow {
                    id: entry.id,
                    digest: candidates[put].digest,
                    domain: puts[put].salt.domain,
                    epoch: puts[put].salt.epoch,
                    index: puts[put].salt.index,
                    segment,
                    offset: extent.offset + stripe.at,
                    record_len: stripe.record_len as u32,
                    stripe_blocks: stripe.entries.len() as u16,
                    message_offset: entry.offset,
                    sealed_len: entry.len,
                    plain_len: puts[put].plain.len() as u32,
                    refs: 0,
                    state: BlockState::Zero,
                    state_since: generation,
                    verified: false,
                    codec: codec as u8,
                    since: generation,
                }
            })
        })
        .collect()
}
