//! The exec side of a mount: the branches of `.brine` it needs, its sockets, and who answers there.
//!
//! The sockets lie in a directory that every user of the mount can search, not in the mount: one bound there would keep
//! it busy.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use brine_exec::plan::LAUNCHER;
use brine_exec::service::{Host, Service};
use brine_exec::{Config, Sandboxes, launcher};
use brine_store::clock::{Clock, SystemClock};
use brine_store::ids::VolumeId;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::watch::Watch;
use crate::control::{self, Server};
use crate::exec_dir::code::CodeNodes;
use crate::exec_dir::command;
use crate::exec_dir::entrance::{Launcher, SocketLink};
use crate::exec_dir::host::RunHost;
use crate::exec_dir::open::OpenFiles;
use crate::exec_dir::request::{Asker, COMMAND_SOCKET, ExecRequest};
use crate::exec_dir::runs::Runs;
use crate::exec_dir::staging::Stagings;
use crate::exit_code::{ExitCode, Failure};
use crate::vfs::Vfs;

/// Where root's daemons listen for everybody: a directory a volume.
const PUBLIC_DIR: &str = "/run/brine-exec";
/// Name of the socket that launchers ask at.
const LAUNCH_SOCKET: &str = "exec.sock";
/// Name of the launcher beside it, where the one in the mount cannot be named.
const LAUNCHER_FILE: &str = "launcher";

/// What helps where the launcher cannot be run.
const ELSEWHERE: &str = "mount with -o launcher=DIR, a directory whose path has no blank, or elsewhere";

/// How long the end of a mount waits for what makes sandboxes to come to life, so that it can be ended.
const START_WAIT: Duration = Duration::from_secs(5);

/// How often staged outputs that were kept are looked through, nanoseconds.
const STAGED_SWEEP_NS: i64 = 600 * 1_000_000_000;

/// How far it is.
enum Stage {
    /// Launchers that come wait.
    Starting(UnixListener),
    /// They are answered.
    Running(Service, Arc<Sandboxes>),
    /// Nothing is run any more.
    Stopped,
}

/// Runs the functions of one mount.
pub(super) struct ExecSide {
    vfs: Arc<Vfs>,
    host: Arc<RunHost>,
    mountpoint: PathBuf,
    device: String,
    directory: PathBuf,
    /// Where the launcher is beside a link to the socket, if it was asked to be somewhere.
    placed: Option<PathBuf>,
    stage: Mutex<Stage>,
    /// Held while all is ended, by whomever: the process must not end before that is done.
    stopping: Mutex<()>,
    /// Makes what makes sandboxes.
    starter: Mutex<Option<JoinHandle<()>>>,
    watch: Mutex<Option<Watch>>,
}

