//! Taking a term.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::record::{FenceRecord, fence_file};
use super::{read, terms};
use crate::backing::{BackingSet, FENCE_DIR, Member};
use crate::clock::{Clock, Entropy};
use crate::error::{Error, Result};
use crate::ids::{Term, VolumeId};

/// Terms tried while another writer claims the same ones.
const TRIES: u32 = 8;
/// Pause between two tries at most, milliseconds.
const PAUSE_MS: u64 = 50;
/// Former fences kept while members are away: they tell whoever looks how the volume got here.
const FORMER_KEPT: usize = 8;

/// Who claims a term.
pub struct Claimant<'a> {
    /// The volume.
    pub volume: VolumeId,
    /// Key of fence MACs.
    pub fence_mac: &'a [u8; 32],
    /// This host's name.
    pub host: String,
    /// This writer's state directory.
    pub state_dir: Vec<u8>,
    /// m of the volume: members that may be missing.
    pub parity: usize,
    /// The volume is to be taken from whoever had it last, though that one may go on where this one cannot see it.
    pub take_over: bool,
    /// The highest term the superblocks name.
    pub known: Term,
    /// Host and state directory of the last writer as the superblocks name them, for volumes without fences.
    pub last_writer: (String, Vec<u8>),
    /// Now.
    pub clock: &'a dyn Clock,
    /// Where random numbers come from.
    pub entropy: &'a dyn Entropy,
}

impl std::fmt::Debug for Claimant<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claimant").field("host", &self.host).field("known", &self.known).finish_non_exhaustive()
    }
}

fn present(set: &BackingSet) -> Vec<&Arc<Member>> {
    set.members().iter().filter(|member| member.can_write()).collect()
}

/// The highest term claimed in any member that can be read. A directory that cannot list its fences is taken out.
fn highest(set: &BackingSet) -> Option<Term> {
    let mut highest = None;
    for member in present(set) {
        match member.list_files(FENCE_DIR) {
            Ok(names) => highest = highest.max(terms(&names).max()),
            Err(error) => set.report_write_error(&member.id, "listing fences", &error),
        }
    }
    highest
}

/// Take the next term. Fences of it are durable in all members that can be written, at least n-m, when this returns.
///
/// # Errors
/// [`Error::Refused`] where only the last writer may go on, or another writer was faster;
/// [`Error::TooFewMembers`] if too few directories took the fence.
pub fn claim(set: &BackingSet, who: &Claimant<'_>) -> Result<Term> {
    for _ in 0..TRIES {
        let claimed = highest(set);
        check_allowed(set, who, claimed)?;
        let term = Term(claimed.unwrap_or_default().max(who.known).0 + 1);
        if !create(set, who, term)? {
            // Jitter parts two that claim at once; the higher term wins.
            let mut random = [0; 8];
            who.entropy.fill(&mut random);
            std::thread::sleep(Duration::from_millis(1 + u64::from_le_bytes(random) % PAUSE_MS));
            continue;
        }
        return match highest(set).filter(|now| *now > term) {
            None => Ok(term),
            Some(higher) => Err(contested(set, who, higher)),
        };
    }
    let higher = highest(set).unwrap_or_default();
    Err(contested(set, who, higher))
}

/// The last fence that can be read, whatever claims by name came later.
fn fence_of(set: &BackingSet, who: &Claimant<'_>, term: Term) -> Option<FenceRecord> {
    present(set).iter().find_map(|member| read(member.backing()?.as_ref(), term, who.volume, who.fence_mac))
}

fn contested(set: &BackingSet, who: &Claimant<'_>, higher: Term) -> Error {
    let by = fence_of(set, who, higher)
        .map(|fence| (fence.host, PathBuf::from(std::ffi::OsString::from_vec(fence.state_dir))));
    let other = super::TakenOver { term: higher, by };
    Error::InUse(format!("while this writer claimed a term, {other}; unmount the volume there first"))
}

/// If the members that are missing could serve a writer of their own, only the last writer goes on by itself: anybody
/// else must be told that it does not.
fn check_allowed(set: &BackingSet, who: &Claimant<'_>, claimed: Option<Term>) -> Result<()> {
    let total = set.members().len();
    let missing = total - present(set).len();
    if who.take_over || missing == 0 || missing < total.saturating_sub(who.parity) {
        return Ok(());
    }
    let last = match claimed {
        Some(term) => fence_of(set, who, term).map(|fence| (fence.host, fence.state_dir)),
        None => Some(who.last_writer.clone()),
    };
    if last.as_ref().is_some_and(|(host, state_dir)| *host == who.host && *state_dir == who.state_dir) {
        return Ok(());
    }
    let by = match last {
        Some((host, state_dir)) => {
            format!("host {host}, state directory {}", PathBuf::from(std::ffi::OsString::from_vec(state_dir)).display())
        }
        None => "somebody whose fence cannot be read".into(),
    };
    Err(Error::Refused(format!(
        "{missing} of {total} backing directories are missing: enough for another writer to go on there, and the volume \
         was last written by {by}. Bring them back, or mount there. If that writer is certainly not running, take over: \
         brine mount -o take_over SOURCE MOUNTPOINT"
    )))
}

/// True if the term is this writer's alone.
fn create(set: &BackingSet, who: &Claimant<'_>, term: Term) -> Result<bool> {
    let mut random = [0; 16];
    who.entropy.fill(&mut random);
    let mut created = 0;
    for member in present(set) {
        let fence = FenceRecord {
            volume: who.volume,
            term,
            member: member.id,
            time_ns: who.clock.now_ns(),
            random,
            host: who.host.clone(),
            state_dir: who.state_dir.clone(),
        };
        match member.create_file_exclusive(&fence_file(term), &fence.encode(who.fence_mac)) {
            Ok(()) => created += 1,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => set.report_write_error(&member.id, &format!("claiming term {term}"), &error),
        }
    }
    let needed = set.members().len().saturating_sub(who.parity).max(1);
    if created < needed {
        return Err(Error::TooFewMembers { healthy: created, needed });
    }
    Ok(true)
}

/// Remove fences that nobody needs any more: those below `term`, which is in the superblocks by now. While members are
/// away some are kept. Best effort.
pub fn prune(set: &BackingSet, term: Term) {
    let all = present(set).len() == set.members().len();
    for member in present(set) {
        let Ok(names) = member.list_files(FENCE_DIR) else { continue };
        let mut former: Vec<Term> = terms(&names).filter(|other| *other < term).collect();
        former.sort_unstable();
        let kept = if all { 0 } else { FORMER_KEPT };
        former.truncate(former.len().saturating_sub(kept));
        for old in former {
            if let Err(error) = member.remove_file(&fence_file(old)) {
                log::warn!("{}: removing the fence of term {old}: {error}", member.path().display());
                break;
            }
        }
    }
}
