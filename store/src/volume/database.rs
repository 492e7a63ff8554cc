//! Which database a volume is opened with: the one in the state directory if it stands on the log, else one rebuilt
//! from the backing directories (R13). Also the log's uncertain end, which a writer writes again first (R15).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Volume;
use super::superblocks::Superblocks;
use crate::commit_log::standing_of;
use crate::error::{Error, Result};
use crate::meta::{DATABASE_FILE, Meta, Setup};
use crate::recover::{self, Again, CaughtUp, Reader, Recovered};
use crate::segment::QUORUM_PATIENCE;

/// The database of a state directory if one can be opened; what is damaged is kept aside.
pub(super) fn open_existing(
    dir: &Path,
    key: &[u8; 32],
    setup: &Setup,
    warnings: &mut Vec<String>,
) -> Result<Option<Meta>> {
    let exists = || dir.join(DATABASE_FILE).exists();
    match Meta::open(dir, key, setup) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if exists() && !is_replaced(&error) => Err(error),
        Err(error) => {
            if exists() {
                let aside = recover::set_aside(dir, setup.clock.now_ns())?;
                warnings.push(format!("{error}; it is kept as {}", aside.display()));
            }
            Ok(None)
        }
    }
}

/// Whether a database that was refused so is rebuilt: it is damaged, or of a version before this one.
fn is_replaced(error: &Error) -> bool {
    match error {
        Error::Format { .. } | Error::Database { .. } => true,
        Error::DatabaseVersion { found, known, .. } => found < known,
        _ => false,
    }
}

/// The database, brought up to the log; rebuilt from the backing directories if it is missing, damaged or not on the
/// log (R13).
pub(super) fn database(
    dir: &Path,
    setup: &Setup,
    reader: &Reader<'_>,
    superblocks: &Superblocks,
    accept_rollback: bool,
    warnings: &mut Vec<String>,
) -> Result<(Arc<Meta>, Recovered)> {
    let key = reader.keys.database_key();
    let ground = &superblocks.ground(accept_rollback);
    let divided = superblocks.divided(reader);
    match &divided {
        Some(text) if !accept_rollback => return Err(Error::Refused(text.clone())),
        Some(text) => warnings.push(format!("accepted by option: {text}")),
        None => {}
    }
    let mut aside = None;
    if let Some(meta) = open_existing(dir, key, setup, warnings)? {
        let outcome = match standing_of(&meta)? {
            _ if divided.is_some() => CaughtUp::Off("it may be of either of two histories".into()),
            Some(standing) => reader.catch_up(&meta, &standing, ground)?,
            None => CaughtUp::Off("it does not say where on the commit log it stands".into()),
        };
        match outcome {
            CaughtUp::On(recovered) => {
                warnings.extend(recovered.notes.iter().cloned());
                if recovered.replayed > 0 {
                    log::info!("{} generations replayed from the commit log", recovered.replayed);
                }
                return Ok((Arc::new(meta), recovered));
            }
            CaughtUp::Off(reason) => {
                let generation = meta.committed();
                meta.close()?;
                drop(meta);
                let path = recover::set_aside(dir, setup.clock.now_ns())?;
                let text = format!(
                    "the metadata database (generation {generation}) is not on the commit log: {reason}; it is kept as {}",
                    path.display()
                );
                aside = Some((path, text));
            }
        }
    }
    let recovered = match (reader.rebuild(dir, setup, ground), aside) {
        (Ok(recovered), aside) => {
            warnings.extend(aside.map(|(_, text)| text));
            recovered
        }
        (Err(error), Some((path, _))) => {
            recover::put_back(dir, &path)?;
            return Err(error);
        }
        (Err(error), None) => return Err(error),
    };
    warnings.extend(recovered.notes.iter().cloned());
    Ok((Arc::new(Meta::open(dir, key, setup)?), recovered))
}

/// Files of databases that were kept aside in a state directory.
pub(super) fn kept_aside(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path());
    let name = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".aside-"));
    let mut kept: Vec<PathBuf> = files.filter(name).collect();
    kept.sort();
    kept
}

impl Volume {
    /// Before anything new is acknowledged every record that is not known durable is written again, byte-identical, in
    /// a new segment on all healthy members, and what it names gets the shards it lacks (R15).
    pub(super) fn write_again(&self, again: Vec<Again>) -> Result<()> {
        let mut unsynced = BTreeSet::new();
        for record in again {
            for place in record.places {
                self.blocks.heal_stripe(place, Some(self.identity()), &mut unsynced)?;
            }
            for (header, message) in record.parts {
                self.blocks.append_commit(header, &message, QUORUM_PATIENCE)?;
            }
        }
        self.blocks.sync_healed(&mut unsynced)?;
        self.blocks.segments().sync()
    }
}
