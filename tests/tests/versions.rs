//! Past states through a real mount: `.brine`, snapshots, histories.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use brine_tests::TestVolume;
use brine_tests::command::shell;
use brine_tests::run;
use brine_tests::sys::{get_xattr, list_xattrs, set_xattr};
use brine_tests::volume::{Builder, brine_command, wait_until};
use serde_json::Value;

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

/// `brine snapshot WORDS... MOUNTPOINT --json`.
fn snapshot(volume: &TestVolume, words: &[&str]) -> Value {
    let mnt = volume.mnt().display().to_string();
    let args = [&["snapshot"], words, &[&mnt, "--json"]].concat();
    serde_json::from_str(&volume.brine(&args).expect_success().stdout).expect("JSON")
}

/// Everything `find` and `stat` tell of a tree but inode numbers and access times, and every byte in it.
fn fingerprint(tree: &Path) -> String {
    let script = "find . -printf '%P %y %m %U %G %s %n %T@ %l\\n' | sort; \
        find . -type f -print0 | sort -z | xargs -0 sha256sum; \
        find . ! -type l -print0 | sort -z | xargs -0 getfattr -d -m -";
    shell(tree, script).expect_success().stdout
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

/// A command of `brine` on a path of the mount, answered as JSON.
fn json(volume: &TestVolume, args: &[&str]) -> Value {
    let args = [args, &["--json"]].concat();
    serde_json::from_str(&volume.brine(&args).expect_success().stdout).expect("JSON")
}

fn at(volume: &TestVolume, relative: &str) -> String {
    volume.path(relative).display().to_string()
}

/// What `brine log` says changed, the oldest state first.
fn whats(log: &Value) -> Vec<String> {
    let states = log["states"].as_array().expect("states");
    let what = |state: &Value| {
        let words =
            state["what"].as_array().expect("what").iter().map(|word| word.as_str().expect("a word").to_owned());
        words.collect::<Vec<_>>().join("+")
    };
    states.iter().rev().map(what).collect()
}

#[test]
fn the_history_of_a_file_is_listed_shown_and_compared() {
    let volume = small("history-file");
    let p = |name: &str| volume.path(name);
    let file = at(&volume, "file");
    fs::write(p("file"), "one\n").expect("write");
    volume.sync();
    fs::write(p("file"), "one\ntwo\n").expect("write");
    volume.sync();
    fs::set_permissions(p("file"), fs::Permissions::from_mode(0o600)).expect("chmod");
    volume.sync();
    // As editors save: a new file takes the name.
    fs::write(p("new"), vec![b'x'; 300_000]).expect("write");
    fs::rename(p("new"), p("file")).expect("mv");
    volume.sync();
    fs::remove_file(p("file")).expect("rm");
    let log = json(&volume, &["log", &file]);
    assert_eq!(whats(&log), ["created", "content", "mode", "replaced", "deleted"]);
    let states = log["states"].as_array().expect("states");
    let version = |index: usize| {
        let state = &states[states.len() - 1 - index];
        format!("{file}@{}:{}", state["ino"], state["version"])
    };
    let cat = |word: &str| volume.brine(&["cat", word]).expect_success().stdout;
    assert_eq!(cat(&version(0)), "one\n");
    assert_eq!(cat(&version(1)), "one\ntwo\n");
    assert_eq!(cat(&version(3)), "x".repeat(300_000));
    let time = states[states.len() - 2]["time"].as_str().expect("a time");
    assert_eq!(cat(&format!("{file}@{time}")).len(), 8, "the state of that commit");
    let later = states[1]["time_ns"].as_i64().expect("a time") / 1_000_000 + 1;
    let later = format!("{file}@@{}.{:03}", later / 1000, later % 1000);
    assert_eq!(cat(&later).len(), 300_000);
    let text = volume.brine(&["log", &file]).expect_success().stdout;
    assert!(text.contains("replaced") && text.contains("VERSION"), "{text}");
    // Of a file that is there, a version needs no inode.
    fs::write(p("other"), "a\nb\n").expect("write");
    volume.sync();
    let other = at(&volume, "other");
    let first = json(&volume, &["log", &other])["states"][0]["version"].clone();
    fs::write(p("other"), "a\nc\n").expect("write");
    let diff = volume.brine(&["diff", &format!("{other}@{first}")]).expect_success().stdout;
    assert!(diff.contains("-b\n+c\n"), "{diff}");
    assert_eq!(json(&volume, &["diff", &format!("{other}@{first}")])["what"], serde_json::json!(["content"]));
    let refuse = |args: &[&str], code: i32, says: &[&str]| {
        volume.brine(args).expect_refusal().with_code(code).says(says);
    };
    refuse(&["cat", &format!("{other}@99")], 5, &["other", "99", "brine log"]);
    refuse(&["cat", &format!("{other}@1999-01-01")], 5, &["1999-01-01", "oldest"]);
    refuse(&["cat", &format!("{other}@2999-01-01")], 5, &["2999-01-01", "to come"]);
    refuse(&["cat", &format!("{other}@monday")], 5, &["\"monday\"", "snapshot list"]);
    refuse(&["cat", &other], 2, &["PATH@V"]);
    refuse(&["log", &at(&volume, "never")], 5, &["never"]);
    refuse(&["diff", &format!("{}@99", at(&volume, ""))], 5, &["99"]);
}

#[test]
fn a_restore_is_a_new_version() {
    let mut volume = small("restore");
    let p = |name: &str| volume.path(name);
    let content: Vec<u8> = (0..2_000_000u32).map(|at| b'a' + (at / 3 % 26) as u8).collect();
    fs::write(p("file"), &content).expect("write");
    set_xattr(&p("file"), "user.note", b"first", 0).expect("setxattr");
    fs::set_permissions(p("file"), fs::Permissions::from_mode(0o640)).expect("chmod");
    shell(volume.mnt(), "touch -d 2001-02-03T04:05:06Z file").expect_success();
    fs::hard_link(p("file"), p("link")).expect("link");
    let first = fs::metadata(p("file")).expect("stat");
    snapshot(&volume, &["create", "first"]);
    let mut open = fs::OpenOptions::new().read(true).write(true).open(p("file")).expect("open");
    shell(
        volume.mnt(),
        "printf changed | dd of=file bs=1 seek=150000 conv=notrunc 2>/dev/null; truncate -s 900000 file",
    )
    .expect_success();
    set_xattr(&p("file"), "user.note", b"second", 0).expect("setxattr");
    set_xattr(&p("file"), "user.more", b"x", 0).expect("setxattr");
    fs::set_permissions(p("file"), fs::Permissions::from_mode(0o777)).expect("chmod");
    // What the kernel has cached is old afterwards.
    assert_eq!(fs::read(p("file")).expect("read").len(), 900_000);
    volume.sync();
    let unique = volume.number(&["space", "unique_bytes"]);
    let file = at(&volume, "file");
    let done = json(&volume, &["restore", &format!("{file}@first")]);
    assert_eq!(done["size"], 2_000_000);
    let now = fs::metadata(p("file")).expect("stat");
    assert_eq!((now.ino(), now.mode(), now.nlink()), (first.ino(), first.mode(), 2));
    assert_eq!((now.mtime(), now.mtime_nsec()), (first.mtime(), first.mtime_nsec()));
    assert!(fs::read(p("file")).expect("read") == content, "the restored content is wrong");
    assert!(fs::read(p("link")).expect("read") == content, "a hard link is the same file");
    assert_eq!(get_xattr(&p("file"), "user.note").expect("getxattr"), b"first");
    assert_eq!(list_xattrs(&p("file")).expect("listxattr").len(), 1);
    let mut through = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut through).expect("read");
    assert!(through == content, "an open file sees the restored content");
    assert!(volume.number(&["space", "unique_bytes"]) <= unique, "a restore shares blocks");
    // It goes on from there, and the state before the restore is a state, too.
    std::io::Write::write_all(&mut open, b"more").expect("write");
    drop(open);
    let log = json(&volume, &["log", &file]);
    let before = log["states"].as_array().expect("states").iter().find(|state| state["size"] == 900_000).expect("kept");
    let version = before["version"].as_u64().expect("a version");
    let back = volume.brine(&["cat", &format!("{file}@{version}")]).expect_success().stdout;
    assert_eq!(back.len(), 900_000);
    volume.brine(&["restore", &format!("{file}@first"), "--to", &at(&volume, "copy")]).expect_success();
    assert!(fs::read(p("copy")).expect("read") == content);
    volume.remount();
    assert!(fs::read(volume.path("copy")).expect("read") == content);
    assert_eq!(fs::read(volume.path("file")).expect("read").len(), 2_000_004);
    volume.expect_clean();
    // Nothing half done.
    let refuse = |args: &[&str], code: i32, says: &[&str]| {
        volume.brine(args).expect_refusal().with_code(code).says(says);
    };
    let copy = at(&volume, "copy");
    refuse(&["restore", &file], 2, &["PATH@VERSION"]);
    refuse(&["restore", &format!("{file}@77")], 5, &["77"]);
    refuse(&["restore", &format!("{file}@first"), "--to", &copy], 3, &["copy", "exists"]);
    refuse(&["restore", &format!("{file}@first"), "--to", "/tmp/x"], 5, &["/tmp/x"]);
    refuse(&["restore", &format!("{file}@first"), "--to", &at(&volume, "none/x")], 5, &["directory"]);
    refuse(&["restore", &format!("{file}@first"), "--to", &at(&volume, ".brine-x")], 2, &[".brine"]);
    fs::remove_file(volume.path("file")).expect("rm");
    fs::create_dir(volume.path("file")).expect("mkdir");
    refuse(&["restore", &format!("{file}@first")], 3, &["directory now", "--to"]);
    assert!(volume.path("file").is_dir());
}

