//! Programs in `exec/`, run as any program is: by shells, make, xargs, find and other programs.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use brine_tests::command::run_for;
use brine_tests::function::{call, function, policy, put, small};
use brine_tests::volume::{brine_command, wait_until};
use brine_tests::{Builder, TestVolume, program, run};
use serde_json::Value;

/// A user without rights or files of its own.
const STRANGER: u32 = 43_211;

fn log(volume: &TestVolume) -> Vec<Value> {
    let mut command = brine_command(&["exec", "log", "--json", "-n", "1000", "--at"]);
    let text = run(command.arg(volume.mnt())).expect_success().stdout;
    serde_json::from_str::<Value>(&text).expect("JSON").as_array().expect("an array").clone()
}

#[test]
fn running_a_file_runs_it_in_a_sandbox_and_reading_it_reads_the_program() {
    let mut volume = small("exec-first");
    let hello = function(&volume, "hello", "echo \"hello $1\"; echo oops >&2; ls / >/dev/null; exit 3");
    let body = fs::read_to_string(&hello).expect("read");
    let finished = call(&hello, &["world"]).with_code(3);
    assert_eq!((&*finished.stdout, &*finished.stderr), ("hello world\n", "oops\n"));
    assert_eq!(fs::read_to_string(&hello).expect("read"), body, "the program, not the interpreter line");

    // It is in a sandbox: nothing of this test's files, nothing of the volume, no network, no other process.
    let secret = volume.root().join("secret");
    fs::write(&secret, "x").expect("write");
    fs::write(volume.path("data"), "x").expect("write");
    let look = function(
        &volume,
        "look",
        &format!(
            "for f in {} {} /etc/shadow; do [ -e $f ] && echo $f; done; ls /proc | grep -c '^[0-9]'; \
             grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status",
            secret.display(),
            volume.path("data").display()
        ),
    );
    let seen = call(&look, &[]).expect_success().stdout;
    let lines: Vec<&str> = seen.lines().collect();
    assert!(lines[0].parse::<u32>().is_ok_and(|count| count < 8), "only its own processes: {seen}");
    assert_eq!(&lines[1..], ["CapEff:\t0000000000000000", "NoNewPrivs:\t1"], "{seen}");

    let records = log(&volume);
    assert_eq!(records.len(), 2);
    assert_eq!((&records[1]["function"], &records[1]["cause"]), (&"/exec/hello".into(), &"exited".into()));
    assert_eq!((&records[1]["program_code"], &records[1]["exit_code"]), (&3.into(), &3.into()));
    let id = records[0]["id"].as_str().expect("id");
    let status = fs::read_to_string(volume.path(&format!(".brine/runs/{id}/status.json"))).expect("status.json");
    assert_eq!(serde_json::from_str::<Value>(&status).expect("JSON")["id"], id);
    let usage = fs::read_to_string(volume.path(&format!(".brine/runs/{id}/usage.json"))).expect("usage.json");
    assert!(serde_json::from_str::<Value>(&usage).expect("JSON")["usage"]["wall_us"].as_u64().is_some_and(|us| us > 0));
    volume.remount();
    assert_eq!(log(&volume).len(), 2, "records are rows of the volume");
    call(&hello, &["again"]).with_code(3);
    volume.umount();
}

