//! The backing set: all members of a volume, in superblock order, and what is done on several at once.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::Backing;
use super::member::{CallKind, Member};
use super::pool::Queue;
use super::read::{self, ReadOutcome, ReadPlan, ShardRead};
use super::ring::Ring;
use crate::ids::{MemberId, SegmentId};

/// All members of a volume with their health.
pub struct BackingSet {
    members: Vec<Arc<Member>>,
    /// Rings that nothing is in flight on.
    pub(super) rings: Mutex<Vec<Ring>>,
    /// This system has none.
    pub(super) no_ring: AtomicBool,
}

/// Outcome of the sync of one segment file.
pub type SyncResult = (MemberId, SegmentId, io::Result<()>);

/// Bytes shared, not copied: they go to another thread, and the caller may need them again if a member fails.
#[derive(Clone, Debug)]
pub struct SharedBytes {
    buffer: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl SharedBytes {
    /// A part of a buffer.
    pub fn part(buffer: &Arc<Vec<u8>>, range: Range<usize>) -> Self {
        debug_assert!(range.end <= buffer.len());
        Self { buffer: buffer.clone(), range }
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), buffer: Arc::new(bytes) }
    }
}

impl std::ops::Deref for SharedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// One record to write.
#[derive(Clone, Debug)]
pub struct ShardWrite {
    /// Where to.
    pub member: MemberId,
    /// Which segment.
    pub segment: SegmentId,
    /// Offset in the segment's file, bytes.
    pub offset: u64,
    /// What to write, one after the other.
    pub bufs: Vec<SharedBytes>,
}

/// How long calls on several members are waited for.
pub struct Wait<'w> {
    /// So long all of them are.
    pub patience: Duration,
    /// After that only until what succeeded is enough to go on without the others: which calls did so far.
    pub enough: &'w (dyn Fn(&[bool]) -> bool + Sync),
    /// In the end nobody is. A disk that is merely busy must not look like one that is gone, where there are too few
    /// others to do without it.
    pub limit: Duration,
}

impl Wait<'_> {
    /// All are waited for, for so long.
    pub fn all(patience: Duration) -> Wait<'static> {
        Wait { patience, enough: &|_| true, limit: patience }
    }

    /// Collect what `next` tells, by index, of `count` calls that began then: until all have ended, or nobody is waited for
    /// any more. `next` gives `None` if none ends before a moment; `good`: as far as enough is concerned, this one succeeded.
    pub(super) fn collect<T>(
        &self,
        begun: Instant,
        count: usize,
        mut next: impl FnMut(Instant) -> Option<(usize, T)>,
        good: impl Fn(&T) -> bool,
    ) -> Vec<Option<T>> {
        let mut ended: Vec<Option<T>> = (0..count).map(|_| None).collect();
        let mut succeeded = vec![false; count];
        let mut left = count;
        while left > 0 {
            let late = begun.elapsed() >= self.patience;
            if late && (self.enough)(&succeeded) {
                break;
            }
            match next(begun + if late { self.limit } else { self.patience }) {
                Some((index, end)) => {
                    succeeded[index] = good(&end);
                    ended[index] = Some(end);
                    left -= 1;
                }
                None if late => break,
                None => {}
            }
        }
        ended
    }
}

impl BackingSet {
    /// Members in superblock order.
    pub fn new(members: Vec<Member>) -> Self {
        let members = members.into_iter().map(Arc::new).collect();
        Self { members, rings: Mutex::default(), no_ring: AtomicBool::new(false) }
    }

    /// All members, in superblock order.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// A member by its id.
    pub fn get(&self, id: &MemberId) -> Option<&Arc<Member>> {
        // A handful of members: looking is faster than hashing.
        self.members.iter().find(|member| member.id == *id)
    }

    /// Members that may be written now.
    pub fn healthy(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.iter().filter(|member| member.is_healthy())
    }

    /// [`Member::mark_failed`] by id; `false` if there is no such member.
    pub fn mark_failed(&self, id: &MemberId, reason: impl Into<String>) -> bool {
        self.get(id).map(|member| member.mark_failed(reason)).is_some()
    }

    /// [`Member::mark_missing`] by id; `false` if there is no such member.
    pub fn mark_missing(&self, id: &MemberId, reason: impl Into<String>) -> bool {
        self.get(id).map(|member| member.mark_missing(reason)).is_some()
    }

    /// [`Member::restore`] by id; `false` if there is no such member or it has no directory.
    pub fn restore(&self, id: &MemberId, backing: Option<Arc<dyn Backing>>) -> bool {
        self.get(id).is_some_and(|member| member.restore(backing))
    }

