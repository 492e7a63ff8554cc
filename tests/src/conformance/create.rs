//! Making files: open(2) with O_CREAT.

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, USER, file, mode_of, path_errors};
use super::sys;

const MAKE: i32 = libc::O_CREAT | libc::O_RDWR;
const NEW: i32 = MAKE | libc::O_EXCL;

pub fn checks(s: &mut Suite) {
    path_errors(s, "open O_CREAT", Last::Made, &|path| sys::open(path, MAKE, 0o644).map(drop));
    let dir = s.dir();
    for kind in KINDS {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o644).expect("make");
        s.fails(format!("O_EXCL over {kind:?}"), sys::open(&path, NEW, 0o644), Errno::EEXIST);
    }
    s.fails("over a directory", sys::open(&dir.join("Dir"), MAKE, 0o644), Errno::EISDIR);
    s.fails("with a slash", sys::open(&dir.join("new/"), MAKE, 0o644), Errno::EISDIR);
    s.works("through a dangling link", sys::open(&dir.join("Symlink"), MAKE, 0o640));
    s.is("its target was made", sys::lstat(&dir.join("nowhere")).map(|stat| stat.st_mode), Ok(libc::S_IFREG | 0o640));
    for mode in [0o777, 0o644, 0o600, 0o444, 0o400, 0o200, 0, 0o4755, 0o2711, 0o1700] {
        let path = dir.join(format!("m{mode:o}"));
        let made = sys::with_umask(0, || sys::open(&path, NEW, mode));
        if let Some(made) = s.works(format!("with mode {mode:o}"), made) {
            // Whatever the mode, who makes a file may use it.
            s.is(format!("write to {mode:o}"), sys::write(made.as_raw_fd(), b"x", None), Ok(1));
            s.is(format!("read from {mode:o}"), sys::read(made.as_raw_fd(), 1, Some(0)), Ok(b"x".to_vec()));
        }
        s.is(format!("mode {mode:o}"), mode_of(&path), mode);
    }
    let stat = sys::lstat(&dir.join("m644"));
    s.is("links", stat.map(|stat| stat.st_nlink), Ok(1));
    s.is("owner", stat.map(|stat| (stat.st_uid, stat.st_gid)), Ok((0, 0)));
    s.is("device", stat.map(|stat| stat.st_rdev), Ok(0));
    let theirs = s.dir();
    sys::chown(&theirs, USER, USER).expect("chown");
    s.works("as a user", sys::as_user(USER, 77, &[], || sys::open(&theirs.join("f"), NEW, 0o644)));
    let owner = sys::lstat(&theirs.join("f")).map(|stat| (stat.st_uid, stat.st_gid));
    s.is("the owner is who makes it", owner, Ok((USER, 77)));
    sys::chown(&theirs, USER, 88).expect("chown");
    sys::chmod(&theirs, 0o2755).expect("chmod");
    for (name, make) in [("f2", Kind::File), ("d2", Kind::Dir), ("p2", Kind::Fifo), ("s2", Kind::Socket)] {
        s.works(
            format!("{make:?} under set-group-id"),
            sys::as_user(USER, 77, &[], || make.make(&theirs.join(name), 0o755)),
        );
        let stat = sys::lstat(&theirs.join(name));
        s.is(format!("{make:?} has the directory's group"), stat.map(|stat| stat.st_gid), Ok(88));
        let bit = stat.map(|stat| stat.st_mode & 0o2000 != 0);
        s.is(format!("{make:?}: only directories inherit the bit"), bit, Ok(make == Kind::Dir));
    }
    let got = sys::as_user(USER, 77, &[], || sys::open(&theirs.join("g"), NEW, 0o2711));
    s.works("with set-group-id, not of the group", got);
    s.is("loses it", mode_of(&theirs.join("g")), 0o711);
    let closed = s.dir();
    for kind in KINDS {
        let got = sys::as_user(USER, USER, &[], || kind.make(&closed.join("x"), 0o644));
        let devices = matches!(kind, Kind::Char | Kind::Block);
        let want = if devices { Errno::EPERM } else { Errno::EACCES };
        // Linux looks at the directory first.
        let want = if devices { Errno::EACCES } else { want };
        s.fails(format!("{kind:?} where the user may not write"), got, want);
    }
    file(&dir.join("full"), b"content");
    s.works("O_TRUNC", sys::open(&dir.join("full"), MAKE | libc::O_TRUNC, 0o600));
    s.is("emptied", sys::stat(&dir.join("full")).map(|stat| stat.st_size), Ok(0));
    s.is("O_CREAT does not change the mode", mode_of(&dir.join("full")) & 0o7, 0o4);
    let gone = s.dir();
    let handle = sys::open(&gone, libc::O_RDONLY | libc::O_DIRECTORY, 0).expect("open");
    sys::rmdir(&gone).expect("rmdir");
    let got = sys::openat(handle.as_raw_fd(), Path::new("x"), NEW, 0o644);
    s.fails("in a directory that was removed", got, Errno::ENOENT);
}
