//! A member directory in memory, which knows what a power cut would leave.
//!
//! Two states are kept of everything: what a reader sees now, and what has been synced. [`MemBacking::power_cut`]
//! goes back to the synced state, except that of what was not synced any part may have reached the medium all the
//! same: each 512-byte sector on its own, a file's length, a name. That is more than real disks and filesystems do
//! wrong, on purpose. [`MemBacking::cut_after`] makes the cut come inside a call.
//!
//! Everything random comes from the [`Entropy`] handed in: one seed, one outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::{Backing, MARKER_NAMES, SMALL_FILE_LEN_MAX, Space, failed_before, gone, in_use, split_name};
use crate::clock::Entropy;
use crate::ids::SegmentId;

/// What a medium writes whole or not at all.
const SECTOR: u64 = 512;

/// Room is counted and holes are punched in such blocks, as on most filesystems.
const BLOCK: u64 = 4096;

/// Longest segment file: these bytes are really there.
const SEGMENT_LEN_MAX: u64 = 1 << 30;

/// A member directory in memory. Handles made by [`MemBacking::reopen`] share the directory.
pub struct MemBacking {
    disk: Arc<Mutex<Disk>>,
    handle: u64,
}

#[derive(Clone)]
struct Disk {
    path: PathBuf,
    device: u64,
    capacity_bytes: u64,
    segments: BTreeMap<SegmentId, MemFile>,
    /// Made, but the directory was not synced: a power cut may take the name away.
    unsynced_names: BTreeSet<SegmentId>,
    /// Removed, but the directory was not synced: a power cut may bring them back.
    removed: BTreeMap<SegmentId, MemFile>,
    /// Segments whose last sync failed.
    failed: BTreeSet<SegmentId>,
    small: BTreeMap<String, Small>,
    powered: bool,
    /// Steps done since it was made.
    steps: u64,
    /// The power goes when this many steps are done.
    cut_at: Option<u64>,
    lock_holder: Option<u64>,
}

/// A segment file: what is read, and how to get back to what is synced.
#[derive(Clone, Default)]
struct MemFile {
    bytes: Vec<u8>,
    synced_len: u64,
    /// Sectors written since the last sync with their synced content; `None` is zeros.
    undo: BTreeMap<u64, Option<Box<[u8; SECTOR as usize]>>>,
    /// Blocks that take room.
    blocks: BTreeSet<u64>,
}

/// A small file: what is read, and what a power cut may leave instead (either, if there are several).
#[derive(Clone, Default)]
struct Small {
    live: Option<Vec<u8>>,
    after_cut: Vec<Option<Vec<u8>>>,
}

fn next_number() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

impl MemBacking {
    /// An empty directory of this size, on a device of its own. `name` is for messages.
    pub fn new(name: &str, capacity_bytes: u64) -> Self {
        Self::of(Disk {
            path: PathBuf::from(name),
            device: next_number(),
            capacity_bytes,
            segments: BTreeMap::new(),
            unsynced_names: BTreeSet::new(),
            removed: BTreeMap::new(),
            failed: BTreeSet::new(),
            small: BTreeMap::new(),
            powered: true,
            steps: 0,
            cut_at: None,
            lock_holder: None,
        })
    }

    fn of(disk: Disk) -> Self {
        Self { disk: Arc::new(Mutex::new(disk)), handle: next_number() }
    }

    /// Another handle to the same directory, as another process (or this one after a crash) would have.
    pub fn reopen(&self) -> Self {
        Self { disk: self.disk.clone(), handle: next_number() }
    }

    /// A copy of the directory, unsynced state and all, that goes its own way from here. Not locked.
    pub fn fork(&self) -> Self {
        let copy = self.disk.lock().clone();
        Self::of(Disk { lock_holder: None, ..copy })
    }

    /// Elementary steps done so far: each is something that a power cut can come before. One run tells how many there
    /// are; [`MemBacking::cut_after`] then tries each.
    pub fn steps(&self) -> u64 {
        self.disk.lock().steps
    }

    /// Let the power go after this many more steps: from then on every call fails with EIO and changes nothing,
    /// until [`MemBacking::power_cut`].
    pub fn cut_after(&self, steps: u64) {
        let mut disk = self.disk.lock();
        disk.cut_at = Some(disk.steps + steps);
    }

    /// Whether the power is still on.
    pub fn is_powered(&self) -> bool {
        self.disk.lock().powered
    }

