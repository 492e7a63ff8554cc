//! One writer: terms, and the files by which they are claimed (R16).
//!
//! Promises: of any two writers the one with the lower term learns of the other before it answers anything that the
//! other cannot have read: a term is claimed in n-m members at least before the log is read, and a writer looks at
//! m+1 after each sync, so one member is in both. Local locks come besides; where they and fences differ, fences
//! decide. Knows neither records nor databases.

mod claim;
mod record;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::path::PathBuf;

pub use claim::{Claimant, claim, prune};
pub use record::{FENCE_LEN_MAX, FenceError, FenceRecord, UnverifiedFence, fence_file, fence_term};
pub use watch::FenceWatch;

use crate::backing::Backing;
use crate::ids::{Term, VolumeId};

/// Whoever has the volume now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenOver {
    /// Its term.
    pub term: Term,
    /// Its host and state directory; `None` if its fence cannot be read (it counts all the same).
    pub by: Option<(String, PathBuf)>,
}

impl fmt::Display for TakenOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            Some((host, state_dir)) => write!(
                f,
                "host {host} (state directory {}) took the volume over with term {}",
                state_dir.display(),
                self.term
            ),
            None => write!(f, "another writer took the volume over with term {}", self.term),
        }
    }
}

/// The terms claimed in a directory, by the names of files alone.
fn terms(names: &[String]) -> impl Iterator<Item = Term> {
    names.iter().filter_map(|name| fence_term(name))
}

/// The fence of a term in one directory, if it is whole and of this volume.
fn read(backing: &dyn Backing, term: Term, volume: VolumeId, mac_key: &[u8; 32]) -> Option<FenceRecord> {
    let bytes = backing.read_file(&fence_file(term)).ok().flatten()?;
    let fence = FenceRecord::decode(&bytes).ok()?.verify(mac_key).ok()?;
    (fence.volume == volume && fence.term == term).then_some(fence)
}
