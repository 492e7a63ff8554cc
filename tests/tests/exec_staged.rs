//! Staged outputs: what a run writes appears in one step when it has succeeded, or not at all.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use brine_tests::volume::{brine_command, wait_until};
use brine_tests::{Builder, TestVolume, program, run};
use serde_json::Value;

/// A user without rights or files of its own.
const STRANGER: u32 = 43_212;
/// Another.
const BOB: u32 = 43_213;

fn small(name: &str) -> Builder {
    Builder::new(name).directories(2).geometry(1, 1).option("allow_other")
}

/// A script in exec/ that may write to `out/`, staged.
fn staged(volume: &TestVolume, name: &str, body: &str) -> PathBuf {
    let path = volume.path("exec").join(name);
    fs::write(&path, format!("#!/bin/sh\nset -e\ncd {}\n{body}\n", volume.path("out").display())).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    policy(&path, &["--write", "../out", "--stage", "on"]);
    path
}

fn policy(path: &Path, options: &[&str]) {
    run(brine_command(&["exec", "policy"]).arg(path).args(options)).expect_success();
}

fn last(volume: &TestVolume) -> Value {
    let mut command = brine_command(&["exec", "log", "--json", "-n", "1", "--at"]);
    let text = run(command.arg(volume.mnt())).expect_success().stdout;
    serde_json::from_str::<Value>(&text).expect("JSON")[0].clone()
}

fn read(volume: &TestVolume, path: &str) -> String {
    fs::read_to_string(volume.path(path)).unwrap_or_else(|error| format!("{error}"))
}

/// Everything below `out/`: kind, mode, size, path.
fn tree(volume: &TestVolume) -> String {
    let mut find = Command::new(program("find"));
    let listed = run(find.current_dir(volume.path("out")).args([".", "-mindepth", "1", "-printf", "%y %m %s %p\\n"]));
    let mut lines: Vec<String> = listed.expect_success().stdout.lines().map(str::to_owned).collect();
    lines.sort();
    lines.join("\n")
}

/// A run that was started and waits: it said "ready", and goes on when its standard input is written to.
struct Waiting(Child);

impl Waiting {
    fn start(function: &Path) -> Self {
        Self::of(&mut Command::new(function))
    }

    fn of(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
        let mut said = [0; 6];
        let heard = child.stdout.as_mut().expect("stdout").read_exact(&mut said);
        if heard.is_err() {
            let mut why = String::new();
            let _ = child.stderr.as_mut().expect("stderr").read_to_string(&mut why);
            panic!("the run did not get ready: {why}");
        }
        assert_eq!(&said, b"ready\n");
        Self(child)
    }