impl ExecSide {
    /// Prepare the exec side of a volume that was mounted at `mountpoint` with this device number (`major:minor`). The
    /// mount itself is not looked at: it need not answer yet. `launcher` is a directory for the launcher, if one was asked for.
    ///
    /// # Errors
    /// Why nothing can be run.
    pub(super) fn new(
        vfs: &Arc<Vfs>,
        mountpoint: &Path,
        shown_device: &str,
        launcher: Option<&Path>,
    ) -> Result<Arc<Self>, Failure> {
        if vfs.shows_past() {
            return Err(Failure::new(ExitCode::ReadOnly, "a past state is shown"));
        }
        if vfs.make_exec_directory()?.is_none() {
            if vfs.volume().is_read_only().is_some() {
                return Err(Failure::new(ExitCode::ReadOnly, "the volume is read-only and has no exec directory"));
            }
            return Err(Failure::new(
                ExitCode::Refused,
                "\"exec\" in the root of the volume is no exec directory; give it another name and mount again",
            ));
        }
        let device = device_number(shown_device)
            .ok_or_else(|| Failure::new(ExitCode::Failed, format!("device number {shown_device} of the mount")))?;
        vfs.exec().policies.load(vfs.volume().policies()?);
        let now_ns = SystemClock.now_ns();
        let runs = Runs::new(vfs, now_ns)?;
        let _ = vfs.exec().runs.set(Arc::clone(&runs));
        let code = CodeNodes::new(vfs, now_ns);
        let stagings = Stagings::new(vfs, now_ns);
        stagings.sweep(&runs, now_ns);
        // Held until its socket is there: another daemon that starts takes what nobody listens in for left behind.
        let public = lock_public().map_err(|error| Failure::io(PUBLIC_DIR, &error))?;
        let directory = socket_directory(vfs.volume().volume_id(), vfs.volume().state_dir())
            .map_err(|error| Failure::io("the directory of the sockets", &error))?;
        let control = vfs.control();
        control.add(Arc::clone(&runs) as _);
        control.add(Arc::clone(&code) as _);
        control.add(Arc::clone(&stagings) as _);
        let opens = OpenFiles::new(vfs, now_ns);
        control.add(Arc::clone(&opens) as _);
        let socket = directory.join(LAUNCH_SOCKET);
        control.add(Arc::new(SocketLink::new(socket.clone(), now_ns)));
        control.add(Arc::new(Launcher::new(launcher::PROGRAM, now_ns)));
        let host = Arc::new(RunHost::new(Arc::clone(vfs), mountpoint.to_owned(), device, code, runs, stagings, opens));
        // Launchers may come from now on; they wait until the sandboxes are ready.
        let listener =
            listen_at(&socket).map_err(|error| Failure::io(format!("the socket {}", socket.display()), &error))?;
        if public.is_some() {
            sweep_public(Path::new(PUBLIC_DIR), &directory);
        }
        drop(public);
        let start = |launcher: &Path| {
            let refused = |why| Failure::new(ExitCode::Refused, format!("{why}: {}; {ELSEWHERE}", launcher.display()));
            vfs.exec().start(launcher).map_err(refused)
        };
        match launcher {
            Some(place) => start(&place_launcher(place, &socket)?)?,
            None => {
                if vfs.exec().start(&mountpoint.join(LAUNCHER)).is_err() {
                    // A blank in the mountpoint, or too long for an interpreter line: by a copy beside the socket.
                    start(&copy_launcher(&directory)?)?;
                }
            }
        }
        Ok(Arc::new(Self {
            vfs: Arc::clone(vfs),
            host,
            mountpoint: mountpoint.to_owned(),
            device: shown_device.to_owned(),
            directory,
            placed: launcher.map(Path::to_owned),
            stage: Mutex::new(Stage::Starting(listener)),
            stopping: Mutex::new(()),
            starter: Mutex::new(None),
            watch: Mutex::new(None),
        }))
    }

    /// Start what makes sandboxes, in a thread of its own: it looks at the mount, which answers only when this thread
    /// serves it. If that fails the log says why, and nothing is run.
    ///
    /// # Errors
    /// No thread can be started, or the mount not be watched.
    pub(super) fn start(self: &Arc<Self>) -> io::Result<()> {
        let (ticking, gone) = (Arc::clone(self), Arc::clone(self));
        let mut next_ns = SystemClock.now_ns() + STAGED_SWEEP_NS;
        let tick = move || {
            ticking.vfs.exec().tickets.sweep(Instant::now());
            let now_ns = SystemClock.now_ns();
            ticking.host.runs().sweep(now_ns);
            if now_ns >= next_ns {
                next_ns = now_ns + STAGED_SWEEP_NS;
                ticking.host.stagings().sweep(ticking.host.runs(), now_ns);
            }
        };
        *self.watch.lock() = Some(Watch::start(&self.mountpoint, &self.device, tick, move || gone.stop())?);
        let exec = Arc::clone(self);
        let starting = move || {
            if let Err(error) = exec.start_sandboxes() {
                log::error!("nothing can be run in exec/ of {}: {error}", exec.mountpoint.display());
                exec.stop();
            }
        };
        let starter = std::thread::Builder::new().name("brine-exec-start".into()).spawn(starting)?;
        *self.starter.lock() = Some(starter);
        Ok(())
    }

    fn start_sandboxes(&self) -> Result<(), brine_exec::Error> {
        let label = self.vfs.volume().volume_id().to_string();
        let sandboxes = Arc::new(Sandboxes::start(Config::new(&label, &self.mountpoint))?);
        let mut stage = self.stage.lock();
        match std::mem::replace(&mut *stage, Stage::Stopped) {
            Stage::Starting(listener) => {
                let host: Arc<dyn Host> = Arc::clone(&self.host) as _;
                let service = Service::start(listener, Arc::clone(&sandboxes), host)
                    .map_err(|source| brine_exec::Error::Step { step: "listening to launchers", source })?;
                *stage = Stage::Running(service, sandboxes);
            }
            // Unmounted meanwhile.
            other => {
                *stage = other;
                drop(stage);
                sandboxes.stop();
            }
        }
        Ok(())
    }

