//! What was written to one file and is not in the store yet. Pure: knows no store and no lock.
//!
//! A chunk is `dirty` until it is taken for sealing, `sealing` until the store has it, and then forgotten here. A chunk
//! written again while it is being sealed gets a new dirty buffer, a copy; the same chunk is never sealed twice at a
//! time, so the later content always wins.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use super::chunk::{BufferPool, ChunkBuf};

/// A part of a read that the store must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Number of the chunk.
    pub chunk: u64,
    /// First byte within the chunk.
    pub at: u32,
    /// Where it goes in the reader's buffer.
    pub out: Range<usize>,
}

/// A chunk handed out for sealing; goes back by [`FileBuffer::end_seal`].
pub struct Taken<R> {
    /// Number of the chunk.
    pub chunk: u64,
    buffer: Arc<ChunkBuf<R>>,
    /// How much of the chunk lies within the file's size, bytes.
    limit: u32,
}

impl<R> Taken<R> {
    /// The chunk's bytes; it reads as zero past them.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.bytes(self.limit)
    }

    /// The runs that were written, within the file's size: where each starts within the chunk, and its bytes.
    pub fn writes(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let within = |(start, bytes): (u32, &'_ [u8])| bytes.len().min(self.limit.saturating_sub(start) as usize);
        let runs = self.buffer.writes().into_iter().flatten();
        runs.map(move |run| (run.0, &run.1[..within(run)])).filter(|(_, bytes)| !bytes.is_empty())
    }
}

/// Space granted for one chunk: chunk number, what holds the space, bytes.
pub type Grant<R> = (u64, R, u32);

/// Dirty chunks of one file, and the size they give it.
pub struct FileBuffer<R> {
    chunk_bits: u8,
    size: u64,
    /// Past this offset the store holds nothing of the file.
    stored_end: u64,
    dirty: BTreeMap<u64, ChunkBuf<R>>,
    sealing: BTreeMap<u64, Arc<ChunkBuf<R>>>,
    held: usize,
    pool: Arc<BufferPool>,
}

impl<R> FileBuffer<R> {
    /// Nothing dirty over a stored file of `size` bytes, cut into chunks of `1 << chunk_bits` bytes.
    pub fn new(chunk_bits: u8, size: u64, pool: Arc<BufferPool>) -> Self {
        Self { chunk_bits, size, stored_end: size, dirty: BTreeMap::new(), sealing: BTreeMap::new(), held: 0, pool }
    }

    /// Size of the file, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Past this offset the store holds nothing of the file.
    pub fn stored_end(&self) -> u64 {
        self.stored_end
    }

    /// Memory held, bytes.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Chunks that are here, those twice that are dirty while an older content is being sealed.
    pub fn chunks_held(&self) -> usize {
        self.dirty.len() + self.sealing.len()
    }

    /// Numbers of the chunks that are here.
    pub fn chunk_numbers(&self) -> impl Iterator<Item = u64> {
        self.dirty.keys().chain(self.sealing.keys()).copied()
    }

