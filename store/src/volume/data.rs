//! File data: chunks in and out of the store.

use std::collections::HashMap;
use std::sync::Arc;

use super::{DomainPolicy, Volume};
use crate::blocks::{Chunk, Put};
use crate::error::{Error, Result};
use crate::ids::{BlockKey, ChunkNo, DataId, Ino};
use crate::meta::patch::lay;
use crate::meta::rows::{Attr, BlockRow, FileChange, FileKind, INLINE_MAX, PatchRow};
use crate::seal::{BlockKind, Salt, Sealer};

/// Dirty chunks of one file: number and plaintext, not longer than the file needs.
pub type FileChunks<'a> = (Ino, Vec<(ChunkNo, &'a [u8])>);

/// Where a file's stored bytes are.
enum Place {
    Inline(Arc<[u8]>),
    /// Blocks of the chunks asked for, and small writes over them.
    Extents(Vec<Option<BlockKey>>, Vec<PatchRow>),
}

impl Volume {
    /// Stored bytes of whole chunks, from the cache or the backing directories. `None`: a hole. A chunk may be shorter
    /// than the chunk length; the rest reads as zero.
    pub fn read_chunks(&self, attr: &Attr, chunks: &[ChunkNo]) -> Result<Vec<Option<Arc<Chunk>>>> {
        // From the extents to the shards: what they name is not freed meanwhile.
        let _pin = self.blocks.pins().enter();
        match self.place(attr, chunks)? {
            Place::Inline(bytes) => Ok(inline_chunks(&bytes, chunks)),
            Place::Extents(keys, patches) => {
                let mut found = self.read_keys(&keys, attr.ino)?;
                lay_over(chunks, &mut found, &patches);
                Ok(found)
            }
        }
    }

    /// The chunks of blocks, which are an inode's; `None` for holes.
    pub(super) fn read_keys(&self, keys: &[Option<BlockKey>], ino: Ino) -> Result<Vec<Option<Arc<Chunk>>>> {
        let present: Vec<BlockKey> = keys.iter().flatten().copied().collect();
        self.prefetcher.wait_for(&present);
        let mut read = self.blocks.get(&present, Some(ino))?.into_iter();
        keys.iter()
            .map(|key| match key {
                None => Ok(None),
                Some(_) => read.next().transpose().map_err(|error| self.name_lost(ino, error)),
            })
            .collect()
    }

    /// What the cache holds of these chunks: `None` if anything would have to be read.
    pub fn cached_chunks(&self, attr: &Attr, chunks: &[ChunkNo]) -> Option<Vec<Option<Arc<Chunk>>>> {
        match self.place(attr, chunks).ok()? {
            Place::Inline(bytes) => Some(inline_chunks(&bytes, chunks)),
            Place::Extents(keys, patches) => {
                let mut found = keys
                    .iter()
                    .map(|key| match key {
                        None => Some(None),
                        Some(key) => self.blocks.cache().get(&Sealer::block_id(key)).map(Some),
                    })
                    .collect::<Option<Vec<_>>>()?;
                lay_over(chunks, &mut found, &patches);
                Some(found)
            }
        }
    }

    /// Read `count` chunks from `first` into the cache in the background.
    pub fn prefetch(&self, attr: &Attr, first: ChunkNo, count: u64) {
        let end = attr.size.div_ceil(1 << attr.chunk_bits);
        let chunks: Vec<ChunkNo> = (first.0..first.0.saturating_add(count).min(end)).map(ChunkNo).collect();
        if let Ok(Place::Extents(keys, _)) = self.place(attr, &chunks) {
            self.prefetcher.ask(keys.into_iter().flatten().collect(), attr.ino);
        }
    }

    fn place(&self, attr: &Attr, chunks: &[ChunkNo]) -> Result<Place> {
        let (Some(first), Some(last)) = (chunks.iter().min(), chunks.iter().max()) else {
            return Ok(Place::Extents(Vec::new(), Vec::new()));
        };
        self.meta.with(|txn| {
            if attr.size <= INLINE_MAX as u64
                && let Some(bytes) = txn.inline_data(attr.ino)?
            {
                return Ok(Place::Inline(bytes));
            }
            let rows = txn.extents(attr.data, *first, ChunkNo(last.0 + 1))?;
            let by_chunk: HashMap<ChunkNo, BlockKey> = rows.into_iter().collect();
            let patches = txn.patches(attr.data, *first, ChunkNo(last.0 + 1))?;
            Ok(Place::Extents(chunks.iter().map(|chunk| by_chunk.get(chunk).copied()).collect(), patches))
        })
    }

