//! Bytes as the store has them: chunks, holes, or a small file's inline content.

use std::ops::Deref;
use std::sync::Arc;

use brine_store::Error;
use brine_store::ids::ChunkNo;
use brine_store::volume::{Attr, Chunk, INLINE_MAX, Volume};

/// The stored content of one chunk; it reads as zero past its end.
#[derive(Clone)]
pub enum Stored {
    /// No block.
    Hole,
    /// A chunk, shared with the cache.
    Chunk(Arc<Chunk>),
    /// The content of a small file.
    Inline(Arc<[u8]>),
}

impl Deref for Stored {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Hole => &[],
            Self::Chunk(chunk) => chunk,
            Self::Inline(data) => data,
        }
    }
}

impl From<Option<Arc<Chunk>>> for Stored {
    fn from(chunk: Option<Arc<Chunk>>) -> Self {
        chunk.map_or(Self::Hole, Self::Chunk)
    }
}

/// The inline content, if the file may have some. `inline` tells what is known of that already.
fn inline(volume: &Volume, attr: &Attr, chunks: &[ChunkNo], inline: Option<bool>) -> Result<Option<Stored>, Error> {
    let possible = inline.unwrap_or(attr.size <= INLINE_MAX as u64);
    if !possible || chunks != [ChunkNo(0)] {
        return Ok(None);
    }
    Ok(volume.inline_data(attr.ino)?.map(|data| Stored::Inline(data.into())))
}

/// Stored chunks that need no disk; `None` if one of them does.
///
/// # Errors
/// The store's.
pub fn cached(volume: &Volume, attr: &Attr, chunks: &[ChunkNo], known: Option<bool>) -> Result<Option<Vec<Stored>>, Error> {
    if let Some(data) = inline(volume, attr, chunks, known)? {
        return Ok(Some(vec![data]));
    }
    Ok(volume.cached_chunks(attr, chunks).map(|found| found.into_iter().map(Stored::from).collect()))
}

/// Stored chunks, read from the backing directories where they must be.
///
/// # Errors
/// The store's.
pub fn read(volume: &Volume, attr: &Attr, chunks: &[ChunkNo], known: Option<bool>) -> Result<Vec<Stored>, Error> {
    if let Some(data) = inline(volume, attr, chunks, known)? {
        return Ok(vec![data]);
    }
    Ok(volume.read_chunks(attr, chunks)?.into_iter().map(Stored::from).collect())
}
