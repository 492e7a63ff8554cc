//! read(2), write(2), pread(2), pwrite(2) at every boundary.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Suite;
use super::common::{Kind, file};
use super::sys;
use crate::content;

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let start = content(8, 400_000);
    for offset in [0usize, 1, 2047, 2048, 4095, 4096, 131_071, 131_072, 399_999, 400_000, 450_000] {
        for len in [1usize, 2, 4096, 4097, 131_072, 270_000] {
            let path = dir.join("file");
            file(&path, &start);
            let open = sys::open(&path, libc::O_RDWR, 0).expect("open");
            let bytes = content((offset * 31 + len) as u64, len);
            s.is(format!("pwrite {offset}+{len}"), sys::write(open.as_raw_fd(), &bytes, Some(offset as i64)), Ok(len));
            let mut want = start.clone();
            want.resize(want.len().max(offset + len), 0);
            want[offset..offset + len].copy_from_slice(&bytes);
            s.holds(format!("content after {offset}+{len}"), std::fs::read(&path).ok() == Some(want.clone()));
            let past = want.get(offset..).unwrap_or_default();
            let most = &past[..past.len().min(len + 5)];
            let got = sys::read(open.as_raw_fd(), len + 5, Some(offset as i64));
            s.holds(format!("pread {offset}+{len}"), got.as_deref() == Ok(most));
        }
    }
    let path = dir.join("small");
    for size in [1usize, 100, 2047, 2048, 2049, 4096] {
        // Files that may be kept with their inode, growing and shrinking across the limit.
        file(&path, &content(1, size));
        let open = sys::open(&path, libc::O_RDWR, 0).expect("open");
        sys::fsync(open.as_raw_fd()).expect("fsync");
        for (offset, len) in [(0, 1), (size / 2, 10), (size, 3000), (1, 5)] {
            let mut want = std::fs::read(&path).unwrap_or_default();
            let bytes = content(size as u64 + offset as u64, len);
            sys::write(open.as_raw_fd(), &bytes, Some(offset as i64)).expect("write");
            want.resize(want.len().max(offset + len), 0);
            want[offset..offset + len].copy_from_slice(&bytes);
            s.holds(format!("{size} bytes, {offset}+{len}"), std::fs::read(&path).ok() == Some(want.clone()));
            sys::fsync(open.as_raw_fd()).expect("fsync");
            s.holds(format!("{size} bytes, {offset}+{len}, synced"), std::fs::read(&path).ok() == Some(want));
        }
    }
    positions(s);
    refusals(s);
}

fn positions(s: &mut Suite) {
    let dir = s.dir();
    let open = sys::open(&dir.join("file"), libc::O_RDWR | libc::O_CREAT, 0o644).expect("open");
    let f = open.as_raw_fd();
    s.is("write", sys::write(f, b"0123456789", None), Ok(10));
    s.is("it moves on", sys::lseek(f, 0, libc::SEEK_CUR), Ok(10));
    s.is("at the end", sys::read(f, 5, None), Ok(vec![]));
    s.is("pread", sys::read(f, 3, Some(2)), Ok(b"234".to_vec()));
    s.is("pread does not move", sys::lseek(f, 0, libc::SEEK_CUR), Ok(10));
    s.is("pwrite", sys::write(f, b"X", Some(0)), Ok(1));
    s.is("pwrite does not move", sys::lseek(f, 0, libc::SEEK_CUR), Ok(10));
    sys::lseek(f, 8, libc::SEEK_SET).expect("seek");
    s.is("a short read", sys::read(f, 100, None), Ok(b"89".to_vec()));
    s.is("read nothing", sys::read(f, 0, None), Ok(vec![]));
    s.is("write nothing", sys::write(f, b"", Some(1000)), Ok(0));
    s.is("which does not grow", sys::fstat(f).map(|stat| stat.st_size), Ok(10));
    let copy = open.try_clone().expect("dup");
    sys::lseek(f, 3, libc::SEEK_SET).expect("seek");
    s.is("duplicates share the position", sys::read(copy.as_raw_fd(), 1, None), Ok(b"3".to_vec()));
    s.is("and move it", sys::lseek(f, 0, libc::SEEK_CUR), Ok(4));
    for at in [1i64 << 31, 1 << 32, 1 << 40, (1 << 44) - 4096 - 3] {
        s.is(format!("write at {at}"), sys::write(f, b"far", Some(at)), Ok(3));
        s.is(format!("read at {at}"), sys::read(f, 10, Some(at - 2)), Ok(b"\0\0far".to_vec()));
        s.is(format!("size {at}"), sys::fstat(f).map(|stat| stat.st_size), Ok(at + 3));
    }
    s.holds("sparse", sys::fstat(f).is_ok_and(|stat| stat.st_blocks < 10_000));
}

fn refusals(s: &mut Suite) {
    let dir = s.dir();
    file(&dir.join("file"), b"content");
    let open = sys::open(&dir.join("file"), libc::O_RDWR, 0).expect("open");
    let directory = sys::open(&dir, libc::O_RDONLY, 0).expect("open");
    Kind::Fifo.make(&dir.join("p"), 0o644).expect("fifo");
    let pipe = sys::open(&dir.join("p"), libc::O_RDWR, 0).expect("open");
    let f = open.as_raw_fd();
    s.fails("read a directory", sys::read(directory.as_raw_fd(), 1, None), Errno::EISDIR);
    s.fails("read nothing open", sys::read(-1, 1, None), Errno::EBADF);
    s.fails("write nothing open", sys::write(-1, b"x", None), Errno::EBADF);
    s.fails("pread before the beginning", sys::read(f, 1, Some(-1)), Errno::EINVAL);
    s.fails("pwrite before the beginning", sys::write(f, b"x", Some(-1)), Errno::EINVAL);
    s.fails("pread a fifo", sys::read(pipe.as_raw_fd(), 1, Some(0)), Errno::ESPIPE);
    s.fails("pwrite a fifo", sys::write(pipe.as_raw_fd(), b"x", Some(0)), Errno::ESPIPE);
    s.fails("write to a directory", sys::write(directory.as_raw_fd(), b"x", None), Errno::EBADF);
    s.fails("read into nowhere", sys::read_into_nowhere(f), Errno::EFAULT);
    s.fails("write from nowhere", sys::write_from_nowhere(f), Errno::EFAULT);
    s.fails("write past the largest offset", sys::write(f, b"xx", Some(i64::MAX)), Errno::EINVAL);
    s.fails("close twice", sys::close(9999), Errno::EBADF);
}
