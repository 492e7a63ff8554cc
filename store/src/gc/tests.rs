//! Collections end to end: real directories, real database, kills between any two steps.

mod history;
mod salt;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::*;
use crate::check::heal;
use crate::error::Error;
use crate::ids::ROOT_INO;
use crate::meta::rows::SegmentState;
use crate::volume::NothingDirty;
use crate::volume::tests::{Scratch, Silent, healthy, noise, put, read, segment_files, write};

/// Bytes that a scratch volume takes on its device, metadata database and what is preallocated not counted.
fn device_bytes(scratch: &Scratch, members: usize) -> u64 {
    let files = (0..members).flat_map(|n| segment_files(&scratch.0.join(format!("d{n}"))));
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len().min(meta.blocks() * 512)).sum()
}

fn collect(volume: &Volume) -> GcReport {
    volume.gc(&NothingDirty, GcOptions::default(), &|_, _, _| true).unwrap()
}

fn remove(volume: &Volume, name: &str) {
    let gone = volume.unlink(ROOT_INO, name.as_bytes()).unwrap();
    volume.release_orphan(gone.ino).unwrap();
}

/// The state directory is lost: everything comes from the backing directories.
fn reopen_without_state(scratch: &Scratch, volume: Arc<Volume>) -> Arc<Volume> {
    volume.close(&NothingDirty).unwrap();
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    scratch.open()
}

#[test]
fn space_of_removed_files_is_given_back_and_the_others_stay() {
    let scratch = Scratch::new("gc-removed");
    scratch.format(6, 1);
    let volume = scratch.open();
    for n in 0..40u64 {
        write(&volume, &format!("f{n}"), &noise(n, 1 << 20));
    }
    volume.commit(&NothingDirty).unwrap();
    let full = device_bytes(&scratch, 6);
    assert!(full > 60 << 20, "{full}");
    for n in (0..40u64).filter(|n| n % 10 != 0) {
        remove(&volume, &format!("f{n}"));
    }
    volume.commit(&NothingDirty).unwrap();
    let report = collect(&volume);
    assert!(report.problems.is_empty(), "{report:?}");
    assert_eq!(report.blocks_condemned, 36 * 8);
    assert!(report.freed_bytes > 36 << 20, "{report:?}");
    let left = device_bytes(&scratch, 6);
    // Four files at 1.5, and what else a small volume takes.
    assert!(left < (6 << 20) + (14 << 20), "{left} of {full}, {report:?}");
    for n in [0, 10, 20, 30] {
        assert_eq!(read(&volume, &format!("f{n}")).unwrap(), noise(n, 1 << 20));
    }
    healthy(&volume);
    assert!(heal(&volume, &Silent).unwrap().healed);
    let volume = reopen_without_state(&scratch, volume);
    for n in [0, 10, 20, 30] {
        assert_eq!(read(&volume, &format!("f{n}")).unwrap(), noise(n, 1 << 20));
    }
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
}

