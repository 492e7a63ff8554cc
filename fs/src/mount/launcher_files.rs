//! Where the launchers of a mount lie: in the volume for everybody, and a copy outside that costs callers less.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use brine_exec::launcher;
use brine_exec::plan::LAUNCHER;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;

use crate::exec_dir::line::Launchers;
use crate::exit_code::{ExitCode, Failure};

/// Name of the socket that launchers ask at: they look for it beside themselves.
pub(super) const LAUNCH_SOCKET: &str = "exec.sock";
/// Name of a launcher outside of the volume.
pub(super) const LAUNCHER_FILE: &str = "launcher";
/// Where root's daemons have their launchers if the directory of their sockets is mounted noexec, as /run mostly is.
pub(super) const COPIES_DIR: &str = "/var/lib/brine-exec";

/// What helps where the launcher cannot be run.
const ELSEWHERE: &str = "mount with -o launcher=DIR, a directory whose path has no blank, or elsewhere";

/// The launchers of the volume at `mountpoint` whose socket lies in `sockets`, and the directory of one that does not lie
/// there. `asked`: a directory for it, if one was asked for.
///
/// # Errors
/// There is none that can be run.
pub(super) fn place(
    mountpoint: &Path,
    asked: Option<&Path>,
    sockets: &Path,
) -> Result<(Launchers, Option<PathBuf>), Failure> {
    let only = |launcher: &Path| {
        let refused = |why| Failure::new(ExitCode::Refused, format!("{why}: {}; {ELSEWHERE}", launcher.display()));
        Launchers::new(launcher).map_err(refused)
    };
    if let Some(directory) = asked {
        return Ok((only(&place_in(directory, &sockets.join(LAUNCH_SOCKET))?)?, Some(directory.to_owned())));
    }
    let copied = copy(sockets);
    match Launchers::new(&mountpoint.join(LAUNCHER)) {
        // A blank in the mountpoint, or too long for an interpreter line.
        Err(_) => {
            let (launcher, directory) = copied?;
            Ok((only(&launcher)?, directory))
        }
        Ok(mut launchers) => {
            let near = copied.and_then(|(launcher, directory)| {
                let failed = |error: io::Error| Failure::io(launcher.display(), &error);
                launchers.set_near(&launcher).map_err(failed).map(|()| directory)
            });
            let directory = near.unwrap_or_else(|failure| {
                log::info!(
                    "functions are started by the launcher in the volume alone, which takes a little longer: {failure}"
                );
                None
            });
            Ok((launchers, directory))
        }
    }
}

/// Remove what [`place`] put there, unless it is another's by now.
pub(super) fn remove(sockets: &Path, directory: Option<&Path>) {
    let _ = fs::remove_file(sockets.join(LAUNCHER_FILE));
    let Some(directory) = directory else { return };
    if is_link_to(&directory.join(LAUNCH_SOCKET), &sockets.join(LAUNCH_SOCKET)) {
        let _ = fs::remove_file(directory.join(LAUNCHER_FILE));
        let _ = fs::remove_file(directory.join(LAUNCH_SOCKET));
    }
    if directory.starts_with(COPIES_DIR) {
        let _ = fs::remove_dir(directory);
    }
}

/// A copy of the launcher that everybody who may search `sockets` may run: there, or if nothing can be run from there in a
/// directory that is returned with it.
fn copy(sockets: &Path) -> Result<(PathBuf, Option<PathBuf>), Failure> {
    let failure = match copy_into(sockets) {
        Ok(launcher) => return Ok((launcher, None)),
        Err(failure) => failure,
    };
    let Some(volume) = sockets.file_name().filter(|_| geteuid().is_root()) else { return Err(failure) };
    let directory = Path::new(COPIES_DIR).join(volume);
    let made = make_public(Path::new(COPIES_DIR)).and_then(|()| make_public(&directory));
    made.map_err(|error| Failure::io(directory.display(), &error))?;
    Ok((place_in(&directory, &sockets.join(LAUNCH_SOCKET))?, Some(directory)))
}

fn copy_into(directory: &Path) -> Result<PathBuf, Failure> {
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
    fs::write(&program, launcher::PROGRAM).map_err(failed)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    Ok(program)
}

/// A copy beside a link to the socket. Who could replace the launcher there could have callers of functions run anything,
/// so nobody else may write to it.
fn place_in(directory: &Path, socket: &Path) -> Result<PathBuf, Failure> {
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
    copy_into(directory)
}

fn is_link_to(link: &Path, target: &Path) -> bool {
    fs::read_link(link).is_ok_and(|found| found == target)
}

/// Make a directory that everybody can search and only root can write to, unless it is there.
pub(super) fn make_public(directory: &Path) -> io::Result<()> {
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
