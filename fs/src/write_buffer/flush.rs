//! From the buffer into the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use brine_store::Error;
use brine_store::clock::{Clock, SystemClock};
use brine_store::ids::{ChunkNo, Ino};
use brine_store::volume::{FileChange, INLINE_MAX, Patch, Reservation};

use super::file::Taken;
use super::node::{Dirty, FileNode};
use super::quota::takes;
use super::{WriteBuffer, stored};
use crate::errno::Errno;
use crate::workers::{MustFinish, for_each_parallel};

/// Up to this many files and bytes are left to the flush that excludes all writers: it takes a few milliseconds, and
/// putting them earlier would often put them twice.
const LIGHT_FILES: usize = 32;
const LIGHT_BYTES: usize = 1 << 20;
/// Chunks written in part that are left so: they are completed, so that nothing is read with writers excluded.
const LIGHT_CHUNKS: usize = 16;
/// Bytes and runs of small writes that are stored as patches, all files together: they go into the commit record itself.
const PATCH_BYTES: usize = 32 << 10;
const PATCH_RUNS: usize = 64;
/// Files and bytes put under one hold of the gate, which a commit may be waiting for.
const GROUP_FILES: usize = 256;
const GROUP_BYTES: usize = 8 << 20;
/// Bytes in one call to the store: one sealing thread's share.
const BATCH_BYTES: usize = 1 << 20;
/// Chunks whose old content is brought in before they are put: what is written in small pieces grows to whole chunks by
/// it, which must not take many times the memory the pieces did.
const COMPLETE_MAX: usize = 64;
/// Rounds of flushing while writers go on; each leaves less than the one before, as long as we are faster than they.
const ROUNDS: usize = 6;

/// What is to be put of one file.
struct Plan {
    node: Arc<FileNode>,
    taken: Vec<Taken<Reservation>>,
    /// Chunks of which only the small writes to them are stored.
    patches: Vec<Taken<Reservation>>,
    /// The whole file, if it is small enough to be kept inline: then `taken` is not put as chunks.
    inline: Option<Vec<u8>>,
    /// State of [`super::node::Dirty::changes`] that this is of.
    changes: u64,
    failed: AtomicBool,
}

impl Plan {
    /// The file, and what is to be stored of it as patches.
    fn small_writes(&self) -> (Ino, Vec<Patch<'_>>) {
        let of_chunk = |taken| Taken::writes(taken).map(|(at, bytes)| (ChunkNo(taken.chunk), at, bytes));
        (self.node.ino, self.patches.iter().flat_map(of_chunk).collect())
    }
}

/// Chunks for one call to the store: (index of the plan, range of its chunks).
type Batch = Vec<(usize, std::ops::Range<usize>)>;

impl WriteBuffer {
    /// Put what is dirty. With `exclusive` the caller has excluded all writers and everything is put; without, writers
    /// go on and a little may be left.
    pub fn flush(&self, exclusive: bool) {
        if exclusive {
            let nodes = self.due(false);
            let patch = self.fits_patches(&nodes);
            return self.put_group(&nodes, Some(patch));
        }
        for _ in 0..ROUNDS {
            let nodes = self.due(false);
            let light = nodes.len() <= LIGHT_FILES
                && self.held_by(&nodes) <= LIGHT_BYTES
                && nodes.iter().map(Self::incomplete).sum::<usize>() <= LIGHT_CHUNKS;
            if light {
                // Reading old content may wait for a disk; that must not happen with all writers excluded. Small writes
                // need none of it.
                let mut budget = LIGHT_CHUNKS;
                let patch = self.fits_patches(&nodes);
                nodes.iter().for_each(|node| self.complete(node, &mut budget, patch));
                return;
            }
            self.put_groups(&nodes);
        }
    }

    /// Put what is buffered of one file. What the store refuses stays buffered, as in every flush.
    pub fn flush_one(&self, node: &Arc<FileNode>) {
        node.retry_now();
        self.put_groups(std::slice::from_ref(node));
    }

    /// Put everything, files without a name too, to make room.
    pub(super) fn flush_for_room(&self) {
        let nodes = self.due(true);
        self.put_groups(&nodes);
    }

    /// Let the next flush try all files, whatever failed before.
    pub fn retry_all(&self) {
        self.list.lock().values().for_each(|node| node.retry_now());
    }

    /// Whether a file that has a name has something to put.
    pub fn has_dirty(&self) -> bool {
        self.list.lock().values().any(|node| !node.orphan.load(Ordering::Relaxed))
    }

    /// Number of files that have something to put.
    pub fn dirty_files(&self) -> usize {
        self.list.lock().len()
    }

