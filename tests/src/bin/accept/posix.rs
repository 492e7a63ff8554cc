//! That it behaves as a POSIX filesystem.

use std::process::Command;
use std::time::Duration;

use brine_tests::command::run_for;
use brine_tests::environment::sibling;
use brine_tests::scenario::{applications, concurrent, load, posix, programs, twin};
use brine_tests::{Builder, TestVolume};

use crate::Point;

/// Every point, cheap ones first.
pub fn points() -> Vec<Point> {
    vec![
        ("conformance, beside a disk", posix::conformance),
        ("pjdfstest, beside a disk", posix::pjdfstest),
        ("operations of every kind, beside a disk", || twin::operations_of_every_kind(100, 10_000)),
        ("operations of every kind, killed in between", || twin::killed_in_between(150, 600)),
        ("appends by many processes", || concurrent::appends(5000)),
        ("names many processes fight for", || concurrent::names_fought_for(20_000)),
        ("blocks written while the file is cut", || concurrent::cuts(5_000)),
        ("rsync -aHAX twice", || applications::rsync(&mut mounted("rsync"))),
        ("tar with lists and attributes", || applications::tar(&mut mounted("tar"))),
        ("git clone, repack, fsck", || applications::git_clone(&mut mounted("git"), 6000)),
        ("sqlite", || programs::sqlite(&mut mounted("sqlite"), 2000)),
        ("PostgreSQL, fsync on", || applications::postgres(&mut mounted("postgres"), 20)),
        ("cargo", || programs::cargo(&mut mounted("cargo"))),
        ("fio with verification", || applications::fio(&mut mounted("fio"), 64)),
        ("stress-ng", || applications::stress(&mut mounted("stress"), 2)),
        ("dbench", || applications::dbench(&mut mounted("dbench"), 30)),
        ("a copy of 10 GiB", || applications::large_copy(10)),
        ("a directory of a million entries", || load::large_directory(1_000_000)),
        ("a million operations of fsx", || posix::fsx(4, 250_000)),
        ("figures of a source tree", figures),
    ]
}

fn mounted(name: &str) -> TestVolume {
    Builder::new(name).option("allow_other,suid,dev").lifetime(Duration::from_secs(3600)).mount()
}

/// A source tree on brine, a plain directory and gocryptfs, in one run.
fn figures() -> String {
    let bench = sibling("bench-mount").expect("bench-mount is not built: cargo build --release -p brine-benches");
    let args = ["--only", "untar,find,git-clone,remove-tree", "--tree-files", "5000"];
    let finished = run_for(Command::new(bench).args(args), Duration::from_secs(3600)).expect_success();
    finished.stdout.trim_end().to_owned()
}
