//! The exec directory as a place: its border, who may say what its programs may do, and images to run them in.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use brine_tests::command::{errno, exit};
use brine_tests::volume::{brine_command, wait_until};
use brine_tests::{Builder, Finished, TestVolume, environment, program, run};
use serde_json::Value;

/// A user without rights or files of its own.
const STRANGER: u32 = 43_210;
/// The user `nobody`: fusermount3 mounts for users that have a name.
const NOBODY: u32 = 65_534;

fn small(name: &str) -> TestVolume {
    Builder::new(name).directories(2).geometry(1, 1).option("allow_other").mount()
}

fn put(path: &Path, content: &str, mode: u32) {
    fs::write(path, content).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn policy(function: &Path, options: &[&str]) -> Finished {
    run(brine_command(&["exec", "policy"]).arg(function).args(options))
}

fn shown(function: &Path) -> Value {
    let text = policy(function, &["--json"]).expect_success().stdout;
    serde_json::from_str(&text).expect("JSON")
}

fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, i32> {
    brine_tests::sys::get_xattr(path, name).map_err(|error| error.raw_os_error().unwrap_or_default())
}

#[test]
fn the_border_of_exec_is_crossed_by_copies_only() {
    let mut volume = small("exec-border");
    let exec = volume.path("exec");
    assert_eq!(fs::metadata(&exec).expect("made when mounted").permissions().mode() & 0o777, 0o755);
    put(&volume.path("program"), "#!/bin/sh\n", 0o755);
    put(&volume.path("text"), "text\n", 0o644);
    assert_eq!(errno(fs::rename(volume.path("program"), exec.join("program"))), libc::EXDEV);
    assert_eq!(errno(fs::hard_link(volume.path("program"), exec.join("program"))), libc::EXDEV);
    assert_eq!(errno(fs::hard_link(volume.path("text"), exec.join("text"))), libc::EXDEV);
    assert_eq!(errno(fs::rename(&exec, volume.path("other"))), libc::EXDEV);
    run(Command::new(program("mv")).arg(volume.path("program")).arg(&exec)).expect_success();
    fs::rename(volume.path("text"), exec.join("text")).expect("a file that nobody can run is moved");
    fs::hard_link(exec.join("text"), exec.join("again")).expect("within one side");
    assert_eq!(errno(fs::rename(exec.join("again"), volume.path("again"))), libc::EXDEV, "its other name stays");
    symlink("exec/program", volume.path("way")).expect("links lead anywhere");
    assert_eq!(fs::read_to_string(volume.path("way")).expect("read"), "#!/bin/sh\n", "reading shows the program");
    volume.remount();
    assert_eq!(errno(fs::rename(exec.join("program"), volume.path("program"))), libc::EXDEV, "after mounting again");
    volume.umount();
}

#[test]
fn policies_are_set_by_the_owner_and_kept_by_name() {
    let mut volume = small("exec-policy");
    let function = volume.path("exec/report");
    fs::create_dir(volume.path("data")).expect("mkdir");
    put(&function, "#!/bin/sh\n", 0o755);
    assert_eq!(shown(&function)["set"], false);
    let data = volume.path("data").display().to_string();
    policy(&function, &["--read", &data, "--memory", "64M", "--timeout", "5s", "--env", "TOKEN"]).expect_success();
    let set = shown(&function);
    assert_eq!(set["policy"]["read"][0], "/data");
    assert_eq!(set["policy"]["memory_bytes"], 64 << 20);

    // An editor writes a new file and renames it over the old one.
    put(&volume.path("exec/report.new"), "#!/bin/sh\nexit 1\n", 0o755);
    fs::rename(volume.path("exec/report.new"), &function).expect("rename");
    assert_eq!(shown(&function)["policy"]["read"][0], "/data");
    volume.remount();
    assert_eq!(shown(&function)["policy"]["timeout_ms"], 5000, "a policy is a row of the volume");

    // Readable as an attribute, and never set by it.
    let value = xattr(&function, "user.brine.policy").expect("the attribute");
    assert!(String::from_utf8_lossy(&value).contains("\"/data\""));
    let set = brine_tests::sys::set_xattr(&function, "user.brine.policy", b"{\"net_host\":true}", 0);
    assert_eq!(errno(set), libc::EPERM);

    for bad in [
        &["--read", "/etc"][..],
        &["--read", "../../etc"],
        &["--read", "/proc/self"],
        &["--read", &data, "--write", &data],
        &["--env", "LD_PRELOAD"],
        &["--memory", "1K"],
        &["--read", "missing"],
    ] {
        policy(&function, bad).with_code(exit::REFUSED).expect_refusal();
    }
    policy(&volume.path("data"), &["--memory", "64M"]).with_code(exit::REFUSED).expect_refusal();
    policy(&volume.path("exec/none"), &["--memory", "64M"]).with_code(exit::NOT_FOUND).expect_refusal();
    assert_eq!(shown(&function)["policy"]["memory_bytes"], 64 << 20, "what was refused changed nothing");
    policy(&function, &["--reset"]).expect_success();
    assert_eq!(shown(&function)["set"], false);
    assert_eq!(xattr(&function, "user.brine.policy"), Err(libc::ENODATA));
    volume.umount();
}

#[test]
fn a_policy_is_suspended_when_somebody_else_changes_the_program() {
    let mut volume = small("exec-suspend");
    let function = volume.path("exec/shared");
    fs::create_dir(volume.path("data")).expect("mkdir");
    put(&function, "#!/bin/sh\n", 0o777);
    fs::set_permissions(volume.path("exec"), fs::Permissions::from_mode(0o777)).expect("chmod");
    let as_stranger = |script: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).arg("sh").arg(&function).uid(STRANGER).gid(STRANGER);
        run(&mut command)
    };
    let mut other = brine_command(&["exec", "policy"]);
    other.arg(&function).args(["--net", "host"]).uid(STRANGER).gid(STRANGER);
    run(&mut other).with_code(14).expect_refusal();

    policy(&function, &["--read", "../data"]).expect_success();
    fs::write(&function, "#!/bin/sh\n# by root, who set it\n").expect("write");
    assert_eq!(shown(&function)["policy"]["suspended_by"], Value::Null);
    as_stranger("echo >> \"$1\"").expect_success();
    assert_eq!(shown(&function)["policy"]["suspended_by"], STRANGER, "content was appended");
    policy(&function, &["--resume"]).expect_success();
    assert_eq!(shown(&function)["policy"]["suspended_by"], Value::Null);
    as_stranger("cp \"$1\" \"$1.x\" && mv -f \"$1.x\" \"$1\"").expect_success();
    assert_eq!(shown(&function)["policy"]["suspended_by"], STRANGER, "the name was given to another file");
    assert_eq!(fs::metadata(&function).expect("stat").uid(), STRANGER);
    volume.umount();
}

