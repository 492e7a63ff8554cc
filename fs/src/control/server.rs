//! The answering side of the control socket.
//!
//! A thread a connection, one request each. Whoever is neither root nor the daemon's user is told so and not heard; but
//! at a public socket everybody is heard who asks about functions and runs.

use std::fs;
use std::io::{self, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::geteuid;
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use super::{CONNECTIONS_MAX, Line, Progress, REQUEST_LEN_MAX, Request, read_line, with_short_name};
use crate::exec_dir::request::{Asker, ExecRequest};
use crate::exit_code::{ExitCode, Failure};

/// How long a client may take to say what it wants.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// How long the end of the daemon waits for answers that are on their way.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);

/// What a mounted volume does when asked. The server knows lines and threads, the service knows volumes.
pub trait Service: Send + Sync + 'static {
    /// Everything `brine status` shows.
    ///
    /// # Errors
    /// What keeps it from being known.
    fn status(&self) -> Result<Value, Failure>;
    /// Make everything accepted so far durable.
    ///
    /// # Errors
    /// Why it is not.
    fn sync(&self) -> Result<Value, Failure>;
    /// A long request: check, heal or replace. Ends early when `step` returns false.
    ///
    /// # Errors
    /// Why it was not done.
    fn work(&self, request: &Request, step: &(dyn Fn(Progress) -> bool + Sync)) -> Result<Value, Failure>;
    /// A request of one of the families of commands. Ends early when `step` returns false. Several may run at a time.
    ///
    /// # Errors
    /// Why it was not done.
    fn family(&self, request: &Request, step: &(dyn Fn(Progress) -> bool + Sync)) -> Result<Value, Failure>;
    /// Functions and their runs.
    ///
    /// # Errors
    /// Why it is refused to this asker, or cannot be done.
    fn exec(&self, request: &ExecRequest, asker: Asker) -> Result<Value, Failure>;
    /// Take the mount away; the daemon then ends by itself.
    ///
    /// # Errors
    /// [`ExitCode::Busy`] while it is used, unless `lazy`.
    fn umount(&self, lazy: bool) -> Result<(), Failure>;
}

struct Shared {
    service: Arc<dyn Service>,
    /// Everybody is heard, about functions and runs.
    public: bool,
    connections: AtomicUsize,
    /// Long requests stop.
    ending: AtomicBool,
    /// How the volume was closed, once it is.
    closed: Mutex<Option<Result<(), Failure>>>,
    closing: Condvar,
}

/// A listening socket; it is removed when dropped.
pub struct Server {
    socket: PathBuf,
    shared: Arc<Shared>,
}

