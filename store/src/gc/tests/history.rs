//! Retention and gc together: former states go by rule, what is pinned stays readable, and in the end only what is live
//! takes space.

use std::collections::BTreeMap;

use super::*;
use crate::ids::{ChunkNo, DataId};
use crate::meta::rows::CHUNK_END;
use crate::retention::{Period, Rules, SnapshotRule};
use crate::volume::Flusher;

/// Rules that keep nothing.
fn nothing() -> Rules {
    Rules { all_s: 0, minutely_s: 0, hourly_s: 0, ..Rules::default() }
}

fn with_history(scratch: &Scratch) -> Arc<Volume> {
    let volume = scratch.open();
    volume.commit(&NothingDirty).unwrap();
    volume.meta().with(|txn| txn.set_history(true)).unwrap();
    volume.commit(&NothingDirty).unwrap();
    volume
}

/// Content of a file in the root as of a generation.
fn read_at(volume: &Volume, name: &str, generation: Generation) -> Option<Vec<u8>> {
    let found = volume.meta().with(|txn| {
        let Ok(attr) = txn.lookup_at(ROOT_INO, name.as_bytes(), generation) else { return Ok(None) };
        let extents = txn.extents_at(attr.data, generation, ChunkNo(0), CHUNK_END)?;
        Ok(Some((attr, extents)))
    });
    let (attr, extents) = found.unwrap()?;
    let mut out = vec![0; attr.size as usize];
    for (chunk, key) in extents {
        let plain = volume.blocks().get(&[key], None).unwrap().remove(0).unwrap();
        let start = (chunk.0 << attr.chunk_bits) as usize;
        let end = (start + plain.len()).min(out.len());
        if start < end {
            out[start..end].copy_from_slice(&plain[..end - start]);
        }
    }
    Some(out)
}

