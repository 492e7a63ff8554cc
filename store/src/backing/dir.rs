//! A member directory on a real filesystem.
//!
//! Held open by descriptor from mount to unmount, so that renaming it, or mounting something over it, cannot lead a
//! write astray. Segment files lie at `segments/<low byte of the id, 2 hex>/<id, 16 hex>.seg`: 256 directories of at
//! most a few thousand files each on volumes up to hundreds of terabytes.

mod beneath;
mod cache;
mod direct;
mod watch;
#[cfg(test)]
pub(super) mod tests;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, PosixFadviseAdvice, fallocate, posix_fadvise, renameat};
use nix::sys::stat::fstat;
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::{Mutex, RwLock};

use super::{
    Backing, Direct, DirectEnd, FENCE_DIR, LONG_WRITE_MIN, MARKER_NAMES, SMALL_FILE_LEN_MAX, Space, failed_before,
    gone, in_use, space, split_name, sys,
};
use crate::ids::SegmentId;
use beneath::{EntryKind, make_dir, open_dir, open_regular, sync_dir};
use cache::{Cache, Room, SegmentFile};
use direct::is_whole;
use watch::Watch;

/// Most buffers of one pwritev (IOV_MAX of Linux).
const BUFFERS_PER_WRITE_MAX: usize = 1024;

/// Syncs that follow each other sooner are taken to go on.
const SYNCED_OFTEN: Duration = Duration::from_millis(50);

const SEGMENTS: &str = "segments";

/// A member directory on a filesystem.
pub struct DirBacking {
    path: PathBuf,
    dir: OwnedFd,
    device: u64,
    fs_type: String,
    /// Never held across a system call that could wait.
    cache: Mutex<Cache>,
    /// Fan-out directories known to be durable, by low byte. Held while one is made.
    fan_out: Mutex<[bool; 256]>,
    /// Held while a small file is written, since its temporary file has a fixed name.
    small_files: Mutex<()>,
    /// What the lock is held through; closing it lets go.
    locked: Mutex<Option<File>>,
    /// By segment, several to a lock: shared by writes, so that no file is cut to its length while it grows.
    lengths: [RwLock<()>; 16],
    /// Cleared when the filesystem turns out not to know RWF_NOWAIT.
    reads_nowait: AtomicBool,
    /// Files are written directly; cleared when the filesystem turns out to refuse it.
    directly: AtomicBool,
    /// When a segment was synced last, and whether that was soon after the one before.
    synced: Mutex<Option<(Instant, bool)>>,
    /// Of the small files' names, from when the fences were first listed.
    watch: Mutex<Watch>,
    /// [`Watch::changes`] before file and marker were last found in place, and one.
    in_place_at: AtomicU64,
}

