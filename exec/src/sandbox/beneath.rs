//! Making what mounts go onto, below the root of a sandbox, without following a link: whatever a root image or a view holds,
//! it leads nowhere else.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::sys;

/// Open a directory, made with those above it if it is not there.
///
/// # Errors
/// ELOOP or ENOTDIR if a link or something else is in the way.
pub(crate) fn directory(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    const FLAGS: i32 = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    // Mostly it is there, or all but its last name.
    match sys::open_beneath(root, &whole(path)?, FLAGS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let (parent, name) = split(root, path)?;
    match mkdirat(&parent, name.as_c_str(), Mode::from_bits_truncate(0o755)) {
        // Another run made it meanwhile, in a view of both.
        Ok(()) | Err(Errno::EEXIST) => sys::open_beneath(&parent, &name, FLAGS),
        Err(errno) => Err(errno.into()),
    }
}

/// Open what is there and no link, or an empty file made for it with the directories above.
///
/// # Errors
/// ELOOP or ENOTDIR if a link, or above it something else than a directory, is in the way.
pub(crate) fn file(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    const FLAGS: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
    let whole = whole(path)?;
    let made = match sys::open_beneath(root, &whole, FLAGS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (parent, name) = split(root, path)?;
            sys::open_beneath(&parent, &name, FLAGS)
        }
        made => made,
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => sys::open_beneath(root, &whole, libc::O_PATH),
        made => made,
    }
}

/// Make a link, and the directories above it.
///
/// # Errors
/// EEXIST if something is there; as [`directory`], for what is above it.
pub(crate) fn link(root: &OwnedFd, target: &Path, path: &Path) -> io::Result<()> {
    let (parent, name) = split(root, path)?;
    Ok(symlinkat(target, &parent, name.as_c_str())?)
}

/// Take away a link that is there: what is mounted or made instead is the sandbox's own.
///
/// # Errors
/// As [`directory`], for what is above it.
pub(crate) fn remove_link(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let (parent, name) = split(root, path)?;
    let found = fstatat(&parent, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
    if found.is_ok_and(|found| found.st_mode & libc::S_IFMT == libc::S_IFLNK) {
        unlinkat(&parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
    }
    Ok(())
}

fn split(root: &OwnedFd, path: &Path) -> io::Result<(OwnedFd, CString)> {
    let name = names(path)?.pop().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((directory(root, path.parent().unwrap_or(Path::new("")))?, name))
}

/// It from the root on, in one piece.
fn whole(path: &Path) -> io::Result<CString> {
    let names = names(path)?;
    let bytes = names.iter().map(|name| name.as_bytes()).collect::<Vec<_>>().join(&b'/');
    Ok(if bytes.is_empty() { c".".into() } else { CString::new(bytes)? })
}

/// Its components; a leading "/" is the root.
fn names(path: &Path) -> io::Result<Vec<CString>> {
    let name = |part: Component<'_>| match part {
        Component::RootDir | Component::CurDir => None,
        Component::Normal(name) => Some(CString::new(name.as_bytes()).map_err(io::Error::from)),
        _ => Some(Err(io::ErrorKind::InvalidInput.into())),
    };
    path.components().filter_map(name).collect()
}

/// A path that leads to what a descriptor refers to as long as it is open, for mount(2).
pub(crate) fn by_number(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
