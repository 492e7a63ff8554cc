//! What the filesystem sees: it decides through [`Host`], and is told what became of it.
//!
//! One thread accepts launchers, one thread a launcher talks to it and waits for its run. None of them is a thread that
//! serves the filesystem, so that a function may read the volume it runs from (X5). A launcher that goes away takes
//! its run with it: the run's init sees its connection end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::invocation::Caller;
use crate::plan::{Identity, Plan};
use crate::protocol::frame::{Kind, receive_frame, send_frame};
use crate::protocol::{Ended, Request};
use crate::run_record::{Outcome, RunId, Verdict};
use crate::sandboxes::Sandboxes;
use crate::sys;

/// Launchers that are talked to at one time; the kernel queues some more. Runs are bounded by the ledger.
const LAUNCHERS_MAX: usize = 2048;
/// Functions one run may have invoked at one time.
const CALLS_MAX: usize = 64;
/// A launcher that started to talk finishes within this time.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// Stack of a thread that talks to a launcher: it decodes, and asks the host.
const STACK_BYTES: usize = 1 << 20;

/// A run the host agreed to.
#[derive(Debug)]
pub struct Admitted {
    /// What to do.
    pub plan: Plan,
    /// It may invoke functions: it gets a credential (X12), descriptor 3 of the program, over which launchers inside it
    /// connect. Revoked before its end is told to anybody.
    pub calls: bool,
}

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
    ) -> Result<Admitted>;

    /// The run was not started: refused by [`Self::admit`], no room, or its sandbox could not be made. Called before
    /// its launcher hears; what the run held (ticket, credential) is revoked here.
    fn refused(&self, id: RunId, caller: &Caller, why: &Error);

    /// The program has been started.
    fn started(&self, id: RunId);

    /// The run ended and no process of it is left. Called before its launcher hears: revoke, publish, record here; what
    /// is changed in `outcome` (verdict, cause, line) is what the launcher is told.
    fn ended(&self, outcome: &mut Outcome);
}

/// Launchers are served until this is stopped or dropped.
#[derive(Debug)]
pub struct Service {
    stop: Mutex<Option<OwnedFd>>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl Service {
    /// Serve launchers that connect to `listener`. Who may connect is the socket file's mode.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(listener: UnixListener, sandboxes: Arc<Sandboxes>, host: Arc<dyn Host>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let acceptor = std::thread::Builder::new()
            .name("brine-exec".into())
            .spawn(move || accept(&listener, &stopped, &sandboxes, &host))?;
        Ok(Self { stop: Mutex::new(Some(stop)), acceptor: Mutex::new(Some(acceptor)) })
    }

