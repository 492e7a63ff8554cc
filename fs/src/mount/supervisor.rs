//! The supervisor: starts the daemon, and starts it again if it dies while its mount is wanted.
//!
//! One thread, no volume, no database: little that could go wrong. It keeps the secret in its memory for this and
//! nothing else.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, ExitStatus};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::launch::{WORD_LEN_MAX, Word, start, without_a_word};
use super::plan::Plan;
use super::process;
use super::service::unmount;
use crate::exit_code::{ExitCode, Failure};
use crate::mount_table;

/// Restarts in [`RESTART_WINDOW`] at most: a daemon that dies again and again is not helped by more of them.
const RESTARTS_MAX: usize = 5;
/// See [`RESTARTS_MAX`].
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// How a panic of the main thread ends a Rust program.
const PANIC_CODE: i32 = 101;
/// Set for daemons that have a supervisor.
const ROLE: &str = "supervise";

/// Restarts that count against the bound.
#[derive(Debug, Default)]
struct Restarts(Vec<Instant>);

impl Restarts {
    /// How long to wait before one more restart at `now`; `None` if there were too many.
    fn one_more(&mut self, now: Instant) -> Option<Duration> {
        self.0.retain(|at| now.duration_since(*at) < RESTART_WINDOW);
        let before = self.0.len();
        if before >= RESTARTS_MAX {
            return None;
        }
        self.0.push(now);
        // At once, then 0.2, 0.4, 0.8, 1.6 s.
        Some(if before == 0 { Duration::ZERO } else { Duration::from_millis(100 << before) })
    }
}

/// What to do after a daemon's end.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// End with this code.
    End(ExitCode),
    /// Start it again.
    Restart,
}

/// How a daemon ended.
#[derive(Debug, Clone, Copy)]
struct Ended {
    status: ExitStatus,
    /// It said that its mount works.
    ready: bool,
    /// It was asked to end through this supervisor.
    asked: bool,
    /// Its mount is still there, dead.
    left_behind: bool,
    /// It is not the first one.
    again: bool,
}

impl Ended {
    fn next(self) -> Next {
        let died = self.status.signal().is_some() || self.status.code() == Some(PANIC_CODE);
        let code = match self.status.code() {
            Some(code) if !died => ExitCode::from_number(u8::try_from(code).unwrap_or(1)),
            _ => ExitCode::Failed,
        };
        let wanted = !self.asked && (self.again || self.ready);
        match (died, code) {
            (false, ExitCode::Success) => Next::End(code),
            // Somebody else has mounted it meanwhile.
            (false, ExitCode::Busy) => Next::End(code),
            // It tried to come back and could not: perhaps a disk is just coming back as well.
            (false, _) if wanted && !self.ready => Next::Restart,
            // It closed the volume in an orderly way, with an error that is in the log.
            (false, _) => Next::End(code),
            // Unmounted before it died: nobody wants it back.
            (true, _) if wanted && (self.left_behind || !self.ready) => Next::Restart,
            (true, _) => Next::End(code),
        }
    }
}

/// The supervisor of this process, if it has one: then it is its parent.
pub(super) fn of_this_process() -> Option<u32> {
    let parent = u32::try_from(nix::unistd::getppid().as_raw()).ok()?;
    let command = std::fs::read(format!("/proc/{parent}/cmdline")).ok()?;
    let mut words = command.split(|byte| *byte == 0);
    (words.next() == Some(b"brine") && words.next() == Some(ROLE.as_bytes())).then_some(parent)
}

/// `brine supervise`.
pub fn supervise_command() -> ExitCode {
    process::harden();
    process::set_name();
    let failed = |failure: Failure| {
        let code = failure.code();
        log::error!("{failure}");
        let _ = Word::Failed(failure).say(io::stdout());
        code
    };
    let plan = match Plan::from_stdin() {
        Ok(plan) => plan,
        Err(error) => return failed(Failure::new(ExitCode::Usage, error.to_string())),
    };
    process::detach_from_terminal();
    if let Err(failure) = plan.start_log() {
        return failed(failure);
    }
    let mut signals = process::ending_signals();
    signals.add(Signal::SIGCHLD);
    let listening = signals.thread_block().and_then(|()| SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC));
    match listening {
        Ok(signals) => supervise(&plan, &signals),
        Err(errno) => failed(Failure::io("listening for signals", &errno.into())),
    }
}