    /// What runs that ended have noted is written when this returns.
    pub(super) fn settle(&self) {
        self.host.runs().settle();
    }

    /// Refuse runs, end those that go on, and let go of every copy of the mount. Safe to call more than once.
    /// When it returns all of that is done, also if another thread does it.
    pub(super) fn stop(&self) {
        let _whole = self.stopping.lock();
        self.vfs.exec().stop();
        let stage = std::mem::replace(&mut *self.stage.lock(), Stage::Stopped);
        if let Stage::Running(service, sandboxes) = stage {
            service.stop();
            sandboxes.stop();
            self.settle();
        }
        let _ = fs::remove_file(self.directory.join(LAUNCH_SOCKET));
    }

    /// It is over: as [`Self::stop`], nothing is watched any more, and nothing stays in the directory of the sockets.
    pub(super) fn finish(&self) {
        self.stop();
        // What was being made meanwhile goes again.
        let starter = self.starter.lock().take();
        let deadline = Instant::now() + START_WAIT;
        while starter.as_ref().is_some_and(|starter| !starter.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(self.watch.lock().take());
        for file in [COMMAND_SOCKET, LAUNCHER_FILE] {
            let _ = fs::remove_file(self.directory.join(file));
        }
        if let Some(place) = &self.placed
            && is_link_to(&place.join(LAUNCH_SOCKET), &self.directory.join(LAUNCH_SOCKET))
        {
            let _ = fs::remove_file(place.join(LAUNCHER_FILE));
            let _ = fs::remove_file(place.join(LAUNCH_SOCKET));
        }
        if self.directory.starts_with(PUBLIC_DIR) {
            let _ = fs::remove_dir(&self.directory);
        }
    }

    /// Listen to `brine exec`.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn listen(&self, service: Arc<dyn control::Service>) -> io::Result<Server> {
        Server::start_public(&self.directory.join(COMMAND_SOCKET), service)
    }

    /// How things stand, for `brine status`.
    pub(super) fn status(&self) -> Value {
        let running = self.host.active().len();
        match &*self.stage.lock() {
            Stage::Starting(_) => json!({ "state": "starting", "running": running }),
            Stage::Stopped => json!({ "state": "stopped", "running": running }),
            Stage::Running(_, sandboxes) => {
                let status = sandboxes.status();
                json!({
                    "state": "running", "running": running, "waiting": status.ledger.waiting,
                    "sandboxes_ready": status.pooled,
                    "from_pool": status.hits_and_misses.0, "built_cold": status.hits_and_misses.1,
                    "unenforceable": status.unenforceable, "spawner_pid": status.spawner,
                    "not_removed": status.not_removed, "unable": status.unable,
                })
            }
        }
    }

    /// Answer `brine exec`.
    pub(super) fn answer(&self, request: &ExecRequest, asker: Asker) -> Result<Value, Failure> {
        let kill = |run| match &*self.stage.lock() {
            Stage::Running(_, sandboxes) => drop(sandboxes.kill(run)),
            Stage::Starting(_) | Stage::Stopped => {}
        };
        command::answer(&self.host, request, asker, &kill)
    }
}

/// The directory of root's daemons, locked; none for other users.
fn lock_public() -> io::Result<Option<fs::File>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    make_public(Path::new(PUBLIC_DIR))?;
    let directory = fs::File::open(PUBLIC_DIR)?;
    directory.lock()?;
    Ok(Some(directory))
}

/// Remove the directories of daemons that were killed: those in which nobody listens. `own` is left alone.
fn sweep_public(public: &Path, own: &Path) {
    let Ok(entries) = fs::read_dir(public) else { return };
    for directory in entries.flatten().map(|entry| entry.path()).filter(|directory| directory != own) {
        let listens =
            |name: &str| control::with_short_name(&directory.join(name), |name| UnixStream::connect(name)).is_ok();
        if listens(LAUNCH_SOCKET) || listens(COMMAND_SOCKET) {
            continue;
        }
        for file in [LAUNCH_SOCKET, COMMAND_SOCKET, LAUNCHER_FILE] {
            let _ = fs::remove_file(directory.join(file));
        }
        // Only if nothing else is in it.
        let _ = fs::remove_dir(&directory);
    }
}

