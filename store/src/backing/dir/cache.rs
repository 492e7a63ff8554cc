//! Open segment files, a bounded number of them, and how far each is preallocated.
//!
//! A file with unsynced writes stays open: closing it could lose the one report of a failed write-back that the
//! kernel gives to those who had the file open. The bound is exceeded rather than broken that way; the store keeps
//! the number of unsynced segments small.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::direct::is_whole;
use crate::backing::ring::DIRECT_ALIGN;
use crate::backing::{DeviceFlush, LONG_WRITE_MIN};
use crate::ids::SegmentId;

/// Clean segment files kept open. A reader of a large volume touches segments at random; 64 files and six members
/// stay far below the usual limit of 1024 descriptors.
const OPEN_FILES_MAX: usize = 64;

/// Bytes preallocated at a time. Large enough that a streaming writer asks a few times a second at most, small enough
/// that an abandoned tail does not matter.
pub(super) const PREALLOCATE_STEP: u64 = 16 << 20;

/// An open segment file.
pub(super) struct SegmentFile {
    pub(super) file: File,
    pub(super) writable: bool,
    /// Written to since the last sync.
    pub(super) dirty: AtomicBool,
    /// Held while it is synced: the kernel tells of a failed write once, and whoever is told must have said so before the
    /// next sync is believed.
    pub(super) syncing: Mutex<()>,
    /// The same file, opened for direct writes, while it grows.
    pub(super) direct: Mutex<Option<DirectFile>>,
}

/// A file opened for direct writes.
#[derive(Clone)]
pub(super) struct DirectFile {
    pub(super) file: Arc<File>,
    /// What flushes its device, if what is written lies there, in its cache at least, when the call returns.
    pub(super) flush: Option<DeviceFlush>,
}

impl SegmentFile {
    pub(super) fn new(file: File, writable: bool) -> Self {
        Self { file, writable, dirty: AtomicBool::new(false), syncing: Mutex::default(), direct: Mutex::default() }
    }
}

#[derive(Default)]
pub(super) struct Cache {
    open: HashMap<SegmentId, (u64, Arc<SegmentFile>)>,
    tick: u64,
    /// Segments whose last sync failed.
    failed: HashSet<SegmentId>,
    /// Segments made by this handle and not finished.
    rooms: HashMap<SegmentId, Arc<SharedRoom>>,
}

impl Cache {
    /// The open file, if it is here and may be written when that is wanted.
    pub(super) fn get(&mut self, id: SegmentId, writable: bool) -> Option<Arc<SegmentFile>> {
        self.tick += 1;
        let (used, file) = self.open.get_mut(&id)?;
        *used = self.tick;
        (file.writable || !writable).then(|| file.clone())
    }

    /// Add a file just opened. Another thread may have opened it meanwhile: the result is the one to use. What falls
    /// out of the cache is pushed to `evicted`, for the caller to drop once it has let go of the lock, as close() can
    /// wait for a server.
    pub(super) fn insert(
        &mut self,
        id: SegmentId,
        file: SegmentFile,
        evicted: &mut Vec<Arc<SegmentFile>>,
    ) -> Arc<SegmentFile> {
        if let Some(present) = self.get(id, file.writable) {
            evicted.push(Arc::new(file));
            return present;
        }
        let file = Arc::new(file);
        evicted.extend(self.open.insert(id, (self.tick, file.clone())).map(|(_, old)| old));
        while self.open.len() > OPEN_FILES_MAX {
            // Nobody can clone or dirty a file that only the cache holds while we hold the cache.
            let idle = |file: &Arc<SegmentFile>| Arc::strong_count(file) == 1 && !file.dirty.load(Ordering::Acquire);
            let oldest = self.open.iter().filter(|(_, (_, file))| idle(file)).min_by_key(|(_, (used, _))| *used);
            let Some(oldest) = oldest.map(|(id, _)| *id) else { break };
            evicted.extend(self.open.remove(&oldest).map(|(_, old)| old));
        }
        file
    }

