//! From what the user names (a mountpoint, a path on a mount, a backing directory) to a daemon or an unmounted volume.

use std::path::{Path, PathBuf};
use std::time::Duration;

use brine_store::volume::{Probe, probe};
use serde_json::Value;

use super::args::{absolute, sources};
use crate::control::{self, Client, Progress, Request, SOCKET_FILE};
use crate::exit_code::{ExitCode, Failure};
use crate::mount::wait_for_supervisor;
use crate::mount_table::{self, Answer, Mount};

/// How long a daemon may be silent when asked something short.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What was named.
pub(super) enum Target {
    /// A mounted volume.
    Mounted(Live),
    /// A volume that is not mounted, or whose daemon died.
    Unmounted(Offline),
}

/// A daemon that can be asked.
#[derive(Debug)]
pub(super) struct Live {
    /// Its socket.
    pub(super) socket: PathBuf,
    /// Where the volume is mounted, if that is known.
    pub(super) mountpoint: Option<PathBuf>,
    /// The daemon, if known.
    pub(super) pid: Option<u32>,
    /// Its supervisor, if it has one.
    pub(super) supervisor: Option<u32>,
    /// What was named below the mountpoint, as a path inside the volume.
    pub(super) inside: Option<PathBuf>,
}

/// A volume without a daemon.
pub(super) struct Offline {
    /// Its directories, as named.
    pub(super) sources: Vec<PathBuf>,
    /// What can be known without its key.
    pub(super) probe: Probe,
    /// A mount of it whose daemon died.
    pub(super) dead_mount: Option<PathBuf>,
}

impl Live {
    /// Ask something short.
    pub(super) fn ask(&self, request: &Request) -> Result<Value, Failure> {
        self.connect()?.ask(request, Some(PATIENCE), |_| {})
    }

    /// Ask something long; silence is bounded by nothing but the work itself.
    pub(super) fn ask_long(&self, request: &Request, progress: impl FnMut(&Progress)) -> Result<Value, Failure> {
        self.connect()?.ask(request, None, progress)
    }

    fn connect(&self) -> Result<Client, Failure> {
        Client::connect(&self.socket).map_err(|error| {
            Failure::new(
                if error.kind() == std::io::ErrorKind::PermissionDenied {
                    ExitCode::NotPermitted
                } else {
                    ExitCode::NotMounted
                },
                format!("the daemon's socket {}: {error}", self.socket.display()),
            )
        })
    }
}

/// Find what was named.
pub(super) fn resolve(named: &Path) -> Result<Target, Failure> {
    let path = absolute(named);
    if let Some(entry) = control::find_mountpoint(&path) {
        return Ok(Target::Mounted(live(entry, None)));
    }
    let table = |error| Failure::io("reading /proc/self/mountinfo", &error);
    if let Some(mount) = mount_table::holding(&path).map_err(table)?
        && mount.is_brine()
    {
        return on_mount(&mount, &path);
    }
    offline_or_live(sources(named), None).map_err(|failure| match failure.code() {
        ExitCode::NotFound => Failure::new(ExitCode::NotFound, format!("{failure} A mountpoint will do as well.")),
        _ => failure,
    })
}

fn live(entry: control::Entry, inside: Option<PathBuf>) -> Live {
    Live {
        socket: entry.socket,
        mountpoint: Some(entry.mountpoint),
        pid: Some(entry.pid),
        supervisor: entry.supervisor,
        inside,
    }
}

/// A path on a mount of ours.
fn on_mount(mount: &Mount, path: &Path) -> Result<Target, Failure> {
    let spelled = mount_table::spellings(path);
    let inside = spelled.iter().find_map(|path| path.strip_prefix(&mount.point).ok());
    let inside = inside.filter(|rest| !rest.as_os_str().is_empty()).map(|rest| Path::new("/").join(rest));
    wait_for_supervisor(&mount.point);
    if let Some(entry) = control::find_mountpoint(&mount.point) {
        return Ok(Target::Mounted(live(entry, inside)));
    }
    let shown = mount.point.display();
    let dead = match mount.answer() {
        Answer::Dead => true,
        Answer::Alive => false,
        Answer::Hung => {
            return Err(Failure::new(
                ExitCode::NotMounted,
                format!("the mount at {shown} does not answer; `brine umount --lazy {shown}` takes it away"),
            ));
        }
    };
    match offline_or_live(sources(&mount.source), dead.then(|| mount.point.clone())) {
        Ok(Target::Mounted(daemon)) => {
            Ok(Target::Mounted(Live { inside, mountpoint: Some(mount.point.clone()), ..daemon }))
        }
        Ok(offline @ Target::Unmounted(_)) if dead => Ok(offline),
        _ if dead => Err(Failure::new(
            ExitCode::NotMounted,
            format!("the daemon of {shown} died; `brine umount {shown}` takes the dead mount away"),
        )),
        _ => {
            let who = mount.user.map_or("another user".to_owned(), |uid| format!("user {uid}"));
            Err(Failure::new(
                ExitCode::NotPermitted,
                format!("{shown} is mounted by {who}, and only that user and root may command its daemon"),
            ))
        }
    }
}

fn offline_or_live(sources: Vec<PathBuf>, dead_mount: Option<PathBuf>) -> Result<Target, Failure> {
    let probe = probe(&sources)?;
    if let Some(entry) = control::find_volume(probe.volume) {
        return Ok(Target::Mounted(live(entry, None)));
    }
    // Not in this user's registry, but perhaps the same state directory is readable.
    let socket = probe.state_dir.join(SOCKET_FILE);
    if Client::connect(&socket).is_ok() {
        return Ok(Target::Mounted(Live {
            socket,
            mountpoint: None,
            pid: probe.holder,
            supervisor: None,
            inside: None,
        }));
    }
    Ok(Target::Unmounted(Offline { sources, probe, dead_mount }))
}

impl Offline {
    /// The volume in a few words, for questions and messages.
    pub(super) fn name(&self) -> String {
        name(&self.probe)
    }
}

/// A volume in a few words.
pub(super) fn name(probe: &Probe) -> String {
    let id = probe.volume.to_string();
    let short = &id[..8];
    if probe.label.is_empty() { format!("volume {short}") } else { format!("volume \"{}\" ({short})", probe.label) }
}
