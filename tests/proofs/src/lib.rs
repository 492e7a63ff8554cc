//! Proofs that crashes and faults lose nothing, below the mount: a whole volume and the filesystem above it over
//! directories in memory, whose every write and sync is recorded, cut off, torn or made to fail.
//!
//! The black-box suites in `tests` show the same of the shipped program on real disks, a few dozen times; here it is
//! done some thousand times, at chosen moments.

/// The local database's files, recorded below SQLite.
pub mod database;
/// Every call of a backing directory fails once, in every way it can.
pub mod faults;
/// What a filesystem must do, in memory.
pub mod model;
/// Everything that is written and synced, in one order.
pub mod journal;
/// Cutting the power at chosen moments of a recorded session.
pub mod power_cut;
/// Seeded random numbers.
pub mod random;
/// Operations, carried out on a filesystem and on the model.
pub mod workload;
/// A volume in memory.
pub mod world;
