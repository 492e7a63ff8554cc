//! What many parts need: inodes of every kind, and the errors every path can make.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::Suite;
use super::sys::{self, Answer};

/// An ordinary user who owns nothing.
pub const USER: u32 = crate::environment::STRANGER;
/// Another one.
pub const OTHER: u32 = USER + 1;

/// Kinds of inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Fifo,
    Socket,
    Symlink,
    Char,
    Block,
}

pub const KINDS: [Kind; 7] = [Kind::File, Kind::Dir, Kind::Fifo, Kind::Socket, Kind::Symlink, Kind::Char, Kind::Block];

impl Kind {
    pub fn bits(self) -> u32 {
        match self {
            Self::File => libc::S_IFREG,
            Self::Dir => libc::S_IFDIR,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
            Self::Symlink => libc::S_IFLNK,
            Self::Char => libc::S_IFCHR,
            Self::Block => libc::S_IFBLK,
        }
    }

    /// Make one with these permissions; a symbolic link leads nowhere.
    pub fn make(self, path: &Path, mode: u32) -> Answer {
        match self {
            Self::Dir => sys::mkdir(path, mode),
            Self::Symlink => sys::symlink(Path::new("nowhere"), path),
            Self::Char | Self::Block => sys::mknod(path, self.bits() | mode, libc::makedev(1, 3)),
            _ => sys::mknod(path, self.bits() | mode, 0),
        }
    }

    /// Remove one.
    pub fn remove(self, path: &Path) -> Answer {
        if self == Self::Dir { sys::rmdir(path) } else { sys::unlink(path) }
    }
}

/// A regular file with content.
pub fn file(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}

pub fn mode_of(path: &Path) -> u32 {
    sys::lstat(path).map_or(0, |stat| stat.st_mode & 0o7777)
}

pub fn links_of(path: &Path) -> u64 {
    sys::lstat(path).map_or(0, |stat| stat.st_nlink)
}

/// The same name many times over.
pub fn name(len: usize) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(&vec![b'n'; len]))
}

/// How an operation takes its path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// It must exist; symbolic links are followed.
    Followed,
    /// It must exist; a symbolic link is taken itself.
    Itself,
    /// It is made.
    Made,
}

/// Every error that a path alone can make.
pub fn path_errors(s: &mut Suite, call: &str, last: Last, run: &(dyn Fn(&Path) -> Answer + Sync)) {
    let dir = s.dir();
    file(&dir.join("file"), b"x");
    Kind::Fifo.make(&dir.join("fifo"), 0o644).expect("fifo");
    for (target, link) in [("b", "a"), ("a", "b"), ("file", "to-file"), ("nowhere", "dangling"), (".", "here")] {
        sys::symlink(Path::new(target), &dir.join(link)).expect("symlink");
    }
    sys::mkdir(&dir.join("closed"), 0o700).expect("mkdir");
    file(&dir.join("closed/file"), b"x");
    sys::chmod(&dir.join("closed/file"), 0o666).expect("chmod");
    let long = dir.join("x/".repeat(2100));
    let middle = [
        ("a missing directory", dir.join("no/x"), Errno::ENOENT),
        ("a dangling link in the middle", dir.join("dangling/x"), Errno::ENOENT),
        ("a file in the middle", dir.join("file/x"), Errno::ENOTDIR),
        ("a fifo in the middle", dir.join("fifo/x"), Errno::ENOTDIR),
        ("a link to a file in the middle", dir.join("to-file/x"), Errno::ENOTDIR),
        ("a loop of links in the middle", dir.join("a/x"), Errno::ELOOP),
        ("a name of 256 bytes", dir.join(name(256)), Errno::ENAMETOOLONG),
        ("a name of 256 bytes in the middle", dir.join(name(256)).join("x"), Errno::ENAMETOOLONG),
        ("a path of 4096 bytes", long, Errno::ENAMETOOLONG),
        ("an empty path", PathBuf::new(), Errno::ENOENT),
    ];
    for (what, path, errno) in middle {
        s.fails(format!("{call}: {what}"), run(&path), errno);
    }
    let closed = dir.join("closed/file");
    s.fails(format!("{call}: no search permission"), sys::as_user(USER, USER, &[], || run(&closed)), Errno::EACCES);
    if last != Last::Made {
        let slash = PathBuf::from(OsStr::from_bytes(&[dir.join("file").as_os_str().as_bytes(), b"/"].concat()));
        s.fails(format!("{call}: a missing name"), run(&dir.join("no")), Errno::ENOENT);
        s.fails(format!("{call}: a missing name of 255 bytes"), run(&dir.join(name(255))), Errno::ENOENT);
        s.fails(format!("{call}: a file with a slash"), run(&slash), Errno::ENOTDIR);
    }
    if last == Last::Followed {
        s.fails(format!("{call}: a dangling link"), run(&dir.join("dangling")), Errno::ENOENT);
        s.fails(format!("{call}: a loop of links"), run(&dir.join("a")), Errno::ELOOP);
    }
    // 40 links are the most that are followed.
    let steps = "here/".repeat(41);
    s.fails(format!("{call}: more than 40 links"), run(&dir.join(&steps).join("x")), Errno::ELOOP);
}