fn supervise(plan: &Plan, signals: &SignalFd) -> ExitCode {
    let mut restarts = Restarts::default();
    let mut again = false;
    loop {
        let watched = start("serve", plan).and_then(|child| {
            watch(child, signals, plan, again).map_err(|error| Failure::io("watching the daemon", &error))
        });
        let ended = match watched {
            Ok(ended) => ended,
            Err(failure) => {
                log::error!("{failure}");
                let code = failure.code();
                let _ = Word::Failed(failure).say(io::stdout());
                return code;
            }
        };
        let shown = plan.mountpoint.display();
        match ended.next() {
            Next::End(code) => {
                if ended.left_behind {
                    take_away(&plan.mountpoint);
                }
                return code;
            }
            Next::Restart => match restarts.one_more(Instant::now()) {
                Some(pause) => {
                    log::error!("the daemon of {shown} ended ({}); mounting again", ended.status);
                    std::thread::sleep(pause);
                    again = true;
                }
                None => {
                    log::error!(
                        "the daemon of {shown} ended ({}), {RESTARTS_MAX} times in {} s; giving up. When the cause is \
                         found: `brine mount {} {shown}`",
                        ended.status,
                        RESTART_WINDOW.as_secs(),
                        plan.shown_source.display()
                    );
                    take_away(&plan.mountpoint);
                    return ExitCode::Failed;
                }
            },
        }
    }
}

/// A daemon's own mount that nobody serves any more.
fn left_behind(mountpoint: &Path) -> bool {
    mount_table::at(mountpoint).ok().flatten().is_some_and(|mount| mount.is_brine() && mount.is_dead())
}

fn take_away(mountpoint: &Path) {
    if left_behind(mountpoint)
        && let Err(failure) = unmount(mountpoint, true)
    {
        log::error!("{failure}");
    }
}

/// Until the daemon ends: pass its words on, and signals to it.
fn watch(mut child: Child, signals: &SignalFd, plan: &Plan, again: bool) -> io::Result<Ended> {
    let pid = Pid::from_raw(child.id() as i32);
    let mut words = Words { output: child.stdout.take(), heard: Vec::new(), ready: false, last: false, silent: again };
    let mut asked = false;
    let status = loop {
        let (signalled, spoken) = wait(signals, words.output.as_ref())?;
        if spoken && !words.hear()? {
            // Whoever mounted has gone without waiting for it.
            asked = true;
            let _ = kill(pid, Signal::SIGTERM);
        }
        if !signalled {
            continue;
        }
        match signals.read_signal()?.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok()) {
            Some(Signal::SIGCHLD) => {
                if let Some(status) = child.try_wait()? {
                    break status;
                }
            }
            Some(signal) => {
                asked = true;
                // It may have ended just now; then SIGCHLD is next.
                let _ = kill(pid, signal);
            }
            None => {}
        }
    };
    // Its last word may still be in the pipe.
    while words.output.is_some() {
        words.hear()?;
    }
    if !words.last {
        words.pass_on(&Word::Failed(without_a_word(&plan.log, &status.to_string())));
    }
    // By now there is a place for it.
    let _ = plan.start_log();
    Ok(Ended { status, ready: words.ready, asked, left_behind: left_behind(&plan.mountpoint), again })
}

/// What a daemon says until it is ready, passed on to the command that waits.
struct Words {
    output: Option<ChildStdout>,
    heard: Vec<u8>,
    /// It said that its mount works.
    ready: bool,
    /// It said its last word.
    last: bool,
    /// Nobody waits: this is not the first daemon.
    silent: bool,
}

