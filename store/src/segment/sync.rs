//! What was appended and is not known synced, syncing it, and which slots lack something of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::{Extent, OpenSegment, QUORUM_PATIENCE, Segments};
use crate::backing::{ShardWrite, SharedBytes, SyncResult, Syncs, WriteThrough};
use crate::error::{Error, Result};
use crate::ids::{MemberId, SegmentId};

/// Appended bytes per file after which their write-back is started, so that a later sync finds little to do.
const WRITEBACK_STEP: u64 = 4 << 20;
/// Where a sync takes longer, who stores ahead waits more for it than others gain...
const APART_MAX: Duration = Duration::from_millis(50);
/// ...and so many runs are left to the syncs of commits, until it is tried again.
const APART_LEFT: u32 = 16;

/// What was appended to a segment and is not known synced.
#[derive(Debug)]
pub(super) struct Unsynced {
    segment: Arc<OpenSegment>,
    /// Stripes were: every occupied slot has a shard of each.
    stripes: bool,
    /// Slots of the records that were written as whole copies; equal ones once.
    copies: Vec<u64>,
    /// Offset of the first of it, bytes.
    from: u64,
}

impl Unsynced {
    /// Slots whose files have unsynced bytes.
    fn slots(&self) -> u64 {
        let stripes = if self.stripes { self.segment.occupied() } else { 0 };
        self.copies.iter().fold(stripes, |all, copies| all | copies)
    }
}

/// A record in whole copies that is being written through.
#[derive(Debug)]
pub(super) struct Through {
    segment: Arc<OpenSegment>,
    slots: u64,
    offset: u64,
    writes: WriteThrough,
}

/// What a segment's slots lack.
#[derive(Debug, Default)]
pub(super) struct Lacking {
    /// In these slots a sync failed or was left out: what was appended there last may be missing.
    slots: u64,
    /// Offset of the first that missed a sync of this writer, bytes, until it is [taken](Segments::take_missed).
    missed_from: Option<u64>,
}

type Due = BTreeMap<SegmentId, Unsynced>;

/// A sync that was begun; what it covers is due again if it is never waited for.
#[derive(Debug)]
#[must_use = "nothing is known durable before it is waited for"]
pub struct SyncInFlight<'a> {
    segments: &'a Segments,
    files: Vec<(MemberId, SegmentId)>,
    syncs: Option<Syncs>,
    through: Option<Through>,
    due: Due,
    bytes: u64,
    _alone: MutexGuard<'a, ()>,
}

impl SyncInFlight<'_> {
    /// Wait for it. Errors as of [`Segments::sync`].
    pub fn wait(mut self) -> Result<()> {
        let due = std::mem::take(&mut self.due);
        let synced = match self.syncs.take() {
            Some(syncs) => self.segments.end_sync(&self.files, syncs, due, self.bytes, QUORUM_PATIENCE),
            None => Ok(()),
        };
        synced.and(self.through.take().map_or(Ok(()), |through| self.segments.end_through(through)))
    }
}

impl Drop for SyncInFlight<'_> {
    fn drop(&mut self) {
        if self.syncs.is_some() {
            self.segments.due_again(std::mem::take(&mut self.due), self.bytes);
        }
        if let Some(through) = self.through.take() {
            // An error is kept for the next sync.
            let _ = self.segments.end_through(through);
        }
    }
}

impl Segments {
    /// Tell that stripes of `len` bytes a file were appended at `extent`, after they were: from now on a sync covers
    /// them. Starts write-back now and then.
    pub fn appended(&self, extent: &Extent, len: u64) {
        let segment = &extent.segment;
        self.note_unsynced(extent, len, |unsynced| unsynced.stripes = true);
        if segment.unwritten.fetch_add(len, Ordering::Relaxed) + len < WRITEBACK_STEP {
            return;
        }
        segment.unwritten.store(0, Ordering::Relaxed);
        let end = extent.offset + len;
        let start = end.saturating_sub(2 * WRITEBACK_STEP);
        for member in segment.slots.iter().flatten().filter_map(|id| self.set.get(id)) {
            member.start_writeback(segment.id, start, end - start);
        }
    }