    /// Cut the power, and switch it on again: what was synced is there, of the rest any part. Nobody holds the lock.
    pub fn power_cut(&self, rng: &dyn Entropy) {
        let mut disk = self.disk.lock();
        let disk = &mut *disk;
        let mut bits = Bits::new(rng);
        for (id, file) in std::mem::take(&mut disk.removed) {
            if bits.flip() {
                disk.segments.entry(id).or_insert(file);
            }
        }
        for id in std::mem::take(&mut disk.unsynced_names) {
            if bits.flip() {
                disk.segments.remove(&id);
            }
        }
        for file in disk.segments.values_mut() {
            file.power_cut(&mut bits);
        }
        for small in disk.small.values_mut() {
            if !small.after_cut.is_empty() {
                let at = bits.below(small.after_cut.len() as u64) as usize;
                let mut left = small.after_cut.swap_remove(at);
                if let Some(content) = &mut left
                    && small.live.as_ref() == Some(content)
                    && small.after_cut.contains(&Some(Vec::new()))
                {
                    // Made, written, not synced: any prefix.
                    content.truncate(bits.below(content.len() as u64 + 1) as usize);
                }
                *small = Small { live: left, after_cut: Vec::new() };
            }
        }
        disk.small.retain(|_, small| small.live.is_some());
        disk.failed.clear();
        disk.powered = true;
        disk.cut_at = None;
        disk.lock_holder = None;
    }

    /// Change bytes of a segment behind everyone's back, as a bad disk would; `false` if they are not there.
    pub fn corrupt(&self, id: SegmentId, offset: u64, bytes: &[u8]) -> bool {
        let mut disk = self.disk.lock();
        let Some(file) = disk.segments.get_mut(&id) else { return false };
        let Ok(start) = usize::try_from(offset) else { return false };
        let Some(place) = start.checked_add(bytes.len()).and_then(|end| file.bytes.get_mut(start..end)) else {
            return false;
        };
        place.copy_from_slice(bytes);
        true
    }

    /// Delete everything, durably, as `rm -rf` and a sync would.
    pub fn wipe(&self) {
        let mut disk = self.disk.lock();
        disk.segments.clear();
        disk.removed.clear();
        disk.unsynced_names.clear();
        disk.failed.clear();
        disk.small.clear();
    }

    fn powered(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.disk.lock();
        if disk.powered { Ok(disk) } else { Err(power_is_off()) }
    }
}

impl Drop for MemBacking {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.lock_holder == Some(self.handle) {
            disk.lock_holder = None;
        }
    }
}

fn power_is_off() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn not_found() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

/// Random bits, 256 at a time.
struct Bits<'a> {
    rng: &'a dyn Entropy,
    pool: [u8; 32],
    used: usize,
}

impl<'a> Bits<'a> {
    fn new(rng: &'a dyn Entropy) -> Self {
        Self { rng, pool: [0; 32], used: 256 }
    }

    fn flip(&mut self) -> bool {
        if self.used == 256 {
            self.rng.fill(&mut self.pool);
            self.used = 0;
        }
        self.used += 1;
        self.pool[(self.used - 1) / 8] >> ((self.used - 1) % 8) & 1 == 1
    }

    /// Less than `bound`, which is not 0. (Slightly uneven for huge bounds; no matter here.)
    fn below(&mut self, bound: u64) -> u64 {
        (0..64).fold(0, |number, _| number << 1 | u64::from(self.flip())) % bound
    }
}

impl Disk {
    /// Come to a point where the power may go.
    fn step(&mut self) -> io::Result<()> {
        if self.powered && self.cut_at.is_some_and(|at| self.steps >= at) {
            self.powered = false;
        }
        if !self.powered {
            return Err(power_is_off());
        }
        self.steps += 1;
        Ok(())
    }

    fn used_bytes(&self) -> u64 {
        let blocks: usize = self.segments.values().map(|file| file.blocks.len()).sum();
        let small: usize = self.small.values().filter_map(|small| small.live.as_ref()).map(Vec::len).sum();
        blocks as u64 * BLOCK + small as u64
    }

    fn file(&mut self, id: SegmentId) -> io::Result<&mut MemFile> {
        self.segments.get_mut(&id).ok_or_else(not_found)
    }

    fn check_not_failed(&self, id: SegmentId) -> io::Result<()> {
        if self.failed.contains(&id) { Err(failed_before()) } else { Ok(()) }
    }

    fn sync(&mut self, id: SegmentId) -> io::Result<()> {
        self.file(id)?;
        self.step()?;
        self.file(id)?.sync();
        if self.is_marked() { Ok(()) } else { Err(gone("the directory's marker (superblock.0 and superblock.1)")) }
    }

    fn is_marked(&self) -> bool {
        MARKER_NAMES.iter().any(|name| self.small.get(*name).is_some_and(|small| small.live.is_some()))
    }

    /// The directory was synced: this file is what it is.
    fn settle(&mut self, name: &str) {
        if let Some(small) = self.small.get_mut(name) {
            small.after_cut.clear();
        }
    }

