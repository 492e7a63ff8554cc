//! What happens when something is wrong: keys, files, transactions, records.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

fn refusal(result: Result<Meta>) -> String {
    match result.expect_err("it must not open") {
        Error::Refused(text) => text,
        error @ (Error::Format { .. } | Error::DatabaseVersion { .. }) => error.to_string(),
        other => panic!("unexpected: {other}"),
    }
}

#[test]
fn what_cannot_be_opened_says_why() {
    let (dir, meta) = fresh("refusals");
    meta.commit_generation().unwrap();
    let text = refusal(Meta::create(&dir.0, &KEY, &setup(), &ROOT, 17));
    assert!(text.contains("there is one already"), "{text}");
    meta.close().unwrap();
    drop(meta);
    let text = refusal(Meta::open(&dir.0, &[8; 32], &setup()));
    assert!(text.contains("key") && text.contains("meta.db"), "{text}");
    let other = Setup { volume: VolumeId([9; 16]), ..setup() };
    let text = refusal(Meta::open(&dir.0, &KEY, &other));
    assert!(text.contains("another volume"), "{text}");
    let path = dir.0.join(DATABASE_FILE);
    let whole = std::fs::read(&path).unwrap();
    assert!(!whole.starts_with(b"SQLite format 3"), "it must be encrypted");
    let mut damaged = whole.clone();
    damaged[100] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let text = refusal(Meta::open(&dir.0, &KEY, &setup()));
    assert!(text.contains("damaged"), "{text}");
    std::fs::write(&path, b"").unwrap();
    let text = refusal(Meta::open(&dir.0, &KEY, &setup()));
    assert!(text.contains("no tables"), "{text}");
    std::fs::write(&path, &whole).unwrap();
    {
        let conn = schema::connect(&path, &KEY, Role::Write).unwrap();
        schema::identity(&conn).unwrap();
        conn.execute_batch("PRAGMA user_version = 99").unwrap();
    }
    let text = refusal(Meta::open(&dir.0, &KEY, &setup()));
    assert!(text.contains("is of version 99") && text.contains("version 4"), "{text}");
    std::fs::remove_file(&path).unwrap();
    schema::make_of_version(&path, &KEY, 2, 0).unwrap();
    let text = refusal(Meta::open(&dir.0, &KEY, &setup()));
    assert!(text.contains("is of version 2") && text.contains("brine rebuild SOURCE"), "{text}");
    std::fs::remove_file(&path).unwrap();
    let text = refusal(Meta::open(&dir.0, &KEY, &setup()));
    assert!(text.contains("does not exist"), "{text}");
    assert!(!path.exists(), "opening must not make one");
}

#[test]
fn a_lost_transaction_is_never_silent() {
    let (_dir, meta) = fresh("poison");
    meta.with(|txn| txn.create(ROOT_INO, b"a", &file(0))).unwrap();
    // What SQLite does by itself when the disk is full or fails at the wrong moment.
    let lost: Result<()> = meta.with(|txn| {
        txn.core.conn.execute_batch("ROLLBACK").unwrap();
        txn.create(ROOT_INO, b"b", &file(0)).map(|_| ())
    });
    assert!(lost.is_err());
    for _ in 0..2 {
        let error = meta.with(|txn| txn.attr(ROOT_INO)).unwrap_err();
        assert!(matches!(&error, Error::ReadOnly(text) if text.contains("meta.db")), "{error}");
        assert!(matches!(meta.commit_generation(), Err(Error::ReadOnly(_))));
        assert!(matches!(meta.close(), Err(Error::ReadOnly(_))));
    }
}

#[test]
fn a_full_disk_fails_the_operation_or_the_volume_but_loses_nothing_silently() {
    let (_dir, meta) = fresh("full");
    meta.commit_generation().unwrap();
    {
        let core = meta.core.lock();
        let pages: i64 = core.conn.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        core.conn.query_row(&format!("PRAGMA max_page_count = {}", pages + 8), [], |_| Ok(())).unwrap();
    }
    let mut made = 0;
    let failed = loop {
        match meta.with(|txn| txn.create(ROOT_INO, format!("{made:0>200}").as_bytes(), &file(0))) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
        assert!(made < 10_000);
    };
    assert!(matches!(failed, Error::Database { .. }), "{failed}");
    match meta.with(|txn| {
        let mut names = 0;
        let mut cookie = 0;
        while let Some(last) = txn.read_dir(ROOT_INO, cookie, 1000, false)?.last() {
            names += txn.read_dir(ROOT_INO, cookie, 1000, false)?.len();
            cookie = last.cookie;
        }
        Ok(names)
    }) {
        Ok(names) => assert_eq!(names, made),
        Err(error) => assert!(matches!(error, Error::ReadOnly(_)), "{error}"),
    }
}

