//! Copying without moving data: chunks of one file become chunks of another.
//!
//! What is dirty in the source is not in the store yet and cannot be shared; the copy ends before it, and the caller
//! copies those bytes. Sharing locks two files' states, which nothing else does; one copy at a time keeps two copies in
//! opposite directions apart.

use std::sync::Arc;

use brine_store::Error;
use brine_store::ids::ChunkNo;
use brine_store::volume::INLINE_MAX;

use super::WriteBuffer;
use super::node::FileNode;

/// A range of whole chunks to copy. Its last chunk may be the short one that ends the source.
#[derive(Clone, Copy, Debug)]
pub struct ShareRange {
    /// First chunk in the source.
    pub from: u64,
    /// First chunk in the target.
    pub to: u64,
    /// Chunks.
    pub count: u64,
    /// Length, bytes: more than `count - 1` chunks, at most `count`.
    pub len: u64,
}

impl WriteBuffer {
    /// Let `target` share chunks of `source`, as many of the first as can be. Returns the bytes copied, 0 if the first
    /// chunk cannot be shared. The files have one chunk length; in one file the ranges do not overlap. Waits for chunks
    /// being sealed.
    ///
    /// # Errors
    /// What the store says; nothing was copied then.
    pub fn share(
        &self,
        source: &Arc<FileNode>,
        target: &Arc<FileNode>,
        range: ShareRange,
        now_ns: i64,
        drop_set_id: bool,
    ) -> Result<u64, Error> {
        let _alone = self.sharing.lock();
        let _gate = self.change();
        let mut state = target.state.lock();
        self.ensure(&mut state, target)?;
        self.wait_sealed(target, &mut state, range.to..range.to + range.count);
        // Held until the extents are shared: what is stored of the source stays so. A lock of two states is safe, as
        // nobody who holds one waits for another but here.
        let other = (!Arc::ptr_eq(source, target)).then(|| source.state.lock());
        let outcome = self.ensure(&mut state, target).and_then(|dirty| {
            let bits = dirty.base.chunk_bits;
            let end = |len| (range.to << bits) + len;
            let (clean, source_size) = match other.as_deref() {
                None => (clean_prefix(dirty, range), dirty.buffer.size()),
                Some(Some(other)) => (clean_prefix(other, range), other.buffer.size()),
                Some(None) => {
                    let attr = self.volume.attr(source.ino)?;
                    let inline = attr.size <= INLINE_MAX as u64 && self.volume.inline_data(source.ino)?.is_some();
                    (if inline { 0 } else { range.count }, attr.size)
                }
            };
            let mut len = range.len.min(clean << bits);
            // A short last chunk must end both files, else bytes past the copy would be lost or appear.
            let ends_both = (range.from << bits) + len >= source_size && end(len) >= dirty.buffer.size();
            if !ends_both {
                len = len >> bits << bits;
            }
            if len == 0 || dirty.stored_inline {
                return Ok(0);
            }
            let count = dirty.buffer.chunks_of(0, len).end;
            if dirty.base.quota != 0 {
                let given = match other.as_deref() {
                    None => dirty.base,
                    Some(Some(other)) => other.base,
                    Some(None) => self.volume.attr(source.ino)?,
                };
                let shared = self.volume.chunks_stored(&given, ChunkNo(range.from), count)?;
                self.promise_quota(dirty, range.to << bits..end(len), shared)?;
                dirty.put_since += shared;
            }
            self.volume.share_extents(source.ino, ChunkNo(range.from), target.ino, ChunkNo(range.to), count)?;
            if drop_set_id {
                self.drop_set_id(dirty, now_ns)?;
            }
            if end(len) > dirty.buffer.size() {
                dirty.buffer.truncate(end(len), None);
            }
            // Whole chunks only: a short one ends the file.
            dirty.buffer.zero(range.to << bits, end(len), false, None, |_| false);
            dirty.buffer.stored_up_to(end(len));
            dirty.touch(now_ns);
            self.account(dirty);
            Ok(len)
        });
        drop(other);
        self.settle(target, &mut state);
        outcome
    }
}

/// How many of the first chunks of a range the store has.
fn clean_prefix(dirty: &super::node::Dirty, range: ShareRange) -> u64 {
    if dirty.stored_inline {
        return 0;
    }
    let touched = dirty.buffer.first_touched(range.from..range.from + range.count);
    touched.map_or(range.count, |chunk| chunk - range.from)
}