#[test]
fn a_policy_is_suspended_when_who_mounts_brings_another_program_back() {
    let mut volume = Builder::new("exec-restored").directories(2).geometry(1, 1).mount();
    let function = volume.path("exec/shared");
    put(&function, "#!/bin/sh\n# first\n", 0o755);
    put(&volume.path("exec/other"), "#!/bin/sh\n", 0o755);
    run(brine_command(&["snapshot", "create", "first"]).arg(volume.mnt())).expect_success();
    let change = || fs::write(&function, "#!/bin/sh\n# second\n").expect("write");
    let past = format!("{}@first", function.display());
    let restore: &[&str] = &["restore", &past];
    let exec = volume.path("exec").display().to_string();
    let rewind: &[&str] = &["rewind", &exec, "--to", "first"];
    change();
    policy(&function, &["--memory", "64M"]).expect_success();
    policy(&volume.path("exec/other"), &["--memory", "64M"]).expect_success();
    // By root, who set it.
    for way in [restore, rewind] {
        change();
        volume.brine(way).expect_success();
        assert_eq!(fs::read_to_string(&function).expect("read"), "#!/bin/sh\n# first\n");
        assert_eq!(shown(&function)["policy"]["suspended_by"], Value::Null, "{way:?}");
    }
    change();
    volume.umount();

    // By the user whose mount it is later, where users can mount.
    let for_all = fs::metadata("/dev/fuse").is_ok_and(|meta| meta.mode() & 0o006 == 0o006);
    if !for_all {
        eprintln!("/dev/fuse is not for all users here: mounting as one is not tried");
        return;
    }
    let stranger = |args: &[&str]| run(brine_command(args).uid(NOBODY).gid(NOBODY).env("HOME", volume.root()));
    let owner = format!("{NOBODY}:{NOBODY}");
    run(Command::new(program("chown")).args(["-R", &owner]).arg(volume.root())).expect_success();
    let (source, mnt) = (volume.dir(0).display().to_string(), volume.mnt().display().to_string());
    let options = [volume.base_options(), vec!["nosupervise".to_owned()]].concat().join(",");
    let suspended = |name: &str| {
        let path = volume.path(&format!("exec/{name}")).display().to_string();
        let text = stranger(&["exec", "policy", &path, "--json"]).expect_success().stdout;
        let shown: Value = serde_json::from_str(&text).expect("JSON");
        shown["policy"]["suspended_by"].clone()
    };
    stranger(&["mount", &source, &mnt, "-o", &options]).expect_success();
    assert_eq!(suspended("shared"), Value::Null);
    stranger(&["rewind", &exec, "--to", "first", "--dry-run"]).expect_success();
    assert_eq!(suspended("shared"), Value::Null, "a trial changes nothing");
    stranger(restore).expect_success();
    assert_eq!(suspended("shared"), NOBODY);
    // It stays so.
    stranger(&["umount", &mnt]).expect_success();
    stranger(&["mount", &source, &mnt, "-o", &options]).expect_success();
    assert_eq!(suspended("shared"), NOBODY);
    assert_eq!(suspended("other"), Value::Null, "only that of what was brought back");
    stranger(&["umount", &mnt]).expect_success();

    // A program that is removed, and brought back by a rewind.
    volume.mount();
    policy(&function, &["--resume"]).expect_success();
    fs::remove_file(volume.path("exec/other")).expect("remove");
    volume.umount();
    run(Command::new(program("chown")).args(["-R", &owner]).arg(volume.root())).expect_success();
    let stranger = |args: &[&str]| run(brine_command(args).uid(NOBODY).gid(NOBODY).env("HOME", volume.root()));
    stranger(&["mount", &source, &mnt, "-o", &options]).expect_success();
    stranger(rewind).expect_success();
    let other = volume.path("exec/other").display().to_string();
    let text = stranger(&["exec", "policy", &other, "--json"]).expect_success().stdout;
    let shown: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(shown["policy"]["suspended_by"], NOBODY, "{shown}");
    stranger(&["umount", &mnt]).expect_success();
}

