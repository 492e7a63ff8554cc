//! A run's credential: what it may ask for while it runs, and that it is of no use to anybody else, nor afterwards.

use std::fs;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use brine_tests::volume::brine_command;
use brine_tests::{Builder, TestVolume, run};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde_json::Value;

fn small(name: &str) -> TestVolume {
    let volume = Builder::new(name).directories(2).geometry(1, 1).option("allow_other").mount();
    for directory in ["vault", "other"] {
        fs::create_dir(volume.path(directory)).expect("mkdir");
        fs::write(volume.path(&format!("{directory}/file")), format!("in {directory}\n")).expect("write");
    }
    volume
}

/// A Python program in exec/ that has `ask(path)`, which returns a descriptor.
fn function(volume: &TestVolume, name: &str, body: &str) -> PathBuf {
    let path = volume.path("exec").join(name);
    let text = format!(
        r#"#!{python}
import errno, mmap, os, socket, struct, subprocess, sys
MNT = "{mnt}"
def ask(path):
    asked = socket.socket(socket.AF_UNIX)
    asked.connect(MNT + "/.brine/exec.sock")
    body = path.encode()
    asked.sendall(b"brx1" + struct.pack("<HHI", 8, 0, len(body)) + body)
    head, fds, _, _ = socket.recv_fds(asked, 12, 1)
    kind, _, left = struct.unpack("<HHI", head[4:])
    rest = b""
    while len(rest) < left:
        rest += asked.recv(left - len(rest))
    if kind != 9:
        raise PermissionError(rest[6:].decode())
    return fds[0]
def fails(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"
{body}
"#,
        // The system's: it exists in a sandbox.
        python = "/usr/bin/python3",
        mnt = volume.mnt().display()
    );
    fs::write(&path, text).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    path
}

fn policy(path: &Path, options: &[&str]) {
    run(brine_command(&["exec", "policy"]).arg(path).args(options)).expect_success();
}

fn log(volume: &TestVolume) -> Vec<Value> {
    let mut command = brine_command(&["exec", "log", "--json", "-n", "1000", "--at"]);
    let text = run(command.arg(volume.mnt())).expect_success().stdout;
    serde_json::from_str::<Value>(&text).expect("JSON").as_array().expect("an array").clone()
}

fn frame(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut out = b"brx1".to_vec();
    out.extend(kind.to_le_bytes());
    out.extend([0, 0]);
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(body);
    out
}

/// A descriptor that the program sent over its standard input.
fn received(socket: &UnixStream) -> OwnedFd {
    let mut byte = [0; 1];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).expect("recvmsg");
    let fds = message.cmsgs().expect("control messages").find_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    brine_tests::sys::own(fds.expect("a descriptor"))
}

/// A run whose standard input is a socket to this test.
fn with_socket(function: &Path) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let child = Command::new(function)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    (child, ours)
}

fn ended(child: Child) {
    let output = child.wait_with_output().expect("wait");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_run_opens_files_by_asking_and_only_those_it_was_granted() {
    let mut volume = small("credential-open");
    let body = r#"
fd = ask(MNT + "/vault/file")
print(os.pread(fd, 100, 0).decode(), end="")
print(os.path.exists(MNT + "/vault"), os.path.exists(MNT + "/other"))
for path in ["/other/file", "/vault/none", "/vault", "/vault/link", "/vault/../other/file", "/vault/secret"]:
    print(fails(lambda: ask(MNT + path)).replace(MNT, ""))
print(fails(lambda: ask("vault/file")))
print(fails(lambda: os.write(fd, b"x")))
print(fails(lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)) in ("EACCES", "ESTALE"))
print(fails(lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR)) in ("EACCES", "ESTALE", "EROFS"))
print(fails(lambda: mmap.mmap(fd, 5, mmap.MAP_SHARED, mmap.PROT_READ)))
print(fails(lambda: os.open("..", os.O_RDONLY, dir_fd=fd)))
print(os.listdir(MNT + "/.brine"))
"#;
    let open = function(&volume, "open", body);
    std::os::unix::fs::symlink("../other/file", volume.path("vault/link")).expect("symlink");
    fs::write(volume.path("vault/secret"), "secret").expect("write");
    fs::set_permissions(volume.path("vault/secret"), fs::Permissions::from_mode(0o600)).expect("chmod");
    policy(&open, &["--open", "../vault"]);
    let mut command = Command::new(&open);
    std::os::unix::process::CommandExt::uid(&mut command, 43_213);
    let said = run(&mut command).expect_success().stdout;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["in vault", "False False"], "{said}");
    for (line, path) in lines[2..8].iter().zip(["other/file", "vault/none", "vault", "vault/link", "other", "secret"]) {
        assert!(line.contains("not found") && line.contains(path), "{said}");
    }
    assert!(lines[8].contains("not found"), "{said}");
    assert_eq!(lines[9..14], ["EBADF", "True", "True", "ENODEV", "ENOTDIR"], "{said}");
    assert_eq!(lines[14], "['exec.sock']", "{said}");
    let record = &log(&volume)[0];
    assert_eq!(
        (record["inputs"].as_array().map(Vec::len), &record["inputs"][0]["path"]),
        (Some(1), &"/vault/file".into())
    );

    // Nothing is there to be asked by default.
    policy(&open, &["--no-open"]);
    let said = run(&mut command).expect_refusal();
    assert!(said.stderr.contains("FileNotFoundError"), "{said}");
    volume.umount();
}

