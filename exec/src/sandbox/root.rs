//! The root directory of a sandbox, built by its init before any program of a user runs in it.
//!
//! It is a fresh tmpfs that nobody else can write to, with the host's system directories bound read-only. Paths are
//! this module's own; nothing a user chose is looked up here but the image of [`Root::Image`], without links. Every
//! mount is nosuid and nodev. The order matters and is: identity first (a tmpfs refuses ids that are not mapped), root
//! made, old root let go.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root, sethostname};

use super::beneath;
use super::message::Failure;
use crate::plan::{Identity, Root, Template};
use crate::policy::Network;
use crate::sys;

/// Where the spawner keeps an empty directory for this.
pub(crate) const BASE: &str = "/sandbox";
/// Where the spawner keeps the volume.
pub(crate) const VOLUME: &str = "/volume";
/// Where the spawner keeps copies of programs.
pub(crate) const COPIES: &str = "/programs";
/// Where a sandbox that was not used yet has the volume; then an empty directory covers it.
pub(crate) const VOLUME_INSIDE: &str = "/var/empty";
/// Directories of the host that programs need. Symbolic links among them are made again.
pub(crate) const SYSTEM: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];
/// Files and directories below /etc that programs need and everybody may know. Not /etc/ssl, which holds private keys.
pub(crate) const CONFIGURATION: [&str; 6] =
    ["ld.so.cache", "alternatives", "ssl/certs", "ssl/openssl.cnf", "localtime", "nsswitch.conf"];
/// Beside those, with the host's network.
pub(crate) const CONFIGURATION_NET: [&str; 2] = ["resolv.conf", "hosts"];
/// Device nodes, with their numbers.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Memory of the root itself: directories, passwd, group.
const ROOT_OPTIONS: &str = "size=4m,nr_inodes=8192,mode=755";
/// A file in scratch has at least this many bytes, or there are fewer of them than asked.
const SCRATCH_BYTES_A_FILE: u64 = 4096;

/// What a sandbox that waits has of the spawner's.
pub(crate) struct Built {
    /// To be mounted over the volume once the views are made: to unmount it would wait for the kernel's readers, which takes
    /// longer than all the rest of a start.
    pub cover: OwnedFd,
    /// The directory of copies of programs, which lies below the volume; none without a volume.
    pub copies: Option<OwnedFd>,
}

/// Build it and make it this process's root.
pub(crate) fn build(template: &Template, identity: &Identity) -> Result<Built, Failure> {
    mount_at(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, "").map_err(Failure::step("private mounts"))?;
    let root = match &template.root {
        Root::Host => {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount_at(Some("tmpfs"), BASE, Some("tmpfs"), flags, ROOT_OPTIONS).map_err(Failure::step("root tmpfs"))?;
            let root = PathBuf::from(BASE);
            system(&root)?;
            root
        }
        Root::Image(image) => overlay(image, template.scratch_bytes)?,
    };
    let place = Place::open(&root)?;
    etc(&place, template, identity)?;
    devices(&place)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    place.mount("proc", "/proc", flags, "subset=pid,hidepid=2")?;
    let files = template.scratch_bytes / SCRATCH_BYTES_A_FILE + 1024;
    let options = format!("size={},nr_inodes={files},mode=1777", template.scratch_bytes);
    place.mount("tmpfs", "/tmp", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, &options)?;
    if !place.has(c"var/tmp") {
        // A directory of its own and no link: a volume may be mounted below it, and is shown at its path.
        let scratch = place.directory("/tmp")?;
        place.show(&clone(&scratch).map_err(Failure::step("/var/tmp"))?, &place.directory("/var/tmp")?, "/var/tmp")?;
    }
    let inside = place.directory(VOLUME_INSIDE)?;
    let cover = cover(&inside).map_err(Failure::step("a cover for the volume"))?;
    let mut copies = None;
    if Path::new(VOLUME).is_dir() {
        // Below the volume: what goes over that hides both.
        let programs = tree(Path::new(COPIES), false, LOCKED).map_err(Failure::step("copies of programs"))?;
        place.show(&programs, &inside, "copies of programs")?;
        copies = Some(programs);
        // Writable here: views are made read-only one by one.
        let tree = tree(Path::new(VOLUME), false, sys::MOUNT_NOSUID | sys::MOUNT_NODEV);
        place.show(&tree.map_err(Failure::step("the volume"))?, &inside, "the volume")?;
    }
    drop(place);
    chdir(&root).map_err(io::Error::from).map_err(Failure::step("entering the root"))?;
    pivot_root(".", ".").map_err(io::Error::from).map_err(Failure::step("pivot_root"))?;
    // Both are mounted here now, the old one on top.
    umount2(".", MntFlags::MNT_DETACH).map_err(io::Error::from).map_err(Failure::step("letting the old root go"))?;
    chdir("/").map_err(io::Error::from).map_err(Failure::step("entering the root"))?;
    sethostname("brine").map_err(io::Error::from).map_err(Failure::step("host name"))?;
    Ok(Built { cover, copies })
}

