//! Calls on one member that are neither shard reads nor appends: small files, new segments, room, and what a failed
//! write says about the directory.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;

use super::member::CallKind;
use super::{BackingSet, Health, MARKER_NAMES, Member, Space};
use crate::ids::{MemberId, SegmentId};

/// How old a member's figures of room may be.
const SPACE_AGE_MAX: Duration = Duration::from_millis(500);
/// How long to wait for newer ones.
const SPACE_PATIENCE: Duration = Duration::from_millis(200);

impl Member {
    /// True if it may be read: it is there, though perhaps slow or not to be written.
    pub fn can_read(self: &Arc<Self>) -> bool {
        self.readable().is_some()
    }

    /// True if it may be written.
    pub fn can_write(self: &Arc<Self>) -> bool {
        self.is_healthy()
    }

    /// True if it is known lost: absent, its marker gone, or failed; not merely slow.
    pub fn is_lost(self: &Arc<Self>) -> bool {
        !matches!(self.health(), Health::Healthy | Health::Sick)
    }

    /// Its room, as it was half a second ago at most; older if the directory does not answer. `None` if it is not there.
    pub fn space(self: &Arc<Self>) -> Option<Space> {
        let known = {
            let cached = self.space.lock();
            match &*cached {
                Some((taken, space)) if taken.elapsed() < SPACE_AGE_MAX => return Some(space.clone()),
                other => other.as_ref().map(|(_, space)| space.clone()),
            }
        };
        if !self.is_healthy() {
            return None;
        }
        let backing = self.backing()?;
        // One at a time, on a thread of the member: a directory that hangs holds up nobody who asks.
        if self.space_asked.swap(true, Ordering::AcqRel) {
            return known;
        }
        let (sender, receiver) = bounded(1);
        let member = self.clone();
        let asked = self.submit_commit(move || {
            let running = member.begin(CallKind::Probe);
            let space = backing.space().ok();
            drop(running);
            if let Some(space) = &space {
                *member.space.lock() = Some((Instant::now(), space.clone()));
            }
            member.space_asked.store(false, Ordering::Release);
            let _ = sender.send(space);
        });
        if asked.is_err() {
            self.space_asked.store(false, Ordering::Release);
        }
        receiver.recv_timeout(SPACE_PATIENCE).ok().flatten().or(known)
    }

    /// Make the file of a new segment.
    pub fn create_segment(self: &Arc<Self>, id: SegmentId, capacity: u64) -> io::Result<()> {
        self.writable()?.create_segment(id, capacity)
    }

    /// Write at an offset of a segment's file, on the calling thread.
    pub fn write_segment(self: &Arc<Self>, id: SegmentId, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.writable()?.write_at(id, offset, bufs)
    }

    /// Read at an offset of a segment's file, on the calling thread.
    pub fn read_segment(self: &Arc<Self>, id: SegmentId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.readable().ok_or(io::ErrorKind::NotFound)?.0.read_at(id, offset, buf)
    }

    /// Start writing a range to the device. Best effort, on one of the member's threads: it may wait for the device.
    pub fn start_writeback(self: &Arc<Self>, id: SegmentId, offset: u64, len: u64) {
        if let Ok(backing) = self.writable() {
            let _ = self.submit_commit(move || backing.start_writeback(id, offset, len));
        }
    }

    /// A segment takes no more appends: give back what is preallocated past its end. Best effort.
    pub fn finish_segment(self: &Arc<Self>, id: SegmentId) {
        if let Ok(backing) = self.writable()
            && let Err(error) = backing.finish_segment(id)
        {
            log::warn!("{}: segment {id}: {error}", self.path().display());
        }
    }

    /// All segments with the lengths of their files, by number.
    pub fn list_segments(self: &Arc<Self>) -> io::Result<Vec<(SegmentId, u64)>> {
        self.readable().ok_or(io::ErrorKind::NotFound)?.0.list_segments()
    }

    /// Replace a small file durably.
    pub fn write_file(self: &Arc<Self>, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.writable()?.write_file(name, bytes)
    }

    /// Lock the directory against other processes.
    pub fn lock(self: &Arc<Self>) -> io::Result<()> {
        self.readable().ok_or(io::ErrorKind::NotFound)?.0.lock()
    }

    /// A failed member is healthy again once its own superblock can be written back durably.
    fn try_again(self: &Arc<Self>) {
        let Some(backing) = self.backing() else { return };
        let rewritten = MARKER_NAMES.iter().try_for_each(|name| match backing.read_file(name)? {
            Some(bytes) => backing.write_file(name, &bytes),
            None => Ok(()),
        });
        if rewritten.is_ok() && self.verify_marker() && self.restore(None) {
            log::info!("{}: can be written again", self.path().display());
        }
    }

    /// Forget a failed sync of a segment, to heal it.
    pub fn reset_segment(self: &Arc<Self>, id: SegmentId) -> io::Result<()> {
        self.writable()?.reset_segment(id)
    }

    /// Count a shard whose bytes were refused after they were read.
    pub fn count_rejected(&self) {
        self.counters.rejected.add(1);
    }

    /// True if the path still leads to a directory with a superblock.
    pub fn verify_marker(&self) -> bool {
        self.backing().is_some_and(|backing| backing.is_marked())
    }
}

impl BackingSet {
    /// Count members as missing whose path no longer leads to a superblock. May take as long as the slowest directory.
    /// With `retry` those that failed are tried again.
    pub fn look_for_markers(&self, retry: bool) {
        for member in self.members() {
            if matches!(member.health(), Health::Failed { .. }) {
                if retry {
                    member.try_again();
                }
            } else if member.is_healthy() && !member.verify_marker() {
                log::error!("{}: its superblock is gone; it counts as missing", member.path().display());
                member.mark_missing("its superblock is gone: removed, or its disk was unmounted");
            }
        }
    }

    /// A write or sync failed. Decide what that says about the directory: gone (its marker is), full (nothing), or
    /// failed (not written any more until it is restored). Slow ones are marked where the wait ended.
    pub fn report_write_error(&self, id: &MemberId, operation: &str, error: &io::Error) {
        let Some(member) = self.get(id) else { return };
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::TimedOut) || !member.is_healthy() {
            log::warn!("{}: {operation}: {error}", member.path().display());
            return;
        }
        if member.verify_marker() {
            log::error!("{}: {operation}: {error}; it is not written any more", member.path().display());
            member.mark_failed(format!("{operation}: {error}"));
        } else {
            log::error!(
                "{}: {operation}: {error}; its superblock is gone, it counts as missing",
                member.path().display()
            );
            member.mark_missing(format!("its superblock is gone ({operation}: {error})"));
        }
    }
}