impl DirBacking {
    /// Open an existing directory. Nothing is written. The message of an error names the path.
    pub fn open(path: &Path) -> io::Result<Self> {
        let named = |err: io::Error| io::Error::new(err.kind(), format!("{}: {err}", path.display()));
        let open = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path);
        let dir = OwnedFd::from(open.map_err(named)?);
        // Every later look-up needs openat2: better to learn here that there is none.
        open_dir(&dir, ".").map_err(|err| match Errno::from_raw(err.raw_os_error().unwrap_or(0)) {
            Errno::ENOSYS | Errno::EPERM => named(io::Error::new(
                io::ErrorKind::Unsupported,
                "openat2(2) is not available: Linux 5.6 or newer is needed, and a seccomp filter must allow it",
            )),
            _ => named(err),
        })?;
        let device = fstat(&dir).map_err(|errno| named(errno.into()))?.st_dev;
        let magic = nix::sys::statfs::fstatfs(&dir).map_err(|errno| named(errno.into()))?.filesystem_type().0 as u64;
        let fs_type = space::fs_type_name(magic, device, path.canonicalize().ok().as_deref());
        Ok(Self {
            path: path.to_owned(),
            directly: AtomicBool::new(direct::may_be(&fs_type)),
            synced: Mutex::default(),
            watch: Mutex::default(),
            in_place_at: AtomicU64::new(0),
            fs_type,
            dir,
            device,
            cache: Mutex::default(),
            lengths: Default::default(),
            fan_out: Mutex::new([false; 256]),
            small_files: Mutex::default(),
            locked: Mutex::default(),
            reads_nowait: AtomicBool::new(true),
        })
    }

    fn segment(&self, id: SegmentId, writable: bool) -> io::Result<Arc<SegmentFile>> {
        if let Some(file) = self.cache.lock().get(id, writable) {
            return Ok(file);
        }
        let access = if writable { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        let file = open_regular(&self.dir, &segment_path(id), access | OFlag::O_NOATIME)
            // O_NOATIME is for the file's owner only.
            .or_else(|err| match err.raw_os_error() {
                Some(libc::EPERM) => open_regular(&self.dir, &segment_path(id), access),
                _ => Err(err),
            })?;
        Ok(self.keep_open(id, SegmentFile::new(file, writable)))
    }

    fn length(&self, id: SegmentId) -> &RwLock<()> {
        &self.lengths[id.0 as usize % self.lengths.len()]
    }

    fn keep_open(&self, id: SegmentId, file: SegmentFile) -> Arc<SegmentFile> {
        let mut evicted = Vec::new();
        // The guard ends with the statement, before `evicted` is dropped and its files are closed.
        self.cache.lock().insert(id, file, &mut evicted)
    }

    /// The fan-out directory of a segment, made and durable.
    fn fan_out_dir(&self, id: SegmentId) -> io::Result<OwnedFd> {
        let low = id.0 as u8;
        let mut durable = self.fan_out.lock();
        if durable[usize::from(low)] {
            return open_dir(&self.dir, &format!("{SEGMENTS}/{low:02x}"));
        }
        let segments = make_dir(&self.dir, SEGMENTS)?;
        let dir = make_dir(&segments, &format!("{low:02x}"))?;
        durable[usize::from(low)] = true;
        Ok(dir)
    }

    fn note_sync(&self) {
        let mut synced = self.synced.lock();
        *synced = Some((Instant::now(), synced.is_some_and(|(last, _)| last.elapsed() < SYNCED_OFTEN)));
    }

    /// Whether long writes should go past the cache, and can: while somebody syncs again and again, who would wait until what
    /// others wrote there is written to the device. Else they end sooner in the cache.
    fn writes_past_cache(&self) -> bool {
        self.directly.load(Ordering::Relaxed)
            && self.synced.lock().is_some_and(|(last, often)| often && last.elapsed() < SYNCED_OFTEN)
    }

    /// R9: after a sync the file must still have a name, and the directory its marker.
    fn check_in_place(&self, file: &File) -> io::Result<()> {
        if file.metadata()?.nlink() == 0 {
            return Err(gone("the segment's file"));
        }
        if fstat(&self.dir)?.st_nlink == 0 {
            return Err(gone("the directory"));
        }
        let afresh = open_dir(&self.dir, ".")?;
        for marker in MARKER_NAMES {
            if let Some(EntryKind::File { .. }) = beneath::entry(&afresh, marker)? {
                return Ok(());
            }
        }
        Err(gone("the directory's marker (superblock.0 and superblock.1)"))
    }

    /// The directory of a small file. Missing ones are made if `make`.
    fn small_dir(&self, dir: &str, make: bool) -> io::Result<OwnedFd> {
        match dir {
            "" => open_dir(&self.dir, "."),
            _ if make => make_dir(&self.dir, dir),
            _ => open_dir(&self.dir, dir),
        }
    }
}

/// `segments/<2 hex>/<16 hex>.seg`
fn segment_path(id: SegmentId) -> String {
    format!("{SEGMENTS}/{:02x}/{}", id.0 as u8, segment_file_name(id))
}

fn segment_file_name(id: SegmentId) -> String {
    format!("{:016x}.seg", id.0)
}

/// The inverse of [`segment_file_name`]; `None` for names it would not give.
fn segment_of_name(name: &str) -> Option<SegmentId> {
    let id = SegmentId(u64::from_str_radix(name.strip_suffix(".seg")?, 16).ok()?);
    (segment_file_name(id) == name).then_some(id)
}

