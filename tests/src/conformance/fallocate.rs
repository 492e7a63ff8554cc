//! fallocate(2).

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;

use super::Suite;
use super::common::file;
use super::sys;
use crate::content;

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let start = content(4, 300_000);
    for (name, mode) in
        [("allocate", 0), ("keep size", KEEP), ("punch", PUNCH), ("zero", ZERO), ("zero, keep size", ZERO | KEEP)]
    {
        for synced in [false, true] {
            for offset in [0usize, 1, 4096, 131_072, 299_999, 300_000, 500_000] {
                for len in [1usize, 4095, 131_072, 290_000] {
                    let path = dir.join("file");
                    file(&path, &start);
                    let open = sys::open(&path, libc::O_RDWR, 0).expect("open");
                    if synced {
                        sys::fsync(open.as_raw_fd()).expect("fsync");
                    }
                    let what = format!("{name} {offset}+{len}{}", if synced { " after a sync" } else { "" });
                    s.works(&what, sys::fallocate(open.as_raw_fd(), mode, offset as i64, len as i64));
                    let mut want = start.clone();
                    if mode & KEEP == 0 {
                        want.resize(want.len().max(offset + len), 0);
                    }
                    if mode & !KEEP != 0 {
                        let end = (offset + len).min(want.len());
                        want[offset.min(end)..end].fill(0);
                    }
                    s.holds(format!("content after {what}"), std::fs::read(&path).ok() == Some(want));
                }
            }
        }
    }
    refusals(s, &dir);
}

fn refusals(s: &mut Suite, dir: &Path) {
    let path = dir.join("small");
    file(&path, b"x");
    let write = sys::open(&path, libc::O_WRONLY, 0).expect("open");
    let read = sys::open(&path, libc::O_RDONLY, 0).expect("open");
    let directory = sys::open(dir, libc::O_RDONLY, 0).expect("open");
    sys::mknod(&dir.join("pipe"), libc::S_IFIFO | 0o600, 0).expect("fifo");
    let fifo = sys::open(&dir.join("pipe"), libc::O_RDWR, 0).expect("open");
    let w = write.as_raw_fd();
    for (what, got, want) in [
        ("nothing", sys::fallocate(w, 0, 0, 0), Errno::EINVAL),
        ("a negative length", sys::fallocate(w, 0, 0, -1), Errno::EINVAL),
        ("a negative offset", sys::fallocate(w, 0, -1, 1), Errno::EINVAL),
        ("past the largest file", sys::fallocate(w, 0, i64::MAX - 1, 10), Errno::EFBIG),
        ("of what is not writable", sys::fallocate(read.as_raw_fd(), 0, 0, 1), Errno::EBADF),
        ("of nothing", sys::fallocate(-1, 0, 0, 1), Errno::EBADF),
        ("of a directory", sys::fallocate(directory.as_raw_fd(), 0, 0, 1), Errno::EBADF),
        ("of a fifo", sys::fallocate(fifo.as_raw_fd(), 0, 0, 1), Errno::ESPIPE),
        ("punch without keeping the size", sys::fallocate(w, libc::FALLOC_FL_PUNCH_HOLE, 0, 1), Errno::EOPNOTSUPP),
        ("punch and zero", sys::fallocate(w, PUNCH | ZERO, 0, 1), Errno::EOPNOTSUPP),
        ("an unknown mode", sys::fallocate(w, 1 << 20, 0, 1), Errno::EOPNOTSUPP),
    ] {
        s.fails(what, got, want);
    }
}