#[test]
fn binaries_and_scripts_of_any_kind_run() {
    let mut volume = small("exec-kinds");
    fs::copy("/bin/true", volume.path("exec/true")).expect("copy");
    call(&volume.path("exec/true"), &[]).expect_success();
    fs::copy("/bin/cat", volume.path("exec/cat")).expect("copy");
    let mut cat =
        Command::new(volume.path("exec/cat")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
    let bytes = brine_tests::content(7, 300_000);
    let mut input = cat.stdin.take().expect("stdin");
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let mut back = Vec::new();
    cat.stdout.take().expect("stdout").read_to_end(&mut back).expect("read");
    writer.join().expect("join").expect("write");
    assert!(cat.wait().expect("wait").success() && back == bytes, "bytes come through as they are");

    // A script whose interpreter is a function, a link to a function, a function in a directory below.
    let words = function(&volume, "words", "shift; echo \"$#\"");
    put(&volume.path("outer"), &format!("#!{}\n", words.display()));
    assert_eq!(call(&volume.path("outer"), &["a", "b"]).expect_success().stdout, "2\n");
    symlink(&words, volume.path("link")).expect("symlink");
    assert_eq!(call(&volume.path("link"), &["a", "b"]).expect_success().stdout, "1\n");
    fs::create_dir(volume.path("exec/below")).expect("mkdir");
    let below = function(&volume, "below/f", "echo below");
    assert_eq!(call(&below, &[]).expect_success().stdout, "below\n");

    // What is no program is refused as anywhere.
    fs::write(volume.path("exec/empty"), "").expect("write");
    fs::set_permissions(volume.path("exec/empty"), fs::Permissions::from_mode(0o755)).expect("chmod");
    let refused = run(Command::new(program("sh")).args(["-c", "\"$0\""]).arg(volume.path("exec/empty"))).with_code(126);
    assert!(refused.stderr.contains("brine: ") && refused.stderr.contains("empty"), "{refused}");
    put(&volume.path("exec/lost"), "#!/no/such/interpreter\n");
    let lost = run(Command::new(program("sh")).args(["-c", "\"$0\""]).arg(volume.path("exec/lost"))).with_code(127);
    assert!(lost.stderr.contains("/no/such/interpreter"), "{lost}");
    fs::write(volume.path("exec/plain"), "#!/bin/sh\n").expect("write");
    run(Command::new(program("sh")).args(["-c", "\"$0\""]).arg(volume.path("exec/plain"))).with_code(126);
    volume.umount();
}

#[test]
fn shells_make_xargs_find_and_other_programs_run_functions() {
    let mut volume = small("exec-callers");
    let add = function(&volume, "add", "s=0; for n in \"$@\"; do s=$((s + n)); done; echo $s");
    let shell = |script: &str| {
        run(Command::new(program("sh")).args(["-c", script, "sh"]).arg(&add).current_dir(volume.mnt()))
            .expect_success()
            .stdout
    };
    assert_eq!(shell("\"$1\" 1 2 | tr 3 x"), "x\n");
    assert_eq!(shell("exec/add 1 2 3"), "6\n", "by a relative path");
    assert_eq!(shell("PATH=$PWD/exec:$PATH; add 4 5"), "9\n", "found on the PATH");
    assert_eq!(shell("seq 1 20 | xargs -n 5 -P 4 \"$1\" | sort -n | paste -sd' '"), "15 40 65 90\n");
    assert_eq!(shell("x=$(\"$1\" 20 22); echo \"got $x\""), "got 42\n");
    assert_eq!(
        shell("\"$1\" 1 1 > /tmp/brine-exec-out.$$; cat /tmp/brine-exec-out.$$; rm /tmp/brine-exec-out.$$"),
        "2\n"
    );
    assert_eq!(shell("\"$1\" 2 3 > out; cat out"), "5\n", "into a file of the same mount");
    assert_eq!(shell("\"$1\" 1 & \"$1\" 2 & wait; echo done | tail -1").lines().last(), Some("done"));
    let name = function(&volume, "name", "for f in \"$@\"; do cat \"$f\"; done");
    fs::create_dir(volume.path("in")).expect("mkdir");
    for number in 0..5 {
        fs::write(volume.path(&format!("in/{number}")), format!("{number}\n")).expect("write");
    }
    let mut find = Command::new(program("find"));
    find.arg(volume.path("in")).args(["-type", "f", "-exec"]).arg(&name).args(["{}", "+"]);
    let found = run(&mut find).expect_success().stdout;
    assert_eq!(found.lines().count(), 5, "arguments that name files grant reading them: {found}");
    let beside = run(Command::new(&name).args(["../in/1", "2"]).current_dir(volume.path("in"))).expect_success().stdout;
    assert_eq!(beside, "1\n2\n", "by relative paths");
    fs::write(volume.root().join("Makefile"), format!("all:\n\t@{} 1 2 3\n", add.display())).expect("write");
    assert_eq!(
        run(Command::new(program("make")).arg("-C").arg(volume.root()).arg("-s")).expect_success().stdout,
        "6\n"
    );
    let python =
        format!("import subprocess; print(subprocess.check_output(['{}', '7', '8']).decode(), end='')", add.display());
    assert_eq!(run(Command::new(program("python3")).args(["-c", &python])).expect_success().stdout, "15\n");
    volume.umount();
}

#[test]
fn arguments_environment_and_ids_are_what_they_should_be() {
    let mut volume = small("exec-args");
    let show = function(&volume, "show", "for a in \"$@\"; do printf '%s\\0' \"$a\"; done");
    let odd = ["", " ", "a b", "*", "\n\n", "--", "-n", "\u{e4}\u{20ac}", "'\"\\", &"x".repeat(100_000)];
    let out = call(&show, &odd).expect_success().stdout;
    assert_eq!(out.split_terminator('\0').collect::<Vec<_>>(), odd);

    let env = function(&volume, "env", "env | sort");
    policy(&env, &["--env", "WANTED"]);
    let mut command = Command::new(&env);
    command.env_clear().env("WANTED", "1").env("SECRET", "s").env("LD_PRELOAD", "/x.so").env("LC_ALL", "C.UTF-8");
    let seen = run(command.env("PATH", "/evil")).expect_success().stdout;
    assert!(seen.contains("WANTED=1\n") && seen.contains("LC_ALL=C.UTF-8\n") && seen.contains("HOME=/tmp\n"), "{seen}");
    assert!(!seen.contains("SECRET") && !seen.contains("LD_PRELOAD") && !seen.contains("evil"), "{seen}");

    let id = function(&volume, "id", "id -u; id -g; umask; pwd");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "umask 027; exec \"$0\""]).arg(&id).uid(STRANGER).gid(STRANGER + 1).current_dir("/");
    let seen = run(&mut command).expect_success().stdout;
    assert_eq!(seen, format!("{STRANGER}\n{}\n0027\n/\n", STRANGER + 1));
    let record = &log(&volume)[0];
    assert_eq!((&record["uid"], &record["gid"]), (&STRANGER.into(), &(STRANGER + 1).into()));
    // A stranger sees his own runs and no others.
    let mut own = brine_command(&["exec", "log", "--json", "--at"]);
    let own = run(own.arg(volume.mnt()).uid(STRANGER).gid(STRANGER)).expect_success().stdout;
    assert_eq!(serde_json::from_str::<Value>(&own).expect("JSON").as_array().map(Vec::len), Some(1));
    volume.umount();
}

