//! The volume end to end, below FUSE: real directories, real database.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::check::{CheckOptions, CheckProgress, check, heal};
use crate::ids::{ChunkNo, ROOT_INO};

mod behind;
mod checked;
mod directories;
mod history;
mod following;
mod recovery;
mod staging;
mod takeover;

pub(crate) struct Silent;

impl CheckProgress for Silent {
    fn progress(&self, _done: u64, _total: u64, _phase: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// A scratch directory that goes with the test.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let base = std::env::temp_dir().join(format!("brine-volume-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        std::fs::create_dir_all(&base).unwrap();
        Self(base)
    }

    fn members(&self, count: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|n| {
                let path = self.0.join(format!("d{n}"));
                std::fs::create_dir_all(&path).unwrap();
                path
            })
            .collect()
    }

    /// A volume without history: what is deleted is gone.
    pub(crate) fn format(&self, count: usize, copies: u16) -> Formatted {
        self.format_as(count, copies, false)
    }

    /// A volume as they are made for users.
    pub(crate) fn format_kept(&self, count: usize) -> Formatted {
        self.format_as(count, 1, true)
    }

    fn format_as(&self, count: usize, copies: u16, history: bool) -> Formatted {
        format(&FormatOptions {
            directories: self.members(count),
            geometry: None,
            secret: NewSecret::Passphrase(zeroize::Zeroizing::new(b"open sesame".to_vec())),
            state_dir: Some(self.0.join("state")),
            copies,
            domain: DomainPolicy::Volume,
            codec: Codec::None,
            chunk_bits: 17,
            history,
            label: "test".into(),
            kdf: KdfCost::Fast,
        })
        .unwrap()
    }

    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions {
            sources: vec![self.0.join("d0"), self.0.join("d1"), self.0.join("d2"), self.0.join("d3")],
            unlock: Unlock::Passphrase(zeroize::Zeroizing::new(b"open sesame".to_vec())),
            state_dir: None,
            read_only: false,
            hedge: Hedge::Adaptive,
            min_ack: None,
            cache_bytes: 16 << 20,
            copies: None,
            epoch: None,
            domain: None,
            codec: None,
            use_member: Vec::new(),
            take_over: false,
            accept_rollback: false,
            report: None,
        }
    }

    /// A volume of fewer directories.
    fn open_of(&self, count: usize) -> Arc<Volume> {
        let sources = (0..count).map(|n| self.0.join(format!("d{n}"))).collect();
        self.open_with(OpenOptions { sources, ..self.options() })
    }

    pub(crate) fn open(&self) -> Arc<Volume> {
        self.open_with(self.options())
    }

    /// What is left when a daemon dies: nothing is closed. Returns when all its threads have let go.
    pub(crate) fn kill(&self, volume: Arc<Volume>) {
        let state_dir = volume.state_dir().to_owned();
        drop(volume);
        while crate::lock::LocalLock::holder(&state_dir).is_some() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn open_with(&self, options: OpenOptions) -> Arc<Volume> {
        self.try_open(&options).unwrap()
    }

    /// A volume that was dropped as by a kill lets go of its directories when the last of its threads is done.
    pub(crate) fn try_open(&self, options: &OpenOptions) -> Result<Arc<Volume>> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let again = OpenOptions {
                cache_bytes: options.cache_bytes,
                sources: options.sources.clone(),
                state_dir: options.state_dir.clone(),
                read_only: options.read_only,
                take_over: options.take_over,
                accept_rollback: options.accept_rollback,
                ..self.options()
            };
            match Volume::open(again) {
                Err(Error::InUse(_)) if std::time::Instant::now() < deadline => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn new_file() -> NewNode<'static> {
    NewNode { kind: FileKind::File, perm: 0o644, uid: 0, gid: 0, rdev: 0, target: None }
}

pub(crate) fn write(volume: &Volume, name: &str, bytes: &[u8]) -> Attr {
    let attr = volume.create(ROOT_INO, name.as_bytes(), &new_file()).unwrap();
    put(volume, &attr, bytes)
}

pub(crate) fn put(volume: &Volume, attr: &Attr, bytes: &[u8]) -> Attr {
    let chunks: Vec<(ChunkNo, &[u8])> =
        bytes.chunks(1 << attr.chunk_bits).enumerate().map(|(n, chunk)| (ChunkNo(n as u64), chunk)).collect();
    volume.write_chunks(attr.ino, &chunks).unwrap();
    let now = volume.clock().now_ns();
    let change = FileChange { size: bytes.len() as u64, mtime_ns: now, ctime_ns: now, inline: None, clear_suid: false };
    volume.set_file(attr.ino, &change).unwrap()
}

pub(crate) fn read(volume: &Volume, name: &str) -> Result<Vec<u8>> {
    let attr = volume.lookup(ROOT_INO, name.as_bytes())?;
    let len = 1usize << attr.chunk_bits;
    let chunks: Vec<ChunkNo> = (0..attr.size.div_ceil(len as u64)).map(ChunkNo).collect();
    let mut out = vec![0; attr.size as usize];
    for (n, chunk) in volume.read_chunks(&attr, &chunks)?.into_iter().enumerate() {
        if let Some(chunk) = chunk {
            out[n * len..n * len + chunk.len()].copy_from_slice(&chunk);
        }
    }
    Ok(out)
}

pub(crate) fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for fan_out in std::fs::read_dir(dir.join("segments")).unwrap() {
        for file in std::fs::read_dir(fan_out.unwrap().path()).unwrap() {
            files.push(file.unwrap().path());
        }
    }
    files
}

