//! Errors of writes that were answered already: told once to each handle that wrote, and then the volume is read-only.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use brine_fs::errno::{Errno, Outcome};
use brine_fs::vfs::{Caller, Vfs};
use brine_proofs::world::{Scratch, World, filesystem};
use brine_store::backing::{Backing, Call, Fault, FaultyBacking, Rule};
use brine_store::ids::ROOT_INO;

const ME: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

fn create(vfs: &Arc<Vfs>, name: &str) -> u64 {
    vfs.create(ME, ROOT_INO, name.as_bytes(), 0o644, libc::O_RDWR).expect("create").handle
}

fn fsync(vfs: &Arc<Vfs>, handle: u64) -> Outcome<()> {
    let (sender, answer) = channel();
    vfs.sync_file(handle, move |outcome| {
        let _ = sender.send(outcome);
    });
    answer.recv().expect("an answer")
}

/// A filesystem over 4+2 directories of which the first `broken` fail their next sync, whenever that comes.
fn with_broken_syncs(broken: usize) -> (Arc<Vfs>, Vec<Arc<FaultyBacking>>, Scratch) {
    let world = World::format(4, 2);
    let disks: Vec<Arc<FaultyBacking>> =
        world.disks.iter().map(|disk| Arc::new(FaultyBacking::new(Arc::new(disk.reopen())))).collect();
    let scratch = Scratch::new();
    let state = scratch.path().join("state");
    world.put_files(&state);
    let volume = world.open(&state, |n, _| Some(disks[n].clone() as Arc<dyn Backing>)).expect("open");
    for disk in &disks[..broken] {
        disk.add(Rule::new(Call::SyncSegment, Fault::Errno(libc::EIO)));
    }
    let (vfs, _) = filesystem(volume, Duration::from_secs(3600)).expect("start threads");
    (vfs, disks, scratch)
}

#[test]
fn a_deferred_write_error_is_returned_once_per_open_handle() {
    let (vfs, _disks, _scratch) = with_broken_syncs(3);
    let (one, other, idle) = (create(&vfs, "one"), create(&vfs, "other"), create(&vfs, "idle"));
    vfs.write(one, 0, b"accepted", false).expect("write");
    vfs.write(other, 0, b"accepted", false).expect("write");
    assert_eq!(fsync(&vfs, one), Err(Errno(libc::EIO)), "the sync failed");
    assert_eq!(vfs.flush(one), Ok(()), "it was told to this handle");
    assert_eq!(vfs.flush(other), Err(Errno(libc::EIO)), "it is owed to every handle that wrote");
    assert_eq!(vfs.flush(other), Ok(()), "once");
    assert_eq!(vfs.flush(idle), Ok(()), "one that wrote nothing is owed nothing");
    let seen = vfs.read_now(one, 0, 100).expect("read");
    assert_eq!(seen.as_slice(), b"accepted", "what was accepted stays readable");
    let _ = vfs.close();
}

#[test]
fn after_a_sync_failed_in_too_many_directories_the_volume_is_read_only() {
    let (vfs, _disks, _scratch) = with_broken_syncs(3);
    let file = create(&vfs, "file");
    vfs.write(file, 0, b"accepted", false).expect("write");
    assert_eq!(fsync(&vfs, file), Err(Errno(libc::EIO)));
    assert!(vfs.volume().is_read_only().is_some(), "it says so");
    assert_eq!(vfs.write(file, 0, b"more", false), Err(Errno(libc::EROFS)));
    assert_eq!(vfs.unlink(ROOT_INO, b"file"), Err(Errno(libc::EROFS)));
    assert_ne!(fsync(&vfs, file), Ok(()), "what is not durable is never said to be");
    let _ = vfs.close();
}

#[test]
fn syncs_that_fail_in_as_many_directories_as_may_be_lost_are_not_noticed_by_programs() {
    let (vfs, _disks, _scratch) = with_broken_syncs(1);
    let file = create(&vfs, "file");
    vfs.write(file, 0, b"accepted", false).expect("write");
    assert_eq!(fsync(&vfs, file), Ok(()));
    vfs.close().expect("close");
}
