//! Segments: append-only files in which the shards of a stripe lie at one offset, one file per slot.
//!
//! Promises: an offset is handed out once and never again (R3); a segment is announced durably before its first
//! record; after an error in any of its directories it is closed for good. Knows members and files, not what the
//! records in them mean.

mod sync;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backing::{BackingSet, Health, Member, ShardWrite, SharedBytes, Space, Wait};
use crate::clock::Entropy;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::ids::{Generation, Incarnation, MemberId, SegmentId, ShardIndex, Term, VolumeId};
use crate::meta::rows::{SegmentRow, SegmentState};
use crate::placement::{self, Candidate, Placement};
use crate::shard::{RECORD_ALIGN, SEGMENT_HEADER_LEN, SegmentHeader};
use sync::{Lacking, Through, Unsynced};

pub use sync::SyncInFlight;

/// Longest a file of a segment grows, bytes. Six such files hold half a gigabyte of data at 4+2.
pub const SEGMENT_CAPACITY_MAX: u64 = 128 << 20;
/// Shortest capacity chosen on small volumes, bytes.
pub const SEGMENT_CAPACITY_MIN: u64 = 8 << 20;
/// A member with less free space than this takes no new segment, bytes.
pub const MEMBER_FREE_MIN: u64 = 2 << 20;
/// How long a directory may take before it is left behind, unless 20 times its usual time is longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long silent directories are waited for when too few are left without them, by who holds nothing that others need.
pub const QUORUM_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks whether they answer again.
const QUORUM_PAUSE: Duration = Duration::from_millis(50);

/// A segment that takes records.
#[derive(Debug)]
pub struct OpenSegment {
    /// Number of the segment.
    pub id: SegmentId,
    /// Random number of this segment's life.
    pub incarnation: Incarnation,
    /// Its shards.
    pub geometry: Geometry,
    /// The member of each slot; `None`: vacant.
    pub slots: Vec<Option<MemberId>>,
    /// Length each file may reach, bytes.
    pub capacity: u64,
    /// Bytes appended since write-back was last started.
    unwritten: AtomicU64,
}

impl OpenSegment {
    /// Slots that have a file.
    pub fn occupied(&self) -> u64 {
        let slots = self.slots.iter().enumerate();
        slots.filter(|(_, member)| member.is_some()).fold(0, |mask, (slot, _)| mask | 1 << slot)
    }
}

/// Whether a segment was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Announced {
    /// Durably, in every occupied slot.
    Durably,
    /// Nothing but room was missing.
    NoRoom,
    /// Some directory failed.
    Not,
}

/// Where a run of records was placed.
#[derive(Clone, Debug)]
pub struct Extent {
    /// The segment.
    pub segment: Arc<OpenSegment>,
    /// Offset of the run in each file, bytes.
    pub offset: u64,
    /// True if the segment was opened for this run.
    pub fresh: bool,
}

#[derive(Debug, Default)]
struct State {
    open: Option<(Arc<OpenSegment>, u64)>,
    /// Segments (open or closed) with bytes not known synced.
    unsynced: BTreeMap<SegmentId, Unsynced>,
    /// A record on its way to the devices, not in `unsynced`.
    through: Option<Through>,
    next: u64,
    previous: Option<Placement>,
}

/// What became of segments and is in no row yet.
#[derive(Debug, Default)]
pub struct Unnoted {
    /// Rows of those that were opened.
    pub opened: Vec<SegmentRow>,
    /// Those that were closed, with the length of their files in bytes.
    pub closed: Vec<(SegmentId, u64)>,
}

/// What identifies the writer in the headers of new segments.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The volume.
    pub volume: VolumeId,
    /// The writer's term.
    pub term: Term,
    /// Key of header MACs.
    pub header_mac: [u8; 32],
}

