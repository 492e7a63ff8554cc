//! What is mounted where, and taking it away. Looks at the kernel's table, not at the mount: that could hang.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

/// Filesystem type of our mounts, as the kernel shows it.
pub const FS_TYPE: &str = "fuse.brine";

/// How long a mount may take to answer before it is called hung.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Number of the mount, as in /proc/PID/fdinfo.
    pub id: u64,
    /// Device number, "major:minor".
    pub device: String,
    /// Where.
    pub point: PathBuf,
    /// Type, with subtype.
    pub fs_type: String,
    /// What mount(8) shows as the source.
    pub source: PathBuf,
    /// Owner of a FUSE mount.
    pub user: Option<u32>,
}

/// How a mountpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It does.
    Alive,
    /// Its daemon is gone: "Transport endpoint is not connected".
    Dead,
    /// It does not answer in time.
    Hung,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        // After the sixth field stand optional ones, ended by a dash: see proc_pid_mountinfo(5).
        let dash = 6 + fields.get(6..)?.iter().position(|field| *field == "-")?;
        let options = fields.get(dash + 3).copied().unwrap_or_default();
        Some(Self {
            id: fields[0].parse().ok()?,
            device: fields[2].to_owned(),
            point: unescape(fields[4]),
            fs_type: fields.get(dash + 1)?.to_string(),
            source: unescape(fields.get(dash + 2)?),
            user: options.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok()),
        })
    }

    /// Whether it is a mount of ours.
    pub fn is_brine(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// Whether its daemon is gone. Waits for a mount that is alive and hangs: see [`Self::answer`].
    pub fn is_dead(&self) -> bool {
        // Attributes may be answered from the kernel's cache, dead or alive; space never is.
        nix::sys::statvfs::statvfs(&self.point) == Err(nix::errno::Errno::ENOTCONN)
    }

    /// Ask it for its attributes, for a limited time.
    pub fn answer(&self) -> Answer {
        let (sender, receiver) = mpsc::channel();
        let mount = self.clone();
        // A hung mount keeps this thread; it ends with the process.
        let asked = std::thread::Builder::new().name("answer".into()).spawn(move || {
            let _ = sender.send(if mount.is_dead() { Answer::Dead } else { Answer::Alive });
        });
        match asked {
            Ok(_) => receiver.recv_timeout(ANSWER_PATIENCE).unwrap_or(Answer::Hung),
            Err(_) => Answer::Hung,
        }
    }
}

/// `\040` and its like, as mountinfo writes blanks.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = (bytes[at] == b'\\').then(|| field.get(at + 1..at + 4)).flatten();
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// All mounts of this mount namespace, later ones after those they cover.
///
/// # Errors
/// What the system says.
pub fn all() -> io::Result<Vec<Mount>> {
    read("self")
}

/// All mounts of the mount namespace of a process.
///
/// # Errors
/// What the system says.
pub fn seen_by(pid: u32) -> io::Result<Vec<Mount>> {
    read(&pid.to_string())
}

fn read(process: &str) -> io::Result<Vec<Mount>> {
    // Bytes that are not UTF-8 stand there unescaped; such a mountpoint is shown, not found.
    let table = fs::read(format!("/proc/{process}/mountinfo"))?;
    Ok(String::from_utf8_lossy(&table).lines().filter_map(Mount::parse).collect())
}

/// The topmost mount exactly at `point`, which is absolute.
///
/// # Errors
/// What the system says.
pub fn at(point: &Path) -> io::Result<Option<Mount>> {
    let names = spellings(point);
    Ok(all()?.into_iter().rev().find(|mount| names.contains(&mount.point)))
}

/// The mount that holds `path`.
///
/// # Errors
/// What the system says.
pub fn holding(path: &Path) -> io::Result<Option<Mount>> {
    let names = spellings(path);
    let mounts = all()?.into_iter().enumerate();
    let holding = mounts.filter(|(_, mount)| names.iter().any(|name| name.starts_with(&mount.point)));
    Ok(holding.max_by_key(|(index, mount)| (mount.point.as_os_str().len(), *index)).map(|(_, mount)| mount))
}

