//! mknod(2).

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, USER, mode_of, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    path_errors(s, "mknod", Last::Made, &|path| sys::mknod(path, libc::S_IFIFO | 0o644, 0));
    let dir = s.dir();
    for (major, minor) in [(1, 3), (0, 0), (8, 17), (255, 255), (4095, 1_048_575), (300, 70_000)] {
        for kind in [Kind::Char, Kind::Block] {
            let path = dir.join(format!("{kind:?}{major}-{minor}"));
            let device = libc::makedev(major, minor);
            s.works(format!("{kind:?} {major}:{minor}"), sys::mknod(&path, kind.bits() | 0o600, device));
            let stat = sys::lstat(&path);
            s.is(format!("{kind:?} {major}:{minor} is told"), stat.map(|stat| stat.st_rdev), Ok(device));
            s.is(format!("{kind:?} {major}:{minor}: kind"), stat.map(|stat| stat.st_mode), Ok(kind.bits() | 0o600));
        }
    }
    for kind in [Kind::File, Kind::Fifo, Kind::Socket] {
        for mode in [0, 0o644, 0o777, 0o4755, 0o1600] {
            let path = dir.join(format!("{kind:?}{mode:o}"));
            s.works(format!("{kind:?} {mode:o}"), sys::with_umask(0, || sys::mknod(&path, kind.bits() | mode, 0)));
            s.is(format!("{kind:?} with {mode:o}"), mode_of(&path), mode);
            s.is(format!("{kind:?} {mode:o}: size"), sys::lstat(&path).map(|stat| stat.st_size), Ok(0));
        }
    }
    s.works("no kind is a file", sys::mknod(&dir.join("none"), 0o644, 0));
    s.is("a file", sys::lstat(&dir.join("none")).map(|stat| stat.st_mode & libc::S_IFMT), Ok(libc::S_IFREG));
    s.fails("a directory", sys::mknod(&dir.join("x"), libc::S_IFDIR | 0o755, 0), Errno::EPERM);
    s.fails("a symbolic link", sys::mknod(&dir.join("x"), libc::S_IFLNK | 0o755, 0), Errno::EINVAL);
    for kind in KINDS {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o644).expect("make");
        s.fails(format!("over {kind:?}"), sys::mknod(&path, libc::S_IFIFO | 0o644, 0), Errno::EEXIST);
    }
    let open = s.dir();
    sys::chown(&open, USER, USER).expect("chown");
    for (kind, want) in [
        (Kind::Char, Some(Errno::EPERM)),
        (Kind::Block, Some(Errno::EPERM)),
        (Kind::Fifo, None),
        (Kind::Socket, None),
        (Kind::File, None),
    ] {
        let got = sys::as_user(USER, USER, &[], || kind.make(&open.join(format!("{kind:?}")), 0o644));
        s.answers(format!("{kind:?} by a user"), got, want);
    }
    // A whiteout is a device that needs no privilege.
    let got = sys::as_user(USER, USER, &[], || sys::mknod(&open.join("whiteout"), libc::S_IFCHR, 0));
    s.works("a whiteout by a user", got);
}
