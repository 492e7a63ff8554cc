//! What gc needs of a volume.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::Volume;
use super::image::LastImage;
use crate::backing::BackingSet;
use crate::commit::Flusher;
use crate::error::{Error, Result};
use crate::gc::{GcOptions, GcReport, Images};
use crate::ids::{Generation, Ino, MemberId, SegmentId};
use crate::meta::rows::{SegmentRow, Shelf};
use crate::recover::Reader;
use crate::retention::Shed;
use crate::shard::SEGMENT_HEADER_LEN;

/// How long a writer waits for gc to make space, since gc last made any.
const SPACE_PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits at most.
const SPACE_PATIENCE_MAX: Duration = Duration::from_secs(60);
/// Collections, begun after a writer began to wait, that must have freed nothing before it is told that nothing can be:
/// what is freed needs two checkpoints, and those free the log.
const COLLECTIONS_TRIED: u64 = 2;
/// How often it looks.
const SPACE_RECHECK: Duration = Duration::from_millis(50);
/// Settings key: generation in which gc last asked for a generation of its own.
const NOTE_KEY: &[u8] = b"gc";
/// Rows retired in one operation, so that no writer waits long.
const RETIRE_BATCH: usize = 2000;

/// Keeps a former state readable.
#[derive(Debug)]
pub struct GenerationPin {
    volume: Arc<Volume>,
    generation: Generation,
    /// The one before it is kept, too.
    before: Option<Generation>,
}

impl GenerationPin {
    /// Which.
    pub fn generation(&self) -> Generation {
        self.generation
    }
}

impl Drop for GenerationPin {
    fn drop(&mut self) {
        let mut pinned = self.volume.pinned.lock();
        for generation in self.before.into_iter().chain([self.generation]) {
            if let Some(count) = pinned.get_mut(&generation) {
                *count -= 1;
                if *count == 0 {
                    pinned.remove(&generation);
                }
            }
        }
    }
}

/// What segments take on all devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// All of it.
    pub bytes: u64,
    /// What of it gc may give back.
    pub reclaimable_bytes: u64,
}

/// No stripe is freed while this is held.
#[derive(Debug)]
pub struct Maintenance<'a>(#[allow(dead_code, reason = "held for its lifetime")] MutexGuard<'a, ()>);

impl Volume {
    /// Free what nothing refers to, now. `flusher` puts what the caller holds dirty into the generations this closes;
    /// `step` is told what is done, how much of how much, and ends the work by returning false.
    ///
    /// # Errors
    /// What kept it from finding out what is alive, or a commit from succeeding. What could not be freed is no error: it
    /// is in the report.
    pub fn gc(
        &self,
        flusher: &dyn Flusher,
        options: GcOptions,
        step: &dyn Fn(&str, u64, u64) -> bool,
    ) -> Result<GcReport> {
        if !options.dry_run {
            self.writable()?;
            step("retention", 0, 0);
            self.retention.lock().apply(self, Shed::Nothing)?;
            while self.retire_some()? {
                step("removed files", 0, 0);
            }
        }
        self.gc.lock().collect(self, options, &|| self.commit(flusher), step)
    }

    #[cfg(test)]
    pub(crate) fn set_gc_killed_after(&self, steps: u64) {
        self.gc.lock().killed_after = Some(steps);
    }

    /// Delete some of the extents that were cut off. True: there may be more.
    pub(super) fn retire_some(&self) -> Result<bool> {
        let _held = self.gate();
        self.meta.with(|txn| txn.retire_step(RETIRE_BATCH))
    }

    /// A round of the housekeeper's.
    pub(super) fn gc_round(&self) -> Result<()> {
        let Some(mut gc) = self.gc.try_lock() else { return Ok(()) };
        gc.round(self, self.space.is_tight(), self.is_hungry())
    }

    /// The salt epoch of new blocks.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Begin a new salt epoch: what is written from now on shares no salt with what was written before. Returns it.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::Refused`] after four thousand million of them.
    pub fn rotate_epoch(&self) -> Result<u32> {
        self.writable()?;
        let next = self.superblock.lock().epoch.max(self.epoch()).checked_add(1);
        let next = next.ok_or_else(|| Error::Refused("there are no more salt epochs".into()))?;
        // A later mount must not go back to salts that are done with.
        self.write_superblocks(|superblock| superblock.epoch = superblock.epoch.max(next))?;
        self.epoch.fetch_max(next, Ordering::AcqRel);
        Ok(next)
    }

