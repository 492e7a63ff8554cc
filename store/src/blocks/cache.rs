//! The cache of decoded blocks: bounded in bytes, and a long scan does not push out what is used again.
//!
//! Two queues (the "2Q" scheme of Johnson and Shasha, 1994, without its ghost list): a block comes into `recent`;
//! asked for again it moves to `frequent`. A scan only ever turns over `recent`, a quarter of the bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashlink::LinkedHashMap;
use parking_lot::Mutex;

use super::Chunk;
use crate::ids::BlockId;

#[derive(Default)]
struct Queues {
    recent: LinkedHashMap<BlockId, Arc<Chunk>>,
    frequent: LinkedHashMap<BlockId, Arc<Chunk>>,
    recent_bytes: u64,
    frequent_bytes: u64,
}

/// Decoded blocks by id.
pub struct Cache {
    limit: u64,
    queues: Mutex<Queues>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What the cache holds and how often it helped.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct CacheFigures {
    /// Bytes held.
    pub bytes: u64,
    /// Bytes it may hold.
    pub limit: u64,
    /// Look-ups that found their block.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
}

/// What an entry costs besides its bytes.
const ENTRY_BYTES: u64 = 128;

fn cost(chunk: &Chunk) -> u64 {
    chunk.buffer.capacity() as u64 + ENTRY_BYTES
}

impl Cache {
    /// Holding at most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, queues: Mutex::default(), hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// The block, if held.
    pub fn get(&self, id: &BlockId) -> Option<Arc<Chunk>> {
        let mut queues = self.queues.lock();
        let queues = &mut *queues;
        let found = if let Some(chunk) = queues.frequent.to_back(id) {
            Some(chunk.clone())
        } else if let Some(chunk) = queues.recent.remove(id) {
            let bytes = cost(&chunk);
            queues.recent_bytes -= bytes;
            queues.frequent_bytes += bytes;
            queues.frequent.insert(*id, chunk.clone());
            Some(chunk)
        } else {
            None
        };
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// True if held; changes nothing.
    pub fn contains(&self, id: &BlockId) -> bool {
        let queues = self.queues.lock();
        queues.frequent.contains_key(id) || queues.recent.contains_key(id)
    }

    /// Hold `chunk`, and let go of what no longer fits.
    pub fn insert(&self, id: BlockId, chunk: Arc<Chunk>) {
        let bytes = cost(&chunk);
        if bytes > self.limit / 4 {
            return;
        }
        let mut queues = self.queues.lock();
        let queues = &mut *queues;
        if queues.frequent.contains_key(&id) || queues.recent.contains_key(&id) {
            return;
        }
        queues.recent.insert(id, chunk);
        queues.recent_bytes += bytes;
        while queues.recent_bytes + queues.frequent_bytes > self.limit {
            let from_recent = queues.recent_bytes > self.limit / 4 || queues.frequent.is_empty();
            let (queue, held) = if from_recent {
                (&mut queues.recent, &mut queues.recent_bytes)
            } else {
                (&mut queues.frequent, &mut queues.frequent_bytes)
            };
            let Some((_, gone)) = queue.pop_front() else { break };
            *held -= cost(&gone);
        }
    }

    /// Let go of one block.
    pub fn remove(&self, id: &BlockId) {
        let mut queues = self.queues.lock();
        if let Some(chunk) = queues.recent.remove(id) {
            queues.recent_bytes -= cost(&chunk);
        }
        if let Some(chunk) = queues.frequent.remove(id) {
            queues.frequent_bytes -= cost(&chunk);
        }
    }

    /// Let go of everything.
    pub fn clear(&self) {
        *self.queues.lock() = Queues::default();
    }

    /// What it holds and how often it helped.
    pub fn figures(&self) -> CacheFigures {
        let queues = self.queues.lock();
        CacheFigures {
            bytes: queues.recent_bytes + queues.frequent_bytes,
            limit: self.limit,
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> BlockId {
        let mut id = BlockId::default();
        id.0[..4].copy_from_slice(&n.to_le_bytes());
        id
    }

    #[test]
    fn stays_under_its_limit_and_a_scan_spares_what_was_used_twice() {
        let cache = Cache::new(100_000);
        for n in 0..10 {
            cache.insert(id(n), Arc::new(Chunk::whole(vec![n as u8; 1000])));
            assert!(cache.get(&id(n)).is_some());
        }
        for n in 100..10_000 {
            cache.insert(id(n), Arc::new(Chunk::whole(vec![0; 1000])));
            assert!(cache.figures().bytes <= 100_000);
        }
        for n in 0..10 {
            assert_eq!(cache.get(&id(n)).expect("used twice, so kept")[0], n as u8);
        }
        assert!(!cache.contains(&id(100)));
        cache.remove(&id(3));
        assert!(cache.get(&id(3)).is_none());
        cache.clear();
        assert_eq!(cache.figures().bytes, 0);
    }

    #[test]
    fn a_block_too_large_for_it_is_not_held() {
        let cache = Cache::new(4000);
        cache.insert(id(1), Arc::new(Chunk::whole(vec![0; 2000])));
        assert!(!cache.contains(&id(1)));
    }
}
