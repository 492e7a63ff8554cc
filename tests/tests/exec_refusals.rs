//! What cannot be run: refused as it should be, by the kernel's way and by command, recorded, and nothing is left of it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use brine_tests::command::exit;
use brine_tests::volume::{brine_command, wait_until};
use brine_tests::{Builder, Finished, TestVolume, program, run};
use serde_json::Value;

/// A user without rights or files of its own.
const STRANGER: u32 = 43_211;

fn small(name: &str) -> TestVolume {
    Builder::new(name).directories(2).geometry(1, 1).option("allow_other").mount()
}

fn put(volume: &TestVolume, name: &str, content: &str, mode: u32) -> PathBuf {
    let path = volume.path("exec").join(name);
    fs::write(&path, content).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    path
}

/// As a shell does it.
fn by_shell(path: &Path) -> Command {
    let mut command = Command::new(program("sh"));
    command.args(["-c", "exec \"$0\""]).arg(path).stdin(Stdio::null());
    command
}

fn by_command(path: &Path) -> Command {
    let mut command = brine_command(&["exec", "run"]);
    command.arg(path).stdin(Stdio::null());
    command
}

fn log(volume: &TestVolume) -> Vec<Value> {
    let mut command = brine_command(&["exec", "log", "--json", "-n", "1000", "--at"]);
    let text = run(command.arg(volume.mnt())).expect_success().stdout;
    serde_json::from_str::<Value>(&text).expect("JSON").as_array().expect("an array").clone()
}

/// Runs that go on, and ended sandboxes of which something is left.
fn litter(volume: &TestVolume) -> (i64, i64) {
    let status = volume.status();
    let number = |name: &str| status["exec"][name].as_i64().unwrap_or(-1);
    (number("running"), number("not_removed"))
}

/// The daemon refused it: this code, this line, and a record that says the same.
#[track_caller]
fn refused(volume: &TestVolume, finished: &Finished, code: i32, cause: &str, line: &str) {
    let finished = finished.clone().with_code(code);
    assert!(finished.stderr.contains("brine: ") && finished.stderr.contains(line), "no {line:?}: {finished}");
    assert!(finished.stdout.is_empty(), "{finished}");
    let record = &log(volume)[0];
    assert_eq!((&record["cause"], &record["exit_code"]), (&cause.into(), &code.into()), "{record}");
    assert!(record["message"].as_str().is_some_and(|message| message.contains(line)), "{record}");
    assert!(record["ended_ns"].is_i64(), "{record}");
    assert_eq!(litter(volume), (0, 0));
}