/// The root that is being made, which may be what an image holds: no link in it is followed. One that lies where something of
/// the sandbox's own belongs makes way for it, which the private layer keeps from the image.
struct Place(OwnedFd);

impl Place {
    fn open(root: &Path) -> Result<Self, Failure> {
        let open = text(root).and_then(|root| sys::open_path(&root));
        Ok(Self(open.map_err(Failure::step("the root"))?))
    }

    fn has(&self, path: &CStr) -> bool {
        sys::open_beneath(&self.0, path, libc::O_PATH | libc::O_NOFOLLOW).is_ok()
    }

    fn directory(&self, path: &str) -> Result<OwnedFd, Failure> {
        self.make(path, beneath::directory)
    }

    /// A file to be mounted onto, or to be written.
    fn file(&self, path: &str) -> Result<OwnedFd, Failure> {
        self.make(path, beneath::file)
    }

    fn make(&self, path: &str, make: fn(&OwnedFd, &Path) -> io::Result<OwnedFd>) -> Result<OwnedFd, Failure> {
        let make = || make(&self.0, Path::new(path));
        let made = make().or_else(|_| beneath::remove_link(&self.0, Path::new(path)).and_then(|()| make()));
        made.map_err(cannot(path))
    }

    /// In place of a link that an image has there: it would be followed.
    fn own_link(&self, target: &str, path: &str) -> Result<(), Failure> {
        let link = || beneath::link(&self.0, target.as_ref(), Path::new(path));
        if link().is_ok() {
            return Ok(());
        }
        beneath::remove_link(&self.0, Path::new(path)).map_err(cannot(path))?;
        self.link(target, path)
    }

    /// Unless an image has something there.
    fn link(&self, target: impl AsRef<Path>, path: &str) -> Result<(), Failure> {
        match beneath::link(&self.0, target.as_ref(), Path::new(path)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map_err(cannot(path)),
        }
    }

    fn mount(&self, kind: &str, path: &str, flags: MsFlags, options: &str) -> Result<(), Failure> {
        let at = self.directory(path)?;
        mount_at(Some(kind), beneath::by_number(&at), Some(kind), flags, options).map_err(Failure::step(path))
    }

    fn show(&self, tree: &OwnedFd, at: &OwnedFd, what: &str) -> Result<(), Failure> {
        sys::move_mount_to(tree, at).map_err(Failure::step(what))
    }
}

fn cannot(path: &str) -> impl Fn(io::Error) -> Failure {
    move |error| {
        let passes = matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR));
        let why = if passes { ": the root image has a link or a file where a directory is needed" } else { "" };
        Failure::step(format!("{path}{why}"))(error)
    }
}

/// A detached mount of what is at a descriptor.
fn clone(at: &OwnedFd) -> io::Result<OwnedFd> {
    sys::open_tree(Some(at.as_fd()), c"", libc::OPEN_TREE_CLONE | libc::AT_EMPTY_PATH as u32)
}

/// A detached, read-only view of an empty directory.
fn cover(empty: &OwnedFd) -> io::Result<OwnedFd> {
    let cover = clone(empty)?;
    sys::mount_setattr(&cover, false, LOCKED)?;
    Ok(cover)
}

/// `mount(2)` with paths of this module.
pub(crate) fn mount_at(
    source: Option<&str>,
    at: impl AsRef<Path>,
    kind: Option<&str>,
    flags: MsFlags,
    options: &str,
) -> io::Result<()> {
    let options = (!options.is_empty()).then_some(options);
    Ok(mount(source, at.as_ref(), kind, flags, options)?)
}

/// Bind `source`, and what is mounted below it if asked, at `at`, with attributes that the program cannot take off.
pub(crate) fn bind(source: &Path, at: &Path, recursive: bool, attributes: u64) -> io::Result<()> {
    sys::move_mount(tree(source, recursive, attributes)?, &text(at)?)
}

/// A detached mount of what is at a path of this module's.
fn tree(source: &Path, recursive: bool, attributes: u64) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    let tree = sys::open_tree(None, &text(source)?, flags)?;
    sys::mount_setattr(&tree, recursive, attributes)?;
    Ok(tree)
}

pub(crate) fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

const LOCKED: u64 = sys::MOUNT_RDONLY | sys::MOUNT_NOSUID | sys::MOUNT_NODEV;

