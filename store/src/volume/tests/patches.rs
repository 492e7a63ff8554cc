//! Small writes: in the record at first, in blocks later.

use super::*;

fn set_size(volume: &Volume, ino: crate::ids::Ino, size: u64) -> Attr {
    let now = volume.clock().now_ns();
    volume.set_file(ino, &FileChange { size, mtime_ns: now, ctime_ns: now, inline: None, clear_suid: false }).unwrap()
}

#[test]
fn small_writes_go_into_the_record_and_are_folded_behind() {
    let scratch = Scratch::new("patches");
    scratch.format(6, 1);
    let volume = scratch.open();
    let mut content = noise(50, 200_000);
    let attr = write(&volume, "file", &content);
    volume.commit(&NothingDirty).unwrap();
    let stored = volume.status().unwrap().space.stored_bytes;
    // Over the first chunk, twice over one place, past the end of the second, and into a hole far behind.
    for (at, seed, len) in [(1000, 51, 4096), (3000, 52, 4096), (199_000, 53, 3000), (900_000, 54, 100)] {
        let bytes = noise(seed, len);
        content.resize(content.len().max(at + len), 0);
        content[at..at + len].copy_from_slice(&bytes);
        let (chunk, offset) = ((at >> 17) as u64, (at & 0x1_ffff) as u32);
        volume.write_patches(&[(attr.ino, vec![(ChunkNo(chunk), offset, &bytes)])]).unwrap();
    }
    let attr = set_size(&volume, attr.ino, content.len() as u64);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.status().unwrap().space.stored_bytes, stored, "no block was stored");
    assert_eq!(read(&volume, "file").unwrap(), content);
    assert_eq!(volume.seek_data(&attr, 300_000).unwrap(), Some(6 << 17));
    assert_eq!(volume.seek_hole(&attr, 0).unwrap(), 2 << 17);
    assert!(volume.meta().verify().unwrap().is_empty());
    drop(volume);
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    std::fs::remove_dir_all(scratch.0.join("d0")).unwrap();
    std::fs::remove_dir_all(scratch.0.join("d3")).unwrap();
    let volume = scratch.open();
    assert_eq!(read(&volume, "file").unwrap(), content);
    let before = volume.attr(attr.ino).unwrap();
    // Of what nobody writes to.
    std::thread::sleep(std::time::Duration::from_millis(60));
    volume.fold_due(true).unwrap();
    assert!(!volume.blocks().segments().has_unsynced(), "no commit waits for it");
    assert_eq!(volume.meta().with(|txn| Ok(txn.patch_bytes())).unwrap(), 0);
    let after = volume.attr(attr.ino).unwrap();
    assert_eq!((after.version, after.mtime_ns, after.size), (before.version, before.mtime_ns, before.size));
    assert_eq!(read(&volume, "file").unwrap(), content);
    volume.commit(&NothingDirty).unwrap();
    assert!(volume.meta().verify().unwrap().is_empty());
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    assert_eq!(read(&volume, "file").unwrap(), content);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_new_chunk_a_punch_and_a_cut_end_the_patches_under_them() {
    let scratch = Scratch::new("patches-end");
    scratch.format(3, 1);
    let volume = scratch.open();
    let attr = write(&volume, "file", &noise(60, 400_000));
    let patch =
        |chunk, seed| volume.write_patches(&[(attr.ino, vec![(ChunkNo(chunk), 10, &noise(seed, 500))])]).unwrap();
    (0..4).for_each(|chunk| patch(chunk, 61 + chunk));
    // Equal content stored again must not show what was laid over it.
    volume.write_chunks(attr.ino, &[(ChunkNo(0), &noise(60, 400_000)[..1 << 17])]).unwrap();
    volume.punch(attr.ino, ChunkNo(1), 1).unwrap();
    set_size(&volume, attr.ino, 2 << 17);
    set_size(&volume, attr.ino, 400_000);
    let mut expected = vec![0; 400_000];
    expected[..1 << 17].copy_from_slice(&noise(60, 400_000)[..1 << 17]);
    assert!(read(&volume, "file").unwrap() == expected);
    patch(2, 70);
    patch(2, 71);
    expected[(2 << 17) + 10..(2 << 17) + 510].copy_from_slice(&noise(71, 500));
    volume.commit(&NothingDirty).unwrap();
    assert!(read(&volume, "file").unwrap() == expected);
    assert!(volume.meta().verify().unwrap().is_empty(), "{:?}", volume.meta().verify());
    volume.unlink(ROOT_INO, b"file").unwrap();
    volume.release_orphan(attr.ino).unwrap();
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta().with(|txn| Ok(txn.patch_bytes())).unwrap(), 0);
    assert!(volume.meta().verify().unwrap().is_empty(), "{:?}", volume.meta().verify());
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn chunks_that_cannot_be_read_keep_no_others_from_being_folded() {
    let scratch = Scratch::new("patches-lost");
    scratch.format(6, 1);
    let volume = scratch.open_with(OpenOptions { cache_bytes: 0, ..scratch.options() });
    // More than one batch of them.
    let lost = write(&volume, "lost", &noise(80, 40 << 17));
    volume.commit(&NothingDirty).unwrap();
    let mut places = Vec::new();
    volume
        .meta()
        .reader()
        .unwrap()
        .for_each_block(|row| {
            places.push(crate::blocks::place_of(row));
            Ok(())
        })
        .unwrap();
    assert_eq!(places.len(), 40);
    places.into_iter().for_each(|place| (0..3).for_each(|slot| super::checked::flip(&volume, place, slot)));
    let patch = |ino, chunk| volume.write_patches(&[(ino, vec![(ChunkNo(chunk), 10, &noise(81, 500))])]).unwrap();
    (0..40).for_each(|chunk| patch(lost.ino, chunk));
    let others: Vec<Attr> =
        (0..16).map(|n| volume.create(ROOT_INO, format!("f{n}").as_bytes(), &new_file()).unwrap()).collect();
    others.iter().for_each(|other| patch(other.ino, 0));
    // Two rounds: of what cannot be read one tries one batch.
    (0..2).for_each(|_| volume.fold_due(true).unwrap());
    assert_eq!(volume.meta().with(|txn| Ok(txn.patch_bytes())).unwrap(), 40 * 500);
    assert!(matches!(read(&volume, "lost"), Err(Error::BlockLost { .. })), "{:?}", read(&volume, "lost").map(drop));
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn small_writes_to_several_files_are_kept_together_but_for_a_file_that_is_gone() {
    let scratch = Scratch::new("patches-together");
    scratch.format(3, 1);
    let volume = scratch.open();
    let (a, b) = (write(&volume, "a", &noise(90, 200_000)), write(&volume, "b", &noise(91, 200_000)));
    let small = noise(92, 500);
    let patch = |ino| (ino, vec![(ChunkNo(0), 10, &small[..])]);
    volume.write_patches(&[patch(a.ino), patch(Ino(b.ino.0 + 1000)), patch(b.ino)]).unwrap();
    // One that cannot be kept leaves none of them.
    let past_its_chunk = (b.ino, vec![(ChunkNo(0), 1 << 17, &small[..])]);
    volume.write_patches(&[(a.ino, vec![(ChunkNo(1), 0, &small[..])]), past_its_chunk]).unwrap_err();
    volume.commit(&NothingDirty).unwrap();
    for (name, seed) in [("a", 90), ("b", 91)] {
        let mut content = noise(seed, 200_000);
        content[10..510].copy_from_slice(&small);
        assert!(read(&volume, name).unwrap() == content, "{name}");
    }
    assert_eq!(volume.meta().with(|txn| Ok(txn.patch_bytes())).unwrap(), 1000);
    volume.close(&NothingDirty).unwrap();
}