#[test]
fn what_was_committed_is_read_back_after_reopening() {
    let scratch = Scratch::new("reopen");
    let made = scratch.format(6, 1);
    assert_eq!(made.geometry.to_string(), "4+2");
    let content = noise(1, 1_000_003);
    {
        let volume = scratch.open();
        write(&volume, "large", &content);
        write(&volume, "small", b"a few bytes, more than nothing");
        assert_eq!(read(&volume, "large").unwrap(), content);
        volume.close(&NothingDirty).unwrap();
    }
    let volume = scratch.open();
    assert_eq!(read(&volume, "large").unwrap(), content);
    assert_eq!(read(&volume, "small").unwrap(), b"a few bytes, more than nothing");
    let report = check(&volume, &CheckOptions::default(), &Silent).unwrap();
    assert!(report.healthy, "{report:?}");
    assert_eq!(report.files, 2);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn equal_content_is_stored_once_and_one_changed_byte_stores_one_block() {
    let scratch = Scratch::new("dedup");
    scratch.format(6, 1);
    let volume = scratch.open();
    let mut content = noise(2, 10 << 17);
    write(&volume, "a", &content);
    volume.commit(&NothingDirty).unwrap();
    let before = volume.meta().counters();
    write(&volume, "b", &content);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta().counters().live_blocks, before.live_blocks);
    content[700_000] ^= 1;
    write(&volume, "c", &content);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta().counters().live_blocks, before.live_blocks + 1);
    write(&volume, "zero", &vec![0; 5 << 17]);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta().counters().live_blocks, before.live_blocks + 1, "zeros are holes");
    assert_eq!(read(&volume, "zero").unwrap(), vec![0; 5 << 17]);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn equal_content_has_at_most_r_ciphertexts_and_exactly_r_when_many_share_it() {
    let scratch = Scratch::new("copies");
    scratch.format(6, 3);
    let content = noise(3, 5000);
    let volume = scratch.open();
    let mut seen = Vec::new();
    for n in 0..40 {
        write(&volume, &format!("f{n}"), &content);
        volume.commit(&NothingDirty).unwrap();
        seen.push(volume.meta().counters().live_blocks);
    }
    assert!(seen.iter().all(|&blocks| blocks <= 3), "{seen:?}");
    assert_eq!(*seen.last().unwrap(), 3);
    volume.close(&NothingDirty).unwrap();
    // Another epoch has salts of its own; what was written before stays readable.
    let volume = Volume::open(OpenOptions { epoch: Some(1), ..scratch.options() }).unwrap();
    write(&volume, "next", &content);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta().counters().live_blocks, 4);
    assert_eq!(read(&volume, "f0").unwrap(), content);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn threads_that_store_one_content_at_once_store_it_once() {
    let scratch = Scratch::new("race");
    scratch.format(3, 1);
    let volume = scratch.open();
    let content = noise(4, 4 << 17);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (volume, content) = (&volume, &content);
            scope.spawn(move || write(volume, &format!("t{n}"), content));
        }
    });
    volume.commit(&NothingDirty).unwrap();
    let counters = volume.meta().counters();
    assert_eq!((counters.live_blocks, counters.dead_blocks), (4, 0));
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn any_two_of_six_directories_may_go_while_the_volume_is_open() {
    let content = noise(5, 1_500_000);
    let small: Vec<Vec<u8>> = (0..50).map(|n| noise(100 + n, 3000 + n as usize * 37)).collect();
    for (first, second) in [(0, 1), (2, 5), (3, 4), (4, 5)] {
        let scratch = Scratch::new(&format!("lose{first}{second}"));
        scratch.format(6, 1);
        let volume = scratch.open_with(OpenOptions { cache_bytes: 0, ..scratch.options() });
        write(&volume, "large", &content);
        for (n, bytes) in small.iter().enumerate() {
            write(&volume, &format!("s{n}"), bytes);
        }
        volume.commit(&NothingDirty).unwrap();
        std::fs::remove_dir_all(scratch.0.join(format!("d{first}"))).unwrap();
        std::fs::remove_dir_all(scratch.0.join(format!("d{second}"))).unwrap();
        assert_eq!(read(&volume, "large").unwrap(), content);
        for (n, bytes) in small.iter().enumerate() {
            assert_eq!(&read(&volume, &format!("s{n}")).unwrap(), bytes);
        }
        // Writing goes on with the directories that are left.
        write(&volume, "after", &content[..300_000]);
        volume.commit(&NothingDirty).unwrap();
        assert_eq!(read(&volume, "after").unwrap(), &content[..300_000]);
        volume.close(&NothingDirty).unwrap();
        let volume = scratch.open_with(OpenOptions {
            sources: vec![scratch.0.join(if first == 0 { "d2" } else { "d0" })],
            ..scratch.options()
        });
        assert_eq!(read(&volume, "large").unwrap(), content);
        assert_eq!(read(&volume, "after").unwrap(), &content[..300_000]);
        assert_eq!(volume.status().unwrap().health, "critical");
        volume.close(&NothingDirty).unwrap();
    }
}

