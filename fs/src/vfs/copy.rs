//! copy_file_range(2): whole chunks are shared, edges and what is not stored yet are copied. Answers are short, at chunk
//! boundaries, so that no request holds the store for long; callers go on from there.

use std::sync::atomic::Ordering;

use super::{Caller, Room, Vfs};
use crate::errno::{Errno, Outcome};
use crate::write_buffer::ShareRange;

/// Most chunks shared by one request: about 20 ms, and 1 GiB of the usual chunks.
const CHUNKS_MAX: u64 = 8192;
/// Most bytes copied by one request.
const BYTES_MAX: u64 = 1 << 20;

/// A place in an open file.
#[derive(Clone, Copy, Debug)]
pub struct FilePlace {
    /// Handle.
    pub handle: u64,
    /// Offset, bytes.
    pub offset: u64,
}

impl Vfs {
    /// Copy up to `len` bytes; returns how many were. 0 at the end of the source. Waits for disks.
    pub fn copy_range(&self, caller: Caller, from: FilePlace, to: FilePlace, len: u64) -> Outcome<u32> {
        // What is below .brine has handles of its own: the kernel then copies by reading and writing.
        let source = self.file(from.handle).map_err(|_| Errno::NOT_SUPPORTED)?;
        let target = self.file(to.handle)?;
        self.deferred_error(&target)?;
        self.check_writable()?;
        let attr = self.attr(source.node.ino)?;
        let len = len.min(attr.size.saturating_sub(from.offset));
        if len == 0 {
            return Ok(0);
        }
        to.offset.checked_add(len).filter(|end| *end <= i64::MAX as u64).ok_or(Errno(libc::EFBIG))?;
        let target_attr = self.attr(target.node.ino)?;
        let (bits, chunk_len) = (attr.chunk_bits, 1u64 << attr.chunk_bits);
        let into_chunk = from.offset & (chunk_len - 1);
        if bits != target_attr.chunk_bits || to.offset & (chunk_len - 1) != into_chunk {
            return self.copy_bytes(caller, from, to, len.min(BYTES_MAX));
        }
        if into_chunk != 0 {
            return self.copy_bytes(caller, from, to, len.min(chunk_len - into_chunk));
        }
        let ends_both = from.offset + len == attr.size && to.offset + len >= target_attr.size;
        let count = if ends_both { len.div_ceil(chunk_len) } else { len / chunk_len }.min(CHUNKS_MAX);
        if count == 0 {
            return self.copy_bytes(caller, from, to, len);
        }
        let range = ShareRange { from: from.offset >> bits, to: to.offset >> bits, count, len: len.min(count << bits) };
        let shared = self
            .buffer
            .share(&source.node, &target.node, range, self.now_ns(), caller.uid != 0)
            .map_err(|error| self.fail("copy to", target.node.ino, &error))?;
        target.wrote.store(true, Ordering::Relaxed);
        if shared > 0 {
            return Ok(shared as u32);
        }
        self.copy_bytes(caller, from, to, len.min(chunk_len))
    }

    fn copy_bytes(&self, caller: Caller, from: FilePlace, to: FilePlace, len: u64) -> Outcome<u32> {
        let bytes = self.read_now(from.handle, from.offset, len as usize)?;
        let data = bytes.as_slice();
        if data.is_empty() {
            return Ok(0);
        }
        let drop_set_id = caller.uid != 0;
        match self.room_for(data.len()) {
            Room::Now => self.write(to.handle, to.offset, data, drop_set_id),
            Room::Later => self.write_when_room(to.handle, to.offset, data, drop_set_id),
        }
    }
}
