//! The daemon: opens the volume, mounts it, serves until unmounted, and leaves everything durable.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use brine_store::volume::{OpenOptions, ReportFn, Volume};
use parking_lot::{Condvar, Mutex};

use super::exec_side::ExecSide;
use super::launch::Word;
use super::plan::Plan;
use super::process;
use super::service::{VolumeService, unmount};
use super::versions::generation_of;
use crate::config::MountOptions;
use crate::control::{Entry, Progress, Registration, SOCKET_FILE, Server, start_time};
use crate::exit_code::{ExitCode, Failure};
use crate::fuse::{self, FuseConfig};
use crate::mount_table::{self, Mount};
use crate::telemetry::{self, timestamp_ns};
use crate::vfs::{Atime, Vfs, VfsOptions};

/// How long those who use a mount may go on after SIGTERM before they are cut off. What they wrote is kept.
const GRACE: Duration = Duration::from_secs(10);
/// Between two attempts to unmount in that time.
const RETRY: Duration = Duration::from_millis(250);

/// How far the daemon is, for its signals.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing is mounted; there is nothing to lose.
    Starting,
    /// Mounted; the kernel's device number of the mount.
    Mounted(Option<String>),
    /// Unmounted.
    Ended,
}

struct Life {
    stage: Mutex<Stage>,
    moved: Condvar,
    mountpoint: PathBuf,
    vfs: OnceLock<Arc<Vfs>>,
    exec: OnceLock<Arc<ExecSide>>,
    /// A signal has asked for the end.
    asked: AtomicBool,
}

impl Life {
    fn set(&self, stage: Stage) {
        *self.stage.lock() = stage;
        self.moved.notify_all();
    }

    fn wait_ended(&self, patience: Duration) -> bool {
        let mut stage = self.stage.lock();
        self.moved.wait_while_for(&mut stage, |stage| *stage != Stage::Ended, patience);
        *stage == Stage::Ended
    }

    /// An orderly end, asked for by a signal: files that are open are cut off after [`GRACE`], nothing written is lost.
    fn end(&self) {
        let device = match &*self.stage.lock() {
            Stage::Starting => std::process::exit(ExitCode::Interrupted.number().into()),
            Stage::Mounted(device) => device.clone(),
            Stage::Ended => return,
        };
        // Runs keep the mount busy; whoever waits for one is told.
        if let Some(exec) = self.exec.get() {
            exec.stop();
        }
        let own = |mount: &Mount| device.as_ref().is_none_or(|device| *device == mount.device);
        let mount = mount_table::at(&self.mountpoint).ok().flatten().filter(own);
        match unmount(&self.mountpoint, false) {
            Ok(()) => return,
            Err(failure) => log::warn!("asked to end: {failure}; cut off in {} s", GRACE.as_secs()),
        }
        // The second signal does not wait.
        let patience = if self.asked.swap(true, Ordering::Relaxed) { Duration::ZERO } else { GRACE };
        let started = Instant::now();
        while started.elapsed() < patience {
            if self.wait_ended(RETRY) || mount_table::unmount(&self.mountpoint, false).is_ok() {
                return;
            }
        }
        if let Some(mount) = mount
            && let Err(error) = mount_table::abort(&mount)
        {
            log::warn!("ending the connection of {}: {error}", self.mountpoint.display());
        }
        // Out of sight, dead or alive.
        let _ = mount_table::unmount(&self.mountpoint, true);
        if !self.wait_ended(patience.max(RETRY)) {
            self.leave();
        }
    }

    /// The connection cannot be ended and somebody holds it: make everything durable and go without a farewell.
    fn leave(&self) {
        let Some(vfs) = self.vfs.get() else { return };
        let (sender, receiver) = std::sync::mpsc::channel();
        vfs.sync_all(move |outcome| {
            let _ = sender.send(outcome);
        });
        let durable = matches!(receiver.recv(), Ok(Ok(())));
        log::warn!("ending with open files; everything written is {}", if durable { "durable" } else { "NOT durable" });
        let code = if durable { ExitCode::Success } else { ExitCode::Io };
        std::process::exit(code.number().into());
    }
}