impl Server {
    /// Listen at `socket`. The caller holds the volume's lock, so a socket that is there is a dead daemon's.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(socket: &Path, service: Arc<dyn Service>) -> io::Result<Self> {
        Self::start_at(socket, service, false)
    }

    /// Listen at `socket` to everybody who can reach it, about functions and runs.
    ///
    /// # Errors
    /// What the system says.
    pub fn start_public(socket: &Path, service: Arc<dyn Service>) -> io::Result<Self> {
        Self::start_at(socket, service, true)
    }

    fn start_at(socket: &Path, service: Arc<dyn Service>, public: bool) -> io::Result<Self> {
        match fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = with_short_name(socket, |name| UnixListener::bind(name))?;
        let mode = if public { 0o666 } else { 0o600 };
        fs::set_permissions(socket, fs::Permissions::from_mode(mode))?;
        let shared = Arc::new(Shared {
            service,
            public,
            connections: AtomicUsize::new(0),
            ending: AtomicBool::new(false),
            closed: Mutex::new(None),
            closing: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::Builder::new().name("brine-control".into()).spawn(move || accept(&listener, &accepting))?;
        Ok(Self { socket: socket.to_owned(), shared })
    }

    /// Long requests stop at their next step.
    pub fn stop_work(&self) {
        self.shared.ending.store(true, Ordering::Relaxed);
    }

    /// Tell whoever asked for the unmount how the volume was closed, and wait until they have heard it.
    pub fn finish(self, outcome: Result<(), Failure>) {
        self.stop_work();
        let mut closed = self.shared.closed.lock();
        *closed = Some(outcome);
        self.shared.closing.notify_all();
        while self.shared.connections.load(Ordering::Acquire) > 0 {
            if self.shared.closing.wait_for(&mut closed, GOODBYE_PATIENCE).timed_out() {
                break;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A socket nobody listens at refuses connections; the next daemon removes it.
        let _ = fs::remove_file(&self.socket);
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                log::warn!("control socket: {error}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let taken = shared.connections.fetch_add(1, Ordering::AcqRel);
        let guard = Connection(Arc::clone(shared));
        if taken >= CONNECTIONS_MAX {
            answer(&stream, &Line::Failed(Failure::new(ExitCode::Busy, "the daemon serves too many commands already")));
            continue;
        }
        let started = std::thread::Builder::new().name("brine-command".into()).spawn(move || serve(&stream, &guard.0));
        if let Err(error) = started {
            log::warn!("control socket: {error}");
        }
    }
}

/// Counts a connection until it is dropped.
struct Connection(Arc<Shared>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
        // Under the lock, so that `finish` is either before its check or waiting.
        let _closed = self.0.closed.lock();
        self.0.closing.notify_all();
    }
}

/// Who connected, as the kernel says.
fn asker(stream: &UnixStream) -> Option<Asker> {
    let uid = getsockopt(stream, PeerCredentials).ok()?.uid();
    Some(Asker { uid, commands: uid == 0 || uid == geteuid().as_raw() })
}

fn serve(stream: &UnixStream, shared: &Shared) {
    // A client that stopped reading must not hold the daemon's end up.
    let _ = stream.set_write_timeout(Some(REQUEST_PATIENCE));
    let strange =
        Failure::new(ExitCode::NotPermitted, "the volume is mounted by another user; ask as that user or as root");
    let outcome = match asker(stream).filter(|asker| asker.commands || shared.public) {
        Some(asker) => hear(stream).and_then(|request| match request {
            Request::Exec { .. } => obey(stream, shared, &request, asker),
            _ if shared.public => Err(strange),
            _ => obey(stream, shared, &request, asker),
        }),
        None => Err(strange),
    };
    answer(stream, &outcome.map_or_else(Line::Failed, Line::Done));
}

fn hear(stream: &UnixStream) -> Result<Request, Failure> {
    let unreadable =
        |error: &dyn std::fmt::Display| Failure::usage(format!("a request the daemon cannot read: {error}"));
    stream.set_read_timeout(Some(REQUEST_PATIENCE)).map_err(|error| unreadable(&error))?;
    let line = read_line(&mut BufReader::new(stream), REQUEST_LEN_MAX).map_err(|error| unreadable(&error))?;
    serde_json::from_str(&line.unwrap_or_default()).map_err(|error| unreadable(&error))
}

fn obey(stream: &UnixStream, shared: &Shared, request: &Request, asker: Asker) -> Result<Value, Failure> {
    // Who hung up does not wait for the answer.
    let step = |progress| answer(stream, &Line::Progress(progress)) && !shared.ending.load(Ordering::Relaxed);
    match request {
        Request::Exec { request } => shared.service.exec(request, asker),
        Request::Status => shared.service.status(),
        Request::Sync => shared.service.sync(),
        Request::Check { .. }
        | Request::Heal
        | Request::Replace { .. }
        | Request::Gc { .. }
        | Request::Usage { .. }
        | Request::Retention { .. }
        | Request::Salt { .. } => shared.service.work(request, &step),
        Request::Versions { .. } | Request::Quota { .. } => shared.service.family(request, &step),
        Request::Umount { lazy } => {
            shared.service.umount(*lazy)?;
            if *lazy {
                return Ok(json!({ "closed": false }));
            }
            let mut closed = shared.closed.lock();
            while closed.is_none() {
                shared.closing.wait(&mut closed);
            }
            closed.clone().unwrap_or(Ok(())).map(|()| json!({ "closed": true }))
        }
    }
}

/// Write one line; false if nobody reads it.
fn answer(mut stream: &UnixStream, line: &Line) -> bool {
    let Ok(mut text) = serde_json::to_vec(line) else { return false };
    text.push(b'\n');
    stream.write_all(&text).is_ok()
}
