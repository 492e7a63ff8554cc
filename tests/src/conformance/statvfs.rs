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
    file(&dir.join("file"), &crate::content(77, 8 << 20));
    let open = sys::open(&dir.join("file"), libc::O_RDWR, 0).expect("open");
    sys::fsync(open.as_raw_fd()).expect("fsync");
    let used = sys::statvfs(&dir).map(|now| now.f_bfree.saturating_sub(start.f_bfree) * now.f_frsize);
    s.holds("writing takes space", used.is_ok_and(|freed| freed < 4 << 20));
    for n in 0..20 {
        file(&dir.join(format!("f{n}")), b"x");
    }
    s.holds(
        "files take inodes",
        sys::statvfs(&dir).is_ok_and(|now| now.f_files - now.f_ffree >= start.f_files - start.f_ffree + 15),
    );
}
