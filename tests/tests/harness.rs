//! The harness itself: what is meant to notice something does.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use brine_tests::damage::{files_below, flip_bits_in, occupied};
use brine_tests::environment::{require_fuse, temp_dir};
use brine_tests::fault_dir::{Fault, FaultDir};
use brine_tests::model::{Model, ModelFile};
use brine_tests::{Manifest, Random, content};

/// A temporary directory that goes away.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        Self(temp_dir(name))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_model_agrees_with_this_machines_own_filesystem() {
    let temp = Temp::new("model-native");
    let mut model = Model::new(&temp.0, 4, 42);
    model.run(1500);
    model.check_all();
}

#[test]
#[should_panic(expected = "1 bytes differ")]
fn the_model_notices_one_wrong_byte() {
    let temp = Temp::new("model-canary");
    let mut file = ModelFile::create(temp.0.join("file"));
    file.content = content(1, 200_000);
    let mut wrong = file.content.clone();
    wrong[150_000] ^= 1;
    fs::write(temp.0.join("file"), wrong).expect("write");
    file.check_all();
}

#[test]
fn a_manifest_notices_contents_modes_times_and_names() {
    let temp = Temp::new("manifest");
    brine_tests::manifest::write_sample_tree(&temp.0.join("tree"), 1, 1);
    let before = Manifest::of(&temp.0.join("tree"));
    assert!(before.len() > 20 && before.unreadable().is_empty());
    before.expect_same(&Manifest::of(&temp.0.join("tree")), "nothing changed");
    fs::write(temp.0.join("tree/new"), b"").expect("write");
    assert_eq!(before.differences(&Manifest::of(&temp.0.join("tree"))), ["new is new"]);
    fs::remove_file(temp.0.join("tree/new")).expect("unlink");
    let path = files_below(&temp.0.join("tree")).pop().expect("there are files");
    let file = OpenOptions::new().append(true).open(path).expect("open");
    file.set_times(fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH)).expect("utimens");
    assert_eq!(before.differences(&Manifest::of(&temp.0.join("tree"))).len(), 1);
}

#[test]
fn flipping_bits_changes_data_and_leaves_holes() {
    let temp = Temp::new("flip");
    let path = temp.0.join("file");
    let file = File::create(&path).expect("create");
    file.write_all_at(&content(1, 65_536), 1 << 20).expect("write");
    file.set_len(10 << 20).expect("truncate");
    let used = occupied(&temp.0);
    assert_eq!(flip_bits_in(&path, 0, 4096, &mut Random::new(1)), 16);
    assert_eq!(occupied(&temp.0), used);
    let bytes = fs::read(&path).expect("read");
    let changed = bytes[1 << 20..][..65_536].iter().zip(content(1, 65_536)).filter(|(a, b)| *a != b).count();
    assert_eq!(changed, 16);
}

#[test]
fn a_fault_directory_passes_through_fails_and_hangs() {
    require_fuse();
    let temp = Temp::new("fault");
    let dir = FaultDir::new(&temp.0, "dir");
    let path = dir.path().join("file");
    fs::create_dir_all(dir.path().join("a/b")).expect("mkdir");
    fs::write(&path, content(1, 300_000)).expect("write");
    fs::rename(&path, dir.path().join("a/b/moved")).expect("rename");
    let path = dir.path().join("a/b/moved");
    assert!(fs::read(&path).expect("read") == content(1, 300_000));
    assert!(fs::read(dir.below().join("a/b/moved")).expect("read below") == content(1, 300_000));

    dir.set(Fault::ReadErrors);
    assert_eq!(fs::read(&path).expect_err("a read").raw_os_error(), Some(libc::EIO));
    dir.set(Fault::WriteErrors);
    assert_eq!(fs::write(&path, b"x").expect_err("a write").raw_os_error(), Some(libc::EIO));
    dir.set(Fault::SyncErrors);
    assert_eq!(File::open(&path).and_then(|f| f.sync_all()).expect_err("fsync").raw_os_error(), Some(libc::EIO));
    dir.set(Fault::NoSpace);
    assert_eq!(fs::write(&path, b"x").expect_err("a write").raw_os_error(), Some(libc::ENOSPC));
    dir.set(Fault::None);
    assert!(fs::read(&path).expect("read") == content(1, 300_000), "a refused write changed something");

    dir.set(Fault::Hang);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(&path).map(|_| started.elapsed()));
        std::thread::sleep(Duration::from_millis(300));
        dir.set(Fault::None);
        let took = reader.join().expect("join").expect("read");
        assert!(took >= Duration::from_millis(290), "a hanging directory answered after {took:?}");
    });
}

#[test]
fn a_power_cut_takes_what_was_not_synced_and_only_that() {
    require_fuse();
    let temp = Temp::new("power");
    let dir = FaultDir::new(&temp.0, "dir");
    let mut random = Random::new(3);
    let (mut lost, mut torn) = (0, 0);
    for round in 0..40u64 {
        dir.record();
        let path = dir.path().join(format!("file-{round}"));
        let mut file = File::create(&path).expect("create");
        file.write_all(&content(round, 20_000)).expect("write");
        file.sync_all().expect("fsync");
        File::open(dir.path()).and_then(|dir| dir.sync_all()).expect("fsync of the directory");
        file.write_all(&content(round + 1000, 20_000)).expect("write");
        let unnamed = dir.path().join("no directory sync");
        File::create(&unnamed).and_then(|file| file.sync_all()).expect("create");
        fs::write(dir.path().join("temp"), b"new")
            .and_then(|()| fs::rename(dir.path().join("temp"), &path))
            .expect("rename");
        drop(file);
        dir.cut_power(&mut random);
        assert!(!unnamed.exists(), "a name that was not synced survived");
        let bytes = fs::read(&path).expect("what was synced is there");
        assert!(bytes.len() >= 20_000 && bytes[..20_000] == content(round, 20_000), "what was synced changed");
        lost += u64::from(bytes.len() == 20_000);
        torn += u64::from(bytes.len() > 20_000 && bytes[20_000..] != content(round + 1000, 20_000));
    }
    assert!(lost > 5 && torn > 2, "of 40 unsynced writes {lost} were lost and {torn} torn");
}

#[test]
fn a_program_that_hangs_is_ended_and_told() {
    let finished =
        brine_tests::command::run_for(std::process::Command::new("sleep").arg("60"), Duration::from_millis(200));
    assert!(!finished.success() && finished.code().is_none());
    assert!(finished.to_string().contains("was killed after"), "{finished}");
}

#[test]
#[should_panic(expected = "apt-get install bindfs")]
fn a_missing_program_is_named_with_its_package() {
    brine_tests::program("sh");
    panic!("{}", brine_tests::command::missing("bindfs"));
}