    fn has_room(&self, more: u64) -> io::Result<()> {
        let free = self.capacity_bytes.saturating_sub(self.used_bytes());
        if more <= free { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) }
    }
}

impl MemFile {
    /// Remember the synced content of the sectors that `start..end` touches.
    fn dirty(&mut self, start: u64, end: u64) {
        for sector in start / SECTOR..end.div_ceil(SECTOR) {
            let from = sector * SECTOR;
            let (bytes, synced_len) = (&self.bytes, self.synced_len);
            self.undo.entry(sector).or_insert_with(|| {
                // Beyond the synced length zeros are synced, whatever was written since.
                let until = (from + SECTOR).min(synced_len).max(from);
                let mut old = Box::new([0; SECTOR as usize]);
                old[..(until - from) as usize].copy_from_slice(&bytes[from as usize..until.max(from) as usize]);
                (until > from).then_some(old)
            });
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        if self.bytes.len() < end as usize {
            self.bytes.resize(end as usize, 0);
        }
        self.dirty(offset, end);
        self.bytes[offset as usize..end as usize].copy_from_slice(bytes);
        self.blocks.extend(offset / BLOCK..end.div_ceil(BLOCK));
    }

    fn punch(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.bytes.len().next_multiple_of(BLOCK as usize) as u64);
        let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
        if first >= last {
            return;
        }
        let until = (last * BLOCK).min(self.bytes.len() as u64);
        let from = (first * BLOCK).min(until);
        self.dirty(from, until);
        self.bytes[from as usize..until as usize].fill(0);
        self.blocks.retain(|block| !(first..last).contains(block));
    }

    fn sync(&mut self) {
        self.undo.clear();
        self.synced_len = self.bytes.len() as u64;
    }

    fn power_cut(&mut self, bits: &mut Bits<'_>) {
        let len = self.bytes.len() as u64;
        let longer = len.saturating_sub(self.synced_len);
        let kept = match bits.below(3) {
            0 => self.synced_len,
            1 => len,
            _ => self.synced_len + bits.below(longer + 1),
        };
        for (sector, old) in std::mem::take(&mut self.undo) {
            if bits.flip() {
                continue;
            }
            let from = (sector * SECTOR) as usize;
            let until = (from + SECTOR as usize).min(self.bytes.len());
            match old {
                Some(old) => self.bytes[from..until].copy_from_slice(&old[..until - from]),
                None => self.bytes[from..until].fill(0),
            }
        }
        self.bytes.truncate(kept as usize);
        self.blocks.retain(|block| block * BLOCK < kept);
        self.sync();
    }
}

impl Backing for MemBacking {
    fn describe(&self) -> PathBuf {
        self.disk.lock().path.clone()
    }

    fn create_segment(&self, id: SegmentId, _capacity: u64) -> io::Result<()> {
        let mut disk = self.powered()?;
        if disk.segments.contains_key(&id) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        disk.has_room(BLOCK)?;
        disk.step()?;
        disk.segments.insert(id, MemFile::default());
        disk.failed.remove(&id);
        disk.unsynced_names.insert(id);
        disk.step()?;
        // The sync of the fan-out directory covers all names in it.
        let beside = |other: &SegmentId| other.0 as u8 == id.0 as u8;
        disk.unsynced_names.retain(|other| !beside(other));
        disk.removed.retain(|other, _| !beside(other));
        Ok(())
    }

    fn write_at(&self, id: SegmentId, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let mut disk = self.powered()?;
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let len = bytes.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > SEGMENT_LEN_MAX) {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        disk.check_not_failed(id)?;
        let file = disk.file(id)?;
        let touched = offset / BLOCK..(offset + len).div_ceil(BLOCK);
        let more = touched.filter(|block| !file.blocks.contains(block)).count() as u64 * BLOCK;
        disk.has_room(more)?;
        disk.step()?;
        if !bytes.is_empty() {
            disk.file(id)?.write(offset, &bytes);
        }
        Ok(())
    }

    fn read_at(&self, id: SegmentId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.powered()?;
        let bytes = &disk.file(id)?.bytes;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let got = buf.len().min(bytes.len() - start);
        buf[..got].copy_from_slice(&bytes[start..start + got]);
        Ok(got)
    }

    fn read_cached(&self, id: SegmentId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read_at(id, offset, buf)
    }

    fn will_need(&self, _: SegmentId, _: u64, _: u64) {}

    fn start_writeback(&self, _: SegmentId, _: u64, _: u64) {}

    fn sync_segment(&self, id: SegmentId) -> io::Result<()> {
        let mut disk = self.powered()?;
        disk.check_not_failed(id)?;
        let synced = disk.sync(id);
        if synced.is_err() {
            disk.failed.insert(id);
        }
        synced
    }

