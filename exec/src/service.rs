//! What the filesystem sees: it decides through [`Host`], and is told what became of it.
//!
//! A few threads wait for launchers; the one that a launcher wakes talks to it and waits for its run. None of them serves
//! the filesystem, so that a function may read the volume it runs from (X5). A launcher that goes away takes
//! its run with it: the run's init sees its connection end.

mod credential;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::invocation::Caller;
use crate::plan::{Identity, Plan};
use crate::protocol::frame::{Kind, receive_frame, send_frame_within};
use crate::protocol::{Ended, Request};
use crate::run_record::{Outcome, RunId, Verdict};
use crate::sandboxes::{Event, Remains, Sandboxes, is_readable};
use crate::sys;
use credential::{Credential, Inside, Seat};

/// Launchers that are talked to at one time; the kernel queues some more. Runs are bounded by the ledger.
const LAUNCHERS_MAX: usize = 2048;
/// Threads that wait for launchers from the start, and at most.
const WAITING_MIN: usize = 4;
const WAITING_MAX: usize = 16;
/// A launcher that started to talk finishes within this time.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// What is told is taken within this time.
const SEND_WAIT: Duration = Duration::from_secs(10);
/// What is left of a run is taken apart this long after its launcher was told.
const TOLD_WAIT: Duration = Duration::from_millis(1);
/// Stack of a thread that talks to a launcher: it decodes, and asks the host.
const STACK_BYTES: usize = 1 << 20;

/// Who decides what is run, and keeps the records. Called on threads of the service, one a run; may block.
pub trait Host: Send + Sync + 'static {
    /// A launcher asks; one inside another run, its `parent`. `function` is an O_PATH descriptor sent instead of a ticket (`brine exec run`). The caller's
    /// identity is what the kernel says about the socket's other end.
    ///
    /// # Errors
    /// Why not; [`Error::exit_code`] and the message are what the launcher ends with. [`Self::refused`] follows.
    fn admit(
        &self,
        id: RunId,
        request: Request,
        function: Option<OwnedFd>,
        caller: &Caller,
        parent: Option<RunId>,
    ) -> Result<Plan>;

    /// A process of a run, `parent`, asks over its credential for a file: a descriptor to read it by, which is of no more
    /// use when the run has ended.
    ///
    /// # Errors
    /// Why not.
    fn open(&self, parent: RunId, path: &Path, caller: &Caller) -> Result<OwnedFd>;

    /// The run was not started: refused by [`Self::admit`], no room, or its sandbox could not be made. Called before
    /// its launcher hears; what the run held (ticket, credential) is revoked here.
    fn refused(&self, id: RunId, caller: &Caller, why: &Error);

    /// The program has been started and goes on; not told of one that ended at once.
    fn started(&self, id: RunId);

    /// The run ended and no process of it is left. Called before its launcher hears: revoke, publish, record here; what
    /// is changed in `outcome` (verdict, cause, line) is what the launcher is told.
    fn ended(&self, outcome: &mut Outcome);

    /// The launcher has heard of what was refused or ended: what nobody waits for can be done now.
    fn told(&self);
}

/// Launchers are served until this is stopped or dropped.
#[derive(Debug)]
pub struct Service(Arc<Door>);

/// Where launchers come.
struct Door {
    listener: UnixListener,
    sandboxes: Arc<Sandboxes>,
    host: Arc<dyn Host>,
    /// Threads that wait there.
    waiting: AtomicUsize,
    /// Launchers that are served.
    talking: AtomicUsize,
    stopped: AtomicBool,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("waiting", &self.waiting).field("talking", &self.talking).finish_non_exhaustive()
    }
}