#[test]
fn what_was_deleted_is_brought_back() {
    let mut volume = small("undelete");
    let p = |name: &str| volume.path(name);
    fs::create_dir_all(p("dir/sub")).expect("mkdir");
    fs::write(p("dir/a"), b"small").expect("write");
    fs::write(p("dir/sub/b"), vec![9; 400_000]).expect("write");
    fs::hard_link(p("dir/a"), p("dir/sub/a2")).expect("link");
    symlink("a", p("dir/link")).expect("symlink");
    shell(volume.mnt(), "touch -d 2001-02-03T04:05:06Z dir/a dir/sub/b dir/sub dir").expect_success();
    let before = fingerprint(&p("dir"));
    fs::remove_file(p("dir/a")).expect("rm");
    volume.sync();
    let dir = at(&volume, "dir");
    let gone = json(&volume, &["log", "--deleted", &dir]);
    let names: Vec<&str> =
        gone["deleted"].as_array().expect("a list").iter().map(|row| row["name"].as_str().expect("a name")).collect();
    assert!(names.is_empty() || names == ["a"], "a name that no commit saw is no state: {names:?}");
    // Once a commit has seen it, it can be brought back.
    fs::write(p("dir/a"), b"small").expect("write");
    fs::remove_file(p("dir/sub/a2")).expect("rm");
    fs::hard_link(p("dir/a"), p("dir/sub/a2")).expect("link");
    shell(volume.mnt(), "touch -d 2001-02-03T04:05:06Z dir/a dir/sub/b dir/sub dir").expect_success();
    volume.sync();
    assert_eq!(fingerprint(&p("dir")), before);
    fs::remove_file(p("dir/a")).expect("rm");
    let gone = json(&volume, &["log", "--deleted", &dir]);
    assert_eq!(gone["deleted"][0]["name"], "a");
    json(&volume, &["restore", &at(&volume, "dir/a")]);
    assert_eq!(fs::read(p("dir/a")).expect("read"), b"small");
    // A whole tree, hard links among it kept.
    fs::remove_file(p("dir/a")).expect("rm");
    fs::hard_link(p("dir/sub/a2"), p("dir/a")).expect("link");
    shell(volume.mnt(), "touch -d 2001-02-03T04:05:06Z dir/a dir/sub/b dir/sub dir").expect_success();
    volume.sync();
    fs::remove_dir_all(p("dir")).expect("rm -r");
    assert!(!p("dir").exists());
    json(&volume, &["restore", &dir]);
    assert_eq!(fingerprint(&p("dir")), before);
    assert_eq!(fs::metadata(p("dir/a")).expect("stat").ino(), fs::metadata(p("dir/sub/a2")).expect("stat").ino());
    volume.brine(&["restore", &dir]).expect_refusal().with_code(2);
    volume.remount();
    assert_eq!(fingerprint(&volume.path("dir")), before);
    volume.expect_clean();
}

