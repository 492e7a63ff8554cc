//! Opening, making and listing below a directory, never through a link and never outside it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};

/// Interrupted or raced look-ups are tried again this often before the error is believed.
const TRIES_MAX: usize = 64;

/// Open `path` below `dir`. No component may be a symbolic link, and the last is never followed (ELOOP); `..` out of
/// the directory is EXDEV.
pub(super) fn open(dir: impl AsFd, path: &str, flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    // openat2 refuses a mode where nothing is created.
    let mode = if flags.contains(OFlag::O_CREAT) { Mode::from_bits_truncate(0o600) } else { Mode::empty() };
    let how = || {
        OpenHow::new().flags(flags).mode(mode).resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        )
    };
    let mut tries = 0;
    loop {
        tries += 1;
        match openat2(dir.as_fd(), path, how()) {
            Err(Errno::EINTR | Errno::EAGAIN) if tries < TRIES_MAX => {}
            result => return Ok(result?),
        }
    }
}

/// Open a regular file below `dir`; anything else of that name is `InvalidData`.
pub(super) fn open_regular(dir: impl AsFd, path: &str, flags: OFlag) -> io::Result<File> {
    // Without O_NONBLOCK a fifo planted under the name would hang us; on regular files it means nothing.
    let file = File::from(open(dir, path, flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} is not a regular file; remove it")))
    }
}

/// Open a directory below `dir` (`"."`: itself, afresh).
pub(super) fn open_dir(dir: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    open(dir, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// Make the directory `name` (one component) in `dir` if it is missing, durably, and open it.
pub(super) fn make_dir(dir: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(dir.as_fd(), name, Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    // Also when it was there: whoever made it may have died before this sync.
    sync_dir(dir.as_fd())?;
    open_dir(dir, name)
}

/// Make the entries of a directory durable.
pub(super) fn sync_dir(dir: impl AsFd) -> io::Result<()> {
    match nix::unistd::fsync(dir.as_fd()) {
        // EINVAL: the filesystem has no such operation for directories (cifs); its name changes are done on the
        // server before the call that made them returns.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// What an entry of a directory is.
pub(super) enum EntryKind {
    File { len: u64 },
    Other,
}

/// Length and kind of an entry, without following it. `None` if there is none.
pub(super) fn entry(dir: impl AsFd, name: &str) -> io::Result<Option<EntryKind>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG => {
            Ok(Some(EntryKind::File { len: stat.st_size.max(0) as u64 }))
        }
        Ok(_) => Ok(Some(EntryKind::Other)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Names in a directory that may be directories or regular files; those that are not UTF-8 are none of ours.
pub(super) fn names(dir: OwnedFd) -> io::Result<Vec<String>> {
    let mut dir = Dir::from_fd(dir)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let ours = matches!(entry.file_type(), None | Some(Type::File | Type::Directory));
        match entry.file_name().to_str() {
            Ok(name) if ours && name != "." && name != ".." => names.push(name.to_owned()),
            _ => {}
        }
    }
    Ok(names)
}
