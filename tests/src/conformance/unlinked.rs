//! Files without a name live until nobody has them open.

use std::os::fd::AsRawFd;

use super::Suite;
use super::common::file;
use super::sys;
use crate::content;

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    for size in [0usize, 10, 5000, 300_000] {
        let path = dir.join("file");
        let mut want = content(size as u64, size);
        file(&path, &want);
        let open = sys::open(&path, libc::O_RDWR, 0).expect("open");
        let f = open.as_raw_fd();
        let inode = sys::fstat(f).map(|stat| stat.st_ino);
        s.works(format!("unlink {size}"), sys::unlink(&path));
        s.is(format!("{size}: no links"), sys::fstat(f).map(|stat| stat.st_nlink), Ok(0));
        s.is(format!("{size}: its inode"), sys::fstat(f).map(|stat| stat.st_ino), inode);
        s.holds(format!("{size}: read"), sys::read(f, size + 1, Some(0)).as_deref() == Ok(&want));
        s.is(format!("{size}: write"), sys::write(f, b"more", Some(size as i64)), Ok(4));
        want.extend(b"more");
        s.works(format!("{size}: chmod"), sys::fchmod(f, 0o600));
        s.works(format!("{size}: fsync"), sys::fsync(f));
        s.holds(format!("{size}: read again"), sys::read(f, size + 10, Some(0)).as_deref() == Ok(&want));
        s.works(format!("{size}: truncate"), sys::ftruncate(f, 2));
        file(&path, b"a new one of this name");
        s.holds(format!("{size}: not the new one"), sys::fstat(f).is_ok_and(|stat| stat.st_size == 2));
        let again = std::path::PathBuf::from(format!("/proc/self/fd/{f}"));
        s.works(format!("{size}: opened again"), sys::open(&again, libc::O_RDONLY, 0));
        sys::unlink(&path).expect("unlink");
    }
    let sub = dir.join("sub");
    sys::mkdir(&sub, 0o755).expect("mkdir");
    let open = sys::open(&sub, libc::O_RDONLY | libc::O_DIRECTORY, 0).expect("open");
    s.works("rmdir while open", sys::rmdir(&sub));
    s.works("stat of it", sys::fstat(open.as_raw_fd()));
    let got = sys::openat(open.as_raw_fd(), std::path::Path::new("x"), libc::O_CREAT | libc::O_RDWR, 0o644);
    s.fails("nothing is made in it", got, nix::errno::Errno::ENOENT);
}