#[test]
fn a_tree_is_rewound_and_rewound_back() {
    let mut volume = small("rewind");
    let p = |name: &str| volume.path(name);
    let script = "mkdir -p d/keep d/sub/deep && for i in $(seq 40); do echo $i > d/f$i; done && \
        head -c 700000 /dev/urandom > d/sub/big && ln d/f1 d/sub/same && ln -s f2 d/link && \
        setfattr -n user.x -v 1 d/f3 && echo outside > outside && find d outside -exec touch -h -d @1000000000 {} +";
    shell(volume.mnt(), script).expect_success();
    let before = fingerprint(volume.mnt());
    snapshot(&volume, &["create", "then"]);
    let kept = fs::metadata(p("d/f5")).expect("stat").ino();
    let moved = fs::metadata(p("d/sub/big")).expect("stat").ino();
    let script = "echo new > d/f4; rm d/f6 d/f7; mv d/f8 d/f9; mv d/sub/big d/elsewhere; mv d/sub/deep d/keep/deep; \
        rm d/link; mkdir d/link; echo x > d/link/x; mkdir d/new; echo y > d/new/y; chmod 700 d/sub; \
        setfattr -x user.x d/f3; rm d/f1; echo changed > outside; ln d/f10 d/f7";
    shell(volume.mnt(), script).expect_success();
    let after = fingerprint(volume.mnt());
    let open = fs::File::open(p("d/new/y")).expect("open");
    // A trial changes nothing.
    let mnt = volume.mnt().display().to_string();
    let trial = json(&volume, &["rewind", &mnt, "--to", "then", "--dry-run"]);
    assert!(trial["removed"].as_u64().expect("a number") > 0 && trial["undo"].is_null(), "{trial}");
    assert_eq!(fingerprint(volume.mnt()), after);
    // One directory only.
    let done = json(&volume, &["rewind", &at(&volume, "d"), "--to", "then"]);
    assert_eq!(fs::read(p("outside")).expect("read"), b"changed\n");
    let counts = ["created", "changed", "moved", "removed"].map(|name| done[name].as_u64().expect("a number"));
    assert!(counts.iter().all(|count| *count > 0), "{done}");
    let undo = done["undo"].as_str().expect("a snapshot").to_owned();
    json(&volume, &["rewind", &mnt, "--to", "then"]);
    assert_eq!(fingerprint(volume.mnt()), before);
    assert_eq!(fs::metadata(p("d/f5")).expect("stat").ino(), kept, "what did not change keeps its inode");
    assert_eq!(fs::metadata(p("d/sub/big")).expect("stat").ino(), moved, "what was moved is moved back");
    assert_eq!(std::io::read_to_string(open).expect("read"), "y\n", "an open file lives on");
    // Nothing to do is nothing done.
    let none = json(&volume, &["rewind", &mnt, "--to", "then"]);
    assert!(none["undo"].is_null(), "{none}");
    // And back, across a crash.
    volume.kill_daemon();
    volume.detach();
    volume.mount();
    json(&volume, &["rewind", &mnt, "--to", &undo]);
    assert_eq!(fingerprint(volume.mnt()), after);
    volume.expect_clean();
    let refuse = |args: &[&str], code: i32, says: &[&str]| {
        volume.brine(args).expect_refusal().with_code(code).says(says);
    };
    snapshot(&volume, &["delete", "then"]);
    refuse(&["rewind", &mnt, "--to", "then"], 5, &["\"then\""]);
    refuse(&["rewind", &mnt, "--to", "7"], 2, &["version"]);
    refuse(&["rewind", &mnt, "--to", "2999-01-01"], 5, &["to come"]);
    refuse(&["rewind", &mnt], 2, &["--to"]);
    refuse(&["rewind", &at(&volume, "outside"), "--to", &undo], 3, &["directory"]);
    refuse(&["rewind", &at(&volume, "never"), "--to", &undo], 5, &["never"]);
    assert_eq!(fingerprint(volume.mnt()), after);
}