    /// Blocks by epoch as they were counted last.
    pub(crate) fn epochs_counted(&self) -> &parking_lot::Mutex<crate::reseal::Counted> {
        &self.epochs_counted
    }

    /// True if [`Volume::reserve`] would grant `bytes` now.
    pub fn has_space(&self, bytes: u64) -> bool {
        self.space.fits(bytes)
    }

    /// Wait until there is space for `bytes`, for as long as gc may still make some: ten seconds since it last did, and a
    /// minute at most. Not to be called by who holds anything that a commit waits for.
    pub fn wait_for_space(&self, bytes: u64) {
        if self.has_space(bytes) || bytes > self.usable_total() {
            return;
        }
        let began = Instant::now();
        let collections = || self.collections.load(Ordering::Acquire);
        let given_back = || self.given_back.load(Ordering::Acquire);
        let told = *self.in_vain.lock();
        if told.is_some_and(|(at, then)| at.elapsed() < SPACE_PATIENCE && then == given_back()) && !self.may_free() {
            return;
        }
        // A collection that runs already does not count.
        let mut seen = (began, collections() + 1, given_back());
        self.hungry.fetch_add(1, Ordering::AcqRel);
        while !self.has_space(bytes) && began.elapsed() < SPACE_PATIENCE_MAX && self.writable().is_ok() {
            if given_back() != seen.2 {
                seen = (Instant::now(), collections() + 1, given_back());
            }
            let in_vain = collections() >= seen.1 + COLLECTIONS_TRIED && !self.may_free();
            if in_vain || seen.0.elapsed() >= SPACE_PATIENCE {
                *self.in_vain.lock() = Some((Instant::now(), seen.2));
                break;
            }
            if let Some(housekeeper) = &*self.housekeeper.lock() {
                housekeeper.wake();
            }
            std::thread::sleep(SPACE_RECHECK);
        }
        self.hungry.fetch_sub(1, Ordering::AcqRel);
    }

    /// The housekeeper's gc gave space of blocks back. That of the log alone is none: commits take as much again.
    pub(crate) fn note_given_back(&self, bytes: u64) {
        self.given_back.fetch_add(bytes, Ordering::AcqRel);
    }

    /// The housekeeper's gc came to its end.
    pub(crate) fn note_collected(&self) {
        self.collections.fetch_add(1, Ordering::AcqRel);
    }

    /// Writers wait for space.
    pub(crate) fn is_hungry(&self) -> bool {
        self.hungry.load(Ordering::Acquire) > 0
    }

    /// True if there are dead blocks, or former states that could be given up.
    fn may_free(&self) -> bool {
        self.meta.with(|txn| Ok(txn.counters().dead_bytes > 0 || txn.has_loose_ends()?)).unwrap_or(false)
    }

    /// Keep a former state readable while the result is held, whatever retention says.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is not kept any more.
    pub fn pin(self: &Arc<Self>, generation: Generation) -> Result<GenerationPin> {
        let pin = self.noted(generation);
        // After it was noted: retention either saw it or had given the generation up before.
        if generation != self.meta.committed() && !self.meta.with(|txn| txn.is_kept(generation))? {
            return Err(Error::NotFound);
        }
        Ok(pin)
    }