#[test]
fn only_what_was_granted_exists_for_a_run() {
    let mut volume = small("exec-scope");
    for dir in ["in", "out", "other"] {
        fs::create_dir(volume.path(dir)).expect("mkdir");
        fs::write(volume.path(&format!("{dir}/file")), dir).expect("write");
    }
    let mnt = volume.mnt().display().to_string();
    let work = function(
        &volume,
        "work",
        &format!(
            "cd {mnt} || exit 9; ls; cat in/file; echo new > out/new || exit 8; echo x > in/new 2>/dev/null && exit 7; \
             [ -e other ] && exit 6; [ -e .brine ] && exit 5; exit 0"
        ),
    );
    call(&work, &[]).with_code(8);
    policy(&work, &["--read", "../in", "--write", "../out"]);
    let seen = call(&work, &[]).expect_success().stdout;
    assert_eq!(seen, "exec\nin\nout\nin");
    assert_eq!(fs::read_to_string(volume.path("out/new")).expect("it was written"), "new\n");
    let record = &log(&volume)[0];
    assert_eq!(record["scope"].as_array().map(Vec::len), Some(2), "{record}");
    assert_eq!(record["inputs"][0]["path"], "/in");

    // An argument grants one file, reading only; the policy can say no.
    let cat = function(&volume, "cat", "cat \"$1\" && ls \"$(dirname \"$1\")\"; echo x >> \"$1\"");
    let file = volume.path("other/file").display().to_string();
    let seen = call(&cat, &[&file]).expect_refusal();
    assert!(seen.stdout.starts_with("otherfile\n"), "its content, and nothing beside it: {seen}");
    policy(&cat, &["--args", "none"]);
    let seen = call(&cat, &[&file]).expect_refusal();
    assert!(seen.stderr.contains("not granted") && seen.stderr.contains("other/file"), "{seen}");
    assert_eq!(fs::read_to_string(volume.path("other/file")).expect("read"), "other", "nothing was appended");

    // Rights are the caller's and the policy's in common: a policy lends nothing.
    fs::set_permissions(volume.path("other"), fs::Permissions::from_mode(0o700)).expect("chmod");
    policy(&cat, &["--read", "../other", "--args", "read"]);
    let mut command = Command::new(&cat);
    let finished = run(command.arg(&file).uid(STRANGER).gid(STRANGER)).expect_refusal();
    assert!(!finished.stdout.contains("other"), "{finished}");
    volume.umount();
}