#[test]
fn damaged_shards_are_read_around_counted_and_healed() {
    let scratch = Scratch::new("damage");
    scratch.format(6, 1);
    let volume = scratch.open_with(OpenOptions { cache_bytes: 0, ..scratch.options() });
    let content = noise(6, 2_000_000);
    write(&volume, "large", &content);
    volume.commit(&NothingDirty).unwrap();
    // Flip bytes all over one directory, cut another short.
    for file in segment_files(&scratch.0.join("d1")) {
        let mut bytes = std::fs::read(&file).unwrap();
        for at in (5000..bytes.len()).step_by(9000) {
            bytes[at] ^= 0x40;
        }
        std::fs::write(&file, bytes).unwrap();
    }
    // A directory that holds data, not parity: what a read meets.
    let open = volume.blocks().segments().open_tails()[0].0;
    let holder = volume.blocks().segment_info(open).unwrap().slots[0].unwrap();
    let holder = volume.set.get(&holder).unwrap().path().to_path_buf();
    for file in segment_files(&holder) {
        std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(40_000).unwrap();
    }
    assert_eq!(read(&volume, "large").unwrap(), content);
    let status = volume.status().unwrap();
    assert!(status.damage.shards_bad > 0);
    assert_eq!(status.damage.blocks_lost, 0);
    assert!(status.damage.recent.iter().any(|event| event.path == "/large"), "{:?}", status.damage.recent);
    let report = heal(&volume, &Silent).unwrap();
    assert!(report.healed, "{report:?}");
    let report = check(&volume, &CheckOptions::default(), &Silent).unwrap();
    assert!(report.healthy, "{report:?}");
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn beyond_parity_only_the_files_concerned_fail() {
    let scratch = Scratch::new("beyond");
    scratch.format(6, 1);
    let volume = scratch.open_with(OpenOptions { cache_bytes: 0, ..scratch.options() });
    let (first, second) = (noise(7, 400_000), noise(8, 400_000));
    write(&volume, "first", &first);
    volume.commit(&NothingDirty).unwrap();
    // The files are longer, by zeros.
    let (_, until) = volume.blocks().segments().open_tails()[0];
    write(&volume, "second", &second);
    volume.commit(&NothingDirty).unwrap();
    for n in 0..3 {
        let file = &segment_files(&scratch.0.join(format!("d{n}")))[0];
        std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(until).unwrap();
    }
    assert_eq!(read(&volume, "first").unwrap(), first);
    assert!(matches!(read(&volume, "second"), Err(Error::BlockLost { good: 3, needed: 4, .. })));
    let report = check(&volume, &CheckOptions::default(), &Silent).unwrap();
    assert!(!report.healthy);
    assert_eq!(
        report.damaged.iter().filter(|d| !d.recoverable).map(|d| d.path.as_str()).collect::<Vec<_>>(),
        ["/second"]
    );
    drop(volume);
}

#[test]
fn a_lost_directory_is_replaced_and_healed() {
    let scratch = Scratch::new("replace");
    scratch.format(6, 1);
    let volume = scratch.open_with(OpenOptions { cache_bytes: 0, ..scratch.options() });
    let content = noise(9, 3_000_000);
    write(&volume, "large", &content);
    volume.commit(&NothingDirty).unwrap();
    std::fs::remove_dir_all(scratch.0.join("d2")).unwrap();
    let new = scratch.0.join("new");
    std::fs::create_dir(&new).unwrap();
    assert!(replace(&volume, &scratch.0.join("d1"), &new).is_err(), "a healthy one is not replaced");
    replace(&volume, &scratch.0.join("d2"), &new).unwrap();
    let report = heal(&volume, &Silent).unwrap();
    assert!(report.healed && report.shards_repaired > 0, "{report:?}");
    assert_eq!(volume.status().unwrap().health, "healthy");
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().is_empty(), "{:?}", volume.warnings());
    assert!(check(&volume, &CheckOptions::default(), &Silent).unwrap().healthy);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn what_cannot_be_opened_says_why() {
    let scratch = Scratch::new("refuse");
    scratch.format(6, 1);
    let wrong =
        OpenOptions { unlock: Unlock::Passphrase(zeroize::Zeroizing::new(b"wrong".to_vec())), ..scratch.options() };
    assert!(matches!(Volume::open(wrong), Err(Error::Unlock(_))));
    let key_file = OpenOptions { unlock: Unlock::KeyFile(zeroize::Zeroizing::new(vec![7; 64])), ..scratch.options() };
    assert!(matches!(Volume::open(key_file), Err(Error::Unlock(_))));
    let volume = scratch.open();
    assert!(matches!(Volume::open(scratch.options()), Err(Error::InUse(_))));
    volume.close(&NothingDirty).unwrap();
    let nowhere = OpenOptions { sources: vec![scratch.0.clone()], ..scratch.options() };
    assert!(matches!(Volume::open(nowhere), Err(Error::NotAVolume(_))));
}

#[test]
fn the_database_is_rebuilt_from_the_directories_alone() {
    let scratch = Scratch::new("rebuild");
    scratch.format(6, 1);
    let content = noise(20, 900_000);
    let volume = scratch.open();
    write(&volume, "before", &content);
    volume.commit(&NothingDirty).unwrap();
    volume.checkpoint().unwrap();
    write(&volume, "after", &content[5..]);
    volume.unlink(ROOT_INO, b"before").unwrap();
    volume.commit(&NothingDirty).unwrap();
    volume.create(ROOT_INO, b"unsynced", &new_file()).unwrap();
    // The daemon dies: nothing is closed.
    let digest = volume.meta().reader().unwrap().digest().unwrap();
    drop(volume);
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    // And m directories with it.
    std::fs::remove_dir_all(scratch.0.join("d4")).unwrap();
    std::fs::remove_dir_all(scratch.0.join("d1")).unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|w| w.contains("rebuilt")), "{:?}", volume.warnings());
    assert_eq!(volume.meta().reader().unwrap().digest().unwrap(), digest);
    assert_eq!(read(&volume, "after").unwrap(), &content[5..]);
    assert!(matches!(read(&volume, "before"), Err(Error::NotFound)));
    write(&volume, "more", &content[9..]);
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    assert_eq!(read(&volume, "more").unwrap(), &content[9..]);
    assert!(check(&volume, &CheckOptions::default(), &Silent).unwrap().tables.is_empty());
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn an_older_copy_of_the_database_is_brought_up_to_the_log() {
    let scratch = Scratch::new("older");
    scratch.format(6, 1);
    let content = noise(21, 300_000);
    let volume = scratch.open();
    write(&volume, "first", &content);
    volume.close(&NothingDirty).unwrap();
    let copy = scratch.0.join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(scratch.0.join("state/meta.db"), copy.join("meta.db")).unwrap();
    let volume = scratch.open();
    write(&volume, "second", &content[1..]);
    volume.close(&NothingDirty).unwrap();
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    std::fs::rename(&copy, scratch.0.join("state")).unwrap();
    let volume = scratch.open();
    assert_eq!(read(&volume, "second").unwrap(), &content[1..]);
    assert!(volume.warnings().is_empty(), "{:?}", volume.warnings());
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_database_of_another_history_is_set_aside_and_rebuilt() {
    let scratch = Scratch::new("diverged");
    scratch.format(6, 1);
    let volume = scratch.open();
    volume.close(&NothingDirty).unwrap();
    let copy = |from: &str, to: &str| {
        let status =
            std::process::Command::new("cp").arg("-a").arg(scratch.0.join(from)).arg(scratch.0.join(to)).status();
        assert!(status.unwrap().success());
    };
    for name in ["d0", "d1", "d2", "d3", "d4", "d5"] {
        copy(name, &format!("old-{name}"));
    }
    let volume = scratch.open();
    write(&volume, "one", &noise(22, 50_000));
    volume.close(&NothingDirty).unwrap();
    // The directories go back to their copies and take another way; the database stays.
    for name in ["d0", "d1", "d2", "d3", "d4", "d5"] {
        std::fs::remove_dir_all(scratch.0.join(name)).unwrap();
        copy(&format!("old-{name}"), name);
    }
    copy("state", "state-of-one");
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    let volume = scratch.open();
    write(&volume, "two", &noise(23, 50_000));
    volume.close(&NothingDirty).unwrap();
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    std::fs::rename(scratch.0.join("state-of-one"), scratch.0.join("state")).unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|w| w.contains("not on the commit log")), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "two").unwrap(), noise(23, 50_000));
    assert!(read(&volume, "one").is_err());
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_damaged_database_is_set_aside_and_rebuilt() {
    let scratch = Scratch::new("corrupt");
    scratch.format(3, 1);
    let volume = scratch.open();
    write(&volume, "file", &noise(24, 70_000));
    volume.close(&NothingDirty).unwrap();
    let path = scratch.0.join("state/meta.db");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|w| w.contains("aside")), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "file").unwrap(), noise(24, 70_000));
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_database_that_a_power_cut_left_without_tables_is_made_anew() {
    let scratch = Scratch::new("blank");
    scratch.format(3, 1);
    let volume = scratch.open();
    write(&volume, "file", &noise(25, 70_000));
    volume.close(&NothingDirty).unwrap();
    for name in ["state/meta.db-wal", "state/meta.db-shm"] {
        let _ = std::fs::remove_file(scratch.0.join(name));
    }
    std::fs::write(scratch.0.join("state/meta.db"), b"").unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|w| w.contains("aside")), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "file").unwrap(), noise(25, 70_000));
    volume.close(&NothingDirty).unwrap();
}