/// Each time it would be news otherwise, for which checkpoints are written, as long as the directory is away.
#[test]
fn what_a_directory_that_is_away_still_has_is_condemned_once() {
    let scratch = Scratch::new("gc-away");
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "f", &noise(1, 2 << 20));
    volume.close(&NothingDirty).unwrap();
    std::fs::rename(scratch.0.join("d5"), scratch.0.join("away")).unwrap();
    let volume = scratch.open();
    remove(&volume, "f");
    volume.commit(&NothingDirty).unwrap();
    let condemned = || {
        let rows = volume.meta().with(|txn| txn.segments()).unwrap();
        let rows = rows.into_iter().filter(|row| row.state == SegmentState::Condemned);
        rows.map(|row| (row.id, row.since)).collect::<Vec<_>>()
    };
    collect(&volume);
    let first = condemned();
    assert_ne!(first, []);
    write(&volume, "later", &noise(2, 1000));
    volume.commit(&NothingDirty).unwrap();
    collect(&volume);
    let second = condemned();
    assert!(first.iter().all(|row| second.contains(row)), "{first:?} {second:?}");
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_condemned_block_is_stored_anew_by_a_duplicate_write() {
    let scratch = Scratch::new("gc-condemned");
    scratch.format(6, 1);
    let volume = scratch.open();
    let content = noise(1, 3 << 17);
    write(&volume, "a", &content);
    volume.commit(&NothingDirty).unwrap();
    remove(&volume, "a");
    volume.commit(&NothingDirty).unwrap();
    let before = volume.meta().counters();
    assert_eq!((before.live_blocks, before.dead_blocks), (0, 3));

    // Unreferenced: revived, nothing is written.
    write(&volume, "b", &content[..1 << 17]);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta().counters().live_blocks, 1);
    assert_eq!(volume.blocks().figures().dedup_hits.load(std::sync::atomic::Ordering::Relaxed), 1);

    // Condemned: stored anew.
    let mut report = GcReport::default();
    let committed = volume.meta().committed();
    Gc::new(committed).condemn(&volume, committed, usize::MAX, &mut report).unwrap();
    assert_eq!(report.blocks_condemned, 2);
    write(&volume, "c", &content);
    volume.commit(&NothingDirty).unwrap();
    let after = volume.meta().counters();
    assert_eq!((after.live_blocks, after.dead_blocks), (3, 0));
    assert_eq!(volume.blocks().figures().dedup_misses.load(std::sync::atomic::Ordering::Relaxed), 3 + 2);
    collect(&volume);
    assert_eq!(read(&volume, "c").unwrap(), content);
    healthy(&volume);
    let volume = reopen_without_state(&scratch, volume);
    assert_eq!(read(&volume, "c").unwrap(), content);
    assert_eq!(read(&volume, "b").unwrap(), content[..1 << 17]);
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_kill_between_any_two_steps_loses_nothing() {
    // Every step at first, then some of them: they repeat.
    for kill in (0..8).chain((8..).step_by(5)) {
        let scratch = Scratch::new("gc-kill");
        scratch.format(4, 1);
        let volume = scratch.open();
        for n in 0..9u64 {
            write(&volume, &format!("f{n}"), &noise(n, 1 << 20));
        }
        volume.commit(&NothingDirty).unwrap();
        for n in (0..9u64).filter(|n| n % 4 != 0) {
            remove(&volume, &format!("f{n}"));
        }
        volume.commit(&NothingDirty).unwrap();
        volume.set_gc_killed_after(kill);
        let outcome = volume.gc(&NothingDirty, GcOptions::default(), &|_, _, _| true);
        let killed = matches!(&outcome, Err(Error::Refused(reason)) if reason == "killed here");
        assert!(killed || outcome.is_ok(), "{outcome:?}");
        abandon(volume);
        if kill % 2 == 1 {
            std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
        }
        let volume = scratch.open();
        for n in (0..9u64).filter(|n| n % 4 == 0) {
            assert_eq!(read(&volume, &format!("f{n}")).unwrap(), noise(n, 1 << 20), "file {n}, kill {kill}");
        }
        healthy(&volume);
        // It is taken up again, and comes to the same end.
        let report = collect(&volume);
        assert!(report.problems.is_empty(), "kill {kill}: {report:?}");
        assert!(device_bytes(&scratch, 4) < 12 << 20, "kill {kill}: {} {report:?}", device_bytes(&scratch, 4));
        for n in (0..9u64).filter(|n| n % 4 == 0) {
            assert_eq!(read(&volume, &format!("f{n}")).unwrap(), noise(n, 1 << 20), "file {n}, kill {kill}, again");
        }
        healthy(&volume);
        volume.close(&NothingDirty).unwrap();
        if !killed {
            assert!(kill > 5, "there are steps to be killed at");
            return;
        }
    }
}

