//! statvfs(3).

use std::os::fd::AsRawFd;

use super::Suite;
use super::common::{Last, file, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    path_errors(s, "statvfs", Last::Followed, &|path| sys::statvfs(path).map(drop));
    let dir = s.dir();
    let Some(start) = s.works("statvfs", sys::statvfs(&dir)) else { return };
    s.is("longest name", start.f_namemax, 255);
    s.holds("block size", start.f_bsize.is_power_of_two() && start.f_frsize.is_power_of_two());
    s.holds("free at most all", start.f_bfree <= start.f_blocks && start.f_bavail <= start.f_bfree);
    s.holds("inodes free at most all", start.f_ffree <= start.f_files);
    s.holds("something is free", start.f_bavail > 0);
    s.holds("some inodes are used", start.f_files > start.f_ffree);
    // How much changes with a write cannot be told on a disk that others use.
    file(&dir.join("file"), b"content");
    let open = sys::open(&dir.join("file"), libc::O_RDONLY, 0).expect("open");
    let same = sys::fstatvfs(open.as_raw_fd()).map(|now| (now.f_fsid, now.f_blocks, now.f_bsize));
    s.is("fstatvfs", same, Ok((start.f_fsid, start.f_blocks, start.f_bsize)));
    s.fails("of nothing", sys::fstatvfs(-1), nix::errno::Errno::EBADF);
}