    /// Read shards until `plan.need` of them are accepted: starts the first `plan.first` of `wants`, and one more
    /// whenever one is missing, fails, is not accepted, or is late. Sick members are asked last. Returns as soon as
    /// there are enough, or when nothing is left to ask.
    ///
    /// What is in memory is read on the calling thread, which never waits for a device: all else is read on the
    /// members' threads.
    pub fn read_shards(&self, wants: &[ShardRead], plan: ReadPlan<'_>) -> ReadOutcome {
        read::read_shards(self, wants, &plan)
    }

    /// Write a record on the calling thread, which waits as long as the directory takes. Meant for the page cache of
    /// a healthy directory; refused when the member is not healthy.
    pub fn write_record(
        &self,
        member: &MemberId,
        segment: SegmentId,
        offset: u64,
        bufs: &[IoSlice<'_>],
    ) -> io::Result<()> {
        write(self.known(member)?, segment, offset, bufs)
    }

    /// Write records in parallel on the members' threads. One that takes longer than is waited for is `TimedOut`, and
    /// its member sick; it may still be written later. `synced_next`: the files are about to be synced. The results are in
    /// the order of `writes`.
    pub fn write_shards(&self, writes: &[ShardWrite], synced_next: bool, wait: &Wait<'_>) -> Vec<io::Result<()>> {
        let queue = if synced_next { Queue::CommitStep } else { Queue::Commit };
        let calls = writes.iter().map(|one| {
            let one = one.clone();
            (one.member, move |member: &Arc<Member>| write_record(member, &one))
        });
        self.begin_all(queue, calls).wait(wait)
    }

    /// Make the file of a new segment with its header in each of these members, durably, in parallel on their threads.
    pub fn create_segments(
        &self,
        headers: Vec<(MemberId, Vec<u8>)>,
        segment: SegmentId,
        capacity: u64,
        wait: &Wait<'_>,
    ) -> Vec<io::Result<()>> {
        let calls = headers.into_iter().map(|(id, header)| {
            (id, move |member: &Arc<Member>| {
                let backing = member.writable()?;
                // It syncs the directory.
                let running = member.begin(CallKind::Sync);
                let created = backing.create_segment(segment, capacity);
                drop(running);
                created?;
                write(member, segment, 0, &[IoSlice::new(&header)])?;
                sync(member, segment)
            })
        });
        self.run_all(calls, wait)
    }

    /// Replace a small file in each of these members, durably, in parallel on their threads.
    pub fn write_files(
        &self,
        files: Vec<(MemberId, Vec<u8>)>,
        name: &'static str,
        wait: &Wait<'_>,
    ) -> Vec<io::Result<()>> {
        let calls = files.into_iter().map(|(id, bytes)| {
            (id, move |member: &Arc<Member>| {
                let backing = member.writable()?;
                let _running = member.begin(CallKind::Sync);
                backing.write_file(name, &bytes)
            })
        });
        self.run_all(calls, wait)
    }

    /// Sync segment files in parallel. One that takes longer than is waited for is `TimedOut`, and its member sick. A
    /// member that is not healthy is not asked. The results are in the order of `files`.
    pub fn sync_all(&self, files: &[(MemberId, SegmentId)], wait: &Wait<'_>) -> Vec<SyncResult> {
        self.begin_syncs(files).wait(wait)
    }

    /// As [`Self::sync_all`], in two steps: there is something to do meanwhile.
    pub fn begin_syncs(&self, files: &[(MemberId, SegmentId)]) -> Syncs {
        let calls = files.iter().map(|&(id, segment)| (id, move |member: &Arc<Member>| sync(member, segment)));
        Syncs { files: files.to_vec(), calls: self.begin_all(Queue::CommitStep, calls) }
    }

    fn known(&self, id: &MemberId) -> io::Result<&Arc<Member>> {
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("{id} is not a member of this volume"));
        self.get(id).ok_or_else(unknown)
    }

