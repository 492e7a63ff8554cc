//! One step of a follower: what became durable is applied, nothing is decided that only a writer may decide.

use std::path::{Path as Dir, PathBuf as DirBuf};

use super::scan::Starts;
use super::{Ground, Reader, aside};
use crate::commit_log::{HEAD_KEY, Head};
use crate::error::{Error, Result};
use crate::ids::Generation;
use crate::meta::{Meta, Setup};
use crate::superblock::CheckpointPointer;

/// Outcome of a step.
#[derive(Debug)]
pub enum Followed {
    /// The database stands on the log.
    On {
        /// Where.
        head: Head,
        /// The highest generation known durable.
        durable: Generation,
        /// The last generation of which a record is there.
        last: Generation,
        /// Generations applied.
        applied: u64,
    },
    /// The log does not lead on from where the database stands, for this reason. True: it is of another history, and
    /// worth keeping.
    Lost(String, bool),
}

impl Reader<'_> {
    /// Apply what follows `head` and is known durable. `starts` tells where to begin in segments that earlier steps
    /// looked through, and is brought forward.
    ///
    /// # Errors
    /// Those of the database.
    pub fn follow(&self, meta: &Meta, head: Head, ground: &Ground<'_>, starts: &mut Starts) -> Result<Followed> {
        let mut from = self.unclosed(meta)?;
        for (segment, at) in &mut from {
            *at = starts.get(segment).copied().unwrap_or(0);
        }
        let parts = self.scan(head.generation, &from).parts;
        let last = parts.iter().map(|part| part.header.generation).max().unwrap_or(head.generation);
        let log = self.log(super::scan::Scan { parts: parts.clone() });
        let pointer = ground.checkpoints.iter().find(|p| p.generation == head.generation);
        let newest = ground.checkpoints.iter().map(|p| p.generation).max().unwrap_or_default();
        if !log.holds(head) && pointer.is_none_or(|p| p.chain != head.chain) {
            if pointer.is_some() {
                return Ok(Followed::Lost("it is of another history than the commit log".into(), true));
            }
            if newest > head.generation {
                let keep = log.has(head.generation);
                return Ok(Followed::Lost("the log no longer goes back to it".into(), keep));
            }
        }
        let (links, durable) = self.durable_after(&log, head, ground);
        let applied = links.len() as u64;
        let path = super::chain::Path {
            end: links.last().map_or(head, |at| {
                let link = log.link(*at);
                Head { generation: link.generation, chain: link.chain }
            }),
            links,
            head: None,
            durable: Generation(u64::MAX),
            notes: Vec::new(),
        };
        let end = path.end;
        if newest > end.generation && applied == 0 && last > end.generation && durable > end.generation {
            // What is missing will not come back: its segments were freed behind the checkpoint.
            return Ok(Followed::Lost("the log no longer leads on from it".into(), false));
        }
        self.replay(meta, &log, path, false)?;
        // What was applied need not be looked at again; what is beyond, or was not written yet, must.
        starts.retain(|segment, _| from.contains_key(segment));
        for part in &parts {
            let at = starts.entry(part.place.segment).or_insert(0);
            if part.header.generation <= end.generation {
                *at = (*at).max(part.place.offset);
            }
        }
        for part in parts.iter().filter(|part| part.header.generation > end.generation) {
            let at = starts.entry(part.place.segment).or_insert(0);
            *at = (*at).min(part.place.offset);
        }
        Ok(Followed::On { head: end, durable, last, applied })
    }

    /// Put a database with the rows of the newest checkpoint that can be read in the place of the one that may be there. Where
    /// it stands, and the path of the former.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is none; the former is where it was, then.
    pub fn checkpoint(&self, dir: &Dir, setup: &Setup, ground: &Ground<'_>) -> Result<(Head, Option<DirBuf>)> {
        let make = |making: &Dir, pointer: &CheckpointPointer| {
            let meta = self.import(making, setup, pointer)?;
            let head = Head { generation: pointer.generation, chain: pointer.chain };
            meta.with(|txn| txn.put_local(HEAD_KEY, &head.encode()))?;
            meta.close()?;
            Ok(head)
        };
        let (made, failures) = Self::of_newest(dir, ground, make)?;
        if let Some(head) = made {
            return Ok((head, aside::put_in_place(dir, setup.clock.now_ns())?));
        }
        let failures: Vec<String> =
            failures.iter().map(|(generation, error)| format!("generation {generation}: {error}")).collect();
        Err(Error::Refused(format!("no checkpoint can be read ({})", failures.join("; "))))
    }
}
