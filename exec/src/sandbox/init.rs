//! Process 1 of a sandbox: builds it, waits for its one run, watches over it, and says how it ended.
//!
//! It never executes anything itself, holds no descriptor of the host but its socket to the daemon and the launcher's
//! connection, and cannot be traced. When the program ends it kills and reaps what else is there before it reports, so
//! that a run that is reported is over. If the daemon goes it ends, and the kernel takes the rest down with it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{setgroups, setresgid, setresuid};

use super::beneath;
use super::launch::{Ready, With, launch};
use super::message::{EndedBy, Failure, Finished, Make, Run};
use super::root;
use super::start::{CREDENTIAL_FD, Started};
use super::terminal::Terminal;
use crate::plan::{LAUNCHER, Root};
use crate::protocol::frame::{Frame, Kind, receive_frame, send_frame};
use crate::protocol::{Streams, Window};
use crate::sys;

/// Descriptor of the socket to the daemon.
const CONTROL_FD: i32 = CREDENTIAL_FD + 1;
/// Descriptor that becomes readable when the sandbox's ids are mapped.
const GATE_FD: i32 = CONTROL_FD + 1;
/// How long a launcher may take to send its descriptors.
const STREAMS_WAIT: Duration = Duration::from_secs(10);
/// That the program was started is told after this time, or with its end: of most programs nobody is woken for it.
const STARTED_DELAY: Duration = Duration::from_millis(3);

/// Be process 1 of what `make` says. `privileged`: the spawner may take other identities.
pub(crate) fn main(control: &OwnedFd, gate: &OwnedFd, make: &Make, privileged: bool) -> ! {
    let Ok((control, gate)) = alone(control, gate) else { sys::exit_now(125) };
    let mut byte = [0];
    if !matches!(File::from(gate).read(&mut byte), Ok(1)) {
        // The spawner could not map the ids; it says so itself.
        sys::exit_now(125);
    }
    let (own, ready) = built(make, privileged).unwrap_or_else(|failure| fail(&control, &failure));
    if send_frame(&control, Kind::Built, &[], &[]).is_err() {
        sys::exit_now(0);
    }
    // Idle, perhaps for long. What was needed to build is not needed any more. Without its starter, which somebody of the
    // same user can kill, a sandbox is of no use: the pool notices that it ended, and makes another.
    if starter_ended(&control, &own.signals) {
        sys::exit_now(0);
    }
    match receive_frame(&control) {
        Ok(Some(Frame { kind: Kind::Run, body, fds })) => match begin(&control, &body, fds, own, ready) {
            Ok(program) => watch(&control, program),
            Err(failure) => fail(&control, &failure),
        },
        _ => sys::exit_now(0),
    }
}

