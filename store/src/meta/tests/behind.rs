//! Transactions that end behind the generations they hold, or hold several.

use super::*;

fn make(meta: &Meta, name: &str) {
    meta.with(|txn| txn.create(ROOT_INO, name.as_bytes(), &file(0))).unwrap();
}

/// Make a file in a generation of its own, as a commit does that another is about to follow.
fn close_with(meta: &Meta, name: &str) -> Closed {
    let closing = meta.begin_closing();
    make(meta, name);
    let closed = meta.commit_behind(|_| Ok(Vec::new()), true).unwrap();
    drop(closing);
    closed
}

fn left_open(meta: &Meta) -> u32 {
    meta.core.lock().uncommitted
}

#[test]
fn a_transaction_that_fails_behind_its_generation_is_told_to_whoever_needs_the_database_next() {
    let (_dir, meta) = fresh("behind");
    meta.with(|txn| txn.create(ROOT_INO, b"a", &file(0))).unwrap();
    meta.commit_generation().unwrap();
    meta.with(|txn| txn.create(ROOT_INO, b"b", &file(0))).unwrap();
    // What SQLite does by itself when a disk fails, seen by nobody before COMMIT.
    let core = meta.core.lock_arc();
    core.conn.execute_batch("ROLLBACK").unwrap();
    meta.behind.end(core, false);
    for _ in 0..2 {
        let error = meta.with(|txn| txn.attr(ROOT_INO)).unwrap_err();
        assert!(matches!(&error, Error::ReadOnly(text) if text.contains("meta.db")), "{error}");
        assert!(matches!(meta.commit_behind(|_| Ok(Vec::new()), false), Err(Error::ReadOnly(_))));
        assert!(matches!(meta.commit_with(|_| Ok(Vec::new())), Err(Error::ReadOnly(_))));
    }
}

#[test]
fn nothing_is_noted_of_generations_whose_rows_sqlite_rolled_back() {
    type NeedsIt = fn(&Meta) -> Result<()>;
    let whoever: [NeedsIt; 4] = [
        Meta::settle,
        |meta| meta.with(|txn| txn.attr(ROOT_INO)).map(drop),
        |meta| meta.commit_generation().map(drop),
        Meta::close,
    ];
    for needs_it in whoever {
        let (dir, meta) = fresh("rolled-back");
        make(&meta, "a");
        meta.note_durable(Generation(0));
        let row = |closed: &Closed| OutboxRow { generation: closed.generation, part: 0, message: vec![7] };
        meta.commit_with(|closed| Ok(vec![row(closed)])).unwrap();
        for (number, name) in [(1, "b"), (2, "c")] {
            let closing = meta.begin_closing();
            make(&meta, name);
            meta.note_durable(Generation(number));
            meta.commit_behind(|closed| Ok(vec![row(closed)]), true).unwrap();
            drop(closing);
        }
        assert_eq!(left_open(&meta), 2);
        // As it does when a page cannot be read, for whom nobody is waiting.
        meta.core.lock().conn.execute_batch("ROLLBACK").unwrap();
        assert!(matches!(needs_it(&meta), Err(Error::ReadOnly(_))));
        drop(meta);
        let meta = Meta::open(&dir.0, &KEY, &setup()).unwrap();
        assert_eq!(meta.committed(), Generation(1));
        let (outbox, durable) = meta.with(|txn| Ok((txn.outbox()?, txn.durable()?))).unwrap();
        assert_eq!((outbox.len(), outbox[0].generation, durable), (1, Generation(1), Generation(0)));
        assert!(meta.with(|txn| txn.lookup(ROOT_INO, b"a")).is_ok());
        assert!(meta.with(|txn| txn.lookup(ROOT_INO, b"c")).is_err());
    }
}

