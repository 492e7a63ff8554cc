//! `.brine`, snapshots, and mounts of a past state.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use brine_tests::command::shell;
use brine_tests::sys::{get_xattr, list_xattrs, set_xattr};
use brine_tests::volume::{Builder, wait_until};
use serde_json::Value;

use super::{errno, fingerprint, small, snapshot};

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

#[test]
fn a_snapshot_is_the_tree_as_it_was() {
    let mut volume = small("snapshot-tree");
    let p = |name: &str| volume.path(name);
    fs::create_dir_all(p("tree/sub/deep")).expect("mkdir");
    fs::write(p("tree/small"), b"inline").expect("write");
    fs::write(p("tree/large"), vec![7; 3_000_000]).expect("write");
    fs::write(p("tree/sub/gone"), b"to be deleted").expect("write");
    fs::hard_link(p("tree/large"), p("tree/sub/same")).expect("link");
    symlink("../small", p("tree/sub/link")).expect("symlink");
    shell(
        volume.mnt(),
        "truncate -s 50M tree/sparse && printf x | dd of=tree/sparse bs=1 seek=40M conv=notrunc 2>/dev/null",
    )
    .expect_success();
    fs::set_permissions(p("tree/small"), fs::Permissions::from_mode(0o640)).expect("chmod");
    set_xattr(&p("tree/small"), "user.note", b"first", 0).expect("setxattr");
    set_xattr(&p("tree/sub"), "user.dir", b"d", 0).expect("setxattr");
    shell(volume.mnt(), "touch -d 2001-02-03T04:05:06.789Z tree/small tree/sub").expect_success();
    let before = fingerprint(&p("tree"));
    snapshot(&volume, &["create", "first"]);
    // Every kind of change.
    fs::write(p("tree/small"), b"other").expect("write");
    set_xattr(&p("tree/small"), "user.note", b"second", 0).expect("setxattr");
    set_xattr(&p("tree/small"), "user.more", b"x", 0).expect("setxattr");
    fs::remove_file(p("tree/sub/gone")).expect("rm");
    fs::rename(p("tree/sub/deep"), p("tree/moved")).expect("mv");
    shell(volume.mnt(), "printf changed | dd of=tree/large bs=1 seek=1M conv=notrunc 2>/dev/null; truncate -s 1000000 tree/large; rm tree/sub/same; rm tree/sparse; chmod 711 tree/sub")
        .expect_success();
    let after = fingerprint(&p("tree"));
    assert_ne!(before, after);
    let past = p(".brine/snapshots/first/tree");
    assert_eq!(fingerprint(&past), before);
    let number = fs::metadata(past.join("small")).expect("stat").ino();
    assert!(number > i64::MAX as u64);
    assert_eq!(
        fs::metadata(past.join("large")).expect("stat").ino(),
        fs::metadata(past.join("sub/same")).expect("stat").ino()
    );
    assert_eq!(get_xattr(&past.join("small"), "user.note").expect("getxattr"), b"first");
    assert_eq!(list_xattrs(&past.join("small")).expect("listxattr").len(), 1);
    // Read-only, to everybody and in every way.
    assert_eq!(errno(fs::write(past.join("small"), b"x")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(past.join("small"))), libc::EROFS);
    assert_eq!(errno(fs::rename(past.join("small"), p("stolen"))), libc::EROFS);
    assert_eq!(errno(fs::hard_link(past.join("small"), p("stolen"))), libc::EXDEV);
    assert_eq!(errno(fs::set_permissions(past.join("small"), fs::Permissions::from_mode(0o777))), libc::EROFS);
    // The same after a crash, after a remount, and after all of the live tree is gone; with the same numbers.
    volume.remount();
    fs::remove_dir_all(volume.path("tree")).expect("rm -r");
    volume.sync();
    volume.kill_daemon();
    volume.detach();
    volume.mount();
    let past = volume.path(".brine/snapshots/first/tree");
    assert_eq!(fingerprint(&past), before);
    assert_eq!(fs::metadata(past.join("small")).expect("stat").ino(), number);
    assert!(!volume.path("tree").exists());
    volume.expect_clean();
}

