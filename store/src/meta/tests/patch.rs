//! Patches, as rows: what former states see of them, and what folding depends on.

use super::super::patch::{Fold, lay};
use super::*;

fn file_with(meta: &Meta, name: &[u8]) -> Attr {
    meta.with(|txn| txn.create(ROOT_INO, name, &file(0o644))).unwrap()
}

fn patch(meta: &Meta, ino: Ino, offset: u32, bytes: &[u8]) {
    meta.with(|txn| txn.put_patches(ino, &[(ChunkNo(0), offset, bytes)])).unwrap();
}

fn content_at(meta: &Meta, data: DataId, generation: Generation) -> Vec<u8> {
    let patches = meta.with(|txn| txn.patches_at(data, generation, ChunkNo(0), ChunkNo(1))).unwrap();
    let mut content = Vec::new();
    lay(&mut content, &patches);
    content
}

#[test]
fn a_former_state_is_its_extents_and_the_patches_valid_then() {
    let (_dir, meta) = fresh("patch-history");
    meta.commit_generation().unwrap();
    meta.with(|txn| txn.set_history(true)).unwrap();
    let attr = file_with(&meta, b"a");
    patch(&meta, attr.ino, 0, b"first");
    let one = meta.commit_generation().unwrap().generation;
    patch(&meta, attr.ino, 2, b"second");
    let two = meta.commit_generation().unwrap().generation;
    // Written and gone within one generation: no state ever had it.
    patch(&meta, attr.ino, 0, b"never");
    meta.with(|txn| txn.punch(attr.ino, ChunkNo(0), 1)).unwrap();
    let three = meta.commit_generation().unwrap().generation;
    assert_eq!(content_at(&meta, attr.data, one), b"first");
    assert_eq!(content_at(&meta, attr.data, two), b"fisecond");
    assert_eq!(content_at(&meta, attr.data, three), b"");
    assert!(meta.with(|txn| txn.patches(attr.data, ChunkNo(0), ChunkNo(9))).unwrap().is_empty());
    let forgotten = meta.with(|txn| txn.forget_history(Generation(0), three, &[two])).unwrap();
    assert!(forgotten > 0);
    assert_eq!(content_at(&meta, attr.data, two), b"fisecond");
    meta.with(|txn| txn.forget_history(Generation(0), three, &[])).unwrap();
    assert_eq!(content_at(&meta, attr.data, two), b"");
}

#[test]
fn folding_depends_on_the_highest_sequence_folded() {
    let (_dir, meta) = fresh("patch-fold");
    let attr = file_with(&meta, b"a");
    patch(&meta, attr.ino, 0, b"one");
    let over = meta.with(|txn| Ok(txn.chunk_patches(attr.data, ChunkNo(0)))).unwrap().unwrap();
    assert_eq!((over.ino, over.rows, over.bytes), (attr.ino, 1, 3));
    let fold = Fold { ino: attr.ino, data: attr.data, chunk: ChunkNo(0), under: None, last: over.last };
    patch(&meta, attr.ino, 1, b"two");
    assert!(!meta.with(|txn| txn.fold(&fold, None)).unwrap(), "a patch came meanwhile");
    let under = Some(BlockKey([1; 32]));
    let last = meta.with(|txn| Ok(txn.chunk_patches(attr.data, ChunkNo(0)))).unwrap().unwrap().last;
    assert!(!meta.with(|txn| txn.fold(&Fold { last, under, ..fold }, None)).unwrap(), "another block is under it");
    let version = meta.with(|txn| txn.attr(attr.ino)).unwrap().version;
    assert!(meta.with(|txn| txn.fold(&Fold { last, ..fold }, None)).unwrap());
    assert_eq!(meta.with(|txn| txn.attr(attr.ino)).unwrap().version, version);
    assert_eq!(meta.with(|txn| Ok(txn.patch_bytes())).unwrap(), 0);
}

#[test]
fn a_failed_operation_leaves_no_trace_of_its_patches() {
    let (dir, meta) = fresh("patch-undo");
    let attr = file_with(&meta, b"a");
    patch(&meta, attr.ino, 0, b"kept");
    let failed: Result<()> = meta.with(|txn| {
        txn.put_patches(attr.ino, &[(ChunkNo(3), 0, b"undone")])?;
        Err(Error::NoSpace)
    });
    assert!(failed.is_err());
    assert_eq!(meta.with(|txn| Ok(txn.patch_bytes())).unwrap(), 4);
    assert_eq!(meta.with(|txn| txn.attr(attr.ino)).unwrap().version, attr.version);
    let too_long = meta.with(|txn| txn.put_patches(attr.ino, &[(ChunkNo(0), (1 << 17) - 1, b"xy")]));
    assert!(matches!(too_long, Err(Error::InvalidArgument(_))));
    meta.commit_generation().unwrap();
    assert!(meta.verify().unwrap().is_empty(), "{:?}", meta.verify());
    meta.close().unwrap();
    drop(meta);
    let meta = Meta::open(&dir.0, &KEY, &setup()).unwrap();
    assert_eq!(meta.with(|txn| Ok(txn.patch_bytes())).unwrap(), 4);
}
