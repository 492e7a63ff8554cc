//! Records written through to the devices of several directories at once, by the thread that waits for them.
//!
//! Of what a commit costs, waking a thread for each directory is a good part. Where a record overwrites zeros that are
//! durable already ([`Backing::direct`]) one thread begins all writes, and each is durable when it is done; what cannot
//! be done that way is written and synced on the members' threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::member::{CallKind, Member, Running};
use super::pool::Queue;
use super::ring::{Aligned, DirectWrite, Flushing, InFlight, Ring};
use super::set::{ShardWrite, SyncResult, Wait, given_up_on, write_and_sync};
use super::{Backing, BackingSet, Direct, DirectEnd};

/// A record that is being written through to several members.
pub struct WriteThrough {
    begun: Instant,
    flight: InFlight<Running>,
    parts: Vec<Part>,
}

struct Part {
    member: Arc<Member>,
    backing: Arc<dyn Backing>,
    write: ShardWrite,
}

impl std::fmt::Debug for WriteThrough {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteThrough").field("begun", &self.begun).finish_non_exhaustive()
    }
}

/// What is to be made of a write that is done.
enum End {
    /// Settled.
    Told(io::Result<()>),
    /// To be written and synced by a thread.
    Anew,
    /// To be synced by a thread, which looks closer.
    Sync,
}

impl BackingSet {
    /// Begin to write these records, each of another member, so that they are durable when [`Self::end_write_through`]
    /// says so. `None`: not all of these directories can, now or ever; nothing was begun.
    pub fn begin_write_through(&self, writes: &[ShardWrite]) -> Option<WriteThrough> {
        if self.no_ring.load(Ordering::Relaxed) {
            return None;
        }
        let mut parts = Vec::with_capacity(writes.len());
        let mut files = Vec::with_capacity(writes.len());
        for write in writes {
            let member = self.get(&write.member)?.clone();
            let backing = member.writable().ok()?;
            let part = Part { member, backing, write: write.clone() };
            match part.backing.direct(write.segment, write.offset, part.len()) {
                Direct::Ready { file, flush, scarce } => {
                    if scarce {
                        part.make_direct();
                    }
                    files.push((file, flush));
                }
                // The others are to be ready at the same time.
                Direct::NotYet => part.make_direct(),
                Direct::Never => {}
            }
            parts.push(part);
        }
        let ring = self.ring()?;
        if files.len() < parts.len() {
            self.rings.lock().push(ring);
            return None;
        }
        let begun = Instant::now();
        let direct = |(part, (file, flush)): (&Part, _)| DirectWrite {
            file,
            flush,
            offset: part.write.offset,
            bytes: Aligned::gather(part.write.bufs.iter().map(|buf| &**buf)),
            _guard: part.member.begin(CallKind::Sync),
        };
        let flushing = if self.is_on_one_device() { Flushing::Here } else { Flushing::Beside };
        let flight = ring.begin(parts.iter().zip(files).map(direct).collect(), flushing);
        Some(WriteThrough { begun, flight, parts })
    }

    /// Wait until the records are durable. One that takes longer than is waited for is `TimedOut`, and its member sick; it
    /// may still be written later. The results are in the order of the writes.
    pub fn end_write_through(&self, through: WriteThrough, wait: &Wait<'_>) -> Vec<SyncResult> {
        let WriteThrough { begun, mut flight, parts } = through;
        let next = |until| flight.next(Some(until)).map(|(index, result)| (index, parts[index].end(result)));
        // What is left to a thread is hoped for: who hangs meanwhile is not waited for any longer.
        let hoped_for = |end: &End| !matches!(end, End::Told(Err(_)));
        let mut ends = wait.collect(begun, parts.len(), next, hoped_for);
        if let Some(ring) = flight.into_ring() {
            self.rings.lock().push(ring);
        }
        let again: Vec<usize> =
            (0..ends.len()).filter(|index| matches!(ends[*index], Some(End::Anew | End::Sync))).collect();
        let calls = again.iter().map(|index| {
            let (write, anew) = (parts[*index].write.clone(), matches!(ends[*index], Some(End::Anew)));
            (write.member, move |member: &Arc<Member>| write_and_sync(member, &write, anew))
        });
        let redone = self.begin_all(Queue::CommitStep, calls).wait(wait);
        for (index, result) in again.into_iter().zip(redone) {
            ends[index] = Some(End::Told(result));
        }
        let told = |(part, end): (Part, Option<End>)| {
            let result = match end {
                Some(End::Told(result)) => result,
                _ => {
                    part.member.counters.sync_errors.add(1);
                    Err(given_up_on(Some(&part.member), begun))
                }
            };
            (part.member.id, part.write.segment, result)
        };
        parts.into_iter().zip(ends).map(told).collect()
    }

    /// Whether all members lie on one device: while it hangs there is nothing to do without it.
    fn is_on_one_device(&self) -> bool {
        let mut devices = self.members().iter().map(|member| member.writable().ok()?.device());
        let Some(Some(first)) = devices.next() else { return false };
        devices.all(|device| device == Some(first))
    }

    /// A ring that nothing is in flight on. `None` if this system has none.
    fn ring(&self) -> Option<Ring> {
        if let Some(ring) = self.rings.lock().pop() {
            return Some(ring);
        }
        match Ring::new() {
            Ok(ring) => Some(ring),
            Err(error) => {
                log::debug!("io_uring: {error}; commits go through threads");
                self.no_ring.store(true, Ordering::Relaxed);
                None
            }
        }
    }
}

impl Part {
    fn len(&self) -> u64 {
        self.write.bufs.iter().map(|buf| buf.len() as u64).sum()
    }

    /// Have one of the member's threads make more ready, unless one is at it.
    fn make_direct(&self) {
        if self.member.making_direct.swap(true, Ordering::AcqRel) {
            return;
        }
        let (member, segment) = (Arc::downgrade(&self.member), self.write.segment);
        let made = self.member.submit_commit(move || {
            let Some(member) = member.upgrade() else { return };
            let running = member.begin(CallKind::Sync);
            let made = member.writable().and_then(|backing| backing.make_direct(segment));
            if let Err(error) = made {
                log::debug!("{}: preparing segment {segment}: {error}", member.path().display());
            }
            drop(running);
            member.making_direct.store(false, Ordering::Release);
        });
        if made.is_err() {
            self.member.making_direct.store(false, Ordering::Release);
        }
    }

    fn end(&self, result: io::Result<()>) -> End {
        let counters = &self.member.counters;
        match self.backing.end_direct(self.write.segment, result) {
            DirectEnd::Done => {
                self.count();
                counters.syncs.add(1);
                End::Told(Ok(()))
            }
            DirectEnd::Failed(error) => {
                counters.sync_errors.add(1);
                End::Told(Err(error))
            }
            DirectEnd::Refused => End::Anew,
            DirectEnd::Unsure => {
                self.count();
                End::Sync
            }
        }
    }

    fn count(&self) {
        self.member.counters.writes.add(1);
        self.member.counters.direct_writes.add(1);
        self.member.counters.write_bytes.add(self.len());
    }
}
