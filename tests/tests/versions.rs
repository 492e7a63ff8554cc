//! Past states through a real mount: `.brine`, snapshots, histories.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use brine_tests::TestVolume;

fn small(name: &str) -> TestVolume {
    TestVolume::new(name, 3, (2, 1))
}

#[track_caller]
fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(error) => error.raw_os_error().expect("a system error"),
    }
}

#[test]
fn the_control_directory_is_reachable_by_name_and_not_listed() {
    let mut volume = small("control-dir");
    fs::write(volume.path("file"), b"x").expect("write");
    let names: Vec<OsString> =
        fs::read_dir(volume.mnt()).expect("ls").map(|entry| entry.expect("ls").file_name()).collect();
    assert!(names.iter().all(|name| name == "file" || name == "exec"), "{names:?}");
    let control = fs::metadata(volume.path(".brine")).expect("stat");
    assert!(control.is_dir() && control.ino() > i64::MAX as u64, "inode {}", control.ino());
    let above = fs::metadata(volume.path(".brine/..")).expect("stat");
    assert_eq!(above.ino(), fs::metadata(volume.mnt()).expect("stat").ino());
    // Nothing in it can be changed, nor can it be replaced.
    assert_eq!(errno(fs::write(volume.path(".brine/new"), b"x")), libc::EROFS);
    assert_eq!(errno(fs::create_dir(volume.path(".brine/new"))), libc::EROFS);
    assert_eq!(errno(symlink("x", volume.path(".brine/new"))), libc::EROFS);
    assert_eq!(errno(fs::rename(volume.path("file"), volume.path(".brine/file2"))), libc::EROFS);
    assert_eq!(errno(fs::remove_dir(volume.path(".brine"))), libc::EPERM);
    assert_eq!(errno(fs::rename(volume.path(".brine"), volume.path("mine"))), libc::EPERM);
    assert_eq!(errno(fs::write(volume.path(".brine-mine"), b"x")), libc::EPERM);
    assert_eq!(errno(fs::metadata(volume.path(".brine-mine"))), libc::ENOENT);
    // Below another directory the name is an ordinary one.
    fs::create_dir_all(volume.path("dir/.brine")).expect("mkdir");
    volume.remount();
    assert!(volume.path("dir/.brine").is_dir());
}