impl Service {
    /// Serve launchers that connect to `listener`. Who may connect is the socket file's mode.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(listener: UnixListener, sandboxes: Arc<Sandboxes>, host: Arc<dyn Host>) -> io::Result<Self> {
        listener.set_nonblocking(false)?;
        let (waiting, talking) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let door = Arc::new(Door { listener, sandboxes, host, waiting, talking, stopped: AtomicBool::new(false) });
        for _ in 0..WAITING_MIN {
            let own = Arc::clone(&door);
            door.waiting.fetch_add(1, Ordering::SeqCst);
            let thread = std::thread::Builder::new().name("brine-exec-run".into()).stack_size(STACK_BYTES);
            thread.spawn(move || serve(&own))?;
        }
        Ok(Self(door))
    }

    /// Accept no more. Runs that go on are ended by [`Sandboxes::stop`]; their launchers still hear how.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        // Whoever waits there wakes.
        let _ = nix::sys::socket::shutdown(self.0.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Serve launchers, one after the other, until there is nothing to be served any more or enough others wait. Threads
/// wait where launchers come: who wakes serves, and nobody has to be woken in between.
fn serve(door: &Arc<Door>) {
    loop {
        let accepted = door.listener.accept();
        if door.waiting.fetch_sub(1, Ordering::SeqCst) == 1 && !door.stopped.load(Ordering::SeqCst) {
            wait_behind(door);
        }
        match accepted {
            Ok((launcher, _)) => {
                let talk = Talk {
                    launcher,
                    sandboxes: Arc::clone(&door.sandboxes),
                    host: Arc::clone(&door.host),
                    parent: None,
                };
                if door.talking.fetch_add(1, Ordering::SeqCst) >= LAUNCHERS_MAX {
                    talk.say(&refusal(&Error::Full("too many runs are asked for at once")));
                } else {
                    talk.serve();
                }
                door.talking.fetch_sub(1, Ordering::SeqCst);
            }
            Err(_) if door.stopped.load(Ordering::SeqCst) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // Descriptors are out: those that wait are served when some are free.
                log::warn!("a launcher could not be accepted: {error}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        if door.stopped.load(Ordering::SeqCst) || door.waiting.fetch_add(1, Ordering::SeqCst) >= WAITING_MAX {
            door.waiting.fetch_sub(1, Ordering::SeqCst);
            return;
        }
    }
}

/// One more thread that waits. Without it launchers wait until one that serves is done.
fn wait_behind(door: &Arc<Door>) {
    let own = Arc::clone(door);
    door.waiting.fetch_add(1, Ordering::SeqCst);
    let thread = std::thread::Builder::new().name("brine-exec-run".into()).stack_size(STACK_BYTES);
    if let Err(error) = thread.spawn(move || serve(&own)) {
        log::warn!("no thread for launchers: {error}");
        door.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a launcher is told about a run that was not started.
fn refusal(error: &Error) -> Ended {
    Ended { verdict: Verdict::Code(error.exit_code()), line: Some(error.to_string()) }
}

struct Talk {
    launcher: UnixStream,
    sandboxes: Arc<Sandboxes>,
    host: Arc<dyn Host>,
    /// The run it is in, whose credential is used.
    parent: Option<Seat>,
}

impl Talk {
    /// A launcher that is gone, or does not listen, needs no answer.
    fn tell(&self, within: Duration, kind: Kind, body: &[u8], fds: &[RawFd]) {
        if send_frame_within(&self.launcher, kind, body, fds, within).is_err() {
            // Part of it may have been taken.
            let _ = self.launcher.shutdown(std::net::Shutdown::Both);
        }
    }

    fn say(&self, ended: &Ended) {
        self.tell(SEND_WAIT, Kind::Ended, &ended.encode(), &[]);
    }

    /// For threads that others wait for.
    fn say_at_once(&self, ended: &Ended) {
        self.tell(Duration::ZERO, Kind::Ended, &ended.encode(), &[]);
    }

    fn serve(&self) {
        match self.request() {
            Ok(Some((asked, caller))) => {
                let id = RunId::random();
                match self.answer(id, asked, &caller) {
                    Ok(Some((ended, remains))) => {
                        self.say(&ended);
                        if self.parent.is_none() && !self.sandboxes.is_pressed() {
                            // Nothing is to be in the way of the launcher's own end, and of who waits for it.
                            std::thread::sleep(TOLD_WAIT);
                        }
                        drop(remains);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        self.host.refused(id, &caller, &error);
                        self.say(&refusal(&error));
                    }
                }
            }
            // It looked and went.
            Ok(None) => return,
            Err(error) => self.say(&refusal(&error)),
        }
        self.host.told();
    }

    /// What it is told in the end, if anything, and what can be taken apart then.
    fn answer(&self, id: RunId, asked: Asked, caller: &Caller) -> Result<Option<(Ended, Option<Remains>)>> {
        if let Some(parent) = self.parent()
            && !is_below(caller.pid, parent.init)
        {
            return Err(Error::Refused(format!("the credential of run {} was used from outside of it", parent.run)));
        }
        match asked {
            Asked::Run { request, function, connection } => {
                let (outcome, remains) = self.run(id, *request, function, connection, caller)?;
                Ok(Some((Ended { verdict: outcome.verdict, line: outcome.line }, Some(remains))))
            }
            Asked::Open(path, run) => {
                match self.host.open(run, &path, caller) {
                    Ok(file) => {
                        self.tell(SEND_WAIT, Kind::Opened, &[], &[file.as_raw_fd()]);
                        Ok(None)
                    }
                    // No run, so there is no record of it.
                    Err(error) => Ok(Some((refusal(&error), None))),
                }
            }
        }
    }

    fn request(&self) -> Result<Option<(Asked, Caller)>> {
        let failed = Error::step("hearing a launcher");
        self.launcher.set_nonblocking(false).map_err(&failed)?;
        self.launcher.set_read_timeout(Some(REQUEST_WAIT)).map_err(&failed)?;
        let (pid, uid, gid, groups) = sys::peer(&self.launcher).map_err(&failed)?;
        let Some(mut frame) = receive_frame(&self.launcher).map_err(&failed)? else { return Ok(None) };
        let caller = Caller { pid, identity: Identity { uid, gid, groups } };
        if frame.fds.len() > 1 {
            return Err(Error::Malformed("a launcher asks for a run, with one descriptor at most"));
        }
        match (frame.kind, self.parent()) {
            (Kind::Request | Kind::Ask, _) => {
                let mut request = Box::new(Request::decode(&frame.body)?);
                let (mut function, mut connection) = (frame.fds.pop(), None);
                if frame.kind == Kind::Ask {
                    connection = function.take();
                } else {
                    request.ticket = None;
                }
                Ok(Some((Asked::Run { request, function, connection }, caller)))
            }
            (Kind::Open, Some(parent)) => {
                Ok(Some((Asked::Open(OsString::from_vec(frame.body).into(), parent.run), caller)))
            }
            _ => Err(Error::Malformed("a launcher asks for a run, with one descriptor at most")),
        }
    }

    fn run(
        &self,
        id: RunId,
        request: Request,
        function: Option<OwnedFd>,
        connection: Option<OwnedFd>,
        caller: &Caller,
    ) -> Result<(Outcome, Remains)> {
        let plan = self.host.admit(id, request, function, caller, self.parent().map(|parent| parent.run))?;
        let pair = match plan.credential {
            Some(_) => Some(UnixStream::pair().map_err(Error::step("making the credential"))?),
            None => None,
        };
        let (outer, inner) = pair.unzip();
        // While it waits for room: the run it is in can end, and so can the launcher, which says nothing more.
        let gone = || self.parent.as_ref().is_some_and(Seat::has_ended) || is_readable(&self.launcher, Duration::ZERO);
        let begun = self.sandboxes.begin(id, &plan, inner.map(OwnedFd::from), connection, Some(&gone))?;
        if let Some(seat) = &self.parent {
            seat.begun(id);
        }
        let mut credential = Credential::new(Inside::new(id, begun.running.init(), &self.sandboxes, &self.host));
        if let Some(outer) = outer {
            credential.hear_calls(outer.into())?;
        }
        if let Some(launcher) = begun.launcher {
            // Ours is closed then: the launcher's end is the only one, and if it never got it the run ends.
            self.tell(SEND_WAIT, Kind::Accepted, &id.0, &[launcher.as_raw_fd()]);
        }
        let (mut outcome, remains) = begun.running.wait(|event| match event {
            Event::Started => self.host.started(id),
            Event::Listens(socket) => {
                if let Err(error) = credential.hear_connections(socket) {
                    log::warn!("run {id}: {error}");
                }
            }
        })?;
        // What it invoked is over, too.
        drop(credential);
        // While the function is held as it is.
        self.sandboxes.keep_program(&plan);
        self.host.ended(&mut outcome);
        Ok((outcome, remains))
    }

    fn parent(&self) -> Option<&Inside> {
        self.parent.as_ref().map(|seat| &*seat.inside)
    }
}

/// What was asked.
enum Asked {
    Run {
        request: Box<Request>,
        /// Instead of a ticket.
        function: Option<OwnedFd>,
        /// For the init; without one the daemon makes one.
        connection: Option<OwnedFd>,
    },
    /// Over the credential of this run.
    Open(PathBuf, RunId),
}

/// Whether process `pid` is `above` or one that it, or one of its children, started and that was not adopted by another.
/// Every process of a pid namespace is below the first one of it; who joined it by setns(2) is not.
fn is_below(pid: i32, above: i32) -> bool {
    const DEPTH_MAX: usize = 4096;
    let mut at = pid;
    for _ in 0..DEPTH_MAX {
        if at == above {
            return true;
        }
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{at}/stat")) else { return false };
        // Behind the name in parentheses, which may hold anything: state, then the parent.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        match parent {
            Some(parent) if parent > 1 => at = parent,
            _ => return false,
        }
    }
    false
}
