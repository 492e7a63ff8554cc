//! `brine rebuild`: the database of a state directory, made anew from the backing directories alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::OpenOptions;
use super::database::{Existing, instead_of, kept_as, kept_aside, open_existing};
use super::members::{Members, lock_members, members, unlock};
use super::probe::discover;
use super::state_dir::{make_state_dir, state_dir_of};
use super::superblocks::Superblocks;
use crate::backing::RealDirectories;
use crate::clock::SystemClock;
use crate::error::{Error, Result};
use crate::ids::Generation;
use crate::lock::LocalLock;
use crate::meta::{Meta, Setup};
use crate::recover::{Reader, Report};
use crate::seal::Sealer;
use crate::stripes::Stripes;

/// A database that was made anew.
#[derive(Clone, Debug, Serialize)]
pub struct Rebuilt {
    /// The volume, hexadecimal.
    pub volume: String,
    /// Where the database lies.
    pub state_dir: String,
    /// The generation it holds.
    pub generation: u64,
    /// Generations replayed after the checkpoint.
    pub replayed: u64,
    /// Files, directories and other inodes.
    pub inodes: u64,
    /// Digest of its rows, hexadecimal: two databases with one digest hold the same volume.
    pub digest: String,
    /// Inconsistencies of its tables; none if all is well.
    pub tables: Vec<String>,
    /// The database that was there before, kept aside, with others kept before.
    pub aside: Vec<String>,
    /// How long it took, seconds.
    pub seconds: f64,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Make the database of a volume that is not mounted anew. The one that is there is kept aside; if it holds more than
/// the backing directories do, nothing is changed. The rows are verified by the digests in checkpoint and log.
///
/// # Errors
/// [`Error::InUse`]; [`Error::Refused`] where an acknowledged generation cannot be read, or the database there is ahead.
pub fn rebuild(options: &OpenOptions) -> Result<Rebuilt> {
    let started = Instant::now();
    let discovery = discover(&options.sources, &RealDirectories)?;
    let keys = unlock(discovery.newest_unverified(), &options.unlock)?;
    let Members { set, superblock, warnings: mut notes } =
        members(discovery, &keys, &options.use_member, &RealDirectories)?;
    let volume = superblock.volume;
    let dir = state_dir_of(options.state_dir.as_deref(), &superblock);
    make_state_dir(&dir, volume)?;
    let _lock = LocalLock::take(&dir)?;
    lock_members(&set, false, &mut notes)?;
    let superblocks = Superblocks::read(&set, &keys, superblock)?;
    let setup = Setup { volume, name_key: *keys.name_key(), clock: Arc::new(SystemClock), block_id: Sealer::block_id };
    let (stripes, sealer) = (Stripes::new(set, volume, *keys.header_mac()), Sealer::new(&keys));
    let report: Report<'_> = match &options.report {
        Some(report) => report.0.as_ref(),
        None => &|_, _, _| {},
    };
    let overrides = &superblocks.newest.ack_overrides;
    let reader = Reader { stripes: &stripes, keys: &keys, sealer: &sealer, overrides, report };
    if let Some(text) = superblocks.divided(&reader).filter(|_| !options.accept_rollback) {
        return Err(Error::Refused(text));
    }
    let (reached, why) = match open_existing(&dir, keys.database_key(), &setup) {
        Ok(Existing::Open(meta)) => {
            let generation = meta.committed();
            meta.close()?;
            (generation, None)
        }
        Ok(Existing::Unusable(former)) => (former.acknowledged, Some(former.why)),
        Ok(Existing::Missing) => (Generation(0), None),
        Err(Error::DatabaseVersion { acknowledged, .. }) => (acknowledged, None),
        Err(error) => return Err(error),
    };
    let made = reader.rebuild(&dir, &setup, &superblocks.ground(options.accept_rollback))?;
    let aside = instead_of(&dir, &setup, reached, &made, options.accept_rollback, |ahead, end| {
        format!(
            "the database in {} holds generation {ahead}, the backing directories end at generation {end}: it is ahead of \
             them, and nothing was changed. Mount the volume, which brings them up to it. To give up what only the \
             database holds: brine rebuild --accept-rollback",
            dir.display()
        )
    })?;
    notes.extend(why.zip(aside).map(|(why, path)| kept_as(&why, &path)));
    notes.extend(made.notes);
    let meta = Meta::open(&dir, keys.database_key(), &setup)?;
    report("verifying the tables", 0, 0);
    let rows = meta.reader()?;
    let (digest, tables) = (rows.digest()?, rows.verify()?);
    drop(rows);
    let inodes = meta.counters().inodes;
    meta.close()?;
    Ok(Rebuilt {
        volume: volume.to_string(),
        state_dir: dir.display().to_string(),
        generation: made.head.generation.0,
        replayed: made.replayed,
        inodes,
        digest: blake3::Hash::from_bytes(digest).to_hex().to_string(),
        tables,
        aside: kept_aside(&dir).into_iter().map(shown).collect(),
        seconds: started.elapsed().as_secs_f64(),
        notes,
    })
}

fn shown(path: PathBuf) -> String {
    path.display().to_string()
}
