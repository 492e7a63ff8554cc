//! Tests of the metadata database as a whole.

use super::changes::{Past, PastKey, RowChange};
use super::rows::*;
use super::*;
use crate::clock::ManualClock;
use crate::ids::*;

pub(super) const KEY: [u8; 32] = [7; 32];

pub(super) fn test_block_id(key: &BlockKey) -> BlockId {
    let mut id = [0; 16];
    id.copy_from_slice(&key.0[..16]);
    BlockId(id)
}

pub(super) fn setup() -> Setup {
    Setup {
        volume: VolumeId([3; 16]),
        name_key: [5; 32],
        clock: Arc::new(ManualClock::default()),
        block_id: test_block_id,
    }
}

pub(super) const ROOT: NewNode<'static> =
    NewNode { kind: FileKind::Directory, perm: 0o755, uid: 0, gid: 0, rdev: 0, target: None };

/// A directory that goes away.
pub(super) struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("brine-meta-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn fresh(name: &str) -> (Scratch, Meta) {
    let dir = Scratch::new(name);
    let meta = Meta::create(&dir.0, &KEY, &setup(), &ROOT, 17).unwrap();
    (dir, meta)
}

/// A key, another for each number.
pub(super) fn key(number: u64) -> BlockKey {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&(number + 1).to_le_bytes());
    BlockKey(key)
}

/// Its block, which nothing refers to.
pub(super) fn block(number: u64) -> BlockRow {
    BlockRow {
        id: test_block_id(&key(number)),
        digest: ContentDigest([number as u8; 32]),
        domain: u64::MAX,
        epoch: 1,
        index: 0,
        segment: SegmentId(1),
        offset: 4096 * number,
        record_len: 4096,
        stripe_blocks: 1,
        message_offset: 0,
        sealed_len: 4120,
        plain_len: 4096,
        refs: 0,
        state: BlockState::Live,
        state_since: Generation(0),
        verified: false,
        codec: 0,
        since: Generation(0),
    }
}

mod audit;
mod behind;
mod codec;
mod exec_border;
mod failure;
mod model;
mod patch;
mod posix;
mod quota;
mod random;
mod speed;

pub(super) fn file(perm: u16) -> NewNode<'static> {
    NewNode { kind: FileKind::File, perm, uid: 1, gid: 2, rdev: 0, target: None }
}

#[test]
fn created_names_are_found_again_after_reopening() {
    let (dir, meta) = fresh("reopen");
    let attr = meta.with(|txn| txn.create(ROOT_INO, b"a", &file(0o644))).unwrap();
    assert_eq!(meta.with(|txn| txn.lookup(ROOT_INO, b"a")).unwrap(), attr);
    let closed = meta.commit_generation().unwrap();
    assert!(closed.changed);
    assert_eq!(closed.generation, Generation(1));
    assert!(!meta.commit_generation().unwrap().changed);
    meta.sync().unwrap();
    meta.close().unwrap();
    drop(meta);
    let meta = Meta::open(&dir.0, &KEY, &setup()).unwrap();
    assert_eq!(meta.with(|txn| txn.lookup(ROOT_INO, b"a")).unwrap(), attr);
    assert_eq!(meta.committed(), Generation(1));
}