    /// Files to put now. They stay on the list until they are put.
    fn due(&self, orphans: bool) -> Vec<Arc<FileNode>> {
        let now_ns = SystemClock.now_ns();
        let wanted = |node: &&Arc<FileNode>| (orphans || !node.orphan.load(Ordering::Relaxed)) && node.is_due(now_ns);
        self.list.lock().values().filter(wanted).cloned().collect()
    }

    /// Whether what was written to these files is little enough to go into the commit record.
    fn fits_patches(&self, nodes: &[Arc<FileNode>]) -> bool {
        let (mut bytes, mut runs) = (0, 0);
        for node in nodes {
            let state = node.state.lock();
            let Some(dirty) = state.as_ref() else { continue };
            for (_, written, count) in dirty.buffer.small_writes() {
                bytes += written;
                runs += count;
            }
            if bytes > PATCH_BYTES || runs > PATCH_RUNS {
                return false;
            }
        }
        true
    }

    /// The chunks of a file whose small writes can be stored as patches.
    fn patchable(&self, dirty: &Dirty) -> Vec<u64> {
        let small = dirty.buffer.small_writes();
        small
            .filter(|(chunk, bytes, _)| self.volume.may_patch(&dirty.base, ChunkNo(*chunk), *bytes))
            .map(|(chunk, ..)| chunk)
            .collect()
    }

    fn held_by(&self, nodes: &[Arc<FileNode>]) -> usize {
        nodes.iter().map(|node| node.state.lock().as_ref().map_or(0, |dirty| dirty.buffer.held())).sum()
    }

    fn put_groups(&self, nodes: &[Arc<FileNode>]) {
        let mut rest = nodes;
        while !rest.is_empty() {
            let mut bytes = 0;
            let count = rest
                .iter()
                .take(GROUP_FILES)
                .take_while(|node| {
                    let fits = bytes < GROUP_BYTES;
                    bytes += self.held_by(std::slice::from_ref(node));
                    fits
                })
                .count();
            let (group, later) = rest.split_at(count.max(1));
            self.put_group(group, None);
            rest = later;
        }
    }

    /// `exclusive`: the caller excluded all writers; `Some(true)`: small writes may be stored as patches.
    fn put_group(&self, nodes: &[Arc<FileNode>], exclusive: Option<bool>) {
        let _finish = MustFinish;
        self.putting.lock().0 += 1;
        let patch = exclusive.unwrap_or(false);
        // Each round completes as many chunks as it may, and writers add few meanwhile.
        let incomplete: usize = nodes.iter().map(Self::incomplete).sum();
        for _ in 0..=incomplete / COMPLETE_MAX {
            let mut budget = COMPLETE_MAX;
            nodes.iter().for_each(|node| self.complete(node, &mut budget, patch));
            let _gate = exclusive.is_none().then(|| self.volume.gate());
            let plans: Vec<Plan> = nodes.iter().filter_map(|node| self.plan(node, patch)).collect();
            let batches = batches(&plans);
            for_each_parallel(batches.len(), |index| self.put_batch(&plans, &batches[index]));
            self.put_patches(&plans);
            for plan in plans {
                self.conclude(plan);
            }
        }
        let mut putting = self.putting.lock();
        (putting.0, putting.1) = (putting.0 - 1, putting.1 + 1);
        self.put.notify_all();
    }

    /// Wait until what is being put now has been, `patience` at most.
    pub(super) fn await_put(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut putting = self.putting.lock();
        let enough = putting.1 + putting.0 as u64;
        while putting.0 > 0 && putting.1 < enough {
            if self.put.wait_until(&mut putting, deadline).timed_out() {
                return;
            }
        }
    }

    /// Number of a file's chunks that were written in part.
    fn incomplete(node: &Arc<FileNode>) -> usize {
        node.state.lock().as_ref().map_or(0, |dirty| dirty.buffer.incomplete().count())
    }

    /// Bring in the old content of chunks that were written in part: `budget` chunks at most, which is counted down.
    /// With `patch` only of those whose writes are no patches.
    fn complete(&self, node: &Arc<FileNode>, budget: &mut usize, patch: bool) {
        let Some((attr, wanted, inline)) = node.state.lock().as_ref().and_then(|dirty| {
            let patches = if patch { self.patchable(dirty) } else { Vec::new() };
            let wanted = dirty.buffer.incomplete().filter(|(chunk, _)| patches.binary_search(chunk).is_err());
            let wanted: Vec<(u64, u64)> = wanted.take(*budget).collect();
            let mut attr = dirty.base;
            attr.size = attr.size.max(dirty.buffer.stored_end());
            (!wanted.is_empty()).then_some((attr, wanted, dirty.stored_inline))
        }) else {
            return;
        };
        let chunks: Vec<ChunkNo> = wanted.iter().map(|(chunk, _)| ChunkNo(*chunk)).collect();
        *budget -= chunks.len();
        let found = match stored::read(&self.volume, &attr, &chunks, Some(inline)) {
            Ok(found) => found,
            Err(error) => return self.refused(node, "reading what a write covers in part", &error),
        };
        let mut state = node.state.lock();
        let Some(dirty) = state.as_mut() else { return };
        for ((chunk, id), old) in wanted.iter().zip(&found) {
            dirty.buffer.fill(*chunk, *id, Some(old));
        }
        self.account(dirty);
    }