#[test]
fn files_are_opened_as_access_control_lists_say() {
    const USER: u32 = 43_214;
    let mut volume = small("credential-acl");
    let body = r#"
for path in sys.argv[1:]:
    print(path, fails(lambda: os.pread(ask(MNT + "/vault/" + path), 100, 0)).startswith("done"))
"#;
    let open = function(&volume, "open", body);
    policy(&open, &["--open", "../vault"]);
    let (named, group) = (format!("u:{USER}:"), format!("g:{USER}:"));
    // Name, mode, owning group, entries; whether it can be opened.
    let cases = [
        ("plain", 0o644, 0, vec![], true),
        ("denied", 0o644, 0, vec![format!("{named}---")], false),
        ("named", 0o600, 0, vec![format!("{named}r")], true),
        ("masked", 0o600, 0, vec![format!("{named}r,m::---")], false),
        // Its mode becomes 0640, but those are the mask's bits.
        ("owning", 0o600, USER, vec!["u:43215:r".to_owned()], false),
        ("group", 0o600, 0, vec![format!("{group}r")], true),
        ("group-denied", 0o604, 0, vec![format!("{group}---,m::r")], false),
        ("open/inside", 0o644, 0, vec![], true),
        ("closed/inside", 0o644, 0, vec![], false),
    ];
    for directory in ["open", "closed"] {
        fs::create_dir(volume.path("vault").join(directory)).expect("mkdir");
    }
    for (name, mode, gid, entries, _) in &cases {
        let path = volume.path("vault").join(name);
        fs::write(&path, "content").expect("write");
        std::os::unix::fs::chown(&path, None, Some(*gid)).expect("chown");
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("chmod");
        for entry in entries {
            run(Command::new("setfacl").args(["-m", entry]).arg(&path)).expect_success();
        }
    }
    fs::set_permissions(volume.path("vault/open"), fs::Permissions::from_mode(0o700)).expect("chmod");
    for (directory, rights) in [("open", "x"), ("closed", "---")] {
        let entry = format!("{named}{rights}");
        run(Command::new("setfacl").args(["-m", &entry]).arg(volume.path("vault").join(directory))).expect_success();
    }
    let mut command = Command::new(&open);
    command.args(cases.iter().map(|case| case.0));
    std::os::unix::process::CommandExt::uid(&mut command, USER);
    std::os::unix::process::CommandExt::gid(&mut command, USER);
    let said = run(&mut command).expect_success().stdout;
    // The kernel, asked by the same user, says the same.
    for (line, (name, .., may)) in said.lines().zip(&cases) {
        let line = line.split_once(' ').map(|(name, opened)| (name, opened == "True"));
        let mut cat = Command::new("cat");
        cat.arg(volume.path("vault").join(name));
        std::os::unix::process::CommandExt::uid(&mut cat, USER);
        std::os::unix::process::CommandExt::gid(&mut cat, USER);
        let kernel = cat.output().expect("cat").status.success();
        assert_eq!((line, kernel), (Some((*name, *may)), *may), "{said}");
    }
    assert_eq!(said.lines().count(), cases.len(), "{said}");
    volume.umount();
}