    /// Forget everything about a segment; the file is for the caller to drop outside the lock.
    pub(super) fn remove(&mut self, id: SegmentId) -> Option<Arc<SegmentFile>> {
        self.failed.remove(&id);
        self.rooms.remove(&id);
        self.open.remove(&id).map(|(_, file)| file)
    }

    pub(super) fn has_failed(&self, id: SegmentId) -> bool {
        self.failed.contains(&id)
    }

    pub(super) fn set_failed(&mut self, id: SegmentId) {
        self.failed.insert(id);
    }

    /// Drop the memory of a failed sync, and the handle that may still have its error pending.
    pub(super) fn clear_failed(&mut self, id: SegmentId) -> Option<Arc<SegmentFile>> {
        self.failed.remove(&id);
        self.open.remove(&id).map(|(_, file)| file)
    }

    pub(super) fn set_room(&mut self, id: SegmentId, room: Room) {
        self.rooms.insert(id, Arc::new(SharedRoom { room: Mutex::new(room), zeros_written: Condvar::new() }));
    }

    pub(super) fn room(&self, id: SegmentId) -> Option<Arc<SharedRoom>> {
        self.rooms.get(&id).cloned()
    }

    pub(super) fn take_room(&mut self, id: SegmentId) -> Option<Arc<SharedRoom>> {
        self.rooms.remove(&id)
    }

    #[cfg(test)]
    pub(super) fn open_files(&self) -> usize {
        self.open.len()
    }
}

/// At most this part of what a filesystem has free is preallocated ahead of a write.
const FREE_SHARE: u64 = 8;

/// Free bytes of the filesystem that a file lies on, if it tells.
fn available(file: &File) -> Option<u64> {
    let stat = nix::sys::statvfs::fstatvfs(file.as_fd()).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Writes up to this length, bytes, are taken for records that are synced one by one.
const SMALL_WRITE_MAX: u64 = 32 << 10;
/// A stream of long writes is taken to go on until so much was written after the last, bytes.
const STREAM_GAP: u64 = 64 << 10;
/// Zeros written ahead of small records, bytes.
const ZEROS_AHEAD: u64 = 128 << 10;
/// Zeros written and synced ahead of direct writes, bytes: so many that this is seldom done, so few that commits hardly wait
/// for it. More if that is less than so many of the writes that come, up to a bound.
const DIRECT_AHEAD: u64 = 256 << 10;
const DIRECT_WRITES_AHEAD: u64 = 64;
const DIRECT_AHEAD_MAX: u64 = 4 << 20;

/// How far a growing segment file is preallocated.
pub(super) struct Room {
    allocated: u64,
    capacity: u64,
    /// Where the last of all writes ends that may be going on.
    reserved: u64,
    /// Where the last long one of them ends.
    long_end: Option<u64>,
    /// Length that the file was given ahead of what is written, bytes.
    len: u64,
    /// Zeros were written up to here, or are being.
    zeroed: u64,
    /// From here on they are being, without this being held: no other write may meet them.
    zeroing: Option<u64>,
    /// What is zeros here, or was handed out, is so durably; `None`: it cannot be had in this segment.
    direct: Option<Range<u64>>,
    /// Length of the last write that wanted to be direct.
    direct_len: u64,
}

/// A [`Room`] and who waits for it.
pub(super) struct SharedRoom {
    room: Mutex<Room>,
    zeros_written: Condvar,
}

impl SharedRoom {
    pub(super) fn lock(&self) -> MutexGuard<'_, Room> {
        self.room.lock()
    }

    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Room>> {
        self.room.try_lock()
    }

    /// Taken for a write that ends at `end`: not while zeros are written there.
    pub(super) fn lock_for(&self, end: u64) -> MutexGuard<'_, Room> {
        let mut room = self.room.lock();
        self.zeros_written.wait_while(&mut room, |room| room.meets_zeros(end));
        room
    }

    /// [`Room::zeros_for_direct`], until what is returned is dropped.
    pub(super) fn begin_zeros(&self, file: &File) -> io::Result<Option<Zeroing<'_>>> {
        let zeros = self.room.lock().zeros_for_direct(file)?;
        Ok(zeros.map(|zeros| Zeroing { shared: self, zeros, written: false, ready: false }))
    }
}

