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

impl From<Vec<u8>> for Stored {
    fn from(data: Vec<u8>) -> Self {
        Self::Inline(data.into())
    }
}

/// Whether to look for inline content first: `known` tells what is known of that already.
fn may_be_inline(attr: &Attr, chunks: &[ChunkNo], known: Option<bool>) -> bool {
    chunks == [ChunkNo(0)] && known.unwrap_or(attr.size <= INLINE_MAX as u64)
}

/// Stored chunks that need no disk; `None` if one of them does.
///
/// # Errors
/// The store's.
pub fn cached(
    volume: &Volume,
    attr: &Attr,
    chunks: &[ChunkNo],
    known: Option<bool>,
) -> Result<Option<Vec<Stored>>, Error> {
    if may_be_inline(attr, chunks, known)
        && let Some(data) = volume.inline_data(attr.ino)?
    {
        return Ok(Some(vec![data.into()]));
    }
    let Some(found) = volume.cached_chunks(attr, chunks) else { return Ok(None) };
    // Rather a hole once more than the wrong answer: see `read`.
    if chunks.first() == Some(&ChunkNo(0)) && found.first().is_some_and(Option::is_none) {
        return Ok(None);
    }
    Ok(Some(found.into_iter().map(Stored::from).collect()))
}

/// Stored chunks, read from the backing directories where they must be.
///
/// A flush may turn a small file's chunk into inline content and back while this looks, so a first chunk that seems to
/// be a hole is looked for in both places again.
///
/// # Errors
/// The store's.
pub fn read(volume: &Volume, attr: &Attr, chunks: &[ChunkNo], known: Option<bool>) -> Result<Vec<Stored>, Error> {
    if may_be_inline(attr, chunks, known)
        && let Some(data) = volume.inline_data(attr.ino)?
    {
        return Ok(vec![data.into()]);
    }
    let mut found: Vec<Stored> = volume.read_chunks(attr, chunks)?.into_iter().map(Stored::from).collect();
    if let (Some(ChunkNo(0)), Some(first @ Stored::Hole)) = (chunks.first(), found.first_mut()) {
        *first = match volume.inline_data(attr.ino)? {
            Some(data) => data.into(),
            None => volume.read_chunks(attr, &chunks[..1])?.pop().flatten().into(),
        };
    }
    Ok(found)
}
