//! The spawner's own mount namespace: the system directories, /proc, /dev, the volume, and an empty place to build in.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, getegid, geteuid, pivot_root};

use crate::copies::TMPFS_OPTIONS;
use crate::sandbox::message::Failure;
use crate::sandbox::root::{BASE, COPIES, SYSTEM, VOLUME, bind, mount_at};

/// Directories of the host that are needed to build, beside those programs need.
const BUILD: [&str; 3] = ["/etc", "/proc", "/dev"];

/// Where what manages the network keeps the resolver's configuration, which /etc links to.
const RESOLVER: [&str; 3] = ["/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf"];

/// Enter it. True if this process may take other identities: root; false if it has a user namespace of its own. With it
/// comes the directory for copies of programs.
pub(super) fn enter(volume: Option<&Path>) -> Result<(bool, OwnedFd), Failure> {
    let privileged = own_namespaces().map_err(|error| match error.raw_os_error() {
        // The system calls that lack of space.
        Some(libc::ENOSPC) => Failure {
            code: 125,
            step: "no user namespace may be made here, or no more of them; see `brine doctor`".into(),
            errno: 0,
        },
        _ => Failure::step("making a user namespace; see `brine doctor`")(error),
    })?;
    mount_at(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, "").map_err(Failure::step("private mounts"))?;
    let base = ["/tmp", "/run", "/var/tmp"].into_iter().map(PathBuf::from).find(|base| base.is_dir());
    let base = base.unwrap_or_else(|| PathBuf::from("/tmp"));
    // The volume may be below the directory that is about to be covered.
    let volume = volume
        .map(|path| {
            let flags = libc::OPEN_TREE_CLONE;
            let text = crate::sandbox::root::text(path)?;
            crate::sys::open_tree(None, &text, flags)
        })
        .transpose()
        .map_err(Failure::step("the volume's mount"))?;
    mount_at(Some("tmpfs"), &base, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "size=1m,mode=755")
        .map_err(Failure::step("root tmpfs"))?;
    let inside = |path: &str| base.join(path.trim_start_matches('/'));
    for path in SYSTEM.iter().chain(&BUILD) {
        let step = || Failure::step(format!("system directory {path}"));
        match fs::symlink_metadata(path) {
            Err(_) => {}
            Ok(meta) if meta.is_symlink() => {
                let target = fs::read_link(path).map_err(step())?;
                std::os::unix::fs::symlink(target, inside(path)).map_err(step())?;
            }
            Ok(_) => {
                fs::create_dir(inside(path)).map_err(step())?;
                // Whole trees only if the kernel wants it so: in a user namespace, what is mounted below must stay.
                let at = inside(path);
                bind(Path::new(path), &at, false, 0).or_else(|_| bind(Path::new(path), &at, true, 0)).map_err(step())?;
            }
        }
    }
    for path in RESOLVER.iter().filter(|path| Path::new(path).is_dir()) {
        let at = inside(path);
        let shown = fs::create_dir_all(&at).and_then(|()| bind(Path::new(path), &at, false, 0));
        if let Err(error) = shown {
            // Of use only to runs that have the host's network, and not to all of them.
            log::warn!("{path}: {error}; functions with --net host may find no resolver");
        }
    }
    fs::create_dir(inside(BASE)).map_err(Failure::step("a place to build in"))?;
    fs::create_dir(inside(COPIES)).map_err(Failure::step("a place for copies"))?;
    let copies = |options: &str| {
        mount_at(Some("tmpfs"), inside(COPIES), Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, options)
    };
    // What is encrypted on the disk stays in memory; root alone may ask for that, since Linux 6.4.
    copies(&format!("{TMPFS_OPTIONS},noswap"))
        .or_else(|_| copies(TMPFS_OPTIONS))
        .map_err(Failure::step("a place for copies"))?;
    if let Some(volume) = volume {
        let at = inside(VOLUME);
        fs::create_dir(&at).map_err(Failure::step("the volume's mount"))?;
        let at = crate::sandbox::root::text(&at).map_err(Failure::step("the volume's mount"))?;
        crate::sys::move_mount(&volume, &at).map_err(Failure::step("the volume's mount"))?;
    }
    chdir(&base).map_err(io::Error::from).map_err(Failure::step("entering the root"))?;
    pivot_root(".", ".").map_err(io::Error::from).map_err(Failure::step("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(io::Error::from).map_err(Failure::step("letting the old root go"))?;
    chdir("/").map_err(io::Error::from).map_err(Failure::step("entering the root"))?;
    let copies = crate::sandbox::root::text(Path::new(COPIES)).and_then(|path| crate::sys::open_path(&path));
    Ok((privileged, copies.map_err(Failure::step("a place for copies"))?))
}

fn own_namespaces() -> io::Result<bool> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() && unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        return Ok(true);
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1\n"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1\n"))?;
    Ok(false)
}
