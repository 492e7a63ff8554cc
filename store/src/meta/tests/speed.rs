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
