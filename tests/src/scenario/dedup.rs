//! Equal content, stored once.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::command::shell_as;
use crate::environment::STRANGER;
use crate::volume::wait_until;
use crate::{Builder, Random, TestVolume, content, seed};

/// Chunk length of new files, bytes.
pub const CHUNK: u64 = 131_072;

/// A small write that nobody follows up has become a block by then, on a slow machine too.
const FOLDED_WITHIN: Duration = Duration::from_secs(120);

/// Unique plaintext bytes of everything that is durable.
#[track_caller]
pub fn unique(volume: &TestVolume) -> u64 {
    volume.sync();
    volume.number(&["space", "unique_bytes"])
}

fn small(name: &str) -> Builder {
    Builder::new(name).directories(3).geometry(2, 1)
}

/// The same file again costs nothing; one changed byte costs one chunk; zeros cost nothing.
#[track_caller]
pub fn same_and_changed(chunks: u64) -> String {
    let mut volume = small("dedup").mount();
    let mut bytes = content(1, (chunks * CHUNK) as usize);
    fs::write(volume.path("one"), &bytes).expect("write");
    let once = unique(&volume);
    assert_eq!(once, chunks * CHUNK, "unique bytes of one file of whole chunks");
    let stored = volume.number(&["space", "stored_bytes"]);
    fs::write(volume.path("two"), &bytes).expect("write");
    assert_eq!(unique(&volume), once, "an equal file is stored twice");
    assert_eq!(volume.number(&["space", "stored_bytes"]), stored, "an equal file is stored twice");
    volume.remount();
    fs::write(volume.path("three"), &bytes).expect("write");
    assert_eq!(unique(&volume), once, "an equal file is stored twice after mounting again");
    let file = fs::OpenOptions::new().write(true).open(volume.path("two")).expect("open");
    bytes[CHUNK as usize + 5] ^= 1;
    file.write_all_at(&bytes[CHUNK as usize + 5..CHUNK as usize + 6], CHUNK + 5).expect("write");
    drop(file);
    // A small write is a patch in the commit log at first; it becomes a block when the chunk has come to rest.
    assert!(unique(&volume) <= once + CHUNK, "one changed byte makes more than one new block");
    wait_until(FOLDED_WITHIN, || unique(&volume) == once + CHUNK);
    assert_eq!(unique(&volume), once + CHUNK, "one changed byte makes exactly one new block");
    fs::write(volume.path("zeros"), vec![0; 20 * CHUNK as usize]).expect("write");
    assert_eq!(unique(&volume), once + CHUNK, "zeros are stored");
    assert!(fs::read(volume.path("zeros")).expect("read").iter().all(|&byte| byte == 0), "zeros are not zero");
    let ratio = volume.status()["dedup"]["ratio"].as_f64().unwrap_or_default();
    assert!(ratio > 2.0, "three nearly equal files have a ratio of {ratio}");
    volume.remount();
    assert!(fs::read(volume.path("two")).expect("read") == bytes, "a deduplicated file is wrong");
    assert!(fs::read(volume.path("three")).expect("read") == content(1, bytes.len()), "a deduplicated file is wrong");
    format!("{chunks} chunks thrice stored once, ratio {ratio:.2}")
}

/// A stream beside somebody who syncs again and again is stored before it is accepted: as it was written, and once.
#[track_caller]
pub fn streamed_beside_syncs(mebibytes: u64) -> String {
    const WRITE: usize = 1 << 20;
    let mut volume = small("streamed").mount();
    let bytes = content(3, mebibytes as usize * WRITE);
    let (stop, syncs) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut writes = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::File::create(volume.path("synced")).expect("create");
            while !stop.load(Ordering::Relaxed) {
                file.write_all(&[7; 100]).and_then(|()| file.sync_all()).expect("append and sync");
                syncs.fetch_add(1, Ordering::Relaxed);
            }
        });
        wait_until(FOLDED_WITHIN, || syncs.load(Ordering::Relaxed) > 0);
        let file = fs::File::create(volume.path("stream")).expect("create");
        let mut random = Random::new(seed("streamed"));
        let mut at = 0;
        while at < bytes.len() {
            writes += 1;
            // Some on the borders of chunks, some not.
            let len = (*random.choose(&[WRITE, WRITE, WRITE / 2, WRITE - 5000])).min(bytes.len() - at);
            file.write_all_at(&bytes[at..at + len], at as u64).expect("write");
            at += len;
        }
        // And over what is there, without being read.
        file.write_all_at(&bytes[WRITE / 2..2 * WRITE], WRITE as u64 / 2).expect("write");
        stop.store(true, Ordering::Relaxed);
    });
    let syncs = syncs.into_inner();
    assert_eq!(fs::metadata(volume.path("synced")).expect("stat").len(), 100 * syncs);
    let (small, whole) = (100 * syncs, bytes.len() as u64);
    let unique = unique(&volume);
    // What was written over again is the same; a chunk in which a write ends may have been synced before it was whole.
    assert!(unique >= whole && unique <= whole + writes * CHUNK + small, "{unique} bytes of {whole}, {writes} writes");
    let ahead = volume.number(&["dedup", "stored_ahead"]);
    assert!(ahead > 0, "nothing was stored ahead");
    for _ in 0..2 {
        assert!(fs::read(volume.path("stream")).expect("read") == bytes, "a stream is not what was written");
        volume.umount();
        fs::remove_dir_all(volume.state_dir()).expect("remove the state directory");
        volume.mount();
    }
    format!("{mebibytes} MiB beside {syncs} syncs, {ahead} chunks stored ahead")
}