#[test]
fn a_volume_is_mounted_as_it_was() {
    let mut volume = Builder::new("mount-at").directories(3).geometry(2, 1).supervised().mount();
    let p = |name: &str| volume.path(name);
    fs::create_dir_all(p("tree/sub")).expect("mkdir");
    fs::write(p("tree/file"), vec![7; 300_000]).expect("write");
    fs::write(p("tree/sub/gone"), b"gone").expect("write");
    fs::write(p("top"), b"first").expect("write");
    set_xattr(&p("top"), "user.note", b"first", 0).expect("setxattr");
    let before = fingerprint(volume.mnt());
    let made = snapshot(&volume, &["create", "first, of all"]);
    fs::write(p("top"), b"second").expect("write");
    fs::remove_dir_all(p("tree")).expect("rm -r");
    fs::create_dir(p("new")).expect("mkdir");
    let after = fingerprint(volume.mnt());
    volume.umount();

    // What cannot be shown is refused before anything is mounted.
    for (at, code, word) in [
        ("at=nothing", 5, "no snapshot"),
        ("at=1999-01-01", 5, "no state is kept"),
        ("at=2999-01-01", 5, "still to come"),
        ("at=7", 2, "snapshot or a time"),
    ] {
        let finished = volume.try_mount(&[at]);
        assert_eq!(finished.code(), Some(code), "{at}: {finished}");
        assert!(finished.stderr.contains(word), "{at}: {finished}");
        assert!(!brine_tests::environment::is_mounted(volume.mnt()));
    }

    let generation = made["generation"].as_u64().expect("a number");
    let mut at = "at=first\\, of all".to_owned();
    for _ in 0..2 {
        volume.mount_with(&["rw", &at]);
        assert_eq!(fingerprint(volume.mnt()), before, "{at}");
        let shown = volume.status()["at"].clone();
        assert_eq!(shown["generation"], generation, "{at}");
        let root = fs::metadata(volume.mnt()).expect("stat");
        assert_eq!(root.ino(), 1);
        assert_eq!(fs::metadata(volume.path("tree/..")).expect("stat").ino(), 1);
        // The root lists itself as what is above it.
        let dots = shell(volume.mnt(), "ls -aif | awk '$2 == \".\" || $2 == \"..\" { print $1 }' | head -1");
        assert_eq!(dots.expect_success().stdout.trim(), "1");
        for path in ["top", "tree/sub/gone"] {
            assert_eq!(errno(fs::write(volume.path(path), b"x")), libc::EROFS, "{path}");
            assert_eq!(errno(fs::remove_file(volume.path(path))), libc::EROFS, "{path}");
        }
        assert_eq!(errno(fs::create_dir(volume.path("more"))), libc::EROFS);
        assert_eq!(errno(fs::metadata(volume.path("new"))), libc::ENOENT);
        // The rest of the volume can be asked for beside it.
        assert_eq!(fs::read(volume.path(".brine/snapshots/first, of all/top")).expect("read"), b"first");
        let log = volume.brine(&["log", &volume.path("top").display().to_string(), "--json"]).expect_success().stdout;
        let log: Value = serde_json::from_str(&log).expect("JSON");
        assert!(log["states"].as_array().expect("a list").len() >= 2, "{log}");
        let mnt = volume.mnt().display().to_string();
        assert_eq!(volume.brine(&["snapshot", "create", "more", &mnt]).code(), Some(11));
        volume.umount();
        // The same by its time.
        let time_ns = shown["time_ns"].as_i64().expect("a time");
        at = format!("at=@{}.{:09}", time_ns / 1_000_000_000, time_ns % 1_000_000_000);
    }

    // The state is the same one when the daemon died and was started again.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    volume.mount_with(&["at=1s"]);
    assert_eq!(fingerprint(volume.mnt()), after);
    let shown = volume.status()["at"].clone();
    let daemon = volume.daemon().expect("it runs").clone();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    daemon.kill();
    let back = || fs::read(volume.path("top")).is_ok_and(|bytes| bytes == b"second");
    assert!(wait_until(std::time::Duration::from_secs(30), back), "the mount came back");
    volume.adopt();
    assert_eq!(volume.status()["at"], shown);
    volume.umount();
    // All of it changed nothing.
    volume.mount();
    assert_eq!(fingerprint(volume.mnt()), after);
    fs::write(volume.path("top"), b"third").expect("write");
    volume.expect_clean();
}

