//! The tree of a past generation, read-only.
//!
//! Promises: everything read of a [`View`] is as it was when its generation closed, whatever goes on meanwhile; while a
//! view lives its generation is not forgotten.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::data::{inline_chunks, lay_over};
use super::{GenerationPin, Volume};
use crate::blocks::Chunk;
use crate::error::{Error, Result};
use crate::ids::{BlockKey, ChunkNo, Generation, Ino};
use crate::meta::rows::{Attr, DirEntry, FileKind, GenerationRow, InodeRow, SnapshotRow};
use crate::meta::{PastReader, Xattrs};

/// Extents looked at in one step when searching for data or holes.
const SEEK_CHUNKS: u64 = 4096;

/// The tree of one past generation.
pub struct View {
    volume: Arc<Volume>,
    generation: GenerationRow,
    _pin: GenerationPin,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Volume {
    /// The tree at the end of a generation.
    ///
    /// # Errors
    /// [`Error::NotFound`] if that generation is not kept, or is not closed yet.
    pub fn view(self: &Arc<Self>, generation: Generation) -> Result<View> {
        if generation > self.committed() {
            return Err(Error::NotFound);
        }
        let pin = self.pin(generation)?;
        let row = self.past(|past| past.generation(generation))?.ok_or(Error::NotFound)?;
        Ok(View { volume: Arc::clone(self), generation: row, _pin: pin })
    }

    /// The tree at the end of a generation, to look at what `ino` was in it, and at what was below that.
    ///
    /// # Errors
    /// [`Error::NotFound`] if that is not kept, or the generation is not closed yet.
    pub fn view_of(self: &Arc<Self>, generation: Generation, ino: Ino) -> Result<View> {
        match self.view(generation) {
            Err(Error::NotFound) => {}
            found => return found,
        }
        // A directory's own rules may keep it.
        let pin = self.pin_below(generation, ino)?;
        // It may have been kept as a whole until the generation that is open now.
        let until = Some(Generation(generation.0 + 1));
        let row = self.past(|past| match past.generation(generation)? {
            Some(row) => Ok(Some(row)),
            None => Ok(past.kept_around(ino, generation, until)?.into_iter().next()),
        })?;
        let row = row.ok_or(Error::NotFound)?;
        Ok(View { volume: Arc::clone(self), generation: row, _pin: pin })
    }

    /// Look at committed states of any generation: histories of names and inodes.
    ///
    /// # Errors
    /// Those of `look`.
    pub fn past<R>(&self, look: impl FnOnce(&PastReader<'_>) -> Result<R>) -> Result<R> {
        self.meta.past(look)
    }

    /// The snapshot of a name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn snapshot(&self, name: &[u8]) -> Result<SnapshotRow> {
        self.past(|past| past.snapshot(name))?.ok_or(Error::NotFound)
    }

    /// The state at a time: the last generation closed at or before it that is still kept.
    ///
    /// # Errors
    /// [`Error::NotFound`] if none is kept from before that time.
    pub fn generation_at(&self, time_ns: i64) -> Result<GenerationRow> {
        self.past(|past| past.generation_at(time_ns))?.ok_or(Error::NotFound)
    }

    /// The last committed generation.
    pub fn committed(&self) -> Generation {
        self.meta.committed()
    }
}

impl View {
    /// Which generation this is.
    pub fn generation(&self) -> Generation {
        self.generation.generation
    }

    /// When it closed, nanoseconds since 1970.
    pub fn time_ns(&self) -> i64 {
        self.generation.time_ns
    }

