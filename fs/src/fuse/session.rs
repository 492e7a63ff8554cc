//! Mounting, serving until unmounted, and leaving everything durable.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, INodeNo, MountOption, Notifier, Session, SessionACL, SessionUnmounter};

use super::Adapter;
use super::busy::Device;
use crate::vfs::{Outdated, TellKernel, Vfs};

/// Read-ahead of the mount, KiB: without it the kernel reads 128 KiB at a time.
const READ_AHEAD_KIB: u32 = 1024;

/// How to mount.
#[derive(Clone, Debug)]
pub struct FuseConfig {
    /// Where: an existing directory.
    pub mountpoint: PathBuf,
    /// Refuse changes in the kernel already.
    pub read_only: bool,
    /// Let users other than the one who mounts in.
    pub allow_other: bool,
    /// Let the kernel check permissions. Without it nobody does.
    pub default_permissions: bool,
    /// What mount(8) shows as the source.
    pub fsname: String,
    /// Threads that read requests. One is fastest on few processors; more get a device descriptor each.
    pub threads: usize,
    /// Further mount options, as in `-o`: "suid", "dev", "noexec", "noatime" and the like. Without "suid" and "dev"
    /// those are off.
    pub extra: Vec<String>,
}

impl FuseConfig {
    /// A private read-write mount with one thread.
    pub fn new(mountpoint: impl Into<PathBuf>, fsname: impl Into<String>) -> Self {
        Self {
            mountpoint: mountpoint.into(),
            read_only: false,
            allow_other: false,
            default_permissions: true,
            fsname: fsname.into(),
            threads: 1,
            extra: Vec::new(),
        }
    }
}

/// Unmounts from another thread.
pub struct Unmounter(SessionUnmounter);

impl Unmounter {
    /// Unmount. [`serve`] then returns.
    ///
    /// # Errors
    /// EBUSY while files are open.
    pub fn unmount(&mut self) -> io::Result<()> {
        self.0.unmount()
    }
}

fn mount_option(name: &str) -> MountOption {
    match name {
        "auto_unmount" => MountOption::AutoUnmount,
        "default_permissions" => MountOption::DefaultPermissions,
        "dev" => MountOption::Dev,
        "nodev" => MountOption::NoDev,
        "suid" => MountOption::Suid,
        "nosuid" => MountOption::NoSuid,
        "ro" => MountOption::RO,
        "rw" => MountOption::RW,
        "exec" => MountOption::Exec,
        "noexec" => MountOption::NoExec,
        "atime" => MountOption::Atime,
        "noatime" => MountOption::NoAtime,
        "dirsync" => MountOption::DirSync,
        "sync" => MountOption::Sync,
        "async" => MountOption::Async,
        other => MountOption::CUSTOM(other.to_owned()),
    }
}

fn session_config(config: &FuseConfig) -> Config {
    let mut options = vec![
        MountOption::FSName(config.fsname.clone()),
        // Given to the kernel as is: mounted directly, fuser's own Subtype would only rename the source.
        MountOption::CUSTOM("subtype=brine".into()),
        if config.read_only { MountOption::RO } else { MountOption::RW },
    ];
    if config.default_permissions {
        options.push(MountOption::DefaultPermissions);
    }
    for name in &config.extra {
        let option = mount_option(name);
        if !options.contains(&option) {
            options.push(option);
        }
    }
    let mut session = Config::default();
    session.mount_options = options;
    session.acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
    session.n_threads = Some(config.threads.max(1));
    session.clone_fd = config.threads > 1;
    session
}

/// Mount, call `ready`, serve until unmounted; then make everything durable and close the volume.
///
/// # Errors
/// What kept it from mounting or serving, or the last changes from becoming durable.
pub fn serve(vfs: Arc<Vfs>, config: &FuseConfig, ready: impl FnOnce()) -> io::Result<()> {
    serve_with(vfs, config, |_unmounter| ready())
}

/// [`serve`], with a way to unmount from another thread given to `ready`.
///
/// # Errors
/// As [`serve`].
pub fn serve_with(vfs: Arc<Vfs>, config: &FuseConfig, ready: impl FnOnce(Unmounter)) -> io::Result<()> {
    let device = Device::default();
    let adapter = Adapter { vfs: Arc::clone(&vfs), device: device.clone() };
    let served = config.mountpoint.canonicalize().and_then(|mountpoint| {
        let mut session = Session::new(adapter, &mountpoint, &session_config(config))?;
        device.watch(session.as_fd().try_clone_to_owned()?);
        raise_read_ahead(&mountpoint);
        vfs.set_kernel(tell_kernel(session.notifier()));
        ready(Unmounter(session.unmount_callable()));
        session.run()
    });
    // Also when mounting failed: the volume was open.
    let closed = vfs.close().map_err(|error| io::Error::other(error.to_string()));
    served.and(closed)
}

/// What the kernel does not know of (ENOENT) need not be forgotten, and a kernel that is gone has forgotten everything.
fn tell_kernel(notifier: Notifier) -> TellKernel {
    Box::new(move |outdated| {
        let told = match outdated {
            Outdated::Name(parent, name) => notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name)),
            Outdated::Inode(ino) => notifier.inval_inode(INodeNo(ino.0), 0, 0),
        };
        if let Err(error) = told
            && error.kind() != io::ErrorKind::NotFound
        {
            log::debug!("telling the kernel of {outdated:?}: {error}");
        }
    })
}

/// Let the kernel read [`READ_AHEAD_KIB`] at a time. Only root may; for others it stays at what the kernel offers.
///
/// `mountpoint` was made canonical before it was mounted: looking at it now would wait for ourselves.
fn raise_read_ahead(mountpoint: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return };
    if let Some(device) = device_of(&mounts, &mountpoint.to_string_lossy()) {
        let control = format!("/sys/class/bdi/{device}/read_ahead_kb");
        // Refused without root: a matter of speed only.
        let _ = fs::write(control, READ_AHEAD_KIB.to_string());
    }
}

/// The device number, "major:minor", of what is mounted last at `mountpoint`. See proc_pid_mountinfo(5).
fn device_of(mounts: &str, mountpoint: &str) -> Option<String> {
    let escaped = mountpoint.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012");
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.rfind(|fields| fields.get(4) == Some(&escaped.as_str()))?.get(2).map(|device| (*device).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_at_a_place_counts() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      40 22 0:50 / /mnt/a\\040b rw - fuse.brine x rw\n\
                      41 22 0:51 / /mnt/a\\040b rw - fuse.brine y rw\n\
                      42 22 0:52 / /mnt rw - tmpfs z rw\n";
        assert_eq!(device_of(mounts, "/mnt/a b").as_deref(), Some("0:51"));
        assert_eq!(device_of(mounts, "/mnt").as_deref(), Some("0:52"));
        assert_eq!(device_of(mounts, "/nowhere"), None);
    }

    #[test]
    fn options_given_twice_count_once() {
        let mut config = FuseConfig::new("/mnt", "v");
        config.extra = ["rw", "suid", "suid", "max_read=131072"].map(str::to_owned).to_vec();
        let options = session_config(&config).mount_options;
        assert_eq!(options.iter().filter(|option| **option == MountOption::RW).count(), 1);
        assert_eq!(options.iter().filter(|option| **option == MountOption::Suid).count(), 1);
        assert!(options.contains(&MountOption::CUSTOM("max_read=131072".into())));
    }
}
