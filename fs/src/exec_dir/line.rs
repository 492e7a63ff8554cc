//! The interpreter line of a function: which launcher the kernel is told to start.
//!
//! The one in the volume is there for everybody who sees the volume. To open it asks this daemon, and to close it again,
//! while a caller waits; a copy outside costs half. But a caller in another mount namespace, or with another root, may have
//! something else at its path, or a mount that nothing may be run from: the copy is named to those who see it by the mount
//! the daemon sees it by, and to nobody else.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::sys::{self, Seen};

/// Longest interpreter line, bytes: the kernel reads 256.
const LINE_MAX: usize = 255;
/// What a ticket takes on the line.
const TICKET_LEN: usize = 32;

/// The launchers of a mount.
#[derive(Clone, Debug)]
pub struct Launchers {
    /// For everybody: everything before the ticket on an interpreter line, and the path on it.
    everywhere: (Vec<u8>, PathBuf),
    /// For those who see it.
    near: Option<Near>,
}

#[derive(Clone, Debug)]
struct Near {
    line: Vec<u8>,
    path: PathBuf,
    seen: Seen,
}

impl Launchers {
    /// Functions are run by `launcher`.
    ///
    /// # Errors
    /// Why its path cannot stand on an interpreter line.
    pub fn new(launcher: &Path) -> Result<Self, &'static str> {
        Ok(Self { everywhere: (line_of(launcher.as_os_str())?, launcher.to_owned()), near: None })
    }

    /// For callers who see it, by this copy instead.
    ///
    /// # Errors
    /// It cannot be looked at, or its path cannot stand on an interpreter line.
    pub fn set_near(&mut self, copy: &Path) -> io::Result<()> {
        let line = line_of(copy.as_os_str()).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let seen = sys::seen(&CString::new(copy.as_os_str().as_bytes())?)?;
        self.near = Some(Near { line, path: copy.to_owned(), seen });
        Ok(())
    }

    /// The one that is there for everybody.
    pub fn everywhere(&self) -> &Path {
        &self.everywhere.1
    }

    /// What is told to the process `caller`, 0 if it is not known: all but the ticket and the end of the line.
    pub fn line(&self, caller: u32) -> &[u8] {
        match &self.near {
            Some(near) if near.is_seen_by(caller) => &near.line,
            _ => &self.everywhere.0,
        }
    }
}

impl Near {
    fn is_seen_by(&self, caller: u32) -> bool {
        let there = [format!("/proc/{caller}/root").as_bytes(), self.path.as_os_str().as_bytes()].concat();
        CString::new(there).is_ok_and(|path| sys::seen(&path).is_ok_and(|seen| seen == self.seen))
    }
}

fn line_of(launcher: &OsStr) -> Result<Vec<u8>, &'static str> {
    let bytes = launcher.as_bytes();
    if bytes.iter().any(|byte| matches!(byte, b' ' | b'\t' | b'\n' | 0)) {
        return Err("the path of the launcher contains a blank");
    }
    if b"#!".len() + bytes.len() + b" ".len() + TICKET_LEN + b"\n".len() > LINE_MAX {
        return Err("the path of the launcher is too long for an interpreter line");
    }
    Ok([b"#!", bytes, b" "].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_stand_on_one_line() {
        assert_eq!(line_of(OsStr::new("/mnt/.brine/launcher")).unwrap(), b"#!/mnt/.brine/launcher ");
        assert!(line_of(OsStr::new("/my volume/.brine/launcher")).is_err());
        assert!(line_of(OsStr::new(&format!("/{}", "x".repeat(216)))).is_ok());
        assert!(line_of(OsStr::new(&format!("/{}", "x".repeat(250)))).is_err());
    }

    #[test]
    fn a_copy_is_named_to_those_who_see_the_same_file() {
        let path = std::env::temp_dir().join(format!("brine-launcher-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        let mut launchers = Launchers::new(Path::new("/m/.brine/launcher")).unwrap();
        let everywhere = b"#!/m/.brine/launcher ";
        assert_eq!(launchers.line(std::process::id()), everywhere);
        launchers.set_near(&path).unwrap();
        assert_eq!(launchers.line(std::process::id()), line_of(path.as_os_str()).unwrap());
        // A process that is not known, and none at all.
        assert_eq!(launchers.line(0), everywhere);
        assert_eq!(launchers.line(u32::MAX), everywhere);
        // Another file took its place.
        let other = path.with_extension("other");
        std::fs::write(&other, "y").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(launchers.line(std::process::id()), everywhere);
        assert_eq!(launchers.everywhere(), Path::new("/m/.brine/launcher"));
        std::fs::remove_file(path).unwrap();
    }
}