/// Six directories and a copy of them; `more` generations are committed after the copy, then the daemon dies and the
/// directories are found as they were copied: as a power cut leaves them that keeps the database and loses the log's end.
fn database_ahead_by(name: &str, more: usize) -> Scratch {
    let scratch = Scratch::new(name);
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "acknowledged", &noise(30, 50_000));
    volume.commit(&NothingDirty).unwrap();
    let copy = |from: String, to: String| {
        let status =
            std::process::Command::new("cp").arg("-a").arg(scratch.0.join(from)).arg(scratch.0.join(to)).status();
        assert!(status.unwrap().success());
    };
    (0..6).for_each(|n| copy(format!("d{n}"), format!("old-{n}")));
    for n in 0..more {
        write(&volume, &format!("later{n}"), &noise(31 + n as u64, 50_000));
        volume.commit(&NothingDirty).unwrap();
    }
    drop(volume);
    for n in 0..6 {
        std::fs::remove_dir_all(scratch.0.join(format!("d{n}"))).unwrap();
        std::fs::rename(scratch.0.join(format!("old-{n}")), scratch.0.join(format!("d{n}"))).unwrap();
    }
    scratch
}

#[test]
fn rows_of_a_generation_that_was_not_synced_are_dropped() {
    let scratch = database_ahead_by("ahead", 1);
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|w| w.contains("not on the commit log")), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "acknowledged").unwrap(), noise(30, 50_000));
    assert!(matches!(read(&volume, "later0"), Err(Error::NotFound)));
    write(&volume, "more", &noise(40, 50_000));
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().is_empty(), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "more").unwrap(), noise(40, 50_000));
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn directories_older_than_what_the_database_knows_durable_are_refused() {
    let scratch = database_ahead_by("rolled-back", 2);
    let error = Volume::open(scratch.options()).unwrap_err().to_string();
    assert!(error.contains("generation"), "{error}");
}

