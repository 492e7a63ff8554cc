//! Everything that a session writes and syncs, and what it answers, in the order in which it happened.
//!
//! Each event is entered and done under one lock, so the order in the journal is the order on the media. What was cut
//! off, torn or reordered is decided when the journal is replayed, not here.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use brine_store::backing::{Backing, Direct, DirectEnd, MemBacking, Space};
use brine_store::ids::SegmentId;
use parking_lot::Mutex;

use crate::database::FileCall;

/// A call that changes a backing directory.
#[derive(Clone, Debug)]
pub enum DiskCall {
    /// A segment's file is made.
    Create(SegmentId, u64),
    /// Bytes are written at an offset.
    Write(SegmentId, u64, Arc<[u8]>),
    /// A segment's file is synced.
    Sync(SegmentId),
    /// A failed sync is forgotten.
    Reset(SegmentId),
    /// A range becomes a hole.
    Punch(SegmentId, u64, u64),
    /// A segment's file is removed.
    Remove(SegmentId),
    /// A small file is replaced.
    WriteFile(String, Arc<[u8]>),
    /// A small file is made.
    CreateFile(String, Arc<[u8]>),
    /// A small file is removed.
    RemoveFile(String),
}

impl DiskCall {
    /// Do it to a directory. What it answers was dealt with when it was recorded.
    pub fn apply(&self, disk: &MemBacking) {
        let _ = match self {
            Self::Create(id, capacity) => disk.create_segment(*id, *capacity),
            Self::Write(id, offset, bytes) => disk.write_at(*id, *offset, &[IoSlice::new(bytes)]),
            Self::Sync(id) => disk.sync_segment(*id),
            Self::Reset(id) => disk.reset_segment(*id),
            Self::Punch(id, offset, len) => disk.punch(*id, *offset, *len),
            Self::Remove(id) => disk.remove_segment(*id),
            Self::WriteFile(name, bytes) => disk.write_file(name, bytes),
            Self::CreateFile(name, bytes) => disk.create_file_exclusive(name, bytes),
            Self::RemoveFile(name) => disk.remove_file(name),
        };
    }

    /// True if it makes something durable: the moments before and after are worth a cut.
    pub fn is_boundary(&self) -> bool {
        matches!(self, Self::Sync(_) | Self::WriteFile(..) | Self::CreateFile(..))
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// To a backing directory, by number.
    Disk(usize, DiskCall),
    /// To a file of the local database.
    Database(FileCall),
    /// The operation of this number was begun: it may be seen after a crash.
    Begun(usize),
    /// The first so many operations were said durable: they must be seen after a crash.
    Acknowledged(usize),
}

/// The events of a session.
#[derive(Default)]
pub struct Journal {
    events: Mutex<Option<Vec<Event>>>,
    /// Records written directly.
    direct_writes: AtomicUsize,
}

impl Journal {
    /// An empty one, open for entries.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { events: Mutex::new(Some(Vec::new())), direct_writes: AtomicUsize::new(0) })
    }

    /// Enter an event and let it happen.
    pub fn record<R>(&self, event: Event, happen: impl FnOnce() -> R) -> R {
        let mut events = self.events.lock();
        if let Some(events) = &mut *events {
            events.push(event);
        }
        happen()
    }

    /// Enter what needs nothing done.
    pub fn note(&self, event: Event) {
        self.record(event, || ());
    }

    /// Records that were written directly until now.
    pub fn direct_writes(&self) -> usize {
        self.direct_writes.load(Ordering::Relaxed)
    }

    /// What happened until now; what follows is not entered any more.
    pub fn close(&self) -> Vec<Event> {
        self.events.lock().take().unwrap_or_default()
    }
}

/// A directory in memory whose changes are entered into a journal.
///
/// Records may be written directly, too, through a file of their own: what the kernel wrote there is entered as a write and
/// a sync when it is done, and until then nobody knows of it.
pub struct Recorded {
    disk: MemBacking,
    number: usize,
    journal: Arc<Journal>,
    directly: Option<Arc<File>>,
    /// What is being written directly: segment, offset and length in bytes.
    in_flight: Mutex<Option<(SegmentId, u64, usize)>>,
}