/// Allocates offsets in segments and syncs what was appended.
pub struct Segments {
    set: Arc<BackingSet>,
    geometry: Geometry,
    writer: Writer,
    entropy: Arc<dyn Entropy>,
    min_slots: usize,
    /// Members known lost do not lower `min_slots`.
    fixed: bool,
    /// Held while a segment is announced, which may wait for directories.
    state: Mutex<State>,
    /// Not in `state`: it is asked for within operations of the metadata.
    unnoted: Mutex<Unnoted>,
    /// Segments that are not complete in all their slots.
    lacking: Mutex<BTreeMap<SegmentId, Lacking>>,
    /// Segments that were handed out; those that are let go of take nothing more and have nothing unsynced.
    handed_out: Mutex<Vec<(SegmentId, Weak<OpenSegment>)>>,
    /// A segment was opened with a vacant slot since this was last asked.
    vacated: AtomicBool,
    unsynced_bytes: AtomicU64,
    /// One sync at a time: who comes second must not be told "nothing to sync" while the first is still at it.
    syncing: Mutex<()>,
    /// Held by [`Segments::sync_apart`]: runs that it leaves to the next sync, because one took long.
    apart: Mutex<u32>,
}

impl std::fmt::Debug for Segments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segments").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Segments {
    /// Over the members of `set`; `next` is a segment number that was never used. No segment is opened with fewer
    /// than `min_slots` occupied slots; members known lost lower the number, never below k, unless it is `fixed`.
    pub fn new(
        set: Arc<BackingSet>,
        geometry: Geometry,
        writer: Writer,
        entropy: Arc<dyn Entropy>,
        (min_slots, fixed): (usize, bool),
        next: SegmentId,
    ) -> Self {
        let state = State { next: next.0, ..State::default() };
        Self {
            set,
            geometry,
            writer,
            entropy,
            min_slots,
            fixed,
            state: Mutex::new(state),
            unnoted: Mutex::default(),
            lacking: Mutex::default(),
            handed_out: Mutex::default(),
            vacated: AtomicBool::new(false),
            unsynced_bytes: AtomicU64::new(0),
            syncing: Mutex::new(()),
            apart: Mutex::new(0),
        }
    }

    /// The members the segments lie on.
    pub fn set(&self) -> &Arc<BackingSet> {
        &self.set
    }

    /// Slots a generation needs synced now: `min_slots`, lowered by members known lost, never below k.
    pub fn min_ack(&self) -> usize {
        if self.fixed {
            return self.min_slots;
        }
        let present = self.set.members().iter().filter(|member| !member.is_lost()).count();
        self.min_slots.min(present.max(self.geometry.data()))
    }

    /// A run of `len` bytes (a multiple of [`RECORD_ALIGN`]) at one offset, a multiple of `align`, in every file of a
    /// segment. Silent directories without which there are too few are waited for at most `limit`.
    pub fn allocate(&self, len: u64, align: u64, generation: Generation, limit: Duration) -> Result<Extent> {
        debug_assert!(len.is_multiple_of(RECORD_ALIGN) && align.is_multiple_of(RECORD_ALIGN));
        let mut state = self.state.lock();
        if let Some((segment, tail)) = &mut state.open {
            let offset = tail.next_multiple_of(align);
            if offset + len <= segment.capacity {
                let extent = Extent { segment: segment.clone(), offset, fresh: false };
                *tail = offset + len;
                return Ok(extent);
            }
        }
        self.close_in(&mut state);
        let segment = Arc::new(self.announce(&mut state, generation, len, limit)?);
        self.handed_out.lock().push((segment.id, Arc::downgrade(&segment)));
        let vacant = segment.slots.iter().filter(|slot| slot.is_none()).count();
        if vacant > 0 {
            log::warn!(
                "segment {} is opened with {vacant} vacant slots: as many directories cannot be written",
                segment.id
            );
            self.vacated.store(true, Ordering::Release);
        }
        // Before anybody can name what is in it.
        self.unnoted.lock().opened.push(SegmentRow {
            id: segment.id,
            incarnation: segment.incarnation,
            data: segment.geometry.data() as u8,
            parity: segment.geometry.parity() as u8,
            slots: segment.slots.clone(),
            capacity: segment.capacity,
            tail: SEGMENT_HEADER_LEN as u64,
            state: SegmentState::Open,
            since: generation,
        });
        state.open = Some((segment.clone(), SEGMENT_HEADER_LEN as u64 + len));
        Ok(Extent { segment, offset: SEGMENT_HEADER_LEN as u64, fresh: true })
    }

    fn close_in(&self, state: &mut State) {
        if let Some((segment, tail)) = state.open.take() {
            self.unnoted.lock().closed.push((segment.id, tail));
            // The directories may be nearly full: what is preallocated there is the reserve of all others.
            for member in segment.slots.iter().flatten().filter_map(|id| self.set.get(id)) {
                member.begin_finish_segment(segment.id);
            }
        }
    }

    /// Close the open segment for good; the next record opens another. Called after an error in one of its directories.
    pub fn abandon(&self, id: SegmentId) {
        let mut state = self.state.lock();
        if state.open.as_ref().is_some_and(|(segment, _)| segment.id == id) {
            self.close_in(&mut state);
        }
    }

    /// Close the open segment if a slot of it is vacant.
    pub fn close_vacant(&self) {
        let mut state = self.state.lock();
        if state.open.as_ref().is_some_and(|(segment, _)| segment.slots.contains(&None)) {
            self.close_in(&mut state);
        }
    }

    /// True if something is being appended to a segment, may be, or is not synced yet.
    pub fn in_use(&self, id: SegmentId) -> bool {
        let mut handed_out = self.handed_out.lock();
        handed_out.retain(|(_, segment)| segment.strong_count() > 0);
        handed_out.iter().any(|(other, _)| *other == id)
    }

    /// True once after a segment was opened with a vacant slot.
    pub fn take_vacated(&self) -> bool {
        self.vacated.swap(false, Ordering::AcqRel)
    }

    /// Close whatever is open.
    pub fn close(&self) {
        self.close_in(&mut self.state.lock());
    }

    /// Nothing will be appended any more: give back what is preallocated past the end of the open segment.
    pub fn finish(&self) {
        if let Some((segment, _)) = &self.state.lock().open {
            for member in segment.slots.iter().flatten().filter_map(|id| self.set.get(id)) {
                member.finish_segment(segment.id);
            }
        }
    }

    /// The number the next segment will have.
    pub fn next_id(&self) -> SegmentId {
        SegmentId(self.state.lock().next)
    }

    /// The open segment and the length its files have, as a checkpoint names them.
    pub fn open_tails(&self) -> Vec<(SegmentId, u64)> {
        self.state.lock().open.iter().map(|(segment, tail)| (segment.id, *tail)).collect()
    }

    /// What became of segments since the last call. Who puts rows of what was appended puts these before.
    pub fn take_unnoted(&self) -> Unnoted {
        std::mem::take(&mut self.unnoted.lock())
    }

    /// It could not be put.
    pub fn put_back(&self, unnoted: Unnoted) {
        let mut later = self.unnoted.lock();
        later.opened.splice(0..0, unnoted.opened);
        later.closed.splice(0..0, unnoted.closed);
    }

    /// R3: id, placement and incarnation are durable in the first block of the files before the first record.
    fn announce(
        &self,
        state: &mut State,
        generation: Generation,
        first_len: u64,
        limit: Duration,
    ) -> Result<OpenSegment> {
        let mut outcome = Announced::Not;
        // A member that fails here is left out of the next attempt, so this ends.
        for _ in 0..=self.set.members().len() {
            self.await_quorum(limit, || self.others_suffice());
            let candidates = self.candidates();
            let healthy = candidates.iter().filter(|c| c.healthy).count();
            let needed = self.min_ack();
            if healthy < needed {
                // Directories that could be written if there were room. One that does not even tell is not full.
                let full = candidates.iter().filter(|c| !c.healthy && c.free_bytes < MEMBER_FREE_MIN).count();
                if healthy + full >= needed {
                    return Err(Error::NoSpace);
                }
                return Err(Error::TooFewMembers { healthy, needed });
            }
            let placed = placement::choose(&candidates, self.geometry, needed, state.previous.as_ref(), state.next)
                .map_err(|_| Error::TooFewMembers { healthy, needed })?;
            let id = SegmentId(state.next);
            state.next += 1;
            let mut incarnation = Incarnation::default();
            self.entropy.fill(&mut incarnation.0);
            let smallest = candidates.iter().filter(|c| c.healthy).map(|c| c.free_bytes).min().unwrap_or(0);
            let capacity = capacity_for(smallest).max(SEGMENT_HEADER_LEN as u64 + first_len);
            let segment = OpenSegment {
                id,
                incarnation,
                geometry: self.geometry,
                slots: placed.slots.clone(),
                capacity,
                unwritten: AtomicU64::new(0),
            };
            outcome = self.announce_in(&segment, generation, limit);
            if outcome == Announced::Durably {
                state.previous = Some(placed);
                return Ok(segment);
            }
        }
        Err(match outcome {
            Announced::NoRoom => Error::NoSpace,
            _ => Error::TooFewMembers { healthy: 0, needed: self.min_ack() },
        })
    }

    /// Members that can be written and tell their room; `healthy` are those that have enough for a segment.
    fn candidates(&self) -> Vec<Candidate> {
        let told = |(member, room): (Arc<Member>, std::io::Result<Space>)| match room {
            Ok(space) => Some(Candidate {
                id: member.id,
                free_bytes: space.available_bytes,
                domain: None,
                device: space.device,
                healthy: space.available_bytes >= MEMBER_FREE_MIN,
            }),
            Err(error) => {
                log::warn!("{}: no segment is opened there: {error}", member.path().display());
                None
            }
        };
        self.set.rooms(PATIENCE).into_iter().filter_map(told).collect()
    }

    /// Announce a segment in every occupied slot.
    fn announce_in(&self, segment: &OpenSegment, generation: Generation, limit: Duration) -> Announced {
        let OpenSegment { id, incarnation, capacity, ref slots, .. } = *segment;
        let header = |slot: usize| {
            let header = SegmentHeader {
                volume: self.writer.volume,
                segment: id,
                incarnation,
                geometry: self.geometry,
                slot: ShardIndex(slot as u8),
                placement: slots.clone(),
                capacity,
                term: self.writer.term,
                created_generation: generation,
            };
            header.encode(&self.writer.header_mac)
        };
        let headers: Vec<(MemberId, Vec<u8>)> =
            slots.iter().enumerate().filter_map(|(slot, member)| Some(((*member)?, header(slot)))).collect();
        let members: Vec<MemberId> = headers.iter().map(|(member, _)| *member).collect();
        let enough = |_: &[bool]| self.others_suffice();
        let results = self.set.create_segments(headers, id, capacity, &self.wait(&members, &enough, limit));
        let mut outcome = Announced::Durably;
        for (member, result) in members.iter().zip(results) {
            if let Err(error) = result {
                // What it told before is not true any more; or it has room, and no inodes.
                if matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
                    self.set.get(member).inspect(|member| member.room_is_wrong());
                    outcome = outcome.max(Announced::NoRoom);
                } else {
                    outcome = Announced::Not;
                }
                // A writer that was fenced made it: no fault of the directory. The next number is tried.
                if error.kind() != std::io::ErrorKind::AlreadyExists {
                    self.set.report_write_error(member, &format!("create segment {id}"), &error);
                }
            }
        }
        outcome
    }

    /// How long calls on these members are waited for: `limit` if too few of them answer, but not less than is usual.
    fn wait<'w>(
        &self,
        members: &[MemberId],
        enough: &'w (dyn Fn(&[bool]) -> bool + Sync),
        limit: Duration,
    ) -> Wait<'w> {
        let usual = members.iter().filter_map(|id| self.set.get(id)).map(|member| member.patience()).max();
        let patience = usual.unwrap_or_default().max(PATIENCE);
        Wait { patience, enough, limit: limit.max(patience) }
    }

    /// True if the members that answer are enough for a new segment.
    fn others_suffice(&self) -> bool {
        self.set.healthy().count() >= self.min_ack()
    }

    /// Wait for directories that are merely silent, as long as without them there are too few: a disk that is busy for
    /// some seconds must not end a volume whose directories all lie on it.
    fn await_quorum(&self, limit: Duration, enough: impl Fn() -> bool) {
        let deadline = Instant::now() + limit;
        let silent = || self.set.members().iter().any(|member| member.health() == Health::Sick);
        while !enough() && silent() && Instant::now() < deadline {
            std::thread::sleep(QUORUM_PAUSE);
        }
    }

    /// Wait for silent directories without which there are too few; true if there are enough.
    pub fn quorum_returns(&self) -> bool {
        self.await_quorum(QUORUM_PATIENCE, || self.others_suffice());
        self.others_suffice()
    }

    /// Write what belongs to each slot of a run, in parallel; `synced_next`: it is synced as soon as it is written; `limit` as of
    /// [`Self::allocate`]. An error marks the member; the caller abandons the segment and starts anew.
    ///
    /// # Errors
    /// The first failure. A directory that does not answer is one, once the others are enough without it.
    pub fn write(
        &self,
        extent: &Extent,
        slots: Vec<(usize, Vec<SharedBytes>)>,
        synced_next: bool,
        limit: Duration,
    ) -> Result<()> {
        let segment = &extent.segment;
        let writes: Vec<ShardWrite> = slots
            .into_iter()
            .filter_map(|(slot, bufs)| {
                Some(ShardWrite { member: segment.slots[slot]?, segment: segment.id, offset: extent.offset, bufs })
            })
            .collect();
        let members: Vec<MemberId> = writes.iter().map(|write| write.member).collect();
        let enough = |_: &[bool]| self.others_suffice();
        let results = self.set.write_shards(&writes, synced_next, &self.wait(&members, &enough, limit));
        let operation = format!("write segment {} at {}", segment.id, extent.offset);
        let mut outcome = Ok(());
        for (member, result) in members.iter().zip(results) {
            if let Err(source) = result {
                self.set.report_write_error(member, &operation, &source);
                let directory = self.set.get(member).map(|member| member.path().to_path_buf()).unwrap_or_default();
                outcome = outcome.and(Err(Error::Backing { directory, operation: operation.clone(), source }));
            }
        }
        outcome
    }

    /// Slots of a segment whose members can be written: those that are synced before a record in it is answered.
    pub fn healthy(&self, segment: &OpenSegment) -> u64 {
        let healthy = |id: &MemberId| self.set.get(id).is_some_and(|member| member.can_write());
        let slots = segment.slots.iter().enumerate();
        slots.filter(|(_, id)| id.as_ref().is_some_and(healthy)).fold(0, |mask, (slot, _)| mask | 1 << slot)
    }

    /// The slots that take a record in whole copies: m+1 healthy ones, always the same of one segment, other ones of
    /// the next. `None` if there are not enough to answer by.
    pub fn slots_for_copies(&self, segment: &OpenSegment) -> Option<u64> {
        let healthy = self.healthy(segment);
        let total = segment.slots.len();
        let turn = (segment.id.0 % total as u64) as usize;
        let slots = (0..total).map(|n| (turn + n) % total).filter(|slot| healthy >> slot & 1 == 1);
        let chosen: Vec<usize> = slots.take(segment.geometry.parity() + 1).collect();
        (chosen.len() >= self.copies_needed(segment)).then(|| chosen.iter().fold(0, |mask, slot| mask | 1 << slot))
    }

    /// Close the open segment if a new one would lie on more directories: one that came back takes part at once.
    pub fn widen(&self) {
        let Some(open) = self.state.lock().open.as_ref().map(|(segment, _)| segment.clone()) else { return };
        let used = self.healthy(&open).count_ones() as usize;
        let others = self.set.healthy().any(|member| !open.slots.contains(&Some(member.id)));
        // Asking for room may take a moment.
        if used < self.geometry.total() && others && self.candidates().iter().filter(|c| c.healthy).count() > used {
            self.abandon(open.id);
        }
    }
}

/// Capacity of a new segment for members with `free` bytes at least: a 32nd of it, within the limits, a whole MiB.
fn capacity_for(free: u64) -> u64 {
    (free / 32).clamp(SEGMENT_CAPACITY_MIN, SEGMENT_CAPACITY_MAX) & !((1 << 20) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_follows_the_smallest_member() {
        assert_eq!(capacity_for(0), SEGMENT_CAPACITY_MIN);
        assert_eq!(capacity_for(1 << 30), 32 << 20);
        assert_eq!(capacity_for(1 << 50), SEGMENT_CAPACITY_MAX);
    }
}