#[test]
fn readers_see_a_generation_whose_transaction_ends_behind_it() {
    let (_dir, meta) = fresh("settled");
    for n in 0..200 {
        let name = n.to_string();
        meta.with(|txn| txn.create(ROOT_INO, name.as_bytes(), &file(0))).unwrap();
        let closed = meta.commit_behind(|_| Ok(Vec::new()), false).unwrap();
        if n % 2 == 0 {
            assert_eq!(meta.reader().unwrap().generation(), closed.generation);
        } else {
            let kept = meta.past(|past| past.generation(closed.generation)).unwrap();
            assert_eq!(kept.unwrap().generation, closed.generation);
        }
        assert!(meta.with(|txn| txn.lookup(ROOT_INO, name.as_bytes())).is_ok());
    }
    meta.commit_generation().unwrap();
    assert_eq!(meta.verify().unwrap(), Vec::<String>::new());
}

#[test]
fn a_few_generations_share_a_transaction_until_something_else_is_changed_or_read_beside_it() {
    let (dir, meta) = fresh("left-open");
    make(&meta, "first");
    meta.commit_generation().unwrap();
    // Nobody's change or look ends it but those that have to.
    for n in 1..16 {
        let closed = close_with(&meta, &n.to_string());
        assert_eq!((closed.generation, meta.committed()), (Generation(n + 1), Generation(n + 1)));
        assert_eq!(u64::from(left_open(&meta)), n);
        assert!(meta.look(|txn| txn.lookup(ROOT_INO, n.to_string().as_bytes())).is_ok());
        assert!(!meta.has_changes());
    }
    close_with(&meta, "16");
    meta.behind.settle();
    assert_eq!(left_open(&meta), 0, "that was the last it holds");
    close_with(&meta, "a");
    close_with(&meta, "another");
    make(&meta, "a change");
    assert_eq!(left_open(&meta), 0);
    assert_eq!(meta.reader().unwrap().generation(), Generation(19));
    meta.commit_generation().unwrap();
    let closed = close_with(&meta, "b");
    assert_eq!(left_open(&meta), 1);
    assert!(meta.past(|past| past.generation(closed.generation)).unwrap().is_some());
    assert_eq!(left_open(&meta), 0);
    let closed = close_with(&meta, "c");
    assert_eq!(meta.reader().unwrap().generation(), closed.generation);
    close_with(&meta, "d");
    meta.close().unwrap();
    drop(meta);
    let meta = Meta::open(&dir.0, &KEY, &setup()).unwrap();
    assert_eq!(meta.committed(), Generation(23));
    assert!(meta.with(|txn| txn.lookup(ROOT_INO, b"d")).is_ok());
    assert_eq!(meta.verify().unwrap(), Vec::<String>::new());
}

/// Who writes beside somebody who syncs would have to end each transaction, and be waited for meanwhile.
#[test]
fn transactions_are_not_left_open_for_a_while_where_somebody_else_comes_between_any_two_commits() {
    let (_dir, meta) = fresh("interrupted");
    close_with(&meta, "one");
    assert_eq!(left_open(&meta), 1);
    make(&meta, "beside");
    for n in 0..16 {
        close_with(&meta, &n.to_string());
        meta.behind.settle();
        assert_eq!(left_open(&meta), 0, "{n}");
        make(&meta, &format!("beside {n}"));
    }
    close_with(&meta, "and again");
    assert_eq!(left_open(&meta), 1);
}

#[test]
fn a_crash_takes_whole_generations_that_were_left_open() {
    let (dir, meta) = fresh("left-open-crash");
    make(&meta, "first");
    meta.commit_generation().unwrap();
    close_with(&meta, "second");
    close_with(&meta, "third");
    let closing = meta.begin_closing();
    make(&meta, "fourth");
    drop(closing);
    drop(meta); // as a killed process: no close
    let meta = Meta::open(&dir.0, &KEY, &setup()).unwrap();
    assert_eq!(meta.committed(), Generation(1));
    assert!(matches!(meta.with(|txn| txn.lookup(ROOT_INO, b"second")), Err(Error::NotFound)));
    assert_eq!(meta.verify().unwrap(), Vec::<String>::new());
}