    /// Keep what is there now readable while the result is held, once it is a former state: of the generation that is
    /// open if anything changed in it, or `flusher` holds what will be put into it.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn pin_present(self: &Arc<Self>, flusher: &dyn Flusher) -> Result<GenerationPin> {
        // Noted while no generation can close, and retention has no row of it yet. What is buffered when it is asked may
        // be put before the metadata are.
        let _held = self.gate();
        let buffered = flusher.has_dirty();
        let (settled, open) = self.meta.with(|txn| Ok((txn.settled_in(), txn.generation())))?;
        if !buffered || settled == open {
            return Ok(self.noted(settled));
        }
        // What is buffered may be of what is never looked at, so what is settled now is kept as well.
        *self.pinned.lock().entry(settled).or_default() += 1;
        let mut pin = self.noted(open);
        pin.before = Some(settled);
        Ok(pin)
    }

    /// The same of what is kept of a generation for a directory, if `ino` was in that.
    pub(super) fn pin_below(self: &Arc<Self>, generation: Generation, ino: Ino) -> Result<GenerationPin> {
        let pin = self.noted(generation);
        if !self.meta.with(|txn| txn.is_kept_below(ino, generation))? {
            return Err(Error::NotFound);
        }
        Ok(pin)
    }

    fn noted(self: &Arc<Self>, generation: Generation) -> GenerationPin {
        *self.pinned.lock().entry(generation).or_default() += 1;
        GenerationPin { volume: self.clone(), generation, before: None }
    }

    pub(crate) fn pinned_generations(&self) -> Vec<Generation> {
        self.pinned.lock().keys().copied().collect()
    }

    /// A round of retention: rules, budget, snapshots that are due. With little space left history goes first.
    pub(super) fn retention_round(&self) -> Result<()> {
        let Some(mut retention) = self.retention.try_lock() else { return Ok(()) };
        retention.round(self)
    }

    /// Why nothing is freed any more, if so.
    pub fn gc_stopped(&self) -> Option<String> {
        self.gc.try_lock().and_then(|gc| gc.stopped().map(str::to_owned))
    }

    /// Hold gc off, so that no stripe is freed while all are looked at.
    pub(crate) fn maintenance(&self) -> Maintenance<'_> {
        Maintenance(self.maintenance.lock())
    }

    pub(crate) fn try_maintenance(&self) -> Option<Maintenance<'_>> {
        self.maintenance.try_lock().map(Maintenance)
    }

    pub(crate) fn members(&self) -> &Arc<BackingSet> {
        &self.set
    }

    /// Generation of the older of two checkpoints that enough superblocks name; `None` while there are not two.
    pub(crate) fn floor(&self) -> Option<Generation> {
        *self.floor.lock()
    }

    /// Generation of the oldest checkpoint that is kept: the log since then is needed to rebuild the database.
    pub(crate) fn oldest_checkpoint(&self) -> Option<Generation> {
        self.superblock.lock().checkpoints.iter().map(|pointer| pointer.generation).min()
    }

    /// Generation of the last checkpoint.
    pub(crate) fn newest_checkpoint(&self) -> Option<Generation> {
        self.superblock.lock().checkpoints.first().map(|pointer| pointer.generation)
    }

    /// True if less than a tenth of the usable space is free.
    pub(crate) fn is_tight(&self) -> bool {
        self.space.is_tight()
    }

    /// Measure the room of the directories anew.
    pub(crate) fn space_was_freed(&self) {
        self.space.freed();
    }

    /// Plaintext that fits in what the members could ever hold, bytes.
    pub(crate) fn usable_total(&self) -> u64 {
        self.space.raw().usable_total
    }

    /// Plaintext that gc may move before anything is freed, bytes.
    pub(crate) fn movable(&self) -> u64 {
        self.space.freed();
        self.space.raw().movable
    }

    /// Change a row, so that the next commit closes a generation.
    pub(crate) fn note_collection(&self) -> Result<()> {
        let _held = self.gate();
        self.meta.with(|txn| {
            let generation = txn.generation();
            txn.put_shelf(Shelf::Settings, NOTE_KEY, &generation.0.to_le_bytes())
        })
    }

    /// Close the open segment if `dead` bytes of each of its files hold no block: nothing can be freed in it before.
    pub(crate) fn close_wasteful_segment(&self, dead: u64) -> Result<()> {
        let live = self.meta.reader()?.live_bytes(false)?;
        for (id, tail) in self.blocks.segments().open_tails() {
            let wasted = tail.saturating_sub(SEGMENT_HEADER_LEN as u64 + live.get(&id).copied().unwrap_or(0));
            if wasted >= dead {
                self.blocks.segments().abandon(id);
            }
        }
        // Noted at once: while nothing else changes no generation would be closed for it.
        let _held = self.gate();
        self.blocks.settled(|_| Ok(()))
    }

    /// No checkpoint is written while this is held.
    pub(crate) fn hold_images(&self) -> MutexGuard<'_, LastImage> {
        self.last_image.lock()
    }

    /// Parts of the next images are not shared with what lies in these segments.
    pub(crate) fn leave_in_images(&self, segments: Vec<SegmentId>) {
        self.last_image.lock().leaving = segments.into_iter().collect();
    }

    /// True if these are the kept checkpoints.
    pub(crate) fn is_of_kept_images(&self, known: &[Generation]) -> bool {
        self.superblock.lock().checkpoints.iter().map(|pointer| pointer.generation).eq(known.iter().copied())
    }

    /// Where the blocks of the kept checkpoints lie, read anew unless `known` is of the same.
    ///
    /// # Errors
    /// If an index or the header of a block cannot be read.
    pub(crate) fn image_stripes(&self, known: Option<Images>) -> Result<Images> {
        if let Some(known) = known
            && self.is_of_kept_images(&known.of)
        {
            return Ok(known);
        }
        let pointers = self.superblock.lock().checkpoints.clone();
        let (stripes, keys, sealer) = (self.blocks.stripes(), &self.keys, &*self.sealer);
        let reader = Reader { stripes, keys, sealer, overrides: &[], report: &|_, _, _| {} };
        let mut places = BTreeSet::new();
        for pointer in &pointers {
            places.extend(reader.image_places(pointer)?.into_iter().map(|place| (place.segment, place.stripe)));
        }
        let mut infos = HashMap::new();
        let mut stripes_of: HashMap<SegmentId, Vec<(u64, u64)>> = HashMap::new();
        for (segment, offset) in places {
            // From the files: an image may lie in a segment that has no row yet.
            let stripes = self.blocks.stripes();
            let info = infos.entry(segment).or_insert_with(|| stripes.segment_info(segment));
            let header = info.as_ref().and_then(|info| stripes.header_at(segment, offset, info));
            let header = header.ok_or_else(|| {
                Error::format(
                    format!("checkpoint block at {offset} of segment {segment}"),
                    "its header cannot be read, so nothing is freed; `brine heal` rebuilds it",
                )
            })?;
            stripes_of.entry(segment).or_default().push((offset, header.record_len()));
        }
        Ok(Images { of: pointers.iter().map(|pointer| pointer.generation).collect(), stripes: stripes_of })
    }

    /// Bytes that the files of a segment take on the devices of the directories that are there.
    pub(crate) fn allocated(&self, row: &SegmentRow) -> Vec<u64> {
        self.allocated_where(row, |_| true)
    }

    /// The same of some members.
    pub(crate) fn allocated_where(&self, row: &SegmentRow, wanted: impl Fn(&MemberId) -> bool) -> Vec<u64> {
        let slots = row.slots.iter().flatten().filter(|id| wanted(id));
        slots.filter_map(|id| self.set.get(id)?.allocated(row.id).ok()).collect()
    }

    /// Bytes that segments take on all devices, and those of them that hold nothing alive, estimated: all but what rows
    /// and images need. Some of it is the log since the checkpoint before the last, which can be freed after the next two.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn taken(&self) -> Result<Taken> {
        let state = self.meta.reader()?;
        let live = state.live_bytes(true)?;
        let images = self.image_stripes(None)?;
        let open: HashMap<SegmentId, u64> = self.blocks.segments().open_tails().into_iter().collect();
        let mut sum = Taken { bytes: 0, reclaimable_bytes: 0 };
        for row in state.segments()? {
            let image: u64 = images.stripes.get(&row.id).into_iter().flatten().map(|(_, len)| len).sum();
            let needed = live.get(&row.id).copied().unwrap_or(0) + image;
            let header = if needed > 0 { SEGMENT_HEADER_LEN as u64 } else { 0 };
            // What is preallocated in an open one is not there to be given back.
            let most = open.get(&row.id).copied().unwrap_or(u64::MAX);
            let gained = |bytes: u64| bytes.min(most).saturating_sub(needed + header);
            for bytes in self.allocated(&row) {
                sum.bytes += bytes;
                sum.reclaimable_bytes += gained(bytes);
            }
        }
        Ok(sum)
    }
}
