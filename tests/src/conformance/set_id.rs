//! Set-user-id, set-group-id and capabilities are lost when a file's content changes.

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;

use super::Suite;
use super::common::{USER, file, mode_of};
use super::sys::{self, Answer};

const CAPABILITY: &str = "security.capability";
/// cap_net_raw=ep, as the kernel stores it (version 2).
const CAP_NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

type Change = (&'static str, fn(&Path) -> Answer);

const CHANGES: [Change; 6] = [
    ("write", |path| {
        let open = sys::open(path, libc::O_WRONLY, 0)?;
        sys::write(open.as_raw_fd(), b"x", None).map(drop)
    }),
    ("append", |path| {
        let open = sys::open(path, libc::O_WRONLY | libc::O_APPEND, 0)?;
        sys::write(open.as_raw_fd(), b"x", None).map(drop)
    }),
    ("truncate", |path| sys::truncate(path, 3)),
    ("ftruncate", |path| sys::ftruncate(sys::open(path, libc::O_WRONLY, 0)?.as_raw_fd(), 3)),
    ("O_TRUNC", |path| sys::open(path, libc::O_WRONLY | libc::O_TRUNC, 0).map(drop)),
    ("punch", |path| {
        let open = sys::open(path, libc::O_WRONLY, 0)?;
        sys::fallocate(open.as_raw_fd(), libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 2)
    }),
];

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let path = dir.join("file");
    for (name, change) in CHANGES {
        for mode in [0o4777, 0o2777, 0o6777, 0o6755, 0o2766, 0o6766, 0o4711, 0o1777] {
            file(&path, b"content");
            sys::chown(&path, USER, USER).expect("chown");
            sys::chmod(&path, mode).expect("chmod");
            s.works(format!("{name} of {mode:o} by a user"), sys::as_user(USER, USER, &[], || change(&path)));
            let mut want = mode & !0o4000;
            if mode & 0o010 != 0 {
                want &= !0o2000;
            }
            s.is(format!("mode {mode:o} after {name} by a user"), mode_of(&path), want);
        }
        file(&path, b"content");
        sys::chmod(&path, 0o755).expect("chmod");
        sys::setxattr(&path, CAPABILITY, &CAP_NET_RAW, 0, true).expect("set a capability");
        s.works(format!("{name} of a file with capabilities"), change(&path));
        s.fails(format!("capabilities after {name}"), sys::getxattr(&path, CAPABILITY, 100), Errno::ENODATA);
        sys::unlink(&path).expect("unlink");
    }
    file(&path, b"content");
    for mode in [0o6755, 0o4711] {
        sys::chmod(&path, mode).expect("chmod");
        let open = sys::open(&path, libc::O_WRONLY, 0).expect("open");
        s.is(format!("write to {mode:o} by root"), sys::write(open.as_raw_fd(), b"x", None), Ok(1));
        s.is(format!("{mode:o} after root has written"), mode_of(&path), mode);
    }
    sys::setxattr(&path, CAPABILITY, &CAP_NET_RAW, 0, true).expect("set a capability");
    s.works("chown", sys::chown(&path, USER, USER));
    s.fails("capabilities after chown", sys::getxattr(&path, CAPABILITY, 100), Errno::ENODATA);
    sys::setxattr(&path, CAPABILITY, &CAP_NET_RAW, 0, true).expect("set a capability");
    sys::rename(&path, &dir.join("moved")).expect("rename");
    s.is("capabilities after rename", sys::getxattr(&dir.join("moved"), CAPABILITY, 100), Ok(CAP_NET_RAW.to_vec()));
    s.works("chmod", sys::chmod(&dir.join("moved"), 0o700));
    s.is("capabilities after chmod", sys::getxattr(&dir.join("moved"), CAPABILITY, 100), Ok(CAP_NET_RAW.to_vec()));
}