    /// Make stripes of `len` bytes a file at `extent` durable, of which nothing is known to others yet: what is synced
    /// beside does not wait for them, nor cover them. What cannot be is left to the next sync, as by [`Self::appended`].
    ///
    /// Commits meanwhile may be durable behind them in the same files: whoever reads the log passes over what was lost.
    pub fn sync_apart(&self, extent: &Extent, len: u64) {
        let Extent { segment, offset, .. } = extent;
        let unsynced = Unsynced { segment: segment.clone(), stripes: true, copies: Vec::new(), from: *offset };
        let due = Due::from([(segment.id, unsynced)]);
        // One at a time: more would take the threads that other calls wait for. And not while directories are silent.
        let Some(mut left) = self.apart.try_lock().filter(|_| self.has_quorum(&due)) else {
            return self.appended(extent, len);
        };
        if *left > 0 {
            *left -= 1;
            return self.appended(extent, len);
        }
        let begun = Instant::now();
        let files = self.files(&due);
        let syncs = self.set.begin_syncs(&files);
        if let Err(error) = self.end_sync(&files, syncs, due, len, Duration::ZERO) {
            log::debug!("segment {}: {error}; left to the next sync", segment.id);
        }
        if begun.elapsed() > APART_MAX {
            *left = APART_LEFT;
        }
    }

    /// As [`Self::appended`], of a record that was written in whole copies into `slots`.
    pub fn appended_copies(&self, extent: &Extent, len: u64, slots: u64) {
        self.note_unsynced(extent, len, |unsynced| {
            if !unsynced.copies.contains(&slots) {
                unsynced.copies.push(slots);
            }
        });
    }

    /// Begin to write whole copies of a record such that the next sync makes them durable without more ado. False: not
    /// begun, because something else waits to be synced, or the directories cannot.
    pub fn write_through(&self, extent: &Extent, copies: &[(usize, Vec<SharedBytes>)]) -> bool {
        let Extent { segment, offset, .. } = extent;
        let mut state = self.state.lock();
        if !state.unsynced.is_empty() || state.through.is_some() {
            return false;
        }
        let mut slots = 0;
        let mut writes = Vec::with_capacity(copies.len());
        for (slot, bufs) in copies {
            let Some(member) = segment.slots[*slot] else { return false };
            slots |= 1 << slot;
            writes.push(ShardWrite { member, segment: segment.id, offset: *offset, bufs: bufs.clone() });
        }
        let begun = self.set.begin_write_through(&writes);
        state.through = begun.map(|writes| Through { segment: segment.clone(), slots, offset: *offset, writes });
        state.through.is_some()
    }

    fn note_unsynced(&self, extent: &Extent, len: u64, note: impl FnOnce(&mut Unsynced)) {
        let Extent { segment, offset, .. } = extent;
        let mut state = self.state.lock();
        let nothing = || Unsynced { segment: segment.clone(), stripes: false, copies: Vec::new(), from: *offset };
        let unsynced = state.unsynced.entry(segment.id).or_insert_with(nothing);
        unsynced.from = unsynced.from.min(*offset);
        note(unsynced);
        self.unsynced_bytes.fetch_add(len, Ordering::Relaxed);
    }

    /// Bytes of every file appended since the last sync.
    pub fn unsynced_bytes(&self) -> u64 {
        self.unsynced_bytes.load(Ordering::Relaxed)
    }

    /// True if bytes were appended since the last successful sync.
    pub fn has_unsynced(&self) -> bool {
        let state = self.state.lock();
        !state.unsynced.is_empty() || state.through.is_some()
    }

    /// True if stripes were appended since the last successful sync.
    pub fn has_unsynced_stripes(&self) -> bool {
        self.state.lock().unsynced.values().any(|unsynced| unsynced.stripes)
    }

    /// Slots of a segment in which a sync failed or was left out: what was appended there last may be missing.
    pub fn lacking(&self, segment: SegmentId) -> u64 {
        self.lacking.lock().get(&segment).map_or(0, |lacking| lacking.slots)
    }

    /// Segments with slots in which a sync failed or was left out, with those slots.
    pub fn lacking_segments(&self) -> Vec<(SegmentId, u64)> {
        self.lacking.lock().iter().map(|(id, lacking)| (*id, lacking.slots)).collect()
    }

    /// These slots of a segment lack something until [`Self::caught_up`] says otherwise.
    pub fn note_lacking(&self, segment: SegmentId, slots: u64) {
        if slots != 0 {
            self.lacking.lock().entry(segment).or_default().slots |= slots;
        }
    }

    /// Segments of which something missed a sync of this writer and was not taken since.
    pub fn missed(&self) -> Vec<SegmentId> {
        let lacking = self.lacking.lock();
        lacking.iter().filter(|(_, lacking)| lacking.missed_from.is_some()).map(|(id, _)| *id).collect()
    }

    /// From which offset on a segment missed a sync, bytes: told once.
    pub fn take_missed(&self, segment: SegmentId) -> Option<u64> {
        self.lacking.lock().get_mut(&segment)?.missed_from.take()
    }

