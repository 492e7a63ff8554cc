//! Writes to several files at once that are durable when they are done, without a thread for each: io_uring(7), past the
//! page cache, each with RWF_DSYNC or several with one flush of the device that they lie on. Who began them has the
//! processor meanwhile. With `sys` the only unsafe code here.
//!
//! Promises: file and bytes of a write stay until the kernel is done with them, whoever stops waiting before. Knows
//! files and offsets, not members.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};

use super::DeviceFlush;

/// Offsets and lengths of direct writes are multiples of this, and their bytes lie at one, bytes: the page of the cache
/// that they pass by, and a multiple of the logical block of every disk there is.
pub const DIRECT_ALIGN: u64 = 4096;

/// Writes that may be begun together: more than a stripe has slots.
const ENTRIES: u32 = 64;

/// Added to the number of a group in the name of its flush.
const FLUSH: u64 = 1 << 32;

/// Writes that are done wait so long for the others of their device before they are flushed without them.
const STRAGGLER_AFTER: Duration = Duration::from_millis(20);

/// Bytes that lie where direct writes want them.
pub(super) struct Aligned {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Nothing.
    pub(super) const fn new() -> Self {
        Self { buffer: Vec::new(), start: 0, len: 0 }
    }

    /// These parts, one after the other.
    pub(super) fn gather<'a>(parts: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let mut all = Self::new();
        all.fill(parts);
        all
    }

    /// As [`Self::gather`], in the same memory if it is enough.
    pub(super) fn fill<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]> + Clone) {
        self.len = parts.clone().map(<[u8]>::len).sum();
        self.buffer.clear();
        self.buffer.reserve(self.len + DIRECT_ALIGN as usize);
        self.start = self.buffer.as_ptr().align_offset(DIRECT_ALIGN as usize);
        self.buffer.resize(self.start, 0);
        parts.for_each(|part| self.buffer.extend_from_slice(part));
    }

    /// Forget them, and keep no more memory than this, bytes.
    pub(super) fn shrink_to(&mut self, max: usize) {
        (self.start, self.len) = (0, 0);
        self.buffer.clear();
        self.buffer.shrink_to(max);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }
}

/// One write. `G` is held as long as the kernel is at it.
pub(super) struct DirectWrite<G> {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) bytes: Aligned,
    /// With this it is durable when it is done: if another write of the same device is begun with it, one flush is for all.
    pub(super) flush: Option<DeviceFlush>,
    pub(super) _guard: G,
}

/// Where a device is flushed that several writes lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushing {
    /// By the kernel's own threads: who waits can stop waiting.
    Beside,
    /// On the thread that waits, for as long as the device takes: nobody has to be woken for it, and again when it is done.
    Here,
}

/// Writes to one device that are made durable by one flush.
struct Group {
    flush: DeviceFlush,
    /// Writes that are not done.
    writing: usize,
    /// Those that are and wait for a flush, and since when the first of them does.
    written: Vec<usize>,
    since: Option<Instant>,
    /// Those that a flush is under way for.
    flushing: Vec<usize>,
}

impl Group {
    /// When those that were written are flushed without the others.
    fn flushed_at(&self) -> Option<Instant> {
        self.since.filter(|_| self.flushing.is_empty()).map(|since| since + STRAGGLER_AFTER)
    }
}

/// A ring that nothing is in flight on.
pub(super) struct Ring(IoUring);

