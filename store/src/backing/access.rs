//! Calls on one member that are neither shard reads nor appends: small files, new segments, room, and what a failed
//! write says about the directory.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::unbounded;

use super::member::CallKind;
use super::{Backing, BackingSet, Health, MARKER_NAMES, Member, Space};
use crate::ids::{MemberId, SegmentId};

/// How long to wait for newer ones.
const SPACE_PATIENCE: Duration = Duration::from_millis(200);
/// A list of small files that takes longer is asked of more members.
const LIST_LATE: Duration = Duration::from_millis(50);

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

    /// Its room, as it was half a second ago at most; older if the directory does not answer at once. `None` if it is not
    /// there, or never told.
    pub fn space(self: &Arc<Self>) -> Option<Space> {
        Some(self.told_space().ok()?.1)
    }

    /// As [`Self::space`], and when it was asked: what was written since is not in it.
    ///
    /// # Errors
    /// Why it does not tell: the directory's own error; `NotFound`: it cannot be written; `TimedOut`.
    pub fn told_space(self: &Arc<Self>) -> io::Result<(Instant, Space)> {
        if !self.is_healthy() && !self.room.known.lock().is_fresh(&self.limits) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.ask_room();
        let deadline = Instant::now() + self.least(SPACE_PATIENCE);
        self.await_room(deadline, deadline)
    }

    /// Some patience, or more where nobody is ever to be late.
    fn least(&self, patience: Duration) -> Duration {
        patience.max(self.limits.hedge_after_min)
    }

    /// It has less room than it told: it is asked again before anybody is told anything.
    pub fn room_is_wrong(self: &Arc<Self>) {
        self.room.known.lock().last = None;
    }

    /// Have a thread ask the directory for its room, if what is known of it is too old and nobody asks already: a
    /// directory that hangs holds up nobody who asks.
    fn ask_room(self: &Arc<Self>) {
        let Some(backing) = self.backing().filter(|_| self.is_healthy()) else { return };
        {
            let mut room = self.room.known.lock();
            if room.asked || room.is_fresh(&self.limits) {
                return;
            }
            room.asked = true;
            room.error = None;
        }
        let member = self.clone();
        let asked = self.submit_commit(move || {
            let running = member.begin(CallKind::Probe);
            let asked = Instant::now();
            let answer = backing.space();
            drop(running);
            let mut room = member.room.known.lock();
            room.asked = false;
            match answer {
                Ok(space) => {
                    room.last = Some((asked, space));
                    room.error = None;
                }
                Err(error) => room.error = Some(error),
            }
            drop(room);
            member.room.told.notify_all();
        });
        if asked.is_err() {
            let mut room = self.room.known.lock();
            room.asked = false;
            room.error = Some(io::Error::new(io::ErrorKind::TimedOut, "too many calls wait for it already"));
        }
    }

    /// The answer to [`Self::ask_room`], waited for until `deadline`; only until `enough` if an older one is known.
    ///
    /// # Errors
    /// The directory's own; `NotFound`: it cannot be written; `TimedOut`.
    fn await_room(self: &Arc<Self>, enough: Instant, deadline: Instant) -> io::Result<(Instant, Space)> {
        let mut room = self.room.known.lock();
        while room.asked {
            let until = if room.last.is_some() { enough } else { deadline };
            if self.room.told.wait_until(&mut room, until).timed_out() {
                break;
            }
        }
        match (&room.last, &room.error) {
            (Some((asked, space)), _) => Ok((*asked, space.clone())),
            (None, Some(error)) => Err(io::Error::new(error.kind(), error.to_string())),
            (None, None) if room.asked => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "it does not tell how much room it has"))
            }
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
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
        let member = Arc::downgrade(self);
        let _ = self.submit_commit(move || {
            if let Some(Ok(backing)) = member.upgrade().map(|member| member.writable()) {
                backing.start_writeback(id, offset, len);
            }
        });
    }

    /// [`Self::finish_segment`] on one of the member's threads, as soon as one is free.
    pub fn begin_finish_segment(self: &Arc<Self>, id: SegmentId) {
        let member = Arc::downgrade(self);
        let _ = self.submit_commit(move || {
            if let Some(member) = member.upgrade() {
                member.finish_segment(id);
            }
        });
    }

    /// A segment takes no more appends: give back what is preallocated past its end. Best effort; what is still being
    /// written there gets its place as it comes.
    pub fn finish_segment(self: &Arc<Self>, id: SegmentId) {
        if let Ok(backing) = self.writable()
            && let Err(error) = backing.finish_segment(id)
        {
            log::warn!("{}: segment {id}: {error}", self.path().display());
        }
    }

    /// Free the whole filesystem blocks of a range of a segment's file.
    pub fn punch_segment(self: &Arc<Self>, id: SegmentId, offset: u64, len: u64) -> io::Result<()> {
        self.writable()?.punch(id, offset, len)
    }

    /// Remove a segment's file.
    pub fn remove_segment(self: &Arc<Self>, id: SegmentId) -> io::Result<()> {
        self.writable()?.remove_segment(id)
    }

    /// Bytes of the device that a segment's file takes.
    pub fn allocated(self: &Arc<Self>, id: SegmentId) -> io::Result<u64> {
        // On the calling thread, which must not wait for a directory that hangs.
        self.writable()?.allocated(id)
    }

    /// All segments with the lengths of their files, by number.
    pub fn list_segments(self: &Arc<Self>) -> io::Result<Vec<(SegmentId, u64)>> {
        self.readable().ok_or(io::ErrorKind::NotFound)?.0.list_segments()
    }

    /// Replace a small file durably.
    pub fn write_file(self: &Arc<Self>, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.writable()?.write_file(name, bytes)
    }

    /// Make a small file durably; `AlreadyExists` if there is one.
    pub fn create_file_exclusive(self: &Arc<Self>, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.writable()?.create_file_exclusive(name, bytes)
    }

    /// Remove a small file durably.
    pub fn remove_file(self: &Arc<Self>, name: &str) -> io::Result<()> {
        self.writable()?.remove_file(name)
    }

    /// Names of the small files in a directory of the member, on the calling thread.
    pub fn list_files(self: &Arc<Self>, dir: &str) -> io::Result<Vec<String>> {
        self.readable().ok_or(io::ErrorKind::NotFound)?.0.list_files(dir)
    }

    /// How often names came or went among its small files ([`Backing::changes`]).
    pub fn changes(self: &Arc<Self>) -> Option<u64> {
        self.readable()?.0.changes()
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
    /// The room in each healthy member, asked of all at once. One that never told is waited for as long as for a write,
    /// and is sick if it does not answer then: not to know its room yet is no reason to do without it.
    pub fn rooms(&self, patience: Duration) -> Vec<(Arc<Member>, io::Result<Space>)> {
        let healthy: Vec<Arc<Member>> = self.healthy().cloned().collect();
        healthy.iter().for_each(Member::ask_room);
        let begun = Instant::now();
        let answer = |member: Arc<Member>| {
            let enough = begun + member.least(SPACE_PATIENCE);
            let room = member.await_room(enough, enough.max(begun + patience)).map(|(_, space)| space);
            if room.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
                member.mark_sick();
            }
            (member, room)
        };
        healthy.into_iter().map(answer).collect()
    }

    /// Names of the small files in a directory of members that can be read: of the first `need` that answer. Asked on
    /// their own threads, healthy ones first, more when some are late: one that hangs costs at most `patience`. Those
    /// that fail are left out.
    pub fn list_on_each(&self, dir: &'static str, need: usize, patience: Duration) -> Vec<(MemberId, Vec<String>)> {
        let least = |time: Duration| self.members().iter().map(|member| member.least(time)).max().unwrap_or(time);
        let (patience, late) = (least(patience), least(LIST_LATE));
        let deadline = Instant::now() + patience;
        let (sender, receiver) = unbounded();
        let mut asked: Vec<_> =
            self.members().iter().filter_map(|member| Some((member.readable()?, member.clone()))).collect();
        asked.sort_by_key(|((_, turn), member)| (*turn, !member.is_watching()));
        let mut asked = asked.into_iter();
        let ask = |((backing, _), member): ((Arc<dyn Backing>, u8), Arc<Member>)| {
            let (target, sender) = (member.clone(), sender.clone());
            // A job that is refused drops its sender.
            let _ = member.submit_commit(move || {
                let running = target.begin(CallKind::Probe);
                let listed = backing.list_files(dir);
                drop((running, backing));
                let id = target.id;
                drop(target);
                let _ = sender.send((id, listed.ok()));
            });
        };
        asked.by_ref().take(need).for_each(&ask);
        let mut answers = Vec::new();
        while answers.len() < need {
            match receiver.recv_deadline(deadline.min(Instant::now() + late)) {
                Ok((member, Some(names))) => answers.push((member, names)),
                // Failed or late: the others are asked, too.
                Ok((_, None)) | Err(_) if asked.len() > 0 => asked.by_ref().for_each(&ask),
                Ok((_, None)) => {}
                Err(_) if Instant::now() < deadline => {}
                Err(_) => break,
            }
        }
        answers
    }

    /// The first `len` bytes of a segment's file in each healthy member, asked on their own threads: one that hangs costs
    /// at most `patience`. Members that do not answer are left out; who has no such file, or no more than a part of what
    /// is wanted, answers with what there is.
    pub fn heads_on_each(&self, segment: SegmentId, len: usize, patience: Duration) -> Vec<(MemberId, Vec<u8>)> {
        let patience = self.members().iter().map(|member| member.least(patience)).max().unwrap_or(patience);
        let deadline = Instant::now() + patience;
        let (sender, receiver) = unbounded();
        for member in self.healthy() {
            let Some(backing) = member.backing() else { continue };
            let (target, sender) = (member.clone(), sender.clone());
            // A job that is refused drops its sender.
            let _ = member.submit_commit(move || {
                let running = target.begin(CallKind::Probe);
                let mut bytes = vec![0; len];
                let read = backing.read_at(segment, 0, &mut bytes);
                drop((running, backing));
                let id = target.id;
                drop(target);
                match read {
                    Ok(read) => bytes.truncate(read),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => bytes.clear(),
                    Err(_) => return,
                }
                let _ = sender.send((id, bytes));
            });
        }
        drop(sender);
        std::iter::from_fn(|| receiver.recv_deadline(deadline).ok()).collect()
    }

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
