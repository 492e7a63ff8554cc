//! Launchers, as the kernel starts them, and the service they talk to.

mod harness;

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use brine_exec::protocol::{Request, Ticket};
use brine_exec::service::{Host, Service};
use brine_exec::{Caller, Config, Error, ExitCause, Outcome, Plan, Result, RunId, Sandboxes, ViewAccess};
use harness::view;

/// Admits who has one of its tickets, and remembers everything.
struct Tester {
    tickets: Mutex<HashSet<[u8; 16]>>,
    outcomes: Mutex<Vec<Outcome>>,
    refused: Mutex<Vec<String>>,
}

impl Host for Tester {
    fn admit(
        &self,
        _: RunId,
        request: Request,
        _: Option<OwnedFd>,
        caller: &Caller,
        parent: Option<RunId>,
    ) -> Result<Plan> {
        if parent.is_none() {
            let ticket = request.ticket.ok_or_else(|| Error::Refused("no ticket".into()))?;
            if !self.tickets.lock().unwrap().remove(&ticket.0) {
                return Err(Error::Refused("the ticket is not valid".into()));
            }
        }
        let path = PathBuf::from(&request.argv[0]);
        let name = Path::new("exec").join(path.file_name().unwrap());
        let program = view(name.to_str().unwrap(), path.to_str().unwrap(), ViewAccess::Read);
        let mut plan = Plan::new(caller.identity.clone(), program);
        plan.argv = request.argv;
        plan.environment.extend(request.environment.into_iter().filter(|(name, _)| name == "PASSED"));
        plan.umask = request.umask;
        plan.ignored_signals = request.ignored_signals;
        plan.directory = request.directory;
        plan.depth = u8::from(parent.is_some());
        // Those that ask are named so.
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("asks-")) {
            plan.credential = Some("/mnt/exec.sock".into());
        }
        Ok(plan)
    }

    fn open(&self, _: RunId, _: &Path, _: &Caller) -> Result<OwnedFd> {
        Err(Error::Refused("there is nothing to open".into()))
    }

    fn refused(&self, _: RunId, _: &Caller, why: &Error) {
        self.refused.lock().unwrap().push(why.to_string());
    }

    fn started(&self, _: RunId) {}

    fn told(&self) {}

    fn ended(&self, outcome: &mut Outcome) {
        self.outcomes.lock().unwrap().push(outcome.clone());
    }
}

struct Stand {
    // First: the service ends before its sandboxes.
    service: Option<Service>,
    host: Arc<Tester>,
    sandboxes: Arc<Sandboxes>,
    volume: PathBuf,
}

impl Stand {
    fn new(name: &str) -> Self {
        let label = format!("service-{name}-{}", std::process::id());
        let volume = std::env::temp_dir().join(format!("brine-exec-{label}"));
        fs::create_dir_all(volume.join("exec")).unwrap();
        fs::create_dir_all(volume.join(".brine")).unwrap();
        let launcher = volume.join(".brine/launcher");
        fs::write(&launcher, brine_exec::launcher::PROGRAM).unwrap();
        fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755)).unwrap();
        let mut config = Config::new(&label, &volume);
        config.program = PathBuf::from(env!("CARGO_BIN_EXE_sandbox-probe"));
        let sandboxes = Arc::new(Sandboxes::start(config).unwrap());
        let listener = UnixListener::bind(volume.join(".brine/exec.sock")).unwrap();
        let host =
            Arc::new(Tester { tickets: Mutex::default(), outcomes: Mutex::default(), refused: Mutex::default() });
        let service = Some(Service::start(listener, Arc::clone(&sandboxes), host.clone()).unwrap());
        Self { service, host, sandboxes, volume }
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.volume.join("exec").join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// As the kernel does for `#!LAUNCHER TICKET`.
    fn launcher(&self, name: &str, arguments: &[&str]) -> Command {
        let ticket = Ticket::random();
        self.host.tickets.lock().unwrap().insert(ticket.0);
        let mut command = Command::new(self.volume.join(".brine/launcher"));
        command.arg(ticket.to_string()).arg(self.volume.join("exec").join(name)).args(arguments).current_dir("/");
        command
    }

    fn run(&self, name: &str, text: &str, arguments: &[&str]) -> Output {
        self.script(name, text);
        self.launcher(name, arguments).output().unwrap()
    }

    fn last(&self) -> Outcome {
        self.host.outcomes.lock().unwrap().last().unwrap().clone()
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        drop(self.service.take());
        self.sandboxes.stop();
        let _ = fs::remove_dir_all(&self.volume);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn codes_signals_arguments_and_streams_come_through() {
    let stand = Stand::new("streams");
    let output = stand.run("args", "printf '<%s>' \"$@\"; echo err >&2; exit 42", &["a b", "", "\u{fc}\n"]);
    assert_eq!(output.status.code(), Some(42));
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("<a b><><\u{fc}\n>".into(), "err\n".into()));

    let output = stand.run("dies", "kill -SEGV $$", &[]);
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{output:?}");
    assert_eq!(stand.last().cause, ExitCause::Signaled(libc::SIGSEGV));

    stand.script("copy", "cat; umask; echo $PASSED-$NOT_PASSED");
    let mut command = stand.launcher("copy", &[]);
    command.env("PASSED", "yes").env("NOT_PASSED", "no");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let big = vec![b'x'; 300_000];
    let writer = std::thread::spawn(move || input.write_all(&big));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'x').count(), 300_000);
    assert!(text(&output.stdout).ends_with("0022\nyes-\n"));
}

