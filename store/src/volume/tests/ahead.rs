//! What is stored ahead of being written.

use std::sync::atomic::Ordering;

use super::behind::Faulty;
use super::*;
use crate::backing::{Call, Fault, Rule};
use crate::blocks::Put;
use crate::gc::GcOptions;

const CHUNK: usize = 128 << 10;

fn chunks(content: &[u8]) -> Vec<&[u8]> {
    content.chunks(CHUNK).collect()
}

/// Blocks that were shared, and that were not.
fn dedup(volume: &Volume) -> (u64, u64) {
    let figures = volume.blocks().figures();
    (figures.dedup_hits.load(Ordering::Relaxed), figures.dedup_misses.load(Ordering::Relaxed))
}

#[test]
fn what_is_stored_ahead_is_found_when_it_is_written_and_counts_as_new() {
    let scratch = Scratch::new("ahead");
    scratch.format(6, 1);
    let volume = scratch.open();
    let attr = volume.create(ROOT_INO, b"f", &new_file()).unwrap();
    // The second chunk twice, and one of zeros.
    let mut content = noise(1, 3 * CHUNK);
    content.extend_from_within(CHUNK..2 * CHUNK);
    content.extend(vec![0; CHUNK]);
    volume.store_ahead(&attr, &chunks(&content)).unwrap();
    assert_eq!(dedup(&volume), (0, 0), "nothing was written yet");
    assert_eq!(read(&volume, "f").unwrap(), b"");
    // Some are written in the same generation, some in a later one.
    for (end, commit) in [(2 * CHUNK, true), (content.len(), false)] {
        let appended = volume.blocks().segments().unsynced_bytes();
        put(&volume, &attr, &content[..end]);
        assert_eq!(volume.blocks().segments().unsynced_bytes(), appended, "nothing was appended");
        if commit {
            volume.commit(&NothingDirty).unwrap();
        }
    }
    // The first two were written twice.
    assert_eq!(dedup(&volume), (3, 3));
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta().counters().live_blocks, 3);
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    let volume = scratch.open();
    assert!(read(&volume, "f").unwrap() == content);
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn what_is_stored_ahead_and_never_written_is_given_back() {
    let scratch = Scratch::new("ahead-never");
    scratch.format(6, 1);
    let volume = scratch.open();
    let kept = write(&volume, "kept", &noise(7, 2 * CHUNK));
    let content = noise(1, 4 * CHUNK);
    volume.store_ahead(&kept, &chunks(&content)).unwrap();
    volume.commit(&NothingDirty).unwrap();
    let counters = volume.meta().counters();
    assert_eq!((counters.live_blocks, counters.dead_blocks), (2, 4));
    let report = volume.gc(&NothingDirty, GcOptions::default(), &|_, _, _| true).unwrap();
    assert_eq!(report.blocks_condemned, 4);
    healthy(&volume);
    // And is stored anew when it is written after all.
    volume.store_ahead(&kept, &chunks(&content)).unwrap();
    write(&volume, "late", &content);
    volume.commit(&NothingDirty).unwrap();
    assert!(read(&volume, "late").unwrap() == content);
    assert!(read(&volume, "kept").unwrap() == noise(7, 2 * CHUNK));
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
}

/// Who stores ahead waits for the gate, and a commit that holds it may be storing the same.
#[test]
fn many_store_the_same_ahead_while_others_write_it_and_commit() {
    let scratch = Scratch::new("ahead-many");
    scratch.format(6, 1);
    let volume = scratch.open();
    let attrs: Vec<Attr> =
        (0..4).map(|n| volume.create(ROOT_INO, format!("f{n}").as_bytes(), &new_file()).unwrap()).collect();
    std::thread::scope(|scope| {
        for attr in &attrs {
            let volume = &volume;
            scope.spawn(move || {
                for round in 0..20 {
                    let content = noise(round, 2 * CHUNK);
                    volume.store_ahead(attr, &chunks(&content)).unwrap();
                    let gate = volume.gate();
                    put(volume, attr, &content);
                    drop(gate);
                    volume.commit(&NothingDirty).unwrap();
                }
            });
        }
    });
    for n in 0..4 {
        assert!(read(&volume, &format!("f{n}")).unwrap() == noise(19, 2 * CHUNK));
    }
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
}

