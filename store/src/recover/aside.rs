//! Database files that are of no use, or of no use any more.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::meta::DATABASE_FILE;

/// What a database's files end with after its name.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

fn ignore_missing(done: std::io::Result<()>, what: impl FnOnce() -> String) -> Result<()> {
    match done {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(what(), error)),
        _ => Ok(()),
    }
}

/// Remove the database of a state directory.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_database(dir: &Path) -> Result<()> {
    for suffix in SUFFIXES {
        let file = dir.join(format!("{DATABASE_FILE}{suffix}"));
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
///
/// # Errors
/// [`Error::Io`].
pub fn set_aside(dir: &Path, now_ns: i64) -> Result<PathBuf> {
    let seconds = now_ns / 1_000_000_000;
    let free = |name: &String| !dir.join(name).exists();
    let names = std::iter::once(format!("{DATABASE_FILE}.aside-{seconds}"))
        .chain((1..).map(|n| format!("{DATABASE_FILE}.aside-{seconds}-{n}")));
    let name = names.into_iter().find(free).unwrap_or_default();
    rename(dir, DATABASE_FILE, &name)
}

/// Put a database back that was set aside.
///
/// # Errors
/// [`Error::Io`].
pub fn put_back(dir: &Path, aside: &Path) -> Result<()> {
    let name = aside.file_name().unwrap_or_default().to_string_lossy().into_owned();
    rename(dir, &name, DATABASE_FILE).map(drop)
}