/// A copy of the launcher in a directory of brine's own, where everybody may run it.
fn copy_launcher(directory: &Path) -> Result<PathBuf, Failure> {
    let shown = directory.display();
    let failed = |error: io::Error| Failure::io(&shown, &error);
    if statvfs(directory).map_err(io::Error::from).map_err(failed)?.flags().contains(FsFlags::ST_NOEXEC) {
        let why = format!("no program can be run from {shown}, which is mounted noexec; {ELSEWHERE}");
        return Err(Failure::new(ExitCode::Refused, why));
    }
    let program = directory.join(LAUNCHER_FILE);
    match fs::remove_file(&program) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // For nobody else to open before it is whole, whatever the umask.
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&program).map_err(failed)?;
    file.write_all(launcher::PROGRAM).map_err(failed)?;
    file.set_permissions(fs::Permissions::from_mode(0o755)).map_err(failed)?;
    Ok(program)
}

/// The same in a directory that was named for it, beside a link to the socket. Who could replace the launcher there could
/// have callers of functions run anything, so nobody else may write to it.
fn place_launcher(directory: &Path, socket: &Path) -> Result<PathBuf, Failure> {
    let shown = directory.display();
    let failed = |error: io::Error| Failure::io(format!("-o launcher={shown}"), &error);
    let refused = |why: &str| Err(Failure::new(ExitCode::Refused, format!("-o launcher={shown}: {why}")));
    let meta = fs::symlink_metadata(directory).map_err(failed)?;
    if !meta.is_dir() || meta.uid() != geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return refused("must be a directory of your own that nobody else can write to");
    }
    let link = directory.join(LAUNCH_SOCKET);
    if !is_link_to(&link, socket) {
        if [&link, &directory.join(LAUNCHER_FILE)].iter().any(|path| fs::symlink_metadata(path).is_ok()) {
            return refused("has a launcher or exec.sock that is not this volume's; give a directory of its own");
        }
        std::os::unix::fs::symlink(socket, &link).map_err(failed)?;
    }
    copy_launcher(directory)
}

fn is_link_to(link: &Path, target: &Path) -> bool {
    fs::read_link(link).is_ok_and(|found| found == target)
}

/// Listen where everybody may connect. The caller holds the volume's lock, so a socket that is there is a dead daemon's.
fn listen_at(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = control::with_short_name(socket, |name| UnixListener::bind(name))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// The number that stat(2) shows of "major:minor".
fn device_number(device: &str) -> Option<u64> {
    let (major, minor) = device.split_once(':')?;
    Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// A directory for sockets that users of the mount can reach: of root's mounts everybody, of a user's he alone.
fn socket_directory(volume: VolumeId, state_dir: &Path) -> io::Result<PathBuf> {
    if !geteuid().is_root() {
        return Ok(state_dir.to_owned());
    }
    let directory = Path::new(PUBLIC_DIR).join(volume.to_string());
    make_public(&directory)?;
    Ok(directory)
}

/// Make a directory that everybody can search and only root can write to, unless it is there.
fn make_public(directory: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = fs::symlink_metadata(directory)?;
    if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        let what = format!("{} must be a directory of root's that only root can write to", directory.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_daemons_that_are_gone_are_removed_and_others_stay() {
        let base = std::env::temp_dir().join(format!("brine-public-{}", std::process::id()));
        for name in ["own", "listens", "commands", "killed", "empty", "other"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        let bind = |path: &str| UnixListener::bind(base.join(path)).unwrap();
        let listening = [bind("listens/exec.sock"), bind("commands/command.sock")];
        drop((bind("killed/exec.sock"), bind("killed/command.sock")));
        for path in ["killed/launcher", "other/file"] {
            fs::write(base.join(path), "x").unwrap();
        }
        sweep_public(&base, &base.join("own"));
        let left = ["own", "listens", "commands", "killed", "empty", "other"].map(|name| base.join(name).exists());
        assert_eq!(left, [true, true, true, false, false, true]);
        drop(listening);
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn device_numbers_are_those_of_stat() {
        let table = crate::mount_table::holding(Path::new("/proc/self")).unwrap().unwrap();
        assert_eq!(device_number(&table.device), Some(fs::metadata("/proc/self/status").unwrap().dev()));
        assert_eq!(device_number("12"), None);
    }
}
