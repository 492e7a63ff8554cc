//! fsync(2), fdatasync(2).

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Suite;
use super::common::{Kind, file};
use super::sys;

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    file(&dir.join("file"), b"content");
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        let open = sys::open(&dir.join("file"), flags, 0).expect("open");
        s.works(format!("fsync with {flags}"), sys::fsync(open.as_raw_fd()));
        s.works(format!("fdatasync with {flags}"), sys::fdatasync(open.as_raw_fd()));
    }
    let directory = sys::open(&dir, libc::O_RDONLY, 0).expect("open");
    s.works("fsync of a directory", sys::fsync(directory.as_raw_fd()));
    s.works("fdatasync of a directory", sys::fdatasync(directory.as_raw_fd()));
    let gone = sys::open(&dir.join("gone"), libc::O_RDWR | libc::O_CREAT, 0o644).expect("open");
    sys::unlink(&dir.join("gone")).expect("unlink");
    sys::write(gone.as_raw_fd(), b"x", None).expect("write");
    s.works("fsync of what has no name", sys::fsync(gone.as_raw_fd()));
    Kind::Fifo.make(&dir.join("p"), 0o600).expect("fifo");
    let pipe = sys::open(&dir.join("p"), libc::O_RDWR, 0).expect("open");
    s.fails("fsync of a fifo", sys::fsync(pipe.as_raw_fd()), Errno::EINVAL);
    s.fails("fdatasync of a fifo", sys::fdatasync(pipe.as_raw_fd()), Errno::EINVAL);
    let bare = sys::open(&dir.join("file"), libc::O_PATH, 0).expect("open");
    s.fails("fsync by O_PATH", sys::fsync(bare.as_raw_fd()), Errno::EBADF);
    s.fails("fsync of nothing", sys::fsync(-1), Errno::EBADF);
    s.fails("fdatasync of nothing", sys::fdatasync(-1), Errno::EBADF);
}