#[test]
fn large_argument_lists_come_through_byte_exact() {
    let stand = Stand::new("large");
    let words: Vec<String> = (0..2000).map(|number| format!("{number}-{}", "y".repeat(200))).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = stand.run("count", "echo $#; for word; do printf '%s\\n' \"$word\"; done", &words);
    let expected = format!("2000\n{}\n", words.join("\n"));
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn a_broken_pipe_is_between_the_program_and_its_reader() {
    let stand = Stand::new("pipe");
    stand.script("endless", "exec yes");
    let mut child = stand.launcher("endless", &[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut some = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGPIPE));
}

#[test]
fn signals_go_to_the_program_and_a_killed_launcher_takes_its_run_along() {
    let stand = Stand::new("signals");
    stand.script("traps", "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let start = |name: &str| {
        let mut child = stand.launcher(name, &[]).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        let mut output = child.stdout.take().unwrap();
        output.read_exact(&mut ready).unwrap();
        (child, output)
    };
    let (mut child, mut output) = start("traps");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("got\n", Some(3)));

    let (mut child, mut output) = start("traps");
    child.kill().unwrap();
    child.wait().unwrap();
    // Its output ends because nobody has it any more: the run is gone.
    output.read_to_string(&mut rest).unwrap();
    while stand.host.outcomes.lock().unwrap().len() < 2 {
        std::thread::yield_now();
    }
    assert_eq!(stand.last().cause, ExitCause::Killed);
}

#[test]
fn without_a_valid_ticket_nothing_runs() {
    let stand = Stand::new("tickets");
    stand.script("never", "echo ran");
    let launcher = stand.volume.join(".brine/launcher");
    let path = stand.volume.join("exec/never");
    let mut command = stand.launcher("never", &[]);
    assert!(command.output().unwrap().status.success(), "a ticket is good for one run");
    let again = command.output().unwrap();
    let forged = Command::new(&launcher).arg(Ticket::random().to_string()).arg(&path).output().unwrap();
    let no_ticket = Command::new(&launcher).arg("x").arg(&path).output().unwrap();
    for output in [again, forged, no_ticket] {
        assert_eq!((output.status.code(), output.stdout.len()), (Some(126), 0));
        assert!(text(&output.stderr).starts_with("brine: "), "{output:?}");
    }
    assert_eq!(stand.host.refused.lock().unwrap().len(), 3, "each is recorded");
    assert_eq!(Command::new(&launcher).output().unwrap().status.code(), Some(126), "by hand");
}

#[test]
fn failures_of_ours_have_codes_and_a_line() {
    let stand = Stand::new("codes");
    let path = stand.volume.join("exec");
    for (name, bytes, code, line) in [
        ("interpreter", "#!/no/such/shell\n", 127, "/no/such/shell"),
        ("nonsense", "neither nor", 126, "neither a program"),
    ] {
        fs::write(path.join(name), bytes).unwrap();
        fs::set_permissions(path.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        let output = stand.launcher(name, &[]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}: {output:?}");
        assert!(text(&output.stderr).starts_with("brine: ") && text(&output.stderr).contains(line), "{output:?}");
    }
    let output = stand.launcher("missing", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(127), "{output:?}");
    fs::write(path.join("plain"), "#!/bin/sh\n").unwrap();
    let output = stand.launcher("plain", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(126), "not executable: {output:?}");
}

#[test]
fn a_service_that_ends_ends_its_launchers() {
    let mut stand = Stand::new("ends");
    stand.script("sleeps", "echo ready; exec sleep 1000");
    let mut child = stand.launcher("sleeps", &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    drop(stand.service.take());
    stand.sandboxes.stop();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGKILL), "killed, and it says so: {output:?}");
    assert_eq!(text(&output.stderr), "brine: the run was killed\n");
    // Nobody listens now.
    let output = stand.launcher("sleeps", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
}

/// A launcher whose controlling terminal is `slave`.
fn on_terminal(command: &Command, slave: &OwnedFd) -> std::process::Child {
    // setsid(1) makes standard input its controlling terminal.
    let mut words = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(ToOwned::to_owned));
    let mut session = Command::new("setsid");
    session.arg("--ctty").arg("--wait").args(words).current_dir("/");
    session.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave.try_clone().unwrap());
    session.spawn().unwrap()
}

