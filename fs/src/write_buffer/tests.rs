//! The buffer of one file against a plain vector of bytes, over a store that is a map.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::chunk::BufferPool;
use super::file::{FileBuffer, Taken};

const BITS: u8 = 4;
const CHUNK: u64 = 1 << BITS;

/// xorshift: reproducible without a dependency.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A file: what is buffered, what the store has, what it must read as.
struct File {
    buffer: FileBuffer<()>,
    store: BTreeMap<u64, Vec<u8>>,
    model: Vec<u8>,
    taken: Vec<Taken<()>>,
}

impl File {
    fn new() -> Self {
        let pool = Arc::new(BufferPool::new(CHUNK as usize, 4));
        Self { buffer: FileBuffer::new(BITS, 0, pool), store: BTreeMap::new(), model: Vec::new(), taken: Vec::new() }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let granted = self.buffer.reserve(offset, data.len() as u64, |_| Ok::<_, ()>(())).unwrap();
        self.buffer.write(offset, data, granted);
        let end = offset as usize + data.len();
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[offset as usize..end].copy_from_slice(data);
    }

    fn truncate(&mut self, size: u64) {
        self.settle(true);
        self.buffer.truncate(size, None);
        self.model.resize(size as usize, 0);
        self.store.split_off(&size.div_ceil(CHUNK));
    }

    fn zero(&mut self, start: u64, end: u64) {
        self.settle(true);
        for chunk in self.buffer.zero(start, end, false, None, |_| false) {
            self.store.remove(&chunk);
        }
        let (start, end) = (start.min(self.model.len() as u64), end.min(self.model.len() as u64));
        self.model[start as usize..end as usize].fill(0);
    }

    fn complete(&mut self) {
        let incomplete: Vec<_> = self.buffer.incomplete().collect();
        for (chunk, id) in incomplete {
            self.buffer.fill(chunk, id, self.store.get(&chunk).map(Vec::as_slice));
        }
    }

    fn take(&mut self, full: bool) {
        let taken = self.buffer.begin_seal(0..u64::MAX, full);
        self.taken.extend(taken);
    }

    /// The store is handed the small writes alone, while nobody writes.
    fn patch(&mut self, stored: bool) {
        let small: Vec<u64> = self.buffer.small_writes().map(|(chunk, ..)| chunk).collect();
        for taken in self.buffer.begin_patch(&small) {
            for (at, bytes) in taken.writes().filter(|_| stored) {
                let (start, end) = (at as usize, at as usize + bytes.len());
                let chunk = self.store.entry(taken.chunk).or_default();
                chunk.resize(chunk.len().max(end), 0);
                chunk[start..end].copy_from_slice(bytes);
            }
            self.check_len(&taken);
            self.buffer.end_seal(taken, stored);
        }
    }

    fn check_len(&self, taken: &Taken<()>) {
        let end = taken.writes().map(|(at, bytes)| u64::from(at) + bytes.len() as u64).max().unwrap_or(0);
        assert!(taken.chunk * CHUNK + end <= self.buffer.size(), "written past the end of the file");
    }

    /// The store finishes what was taken, oldest last, to show that order within a batch does not matter.
    fn settle(&mut self, stored: bool) {
        while let Some(taken) = self.taken.pop() {
            if stored {
                self.store.insert(taken.chunk, taken.bytes().to_vec());
            }
            self.buffer.end_seal(taken, stored);
        }
    }

    fn check(&self, start: u64, end: u64) {
        assert_eq!(self.buffer.size(), self.model.len() as u64);
        let (start, end) = (start.min(self.buffer.size()), end.min(self.buffer.size()));
        let mut out = vec![0xaa; (end - start) as usize];
        for gap in self.buffer.read(start, &mut out) {
            let stored = self.store.get(&gap.chunk).map(Vec::as_slice).unwrap_or_default();
            for (byte, at) in out[gap.out].iter_mut().zip(gap.at as usize..) {
                *byte = stored.get(at).copied().unwrap_or(0);
            }
        }
        assert_eq!(out, self.model[start as usize..end as usize], "{start}..{end}");
    }

    /// Everything that is not zero is found by walking the data runs of buffer and store.
    fn check_data_runs(&self) {
        let mut seen = vec![false; self.model.len()];
        let mut at = 0;
        while let Some((start, end)) = self.buffer.next_data(at) {
            assert!(start >= at && end > start);
            seen[(start as usize).min(self.model.len())..(end as usize).min(self.model.len())].fill(true);
            at = end;
        }
        for (chunk, bytes) in &self.store {
            let start = (chunk * CHUNK) as usize;
            let end = (start + bytes.len()).min(seen.len());
            seen[start.min(end)..end].fill(true);
        }
        for (offset, byte) in self.model.iter().enumerate() {
            assert!(*byte == 0 || seen[offset], "byte {offset} is data nobody reports");
        }
    }
}

