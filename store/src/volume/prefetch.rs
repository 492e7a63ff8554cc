//! Reading ahead: blocks are brought into the cache by a few threads, and a reader that needs one that is on its way
//! waits for it instead of reading it twice.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Sender, TrySendError, bounded};
use parking_lot::{Condvar, Mutex};

use crate::blocks::Blocks;
use crate::ids::{BlockId, BlockKey, Ino};
use crate::seal::Sealer;

/// Requests waiting at most; more are dropped, as a reader will read for itself.
const QUEUE_MAX: usize = 64;
/// Blocks of one request: a megabyte at the default chunk length.
const BATCH: usize = 8;

#[derive(Default)]
struct Flying {
    ids: Mutex<HashSet<BlockId>>,
    landed: Condvar,
}

/// The read-ahead threads of one open volume.
pub struct Prefetcher {
    queue: Option<Sender<(Vec<BlockKey>, Ino)>>,
    flying: Arc<Flying>,
    blocks: Arc<Blocks>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Prefetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefetcher").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Prefetcher {
    /// With `threads` threads.
    pub fn new(blocks: Arc<Blocks>, threads: usize) -> std::io::Result<Self> {
        let (sender, receiver) = bounded::<(Vec<BlockKey>, Ino)>(QUEUE_MAX);
        let flying = Arc::new(Flying::default());
        let threads = (0..threads)
            .map(|n| {
                let (receiver, flying, blocks) = (receiver.clone(), flying.clone(), blocks.clone());
                std::thread::Builder::new().name(format!("readahead-{n}")).spawn(move || {
                    for (keys, ino) in receiver {
                        // Errors are for the reader who really wants the block.
                        let _ = blocks.get(&keys, Some(ino));
                        let mut ids = flying.ids.lock();
                        for key in &keys {
                            ids.remove(&Sealer::block_id(key));
                        }
                        drop(ids);
                        flying.landed.notify_all();
                    }
                })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self { queue: Some(sender), flying, blocks, threads })
    }

    /// Bring these blocks into the cache.
    pub fn ask(&self, keys: Vec<BlockKey>, ino: Ino) {
        let Some(queue) = &self.queue else { return };
        let wanted: Vec<BlockKey> = {
            let mut ids = self.flying.ids.lock();
            keys.into_iter()
                .filter(|key| {
                    let id = Sealer::block_id(key);
                    !self.blocks.cache().contains(&id) && ids.insert(id)
                })
                .collect()
        };
        for batch in wanted.chunks(BATCH) {
            if let Err(TrySendError::Full((keys, _)) | TrySendError::Disconnected((keys, _))) =
                queue.try_send((batch.to_vec(), ino))
            {
                let mut ids = self.flying.ids.lock();
                for key in &keys {
                    ids.remove(&Sealer::block_id(key));
                }
                drop(ids);
                self.flying.landed.notify_all();
            }
        }
    }

    /// Wait until none of these blocks is on its way.
    pub fn wait_for(&self, keys: &[BlockKey]) {
        let mut ids = self.flying.ids.lock();
        while !ids.is_empty() && keys.iter().any(|key| ids.contains(&Sealer::block_id(key))) {
            self.flying.landed.wait(&mut ids);
        }
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