    fn reset_segment(&self, id: SegmentId) -> io::Result<()> {
        let mut disk = self.powered()?;
        disk.failed.remove(&id);
        disk.file(id).map(drop)
    }

    fn finish_segment(&self, id: SegmentId) -> io::Result<()> {
        self.powered()?.file(id).map(drop)
    }

    fn punch(&self, id: SegmentId, offset: u64, len: u64) -> io::Result<()> {
        let mut disk = self.powered()?;
        disk.file(id)?;
        disk.step()?;
        disk.file(id)?.punch(offset, len);
        Ok(())
    }

    fn allocated(&self, id: SegmentId) -> io::Result<u64> {
        Ok(self.powered()?.file(id)?.blocks.len() as u64 * BLOCK)
    }

    fn remove_segment(&self, id: SegmentId) -> io::Result<()> {
        let mut disk = self.powered()?;
        disk.file(id)?;
        disk.step()?;
        if let Some(file) = disk.segments.remove(&id)
            && !disk.unsynced_names.remove(&id)
        {
            disk.removed.insert(id, file);
        }
        Ok(())
    }

    fn list_segments(&self) -> io::Result<Vec<(SegmentId, u64)>> {
        let disk = self.powered()?;
        Ok(disk.segments.iter().map(|(id, file)| (*id, file.bytes.len() as u64)).collect())
    }

    fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        split_name(name)?;
        Ok(self.powered()?.small.get(name).and_then(|small| small.live.clone()))
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        split_name(name)?;
        let mut disk = self.powered()?;
        check_len(bytes)?;
        disk.has_room(bytes.len() as u64)?;
        // The temporary file, written and synced: nothing that anyone sees.
        disk.step()?;
        disk.step()?;
        let small = disk.small.entry(name.to_owned()).or_default();
        let old = small.live.replace(bytes.to_vec());
        small.after_cut = vec![old, Some(bytes.to_vec())];
        disk.step()?;
        disk.settle(name);
        Ok(())
    }

    fn create_file_exclusive(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        split_name(name)?;
        let mut disk = self.powered()?;
        check_len(bytes)?;
        if disk.small.get(name).is_some_and(|small| small.live.is_some()) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        disk.has_room(bytes.len() as u64)?;
        disk.step()?;
        let empty = Some(Vec::new());
        let small = Small { live: empty.clone(), after_cut: vec![None, empty.clone()] };
        disk.small.insert(name.to_owned(), small);
        disk.step()?;
        let written = Some(bytes.to_vec());
        let small = Small { live: written.clone(), after_cut: vec![None, empty, written.clone()] };
        disk.small.insert(name.to_owned(), small);
        disk.step()?;
        // The file is synced, its name not.
        disk.small.insert(name.to_owned(), Small { live: written.clone(), after_cut: vec![None, written] });
        disk.step()?;
        disk.settle(name);
        Ok(())
    }

    fn list_files(&self, dir: &str) -> io::Result<Vec<String>> {
        if !dir.is_empty() {
            split_name(dir)?;
        }
        let disk = self.powered()?;
        let live = disk.small.iter().filter(|(_, small)| small.live.is_some());
        Ok(live
            .filter_map(|(name, _)| split_name(name).ok())
            .filter(|(at, _)| *at == dir)
            .map(|(_, base)| base.into())
            .collect())
    }

    fn remove_file(&self, name: &str) -> io::Result<()> {
        split_name(name)?;
        let mut disk = self.powered()?;
        if disk.small.get(name).is_none_or(|small| small.live.is_none()) {
            return Err(not_found());
        }
        disk.step()?;
        if let Some(small) = disk.small.get_mut(name) {
            small.after_cut = vec![small.live.take(), None];
        }
        disk.step()?;
        disk.settle(name);
        Ok(())
    }

    fn is_marked(&self) -> bool {
        self.powered().is_ok_and(|disk| disk.is_marked())
    }

    fn space(&self) -> io::Result<Space> {
        let disk = self.powered()?;
        let free_bytes = disk.capacity_bytes.saturating_sub(disk.used_bytes());
        Ok(Space {
            total_bytes: disk.capacity_bytes,
            free_bytes,
            available_bytes: free_bytes,
            device: disk.device,
            fs_type: "memory".into(),
        })
    }

    fn lock(&self) -> io::Result<()> {
        let mut disk = self.powered()?;
        if *disk.lock_holder.get_or_insert(self.handle) == self.handle { Ok(()) } else { Err(in_use()) }
    }
}

fn check_len(bytes: &[u8]) -> io::Result<()> {
    if bytes.len() <= SMALL_FILE_LEN_MAX { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
mod tests;