    /// Run a call on each member's threads and collect the results, in order, as long as `wait` says.
    fn run_all<F>(&self, calls: impl Iterator<Item = (MemberId, F)>, wait: &Wait<'_>) -> Vec<io::Result<()>>
    where
        F: FnOnce(&Arc<Member>) -> io::Result<()> + Send + 'static,
    {
        self.begin_all(Queue::Commit, calls).wait(wait)
    }

    /// Begin a call on each member's threads.
    pub(super) fn begin_all<F>(&self, queue: Queue, calls: impl Iterator<Item = (MemberId, F)>) -> Calls
    where
        F: FnOnce(&Arc<Member>) -> io::Result<()> + Send + 'static,
    {
        let begun = Instant::now();
        let given_up = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = unbounded();
        let mut asked = Vec::new();
        for (index, (id, call)) in calls.enumerate() {
            let member = self.known(&id).cloned();
            if let Err(err) = member.as_ref().map_err(clone_error).and_then(|member| member.writable().map(drop)) {
                let _ = sender.send((index, Err(err)));
                asked.push(None);
                continue;
            }
            let member = member.ok();
            if let Some(member) = &member {
                let mut reply = Reply { index, sender: sender.clone(), sent: false };
                let (target, given_up) = (member.clone(), given_up.clone());
                // A refused job drops its reply, which then says so.
                let _ = member.submit_in(queue, move || {
                    // What nobody waits for any more is not begun: a commit has treated it as failed.
                    if !given_up.load(Ordering::Acquire) {
                        let result = call(&target);
                        // Whoever is told may be about to close the volume, and to open it again.
                        drop(target);
                        reply.send(result);
                    }
                });
            }
            asked.push(member);
        }
        Calls { begun, given_up, receiver, asked }
    }
}

/// Calls that run on members' threads.
pub(super) struct Calls {
    begun: Instant,
    given_up: Arc<AtomicBool>,
    receiver: Receiver<(usize, io::Result<()>)>,
    /// Who was asked; `None`: nobody, the result says why.
    asked: Vec<Option<Arc<Member>>>,
}

impl Calls {
    /// Collect the results, in order.
    pub(super) fn wait(self, wait: &Wait<'_>) -> Vec<io::Result<()>> {
        let Self { begun, given_up, receiver, asked } = self;
        let next = |until| receiver.recv_deadline(until).ok();
        let results = wait.collect(begun, asked.len(), next, |result: &io::Result<()>| result.is_ok());
        given_up.store(true, Ordering::Release);
        let waited = |(result, member): (Option<io::Result<()>>, Option<Arc<Member>>)| {
            result.unwrap_or_else(|| Err(given_up_on(member.as_ref(), begun)))
        };
        results.into_iter().zip(asked).map(waited).collect()
    }
}

/// Syncs that run on members' threads.
pub struct Syncs {
    files: Vec<(MemberId, SegmentId)>,
    calls: Calls,
}

impl std::fmt::Debug for Syncs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Syncs").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Syncs {
    /// Collect the results, in the order of the files.
    pub fn wait(self, wait: &Wait<'_>) -> Vec<SyncResult> {
        let members: Vec<Option<Arc<Member>>> = self.calls.asked.clone();
        let results = self.files.into_iter().zip(self.calls.wait(wait)).zip(members);
        results
            .map(|(((id, segment), result), member)| {
                if let (Err(err), Some(member)) = (&result, member)
                    && err.kind() == io::ErrorKind::TimedOut
                {
                    member.counters.sync_errors.add(1);
                }
                (id, segment, result)
            })
            .collect()
    }
}

/// A member is not waited for any longer: it is sick.
pub(super) fn given_up_on(member: Option<&Arc<Member>>, begun: Instant) -> io::Error {
    member.inspect(|member| member.mark_sick());
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} ms", begun.elapsed().as_millis()))
}

/// Sends a result exactly once: an error if the job ends, or is never begun, without one.
struct Reply {
    index: usize,
    sender: Sender<(usize, io::Result<()>)>,
    sent: bool,
}

impl Reply {
    fn send(&mut self, result: io::Result<()>) {
        self.sent = true;
        // Nobody listens after the deadline.
        let _ = self.sender.send((self.index, result));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.sent {
            self.send(Err(io::Error::new(io::ErrorKind::TimedOut, "too many calls wait for this directory already")));
        }
    }
}

fn clone_error(err: &io::Error) -> io::Error {
    io::Error::new(err.kind(), err.to_string())
}

fn write(member: &Arc<Member>, segment: SegmentId, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
    let backing = member.writable()?;
    let running = member.begin(CallKind::Write);
    let result = backing.write_at(segment, offset, bufs);
    drop(running);
    match &result {
        Ok(()) => {
            member.counters.writes.add(1);
            member.counters.write_bytes.add(bufs.iter().map(|buf| buf.len() as u64).sum());
        }
        Err(_) => member.counters.write_errors.add(1),
    }
    result
}

/// Sync a record's file, after writing it if `anew`.
pub(super) fn write_and_sync(member: &Arc<Member>, record: &ShardWrite, anew: bool) -> io::Result<()> {
    if anew {
        write_record(member, record)?;
    }
    sync(member, record.segment)
}

fn write_record(member: &Arc<Member>, record: &ShardWrite) -> io::Result<()> {
    let slices: Vec<IoSlice<'_>> = record.bufs.iter().map(|buf| IoSlice::new(buf)).collect();
    write(member, record.segment, record.offset, &slices)
}

fn sync(member: &Arc<Member>, segment: SegmentId) -> io::Result<()> {
    let backing = member.writable()?;
    let running = member.begin(CallKind::Sync);
    let result = backing.sync_segment(segment);
    drop(running);
    match &result {
        Ok(()) => member.counters.syncs.add(1),
        Err(_) => member.counters.sync_errors.add(1),
    }
    result
}

#[cfg(test)]
mod tests;
