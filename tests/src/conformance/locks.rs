//! flock(2), fcntl(2) record locks and open file description locks, leases.

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;

use super::Suite;
use super::common::file;
use super::sys;

const OFD_SET: i32 = libc::F_OFD_SETLK;
const OFD_GET: i32 = libc::F_OFD_GETLK;

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let path = dir.join("file");
    file(&path, b"content");
    whole_files(s, &path);
    ranges(s, &path);
    of_processes(s, &path);
    leases(s, &path);
}

fn whole_files(s: &mut Suite, path: &Path) {
    let one = sys::open(path, libc::O_RDWR, 0).expect("open");
    let two = sys::open(path, libc::O_RDWR, 0).expect("open");
    let (a, b) = (one.as_raw_fd(), two.as_raw_fd());
    for (first, second, want) in [
        (libc::LOCK_SH, libc::LOCK_SH, None),
        (libc::LOCK_SH, libc::LOCK_EX, Some(Errno::EWOULDBLOCK)),
        (libc::LOCK_EX, libc::LOCK_SH, Some(Errno::EWOULDBLOCK)),
        (libc::LOCK_EX, libc::LOCK_EX, Some(Errno::EWOULDBLOCK)),
    ] {
        s.works(format!("flock {first}"), sys::flock(a, first | libc::LOCK_NB));
        s.answers(format!("flock {second} beside {first}"), sys::flock(b, second | libc::LOCK_NB), want);
        s.works("unlock", sys::flock(a, libc::LOCK_UN));
        s.works(format!("flock {second} after"), sys::flock(b, second | libc::LOCK_NB));
        s.works("unlock", sys::flock(b, libc::LOCK_UN));
    }
    let copy = one.try_clone().expect("dup");
    s.works("lock", sys::flock(a, libc::LOCK_EX));
    s.works("a duplicate has the same lock", sys::flock(copy.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB));
    drop(copy);
    s.fails("closing a duplicate keeps it", sys::flock(b, libc::LOCK_SH | libc::LOCK_NB), Errno::EWOULDBLOCK);
    drop(one);
    s.works("closing the last gives it up", sys::flock(b, libc::LOCK_EX | libc::LOCK_NB));
    s.fails("an unknown operation", sys::flock(b, 64), Errno::EINVAL);
    s.fails("of nothing", sys::flock(-1, libc::LOCK_SH), Errno::EBADF);
}

fn ranges(s: &mut Suite, path: &Path) {
    let one = sys::open(path, libc::O_RDWR, 0).expect("open");
    let two = sys::open(path, libc::O_RDWR, 0).expect("open");
    let (a, b) = (one.as_raw_fd(), two.as_raw_fd());
    s.works("lock 100..200", sys::record_lock(a, OFD_SET, libc::F_WRLCK, 100, 100));
    for (start, len, free) in [
        (0, 100, true),
        (0, 101, false),
        (199, 1, false),
        (200, 1, true),
        (150, 10, false),
        (0, 0, false),
        (200, 0, true),
        (1 << 40, 5, true),
    ] {
        let want = (!free).then_some(Errno::EAGAIN);
        s.answers(format!("lock {start}+{len}"), sys::record_lock(b, OFD_SET, libc::F_WRLCK, start, len), want);
        let found = if free { libc::F_UNLCK } else { libc::F_WRLCK };
        sys::record_lock(b, OFD_SET, libc::F_UNLCK, start, len).expect("unlock");
        s.is(format!("ask of {start}+{len}"), sys::record_lock(b, OFD_GET, libc::F_WRLCK, start, len), Ok(found));
    }
    s.works("make it shared", sys::record_lock(a, OFD_SET, libc::F_RDLCK, 100, 100));
    s.works("share it", sys::record_lock(b, OFD_SET, libc::F_RDLCK, 150, 10));
    s.fails("not alone", sys::record_lock(a, OFD_SET, libc::F_WRLCK, 100, 100), Errno::EAGAIN);
    s.works("give up the middle", sys::record_lock(a, OFD_SET, libc::F_UNLCK, 120, 10));
    s.works("the middle is free", sys::record_lock(b, OFD_SET, libc::F_WRLCK, 120, 10));
    s.fails("before it is not", sys::record_lock(b, OFD_SET, libc::F_WRLCK, 119, 1), Errno::EAGAIN);
    let read = sys::open(path, libc::O_RDONLY, 0).expect("open");
    let write = sys::open(path, libc::O_WRONLY, 0).expect("open");
    s.fails("to write what is read", sys::record_lock(read.as_raw_fd(), OFD_SET, libc::F_WRLCK, 900, 1), Errno::EBADF);
    s.fails(
        "to read what is written",
        sys::record_lock(write.as_raw_fd(), OFD_SET, libc::F_RDLCK, 900, 1),
        Errno::EBADF,
    );
    s.fails("before the beginning", sys::record_lock(a, OFD_SET, libc::F_RDLCK, -1, 1), Errno::EINVAL);
    s.fails("an unknown kind", sys::record_lock(a, OFD_SET, 77, 0, 1), Errno::EINVAL);
    s.fails("of nothing", sys::record_lock(-1, OFD_SET, libc::F_RDLCK, 0, 1), Errno::EBADF);
}

/// Locks of a process do not meet its own, and end with any of its descriptors of the file.
fn of_processes(s: &mut Suite, path: &Path) {
    let one = sys::open(path, libc::O_RDWR, 0).expect("open");
    let two = sys::open(path, libc::O_RDWR, 0).expect("open");
    s.works("lock", sys::record_lock(one.as_raw_fd(), libc::F_SETLK, libc::F_WRLCK, 1000, 10));
    s.works("again", sys::record_lock(two.as_raw_fd(), libc::F_SETLK, libc::F_WRLCK, 1000, 10));
    let ofd = sys::open(path, libc::O_RDWR, 0).expect("open");
    let got = sys::record_lock(ofd.as_raw_fd(), OFD_SET, libc::F_WRLCK, 1000, 10);
    s.fails("an open file description is another owner", got, Errno::EAGAIN);
    drop(two);
    s.works("any close ends them", sys::record_lock(ofd.as_raw_fd(), OFD_SET, libc::F_WRLCK, 1000, 10));
}

fn leases(s: &mut Suite, path: &Path) {
    let read = sys::open(path, libc::O_RDONLY, 0).expect("open");
    s.is("no lease", sys::fcntl(read.as_raw_fd(), libc::F_GETLEASE, 0), Ok(libc::F_UNLCK));
}