#[test]
fn an_image_is_imported_as_a_plain_directory() {
    let mut volume = small("exec-image");
    let root = volume.root().join("image");
    fs::create_dir_all(root.join("bin")).expect("mkdir");
    put(&root.join("bin/tool"), "tool\n", 0o755);
    symlink("bin/tool", root.join("tool")).expect("symlink");
    let tar = volume.root().join("image.tar");
    run(Command::new(program("tar")).arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".")).expect_success();
    let import = |name: &str| run(brine_command(&["image", "import"]).arg(&tar).arg(volume.path(name)));
    import("one").expect_success();
    assert_eq!(fs::read_to_string(volume.path("one/tool")).expect("read"), "tool\n");
    assert_eq!(fs::metadata(volume.path("one/bin/tool")).expect("stat").permissions().mode() & 0o777, 0o755);
    import("one").with_code(exit::REFUSED).expect_refusal();
    let evil = volume.root().join("evil.tar");
    run(Command::new(program("tar")).arg("-cPf").arg(&evil).arg("-C").arg(root.join("bin")).arg("../tool"))
        .expect_success();
    run(brine_command(&["image", "import"]).arg(&evil).arg(volume.path("evil"))).with_code(exit::REFUSED);
    assert!(!volume.path("evil").exists());
    volume.umount();
}