    /// The next line that it said.
    fn line(&mut self) -> String {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while self.0.stdout.as_mut().expect("stdout").read(&mut byte).expect("read") == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).expect("text")
    }

    /// Its exit code, and what it said.
    fn go_on(mut self) -> (Option<i32>, String) {
        self.0.stdin.take().expect("stdin").write_all(b"on\n").expect("write");
        let output = self.0.wait_with_output().expect("wait");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn fill(volume: &TestVolume) {
    for directory in ["out", "out/old", "out/old/deep", "out/kept"] {
        fs::create_dir(volume.path(directory)).expect("mkdir");
    }
    for file in ["out/changed", "out/gone", "out/moved", "out/old/deep/file", "out/kept/inner", "out/kept/other"] {
        fs::write(volume.path(file), file).expect("write");
    }
}

const WORK: &str = "echo new > made; echo more >> changed; rm gone; mv moved here; rm -r old; mkdir old; echo o > old/o
mkdir -p fresh/below; echo b > fresh/below/b; ln -s made link; ln fresh/below/b fresh/hard; rm kept/other
echo inner > kept/inner; chmod 640 kept/inner; dd if=/dev/urandom of=big bs=64k count=20 2>/dev/null
sha256sum big > big.sum";

const DONE: &str = "d 755 4096 ./fresh\nd 755 4096 ./fresh/below\nd 755 4096 ./kept\nd 755 4096 ./old\n\
                    f 640 6 ./kept/inner\nf 644 1310720 ./big\nf 644 16 ./changed\nf 644 2 ./fresh/below/b\n\
                    f 644 2 ./fresh/hard\nf 644 2 ./old/o\nf 644 4 ./made\nf 644 70 ./big.sum\nf 644 9 ./here\n\
                    l 777 4 ./link";

fn publishes(volume: &mut TestVolume) {
    fill(volume);
    let before = tree(volume);
    let work = staged(volume, "work", &format!("{WORK}\necho ready; read x; echo last > last; rm last"));
    let waiting = Waiting::start(&work);
    assert_eq!(tree(volume), before, "nothing is visible while it runs");
    let (code, said) = waiting.go_on();
    assert_eq!((code, &*said), (Some(0), ""));
    assert_eq!(tree(volume), DONE);
    assert_eq!(
        (read(volume, "out/here"), read(volume, "out/changed")),
        ("out/moved".into(), "out/changedmore\n".into())
    );
    let hard = |path: &str| fs::metadata(volume.path(path)).expect("stat").ino();
    assert_eq!(hard("out/fresh/hard"), hard("out/fresh/below/b"));
    let sum = run(Command::new(program("sha256sum")).args(["-c", "big.sum"]).current_dir(volume.path("out")));
    sum.expect_success();
    let noted = run(Command::new(program("getfattr")).args(["-R", "-d", "-m", "-"]).arg(volume.path("out")));
    assert!(!noted.expect_success().stdout.contains("overlay"), "what overlayfs noted is gone");
    let record = last(volume);
    assert_eq!((&record["outputs"], &record["cause"]), (&"published".into(), &"exited".into()), "{record}");
    assert_eq!((&record["scope"][0]["path"], &record["scope"][0]["access"]), (&"/out".into(), &"stage".into()));
    let names: Vec<_> =
        fs::read_dir(volume.mnt()).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{names:?}");
    assert!(fs::metadata(volume.path(".brine.staged")).is_err(), "it has no name");
    volume.remount();
    assert_eq!(tree(volume), DONE);
    volume.expect_clean();
}

#[test]
fn outputs_appear_in_one_step_when_the_run_has_succeeded() {
    let mut volume = small("staged-done").mount();
    publishes(&mut volume);

    // A user who may write there by the mode of the directory only.
    fs::set_permissions(volume.path("out"), fs::Permissions::from_mode(0o777)).expect("chmod");
    let add = staged(&volume, "add", "echo mine > mine; id -u > who");
    run(Command::new(&add).uid(STRANGER).gid(STRANGER)).expect_success();
    assert_eq!(read(&volume, "out/who"), format!("{STRANGER}\n"));
    assert_eq!(fs::metadata(volume.path("out/mine")).expect("stat").uid(), STRANGER);
    fs::set_permissions(volume.path("out"), fs::Permissions::from_mode(0o755)).expect("chmod");
    run(Command::new(&add).uid(STRANGER).gid(STRANGER)).expect_refusal();

    // A single file.
    fs::write(volume.path("single"), "before").expect("write");
    let one = staged(&volume, "one", "printf after > ../single; exit ${1:-0}");
    policy(&one, &["--write", "../single", "--write", "../out"]);
    run(Command::new(&one).arg("3")).with_code(3);
    assert_eq!(read(&volume, "single"), "before");
    run(&mut Command::new(&one)).expect_success();
    assert_eq!(read(&volume, "single"), "after");
    volume.umount();
}

#[test]
fn outputs_are_staged_without_history_too() {
    let mut volume = small("staged-plain").format_args(&["--no-history"]).mount();
    publishes(&mut volume);
    let wait = staged(&volume, "wait", "echo mine > made; echo ready; read x");
    let waiting = Waiting::start(&wait);
    fs::write(volume.path("out/made"), "theirs").expect("write");
    assert_eq!(waiting.go_on().0, Some(125));
    let waiting = Waiting::start(&wait);
    fs::remove_file(volume.path("out/made")).expect("rm");
    assert_eq!(waiting.go_on().0, Some(125), "what it replaces is not there any more");
    volume.umount();
}

#[test]
fn a_run_that_fails_leaves_nothing() {
    let mut volume = small("staged-failed").mount();
    fill(&volume);
    let before = tree(&volume);
    let fail = staged(&volume, "fail", &format!("{WORK}\nexit 4"));
    run(&mut Command::new(&fail)).with_code(4);
    assert_eq!((tree(&volume), &last(&volume)["outputs"]), (before.clone(), &"dropped".into()));
    let shot = staged(&volume, "shot", &format!("{WORK}\nkill -9 $$"));
    assert_eq!(Command::new(&shot).status().expect("run").signal(), Some(9));
    assert_eq!(tree(&volume), before);
    let mut waiting = Waiting::start(&staged(&volume, "left", &format!("{WORK}\necho ready; read x")));
    // Open until it is gone: at its end the program would end by itself.
    let _held = waiting.0.stdin.take();
    waiting.0.kill().expect("kill the launcher");
    waiting.0.wait().expect("wait");
    let gone = || last(&volume)["cause"] == "killed";
    assert!(wait_until(Duration::from_secs(20), gone), "{}", last(&volume));
    assert_eq!(tree(&volume), before);
    volume.remount();
    assert_eq!(tree(&volume), before);
    volume.expect_clean();
    volume.umount();
}

#[test]
fn outputs_that_meet_somebody_elses_changes_are_kept_and_not_published() {
    let mut volume = small("staged-conflict").mount();
    fill(&volume);
    let work = staged(&volume, "work", "echo mine >> changed; rm gone; echo made > made; echo ready; read x");
    let theirs = |change: &dyn Fn()| {
        let before = Waiting::start(&work);
        change();
        let shown = tree(&volume);
        let (code, said) = before.go_on();
        (code, said, shown == tree(&volume), last(&volume))
    };
    type Change<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let out = volume.path("out");
    let path = |name: &str| out.join(name);
    let changes: Vec<Change<'_>> = vec![
        ("changed", Box::new(|| fs::write(path("changed"), "theirs").expect("write"))),
        ("changed", Box::new(|| fs::remove_file(path("changed")).expect("rm"))),
        ("gone", Box::new(|| fs::write(path("gone"), "not so").expect("write"))),
        ("made", Box::new(|| fs::write(path("made"), "theirs").expect("write"))),
    ];
    for (name, change) in &changes {
        for name in ["changed", "gone"] {
            fs::write(path(name), "start").expect("write");
        }
        let _ = fs::remove_file(path("made"));
        let (code, said, same, record) = theirs(change);
        assert_eq!((code, same), (Some(125), true), "{name}: {said}");
        assert!(said.contains("brine: not published") && said.contains(name), "{said}");
        assert_eq!((&record["cause"], &record["outputs"]), (&"conflict".into(), &"kept".into()), "{record}");
    }
    drop(changes);
    // The last one's are published over what is there, once, and after a remount as well.
    let id = last(&volume)["id"].as_str().expect("id").to_owned();
    volume.remount();
    let mut publish = brine_command(&["exec", "publish", "--json", &id, "--at"]);
    let mut by_stranger = brine_command(&["exec", "publish", &id, "--at"]);
    run(by_stranger.arg(volume.mnt()).uid(STRANGER).gid(STRANGER)).expect_refusal();
    let answer = run(publish.arg(volume.mnt())).expect_success().stdout;
    assert!(answer.contains("/out"), "{answer}");
    assert_eq!((read(&volume, "out/made"), read(&volume, "out/changed")), ("made\n".into(), "startmine\n".into()));
    assert!(!volume.path("out/gone").exists());
    run(&mut publish).expect_refusal();

    // What others do beside it is no conflict.
    for name in ["changed", "gone"] {
        fs::write(volume.path(&format!("out/{name}")), "start").expect("write");
    }
    fs::remove_file(volume.path("out/made")).expect("rm");
    let waiting = Waiting::start(&work);
    fs::write(volume.path("out/beside"), "theirs").expect("write");
    fs::write(volume.path("out/kept/inner"), "theirs").expect("write");
    assert_eq!(waiting.go_on(), (Some(0), String::new()));
    assert_eq!((read(&volume, "out/beside"), read(&volume, "out/made")), ("theirs".into(), "made\n".into()));
    volume.expect_clean();
    volume.umount();
}

