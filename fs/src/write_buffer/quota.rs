//! What writers are promised of the quotas that their files count in, before anything is stored: EDQUOT comes to the
//! writer, not to a later flush.
//!
//! A file takes what its stored chunks take, at most its size. What is promised is an upper bound, cheap to know; only if that
//! does not fit, it is looked up which of the buffered chunks are new to the file.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use brine_store::Error;
use brine_store::ids::ChunkNo;
use brine_store::volume::{Attr, INLINE_MAX};

use super::WriteBuffer;
use super::node::{Dirty, FileNode};

/// Longest that a flush under way is waited for.
const EXACT_PATIENCE: Duration = Duration::from_secs(1);
/// Most chunks that are looked up one by one.
const LOOK_UP_MAX: u64 = 64 << 10;

/// What a file of `size` bytes takes when `more` chunks are stored besides those that are, at most.
pub(super) fn takes(attr: &Attr, size: u64, more: u64) -> u64 {
    if attr.chunk_bytes == 0 && size <= INLINE_MAX as u64 {
        return size.next_multiple_of(512);
    }
    let chunks = more.saturating_mul(1 << attr.chunk_bits).saturating_add(attr.chunk_bytes);
    chunks.min(size.min(i64::MAX as u64).next_multiple_of(4096))
}

impl WriteBuffer {
    /// Be promised what the file may take when `range` (bytes) is written and all is stored; `shared` more chunks are given
    /// to it without passing here.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`]; nothing changed then.
    pub(super) fn promise_quota(&self, dirty: &mut Dirty, range: Range<u64>, shared: u64) -> Result<(), Error> {
        if dirty.base.quota == 0 {
            return Ok(());
        }
        let size = dirty.buffer.size().max(range.end);
        let touched = dirty.buffer.chunks_of(range.start, range.end);
        let touched = if shared > 0 { 0..0 } else { touched };
        let count = touched.end - touched.start;
        let more = dirty.put_since + shared + dirty.buffer.chunks_held() as u64 + count;
        let bound = takes(&dirty.base, size, more);
        if dirty.promised.is_some_and(|promised| bound <= promised) {
            return Ok(());
        }
        let ino = dirty.base.ino;
        match self.volume.promise_quota(ino, &[], |_, _| bound) {
            Err(Error::QuotaExceeded) if count <= LOOK_UP_MAX => {}
            promised => {
                dirty.promised = Some(promised?);
                return Ok(());
            }
        }
        let chunks: BTreeSet<u64> = dirty.buffer.chunk_numbers().chain(touched).collect();
        let chunks: Vec<ChunkNo> = chunks.into_iter().map(ChunkNo).collect();
        let promised = self.volume.promise_quota(ino, &chunks, |attr, missing| takes(attr, size, missing + shared))?;
        dirty.promised = Some(promised);
        Ok(())
    }

    /// Something of the file was given back, and is free for others: be promised no more than what is to come to what is
    /// left.
    pub(super) fn promise_less(&self, dirty: &mut Dirty) -> Result<(), Error> {
        let Some(promised) = dirty.promised else { return Ok(()) };
        let (size, more) = (dirty.buffer.size(), dirty.buffer.chunks_held() as u64);
        // Less than was promised always fits.
        let most = |attr: &Attr, _| takes(attr, size, more).min(promised);
        dirty.promised = Some(self.volume.promise_quota(dirty.base.ino, &[], most)?);
        Ok(())
    }

    /// Let all files be promised exactly what they may come to take, not the bound that is cheap to know: for who is told
    /// EDQUOT else. Waits, for a moment, for what is being flushed: that is looked up when it is stored.
    pub fn promise_exactly(&self) -> Result<(), Error> {
        self.await_put(EXACT_PATIENCE);
        let nodes: Vec<Arc<FileNode>> = self.list.lock().values().cloned().collect();
        for node in nodes {
            let mut state = node.state.lock();
            let Some(dirty) = state.as_mut() else { continue };
            let Some(promised) = dirty.promised.filter(|_| dirty.buffer.chunks_held() as u64 <= LOOK_UP_MAX) else {
                continue;
            };
            let size = dirty.buffer.size();
            let chunks: BTreeSet<u64> = dirty.buffer.chunk_numbers().collect();
            let chunks: Vec<ChunkNo> = chunks.into_iter().map(ChunkNo).collect();
            // Less than was promised always fits.
            let most = |attr: &Attr, missing| takes(attr, size, missing).min(promised);
            dirty.promised = Some(self.volume.promise_quota(node.ino, &chunks, most)?);
        }
        Ok(())
    }

    /// Nothing more is to come.
    pub(super) fn release_quota(&self, dirty: &Dirty) {
        if dirty.promised.is_some() {
            self.volume.release_quota(dirty.base.ino);
        }
    }

    /// Whether a range could be written in full, as far as quotas are concerned. Promises nothing for later.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`], and what the store says.
    pub fn check_quota(&self, node: &Arc<FileNode>, range: Range<u64>) -> Result<(), Error> {
        let _gate = self.change();
        let mut state = node.state.lock();
        let outcome = self.ensure(&mut state, node).and_then(|dirty| {
            let before = dirty.promised;
            self.promise_quota(dirty, range, 0)?;
            if dirty.promised.is_some() {
                // Less than is promised always fits.
                let before = before.unwrap_or(0);
                dirty.promised = Some(self.volume.promise_quota(dirty.base.ino, &[], |_, _| before)?);
            }
            Ok(())
        });
        self.settle(node, &mut state);
        outcome
    }
}