#[test]
fn exit_codes_signals_and_time_are_mirrored() {
    let mut volume = small("exec-ends");
    for code in [0, 1, 42, 124, 125, 126, 127, 128, 255] {
        let f = function(&volume, "code", &format!("exit {code}"));
        call(&f, &[]).with_code(code);
    }
    let shot = function(&volume, "shot", "kill -SEGV $$");
    let status = Command::new(&shot).status().expect("run");
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");

    let slow = function(&volume, "slow", "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done");
    let mut child = Command::new(&slow).stdout(Stdio::piped()).spawn().expect("start");
    let mut out = child.stdout.take().expect("stdout");
    let mut ready = [0; 6];
    out.read_exact(&mut ready).expect("it starts");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .expect("kill");
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("read");
    assert_eq!((rest.as_str(), child.wait().expect("wait").code()), ("caught\n", Some(5)), "the signal came through");

    policy(&slow, &["--timeout", "300ms"]);
    let late = run_for(&mut Command::new(&slow), Duration::from_secs(60)).with_code(124);
    assert!(late.stderr.contains("brine: "), "{late}");
    let greedy = function(&volume, "greedy", "x=x; while :; do x=$x$x; done");
    policy(&greedy, &["--memory", "32M"]);
    let status = Command::new(&greedy).stderr(Stdio::null()).status().expect("run");
    assert_eq!(log(&volume)[0]["cause"], "memory", "{status}");

    // The launcher's death is the run's.
    let stay = function(&volume, "stay", "echo ready; while :; do sleep 0.05; done");
    let mut child = Command::new(&stay).stdout(Stdio::piped()).spawn().expect("start");
    child.stdout.as_mut().expect("stdout").read_exact(&mut ready).expect("it starts");
    child.kill().expect("kill");
    child.wait().expect("wait");
    let ended = || log(&volume)[0]["cause"] != "running";
    assert!(wait_until(Duration::from_secs(30), ended), "{}", log(&volume)[0]);
    // `brine exec kill` ends one, too.
    let mut child = Command::new(&stay).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start");
    child.stdout.as_mut().expect("stdout").read_exact(&mut ready).expect("it starts");
    let running = run(brine_command(&["exec", "ps", "--json", "--at"]).arg(volume.mnt())).expect_success().stdout;
    let running: Value = serde_json::from_str(&running).expect("JSON");
    let id = running[0]["id"].as_str().expect("one run").to_owned();
    run(brine_command(&["exec", "kill", &id[..12], "--at"]).arg(volume.mnt())).expect_success();
    child.wait().expect("wait");
    assert_eq!(log(&volume)[0]["cause"], "killed");
    volume.umount();
}

#[test]
fn a_program_that_runs_is_not_overwritten_and_can_be_replaced() {
    let mut volume = small("exec-busy");
    let f = function(&volume, "f", "echo ready; read x; echo old");
    let mut child = Command::new(&f).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
    let mut out = child.stdout.take().expect("stdout");
    let mut ready = [0; 6];
    out.read_exact(&mut ready).expect("it starts");
    let busy = fs::write(&f, "#!/bin/sh\necho new\n").expect_err("text file busy");
    assert_eq!(busy.raw_os_error(), Some(libc::ETXTBSY));
    put(&volume.path("exec/f.new"), "#!/bin/sh\necho new\n");
    fs::rename(volume.path("exec/f.new"), &f).expect("replacing the name works");
    assert_eq!(call(&f, &[]).expect_success().stdout, "new\n");
    drop(child.stdin.take());
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "old\n", "the run kept its version");
    child.wait().expect("wait");
    fs::write(&f, "#!/bin/sh\necho newer\n").expect("nothing runs any more");
    assert_eq!(call(&f, &[]).expect_success().stdout, "newer\n");
    let open = fs::File::options().write(true).open(&f).expect("open");
    assert_eq!(Command::new(&f).status().expect_err("being written").raw_os_error(), Some(libc::ETXTBSY));
    drop(open);
    volume.umount();
}