#[test]
fn a_terminal_is_relayed_with_its_size_and_set_back_afterwards() {
    use nix::sys::termios::{LocalFlags, tcgetattr};
    let stand = Stand::new("terminal");
    stand.script(
        "asks",
        "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] || exit 9\ntty; stty size; trap 'stty size; exit 4' INT\n\
         echo name?; read line; echo \"hello $line\"; echo ready > /dev/tty; while :; do sleep 0.05; done",
    );
    let size = nix::pty::Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = nix::pty::openpty(Some(&size), None).unwrap();
    let before = tcgetattr(&pair.slave).unwrap();
    let mut child = on_terminal(&stand.launcher("asks", &[]), &pair.slave);
    let mut terminal = fs::File::from(pair.master);
    let mut seen = String::new();
    let mut until = |terminal: &mut fs::File, text: &str| {
        let mut bytes = [0; 1024];
        while !seen.contains(text) {
            let len = terminal.read(&mut bytes).unwrap();
            seen.push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
        // What follows may have come with it.
        let rest = seen.split_off(seen.find(text).unwrap() + text.len());
        std::mem::replace(&mut seen, rest)
    };
    let said = until(&mut terminal, "name?");
    assert!(said.contains("/dev/pts/0\r\n33 77\r\n"), "a terminal of its own: {said}");
    assert!(!tcgetattr(&pair.slave).unwrap().local_flags.contains(LocalFlags::ICANON), "raw meanwhile");
    terminal.write_all(b"world\n").unwrap();
    until(&mut terminal, "hello world");
    until(&mut terminal, "ready");
    // A key, which the inner terminal makes a signal of.
    terminal.write_all(b"\x03").unwrap();
    until(&mut terminal, "33 77");
    assert_eq!(child.wait().unwrap().code(), Some(4));
    let after = tcgetattr(&pair.slave).unwrap();
    assert_eq!(after.local_flags, before.local_flags);
    assert_eq!(after.input_flags, before.input_flags);
}

#[test]
fn launchers_that_talk_nonsense_are_told_so() {
    let stand = Stand::new("nonsense");
    for bytes in [&b"GET / HTTP/1.0\r\n\r\n"[..], b"brx1\x01\0\0\0\xff\xff\xff\xff", b"brx1\x21\0\0\0\0\0\0\0"] {
        let mut socket = UnixStream::connect(stand.volume.join(".brine/exec.sock")).unwrap();
        socket.write_all(bytes).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = [0; 6];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"brx1\x03\0", "an end, with a line");
    }
    assert!(stand.run("fine", "exit 0", &[]).status.success(), "and others are served");
}

/// What a program that uses its credential begins with.
const ASKING: &str = r#"
import os, socket, struct, sys
SOCKET = "/mnt/exec.sock"
def frame(kind, body=b""):
    return b"brx1" + struct.pack("<HHI", kind, 0, len(body)) + body
def connected():
    out = socket.socket(socket.AF_UNIX)
    out.settimeout(60)
    out.connect(SOCKET)
    return out
def heard(connection):
    "Kind, body and descriptors of a frame."
    head, fds, _, _ = socket.recv_fds(connection, 12, 4)
    kind, _, left = struct.unpack("<HHI", head[4:])
    body = b""
    while len(body) < left:
        body += connection.recv(left - len(body))
    return kind, body, fds
test = socket.socket(fileno=0)
"#;

