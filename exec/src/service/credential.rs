//! A run's credential (X12): what its processes ask for over it while it runs, and that all of it is over when the run is.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use parking_lot::{Condvar, Mutex};

use super::{Host, STACK_BYTES, Talk, refusal};
use crate::error::{Error, Result};
use crate::protocol::frame::{Frame, Kind, receive_frame};
use crate::run_record::RunId;
use crate::sandboxes::Sandboxes;

/// Things one run may ask for over its credential at one time.
const CALLS_MAX: usize = 64;
/// Runs that a run invoked are killed when it ends, and are over within this time; what takes longer hangs in a disk.
const CLOSE_WAIT: Duration = Duration::from_secs(20);
/// When descriptors or memory are out: until it is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// What is asked for from inside a run, and by whom.
pub(super) struct Inside {
    pub run: RunId,
    /// Process number of its init, which is above every process of the run.
    pub init: i32,
    sandboxes: Arc<Sandboxes>,
    host: Arc<dyn Host>,
    /// Set with `talks` locked.
    ended: AtomicBool,
    talks: Mutex<Talks>,
    /// Signalled when a talk is over.
    over: Condvar,
}

#[derive(Default)]
struct Talks {
    next: u64,
    open: HashMap<u64, Open>,
}

struct Open {
    socket: UnixStream,
    /// The run it began.
    run: Option<RunId>,
}

impl Inside {
    /// For a run that was begun.
    pub fn new(run: RunId, init: i32, sandboxes: &Arc<Sandboxes>, host: &Arc<dyn Host>) -> Arc<Self> {
        let (sandboxes, host) = (Arc::clone(sandboxes), Arc::clone(host));
        let (talks, over) = (Mutex::default(), Condvar::new());
        Arc::new(Self { run, init, sandboxes, host, ended: AtomicBool::new(false), talks, over })
    }

    fn enter(self: &Arc<Self>, launcher: &UnixStream) -> Result<Seat> {
        let socket = launcher.try_clone().map_err(Error::step("hearing a launcher"))?;
        let mut talks = self.talks.lock();
        if self.ended.load(Ordering::SeqCst) {
            return Err(Error::Refused("the run that asks has ended".into()));
        }
        if talks.open.len() >= CALLS_MAX {
            return Err(Error::Full("the run asks for too much at once"));
        }
        let number = talks.next;
        talks.next += 1;
        talks.open.insert(number, Open { socket, run: None });
        Ok(Seat { inside: Arc::clone(self), number })
    }

    fn talk(self: &Arc<Self>, launcher: UnixStream) {
        let (seat, refused) = self.enter(&launcher).map_or_else(|error| (None, Some(error)), |seat| (Some(seat), None));
        let talk =
            Talk { launcher, sandboxes: Arc::clone(&self.sandboxes), host: Arc::clone(&self.host), parent: seat };
        if let Some(error) = refused {
            talk.say_at_once(&refusal(&error));
            return;
        }
        let thread = std::thread::Builder::new().name("brine-exec-talk".into()).stack_size(STACK_BYTES);
        // Without a thread its socket closes.
        if let Err(error) = thread.spawn(move || talk.serve()) {
            log::warn!("run {}: no thread for what it asks: {error}", self.run);
        }
    }

    /// Refuse everything from now on, end what was begun, and wait until nothing of it is left.
    fn close(&self) {
        let mut talks = self.talks.lock();
        self.ended.store(true, Ordering::SeqCst);
        for open in talks.open.values() {
            let _ = open.socket.shutdown(std::net::Shutdown::Both);
            open.run.map(|run| self.sandboxes.kill(run));
        }
        let deadline = Instant::now() + CLOSE_WAIT;
        while !talks.open.is_empty() {
            if self.over.wait_until(&mut talks, deadline).timed_out() {
                log::warn!("run {}: {} of what it asked for do not end", self.run, talks.open.len());
                return;
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

/// One talk with a process of a run. The run's end is told when none is left.
pub(super) struct Seat {
    pub inside: Arc<Inside>,
    number: u64,
}

impl Seat {
    /// Whether what is done for it is of no use any more.
    pub fn has_ended(&self) -> bool {
        self.inside.ended.load(Ordering::SeqCst)
    }

    /// A run was begun for it.
    pub fn begun(&self, run: RunId) {
        let mut talks = self.inside.talks.lock();
        if let Some(open) = talks.open.get_mut(&self.number) {
            open.run = Some(run);
        }
        if self.inside.has_ended() {
            self.inside.sandboxes.kill(run);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.inside.talks.lock().open.remove(&self.number);
        self.inside.over.notify_all();
    }
}

/// Revoked when dropped: what comes over its sockets later is heard by nobody, and what came before is over.
pub(super) struct Credential {
    inside: Arc<Inside>,
    heard: Vec<OwnedFd>,
}

impl Credential {
    pub fn new(inside: Arc<Inside>) -> Self {
        Self { inside, heard: Vec::new() }
    }

    /// Hear processes that hand over connections.
    pub fn hear_calls(&mut self, socket: OwnedFd) -> Result<()> {
        self.hear(socket, hear_calls)
    }

    /// Hear processes that connect.
    pub fn hear_connections(&mut self, socket: OwnedFd) -> Result<()> {
        self.hear(socket, |socket, inside| hear_connections(socket.into(), inside))
    }

    fn hear(&mut self, socket: OwnedFd, run: impl FnOnce(OwnedFd, &Arc<Inside>) + Send + 'static) -> Result<()> {
        let failed = Error::step("hearing a run's credential");
        let heard = socket.try_clone().map_err(&failed)?;
        let inside = Arc::clone(&self.inside);
        let thread = std::thread::Builder::new().name("brine-exec-call".into()).stack_size(STACK_BYTES);
        thread.spawn(move || run(heard, &inside)).map_err(&failed)?;
        self.heard.push(socket);
        Ok(())
    }
}

impl Drop for Credential {
    fn drop(&mut self) {
        self.heard.iter().for_each(close);
        self.inside.close();
    }
}

/// Whoever is at the other end, or waits there, hears that it is over.
fn close(socket: &OwnedFd) {
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}

/// Whether the next try may succeed.
fn is_passing(error: &io::Error) -> bool {
    let passing =
        [libc::EINTR, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::ECONNABORTED, libc::EAGAIN];
    error.raw_os_error().is_some_and(|errno| passing.contains(&errno))
}

/// Serve the processes of a run that hand over connections, until its credential is revoked or one says what is no
/// call: then it is closed for all.
fn hear_calls(credential: OwnedFd, inside: &Arc<Inside>) {
    loop {
        match receive_frame(&credential) {
            Ok(Some(Frame { kind: Kind::Call, mut fds, .. })) => match fds.pop() {
                Some(launcher) => inside.talk(launcher.into()),
                // Descriptors were out: the kernel closed it, and its other end hears that.
                None => log::warn!("run {}: a call came without its connection", inside.run),
            },
            Err(error) if is_passing(&error) && !inside.has_ended() => std::thread::sleep(PAUSE),
            Ok(_) | Err(_) => break,
        }
    }
    close(&credential);
}

/// Serve the processes of a run that connect, until its credential is revoked.
fn hear_connections(socket: UnixListener, inside: &Arc<Inside>) {
    loop {
        match socket.accept() {
            Ok((launcher, _)) => inside.talk(launcher),
            Err(error) if is_passing(&error) && !inside.has_ended() => {
                log::warn!("run {}: what it asks for could not be accepted: {error}", inside.run);
                std::thread::sleep(PAUSE);
            }
            Err(_) => break,
        }
    }
    close(&socket.into());
}