    /// Take what can be put of a file, under the gate.
    fn plan(&self, node: &Arc<FileNode>, patch: bool) -> Option<Plan> {
        let mut state = node.state.lock();
        while state.as_ref().is_some_and(|dirty| dirty.buffer.is_contended()) {
            node.settled.wait(&mut state);
        }
        let dirty = state.as_mut()?;
        if let Err(error) = self.refresh(dirty, node.ino) {
            drop(state);
            self.refused(node, "reading its attributes", &error);
            return None;
        }
        dirty.listed = false;
        self.list.lock().remove(&node.ino);
        let inline = dirty.buffer.fits_inline(INLINE_MAX as u64);
        let small = if patch && !inline { self.patchable(dirty) } else { Vec::new() };
        let patches = dirty.buffer.begin_patch(&small);
        let taken = dirty.buffer.begin_seal(0..u64::MAX, false);
        self.account(dirty);
        if taken.is_empty() && patches.is_empty() && dirty.changes == dirty.put {
            self.settle(node, &mut state);
            return None;
        }
        let inline = inline.then(|| {
            let mut data = taken.first().map(|taken| taken.bytes().to_vec()).unwrap_or_default();
            data.resize(dirty.buffer.size() as usize, 0);
            data
        });
        let (node, changes) = (Arc::clone(node), dirty.changes);
        Some(Plan { node, taken, patches, inline, changes, failed: AtomicBool::new(false) })
    }

    /// Look at what the store knows now: another operation may have moved the change time on, and inline content that
    /// is not in the buffer would be lost.
    fn refresh(&self, dirty: &mut Dirty, ino: Ino) -> Result<(), Error> {
        dirty.base = self.volume.attr(ino)?;
        dirty.ctime_ns = dirty.ctime_ns.max(dirty.base.ctime_ns);
        if dirty.stored_inline
            && let Some(data) = self.volume.inline_data(ino)?
        {
            dirty.buffer.load_inline(&data);
            self.account(dirty);
        }
        Ok(())
    }

    fn put_batch(&self, plans: &[Plan], batch: &Batch) {
        let of_file = |(plan, range): &(usize, std::ops::Range<usize>)| {
            let chunks: Vec<(ChunkNo, &[u8])> =
                plans[*plan].taken[range.clone()].iter().map(|taken| (ChunkNo(taken.chunk), taken.bytes())).collect();
            (plans[*plan].node.ino, chunks)
        };
        if batch.len() > 1 {
            let files: Vec<_> = batch.iter().map(of_file).collect();
            if self.volume.write_files(&files).is_ok() {
                return;
            }
            // Which of them it was is found by putting each alone.
        }
        for part in batch {
            let (ino, chunks) = of_file(part);
            if let Err(error) = self.volume.write_chunks(ino, &chunks) {
                plans[part.0].failed.store(true, Ordering::Relaxed);
                self.refused(&plans[part.0].node, "storing its content", &error);
            }
        }
    }

    /// Store the small writes of all files.
    fn put_patches(&self, plans: &[Plan]) {
        let plans: Vec<&Plan> = plans.iter().filter(|plan| !plan.patches.is_empty()).collect();
        if plans.len() > 1 {
            let files: Vec<_> = plans.iter().map(|plan| plan.small_writes()).collect();
            if self.volume.write_patches(&files).is_ok() {
                return;
            }
            // Which of them it was is found by putting each alone.
        }
        for plan in plans {
            if let Err(error) = self.volume.write_patches(&[plan.small_writes()]) {
                plan.failed.store(true, Ordering::Relaxed);
                self.refused(&plan.node, "storing its content", &error);
            }
        }
    }

