//! Which database a volume is opened with: the one in the state directory if it stands on the log, else one rebuilt
//! from the backing directories (R13). Also the log's uncertain end, which a writer writes again first (R15).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Volume;
use super::superblocks::Superblocks;
use crate::commit_log::standing_of;
use crate::error::{Error, Result};
use crate::ids::Generation;
use crate::meta::{DATABASE_FILE, Meta, Setup};
use crate::recover::{self, Again, CaughtUp, Reader, Recovered};
use crate::segment::QUORUM_PATIENCE;

/// What a state directory has.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Existing {
    /// A database that can be opened.
    Open(Meta),
    /// One that cannot be used.
    Unusable(Former),
    /// None.
    Missing,
}

/// A database that is to be set aside for one made anew.
pub(super) struct Former {
    /// Why it cannot be used.
    pub why: String,
    /// The last generation that it holds and that was acknowledged, as far as it tells.
    pub acknowledged: Generation,
}

/// The database of a state directory, if it is not damaged or of a former version.
pub(super) fn open_existing(dir: &Path, key: &[u8; 32], setup: &Setup) -> Result<Existing> {
    let exists = dir.join(DATABASE_FILE).exists();
    match Meta::open(dir, key, setup) {
        Ok(meta) => Ok(Existing::Open(meta)),
        Err(_) if !exists => Ok(Existing::Missing),
        Err(Error::Database { path, source }) if is_of_the_machine(&source) => Err(Error::Refused(format!(
            "metadata database {}: {source}. That is not the database's fault, so nothing was changed: mend it and try again, \
             or move the database elsewhere to have another made from the backing directories",
            path.display()
        ))),
        Err(error) if !is_replaced(&error) => Err(error),
        Err(error) => {
            let acknowledged = match &error {
                Error::DatabaseVersion { acknowledged, .. } => *acknowledged,
                _ => Generation(0),
            };
            Ok(Existing::Unusable(Former { why: error.to_string(), acknowledged }))
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

/// Whether an error tells of the machine, not of the file: a database that is sound may be found behind it.
fn is_of_the_machine(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::*;
    matches!(
        error.sqlite_error_code(),
        Some(DatabaseBusy | DatabaseLocked | CannotOpen | PermissionDenied | ReadOnly | DiskFull | OutOfMemory)
    )
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
    // It is in nobody's way until another is made.
    warnings.extend(recover::forget_unfinished(dir).err().map(|error| error.to_string()));
    let former = match open_existing(dir, key, setup)? {
        Existing::Missing => None,
        Existing::Unusable(former) => Some(former),
        Existing::Open(meta) => {
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
                    let why =
                        format!("the metadata database (generation {generation}) is not on the commit log: {reason}");
                    Some(Former { why, acknowledged: Generation(0) })
                }
            }
        }
    };
    let rebuilt = reader.rebuild(dir, setup, ground)?;
    let reached = former.as_ref().map_or(Generation(0), |former| former.acknowledged);
    let refusal = |ahead, end| {
        format!(
            "the metadata database, of a former version, is at generation {ahead} at least, but the backing directories end at \
             generation {end}: they went back to an older state, and nothing was changed. Bring back the directories that are \
             newer. To go on from generation {end} and give up what came later: brine mount -o accept_rollback"
        )
    };
    let aside = instead_of(dir, setup, reached, &rebuilt, accept_rollback, refusal)?;
    warnings.extend(former.zip(aside).map(|(former, path)| kept_as(&former.why, &path)));
    warnings.extend(rebuilt.notes.iter().cloned());
    Ok((Arc::new(Meta::open(dir, key, setup)?), rebuilt))
}

/// Put the database that was rebuilt in the place of the one there, which `reached` a generation; that is set aside: its
/// path. If the former is ahead and that is not accepted, nothing is changed, and `refusal` says why, with both generations.
pub(super) fn instead_of(
    dir: &Path,
    setup: &Setup,
    reached: Generation,
    rebuilt: &Recovered,
    accept_rollback: bool,
    refusal: impl FnOnce(Generation, Generation) -> String,
) -> Result<Option<PathBuf>> {
    let end = rebuilt.head.generation;
    if end < reached && !accept_rollback {
        recover::forget_unfinished(dir)?;
        return Err(Error::Refused(refusal(reached, end)));
    }
    recover::put_in_place(dir, setup.clock.now_ns())
}

/// What became of a database, for the user.
pub(super) fn kept_as(why: &str, aside: &Path) -> String {
    format!("{why}; it is kept as {}", aside.display())
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