#[test]
fn a_directory_keeps_more_than_the_volume() {
    let mut volume = small("retention-directory");
    let root = volume.mnt().to_owned();
    let p = |name: &str| root.join(name);
    let mnt = root.display().to_string();
    let kept = p("kept").display().to_string();
    let json_of = |volume: &TestVolume, words: &[&str]| -> Value {
        let args = [words, &["--json"]].concat();
        serde_json::from_str(&volume.brine(&args).expect_success().stdout).expect("JSON")
    };
    fs::create_dir_all(p("kept/sub")).expect("mkdir");
    fs::create_dir(p("other")).expect("mkdir");
    json_of(&volume, &["retention", "set", "--all", "0", "--minutely", "0", "--hourly", "0", &mnt]);
    // What holds there at first are the volume's.
    assert_eq!(json_of(&volume, &["retention", "show", &kept])["own"], false);
    let refused = volume.brine(&["retention", "set", "--budget", "30", &kept]);
    assert_eq!(refused.code(), Some(3), "{refused}");
    let refused = volume.brine(&["retention", "set", "--all", "0", &kept]);
    assert!(refused.code() == Some(3) && refused.stderr.contains("keeps nothing"), "{refused}");
    assert_eq!(json_of(&volume, &["retention", "set", "--all", "1d", &kept])["own"], true);
    let below = json_of(&volume, &["retention", "show", "kept/sub", &mnt]);
    assert_eq!((&below["own"], &below["all_s"]), (&Value::Bool(false), &Value::from(86_400)));
    let all = json_of(&volume, &["retention", "show", &mnt]);
    assert_eq!((&all["directories"][0]["path"], &all["all_s"]), (&Value::from("/kept"), &Value::from(0)));
    let contradicts = volume.brine(&["retention", "set", "--all", "2d", &mnt]);
    assert!(contradicts.code() == Some(3) && contradicts.stderr.contains("keeps less"), "{contradicts}");

    for (round, text) in ["one", "two", "three"].iter().enumerate() {
        for dir in ["kept/sub", "other"] {
            fs::write(p(&format!("{dir}/file")), text.repeat(5000)).expect("write");
            fs::write(p(&format!("{dir}/gone{round}")), text).expect("write");
        }
        volume.sync();
        fs::remove_file(p(&format!("kept/sub/gone{round}"))).expect("rm");
        fs::remove_file(p(&format!("other/gone{round}"))).expect("rm");
        volume.sync();
    }
    fs::rename(p("kept"), p("renamed")).expect("mv");
    volume.brine(&["gc", &mnt]).expect_success();
    volume.brine(&["gc", &mnt]).expect_success();
    let states = |volume: &TestVolume, path: &str| -> Vec<u64> {
        let log = json_of(volume, &["log", &p(path).display().to_string()]);
        let states = log["states"].as_array().expect("a list").clone();
        states.iter().filter_map(|state| state["version"].as_u64()).collect()
    };
    let mut seen = Vec::new();
    for version in states(&volume, "renamed/sub/file") {
        let at = format!("{}@{version}", p("renamed/sub/file").display());
        let shown = volume.brine(&["cat", &at]);
        assert!(shown.success(), "{shown}");
        seen.push(shown.stdout.chars().take(3).collect::<String>());
    }
    assert!(["one", "two", "thr"].iter().all(|text| seen.contains(&(*text).to_owned())), "{seen:?}");
    assert_eq!(states(&volume, "other/file").len(), 1);
    // What was deleted comes back, by its state before and by a version.
    for round in 0..3 {
        let restored = volume.brine(&["restore", &p(&format!("renamed/sub/gone{round}")).display().to_string()]);
        assert!(restored.success(), "{restored}");
        let lost = volume.brine(&["restore", &p(&format!("other/gone{round}")).display().to_string()]);
        assert_eq!(lost.code(), Some(5), "{lost}");
    }
    assert_eq!(fs::read(p("renamed/sub/gone1")).expect("read"), b"two");
    let renamed = p("renamed").display().to_string();
    assert_eq!(json_of(&volume, &["retention", "clear", &renamed])["own"], false);
    assert_eq!(volume.brine(&["retention", "clear", &renamed]).code(), Some(5));
    // The kernel still knows what was shown, and that is being read.
    volume.remount();
    volume.brine(&["gc", &mnt]).expect_success();
    volume.brine(&["gc", &mnt]).expect_success();
    assert_eq!(states(&volume, "renamed/sub/file").len(), 1);
    volume.expect_clean();
}