#[test]
fn what_was_opened_fails_when_the_exit_is_visible_wherever_it_went() {
    let mut volume = small("credential-revoked");
    let body = r#"
fd = ask(MNT + "/vault/file")
out = socket.socket(fileno=0)
socket.send_fds(out, [b"x"], [fd])
out.recv(1)
"#;
    let give = function(&volume, "give", body);
    policy(&give, &["--open", "../vault"]);
    let (child, mut socket) = with_socket(&give);
    let file = fs::File::from(received(&socket));
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0).expect("read while it runs");
    assert_eq!(&bytes, b"in vault");
    socket.write_all(b"x").expect("write");
    ended(child);
    let error = file.read_at(&mut bytes, 0).expect_err("its run has ended");
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
    assert!(fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).is_err(), "nor can it be opened again");
    drop(file);
    volume.umount();
}

#[test]
fn a_credential_used_from_elsewhere_fails_and_is_recorded() {
    let mut volume = small("credential-elsewhere");
    let body = r#"
out = socket.socket(fileno=0)
socket.send_fds(out, [b"x"], [3])
out.recv(1)
print(os.pread(ask(MNT + "/vault/file"), 100, 0).decode(), end="")
out.send(b"still")
out.recv(1)
"#;
    let give = function(&volume, "give", body);
    policy(&give, &["--open", "../vault"]);
    let (child, mut socket) = with_socket(&give);
    let credential = received(&socket);
    let call = |body: &[u8]| -> std::io::Result<Vec<u8>> {
        let (ours, theirs) = UnixStream::pair()?;
        let bytes = frame(7, &[]);
        let fds = [theirs.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(credential.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        drop(theirs);
        let _ = (&ours).write_all(body);
        let mut answer = Vec::new();
        (&ours).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let path = volume.path("vault/file");
    let answer = call(&frame(8, path.to_string_lossy().as_bytes())).expect("an answer");
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer[4] == 3 && text.contains("from outside of it"), "{text:?}");
    let record = log(&volume).into_iter().find(|record| record["cause"] == "refused").expect("it is recorded");
    assert!(record["message"].as_str().is_some_and(|message| message.contains("from outside of it")), "{record}");
    // The socket in the sandbox is no other way in.
    let mut ps = brine_command(&["exec", "ps", "--json", "--at"]);
    assert_eq!(
        serde_json::from_str::<Value>(&run(ps.arg(volume.mnt())).stdout).expect("JSON")[0]["function"],
        "/exec/give"
    );
    let inner = inner_socket(&volume, &child);
    let mut stream = UnixStream::connect(&inner).expect("root gets there through /proc");
    stream.write_all(&frame(8, path.to_string_lossy().as_bytes())).expect("write");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    assert!(String::from_utf8_lossy(&answer).contains("from outside of it"));

    // The run itself goes on, and its end is the credential's.
    socket.write_all(b"x").expect("write");
    let mut still = [0; 5];
    socket.read_exact(&mut still).expect("it could still ask");
    socket.write_all(b"x").expect("write");
    ended(child);
    let dead = call(&frame(8, path.to_string_lossy().as_bytes()));
    assert!(dead.as_ref().is_err() || dead.as_ref().is_ok_and(Vec::is_empty), "{dead:?}");
    volume.umount();
}

/// The socket of the sandbox that runs for `launcher`, as the host's root sees it.
fn inner_socket(volume: &TestVolume, launcher: &Child) -> PathBuf {
    let below = volume.path(".brine/exec.sock");
    let below = below.strip_prefix("/").expect("absolute");
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let socket = PathBuf::from(format!("/proc/{pid}/root")).join(below);
        if pid != launcher.id() && comm.trim() == "brine-init" && fs::symlink_metadata(&socket).is_ok() {
            return socket;
        }
    }
    panic!("no sandbox has {}", below.display())
}

#[test]
fn programs_that_close_descriptors_invoke_functions_too() {
    let mut volume = small("credential-call");
    let inner = function(&volume, "inner", "print('inner', sys.argv[1]); sys.exit(3)");
    let outer = function(
        &volume,
        "outer",
        "done = subprocess.run([MNT + '/exec/inner', 'word'], capture_output=True)\n\
         print(done.stdout.decode(), done.returncode, os.path.exists('/proc/self/fd/9'))",
    );
    policy(&outer, &["--call", "inner"]);
    let said = run(&mut Command::new(&outer)).expect_success().stdout;
    assert_eq!(said, "inner word\n 3 False\n");
    let records = log(&volume);
    assert!(records.iter().any(|record| record["function"] == "/exec/inner" && record["parent"] != ""), "{records:?}");
    drop(inner);
    volume.umount();
}