/// Wait until a run is asked for, or, with true, until a child ends before.
fn starter_ended(control: &OwnedFd, signals: &SignalFd) -> bool {
    let mut ready = [PollFd::new(control.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    while nix::poll::poll(&mut ready, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
    ready[1].any() == Some(true)
}

/// Everything that does not depend on the run.
fn built(make: &Make, privileged: bool) -> Result<(Own, Ready), Failure> {
    identify(make, privileged)?;
    let built = root::build(&make.template, &make.identity)?;
    // In the root of an image it may be a link that leads elsewhere.
    if make.place.is_absolute() && make.template.root == Root::Host {
        // If it cannot be made, a run that needs it says so.
        let _ = std::fs::create_dir_all(&make.place);
    }
    let signals = child_signals().map_err(Failure::step("hearing of children"))?;
    let own = Own { signals, scratch_files: scratch_files() };
    Ok((own, Ready::new(built, make.template.root != Root::Host)?))
}

/// Keep the two descriptors and nothing else of the spawner.
fn alone(control: &OwnedFd, gate: &OwnedFd) -> io::Result<(OwnedFd, OwnedFd)> {
    let high = |fd: &OwnedFd| nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(10));
    let (control, gate) = (high(control)?, high(gate)?);
    sys::duplicate(control.as_raw_fd(), CONTROL_FD)?;
    sys::duplicate(gate.as_raw_fd(), GATE_FD)?;
    // Standard descriptors are the spawner's /dev/null.
    sys::duplicate(0, CREDENTIAL_FD)?;
    sys::close_from(GATE_FD + 1, false)?;
    sys::close_from(CREDENTIAL_FD, true)?;
    Ok((sys::own(CONTROL_FD), sys::own(GATE_FD)))
}

fn identify(make: &Make, privileged: bool) -> Result<(), Failure> {
    let failed = || Failure::step("taking the caller's identity");
    sys::reset_signals();
    let identity = &make.identity;
    let (uid, gid) = (identity.uid.into(), identity.gid.into());
    if privileged {
        let groups: Vec<nix::unistd::Gid> = identity.groups.iter().map(|group| (*group).into()).collect();
        setgroups(&groups).map_err(io::Error::from).map_err(failed())?;
    }
    setresgid(gid, gid, gid).map_err(io::Error::from).map_err(failed())?;
    setresuid(uid, uid, uid).map_err(io::Error::from).map_err(failed())?;
    // A change of identity clears the signal and sets the other; here they are for sure.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).map_err(failed())?;
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).map_err(failed())?;
    let _ = nix::sys::prctl::set_name(c"brine-init");
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Ends of children, as data.
fn child_signals() -> io::Result<SignalFd> {
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGCHLD);
    blocked.thread_block()?;
    Ok(SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn fail(control: &OwnedFd, failure: &Failure) -> ! {
    let _ = send_frame(control, Kind::Failed, &failure.encode(), &[]);
    sys::exit_now(125);
}

/// What this process has before there is a program.
struct Own {
    /// Ends of children.
    signals: SignalFd,
    /// Files in scratch that are not the program's.
    scratch_files: u64,
}

/// Files and directories in scratch, itself included.
fn scratch_files() -> u64 {
    nix::sys::statfs::statfs("/tmp").map_or(0, |stat| stat.files() - stat.files_free())
}

/// The program's process, and what is watched of it.
struct Program {
    pid: i32,
    /// When it was started, to be told; none when it was, or if it was killed before.
    untold_ns: Option<u64>,
    launcher: Option<OwnedFd>,
    terminal: Option<Terminal>,
    own: Own,
    started: Instant,
    run: Arc<Run>,
}

/// The socket that processes of the run find its credential at: the daemon listens to it, this process does not keep it.
fn listener(path: &Path) -> io::Result<OwnedFd> {
    let parent = beneath::directory(&sys::open_path(c"/")?, path.parent().unwrap_or(Path::new("/")))?;
    // By a handle: the path may be longer than an address.
    let name = Path::new(&beneath::by_number(&parent)).join(path.file_name().unwrap_or_default());
    Ok(UnixListener::bind(name)?.into())
}

/// A launcher looks for the socket beside itself, which may be elsewhere: a link is there.
fn lead_there(run: &Run, socket: &Path) -> io::Result<()> {
    let launcher = run.views.iter().find(|view| view.source.as_path() == Path::new(LAUNCHER));
    let beside = launcher.map(|launcher| launcher.at.with_file_name(socket.file_name().unwrap_or_default()));
    match beside.filter(|beside| beside != socket) {
        Some(link) => beneath::link(&sys::open_path(c"/")?, socket, &link),
        None => Ok(()),
    }
}

fn begin(control: &OwnedFd, body: &[u8], fds: Vec<OwnedFd>, own: Own, ready: Ready) -> Result<Program, Failure> {
    let malformed = |_| Failure { code: 125, step: "a malformed order to run".into(), errno: 0 };
    let run = Arc::new(Run::decode(body).map_err(malformed)?);
    let mut fds = fds.into_iter();
    let Some(launcher) = fds.next() else {
        return Err(Failure { code: 125, step: "an order to run without a launcher".into(), errno: 0 });
    };
    let credential = fds.next();
    if let Some(path) = &run.credential {
        let socket = listener(path).map_err(Failure::step("the socket of the credential"))?;
        lead_there(&run, path).map_err(Failure::step("the way to the socket of the credential"))?;
        send_frame(control, Kind::Listens, &[], &[socket.as_raw_fd()])
            .map_err(Failure::step("the socket of the credential"))?;
    }
    let (mut streams, said) = streams(&launcher)?;
    let (terminal, end) = match said.relay {
        true => Terminal::open(&mut streams, said.window).map(|(terminal, end)| (Some(terminal), Some(end)))?,
        false => (None, None),
    };
    let started = Instant::now();
    let Started { pid, at_ns } = launch(&run, With { streams, credential, terminal: end }, ready)?;
    Ok(Program { pid, untold_ns: at_ns, launcher: Some(launcher), terminal, own, started, run })
}

/// The launcher's standard descriptors, checked: no directory, no path-only handle.
fn streams(launcher: &OwnedFd) -> Result<([Option<OwnedFd>; 3], Streams), Failure> {
    let failed = |text: &str| Failure { code: 125, step: text.into(), errno: 0 };
    let timeout = PollTimeout::try_from(STREAMS_WAIT).unwrap_or(PollTimeout::MAX);
    let mut files = [PollFd::new(launcher.as_fd(), PollFlags::POLLIN)];
    let ready = loop {
        match poll(&mut files, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other.unwrap_or(0),
        }
    };
    if ready == 0 {
        return Err(failed("the launcher sent no standard descriptors"));
    }
    let Ok(Some(Frame { kind: Kind::Streams, body, fds })) = receive_frame(launcher) else {
        return Err(failed("the launcher went away"));
    };
    let said = Streams::decode(&body).map_err(|_| failed("malformed standard descriptors"))?;
    if said.present.count_ones() as usize != fds.len() {
        return Err(failed("malformed standard descriptors"));
    }
    let mut out = [None, None, None];
    let places = (0..3_usize).filter(|number| said.present >> number & 1 == 1);
    for (number, fd) in places.zip(fds) {
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL).unwrap_or(libc::O_PATH);
        let kind = nix::sys::stat::fstat(&fd).map_or(libc::S_IFDIR, |stat| stat.st_mode & libc::S_IFMT);
        if flags & libc::O_PATH != 0 || kind == libc::S_IFDIR {
            let step = format!("standard descriptor {number} is a directory or cannot be read or written");
            return Err(Failure { code: 126, step, errno: 0 });
        }
        out[number] = Some(fd);
    }
    Ok((out, said))
}

/// Until the program and everything it started is gone.
fn watch(control: &OwnedFd, mut program: Program) -> ! {
    let mut by = EndedBy::Itself;
    let mut deadline = program.started.checked_add(program.run.wall);
    let status = loop {
        if let Some(status) = reap(program.pid) {
            break status;
        }
        // Before anything is waited for: the start itself may have taken longer than nobody is to be woken.
        if program.quiet().is_none() {
            program.tell_started(control);
        }
        let events = program.wait(control, deadline);
        if let Some(terminal) = &mut program.terminal {
            terminal.pump(&events.terminal);
        }
        if events.time_over {
            if by == EndedBy::Itself {
                by = EndedBy::Wall;
                let _ = sys::kill(-1, libc::SIGTERM);
                deadline = Instant::now().checked_add(program.run.grace);
            } else {
                let _ = sys::kill(-1, libc::SIGKILL);
                deadline = None;
            }
        }
        if events.launcher && !program.hear_launcher() {
            program.launcher = None;
            by = EndedBy::Launcher;
            let _ = sys::kill(-1, libc::SIGKILL);
        }
        if events.control {
            match receive_frame(control) {
                Ok(Some(Frame { kind: Kind::Kill, .. })) => {
                    by = EndedBy::Order;
                    let _ = sys::kill(-1, libc::SIGKILL);
                }
                Ok(Some(_)) => {}
                // The daemon is gone: the kernel kills the rest when this process ends.
                Ok(None) | Err(_) => sys::exit_now(125),
            }
        }
    };
    let wall = program.started.elapsed();
    // What it left behind: daemons, children that ignored the end. Nobody of it is alive when the report goes. Whoever it
    // left is a child of this process or of one of its children; without any, to look for them takes longer than to end.
    if sys::wait_any(false).is_ok() {
        let _ = sys::kill(-1, libc::SIGKILL);
        while sys::wait_any(true).is_ok() {}
    }
    if let Some(terminal) = program.terminal.take() {
        terminal.finish();
    }
    let finished = Finished {
        started_ns: program.untold_ns.unwrap_or(0),
        ..finished(status, by, wall, program.own.scratch_files)
    };
    let _ = send_frame(control, Kind::Finished, &finished.encode(), &[]);
    // Its namespaces end with this process, and that takes the processor for longer than what is left to be done for the
    // run: the daemon ends it when the launcher has heard. It waits by poll(2): who waits to receive is woken, too, when
    // what he sent is taken.
    let mut files = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
    while poll(&mut files, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR)
        || matches!(receive_frame(control), Ok(Some(_)))
    {}
    sys::exit_now(0)
}

/// Reap what ended; the program's status if it is among them.
fn reap(program: i32) -> Option<i32> {
    while let Ok(Some((pid, status))) = sys::wait_any(false) {
        if pid == program {
            return Some(status);
        }
    }
    None
}

fn finished(status: i32, by: EndedBy, wall: Duration, scratch_files_before: u64) -> Finished {
    let mut out = Finished { status, by, wall, ..Finished::default() };
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) {
        let time = |time: nix::sys::time::TimeVal| {
            Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).unsigned_abs())
        };
        out.cpu = time(usage.user_time()) + time(usage.system_time());
        out.resident_peak_bytes = usage.max_rss().unsigned_abs() * 1024;
        out.io_blocks = (usage.block_reads() + usage.block_writes()).unsigned_abs();
    }
    if let Ok(stat) = nix::sys::statfs::statfs("/tmp") {
        let block = stat.block_size().unsigned_abs();
        out.scratch_bytes = (stat.blocks() - stat.blocks_free()) * block;
        out.scratch_files = (stat.files() - stat.files_free()).saturating_sub(scratch_files_before);
        out.scratch_full = stat.blocks_free() == 0 || stat.files_free() == 0;
    }
    out
}