impl Ring {
    /// Errors: the system has none (before Linux 5.11), forbids it, or has no memory for it.
    pub(super) fn new() -> io::Result<Self> {
        // Completions are noted when their thread is in the kernel anyway, rather than by interrupting it (Linux 5.19).
        let ring = IoUring::builder().setup_coop_taskrun().build(ENTRIES).or_else(|_| IoUring::new(ENTRIES))?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring cannot be waited for with a limit"));
        }
        Ok(Self(ring))
    }

    /// Begin all of these writes, at most [`ENTRIES`].
    pub(super) fn begin<G: Send + 'static>(self, writes: Vec<DirectWrite<G>>, flushing: Flushing) -> InFlight<G> {
        let mut ring = self.0;
        let mut groups = groups(&writes);
        let mut writes: Vec<Option<DirectWrite<G>>> = writes.into_iter().map(Some).collect();
        let mut refused: Vec<usize> = Vec::new();
        let mut usable = true;
        for (index, slot) in writes.iter().enumerate() {
            let Some(write) = slot else { continue };
            let bytes = write.bytes.bytes();
            let through = if group_of(&mut groups, write).is_some() { 0 } else { libc::RWF_DSYNC };
            let entry = opcode::Write::new(types::Fd(write.file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
                .offset(write.offset)
                .rw_flags(through)
                .build()
                .user_data(index as u64);
            // SAFETY: the descriptor stays open and the bytes stay where they are, unchanged, until the entry's
            // completion was seen: both belong to `write`, which `InFlight` lets go of only then (it is moved, which
            // moves neither the file behind its Arc nor the buffer on the heap), and which it leaves to a thread that
            // waits, or leaks, if it is dropped before.
            if unsafe { ring.submission().push(&entry) }.is_err() {
                refused.push(index);
            }
            // One by one: the first is under way while the next is begun.
            while usable && !ring.submission().is_empty() {
                match ring.submit() {
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                    // Whatever the reason: what was not begun is done in another way, and another ring is used next.
                    Err(_) => usable = false,
                    Ok(_) => {}
                }
            }
        }
        if writes.len() - refused.len() == ring.submission().len() {
            // Nobody waits on this ring, which would begin what is left in its queue.
            refused = (0..writes.len()).collect();
        }
        let left = writes.len() - refused.len();
        let (ring, done) = (Some(ring), Vec::new());
        let mut flight = InFlight { left, usable, ring, done, writes: Vec::new(), groups, flushing };
        for index in refused {
            if let Some(group) = writes[index].take().and_then(|write| group_of(&mut flight.groups, &write)) {
                group.writing -= 1;
            }
            flight.done.push((index, Err(io::ErrorKind::WouldBlock.into())));
        }
        flight.writes = writes;
        flight
    }
}

/// The devices that several of these writes lie on.
fn groups<G>(writes: &[DirectWrite<G>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for flush in writes.iter().filter_map(|write| write.flush.as_ref()) {
        match groups.iter_mut().find(|group| group.flush.device == flush.device) {
            Some(group) => group.writing += 1,
            None => groups.push(Group {
                flush: flush.clone(),
                writing: 1,
                written: Vec::new(),
                since: None,
                flushing: Vec::new(),
            }),
        }
    }
    // Alone, a write and its flush are one call.
    groups.retain(|group| group.writing > 1);
    groups
}

fn group_of<'a, G>(groups: &'a mut [Group], write: &DirectWrite<G>) -> Option<&'a mut Group> {
    let device = write.flush.as_ref()?.device;
    groups.iter_mut().find(|group| group.flush.device == device)
}

/// Writes that were begun.
pub(super) struct InFlight<G: Send + 'static> {
    /// Taken when this is dropped.
    ring: Option<IoUring>,
    /// By index; `None` once it is durable or has failed.
    writes: Vec<Option<DirectWrite<G>>>,
    groups: Vec<Group>,
    /// Results not told yet.
    done: Vec<(usize, io::Result<()>)>,
    /// Writes that are neither durable nor have failed.
    left: usize,
    /// The ring may be used again.
    usable: bool,
    flushing: Flushing,
}

