//! unlink(2).

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, USER, file, links_of, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    path_errors(s, "unlink", Last::Itself, &sys::unlink);
    let dir = s.dir();
    for kind in KINDS {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o644).expect("make");
        s.answers(format!("of {kind:?}"), sys::unlink(&path), (kind == Kind::Dir).then_some(Errno::EISDIR));
        if kind != Kind::Dir {
            s.fails(format!("{kind:?} is gone"), sys::lstat(&path), Errno::ENOENT);
            s.fails(format!("{kind:?} twice"), sys::unlink(&path), Errno::ENOENT);
            s.works(format!("{kind:?} anew"), kind.make(&path, 0o644));
        }
    }
    for path in [".", "..", "Dir/.", "Dir/.."] {
        s.fails(path, sys::unlink(&dir.join(path)), Errno::EISDIR);
    }
    file(&dir.join("target"), b"x");
    sys::symlink(std::path::Path::new("target"), &dir.join("link")).expect("symlink");
    s.works("a link", sys::unlink(&dir.join("link")));
    s.works("its target stays", sys::stat(&dir.join("target")));
    sys::link(&dir.join("target"), &dir.join("second")).expect("link");
    s.works("one of two names", sys::unlink(&dir.join("target")));
    s.is("the other", links_of(&dir.join("second")), 1);
    s.is("has the content", std::fs::read(dir.join("second")).ok(), Some(b"x".to_vec()));
    let got = sys::as_user(USER, USER, &[], || sys::unlink(&dir.join("second")));
    s.fails("where the user may not write", got, Errno::EACCES);
    sys::chmod(&dir.join("second"), 0).expect("chmod");
    sys::chown(&dir, USER, USER).expect("chown");
    let got = sys::as_user(USER, USER, &[], || sys::unlink(&dir.join("second")));
    s.works("what the user may not touch, from where it may write", got);
}
