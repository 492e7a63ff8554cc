//! Healing: the missing and wrong shards of a stripe are rebuilt from the good ones and written back where they
//! belong. "Healed" is said only after the shards were read and counted again.

use std::collections::{BTreeSet, HashSet};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Blocks;
use crate::backing::{Member, Wait};
use crate::error::{Error, Result};
use crate::ids::{Generation, MemberId, SegmentId, ShardIndex, Term, VolumeId};
use crate::shard::{CommitHeader, RECORD_ALIGN, RecordHeader, SegmentHeader};
use crate::stripes::{GoodShard, SegmentInfo, StripePlace};

/// How long syncing a healed file may take.
const SYNC_PATIENCE: Duration = Duration::from_secs(60);

/// What became of one stripe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StripeHealth {
    /// Shards looked at: occupied slots.
    pub shards: usize,
    /// Shards found missing or wrong.
    pub bad: usize,
    /// Shards written anew.
    pub repaired: usize,
    /// Slots that should hold a shard and do not, now.
    pub left: u64,
    /// Slots found without the shard that belongs there though their directory can be read.
    pub wrong: u64,
    /// True if fewer than k shards are good: its blocks are lost unless directories come back.
    pub lost: bool,
}

/// Have a file read anew from the device, and take writes again: `Some(true)`. `Some(false)`: there is no file yet.
fn forget_failures(member: &Arc<Member>, segment: SegmentId) -> Option<bool> {
    match member.reset_segment(segment) {
        Ok(()) => Some(true),
        Err(error) => (error.kind() == std::io::ErrorKind::NotFound).then_some(false),
    }
}

/// What is needed of a segment, known to who knows rows and checkpoints.
pub trait Need {
    /// Offsets of the stripes of a segment that rows and kept checkpoints name.
    ///
    /// # Errors
    /// [`Error::Database`], or why a checkpoint cannot tell.
    fn stripes(&self, segment: SegmentId) -> Result<Vec<u64>>;

    /// Commit records of later generations are needed; `None`: all are.
    fn log_from(&self) -> Option<Generation>;

    /// The generation of which a commit record in the segment may be, at most; `None`: of any.
    ///
    /// # Errors
    /// [`Error::Database`].
    fn log_until(&self, segment: SegmentId) -> Result<Option<Generation>>;
}

/// As of when a segment could not be caught up: until something changes it is not read again for a while.
pub(super) struct Stuck {
    slots: u64,
    readable: Vec<MemberId>,
    at: Instant,
}

/// When a segment that could not be caught up is looked at again though the same directories are there: its blocks may be
/// dead, and checkpoints past its records.
const STUCK_AGAIN: Duration = Duration::from_secs(30);

/// What identifies the volume in headers written anew.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The volume.
    pub volume: VolumeId,
    /// The writer's term.
    pub term: Term,
}

impl Blocks {
    /// Look at every shard of a stripe, and, if `repair` says who is writing, write the bad ones
    /// anew. The files written are added to `unsynced`; call [`Self::sync_healed`] before telling anyone.
    pub fn heal_stripe(
        &self,
        place: StripePlace,
        repair: Option<Identity>,
        unsynced: &mut BTreeSet<(MemberId, SegmentId)>,
    ) -> Result<StripeHealth> {
        self.heal_in(place, &*self.placement(place.segment)?, repair, unsynced)
    }

    fn heal_in(
        &self,
        place: StripePlace,
        info: &SegmentInfo,
        repair: Option<Identity>,
        unsynced: &mut BTreeSet<(MemberId, SegmentId)>,
    ) -> Result<StripeHealth> {
        let survey = self.stripes.survey(place, info);
        let mut health = StripeHealth {
            shards: survey.good.len() + survey.bad.len(),
            bad: survey.bad.len(),
            ..StripeHealth::default()
        };
        let group = survey.largest_group();
        // Well-formed shards of another stripe tag are old or foreign: as bad as missing.
        let strays: Vec<usize> = survey
            .good
            .iter()
            .filter(|shard| group.first().is_some_and(|g| g.header.stripe_tag != shard.header.stripe_tag))
            .map(|shard| usize::from(shard.index.0))
            .collect();
        health.bad += strays.len();
        health.wrong = strays.iter().fold(survey.wrong(), |mask, slot| mask | 1 << slot);
        let Some(model) = group.first().filter(|model| group.len() >= model.header.needed()) else {
            health.lost = true;
            return Ok(health);
        };
        let mut targets: Vec<usize> = survey.bad.iter().map(|(slot, _)| *slot).chain(strays).collect();
        health.left = targets.iter().fold(0, |mask, slot| mask | 1 << slot);
        // Written while few members were there, a record has fewer copies than it should.
        if let Some(copies) = survey.copies() {
            let free = (0..info.slots.len()).filter(|slot| info.slots[*slot].is_some() && copies >> slot & 1 == 0);
            let wanted = (info.geometry.parity() + 1).saturating_sub(copies.count_ones() as usize);
            let more: Vec<usize> = free.take(wanted).collect();
            health.shards += more.len();
            health.bad += more.len();
            targets.extend(more);
        }
        let Some(identity) = repair else { return Ok(health) };
        self.damage.bad(health.wrong, place.segment, place.offset);
        let mut written = 0;
        for slot in targets {
            if self.rewrite(place, info, &group, &model.header, (slot, identity), unsynced)? {
                health.repaired += 1;
                written |= 1 << slot;
            }
        }
        health.left &= !written;
        self.damage.repaired(written, place.segment, place.offset);
        Ok(health)
    }