#[test]
fn reads_as_written_whatever_is_sealed_when() {
    for seed in 1..40u64 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed << 20));
        let mut file = File::new();
        for step in 0..1500u64 {
            let (offset, len) = (random.below(150), random.below(40) + 1);
            match random.below(16) {
                0..=6 => {
                    let data: Vec<u8> = (0..len).map(|at| (1 + (step + at) % 250) as u8).collect();
                    file.write(offset, &data);
                }
                7 => file.truncate(random.below(180)),
                8 => file.zero(offset, offset + len * 2),
                9 => file.take(true),
                10 => {
                    file.complete();
                    file.take(false);
                }
                11 | 12 => file.settle(true),
                13 => file.settle(random.below(3) > 0),
                14 => file.patch(random.below(4) > 0),
                _ => {}
            }
            let (from, to) = (random.below(180), random.below(180));
            file.check(from.min(to), from.max(to));
            if step % 16 == 0 {
                file.check(0, u64::MAX);
                file.check_data_runs();
            }
        }
        file.settle(true);
        file.complete();
        file.take(false);
        file.settle(true);
        assert!(file.buffer.is_clean(), "seed {seed}");
        assert_eq!(file.buffer.held(), 0, "seed {seed}: memory not given back");
        let mut stored = vec![0; file.model.len()];
        for (chunk, bytes) in &file.store {
            let start = (chunk * CHUNK) as usize;
            assert!(start + bytes.len() <= stored.len(), "seed {seed}: chunk {chunk} reaches past the end");
            stored[start..start + bytes.len()].copy_from_slice(bytes);
        }
        assert_eq!(stored, file.model, "seed {seed}");
    }
}

#[test]
fn a_chunk_written_while_it_is_sealed_is_sealed_again_later() {
    let mut file = File::new();
    file.write(0, &[1; CHUNK as usize]);
    file.take(true);
    file.write(3, &[2; 2]);
    assert!(file.buffer.is_contended());
    let before = file.taken.len();
    file.take(false);
    assert_eq!(file.taken.len(), before, "one chunk sealed twice at a time");
    file.settle(true);
    file.check(0, CHUNK);
    file.take(false);
    file.settle(true);
    assert!(file.buffer.is_clean());
    assert_eq!(file.store[&0], file.model);
}

#[test]
fn a_small_write_needs_no_reading_until_it_is_sealed() {
    let mut file = File::new();
    file.write(0, &[7; 2 * CHUNK as usize]);
    file.take(true);
    file.settle(true);
    file.write(CHUNK + 5, &[9]);
    assert_eq!(file.buffer.incomplete().count(), 1);
    assert!(file.buffer.begin_seal(0..u64::MAX, false).is_empty(), "sealed without its old content");
    file.check(0, 2 * CHUNK);
    // Overwriting all of it makes the old content needless.
    file.write(CHUNK, &[8; CHUNK as usize]);
    assert_eq!(file.buffer.incomplete().count(), 0);
}

#[test]
fn small_writes_are_handed_over_alone_unless_something_was_cut_off() {
    let mut file = File::new();
    file.write(0, &[7; 2 * CHUNK as usize]);
    file.take(true);
    file.settle(true);
    file.write(3, &[1; 2]);
    file.write(9, &[2; 3]);
    file.write(CHUNK + 1, &[3]);
    assert_eq!(file.buffer.small_writes().collect::<Vec<_>>(), [(0, 5, 2), (1, 1, 1)]);
    file.patch(false);
    assert_eq!(file.buffer.small_writes().count(), 2, "refused writes are dirty again");
    file.patch(true);
    assert!(file.buffer.is_clean());
    file.check(0, 2 * CHUNK);
    file.write(4, &[4]);
    file.truncate(10);
    assert_eq!(file.buffer.small_writes().count(), 0, "the store still has what was cut off");
    file.complete();
    file.take(false);
    file.settle(true);
    file.write(12, &[5]);
    file.patch(true);
    file.check(0, CHUNK);
}

#[test]
fn the_tail_cut_off_stays_zero_when_the_file_grows_again() {
    let mut file = File::new();
    file.write(0, &[5; 12]);
    file.take(false);
    file.settle(true);
    file.truncate(4);
    file.truncate(12);
    file.check(0, 12);
    assert_eq!(file.model[4..], [0; 8]);
    file.complete();
    file.take(false);
    file.settle(true);
    file.check(0, 12);
    assert_eq!(file.store[&0].len(), 4);
}

#[test]
fn scattered_writes_hold_memory_for_what_was_written() {
    let pool = Arc::new(BufferPool::new(128 << 10, 4));
    let mut buffer = FileBuffer::<()>::new(17, 1 << 30, pool);
    for write in 0..100u64 {
        buffer.write((write % 10) * (5 << 20) + write * 8192, &[1; 4096], Vec::new());
    }
    assert_eq!(buffer.held(), 100 * 4096);
}

#[test]
fn space_is_asked_for_once() {
    let mut file = File::new();
    let mut asked = 0;
    for at in 0..CHUNK {
        let granted = file.buffer.reserve(at, 1, |bytes| {
            asked += bytes;
            Ok::<_, ()>(())
        });
        file.buffer.write(at, &[1], granted.unwrap());
    }
    assert_eq!(asked, CHUNK);
    assert_eq!(file.buffer.reserve(0, 3 * CHUNK, |bytes| if bytes > 0 { Err("full") } else { Ok(()) }), Err("full"));
}

#[test]
fn full_runs_are_batches_of_neighbours() {
    let mut file = File::new();
    for chunk in [0u64, 1, 3, 4, 5] {
        file.write(chunk * CHUNK, &[1; CHUNK as usize]);
    }
    assert_eq!(file.buffer.full_runs(5 * CHUNK, 6 * CHUNK, 2), [(4, 2)]);
    file.write(2 * CHUNK, &[1; CHUNK as usize]);
    assert_eq!(file.buffer.full_runs(2 * CHUNK, 6 * CHUNK, 3), [(0, 3), (3, 3)]);
    file.write(6 * CHUNK, &[1; 3]);
    assert_eq!(file.buffer.full_runs(6 * CHUNK, 6 * CHUNK + 3, 8), []);
}