fn set_size(volume: &Volume, ino: crate::ids::Ino, size: u64) -> Attr {
    let now = volume.clock().now_ns();
    volume.set_file(ino, &FileChange { size, mtime_ns: now, ctime_ns: now, inline: None, clear_suid: false }).unwrap()
}

#[test]
fn small_writes_go_into_the_record_and_are_folded_behind() {
    let scratch = Scratch::new("patches");
    scratch.format(6, 1);
    let volume = scratch.open();
    let mut content = noise(50, 200_000);
    let attr = write(&volume, "file", &content);
    volume.commit(&NothingDirty).unwrap();
    let stored = volume.status().unwrap().space.stored_bytes;
    // Over the first chunk, twice over one place, past the end of the second, and into a hole far behind.
    for (at, seed, len) in [(1000, 51, 4096), (3000, 52, 4096), (199_000, 53, 3000), (900_000, 54, 100)] {
        let bytes = noise(seed, len);
        content.resize(content.len().max(at + len), 0);
        content[at..at + len].copy_from_slice(&bytes);
        let (chunk, offset) = ((at >> 17) as u64, (at & 0x1_ffff) as u32);
        volume.write_patches(attr.ino, &[(ChunkNo(chunk), offset, &bytes)]).unwrap();
    }
    let attr = set_size(&volume, attr.ino, content.len() as u64);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.status().unwrap().space.stored_bytes, stored, "no block was stored");
    assert_eq!(read(&volume, "file").unwrap(), content);
    assert_eq!(volume.seek_data(&attr, 300_000).unwrap(), Some(6 << 17));
    assert_eq!(volume.seek_hole(&attr, 0).unwrap(), 2 << 17);
    assert!(volume.meta().verify().unwrap().is_empty());
    drop(volume);
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    std::fs::remove_dir_all(scratch.0.join("d0")).unwrap();
    std::fs::remove_dir_all(scratch.0.join("d3")).unwrap();
    let volume = scratch.open();
    assert_eq!(read(&volume, "file").unwrap(), content);
    let before = volume.attr(attr.ino).unwrap();
    volume.fold_due(true).unwrap();
    assert_eq!(volume.meta().with(|txn| Ok(txn.patch_bytes())).unwrap(), 0);
    let after = volume.attr(attr.ino).unwrap();
    assert_eq!((after.version, after.mtime_ns, after.size), (before.version, before.mtime_ns, before.size));
    assert_eq!(read(&volume, "file").unwrap(), content);
    volume.commit(&NothingDirty).unwrap();
    assert!(volume.meta().verify().unwrap().is_empty());
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    assert_eq!(read(&volume, "file").unwrap(), content);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_new_chunk_a_punch_and_a_cut_end_the_patches_under_them() {
    let scratch = Scratch::new("patches-end");
    scratch.format(3, 1);
    let volume = scratch.open();
    let attr = write(&volume, "file", &noise(60, 400_000));
    let patch = |chunk, seed| volume.write_patches(attr.ino, &[(ChunkNo(chunk), 10, &noise(seed, 500))]).unwrap();
    (0..4).for_each(|chunk| patch(chunk, 61 + chunk));
    // Equal content stored again must not show what was laid over it.
    volume.write_chunks(attr.ino, &[(ChunkNo(0), &noise(60, 400_000)[..1 << 17])]).unwrap();
    volume.punch(attr.ino, ChunkNo(1), 1).unwrap();
    set_size(&volume, attr.ino, 2 << 17);
    set_size(&volume, attr.ino, 400_000);
    let mut expected = vec![0; 400_000];
    expected[..1 << 17].copy_from_slice(&noise(60, 400_000)[..1 << 17]);
    assert!(read(&volume, "file").unwrap() == expected);
    patch(2, 70);
    patch(2, 71);
    expected[(2 << 17) + 10..(2 << 17) + 510].copy_from_slice(&noise(71, 500));
    volume.commit(&NothingDirty).unwrap();
    assert!(read(&volume, "file").unwrap() == expected);
    assert!(volume.meta().verify().unwrap().is_empty(), "{:?}", volume.meta().verify());
    volume.unlink(ROOT_INO, b"file").unwrap();
    volume.release_orphan(attr.ino).unwrap();
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta().with(|txn| Ok(txn.patch_bytes())).unwrap(), 0);
    assert!(volume.meta().verify().unwrap().is_empty(), "{:?}", volume.meta().verify());
    volume.close(&NothingDirty).unwrap();
}
