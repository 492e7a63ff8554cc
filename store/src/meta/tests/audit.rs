//! References are audited in slices, beside changes of everything that is counted.

use super::*;
use crate::meta::sql::number;

/// A file with these blocks in its first chunks.
fn file_of(meta: &Meta, name: &str, blocks: impl IntoIterator<Item = u64>) -> Ino {
    let ino = meta.with(|txn| txn.create(ROOT_INO, name.as_bytes(), &file(0))).unwrap().ino;
    let chunks: Vec<_> = (0..).map(ChunkNo).zip(blocks.into_iter().map(|number| Some(key(number)))).collect();
    meta.with(|txn| txn.put_extents(ino, &chunks)).unwrap();
    ino
}

/// Go on to the end.
fn finish(meta: &Meta) -> Vec<String> {
    loop {
        if let Some(findings) = meta.audit(3).unwrap() {
            return findings;
        }
    }
}

/// 20 blocks, each in two files, committed with history on.
fn two_files(name: &str) -> (Scratch, Meta, [Ino; 2]) {
    let (dir, meta) = fresh(name);
    meta.with(|txn| txn.set_history(true)).unwrap();
    for number in 0..20 {
        assert!(meta.with(|txn| txn.put_block(&block(number))).unwrap());
    }
    let files = [file_of(&meta, "a", 0..20), file_of(&meta, "b", (0..20).rev())];
    meta.commit_generation().unwrap();
    (dir, meta, files)
}

#[test]
fn extents_that_move_come_and_go_meanwhile_are_counted_once() {
    let (_dir, meta, [a, b]) = two_files("audit-beside");
    // However far the audit is when it happens.
    for before in 0..40 {
        let ended = (0..before).any(|_| meta.audit(3).unwrap().is_some());
        let turn = before as u64 % 17;
        meta.with(|txn| {
            // The chunks of one file become those of the other without a block having more or fewer of them.
            txn.share_extents((b, ChunkNo(turn)), (a, ChunkNo((turn + 5) % 17)), 3)?;
            txn.punch(b, ChunkNo(turn), 3)
        })
        .unwrap();
        if before % 3 == 0 {
            meta.commit_generation().unwrap();
        }
        if before % 7 == 0 {
            // What became history goes.
            let committed = meta.committed();
            meta.with(|txn| txn.forget_history(Generation(0), committed, &[])).unwrap();
        }
        meta.with(|txn| txn.share_extents((a, ChunkNo(turn)), (b, ChunkNo(turn)), 3)).unwrap();
        if !ended {
            assert_eq!(finish(&meta), Vec::<String>::new(), "changed after {before} slices");
        }
    }
    meta.commit_generation().unwrap();
    let wrong: Vec<String> = meta.verify().unwrap().into_iter().filter(|line| line.contains("references")).collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn a_wrong_count_is_found_though_the_block_comes_and_goes_meanwhile() {
    for before in 0..24 {
        let (_dir, meta, [a, b]) = two_files("audit-wrong");
        let id = test_block_id(&key(7));
        meta.with(|txn| txn.break_references(&id)).unwrap();
        (0..before).for_each(|_| assert_eq!(meta.audit(3).unwrap(), None));
        meta.with(|txn| txn.put_extents(a, &[(ChunkNo(2), Some(key(7)))])).unwrap();
        meta.commit_generation().unwrap();
        meta.with(|txn| txn.put_extents(b, &[(ChunkNo(12), Some(key(3))), (ChunkNo(15), Some(key(7)))])).unwrap();
        let findings = finish(&meta);
        assert!(findings.len() == 1 && findings[0].contains(&id.to_string()), "{before}: {findings:?}");
    }
}

#[test]
fn what_is_named_and_has_no_row_is_found() {
    let (_dir, meta, _) = two_files("audit-unknown");
    let id = test_block_id(&key(9));
    meta.core.lock().apply(RowChange::DelBlock(id)).unwrap();
    let findings = finish(&meta);
    assert_eq!(findings, [format!("2 extents name block {id}, which does not exist")]);
}

#[test]
fn one_chunk_with_more_former_states_than_a_slice_is_counted() {
    let (_dir, meta, [a, _]) = two_files("audit-states");
    for round in 0..30 {
        meta.with(|txn| txn.put_extents(a, &[(ChunkNo(4), Some(key(round % 20)))])).unwrap();
        meta.commit_generation().unwrap();
    }
    assert_eq!(finish(&meta), Vec::<String>::new());
}

/// Frames in the log of the database, and how many of them can be copied back: all, unless somebody holds a state.
fn log_frames(meta: &Meta) -> (u64, u64) {
    let copier = meta.copier.lock();
    copier.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok((number(row, 1)?, number(row, 2)?))).unwrap()
}

#[test]
fn the_log_of_the_database_is_copied_back_while_an_audit_goes_on() {
    let (_dir, meta, [a, _]) = two_files("audit-log");
    (0..5).for_each(|_| assert_eq!(meta.audit(3).unwrap(), None));
    meta.with(|txn| txn.punch(a, ChunkNo(0), 20)).unwrap();
    meta.commit_generation().unwrap();
    let (frames, copied) = log_frames(&meta);
    assert!(frames > 0 && copied == frames, "{copied} of {frames}");
    // As it is with a reader.
    let reader = meta.reader().unwrap();
    meta.with(|txn| txn.unlink(ROOT_INO, b"a")).unwrap();
    meta.commit_generation().unwrap();
    let (frames, copied) = log_frames(&meta);
    assert!(copied < frames, "{copied} of {frames}");
    drop(reader);
    assert_eq!(finish(&meta), Vec::<String>::new());
}
