//! Recovery: the log is read back from the segments' own files, and a database is brought up to it or made from
//! checkpoint and log.
//!
//! Promises: a generation is taken only if it follows by chain hash from what is trusted already; what was never
//! acknowledged is dropped and reported; what was acknowledged and cannot be read is never passed over in silence
//! (R12); a database is trusted only if it stands on the log (R13). Knows nothing of mounts or locks.

mod aside;
mod chain;
mod follow;
mod image;
mod replay;
mod scan;

use std::collections::BTreeSet;
use std::path::Path;

pub use aside::{forget_unfinished, put_in_place, remove_database};
pub use follow::Followed;
pub use scan::Starts;

use crate::commit_log::{Head, Standing};
use crate::error::{Error, Result};
use crate::ids::{Generation, SegmentId, Term};
use crate::meta::rows::SegmentState;
use crate::meta::{Meta, Setup};
use crate::seal::{Sealer, VolumeKeys};
use crate::shard::CommitHeader;
use crate::stripes::{StripePlace, Stripes};
use crate::superblock::{AckOverride, CheckpointPointer};
use chain::Log;

/// Told how far recovery is: what is being done, how much of how much.
pub type Report<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// What the superblocks tell, and what the user accepts.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// Checkpoints that were published.
    pub checkpoints: &'a [CheckpointPointer],
    /// Term of the newest superblock.
    pub term: Term,
    /// The last generation that it calls durable.
    pub generation: Generation,
    /// Term and last durable generation of every superblock found.
    pub superblocks: &'a [(Term, Generation)],
    /// Generations that were acknowledged may be given up.
    pub accept_rollback: bool,
}

/// A record that is written again before anything new is acknowledged (R15).
#[derive(Debug)]
pub struct Again {
    /// Its messages, byte-identical.
    pub parts: Vec<(CommitHeader, Vec<u8>)>,
    /// The stripes of blocks that it names.
    pub places: BTreeSet<StripePlace>,
}

/// What recovery did.
#[derive(Debug)]
pub struct Recovered {
    /// Where the database stands now: the end of the log.
    pub head: Head,
    /// Generations replayed from the log.
    pub replayed: u64,
    /// Sentences for the user.
    pub notes: Vec<String>,
    /// Records not known durable.
    pub again: Vec<Again>,
    /// The highest generation known durable.
    pub durable: Generation,
}

/// Whether a database could be brought up to the log.
#[derive(Debug)]
pub enum CaughtUp {
    /// It stands at the end of the log.
    On(Recovered),
    /// It does not stand on the log, for this reason: it must be rebuilt.
    Off(String),
}

/// Checkpoints that could not be used, and why.
type Failures = Vec<(Generation, Error)>;