#[test]
fn a_generation_that_is_being_closed_is_waited_for_and_one_that_cannot_be_is_not() {
    let (_dir, meta) = fresh("left-open-closing");
    make(&meta, "first");
    meta.commit_generation().unwrap();
    let closed = close_with(&meta, "second");
    let closing = meta.begin_closing();
    make(&meta, "third");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| meta.reader().unwrap().generation());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!reader.is_finished(), "a part of a generation would be read");
        let third = meta.commit_behind(|_| Ok(Vec::new()), true).unwrap();
        assert_eq!(reader.join().unwrap(), third.generation);
    });
    drop(closing);
    close_with(&meta, "fourth");
    let closing = meta.begin_closing();
    make(&meta, "fifth");
    assert!(meta.commit_behind(|_| Err(Error::NoSpace), true).is_err());
    drop(closing);
    // What was closed before is read as far as it is in the file.
    assert!(meta.reader().unwrap().generation() > closed.generation);
    meta.commit_generation().unwrap();
    assert_eq!(meta.reader().unwrap().generation(), Generation(5));
    assert_eq!(meta.verify().unwrap(), Vec::<String>::new());
}

/// Of the database's log the file stays as long as it was when its pages are used again.
#[test]
fn the_log_of_the_database_starts_anew_when_its_pages_are_many_not_whenever_its_file_is_long() {
    let (_dir, meta) = fresh("restart");
    meta.with(|txn| txn.create(ROOT_INO, b"f", &file(0))).unwrap();
    let ino = meta.with(|txn| txn.lookup(ROOT_INO, b"f")).unwrap().ino;
    let wanted = || meta.restart_wal.load(Ordering::Relaxed);
    let mut chunk = 0;
    while !wanted() {
        let bytes = vec![chunk as u8; 1 << 17];
        let patches: Vec<(ChunkNo, u32, &[u8])> = (0..64).map(|n| (ChunkNo(chunk + n), 0, &bytes[..])).collect();
        meta.with(|txn| txn.put_patches(ino, &patches)).unwrap();
        meta.commit_generation().unwrap();
        meta.checkpoint_wal().unwrap();
        chunk += 64;
        assert!(chunk < 2048, "256 MiB, and it never starts anew");
    }
    assert!(chunk > 256, "more than 32 MiB are in it first");
    let length = || meta.wal.metadata().unwrap().len();
    let before = length();
    make(&meta, "next");
    meta.commit_generation().unwrap();
    assert!(!wanted());
    for name in ["a", "b", "c"] {
        make(&meta, name);
        meta.commit_generation().unwrap();
        meta.checkpoint_wal().unwrap();
        assert!(!wanted(), "its pages are few again");
    }
    assert!(length() >= before, "and its file is as long as before");
}

#[test]
fn pages_that_were_freed_are_not_in_use() {
    let (_dir, meta) = fresh("used");
    meta.with(|txn| txn.create(ROOT_INO, b"f", &file(0))).unwrap();
    let ino = meta.with(|txn| txn.lookup(ROOT_INO, b"f")).unwrap().ino;
    let settled = || {
        meta.commit_generation().unwrap();
        meta.checkpoint_wal().unwrap();
        meta.used_bytes().unwrap()
    };
    let before = settled();
    assert!((10_000..10_000_000).contains(&before), "{before}");
    let bytes = vec![7; 1 << 17];
    let patches: Vec<(ChunkNo, u32, &[u8])> = (0..64).map(|n| (ChunkNo(n), 0, &bytes[..])).collect();
    meta.with(|txn| txn.put_patches(ino, &patches)).unwrap();
    let with = settled();
    assert!((8 << 20..10 << 20).contains(&(with - before)), "{before} and {with}");
    meta.with(|txn| txn.punch(ino, ChunkNo(0), 64)).unwrap();
    let after = settled();
    assert!(after < before + (1 << 20), "{before}, {with} and {after}");
}
