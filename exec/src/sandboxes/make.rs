//! Making and destroying one sandbox.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::{Over, POOL_TICK, Shared};
use crate::cgroup::{Group, GroupLimits};
use crate::error::{Error, Result};
use crate::pool::{self, Kind as PoolKind};
use crate::protocol::frame::{Kind, receive_frame};
use crate::sandbox::message::{Failure, Make};
use crate::spawner::Client;
use crate::sys;

/// How long an init may take to build: mounts on a busy machine.
const BUILD_WAIT: Duration = Duration::from_secs(30);
/// How long a killed init may take to be gone.
const END_WAIT: Duration = Duration::from_secs(10);

/// One sandbox, made and not necessarily used.
#[derive(Debug)]
pub(super) struct Sandbox {
    /// To its init.
    pub control: Arc<OwnedFd>,
    pub pidfd: OwnedFd,
    pub pid: i32,
    pub group: Group,
}

impl Sandbox {
    /// Kill everything in it, at once.
    pub fn kill(&self) {
        let _ = sys::pidfd_signal(&self.pidfd, libc::SIGKILL);
        self.group.kill_all();
    }

    /// Kill it, wait until it is gone, remove its groups. False if something was left.
    pub fn destroy(&self) -> bool {
        self.kill();
        is_readable(&self.pidfd, END_WAIT) && self.group.remove()
    }
}

/// Whether `fd` becomes readable (a process handle: ends) in time.
pub(crate) fn is_readable(fd: impl AsFd, wait: Duration) -> bool {
    let deadline = Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.is_ok_and(|ready| ready > 0),
        }
    }
}

/// A pair of stream sockets.
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?)
}

impl Shared {
    /// A sandbox of the pool that lives: those of a spawner that was killed died with it.
    pub(super) fn living(&self, kind: &PoolKind, limits: GroupLimits, now: Instant) -> Option<Sandbox> {
        loop {
            let sandbox = self.pool.lock().take(kind, limits, now)?;
            if !is_readable(&sandbox.pidfd, Duration::ZERO) {
                return Some(sandbox);
            }
            self.dispose(Over { sandbox, _promise: None });
        }
    }

    /// A new sandbox that waits for its run.
    pub(super) fn make(&self, kind: &PoolKind, limits: &GroupLimits) -> Result<Sandbox> {
        let number = self.serial.fetch_add(1, Ordering::Relaxed);
        let group = self.tree.make(&number.to_string(), limits)?;
        match self.spawn(kind, &group) {
            Ok((control, pidfd, pid)) => {
                let sandbox = Sandbox { control: Arc::new(control), pidfd, pid, group };
                match built(&sandbox) {
                    Ok(()) => Ok(sandbox),
                    Err(error) => {
                        sandbox.destroy();
                        Err(error)
                    }
                }
            }
            Err(error) => {
                group.kill_all();
                group.remove();
                Err(error)
            }
        }
    }

    fn spawn(&self, kind: &PoolKind, group: &Group) -> Result<(OwnedFd, OwnedFd, i32)> {
        let failed = Error::step("handing a control group to the spawner");
        let birth = group.birth().map_err(&failed)?;
        let entrances = group.entrances().map_err(&failed)?;
        let (control, theirs) = socket_pair().map_err(Error::step("a socket for a sandbox"))?;
        let mut fds: Vec<RawFd> = vec![theirs.as_raw_fd()];
        fds.extend(birth.iter().chain(&entrances).map(AsRawFd::as_raw_fd));
        let place = self.config.volume.as_ref().map(|volume| volume.join("exec")).unwrap_or_default();
        let (identity, template) = (kind.identity.clone(), kind.template.clone());
        let make = Make { identity, template, born: birth.is_some(), place };
        let mut spawner = self.spawner.lock();
        if self.stopping.load(Ordering::SeqCst) {
            return Err(Error::Stopping);
        }
        let alive = spawner.as_mut().is_some_and(Client::is_alive);
        if !alive {
            if spawner.take().is_some() {
                log::warn!("the sandbox spawner ended; its runs are lost, another one is started");
            }
            *spawner = Some(self.start_spawner()?);
        }
        let Some(client) = spawner.as_mut() else { return Err(Error::SpawnerLost) };
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        if !client.privileged && (kind.identity.uid, kind.identity.gid) != own {
            return Err(Error::Refused("only root's mounts can run functions for other users".into()));
        }
        let (pid, pidfd) = client.make(&make, &fds)?;
        Ok((control, pidfd, pid))
    }

    /// A spawner, if this machine lets it be; else why not is kept for the status.
    pub(super) fn start_spawner(&self) -> Result<Client> {
        let started = Client::start(&self.config.program, self.config.volume.as_deref());
        *self.copies.lock() = started.as_ref().ok().map(|client| Arc::clone(&client.copies));
        let unable = started.as_ref().err().map(ToString::to_string);
        let mut last = self.unable.lock();
        if let Some(why) = unable.as_ref().filter(|_| *last != unable) {
            log::error!("nothing can be run in exec/: {why}");
        }
        *last = unable;
        started
    }

    /// The pool's thread: make what is wanted, let go what is not, until the end.
    pub(super) fn keep_pool(&self) {
        let mut pool = self.pool.lock();
        while !self.stopping.load(Ordering::SeqCst) {
            if let Some((kind, limits)) = pool.wanted(Instant::now()) {
                drop(pool);
                let made = self.make(&kind, &limits);
                pool = self.pool.lock();
                let surplus = match made {
                    Ok(sandbox) => pool.put(&kind, sandbox),
                    Err(error) => {
                        log::warn!("a sandbox could not be made ahead: {error}");
                        pool.not_made(&kind);
                        None
                    }
                };
                surplus.into_iter().for_each(|sandbox| self.dispose(Over { sandbox, _promise: None }));
                continue;
            }
            let wait = if pool.is_waiting(Instant::now()) { pool::QUIET } else { POOL_TICK };
            self.pool_changed.wait_for(&mut pool, wait);
            let surplus = pool.surplus(Instant::now());
            surplus.into_iter().for_each(|sandbox| self.dispose(Over { sandbox, _promise: None }));
        }
    }

    /// Hand it to the thread that ends sandboxes; at the end of everything, do it here.
    pub(super) fn dispose(&self, over: Over) {
        let rest = match &*self.over.lock() {
            Some(sender) => sender.send(over).err().map(|error| error.0),
            None => Some(over),
        };
        if let Some(over) = rest {
            over.sandbox.destroy();
        }
    }
}

/// Wait until it says so.
fn built(sandbox: &Sandbox) -> Result<()> {
    if !is_readable(sandbox.control.as_ref(), BUILD_WAIT) {
        return Err(Error::Sandbox { code: 125, text: "building a sandbox took too long".into() });
    }
    match receive_frame(sandbox.control.as_ref()) {
        Ok(Some(frame)) if frame.kind == Kind::Built => Ok(()),
        Ok(Some(frame)) if frame.kind == Kind::Failed => match Failure::decode(&frame.body) {
            Ok(mut failure) => {
                failure.step = format!("building the sandbox failed at {}", failure.step);
                Err(failure.into())
            }
            Err(error) => Err(error),
        },
        _ => Err(Error::Sandbox { code: 125, text: "the sandbox ended while it was built".into() }),
    }
}
