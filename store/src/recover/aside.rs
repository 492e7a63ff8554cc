//! Database files that are of no use any more, and those that take their place.
//!
//! Promises: a database that is being made is not in the place of one before it is whole, so that one that was there is
//! there still if that fails or is killed.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::error::{Error, Result};
use crate::meta::DATABASE_FILE;

/// What a database's files end with after its name.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// Directory in a state directory in which a database is made.
const MAKING: &str = "meta.db.new";

fn ignore_missing(done: std::io::Result<()>, what: impl FnOnce() -> String) -> Result<()> {
    match done {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(what(), error)),
        _ => Ok(()),
    }
}

/// Remove a database, of this path.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_database(path: &Path) -> Result<()> {
    for suffix in SUFFIXES {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        let file = PathBuf::from(file);
        ignore_missing(std::fs::remove_file(&file), || format!("removing {}", file.display()))?;
    }
    Ok(())
}

fn rename(dir: &Path, from: &str, to: &str) -> Result<PathBuf> {
    for suffix in SUFFIXES {
        let (file, target) = (dir.join(format!("{from}{suffix}")), dir.join(format!("{to}{suffix}")));
        ignore_missing(std::fs::rename(&file, &target), || {
            format!("moving {} to {}", file.display(), target.display())
        })?;
    }
    Ok(dir.join(to))
}

/// Keep a database that cannot be used beside its successor, under a name that says so.
fn set_aside(dir: &Path, now_ns: i64) -> Result<PathBuf> {
    let seconds = now_ns / 1_000_000_000;
    let free = |name: &String| !dir.join(name).exists();
    let names = std::iter::once(format!("{DATABASE_FILE}.aside-{seconds}"))
        .chain((1..).map(|n| format!("{DATABASE_FILE}.aside-{seconds}-{n}")));
    let name = names.into_iter().find(free).unwrap_or_default();
    rename(dir, DATABASE_FILE, &name)
}

/// A new directory in a state directory to make a database in. What is left in it if that fails goes with
/// [`forget_unfinished`].
///
/// # Errors
/// [`Error::Io`].
pub(super) fn begin(dir: &Path) -> Result<PathBuf> {
    forget_unfinished(dir)?;
    let making = dir.join(MAKING);
    let made = std::fs::DirBuilder::new().mode(0o700).create(&making);
    made.map_err(|error| Error::io(format!("making the directory {}", making.display()), error))?;
    Ok(making)
}

/// Remove what is left of a database that was being made, and nothing else.
///
/// # Errors
/// [`Error::Io`].
pub fn forget_unfinished(dir: &Path) -> Result<()> {
    let making = dir.join(MAKING);
    if !making.exists() {
        return Ok(());
    }
    remove_database(&making.join(DATABASE_FILE))?;
    ignore_missing(std::fs::remove_dir(&making), || format!("removing {}", making.display()))
}

/// The error by which a checkpoint could not be made a database in `dir`, if another checkpoint may do.
///
/// # Errors
/// Those with which another would fail as well.
pub(super) fn not_the_checkpoints(error: Error, dir: &Path) -> Result<Error> {
    match &error {
        Error::Refused(_) | Error::Io { .. } => Err(error),
        Error::Database { source, .. } => match source.sqlite_error_code() {
            // Its rows contradict each other.
            Some(ErrorCode::ConstraintViolation) => Ok(error),
            Some(ErrorCode::DiskFull) => Err(Error::Refused(format!(
                "there is no room in {} to make the metadata database in. Nothing was changed: free some, or name another \
                 state directory",
                dir.display()
            ))),
            _ => Err(error),
        },
        _ => Ok(error),
    }
}

/// Put the database that was made in the place of the one that may be there, which is set aside: its path.
///
/// # Errors
/// [`Error::Io`].
pub fn put_in_place(dir: &Path, now_ns: i64) -> Result<Option<PathBuf>> {
    let making = dir.join(MAKING);
    let sync = |path: &Path| {
        let synced = File::open(path).and_then(|file| file.sync_all());
        synced.map_err(|error| Error::io(format!("syncing {}", path.display()), error))
    };
    sync(&making.join(DATABASE_FILE))?;
    let aside = if dir.join(DATABASE_FILE).exists() {
        Some(set_aside(dir, now_ns)?)
    } else {
        // A log without its database is not to be taken for the new one's.
        remove_database(&dir.join(DATABASE_FILE))?;
        None
    };
    // The database last: there is none without its log.
    for suffix in SUFFIXES.iter().rev() {
        let name = format!("{DATABASE_FILE}{suffix}");
        let (file, target) = (making.join(&name), dir.join(&name));
        ignore_missing(std::fs::rename(&file, &target), || {
            format!("moving {} to {}", file.display(), target.display())
        })?;
    }
    sync(dir)?;
    forget_unfinished(dir)?;
    Ok(aside)
}
