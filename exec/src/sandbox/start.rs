//! The process that becomes the program. It waits while its sandbox does, with everything behind it that does not depend on
//! the run: a session of its own, no_new_privs, the call filter.
//!
//! It shares memory and descriptors with its init until exec: to copy them, and to take the copies apart again, would cost
//! more than all the rest. The two take turns ([`sys::share`]): the init waits until this process waits for its order, and
//! from the order until it has executed the program. Order, of which everything is under the filter: working directory,
//! descriptors, limits, capabilities, Landlock, exec.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::landlock::{self, Rules};
use super::launch::With;
use super::message::{Failure, Run};
use super::root::text;
use super::seccomp;
use crate::sys;

/// Descriptor the credential has in the program. While a sandbox waits, it and those below are /dev/null.
pub(crate) const CREDENTIAL_FD: i32 = 3;
/// Stack of this process until it has executed.
const STACK_BYTES: usize = 1 << 20;

/// What is to be executed, and with what. Descriptors are numbers: the init owns them, and stands still.
pub(crate) struct Order {
    run: Arc<Run>,
    program: CString,
    argv: Vec<CString>,
    environment: Vec<CString>,
    streams: [Option<RawFd>; 3],
    credential: Option<RawFd>,
    terminal: Option<RawFd>,
    rules: Option<RawFd>,
}

impl Order {
    pub fn new(run: &Arc<Run>, with: &With, rules: Option<&Rules>) -> Result<Self, Failure> {
        let strings = |strings: &[std::ffi::OsString]| {
            strings.iter().map(|string| CString::new(string.as_bytes())).collect::<Result<Vec<_>, _>>()
        };
        let command = (text(&run.program.at), strings(&run.argv), strings(&run.environment));
        let (Ok(program), Ok(argv), Ok(environment)) = command else {
            return Err(Failure { code: 126, step: "a zero byte in an argument".into(), errno: 0 });
        };
        Ok(Self {
            run: Arc::clone(run),
            program,
            argv,
            environment,
            streams: with.streams.each_ref().map(|stream| stream.as_ref().map(AsRawFd::as_raw_fd)),
            credential: with.credential.as_ref().map(AsRawFd::as_raw_fd),
            terminal: with.terminal.as_ref().map(AsRawFd::as_raw_fd),
            rules: rules.map(Rules::descriptor),
        })
    }
}

/// The program's process, which has executed it, or was killed before.
pub(crate) struct Started {
    pub pid: i32,
    /// When it did.
    pub at_ns: Option<u64>,
}

/// What the two processes leave for each other.
#[derive(Default)]
struct Desk {
    order: OnceLock<Order>,
    failure: OnceLock<Failure>,
    /// 0 before.
    started_ns: AtomicU64,
}

/// A process that waits to become the program.
pub(crate) struct Starter {
    sharing: sys::Sharing,
    turns: UnixStream,
    desk: Arc<Desk>,
    null: File,
}

impl Starter {
    /// It has the rights of this process until it executes, but for what the call filter forbids.
    pub fn new() -> Result<Self, Failure> {
        let failed = || Failure::step("starting the program's process");
        let null = File::options().read(true).write(true).open("/dev/null").map_err(failed())?;
        let (turns, mut theirs) = UnixStream::pair().map_err(failed())?;
        let desk = Arc::new(Desk::default());
        let (own, null_fd) = (Arc::clone(&desk), null.as_raw_fd());
        let child = move || {
            let failure = prepare().err();
            let waits = failure.is_none();
            failure.map(|failure| own.failure.set(failure));
            if theirs.write_all(&[1]).is_ok() && waits && theirs.read_exact(&mut [0]).is_ok() {
                own.order.get().map(|order| own.failure.set(execute(order, null_fd, &own.started_ns)));
            }
            sys::exit_now(125)
        };
        let child = Box::new(child);
        // Between here and what it waits for, nothing is done to memory in this process, not even for an error there is none
        // of.
        let waits = sys::share(STACK_BYTES, child).and_then(|sharing| {
            (&turns).read_exact(&mut [0])?;
            Ok(sharing)
        });
        let starter = Self { sharing: waits.map_err(failed())?, turns, desk, null };
        match starter.desk.failure.get() {
            Some(failure) => Err(failure.clone()),
            None => Ok(starter),
        }
    }

    /// Have it execute. Its standard descriptors are this process's own until then, and nobody's of the two afterwards.
    pub fn start(mut self, order: Order) -> Result<Started, Failure> {
        let failed = || Failure::step("starting the program's process");
        let _ = self.desk.order.set(order);
        // Nothing is done to memory until it has a memory of its own.
        let told = self.turns.write_all(&[1]);
        if told.is_ok() {
            self.sharing.await_parting();
        }
        told.map_err(failed())?;
        for number in 0..=CREDENTIAL_FD {
            sys::duplicate(self.null.as_raw_fd(), number).map_err(failed())?;
        }
        let started_ns = self.desk.started_ns.load(Ordering::SeqCst);
        match self.desk.failure.get() {
            Some(failure) => Err(failure.clone()),
            // Somebody of its user killed it while it waited: that is no program's end.
            None if started_ns == 0 => Err(failed()(io::ErrorKind::BrokenPipe.into())),
            None => Ok(Started { pid: self.sharing.pid, at_ns: Some(started_ns) }),
        }
    }
}