#[test]
fn what_is_no_program_is_refused_and_recorded() {
    let mut volume = small("refused-programs");
    let fine = "#!/bin/sh\necho ran\n";
    // The kernel finds these unfit before anybody is asked.
    let plain = put(&volume, "plain", fine, 0o644);
    let directory = volume.path("exec/directory");
    fs::create_dir(&directory).expect("mkdir");
    let private = put(&volume, "private", fine, 0o700);
    let busy = put(&volume, "busy", fine, 0o755);
    let missing = volume.path("exec/missing");
    let before = log(&volume).len();
    for (path, code) in [(&plain, 126), (&directory, 126), (&missing, 127)] {
        run(&mut by_shell(path)).with_code(code);
    }
    run(by_shell(&private).uid(STRANGER).gid(STRANGER)).with_code(126);
    let writer = File::options().append(true).open(&busy).expect("open");
    assert_eq!(Command::new(&busy).status().expect_err("busy").raw_os_error(), Some(libc::ETXTBSY));
    assert_eq!(log(&volume).len(), before, "no run was asked for");

    // By command the daemon decides.
    refused(&volume, &run(&mut by_command(&plain)), 126, "refused", "permission denied");
    refused(&volume, &run(&mut by_command(&directory)), 126, "refused", "not a file in exec/");
    refused(&volume, &run(by_command(&private).uid(STRANGER).gid(STRANGER)), 126, "refused", "permission denied");
    refused(&volume, &run(&mut by_command(&busy)), 126, "refused", "text file busy");
    drop(writer);
    assert_eq!(run(&mut by_command(&busy)).expect_success().stdout, "ran\n", "as soon as nobody writes");
    let none = run(&mut by_command(&missing)).with_code(127);
    assert!(none.stderr.contains("missing"), "{none}");
    let outside = volume.root().join("outside");
    fs::copy("/bin/true", &outside).expect("copy");
    let elsewhere = run(&mut by_command(&outside)).with_code(125);
    assert!(elsewhere.stderr.contains("not on a mounted brine volume"), "{elsewhere}");

    // These are known for what they are by who would run them.
    for (name, content, code, cause, line) in [
        ("empty", "", 126, "refused", "an empty file is no program"),
        ("lost", "#!/no/such/shell\n", 127, "not-found", "/no/such/shell"),
        ("blank", "#!\n", 126, "refused", "neither a program for this machine nor a script"),
        ("text", "echo no line\n", 126, "refused", "neither a program for this machine nor a script"),
        ("broken", "\x7fELF and nothing else", 126, "refused", "neither a program for this machine nor a script"),
        ("by-directory", "#!/usr\n", 126, "refused", "by-directory"),
    ] {
        let path = put(&volume, name, content, 0o755);
        refused(&volume, &run(&mut by_shell(&path)), code, cause, line);
        refused(&volume, &run(&mut by_command(&path)), code, cause, line);
    }
    // Argument lists are as long as they may be elsewhere, or the kernel says that they are not.
    let fine = put(&volume, "fine", "#!/bin/sh\necho $#\n", 0o755);
    let word = "x".repeat(100_000);
    let long = |many: usize| Command::new(&fine).args(std::iter::repeat_n(&word, many)).output();
    assert_eq!(long(10).expect("run").stdout, b"10\n");
    assert_eq!(long(30).expect_err("too long").raw_os_error(), Some(libc::E2BIG));
    // A caller may have raised what the kernel allows him, but not what is allowed here.
    let script = r#"ulimit -s unlimited 2>/dev/null; word=$(head -c 100000 /dev/zero | tr '\0' x)
        set --; while [ $# -lt 30 ]; do set -- "$@" $word; done; exec "$0" "$@""#;
    let raised = run(Command::new(program("sh")).args(["-c", script]).arg(&fine));
    refused(&volume, &raised, 126, "refused", "rgument list too long");
    volume.umount();
}

#[test]
fn policies_that_cannot_be_are_refused_and_change_nothing() {
    let mut volume = small("refused-policies");
    let f = put(&volume, "f", "#!/bin/sh\necho ran\n", 0o755);
    fs::create_dir(volume.path("data")).expect("mkdir");
    std::os::unix::fs::symlink("/etc", volume.path("link")).expect("symlink");
    let policy = |options: &[&str]| run(brine_command(&["exec", "policy"]).arg(&f).args(options));
    policy(&["--memory", "64M"]).expect_success();
    let before = policy(&[]).expect_success().stdout;
    for (options, code, line) in [
        (&["--read", "/etc"][..], exit::REFUSED, "not a path of the volume"),
        (&["--read", "../../../etc"], exit::REFUSED, "not a path of the volume"),
        (&["--read", "../link"], exit::REFUSED, "neither a file nor a directory"),
        (&["--read", "../link/passwd"], exit::REFUSED, "reached through a symbolic link"),
        (&["--write", "../nothing"], exit::REFUSED, "does not exist"),
        (&["--read", ".."], exit::REFUSED, "the root of the volume cannot be granted"),
        (&["--read", "../.brine"], exit::REFUSED, "brine"),
        (&["--read", "../data", "--write", "../data"], exit::REFUSED, "both --read and --write"),
        (&["--stage", "on"], exit::REFUSED, "nothing to stage"),
        (&["--call", "nothing"], exit::REFUSED, "does not exist"),
        (&["--root", "nothing"], exit::REFUSED, "does not exist"),
        (&["--memory", "1M"], exit::REFUSED, "at least"),
        (&["--memory", "much"], exit::USAGE, "--memory"),
        (&["--timeout", "0s"], exit::USAGE, "--timeout"),
        (&["--timeout", "200h"], exit::REFUSED, "at most 7 days"),
        (&["--concurrency", "0"], exit::USAGE, "--concurrency"),
        (&["--env", "LD_PRELOAD"], exit::REFUSED, "LD_PRELOAD"),
        (&["--net", "some"], exit::USAGE, "--net"),
        (&["--sideways", "1"], exit::USAGE, "--sideways"),
    ] {
        let finished = policy(options).with_code(code);
        assert!(finished.stderr.contains(line), "{line:?}: {finished}");
    }
    assert_eq!(policy(&[]).expect_success().stdout, before, "nothing was changed");
    // Whoever does not own it does not set it.
    run(brine_command(&["exec", "policy"]).arg(&f).args(["--memory", "32M"]).uid(STRANGER).gid(STRANGER))
        .expect_refusal()
        .says(&["only its owner"]);
    // What was granted and is gone since.
    policy(&["--read", "../data"]).expect_success();
    fs::remove_dir(volume.path("data")).expect("rmdir");
    for mut start in [by_shell(&f), by_command(&f)] {
        refused(&volume, &run(&mut start), 127, "not-found", "data");
    }
    volume.umount();
}

#[test]
fn limits_that_cannot_be_had_are_refused_and_those_that_are_promised_out_are_waited_for() {
    let mut volume = small("refused-limits");
    let f = put(&volume, "f", "#!/bin/sh\necho ready; read x\n", 0o755);
    let policy = |options: &[&str]| run(brine_command(&["exec", "policy"]).arg(&f).args(options)).expect_success();
    for options in [["--memory", "100T"], ["--scratch", "100T"], ["--pids", "1000000"]] {
        policy(&["--reset"]);
        policy(&options);
        for mut start in [by_shell(&f), by_command(&f)] {
            refused(&volume, &run(&mut start), 126, "refused", "larger than what all runs may use on this machine");
        }
    }
    // One that has all there is, and one that waits for it: it begins when the first has ended.
    policy(&["--reset"]);
    policy(&["--pids", "14336", "--concurrency", "2"]);
    let begin = || by_shell(&f).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
    let active = || {
        let text = run(brine_command(&["exec", "ps", "--json", "--at"]).arg(volume.mnt())).expect_success().stdout;
        serde_json::from_str::<Value>(&text).expect("JSON").as_array().expect("an array").len()
    };
    let mut first = begin();
    assert!(wait_until(Duration::from_secs(20), || active() == 1), "the first is asked for");
    let second = begin();
    assert!(wait_until(Duration::from_secs(20), || active() == 2), "the second waits");
    // A third is more than the function's own bound, and is not waited for.
    for mut start in [by_shell(&f), by_command(&f)] {
        let finished = run(&mut start).with_code(126);
        assert!(finished.stderr.contains("no room for this run") && finished.stderr.contains("--concurrency"));
        assert!(log(&volume).iter().any(|row| row["cause"] == "refused" && row["exit_code"] == 126));
    }
    drop(first.stdin.take());
    assert_eq!(first.wait_with_output().expect("wait").stdout, b"ready\n");
    assert_eq!(second.wait_with_output().expect("wait").stdout, b"ready\n");
    assert!(wait_until(Duration::from_secs(10), || litter(&volume) == (0, 0)), "{:?}", litter(&volume));
    volume.umount();
}