impl Words {
    /// Read once. False if nobody is there to be told.
    fn hear(&mut self) -> io::Result<bool> {
        let Some(pipe) = &mut self.output else { return Ok(true) };
        let mut buffer = [0; 4096];
        let len = pipe.read(&mut buffer)?;
        self.heard.extend_from_slice(&buffer[..len]);
        if len == 0 || self.heard.len() as u64 > WORD_LEN_MAX {
            self.output = None;
        }
        let mut told = true;
        while let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.heard.drain(..=end).collect();
            if let Some(word) = Word::parse(&line) {
                told &= self.pass_on(&word);
            }
        }
        Ok(told)
    }

    /// False if nobody waits any more. The last word closes the pipe.
    fn pass_on(&mut self, word: &Word) -> bool {
        let last = !matches!(word, Word::Step(_));
        self.ready |= matches!(word, Word::Ready { .. });
        self.last |= last;
        if self.silent {
            return true;
        }
        let said = word.say(io::stdout());
        if last {
            self.silent = true;
            return said.and_then(|()| process::close_standard_files()).is_ok();
        }
        said.is_ok()
    }
}

/// Sleep until there is a signal or something in the pipe; which of them.
fn wait(signals: &SignalFd, output: Option<&ChildStdout>) -> io::Result<(bool, bool)> {
    let mut files = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    files.extend(output.map(|output| PollFd::new(output.as_fd(), PollFlags::POLLIN)));
    match poll(&mut files, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let set = |index: usize| files.get(index).and_then(PollFd::any).unwrap_or(false);
    Ok((set(0), set(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(status: i32) -> Ended {
        Ended { status: ExitStatus::from_raw(status), ready: true, asked: false, left_behind: true, again: false }
    }

    const KILLED: i32 = 9;
    const PANICKED: i32 = PANIC_CODE << 8;

    #[test]
    fn a_daemon_that_dies_is_started_again() {
        assert_eq!(ended(KILLED).next(), Next::Restart);
        assert_eq!(ended(PANICKED).next(), Next::Restart);
        assert_eq!(Ended { again: true, ready: false, left_behind: false, ..ended(KILLED) }.next(), Next::Restart);
    }

    #[test]
    fn one_that_nobody_wants_is_not() {
        assert_eq!(ended(0).next(), Next::End(ExitCode::Success));
        assert_eq!(Ended { asked: true, ..ended(KILLED) }.next(), Next::End(ExitCode::Failed));
        assert_eq!(Ended { left_behind: false, ..ended(KILLED) }.next(), Next::End(ExitCode::Failed));
        // The first start failed: whoever asked for it is told.
        assert_eq!(Ended { ready: false, ..ended(KILLED) }.next(), Next::End(ExitCode::Failed));
        let refused = i32::from(ExitCode::WrongSecret.number()) << 8;
        assert_eq!(Ended { ready: false, ..ended(refused) }.next(), Next::End(ExitCode::WrongSecret));
    }

    #[test]
    fn one_that_cannot_come_back_tries_again_unless_the_volume_is_taken() {
        let failed = |code: ExitCode| Ended { again: true, ready: false, ..ended(i32::from(code.number()) << 8) };
        assert_eq!(failed(ExitCode::Io).next(), Next::Restart);
        assert_eq!(failed(ExitCode::Busy).next(), Next::End(ExitCode::Busy));
        let closed_with_error = Ended { again: true, ..ended(i32::from(ExitCode::Io.number()) << 8) };
        assert_eq!(closed_with_error.next(), Next::End(ExitCode::Io));
    }

    #[test]
    fn restarts_are_bounded_and_slow_down() {
        let mut restarts = Restarts::default();
        let start = Instant::now();
        let pauses: Vec<_> = (0..6).map(|_| restarts.one_more(start).map(|pause| pause.as_millis())).collect();
        assert_eq!(pauses, [Some(0), Some(200), Some(400), Some(800), Some(1600), None]);
        assert_eq!(restarts.one_more(start + RESTART_WINDOW), Some(Duration::ZERO));
    }
}