impl Recorded {
    /// The directory of this number; with `directly` records may be written directly, through that file.
    pub fn new(disk: MemBacking, number: usize, journal: Arc<Journal>, directly: Option<File>) -> Self {
        Self { disk, number, journal, directly: directly.map(Arc::new), in_flight: Mutex::default() }
    }

    fn wrote_directly(&self) -> io::Result<()> {
        let (Some(file), Some((id, offset, len))) = (&self.directly, self.in_flight.lock().take()) else {
            return Err(io::Error::other("nothing was written directly"));
        };
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset)?;
        self.journal.direct_writes.fetch_add(1, Ordering::Relaxed);
        self.write_at(id, offset, &[IoSlice::new(&bytes)])?;
        self.sync_segment(id)
    }

    fn record(&self, call: DiskCall, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.journal.record(Event::Disk(self.number, call), act)
    }
}

impl Backing for Recorded {
    fn describe(&self) -> PathBuf {
        self.disk.describe()
    }

    fn create_segment(&self, id: SegmentId, capacity: u64) -> io::Result<()> {
        self.record(DiskCall::Create(id, capacity), || self.disk.create_segment(id, capacity))
    }

    fn write_at(&self, id: SegmentId, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.record(DiskCall::Write(id, offset, bytes.into()), || self.disk.write_at(id, offset, bufs))
    }

    fn read_at(&self, id: SegmentId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.disk.read_at(id, offset, buf)
    }

    fn read_cached(&self, id: SegmentId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.disk.read_cached(id, offset, buf)
    }

    fn will_need(&self, id: SegmentId, offset: u64, len: u64) {
        self.disk.will_need(id, offset, len);
    }

    fn start_writeback(&self, id: SegmentId, offset: u64, len: u64) {
        self.disk.start_writeback(id, offset, len);
    }

    fn sync_segment(&self, id: SegmentId) -> io::Result<()> {
        self.record(DiskCall::Sync(id), || self.disk.sync_segment(id))
    }

    fn direct(&self, id: SegmentId, offset: u64, len: u64) -> Direct {
        let Some(file) = self.directly.clone() else { return Direct::Never };
        *self.in_flight.lock() = Some((id, offset, len as usize));
        Direct::Ready { file, flush: None, scarce: false }
    }

    fn end_direct(&self, _id: SegmentId, result: io::Result<()>) -> DirectEnd {
        result.and_then(|()| self.wrote_directly()).map_or_else(DirectEnd::Failed, |()| DirectEnd::Done)
    }

    fn reset_segment(&self, id: SegmentId) -> io::Result<()> {
        self.record(DiskCall::Reset(id), || self.disk.reset_segment(id))
    }

    fn finish_segment(&self, id: SegmentId) -> io::Result<()> {
        self.disk.finish_segment(id)
    }

    fn punch(&self, id: SegmentId, offset: u64, len: u64) -> io::Result<()> {
        self.record(DiskCall::Punch(id, offset, len), || self.disk.punch(id, offset, len))
    }

    fn remove_segment(&self, id: SegmentId) -> io::Result<()> {
        self.record(DiskCall::Remove(id), || self.disk.remove_segment(id))
    }

    fn allocated(&self, id: SegmentId) -> io::Result<u64> {
        self.disk.allocated(id)
    }

    fn list_segments(&self) -> io::Result<Vec<(SegmentId, u64)>> {
        self.disk.list_segments()
    }

    fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.disk.read_file(name)
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.record(DiskCall::WriteFile(name.into(), bytes.into()), || self.disk.write_file(name, bytes))
    }

    fn create_file_exclusive(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let call = DiskCall::CreateFile(name.into(), bytes.into());
        self.record(call, || self.disk.create_file_exclusive(name, bytes))
    }

    fn list_files(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list_files(dir)
    }

    fn remove_file(&self, name: &str) -> io::Result<()> {
        self.record(DiskCall::RemoveFile(name.into()), || self.disk.remove_file(name))
    }

    fn is_marked(&self) -> bool {
        self.disk.is_marked()
    }

    fn space(&self) -> io::Result<Space> {
        self.disk.space()
    }

    fn lock(&self) -> io::Result<()> {
        self.disk.lock()
    }
}