fn system(root: &Path) -> Result<(), Failure> {
    for path in SYSTEM.map(Path::new) {
        let at = root.join(path.strip_prefix("/").unwrap_or(path));
        let step = || format!("system directory {}", path.display());
        match fs::symlink_metadata(path) {
            Err(_) => {}
            Ok(meta) if meta.is_symlink() => {
                let target = fs::read_link(path).map_err(Failure::step(step()))?;
                symlink(target, &at).map_err(Failure::step(step()))?;
            }
            Ok(_) => {
                directory(&at)?;
                bind(path, &at, true, LOCKED).map_err(Failure::step(step()))?;
            }
        }
    }
    Ok(())
}

/// A directory of the volume below a private layer in scratch. CVE-2023-0386 is why it is nosuid.
fn overlay(image: &Path, scratch_bytes: u64) -> Result<PathBuf, Failure> {
    let step = || Failure::step(format!("root image {}", image.display()));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = format!("size={scratch_bytes},mode=755");
    mount_at(Some("tmpfs"), BASE, Some("tmpfs"), flags, &options).map_err(Failure::step("root tmpfs"))?;
    let base = Path::new(BASE);
    for name in ["upper", "work", "root"] {
        directory(&base.join(name))?;
    }
    let volume = File::open(VOLUME).map_err(step())?;
    let lower =
        sys::open_beneath(&volume, &text(image).map_err(step())?, libc::O_PATH | libc::O_DIRECTORY).map_err(step())?;
    nix::unistd::fchdir(&lower).map_err(io::Error::from).map_err(step())?;
    let options = format!("lowerdir=.,upperdir={BASE}/upper,workdir={BASE}/work,userxattr");
    let root = base.join("root");
    mount_at(Some("overlay"), &root, Some("overlay"), flags, &options).map_err(step())?;
    chdir("/").map_err(io::Error::from).map_err(step())?;
    Ok(root)
}

fn etc(place: &Place, template: &Template, identity: &Identity) -> Result<(), Failure> {
    let with_net = template.network == Network::Host;
    let own = template.root == Root::Host;
    let configuration = CONFIGURATION.iter().filter(|_| own).chain(CONFIGURATION_NET.iter().filter(|_| with_net));
    for name in configuration {
        let at = format!("/etc/{name}");
        let source = Path::new(&at);
        let step = || Failure::step(at.clone());
        // Where resolvers keep what is a link to them is not there for a program, so the file is shown.
        let follow = CONFIGURATION_NET.contains(name);
        let meta = if follow { fs::metadata(source) } else { fs::symlink_metadata(source) };
        let Ok(meta) = meta else { continue };
        if meta.is_symlink() {
            let target = fs::read_link(source).map_err(step())?;
            place.link(target, &at)?;
            continue;
        }
        let onto = if meta.is_dir() { place.directory(&at)? } else { place.file(&at)? };
        place.show(&tree(source, false, LOCKED).map_err(step())?, &onto, &at)?;
    }
    // An image has its own users; a run's must be known in both.
    if own {
        let Identity { uid, gid, groups } = identity;
        let passwd = format!("user:x:{uid}:{gid}:user:/tmp:/bin/sh\n");
        let mut group = format!("user:x:{gid}:\n");
        for id in groups.iter().filter(|id| *id != gid) {
            group.push_str(&format!("group{id}:x:{id}:user\n"));
        }
        for (path, text) in [("/etc/passwd", passwd), ("/etc/group", group)] {
            let mut file = File::from(place.file(path)?);
            let readable = file.set_permissions(fs::Permissions::from_mode(0o644));
            readable.and_then(|()| file.write_all(text.as_bytes())).map_err(Failure::step(path))?;
        }
    }
    Ok(())
}

fn devices(place: &Place) -> Result<(), Failure> {
    for (name, major, minor) in DEVICES {
        let path = format!("/dev/{name}");
        let step = || Failure::step(path.clone());
        let tree = tree(Path::new(&path), false, sys::MOUNT_NOSUID).map_err(step())?;
        // Checked on the handle: what is bound is this device and not what a link made of it (CVE-2025-52565).
        let found = nix::sys::stat::fstat(&tree).map_err(io::Error::from).map_err(step())?;
        if found.st_rdev != nix::sys::stat::makedev(u64::from(major), u64::from(minor)) {
            return Err(step()(io::Error::from_raw_os_error(libc::ENODEV)));
        }
        place.show(&tree, &place.file(&path)?, &path)?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    place.mount("devpts", "/dev/pts", flags, "newinstance,ptmxmode=0666,mode=0620")?;
    for (path, target) in [
        ("/dev/ptmx", "pts/ptmx"),
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        // Shared memory counts as scratch.
        ("/dev/shm", "/tmp"),
    ] {
        place.own_link(target, path)?;
    }
    Ok(())
}

/// Make a directory, and those above it, unless it is there.
fn directory(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(Failure::step(format!("directory {}", path.display())))
}