#[test]
fn former_states_stay_until_a_rule_lets_them_go() {
    let scratch = Scratch::new("retention-rules");
    scratch.format(2, 1);
    let volume = with_history(&scratch);
    let attr = write(&volume, "a", &noise(1, 2 << 20));
    let first = volume.commit(&NothingDirty).unwrap();
    put(&volume, &attr, &noise(2, 2 << 20));
    let second = volume.commit(&NothingDirty).unwrap();
    remove(&volume, "a");
    volume.commit(&NothingDirty).unwrap();
    // By default all is kept for ten minutes.
    let report = collect(&volume);
    assert_eq!(report.blocks_condemned, 0, "{report:?}");
    assert_eq!(read_at(&volume, "a", first).unwrap(), noise(1, 2 << 20));
    assert_eq!(read_at(&volume, "a", second).unwrap(), noise(2, 2 << 20));

    // One of them is being read.
    volume.set_retention_rules(&nothing()).unwrap();
    let pin = volume.pin(first).unwrap();
    let report = collect(&volume);
    assert_eq!(report.blocks_condemned, 16, "{report:?}");
    assert_eq!(read_at(&volume, "a", first).unwrap(), noise(1, 2 << 20));
    assert!(matches!(volume.pin(second), Err(Error::NotFound)));
    drop(pin);
    let report = collect(&volume);
    assert_eq!(report.blocks_condemned, 16, "{report:?}");
    assert_eq!(volume.meta().counters().live_blocks, 0);
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn what_is_there_when_pinned_stays_readable() {
    let scratch = Scratch::new("retention-present");
    scratch.format(2, 1);
    let volume = with_history(&scratch);
    volume.set_retention_rules(&nothing()).unwrap();
    let attr = write(&volume, "a", &noise(1, 2 << 20));
    // Nothing of it is committed yet.
    let pin = volume.pin_present(&NothingDirty).unwrap();
    assert_eq!(volume.commit(&NothingDirty).unwrap(), pin.generation());
    let committed = volume.pin_present(&NothingDirty).unwrap();
    assert_eq!(committed.generation(), pin.generation());
    drop(committed);
    put(&volume, &attr, &noise(2, 2 << 20));
    volume.commit(&NothingDirty).unwrap();
    for _ in 0..2 {
        collect(&volume);
        assert_eq!(read_at(&volume, "a", pin.generation()).unwrap(), noise(1, 2 << 20));
    }
    drop(pin);
    assert_eq!(collect(&volume).blocks_condemned, 16);
    volume.close(&NothingDirty).unwrap();
}

/// Somebody's file is buffered.
struct Buffered;

impl Flusher for Buffered {
    fn flush(&self, _exclusive: bool) -> Result<()> {
        Ok(())
    }

    fn has_dirty(&self) -> bool {
        true
    }
}

#[test]
fn what_is_buffered_when_pinned_stays_readable() {
    let scratch = Scratch::new("retention-buffered");
    scratch.format(2, 1);
    let volume = with_history(&scratch);
    volume.set_retention_rules(&nothing()).unwrap();
    let attr = write(&volume, "a", &noise(1, 2 << 20));
    let before = volume.commit(&NothingDirty).unwrap();
    let pin = volume.pin_present(&Buffered).unwrap();
    // That is put, and replaced in the next generation.
    put(&volume, &attr, &noise(2, 2 << 20));
    assert_eq!(volume.commit(&NothingDirty).unwrap(), pin.generation());
    put(&volume, &attr, &noise(3, 2 << 20));
    volume.commit(&NothingDirty).unwrap();
    collect(&volume);
    assert_eq!(read_at(&volume, "a", pin.generation()).unwrap(), noise(2, 2 << 20));
    assert_eq!(read_at(&volume, "a", before).unwrap(), noise(1, 2 << 20));
    drop(pin);
    assert_eq!(collect(&volume).blocks_condemned, 32);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn contradicting_rules_are_refused_and_change_nothing() {
    let scratch = Scratch::new("retention-refused");
    scratch.format(2, 1);
    let volume = scratch.open();
    let wrong = Rules { hourly_s: 60, ..Rules::default() };
    assert!(matches!(volume.set_retention_rules(&wrong), Err(Error::Refused(_))));
    assert_eq!(volume.retention_rules().unwrap(), Rules::default());
    let right = Rules { daily_s: 30 * 86_400, ..Rules::default() };
    volume.set_retention_rules(&right).unwrap();
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    assert_eq!(volume.retention_rules().unwrap(), right);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn snapshots_are_made_by_rule_once_a_period() {
    let scratch = Scratch::new("retention-snapshots");
    scratch.format(2, 1);
    let volume = with_history(&scratch);
    let rules = Rules { snapshots: vec![SnapshotRule { every: Period::Monthly, keep: 2 }], ..Rules::default() };
    volume.meta().with(|txn| txn.create_snapshot(b"auto-monthly-of-a-user")).unwrap();
    volume.commit(&NothingDirty).unwrap();
    crate::retention::scheduled_snapshots(&volume, &rules).unwrap();
    volume.commit(&NothingDirty).unwrap();
    assert!(!crate::retention::scheduled_snapshots(&volume, &rules).unwrap(), "the period has one");
    let names: Vec<String> =
        volume.snapshots().unwrap().iter().map(|row| String::from_utf8_lossy(&row.name).into_owned()).collect();
    assert_eq!(names.len(), 2, "what a user named so is left alone: {names:?}");
    volume.close(&NothingDirty).unwrap();
}

/// Steele and others, "SplitMix", 2014.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % n
    }
}

type Files = BTreeMap<String, Vec<u8>>;

/// What the volume should hold.
#[derive(Default)]
struct Model {
    now: Files,
    committed: Files,
    snapshots: BTreeMap<String, (Generation, Files)>,
}

impl Model {
    fn check(&self, volume: &Volume, seed: u64) {
        for (name, content) in &self.now {
            assert_eq!(&read(volume, name).unwrap(), content, "seed {seed}: {name}");
        }
        for (snapshot, (generation, files)) in &self.snapshots {
            for n in 0..NAMES {
                let name = format!("f{n}");
                let found = read_at(volume, &name, *generation);
                assert!(found.as_ref() == files.get(&name), "seed {seed}: {name} in snapshot {snapshot}");
            }
        }
    }
}

const NAMES: u64 = 12;

fn random_life(seed: u64) {
    let scratch = Scratch::new(&format!("gc-random-{seed}"));
    scratch.format(3, 1);
    let mut volume = with_history(&scratch);
    volume.set_retention_rules(&nothing()).unwrap();
    volume.commit(&NothingDirty).unwrap();
    let mut random = Random(seed);
    let mut model = Model::default();
    for step in 0..70 {
        let name = format!("f{}", random.below(NAMES));
        match random.below(16) {
            0..=6 => {
                // Few contents and few lengths, so that much is shared and comes back; never inline.
                let content = noise(random.below(10), 5000 + 100_000 * random.below(6) as usize);
                match volume.lookup(ROOT_INO, name.as_bytes()) {
                    Ok(attr) => {
                        put(&volume, &attr, &content);
                    }
                    Err(_) => {
                        write(&volume, &name, &content);
                    }
                }
                model.now.insert(name, content);
            }
            7..=8 => {
                if model.now.remove(&name).is_some() {
                    remove(&volume, &name);
                }
            }
            9..=10 => {
                volume.commit(&NothingDirty).unwrap();
                model.committed.clone_from(&model.now);
            }
            11 => {
                let snapshot = format!("s{step}");
                volume.create_snapshot(snapshot.as_bytes()).unwrap();
                let generation = volume.commit(&NothingDirty).unwrap();
                model.committed.clone_from(&model.now);
                model.snapshots.insert(snapshot, (generation, model.now.clone()));
            }
            12 => {
                if let Some((snapshot, _)) = model.snapshots.pop_first() {
                    volume.delete_snapshot(snapshot.as_bytes()).unwrap();
                    volume.commit(&NothingDirty).unwrap();
                    model.committed.clone_from(&model.now);
                }
            }
            13 => {
                let report = collect(&volume);
                assert!(report.problems.is_empty(), "seed {seed}: {report:?}");
                model.committed.clone_from(&model.now);
            }
            14 => {
                // A kill in the middle of a collection.
                volume.commit(&NothingDirty).unwrap();
                model.committed.clone_from(&model.now);
                volume.set_gc_killed_after(random.below(12));
                let _ = volume.gc(&NothingDirty, GcOptions::default(), &|_, _, _| true);
                abandon(volume);
                volume = scratch.open();
            }
            _ => {
                // A crash: what was not committed is gone. Now and then with the database.
                abandon(volume);
                model.now.clone_from(&model.committed);
                if random.below(2) == 0 {
                    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
                }
                volume = scratch.open();
            }
        }
        if step % 10 == 9 {
            model.check(&volume, seed);
        }
    }
    model.check(&volume, seed);
    for snapshot in model.snapshots.keys() {
        volume.delete_snapshot(snapshot.as_bytes()).unwrap();
    }
    model.snapshots.clear();
    // Enough that what a small volume takes besides does not matter.
    for n in 0..8u64 {
        let (name, content) = (format!("large{n}"), noise(100 + n, 2 << 20));
        write(&volume, &name, &content);
        model.now.insert(name, content);
    }
    volume.commit(&NothingDirty).unwrap();
    let report = collect(&volume);
    assert!(report.problems.is_empty(), "seed {seed}: {report:?}");
    let again = collect(&volume);
    model.check(&volume, seed);
    healthy(&volume);
    let left = device_bytes(&scratch, 3);
    volume.close(&NothingDirty).unwrap();

    let fresh = Scratch::new(&format!("gc-random-fresh-{seed}"));
    fresh.format(3, 1);
    let copy = fresh.open();
    for (name, content) in &model.now {
        write(&copy, name, content);
    }
    copy.commit(&NothingDirty).unwrap();
    collect(&copy);
    let wanted = device_bytes(&fresh, 3);
    copy.close(&NothingDirty).unwrap();
    assert!(left <= wanted + wanted / 20, "seed {seed}: {left} bytes, a fresh copy takes {wanted}; {again:?}");
}

#[test]
fn random_lives_read_as_remembered_and_end_as_small_as_a_fresh_copy() {
    for seed in 1..=4 {
        random_life(seed);
    }
}

#[test]
fn an_unused_data_id_is_no_file() {
    // The reading helper above must be able to fail.
    let scratch = Scratch::new("retention-none");
    scratch.format(2, 1);
    let volume = with_history(&scratch);
    let generation = volume.meta().committed();
    assert_eq!(read_at(&volume, "none", generation), None);
    assert!(
        volume.meta().with(|txn| txn.extents_at(DataId(77), generation, ChunkNo(0), CHUNK_END)).unwrap().is_empty()
    );
    volume.close(&NothingDirty).unwrap();
}
