//! copy_file_range(2).

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Suite;
use super::common::{Kind, file};
use super::sys;
use crate::content;

/// Copies all of `len`, however short the answers.
fn copy(from: i32, at: i64, to: i32, into: i64, len: usize) -> sys::Answer<usize> {
    let mut done = 0;
    while done < len {
        match sys::copy_range(from, at + done as i64, to, into + done as i64, len - done, 0)? {
            0 => break,
            more => done += more,
        }
    }
    Ok(done)
}

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let source = content(1, 600_000);
    let (path, other) = (dir.join("source"), dir.join("target"));
    file(&path, &source);
    let from = sys::open(&path, libc::O_RDWR, 0).expect("open");
    for at in [0usize, 1, 4096, 131_072, 262_143, 599_999] {
        for into in [0usize, 5, 4096, 131_072, 400_000] {
            for len in [1usize, 4096, 131_072, 300_000] {
                let mut want = content(2, 300_000);
                file(&other, &want);
                let to = sys::open(&other, libc::O_RDWR, 0).expect("open");
                let most = len.min(source.len() - at);
                let done = copy(from.as_raw_fd(), at as i64, to.as_raw_fd(), into as i64, len);
                s.is(format!("copy {at}+{len} to {into}"), done, Ok(most));
                want.resize(want.len().max(into + most), 0);
                want[into..into + most].copy_from_slice(&source[at..at + most]);
                let got = std::fs::read(&other).unwrap_or_default();
                s.holds(format!("content after copying {at}+{len} to {into}"), got == want);
            }
        }
    }
    // After a sync all of the source is in the store, and copies share it.
    s.works("sync", sys::fsync(from.as_raw_fd()));
    for len in [131_072usize, 262_144, 600_000] {
        let to = sys::open(&dir.join(format!("synced{len}")), libc::O_RDWR | libc::O_CREAT, 0o644).expect("open");
        s.is(format!("copy {len}"), copy(from.as_raw_fd(), 0, to.as_raw_fd(), 0, len), Ok(len));
        s.holds(format!("content of {len}"), sys::read(to.as_raw_fd(), 700_000, Some(0)) == Ok(source[..len].to_vec()));
        sys::write(to.as_raw_fd(), b"changed", Some(131_000)).expect("write");
        s.holds(format!("source after a change of {len}"), std::fs::read(&path).ok() == Some(source.clone()));
        sys::write(from.as_raw_fd(), &source[..10], Some(0)).expect("write");
        s.works(format!("grow {len}"), sys::ftruncate(to.as_raw_fd(), 800_000));
        let tail = sys::read(to.as_raw_fd(), 300_000, Some(len as i64)).unwrap_or_default();
        s.holds(
            format!("zeros past {len}"),
            tail.iter().enumerate().all(|(at, byte)| *byte == 0 || len + at < 131_007),
        );
    }
    within_one_file(s);
    refusals(s);
}

fn within_one_file(s: &mut Suite) {
    let dir = s.dir();
    let mut want = content(3, 400_000);
    file(&dir.join("file"), &want);
    let one = sys::open(&dir.join("file"), libc::O_RDWR, 0).expect("open");
    for (at, into, len) in [(0usize, 262_144usize, 131_072usize), (10, 200_000, 5000), (131_072, 400_000, 131_072)] {
        s.works("sync", sys::fsync(one.as_raw_fd()));
        s.is(
            format!("{at}+{len} to {into}"),
            copy(one.as_raw_fd(), at as i64, one.as_raw_fd(), into as i64, len),
            Ok(len),
        );
        want.resize(want.len().max(into + len), 0);
        want.copy_within(at..at + len, into);
        s.holds(
            format!("content after {at}+{len} to {into}"),
            std::fs::read(dir.join("file")).ok() == Some(want.clone()),
        );
    }
    let overlap = sys::copy_range(one.as_raw_fd(), 0, one.as_raw_fd(), 100, 200, 0);
    s.fails("onto itself", overlap, Errno::EINVAL);
}

fn refusals(s: &mut Suite) {
    let dir = s.dir();
    file(&dir.join("a"), b"content");
    file(&dir.join("b"), b"");
    let read = sys::open(&dir.join("a"), libc::O_RDONLY, 0).expect("open");
    let write = sys::open(&dir.join("b"), libc::O_WRONLY, 0).expect("open");
    let append = sys::open(&dir.join("b"), libc::O_WRONLY | libc::O_APPEND, 0).expect("open");
    let directory = sys::open(&dir, libc::O_RDONLY, 0).expect("open");
    Kind::Fifo.make(&dir.join("p"), 0o644).expect("fifo");
    let fifo = sys::open(&dir.join("p"), libc::O_RDWR, 0).expect("open");
    let (r, w, a, d, p) =
        (read.as_raw_fd(), write.as_raw_fd(), append.as_raw_fd(), directory.as_raw_fd(), fifo.as_raw_fd());
    s.is("at the end", sys::copy_range(r, 7, w, 0, 10, 0), Ok(0));
    s.is("past the end", sys::copy_range(r, 700, w, 0, 10, 0), Ok(0));
    s.is("nothing", sys::copy_range(r, 0, w, 0, 0, 0), Ok(0));
    for (what, got, want) in [
        ("from what is not readable", sys::copy_range(w, 0, w, 50, 1, 0), Errno::EBADF),
        ("to what is not writable", sys::copy_range(r, 0, r, 50, 1, 0), Errno::EBADF),
        ("to what appends", sys::copy_range(r, 0, a, 0, 1, 0), Errno::EBADF),
        ("from nothing", sys::copy_range(-1, 0, w, 0, 1, 0), Errno::EBADF),
        ("to nothing", sys::copy_range(r, 0, -1, 0, 1, 0), Errno::EBADF),
        ("from a directory", sys::copy_range(d, 0, w, 0, 1, 0), Errno::EISDIR),
        ("to a directory", sys::copy_range(r, 0, d, 0, 1, 0), Errno::EISDIR),
        ("from a fifo", sys::copy_range(p, 0, w, 0, 1, 0), Errno::EINVAL),
        ("with flags", sys::copy_range(r, 0, w, 0, 1, 1), Errno::EINVAL),
        ("from before the beginning", sys::copy_range(r, -1, w, 0, 1, 0), Errno::EOVERFLOW),
    ] {
        s.fails(what, got, want);
    }
}
