//! chown(2), lchown(2), fchown(2).

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, OTHER, USER, file, mode_of, path_errors};
use super::sys;

const KEEP: u32 = u32::MAX;

pub fn checks(s: &mut Suite) {
    path_errors(s, "chown", Last::Followed, &|path| sys::chown(path, KEEP, KEEP));
    path_errors(s, "lchown", Last::Itself, &|path| sys::lchown(path, KEEP, KEEP));
    let dir = s.dir();
    for kind in KINDS {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o644).expect("make");
        for (uid, gid, want) in [
            (USER, OTHER, (USER, OTHER)),
            (KEEP, USER, (USER, USER)),
            (OTHER, KEEP, (OTHER, USER)),
            (KEEP, KEEP, (OTHER, USER)),
            (0, 0, (0, 0)),
            (u32::MAX - 1, u32::MAX - 1, (u32::MAX - 1, u32::MAX - 1)),
        ] {
            s.works(format!("{kind:?} to {uid}:{gid}"), sys::lchown(&path, uid, gid));
            let owner = sys::lstat(&path).map(|stat| (stat.st_uid, stat.st_gid));
            s.is(format!("{kind:?} after {uid}:{gid}"), owner, Ok(want));
        }
    }
    permissions(s);
    set_id_bits(s);
    let (path, link) = (dir.join("File"), dir.join("to-file"));
    sys::symlink(&path, &link).expect("symlink");
    s.works("through a link", sys::chown(&link, USER, USER));
    s.is("the target's owner", sys::lstat(&path).map(|stat| stat.st_uid), Ok(USER));
    s.is("the link's owner", sys::lstat(&link).map(|stat| stat.st_uid), Ok(0));
    let open = sys::open(&path, libc::O_RDONLY, 0).expect("open");
    s.works("fchown", sys::fchown(open.as_raw_fd(), OTHER, OTHER));
    s.is("by fchown", sys::lstat(&path).map(|stat| (stat.st_uid, stat.st_gid)), Ok((OTHER, OTHER)));
    s.fails("fchown of nothing", sys::fchown(-1, 0, 0), Errno::EBADF);
}

fn permissions(s: &mut Suite) {
    let dir = s.dir();
    let path = dir.join("file");
    file(&path, b"x");
    sys::chown(&path, USER, USER).expect("chown");
    let by = |uid: u32, groups: &'static [u32], to: (u32, u32)| {
        sys::as_user(uid, uid, groups, || sys::chown(&path, to.0, to.1))
    };
    for (what, uid, groups, to, want) in [
        ("the owner gives it away", USER, &[][..], (OTHER, KEEP), Some(Errno::EPERM)),
        ("the owner to a foreign group", USER, &[][..], (KEEP, OTHER), Some(Errno::EPERM)),
        ("the owner to a supplementary group", USER, &[OTHER][..], (KEEP, OTHER), None),
        ("the owner back to its group", USER, &[][..], (KEEP, USER), None),
        ("the owner to itself", USER, &[][..], (USER, USER), None),
        ("the owner changes nothing", USER, &[][..], (KEEP, KEEP), None),
        ("another takes it", OTHER, &[][..], (OTHER, KEEP), Some(Errno::EPERM)),
        ("another to its own group", OTHER, &[][..], (KEEP, OTHER), Some(Errno::EPERM)),
    ] {
        s.answers(what, by(uid, groups, to), want);
    }
}

/// Which bits are left after chown by root and by the owner: set-user-id never, set-group-id only without group
/// execution.
fn set_id_bits(s: &mut Suite) {
    let dir = s.dir();
    let path = dir.join("file");
    file(&path, b"x");
    for who in [0, USER] {
        for mode in [0o4755, 0o2755, 0o6755, 0o4644, 0o2644, 0o6711, 0o2705, 0o1755, 0o7777] {
            sys::chown(&path, USER, USER).expect("chown");
            sys::chmod(&path, mode).expect("chmod");
            let done = sys::as_user(who, who, &[OTHER, USER], || sys::chown(&path, KEEP, OTHER));
            s.works(format!("chgrp of {mode:o} by {who}"), done);
            let mut want = mode & !0o4000;
            if mode & 0o010 != 0 {
                want &= !0o2000;
            }
            s.is(format!("mode {mode:o} after chgrp by {who}"), mode_of(&path), want);
        }
    }
    let sub = dir.join("sub");
    Kind::Dir.make(&sub, 0o755).expect("mkdir");
    sys::chmod(&sub, 0o6755).expect("chmod");
    s.works("chown of a directory", sys::chown(&sub, USER, USER));
    s.is("a directory keeps its bits", mode_of(&sub), 0o6755);
}
