//! One chunk that was written and is not in the store yet, and the memory it lies in.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Smallest allocation for a piece, bytes.
const SMALL_MIN: usize = 4 << 10;
/// Up to this many bytes buffers are allocated to measure; larger ones come whole from the pool. Ten thousand new
/// 4 KiB files, or writes at random places, must not cost ten thousand whole chunks of memory.
const SMALL_MAX: usize = 32 << 10;

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Whole-chunk buffers kept for reuse: fresh memory costs a page fault per 4 KiB.
pub struct BufferPool {
    len: usize,
    keep: usize,
    spare: Mutex<Vec<Vec<u8>>>,
}

impl BufferPool {
    /// Buffers of `len` bytes, at most `keep` of them kept while unused.
    pub fn new(len: usize, keep: usize) -> Self {
        Self { len, keep, spare: Mutex::new(Vec::new()) }
    }

    /// An empty buffer that holds at least `min` bytes without growing.
    pub fn take(&self, min: usize) -> Vec<u8> {
        if min <= SMALL_MAX {
            return Vec::with_capacity(min.next_power_of_two().max(SMALL_MIN));
        }
        if min > self.len {
            // Chunks of another size than the volume's usual one are not pooled.
            return Vec::with_capacity(min.next_power_of_two());
        }
        self.spare.lock().pop().unwrap_or_else(|| Vec::with_capacity(self.len))
    }

    /// Give a buffer back.
    pub fn give(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() == self.len {
            buffer.clear();
            let mut spare = self.spare.lock();
            if spare.len() < self.keep {
                spare.push(buffer);
            }
        }
    }
}

/// A run of written bytes.
struct Piece {
    /// Offset of the first byte within the chunk.
    start: u32,
    data: Vec<u8>,
}

impl Piece {
    fn end(&self) -> u32 {
        self.start + self.data.len() as u32
    }

    /// The bytes of `from..to`, which lie within the piece.
    fn part(&self, from: u32, to: u32) -> &[u8] {
        &self.data[(from - self.start) as usize..(to - self.start) as usize]
    }

    /// Put bytes at `at`, which lies within the piece or right behind it.
    fn put(&mut self, at: u32, bytes: &[u8], pool: &BufferPool) {
        let start = (at - self.start) as usize;
        let end = start + bytes.len();
        if end > self.data.capacity() {
            let mut larger = pool.take(end);
            larger.extend_from_slice(&self.data);
            pool.give(std::mem::replace(&mut self.data, larger));
        }
        let overlap = end.min(self.data.len()) - start;
        self.data[start..start + overlap].copy_from_slice(&bytes[..overlap]);
        self.data.extend_from_slice(&bytes[overlap..]);
    }
}

/// Content of one chunk over what the store holds of it.
///
/// A byte at `p` is: what was written, if a piece has it; else the store's, if `p < old_len`; else zero. So a write of a
/// few bytes reads nothing; [`Self::fill`] brings the store's bytes in when the chunk is sealed.
pub struct ChunkBuf<R> {
    /// Tells this buffer from any other, also one of the same chunk after the file was clean in between.
    pub(super) id: u64,
    /// In order, neither overlapping nor touching.
    pieces: Vec<Piece>,
    /// Length of the chunk's beginning for which the store's bytes count, bytes.
    old_len: u32,
    /// The store may have bytes past `old_len` that must not be seen again: the chunk is to be stored whole.
    cropped: bool,
    /// Space held for what sealing this chunk may store.
    reserved: Vec<R>,
    pub(super) reserved_len: u32,
}

