//! brine's storage engine: from bytes of a file to shards in backing directories and back.
//!
//! Which module may use which: docs/ARCHITECTURE.md.

pub mod backing; // directories that hold segment files; faults are injected here
pub mod blocks; // put and get of sealed blocks: dedup, cache, degraded reads
pub mod check; // verify everything, by path
pub mod checkpoint; // images of the metadata, from which the log is replayed
pub mod clock; // time and randomness, handed in
pub mod commit; // how a generation becomes durable
pub mod commit_log; // each generation as a sealed record in the backing directories
pub mod error; // the one error type of this crate
pub mod fence; // one writer: terms
pub mod gc; // space given back
pub mod ids; // newtypes for every number that could be swapped
pub mod keyslot; // the volume key, wrapped by passphrase, key file or recovery key
pub mod linux; // which kernel this is
pub mod lock; // one daemon a volume on one host
pub mod meta; // the metadata database: rows, transactions, conditional writes
pub mod placement; // which members a segment is placed on
pub mod record; // commit records: the row changes of one generation, and the root of a checkpoint image
pub mod recover; // a database brought up to the log, or made from it
pub mod reseal; // salt epochs
pub mod retention; // which former states are kept, and for how long
pub mod seal; // chunk -> sealed block: keys, salts, compression, padding, AEAD
pub mod segment; // append-only files in which stripes lie
pub mod shard; // record headers: the bytes around every shard
pub mod stripes; // whole stripes, verified shard by shard
pub mod superblock; // a volume's identity in each backing directory
pub mod usage; // what takes the space
pub mod volume; // all that the crates above see
mod wire; // little-endian fields, and the checksum and MAC that end every structure on disk

pub use brine_kernels::{erasure, geometry};
pub use error::{Error, Result};