#[test]
fn a_panic_within_an_operation_undoes_it() {
    let (_dir, meta) = fresh("panic");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        meta.with(|txn| -> Result<()> {
            txn.create(ROOT_INO, b"a", &file(0))?;
            panic!("a fault in a caller");
        })
    }));
    assert!(panicked.is_err());
    assert!(matches!(meta.with(|txn| txn.lookup(ROOT_INO, b"a")), Err(Error::NotFound)));
    assert_eq!(meta.with(|txn| txn.create(ROOT_INO, b"a", &file(0))).unwrap().ino, Ino(2));
    meta.commit_generation().unwrap();
    assert_eq!(meta.verify().unwrap(), Vec::<String>::new());
}

#[test]
fn a_record_that_cannot_be_sealed_leaves_the_generation_open() {
    let (_dir, meta) = fresh("unsealed");
    meta.with(|txn| txn.create(ROOT_INO, b"a", &file(0))).unwrap();
    let failed = meta.commit_with(|_| Err(Error::NoSpace));
    assert!(matches!(failed, Err(Error::NoSpace)));
    assert_eq!(meta.committed(), Generation(0));
    meta.with(|txn| txn.create(ROOT_INO, b"b", &file(0))).unwrap();
    let part = |closed: &Closed| OutboxRow { generation: closed.generation, part: 0, message: vec![1, 2, 3] };
    let closed = meta.commit_with(|closed| Ok(vec![part(closed)])).unwrap();
    assert_eq!(closed.generation, Generation(1));
    let names = closed.changes.iter().filter(|change| matches!(change, RowChange::PutDentry(_))).count();
    assert_eq!(names, 2);
    assert_eq!(meta.with(|txn| txn.outbox()).unwrap(), [part(&closed)]);
    assert_eq!(meta.with(|txn| txn.durable()).unwrap(), Generation(0));
    meta.note_durable(Generation(1));
    assert!(!meta.commit_with(|_| panic!("nothing to seal")).unwrap().changed);
    assert_eq!(meta.with(|txn| txn.durable()).unwrap(), Generation(1));
    assert_eq!(meta.with(|txn| txn.outbox()).unwrap(), [part(&closed)]);
    // Of the last two it is kept.
    let noted: Vec<OutboxRow> = [b"c", b"d"]
        .map(|name| {
            meta.with(|txn| txn.create(ROOT_INO, name, &file(0))).unwrap();
            part(&meta.commit_with(|closed| Ok(vec![part(closed)])).unwrap())
        })
        .into();
    assert_eq!(meta.with(|txn| txn.outbox()).unwrap(), noted);
}

#[test]
fn what_was_not_committed_is_gone_after_a_crash_and_the_rest_is_there() {
    let (dir, meta) = fresh("crash");
    meta.with(|txn| txn.create(ROOT_INO, b"a", &file(0))).unwrap();
    meta.with(|txn| txn.put_local("note", b"here")).unwrap();
    meta.commit_generation().unwrap();
    meta.with(|txn| txn.create(ROOT_INO, b"b", &file(0))).unwrap();
    drop(meta); // as a killed process: no close
    let meta = Meta::open(&dir.0, &KEY, &setup()).unwrap();
    assert_eq!(meta.committed(), Generation(1));
    assert!(meta.with(|txn| txn.lookup(ROOT_INO, b"a")).is_ok());
    assert!(matches!(meta.with(|txn| txn.lookup(ROOT_INO, b"b")), Err(Error::NotFound)));
    assert_eq!(meta.with(|txn| txn.local("note")).unwrap().as_deref(), Some(&b"here"[..]));
    assert_eq!(meta.verify().unwrap(), Vec::<String>::new());
}

#[test]
fn conditional_writes_conflict_and_are_tried_again() {
    let (_dir, meta) = fresh("conflict");
    let before = meta.with(|txn| txn.attr(ROOT_INO)).unwrap();
    meta.with(|txn| txn.create(ROOT_INO, b"a", &file(0))).unwrap();
    let late = meta.with(|txn| {
        txn.expect_version(ROOT_INO, before.version)?;
        txn.set_attr(ROOT_INO, &SetAttr { perm: Some(0), ..SetAttr::default() })
    });
    assert!(matches!(late, Err(Error::Conflict(ROOT_INO))));
    let mut expected = before.version;
    let done = meta.with_retry(|txn| {
        let now = txn.attr(ROOT_INO)?.version;
        txn.expect_version(ROOT_INO, std::mem::replace(&mut expected, now))?;
        txn.set_attr(ROOT_INO, &SetAttr { perm: Some(0o700), ..SetAttr::default() })
    });
    assert_eq!(done.unwrap().perm, 0o700);
    let mut tries = 0;
    let never: Result<()> = meta.with_retry(|_| {
        tries += 1;
        Err(Error::Conflict(ROOT_INO))
    });
    assert!(matches!(never, Err(Error::Conflict(_))) && tries == 8);
}

