//! Permission bits: access(2), opening, and what may be done in a directory, for owner, group, supplementary group, others.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Suite;
use super::common::{Last, OTHER, USER, file, path_errors};
use super::sys;

/// Who asks of a file of USER and group USER: the shift of the bits that count, and identity.
const WHO: [(&str, u32, u32, u32, &[u32]); 4] = [
    ("owner", 6, USER, OTHER, &[]),
    ("group", 3, OTHER, USER, &[]),
    ("supplementary group", 3, OTHER, OTHER, &[USER]),
    ("others", 0, OTHER, OTHER, &[]),
];

pub fn checks(s: &mut Suite) {
    path_errors(s, "access", Last::Followed, &|path| sys::access(path, libc::F_OK));
    let dir = s.dir();
    let (path, sub) = (dir.join("file"), dir.join("sub"));
    file(&path, b"content");
    sys::mkdir(&sub, 0o755).expect("mkdir");
    file(&sub.join("entry"), b"x");
    for path in [&path, &sub] {
        sys::chown(path, USER, USER).expect("chown");
    }
    for (who, shift, uid, gid, groups) in WHO {
        for bits in 0..8u32 {
            // All others are given what is not given to the class that counts.
            let mode = (0o777 & !(7 << shift)) & !((!bits & 7) << shift) | bits << shift;
            let mode = mode & 0o777;
            sys::chmod(&path, mode).expect("chmod");
            sys::chmod(&sub, mode).expect("chmod");
            let may = |wanted: u32| if bits & wanted == wanted { None } else { Some(Errno::EACCES) };
            for wanted in 1..8u32 {
                let got = sys::as_user(uid, gid, groups, || sys::access(&path, wanted as i32));
                // access(2) asks with the real identity, which as_user sets too.
                s.answers(format!("access {wanted} as {who}, mode {mode:o}"), got, may(wanted));
            }
            for (flags, wanted) in [(libc::O_RDONLY, 4), (libc::O_WRONLY, 2), (libc::O_RDWR, 6)] {
                let got = sys::as_user(uid, gid, groups, || sys::open(&path, flags, 0));
                s.answers(format!("open {flags} as {who}, mode {mode:o}"), got, may(wanted));
            }
            let got = sys::as_user(uid, gid, groups, || sys::open(&sub, libc::O_RDONLY | libc::O_DIRECTORY, 0));
            s.answers(format!("list as {who}, mode {mode:o}"), got, may(4));
            let got = sys::as_user(uid, gid, groups, || sys::stat(&sub.join("entry")));
            s.answers(format!("search as {who}, mode {mode:o}"), got, may(1));
            let made = sub.join("made");
            let got = sys::as_user(uid, gid, groups, || {
                sys::open(&made, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o600).map(|file| file.as_raw_fd())
            });
            s.answers(format!("make as {who}, mode {mode:o}"), got, may(3));
            let got = sys::as_user(uid, gid, groups, || sys::unlink(&made));
            // Without search nothing is found; what was not made is missing.
            let want = if bits & 1 == 0 {
                Some(Errno::EACCES)
            } else if bits & 2 == 0 {
                Some(Errno::ENOENT)
            } else {
                None
            };
            s.answers(format!("remove as {who}, mode {mode:o}"), got, want);
        }
    }
    // Root may do everything but execute what nobody may.
    sys::chmod(&path, 0).expect("chmod");
    s.works("root reads", sys::access(&path, libc::R_OK | libc::W_OK));
    s.fails("root does not execute", sys::access(&path, libc::X_OK), Errno::EACCES);
    sys::chmod(&path, 0o001).expect("chmod");
    s.works("root executes what others may", sys::access(&path, libc::X_OK));
    s.fails("an unknown mode", sys::access(&path, 8), Errno::EINVAL);
    sys::chmod(&sub, 0).expect("chmod");
    s.works("root searches", sys::stat(&sub.join("entry")));
}