    /// Accept no more. Runs that go on are ended by [`Sandboxes::stop`]; their launchers still hear how.
    pub fn stop(&self) {
        drop(self.stop.lock().take());
        if let Some(acceptor) = self.acceptor.lock().take() {
            let _ = acceptor.join();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(listener: &UnixListener, stopped: &OwnedFd, sandboxes: &Arc<Sandboxes>, host: &Arc<dyn Host>) {
    let talking = Arc::new(AtomicUsize::new(0));
    loop {
        let mut files = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            // The other end is closed to stop.
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut files, PollTimeout::NONE);
        if files[1].any().unwrap_or(true) {
            return;
        }
        let launcher = match listener.accept() {
            Ok((launcher, _)) => launcher,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                // Descriptors are out: those that wait are served when some are free.
                log::warn!("a launcher could not be accepted: {error}");
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        let talk = Talk { launcher, sandboxes: Arc::clone(sandboxes), host: Arc::clone(host), parent: None };
        if talking.fetch_add(1, Ordering::SeqCst) >= LAUNCHERS_MAX {
            talking.fetch_sub(1, Ordering::SeqCst);
            talk.say(&refusal(&Error::Full("too many runs are asked for at once")));
            continue;
        }
        let counter = Arc::clone(&talking);
        let thread = std::thread::Builder::new().name("brine-exec-run".into()).stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || {
            talk.serve();
            counter.fetch_sub(1, Ordering::SeqCst);
        });
        if let Err(error) = spawned {
            // The launcher's connection closed with the thread that never was; it ends with 125.
            log::warn!("a launcher could not be served: {error}");
            talking.fetch_sub(1, Ordering::SeqCst);
        }
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
    /// The run it is in.
    parent: Option<RunId>,
}

impl Talk {
    fn say(&self, ended: &Ended) {
        // A launcher that is gone needs no answer.
        let _ = send_frame(&self.launcher, Kind::Ended, &ended.encode(), &[]);
    }

    fn serve(&self) {
        match self.request() {
            Ok(Some((request, function, caller))) => {
                let id = RunId::random();
                let ended = match self.run(id, request, function, &caller) {
                    Ok(outcome) => Ended { verdict: outcome.verdict, line: outcome.line },
                    Err(error) => {
                        self.host.refused(id, &caller, &error);
                        refusal(&error)
                    }
                };
                self.say(&ended);
            }
            // It looked and went.
            Ok(None) => {}
            Err(error) => self.say(&refusal(&error)),
        }
    }

    fn request(&self) -> Result<Option<(Request, Option<OwnedFd>, Caller)>> {
        let failed = Error::step("hearing a launcher");
        self.launcher.set_nonblocking(false).map_err(&failed)?;
        self.launcher.set_read_timeout(Some(REQUEST_WAIT)).map_err(&failed)?;
        let (pid, uid, gid, groups) = sys::peer(&self.launcher).map_err(&failed)?;
        let Some(mut frame) = receive_frame(&self.launcher).map_err(&failed)? else { return Ok(None) };
        if frame.kind != Kind::Request || frame.fds.len() > 1 {
            return Err(Error::Malformed("a launcher asks for a run, with one descriptor at most"));
        }
        let caller = Caller { pid, identity: Identity { uid, gid, groups } };
        Ok(Some((Request::decode(&frame.body)?, frame.fds.pop(), caller)))
    }

    fn run(&self, id: RunId, request: Request, function: Option<OwnedFd>, caller: &Caller) -> Result<Outcome> {
        let admitted = self.host.admit(id, request, function, caller, self.parent)?;
        let credential = if admitted.calls { Some(self.credential(id)?) } else { None };
        let (inner, credential) = credential.unzip();
        let begun = self.sandboxes.begin(id, &admitted.plan, inner)?;
        let accepted = send_frame(&self.launcher, Kind::Accepted, &id.0, &[begun.launcher.as_raw_fd()]);
        // Ours is closed: from now on the launcher's end is the only one, and if it never got it the run ends.
        drop(begun.launcher);
        if accepted.is_err() {
            log::debug!("run {id}: its launcher went away");
        }
        let mut outcome = begun.running.wait(|| self.host.started(id))?;
        drop(credential);
        self.host.ended(&mut outcome);
        Ok(outcome)
    }

    /// A run's credential: the end it gets, and what revokes it when dropped.
    fn credential(&self, id: RunId) -> Result<(OwnedFd, Credential)> {
        let failed = Error::step("making the credential");
        let (outer, inner) = UnixStream::pair().map_err(&failed)?;
        let heard = outer.try_clone().map_err(&failed)?;
        let (sandboxes, host) = (Arc::clone(&self.sandboxes), Arc::clone(&self.host));
        std::thread::Builder::new()
            .name("brine-exec-call".into())
            .stack_size(STACK_BYTES)
            .spawn(move || hear_calls(&heard, id, &sandboxes, &host))
            .map_err(&failed)?;
        Ok((inner.into(), Credential(outer)))
    }
}

/// Revokes a run's credential when dropped: what comes over it later is heard by nobody.
struct Credential(UnixStream);

impl Drop for Credential {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

/// Serve the launchers inside a run until its credential is revoked or it says what is no call.
fn hear_calls(credential: &UnixStream, run: RunId, sandboxes: &Arc<Sandboxes>, host: &Arc<dyn Host>) {
    let talking = Arc::new(AtomicUsize::new(0));
    while let Ok(Some(mut frame)) = receive_frame(credential) {
        let (Kind::Call, Some(launcher)) = (frame.kind, frame.fds.pop()) else { return };
        let talk = Talk {
            launcher: launcher.into(),
            sandboxes: Arc::clone(sandboxes),
            host: Arc::clone(host),
            parent: Some(run),
        };
        if talking.fetch_add(1, Ordering::SeqCst) >= CALLS_MAX {
            talking.fetch_sub(1, Ordering::SeqCst);
            talk.say(&refusal(&Error::Full("the run invokes too many functions at once")));
            continue;
        }
        let counter = Arc::clone(&talking);
        let thread = std::thread::Builder::new().name("brine-exec-run".into()).stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || {
            talk.serve();
            counter.fetch_sub(1, Ordering::SeqCst);
        });
        if spawned.is_err() {
            talking.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
