//! Salt epochs: what is written after a rotation shares no salt with what was written before. Blocks of earlier epochs
//! stay readable (a reader needs keys, not salts) and drain as files are rewritten, or all at once by [`reseal`].

use serde::Serialize;

use crate::blocks::Put;
use crate::error::{Error, Result};
use crate::ids::{BlockKey, ChunkNo, DataId, Ino, ROOT_INO};
use crate::meta::Walk;
use crate::meta::rows::{CHUNK_END, FileKind};
use crate::seal::Sealer;
use crate::volume::Volume;

/// Chunks sealed anew in one operation.
const BATCH: usize = 8;
/// Chunks looked at in one operation.
const PAGE: u64 = 256;

/// Blocks in use of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EpochUsage {
    /// The epoch.
    pub epoch: u32,
    /// Blocks that files and former states name.
    pub blocks: u64,
    /// Their sealed bytes.
    pub stored_bytes: u64,
}

/// The epochs of a volume. Fields are documented in docs/CLI.md and only ever added to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EpochReport {
    /// Of new blocks.
    pub epoch: u32,
    /// Of blocks in use, ascending.
    pub epochs: Vec<EpochUsage>,
    /// Chunks sealed anew by this command.
    pub resealed_chunks: u64,
    /// Their plaintext, bytes.
    pub resealed_bytes: u64,
    /// False if it was stopped early.
    pub complete: bool,
}

/// The epochs as they are.
///
/// # Errors
/// [`Error::Database`].
pub fn epochs(volume: &Volume) -> Result<EpochReport> {
    let epochs = volume.meta().reader()?.epochs()?;
    let epochs = epochs.into_iter().map(|(epoch, blocks, stored_bytes)| EpochUsage { epoch, blocks, stored_bytes });
    Ok(EpochReport {
        epoch: volume.epoch(),
        epochs: epochs.collect(),
        resealed_chunks: 0,
        resealed_bytes: 0,
        complete: true,
    })
}

/// A chunk whose block is of an earlier epoch.
struct Old {
    chunk: ChunkNo,
    key: BlockKey,
}

/// Seal what files hold anew under the salts of the present epoch. Content, versions and times of the files stay; their
/// former states keep their blocks. `step` is told the bytes done and to do, and ends the work by returning false; done
/// in part it does no harm, and done again it goes on.
///
/// # Errors
/// [`Error::ReadOnly`], [`Error::NoSpace`]; [`Error::BlockLost`] for what cannot be read.
pub fn reseal(volume: &Volume, step: &dyn Fn(&str, u64, u64) -> bool) -> Result<EpochReport> {
    let mut files: Vec<(Ino, DataId, u32, u64)> = Vec::new();
    volume.meta().reader()?.walk(ROOT_INO, b"", |_, row| {
        if row.kind == FileKind::File && row.inline.is_none() && row.allocated > 0 {
            files.push((row.ino, row.data, row.uid, row.allocated));
        }
        Ok(Walk::On)
    })?;
    files.sort_unstable();
    files.dedup_by_key(|file| file.0);
    let total: u64 = files.iter().map(|file| file.3).sum();
    let (mut chunks, mut bytes, mut done, mut complete) = (0, 0, 0, true);
    'files: for (ino, data, uid, allocated) in files {
        let mut from = ChunkNo(0);
        while let Some((old, next)) = old_chunks(volume, data, from)? {
            for batch in old.chunks(BATCH) {
                if !step("reseal", done, total) {
                    complete = false;
                    break 'files;
                }
                let (resealed, len) = reseal_batch(volume, (ino, data, uid), batch)?;
                chunks += resealed;
                bytes += len;
            }
            from = next;
        }
        done += allocated;
        step("reseal", done, total);
    }
    Ok(EpochReport { resealed_chunks: chunks, resealed_bytes: bytes, complete, ..epochs(volume)? })
}

/// Chunks from `from` on, a page of them, whose blocks are of an earlier epoch, and where to go on; `None`: no more.
fn old_chunks(volume: &Volume, data: DataId, from: ChunkNo) -> Result<Option<(Vec<Old>, ChunkNo)>> {
    let epoch = volume.epoch();
    volume.meta().with(|txn| {
        let Some(first) = txn.seek_data(data, from)? else { return Ok(None) };
        let to = ChunkNo(first.0.saturating_add(PAGE)).min(CHUNK_END);
        let mut old = Vec::new();
        for (chunk, key) in txn.extents(data, first, to)? {
            if txn.block(&Sealer::block_id(&key))?.is_some_and(|row| row.epoch < epoch) {
                old.push(Old { chunk, key });
            }
        }
        Ok(Some((old, to)))
    })
}

fn reseal_batch(volume: &Volume, (ino, data, uid): (Ino, DataId, u32), batch: &[Old]) -> Result<(u64, u64)> {
    let _held = volume.gate();
    let _pin = volume.blocks().pins().enter();
    // What was written or freed since the page was read needs nothing.
    let batch: Vec<&Old> = volume.meta().with(|txn| {
        let mut still = Vec::with_capacity(batch.len());
        for old in batch {
            if txn.extent(data, old.chunk)? == Some(old.key) {
                still.push(old);
            }
        }
        Ok(still)
    })?;
    let keys: Vec<BlockKey> = batch.iter().map(|old| old.key).collect();
    let plain = volume.blocks().get(&keys, Some(ino))?.into_iter().collect::<Result<Vec<_>>>()?;
    let salt = volume.salt(ino, uid);
    let puts: Vec<Put<'_>> = plain.iter().map(|plain| Put { plain, salt }).collect();
    let len: u64 = plain.iter().map(|plain| plain.len() as u64).sum();
    let _reservation = volume.reserve(len)?;
    let resealed = volume.blocks().put(&puts, |txn, stored| {
        let mut resealed = 0;
        for (old, stored) in batch.iter().zip(stored) {
            // Small writes over it are folded soon, and their block is of the present epoch.
            let patched = txn.chunk_patches(data, old.chunk).is_some();
            if patched || txn.extent(data, old.chunk)? != Some(old.key) {
                continue;
            }
            match txn.put_extents(ino, &[(old.chunk, Some(stored.key))]) {
                Ok(()) => resealed += 1,
                // Removed meanwhile.
                Err(Error::Stale(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(resealed)
    })?;
    Ok((resealed, len))
}
