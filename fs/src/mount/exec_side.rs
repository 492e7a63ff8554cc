//! The exec side of a mount: the branches of `.brine` it needs, its sockets, and who answers there.
//!
//! The sockets lie in a directory that every user of the mount can search, not in the mount: one bound there would keep
//! it busy.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use brine_store::clock::{Clock, SystemClock};
use brine_store::ids::VolumeId;
use nix::unistd::geteuid;
use serde_json::Value;

use crate::control::{Server, Service};
use crate::exec_dir::code::CodeNodes;
use crate::exec_dir::command;
use crate::exec_dir::entrance::SocketLink;
use crate::exec_dir::host::RunHost;
use crate::exec_dir::request::{Asker, COMMAND_SOCKET, ExecRequest};
use crate::exec_dir::runs::Runs;
use crate::exit_code::{ExitCode, Failure};
use crate::vfs::Vfs;

/// Where root's daemons listen for everybody: a directory a volume.
const PUBLIC_DIR: &str = "/run/brine-exec";
/// Name of the socket that launchers ask at.
const LAUNCH_SOCKET: &str = "exec.sock";

/// Runs the functions of one mount.
pub(super) struct ExecSide {
    host: Arc<RunHost>,
    directory: PathBuf,
}

impl ExecSide {
    /// Prepare the exec side of a volume that was mounted at `mountpoint` with this device number (`major:minor`). The
    /// mount itself is not looked at: it need not answer yet.
    ///
    /// # Errors
    /// Why nothing can be run.
    pub(super) fn new(vfs: &Arc<Vfs>, mountpoint: &Path, device: &str) -> Result<Self, Failure> {
        if vfs.volume().is_read_only().is_some() {
            return Err(Failure::new(ExitCode::ReadOnly, "the volume is read-only"));
        }
        if vfs.make_exec_directory()?.is_none() {
            return Err(Failure::new(
                ExitCode::Refused,
                "\"exec\" in the root of the volume is no exec directory; give it another name and mount again",
            ));
        }
        let device = device_number(device)
            .ok_or_else(|| Failure::new(ExitCode::Failed, format!("device number {device} of the mount")))?;
        vfs.exec().policies.load(vfs.volume().policies()?);
        let now_ns = SystemClock.now_ns();
        let runs = Runs::new(vfs, now_ns)?;
        let code = CodeNodes::new(vfs, now_ns);
        let directory = socket_directory(vfs.volume().volume_id(), vfs.volume().state_dir())
            .map_err(|error| Failure::io("the directory of the sockets", &error))?;
        let control = vfs.control();
        control.add(Arc::clone(&runs) as _);
        control.add(Arc::clone(&code) as _);
        control.add(Arc::new(SocketLink::new(directory.join(LAUNCH_SOCKET), now_ns)));
        let host = Arc::new(RunHost::new(Arc::clone(vfs), mountpoint.to_owned(), device, code, runs));
        Ok(Self { host, directory })
    }

    /// Listen to `brine exec`.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn listen(&self, service: Arc<dyn Service>) -> io::Result<Server> {
        Server::start_public(&self.directory.join(COMMAND_SOCKET), service)
    }

    /// Answer `brine exec`.
    pub(super) fn answer(&self, request: &ExecRequest, asker: Asker) -> Result<Value, Failure> {
        command::answer(&self.host, request, asker, &|_run| {})
    }
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
    for directory in [Path::new(PUBLIC_DIR), &directory] {
        match fs::DirBuilder::new().mode(0o755).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let meta = fs::symlink_metadata(directory)?;
        if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o022 != 0 {
            let what = format!("{} must be a directory of root's that only root can write to", directory.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        }
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_those_of_stat() {
        let table = crate::mount_table::holding(Path::new("/proc/self")).unwrap().unwrap();
        assert_eq!(device_number(&table.device), Some(fs::metadata("/proc/self/status").unwrap().dev()));
        assert_eq!(device_number("12"), None);
    }
}
