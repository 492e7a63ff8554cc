//! Small writes: kept as patches in the commit log, folded into blocks behind.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::Volume;
use super::data::is_zero;
use crate::blocks::Put;
use crate::error::{Error, Result};
use crate::ids::{BlockKey, ChunkNo, DataId, Ino};
use crate::meta::patch::{ChunkPatches, Fold, Patch, lay};
use crate::meta::rows::Attr;

/// A chunk with so many patches takes no more: its next write stores it whole.
const CHUNK_ROWS_MAX: u32 = 64;
/// A chunk with so many patches is folded, or when they are as long as it is: of one that is appended to, once.
const CHUNK_ROWS_DUE: u32 = 48;
/// Of one that got none for so long, fewer will do: its writer is slow, and is not to find it full.
const SLOW: Duration = Duration::from_millis(50);
const SLOW_ROWS_DUE: u32 = 24;
/// As many bytes of all patches as the database is to hold; past half of it all are folded.
const BYTES_MAX: u64 = 32 << 20;
/// A chunk that got no patch for so long is folded.
const IDLE: Duration = Duration::from_secs(5);
/// When chunks that cannot be read are tried again, at the earliest.
const RETRY: Duration = Duration::from_secs(60);
/// Chunks and bytes folded in one call to the store, so that small ones share stripes and nobody is held up for long.
const BATCH: usize = 32;
const BATCH_BYTES: usize = 1 << 20;
/// Batches in one round of housekeeping.
const BATCHES_MAX: usize = 64;

/// Chunks with patches that cannot be folded because what is under them cannot be read.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// The chunks, and the bytes of their patches.
    patches: HashMap<(DataId, ChunkNo), u64>,
    /// When the first of them was tried.
    since: Option<Instant>,
    /// A round came to its end since: there is none that was not tried.
    all_tried: bool,
}

impl Volume {
    /// Whether a small write of `len` bytes to a chunk may be kept as a patch.
    pub fn may_patch(&self, attr: &Attr, chunk: ChunkNo, len: usize) -> bool {
        let fits = self.meta.look(|txn| {
            let over = txn.chunk_patches(attr.data, chunk);
            let (rows, bytes) = over.map_or((0, 0), |patches| (patches.rows, patches.bytes));
            let small = bytes + len as u64 <= 1 << attr.chunk_bits;
            Ok(rows < CHUNK_ROWS_MAX && small && txn.patch_bytes() + len as u64 <= BYTES_MAX)
        });
        fits.unwrap_or(false)
    }

