//! Writes past the page cache: where they can be, what they need, and what their end means.
//!
//! Those that are durable when they end overwrite zeros that are, in pages that nobody else touches ([`super::cache::Room`]
//! knows which). Long ones, made durable by a sync as any other, go wherever they are appended.

use std::cell::RefCell;
use std::fs;
use std::io::{self, IoSlice};
use std::iter::repeat_n;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{SysconfVar, sysconf};

use super::beneath::open_regular;
use super::cache::{DirectFile, SegmentFile};
use super::{DirBacking, segment_path};
use crate::backing::ring::Aligned;
use crate::backing::{Backing, DIRECT_ALIGN, DeviceFlush, Direct, DirectEnd, MARKER_NAMES, sys};
use crate::ids::SegmentId;
use crate::linux;

/// Filesystems that overwrite in place, so that a direct write of what is allocated needs no room, and whose names only
/// this machine changes.
const IN_PLACE: &[&str] = &["ext2", "ext3", "ext4", "xfs"];

/// The filesystem of which an fdatasync(2) of any clean file flushes the cache of the device: `ext4_fsync_journal` of Linux
/// does unless a commit of the journal will that has not begun to. XFS with a realtime device has two caches.
const FLUSHED_AT_ONCE: &str = "ext4";

/// Whether files of such a filesystem may be written directly on this machine.
pub(super) fn may_be(fs_type: &str) -> bool {
    // Records have pages of their own only where pages are no larger.
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(i64::MAX);
    IN_PLACE.contains(&fs_type) && page as u64 <= DIRECT_ALIGN
}

/// From this Linux on an fdatasync(2) of a clean file on ext4 without a journal flushes the device, too (6.5, and one to be
/// sure).
const FLUSHED_WITHOUT_JOURNAL: (u32, u32) = (6, 6);

/// Whether an fdatasync(2) of a clean file on the ext4 of this device flushes it.
fn flushes_when_clean(device: u64) -> bool {
    let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let name = fs::read_link(Path::new("/sys/dev/block").join(number)).ok();
    let Some(name) = name.as_deref().and_then(Path::file_name) else { return false };
    // The number of the journal's thread, or "<none>".
    let Ok(task) = fs::read_to_string(Path::new("/sys/fs/ext4").join(name).join("journal_task")) else { return false };
    task.trim().parse::<u32>().is_ok() || linux::version(&linux::release()) >= Some(FLUSHED_WITHOUT_JOURNAL)
}

/// Zeros written at a time, bytes.
const ZEROS_STEP: usize = 512 << 10;

/// Memory that a thread keeps for the pages that it writes, bytes.
const PAGES_KEPT_MAX: usize = 2 << 20;

/// Whether it is to be tried through the cache. EINVAL: a disk of larger blocks. WouldBlock: not even begun. WriteZero: only a
/// part, why the next try tells.
fn is_refusal(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EAGAIN))
        || matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::WriteZero)
}

/// Whether these are whole pages.
pub(super) fn is_whole(offset: u64, len: u64) -> bool {
    offset.is_multiple_of(DIRECT_ALIGN) && len.is_multiple_of(DIRECT_ALIGN)
}

/// Write zeros to a file that was opened for direct writes.
fn write_zeros(file: &fs::File, range: Range<u64>) -> io::Result<()> {
    static ZEROS: LazyLock<Aligned> = LazyLock::new(|| Aligned::gather(repeat_n(&[0; 4096][..], ZEROS_STEP / 4096)));
    let mut at = range.start;
    while at < range.end {
        let step = ZEROS.bytes().len().min((range.end - at) as usize);
        file.write_all_at(&ZEROS.bytes()[..step], at)?;
        at += step as u64;
    }
    Ok(())
}

impl DirBacking {
    /// By the marker's file, which is replaced and never written to: nothing of it waits to be committed, and it has no
    /// failed writes to tell of. Directories will not do: for some kernels their sync is a commit of the journal, and nothing
    /// if there is nothing to commit.
    fn device_flush(&self) -> Option<DeviceFlush> {
        if self.fs_type != FLUSHED_AT_ONCE || !flushes_when_clean(self.device) {
            return None;
        }
        let file = MARKER_NAMES.iter().find_map(|name| open_regular(&self.dir, name, OFlag::O_RDONLY).ok())?;
        // It may lie on another device than the directory's path says, as with overlayfs.
        let same = file.metadata().is_ok_and(|file| file.dev() == self.device);
        same.then(|| DeviceFlush { device: self.device, file: Arc::new(file) })
    }