/// Zeros are being written and synced. Unless both are told of, there are no direct writes in this segment any more: what is
/// not there durably must not be taken for it.
pub(super) struct Zeroing<'r> {
    shared: &'r SharedRoom,
    pub(super) zeros: Zeros,
    written: bool,
    ready: bool,
}

impl Zeroing<'_> {
    /// They were written: others may write there.
    pub(super) fn written(&mut self) {
        self.written = true;
        self.shared.room.lock().zeroing = None;
        self.shared.zeros_written.notify_all();
    }

    /// They were synced.
    pub(super) fn ready(mut self) {
        self.ready = true;
        if let Some(direct) = &mut self.shared.room.lock().direct {
            *direct = self.zeros.ready.clone();
        }
    }
}

impl Drop for Zeroing<'_> {
    fn drop(&mut self) {
        if !self.written {
            self.written();
        }
        if !self.ready {
            self.shared.room.lock().refuse_direct();
        }
    }
}

/// Zeros that direct writes are to find.
pub(super) struct Zeros {
    /// Where there are to be zeros, durably.
    pub(super) ready: Range<u64>,
    /// Where they are still to be written, whole pages.
    pub(super) missing: Range<u64>,
}

impl Room {
    /// A segment that will hold at most `capacity` bytes and has none yet.
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            allocated: 0,
            capacity,
            reserved: 0,
            long_end: None,
            len: 0,
            zeroed: 0,
            zeroing: None,
            direct: Some(0..0),
            direct_len: 0,
        }
    }

    /// Have room for a write that ends at `end`, and half a step beyond it. An fdatasync that need not allocate is
    /// the cheaper one. Only a lack of room for the write itself is an error; filesystems that cannot preallocate
    /// are left alone from then on.
    pub(super) fn reserve(&mut self, file: &File, end: u64) -> nix::Result<()> {
        let wanted = end.saturating_add(PREALLOCATE_STEP / 2).min(self.capacity);
        if wanted <= self.allocated {
            return Ok(());
        }
        // What little is left must not lie idle here while another segment, or the next, needs it.
        let ahead = available(file).map_or(PREALLOCATE_STEP, |free| free / FREE_SHARE);
        let target = wanted.next_multiple_of(PREALLOCATE_STEP).min(end.saturating_add(ahead)).min(self.capacity);
        if target <= self.allocated {
            return Ok(());
        }
        let (from, len) = (self.allocated as i64, (target - self.allocated) as i64);
        let result = loop {
            match fallocate(file.as_fd(), FallocateFlags::FALLOC_FL_KEEP_SIZE, from, len) {
                Err(Errno::EINTR) => {}
                result => break result,
            }
        };
        match result {
            Ok(()) => self.allocated = target,
            Err(errno @ (Errno::ENOSPC | Errno::EDQUOT)) if end > self.allocated => return Err(errno),
            // Not again for the rest of this segment: the filesystem cannot, or room is short and the writes
            // themselves will tell.
            Err(_) => self.capacity = self.allocated,
        }
        Ok(())
    }

    /// Tell of a write about to be made, after [`Self::reserve`] for its end. Ahead of small ones zeros are written into
    /// what is preallocated: a sync of what overwrites them has no extents to convert, and takes three quarters of the
    /// time. They lie past the end of every write told of, so they never meet one. The first write is the header: what
    /// follows may be large. In a stream of long writes the next one would be the one to meet them.
    pub(super) fn about_to_write(&mut self, file: &File, end: u64, len: u64) {
        let first = self.reserved == 0;
        self.reserved = self.reserved.max(end);
        if len >= LONG_WRITE_MIN {
            self.long_end = Some(self.reserved);
        }
        let streams = self.long_end.is_some_and(|long| self.reserved - long < STREAM_GAP);
        if first || streams || len > SMALL_WRITE_MAX || end <= self.zeroed {
            return;
        }
        let target = (self.reserved + ZEROS_AHEAD).min(self.allocated);
        let zeros = vec![0; target.saturating_sub(self.reserved) as usize];
        // Best effort: an error that matters shows at the write or its sync.
        if file.write_all_at(&zeros, self.reserved).is_ok() {
            self.zeroed = target;
        }
    }

    /// Have the file as long as what is preallocated: direct writes within its length do not keep each other waiting.
    pub(super) fn lengthen(&mut self, file: &File) -> io::Result<()> {
        self.lengthen_to(file, self.allocated)
    }

    fn lengthen_to(&mut self, file: &File, len: u64) -> io::Result<()> {
        // Never less than is written: where nothing more could be preallocated, writes went on.
        if len > self.len.max(self.reserved) {
            file.set_len(len)?;
            self.len = len;
        }
        Ok(())
    }

    /// What of the file is to be filled with zeros, past the end of every write told of, so that it can be written directly
    /// then. The file is that long already. Nobody else may write there meanwhile ([`Zeroing`]). `None` if there is no more room in the segment, or what there is was made ready
    /// before.
    pub(super) fn zeros_for_direct(&mut self, file: &File) -> io::Result<Option<Zeros>> {
        if self.zeroing.is_some() || self.direct.is_none() {
            // Somebody is at it, or it is of no use.
            return Ok(None);
        }
        let start = self.reserved.next_multiple_of(DIRECT_ALIGN);
        self.reserve(file, start)?;
        let end = (start + self.direct_ahead()).min(self.allocated) / DIRECT_ALIGN * DIRECT_ALIGN;
        if end <= start {
            self.direct = None;
            return Ok(None);
        }
        if self.direct.as_ref().is_some_and(|ready| end <= ready.end) {
            // At the end of the segment: there is no more to be had.
            return Ok(None);
        }
        // What was filled before is left alone, but for a part of a page.
        let from = (self.zeroed / DIRECT_ALIGN * DIRECT_ALIGN).clamp(start, end);
        if from < end {
            self.lengthen_to(file, end)?;
            self.zeroed = end;
            self.zeroing = Some(from);
        }
        Ok(Some(Zeros { ready: start..end, missing: from..end }))
    }

    #[cfg(test)]
    pub(super) fn zeroed(&self) -> u64 {
        self.zeroed
    }

    /// Whether a write that ends at `end` would meet zeros that are being written.
    pub(super) fn meets_zeros(&self, end: u64) -> bool {
        self.zeroing.is_some_and(|from| end > from)
    }

    /// No direct writes any more.
    pub(super) fn refuse_direct(&mut self) {
        self.direct = None;
    }

    fn direct_ahead(&self) -> u64 {
        DIRECT_AHEAD.max((self.direct_len * DIRECT_WRITES_AHEAD).min(DIRECT_AHEAD_MAX))
    }

    /// Whether these can be written directly, and are then: `true` if more zeros are soon needed. `None`: not yet.
    /// `Err`: never in this segment.
    pub(super) fn hand_out_direct(&mut self, offset: u64, len: u64) -> Result<Option<bool>, ()> {
        let Some(zeros) = &self.direct else { return Err(()) };
        self.direct_len = len;
        let end = offset.saturating_add(len);
        if !is_whole(offset, len) || offset < zeros.start || end > zeros.end {
            return Ok(None);
        }
        self.reserved = self.reserved.max(end);
        Ok(Some(zeros.end - end < self.direct_ahead() / 2))
    }

    /// Length of the file without what it is longer than what was written, if it is, bytes.
    pub(super) fn written(&self) -> Option<u64> {
        (self.zeroed.max(self.len) > self.reserved).then_some(self.reserved)
    }
}
