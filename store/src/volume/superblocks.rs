//! The superblocks of a volume's members, all together: what they say now, and writing them.
//!
//! Promises: of the two copies in a directory one is whole at any time; a writer that another one took the volume from
//! replaces none; a checkpoint counts as published only when more than m members have the superblock that names it.
//! Knows nothing of their bytes ([`crate::superblock`] does), or of when one must be written.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::Volume;
use crate::backing::{Backing, BackingSet, Wait};
use crate::commit_log::AckOverrides;
use crate::error::{Error, Result};
use crate::fence::FenceWatch;
use crate::ids::{Generation, SegmentId, Term};
use crate::recover::{Ground, Reader};
use crate::seal::VolumeKeys;
use crate::superblock::{ACK_OVERRIDES_MAX, AckOverride, BEHIND_MAX, SUPERBLOCK_FILES, Superblock, newest_first};

/// How long one directory may take to write a superblock while others do.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a superblock may take to be written if no directory has it yet.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// This host's name, for the superblock's hint of who wrote last.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().take(crate::superblock::HOST_LEN_MAX / 4).collect()
}

/// What the members' superblocks say now.
pub(super) struct Superblocks {
    /// The newest, by term, generation and sequence.
    pub(super) newest: Superblock,
    /// Each member's, with its path.
    all: Vec<(PathBuf, Superblock)>,
    /// Term and last durable generation of each.
    ages: Vec<(Term, Generation)>,
}

impl Superblocks {
    /// Read them again: a former writer may have replaced some before it was fenced. `known` is what was read before.
    pub(super) fn read(set: &BackingSet, keys: &VolumeKeys, known: Superblock) -> Result<Self> {
        let mut all = Vec::new();
        for member in set.members().iter().filter(|member| member.can_read()) {
            let Some(backing) = member.backing() else { continue };
            let [first, second] = SUPERBLOCK_FILES.map(|name| backing.read_file(name).ok().flatten());
            let copies = newest_first([first.as_deref(), second.as_deref()]).unwrap_or_default();
            let sound = copies.into_iter().find_map(|copy| copy.verify(keys).ok());
            all.extend(sound.filter(|own| own.member == member.id).map(|own| (member.path().to_path_buf(), own)));
        }
        let ids = |superblock: &Superblock| superblock.members.iter().map(|member| member.id).collect::<Vec<_>>();
        let expected = ids(&known);
        let newest = all.iter().map(|(_, superblock)| superblock.clone()).chain([known]).max_by_key(Superblock::age);
        let ages = all.iter().map(|(_, superblock)| (superblock.term, superblock.generation)).collect();
        match newest {
            Some(newest) if ids(&newest) == expected => Ok(Self { newest, all, ages }),
            _ => Err(Error::Refused("the set of backing directories changed meanwhile; try again".into())),
        }
    }

    /// What recovery goes by.
    pub(super) fn ground(&self, accept_rollback: bool) -> Ground<'_> {
        Ground {
            checkpoints: &self.newest.checkpoints,
            term: self.newest.term,
            generation: self.newest.generation,
            superblocks: &self.ages,
            accept_rollback,
        }
    }

    /// If two writers acknowledged different states, apart from each other: who they were, how far each came, and the
    /// commands to proceed with either.
    pub(super) fn divided(&self, reader: &Reader<'_>) -> Option<String> {
        let newest = &self.newest;
        let (_, other) = self.all.iter().find(|(_, other)| {
            if other.term == newest.term {
                // Both claimed the next term where they could not see each other.
                return (&other.host, &other.state_dir) != (&newest.host, &newest.state_dir);
            }
            // A directory that was away is older than what the later writer began with.
            other.term < newest.term && reader.has_later_term(other.term, other.generation)
        })?;
        let of = |which: &Superblock| {
            let with = self.all.iter().filter(|(_, own)| (own.term, &own.host) == (which.term, &which.host));
            let with = with.filter(|(_, own)| own.state_dir == which.state_dir);
            with.map(|(path, _)| path.display().to_string()).collect::<Vec<_>>().join(":")
        };
        let who = |which: &Superblock| {
            format!(
                "host {} (state directory {}, term {}) up to generation {}",
                which.host,
                String::from_utf8_lossy(&which.state_dir),
                which.term,
                which.generation
            )
        };
        Some(format!(
            "two writers went apart and each acknowledged its own state: {}, in {}; and {}, in {}. To keep the former and \
             give up what only the latter wrote: brine mount -o accept_rollback {} MOUNTPOINT. To keep the latter: \
             take the other directories away, and brine mount -o take_over {} MOUNTPOINT",
            who(newest),
            of(newest),
            who(other),
            of(other),
            of(newest),
            of(other)
        ))
    }
}

