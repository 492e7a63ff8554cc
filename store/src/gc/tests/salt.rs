//! Salt epochs: a rotation parts what is written after it from what was written before; old blocks drain.

use super::*;
use crate::reseal::{epochs, reseal};

/// (epoch, blocks) of what is in use.
fn in_use(volume: &Volume) -> Vec<(u32, u64)> {
    epochs(volume).unwrap().epochs.iter().map(|usage| (usage.epoch, usage.blocks)).collect()
}

#[test]
fn a_new_epoch_is_for_new_blocks_and_old_ones_stay_readable() {
    let scratch = Scratch::new("salt-rotate");
    scratch.format(3, 1);
    let volume = scratch.open();
    let content = noise(1, 4 << 17);
    write(&volume, "before", &content);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(in_use(&volume), [(0, 4)]);
    let salt = volume.status().unwrap().salt;
    assert_eq!((salt.epoch, salt.drained, salt.left_bytes), (0, 0, 0));
    assert_eq!(salt.epochs, epochs(&volume).unwrap().epochs);
    assert_eq!(volume.rotate_epoch().unwrap(), 1);
    write(&volume, "after", &content);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(in_use(&volume), [(0, 4), (1, 4)], "equal content, other salts");
    let salt = volume.status().unwrap().salt;
    assert_eq!((salt.epoch, salt.drained, salt.left_blocks), (1, 0, 4));
    assert_eq!(salt.left_bytes, salt.epochs[0].stored_bytes);
    // It is the volume's, not the mount's.
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    write(&volume, "later", &content);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(in_use(&volume), [(0, 4), (1, 4)]);
    for name in ["before", "after", "later"] {
        assert_eq!(read(&volume, name).unwrap(), content);
    }
    // Rewritten, it is of the new epoch, and the old blocks go.
    let attr = volume.lookup(ROOT_INO, b"before").unwrap();
    put(&volume, &attr, &noise(2, 4 << 17));
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(in_use(&volume), [(1, 8)]);
    assert_eq!(epochs(&volume).unwrap().drained, 1);
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn resealing_drains_old_epochs_and_changes_nothing_else() {
    let scratch = Scratch::new("salt-reseal");
    scratch.format(3, 1);
    let volume = scratch.open();
    for n in 0..4u64 {
        // Two of them equal; small and large chunks.
        write(&volume, &format!("f{n}"), &noise(n / 2, 300_000 + 7000 * (n as usize / 2)));
    }
    write(&volume, "small", b"a few bytes");
    volume.commit(&NothingDirty).unwrap();
    let before: Vec<_> = (0..4).map(|n| volume.lookup(ROOT_INO, format!("f{n}").as_bytes()).unwrap()).collect();
    let blocks = volume.meta().counters().live_blocks;
    volume.rotate_epoch().unwrap();
    // Stopped after a while: done in part.
    let steps = std::cell::Cell::new(0);
    let some = reseal(&volume, &|_, _, _| {
        steps.set(steps.get() + 1);
        steps.get() < 2
    });
    assert!(!some.unwrap().complete);
    let report = reseal(&volume, &|_, _, _| true).unwrap();
    assert!(report.complete && report.resealed_chunks > 0, "{report:?}");
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(in_use(&volume), [(1, blocks)], "still stored once");
    assert_eq!(reseal(&volume, &|_, _, _| true).unwrap().resealed_chunks, 0);
    for (n, attr) in before.iter().enumerate() {
        assert_eq!(&volume.lookup(ROOT_INO, format!("f{n}").as_bytes()).unwrap(), attr, "no change of the file");
        assert_eq!(read(&volume, &format!("f{n}")).unwrap(), noise(n as u64 / 2, 300_000 + 7000 * (n / 2)));
    }
    let report = collect(&volume);
    assert_eq!(report.blocks_condemned, blocks, "{report:?}");
    let volume = reopen_without_state(&scratch, volume);
    assert_eq!(read(&volume, "f3").unwrap(), noise(1, 307_000));
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
}
