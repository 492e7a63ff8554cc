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
    /// One that cannot be used, which was put aside.
    Aside(Aside),
    /// None.
    Missing,
}

/// A database that was put aside.
pub(super) struct Aside {
    pub path: PathBuf,
    /// Why, and where it is.
    pub text: String,
    /// The last generation that it holds and that was acknowledged, as far as it tells.
    pub acknowledged: Generation,
}

/// The database of a state directory; what is damaged, or of a former version, is put aside.
pub(super) fn open_existing(dir: &Path, key: &[u8; 32], setup: &Setup) -> Result<Existing> {
    let exists = dir.join(DATABASE_FILE).exists();
    match Meta::open(dir, key, setup) {
        Ok(meta) => Ok(Existing::Open(meta)),
        Err(_) if !exists => Ok(Existing::Missing),
        Err(error) if !is_replaced(&error) => Err(error),
        Err(error) => {
            let acknowledged = match &error {
                Error::DatabaseVersion { acknowledged, .. } => *acknowledged,
                _ => Generation(0),
            };
            let path = recover::set_aside(dir, setup.clock.now_ns())?;
            let text = format!("{error}; it is kept as {}", path.display());
            Ok(Existing::Aside(Aside { path, text, acknowledged }))
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
    let aside = match open_existing(dir, key, setup)? {
        Existing::Missing => None,
        Existing::Aside(aside) => Some(aside),
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
                    drop(meta);
                    let path = recover::set_aside(dir, setup.clock.now_ns())?;
                    let text = format!(
                        "the metadata database (generation {generation}) is not on the commit log: {reason}; it is kept as {}",
                        path.display()
                    );
                    Some(Aside { path, text, acknowledged: Generation(0) })
                }
            }
        }
    };
    let before = aside.as_ref().map(|aside| (aside.acknowledged, aside.path.as_path()));
    let rebuilt = reader.rebuild(dir, setup, ground);
    let recovered = instead_of(dir, before, rebuilt, accept_rollback, |ahead, end| {
        format!(
            "the metadata database, of a former version, is at generation {ahead} at least, but the backing directories end at \
             generation {end}: they went back to an older state, and nothing was changed. Bring back the directories that are \
             newer. To go on from generation {end} and give up what came later: brine mount -o accept_rollback"
        )
    })?;
    warnings.extend(aside.map(|aside| aside.text));
    warnings.extend(recovered.notes.iter().cloned());
    Ok((Arc::new(Meta::open(dir, key, setup)?), recovered))
}

/// What was rebuilt in the place of a database that was put aside (which generation it reached, and where it is now). If
/// nothing was, or if the former is ahead of it and that is not accepted, the former is put back; `refusal` says why, with
/// both generations.
pub(super) fn instead_of(
    dir: &Path,
    aside: Option<(Generation, &Path)>,
    rebuilt: Result<Recovered>,
    accept_rollback: bool,
    refusal: impl FnOnce(Generation, Generation) -> String,
) -> Result<Recovered> {
    let Some((reached, path)) = aside else { return rebuilt };
    let error = match rebuilt {
        Ok(recovered) if recovered.head.generation >= reached || accept_rollback => return Ok(recovered),
        Ok(recovered) => {
            recover::remove_database(dir)?;
            Error::Refused(refusal(reached, recovered.head.generation))
        }
        Err(error) => error,
    };
    recover::put_back(dir, path)?;
    Err(error)
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
