//! Writes to several files at once that are durable when they are done, without a thread for each: io_uring(7), past the
//! page cache and with RWF_DSYNC. Who began them has the processor meanwhile. With `sys` the only unsafe code here.
//!
//! Promises: file and bytes of a write stay until the kernel is done with them, whoever stops waiting before. Knows
//! files and offsets, not members.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use io_uring::{IoUring, opcode, types};

/// Offsets and lengths of direct writes are multiples of this, and their bytes lie at one, bytes: the page of the cache
/// that they pass by, and a multiple of the logical block of every disk there is.
pub const DIRECT_ALIGN: u64 = 4096;

/// Writes that may be begun together: more than a stripe has slots.
const ENTRIES: u32 = 64;

/// Bytes that lie where direct writes want them.
pub(super) struct Aligned {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// These parts, one after the other.
    pub(super) fn gather<'a>(parts: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let len = parts.clone().map(<[u8]>::len).sum();
        let mut buffer: Vec<u8> = Vec::with_capacity(len + DIRECT_ALIGN as usize);
        let start = buffer.as_ptr().align_offset(DIRECT_ALIGN as usize);
        buffer.resize(start, 0);
        parts.for_each(|part| buffer.extend_from_slice(part));
        Self { buffer, start, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }
}

/// One write. `G` is held as long as the kernel is at it.
pub(super) struct DirectWrite<G> {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) bytes: Aligned,
    pub(super) _guard: G,
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
    pub(super) fn begin<G: Send + 'static>(self, writes: Vec<DirectWrite<G>>) -> InFlight<G> {
        let mut ring = self.0;
        let mut writes: Vec<Option<DirectWrite<G>>> = writes.into_iter().map(Some).collect();
        let mut refused: Vec<usize> = Vec::new();
        for (index, slot) in writes.iter().enumerate() {
            let Some(write) = slot else { continue };
            let bytes = write.bytes.bytes();
            let entry = opcode::Write::new(types::Fd(write.file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
                .offset(write.offset)
                .rw_flags(libc::RWF_DSYNC)
                .build()
                .user_data(index as u64);
            // SAFETY: the descriptor stays open and the bytes stay where they are, unchanged, until the entry's
            // completion was seen: both belong to `write`, which `InFlight` lets go of only then (it is moved, which
            // moves neither the file behind its Arc nor the buffer on the heap), and which it leaves to a thread that
            // waits, or leaks, if it is dropped before.
            if unsafe { ring.submission().push(&entry) }.is_err() {
                refused.push(index);
            }
        }
        let mut usable = true;
        while usable && !ring.submission().is_empty() {
            match ring.submit() {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                // Whatever the reason: what was not begun is done in another way, and another ring is used next.
                Err(_) => usable = false,
                Ok(_) => {}
            }
        }
        let pushed = writes.len() - refused.len();
        let begun = pushed - ring.submission().len();
        if begun == 0 {
            // Nobody waits on this ring, which would begin what is left in its queue.
            refused = (0..writes.len()).collect();
        }
        let left = if begun == 0 { 0 } else { pushed };
        let mut flight = InFlight { left, usable, ring: Some(ring), done: Vec::new(), writes: Vec::new() };
        for index in refused {
            writes[index] = None;
            flight.done.push((index, Err(io::ErrorKind::WouldBlock.into())));
        }
        flight.writes = writes;
        flight
    }
}

/// Writes that were begun.
pub(super) struct InFlight<G: Send + 'static> {
    /// Taken when this is dropped.
    ring: Option<IoUring>,
    /// By index; `None` once it is done.
    writes: Vec<Option<DirectWrite<G>>>,
    /// Results not told yet.
    done: Vec<(usize, io::Result<()>)>,
    /// Writes that the kernel is at.
    left: usize,
    /// The ring may be used again.
    usable: bool,
}

impl<G: Send + 'static> InFlight<G> {
    /// The next write that is done, with how it ended; `None` if all were told, or none is before the deadline. A write
    /// of which a part was written is an error of kind `WriteZero`.
    pub(super) fn next(&mut self, deadline: Option<Instant>) -> Option<(usize, io::Result<()>)> {
        loop {
            self.reap();
            if let Some(told) = self.done.pop() {
                return Some(told);
            }
            let ring = self.ring.as_ref().filter(|_| self.left > 0)?;
            let waited = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => ring.submitter().submit_and_wait(1),
                Some(time) if time.is_zero() => return None,
                Some(time) => {
                    let time = types::Timespec::from(time);
                    ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
                }
            };
            match waited {
                Ok(_) => {}
                Err(err) if matches!(err.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EBUSY)) => {}
                // It cannot be waited on: whoever comes next gets another ring.
                Err(_) => {
                    self.usable = false;
                    thread::sleep(std::time::Duration::from_millis(1));
                }
            }
        }
    }

    fn reap(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        for entry in ring.completion() {
            let index = entry.user_data() as usize;
            let Some(write) = self.writes.get_mut(index).and_then(Option::take) else { continue };
            let result = match entry.result() {
                code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                written if written as usize == write.bytes.len => Ok(()),
                _ => Err(io::ErrorKind::WriteZero.into()),
            };
            self.left -= 1;
            self.done.push((index, result));
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
        let writes = std::mem::take(&mut self.writes);
        // Leaked unless the thread takes it: what the kernel reads from must not be given back.
        let rest: &'static mut Option<Self> = Box::leak(Box::new(Some(Self {
            ring: Some(ring),
            writes,
            done: Vec::new(),
            left: self.left,
            usable: false,
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
        DirectWrite { file: file.clone(), offset, bytes, _guard: Guard(done.clone()) }
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
            let mut flight = ring.begin(writes);
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
        let mut flight = Ring::new().unwrap().begin(writes);
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
