//! A second database beside the writer's.

use super::*;

fn options(scratch: &Scratch) -> OpenOptions {
    OpenOptions { state_dir: Some(scratch.0.join("standby")), ..scratch.options() }
}

fn files(dir: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                open.push(entry.path());
            } else {
                found.push((entry.path(), meta.len(), meta.modified().unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_follower_is_never_ahead_of_what_is_durable_and_writes_nothing() {
    let scratch = Scratch::new("follow");
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "one", &noise(50, 30_000));
    let first = volume.commit(&NothingDirty).unwrap();
    let before = files(&scratch.0.join("d0"));
    let mut follower = Follower::open(options(&scratch)).unwrap();
    let step = follower.step().unwrap();
    assert!(step.rebuilt && step.generation < first.0, "{step:?}");
    assert_eq!(step.last, first.0);
    assert_eq!(files(&scratch.0.join("d0")), before);
    // Covered by the next record, which is not applied itself.
    write(&volume, "two", &noise(51, 30_000));
    let second = volume.commit(&NothingDirty).unwrap();
    let step = follower.step().unwrap();
    assert_eq!((step.generation, step.applied, step.rebuilt), (first.0, 1, false), "{step:?}");
    assert_eq!(follower.step().unwrap().applied, 0);
    let mut last = second.0;
    for n in 0..10 {
        write(&volume, &format!("more{n}"), &noise(52 + n, 30_000));
        last = volume.commit(&NothingDirty).unwrap().0;
        let step = follower.step().unwrap();
        assert_eq!((step.generation, step.applied), (last - 1, 1), "{step:?}");
        if n % 3 == 0 {
            volume.checkpoint().unwrap();
            volume.blocks().segments().close();
        }
    }
    assert!(matches!(Volume::open(options(&scratch)), Err(Error::InUse(_))), "its state directory is in use");
    // A clean end says that all is durable.
    volume.close(&NothingDirty).unwrap();
    let step = follower.step().unwrap();
    assert!(step.generation >= last && step.generation == step.durable, "{step:?}");
    follower.close().unwrap();
    let expected = rebuild(&scratch.options()).unwrap().digest;
    let volume = scratch.try_open(&OpenOptions { read_only: true, ..options(&scratch) }).unwrap();
    assert!(volume.warnings().is_empty(), "{:?}", volume.warnings());
    let digest = volume.meta().reader().unwrap().digest().unwrap();
    assert_eq!(blake3::Hash::from_bytes(digest).to_hex().as_str(), expected);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_follower_takes_over_from_a_writer_that_is_alive() {
    let scratch = Scratch::new("followtake");
    scratch.format(6, 1);
    let former = scratch.open();
    let mut follower = Follower::open(options(&scratch)).unwrap();
    for n in 0..4 {
        write(&former, &format!("f{n}"), &noise(n, 50_000));
        former.commit(&NothingDirty).unwrap();
        follower.step().unwrap();
    }
    follower.close().unwrap();
    let next = scratch.try_open(&OpenOptions { take_over: true, ..options(&scratch) }).unwrap();
    assert!(!next.warnings().iter().any(|note| note.contains("rebuilt")), "{:?}", next.warnings());
    assert_eq!(read(&next, "f3").unwrap(), noise(3, 50_000), "the rest is applied when it takes over");
    write(&former, "late", &noise(9, 1000));
    assert!(matches!(former.commit(&NothingDirty), Err(Error::ReadOnly(_))));
    write(&next, "next", &noise(10, 1000));
    next.close(&NothingDirty).unwrap();
    scratch.kill(former);
    // The former writer's host follows in turn: its own database is of another history, and kept aside.
    let mut follower =
        Follower::open(OpenOptions { state_dir: Some(scratch.0.join("state")), ..scratch.options() }).unwrap();
    let step = follower.step().unwrap();
    assert_eq!(step.generation, step.durable, "{step:?}");
    follower.close().unwrap();
    let back =
        scratch.try_open(&OpenOptions { state_dir: Some(scratch.0.join("state")), ..scratch.options() }).unwrap();
    assert_eq!(read(&back, "next").unwrap(), noise(10, 1000));
    assert!(matches!(read(&back, "late"), Err(Error::NotFound)));
    back.close(&NothingDirty).unwrap();
}

#[test]
fn a_follower_that_was_away_for_long_starts_from_the_newest_checkpoint() {
    let scratch = Scratch::new("followlate");
    scratch.format(3, 1);
    let volume = scratch.open();
    let mut follower = Follower::open(options(&scratch)).unwrap();
    follower.step().unwrap();
    write(&volume, "one", &noise(1, 9000));
    volume.commit(&NothingDirty).unwrap();
    let old: Vec<_> = volume.set.members()[0].list_segments().unwrap().into_iter().map(|(id, _)| id).collect();
    volume.blocks().segments().close();
    write(&volume, "two", &noise(2, 9000));
    volume.commit(&NothingDirty).unwrap();
    volume.checkpoint().unwrap();
    for member in volume.set.members() {
        for id in &old {
            let file = format!("segments/{:02x}/{:016x}.seg", id.0 & 0xff, id.0);
            super::recovery::wipe_commits(&member.path().join(file));
        }
    }
    write(&volume, "three", &noise(3, 9000));
    volume.commit(&NothingDirty).unwrap();
    let step = follower.step().unwrap();
    assert!(step.rebuilt && step.generation + 1 >= step.last, "{step:?}");
    volume.close(&NothingDirty).unwrap();
    let step = follower.step().unwrap();
    assert_eq!(step.generation, step.durable);
}