/// What can be done before there is a run.
fn prepare() -> Result<(), Failure> {
    nix::unistd::setsid().map_err(io::Error::from).map_err(Failure::step("a session of its own"))?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(Failure::step("giving up rights"))?;
    let filter = seccomp::program();
    sys::seccomp_filter(&filter, true)
        .or_else(|_| sys::seccomp_filter(&filter, false))
        .map(drop)
        .map_err(Failure::step("the system call filter"))
}

/// Become the program. Returns only what went wrong.
fn execute(order: &Order, null: RawFd, started_ns: &AtomicU64) -> Failure {
    if let Err(failure) = give_up_all(order, null) {
        return failure;
    }
    started_ns.store(sys::monotonic_ns(), Ordering::SeqCst);
    match nix::unistd::execve(&order.program, &order.argv, &order.environment) {
        Ok(never) => match never {},
        Err(errno) => why_not_started(&order.run, errno),
    }
}

fn give_up_all(order: &Order, null: RawFd) -> Result<(), Failure> {
    let failed = |step: &'static str| Failure::step(step);
    let run = &order.run;
    enter(&run.directory)?;
    if let Some(terminal) = order.terminal {
        sys::set_controlling(sys::borrow(terminal)).map_err(failed("the controlling terminal"))?;
    }
    // None of the sources is one of the targets: those are taken while a sandbox waits.
    for (target, stream) in (0..).zip(order.streams) {
        sys::duplicate(stream.unwrap_or(null), target).map_err(failed("standard descriptors"))?;
    }
    if let Some(credential) = order.credential {
        sys::duplicate(credential, CREDENTIAL_FD).map_err(failed("standard descriptors"))?;
    }
    let keep = if order.credential.is_some() { CREDENTIAL_FD + 1 } else { CREDENTIAL_FD };
    sys::close_from(keep, true).map_err(failed("closing descriptors"))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(run.umask));
    limits(run).map_err(failed("resource limits"))?;
    // `lock_rights` took the ways back.
    sys::drop_capabilities().map_err(failed("giving up rights"))?;
    if let Some(rules) = order.rules {
        landlock::enforce(sys::borrow(rules)).map_err(failed("Landlock"))?;
    }
    sys::set_signals(run.ignored_signals);
    Ok(())
}

fn enter(path: &Path) -> Result<(), Failure> {
    let step = || Failure::step(format!("working directory {}", path.display()));
    nix::unistd::chdir(path).map_err(io::Error::from).map_err(step())?;
    // Reachable from the root, or a descriptor leaked (CVE-2024-21626): the C library refuses a path that is not.
    let seen = nix::unistd::getcwd().map_err(io::Error::from).map_err(step())?;
    if seen.is_absolute() { Ok(()) } else { Err(step()(io::Error::from_raw_os_error(libc::EACCES))) }
}

fn limits(run: &Run) -> io::Result<()> {
    sys::set_rlimit(libc::RLIMIT_CORE, 0, 0)?;
    sys::set_rlimit(libc::RLIMIT_FSIZE, run.file_size_bytes, run.file_size_bytes)?;
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    let files = run.open_files.min(hard);
    sys::set_rlimit(libc::RLIMIT_NOFILE, files, files)?;
    sys::set_rlimit(libc::RLIMIT_MSGQUEUE, 0, 0)?;
    sys::set_rlimit(libc::RLIMIT_MEMLOCK, 64 << 10, 64 << 10)?;
    if let Some(time) = run.cpu_time {
        // Of one process; the daemon counts them all. Two seconds more, so that the daemon's word comes first.
        let seconds = time.as_secs() + 2;
        sys::set_rlimit(libc::RLIMIT_CPU, seconds, seconds)?;
    }
    if run.pids > 0 {
        sys::set_rlimit(libc::RLIMIT_NPROC, run.pids, run.pids)?;
    }
    if run.memory_bytes > 0 {
        sys::set_rlimit(libc::RLIMIT_AS, run.memory_bytes, run.memory_bytes)?;
    }
    if run.nice > 0 {
        sys::set_nice(run.nice)?;
    }
    Ok(())
}

/// The message for an exec that failed. The filter is in force already; reading a file is all this needs.
fn why_not_started(run: &Run, errno: nix::errno::Errno) -> Failure {
    use nix::errno::Errno;
    let path = run.program.at.display();
    let mut head = [0; 256];
    let len = File::open(&run.program.at).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
    let interpreter = head[..len].strip_prefix(b"#!").map(|line| {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let word = line.trim_ascii_start().split(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default();
        String::from_utf8_lossy(word).into_owned()
    });
    let failure = |code, step: String, errno: Errno| Failure { code, step, errno: errno as i32 };
    match (errno, interpreter) {
        (Errno::ENOENT, Some(interpreter)) => {
            failure(127, format!("{path}: its interpreter {interpreter} is not in the sandbox"), errno)
        }
        (Errno::ENOENT, None) if head.starts_with(b"\x7fELF") => {
            failure(127, format!("{path}: its dynamic loader is not in the sandbox"), errno)
        }
        (Errno::ENOENT, None) => failure(127, format!("{path}"), errno),
        (Errno::ENOEXEC, _) => {
            failure(126, format!("{path} is neither a program for this machine nor a script with a #! line"), errno)
        }
        _ => failure(126, format!("{path}"), errno),
    }
}