impl<G: Send + 'static> InFlight<G> {
    /// The next write that is durable or has failed, with how it ended; `None` if all were told, or none is before the
    /// deadline; a flush on this thread is waited for beyond it. A write of which a part was written is an error of kind
    /// `WriteZero`.
    pub(super) fn next(&mut self, deadline: Option<Instant>) -> Option<(usize, io::Result<()>)> {
        loop {
            self.reap();
            self.flush();
            if let Some(told) = self.done.pop() {
                return Some(told);
            }
            if self.left == 0 {
                return None;
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return None;
            }
            let straggler = self.groups.iter().filter_map(Group::flushed_at).min();
            let until = [deadline, straggler].into_iter().flatten().min();
            let submitter = self.ring.as_ref()?.submitter();
            let waited = match until.map(|until| until.saturating_duration_since(now)) {
                None => submitter.submit_and_wait(1),
                Some(time) => {
                    let time = types::Timespec::from(time);
                    submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
                }
            };
            match waited {
                Ok(_) => {}
                Err(err) if matches!(err.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EBUSY)) => {}
                // It cannot be waited on: whoever comes next gets another ring.
                Err(_) => {
                    self.usable = false;
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    fn reap(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let ended: Vec<(u64, i32)> = ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (name, code) in ended {
            if let Some(group) = name.checked_sub(FLUSH) {
                let Some(group) = self.groups.get_mut(group as usize) else { continue };
                for index in std::mem::take(&mut group.flushing) {
                    self.end(index, if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(()) });
                }
                continue;
            }
            let index = name as usize;
            let Some(write) = self.writes.get(index).and_then(Option::as_ref) else { continue };
            let result = match code {
                code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                written if written as usize == write.bytes.len => Ok(()),
                _ => Err(io::ErrorKind::WriteZero.into()),
            };
            if let Some(group) = group_of(&mut self.groups, write) {
                group.writing -= 1;
                if result.is_ok() {
                    group.written.push(index);
                    group.since.get_or_insert_with(Instant::now);
                    continue;
                }
            }
            self.end(index, result);
        }
    }

    fn end(&mut self, index: usize, result: io::Result<()>) {
        if self.writes[index].take().is_some() {
            self.left -= 1;
            self.done.push((index, result));
        }
    }

    /// Begin the flushes whose writes are done; the next wait submits them. A flush covers the writes that were done before
    /// it began, so of one device only one goes on at a time.
    fn flush(&mut self) {
        if self.flushing == Flushing::Here {
            self.flush_here();
        }
        let Some(ring) = &mut self.ring else { return };
        for (number, group) in self.groups.iter_mut().enumerate() {
            let due = group.writing == 0 || group.flushed_at().is_some_and(|at| at <= Instant::now());
            if !due || group.written.is_empty() || !group.flushing.is_empty() {
                continue;
            }
            let entry = opcode::Fsync::new(types::Fd(group.flush.file.as_raw_fd()))
                .flags(types::FsyncFlags::DATASYNC)
                .build()
                .user_data(FLUSH + number as u64);
            // SAFETY: no memory is passed, and the descriptor stays open until the flush ended: the group holds it, and
            // this lives until nothing is left in flight (see `begin`).
            if unsafe { ring.submission().push(&entry) }.is_ok() {
                group.flushing = std::mem::take(&mut group.written);
                group.since = None;
            }
        }
    }

    /// Flush what is written whole. Where a write hangs the kernel flushes the others ([`Self::flush`]).
    fn flush_here(&mut self) {
        for number in 0..self.groups.len() {
            let group = &mut self.groups[number];
            if group.writing > 0 || group.written.is_empty() || !group.flushing.is_empty() {
                continue;
            }
            let flushed = group.flush.file.sync_data().map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
            group.since = None;
            for index in std::mem::take(&mut group.written) {
                self.end(index, flushed.map_err(io::Error::from_raw_os_error));
            }
        }
    }

    /// The ring, if nothing is in flight on it any more.
    pub(super) fn into_ring(mut self) -> Option<Ring> {
        if self.left > 0 || !self.usable { None } else { self.ring.take().map(Ring) }
    }
}

impl<G: Send + 'static> Drop for InFlight<G> {
    fn drop(&mut self) {
        let Some(ring) = self.ring.take().filter(|_| self.left > 0) else { return };
        let (writes, groups) = (std::mem::take(&mut self.writes), std::mem::take(&mut self.groups));
        // Leaked unless the thread takes it: what the kernel reads from must not be given back.
        let rest: &'static mut Option<Self> = Box::leak(Box::new(Some(Self {
            ring: Some(ring),
            writes,
            groups,
            done: Vec::new(),
            left: self.left,
            usable: false,
            flushing: self.flushing,
        })));
        let _ = thread::Builder::new().name("brine-late".into()).spawn(move || {
            if let Some(rest) = rest {
                while rest.left > 0 {
                    rest.next(None);
                }
            }
            *rest = None;
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::backing::dir::tests::TempDir;

    /// Counts the writes that the kernel is done with.
    struct Guard(Arc<AtomicUsize>);

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn write(file: &Arc<File>, offset: u64, byte: u8, done: &Arc<AtomicUsize>) -> DirectWrite<Guard> {
        let bytes = Aligned::gather([[byte; 4000].as_slice(), &[byte; 96]].into_iter());
        assert!((bytes.bytes().as_ptr() as usize).is_multiple_of(DIRECT_ALIGN as usize));
        DirectWrite { file: file.clone(), offset, bytes, flush: None, _guard: Guard(done.clone()) }
    }

    fn wait_for(done: &AtomicUsize, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while done.load(Ordering::SeqCst) < count {
            assert!(Instant::now() < deadline, "{} writes are done", done.load(Ordering::SeqCst));
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn writes_are_told_one_by_one_and_the_ring_is_used_again() {
        let temp = TempDir::new();
        let files: Vec<Arc<File>> =
            (0..3).map(|n| Arc::new(File::create_new(temp.path().join(n.to_string())).unwrap())).collect();
        let read_only = Arc::new(File::open(temp.path().join("0")).unwrap());
        let full = Arc::new(File::options().write(true).open("/dev/full").unwrap());
        let done = Arc::new(AtomicUsize::new(0));
        let mut ring = Ring::new().unwrap();
        for round in 1..=10_u64 {
            let offset = round * 8192;
            let mut writes: Vec<_> = files.iter().map(|file| write(file, offset, round as u8, &done)).collect();
            writes.push(write(&read_only, offset, 99, &done));
            writes.push(write(&full, offset, 99, &done));
            let mut flight = ring.begin(writes, Flushing::Beside);
            let mut results: Vec<(usize, Option<i32>)> = Vec::new();
            while let Some((index, result)) = flight.next(Some(Instant::now() + Duration::from_secs(20))) {
                results.push((index, result.err().map(|err| err.raw_os_error().unwrap())));
            }
            results.sort_unstable();
            let (refused, no_room) = (Some(libc::EBADF), Some(libc::ENOSPC));
            assert_eq!(results, [(0, None), (1, None), (2, None), (3, refused), (4, no_room)]);
            assert_eq!(done.load(Ordering::SeqCst), round as usize * 5);
            ring = flight.into_ring().unwrap();
            for file in &files {
                let name = files.iter().position(|other| Arc::ptr_eq(other, file)).unwrap().to_string();
                let mut bytes = [0; 4096];
                File::open(temp.path().join(name)).unwrap().read_exact_at(&mut bytes, offset).unwrap();
                assert_eq!(bytes, [round as u8; 4096]);
            }
        }
    }

    /// Several of one device; `synced` is synced for them.
    fn together(mut writes: Vec<DirectWrite<Guard>>, synced: File) -> Vec<DirectWrite<Guard>> {
        let synced = Arc::new(synced);
        for write in &mut writes {
            write.flush = Some(DeviceFlush { device: 1, file: synced.clone() });
        }
        writes
    }

    fn results(flight: &mut InFlight<Guard>, patience: Duration) -> Vec<(usize, Option<i32>)> {
        let mut results = Vec::new();
        while let Some((index, result)) = flight.next(Some(Instant::now() + patience)) {
            results.push((index, result.err().map(|err| err.raw_os_error().unwrap())));
        }
        results.sort_unstable();
        results
    }

    #[test]
    fn writes_of_one_device_are_durable_by_one_flush_and_fail_with_it() {
        one_flush(Flushing::Beside);
        one_flush(Flushing::Here);
    }

    fn one_flush(flushing: Flushing) {
        let temp = TempDir::new();
        let file = |name: &str| Arc::new(File::create_new(temp.path().join(name)).unwrap());
        let (a, b) = (file("a"), file("b"));
        let read_only = Arc::new(File::open(temp.path().join("a")).unwrap());
        let done = Arc::new(AtomicUsize::new(0));
        let writes = || vec![write(&a, 0, 1, &done), write(&read_only, 0, 9, &done), write(&b, 0, 2, &done)];
        let mut flight =
            Ring::new().unwrap().begin(together(writes(), File::open(temp.path().join("a")).unwrap()), flushing);
        let refused = Some(libc::EBADF);
        assert_eq!(results(&mut flight, Duration::from_secs(20)), [(0, None), (1, refused), (2, None)]);
        assert_eq!(done.load(Ordering::SeqCst), 3);
        // What cannot be synced: a pipe.
        let pipe = || File::from(OwnedFd::from(std::io::pipe().unwrap().0));
        let ring = flight.into_ring().unwrap();
        let mut flight = ring.begin(together(writes(), pipe()), flushing);
        let failed = Some(libc::EINVAL);
        assert_eq!(results(&mut flight, Duration::from_secs(20)), [(0, failed), (1, refused), (2, failed)]);
        // Alone, a write is flushed by itself.
        let ring = flight.into_ring().unwrap();
        let mut flight = ring.begin(together(vec![write(&a, 4096, 3, &done)], pipe()), flushing);
        assert_eq!(results(&mut flight, Duration::from_secs(20)), [(0, None)]);
        assert!(flight.into_ring().is_some());
    }

    #[test]
    fn a_write_that_hangs_does_not_keep_the_others_of_its_device_from_being_flushed() {
        one_hangs(Flushing::Beside);
        one_hangs(Flushing::Here);
    }

    fn one_hangs(flushing: Flushing) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let pipe = Arc::new(File::from(OwnedFd::from(writer)));
        let temp = TempDir::new();
        let file = Arc::new(File::create_new(temp.path().join("file")).unwrap());
        let done = Arc::new(AtomicUsize::new(0));
        // Of a pipe that is full.
        let size = nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap() as usize;
        std::io::Write::write_all(&mut &*pipe, &vec![0; size]).unwrap();
        let writes = vec![write(&file, 0, 1, &done), write(&pipe, 0, 2, &done), write(&file, 4096, 3, &done)];
        let mut flight =
            Ring::new().unwrap().begin(together(writes, File::open(temp.path().join("file")).unwrap()), flushing);
        assert_eq!(results(&mut flight, Duration::from_secs(2)), [(0, None), (2, None)]);
        // It is flushed, too, once it is done.
        reader.read_exact(&mut vec![0; size]).unwrap();
        assert_eq!(results(&mut flight, Duration::from_secs(20)), [(1, None)]);
        assert!(flight.into_ring().is_some());
    }

    #[test]
    fn what_hangs_is_let_go_of_when_the_kernel_is_done_with_it() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let pipe = Arc::new(File::from(OwnedFd::from(writer)));
        let temp = TempDir::new();
        let file = Arc::new(File::create_new(temp.path().join("file")).unwrap());
        let done = Arc::new(AtomicUsize::new(0));
        // More than a pipe takes: the last ones wait for a reader.
        const COUNT: usize = 20;
        let mut writes: Vec<_> = (0..COUNT).map(|_| write(&pipe, 0, 7, &done)).collect();
        writes.push(write(&file, 0, 8, &done));
        let mut flight = Ring::new().unwrap().begin(writes, Flushing::Beside);
        let mut told = 0;
        while flight.next(Some(Instant::now() + Duration::from_millis(300))).is_some() {
            told += 1;
        }
        assert!((1..=COUNT).contains(&told), "{told}");
        assert_eq!(done.load(Ordering::SeqCst), told);
        // Whoever waited does so no longer; what hangs keeps its bytes.
        assert!(flight.into_ring().is_none());
        assert_eq!(done.load(Ordering::SeqCst), told);
        drop(pipe);
        let mut bytes = vec![0; COUNT * 4096];
        reader.read_exact(&mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
        wait_for(&done, COUNT + 1);
    }
}