impl Volume {
    /// Change the superblock and write it to every member that can be written, one after another.
    pub(super) fn write_superblocks(&self, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        let mut superblock = self.superblock.lock();
        change(&mut superblock);
        superblock.behind = noted(self.blocks.segments().lacking_segments());
        superblock.sequence += 1;
        // Until it is known how many members have it, nothing counts as published.
        *self.floor.lock() = None;
        let outcome = write_to_members(&self.set, &superblock, &self.keys, &self.fence);
        if let Ok(written) = outcome
            && written > self.geometry.parity()
        {
            *self.floor.lock() = match &superblock.checkpoints[..] {
                [_, older] => Some(older.generation),
                _ => None,
            };
        }
        self.fenced().map_or(outcome.map(|_| ()), Err)
    }
}

/// What a superblock has room for of the segments that are behind.
fn noted(mut behind: Vec<(SegmentId, u64)>) -> Vec<(SegmentId, u64)> {
    if behind.len() > BEHIND_MAX {
        log::error!(
            "{} segments are not complete in all directories; a crash forgets which, but {BEHIND_MAX}",
            behind.len()
        );
        behind.truncate(BEHIND_MAX);
    }
    behind
}

impl AckOverrides for Volume {
    fn put(&self, overrides: Vec<AckOverride>, lacking: &[(SegmentId, u64)]) -> Result<()> {
        let mut superblock = self.superblock.lock();
        let is_noted = |(segment, slots): &(SegmentId, u64)| {
            superblock.behind.iter().any(|(other, known)| other == segment && slots & !known == 0)
        };
        // What there is no room for cannot be noted by writing again.
        if overrides.is_empty() && lacking.iter().take(BEHIND_MAX).all(is_noted) {
            return Ok(());
        }
        superblock.behind = noted(lacking.to_vec());
        // A checkpoint stands for the generations before it, and nobody asks any more who had to sync them.
        let past = superblock.checkpoints.last().map_or(Generation(0), |pointer| pointer.generation);
        superblock.ack_overrides.retain(|old| old.generation > past);
        superblock.ack_overrides.extend(overrides);
        let excess = superblock.ack_overrides.len().saturating_sub(ACK_OVERRIDES_MAX);
        superblock.ack_overrides.drain(..excess);
        superblock.sequence += 1;
        let healthy = write_to_members(&self.set, &superblock, &self.keys, &self.fence)?;
        let needed = (self.geometry.parity() + 1).min(self.set.members().iter().filter(|m| !m.is_lost()).count());
        if healthy < needed { Err(Error::TooFewMembers { healthy, needed }) } else { Ok(()) }
    }
}

/// Write both copies of a superblock, one after the other, so that a crash leaves one good.
pub(super) fn write_copies(backing: &dyn Backing, own: &Superblock, keys: &VolumeKeys) -> io::Result<()> {
    let bytes = own.encode(keys).map_err(io::Error::other)?;
    SUPERBLOCK_FILES.iter().try_for_each(|name| backing.write_file(name, &bytes))
}

/// Write the superblock to every member that can be written; an error takes the member out. Tells how many took it;
/// fails if none did, or if the volume was taken over.
fn write_to_members(set: &BackingSet, superblock: &Superblock, keys: &VolumeKeys, fence: &FenceWatch) -> Result<usize> {
    // The copies alternate, so one of them is always whole.
    let name = Superblock::file_of(superblock.sequence);
    let files = set
        .healthy()
        .map(|member| {
            // A former writer must not replace what the new one wrote.
            fence.check_member(member)?;
            let own = Superblock { member: member.id, ..superblock.clone() };
            Ok((member.id, own.encode(keys).map_err(|error| Error::Refused(error.to_string()))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let members: Vec<_> = files.iter().map(|(member, _)| *member).collect();
    let enough = |done: &[bool]| done.iter().any(|done| *done);
    let usual = set.members().iter().map(|member| member.patience()).max().unwrap_or_default();
    let wait = Wait { patience: usual.max(WRITE_PATIENCE), enough: &enough, limit: usual.max(WRITE_LIMIT) };
    let mut written = 0;
    for (member, result) in members.iter().zip(set.write_files(files, name, &wait)) {
        match result {
            Ok(()) => written += 1,
            Err(error) => set.report_write_error(member, "writing the superblock", &error),
        }
    }
    if written == 0 {
        return Err(Error::TooFewMembers { healthy: 0, needed: 1 });
    }
    Ok(written)
}