#[test]
fn tickets_are_no_use_to_anybody_else() {
    let mut volume = small("exec-tickets");
    function(&volume, "f", "echo ran");
    let launcher = volume.path(".brine/launcher");
    for ticket in ["", "0123456789abcdef0123456789abcdef", "nonsense"] {
        let mut command = Command::new(&launcher);
        let finished = run(command.arg(ticket).arg(volume.path("exec/f"))).with_code(126);
        assert!(finished.stderr.contains("brine: ") && !finished.stdout.contains("ran"), "{finished}");
    }
    assert!(log(&volume).iter().all(|record| record["cause"] == "refused"), "and recorded");
    // More records than are told at a time come one after the other, the newest first, and as many as are asked for.
    for _ in 0..450 {
        Command::new(&launcher).args(["nonsense", "f"]).stderr(Stdio::null()).status().expect("run");
    }
    let rows = log(&volume);
    assert_eq!(rows.len(), 453);
    let ids: std::collections::HashSet<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
    assert_eq!(ids.len(), rows.len(), "each once");
    assert!(rows.is_sorted_by_key(|row| std::cmp::Reverse(row["started_ns"].as_i64())));
    for many in [1, 200, 201, 450] {
        let count = many.to_string();
        let told = run(brine_command(&["exec", "log", "-n", &count, "--at"]).arg(volume.mnt())).expect_success().stdout;
        assert_eq!(told.lines().count(), many);
    }
    volume.umount();
}

#[test]
fn what_a_killed_daemon_left_is_recorded_as_lost() {
    let mut volume = small("exec-lost");
    let f = function(&volume, "f", "echo ready; sleep 600");
    let mut child = Command::new(&f).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
    let mut ready = [0; 6];
    child.stdout.as_mut().expect("stdout").read_exact(&mut ready).expect("it starts");
    run(brine_command(&["sync"]).arg(volume.mnt())).expect_success();
    volume.kill_daemon();
    assert_eq!(child.wait().expect("wait").code(), Some(125), "its caller is told");
    volume.detach();
    volume.mount();
    assert_eq!(log(&volume)[0]["cause"], "lost");
    volume.umount();
}

#[test]
fn functions_invoke_the_functions_they_may_and_no_others() {
    let mut volume = small("exec-nested");
    let inner = function(&volume, "inner", "echo \"inner $1\"; cat \"$2\" 2>/dev/null; exit 5");
    let other = function(&volume, "other", "echo other");
    let (data, more) = (volume.path("data"), volume.path("more"));
    fs::write(&data, "data\n").expect("write");
    fs::write(&more, "more\n").expect("write");
    let body = format!(
        "{0} a {1}; echo code $?; {0} b {2}; {3} 2>/dev/null || echo none",
        inner.display(),
        data.display(),
        more.display(),
        other.display()
    );
    let outer = function(&volume, "outer", &body);
    let argument = data.display().to_string();
    let alone = call(&outer, &[&argument]).expect_success();
    assert!(alone.stdout.contains("code 127\n") && !alone.stdout.contains("inner"), "nothing by default: {alone}");
    policy(&outer, &["--call", "inner"]);
    let finished = call(&outer, &[&argument]).expect_success();
    // The second file is not the outer run's, so it is not the inner one's.
    assert_eq!(finished.stdout, "inner a\ndata\ncode 5\ninner b\nnone\n", "{finished}");
    let records = log(&volume);
    let outermost = records.iter().find(|record| record["function"] == "/exec/outer").expect("a record");
    let nested: Vec<&Value> = records.iter().filter(|record| record["parent"] == outermost["id"]).collect();
    assert_eq!(nested.len(), 2, "{records:?}");
    assert!(nested.iter().all(|record| record["function"] == "/exec/inner"));

    // Two that invoke each other come to an end.
    let (ping, pong) = (volume.path("exec/ping"), volume.path("exec/pong"));
    function(&volume, "ping", &format!("echo level; {}", pong.display()));
    function(&volume, "pong", &format!("echo level; {}", ping.display()));
    policy(&ping, &["--call", "pong", "--memory", "16M", "--scratch", "1M"]);
    policy(&pong, &["--call", "ping", "--memory", "16M", "--scratch", "1M"]);
    let deep = call(&ping, &[]).with_code(126);
    assert_eq!(deep.stdout.lines().count(), 5, "{deep}");
    assert!(deep.stderr.contains("levels deep"), "{deep}");
    volume.umount();
}

