//! Reading: the buffer first, then the cache, then the backing directories.

use std::ops::Range;
use std::sync::Arc;

use brine_store::ids::ChunkNo;
use brine_store::volume::{Attr, Volume};
use parking_lot::Mutex;

use super::Vfs;
use crate::control_dir::VirtualFile;
use crate::errno::Outcome;
use crate::handle::OpenFile;
use crate::write_buffer::{Gap, Stored, read_stored, stored_in_cache};

/// Buffers for joined reads kept for reuse, and their most length, bytes: fresh memory costs a page fault per 4 KiB.
const SCRATCH_KEPT: usize = 16;
const SCRATCH_LEN_MAX: usize = 1 << 20;

/// Buffers for reads that join several pieces.
#[derive(Default)]
pub struct Scratch(Mutex<Vec<Vec<u8>>>);

impl Scratch {
    fn take(&self) -> Vec<u8> {
        self.0.lock().pop().unwrap_or_default()
    }

    fn give(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock();
        if buffer.capacity() <= SCRATCH_LEN_MAX && kept.len() < SCRATCH_KEPT {
            kept.push(buffer);
        }
    }
}

/// What was read.
pub enum ReadBytes {
    /// Part of one stored chunk, not copied.
    Shared(Stored, Range<usize>),
    /// Bytes of a file below `.brine`.
    Owned(Vec<u8>),
    /// Pieces joined in a buffer that goes back when this is dropped.
    Joined {
        /// The buffer; longer than what was read.
        buffer: Vec<u8>,
        /// Bytes read.
        len: usize,
        /// Where the buffer goes.
        home: Arc<Scratch>,
    },
}

impl ReadBytes {
    /// The bytes, in the file's order.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Shared(stored, range) => &stored[range.clone()],
            Self::Owned(bytes) => bytes,
            Self::Joined { buffer, len, .. } => &buffer[..*len],
        }
    }
}

impl Drop for ReadBytes {
    fn drop(&mut self) {
        if let Self::Joined { buffer, home, .. } = self {
            home.give(std::mem::take(buffer));
        }
    }
}

/// A read that was begun.
pub enum ReadStart {
    /// It needed no disk.
    Done(ReadBytes),
    /// [`PendingRead::finish`] may wait for a disk.
    Waits(PendingRead),
    /// A file below `.brine`; reading it may wait for anything.
    Control(Arc<dyn VirtualFile>),
}

/// A read of which the backing directories must be asked.
pub struct PendingRead {
    volume: Arc<Volume>,
    attr: Attr,
    gaps: Vec<Gap>,
    inline: Option<bool>,
    buffer: Vec<u8>,
    len: usize,
    home: Arc<Scratch>,
}

impl PendingRead {
    fn chunks(&self) -> Vec<ChunkNo> {
        let mut chunks: Vec<ChunkNo> = self.gaps.iter().map(|gap| ChunkNo(gap.chunk)).collect();
        // A chunk written in the middle leaves two gaps.
        chunks.dedup();
        chunks
    }

    /// Read what is missing. Waits for a disk.
    pub fn finish(self, vfs: &Vfs) -> Outcome<ReadBytes> {
        let chunks = self.chunks();
        match read_stored(&self.volume, &self.attr, &chunks, self.inline) {
            Ok(found) => Ok(self.join(&chunks, &found)),
            Err(error) => Err(vfs.fail("read of", self.attr.ino, &error)),
        }
    }

    fn join(mut self, chunks: &[ChunkNo], found: &[Stored]) -> ReadBytes {
        if let ([gap], [stored]) = (&self.gaps[..], found)
            && gap.out == (0..self.len)
        {
            let range = gap.at as usize..gap.at as usize + self.len;
            if range.end <= stored.len() {
                self.home.give(std::mem::take(&mut self.buffer));
                return ReadBytes::Shared(stored.clone(), range);
            }
        }
        if self.buffer.len() < self.len {
            self.buffer.resize(self.len, 0);
        }
        let mut at = 0;
        for gap in &self.gaps {
            while chunks[at].0 != gap.chunk {
                at += 1;
            }
            let stored: &[u8] = &found[at];
            let start = (gap.at as usize).min(stored.len());
            let end = (gap.at as usize + gap.out.len()).min(stored.len());
            let (filled, zero) = self.buffer[gap.out.clone()].split_at_mut(end - start);
            filled.copy_from_slice(&stored[start..end]);
            zero.fill(0);
        }
        ReadBytes::Joined { buffer: self.buffer, len: self.len, home: self.home }
    }
}

impl Vfs {
    /// Begin reading `len` bytes at `offset`; fewer come at the end of the file.
    pub fn read(&self, handle: u64, offset: u64, len: usize) -> Outcome<ReadStart> {
        if let Some(file) = self.control.file(handle) {
            let file = file?;
            return Ok(if file.waits() {
                ReadStart::Control(file)
            } else {
                ReadStart::Done(ReadBytes::Owned(file.read(offset, len)?))
            });
        }
        let file = self.file(handle)?;
        let mut buffer = self.scratch.take();
        let fail = |error| self.fail("read of", file.node.ino, &error);
        let found = self.buffer.read(&file.node, offset, &mut buffer, len).map_err(fail)?;
        self.touch_atime(&found.attr);
        let pending = PendingRead {
            volume: Arc::clone(&self.volume),
            attr: found.attr,
            gaps: found.gaps,
            inline: found.inline,
            buffer,
            len: found.len,
            home: Arc::clone(&self.scratch),
        };
        if pending.gaps.is_empty() {
            return Ok(ReadStart::Done(pending.join(&[], &[])));
        }
        self.read_ahead(&file, &pending.attr, offset, found.len as u64);
        let chunks = pending.chunks();
        let cached = stored_in_cache(&self.volume, &pending.attr, &chunks, pending.inline).map_err(fail)?;
        Ok(match cached {
            Some(found) => ReadStart::Done(pending.join(&chunks, &found)),
            None => ReadStart::Waits(pending),
        })
    }

    fn read_ahead(&self, file: &OpenFile, attr: &Attr, offset: u64, len: u64) {
        let ahead = file.readahead.lock().advance(offset, len, attr.size, self.options.readahead_bytes);
        if let Some((start, end)) = ahead {
            let first = start >> attr.chunk_bits;
            let past = ((end - 1) >> attr.chunk_bits) + 1;
            self.volume.prefetch(attr, ChunkNo(first), past - first);
        }
    }

    /// Read and wait for it: for callers without an event thread.
    pub fn read_now(&self, handle: u64, offset: u64, len: usize) -> Outcome<ReadBytes> {
        match self.read(handle, offset, len)? {
            ReadStart::Done(bytes) => Ok(bytes),
            ReadStart::Waits(pending) => pending.finish(self),
            ReadStart::Control(file) => file.read(offset, len).map(ReadBytes::Owned),
        }
    }
}