    fn look<R>(&self, look: impl FnOnce(&PastReader<'_>, Generation) -> Result<R>) -> Result<R> {
        self.volume.meta.past(|past| look(past, self.generation()))
    }

    pub(super) fn row(&self, ino: Ino) -> Result<InodeRow> {
        self.look(|past, generation| past.inode(ino, generation))?.ok_or(Error::Stale(ino))
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// [`Error::Stale`] if it was not there.
    pub fn attr(&self, ino: Ino) -> Result<Attr> {
        self.row(ino).map(|row| row.attr())
    }

    /// The inode that `name` in `parent` led to.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.look(|past, generation| past.lookup(parent, name, generation)).map(|row| row.attr())
    }

    /// The inode at a path from the root.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotADirectory`].
    pub fn find(&self, path: &[u8]) -> Result<Attr> {
        self.look(|past, generation| past.find(path, generation)).map(|row| row.attr())
    }

    /// The directory that held a directory; the root holds itself.
    ///
    /// # Errors
    /// [`Error::Stale`] if it was not there.
    pub fn parent_of(&self, dir: Ino) -> Result<Ino> {
        self.row(dir).map(|row| row.parent)
    }

    /// Entries after `cookie` (0: from the start), at most `max`, without "." and "..", with attributes if `plus`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotADirectory`].
    pub fn read_dir(&self, dir: Ino, cookie: u64, max: usize, plus: bool) -> Result<Vec<DirEntry>> {
        self.look(|past, generation| past.read_dir(dir, generation, cookie, max, plus))
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it was none.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.row(ino)? {
            InodeRow { kind: FileKind::Symlink, inline: Some(target), .. } => Ok(target.to_vec()),
            _ => Err(Error::InvalidArgument("not a symbolic link")),
        }
    }

    /// Extended attributes with their values, sorted by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn xattrs(&self, ino: Ino) -> Result<Xattrs> {
        self.look(|past, generation| past.xattrs(ino, generation))
    }

    /// Bytes of a file: `len` of them at `offset`, fewer at its end. Waits for disks.
    ///
    /// # Errors
    /// [`Error::Stale`]; what keeps a block from being read.
    pub fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>> {
        let row = self.row(ino)?;
        if row.kind != FileKind::File || offset >= row.size || len == 0 {
            return Ok(Vec::new());
        }
        let end = row.size.min(offset.saturating_add(len as u64));
        let mut out = vec![0; (end - offset) as usize];
        let (bits, first) = (row.chunk_bits, offset >> row.chunk_bits);
        let chunks: Vec<ChunkNo> = (first..=(end - 1) >> bits).map(ChunkNo).collect();
        for (chunk, bytes) in chunks.iter().zip(self.chunks(&row, &chunks)?) {
            let Some(bytes) = bytes else { continue };
            let start = chunk.0 << bits;
            // The stored chunk may be shorter than its part of the file: the rest is zeros.
            let from = offset.max(start);
            let to = end.min(start.saturating_add(bytes.len() as u64));
            if from < to {
                let part = &bytes[(from - start) as usize..(to - start) as usize];
                out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
            }
        }
        Ok(out)
    }

    fn chunks(&self, row: &InodeRow, chunks: &[ChunkNo]) -> Result<Vec<Option<Arc<Chunk>>>> {
        let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else { return Ok(Vec::new()) };
        if let Some(inline) = &row.inline {
            return Ok(inline_chunks(inline, chunks));
        }
        let end = ChunkNo(last.0 + 1);
        let (rows, patches) = self.look(|past, generation| {
            let rows = past.extents(row.data, generation, *first, end)?;
            Ok((rows, past.patches(row.data, generation, *first, end)?))
        })?;
        let by_chunk: HashMap<ChunkNo, BlockKey> = rows.into_iter().collect();
        let keys: Vec<Option<BlockKey>> = chunks.iter().map(|chunk| by_chunk.get(chunk).copied()).collect();
        let mut found = self.volume.read_keys(&keys, row.ino)?;
        lay_over(chunks, &mut found, &patches);
        Ok(found)
    }

    /// The first offset at or after `from` that holds data (`data`), or that is a hole; the end of the file counts as
    /// one. Data and holes come in whole chunks.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn seek(&self, ino: Ino, from: u64, data: bool) -> Result<Option<u64>> {
        let row = self.row(ino)?;
        if from >= row.size {
            return Ok(None);
        }
        if row.inline.is_some() {
            return Ok(Some(if data { from } else { row.size }));
        }
        let bits = row.chunk_bits;
        let chunks = row.size.div_ceil(1 << bits);
        let mut at = from >> bits;
        while at < chunks {
            let to = ChunkNo(at.saturating_add(SEEK_CHUNKS).min(chunks));
            let stored = self.look(|past, generation| {
                let extents = past.extents(row.data, generation, ChunkNo(at), to)?;
                let patches = past.patches(row.data, generation, ChunkNo(at), to)?;
                let extents = extents.iter().map(|(chunk, _)| chunk.0);
                Ok(extents.chain(patches.iter().map(|patch| patch.chunk.0)).collect::<BTreeSet<u64>>())
            })?;
            for chunk in at..to.0 {
                if stored.contains(&chunk) == data {
                    return Ok(Some(from.max(chunk << bits)));
                }
            }
            at = to.0;
        }
        Ok(if data { None } else { Some(row.size) })
    }
}