/// `brine serve`: a daemon started by the command or the supervisor.
pub fn serve_command() -> ExitCode {
    process::harden();
    process::set_name();
    let failed = |failure: Failure| {
        log::error!("{failure}");
        let code = failure.code();
        // Nobody waits any more if the mount was ready; the log has it.
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
    telemetry::log_panics();
    let ready = |warnings: Vec<String>| {
        Word::Ready { pid: std::process::id(), warnings }.say(io::stdout())?;
        process::close_standard_files()
    };
    // Who has gone is noticed when it is ready.
    let step = |step| {
        let _ = Word::Step(step).say(io::stdout());
    };
    match run(plan, step, ready) {
        Ok(()) => ExitCode::Success,
        Err(failure) => failed(failure),
    }
}

/// `brine mount -f`: serve in this process until unmounted.
///
/// # Errors
/// Why it could not be mounted, or what kept the last changes from becoming durable.
pub fn run_foreground(plan: Plan, step: impl Fn(Progress) + Send + Sync + 'static) -> Result<(), Failure> {
    if plan.parsed_options()?.log.is_some() {
        plan.start_log()?;
    } else {
        telemetry::log_to_terminal();
    }
    telemetry::log_panics();
    let mountpoint = plan.mountpoint.clone();
    run(plan, step, move |warnings| {
        for warning in warnings {
            let _ = writeln!(io::stderr(), "brine: warning: {warning}");
        }
        let _ = writeln!(io::stderr(), "brine: mounted at {}; ends with Ctrl-C", mountpoint.display());
        notify_service_manager();
        Ok(())
    })
}

/// Tell a service manager that waits for it that the mount is ready: see sd_notify(3).
fn notify_service_manager() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(hidden) => SocketAddr::from_abstract_name(hidden),
        None => SocketAddr::from_pathname(&name),
    };
    // Best effort: the manager's own timeout tells if it did not hear.
    if let (Ok(socket), Ok(address)) = (UnixDatagram::unbound(), address) {
        let _ = socket.send_to_addr(b"READY=1", &address);
    }
}

fn open_options(plan: &Plan, options: &MountOptions, step: impl Fn(Progress) + Send + Sync + 'static) -> OpenOptions {
    let report = move |phase: &str, done, total| {
        step(Progress { phase: phase.to_owned(), done_bytes: done, total_bytes: total });
    };
    OpenOptions {
        sources: plan.sources.clone(),
        unlock: plan.secret.clone().into_unlock(),
        state_dir: options.state.clone(),
        read_only: options.read_only,
        hedge: options.hedge,
        min_ack: options.min_ack,
        cache_bytes: options.cache_bytes,
        copies: options.copies,
        epoch: options.epoch,
        domain: options.domain,
        codec: options.codec,
        use_member: options.use_member.clone(),
        take_over: options.take_over,
        accept_rollback: options.accept_rollback,
        report: Some(ReportFn(Box::new(report))),
    }
}