    pub(super) fn offer_direct(&self, id: SegmentId, offset: u64, len: u64) -> Direct {
        if !self.directly.load(Ordering::Relaxed) {
            return Direct::Never;
        }
        // Before its room is asked for, as in `write_at`.
        let Some(_grows) = self.length(id).try_read() else { return Direct::NotYet };
        let (file, room) = {
            let mut cache = self.cache.lock();
            if cache.has_failed(id) {
                return Direct::Never;
            }
            (cache.get(id, true), cache.room(id))
        };
        let Some(room) = room else { return Direct::Never };
        // Held by who opens it, which may wait for the device.
        let direct = file.and_then(|file| file.direct.try_lock()?.clone());
        let Some(direct) = direct else { return Direct::NotYet };
        // Held by who is about to write, for the time of a few calls.
        let Some(mut room) = room.try_lock() else { return Direct::NotYet };
        match room.hand_out_direct(offset, len) {
            Ok(Some(scarce)) => Direct::Ready { file: direct.file, flush: direct.flush, scarce },
            Ok(None) => Direct::NotYet,
            Err(()) => Direct::Never,
        }
    }

    pub(super) fn prepare_direct(&self, id: SegmentId) -> io::Result<()> {
        let segment = self.segment(id, true)?;
        let grows = self.length(id).read();
        let Some(room) = self.cache.lock().room(id) else { return Ok(()) };
        let direct = self.direct_file(id, &segment)?;
        let Some(mut zeroing) = room.begin_zeros(&segment.file)? else { return Ok(()) };
        let (ready, missing) = (zeroing.zeros.ready.clone(), zeroing.zeros.missing.clone());
        // Past the cache, too: nothing of them is to lie there, and nobody's pages have to go for them.
        let cached = missing.start - ready.start;
        let written = write_zeros(&direct, missing);
        // Before the sync that covers them, as after every write.
        segment.dirty.store(true, Ordering::Release);
        written.map_err(|err| self.directly_or(err))?;
        zeroing.written();
        drop(grows);
        self.sync_segment(id)?;
        if cached > 0 {
            // Written ahead of others before. A direct write onto pages in the cache would have to wait for them.
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            let _ = posix_fadvise(&segment.file, ready.start as i64, cached as i64, advice);
        }
        zeroing.ready();
        Ok(())
    }

    /// A segment's file, opened for direct writes.
    fn direct_file(&self, id: SegmentId, segment: &SegmentFile) -> io::Result<Arc<fs::File>> {
        let mut direct = segment.direct.lock();
        if let Some(direct) = &*direct {
            return Ok(direct.file.clone());
        }
        let flags = OFlag::O_WRONLY | OFlag::O_DIRECT;
        let file = open_regular(&self.dir, &segment_path(id), flags).map_err(|err| self.directly_or(err))?;
        let flush = if sys::is_direct(file.as_fd()) { self.device_flush() } else { None };
        let file = Arc::new(file);
        *direct = Some(DirectFile { file: file.clone(), flush });
        Ok(file)
    }

    /// Write whole pages past the page cache: they are not copied there, and a sync finds little to do. `false`: they are to
    /// be written through the cache.
    pub(super) fn write_past_cache(
        &self,
        id: SegmentId,
        segment: &SegmentFile,
        offset: u64,
        bufs: &[IoSlice<'_>],
    ) -> io::Result<bool> {
        thread_local! {
            static PAGES: RefCell<Aligned> = const { RefCell::new(Aligned::new()) };
        }
        // It may not be openable so; what keeps it from being written otherwise is told then.
        let Ok(file) = self.direct_file(id, segment) else { return Ok(false) };
        let written = PAGES.with_borrow_mut(|pages| {
            pages.fill(bufs.iter().map(|buf| &**buf));
            let written = file.write_all_at(pages.bytes(), offset);
            pages.shrink_to(PAGES_KEPT_MAX);
            written
        });
        match written.map_err(|err| self.directly_or(err)) {
            Err(err) if is_refusal(&err) => Ok(false),
            written => written.map(|()| true),
        }
    }

    /// The error of a call that a filesystem refuses which knows no direct writes of such pages: there will be none.
    fn directly_or(&self, err: io::Error) -> io::Error {
        if err.raw_os_error() == Some(libc::EINVAL) {
            self.directly.store(false, Ordering::Relaxed);
        }
        err
    }

    pub(super) fn judge_direct(&self, id: SegmentId, result: io::Result<()>) -> DirectEnd {
        match result {
            Ok(()) => {
                let file = self.cache.lock().get(id, true);
                let linked = file.and_then(|file| file.file.metadata().ok()).is_some_and(|file| file.nlink() > 0);
                let at = self.changes().map(|changes| changes + 1);
                if linked && at == Some(self.in_place_at.load(Ordering::Acquire)) {
                    DirectEnd::Done
                } else {
                    DirectEnd::Unsure
                }
            }
            Err(err) if is_refusal(&err) => {
                if let Some(room) = self.cache.lock().room(id) {
                    room.lock().refuse_direct();
                }
                DirectEnd::Refused
            }
            Err(err) => {
                self.cache.lock().set_failed(id);
                DirectEnd::Failed(err)
            }
        }
    }
}
