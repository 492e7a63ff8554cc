//! Writes past the page cache: where they can be, what they need, and what their end means.
//!
//! They overwrite zeros that are durable, in pages that nobody else touches ([`super::cache::Room`] knows which).

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{SysconfVar, sysconf};

use super::beneath::open_regular;
use super::cache::DirectFile;
use super::{DirBacking, segment_path};
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
        let Some(direct) = file.and_then(|file| file.direct.lock().clone()) else { return Direct::NotYet };
        // Whoever writes zeros holds it.
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
        let opened = segment.direct.lock().is_some();
        if !opened {
            let flags = OFlag::O_WRONLY | OFlag::O_DIRECT;
            let file = open_regular(&self.dir, &segment_path(id), flags).inspect_err(|err| {
                if err.raw_os_error() == Some(libc::EINVAL) {
                    self.directly.store(false, Ordering::Relaxed);
                }
            })?;
            let flush = if sys::is_direct(file.as_fd()) { self.device_flush() } else { None };
            *segment.direct.lock() = Some(DirectFile { file: Arc::new(file), flush });
        }
        let Some(zeros) = room.lock().zeros_for_direct(&segment.file)? else { return Ok(()) };
        drop(grows);
        segment.dirty.store(true, Ordering::Release);
        self.sync_segment(id)?;
        // Nothing of them is to lie in the cache that a direct write passes by.
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        let _ = posix_fadvise(&segment.file, zeros.start as i64, (zeros.end - zeros.start) as i64, advice);
        room.lock().direct_from(zeros);
        Ok(())
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
            // EINVAL: a disk of larger blocks. WouldBlock: not even begun. WriteZero: only a part, why the next try tells.
            Err(err)
                if matches!(err.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EAGAIN))
                    || matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::WriteZero) =>
            {
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
