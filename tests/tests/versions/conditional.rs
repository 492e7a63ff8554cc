//! Content that is written as a whole, and only over the version that it was made from.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use brine_tests::run;
use brine_tests::sys::set_xattr;
use brine_tests::volume::{brine_command, wait_until};
use serde_json::Value;

use super::small;

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
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        // As an interrupt of a pipeline does: its signal and the end of the input are there when it looks next.
        std::io::Write::write_all(child.stdin.as_mut().expect("a pipe"), b"cut sh").expect("write");
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("kill");
        nix::sys::signal::kill(pid, number).expect("kill");
        drop(child.stdin.take());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).expect("kill");
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