/// A path as given, and with its symbolic links resolved as far as that can be done without touching its last part.
pub fn spellings(path: &Path) -> Vec<PathBuf> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // `absolute` keeps a trailing slash.
    let absolute: PathBuf = absolute.components().collect();
    let mut names = vec![absolute.clone()];
    if let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name())
        && let Ok(parent) = parent.canonicalize()
    {
        names.push(parent.join(name));
    }
    if let Ok(target) = fs::read_link(&absolute)
        && let Ok(target) = absolute.parent().unwrap_or(Path::new("/")).join(target).canonicalize()
    {
        names.push(target);
    }
    names
}

/// Why a mount was not taken away.
#[derive(Debug)]
pub enum UnmountError {
    /// Files are open there, or somebody's working directory is.
    Busy,
    /// Nothing is mounted there.
    NotMounted,
    /// The system or fusermount3 says no.
    Other(String),
}

/// Unmount; `lazy` takes it out of sight at once and lets those who use it finish.
///
/// # Errors
/// [`UnmountError::Busy`] while it is used, unless `lazy`.
pub fn unmount(point: &Path, lazy: bool) -> Result<(), UnmountError> {
    let flags = if lazy { MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW } else { MntFlags::UMOUNT_NOFOLLOW };
    match umount2(point, flags) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EBUSY) => Err(UnmountError::Busy),
        Err(nix::errno::Errno::EINVAL) => Err(UnmountError::NotMounted),
        // What a user mounted through fusermount3 only that takes away.
        Err(nix::errno::Errno::EPERM) => fusermount(point, lazy),
        Err(errno) => Err(UnmountError::Other(errno.desc().to_owned())),
    }
}

fn fusermount(point: &Path, lazy: bool) -> Result<(), UnmountError> {
    let mut command = Command::new("fusermount3");
    command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(point).stdin(Stdio::null()).env("LC_ALL", "C");
    let output = command.output().map_err(|error| {
        let hint = if error.kind() == io::ErrorKind::NotFound { " (Debian package fuse3)" } else { "" };
        UnmountError::Other(format!("fusermount3: {error}{hint}"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.to_lowercase().contains("busy") { Err(UnmountError::Busy) } else { Err(UnmountError::Other(text)) }
}

/// End a mount's connection to its daemon: whoever waits for it gets an error, and the daemon stops serving. The dead
/// mount stays.
///
/// # Errors
/// What the system says: root may, and the mount's owner where fusectl is mounted.
pub fn abort(mount: &Mount) -> io::Result<()> {
    let minor = mount.device.split(':').nth(1).unwrap_or_default();
    if fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").is_ok() {
        return Ok(());
    }
    // Of a FUSE mount that is in use, force aborts the connection before it finds that it is.
    match umount2(&mount.point, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EBUSY) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_and_without_optional_fields() {
        let plain = "36 25 0:52 / /mnt/a\\040b rw,nosuid - fuse.brine /disk/a\\134b rw,user_id=1000,group_id=100";
        let mount = Mount::parse(plain).unwrap();
        assert_eq!((mount.id, mount.device.as_str(), mount.user), (36, "0:52", Some(1000)));
        assert_eq!((mount.point.to_str(), mount.source.to_str()), (Some("/mnt/a b"), Some("/disk/a\\b")));
        assert!(mount.is_brine());
        let shared = "22 1 8:1 / / rw shared:1 master:2 - ext4 /dev/sda1 rw";
        let mount = Mount::parse(shared).unwrap();
        assert_eq!((mount.fs_type.as_str(), mount.is_brine(), mount.user), ("ext4", false, None));
        for broken in
            ["", "36 25", "36 25 0:52 / /mnt rw", "x 25 0:52 / /mnt rw - a b c", "36 25 0:52 / /mnt rw shared:1 -"]
        {
            assert_eq!(Mount::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn every_path_lies_on_a_mount_and_the_root_is_one() {
        assert_eq!(holding(Path::new("/")).unwrap().unwrap().point, Path::new("/"));
        assert!(holding(Path::new("/proc/self")).unwrap().unwrap().point.starts_with("/proc"));
        assert!(at(Path::new("/proc/")).unwrap().is_some());
        assert!(at(Path::new("/nowhere/at/all")).unwrap().is_none());
    }

    #[test]
    fn a_living_mount_answers() {
        assert_eq!(at(Path::new("/proc")).unwrap().unwrap().answer(), Answer::Alive);
    }
}