/// The pieces recovery reads with.
pub struct Reader<'a> {
    /// Reads stripes.
    pub stripes: &'a Stripes,
    /// The volume's keys.
    pub keys: &'a VolumeKeys,
    /// Opens image blocks.
    pub sealer: &'a Sealer,
    /// Ack sets that were made smaller, as the newest superblock has them.
    pub overrides: &'a [AckOverride],
    /// Told how far it is.
    pub report: Report<'a>,
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader<'_> {
    /// Segments that may hold records after what a database knows: those that it does not know closed.
    fn unclosed(&self, meta: &Meta) -> Result<Starts> {
        let rows = meta.with(|txn| txn.segments())?;
        let closed: BTreeSet<SegmentId> =
            rows.iter().filter(|row| row.state != SegmentState::Open).map(|row| row.id).collect();
        Ok(self.segments().into_iter().filter(|id| !closed.contains(id)).map(|id| (id, 0)).collect())
    }

    /// Bring a database up to the end of the log.
    ///
    /// # Errors
    /// [`Error::Refused`] naming both generations, where an acknowledged one cannot be read, the directories went back
    /// to an older state, or two writers acknowledged different states.
    pub fn catch_up(&self, meta: &Meta, standing: &Standing, ground: &Ground<'_>) -> Result<CaughtUp> {
        let head = standing.head;
        let log = self.log(self.scan(head.generation, &self.unclosed(meta)?));
        if let Some(reason) = self.off_the_log(standing, &log, ground)? {
            return Ok(CaughtUp::Off(reason));
        }
        let newest = ground.checkpoints.iter().map(|p| p.generation).max().unwrap_or_default();
        let reached = log.reach(head);
        if reached < newest {
            return Ok(CaughtUp::Off(format!(
                "the commit log leads on from it to generation {reached} only, the newest checkpoint is of {newest}"
            )));
        }
        let path = self.path(&log, head, ground)?;
        self.replay(meta, &log, path, false).map(CaughtUp::On)
    }

    /// Why a database does not stand on the log (R13); `None`: it does, as far as can be told.
    ///
    /// # Errors
    /// [`Error::Refused`] if the directories went back to an older state.
    fn off_the_log(&self, standing: &Standing, log: &Log, ground: &Ground<'_>) -> Result<Option<String>> {
        let head = standing.head;
        // Rows are committed before their record is synced: a power cut may leave the last ones without it.
        let unsure = standing.durable < head.generation && ground.generation < head.generation;
        let unacknowledged = || {
            format!(
                "its last generation, {}, was never acknowledged, and what it names is not on the log",
                head.generation
            )
        };
        if let Some(own) = log.own(head) {
            if log.overruled(own) {
                return Ok(Some(format!(
                    "its last generation, {}, was written by a writer (term {}) that had been fenced",
                    head.generation, own.term
                )));
            }
            // A later writer that did not begin with it was not shown it.
            if ground.term > own.term && ground.generation < head.generation {
                return Ok(Some(format!(
                    "it ends with generation {} of term {}, which the writer of term {} did not go on from",
                    head.generation, own.term, ground.term
                )));
            }
            let last = !log.has(Generation(head.generation.0 + 1));
            return Ok((unsure && last && !self.blocks_hold(&self.changes(own)?)).then(unacknowledged));
        }
        let pointer = ground.checkpoints.iter().find(|p| p.generation == head.generation);
        if log.holds(head) || pointer.is_some_and(|p| p.chain == head.chain) {
            return Ok(None);
        }
        if pointer.is_some() || log.has(head.generation) {
            return Ok(Some("it is of another history than the commit log".into()));
        }
        if log.has_remains(head.generation) && !(unsure && self.never_acknowledged(log, head.generation)) {
            return Ok(None);
        }
        if unsure && self.precedes(standing, ground) {
            return Ok(Some(unacknowledged()));
        }
        let newest = ground.checkpoints.iter().map(|p| p.generation).max().unwrap_or_default();
        let last = log.last().unwrap_or_default().max(newest);
        if last > head.generation {
            return Ok(Some(format!("it is older than what the commit log, at generation {last}, goes back to")));
        }
        // A volume that is just being made has neither log nor checkpoint; with members away the rest may be there.
        let complete = self.stripes.set().members().iter().all(|member| member.can_read());
        if ground.checkpoints.is_empty() || !complete {
            return Ok(None);
        }
        if ground.accept_rollback {
            return Ok(Some("it is ahead of the backing directories; to go back was accepted by option".into()));
        }
        let found = self.scan(Generation(0), &self.all_segments()).parts;
        let found = found.iter().map(|part| part.header.generation).max().unwrap_or_default().max(newest);
        Err(Error::Refused(format!(
            "the metadata database is at generation {}, but the backing directories do not hold that generation (what \
             they hold ends at {found}): they went back to an older state. Bring the newer directories back. To go on \
             from the older state, with the database kept aside: brine mount -o accept_rollback SOURCE MOUNTPOINT",
            head.generation
        )))
    }

    /// True if the generation before a database's last one is on the log.
    fn precedes(&self, standing: &Standing, ground: &Ground<'_>) -> bool {
        let Some(before) = standing.before else { return false };
        if ground.checkpoints.iter().any(|p| (p.generation, p.chain) == (before.generation, before.chain)) {
            return true;
        }
        // Its segment may have been closed in the generation that is gone.
        self.log(self.scan(before.generation, &self.all_segments())).own(before).is_some()
    }

    /// True if there is a record of a term above `term` and of a generation up to `generation`.
    pub fn has_later_term(&self, term: Term, generation: Generation) -> bool {
        let parts = self.scan(Generation(0), &self.all_segments()).parts;
        parts.iter().any(|part| part.header.term > term && part.header.generation <= generation)
    }

    fn all_segments(&self) -> Starts {
        self.segments().into_iter().map(|id| (id, 0)).collect()
    }

    /// Make a database from checkpoint and log, beside the one that a state directory may have: [`put_in_place`] is next.
    ///
    /// # Errors
    /// [`Error::Refused`] if no checkpoint can be read or an acknowledged generation cannot.
    pub fn rebuild(&self, dir: &Path, setup: &Setup, ground: &Ground<'_>) -> Result<Recovered> {
        let make = |making: &Path, pointer: &CheckpointPointer| self.rebuild_from(making, setup, pointer, ground);
        let (made, failures) = Self::of_newest(dir, ground, make)?;
        let failures: Vec<String> = failures
            .iter()
            .map(|(generation, error)| format!("the checkpoint of generation {generation} cannot be used: {error}"))
            .collect();
        if let Some(mut out) = made {
            out.notes.splice(0..0, failures);
            return Ok(out);
        }
        Err(Error::Refused(format!(
            "the metadata database cannot be rebuilt: no checkpoint can be read ({}). Bring missing directories back",
            if failures.is_empty() { "the superblocks name none".into() } else { failures.join("; ") }
        )))
    }

    /// What `make` makes, in a directory in `dir`, of the newest checkpoint of which it can, and why not of those before.
    fn of_newest<T>(
        dir: &Path,
        ground: &Ground<'_>,
        make: impl Fn(&Path, &CheckpointPointer) -> Result<T>,
    ) -> Result<(Option<T>, Failures)> {
        let mut pointers: Vec<&CheckpointPointer> = ground.checkpoints.iter().collect();
        pointers.sort_by_key(|pointer| std::cmp::Reverse(pointer.generation));
        let mut failures = Vec::new();
        for pointer in pointers {
            match make(&aside::begin(dir)?, pointer) {
                Ok(made) => return Ok((Some(made), failures)),
                Err(error) => {
                    forget_unfinished(dir)?;
                    failures.push((pointer.generation, aside::not_the_checkpoints(error, dir)?));
                }
            }
        }
        Ok((None, failures))
    }

    fn rebuild_from(
        &self,
        dir: &Path,
        setup: &Setup,
        pointer: &CheckpointPointer,
        ground: &Ground<'_>,
    ) -> Result<Recovered> {
        let meta = self.import(dir, setup, pointer)?;
        let head = Head { generation: pointer.generation, chain: pointer.chain };
        let log = self.log(self.scan(head.generation, &self.unclosed(&meta)?));
        let path = self.path(&log, head, ground)?;
        let mut out = self.replay(&meta, &log, path, true)?;
        meta.close()?;
        out.notes.push(format!(
            "the metadata database was rebuilt from the checkpoint of generation {} and {} records of the log",
            pointer.generation, out.replayed
        ));
        Ok(out)
    }
}
