//! From the directories that were found to the members of a volume: unlocked, verified, locked.
//!
//! Promises: what does not verify counts as missing, with its reason; of directories that claim to be one member none
//! is used until one is named. Nothing is written. Knows nothing of the database and of what is made of the members.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::probe::{Discovery, path_of_bytes};
use crate::backing::{Backing, BackingSet, Directories, Health, Member};
use crate::error::{Error, Result};
use crate::ids::MemberId;
use crate::keyslot::{SlotError, Unlock};
use crate::seal::VolumeKeys;
use crate::superblock::{Superblock, UnverifiedSuperblock};

/// The volume's keys, by the slots of a superblock.
pub(super) fn unlock(superblock: &UnverifiedSuperblock, secret: &Unlock) -> Result<VolumeKeys> {
    let volume = superblock.unauthenticated().volume;
    superblock.unlock(secret).map_err(|error| match error {
        SlotError::Form(_) => Error::format(format!("key slots of volume {volume}"), error.to_string()),
        other => Error::Unlock(format!("volume {volume}: {other}")),
    })
}

pub(super) struct Members {
    pub(super) set: Arc<BackingSet>,
    pub(super) superblock: Superblock,
    pub(super) warnings: Vec<String>,
}

/// Verified superblocks become members; what does not verify counts as missing. Of directories that claim to be one
/// member, `use_member` names the true one.
pub(super) fn members(
    mut discovery: Discovery,
    keys: &VolumeKeys,
    use_member: &[PathBuf],
    directories: &dyn Directories,
) -> Result<Members> {
    find_clones(&mut discovery, use_member, directories);
    let mut warnings = Vec::new();
    let mut verified: Vec<(PathBuf, Arc<dyn Backing>, Superblock)> = Vec::new();
    let mut damaged = HashMap::new();
    for found in discovery.found {
        let member = found.member();
        match found.superblock.verify(keys) {
            Ok(superblock) => verified.push((found.path, found.backing, superblock)),
            Err(error) => {
                damaged.insert(member, format!("its superblock is not authentic ({error})"));
            }
        }
    }
    let newest = verified
        .iter()
        .map(|(_, _, superblock)| superblock)
        .max_by_key(|superblock| superblock.age())
        .cloned()
        .ok_or_else(|| {
            Error::Refused("no directory has an authentic superblock; bring another backing directory".into())
        })?;
    let disagree = verified.iter().find(|(_, _, superblock)| {
        superblock.geometry != newest.geometry || superblock.created_ns != newest.created_ns
    });
    if let Some((path, _, superblock)) = disagree {
        return Err(Error::Refused(format!(
            "superblocks disagree: {} says {} shards, generation {}; the newest says {}, generation {}. \
             Leave that directory out, or restore its superblock from another",
            path.display(),
            superblock.geometry,
            superblock.generation,
            newest.geometry,
            newest.generation
        )));
    }
    let limits = directories.pace().limits;
    let member = |id, path, backing, health| Member::with_limits(id, path, backing, health, limits);
    let list = newest
        .members
        .iter()
        .map(|entry| {
            let mut claims: Vec<_> = verified.iter().filter(|(_, _, s)| s.member == entry.id).collect();
            if claims.len() > 1 {
                let named: Vec<_> = claims.iter().filter(|(path, _, _)| names(use_member, path)).copied().collect();
                if named.len() == 1 {
                    claims = named;
                } else {
                    let paths: Vec<String> = claims.iter().map(|(path, _, _)| path.display().to_string()).collect();
                    warnings.push(format!(
                        "{} are copies of one directory; neither is used until one is named with -o use_member=PATH",
                        paths.join(" and ")
                    ));
                    return member(entry.id, claims[0].0.clone(), None, Health::Duplicate);
                }
            }
            match claims.first() {
                Some((path, backing, superblock)) => {
                    if superblock.generation < newest.generation {
                        warnings.push(format!(
                            "{} was away since generation {}; `brine heal` brings it up to date",
                            path.display(),
                            superblock.generation
                        ));
                    }
                    member(entry.id, path.clone(), Some(backing.clone()), Health::Healthy)
                }
                None => {
                    let reason = damaged
                        .get(&entry.id)
                        .cloned()
                        .or_else(|| {
                            discovery.absent.iter().find(|(id, _, _)| *id == entry.id).map(|(_, _, r)| r.clone())
                        })
                        .unwrap_or_else(|| "not found".into());
                    warnings.push(format!("directory {} is missing: {reason}", path_of_bytes(&entry.path).display()));
                    member(entry.id, path_of_bytes(&entry.path), None, Health::Missing { reason })
                }
            }
        })
        .collect();
    Ok(Members { set: Arc::new(BackingSet::new(list)), superblock: newest, warnings })
}

fn names(use_member: &[PathBuf], path: &Path) -> bool {
    use_member.iter().any(|named| named == path || std::fs::canonicalize(named).is_ok_and(|named| named == path))
}

/// Directories named as sources that claim a member another directory claims, too, were both found; a clone at a path
/// nobody named cannot be seen. Kept as one list, so that [`members`] can refuse both.
fn find_clones(discovery: &mut Discovery, use_member: &[PathBuf], directories: &dyn Directories) {
    for path in use_member {
        let known = directories.canonical(path);
        if !discovery.found.iter().any(|found| found.path == known) {
            discovery.add(&known, directories);
        }
    }
}

/// Lock the members against other processes of this host. One that cannot be locked counts as missing. Taking over,
/// those that are locked by others are returned: the fence decides, and the lock is taken when it becomes free.
pub(super) fn lock_members(set: &BackingSet, take_over: bool, warnings: &mut Vec<String>) -> Result<Vec<MemberId>> {
    let mut held = Vec::new();
    for member in set.members().iter().filter(|member| member.can_read()) {
        match member.lock() {
            Ok(()) => {}
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                let reason = format!("it cannot be locked: {error}");
                warnings.push(format!("directory {} is missing: {reason}", member.path().display()));
                member.mark_missing(reason);
            }
            Err(_) if take_over => held.push(member.id),
            Err(source) => {
                return Err(Error::InUse(format!(
                    "backing directory {} is in use by another process ({source}); unmount the volume there first. If \
                     that process is stuck, take the volume from it: -o take_over, with a state directory of its own",
                    member.path().display()
                )));
            }
        }
    }
    if !held.is_empty() {
        warnings.push("another process of this host had the volume open; it was taken over".into());
    }
    Ok(held)
}
