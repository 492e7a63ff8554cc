//! The volume end to end, below FUSE: real directories, real database.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::check::{CheckOptions, CheckProgress, check, heal};
use crate::ids::{ChunkNo, ROOT_INO};

mod ahead;
mod behind;
mod checked;
mod damage;
mod database;
mod direct;
mod directories;
mod history;
mod following;
mod patches;
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

    /// A volume as they are made for users. Panics if the disk is so full that it would give former states up.
    pub(crate) fn format_kept(&self, count: usize) -> Formatted {
        let disk = nix::sys::statvfs::statvfs(&self.0).unwrap();
        let path = self.0.display();
        assert!(disk.blocks_available() >= disk.blocks() / 10, "the disk of {path} is over 90 % full: set TMPDIR");
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
        let sources = ["d0", "d1", "d2", "d3"].map(|name| self.0.join(name)).to_vec();
        OpenOptions::new(sources, Unlock::Passphrase(zeroize::Zeroizing::new(b"open sesame".to_vec())))
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

pub(crate) fn healthy(volume: &Volume) {
    let report = check(volume, &CheckOptions::default(), &Silent).unwrap();
    assert!(report.healthy, "{report:?}");
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

/// What is at `from`, put at `to` in the place of what is there.
fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Copies of what a scratch directory has, named with a prefix.
fn save(scratch: &Scratch, names: &[&str], prefix: &str) {
    names.iter().for_each(|name| copy(&scratch.0.join(name), &scratch.0.join(format!("{prefix}-{name}"))));
}

/// What [`save`] copied, brought back.
fn restore(scratch: &Scratch, names: &[&str], prefix: &str) {
    names.iter().for_each(|name| copy(&scratch.0.join(format!("{prefix}-{name}")), &scratch.0.join(name)));
}

const SIX: [&str; 6] = ["d0", "d1", "d2", "d3", "d4", "d5"];

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
