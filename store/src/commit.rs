//! How a generation becomes durable, and how waiters share the work.
//!
//! Promises: when [`Commit::run`] returns, everything accepted before it was called is on stable storage. Writers are
//! held off while the record of a generation is appended and its rows are committed locally, never while anything is
//! synced. One generation at a time is not durable: the next is closed only when it is. Knows neither files nor FUSE:
//! what the caller holds dirty comes through [`Flusher`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::blocks::Blocks;
use crate::commit_log::{AckOverrides, CommitLog};
use crate::error::{Error, Result};
use crate::fence::FenceWatch;
use crate::ids::Generation;
use crate::meta::Meta;

/// What the caller holds dirty, and how to put it into the open generation.
pub trait Flusher: Sync {
    /// Put everything dirty into the store. `exclusive`: all writers are held off, so this must be short and must
    /// not take the gate; when it returns nothing is dirty, and nothing is being appended but what no row names.
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
    /// Held by a commit until its generation is durable.
    leading: Mutex<()>,
    commits: AtomicU64,
}

/// All changes and commits are held off, and the last committed generation is durable or the log has ended.
#[derive(Debug)]
pub struct Exclusive<'a> {
    _gate: RwLockWriteGuard<'a, ()>,
    _leading: MutexGuard<'a, ()>,
}

/// What commits work on.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The store of blocks.
    pub blocks: &'a Arc<Blocks>,
    /// The metadata database.
    pub meta: &'a Meta,
    /// The commit log.
    pub log: &'a CommitLog,
    /// Looks out for another writer.
    pub fence: &'a FenceWatch,
    /// Where smaller ack sets are noted.
    pub overrides: &'a dyn AckOverrides,
}

/// Attempts at appending a record, each after directories that had been silent answered again.
const APPENDS_MAX: u32 = 8;

impl Commit {
    /// Hold off commits while a change is made. Not to be taken twice by one thread: a commit that waits in between goes
    /// first, or streams of changes would hold it off for ever.
    pub fn gate(&self) -> GateGuard<'_> {
        GateGuard(self.gate.read())
    }

    /// Hold off all changes and commits.
    pub fn exclusive(&self) -> Exclusive<'_> {
        let leading = self.leading.lock();
        Exclusive { _gate: self.gate.write(), _leading: leading }
    }

    /// Commits made durable since the volume was opened.
    pub fn count(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Make everything accepted so far durable. Callers that come while one runs are answered together by the next.
    /// `followed`: the next is about to come.
    pub fn run(&self, parts: &Parts<'_>, flusher: &dyn Flusher, followed: bool) -> Result<Generation> {
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

        let outcome = self.lead(parts, flusher, followed, &mut || Ok(()));

        let mut queue = self.queue.lock();
        queue.running = false;
        queue.done = covered;
        queue.outcome = Some(match &outcome {
            Ok(generation) => Ok(*generation),
            Err(error) => Err(Failure {
                generation: Generation(parts.meta.committed().0 + 1),
                reason: error.to_string(),
                no_space: matches!(error, Error::NoSpace),
            }),
        });
        drop(queue);
        self.finished.notify_all();
        outcome
    }

    /// Close a generation with `change` as its last one, and make it durable: what `change` leaves is a state of its own.
    /// If `change` fails nothing is closed.
    pub fn run_with(
        &self,
        parts: &Parts<'_>,
        flusher: &dyn Flusher,
        change: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Generation> {
        self.lead(parts, flusher, false, change)
    }

    fn lead(
        &self,
        parts: &Parts<'_>,
        flusher: &dyn Flusher,
        followed: bool,
        last: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Generation> {
        let Parts { blocks, meta, log, overrides, fence } = parts;
        let _leading = self.leading.lock();
        log.usable()?;
        // Most of the work is done while others go on writing.
        flusher.flush(false)?;
        let held_off = self.gate.write();
        let closing = meta.begin_closing();
        flusher.flush(true)?;
        last()?;
        meta.flush_atimes()?;
        blocks.settled(|_| Ok(()))?;
        meta.note_durable(log.durable());
        let (mut appended, mut syncing) = (None, None);
        let mut tries = 0;
        let closed = loop {
            let attempt = meta.commit_behind(
                |closed| {
                    let (record, notes) = log.append(blocks, closed)?;
                    appended = Some(record);
                    // The directories are at it while the rows are committed.
                    syncing = blocks.segments().try_begin_sync();
                    Ok(notes)
                },
                followed,
            );
            match attempt {
                // The generation is still open, and is appended anew.
                Err(Error::TooFewMembers { .. } | Error::Backing { .. })
                    if tries < APPENDS_MAX && blocks.segments().quorum_returns() =>
                {
                    tries += 1;
                }
                other => break other?,
            }
        };
        if let Some(record) = &appended {
            log.advance(record);
        }
        drop((closing, held_off));
        syncing.unwrap_or_else(|| blocks.segments().begin_sync()).wait()?;
        if let Some(record) = &appended {
            // Answered only if nobody took the volume over before it was synced (R16).
            fence.check()?;
            log.acknowledge(blocks, record, *overrides)?;
        }
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(closed.generation)
    }
}
