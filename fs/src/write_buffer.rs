//! Writes that were accepted and are not in the store yet, for all files: memory bounded, order kept, errors remembered.
//!
//! A write is copied, space for it reserved (R10), and answered. Eight neighbouring full chunks go to the sealing threads
//! at once, so that a stream keeps all processors busy; the rest waits for [`WriteBuffer::flush`], which the commit calls
//! first with the volume running and then with all writers excluded. Chunk contents are put first, then the file's size
//! and times as one change. Both happen under the volume's gate, so a generation never holds one without the other.
//!
//! Locks, in this order: the volume's gate, one file's state, the list of dirty files. Nobody waits for the gate, a disk
//! or room while holding a file's state, except for chunks being sealed: their sealers hold the gate already.
//!
//! When the store refuses accepted data, the data stays here, readable, and is tried again with growing pauses; the error
//! is remembered for each handle that is open (as Linux does, except that Linux drops the data).

mod ahead;
mod chunk;
mod file;
mod flush;
mod node;
mod quota;
mod share;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use brine_store::Error;
use brine_store::ids::{ChunkNo, Ino};
use brine_store::seal::CHUNK_LEN_MAX;
use brine_store::volume::{Attr, FileChange, GateGuard, INLINE_MAX, SetAttr, Volume};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::errno::Errno;
use crate::workers::Pool;
use chunk::BufferPool;
use file::FileBuffer;
pub use file::Gap;
use node::Dirty;
pub use node::{ErrorMark, FileNode};
pub use share::ShareRange;
pub use stored::{Stored, cached as stored_in_cache, read as read_stored};

/// Neighbouring full chunks sealed in one call: 1 MiB of the usual 128 KiB chunks, as much as one request carries.
const SEAL_BATCH: u64 = 8;
/// Length of pooled buffers, bytes: the usual chunk.
const POOLED_LEN: usize = 128 << 10;
/// How long a writer that waits for room sleeps before it looks at the volume's state again.
const ROOM_RECHECK: Duration = Duration::from_millis(100);
/// Rechecks without any room made before a waiting writer is told EIO: ten seconds.
const ROOM_PATIENCE: u32 = 100;

/// Where failures are told to the operator: one line each, naming the object.
pub type Report = Arc<dyn Fn(&str) + Send + Sync>;

/// Buffered writes of all files of a volume.
pub struct WriteBuffer {
    volume: Arc<Volume>,
    pool: Arc<BufferPool>,
    /// Most memory for dirty chunks, bytes.
    limit: usize,
    /// Memory of dirty chunks, bytes.
    held: AtomicUsize,
    /// Part of `held` that sealing threads will take without being asked again, bytes.
    queued: AtomicUsize,
    waiting: AtomicUsize,
    room: Mutex<()>,
    room_made: Condvar,
    /// Files with something to put. One leaves the list only under the gate, together with being put: a commit that
    /// excluded all writers finds here whatever is dirty.
    list: Mutex<BTreeMap<Ino, Arc<FileNode>>>,
    /// Whether a flush for want of room is under way.
    pressed: AtomicBool,
    /// Groups of files that are being put, and how many ever were.
    putting: Mutex<(usize, u64)>,
    put: Condvar,
    /// Whether anything changed since the last commit began.
    changed: AtomicBool,
    sealers: Pool,
    /// Held by the one copy that shares chunks. Taken before the gate.
    sharing: Mutex<()>,
    report: Report,
}

/// What a read found here, before the store is asked.
pub struct BufferedRead {
    /// The file's stored attributes, as the store wants them for reading.
    pub attr: Attr,
    /// Bytes read: less than asked for at the end of the file.
    pub len: usize,
    /// What only the store knows.
    pub gaps: Vec<Gap>,
    /// Whether chunk 0 is the file's inline content; `None` if that must be asked.
    pub inline: Option<bool>,
}

