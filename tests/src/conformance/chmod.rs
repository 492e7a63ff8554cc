//! chmod(2), fchmod(2).

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, OTHER, USER, file, mode_of, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    path_errors(s, "chmod", Last::Followed, &|path| sys::chmod(path, 0o644));
    let dir = s.dir();
    for kind in KINDS.into_iter().filter(|kind| *kind != Kind::Symlink) {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o600).expect("make");
        for mode in [0, 0o111, 0o222, 0o444, 0o777, 0o1777, 0o2755, 0o4755, 0o7777, 0o640] {
            s.works(format!("{kind:?} to {mode:o}"), sys::chmod(&path, mode));
            s.is(format!("{kind:?} at {mode:o}"), mode_of(&path), mode);
        }
        s.is(
            format!("{kind:?} keeps its kind"),
            sys::lstat(&path).map(|stat| stat.st_mode & libc::S_IFMT),
            Ok(kind.bits()),
        );
    }
    let path = dir.join("owned");
    file(&path, b"x");
    sys::chown(&path, USER, USER).expect("chown");
    s.works("the owner", sys::as_user(USER, USER, &[], || sys::chmod(&path, 0o600)));
    s.fails("another user", sys::as_user(OTHER, USER, &[], || sys::chmod(&path, 0o644)), Errno::EPERM);
    s.is("nothing changed", mode_of(&path), 0o600);
    for (who, gid, groups, kept) in [
        ("of the group", USER, &[][..], true),
        ("by a supplementary group", OTHER, &[USER][..], true),
        ("not of the group", OTHER, &[][..], false),
    ] {
        s.works(format!("set-group-id {who}"), sys::as_user(USER, gid, groups, || sys::chmod(&path, 0o2755)));
        s.is(format!("kept {who}"), mode_of(&path) & 0o2000 != 0, kept);
        sys::chmod(&path, 0o600).expect("chmod");
    }
    // Linux lets an ordinary user set the sticky bit of a file.
    s.works("sticky by the owner", sys::as_user(USER, USER, &[], || sys::chmod(&path, 0o1644)));
    s.is("sticky of a file", mode_of(&path), 0o1644);
    let open = sys::open(&path, libc::O_RDONLY, 0).expect("open");
    s.works("fchmod", sys::fchmod(open.as_raw_fd(), 0o751));
    s.is("by fchmod", mode_of(&path), 0o751);
    s.fails("fchmod of nothing", sys::fchmod(-1, 0o600), Errno::EBADF);
    let as_other = sys::as_user(OTHER, OTHER, &[], || sys::fchmod(open.as_raw_fd(), 0o600));
    s.fails("fchmod by another user", as_other, Errno::EPERM);
    // An open descriptor keeps its rights.
    let writer = sys::open(&path, libc::O_WRONLY, 0).expect("open");
    sys::chmod(&path, 0).expect("chmod");
    let wrote = sys::as_user(USER, USER, &[], || sys::write(writer.as_raw_fd(), b"y", None));
    s.is("write after chmod 0", wrote, Ok(1));
    sys::symlink(&path, &dir.join("link")).expect("symlink");
    s.works("through a link", sys::chmod(&dir.join("link"), 0o604));
    s.is("the target changed", mode_of(&path), 0o604);
    s.is("the link did not", mode_of(&dir.join("link")), 0o777);
}
