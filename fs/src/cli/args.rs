//! What reading a command line has in common.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lexopt::{Arg, Parser, ValueExt};

use crate::config::{number, split_at};
use crate::exit_code::Failure;

/// Exactly `N` paths, in their order.
pub(super) fn exactly<const N: usize>(paths: Vec<PathBuf>, names: &str) -> Result<[PathBuf; N], Failure> {
    let given = paths.len();
    <[PathBuf; N]>::try_from(paths).map_err(|paths| {
        if given > N {
            Failure::usage(format!("unexpected argument \"{}\"; give {names}", paths[N].display()))
        } else {
            Failure::usage(format!("give {names}"))
        }
    })
}

/// An argument that no option takes.
pub(super) fn positional(argument: Arg<'_>, paths: &mut Vec<PathBuf>) -> Result<(), Failure> {
    match argument {
        Arg::Value(value) if value.is_empty() => Err(Failure::usage("an empty name was given")),
        Arg::Value(value) => {
            paths.push(value.into());
            Ok(())
        }
        other => Err(other.unexpected().into()),
    }
}

/// The value of an option, as a path. An empty one is a variable that was not set.
pub(super) fn path(parser: &mut Parser, option: &str) -> Result<PathBuf, Failure> {
    let value: OsString = parser.value()?;
    if value.is_empty() {
        return Err(Failure::usage(format!("{option} was given an empty path")));
    }
    Ok(value.into())
}

/// The value of an option, as text.
pub(super) fn word(parser: &mut Parser) -> Result<String, Failure> {
    Ok(parser.value()?.string()?)
}

/// The value of an option, as a number within bounds.
pub(super) fn count(parser: &mut Parser, option: &str, min: u64, max: u64) -> Result<u64, Failure> {
    let word = word(parser)?;
    number(&word, min, max).ok_or_else(|| Failure::usage(format!("{option} {word}: give a number from {min} to {max}")))
}

/// A path from the root, without touching it.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components().collect()
}

/// The directories a source names: one, or several separated by colons (a backslash protects one).
pub(super) fn sources(source: &Path) -> Vec<PathBuf> {
    if source.exists() {
        return vec![absolute(source)];
    }
    let parts = split_at(source.as_os_str(), b':', false);
    parts.into_iter().filter(|part| !part.is_empty()).map(|part| absolute(Path::new(&part))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_separated_by_colons() {
        assert_eq!(sources(Path::new("/no/a:/no/b")), [PathBuf::from("/no/a"), "/no/b".into()]);
        assert_eq!(sources(Path::new(r"/no/a\:b")), [PathBuf::from("/no/a:b")]);
        assert_eq!(sources(Path::new("/proc/")), [PathBuf::from("/proc")]);
        assert!(sources(Path::new("no/a"))[0].is_absolute());
    }

    #[test]
    fn the_number_of_names_is_checked() {
        let two = |paths: &[&str]| exactly::<2>(paths.iter().map(PathBuf::from).collect(), "SOURCE and MOUNTPOINT");
        assert!(two(&["a", "b"]).is_ok());
        assert!(two(&["a"]).unwrap_err().message().contains("give SOURCE and MOUNTPOINT"));
        assert!(two(&["a", "b", "c"]).unwrap_err().message().contains("\"c\""));
    }
}
