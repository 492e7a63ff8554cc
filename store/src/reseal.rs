//! Salt epochs: what is written after a rotation shares no salt with what was written before. Blocks of earlier epochs
//! stay readable (a reader needs keys, not salts) and drain as files are rewritten, or all at once by [`reseal`].

use std::time::{Duration, Instant};

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
    /// Earlier epochs of which nothing is in use any more.
    pub drained: u32,
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
    let (epoch, epochs) = (volume.epoch(), count(volume)?);
    Ok(EpochReport {
        epoch,
        drained: drained(epoch, &epochs),
        epochs,
        resealed_chunks: 0,
        resealed_bytes: 0,
        complete: true,
    })
}

/// What `brine status` tells of epochs. Fields are documented in docs/CLI.md and only ever added to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SaltStatus {
    /// Of new blocks.
    pub epoch: u32,
    /// Of blocks in use, ascending.
    pub epochs: Vec<EpochUsage>,
    /// Earlier epochs of which nothing is in use any more.
    pub drained: u32,
    /// Blocks in use of earlier epochs.
    pub left_blocks: u64,
    /// Their sealed bytes.
    pub left_bytes: u64,
}

/// What was counted last, and when.
pub(crate) type Counted = Option<(Instant, Vec<EpochUsage>)>;

/// Counting looks at every block: what is told in passing may be so old.
const COUNTED_AGE_MAX: Duration = Duration::from_secs(60);

/// The epochs as they are, or were a minute ago.
///
/// # Errors
/// [`Error::Database`].
pub(crate) fn status(volume: &Volume) -> Result<SaltStatus> {
    let epoch = volume.epoch();
    let epochs = if epoch == 0 {
        // There is no other.
        let counters = volume.meta().counters();
        let all = EpochUsage { epoch, blocks: counters.live_blocks, stored_bytes: counters.stored_bytes };
        if all.blocks > 0 { vec![all] } else { Vec::new() }
    } else {
        let mut counted = volume.epochs_counted().lock();
        match &*counted {
            Some((at, epochs)) if at.elapsed() < COUNTED_AGE_MAX => epochs.clone(),
            _ => {
                let epochs = count(volume)?;
                *counted = Some((Instant::now(), epochs.clone()));
                epochs
            }
        }
    };
    let earlier = || epochs.iter().filter(|usage| usage.epoch < epoch);
    Ok(SaltStatus {
        epoch,
        drained: drained(epoch, &epochs),
        left_blocks: earlier().map(|usage| usage.blocks).sum(),
        left_bytes: earlier().map(|usage| usage.stored_bytes).sum(),
        epochs,
    })
}

fn count(volume: &Volume) -> Result<Vec<EpochUsage>> {
    let epochs = volume.meta().reader()?.epochs()?;
    let usage = |(epoch, blocks, stored_bytes)| EpochUsage { epoch, blocks, stored_bytes };
    Ok(epochs.into_iter().map(usage).collect())
}

/// How many of the epochs before `epoch` have no blocks in use.
fn drained(epoch: u32, epochs: &[EpochUsage]) -> u32 {
    epoch - epochs.iter().filter(|usage| usage.epoch < epoch).count() as u32
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
