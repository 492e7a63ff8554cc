//! A writer's look-out for a higher term.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::record::{FenceRecord, fence_file};
use super::{TakenOver, read, terms};
use crate::backing::{Backing, BackingSet, FENCE_DIR, Member};
use crate::error::{Error, Result};
use crate::ids::{MemberId, Term, VolumeId};

/// How long the directories may take to list their fences before a commit fails.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks of a writer that has nothing to commit.
const IDLE_LOOK: Duration = Duration::from_secs(2);

/// Watches for a higher fence on behalf of one writer.
pub struct FenceWatch {
    set: Arc<BackingSet>,
    volume: VolumeId,
    mac_key: [u8; 32],
    /// `None`: not a writer, nothing to watch for.
    term: Option<Term>,
    parity: usize,
    found: Mutex<Option<TakenOver>>,
    looked: Mutex<Instant>,
    /// How often names had changed in members ([`Member::changes`]) before their fences were last listed.
    listed_at: Mutex<Vec<(MemberId, u64)>>,
}

impl std::fmt::Debug for FenceWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FenceWatch").field("term", &self.term).finish_non_exhaustive()
    }
}

impl FenceWatch {
    /// For the writer of `term`; `None` for who only reads.
    pub fn new(set: Arc<BackingSet>, volume: VolumeId, mac_key: [u8; 32], term: Option<Term>, parity: usize) -> Self {
        Self {
            set,
            volume,
            mac_key,
            term,
            parity,
            found: Mutex::default(),
            looked: Mutex::new(Instant::now()),
            listed_at: Mutex::default(),
        }
    }

    /// Who took the volume over, once that was seen.
    pub fn taken_over(&self) -> Option<TakenOver> {
        self.found.lock().clone()
    }

    /// Look at m+1 members, at all if there are fewer. To be called after a sync and before anything is answered.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] with the new writer's host, state directory and term;
    /// [`Error::TooFewMembers`] if too few directories tell.
    pub fn check(&self) -> Result<()> {
        let Some(term) = self.term else { return Ok(()) };
        self.still_ours()?;
        let present = self.set.members().iter().filter(|member| member.can_read()).count();
        let needed = (self.parity + 1).min(present.max(1));
        *self.looked.lock() = Instant::now();
        // What names there were is known where none came or went since.
        let changes: Vec<(MemberId, u64)> =
            self.set.members().iter().filter_map(|member| Some((member.id, member.changes()?))).collect();
        let mut listed_at = self.listed_at.lock();
        if changes.iter().filter(|now| listed_at.contains(now)).count() >= needed {
            return Ok(());
        }
        let answers = self.set.list_on_each(FENCE_DIR, needed, PATIENCE);
        let higher = answers.iter().flat_map(|(_, names)| terms(names)).filter(|other| *other > term).max();
        if let Some(higher) = higher {
            self.note(higher);
            return self.still_ours();
        }
        if answers.len() < needed {
            return Err(Error::TooFewMembers { healthy: answers.len(), needed });
        }
        let listed = changes.into_iter().filter(|(id, _)| answers.iter().any(|(answered, _)| answered == id));
        *listed_at = listed.collect();
        Ok(())
    }

    /// [`Self::check`], if the last one was a while ago.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_if_due(&self) -> Result<()> {
        if self.looked.lock().elapsed() < IDLE_LOOK { self.still_ours() } else { self.check() }
    }

    /// Look at one member, just before something there is replaced.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_member(&self, member: &Arc<Member>) -> Result<()> {
        let Some(term) = self.term else { return Ok(()) };
        self.still_ours()?;
        let names = member.list_files(FENCE_DIR).unwrap_or_default();
        if let Some(higher) = terms(&names).filter(|other| *other > term).max() {
            self.note(higher);
        }
        self.still_ours()
    }

    /// Put this writer's fence into a directory that takes a member's place.
    ///
    /// # Errors
    /// [`Error::Backing`].
    pub fn extend_to(&self, member: MemberId, backing: &dyn Backing) -> Result<()> {
        let Some(term) = self.term else { return Ok(()) };
        let own = self.set.members().iter().filter_map(|other| other.backing());
        let own = own.into_iter().find_map(|other| read(other.as_ref(), term, self.volume, &self.mac_key));
        let Some(own) = own else { return Ok(()) };
        let fence = FenceRecord { member, ..own };
        match backing.create_file_exclusive(&fence_file(term), &fence.encode(&self.mac_key)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::Backing {
                directory: backing.describe(),
                operation: format!("claiming term {term}"),
                source: error,
            }),
            _ => Ok(()),
        }
    }

    fn still_ours(&self) -> Result<()> {
        match &*self.found.lock() {
            None => Ok(()),
            Some(other) => Err(Error::ReadOnly(format!(
                "{other}; this writer{} has stopped. What it had not made durable is lost: unmount it",
                self.term.map_or_else(String::new, |term| format!(" (term {term})"))
            ))),
        }
    }

    fn note(&self, higher: Term) {
        let backings = self.set.members().iter().filter_map(|member| member.backing());
        let fence = backings.into_iter().find_map(|backing| read(backing.as_ref(), higher, self.volume, &self.mac_key));
        let by = fence.map(|fence| (fence.host, PathBuf::from(OsString::from_vec(fence.state_dir))));
        let other = TakenOver { term: higher, by };
        log::error!("volume {}: {other}; nothing is written any more", self.volume);
        *self.found.lock() = Some(other);
    }
}
