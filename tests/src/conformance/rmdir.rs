//! rmdir(2).

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, USER, links_of, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    path_errors(s, "rmdir", Last::Itself, &sys::rmdir);
    let dir = s.dir();
    for kind in KINDS {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o755).expect("make");
        s.answers(format!("of {kind:?}"), sys::rmdir(&path), (kind != Kind::Dir).then_some(Errno::ENOTDIR));
    }
    for kind in KINDS {
        let full = dir.join(format!("with{kind:?}"));
        sys::mkdir(&full, 0o755).expect("mkdir");
        kind.make(&full.join("x"), 0o644).expect("make");
        s.fails(format!("of one with {kind:?}"), sys::rmdir(&full), Errno::ENOTEMPTY);
        kind.remove(&full.join("x")).expect("remove");
        s.works(format!("once {kind:?} is gone"), sys::rmdir(&full));
    }
    sys::mkdir(&dir.join("d"), 0o755).expect("mkdir");
    s.is("links with it", links_of(&dir), 3);
    s.fails("\".\"", sys::rmdir(&dir.join("d/.")), Errno::EINVAL);
    s.fails("\"..\"", sys::rmdir(&dir.join("d/..")), Errno::ENOTEMPTY);
    s.fails("the root", sys::rmdir(std::path::Path::new("/")), Errno::EBUSY);
    sys::symlink(std::path::Path::new("d"), &dir.join("link")).expect("symlink");
    s.fails("a link to one", sys::rmdir(&dir.join("link")), Errno::ENOTDIR);
    s.fails("a link to one, with a slash", sys::rmdir(&dir.join("link/")), Errno::ENOTDIR);
    let got = sys::as_user(USER, USER, &[], || sys::rmdir(&dir.join("d")));
    s.fails("where the user may not write", got, Errno::EACCES);
    let open = sys::open(&dir.join("d"), libc::O_RDONLY, 0).expect("open");
    s.works("with a slash", sys::rmdir(&dir.join("d/")));
    s.is("links without it", links_of(&dir), 2);
    let links = sys::fstat(std::os::fd::AsRawFd::as_raw_fd(&open)).map(|stat| stat.st_nlink);
    s.is("links of what was removed while open", links, Ok(0));
    s.fails("twice", sys::rmdir(&dir.join("d")), Errno::ENOENT);
    s.works("the name is free", sys::mkdir(&dir.join("d"), 0o755));
}
