//! The mountpoint: is it a directory, what is mounted there already, does it hide what it is made of.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::control;
use crate::exit_code::{ExitCode, Failure};
use crate::mount_table::{self, Answer};

/// How long a supervisor is given to bring a mount back before it counts as dead.
const RESTART_PATIENCE: Duration = Duration::from_secs(15);

/// A place to mount at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mountpoint {
    /// Absolute, symbolic links resolved.
    pub path: PathBuf,
    /// A dead mount of ours is there, to be taken away first.
    pub stale: bool,
}

/// Look at a mountpoint.
///
/// # Errors
/// It does not exist, is no directory, or something of ours that works is mounted there.
pub fn prepare(given: &Path) -> Result<Mountpoint, Failure> {
    let shown = given.display();
    let table = |error: io::Error| Failure::io("reading /proc/self/mountinfo", &error);
    if let Some(mount) = mount_table::at(given).map_err(table)?
        && mount.fs_type.starts_with("fuse")
    {
        wait_for_supervisor(given);
        let answer = mount.answer();
        let ours = mount.is_brine();
        match answer {
            Answer::Dead if ours => return Ok(Mountpoint { path: mount.point, stale: true }),
            Answer::Dead => {
                return Err(Failure::new(
                    ExitCode::Busy,
                    format!(
                        "{shown}: a dead mount of type {} is there; take it away first: `fusermount3 -uz {shown}`",
                        mount.fs_type
                    ),
                ));
            }
            Answer::Alive if ours => {
                return Err(Failure::new(
                    ExitCode::Busy,
                    format!(
                        "{shown}: {} is mounted there already; `brine status {shown}` shows it, `brine umount {shown}` \
                         ends it",
                        mount.source.display()
                    ),
                ));
            }
            Answer::Hung => {
                return Err(Failure::new(
                    ExitCode::Busy,
                    format!("{shown}: the mount there does not answer; `brine umount --lazy {shown}` takes it away"),
                ));
            }
            Answer::Alive => {}
        }
    }
    let meta = fs::metadata(given).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::new(ExitCode::NotFound, format!("{shown}: no such directory (make it first: `mkdir -p {shown}`)"))
        }
        _ => Failure::io(format!("mountpoint {shown}"), &error),
    })?;
    if !meta.is_dir() {
        return Err(Failure::new(ExitCode::Refused, format!("{shown} is not a directory; name one to mount at")));
    }
    let path = given.canonicalize().map_err(|error| Failure::io(format!("mountpoint {shown}"), &error))?;
    Ok(Mountpoint { path, stale: false })
}

/// If the daemon of a mount died and its supervisor is about to start it again, give it the time.
pub fn wait_for_supervisor(point: &Path) {
    let Some(supervisor) = control::supervisor_of(point) else { return };
    let started = Instant::now();
    while control::start_time(supervisor).is_some() && started.elapsed() < RESTART_PATIENCE {
        if control::find_mountpoint(point).is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A mount must not hide the directories it is made of: they are looked at by name to see that their disks are there.
///
/// # Errors
/// One of them is at or below the mountpoint, or the mountpoint in one of them.
pub fn check_overlap<'a>(
    mountpoint: &Path,
    directories: impl Iterator<Item = &'a Path>,
    state_dir: &Path,
) -> Result<(), Failure> {
    let clash = |directory: &Path| directory.starts_with(mountpoint) || mountpoint.starts_with(directory);
    let named = directories.map(|directory| ("backing directory", directory)).chain([("state directory", state_dir)]);
    for (kind, directory) in named {
        if clash(directory) {
            return Err(Failure::new(
                ExitCode::Refused,
                format!(
                    "{} and the {kind} {} lie within each other; mount elsewhere",
                    mountpoint.display(),
                    directory.display()
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountpoints_are_directories_that_exist() {
        let missing = prepare(Path::new("/nowhere/at all")).unwrap_err();
        assert_eq!(missing.code(), ExitCode::NotFound);
        assert!(missing.message().contains("mkdir -p"));
        assert_eq!(prepare(Path::new("/proc/version")).unwrap_err().code(), ExitCode::Refused);
        let here = prepare(&std::env::temp_dir()).unwrap();
        assert!(here.path.is_absolute() && !here.stale);
    }

    #[test]
    fn a_mount_does_not_hide_what_it_is_made_of() {
        let check = |point: &str, dir: &str, state: &str| {
            check_overlap(Path::new(point), [Path::new(dir)].into_iter(), Path::new(state)).is_ok()
        };
        assert!(check("/mnt", "/disk", "/state"));
        assert!(check("/mnt", "/mnt2", "/state"));
        assert!(!check("/disk/in", "/disk", "/state"));
        assert!(!check("/", "/disk", "/state"));
        assert!(!check("/mnt", "/disk", "/mnt/state"));
    }
}