    /// Give the file its new size and times, if its content was stored, and let go of the chunks.
    ///
    /// Size and times are those of this moment, under the file's lock: a truncate since the plan was made has been put
    /// already and must not be undone. What was written since is put later, in the same generation.
    fn conclude(&self, plan: Plan) {
        let Plan { node, mut taken, patches, inline, changes, failed } = plan;
        taken.extend(patches);
        let mut state = node.state.lock();
        // Nothing was taken and everything was put by others.
        let Some(dirty) = state.as_mut() else { return };
        let was_inline = inline.is_some();
        // Inline content is the whole file or nothing.
        let stored = !failed.into_inner() && (!was_inline || changes == dirty.changes);
        // With chunks still to be completed there will be another round for this file, and one change is enough. Chunks
        // whose old content cannot be read must not hold back the rest.
        let incomplete = dirty.buffer.incomplete().next().is_some();
        let more = incomplete && !was_inline && node.is_due(SystemClock.now_ns());
        // What is buffered beyond what was taken is still to come.
        let rest = dirty.buffer.chunks_held().saturating_sub(taken.len()) as u64;
        let put = (stored && !more).then(|| {
            let (size, mtime_ns, ctime_ns) = (dirty.buffer.size(), dirty.mtime_ns, dirty.ctime_ns);
            let change = FileChange { size, mtime_ns, ctime_ns, inline, clear_suid: false };
            self.volume.set_file_promised(node.ino, &change, |attr| takes(attr, size, rest))
        });
        let is_put = matches!(put, Some(Ok(_)));
        // Inline content is stored by the change itself.
        let content_stored = if was_inline { is_put } else { stored };
        if is_put || (content_stored && taken.iter().any(|taken| taken.chunk == 0)) {
            dirty.stored_inline = was_inline;
        }
        for chunk in taken {
            dirty.buffer.end_seal(chunk, content_stored);
        }
        self.account(dirty);
        let refusal = match put {
            Some(Ok((attr, promised))) => {
                node.put(attr.version);
                dirty.base = attr;
                (dirty.promised, dirty.put_since) = (promised, 0);
                dirty.put = dirty.changes;
                if !incomplete {
                    node.succeeded();
                }
                None
            }
            Some(Err(error)) => Some(error),
            None => None,
        };
        self.settle(&node, &mut state);
        node.settled.notify_all();
        drop(state);
        if let Some(error) = refusal {
            self.refused(&node, "storing its size and times", &error);
        }
    }

    /// Seal a run of full chunks of a file that is being streamed to.
    pub(super) fn seal_run(&self, node: &Arc<FileNode>, first: u64, count: u64) {
        let _finish = MustFinish;
        self.volume.bound_unsynced();
        let _gate = self.volume.gate();
        let taken = match node.state.lock().as_mut() {
            Some(dirty) => dirty.buffer.begin_seal(first..first + count, true),
            None => return,
        };
        if taken.is_empty() {
            return;
        }
        let chunks: Vec<(ChunkNo, &[u8])> = taken.iter().map(|taken| (ChunkNo(taken.chunk), taken.bytes())).collect();
        let result = self.volume.write_chunks(node.ino, &chunks);
        drop(chunks);
        let mut state = node.state.lock();
        if let Some(dirty) = state.as_mut() {
            for chunk in taken {
                dirty.stored_inline &= chunk.chunk != 0 || result.is_err();
                dirty.put_since += 1;
                dirty.buffer.end_seal(chunk, result.is_ok());
            }
            self.account(dirty);
            self.settle(node, &mut state);
        }
        node.settled.notify_all();
        drop(state);
        if let Err(error) = result {
            self.refused(node, "storing its content", &error);
        }
    }

    /// The store refused something of a file: remembered for its handles, told to the operator.
    fn refused(&self, node: &FileNode, doing: &str, error: &Error) {
        let orphan = node.orphan.load(Ordering::Relaxed);
        if orphan && matches!(error, Error::Stale(_)) {
            return;
        }
        node.failed(Errno::from(error), SystemClock.now_ns());
        // The next commit has something to do: this file again.
        self.set_changed();
        (self.report)(&format!("inode {}: {doing}: {error}; kept in memory and tried again", node.ino));
    }
}

/// Cut what is to be put into calls: chunks of one file together, small files gathered, so that the store can pack them
/// into shared stripes.
fn batches(plans: &[Plan]) -> Vec<Batch> {
    let (mut all, mut open, mut bytes) = (Vec::new(), Batch::new(), 0);
    for (index, plan) in plans.iter().enumerate() {
        if plan.inline.is_some() {
            continue;
        }
        let mut start = 0;
        for (at, taken) in plan.taken.iter().enumerate() {
            bytes += taken.bytes().len();
            if bytes >= BATCH_BYTES {
                open.push((index, start..at + 1));
                all.push(std::mem::take(&mut open));
                (start, bytes) = (at + 1, 0);
            }
        }
        if start < plan.taken.len() {
            open.push((index, start..plan.taken.len()));
        }
    }
    if !open.is_empty() {
        all.push(open);
    }
    all
}