#[test]
fn a_spawner_that_is_killed_is_replaced() {
    let mut volume = small("exec-spawner");
    let f = function(&volume, "f", "echo ran");
    for _ in 0..4 {
        call(&f, &[]).expect_success();
    }
    let spawner = volume.status()["exec"]["spawner_pid"].as_i64().expect("a spawner") as i32;
    let process = brine_tests::volume::Daemon::of(spawner).expect("it runs");
    process.kill();
    assert!(process.wait_gone(Duration::from_secs(20)));
    // Its sandboxes die with it, those that wait for a run too.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(call(&f, &[]).expect_success().stdout, "ran\n");
    assert_ne!(volume.status()["exec"]["spawner_pid"].as_i64(), Some(i64::from(spawner)));
    volume.umount();
}

#[test]
fn functions_run_again_when_the_supervisor_has_brought_the_mount_back() {
    let builder = Builder::new("exec-supervised").directories(2).geometry(1, 1).option("allow_other");
    let mut volume = builder.supervised().mount();
    let f = function(&volume, "f", "echo ran");
    call(&f, &[]).expect_success();
    run(brine_command(&["sync"]).arg(volume.mnt())).expect_success();
    // The kernel knows the root by now, and would answer for a dead daemon.
    for _ in 0..3 {
        fs::read_dir(volume.mnt()).expect("ls").for_each(drop);
        fs::metadata(volume.mnt()).expect("stat");
    }
    volume.kill_daemon();
    let runs = || Command::new(&f).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|end| end.success());
    assert!(wait_until(Duration::from_secs(60), runs), "the mount did not come back");
    volume.adopt();
    volume.umount();
}

#[test]
fn a_program_that_runs_is_not_restored_over() {
    let mut volume = small("exec-restore");
    let f = function(&volume, "f", "echo ready; read x; echo old");
    volume.sync();
    let log = run(brine_command(&["log", "--json"]).arg(&f)).expect_success().stdout;
    let log: Value = serde_json::from_str(&log).expect("JSON");
    let version = log["states"][0]["version"].as_u64().expect("a version");
    fs::write(&f, "#!/bin/sh\necho ready; read x; echo new\n").expect("write");
    volume.sync();
    let mut child = Command::new(&f).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
    let mut out = child.stdout.take().expect("stdout");
    let mut ready = [0; 6];
    out.read_exact(&mut ready).expect("it starts");
    let restore = || run(brine_command(&["restore"]).arg(format!("{}@{version}", f.display())));
    let write = || run(brine_command(&["write"]).arg(&f).stdin(Stdio::null()));
    let rewind = || run(brine_command(&["rewind"]).arg(volume.path("exec")).args(["--to", "@1"]));
    let busy = restore();
    assert!(busy.code() == Some(3) && busy.stderr.contains("being run"), "{busy}");
    let busy = write();
    assert!(!busy.success() && busy.stderr.contains("usy"), "{busy}");
    assert_eq!(rewind().code(), Some(5), "there is no such state");
    drop(child.stdin.take());
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "new\n", "the run kept its version");
    child.wait().expect("wait");
    let free = || restore().success();
    assert!(wait_until(Duration::from_secs(20), free), "{}", restore());
    assert!(fs::read_to_string(&f).expect("read").contains("echo old"));
    volume.umount();
}

#[test]
fn what_a_run_began_with_is_kept_while_it_runs() {
    let mut volume = small("exec-kept");
    let mnt = volume.mnt().display().to_string();
    let f = function(&volume, "f", "echo ready; read x; cat \"$1\"");
    let input = volume.path("input");
    fs::write(&input, "first\n").expect("write");
    volume.brine(&["retention", "set", "--all", "0", "--minutely", "0", "--hourly", "0", &mnt]).expect_success();
    let mut child = Command::new(&f).arg(&input).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
    let mut out = child.stdout.take().expect("stdout");
    let mut ready = [0; 6];
    out.read_exact(&mut ready).expect("it starts");
    let version = log(&volume)[0]["inputs"][0]["version"].as_u64().expect("a version");
    for text in ["second\n", "third\n"] {
        fs::write(&input, text).expect("write");
        volume.sync();
        volume.brine(&["gc", &mnt]).expect_success();
    }
    let then = || run(brine_command(&["cat"]).arg(format!("{}@{version}", input.display())));
    assert_eq!(then().expect_success().stdout, "first\n");
    drop(child.stdin.take());
    child.wait().expect("wait");
    // The kernel may know the state that was shown until it is unmounted.
    volume.remount();
    volume.brine(&["gc", &mnt]).expect_success();
    assert_eq!(then().code(), Some(5));
    volume.umount();
}
