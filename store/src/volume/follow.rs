//! `brine follow`: a second database, kept up to date from the backing directories alone, that can take over.
//!
//! Promises: nothing is written to a backing directory, no lock there and no fence is taken: the writer notices
//! nothing. A generation is applied once it is known durable, so that the database is never of another history than
//! the log; the rest is applied by whoever takes over. Where the log no longer goes back to what the database holds, it
//! starts anew from the newest checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::OpenOptions;
use super::database::{Existing, kept_as, open_existing};
use super::members::{Members, members, unlock};
use super::probe::{Discovery, discover};
use super::state_dir::make_state_dir;
use super::superblocks::Superblocks;
use crate::backing::RealDirectories;
use crate::clock::SystemClock;
use crate::commit_log::standing_of;
use crate::error::{Error, Result};
use crate::lock::LocalLock;
use crate::meta::{DATABASE_FILE, Meta, Setup};
use crate::recover::{self, Followed as Step, Reader, Report, Starts};
use crate::seal::{Sealer, VolumeKeys};
use crate::stripes::Stripes;

/// How far a follower is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Followed {
    /// The generation its database holds.
    pub generation: u64,
    /// The highest generation known durable.
    pub durable: u64,
    /// The last generation with a record on the log; it may not be durable yet.
    pub last: u64,
    /// Generations applied in this step.
    pub applied: u64,
    /// The database was made anew from a checkpoint in this step.
    pub rebuilt: bool,
    /// Term of the writer, by the superblocks.
    pub term: u64,
    /// Host of the writer, by the superblocks.
    pub host: String,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Keeps a second database.
pub struct Follower {
    options: OpenOptions,
    keys: VolumeKeys,
    state_dir: PathBuf,
    meta: Option<Arc<Meta>>,
    /// Where the next scan begins in segments that were looked at.
    starts: Starts,
    _lock: LocalLock,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("state_dir", &self.state_dir).finish_non_exhaustive()
    }
}

impl Follower {
    /// With a state directory of its own, which must be named.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is the writer's, or another volume's; [`Error::InUse`].
    pub fn open(options: OpenOptions) -> Result<Self> {
        let discovery = discover(&options.sources, &RealDirectories)?;
        let keys = unlock(discovery.newest_unverified(), &options.unlock)?;
        let volume = discovery.newest().volume;
        let Some(dir) = &options.state_dir else {
            return Err(Error::Refused(
                "a follower needs a state directory of its own; name one with --state-dir".into(),
            ));
        };
        for member in &discovery.found {
            if dir.starts_with(&member.path) {
                return Err(Error::Refused(format!(
                    "the state directory {} lies in the backing directory {}; name one elsewhere",
                    dir.display(),
                    member.path.display()
                )));
            }
        }
        let state_dir = make_state_dir(dir, volume)?;
        let lock = LocalLock::take(&state_dir)?;
        Ok(Self { options, keys, state_dir, meta: None, starts: Starts::new(), _lock: lock })
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Apply what became durable since the last step.
    ///
    /// # Errors
    /// Those of reading; a later step may succeed.
    pub fn step(&mut self) -> Result<Followed> {
        let discovery = discover(&self.options.sources, &RealDirectories)?;
        let outcome = self.step_in(discovery);
        if outcome.is_err() {
            // A database that failed takes nothing more until it is opened anew.
            self.meta = None;
            self.starts.clear();
        }
        outcome
    }

    fn step_in(&mut self, discovery: Discovery) -> Result<Followed> {
        let Members { set, superblock, .. } =
            members(discovery, &self.keys, &self.options.use_member, &RealDirectories)?;
        let superblocks = Superblocks::read(&set, &self.keys, superblock)?;
        let newest = &superblocks.newest;
        let setup = Setup {
            volume: newest.volume,
            name_key: *self.keys.name_key(),
            clock: Arc::new(SystemClock),
            block_id: Sealer::block_id,
        };
        let (stripes, sealer) = (Stripes::new(set, newest.volume, *self.keys.header_mac()), Sealer::new(&self.keys));
        let report: Report<'_> = match &self.options.report {
            Some(report) => report.0.as_ref(),
            None => &|_, _, _| {},
        };
        let reader =
            Reader { stripes: &stripes, keys: &self.keys, sealer: &sealer, overrides: &newest.ack_overrides, report };
        let ground = superblocks.ground(false);
        let mut out = Followed { term: newest.term.0, host: newest.host.clone(), ..Followed::default() };
        // Why a database that is worth keeping cannot follow.
        let mut former = None;
        if self.meta.is_none() {
            out.notes.extend(recover::forget_unfinished(&self.state_dir).err().map(|error| error.to_string()));
            match open_existing(&self.state_dir, self.keys.database_key(), &setup)? {
                Existing::Open(meta) => self.meta = Some(Arc::new(meta)),
                Existing::Unusable(unusable) => former = Some(unusable.why),
                Existing::Missing => {}
            }
        }
        for rebuilt in [false, true] {
            if let Some(meta) = self.meta.clone() {
                let step = match standing_of(&meta)? {
                    Some(standing) => reader.follow(&meta, standing.head, &ground, &mut self.starts)?,
                    None => Step::Lost("it does not say where on the commit log it stands".into(), true),
                };
                match step {
                    Step::On { head, durable, last, applied } => {
                        if applied > 0 {
                            meta.checkpoint_wal()?;
                        }
                        out.generation = head.generation.0;
                        (out.durable, out.last, out.applied) = (durable.0.max(head.generation.0), last.0, applied);
                        return Ok(out);
                    }
                    Step::Lost(reason, _) if rebuilt => {
                        return Err(Error::Refused(format!(
                            "the database that was just made anew cannot follow: {reason}"
                        )));
                    }
                    Step::Lost(reason, keep) => {
                        let generation = meta.committed();
                        meta.close()?;
                        drop(meta);
                        self.meta = None;
                        self.starts.clear();
                        let why = format!("the database (generation {generation}): {reason}");
                        if keep {
                            former = Some(why);
                        } else {
                            // Before another is made: there may be room for one.
                            recover::remove_database(&self.state_dir.join(DATABASE_FILE))?;
                            out.notes.push(format!("{why}; it is made anew from the newest checkpoint"));
                        }
                    }
                }
            }
            let (from, aside) = reader.checkpoint(&self.state_dir, &setup, &ground)?;
            out.notes.extend(former.take().zip(aside).map(|(why, path)| kept_as(&why, &path)));
            out.notes.push(format!("the database was made from the checkpoint of generation {}", from.generation));
            out.rebuilt = true;
            self.meta = Some(Arc::new(Meta::open(&self.state_dir, self.keys.database_key(), &setup)?));
        }
        Err(Error::Refused("the database could not be made from a checkpoint".into()))
    }

    /// Let go of the database.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn close(mut self) -> Result<()> {
        self.meta.take().map_or(Ok(()), |meta| meta.close())
    }
}
