//! open(2) of what exists.

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, USER, file, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    path_errors(s, "open", Last::Followed, &|path| sys::open(path, libc::O_RDONLY, 0).map(drop));
    let dir = s.dir();
    for kind in KINDS {
        kind.make(&dir.join(format!("{kind:?}")), 0o644).expect("make");
    }
    let path = |kind: Kind| dir.join(format!("{kind:?}"));
    let (r, w, rw) = (libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR);
    for (kind, flags, want) in [
        (Kind::File, r, None),
        (Kind::File, w, None),
        (Kind::File, rw, None),
        (Kind::File, r | libc::O_DIRECTORY, Some(Errno::ENOTDIR)),
        (Kind::File, r | libc::O_NOFOLLOW, None),
        (Kind::File, libc::O_PATH, None),
        (Kind::Dir, r, None),
        (Kind::Dir, w, Some(Errno::EISDIR)),
        (Kind::Dir, rw, Some(Errno::EISDIR)),
        (Kind::Dir, r | libc::O_DIRECTORY, None),
        (Kind::Dir, w | libc::O_TRUNC, Some(Errno::EISDIR)),
        (Kind::Dir, libc::O_PATH | libc::O_DIRECTORY, None),
        (Kind::Fifo, r | libc::O_NONBLOCK, None),
        (Kind::Fifo, w | libc::O_NONBLOCK, Some(Errno::ENXIO)),
        (Kind::Fifo, rw, None),
        (Kind::Fifo, r | libc::O_DIRECTORY, Some(Errno::ENOTDIR)),
        (Kind::Socket, r, Some(Errno::ENXIO)),
        (Kind::Socket, w, Some(Errno::ENXIO)),
        (Kind::Socket, libc::O_PATH, None),
        (Kind::Symlink, r, Some(Errno::ENOENT)),
        (Kind::Symlink, r | libc::O_NOFOLLOW, Some(Errno::ELOOP)),
        (Kind::Symlink, w | libc::O_NOFOLLOW, Some(Errno::ELOOP)),
        (Kind::Symlink, libc::O_PATH | libc::O_NOFOLLOW, None),
        (Kind::Symlink, r | libc::O_NOFOLLOW | libc::O_DIRECTORY, Some(Errno::ENOTDIR)),
        (Kind::Char, r, None),
        (Kind::Char, r | libc::O_DIRECTORY, Some(Errno::ENOTDIR)),
    ] {
        s.answers(format!("{kind:?} with {flags:#o}"), sys::open(&path(kind), flags, 0), want);
    }
    let file_path = dir.join("content");
    file(&file_path, b"content");
    let read = sys::open(&file_path, r, 0).expect("open");
    let write = sys::open(&file_path, w, 0).expect("open");
    s.fails("write to what is read", sys::write(read.as_raw_fd(), b"x", None), Errno::EBADF);
    s.fails("read what is written", sys::read(write.as_raw_fd(), 1, None), Errno::EBADF);
    s.fails("cut what is read", sys::ftruncate(read.as_raw_fd(), 0), Errno::EINVAL);
    let bare = sys::open(&file_path, libc::O_PATH, 0).expect("open");
    s.fails("read by O_PATH", sys::read(bare.as_raw_fd(), 1, None), Errno::EBADF);
    s.works("stat by O_PATH", sys::fstat(bare.as_raw_fd()));
    s.works("O_TRUNC", sys::open(&file_path, w | libc::O_TRUNC, 0));
    s.is("emptied", sys::fstat(read.as_raw_fd()).map(|stat| stat.st_size), Ok(0));
    at(s, &dir);
    // Running programs.
    let program = dir.join("program");
    std::fs::copy("/bin/true", &program).expect("copy a program");
    sys::chmod(&program, 0o755).expect("chmod");
    s.is(
        "a program runs",
        std::process::Command::new(&program).status().ok().map(|status| status.success()),
        Some(true),
    );
    let writer = sys::open(&program, w, 0).expect("open");
    let run = std::process::Command::new(&program).status().err().and_then(|error| error.raw_os_error());
    s.is("not while it is written", run, Some(libc::ETXTBSY));
    drop(writer);
    running(s, &dir);
    sys::chmod(&program, 0o644).expect("chmod");
    let run = std::process::Command::new(&program).status().err().and_then(|error| error.raw_os_error());
    s.is("not without permission", run, Some(libc::EACCES));
}

fn at(s: &mut Suite, dir: &Path) {
    let handle = sys::open(dir, libc::O_RDONLY | libc::O_DIRECTORY, 0).expect("open");
    let d = handle.as_raw_fd();
    s.works("relative", sys::openat(d, Path::new("content"), libc::O_RDONLY, 0));
    s.fails("relative, missing", sys::openat(d, Path::new("no"), libc::O_RDONLY, 0), Errno::ENOENT);
    s.fails("relative to nothing", sys::openat(-1, Path::new("content"), libc::O_RDONLY, 0), Errno::EBADF);
    s.works("absolute, relative to nothing", sys::openat(-1, &dir.join("content"), libc::O_RDONLY, 0));
    let file = sys::open(&dir.join("content"), libc::O_RDONLY, 0).expect("open");
    s.fails("relative to a file", sys::openat(file.as_raw_fd(), Path::new("x"), libc::O_RDONLY, 0), Errno::ENOTDIR);
    s.works("up", sys::openat(d, Path::new(".."), libc::O_RDONLY, 0));
    let noatime = sys::open(&dir.join("content"), libc::O_RDONLY | libc::O_NOATIME, 0);
    s.works("O_NOATIME by root", noatime);
    let got = sys::as_user(USER, USER, &[], || sys::open(&dir.join("content"), libc::O_RDONLY | libc::O_NOATIME, 0));
    s.fails("O_NOATIME by another", got, Errno::EPERM);
}

/// A program that runs is not written to, and not emptied either.
fn running(s: &mut Suite, dir: &Path) {
    let program = dir.join("sleep");
    std::fs::copy("/bin/sleep", &program).expect("copy a program");
    sys::chmod(&program, 0o755).expect("chmod");
    let size = sys::stat(&program).map(|stat| stat.st_size);
    let mut child = std::process::Command::new(&program).arg("60").spawn().expect("run a program");
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC, libc::O_RDONLY | libc::O_TRUNC] {
        s.fails(format!("open {flags:#o} of what runs"), sys::open(&program, flags, 0), Errno::ETXTBSY);
        s.is(format!("its size after {flags:#o}"), sys::stat(&program).map(|stat| stat.st_size), size);
    }
    s.fails("truncate what runs", sys::truncate(&program, 0), Errno::ETXTBSY);
    s.holds("it runs on", child.try_wait().is_ok_and(|ended| ended.is_none()));
    s.works("read what runs", sys::open(&program, libc::O_RDONLY, 0));
    s.works("unlink what runs", sys::unlink(&program));
    let _ = child.kill();
    let _ = child.wait();
    let _ = s.works("a new one of its name", sys::open(&program, libc::O_WRONLY | libc::O_CREAT, 0o644));
}
