//! How a generation becomes durable, and how waiters share the work.
//!
//! Promises: when [`Commit::run`] returns, everything accepted before it was called is on stable storage; no row is
//! committed that names a block whose shards are not synced (so that after a power cut the database names nothing
//! that is lost). Knows neither files nor FUSE: what the caller holds dirty comes through [`Flusher`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

use crate::blocks::Blocks;
use crate::error::{Error, Result};
use crate::ids::Generation;
use crate::meta::Meta;

/// What the caller holds dirty, and how to put it into the open generation.
pub trait Flusher: Sync {
    /// Put everything dirty into the store. `exclusive`: all writers are held off, so this must be short and must
    /// not take the gate; when it returns nothing is dirty and nothing is being appended.
    fn flush(&self, exclusive: bool) -> Result<()>;
    /// True if something is dirty.
    fn has_dirty(&self) -> bool;
}

/// A flusher for callers that hold nothing.
#[derive(Debug)]
pub struct NothingDirty;

impl Flusher for NothingDirty {
    fn flush(&self, _exclusive: bool) -> Result<()> {
        Ok(())
    }
    fn has_dirty(&self) -> bool {
        false
    }
}

/// Held, shared, by every operation while it changes the volume.
#[derive(Debug)]
pub struct GateGuard<'a>(#[allow(dead_code, reason = "held for its lifetime")] RwLockReadGuard<'a, ()>);

/// What a commit that failed tells each of its waiters.
#[derive(Clone, Debug)]
struct Failure {
    generation: Generation,
    reason: String,
    no_space: bool,
}

#[derive(Debug, Default)]
struct Queue {
    /// Tickets handed out; a commit that starts covers all tickets up to then.
    asked: u64,
    /// Highest ticket covered by a finished commit.
    done: u64,
    running: bool,
    /// Outcome of the last commits, by the highest ticket each covered.
    outcome: Option<Result<Generation, Failure>>,
}

/// The commits of one open volume.
#[derive(Debug, Default)]
pub struct Commit {
    queue: Mutex<Queue>,
    finished: Condvar,
    gate: RwLock<()>,
    commits: AtomicU64,
}

/// Flushes done with writers running before they are held off for the rest.
const OPEN_FLUSHES_MAX: usize = 3;

impl Commit {
    /// Hold off commits while a change is made.
    pub fn gate(&self) -> GateGuard<'_> {
        GateGuard(self.gate.read_recursive())
    }

    /// Commits made durable since the volume was opened.
    pub fn count(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Make everything accepted so far durable. Callers that come while one runs are answered together by the next.
    pub fn run(&self, blocks: &Arc<Blocks>, meta: &Meta, flusher: &dyn Flusher) -> Result<Generation> {
        let mut queue = self.queue.lock();
        queue.asked += 1;
        let ticket = queue.asked;
        loop {
            if queue.done >= ticket {
                return match queue.outcome.clone() {
                    Some(Ok(generation)) => Ok(generation),
                    Some(Err(failure)) if failure.no_space => Err(Error::NoSpace),
                    Some(Err(failure)) => {
                        Err(Error::NotDurable { generation: failure.generation, reason: failure.reason })
                    }
                    None => Err(Error::NotDurable { generation: Generation(0), reason: "no commit ran".into() }),
                };
            }
            if !queue.running {
                break;
            }
            self.finished.wait(&mut queue);
        }
        queue.running = true;
        let covered = queue.asked;
        drop(queue);

        let outcome = self.lead(blocks, meta, flusher);

        let mut queue = self.queue.lock();
        queue.running = false;
        queue.done = covered;
        queue.outcome = Some(match &outcome {
            Ok(generation) => Ok(*generation),
            Err(error) => Err(Failure {
                generation: Generation(meta.committed().0 + 1),
                reason: error.to_string(),
                no_space: matches!(error, Error::NoSpace),
            }),
        });
        drop(queue);
        self.finished.notify_all();
        outcome
    }

    fn lead(&self, blocks: &Arc<Blocks>, meta: &Meta, flusher: &dyn Flusher) -> Result<Generation> {
        // Most of the work is done while others go on writing.
        for _ in 0..OPEN_FLUSHES_MAX {
            flusher.flush(false)?;
            blocks.segments().sync()?;
            if !flusher.has_dirty() {
                break;
            }
        }
        let closed = {
            let _held_off = self.gate.write();
            flusher.flush(true)?;
            // Rows may only be committed after the shards they name are synced.
            if blocks.segments().has_unsynced() {
                blocks.segments().sync()?;
            }
            meta.commit_generation()?
        };
        meta.sync()?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(closed.generation)
    }
}
