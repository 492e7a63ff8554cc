//! What POSIX and the Linux manual pages say of each operation, as checks that run in any directory.
//!
//! The same checks run on brine and on a filesystem of the machine: one that fails there is wrong. A check is a line; most
//! come from tables. Parts are one file an operation.

mod common;
/// The system calls the checks are made of.
pub mod sys;

mod access;
mod acl;
mod append;
mod chmod;
mod chown;
mod copy_range;
mod create;
mod direct;
mod fallocate;
mod link;
mod locks;
mod lseek;
mod mkdir;
mod mknod;
mod mmap;
mod names;
mod open;
mod path;
mod read_write;
mod readdir;
mod readlink;
mod rename;
mod rename2;
mod rmdir;
mod set_id;
mod stat;
mod statvfs;
mod sticky;
mod symlink;
mod sync;
mod times;
mod truncate;
mod umask;
mod unlink;
mod unlinked;
mod utimens;
mod xattr;

use std::fmt::{Debug, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use sys::Answer;

type Part = (&'static str, fn(&mut Suite));

/// Every part: its name and its checks.
const PARTS: &[Part] = &[
    ("access", access::checks),
    ("acl", acl::checks),
    ("append", append::checks),
    ("chmod", chmod::checks),
    ("chown", chown::checks),
    ("copy_file_range", copy_range::checks),
    ("create", create::checks),
    ("direct", direct::checks),
    ("fallocate", fallocate::checks),
    ("link", link::checks),
    ("locks", locks::checks),
    ("lseek", lseek::checks),
    ("mkdir", mkdir::checks),
    ("mknod", mknod::checks),
    ("mmap", mmap::checks),
    ("names", names::checks),
    ("open", open::checks),
    ("path", path::checks),
    ("read and write", read_write::checks),
    ("readdir", readdir::checks),
    ("readlink", readlink::checks),
    ("rename", rename::checks),
    ("renameat2", rename2::checks),
    ("rmdir", rmdir::checks),
    ("set-id", set_id::checks),
    ("stat", stat::checks),
    ("statvfs", statvfs::checks),
    ("sticky", sticky::checks),
    ("symlink", symlink::checks),
    ("fsync", sync::checks),
    ("times", times::checks),
    ("truncate", truncate::checks),
    ("umask", umask::checks),
    ("unlink", unlink::checks),
    ("unlinked files", unlinked::checks),
    ("utimensat", utimens::checks),
    ("xattr", xattr::checks),
];

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Checks made.
    pub checks: usize,
    /// What did not hold, a line each.
    pub failures: Vec<String>,
}

/// Run the parts whose name contains `only` in a new directory below `root`, which is removed afterwards. As root.
pub fn run(root: &Path, only: &str) -> Report {
    let mut report = Report::default();
    for (part, checks) in PARTS.iter().filter(|(part, _)| part.contains(only)) {
        let top = root.join(format!("conformance-{}", part.replace(' ', "-")));
        std::fs::create_dir(&top).unwrap_or_else(|error| panic!("cannot make {}: {error}", top.display()));
        let mut suite = Suite { part, top: top.clone(), next: 0, report: Report::default() };
        if catch_unwind(AssertUnwindSafe(|| checks(&mut suite))).is_err() {
            suite.report.failures.push(format!("{part}: the checks panicked"));
        }
        report.checks += suite.report.checks;
        report.failures.append(&mut suite.report.failures);
        if let Err(error) = std::fs::remove_dir_all(&top) {
            report.failures.push(format!("{part}: removing what the checks made: {error}"));
        }
    }
    report
}

/// A running part.
pub struct Suite {
    part: &'static str,
    top: PathBuf,
    next: u32,
    report: Report,
}

impl Suite {
    /// A new empty directory that everybody may search.
    pub fn dir(&mut self) -> PathBuf {
        self.next += 1;
        let dir = self.top.join(format!("d{}", self.next));
        sys::mkdir(&dir, 0o755).expect("a directory to work in");
        dir
    }

    /// One check.
    pub fn holds(&mut self, what: impl Display, holds: bool) {
        self.report.checks += 1;
        if !holds {
            self.report.failures.push(format!("{}: {what}", self.part));
        }
    }

    /// One check: two values are equal.
    pub fn is<T: PartialEq + Debug>(&mut self, what: impl Display, got: T, want: T) {
        let holds = got == want;
        self.holds(if holds { String::new() } else { format!("{what}: {got:?}, expected {want:?}") }, holds);
    }

    /// One check: it failed with this error.
    pub fn fails<T>(&mut self, what: impl Display, got: Answer<T>, want: Errno) {
        self.is(what, got.err(), Some(want));
    }

    /// One check: it succeeded.
    pub fn works<T>(&mut self, what: impl Display, got: Answer<T>) -> Option<T> {
        self.is(what, got.as_ref().err().copied(), None);
        got.ok()
    }

    /// One check: it succeeds, or fails with the error given.
    pub fn answers<T>(&mut self, what: impl Display, got: Answer<T>, want: Option<Errno>) {
        self.is(what, got.err(), want);
    }
}