/// What a write of `len` bytes reserves at most, bytes: whole chunks at both ends, and a part of each chunk's record.
fn reserved_at_most(len: usize) -> u64 {
    len as u64 + len as u64 / 2 + 2 * CHUNK_LEN_MAX as u64
}

impl WriteBuffer {
    /// A buffer of at most `limit` bytes, with `sealers` threads to seal.
    ///
    /// # Errors
    /// What the system says when it cannot start a thread.
    pub fn new(volume: Arc<Volume>, limit: usize, sealers: usize, report: Report) -> std::io::Result<Self> {
        Ok(Self {
            volume,
            // Unused buffers are kept up to half the limit: the other half is in use whenever that pays.
            pool: Arc::new(BufferPool::new(POOLED_LEN, limit / POOLED_LEN / 2)),
            limit,
            held: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            room: Mutex::new(()),
            room_made: Condvar::new(),
            list: Mutex::new(BTreeMap::new()),
            pressed: AtomicBool::new(false),
            putting: Mutex::new((0, 0)),
            put: Condvar::new(),
            changed: AtomicBool::new(false),
            sealers: Pool::new("brine-seal", sealers)?,
            sharing: Mutex::new(()),
            report,
        })
    }

    /// Hold this while changing the volume. Not to be taken twice by one thread: a commit may be waiting in between.
    pub fn change(&self) -> GateGuard<'_> {
        let gate = self.volume.gate();
        self.changed.store(true, Ordering::SeqCst);
        gate
    }

    /// Whether anything changed since the last call.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::SeqCst)
    }

    /// The last commit failed: what changed before is still to be committed.
    pub fn set_changed(&self) {
        self.changed.store(true, Ordering::SeqCst);
    }

    /// Whether there is a change to commit.
    pub fn is_changed(&self) -> bool {
        self.changed.load(Ordering::SeqCst)
    }

    /// Memory of dirty chunks, bytes.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// End the sealing threads, after what they were given.
    pub fn finish(&self) {
        self.sealers.finish();
    }

    /// Whether a write of `len` bytes can be accepted now, nobody waiting before it.
    pub fn has_room(&self, len: usize) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0 && self.fits(len) && self.volume.has_space(reserved_at_most(len))
    }

    fn fits(&self, len: usize) -> bool {
        let held = self.held();
        held == 0 || held + len <= self.limit
    }

    /// Announce a writer that will call [`Self::wait_for_room`]: later writers queue behind it.
    pub fn announce_waiting(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// Wait until a write of `len` bytes fits.
    ///
    /// # Errors
    /// EROFS when the volume went read-only meanwhile, EIO when no room was made for ten seconds.
    pub fn wait_for_room(self: &Arc<Self>, len: usize) -> Result<(), Errno> {
        let mut held_before = self.held();
        let mut idle = 0;
        let outcome = loop {
            if self.fits(len) {
                break Ok(());
            }
            if self.volume.is_read_only().is_some() {
                break Err(Errno(libc::EROFS));
            }
            if idle > ROOM_PATIENCE {
                break Err(Errno::IO);
            }
            self.press();
            let mut room = self.room.lock();
            // A change between the look above and this wait costs one recheck at most.
            self.room_made.wait_for(&mut room, ROOM_RECHECK);
            let held = self.held();
            idle = if held < held_before { 0 } else { idle + 1 };
            held_before = held;
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if outcome.is_ok() {
            // What dead blocks and history take is given back before a writer is told that there is no space.
            self.volume.wait_for_space(reserved_at_most(len));
        }
        outcome
    }

    /// Bring the account of all files' memory up to date with this one's. To be called after every change of a buffer.
    fn account(&self, dirty: &mut Dirty) {
        let (before, after) = (dirty.accounted, dirty.buffer.held());
        dirty.accounted = after;
        if after >= before {
            self.held.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.held.fetch_sub(before - after, Ordering::Relaxed);
            if self.waiting.load(Ordering::Relaxed) > 0 {
                let _room = self.room.lock();
                self.room_made.notify_all();
            }
        }
    }

    /// Flush in the background what no sealing thread will take by itself.
    fn press(self: &Arc<Self>) {
        if !self.pressed.swap(true, Ordering::AcqRel) {
            let buffer = Arc::clone(self);
            self.sealers.run(move || {
                buffer.flush_for_room();
                buffer.pressed.store(false, Ordering::Release);
            });
        }
    }

    /// The dirty state of a file, made from its stored attributes if there is none.
    fn ensure<'a>(&self, state: &'a mut Option<Box<Dirty>>, node: &FileNode) -> Result<&'a mut Dirty, Error> {
        if state.is_none() {
            let base = self.volume.attr(node.ino)?;
            let mut buffer = FileBuffer::new(base.chunk_bits, base.size, Arc::clone(&self.pool));
            let mut stored_inline = false;
            if (1..=INLINE_MAX as u64).contains(&base.size)
                && let Some(data) = self.volume.inline_data(node.ino)?
            {
                buffer.load_inline(&data);
                stored_inline = true;
            }
            let mut dirty = Dirty::new(base, buffer, stored_inline);
            self.account(&mut dirty);
            *state = Some(Box::new(dirty));
        }
        Ok(state.as_mut().expect("made above"))
    }

    /// Put the file on the list of those to flush, if there is something to put; forget its state, if not.
    fn settle(&self, node: &Arc<FileNode>, state: &mut Option<Box<Dirty>>) {
        let Some(dirty) = state.as_mut() else { return };
        if dirty.changes == dirty.put && dirty.buffer.is_clean() {
            if dirty.listed {
                self.list.lock().remove(&node.ino);
            }
            self.release_quota(dirty);
            *state = None;
        } else if !dirty.listed {
            // Nothing to put, if what is missing in the store is being sealed.
            let put = dirty.changes == dirty.put && dirty.buffer.is_all_sealing();
            if !put {
                dirty.listed = true;
                self.list.lock().insert(node.ino, Arc::clone(node));
            }
        }
    }

    /// Wait until none of `chunks` is being sealed. The gate is held, so nothing new begins but what began before it
    /// was taken, and that ends.
    fn wait_sealed(
        &self,
        node: &FileNode,
        state: &mut MutexGuard<'_, Option<Box<Dirty>>>,
        chunks: std::ops::Range<u64>,
    ) {
        while state.as_ref().is_some_and(|dirty| dirty.buffer.is_sealing_in(chunks.clone())) {
            node.settled.wait(state);
        }
    }

    /// Accept `data` at `offset`. With `drop_set_id` the writer may not keep set-user-id and set-group-id bits.
    ///
    /// # Errors
    /// ENOSPC when there is no space for the worst case, EDQUOT when a quota does not let the file grow so much; nothing
    /// was accepted then.
    pub fn write(
        self: &Arc<Self>,
        node: &Arc<FileNode>,
        offset: u64,
        data: &[u8],
        now_ns: i64,
        drop_set_id: bool,
    ) -> Result<(), Error> {
        let gate = self.change();
        let mut state = node.state.lock();
        let accepted = self.ensure(&mut state, node).and_then(|dirty| {
            let granted = dirty.buffer.reserve(offset, data.len() as u64, |bytes| self.volume.reserve(bytes))?;
            self.promise_quota(dirty, offset..offset + data.len() as u64, 0)?;
            if drop_set_id {
                self.drop_set_id(dirty, now_ns)?;
            }
            dirty.buffer.write(offset, data, granted);
            self.account(dirty);
            dirty.touch(now_ns);
            let runs = dirty.buffer.full_runs(offset, offset + data.len() as u64, SEAL_BATCH);
            Ok((runs, (SEAL_BATCH << dirty.base.chunk_bits) as usize))
        });
        self.settle(node, &mut state);
        drop(state);
        let (runs, run_len) = accepted?;
        // Who seals takes it, and that may be this thread.
        drop(gate);
        for (first, count) in runs {
            self.queued.fetch_add(run_len, Ordering::Relaxed);
            let (buffer, node) = (Arc::clone(self), Arc::clone(node));
            self.sealers.run(move || {
                buffer.seal_run(&node, first, count);
                buffer.queued.fetch_sub(run_len, Ordering::Relaxed);
            });
        }
        if self.held().saturating_sub(self.queued.load(Ordering::Relaxed)) > self.limit / 2 {
            self.press();
        }
        Ok(())
    }

    /// Clear the set-id bits that a write by someone without CAP_FSETID clears. At once, not with the flush: a chmod
    /// in between must win.
    fn drop_set_id(&self, dirty: &mut Dirty, now_ns: i64) -> Result<(), Error> {
        if let Some(perm) = without_set_id(dirty.base.perm) {
            let change = SetAttr { perm: Some(perm), ctime_ns: Some(now_ns), ..SetAttr::default() };
            dirty.base = self.volume.set_attr(dirty.base.ino, &change)?;
        }
        Ok(())
    }

    /// Somebody without CAP_FSETID changes a file's content in another way than [`Self::write`].
    ///
    /// # Errors
    /// What the store says.
    pub fn drop_set_id_bits(&self, node: &Arc<FileNode>, now_ns: i64) -> Result<(), Error> {
        let _gate = self.change();
        let mut state = node.state.lock();
        let outcome = self.ensure(&mut state, node).and_then(|dirty| self.drop_set_id(dirty, now_ns));
        self.settle(node, &mut state);
        outcome
    }

    /// Give a file a new size. May wait for chunks being sealed.
    ///
    /// # Errors
    /// What the store says; the size is unchanged then.
    pub fn truncate(&self, node: &Arc<FileNode>, size: u64, now_ns: i64, drop_set_id: bool) -> Result<(), Error> {
        let _gate = self.change();
        let mut state = node.state.lock();
        let bits = self.ensure(&mut state, node)?.base.chunk_bits;
        self.wait_sealed(node, &mut state, size >> bits..u64::MAX);
        // Sealing may have ended in a clean file, whose state is forgotten.
        let outcome = self.ensure(&mut state, node).and_then(|dirty| {
            if drop_set_id {
                self.drop_set_id(dirty, now_ns)?;
            }
            if size > dirty.buffer.size() {
                // A chunk that ended with the file takes its whole length from now on.
                self.promise_quota(dirty, size..size, 0)?;
            }
            self.cut(node, dirty, size, now_ns)
        });
        self.settle(node, &mut state);
        outcome
    }

    fn cut(&self, node: &FileNode, dirty: &mut Dirty, size: u64, now_ns: i64) -> Result<(), Error> {
        let mut reservation = None;
        let shrinks = size < dirty.buffer.size();
        // Inline content has no chunks to drop and is in the buffer, unless nothing of it is to be left.
        let drops_chunks = shrinks && (!dirty.stored_inline || size == 0);
        if drops_chunks {
            let to = |size| FileChange { size, mtime_ns: now_ns, ctime_ns: now_ns, inline: None, clear_suid: false };
            if !dirty.stored_inline && dirty.base.size < dirty.buffer.size() {
                // Chunks may be stored past the size the store knows (shared ones are): it must see that they are cut off.
                self.volume.set_file(dirty.base.ino, &to(dirty.buffer.size()))?;
            }
            dirty.base = self.volume.set_file(dirty.base.ino, &to(size))?;
            node.put(dirty.base.version);
            (dirty.stored_inline, dirty.put_since) = (false, 0);
        }
        dirty.touch(now_ns);
        if drops_chunks {
            dirty.put = dirty.changes;
        }
        if shrinks {
            // Without space the tail is cut all the same: a full volume must let files shrink.
            let tail = size & ((1 << dirty.base.chunk_bits) - 1);
            reservation = if tail > 0 { self.volume.reserve(tail).ok() } else { None };
        }
        dirty.buffer.truncate(size, reservation);
        self.account(dirty);
        if shrinks { self.promise_less(dirty) } else { Ok(()) }
    }

    /// Make `start..end` zero; with `keep_size` only as far as the file's size.
    ///
    /// # Errors
    /// What the store says.
    pub fn zero(&self, node: &Arc<FileNode>, start: u64, end: u64, keep_size: bool, now_ns: i64) -> Result<(), Error> {
        let _gate = self.change();
        let mut state = node.state.lock();
        let chunks = self.ensure(&mut state, node)?.buffer.chunks_of(start, end);
        self.wait_sealed(node, &mut state, chunks);
        let outcome = self.ensure(&mut state, node).and_then(|dirty| {
            if !keep_size && end > dirty.buffer.size() {
                self.promise_quota(dirty, end..end, 0)?;
            }
            dirty.touch(now_ns);
            if !keep_size && end > dirty.buffer.size() {
                dirty.buffer.truncate(end, None);
            }
            let reservation = self.volume.reserve(2 << dirty.base.chunk_bits).ok();
            let (base, inline) = (dirty.base, dirty.stored_inline);
            let is_hole =
                |chunk| !inline && self.volume.chunks_stored(&base, ChunkNo(chunk), 1).is_ok_and(|stored| stored == 0);
            let whole = dirty.buffer.zero(start, end, inline, reservation, is_hole);
            self.account(dirty);
            if whole.is_empty() || dirty.stored_inline {
                return Ok(());
            }
            self.volume.punch(node.ino, ChunkNo(whole.start), whole.end - whole.start)?;
            self.promise_less(dirty)
        });
        self.settle(node, &mut state);
        outcome
    }

    /// Make the file at least `size` bytes long.
    ///
    /// # Errors
    /// What the store says.
    pub fn extend(&self, node: &Arc<FileNode>, size: u64, now_ns: i64) -> Result<(), Error> {
        let _gate = self.change();
        let mut state = node.state.lock();
        let outcome = self.ensure(&mut state, node).and_then(|dirty| {
            if size > dirty.buffer.size() {
                self.promise_quota(dirty, size..size, 0)?;
                dirty.buffer.truncate(size, None);
                dirty.touch(now_ns);
            }
            Ok(())
        });
        self.settle(node, &mut state);
        outcome
    }

    /// Make a file's attributes, as the store gave them a moment ago, what they are with what is buffered.
    pub fn overlay(&self, node: &FileNode, attr: &mut Attr) {
        let state = node.state.lock();
        if let Some(dirty) = state.as_ref() {
            attr.size = dirty.buffer.size();
            attr.mtime_ns = dirty.mtime_ns;
            attr.ctime_ns = attr.ctime_ns.max(dirty.ctime_ns);
            // Dirty bytes may overwrite stored ones: the sum is not more than a file of this size can take.
            let most = attr.size.next_multiple_of(4096).max(attr.allocated);
            attr.allocated = (attr.allocated + dirty.buffer.held() as u64).min(most);
            attr.guessed = dirty.buffer.held() > 0;
        } else if node.was_put_after(attr.version) {
            // What the store said is from before the flush that has emptied the buffer in between.
            drop(state);
            if let Ok(newer) = self.volume.attr(attr.ino) {
                *attr = newer;
            }
        }
    }

    /// Set a dirty file's times where the flush will take them from; false if nothing of it is buffered. The caller
    /// holds the gate.
    pub fn set_times(&self, node: &Arc<FileNode>, mtime_ns: Option<i64>, now_ns: i64) -> bool {
        let mut state = node.state.lock();
        let Some(dirty) = state.as_mut() else { return false };
        dirty.mtime_ns = mtime_ns.unwrap_or(dirty.mtime_ns);
        dirty.ctime_ns = now_ns;
        dirty.changes += 1;
        self.settle(node, &mut state);
        true
    }

    /// A file's attributes were set in the store: a flush, one under way included, must not undo it. The caller holds
    /// the gate.
    pub fn note_attr(&self, node: &Arc<FileNode>, attr: &Attr, mtime_ns: Option<i64>) {
        let mut state = node.state.lock();
        let Some(dirty) = state.as_mut() else { return };
        dirty.base = *attr;
        dirty.ctime_ns = attr.ctime_ns;
        dirty.mtime_ns = mtime_ns.unwrap_or(dirty.mtime_ns);
        dirty.changes += 1;
        self.settle(node, &mut state);
    }

    /// Read what is buffered of `offset..offset + out.len()`; the rest of `out` is untouched.
    ///
    /// # Errors
    /// The store's, asked for the attributes of a file with nothing buffered.
    pub fn read(&self, node: &FileNode, offset: u64, out: &mut Vec<u8>, len: usize) -> Result<BufferedRead, Error> {
        let clip = |size: u64| size.saturating_sub(offset).min(len as u64) as usize;
        let state = node.state.lock();
        let Some(dirty) = state.as_ref() else {
            drop(state);
            let attr = self.volume.attr(node.ino)?;
            let len = clip(attr.size);
            let gaps = whole_gaps(offset, len, attr.chunk_bits);
            return Ok(BufferedRead { attr, len, gaps, inline: None });
        };
        let len = clip(dirty.buffer.size());
        let mut attr = dirty.base;
        attr.size = attr.size.max(dirty.buffer.stored_end());
        let gaps = if dirty.buffer.is_untouched(offset, offset + len as u64) {
            whole_gaps(offset, len, attr.chunk_bits)
        } else {
            if out.len() < len {
                out.resize(len, 0);
            }
            dirty.buffer.read(offset, &mut out[..len])
        };
        Ok(BufferedRead { attr, len, gaps, inline: Some(dirty.stored_inline) })
    }

    /// Look at a file's dirty state and stored attributes together; `None` for one with nothing buffered.
    pub fn inspect<T>(
        &self,
        node: &FileNode,
        look: impl FnOnce(&Attr, &dyn Fn(u64) -> Option<(u64, u64)>) -> T,
    ) -> Option<T> {
        let state = node.state.lock();
        let dirty = state.as_ref()?;
        let mut attr = dirty.base;
        attr.size = dirty.buffer.size();
        Some(look(&attr, &|from| dirty.buffer.next_data(from)))
    }

    /// Drop everything buffered of a file that nobody can reach any more. The caller holds the gate.
    pub fn discard(&self, node: &FileNode) {
        let mut state = node.state.lock();
        self.wait_sealed(node, &mut state, 0..u64::MAX);
        if let Some(mut dirty) = state.take() {
            self.list.lock().remove(&node.ino);
            dirty.buffer.discard();
            self.release_quota(&dirty);
            self.account(&mut dirty);
        }
    }
}

/// `perm` without the bits that a change of content clears, if it has any.
pub fn without_set_id(perm: u16) -> Option<u16> {
    let mut cleared = perm & !0o4000;
    // Set-group-id without group execution once meant mandatory locking, and is kept.
    if perm & 0o2010 == 0o2010 {
        cleared &= !0o2000;
    }
    (cleared != perm).then_some(cleared)
}

/// A read of which nothing is buffered, as gaps.
fn whole_gaps(offset: u64, len: usize, bits: u8) -> Vec<Gap> {
    let (end, chunk_len) = (offset + len as u64, 1u64 << bits);
    let mut gaps = Vec::new();
    let mut at = offset;
    while at < end {
        let stop = ((at >> bits) + 1).saturating_mul(chunk_len).min(end);
        gaps.push(Gap {
            chunk: at >> bits,
            at: (at & (chunk_len - 1)) as u32,
            out: (at - offset) as usize..(stop - offset) as usize,
        });
        at = stop;
    }
    gaps
}