/// Increments by commands, each computed from a state and written only over that.
fn increment_by_commands(path: &Path, times: usize) -> (u64, Vec<u64>) {
    let (mut conflicts, mut made) = (0, Vec::new());
    while made.len() < times {
        let log = run(brine_command(&["log", "--json"]).arg(path)).expect_success().stdout;
        let log: Value = serde_json::from_str(&log).expect("JSON");
        let version = log["states"][0]["version"].as_u64().expect("a version");
        let count = run(brine_command(&["cat"]).arg(format!("{}@{version}", path.display()))).expect_success().stdout;
        let next = count.trim().parse::<u64>().expect("a number") + 1;
        let script = format!("echo {next} | \"$1\" write --json --if-version {version} \"$2\"");
        let mut command = std::process::Command::new("sh");
        let written = run(command.args(["-c", &script, "sh"]).arg(brine_tests::environment::brine()).arg(path));
        match written.code() {
            Some(0) => {
                let written: Value = serde_json::from_str(&written.stdout).expect("JSON");
                assert_eq!(written["version"].as_u64(), Some(version + 1), "one change, one version");
                made.push(version + 1);
            }
            Some(15) => conflicts += 1,
            _ => panic!("{written}"),
        }
    }
    (conflicts, made)
}

/// `brine write` of a file, which waits for its content.
fn writing(path: &Path) -> std::process::Child {
    let mut command = brine_command(&["write"]);
    command.arg(path).stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command.spawn().expect("start")
}

