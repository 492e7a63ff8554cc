//! Storing what is about to be written, before it is accepted.
//!
//! What was accepted belongs to the next commit, whoever asked for it: beside a stream a small sync would wait until all of
//! the stream's data is sealed and appended. Done ahead, with nobody held off, only the rows are left to the commit.

use std::sync::Arc;

use brine_store::Error;

use super::WriteBuffer;
use super::node::FileNode;

impl WriteBuffer {
    /// Store the whole chunks of `data`, which is about to be written at `offset`: sealing finds them stored then. The caller
    /// must not hold the gate.
    ///
    /// # Errors
    /// As a write would be refused, and what the store says. Nothing is lost by them.
    pub fn store_ahead(&self, node: &Arc<FileNode>, offset: u64, data: &[u8]) -> Result<(), Error> {
        let known = node.state.lock().as_ref().map(|dirty| dirty.base);
        let attr = known.map_or_else(|| self.volume.attr(node.ino), Ok)?;
        // Whoever may not write it may not have it stored (R10).
        let _reservation = self.volume.reserve(data.len() as u64)?;
        if attr.quota != 0 {
            self.check_quota(node, offset..offset + data.len() as u64)?;
        }
        self.volume.bound_unsynced();
        let start = (offset.next_multiple_of(1 << attr.chunk_bits) - offset).min(data.len() as u64);
        let chunks: Vec<&[u8]> = data[start as usize..].chunks_exact(1 << attr.chunk_bits).collect();
        self.volume.store_ahead(&attr, &chunks)
    }
}
