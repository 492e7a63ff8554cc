//! Past states through a real mount: histories, restores, rewinds.

mod conditional;
mod refusals;
mod snapshots;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use brine_tests::TestVolume;
use brine_tests::command::{errno, shell};
use brine_tests::environment::require_room_for_history;
use brine_tests::sys::{get_xattr, list_xattrs, set_xattr};
use serde_json::Value;

fn small(name: &str) -> TestVolume {
    require_room_for_history();
    TestVolume::new(name, 3, (2, 1))
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