/// The segment that it opened belongs to others, too, from then on.
#[test]
fn others_append_to_a_segment_that_was_opened_for_what_is_stored_ahead_and_commit() {
    let scratch = Scratch::new("ahead-segment");
    scratch.format(6, 1);
    let volume = scratch.open();
    let attr = volume.create(ROOT_INO, b"f", &new_file()).unwrap();
    volume.commit(&NothingDirty).unwrap();
    volume.blocks().segments().close();
    let (content, other) = (noise(1, 2 * CHUNK), noise(2, 2 * CHUNK));
    let salt = volume.salt(attr.ino, 0);
    let puts: Vec<Put<'_>> = chunks(&content).into_iter().map(|plain| Put { plain, salt }).collect();
    let between = || {
        write(&volume, "other", &other);
        volume.commit(&NothingDirty).unwrap();
        assert_eq!(volume.meta().verify().unwrap(), Vec::<String>::new());
        // And it is closed before the rows are put.
        volume.blocks().segments().close();
        volume.commit(&NothingDirty).unwrap();
    };
    volume.blocks().put_ahead(&puts, between).unwrap();
    put(&volume, &attr, &content);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta().verify().unwrap(), Vec::<String>::new());
    healthy(&volume);
    drop(volume); // as by a kill
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    let volume = scratch.open();
    assert!(read(&volume, "f").unwrap() == content && read(&volume, "other").unwrap() == other);
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn no_commit_has_to_sync_what_is_stored_ahead_and_it_survives_a_kill_without_two_directories() {
    let scratch = Scratch::new("ahead-synced");
    scratch.format(6, 1);
    let volume = scratch.open();
    let attr = volume.create(ROOT_INO, b"f", &new_file()).unwrap();
    volume.commit(&NothingDirty).unwrap();
    let content = noise(1, 3 * CHUNK);
    volume.store_ahead(&attr, &chunks(&content)).unwrap();
    assert!(!volume.blocks().segments().has_unsynced());
    put(&volume, &attr, &content);
    assert!(!volume.blocks().segments().has_unsynced());
    volume.commit(&NothingDirty).unwrap();
    scratch.kill(volume);
    for name in ["state", "d1", "d4"] {
        std::fs::remove_dir_all(scratch.0.join(name)).unwrap();
    }
    let volume = scratch.open();
    assert!(read(&volume, "f").unwrap() == content);
    volume.close(&NothingDirty).unwrap();
}

/// Stored ahead over directories of which `failing` fail to sync it, then written: the volume, and the commit's outcome.
fn failing_to_sync(scratch: &Scratch, failing: usize, content: &[u8]) -> (Arc<Volume>, Result<()>) {
    scratch.format(6, 1);
    let directories = Faulty::new((0..6).map(|n| scratch.0.join(format!("d{n}"))));
    let volume = Volume::open_in(scratch.options(), &directories).unwrap();
    write(&volume, "before", &content[..CHUNK]);
    let attr = volume.create(ROOT_INO, b"f", &new_file()).unwrap();
    volume.commit(&NothingDirty).unwrap();
    for directory in directories.0.values().take(failing) {
        directory.add(Rule::new(Call::SyncSegment, Fault::Errno(libc::EIO)).times(1));
    }
    volume.store_ahead(&attr, &chunks(content)).unwrap();
    assert_eq!(volume.blocks().segments().has_unsynced_stripes(), failing > 2);
    put(&volume, &attr, content);
    let committed = volume.commit(&NothingDirty).map(drop);
    (volume, committed)
}

#[test]
fn directories_that_fail_to_sync_what_is_stored_ahead_are_done_without() {
    let scratch = Scratch::new("ahead-two-fail");
    let content = noise(1, 3 * CHUNK);
    let (volume, committed) = failing_to_sync(&scratch, 2, &content);
    committed.unwrap();
    assert_ne!(volume.blocks().segments().lacking_segments(), [], "they have to be caught up");
    scratch.kill(volume);
    for name in ["state", "d0", "d1"] {
        std::fs::remove_dir_all(scratch.0.join(name)).unwrap();
    }
    let volume = scratch.open();
    assert!(read(&volume, "f").unwrap() == content);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn what_is_stored_ahead_and_too_few_directories_synced_is_not_acknowledged() {
    let scratch = Scratch::new("ahead-three-fail");
    let content = noise(1, 3 * CHUNK);
    let (volume, committed) = failing_to_sync(&scratch, 3, &content);
    assert!(committed.is_err());
    scratch.kill(volume);
    let volume = scratch.open();
    assert!(read(&volume, "before").unwrap() == content[..CHUNK]);
    volume.close(&NothingDirty).unwrap();
}