/// With R copies asked for, equal content of `files` files is stored at most R times, exactly R when there are enough.
#[track_caller]
pub fn copies(copies: u64, files: u64) -> String {
    let mut volume = small("copies").format_args(&["--copies", &copies.to_string()]).mount();
    let bytes = content(2, CHUNK as usize);
    let mut seen = BTreeSet::new();
    for i in 0..files {
        fs::write(volume.path(&format!("file-{i}")), &bytes).expect("write");
        if i < 4 || i + 1 == files {
            let now = unique(&volume);
            assert!(now <= copies * CHUNK && now >= CHUNK, "{now} unique bytes of one content, {copies} copies wanted");
            seen.insert(now);
        }
    }
    assert_eq!(unique(&volume), copies * CHUNK, "{files} equal files should have exactly {copies} ciphertexts");
    volume.remount();
    for i in 0..files {
        assert!(fs::read(volume.path(&format!("file-{i}"))).expect("read") == bytes, "file-{i} is wrong");
    }
    assert_eq!(unique(&volume), copies * CHUNK);
    format!("{files} equal files, exactly {copies} ciphertexts")
}

/// Another epoch does not share with the one before; within itself it does.
#[track_caller]
pub fn epochs() -> String {
    let mut volume = small("epochs").mount();
    let bytes = content(3, 3 * CHUNK as usize);
    fs::write(volume.path("first"), &bytes).expect("write");
    let one = unique(&volume);
    let epoch = volume.number(&["epoch"]);
    volume.umount();
    volume.mount_with(&[&format!("epoch={}", epoch + 1)]);
    assert_eq!(volume.number(&["epoch"]), epoch + 1);
    fs::write(volume.path("second"), &bytes).expect("write");
    assert_eq!(unique(&volume), 2 * one, "a new epoch shares with the one before");
    fs::write(volume.path("third"), &bytes).expect("write");
    assert_eq!(unique(&volume), 2 * one, "an epoch does not share with itself");
    for name in ["first", "second", "third"] {
        assert!(fs::read(volume.path(name)).expect("read") == bytes, "{name} is wrong");
    }
    "a new epoch stores anew, once".into()
}

/// With a domain for each owner, users do not share with each other.
#[track_caller]
pub fn owners() -> String {
    let volume = small("owners").format_args(&["--domain", "owner"]).option("allow_other").mount();
    fs::create_dir(volume.path("open")).expect("mkdir");
    std::os::unix::fs::chown(volume.path("open"), Some(STRANGER), Some(STRANGER)).expect("chown");
    let bytes = content(4, 2 * CHUNK as usize);
    fs::write(volume.path("roots"), &bytes).expect("write");
    let one = unique(&volume);
    fs::write(volume.path("roots too"), &bytes).expect("write");
    assert_eq!(unique(&volume), one, "an owner does not share with himself");
    fs::set_permissions(volume.path("roots"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod");
    shell_as(STRANGER, volume.mnt(), "dd if=roots of=open/mine bs=128k status=none").expect_success();
    assert_eq!(unique(&volume), 2 * one, "another owner's equal content shares with the first");
    shell_as(STRANGER, volume.mnt(), "dd if=roots of=open/mine2 bs=128k status=none").expect_success();
    assert_eq!(unique(&volume), 2 * one, "the second owner does not share with himself");
    assert_eq!(volume.status()["domain"], Value::from("owner"));
    "two owners, two ciphertexts".into()
}

/// Space of removed files comes back.
#[track_caller]
pub fn space_comes_back(mebibytes: usize) -> String {
    let volume = small("space-back").format_args(&["--no-history"]).mount();
    fs::write(volume.path("kept"), content(5, 2 << 20)).expect("write");
    let before = unique(&volume);
    fs::write(volume.path("large"), content(6, mebibytes << 20)).expect("write");
    fs::write(volume.path("twin"), content(6, mebibytes << 20)).expect("write");
    let full = unique(&volume);
    fs::remove_file(volume.path("large")).expect("unlink");
    assert_eq!(unique(&volume), full, "blocks that another file refers to were dropped");
    assert!(fs::read(volume.path("twin")).expect("read") == content(6, mebibytes << 20), "a shared file is wrong");
    fs::remove_file(volume.path("twin")).expect("unlink");
    // Extents are retired behind the caller's back.
    let dropped = crate::volume::wait_until(Duration::from_secs(30), || unique(&volume) == before);
    assert!(dropped, "{} unique bytes are left, {before} were there before", unique(&volume));
    assert!(fs::read(volume.path("kept")).expect("read") == content(5, 2 << 20), "a kept file is wrong");
    format!("{mebibytes} MiB written twice, removed twice, gone once")
}