/// The file that new content of `name` is copied to, when it is there.
fn beside(directory: &Path, name: &str) -> Option<std::path::PathBuf> {
    let start = format!(".{name}.new-");
    let names = fs::read_dir(directory).expect("list").flatten().map(|entry| entry.path());
    names.into_iter().find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start)))
}

#[test]
fn new_content_that_is_on_its_way_is_nobody_elses_and_goes_with_the_command() {
    let mut volume = small("beside");
    let path = volume.path("secret");
    fs::write(&path, "old").expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    let there = || beside(volume.mnt(), "secret");
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let mut child = writing(&path);
        assert!(wait_until(std::time::Duration::from_secs(20), || there().is_some()), "the file beside it");
        let mode = fs::metadata(there().expect("it is there")).expect("stat").mode();
        assert_eq!(mode & 0o7777, 0o600);
        let number = nix::sys::signal::Signal::try_from(signal).expect("a signal");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), number).expect("kill");
        let status = child.wait().expect("wait");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal), "{status}");
        assert_eq!(there(), None, "signal {signal}");
        assert_eq!(fs::read(&path).expect("read"), b"old");
    }
    let mut child = writing(&path);
    std::io::Write::write_all(child.stdin.as_mut().expect("a pipe"), b"new").expect("write");
    drop(child.stdin.take());
    assert!(child.wait().expect("wait").success());
    assert_eq!((fs::read(&path).expect("read"), there()), (b"new".to_vec(), None));
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o600);
    volume.umount();
}

