//! What writers are promised of the quotas that their files count in, before anything is stored: EDQUOT comes to the
//! writer, not to a later flush.
//!
//! A file takes what its stored chunks take, at most its size. The promise is an upper bound, cheap to know; only if that
//! does not fit, it is looked up which of the buffered chunks are new to the file.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use brine_store::Error;
use brine_store::ids::ChunkNo;
use brine_store::volume::{Attr, INLINE_MAX};

use super::WriteBuffer;
use super::node::{Dirty, FileNode};

/// Most chunks that are looked up one by one.
const LOOK_UP_MAX: u64 = 64 << 10;

/// What a file of `size` bytes takes when `more` chunks are stored besides those that are, at most.
fn takes(attr: &Attr, size: u64, more: u64) -> u64 {
    if attr.chunk_bytes == 0 && size <= INLINE_MAX as u64 {
        return size.next_multiple_of(512);
    }
    let chunks = more.saturating_mul(1 << attr.chunk_bits).saturating_add(attr.chunk_bytes);
    chunks.min(size.min(i64::MAX as u64).next_multiple_of(4096))
}

/// What it takes then beyond what it takes now.
pub(super) fn grows(attr: &Attr, size: u64, more: u64) -> u64 {
    takes(attr, size, more).saturating_sub(attr.allocated)
}

impl WriteBuffer {
    /// Hold what the file may take when `range` (bytes) is written and all is stored; `shared` more chunks are given to it
    /// without passing here.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`]; nothing changed then.
    pub(super) fn hold_quota(&self, dirty: &mut Dirty, range: Range<u64>, shared: u64) -> Result<(), Error> {
        if dirty.base.quota == 0 {
            return Ok(());
        }
        let size = dirty.buffer.size().max(range.end);
        let touched = dirty.buffer.chunks_of(range.start, range.end);
        let touched = if shared > 0 { 0..0 } else { touched };
        let count = touched.end - touched.start;
        let most = dirty.put_since + shared + dirty.buffer.chunks_held() as u64 + count;
        let bound = grows(&dirty.base, size, most);
        if dirty.held.0 == dirty.base.quota && bound <= dirty.held.1 {
            return Ok(());
        }
        let ino = dirty.base.ino;
        match self.volume.hold_quota(ino, dirty.held, &[], |_, _| bound) {
            Err(Error::QuotaExceeded) if count <= LOOK_UP_MAX => {}
            held => {
                dirty.held = held?;
                return Ok(());
            }
        }
        let chunks: BTreeSet<u64> = dirty.buffer.chunk_numbers().chain(touched).collect();
        let chunks: Vec<ChunkNo> = chunks.into_iter().map(ChunkNo).collect();
        dirty.held =
            self.volume.hold_quota(ino, dirty.held, &chunks, |attr, missing| grows(attr, size, missing + shared))?;
        Ok(())
    }

    /// Whether a range could be written in full, as far as quotas are concerned. Promises nothing for later.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`], and what the store says.
    pub fn check_quota(&self, node: &Arc<FileNode>, range: Range<u64>) -> Result<(), Error> {
        let _gate = self.change();
        let mut state = node.state.lock();
        let outcome = self.ensure(&mut state, node).and_then(|dirty| {
            let before = dirty.held.1;
            self.hold_quota(dirty, range, 0)?;
            // Less than is held always fits.
            dirty.held = self.volume.hold_quota(dirty.base.ino, dirty.held, &[], |_, _| before)?;
            Ok(())
        });
        self.settle(node, &mut state);
        outcome
    }
}