    /// It is to be told again: nothing could be done about it.
    pub fn give_back_missed(&self, segment: SegmentId, from: u64) {
        if let Some(lacking) = self.lacking.lock().get_mut(&segment) {
            lacking.missed_from = Some(lacking.missed_from.map_or(from, |other| other.min(from)));
        }
    }

    /// These slots of a segment hold everything again, durably.
    pub fn caught_up(&self, segment: SegmentId, slots: u64) {
        let mut lacking = self.lacking.lock();
        if let Some(left) = lacking.get_mut(&segment) {
            left.slots &= !slots;
            if left.slots == 0 {
                lacking.remove(&segment);
            }
        }
    }

    /// Make every appended record durable in every healthy slot that holds it, and in at least [`Self::min_ack`] slots
    /// of each segment (of whole copies in k-1 fewer).
    ///
    /// Records appended while this runs may or may not be covered: they are listed for the next call. After an error
    /// what was to be synced stays listed, so that no later sync passes over it.
    pub fn sync(&self) -> Result<()> {
        self.begin_sync().wait()
    }

    /// As [`Self::sync`], in two steps: there is something to do while the directories are at it. `None` if it cannot be
    /// begun at once, because another sync runs or directories are silent.
    pub fn try_begin_sync(&self) -> Option<SyncInFlight<'_>> {
        let alone = self.syncing.try_lock()?;
        if !self.has_quorum(&self.state.lock().unsynced) {
            return None;
        }
        Some(self.begin_alone(alone))
    }

    /// As [`Self::try_begin_sync`], waiting until it can.
    pub fn begin_sync(&self) -> SyncInFlight<'_> {
        let alone = self.syncing.lock();
        self.await_quorum(QUORUM_PATIENCE, || self.has_quorum(&self.state.lock().unsynced));
        self.begin_alone(alone)
    }

    /// True if the directories that answer are enough for what is to be synced.
    fn has_quorum(&self, due: &Due) -> bool {
        due.values().all(|unsynced| self.shortfall(unsynced, self.healthy(&unsynced.segment)).is_none())
    }

    fn begin_alone<'a>(&'a self, alone: MutexGuard<'a, ()>) -> SyncInFlight<'a> {
        let (due, through) = {
            let mut state = self.state.lock();
            (std::mem::take(&mut state.unsynced), state.through.take())
        };
        let bytes = self.unsynced_bytes.swap(0, Ordering::Relaxed);
        let files = self.files(&due);
        let syncs = self.set.begin_syncs(&files);
        SyncInFlight { segments: self, files, syncs: Some(syncs), through, due, bytes, _alone: alone }
    }

    /// The files to be synced.
    fn files(&self, due: &Due) -> Vec<(MemberId, SegmentId)> {
        let mut files = Vec::new();
        for (id, unsynced) in due {
            let slots = unsynced.slots() & self.healthy(&unsynced.segment);
            let members = unsynced.segment.slots.iter().enumerate();
            files.extend(
                members.filter(|(slot, _)| slots >> slot & 1 == 1).filter_map(|(_, m)| m.map(|member| (member, *id))),
            );
        }
        files
    }

    /// `limit` as of [`Self::allocate`].
    fn end_sync(
        &self,
        files: &[(MemberId, SegmentId)],
        syncs: Syncs,
        due: Due,
        bytes: u64,
        limit: Duration,
    ) -> Result<()> {
        if due.is_empty() {
            return Ok(());
        }
        let slot_of = |unsynced: &Unsynced, member: &MemberId| {
            unsynced.segment.slots.iter().position(|slot| slot.as_ref() == Some(member))
        };
        let slot_mask = |(member, id): &(MemberId, SegmentId)| {
            due.get(id).and_then(|unsynced| slot_of(unsynced, member)).map_or(0, |slot| 1 << slot)
        };
        let enough = |done: &[bool]| {
            let mut good: BTreeMap<SegmentId, u64> = BTreeMap::new();
            for (file, _) in files.iter().zip(done).filter(|(_, done)| **done) {
                *good.entry(file.1).or_default() |= slot_mask(file);
            }
            due.iter().all(|(id, unsynced)| self.shortfall(unsynced, good.get(id).copied().unwrap_or(0)).is_none())
        };
        let members: Vec<MemberId> = files.iter().map(|(member, _)| *member).collect();
        let results = syncs.wait(&self.wait(&members, &enough, limit));
        let mut good: BTreeMap<SegmentId, u64> = BTreeMap::new();
        for file in self.synced(results) {
            *good.entry(file.1).or_default() |= slot_mask(&file);
        }
        let short = due.iter().find_map(|(id, unsynced)| self.shortfall(unsynced, good.get(id).copied().unwrap_or(0)));
        for (id, unsynced) in &due {
            self.note_missed(*id, unsynced.slots() & !good.get(id).copied().unwrap_or(0), unsynced.from);
        }
        match short {
            None => Ok(()),
            Some(error) => {
                self.due_again(due, bytes);
                Err(error)
            }
        }
    }

    /// The files that were synced; what failed is reported, and its segment closed.
    fn synced(&self, results: Vec<SyncResult>) -> Vec<(MemberId, SegmentId)> {
        let mut synced = Vec::with_capacity(results.len());
        for (member, id, outcome) in results {
            match outcome {
                Ok(()) => synced.push((member, id)),
                Err(error) => {
                    self.set.report_write_error(&member, &format!("sync segment {id}"), &error);
                    self.abandon(id);
                }
            }
        }
        synced
    }

    /// These slots missed a sync of what lies from an offset on.
    fn note_missed(&self, segment: SegmentId, slots: u64, from: u64) {
        if slots != 0 {
            let mut lacking = self.lacking.lock();
            let lacking = lacking.entry(segment).or_default();
            lacking.slots |= slots;
            lacking.missed_from = Some(lacking.missed_from.map_or(from, |other| other.min(from)));
        }
    }

    fn end_through(&self, through: Through) -> Result<()> {
        let Through { segment, slots, offset, writes } = through;
        let members: Vec<(usize, MemberId)> = (0..segment.slots.len())
            .filter(|slot| slots >> slot & 1 == 1)
            .filter_map(|slot| Some((slot, segment.slots[slot]?)))
            .collect();
        let enough = |done: &[bool]| done.iter().filter(|done| **done).count() >= self.copies_needed(&segment);
        let ids: Vec<MemberId> = members.iter().map(|(_, member)| *member).collect();
        let results = self.set.end_write_through(writes, &self.wait(&ids, &enough, QUORUM_PATIENCE));
        let synced = self.synced(results);
        let slot_of = |(member, _): &(MemberId, SegmentId)| members.iter().find(|(_, id)| id == member);
        let good = synced.iter().filter_map(slot_of).fold(0_u64, |mask, (slot, _)| mask | 1 << slot);
        self.note_missed(segment.id, slots & !good, offset);
        // Directories that failed just now are not counted on any more.
        let (healthy, needed) = (good.count_ones() as usize, self.copies_needed(&segment));
        if healthy >= needed {
            return Ok(());
        }
        // No later sync makes up for what was never written: it fails, too.
        let extent = Extent { segment, offset, fresh: false };
        self.appended_copies(&extent, 0, good);
        Err(Error::TooFewMembers { healthy, needed })
    }

    /// What was to be synced was not.
    fn due_again(&self, due: Due, bytes: u64) {
        let mut state = self.state.lock();
        for (id, old) in due {
            match state.unsynced.entry(id) {
                Entry::Vacant(entry) => drop(entry.insert(old)),
                Entry::Occupied(mut entry) => {
                    let newer = entry.get_mut();
                    newer.stripes |= old.stripes;
                    newer.from = newer.from.min(old.from);
                    newer.copies.extend(old.copies);
                }
            }
        }
        drop(state);
        self.unsynced_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What is wrong if only the slots `good` of a segment were synced.
    fn shortfall(&self, unsynced: &Unsynced, good: u64) -> Option<Error> {
        let short = |slots: u64, needed: usize| {
            let healthy = (slots & good).count_ones() as usize;
            (healthy < needed).then_some(Error::TooFewMembers { healthy, needed })
        };
        let segment = &unsynced.segment;
        let stripes = unsynced.stripes.then(|| short(segment.occupied(), self.needed_in(segment))).flatten();
        stripes.or_else(|| unsynced.copies.iter().find_map(|slots| short(*slots, self.copies_needed(segment))))
    }

    /// Slots of a segment that must be synced now: `min_slots`, lowered by slots whose members are known lost, never
    /// below k.
    fn needed_in(&self, segment: &OpenSegment) -> usize {
        if self.fixed {
            return self.min_slots;
        }
        let left = segment.slots.iter().flatten().filter_map(|id| self.set.get(id)).filter(|m| !m.is_lost()).count();
        self.min_slots.min(left.max(self.geometry.data()))
    }

    /// Of whole copies: with so many, a record survives what a stripe does that is synced in [`Self::needed_in`] slots.
    pub(super) fn copies_needed(&self, segment: &OpenSegment) -> usize {
        self.needed_in(segment) - segment.geometry.data() + 1
    }
}