    /// Bring directories up to date that missed syncs and can be written again. What they have is read anew from the
    /// device: memory may pretend that a write was kept which failed (R9). A directory is not caught up while what it
    /// lacks cannot be rebuilt, because others are away, unless nobody needs that any more.
    pub fn catch_up(&self, identity: Identity, need: &dyn Need) -> Result<()> {
        for (segment, slots) in self.segments.lacking_segments() {
            // What is still to be synced may be missed again.
            if self.segments.in_use(segment) || self.is_stuck(segment, slots) {
                continue;
            }
            let info = match self.find_segment(segment) {
                Ok(Some(info)) => self.with_files(segment, info),
                Ok(None) if self.would_see_a_file() => {
                    // It was given back meanwhile.
                    self.segments.caught_up(segment, slots);
                    continue;
                }
                Ok(None) => continue,
                Err(error) => {
                    log::warn!("segment {segment} is not complete in all directories: {error}");
                    continue;
                }
            };
            let members = info.slots.iter().enumerate().filter(|(slot, _)| slots >> slot & 1 == 1);
            let writable = members.filter_map(|(slot, id)| {
                let member = self.set.get(id.as_ref()?).filter(|member| member.can_write())?;
                Some((slot, member, forget_failures(member, segment)?))
            });
            let back: Vec<(usize, &Arc<Member>, bool)> = writable.collect();
            if back.is_empty() {
                continue;
            }
            // Before anything is read: who goes meanwhile is missed by the next round.
            let readable = self.readable();
            let files = back.iter().filter(|(.., has_file)| *has_file);
            let mut unsynced: BTreeSet<_> = files.map(|(_, member, _)| (member.id, segment)).collect();
            let (mut seen, mut lost, mut left) = (HashSet::new(), Vec::new(), 0);
            for (place, header) in self.stripes.records(segment, 0, &info) {
                let health = self.heal_in(place, &info, Some(identity), &mut unsynced)?;
                left |= health.left;
                if health.lost {
                    lost.push(header);
                } else {
                    seen.insert(place.offset);
                }
            }
            self.sync_healed(&mut unsynced)?;
            let lacks = self.lacks_needed(segment, &info, &seen, &lost, need).unwrap_or_else(|error| {
                log::warn!("segment {segment}: not known whether its lost stripes are needed: {error}");
                true
            });
            if lacks {
                left |= slots;
                self.stuck.lock().insert(segment, Stuck { slots, readable, at: Instant::now() });
            } else {
                self.stuck.lock().remove(&segment);
            }
            let caught_up = back.iter().fold(0, |mask, (slot, ..)| mask | 1 << slot) & !left;
            self.segments.caught_up(segment, caught_up);
            log::info!(
                "segment {segment}: {} directories caught up, {} stripes without enough shards",
                caught_up.count_ones(),
                lost.len()
            );
        }
        Ok(())
    }

    /// Look again at segments that could not be caught up.
    pub fn forget_stuck(&self) {
        self.stuck.lock().clear();
    }

    fn is_stuck(&self, segment: SegmentId, slots: u64) -> bool {
        let stuck = self.stuck.lock();
        stuck.get(&segment).is_some_and(|stuck| {
            stuck.slots == slots && stuck.at.elapsed() < STUCK_AGAIN && stuck.readable == self.readable()
        })
    }

    fn readable(&self) -> Vec<MemberId> {
        self.set.members().iter().filter(|member| member.can_read()).map(|member| member.id).collect()
    }

    /// True if so many directories can be read that one of them would have a file of any segment: those that hold
    /// something lie on k at least.
    fn would_see_a_file(&self) -> bool {
        self.set.members().len() - self.readable().len() < self.geometry.data()
    }

