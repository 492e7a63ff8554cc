//! symlink(2).

use std::path::Path;

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Last, USER, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    path_errors(s, "symlink", Last::Made, &|path| sys::symlink(Path::new("target"), path));
    let dir = s.dir();
    for kind in KINDS {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o644).expect("make");
        s.fails(format!("over {kind:?}"), sys::symlink(Path::new("target"), &path), Errno::EEXIST);
    }
    s.fails("to nothing", sys::symlink(Path::new(""), &dir.join("empty")), Errno::ENOENT);
    let long = "x".repeat(4096);
    s.fails("to 4096 bytes", sys::symlink(Path::new(&long), &dir.join("long")), Errno::ENAMETOOLONG);
    for target in ["/", ".", "..", "a/../b", "//x//", "with space", "\u{fc}", "-x"] {
        let path = dir
            .join(format!("to{}", target.len()).replace('/', "_"))
            .with_extension(format!("{:x}", target.as_bytes()[0]));
        s.works(format!("to {target:?}"), sys::symlink(Path::new(target), &path));
        s.is(format!("{target:?} is kept as it is"), sys::readlink(&path, 100), Ok(target.as_bytes().to_vec()));
    }
    sys::with_umask(0o777, || sys::symlink(Path::new("x"), &dir.join("masked"))).expect("symlink");
    s.is("the umask has no say", sys::lstat(&dir.join("masked")).map(|stat| stat.st_mode), Ok(libc::S_IFLNK | 0o777));
    let open = s.dir();
    sys::chown(&open, USER, 5).expect("chown");
    s.works("by a user", sys::as_user(USER, USER, &[], || sys::symlink(Path::new("x"), &open.join("theirs"))));
    let owner = sys::lstat(&open.join("theirs")).map(|stat| (stat.st_uid, stat.st_gid));
    s.is("owned by who made it", owner, Ok((USER, USER)));
    let closed = s.dir();
    let got = sys::as_user(USER, USER, &[], || sys::symlink(Path::new("x"), &closed.join("x")));
    s.fails("where the user may not write", got, Errno::EACCES);
}