    /// Whether the store has everything.
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.sealing.is_empty()
    }

    /// Whether what there is is being sealed already.
    pub fn is_all_sealing(&self) -> bool {
        self.dirty.is_empty() && !self.sealing.is_empty()
    }

    /// Whether chunks are being sealed now.
    pub fn is_sealing(&self) -> bool {
        !self.sealing.is_empty()
    }

    /// Whether a chunk of `chunks` is being sealed now.
    pub fn is_sealing_in(&self, chunks: Range<u64>) -> bool {
        !chunks.is_empty() && self.sealing.range(chunks).next().is_some()
    }

    /// Whether a chunk waits to be sealed while an older content of it is being sealed.
    pub fn is_contended(&self) -> bool {
        self.sealing.keys().any(|chunk| self.dirty.contains_key(chunk))
    }

    fn chunk_len(&self) -> u32 {
        1 << self.chunk_bits
    }

    fn start_of(&self, chunk: u64) -> u64 {
        chunk << self.chunk_bits
    }

    /// The chunks that `start..end` touches.
    pub fn chunks_of(&self, start: u64, end: u64) -> Range<u64> {
        let first = start >> self.chunk_bits;
        first..if end <= start { first } else { ((end - 1) >> self.chunk_bits) + 1 }
    }

    /// How many of a chunk's first bytes the store may hold.
    fn old_len(&self, chunk: u64) -> u32 {
        self.stored_end.saturating_sub(self.start_of(chunk)).min(u64::from(self.chunk_len())) as u32
    }

    /// `start..end` cut at chunk borders: (chunk, from, to), from and to within the chunk.
    fn pieces(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u32, u32)> + use<R> {
        let (bits, len) = (self.chunk_bits, u64::from(self.chunk_len()));
        self.chunks_of(start, end).map(move |chunk| {
            let base = chunk << bits;
            (chunk, start.saturating_sub(base) as u32, (end - base).min(len) as u32)
        })
    }

    /// Ask `reserve` for the space that sealing the chunks touched by a write may need beyond what is held already.
    ///
    /// # Errors
    /// The first refusal; what was granted before is given back.
    pub fn reserve<E>(
        &self,
        offset: u64,
        len: u64,
        mut reserve: impl FnMut(u64) -> Result<R, E>,
    ) -> Result<Vec<Grant<R>>, E> {
        let mut granted = Vec::new();
        for (chunk, _, to) in self.pieces(offset, offset + len) {
            let (held, known) = match (self.dirty.get(&chunk), self.sealing.get(&chunk)) {
                (Some(dirty), _) => (dirty.reserved_len, dirty.len()),
                (None, Some(sealing)) => (0, sealing.len()),
                (None, None) => (0, self.old_len(chunk)),
            };
            // In powers of two, so that a file appended to in small steps asks a few times only.
            let worst = to.max(known).next_power_of_two().clamp(4096.min(self.chunk_len()), self.chunk_len());
            if worst > held {
                granted.push((chunk, reserve(u64::from(worst - held))?, worst - held));
            }
        }
        Ok(granted)
    }

    /// The dirty buffer of a chunk, made if there is none.
    fn chunk(&mut self, chunk: u64) -> &mut ChunkBuf<R> {
        if !self.dirty.contains_key(&chunk) {
            let buffer = match self.sealing.get(&chunk) {
                Some(sealing) => sealing.copy(&self.pool),
                None => ChunkBuf::new(self.old_len(chunk)),
            };
            self.held += buffer.held();
            self.dirty.insert(chunk, buffer);
        }
        self.dirty.get_mut(&chunk).expect("inserted above")
    }

    /// Change a chunk's dirty buffer and keep the account of its memory.
    fn change(&mut self, chunk: u64, change: impl FnOnce(&mut ChunkBuf<R>, &BufferPool)) {
        let pool = Arc::clone(&self.pool);
        let buffer = self.chunk(chunk);
        let before = buffer.held();
        change(buffer, &pool);
        let after = buffer.held();
        self.held = self.held + after - before;
    }

    /// Put `data` at `offset`; the file grows to hold it.
    pub fn write(&mut self, offset: u64, data: &[u8], granted: Vec<Grant<R>>) {
        let end = offset + data.len() as u64;
        let mut rest = data;
        for (chunk, from, to) in self.pieces(offset, end) {
            let (now, later) = rest.split_at((to - from) as usize);
            self.change(chunk, |buffer, pool| buffer.write(from, now, pool));
            rest = later;
        }
        for (chunk, reservation, len) in granted {
            self.chunk(chunk).hold(reservation, len);
        }
        self.size = self.size.max(end);
    }

    /// Read `offset..offset + out.len()`, which must lie within the file; what only the store knows is returned.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for (chunk, from, to) in self.pieces(offset, offset + out.len() as u64) {
            let base = (self.start_of(chunk) + u64::from(from) - offset) as usize;
            let part = &mut out[base..base + (to - from) as usize];
            let missing = if let Some(dirty) = self.dirty.get(&chunk) {
                dirty.read(from, part)
            } else if let Some(sealing) = self.sealing.get(&chunk) {
                sealing.read(from, part)
            } else {
                let old_end = self.old_len(chunk).clamp(from, to);
                part[(old_end - from) as usize..].fill(0);
                if from < old_end { vec![(from, old_end)] } else { Vec::new() }
            };
            gaps.extend(missing.into_iter().map(|(start, end)| Gap {
                chunk,
                at: start,
                out: base + (start - from) as usize..base + (end - from) as usize,
            }));
        }
        gaps
    }

    /// Whether a read of `start..end` needs nothing from here.
    pub fn is_untouched(&self, start: u64, end: u64) -> bool {
        let chunks = self.chunks_of(start, end);
        end <= self.stored_end
            && self.dirty.range(chunks.clone()).next().is_none()
            && self.sealing.range(chunks).next().is_none()
    }

    /// The first of `chunks` of which something is here.
    pub fn first_touched(&self, chunks: Range<u64>) -> Option<u64> {
        let dirty = self.dirty.range(chunks.clone()).next().map(|(chunk, _)| *chunk);
        let sealing = self.sealing.range(chunks).next().map(|(chunk, _)| *chunk);
        [dirty, sealing].into_iter().flatten().min()
    }

    /// The store was given content up to `end` without passing here.
    pub fn stored_up_to(&mut self, end: u64) {
        self.stored_end = self.stored_end.max(end);
    }

    /// Give the file a new size. Nothing at or past the new end may be being sealed; the store must drop its chunks
    /// past the new end itself.
    pub fn truncate(&mut self, size: u64, reservation: Option<R>) {
        if size < self.size {
            let first_gone = self.chunks_of(0, size).end;
            for (_, gone) in self.dirty.split_off(&first_gone) {
                self.held -= gone.held();
                gone.recycle(&self.pool);
            }
            let cut = (size - self.start_of(size >> self.chunk_bits)) as u32;
            if cut > 0 {
                let last = size >> self.chunk_bits;
                // The store may hold bytes past the cut that must never be seen again: the chunk is written anew.
                if self.dirty.contains_key(&last) || self.old_len(last) > cut {
                    self.change(last, |buffer, _| buffer.crop(cut));
                    if let Some(reservation) = reservation {
                        self.chunk(last).hold(reservation, cut);
                    }
                }
            }
            self.stored_end = self.stored_end.min(size);
        }
        self.size = size;
    }

    /// Make `start..end` zero, as far as the file's size. The whole chunks returned are dropped here and must be
    /// dropped in the store; none of them, nor of the edges, may be being sealed. With `inline` the store keeps the
    /// content inline and has no chunks to drop; chunk 0 stays here then, so that something says that it is zero.
    /// Edges that are zero in the store (`is_hole`) and not here stay as they are.
    pub fn zero(
        &mut self,
        start: u64,
        end: u64,
        inline: bool,
        mut reservation: Option<R>,
        is_hole: impl Fn(u64) -> bool,
    ) -> Range<u64> {
        let end = end.min(self.size);
        let mut punched: Option<Range<u64>> = None;
        for (chunk, from, to) in self.pieces(start.min(end), end) {
            let last = self.start_of(chunk) + u64::from(to) >= self.size;
            let whole = from == 0 && (to == self.chunk_len() || last);
            if whole && !(inline && chunk == 0) {
                if let Some(gone) = self.dirty.remove(&chunk) {
                    self.held -= gone.held();
                    gone.recycle(&self.pool);
                }
                punched = Some(punched.map_or(chunk, |range| range.start)..chunk + 1);
            } else if self.dirty.contains_key(&chunk) || (self.old_len(chunk) > from && !is_hole(chunk)) {
                self.change(chunk, |buffer, pool| buffer.zero(from, to, pool));
                if let Some(reservation) = reservation.take() {
                    self.chunk(chunk).hold(reservation, 0);
                }
            }
        }
        punched.unwrap_or(0..0)
    }

    /// Dirty chunks whose old content must be read before they can be sealed: (chunk, id of the buffer).
    pub fn incomplete(&self) -> impl Iterator<Item = (u64, u64)> {
        self.dirty.iter().filter(|(_, buffer)| !buffer.is_whole()).map(|(chunk, buffer)| (*chunk, buffer.id))
    }

    /// Bring in the stored content of a chunk, unless another buffer took the place of the one asked for.
    pub fn fill(&mut self, chunk: u64, id: u64, old: Option<&[u8]>) {
        if self.dirty.get(&chunk).is_some_and(|buffer| buffer.id == id) {
            self.change(chunk, |buffer, pool| buffer.fill(old, pool));
        }
    }

    /// Put the whole content of a file that the store keeps inline into chunk 0, if nothing newer is there.
    pub fn load_inline(&mut self, data: &[u8]) {
        if !self.dirty.contains_key(&0) && !self.sealing.contains_key(&0) {
            let data = &data[..data.len().min(self.size as usize)];
            self.change(0, |buffer, pool| buffer.write(0, data, pool));
        }
    }

    /// Runs of at least `batch` neighbouring full chunks around `start..end`, cut into batches: (first chunk, count).
    pub fn full_runs(&self, start: u64, end: u64, batch: u64) -> Vec<(u64, u64)> {
        let touched = self.chunks_of(start, end);
        let from = touched.start.saturating_sub(batch - 1);
        let (mut runs, mut first, mut count) = (Vec::new(), 0, 0);
        for (chunk, buffer) in self.dirty.range(from..touched.end) {
            let ready = buffer.is_full(self.chunk_len()) && !self.sealing.contains_key(chunk);
            if !ready {
                count = 0;
                continue;
            }
            if count == 0 || first + count != *chunk {
                (first, count) = (*chunk, 0);
            }
            count += 1;
            if count == batch {
                runs.push((first, count));
                count = 0;
            }
        }
        runs
    }

    /// Take the dirty chunks of `chunks` that can be sealed now; only full ones, if `full`.
    pub fn begin_seal(&mut self, chunks: Range<u64>, full: bool) -> Vec<Taken<R>> {
        let len = self.chunk_len();
        let ready: Vec<u64> = self
            .dirty
            .range(chunks)
            .filter(|(chunk, buffer)| {
                !self.sealing.contains_key(chunk) && if full { buffer.is_full(len) } else { buffer.is_whole() }
            })
            .map(|(chunk, _)| *chunk)
            .collect();
        ready
            .into_iter()
            .map(|chunk| {
                self.change(chunk, |buffer, pool| buffer.flatten(pool));
                let buffer = Arc::new(self.dirty.remove(&chunk).expect("listed above"));
                self.sealing.insert(chunk, Arc::clone(&buffer));
                let limit = self.size.saturating_sub(self.start_of(chunk)).min(u64::from(len)) as u32;
                Taken { chunk, buffer, limit }
            })
            .collect()
    }

    /// Dirty chunks of which little was written and nothing else is to be stored: (chunk, bytes written, runs).
    pub fn small_writes(&self) -> impl Iterator<Item = (u64, usize, usize)> {
        let idle = self.dirty.iter().filter(|(chunk, _)| !self.sealing.contains_key(chunk));
        idle.filter(|(_, buffer)| !buffer.is_full(self.chunk_len())).filter_map(|(chunk, buffer)| {
            let (bytes, runs) = buffer.writes()?.fold((0, 0), |(bytes, runs), run| (bytes + run.1.len(), runs + 1));
            (runs > 0).then_some((*chunk, bytes, runs))
        })
    }

    /// Take dirty chunks of [`Self::small_writes`], to store their writes alone. No writer may come until they are back.
    pub fn begin_patch(&mut self, chunks: &[u64]) -> Vec<Taken<R>> {
        let len = u64::from(self.chunk_len());
        let take = |chunk: &u64| {
            let buffer = Arc::new(self.dirty.remove(chunk)?);
            self.sealing.insert(*chunk, Arc::clone(&buffer));
            let limit = self.size.saturating_sub(self.start_of(*chunk)).min(len) as u32;
            Some(Taken { chunk: *chunk, buffer, limit })
        };
        chunks.iter().filter_map(take).collect()
    }

    /// The store has a taken chunk, or (`stored` false) refused it: then it is dirty again unless newer content is.
    pub fn end_seal(&mut self, taken: Taken<R>, stored: bool) {
        let Taken { chunk, buffer, .. } = taken;
        drop(self.sealing.remove(&chunk));
        // `sealing` had the only other share.
        let Some(buffer) = Arc::into_inner(buffer) else { return };
        if stored {
            self.stored_end = self.stored_end.max(self.start_of(chunk) + u64::from(buffer.len()));
        } else if let Entry::Vacant(slot) = self.dirty.entry(chunk) {
            slot.insert(buffer);
            return;
        }
        self.held -= buffer.held();
        buffer.recycle(&self.pool);
    }

    /// Whether all of a file of at most `max` bytes lies in its first chunk, whole and dirty.
    pub fn fits_inline(&self, max: u64) -> bool {
        self.size > 0
            && self.size <= max
            && self.sealing.is_empty()
            && self.dirty.len() == 1
            && self.dirty.get(&0).is_some_and(ChunkBuf::is_whole)
    }

    /// Next offset at or past `from` that is dirty, and where that run of dirty bytes ends.
    pub fn next_data(&self, from: u64) -> Option<(u64, u64)> {
        let first = from >> self.chunk_bits;
        let at = |chunk: u64| if chunk == first { (from - self.start_of(chunk)) as u32 } else { 0 };
        let dirty = self.dirty.range(first..).find_map(|(chunk, buffer)| {
            let (start, end) = buffer.next_data(at(*chunk))?;
            Some((self.start_of(*chunk) + u64::from(start), self.start_of(*chunk) + u64::from(end)))
        });
        let sealing = self.sealing.range(first..).find_map(|(chunk, buffer)| {
            let start = at(*chunk);
            (start < buffer.len())
                .then(|| (self.start_of(*chunk) + u64::from(start), self.start_of(*chunk) + u64::from(buffer.len())))
        });
        match (dirty, sealing) {
            (Some(dirty), Some(sealing)) => Some(if dirty.0 <= sealing.0 { dirty } else { sealing }),
            (dirty, sealing) => dirty.or(sealing),
        }
    }

    /// Drop everything dirty: nobody can read the file any more. Nothing may be being sealed.
    pub fn discard(&mut self) {
        for (_, gone) in std::mem::take(&mut self.dirty) {
            gone.recycle(&self.pool);
        }
        self.held = 0;
    }
}