#[test]
fn functions_run_on_a_read_only_mount_and_nothing_is_written() {
    let mut volume = small("exec-read-only");
    fs::create_dir(volume.path("out")).expect("mkdir");
    let f = volume.path("exec/f");
    put(&f, &format!("#!/bin/sh\necho x > {}/new || exit 5\n", volume.path("out").display()), 0o755);
    policy(&f, &["--write", "../out"]).expect_success();
    let staged = volume.path("exec/staged");
    fs::copy(&f, &staged).expect("copy");
    policy(&staged, &["--write", "../out", "--stage", "on"]).expect_success();
    volume.umount();
    volume.mount_with(&["ro,allow_other"]);
    let denied = run(&mut Command::new(&f)).with_code(5);
    assert!(denied.stderr.contains("Read-only file system"), "{denied}");
    let refused = run(&mut Command::new(&staged)).with_code(126);
    assert!(refused.stderr.contains("read-only"), "{refused}");
    assert!(policy(&f, &["--no-write"]).expect_refusal().stderr.contains("read-only"));
    let log = |volume: &TestVolume| {
        let mut command = brine_command(&["exec", "log", "--json", "--at"]);
        let text = run(command.arg(volume.mnt())).expect_success().stdout;
        serde_json::from_str::<Value>(&text).expect("JSON").as_array().expect("an array").clone()
    };
    let records = log(&volume);
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!((&records[1]["cause"], &records[1]["program_code"]), (&"exited".into(), &5.into()), "{records:?}");
    let id = records[1]["id"].as_str().expect("id");
    assert!(volume.path(&format!(".brine/runs/{id}/status.json")).exists());
    volume.umount();
    volume.mount();
    assert_eq!(log(&volume).len(), 0, "records of a read-only mount go with it");
    volume.umount();
}

#[test]
fn a_program_that_runs_is_not_written_however_long_its_new_content_was_awaited() {
    let mut volume = small("exec-write");
    let function = volume.path("exec/waits");
    let text = "#!/bin/sh\necho runs\nread line\necho \"$line\"\n";
    put(&function, text, 0o755);
    // It is run by nobody when the command looks first.
    let mut write = brine_command(&["write"]);
    let mut write = write.arg(&function).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
    let beside = || fs::read_dir(volume.path("exec")).expect("list").count() == 2;
    assert!(wait_until(std::time::Duration::from_secs(20), beside), "the new content, beside it");
    let mut child =
        Command::new(&function).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start the function");
    let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("read");
    assert_eq!(line, "runs\n");
    write.stdin.take().expect("a pipe").write_all(b"#!/bin/sh\necho other\n").expect("write");
    let refused = write.wait_with_output().expect("wait");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("is being run"), "{told}");
    assert_eq!(fs::read_to_string(&function).expect("read"), text);
    assert_eq!(fs::read_dir(volume.path("exec")).expect("list").count(), 1, "nothing is left beside it");
    child.stdin.take().expect("a pipe").write_all(b"the end\n").expect("write");
    line.clear();
    said.read_line(&mut line).expect("read");
    assert_eq!((line.as_str(), child.wait().expect("wait").success()), ("the end\n", true));

    let script = format!("echo '#!/bin/sh' | '{}' write '{}'", environment::brine().display(), function.display());
    run(Command::new("sh").args(["-c", &script])).expect_success();
    volume.umount();
}