    /// Keep small writes to files as patches in the open generation, in one operation: all or none. Not a change of version:
    /// [`Volume::set_file`] is.
    pub fn write_patches(&self, files: &[(Ino, Vec<Patch<'_>>)]) -> Result<()> {
        self.change(|txn| {
            for (ino, patches) in files {
                match txn.put_patches(*ino, patches) {
                    // Removed meanwhile: nobody can read it any more.
                    Err(Error::Stale(_)) => {}
                    other => other?,
                }
            }
            Ok(())
        })
    }

    /// Fold patches that are many, or that nobody added to for a while. `all`: however few they are.
    pub(crate) fn fold_due(&self, all: bool) -> Result<()> {
        // Each once, and those that could not be read not before the others: they are not to keep them from it.
        let (mut tried, unread_bytes) = {
            let mut unread = self.unread.lock();
            if unread.all_tried && unread.since.is_none_or(|since| since.elapsed() >= RETRY) {
                *unread = Unread { since: Some(Instant::now()), ..Unread::default() };
            }
            (unread.patches.keys().copied().collect::<HashSet<_>>(), unread.patches.values().sum::<u64>())
        };
        let (mut all_tried, mut failures) = (false, 0);
        for _ in 0..if all { usize::MAX } else { BATCHES_MAX } {
            let due = self.meta.look(|txn| {
                let all = all || txn.patch_bytes().saturating_sub(unread_bytes) > BYTES_MAX / 2;
                let wanted = |at: &(DataId, ChunkNo), patches: &ChunkPatches| {
                    let since = patches.touched.elapsed();
                    let slow = patches.rows >= SLOW_ROWS_DUE && since >= SLOW;
                    let due = all || patches.full || patches.rows >= CHUNK_ROWS_DUE || slow || since >= IDLE;
                    due && !tried.contains(at)
                };
                Ok(txn.patched_chunks(BATCH, wanted))
            })?;
            if due.is_empty() {
                all_tried = true;
                break;
            }
            let (looked_at, unreadable) = self.fold(&due)?;
            tried.extend(due.into_iter().take(looked_at));
            // Each may have waited for disks, and other things wait for the housekeeper.
            failures += unreadable;
            if failures >= BATCH {
                break;
            }
        }
        self.unread.lock().all_tried |= all_tried;
        Ok(())
    }

    /// Fold the patches of some of these chunks into blocks, but for those that cannot be read or are written to meanwhile.
    /// Returns how many chunks were looked at, at least one, and how many of them cannot be read.
    fn fold(&self, chunks: &[(DataId, ChunkNo)]) -> Result<(usize, usize)> {
        let mut folds: Vec<(Fold, Vec<u8>)> = Vec::new();
        // Whose they are, and whether they are written to.
        let mut owners = Vec::new();
        let mut bytes = 0;
        // What the extents name is not freed before it is read.
        let _pin = self.blocks.pins().enter();
        // Without the gate: reading may wait for a disk. What changes meanwhile is not folded.
        let (mut looked_at, mut unreadable) = (0, 0);
        for (data, chunk) in chunks {
            if bytes >= BATCH_BYTES {
                break;
            }
            looked_at += 1;
            let next = ChunkNo(chunk.0 + 1);
            let found = self.meta.look(|txn| {
                let Some(over) = txn.chunk_patches(*data, *chunk) else { return Ok(None) };
                let under = txn.extent(*data, *chunk)?;
                let patches = txn.patches(*data, *chunk, next)?;
                let fold = Fold { ino: over.ino, data: *data, chunk: *chunk, under, last: over.last };
                let written_to = !over.full && over.touched.elapsed() < SLOW;
                Ok(txn.attr(over.ino).ok().map(|attr| (fold, patches, (attr.uid, written_to))))
            })?;
            let Some((fold, patches, owner)) = found else { continue };
            let mut content = match &fold.under {
                // What cannot be read cannot be folded; the patches stay, and reads of the chunk say what is wrong.
                Some(key) => match self.blocks.get(&[*key], Some(fold.ino))?.pop() {
                    Some(Ok(read)) => read.to_vec(),
                    Some(Err(error)) => {
                        log::warn!("inode {}: small writes are not folded: {error}", fold.ino);
                        let bytes = patches.iter().map(|patch| patch.bytes.len() as u64).sum();
                        self.unread.lock().patches.insert((*data, *chunk), bytes);
                        unreadable += 1;
                        continue;
                    }
                    None => continue,
                },
                None => Vec::new(),
            };
            lay(&mut content, &patches);
            bytes += content.len();
            owners.push(owner);
            folds.push((fold, content));
        }
        let (mut puts, mut ahead) = (Vec::new(), Vec::new());
        let stored_by: Vec<Option<usize>> = folds
            .iter()
            .zip(&owners)
            .map(|((fold, content), (uid, written_to))| {
                (!is_zero(content)).then(|| {
                    let put = Put { plain: content, salt: self.salt(fold.ino, *uid) };
                    ahead.extend((!written_to).then_some(put));
                    puts.push(put);
                    puts.len() - 1
                })
            })
            .collect();
        let bytes: u64 = puts.iter().map(|put| put.plain.len() as u64).sum();
        // Storing, too, and synced before anything names it: no commit waits for either. What is written to would have changed
        // until then, and have been stored for nothing.
        self.blocks.put_ahead(&ahead, || self.gate())?;
        let _held = self.gate();
        self.blocks.put(&puts, |txn, stored| {
            for ((fold, _), put) in folds.iter().zip(&stored_by) {
                let key: Option<BlockKey> = put.map(|put| stored[put].key);
                txn.fold(fold, key)?;
            }
            Ok(())
        })?;
        self.space.wrote(bytes);
        Ok((looked_at, unreadable))
    }
}