/// Let go of a volume as a kill would: nothing is committed, nothing is told.
fn abandon(volume: Arc<Volume>) {
    let weak = Arc::downgrade(&volume);
    drop(volume);
    // The housekeeper may hold it for the rest of a round.
    while weak.strong_count() > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_count_that_does_not_add_up_stops_deletion() {
    let scratch = Scratch::new("gc-audit");
    scratch.format(2, 1);
    let volume = scratch.open();
    let attr = write(&volume, "a", &noise(1, 1 << 20));
    write(&volume, "b", &noise(2, 1 << 20));
    volume.commit(&NothingDirty).unwrap();
    // A block that says it is unreferenced though a file names it.
    let key =
        volume.meta().with(|txn| txn.extents(attr.data, crate::ids::ChunkNo(0), crate::ids::ChunkNo(1))).unwrap()[0].1;
    let id = crate::seal::Sealer::block_id(&key);
    volume.meta().with(|txn| txn.break_references(&id)).unwrap();
    remove(&volume, "b");
    volume.commit(&NothingDirty).unwrap();
    let report = collect(&volume);
    assert_eq!((report.blocks_condemned, report.freed_bytes), (0, 0), "{report:?}");
    assert!(report.problems[0].contains("do not add up"), "{report:?}");
    assert!(volume.gc_stopped().is_some());
    assert_eq!(read(&volume, "a").unwrap(), noise(1, 1 << 20));
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn readers_and_writers_go_on_while_blocks_move_and_go() {
    let scratch = Scratch::new("gc-beside");
    scratch.format(3, 1);
    let volume = scratch.open();
    for n in 0..8u64 {
        write(&volume, &format!("keep{n}"), &noise(n, 300_000));
    }
    volume.commit(&NothingDirty).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..12u64 {
                let attr = write(&volume, &format!("t{round}"), &noise(100 + round % 3, 2 << 20));
                put(&volume, &attr, &noise(200 + round, 2 << 20));
                volume.commit(&NothingDirty).unwrap();
                remove(&volume, &format!("t{round}"));
            }
        });
        let reader = scope.spawn(|| {
            for round in 0..200u64 {
                volume.blocks().cache().clear();
                assert_eq!(read(&volume, &format!("keep{}", round % 8)).unwrap(), noise(round % 8, 300_000));
            }
        });
        while !writer.is_finished() || !reader.is_finished() {
            let report = collect(&volume);
            assert!(report.problems.is_empty(), "{report:?}");
        }
    });
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn directories_are_left_alone_by_a_dry_run() {
    let scratch = Scratch::new("gc-dry");
    scratch.format(2, 1);
    let volume = scratch.open();
    write(&volume, "a", &noise(1, 12 << 20));
    volume.commit(&NothingDirty).unwrap();
    remove(&volume, "a");
    volume.commit(&NothingDirty).unwrap();
    let before = device_bytes(&scratch, 2);
    let report = volume.gc(&NothingDirty, GcOptions { dry_run: true }, &|_, _, _| true).unwrap();
    assert!(report.reclaimable_bytes > 8 << 20 && report.dry_run, "{report:?}");
    assert_eq!(device_bytes(&scratch, 2), before);
    assert!(collect(&volume).freed_bytes > 20 << 20);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn the_more_there_is_to_free_the_shorter_is_the_pause() {
    let seconds = Duration::from_secs;
    assert_eq!(pause(Duration::ZERO, 0, 0.0), PAUSE_MIN);
    assert_eq!(pause(seconds(3), REST_BYTES, REST_PART), seconds(30));
    assert_eq!(pause(seconds(3), 4 * REST_BYTES, 0.0), seconds(30) / 4);
    assert_eq!(pause(seconds(3), u64::MAX, 0.0), PAUSE_MIN);
    assert_eq!(pause(seconds(3), 0, 4.0 * REST_PART), seconds(30) / 4);
    assert_eq!(pause(seconds(3), u64::MAX, 1.0), PAUSE_MIN);
}
