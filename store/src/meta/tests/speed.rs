//! What metadata operations cost. Run with
//! `cargo test -p brine-store --lib --config profile.dev.opt-level=3 -- --ignored --nocapture meta::tests::speed`.

use std::time::Instant;

use super::*;

fn rate(what: &str, count: usize, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{what:<44} {:>9.0}/s", count as f64 / seconds);
}

#[test]
#[ignore = "measures"]
fn creates_lookups_and_listings() {
    let (_dir, meta) = fresh("speed");
    for directories in [1usize, 100] {
        let parents: Vec<Ino> = (0..directories)
            .map(|n| {
                meta.with(|txn| txn.create(ROOT_INO, format!("d{directories}-{n}").as_bytes(), &ROOT)).unwrap().ino
            })
            .collect();
        let count = 200_000;
        let start = Instant::now();
        for n in 0..count {
            let name = format!("file-{n:08}");
            meta.with(|txn| txn.create(parents[n % directories], name.as_bytes(), &file(0o644))).unwrap();
            if n % 20_000 == 19_999 {
                meta.commit_generation().unwrap();
            }
        }
        rate(&format!("create in {directories} directories, with commits"), count, start);
        let start = Instant::now();
        for n in 0..count {
            let n = (n * 7919) % count;
            let name = format!("file-{n:08}");
            meta.with(|txn| txn.lookup(parents[n % directories], name.as_bytes())).unwrap();
        }
        rate("lookup, scattered", count, start);
        let start = Instant::now();
        let ino = meta.with(|txn| txn.lookup(parents[0], b"file-00000000")).unwrap().ino;
        for _ in 0..count {
            meta.with(|txn| txn.attr(ino)).unwrap();
        }
        rate("attr, cached", count, start);
        let start = Instant::now();
        let mut seen = 0;
        for parent in &parents {
            let mut cookie = 0;
            loop {
                let page = meta.with(|txn| txn.read_dir(*parent, cookie, 128, true)).unwrap();
                let Some(last) = page.last() else { break };
                cookie = last.cookie;
                seen += page.len();
            }
        }
        assert_eq!(seen, count);
        rate("listing with attributes, entries", count, start);
        let start = Instant::now();
        for n in 0..count {
            let name = format!("file-{n:08}");
            let gone = meta.with(|txn| txn.unlink(parents[n % directories], name.as_bytes())).unwrap();
            meta.with(|txn| txn.release_orphan(gone.ino)).unwrap();
        }
        meta.commit_generation().unwrap();
        rate("unlink and release", count, start);
    }
}

#[test]
#[ignore = "measures"]
fn extents_of_a_large_file() {
    let (_dir, meta) = fresh("speed-extents");
    let ino = meta.with(|txn| txn.create(ROOT_INO, b"large", &file(0o644))).unwrap().ino;
    let count = 100_000u64;
    let start = Instant::now();
    for n in 0..count / 8 {
        meta.with(|txn| {
            let keys: Vec<_> = (n * 8..n * 8 + 8)
                .map(|chunk| {
                    let key = BlockKey(*blake3::hash(&chunk.to_le_bytes()).as_bytes());
                    (ChunkNo(chunk), Some(key))
                })
                .collect();
            for (chunk, key) in &keys {
                let id = test_block_id(&key.unwrap());
                assert!(txn.find_duplicate(&id)?.is_none());
                txn.put_block(&BlockRow {
                    id,
                    digest: ContentDigest(key.unwrap().0),
                    domain: 0,
                    epoch: 0,
                    index: 0,
                    segment: SegmentId(1),
                    offset: chunk.0 << 15,
                    record_len: 33_000,
                    stripe_blocks: 1,
                    message_offset: 0,
                    sealed_len: 131_096,
                    plain_len: 131_072,
                    refs: 0,
                    state: BlockState::Live,
                    state_since: Generation(0),
                    verified: true,
                    codec: 0,
                    since: Generation(0),
                })?;
            }
            txn.put_extents(ino, &keys)
        })
        .unwrap();
        if n % 1000 == 999 {
            meta.commit_generation().unwrap();
        }
    }
    meta.commit_generation().unwrap();
    rate("new blocks with extents", count as usize, start);
    let data = meta.with(|txn| txn.attr(ino)).unwrap().data;
    let start = Instant::now();
    for n in 0..count {
        let chunk = ChunkNo((n * 7919) % count);
        assert!(meta.with(|txn| txn.extent(data, chunk)).unwrap().is_some());
    }
    rate("extent, scattered", count as usize, start);
    let start = Instant::now();
    let change = FileChange { size: 0, mtime_ns: 0, ctime_ns: 0, inline: None, clear_suid: false };
    meta.with(|txn| {
        txn.set_file(ino, &FileChange { size: count << 17, ..change.clone() })?;
        txn.set_file(ino, &change)
    })
    .unwrap();
    println!("truncate of {count} chunks: {:?}", start.elapsed());
    let start = Instant::now();
    while meta.with(|txn| txn.retire_step(1024)).unwrap() {}
    meta.commit_generation().unwrap();
    rate("retired extents", count as usize, start);
}
