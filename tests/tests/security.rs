//! Findings of others' audits that must not be repeated, as far as they show from outside.

use std::fs;

use brine_tests::damage::{any_file_contains, segment_files};
use brine_tests::scenario::secrets;
use brine_tests::{Builder, content};

#[test]
fn no_name_and_no_content_lies_readable_anywhere() {
    println!("{}", secrets::nothing_readable());
}

#[test]
fn no_key_is_seen_on_the_process() {
    println!("{}", secrets::no_key_on_the_process());
}

#[test]
fn symlinks_in_a_backing_directory_lead_nowhere() {
    let mut volume = Builder::new("symlinks").mount();
    let bytes = content(1, 2 << 20);
    fs::write(volume.path("file"), &bytes).expect("write");
    volume.umount();
    // Someone who can write to one backing directory points its files at a file of root's.
    let victim = volume.root().join("victim");
    fs::write(&victim, b"root's own file").expect("write");
    for file in segment_files(volume.dir(0)) {
        fs::remove_file(&file).expect("unlink");
        std::os::unix::fs::symlink(&victim, &file).expect("symlink");
    }
    let aside = volume.root().join("aside");
    fs::create_dir(&aside).expect("mkdir");
    let entries: Vec<_> =
        fs::read_dir(volume.dir(1)).expect("readdir").flatten().filter(|e| e.path().is_dir()).collect();
    for entry in entries {
        fs::rename(entry.path(), aside.join(entry.file_name())).expect("rename");
        std::os::unix::fs::symlink(aside.join(entry.file_name()), entry.path()).expect("symlink");
    }
    let before = brine_tests::Manifest::of(&aside);
    volume.mount();
    assert!(fs::read(volume.path("file")).expect("read") == bytes, "a file is wrong");
    fs::write(volume.path("new"), content(2, 3 << 20)).expect("write");
    volume.sync();
    let mnt = volume.mnt().display().to_string();
    let _ = volume.brine(&["heal", &mnt]);
    volume.umount();
    assert_eq!(fs::read(&victim).expect("read"), b"root's own file", "a symlink was written through");
    before.expect_same(&brine_tests::Manifest::of(&aside), "a symlinked directory was written through");
}

#[test]
fn nothing_readable_is_left_of_what_was_cached() {
    let mut volume = Builder::new("cache").directories(3).geometry(2, 1).option("cache=8M").mount();
    let bytes = content(3, 4 << 20);
    fs::write(volume.path("file"), &bytes).expect("write");
    volume.remount();
    assert!(fs::read(volume.path("file")).expect("read") == bytes);
    for dir in volume.dirs().iter().map(|dir| dir.as_path()).chain([volume.state_dir()]) {
        let found = any_file_contains(dir, &bytes[70_000..70_032]);
        assert!(found.is_none(), "{found:?} holds plaintext while mounted");
    }
}
