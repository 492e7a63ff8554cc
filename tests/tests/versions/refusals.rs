//! What cannot be done is refused with a reason, and nothing of it is done.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};

use brine_tests::TestVolume;
use brine_tests::command::shell;
use serde_json::Value;

use super::{at, errno, fingerprint, json, small, snapshot};

#[track_caller]
fn refuse(volume: &TestVolume, args: &[&str], code: i32, says: &[&str]) {
    volume.brine(args).expect_refusal().with_code(code).says(says);
}

fn snapshot_names(volume: &TestVolume) -> Vec<String> {
    let listed = snapshot(volume, &["list"]);
    let rows = listed["snapshots"].as_array().expect("a list").iter();
    rows.map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_directory_with_open_files_is_not_restored_over_and_is_rewound_under_them() {
    let mut volume = small("refuse-open");
    let p = |name: &str| volume.path(name);
    shell(volume.mnt(), "mkdir -p dir/sub; echo first > dir/file; echo gone > dir/sub/gone; echo same > dir/same")
        .expect_success();
    snapshot(&volume, &["create", "first"]);
    shell(volume.mnt(), "rm dir/sub/gone; echo second, and longer > dir/file; echo new > dir/new").expect_success();
    let now = fingerprint(volume.mnt());
    let open = |name: &str| fs::OpenOptions::new().read(true).write(true).open(p(name)).expect("open");
    let (mut changed, mut new, mut same) = (open("dir/file"), open("dir/new"), open("dir/same"));

    let dir = at(&volume, "dir");
    refuse(&volume, &["restore", &format!("{dir}@first")], 3, &["dir exists", "brine rewind", "--to"]);
    let other = at(&volume, "dir/same");
    refuse(&volume, &["restore", &format!("{dir}@first"), "--to", &other], 3, &["exists"]);
    assert_eq!(fingerprint(volume.mnt()), now, "nothing half done");
    assert_eq!(snapshot_names(&volume), ["first"]);

    // What is open goes on: what changed shows the state brought back, what is removed lives on, what is the same stays.
    let undo = json(&volume, &["rewind", &dir, "--to", "first"])["undo"].as_str().expect("a snapshot").to_owned();
    assert_eq!(fs::read_to_string(p("dir/sub/gone")).expect("read"), "gone\n");
    assert_eq!(errno(fs::metadata(p("dir/new"))), libc::ENOENT);
    let text = |file: &mut fs::File| {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text)).expect("read");
        text
    };
    assert_eq!(text(&mut changed), "first\n");
    assert_eq!(text(&mut new), "new\n");
    assert_eq!(text(&mut same), "same\n");
    for file in [&mut changed, &mut new, &mut same] {
        file.write_all(b"more\n").and_then(|()| file.sync_all()).expect("write");
    }
    assert_eq!(fs::read_to_string(p("dir/file")).expect("read"), "first\nmore\n");
    assert_eq!(fs::read_to_string(p("dir/same")).expect("read"), "same\nmore\n");
    assert_eq!(text(&mut new), "new\nmore\n");
    drop((changed, new, same));
    json(&volume, &["rewind", &at(&volume, ""), "--to", &undo]);
    assert_eq!(fingerprint(volume.mnt()), now);
    volume.remount();
    assert_eq!(fingerprint(volume.mnt()), now);
    volume.expect_clean();
}

#[test]
fn a_rewind_across_a_deleted_snapshot_brings_the_tree_back_and_not_the_snapshot() {
    let volume = small("refuse-deleted");
    let p = |name: &str| volume.path(name);
    let mnt = at(&volume, "");
    fs::write(p("file"), "one").expect("write");
    snapshot(&volume, &["create", "one"]);
    let first = fingerprint(volume.mnt());
    fs::write(p("file"), "two").expect("write");
    snapshot(&volume, &["create", "two"]);
    fs::write(p("file"), "three").expect("write");
    snapshot(&volume, &["create", "three"]);
    let now = fingerprint(volume.mnt());
    snapshot(&volume, &["delete", "two"]);

    for args in [&["rewind", &mnt, "--to", "two"][..], &["restore", &format!("{}@two", at(&volume, "file"))]] {
        refuse(&volume, args, 5, &["\"two\""]);
        assert_eq!(fingerprint(volume.mnt()), now, "nothing half done");
        assert_eq!(snapshot_names(&volume), ["one", "three"]);
    }
    let undo = json(&volume, &["rewind", &mnt, "--to", "one"])["undo"].as_str().expect("a snapshot").to_owned();
    assert_eq!(fingerprint(volume.mnt()), first);
    let mut names = vec!["one".to_owned(), "three".to_owned(), undo.clone()];
    names.sort();
    assert_eq!(snapshot_names(&volume), names, "one deleted since is not there, one made since is");
    assert_eq!(fs::read(p(".brine/snapshots/three/file")).expect("read"), b"three");
    // What went with it is back for nobody, what lies before and behind it is.
    json(&volume, &["rewind", &mnt, "--to", &undo]);
    assert_eq!(fingerprint(volume.mnt()), now);
    volume.expect_clean();
}

#[test]
fn names_that_clash_and_rules_that_contradict_each_other_change_nothing() {
    let volume = small("refuse-names");
    let mnt = at(&volume, "");
    fs::write(volume.path("file"), "one").expect("write");
    snapshot(&volume, &["create", "one"]);
    fs::write(volume.path("file"), "two").expect("write");
    snapshot(&volume, &["create", "two"]);
    let state = |name: &str| fs::read(volume.path(&format!(".brine/snapshots/{name}/file"))).expect("read");
    refuse(&volume, &["snapshot", "rename", "one", "two", &mnt], 3, &["\"two\"", "already"]);
    refuse(&volume, &["snapshot", "create", "one", &mnt], 3, &["\"one\"", "already"]);
    for name in ["a/b", "/a", "a/", "", ".", ".."] {
        refuse(&volume, &["snapshot", "create", name, &mnt], 2, &[]);
        refuse(&volume, &["snapshot", "rename", "one", name, &mnt], 2, &[]);
    }
    assert_eq!(
        (snapshot_names(&volume), state("one"), state("two")),
        (vec!["one".to_owned(), "two".to_owned()], b"one".to_vec(), b"two".to_vec())
    );

    let rules = || json(&volume, &["retention", "show", &mnt]);
    let before = rules();
    for (wrong, says) in [
        (&["--all", "2h", "--minutely", "1h"][..], "--minutely"),
        (&["--all", "5m", "--hourly", "30m"], "--hourly"),
        (&["--budget", "0"], "budget"),
        (&["--budget", "101"], "budget"),
        (&["--all", "-1h"], "-1h"),
        (&["--all", "soon"], "soon"),
    ] {
        let args = [&["retention", "set"], wrong, &[&*mnt]].concat();
        let refused = volume.brine(&args).expect_refusal();
        assert!(refused.text().contains(says), "{wrong:?}: {refused}");
        assert_eq!(rules(), before, "{wrong:?} changed something");
    }
    assert_ne!(before["all_s"], Value::Null);
}