impl Stand {
    /// A program in Python that uses its credential, with a socket to this test as its standard input.
    fn asking(&self, name: &str, body: &str, arguments: &[&str]) -> (std::process::Child, UnixStream) {
        let path = self.volume.join("exec").join(name);
        // The system's: it exists in a sandbox.
        fs::write(&path, format!("#!/usr/bin/python3\n{ASKING}\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = self.launcher(name, arguments);
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
        (command.spawn().unwrap(), ours)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Take a descriptor that the program sends, and leave it open as long as this process lives.
fn keep(socket: &UnixStream) {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let (mut byte, mut space) = ([0; 1], nix::cmsg_space!([i32; 1]));
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    let number = std::os::fd::AsRawFd::as_raw_fd(socket);
    let message = recvmsg::<()>(number, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    let came =
        message.cmsgs().unwrap().any(|part| matches!(part, ControlMessageOwned::ScmRights(fds) if fds.len() == 1));
    assert!(came, "a descriptor");
}

/// Threads of this process, which is the daemon here, by name.
fn threads(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)).count()
}

#[test]
fn what_a_run_invoked_is_over_when_its_end_is_told() {
    let stand = Stand::new("invoked");
    stand.script("inner", "exec sleep 1000");
    let path = stand.volume.join("exec/inner");
    let request = Request {
        ticket: None,
        argv: vec![path.into()],
        environment: Vec::new(),
        directory: "/".into(),
        umask: 0o022,
        nice: 0,
        ignored_signals: 0,
        rlimits: Vec::new(),
    };
    let body = r#"
asked = connected()
asked.sendall(frame(1, bytes.fromhex(sys.argv[1])))
kind, body, fds = heard(asked)
assert kind == 2, body
os.write(fds[0], frame(4, bytes.fromhex(sys.argv[2])))
# Outside of the run somebody keeps the connection that the inner run ends with, and the one it is talked about.
socket.send_fds(test, [b"x"], [fds[0]])
socket.send_fds(test, [b"x"], [asked.fileno()])
test.recv(1)
sys.exit(5)
"#;
    let streams = hexadecimal(&brine_exec::protocol::Streams::default().encode());
    let (child, mut test) = stand.asking("asks-inner", body, &[&hexadecimal(&request.encode()), &streams]);
    keep(&test);
    keep(&test);
    assert_eq!(stand.sandboxes.active().len(), 2);
    test.write_all(b"x").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(stand.sandboxes.active().len(), 0, "the inner one is not going on");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let causes: Vec<ExitCause> = stand.host.outcomes.lock().unwrap().iter().map(|outcome| outcome.cause).collect();
    assert_eq!(causes, [ExitCause::Killed, ExitCause::Exited(5)], "the inner one was over first");
}

#[test]
fn a_talk_that_does_not_listen_ends_with_its_run() {
    let stand = Stand::new("deaf");
    let body = r#"
ours, theirs = socket.socketpair()
theirs.setblocking(False)
try:
    while True:
        theirs.send(b"x" * 4096)
except BlockingIOError:
    pass
# The answer has no room, and its reader outlives the run.
ours.sendall(frame(8, b"/anything"))
socket.send_fds(test, [b"x"], [ours.fileno()])
credential = socket.socket(fileno=3)
socket.send_fds(credential, [frame(7)], [theirs.fileno()])
test.recv(1)
"#;
    let (child, mut test) = stand.asking("asks-deaf", body, &[]);
    keep(&test);
    while threads("brine-exec-talk") == 0 {
        std::thread::yield_now();
    }
    test.write_all(b"x").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let started = std::time::Instant::now();
    while threads("brine-exec-talk") > 0 {
        assert!(started.elapsed().as_secs() < 5, "a thread talks to a run that ended");
        std::thread::yield_now();
    }
}

#[test]
fn a_credential_that_is_spoiled_is_closed_and_no_other_way_in() {
    let stand = Stand::new("spoiled");
    let body = r#"
credential = socket.socket(fileno=3)
credential.settimeout(60)
credential.sendall(frame(8, b"/no/call"))
print(credential.recv(1) == b"")
try:
    credential.sendall(frame(7))
except OSError as error:
    print(type(error).__name__)
asked = connected()
asked.sendall(frame(8, b"/anything"))
print(heard(asked)[0])
"#;
    let (child, _test) = stand.asking("asks-spoiled", body, &[]);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "True
BrokenPipeError
3
",
        "{output:?}"
    );
}

/// Takes all descriptors from this process, which is the test's own.
#[test]
fn a_credential_is_heard_again_when_descriptors_were_out() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let stand = Stand::new("descriptors");
    let body = r#"
test.send(b"x")
test.recv(1)
# The thread that waits has room for the first already, and can only close it.
both = [connected(), connected()]
both[1].sendall(frame(8, b"/anything"))
test.send(b"x")
print(heard(both[1])[0])
again = connected()
again.sendall(frame(8, b"/anything"))
print(heard(again)[0])
credential = socket.socket(fileno=3)
ours, theirs = socket.socketpair()
ours.settimeout(60)
socket.send_fds(credential, [frame(7)], [theirs.fileno()])
ours.sendall(frame(8, b"/anything"))
print(heard(ours)[0])
"#;
    let (child, mut test) = stand.asking("asks-later", body, &[]);
    test.read_exact(&mut [0; 1]).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    test.write_all(b"x").unwrap();
    test.read_exact(&mut [0; 1]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "3
3
3
",
        "{output:?}"
    );
}