/// Open, mount, say that it is ready, serve, close.
fn run(
    plan: Plan,
    step: impl Fn(Progress) + Send + Sync + 'static,
    ready: impl FnOnce(Vec<String>) -> io::Result<()>,
) -> Result<(), Failure> {
    process::raise_open_files();
    process::share_memory();
    let options = plan.parsed_options()?;
    let mountpoint = plan.mountpoint.clone();
    let fsname = options.fsname.clone().unwrap_or_else(|| plan.shown_source.to_string_lossy().into_owned());
    let source = plan.sources.first().cloned().unwrap_or_default();
    let life = Arc::new(Life {
        stage: Mutex::new(Stage::Starting),
        moved: Condvar::new(),
        mountpoint: mountpoint.clone(),
        vfs: OnceLock::new(),
        exec: OnceLock::new(),
        asked: AtomicBool::new(false),
    });
    // Before any thread exists, so that all inherit it.
    let signals = process::ending_signals();
    signals.thread_block().map_err(|errno| Failure::io("blocking signals", &errno.into()))?;
    let heard = Arc::clone(&life);
    std::thread::Builder::new()
        .name("brine-signals".into())
        .spawn(move || {
            while signals.wait().is_ok() {
                // Each in a thread of its own: the second one cuts the grace of the first short.
                let life = Arc::clone(&heard);
                let _ = std::thread::Builder::new().name("brine-end".into()).spawn(move || life.end());
            }
        })
        .map_err(|error| Failure::io("starting a thread", &error))?;

    let volume = Volume::open(open_options(&plan, &options, step))?;
    if let Some(max) = options.link_max {
        volume.limit_links(max);
    }
    // The state directory may have been made just now.
    plan.start_log()?;
    // With it goes the secret: the volume has its keys.
    drop(plan);
    let mut warnings = options.notes.clone();
    warnings.extend(volume.warnings());
    let vfs_options = VfsOptions {
        atime: options.atime,
        dir_atime: !options.nodiratime,
        report: Arc::new(|line| log::error!("{line}")),
        ..VfsOptions::default()
    };
    let past = options.at.as_deref().map(|at| generation_of(&volume, at)).transpose()?;
    let vfs = Vfs::new(Arc::clone(&volume), vfs_options).map_err(|error| Failure::io("starting threads", &error))?;
    if let Some(past) = past {
        let shown = vfs.show_past(past.generation);
        let what = || format!("the state at {}", timestamp_ns(past.time_ns));
        shown.map_err(|errno| Failure::io(what(), &io::Error::from_raw_os_error(errno.0)))?;
        log::info!("shows generation {}, of {}", past.generation, timestamp_ns(past.time_ns));
    }
    let _ = life.vfs.set(Arc::clone(&vfs));
    let socket = volume.state_dir().join(SOCKET_FILE);
    let service = VolumeService::new(Arc::clone(&volume), Arc::clone(&vfs), mountpoint.clone(), source.clone(), past);
    let service = Arc::new(service);
    let server = match Server::start(&socket, Arc::clone(&service) as _) {
        Ok(server) => server,
        Err(error) => {
            let failure = Failure::io(format!("control socket {}", socket.display()), &error);
            vfs.close()?;
            return Err(failure);
        }
    };
    let mut entry = Entry {
        volume: volume.volume_id().to_string(),
        label: volume.label().to_owned(),
        mountpoint: mountpoint.clone(),
        source,
        pid: std::process::id(),
        start_time: start_time(std::process::id()).unwrap_or_default(),
        supervisor: super::supervisor::of_this_process(),
        socket,
        device: None,
    };
    drop(volume);

    take_dead_mount_away(&mountpoint)?;
    let mut registration = None;
    let mut mounted = None;
    let mut public = None;
    let exec_vfs = Arc::clone(&vfs);
    let outcome = fuse::serve(vfs, &fuse_config(&mountpoint, fsname, &options), || {
        let device = mount_table::at(&mountpoint).ok().flatten().map(|mount| mount.device);
        mounted = Some(device.clone());
        life.set(Stage::Mounted(device.clone()));
        entry.device.clone_from(&device);
        match Registration::new(&entry) {
            Ok(entry) => registration = Some(entry),
            Err(error) => log::warn!("`brine status` will not list this mount: {error}"),
        }
        log::info!("volume {} mounted at {}", entry.volume, mountpoint.display());
        if let Some(idle) = options.idle {
            unmount_when_idle(&life, idle);
        }
        match start_exec(&life, &exec_vfs, &mountpoint, device.as_deref(), options.launcher.as_deref(), &service) {
            Ok(server) => public = Some(server),
            // Nobody expects programs to be run on a volume he mounts read-only.
            Err(failure) if failure.code() == ExitCode::ReadOnly => log::info!("nothing can be run: {failure}"),
            Err(failure) => warnings.push(format!("nothing can be run in exec/ of this mount: {failure}")),
        }
        if let Err(error) = ready(warnings) {
            log::warn!("whoever mounted this has gone ({error}): unmounting");
            let life = Arc::clone(&life);
            let _ = std::thread::Builder::new().name("brine-end".into()).spawn(move || life.end());
        }
    });
    life.set(Stage::Ended);
    let outcome = match (outcome, &mounted) {
        (Ok(()), _) => Ok(()),
        (Err(error), None) => Err(mount_failure(&mountpoint, &error)),
        (Err(error), Some(_)) => {
            Err(Failure::new(ExitCode::Io, format!("closing the volume of {}: {error}", mountpoint.display())))
        }
    };
    if let Some(Some(device)) = mounted {
        detach_own(&mountpoint, &device);
    }
    log::info!("volume {} closed{}", entry.volume, if outcome.is_ok() { "" } else { " with an error" });
    if let Some(exec) = life.exec.get() {
        exec.finish();
    }
    if let Some(public) = public {
        public.finish(outcome.clone());
    }
    server.finish(outcome.clone());
    drop(registration);
    outcome
}

