//! Longer stories, told by the suites in short and by `accept` in full. Each panics at the first thing that is wrong
//! and returns a sentence of what it saw.

/// Applications that find fault with a filesystem.
pub mod applications;
/// Many processes in one directory.
pub mod concurrent;
/// Kills of the daemon, and power cuts of the disks, under load.
pub mod crash;
/// Wrong and slow bytes.
pub mod damage;
/// Equal content, stored once.
pub mod dedup;
/// Functions in sandboxes, by the thousand.
pub mod functions;
/// Kills of the daemon by the hundred.
pub mod kills;
/// Many files, and random operations on few.
pub mod load;
/// Directories that are gone, and the state directory.
pub mod loss;
/// Suites that tell a filesystem that behaves from one that does not.
pub mod posix;
/// Programs people use, on the mount.
pub mod programs;
/// Space given back.
pub mod reclaim;
/// What must be refused.
pub mod refusals;
/// What must not be seen.
pub mod secrets;
/// Volumes without room.
pub mod space;
/// A writer that was stopped while another took its place.
pub mod takeover;
/// Operations of every kind beside a disk, and kills in between.
pub mod twin;
/// Past states.
pub mod versions;