#[test]
fn records_apply_in_order_only() {
    let (_dir, meta) = fresh("order");
    meta.with(|txn| txn.create(ROOT_INO, b"a", &file(0))).unwrap();
    let first = meta.commit_generation().unwrap();
    meta.with(|txn| txn.create(ROOT_INO, b"b", &file(0))).unwrap();
    let second = meta.commit_generation().unwrap();
    let dir = Scratch::new("order-copy");
    let copy = Meta::create_blank(&dir.0, &KEY, &setup()).unwrap();
    assert!(matches!(copy.replay(second.generation, &second.changes), Err(Error::Refused(_))));
    assert!(copy.replay(first.generation, &first.changes).unwrap());
    copy.with(|txn| txn.create(ROOT_INO, b"mine", &file(0))).unwrap();
    assert!(matches!(copy.replay(second.generation, &second.changes), Err(Error::Refused(_))));
}

#[test]
fn a_replay_that_is_broken_off_leaves_whole_generations_and_goes_on_from_them() {
    let (_dir, meta) = fresh("broken-off");
    let name = |number: usize| format!("f{number}").into_bytes();
    let closed: Vec<_> = (0..150)
        .map(|number| {
            meta.with(|txn| txn.create(ROOT_INO, &name(number), &file(0))).unwrap();
            meta.commit_generation().unwrap()
        })
        .collect();
    let dir = Scratch::new("broken-off-copy");
    let copy = Meta::create_blank(&dir.0, &KEY, &setup()).unwrap();
    let replay = |copy: &Meta, part: &[Closed]| {
        part.iter().map(|closed| copy.replay(closed.generation, &closed.changes).unwrap()).collect::<Vec<_>>()
    };
    // The tables of a copy begin blank: the first generation of all is the one that made them.
    let first = closed[0].generation;
    replay(&copy, &closed[..100]);
    assert_eq!(copy.committed(), closed[99].generation);
    // Nobody closes it.
    drop(copy);
    let copy = Meta::open(&dir.0, &KEY, &setup()).unwrap();
    let there = (copy.committed().0 + 1 - first.0) as usize;
    assert!((1..100).contains(&there), "{there} generations are committed");
    let found = |number| copy.with(|txn| txn.lookup(ROOT_INO, &name(number))).is_ok();
    assert!(found(there - 1) && !found(there));
    let again = replay(&copy, &closed);
    assert_eq!(again.iter().filter(|anew| **anew).count(), 150 - there);
    // Who reads beside it finds all of them.
    assert_eq!(copy.reader().unwrap().digest().unwrap(), meta.reader().unwrap().digest().unwrap());
}

#[test]
fn blocks_live_and_die_by_their_references() {
    let (_dir, meta) = fresh("blocks");
    let key = BlockKey([4; 32]);
    let id = test_block_id(&key);
    let row = BlockRow {
        id,
        digest: ContentDigest([1; 32]),
        domain: 0,
        epoch: 0,
        index: 0,
        segment: SegmentId(1),
        offset: 4096,
        record_len: 512,
        stripe_blocks: 1,
        message_offset: 0,
        sealed_len: 300,
        plain_len: 200,
        refs: 9,
        state: BlockState::Condemned,
        state_since: Generation(0),
        verified: false,
        codec: 0,
        since: Generation(0),
    };
    let ino = meta.with(|txn| txn.create(ROOT_INO, b"a", &file(0))).unwrap().ino;
    let put = |key| meta.with(|txn| txn.put_extents(ino, &[(ChunkNo(0), key)]));
    assert!(matches!(put(Some(key)), Err(Error::Refused(_))), "the block must be there first");
    assert!(meta.with(|txn| txn.put_block(&row)).unwrap());
    assert!(!meta.with(|txn| txn.put_block(&row)).unwrap(), "the second of two writers stores nothing");
    put(Some(key)).unwrap();
    meta.commit_generation().unwrap();
    let stored = meta.with(|txn| txn.block(&id)).unwrap().unwrap();
    assert_eq!((stored.refs, stored.state), (1, BlockState::Live));
    let counters = meta.counters();
    assert_eq!((counters.live_blocks, counters.unique_bytes, counters.stored_bytes), (1, 200, 300));
    assert!(!meta.with(|txn| txn.condemn_block(&id)).unwrap());
    put(None).unwrap();
    meta.commit_generation().unwrap();
    assert_eq!(meta.with(|txn| txn.block(&id)).unwrap().unwrap().state, BlockState::Zero);
    assert_eq!(meta.counters().dead_bytes, 300);
    // A duplicate write revives it; if nothing then names it, it is unreferenced again.
    assert_eq!(meta.with(|txn| txn.find_duplicate(&id)).unwrap().unwrap().state, BlockState::Live);
    assert!(!meta.with(|txn| txn.condemn_block(&id)).unwrap());
    meta.commit_generation().unwrap();
    assert_eq!(meta.with(|txn| txn.block(&id)).unwrap().unwrap().state, BlockState::Zero);
    assert!(matches!(meta.with(|txn| txn.free_block(&id)), Err(Error::Refused(_))));
    assert!(meta.with(|txn| txn.condemn_block(&id)).unwrap());
    assert!(meta.with(|txn| txn.find_duplicate(&id)).unwrap().is_none());
    assert!(matches!(put(Some(key)), Err(Error::Refused(_))), "a condemned block is not referred to");
    meta.with(|txn| txn.free_block(&id)).unwrap();
    meta.commit_generation().unwrap();
    assert!(meta.with(|txn| txn.block(&id)).unwrap().is_none());
    assert_eq!(meta.counters().dead_blocks, 0);
}