    /// Losses are logged with the file's name, once where they are met.
    fn name_lost(&self, ino: Ino, error: Error) -> Error {
        if matches!(error, Error::BlockLost { .. }) {
            let path = self.path_of(ino).unwrap_or_else(|_| format!("inode {ino}"));
            log::error!("{path}: {error}");
        }
        error
    }

    /// Seal, deduplicate and append chunks of one file. See [`Self::write_files`].
    pub fn write_chunks(&self, ino: Ino, chunks: &[(ChunkNo, &[u8])]) -> Result<()> {
        self.write_files(&[(ino, chunks.to_vec())])
    }

    /// Seal, deduplicate and append chunks of several files, small ones sharing stripes, and put their extents into
    /// the open generation. All-zero chunks become holes. Not a change of version: [`Self::set_file`] is.
    pub fn write_files(&self, files: &[FileChunks<'_>]) -> Result<()> {
        self.writable()?;
        let owners = self.meta.with(|txn| {
            files
                .iter()
                .map(|(ino, _)| Ok(txn.attr(*ino).ok().map(|attr| (attr.data, attr.uid))))
                .collect::<Result<Vec<Option<(DataId, u32)>>>>()
        })?;
        let mut puts = Vec::new();
        // Per chunk: the file, the chunk, and the put that stores it (none: a hole).
        let mut places: Vec<(Ino, ChunkNo, Option<usize>)> = Vec::new();
        for ((ino, chunks), owner) in files.iter().zip(&owners) {
            // A file that was removed meanwhile needs nothing stored.
            let Some((_, uid)) = owner else { continue };
            let salt = self.salt(*ino, *uid);
            for (chunk, plain) in chunks {
                let hole = is_zero(plain);
                places.push((*ino, *chunk, (!hole).then_some(puts.len())));
                if !hole {
                    puts.push(Put { plain, salt });
                }
            }
        }
        let bytes: u64 = puts.iter().map(|put| put.plain.len() as u64).sum();
        self.blocks.put(&puts, |txn, stored| {
            for run in places.chunk_by(|a, b| a.0 == b.0) {
                let chunks: Vec<(ChunkNo, Option<BlockKey>)> =
                    run.iter().map(|(_, chunk, put)| (*chunk, put.map(|put| stored[put].key))).collect();
                match txn.put_extents(run[0].0, &chunks) {
                    // Removed meanwhile: nothing refers to what was stored for it.
                    Err(Error::Stale(_)) => {}
                    other => other?,
                }
            }
            Ok(())
        })?;
        self.space.wrote(bytes);
        Ok(())
    }

    /// Store chunks that are about to be written to `file`, so that [`Self::write_chunks`] finds them and has little to do.
    /// Everybody goes on meanwhile: the caller must not hold the gate. They are no part of the file until they are written.
    ///
    /// # Errors
    /// As of [`Self::write_chunks`]; nothing is lost by them.
    pub fn store_ahead(&self, file: &Attr, chunks: &[&[u8]]) -> Result<()> {
        self.writable()?;
        let salt = self.salt(file.ino, file.uid);
        let puts: Vec<Put<'_>> =
            chunks.iter().filter(|plain| !is_zero(plain)).map(|plain| Put { plain, salt }).collect();
        let bytes: u64 = puts.iter().map(|put| put.plain.len() as u64).sum();
        self.blocks.put_ahead(&puts, || self.gate())?;
        self.space.wrote(bytes);
        Ok(())
    }

    /// Read a block past the cache and check that its key follows from its content (R2).
    pub(crate) fn verify_block(&self, key: &BlockKey, row: &BlockRow) -> Result<()> {
        let chunk = self.blocks.get_uncached(key, row, None)?;
        let digest = self.sealer.content_digest(BlockKind::FileData, &chunk);
        let salt = Salt { domain: row.domain, epoch: row.epoch, index: row.index };
        if digest != row.digest || self.sealer.block_key(&salt, &digest) != *key {
            let reason = "its content is not what its key was derived from; restore the file from a copy";
            return Err(Error::format(format!("block {}", row.id), reason));
        }
        Ok(())
    }

    /// The salt of new blocks of an inode owned by `uid`.
    pub(crate) fn salt(&self, ino: Ino, uid: u32) -> Salt {
        let domain = match self.policy.domain {
            DomainPolicy::Volume => 0,
            DomainPolicy::Owner => u64::from(uid) + 1,
        };
        // A fixed mixture of the inode number (Steele and others, "SplitMix", 2014): neighbours fall apart.
        let mut mixed = ino.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let index = ((mixed ^ (mixed >> 31)) % u64::from(self.policy.copies)) as u16;
        Salt { domain, epoch: self.epoch(), index }
    }

    /// One change: new size, times and, for small files, content of a file whose dirty chunks were all written.
    pub fn set_file(&self, ino: Ino, change: &FileChange) -> Result<Attr> {
        self.change(|txn| txn.set_file(ino, change))
    }

    /// Content of a file that is kept in its inode row.
    pub fn inline_data(&self, ino: Ino) -> Result<Option<Vec<u8>>> {
        Ok(self.meta.look(|txn| txn.inline_data(ino))?.map(|bytes| bytes.to_vec()))
    }

    /// Make whole chunks holes.
    pub fn punch(&self, ino: Ino, first: ChunkNo, count: u64) -> Result<()> {
        self.change(|txn| txn.punch(ino, first, count))
    }

    /// Chunks `from..from + count` of `source` become those at `to` of `target` too, holes as holes. Nothing is read or
    /// stored; time is in proportion to the count. Not a change of version: [`Self::set_file`] is.
    pub fn share_extents(&self, source: Ino, from: ChunkNo, target: Ino, to: ChunkNo, count: u64) -> Result<()> {
        self.change(|txn| txn.share_extents((source, from), (target, to), count))
    }

    /// The first offset at or after `from` that holds data, in what is stored.
    pub fn seek_data(&self, attr: &Attr, from: u64) -> Result<Option<u64>> {
        if attr.kind != FileKind::File || from >= attr.size {
            return Ok(None);
        }
        self.meta.with(|txn| {
            if txn.inline_data(attr.ino)?.is_some() {
                return Ok(Some(from));
            }
            let first = ChunkNo(from >> attr.chunk_bits);
            let found = txn.seek_data(attr.data, first)?;
            Ok(found.map(|chunk| from.max(chunk.0 << attr.chunk_bits)).filter(|at| *at < attr.size))
        })
    }

    /// The first offset at or after `from` that is a hole, in what is stored; the end of the file counts as one.
    pub fn seek_hole(&self, attr: &Attr, from: u64) -> Result<u64> {
        if attr.kind != FileKind::File || from >= attr.size {
            return Ok(attr.size);
        }
        self.meta.with(|txn| {
            if txn.inline_data(attr.ino)?.is_some() {
                return Ok(attr.size);
            }
            let first = ChunkNo(from >> attr.chunk_bits);
            let hole = txn.seek_hole(attr.data, first)?;
            Ok(from.max(hole.0 << attr.chunk_bits).min(attr.size))
        })
    }
}

/// Lay small writes over the chunks they belong to.
pub(super) fn lay_over(chunks: &[ChunkNo], found: &mut [Option<Arc<Chunk>>], patches: &[PatchRow]) {
    for of_chunk in patches.chunk_by(|a, b| a.chunk == b.chunk) {
        for (_, slot) in chunks.iter().zip(found.iter_mut()).filter(|(chunk, _)| **chunk == of_chunk[0].chunk) {
            let mut content = slot.as_ref().map(|chunk| chunk.to_vec()).unwrap_or_default();
            lay(&mut content, of_chunk);
            *slot = Some(Arc::new(Chunk::whole(content)));
        }
    }
}

pub(super) fn inline_chunks(bytes: &Arc<[u8]>, chunks: &[ChunkNo]) -> Vec<Option<Arc<Chunk>>> {
    // Inline content is shorter than the shortest chunk.
    let whole = || (!bytes.is_empty()).then(|| Arc::new(Chunk::whole(bytes.to_vec())));
    chunks.iter().map(|chunk| if chunk.0 == 0 { whole() } else { None }).collect()
}

/// True if every byte is zero. Looks at 16 bytes at a time and stops at the first that are not.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let mut words = bytes.chunks_exact(16);
    words.by_ref().all(|word| word == [0; 16]) && words.remainder().iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn zero_runs_are_seen_whole() {
        assert!(is_zero(&[]));
        assert!(is_zero(&[0; 131_071]));
        for at in [0, 15, 16, 100, 4094] {
            let mut bytes = [0; 4095];
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
        }
    }
}
