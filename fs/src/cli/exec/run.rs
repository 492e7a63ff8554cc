//! `brine exec run`: a function by its path, asked for at the daemon's socket instead of through the kernel's exec. What
//! the launcher does for a program that is run as such is done here: hand over the standard descriptors, pass signals
//! on, end as the run ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use brine_exec::Verdict;
use brine_exec::protocol::frame::{Kind, receive_frame, send_frame};
use brine_exec::protocol::{Ended, Request, Streams};
use lexopt::{Arg, Parser};
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::stat::{Mode, umask};
use serde_json::Value;

use super::super::{args, output};
use super::{place, unreachable};
use crate::control::with_short_name;
use crate::exec_dir::request::ExecRequest;
use crate::exit_code::{ExitCode, Failure};

/// Signals that are passed on to the run.
const PASSED: [Signal; 8] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
];

pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut result_fd = None;
    let name: OsString = loop {
        match parser.next()? {
            Some(Arg::Long("result-fd")) => {
                result_fd = Some(args::count(&mut parser, "--result-fd", 3, 1 << 20)? as RawFd);
            }
            Some(Arg::Value(name)) => break name,
            Some(other) => return Err(other.unexpected().into()),
            None => return Err(Failure::usage("give the path of a function, and its arguments")),
        }
    };
    let mut argv = vec![name.clone()];
    argv.extend(parser.raw_args()?);
    // Before any thread: all inherit it.
    let mut passed = SigSet::empty();
    PASSED.iter().for_each(|signal| passed.add(*signal));
    let unblocked = SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty());
    let _ = passed.thread_block();
    let done = match call(Path::new(&name), argv, &passed) {
        Ok(done) => done,
        // As a launcher would end.
        Err(failure) => {
            output::note(&failure.to_string());
            std::process::exit(match failure.code() {
                ExitCode::NotFound => 127,
                ExitCode::NotPermitted | ExitCode::Refused => 126,
                _ => 125,
            })
        }
    };
    if let (Some(fd), Some(run)) = (result_fd, &done.run) {
        tell(fd, Path::new(&name), run)?;
    }
    if let Some(line) = &done.ended.line {
        output::note(line);
    }
    let code = match done.ended.verdict {
        Verdict::Code(code) => i32::from(code),
        Verdict::Signal(number) => {
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            let _ = unblocked.thread_set_mask();
            if let Ok(signal) = Signal::try_from(i32::from(number)) {
                let _ = raise(signal);
            }
            // It is ignored here, or has no name.
            128 + i32::from(number)
        }
    };
    std::process::exit(code)
}

struct Done {
    ended: Ended,
    /// The run's name, if it was accepted.
    run: Option<String>,
}

fn call(path: &Path, argv: Vec<OsString>, passed: &SigSet) -> Result<Done, Failure> {
    let function = place(path)?;
    let o_path = |path: &Path| {
        openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| Failure::io(path.display(), &errno.into()))
    };
    let file = o_path(path)?;
    // The mount is busy as long as this lives.
    let _mount = o_path(&function.mount.point)?;
    let socket = function.socket()?;
    // An ordinary user's is in his state directory, whose path may be longer than an address.
    let stream = with_short_name(&socket, |name| UnixStream::connect(name));
    let stream = stream.map_err(|error| unreachable(&socket, &error))?;
    let broken =
        |error: &dyn std::fmt::Display| Failure::new(ExitCode::NotMounted, format!("talking to the daemon: {error}"));
    send_frame(&stream, Kind::Request, &request(argv).encode(), &[file.as_raw_fd()]).map_err(|error| broken(&error))?;
    let gone = || Failure::new(ExitCode::NotMounted, "the daemon ended before the run did; see its log");
    let mut frame = receive_frame(&stream).map_err(|error| broken(&error))?.ok_or_else(gone)?;
    let mut run = None;
    let mut init = None;
    if frame.kind == Kind::Accepted {
        run = Some(frame.body.iter().map(|byte| format!("{byte:02x}")).collect());
        init = Some(frame.fds.pop().ok_or_else(gone)?);
        if let Some(init) = &init {
            hand_over(init).map_err(|error| Failure::io("handing over the standard descriptors", &error))?;
            pass_signals(init, passed)?;
        }
        frame = receive_frame(&stream).map_err(|error| broken(&error))?.ok_or_else(gone)?;
    }
    drop(init);
    match frame.kind {
        Kind::Ended => Ok(Done { ended: Ended::decode(&frame.body).map_err(|error| broken(&error))?, run }),
        _ => Err(Failure::new(ExitCode::Failed, "the daemon answers what this version of brine does not understand")),
    }
}

fn request(argv: Vec<OsString>) -> Request {
    let mask = umask(Mode::empty());
    umask(mask);
    Request {
        ticket: None,
        argv,
        environment: std::env::vars_os().collect(),
        directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::new()),
        umask: mask.bits(),
        nice: 0,
        ignored_signals: ignored_signals(),
        rlimits: Vec::new(),
    }
}

/// Signals this process was started with ignored; bit n-1 for signal n. SIGPIPE is ignored by the language's runtime.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.unwrap_or_default() & !(1 << (libc::SIGPIPE - 1))
}

/// Send the standard descriptors, and keep none but standard error, so that ends of pipes are seen.
fn hand_over(init: &OwnedFd) -> io::Result<()> {
    let open: Vec<RawFd> = (0..3).filter(|fd| Path::new(&format!("/proc/self/fd/{fd}")).exists()).collect();
    let present = open.iter().fold(0, |bits, fd| bits | 1 << fd);
    let streams = Streams { present, ..Streams::default() };
    send_frame(init, Kind::Streams, &streams.encode(), &open).map_err(io::Error::other)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

fn pass_signals(init: &OwnedFd, passed: &SigSet) -> Result<(), Failure> {
    let init = init.try_clone().map_err(|error| Failure::io("a descriptor for signals", &error))?;
    let passed = *passed;
    let pass = move || {
        while let Ok(signal) = passed.wait() {
            // A run that is over hears no more; how it ended is on its way.
            if send_frame(&init, Kind::Signal, &[signal as i32 as u8], &[]).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("brine-signals".into())
        .spawn(pass)
        .map(drop)
        .map_err(|error| Failure::io("starting a thread", &error))
}

/// The run's record, as JSON, to a descriptor that whoever started this command has opened.
fn tell(fd: RawFd, path: &Path, run: &str) -> Result<(), Failure> {
    let rows = place(path)?.ask(ExecRequest::Log { run: Some(run.to_owned()), max: 1, before: None })?;
    let text = rows.get(0).unwrap_or(&Value::Null).to_string();
    let mut out = File::options()
        .write(true)
        .open(format!("/proc/self/fd/{fd}"))
        .map_err(|error| Failure::io(format!("--result-fd {fd}"), &error))?;
    writeln!(out, "{text}").map_err(|error| Failure::io(format!("--result-fd {fd}"), &error))
}
