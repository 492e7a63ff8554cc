//! truncate(2), ftruncate(2).

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, USER, file, path_errors};
use super::sys;
use crate::content;

pub fn checks(s: &mut Suite) {
    path_errors(s, "truncate", Last::Followed, &|path| sys::truncate(path, 0));
    let dir = s.dir();
    for kind in KINDS.into_iter().filter(|kind| *kind != Kind::Symlink) {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o644).expect("make");
        let want = match kind {
            Kind::File => None,
            Kind::Dir => Some(Errno::EISDIR),
            _ => Some(Errno::EINVAL),
        };
        s.answers(format!("of {kind:?}"), sys::truncate(&path, 0), want);
    }
    let sizes = [0usize, 1, 2047, 2048, 2049, 4096, 131_071, 131_072, 131_073, 300_000];
    let path = dir.join("file");
    for from in sizes {
        for to in sizes {
            let mut want = content(from as u64, from);
            file(&path, &want);
            let open = sys::open(&path, libc::O_RDWR, 0).expect("open");
            if (from + to) % 2 == 0 {
                sys::fsync(open.as_raw_fd()).expect("fsync");
            }
            s.works(format!("{from} to {to}"), sys::ftruncate(open.as_raw_fd(), to as i64));
            want.resize(to, 0);
            s.holds(format!("content, {from} to {to}"), std::fs::read(&path).ok() == Some(want.clone()));
            sys::ftruncate(open.as_raw_fd(), 400_000).expect("truncate");
            want.resize(400_000, 0);
            s.holds(format!("content, {from} to {to} to 400000"), std::fs::read(&path).ok() == Some(want));
        }
    }
    s.fails("to less than nothing", sys::truncate(&path, -1), Errno::EINVAL);
    let open = sys::open(&path, libc::O_RDWR, 0).expect("open");
    s.fails("ftruncate to less than nothing", sys::ftruncate(open.as_raw_fd(), -1), Errno::EINVAL);
    s.fails("ftruncate of nothing", sys::ftruncate(-1, 0), Errno::EBADF);
    let directory = sys::open(&dir, libc::O_RDONLY, 0).expect("open");
    s.fails("ftruncate of a directory", sys::ftruncate(directory.as_raw_fd(), 0), Errno::EINVAL);
    sys::chmod(&path, 0o644).expect("chmod");
    s.fails("without permission", sys::as_user(USER, USER, &[], || sys::truncate(&path, 0)), Errno::EACCES);
    s.works("to 8 TiB", sys::truncate(&path, 1 << 43));
    s.works("and back", sys::truncate(&path, 0));
}