    /// Whether something is needed of a segment that could not be rebuilt: of some records too few shards are there
    /// (`lost`), and those of directories that are away may not even have been seen.
    fn lacks_needed(
        &self,
        segment: SegmentId,
        info: &SegmentInfo,
        seen: &HashSet<u64>,
        lost: &[RecordHeader],
        need: &dyn Need,
    ) -> Result<bool> {
        let is_away = |id: &MemberId| !self.set.get(id).is_some_and(|member| member.can_read());
        let away = info.slots.iter().flatten().any(is_away);
        if lost.is_empty() && !away {
            return Ok(false);
        }
        let is_needed = |generation| need.log_from().is_none_or(|from| generation > from);
        if lost.iter().any(|header| header.commit.is_some_and(|commit| is_needed(commit.generation))) {
            return Ok(true);
        }
        if away && need.log_until(segment)?.is_none_or(is_needed) {
            return Ok(true);
        }
        Ok(need.stripes(segment)?.iter().any(|offset| !seen.contains(offset)))
    }

    /// Sync what healing wrote.
    pub fn sync_healed(&self, unsynced: &mut BTreeSet<(MemberId, SegmentId)>) -> Result<()> {
        let files: Vec<(MemberId, SegmentId)> = std::mem::take(unsynced).into_iter().collect();
        for (member, segment, outcome) in self.set.sync_all(&files, &Wait::all(SYNC_PATIENCE)) {
            if let Err(source) = outcome {
                let operation = format!("sync segment {segment}");
                self.set.report_write_error(&member, &operation, &source);
                let directory = self.set.get(&member).map(|m| m.path().to_path_buf()).unwrap_or_default();
                return Err(Error::Backing { directory, operation, source });
            }
        }
        Ok(())
    }

    /// False if the slot's directory cannot take the shard now.
    fn rewrite(
        &self,
        place: StripePlace,
        info: &SegmentInfo,
        group: &[&GoodShard],
        model: &RecordHeader,
        (slot, identity): (usize, Identity),
        unsynced: &mut BTreeSet<(MemberId, SegmentId)>,
    ) -> Result<bool> {
        let Some(member) = info.slots[slot].and_then(|id| self.set.get(&id)) else { return Ok(false) };
        if !member.can_write() {
            return Ok(false);
        }
        let mut shard = vec![0; model.shard_len as usize];
        if model.kind.is_copy() {
            shard.copy_from_slice(group[0].payload());
        } else {
            let payloads: Vec<(ShardIndex, &[u8])> = group.iter().map(|shard| (shard.index, shard.payload())).collect();
            let wanted = [ShardIndex(slot as u8)];
            let coder = self.stripes.coder(info.geometry);
            coder.reconstruct(&payloads, &wanted, &mut [&mut shard[..]]).map_err(|_| {
                let object = format!("stripe at {} of segment {}", place.offset, place.segment);
                Error::format(object, format!("{} shards do not give the others back", group.len()))
            })?;
        }
        let header = RecordHeader {
            shard: ShardIndex(slot as u8),
            payload_checksum: *blake3::hash(&shard).as_bytes(),
            // A slot that was vacant when the record was written holds a shard of it from now on.
            commit: model.commit.map(|commit| CommitHeader { copies: commit.copies | 1 << slot, ..commit }),
            ..model.clone()
        }
        .encode(&self.header_mac);
        let padding = [0u8; RECORD_ALIGN as usize];
        let pad = place.record_len as usize - header.len() - shard.len();
        let parts = [IoSlice::new(&header), IoSlice::new(&shard), IoSlice::new(&padding[..pad])];
        let write = || {
            self.ensure_file(place.segment, info, slot, identity)?;
            member.write_segment(place.segment, place.offset, &parts)
        };
        // After a failed sync the file takes nothing until that is forgotten; what is missing in it is rewritten here.
        let wrote = write().or_else(|_| member.reset_segment(place.segment).and_then(|()| write()));
        match wrote {
            Ok(()) => {
                unsynced.insert((member.id, place.segment));
                Ok(true)
            }
            Err(error) => {
                self.set.report_write_error(&member.id, &format!("heal segment {}", place.segment), &error);
                Ok(false)
            }
        }
    }

    /// Make a segment's file in a slot whose directory lost it.
    fn ensure_file(
        &self,
        segment: SegmentId,
        info: &SegmentInfo,
        slot: usize,
        identity: Identity,
    ) -> std::io::Result<()> {
        let Some(member) = info.slots[slot].and_then(|id| self.set.get(&id)) else { return Ok(()) };
        let header = SegmentHeader {
            volume: identity.volume,
            segment,
            incarnation: info.incarnation,
            geometry: info.geometry,
            slot: ShardIndex(slot as u8),
            placement: info.slots.clone(),
            capacity: info.capacity,
            term: identity.term,
            created_generation: Generation(0),
        }
        .encode(&self.header_mac);
        match member.create_segment(segment, info.capacity) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let mut present = [0u8; 16];
                let known = member.read_segment(segment, 0, &mut present);
                if matches!(known, Ok(16)) && present == header[..16] {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
        member.write_segment(segment, 0, &[IoSlice::new(&header)])
    }
}
