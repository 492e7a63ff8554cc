//! The paths, operations, time and bytes one invocation may use. What is not granted does not exist for the run.

use std::path::{Component, Path, PathBuf};

/// What may be done with a granted path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write in place.
    Write,
    /// Write into a private copy, published in one transaction when the run succeeds.
    Staged,
}

/// One granted path, from the volume's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Path from the volume's root, without `.` or `..`.
    pub path: PathBuf,
    /// What may be done with it and what lies below it.
    pub access: Access,
}

/// Everything one run may touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    grants: Vec<Grant>,
}

/// A path that cannot be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAVolumePath(pub PathBuf);

impl Scope {
    /// Grant a path. Refuses relative paths and paths with `..`: a grant never names anything outside the volume.
    pub fn grant(&mut self, path: &Path, access: Access) -> Result<(), NotAVolumePath> {
        let plain = path.is_absolute()
            && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !plain {
            return Err(NotAVolumePath(path.to_owned()));
        }
        self.grants.push(Grant { path: path.to_owned(), access });
        Ok(())
    }

    /// What may be done with `path`: the widest access of the grants at or above it.
    pub fn access(&self, path: &Path) -> Option<Access> {
        self.grants.iter().filter(|grant| path.starts_with(&grant.path)).map(|grant| grant.access).max()
    }

    /// The grants, in the order they were given.
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_granted_by_default_and_grants_cover_what_lies_below() {
        let mut scope = Scope::default();
        assert_eq!(scope.access(Path::new("/data")), None);
        scope.grant(Path::new("/data/in"), Access::Read).unwrap();
        scope.grant(Path::new("/data/in/out"), Access::Write).unwrap();
        assert_eq!(scope.access(Path::new("/data/in/x")), Some(Access::Read));
        assert_eq!(scope.access(Path::new("/data/in/out/y")), Some(Access::Write));
        assert_eq!(scope.access(Path::new("/data/inside")), None, "names are compared whole");
        for bad in ["data", "/data/../etc", "./x"] {
            assert!(scope.grant(Path::new(bad), Access::Read).is_err(), "{bad}");
        }
    }
}