impl<R> ChunkBuf<R> {
    pub(super) fn new(old_len: u32) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { id, pieces: Vec::new(), old_len, cropped: false, reserved: Vec::new(), reserved_len: 0 }
    }

    /// Memory held, bytes.
    pub(super) fn held(&self) -> usize {
        self.pieces.iter().map(|piece| piece.data.capacity()).sum()
    }

    pub(super) fn hold(&mut self, reservation: R, len: u32) {
        self.reserved.push(reservation);
        self.reserved_len += len;
    }

    fn end(&self) -> u32 {
        self.pieces.last().map_or(0, Piece::end)
    }

    /// Length the chunk has as far as this buffer knows, bytes.
    pub(super) fn len(&self) -> u32 {
        self.old_len.max(self.end())
    }

    /// Whether the store's bytes are not needed to know the chunk.
    pub(super) fn is_whole(&self) -> bool {
        // Pieces do not touch, so a single one must cover all.
        self.old_len == 0 || self.pieces.first().is_some_and(|piece| piece.start == 0 && piece.end() >= self.old_len)
    }

    /// Whether all `chunk_len` bytes were written.
    pub(super) fn is_full(&self, chunk_len: u32) -> bool {
        self.pieces.first().is_some_and(|piece| piece.start == 0 && piece.end() >= chunk_len)
    }

    pub(super) fn write(&mut self, at: u32, bytes: &[u8], pool: &BufferPool) {
        if bytes.is_empty() {
            return;
        }
        let end = at + bytes.len() as u32;
        let first = self.pieces.partition_point(|piece| piece.end() < at);
        let past = self.pieces.partition_point(|piece| piece.start <= end);
        match &mut self.pieces[first..past] {
            [] => {
                let mut data = pool.take(bytes.len());
                data.extend_from_slice(bytes);
                self.pieces.insert(first, Piece { start: at, data });
            }
            // Appending, or overwriting: what nearly all writes do.
            [piece] if piece.start <= at => piece.put(at, bytes, pool),
            touched => {
                let start = at.min(touched[0].start);
                let len = end.max(touched[touched.len() - 1].end()) - start;
                let mut joined = Piece { start, data: pool.take(len as usize) };
                // What lies between the pieces lies within the bytes.
                for piece in touched.iter_mut() {
                    joined.data.resize((piece.start.max(start) - start) as usize, 0);
                    joined.put(piece.start, &piece.data, pool);
                    pool.give(std::mem::take(&mut piece.data));
                }
                joined.data.resize(joined.data.len().max((at - start) as usize), 0);
                joined.put(at, bytes, pool);
                self.pieces.splice(first..past, [joined]);
            }
        }
    }

    /// Make `from..to` zero.
    pub(super) fn zero(&mut self, from: u32, to: u32, pool: &BufferPool) {
        if to >= self.len() {
            self.crop(from);
        } else {
            self.write(from, &vec![0; (to - from) as usize], pool);
        }
    }

    /// Make everything at or past `end` zero.
    pub(super) fn crop(&mut self, end: u32) {
        self.pieces.retain_mut(|piece| {
            piece.data.truncate(end.saturating_sub(piece.start) as usize);
            !piece.data.is_empty()
        });
        self.old_len = self.old_len.min(end);
        self.cropped = true;
    }

    /// Copy `at..at + out.len()` out; the ranges returned are the store's and were left alone.
    pub(super) fn read(&self, at: u32, out: &mut [u8]) -> Vec<(u32, u32)> {
        let end = at + out.len() as u32;
        let mut gaps = Vec::new();
        let mut between = |from: u32, to: u32, out: &mut [u8]| {
            let old_end = self.old_len.clamp(from, to);
            if from < old_end {
                gaps.push((from, old_end));
            }
            out[(old_end - at) as usize..(to - at) as usize].fill(0);
        };
        let mut known = at;
        for piece in &self.pieces[self.pieces.partition_point(|piece| piece.end() <= at)..] {
            let (from, to) = (piece.start.max(at), piece.end().min(end));
            if from >= end {
                break;
            }
            between(known, from, out);
            out[(from - at) as usize..(to - at) as usize].copy_from_slice(piece.part(from, to));
            known = to;
        }
        between(known, end, out);
        gaps
    }

    /// Bring in the store's bytes (`None`: a hole) where nothing was written; the chunk is whole then.
    pub(super) fn fill(&mut self, old: Option<&[u8]>, pool: &BufferPool) {
        let old = old.unwrap_or_default();
        let old = &old[..old.len().min(self.old_len as usize)];
        let mut data = pool.take(old.len().max(self.end() as usize));
        data.extend_from_slice(old);
        self.flatten_over(data, pool);
    }

    /// Make one piece of it that starts with the chunk, if it is not so already. The chunk must be whole.
    pub(super) fn flatten(&mut self, pool: &BufferPool) {
        let flat = match &self.pieces[..] {
            [] => true,
            [piece] => piece.start == 0,
            _ => false,
        };
        if !flat {
            self.flatten_over(pool.take(self.end() as usize), pool);
        }
    }

    /// Lay the pieces over `data`, the chunk's beginning; what neither has is zero.
    fn flatten_over(&mut self, data: Vec<u8>, pool: &BufferPool) {
        let mut flat = Piece { start: 0, data };
        for piece in &mut self.pieces {
            if flat.end() < piece.start {
                flat.data.resize(piece.start as usize, 0);
            }
            flat.put(piece.start, &piece.data, pool);
            pool.give(std::mem::take(&mut piece.data));
        }
        self.pieces.clear();
        if !flat.data.is_empty() {
            self.pieces.push(flat);
        }
        self.old_len = 0;
    }

    /// The bytes of a flat chunk, up to `limit`; a chunk that is shorter reads as zero past its end.
    pub(super) fn bytes(&self, limit: u32) -> &[u8] {
        self.pieces.first().map_or(&[], |piece| piece.part(0, piece.end().min(limit)))
    }

    /// A copy, to write to while this one is being stored.
    pub(super) fn copy(&self, pool: &BufferPool) -> Self {
        let mut copy = Self::new(self.old_len);
        copy.cropped = self.cropped;
        self.pieces.iter().for_each(|piece| copy.write(piece.start, &piece.data, pool));
        copy
    }

    /// What was written, if that is all there is to store: where each run starts within the chunk, and its bytes.
    pub(super) fn writes(&self) -> Option<impl Iterator<Item = (u32, &[u8])>> {
        (!self.cropped).then(|| self.pieces.iter().map(|piece| (piece.start, &piece.data[..])))
    }

    /// Give the memory back.
    pub(super) fn recycle(self, pool: &BufferPool) {
        self.pieces.into_iter().for_each(|piece| pool.give(piece.data));
    }

    /// The first run of written bytes that ends past `from`: where it starts, not before `from`, and where it ends.
    pub(super) fn next_data(&self, from: u32) -> Option<(u32, u32)> {
        let piece = self.pieces.iter().find(|piece| piece.end() > from)?;
        Some((piece.start.max(from), piece.end()))
    }
}