#[test]
fn a_daemon_that_is_killed_publishes_nothing() {
    let mut volume = small("staged-killed").mount();
    fill(&volume);
    volume.sync();
    let before = tree(&volume);
    let work = staged(&volume, "work", &format!("{WORK}\necho ready; read x"));
    let mut waiting = Waiting::start(&work);
    // What was staged is durable by then, without a name.
    volume.sync();
    volume.kill_daemon();
    assert_eq!(waiting.0.wait().expect("wait").code(), Some(125));
    volume.mount();
    assert_eq!((tree(&volume), &last(&volume)["cause"]), (before, &"lost".into()));
    volume.expect_clean();
    // At any moment around the publication: all of it or nothing.
    let before = tree(&volume);
    for delay_ms in [0, 2, 4, 8, 16, 32] {
        let mut waiting = Waiting::start(&work);
        waiting.0.stdin.take().expect("stdin").write_all(b"on\n").expect("write");
        std::thread::sleep(Duration::from_millis(delay_ms));
        volume.kill_daemon();
        waiting.0.wait().expect("wait");
        volume.mount();
        let now = tree(&volume);
        assert!(now == before || now == DONE, "after {delay_ms} ms: {now}");
        if now == DONE {
            break;
        }
    }
    // And the function works again.
    if tree(&volume) == before {
        assert_eq!(Waiting::start(&work).go_on(), (Some(0), String::new()));
    }
    assert_eq!(tree(&volume), DONE);
    volume.expect_clean();
    volume.umount();
}