/// Unmount once nobody has used the mount for `idle`, in a thread that ends with the mount. A directory somebody works
/// in keeps it.
fn unmount_when_idle(life: &Arc<Life>, idle: Duration) {
    const LOOK: Duration = Duration::from_secs(1);
    let life = Arc::clone(life);
    let watch = move || {
        loop {
            std::thread::sleep(LOOK);
            let Some(vfs) = life.vfs.get() else { return };
            if !matches!(*life.stage.lock(), Stage::Mounted(_)) {
                return;
            }
            // In use: looked at again.
            if vfs.is_idle(idle) && mount_table::unmount(&life.mountpoint, false).is_ok() {
                log::info!("nobody used it for {} s: unmounted", idle.as_secs());
                return;
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("brine-idle".into()).spawn(watch) {
        log::warn!("idle={} s has no effect: no thread for it: {error}", idle.as_secs());
    }
}

/// Prepare everything for functions and their runs, and listen to `brine exec`.
fn start_exec(
    life: &Life,
    vfs: &Arc<Vfs>,
    mountpoint: &Path,
    device: Option<&str>,
    launcher: Option<&Path>,
    service: &Arc<VolumeService>,
) -> Result<Server, Failure> {
    let device = device.ok_or_else(|| Failure::new(ExitCode::Failed, "the mount is not in /proc/self/mountinfo"))?;
    let exec = ExecSide::new(vfs, mountpoint, device, launcher)?;
    let server = exec.listen(Arc::clone(service) as _).map_err(|error| Failure::io("the socket for runs", &error))?;
    exec.start().map_err(|error| Failure::io("starting a thread", &error))?;
    let _ = service.exec.set(Arc::clone(&exec));
    let _ = life.exec.set(exec);
    Ok(server)
}

fn fuse_config(mountpoint: &Path, fsname: String, options: &MountOptions) -> FuseConfig {
    let mut extra = options.kernel.clone();
    if options.atime == Atime::Off {
        extra.push("noatime".into());
    }
    FuseConfig {
        read_only: options.read_only,
        allow_other: options.allow_other,
        default_permissions: true,
        threads: options.threads,
        extra,
        // A comma would end the option in what fusermount3 reads.
        ..FuseConfig::new(mountpoint, fsname.replace(',', "_"))
    }
}

/// Just before mounting, so that programs meet an error rather than the empty directory below for as long as possible.
fn take_dead_mount_away(mountpoint: &Path) -> Result<(), Failure> {
    while let Ok(Some(mount)) = mount_table::at(mountpoint)
        && mount.is_brine()
        && mount.is_dead()
    {
        log::info!("taking the dead mount at {} away", mountpoint.display());
        unmount(mountpoint, true)?;
    }
    Ok(())
}

/// A connection that was aborted leaves its mount behind.
fn detach_own(mountpoint: &Path, device: &str) {
    if mount_table::at(mountpoint).ok().flatten().is_some_and(|mount| mount.is_brine() && mount.device == device)
        && let Err(failure) = unmount(mountpoint, true)
    {
        log::warn!("{failure}");
    }
}

fn mount_failure(mountpoint: &Path, error: &io::Error) -> Failure {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; `brine doctor` tells what is missing to mount as this user",
        Some(libc::ENODEV | libc::ENOENT) => "; is the fuse module loaded (`modprobe fuse`)?",
        _ => "",
    };
    let code = if error.kind() == io::ErrorKind::PermissionDenied { ExitCode::NotPermitted } else { ExitCode::Io };
    Failure::new(code, format!("mounting at {}: {error}{hint}", mountpoint.display()))
}
