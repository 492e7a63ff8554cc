//! One living inode made what one was in a past generation: content, extended attributes, attributes.
//!
//! Promises: blocks that are equal already are not put again, and the others are shared. Knows nothing of names, nor of
//! what is in a directory.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::ids::{BlockKey, ChunkNo, Generation, Ino};
use crate::meta::Txn;
use crate::meta::rows::{CHUNK_END, FileChange, FileKind, InodeRow, PatchRow, SetAttr};

type ByChunk = BTreeMap<ChunkNo, Vec<PatchRow>>;
type Puts = Vec<(ChunkNo, Option<BlockKey>)>;

fn by_chunk(patches: Vec<PatchRow>) -> ByChunk {
    let mut out = ByChunk::new();
    for patch in patches {
        out.entry(patch.chunk).or_default().push(patch);
    }
    out
}

/// Whether a living inode is all that a past one was, but for its times of access and change and its number.
pub(super) fn is_same(txn: &mut Txn<'_>, generation: Generation, ino: Ino, past: &InodeRow) -> Result<bool> {
    let now = txn.inode(ino)?;
    let plain =
        |row: &InodeRow| (row.kind, row.perm, row.uid, row.gid, row.rdev, row.size, row.mtime_ns, row.inline.clone());
    if plain(&now) != plain(past) {
        return Ok(false);
    }
    if now.kind == FileKind::File && past.inline.is_none() {
        let (puts, patches) = content_changes(txn, generation, &now, past)?;
        if now.chunk_bits != past.chunk_bits || !puts.is_empty() || !patches.is_empty() {
            return Ok(false);
        }
    }
    let wanted = txn.xattrs_at(past.ino, generation)?;
    let have = txn.list_xattrs(ino)?;
    if have.len() != wanted.len() {
        return Ok(false);
    }
    for (name, value) in wanted {
        if !have.iter().any(|other| **other == *name) || *txn.get_xattr(ino, &name)? != *value {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Content of a regular file: blocks that differ are put, and are those of then.
pub(super) fn content(txn: &mut Txn<'_>, generation: Generation, ino: Ino, past: &InodeRow) -> Result<()> {
    let mut now = txn.inode(ino)?;
    let change =
        |size, inline| FileChange { size, mtime_ns: past.mtime_ns, ctime_ns: past.mtime_ns, inline, clear_suid: false };
    if now.chunk_bits != past.chunk_bits {
        // Chunks of another length cannot be shared: it starts empty.
        txn.punch(ino, ChunkNo(0), CHUNK_END.0)?;
        txn.set_file(ino, &change(0, Some(Vec::new())))?;
        txn.set_file(ino, &change(0, None))?;
        txn.punch(ino, ChunkNo(0), 1)?;
        while txn.inode(ino)?.allocated > 0 {
            // What was cut off is retired behind otherwise.
            if !txn.retire_step(usize::MAX >> 1)? {
                break;
            }
        }
        txn.set_chunk_bits(ino, past.chunk_bits)?;
        now = txn.inode(ino)?;
    }
    if let Some(inline) = &past.inline {
        txn.set_file(ino, &change(past.size, Some(inline.to_vec())))?;
        return Ok(());
    }
    let (puts, patches) = content_changes(txn, generation, &now, past)?;
    if now.inline.is_some() {
        txn.punch(ino, ChunkNo(0), 1)?;
    }
    txn.put_extents(ino, &puts)?;
    let patches: Vec<_> = patches.iter().map(|row| (row.chunk, row.offset, &*row.bytes)).collect();
    txn.put_patches(ino, &patches)?;
    txn.set_file(ino, &change(past.size, None)).map(|_| ())
}

/// Blocks to put, and small writes to put over them afterwards, that make the chunks of one file those of another.
/// Small writes that are not in a block yet are written again; they are all that moves.
fn content_changes(
    txn: &mut Txn<'_>,
    generation: Generation,
    now: &InodeRow,
    past: &InodeRow,
) -> Result<(Puts, Vec<PatchRow>)> {
    let wanted = txn.extents_at(past.data, generation, ChunkNo(0), CHUNK_END)?;
    let mut have: BTreeMap<_, _> = txn.extents(now.data, ChunkNo(0), CHUNK_END)?.into_iter().collect();
    let mut patches = by_chunk(txn.patches_at(past.data, generation, ChunkNo(0), CHUNK_END)?);
    let mut have_patches = by_chunk(txn.patches(now.data, ChunkNo(0), CHUNK_END)?);
    // What stands over a chunk on both sides, in equal writes, stays.
    let written = |rows: &[PatchRow]| rows.iter().map(|row| (row.offset, row.bytes.clone())).collect::<Vec<_>>();
    let mut puts = Puts::new();
    for (chunk, key) in wanted {
        let same_patches = match (patches.get(&chunk), have_patches.get(&chunk)) {
            (None, None) => true,
            (Some(wanted), Some(have)) => written(wanted) == written(have),
            _ => false,
        };
        if have.remove(&chunk) == Some(key) && same_patches {
            patches.remove(&chunk);
        } else {
            puts.push((chunk, Some(key)));
        }
        have_patches.remove(&chunk);
    }
    have_patches.retain(|chunk, rows| {
        let same =
            !have.contains_key(chunk) && patches.get(chunk).is_some_and(|wanted| written(wanted) == written(rows));
        if same {
            patches.remove(chunk);
        }
        !same
    });
    let others: BTreeSet<ChunkNo> = have.into_keys().chain(have_patches.into_keys()).collect();
    puts.extend(others.into_iter().map(|chunk| (chunk, None)));
    Ok((puts, patches.into_values().flatten().collect()))
}

/// Extended attributes; true if any differed.
pub(super) fn xattrs(txn: &mut Txn<'_>, generation: Generation, ino: Ino, past: &InodeRow) -> Result<bool> {
    let wanted = txn.xattrs_at(past.ino, generation)?;
    let mut have = txn.list_xattrs(ino)?;
    let mut differed = false;
    for (name, value) in wanted {
        let known = have.iter().position(|other| **other == *name).map(|at| have.swap_remove(at));
        if known.is_none() || *txn.get_xattr(ino, &name)? != *value {
            txn.set_xattr(ino, &name, &value, false, false)?;
            differed = true;
        }
    }
    for name in have {
        txn.remove_xattr(ino, &name)?;
        differed = true;
    }
    Ok(differed)
}

/// Owner, mode and times of content and access; the change time is now.
pub(super) fn attributes(txn: &mut Txn<'_>, ino: Ino, past: &InodeRow) -> Result<()> {
    let change = SetAttr {
        perm: Some(past.perm),
        uid: Some(past.uid),
        gid: Some(past.gid),
        atime_ns: Some(past.atime_ns),
        mtime_ns: Some(past.mtime_ns),
        ctime_ns: None,
    };
    txn.set_attr(ino, &change).map(|_| ())
}
