//! stat(2), lstat(2), fstat(2): what they tell.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, file};
use super::sys;

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let device = sys::stat(&dir).map(|stat| stat.st_dev);
    let mut inodes = std::collections::BTreeSet::new();
    for kind in KINDS {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o640).expect("make");
        let Some(stat) = s.works(format!("lstat of {kind:?}"), sys::lstat(&path)) else { continue };
        s.is(format!("{kind:?}: kind"), stat.st_mode & libc::S_IFMT, kind.bits());
        let mode = if kind == Kind::Symlink { 0o777 } else { 0o640 };
        s.is(format!("{kind:?}: permissions"), stat.st_mode & 0o7777, mode);
        s.is(format!("{kind:?}: links"), stat.st_nlink, if kind == Kind::Dir { 2 } else { 1 });
        s.is(format!("{kind:?}: owner"), (stat.st_uid, stat.st_gid), (0, 0));
        s.is(format!("{kind:?}: device"), Ok(stat.st_dev), device);
        s.holds(format!("{kind:?}: an inode of its own"), inodes.insert(stat.st_ino));
        let size = match kind {
            Kind::Symlink => 7,
            Kind::Dir => stat.st_size,
            _ => 0,
        };
        s.is(format!("{kind:?}: size"), stat.st_size, size);
        s.holds(format!("{kind:?}: block size"), stat.st_blksize >= 512);
        if kind != Kind::Symlink {
            s.is(format!("{kind:?}: stat and lstat agree"), sys::stat(&path).map(|stat| stat.st_ino), Ok(stat.st_ino));
        }
    }
    let path = dir.join("sized");
    file(&path, b"");
    let open = sys::open(&path, libc::O_RDWR, 0).expect("open");
    for size in [0i64, 1, 511, 512, 4096, 100_000, 1 << 20, 1 << 33, 1 << 43] {
        sys::ftruncate(open.as_raw_fd(), size).expect("truncate");
        s.is(format!("fstat of {size} bytes"), sys::fstat(open.as_raw_fd()).map(|stat| stat.st_size), Ok(size));
        s.is(format!("stat of {size} bytes"), sys::stat(&path).map(|stat| stat.st_size), Ok(size));
    }
    s.is("a hole has no blocks", sys::fstat(open.as_raw_fd()).map(|stat| stat.st_blocks), Ok(0));
    file(&path, &crate::content(3, 1 << 20));
    sys::fsync(sys::open(&path, libc::O_RDWR, 0).expect("open").as_raw_fd()).expect("fsync");
    let blocks = sys::stat(&path).map_or(0, |stat| stat.st_blocks);
    s.holds("blocks of a mebibyte", (2048..2200).contains(&blocks));
    s.fails("fstat of nothing", sys::fstat(-1), Errno::EBADF);
}
