//! One chunk that was written and is not in the store yet, and the memory it lies in.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::ranges::Ranges;

/// Smallest allocation of a chunk buffer, bytes.
const SMALL_MIN: usize = 4 << 10;
/// Up to this many bytes buffers are allocated to measure; larger ones come whole from the pool. Ten thousand new
/// 4 KiB files must not cost ten thousand whole chunks of memory.
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

/// Content of one chunk over what the store holds of it.
///
/// A byte at `p` is: what was written, if `valid` has it; else the store's, if `p < old_len`; else zero. So a write of
/// a few bytes reads nothing; [`Self::fill`] brings the store's bytes in when the chunk is sealed.
pub struct ChunkBuf<R> {
    /// Tells this buffer from any other, also one of the same chunk after the file was clean in between.
    pub(super) id: u64,
    /// Bytes from the chunk's start; those not in `valid` are zero.
    data: Vec<u8>,
    valid: Ranges,
    /// Length of the chunk's beginning for which the store's bytes count, bytes.
    old_len: u32,
    /// Space held for what sealing this chunk may store.
    reserved: Vec<R>,
    pub(super) reserved_len: u32,
}

impl<R> ChunkBuf<R> {
    pub(super) fn new(data: Vec<u8>, old_len: u32) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { id, data, valid: Ranges::default(), old_len, reserved: Vec::new(), reserved_len: 0 }
    }

    /// Memory held, bytes.
    pub(super) fn held(&self) -> usize {
        self.data.capacity()
    }

    pub(super) fn hold(&mut self, reservation: R, len: u32) {
        self.reserved.push(reservation);
        self.reserved_len += len;
    }

    /// Length the chunk has as far as this buffer knows, bytes.
    pub(super) fn len(&self) -> u32 {
        self.old_len.max(self.data.len() as u32)
    }

    /// Whether the store's bytes are not needed to know the chunk.
    pub(super) fn is_whole(&self) -> bool {
        self.valid.covers(0, self.old_len)
    }

    /// Whether all `chunk_len` bytes were written.
    pub(super) fn is_full(&self, chunk_len: u32) -> bool {
        self.valid.covers(0, chunk_len)
    }

    pub(super) fn write(&mut self, at: u32, bytes: &[u8], pool: &BufferPool) {
        let (start, end) = (at as usize, at as usize + bytes.len());
        self.make_room(end, pool);
        if self.data.len() <= start {
            self.data.resize(start, 0);
            self.data.extend_from_slice(bytes);
        } else {
            let overlap = end.min(self.data.len()) - start;
            self.data[start..start + overlap].copy_from_slice(&bytes[..overlap]);
            self.data.extend_from_slice(&bytes[overlap..]);
        }
        self.valid.insert(at, end as u32);
    }

    /// Make `from..to` zero.
    pub(super) fn zero(&mut self, from: u32, to: u32, pool: &BufferPool) {
        if to >= self.len() {
            return self.crop(from);
        }
        self.make_room(to as usize, pool);
        if self.data.len() < to as usize {
            self.data.resize(to as usize, 0);
        }
        self.data[from as usize..to as usize].fill(0);
        self.valid.insert(from, to);
    }

    /// Make everything at or past `end` zero.
    pub(super) fn crop(&mut self, end: u32) {
        self.data.truncate(end as usize);
        self.valid.crop(end);
        self.old_len = self.old_len.min(end);
    }

    /// Copy `at..at + out.len()` out; the ranges returned are the store's and were left alone.
    pub(super) fn read(&self, at: u32, out: &mut [u8]) -> Vec<(u32, u32)> {
        let end = at + out.len() as u32;
        let known = (self.data.len() as u32).clamp(at, end);
        if at < known {
            out[..(known - at) as usize].copy_from_slice(&self.data[at as usize..known as usize]);
        }
        out[(known - at) as usize..].fill(0);
        let old_end = self.old_len.clamp(at, end);
        self.valid.gaps(at, old_end)
    }

    /// Bring in the store's bytes (`None`: a hole) where nothing was written; the chunk is whole then.
    pub(super) fn fill(&mut self, old: Option<&[u8]>, pool: &BufferPool) {
        let old = old.unwrap_or_default();
        let old = &old[..old.len().min(self.old_len as usize)];
        self.make_room(old.len(), pool);
        if self.data.len() < old.len() {
            self.data.resize(old.len(), 0);
        }
        for (from, to) in self.valid.gaps(0, old.len() as u32) {
            self.data[from as usize..to as usize].copy_from_slice(&old[from as usize..to as usize]);
        }
        self.valid.insert(0, self.len());
    }

    /// The chunk's bytes, up to `limit`; a chunk that is shorter reads as zero past its end.
    pub(super) fn bytes(&self, limit: u32) -> &[u8] {
        &self.data[..self.data.len().min(limit as usize)]
    }

    /// A copy to write to while this one is being sealed.
    pub(super) fn copy(&self, pool: &BufferPool) -> Self {
        let mut data = pool.take(self.data.len());
        data.extend_from_slice(&self.data);
        let mut copy = Self::new(data, 0);
        copy.valid.insert(0, self.data.len() as u32);
        copy
    }

    pub(super) fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// The first byte at or past `from` that is data here, and the first that is not; `None` if there is none.
    pub(super) fn next_data(&self, from: u32) -> Option<(u32, u32)> {
        self.valid.within(from, u32::MAX).next()
    }

    fn make_room(&mut self, len: usize, pool: &BufferPool) {
        if len > self.data.capacity() {
            let mut larger = pool.take(len);
            larger.extend_from_slice(&self.data);
            pool.give(std::mem::replace(&mut self.data, larger));
        }
    }
}
