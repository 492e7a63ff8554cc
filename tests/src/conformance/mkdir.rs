//! mkdir(2).

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Last, USER, links_of, mode_of, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    path_errors(s, "mkdir", Last::Made, &|path| sys::mkdir(path, 0o755));
    let dir = s.dir();
    for mode in [0o755, 0o700, 0, 0o777, 0o1777, 0o555, 0o4755, 0o2755] {
        let path = dir.join(format!("{mode:o}"));
        s.works(format!("with mode {mode:o}"), sys::with_umask(0, || sys::mkdir(&path, mode)));
        // mkdir(2) takes the permissions and the sticky bit.
        s.is(format!("mode {mode:o}"), mode_of(&path), mode & 0o1777);
    }
    s.is("links of the new", links_of(&dir.join("755")), 2);
    s.is("links of the parent", links_of(&dir), 10);
    for kind in KINDS {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o644).expect("make");
        s.fails(format!("over {kind:?}"), sys::mkdir(&path, 0o755), Errno::EEXIST);
    }
    s.works("with a slash", sys::mkdir(&dir.join("slash/"), 0o755));
    s.fails("\".\"", sys::mkdir(&dir.join("."), 0o755), Errno::EEXIST);
    s.fails("\"..\"", sys::mkdir(&dir.join(".."), 0o755), Errno::EEXIST);
    s.fails("the root", sys::mkdir(std::path::Path::new("/"), 0o755), Errno::EEXIST);
    let up = sys::stat(&dir.join("755/..")).map(|stat| stat.st_ino);
    s.is("\"..\" leads up", up, sys::stat(&dir).map(|stat| stat.st_ino));
    let here = sys::stat(&dir.join("755/.")).map(|stat| stat.st_ino);
    s.is("\".\" leads here", here, sys::stat(&dir.join("755")).map(|stat| stat.st_ino));
    let closed = s.dir();
    let got = sys::as_user(USER, USER, &[], || sys::mkdir(&closed.join("x"), 0o755));
    s.fails("where the user may not write", got, Errno::EACCES);
    let gone = s.dir();
    let handle = sys::open(&gone, libc::O_RDONLY, 0).expect("open");
    sys::rmdir(&gone).expect("rmdir");
    let path = std::path::PathBuf::from(format!("/proc/self/fd/{}/x", handle.as_raw_fd()));
    s.fails("in a directory that was removed", sys::mkdir(&path, 0o755), Errno::ENOENT);
    let mut deep = s.dir();
    for level in 0..60 {
        deep.push("d");
        s.works(format!("level {level}"), sys::mkdir(&deep, 0o755));
    }
}