#[test]
fn the_log_starts_anew_once_it_was_copied() {
    let (dir, meta) = fresh("wal");
    let length = || std::fs::metadata(dir.0.join("meta.db-wal")).unwrap().len();
    let mut lengths = Vec::new();
    for round in 0..20 {
        for n in 0..200 {
            meta.with(|txn| txn.create(ROOT_INO, format!("{round}-{n}").as_bytes(), &file(0))).unwrap();
        }
        meta.commit_generation().unwrap();
        meta.checkpoint_wal().unwrap();
        meta.restart_wal.store(true, Ordering::Relaxed);
        meta.commit_generation().unwrap();
        lengths.push(length());
    }
    assert!(lengths[19] < 4 * lengths[2], "{lengths:?}");
    meta.sync().unwrap();
    drop(meta);
    let meta = Meta::open(&dir.0, &KEY, &setup()).unwrap();
    assert_eq!(meta.counters().inodes, 4001);
    assert_eq!(meta.verify().unwrap(), Vec::<String>::new());
}

#[test]
fn verification_names_what_is_wrong() {
    let (_dir, meta) = fresh("verify");
    let ino = meta.with(|txn| txn.create(ROOT_INO, b"a", &file(0))).unwrap().ino;
    meta.with(|txn| txn.create(ROOT_INO, b"d", &ROOT)).unwrap();
    meta.commit_generation().unwrap();
    assert_eq!(meta.verify().unwrap(), Vec::<String>::new());
    {
        let core = meta.core.lock();
        core.conn
            .execute_batch(
                "UPDATE inodes SET nlink = 5, allocated = 4096 WHERE ino = 2; UPDATE inodes SET parent = 3 WHERE ino = 3;
                 UPDATE dentries SET kind = 3 WHERE ino = 2; INSERT INTO extents VALUES (99, 0, zeroblob(32), 0, 1);
                 DELETE FROM inodes WHERE ino = 4; COMMIT; BEGIN IMMEDIATE;",
            )
            .unwrap();
    }
    let findings = meta.verify().unwrap().join("\n");
    for wanted in [
        format!("stands for inode {ino}"),
        format!("inode {ino} says 5 names, it has 1"),
        "says its parent is 3".to_owned(),
        format!("file {ino} says 4096 bytes"),
        "data id 99 has 1 extents".to_owned(),
        "1 extents name block".to_owned(),
    ] {
        assert!(findings.contains(&wanted), "{wanted:?} in\n{findings}");
    }
}

#[test]
fn threads_share_the_database() {
    let (_dir, meta) = fresh("threads");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let meta = &meta;
            scope.spawn(move || {
                for n in 0..500 {
                    meta.with(|txn| txn.create(ROOT_INO, format!("{thread}-{n}").as_bytes(), &file(0))).unwrap();
                    if n % 100 == 50 {
                        meta.commit_generation().unwrap();
                        meta.checkpoint_wal().unwrap();
                        assert!(meta.reader().unwrap().inode(ROOT_INO).unwrap().is_some());
                    }
                }
            });
        }
    });
    meta.commit_generation().unwrap();
    assert_eq!(meta.counters().inodes, 2001);
    assert_eq!(meta.verify().unwrap(), Vec::<String>::new());
}