fn write_new_file(dir: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = open_regular(dir, name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn missing(result: io::Error) -> io::Result<()> {
    if result.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(result) }
}

fn pwrite_all(file: &File, mut offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
    let mut copy: Vec<IoSlice<'_>> = bufs.iter().filter(|buf| !buf.is_empty()).copied().collect();
    let mut rest = copy.as_mut_slice();
    while !rest.is_empty() {
        let at = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        match nix::sys::uio::pwritev(file, &rest[..rest.len().min(BUFFERS_PER_WRITE_MAX)], at) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::WriteZero, "the filesystem took no more bytes")),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Call `read(at, rest of buf)` until `buf` is full or the file ends.
fn read_fully(buf: &mut [u8], mut read: impl FnMut(usize, &mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match read(done, &mut buf[done..]) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(done)
}

impl Backing for DirBacking {
    fn describe(&self) -> PathBuf {
        self.path.clone()
    }

    fn create_segment(&self, id: SegmentId, capacity: u64) -> io::Result<()> {
        let dir = self.fan_out_dir(id)?;
        let name = segment_file_name(id);
        let file = open_regular(&dir, &name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOATIME)?;
        let mut room = Room::new(capacity);
        let ready = room.reserve(&file, 0).map_err(io::Error::from).and_then(|()| sync_dir(&dir));
        if let Err(err) = ready {
            // Best effort: an empty segment file is harmless, and the id is not used again.
            let _ = unlinkat(&dir, name.as_str(), UnlinkatFlags::NoRemoveDir);
            return Err(err);
        }
        let forgotten = {
            let mut cache = self.cache.lock();
            let forgotten = cache.remove(id);
            cache.set_room(id, room);
            forgotten
        };
        drop(forgotten);
        self.keep_open(id, SegmentFile::new(file, true));
        Ok(())
    }

    fn write_at(&self, id: SegmentId, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let segment = self.segment(id, true)?;
        // Before its room is asked for: a segment that is finished has none, and nobody writes zeros ahead there.
        let _grows = self.length(id).read();
        let room = {
            let cache = self.cache.lock();
            if cache.has_failed(id) {
                return Err(failed_before());
            }
            cache.room(id)
        };
        let len: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
        let past_cache = len >= LONG_WRITE_MIN && is_whole(offset, len) && self.writes_past_cache();
        if let Some(room) = room {
            let end = offset.saturating_add(len);
            let mut room = room.lock_for(end);
            room.reserve(&segment.file, end)?;
            room.about_to_write(&segment.file, end, len);
            if past_cache {
                // Best effort, as all that is ahead of the write.
                let _ = room.lengthen(&segment.file);
            }
        }
        let written = match past_cache.then(|| self.write_past_cache(id, &segment, offset, bufs)) {
            None | Some(Ok(false)) => pwrite_all(&segment.file, offset, bufs),
            Some(written) => written.map(drop),
        };
        // Afterwards, or a sync running beside could clear it without having covered this write. Until here our own
        // reference keeps the file open.
        segment.dirty.store(true, Ordering::Release);
        written
    }

    fn read_at(&self, id: SegmentId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let segment = self.segment(id, false)?;
        read_fully(buf, |done, rest| segment.file.read_at(rest, offset + done as u64))
    }

    fn read_cached(&self, id: SegmentId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let would_block = || io::Error::from(io::ErrorKind::WouldBlock);
        if !self.reads_nowait.load(Ordering::Relaxed) {
            return Err(would_block());
        }
        // Opening may wait for the device, so only a file already open will do.
        let segment = self.cache.lock().get(id, false).ok_or_else(would_block)?;
        let read = read_fully(buf, |done, rest| sys::pread_nowait(segment.file.as_fd(), rest, offset + done as u64));
        read.map_err(|err| match err.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS) => {
                self.reads_nowait.store(false, Ordering::Relaxed);
                would_block()
            }
            _ => err,
        })
    }

    fn will_need(&self, id: SegmentId, offset: u64, len: u64) {
        if let Ok(segment) = self.segment(id, false) {
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            let _ = posix_fadvise(&segment.file, offset as i64, len as i64, advice);
        }
    }

    fn start_writeback(&self, id: SegmentId, offset: u64, len: u64) {
        if let Ok(segment) = self.segment(id, false) {
            // An error here is reported again by the sync that counts.
            let _ = sys::start_writeback(segment.file.as_fd(), offset, len);
        }
    }

    fn sync_segment(&self, id: SegmentId) -> io::Result<()> {
        let segment = self.segment(id, false).inspect_err(|_| self.cache.lock().set_failed(id))?;
        let _alone = segment.syncing.lock();
        if self.cache.lock().has_failed(id) {
            return Err(failed_before());
        }
        self.note_sync();
        let sync = || {
            // Cleared first: a write that comes during the sync sets it again.
            segment.dirty.store(false, Ordering::Release);
            segment.file.sync_data()?;
            let changes = self.changes();
            self.check_in_place(&segment.file)?;
            self.in_place_at.store(changes.map_or(0, |changes| changes + 1), Ordering::Release);
            Ok(())
        };
        // The kernel reports a lost write once; from then on only this knows.
        sync().inspect_err(|_: &io::Error| self.cache.lock().set_failed(id))
    }

    fn direct(&self, id: SegmentId, offset: u64, len: u64) -> Direct {
        self.offer_direct(id, offset, len)
    }

    fn device(&self) -> Option<u64> {
        Some(self.device)
    }

    fn make_direct(&self, id: SegmentId) -> io::Result<()> {
        self.prepare_direct(id)
    }

    fn end_direct(&self, id: SegmentId, result: io::Result<()>) -> DirectEnd {
        self.judge_direct(id, result)
    }

    fn changes(&self) -> Option<u64> {
        self.watch.lock().changes()
    }

    fn reset_segment(&self, id: SegmentId) -> io::Result<()> {
        let forgotten = self.cache.lock().clear_failed(id);
        drop(forgotten);
        let segment = self.segment(id, false)?;
        // Pages that failed to be written are clean now and would be read back as if they were on the device.
        Ok(posix_fadvise(&segment.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }

    fn finish_segment(&self, id: SegmentId) -> io::Result<()> {
        let segment = self.segment(id, true)?;
        let _stays = self.length(id).write();
        let room = self.cache.lock().take_room(id);
        let written = room.and_then(|room| room.lock().written());
        drop(segment.direct.lock().take());
        // Truncating to the present length, too, frees the blocks beyond it.
        segment.file.set_len(written.map_or_else(|| segment.file.metadata().map(|meta| meta.len()), Ok)?)
    }

    fn punch(&self, id: SegmentId, offset: u64, len: u64) -> io::Result<()> {
        let segment = self.segment(id, true)?;
        let block = segment.file.metadata()?.blksize().max(1);
        let end = offset.saturating_add(len) / block * block;
        let Some(start) = offset.checked_next_multiple_of(block).filter(|start| *start < end) else { return Ok(()) };
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            match fallocate(&segment.file, mode, start as i64, (end - start) as i64) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Err(io::ErrorKind::Unsupported.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn allocated(&self, id: SegmentId) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        // The unit of st_blocks is 512 bytes, whatever the filesystem's block is.
        Ok(self.segment(id, false)?.file.metadata()?.blocks() * 512)
    }

    fn remove_segment(&self, id: SegmentId) -> io::Result<()> {
        let dir = open_dir(&self.dir, &format!("{SEGMENTS}/{:02x}", id.0 as u8))?;
        unlinkat(&dir, segment_file_name(id).as_str(), UnlinkatFlags::NoRemoveDir)?;
        let forgotten = self.cache.lock().remove(id);
        drop(forgotten);
        Ok(())
    }

    fn list_segments(&self) -> io::Result<Vec<(SegmentId, u64)>> {
        let mut found = Vec::new();
        let segments = match open_dir(&self.dir, SEGMENTS) {
            Err(err) => return missing(err).map(|()| found),
            Ok(dir) => dir,
        };
        for low in 0..=u8::MAX {
            let dir = match open_dir(&segments, &format!("{low:02x}")) {
                Err(err) => {
                    missing(err)?;
                    continue;
                }
                Ok(dir) => dir,
            };
            for name in beneath::names(dir.try_clone()?)? {
                let Some(id) = segment_of_name(&name).filter(|id| id.0 as u8 == low) else { continue };
                if let Some(EntryKind::File { len }) = beneath::entry(&dir, &name)? {
                    found.push((id, len));
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        split_name(name)?;
        let file = match open_regular(&self.dir, name, OFlag::O_RDONLY) {
            Err(err) => return missing(err).map(|()| None),
            Ok(file) => file,
        };
        let mut bytes = Vec::new();
        file.take(SMALL_FILE_LEN_MAX as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > SMALL_FILE_LEN_MAX {
            return Err(too_long(name));
        }
        Ok(Some(bytes))
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (dir, base) = split_name(name)?;
        if bytes.len() > SMALL_FILE_LEN_MAX {
            return Err(too_long(name));
        }
        let _one_at_a_time = self.small_files.lock();
        let dir = self.small_dir(dir, true)?;
        let temp = format!(".{base}.tmp");
        // Left by a crash.
        unlinkat(&dir, temp.as_str(), UnlinkatFlags::NoRemoveDir).or_else(|errno| missing(errno.into()))?;
        let renamed = write_new_file(&dir, &temp, bytes)
            .and_then(|()| renameat(&dir, temp.as_str(), &dir, base).map_err(io::Error::from));
        if renamed.is_err() {
            let _ = unlinkat(&dir, temp.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        renamed?;
        sync_dir(&dir)
    }

    fn create_file_exclusive(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (dir, base) = split_name(name)?;
        if bytes.len() > SMALL_FILE_LEN_MAX {
            return Err(too_long(name));
        }
        let dir = self.small_dir(dir, true)?;
        write_new_file(&dir, base, bytes)?;
        sync_dir(&dir)
    }

    fn list_files(&self, dir: &str) -> io::Result<Vec<String>> {
        if !dir.is_empty() {
            split_name(dir)?;
        }
        let fences = dir == FENCE_DIR;
        let dir = match self.small_dir(dir, false) {
            Err(err) => return missing(err).map(|()| Vec::new()),
            Ok(dir) => dir,
        };
        if fences && self.directly.load(Ordering::Relaxed) {
            // Before they are listed, so that whoever compares has seen what there was.
            self.watch.lock().begin(&self.dir);
        }
        let mut names = Vec::new();
        for name in beneath::names(dir.try_clone()?)? {
            if !name.starts_with('.') && matches!(beneath::entry(&dir, &name)?, Some(EntryKind::File { .. })) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn remove_file(&self, name: &str) -> io::Result<()> {
        let (dir, base) = split_name(name)?;
        let dir = self.small_dir(dir, false)?;
        unlinkat(&dir, base, UnlinkatFlags::NoRemoveDir)?;
        sync_dir(&dir)
    }

    fn is_marked(&self) -> bool {
        // By path and not by descriptor: a disk may have been unmounted, or another mounted over it.
        MARKER_NAMES.iter().any(|name| self.path.join(name).is_file())
    }

    fn space(&self) -> io::Result<Space> {
        let stat = nix::sys::statvfs::fstatvfs(&self.dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        Ok(Space {
            total_bytes: bytes(stat.blocks()),
            free_bytes: bytes(stat.blocks_free()),
            available_bytes: bytes(stat.blocks_available()),
            device: self.device,
            fs_type: self.fs_type.clone(),
        })
    }

    fn lock(&self) -> io::Result<()> {
        let mut locked = self.locked.lock();
        if locked.is_some() {
            return Ok(());
        }
        let mut file = File::from(open_dir(&self.dir, ".")?);
        let mut taken = file.try_lock();
        if let Err(TryLockError::Error(err)) = &taken
            && matches!(err.raw_os_error(), Some(libc::EBADF | libc::EINVAL | libc::EISDIR))
        {
            // nfs makes flock a lock of bytes, which wants a file open for writing.
            file = open_regular(&self.dir, "lock", OFlag::O_RDWR | OFlag::O_CREAT)?;
            taken = file.try_lock();
        }
        match taken {
            Ok(()) => *locked = Some(file),
            Err(TryLockError::WouldBlock) => return Err(in_use()),
            Err(TryLockError::Error(err)) => return Err(err),
        }
        Ok(())
    }
}

fn too_long(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{name} is longer than {SMALL_FILE_LEN_MAX} bytes: it is not one of ours"),
    )
}