#[test]
fn conditional_writes_of_many_processes_lose_none_and_double_none() {
    const COMMANDS: usize = 3;
    const EACH: usize = 6;
    const WORKERS: usize = 2;
    const CHANGES: usize = 40;
    let volume = small("increments");
    let path = volume.path("counter");
    fs::write(&path, b"0\n").expect("write");
    volume.sync();
    let version = || -> u64 {
        let log = run(brine_command(&["log", "--json"]).arg(&path)).expect_success().stdout;
        let log: Value = serde_json::from_str(&log).expect("JSON");
        log["states"][0]["version"].as_u64().expect("a version")
    };
    let before = version();
    let (conflicts, made) = std::thread::scope(|scope| {
        let commands: Vec<_> = (0..COMMANDS).map(|_| scope.spawn(|| increment_by_commands(&path, EACH))).collect();
        // Workers of the mount change the same inode; now and then so that the state is kept.
        for worker in 0..WORKERS {
            let path = &path;
            scope.spawn(move || {
                for change in 0..CHANGES {
                    let name = format!("user.worker{worker}");
                    set_xattr(path, &name, change.to_string().as_bytes(), 0).expect("setxattr");
                    if change % 8 == 0 {
                        fs::File::open(path).and_then(|file| file.sync_all()).expect("fsync");
                    }
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            });
        }
        let done: Vec<_> = commands.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        (
            done.iter().map(|(conflicts, _)| conflicts).sum::<u64>(),
            done.into_iter().flat_map(|(_, made)| made).collect::<Vec<_>>(),
        )
    });
    assert_eq!(
        version() - before,
        (COMMANDS * EACH + WORKERS * CHANGES) as u64,
        "one version each, none lost or doubled"
    );
    let mut made = made;
    made.sort_unstable();
    made.dedup();
    assert_eq!(made.len(), COMMANDS * EACH, "no version was given twice");
    // All of them are kept, in order.
    for (count, version) in (1u64..).zip(&made) {
        let shown = run(brine_command(&["cat"]).arg(format!("{}@{version}", path.display()))).expect_success();
        assert_eq!(shown.stdout.trim(), count.to_string(), "version {version}");
    }
    assert_eq!(fs::read_to_string(&path).expect("read").trim(), (COMMANDS * EACH).to_string());
    let counted = volume.status()["versions"]["conflicts"].as_u64().expect("a count");
    assert!(counted >= conflicts, "{counted} counted, {conflicts} told");
    // A stale write changes nothing, leaves nothing beside, and says what is so.
    let entries = || fs::read_dir(volume.mnt()).expect("ls").count();
    let names = entries();
    let stale = run(brine_command(&["write", "--if-version", "1"]).arg(&path).stdin(std::process::Stdio::null()));
    assert!(stale.code() == Some(15) && stale.stderr.contains("nothing was changed"), "{stale}");
    assert_eq!(entries(), names);
    let stale = run(brine_command(&["restore", "--if-version", "1"]).arg(format!("{}@{}", path.display(), made[0])));
    assert_eq!(stale.code(), Some(15), "{stale}");
    let now = version().to_string();
    run(brine_command(&["restore", "--if-version", &now]).arg(format!("{}@{}", path.display(), made[0])))
        .expect_success();
    assert_eq!(fs::read_to_string(&path).expect("read").trim(), "1");
    // Large content, and none.
    let large = brine_tests::content(7, 1_000_000);
    let source = volume.root().join("large");
    fs::write(&source, &large).expect("write");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "\"$1\" write \"$2\" < \"$3\"", "sh"]);
    run(command.arg(brine_tests::environment::brine()).arg(&path).arg(&source)).expect_success();
    assert_eq!(fs::read(&path).expect("read"), large);
    run(brine_command(&["write"]).arg(&path).stdin(std::process::Stdio::null())).expect_success();
    assert_eq!(fs::read(&path).expect("read"), b"");
    volume.expect_clean();
}
