//! Quotas: how many bytes and inodes a directory may hold with everything below it.
//!
//! Every inode carries the number of the innermost quota it counts in ([`InodeRow::quota`]): what is made in a directory
//! gets the directory's. A quota knows the one around it (`outer`), and a charge goes to all of the chain, in the
//! operation that changes the row, so that usage always is what a recount of the rows gives ([`super::Reader::verify`]).
//! An inode takes what `st_blocks` says of it; former states take nothing. The names of an inode stay within one quota:
//! links and renames across a border are refused.
//!
//! Setting a quota on a directory tags what is below in steps; until it is all tagged, the quota is `Counting` and not
//! enforced. A removed quota stays as a row that stands for the one around it, until no inode names it any more.
//!
//! What writers were promised and is not stored yet is held in memory ([`Txn::promise_quota`]) and counts as used.

mod count;
mod limits;
mod promise;
mod table;
mod verify;

use super::rows::INODE_QUOTA_SHIFT;
use crate::error::{Error, Result};
use crate::ids::Ino;
pub use count::Counting;
pub use limits::QuotaRoom;
pub(super) use table::Quotas;
pub(super) use verify::verify;

/// Version of the encoding of a quota.
const FORMAT: u8 = 1;
/// Length of an encoded quota, bytes.
pub(super) const ENCODED_LEN: usize = 48;
/// Numbers of quotas are less than this: they have 24 bits of an inode's flags.
const NUMBER_END: u32 = 1 << 24;
/// Stored for "no limit".
const NO_LIMIT: u64 = u64::MAX;
/// Most quotas around one another.
const NESTING_MAX: usize = 64;

/// Most that a directory may hold with everything below it; `None`: as much as the volume can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Bytes allocated.
    pub bytes: Option<u64>,
    /// Inodes: files, directories and all else, each once.
    pub inodes: Option<u64>,
}

/// Life of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaState {
    /// Its limits hold.
    Enforced = 0,
    /// What was there before it is being counted; its limits do not hold yet.
    Counting = 1,
    /// It is removed and has no limits; inodes that name it belong to the one around it.
    Removed = 2,
}

/// One quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Its number.
    pub number: u32,
    /// The directory it is set on.
    pub directory: Ino,
    /// Number of the quota around it, 0 if none.
    pub outer: u32,
    /// Its limits.
    pub limits: QuotaLimits,
    /// Bytes allocated in it.
    pub bytes: u64,
    /// Inodes in it.
    pub inodes: u64,
    /// Its state.
    pub state: QuotaState,
}

impl Quota {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT, self.state as u8, 0, 0];
        out.extend(self.outer.to_le_bytes());
        let limit = |limit: Option<u64>| limit.unwrap_or(NO_LIMIT);
        let words = [self.directory.0, limit(self.limits.bytes), limit(self.limits.inodes), self.bytes, self.inodes];
        words.iter().for_each(|word| out.extend(word.to_le_bytes()));
        out
    }

    /// From the key and the value of its row.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self> {
        let damaged = || {
            let reason = format!("{} bytes under a key of {}; run `brine rebuild`", value.len(), key.len());
            Error::format("a quota in the metadata database", reason)
        };
        let number = u32::from_be_bytes(key.try_into().map_err(|_| damaged())?);
        if value.len() != ENCODED_LEN || value[0] != FORMAT || number == 0 || number >= NUMBER_END {
            return Err(damaged());
        }
        let state = match value[1] {
            0 => QuotaState::Enforced,
            1 => QuotaState::Counting,
            2 => QuotaState::Removed,
            _ => return Err(damaged()),
        };
        let mut outer = [0; 4];
        outer.copy_from_slice(&value[4..8]);
        let words = value[8..].as_chunks::<8>().0;
        let word = |at: usize| u64::from_le_bytes(words[at]);
        let limit = |at: usize| Some(word(at)).filter(|limit| *limit != NO_LIMIT);
        Ok(Self {
            number,
            directory: Ino(word(0)),
            outer: u32::from_le_bytes(outer),
            limits: QuotaLimits { bytes: limit(1), inodes: limit(2) },
            bytes: word(3),
            inodes: word(4),
            state,
        })
    }
}

/// The number that an inode's flags carry.
pub(super) fn tagged(flags: u32, number: u32) -> u32 {
    flags & !(u32::MAX << INODE_QUOTA_SHIFT) | number << INODE_QUOTA_SHIFT
}