#[test]
fn snapshots_are_listed_renamed_and_deleted() {
    let mut volume = small("snapshot-names");
    let p = |name: &str| volume.path(name);
    let mnt = volume.mnt().display().to_string();
    fs::write(p("file"), b"one").expect("write");
    let made = snapshot(&volume, &["create", "one"]);
    fs::write(p("file"), b"two").expect("write");
    snapshot(&volume, &["create", "two"]);
    fs::write(p("file"), b"three").expect("write");
    let names = |value: &Value| -> Vec<String> {
        let rows = value["snapshots"].as_array().expect("a list");
        rows.iter().map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&snapshot(&volume, &["list"])), ["one", "two"]);
    let listed: Vec<OsString> =
        fs::read_dir(p(".brine/snapshots")).expect("ls").map(|entry| entry.expect("ls").file_name()).collect();
    assert_eq!(listed, ["one", "two"]);
    assert_eq!(fs::read(p(".brine/snapshots/one/file")).expect("read"), b"one");
    assert_eq!(fs::read(p(".brine/snapshots/two/file")).expect("read"), b"two");
    // A time is a state as well: the last one that was closed by then.
    let time = made["time_ns"].as_i64().expect("a time") + 1_000_000;
    let at = format!(".brine/at/@{}.{:09}/file", time / 1_000_000_000, time % 1_000_000_000);
    assert!([&b"one"[..], b""].contains(&fs::read(p(&at)).unwrap_or_default().as_slice()));
    assert_eq!(errno(fs::metadata(p(".brine/at/2999-01-01"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(p(".brine/at/1999-01-01"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(p(".brine/at/yesterday"))), libc::ENOENT);
    snapshot(&volume, &["rename", "one", "uno"]);
    assert_eq!(names(&snapshot(&volume, &["list"])), ["two", "uno"]);
    assert_eq!(errno(fs::metadata(p(".brine/snapshots/one"))), libc::ENOENT);
    assert_eq!(fs::read(p(".brine/snapshots/uno/file")).expect("read"), b"one");
    snapshot(&volume, &["delete", "two"]);
    assert_eq!(errno(fs::metadata(p(".brine/snapshots/two"))), libc::ENOENT);
    let refuse = |args: &[&str], code: i32, says: &[&str]| {
        let args = [&["snapshot"], args, &[&mnt]].concat();
        volume.brine(&args).expect_refusal().with_code(code).says(says);
    };
    refuse(&["delete", "two"], 5, &["\"two\"", "brine snapshot list"]);
    refuse(&["rename", "two", "due"], 5, &["\"two\""]);
    refuse(&["create", "uno"], 3, &["\"uno\"", "already"]);
    for name in ["a/b", "12", "10m", "2026-01-31", "..", "now"] {
        refuse(&["create", name], 2, &[name]);
        refuse(&["rename", "uno", name], 2, &[name]);
    }
    refuse(&["create"], 2, &["NAME"]);
    refuse(&["frobnicate", "uno"], 2, &["create"]);
    assert_eq!(names(&snapshot(&volume, &["list"])), ["uno"], "nothing half done");
    volume.remount();
    assert_eq!(fs::read(volume.path(".brine/snapshots/uno/file")).expect("read"), b"one");
    assert_eq!(fs::read(volume.path("file")).expect("read"), b"three");
}

#[test]
fn a_reader_of_a_snapshot_sees_one_frozen_tree_while_writers_run() {
    let volume = small("snapshot-frozen");
    let mnt = volume.mnt().display().to_string();
    // Nothing but the snapshot keeps what was.
    volume.brine(&["retention", "set", "--all", "0", "--minutely", "0", "--hourly", "0", &mnt]).expect_success();
    shell(volume.mnt(), "mkdir d && for i in $(seq 200); do echo $i > d/f$i; done").expect_success();
    // Files that have blocks of their own, which become dead.
    let large = |round: u64, n: u64| brine_tests::content(1000 * round + n, 20_000);
    for n in 0..20 {
        fs::write(volume.path(&format!("d/large{n}")), large(0, n)).expect("write");
    }
    snapshot(&volume, &["create", "frozen"]);
    let before = fingerprint(&volume.path(".brine/snapshots/frozen"));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let script = "for round in 1 2 3 4 5; do \
                for i in $(seq 200); do echo $round.$i > d/f$i; done; sync d; \
                for i in $(seq 1 3 200); do mv d/f$i d/g$i; done; rm -f d/f1*; mkdir -p e/$round; \
                for i in $(seq 1 3 200); do mv -f d/g$i d/f$i; done; done";
            shell(volume.mnt(), script).expect_success();
        });
        let large_writer = scope.spawn(|| {
            for round in 1..=6 {
                for n in 0..20 {
                    fs::write(volume.path(&format!("d/large{n}")), large(round, n)).expect("write");
                }
                volume.sync();
            }
        });
        let (volume, mnt) = (&volume, &mnt);
        let collector = scope.spawn(move || {
            let mut freed = 0;
            while !large_writer.is_finished() || freed == 0 {
                let report = volume.brine(&["gc", "--json", mnt]).expect_success().stdout;
                let report: Value = serde_json::from_str(&report).expect("JSON");
                assert_eq!(report["problems"], Value::Array(Vec::new()), "{report}");
                freed += report["blocks_freed"].as_u64().expect("a number");
            }
        });
        let mut walks = 0;
        while !writer.is_finished() || !collector.is_finished() || walks < 2 {
            assert_eq!(fingerprint(&volume.path(".brine/snapshots/frozen")), before);
            walks += 1;
        }
    });
    volume.expect_clean();
}
