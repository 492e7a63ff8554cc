//! The harness of brine's suites: real volumes on real mounts, and the damage done to them.
//!
//! The program under test is found beside the test binary (`target/<profile>/brine`); nothing is built here.

/// Running programs: with a deadline, captured output, and the Debian package of one that is missing.
pub mod command;
/// What POSIX and the manual pages say, as checks that run in any directory.
pub mod conformance;
/// Damage done to backing directories.
pub mod damage;
/// What this machine must have, where temporary files lie, what is mounted.
pub mod environment;
/// A backing directory that hangs, fails or is slow on demand: a FUSE passthrough run by the test.
pub mod fault_dir;
/// Functions in `exec/`: made and run.
pub mod function;
/// What a tree holds, for comparing it before and after.
pub mod manifest;
/// A file as POSIX wants it, in memory, and random operations on both.
pub mod model;
/// Seeded random numbers and file contents.
pub mod random;
/// Longer stories, told by the suites in short and by `accept` in full.
pub mod scenario;
/// The few system calls that need `unsafe`.
pub mod sys;
/// The same operations on two trees, which must agree.
pub mod twin;
/// A volume of its own for each test.
pub mod volume;
mod watchdog;

pub use command::{Finished, program, run};
pub use manifest::Manifest;
pub use random::{Random, content, seed};
pub use volume::{Builder, Secret, TestVolume};
