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

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub use aside::{put_back, remove_database, set_aside};
pub use follow::Followed;
pub use scan::Starts;

use crate::commit_log::{Head, Outgoing, outbox_of};
use crate::error::{Error, Result};
use crate::ids::{Generation, SegmentId, Term};
use crate::meta::rows::SegmentState;
use crate::meta::{Meta, Setup};
use crate::record::{CommitRecord, GenerationRecord};
use crate::seal::{Sealer, VolumeKeys};
use crate::stripes::{StripePlace, Stripes};
use crate::superblock::{AckOverride, CheckpointPointer};
use chain::{Link, Log};

/// Told how far recovery is: what is being done, how much of how much.
pub type Report<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// What the superblocks tell, and what the user accepts.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// Checkpoints that were published.
    pub checkpoints: &'a [CheckpointPointer],
    /// The last generation that the newest superblock calls durable.
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
    pub parts: Vec<Outgoing>,
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
    pub fn catch_up(&self, meta: &Meta, head: Head, ground: &Ground<'_>) -> Result<CaughtUp> {
        let mut log = self.log(self.scan(head.generation, &self.unclosed(meta)?));
        let pointer = |generation: Generation| ground.checkpoints.iter().find(|p| p.generation == generation);
        let on_log = log.holds(head) || pointer(head.generation).is_some_and(|p| p.chain == head.chain);
        if !on_log {
            if log.has(head.generation) || pointer(head.generation).is_some() {
                return Ok(CaughtUp::Off("it is of another history than the commit log".into()));
            }
            let newest = ground.checkpoints.iter().map(|p| p.generation).max().unwrap_or_default();
            let last = log.last().unwrap_or_default().max(newest);
            if last > head.generation {
                return Ok(CaughtUp::Off(format!("it is older than what the commit log, at generation {last}, goes back to")));
            }
            // A volume that is just being made has neither log nor checkpoint.
            let made_now = ground.checkpoints.is_empty();
            let members = self.stripes.set().members();
            let complete = members.iter().all(|member| member.can_read());
            if !made_now && !self.add_outbox(meta, head, ground, &mut log)? && complete {
                if ground.accept_rollback {
                    return Ok(CaughtUp::Off(
                        "it is ahead of the backing directories; going back was accepted by option".into(),
                    ));
                }
                return Err(Error::Refused(format!(
                    "the metadata database is at generation {}, but the backing directories do not hold that generation \
                     (what they hold ends at {}): they went back to an older state. Bring the newer directories back. To \
                     go on from the older state and keep the database aside: brine mount -o accept_rollback SOURCE \
                     MOUNTPOINT",
                    head.generation,
                    self.end_of(&ground.checkpoints.first().map_or(Generation(0), |p| p.generation))?
                )));
            }
        }
        let path = self.path(&log, head, ground)?;
        self.replay(meta, &log, path, false).map(CaughtUp::On)
    }

    /// The last generation of which any record is there, at least `known`.
    fn end_of(&self, known: &Generation) -> Result<Generation> {
        let starts = self.segments().into_iter().map(|id| (id, 0)).collect();
        let parts = self.scan(Generation(0), &starts).parts;
        Ok(parts.iter().map(|part| part.header.generation).max().unwrap_or_default().max(*known))
    }

    /// Records that the database holds and the log lacks are put at its end, if they follow from it and what they name
    /// can be read (R13). True if the log then reaches the head.
    fn add_outbox(&self, meta: &Meta, head: Head, ground: &Ground<'_>, log: &mut Log) -> Result<bool> {
        let mut by_generation: BTreeMap<Generation, Vec<Outgoing>> = BTreeMap::new();
        for outgoing in outbox_of(meta)? {
            by_generation.entry(outgoing.header.generation).or_default().push(outgoing);
        }
        let Some(first) = by_generation.keys().next().copied() else { return Ok(false) };
        // What it was appended to lies before the head, where the scan did not look.
        let before = self.log(self.scan(Generation(first.0.saturating_sub(1)), &self.all_segments()));
        let mut links = Vec::new();
        for (_, parts) in by_generation {
            let opened = parts.iter().map(|part| {
                let mut message = part.message.clone();
                CommitRecord::open(self.keys.log_key(), self.keys.volume(), &part.header, &mut message)
            });
            let Ok((whole, chain)) = opened.collect::<Result<Vec<_>, _>>().and_then(GenerationRecord::join) else {
                return Ok(false);
            };
            if before.holds_record(chain) {
                continue;
            }
            links.push(Link {
                term: whole.term,
                generation: whole.generation,
                previous: whole.previous,
                chain,
                durable_through: whole.durable_through,
                rows_digest: whole.rows_digest,
                parts: Vec::new(),
                changes: Some(whole.changes),
                outgoing: Some(parts),
            });
        }
        let Some(oldest) = links.first() else { return Ok(false) };
        let base = Head { generation: Generation(oldest.generation.0.saturating_sub(1)), chain: oldest.previous };
        let at_end = before.ends_at(base)
            || ground.checkpoints.iter().any(|p| (p.generation, p.chain) == (base.generation, base.chain));
        let chained = links.windows(2).all(|pair| pair[1].previous == pair[0].chain);
        let reaches = links.last().is_some_and(|last| (last.generation, last.chain) == (head.generation, head.chain));
        if !at_end || !chained || !reaches {
            return Ok(false);
        }
        for link in &links {
            if !self.blocks_hold(&self.changes(link)?) {
                return Ok(false);
            }
        }
        links.into_iter().for_each(|link| log.add(link));
        Ok(true)
    }

    fn all_segments(&self) -> Starts {
        self.segments().into_iter().map(|id| (id, 0)).collect()
    }

    /// Make a database from checkpoint and log, in a state directory without one.
    ///
    /// # Errors
    /// [`Error::Refused`] if no checkpoint can be read or an acknowledged generation cannot.
    pub fn rebuild(&self, dir: &Path, setup: &Setup, ground: &Ground<'_>) -> Result<Recovered> {
        let mut pointers: Vec<&CheckpointPointer> = ground.checkpoints.iter().collect();
        pointers.sort_by_key(|pointer| std::cmp::Reverse(pointer.generation));
        let mut failures = Vec::new();
        for pointer in pointers {
            match self.rebuild_from(dir, setup, pointer, ground) {
                Ok(mut out) => {
                    out.notes.splice(0..0, failures);
                    return Ok(out);
                }
                Err(error) => {
                    remove_database(dir)?;
                    if matches!(error, Error::Refused(_)) {
                        return Err(error);
                    }
                    failures
                        .push(format!("the checkpoint of generation {} cannot be used: {error}", pointer.generation));
                }
            }
        }
        Err(Error::Refused(format!(
            "the metadata database cannot be rebuilt: no checkpoint can be read ({}). Bring missing directories back",
            if failures.is_empty() { "the superblocks name none".into() } else { failures.join("; ") }
        )))
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