/// What happened.
#[derive(Default)]
struct Events {
    control: bool,
    launcher: bool,
    time_over: bool,
    /// Of the terminal's descriptors.
    terminal: Vec<(i32, PollFlags)>,
}

impl Program {
    fn wait(&self, control: &OwnedFd, deadline: Option<Instant>) -> Events {
        let mut files = vec![
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.own.signals.as_fd(), PollFlags::POLLIN),
        ];
        let launcher_at = files.len();
        files.extend(self.launcher.as_ref().map(|launcher| PollFd::new(launcher.as_fd(), PollFlags::POLLIN)));
        let terminal_at = files.len();
        files.extend(self.terminal.iter().flat_map(Terminal::polled));
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.into_iter().chain(self.quiet()).min();
        // Rounded up: a poll that returns early would spin.
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let _ = poll(&mut files, timeout);
        let set = |at: usize| files.get(at).and_then(PollFd::any).unwrap_or(false);
        if set(1) {
            while let Ok(Some(_)) = self.own.signals.read_signal() {}
        }
        let terminal = files[terminal_at..]
            .iter()
            .filter_map(|file| Some((file.as_fd().as_raw_fd(), file.revents().filter(|found| !found.is_empty())?)))
            .collect();
        Events {
            terminal,
            control: set(0),
            launcher: self.launcher.is_some() && set(launcher_at),
            time_over: deadline.is_some_and(|deadline| Instant::now() >= deadline),
        }
    }

    /// How long nobody is to be woken for that it was started.
    fn quiet(&self) -> Option<Duration> {
        self.untold_ns.and_then(|_| STARTED_DELAY.checked_sub(self.started.elapsed()))
    }

    fn tell_started(&mut self, control: &OwnedFd) {
        if let Some(at) = self.untold_ns.take() {
            let _ = send_frame(control, Kind::Started, &at.to_le_bytes(), &[]);
        }
    }

    /// False if the launcher is gone.
    fn hear_launcher(&mut self) -> bool {
        let Some(launcher) = &self.launcher else { return true };
        match receive_frame(launcher) {
            Ok(Some(Frame { kind: Kind::Signal, body, .. })) => {
                if let [signal @ 1..=64] = body[..] {
                    self.pass_on(i32::from(signal));
                }
                true
            }
            Ok(Some(Frame { kind: Kind::Window, body, .. })) => {
                match (Window::decode(&body), &self.terminal) {
                    (Ok(window), Some(terminal)) => terminal.resize(window),
                    // Nothing to resize, but the program may ask its caller's terminal.
                    (Ok(_), None) => self.pass_on(libc::SIGWINCH),
                    (Err(_), _) => {}
                }
                true
            }
            Ok(Some(_)) => true,
            Ok(None) | Err(_) => false,
        }
    }

    /// Signals that a terminal gives to a whole group go to the whole group.
    fn pass_on(&self, signal: i32) {
        let (to, signal) = match signal {
            libc::SIGINT | libc::SIGQUIT | libc::SIGHUP | libc::SIGWINCH | libc::SIGCONT => (-self.pid, signal),
            // A group whose leader's parent is in another session ignores the terminal's own stop signals.
            libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => (-self.pid, libc::SIGSTOP),
            other => (self.pid, other),
        };
        let _ = sys::kill(to, signal);
    }
}