fn give(path: &Path, uid: u32, mode: u32) {
    std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("chown");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn as_user(uid: u32, volume: &TestVolume, script: &str) -> Command {
    let mut command = Command::new(program("sh"));
    command.args(["-c", script]).current_dir(volume.mnt()).uid(uid).gid(uid);
    command
}

#[test]
fn nobody_changes_from_outside_what_a_run_stages() {
    let mut volume = small("staged-outside").mount();
    for (directory, uid) in [("out", BOB), ("mine", STRANGER)] {
        fs::create_dir(volume.path(directory)).expect("mkdir");
        give(&volume.path(directory), uid, 0o755);
    }
    fs::write(volume.path("mine/single"), "before").expect("write");
    give(&volume.path("mine/single"), STRANGER, 0o644);
    let body = "echo ready; grep -o 'brine/stage/[^ ]*' /proc/self/mountinfo; echo no more; printf after > ../mine/single; read x";
    let work = staged(&volume, "work", body);
    policy(&work, &["--write", "../mine/single", "--write", "../out"]);
    let mut by_stranger = Command::new(&work);
    by_stranger.uid(STRANGER).gid(STRANGER);

    // What a run sees of its staging directory leads to its file, and only its caller there.
    let mut waiting = Waiting::of(&mut by_stranger);
    let shown = waiting.line();
    assert_eq!(waiting.line(), "no more", "{shown}");
    let name = shown.split('/').nth(2).expect("a name").to_owned();
    let part = format!(".brine/stage/{name}");
    run(&mut as_user(STRANGER, &volume, &format!("test -e {part}/file"))).expect_success();
    run(&mut as_user(STRANGER, &volume, &format!("ls {part}"))).expect_refusal();
    for other in ["0", "1", "upper", "0/upper", "1/upper"] {
        run(&mut as_user(STRANGER, &volume, &format!("test -e {part}/{other}"))).with_code(1);
    }
    run(&mut as_user(STRANGER, &volume, "ls .brine/stage")).expect_refusal();
    // All of it is removed at the end without asking whose it is: nothing can be put there, and nothing in its place.
    fs::create_dir(volume.path("mine/bobs")).expect("mkdir");
    for change in ["echo evil > PART/other", "chmod 700 PART", "mv mine/bobs PART/", "mv PART/file mine/"] {
        run(&mut as_user(STRANGER, &volume, &change.replace("PART", &part))).expect_refusal();
    }
    run(&mut as_user(BOB, &volume, &format!("cat {part}/file"))).expect_refusal();
    assert_eq!(waiting.go_on(), (Some(0), String::new()));
    assert_eq!(read(&volume, "mine/single"), "after");
    run(&mut as_user(STRANGER, &volume, &format!("test -e {part}"))).with_code(1);

    assert_eq!(fs::read_dir(volume.path("out")).expect("list").count(), 0);
    volume.expect_clean();
    volume.umount();
}

#[test]
fn outputs_are_published_with_the_rights_of_who_ran_the_function() {
    let mut volume = small("staged-rights").mount();
    fs::create_dir(volume.path("out")).expect("mkdir");
    give(&volume.path("out"), BOB, 0o777);
    fs::write(volume.path("out/bobs"), "bob").expect("write");
    give(&volume.path("out/bobs"), BOB, 0o644);
    let work = staged(&volume, "work", "$1; echo ready; read x");
    let mode = |mode| fs::set_permissions(volume.path("out"), fs::Permissions::from_mode(mode));
    let cases = [("touch new", 0o755, "/out/new"), ("rm bobs", 0o1777, "/out/bobs")];
    for (action, then, path) in cases {
        mode(0o777).expect("chmod");
        let waiting = Waiting::of(Command::new(&work).arg(action).uid(STRANGER).gid(STRANGER));
        mode(then).expect("chmod");
        let before = tree(&volume);
        let (code, said) = waiting.go_on();
        assert_eq!((code, tree(&volume)), (Some(125), before), "{action}, mode {then:o}: {said}");
        assert!(said.contains(path) && said.contains(&STRANGER.to_string()), "{said}");
        let record = last(&volume);
        assert_eq!(record["outputs"], "kept", "{record}");
        let mut publish = brine_command(&["exec", "publish", record["id"].as_str().expect("id"), "--at"]);
        publish.arg(volume.mnt()).uid(STRANGER).gid(STRANGER);
        let refusal = run(&mut publish).expect_refusal().stderr;
        assert!(refusal.contains(path), "{refusal}");
        // Gone from where it was granted.
        fs::rename(volume.path("out"), volume.path("away")).expect("rename");
        let refusal = run(&mut publish).expect_refusal().stderr;
        assert!(refusal.contains("granted directory /out is not there"), "{refusal}");
        fs::rename(volume.path("away"), volume.path("out")).expect("rename");
        // With the right given back.
        mode(0o777).expect("chmod");
        run(&mut publish).expect_success();
    }
    assert_eq!(tree(&volume), "f 644 0 ./new");

    // A file that may be written, in a directory that may not: publishing replaces it.
    fs::write(volume.path("single"), "before").expect("write");
    give(&volume.path("single"), BOB, 0o666);
    let one = staged(&volume, "one", "printf after > ../single");
    policy(&one, &["--write", "../single"]);
    let refusal = run(Command::new(&one).uid(STRANGER).gid(STRANGER)).expect_refusal().stderr;
    assert!(refusal.contains("single") && refusal.contains("its directory"), "{refusal}");
    assert_eq!(read(&volume, "single"), "before");
    volume.expect_clean();
    volume.umount();
}

#[test]
fn every_change_is_published_also_one_that_size_and_time_do_not_show() {
    let mut volume = small("staged-alike").mount();
    fill(&volume);
    fs::write(volume.path("single"), "before").expect("write");
    let body = "touch -r ../single /tmp/time; printf after! > ../single; touch -r /tmp/time ../single
        setfattr -x user.gone kept; setfattr -n user.new -v 1 kept; echo more >> listed/file";
    fs::create_dir(volume.path("out/listed")).expect("mkdir");
    fs::write(volume.path("out/listed/file"), "file\n").expect("write");
    run(Command::new(program("setfattr")).args(["-n", "user.gone", "-v", "1"]).arg(volume.path("out/kept")))
        .expect_success();
    run(Command::new(program("setfacl")).args(["-m", "u:43212:rwx"]).arg(volume.path("out/listed"))).expect_success();
    run(Command::new(program("setfattr")).args(["-n", "user.stays", "-v", "1"]).arg(volume.path("out/listed")))
        .expect_success();
    let one = staged(&volume, "one", body);
    policy(&one, &["--write", "../single", "--write", "../out"]);
    run(&mut Command::new(&one)).expect_success();
    assert_eq!(read(&volume, "single"), "after!");
    let noted = |path: &str| {
        let mut list = Command::new(program("getfattr"));
        run(list.args(["--absolute-names", "-m", "-"]).arg(volume.path(path))).expect_success().stdout
    };
    assert!(
        noted("out/kept").contains("user.new") && !noted("out/kept").contains("user.gone"),
        "{}",
        noted("out/kept")
    );
    let listed = noted("out/listed");
    assert!(listed.contains("user.stays") && listed.contains("posix_acl_access"), "{listed}");
    assert_eq!(read(&volume, "out/listed/file"), "file\nmore\n");
    volume.expect_clean();
    volume.umount();
}

#[test]
fn directories_that_a_run_nests_deep_are_published_and_dropped() {
    let mut volume = small("staged-deep").mount();
    fs::create_dir(volume.path("out")).expect("mkdir");
    // As long as a path may be.
    let body = "mkdir -p $(printf 'd/%.0s' $(seq 2000)); exit $1";
    let deep = staged(&volume, "deep", body);
    run(Command::new(&deep).arg("3")).with_code(3);
    assert_eq!(tree(&volume), "");
    run(Command::new(&deep).arg("0")).expect_success();
    let mut find = Command::new(program("find"));
    let found = run(find.current_dir(volume.path("out")).args([".", "-mindepth", "1", "-name", "d", "-printf", "x"]));
    let depth = found.expect_success().stdout.len();
    assert_eq!(depth, 2000);
    volume.umount();
}
